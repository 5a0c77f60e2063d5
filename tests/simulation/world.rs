//! One world: a seed decides its devices, its faults and the lives of its gateway, and how each of them ends.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::task::JoinSet;

use super::boot::{Devices, Gateway, Kept, Settings};
use super::bucket::Bucket;
use super::clients::{Access, Clients, Habit};
use super::ground::{self, Ground, below, broken, millis, note, once_in};
use super::log_device::LogDevice;
use super::oracle::Oracle;
use super::session::Network;
use super::store::Store;
use crate::chain::ChainWriter;
use crate::disk::{Abilities, BlockSizes, Disk, Geometry};
use crate::random::seeded;
use crate::units::{KIB, LogIndex, MIB, REQUEST_MAX, SECTOR, Sequence, Span};
use crate::volume::{MarksFail, Sequences, State, Volume};

/// By then whatever can be published is, when nothing fails any more.
const SETTLED_WITHIN: Duration = Duration::from_secs(600);

/// By then a gateway that has something to publish finds out that another has taken over.
const FENCED_WITHIN: Duration = Duration::from_secs(300);

/// What came of a world.
pub struct Outcome {
    /// Of all calls to all devices, with their times.
    pub hash: u64,
    pub calls: u64,
    pub points: usize,
    pub broken: Vec<String>,
    pub tail: Vec<String>,
}

/// What a world is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// Everything at once.
    Busy,
    /// Clients pause for so long that regions cool, while log, marks and remote fail.
    Cooling,
}

/// Lives through the world of this seed; `remember` keeps its last calls in words. Where a trouble is named, regions cool
/// and nothing else than that goes wrong.
pub fn run(seed: u64, trouble: Option<Trouble>, access: Access, remember: bool) -> Outcome {
    let _seeded = seeded::with(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
    ground::panics();
    let ground = Ground::new(remember);
    let lived = std::panic::catch_unwind(AssertUnwindSafe(|| World::new(ground.clone(), trouble, access).live()));
    let panics = ground::panics();
    if panics > 0 {
        broken!(ground, "panic", "{panics} times");
    }
    let (hash, calls, broken, tail) = ground.verdict();
    Outcome { hash, calls, points: lived.unwrap_or(0), broken, tail }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    FailingChanges,
    FailingFlush,
    Unreadable,
    LostConnection,
    CrashedStore,
    FailingLog,
    HangingLog,
    FailingMarks,
    HangingMarks,
    DeadRemote,
    FlakyRemote,
    TakeOver,
}

pub const TROUBLES: [Trouble; 12] = [
    Trouble::FailingChanges,
    Trouble::FailingFlush,
    Trouble::Unreadable,
    Trouble::LostConnection,
    Trouble::CrashedStore,
    Trouble::FailingLog,
    Trouble::HangingLog,
    Trouble::FailingMarks,
    Trouble::HangingMarks,
    Trouble::DeadRemote,
    Trouble::FlakyRemote,
    Trouble::TakeOver,
];

/// Those that make a difference where regions cool.
const COOLING_TROUBLES: [Trouble; 5] =
    [Trouble::FailingLog, Trouble::FailingMarks, Trouble::HangingMarks, Trouble::DeadRemote, Trouble::FailingChanges];

/// How a gateway's life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Its process is killed.
    Killed,
    /// Its machine loses power, and the store with it.
    PowerCut,
    Clean,
}

struct World {
    ground: Ground,
    shape: Shape,
    devices: Arc<Devices>,
    clients: Clients,
    oracle: Oracle,
    troubles: Vec<Trouble>,
    habit: Habit,
    count: u64,
    /// Of what was not flushed a power cut leaves one in so many.
    keep_one_in: u64,
    /// Between its lives sectors of log and marks rot.
    rots: bool,
    access: Access,
}

impl World {
    fn new(ground: Ground, about: Option<Trouble>, access: Access) -> Self {
        let shape = if about.is_some() || once_in(4) { Shape::Cooling } else { Shape::Busy };
        let cooling = shape == Shape::Cooling;
        let through_session = access == Access::ThroughSession;
        // Blocks are whole there.
        let ragged = once_in(3) && !through_session;
        let size = match below(8) {
            // One region does as well as several.
            2.. if cooling => 8 * KIB + below(40 * KIB),
            0 => 4 * MIB + below(2 * MIB),
            3 => 8 * KIB + below(40 * KIB),
            1 | 2 => MIB + below(MIB),
            // Several regions.
            4 => 9 * MIB + below(8 * MIB),
            _ => 40 * KIB + below(400 * KIB),
        };
        let size = if ragged { size } else { size / SECTOR * SECTOR };
        let trim_reads_zero = once_in(2);
        let geometry = Geometry {
            size,
            block: BlockSizes {
                minimum: if ragged { 1 } else { SECTOR as u32 },
                preferred: 4096,
                maximum: REQUEST_MAX,
            },
            abilities: Abilities {
                read_only: false,
                rotational: false,
                flush: true,
                fua: true,
                trim: true,
                trim_reads_zero,
                write_zeroes: true,
                fast_zeroes: false,
                cache: false,
                extents: once_in(2),
                multi_conn: true,
            },
        };
        let sequences = Arc::new(Sequences::above(1 << 20));
        sequences.reserved_through(u64::MAX);
        let store = Store::new(ground.clone(), sequences, geometry, 1 + below(6));
        // The longest record is a piece of a scan.
        let segment = (20 * KIB + size.min(MIB) + below(64 * KIB)).next_multiple_of(4 * KIB);
        let log = LogDevice::new(ground.clone(), 3 + below(5) as u32, segment);
        let bucket = Bucket::new(ground.clone(), below(60));
        let settings = Settings {
            epoch: Duration::from_millis(200 + below(2000)),
            sync_log: once_in(4),
            commit_every: Duration::from_millis(20 + below(if once_in(3) { 3000 } else { 400 })),
            in_flight: if once_in(6) { 128 * KIB } else { 64 * MIB },
            generation: Duration::from_millis(100 + below(if cooling { 200 } else { 1500 })),
            quarantine: once_in(3).then_some(Duration::from_millis(4000)),
            hot_max: if cooling { 0 } else { below(4) },
            throttle: once_in(4).then(|| millis(100)),
            // What is refused so is refused there, too, but not by the same name.
            marks_fail: if once_in(4) && !through_session { MarksFail::Refuse } else { MarksFail::Forward },
        };
        let devices = Devices::new(ground.clone(), store.clone(), log, bucket, settings);
        let odds = |trouble| if cooling { if COOLING_TROUBLES.contains(&trouble) { 2 } else { 8 } } else { 4 };
        let troubles = TROUBLES.into_iter().filter(|&trouble| once_in(odds(trouble)));
        let troubles = match about {
            Some(trouble) => vec![trouble],
            None if once_in(4) => Vec::new(),
            None => troubles.collect(),
        };
        let rest = if cooling { 2000 + below(4000) } else { 0 };
        let hot_length = (4 * KIB + below(60 * KIB)).min(size);
        let hot = Span::at(below(size - hot_length + 1) / SECTOR * SECTOR, hot_length);
        let (operations, count) = (10 + below(if cooling { 30 } else { 60 }), 1 + below(if cooling { 2 } else { 6 }));
        note!(ground, "world: {shape:?}, {size} bytes, {settings:?}, {troubles:?}, {count} clients");
        Self {
            clients: Clients::new(ground.clone(), store, settings.marks_fail, count, access),
            oracle: Oracle::new(size),
            devices: Arc::new(devices),
            ground,
            shape,
            troubles,
            habit: Habit { operations, hot, ragged, rest },
            count,
            keep_one_in: 1 + below(4),
            rots: once_in(4),
            access,
        }
    }

    /// Returns how many points were made.
    fn live(mut self) -> usize {
        let mut kept = Kept::default();
        let lives = 1 + below(4);
        for life in 1..=lives {
            kept = self.life(kept, life == lives);
            if !self.ground.is_sound() {
                return self.oracle.points();
            }
        }
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
        runtime.block_on(self.oracle.check_all_again(&self.devices));
        self.oracle.points()
    }

    fn life(&mut self, kept: Kept, last: bool) -> Kept {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
        let end = match below(4) {
            0 | 1 => End::Killed,
            2 => End::PowerCut,
            _ => End::Clean,
        };
        let settles = last || end == End::Clean || once_in(if self.shape == Shape::Cooling { 6 } else { 3 });
        let loses_log = self.shape == Shape::Cooling && end != End::Clean && once_in(3);
        let kept = self.start_in_vain(kept);
        let (kept, heartbeat) = runtime.block_on(async {
            self.ground.begin_life();
            let kept = self.lead(kept, settles, end == End::Clean, loses_log).await;
            self.devices.log.abandoned();
            self.devices.marks.abandoned();
            self.ground.end_life(millis(5000));
            kept
        });
        drop(runtime);
        note!(self.ground, "world: {end:?}");
        if end == End::PowerCut {
            self.cut_power();
        }
        let Devices { store, log, marks, bucket, .. } = &*self.devices;
        store.abandoned();
        bucket.abandoned();
        store.heal();
        log.heal();
        marks.heal();
        // One of each at most: both copies of something may be gone together.
        let rots = self.rots && end != End::Clean;
        let (log_rots, marks_rot) = (rots && once_in(2), rots && once_in(2));
        if log_rots {
            log.rot();
        }
        if marks_rot {
            marks.rot();
        }
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
        let uncovered = runtime.block_on(async {
            self.oracle.check(&self.devices).await;
            self.is_uncovered(heartbeat).await
        });
        // What a power cut left is not what a clean stop was about.
        let left = kept.left.filter(|_| end == End::Clean);
        let synced = kept.synced.filter(|_| !log_rots);
        Kept { left, synced, uncovered, ..kept }
    }

    /// Starts that come to nothing, in some lives, before the one that does.
    fn start_in_vain(&self, mut kept: Kept) -> Kept {
        while once_in(4) {
            // What it leaves behind of tasks ends with it.
            let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
            runtime.block_on(async {
                self.ground.begin_life();
                self.devices.start_in_vain(&mut kept);
                self.ground.end_life(millis(1000));
            });
            drop(runtime);
            if once_in(3) {
                self.cut_power();
            }
        }
        kept
    }

    fn cut_power(&self) {
        let Devices { store, log, marks, .. } = &*self.devices;
        store.power_cut(self.keep_one_in);
        log.power_cut(self.keep_one_in);
        marks.power_cut(self.keep_one_in);
        self.clients.forget();
    }

    /// From boot to end; also what was the heartbeat at the end, if the marks may have been wrong then.
    async fn lead(&mut self, kept: Kept, settles: bool, clean: bool, loses_log: bool) -> (Kept, Option<u64>) {
        let devices = self.devices.clone();
        let gateway = devices.boot(&kept);
        // Where nothing is replayed the log begins anew; what it had before may go.
        let before = if gateway.replays { LogIndex(0) } else { gateway.volume.log().appended() };
        let mut clients = JoinSet::new();
        let (disk, breaking): (Arc<dyn Disk>, _) = match self.access {
            Access::Directly => (Arc::new(gateway.volume.clone()), None),
            Access::ThroughSession => {
                let network = Network::new(self.ground.clone(), gateway.volume.clone());
                (network.open().await, Some(tokio::spawn(network.breaks())))
            }
        };
        for _ in 0..self.count {
            clients.spawn(self.clients.clone().run(disk.clone(), self.habit));
        }
        let watching = tokio::spawn(watch(devices.clone(), self.clients.clone(), gateway.volume.clone()));
        let cooling = self.shape == Shape::Cooling;
        let lasts = millis(if cooling { 20_000 } else { 8000 });
        let mut other = Other::None;
        let troubling = self.trouble(&gateway, &mut other);
        if settles {
            tokio::join!(troubling, async { while clients.join_next().await.is_some() {} });
            self.settle(&gateway, other).await;
        } else {
            let living = async {
                troubling.await;
                if cooling {
                    std::future::pending::<()>().await;
                }
            };
            let _ = tokio::time::timeout(lasts, living).await;
        }
        watching.abort();
        breaking.inspect(|breaking| breaking.abort());
        let progress = *gateway.volume.log().watch().borrow();
        let sound = progress.era == 0 && !progress.failed && progress.synced > before;
        let synced = sound.then_some(progress.synced);
        let volume = gateway.opened.borrow().or(kept.volume);
        let take_over = kept.take_over || other != Other::None;
        if loses_log {
            devices.log.lose();
        }
        let (heartbeat, ahead) = gateway.volume.heartbeat();
        let doubtful = (ahead || gateway.volume.state() == State::Untracked).then_some(heartbeat);
        let left = if settles && clean { gateway.leave(&devices.store).await } else { None };
        (Kept { left, volume, take_over, synced, uncovered: false }, doubtful)
    }

    /// Whether the marks may be wrong, and neither the log, which has failed, nor the remote can tell: the one case in
    /// which a crash may cost what is not known.
    async fn is_uncovered(&self, doubtful: Option<u64>) -> bool {
        let Some(heartbeat) = doubtful else { return false };
        let log = &self.devices.log;
        let uncovered = log.was_faulty()
            && !self.devices.log_tells(heartbeat)
            && self.oracle.heartbeat(&self.devices).await < heartbeat;
        if uncovered {
            note!(self.ground, "world: marks, log and remote failed at once");
        }
        uncovered
    }

    /// What goes wrong in this life.
    async fn trouble(&self, gateway: &Gateway, other: &mut Other) {
        let Devices { store, log, marks, bucket, faulty, .. } = &*self.devices;
        if self.shape == Shape::Cooling && !self.troubles.is_empty() && once_in(3) {
            while gateway.opened.borrow().is_none() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            bucket.be_dead(2000 + below(10_000));
        }
        for _ in 0..below(4) {
            tokio::time::sleep(millis(if self.shape == Shape::Cooling { 6000 } else { 2500 })).await;
            let Some(&trouble) = self.troubles.get(below(self.troubles.len() as u64) as usize) else { return };
            note!(self.ground, "world: {trouble:?}");
            match trouble {
                Trouble::FailingChanges => store.fail_changes(1 + below(4)),
                Trouble::FailingFlush => store.fail_flush(),
                Trouble::Unreadable => {
                    let start = below(store.geometry().size) / 4096 * 4096;
                    store.be_unreadable(Span::at(start, 4096 << below(3)));
                }
                Trouble::LostConnection => store.lose_connection(away()),
                Trouble::CrashedStore => {
                    self.clients.forget();
                    store.crash(self.keep_one_in, away());
                }
                Trouble::FailingLog if once_in(2) => log.fail_writes(),
                Trouble::FailingLog => log.fail_syncs(),
                Trouble::HangingLog => log.hang(500 + below(15_000)),
                Trouble::FailingMarks if once_in(3) => marks.fail_syncs(200 + below(8000)),
                Trouble::FailingMarks => marks.fail_writes(200 + below(16_000)),
                Trouble::HangingMarks => marks.hang(500 + below(16_000)),
                Trouble::DeadRemote => bucket.be_dead(1000 + below(20_000)),
                Trouble::FlakyRemote => faulty.seeded(below(1 << 40), 2 + below(8)),
                Trouble::TakeOver => {
                    let Some((known, _)) = *gateway.opened.borrow() else { continue };
                    *other = Other::Maybe;
                    let opening = self.devices.opening(2, Some(known), true);
                    let opened =
                        ChainWriter::open(&self.devices.remote, &Devices::name(), opening, self.devices.clock()).await;
                    if opened.is_ok() {
                        *other = Other::Certain;
                    }
                    note!(self.ground, "world: another gateway {}", if opened.is_ok() { "opened" } else { "tried" });
                }
            }
        }
    }

    /// Nothing fails any more: everything is published, or this gateway is fenced.
    async fn settle(&mut self, gateway: &Gateway, other: Other) {
        let Devices { store, log, marks, bucket, faulty, .. } = &*self.devices;
        store.heal();
        log.heal();
        marks.heal();
        bucket.heal();
        faulty.heal();
        note!(self.ground, "world: settles");
        let volume = &gateway.volume;
        // A store that came back is noticed within a second.
        tokio::time::sleep(Duration::from_millis(2000)).await;
        let settled = async {
            loop {
                let state = volume.state();
                let quiet = volume.is_quiet() && volume.cut() == volume.published() && volume.lag().age.is_zero();
                match other {
                    _ if state == State::Fenced => return,
                    Other::Certain => {
                        self.clients.step(volume, self.habit).await;
                        tokio::time::sleep(Duration::from_secs(2)).await;
                    }
                    _ if state == State::Shadowing && quiet => return,
                    _ => {}
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        let within = if other == Other::Certain { FENCED_WITHIN } else { SETTLED_WITHIN };
        if tokio::time::timeout(within, settled).await.is_err() {
            let (state, lag) = (volume.state(), volume.lag());
            let error = gateway.report.last_error();
            // Why it does not says more than that.
            self.oracle.check(&self.devices).await;
            broken!(self.ground, "T8", "not settled: {state:?}, {lag:?}, {:?}, {error:?}", volume.cut());
            return;
        }
        if volume.state() == State::Fenced {
            if other == Other::None {
                broken!(self.ground, "T6", "fenced, and nobody else is there: {:?}", gateway.report.last_error());
            }
            return;
        }
        self.oracle.check(&self.devices).await;
        self.oracle.check_settled(&self.devices).await;
    }
}

/// Milliseconds for which a store is away: now and then so short that only its incarnation tells.
fn away() -> u64 {
    if once_in(2) { 1 + below(60) } else { 100 + below(3000) }
}

/// Another gateway on the same remote volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Other {
    None,
    /// It tried to open it, and may have.
    Maybe,
    Certain,
}

/// The lag is never zero while an answered change is unpublished (T8).
async fn watch(devices: Arc<Devices>, clients: Clients, volume: Volume) {
    let (mut lagging, mut was_silent) = (false, false);
    loop {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let (state, lag, published) = (volume.state(), volume.lag(), volume.published().sequence);
        let behind = Sequence(clients.answered()) > published;
        let silent = lag.writes == 0 && lag.age.is_zero();
        let lags = match state {
            State::Shadowing => behind,
            // The age has a second to begin.
            State::Overflowed | State::Resyncing | State::Replaying | State::Untracked => lagging,
            State::Fenced => false,
        };
        // The lag of what began just now may still be nothing.
        if lags && silent && (was_silent || state == State::Shadowing) {
            broken!(devices.ground, "T8", "{state:?}, published through {published}, and {lag:?}");
        }
        was_silent = lags && silent;
        lagging = !matches!(state, State::Shadowing | State::Fenced);
    }
}

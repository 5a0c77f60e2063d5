//! The volume: stands in front of a local store as a [`Disk`] and copies every change into the write log.
//!
//! Owns: the order of changes, what is known of their outcomes, and which regions are not known to be equal to the
//! remote copy. Does not own: when a recovery point is made, and what becomes of it ([`crate::snapshot`]).
//!
//! The path of a change of [a, b):
//! 1. Its range is locked, rounded out to whole sectors ([`ranges`]).
//! 2. The regions that it touches are durably hot, or it waits until they are ([`heat`], [`marking`]).
//! 3. In one critical section it gets its log index and sequence, and its record is queued ([`admission`]).
//! 4. The store gets the request as it came. The reply is the store's, whatever happens to the log.
//! 5. The lock ends when the store has answered. An outcome that is not known (an error, ragged edges) is read back
//!    from the store under the same lock, after the reply; until then no cut is named ([`progress`]).
//!
//! Reads go to the store and nowhere else. Clients never wait for the log (but for `sync = "flush"`), nor for the
//! remote, and for a cold mark no longer than [`MARK_MAX`].
//!
//! Crash: what the log holds is replayed, and what was hot is read again and compared ([`boot`]). After a loss of the
//! store, or a flush that it failed, what is hot is read again likewise.

pub mod admission;
pub mod backlog;
pub mod boot;
mod change;
pub mod descriptor;
pub mod flushes;
mod flushing;
pub mod heat;
pub mod histogram;
pub mod latency;
pub mod marking;
pub mod progress;
pub mod ranges;
pub mod scan;
pub mod sequences;
pub mod watch;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, RwLock};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::disk::{Disk, DiskError, Extent, Geometry, Identity, Pending, Rewrite, ZeroMode};
use crate::failpoint::{self, Safeguard};
use crate::units::{LogIndex, REGION, Sequence, Span};
use crate::writelog::VolumeLog;

pub use admission::{Lag, State};
pub use boot::Start;
pub use descriptor::{Descriptor, Effect};
pub use marking::{MARK_MAX, MarksFail, Pace};
pub use progress::Cut;
pub use sequences::Sequences;

use admission::Admission;
use change::Request;
use heat::Heat;
use latency::{Kind, Latencies, Stopwatch};
use ranges::RangeLock;

/// How long a client's flush waits for the log, with `sync = "flush"`, before it is answered without.
pub const LOG_SYNC_MAX: Duration = Duration::from_secs(2);

/// Why logging ended, as operators are told.
const LOG_FULL: &str = "the log is full or failed";

/// What is chosen about a volume.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Flushes wait for the log too.
    pub sync_log: bool,
    /// How long a store that was lost, or left by a crash, may still carry out old changes; none where none are in
    /// flight then (a file).
    pub quarantine: Option<Duration>,
    /// The longest that a change is delayed while the log is getting full; none is no delay.
    pub throttle: Option<Duration>,
    pub marks_fail: MarksFail,
    pub pace: Pace,
    /// Regions that stay hot after their changes are proven, at most.
    pub hot_max: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            sync_log: false,
            quarantine: None,
            throttle: None,
            marks_fail: MarksFail::default(),
            pace: Pace::default(),
            hot_max: heat::HOT_MAX,
        }
    }
}

/// A local store with its log in front. Cheap to clone.
#[derive(Clone)]
pub struct Volume(Arc<Core>);

struct Core {
    name: String,
    store: Arc<dyn Disk>,
    geometry: Geometry,
    log: VolumeLog,
    sequences: Arc<Sequences>,
    settings: Settings,
    ranges: Arc<RangeLock>,
    admission: Mutex<Admission>,
    /// The store's caches are being given up, so many times at once: nothing is read for a comparison yet.
    forgetting: AtomicU32,
    /// Wakes the publisher when there is something that should not wait for its next tick.
    urgent: Notify,
    /// Wakes whoever keeps the marks.
    marks_wanted: Arc<Notify>,
    /// Wakes those who wait for the marks, in the order in which they came.
    marks_moved: Notify,
    marker: Mutex<Option<AbortHandle>>,
    /// Held while the log's pool is told whether the marks may be wrong.
    doubting: Mutex<()>,
    /// Held for writing by a flush of our own: a store tells of a failure once, and a client must not miss it.
    flushes: RwLock<()>,
    /// What a flush of our own was told, or of a client that could not be; the next flush of a client is.
    owed: Mutex<Option<DiskError>>,
    /// Bytes of the store that scans have read.
    reread: AtomicU64,
    /// When what is suspect is to be read once more.
    suspect_until: Mutex<Option<Instant>>,
    latencies: Arc<Latencies>,
}

impl Drop for Core {
    fn drop(&mut self) {
        if let Some(marker) = self.marker.get_mut() {
            marker.abort();
        }
    }
}

impl Volume {
    /// In a tokio runtime. The marks are kept as long as there are clones.
    pub fn new(name: &str, store: Arc<dyn Disk>, sequences: Arc<Sequences>, settings: Settings, start: Start) -> Self {
        let geometry = store.geometry();
        let Start { marks, hot, stuck, diverged, facts, replay, log, unclean } = start;
        let through = LogIndex(replay.before.0 + replay.descriptors.len() as u64);
        let mut heat = Heat::new(hot, diverged, through, facts, settings.hot_max);
        heat.set_stuck(stuck);
        let admission = Admission::new(geometry.size, store.incarnation(), sequences.newest(), heat, replay);
        let core = Arc::new(Core {
            name: name.to_owned(),
            geometry,
            store,
            log,
            sequences,
            settings,
            ranges: Arc::default(),
            admission: Mutex::new(admission),
            forgetting: AtomicU32::new(0),
            urgent: Notify::new(),
            marks_wanted: Arc::default(),
            marks_moved: Notify::new(),
            marker: Mutex::default(),
            doubting: Mutex::default(),
            flushes: RwLock::default(),
            owed: Mutex::default(),
            reread: AtomicU64::new(0),
            suspect_until: Mutex::default(),
            latencies: Arc::default(),
        });
        if unclean {
            core.suspect();
        }
        let marker = tokio::spawn(marking::run(Arc::downgrade(&core), settings.pace, core.marks_wanted.clone(), marks));
        *core.marker.lock() = Some(marker.abort_handle());
        Self(core)
    }

    pub fn name(&self) -> &str {
        &self.0.name
    }

    pub fn size(&self) -> u64 {
        self.0.geometry.size
    }

    pub fn log(&self) -> &VolumeLog {
        &self.0.log
    }

    pub fn state(&self) -> State {
        self.0.admission.lock().state()
    }

    pub fn lag(&self) -> Lag {
        self.0.admission.lock().lag(Instant::now())
    }

    /// Bytes that a scan has still to read.
    pub fn scan_left(&self) -> u64 {
        self.0.admission.lock().scan_left()
    }

    /// Whether the store should hold in `span` what the chain showed when it was opened.
    pub fn should_be_as_shown(&self, span: Span) -> bool {
        self.0.admission.lock().should_be_as_shown(span)
    }

    /// The store is the one that was shadowed, as far as that can be known.
    pub fn believe(&self) {
        self.0.admission.lock().believe();
        self.0.marks_wanted.notify_one();
    }

    /// Nobody asks that any more.
    pub fn forget_since_start(&self) {
        self.0.admission.lock().forget_since_start();
    }

    /// To be called once a second: keeps the age of the lag, and notices a store that came back.
    pub fn tick(&self) {
        self.0.admission.lock().tick(Instant::now());
        self.0.check_incarnation();
        self.0.check_log();
    }

    /// Names the newest cut that can be named; stops nobody.
    pub fn cut(&self) -> Cut {
        let appended = self.0.log.appended();
        self.0.admission.lock().cut(appended)
    }

    /// Index of the newest operation; none while changes are not logged.
    pub fn newest_logged(&self) -> Option<LogIndex> {
        let admission = self.0.admission.lock();
        admission.state().logs().then(|| admission.newest())
    }

    pub fn is_exact(&self, cut: Cut) -> bool {
        self.0.admission.lock().is_exact(cut.index)
    }

    /// The operations after the last published cut through `through`, oldest first: the first has the index after
    /// that cut's.
    pub fn batch(&self, through: LogIndex) -> Vec<Descriptor> {
        self.0.admission.lock().batch(through)
    }

    /// Whether any operation after the last published cut through `through` changed anything.
    pub fn says_something(&self, through: LogIndex) -> bool {
        self.0.admission.lock().says_something(through)
    }

    /// What [`Self::set_published`] was told last.
    pub fn published(&self) -> Cut {
        self.0.admission.lock().published()
    }

    /// An entry whose content is the volume at `cut` (a `point`), or a draft of it, stands in the chain: the log is
    /// freed up to there.
    pub fn set_published(&self, cut: Cut, point: bool) {
        self.0.admission.lock().set_published(&self.0.log, cut, point);
    }

    /// Everything through `cut` changed nothing, and no entry says so; the log keeps it.
    pub fn pass(&self, cut: Cut, exact: bool) {
        self.0.admission.lock().pass(cut, exact);
    }

    /// The remote copy is not what it was thought to be: everything is to be compared, and no point is made before.
    /// Returns when that is durably known.
    pub async fn distrust_base(&self) {
        let known = self.0.admission.lock().distrust_base();
        self.0.urgent.notify_one();
        self.0.marks_wanted.notify_one();
        self.0.until_marks_reach(known).await;
    }

    /// What the chain shows when it was opened: its cut, and the highest heartbeat in it. What is to be replayed begins
    /// behind that cut; if something is missing, or the marks are older than they look, everything is compared.
    pub async fn chain_shows(&self, shown: Sequence, heartbeat: u64) {
        let (beats, connected) = {
            let mut admission = self.0.admission.lock();
            (admission.chain_beats(heartbeat), admission.chain_shows(&self.0.log, shown))
        };
        if !beats {
            warn!(volume = self.name(), "the marks are older than the remote copy; comparing everything");
        } else if !connected {
            warn!(volume = self.name(), %shown, "the log does not fit the remote copy; comparing everything");
        } else {
            return;
        }
        self.distrust_base().await;
    }

    /// What entries of the chain say of the marks' life: the durable heartbeat, or, when the marks cannot be trusted to
    /// follow, a higher one; and whether it is that.
    pub fn heartbeat(&self) -> (u64, bool) {
        self.0.admission.lock().heartbeat()
    }

    /// Bytes of the store that scans have read since the start.
    pub fn reread(&self) -> u64 {
        self.0.reread.load(Ordering::Relaxed)
    }

    /// How long clients' operations took since the start.
    pub fn latencies(&self) -> &Latencies {
        &self.0.latencies
    }

    /// Bytes of the regions that a crash would have read again.
    pub fn hot_bytes(&self) -> u64 {
        (self.0.admission.lock().heat().hot().len() * REGION).min(self.size())
    }

    /// Regions that are read again at every start, since the store's caches hide what it holds there; as of now.
    pub fn stuck(&self) -> Vec<Range<u64>> {
        self.0.admission.lock().heat().stuck().runs().collect()
    }

    /// How many there are; they only become more.
    pub fn stuck_regions(&self) -> u64 {
        self.0.admission.lock().heat().stuck().len()
    }

    /// After the last change was published and the store flushed: makes the marks say so. False if they cannot.
    pub async fn settle_marks(&self) -> bool {
        self.0.settle_marks().await
    }

    /// Looks whether the store came back from a loss since this was asked last; true if so, and it is distrusted.
    pub fn has_come_back(&self) -> bool {
        self.0.check_incarnation()
    }

    /// Whether the store holds what the last published cut says, and flushed it: what a clean stop requires.
    pub fn is_settled(&self) -> bool {
        let doubted = self.0.forgetting.load(Ordering::Relaxed) > 0;
        // A loss that somebody else has noticed shows in the state.
        !self.has_come_back() && !doubted && self.state().logs() && self.is_quiet() && self.is_published()
    }

    /// Whether an old connection may still carry out what was lost with it. A stop before that is over is not a clean one,
    /// whatever is published: the next start is to read again what is hot, and once more when it is over.
    pub fn is_suspect(&self) -> bool {
        self.0.suspect_until.lock().is_some()
    }

    fn is_published(&self) -> bool {
        self.0.admission.lock().is_published(&self.0.log)
    }

    /// Whether no operation was admitted since the start.
    pub fn is_untouched(&self) -> bool {
        self.0.admission.lock().is_untouched()
    }

    /// Whether every operation has been answered, and its record written.
    pub fn is_quiet(&self) -> bool {
        self.0.admission.lock().is_quiet(self.0.log.appended())
    }

    /// In Resyncing: everything before this byte has been scanned.
    pub fn scan_front(&self) -> u64 {
        self.0.admission.lock().scan_ahead().map_or(self.size(), |run| run.start)
    }

    /// Another gateway publishes: nothing is logged from now on.
    pub fn fence(&self) {
        self.0.admission.lock().fence(&self.0.log);
    }

    /// The log cannot be read: what it held is to be read from the store instead.
    pub fn give_up_log(&self) {
        self.0.admission.lock().give_up();
        self.0.marks_wanted.notify_one();
        self.0.urgent.notify_one();
    }

    /// After an overflow, when all that was logged is published: begins to scan what was not. True if it did. A log that
    /// has failed is tried again first.
    pub fn resync_if_drained(&self) -> bool {
        let mut admission = self.0.admission.lock();
        if self.0.forgetting.load(Ordering::Relaxed) > 0 || !admission.is_drained(&self.0.log) {
            return false;
        }
        let sound = self.0.log.failure().is_none();
        if sound {
            admission.begin_resync(&self.0.log);
        } else {
            admission.revive_log(&self.0.log);
        }
        sound
    }

    /// Returns when something should be published before the next tick.
    pub async fn urgent(&self) {
        self.0.urgent.notified().await;
    }
}

impl Core {
    /// The store's connection was lost: what completed but was not flushed may be gone, what was in flight may or
    /// may not have happened.
    fn lost(&self, during: &str) {
        if !failpoint::stands(Safeguard::DistrustAfterLoss) {
            return;
        }
        let mut admission = self.admission.lock();
        let was = admission.state();
        admission.distrust();
        self.announce(was, &admission, "the store was lost");
        drop(admission);
        self.suspect();
        // Everything in flight is lost at once, and said once.
        if was.logs() {
            warn!(volume = self.name, during, "the store was lost; what it may have forgotten will be compared");
            self.urgent.notify_one();
        }
    }

    fn check_incarnation(&self) -> bool {
        let mut admission = self.admission.lock();
        let was = admission.state();
        let came_back = admission.came_back(self.store.incarnation());
        if came_back {
            self.announce(was, &admission, "the store was lost");
            warn!(volume = self.name, "the store came back after a loss; what it may have forgotten is compared");
            self.urgent.notify_one();
        }
        came_back
    }

    /// What is hot may still be changed by an old connection: it is read again when nothing of that can be left.
    fn suspect(&self) {
        let Some(quarantine) = self.settings.quarantine else { return };
        self.admission.lock().suspect();
        *self.suspect_until.lock() = Some(Instant::now() + quarantine);
    }

    fn check_suspects(&self) {
        let over = self.suspect_until.lock().take_if(|until| *until <= Instant::now()).is_some();
        if over && self.admission.lock().read_suspects() {
            info!(volume = self.name, "reading once more what an old connection to the store could have changed");
            self.urgent.notify_one();
        }
    }

    /// Without a log nothing more can be promised; the last changes may never have been written to it.
    fn check_log(&self) {
        if let Some(failure) = self.log.failure() {
            let mut admission = self.admission.lock();
            let was = admission.state();
            admission.stop_logging(Span::new(0, 0));
            if admission.state() != was {
                error!(volume = self.name, %failure, "the log has failed; shadowing goes on when its disk is found sound");
                self.urgent.notify_one();
            }
        }
    }

    /// Tells of the end of logging, once.
    fn announce(&self, was: State, admission: &Admission, why: &str) {
        if admission.state() == State::Overflowed && was == State::Resyncing && why == LOG_FULL {
            warn!(
                volume = self.name,
                "clients change what has been copied faster than it is uploaded; if that goes on, the copy will not end"
            );
        }
        if admission.state() == State::Overflowed && was != State::Overflowed {
            error!(volume = self.name, why, "shadowing is interrupted; clients are served, a resync follows");
            self.urgent.notify_one();
        }
    }
}

impl Disk for Volume {
    fn geometry(&self) -> Geometry {
        self.0.geometry
    }

    fn read(&self, offset: u64, length: u32) -> Pending<Bytes> {
        let mut watch = Stopwatch::start(Kind::Read);
        let latencies = &self.0.latencies;
        match self.0.store.read(offset, length) {
            Pending::Later(answer) => {
                let latencies = latencies.clone();
                Pending::later(async move {
                    let answer = answer.await;
                    watch.lap_store();
                    watch.count(&latencies);
                    answer
                })
            }
            ready @ Pending::Ready(_) => {
                watch.lap_store();
                watch.count(latencies);
                ready
            }
        }
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> Pending<()> {
        self.0.change(offset, data.len() as u64, Request::Write(data), fua)
    }

    fn rewrite(&self, offset: u64, length: u32, change: Rewrite, fua: bool) -> Pending<bool> {
        self.0.rewrite(offset, length, change, fua)
    }

    fn flush(&self) -> Pending<()> {
        if !failpoint::stands(Safeguard::FlushForwarded) {
            return Pending::ready(Ok(()));
        }
        let core = self.0.clone();
        let mut watch = Stopwatch::start(Kind::Flush);
        Pending::later(async move {
            let _together = core.flushes.read().await;
            let answer = core.flush_store(&mut watch).await;
            // Who loses the store is told nothing; the next one is.
            let tells = matches!(answer, Ok(()) | Err(DiskError::Io(_)));
            let owed = if tells { core.owed.lock().take() } else { None };
            if answer.is_ok() && core.settings.sync_log {
                core.sync_log().await;
            }
            watch.lap_added();
            watch.count(&core.latencies);
            answer.and(owed.map_or(Ok(()), Err))
        })
    }

    fn trim(&self, offset: u64, length: u64, fua: bool) -> Pending<()> {
        self.0.change(offset, length, Request::Trim, fua)
    }

    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode, fua: bool) -> Pending<()> {
        self.0.change(offset, length, Request::Zeroes(mode), fua)
    }

    fn cache(&self, offset: u64, length: u64) -> Pending<()> {
        self.0.store.cache(offset, length)
    }

    fn extents(&self, offset: u64, length: u64, limit: usize) -> Pending<Vec<Extent>> {
        self.0.store.extents(offset, length, limit)
    }

    fn identity(&self) -> Identity {
        self.0.store.identity()
    }

    fn incarnation(&self) -> u64 {
        self.0.store.incarnation()
    }

    fn owe(&self, error: DiskError) {
        self.0.owed.lock().get_or_insert(error);
    }
}

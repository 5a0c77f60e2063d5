//! Makes recovery points: one task per volume, which owns the volume's chain.
//!
//! Every epoch it takes the operations up to a cut, puts what shows of them in packs, and names these in one entry.
//! While a scan is under way the entries are drafts: they free the log and are never offered; the first point after
//! the scan closes them.
//!
//! Owns: the chain's writer, the lists of its newest entry, the scanner. Does not own: what is dirty
//! ([`crate::volume`]), conflicts of publishing ([`crate::chain`]).
//!
//! Order that the content of an entry depends on, newest first: packs of the log's records (no block lies in two of
//! them), packs of the scan, the lists of the entry before.
//! Crash: before the entry stands nothing has happened but objects that nobody names; after it the log's records
//! that it covers are not needed, whether they were freed or not.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::assemble::{AssembleError, Assembler};
use super::merger::Merger;
use super::numbers::ObjectNumbers;
use super::sample;
use super::scanner::{Scanner, Sealed};
use super::slices::{SliceCut, Slices};
use super::status::{Base, NewestPoint, Report};
use super::upload::{Memory, Purpose, Taken, Uploader, with_causes};
use crate::chain::resolve::Resolver;
use crate::chain::{At, ChainWriter, Opening, Proposal, PublishError};
use crate::clock::Clock;
use crate::failpoint::{self, Safeguard};
use crate::format::entry::{EntryKind, ScanCursor, Slice};
use crate::format::names::VolumeName;
use crate::format::{Keys, ObjectRef, VolumeId};
use crate::remote::Remote;
use crate::task;
use crate::units::{EntryNumber, Generation, LogIndex, Timestamp};
use crate::volume::{Cut, Sequences, State, Volume};
use crate::writelog::LogFailed;

/// A draft at most this often: each closes the scan's pack, and nobody restores from it.
const DRAFT_EVERY: Duration = Duration::from_secs(15);
/// An idle volume says this often that it is still shadowed.
const IDLE_POINT_EVERY: Duration = Duration::from_secs(15 * 60);
/// Between the beginnings of two resyncs: a store that is away ends each at once.
const RESYNC_PAUSE_MIN: Duration = Duration::from_secs(1);
const RESYNC_PAUSE_MAX: Duration = Duration::from_secs(30);
/// The publisher looks this often whether there is something to do.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long a stop waits for a remote that it has nothing to say to.
const OPENING_MAX: Duration = Duration::from_secs(3);
/// How long the first entry waits for a cut that is newer than the opening.
const EARLY_MAX: Duration = Duration::from_secs(10);
/// Between two attempts to open or publish.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(15);

/// What a publisher is made of.
pub struct Parts {
    pub volume: Volume,
    pub remote: Remote,
    pub name: VolumeName,
    pub opening: Opening,
    /// What the chain is expected to be as the last run left it.
    pub expected: Expected,
    pub epoch: Duration,
    /// Bytes per second that a scan reads; none is no limit.
    pub scan_rate: Option<NonZeroU64>,
    pub clock: Clock,
    pub sequences: Arc<Sequences>,
    /// Shared by all volumes.
    pub memory: Memory,
    pub report: Arc<Report>,
    /// Called when the chain has been opened, and all that this told of it is durable.
    pub opened: Box<dyn FnOnce(VolumeId, Generation) + Send>,
}

/// What the last run knew of the chain. If it is otherwise, somebody else has published, or this is an older state
/// than the last: then nothing that is marked or logged says what the chain does not show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// The newest entry, after a clean stop.
    pub entry: Option<EntryNumber>,
    /// Of the last gateway that published, after any stop; none for the first start.
    pub generation: Option<Generation>,
}

/// What a clean stop left: the newest entry shows everything but what is still hot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    pub entry: EntryNumber,
}

/// Why publishing ended for good.
enum End {
    Fenced(String),
}

impl From<Taken> for End {
    fn from(taken: Taken) -> Self {
        Self::Fenced(taken.to_string())
    }
}

pub struct Publisher {
    volume: Volume,
    chain: ChainWriter,
    keys: Keys,
    remote: Remote,
    numbers: Arc<ObjectNumbers>,
    uploader: Uploader,
    slices: Slices,
    merger: Merger,
    scan: Option<Scanner>,
    /// Packs of the scan that no entry names yet.
    scan_packs: Vec<ObjectRef>,
    /// Of the scan, as of its last sealing.
    front: u64,
    /// Lists of the newest entry's content, its own packs first.
    levels: [Vec<ObjectRef>; 4],
    /// The newest entry's content is a draft, or there is none: a point is owed.
    draft: bool,
    /// A scan has ended, and no point says so yet.
    scanned: bool,
    newest: EntryNumber,
    /// Time of the entry that opened the chain.
    opened: Timestamp,
    /// The newest that an entry has.
    heartbeat: u64,
    last_entry: Instant,
    /// When the last resync began.
    resynced: Option<Instant>,
    /// Until the next may begin; grows until a point is made.
    resync_pause: Duration,
    epoch: Duration,
    scan_rate: Option<NonZeroU64>,
    /// Whatever the store holds, the user says that it is the volume.
    adopt: bool,
    report: Arc<Report>,
}

/// Publishes `parts.volume` until `stop`; then what is left, and says what that was. None if the next start has to
/// compare everything. Whoever cannot wait for the remote drops the future.
pub async fn run(parts: Parts, mut stop: watch::Receiver<bool>) -> Option<Left> {
    let slices = Slices::new(parts.clock.clone());
    let mut ticker = JoinSet::new();
    ticker.spawn(slices.clone().run(parts.volume.clone()));
    let (volume, report) = (parts.volume.clone(), parts.report.clone());
    let opened = tokio::select! {
        biased;
        opened = Publisher::open(parts, slices) => opened,
        () = stopped_untouched(&volume, stop.clone()) => return None,
    };
    let mut publisher = match opened {
        Ok(publisher) => publisher,
        Err(End::Fenced(why)) => {
            end(&volume, &report, why);
            return None;
        }
    };
    match publisher.publish_until(&mut stop).await {
        Ok(left) => left,
        Err(End::Fenced(why)) => {
            end(&volume, &report, why);
            None
        }
    }
}

/// Returns at a stop if there is nothing to publish; otherwise what was logged before the remote answered is published
/// all the same, and this never returns.
pub async fn stopped_untouched(volume: &Volume, mut stop: watch::Receiver<bool>) {
    if stop.wait_for(|&stop| stop).await.is_err() || !volume.is_untouched() {
        std::future::pending::<()>().await;
    }
    // An opening that is under way should end, rather than leave an entry that nobody expects.
    tokio::time::sleep(OPENING_MAX).await;
}

/// Ends shadowing for good: clients are served, and the status says why.
pub fn end(volume: &Volume, report: &Report, why: String) {
    error!(volume = volume.name(), why, "shadowing has ended; clients are served");
    volume.fence();
    report.stopped(why);
}

impl Publisher {
    async fn open(parts: Parts, slices: Slices) -> Result<Self, End> {
        let Parts {
            volume,
            remote,
            name,
            opening,
            expected,
            epoch,
            scan_rate,
            clock,
            sequences,
            memory,
            report,
            opened,
        } = parts;
        let mut pause = RETRY_MIN;
        let chain = loop {
            match ChainWriter::open(&remote, &name, opening.clone(), clock.clone()).await {
                Ok(chain) => break chain,
                Err(error) if !error.is_final() => {
                    warn!(volume = %name, error = %with_causes(&error), retry_in = ?pause, "the chain cannot be opened yet");
                    report.failed(with_causes(&error));
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY_MAX);
                }
                Err(error) => {
                    let why = with_causes(&error);
                    return Err(End::Fenced(format!("{why}; nothing is published until the gateway is started again")));
                }
            }
        };
        report.reached();
        let newest = chain.newest().clone();
        let found = newest.parent;
        if let Ok(point) = chain.reader().find(At::Latest).await {
            report.found_point(NewestPoint { number: point.entry.number, time: point.entry.time });
        }
        let behind = newest.sequence > sequences.newest();
        sequences.raise_above(newest.sequence);
        let elsewhere = chain.volume() != opening.known.unwrap_or(chain.volume());
        let entry_differs = expected.entry.is_some_and(|entry| entry != found);
        // Of its own an instance knows the generation before it publishes in it.
        let known = |(instance, generation)| instance == opening.instance && Some(generation) <= expected.generation;
        let generation_differs = chain.before().is_some_and(|before| !known(before));
        if entry_differs || generation_differs || behind || elsewhere {
            if expected.generation.is_some() {
                warn!(volume = %name, newest = %found, "the chain is not as the last run left it; comparing everything");
            } else {
                info!(volume = %name, newest = %found, "the chain was begun elsewhere; comparing everything");
            }
            volume.distrust_base().await;
        } else {
            volume.chain_shows(newest.sequence, newest.heartbeat).await;
        }
        opened(chain.volume(), chain.generation());
        let keys = chain.keys().clone();
        let numbers = Arc::new(ObjectNumbers::new(newest.generation));
        let uploader = Uploader::new(remote.clone(), memory, report.clone());
        Ok(Self {
            merger: Merger::new(remote.clone(), keys.clone(), numbers.clone(), uploader.clone(), report.clone()),
            volume,
            keys,
            remote,
            numbers,
            uploader,
            slices,
            scan: None,
            scan_packs: Vec::new(),
            front: 0,
            levels: below(&newest.own, &newest.levels),
            draft: newest.draft || found.0 == 0,
            scanned: false,
            newest: newest.number,
            opened: newest.time,
            heartbeat: newest.heartbeat,
            last_entry: Instant::now(),
            resynced: None,
            resync_pause: RESYNC_PAUSE_MIN,
            epoch,
            scan_rate,
            adopt: opening.adopt,
            report,
            chain,
        })
    }

    async fn publish_until(&mut self, stop: &mut watch::Receiver<bool>) -> Result<Option<Left>, End> {
        self.set_base(self.volume.published().index);
        tokio::select! {
            biased;
            looked = self.look_at_store() => {
                looked?;
                self.volume.believe();
            }
            _ = stop.wait_for(|&stop| stop) => {}
        }
        self.volume.forget_since_start();
        let mut urgent = false;
        loop {
            if *stop.borrow() {
                return self.leave().await;
            }
            if self.scan.is_none() && self.volume.state() == State::Resyncing {
                self.start_scan()?;
            }
            if urgent || self.is_due() {
                self.step(false).await?;
            }
            tokio::select! {
                biased;
                _ = stop.changed() => {}
                () = self.volume.urgent() => urgent = true,
                () = tokio::time::sleep(LOOK_EVERY) => urgent = false,
            }
        }
    }

    /// Whether the store can be what was shadowed last.
    async fn look_at_store(&self) -> Result<(), End> {
        if !failpoint::stands(Safeguard::SampleAtOpen) {
            return Ok(());
        }
        if let Some(base) = self.report.base() {
            sample::compare(&self.volume, &self.report, base, self.scan_rate).await;
        }
        // After a clean stop, with what was written last as it was, it is.
        if self.adopt || self.volume.scan_left() == 0 {
            return Ok(());
        }
        match sample::is_another(&self.volume, &self.report, &self.shown()?).await {
            None => Ok(()),
            Some(percent) => Err(End::Fenced(format!(
                "{percent} % of a sample of the store differ from what was published of it last, as if this were another \
                 disk or a blank one; nothing is published: put the right one in place, or restart with --adopt if this \
                 is it"
            ))),
        }
    }

    /// What the newest entry shows.
    fn shown(&self) -> Result<Resolver, End> {
        Resolver::new(self.remote.clone(), self.keys.volume(), self.chain.newest(), None)
            .map_err(|error| End::Fenced(with_causes(&error)))
    }

    /// The newest entry shows the volume at `cut`.
    fn set_base(&self, cut: LogIndex) {
        let entry = self.chain.newest().clone();
        let complete = !self.draft && entry.number == self.newest;
        let (remote, volume) = (self.remote.clone(), self.keys.volume());
        self.report.set_base(complete.then_some(Base { remote, volume, entry, cut }));
    }

    fn start_scan(&mut self) -> Result<(), End> {
        let base = self.shown()?;
        info!(volume = self.volume.name(), bytes = self.volume.scan_left(), "comparing the store with the remote copy");
        self.scan = Some(Scanner::start(
            self.volume.clone(),
            self.scan_rate,
            base,
            self.keys.clone(),
            self.numbers.clone(),
            self.uploader.clone(),
            self.report.clone(),
        ));
        Ok(())
    }

    fn is_due(&self) -> bool {
        let since = self.last_entry.elapsed();
        match self.volume.state() {
            State::Shadowing if self.draft || self.scanned || self.scan.is_some() => true,
            State::Shadowing => since >= self.epoch,
            State::Resyncing => {
                let log = self.volume.log();
                since >= self.epoch.max(DRAFT_EVERY)
                    || (since >= self.epoch && log.used_bytes() * 2 > log.capacity_bytes())
            }
            State::Overflowed | State::Replaying => true,
            State::Untracked => self.volume.heartbeat() > (self.heartbeat, true),
            State::Fenced => false,
        }
    }

    /// Publishes what there is to say, if anything; ends an overflow when that is done.
    async fn step(&mut self, leaving: bool) -> Result<(), End> {
        self.warn_of_marks().await?;
        if self.volume.state() == State::Untracked {
            return Ok(());
        }
        let named = self.slices.name(&self.volume);
        let cut = named.cut;
        // No point bears a time before the entry that opened the chain; and none should seem to have what it lacks.
        let early = named.time <= self.opened && self.volume.newest_logged() > Some(cut.index);
        if early && !leaving && self.last_entry.elapsed() < EARLY_MAX {
            return Ok(());
        }
        self.seal_scan(leaving).await?;
        let news = cut.index > self.volume.published().index || !self.scan_packs.is_empty();
        self.volume.has_come_back();
        let shadowing = self.volume.state() == State::Shadowing;
        // After a loss what a scan saw a moment ago may be forgotten, so that it makes no point; what was logged before
        // an overflow does. Without news an overflowed volume is no longer what its last cut says.
        let whole = shadowing || (news && !self.draft && self.scan_packs.is_empty());
        let exact = self.volume.is_exact(cut) && self.scan.is_none() && whole;
        let idle = self.last_entry.elapsed() >= IDLE_POINT_EVERY;
        let owed = exact && shadowing && (self.draft || self.scanned || idle);
        let says_something = !self.scan_packs.is_empty() || self.volume.says_something(cut.index);
        if says_something || owed || leaving || (exact && cut.sequence > self.volume.published().sequence) {
            self.publish(named, exact, leaving).await?;
        } else if news {
            // What changes nothing is not worth an entry.
            if exact {
                self.set_base(cut.index);
            }
            self.volume.pass(cut, exact);
        }
        let pausing = self.resynced.is_some_and(|resynced| resynced.elapsed() < self.resync_pause);
        if self.scan.is_none() && self.scan_packs.is_empty() && !pausing && self.volume.resync_if_drained() {
            self.resynced = Some(Instant::now());
            self.resync_pause = (self.resync_pause * 2).min(RESYNC_PAUSE_MAX);
            info!(volume = self.volume.name(), "what was logged is published; resyncing what was not");
        }
        Ok(())
    }

    /// If the marks may be wrong, the chain is told so before anything else.
    async fn warn_of_marks(&mut self) -> Result<(), End> {
        let (heartbeat, ahead) = self.volume.heartbeat();
        if ahead && heartbeat > self.heartbeat {
            let newest = self.chain.newest().clone();
            self.put_entry(Proposal::repeating(&newest, EntryKind::Untracked, newest.time)).await?;
        }
        Ok(())
    }

    /// What the scan read up to any cut that was named before is in `scan_packs` afterwards.
    async fn seal_scan(&mut self, leaving: bool) -> Result<(), End> {
        let Some(scan) = &self.scan else { return Ok(()) };
        let Sealed { packs, front, over } = match scan.seal(leaving).await {
            Some(sealed) => sealed?,
            // Cannot happen while the scanner's task lives; what it read is lost, so everything is compared again.
            None => {
                self.volume.distrust_base().await;
                Sealed { over: true, ..Sealed::default() }
            }
        };
        self.scan_packs.extend(packs);
        self.front = front;
        if over {
            self.scan = None;
            self.scanned = true;
        }
        Ok(())
    }

    async fn publish(&mut self, named: SliceCut, exact: bool, leaving: bool) -> Result<(), End> {
        let cut = named.cut;
        let published = self.volume.published();
        let mut slices = self.slices.take(published.index, named);
        // What a scan read shows in every slice: only the last is one cut.
        if (self.draft || !exact || !self.scan_packs.is_empty()) && slices.len() > 1 {
            slices.drain(..slices.len() - 1);
        }
        slices.retain(|slice| slice.cut == cut || (self.volume.is_exact(slice.cut) && slice.time > self.opened));
        let Some(mut own) = self.upload(published.index.next(), cut, &slices).await? else {
            // The log could not be read: what it held is scanned again.
            return Ok(());
        };
        let at = if failpoint::stands(Safeguard::ScanBelowLog) { own.len() } else { 0 };
        own.splice(at..at, self.scan_packs.iter().copied());
        self.merger.apply(&mut self.levels).await?;
        let proposal = Proposal {
            kind: if exact { EntryKind::Point } else { EntryKind::Draft },
            sequence: cut.sequence.max(self.chain.newest().sequence),
            time: slices[slices.len() - 1].time,
            size: self.volume.size(),
            draft: !exact,
            leaving,
            scan: (!exact).then_some(ScanCursor { front: self.front }),
            slices: slices
                .iter()
                .map(|slice| Slice { sequence: slice.cut.sequence.max(self.chain.newest().sequence), time: slice.time })
                .collect(),
            new_bytes: own.iter().map(|pack| pack.length).sum(),
            own,
            levels: self.levels.clone(),
            detail: Vec::new(),
        };
        // What the chain shows the log has durably: else a log that lost its end could say what was taken back.
        if let Err(LogFailed::NotLogged(_)) = self.volume.log().sync(cut.index).await
            && cut.index > published.index
        {
            return Ok(());
        }
        let entry = self.put_entry(proposal).await?;
        self.levels = below(&entry.own, &entry.levels);
        self.draft = entry.draft;
        self.newest = entry.number;
        self.set_base(cut.index);
        if exact {
            self.scanned = false;
            self.resync_pause = RESYNC_PAUSE_MIN;
            // Before the lag is gone: whoever waits for that finds the point that has it all.
            self.report.published_point(NewestPoint { number: entry.number, time: entry.time });
        }
        self.volume.set_published(cut, exact);
        self.last_entry = Instant::now();
        self.scan_packs.clear();
        Ok(())
    }

    /// Puts what shows of the operations from `first` through `cut` in packs, newest first. None if the log could
    /// not be read.
    async fn upload(&self, first: LogIndex, cut: Cut, slices: &[SliceCut]) -> Result<Option<Vec<ObjectRef>>, End> {
        let descriptors = self.volume.batch(cut.index);
        if descriptors.is_empty() {
            return Ok(Some(Vec::new()));
        }
        let ends: Vec<LogIndex> = slices.iter().map(|slice| slice.cut.index).collect();
        let (keys, log, generation) = (self.keys.clone(), self.volume.log().clone(), self.numbers.generation());
        let assembling = task::unhurried(move || {
            let mut assembler = Assembler::new(&keys, generation, log, first, descriptors, &ends);
            let empty = assembler.is_empty();
            (assembler, empty)
        });
        let Ok((mut assembler, mut empty)) = assembling.await else { return Ok(self.log_lost("assembling failed")) };
        let mut uploads = JoinSet::new();
        while !empty {
            let room = self.uploader.room(Purpose::Log).await;
            let number = self.numbers.next();
            let building = task::unhurried(move || {
                let pack = assembler.next_pack(number);
                let empty = assembler.is_empty();
                (assembler, empty, pack)
            });
            let pack = match building.await {
                Ok((rest, left, pack)) => {
                    (assembler, empty) = (rest, left);
                    pack
                }
                Err(_) => return Ok(self.log_lost("assembling failed")),
            };
            let (body, object) = match pack {
                Ok(pack) => pack,
                Err(error @ (AssembleError::Log { .. } | AssembleError::Format(_))) => {
                    return Ok(self.log_lost(&with_causes(&error)));
                }
            };
            let (uploader, key) = (self.uploader.clone(), self.keys.volume().pack_key(&object));
            uploads.spawn(async move { uploader.put(key, body, object, Some(room)).await });
        }
        let mut packs = Vec::with_capacity(uploads.len());
        while let Some(uploaded) = uploads.join_next().await {
            match uploaded {
                Ok(pack) => packs.push(pack?),
                Err(_) => return Ok(self.log_lost("an upload ended unexpectedly")),
            }
        }
        packs.sort_unstable_by_key(|pack| std::cmp::Reverse(pack.number));
        Ok(Some(packs))
    }

    fn log_lost(&self, why: &str) -> Option<Vec<ObjectRef>> {
        error!(volume = self.volume.name(), why, "the log cannot be published; comparing what it covered");
        self.volume.give_up_log();
        None
    }

    async fn put_entry(&mut self, proposal: Proposal) -> Result<Arc<crate::format::entry::Entry>, End> {
        let mut pause = RETRY_MIN;
        loop {
            self.chain.set_heartbeat(self.volume.heartbeat().0);
            match self.chain.publish(proposal.clone()).await {
                Ok(published) => {
                    self.report.reached();
                    self.heartbeat = published.entry.heartbeat;
                    return Ok(published.entry);
                }
                Err(error @ (PublishError::Fenced(_) | PublishError::Entry { .. })) => {
                    return Err(End::Fenced(with_causes(&error)));
                }
                Err(error) => {
                    let error = with_causes(&error);
                    warn!(volume = self.volume.name(), error, retry_in = ?pause, "an entry cannot be published yet");
                    self.report.failed(error);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY_MAX);
                }
            }
        }
    }

    /// Publishes all that is left; clients are gone.
    async fn leave(&mut self) -> Result<Option<Left>, End> {
        // First, so that the last cut covers all that the scan read.
        self.seal_scan(true).await?;
        // Read-backs may still be under way.
        while self.volume.state().logs() && !self.volume.is_quiet() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.step(true).await?;
        Ok(self.volume.is_settled().then_some(Left { entry: self.newest }))
    }
}

/// An entry's lists as the next one builds on them: its own packs become the newest of the first level.
fn below(own: &[ObjectRef], levels: &[Vec<ObjectRef>; 4]) -> [Vec<ObjectRef>; 4] {
    let mut levels = levels.clone();
    levels[0].splice(..0, own.iter().copied());
    levels
}

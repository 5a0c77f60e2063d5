//! The one short critical section of the write path, and what it guards.
//!
//! Under it an operation reserves log space and takes the log index and the sequence together, so that the order of
//! the log is the order of the indices, and a scan's front moves, so that an operation is ahead of the scan or behind
//! it and never both. The caller holds the operation's range (see [`super::ranges`]), which makes that order the
//! store's order for every byte.
//!
//! Invariants:
//! - Every operation since the log was (re)started has a descriptor, in index order, until it is published.
//! - A byte that differs from the newest entry's content is covered by an unpublished descriptor, or its region is
//!   marked. An operation that left no record marks its regions before it is issued.
//! - After the first refused record none is accepted until the log is restarted: `overflowed_at` never moves.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::descriptor::{Descriptor, Effect};
use super::progress::{Cut, Progress};
use super::sequences::Sequences;
use crate::failpoint::{self, Safeguard};
use crate::format::log::LogOp;
use crate::marks::RegionSet;
use crate::units::{LogIndex, REGION, SECTOR, Sequence, Span};
use crate::writelog::{Record, VolumeLog};

/// Unpublished operations that are remembered at most (96 MiB of descriptors); one more is an overflow.
const DESCRIPTORS_MAX: usize = 4 << 20;

/// Regions that are looked at together in a scan: 4 GiB. A hole as long is passed under one lock.
const RUN_MAX: u64 = 1024;

/// Where a volume stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Marked regions are being compared with the remote copy; drafts are published until that is done.
    Resyncing,
    /// Every change goes through the log; points are published.
    Shadowing,
    /// The log was full or failed, or the store was lost: changes are not logged; what was logged is published still.
    Overflowed,
    /// Another gateway publishes this volume; clients are served, nothing is uploaded.
    Fenced,
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            Self::Resyncing => "resyncing",
            Self::Shadowing => "shadowing",
            Self::Overflowed => "overflowed",
            Self::Fenced => "fenced",
        }
    }
}

/// An admitted operation: what completion needs to know. Without an index it was not logged; its regions are marked.
#[must_use]
#[derive(Clone, Copy, Debug)]
pub struct Ticket(pub Option<LogIndex>);

pub struct Admission {
    state: State,
    size: u64,
    /// Of the store, when it was last trusted.
    incarnation: u64,
    distrusts: u64,
    /// Index of the newest operation.
    newest: LogIndex,
    newest_sequence: Sequence,
    published: Cut,
    /// Of the operations after `published`, in order.
    descriptors: VecDeque<Descriptor>,
    progress: Progress,
    /// Regions that may differ from the newest entry's content without a descriptor that says so.
    marked: RegionSet,
    /// Marked regions that hold changes from the log too: a scan uploads them whole, since comparing with the
    /// entry's content would miss what the log still changes.
    blind: RegionSet,
    /// Operations whose outcome, or edges, are still being read back: what they may have changed.
    unknown: BTreeMap<LogIndex, Span>,
    /// In Resyncing: marked regions before this byte have been scanned.
    front: u64,
    /// Cuts from this one on are the volume exactly: no scan is outstanding.
    exact_from: Option<LogIndex>,
    lag_bytes: u64,
    lag_writes: u64,
    /// (index, when): operations after that index were admitted after that moment. The first is not after the
    /// published cut.
    ages: VecDeque<(LogIndex, Instant)>,
    /// Since when no recovery point can be up to date: an overflow, or the start of a scan.
    inexact_since: Option<Instant>,
}

/// A range whose turn it is in a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanTurn {
    pub index: LogIndex,
    /// The content is to be compared with the remote copy, not logged.
    pub compare: bool,
}

impl Admission {
    /// A volume of `size` bytes whose remote copy is current, but for what [`Self::distrust`] is told.
    pub fn new(size: u64, incarnation: u64, sequence: Sequence) -> Self {
        let nothing = Cut { index: LogIndex(0), sequence };
        Self {
            state: State::Shadowing,
            size,
            incarnation,
            distrusts: 0,
            newest: nothing.index,
            newest_sequence: sequence,
            published: nothing,
            descriptors: VecDeque::new(),
            progress: Progress::new(nothing.index),
            marked: RegionSet::new(size),
            blind: RegionSet::new(size),
            unknown: BTreeMap::new(),
            front: 0,
            exact_from: Some(nothing.index),
            lag_bytes: 0,
            lag_writes: 0,
            ages: VecDeque::from([(nothing.index, Instant::now())]),
            inexact_since: None,
        }
    }

    pub fn state(&self) -> State {
        self.state
    }

    /// Index of the newest operation.
    pub fn newest(&self) -> LogIndex {
        self.newest
    }

    /// Admits a client's change of `span`, which takes a sequence. Its record says `op` of `inner`, the whole sectors
    /// of it.
    pub fn admit(
        &mut self,
        log: &VolumeLog,
        sequences: &Sequences,
        op: LogOp,
        span: Span,
        inner: Span,
        payload: Bytes,
    ) -> Ticket {
        if matches!(self.state, State::Overflowed | State::Fenced) {
            self.marked.insert(span);
            return Ticket(None);
        }
        let Some(sequence) = sequences.take() else {
            self.stop_logging(span);
            return Ticket(None);
        };
        self.newest_sequence = sequence;
        self.lag_writes += 1;
        let ahead = Span::new(self.front.clamp(span.start, span.end), span.end);
        let scanned_later = self.state == State::Resyncing && !ahead.is_empty() && self.marked.contains_all(ahead);
        let ticket = if scanned_later && ahead == span {
            self.record(log, LogOp::Ahead, inner, Bytes::new())
        } else if scanned_later {
            // The front is at the border of a block: what lies behind it is in whole sectors.
            let behind = Span::new(inner.start.min(ahead.start), ahead.start);
            let length = if payload.is_empty() { 0 } else { behind.len() as usize };
            self.record(log, op, behind, payload.slice(..length))
        } else {
            self.blind_if_ahead(span);
            self.record(log, op, inner, payload)
        };
        if ticket.0.is_none() {
            self.marked.insert(span);
        }
        ticket
    }

    /// Admits what was found out about a range: a read-back, or that it cannot be read.
    pub fn admit_found(&mut self, log: &VolumeLog, op: LogOp, span: Span, payload: Bytes) -> Ticket {
        if matches!(self.state, State::Overflowed | State::Fenced) {
            self.marked.insert(span);
            return Ticket(None);
        }
        self.blind_if_ahead(span);
        self.record(log, op, span, payload)
    }

    /// A record with content is about to stand for a range that a scan has still to read, at least in part.
    fn blind_if_ahead(&mut self, span: Span) {
        if self.state == State::Resyncing && span.end > self.front && self.marked.contains_any(span) {
            self.blind.insert(span);
        }
    }

    fn record(&mut self, log: &VolumeLog, op: LogOp, span: Span, payload: Bytes) -> Ticket {
        let index = self.newest.next();
        let sequence = self.newest_sequence;
        let sectors = span.rounded_out(SECTOR);
        let record = Record { index, sequence, op, offset: sectors.start, length: sectors.len(), payload };
        if self.descriptors.len() >= DESCRIPTORS_MAX {
            self.stop_logging(span);
            return Ticket(None);
        }
        let Ok(position) = log.append(record) else {
            self.stop_logging(span);
            return Ticket(None);
        };
        let effect = match op {
            LogOp::Write | LogOp::ReadBack if span.is_empty() => Effect::Nothing,
            LogOp::Write | LogOp::ReadBack => Effect::Data,
            LogOp::Zero => Effect::Zero,
            LogOp::Trim => Effect::Trimmed,
            LogOp::Unreadable => Effect::Unreadable,
            LogOp::Ahead | LogOp::Scan => Effect::Nothing,
        };
        let descriptor = Descriptor::new(sectors, effect, position, sequence);
        self.newest = index;
        self.lag_bytes += descriptor.lag_bytes();
        self.descriptors.push_back(descriptor);
        self.progress.admit(index);
        Ticket(Some(index))
    }

    /// The store has answered: the operation did what its record says.
    pub fn complete(&mut self, index: LogIndex) {
        self.progress.complete(index);
    }

    /// The operation had no effect: its record says nothing.
    pub fn void(&mut self, index: LogIndex) {
        // The descriptor is gone if the log was given up meanwhile; then the region is marked.
        let at = index.0.checked_sub(self.published.index.0 + 1);
        if let Some(descriptor) = at.and_then(|at| self.descriptors.get_mut(at as usize)) {
            self.lag_bytes -= descriptor.lag_bytes();
            descriptor.void();
        }
        self.progress.complete(index);
    }

    /// The outcome of the whole operation on `span` is unknown and to be read back.
    pub fn void_unknown(&mut self, index: LogIndex, span: Span) {
        self.bar(index, span, 1);
        self.void(index);
    }

    /// The operation succeeded, but what stands in `parts` ranges at its ragged edges is to be read back.
    pub fn complete_ragged(&mut self, index: LogIndex, span: Span, parts: u32) {
        self.bar(index, span, parts);
        self.progress.complete(index);
    }

    fn bar(&mut self, index: LogIndex, span: Span, parts: u32) {
        self.progress.bar(index, parts);
        if index > self.published.index {
            self.unknown.insert(index, span);
        } else {
            // The log was given up meanwhile.
            self.marked.insert(span);
        }
    }

    /// `by` says what stands in one of the ranges that `index` left unknown.
    pub fn settle(&mut self, index: LogIndex, by: LogIndex) {
        if self.progress.settle(index, by) {
            self.unknown.remove(&index);
        }
    }

    /// The newest cut that can be named now.
    pub fn cut(&mut self, appended: LogIndex) -> Cut {
        let index = self.progress.cut(appended).max(self.published.index);
        if index == self.published.index {
            return self.published;
        }
        let at = (index.0 - self.published.index.0 - 1) as usize;
        Cut { index, sequence: self.descriptors[at].sequence() }
    }

    /// Whether the volume at that cut is wholly told by entries and descriptors.
    pub fn is_exact(&self, cut: LogIndex) -> bool {
        self.exact_from.is_some_and(|from| cut >= from)
    }

    /// The operations after the published cut, through `through`.
    pub fn batch(&self, through: LogIndex) -> Vec<Descriptor> {
        let count = (through.0 - self.published.index.0) as usize;
        self.descriptors.range(..count).copied().collect()
    }

    pub fn says_something(&self, through: LogIndex) -> bool {
        let count = (through.0 - self.published.index.0) as usize;
        self.descriptors.range(..count).any(|descriptor| descriptor.effect() != Effect::Nothing)
    }

    pub fn published(&self) -> Cut {
        self.published
    }

    /// An entry that covers everything through `cut` stands in the chain; a `point`, or a draft.
    pub fn set_published(&mut self, log: &VolumeLog, cut: Cut, point: bool) {
        let count = (cut.index.0 - self.published.index.0) as usize;
        let mut sequence = self.published.sequence;
        for descriptor in self.descriptors.drain(..count) {
            self.lag_bytes -= descriptor.lag_bytes();
            // Only a client's operation takes a sequence of its own.
            self.lag_writes -= u64::from(descriptor.sequence() != sequence);
            sequence = descriptor.sequence();
        }
        self.descriptors.shrink_to(2 * self.descriptors.len());
        self.published = cut;
        self.progress.published(cut.index);
        while self.ages.get(1).is_some_and(|&(newest, _)| newest <= cut.index) {
            self.ages.pop_front();
        }
        if point && self.state == State::Shadowing {
            self.inexact_since = None;
        }
        log.free(cut.index);
    }

    /// Logging ends here: `span` (and whatever else [`Self::distrust`] marks) changes unrecorded.
    pub fn stop_logging(&mut self, span: Span) {
        self.marked.insert(span);
        if !failpoint::stands(Safeguard::OverflowEndsLogging) {
            return;
        }
        if matches!(self.state, State::Resyncing | State::Shadowing) {
            if self.state == State::Resyncing {
                self.exact_from = None;
            }
            self.state = State::Overflowed;
            self.inexact_since.get_or_insert_with(Instant::now);
        }
    }

    /// Nothing that the store holds is taken for known: logging ends, and all regions are marked.
    pub fn distrust(&mut self) {
        self.stop_logging(Span::new(0, self.size));
        self.distrusts += 1;
    }

    /// How often the store was distrusted: what was read of it before says nothing of what is read after.
    pub fn distrusts(&self) -> u64 {
        self.distrusts
    }

    /// Whether the store, now of that incarnation, may have forgotten something since it was distrusted so many times: an
    /// operation that was admitted then and is answered now says nothing of what stands beside it.
    pub fn is_stale(&self, incarnation: u64, distrusts: u64) -> bool {
        (incarnation > self.incarnation || distrusts != self.distrusts) && failpoint::stands(Safeguard::StaleAnswers)
    }

    /// Takes note of the store's incarnation; a higher one than before is a reason for distrust.
    pub fn came_back(&mut self, incarnation: u64) -> bool {
        let came_back = incarnation > self.incarnation && failpoint::stands(Safeguard::DistrustAfterLoss);
        if came_back {
            self.incarnation = incarnation;
            self.distrust();
        }
        came_back
    }

    /// What the store is compared with is not what it was thought to be: nothing logged so far makes it exact.
    pub fn distrust_base(&mut self) {
        self.distrust();
        self.exact_from = None;
    }

    pub fn fence(&mut self, log: &VolumeLog) {
        self.stop_logging(Span::new(0, self.size));
        self.state = State::Fenced;
        self.forget();
        log.reset(self.newest.next());
    }

    pub fn is_quiet(&self, appended: LogIndex) -> bool {
        self.progress.is_idle() && self.progress.bars_nothing() && appended >= self.newest
    }

    /// In Overflowed: whether no more of what was logged can be published, and nothing logged is in flight.
    pub fn is_drained(&mut self, log: &VolumeLog) -> bool {
        if self.state != State::Overflowed || !self.progress.is_idle() {
            return false;
        }
        let reachable = self.progress.cut(self.newest);
        let written = log.failure().is_some() || log.appended() >= reachable;
        written && self.cut(log.appended()).index == self.published.index
    }

    /// What is logged but not published cannot be read: it is given up, and its regions are marked.
    pub fn give_up(&mut self) {
        self.stop_logging(Span::new(0, 0));
        self.forget();
    }

    /// Marks what unpublished operations changed and forgets them. Those in flight complete as unlogged ones.
    fn forget(&mut self) {
        for descriptor in std::mem::take(&mut self.descriptors) {
            self.marked.insert(descriptor.span());
        }
        for span in std::mem::take(&mut self.unknown).into_values() {
            self.marked.insert(span);
        }
        self.exact_from = None;
        self.published = Cut { index: self.newest, sequence: self.newest_sequence };
        self.lag_bytes = 0;
        self.lag_writes = 0;
        self.ages = VecDeque::from([(self.newest, Instant::now())]);
    }

    /// In Overflowed and drained: restarts the log and begins to scan the marked regions.
    pub fn begin_resync(&mut self, log: &VolumeLog) {
        debug_assert_eq!(self.state, State::Overflowed);
        debug_assert!(self.progress.is_idle());
        self.forget();
        self.progress = Progress::new(self.newest);
        self.blind = RegionSet::new(self.size);
        self.front = 0;
        self.exact_from = None;
        self.inexact_since.get_or_insert_with(Instant::now);
        log.reset(self.newest.next());
        self.state = State::Resyncing;
    }

    /// Starts in Resyncing, with everything from byte `front` on marked.
    pub fn start_resync(&mut self, front: u64) {
        self.marked.insert(Span::new(front, self.size));
        self.exact_from = None;
        self.inexact_since.get_or_insert_with(Instant::now);
        self.state = State::Resyncing;
    }

    /// In Resyncing: the next run of marked bytes from the front on; none at the end of the scan.
    pub fn scan_ahead(&self) -> Option<Span> {
        let region = self.marked.next_from(self.front / REGION)?;
        let start = (region * REGION).max(self.front);
        let end = (self.marked.next_absent(region, region + RUN_MAX) * REGION).min(self.size);
        Some(Span::new(start, end))
    }

    /// Takes a range's turn in the scan: moves the front behind it. The caller holds the range and reads it next.
    /// None if the scan has been interrupted.
    pub fn scan_turn(&mut self, log: &VolumeLog, span: Span) -> Option<ScanTurn> {
        if self.state != State::Resyncing {
            return None;
        }
        let compare = !self.blind.contains_any(span);
        let Ticket(Some(index)) = self.record(log, LogOp::Scan, span, Bytes::new()) else {
            return None;
        };
        self.front = span.end;
        // The region that the front stands in keeps its mark: writes to the rest of it are still ahead.
        let whole = if span.end == self.size { self.size } else { span.end / REGION * REGION };
        self.marked.remove(Span::new((span.start / REGION * REGION).min(whole), whole));
        Some(ScanTurn { index, compare })
    }

    /// The scan has come to the end: from the newest index on, cuts are exact. False if it was interrupted.
    pub fn scan_finished(&mut self) -> bool {
        if self.state != State::Resyncing || self.scan_ahead().is_some() {
            return false;
        }
        self.exact_from = Some(self.newest);
        self.state = State::Shadowing;
        true
    }

    /// Bytes that are still to be scanned.
    pub fn scan_left(&self) -> u64 {
        let marked = self.marked.len() * REGION;
        // The region that the front stands in is scanned in part; the last one may be short.
        let begun = if self.marked.next_from(self.front / REGION) == Some(self.front / REGION) {
            self.front % REGION
        } else {
            0
        };
        marked.saturating_sub(begun).min(self.size)
    }

    /// Called once a second, so that the age of the oldest unpublished operation is known to a second.
    pub fn tick(&mut self, now: Instant) {
        match self.ages.back_mut() {
            Some((newest, at)) if *newest == self.newest => *at = now,
            _ => self.ages.push_back((self.newest, now)),
        }
    }

    pub fn lag(&self, now: Instant) -> Lag {
        let oldest = self.ages.front().map(|&(_, at)| at).filter(|_| !self.descriptors.is_empty());
        let since = oldest.into_iter().chain(self.inexact_since).min();
        Lag {
            bytes: self.lag_bytes,
            writes: self.lag_writes,
            age: since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since)),
        }
    }
}

/// How far the remote copy is behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    /// Payload that is logged and not in the chain.
    pub bytes: u64,
    pub writes: u64,
    /// Of the oldest change that is in no recovery point, to a second.
    pub age: Duration,
}

/// The range of the log record for an operation on `span`: the whole sectors inside, and the last sector of an
/// odd-sized volume, whose rest is zeroes.
pub fn inner(span: Span, size: u64) -> Span {
    let start = span.start.div_ceil(SECTOR) * SECTOR;
    let end = if span.end == size { span.end } else { span.end / SECTOR * SECTOR };
    Span::new(start, end.max(start))
}

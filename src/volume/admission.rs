//! The one short critical section of the write path, and what it guards.
//!
//! Under it an operation is found to touch hot regions only, reserves log space and takes the log index and the
//! sequence together, so that the order of the log is the order of the indices, and a scan's front moves, so that an
//! operation is ahead of the scan or behind it and never both. The caller holds the operation's range (see
//! [`super::ranges`]), which makes that order the store's order for every byte.
//!
//! Invariants:
//! - Every operation since the log was (re)started has a descriptor, in index order, until it is published.
//! - A byte that differs from the newest entry's content is covered by an unpublished descriptor, or its region is
//!   marked. An operation that left no record marks its regions before it is issued.
//! - A marked region is hot, or will be before anything is published that relies on it.
//! - After the first refused record none is accepted until the log is restarted: `overflowed_at` never moves.

mod doubt;
mod proof;
mod scanning;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::backlog::Backlog;
use super::boot::Replay;
use super::descriptor::{Descriptor, Effect};
use super::flushes::Flushes;
use super::heat::{Cold, Heat};
use super::progress::{Cut, Progress};
use super::sequences::Sequences;
use super::watch::{WatchId, Watches};
use crate::failpoint::{self, Safeguard};
use crate::format::log::LogOp;
use crate::marks::RegionSet;
use crate::units::{LogIndex, REGION, SECTOR, Sequence, Span};
use crate::writelog::{Record, VolumeLog};

pub use scanning::ScanTurn;

/// Where a volume stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// What a crash left in the log is being published; changes are not logged meanwhile.
    Replaying,
    /// Marked regions are being compared with the remote copy; drafts are published until that is done.
    Resyncing,
    /// Every change goes through the log; points are published.
    Shadowing,
    /// The log was full or failed, or the store was lost: changes are not logged; what was logged is published still.
    Overflowed,
    /// The marks cannot be written: clients are served, and nothing is known of what they change until the marks can
    /// be written again.
    Untracked,
    /// Another gateway publishes this volume; clients are served, nothing is uploaded.
    Fenced,
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            Self::Replaying | Self::Resyncing => "resyncing",
            Self::Shadowing => "shadowing",
            Self::Overflowed => "overflowed",
            Self::Untracked => "untracked",
            Self::Fenced => "fenced",
        }
    }

    /// Whether changes go through the log.
    pub fn logs(self) -> bool {
        matches!(self, Self::Resyncing | Self::Shadowing)
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
    /// Index of the newest operation at the start.
    started: LogIndex,
    /// What was found in the log to be replayed is all that was logged since it was emptied.
    replay_begins: bool,
    newest_sequence: Sequence,
    backlog: Backlog,
    progress: Progress,
    heat: Heat,
    flushes: Flushes,
    /// The marks cannot be written: changes go on without.
    unmarked: bool,
    /// The heartbeat that the marks were found with.
    found_heartbeat: u64,
    /// The chain was seen, and the marks found to be of its time.
    chain_seen: bool,
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
    /// Regions that were changed since the start, or by what is replayed; none when nobody wants to know any more.
    since_start: Option<RegionSet>,
    /// Since when no recovery point can be up to date: an overflow, or the start of a scan.
    inexact_since: Option<Instant>,
    watches: Watches,
}

impl Admission {
    /// A volume of `size` bytes whose remote copy is current but for what is hot and what is to be replayed.
    pub fn new(size: u64, incarnation: u64, sequence: Sequence, heat: Heat, replay: Replay) -> Self {
        let state = match (replay.descriptors.is_empty(), heat.hot().is_empty()) {
            (false, _) => State::Replaying,
            (true, false) => State::Resyncing,
            (true, true) => State::Shadowing,
        };
        let shown = if replay.descriptors.is_empty() { sequence } else { Sequence(0) };
        let mut backlog = Backlog::new(Cut { index: replay.before, sequence: shown });
        let mut since_start = heat.hot().emptied();
        for descriptor in replay.descriptors {
            since_start.insert(descriptor.span());
            backlog.push(descriptor);
        }
        let newest = backlog.newest();
        Self {
            state,
            size,
            incarnation,
            distrusts: 0,
            started: newest,
            newest_sequence: sequence,
            backlog,
            progress: Progress::new(newest),
            since_start: Some(since_start),
            marked: heat.hot().clone(),
            blind: heat.hot().emptied(),
            found_heartbeat: heat.heartbeat(),
            heat,
            flushes: Flushes::default(),
            unmarked: false,
            chain_seen: false,
            replay_begins: replay.begins,
            unknown: BTreeMap::new(),
            front: 0,
            exact_from: (state == State::Shadowing).then_some(newest),
            inexact_since: (state != State::Shadowing).then(Instant::now),
            watches: Watches::default(),
        }
    }

    /// The newest entry of the chain shows the volume up to `shown`: what is to be replayed begins there. False if
    /// the log begins only behind it, so that something is missing.
    pub fn chain_shows(&mut self, log: &VolumeLog, shown: Sequence) -> bool {
        let connected = self.replay_from(log, shown);
        let untouched = self.is_untouched();
        self.newest_sequence = self.newest_sequence.max(shown);
        // Whatever is published from now on lies behind a record of this run: a log that ends before what the chain
        // shows is older than it looks.
        let Ticket(_) = self.remark(log, LogOp::Heartbeat, self.heat.heartbeat());
        if untouched {
            self.started = self.newest();
        }
        connected
    }

    fn replay_from(&mut self, log: &VolumeLog, shown: Sequence) -> bool {
        let replayed = self.backlog.sequences().filter(|_| self.state == State::Replaying);
        let Some((first, last)) = replayed else { return true };
        if last < shown || (!self.replay_begins && first > shown) {
            return false;
        }
        // Of the newest operation that is shown the chain may lack what was read back after it; to apply the end of a
        // history twice changes nothing.
        let covered = self.backlog.cut_before(shown);
        if covered.index > self.published().index {
            self.set_published(log, covered, false);
        }
        true
    }

    pub fn state(&self) -> State {
        self.state
    }

    /// Index of the newest operation.
    pub fn newest(&self) -> LogIndex {
        self.backlog.newest()
    }

    /// Whether nothing was admitted since the start.
    pub fn is_untouched(&self) -> bool {
        self.newest() == self.started && self.state == State::Shadowing
    }

    /// Admits a client's change of `span`, which takes a sequence. Its record says `op` of `inner`, the whole sectors
    /// of it. Refused until all regions that it touches are hot.
    pub fn admit(
        &mut self,
        log: &VolumeLog,
        sequences: &Sequences,
        op: LogOp,
        span: Span,
        inner: Span,
        payload: Bytes,
    ) -> Result<Ticket, Cold> {
        if !self.unmarked {
            self.heat.claim(span)?;
        }
        self.changed(span);
        if !self.state.logs() {
            self.marked.insert(span);
            // A point that was made of what was logged before lacks this.
            self.inexact_since.get_or_insert_with(Instant::now);
            return Ok(Ticket(None));
        }
        let Some(sequence) = sequences.take() else {
            self.stop_logging(span);
            return Ok(Ticket(None));
        };
        self.newest_sequence = sequence;
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
        self.heat.touch(span);
        Ok(ticket)
    }

    /// Admits what was found out about a range: a read-back, or that it cannot be read.
    pub fn admit_found(&mut self, log: &VolumeLog, op: LogOp, span: Span, payload: Bytes) -> Ticket {
        if !self.state.logs() {
            self.mark(span);
            return Ticket(None);
        }
        self.blind_if_ahead(span);
        let ticket = self.record(log, op, span, payload);
        if ticket.0.is_none() {
            self.mark(span);
        }
        self.heat.touch(span);
        ticket
    }

    fn changed(&mut self, span: Span) {
        if let Some(since_start) = &mut self.since_start {
            since_start.insert(span);
        }
    }

    /// Whether the store should hold in `span` what the chain showed at the start: nothing was changed there since, and
    /// it is not marked, unless everything is for want of knowledge. Never, when nobody looks any more.
    pub fn should_be_as_shown(&self, span: Span) -> bool {
        let changed = self.since_start.as_ref().is_none_or(|since_start| since_start.contains_any(span));
        !changed && (!self.marked.contains_any(span) || self.heat.is_doubted())
    }

    pub fn forget_since_start(&mut self) {
        self.since_start = None;
    }

    /// The store may differ from the newest entry in `span`, which need not be hot yet.
    fn mark(&mut self, span: Span) {
        self.marked.insert(span);
        self.heat.want(span);
    }

    /// A record with content is about to stand for a range that a scan has still to read, at least in part.
    fn blind_if_ahead(&mut self, span: Span) {
        if self.state == State::Resyncing && span.end > self.front && self.marked.contains_any(span) {
            self.blind.insert(span);
        }
    }

    fn record(&mut self, log: &VolumeLog, op: LogOp, span: Span, payload: Bytes) -> Ticket {
        let sectors = span.rounded_out(SECTOR);
        let (index, sequence) = (self.newest().next(), self.newest_sequence);
        let record = Record { index, sequence, op, offset: sectors.start, length: sectors.len(), payload };
        let ticket = self.append(log, record, sectors);
        if ticket.0.is_none() {
            self.stop_logging(span);
        }
        ticket
    }

    /// Logs something that is not about a range: `value` stands in the record's place for the offset.
    fn remark(&mut self, log: &VolumeLog, op: LogOp, value: u64) -> Ticket {
        if !self.state.logs() && self.state != State::Replaying {
            return Ticket(None);
        }
        let (index, sequence) = (self.newest().next(), self.newest_sequence);
        let record = Record { index, sequence, op, offset: value, length: 0, payload: Bytes::new() };
        let ticket = self.append(log, record, Span::new(0, 0));
        match ticket.0 {
            Some(index) => self.progress.complete(index),
            None => self.stop_logging(Span::new(0, 0)),
        }
        ticket
    }

    fn append(&mut self, log: &VolumeLog, record: Record, sectors: Span) -> Ticket {
        let (index, sequence, effect) = (record.index, record.sequence, Effect::of(record.op, sectors));
        if self.backlog.is_full() {
            return Ticket(None);
        }
        let Ok(position) = log.append(record) else { return Ticket(None) };
        self.backlog.push(Descriptor::new(sectors, effect, position, sequence));
        self.progress.admit(index);
        self.watches.note(sectors);
        Ticket(Some(index))
    }

    /// The store has answered: the operation did what its record says.
    pub fn complete(&mut self, index: LogIndex) {
        self.progress.complete(index);
    }

    /// The operation on `span` had no effect, and the log is told so: a replay must not do what the store refused.
    pub fn void(&mut self, log: &VolumeLog, index: LogIndex, span: Span) {
        if let Ticket(Some(by)) = self.remark(log, LogOp::Void, index.0) {
            // Until then the record that says it happened stands alone.
            self.progress.bar(index, 1);
            self.progress.settle(index, by);
        } else {
            self.marked.insert(span);
        }
        self.backlog.void(index);
        self.progress.complete(index);
    }

    /// The outcome of the whole operation on `span` is unknown and to be read back.
    pub fn void_unknown(&mut self, index: LogIndex, span: Span) {
        self.bar(index, span, 1);
        self.backlog.void(index);
        self.progress.complete(index);
    }

    /// The operation succeeded, but what stands in `parts` ranges at its ragged edges is to be read back.
    pub fn complete_ragged(&mut self, index: LogIndex, span: Span, parts: u32) {
        self.bar(index, span, parts);
        self.progress.complete(index);
    }

    fn bar(&mut self, index: LogIndex, span: Span, parts: u32) {
        self.progress.bar(index, parts);
        if index > self.published().index {
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
        self.backlog.cut(self.progress.cut(appended).max(self.published().index))
    }

    /// Whether the volume at that cut is wholly told by entries and descriptors.
    pub fn is_exact(&self, cut: LogIndex) -> bool {
        self.exact_from.is_some_and(|from| cut >= from)
    }

    /// The operations after the published cut, through `through`.
    pub fn batch(&self, through: LogIndex) -> Vec<Descriptor> {
        self.backlog.batch(through)
    }

    pub fn says_something(&self, through: LogIndex) -> bool {
        self.backlog.says_something(through)
    }

    pub fn published(&self) -> Cut {
        self.backlog.published()
    }

    /// An entry that covers everything through `cut` stands in the chain; a `point`, or a draft.
    pub fn set_published(&mut self, log: &VolumeLog, cut: Cut, point: bool) {
        self.pass(cut, point);
        log.free(cut.index);
    }

    /// Everything through `cut` changed nothing, and no entry says so: the log keeps it, for it is to reach back to
    /// what the newest entry shows.
    pub fn pass(&mut self, cut: Cut, point: bool) {
        self.backlog.publish(cut);
        self.progress.published(cut.index);
        if point && self.state == State::Shadowing {
            self.inexact_since = None;
        }
    }

    /// Logging ends here: `span`, which is hot (and whatever else [`Self::distrust`] marks) changes unrecorded.
    pub fn stop_logging(&mut self, span: Span) {
        self.marked.insert(span);
        self.watches.break_all();
        if !failpoint::stands(Safeguard::OverflowEndsLogging) {
            return;
        }
        if self.state.logs() {
            if self.state == State::Resyncing {
                self.exact_from = None;
            }
            self.state = State::Overflowed;
            self.inexact_since.get_or_insert_with(Instant::now);
        }
    }

    pub fn is_quiet(&self, appended: LogIndex) -> bool {
        self.progress.is_idle() && self.progress.bars_nothing() && appended >= self.newest()
    }

    /// In Overflowed: whether no more of what was logged can be published, and nothing logged is in flight.
    pub fn is_drained(&mut self, log: &VolumeLog) -> bool {
        // The log is emptied afterwards: what only it covered is durably hot before.
        let ready = matches!(self.state, State::Overflowed | State::Replaying) && !self.heat.is_heating();
        if !ready || !self.progress.is_idle() {
            return false;
        }
        let reachable = self.progress.cut(self.newest());
        let written = log.failure().is_some() || log.appended() >= reachable;
        written && self.cut(log.appended()).index == self.published().index
    }

    /// What is logged but not published cannot be read: it is given up, and its regions are marked.
    pub fn give_up(&mut self) {
        self.stop_logging(Span::new(0, 0));
        self.forget();
    }

    /// Marks what unpublished operations changed and forgets them. Those in flight complete as unlogged ones.
    fn forget(&mut self) {
        let nothing = Backlog::new(Cut { index: self.newest(), sequence: self.newest_sequence });
        let given_up = std::mem::replace(&mut self.backlog, nothing);
        given_up.spans().for_each(|span| self.mark(span));
        for span in std::mem::take(&mut self.unknown).into_values() {
            self.mark(span);
        }
        self.exact_from = None;
    }

    /// Drained likewise, but the log has failed: it is emptied, and tried again. Whatever of it was not published is hot
    /// still: to cool, it had to be synced and in a cut.
    pub fn revive_log(&mut self, log: &VolumeLog) {
        self.forget();
        log.revive(self.newest().next());
    }

    /// Whether the newest entry says all that can be said: a heartbeat may have come since.
    pub fn is_published(&mut self, log: &VolumeLog) -> bool {
        let cut = self.cut(log.appended());
        !self.says_something(cut.index)
    }

    /// Begins to note what changes in `span`: first all of it that may differ from the newest entry's content (see the
    /// invariants above), then what is admitted. Returns the published cut that this is about; none while nothing is
    /// logged.
    pub fn watch(&mut self, span: Span) -> Option<(WatchId, LogIndex)> {
        if !self.state.logs() {
            return None;
        }
        let id = self.watches.begin(span);
        self.backlog.spans().for_each(|span| self.watches.note(span));
        self.unknown.values().for_each(|&unknown| self.watches.note(unknown));
        let regions = (span.start / REGION..span.end.div_ceil(REGION)).filter(|&region| self.marked.contains(region));
        regions.for_each(|region| self.watches.note(Span::at(region * REGION, REGION)));
        Some((id, self.published().index))
    }

    pub fn watches(&mut self) -> &mut Watches {
        &mut self.watches
    }

    /// Called once a second, so that the age of the oldest unpublished operation is known to a second.
    pub fn tick(&mut self, now: Instant) {
        self.backlog.tick(now);
    }

    pub fn lag(&self, now: Instant) -> Lag {
        let since = self.backlog.since().into_iter().chain(self.inexact_since).min();
        Lag {
            bytes: self.backlog.bytes(),
            writes: self.backlog.writes(),
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

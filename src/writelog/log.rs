//! One volume's log, as the write path sees it: a queue that takes a record in well under a microsecond.
//!
//! Owns: positions, the queue in memory, which segments are live, when the log is full. Does not own: any I/O of
//! records ([`super::writer`], [`super::reader`]).
//!
//! Reserving a position and queueing the record are one step under one lock, so that the queue is in log order and
//! the file has no holes. The queue is cut into batches as it grows, each contiguous in one segment: the writer takes
//! a whole one without holding the lock for longer than a pointer's move.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{error, info};

use super::pool::{Inner, Start};
use super::reader::{self, ReadError};
use super::recovery::FIRST_RECORD;
use super::segments::SLICES_MAX;
use super::signal::{Busy, Signal};
use super::{Full, LogFailed, LogFailure, OpenError, Position, Progress, Record, lock, writer};
use crate::format::VolumeId;
use crate::format::log::{RECORD_HEADER, SegmentHeader};
use crate::units::{LogIndex, MIB, REQUEST_MAX, SECTOR};

/// A batch is closed at this many records: their headers and payloads are then about what one `pwritev` takes.
const BATCH_RECORDS: usize = SLICES_MAX / 2 - 1;
/// … or when it reaches this size: memory is given up batch by batch.
const BATCH_BYTES: u64 = 4 * MIB;
/// A writer that collects small records is woken early when this much waits.
pub(super) const WAKE_BYTES: u64 = MIB;
/// Between two attempts to go on with a log that has failed.
const REVIVE_EVERY: Duration = Duration::from_secs(5);
/// What a queued record costs besides its payload; so a flood of records without payload is bounded too.
const RECORD_COST: u64 = (size_of::<Record>() + RECORD_HEADER) as u64;

/// A volume's log. Clones share it; when the last one goes, the writer finishes what is queued and ends.
#[derive(Clone)]
pub struct VolumeLog(pub(super) Arc<Handle>);

pub(super) struct Handle(pub(super) Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// What the handles and the writer share.
pub(super) struct Shared {
    pub pool: Arc<Inner>,
    pub volume: VolumeId,
    pub queue: Mutex<Queue>,
    /// Something for the writer to do; or, for those who wait in [`VolumeLog::close`], that it ended.
    pub changed: Signal,
    pub progress: watch::Sender<Progress>,
    pub failure: RwLock<Option<LogFailure>>,
    /// Since when the writer is in a call to the disk.
    pub busy: Busy,
}

pub(super) struct Queue {
    /// Index of the next record.
    next: LogIndex,
    pub era: u32,
    full: Option<Full>,
    /// Those that hold something, oldest first; the last one is being filled.
    pub live: VecDeque<Segment>,
    /// Where the next record goes in the last segment; bytes.
    filled: u64,
    /// Not yet taken by the writer, oldest first.
    pub batches: VecDeque<Batch>,
    /// What those weigh; bytes.
    pub waiting: u64,
    /// What the writer is writing.
    pub writing: Option<Arc<Batch>>,
    /// Dropped while the writer wrote there; given back when it is through, or, after a failure, when they are found
    /// sound.
    pub retiring: Vec<u32>,
    /// The writer is to find that out.
    pub revive: bool,
    /// Not to be asked again before.
    revive_at: Option<Instant>,
    /// Records up to here are covered.
    freed: LogIndex,
    /// Somebody waits until this record is synced.
    pub sync_through: LogIndex,
    /// The writer sleeps until so much waits; [`AWAKE`] if it does not sleep.
    pub wake_at: u64,
    pub closed: bool,
    pub stopped: bool,
    /// An empty vector with room, to be used for a batch.
    pub spare: Vec<Record>,
}

pub(super) const AWAKE: u64 = u64::MAX;

/// A live segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub slot: u32,
    pub header: SegmentHeader,
    /// The newest record in it.
    pub last: LogIndex,
}

/// Consecutive records of one segment.
pub(super) struct Batch {
    pub era: u32,
    pub slot: u32,
    pub header: SegmentHeader,
    /// The headers to write first, if the batch begins its segment: its own, and that of the segment before.
    pub begins: Option<Option<SegmentHeader>>,
    /// Byte offset in the segment.
    pub offset: u64,
    /// In the segment.
    bytes: u64,
    /// In memory.
    pub weight: u64,
    pub records: Vec<Record>,
}

impl Batch {
    pub fn first(&self) -> LogIndex {
        self.records.first().map_or(self.header.first, |record| record.index)
    }
    pub fn last(&self) -> LogIndex {
        self.records.last().map_or(LogIndex(0), |record| record.index)
    }
    /// Byte offset in the segment.
    pub fn end(&self) -> u64 {
        self.offset + self.bytes
    }
    fn record(&self, index: LogIndex) -> Option<&Record> {
        self.records.get(usize::try_from(index.0.checked_sub(self.first().0)?).ok()?)
    }
}

/// Bytes of payload on the disk.
pub(super) fn padded(payload: usize) -> u64 {
    (payload as u64).next_multiple_of(SECTOR)
}

impl VolumeLog {
    pub(super) fn start(pool: Arc<Inner>, volume: VolumeId, start: Start) -> Result<Self, OpenError> {
        let (next, live, dropped) = match start {
            Start::Empty(first) => (first, VecDeque::new(), first),
            Start::After(recovered) => (recovered.next, VecDeque::from(recovered.segments), recovered.first),
        };
        let slots: Vec<u32> = live.iter().map(|segment| segment.slot).collect();
        pool.claim(volume, &slots);
        let before = |index: LogIndex| LogIndex(index.0.saturating_sub(1));
        // What was recovered may stand in the page cache only; the writer syncs it before it says that it is synced.
        let progress = Progress { appended: before(next), synced: before(dropped), era: 0, failed: false };
        let queue = Queue {
            next,
            era: 0,
            full: None,
            live,
            filled: pool.segment_size,
            batches: VecDeque::new(),
            waiting: 0,
            writing: None,
            retiring: Vec::new(),
            revive: false,
            revive_at: None,
            freed: before(dropped),
            sync_through: LogIndex(0),
            wake_at: AWAKE,
            closed: false,
            stopped: false,
            spare: Vec::new(),
        };
        let shared = Arc::new(Shared {
            pool,
            volume,
            queue: Mutex::new(queue),
            changed: Signal::default(),
            progress: watch::Sender::new(progress),
            failure: RwLock::default(),
            busy: Busy::new(),
        });
        writer::spawn(shared.clone(), slots).map_err(OpenError::Thread)?;
        Ok(Self(Arc::new(Handle(shared))))
    }

    /// Takes a record. Does no I/O and waits for nothing but a short lock; to be called inside the volume's critical
    /// section. After the first refusal none succeeds until [`Self::reset`].
    pub fn append(&self, record: Record) -> Result<Position, Full> {
        let shared = &*self.0.0;
        let mut queue = lock(&shared.queue);
        if let Some(full) = queue.full {
            return Err(full);
        }
        let taken = shared.take(&mut queue, record);
        if let Err(full) = taken {
            queue.full = Some(full);
        }
        if queue.waiting >= queue.wake_at {
            queue.wake_at = AWAKE;
            drop(queue);
            shared.changed.notify_all();
        }
        taken
    }

    /// Every record up to this one was written to its segment: it survives the process.
    pub fn appended(&self) -> LogIndex {
        self.0.0.progress.borrow().appended
    }

    /// Every record up to this one was synced: it survives the machine.
    pub fn synced(&self) -> LogIndex {
        self.0.0.progress.borrow().synced
    }

    /// Follows [`Progress`]; it changes once per write or sync, not once per record.
    pub fn watch(&self) -> watch::Receiver<Progress> {
        self.0.0.progress.subscribe()
    }

    /// Returns when every record up to `through` is synced. Callers share one `fdatasync`.
    pub async fn sync(&self, through: LogIndex) -> Result<(), LogFailed> {
        let shared = &*self.0.0;
        let mut progress = shared.progress.subscribe();
        let era = {
            let mut queue = lock(&shared.queue);
            if through >= queue.next {
                return Err(LogFailed::NotLogged(through));
            }
            if through > progress.borrow().synced {
                queue.sync_through = queue.sync_through.max(through);
                queue.wake_at = AWAKE;
                shared.changed.notify_all();
            }
            queue.era
        };
        loop {
            let now = *progress.borrow_and_update();
            if now.era != era {
                return Err(LogFailed::Reset);
            }
            if now.synced >= through {
                return Ok(());
            }
            if let Some(failure) = self.failure() {
                return Err(failure.into());
            }
            #[cfg(test)]
            if crate::random::seeded::is_here() {
                // Those who watch are woken in an order that no seed decides.
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            }
            // The sender lives in `shared`; a timeout is the time to look whether the disk hangs.
            let _ = tokio::time::timeout(shared.pool.limits.hang, progress.changed()).await;
        }
    }

    /// Records up to `through` are covered: their segments go back to the pool, except the one that is being filled.
    pub fn free(&self, through: LogIndex) {
        let shared = &*self.0.0;
        let mut queue = lock(&shared.queue);
        queue.freed = queue.freed.max(through);
        shared.release(&mut queue);
    }

    /// Bytes of the segments that the volume holds.
    pub fn used_bytes(&self) -> u64 {
        let queue = lock(&self.0.0.queue);
        (queue.live.len() + queue.retiring.len()) as u64 * self.0.0.pool.segment_size
    }

    /// Bytes that the volume could hold if no other needed more than its share.
    pub fn capacity_bytes(&self) -> u64 {
        self.0.0.pool.volume_capacity()
    }

    /// How full the log is, from 0 to 1: its segments, or the memory of what waits to be written.
    pub fn fill(&self) -> f64 {
        let segments = self.used_bytes() as f64 / self.capacity_bytes().max(1) as f64;
        let memory = self.0.0.pool.in_flight.load(Ordering::Relaxed) as f64 / self.0.0.pool.limits.in_flight as f64;
        segments.max(memory).min(1.0)
    }

    /// Notes durably, beside the log and whatever becomes of that, that the volume's marks may say less than the truth;
    /// or that they no longer do. Blocks.
    pub fn doubt_marks(&self, doubt: bool) {
        self.0.0.pool.doubt_marks(self.0.0.volume, doubt);
    }

    /// Bytes of memory held by records that are not written yet.
    pub fn queued_bytes(&self) -> u64 {
        let queue = lock(&self.0.0.queue);
        queue.waiting + queue.writing.as_ref().map_or(0, |batch| batch.weight)
    }

    /// Why the log is lost from [`Self::synced`] on, until [`Self::revive`] has found its disk sound. What is still
    /// queued can be read until [`Self::reset`].
    pub fn failure(&self) -> Option<LogFailure> {
        self.0.0.failure()
    }

    /// Drops everything and starts again with `next` (at least one more than the last record that was taken). A log
    /// that has failed gives up its memory and stays failed.
    pub fn reset(&self, next: LogIndex) {
        let shared = &*self.0.0;
        let mut queue = lock(&shared.queue);
        debug_assert!(next >= queue.next, "index {next} was used already");
        let failed = shared.failure().is_some();
        let dropped = std::mem::take(&mut queue.batches);
        let mut weight = std::mem::take(&mut queue.waiting);
        // A write that hangs may still land: its segment is nobody's any more.
        let given_up = if failed { queue.writing.take() } else { None };
        weight += given_up.as_ref().map_or(0, |batch| batch.weight);
        let written = queue.writing.as_ref().map(|batch| batch.slot);
        for segment in std::mem::take(&mut queue.live) {
            if failed || written == Some(segment.slot) {
                queue.retiring.push(segment.slot);
            } else {
                shared.pool.give_back(shared.volume, segment.slot);
            }
        }
        shared.pool.in_flight.fetch_sub(weight, Ordering::Relaxed);
        queue.next = queue.next.max(next);
        queue.filled = shared.pool.segment_size;
        queue.freed = LogIndex(queue.next.0.saturating_sub(1));
        queue.sync_through = LogIndex(0);
        queue.revive = false;
        queue.full = failed.then_some(Full::Failed);
        queue.era += 1;
        let (era, through) = (queue.era, queue.freed);
        shared.progress.send_replace(Progress { appended: through, synced: through, era, failed });
        drop(queue);
        drop((dropped, given_up));
    }

    /// After a failure of the disk, with nothing in the log that is still needed: resets it, and has the writer find out
    /// which of its segments can be emptied and synced. If any can, there is no [`Self::failure`] any more, and the next
    /// [`Self::reset`] begins the log; if none, a later call tries again, at most every five seconds. The superblock
    /// says that the log has failed until something of the new one is synced.
    pub fn revive(&self, next: LogIndex) {
        let shared = &*self.0.0;
        let now = Instant::now();
        if !shared.failure().is_some_and(LogFailure::is_of_the_disk) {
            return;
        }
        if lock(&shared.queue).revive_at.is_some_and(|at| now < at) {
            return;
        }
        self.reset(next);
        let mut queue = lock(&shared.queue);
        (queue.revive, queue.revive_at) = (true, Some(now + REVIVE_EVERY));
        drop(queue);
        shared.changed.notify_all();
    }

    /// Reads a record's payload back, `length` bytes as they were appended, and checks header and payload. Serves from
    /// memory what is not written yet. Blocks.
    pub fn read(&self, position: Position, index: LogIndex) -> Result<Bytes, ReadError> {
        let shared = &*self.0.0;
        let header = {
            let queue = lock(&shared.queue);
            if let Some(payload) = queue.find(index) {
                return Ok(payload);
            }
            queue.segment_of(position, index).ok_or(ReadError::Gone { position, index })?.header
        };
        reader::read(&shared.pool, &header, position, index)
    }

    /// Takes no more records, writes and syncs what is queued, and ends the writer; says whether that was done within
    /// `bound`. Blocks.
    pub fn close(&self, bound: Duration) -> bool {
        let shared = &*self.0.0;
        shared.close();
        let queue = lock(&shared.queue);
        let waited = shared.changed.wait_timeout_while(queue, bound, |queue| !queue.stopped);
        let (queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
        queue.stopped && shared.known_failure().is_none()
    }
}

impl Queue {
    fn find(&self, index: LogIndex) -> Option<Bytes> {
        let at = self.batches.partition_point(|batch| batch.first() <= index);
        let batch = at.checked_sub(1).and_then(|at| self.batches.get(at)).or(self.writing.as_deref())?;
        batch.record(index).map(|record| record.payload.clone())
    }

    fn segment_of(&self, position: Position, index: LogIndex) -> Option<Segment> {
        let at = self.live.partition_point(|segment| segment.header.first <= index).checked_sub(1)?;
        self.live.get(at).copied().filter(|segment| segment.slot == position.slot() && index <= segment.last)
    }

    /// The next [`VolumeLog::revive`] is not too soon.
    #[cfg(test)]
    pub fn revive_again(&mut self) {
        self.revive_at = None;
    }

    /// Whether all that somebody waits for was written and only the sync is missing.
    pub fn wants_sync(&self, progress: Progress) -> bool {
        self.sync_through > progress.synced && self.sync_through <= progress.appended
    }

    /// Whether somebody waits for a record that is not written yet.
    pub fn wants_write(&self, progress: Progress) -> bool {
        self.sync_through > progress.appended
    }
}

impl Shared {
    /// The heart of [`VolumeLog::append`].
    fn take(&self, queue: &mut Queue, record: Record) -> Result<Position, Full> {
        if let Some(failure) = self.failure() {
            return Err(self.fail(failure));
        }
        if let Some(failure) = misuse(queue.next, &record) {
            return Err(self.fail(failure));
        }
        let weight = RECORD_COST + record.payload.len() as u64;
        if self.pool.in_flight.fetch_add(weight, Ordering::Relaxed) + weight > self.pool.limits.in_flight {
            self.pool.in_flight.fetch_sub(weight, Ordering::Relaxed);
            return Err(Full::Buffers);
        }
        let bytes = RECORD_HEADER as u64 + padded(record.payload.len());
        let Some((segment, batch)) = self.room(queue, bytes) else {
            self.pool.in_flight.fetch_sub(weight, Ordering::Relaxed);
            return Err(Full::Segments);
        };
        let position = Position::new(segment.slot, batch.end());
        segment.last = record.index;
        batch.bytes += bytes;
        batch.weight += weight;
        batch.records.push(record);
        queue.next = queue.next.next();
        queue.filled += bytes;
        queue.waiting += weight;
        Ok(position)
    }

    /// The segment that has room for `bytes` more, and an open batch at its end.
    fn room<'q>(&self, queue: &'q mut Queue, bytes: u64) -> Option<(&'q mut Segment, &'q mut Batch)> {
        let mut begins = None;
        if queue.filled + bytes > self.pool.segment_size {
            let (slot, lap) = self.pool.take(self.volume)?;
            begins = Some(queue.live.back().map(|segment| segment.header));
            let (log, epoch) = (self.pool.log, self.pool.epoch);
            let header = SegmentHeader { log, volume: self.volume, epoch, lap, first: queue.next };
            queue.live.push_back(Segment { slot, header, last: queue.next });
            queue.filled = FIRST_RECORD;
        }
        let segment = queue.live.back_mut()?;
        let full = |batch: &Batch| batch.records.len() >= BATCH_RECORDS || batch.bytes >= BATCH_BYTES;
        if begins.is_some() || queue.batches.back().is_none_or(full) {
            queue.batches.push_back(Batch {
                era: queue.era,
                slot: segment.slot,
                header: segment.header,
                begins,
                offset: queue.filled,
                bytes: 0,
                weight: 0,
                records: std::mem::take(&mut queue.spare),
            });
        }
        Some((segment, queue.batches.back_mut()?))
    }

    /// Gives back the segments in front whose records are all covered and written. One that ends with the newest
    /// covered record stays: a log that begins behind what is covered shows that nothing is missing in between.
    pub fn release(&self, queue: &mut Queue) {
        let through = queue.freed.min(self.progress.borrow().appended);
        while queue.live.len() > 1
            && self.known_failure().is_none()
            && let Some(oldest) = queue.live.front().copied()
            && oldest.last < through
        {
            queue.live.pop_front();
            self.pool.give_back(self.volume, oldest.slot);
        }
    }

    fn failure(&self) -> Option<LogFailure> {
        if self.known_failure().is_none() && self.busy.lasts(self.pool.limits.hang) {
            self.fail(LogFailure::Hung(self.pool.limits.hang));
        }
        self.known_failure()
    }

    /// Without looking whether the disk hangs.
    pub fn known_failure(&self) -> Option<LogFailure> {
        *self.failure.read()
    }

    /// From now on nothing is taken, and nothing more is written.
    pub fn fail(&self, failure: LogFailure) -> Full {
        let mut known = self.failure.write();
        if known.is_none() {
            *known = Some(failure);
            drop(known);
            error!(volume = %self.volume, %failure, "the log is lost; the volume is no longer covered by it");
            self.progress.send_modify(|progress| progress.failed = true);
        }
        Full::Failed
    }

    /// The disk is sound again, where these segments are. To be called by the writer: no call to the disk is under way.
    pub fn revived(&self, sound: &[u32]) {
        let mut queue = lock(&self.queue);
        queue.revive = false;
        // Those that are not are nobody's any more.
        queue.retiring.clear();
        sound.iter().for_each(|&slot| self.pool.give_back(self.volume, slot));
        *self.failure.write() = None;
        self.progress.send_modify(|progress| progress.failed = false);
        info!(volume = %self.volume, "the log's disk is sound again");
    }

    fn close(&self) {
        let mut queue = lock(&self.queue);
        queue.closed = true;
        queue.full = Some(Full::Failed);
        drop(queue);
        self.changed.notify_all();
    }
}

/// What is wrong with a record that the volume hands over; written down, it would be refused by every reader.
fn misuse(expected: LogIndex, record: &Record) -> Option<LogFailure> {
    let Record { index, length, ref payload, .. } = *record;
    let carried = if record.op.has_payload() { length } else { 0 };
    if index != expected {
        Some(LogFailure::OutOfOrder { expected, found: index })
    } else if payload.len() as u64 != carried || carried > REQUEST_MAX.into() {
        Some(LogFailure::WrongPayload { index, length, payload: payload.len() })
    } else {
        None
    }
}

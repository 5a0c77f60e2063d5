//! The thread that carries a volume's queue to its segments.
//!
//! Owns: writing in log order with few large calls, checksums, group commit, when to sleep. Does not own: what is
//! queued where ([`super::log`]).
//!
//! One thread per volume, not one per pool: a call to the disk that hangs holds up one volume, and no rule of
//! fairness is needed but the kernel's. It sleeps in two ways. Deeply when there is nothing to do: the next record
//! wakes it. Lightly, for [`GATHER`], when it has just written: records that come meanwhile wake nobody and are
//! written together; a stream of small writes then costs one wake-up each few milliseconds instead of one each.
//!
//! What it does next is decided in one place; who carries that out is a thread, or in a simulated world a task in
//! virtual time.
//!
//! Crash: everything up to `synced` is there, and a gap-free part of what follows.

use std::io::{self, IoSlice};
use std::mem;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use super::log::{AWAKE, Batch, Queue, Shared, WAKE_BYTES, padded};
use super::segments::SegmentIo;
use super::{LogFailure, lock, recovery};
use crate::disk::Errno;
use crate::format::log::{RECORD_HEADER, RecordHeader, RecordPlace, SegmentHeader, crc32c};
use crate::units::{KIB, LogIndex, MIB, SECTOR};

/// How long small records are gathered: a hundredth of a commit, so that it adds nothing to what a crash costs.
const GATHER: Duration = Duration::from_millis(2);

/// Of a segment the disk is given at once, bytes.
const WRITEBACK: u64 = 4 * MIB;

/// Starts the writer. `recovered` are segments of earlier epochs that may not be on the disk yet.
pub(super) fn spawn(shared: Arc<Shared>, recovered: Vec<u32>) -> io::Result<()> {
    let writer = Writer {
        shared,
        current: None,
        dirty: Vec::new(),
        dirty_since: None,
        gather_until: None,
        headers: Vec::new(),
        revived: false,
    };
    #[cfg(test)]
    if crate::random::seeded::is_here() {
        tokio::spawn(writer.run_simulated(recovered));
        return Ok(());
    }
    std::thread::Builder::new().name("umbra-log".into()).spawn(move || writer.run(recovered))?;
    Ok(())
}

struct Writer {
    shared: Arc<Shared>,
    /// The segment that was written last.
    current: Option<(u32, Arc<dyn SegmentIo>)>,
    /// Segments with writes that are not synced.
    dirty: Vec<(u32, Arc<dyn SegmentIo>)>,
    dirty_since: Option<Instant>,
    gather_until: Option<Instant>,
    /// Encoded record headers of the batch in hand.
    headers: Vec<u8>,
    /// The log begins anew after a failure, and nothing of it is synced yet.
    revived: bool,
}

enum Job {
    Write(Arc<Batch>),
    Sync,
    /// Find out whether a disk that failed is sound.
    Revive,
    Stop,
}

enum Decision {
    Do(Job),
    /// Nothing, until somebody wakes the writer or that time has come.
    Sleep(Option<Instant>),
}

impl Writer {
    fn run(mut self, recovered: Vec<u32>) {
        if let Err(failure) = self.sync_recovered(recovered) {
            self.fail(failure);
        }
        loop {
            let done = match self.next() {
                Job::Write(batch) => self.write(&batch).map(|()| self.written(batch)),
                Job::Sync => self.sync(),
                Job::Revive => self.revive(),
                Job::Stop => break,
            };
            if let Err(failure) = done {
                self.fail(failure);
            }
        }
    }

    /// What to do now; sleeps while there is nothing.
    fn next(&mut self) -> Job {
        let shared = &*self.shared;
        let mut queue = lock(&shared.queue);
        loop {
            let now = Instant::now();
            queue = match self.decide(&mut queue, now) {
                Decision::Do(job) => return job,
                Decision::Sleep(Some(until)) => {
                    let waited = shared.changed.wait_timeout(queue, until.saturating_duration_since(now));
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                Decision::Sleep(None) => shared.changed.wait(queue).unwrap_or_else(PoisonError::into_inner),
            };
            queue.wake_at = AWAKE;
        }
    }

    /// Decides what to do at `now`. Whoever sleeps sets [`Queue::wake_at`] back when it wakes.
    fn decide(&self, queue: &mut Queue, now: Instant) -> Decision {
        let shared = &*self.shared;
        let failed = shared.known_failure().is_some();
        let progress = *shared.progress.borrow();
        let commit_at = self.dirty_since.map(|since| since + shared.pool.limits.commit_every);
        if queue.closed && (failed || queue.batches.is_empty() && self.dirty.is_empty()) {
            return Decision::Do(Job::Stop);
        }
        if failed && mem::take(&mut queue.revive) {
            return Decision::Do(Job::Revive);
        }
        let idle = queue.batches.is_empty();
        let mut wake_at = AWAKE;
        let mut until = None;
        if !failed {
            if !self.dirty.is_empty()
                && (queue.wants_sync(progress) || commit_at.is_some_and(|at| at <= now) || queue.closed && idle)
            {
                return Decision::Do(Job::Sync);
            }
            let gathering = self.gather_until.filter(|until| *until > now);
            let hurry = queue.waiting >= WAKE_BYTES || queue.wants_write(progress) || queue.closed;
            if (gathering.is_none() || hurry)
                && let Some(batch) = queue.batches.pop_front()
            {
                let batch = Arc::new(batch);
                queue.waiting -= batch.weight;
                queue.writing = Some(batch.clone());
                return Decision::Do(Job::Write(batch));
            }
            until = [gathering, commit_at].into_iter().flatten().min();
            wake_at = if gathering.is_some() { WAKE_BYTES } else { 1 };
        }
        queue.wake_at = wake_at;
        Decision::Sleep(until)
    }

    fn write(&mut self, batch: &Batch) -> Result<(), LogFailure> {
        self.begin(batch)?;
        self.append(batch)
    }

    /// Makes the opening of the batch's segment durable, if the batch begins it.
    fn begin(&mut self, batch: &Batch) -> Result<(), LogFailure> {
        let slot = batch.slot;
        let failed = |error: io::Error| LogFailure::Write { slot, error: error.into() };
        let segment = self.segment(slot)?;
        let busy = &self.shared.busy;
        self.dirty_since.get_or_insert_with(Instant::now);
        if self.dirty.last().is_none_or(|(dirty, _)| *dirty != slot) {
            self.dirty.push((slot, segment.clone()));
        }
        if let Some(before) = &batch.begins {
            let opening = recovery::opening(&batch.header, before.as_ref());
            busy.during(|| segment.write_at(&mut [IoSlice::new(&opening)], 0)).map_err(failed)?;
            busy.during(|| segment.sync()).map_err(|error| LogFailure::Sync { slot, error: error.into() })?;
        }
        Ok(())
    }

    fn append(&mut self, batch: &Batch) -> Result<(), LogFailure> {
        let slot = batch.slot;
        let segment = self.segment(slot)?;
        encode_headers(batch, &mut self.headers);
        let mut slices = Vec::with_capacity(2 * batch.records.len() + 1);
        let mut headers = self.headers.as_slice();
        let mut pending = 0;
        for record in &batch.records {
            pending += RECORD_HEADER;
            if !record.payload.is_empty() {
                let (before, rest) = headers.split_at(pending);
                slices.extend([IoSlice::new(before), IoSlice::new(&record.payload)]);
                slices.extend(Some(padding(&record.payload)).filter(|zeroes| !zeroes.is_empty()).map(IoSlice::new));
                (headers, pending) = (rest, 0);
            }
        }
        slices.push(IoSlice::new(headers));
        slices.push(IoSlice::new(rest_of_page(batch.end(), self.shared.pool.segment_size)));
        let written = self.shared.busy.during(|| segment.write_at(&mut slices, batch.offset));
        written.map_err(|error| LogFailure::Write { slot, error: error.into() })?;
        // What is complete goes to the disk while more is written: then a sync waits for little.
        let (from, to) = (batch.offset / WRITEBACK * WRITEBACK, batch.end() / WRITEBACK * WRITEBACK);
        if from < to {
            self.shared.busy.during(|| segment.begin_writeback(from, to - from));
        }
        Ok(())
    }

    /// Makes known that a batch stands in its segment, and gives up its memory.
    fn written(&mut self, batch: Arc<Batch>) {
        let shared = &*self.shared;
        let mut queue = lock(&shared.queue);
        if shared.known_failure().is_some() {
            return; // Given up as hung; what is in memory stays readable.
        }
        if queue.writing.take().is_some() {
            shared.pool.in_flight.fetch_sub(batch.weight, Ordering::Relaxed);
        }
        for slot in mem::take(&mut queue.retiring) {
            shared.pool.give_back(shared.volume, slot);
        }
        if batch.era == queue.era {
            shared.progress.send_modify(|progress| progress.appended = batch.last());
            shared.release(&mut queue);
        }
        drop(queue);
        self.gather_until = Some(Instant::now() + GATHER);
        // No reader keeps the batch; so this is the last of it, and its vector can be used again.
        if let Some(mut batch) = Arc::into_inner(batch) {
            batch.records.clear();
            lock(&shared.queue).spare = batch.records;
        }
    }

    fn sync(&mut self) -> Result<(), LogFailure> {
        let before = *self.shared.progress.borrow();
        self.sync_dirty()?;
        self.dirty_since = None;
        self.be_sound()?;
        self.synced(before.era, before.appended);
        Ok(())
    }

    /// A log that begins anew after a failure is found before the old one from now on, and the superblock says so.
    fn be_sound(&mut self) -> Result<(), LogFailure> {
        if !mem::take(&mut self.revived) {
            return Ok(());
        }
        let marked = self.shared.busy.during(|| self.shared.pool.mark_sound(self.shared.volume));
        marked.map_err(|error| LogFailure::Superblock { error: error.into() })
    }

    fn sync_dirty(&mut self) -> Result<(), LogFailure> {
        for (slot, segment) in mem::take(&mut self.dirty) {
            let synced = self.shared.busy.during(|| segment.sync());
            synced.map_err(|error| LogFailure::Sync { slot, error: error.into() })?;
        }
        Ok(())
    }

    /// What recovery read may have been in the page cache only.
    fn sync_recovered(&mut self, slots: Vec<u32>) -> Result<(), LogFailure> {
        let before = *self.shared.progress.borrow();
        self.open_dirty(slots)?;
        self.sync_dirty()?;
        self.synced(before.era, before.appended);
        Ok(())
    }

    fn open_dirty(&mut self, slots: Vec<u32>) -> Result<(), LogFailure> {
        for slot in slots {
            let segment = self.open(slot)?;
            self.dirty.push((slot, segment));
        }
        Ok(())
    }

    fn synced(&self, era: u32, through: LogIndex) {
        let _queue = lock(&self.shared.queue); // A reset comes before or after, not in between.
        if self.shared.known_failure().is_none() {
            self.shared.progress.send_if_modified(|progress| {
                let moved = progress.era == era && progress.synced < through;
                if moved {
                    progress.synced = through;
                }
                moved
            });
        }
    }

    fn segment(&mut self, slot: u32) -> Result<Arc<dyn SegmentIo>, LogFailure> {
        match &self.current {
            Some((current, segment)) if *current == slot => Ok(segment.clone()),
            _ => {
                let segment = self.open(slot)?;
                self.current = Some((slot, segment.clone()));
                Ok(segment)
            }
        }
    }

    fn open(&self, slot: u32) -> Result<Arc<dyn SegmentIo>, LogFailure> {
        let opened = self.shared.busy.during(|| self.shared.pool.segments.open(slot));
        opened.map_err(|error| LogFailure::Open { slot, error: Errno::from(error) })
    }

    /// Empties the segments that the log held when it failed, those that can be: what follows is written and synced anew
    /// from the first byte on. One that cannot is not used again.
    fn revive(&mut self) -> Result<(), LogFailure> {
        // One that hung has not said so yet; half emptied, it would be taken for an older one.
        self.mark_failed()?;
        (self.current, self.dirty_since, self.gather_until) = (None, None, None);
        self.dirty.clear();
        let slots = lock(&self.shared.queue).retiring.clone();
        let mut sound = Vec::with_capacity(slots.len());
        let mut failed = Ok(());
        for slot in slots {
            match self.empty(slot) {
                Ok(()) => sound.push(slot),
                Err(failure) => failed = Err(failure),
            }
        }
        if sound.is_empty() {
            return failed;
        }
        self.revived = true;
        self.shared.revived(&sound);
        Ok(())
    }

    fn empty(&self, slot: u32) -> Result<(), LogFailure> {
        const BLANK: [u8; recovery::FIRST_RECORD as usize] = [0; recovery::FIRST_RECORD as usize];
        let segment = self.open(slot)?;
        let busy = &self.shared.busy;
        let written = busy.during(|| segment.write_at(&mut [IoSlice::new(&BLANK)], 0));
        written.map_err(|error| LogFailure::Write { slot, error: error.into() })?;
        busy.during(|| segment.sync()).map_err(|error| LogFailure::Sync { slot, error: error.into() })
    }

    fn fail(&mut self, failure: LogFailure) {
        self.shared.fail(failure);
        self.dirty.clear();
        if let Err(failure) = self.mark_failed() {
            warn!(volume = %self.shared.volume, %failure, "the log's failure could not be recorded");
        }
    }

    fn mark_failed(&self) -> Result<(), LogFailure> {
        let marked = self.shared.busy.during(|| self.shared.pool.mark_failed(self.shared.volume));
        marked.map_err(|error| LogFailure::Superblock { error: error.into() })
    }
}

#[cfg(test)]
impl Writer {
    /// As [`Self::run`], in virtual time: what a call does is done at once, and the call lasts as long as the disk says.
    async fn run_simulated(mut self, recovered: Vec<u32>) {
        let opened = self.open_dirty(recovered);
        let synced = self.sync_simulated().await;
        if let Err(failure) = opened.and(synced) {
            self.fail(failure);
        }
        loop {
            let done = match self.next_simulated().await {
                Job::Write(batch) => self.write_simulated(&batch).await.map(|()| self.written(batch)),
                Job::Sync => self.sync_simulated().await,
                Job::Revive => {
                    self.call().await;
                    self.revive()
                }
                Job::Stop => break,
            };
            if let Err(failure) = done {
                self.fail(failure);
            }
        }
    }

    async fn next_simulated(&mut self) -> Job {
        loop {
            let woken = self.shared.changed.simulated();
            let decision = self.decide(&mut lock(&self.shared.queue), Instant::now());
            match decision {
                Decision::Do(job) => return job,
                Decision::Sleep(Some(until)) => {
                    let _ = tokio::time::timeout_at(until, woken).await;
                }
                Decision::Sleep(None) => woken.await,
            }
            lock(&self.shared.queue).wake_at = AWAKE;
        }
    }

    async fn write_simulated(&mut self, batch: &Batch) -> Result<(), LogFailure> {
        let begun = self.begin(batch);
        if batch.begins.is_some() {
            self.call().await;
        }
        begun?;
        let appended = self.append(batch);
        self.call().await;
        appended
    }

    async fn sync_simulated(&mut self) -> Result<(), LogFailure> {
        let before = *self.shared.progress.borrow();
        let synced = self.sync_dirty();
        self.call().await;
        synced?;
        self.dirty_since = None;
        self.be_sound()?;
        self.synced(before.era, before.appended);
        Ok(())
    }

    /// Is in a call to the disk, for as long as it takes.
    async fn call(&self) {
        let takes = self.shared.pool.segments.call_takes();
        self.shared.busy.begin();
        tokio::time::sleep(takes).await;
        self.shared.busy.end();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.fail(LogFailure::Died);
        }
        lock(&self.shared.queue).stopped = true;
        self.shared.changed.notify_all();
    }
}

/// Fills `headers` with those of a batch, one after the other.
fn encode_headers(batch: &Batch, headers: &mut Vec<u8>) {
    headers.clear();
    headers.resize(batch.records.len() * RECORD_HEADER, 0);
    let SegmentHeader { log, epoch, lap, .. } = batch.header;
    let mut offset = batch.offset;
    for (record, out) in batch.records.iter().zip(headers.chunks_exact_mut(RECORD_HEADER)) {
        let payload = padded(record.payload.len());
        let header = RecordHeader {
            index: record.index,
            sequence: record.sequence,
            op: record.op,
            offset: record.offset,
            length: record.length,
            payload: payload as u32,
            payload_crc: payload_crc(&record.payload),
        };
        header.encode_into(&RecordPlace { log, epoch, lap, position: offset as u32 }, out);
        offset += RECORD_HEADER as u64 + payload;
    }
}

/// The zeroes that round a payload up to whole sectors.
fn padding(payload: &[u8]) -> &'static [u8] {
    static ZEROES: [u8; SECTOR as usize] = [0; SECTOR as usize];
    &ZEROES[..(padded(payload.len()) - payload.len() as u64) as usize]
}

/// The zeroes that fill the page in which a batch ends; the next batch takes their place. The kernel reads a page that
/// is written in part and not cached, as those of a segment are that was written last an hour ago, and the read would
/// wait behind all that is written back.
fn rest_of_page(end: u64, segment: u64) -> &'static [u8] {
    const PAGE: u64 = 4 * KIB;
    static ZEROES: [u8; PAGE as usize] = [0; PAGE as usize];
    &ZEROES[..(end.next_multiple_of(PAGE).min(segment) - end) as usize]
}

/// CRC-32C of a payload with its padding.
fn payload_crc(payload: &[u8]) -> u32 {
    match padding(payload) {
        [] => crc32c(payload),
        zeroes => {
            let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
            digest.update(payload);
            digest.update(zeroes);
            digest.finalize() as u32
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_covers_the_padding() {
        let mut sector = vec![7; 100];
        let crc = payload_crc(&sector);
        sector.resize(512, 0);
        assert_eq!((crc, payload_crc(&[])), (crc32c(&sector), crc32c(&[])));
    }
}

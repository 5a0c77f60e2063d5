//! The log's disk: segments of which a power cut leaves any part of what was not synced, and which fail, fill up and
//! hang. Its superblock is a few numbers.

use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::ground::{Ground, below, failure, lock, note, once_in};
use super::medium::Medium;
use crate::format::log::LogId;
use crate::random::seeded;
use crate::writelog::{self, Keeper, Look, Opened, SegmentIo, Segments, Superblock};

/// Clones are the same disk.
#[derive(Clone)]
pub struct LogDevice {
    ground: Ground,
    state: Arc<Mutex<State>>,
    pub segment_size: u64,
    pub slots: u32,
}

struct State {
    /// One segment behind the other.
    medium: Medium,
    log: u8,
    epoch: u64,
    fail_writes: bool,
    fail_syncs: bool,
    /// The superblock says so: what is on the disk cannot be trusted.
    failed: bool,
    /// Marks are doubted, says the superblock.
    doubted: bool,
    /// That it failed and that marks are doubted is being written until then, and was so before.
    noting_until: u64,
    before: (bool, bool),
    hangs_until: u64,
    /// The call that was made last ends; none while its writes and syncs are still being told.
    busy_until: Option<u64>,
    /// It failed or hung since the last boot.
    was_faulty: bool,
}

impl LogDevice {
    pub fn new(ground: Ground, slots: u32, segment_size: u64) -> Self {
        let state = State {
            medium: Medium::blank(u64::from(slots) * segment_size),
            log: 1,
            epoch: 0,
            fail_writes: false,
            fail_syncs: false,
            failed: false,
            doubted: false,
            noting_until: 0,
            before: (false, false),
            hangs_until: 0,
            busy_until: None,
            was_faulty: false,
        };
        Self { ground, state: Arc::new(Mutex::new(state)), segment_size, slots }
    }

    /// What the superblock says before the pool is opened.
    pub fn look(&self) -> Look {
        let state = lock(&self.state);
        let is_there = !state.failed && state.epoch > 0;
        Look { log: is_there.then_some(LogId([state.log; 16])), doubted: state.doubted }
    }

    /// Opens the pool: another epoch, and another log if this one has failed.
    pub fn open(&self) -> Opened {
        let state = &mut *lock(&self.state);
        let created = state.failed || state.epoch == 0;
        if state.failed {
            state.failed = false;
            state.log += 1;
            state.medium = Medium::blank(state.medium.len());
        }
        state.epoch += 1;
        (state.doubted, state.noting_until, state.was_faulty) = (false, 0, false);
        Opened { created, log: LogId([state.log; 16]), epoch: state.epoch }
    }

    pub fn fail_writes(&self) {
        let state = &mut *lock(&self.state);
        (state.fail_writes, state.was_faulty) = (true, true);
    }

    pub fn fail_syncs(&self) {
        let state = &mut *lock(&self.state);
        (state.fail_syncs, state.was_faulty) = (true, true);
    }

    pub fn hang(&self, millis: u64) {
        let until = self.ground.now() + millis;
        let state = &mut *lock(&self.state);
        (state.hangs_until, state.was_faulty) = (until, true);
    }

    /// It is gone: the next boot makes another.
    pub fn lose(&self) {
        let state = &mut *lock(&self.state);
        (state.failed, state.was_faulty) = (true, true);
    }

    pub fn heal(&self) {
        let state = &mut *lock(&self.state);
        (state.fail_writes, state.fail_syncs) = (false, false);
        state.hangs_until = 0;
    }

    /// Whether it failed or hung since it was opened.
    pub fn was_faulty(&self) -> bool {
        lock(&self.state).was_faulty
    }

    /// The log as the next boot will find it, if it goes on with it. Changes nothing.
    pub fn peek(&self) -> Option<Opened> {
        let state = lock(&self.state);
        let goes_on = !state.failed && state.epoch > 0;
        goes_on.then(|| Opened { created: false, log: LogId([state.log; 16]), epoch: state.epoch + 1 })
    }

    /// What was done so far is over.
    pub fn rests(&self) {
        lock(&self.state).busy_until = Some(0);
    }

    /// Its user is gone: what was under way is done in part.
    pub fn abandoned(&self) {
        let now = self.ground.now();
        let state = &mut *lock(&self.state);
        if state.busy_until.is_some_and(|until| now < until) {
            let sectors = state.medium.interrupt();
            note!(self.ground, "log: interrupted, {sectors} sectors are as they were");
        }
        if now < state.noting_until && once_in(2) {
            (state.failed, state.doubted) = state.before;
        }
    }

    /// Of each sector that was not synced, the old or the new content stays: one in `keep_one_in` the new.
    pub fn power_cut(&self, keep_one_in: u64) {
        let sectors = lock(&self.state).medium.power_cut(keep_one_in);
        note!(self.ground, "log: power cut, {sectors} sectors not synced");
    }

    /// A sector is not what was written there last.
    pub fn rot(&self) {
        let rotten = lock(&self.state).medium.rot();
        note!(self.ground, "log: sector {rotten:?}");
    }
}

impl Keeper for LogDevice {
    fn write(&self, superblock: &Superblock) -> io::Result<()> {
        use writelog::State::{Doubted, Failed, FailedAndDoubted};
        let now = self.ground.now();
        let state = &mut *lock(&self.state);
        note!(self.ground, "log: superblock {:?}", superblock.state);
        if state.fail_writes || state.fail_syncs {
            return Err(failed());
        }
        let takes = 1 + below(4) + state.hangs_until.saturating_sub(now);
        seeded::lasts(takes);
        (state.before, state.noting_until) = ((state.failed, state.doubted), now + takes);
        state.failed = matches!(superblock.state, Failed | FailedAndDoubted);
        state.doubted = matches!(superblock.state, Doubted | FailedAndDoubted);
        Ok(())
    }
}

impl Segments for LogDevice {
    fn open(&self, slot: u32) -> io::Result<Arc<dyn SegmentIo>> {
        Ok(Arc::new(Segment { device: self.clone(), slot }))
    }

    fn forget_cached(&self, slot: u32) -> io::Result<()> {
        let start = u64::from(slot) * self.segment_size;
        lock(&self.state).medium.forget_cached(start, start + self.segment_size);
        Ok(())
    }

    fn call_takes(&self) -> Duration {
        let now = self.ground.now();
        let state = &mut *lock(&self.state);
        let takes = state.hangs_until.saturating_sub(now) + if once_in(32) { below(40) } else { below(3) };
        state.busy_until = Some(now + takes);
        Duration::from_millis(takes)
    }
}

struct Segment {
    device: LogDevice,
    slot: u32,
}

fn failed() -> io::Error {
    io::Error::from_raw_os_error(failure().0)
}

impl State {
    /// Something is done in the call under way, or in a new one.
    fn called(&mut self) {
        if self.busy_until.take().is_some() {
            self.medium.begin();
        }
    }
}

impl Segment {
    /// Where a byte of it lies on the disk.
    fn at(&self, offset: u64) -> u64 {
        u64::from(self.slot) * self.device.segment_size + offset
    }
}

impl SegmentIo for Segment {
    fn write_at(&self, data: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut bytes = data.iter().map(|slice| &**slice).collect::<Vec<_>>().concat();
        note!(self.device.ground, "log: write {} of {} at {offset}", self.slot, bytes.len());
        assert!(offset + bytes.len() as u64 <= self.device.segment_size, "a write beyond the segment's end");
        let state = &mut *lock(&self.device.state);
        state.called();
        if state.fail_writes {
            bytes.truncate(below(bytes.len() as u64) as usize);
        }
        state.medium.write(&bytes, self.at(offset));
        if state.fail_writes { Err(failed()) } else { Ok(()) }
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if offset + buffer.len() as u64 > self.device.segment_size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        lock(&self.device.state).medium.read(buffer, self.at(offset))
    }

    fn sync(&self) -> io::Result<()> {
        note!(self.device.ground, "log: sync {}", self.slot);
        let state = &mut *lock(&self.device.state);
        state.called();
        let fails = state.fail_syncs;
        state.medium.sync(self.at(0), self.at(self.device.segment_size), fails);
        if fails { Err(failed()) } else { Ok(()) }
    }
}

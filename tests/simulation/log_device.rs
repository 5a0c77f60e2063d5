//! The log's disk: segments of which a power cut leaves any part of what was not synced, and which fail, fill up and
//! hang. Its superblock is a number.

use std::collections::BTreeSet;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::ground::{Ground, below, lock, note, once_in};
use crate::format::log::LogId;
use crate::units::SECTOR;
use crate::writelog::{self, Keeper, Opened, SegmentIo, Segments, Superblock};

/// Clones are the same disk.
#[derive(Clone)]
pub struct LogDevice {
    ground: Ground,
    state: Arc<Mutex<State>>,
    pub segment_size: u64,
    pub slots: u32,
}

struct State {
    cached: Vec<Vec<u8>>,
    durable: Vec<Vec<u8>>,
    dirty: BTreeSet<(u32, u64)>,
    log: u8,
    epoch: u64,
    fail_writes: bool,
    fail_syncs: bool,
    /// The superblock says so: what is on the disk cannot be trusted.
    failed: bool,
    hangs_until: u64,
}

impl LogDevice {
    pub fn new(ground: Ground, slots: u32, segment_size: u64) -> Self {
        let blank = || vec![vec![0; segment_size as usize]; slots as usize];
        let state = State {
            cached: blank(),
            durable: blank(),
            dirty: BTreeSet::new(),
            log: 1,
            epoch: 0,
            fail_writes: false,
            fail_syncs: false,
            failed: false,
            hangs_until: 0,
        };
        Self { ground, state: Arc::new(Mutex::new(state)), segment_size, slots }
    }

    /// Opens the pool: another epoch, and another log if this one has failed.
    pub fn open(&self) -> Opened {
        let state = &mut *lock(&self.state);
        let created = state.failed || state.epoch == 0;
        if state.failed {
            state.failed = false;
            state.log += 1;
            state.dirty.clear();
            state.cached.iter_mut().chain(&mut state.durable).for_each(|segment| segment.fill(0));
        }
        state.epoch += 1;
        Opened { created, log: LogId([state.log; 16]), epoch: state.epoch }
    }

    pub fn fail_writes(&self) {
        lock(&self.state).fail_writes = true;
    }

    pub fn fail_syncs(&self) {
        lock(&self.state).fail_syncs = true;
    }

    pub fn hang(&self, millis: u64) {
        let until = self.ground.now() + millis;
        lock(&self.state).hangs_until = until;
    }

    pub fn heal(&self) {
        let state = &mut *lock(&self.state);
        (state.fail_writes, state.fail_syncs) = (false, false);
        state.hangs_until = 0;
    }

    /// Of each sector that was not synced, the old or the new content stays: one in `keep_one_in` the new.
    pub fn power_cut(&self, keep_one_in: u64) {
        let state = &mut *lock(&self.state);
        note!(self.ground, "log: power cut, {} sectors not synced", state.dirty.len());
        for (slot, sector) in std::mem::take(&mut state.dirty) {
            let at = (sector * SECTOR) as usize;
            let range = at..(at + SECTOR as usize).min(self.segment_size as usize);
            if once_in(keep_one_in) {
                state.durable[slot as usize][range.clone()].copy_from_slice(&state.cached[slot as usize][range]);
            }
        }
        // What a failed sync left in the cache alone is gone too.
        state.cached.clone_from(&state.durable);
    }
}

impl Keeper for LogDevice {
    fn write(&self, superblock: &Superblock) -> io::Result<()> {
        let state = &mut *lock(&self.state);
        if state.fail_writes || state.fail_syncs {
            return Err(failed());
        }
        note!(self.ground, "log: superblock {:?}", superblock.state);
        state.failed = matches!(superblock.state, writelog::State::Failed | writelog::State::FailedAndDoubted);
        Ok(())
    }
}

impl Segments for LogDevice {
    fn open(&self, slot: u32) -> io::Result<Arc<dyn SegmentIo>> {
        Ok(Arc::new(Segment { device: self.clone(), slot }))
    }

    fn call_takes(&self) -> Duration {
        let now = self.ground.now();
        let hangs = lock(&self.state).hangs_until.saturating_sub(now);
        Duration::from_millis(hangs + if once_in(32) { below(40) } else { below(3) })
    }
}

struct Segment {
    device: LogDevice,
    slot: u32,
}

fn failed() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

impl SegmentIo for Segment {
    fn write_at(&self, data: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut bytes: Vec<u8> = data.iter().flat_map(|slice| slice.iter().copied()).collect();
        note!(self.device.ground, "log: write {} of {} at {offset}", self.slot, bytes.len());
        let state = &mut *lock(&self.device.state);
        if state.fail_writes {
            bytes.truncate(below(bytes.len() as u64) as usize);
        }
        let at = offset as usize;
        state.cached[self.slot as usize][at..at + bytes.len()].copy_from_slice(&bytes);
        let sectors = offset / SECTOR..(offset + bytes.len() as u64).div_ceil(SECTOR);
        state.dirty.extend(sectors.map(|sector| (self.slot, sector)));
        if state.fail_writes { Err(failed()) } else { Ok(()) }
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let state = lock(&self.device.state);
        let bytes = state.cached[self.slot as usize].get(offset as usize..offset as usize + buffer.len());
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let state = &mut *lock(&self.device.state);
        note!(self.device.ground, "log: sync {}", self.slot);
        let fails = state.fail_syncs;
        let sectors: Vec<_> = state.dirty.range((self.slot, 0)..(self.slot + 1, 0)).copied().collect();
        for (slot, sector) in sectors {
            state.dirty.remove(&(slot, sector));
            let at = (sector * SECTOR) as usize;
            let range = at..(at + SECTOR as usize).min(self.device.segment_size as usize);
            // After an error the kernel holds the pages for clean, wherever they are.
            if !fails || once_in(2) {
                let (durable, cached) = (&mut state.durable[slot as usize], &state.cached[slot as usize]);
                durable[range.clone()].copy_from_slice(&cached[range]);
            }
        }
        if fails { Err(failed()) } else { Ok(()) }
    }
}

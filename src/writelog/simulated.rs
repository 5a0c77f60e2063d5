//! A disk for tests of the log: it remembers what is durable and what is not, and fails or hangs when told to.

use std::io::{self, IoSlice};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use super::lock;
use super::segments::{SegmentIo, Segments};
use crate::units::SECTOR;

/// The image of a disk: what each segment holds.
pub(super) type Image = Vec<Vec<u8>>;

/// Clones are the same disk.
#[derive(Clone)]
pub(super) struct SimulatedDisk(Arc<(Mutex<State>, Condvar)>);

pub(super) struct State {
    /// What survives a power cut for certain.
    pub durable: Image,
    /// What a reader sees.
    pub cached: Image,
    /// What was done, in order.
    pub calls: Vec<Call>,
    pub fail_writes: bool,
    pub fail_syncs: bool,
    /// Writes and syncs wait until this is taken back.
    pub hang: bool,
    pub waiting: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Write { slot: u32, offset: u64, length: u64 },
    Sync { slot: u32 },
}

impl Call {
    pub fn slot(self) -> u32 {
        match self {
            Self::Write { slot, .. } | Self::Sync { slot } => slot,
        }
    }
}

impl SimulatedDisk {
    pub fn new(image: Image) -> Self {
        let state = State {
            durable: image.clone(),
            cached: image,
            calls: Vec::new(),
            fail_writes: false,
            fail_syncs: false,
            hang: false,
            waiting: 0,
        };
        Self(Arc::new((Mutex::new(state), Condvar::new())))
    }

    pub fn blank(slots: u32, size: u64) -> Self {
        Self::new(vec![vec![0; size as usize]; slots as usize])
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0.0)
    }

    pub fn set_hang(&self, hang: bool) {
        self.state().hang = hang;
        self.0.1.notify_all();
    }

    /// Returns when a call hangs.
    pub fn wait_for_hang(&self) {
        while self.state().waiting == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// What a power cut leaves: of each sector that was written since its last sync, the old or the new content, as
    /// `keep` says.
    pub fn power_cut(&self, mut keep: impl FnMut(u32, u64) -> bool) -> Image {
        let state = self.state();
        let mut image = state.durable.clone();
        for (slot, (durable, cached)) in (0..).zip(image.iter_mut().zip(&state.cached)) {
            for (sector, (old, new)) in
                (0..).zip(durable.chunks_mut(SECTOR as usize).zip(cached.chunks(SECTOR as usize)))
            {
                if old != new && keep(slot, sector) {
                    old.copy_from_slice(new);
                }
            }
        }
        image
    }

    fn call(&self, call: Call) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        state.waiting += 1;
        while state.hang {
            state = self.0.1.wait(state).unwrap();
        }
        state.waiting -= 1;
        state.calls.push(call);
        let failing = match call {
            Call::Write { .. } => state.fail_writes,
            Call::Sync { .. } => state.fail_syncs,
        };
        if failing { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(state) }
    }
}

impl Segments for SimulatedDisk {
    fn open(&self, slot: u32) -> io::Result<Arc<dyn SegmentIo>> {
        if slot as usize >= self.state().cached.len() {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Arc::new(SimulatedSegment { disk: self.clone(), slot }))
    }
}

struct SimulatedSegment {
    disk: SimulatedDisk,
    slot: u32,
}

impl SegmentIo for SimulatedSegment {
    fn write_at(&self, data: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        let bytes: Vec<u8> = data.iter().flat_map(|slice| slice.iter().copied()).collect();
        let call = Call::Write { slot: self.slot, offset, length: bytes.len() as u64 };
        let mut state = self.disk.call(call)?;
        let at = offset as usize;
        state.cached[self.slot as usize][at..at + bytes.len()].copy_from_slice(&bytes);
        Ok(())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.disk.state();
        let segment = &state.cached[self.slot as usize];
        let bytes = segment.get(offset as usize..offset as usize + buffer.len());
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.call(Call::Sync { slot: self.slot })?;
        let slot = self.slot as usize;
        let State { durable, cached, .. } = &mut *state;
        durable[slot].copy_from_slice(&cached[slot]);
        Ok(())
    }
}

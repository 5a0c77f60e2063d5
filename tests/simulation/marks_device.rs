//! The disk of the marks: it fails for a while, and hangs.

use std::io;
use std::sync::{Arc, Mutex};

use super::ground::{Ground, below, failure, lock, note, once_in};
use super::medium::Medium;
use crate::marks::MarksIo;
use crate::random::seeded;

/// Clones are the same disk.
#[derive(Clone)]
pub struct MarksDevice {
    ground: Ground,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    medium: Medium,
    fail_writes_until: u64,
    tears: bool,
    fail_syncs_until: u64,
    hangs_until: u64,
    /// The call under way ends.
    busy_until: u64,
}

impl MarksDevice {
    pub fn new(ground: Ground) -> Self {
        Self { ground, state: Arc::default() }
    }

    /// Opens the file; what is read is what is on the disk.
    pub fn io(&self) -> Box<dyn MarksIo> {
        let medium = &mut lock(&self.state).medium;
        medium.forget_cached(0, medium.len());
        Box::new(self.clone())
    }

    /// Of a write that fails now a part is done, or of none.
    pub fn fail_writes(&self, millis: u64) {
        let state = &mut *lock(&self.state);
        (state.fail_writes_until, state.tears) = (self.ground.now() + millis, once_in(2));
    }

    pub fn fail_syncs(&self, millis: u64) {
        lock(&self.state).fail_syncs_until = self.ground.now() + millis;
    }

    pub fn hang(&self, millis: u64) {
        lock(&self.state).hangs_until = self.ground.now() + millis;
    }

    pub fn heal(&self) {
        let state = &mut *lock(&self.state);
        (state.fail_writes_until, state.fail_syncs_until, state.hangs_until) = (0, 0, 0);
    }

    /// Of what was not synced any part stays.
    pub fn power_cut(&self, keep_one_in: u64) {
        let sectors = lock(&self.state).medium.power_cut(keep_one_in);
        note!(self.ground, "marks: power cut, {sectors} sectors not synced");
    }

    /// A sector is not what was written there last.
    pub fn rot(&self) {
        let rotten = lock(&self.state).medium.rot();
        note!(self.ground, "marks: sector {rotten:?}");
    }

    /// What was done so far is over.
    pub fn rests(&self) {
        let state = &mut *lock(&self.state);
        state.medium.begin();
        state.busy_until = 0;
        seeded::lasted();
    }

    /// Its user is gone: what was under way is done in part.
    pub fn abandoned(&self) {
        let now = self.ground.now();
        let state = &mut *lock(&self.state);
        if now < state.busy_until {
            let sectors = state.medium.interrupt();
            note!(self.ground, "marks: interrupted, {sectors} sectors are as they were");
        }
    }

    /// Something is done in the call under way, or in a new one; it lasts as long as the disk hangs.
    fn called(&self, state: &mut State) -> u64 {
        let now = self.ground.now();
        if now >= state.busy_until {
            state.medium.begin();
            state.busy_until = now + 1 + below(6);
        }
        state.busy_until = state.busy_until.max(state.hangs_until);
        seeded::lasts(state.busy_until - now);
        now
    }
}

fn failed() -> io::Error {
    io::Error::from_raw_os_error(failure().0)
}

impl MarksIo for MarksDevice {
    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.state).medium.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        lock(&self.state).medium.set_len(len);
        Ok(())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        lock(&self.state).medium.read(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let state = &mut *lock(&self.state);
        let fails = self.called(state) < state.fail_writes_until;
        note!(self.ground, "marks: write {} at {offset}{}", bytes.len(), if fails { " fails" } else { "" });
        let length = match (fails, state.tears) {
            (false, _) => bytes.len(),
            (true, false) => 0,
            (true, true) => below(bytes.len() as u64) as usize,
        };
        if state.medium.len() < offset + bytes.len() as u64 {
            state.medium.set_len(offset + bytes.len() as u64);
        }
        state.medium.write(&bytes[..length], offset);
        if fails { Err(failed()) } else { Ok(()) }
    }

    fn sync(&self) -> io::Result<()> {
        let state = &mut *lock(&self.state);
        let fails = self.called(state) < state.fail_syncs_until;
        note!(self.ground, "marks: sync{}", if fails { " fails" } else { "" });
        let end = state.medium.len();
        state.medium.sync(0, end, fails);
        if fails { Err(failed()) } else { Ok(()) }
    }
}

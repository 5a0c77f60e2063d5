//! A file for tests: it remembers what is durable and what is not, and fails when told to.
//!
//! What was written since the last sync may or may not survive a power cut, each sector for itself; of a sector that
//! was written more than once, any of the versions may.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::MarksIo;
use crate::units::SECTOR;

const UNIT: usize = SECTOR as usize;

/// Clones are the same file.
#[derive(Clone, Default)]
pub(crate) struct SimulatedFile(Arc<Mutex<State>>);

/// What the file is, and what is done to it; all of it is a test's to change.
#[derive(Default)]
pub(crate) struct State {
    /// What a reader sees.
    pub cached: Vec<u8>,
    /// What survives a power cut for certain.
    pub durable: Vec<u8>,
    /// What was done since the last sync that succeeded, in order.
    pub unsynced: Vec<Write>,
    /// How many of these a failed sync has given up: they may have been done, and no later sync will do them.
    pub given_up: usize,
    /// Everything that was ever done, if this is wanted.
    pub history: Option<Vec<Call>>,
    /// That many writes (lengths too) succeed; then each fails with `error`.
    pub writes_left: Option<u64>,
    /// That many syncs succeed; then each fails with `error`.
    pub syncs_left: Option<u64>,
    /// The errno of what fails; EIO if there is none.
    pub error: Option<i32>,
    /// Writes and syncs wait until this is taken back.
    pub hangs: bool,
    /// Byte ranges that cannot be read.
    pub unreadable: Vec<std::ops::Range<u64>>,
    /// What becomes of the writes to come, the first of them first; when it is used up they are obeyed.
    pub fates: Vec<Fate>,
    pub syncs: u64,
    pub writes: u64,
}

#[derive(Clone, Debug)]
pub(crate) enum Write {
    Bytes { offset: u64, bytes: Vec<u8> },
    Length(u64),
}

#[derive(Clone, Debug)]
pub(crate) enum Call {
    Write(Write),
    Sync,
}

/// How a disk lies.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fate {
    Obeyed,
    /// Acknowledged, and not done.
    Lost,
    /// Of the write, `length` bytes from `from` on go to `to` of the file instead of where they belong.
    Misdirected {
        from: usize,
        length: usize,
        to: u64,
    },
}

impl SimulatedFile {
    /// A file with these bytes, all durable.
    pub fn new(image: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(State { cached: image.clone(), durable: image, ..State::default() })))
    }

    pub fn io(&self) -> Box<dyn MarksIo> {
        Box::new(self.clone())
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, when the file does not hang.
    fn awake(&self) -> MutexGuard<'_, State> {
        loop {
            let state = self.state();
            if !state.hangs {
                return state;
            }
            drop(state);
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// What a reader sees now: what the file is after the process was killed.
    pub fn image(&self) -> Vec<u8> {
        self.state().cached.clone()
    }

    /// What a power cut leaves. Of each sector of each unsynced write, `keep` (which write, which sector of the file)
    /// says whether it was done; of a change of the length, it is asked with sector 0.
    pub fn power_cut(&self, keep: impl FnMut(usize, u64) -> bool) -> Vec<u8> {
        let state = self.state();
        cut(&state.durable, &state.unsynced, keep)
    }
}

/// What a power cut makes of a durable image and what was written after it.
pub(crate) fn cut(durable: &[u8], unsynced: &[Write], mut keep: impl FnMut(usize, u64) -> bool) -> Vec<u8> {
    let mut image = durable.to_vec();
    for (number, write) in unsynced.iter().enumerate() {
        match write {
            Write::Length(length) if keep(number, 0) => image.resize(*length as usize, 0),
            Write::Length(_) => {}
            Write::Bytes { offset, bytes } => {
                let (mut at, mut rest) = (*offset as usize, &bytes[..]);
                while !rest.is_empty() {
                    let (part, after) = rest.split_at(rest.len().min(UNIT - at % UNIT));
                    if keep(number, (at / UNIT) as u64) {
                        put(&mut image, part, at);
                    }
                    at += part.len();
                    rest = after;
                }
            }
        }
    }
    image
}

/// Does to the image what the write says.
pub(crate) fn apply(image: &mut Vec<u8>, write: &Write) {
    match write {
        Write::Bytes { offset, bytes } => put(image, bytes, *offset as usize),
        Write::Length(length) => image.resize(*length as usize, 0),
    }
}

fn put(image: &mut Vec<u8>, bytes: &[u8], at: usize) {
    if image.len() < at + bytes.len() {
        image.resize(at + bytes.len(), 0);
    }
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

impl State {
    fn failure(&self) -> io::Error {
        io::Error::from_raw_os_error(self.error.unwrap_or(libc::EIO))
    }

    fn write(&mut self, write: Write) -> io::Result<()> {
        if let Some(left) = &mut self.writes_left {
            if *left == 0 {
                return Err(self.failure());
            }
            *left -= 1;
        }
        self.writes += 1;
        let fate = if self.fates.is_empty() { Fate::Obeyed } else { self.fates.remove(0) };
        let parts = match (fate, write) {
            (Fate::Obeyed, write) | (_, write @ Write::Length(_)) => vec![write],
            (Fate::Lost, _) => vec![],
            (Fate::Misdirected { from, length, to }, Write::Bytes { offset, bytes }) => {
                let (from, end) = (from.min(bytes.len()), (from + length).min(bytes.len()));
                vec![
                    Write::Bytes { offset, bytes: bytes[..from].to_vec() },
                    Write::Bytes { offset: to, bytes: bytes[from..end].to_vec() },
                    Write::Bytes { offset: offset + end as u64, bytes: bytes[end..].to_vec() },
                ]
            }
        };
        for part in parts {
            apply(&mut self.cached, &part);
            if let Some(history) = &mut self.history {
                history.push(Call::Write(part.clone()));
            }
            self.unsynced.push(part);
        }
        Ok(())
    }
}

impl MarksIo for SimulatedFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().cached.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.awake().write(Write::Length(len))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.state();
        let end = offset + buffer.len() as u64;
        if state.unreadable.iter().any(|range| range.start < end && offset < range.end) {
            return Err(state.failure());
        }
        let bytes = state.cached.get(offset as usize..end as usize).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.awake().write(Write::Bytes { offset, bytes: bytes.to_vec() })
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.awake();
        if let Some(left) = &mut state.syncs_left {
            if *left == 0 {
                state.given_up = state.unsynced.len();
                return Err(state.failure());
            }
            *left -= 1;
        }
        state.syncs += 1;
        if let Some(history) = &mut state.history {
            history.push(Call::Sync);
        }
        let State { durable, unsynced, given_up, .. } = &mut *state;
        unsynced.drain(std::mem::take(given_up)..).for_each(|write| apply(durable, &write));
        unsynced.clear();
        Ok(())
    }
}

//! What all parts of a world stand on: virtual time that goes on from one life of the gateway to the next, chance drawn
//! from the seed, the trace of all calls to devices, and the list of broken promises.

use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::disk::Errno;
use crate::random::seeded;

/// Calls that are remembered of a world that is replayed, up to the first broken promise.
const TAIL: usize = 50_000;

/// A number below `end`.
pub fn below(end: u64) -> u64 {
    seeded::draw().expect("a world has a seed") % end.max(1)
}

/// True once in so many.
pub fn once_in(times: u64) -> bool {
    below(times) == 0
}

/// What a disk says that fails, or on which no room is left.
pub fn failure() -> Errno {
    if once_in(3) { Errno::ENOSPC } else { Errno::EIO }
}

pub fn millis(end: u64) -> Duration {
    Duration::from_millis(below(end))
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

thread_local! {
    static PANICS: Cell<u64> = const { Cell::new(0) };
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Panics of this thread since the last time that this was asked; from the first call on they are counted.
pub fn panics() -> u64 {
    static COUNTING: std::sync::Once = std::sync::Once::new();
    COUNTING.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.set(PANICS.get() + 1);
            if !QUIET.get() {
                before(panic);
            }
        }));
    });
    PANICS.replace(0)
}

/// Panics of this thread are counted and not shown: they are what a test is looking for.
pub fn quiet(quiet: bool) {
    QUIET.set(quiet);
}

#[derive(Clone)]
pub struct Ground(Arc<Mutex<State>>);

struct State {
    /// When this life began: in the world's milliseconds, and by the runtime's clock.
    base: u64,
    began: Option<Instant>,
    hash: u64,
    calls: u64,
    line: String,
    tail: Option<VecDeque<String>>,
    broken: Vec<String>,
}

impl Ground {
    /// `remember` keeps the last calls in words.
    pub fn new(remember: bool) -> Self {
        Self(Arc::new(Mutex::new(State {
            base: 0,
            began: None,
            hash: 0xcbf2_9ce4_8422_2325,
            calls: 0,
            line: String::new(),
            tail: remember.then(VecDeque::new),
            broken: Vec::new(),
        })))
    }

    /// Inside of a runtime: its clock is the world's from now on.
    pub fn begin_life(&self) {
        lock(&self.0).began = Some(Instant::now());
    }

    /// Before the runtime ends; nobody lives for `pause`.
    pub fn end_life(&self, pause: Duration) {
        let now = self.now();
        let state = &mut *lock(&self.0);
        (state.base, state.began) = (now + pause.as_millis() as u64, None);
    }

    /// Milliseconds since the world began.
    pub fn now(&self) -> u64 {
        let state = lock(&self.0);
        state.base + state.began.map_or(0, |began| began.elapsed().as_millis() as u64)
    }

    /// Adds a call to the trace.
    pub fn note(&self, call: fmt::Arguments<'_>) {
        let now = self.now();
        let state = &mut *lock(&self.0);
        state.line.clear();
        // Writing to a string cannot fail.
        let _ = write!(state.line, "{now:>7} {call}");
        // FNV-1a.
        state.hash =
            state.line.bytes().fold(state.hash, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        state.calls += 1;
        // What led to the first broken promise tells more than what came of it.
        if let Some(tail) = &mut state.tail
            && state.broken.is_empty()
        {
            if tail.len() == TAIL {
                tail.pop_front();
            }
            tail.push_back(state.line.clone());
        }
    }

    pub fn broken(&self, promise: &str, what: fmt::Arguments<'_>) {
        self.note(format_args!("BROKEN {promise}: {what}"));
        lock(&self.0).broken.push(format!("{promise}: {what}"));
    }

    pub fn is_sound(&self) -> bool {
        lock(&self.0).broken.is_empty()
    }

    /// The hash of the trace, the number of calls in it, what was broken, and the last calls if they were remembered.
    pub fn verdict(&self) -> (u64, u64, Vec<String>, Vec<String>) {
        let state = lock(&self.0);
        let tail = state.tail.iter().flatten().cloned().collect();
        (state.hash, state.calls, state.broken.clone(), tail)
    }
}

/// Adds a line to the trace of a world.
macro_rules! note {
    ($ground:expr, $($words:tt)*) => { $ground.note(format_args!($($words)*)) };
}
/// Says that a promise is broken.
macro_rules! broken {
    ($ground:expr, $promise:expr, $($words:tt)*) => { $ground.broken($promise, format_args!($($words)*)) };
}
pub(crate) use {broken, note};

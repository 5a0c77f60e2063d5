//! How much and how long: concurrency and rate of uploads, time-outs, retries, and counters of what was done.
//!
//! The rate is kept by objects, not by bytes: an object starts when those before it would have passed at the rate,
//! and then goes as fast as the line. Small objects (chain entries) are counted but never wait: a recovery point
//! must not queue behind a first copy.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use super::error::RemoteError;
use crate::units::KIB;

/// What a user can set, and what tests make shorter.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Objects larger than 64 KiB that are uploaded at the same time; at least 1.
    pub parallel: usize,
    /// Bytes per second of uploads; none is unlimited.
    pub rate: Option<NonZeroU64>,
    /// How long the store may take to begin its answer, and what every transfer has on top of its bytes.
    pub answer: Duration,
    /// No new attempt at an operation begins after this; whoever called decides what then.
    pub patience: Duration,
    /// The first pause between two attempts; the following ones double.
    pub pause_min: Duration,
    pub pause_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            parallel: 8,
            rate: None,
            answer: Duration::from_secs(30),
            patience: Duration::from_secs(120),
            pause_min: Duration::from_millis(100),
            pause_max: Duration::from_secs(10),
        }
    }
}

/// Up to this length an object does not wait for others, bytes.
const SMALL: u64 = 64 * KIB;
/// Attempts at an operation whose answers were complete but wrong: an object that is truncated at rest stays so.
pub(super) const WRONG_ANSWERS_MAX: u32 = 4;
/// The slowest transfer that is waited for at first, bytes/s: 64 MiB in 17 minutes.
const FLOOR_START: u64 = 64 * KIB;
/// And after repeated time-outs: eight transfers share an uplink of 64 kbit/s.
const FLOOR_MIN: u64 = KIB;

/// How slow a transfer may be before it counts as stuck. Learns from time-outs, so that a line that many transfers
/// share is never given up for ever, while a black hole costs a bounded time.
pub(super) struct Pace {
    /// Bytes/s.
    floor: AtomicU64,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self { floor: AtomicU64::new(FLOOR_START) }
    }
    /// How long `length` bytes may take.
    pub(super) fn allowance(&self, answer: Duration, length: u64) -> Duration {
        answer + Duration::from_secs(length / self.floor.load(Relaxed))
    }
    pub(super) fn timed_out(&self) {
        self.floor.store((self.floor.load(Relaxed) / 2).max(FLOOR_MIN), Relaxed);
    }
    pub(super) fn done(&self, took: Duration, allowance: Duration) {
        if took < allowance / 2 {
            self.floor.store((self.floor.load(Relaxed) * 2).min(FLOOR_START), Relaxed);
        }
    }
}

/// Admits uploads.
pub(super) struct Gate {
    slots: Semaphore,
    rate: Option<NonZeroU64>,
    /// When all that was admitted will have passed at the rate.
    passed: Mutex<Instant>,
}

impl Gate {
    pub(super) fn new(limits: &Limits) -> Self {
        let slots = limits.parallel.clamp(1, Semaphore::MAX_PERMITS);
        Self { slots: Semaphore::new(slots), rate: limits.rate, passed: Mutex::new(Instant::now()) }
    }

    /// Waits until `length` bytes may be sent. The slot is held until the permit is dropped.
    pub(super) async fn admit(&self, length: u64) -> Option<SemaphorePermit<'_>> {
        let waits = length > SMALL;
        // The semaphore is never closed; without a permit the upload would merely not be counted.
        let permit = if waits { self.slots.acquire().await.ok() } else { None };
        if let Some(start) = self.charge(length).filter(|_| waits) {
            tokio::time::sleep_until(start).await;
        }
        permit
    }

    /// When `length` more bytes may start.
    fn charge(&self, length: u64) -> Option<Instant> {
        let rate = self.rate?;
        let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        let start = (*passed).max(Instant::now());
        let micros = u128::from(length) * 1_000_000 / u128::from(rate.get());
        let lasts = Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX));
        // At one byte a second the sum may leave the clock's range; the time known so far is then kept.
        *passed = start.checked_add(lasts).unwrap_or(start);
        Some(start)
    }
}

/// Counters for status; monotone since start.
#[derive(Default)]
pub struct Stats {
    /// Bytes of objects that the store has acknowledged.
    pub bytes_up: AtomicU64,
    pub bytes_down: AtomicU64,
    pub puts: AtomicU64,
    pub gets: AtomicU64,
    pub retries: AtomicU64,
    last_error: Mutex<Option<LastError>>,
}

/// The most recent failed attempt, retried or not.
#[derive(Clone, Debug)]
pub struct LastError {
    pub message: String,
    pub at: Instant,
}

impl Stats {
    pub fn last_error(&self) -> Option<LastError> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn failed(&self, error: &RemoteError) {
        let error = LastError { message: error.with_causes(), at: Instant::now() };
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_was_too_slow_gets_more_time_and_a_fast_one_less_again() {
        let pace = Pace::new();
        let first = pace.allowance(Duration::ZERO, 1 << 26);
        pace.timed_out();
        assert_eq!(pace.allowance(Duration::ZERO, 1 << 26), first * 2);
        for _ in 0..100 {
            pace.timed_out();
        }
        assert_eq!(pace.allowance(Duration::ZERO, FLOOR_MIN), Duration::from_secs(1));
        for _ in 0..100 {
            pace.done(Duration::from_secs(1), Duration::from_secs(3));
        }
        assert_eq!(pace.allowance(Duration::ZERO, 1 << 26), first);
    }

    #[test]
    fn an_object_starts_when_those_before_it_would_have_passed() {
        let rate = NonZeroU64::new(1000);
        let gate = Gate::new(&Limits { rate, ..Limits::default() });
        let first = gate.charge(500).unwrap();
        assert_eq!(gate.charge(1).unwrap() - first, Duration::from_millis(500));
        assert_eq!(gate.charge(1).unwrap() - first, Duration::from_millis(501));
        assert!(Gate::new(&Limits::default()).charge(u64::MAX).is_none());
    }
}

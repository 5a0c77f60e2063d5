//! Compares a volume with its copy again and again, each time spread over a period, and repairs what differs.
//!
//! Owns: the schedule and what it remembers. Does not own: comparing ([`super::compare`]), keeping what is remembered.
//! Crash: it goes on from the last window that was kept, or begins anew where that is lost.

use std::num::NonZeroU64;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{error, info};

use super::compare::{Comparer, Ended, Progress, WINDOW, Windows};
use super::upload::with_causes;
use crate::clock::Clock;
use crate::units::{MIB, REGION, Span, Timestamp};

/// Slower would gain nothing: a small volume is done early instead.
const RATE_MIN: u64 = MIB;
/// A window lasts about so long, so that an interruption costs no more.
const WINDOW_SECONDS: u64 = 300;
/// Before a copy that cannot be read is tried again.
const COPY_PAUSE: Duration = Duration::from_secs(3600);
/// The clock is looked at this often between two rounds: it may be set.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// What a scrub remembers over restarts. Times are milliseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// When the round began; none before the first.
    pub begun: Option<u64>,
    /// All before this byte is compared in this round.
    pub next: u64,
    /// Bytes that differed in this round.
    pub differing: u64,
    /// When the last whole round ended.
    pub finished: Option<u64>,
}

/// As the status has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubStatus {
    /// Bytes of this round, of all.
    pub compared: u64,
    pub total: u64,
    /// Bytes that differed in this round; or, between two, in the last.
    pub differing: u64,
    /// The end of the last whole round.
    pub finished: Option<Timestamp>,
}

/// A schedule.
pub struct Scrub {
    /// From the beginning of a round to that of the next.
    pub period: Duration,
    pub clock: Clock,
    /// Of an earlier run.
    pub kept: Kept,
    /// Keeps it for a later run; called after each window.
    pub keep: Box<dyn Fn(Kept) + Send + Sync>,
}

impl Scrub {
    /// Runs until the comparer is stopped, or nothing can be compared any more.
    pub async fn run(self, comparer: Comparer) {
        match comparer.unless_stopped(self.rounds(&comparer)).await {
            Ok(()) | Err(Ended::Stopping | Ended::Fenced) => {}
            Err(error) => {
                let error = with_causes(&error);
                error!(volume = comparer.volume().name(), error, "the scheduled comparison has ended");
            }
        }
    }

    async fn rounds(mut self, comparer: &Comparer) -> Result<(), Ended> {
        let size = comparer.volume().size();
        // A store of another size is another round.
        self.kept.next = self.kept.next.min(size) / REGION * REGION;
        loop {
            self.show(comparer);
            self.round(comparer, size).await?;
            let now = self.clock.now();
            self.kept = Kept { finished: Some(now.0), next: size, ..self.kept };
            (self.keep)(self.kept);
            self.show(comparer);
            let differing = self.kept.differing;
            info!(volume = comparer.volume().name(), differing, "the scheduled comparison is through");
            while !self.left().is_zero() {
                sleep(self.left().min(LOOK_EVERY)).await;
            }
            self.kept = Kept { begun: None, next: 0, differing: 0, ..self.kept };
        }
    }

    /// Until the round should be over; a clock that was set back makes none longer than a period.
    fn left(&self) -> Duration {
        let begun = Timestamp(self.kept.begun.unwrap_or(0));
        self.period.saturating_sub(self.clock.now().since(begun))
    }

    async fn round(&mut self, comparer: &Comparer, size: u64) -> Result<(), Ended> {
        let inner = comparer.inner();
        self.kept.begun.get_or_insert(self.clock.now().0);
        let mut windows = Windows::new(&inner.volume, &inner.report, None, 1);
        let told = watch::Sender::new(Progress::default());
        while self.kept.next < size {
            let rate = self.rate(size - self.kept.next, inner.rate);
            windows.set_rate(Some(rate));
            let length = (rate.get() * WINDOW_SECONDS / REGION * REGION).clamp(REGION, WINDOW);
            let span = Span::new(self.kept.next, (self.kept.next + length).min(size));
            match comparer.compare_window(&mut windows, span, &told).await {
                Ok(found) => {
                    self.kept.differing += found.different.bytes();
                    self.kept.next = span.end;
                    (self.keep)(self.kept);
                    self.show(comparer);
                }
                Err(Ended::Copy(error)) => {
                    let error = with_causes(&error);
                    error!(
                        volume = comparer.volume().name(),
                        error, "the copy cannot be compared: verify the newest point"
                    );
                    sleep(COPY_PAUSE).await;
                }
                Err(ended) => return Err(ended),
            }
        }
        Ok(())
    }

    /// Such that `bytes` take what is left of the period, within `limit`. One that is late does not hurry more than a
    /// tenth of the period asks for: it may be late since the gateway was down.
    fn rate(&self, bytes: u64, limit: Option<NonZeroU64>) -> NonZeroU64 {
        let seconds = self.left().max(self.period / 10).as_secs().max(1);
        let rate = NonZeroU64::new((bytes / seconds).max(RATE_MIN)).expect("not less than the minimum");
        limit.map_or(rate, |limit| rate.min(limit))
    }

    fn show(&self, comparer: &Comparer) {
        let Kept { next, differing, finished, .. } = self.kept;
        let total = comparer.volume().size();
        let status = ScrubStatus { compared: next, total, differing, finished: finished.map(Timestamp) };
        *comparer.inner().scrub.lock() = Some(status);
    }
}

impl Comparer {
    /// How far the scheduled comparison is; none if there is none.
    pub fn scrub_status(&self) -> Option<ScrubStatus> {
        *self.inner().scrub.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::GIB;

    fn scrub(period: Duration, now: u64, begun: u64) -> Scrub {
        let kept = Kept { begun: Some(begun), ..Kept::default() };
        Scrub { period, clock: Clock::from_fn(move || Timestamp(now)), kept, keep: Box::new(|_| {}) }
    }

    #[test]
    fn a_round_is_spread_over_what_is_left_of_its_period() {
        let hour = Duration::from_secs(3600);
        let limit = NonZeroU64::new(8 * MIB);
        let rate = |scrub: Scrub, bytes| scrub.rate(bytes, limit).get();
        assert_eq!(rate(scrub(hour, 1000, 1000), 10 * GIB), 10 * GIB / 3600);
        assert_eq!(rate(scrub(hour, 1_801_000, 1000), 10 * GIB), 10 * GIB / 1800, "the half of it is over");
        assert_eq!(rate(scrub(hour, 9_000_000, 1000), 10 * GIB), 8 * MIB, "late, and held by the limit");
        assert_eq!(rate(scrub(hour, 9_000_000, 1000), GIB), GIB / 360, "late, and not in a hurry");
        assert_eq!(rate(scrub(hour, 1000, 1000), MIB), RATE_MIN);
        assert_eq!(scrub(hour, 0, 5000).left(), hour, "a clock that was set back");
    }
}

//! A histogram of durations that any number of threads add to at once, none waiting for another.
//!
//! Its buckets are log-linear: one for all below 1 µs, then four to each doubling up to 2^26 µs (67.1 s), and one for
//! what is longer. A bucket is at most a quarter as wide as its lower bound, and a quantile is told as the upper bound
//! of its bucket: between 1 µs and 67.1 s it is never too low, and at most a quarter too high.
//!
//! Counts only grow, and are read one after the other: while others add, a sum may lack what they added last.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Below it durations are not told apart: so long do requests take that cost nothing worth looking at.
pub const SHORTEST: Duration = Duration::from_micros(1);
/// From it on durations are not told apart: whoever waits for more than a minute has other means to notice.
pub const LONGEST: Duration = Duration::from_micros(1 << DOUBLINGS);

const DOUBLINGS: usize = 26;
const BUCKETS_PER_DOUBLING: usize = 4;
const BUCKETS: usize = 1 + DOUBLINGS * BUCKETS_PER_DOUBLING + 1;
/// The width of the buckets of the first doubling, in nanoseconds.
const STEP: u64 = 250;

const _: () = assert!(STEP as u128 * BUCKETS_PER_DOUBLING as u128 == SHORTEST.as_nanos());

pub struct Histogram([AtomicU64; BUCKETS]);

impl Default for Histogram {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; BUCKETS])
    }
}

impl Histogram {
    pub fn add(&self, duration: Duration) {
        self.0[bucket(duration)].fetch_add(1, Ordering::Relaxed);
    }

    pub fn counts(&self) -> Counts {
        Counts(std::array::from_fn(|bucket| self.0[bucket].load(Ordering::Relaxed)))
    }
}

/// What a histogram held at some time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts([u64; BUCKETS]);

impl Counts {
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// What the given part of all (0 to 1) did not exceed; [`LONGEST`] stands for whatever is longer too. None if
    /// nothing was counted.
    pub fn quantile(&self, part: f64) -> Option<Duration> {
        let rank = (self.total() as f64 * part).ceil().max(1.0) as u64;
        let mut counted = 0;
        let bucket = self.0.iter().position(|count| {
            counted += count;
            counted >= rank
        })?;
        Some(upper_bound(bucket).unwrap_or(LONGEST))
    }

    /// The buckets that are not empty, shortest first: what lies below this bound and not below an earlier one, and how
    /// often. The last has no bound if there is anything from [`LONGEST`] on.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<Duration>, u64)> {
        self.0.iter().enumerate().filter(|&(_, &count)| count > 0).map(|(bucket, &count)| (upper_bound(bucket), count))
    }
}

fn bucket(duration: Duration) -> usize {
    let whole = duration.as_secs().saturating_mul(1_000_000_000 / STEP);
    let steps = whole.saturating_add(u64::from(duration.subsec_nanos()) / STEP);
    let Some(doubling) = (steps / BUCKETS_PER_DOUBLING as u64).checked_ilog2() else { return 0 };
    // The highest three bits: 4 to 7.
    let within = (steps >> doubling) as usize - BUCKETS_PER_DOUBLING;
    (1 + doubling as usize * BUCKETS_PER_DOUBLING + within).min(BUCKETS - 1)
}

/// Exclusive; none for the last bucket.
fn upper_bound(bucket: usize) -> Option<Duration> {
    match bucket {
        0 => Some(SHORTEST),
        _ if bucket == BUCKETS - 1 => None,
        _ => {
            let (doubling, within) = ((bucket - 1) / BUCKETS_PER_DOUBLING, (bucket - 1) % BUCKETS_PER_DOUBLING);
            let steps = (BUCKETS_PER_DOUBLING as u64 + within as u64 + 1) << doubling;
            Some(Duration::from_nanos(steps * STEP))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NANO: Duration = Duration::from_nanos(1);

    #[test]
    fn each_bucket_begins_where_the_one_before_ends_and_is_at_most_a_quarter_wide() {
        let mut begin = Duration::ZERO;
        for index in 0..BUCKETS - 1 {
            let end = upper_bound(index).unwrap();
            assert_eq!((bucket(begin), bucket(end - NANO)), (index, index), "{begin:?} to {end:?}");
            assert!(begin.is_zero() || end - begin <= begin / 4, "{begin:?} to {end:?}");
            begin = end;
        }
        assert_eq!(begin, LONGEST);
        assert_eq!((bucket(LONGEST), bucket(Duration::MAX)), (BUCKETS - 1, BUCKETS - 1));
    }

    #[test]
    fn a_quantile_is_never_too_low_and_at_most_a_quarter_too_high() {
        let histogram = Histogram::default();
        // From 1 µs to about a minute, each 0.1 % longer than the one before.
        let mut durations = vec![SHORTEST];
        while let Some(next) = durations.last().map(|last| last.mul_f64(1.001)).filter(|next| *next < LONGEST) {
            durations.push(next);
        }
        durations.iter().for_each(|&duration| histogram.add(duration));
        let counts = histogram.counts();
        for part in [0.0, 0.01, 0.25, 0.5, 0.9, 0.99, 0.999, 1.0] {
            let rank = (durations.len() as f64 * part).ceil().max(1.0) as usize;
            let (exact, told) = (durations[rank - 1], counts.quantile(part).unwrap());
            assert!(told > exact && told <= exact + exact / 4, "{part}: {told:?} for {exact:?}");
        }
    }

    #[test]
    fn nothing_has_no_quantile_and_what_is_too_long_for_a_bound_is_counted() {
        let histogram = Histogram::default();
        assert_eq!(histogram.counts().quantile(0.5), None);
        histogram.add(Duration::ZERO);
        histogram.add(Duration::from_secs(3600));
        let counts = histogram.counts();
        assert_eq!((counts.quantile(0.5), counts.quantile(1.0)), (Some(SHORTEST), Some(LONGEST)));
        assert_eq!(counts.buckets().collect::<Vec<_>>(), [(Some(SHORTEST), 1), (None, 1)]);
    }

    #[test]
    fn adding_at_once_loses_nothing() {
        const EACH: u64 = 100_000;
        let histogram = Histogram::default();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let histogram = &histogram;
                scope.spawn(move || (0..EACH).for_each(|at| histogram.add(NANO * ((at + thread) % 5000) as u32)));
            }
        });
        let counts = histogram.counts();
        assert_eq!(counts.total(), 4 * EACH);
        assert_eq!(counts.buckets().next(), Some((Some(SHORTEST), 4 * EACH / 5)), "a fifth of them is below 1 µs");
    }
}

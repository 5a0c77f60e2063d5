//! When a log will be full, at the rate at which it fills now.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// The rate is that over so long: longer than an epoch, so that a publication does not hide the growth behind it.
const WINDOW: Duration = Duration::from_secs(60);
/// Between two samples.
const SAMPLE_EVERY: Duration = Duration::from_secs(2);
/// A forecast needs as much, and beyond [`FORECAST_MAX`] says nothing.
const WINDOW_MIN: Duration = Duration::from_secs(10);
const FORECAST_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// What was unpublished, and when; oldest first.
#[derive(Default)]
pub struct Forecast(VecDeque<(Instant, u64)>);

impl Forecast {
    /// Takes note of the unpublished bytes; may be called as often as one likes.
    pub fn sample(&mut self, now: Instant, unpublished: u64) {
        if self.0.back().is_none_or(|&(at, _)| now - at >= SAMPLE_EVERY) {
            self.0.push_back((now, unpublished));
        }
        while self.0.get(1).is_some_and(|&(at, _)| now - at >= WINDOW) {
            self.0.pop_front();
        }
    }

    /// The time until `capacity` bytes are unpublished; none if they do not grow.
    pub fn full_in(&self, capacity: u64) -> Option<Duration> {
        let (&(begun, before), &(now, unpublished)) = (self.0.front()?, self.0.back()?);
        let window = now - begun;
        let grown = unpublished.checked_sub(before).filter(|&grown| grown > 0 && window >= WINDOW_MIN)?;
        let rate = grown as f64 / window.as_secs_f64();
        let left = Duration::try_from_secs_f64(capacity.saturating_sub(unpublished) as f64 / rate).ok()?;
        (left <= FORECAST_MAX).then_some(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_grows_is_full_when_its_rate_says_and_another_never() {
        let begun = Instant::now();
        let mut forecast = Forecast::default();
        for second in 0..=20 {
            forecast.sample(begun + Duration::from_secs(second), 1000 + second * 10);
        }
        assert_eq!(forecast.full_in(2200), Some(Duration::from_secs(100)));
        for second in 21..=120 {
            forecast.sample(begun + Duration::from_secs(second), 1200);
        }
        assert_eq!(forecast.full_in(2200), None);
    }

    #[test]
    fn two_looks_in_a_moment_are_no_forecast() {
        let begun = Instant::now();
        let mut forecast = Forecast::default();
        forecast.sample(begun, 0);
        forecast.sample(begun + Duration::from_secs(3), 1 << 30);
        assert_eq!(forecast.full_in(1 << 31), None);
    }
}

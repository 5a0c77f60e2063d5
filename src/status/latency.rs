//! How long a volume's clients wait, as the status tells it: per kind of operation, how long for the store, and what
//! the gateway added. [`crate::volume::latency`] says what belongs to which, [`crate::volume::histogram`] how exact the
//! figures are.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::volume::histogram::Counts;
use crate::volume::latency::{Latencies, Latency};

/// Of the operations since the start.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LatencyStatus {
    pub reads: OperationsStatus,
    pub writes: OperationsStatus,
    pub flushes: OperationsStatus,
    /// Trims and zeroes.
    pub trim_zero: OperationsStatus,
}

/// Operations of one kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OperationsStatus {
    pub operations: u64,
    pub store: TimesStatus,
    pub added: TimesStatus,
}

/// Times in microseconds: the upper bounds of their buckets, thus up to a quarter too high, but never too low. 1 stands
/// for everything below 1 µs, 67108864 for everything from 58.7 s on. None where there was no operation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TimesStatus {
    pub median_us: Option<f64>,
    pub p99_us: Option<f64>,
    pub max_us: Option<f64>,
    /// Those that are not empty, shortest first.
    pub buckets: Vec<BucketStatus>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BucketStatus {
    /// Exclusive, microseconds; none in the last bucket, of what took 67.1 s or longer.
    pub below_us: Option<f64>,
    /// Operations below that and in no bucket before.
    pub operations: u64,
}

impl From<&Latencies> for LatencyStatus {
    fn from(latencies: &Latencies) -> Self {
        Self {
            reads: (&latencies.reads).into(),
            writes: (&latencies.writes).into(),
            flushes: (&latencies.flushes).into(),
            trim_zero: (&latencies.erasures).into(),
        }
    }
}

impl From<&Latency> for OperationsStatus {
    fn from(latency: &Latency) -> Self {
        let store = latency.store.counts();
        Self { operations: store.total(), store: times(&store), added: times(&latency.added.counts()) }
    }
}

fn times(counts: &Counts) -> TimesStatus {
    let quantile = |part| counts.quantile(part).map(microseconds);
    TimesStatus {
        median_us: quantile(0.5),
        p99_us: quantile(0.99),
        max_us: quantile(1.0),
        buckets: counts
            .buckets()
            .map(|(below, operations)| BucketStatus { below_us: below.map(microseconds), operations })
            .collect(),
    }
}

/// Exact for the bounds of buckets, which are whole quarters.
fn microseconds(duration: Duration) -> f64 {
    duration.as_nanos() as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Monitoring systems read it.
    #[test]
    fn the_document_keeps_its_names_and_units() {
        let latency = Latency::default();
        for micros in [0, 3, 3, 1700] {
            latency.store.add(Duration::from_micros(micros));
        }
        latency.added.add(Duration::from_secs(100));
        assert_eq!(
            serde_json::to_value(OperationsStatus::from(&latency)).unwrap(),
            serde_json::json!({
                "operations": 4,
                "store": {
                    "median_us": 3.5, "p99_us": 1792.0, "max_us": 1792.0,
                    "buckets": [
                        {"below_us": 1.0, "operations": 1},
                        {"below_us": 3.5, "operations": 2},
                        {"below_us": 1792.0, "operations": 1},
                    ],
                },
                "added": {
                    "median_us": 67_108_864.0, "p99_us": 67_108_864.0, "max_us": 67_108_864.0,
                    "buckets": [{"below_us": null, "operations": 1}],
                },
            })
        );
    }

    #[test]
    fn a_volume_without_operations_has_no_times() {
        let status = LatencyStatus::from(&Latencies::default());
        assert_eq!(status, LatencyStatus::default());
        assert_eq!(status.reads.store.max_us, None);
    }
}

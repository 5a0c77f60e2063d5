//! The status in Prometheus' text format (version 0.0.4), for whatever collects it: a few lines for each volume, its
//! name as the label `volume`.
//!
//! Times are histograms in seconds. Their buckets end at the doublings of a microsecond, always the same ones: four of
//! [`super::latency`]'s make one.

use std::fmt::{Display, Write};

use super::latency::BucketStatus;
use super::{OperationsStatus, Status, VolumeStatus};
use crate::units::Timestamp;
use crate::volume::State;
use crate::volume::histogram::LONGEST;

/// One of each name.
const STATES: [State; 5] = [State::Resyncing, State::Shadowing, State::Overflowed, State::Untracked, State::Fenced];
/// Of a microsecond, to the end of the last bucket that has one.
const DOUBLINGS: u32 = LONGEST.as_micros().ilog2();

/// Name, kind and meaning of a figure, and what it is for a volume: none where there is none.
type Figure = (&'static str, &'static str, &'static str, fn(&VolumeStatus) -> Option<f64>);

const FIGURES: [Figure; 16] = [
    ("umbra_volume_size_bytes", "gauge", "Size of the volume.", |v| Some(v.size as f64)),
    ("umbra_lag_bytes", "gauge", "Written and in no entry of the chain.", |v| Some(v.lag_bytes as f64)),
    ("umbra_lag_writes", "gauge", "Writes that are in no entry of the chain.", |v| Some(v.lag_writes as f64)),
    ("umbra_lag_seconds", "gauge", "Age of the oldest change that is in no recovery point.", |v| Some(v.lag_seconds)),
    ("umbra_late", "gauge", "1 if that age is over max_age.", |v| Some(f64::from(u8::from(v.late)))),
    ("umbra_newest_point_timestamp_seconds", "gauge", "Time of the newest recovery point.", |v| {
        let time = Timestamp::parse(&v.newest_point.as_ref()?.time)?;
        Some(time.0 as f64 / 1000.0)
    }),
    ("umbra_log_used_bytes", "gauge", "Used of the log.", |v| Some(v.log.used as f64)),
    ("umbra_log_size_bytes", "gauge", "Size of the log.", |v| Some(v.log.size as f64)),
    ("umbra_scan_done_bytes", "gauge", "Done of the scan under way.", |v| Some(v.scanned as f64)),
    ("umbra_scan_size_bytes", "gauge", "Size of that scan; as much as is done if there is none.", |v| {
        Some(v.total as f64)
    }),
    ("umbra_hot_bytes", "gauge", "Regions that a crash would have read again.", |v| Some(v.hot as f64)),
    ("umbra_reread_bytes_total", "counter", "Read of the store by scans.", |v| Some(v.reread as f64)),
    ("umbra_uploaded_bytes_total", "counter", "Uploaded.", |v| Some(v.uploaded as f64)),
    ("umbra_points_total", "counter", "Recovery points published.", |v| Some(v.points as f64)),
    ("umbra_differing_bytes_total", "counter", "Differed from the copy though no client had changed it.", |v| {
        Some(v.differing as f64)
    }),
    ("umbra_last_error", "gauge", "1 if the remote failed last, or nothing is published any more.", |v| {
        Some(f64::from(u8::from(v.last_error.is_some())))
    }),
];

/// All of it, a line for each figure.
pub fn text(status: &Status) -> String {
    let mut text = Text::default();
    for (name, kind, help, figure) in FIGURES {
        text.family(name, kind, help);
        for volume in &status.volumes {
            if let Some(value) = figure(volume) {
                text.sample(name, &[("volume", &volume.name)], value);
            }
        }
    }
    text.family("umbra_volume_state", "gauge", "1 for the state that the volume is in, 0 for the others.");
    for volume in &status.volumes {
        for state in STATES.map(State::name) {
            let labels = [("volume", volume.name.as_str()), ("state", state)];
            text.sample("umbra_volume_state", &labels, f64::from(u8::from(volume.state == state)));
        }
    }
    let help = "How long operations took: the store's part, and what the gateway added. \
                The sum is made from the buckets' middles.";
    text.family("umbra_operation_seconds", "histogram", help);
    for VolumeStatus { name, latency, .. } in &status.volumes {
        let kinds = [
            ("read", &latency.reads),
            ("write", &latency.writes),
            ("flush", &latency.flushes),
            ("trim_zero", &latency.trim_zero),
        ];
        for (operation, OperationsStatus { store, added, .. }) in kinds {
            for (part, times) in [("store", store), ("added", added)] {
                text.histogram(&[("volume", name), ("operation", operation), ("part", part)], &times.buckets);
            }
        }
    }
    text.0
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escaped(value))).collect();
        let _ = writeln!(self.0, "{name}{{{}}} {value}", labels.join(","));
    }

    fn histogram(&mut self, labels: &[(&str, &str)], buckets: &[BucketStatus]) {
        let mut rest = buckets.iter().peekable();
        let (mut count, mut sum) = (0, 0.0);
        let ends = (0..=DOUBLINGS).map(|doublings| f64::from(1u32 << doublings));
        for end in ends.map(Some).chain([None]) {
            while let Some(bucket) =
                rest.next_if(|bucket| end.is_none_or(|end| bucket.below_us.is_some_and(|below| below <= end)))
            {
                count += bucket.operations;
                sum += middle_us(bucket.below_us) * bucket.operations as f64;
            }
            let end = end.map_or("+Inf".to_owned(), |end| (end / 1e6).to_string());
            self.sample("umbra_operation_seconds_bucket", &[labels, &[("le", &end)]].concat(), count);
        }
        self.sample("umbra_operation_seconds_sum", labels, sum / 1e6);
        self.sample("umbra_operation_seconds_count", labels, count);
    }
}

/// Of a bucket that ends there: it is a quarter of a doubling wide.
fn middle_us(below_us: Option<f64>) -> f64 {
    match below_us {
        Some(below) if below > 1.0 => below - (below.log2().ceil() - 1.0).exp2() / 8.0,
        Some(below) => below / 2.0,
        None => f64::from(1u32 << DOUBLINGS),
    }
}

/// A label's value.
fn escaped(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(below_us: Option<f64>, operations: u64) -> BucketStatus {
        BucketStatus { below_us, operations }
    }

    #[test]
    fn buckets_add_up_to_those_of_doublings() {
        let mut text = Text::default();
        let all =
            [(Some(1.0), 1), (Some(1.25), 2), (Some(2.0), 4), (Some(2.5), 8), (Some(67_108_864.0), 16), (None, 32)];
        text.histogram(&[("part", "store")], &all.map(|(below, operations)| bucket(below, operations)));
        let value = |end: &str| {
            let start = format!("umbra_operation_seconds_bucket{{part=\"store\",le=\"{end}\"}} ");
            text.0.lines().find_map(|line| line.strip_prefix(&start)).map(|count| count.parse::<u64>().unwrap())
        };
        let ends = ["0.000001", "0.000002", "0.000004", "33.554432", "67.108864", "+Inf"];
        assert_eq!(ends.map(value), [1, 7, 15, 15, 31, 63].map(Some));
        assert_eq!(text.0.lines().filter(|line| line.contains("_bucket")).count(), 28);
        assert!(text.0.ends_with("umbra_operation_seconds_count{part=\"store\"} 63\n"), "{}", text.0);
    }

    #[test]
    fn a_bucket_has_its_middle_in_it() {
        let middles = [Some(1.0), Some(1.25), Some(2.0), Some(2.5), Some(4.0)].map(middle_us);
        assert_eq!(middles, [0.5, 1.125, 1.875, 2.25, 3.75]);
    }

    #[test]
    fn what_is_no_part_of_a_labels_value_is_escaped() {
        assert_eq!(escaped("a\"b\\c\nd"), r#"a\"b\\c\nd"#);
    }
}

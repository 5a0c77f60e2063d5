//! `umbra status`: how the volumes of a running gateway are, as it says itself.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval};

use super::StatusArgs;
use super::failure::Failure;
use super::output::{human_duration, table};
use super::stops::Stops;
use crate::config;
use crate::status::{OperationsStatus, ScrubStatus, Status, StatusError, VolumeStatus, ask, metrics};
use crate::units::{Timestamp, human_bytes};

/// Between two looks of `--watch`.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The scan's rate is that of the last ten seconds or so.
const RATE_MEMORY: f64 = 10.0;
/// Longer than that is not a forecast.
const FORECAST_MAX: f64 = 30.0 * 86_400.0;

/// Control sequences (ECMA-48, 8.3; DEC's private mode 25).
const HIDE_CURSOR: &str = "\x1b[?25l";
const SHOW_CURSOR: &str = "\x1b[?25h";
const CLEAR: &str = "\x1b[2J";
const HOME: &str = "\x1b[H";
const END_OF_LINE: &str = "\x1b[K\n";
const CLEAR_BELOW: &str = "\x1b[J";

pub async fn run(args: StatusArgs) -> Result<(), Failure> {
    let file = args.config.display().to_string();
    let config =
        config::load(&args.config).map_err(|error| Failure::new("show the status of", &file).because(&error))?;
    let look = || async { ask(&config.state).await.map_err(|error| unanswered(&file, &error)) };
    let mut scans = Scans::default();
    if !args.watch {
        let status = look().await?;
        return if args.json {
            super::output::print_json(&status)
        } else if args.metrics {
            super::output::print(&metrics::text(&status))
        } else {
            super::output::print(&picture(&status, &mut scans, Instant::now(), now()))
        };
    }

    let mut stops = Stops::new().map_err(|error| Failure::new("watch", &file).because(&error))?;
    let mut screen = Screen::new(!args.json && io::stdout().is_terminal());
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stops.next() => return Ok(()),
        }
        let status = tokio::select! {
            status = look() => status,
            () = stops.next() => return Ok(()),
        };
        let text = match status {
            // One document to a line: a stream of them can be read.
            Ok(status) if args.json => serde_json::to_string(&status).unwrap_or_default() + "\n",
            Ok(status) => picture(&status, &mut scans, Instant::now(), now()),
            Err(failure) if args.json => {
                super::output::announce(&failure.to_string());
                continue;
            }
            Err(failure) => format!("{failure}\n"),
        };
        match screen.show(&text) {
            // Whoever read has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(Failure::new("write to", "standard output").because(&error)),
            Ok(()) => {}
        }
    }
}

fn now() -> Timestamp {
    Timestamp::from_system(std::time::SystemTime::now())
}

fn unanswered(file: &str, error: &StatusError) -> Failure {
    let failure = Failure::new("show the status of", file);
    match error {
        StatusError::Connect { source, .. }
            if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
        {
            failure.why("its gateway is not running").remedy(format!("start it: umbra serve {file}"))
        }
        StatusError::Connect { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            failure.because(error).remedy("ask as the user that the gateway runs as: its state folder is private")
        }
        _ => failure.because(error),
    }
}

/// What repeats on a terminal in place, and elsewhere one below the other.
struct Screen {
    terminal: bool,
    begun: bool,
}

impl Screen {
    fn new(terminal: bool) -> Self {
        Self { terminal, begun: false }
    }

    fn show(&mut self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.terminal {
            if !self.begun {
                write!(out, "{HIDE_CURSOR}{CLEAR}")?;
            }
            // Lines are overwritten, not cleared before: nothing flickers.
            write!(out, "{HOME}{}{CLEAR_BELOW}", text.replace('\n', END_OF_LINE))?;
        } else {
            write!(out, "{}{text}", if self.begun { "\n" } else { "" })?;
        }
        self.begun = true;
        out.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.terminal && self.begun {
            let mut out = io::stdout().lock();
            let _ = write!(out, "{SHOW_CURSOR}").and_then(|()| out.flush());
        }
    }
}

/// How fast the scans go, from look to look.
#[derive(Default)]
struct Scans(BTreeMap<String, Scan>);

struct Scan {
    at: Instant,
    scanned: u64,
    /// Bytes per second; none at the first look.
    rate: Option<f64>,
}

impl Scans {
    /// The time that the volume's scan has still to go, if that can be told.
    fn left(&mut self, volume: &VolumeStatus, at: Instant) -> Option<Duration> {
        if volume.scanned >= volume.total {
            self.0.remove(&volume.name);
            return None;
        }
        let first = Scan { at, scanned: volume.scanned, rate: None };
        let scan = self.0.entry(volume.name.clone()).or_insert(first);
        let seconds = at.duration_since(scan.at).as_secs_f64();
        if volume.scanned < scan.scanned {
            // Another scan has begun.
            scan.rate = None;
        } else if seconds > 0.0 {
            let current = (volume.scanned - scan.scanned) as f64 / seconds;
            let weight = 1.0 - (-seconds / RATE_MEMORY).exp();
            scan.rate = Some(scan.rate.map_or(current, |rate| rate + (current - rate) * weight));
        }
        (scan.at, scan.scanned) = (at, volume.scanned);
        let left = (volume.total - volume.scanned) as f64 / scan.rate?;
        (left < FORECAST_MAX).then(|| Duration::from_secs_f64(left))
    }
}

/// A row for each volume, below a line for each that has something to complain of, and last how long clients wait.
fn picture(status: &Status, scans: &mut Scans, at: Instant, now: Timestamp) -> String {
    let rows: Vec<Vec<String>> = status
        .volumes
        .iter()
        .map(|volume| {
            let (point, age) = newest_point(volume, now);
            vec![
                volume.name.clone(),
                volume.state.clone(),
                human_bytes(volume.size),
                human_bytes(volume.lag_bytes),
                volume.lag_writes.to_string(),
                lag_age(volume),
                point,
                age,
                log_used(volume),
                scan(volume, scans.left(volume, at)),
            ]
        })
        .collect();
    let mut text = table(
        &["NAME", "STATE", "SIZE", "LAG", "WRITES", "LAG AGE", "POINT", "POINT AGE", "LOG", "SCAN"],
        &[false, false, true, true, true, true, true, true, true, false],
        &rows,
    );
    for volume in &status.volumes {
        if volume.late {
            text += &format!("{}: late: the oldest unpublished write is older than max_age\n", volume.name);
        }
        if volume.differing > 0 {
            let bytes = human_bytes(volume.differing);
            text += &format!("{}: {bytes} were changed past the gateway, or their copy was damaged\n", volume.name);
        }
        if let Some(scrub) = &volume.scrub {
            text += &format!("{}: {}\n", volume.name, scrubbed(scrub));
        }
        if let Some(error) = &volume.last_error {
            text += &format!("{}: {error}\n", volume.name);
        }
    }
    text + &latencies(status)
}

/// A row for each kind of operation that there was.
fn latencies(status: &Status) -> String {
    let mut rows = Vec::new();
    for VolumeStatus { name, latency, .. } in &status.volumes {
        let kinds = [
            ("reads", &latency.reads),
            ("writes", &latency.writes),
            ("flushes", &latency.flushes),
            ("trim/zero", &latency.trim_zero),
        ];
        for (kind, OperationsStatus { operations, store, added }) in kinds {
            if *operations > 0 {
                let mut row = vec![name.clone(), kind.to_owned(), human_count(*operations)];
                for times in [store, added] {
                    row.extend([times.median_us, times.p99_us, times.max_us].map(latency_in));
                }
                rows.push(row);
            }
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    let headings = ["NAME", "OPERATION", "COUNT", "STORE", "P99", "MAX", "ADDED", "P99", "MAX"];
    "\n".to_owned() + &table(&headings, &[false, false, true, true, true, true, true, true, true], &rows)
}

/// Three digits say all that a bucket's bound knows.
fn latency_in(microseconds: Option<f64>) -> String {
    let Some(us) = microseconds else { return "-".to_owned() };
    let (value, unit) = match us {
        us if us <= 1.0 => return "<1µs".to_owned(),
        us if us < 1e3 => (us, "µs"),
        us if us < 1e6 => (us / 1e3, "ms"),
        us => (us / 1e6, "s"),
    };
    format!("{}{unit}", three_digits(value))
}

fn human_count(count: u64) -> String {
    match count as f64 {
        few if few < 1e4 => count.to_string(),
        many if many < 1e6 => three_digits(many / 1e3) + "k",
        many if many < 1e9 => three_digits(many / 1e6) + "M",
        many => three_digits(many / 1e9) + "G",
    }
}

/// Of a number from 1 on, without zeroes that say nothing.
fn three_digits(value: f64) -> String {
    let decimals = match value {
        value if value < 9.995 => 2,
        value if value < 99.95 => 1,
        _ => 0,
    };
    let text = format!("{value:.decimals$}");
    if decimals > 0 { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// How far the scheduled comparison is.
fn scrubbed(scrub: &ScrubStatus) -> String {
    let mut text = format!("scrub: {}% of this round", percent(scrub.compared, scrub.total));
    if scrub.differing > 0 {
        text += &format!(", {} differed from the copy", human_bytes(scrub.differing));
    }
    match &scrub.finished {
        Some(time) => text + &format!(", last finished {time}"),
        None => text + ", none finished yet",
    }
}

fn lag_age(volume: &VolumeStatus) -> String {
    match volume.lag_seconds {
        seconds if seconds < 10.0 => format!("{:.1}s", seconds.max(0.0)),
        seconds => human_duration(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)),
    }
}

fn newest_point(volume: &VolumeStatus, now: Timestamp) -> (String, String) {
    let Some(point) = &volume.newest_point else {
        return ("none yet".to_owned(), "-".to_owned());
    };
    let age = Timestamp::parse(&point.time).map(|time| Duration::from_millis(now.0.saturating_sub(time.0)));
    (point.number.to_string(), age.map_or("-".to_owned(), human_duration))
}

fn log_used(volume: &VolumeStatus) -> String {
    let used = format!("{} ({}%)", human_bytes(volume.log.used), percent(volume.log.used, volume.log.size));
    match volume.log.full_in_seconds.and_then(|left| Duration::try_from_secs_f64(left).ok()) {
        Some(left) => format!("{used}, full in {}", human_duration(left)),
        None => used,
    }
}

fn scan(volume: &VolumeStatus, left: Option<Duration>) -> String {
    if volume.scanned >= volume.total {
        return "-".to_owned();
    }
    let done = format!("{}%", percent(volume.scanned, volume.total));
    match left {
        Some(left) => format!("{done}, {} left", human_duration(left)),
        None => done,
    }
}

fn percent(part: u64, whole: u64) -> u64 {
    (u128::from(part) * 100 / u128::from(whole.max(1))) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{LatencyStatus, LogStatus, PointStatus, TimesStatus};
    use crate::units::{GIB, MIB};

    fn volume() -> VolumeStatus {
        VolumeStatus {
            name: "disk0".to_owned(),
            state: "resyncing".to_owned(),
            size: GIB,
            lag_bytes: 3 * MIB,
            lag_writes: 17,
            lag_seconds: 2.25,
            late: false,
            newest_point: Some(PointStatus { number: 812, time: "2026-11-22T12:00:00Z".to_owned() }),
            log: LogStatus { used: 256 * MIB, size: GIB, full_in_seconds: Some(125.0) },
            scanned: 256 * MIB,
            total: GIB,
            hot: 0,
            reread: 0,
            uploaded: 0,
            points: 0,
            last_error: None,
            differing: 0,
            scrub: None,
            latency: LatencyStatus::default(),
        }
    }

    fn shown(volume: VolumeStatus, scans: &mut Scans, at: Instant) -> String {
        let now = Timestamp::parse("2026-11-22T12:02:05Z").unwrap();
        picture(&Status { volumes: vec![volume] }, scans, at, now)
    }

    #[test]
    fn a_row_has_every_figure_and_a_complaint_a_line_of_its_own() {
        let error = Some("put: connection refused".to_owned());
        let text =
            shown(VolumeStatus { late: true, last_error: error, ..volume() }, &mut Scans::default(), Instant::now());
        for part in [
            "disk0",
            "resyncing",
            "1.0 GiB",
            "3.0 MiB",
            "17",
            "2.2s",
            "812",
            "2m 5s",
            "256.0 MiB (25%), full in 2m 5s",
            "25%",
        ] {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(lines[2].starts_with("disk0: late"), "{text}");
        assert_eq!(lines[3], "disk0: put: connection refused");
    }

    #[test]
    fn the_time_left_follows_from_two_looks_and_not_from_one() {
        let (mut scans, begun) = (Scans::default(), Instant::now());
        assert!(!shown(volume(), &mut scans, begun).contains("left"));
        let later = VolumeStatus { scanned: 512 * MIB, ..volume() };
        let text = shown(later, &mut scans, begun + Duration::from_secs(2));
        assert!(text.contains("50%, 4s left"), "{text}");
        let done = VolumeStatus { scanned: GIB, ..volume() };
        let text = shown(done, &mut scans, begun + Duration::from_secs(3));
        assert!(!text.contains("100%"), "a scan that is through is not shown: {text}");
    }

    #[test]
    fn a_scan_that_begins_again_has_no_rate() {
        let (mut scans, begun) = (Scans::default(), Instant::now());
        let seconds = |n| begun + Duration::from_secs(n);
        shown(volume(), &mut scans, begun);
        shown(VolumeStatus { scanned: 512 * MIB, ..volume() }, &mut scans, seconds(1));
        assert!(!shown(VolumeStatus { scanned: MIB, ..volume() }, &mut scans, seconds(2)).contains("left"));
        // One that stands still has no end.
        assert!(!shown(VolumeStatus { scanned: MIB, ..volume() }, &mut scans, seconds(3)).contains("left"));
    }

    #[test]
    fn a_scheduled_comparison_is_shown_with_what_it_found() {
        let scrub = ScrubStatus { compared: 256 * MIB, total: GIB, differing: 512, finished: None };
        let text = shown(VolumeStatus { scrub: Some(scrub), ..volume() }, &mut Scans::default(), Instant::now());
        assert!(
            text.contains("disk0: scrub: 25% of this round, 512 B differed from the copy, none finished"),
            "{text}"
        );
    }

    #[test]
    fn what_clients_wait_for_has_a_row_for_each_kind_of_operation_that_there_was() {
        let store =
            TimesStatus { median_us: Some(17.5), p99_us: Some(3584.0), max_us: Some(67_108_864.0), buckets: vec![] };
        let added = TimesStatus { median_us: Some(1.0), p99_us: Some(1.25), max_us: None, buckets: vec![] };
        let latency = LatencyStatus {
            writes: OperationsStatus { operations: 1_234_567, store, added },
            ..LatencyStatus::default()
        };
        let text = shown(VolumeStatus { latency, ..volume() }, &mut Scans::default(), Instant::now());
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 5, "{text}");
        let words: Vec<_> = lines[4].split_whitespace().collect();
        assert_eq!(words, ["disk0", "writes", "1.23M", "17.5µs", "3.58ms", "67.1s", "<1µs", "1.25µs", "-"], "{text}");
    }

    #[test]
    fn numbers_have_three_digits_at_every_size() {
        let counts = [9_999, 10_000, 99_960, 999_400, 12_345_678, 7_000_000_000];
        assert_eq!(counts.map(human_count), ["9999", "10k", "100k", "999k", "12.3M", "7G"]);
        let times = [1.25, 10.0, 896.0, 1024.0, 114_688.0, 1_048_576.0];
        assert_eq!(times.map(|us| latency_in(Some(us))), ["1.25µs", "10µs", "896µs", "1.02ms", "115ms", "1.05s"]);
    }

    #[test]
    fn a_volume_without_a_point_says_so() {
        let text = shown(VolumeStatus { newest_point: None, ..volume() }, &mut Scans::default(), Instant::now());
        assert!(text.contains("none yet"), "{text}");
    }
}

//! A running `umbra serve`.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use super::{Running, Scene};

/// The store is small and local, so that more than this is a fault.
const READY_LIMIT: Duration = Duration::from_secs(30);
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// Warnings that a remote brings with it that is away or answers with errors.
pub const REMOTE_AWAY: [&str; 4] = [
    "the remote is not available",
    "the chain cannot be opened yet",
    "an entry cannot be published yet",
    "indexes cannot be merged yet",
];
/// Warning of a start on a store that was changed meanwhile.
pub const STORE_CHANGED: &str = "the store is not as the last stop left it; comparing it in full";
/// Of a store that lost its connection, or a log that is full.
pub const INTERRUPTED: &str = "shadowing is interrupted; clients are served, a resync follows";

/// What `umbra status --json` says of one volume.
#[derive(Clone, Debug)]
pub struct Status(pub Value);

impl Status {
    pub fn state(&self) -> &str {
        self.0["state"].as_str().unwrap()
    }

    /// Number of the newest point; 0 before the first.
    pub fn newest(&self) -> u64 {
        self.0["newest_point"]["number"].as_u64().unwrap_or(0)
    }

    /// Everything that clients wrote is in the newest point. After a scan only its age tells that: the point that ends
    /// the scan holds changes that no client made through us.
    pub fn is_settled(&self) -> bool {
        let is_zero = |field: &str| self.0[field].as_f64() == Some(0.0);
        self.state() == "shadowing"
            && self.newest() > 0
            && ["lag_bytes", "lag_writes", "lag_seconds"].into_iter().all(is_zero)
    }
}

/// Fails its test when the gateway has logged a warning or an error that the test did not announce.
pub struct Gateway<'s> {
    scene: &'s Scene,
    process: Running,
    uris: BTreeMap<String, String>,
    allowed: Vec<&'static str>,
    /// Added to every bound: for remotes that fail on purpose.
    patience: Duration,
    judged: bool,
}

impl<'s> Gateway<'s> {
    #[track_caller]
    pub(super) fn start(scene: &'s Scene, options: &[&str]) -> Self {
        let config = scene.config();
        let fixed = ["serve", config.to_str().unwrap(), "--log", "json"];
        let mut process = Running::start(&mut scene.umbra(&[&fixed, options].concat()), Stdio::null());
        let mut uris = BTreeMap::new();
        for volume in &scene.volumes {
            let uri = process.wait_for_line(&format!("`ready {} …`", volume.name), READY_LIMIT, |line| {
                let (name, uri) = line.strip_prefix("ready ")?.split_once(' ')?;
                (name == volume.name).then(|| uri.to_owned())
            });
            uris.insert(volume.name.clone(), uri);
        }
        Self { scene, process, uris, allowed: Vec::new(), patience: Duration::ZERO, judged: false }
    }

    /// Announces a warning or an error by a part of its line.
    pub fn allow(mut self, part: &'static str) -> Self {
        self.allowed.push(part);
        self
    }

    pub fn allow_each(mut self, parts: &[&'static str]) -> Self {
        self.allowed.extend(parts);
        self
    }

    pub fn patience(mut self, more: Duration) -> Self {
        self.patience = more;
        self
    }

    pub fn scene(&self) -> &'s Scene {
        self.scene
    }

    pub fn uri(&self) -> &str {
        self.uri_of("disk0")
    }

    pub fn uri_of(&self, volume: &str) -> &str {
        &self.uris[volume]
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Address and port of the first export.
    pub fn address(&self) -> String {
        self.uri().strip_prefix("nbd://").unwrap().split('/').next().unwrap().to_owned()
    }

    /// Everything printed so far.
    pub fn printed(&self) -> String {
        [self.process.stdout.all(), self.process.stderr.all()].concat().join("\n")
    }

    #[track_caller]
    pub fn status(&self) -> Status {
        self.status_of("disk0")
    }

    #[track_caller]
    pub fn status_of(&self, volume: &str) -> Status {
        let config = self.scene.config();
        let status = self.scene.run(&["status", config.to_str().unwrap(), "--json"]).ok().json();
        let volumes = status["volumes"].as_array().unwrap_or_else(|| panic!("no volumes in {status}"));
        let found = volumes.iter().find(|v| v["name"] == volume);
        Status(found.unwrap_or_else(|| panic!("no volume {volume} in {status}")).clone())
    }

    /// Waits until disk0's status is as wanted.
    #[track_caller]
    pub fn wait_until(&mut self, what: &str, limit: Duration, wanted: impl Fn(&Status) -> bool) -> Status {
        self.wait_until_each(&["disk0"], what, limit, wanted).swap_remove(0)
    }

    /// Waits until the status of both volumes is as wanted at the same time.
    #[track_caller]
    pub fn wait_until_both(&mut self, what: &str, wanted: impl Fn(&Status) -> bool) {
        self.wait_until_each(&["disk0", "disk1"], what, Duration::from_secs(60), wanted);
    }

    #[track_caller]
    fn wait_until_each(
        &mut self,
        volumes: &[&str],
        what: &str,
        limit: Duration,
        wanted: impl Fn(&Status) -> bool,
    ) -> Vec<Status> {
        let end = Instant::now() + limit + self.patience;
        loop {
            assert!(self.process.is_running(), "the gateway has ended\n{}", self.process.said());
            let found: Vec<_> = volumes.iter().map(|volume| self.status_of(volume)).collect();
            if found.iter().all(&wanted) {
                return found;
            }
            if Instant::now() > end {
                panic!("not {what} within {limit:?}: {found:?}\n{}", self.process.said());
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until it has logged a line with `part` in it.
    #[track_caller]
    pub fn wait_for_line(&self, part: &str) {
        let limit = Duration::from_secs(60) + self.patience;
        let said = self.process.stderr.find(limit, |line| line.contains(part).then_some(()));
        assert!(said.is_some(), "it did not log {part} within {limit:?}\n{}", self.process.said());
    }

    /// Waits until all that was written is in the newest point.
    #[track_caller]
    pub fn settle(&mut self) -> Status {
        self.wait_until("settled", Duration::from_secs(60), Status::is_settled)
    }

    /// Waits until it shadows again after a start, while clients go on.
    #[track_caller]
    pub fn settle_under_load(&mut self) -> Status {
        let shadows = |status: &Status| status.state() == "shadowing" && status.newest() > 0;
        self.wait_until("shadowing", Duration::from_secs(60), shadows)
    }

    /// Waits until `count` more points than now are published.
    #[track_caller]
    pub fn wait_for_points(&mut self, count: u64) -> Status {
        let before = self.status().newest();
        let what = format!("{count} points after {before}");
        self.wait_until(&what, Duration::from_secs(60), |status| status.newest() >= before + count)
    }

    /// Stops it as an operator would who waits until everything is copied, but not for what was written last.
    #[track_caller]
    pub fn stop(mut self) {
        self.until_copied();
        self.stop_with(Signal::TERM, &[0]);
    }

    /// As [`Self::stop`], by Ctrl-C.
    #[track_caller]
    pub fn interrupt(mut self) {
        self.until_copied();
        self.stop_with(Signal::INT, &[0]);
    }

    #[track_caller]
    fn until_copied(&mut self) {
        self.wait_until("copied", STOP_LIMIT, |status| status.0["scanned"] == status.0["total"]);
    }

    /// Stops one that is fenced, or whose store has failed a flush.
    #[track_caller]
    pub fn stop_unfinished(mut self) {
        self.allowed.push("is known to be in a recovery point; the next start reads again what may be missing");
        self.stop_with(Signal::TERM, &[1]);
    }

    /// Stops one that may not have copied everything by then; whether it says that it has.
    #[track_caller]
    pub fn stop_on_the_way(mut self) -> bool {
        self.allowed.push("is known to be in a recovery point; the next start reads again what may be missing");
        self.allowed.push("not everything was compared or copied; the next start goes on with it");
        self.stop_with(Signal::TERM, &[0, 1]) == 0
    }

    #[track_caller]
    fn stop_with(mut self, signal: Signal, codes: &[i32]) -> i32 {
        self.process.signal(signal);
        let status = self.process.wait(STOP_LIMIT + self.patience);
        let code = status.code().filter(|code| codes.contains(code));
        let code = code.unwrap_or_else(|| panic!("after {signal:?}: {status}\n{}", self.process.said()));
        self.judge();
        code
    }

    /// Stops it as an operator who does not wait for what is left to publish.
    #[track_caller]
    pub fn stop_at_once(mut self) {
        self.process.signal(Signal::TERM);
        let publishing = |line: &str| line.contains("publishing what is left").then_some(());
        let said = self.process.stderr.find(STOP_LIMIT, publishing);
        assert!(said.is_some(), "after SIGTERM it does not publish what is left\n{}", self.process.said());
        self.process.signal(Signal::TERM);
        let status = self.process.wait(STOP_LIMIT);
        assert!(status.code() == Some(1), "after two SIGTERMs: {status}\n{}", self.process.said());
        assert!(!self.process.said().contains("panicked"), "{}", self.process.said());
        self.allowed.extend(["told to stop again: stopping at once", "stopped before everything was published"]);
        self.judge();
    }

    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Ends it with SIGKILL.
    #[track_caller]
    pub fn kill(mut self) {
        self.process.kill();
        self.judge();
    }

    #[track_caller]
    fn judge(&mut self) {
        self.judged = true;
        let unexpected: Vec<_> =
            self.process.stderr.all().into_iter().filter(|line| self.is_unexpected(line)).collect();
        assert!(unexpected.is_empty(), "logged without announcement:\n{}", unexpected.join("\n"));
    }

    fn is_unexpected(&self, line: &str) -> bool {
        let quiet = match serde_json::from_str::<Value>(line) {
            Ok(event) => !matches!(event["level"].as_str(), Some("WARN" | "ERROR")),
            // A panic's message is no JSON; the last line of one that was killed may be cut.
            Err(_) => line.is_empty() || line.starts_with('{'),
        };
        !quiet && !self.allowed.iter().any(|part| line.contains(part))
    }
}

impl Drop for Gateway<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the gateway said\n{}", self.process.said());
        } else if !self.judged {
            self.judge();
        }
    }
}

//! Child processes with bounds: what they print is collected, nothing outlives its test.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// What a stream has said so far, line by line.
#[derive(Clone, Default)]
pub struct Lines(Arc<(Mutex<Said>, Condvar)>);

#[derive(Default)]
struct Said {
    lines: Vec<String>,
    closed: bool,
}

impl Lines {
    fn follow(stream: impl Read + Send + 'static) -> Self {
        let lines = Self::default();
        let ours = lines.clone();
        thread::spawn(move || {
            let mut reader = BufReader::new(stream);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                let text = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
                ours.0.0.lock().unwrap().lines.push(text);
                ours.0.1.notify_all();
                line.clear();
            }
            ours.0.0.lock().unwrap().closed = true;
            ours.0.1.notify_all();
        });
        lines
    }

    pub fn all(&self) -> Vec<String> {
        self.0.0.lock().unwrap().lines.clone()
    }

    /// The first line that `wanted` likes; none if the stream ended or the time passed without one.
    pub fn find<T>(&self, limit: Duration, wanted: impl Fn(&str) -> Option<T>) -> Option<T> {
        let end = Instant::now() + limit;
        let mut said = self.0.0.lock().unwrap();
        loop {
            if let Some(found) = said.lines.iter().find_map(|line| wanted(line)) {
                return Some(found);
            }
            let left = end.saturating_duration_since(Instant::now());
            if said.closed || left.is_zero() {
                return None;
            }
            said = self.0.1.wait_timeout(said, left).unwrap().0;
        }
    }

    /// Waits until the stream has ended, so that nothing is missing from `all`.
    fn closed(&self, limit: Duration) {
        let (said, changed) = &*self.0;
        let _ = changed.wait_timeout_while(said.lock().unwrap(), limit, |said| !said.closed).unwrap();
    }
}

/// A process that has ended.
pub struct Finished {
    pub command: String,
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert!(
            self.status.code() == Some(code),
            "{}\nended with {} instead of {code}\n--- stdout\n{}\n--- stderr\n{}",
            self.command,
            self.status,
            self.stdout,
            self.stderr
        );
        self
    }

    #[track_caller]
    pub fn ok(self) -> Self {
        self.expect_code(0)
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|e| panic!("{}\nprinted no JSON: {e}\n{}\n{}", self.command, self.stdout, self.stderr))
    }
}

/// A process that is stopped at the latest when this is dropped.
pub struct Running {
    command: String,
    child: Child,
    pub stdin: Option<ChildStdin>,
    pub stdout: Lines,
    pub stderr: Lines,
}

impl Running {
    pub fn start(command: &mut Command, stdin: Stdio) -> Self {
        let text = format!("{command:?}");
        let mut child = command
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("start {text}: {e} (tests/setup.sh installs what is absent)"));
        Self {
            command: text,
            stdin: child.stdin.take(),
            stdout: Lines::follow(child.stdout.take().unwrap()),
            stderr: Lines::follow(child.stderr.take().unwrap()),
            child,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// The first line of standard output that `wanted` likes.
    #[track_caller]
    pub fn wait_for_line<T>(&mut self, what: &str, limit: Duration, wanted: impl Fn(&str) -> Option<T>) -> T {
        match self.stdout.find(limit, wanted) {
            Some(found) => found,
            None => panic!("{} did not print {what} within {limit:?}\n{}", self.command, self.said()),
        }
    }

    pub fn said(&self) -> String {
        let stderr = self.stderr.all();
        let tail = &stderr[stderr.len().saturating_sub(40)..];
        format!("--- stdout\n{}\n--- stderr (its end)\n{}", self.stdout.all().join("\n"), tail.join("\n"))
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                self.stdout.closed(Duration::from_secs(5));
                self.stderr.closed(Duration::from_secs(5));
                return status;
            }
            if Instant::now() > end {
                panic!("{} still runs after {limit:?}\n{}", self.command, self.said());
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[track_caller]
    pub fn finish(mut self, limit: Duration) -> Finished {
        let status = self.wait(limit);
        let text = |lines: &Lines| lines.all().join("\n");
        Finished { command: self.command.clone(), status, stdout: text(&self.stdout), stderr: text(&self.stderr) }
    }

    /// Ends it with SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let status = self.wait(Duration::from_secs(20));
        assert!(
            status.signal() == Some(9),
            "{} had ended before it was killed: {status}\n{}",
            self.command,
            self.said()
        );
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.is_running() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Memory of a process that lies in RAM, in bytes: now, and the most so far.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    pub resident: u64,
    pub peak: u64,
}

impl Memory {
    #[track_caller]
    pub fn of(pid: u32) -> Self {
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
            kib.unwrap_or_else(|| panic!("no {name} in\n{text}")) * 1024
        };
        Self { resident: field("VmRSS:"), peak: field("VmHWM:") }
    }
}

/// Runs a command to its end.
#[track_caller]
pub fn run(command: &mut Command, limit: Duration) -> Finished {
    Running::start(command, Stdio::null()).finish(limit)
}

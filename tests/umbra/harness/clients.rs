//! The clients that do the I/O, and the server that others trust, each a program that we did not write; and the
//! stamper, which is ours but speaks through libnbd.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use super::{COMMAND_LIMIT, Finished, Running, run};
use crate::trace::Trace;

/// A script of `tests/clients` under the interpreter that has libnbd's bindings.
pub fn python(script: &str) -> Command {
    let mut command = Command::new("/usr/bin/python3");
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(script));
    command
}

/// What the stamper does; see `clients/stamper.py`.
#[derive(Clone, Copy)]
pub struct Load {
    pub connections: u32,
    /// Over all connections.
    pub depth: u32,
    /// Sectors of the largest operation.
    pub max_sectors: u32,
    /// Operations per second; 0: as many as it can.
    pub rate: u32,
    /// Ends by itself after this many; 0: never.
    pub ops: u32,
    /// MiB at the start of the volume that get half of the operations.
    pub hot: u32,
    /// Per cent of operations, or of changes.
    pub zero: u32,
    /// Sectors; zeroes begin and end at multiples of it.
    pub zero_border: u32,
    pub trim: u32,
    pub flush: u32,
    pub fua: u32,
}

impl Load {
    /// One client that waits for each answer; writes only.
    pub const ONE_BY_ONE: Self = Self {
        connections: 1,
        depth: 1,
        max_sectors: 128,
        rate: 1500,
        ops: 0,
        hot: 1,
        zero: 0,
        zero_border: 1,
        trim: 0,
        flush: 0,
        fua: 0,
    };
    /// Everything that a file system does, on two connections.
    pub const MIXED: Self =
        Self { connections: 2, depth: 32, rate: 1500, zero: 4, trim: 4, flush: 2, fua: 3, hot: 4, ..Self::ONE_BY_ONE };
}

/// A stamper at work.
pub struct Stamper {
    process: Running,
    trace: PathBuf,
}

impl Stamper {
    #[track_caller]
    pub fn start(load: &Load, uri: &str, folder: &Path) -> Self {
        /// Runs and seeds are the same in every run of the tests that starts its tests in the same order.
        static RUN: AtomicU64 = AtomicU64::new(1);
        let number = RUN.fetch_add(1, Ordering::Relaxed);
        let trace = folder.join(format!("run-{number}.trace"));
        let mut command = python("stamper.py");
        command.arg("--uri").arg(uri).arg("--trace").arg(&trace);
        let options = [
            ("--run", number as u32),
            ("--seed", number as u32),
            ("--connections", load.connections),
            ("--depth", load.depth),
            ("--max-sectors", load.max_sectors),
            ("--rate", load.rate),
            ("--ops", load.ops),
            ("--hot", load.hot),
            ("--zero", load.zero),
            ("--zero-border", load.zero_border),
            ("--trim", load.trim),
            ("--flush", load.flush),
            ("--fua", load.fua),
        ];
        for (name, value) in options {
            command.arg(name).arg(value.to_string());
        }
        let mut process = Running::start(&mut command, Stdio::piped());
        process.wait_for_line("`started`", COMMAND_LIMIT, |line| (line == "started").then_some(()));
        Self { process, trace }
    }

    /// Lets it do all its operations; each was answered, none with an error.
    #[track_caller]
    pub fn finish(self) -> Trace {
        let trace = self.finish_with_errors();
        trace.assert_no_errors();
        trace
    }

    /// Lets it do all its operations; each was answered.
    #[track_caller]
    pub fn finish_with_errors(self) -> Trace {
        self.process.finish(COMMAND_LIMIT).ok();
        Trace::read(&self.trace)
    }

    /// Ends it; every operation was answered, none with an error.
    #[track_caller]
    pub fn stop(self) -> Trace {
        let trace = self.stop_with_errors();
        trace.assert_no_errors();
        trace
    }

    /// Ends it; every operation was answered.
    #[track_caller]
    pub fn stop_with_errors(mut self) -> Trace {
        drop(self.process.stdin.take());
        self.process.finish(COMMAND_LIMIT).ok();
        Trace::read(&self.trace)
    }

    /// For one whose server was killed: some operations were not answered.
    #[track_caller]
    pub fn abandoned(self) -> Trace {
        self.process.finish(COMMAND_LIMIT).expect_code(3);
        let trace = Trace::read(&self.trace);
        trace.assert_no_errors();
        trace
    }

    /// For one whose server has lost its store: some operations were not answered, some with an error.
    #[track_caller]
    pub fn ended_with_the_store(mut self) -> Trace {
        drop(self.process.stdin.take());
        self.process.wait(COMMAND_LIMIT);
        Trace::read(&self.trace)
    }
}

/// An nbdkit on a unix socket.
pub struct Nbdkit {
    process: Running,
    socket: PathBuf,
}

impl Nbdkit {
    /// `arguments` are the plugin and its parameters.
    #[track_caller]
    pub fn start(socket: &Path, arguments: &[&str]) -> Self {
        let _ = std::fs::remove_file(socket);
        let mut command = Command::new("nbdkit");
        command.args(["--foreground", "--exit-with-parent", "--unix"]).arg(socket).args(arguments);
        let mut process = Running::start(&mut command, Stdio::null());
        let end = Instant::now() + Duration::from_secs(20);
        while !socket.exists() {
            assert!(process.is_running() && Instant::now() < end, "nbdkit did not start\n{}", process.said());
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { process, socket: socket.to_owned() }
    }

    pub fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }

    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }
}

/// What a job of fio has waited for its answers; microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    /// `read` or `write`.
    pub kind: &'static str,
    pub mean: f64,
    pub p99: f64,
}

/// A fio job that writes every block of the volume once, at mixed sizes, and verifies each soon after; all over again
/// as often as asked.
pub struct Fio(Running);

impl Fio {
    #[track_caller]
    pub fn start(uri: &str, size_mib: u64, loops: u32, rate_mib: u32) -> Self {
        let mut command = Command::new("fio");
        command.args(["--name=umbra", "--ioengine=nbd", "--rw=randwrite", "--iodepth=32", "--bsrange=512-256k"]);
        command.args(["--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--verify_backlog=256", "--fsync=64"]);
        command.args(["--randseed=7", "--refill_buffers", "--group_reporting", "--output-format=terse"]);
        command.arg(format!("--uri={uri}")).arg(format!("--size={size_mib}m"));
        command.arg(format!("--loops={loops}")).arg(format!("--rate=,{rate_mib}m"));
        // fio writes the state of a verification into the folder that it runs in.
        command.arg("--verify_state_save=0");
        Self(Running::start(&mut command, Stdio::null()))
    }

    /// Jobs that write, zero and trim the same few blocks at any byte, in flight together and not verified.
    #[track_caller]
    pub fn overlapping(uri: &str, seconds: u32) -> Self {
        let mut command = Command::new("fio");
        command.args(["--ioengine=nbd", "--iodepth=32", "--size=1m", "--norandommap", "--refill_buffers"]);
        command.args(["--bsrange=1-64k", "--bs_unaligned=1", "--group_reporting", "--output-format=terse"]);
        command.arg(format!("--uri={uri}")).arg("--time_based").arg(format!("--runtime={seconds}"));
        command.args(["--name=write", "--rw=randwrite", "--numjobs=2", "--rate=,16m"]);
        command.args(["--name=trim", "--rw=randtrim", "--thinktime=10000", "--thinktime_blocks=4"]);
        Self(Running::start(&mut command, Stdio::null()))
    }

    /// Two jobs of random writes of 4 KiB at a rate that does not fill a log, and one of random reads.
    #[track_caller]
    pub fn paced(uri: &str, size_mib: u64, seconds: u32) -> Self {
        let mut command = Command::new("fio");
        command.args(["--ioengine=nbd", "--iodepth=4", "--bs=4k", "--randseed=11", "--output-format=json"]);
        command.arg(format!("--uri={uri}")).arg(format!("--size={size_mib}m"));
        command.arg("--time_based").arg(format!("--runtime={seconds}"));
        command.args(["--refill_buffers", "--rate_iops=300"]);
        command.args(["--name=write", "--rw=randwrite", "--numjobs=2", "--fsync=256", "--name=read", "--rw=randread"]);
        Self(Running::start(&mut command, Stdio::null()))
    }

    /// Random writes of 64 KiB as fast as they are taken.
    #[track_caller]
    pub fn unpaced(uri: &str, size_mib: u64, seconds: u32) -> Self {
        let mut command = Command::new("fio");
        command.args(["--name=write", "--ioengine=nbd", "--rw=randwrite", "--iodepth=32", "--bs=64k"]);
        command.args(["--refill_buffers", "--randseed=12", "--output-format=json"]);
        command.arg(format!("--uri={uri}")).arg(format!("--size={size_mib}m"));
        command.arg("--time_based").arg(format!("--runtime={seconds}"));
        Self(Running::start(&mut command, Stdio::null()))
    }

    pub fn is_running(&mut self) -> bool {
        self.0.is_running()
    }

    /// Latencies of the jobs, none of which has met an error.
    #[track_caller]
    pub fn latencies(self) -> Vec<Latency> {
        let mut finished = self.finish();
        // Notes of engines come before the document.
        finished.stdout = finished.stdout.find('{').map_or(String::new(), |start| finished.stdout.split_off(start));
        let said = finished.json();
        let jobs = said["jobs"].as_array().unwrap_or_else(|| panic!("no jobs in {said}"));
        let number = |value: &Value, what: &str| value.as_f64().unwrap_or_else(|| panic!("no {what} in {said}"));
        let latency = |job: &Value| {
            assert_eq!(job["error"], 0, "{said}");
            let kind = if job["write"]["total_ios"] == 0 { "read" } else { "write" };
            let seen = &job[kind];
            assert!(number(&seen["total_ios"], "total_ios") > 0.0, "{said}");
            Latency {
                kind,
                mean: number(&seen["clat_ns"]["mean"], "mean latency") / 1000.0,
                p99: number(&seen["clat_ns"]["percentile"]["99.000000"], "99th percentile") / 1000.0,
            }
        };
        jobs.iter().map(latency).collect()
    }

    #[track_caller]
    pub fn finish(self) -> Finished {
        self.0.finish(COMMAND_LIMIT).ok()
    }
}

/// Runs a program to its end.
#[track_caller]
pub fn program(name: &str, arguments: &[&str]) -> Finished {
    run(Command::new(name).args(arguments), COMMAND_LIMIT)
}

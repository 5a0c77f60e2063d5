//! An array that others wrote: tgtd, with a target whose LUN is a file.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::remotes::free_port;
use super::{CANARY, COMMAND_LIMIT, Finished, MIB, Running, Scene, python, run};

const TARGET: &str = "iqn.2003-01.org.array:vol1";
const OTHER_TARGET: &str = "iqn.2003-01.org.other:vol1";
/// LUN 0 of that server is its controller.
const LUN: u16 = 1;
const START_LIMIT: Duration = Duration::from_secs(20);

/// What the array asks of those who log in, and what it proves to them.
pub const OURS: (&str, &str) = ("gateway1", CANARY);
pub const THEIRS: (&str, &str) = ("array", "secret-of-the-array");

/// Who has to prove something.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    Nobody,
    Initiator,
    Both,
}

pub struct Array {
    port: u16,
    file: PathBuf,
    folder: PathBuf,
    proof: Proof,
    target: &'static str,
    /// Number of the target, of which that server makes the disk's name (NAA).
    number: u32,
    /// How often it was started: each time has its own socket, for a killed one leaves its behind.
    starts: u32,
    process: Option<Running>,
}

impl Scene {
    /// Serves the file of disk0 as a LUN of an array, and makes that the store.
    #[track_caller]
    pub fn use_array(&mut self, size: u64, proof: Proof) -> Array {
        assert!(size.is_multiple_of(MIB));
        fs::File::create(self.store()).unwrap().set_len(size).unwrap();
        let mut array = Array {
            port: free_port(),
            file: self.store(),
            folder: self.path(""),
            proof,
            target: TARGET,
            number: 1,
            starts: 0,
            process: None,
        };
        array.start();
        self.volumes[0].store = array.url();
        self.volumes[0].create = None;
        array
    }
}

impl Array {
    pub fn url(&self) -> String {
        self.url_of(self.target, LUN)
    }

    pub fn url_of(&self, target: &str, lun: u16) -> String {
        format!("iscsi://127.0.0.1:{}/{target}/{lun}", self.port)
    }

    /// From the next start on it is another disk.
    pub fn change_identity(&mut self) {
        self.number += 1;
    }

    /// From the next start on it is another array, whose disks have the same names (NAA): it counts them alike.
    pub fn change_array(&mut self) {
        self.target = OTHER_TARGET;
    }

    /// What it asks of sessions, until its next start, by the keys of RFC 7143, 13.
    #[track_caller]
    pub fn negotiate(&self, parameters: &[(&str, &str)]) {
        let tid = self.number.to_string();
        for (name, value) in parameters {
            self.tell(&["--op", "update", "--mode", "target", "--tid", &tid, "--name", name, "--value", value]);
        }
    }

    /// Another host resets the logical unit.
    #[track_caller]
    pub fn be_reset(&self) {
        let mut command = python("initiator.py");
        command.args(["--portal", &format!("127.0.0.1:{}", self.port), "--target", self.target]);
        command.args(["--lun", &LUN.to_string(), "--name", "iqn.2020-02.org.example:other", "--isid", "800000000007"]);
        run(command.arg("reset"), START_LIMIT).ok();
    }

    /// Ends it with SIGKILL.
    #[track_caller]
    pub fn kill(&mut self) {
        self.process.take().unwrap().kill();
    }

    /// It knows nothing after a start: nobody is let in before it was told all.
    #[track_caller]
    pub fn start(&mut self) {
        self.starts += 1;
        let mut command = Command::new(sbin("tgtd"));
        command.args(["--foreground", "--control-port", "0", "--nr_iothreads", "4", "--iscsi"]);
        command.arg(format!("portal=127.0.0.1:{}", self.port)).env("TGT_IPC_SOCKET", self.socket());
        let mut process = Running::start(&mut command, Stdio::null());
        let end = Instant::now() + START_LIMIT;
        while !self.ask(&["--op", "show", "--mode", "sys"]).status.success() {
            assert!(process.is_running() && Instant::now() < end, "tgtd did not start\n{}", process.said());
            std::thread::sleep(Duration::from_millis(50));
        }
        self.process = Some(process);
        let (lun, file) = (LUN.to_string(), self.file.to_str().unwrap().to_owned());
        let tid = self.number.to_string();
        self.tell(&["--op", "new", "--mode", "target", "--tid", &tid, "--targetname", self.target]);
        self.tell(&["--op", "new", "--mode", "logicalunit", "--tid", &tid, "--lun", &lun, "--backing-store", &file]);
        self.tell(&[
            "--op",
            "update",
            "--mode",
            "logicalunit",
            "--tid",
            &tid,
            "--lun",
            &lun,
            "--params",
            "thin_provisioning=1",
        ]);
        let account = |(user, secret): (&str, &str), more: &[&str]| {
            self.tell(&["--op", "new", "--mode", "account", "--user", user, "--password", secret]);
            self.tell(&[&["--op", "bind", "--mode", "account", "--tid", &tid, "--user", user], more].concat());
        };
        if self.proof != Proof::Nobody {
            account(OURS, &[]);
        }
        if self.proof == Proof::Both {
            account(THEIRS, &["--outgoing"]);
        }
        self.tell(&["--op", "bind", "--mode", "target", "--tid", &tid, "--initiator-address", "ALL"]);
    }

    fn socket(&self) -> PathBuf {
        self.folder.join(format!("tgt{}", self.starts))
    }

    fn ask(&self, arguments: &[&str]) -> Finished {
        let mut command = Command::new(sbin("tgtadm"));
        command.env("TGT_IPC_SOCKET", self.socket()).args(["--control-port", "0", "--lld", "iscsi"]).args(arguments);
        run(&mut command, COMMAND_LIMIT)
    }

    #[track_caller]
    fn tell(&self, arguments: &[&str]) {
        self.ask(arguments).ok();
    }
}

/// Programs of administrators are not on everybody's path.
fn sbin(name: &str) -> PathBuf {
    let places = ["/usr/sbin", "/sbin"].map(|folder| PathBuf::from(folder).join(name));
    places.into_iter().find(|path| path.exists()).unwrap_or_else(|| name.into())
}

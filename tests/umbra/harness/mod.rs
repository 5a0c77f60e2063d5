//! Runs the real binary in a folder of its own, and the clients and servers around it.

mod arrays;
mod clients;
mod disks;
mod gateway;
mod process;
mod recorder;
mod remotes;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

pub use arrays::{Array, OURS, Proof, THEIRS};
pub use clients::{Fio, Latency, Load, Nbdkit, Stamper, program, python};
pub use disks::{Filesystem, NbdFuse};
pub use gateway::{Gateway, INTERRUPTED, REMOTE_AWAY, STORE_CHANGED, Status};
pub use process::{Finished, Memory, Running, run};
pub use recorder::{Change, Keep, Recorder, Recording, copy_sparse};
pub use remotes::{Azurite, Moto, free_port};

/// How much of what is endless a test does: little in CI, more where `UMBRA_LONG` is 1.
pub fn extent(in_ci: u32, long: u32) -> u32 {
    match std::env::var("UMBRA_LONG").as_deref() {
        Ok("1") => long,
        Err(_) | Ok("") | Ok("0") => in_ci,
        Ok(other) => panic!("UMBRA_LONG is {other:?}; it can be 1 or absent"),
    }
}

pub const MIB: u64 = 1 << 20;
/// Where a scene with iSCSI has portals: two paths to each of its targets.
pub const PORTALS: [&str; 2] = ["127.0.0.1", "127.0.0.2"];
/// No single command of a test takes longer on a machine that works.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(120);
/// Value of every secret that a test hands to the gateway: must never be seen again.
pub const CANARY: &str = "Canary0f5ecretsThatMustN0tBeL0gged";

/// One volume of a configuration.
#[derive(Clone)]
pub struct Volume {
    pub name: String,
    pub store: String,
    /// Bytes; for file stores that are to be made.
    pub create: Option<u64>,
}

/// A folder with a configuration in it, in which `umbra` runs.
pub struct Scene {
    dir: TempDir,
    /// Folder in the scene's, with a slash at its end, where state and store lie; empty: the scene's own.
    place: &'static str,
    pub volumes: Vec<Volume>,
    /// Where it listens for NBD.
    pub nbd: &'static str,
    /// Port of iSCSI, at both of [`PORTALS`]; none: nothing listens for it.
    pub portal: Option<u16>,
    pub remote: String,
    pub epoch: &'static str,
    /// As much at most is read of a store to be compared or copied; empty: as much as can be.
    pub scan_rate: &'static str,
    pub log_size: &'static str,
    pub log_sync: &'static str,
    /// TOML at the end of the configuration.
    pub more: String,
    pub environment: Vec<(&'static str, String)>,
}

/// A recovery point as `umbra points --json` lists it.
#[derive(Clone, Debug)]
pub struct Point {
    pub number: u64,
    pub time: String,
    pub sequence: u64,
}

impl Scene {
    /// One volume `disk0` on the file `disk0.img`, which is made when served; the remote is a folder.
    pub fn new(size: u64) -> Self {
        let store = "file:disk0.img".to_owned();
        Self {
            place: "",
            dir: tempfile::Builder::new().prefix("umbra-test-").tempdir().unwrap(),
            volumes: vec![Volume { name: "disk0".into(), store, create: Some(size) }],
            nbd: "127.0.0.1:0",
            portal: None,
            remote: "file:remote".into(),
            epoch: "1s",
            scan_rate: "",
            log_size: "256MiB",
            log_sync: "background",
            more: String::new(),
            environment: Vec::new(),
        }
    }

    /// A second volume like the first, `disk1` on the file `disk1.img`, and room for it in the log.
    pub fn add_volume(&mut self) {
        let (name, store) = ("disk1".into(), "file:disk1.img".into());
        self.volumes.push(Volume { name, store, ..self.volumes[0].clone() });
        self.log_size = "512MiB";
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn config(&self) -> PathBuf {
        self.path("umbra.toml")
    }

    pub fn store(&self) -> PathBuf {
        self.path(&format!("{}disk0.img", self.place))
    }

    /// Puts state and store into a folder of the scene, as in `disk/`.
    pub fn move_to(&mut self, place: &'static str) {
        self.place = place;
        self.volumes[0].store = format!("file:{place}disk0.img");
    }

    /// Serves the file of disk0 by another server, and makes that the store.
    #[track_caller]
    pub fn use_export_of_the_store(&mut self) -> Nbdkit {
        let bare = Nbdkit::start(&self.path("bare.sock"), &["file", self.store().to_str().unwrap()]);
        self.volumes[0].store = bare.uri();
        self.volumes[0].create = None;
        bare
    }

    /// The configuration as TOML.
    pub fn toml(&self) -> String {
        let portals = self.portal.map(|port| PORTALS.map(|host| format!("{host}:{port}")));
        let portals = portals.map_or(String::new(), |portals| format!("iscsi = {portals:?}\n"));
        let mut text = format!(
            "state = \"{}state\"\n[listen]\nnbd = \"{}\"\n{portals}[remote]\nurl = \"{}\"\n[log]\nsize = \"{}\"\n\
             sync = \"{}\"\n[snapshot]\nepoch = \"{}\"\n",
            self.place, self.nbd, self.remote, self.log_size, self.log_sync, self.epoch
        );
        if !self.scan_rate.is_empty() {
            text += &format!("scan_rate = \"{}\"\n", self.scan_rate);
        }
        for volume in &self.volumes {
            text += &format!("[[volume]]\nname = \"{}\"\nstore = \"{}\"\n", volume.name, volume.store);
            if let Some(size) = volume.create {
                assert!(size.is_multiple_of(MIB));
                text += &format!("create = \"{}MiB\"\n", size / MIB);
            }
        }
        text + &self.more
    }

    /// `umbra` in the scene's folder, with its environment and none of ours that could reach a cloud.
    pub fn umbra(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_umbra"));
        for (name, _) in std::env::vars_os() {
            let name_text = name.to_string_lossy();
            if ["AWS_", "AZURE_", "GOOGLE_", "RUST_LOG", "NOTIFY_"].iter().any(|prefix| name_text.starts_with(prefix)) {
                command.env_remove(&name);
            }
        }
        command.args(arguments).current_dir(self.dir.path()).env("NO_PROXY", "127.0.0.1").env("RUST_BACKTRACE", "1");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> Finished {
        run(&mut self.umbra(arguments), COMMAND_LIMIT)
    }

    /// Starts `umbra serve` and waits until every export is ready.
    #[track_caller]
    pub fn serve(&self) -> Gateway<'_> {
        self.serve_with(&[])
    }

    #[track_caller]
    pub fn serve_with(&self, options: &[&str]) -> Gateway<'_> {
        fs::write(self.config(), self.toml()).unwrap();
        Gateway::start(self, options)
    }

    /// `umbra points` of disk0: those that are offered, oldest first.
    #[track_caller]
    pub fn points(&self) -> Vec<Point> {
        let listed = self.run(&["points", "--remote", &self.remote, "--volume", "disk0", "--json"]).ok().json();
        let points = listed["points"].as_array().unwrap_or_else(|| panic!("no list of points in {listed}"));
        let points: Vec<_> = points
            .iter()
            .map(|point| Point {
                number: point["number"].as_u64().unwrap(),
                time: point["time"].as_str().unwrap().to_owned(),
                sequence: point["sequence"].as_u64().unwrap(),
            })
            .collect();
        assert!(points.is_sorted_by_key(|point| point.number), "{points:?}");
        points
    }

    /// `umbra restore --json` of disk0 with more options.
    #[track_caller]
    pub fn restore(&self, at: &str, to: &str, more: &[&str]) -> Finished {
        self.restore_of("disk0", at, to, more)
    }

    #[track_caller]
    fn restore_of(&self, volume: &str, at: &str, to: &str, more: &[&str]) -> Finished {
        let fixed = ["restore", "--remote", &self.remote, "--volume", volume, "--at", at, "--to", to, "--json"];
        self.run(&[&fixed, more].concat())
    }

    /// Restores a point of disk0 and returns the image and what the command said.
    #[track_caller]
    pub fn restored(&self, at: &str) -> (Vec<u8>, Value) {
        self.restored_of("disk0", at)
    }

    #[track_caller]
    pub fn restored_of(&self, volume: &str, at: &str) -> (Vec<u8>, Value) {
        let target = self.path(&format!("restored-{}.img", at.replace(':', "-")));
        let _ = fs::remove_file(&target);
        let said = self.restore_of(volume, at, target.to_str().unwrap(), &[]).ok().json();
        let image = fs::read(&target).unwrap();
        fs::remove_file(&target).unwrap();
        (image, said)
    }

    /// `umbra verify --json` of disk0 with more options.
    #[track_caller]
    pub fn verify(&self, at: &str, more: &[&str]) -> Finished {
        let fixed = ["verify", "--remote", &self.remote, "--volume", "disk0", "--at", at, "--json"];
        self.run(&[&fixed, more].concat())
    }
}

/// Where two images differ first; none if they are the same.
pub fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    if a.len() != b.len() {
        return Some(a.len().min(b.len()));
    }
    if a == b { None } else { a.iter().zip(b).position(|(x, y)| x != y) }
}

#[track_caller]
pub fn assert_same_image(a: &[u8], b: &[u8]) {
    if let Some(at) = first_difference(a, b) {
        panic!("images of {} and {} bytes differ first at byte {at} (sector {})", a.len(), b.len(), at / 512);
    }
}

/// The file of a tool that `tests/setup.sh` puts under `target/test-tools`.
pub fn tool(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-tools").join(name);
    assert!(path.exists(), "{} is absent: run tests/setup.sh", path.display());
    path
}

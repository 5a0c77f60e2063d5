//! Disks of the state folder that hang or take nothing: clients go on, the status says so, and what nobody could take
//! note of is found afterwards. Hanging disks need root, for loop devices and mounts.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::cuts::assert_one_cut;
use crate::harness::{
    Filesystem, Gateway, INTERRUPTED, Load, MIB, NbdFuse, Nbdkit, Scene, Stamper, assert_same_image, program,
};
use crate::s3::Server;

/// What a client waits for a mark at most, 2 s, and what it takes to start one on a busy machine.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// What the gateway says when marks cannot be written.
pub const MARKS: [&str; 3] = [
    "doubts about the marks could not be recorded",
    "the marks are late; log and chain are told that they may be wrong",
    "the marks cannot be written",
];
/// What it says of a log whose disk failed.
pub const LOG: [&str; 4] = [
    INTERRUPTED,
    "the log is lost; the volume is no longer covered by it",
    "the log's failure could not be recorded",
    "the log has failed",
];
/// What the next start says of either.
pub const AFTERWARDS: [&str; 5] = [
    "marks could not be written before the last stop",
    "the marks are older than the log",
    "the marks are older than the remote copy",
    "the log had failed; it begins anew",
    "the log is lost; what only it covered is read again",
];

/// An ext4 on a disk of its own, on a part of the state folder.
struct Disk {
    _filesystem: Filesystem,
    _view: NbdFuse,
    server: Nbdkit,
}

impl Disk {
    #[track_caller]
    fn under(scene: &Scene, folder: &str, size: u64) -> Self {
        let image = scene.path("state-disk");
        fs::File::create(&image).unwrap().set_len(size).unwrap();
        fs::DirBuilder::new().mode(0o700).create(scene.path("state")).unwrap();
        let server = Nbdkit::start(&scene.path("state-disk.sock"), &["file", image.to_str().unwrap()]);
        let view = NbdFuse::start(&server.uri(), &scene.path("view"));
        let filesystem = Filesystem::make(&view.file(), &scene.path(folder), &["-m", "0"]);
        Self { _filesystem: filesystem, _view: view, server }
    }

    /// Answers nothing until it is healed.
    fn hang(&self) {
        self.server.signal(Signal::STOP);
    }

    fn heal(&self) {
        self.server.signal(Signal::CONT);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Else nothing can be unmounted.
        self.heal();
    }
}

/// Serves a volume all of which is cold: what is written to it next has to be marked.
#[track_caller]
fn serve_cold<'s>(scene: &'s Scene, allowed: &[&'static str]) -> Gateway<'s> {
    let mut gateway = scene.serve();
    gateway.settle();
    gateway.stop();
    let mut gateway = scene.serve().allow_each(allowed);
    let status = gateway.settle();
    assert_eq!(status.0["hot"], 0, "{status:?}");
    gateway
}

/// Writes 64 KiB in a region that nothing touches but this.
#[track_caller]
fn write_at(gateway: &Gateway<'_>, pattern: u32, megabyte: u64) {
    let begun = Instant::now();
    let write = format!("write -P {pattern} {megabyte}M 64k");
    program("qemu-io", &["-f", "raw", "-c", &write, gateway.uri()]).ok();
    let waited = begun.elapsed();
    assert!(waited < WAIT_MAX, "a client waited {waited:?} for a mark");
}

#[track_caller]
fn until_untracked(gateway: &mut Gateway<'_>) {
    let status = gateway.wait_until("untracked", Duration::from_secs(30), |status| status.state() == "untracked");
    assert!(status.0["lag_seconds"].as_f64().unwrap() > 0.0, "{status:?}");
}

/// The next start finds everything.
#[track_caller]
fn start_and_compare(scene: &Scene) {
    let mut gateway = scene.serve().allow_each(&AFTERWARDS);
    gateway.settle();
    gateway.stop();
    assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());
}

/// Counterexample 7.
#[test]
#[ignore = "loop devices and mounts need root"]
fn marks_whose_disk_hangs_hold_no_client_up_and_everything_is_compared_when_it_answers_or_after_a_kill() {
    let scene = Scene::new(64 * MIB);
    let disk = Disk::under(&scene, "state/marks", 32 * MIB);
    let mut gateway = serve_cold(&scene, &MARKS);
    disk.hang();
    write_at(&gateway, 9, 20);
    until_untracked(&mut gateway);
    write_at(&gateway, 10, 40);
    let newest = gateway.status().newest();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(gateway.status().newest(), newest, "a point was made while nothing was tracked");
    disk.heal();
    gateway.settle();
    assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());
    gateway.stop();

    let mut gateway = serve_cold(&scene, &MARKS);
    disk.hang();
    write_at(&gateway, 11, 24);
    until_untracked(&mut gateway);
    // What is written now is in no mark that could still come to stand on the disk.
    write_at(&gateway, 12, 44);
    gateway.signal(Signal::KILL);
    disk.heal();
    gateway.kill();
    start_and_compare(&scene);
}

/// Counterexample 7.
#[test]
#[ignore = "loop devices and mounts need root"]
fn a_log_whose_disk_hangs_holds_no_client_up_and_goes_on_when_it_answers_or_after_a_kill() {
    let scene = Scene::new(64 * MIB);
    let disk = Disk::under(&scene, "state/log", 320 * MIB);
    let mut gateway = scene.serve().allow_each(&LOG);
    gateway.settle();
    disk.hang();
    let load = Load { ops: 1000, rate: 0, ..Load::MIXED };
    let begun = Instant::now();
    let mut trace = Stamper::start(&load, gateway.uri(), &scene.path("")).finish();
    let waited = begun.elapsed();
    assert!(waited < 4 * WAIT_MAX, "clients waited {waited:?}");
    let overflowed = |status: &crate::harness::Status| status.state() == "overflowed";
    gateway.wait_until("overflowed", Duration::from_secs(30), overflowed);
    trace.append(Stamper::start(&load, gateway.uri(), &scene.path("")).finish());
    assert_one_cut(&scene, "latest", &trace);
    disk.heal();
    gateway.settle();
    trace.append(Stamper::start(&load, gateway.uri(), &scene.path("")).finish());
    gateway.settle();
    assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());

    disk.hang();
    trace.append(Stamper::start(&load, gateway.uri(), &scene.path("")).finish());
    gateway.wait_until("overflowed", Duration::from_secs(30), overflowed);
    gateway.signal(Signal::KILL);
    disk.heal();
    gateway.kill();
    start_and_compare(&scene);
    assert_one_cut(&scene, "latest", &trace);
}

/// Counterexample 7, and fault test 19 for a limit that marks and log meet together.
#[test]
fn a_state_folder_that_takes_nothing_costs_no_client_anything_and_a_kill_nothing_is_known_of_is_no_loss() {
    let server = Server::start(32);
    let mut scene = Scene::new(64 * MIB);
    scene.use_s3(&server.endpoint());
    fs::File::create(scene.store()).unwrap().set_len(64 * MIB).unwrap();
    let _bare = scene.use_export_of_the_store();
    let mut gateway = serve_cold(&scene, &[&MARKS[..], &LOG[..]].concat());
    let chain = |server: &Server| server.objects().keys().filter(|name| name.contains("/chain/")).count();
    let told = chain(&server);
    program("prlimit", &["--pid", &gateway.pid().to_string(), "--fsize=0"]).ok();
    write_at(&gateway, 9, 20);
    until_untracked(&mut gateway);
    let load = Load { ops: 1000, rate: 0, ..Load::MIXED };
    Stamper::start(&load, gateway.uri(), &scene.path("")).finish();
    write_at(&gateway, 10, 40);
    // Marks and log can say nothing of it: the chain has to.
    gateway.wait_until("told to the chain", Duration::from_secs(30), |_| chain(&server) > told);
    gateway.kill();
    start_and_compare(&scene);
}

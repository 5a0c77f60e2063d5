//! The disk of the state folder is full, or takes no more of a file: clients do not notice, and no point is wrong.

use std::fs;
use std::io::Write;
use std::time::Duration;

use crate::cuts::assert_one_cut;
use crate::harness::{Filesystem, INTERRUPTED, Load, MIB, Scene, Stamper, assert_same_image, program};
use crate::s3::Server;
use crate::trace::Trace;
use crate::untracked::{AFTERWARDS, LOG, MARKS};

/// Of a stop or a start that cannot write what it wants to remember.
const UNWRITABLE: &str = "the state folder cannot be written";

/// Writes zeroes until there is no space for another block.
#[track_caller]
fn fill(folder: &std::path::Path) -> std::path::PathBuf {
    let path = folder.join("ballast");
    let mut file = fs::File::create(&path).unwrap();
    let error = loop {
        // Ever smaller, so that nothing is left.
        if let Err(error) = file.write_all(&[0; 65536]).and_then(|()| file.sync_data()) {
            break error;
        }
    };
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    for size in [4096, 512, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
    path
}

/// Fault test 19, no space.
#[test]
#[ignore = "loop devices and mounts need root"]
fn a_full_disk_of_the_state_folder_fails_no_client_and_makes_no_wrong_point() {
    let mut scene = Scene::new(64 * MIB);
    let image = scene.path("state-disk");
    fs::File::create(&image).unwrap().set_len(320 * MIB).unwrap();
    let state = Filesystem::make(&image, &scene.path("state"), &["-m", "0"]);
    scene.log_sync = "flush";
    let mut trace = Trace::default();
    let mut gateway = scene.serve().allow(UNWRITABLE);
    gateway.settle();
    let ballast = fill(state.folder());
    // More than the log holds, so that every segment of it is written again.
    for _ in 0..3 {
        let load = Load { ops: 2500, rate: 0, max_sectors: 256, ..Load::MIXED };
        trace.append(Stamper::start(&load, gateway.uri(), &scene.path("")).finish());
        assert_eq!(gateway.settle().state(), "shadowing");
    }
    assert_one_cut(&scene, "latest", &trace);
    // The stop cannot note that it was clean, and says so; all is published nevertheless.
    gateway.stop_unfinished();
    assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());

    let config = scene.config();
    let refused = scene.run(&["serve", config.to_str().unwrap(), "--log", "json"]).expect_code(1);
    assert!(refused.stderr.contains("/state/"), "{}", refused.stderr);
    assert!(refused.stderr.contains("No space left"), "{}", refused.stderr);

    fs::remove_file(ballast).unwrap();
    let mut gateway = scene.serve();
    trace.append(Stamper::start(&Load { ops: 300, ..Load::MIXED }, gateway.uri(), &scene.path("")).finish());
    gateway.settle();
    gateway.stop();
    assert_one_cut(&scene, "latest", &trace);
    assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());
    state.check().ok();
}

/// Fault test 19, RLIMIT_FSIZE; and 18, a log whose device takes nothing.
#[test]
fn a_log_that_may_not_be_written_fails_no_client_and_makes_no_wrong_point() {
    let server = Server::start(31);
    let mut scene = Scene::new(64 * MIB);
    scene.use_s3(&server.endpoint());
    fs::File::create(scene.store()).unwrap().set_len(64 * MIB).unwrap();
    let _bare = scene.use_export_of_the_store();
    // Less than a segment's opening can be written, so that the log is not found sound again.
    let mut gateway = scene.serve().allow_each(&LOG).allow_each(&MARKS).allow_each(&[
        "not everything was published; what is hot will be read again",
        "what they call hot is read again",
        "clients change what has been copied faster than it is uploaded",
    ]);
    gateway.settle();
    let load = Load { ops: 2000, rate: 0, ..Load::MIXED };
    let mut trace = Stamper::start(&load, gateway.uri(), &scene.path("")).finish();
    gateway.settle();
    // Under load, when all is hot: else a mark would be written first, and fail, and nothing be logged any more.
    let stamper = Stamper::start(&Load { ops: 10_000, rate: 2000, ..load }, gateway.uri(), &scene.path(""));
    std::thread::sleep(Duration::from_millis(500));
    gateway.wait_until("hot all over", Duration::from_secs(30), |status| status.0["hot"] == status.0["size"]);
    let limit = "--fsize=4096";
    program("prlimit", &["--pid", &gateway.pid().to_string(), limit]).ok();
    trace.append(stamper.finish());
    gateway.wait_for_line(INTERRUPTED);
    trace.append(Stamper::start(&load, gateway.uri(), &scene.path("")).finish());
    let status = gateway.status();
    assert!(status.state() != "shadowing", "{status:?}");
    assert_one_cut(&scene, "latest", &trace);
    gateway.stop_unfinished();
    assert_one_cut(&scene, "latest", &trace);

    // The superblock could not say that the log had failed: it ends before what the chain shows.
    let mut gateway = scene.serve().allow_each(&AFTERWARDS).allow("the log does not fit the remote copy");
    trace.append(Stamper::start(&load, gateway.uri(), &scene.path("")).finish());
    gateway.settle();
    gateway.stop();
    assert_one_cut(&scene, "latest", &trace);
    assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());
}

/// A limit on the store itself shows as the store's own error, and the gateway lives on.
#[test]
fn a_store_that_may_not_be_written_past_a_limit_gives_its_own_error() {
    let scene = Scene::new(64 * MIB);
    let mut gateway = scene.serve().allow_each(&[
        "the store failed a change; reading back what it holds",
        // qemu-io asks for FUA, so that what was written before is in doubt too.
        "the store failed a flush; what is not known to be on it will be compared",
    ]);
    gateway.settle();
    let limit = format!("--fsize={}", 32 * MIB);
    program("prlimit", &["--pid", &gateway.pid().to_string(), &limit]).ok();
    let write = |at: &str| program("qemu-io", &["-f", "raw", "-c", &format!("write -P 7 {at} 64k"), gateway.uri()]);
    write("1M").ok();
    let refused = write("40M");
    assert!(!refused.status.success(), "{}", refused.stdout);
    write("2M").ok();
    gateway.settle();
    gateway.stop();
    assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());
}

//! A kernel's filesystem on the volume, with databases and files at work on it: every point is what a power cut could
//! have left of it, and nothing that was durable before the point is absent. Needs root, for loop devices and mounts.

use std::fs;
use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant, UNIX_EPOCH};

use crate::harness::{
    COMMAND_LIMIT, Filesystem, MIB, NbdFuse, Point, Running, Scene, assert_same_image, extent, program, python,
};

/// Restores the point, lets the kernel replay the journal, and has the filesystem, the databases and the files checked.
#[track_caller]
fn assert_sound(scene: &Scene, point: &Point, ledger: &str) {
    let target = scene.path("restored.img");
    let _ = fs::remove_file(&target);
    scene.restore(&point.number.to_string(), target.to_str().unwrap(), &[]).ok();
    let copy = Filesystem::mount(&target, &scene.path("restored"));
    let time = humantime::parse_rfc3339(&point.time).unwrap().duration_since(UNIX_EPOCH).unwrap();
    let mut command = python("filesystem.py");
    command.arg("check").arg(copy.folder()).arg(time.as_nanos().to_string());
    let mut check = Running::start(&mut command, Stdio::piped());
    // One that refuses its input says why, and that counts.
    let _ = check.stdin.take().unwrap().write_all(ledger.as_bytes());
    let said = check.finish(COMMAND_LIMIT);
    println!("point {} of {}: {}", point.number, point.time, said.stdout.replace('\n', "; "));
    assert!(said.status.success(), "point {} of {}:\n{}", point.number, point.time, said.stderr);
    copy.check().ok();
}

#[test]
#[ignore = "loop devices and mounts need root"]
fn every_point_of_an_ext4_at_work_is_clean_and_has_what_was_durable_before_it() {
    let scene = Scene::new(256 * MIB);
    let mut gateway = scene.serve();
    gateway.settle();
    let view = NbdFuse::start(gateway.uri(), &scene.path("view"));
    let disk = Filesystem::make(&view.file(), &scene.path("disk"), &[]);
    // The points of a volume without a filesystem need no check.
    program("sync", &["--file-system", disk.folder().to_str().unwrap()]).ok();
    gateway.settle();
    let made = scene.points().last().unwrap().number;

    let mut command = python("filesystem.py");
    let mut work = Running::start(command.arg("work").arg(disk.folder()).args(["--seed", "5"]), Stdio::piped());
    let wanted = u64::from(extent(12, 200));
    let end = Instant::now() + Duration::from_secs(10 * wanted);
    while gateway.status().newest() < made + wanted {
        assert!(Instant::now() < end && work.is_running(), "{}", work.said());
        std::thread::sleep(Duration::from_millis(100));
    }
    drop(work.stdin.take());
    let ledger = work.finish(COMMAND_LIMIT).ok().stdout + "\n";
    assert!(ledger.lines().count() > 200, "too little was done: {} lines", ledger.lines().count());
    disk.check().ok();
    view.stop();
    gateway.settle();
    gateway.stop();
    assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());

    let points = scene.points();
    assert!(points.len() as u64 >= wanted, "{points:?}");
    for point in points.iter().filter(|point| point.number >= made) {
        assert_sound(&scene, point, &ledger);
    }
}

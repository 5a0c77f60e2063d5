//! Another disk stands where the one was that is shadowed: nothing of it becomes a point unless the user says so.

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use crate::harness::{Gateway, INTERRUPTED, Load, MIB, STORE_CHANGED, Scene, Stamper, assert_same_image, program};

const ENDED: &str = "shadowing has ended; clients are served";
const SET_BACK: &str = "the store is not what was published last";

/// A volume with more data than a sample needs, most of it far from what is hot later, shadowed, and a clean stop.
fn shadow_and_stop(scene: &Scene) {
    let mut gateway = scene.serve();
    let fill = ["-c", "write -q -P 7 0 56M", "-f", "raw", gateway.uri()];
    program("qemu-io", &fill).ok();
    Stamper::start(&Load { ops: 200, rate: 0, ..Load::MIXED }, gateway.uri(), &scene.path("")).finish();
    gateway.settle();
    gateway.stop();
}

/// The file keeps its name and inode, as a LUN keeps its name whose content was replaced.
fn blank(scene: &Scene) {
    let file = fs::OpenOptions::new().write(true).open(scene.store()).unwrap();
    file.write_all_at(&vec![0; 64 * MIB as usize], 0).unwrap();
    file.sync_all().unwrap();
}

/// Clients are served, nothing is published, and the status tells what to do.
#[track_caller]
fn assert_asks(scene: &Scene, mut gateway: Gateway<'_>, points: usize) {
    let status = gateway.wait_until("asking", Duration::from_secs(60), |status| status.state() == "fenced");
    let error = status.0["last_error"].as_str().unwrap_or_default();
    assert!(error.contains("--adopt") && error.contains("as if this were another disk"), "{status:?}");
    Stamper::start(&Load { ops: 50, rate: 0, ..Load::MIXED }, gateway.uri(), &scene.path("")).finish();
    assert_eq!(scene.points().len(), points, "a point was made of a blank disk");
    gateway.stop_unfinished();
}

#[track_caller]
fn assert_adopted(scene: &Scene, mut gateway: Gateway<'_>, points: usize) {
    let limit = Duration::from_secs(60);
    gateway.wait_until("adopted", limit, |status| status.is_settled() && scene.points().len() > points);
    gateway.stop();
    assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());
}

/// Counterexample 8.
#[test]
fn a_blank_disk_of_the_same_name_is_not_published_until_it_is_adopted() {
    let scene = Scene::new(64 * MIB);
    shadow_and_stop(&scene);
    let (points, before) = (scene.points().len(), fs::read(scene.store()).unwrap());
    blank(&scene);
    assert_asks(&scene, scene.serve().allow(STORE_CHANGED).allow(ENDED), points);
    assert_same_image(&scene.restored("latest").0, &before);
    assert_adopted(&scene, scene.serve_with(&["--adopt"]).allow(STORE_CHANGED), points);
}

/// Counterexample 8, where the store cannot tell that it was changed.
#[test]
fn a_blank_disk_behind_the_same_export_is_not_published_until_it_is_adopted() {
    let mut scene = Scene::new(64 * MIB);
    fs::File::create(scene.store()).unwrap().set_len(64 * MIB).unwrap();
    let _bare = scene.use_export_of_the_store();
    shadow_and_stop(&scene);
    let points = scene.points().len();
    blank(&scene);
    assert_asks(&scene, scene.serve().allow(SET_BACK).allow(ENDED), points);
    assert_adopted(&scene, scene.serve_with(&["--adopt"]).allow(SET_BACK), points);
}

/// Counterexample 8, as it happens: the disk dies under its gateway, and is replaced.
#[test]
fn a_blank_disk_in_place_of_one_that_died_is_not_published_until_it_is_adopted() {
    let mut scene = Scene::new(64 * MIB);
    fs::File::create(scene.store()).unwrap().set_len(64 * MIB).unwrap();
    let bare = scene.use_export_of_the_store();
    shadow_and_stop(&scene);
    let mut gateway = scene.serve().allow_each(&[
        INTERRUPTED,
        "connection lost; reconnecting",
        "the disk is away; requests are refused",
        "the store was lost; what it may have forgotten will be compared",
        "disconnected: the disk lost its store",
        // Whether the write was admitted before the loss was noticed.
        "not everything was published; what is hot will be read again",
        "the store failed its last flush; what is hot will be read again",
    ]);
    drop(bare);
    // Its client is told what the bare disk would tell.
    drop(program("qemu-io", &["-c", "write -q -P 9 0 4k", "-f", "raw", gateway.uri()]).expect_code(1));
    gateway.wait_until("interrupted", Duration::from_secs(30), |status| status.state() == "overflowed");
    gateway.stop_unfinished();
    let points = scene.points().len();
    blank(&scene);
    let _other = scene.use_export_of_the_store();
    assert_asks(&scene, scene.serve().allow(ENDED), points);
    assert_adopted(&scene, scene.serve_with(&["--adopt"]), points);
}

#[test]
fn another_file_is_refused_until_it_is_adopted_and_one_that_was_cut_is_refused_always() {
    let mut scene = Scene::new(64 * MIB);
    shadow_and_stop(&scene);
    scene.volumes[0].create = None;
    let points = scene.points().len();
    let config = scene.config();
    fs::copy(scene.store(), scene.path("other.img")).unwrap();
    fs::rename(scene.path("other.img"), scene.store()).unwrap();
    fs::write(&config, scene.toml()).unwrap();
    let refused = scene.run(&["serve", config.to_str().unwrap()]).expect_code(1);
    assert!(
        refused.stderr.contains("was shadowed by this name") && refused.stderr.contains("--adopt"),
        "{}",
        refused.stderr
    );
    assert_adopted(&scene, scene.serve_with(&["--adopt"]).allow(STORE_CHANGED), points);

    fs::OpenOptions::new().write(true).open(scene.store()).unwrap().set_len(48 * MIB).unwrap();
    for options in [&[][..], &["--adopt"]] {
        let refused = scene.run(&[&["serve", config.to_str().unwrap()], options].concat()).expect_code(1);
        assert!(refused.stderr.contains("what was cut off"), "{options:?}: {}", refused.stderr);
    }
}

//! Two gateways want one state folder, one disk or one remote volume: one has it, the other is told so.

use std::fs;
use std::time::Duration;

use rustix::process::Signal;

use crate::harness::{Gateway, Load, MIB, Scene, Stamper, assert_same_image};

/// What a gateway logs that is fenced.
const FENCED: [&str; 1] = ["shadowing has ended; clients are served"];

fn write(gateway: &Gateway<'_>, scene: &Scene) {
    let load = Load { ops: 200, rate: 0, ..Load::MIXED };
    assert_eq!(Stamper::start(&load, gateway.uri(), &scene.path("")).finish().answered(), 200);
}

/// Reads through the gateway what its store has.
#[track_caller]
fn assert_serves_reads(gateway: &Gateway<'_>, scene: &Scene) {
    let copy = scene.path("copy.img");
    let _ = fs::remove_file(&copy);
    crate::harness::program("nbdcopy", &[gateway.uri(), copy.to_str().unwrap()]).ok();
    assert_same_image(&fs::read(copy).unwrap(), &fs::read(scene.store()).unwrap());
}

/// A scene whose store is a copy of the other's, made while nobody writes, and whose remote is the same.
fn clone_of(scene: &Scene) -> Scene {
    let mut other = Scene::new(64 * MIB);
    other.remote = format!("file:{}", scene.path("remote").display());
    fs::copy(scene.store(), other.store()).unwrap();
    other
}

/// Names of all objects that the gateway of a generation has put, besides entries.
fn packs_of(scene: &Scene, generation: u64) -> Vec<String> {
    let name = |path: std::path::PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    let packs = crate::restoring::packs(scene).into_iter().map(name);
    packs.filter(|name| name.starts_with(&format!("{generation:08x}-"))).collect()
}

/// The first is fenced, says so, serves its clients all the same and uploads nothing any more.
#[track_caller]
fn assert_fenced(first: &mut Gateway<'_>, scene: &Scene, second: &mut Gateway<'_>) {
    let status = first.wait_until("fenced", Duration::from_secs(30), |status| status.state() == "fenced");
    assert!(status.0["last_error"].as_str().is_some_and(|error| error.contains("fenced")), "{status:?}");
    first.wait_for_line("fenced at entry");
    let (first_packs, second_packs) = (packs_of(scene, 1), packs_of(scene, 2));
    assert!(!first_packs.is_empty() && !second_packs.is_empty(), "{first_packs:?} {second_packs:?}");
    write(first, scene);
    assert_serves_reads(first, scene);
    // As long as the other needs for two points, this one would need for its own.
    for _ in 0..2 {
        write(second, second.scene());
        second.settle();
    }
    assert_eq!(packs_of(scene, 1), first_packs, "uploaded after it was fenced");
    assert_eq!(first.status().state(), "fenced");
}

#[test]
fn a_second_gateway_on_the_same_state_is_refused_and_harms_nothing() {
    let scene = Scene::new(64 * MIB);
    let mut gateway = scene.serve();
    write(&gateway, &scene);
    let config = scene.config();
    let refused = scene.run(&["serve", config.to_str().unwrap(), "--log", "json"]).expect_code(1);
    let state = scene.path("state");
    for word in ["is in use by another gateway", state.to_str().unwrap()] {
        assert!(refused.stderr.contains(word), "no word of {word}: {}", refused.stderr);
    }
    write(&gateway, &scene);
    assert_eq!(gateway.settle().state(), "shadowing");
    gateway.stop();
    assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());
}

#[test]
fn a_second_gateway_on_the_same_file_is_refused_and_harms_nothing() {
    let scene = Scene::new(64 * MIB);
    let mut gateway = scene.serve();
    write(&gateway, &scene);
    let mut other = Scene::new(64 * MIB);
    let store = scene.store();
    other.volumes[0].store = format!("file:{}", store.display());
    other.volumes[0].create = None;
    fs::write(other.config(), other.toml()).unwrap();
    let refused = other.run(&["serve", other.config().to_str().unwrap(), "--log", "json"]).expect_code(1);
    for word in ["is open for writing in another program", store.to_str().unwrap()] {
        assert!(refused.stderr.contains(word), "no word of {word}: {}", refused.stderr);
    }
    assert!(!other.path("remote/names").exists(), "something was published");
    write(&gateway, &scene);
    gateway.settle();
    gateway.stop();
    assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());
}

/// Fault test 36, a clone.
#[test]
fn a_gateway_with_another_state_waits_for_the_first_or_fences_it_and_clients_of_both_are_served() {
    let scene = Scene::new(64 * MIB);
    let mut first = scene.serve().allow_each(&FENCED);
    write(&first, &scene);
    first.settle();

    let other = clone_of(&scene);
    let mut second = other.serve_with(&["--adopt"]).allow("shadowing has ended; clients are served");
    let status = second.wait_until("refused", Duration::from_secs(30), |status| !status.0["last_error"].is_null());
    assert!(status.0["last_error"].as_str().unwrap().contains("--take-over"), "{status:?}");
    write(&second, &other);
    write(&first, &scene);
    first.settle();
    second.stop_unfinished();
    assert_same_image(&other.restored("latest").0, &fs::read(scene.store()).unwrap());

    let mut second = other.serve_with(&["--adopt", "--take-over"]);
    second.settle();
    write(&first, &scene);
    assert_fenced(&mut first, &scene, &mut second);
    first.stop_unfinished();
    second.stop();
    assert_same_image(&other.restored("latest").0, &fs::read(other.store()).unwrap());
}

/// Fault test 36, a pause.
#[test]
fn a_gateway_that_was_stopped_and_wakes_up_behind_another_is_fenced() {
    let scene = Scene::new(64 * MIB);
    let mut first = scene.serve().allow_each(&FENCED);
    write(&first, &scene);
    first.settle();
    // With writes on their way to the remote, so that it wakes up in the middle of publishing.
    let load = Load { rate: 400, ops: 4000, ..Load::MIXED };
    let stamper = Stamper::start(&load, first.uri(), &scene.path(""));
    first.wait_for_points(2);
    first.signal(Signal::STOP);

    let other = clone_of(&scene);
    let mut second = other.serve_with(&["--adopt", "--take-over"]);
    second.settle();
    write(&second, &other);
    second.settle();
    first.signal(Signal::CONT);
    assert_eq!(stamper.finish().answered(), 4000);
    assert_fenced(&mut first, &scene, &mut second);
    first.stop_unfinished();
    second.stop();
    assert_same_image(&other.restored("latest").0, &fs::read(other.store()).unwrap());
}

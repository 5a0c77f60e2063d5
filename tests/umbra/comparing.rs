//! Stores that were changed past the gateway while it serves them.

use std::fs;

use crate::harness::{Finished, Load, MIB, Scene, Stamper, assert_same_image, program};

/// What the gateway says of such a change.
const CHANGED: &str = "the store was changed past the gateway, or its copy is damaged";

/// `umbra verify` of disk0 through its gateway, if that runs.
#[track_caller]
fn verify(scene: &Scene, more: &[&str]) -> Finished {
    let config = scene.config();
    let fixed = ["verify", "--config", config.to_str().unwrap(), "--volume", "disk0", "--json", "--against"];
    scene.run(&[&fixed, more].concat())
}

/// Fault test 17.
#[test]
fn a_byte_changed_behind_the_gateway_is_found_and_the_next_point_has_it() {
    let scene = Scene::new(64 * MIB);
    let mut gateway = scene.serve().allow(CHANGED);
    Stamper::start(&Load { ops: 300, rate: 0, ..Load::MIXED }, gateway.uri(), &scene.path("")).finish();
    gateway.settle();
    let said = verify(&scene, &[]).ok().json();
    assert_eq!(said["against"]["gateway"]["compared_bytes"], 64 * MIB, "{said}");
    assert_eq!(said["against"]["gateway"]["verdict"], "equal", "{said}");

    let at = 40 * MIB + 1000;
    let mut odd = fs::read(scene.store()).unwrap()[at as usize];
    odd ^= 0x55;
    fs::write(scene.path("odd"), [odd]).unwrap();
    let (from, to) = (scene.path("odd"), scene.store());
    let (from, to) = (format!("if={}", from.display()), format!("of={}", to.display()));
    program("dd", &[&from, &to, "bs=1", "count=1", &format!("seek={at}"), "conv=notrunc", "status=none"]).ok();

    let there = serde_json::json!([{"offset": 40 * MIB + 512, "length": 512}]);
    let said = verify(&scene, &["disk0.img", "--no-repair"]).expect_code(1);
    assert!(said.stderr.contains("differs from the point in 512 B"), "{}", said.stderr);
    let said = said.json();
    assert_eq!(said["against"]["different"], there, "{said}");
    assert_eq!(said["against"]["gateway"]["verdict"], "left", "{said}");

    let said = verify(&scene, &["disk0.img"]).expect_code(1);
    assert!(said.stderr.contains("the next recovery point has what the store holds"), "{}", said.stderr);
    let said = said.json();
    assert_eq!(said["against"]["different"], there, "{said}");
    assert_eq!(said["against"]["gateway"]["repaired_bytes"], 512, "{said}");
    gateway.wait_for_line(CHANGED);
    let status = gateway.settle().0;
    assert_eq!(status["differing"], 2 * 512, "found twice: {status}");
    assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());
    assert_eq!(verify(&scene, &[]).ok().json()["against"]["different"], serde_json::json!([]));
    gateway.stop();
}

#[test]
fn a_store_that_clients_write_equals_its_copy_to_its_gateway_and_is_read_without_it() {
    let scene = Scene::new(64 * MIB);
    let mut gateway = scene.serve();
    gateway.settle();
    let load = Load { hot: 0, rate: 3000, ..Load::MIXED };
    let stamper = Stamper::start(&load, gateway.uri(), &scene.path(""));
    for _ in 0..5 {
        let said = verify(&scene, &[]).ok().json();
        let of_gateway = &said["against"]["gateway"];
        let bytes = |field: &str| of_gateway[field].as_u64().unwrap();
        assert_eq!(bytes("compared_bytes") + bytes("changed_bytes"), 64 * MIB, "{said}");
    }
    stamper.stop();
    gateway.settle();
    gateway.stop();
    let said = verify(&scene, &[]).ok().json();
    assert!(said["against"]["gateway"].is_null(), "{said}");
    assert_eq!(said["against"]["different"], serde_json::json!([]), "{said}");
}

#[test]
fn a_scheduled_comparison_shows_in_the_status() {
    let mut scene = Scene::new(64 * MIB);
    scene.epoch = "1s\"\nscrub = \"1h";
    let mut gateway = scene.serve();
    // Nothing was written, so that there is nothing to read slowly.
    let limit = std::time::Duration::from_secs(60);
    let status = gateway.wait_until("compared", limit, |status| !status.0["scrub"]["finished"].is_null());
    let scrub = &status.0["scrub"];
    assert_eq!(
        (&scrub["compared"], &scrub["total"], &scrub["differing"]),
        (&(64 * MIB).into(), &(64 * MIB).into(), &0.into())
    );
    let config = scene.config();
    let plain = scene.run(&["status", config.to_str().unwrap()]).ok();
    assert!(plain.stdout.contains("scrub: 100% of this round, last finished 2"), "{}", plain.stdout);
    gateway.stop();
}

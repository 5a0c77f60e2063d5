//! The main job against object stores over real HTTP, and against one that fails in every way.

use std::fs;
use std::time::{Duration, Instant};

use crate::cuts::{assert_one_cut, sample};
use crate::harness::{
    Azurite, INTERRUPTED, Load, MIB, Moto, REMOTE_AWAY, Scene, Stamper, Status, assert_same_image, program,
};
use crate::s3::{Faults, Policy, Server};

/// Shadow a loaded disk, lose it, restore it at several points. Returns all that the gateway has printed.
#[track_caller]
fn main_job(scene: &Scene, patience: Duration) -> String {
    let mut gateway = scene.serve().patience(patience);
    if !patience.is_zero() {
        // A remote that fails on purpose is reported; nothing else may be.
        gateway = gateway.allow_each(&REMOTE_AWAY);
    }
    let stamper = Stamper::start(&Load::MIXED, gateway.uri(), &scene.path(""));
    gateway.wait_for_points(4);
    let trace = stamper.stop();
    gateway.settle();
    let printed = gateway.printed();
    gateway.stop();

    let store = fs::read(scene.store()).unwrap();
    fs::remove_file(scene.store()).unwrap();
    fs::remove_dir_all(scene.path("state")).unwrap();
    for point in sample(&scene.points(), 3) {
        assert_one_cut(scene, &point.number.to_string(), &trace);
    }
    assert_same_image(&scene.restored("latest").0, &store);
    let verified = scene.verify("latest", &[]).ok();
    printed + &verified.stdout + &verified.stderr
}

#[track_caller]
fn assert_no_secrets(text: &str) {
    for secret in Scene::secrets() {
        assert!(!text.contains(secret), "a secret was printed:\n{text}");
    }
}

#[test]
fn the_main_job_passes_against_moto() {
    let moto = Moto::start();
    let mut scene = Scene::new(64 * MIB);
    scene.use_s3(moto.endpoint());
    assert_no_secrets(&main_job(&scene, Duration::ZERO));
}

#[test]
fn the_main_job_passes_against_azurite() {
    let azurite = Azurite::start();
    let mut scene = Scene::new(64 * MIB);
    scene.use_azure(&azurite);
    assert_no_secrets(&main_job(&scene, Duration::ZERO));
}

/// Fault tests 26, 27, 29 and 31.
#[test]
fn the_main_job_passes_against_an_s3_server_that_fails_in_every_way() {
    let server = Server::start(1);
    server.set_faults(Faults::OFTEN);
    let mut scene = Scene::new(64 * MIB);
    scene.use_s3(&server.endpoint());
    main_job(&scene, Duration::from_secs(120));
    let counts = server.counts();
    for (fault, met) in [
        ("500", counts.internal),
        ("503", counts.slow_down),
        ("lost answer", counts.lost_answers),
        ("torn body", counts.torn),
    ] {
        assert!(met > 0, "no request met the fault {fault}: {counts:?}");
    }
}

/// Fault test 33.
#[test]
fn a_remote_that_stalls_delays_points_and_no_client() {
    let server = Server::start(2);
    let mut scene = Scene::new(64 * MIB);
    scene.use_s3(&server.endpoint());
    let mut gateway = scene.serve().allow_each(&REMOTE_AWAY).patience(Duration::from_secs(60));
    gateway.settle();
    server.set_faults(Faults { stall: 1, ..Faults::NONE });
    let write = |count| Load { ops: count, rate: 0, ..Load::ONE_BY_ONE };
    let mut trace = Stamper::start(&write(100), gateway.uri(), &scene.path("")).finish();
    let end = Instant::now() + Duration::from_secs(30);
    while server.counts().stalls == 0 {
        assert!(Instant::now() < end, "nothing is published");
        std::thread::sleep(Duration::from_millis(20));
    }
    // One by one: each of them would wait for the remote.
    trace.append(Stamper::start(&write(2000), gateway.uri(), &scene.path("")).finish());
    let status = gateway.status();
    assert!(!status.is_settled() && status.0["lag_writes"].as_u64().unwrap() > 0, "{status:?}");
    server.set_faults(Faults::NONE);
    gateway.settle();
    gateway.stop();
    assert_one_cut(&scene, "latest", &trace);
}

/// Fault test 30.
#[test]
fn publishing_needs_no_right_to_overwrite_to_list_or_to_delete() {
    let server = Server::start(3);
    server.set_policy(Policy::CreateOnly);
    let mut scene = Scene::new(64 * MIB);
    scene.use_s3(&server.endpoint());
    let mut gateway = scene.serve();
    let trace = Stamper::start(&Load { ops: 2000, ..Load::MIXED }, gateway.uri(), &scene.path("")).finish();
    gateway.settle();
    gateway.stop();
    assert_eq!(server.counts().refused, 0, "{:?}", server.counts());
    assert_one_cut(&scene, "latest", &trace);
}

#[test]
fn no_secret_is_printed_when_the_remote_refuses_us() {
    let server = Server::start(4);
    server.set_policy(Policy::Nothing);
    let mut scene = Scene::new(64 * MIB);
    scene.use_s3(&server.endpoint());
    scene.environment.push(("RUST_LOG", "trace".into()));
    let gateway = scene.serve().allow_each(&REMOTE_AWAY);
    // Clients are served all the same.
    Stamper::start(&Load { ops: 500, rate: 0, ..Load::MIXED }, gateway.uri(), &scene.path("")).finish();
    let status = gateway.status().0.to_string();
    let config = scene.config();
    // What is not there is denied too, to those who may not list: so this may be a bucket that is still empty.
    let check = scene.run(&["check", config.to_str().unwrap()]).ok();
    assert!(check.stdout.contains("denies access"), "{}", check.stdout);
    let points = scene.run(&["points", "--remote", &scene.remote, "--volume", "disk0"]).expect_code(1);
    let verify = scene.verify("latest", &[]).expect_code(1);
    let all = [gateway.printed(), status, check.stdout, check.stderr, points.stderr, verify.stderr].concat();
    assert!(server.counts().refused > 0);
    gateway.stop_at_once();
    assert_no_secrets(&all);
}

/// Fault test 18.
#[test]
fn a_full_log_fails_no_client_and_heals() {
    let server = Server::start(5);
    let mut scene = Scene::new(64 * MIB);
    scene.use_s3(&server.endpoint());
    let mut gateway = scene.serve().allow_each(&REMOTE_AWAY).allow(INTERRUPTED).patience(Duration::from_secs(60));
    gateway.settle();
    server.set_faults(Faults { internal: 1, ..Faults::NONE });
    let source = scene.path("source.img");
    for round in 0..6 {
        fs::write(&source, vec![round + 1; 64 * MIB as usize]).unwrap();
        program("nbdcopy", &["--flush", source.to_str().unwrap(), gateway.uri()]).ok();
    }
    let status = gateway.status();
    assert_eq!(status.state(), "overflowed", "{status:?}");
    server.set_faults(Faults::NONE);
    gateway.settle();
    gateway.stop();
    assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());
}

#[test]
fn volumes_whose_log_was_full_are_resynced_side_by_side() {
    let server = Server::start(14);
    let mut scene = Scene::new(64 * MIB);
    scene.use_s3(&server.endpoint());
    scene.add_volume();
    // So that neither is over before the other begins.
    scene.scan_rate = "8MiB/s";
    let mut gateway = scene.serve().allow_each(&REMOTE_AWAY).allow(INTERRUPTED).patience(Duration::from_secs(60));
    gateway.wait_until_both("settled", Status::is_settled);
    server.set_faults(Faults { internal: 1, ..Faults::NONE });
    let source = scene.path("source.img");
    for round in 0..7 {
        fs::write(&source, vec![round + 1; 64 * MIB as usize]).unwrap();
        for volume in ["disk0", "disk1"] {
            program("nbdcopy", &["--flush", source.to_str().unwrap(), gateway.uri_of(volume)]).ok();
        }
    }
    gateway.wait_until_both("overflowed", |status| status.state() == "overflowed");
    server.set_faults(Faults::NONE);
    gateway.wait_until_both("resyncing at the same time", |status| status.state() == "resyncing");
    gateway.wait_until_both("settled", Status::is_settled);
    gateway.stop();
    for volume in ["disk0", "disk1"] {
        let store = fs::read(scene.path(&format!("{volume}.img"))).unwrap();
        assert_same_image(&scene.restored_of(volume, "latest").0, &store);
    }
}

//! A LUN of an array as the store, over iSCSI. The array is tgtd, which we did not write.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::crashes::{assert_held, assert_reread_is_bounded};
use crate::cuts::{assert_one_cut, sample};
use crate::harness::{
    Array, CANARY, Finished, Gateway, INTERRUPTED, Load, MIB, OURS, Proof, Scene, Stamper, THEIRS, assert_same_image,
    program, run,
};
use crate::iscsi;
use crate::trace::Trace;

const SIZE: u64 = 64 * MIB;
/// Of a gateway whose array goes away.
const AWAY: [&str; 5] = [
    INTERRUPTED,
    "the store was lost; what it may have forgotten will be compared",
    "the store came back after a loss; what it may have forgotten is compared",
    "session lost; logging in anew",
    "disconnected: the disk lost its store",
];

fn shadowed_lun(proof: Proof) -> (Scene, Array) {
    let mut scene = Scene::new(SIZE);
    let array = scene.use_array(SIZE, proof);
    (scene, array)
}

#[track_caller]
fn qemu_io(uri: &str, commands: &[&str]) -> Finished {
    let commands = commands.iter().flat_map(|command| ["-c", command]);
    program("qemu-io", &[&["-f", "raw"], &commands.collect::<Vec<_>>()[..], &[uri]].concat())
}

#[track_caller]
fn assert_newest_is_the_lun(scene: &Scene) {
    assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());
}

/// Has clients write until there are so many points, and the gateway publish the rest.
#[track_caller]
fn shadow_under_load(scene: &Scene, points: u64) -> Trace {
    let mut gateway = scene.serve();
    let stamper = Stamper::start(&Load::MIXED, gateway.uri(), &scene.path(""));
    gateway.wait_for_points(points);
    let trace = stamper.stop();
    gateway.settle();
    gateway.stop();
    trace
}

#[test]
fn a_lun_under_load_has_points_that_are_one_cut_each_and_the_newest_is_the_lun() {
    let (scene, _array) = shadowed_lun(Proof::Nobody);
    let trace = shadow_under_load(&scene, 4);
    for point in sample(&scene.points(), 3) {
        assert_one_cut(&scene, &point.number.to_string(), &trace);
    }
    assert_newest_is_the_lun(&scene);
}

/// Which of them a target asks for is up to its administrator.
#[test]
fn an_array_that_asks_for_digests_and_takes_data_unasked_is_shadowed_alike() {
    let digests = [("HeaderDigest", "CRC32C"), ("DataDigest", "CRC32C"), ("InitialR2T", "No")];
    for immediate_data in ["Yes", "No"] {
        let (scene, array) = shadowed_lun(Proof::Nobody);
        array.negotiate(&[&digests[..], &[("ImmediateData", immediate_data)]].concat());
        let trace = shadow_under_load(&scene, 2);
        assert_held(&scene, &trace, 0);
        assert_one_cut(&scene, "latest", &trace);
        assert_newest_is_the_lun(&scene);
    }
}

/// A burst of iSCSI is 256 KiB by default, and what a command can write, unmap or repeat has other bounds still.
#[test]
fn what_is_larger_than_a_burst_and_what_writes_no_data_comes_to_the_lun_whole() {
    let (scene, _array) = shadowed_lun(Proof::Nobody);
    let mut gateway = scene.serve();
    let wrote = [
        "write -P 1 0 64M",
        "write -P 2 1M 16M",
        "write -z 3M 5M",
        "discard 9M 4M",
        "write -P 4 20000K 4608",
        "write -z 33M 512",
        "flush",
        "read -P 2 8M 1M",
        "read -P 0 3M 5M",
        "read -P 1 17M 2M",
        "read -P 4 20000K 4608",
    ];
    let said = qemu_io(gateway.uri(), &wrote).ok();
    assert!(!said.stdout.contains("failed"), "{}", said.stdout);
    gateway.settle();
    gateway.stop();
    let lun = fs::read(scene.store()).unwrap();
    assert!(lun[MIB as usize..3 * MIB as usize].iter().all(|byte| *byte == 2));
    assert!(lun[3 * MIB as usize..8 * MIB as usize].iter().all(|byte| *byte == 0));
    assert_newest_is_the_lun(&scene);
}

/// Fault test 1, with a store that outlives the gateway and a client that does not notice: qemu's initiator, our target,
/// our initiator, the array.
#[test]
fn a_chain_of_initiators_and_targets_outlives_kills_of_the_gateway_in_it() {
    let mut scene = iscsi::scene(SIZE);
    let _array = scene.use_array(SIZE, Proof::Nobody);
    let mut gateway = scene.serve();
    gateway.settle();
    let (_bridge, uri) = iscsi::bridge(&scene);
    let stamper = Stamper::start(&Load { connections: 1, trim: 0, ..Load::MIXED }, &uri, &scene.path(""));
    let mut before = gateway.status();
    for _ in 0..3 {
        thread::sleep(Duration::from_millis(1500));
        before = gateway.status();
        gateway.kill();
        gateway = scene.serve().allow("the initiator is not let in");
    }
    let after = gateway.settle_under_load();
    assert_reread_is_bounded(&before, &after);
    gateway.wait_for_points(1);
    let trace = stamper.stop();
    assert!(trace.answered() > 500, "the load had no time: {}", trace.answered());
    gateway.settle();
    gateway.stop();
    assert_held(&scene, &trace, 3);
    assert_one_cut(&scene, "latest", &trace);
    assert_newest_is_the_lun(&scene);
}

/// Clients write; the array does that to the store; what is published then is right, and goes on to be.
#[track_caller]
fn shadow_through_a_loss(lose: impl FnOnce(&mut Array)) {
    let (scene, mut array) = shadowed_lun(Proof::Nobody);
    let mut gateway = scene.serve().allow_each(&AWAY);
    let stamper = Stamper::start(&Load { rate: 0, ..Load::MIXED }, gateway.uri(), &scene.path(""));
    gateway.wait_for_points(2);
    lose(&mut array);
    let mut trace = stamper.ended_with_the_store();
    gateway.wait_for_line("the store came back after a loss");
    gateway.settle();
    assert_held(&scene, &trace, 0);
    let stamper = Stamper::start(&Load::MIXED, gateway.uri(), &scene.path(""));
    gateway.wait_for_points(2);
    trace.append(stamper.stop());
    gateway.settle();
    gateway.stop();
    for point in sample(&scene.points(), 4) {
        assert_one_cut(&scene, &point.number.to_string(), &trace);
    }
    assert_newest_is_the_lun(&scene);
}

/// Fault test 13. Counterexample 32.
#[test]
fn an_array_that_dies_under_load_and_comes_back_is_shadowed_again() {
    shadow_through_a_loss(|array| {
        array.kill();
        array.start();
    });
}

/// Commands in flight end then without an answer, and nobody knows how far they came.
#[test]
fn a_lun_that_another_host_resets_under_load_is_shadowed_again() {
    shadow_through_a_loss(|array| array.be_reset());
}

/// A scene with the secrets of both sides in files, and `chap` in the volume's section.
fn with_secrets(proof: Proof, ours: &str, theirs: Option<&str>) -> (Scene, Array) {
    let (mut scene, array) = shadowed_lun(proof);
    scene.more = format!("chap = {{ user = \"{}\", secret_file = \"ours\"", OURS.0);
    if theirs.is_some() {
        scene.more += &format!(", peer_user = \"{}\", peer_secret_file = \"theirs\"", THEIRS.0);
    }
    scene.more += " }\n";
    for (file, secret) in [("ours", ours), ("theirs", theirs.unwrap_or_default())] {
        fs::write(scene.path(file), format!("{secret}\n")).unwrap();
        run(Command::new("chmod").arg("600").arg(scene.path(file)), Duration::from_secs(10)).ok();
    }
    (scene, array)
}

#[test]
fn an_array_that_asks_for_a_proof_gets_it_and_gives_its_own() {
    for (proof, theirs) in [(Proof::Initiator, None), (Proof::Both, Some(THEIRS.1))] {
        let (scene, _array) = with_secrets(proof, OURS.1, theirs);
        let mut gateway = scene.serve();
        qemu_io(gateway.uri(), &["write -P 7 1M 1M"]).ok();
        gateway.settle();
        assert!(!gateway.printed().contains(CANARY), "a secret is in the log");
        gateway.stop();
        assert_newest_is_the_lun(&scene);
    }
}

/// Fault test 43, where we are the initiator.
#[test]
fn a_wrong_proof_of_either_side_ends_the_start_with_a_message_and_no_secret() {
    let wrong = "not-the-secret-of-anybody";
    for (ours, theirs) in [(wrong, None), (OURS.1, Some(wrong))] {
        let (scene, _array) = with_secrets(Proof::Both, ours, theirs);
        fs::write(scene.config(), scene.toml()).unwrap();
        let serve = scene.run(&["serve", "umbra.toml"]).expect_code(1);
        let check = scene.run(&["check", "umbra.toml"]).expect_code(1);
        assert!(check.stdout.contains("access list has the initiator's name"), "{}", check.stdout);
        for said in [serve, check] {
            let all = [said.stdout, said.stderr].concat();
            assert!(all.contains("iqn.2026-11.io.umbra:"), "our name is not told: {all}");
            for secret in [CANARY, wrong, THEIRS.1] {
                assert!(!all.contains(secret), "{secret} is shown: {all}");
            }
        }
    }
    // And without any where one is asked for.
    let (scene, _array) = shadowed_lun(Proof::Initiator);
    fs::write(scene.config(), scene.toml()).unwrap();
    scene.run(&["serve", "umbra.toml"]).expect_code(1);
}

#[test]
fn a_target_or_a_lun_that_is_not_there_is_named() {
    let (mut scene, array) = shadowed_lun(Proof::Nobody);
    let right = array.url();
    for wrong in [array.url_of("iqn.2003-01.org.array:other", 1), right.replace("vol1/1", "vol1/9")] {
        scene.volumes[0].store = wrong.clone();
        fs::write(scene.config(), scene.toml()).unwrap();
        for command in ["serve", "check"] {
            let said = scene.run(&[command, "umbra.toml"]).expect_code(1);
            let all = [said.stdout, said.stderr].concat();
            assert!(all.contains(&wrong), "{wrong}: {all}");
        }
    }
    scene.volumes[0].store = right;
    fs::write(scene.config(), scene.toml()).unwrap();
    let said = scene.run(&["check", "umbra.toml"]).ok();
    assert!(said.stdout.contains("the array's access list needs iqn.2026-11.io.umbra:"), "{}", said.stdout);
}

/// Fault test 16, for a LUN.
#[test]
fn another_disk_or_a_smaller_one_behind_the_same_name_is_refused() {
    let (mut scene, mut array) = shadowed_lun(Proof::Nobody);
    let mut gateway = scene.serve();
    gateway.settle();
    gateway.stop();
    array.kill();
    let file = fs::OpenOptions::new().write(true).open(scene.store()).unwrap();
    file.set_len(SIZE / 2).unwrap();
    array.start();
    let said = scene.run(&["serve", "umbra.toml"]).expect_code(1);
    assert!(said.stderr.contains("what was cut off is in the remote"), "{}", said.stderr);
    array.kill();
    file.set_len(SIZE).unwrap();
    array.change_array();
    array.start();
    scene.volumes[0].store = array.url();
    fs::write(scene.config(), scene.toml()).unwrap();
    let said = scene.run(&["serve", "umbra.toml"]).expect_code(1);
    assert!(said.stderr.contains("--adopt"), "{}", said.stderr);
    array.kill();
    array.change_identity();
    array.start();
    let said = scene.run(&["serve", "umbra.toml"]).expect_code(1);
    assert!(said.stderr.contains("--adopt"), "{}", said.stderr);
}

#[test]
fn a_volume_is_restored_to_a_lun_and_verified_against_it() {
    let (scene, array) = shadowed_lun(Proof::Initiator);
    let secrets = ["--chap-user", OURS.0, "--chap-secret-file", "ours"];
    fs::write(scene.path("ours"), OURS.1).unwrap();
    run(Command::new("chmod").arg("600").arg(scene.path("ours")), Duration::from_secs(10)).ok();
    let mut source = Scene::new(SIZE);
    source.remote = format!("file:{}", scene.path("remote").display());
    let mut gateway: Gateway<'_> = source.serve();
    let load = Load { ops: 500, rate: 0, trim: 0, ..Load::MIXED };
    let _: Trace = Stamper::start(&load, gateway.uri(), &source.path("")).finish();
    gateway.settle();
    gateway.stop();

    let url = array.url();
    let refused = scene.restore("latest", &url, &[]).expect_code(1);
    assert!(refused.stderr.contains("--chap-user"), "{}", refused.stderr);
    scene.restore("latest", &url, &secrets).ok();
    assert_same_image(&fs::read(scene.store()).unwrap(), &fs::read(source.store()).unwrap());
    let full = scene.restore("latest", &url, &secrets).expect_code(1);
    assert!(full.stderr.contains("--overwrite"), "{}", full.stderr);
    scene.verify("latest", &[&["--against", &url], &secrets[..]].concat()).ok();
    qemu_io(scene.store().to_str().unwrap(), &["write -P 99 30M 512"]).ok();
    let differs = scene.verify("latest", &[&["--against", &url], &secrets[..]].concat()).expect_code(1);
    assert!(differs.stderr.contains("differs from the point in 512 B"), "{}", differs.stderr);
}

#[test]
fn a_lun_that_is_served_is_compared_by_its_gateway_and_read_without_it() {
    let (scene, _array) = shadowed_lun(Proof::Nobody);
    let mut gateway = scene.serve();
    qemu_io(gateway.uri(), &["write -P 7 1M 1M"]).ok();
    gateway.settle();
    let verify = || scene.run(&["verify", "--config", "umbra.toml", "--volume", "disk0", "--json", "--against"]);
    let said = verify().ok().json();
    assert_eq!(said["against"]["gateway"]["compared_bytes"], SIZE, "{said}");
    gateway.stop();
    let said = verify().ok().json();
    assert!(said["against"]["gateway"].is_null() && said["against"]["store_size"] == SIZE, "{said}");
}

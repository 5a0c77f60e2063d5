//! The gateway ends in every way, and nothing that a client was promised is lost.

use std::fs;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use umbra::random::SplitMix64;

use crate::cuts::assert_one_cut;
use crate::harness::{
    Gateway, INTERRUPTED, Load, MIB, Nbdkit, STORE_CHANGED, Scene, Stamper, Status, assert_same_image, extent, program,
};
use crate::oracle::holds_everything_acknowledged;
use crate::trace::{Answer, Trace};

#[track_caller]
pub fn assert_held(scene: &Scene, trace: &Trace, round: u32) {
    if let Err(lost) = holds_everything_acknowledged(trace, &fs::read(scene.store()).unwrap()) {
        panic!("after kill {round} the store is wrong: {lost}");
    }
}

/// **Where the bound on what a crash costs is asserted.** `before` is the status that the gateway had just before it was
/// killed, `after` the one of the next gateway once it has settled. Bytes of the store that were read again, against the
/// most that may be: what was hot, and what the load made hot between the look and the kill.
#[track_caller]
pub fn assert_reread_is_bounded(before: &Status, after: &Status) {
    let bytes = |status: &Status, field: &str| status.0[field].as_u64().unwrap_or_else(|| panic!("{status:?}"));
    let (reread, most) = (bytes(after, "reread"), bytes(before, "hot") + 8 * MIB);
    assert!(reread <= most, "{reread} bytes were read again, at most {most} may be: {before:?} {after:?}");
}

/// The next point after a start equals the store.
#[track_caller]
fn settle_and_compare(scene: &Scene, gateway: &mut Gateway<'_>, trace: &Trace) -> Status {
    let status = gateway.settle();
    let (_, image) = assert_one_cut(scene, "latest", trace);
    assert_same_image(&image, &fs::read(scene.store()).unwrap());
    status
}

#[test]
fn a_crash_costs_what_was_hot_and_not_the_volume() {
    let scene = Scene::new(64 * MIB);
    let mut gateway = scene.serve();
    Stamper::start(&Load { ops: 1000, rate: 0, ..Load::MIXED }, gateway.uri(), &scene.path("")).finish();
    gateway.wait_until("cold", Duration::from_secs(120), |status| status.is_settled() && status.0["hot"] == 0);
    let write = ["-f", "raw", "-c", "write -P 9 20M 64k", "-c", "write -P 10 40M 64k", gateway.uri()];
    program("qemu-io", &write).ok();
    let before = gateway.status();
    let hot = before.0["hot"].as_u64().unwrap();
    // The first of them may look like the next step of a stream, which is made hot eight regions ahead.
    assert!((8 * MIB..=40 * MIB).contains(&hot), "two regions were written: {before:?}");
    gateway.kill();
    let mut gateway = scene.serve();
    let after = gateway.settle();
    assert!(after.0["reread"].as_u64().unwrap() <= hot, "{hot} bytes were hot: {after:?}");
    gateway.stop();
    assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());
}

/// Fault test 1, and 4 where a kill comes upon a recovery.
#[test]
fn kills_at_random_moments_lose_nothing_and_the_next_point_equals_the_store() {
    let scene = Scene::new(64 * MIB);
    let mut random = SplitMix64(38);
    let mut trace = Trace::default();
    let mut before = None;
    for round in 0..extent(20, 200) {
        let mut gateway = scene.serve();
        let calm = random.below(2) == 0;
        // Else the load comes upon a gateway that is still comparing.
        if let (Some(before), true) = (before.take(), calm) {
            assert_reread_is_bounded(&before, &settle_and_compare(&scene, &mut gateway, &trace));
        }
        if !calm && random.below(3) == 0 {
            thread::sleep(Duration::from_millis(random.below(150)));
            before = Some(gateway.status());
            gateway.kill();
            continue;
        }
        // Points are published each second: a kill meets every part of that.
        let stamper = Stamper::start(&Load::MIXED, gateway.uri(), &scene.path(""));
        thread::sleep(Duration::from_millis(200 + random.below(1500)));
        before = Some(gateway.status());
        gateway.kill();
        let run = stamper.abandoned();
        assert!(run.answered() > 20, "the load of round {round} had no time: {}", run.answered());
        trace.append(run);
        assert_held(&scene, &trace, round);
        if !scene.points().is_empty() {
            assert_one_cut(&scene, "latest", &trace);
        }
    }
    let mut gateway = scene.serve();
    settle_and_compare(&scene, &mut gateway, &trace);
    gateway.stop();
    assert_held(&scene, &trace, u32::MAX);
    assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());
}

/// Some megabytes of stamped sectors, shadowed, and a clean stop.
fn shadow_and_stop(scene: &Scene) {
    let mut gateway = scene.serve();
    Stamper::start(&Load { ops: 500, rate: 0, ..Load::MIXED }, gateway.uri(), &scene.path("")).finish();
    gateway.settle();
    gateway.stop();
}

/// Waits for a point after the start, stops, and returns the newest image.
fn next_image(scene: &Scene, mut gateway: Gateway<'_>, is_compared: bool) -> Vec<u8> {
    let before = scene.points().last().map_or(0, |point| point.number);
    if is_compared {
        gateway.wait_until("settled anew", Duration::from_secs(60), |s| s.is_settled() && s.newest() > before);
    } else {
        gateway.settle();
    }
    gateway.stop();
    scene.restored("latest").0
}

#[test]
fn a_clean_stop_is_resumed_without_a_compare() {
    let scene = Scene::new(64 * MIB);
    shadow_and_stop(&scene);
    let mut gateway = scene.serve();
    let status = gateway.status();
    assert_eq!(status.state(), "shadowing", "{status:?}");
    Stamper::start(&Load { ops: 100, rate: 0, ..Load::MIXED }, gateway.uri(), &scene.path("")).finish();
    gateway.settle();
    gateway.stop();
    assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());
}

#[test]
fn a_stop_before_everything_was_copied_says_so_and_the_next_start_goes_on() {
    let mut scene = Scene::new(64 * MIB);
    let to = format!("of={}", scene.store().display());
    program("dd", &["if=/dev/urandom", &to, "bs=1M", "count=64", "status=none"]).ok();
    scene.scan_rate = "4MiB/s";
    let mut gateway = scene.serve().allow("not everything was compared or copied; the next start goes on with it");
    gateway.wait_until("copying", Duration::from_secs(30), |status| status.0["uploaded"].as_u64() > Some(0));
    gateway.stop_unfinished();
    scene.scan_rate = "";
    let mut gateway = scene.serve();
    gateway.settle();
    gateway.stop();
    assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());
}

/// Fault test 17, while the gateway was stopped.
#[test]
fn a_file_that_was_changed_behind_our_back_is_compared_in_full() {
    let scene = Scene::new(64 * MIB);
    shadow_and_stop(&scene);
    let file = fs::OpenOptions::new().write(true).open(scene.store()).unwrap();
    file.write_all_at(b"changed while nobody looked", 50 * MIB + 12345).unwrap();
    file.sync_all().unwrap();
    let image = next_image(&scene, scene.serve().allow(STORE_CHANGED), true);
    assert_same_image(&image, &fs::read(scene.store()).unwrap());
}

/// Fault test 16, while the gateway was stopped.
#[test]
fn a_file_that_has_grown_is_compared_in_full_and_restored_at_its_new_size() {
    let mut scene = Scene::new(64 * MIB);
    shadow_and_stop(&scene);
    scene.volumes[0].create = None;
    let file = fs::OpenOptions::new().write(true).open(scene.store()).unwrap();
    file.set_len(80 * MIB).unwrap();
    file.write_all_at(b"in the new part", 70 * MIB).unwrap();
    let image = next_image(&scene, scene.serve().allow(STORE_CHANGED), true);
    assert_same_image(&image, &fs::read(scene.store()).unwrap());
}

/// Fault test 16, while it is connected: the volume keeps the size that its clients were told.
#[test]
fn a_file_that_grows_while_it_is_served_is_copied_at_the_size_that_clients_know() {
    let scene = Scene::new(64 * MIB);
    let mut gateway = scene.serve();
    gateway.settle();
    let file = fs::OpenOptions::new().write(true).open(scene.store()).unwrap();
    file.set_len(80 * MIB).unwrap();
    let mut trace = Stamper::start(&Load { ops: 500, rate: 0, ..Load::MIXED }, gateway.uri(), &scene.path("")).finish();
    let beyond = program("qemu-io", &["-f", "raw", "-c", "write -P 9 70M 64k", gateway.uri()]);
    assert!(!beyond.status.success(), "{}", beyond.stdout);
    gateway.settle();
    let (_, image) = assert_one_cut(&scene, "latest", &trace);
    assert_same_image(&image, &fs::read(scene.store()).unwrap()[..64 * MIB as usize]);
    gateway.stop();

    let mut gateway = scene.serve().allow(STORE_CHANGED);
    trace.append(Stamper::start(&Load { ops: 100, rate: 0, ..Load::MIXED }, gateway.uri(), &scene.path("")).finish());
    program("qemu-io", &["-f", "raw", "-c", "write -P 9 70M 64k", gateway.uri()]).ok();
    gateway.settle();
    gateway.stop();
    assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());
}

/// Fault test 23.
#[test]
fn marks_with_flipped_bits_are_noticed_and_everything_is_compared() {
    let scene = Scene::new(64 * MIB);
    shadow_and_stop(&scene);
    let gateway = scene.serve();
    let write = ["-f", "raw", "-c", "write -P 9 20M 64k", gateway.uri()];
    program("qemu-io", &write).ok();
    gateway.kill();
    let marks = scene.path("state/marks/disk0");
    let good = fs::read(&marks).unwrap();
    let size = 64 * MIB;
    // In both headers, and in both slots of the one page that a volume of this size has.
    let group = good.len() - 16384;
    for (spots, said) in
        [(vec![90, 4096 + 90], "the marks cannot be used"), (vec![group + 60, group + 8192 + 60], "marks are damaged")]
    {
        let mut bytes = good.clone();
        spots.into_iter().for_each(|at| bytes[at] ^= 4);
        fs::write(&marks, bytes).unwrap();
        let mut gateway = scene.serve().allow(said);
        gateway.wait_for_line(said);
        let status = gateway.settle();
        let hot = status.0["hot"].as_u64().unwrap();
        assert_eq!(hot, size, "everything is hot until it was compared, and still warm: {status:?}");
        assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());
        gateway.kill();
    }
}

/// Fault test 17, while the gateway was stopped.
#[test]
fn serve_compare_finds_what_changed_on_a_store_that_cannot_tell() {
    let mut scene = Scene::new(64 * MIB);
    fs::File::create(scene.store()).unwrap().set_len(64 * MIB).unwrap();
    let _bare = scene.use_export_of_the_store();
    shadow_and_stop(&scene);
    let file = fs::OpenOptions::new().write(true).open(scene.store()).unwrap();
    file.write_all_at(b"changed while nobody looked", 50 * MIB + 12345).unwrap();
    let image = next_image(&scene, scene.serve_with(&["--compare"]), true);
    assert_same_image(&image, &fs::read(scene.store()).unwrap());
}

#[test]
fn a_remote_nbd_store_under_load_is_shadowed_in_one_cut() {
    let mut scene = Scene::new(64 * MIB);
    fs::File::create(scene.store()).unwrap().set_len(64 * MIB).unwrap();
    let _bare = scene.use_export_of_the_store();
    let mut gateway = scene.serve();
    let stamper = Stamper::start(&Load::MIXED, gateway.uri(), &scene.path(""));
    gateway.wait_for_points(4);
    let trace = stamper.stop();
    gateway.settle();
    gateway.stop();
    for point in crate::cuts::sample(&scene.points(), 3) {
        assert_one_cut(&scene, &point.number.to_string(), &trace);
    }
    assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());
}

#[test]
fn a_stop_under_load_publishes_all_that_was_acknowledged() {
    let scene = Scene::new(64 * MIB);
    let mut gateway = scene.serve();
    gateway.settle();
    let stamper = Stamper::start(&Load { rate: 0, ..Load::MIXED }, gateway.uri(), &scene.path(""));
    thread::sleep(Duration::from_secs(2));
    gateway.stop();
    let trace = stamper.abandoned();
    assert!(trace.answered() > 20, "the load had no time: {}", trace.answered());
    assert_held(&scene, &trace, 0);
    let (_, image) = assert_one_cut(&scene, "latest", &trace);
    assert_same_image(&image, &fs::read(scene.store()).unwrap());
}

#[test]
fn a_stop_right_after_the_start_publishes_all_that_was_acknowledged() {
    let scene = Scene::new(64 * MIB);
    let gateway = scene.serve();
    let trace = Stamper::start(&Load { ops: 100, rate: 0, ..Load::MIXED }, gateway.uri(), &scene.path("")).finish();
    // The copy may be one that the next start goes on with: then it is not offered yet, and the stop says so.
    if gateway.stop_on_the_way() {
        assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());
    }
    let mut gateway = scene.serve();
    gateway.settle();
    gateway.stop();
    let (_, image) = assert_one_cut(&scene, "latest", &trace);
    assert_same_image(&image, &fs::read(scene.store()).unwrap());
}

/// Bytes of all files of the remote that hold data.
fn uploaded(scene: &Scene) -> u64 {
    crate::restoring::packs(scene).iter().map(|pack| fs::metadata(pack).unwrap().len()).sum()
}

#[test]
fn a_first_copy_goes_on_after_a_stop_and_uploads_nothing_twice() {
    let mut scene = Scene::new(128 * MIB);
    scene.more = "[upload]\nrate = \"24MiB\"\n".into();
    fs::write(scene.store(), crate::transparency::noise(128 * MIB, 3)).unwrap();
    let size = 128 * MIB;
    let mut stops = 0;
    loop {
        let mut gateway = scene.serve();
        let status = gateway.wait_until("further", Duration::from_secs(60), |status| {
            status.is_settled() || status.0["uploaded"].as_u64().is_some_and(|bytes| bytes > 0)
        });
        if status.is_settled() {
            gateway.stop();
            break;
        }
        if gateway.stop_on_the_way() {
            assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());
        }
        stops += 1;
    }
    assert!(stops > 0, "the copy was never interrupted");
    assert!(uploaded(&scene) < size + size / 50, "{} bytes in {stops} parts", uploaded(&scene));
    assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());
}

#[test]
fn what_a_kill_leaves_is_compared_and_not_uploaded_again() {
    let scene = Scene::new(128 * MIB);
    let size = 128 * MIB;
    fs::write(scene.store(), crate::transparency::noise(size, 4)).unwrap();
    let mut gateway = scene.serve();
    gateway.settle();
    gateway.kill();
    // All is compared again, and found where it is.
    let before = scene.points().last().unwrap().number;
    let mut gateway = scene.serve();
    gateway.wait_until("settled anew", Duration::from_secs(60), |s| s.is_settled() && s.newest() > before);
    gateway.stop();
    assert!(uploaded(&scene) < size + size / 50, "{} bytes", uploaded(&scene));
    assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());
}

/// An export of the store that fails three of a hundred writes, so that they are not made.
fn refusing_export(scene: &mut Scene) -> Nbdkit {
    fs::File::create(scene.store()).unwrap().set_len(64 * MIB).unwrap();
    let file = scene.store();
    let faulty = ["--filter=error", "file", file.to_str().unwrap(), "error-pwrite=EIO", "error-pwrite-rate=3%"];
    let export = Nbdkit::start(&scene.path("bare.sock"), &faulty);
    scene.volumes[0].store = export.uri();
    scene.volumes[0].create = None;
    export
}

#[track_caller]
fn assert_some_failed(trace: &Trace) {
    let failed = trace.operations.iter().filter(|o| matches!(o.answer, Answer::Failed(_, libc::EIO))).count();
    assert!(failed > 10, "only {failed} writes failed");
    assert_eq!(trace.answered() + failed, trace.operations.len());
}

#[track_caller]
fn assert_points_are_cuts(scene: &Scene, trace: &Trace) {
    for point in crate::cuts::sample(&scene.points(), 3) {
        assert_one_cut(scene, &point.number.to_string(), trace);
    }
    assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());
}

/// Fault test 11.
#[test]
fn a_write_that_the_store_refuses_fails_for_the_client_and_never_shows() {
    let mut scene = Scene::new(64 * MIB);
    let _export = refusing_export(&mut scene);
    let mut gateway = scene.serve().allow("the store failed a change; reading back what it holds");
    let stamper = Stamper::start(&Load { fua: 0, ..Load::MIXED }, gateway.uri(), &scene.path(""));
    gateway.wait_for_points(4);
    let trace = stamper.stop_with_errors();
    assert_some_failed(&trace);
    gateway.settle();
    gateway.stop();
    assert_points_are_cuts(&scene, &trace);
}

/// Fault test 11, for a write with FUA.
#[test]
fn a_write_that_must_be_durable_and_fails_has_the_store_compared() {
    let mut scene = Scene::new(64 * MIB);
    let _export = refusing_export(&mut scene);
    let mut gateway = scene.serve().allow_each(&[
        "the store failed a change; reading back what it holds",
        "the store failed a flush; what is not known to be on it will be compared",
        "the store's caches cannot be passed by",
    ]);
    gateway.settle();
    let load = Load { ops: 5000, fua: 50, ..Load::MIXED };
    let trace = Stamper::start(&load, gateway.uri(), &scene.path("")).finish_with_errors();
    assert_some_failed(&trace);
    gateway.wait_for_line("the store failed a flush");
    gateway.settle();
    gateway.stop();
    assert_points_are_cuts(&scene, &trace);
}

/// Fault test 13.
#[test]
fn a_store_that_went_away_and_came_back_is_shadowed_again() {
    let mut scene = Scene::new(64 * MIB);
    fs::File::create(scene.store()).unwrap().set_len(64 * MIB).unwrap();
    let (socket, file) = (scene.path("bare.sock"), scene.store());
    let export = ["file", file.to_str().unwrap()];
    let bare = Nbdkit::start(&socket, &export);
    scene.volumes[0].store = bare.uri();
    scene.volumes[0].create = None;
    let mut gateway = scene.serve().allow(INTERRUPTED).allow_each(&[
        "the store was lost; what it may have forgotten will be compared",
        "the store came back after a loss; what it may have forgotten is compared",
        "connection lost; reconnecting",
        "disconnected: the disk lost its store",
    ]);
    // Without a pause, so that there are always operations whose outcome nobody knows.
    let stamper = Stamper::start(&Load { rate: 0, ..Load::MIXED }, gateway.uri(), &scene.path(""));
    gateway.wait_for_points(2);
    drop(bare);
    let bare = Nbdkit::start(&socket, &export);
    let mut trace = stamper.ended_with_the_store();
    gateway.wait_for_line("the store came back after a loss");
    gateway.settle();
    assert_held(&scene, &trace, 0);
    let stamper = Stamper::start(&Load::MIXED, gateway.uri(), &scene.path(""));
    gateway.wait_for_points(2);
    trace.append(stamper.stop());
    gateway.settle();
    gateway.stop();
    drop(bare);
    for point in crate::cuts::sample(&scene.points(), 4) {
        assert_one_cut(&scene, &point.number.to_string(), &trace);
    }
    assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());
}

/// Fault test 12.
#[test]
fn a_store_that_hangs_makes_its_clients_wait_and_nobody_sees_an_error() {
    let mut scene = Scene::new(64 * MIB);
    fs::File::create(scene.store()).unwrap().set_len(64 * MIB).unwrap();
    let bare = scene.use_export_of_the_store();
    let mut gateway = scene.serve();
    gateway.settle();
    let stamper = Stamper::start(&Load::MIXED, gateway.uri(), &scene.path(""));
    gateway.wait_for_points(2);
    bare.signal(Signal::STOP);
    // All that could still be published is; then there is nothing, and nothing grows.
    thread::sleep(Duration::from_secs(3));
    let (newest, used) = (gateway.status().newest(), gateway.status().0["log"]["used"].clone());
    thread::sleep(Duration::from_secs(u64::from(extent(5, 50))));
    assert_eq!((gateway.status().newest(), &gateway.status().0["log"]["used"]), (newest, &used));
    bare.signal(Signal::CONT);
    gateway.wait_for_points(2);
    let trace = stamper.stop();
    gateway.settle();
    gateway.stop();
    assert_points_are_cuts(&scene, &trace);
}

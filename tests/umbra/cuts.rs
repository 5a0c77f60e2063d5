//! Every recovery point is one cut of what clients wrote, whatever goes on while it is made.

use std::fs;
use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};

use crate::harness::{Fio, Load, MIB, Point, Scene, Stamper, assert_same_image, program};
use crate::oracle::{Cut, judge};
use crate::trace::{Answer, Trace};

/// Restores a point and fails the test unless it is one cut.
#[track_caller]
pub fn assert_one_cut(scene: &Scene, at: &str, trace: &Trace) -> (Cut, Vec<u8>) {
    let (image, _) = scene.restored(at);
    match judge(trace, &image) {
        Ok(cut) => (cut, image),
        Err(mixed) => panic!("what was restored at {at} is not one cut: {mixed}"),
    }
}

/// At most `count` of the points, with even distances, the last among them.
pub fn sample(points: &[Point], count: usize) -> Vec<&Point> {
    let step = points.len().div_ceil(count).max(1);
    let mut sample: Vec<_> = points.iter().rev().step_by(step).collect();
    sample.reverse();
    sample
}

/// Fault test 37.
#[test]
fn every_point_published_under_load_is_one_cut_and_a_mixed_image_is_not() {
    let scene = Scene::new(128 * MIB);
    let mut gateway = scene.serve();
    let stamper = Stamper::start(&Load::MIXED, gateway.uri(), &scene.path(""));
    gateway.wait_for_points(8);
    let trace = stamper.stop();
    gateway.settle();
    gateway.stop();

    let points = scene.points();
    assert!(points.len() >= 8, "{points:?}");
    let images: Vec<_> = sample(&points, 5)
        .into_iter()
        .map(|point| assert_one_cut(&scene, &point.number.to_string(), &trace).1)
        .collect();
    assert_same_image(images.last().unwrap(), &fs::read(scene.store()).unwrap());

    let mut mixed = images[images.len() - 1].clone();
    let half = mixed.len() / 2;
    mixed[half..].copy_from_slice(&images[images.len() - 3][half..]);
    assert!(judge(&trace, &mixed).is_err(), "the oracle took two halves of different points for one cut");
}

/// Fault test 37.
#[test]
fn at_depth_one_a_point_holds_exactly_as_many_writes_as_it_counts() {
    let scene = Scene::new(64 * MIB);
    let mut gateway = scene.serve();
    gateway.settle();
    let base = scene.points().last().unwrap().sequence;
    let stamper = Stamper::start(&Load::ONE_BY_ONE, gateway.uri(), &scene.path(""));
    gateway.wait_for_points(5);
    let trace = stamper.stop();
    gateway.settle();
    gateway.stop();

    let points: Vec<_> = scene.points().into_iter().filter(|point| point.sequence > base).collect();
    assert!(points.len() >= 4, "{points:?}");
    for point in sample(&points, 4) {
        let n = (point.sequence - base) as usize;
        let (cut, _) = assert_one_cut(&scene, &point.number.to_string(), &trace);
        assert_eq!(cut, Cut { at_least: n, at_most: n }, "{point:?}");
    }
    assert_eq!(points.last().unwrap().sequence - base, trace.operations.len() as u64);
}

/// The load flows in an epoch in which nothing stands still for longer.
const STILL_MAX: Duration = Duration::from_millis(250);

/// The longest time between these two in which an operation was under way, or none was asked for.
fn stood_still(trace: &Trace, from: SystemTime, to: SystemTime) -> Duration {
    let monotonic = clock_gettime(ClockId::Monotonic);
    let boot = SystemTime::now() - Duration::new(monotonic.tv_sec as u64, monotonic.tv_nsec as u32);
    let at = |nanoseconds| boot + Duration::from_nanos(nanoseconds);
    let between = |first: SystemTime, second: SystemTime| second.duration_since(first).unwrap_or_default();
    let (mut longest, mut last) = (Duration::ZERO, from);
    for operation in &trace.operations {
        let submitted = at(operation.submitted);
        let answered = match operation.answer {
            Answer::Done(time) | Answer::Failed(time, _) => at(time),
            Answer::Never => to,
        };
        if submitted < to && answered > from {
            longest = longest.max(between(submitted, answered)).max(between(last, submitted));
            last = submitted;
        }
    }
    longest.max(between(last, to))
}

/// Fault test 37.
#[test]
fn any_second_between_two_points_can_be_restored() {
    let mut scene = Scene::new(64 * MIB);
    scene.epoch = "5s";
    let mut gateway = scene.serve();
    gateway.settle();
    let time = |text: &str| humantime::parse_rfc3339(text).unwrap();
    let whole_epoch = |pair: &&[Point]| {
        time(&pair[1].time).duration_since(time(&pair[0].time)).is_ok_and(|d| d >= Duration::from_millis(4500))
            && pair[1].sequence > pair[0].sequence + 1000
    };
    // Other tests keep the disk busy, and what a change waits for is in no cut: on until there is an epoch without that.
    let mut trace = Trace::default();
    let mut calm = None;
    for _ in 0..8 {
        let stamper = Stamper::start(&Load { flush: 0, ..Load::MIXED }, gateway.uri(), &scene.path(""));
        gateway.wait_for_points(4);
        trace.append(stamper.stop());
        gateway.settle();
        let points = scene.points();
        let still = |pair: &[Point]| stood_still(&trace, time(&pair[0].time), time(&pair[1].time));
        let least =
            points.windows(2).filter(whole_epoch).map(|pair| (still(pair), pair.to_vec())).min_by_key(|it| it.0);
        if let Some((_, pair)) = least.filter(|(still, _)| *still <= STILL_MAX) {
            calm = Some(pair);
            break;
        }
    }
    gateway.stop();
    let pair = calm.expect("an epoch of five seconds in which the load flows");
    let mut sequences = vec![pair[0].sequence];
    for second in 1..5 {
        let asked: SystemTime = time(&pair[0].time) + Duration::from_secs(second);
        let at = humantime::format_rfc3339_millis(asked).to_string();
        let (image, said) = scene.restored(&at);
        let chosen = time(said["time"].as_str().unwrap());
        assert!(chosen <= asked, "asked for {at}, got {said}");
        if let Err(mixed) = judge(&trace, &image) {
            panic!("what was restored at {at} is not one cut: {mixed}");
        }
        sequences.push(said["sequence"].as_u64().unwrap());
    }
    sequences.push(pair[1].sequence);
    assert!(sequences.is_sorted(), "{sequences:?}");
    sequences.dedup();
    assert!(sequences.len() >= 5, "the seconds of an epoch show only {sequences:?}");
}

#[test]
fn fio_verifies_what_it_wrote_while_points_are_published() {
    let scene = Scene::new(96 * MIB);
    let mut gateway = scene.serve();
    let before = gateway.status().newest();
    let mut fio = Fio::start(gateway.uri(), 96, 2, 16);
    while fio.is_running() {
        gateway.status();
        std::thread::sleep(Duration::from_millis(500));
    }
    let published = gateway.status().newest() - before;
    fio.finish();
    assert!(published >= 4, "only {published} points while fio was at work");
    gateway.settle();
    gateway.stop();
    assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());
}

#[test]
fn a_first_copy_of_a_full_disk_under_load_ends_in_one_cut() {
    let scene = Scene::new(128 * MIB);
    fs::File::create(scene.store()).unwrap().set_len(128 * MIB).unwrap();
    let mut trace = {
        let bare = crate::harness::Nbdkit::start(&scene.path("bare.sock"), &["file", scene.store().to_str().unwrap()]);
        Stamper::start(&Load { ops: 6000, rate: 0, hot: 0, ..Load::MIXED }, &bare.uri(), &scene.path("")).finish()
    };
    let mut gateway = scene.serve();
    let stamper = Stamper::start(&Load::MIXED, gateway.uri(), &scene.path(""));
    gateway.wait_until("shadowing", Duration::from_secs(60), |status| status.state() == "shadowing");
    gateway.wait_for_points(2);
    trace.append(stamper.stop());
    gateway.settle();
    gateway.stop();
    let points = scene.points();
    for point in [&points[0], points.last().unwrap()] {
        assert_one_cut(&scene, &point.number.to_string(), &trace);
    }
    assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());
}

#[track_caller]
fn assert_overlaps_keep_their_order(scene: &Scene) {
    let mut gateway = scene.serve();
    gateway.settle();
    for _ in 0..3 {
        Fio::overlapping(gateway.uri(), 2).finish();
        gateway.settle();
        assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());
    }
    gateway.stop();
    assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());
}

/// Fault test 14.
#[test]
fn writes_that_overlap_in_flight_are_copied_in_the_order_of_the_file() {
    assert_overlaps_keep_their_order(&Scene::new(16 * MIB));
}

/// Fault test 14.
#[test]
fn writes_that_overlap_in_flight_are_copied_in_the_order_of_a_remote_export() {
    let mut scene = Scene::new(16 * MIB);
    fs::File::create(scene.store()).unwrap().set_len(16 * MIB).unwrap();
    let _bare = scene.use_export_of_the_store();
    assert_overlaps_keep_their_order(&scene);
}

/// Counterexample 13.
#[test]
fn a_volume_that_ends_inside_a_sector_is_copied_to_its_last_byte() {
    let mut scene = Scene::new(16 * MIB);
    scene.volumes[0].create = None;
    let mut image = crate::transparency::noise(16 * MIB, 5);
    image.truncate(image.len() - 777);
    fs::write(scene.store(), &image).unwrap();
    let source = scene.path("source.img");
    image.rotate_left(1000);
    fs::write(&source, &image).unwrap();
    let mut gateway = scene.serve();
    gateway.settle();
    assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());
    program("nbdcopy", &["--flush", source.to_str().unwrap(), gateway.uri()]).ok();
    gateway.settle();
    assert_same_image(&scene.restored("latest").0, &image);
    Fio::overlapping(gateway.uri(), 1).finish();
    let end = image.len() - 3;
    for command in
        [format!("write -P 7 {end} 3"), format!("write -z {} 1", end - 9000), format!("discard {} 8001", end - 8000)]
    {
        program("qemu-io", &["-f", "raw", "-c", &command, gateway.uri()]).ok();
    }
    gateway.settle();
    gateway.stop();
    assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());
}

#[test]
fn two_volumes_share_a_log_that_is_synced_with_their_flushes() {
    let mut scene = Scene::new(64 * MIB);
    scene.add_volume();
    scene.log_sync = "flush";
    let mut gateway = scene.serve();
    let load = Load { ops: 3000, flush: 10, fua: 10, ..Load::MIXED };
    let uris = [gateway.uri().to_owned(), gateway.uri_of("disk1").to_owned()];
    let stampers = uris.map(|uri| Stamper::start(&load, &uri, &scene.path("")));
    let [first, second] = stampers.map(Stamper::finish);
    gateway.settle();
    gateway.stop();
    assert_one_cut(&scene, "latest", &first);
    for point in sample(&scene.points(), 3) {
        assert_one_cut(&scene, &point.number.to_string(), &first);
    }
    let (image, _) = scene.restored_of("disk1", "latest");
    assert_same_image(&image, &fs::read(scene.path("disk1.img")).unwrap());
    judge(&second, &image).unwrap();
}

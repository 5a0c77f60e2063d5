//! A remote that is away for long while clients are at work: they do not notice, memory stays, and all is caught up with.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{
    Fio, Gateway, INTERRUPTED, Latency, Load, MIB, Memory, REMOTE_AWAY, Scene, Stamper, Status, assert_same_image,
    extent,
};
use crate::s3::{Faults, Server};
use crate::transparency::noise;

/// What the gateway may use under any of this, for one volume.
const MEMORY_MAX: u64 = 512 * MIB;
/// What a dead remote may add: descriptors of unpublished writes, and payloads that were read back for a publication.
const BACKLOG_MAX: u64 = (96 + 64) * MIB;

fn scene(server: &Server, size: u64) -> Scene {
    let mut scene = Scene::new(size);
    scene.use_s3(&server.endpoint());
    scene
}

/// Waits for fio and returns how memory went meanwhile, a sample each half second.
fn memory_during(gateway: &Gateway<'_>, fio: &mut Fio) -> Vec<Memory> {
    let mut samples = Vec::new();
    while fio.is_running() {
        samples.push(Memory::of(gateway.pid()));
        thread::sleep(Duration::from_millis(500));
    }
    samples
}

fn print_ratios(healthy: &[Latency], dead: &[Latency]) {
    for (healthy, dead) in healthy.iter().zip(dead) {
        println!(
            "{:5} latency, remote dead / healthy: mean {:.0} / {:.0} us = {:.2}, p99 {:.0} / {:.0} us = {:.2}",
            dead.kind,
            dead.mean,
            healthy.mean,
            dead.mean / healthy.mean,
            dead.p99,
            healthy.p99,
            dead.p99 / healthy.p99
        );
    }
}

/// As when a filesystem is unmounted, and the folder remains that it was mounted on.
#[test]
fn another_folder_in_place_of_the_remote_gets_nothing_and_the_alarm_is_raised_until_it_is_back() {
    let mut scene = Scene::new(64 * MIB);
    scene.more = "max_age = \"2s\"\n".to_owned();
    let mut gateway = scene.serve().allow_each(&REMOTE_AWAY).allow("the oldest unpublished change is too old");
    gateway.settle();
    let (there, gone) = (scene.path("remote"), scene.path("gone"));
    fs::rename(&there, &gone).unwrap();
    for is_empty in [false, true] {
        if is_empty {
            fs::create_dir(&there).unwrap();
        }
        let load = Load { ops: 300, rate: 0, ..Load::MIXED };
        Stamper::start(&load, gateway.uri(), &scene.path("")).finish();
        gateway.wait_until("late", Duration::from_secs(30), |status| {
            let why = status.0["last_error"].as_str().unwrap_or_default();
            status.0["late"] == true && why.contains("is not the folder that was opened")
        });
        assert_eq!(there.exists(), is_empty);
    }
    thread::sleep(Duration::from_secs(2));
    assert_eq!(fs::read_dir(&there).unwrap().count(), 0, "something was put into another folder");
    fs::remove_dir(&there).unwrap();
    fs::rename(&gone, &there).unwrap();
    gateway.settle();
    gateway.wait_for_line("recovery points are up to date again");
    gateway.stop();
    assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());
}

/// Fault test 33, its black hole.
#[test]
fn a_remote_that_is_dead_for_long_fails_no_client_takes_no_memory_and_is_caught_up_with() {
    let server = Server::start(11);
    let mut scene = scene(&server, 128 * MIB);
    scene.log_size = if extent(0, 1) == 1 { "2GiB" } else { "256MiB" };
    let mut gateway = scene.serve().allow_each(&REMOTE_AWAY).patience(Duration::from_secs(120));
    gateway.settle();
    let seconds = extent(40, 300);
    let mut fio = Fio::paced(gateway.uri(), 128, seconds / 4);
    let before = memory_during(&gateway, &mut fio);
    let healthy = fio.latencies();
    gateway.settle();

    server.set_dark(true);
    let mut fio = Fio::paced(gateway.uri(), 128, seconds);
    let during = memory_during(&gateway, &mut fio);
    let dead = fio.latencies();
    let status = gateway.status();
    assert_eq!(status.state(), "shadowing", "{status:?}");
    assert!(status.0["lag_writes"].as_u64().unwrap() > 1000, "{status:?}");
    assert!(status.0["lag_seconds"].as_f64().unwrap() > f64::from(seconds) / 2.0, "{status:?}");
    assert!(server.counts().unanswered > 0);
    server.set_dark(false);
    gateway.settle();
    let peak = Memory::of(gateway.pid()).peak;
    gateway.stop();

    print_ratios(&healthy, &dead);
    let highest = |samples: &[Memory]| samples.iter().map(|memory| memory.resident).max().unwrap();
    let (first, last) = (highest(&during[..during.len() / 4]), highest(&during[during.len() / 4..]));
    println!(
        "resident MiB: healthy {}, dead at first {}, dead later {}, peak {}",
        highest(&before) / MIB,
        first / MIB,
        last / MIB,
        peak / MIB
    );
    assert!(last <= highest(&before) + BACKLOG_MAX, "{last} bytes resident while the remote is dead");
    assert!(peak <= MEMORY_MAX, "{peak} bytes resident");
    assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());
}

/// Fault test 18, and 21 without a limit from outside: what is used is measured.
#[test]
fn a_writer_that_is_faster_than_the_remote_overflows_the_log_and_not_the_memory() {
    let server = Server::start(12);
    let mut scene = scene(&server, 256 * MIB);
    scene.more = "[upload]\nrate = \"16MiB/s\"\n".into();
    fs::write(scene.store(), noise(256 * MIB, 12)).unwrap();
    let overtaken = "clients change what has been copied faster than it is uploaded";
    let mut gateway = scene.serve().allow_each(&REMOTE_AWAY).allow_each(&[INTERRUPTED, overtaken]);
    gateway = gateway.patience(Duration::from_secs(180));
    // What has just been copied changes at such a rate that the copy would never end.
    let copied = |status: &Status| status.0["scanned"].as_u64() >= Some(64 * MIB);
    gateway.wait_until("copied in part", Duration::from_secs(60), copied);
    Fio::unpaced(gateway.uri(), 64, 5).latencies();
    gateway.wait_for_line(overtaken);
    gateway.settle();
    let mut fio = Fio::unpaced(gateway.uri(), 64, extent(10, 120));
    let during = memory_during(&gateway, &mut fio);
    fio.latencies();
    gateway.wait_for_line(INTERRUPTED);
    gateway.settle();
    let peak = Memory::of(gateway.pid()).peak;
    println!("resident MiB: at most {} of {} samples", peak / MIB, during.len());
    assert!(peak <= MEMORY_MAX, "{peak} bytes resident");
    gateway.stop();
    assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());
}

/// Fault test 26.
#[test]
fn a_storm_of_refusals_is_met_with_patience_and_no_client_sees_it() {
    let server = Server::start(13);
    let scene = scene(&server, 64 * MIB);
    let mut gateway = scene.serve().allow_each(&REMOTE_AWAY).patience(Duration::from_secs(60));
    gateway.settle();
    server.set_faults(Faults { slow_down: 1, ..Faults::NONE });
    let stamper = Stamper::start(&Load { rate: 300, ..Load::MIXED }, gateway.uri(), &scene.path(""));
    let before = server.counts().requests;
    let seconds = extent(10, 1800);
    let start = Instant::now();
    thread::sleep(Duration::from_secs(u64::from(seconds)));
    let asked = server.counts().requests - before;
    let trace = stamper.stop();
    // Without a pause it would be thousands.
    let bound = start.elapsed().as_secs() as u32 * 4 + 10;
    assert!((1..=bound).contains(&asked), "{asked} requests in {seconds} s of refusals");
    println!("{asked} requests in {seconds} s of refusals");
    server.set_faults(Faults::NONE);
    gateway.settle();
    gateway.stop();
    let (_, image) = crate::cuts::assert_one_cut(&scene, "latest", &trace);
    assert_same_image(&image, &fs::read(scene.store()).unwrap());
}

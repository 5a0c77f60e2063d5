//! What the commands say, and how they end.

use std::fs;
use std::time::Duration;

use serde_json::Value;

use crate::harness::{COMMAND_LIMIT, Load, MIB, Moto, STORE_CHANGED, Scene, Stamper, python, run};

#[test]
fn wrong_usage_ends_with_two_and_help_with_zero() {
    let scene = Scene::new(64 * MIB);
    for wrong in [
        &["serve"][..],
        &["frobnicate"],
        &["serve", "a.toml", "--frobnicate"],
        &["restore", "--remote", "file:remote"],
        &["restore", "--remote", "file:remote", "--volume", "disk0", "--to", "x", "--at", "the day before"],
        &["demo", "--size", "much"],
        &["serve", "a.toml", "--log", "xml"],
    ] {
        let said = scene.run(wrong).expect_code(2);
        assert!(!said.stderr.is_empty(), "{wrong:?}");
    }
    for command in ["serve", "check", "status", "points", "restore", "verify", "demo"] {
        let said = scene.run(&[command, "--help"]).ok();
        assert!(said.stdout.contains("Usage"), "{}", said.stdout);
    }
    scene.run(&["--version"]).ok();
}

#[test]
fn a_wrong_configuration_is_refused_by_its_section_and_key_and_makes_nothing() {
    let right = Scene::new(64 * MIB).toml();
    let wrong = [
        ("an unknown key", right.replace("[log]\nsize", "[log]\nsise"), "sise"),
        ("an unknown section", right.clone() + "[logs]\n", "logs"),
        ("an epoch that is too long", right.replace("\"1s\"", "\"100s\""), "epoch"),
        ("a log that is too small", right.replace("\"256MiB\"", "\"1KiB\""), "size"),
        ("a size without a unit that exists", right.replace("\"256MiB\"", "\"256 potatoes\""), "size"),
        (
            "a volume named twice",
            right.clone() + "[[volume]]\nname = \"disk0\"\nstore = \"file:b.img\"\ncreate = \"1MiB\"\n",
            "disk0",
        ),
        (
            "a store served twice",
            right.clone() + "[[volume]]\nname = \"disk1\"\nstore = \"file:disk0.img\"\ncreate = \"64MiB\"\n",
            "disk0.img",
        ),
        ("a name that is none", right.replace("\"disk0\"", "\"../disk0\""), "name"),
        ("a kind of store that no one knows", right.replace("file:disk0.img", "ftp://disk0.img"), "store"),
        ("a kind of remote that no one knows", right.replace("file:remote", "ftp://remote"), "url"),
        ("no remote", right.replace("[remote]\nurl = \"file:remote\"\n", ""), "remote"),
        ("no volume", right.split("[[volume]]").next().unwrap().to_owned(), "volume"),
        ("an address that is none", right.replace("127.0.0.1:0", "here:there"), "nbd"),
        ("no TOML", "state = ".to_owned(), "umbra.toml"),
    ];
    for (name, toml, word) in wrong {
        let scene = Scene::new(64 * MIB);
        assert!(toml != right, "{name}: nothing was changed");
        fs::write(scene.config(), &toml).unwrap();
        let config = scene.config();
        for command in ["check", "serve"] {
            let said = scene.run(&[command, config.to_str().unwrap()]);
            assert!(matches!(said.status.code(), Some(1 | 2)), "{name}: {} ended with {}", command, said.status);
            let text = said.stdout + &said.stderr;
            assert!(text.contains(word), "{name}: no word of {word:?} in\n{text}");
            assert!(!text.contains("panicked"), "{name}: {text}");
        }
        let left: Vec<_> = fs::read_dir(scene.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["umbra.toml"], "{name}");
    }
    let scene = Scene::new(64 * MIB);
    scene.run(&["check", "absent.toml"]).expect_code(1);
}

#[test]
fn check_approves_a_right_configuration_and_changes_nothing() {
    let mut scene = Scene::new(64 * MIB);
    fs::write(scene.config(), scene.toml()).unwrap();
    let config = scene.config();
    scene.run(&["check", config.to_str().unwrap()]).ok();
    let mut left: Vec<_> = fs::read_dir(scene.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["umbra.toml"]);

    // Two volumes, and one store by two paths.
    scene.log_size = "512MiB";
    let second = "[[volume]]\nname = \"disk1\"\nstore = \"file:disk1.img\"\n";
    fs::File::create(scene.store()).unwrap().set_len(64 * MIB).unwrap();
    std::os::unix::fs::symlink(scene.store(), scene.path("disk1.img")).unwrap();
    fs::write(scene.config(), scene.toml() + second).unwrap();
    let said = scene.run(&["check", config.to_str().unwrap()]).expect_code(1);
    assert!(said.stdout.contains("it is the store of volume disk0 as well"), "{}{}", said.stdout, said.stderr);
    fs::remove_file(scene.store()).unwrap();

    // The store is absent and may not be made.
    scene.volumes[0].create = None;
    fs::write(scene.config(), scene.toml()).unwrap();
    let said = scene.run(&["check", config.to_str().unwrap()]).expect_code(1);
    assert!(format!("{}{}", said.stdout, said.stderr).contains("store"), "{}{}", said.stdout, said.stderr);
    scene.run(&["serve", config.to_str().unwrap()]).expect_code(1);
}

#[test]
fn status_has_every_field_by_its_name() {
    let scene = Scene::new(64 * MIB);
    let mut gateway = scene.serve();
    Stamper::start(&Load { ops: 500, rate: 0, ..Load::MIXED }, gateway.uri(), &scene.path("")).finish();
    let status = gateway.settle().0;
    let text = status.to_string();
    assert_eq!(status["name"], "disk0", "{text}");
    assert_eq!(status["state"], "shadowing", "{text}");
    assert_eq!(status["size"], 64 * MIB, "{text}");
    assert_eq!(status["lag_bytes"], 0, "{text}");
    assert_eq!(status["lag_writes"], 0, "{text}");
    assert_eq!(status["lag_seconds"].as_f64(), Some(0.0), "{text}");
    assert!(status["newest_point"]["number"].is_u64() && status["newest_point"]["time"].is_string(), "{text}");
    assert!(status["log"]["used"].is_u64(), "{text}");
    assert!(status["log"]["size"].as_u64().is_some_and(|size| size > 0 && size <= 256 * MIB), "{text}");
    let fields = status.as_object().unwrap();
    for field in ["scanned", "total", "last_error"] {
        assert!(fields.contains_key(field), "no field {field} in {text}");
    }
    assert!(status["last_error"].is_null(), "{text}");
    let writes = &status["latency"]["writes"];
    assert!(writes["operations"].as_u64().is_some_and(|count| count > 0), "{text}");
    for times in [&writes["store"], &writes["added"]] {
        let [median, p99, max] = ["median_us", "p99_us", "max_us"].map(|name| times[name].as_f64().unwrap());
        assert!(0.0 < median && median <= p99 && p99 <= max, "{text}");
        let counts = times["buckets"].as_array().unwrap().iter().map(|bucket| bucket["operations"].as_u64().unwrap());
        assert_eq!(counts.sum::<u64>(), writes["operations"].as_u64().unwrap(), "{text}");
    }
    for kind in ["reads", "flushes", "trim_zero"] {
        assert!(status["latency"][kind]["operations"].is_u64(), "{text}");
    }
    let config = scene.config();
    let plain = scene.run(&["status", config.to_str().unwrap()]).ok();
    assert!(plain.stdout.contains("disk0") && plain.stdout.contains("shadowing"), "{}", plain.stdout);
    assert!(plain.stdout.contains("ADDED") && plain.stdout.contains("writes"), "{}", plain.stdout);
    gateway.stop();
    scene.run(&["status", config.to_str().unwrap(), "--json"]).expect_code(1);
}

#[test]
fn metrics_are_what_prometheus_reads_and_say_what_the_status_says() {
    let scene = Scene::new(64 * MIB);
    let mut gateway = scene.serve();
    Stamper::start(&Load { ops: 500, rate: 0, ..Load::MIXED }, gateway.uri(), &scene.path("")).finish();
    let status = gateway.settle().0;
    let config = scene.config();
    let metrics = |options: &[&str]| scene.run(&[&["status", config.to_str().unwrap(), "--metrics"], options].concat());
    fs::write(scene.path("metrics"), metrics(&[]).ok().stdout).unwrap();
    let families = run(python("metrics.py").arg(scene.path("metrics")), COMMAND_LIMIT).ok().json();
    // The only sample with these labels, besides the volume's.
    let sample = |family: &str, name: &str, labels: &[(&str, &str)]| {
        let samples = families[family]["samples"].as_array().unwrap_or_else(|| panic!("no {family} in {families}"));
        let has = |sample: &&Value| {
            let labels = [&[("volume", "disk0")], labels].concat();
            let all = sample["labels"].as_object().unwrap();
            sample["name"] == name
                && all.len() == labels.len()
                && labels.iter().all(|(key, value)| all[*key] == **value)
        };
        let found: Vec<f64> = samples.iter().filter(has).map(|sample| sample["value"].as_f64().unwrap()).collect();
        assert_eq!(found.len(), 1, "{name} {labels:?} in {families}");
        found[0]
    };
    let plain = |name: &str| sample(name.trim_end_matches("_total"), name, &[]);
    assert_eq!(plain("umbra_volume_size_bytes"), (64 * MIB) as f64);
    assert_eq!(plain("umbra_lag_bytes"), 0.0);
    assert_eq!(plain("umbra_log_size_bytes"), status["log"]["size"].as_f64().unwrap());
    assert_eq!(plain("umbra_uploaded_bytes_total"), status["uploaded"].as_f64().unwrap());
    assert!(plain("umbra_newest_point_timestamp_seconds") > 1.7e9);
    for (state, value) in [("shadowing", 1.0), ("overflowed", 0.0)] {
        assert_eq!(sample("umbra_volume_state", "umbra_volume_state", &[("state", state)]), value);
    }
    let histogram = "umbra_operation_seconds";
    assert_eq!(families[histogram]["type"], "histogram");
    for part in ["store", "added"] {
        let labels = [("operation", "write"), ("part", part)];
        let of = |suffix: &str, more: &[(&str, &str)]| {
            sample(histogram, &format!("{histogram}_{suffix}"), &[&labels, more].concat())
        };
        let writes = status["latency"]["writes"]["operations"].as_f64().unwrap();
        assert_eq!((of("count", &[]), of("bucket", &[("le", "+Inf")])), (writes, writes));
        assert!(of("bucket", &[("le", "0.001024")]) <= writes && of("sum", &[]) > 0.0);
    }
    for other in ["--json", "--watch"] {
        metrics(&[other]).expect_code(2);
    }
    gateway.stop();
}

#[test]
fn lag_is_counted_while_the_remote_is_behind() {
    let mut scene = Scene::new(64 * MIB);
    scene.epoch = "20s";
    let mut gateway = scene.serve();
    gateway.settle();
    let load = Load { ops: 400, rate: 0, ..Load::ONE_BY_ONE };
    let trace = Stamper::start(&load, gateway.uri(), &scene.path("")).finish();
    let status = gateway.status().0;
    let written: u64 = trace.operations.iter().map(|operation| operation.sectors * 512).sum();
    assert_eq!(status["lag_writes"], 400, "{status}");
    assert_eq!(status["lag_bytes"], written, "{status}");
    assert!(status["lag_seconds"].as_f64().unwrap() > 0.0, "{status}");
    // A stop uploads what is left.
    gateway.stop();
    assert!(crate::oracle::judge(&trace, &scene.restored("latest").0).unwrap().at_least == 400);
}

#[test]
fn the_demo_ends_with_zero() {
    let scene = Scene::new(64 * MIB);
    let folder = scene.path("demo");
    let mut command = scene.umbra(&["demo", "--size", "128MiB", "--dir", folder.to_str().unwrap()]);
    let said = run(&mut command, Duration::from_secs(120)).ok();
    assert!(!said.stdout.is_empty());
    assert!(!said.stderr.contains("panicked"), "{}", said.stderr);
}

#[test]
fn systemd_is_told_when_the_exports_are_ready() {
    let mut scene = Scene::new(64 * MIB);
    let path = scene.path("notify.sock");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    scene.environment.push(("NOTIFY_SOCKET", path.to_str().unwrap().to_owned()));
    let mut gateway = scene.serve();
    let mut message = [0; 1024];
    let length = socket.recv(&mut message).unwrap();
    assert!(message[..length].split(|b| *b == b'\n').any(|line| line == b"READY=1"));
    gateway.settle();
    gateway.stop();
}

struct Thread {
    name: String,
    nice: i32,
    /// Bytes that it wrote to anything.
    written: u64,
}

fn threads_of(pid: u32) -> Vec<Thread> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    threads
        .filter_map(|thread| {
            let thread = thread.unwrap().path();
            // proc(5): the name is in brackets; the nice value is the 17th word behind it.
            let stat = fs::read_to_string(thread.join("stat")).ok()?;
            let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
            let nice = rest.split_whitespace().nth(16)?.parse().unwrap();
            let io = fs::read_to_string(thread.join("io")).ok()?;
            let written = io.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap().parse().unwrap();
            Some(Thread { name: name.to_owned(), nice, written })
        })
        .collect()
}

#[test]
fn what_no_client_waits_for_is_done_by_threads_that_let_others_go_first() {
    let moto = Moto::start();
    for over_a_network in [false, true] {
        let mut scene = Scene::new(64 * MIB);
        if over_a_network {
            scene.use_s3(moto.endpoint());
        }
        // The first start writes the log's segments.
        let mut gateway = scene.serve();
        gateway.settle();
        gateway.stop();
        fs::write(scene.store(), crate::transparency::noise(64 * MIB, 5)).unwrap();
        let mut gateway = scene.serve().allow(STORE_CHANGED);
        gateway.settle();
        let usual = threads_of(std::process::id())[0].nice;
        let (patient, others): (Vec<_>, Vec<_>) =
            threads_of(gateway.pid()).into_iter().partition(|thread| thread.name == "umbra-patient");
        let written = |threads: &[Thread]| threads.iter().map(|thread| thread.written).sum::<u64>();
        assert!(written(&patient) >= 64 * MIB, "{}", written(&patient));
        assert!(written(&others) < MIB, "{}", written(&others));
        assert!(patient.iter().all(|thread| thread.nice == 10));
        assert!(others.iter().all(|thread| thread.nice == usual));
        gateway.stop();
    }
}

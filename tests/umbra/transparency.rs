//! Take the gateway away and the client sees the bare store: what clients see is compared with `nbdkit file`.

use std::fs;

use serde_json::Value;

use crate::harness::{MIB, Nbdkit, Scene, assert_same_image, program, python, run};

const SIZE: u64 = 64 * MIB;

/// Bytes that do not compress and never repeat.
pub fn noise(length: u64, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2) + 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..length / 8).flat_map(|_| next().to_le_bytes()).collect()
}

fn export_of(uri: &str) -> serde_json::Map<String, Value> {
    let info = program("nbdinfo", &["--json", uri]).ok().json();
    assert_eq!(info["protocol"], "newstyle-fixed");
    assert_eq!(info["structured"], true);
    info["exports"][0].as_object().unwrap().clone()
}

/// The allocation map as (length, type), neighbours of one type joined.
fn map_of(uri: &str) -> Vec<(u64, u64)> {
    let map = program("nbdinfo", &["--map", "--json", uri]).ok().json();
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for extent in map.as_array().unwrap() {
        let (length, kind) = (extent["length"].as_u64().unwrap(), extent["type"].as_u64().unwrap());
        match runs.last_mut() {
            Some(last) if last.1 == kind => last.0 += length,
            _ => runs.push((length, kind)),
        }
    }
    runs
}

#[test]
fn nbdinfo_sees_the_flags_of_nbdkit_file() {
    let scene = Scene::new(SIZE);
    fs::File::create(scene.store()).unwrap().set_len(SIZE).unwrap();
    let bare = Nbdkit::start(&scene.path("bare.sock"), &["file", scene.store().to_str().unwrap()]);
    let gateway = scene.serve();
    let (mut bare, mut ours) = (export_of(&bare.uri()), export_of(gateway.uri()));
    assert_eq!(ours["export-name"], "disk0");
    // nbdkit 1.32 tells no block sizes for files; that ours takes any byte is checked with unaligned requests.
    for name in ["export-name", "uri", "block_size_minimum", "block_size_preferred", "block_size_maximum"] {
        bare.remove(name);
        ours.remove(name);
    }
    // nbdkit 1.32 does not offer FAST_ZERO for files. Who does must zero fast or refuse; here the file system can.
    if ours.insert("can_fast_zero".into(), bare["can_fast_zero"].clone()) == Some(Value::Bool(true)) {
        program("qemu-io", &["-f", "raw", "-c", "write -z -u -n 0 1M", gateway.uri()]).ok();
    }
    assert_eq!(ours, bare);
    gateway.stop();
}

#[test]
fn the_list_of_exports_names_every_volume() {
    let mut scene = Scene::new(SIZE);
    scene.add_volume();
    let gateway = scene.serve();
    let listed = program("nbdinfo", &["--json", "--list", &format!("nbd://{}", gateway.address())]).ok().json();
    let mut names: Vec<_> =
        listed["exports"].as_array().unwrap().iter().map(|e| e["export-name"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["disk0", "disk1"]);
    assert!(!program("nbdinfo", &[&format!("nbd://{}/disk2", gateway.address())]).status.success());
    gateway.stop();
}

#[test]
fn nbdcopy_in_and_out_over_four_connections_keeps_every_byte() {
    let scene = Scene::new(SIZE);
    let mut image = noise(SIZE, 1);
    image[8 * MIB as usize..24 * MIB as usize].fill(0);
    let (source, copy) = (scene.path("source.img"), scene.path("copy.img"));
    fs::write(&source, &image).unwrap();
    let mut gateway = scene.serve();
    let connections = ["--connections=4", "--requests=64", "--flush"];
    program("nbdcopy", &[&connections[..], &[source.to_str().unwrap(), gateway.uri()]].concat()).ok();
    program("nbdcopy", &[&connections[..], &[gateway.uri(), copy.to_str().unwrap()]].concat()).ok();
    assert_same_image(&fs::read(&copy).unwrap(), &image);
    assert_same_image(&fs::read(scene.store()).unwrap(), &image);
    program("qemu-img", &["compare", "-f", "raw", "-F", "raw", source.to_str().unwrap(), gateway.uri()]).ok();
    gateway.settle();
    gateway.stop();
    assert_same_image(&scene.restored("latest").0, &image);
}

#[test]
fn qemu_io_leaves_the_same_bytes_and_the_same_holes_as_on_nbdkit_file() {
    let scene = Scene::new(SIZE);
    let bare_file = scene.path("bare.img");
    fs::File::create(&bare_file).unwrap().set_len(SIZE).unwrap();
    let bare = Nbdkit::start(&scene.path("bare.sock"), &["file", bare_file.to_str().unwrap()]);
    let mut gateway = scene.serve();
    let commands = [
        "write -P 0x11 0 4M",
        "write -P 0x22 -f 1M 64k",
        "write -P 0x33 4097 777",
        "read -P 0x33 4097 777",
        "write -P 0x44 67108863 1",
        "read -P 0x44 67108863 1",
        "write -z 2M 128k",
        "read -P 0 2M 128k",
        "write -z -u 3M 128k",
        "write -z 100001 99",
        "read -P 0 100001 99",
        "discard 8M 1M",
        "discard 512k 64k",
        "aio_write -P 0x55 16M 1M",
        "aio_write -P 0x66 17M 1M",
        "aio_write -z 18M 1M",
        "aio_flush",
        "read -P 0x55 16M 1M",
        "read -P 0x66 17M 1M",
        "write -P 0x77 24M 30M",
        "read -P 0x77 24M 30M",
        "flush",
    ];
    let arguments = |uri: &str| {
        let pairs = commands.iter().flat_map(|command| ["-c".to_owned(), (*command).to_owned()]);
        ["-f".to_owned(), "raw".to_owned()].into_iter().chain(pairs).chain([uri.to_owned()]).collect::<Vec<_>>()
    };
    for uri in [bare.uri(), gateway.uri().to_owned()] {
        let arguments = arguments(&uri);
        program("qemu-io", &arguments.iter().map(String::as_str).collect::<Vec<_>>()).ok();
    }
    let image = fs::read(&bare_file).unwrap();
    assert_same_image(&fs::read(scene.store()).unwrap(), &image);
    assert_eq!(map_of(gateway.uri()), map_of(&bare.uri()));
    gateway.settle();
    gateway.stop();
    assert_same_image(&scene.restored("latest").0, &image);
}

#[test]
fn odd_requests_get_the_answers_of_nbdkit_file_and_the_connection_goes_on() {
    let scene = Scene::new(SIZE);
    let bare_file = scene.path("bare.img");
    fs::File::create(&bare_file).unwrap().set_len(SIZE).unwrap();
    let bare = Nbdkit::start(&scene.path("bare.sock"), &["file", bare_file.to_str().unwrap()]);
    let mut gateway = scene.serve();
    let answers = |uri: &str| run(python("odd_requests.py").arg(uri), crate::harness::COMMAND_LIMIT).ok().stdout;
    assert_eq!(answers(gateway.uri()), answers(&bare.uri()));
    assert_same_image(&fs::read(scene.store()).unwrap(), &fs::read(&bare_file).unwrap());
    gateway.settle();
    gateway.stop();
    assert_same_image(&scene.restored("latest").0, &fs::read(&bare_file).unwrap());
}

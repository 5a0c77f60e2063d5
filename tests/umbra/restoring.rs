//! What `restore` and `verify` refuse, choose, leave and find.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use crate::harness::{Filesystem, Load, MIB, Nbdkit, Scene, Stamper, assert_same_image};

const SIZE: u64 = 64 * MIB;

/// A volume with several points, whose gateway has stopped.
fn shadowed() -> Scene {
    let scene = Scene::new(SIZE);
    let mut gateway = scene.serve();
    gateway.settle();
    for _ in 0..3 {
        Stamper::start(&Load { ops: 60, rate: 0, hot: 0, ..Load::MIXED }, gateway.uri(), &scene.path("")).finish();
        gateway.settle();
    }
    gateway.stop();
    scene
}

/// Fault test 20.
#[test]
fn a_target_that_must_not_be_written_is_not_touched() {
    let scene = shadowed();
    let target = scene.path("target.img");
    let to = target.to_str().unwrap();

    // It holds data.
    let mut data = vec![0; SIZE as usize];
    data[SIZE as usize - 4096..].fill(7);
    fs::write(&target, &data).unwrap();
    let refused = scene.restore("latest", to, &[]).expect_code(1);
    assert!(refused.stderr.contains("--overwrite"), "{}", refused.stderr);
    assert!(fs::read(&target).unwrap() == data);

    // It is a device, here an export, that is too small.
    let small = scene.path("small.img");
    fs::File::create(&small).unwrap().set_len(SIZE - 4096).unwrap();
    let export = Nbdkit::start(&scene.path("small.sock"), &["file", small.to_str().unwrap()]);
    scene.restore("latest", &export.uri(), &["--overwrite"]).expect_code(1);
    assert_eq!(fs::metadata(&small).unwrap().blocks(), 0);

    // There is no such point, or no such volume.
    let first = &scene.points()[0];
    fs::remove_file(&target).unwrap();
    for at in ["999999", "2001-01-01T00:00:00Z"] {
        scene.restore(at, to, &[]).expect_code(1);
        assert!(!target.exists(), "something was made for the point {at}");
    }
    scene.run(&["restore", "--remote", &scene.remote, "--volume", "disk9", "--to", to]).expect_code(1);
    scene.run(&["restore", "--remote", "file:elsewhere", "--volume", "disk0", "--to", to]).expect_code(1);
    // A point's number is not that of any entry: what is not offered is refused.
    if first.number > 1 {
        scene.restore(&(first.number - 1).to_string(), to, &[]).expect_code(1);
    }
    scene.restore("yesterday", to, &[]).expect_code(2);
    assert!(!target.exists());
    assert!(!scene.path("elsewhere").exists(), "a remote was made by reading it");
}

/// Fault test 20, no space.
#[test]
#[ignore = "loop devices and mounts need root"]
fn a_target_on_a_full_disk_is_named_and_not_taken_for_finished() {
    let scene = Scene::new(SIZE);
    fs::write(scene.store(), crate::transparency::noise(SIZE, 5)).unwrap();
    let mut gateway = scene.serve();
    gateway.settle();
    gateway.stop();
    let image = scene.path("small-disk");
    fs::File::create(&image).unwrap().set_len(16 * MIB).unwrap();
    let small = Filesystem::make(&image, &scene.path("small"), &["-m", "0"]);
    let target = small.folder().join("disk0.img");
    let said = scene.restore("latest", target.to_str().unwrap(), &[]).expect_code(1);
    for word in ["No space left on device", "small/disk0.img"] {
        assert!(said.stderr.contains(word), "no word of {word}: {}", said.stderr);
    }
    let mut second = Scene::new(SIZE);
    second.volumes[0].create = None;
    second.volumes[0].store = format!("file:{}", target.display());
    fs::write(second.config(), second.toml()).unwrap();
    let refused = second.run(&["serve", "umbra.toml"]).expect_code(1);
    assert!(refused.stderr.contains("a restore that did not finish"), "{}", refused.stderr);
}

#[test]
fn overwrite_leaves_nothing_of_what_was_there() {
    let scene = shadowed();
    let target = scene.path("target.img");
    fs::write(&target, vec![7; SIZE as usize]).unwrap();
    scene.restore("latest", target.to_str().unwrap(), &["--overwrite"]).ok();
    assert_same_image(&fs::read(&target).unwrap(), &fs::read(scene.store()).unwrap());
}

#[test]
fn a_number_and_a_time_choose_the_same_point_and_say_so() {
    let scene = shadowed();
    let points = scene.points();
    assert!(points.len() >= 3, "{points:?}");
    let mut images = Vec::new();
    for point in [&points[0], &points[points.len() / 2], points.last().unwrap()] {
        let (by_number, said) = scene.restored(&point.number.to_string());
        assert_eq!(said["volume"], "disk0");
        assert_eq!(said["number"], point.number);
        assert_eq!(said["time"], point.time.as_str());
        assert_eq!(said["sequence"], point.sequence);
        assert_eq!(said["size"], SIZE);
        assert_eq!(said["unreadable"], serde_json::json!([]));
        assert!(said["age_seconds"].as_f64().unwrap() >= 0.0, "{said}");
        assert!(said["seconds"].as_f64().unwrap() >= 0.0, "{said}");
        assert!(said["bytes_written"].as_u64().unwrap() <= SIZE, "{said}");
        let (by_time, said) = scene.restored(&point.time);
        assert_eq!(said["number"], point.number);
        assert_same_image(&by_time, &by_number);
        images.push(by_number);
    }
    assert!(images[0] != images[2]);
    assert_same_image(&images[2], &fs::read(scene.store()).unwrap());
    // A time between two points, and one in the future.
    let (far, said) = scene.restored("2999-01-01T00:00:00Z");
    assert_eq!(said["number"], points.last().unwrap().number);
    assert_same_image(&far, &images[2]);
}

#[test]
fn what_is_zero_stays_sparse() {
    let scene = shadowed();
    let target = scene.path("target.img");
    scene.restore("latest", target.to_str().unwrap(), &[]).ok();
    let (restored, store) = (fs::metadata(&target).unwrap(), fs::metadata(scene.store()).unwrap());
    assert_eq!(restored.len(), SIZE);
    // The store has holes too; the file system may round a little.
    assert!(
        restored.blocks() * 512 <= store.blocks() * 512 + MIB,
        "restored {} KiB, store {} KiB",
        restored.blocks() / 2,
        store.blocks() / 2
    );
}

#[test]
fn an_export_is_restored_and_verified_over_nbd() {
    let scene = shadowed();
    let target = scene.path("target.img");
    fs::File::create(&target).unwrap().set_len(SIZE + MIB).unwrap();
    let export = Nbdkit::start(&scene.path("target.sock"), &["file", target.to_str().unwrap()]);
    scene.restore("latest", &export.uri(), &[]).ok();
    let image = fs::read(&target).unwrap();
    assert_same_image(&image[..SIZE as usize], &fs::read(scene.store()).unwrap());
    assert!(image[SIZE as usize..].iter().all(|b| *b == 0));
    let said = scene.verify("latest", &["--against", &export.uri()]).ok().json();
    assert_eq!(said["against"]["different"], serde_json::json!([]), "{said}");
}

#[test]
fn the_remote_suffices() {
    let scene = shadowed();
    let store = fs::read(scene.store()).unwrap();
    fs::remove_file(scene.store()).unwrap();
    fs::remove_dir_all(scene.path("state")).unwrap();
    fs::remove_file(scene.config()).unwrap();
    let listed = scene.run(&["points", "--remote", &scene.remote, "--json"]).ok().json();
    let volumes: Vec<_> = listed.as_array().unwrap().iter().map(|volume| &volume["volume"]).collect();
    assert_eq!(volumes, ["disk0"]);
    for point in listed[0]["points"].as_array().unwrap() {
        for field in ["number", "time", "kind", "sequence", "generation", "new_bytes"] {
            assert!(!point[field].is_null(), "no field {field} in {point}");
        }
    }
    assert_same_image(&scene.restored("latest").0, &store);
    let said = scene.verify("latest", &[]).ok().json();
    assert!(said["packs"].as_u64().unwrap() > 0 && said["bytes_checked"].as_u64().unwrap() > 0, "{said}");
    assert_eq!(said["bad"], serde_json::json!([]));
}

#[test]
fn an_entry_that_is_gone_is_named_and_hides_no_other_point() {
    let scene = shadowed();
    let list = ["points", "--remote", &scene.remote, "--volume", "disk0", "--all"];
    let entries = |json: &str| -> Vec<u64> {
        let listed: serde_json::Value = serde_json::from_str(json).unwrap();
        listed["points"].as_array().unwrap().iter().map(|entry| entry["number"].as_u64().unwrap()).collect()
    };
    let before = entries(&scene.run(&[&list[..], &["--json"]].concat()).ok().stdout);
    assert!(before.len() > 4, "{before:?}");
    let id = fs::read_to_string(scene.path("remote/names/disk0")).unwrap();
    fs::remove_file(scene.path(&format!("remote/{}/chain/{:020}", id.trim(), 3))).unwrap();
    let said = scene.run(&list).expect_code(1);
    assert!(said.stderr.contains("entries cannot be read: 3\n"), "{}", said.stderr);
    assert_eq!(said.stdout.lines().count(), before.len(), "a title and all but one: {}", said.stdout);
    let said = scene.run(&[&list[..], &["--json"]].concat()).expect_code(1);
    assert_eq!(entries(&said.stdout), before.into_iter().filter(|number| *number != 3).collect::<Vec<_>>());
    assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());
}

#[test]
fn verify_names_the_ranges_of_a_store_that_differ() {
    let scene = shadowed();
    let same = scene.verify("latest", &["--against", "disk0.img"]).ok().json();
    assert_eq!(same["against"]["different"], serde_json::json!([]), "{same}");
    let file = fs::OpenOptions::new().write(true).open(scene.store()).unwrap();
    let at = 40 * MIB + 1000;
    file.write_all_at(b"not what it was", at).unwrap();
    let said = scene.verify("latest", &["--against", "disk0.img"]).expect_code(1).json();
    let ranges = said["against"]["different"].as_array().unwrap();
    assert_eq!(ranges.len(), 1, "{said}");
    let (offset, length) = (ranges[0]["offset"].as_u64().unwrap(), ranges[0]["length"].as_u64().unwrap());
    assert!(offset <= at && at + 15 <= offset + length && length <= 65536, "{said}");
}

/// All files of the remote that hold data.
pub fn packs(scene: &Scene) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![scene.path("remote")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.parent().is_some_and(|parent| parent.ends_with("packs")) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Damages the content of the largest pack, and returns which that is.
fn flip_a_bit(scene: &Scene) -> PathBuf {
    let largest = packs(scene).into_iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let mut bytes = fs::read(&largest).unwrap();
    let at = bytes.len() / 3;
    bytes[at] ^= 1;
    fs::write(&largest, &bytes).unwrap();
    largest
}

/// Fault test 24.
#[test]
fn a_flipped_bit_in_the_remote_is_found_and_never_restored() {
    let scene = shadowed();
    let largest = flip_a_bit(&scene);

    let said = scene.verify("latest", &[]).expect_code(1).json();
    let bad = said["bad"].as_array().unwrap();
    assert_eq!(bad.len(), 1, "{said}");
    assert!(bad[0].to_string().contains(largest.file_name().unwrap().to_str().unwrap()), "{said}");

    let target = scene.path("target.img");
    let refused = scene.restore("latest", target.to_str().unwrap(), &[]).expect_code(1);
    assert!(refused.stderr.contains(largest.file_name().unwrap().to_str().unwrap()), "{}", refused.stderr);
    if let Ok(image) = fs::read(&target) {
        let store = fs::read(scene.store()).unwrap();
        for (at, (restored, true_sector)) in image.chunks(512).zip(store.chunks(512)).enumerate() {
            let untouched = restored.iter().all(|b| *b == 0) || at == 0;
            assert!(untouched || restored == true_sector, "sector {at} of the wreck was invented");
        }
    }
}

/// Fault tests 24 and 34.
#[test]
fn an_object_that_is_cut_short_or_gone_is_found() {
    for damage in ["short", "gone"] {
        let scene = shadowed();
        let pack = packs(&scene).pop().unwrap();
        if damage == "short" {
            let file = fs::OpenOptions::new().write(true).open(&pack).unwrap();
            file.set_len(file.metadata().unwrap().len() - 1).unwrap();
        } else {
            fs::remove_file(&pack).unwrap();
        }
        let said = scene.verify("latest", &[]).expect_code(1);
        let text = format!("{}{}", said.stdout, said.stderr);
        assert!(text.contains(pack.file_name().unwrap().to_str().unwrap()), "{damage}: {text}");
        scene.restore("latest", scene.path("target.img").to_str().unwrap(), &[]).expect_code(1);
    }
}

/// Fault test 20.
/// Counterexamples 8 and 27.
#[test]
fn a_half_restored_disk_is_refused_as_a_store() {
    let scene = shadowed();
    flip_a_bit(&scene);
    let mut second = Scene::new(SIZE);
    second.volumes[0].create = None;
    scene.restore("latest", second.store().to_str().unwrap(), &[]).expect_code(1);
    fs::write(second.config(), second.toml()).unwrap();
    let config = second.config();
    let refused = second.run(&["serve", config.to_str().unwrap()]).expect_code(1);
    assert!(refused.stderr.contains("a restore that did not finish"), "{}", refused.stderr);
    let listed = second.run(&["points", "--remote", &second.remote, "--json"]).ok().json();
    assert_eq!(listed, serde_json::json!([]), "something of the wreck was published");
}

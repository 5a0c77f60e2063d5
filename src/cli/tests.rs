use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::CommandFactory;
use object_store::local::LocalFileSystem;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::*;
use crate::restore::fixture::{Moment, World};
use crate::restore::is_unfinished;
use crate::units::MIB;

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn wrong_forms_are_wrong_usage() {
    let restore = ["umbra", "restore", "--remote", "file:r", "--volume", "v"];
    let with = |more: &[&str]| Cli::try_parse_from(restore.iter().chain(more));
    assert!(with(&["--to", "disk.img"]).is_ok());
    assert!(with(&["--to", "disk.img", "--at", "latest"]).is_ok());
    assert!(with(&["--to", "disk.img", "--at", "812"]).is_ok());
    assert!(with(&["--to", "disk.img", "--at", "2026-11-22T17:41:03+01:00"]).is_ok());
    assert!(with(&["--to", "nbd+unix:///disk0?socket=s"]).is_ok());
    let lun = "iscsi://10.0.0.5/iqn.2003-01.org.array:vol1/0";
    assert!(with(&["--to", lun, "--initiator", "iqn.2020-02.org.example:a"]).is_ok());
    assert!(with(&["--to", lun, "--chap-user", "a", "--chap-secret-file", "b"]).is_ok());
    for wrong in [
        &["--to", "disk.img", "--at", "yesterday"][..],
        &["--to", "disk.img", "--at", "0"],
        &["--to", "http://host/disk"],
        &["--to", "nbd://"],
        &["--to", "iscsi://10.0.0.5/iqn.2003-01.org.array:vol1"],
        &["--to", lun, "--chap-user", "a"],
        &["--to", lun, "--chap-peer-user", "a", "--chap-peer-secret-file", "b"],
        &["--to", ""],
        &["--to", "disk.img", "--remote-option", "novalue"],
        &[],
    ] {
        let error = with(wrong).expect_err("taken although it is wrong");
        assert_eq!(error.exit_code(), 2, "{wrong:?}");
    }
}

#[test]
fn a_gateways_configuration_stands_for_the_remote_and_the_store() {
    let with = |more: &[&str]| Cli::try_parse_from(["umbra", "verify", "--volume", "v"].iter().chain(more));
    assert!(with(&["--config", "umbra.toml"]).is_ok());
    assert!(with(&["--config", "umbra.toml", "--against", "--json"]).is_ok());
    assert!(with(&["--config", "umbra.toml", "--against", "disk.img", "--no-repair"]).is_ok());
    for wrong in [
        &[][..],
        &["--config", "umbra.toml", "--remote", "file:r"],
        &["--config", "umbra.toml", "--no-repair"],
        &["--remote", "file:r", "--against", "disk.img", "--no-repair"],
    ] {
        let error = with(wrong).expect_err("taken although it is wrong");
        assert_eq!(error.exit_code(), 2, "{wrong:?}");
    }
}

#[test]
fn the_readme_shows_commands_that_exist() {
    let shown = include_str!("../../README.md").lines().filter(|line| line.starts_with("umbra "));
    let mut count = 0;
    for line in shown {
        let words = line.split_whitespace().take_while(|word| !word.starts_with('#'));
        assert!(Cli::try_parse_from(words).is_ok(), "{line}");
        count += 1;
    }
    assert!(count > 5, "only {count} commands were found");
}

#[test]
fn the_log_format_may_stand_behind_the_command() {
    let cli = Cli::try_parse_from(["umbra", "serve", "umbra.toml", "--log", "json"]).unwrap();
    assert_eq!(cli.log, Some(LogFormat::Json));
}

/// A bucket in a folder, with a volume in it, and room for targets beside.
struct Bench {
    folder: TempDir,
    history: Vec<Moment>,
}

const SIZE: u64 = 3 * MIB + 300;

impl Bench {
    fn new(seed: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let remote = folder.path().join("remote");
        std::fs::create_dir(&remote).unwrap();
        let store = Arc::new(LocalFileSystem::new_with_prefix(&remote).unwrap());
        let history = Runtime::new().unwrap().block_on(async {
            let mut world = World::on(store, seed, SIZE, true).await;
            for _ in 0..8 {
                world.epoch().await;
            }
            world.history
        });
        Self { folder, history }
    }

    /// A moment with nothing unreadable in it, and one with something.
    fn moments(&self) -> (&Moment, &Moment) {
        let clean = self.history.iter().rfind(|moment| moment.unreadable.is_empty()).expect("seeded to have one");
        let torn = self.history.iter().rfind(|moment| !moment.unreadable.is_empty()).expect("seeded to have one");
        (clean, torn)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs a command on the volume; what would end a process is its message.
    fn run(&self, command: &str, more: &[&str]) -> Result<(), String> {
        let remote = format!("file:{}", self.path("remote").display());
        let args = ["umbra", command, "--remote", &remote, "--volume", "disk0"];
        let cli = Cli::try_parse_from(args.iter().chain(more)).map_err(|error| error.to_string())?;
        dispatch(cli.command).map_err(|failure| failure.to_string())
    }

    fn restore(&self, moment: &Moment, to: &Path, more: &[&str]) -> Result<(), String> {
        let time = moment.slice.map_or(moment.entry.time, |slice| moment.entry.slices[slice].time).to_string();
        self.run("restore", &[&["--at", &time, "--to", to.to_str().unwrap()], more].concat())
    }
}

#[test]
fn a_file_is_made_and_another_is_replaced_only_if_that_is_asked_for() {
    let bench = Bench::new(22);
    let (clean, torn) = bench.moments();
    let made = bench.path("made.img");
    bench.restore(clean, &made, &["--json"]).unwrap();
    assert!(std::fs::read(&made).unwrap() == clean.content);

    let refused = bench.restore(torn, &made, &[]).unwrap_err();
    assert!(refused.contains("holds data") && refused.contains("--overwrite"), "{refused}");
    assert!(std::fs::read(&made).unwrap() == clean.content, "touched although it was refused");

    let failure = bench.restore(torn, &made, &["--overwrite"]).unwrap_err();
    assert!(failure.contains("could not be read from the original"), "{failure}");
    assert!(std::fs::read(&made).unwrap() == torn.content);
}

#[test]
fn a_target_that_is_too_small_is_refused_and_an_interrupted_one_taken_again() {
    let bench = Bench::new(22);
    let (clean, _) = bench.moments();
    let small = bench.path("small.img");
    std::fs::write(&small, [0; 4096]).unwrap();
    let refused = bench.restore(clean, &small, &[]).unwrap_err();
    assert!(refused.contains("the target has 4.0 KiB"), "{refused}");

    let interrupted = bench.path("interrupted.img");
    let mut left = vec![0xEE; SIZE as usize + 100];
    left[..512].copy_from_slice(&crate::restore::signature::unfinished());
    assert!(is_unfinished(&left));
    std::fs::write(&interrupted, left).unwrap();
    bench.restore(clean, &interrupted, &[]).unwrap();
    assert!(std::fs::read(&interrupted).unwrap() == clean.content);
}

#[test]
fn a_larger_file_of_zeroes_keeps_its_size() {
    let bench = Bench::new(23);
    let (clean, _) = bench.moments();
    let large = bench.path("large.img");
    std::fs::File::create(&large).unwrap().set_len(SIZE + 100 * MIB).unwrap();
    bench.restore(clean, &large, &[]).unwrap();
    let found = std::fs::read(&large).unwrap();
    assert_eq!(found.len() as u64, SIZE + 100 * MIB);
    assert!(found[..SIZE as usize] == clean.content && found[SIZE as usize..].iter().all(|byte| *byte == 0));
    assert!(std::fs::metadata(&large).unwrap().blocks() * 512 <= SIZE + MIB, "holes were filled");
}

#[test]
fn verify_fails_where_the_store_or_an_object_is_not_as_it_should_be() {
    let bench = Bench::new(24);
    // The whole entry: what `--at NUMBER` means.
    let last = bench.history.last().unwrap();
    let number = last.entry.number.to_string();
    let image = bench.path("image");
    let mut content = last.content.clone();
    std::fs::write(&image, &content).unwrap();
    let against = image.to_str().unwrap();
    bench.run("verify", &["--at", &number, "--against", against]).unwrap();
    bench.run("verify", &["--json"]).unwrap();
    bench.run("points", &["--json"]).unwrap();
    bench.run("points", &["--all"]).unwrap();

    let odd = (0..SIZE / 512).find(|sector| !last.trimmed.contains(sector) && !last.unreadable.contains(sector));
    content[odd.unwrap() as usize * 512 + 5] ^= 1;
    std::fs::write(&image, &content).unwrap();
    let failure = bench.run("verify", &["--at", &number, "--against", against, "--json"]).unwrap_err();
    assert!(failure.contains("differs from the point in 512 B"), "{failure}");

    let packs = bench.path("remote").join(std::fs::read_to_string(bench.path("remote/names/disk0")).unwrap().trim());
    let pack = std::fs::read_dir(packs.join("packs")).unwrap().map(|entry| entry.unwrap().path()).max().unwrap();
    std::fs::remove_file(&pack).unwrap();
    let failure = bench.run("verify", &[]).unwrap_err();
    assert!(failure.contains(pack.file_name().unwrap().to_str().unwrap()), "{failure}");
    let to = bench.path("lost.img");
    let failure = bench.run("restore", &["--to", to.to_str().unwrap()]).unwrap_err();
    assert!(failure.contains("missing") && failure.contains("choose another point"), "{failure}");
}

#[test]
fn what_cannot_be_found_is_said_with_a_remedy() {
    let bench = Bench::new(25);
    let failure = bench.run("verify", &["--at", "999"]).unwrap_err();
    assert!(failure.contains("no entry 999") && failure.contains("umbra points"), "{failure}");
    let failure = bench.run("verify", &["--at", "1"]).unwrap_err();
    assert!(failure.contains("no recovery point"), "{failure}");
    let failure = bench.run("verify", &["--at", "2001-01-01T00:00:00Z"]).unwrap_err();
    assert!(failure.contains("the first is of"), "{failure}");
}

//! What others on the machine and on the network can see and reach.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::harness::{Gateway, Load, MIB, Scene, Stamper, program};

/// Inodes of the sockets that a process holds.
fn sockets_of(pid: u32) -> BTreeSet<String> {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect()
}

/// Addresses on which a process listens: of TCP as the kernel writes them, and all of UDP.
fn internet_listeners(pid: u32) -> Vec<String> {
    const LISTEN: &str = "0A";
    let ours = sockets_of(pid);
    let mut found = Vec::new();
    for table in ["tcp", "tcp6", "udp", "udp6", "raw", "raw6"] {
        let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let words: Vec<_> = line.split_whitespace().collect();
            if ours.contains(words[9]) && (words[3] == LISTEN || !table.starts_with("tcp")) {
                found.push(format!("{table} {}", words[1]));
            }
        }
    }
    found
}

/// Names of the unix sockets on which a process listens.
fn unix_listeners(pid: u32) -> Vec<String> {
    /// SO_ACCEPTCON: the socket listens.
    const ACCEPTS: u32 = 0x10000;
    let ours = sockets_of(pid);
    fs::read_to_string(format!("/proc/{pid}/net/unix"))
        .unwrap()
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|words| ours.contains(words[6]) && u32::from_str_radix(words[3], 16).unwrap() & ACCEPTS != 0)
        .map(|words| words.get(7).map_or(String::new(), |name| (*name).to_owned()))
        .collect()
}

fn under_load<'s>(scene: &'s Scene) -> Gateway<'s> {
    let mut gateway = scene.serve();
    Stamper::start(&Load { ops: 500, rate: 0, ..Load::MIXED }, gateway.uri(), &scene.path("")).finish();
    gateway.settle();
    gateway
}

#[test]
fn nothing_listens_but_what_the_configuration_names() {
    let scene = Scene::new(64 * MIB);
    let gateway = under_load(&scene);
    let port: u16 = gateway.address().strip_prefix("127.0.0.1:").unwrap().parse().unwrap();
    assert_eq!(internet_listeners(gateway.pid()), [format!("tcp 0100007F:{port:04X}")]);
    for name in unix_listeners(gateway.pid()) {
        let path = scene.path("").join(&name);
        assert!(path.starts_with(scene.path("state")), "it listens on {name:?}");
    }
    gateway.stop();
}

#[test]
fn a_unix_socket_alone_opens_no_port() {
    let mut scene = Scene::new(64 * MIB);
    scene.nbd = "unix:clients.sock";
    let gateway = scene.serve();
    program("nbdinfo", &[gateway.uri()]).ok();
    assert_eq!(internet_listeners(gateway.pid()), [""; 0]);
    gateway.interrupt();
    assert!(!scene.path("clients.sock").exists(), "the socket was left behind");
}

fn assert_private(path: &Path) {
    let metadata = fs::symlink_metadata(path).unwrap();
    let mode = metadata.permissions().mode() & 0o777;
    let wanted = if metadata.is_dir() { 0o700 } else { 0o600 };
    assert!(mode == wanted, "{} has mode {mode:o}", path.display());
    if metadata.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| assert_private(&entry.unwrap().path()));
    }
}

#[test]
fn the_state_folder_is_readable_by_its_owner_only() {
    let scene = Scene::new(64 * MIB);
    let gateway = under_load(&scene);
    assert_private(&scene.path("state"));
    gateway.stop();
    assert_private(&scene.path("state"));
}

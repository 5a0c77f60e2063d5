//! iSCSI, driven by initiators that we did not write: libiscsi's conformance tests, and qemu.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::cuts::assert_one_cut;
use crate::harness::{CANARY, Finished, Gateway, Load, MIB, Running, Scene, Stamper, assert_same_image, program, run};

pub const NAME: &str = "iqn.2026-11.io.umbra:disk0";
/// The conformance tests take half a minute.
const CONFORMANCE_LIMIT: Duration = Duration::from_secs(300);

/// A scene whose gateway has a portal, at the same port after each start: initiators come back to it.
pub fn scene(size: u64) -> Scene {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut scene = Scene::new(size);
    scene.portal = Some(free);
    scene
}

/// As libiscsi and qemu write it; `credentials` end with an @.
fn url(scene: &Scene, credentials: &str, options: &str) -> String {
    format!("iscsi://{credentials}127.0.0.1:{}/{NAME}/0{options}", scene.portal.unwrap())
}

/// What came of each conformance test: `passes`, `fails`, or `skipped` and why.
fn outcomes(log: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let (mut suite, mut test, mut said) = (String::new(), None::<String>, Vec::new());
    let mut close = |suite: &str, test: &mut Option<String>, said: &mut Vec<&str>| {
        let Some(name) = test.take() else { return };
        // What a test says stands further in than what becomes of it.
        let verdicts = || said.iter().filter(|line| !line.starts_with("    "));
        let skipped = said.iter().find_map(|line| line.split_once("[SKIPPED]"));
        let outcome = if verdicts().any(|line| line.ends_with("FAILED")) {
            "fails".to_owned()
        } else if !verdicts().any(|line| line.contains("passed")) {
            "has no end".to_owned()
        } else if let Some((_, why)) = skipped {
            format!("skipped\t{}", why.trim())
        } else {
            "passes".to_owned()
        };
        found.insert(format!("{suite}.{name}"), outcome);
        said.clear();
    };
    for line in log.lines() {
        if let Some(name) = line.strip_prefix("Suite: ") {
            close(&suite, &mut test, &mut said);
            suite = name.trim().to_owned();
        } else if let Some(rest) = line.strip_prefix("  Test: ") {
            close(&suite, &mut test, &mut said);
            let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
            test = Some(name.to_owned());
            said.push(rest);
        } else if line.starts_with("Run Summary") {
            close(&suite, &mut test, &mut said);
        } else {
            said.push(line);
        }
    }
    close(&suite, &mut test, &mut said);
    found
}

/// Runs all conformance tests through two portals' worth of sessions, and holds each against the stored list.
#[track_caller]
fn assert_conforms(url: &str) {
    let mut command = Command::new("iscsi-test-cu");
    command.args(["--dataloss", "-v", "-t", "ALL", url, url]);
    let said = run(&mut command, CONFORMANCE_LIMIT).ok();
    let found = outcomes(&said.stdout);
    let expected: BTreeMap<String, String> = include_str!("iscsi-test-cu.tsv")
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .map(|(name, outcome)| (name.to_owned(), outcome.to_owned()))
        .collect();
    let differs = |name: &&String| found.get(*name) != expected.get(*name);
    let names = expected.keys().chain(found.keys().filter(|name| !expected.contains_key(*name)));
    let wrong: Vec<_> = names.filter(differs).map(|name| (name, expected.get(name), found.get(name))).collect();
    assert!(wrong.is_empty(), "name, expected, found: {wrong:#?}\n{}", said.stdout);
    assert!(found.values().filter(|outcome| *outcome == "passes").count() >= 186);
}

#[test]
fn what_iscsi_test_cu_says_is_read_as_it_is_meant() {
    let log = "Suite: A\n  Test: One ...\n    [SKIPPED] Not there.\npassed\n  Test: Two ...passed\nSuite: B\n  Test: One \
               ...\n    it passed before\nFAILED\n    1. x.c:1  - y\n  Test: Two ...\n    passed so far\nRun Summary: x\n";
    let found = outcomes(log);
    let expected = [("A.One", "skipped\tNot there."), ("A.Two", "passes"), ("B.One", "fails"), ("B.Two", "has no end")];
    assert_eq!(found, expected.map(|(name, outcome)| (name.to_owned(), outcome.to_owned())).into());
}

/// And what all of them have written is in the newest point.
#[test]
fn the_conformance_tests_pass_and_the_newest_point_is_the_disk() {
    let scene = scene(100 * MIB);
    let mut gateway = scene.serve();
    assert_conforms(&url(&scene, "", ""));
    gateway.settle();
    gateway.stop();
    assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());
}

/// Users and secrets of both sides; the initiators' is never to be seen again.
pub const INITIATORS: [&str; 2] = ["alice", CANARY];
pub const OURS: [&str; 2] = ["umbra", "another-secret"];

/// Has the scene's gateways ask for them.
pub fn ask_for_secrets(scene: &mut Scene) {
    for (file, secret) in [("initiators", format!("{}\n", INITIATORS[1])), ("ours", OURS[1].to_owned())] {
        fs::write(scene.path(file), secret).unwrap();
        run(Command::new("chmod").arg("600").arg(scene.path(file)), Duration::from_secs(10)).ok();
    }
    scene.more = "[iscsi]\nchap = { user = \"alice\", secret_file = \"initiators\", peer_user = \"umbra\", \
                  peer_secret_file = \"ours\" }\n"
        .to_owned();
}

fn with_secrets(size: u64) -> Scene {
    let mut scene = scene(size);
    ask_for_secrets(&mut scene);
    scene
}

#[test]
fn the_conformance_tests_pass_with_mutual_chap_and_digests() {
    let scene = with_secrets(100 * MIB);
    let mut gateway = scene.serve();
    let options = "?header_digest=crc32c&target_user=umbra&target_password=another-secret";
    assert_conforms(&url(&scene, &format!("alice%{CANARY}@"), options));
    gateway.settle();
    assert!(!gateway.printed().contains(CANARY), "a secret is in the log");
    gateway.stop();
}

#[test]
fn nobody_is_let_in_who_does_not_prove_who_it_is() {
    let scene = with_secrets(16 * MIB);
    let gateway = scene.serve().allow("the initiator is not let in");
    let ask = |credentials: &str, options: &str| -> Finished {
        let url = url(&scene, credentials, options);
        run(Command::new("iscsi-inq").arg(url), Duration::from_secs(30))
    };
    let right = format!("alice%{CANARY}@");
    assert!(ask(&right, "").ok().stdout.contains("Vendor:UMBRA"));
    for credentials in ["", "alice%wrong-secret-of-alice@", &format!("bob%{CANARY}@")] {
        let said = ask(credentials, "").expect_code(10);
        assert!(said.stderr.contains("Authentication failure"), "{credentials}: {}", said.stderr);
    }
    // And the initiator finds out who cannot prove to be us.
    let said = ask(&right, "?target_user=umbra&target_password=not-our-secret").expect_code(10);
    assert!(said.stderr.contains("Invalid CHAP_R response"), "{}", said.stderr);
    let listed = run(
        Command::new("iscsi-ls").arg(format!("iscsi://{right}127.0.0.1:{}", scene.portal.unwrap())),
        Duration::from_secs(30),
    );
    assert!(listed.ok().stdout.contains(NAME));
    // A field by the name of one of the log's own would be there twice.
    let printed = gateway.printed();
    let logged_in = printed.lines().find(|line| line.contains("\"logged in\"")).expect("a line of the log");
    assert!(logged_in.contains(&format!("\"target_name\":\"{NAME}\"")), "{logged_in}");
    assert_eq!(logged_in.matches("\"target\":").count(), 1, "{logged_in}");
    gateway.stop();
}

#[test]
fn a_secret_that_cannot_be_used_is_named_before_anything_is_served() {
    let scene = with_secrets(16 * MIB);
    for (content, says) in [("short", "fewer than 12 bytes"), ("another-secret\n", "the same secret")] {
        fs::write(scene.path("initiators"), content).unwrap();
        fs::write(scene.config(), scene.toml()).unwrap();
        for command in ["check", "serve"] {
            let said = scene.run(&[command, "umbra.toml"]).expect_code(1);
            let all = [said.stdout, said.stderr].concat();
            assert!(all.contains(says) && !all.contains(content.trim()), "{command}: {all}");
        }
    }
}

/// The server of qemu in front of our target, so that clients of NBD drive the LUN: qemu's initiator comes back by itself.
fn bridge(scene: &Scene) -> (Running, String) {
    let socket = scene.path("bridge.sock");
    let mut command = Command::new("qemu-nbd");
    command.args(["--persistent", "--shared=8", "--format=raw", "--cache=none", "--export-name=lun", "--socket"]);
    let process = Running::start(command.arg(&socket).arg(url(scene, "", "")), Stdio::null());
    for _ in 0..300 {
        if socket.exists() {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(socket.exists(), "qemu-nbd does not serve\n{}", process.said());
    (process, format!("nbd+unix:///lun?socket={}", socket.display()))
}

#[test]
fn a_load_through_qemus_initiator_has_points_that_are_one_cut_each() {
    let scene = scene(64 * MIB);
    let mut gateway = scene.serve();
    gateway.settle();
    let (_bridge, uri) = bridge(&scene);
    // That server keeps what is trimmed.
    let stamper = Stamper::start(&Load { connections: 1, trim: 0, ..Load::MIXED }, &uri, &scene.path(""));
    gateway.wait_for_points(4);
    let trace = stamper.stop();
    gateway.settle();
    gateway.stop();
    for point in scene.points().iter().rev().take(4) {
        assert_one_cut(&scene, &point.number.to_string(), &trace);
    }
    assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());
}

#[test]
fn an_initiator_outlives_a_kill_of_the_gateway_and_reads_what_it_wrote() {
    let scene = scene(64 * MIB);
    let source = scene.path("source.img");
    let mut gateway = scene.serve();
    gateway.settle();
    program("dd", &["if=/dev/urandom", &format!("of={}", source.display()), "bs=1M", "count=64", "status=none"]).ok();
    let (source, lun) = (source.to_str().unwrap().to_owned(), url(&scene, "", ""));
    program("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &source, &lun]).ok();
    program("qemu-img", &["compare", "-f", "raw", "-F", "raw", &source, &lun]).ok();
    // It writes what it reads nowhere: the pattern is its own, and the disk is held against its newest point below.
    let mut bench = Command::new("qemu-img");
    bench
        .args(["bench", "-w", "-c", "60000", "-d", "16", "-s", "4096", "-S", "69632", "-t", "none", "-f", "raw", &lun]);
    let mut bench = Running::start(&mut bench, Stdio::null());
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(700));
        assert!(bench.is_running(), "it ended before the gateway was killed\n{}", bench.said());
        gateway.kill();
        gateway = scene.serve();
    }
    bench.finish(Duration::from_secs(100)).ok();
    gateway.settle();
    gateway.stop();
    assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());
}

#[test]
fn an_initiator_is_asked_to_leave_and_comes_back_after_a_restart() {
    let scene = scene(16 * MIB);
    let lun = url(&scene, "", "");
    let mut gateway: Gateway<'_> = scene.serve();
    gateway.settle();
    let mut bench = Command::new("qemu-img");
    bench.args(["bench", "-w", "-c", "60000", "-d", "8", "-s", "4096", "-t", "none", "-f", "raw", &lun]);
    let mut bench = Running::start(&mut bench, Stdio::null());
    std::thread::sleep(Duration::from_millis(500));
    assert!(bench.is_running(), "it ended before the restart\n{}", bench.said());
    gateway.stop();
    let mut gateway = scene.serve();
    bench.finish(Duration::from_secs(100)).ok();
    gateway.settle();
    gateway.stop();
    assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());
}

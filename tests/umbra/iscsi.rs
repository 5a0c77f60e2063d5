//! iSCSI, driven by initiators that we did not write: libiscsi's conformance tests, and qemu; and by one of ours for what
//! neither does.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::cuts::assert_one_cut;
use crate::harness::{
    CANARY, Finished, Fio, Gateway, Load, MIB, Memory, Nbdkit, PORTALS, Running, Scene, Stamper, assert_same_image,
    free_port, program, python, run,
};
use crate::malformed::assert_it_ends;
use crate::transparency::noise;

pub const NAME: &str = "iqn.2026-11.io.umbra:disk0";
/// The conformance tests take half a minute.
const CONFORMANCE_LIMIT: Duration = Duration::from_secs(300);

/// A scene whose gateway has portals, at the same port after each start: initiators come back to them.
pub fn scene(size: u64) -> Scene {
    let free = free_port();
    let mut scene = Scene::new(size);
    scene.portal = Some(free);
    scene
}

/// As libiscsi and qemu write it, by each of the portals; `credentials` end with an @.
fn urls(scene: &Scene, credentials: &str, options: &str) -> [String; 2] {
    PORTALS.map(|host| format!("iscsi://{credentials}{host}:{}/{NAME}/0{options}", scene.portal.unwrap()))
}

/// By the first of them.
fn url(scene: &Scene, credentials: &str, options: &str) -> String {
    let [first, _] = urls(scene, credentials, options);
    first
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

/// Runs all conformance tests through two portals, and holds each against the stored list.
#[track_caller]
fn assert_conforms(urls: &[String; 2]) {
    let mut command = Command::new("iscsi-test-cu");
    command.args(["--dataloss", "-v", "-t", "ALL"]).args(urls);
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
    assert_conforms(&urls(&scene, "", ""));
    gateway.settle();
    gateway.stop();
    assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());
}

#[test]
fn discovery_by_either_portal_names_both() {
    let scene = scene(16 * MIB);
    let gateway = scene.serve();
    let port = scene.portal.unwrap();
    for asked in PORTALS {
        let said = program("iscsi-ls", &[&format!("iscsi://{asked}:{port}")]).ok().stdout;
        for named in PORTALS {
            assert!(said.contains(&format!("Target:{NAME} Portal:{named}:{port},1")), "by {asked}: {said}");
        }
    }
    gateway.stop();
}

/// Multipathing hosts know a unit by its serial number and its designators.
#[test]
fn a_unit_is_the_same_before_and_after_a_restart() {
    let scene = scene(16 * MIB);
    let pages = || {
        let lun = url(&scene, "", "");
        ["128", "131"].map(|page| program("iscsi-inq", &["-e", "1", "-c", page, &lun]).ok().stdout)
    };
    let gateway = scene.serve();
    let before = pages();
    assert!(before[0].contains("Unit Serial Number:["), "{}", before[0]);
    assert!(before[1].contains(NAME), "{}", before[1]);
    gateway.stop();
    let gateway = scene.serve();
    assert_eq!(pages(), before);
    gateway.stop();
}

#[test]
fn a_store_of_blocks_of_4096_bytes_is_a_unit_of_such_blocks() {
    let mut scene = scene(16 * MIB);
    fs::File::create(scene.store()).unwrap().set_len(16 * MIB).unwrap();
    let store = scene.store().to_str().unwrap().to_owned();
    // It fails what is no whole block.
    let arguments =
        ["--filter=blocksize-policy", "file", &store, "blocksize-minimum=4096", "blocksize-error-policy=error"];
    let bare = Nbdkit::start(&scene.path("bare.sock"), &arguments);
    (scene.volumes[0].store, scene.volumes[0].create) = (bare.uri(), None);
    let mut gateway = scene.serve();
    let lun = url(&scene, "", "");
    let said = program("iscsi-readcapacity16", &[&lun]).ok().stdout;
    assert!(said.contains("BLOCK LENGTH IN BYTES:4096"), "{said}");
    let source = scene.path("source.img");
    fs::write(&source, noise(16 << 20, 13)).unwrap();
    let source = source.to_str().unwrap();
    program("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", source, &lun]).ok();
    program("qemu-img", &["compare", "-f", "raw", "-F", "raw", source, &lun]).ok();
    gateway.settle();
    gateway.stop();
    let written = fs::read(source).unwrap();
    assert_same_image(&fs::read(scene.store()).unwrap(), &written);
    assert_same_image(&scene.restored("latest").0, &written);
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
    assert_conforms(&urls(&scene, &format!("alice%{CANARY}@"), options));
    gateway.settle();
    assert!(!gateway.printed().contains(CANARY), "a secret is in the log");
    gateway.stop();
}

/// Fault test 43.
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
pub fn bridge(scene: &Scene) -> (Running, String) {
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
    // That server keeps what is trimmed, and zeroes in up to three commands, one after the other, what does not begin and
    // end where the unit unmaps by: a cut between them is one to us, and not to the client.
    let load = Load { connections: 1, zero_border: 8, trim: 0, ..Load::MIXED };
    let stamper = Stamper::start(&load, &uri, &scene.path(""));
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

/// A PDU (RFC 7143, 11.2): what stands in its header beside the length of its data.
fn pdu(header: &[(usize, &[u8])], data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 48];
    bytes[5..8].copy_from_slice(&(data.len() as u32).to_be_bytes()[1..]);
    for (at, part) in header {
        bytes[*at..at + part.len()].copy_from_slice(part);
    }
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// From the operational stage to full feature; `flags` as in 11.12.1 to 11.12.3.
fn login(flags: u8, text: &[u8]) -> Vec<u8> {
    pdu(&[(0, &[0x43, flags]), (8, &[0x80, 0, 0, 0, 0, 9])], text)
}

const IDENTIFIED: &[u8] = b"InitiatorName=iqn.2020-02.org.example:odd\0TargetName=iqn.2026-11.io.umbra:disk0\0";

fn command(task: u32, number: u32, flags: u8, length: u32, cdb: &[u8], data: &[u8]) -> Vec<u8> {
    let (task, length, number) = (task.to_be_bytes(), length.to_be_bytes(), number.to_be_bytes());
    pdu(&[(0, &[0x01, flags]), (16, &task), (20, &length), (24, &number), (32, cdb)], data)
}

/// Fault test 40.
#[test]
fn malformed_pdus_hurt_nobody_else_and_the_conformance_tests_pass_after_them() {
    let scene = scene(100 * MIB);
    let mut gateway = scene.serve().allow_each(&["the login failed", "session dropped"]);
    // It knows nothing of the last 36 MiB, where some of the nonsense writes.
    let mut fio = Fio::start(gateway.uri(), 64, 2, 16);
    let connect = || TcpStream::connect(("127.0.0.1", scene.portal.unwrap())).unwrap();
    let noise = noise(1 << 16, 40);
    let (test, read) = ([0; 16], [0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0]);
    let write = [0x2a, 0, 0, 2, 0xd0, 0, 0, 0, 128, 0];
    const FULL_FEATURE: u8 = 0x87;
    let before_login = [
        ("nothing", vec![]),
        ("an HTTP request", b"GET / HTTP/1.1\r\nHost: disk0\r\n\r\n".to_vec()),
        ("noise", noise.clone()),
        ("a command", command(1, 0, 0x81, 0, &test, &[])),
        ("1,020 bytes of additional header", pdu(&[(0, &[0x43, FULL_FEATURE, 0, 0, 255])], &noise[..2000])),
        ("16 MiB of text", pdu(&[(0, &[0x43, FULL_FEATURE]), (5, &[255; 3])], &noise)),
        ("a key without an end", login(FULL_FEATURE, b"InitiatorName=iqn.2020-02.org.example:odd")),
        ("a key of 64 KiB", login(FULL_FEATURE, &[IDENTIFIED, b"X-", &[b'x'; 1 << 16], b"=1\0"].concat())),
        ("no key", login(FULL_FEATURE, &[0; 64])),
        ("a text that goes on for ever", login(0x44, &[b'x'; 8000]).repeat(1000)),
        ("a login that leads nowhere", login(0x04, IDENTIFIED).repeat(1000)),
        ("the stage that does not exist", login(0x8b, IDENTIFIED)),
        ("half a login", login(FULL_FEATURE, IDENTIFIED)[..50].to_vec()),
    ];
    for (name, bytes) in &before_login {
        assert_it_ends(name, connect(), bytes);
    }
    let after_login = [
        ("noise", noise.clone()),
        ("a login once more", login(FULL_FEATURE, IDENTIFIED)),
        ("1,020 bytes of additional header", pdu(&[(0, &[0x01, 0x81, 0, 0, 255])], &noise[..2000])),
        ("16 MiB of data", pdu(&[(0, &[0x01, 0xa1]), (5, &[255; 3])], &noise)),
        ("data for no command", pdu(&[(0, &[0x05, 0x80]), (20, &[1, 2, 3, 4])], &noise[..512])),
        ("more than a burst, unasked", command(1, 0, 0xa1, 1 << 16, &write, &[7; 100_000])),
        ("more data than the command has", command(1, 0, 0xa1, 512, &write, &[7; 1024])),
        ("one tag for two commands", [0, 1].map(|number| command(1, number, 0xc1, 4096, &read, &[])).concat()),
        ("a number far ahead", command(1, 1 << 20, 0x81, 0, &test, &[])),
        ("a number of the past", command(1, u32::MAX, 0x81, 0, &test, &[])),
        ("an R2T, which is not ours to hear", pdu(&[(0, &[0x31, 0x80])], &[])),
        ("a text that goes on for ever", pdu(&[(0, &[0x04, 0x40])], &[b'x'; 8000]).repeat(1000)),
        ("an operation that does not exist", pdu(&[(0, &[0x1c, 0x80])], &[])),
        ("half a header", command(1, 0, 0x81, 0, &test, &[])[..20].to_vec()),
        ("half of its data", command(1, 0, 0xa1, 512, &write, &[7; 512])[..100].to_vec()),
    ];
    let log_in = || {
        let mut stream = connect();
        stream.write_all(&login(FULL_FEATURE, IDENTIFIED)).unwrap();
        let mut header = [0; 48];
        stream.read_exact(&mut header).unwrap();
        assert_eq!((header[0], header[36]), (0x23, 0), "the login is answered with {header:x?}");
        let length = u32::from_be_bytes([0, header[5], header[6], header[7]]) as usize;
        stream.read_exact(&mut vec![0; length.next_multiple_of(4)]).unwrap();
        stream
    };
    for (name, bytes) in &after_login {
        assert_it_ends(name, log_in(), bytes);
    }
    let silent: Vec<_> = (0..50).map(|_| connect()).collect();
    assert!(fio.is_running(), "fio had ended before all nonsense was said");
    fio.finish();
    let peak = Memory::of(gateway.pid()).peak;
    assert!(peak < 1 << 30, "it took {} MiB of memory", peak >> 20);
    drop(silent);
    assert_conforms(&urls(&scene, "", ""));
    gateway.settle();
    gateway.stop();
    assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());
}

/// A host with an initiator of its own; see `clients/initiator.py`.
struct Host<'s> {
    scene: &'s Scene,
    name: &'static str,
}

/// What a host was answered.
struct Said {
    status: u64,
    data: String,
}

const GOOD: u64 = 0x00;
const RESERVATION_CONFLICT: u64 = 0x18;
const TEST_UNIT_READY: &str = "000000000000";
const KEY: &str = "00000000cafe0001";

impl Host<'_> {
    fn command(&self) -> Command {
        let mut command = python("initiator.py");
        command.args(["--portal", &format!("127.0.0.1:{}", self.scene.portal.unwrap()), "--target", NAME]);
        command.args(["--name", self.name, "--isid", "800000000001"]);
        command
    }

    /// Sends commands, after those that only fetch what the unit has to tell a new session.
    #[track_caller]
    fn send(&self, commands: &[String]) -> Vec<Said> {
        let first = [TEST_UNIT_READY; 3].map(str::to_owned);
        let mut command = self.command();
        command.arg("send").args(&first).args(commands);
        let said = run(&mut command, Duration::from_secs(30)).ok();
        let answers = said.stdout.lines().skip(first.len()).map(|line| {
            let answer: serde_json::Value = serde_json::from_str(line).unwrap();
            let text = |field: &str| answer[field].as_str().unwrap().to_owned();
            Said { status: answer["status"].as_u64().unwrap(), data: text("data") }
        });
        let answers: Vec<_> = answers.collect();
        assert_eq!(answers.len(), commands.len(), "{}", said.stdout);
        answers
    }

    /// Statuses alone.
    #[track_caller]
    fn statuses(&self, commands: &[String]) -> Vec<u64> {
        self.send(commands).iter().map(|said| said.status).collect()
    }
}

/// One block of `byte` to block 8.
fn write_10(byte: u8) -> String {
    format!("2a000000000800000100:{}", format!("{byte:02x}").repeat(512))
}

/// SPC-4, 6.16: a service action, of type write exclusive, that outlives a loss of power.
fn reserve_out(action: u8, key: &str, action_key: &str) -> String {
    format!("5f{action:02x}0100000000001800:{key}{action_key}0000000001000000")
}

#[test]
fn a_persistent_reservation_holds_over_a_stop_and_a_kill_of_the_gateway() {
    let scene = scene(16 * MIB);
    let mut gateway = scene.serve();
    gateway.settle();
    let [holder, other] =
        ["iqn.2020-02.org.example:a", "iqn.2020-02.org.example:b"].map(|name| Host { scene: &scene, name });
    let none = "0".repeat(16);
    let (register, reserve) = (reserve_out(0, &none, KEY), reserve_out(1, KEY, &none));
    assert_eq!(holder.statuses(&[register, reserve, write_10(1)]), [GOOD; 3]);
    assert_eq!(other.statuses(&[write_10(2)]), [RESERVATION_CONFLICT]);
    for round in 0..2 {
        if round == 0 {
            gateway.stop()
        } else {
            gateway.kill()
        }
        gateway = scene.serve();
        let said = other.send(&[write_10(2), "5e000000000000010000::256".to_owned()]);
        assert_eq!(said[0].status, RESERVATION_CONFLICT, "round {round}");
        assert!(said[1].data.contains(KEY), "round {round}: {}", said[1].data);
        assert_eq!(holder.statuses(&[write_10(3 + round)]), [GOOD], "round {round}");
    }
    // What it has let go of is gone after a kill as well.
    assert_eq!(holder.statuses(&[reserve_out(0, KEY, &none)]), [GOOD]);
    gateway.kill();
    gateway = scene.serve();
    assert_eq!(other.statuses(&[write_10(9)]), [GOOD]);
    gateway.settle();
    gateway.stop();
    let store = fs::read(scene.store()).unwrap();
    assert_eq!(store[8 * 512], 9);
    assert_same_image(&scene.restored("latest").0, &store);
}

#[test]
fn of_two_hosts_that_compare_and_write_one_block_neither_loses_a_write() {
    const TIMES: u64 = 400;
    let scene = scene(16 * MIB);
    let mut gateway = scene.serve();
    gateway.settle();
    let names = ["iqn.2020-02.org.example:a", "iqn.2020-02.org.example:b"];
    let hosts = names.map(|name| {
        let mut command = Host { scene: &scene, name }.command();
        Running::start(command.args(["count", "40", &TIMES.to_string()]), Stdio::null())
    });
    let missed: u64 = hosts
        .into_iter()
        .map(|host| host.finish(Duration::from_secs(100)).ok().json()["missed"].as_u64().unwrap())
        .sum();
    assert!(missed > 0, "the hosts have not met");
    gateway.settle();
    gateway.stop();
    let store = fs::read(scene.store()).unwrap();
    assert_eq!(u64::from_le_bytes(store[40 * 512..][..8].try_into().unwrap()), 2 * TIMES, "{missed} were too late");
    assert_same_image(&scene.restored("latest").0, &store);
}

//! The kernel's own initiator and NBD client, in a guest of qemu that `tests/guest` makes: where tests run, the kernel
//! need have neither.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::{MIB, Running, Scene, Volume, assert_same_image, program, run, tool};
use crate::iscsi;

/// Of all that the guest does, with an emulated processor: half a minute where nobody else computes, but tests do.
const GUEST_LIMIT: Duration = Duration::from_secs(300);
const SIZE: u64 = 96 * MIB;
/// What a kernel says of a disk that does not work, or of itself.
const COMPLAINTS: [&str; 7] =
    ["I/O error", "EXT4-fs error", "EXT4-fs warning", "blocked for", "BUG", "Call Trace", "WARNING"];

/// A guest at work. What it says is on its console.
struct Guest {
    qemu: Running,
    end: Instant,
}

impl Guest {
    /// Begins to boot it; it is told of the portal at its start, since its initiator comes back to that one.
    fn boot(scene: &Scene) -> Self {
        let image = scene.path("guest.img");
        let mut make = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/make-image"));
        run(make.arg(tool("guest")).arg(&image), GUEST_LIMIT).ok();
        let (portal, target) = (scene.portal.unwrap(), iscsi::NAME);
        // The console is ours alone until the end. Where others compute, a processor of the guest may stand still.
        let quiet = "console=ttyS0 loglevel=1 panic=-1 nowatchdog rcupdate.rcu_cpu_stall_suppress=1";
        let told = format!("{quiet} portal={portal} target={target}");
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "4", "-m", "512"]);
        command.args(["-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"]);
        // Its 10.0.2.2 is our loopback address.
        command.args(["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="]);
        command.arg("-kernel").arg(tool("guest/vmlinuz")).arg("-initrd").arg(image).args(["-append", &told]);
        Self { qemu: Running::start(&mut command, Stdio::piped()), end: Instant::now() + GUEST_LIMIT }
    }

    fn left(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }

    #[track_caller]
    fn wait_for(&mut self, what: &str, wanted: impl Fn(&str) -> bool) {
        let limit = self.left();
        self.qemu.wait_for_line(what, limit, |line| wanted(line.trim_end().strip_prefix("GUEST ")?).then_some(()));
    }

    /// Waits until it has written so many files more, each of which was durable.
    #[track_caller]
    fn writes_more(&mut self, count: u64) {
        let wrote = |said: &str| said.strip_prefix("wrote ")?.parse::<u64>().ok();
        let said = self.qemu.stdout.all();
        let before = said.iter().filter_map(|line| wrote(line.trim_end().strip_prefix("GUEST ")?)).max().unwrap_or(0);
        self.wait_for(&format!("`wrote {}`", before + count), |said| wrote(said) >= Some(before + count));
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.qemu.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Waits until it has shut itself down; nothing has displeased its kernel.
    #[track_caller]
    fn finish(mut self) {
        self.wait_for("that it ends", |said| said == "ended");
        let left = self.left();
        let said = self.qemu.finish(left).ok().stdout;
        let complaints: Vec<_> =
            said.lines().filter(|line| COMPLAINTS.iter().any(|part| line.contains(part))).collect();
        assert!(complaints.is_empty(), "{complaints:#?}\n{said}");
    }
}

/// The filesystem of a volume is sound, and its newest point is its store.
#[track_caller]
fn assert_sound(scene: &Scene, volume: &str) {
    let (store, copy) = (scene.path(&format!("{volume}.img")), scene.path("restored.img"));
    program("/sbin/e2fsck", &["-f", "-n", store.to_str().unwrap()]).ok();
    let to = copy.to_str().unwrap();
    scene.run(&["restore", "--remote", &scene.remote, "--volume", volume, "--to", to]).ok();
    assert_same_image(&fs::read(&copy).unwrap(), &fs::read(&store).unwrap());
    fs::remove_file(copy).unwrap();
}

#[test]
fn the_kernels_initiator_outlives_a_stop_and_a_kill_and_its_nbd_client_has_four_connections() {
    let mut scene = iscsi::scene(SIZE);
    scene.volumes.push(Volume { name: "disk1".into(), store: "file:disk1.img".into(), create: Some(SIZE) });
    scene.log_size = "512MiB";
    let mut guest = Guest::boot(&scene);

    let gateway = scene.serve();
    guest.writes_more(10);
    gateway.stop();
    let gateway = scene.serve();
    guest.writes_more(10);
    gateway.kill();
    let mut gateway = scene.serve();
    guest.writes_more(10);
    guest.tell("enough");
    guest.wait_for("that iSCSI is right", |said| said == "iscsi: all is right");
    gateway.settle();
    gateway.stop();

    iscsi::ask_for_secrets(&mut scene);
    let mut gateway = scene.serve();
    guest.tell(&[iscsi::INITIATORS, iscsi::OURS].concat().join(" "));
    guest.wait_for("that iSCSI with secrets is right", |said| said == "iscsi with secrets: all is right");

    let port = gateway.address().rsplit_once(':').unwrap().1.to_owned();
    guest.tell(&port);
    guest.wait_for("that NBD is right", |said| said == "nbd: all is right");
    guest.finish();

    gateway.settle();
    let connections = gateway.printed().matches(r#""disconnected","export":"disk1""#).count();
    assert_eq!(connections, 4);
    gateway.stop();
    assert_sound(&scene, "disk0");
    assert_sound(&scene, "disk1");
}

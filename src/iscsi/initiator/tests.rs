//! The disk against our own target, over TCP.

mod units;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::*;
use crate::disk::faulty::{Fault, Gate, Kind};
use crate::disk::{Disk, Extent, FaultyDisk, Identity, MemoryDisk, Pending, ZeroMode, conformance};
use crate::iscsi::chap::{Chap, Secret};
use crate::iscsi::pdu::LoginResponse;
use crate::iscsi::target::{Server, Target};
use crate::net::Address;
use crate::scsi::{InitiatorPort, Unit, UnitSettings};
use crate::units::MIB;

const NAME: &str = "iqn.2026-11.io.umbra:disk0";

fn account(user: &str, secret: &str) -> Account {
    Account { user: user.into(), secret: Secret::new(secret.into()).unwrap() }
}

struct Running {
    task: JoinHandle<()>,
    address: SocketAddr,
    stop: watch::Sender<bool>,
}

fn unit(disk: Arc<dyn Disk>) -> Unit {
    Unit::new(disk, UnitSettings::example(NAME)).unwrap()
}

async fn serve(disk: Arc<dyn Disk>, chap: Option<Chap>) -> Running {
    serve_unit(unit(disk), chap).await
}

async fn serve_unit(unit: Unit, chap: Option<Chap>) -> Running {
    let target = Target::new(NAME.into(), unit);
    let server = Server::bind(&[Address::Tcp("127.0.0.1:0".into())], vec![target], chap).await.unwrap();
    let Address::Tcp(address) = &server.addresses()[0] else { panic!("no TCP") };
    let address = address.parse().unwrap();
    let (stop, stopped) = watch::channel(false);
    Running { task: tokio::spawn(server.run(stopped)), address, stop }
}

fn options(address: SocketAddr, chap: Option<Credentials>) -> Options {
    let url = format!("iscsi://{address}/{NAME}/0").parse().unwrap();
    Options { url, initiator: "iqn.2026-11.io.umbra:gateway".into(), isid: [0x80, 0, 0, 1, 2, 3], chap }
}

async fn open(server: &Running) -> IscsiDisk {
    IscsiDisk::open(options(server.address, None)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unit_is_a_disk_whatever_the_one_behind_it_can_do() {
    let able = MemoryDisk::new(3 * MIB).geometry();
    let poor = Abilities { flush: true, ..Abilities::default() };
    for abilities in [able.abilities, poor, Abilities { read_only: true, ..poor }] {
        for minimum in [512, 4096] {
            let block = crate::disk::BlockSizes { minimum, ..able.block };
            let behind = MemoryDisk::with_geometry(Geometry { abilities, block, ..able });
            let server = serve(Arc::new(behind), None).await;
            let disk = open(&server).await;
            assert_eq!(disk.geometry().block.minimum, minimum);
            assert_eq!(disk.geometry().abilities.read_only, abilities.read_only);
            assert_eq!(disk.geometry().abilities.trim, abilities.trim);
            conformance::check(Arc::new(disk)).await;
        }
    }
}

#[tokio::test]
async fn a_unit_is_named_by_its_designator() {
    let server = serve(Arc::new(MemoryDisk::new(MIB)), None).await;
    let disk = open(&server).await;
    // That of ours is assigned locally, which it shares with whatever numbers its units alike.
    assert_eq!(disk.identity().name, format!("iscsi:{NAME}/naa.3707070707070707"));
    assert_eq!((disk.identity().size, disk.incarnation()), (MIB, 0));
}

#[tokio::test]
async fn both_prove_who_they_are_or_there_is_no_session() {
    let chap =
        Chap { initiator: account("umbra", "secret-of-umbra"), target: Some(account("array", "secret-of-array")) };
    let server = serve(Arc::new(MemoryDisk::new(MIB)), Some(chap)).await;
    let with = |ours: Account, theirs: Option<Account>| Some(Credentials { ours, theirs });
    let (ours, theirs) = (account("umbra", "secret-of-umbra"), account("array", "secret-of-array"));
    for chap in [with(ours.clone(), None), with(ours.clone(), Some(theirs.clone()))] {
        IscsiDisk::open(options(server.address, chap)).await.unwrap();
    }
    let failure = async |chap| match IscsiDisk::open(options(server.address, chap)).await {
        Err(OpenError::Connect { source: ConnectError::Login(error), .. }) => error,
        other => panic!("{:?}", other.err()),
    };
    let error = failure(with(account("umbra", "another-secret"), None)).await;
    assert!(matches!(error, LoginError::Authentication(_)), "{error}");
    let error = failure(None).await;
    assert!(matches!(error, LoginError::Authentication(_)), "{error}");
    let error = failure(with(ours.clone(), Some(account("array", "another-secret")))).await;
    assert!(matches!(error, LoginError::Unproven(_)), "{error}");
    let same = IscsiDisk::open(options(server.address, with(ours.clone(), Some(ours)))).await;
    assert!(matches!(same.err(), Some(OpenError::SameSecret)));
}

#[tokio::test]
async fn what_is_not_there_is_told_apart() {
    let server = serve(Arc::new(MemoryDisk::new(MIB)), None).await;
    let right = options(server.address, None);
    let with = |change: fn(&mut Options)| {
        let mut options = right.clone();
        change(&mut options);
        IscsiDisk::open(options)
    };
    let no_target = with(|options| options.url.target = "iqn.2026-11.io.umbra:other".into()).await.err().unwrap();
    assert!(
        matches!(&no_target, OpenError::Connect { source: ConnectError::Login(LoginError::NotFound(_)), .. }),
        "{no_target:?}"
    );
    for lun in [1, 300] {
        let mut options = right.clone();
        options.url.lun = lun;
        let no_lun = IscsiDisk::open(options).await.err().unwrap();
        assert!(matches!(&no_lun, OpenError::Unit { source: UnitError::NoSuchLun(_), .. }), "{no_lun:?}");
    }
    let name = with(|options| options.initiator = "gateway".into()).await.err().unwrap();
    assert!(matches!(name, OpenError::Initiator(_)));
}

/// A disk whose writes wait until they may go on, and that may shrink.
struct Gated {
    disk: MemoryDisk,
    open: watch::Receiver<bool>,
    begun: Arc<AtomicU32>,
    size: Arc<AtomicU64>,
}

impl Gated {
    fn new(open: watch::Receiver<bool>, begun: Arc<AtomicU32>) -> Self {
        Self { disk: MemoryDisk::new(MIB), open, begun, size: Arc::new(MIB.into()) }
    }
}

impl Disk for Gated {
    fn geometry(&self) -> Geometry {
        Geometry { size: self.size.load(Ordering::SeqCst), ..self.disk.geometry() }
    }
    fn read(&self, offset: u64, length: u32) -> Pending<Bytes> {
        self.disk.read(offset, length)
    }
    fn write(&self, offset: u64, data: Bytes, fua: bool) -> Pending<()> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        let (write, mut open) = (self.disk.write(offset, data, fua), self.open.clone());
        Pending::later(async move {
            let _ = open.wait_for(|open| *open).await;
            write.await
        })
    }
    fn flush(&self) -> Pending<()> {
        self.disk.flush()
    }
    fn trim(&self, offset: u64, length: u64, fua: bool) -> Pending<()> {
        self.disk.trim(offset, length, fua)
    }
    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode, fua: bool) -> Pending<()> {
        self.disk.write_zeroes(offset, length, mode, fua)
    }
    fn cache(&self, offset: u64, length: u64) -> Pending<()> {
        self.disk.cache(offset, length)
    }
    fn extents(&self, offset: u64, length: u64, limit: usize) -> Pending<Vec<Extent>> {
        self.disk.extents(offset, length, limit)
    }
    fn identity(&self) -> Identity {
        self.disk.identity()
    }
}

/// Passes bytes on, and can cut all connections. What it is asked to reach may change.
struct Wire {
    address: SocketAddr,
    to: watch::Sender<SocketAddr>,
    cut: watch::Sender<u32>,
    connections: Arc<AtomicU32>,
}

async fn wire(to: SocketAddr) -> Wire {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (to, target) = watch::channel(to);
    let (cut, cutting) = watch::channel(0);
    let connections = Arc::new(AtomicU32::new(0));
    let counter = connections.clone();
    tokio::spawn(async move {
        while let Ok((mut here, _)) = listener.accept().await {
            counter.fetch_add(1, Ordering::SeqCst);
            let (to, mut cutting) = (*target.borrow(), cutting.clone());
            cutting.mark_unchanged();
            tokio::spawn(async move {
                let Ok(mut there) = TcpStream::connect(to).await else { return };
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut here, &mut there) => {}
                    _ = cutting.changed() => {}
                }
            });
        }
    });
    Wire { address, to, cut, connections }
}

async fn until(condition: impl Fn() -> bool) {
    let by = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < by, "it did not come");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn what_was_in_flight_is_lost_and_never_sent_again_and_what_comes_later_waits() {
    let (open_gate, open) = watch::channel(true);
    let begun = Arc::new(AtomicU32::new(0));
    let server = serve(Arc::new(Gated::new(open, begun.clone())), None).await;
    let wire = wire(server.address).await;
    let disk = IscsiDisk::open(options(wire.address, None)).await.unwrap();
    disk.write(0, vec![1; 4096].into(), false).await.unwrap();
    open_gate.send_replace(false);
    let before = begun.load(Ordering::SeqCst);
    let write = disk.write(4096, vec![2; 4096].into(), false);
    let write = tokio::spawn(write);
    until(|| begun.load(Ordering::SeqCst) == before + 1).await;
    wire.cut.send_modify(|cuts| *cuts += 1);
    assert_eq!(write.await.unwrap(), Err(DiskError::Lost));
    // The target lets nobody in before the write has ended.
    let read = tokio::spawn(disk.read(0, 8192));
    sleep(Duration::from_millis(300)).await;
    assert!(!read.is_finished());
    open_gate.send_replace(true);
    let read = read.await.unwrap().unwrap();
    assert!(read[..4096].iter().all(|byte| *byte == 1) && read[4096..].iter().all(|byte| *byte == 2));
    assert_eq!(begun.load(Ordering::SeqCst), before + 1, "it was sent again");
    assert!(disk.incarnation() >= 1);
}

#[tokio::test]
async fn requests_are_refused_when_the_target_stays_away_until_it_is_back() {
    let server = serve(Arc::new(MemoryDisk::new(MIB)), None).await;
    let wire = wire(server.address).await;
    let patience = Duration::from_millis(200);
    let disk = IscsiDisk::open_with(Tcp, options(wire.address, None), patience, Patience::USUAL).await.unwrap();
    let nowhere = { TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap() };
    wire.to.send_replace(nowhere);
    wire.cut.send_modify(|cuts| *cuts += 1);
    until(|| wire.connections.load(Ordering::SeqCst) >= 2).await;
    assert_eq!(disk.read(0, 512).await, Err(DiskError::Refused(Errno::ESHUTDOWN)));
    wire.to.send_replace(server.address);
    until(|| disk.incarnation() > 0).await;
    let by = Instant::now() + Duration::from_secs(10);
    while disk.read(0, 512).await.is_err() {
        assert!(Instant::now() < by);
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_shrunk_or_another_unit_is_not_used_and_a_grown_one_is() {
    for (size, used) in [(MIB / 2, false), (2 * MIB, true)] {
        let server = serve(Arc::new(MemoryDisk::new(MIB)), None).await;
        let other = serve(Arc::new(MemoryDisk::new(size)), None).await;
        let wire = wire(server.address).await;
        let disk = IscsiDisk::open(options(wire.address, None)).await.unwrap();
        wire.to.send_replace(other.address);
        wire.cut.send_modify(|cuts| *cuts += 1);
        until(|| wire.connections.load(Ordering::SeqCst) >= 2).await;
        let answer = disk.read(0, 512).await;
        let lost = answer == Err(DiskError::Lost);
        let answer = if lost { disk.read(0, 512).await } else { answer };
        assert_eq!(answer.is_ok(), used, "{answer:?}");
        assert_eq!(disk.geometry().size, MIB);
        // The right one is used again.
        let before = disk.incarnation();
        wire.to.send_replace(server.address);
        wire.cut.send_modify(|cuts| *cuts += 1);
        until(|| disk.incarnation() > before).await;
        let by = Instant::now() + Duration::from_secs(5);
        while disk.read(0, 512).await.is_err() {
            assert!(Instant::now() < by);
            sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn a_unit_that_may_have_become_another_while_it_is_asked_what_it_is_is_not_taken() {
    let behind = Arc::new(FaultyDisk::new(MemoryDisk::new(MIB)));
    let unit = unit(behind.clone());
    let server = serve_unit(unit.clone(), None).await;
    let gate = Gate::new();
    behind.inject(Fault::hold(Kind::Read, &gate).once());
    let opening = tokio::spawn(IscsiDisk::open(options(server.address, None)));
    // Its first block is asked for behind its name.
    gate.arrived(1).await;
    unit.attach(InitiatorPort { name: "iqn.b".into(), isid: [0; 6], target_port: 1 }).reset_unit();
    gate.open();
    let error = opening.await.unwrap().err().unwrap();
    let changed =
        matches!(&error, OpenError::Unit { source: UnitError::Changed(sense), .. } if sense.code >> 8 == 0x29);
    assert!(changed, "{error:?}");
    open(&server).await;
}

#[tokio::test]
async fn a_unit_that_says_that_it_has_shrunk_is_left_until_it_is_what_it_was() {
    let (_gate, open_gate) = watch::channel(true);
    let (begun, size) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU64::new(2 * MIB)));
    let behind = Gated { disk: MemoryDisk::new(2 * MIB), open: open_gate, begun: begun.clone(), size: size.clone() };
    let server = serve(Arc::new(behind), None).await;
    let disk = open(&server).await;
    size.store(MIB, Ordering::SeqCst);
    let by = Instant::now() + Duration::from_secs(10);
    while disk.read(0, 512).await != Err(DiskError::Refused(Errno::ESHUTDOWN)) {
        assert!(Instant::now() < by, "it is asked nothing");
        sleep(Duration::from_millis(5)).await;
    }
    let refused = Err(DiskError::Refused(Errno::ESHUTDOWN));
    assert_eq!(disk.write(0, vec![1; 512].into(), false).await, refused);
    assert_eq!((begun.load(Ordering::SeqCst), disk.incarnation()), (0, 0));
    size.store(2 * MIB, Ordering::SeqCst);
    until(|| disk.incarnation() > 0).await;
    disk.write(0, vec![1; 512].into(), false).await.unwrap();
}

#[tokio::test]
async fn a_target_that_asks_for_a_logout_is_left_and_nothing_is_lost() {
    let (open_gate, open) = watch::channel(true);
    let begun = Arc::new(AtomicU32::new(0));
    let behind: Arc<dyn Disk> = Arc::new(Gated::new(open, begun.clone()));
    let server = serve(behind.clone(), None).await;
    let wire = wire(server.address).await;
    let disk = IscsiDisk::open(options(wire.address, None)).await.unwrap();
    open_gate.send_replace(false);
    let write = tokio::spawn(disk.write(0, vec![3; 4096].into(), false));
    until(|| begun.load(Ordering::SeqCst) == 1).await;
    let next = serve(behind, None).await;
    wire.to.send_replace(next.address);
    server.stop.send_replace(true);
    // It waits: behind what is in flight, or for the next session.
    sleep(Duration::from_millis(200)).await;
    let read = tokio::spawn(disk.read(0, 4096));
    sleep(Duration::from_millis(100)).await;
    open_gate.send_replace(true);
    assert_eq!(write.await.unwrap(), Ok(()));
    assert!(read.await.unwrap().unwrap().iter().all(|byte| *byte == 3));
    until(|| wire.connections.load(Ordering::SeqCst) == 2).await;
    server.task.await.unwrap();
}

#[tokio::test]
async fn a_disk_that_is_dropped_logs_out() {
    let server = serve(Arc::new(MemoryDisk::new(MIB)), None).await;
    let disk = open(&server).await;
    let write = disk.write(0, vec![1; MIB as usize].into(), false);
    drop(write);
    drop(disk);
    // A session that was not left would be asked to leave, and waited for.
    sleep(Duration::from_millis(300)).await;
    let begun = Instant::now();
    server.stop.send_replace(true);
    server.task.await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2));
}

/// Answers each first request with these bytes, whatever it says.
async fn portal(answer: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut head = [0; 48];
                stream.read_exact(&mut head).await.unwrap();
                stream.write_all(&answer).await.unwrap();
                let mut rest = Vec::new();
                let _ = stream.read_to_end(&mut rest).await;
            });
        }
    });
    address
}

fn points_to(address: &str) -> Vec<u8> {
    let text = format!("TargetAddress={address},1\0").into_bytes();
    let head = LoginResponse { isid: [0x80, 0, 0, 1, 2, 3], task: 1, status: 0x0101, ..LoginResponse::default() };
    let mut bytes = [&head.encode(text.len())[..], &text].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[tokio::test]
async fn a_portal_that_points_to_another_is_followed_but_not_in_circles() {
    let server = serve(Arc::new(MemoryDisk::new(MIB)), None).await;
    let first = portal(points_to(&server.address.to_string())).await;
    let disk = IscsiDisk::open(options(first, None)).await.unwrap();
    assert_eq!(disk.read(0, 512).await.unwrap().len(), 512);
    // A listener that is bound already points to itself.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(&points_to(&address.to_string())).await;
            tokio::spawn(async move { stream.read_to_end(&mut Vec::new()).await });
        }
    });
    let error = IscsiDisk::open(options(address, None)).await.err().unwrap();
    assert!(matches!(&error, OpenError::Connect { source: ConnectError::Redirections, .. }), "{error:?}");
    let nowhere = portal(points_to("no address:x")).await;
    let error = IscsiDisk::open(options(nowhere, None)).await.err().unwrap();
    let is_redirect = |error: &OpenError| {
        matches!(error, OpenError::Connect { source: ConnectError::Login(LoginError::Redirect(_)), .. })
    };
    assert!(is_redirect(&error), "{error:?}");
}

#[tokio::test]
async fn what_is_no_target_is_told_as_such() {
    let other = portal(b"SSH-2.0-OpenSSH_9.6\r\n".to_vec()).await;
    let error = IscsiDisk::open(options(other, None)).await.err().unwrap();
    assert!(matches!(&error, OpenError::Connect { source: ConnectError::NotIscsi, .. }), "{error:?}");
    let nobody = { TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap() };
    let error = IscsiDisk::open(options(nobody, None)).await.err().unwrap();
    assert!(matches!(&error, OpenError::Connect { source: ConnectError::Unreachable(_), .. }), "{error:?}");
}

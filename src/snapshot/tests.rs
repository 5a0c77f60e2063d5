//! A volume with its publisher over simulated neighbours: what is published equals what the store holds.

mod compare;
mod copying;
mod latency;
mod recovery;
mod untracked;

use std::num::NonZeroU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use object_store::memory::InMemory;
use object_store::path::Path;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::publisher::{self, Expected, Left, Parts};
use super::status::Report;
use super::upload::Memory;
use crate::chain::resolve::{Content, Resolver};
use crate::chain::{At, ChainReader, Opening};
use crate::clock::Clock;
use crate::disk::conformance;
use crate::disk::faulty::{Fault, FaultyDisk, Gate, Kind};
use crate::disk::{Disk, DiskError, Errno, MemoryDisk, ZeroMode};
use crate::format::entry::{Entry, EntryKind};
use crate::format::names::VolumeName;
use crate::format::{InstanceId, Void, VolumeId};
use crate::marks::simulated::SimulatedFile;
use crate::remote::faulty::{Call, FaultyStore};
use crate::remote::{Limits, Remote};
use crate::units::{BLOCK, Block, EntryNumber, Generation, KIB, MIB, REGION, SECTOR, Span, Timestamp};
use crate::volume::boot::Found;
use crate::volume::{Pace, Sequences, Settings, State, Volume};
use crate::{marks, writelog};

/// Long enough for anything that happens at all.
const PATIENCE: Duration = Duration::from_secs(60);
const SIZE: u64 = 24 * MIB + 3 * KIB + 17;

/// What outlives a gateway.
struct World {
    store: Arc<FaultyDisk>,
    bucket: Arc<FaultyStore>,
    remote: Remote,
    folder: tempfile::TempDir,
    log_size: u64,
    instance: u8,
    scan_rate: Option<NonZeroU64>,
    sequences: Arc<Sequences>,
    settings: Settings,
    /// The marks' file, where it is not one in the folder.
    marks: Option<SimulatedFile>,
    /// In which the chain was opened last.
    generation: Arc<Mutex<Option<Generation>>>,
}

/// A gateway of one volume.
struct Gateway {
    volume: Volume,
    report: Arc<Report>,
    stop: watch::Sender<bool>,
    publisher: JoinHandle<Option<Left>>,
    _pool: writelog::Pool,
}

impl World {
    fn new(size: u64) -> Self {
        let bucket = Arc::new(FaultyStore::new(Arc::new(InMemory::new())));
        let remote = Remote::with_store(bucket.clone(), Path::default(), Limits::default());
        let store = Arc::new(FaultyDisk::new(MemoryDisk::new(size)));
        let folder = tempfile::tempdir().unwrap();
        let sequences = Arc::new(Sequences::above(1 << 50));
        sequences.reserved_through(u64::MAX);
        let quick = Duration::from_millis(100);
        let pace = Pace { look: quick, generation: quick, beat: quick };
        Self {
            store,
            bucket,
            remote,
            folder,
            log_size: 256 * MIB,
            instance: 1,
            scan_rate: None,
            sequences,
            settings: Settings { pace, ..Settings::default() },
            marks: None,
            generation: Arc::default(),
        }
    }

    fn name() -> VolumeName {
        "disk0".parse().unwrap()
    }

    /// After whatever end the last one had.
    async fn start(&self) -> Gateway {
        self.start_expecting(None).await
    }

    /// After a stop that left this entry as the newest.
    async fn start_expecting(&self, entry: Option<EntryNumber>) -> Gateway {
        let settings = writelog::Settings { size: self.log_size, volumes: 1, discard: true };
        let path = self.folder.path().join("log");
        // The log's thread of an earlier gateway may still be on its way out.
        let there = loop {
            match writelog::Pool::look(&path, settings) {
                Ok(there) => break there,
                Err(writelog::OpenError::InUse { .. }) => tokio::time::sleep(Duration::from_millis(10)).await,
                Err(error) => panic!("{error}"),
            }
        };
        let marks = match &self.marks {
            Some(file) => file.io(),
            None => marks::open_io(&self.folder.path().join("marks")).unwrap(),
        };
        let mut found = Found::read("disk0", VolumeId([9; 16]), self.store.geometry().size, marks).unwrap();
        found.log_found(there).unwrap();
        let (pool, opened) = writelog::Pool::open(&path, settings).unwrap();
        let start = found.start(&pool, opened, entry.is_some()).unwrap();
        let clock = Clock::system();
        let sequences = self.sequences.clone();
        let volume = Volume::new("disk0", self.store.clone(), sequences.clone(), self.settings, start);
        let expected = Expected { entry, generation: *self.generation.lock().unwrap() };
        let report = Arc::new(Report::new("disk0"));
        let (stop, stopping) = watch::channel(false);
        let opening = Opening {
            instance: InstanceId([self.instance; 16]),
            store: "memory".into(),
            size: volume.size(),
            adopt: false,
            take_over: false,
            created: clock.now(),
            known: None,
        };
        let parts = Parts {
            volume: volume.clone(),
            remote: self.remote.clone(),
            name: Self::name(),
            opening,
            expected,
            epoch: Duration::from_millis(100),
            scan_rate: self.scan_rate,
            clock,
            sequences,
            memory: Memory::default(),
            report: report.clone(),
            opened: {
                let generation = self.generation.clone();
                Box::new(move |_, opened| *generation.lock().unwrap() = Some(opened))
            },
        };
        let publisher = tokio::spawn(publisher::run(parts, stopping));
        Gateway { volume, report, stop, publisher, _pool: pool }
    }

    async fn chain(&self) -> ChainReader {
        ChainReader::open(&self.remote, &Self::name()).await.unwrap()
    }

    async fn entries(&self) -> Vec<Arc<Entry>> {
        let chain = self.chain().await;
        let end = chain.end(EntryNumber(0)).await.unwrap();
        chain.entries(1..=end.0).await.unwrap()
    }

    async fn newest_point(&self) -> Arc<Entry> {
        self.chain().await.find(At::Latest).await.unwrap().entry
    }

    /// The bytes of a point, read without any of the code that restores; what is trimmed or unreadable is told apart.
    async fn content(&self, entry: &Entry, slice: Option<usize>) -> (Vec<u8>, Vec<Span>, Vec<Span>) {
        let volume = self.chain().await.volume();
        let resolver = Resolver::new(self.remote.clone(), volume, entry, slice).unwrap();
        let blocks = entry.size.div_ceil(BLOCK);
        let fragments = resolver.resolve(Block(0), blocks).await.unwrap();
        let records = resolver.read_records(&fragments).await.unwrap();
        let mut bytes = vec![0; (blocks * BLOCK) as usize];
        let (mut trimmed, mut unreadable) = (Vec::new(), Vec::new());
        for (fragment, record) in fragments.iter().zip(records) {
            let spans = fragment.mask.runs().map(|(first, count)| {
                let start = fragment.first.offset() + u64::from(first) * SECTOR;
                Span::at(start, (fragment.count - 1) * BLOCK + u64::from(count) * SECTOR)
            });
            match fragment.content {
                Content::Void(Void::Zero) => {}
                Content::Void(Void::Trimmed) => trimmed.extend(spans),
                Content::Void(Void::Unreadable) => unreadable.extend(spans),
                Content::Data { .. } => {
                    let mut from = 0;
                    for span in spans {
                        let length = span.len() as usize;
                        bytes[span.start as usize..span.end as usize].copy_from_slice(&record[from..from + length]);
                        from += length;
                    }
                }
            }
        }
        bytes.truncate(entry.size as usize);
        (bytes, trimmed, unreadable)
    }

    async fn store_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let size = self.store.geometry().size;
        while (bytes.len() as u64) < size {
            let length = (size - bytes.len() as u64).min(MIB) as u32;
            bytes.extend_from_slice(&self.store.inner().read(bytes.len() as u64, length).await.unwrap());
        }
        bytes
    }

    /// Waits until a point equals the store, for what is noticed late.
    async fn until_current(&self) {
        let end = tokio::time::Instant::now() + PATIENCE;
        loop {
            let (point, ..) = self.content(self.newest_point().await.as_ref(), None).await;
            if point == self.store_bytes().await {
                return;
            }
            assert!(tokio::time::Instant::now() < end, "no point ever equals the store");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// All objects that a gateway would put are refused until the bucket is healed.
    fn refuse_puts(&self) {
        self.bucket.every(Call::Create, "", crate::remote::faulty::Fault::Status(503));
    }

    /// The newest point equals the store in every byte that is not trimmed; nothing is unreadable.
    async fn assert_current(&self) {
        let entry = self.newest_point().await;
        let (point, trimmed, unreadable) = self.content(&entry, None).await;
        assert_eq!(unreadable, []);
        assert_same(&point, &self.store_bytes().await, &trimmed);
    }
}

fn assert_same(point: &[u8], store: &[u8], except: &[Span]) {
    assert_eq!(point.len(), store.len());
    let different = (0..point.len())
        .find(|&at| point[at] != store[at] && !except.iter().any(|span| span.contains(Span::at(at as u64, 1))));
    assert_eq!(different, None, "the point differs from the store at this byte");
}

impl Gateway {
    /// Waits until everything is in a point and nothing is being scanned.
    async fn settled(&self) {
        let settled = async {
            loop {
                let quiet = self.volume.is_quiet() && self.volume.cut() == self.volume.published();
                if self.volume.state() == State::Shadowing && quiet && self.volume.lag().age.is_zero() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, settled).await.is_err() {
            panic!(
                "not settled: {:?}, {:?}, cut {:?}, published {:?}, {:?}",
                self.volume.state(),
                self.volume.lag(),
                self.volume.cut(),
                self.volume.published(),
                self.report.last_error()
            );
        }
    }

    /// Waits until nothing would be read again after a crash.
    async fn until_cold(&self) {
        let cold = async {
            while self.volume.hot_bytes() > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let cooled = tokio::time::timeout(PATIENCE, cold).await;
        cooled.unwrap_or_else(|_| panic!("{} bytes stay hot", self.volume.hot_bytes()));
    }

    async fn until(&self, state: State) {
        let reached = async {
            while self.volume.state() != state {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("never {state:?}"));
    }

    async fn leave(self) -> Option<Left> {
        self.stop.send_replace(true);
        let left = tokio::time::timeout(PATIENCE, self.publisher).await.expect("a stop ends").unwrap();
        if left.is_some() {
            self.volume.flush().await.unwrap();
            assert!(self.volume.settle_marks().await);
        }
        left
    }

    /// As a crash would: nothing more is published.
    async fn die(self) {
        self.publisher.abort();
        let _ = self.publisher.await;
    }
}

/// The same numbers for the same seed (splitmix64).
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % end
    }

    fn bytes(&mut self, length: usize) -> Bytes {
        let seed = self.below(256) as u8;
        let step = self.below(7) as usize + 1;
        (0..length).map(|at| seed.wrapping_add((at / step) as u8)).collect()
    }
}

/// `clients` clients that change the volume for `operations` operations each, ragged ones among them.
async fn load(volume: &Volume, seed: u64, clients: u64, operations: u64) {
    let mut tasks = JoinSet::new();
    for client in 0..clients {
        let volume = volume.clone();
        tasks.spawn(async move {
            let mut random = Random(seed * 1000 + client);
            for _ in 0..operations {
                let size = volume.size();
                let unit = if random.below(4) == 0 { 1 } else { SECTOR };
                let length = (random.below(96 * KIB) / unit * unit).max(unit).min(size);
                let offset = random.below(size - length + 1) / unit * unit;
                let length = if random.below(16) == 0 { size - offset } else { length }.min(MIB);
                // Whether it succeeds is the store's business.
                let _ = match random.below(12) {
                    0 => volume.trim(offset, length, false).await,
                    1 => volume.write_zeroes(offset, length, ZeroMode::default(), false).await,
                    2 => volume.flush().await,
                    _ => volume.write(offset, random.bytes(length as usize), false).await,
                };
                if random.below(8) == 0 {
                    tokio::time::sleep(Duration::from_millis(random.below(8))).await;
                }
            }
        });
    }
    tasks.join_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_copy_under_load_ends_in_a_point_that_equals_the_store() {
    let world = World::new(SIZE);
    let mut random = Random(1);
    for offset in [0, 5 * MIB, 9 * MIB + 512, 20 * MIB] {
        world.store.write(offset, random.bytes(2 * MIB as usize), false).await.unwrap();
    }
    let gateway = world.start().await;
    load(&gateway.volume, 2, 8, 150).await;
    gateway.settled().await;
    world.assert_current().await;
    load(&gateway.volume, 3, 8, 50).await;
    gateway.settled().await;
    world.assert_current().await;
    let left = gateway.leave().await.expect("a clean stop");
    let last = world.newest_point().await;
    assert_eq!((last.number, last.leaving), (left.entry, true));
}

/// Counterexample 21.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_clean_stop_a_sample_is_compared_and_after_a_crash_only_what_differs_is_uploaded() {
    let world = World::new(160 * MIB);
    for megabyte in 0..160 {
        world.store.write(megabyte * MIB, Random(megabyte).bytes(MIB as usize), false).await.unwrap();
    }
    let gateway = world.start().await;
    gateway.settled().await;
    let left = gateway.leave().await.expect("a clean stop");

    let reads = world.store.calls(Kind::Read);
    let gateway = world.start_expecting(Some(left.entry)).await;
    gateway.volume.write(3 * MIB, Random(8).bytes(4096), false).await.unwrap();
    gateway.settled().await;
    let read = world.store.calls(Kind::Read) - reads;
    assert!((60..70).contains(&read), "a clean start read {read} pieces of a megabyte");
    world.assert_current().await;
    // In the log, and never published.
    gateway.volume.write(4 * MIB, Random(9).bytes(4096), false).await.unwrap();
    gateway.die().await;

    let gateway = world.start().await;
    gateway.settled().await;
    world.assert_current().await;
    let uploaded = gateway.report.uploaded_bytes();
    assert!(uploaded < 64 * KIB, "{uploaded} bytes were uploaded for 4 KiB that differed");
    gateway.die().await;
}

/// Counterexample 1a.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_costs_the_hot_regions_and_the_log_covers_the_others() {
    let world = World::new(256 * MIB);
    world.store.write(0, Random(7).bytes(200 * MIB as usize), false).await.unwrap();
    let gateway = world.start().await;
    gateway.settled().await;
    gateway.until_cold().await;
    // Logged, flushed and cooled while the remote is away: only the log and the marks know of it.
    world.bucket.every(Call::Create, "", crate::remote::faulty::Fault::Status(503));
    let diverged = [5, 27, 55].map(|region| region * REGION + 4096);
    for offset in diverged {
        gateway.volume.write(offset, Random(offset).bytes(8192), false).await.unwrap();
    }
    gateway.until_cold().await;
    gateway.volume.write(40 * REGION, Random(3).bytes(4096), false).await.unwrap();
    let hot = gateway.volume.hot_bytes();
    assert!((REGION..=16 * REGION).contains(&hot), "{hot} bytes are hot");
    gateway.die().await;

    world.bucket.heal();
    // The store forgets what was not flushed, and the log does not.
    world.store.inner().write(40 * REGION, Random(4).bytes(4096), false).await.unwrap();
    let gateway = world.start().await;
    assert_eq!(gateway.volume.state(), State::Replaying);
    for region in 0..4 {
        gateway.volume.write(region * REGION, Random(region).bytes(4096), false).await.unwrap();
    }
    gateway.settled().await;
    world.assert_current().await;
    let (reread, changed) = (gateway.volume.reread(), 4 * REGION);
    assert!(reread <= hot + changed, "{reread} bytes were read again, and {hot} were hot");
    gateway.die().await;
}

/// Counterexample 2.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_lost_log_covered_is_read_again() {
    let world = World::new(256 * MIB);
    let gateway = world.start().await;
    gateway.settled().await;
    gateway.until_cold().await;
    world.bucket.every(Call::Create, "", crate::remote::faulty::Fault::Status(503));
    gateway.volume.write(5 * REGION, Random(1).bytes(8192), false).await.unwrap();
    gateway.until_cold().await;
    gateway.die().await;
    world.bucket.heal();
    let segments = std::fs::read_dir(world.folder.path().join("log")).unwrap();
    for segment in segments.map(|entry| entry.unwrap().path()) {
        std::fs::remove_file(segment).unwrap();
    }
    let gateway = world.start().await;
    gateway.settled().await;
    world.assert_current().await;
    assert!((1..=REGION).contains(&gateway.volume.reread()), "{} bytes were read again", gateway.volume.reread());
    gateway.die().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_that_went_on_elsewhere_makes_a_clean_start_compare() {
    let world = World::new(SIZE);
    let gateway = world.start().await;
    gateway.volume.write(0, Random(7).bytes(4096), false).await.unwrap();
    gateway.settled().await;
    let left = gateway.leave().await.expect("a clean stop");
    // The store changes while the mark that says otherwise names an entry that is not the newest.
    world.store.write(MIB, Random(8).bytes(4096), false).await.unwrap();
    let gateway = world.start_expecting(Some(EntryNumber(left.entry.0 - 1))).await;
    while gateway.report.points() == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    gateway.settled().await;
    world.assert_current().await;
    gateway.die().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_in_the_middle_of_a_first_copy_goes_on_where_it_was() {
    let world = World::new(64 * MIB);
    world.store.write(0, Random(7).bytes(60 * MIB as usize), false).await.unwrap();
    world.store.inject(Fault::delay(Kind::Read, Duration::from_millis(30)));
    let gateway = world.start().await;
    while gateway.volume.scan_front() < 8 * MIB {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    gateway.volume.write(MIB, Random(8).bytes(4096), false).await.unwrap();
    gateway.volume.write(62 * MIB, Random(8).bytes(4096), false).await.unwrap();
    let volume = gateway.volume.clone();
    let left = gateway.leave().await.expect("a clean stop");
    let front = volume.scan_front();
    assert_eq!(volume.hot_bytes(), 64 * MIB - front / REGION * REGION, "all that was not scanned, and no more");
    drop(volume);
    assert!((8 * MIB..60 * MIB).contains(&front), "{front}");
    let newest = world.entries().await.pop().unwrap();
    assert_eq!((newest.kind, newest.number, newest.leaving), (EntryKind::Draft, left.entry, true));

    world.store.heal();
    let gateway = world.start_expecting(Some(left.entry)).await;
    gateway.settled().await;
    let read = gateway.volume.reread();
    assert!(read <= 64 * MIB - front / REGION * REGION, "{read} bytes were read for what was left");
    world.assert_current().await;
    gateway.die().await;
}

/// Fault test 11.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_write_shows_in_points_as_what_the_store_holds() {
    let world = World::new(SIZE);
    let gateway = world.start().await;
    gateway.volume.write(0, Random(1).bytes(256 * KIB as usize), false).await.unwrap();
    gateway.settled().await;
    let eio = DiskError::Io(Errno::EIO);
    world.store.inject(Fault::halfway(Kind::Write, eio).at(Span::at(64 * KIB, 64 * KIB)).once());
    world.store.inject(Fault::instead(Kind::Write, eio).at(Span::at(160 * KIB, 512)).once());
    let answer = gateway.volume.write(64 * KIB, Random(2).bytes(32 * KIB as usize), false).await;
    assert_eq!(answer, Err(eio), "the client is told what the store said");
    let answer = gateway.volume.write(160 * KIB + 3, Random(3).bytes(600), false).await;
    assert_eq!(answer, Err(eio));
    load(&gateway.volume, 4, 4, 40).await;
    gateway.settled().await;
    world.assert_current().await;
    gateway.die().await;
}

/// Fault tests 11 and 13.
/// Counterexample 14.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_point_lies_between_a_failed_write_and_its_read_back() {
    let world = World::new(SIZE);
    let gateway = world.start().await;
    gateway.settled().await;
    let before = world.newest_point().await;
    let gate = Gate::new();
    let eio = DiskError::Io(Errno::EIO);
    world.store.inject(Fault::instead(Kind::Write, eio).at(Span::at(0, 4096)).once());
    world.store.inject(Fault::hold(Kind::Read, &gate).at(Span::at(0, 4096)).once());
    gateway.volume.write(0, Random(1).bytes(4096), false).await.unwrap_err();
    gateway.volume.write(MIB, Random(2).bytes(4096), false).await.unwrap();
    gate.arrived(1).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(world.newest_point().await.sequence, before.sequence, "a point was cut while an outcome was unknown");
    gate.open();
    gateway.settled().await;
    assert!(world.newest_point().await.sequence > before.sequence);
    world.assert_current().await;
    gateway.die().await;
}

/// Counterexample 14.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_store_cannot_read_back_is_unreadable_in_points_and_stops_nothing() {
    let world = World::new(SIZE);
    let gateway = world.start().await;
    gateway.settled().await;
    let eio = DiskError::Io(Errno::EIO);
    let bad = Span::at(128 * KIB, 4096);
    gateway.volume.write(bad.start, Random(6).bytes(4096), false).await.unwrap();
    world.store.inject(Fault::instead(Kind::Write, eio).at(bad));
    world.store.inject(Fault::instead(Kind::Read, eio).at(bad));
    gateway.volume.write(bad.start, Random(1).bytes(4096), false).await.unwrap_err();
    gateway.volume.write(MIB, Random(2).bytes(4096), false).await.unwrap();
    gateway.settled().await;
    let point = world.newest_point().await;
    let (bytes, _, unreadable) = world.content(&point, None).await;
    assert_eq!(unreadable, [bad]);
    assert_same(&bytes, &world.store_bytes().await, &unreadable);
    // A first copy of the same store finds the same range, and no more.
    gateway.die().await;
    let gateway = world.start().await;
    gateway.settled().await;
    let (_, _, unreadable) = world.content(world.newest_point().await.as_ref(), None).await;
    assert_eq!(unreadable, [bad]);
    gateway.die().await;
}

/// Fault test 18.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_log_costs_no_client_anything_and_is_followed_by_a_resync() {
    let mut world = World::new(256 * MIB);
    world.log_size = 128 * MIB;
    let gateway = world.start().await;
    gateway.settled().await;
    let gate_key = "packs/";
    world.bucket.every(Call::Create, gate_key, crate::remote::faulty::Fault::Status(503));
    let mut random = Random(5);
    for megabyte in 0..200 {
        gateway.volume.write(megabyte * MIB, random.bytes(MIB as usize), false).await.unwrap();
    }
    gateway.until(State::Overflowed).await;
    assert!(!gateway.volume.lag().age.is_zero(), "the lag is known");
    world.bucket.heal();
    load(&gateway.volume, 6, 4, 50).await;
    gateway.settled().await;
    world.assert_current().await;
    gateway.die().await;
}

/// Fault test 13.
/// Counterexample 1c.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_was_lost_is_compared_in_full() {
    let world = World::new(SIZE);
    let gateway = world.start().await;
    load(&gateway.volume, 1, 4, 30).await;
    gateway.settled().await;
    // It forgets what was not flushed, and says only that it was away.
    world.store.inner().write(7 * MIB, Random(3).bytes(4096), false).await.unwrap();
    world.store.come_back();
    gateway.until(State::Shadowing).await;
    load(&gateway.volume, 2, 4, 30).await;
    let mut waited = 0;
    loop {
        gateway.settled().await;
        let entry = world.newest_point().await;
        let (point, trimmed, _) = world.content(&entry, None).await;
        let store = world.store_bytes().await;
        if (0..store.len())
            .all(|at| point[at] == store[at] || trimmed.iter().any(|span| span.contains(Span::at(at as u64, 1))))
        {
            break;
        }
        waited += 1;
        assert!(waited < 50, "what the store forgot was never noticed");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    gateway.die().await;
}

/// Counterexample 1d.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_flush_makes_everything_suspect() {
    let world = World::new(SIZE);
    let gateway = world.start().await;
    gateway.volume.write(0, Random(3).bytes(4096), false).await.unwrap();
    gateway.settled().await;
    world.store.inject(Fault::instead(Kind::Flush, DiskError::Io(Errno::EIO)).once());
    world.store.inner().write(0, Random(4).bytes(4096), false).await.unwrap();
    assert_eq!(gateway.volume.flush().await, Err(DiskError::Io(Errno::EIO)));
    assert_ne!(gateway.volume.state(), State::Shadowing);
    gateway.settled().await;
    world.assert_current().await;
    gateway.die().await;
}

/// What the server's cache shows, its disk need not hold, however often it is read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_failed_flush_left_in_a_servers_cache_stays_hot_over_restarts() {
    let world = World::new(64 * MIB);
    world.store.keep_cached();
    let gateway = world.start().await;
    gateway.settled().await;
    gateway.until_cold().await;
    gateway.volume.write(3 * REGION, Random(3).bytes(4096), false).await.unwrap();
    world.store.inject(Fault::instead(Kind::Flush, DiskError::Io(Errno::EIO)).once());
    let answer = gateway.volume.flush().await;
    // A flush of our own may have been told before; then this one is told what that was.
    assert_eq!(answer, Err(DiskError::Io(Errno::EIO)));
    gateway.settled().await;
    let left = gateway.leave().await.expect("a clean stop");

    for _ in 0..2 {
        let gateway = world.start_expecting(Some(left.entry)).await;
        assert_eq!(gateway.volume.hot_bytes(), REGION, "the region is forgotten");
        gateway.settled().await;
        assert!(gateway.volume.reread() > 0, "it is not read again");
        gateway.die().await;
    }
    // At last the cache goes, and what was never on the disk.
    world.store.inner().write(3 * REGION, Random(4).bytes(4096), false).await.unwrap();
    let gateway = world.start().await;
    gateway.settled().await;
    world.assert_current().await;
    gateway.die().await;
}

/// Fault test 37.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_slice_is_the_volume_after_a_prefix_of_the_writes() {
    let world = World::new(4 * MIB);
    let gateway = world.start().await;
    gateway.settled().await;
    let base = world.newest_point().await;
    // One client at depth 1: write n fills its place with n, over the same few blocks again and again.
    world.bucket.every(Call::Create, "chain/", crate::remote::faulty::Fault::Delay(Duration::from_millis(2500)));
    let mut history = vec![vec![0; 4 * MIB as usize]];
    let mut random = Random(11);
    let begun = std::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(6) {
        let n = history.len();
        let offset = random.below(64) * 8 * KIB;
        let bytes = Bytes::from(vec![n as u8; (random.below(32) as usize + 1) * 512]);
        gateway.volume.write(offset, bytes.clone(), false).await.unwrap();
        let mut state = history[n - 1][..MIB as usize].to_vec();
        state[offset as usize..offset as usize + bytes.len()].copy_from_slice(&bytes);
        history.push(state);
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    world.bucket.heal();
    gateway.settled().await;
    let mut slices = 0;
    for entry in world.entries().await {
        if entry.kind != EntryKind::Point || entry.number <= base.number {
            continue;
        }
        for (at, slice) in entry.slices.iter().enumerate() {
            let n = (slice.sequence.0 - base.sequence.0) as usize;
            let (bytes, ..) = world.content(&entry, Some(at)).await;
            assert!(
                bytes[..MIB as usize] == history[n][..MIB as usize],
                "slice {at} of entry {} is not write {n}",
                entry.number
            );
            slices += 1;
        }
    }
    assert!(slices >= 4, "only {slices} slices were made");
    gateway.die().await;
}

/// Fault test 36.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_gateway_fences_the_first_which_goes_on_serving() {
    let mut world = World::new(SIZE);
    let first = world.start().await;
    first.settled().await;
    world.instance = 2;
    let entry = world.newest_point().await;
    let chain = world.chain().await;
    let opening = Opening {
        instance: InstanceId([2; 16]),
        store: "memory".into(),
        size: SIZE,
        adopt: true,
        take_over: true,
        created: Timestamp(0),
        known: Some(chain.volume()),
    };
    let second =
        crate::chain::ChainWriter::open(&world.remote, &World::name(), opening, Clock::system()).await.unwrap();
    assert!(second.generation() > entry.generation);
    first.volume.write(0, Random(1).bytes(4096), false).await.unwrap();
    first.until(State::Fenced).await;
    first.volume.write(0, Random(2).bytes(4096), false).await.unwrap();
    assert_eq!(first.volume.read(0, 4096).await.unwrap(), Random(2).bytes(4096));
    assert!(first.report.last_error().is_some_and(|error| error.contains("fenced")), "{:?}", first.report.last_error());
    assert_eq!(world.newest_point().await.number, entry.number, "the first published after it was fenced");
    assert_eq!(first.leave().await, None);
}

/// Fault tests 26 and 27.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_remote_that_fails_and_forgets_its_answers_costs_lag_and_nothing_else() {
    let world = World::new(SIZE);
    world.bucket.seeded(17, 4);
    let gateway = world.start().await;
    load(&gateway.volume, 2, 8, 100).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    world.bucket.heal();
    gateway.settled().await;
    world.assert_current().await;
    gateway.die().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_away_is_not_unreadable() {
    let world = World::new(SIZE);
    world.store.write(0, Random(7).bytes(8 * MIB as usize), false).await.unwrap();
    let gateway = world.start().await;
    gateway.settled().await;
    let away = DiskError::Refused(Errno::ESHUTDOWN);
    for kind in [Kind::Read, Kind::Write, Kind::Extents] {
        world.store.inject(Fault::instead(kind, away));
    }
    world.store.inject(Fault::instead(Kind::Write, DiskError::Lost).at(Span::at(0, 4096)).once());
    let before = world.newest_point().await.number;
    let _ = gateway.volume.write(0, Random(1).bytes(4096), false).await;
    world.store.come_back();
    tokio::time::sleep(Duration::from_secs(5)).await;
    for entry in world.entries().await.into_iter().filter(|entry| entry.number > before) {
        let (_, _, unreadable) = world.content(&entry, None).await;
        assert_eq!(unreadable, [], "entry {} of kind {:?}", entry.number, entry.kind);
    }
    world.store.heal();
    gateway.settled().await;
    world.assert_current().await;
    gateway.die().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_client_waits_for_a_remote_that_goes_away_during_a_first_copy() {
    let world = World::new(64 * MIB);
    for megabyte in 0..64 {
        world.store.write(megabyte * MIB, Random(megabyte).bytes(MIB as usize), false).await.unwrap();
    }
    let gateway = world.start().await;
    while gateway.volume.scan_front() < 4 * MIB {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    world.bucket.every(Call::Get, "", crate::remote::faulty::Fault::BlackHole);
    world.bucket.every(Call::Create, "", crate::remote::faulty::Fault::BlackHole);
    let all = async {
        for megabyte in 0..64 {
            gateway.volume.write(megabyte * MIB + 4096, Random(1).bytes(8192), false).await.unwrap();
        }
        gateway.volume.trim(0, 64 * MIB, false).await.unwrap();
        gateway.volume.flush().await.unwrap();
    };
    tokio::time::timeout(Duration::from_secs(10), all).await.expect("clients waited for the remote");
    gateway.die().await;
}

/// Fault test 22.
/// Counterexample 20.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_rots_is_replaced_by_what_the_store_holds() {
    let world = World::new(SIZE);
    let gateway = world.start().await;
    gateway.settled().await;
    let before = world.newest_point().await;
    // The next entry waits, so that what is logged meanwhile is read back from the log's files.
    world.bucket.every(Call::Create, "chain/", crate::remote::faulty::Fault::Status(503));
    gateway.volume.write(MIB, Random(2).bytes(4096), false).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let payload = Bytes::from(vec![0xa7; 64 * KIB as usize]);
    gateway.volume.write(2 * MIB, payload.clone(), false).await.unwrap();
    while !gateway.volume.is_quiet() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut rotten = 0;
    for file in std::fs::read_dir(world.folder.path().join("log")).unwrap() {
        let path = file.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(4096).position(|window| window.iter().all(|&byte| byte == 0xa7)) {
            bytes[at + 100] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            rotten += 1;
        }
    }
    assert_eq!(rotten, 1);
    // Part of the range has changed since, so that the store can no longer say what it held; and then something else.
    let (over, beside) = (Bytes::from(vec![0xb8; 512]), Bytes::from(vec![0xc9; 512]));
    gateway.volume.write(2 * MIB + 8 * KIB, over.clone(), false).await.unwrap();
    gateway.volume.write(3 * MIB, beside.clone(), false).await.unwrap();
    world.bucket.heal();
    gateway.settled().await;
    world.assert_current().await;
    let mut last = payload.to_vec();
    last[8 * KIB as usize..8 * KIB as usize + 512].copy_from_slice(&over);
    for entry in
        world.entries().await.into_iter().filter(|entry| entry.kind == EntryKind::Point && entry.number > before.number)
    {
        for slice in 0..entry.slices.len() {
            let (bytes, ..) = world.content(&entry, Some(slice)).await;
            let held = |at: u64, length: usize| &bytes[at as usize..at as usize + length];
            let (first, later) = (held(2 * MIB, payload.len()), held(3 * MIB, 512));
            let zero = |bytes: &[u8]| bytes.iter().all(|&byte| byte == 0);
            let before_the_last = (zero(first) || first == &payload[..] || first == last) && zero(later);
            let after = first == last && later == &beside[..];
            assert!(before_the_last || after, "slice {slice} of entry {} is what the store never was", entry.number);
        }
    }
    gateway.die().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scan_reads_no_faster_than_it_may() {
    let mut world = World::new(64 * MIB);
    world.store.write(0, Random(7).bytes(64 * MIB as usize), false).await.unwrap();
    world.scan_rate = NonZeroU64::new(MIB);
    let gateway = world.start().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let front = gateway.volume.scan_front();
    assert!(front <= 8 * MIB, "{front} bytes were read in two seconds");
    gateway.leave().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_stay_short_and_old_points_stay_what_they_were() {
    let world = World::new(SIZE);
    let gateway = world.start().await;
    gateway.settled().await;
    let mut random = Random(3);
    let mut middle = None;
    for round in 0..44 {
        let offset = random.below(SIZE / SECTOR - 64) * SECTOR;
        gateway.volume.write(offset, random.bytes(4096), false).await.unwrap();
        gateway.settled().await;
        if round == 20 {
            middle = Some((world.newest_point().await, world.store_bytes().await));
        }
    }
    let newest = world.newest_point().await;
    assert!(!newest.levels[1].is_empty(), "nothing was merged in {} points", newest.number);
    assert!(newest.levels[0].len() < 32, "{} packs are listed", newest.levels[0].len());
    world.assert_current().await;
    let (point, store) = middle.unwrap();
    assert_same(&world.content(&point, None).await.0, &store, &[]);
    gateway.die().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_is_untouched_until_its_first_change() {
    let world = World::new(SIZE);
    let gateway = world.start().await;
    assert!(!gateway.volume.is_untouched(), "a first copy is under way");
    gateway.settled().await;
    let left = gateway.leave().await.expect("a clean stop");
    let gateway = world.start_expecting(Some(left.entry)).await;
    assert!(gateway.volume.is_untouched());
    gateway.volume.read(0, 512).await.unwrap();
    gateway.volume.flush().await.unwrap();
    assert!(gateway.volume.is_untouched());
    gateway.volume.write(0, Random(1).bytes(512), false).await.unwrap();
    assert!(!gateway.volume.is_untouched());
    gateway.die().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_point_is_made_without_the_last_piece_of_a_scan() {
    let world = World::new(SIZE);
    for megabyte in 0..24 {
        world.store.write(megabyte * MIB, Random(megabyte).bytes(MIB as usize), false).await.unwrap();
    }
    let gate = Gate::new();
    world.store.inject(Fault::hold(Kind::Read, &gate).at(Span::at(23 * MIB, 4096)).once());
    let gateway = world.start().await;
    gate.arrived(1).await;
    // All other pieces are read by now. The store is lost under the last one, and says no more of it.
    tokio::time::sleep(Duration::from_millis(500)).await;
    world.store.come_back();
    gate.open();
    gateway.settled().await;
    world.assert_current().await;
    for entry in world.entries().await.into_iter().filter(|entry| entry.kind == EntryKind::Point) {
        let (point, ..) = world.content(&entry, None).await;
        assert_same(&point, &world.store_bytes().await, &[]);
    }
    gateway.die().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_is_a_disk_like_the_one_beneath_it_and_its_copy_follows() {
    let world = World::new(3 * MIB + 700);
    let gateway = world.start().await;
    conformance::check(Arc::new(gateway.volume.clone())).await;
    gateway.settled().await;
    world.assert_current().await;
    gateway.die().await;
}

/// Counterexample 19.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pack_that_is_said_to_be_there_and_is_not_is_put_again() {
    let world = World::new(SIZE);
    world.bucket.once(Call::Create, "packs/", crate::remote::faulty::Fault::Status(409));
    let gateway = world.start().await;
    gateway.volume.write(0, Random(1).bytes(4096), false).await.unwrap();
    gateway.settled().await;
    world.assert_current().await;
    gateway.die().await;
}

/// Counterexample 1c.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_point_shows_a_write_after_a_silent_loss_beside_what_was_lost() {
    let world = World::new(SIZE);
    let gateway = world.start().await;
    gateway.settled().await;
    for round in 1..8 {
        let (lost, later) = (Random(round).bytes(4096), Random(100 + round).bytes(4096));
        gateway.volume.write(0, lost.clone(), false).await.unwrap();
        gateway.settled().await;
        // Nothing is in flight that could tell; the store is back before anybody asks.
        world.store.inner().write(0, vec![0; 4096].into(), false).await.unwrap();
        world.store.come_back();
        gateway.volume.write(MIB, later.clone(), false).await.unwrap();
        gateway.settled().await;
        for entry in world.entries().await.into_iter().filter(|entry| entry.kind == EntryKind::Point) {
            let (point, ..) = world.content(&entry, None).await;
            let both = point[..4096] == lost[..] && point[MIB as usize..][..4096] == later[..];
            assert!(!both, "entry {} shows what the store never was", entry.number);
        }
    }
    gateway.die().await;
}

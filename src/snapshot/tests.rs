//! A volume with its publisher over simulated neighbours: what is published equals what the store holds.

mod compare;
mod copying;
mod failures;
mod latency;
mod logging;
mod losses;
mod points;
mod recovery;
mod restarts;
mod rewriting;
mod untracked;
mod uploading;

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
use crate::random::SplitMix64;
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
        // As the daemon: such a stop is not marked as clean.
        left.filter(|_| !self.volume.is_suspect())
    }

    /// Until it has published a point since it started.
    async fn first_point(&self) {
        let published = async {
            while self.report.points() == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, published).await.expect("a point is published");
    }

    /// Settles, has made the newest point equal to the store, and is gone.
    async fn settles_current(self, world: &World) {
        self.settled().await;
        world.assert_current().await;
        self.die().await;
    }

    /// As a crash would: nothing more is published.
    async fn die(self) {
        self.publisher.abort();
        let _ = self.publisher.await;
    }
}

/// What clients write.
trait Payload {
    fn bytes(&mut self, length: usize) -> Bytes;
}

impl Payload for SplitMix64 {
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
            let mut random = SplitMix64(seed * 1000 + client);
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

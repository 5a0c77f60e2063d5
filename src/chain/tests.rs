//! What a chain promises its writers and readers, over a remote that fails on request.

mod openers;
mod publishing;
mod reading;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use object_store::path::Path;

use super::*;
use crate::clock::Clock;
use crate::format::entry::{ScanCursor, Slice};
use crate::format::keys::{Keys, MacKind};
use crate::format::names::VolumeName;
use crate::format::{InstanceId, ObjectHash, ObjectRef, VolumeId};
use crate::remote::faulty::{Call, Fault, FaultyStore};
use crate::remote::{Limits, PutOutcome, Remote};
use crate::units::{EntryNumber, Generation, Sequence, Timestamp};

const A: InstanceId = InstanceId([0xa; 16]);
const B: InstanceId = InstanceId([0xb; 16]);
/// The first time that a test's clock shows, milliseconds.
const NOON: u64 = 1_700_000_000_000;

struct World {
    store: FaultyStore,
    remote: Remote,
    now: Arc<AtomicU64>,
    name: VolumeName,
}

impl World {
    fn new() -> Self {
        let store = FaultyStore::new(Arc::new(InMemory::new()));
        let limits = Limits {
            answer: Duration::from_millis(100),
            patience: Duration::from_millis(300),
            pause_min: Duration::from_millis(1),
            pause_max: Duration::from_millis(4),
            ..Limits::default()
        };
        let remote = Remote::with_store(Arc::new(store.clone()), Path::from("umbra"), limits);
        Self { store, remote, now: Arc::new(AtomicU64::new(NOON)), name: "disk0".parse().unwrap() }
    }

    fn clock(&self) -> Clock {
        let now = self.now.clone();
        Clock::from_fn(move || Timestamp(now.load(Relaxed)))
    }

    fn pass(&self, time: Duration) {
        self.now.fetch_add(time.as_millis() as u64, Relaxed);
    }

    async fn try_open(&self, opening: Opening) -> Result<ChainWriter, OpenError> {
        ChainWriter::open(&self.remote, &self.name, opening, self.clock()).await
    }

    async fn open(&self, instance: InstanceId) -> ChainWriter {
        self.try_open(opening(instance)).await.unwrap()
    }

    async fn reader(&self) -> ChainReader {
        ChainReader::open(&self.remote, &self.name).await.unwrap()
    }

    /// Puts bytes of anyone's making at the number.
    async fn put(&self, volume: VolumeId, number: u64, bytes: impl Into<Bytes>) {
        let key = volume.entry_key(EntryNumber(number));
        assert_eq!(self.remote.put_new(&key, bytes.into()).await.unwrap(), PutOutcome::Created);
    }

    /// As somebody does who tidies the bucket up.
    async fn remove(&self, volume: VolumeId, number: u64) {
        let key = format!("umbra/{}", volume.entry_key(EntryNumber(number)));
        self.store.delete(&Path::from(key)).await.unwrap();
    }

    async fn bytes(&self, volume: VolumeId, number: u64) -> Bytes {
        self.remote.get(&volume.entry_key(EntryNumber(number))).await.unwrap()
    }

    /// Entry `number` as a tool would put it: behind what stands there, showing the same content.
    async fn entry_after(&self, writer: &ChainWriter, kind: EntryKind, generation: u32) -> Entry {
        let newest = self.reader().await.end(EntryNumber(0)).await.unwrap();
        Entry {
            number: newest.next(),
            kind,
            generation: Generation(generation),
            instance: B,
            previous: ObjectHash::of(&self.bytes(writer.volume(), newest.0).await),
            time: Timestamp(writer.newest().time.0 + 1),
            store: None,
            slices: Vec::new(),
            ..(**writer.newest()).clone()
        }
    }

    async fn put_entry(&self, writer: &ChainWriter, entry: &Entry) {
        self.put(writer.volume(), entry.number.0, entry.encode(writer.keys()).unwrap()).await;
    }

    /// The chain is dense, each entry follows the one before, and times grow.
    async fn check_chain(&self) -> Vec<Arc<Entry>> {
        let reader = self.reader().await;
        let end = reader.end(EntryNumber(0)).await.unwrap();
        let (mut previous, mut time) = (ObjectHash([0; 32]), Timestamp(0));
        for number in 1..=end.0 {
            if let Ok(entry) = reader.get(EntryNumber(number)).await {
                assert_eq!(entry.previous, previous, "entry {number}");
                assert!(entry.time > time, "entry {number}");
                time = entry.time;
            }
            previous = ObjectHash::of(&self.bytes(reader.volume(), number).await);
        }
        reader.entries(1..=end.0).await.unwrap()
    }
}

fn opening(instance: InstanceId) -> Opening {
    Opening {
        instance,
        store: "file:disk0.img".into(),
        size: 1 << 30,
        adopt: false,
        take_over: false,
        created: Timestamp(NOON),
        known: None,
    }
}

fn pack(number: u64) -> ObjectRef {
    ObjectRef { generation: Generation(1), number, length: 100, hash: ObjectHash([number as u8; 32]) }
}

/// A point with one pack, cut at `sequence`, a second after the last by the clock of the world.
fn point(writer: &ChainWriter, sequence: u64) -> Proposal {
    let newest = writer.newest();
    let time = Timestamp(newest.time.0 + 1000);
    Proposal {
        sequence: Sequence(sequence),
        draft: false,
        slices: vec![Slice { sequence: Sequence(sequence), time }],
        own: vec![pack(sequence)],
        new_bytes: 100,
        ..Proposal::repeating(newest, EntryKind::Point, time)
    }
}

async fn publish(writer: &mut ChainWriter, sequence: u64) -> Published {
    let proposal = point(writer, sequence);
    writer.publish(proposal).await.unwrap()
}

/// The error of a publish that must fail.
async fn refused(writer: &mut ChainWriter, sequence: u64) -> PublishError {
    let proposal = point(writer, sequence);
    writer.publish(proposal).await.unwrap_err()
}

//! A volume with a history in a bucket in memory, and beside it the bytes that it held at every point and slice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use object_store::path::Path;

use crate::chain::merge::{Levels, Step, merge, replace};
use crate::chain::resolve::Resolver;
use crate::chain::{ChainReader, ChainWriter, Opening, Proposal};
use crate::clock::Clock;
use crate::format::entry::{Entry, EntryKind, Slice};
use crate::format::index::Kind;
use crate::format::names::VolumeName;
use crate::format::pack::PackBuilder;
use crate::format::{InstanceId, ObjectRef, Void};
use crate::random::SplitMix64;
use crate::remote::faulty::FaultyStore;
use crate::remote::{Limits, Remote};
use crate::units::{BLOCK, Block, Mask, SECTOR, Sequence, Span, Timestamp};

fn mask(random: &mut SplitMix64) -> Mask {
    match random.below(4) {
        0 => Mask::FULL,
        1 => Mask(u128::from(random.next()) << 64 | u128::from(random.next())),
        _ => {
            let first = random.below(128) as u32;
            Mask::range(first, random.below(u64::from(128 - first)) as u32 + 1)
        }
    }
}

/// What the volume was at one moment that can be restored.
#[derive(Clone)]
pub struct Moment {
    pub entry: Arc<Entry>,
    pub slice: Option<usize>,
    pub content: Vec<u8>,
    /// Sectors that compare with anything, and those among them that could not be read.
    pub trimmed: Vec<u64>,
    pub unreadable: Vec<u64>,
}

/// What one slice does to one block; the masks are disjoint.
#[derive(Clone, Default)]
pub struct Change {
    pub data: Mask,
    pub bytes: Vec<u8>,
    pub voids: [Mask; 3],
}

const VOIDS: [Void; 3] = [Void::Zero, Void::Trimmed, Void::Unreadable];

pub struct World {
    pub store: FaultyStore,
    pub remote: Remote,
    pub size: u64,
    pub random: SplitMix64,
    pub history: Vec<Moment>,
    writer: ChainWriter,
    levels: Levels,
    own: Vec<ObjectRef>,
    objects: u64,
    sequence: u64,
    content: Vec<u8>,
    /// By sector: trimmed, unreadable.
    marks: BTreeMap<u64, Void>,
}

impl World {
    /// A volume; its model is kept in memory only if it is `modelled`.
    pub async fn new(seed: u64, size: u64, modelled: bool) -> Self {
        Self::on(Arc::new(InMemory::new()), seed, size, modelled).await
    }

    /// In another store than memory.
    pub async fn on(store: Arc<dyn ObjectStore>, seed: u64, size: u64, modelled: bool) -> Self {
        let store = FaultyStore::new(store);
        let limits = Limits {
            answer: Duration::from_secs(5),
            patience: Duration::from_millis(300),
            pause_min: Duration::from_millis(1),
            pause_max: Duration::from_millis(4),
            ..Limits::default()
        };
        let remote = Remote::with_store(Arc::new(store.clone()), Path::ROOT, limits);
        let opening = Opening {
            instance: InstanceId([7; 16]),
            store: "memory".to_owned(),
            size,
            adopt: false,
            take_over: false,
            created: Timestamp(1),
            known: None,
        };
        let clock = Clock::from_fn(|| Timestamp(1_700_000_000_000));
        let writer = ChainWriter::open(&remote, &Self::name(), opening, clock).await.unwrap();
        Self {
            store,
            remote,
            size,
            random: SplitMix64(seed),
            history: Vec::new(),
            writer,
            levels: Levels::default(),
            own: Vec::new(),
            objects: 0,
            sequence: 0,
            content: if modelled { vec![0; size as usize] } else { Vec::new() },
            marks: BTreeMap::new(),
        }
    }

    pub fn name() -> VolumeName {
        "disk0".parse().unwrap()
    }

    pub fn chain(&self) -> &ChainReader {
        self.writer.reader()
    }

    pub fn resolver(&self, moment: &Moment) -> Resolver {
        Resolver::new(self.remote.clone(), self.writer.volume(), &moment.entry, moment.slice).unwrap()
    }

    /// Publishes a point of a few slices of random changes, in two packs.
    pub async fn epoch(&mut self) {
        let blocks = self.size.div_ceil(BLOCK);
        let slices = 1 + self.random.below(3);
        let mut changes = BTreeMap::new();
        for slice in 0..slices as u8 {
            for _ in 0..=self.random.below(blocks) / 2 {
                let block = self.random.below(blocks);
                changes.insert((block, slice), self.change(block));
            }
        }
        self.publish(&changes, slices as usize).await;
    }

    fn change(&mut self, block: u64) -> Change {
        // Of the last block, only what lies in the volume.
        let sectors = (self.size - block * BLOCK).div_ceil(SECTOR).min(128) as u32;
        let mut free = Mask::range(0, sectors);
        let mut take = |random: &mut SplitMix64| {
            let mask = mask(random).and(free);
            free = free.minus(mask);
            mask
        };
        let data = take(&mut self.random);
        let mut voids = [Mask::NONE; 3];
        for void in &mut voids {
            if self.random.below(3) == 0 {
                *void = take(&mut self.random);
            }
        }
        let kind = self.random.below(3);
        let mut bytes: Vec<u8> = (0..data.count() as usize * SECTOR as usize)
            .map(|i| match kind {
                0 => self.random.next() as u8,
                1 => (block as usize + i / 512) as u8,
                _ => 0,
            })
            .collect();
        let beyond = ((block + 1) * BLOCK).saturating_sub(self.size) % SECTOR;
        if data.contains(Mask::range(sectors - 1, 1)) && beyond > 0 {
            let end = bytes.len();
            bytes[end - beyond as usize..].fill(0);
        }
        Change { data, bytes, voids }
    }

    /// Publishes a point. Every slice is a moment of its own.
    pub async fn publish(&mut self, changes: &BTreeMap<(u64, u8), Change>, slices: usize) {
        self.retire_own().await;
        let middle = changes.keys().nth(changes.len() / 2).map_or(0, |(block, _)| *block);
        for half in [false, true] {
            let mut pack = PackBuilder::new(self.writer.keys(), self.writer.generation(), self.objects);
            for ((block, slice), change) in changes.iter().filter(|((block, _), _)| (*block >= middle) == half) {
                let first = Block(*block);
                if !change.data.is_empty() {
                    pack.push_data(first, *slice, change.data, &change.bytes).unwrap();
                }
                for (mask, void) in change.voids.iter().zip(VOIDS).filter(|(mask, _)| !mask.is_empty()) {
                    pack.push_void(first, 1, *slice, *mask, void).unwrap();
                }
            }
            if !pack.is_empty() {
                let (bytes, object) = pack.finish();
                self.put(Kind::Pack, &object, bytes).await;
                self.own.insert(0, object);
            }
        }
        let base = self.sequence;
        self.sequence += slices as u64;
        let proposal = Proposal {
            kind: EntryKind::Point,
            sequence: Sequence(self.sequence),
            time: Timestamp(0),
            size: self.size,
            draft: false,
            leaving: false,
            scan: None,
            slices: (1..=slices as u64)
                .map(|slice| Slice { sequence: Sequence(base + slice), time: Timestamp(0) })
                .collect(),
            own: self.own.clone(),
            levels: self.levels.clone(),
            new_bytes: self.own.iter().map(|object| object.length).sum(),
            detail: Vec::new(),
        };
        let entry = self.writer.publish(proposal).await.unwrap().entry;
        if self.content.is_empty() {
            self.history.push(self.moment(&entry, None));
            return;
        }
        for slice in 0..slices {
            for ((block, _), change) in changes.iter().filter(|((_, of), _)| usize::from(*of) == slice) {
                self.apply(*block, change);
            }
            self.history.push(self.moment(&entry, Some(slice)));
        }
    }

    fn moment(&self, entry: &Arc<Entry>, slice: Option<usize>) -> Moment {
        let of = |wanted: Void| self.marks.iter().filter(|(_, void)| **void == wanted).map(|(at, _)| *at).collect();
        Moment {
            entry: entry.clone(),
            slice,
            content: self.content.clone(),
            trimmed: of(Void::Trimmed),
            unreadable: of(Void::Unreadable),
        }
    }

    fn apply(&mut self, block: u64, change: &Change) {
        let mut bytes = change.bytes.chunks(SECTOR as usize);
        for (first, count) in change.data.runs() {
            for sector in first..first + count {
                let data = bytes.next().unwrap();
                self.set(block, sector, data, None);
            }
        }
        for (mask, void) in change.voids.iter().zip(VOIDS) {
            for (first, count) in mask.runs() {
                (first..first + count).for_each(|sector| self.set(block, sector, &[0; SECTOR as usize], Some(void)));
            }
        }
    }

    fn set(&mut self, block: u64, sector: u32, data: &[u8], void: Option<Void>) {
        let at = block * BLOCK + u64::from(sector) * SECTOR;
        let end = (at + SECTOR).min(self.size);
        self.content[at as usize..end as usize].copy_from_slice(&data[..(end - at) as usize]);
        match void {
            Some(void) if void != Void::Zero => self.marks.insert(at / SECTOR, void),
            _ => self.marks.remove(&(at / SECTOR)),
        };
    }

    /// The packs of the last epoch become old; a few old ones become a run.
    async fn retire_own(&mut self) {
        let own = std::mem::take(&mut self.own);
        self.levels[0].splice(..0, own);
        if self.levels[0].len() >= 6 {
            let step = Step { level: 0, inputs: self.levels[0][2..].to_vec() };
            let (keys, generation) = (self.writer.keys().clone(), self.writer.generation());
            let (bytes, run) =
                merge(self.remote.clone(), &keys, Kind::Pack, &step.inputs, generation, self.objects).await.unwrap();
            self.put(Kind::Run, &run, bytes).await;
            replace(&mut self.levels, &step, run).unwrap();
        }
    }

    async fn put(&mut self, kind: Kind, object: &ObjectRef, bytes: Bytes) {
        self.objects += 1;
        self.remote.put_new(&kind.key(self.writer.volume(), object), bytes).await.unwrap();
    }
}

/// The ranges of a volume of `size` that these sectors are, joined.
pub fn joined_sectors(sectors: &[u64], size: u64) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for sector in sectors {
        let span = Span::new(sector * SECTOR, ((sector + 1) * SECTOR).min(size));
        match spans.last_mut() {
            Some(last) if last.end == span.start => last.end = span.end,
            _ => spans.push(span),
        }
    }
    spans
}

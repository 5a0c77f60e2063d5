//! Resolver, fetcher, `differs` and merge beside a model that is too simple to be wrong: a map of sectors.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutPayload};
use proptest::prelude::*;

use super::differs::{Policy, differs};
use super::merge::{self, InputsGone, Levels, Step, merge};
use super::resolve::{Content, Fragment, ResolveError, Resolver};
use crate::format::entry::{Entry, EntryKind, Slice};
use crate::format::index::{BLOCKS_MAX, Kind};
use crate::format::pack::PackBuilder;
use crate::format::run::verify_run;
use crate::format::{InstanceId, Keys, ObjectHash, ObjectRef, PackRecord, Void, VolumeId};
use crate::random::SplitMix64;
use crate::remote::faulty::{Call, Fault, FaultyStore};
use crate::remote::{Limits, PutOutcome, Remote};
use crate::units::{
    BLOCK, Block, EntryNumber, Generation, MIB, Mask, SECTOR, SECTORS_PER_BLOCK, Sequence, Timestamp, VOLUME_MAX,
};

const VOLUME: VolumeId = VolumeId([7; 16]);

fn keys() -> Keys {
    Keys::unencrypted(VOLUME)
}

fn range(random: &mut SplitMix64, end: u64) -> (u64, u64) {
    let first = random.below(end);
    (first, 1 + random.below(end - first))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    /// The sector holds this number, 64 times.
    Stamp(u64),
    Void(Void),
}

impl Value {
    fn bytes(self) -> [u8; SECTOR as usize] {
        let mut bytes = [0; SECTOR as usize];
        if let Self::Stamp(stamp) = self {
            bytes.chunks_exact_mut(8).for_each(|chunk| chunk.copy_from_slice(&stamp.to_le_bytes()));
        }
        bytes
    }
}

/// What the sectors of a volume hold; those that are not in it were never written.
type Sectors = BTreeMap<u64, Value>;

const SECTORS: u64 = SECTORS_PER_BLOCK as u64;

struct World {
    store: Arc<InMemory>,
    faults: FaultyStore,
    remote: Remote,
    next: u64,
}

impl World {
    fn new() -> Self {
        let store = Arc::new(InMemory::new());
        let faults = FaultyStore::new(store.clone());
        let remote = Remote::with_store(Arc::new(faults.clone()), Path::default(), Limits::default());
        Self { store, faults, remote, next: 1 }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    async fn put(&self, kind: Kind, (bytes, object): (Bytes, ObjectRef)) -> ObjectRef {
        let put = self.remote.put_new(&kind.key(VOLUME, &object), bytes).await.unwrap();
        assert_eq!(put, PutOutcome::Created);
        object
    }

    /// One epoch's packs: the blocks are dealt out among them at the `borders`.
    async fn packs(&mut self, slices: &[Sectors], borders: &[u64]) -> Vec<ObjectRef> {
        let mut packs = Vec::new();
        let mut from = 0;
        for &to in borders.iter().chain([&BLOCKS_MAX]) {
            let mut pack = PackBuilder::new(&keys(), Generation(1), self.number());
            push_all(&mut pack, slices, from..to);
            if !pack.is_empty() {
                packs.push(self.put(Kind::Pack, pack.finish()).await);
            }
            from = to;
        }
        packs.reverse();
        packs
    }

    async fn merge(&mut self, levels: &mut Levels, step: &Step) {
        let number = self.number();
        let (remote, keys) = (self.remote.clone(), keys());
        let run = merge(remote, &keys, step.kind(), &step.inputs, Generation(1), number).await.unwrap();
        verify_run(&keys, &run.0, &run.1).unwrap();
        let run = self.put(Kind::Run, run).await;
        merge::replace(levels, step, run).unwrap();
    }
}

/// Per block and slice a record for each kind of value; whole blocks of one void that follow each other are extents.
fn push_all(pack: &mut PackBuilder, slices: &[Sectors], blocks: std::ops::Range<u64>) {
    // (block, slice, kind) → mask, in the order that packs want.
    let mut masks: BTreeMap<(u64, u8, u8), Mask> = BTreeMap::new();
    for (slice, sectors) in (0..).zip(slices) {
        for (sector, value) in sectors.range(blocks.start * SECTORS..blocks.end * SECTORS) {
            let kind = match value {
                Value::Stamp(_) => 0,
                Value::Void(Void::Zero) => 1,
                Value::Void(Void::Trimmed) => 2,
                Value::Void(Void::Unreadable) => 3,
            };
            let mask = masks.entry((sector / SECTORS, slice, kind)).or_default();
            *mask = mask.or(Mask::range((sector % SECTORS) as u32, 1));
        }
    }
    while let Some(((block, slice, kind), mask)) = masks.pop_first() {
        let void = match kind {
            0 => {
                let sectors = (0..SECTORS).filter(|sector| mask.contains(Mask::range(*sector as u32, 1)));
                let value = |sector| slices[slice as usize][&(block * SECTORS + sector)].bytes();
                let bytes: Vec<u8> = sectors.flat_map(value).collect();
                pack.push_data(Block(block), slice, mask, &bytes).unwrap();
                continue;
            }
            1 => Void::Zero,
            2 => Void::Trimmed,
            _ => Void::Unreadable,
        };
        let mut count = 1;
        if mask == Mask::FULL {
            while masks.remove_full(block + count, slice, kind) {
                count += 1;
            }
        }
        pack.push_void(Block(block), count, slice, mask, void).unwrap();
    }
}

trait RemoveFull {
    fn remove_full(&mut self, block: u64, slice: u8, kind: u8) -> bool;
}

impl RemoveFull for BTreeMap<(u64, u8, u8), Mask> {
    fn remove_full(&mut self, block: u64, slice: u8, kind: u8) -> bool {
        let whole = self.get(&(block, slice, kind)) == Some(&Mask::FULL);
        whole && self.remove(&(block, slice, kind)).is_some()
    }
}

/// What clients do in one slice, in a volume of so many sectors.
fn writes(random: &mut SplitMix64, end: u64, stamp: &mut u64) -> Sectors {
    let mut sectors = Sectors::new();
    for _ in 0..random.below(6) {
        *stamp += 1;
        let (first, count) = range(random, end);
        let (first, count) = match random.below(3) {
            0 => (first, count.min(16)),
            1 => (first / SECTORS * SECTORS, SECTORS.min(end - first / SECTORS * SECTORS)),
            _ => (first, count),
        };
        let value = match random.below(6) {
            0 => Value::Void(Void::Zero),
            1 => Value::Void(Void::Trimmed),
            2 => Value::Void(Void::Unreadable),
            _ => Value::Stamp(*stamp),
        };
        sectors.extend((first..first + count).map(|sector| (sector, value)));
    }
    sectors
}

fn entry(number: u64, size: u64, slices: usize, own: Vec<ObjectRef>, levels: Levels) -> Entry {
    let slices: Vec<_> =
        (0..slices as u64).map(|slice| Slice { sequence: Sequence(slice), time: Timestamp(slice) }).collect();
    let cut = slices.last().copied().unwrap_or(Slice { sequence: Sequence(0), time: Timestamp(0) });
    Entry {
        number: EntryNumber(number),
        kind: EntryKind::Point,
        generation: Generation(1),
        instance: InstanceId([0; 16]),
        previous: ObjectHash([0; 32]),
        parent: EntryNumber(number - 1),
        sequence: cut.sequence,
        time: cut.time,
        heartbeat: 0,
        size,
        draft: false,
        leaving: false,
        new_bytes: 0,
        store: None,
        scan: None,
        slices,
        own,
        levels,
        base: None,
        detail: Vec::new(),
    }
}

/// An entry, and what the volume held at each of its slices.
struct Recorded {
    entry: Entry,
    slices: Vec<Sectors>,
}

/// Epochs of random writes, with merges of random suffixes of random levels between them.
async fn history(world: &mut World, random: &mut SplitMix64, epochs: u64, blocks: u64) -> Vec<Recorded> {
    let mut levels = Levels::default();
    let (mut own, mut now, mut stamp) = (Vec::new(), Sectors::new(), 0);
    let mut recorded = Vec::new();
    for number in 1..=epochs {
        let writes: Vec<_> = (0..=random.below(5)).map(|_| writes(random, blocks * SECTORS, &mut stamp)).collect();
        let borders = [random.below(blocks), blocks];
        levels[0].splice(0..0, std::mem::take(&mut own));
        own = world.packs(&writes, &borders).await;
        for level in 0..3 {
            let length = levels[level].len() as u64;
            if length > 0 && random.below(3) == 0 {
                let count = 1 + random.below(length.min(merge::FANOUT as u64)) as usize;
                let inputs = levels[level][levels[level].len() - count..].to_vec();
                world.merge(&mut levels, &Step { level, inputs }).await;
            }
        }
        let mut slices = Vec::new();
        for slice in &writes {
            now.extend(slice.iter().map(|(sector, value)| (*sector, *value)));
            slices.push(now.clone());
        }
        // Sometimes smaller than what was written, and not a multiple of anything.
        let size = (blocks - random.below(3)) * BLOCK - random.below(2) * random.below(BLOCK);
        let entry = entry(number, size, slices.len(), own.clone(), levels.clone());
        recorded.push(Recorded { entry, slices });
    }
    recorded
}

/// The sectors of an answer; it must be in order, disjoint, inside the range.
async fn sectors(resolver: &Resolver, fragments: &[Fragment], first: u64, count: u64) -> Sectors {
    assert!(fragments.is_sorted_by_key(|fragment| fragment.first));
    let data = resolver.read_records(fragments).await.unwrap();
    let mut found = Sectors::new();
    for (fragment, data) in fragments.iter().zip(data) {
        let Fragment { first: at, count: length, mask, content } = *fragment;
        assert!(at.0 >= first && at.0 + length <= first + count);
        assert!(length == 1 || mask == Mask::FULL && matches!(content, Content::Void(_)));
        let mut data = data.chunks_exact(SECTOR as usize);
        for block in at.0..at.0 + length {
            for sector in (0..SECTORS).filter(|sector| mask.contains(Mask::range(*sector as u32, 1))) {
                let value = match content {
                    Content::Void(void) => Value::Void(void),
                    Content::Data { .. } => {
                        let bytes = data.next().unwrap();
                        let value = Value::Stamp(u64::from_le_bytes(bytes[..8].try_into().unwrap()));
                        assert_eq!(value.bytes(), bytes);
                        value
                    }
                };
                assert_eq!(found.insert(block * SECTORS + sector, value), None, "told twice");
            }
        }
        assert!(data.next().is_none());
    }
    found
}

/// The part of a model that a reader of `size` bytes sees in these blocks.
fn part(model: &Sectors, size: u64, first: u64, count: u64) -> Sectors {
    let end = ((first + count) * SECTORS).min(size.div_ceil(SECTOR));
    model.range((first * SECTORS).min(end)..end).map(|(sector, value)| (*sector, *value)).collect()
}

async fn check(world: &World, random: &mut SplitMix64, recorded: &Recorded, blocks: u64) {
    let Recorded { entry, slices } = recorded;
    let slice = random.below(slices.len() as u64 + 1) as usize;
    let (asked, model) = match slices.get(slice) {
        Some(model) => (Some(slice), model),
        None => (None, &slices[slices.len() - 1]),
    };
    let resolver = Resolver::new(world.remote.clone(), VOLUME, entry, asked).unwrap();
    for (first, count) in [(0, blocks + 5), range(random, blocks), range(random, blocks)] {
        let fragments = resolver.resolve(Block(first), count).await.unwrap();
        let found = sectors(&resolver, &fragments, first, count).await;
        assert_eq!(found, part(model, entry.size, first, count), "blocks {first} + {count}");
        check_differs(random, model, entry.size, &fragments, first);
        check_differs(random, model, entry.size, &fragments, first + count - 1);
    }
    let mut from = 0;
    while let Some(next) = resolver.next_named(Block(from)).await.unwrap() {
        assert!(next.0 >= from);
        assert_eq!(part(model, entry.size, from, next.0 - from), Sectors::new(), "skipped");
        from = next.0 + 1;
    }
    assert_eq!(part(model, entry.size, from, blocks), Sectors::new(), "skipped to the end");
}

/// Compares `differs` with what the model says, for a local block that is mostly equal.
fn check_differs(random: &mut SplitMix64, model: &Sectors, size: u64, fragments: &[Fragment], block: u64) {
    let held = part(model, size, block, 1);
    let mut local = vec![0; BLOCK as usize];
    for (sector, value) in &held {
        local[((sector % SECTORS) * SECTOR) as usize..][..SECTOR as usize].copy_from_slice(&value.bytes());
    }
    for _ in 0..random.below(3) {
        local[random.below(BLOCK) as usize] ^= 1;
    }
    let wrong = (0..SECTORS).filter(|sector| {
        let bytes = &local[(sector * SECTOR) as usize..][..SECTOR as usize];
        held.get(&(block * SECTORS + sector)).map_or([0; SECTOR as usize], |value| value.bytes()) != bytes
    });
    let wrong = wrong.fold(Mask::NONE, |wrong, sector| wrong.or(Mask::range(sector as u32, 1)));
    for policy in [Policy::Strict, Policy::Lenient] {
        let mut expected = wrong;
        for fragment in fragments.iter().filter(|f| f.first.0 <= block && block < f.first.0 + f.count) {
            let mask = fragment.mask;
            match &fragment.content {
                Content::Data { record, .. } if record.mask == mask && wrong.and(mask).is_empty() => {}
                Content::Data { .. } => expected = expected.or(mask),
                Content::Void(Void::Zero) => {}
                Content::Void(_) if policy == Policy::Strict => expected = expected.or(mask),
                Content::Void(_) => expected = expected.minus(mask),
            }
        }
        let end = local.len() - local.iter().rev().take_while(|byte| **byte == 0).count();
        assert_eq!(differs(&keys(), &local, Block(block), fragments, policy), expected);
        assert_eq!(differs(&keys(), &local[..end], Block(block), fragments, policy), expected, "short at the end");
    }
}

fn run<F: Future<Output = ()>>(future: F) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Counterexample 25.
    #[test]
    fn a_volume_reads_as_it_was_at_every_slice_whatever_was_merged(seed: u64) {
        run(async move {
            let mut random = SplitMix64(seed);
            let mut world = World::new();
            let blocks = 4 + random.below(30);
            let epochs = 1 + random.below(14);
            let history = history(&mut world, &mut random, epochs, blocks).await;
            for recorded in &history {
                check(&world, &mut random, recorded, blocks).await;
            }
        });
    }
}

/// One slice in which these blocks are full of stamps.
fn full(blocks: impl IntoIterator<Item = u64>, stamp: u64) -> Sectors {
    let sectors = blocks.into_iter().flat_map(|block| block * SECTORS..(block + 1) * SECTORS);
    sectors.map(|sector| (sector, Value::Stamp(stamp))).collect()
}

#[tokio::test]
async fn a_level_that_is_full_becomes_a_run_and_nothing_changes() {
    let mut world = World::new();
    let (mut levels, mut now) = (Levels::default(), Sectors::new());
    for epoch in 0..(merge::FANOUT * merge::FANOUT + 40) as u64 {
        let written = full([epoch % 7, epoch % 11 * 3], epoch + 1);
        now.extend(&written);
        levels[0].insert(0, world.packs(&[written], &[]).await[0]);
        while let Some(step) = merge::plan(&levels) {
            assert_eq!(step.inputs.len(), merge::FANOUT);
            world.merge(&mut levels, &step).await;
        }
        assert!(levels.iter().all(|level| level.len() < merge::FANOUT));
    }
    assert_eq!(levels.each_ref().map(Vec::len), [8, 1, 1, 0]);
    let entry = entry(1, 64 * BLOCK, 0, Vec::new(), levels);
    let resolver = Resolver::new(world.remote.clone(), VOLUME, &entry, None).unwrap();
    let fragments = resolver.resolve(Block(0), 64).await.unwrap();
    assert_eq!(sectors(&resolver, &fragments, 0, 64).await, now);
}

#[test]
fn a_merge_replaces_its_inputs_or_nothing() {
    let object = |number| ObjectRef { generation: Generation(1), number, length: 1, hash: ObjectHash([0; 32]) };
    let list = |numbers: std::ops::Range<u64>| numbers.rev().map(object).collect::<Vec<_>>();
    let mut levels = [list(0..40), list(100..102), Vec::new(), Vec::new()];
    let step = merge::plan(&levels).unwrap();
    assert_eq!(step, Step { level: 0, inputs: list(0..32) });
    let before = levels.clone();
    let gone = InputsGone { level: 0, inputs: 32 };
    levels[0].pop();
    assert_eq!(merge::replace(&mut levels, &step, object(200)), Err(gone), "the oldest is no longer there");
    levels = before.clone();
    levels[0].push(object(999));
    assert_eq!(merge::replace(&mut levels, &step, object(200)), Err(gone), "something older came below");
    levels = before.clone();
    levels[0].insert(0, object(41));
    merge::replace(&mut levels, &step, object(200)).unwrap();
    assert_eq!(levels[0].len(), 9);
    assert_eq!(levels[1], [object(200), object(101), object(100)]);
    assert_eq!(merge::replace(&mut levels, &step, object(201)), Err(gone), "it was done already");
    assert_eq!(merge::plan(&levels), None);
    let last = Step { level: 3, inputs: vec![object(1)] };
    assert!(merge::replace(&mut levels, &last, object(202)).is_err());
}

/// Counterexample 15.
#[tokio::test]
async fn a_discard_of_the_largest_volume_costs_nothing_to_merge_and_to_read() {
    let mut world = World::new();
    let mut pack = PackBuilder::new(&keys(), Generation(1), world.number());
    pack.push_void(Block(0), BLOCKS_MAX, 0, Mask::FULL, Void::Trimmed).unwrap();
    let trimmed = world.put(Kind::Pack, pack.finish()).await;
    let far = BLOCKS_MAX - 2;
    let written = world.packs(&[full([3, far], 1)], &[]).await;
    let mut levels = [[written, vec![trimmed]].concat(), Vec::new(), Vec::new(), Vec::new()];
    let expected = [
        (Block(0), 3, false),
        (Block(3), 1, true),
        (Block(4), far - 4, false),
        (Block(far), 1, true),
        (Block(far + 1), 1, false),
    ];
    for merged in [false, true] {
        let resolver =
            Resolver::new(world.remote.clone(), VOLUME, &entry(1, VOLUME_MAX, 0, Vec::new(), levels.clone()), None)
                .unwrap();
        let fragments = resolver.resolve(Block(0), u64::MAX).await.unwrap();
        let found: Vec<_> =
            fragments.iter().map(|f| (f.first, f.count, matches!(f.content, Content::Data { .. }))).collect();
        assert_eq!(found, expected, "merged: {merged}");
        let step = Step { level: 0, inputs: levels[0].clone() };
        if !merged {
            world.merge(&mut levels, &step).await;
        }
    }
}

#[tokio::test]
async fn a_few_blocks_of_a_huge_index_cost_a_few_pages() {
    let mut world = World::new();
    let mut pack = PackBuilder::new(&keys(), Generation(1), world.number());
    for block in 0..400_000 {
        pack.push_void(Block(block * 2000), 1, 0, Mask(0x5555 << (block % 100)), Void::Zero).unwrap();
    }
    let (bytes, object) = pack.finish();
    assert!(bytes.len() as u64 > 7 * MIB);
    let object = world.put(Kind::Pack, (bytes, object)).await;
    let entry = entry(1, VOLUME_MAX, 0, vec![object], Levels::default());
    let resolver = Resolver::new(world.remote.clone(), VOLUME, &entry, None).unwrap();
    assert_eq!(resolver.resolve(Block(398_000), 2001).await.unwrap().len(), 2);
    assert_eq!(resolver.next_named(Block(400_001)).await.unwrap(), Some(Block(402_000)));
    assert_eq!(resolver.next_named(Block(400_000 * 2000)).await.unwrap(), None);
    let stats = world.remote.stats();
    let (gets, bytes) = (
        stats.gets.load(std::sync::atomic::Ordering::Relaxed),
        stats.bytes_down.load(std::sync::atomic::Ordering::Relaxed),
    );
    assert!(gets <= 3 && bytes < 128 * 1024, "{gets} GETs of {bytes} bytes");
    assert_eq!(resolver.resolve(Block(0), BLOCKS_MAX).await.unwrap().len(), 400_000, "in stretches");
}

#[tokio::test]
async fn a_pack_with_more_index_than_memory_is_read_through_a_run() {
    let mut world = World::new();
    let mut pack = PackBuilder::new(&keys(), Generation(1), world.number());
    for block in 0..120_000u64 {
        pack.push_data(Block(block * 2), 0, Mask::range(0, 1), &Value::Stamp(block + 1).bytes()).unwrap();
    }
    let pack = world.put(Kind::Pack, pack.finish()).await;
    let mut levels = Levels::default();
    levels[0].push(pack);
    world.merge(&mut levels, &Step { level: 0, inputs: vec![pack] }).await;
    let entry = entry(1, VOLUME_MAX, 0, Vec::new(), levels);
    let resolver = Resolver::new(world.remote.clone(), VOLUME, &entry, None).unwrap();
    let fragments = resolver.resolve(Block(0), BLOCKS_MAX).await.unwrap();
    assert_eq!(fragments.len(), 120_000);
    let read = resolver.read_records(&fragments[119_990..]).await.unwrap();
    assert_eq!(read[9], Value::Stamp(120_000).bytes()[..]);
}

#[tokio::test]
async fn what_is_missing_or_damaged_is_named() {
    let mut world = World::new();
    let packs = world.packs(&[full([1, 2], 5)], &[]).await;
    let key = VOLUME.pack_key(&packs[0]);
    let there = entry(1, 9 * BLOCK, 1, packs.clone(), Levels::default());
    let missing = ObjectRef { number: 999, ..packs[0] };
    let absent = entry(1, 9 * BLOCK, 1, vec![missing], Levels::default());
    let resolver = |entry: &Entry| Resolver::new(world.remote.clone(), VOLUME, entry, None).unwrap();

    let error = resolver(&absent).resolve(Block(0), 9).await.unwrap_err();
    assert!(matches!(&error, ResolveError::Missing { key } if *key == VOLUME.pack_key(&missing)), "{error:?}");
    assert!(!error.is_transient());

    let whole = world.remote.get(&key).await.unwrap();
    let damage = async |at: usize| {
        let mut bytes = whole.to_vec();
        bytes[at] ^= 1;
        world.store.put(&Path::from(key.as_str()), PutPayload::from(bytes)).await.unwrap();
    };
    damage(whole.len() - 1).await;
    let error = resolver(&there).resolve(Block(0), 9).await.unwrap_err();
    assert!(matches!(&error, ResolveError::Damaged { key: found, .. } if *found == key), "{error:?}");

    damage(0).await;
    let resolver = resolver(&there);
    let fragments = resolver.resolve(Block(0), 9).await.unwrap();
    let error = resolver.read_records(&fragments).await.unwrap_err();
    let block = Block(1);
    assert!(matches!(&error, ResolveError::DamagedRecord { block: found, .. } if *found == block), "{error:?}");
}

#[tokio::test]
async fn what_was_damaged_on_the_way_is_read_again() {
    let mut world = World::new();
    let gets = |world: &World| world.faults.calls(Call::Get).len();
    let resolver = |world: &World, pack| {
        let entry = entry(1, VOLUME_MAX, 1, vec![pack], Levels::default());
        Resolver::new(world.remote.clone(), VOLUME, &entry, None).unwrap()
    };
    let mut index = PackBuilder::new(&keys(), Generation(1), world.number());
    index.push_void(Block(5), 1, 0, Mask::FULL, Void::Zero).unwrap();
    let index = world.put(Kind::Pack, index.finish()).await;
    world.faults.once(Call::Get, "packs", Fault::FlipBit);
    assert_eq!(resolver(&world, index).resolve(Block(0), 8).await.unwrap().len(), 1);
    assert_eq!(gets(&world), 2);

    let mut data = PackBuilder::new(&keys(), Generation(1), world.number());
    let mut random = SplitMix64(1);
    // More than comes with the head, and nothing that compresses.
    let noise: Vec<u8> = (0..8 * BLOCK).map(|_| random.below(256) as u8).collect();
    for (block, bytes) in noise.chunks(BLOCK as usize).enumerate() {
        data.push_data(Block(block as u64), 0, Mask::FULL, bytes).unwrap();
    }
    let data = world.put(Kind::Pack, data.finish()).await;
    let resolver = resolver(&world, data);
    let fragments = resolver.resolve(Block(0), 8).await.unwrap();
    world.faults.once(Call::Get, "packs", Fault::FlipBit);
    assert_eq!(resolver.read_records(&fragments).await.unwrap().concat(), noise);
    assert_eq!(gets(&world), 2 + 3, "the head, all records together, the damaged one");
}

#[tokio::test]
async fn what_an_entry_cannot_say_is_refused() {
    let world = World::new();
    let fine = entry(1, BLOCK, 2, Vec::new(), Levels::default());
    let new = |entry: &Entry, slice| Resolver::new(world.remote.clone(), VOLUME, entry, slice).map(|_| ());
    assert!(new(&fine, Some(1)).is_ok());
    assert!(matches!(new(&fine, Some(2)), Err(ResolveError::NoSuchSlice { slice: 2, slices: 2 })));
    let object = ObjectRef { generation: Generation(1), number: 1, length: 1, hash: ObjectHash([0; 32]) };
    let based = Entry { base: Some(object), ..fine.clone() };
    assert!(matches!(new(&based, None), Err(ResolveError::PartitionedBase)));
    let empty = Resolver::new(world.remote.clone(), VOLUME, &fine, None).unwrap();
    assert_eq!(empty.resolve(Block(0), 1).await.unwrap(), []);
    assert_eq!(empty.next_named(Block(0)).await.unwrap(), None);
}

const _: () = assert!(size_of::<PackRecord>() <= 128);

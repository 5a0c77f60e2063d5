use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
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

#[tokio::test]
async fn a_new_volume_begins_with_its_first_generation() {
    let world = World::new();
    let mut writer = world.open(A).await;
    assert_eq!(writer.generation(), Generation(1));
    assert!(writer.newest().draft, "nothing was copied yet");
    let published = publish(&mut writer, 10).await;
    assert_eq!(published.entry.number, EntryNumber(2));
    assert_eq!(published.entry.parent, EntryNumber(1));
    assert!(!published.settled && published.adopted.is_empty());
    let entries = world.check_chain().await;
    assert_eq!(entries.iter().map(|entry| entry.kind).collect::<Vec<_>>(), [EntryKind::Open, EntryKind::Point]);
    assert_eq!(entries[0].store.as_deref(), Some("file:disk0.img"));
    assert_eq!(volumes(&world.remote).await.unwrap(), std::slice::from_ref(&world.name));
}

/// Counterexample 24, as far as taking over goes: nothing is rolled back yet.
#[tokio::test]
async fn an_open_shows_what_the_newest_entry_showed() {
    let world = World::new();
    let mut writer = world.open(A).await;
    publish(&mut writer, 10).await;
    let mut draft = Proposal { draft: true, ..point(&writer, 20) };
    (draft.kind, draft.scan) = (EntryKind::Draft, Some(ScanCursor { front: 4096 }));
    draft.levels[0] = vec![pack(10)];
    let draft = writer.publish(draft).await.unwrap().entry;
    world.put_entry(&writer, &world.entry_after(&writer, EntryKind::Pin, 1).await).await;

    let again = world.open(A).await;
    let open = again.newest();
    assert_eq!((open.generation, open.number, open.parent), (Generation(2), EntryNumber(5), draft.number));
    assert_eq!((&open.own, &open.levels, open.scan), (&draft.own, &draft.levels, draft.scan));
    assert_eq!((open.sequence, open.draft, open.new_bytes), (Sequence(20), true, 0));
}

// The conflict table, while publishing.

/// Fault test 27.
/// Counterexample 19.
#[tokio::test]
async fn a_put_whose_answer_was_lost_has_published() {
    let world = World::new();
    let mut writer = world.open(A).await;
    world.store.once(Call::Create, "chain", Fault::LostAnswer);
    let published = publish(&mut writer, 10).await;
    assert_eq!((published.entry.number, published.settled), (EntryNumber(2), false));
    assert_eq!(world.check_chain().await.len(), 2);
}

/// Counterexample 19.
#[tokio::test]
async fn a_conflict_with_nothing_is_tried_again() {
    let world = World::new();
    let mut writer = world.open(A).await;
    world.store.once(Call::Create, "chain", Fault::Status(409));
    world.store.once(Call::Create, "chain", Fault::Status(409));
    assert_eq!(publish(&mut writer, 10).await.entry.number, EntryNumber(2));
}

/// Counterexample 19.
#[tokio::test]
async fn noise_takes_up_a_number_and_ends_nothing() {
    let world = World::new();
    let mut writer = world.open(A).await;
    world.put(writer.volume(), 2, "noise").await;
    // Of another volume, and of another number: each has a right MAC somewhere else.
    let foreign = world.entry_after(&writer, EntryKind::Open, 9).await;
    world.put(writer.volume(), 3, foreign.encode(&Keys::unencrypted(VolumeId([9; 16]))).unwrap()).await;
    let misplaced = Entry { number: EntryNumber(40), ..foreign };
    world.put(writer.volume(), 4, misplaced.encode(writer.keys()).unwrap()).await;
    assert_eq!(publish(&mut writer, 10).await.entry.number, EntryNumber(5));
    assert_eq!(publish(&mut writer, 20).await.entry.number, EntryNumber(6));
    // It may also stand at the end when the volume is opened.
    world.put(writer.volume(), 7, "").await;
    let again = world.open(A).await;
    assert_eq!((again.newest().number, again.generation()), (EntryNumber(8), Generation(2)));
    assert_eq!(world.check_chain().await.len(), 4);
}

#[tokio::test]
async fn noise_without_end_does_not_keep_a_publisher_for_ever() {
    let world = World::new();
    let mut writer = world.open(A).await;
    for number in 2..70 {
        world.put(writer.volume(), number, "noise").await;
    }
    assert!(matches!(refused(&mut writer, 10).await, PublishError::Crowded { .. }));
    assert_eq!(publish(&mut writer, 10).await.entry.number, EntryNumber(70));
}

/// Counterexamples 5 and 19.
#[tokio::test]
async fn what_tools_put_is_adopted_and_told() {
    let world = World::new();
    let mut writer = world.open(A).await;
    publish(&mut writer, 10).await;
    for kind in [EntryKind::Pin, EntryKind::Unpin, EntryKind::Checkpoint] {
        let mut tool = world.entry_after(&writer, kind, 1).await;
        tool.levels[1] = vec![pack(77)];
        world.put_entry(&writer, &tool).await;
        let proposal = point(&writer, 20);
        let published = writer.publish(proposal.clone()).await.unwrap();
        assert_eq!(published.adopted, [Arc::new(tool.clone())], "{kind:?}");
        assert_eq!(published.entry.number, tool.number.next());
        assert_eq!(published.entry.levels, proposal.levels, "published as proposed");
        let parent = if kind == EntryKind::Checkpoint { tool.number.0 } else { tool.number.0 - 1 };
        assert_eq!(published.entry.parent.0, parent, "{kind:?}");
    }
    world.check_chain().await;
}

/// Counterexample 5, as far as publishing goes: nothing is reclaimed yet.
#[tokio::test]
async fn a_proposal_that_may_list_condemned_objects_is_not_published() {
    let world = World::new();
    let mut writer = world.open(A).await;
    publish(&mut writer, 10).await;
    let reclaim = world.entry_after(&writer, EntryKind::Reclaim, 1).await;
    world.put_entry(&writer, &reclaim).await;
    let error = refused(&mut writer, 20).await;
    assert!(matches!(&error, PublishError::Reclaimed { entry } if **entry == reclaim), "{error:?}");
    assert_eq!(publish(&mut writer, 20).await.entry.number, reclaim.number.next());
    world.check_chain().await;
}

/// Counterexample 19.
#[tokio::test]
async fn anything_else_fences_for_good() {
    for (kind, generation) in [
        (EntryKind::Open, 2),
        (EntryKind::Open, 1),
        (EntryKind::Point, 1),
        (EntryKind::Draft, 1),
        (EntryKind::RestoreBegin, 1),
        (EntryKind::Pin, 2),
        (EntryKind::Checkpoint, 2),
        (EntryKind::Reclaim, 2),
    ] {
        let world = World::new();
        let mut writer = world.open(A).await;
        world.put_entry(&writer, &world.entry_after(&writer, kind, generation).await).await;
        let puts = world.store.calls(Call::Create).len();
        for _ in 0..2 {
            let error = refused(&mut writer, 10).await;
            let by = Some((Generation(generation), B));
            let expected = conflict::Fence { number: EntryNumber(2), by };
            assert!(matches!(error, PublishError::Fenced(fence) if fence == expected), "{kind:?}: {error:?}");
        }
        assert_eq!(world.store.calls(Call::Create).len(), puts + 1, "{kind:?}: put again after it was fenced");
        assert_eq!(world.check_chain().await.len(), 2, "{kind:?}");
    }
}

#[tokio::test]
async fn a_tool_that_follows_another_history_fences() {
    let world = World::new();
    let mut writer = world.open(A).await;
    let pin = world.entry_after(&writer, EntryKind::Pin, 1).await;
    world.put_entry(&writer, &Entry { previous: ObjectHash([3; 32]), ..pin }).await;
    assert!(matches!(refused(&mut writer, 10).await, PublishError::Fenced(_)));
}

#[tokio::test]
async fn a_newer_program_fences_and_is_not_taken_for_noise() {
    let world = World::new();
    let mut writer = world.open(A).await;
    let mut newer = world.entry_after(&writer, EntryKind::Open, 2).await.encode(writer.keys()).unwrap();
    newer.truncate(newer.len() - 16);
    newer[8] = 2;
    let mac = writer.keys().mac(MacKind::Entry, &newer);
    newer.extend(mac.0);
    world.put(writer.volume(), 2, newer).await;
    let error = refused(&mut writer, 10).await;
    assert!(matches!(error, PublishError::Fenced(conflict::Fence { by: None, .. })), "{error:?}");
    assert!(matches!(world.try_open(opening(A)).await, Err(OpenError::Newer { .. })));
}

// Outcomes that are not known.

/// Fault test 10.
/// Counterexample 19.
#[tokio::test]
async fn a_number_is_tried_with_one_content_only() {
    let world = World::new();
    let mut writer = world.open(A).await;
    world.store.every(Call::Create, "chain", Fault::BlackHole);
    let first = point(&writer, 10);
    let error = writer.publish(first.clone()).await.unwrap_err();
    assert!(matches!(error, PublishError::Unknown { number: EntryNumber(2), .. }), "{error:?}");
    world.store.heal();
    let second = publish(&mut writer, 20).await;
    assert!(second.settled, "what was tried first was still to be settled");
    assert_eq!((second.entry.number, second.entry.sequence), (EntryNumber(2), first.sequence));
    assert_eq!(publish(&mut writer, 20).await.entry.number, EntryNumber(3));
    world.check_chain().await;
}

/// Fault test 28.
#[tokio::test]
async fn a_write_that_lands_after_it_was_given_up_is_published_once() {
    let world = World::new();
    let mut writer = world.open(A).await;
    world.store.every(Call::Create, "chain", Fault::LateWrite(Duration::from_millis(400)));
    assert!(matches!(refused(&mut writer, 10).await, PublishError::Unknown { .. }));
    world.store.heal();
    tokio::time::sleep(Duration::from_millis(600)).await;
    let published = publish(&mut writer, 10).await;
    assert!(published.settled);
    assert_eq!(publish(&mut writer, 20).await.entry.number, EntryNumber(3));
    assert_eq!(world.check_chain().await.len(), 3);
}

/// Fault test 28.
#[tokio::test]
async fn a_lost_attempt_that_lost_its_number_never_appears() {
    let world = World::new();
    let mut writer = world.open(A).await;
    world.store.every(Call::Create, "chain", Fault::BlackHole);
    refused(&mut writer, 10).await;
    world.store.heal();
    world.put_entry(&writer, &world.entry_after(&writer, EntryKind::Pin, 1).await).await;
    let published = publish(&mut writer, 20).await;
    assert!(!published.settled);
    assert_eq!((published.entry.number, published.entry.sequence), (EntryNumber(3), Sequence(20)));
    assert_eq!(published.adopted.len(), 1);
    world.check_chain().await;
}

/// Fault test 9.
#[tokio::test]
async fn what_was_dropped_half_way_is_settled_first() {
    let world = World::new();
    let mut writer = world.open(A).await;
    world.store.every(Call::Create, "chain", Fault::BlackHole);
    let proposal = point(&writer, 10);
    assert!(tokio::time::timeout(Duration::from_millis(5), writer.publish(proposal)).await.is_err());
    world.store.heal();
    let published = publish(&mut writer, 20).await;
    assert_eq!((published.settled, published.entry.sequence), (true, Sequence(10)));
}

/// Fault tests 26 to 28.
#[tokio::test]
async fn no_seed_of_faults_makes_a_gap_or_a_second_copy() {
    for seed in 0..40 {
        let world = World::new();
        let mut writer = world.open(A).await;
        world.store.seeded(seed, 3);
        let mut published = Vec::new();
        for sequence in 1..=20 {
            loop {
                let proposal = point(&writer, sequence);
                match writer.publish(proposal).await {
                    Ok(done) => {
                        assert_eq!(done.entry.sequence, Sequence(sequence), "seed {seed}");
                        published.push(done.entry);
                        break;
                    }
                    Err(PublishError::Unknown { .. } | PublishError::Conflict { .. }) => {}
                    Err(error) => panic!("seed {seed}: {error:?}"),
                }
            }
        }
        world.store.heal();
        assert_eq!(world.check_chain().await[1..], published, "seed {seed}");
    }
}

// Generations.

/// Fault test 36.
/// Counterexample 3.
#[tokio::test]
async fn a_generation_that_was_paused_wakes_up_fenced() {
    // Generation 1 sleeps before its put; generation 2 opens there and goes on.
    let world = World::new();
    let mut first = world.open(A).await;
    publish(&mut first, 10).await;
    let mut second = world.try_open(Opening { take_over: true, adopt: true, ..opening(B) }).await.unwrap();
    for sequence in 11..30 {
        publish(&mut second, sequence).await;
    }
    let error = refused(&mut first, 11).await;
    assert!(matches!(error, PublishError::Fenced(fence) if fence.by == Some((Generation(2), B))), "{error:?}");
    publish(&mut second, 30).await;
    assert!(world.check_chain().await.iter().skip(2).all(|entry| entry.generation == Generation(2)));
}

/// Fault test 36.
/// Counterexample 19.
#[tokio::test]
async fn clones_with_the_same_bytes_both_succeed_and_one_is_fenced_next() {
    let world = World::new();
    let mut original = world.open(A).await;
    publish(&mut original, 10).await;
    let mut clone = original.cloned_with_its_machine();
    let same = point(&original, 11);
    assert_eq!(original.publish(same.clone()).await.unwrap().entry, clone.publish(same).await.unwrap().entry);
    publish(&mut original, 12).await;
    assert!(matches!(refused(&mut clone, 13).await, PublishError::Fenced(_)));
    publish(&mut original, 14).await;
    assert_eq!(world.check_chain().await.len(), 5);
}

#[tokio::test]
async fn of_racing_openers_the_later_has_the_chain() {
    for seed in 0..20 {
        let world = World::new();
        world.store.seeded(seed, 4);
        let taking = |instance| Opening { take_over: true, adopt: true, ..opening(instance) };
        let open = async |instance| {
            loop {
                match world.try_open(taking(instance)).await {
                    Ok(writer) => break writer,
                    Err(OpenError::Remote(_) | OpenError::Chain(ChainError::Remote(_))) => {}
                    Err(error) => panic!("seed {seed}: {error:?}"),
                }
            }
        };
        let (a, b) = tokio::join!(open(A), open(B));
        world.store.heal();
        let (mut lower, mut higher) = if a.generation() < b.generation() { (a, b) } else { (b, a) };
        assert_ne!(lower.generation(), higher.generation(), "seed {seed}");
        assert_eq!(lower.volume(), higher.volume(), "seed {seed}");
        // A late write of an opening that was given up may have come behind them; then both are fenced, by its like.
        if publish_or_fenced(&mut higher).await {
            assert!(!publish_or_fenced(&mut lower).await, "seed {seed}");
        }
        world.check_chain().await;
    }
}

async fn publish_or_fenced(writer: &mut ChainWriter) -> bool {
    let proposal = point(writer, 50);
    match writer.publish(proposal).await {
        Ok(_) => true,
        Err(PublishError::Fenced(_)) => false,
        Err(error) => panic!("{error:?}"),
    }
}

#[tokio::test]
async fn only_one_of_racing_openers_of_a_new_name_opens_without_force() {
    let world = World::new();
    let (a, b) = tokio::join!(world.try_open(opening(A)), world.try_open(opening(B)));
    let (opened, refused) = if a.is_ok() { (a, b) } else { (b, a) };
    opened.unwrap();
    assert!(matches!(refused, Err(OpenError::NameTaken { .. })), "{refused:?}");
}

/// Counterexample 19.
#[tokio::test]
async fn a_late_put_of_a_crashed_predecessor_does_not_fence_the_opening() {
    let world = World::new();
    let mut crashed = world.open(A).await;
    publish(&mut crashed, 10).await;
    world.store.every(Call::Create, "chain/", Fault::BlackHole);
    refused(&mut crashed, 11).await;
    world.store.heal();
    // It lands when the opening has read the chain and put its entry, which takes longer.
    world.store.once(Call::Create, "chain/", Fault::Delay(Duration::from_millis(60)));
    let seen = world.store.calls(Call::Create).len();
    let late = async {
        while world.store.calls(Call::Create).len() == seen {
            tokio::task::yield_now().await;
        }
        world.put(crashed.volume(), 3, crashed.bytes_under_way().unwrap()).await;
    };
    let (mut next, ()) = tokio::join!(world.open(A), late);
    assert_eq!((next.generation(), next.newest().number), (Generation(2), EntryNumber(4)));
    assert_eq!(next.newest().sequence, Sequence(11));
    publish(&mut next, 12).await;
    // Were it not dead after all, it would learn that its put has landed, and then that it is fenced.
    assert!(publish(&mut crashed, 12).await.settled);
    assert!(matches!(refused(&mut crashed, 12).await, PublishError::Fenced(_)));
    world.check_chain().await;
}

#[tokio::test]
async fn an_opening_is_above_every_generation_that_a_gateway_had() {
    let world = World::new();
    let writer = world.open(A).await;
    drop(world.open(A).await);
    // A tool that has seen less comes last.
    let tool = world.entry_after(&writer, EntryKind::Pin, 1).await;
    world.put_entry(&writer, &tool).await;
    assert_eq!(world.open(A).await.generation(), Generation(3));
}

// Refusals.

#[tokio::test]
async fn a_name_that_others_use_is_adopted_only_on_request() {
    let world = World::new();
    let mut writer = world.open(A).await;
    let last = Proposal { leaving: true, ..point(&writer, 10) };
    writer.publish(last).await.unwrap();
    let volume = writer.volume();
    assert!(matches!(world.try_open(opening(B)).await, Err(OpenError::NameTaken { volume: v, .. }) if v == volume));
    let other = Opening { known: Some(VolumeId([7; 16])), ..opening(A) };
    assert!(matches!(world.try_open(other).await, Err(OpenError::NameTaken { .. })));
    world.try_open(Opening { known: Some(volume), ..opening(B) }).await.unwrap();
    world.try_open(Opening { adopt: true, take_over: true, ..opening(A) }).await.unwrap();
}

#[tokio::test]
async fn a_known_volume_that_is_gone_is_not_begun_anew() {
    let world = World::new();
    let known = Opening { known: Some(VolumeId([7; 16])), ..opening(A) };
    assert!(matches!(world.try_open(known).await, Err(OpenError::Vanished { .. })));
    assert!(volumes(&world.remote).await.unwrap().is_empty());
}

/// Counterexample 19.
#[tokio::test]
async fn a_living_instance_is_not_pushed_aside() {
    let world = World::new();
    let mut writer = world.open(A).await;
    let other = || Opening { known: Some(writer_volume(&world)), ..opening(B) };
    fn writer_volume(world: &World) -> VolumeId {
        let key = &world.store.calls(Call::Create)[0];
        key.split('/').nth(1).unwrap().parse().unwrap()
    }
    let silence = |error: Result<ChainWriter, OpenError>| match error {
        Err(OpenError::InUse { instance: A, silence, .. }) => silence,
        other => panic!("{other:?}"),
    };
    assert_eq!(silence(world.try_open(other()).await), Duration::from_secs(45 * 60));
    publish(&mut writer, 10).await;
    assert_eq!(silence(world.try_open(other()).await), Duration::from_secs(45 * 60));
    publish(&mut writer, 20).await;
    assert_eq!(silence(world.try_open(other()).await), Duration::from_secs(60));
    world.pass(Duration::from_secs(70));
    world.try_open(other()).await.unwrap();
}

#[tokio::test]
async fn the_same_state_folder_and_whoever_takes_over_need_not_wait() {
    let world = World::new();
    let writer = world.open(A).await;
    world.open(A).await;
    let other = Opening { known: Some(writer.volume()), ..opening(B) };
    world.try_open(Opening { take_over: true, ..other }).await.unwrap();
}

#[tokio::test]
async fn an_instance_that_has_left_is_not_waited_for() {
    let world = World::new();
    let mut writer = world.open(A).await;
    let leaving = Proposal { leaving: true, ..point(&writer, 10) };
    writer.publish(leaving).await.unwrap();
    world.try_open(Opening { known: Some(writer.volume()), ..opening(B) }).await.unwrap();
}

/// Counterexample 8.
#[tokio::test]
async fn another_store_is_refused_until_it_is_adopted() {
    let world = World::new();
    let mut writer = world.open(A).await;
    for sequence in 1..20 {
        publish(&mut writer, sequence).await;
        if sequence % 3 == 0 {
            world.put_entry(&writer, &world.entry_after(&writer, EntryKind::Pin, 1).await).await;
        }
    }
    let blank = || Opening { store: "file:blank.img".into(), ..opening(A) };
    let error = world.try_open(blank()).await.unwrap_err();
    assert!(matches!(&error, OpenError::OtherStore { recorded, .. } if recorded == "file:disk0.img"), "{error:?}");
    world.try_open(Opening { adopt: true, ..blank() }).await.unwrap();
    world.try_open(blank()).await.unwrap();
    assert!(matches!(world.try_open(opening(A)).await, Err(OpenError::OtherStore { .. })));
}

/// Fault test 9, for the opening.
#[tokio::test]
async fn a_crash_anywhere_in_a_first_opening_leaves_nothing_in_the_way() {
    for fault in [Fault::Status(403), Fault::LostAnswer] {
        for key in ["/volume", "names/", "chain/"] {
            let world = World::new();
            world.store.every(Call::Create, key, fault.clone());
            // Cut off as a crash would, where the put is not refused outright.
            let _ = tokio::time::timeout(Duration::from_millis(50), world.try_open(opening(A))).await;
            world.store.heal();
            publish(&mut world.open(A).await, 10).await;
            world.check_chain().await;
        }
    }
}

/// Fault test 30.
/// Counterexamples 3 and 29.
#[tokio::test]
async fn publishing_needs_no_list_no_overwrite_and_no_delete() {
    let world = World::new();
    let refuse = [Call::List, Call::Overwrite, Call::Delete, Call::Copy, Call::Head];
    for call in refuse {
        world.store.every(call, "", Fault::Status(403));
    }
    let mut writer = world.open(A).await;
    for sequence in 1..5 {
        publish(&mut writer, sequence).await;
    }
    world.put(writer.volume(), 6, "noise").await;
    publish(&mut writer, 5).await;
    let mut again = world.open(A).await;
    publish(&mut again, 6).await;
    assert!(matches!(refused(&mut writer, 7).await, PublishError::Fenced(_)));
    for call in refuse {
        assert!(world.store.calls(call).is_empty(), "{call:?}");
    }
}

#[tokio::test]
async fn a_store_that_denies_what_is_not_there_is_written_and_read() {
    let world = World::new();
    world.store.hide_absent();
    let mut writer = world.open(A).await;
    publish(&mut writer, 10).await;
    let found = world.reader().await.find(At::Latest).await.unwrap();
    assert_eq!(found.entry.number, EntryNumber(2));
    // But whoever may read nothing is told so.
    world.store.every(Call::Get, "", Fault::Status(403));
    assert!(matches!(writer.reader().end(EntryNumber(0)).await, Err(ChainError::Remote(_))));
}

// Reading.

/// Fault test 30.
#[tokio::test]
async fn the_end_is_found_from_any_hint() {
    let world = World::new();
    let mut writer = world.open(A).await;
    for end in 1..40 {
        let reader = world.reader().await;
        for hint in [0, 1, end / 2, end, end + 1, 1000] {
            assert_eq!(reader.end(EntryNumber(hint)).await.unwrap(), EntryNumber(end), "hint {hint}");
        }
        publish(&mut writer, end).await;
    }
}

#[tokio::test]
async fn noise_beyond_the_end_does_not_move_it() {
    let world = World::new();
    let mut writer = world.open(A).await;
    for number in [3, 4, 7, 15, 31, 32, 63] {
        world.put(writer.volume(), number, "noise").await;
    }
    for (published, end) in [(2, 4), (5, 5), (6, 7), (8, 8)] {
        assert_eq!(publish(&mut writer, published).await.entry.number, EntryNumber(published));
        for hint in [0, 1, 3, 6, 15] {
            assert_eq!(world.reader().await.end(EntryNumber(hint)).await.unwrap(), EntryNumber(end), "hint {hint}");
        }
    }
    assert_eq!(world.open(A).await.newest().number, EntryNumber(9));
}

/// Counterexample 22.
#[tokio::test]
async fn times_grow_even_when_the_clock_goes_back() {
    let world = World::new();
    let mut writer = world.open(A).await;
    let mut proposal = point(&writer, 10);
    let back = Timestamp(5);
    proposal.time = back;
    proposal.slices = (8..=10).map(|s| Slice { sequence: Sequence(s), time: back }).collect();
    let entry = writer.publish(proposal).await.unwrap().entry;
    let times: Vec<u64> = entry.slices.iter().map(|slice| slice.time.0).collect();
    assert_eq!(times, [NOON + 1, NOON + 2, NOON + 3]);
    assert_eq!(entry.time, Timestamp(NOON + 3));
    world.now.store(7, Relaxed);
    assert_eq!(world.open(A).await.newest().time, Timestamp(NOON + 4));
}

#[tokio::test]
async fn a_time_means_the_last_slice_not_after_it() {
    let world = World::new();
    let mut writer = world.open(A).await;
    let reader = world.reader().await;
    assert!(matches!(reader.find(At::Latest).await, Err(ChainError::NoPoint { .. })));
    assert!(matches!(reader.find(At::Time(Timestamp(NOON))).await, Err(ChainError::NoPoint { .. })));
    let at = |second: u64| Timestamp(NOON + second * 1000);
    let mut second = 0;
    // Numbers: 1 open, 2 draft, 3 point (seconds 6–10), 4 noise, 5 point (11–15), 6 draft, 7 pin, 8 point (21–25).
    for (kind, draft) in [
        (EntryKind::Draft, true),
        (EntryKind::Point, false),
        (EntryKind::Point, false),
        (EntryKind::Draft, true),
        (EntryKind::Point, false),
    ] {
        let mut proposal = Proposal { kind, draft, ..point(&writer, second + 5) };
        let seconds = second + 1..=second + 5;
        proposal.slices = seconds.map(|s| Slice { sequence: Sequence(s), time: at(s) }).collect();
        writer.publish(proposal).await.unwrap();
        second += 5;
        match second {
            10 => world.put(writer.volume(), 4, "noise").await,
            20 => world.put_entry(&writer, &world.entry_after(&writer, EntryKind::Pin, 1).await).await,
            _ => {}
        }
    }
    let reader = world.reader().await;
    let find = |at| {
        let reader = reader.clone();
        async move { reader.find(at).await.map(|chosen| (chosen.entry.number.0, chosen.slice, chosen.time)) }
    };
    assert_eq!(find(At::Latest).await.unwrap(), (8, None, at(25)));
    assert_eq!(find(At::Number(EntryNumber(5))).await.unwrap(), (5, None, at(15)));
    for (second, expected) in [
        (6, (3, Some(0), at(6))),
        (9, (3, Some(3), at(9))),
        (10, (3, None, at(10))),
        (13, (5, Some(2), at(13))),
        (15, (5, None, at(15))),
        (17, (5, None, at(15))),
        (20, (5, None, at(15))),
        (24, (8, Some(3), at(24))),
        (25, (8, None, at(25))),
        (9999, (8, None, at(25))),
    ] {
        assert_eq!(find(At::Time(at(second))).await.unwrap(), expected, "second {second}");
        let later = Timestamp(at(second).0 + 999);
        assert_eq!(find(At::Time(later)).await.unwrap(), expected, "before second {}", second + 1);
    }
    let error = find(At::Time(at(5))).await.unwrap_err();
    let (first, newest) = (at(6), at(25));
    assert!(
        matches!(error, ChainError::TooEarly { first: f, newest: n, .. } if (f, n) == (first, newest)),
        "{error:?}"
    );
    assert!(matches!(find(At::Number(EntryNumber(6))).await, Err(ChainError::NotAPoint { draft: true, .. })));
    assert!(matches!(find(At::Number(EntryNumber(9))).await, Err(ChainError::NoEntry { .. })));
    assert!(matches!(find(At::Number(EntryNumber(0))).await, Err(ChainError::NoEntry { .. })));
    assert!(matches!(find(At::Number(EntryNumber(4))).await, Err(ChainError::Format { .. })));
}

#[tokio::test]
async fn a_reader_says_what_is_missing() {
    let world = World::new();
    let no_volume = ChainReader::open(&world.remote, &world.name).await.err().unwrap();
    assert!(matches!(no_volume, ChainError::NoVolume { .. }), "{no_volume:?}");
    world.remote.put_new("names/disk0", VolumeId([7; 16]).to_name_object().into()).await.unwrap();
    let no_object = ChainReader::open(&world.remote, &world.name).await.err().unwrap();
    assert!(matches!(no_object, ChainError::NoVolumeObject { .. }), "{no_object:?}");
    world.remote.put_new("names/disk1", "cut of".into()).await.unwrap();
    let format = ChainReader::open(&world.remote, &"disk1".parse().unwrap()).await.err().unwrap();
    assert!(matches!(format, ChainError::Format { .. }), "{format:?}");
}

#[tokio::test]
async fn many_entries_are_read_in_order_through_faults() {
    let world = World::new();
    let mut writer = world.open(A).await;
    for sequence in 1..200 {
        publish(&mut writer, sequence).await;
    }
    let reader = world.reader().await;
    world.store.seeded(1, 4);
    let entries = reader.entries(50..=150).await.unwrap();
    assert!(entries.iter().map(|entry| entry.number.0).eq(50..=150));
    assert!(matches!(reader.entries(150..=250).await, Err(ChainError::NoEntry { .. })));
}

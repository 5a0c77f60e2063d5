//! Who opens a chain has it, and whoever had it is fenced.

use super::*;

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

//! An entry is published once, at the next number, whatever becomes of the answers.

use super::*;

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

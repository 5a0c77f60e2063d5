//! Where the chain ends, which entry a time means, and what is missing.

use super::*;

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
async fn entries_that_somebody_deleted_hide_none_behind_them() {
    let world = World::new();
    let mut writer = world.open(A).await;
    for sequence in 1..40 {
        publish(&mut writer, sequence).await;
    }
    let volume = writer.volume();
    for (first, last) in [(39, 39), (8, 8), (16, 20), (1, 3), (30, 33)] {
        for number in first..=last {
            world.remove(volume, number).await;
        }
        let reader = world.reader().await;
        for hint in [0, 1, first, last, 25, 40, 1000] {
            assert_eq!(reader.end(EntryNumber(hint)).await.unwrap(), EntryNumber(40), "without {first} to {last}");
        }
        assert_eq!(reader.find(At::Latest).await.unwrap().entry.number, EntryNumber(40));
        assert!(matches!(reader.find(At::Number(EntryNumber(first))).await, Err(ChainError::NoEntry { .. })));
        assert_eq!(reader.find(At::Number(EntryNumber(10))).await.unwrap().entry.sequence, Sequence(9));
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

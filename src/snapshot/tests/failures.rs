//! What the store refuses or cannot read shows in points as what it holds.

use super::*;

/// Fault test 11.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_write_shows_in_points_as_what_the_store_holds() {
    let world = World::new(SIZE);
    let gateway = world.start().await;
    gateway.volume.write(0, SplitMix64(1).bytes(256 * KIB as usize), false).await.unwrap();
    gateway.settled().await;
    let eio = DiskError::Io(Errno::EIO);
    world.store.inject(Fault::halfway(Kind::Write, eio).at(Span::at(64 * KIB, 64 * KIB)).once());
    world.store.inject(Fault::instead(Kind::Write, eio).at(Span::at(160 * KIB, 512)).once());
    let answer = gateway.volume.write(64 * KIB, SplitMix64(2).bytes(32 * KIB as usize), false).await;
    assert_eq!(answer, Err(eio), "the client is told what the store said");
    let answer = gateway.volume.write(160 * KIB + 3, SplitMix64(3).bytes(600), false).await;
    assert_eq!(answer, Err(eio));
    load(&gateway.volume, 4, 4, 40).await;
    gateway.settles_current(&world).await;
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
    gateway.volume.write(0, SplitMix64(1).bytes(4096), false).await.unwrap_err();
    gateway.volume.write(MIB, SplitMix64(2).bytes(4096), false).await.unwrap();
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
    gateway.volume.write(bad.start, SplitMix64(6).bytes(4096), false).await.unwrap();
    world.store.inject(Fault::instead(Kind::Write, eio).at(bad));
    world.store.inject(Fault::instead(Kind::Read, eio).at(bad));
    gateway.volume.write(bad.start, SplitMix64(1).bytes(4096), false).await.unwrap_err();
    gateway.volume.write(MIB, SplitMix64(2).bytes(4096), false).await.unwrap();
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_away_is_not_unreadable() {
    let world = World::new(SIZE);
    world.store.write(0, SplitMix64(7).bytes(8 * MIB as usize), false).await.unwrap();
    let gateway = world.start().await;
    gateway.settled().await;
    let away = DiskError::Refused(Errno::ESHUTDOWN);
    for kind in [Kind::Read, Kind::Write, Kind::Extents] {
        world.store.inject(Fault::instead(kind, away));
    }
    world.store.inject(Fault::instead(Kind::Write, DiskError::Lost).at(Span::at(0, 4096)).once());
    let before = world.newest_point().await.number;
    let _ = gateway.volume.write(0, SplitMix64(1).bytes(4096), false).await;
    world.store.come_back();
    tokio::time::sleep(Duration::from_secs(5)).await;
    for entry in world.entries().await.into_iter().filter(|entry| entry.number > before) {
        let (_, _, unreadable) = world.content(&entry, None).await;
        assert_eq!(unreadable, [], "entry {} of kind {:?}", entry.number, entry.kind);
    }
    world.store.heal();
    gateway.settles_current(&world).await;
}

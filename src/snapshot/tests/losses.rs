//! A store that forgets what it had answered for, and says so or not.

use super::*;

/// Fault test 13.
/// Counterexample 1c.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_was_lost_is_compared_in_full() {
    let world = World::new(SIZE);
    let gateway = world.start().await;
    load(&gateway.volume, 1, 4, 30).await;
    gateway.settled().await;
    // It forgets what was not flushed, and says only that it was away.
    world.store.inner().write(7 * MIB, SplitMix64(3).bytes(4096), false).await.unwrap();
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

/// Counterexample 1c.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_point_shows_a_write_after_a_silent_loss_beside_what_was_lost() {
    let world = World::new(SIZE);
    let gateway = world.start().await;
    gateway.settled().await;
    for round in 1..8 {
        let (lost, later) = (SplitMix64(round).bytes(4096), SplitMix64(100 + round).bytes(4096));
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_point_is_made_without_the_last_piece_of_a_scan() {
    let world = World::new(SIZE);
    for megabyte in 0..24 {
        world.store.write(megabyte * MIB, SplitMix64(megabyte).bytes(MIB as usize), false).await.unwrap();
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

/// Counterexample 1d.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_flush_makes_everything_suspect() {
    let world = World::new(SIZE);
    let gateway = world.start().await;
    gateway.volume.write(0, SplitMix64(3).bytes(4096), false).await.unwrap();
    gateway.settled().await;
    world.store.inject(Fault::instead(Kind::Flush, DiskError::Io(Errno::EIO)).once());
    world.store.inner().write(0, SplitMix64(4).bytes(4096), false).await.unwrap();
    assert_eq!(gateway.volume.flush().await, Err(DiskError::Io(Errno::EIO)));
    assert_ne!(gateway.volume.state(), State::Shadowing);
    gateway.settles_current(&world).await;
}

/// A disk tells of what it could not write once, and here told us.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_of_our_own_flush_waits_for_a_client_that_hears_it() {
    let world = World::new(SIZE);
    let gateway = world.start().await;
    gateway.settled().await;
    gateway.until_cold().await;
    let flushes = world.store.calls(Kind::Flush);
    world.store.inject(Fault::instead(Kind::Flush, DiskError::Io(Errno::EIO)).once());
    gateway.volume.write(0, SplitMix64(3).bytes(4096), false).await.unwrap();
    tokio::time::timeout(PATIENCE, async {
        while world.store.calls(Kind::Flush) == flushes {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .expect("a flush of our own");
    // Whose store is lost is disconnected, and hears nothing.
    world.store.inject(Fault::instead(Kind::Flush, DiskError::Lost));
    assert_eq!(gateway.volume.flush().await, Err(DiskError::Lost));
    world.store.heal();
    assert_eq!(gateway.volume.flush().await, Err(DiskError::Io(Errno::EIO)));
    assert_eq!(gateway.volume.flush().await, Ok(()));
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
    gateway.volume.write(3 * REGION, SplitMix64(3).bytes(4096), false).await.unwrap();
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
    world.store.inner().write(3 * REGION, SplitMix64(4).bytes(4096), false).await.unwrap();
    let gateway = world.start().await;
    gateway.settles_current(&world).await;
}

//! A change that depends on what stands there: one change to others, to the log and in the copy.

use super::*;

/// Writes `to` where it finds `from`.
fn exchange(from: u8, to: u8) -> crate::disk::Rewrite {
    Box::new(move |found: Bytes| found.iter().all(|&byte| byte == from).then(|| vec![to; found.len()].into()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_that_exchange_the_same_block_exactly_one_wins() {
    let world = World::new(SIZE);
    let gateway = world.start().await;
    gateway.settled().await;
    // Both read before either writes, unless the range is held in between.
    world.store.inject(Fault::delay(Kind::Write, Duration::from_millis(2)));
    for round in 0..50 {
        let both = [2 * round + 1, 2 * round + 2].map(|mark| {
            let volume = gateway.volume.clone();
            let was = if round == 0 { 0 } else { 201 };
            tokio::spawn(async move { volume.rewrite(MIB, 512, exchange(was, mark), false).await.unwrap() })
        });
        let [first, second] = both;
        let won = [first.await.unwrap(), second.await.unwrap()];
        assert_eq!(won.iter().filter(|won| **won).count(), 1, "round {round}: {won:?}");
        gateway.volume.write(MIB, Bytes::from(vec![201; 512]), false).await.unwrap();
    }
    world.store.heal();
    gateway.settles_current(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rewrite_that_makes_nothing_leaves_no_record_and_one_that_does_is_in_the_next_point() {
    let world = World::new(SIZE);
    let gateway = world.start().await;
    gateway.settled().await;
    let before = gateway.volume.newest_logged().expect("changes are logged");
    assert!(!gateway.volume.rewrite(MIB, 4096, exchange(9, 1), false).await.unwrap());
    world.store.inject(Fault::instead(Kind::Read, DiskError::Io(Errno::EIO)).once());
    let unread = gateway.volume.rewrite(MIB, 4096, exchange(0, 1), false).await;
    assert_eq!(unread, Err(DiskError::Io(Errno::EIO)));
    assert_eq!(gateway.volume.newest_logged(), Some(before), "nothing was written, and yet there is a record");
    assert!(gateway.volume.rewrite(MIB, 4096, exchange(0, 1), true).await.unwrap());
    assert!(gateway.volume.newest_logged() > Some(before));
    gateway.settled().await;
    let (point, ..) = world.content(world.newest_point().await.as_ref(), None).await;
    assert_eq!(&point[MIB as usize..MIB as usize + 4096], &[1; 4096]);
    gateway.settles_current(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rewrite_that_nobody_waits_for_goes_on_and_gives_its_range_back() {
    let world = World::new(SIZE);
    let gateway = world.start().await;
    gateway.settled().await;
    let gate = Gate::new();
    world.store.inject(Fault::hold(Kind::Read, &gate).at(Span::at(MIB, 512)).once());
    let volume = gateway.volume.clone();
    let begun = tokio::spawn(async move { volume.rewrite(MIB, 512, exchange(0, 7), false).await });
    gate.arrived(1).await;
    begun.abort();
    gate.open();
    // Waits behind it for the range.
    assert!(gateway.volume.rewrite(MIB, 512, exchange(7, 8), false).await.unwrap(), "the first was taken back");
    gateway.settles_current(&world).await;
}

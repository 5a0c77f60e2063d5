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

/// The lock of a cluster's file system: compared and written by many hosts at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_that_compare_and_write_one_block_through_a_unit_never_both_win_and_the_copy_shows_the_last() {
    use crate::scsi::{InitiatorPort, Status, Unit, UnitSettings};
    const HOSTS: u8 = 4;
    const ROUNDS: u32 = 40;
    let world = World::new(SIZE);
    let gateway = world.start().await;
    gateway.settled().await;
    let unit = Unit::new(Arc::new(gateway.volume.clone()), UnitSettings::example("iqn.2026-11.example:disk0")).unwrap();
    let hosts = (0..HOSTS).map(|host| {
        let nexus = unit.attach(InitiatorPort { name: format!("iqn.h{host}"), isid: [host; 6], target_port: 1 });
        assert!(nexus.admit(0, &[0; 6]).is_err(), "told of its start");
        tokio::spawn(async move {
            let mut won = 0;
            let mut count: u32 = 0;
            while count < ROUNDS {
                let block = |count: u32| count.to_be_bytes().repeat(128);
                let cdb = [0x89, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 1, 0, 0];
                let data = [block(count), block(count + 1)].concat();
                let answer = nexus.execute(nexus.admit(0, &cdb).unwrap(), data.into()).await.unwrap();
                match answer.status {
                    Status::Good => won += 1,
                    _ => assert_eq!(answer.sense.unwrap().code, 0x1D00, "{answer:?}"),
                }
                count += 1;
                tokio::task::yield_now().await;
            }
            won
        })
    });
    let won = futures_util::future::join_all(hosts.collect::<Vec<_>>()).await;
    let won: u32 = won.into_iter().map(|won| won.unwrap()).sum();
    let found = gateway.volume.read(16 * 512, 4).await.unwrap();
    assert_eq!(u32::from_be_bytes(found[..].try_into().unwrap()), won, "a count was lost, or counted twice");
    assert!(won > 0);
    gateway.settles_current(&world).await;
}

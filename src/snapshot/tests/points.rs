//! A point is the volume as it was at one moment, whatever clients do, and stays so.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_copy_under_load_ends_in_a_point_that_equals_the_store() {
    let world = World::new(SIZE);
    let mut random = SplitMix64(1);
    for offset in [0, 5 * MIB, 9 * MIB + 512, 20 * MIB] {
        world.store.write(offset, random.bytes(2 * MIB as usize), false).await.unwrap();
    }
    let gateway = world.start().await;
    load(&gateway.volume, 2, 8, 150).await;
    gateway.settled().await;
    world.assert_current().await;
    load(&gateway.volume, 3, 8, 50).await;
    gateway.settled().await;
    world.assert_current().await;
    let left = gateway.leave().await.expect("a clean stop");
    let last = world.newest_point().await;
    assert_eq!((last.number, last.leaving), (left.entry, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_is_a_disk_like_the_one_beneath_it_and_its_copy_follows() {
    let world = World::new(3 * MIB + 700);
    let gateway = world.start().await;
    conformance::check(Arc::new(gateway.volume.clone())).await;
    gateway.settles_current(&world).await;
}

/// On one thread, whose clock the test sets forward.
/// Counterexample 22.
#[tokio::test]
async fn an_idle_volume_makes_an_empty_point_each_quarter_of_an_hour() {
    async fn later(minutes: u64) {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(minutes * 60)).await;
        tokio::time::resume();
        // The publisher looks, and puts what it has to say.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let world = World::new(4 * MIB);
    let gateway = world.start().await;
    gateway.volume.write(0, SplitMix64(1).bytes(4096), false).await.unwrap();
    gateway.settled().await;
    later(0).await;
    let before = world.newest_point().await;
    later(14).await;
    assert_eq!(world.newest_point().await.number, before.number, "nothing was to be said yet");
    later(2).await;
    let idle = world.newest_point().await;
    assert_eq!((idle.number, idle.sequence), (before.number.next(), before.sequence));
    assert!(idle.own.is_empty());
    later(14).await;
    assert_eq!(world.newest_point().await.number, idle.number);
    later(2).await;
    assert_eq!(world.newest_point().await.number, idle.number.next());
    gateway.leave().await.expect("a clean stop");
}

/// Fault test 37.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_slice_is_the_volume_after_a_prefix_of_the_writes() {
    let world = World::new(4 * MIB);
    let gateway = world.start().await;
    gateway.settled().await;
    let base = world.newest_point().await;
    // One client at depth 1: write n fills its place with n, over the same few blocks again and again.
    world.bucket.every(Call::Create, "chain/", crate::remote::faulty::Fault::Delay(Duration::from_millis(2500)));
    let mut history = vec![vec![0; 4 * MIB as usize]];
    let mut random = SplitMix64(11);
    let begun = std::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(6) {
        let n = history.len();
        let offset = random.below(64) * 8 * KIB;
        let bytes = Bytes::from(vec![n as u8; (random.below(32) as usize + 1) * 512]);
        gateway.volume.write(offset, bytes.clone(), false).await.unwrap();
        let mut state = history[n - 1][..MIB as usize].to_vec();
        state[offset as usize..offset as usize + bytes.len()].copy_from_slice(&bytes);
        history.push(state);
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    world.bucket.heal();
    gateway.settled().await;
    let mut slices = 0;
    for entry in world.entries().await {
        if entry.kind != EntryKind::Point || entry.number <= base.number {
            continue;
        }
        for (at, slice) in entry.slices.iter().enumerate() {
            let n = (slice.sequence.0 - base.sequence.0) as usize;
            let (bytes, ..) = world.content(&entry, Some(at)).await;
            assert!(
                bytes[..MIB as usize] == history[n][..MIB as usize],
                "slice {at} of entry {} is not write {n}",
                entry.number
            );
            slices += 1;
        }
    }
    assert!(slices >= 4, "only {slices} slices were made");
    gateway.die().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_stay_short_and_old_points_stay_what_they_were() {
    let world = World::new(SIZE);
    let gateway = world.start().await;
    gateway.settled().await;
    let mut random = SplitMix64(3);
    let mut middle = None;
    for round in 0..44 {
        let offset = random.below(SIZE / SECTOR - 64) * SECTOR;
        gateway.volume.write(offset, random.bytes(4096), false).await.unwrap();
        gateway.settled().await;
        if round == 20 {
            middle = Some((world.newest_point().await, world.store_bytes().await));
        }
    }
    let newest = world.newest_point().await;
    assert!(!newest.levels[1].is_empty(), "nothing was merged in {} points", newest.number);
    assert!(newest.levels[0].len() < 32, "{} packs are listed", newest.levels[0].len());
    world.assert_current().await;
    let (point, store) = middle.unwrap();
    assert_same(&world.content(&point, None).await.0, &store, &[]);
    gateway.die().await;
}

//! A log that is full or rots costs no client anything, and no point its truth.

use super::*;

/// Fault test 18.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_log_costs_no_client_anything_and_is_followed_by_a_resync() {
    let mut world = World::new(256 * MIB);
    world.log_size = 128 * MIB;
    let gateway = world.start().await;
    gateway.settled().await;
    let gate_key = "packs/";
    world.bucket.every(Call::Create, gate_key, crate::remote::faulty::Fault::Status(503));
    let mut random = SplitMix64(5);
    for megabyte in 0..200 {
        gateway.volume.write(megabyte * MIB, random.bytes(MIB as usize), false).await.unwrap();
    }
    gateway.until(State::Overflowed).await;
    assert!(!gateway.volume.lag().age.is_zero(), "the lag is known");
    world.bucket.heal();
    load(&gateway.volume, 6, 4, 50).await;
    gateway.settles_current(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_writes_faster_than_the_uplink_takes_it_is_delayed_while_the_log_fills() {
    let mut world = World::new(256 * MIB);
    world.log_size = 256 * MIB;
    let most = Duration::from_secs(1);
    world.settings.throttle = Some(most);
    let gateway = world.start().await;
    gateway.settled().await;
    world.refuse_puts();
    let mut random = SplitMix64(7);
    let mut took = Vec::new();
    for megabyte in 0..256 {
        let begun = tokio::time::Instant::now();
        gateway.volume.write(megabyte * MIB, random.bytes(MIB as usize), false).await.unwrap();
        took.push(begun.elapsed());
        // What is delayed is not refused.
        if took.iter().sum::<Duration>() > 3 * most {
            break;
        }
    }
    assert_eq!(gateway.volume.state(), State::Shadowing, "it overflowed after {} MiB", took.len());
    assert!(took.len() > 100, "delayed before the log was half full: {} MiB", took.len());
    assert!(took.last().is_some_and(|last| *last > most / 50), "not delayed: {:?}", took.last());
    world.bucket.heal();
    gateway.settles_current(&world).await;
}

/// A store that is lost again and again, as behind a bad cable: each time all of its hot regions would be read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_that_is_interrupted_again_and_again_pauses_before_it_resyncs() {
    let mut world = World::new(256 * MIB);
    world.scan_rate = NonZeroU64::new(8 * MIB);
    let gateway = world.start().await;
    gateway.settled().await;
    let end = tokio::time::Instant::now() + Duration::from_secs(5);
    let mut resyncs = 0;
    while tokio::time::Instant::now() < end {
        if gateway.volume.state() == State::Resyncing {
            resyncs += 1;
        }
        if gateway.volume.state() != State::Overflowed {
            // Some seconds of work for a resync, which does not come to its end.
            for region in (0..256 * MIB).step_by(16 * MIB as usize) {
                gateway.volume.write(region, SplitMix64(region).bytes(4096), false).await.unwrap();
            }
            world.store.come_back();
            assert!(gateway.volume.has_come_back());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Without pauses it is one for each look of the publisher's.
    assert!((1..=3).contains(&resyncs), "{resyncs} resyncs in 5 s");
    gateway.settles_current(&world).await;
}

/// Fault test 22.
/// Counterexample 20.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_rots_is_replaced_by_what_the_store_holds() {
    let world = World::new(SIZE);
    let gateway = world.start().await;
    gateway.settled().await;
    let before = world.newest_point().await;
    // The next entry waits, so that what is logged meanwhile is read back from the log's files.
    world.bucket.every(Call::Create, "chain/", crate::remote::faulty::Fault::Status(503));
    gateway.volume.write(MIB, SplitMix64(2).bytes(4096), false).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let payload = Bytes::from(vec![0xa7; 64 * KIB as usize]);
    gateway.volume.write(2 * MIB, payload.clone(), false).await.unwrap();
    while !gateway.volume.is_quiet() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut rotten = 0;
    for file in std::fs::read_dir(world.folder.path().join("log")).unwrap() {
        let path = file.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(4096).position(|window| window.iter().all(|&byte| byte == 0xa7)) {
            bytes[at + 100] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            rotten += 1;
        }
    }
    assert_eq!(rotten, 1);
    // Part of the range has changed since, so that the store can no longer say what it held; and then something else.
    let (over, beside) = (Bytes::from(vec![0xb8; 512]), Bytes::from(vec![0xc9; 512]));
    gateway.volume.write(2 * MIB + 8 * KIB, over.clone(), false).await.unwrap();
    gateway.volume.write(3 * MIB, beside.clone(), false).await.unwrap();
    world.bucket.heal();
    gateway.settled().await;
    world.assert_current().await;
    let mut last = payload.to_vec();
    last[8 * KIB as usize..8 * KIB as usize + 512].copy_from_slice(&over);
    for entry in
        world.entries().await.into_iter().filter(|entry| entry.kind == EntryKind::Point && entry.number > before.number)
    {
        for slice in 0..entry.slices.len() {
            let (bytes, ..) = world.content(&entry, Some(slice)).await;
            let held = |at: u64, length: usize| &bytes[at as usize..at as usize + length];
            let (first, later) = (held(2 * MIB, payload.len()), held(3 * MIB, 512));
            let zero = |bytes: &[u8]| bytes.iter().all(|&byte| byte == 0);
            let before_the_last = (zero(first) || first == &payload[..] || first == last) && zero(later);
            let after = first == last && later == &beside[..];
            assert!(before_the_last || after, "slice {slice} of entry {} is what the store never was", entry.number);
        }
    }
    gateway.die().await;
}

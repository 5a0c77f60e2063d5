//! After a stop or a crash as much is read again as may differ, and no more.

use super::*;

/// Counterexample 21.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_clean_stop_a_sample_is_compared_and_after_a_crash_only_what_differs_is_uploaded() {
    let world = World::new(160 * MIB);
    for megabyte in 0..160 {
        world.store.write(megabyte * MIB, SplitMix64(megabyte).bytes(MIB as usize), false).await.unwrap();
    }
    let gateway = world.start().await;
    gateway.settled().await;
    let left = gateway.leave().await.expect("a clean stop");

    let reads = world.store.calls(Kind::Read);
    let gateway = world.start_expecting(Some(left.entry)).await;
    gateway.volume.write(3 * MIB, SplitMix64(8).bytes(4096), false).await.unwrap();
    gateway.settled().await;
    let read = world.store.calls(Kind::Read) - reads;
    assert!((60..70).contains(&read), "a clean start read {read} pieces of a megabyte");
    world.assert_current().await;
    // In the log, and never published.
    gateway.volume.write(4 * MIB, SplitMix64(9).bytes(4096), false).await.unwrap();
    gateway.die().await;

    let gateway = world.start().await;
    gateway.settled().await;
    world.assert_current().await;
    let uploaded = gateway.report.uploaded_bytes();
    assert!(uploaded < 64 * KIB, "{uploaded} bytes were uploaded for 4 KiB that differed");
    gateway.die().await;
}

/// Fault test 10.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_whose_answer_died_with_the_gateway_is_not_made_twice() {
    let world = World::new(SIZE);
    let gateway = world.start().await;
    gateway.settled().await;
    let before = world.newest_point().await;
    // It is put, and nobody hears of it: what it holds is still in the log.
    world.bucket.every(Call::Create, "chain/", crate::remote::faulty::Fault::LostAnswer);
    world.bucket.every(Call::Get, "chain/", crate::remote::faulty::Fault::Status(503));
    let puts = world.bucket.calls(Call::Create).len();
    let mut seed = SplitMix64(2);
    for place in 0..32 {
        let noise: Bytes = (0..512).flat_map(|_| seed.below(u64::MAX).to_le_bytes()).collect();
        gateway.volume.write(place * 64 * KIB, noise, false).await.unwrap();
    }
    while !world.bucket.calls(Call::Create)[puts..].iter().any(|key| key.contains("chain/")) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    gateway.die().await;
    world.bucket.heal();
    let landed = world.newest_point().await;
    assert_eq!(landed.number, before.number.next());
    assert!(landed.new_bytes > 4 * 4096, "{landed:?}");

    let gateway = world.start().await;
    gateway.settled().await;
    world.assert_current().await;
    let entries = world.entries().await;
    let unheard = 32_u64.saturating_sub(landed.new_bytes / 4096);
    let again: u64 = entries.iter().filter(|entry| entry.number > landed.number).map(|entry| entry.new_bytes).sum();
    // The last operation that an entry shows is published once more: it may have been read back since.
    assert!(again < (unheard + 2) * 4096, "{again} bytes were published again: {entries:?}");
    gateway.die().await;
}

/// Counterexample 1a.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_costs_the_hot_regions_and_the_log_covers_the_others() {
    let world = World::new(256 * MIB);
    world.store.write(0, SplitMix64(7).bytes(200 * MIB as usize), false).await.unwrap();
    let gateway = world.start().await;
    gateway.settled().await;
    gateway.until_cold().await;
    // Logged, flushed and cooled while the remote is away: only the log and the marks know of it.
    world.bucket.every(Call::Create, "", crate::remote::faulty::Fault::Status(503));
    let diverged = [5, 27, 55].map(|region| region * REGION + 4096);
    for offset in diverged {
        gateway.volume.write(offset, SplitMix64(offset).bytes(8192), false).await.unwrap();
    }
    gateway.until_cold().await;
    gateway.volume.write(40 * REGION, SplitMix64(3).bytes(4096), false).await.unwrap();
    let hot = gateway.volume.hot_bytes();
    assert!((REGION..=16 * REGION).contains(&hot), "{hot} bytes are hot");
    gateway.die().await;

    world.bucket.heal();
    // The store forgets what was not flushed, and the log does not.
    world.store.inner().write(40 * REGION, SplitMix64(4).bytes(4096), false).await.unwrap();
    let gateway = world.start().await;
    assert_eq!(gateway.volume.state(), State::Replaying);
    for region in 0..4 {
        gateway.volume.write(region * REGION, SplitMix64(region).bytes(4096), false).await.unwrap();
    }
    gateway.settled().await;
    world.assert_current().await;
    let (reread, changed) = (gateway.volume.reread(), 4 * REGION);
    assert!(reread <= hot + changed, "{reread} bytes were read again, and {hot} were hot");
    gateway.die().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_that_went_on_elsewhere_makes_a_clean_start_compare() {
    let world = World::new(SIZE);
    let gateway = world.start().await;
    gateway.volume.write(0, SplitMix64(7).bytes(4096), false).await.unwrap();
    gateway.settled().await;
    let left = gateway.leave().await.expect("a clean stop");
    // The store changes while the mark that says otherwise names an entry that is not the newest.
    world.store.write(MIB, SplitMix64(8).bytes(4096), false).await.unwrap();
    let gateway = world.start_expecting(Some(EntryNumber(left.entry.0 - 1))).await;
    gateway.first_point().await;
    gateway.settles_current(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_in_the_middle_of_a_first_copy_goes_on_where_it_was() {
    let world = World::new(64 * MIB);
    world.store.write(0, SplitMix64(7).bytes(60 * MIB as usize), false).await.unwrap();
    world.store.inject(Fault::delay(Kind::Read, Duration::from_millis(30)));
    let gateway = world.start().await;
    while gateway.volume.scan_front() < 8 * MIB {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    gateway.volume.write(MIB, SplitMix64(8).bytes(4096), false).await.unwrap();
    gateway.volume.write(62 * MIB, SplitMix64(8).bytes(4096), false).await.unwrap();
    let volume = gateway.volume.clone();
    let left = gateway.leave().await.expect("a clean stop");
    let front = volume.scan_front();
    assert_eq!(volume.hot_bytes(), 64 * MIB - front / REGION * REGION, "all that was not scanned, and no more");
    drop(volume);
    assert!((8 * MIB..60 * MIB).contains(&front), "{front}");
    let newest = world.entries().await.pop().unwrap();
    assert_eq!((newest.kind, newest.number, newest.leaving), (EntryKind::Draft, left.entry, true));

    world.store.heal();
    let gateway = world.start_expecting(Some(left.entry)).await;
    gateway.settled().await;
    let read = gateway.volume.reread();
    assert!(read <= 64 * MIB - front / REGION * REGION, "{read} bytes were read for what was left");
    world.assert_current().await;
    gateway.die().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_is_untouched_until_its_first_change() {
    let world = World::new(SIZE);
    let gateway = world.start().await;
    assert!(!gateway.volume.is_untouched(), "a first copy is under way");
    gateway.settled().await;
    let left = gateway.leave().await.expect("a clean stop");
    let gateway = world.start_expecting(Some(left.entry)).await;
    assert!(gateway.volume.is_untouched());
    gateway.volume.read(0, 512).await.unwrap();
    gateway.volume.flush().await.unwrap();
    assert!(gateway.volume.is_untouched());
    gateway.volume.write(0, SplitMix64(1).bytes(512), false).await.unwrap();
    assert!(!gateway.volume.is_untouched());
    gateway.die().await;
}

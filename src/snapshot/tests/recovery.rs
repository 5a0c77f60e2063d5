//! What a gateway comes back to: logs and marks that are not of the same time, and a store that is not done yet.

use super::*;

/// Long enough for a resync on a slow machine, so that what comes late comes within it.
const QUARANTINE: Duration = Duration::from_secs(10);

/// Copies the state folder, as a snapshot of the machine would.
fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// One region was written and flushed, and no point has it.
async fn die_with_a_region_that_only_the_log_covers(world: &World) {
    let gateway = world.start().await;
    gateway.settled().await;
    gateway.until_cold().await;
    world.refuse_puts();
    gateway.volume.write(5 * REGION, SplitMix64(1).bytes(8192), false).await.unwrap();
    gateway.until_cold().await;
    gateway.die().await;
    world.bucket.heal();
}

async fn recovers_by_reading_one_region(world: &World) {
    let gateway = world.start().await;
    gateway.settled().await;
    assert!((1..=REGION).contains(&gateway.volume.reread()), "{} bytes were read again", gateway.volume.reread());
    gateway.settles_current(world).await;
}

/// Counterexample 2.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_lost_log_covered_is_read_again() {
    let world = World::new(256 * MIB);
    die_with_a_region_that_only_the_log_covers(&world).await;
    let segments = std::fs::read_dir(world.folder.path().join("log")).unwrap();
    for segment in segments.map(|entry| entry.unwrap().path()) {
        std::fs::remove_file(segment).unwrap();
    }
    recovers_by_reading_one_region(&world).await;
}

/// Counterexample 2.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_lost_log_covered_is_read_again_though_the_first_start_after_it_dies() {
    let world = World::new(64 * MIB);
    die_with_a_region_that_only_the_log_covers(&world).await;
    let log = world.folder.path().join("log");
    std::fs::remove_dir_all(&log).unwrap();

    // It makes a new log, and dies before its marks name that one.
    let settings = writelog::Settings { size: world.log_size, volumes: 1, discard: true };
    let there = writelog::Pool::look(&log, settings).unwrap();
    let marks = marks::open_io(&world.folder.path().join("marks")).unwrap();
    let mut found = Found::read("disk0", VolumeId([9; 16]), world.store.geometry().size, marks).unwrap();
    found.log_found(there).unwrap();
    assert_eq!(found.hot(), 1, "the region is hot before there is a new log");
    drop(writelog::Pool::open(&log, settings).unwrap());
    drop(found);

    recovers_by_reading_one_region(&world).await;
}

/// Counterexample 18.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn marks_and_log_that_were_set_back_together_are_found_out_by_the_chain() {
    let mut world = World::new(64 * MIB);
    let gateway = world.start().await;
    gateway.volume.write(0, SplitMix64(1).bytes(4096), false).await.unwrap();
    gateway.settled().await;
    gateway.until_cold().await;
    gateway.leave().await.expect("a clean stop");
    let (now, then) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let old = std::mem::replace(&mut world.folder, now);
    copy_folder(old.path(), then.path());
    copy_folder(old.path(), world.folder.path());

    let gateway = world.start().await;
    gateway.settled().await;
    for round in 0..4 {
        gateway.volume.write(4 * REGION, SplitMix64(round).bytes(4096), false).await.unwrap();
        gateway.settled().await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // Only the marks that are taken back know of this one.
    world.refuse_puts();
    gateway.volume.write(9 * REGION, SplitMix64(9).bytes(4096), false).await.unwrap();
    gateway.die().await;
    world.bucket.heal();
    world.folder = then;

    let gateway = world.start().await;
    gateway.settled().await;
    world.until_current().await;
    gateway.die().await;
}

/// Counterexample 10.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_an_old_connection_still_carries_out_is_found_when_it_can_do_so_no_more() {
    let mut world = World::new(SIZE);
    world.settings.quarantine = Some(QUARANTINE);
    let gateway = world.start().await;
    let old = SplitMix64(1).bytes(4096);
    gateway.volume.write(9 * MIB, old.clone(), false).await.unwrap();
    gateway.settled().await;
    gateway.until_cold().await;

    let gate = Gate::new();
    world.store.inject(Fault::lost_until(Kind::Write, &gate).at(Span::at(9 * MIB, 4096)).once());
    assert_eq!(gateway.volume.write(9 * MIB, SplitMix64(2).bytes(4096), false).await, Err(DiskError::Lost));
    world.store.come_back();
    gateway.settled().await;
    let (point, ..) = world.content(world.newest_point().await.as_ref(), None).await;
    assert_eq!(point[9 * MIB as usize..][..4096], old, "it was read back before the ghost came");
    assert!(gateway.volume.hot_bytes() > 0, "it has cooled, though an old connection may still write");
    gate.open();
    world.until_current().await;
    assert_eq!(world.store_bytes().await[9 * MIB as usize..][..4096], SplitMix64(2).bytes(4096));
    gateway.die().await;
}

/// Counterexample 10, when the gateway is stopped in between, with everything published.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_before_an_old_connection_is_over_leaves_what_it_may_still_write_to_the_next_start() {
    let mut world = World::new(SIZE);
    world.settings.quarantine = Some(QUARANTINE);
    let gateway = world.start().await;
    gateway.volume.write(9 * MIB, SplitMix64(1).bytes(4096), false).await.unwrap();
    gateway.settled().await;
    gateway.until_cold().await;

    let gate = Gate::new();
    world.store.inject(Fault::lost_until(Kind::Write, &gate).at(Span::at(9 * MIB, 4096)).once());
    assert_eq!(gateway.volume.write(9 * MIB, SplitMix64(2).bytes(4096), false).await, Err(DiskError::Lost));
    world.store.come_back();
    gateway.settled().await;
    let gateway = match gateway.leave().await {
        Some(left) => world.start_expecting(Some(left.entry)).await,
        None => world.start().await,
    };
    gateway.settled().await;
    world.assert_current().await;
    gate.open();
    world.until_current().await;
    gateway.die().await;
}

/// Counterexample 10, for the gateway's own end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_a_dead_gateway_left_with_the_store_is_found_when_it_can_come_no_more() {
    let mut world = World::new(SIZE);
    world.settings.quarantine = Some(QUARANTINE);
    let gateway = world.start().await;
    gateway.settled().await;
    gateway.volume.write(9 * MIB, SplitMix64(1).bytes(4096), false).await.unwrap();
    gateway.die().await;
    let gateway = world.start().await;
    gateway.settled().await;
    world.assert_current().await;
    world.store.inner().write(9 * MIB, SplitMix64(2).bytes(4096), false).await.unwrap();
    world.until_current().await;
    gateway.die().await;
}

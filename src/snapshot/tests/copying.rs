//! What a copy costs, what it leaves out, and what a point rests on.

use object_store::ObjectStoreExt;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scan_reads_no_faster_than_it_may() {
    let mut world = World::new(64 * MIB);
    world.store.write(0, SplitMix64(7).bytes(64 * MIB as usize), false).await.unwrap();
    world.scan_rate = NonZeroU64::new(MIB);
    let gateway = world.start().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let front = gateway.volume.scan_front();
    assert!(front <= 8 * MIB, "{front} bytes were read in two seconds");
    gateway.leave().await.expect("a clean stop");
}

/// Counterexample 6.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_ahead_of_a_first_copy_use_up_no_log() {
    let mut world = World::new(256 * MIB);
    world.log_size = 128 * MIB;
    world.scan_rate = NonZeroU64::new(MIB);
    world.store.write(0, SplitMix64(7).bytes(32 * MIB as usize), false).await.unwrap();
    let gateway = world.start().await;
    gateway.until(State::Resyncing).await;
    // Nothing frees the log now.
    world.refuse_puts();
    for megabyte in 40..250 {
        gateway.volume.write(megabyte * MIB, SplitMix64(megabyte).bytes(MIB as usize), false).await.unwrap();
    }
    assert_eq!(gateway.volume.state(), State::Resyncing, "the copy was interrupted");
    assert!(gateway.volume.log().fill() <= 0.5, "the log holds what will be read anyway");
    gateway.die().await;
}

/// Counterexample 6.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drafts_free_the_log_long_before_a_first_copy_ends() {
    let mut world = World::new(256 * MIB);
    world.log_size = 128 * MIB;
    world.scan_rate = NonZeroU64::new(MIB);
    world.store.write(0, SplitMix64(7).bytes(200 * MIB as usize), false).await.unwrap();
    let gateway = world.start().await;
    while gateway.volume.scan_front() < 4 * MIB {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // More than twice the log, behind the front.
    let mut random = SplitMix64(5);
    for number in 0..320 {
        let waits = async {
            while gateway.volume.log().fill() > 0.75 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waits).await.expect("nothing frees the log");
        gateway.volume.write(number % 4 * MIB, random.bytes(MIB as usize), false).await.unwrap();
        assert_eq!(gateway.volume.state(), State::Resyncing, "after {number} MiB the copy was interrupted");
    }
    let newest = world.entries().await.pop().unwrap();
    assert_eq!(newest.kind, EntryKind::Draft);
    let offered = world.chain().await.find(At::Latest).await;
    assert!(offered.is_err(), "a half copy is offered for restoring");
    gateway.die().await;
}

/// Counterexample 12.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hole_that_a_resync_finds_is_zero_and_not_what_stood_there_before() {
    let world = World::new(64 * MIB);
    let gateway = world.start().await;
    gateway.volume.write(9 * MIB, SplitMix64(1).bytes(3 * MIB as usize), false).await.unwrap();
    gateway.volume.write(40 * MIB, SplitMix64(2).bytes(4096), false).await.unwrap();
    gateway.settled().await;
    // Overflowed: what happens now is in no record.
    world.store.come_back();
    assert!(gateway.volume.has_come_back());
    gateway.volume.write_zeroes(8 * MIB, 8 * MIB, ZeroMode::default(), false).await.unwrap();
    let hole = world.store.inner().extents(8 * MIB, 8 * MIB, 1).await.unwrap();
    assert!(hole[0].zero && hole[0].length == 8 * MIB, "{hole:?}");
    gateway.settles_current(&world).await;
}

/// Counterexample 13.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_changes_of_one_sector_are_made_one_after_the_other() {
    let world = World::new(SIZE);
    let gateway = world.start().await;
    gateway.volume.write(MIB, SplitMix64(1).bytes(4096), false).await.unwrap();
    gateway.settled().await;
    let (gate, before) = (Gate::new(), world.store.calls(Kind::Write));
    world.store.inject(Fault::hold(Kind::Write, &gate).at(Span::at(MIB, 100)).once());
    let first = gateway.volume.write(MIB, SplitMix64(2).bytes(100), false);
    gate.arrived(1).await;
    let second = gateway.volume.write(MIB + 100, SplitMix64(3).bytes(100), false);
    let elsewhere = gateway.volume.write(MIB + SECTOR, SplitMix64(4).bytes(100), false);
    elsewhere.await.unwrap();
    assert_eq!(world.store.calls(Kind::Write) - before, 2, "the second change of the sector was not held back");
    gate.open();
    first.await.unwrap();
    second.await.unwrap();
    gateway.settles_current(&world).await;
}

/// Counterexample 4.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_point_is_read_without_any_other_entry_and_no_entry_holds_data() {
    let world = World::new(SIZE);
    let gateway = world.start().await;
    gateway.settled().await;
    let mut kept = None;
    for round in 0..40 {
        let offset = SplitMix64(round).below(SIZE / SECTOR - 128) * SECTOR;
        gateway.volume.write(offset, SplitMix64(100 + round).bytes(64 * KIB as usize), false).await.unwrap();
        gateway.settled().await;
        if round == 35 {
            kept = Some((world.newest_point().await, world.store_bytes().await));
        }
    }
    let (point, store) = kept.unwrap();
    let volume = world.chain().await.volume();
    for entry in world.entries().await {
        let key = volume.entry_key(entry.number);
        let bytes = world.remote.get(&key).await.unwrap();
        assert!(bytes.len() < 8 << 10, "entry {} has {} bytes", entry.number, bytes.len());
        if entry.number > EntryNumber(1) && entry.number != point.number {
            world.bucket.delete(&Path::from(key.to_string())).await.unwrap();
        }
    }
    assert_same(&world.content(&point, None).await.0, &store, &[]);
    gateway.die().await;
}

/// Counterexample 26.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_larger_than_a_pack_makes_packs_and_not_points() {
    let world = World::new(256 * MIB);
    let gateway = world.start().await;
    gateway.settled().await;
    let before = world.newest_point().await.number;
    world.refuse_puts();
    // Of noise, so that nothing becomes smaller.
    let mut seed = SplitMix64(3);
    for megabyte in 0..96 {
        let noise: Bytes = (0..MIB / 8).flat_map(|_| seed.below(u64::MAX).to_le_bytes()).collect();
        gateway.volume.write(megabyte * MIB, noise, false).await.unwrap();
    }
    world.bucket.heal();
    gateway.settled().await;
    world.assert_current().await;
    let entries = world.entries().await;
    let new: Vec<_> = entries.iter().filter(|entry| entry.number > before).collect();
    let packs: usize = new.iter().map(|entry| entry.own.len()).sum();
    let most = new.iter().map(|entry| entry.own.len()).max().unwrap();
    assert!(most >= 2 && new.len() <= 4, "{packs} packs in {} entries, at most {most} in one", new.len());
    gateway.die().await;
}

/// Counterexample 28.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_writers_of_the_same_piece_wait_for_a_scan_and_only_those_of_its_range_for_a_trim() {
    let world = World::new(64 * MIB);
    for megabyte in 0..64 {
        world.store.write(megabyte * MIB, SplitMix64(megabyte).bytes(MIB as usize), false).await.unwrap();
    }
    let gate = Gate::new();
    world.store.inject(Fault::hold(Kind::Read, &gate).at(Span::at(2 * MIB, 1)).once());
    let gateway = world.start().await;
    gate.arrived(1).await;
    let bound = Duration::from_secs(5);
    let all = async {
        for megabyte in (0..2).chain(3..64) {
            gateway.volume.write(megabyte * MIB, SplitMix64(1).bytes(4096), false).await.unwrap();
        }
    };
    tokio::time::timeout(bound, all).await.expect("clients of other pieces waited for the scan");
    gate.open();
    gateway.settled().await;

    let gate = Gate::new();
    world.store.inject(Fault::hold(Kind::Trim, &gate).once());
    let trim = gateway.volume.trim(8 * MIB, 32 * MIB, false);
    gate.arrived(1).await;
    let held = gateway.volume.write(9 * MIB, SplitMix64(2).bytes(4096), false);
    let others = async {
        for megabyte in (0..8).chain(40..64) {
            gateway.volume.write(megabyte * MIB, SplitMix64(2).bytes(4096), false).await.unwrap();
        }
    };
    tokio::time::timeout(bound, others).await.expect("clients of other ranges waited for the trim");
    gate.open();
    trim.await.unwrap();
    held.await.unwrap();
    gateway.settles_current(&world).await;
}

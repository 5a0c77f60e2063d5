//! Restore, verify and compare against a model, over a bucket in memory.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;

use bytes::Bytes;

use super::compare::compare;
use super::fixture::{Change, Moment, World, joined_sectors};
use super::progress::Progress;
use super::signature::is_unfinished;
use super::target::Target;
use super::verify::{Fault as ObjectFault, verify_objects};
use super::whole::{RestoreError, Restored, restore};
use crate::disk::{Disk, MemoryDisk};
use crate::remote::faulty::{Call, Fault};
use crate::units::{BLOCK, KIB, MIB, Mask, SECTOR, Span, TIB, is_zero};

async fn world(seed: u64, size: u64, epochs: usize) -> World {
    let mut world = World::new(seed, size, true).await;
    for _ in 0..epochs {
        world.epoch().await;
    }
    world
}

fn filled(size: u64, byte: u8) -> MemoryDisk {
    let disk = MemoryDisk::new(size);
    let done = disk.write(0, Bytes::from(vec![byte; size as usize]), false);
    futures_util::FutureExt::now_or_never(done).expect("memory answers at once").unwrap();
    disk
}

async fn content(disk: &dyn Disk, length: u64) -> Vec<u8> {
    disk.read(0, length as u32).await.unwrap().to_vec()
}

async fn restore_to(
    world: &World,
    moment: &Moment,
    disk: Arc<dyn Disk>,
    blank: bool,
) -> Result<Restored, RestoreError> {
    let progress = Arc::new(Progress::new(world.size));
    let target = Target::new(disk, world.size, blank, progress.clone())?;
    let restored = restore(&world.resolver(moment), moment.entry.number, target, &progress).await?;
    assert_eq!(progress.done(), progress.total());
    Ok(restored)
}

/// An error and all of its causes.
fn all_of(error: &dyn Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", all_of(cause)),
        None => error.to_string(),
    }
}

#[tokio::test]
async fn every_slice_of_every_point_is_restored_bit_for_bit() {
    for (seed, size) in
        [(1, 3 * MIB), (2, 5 * MIB + 300), (3, 64 * KIB), (4, 300), (5, 3 * BLOCK + 512), (6, BLOCK + 1)]
    {
        let world = world(seed, size, 12).await;
        for moment in &world.history {
            let at = format!("seed {seed}, size {size}, point {}, slice {:?}", moment.entry.number, moment.slice);
            for blank in [true, false] {
                let disk = Arc::new(if blank { MemoryDisk::new(size) } else { filled(size + 5000, 0xEE) });
                let restored = restore_to(&world, moment, disk.clone(), blank).await.unwrap();
                assert!(content(&*disk, size).await == moment.content, "{at}, blank {blank}");
                assert_eq!(restored.unreadable.listed(), joined_sectors(&moment.unreadable, size), "{at}");
                if !blank {
                    assert!(content(&*disk, size + 5000).await[size as usize..].iter().all(|byte| *byte == 0xEE));
                }
                let different = compare(&world.resolver(moment), disk, &Progress::default()).await.unwrap();
                assert!(different.is_empty(), "{at}: {different:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_comparison_names_exactly_the_sectors_that_differ() {
    let size = 5 * MIB + 300;
    let mut world = world(7, size, 8).await;
    let moment = world.history.last().unwrap().clone();
    let disk = Arc::new(MemoryDisk::new(size));
    restore_to(&world, &moment, disk.clone(), true).await.unwrap();
    let mut expected = Vec::new();
    for _ in 0..200 {
        let at = world.random.below(size);
        let byte = !moment.content[at as usize];
        disk.write(at, Bytes::from(vec![byte]), false).await.unwrap();
        let sector = at / SECTOR;
        // What was trimmed or could not be read compares with anything.
        if !moment.trimmed.contains(&sector) && !moment.unreadable.contains(&sector) {
            expected.push(sector);
        }
    }
    expected.sort_unstable();
    expected.dedup();
    let different = compare(&world.resolver(&moment), disk, &Progress::default()).await.unwrap();
    assert_eq!(different.listed(), joined_sectors(&expected, size));
}

#[tokio::test]
async fn what_a_shorter_store_lacks_differs() {
    let world = world(8, MIB + 10, 4).await;
    let moment = world.history.last().unwrap();
    let disk = Arc::new(MemoryDisk::new(MIB + 10));
    restore_to(&world, moment, disk.clone(), true).await.unwrap();
    let short = Arc::new(MemoryDisk::new(700_000));
    short.write(0, content(&*disk, 700_000).await.into(), false).await.unwrap();
    let different = compare(&world.resolver(moment), short, &Progress::default()).await.unwrap();
    assert_eq!(different.listed(), [Span::new(700_000, MIB + 10)]);
}

/// The keys of the packs that hold data of the newest moment.
async fn packs(world: &World) -> Vec<String> {
    let moment = world.history.last().unwrap();
    let resolver = world.resolver(moment);
    let fragments = resolver.resolve(crate::units::Block(0), u64::MAX / BLOCK).await.unwrap();
    let mut keys: Vec<_> = fragments
        .iter()
        .filter_map(|fragment| match fragment.content {
            crate::chain::resolve::Content::Data { pack, .. } => Some(resolver.pack(pack).1),
            crate::chain::resolve::Content::Void(_) => None,
        })
        .collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// Fault tests 24 and 34.
#[tokio::test]
async fn a_damaged_or_missing_pack_is_named_and_nothing_wrong_is_written() {
    let size = 5 * MIB;
    let world = world(9, size, 6).await;
    let moment = world.history.last().unwrap();
    let keys = packs(&world).await;
    let mut failures = 0;
    for key in &keys {
        for fault in [Fault::FlipBit, Fault::Status(404), Fault::Truncate(100), Fault::WrongRange] {
            world.store.every(Call::Get, key, fault.clone());
            let disk = Arc::new(MemoryDisk::new(size));
            let outcome = restore_to(&world, moment, disk.clone(), true).await;
            world.store.heal();
            let found = content(&*disk, size).await;
            let Err(error) = outcome else {
                // The bit lay between the records that were wanted.
                assert!(fault == Fault::FlipBit && found == moment.content, "{fault:?} went unnoticed");
                continue;
            };
            failures += 1;
            let text = all_of(&error);
            assert!(text.contains(key) && text.contains(&moment.entry.number.to_string()), "{fault:?}: {text}");
            assert!(is_unfinished(&found), "{fault:?}: the mark is gone");
            for (at, sector) in found.chunks(SECTOR as usize).enumerate().skip(1) {
                let right = &moment.content[at * SECTOR as usize..][..SECTOR as usize];
                assert!(is_zero(sector) || sector == right, "{fault:?}: sector {at} is wrong");
            }
        }
    }
    assert!(failures >= 3 * keys.len());
}

/// Fault test 31.
#[tokio::test]
async fn damage_on_the_way_heals_at_the_second_attempt() {
    let size = 3 * MIB;
    let world = world(10, size, 6).await;
    let moment = world.history.last().unwrap();
    for key in packs(&world).await {
        world.store.once(Call::Get, &key, Fault::FlipBit);
    }
    let disk = Arc::new(MemoryDisk::new(size));
    restore_to(&world, moment, disk.clone(), true).await.unwrap();
    assert!(content(&*disk, size).await == moment.content);
}

#[tokio::test]
async fn a_huge_volume_with_little_in_it_is_restored_at_once() {
    let size = 64 * TIB;
    let mut world = World::new(12, size, false).await;
    let data = |byte| Change { data: Mask::FULL, bytes: vec![byte; BLOCK as usize], voids: [Mask::NONE; 3] };
    let last = size / BLOCK - 1;
    let changes = BTreeMap::from([((0, 0), data(1)), ((last / 2, 0), data(2)), ((last, 0), data(3))]);
    world.publish(&changes, 1).await;
    let moment = world.history.last().unwrap();
    let disk = Arc::new(MemoryDisk::new(size));
    let restored = restore_to(&world, moment, disk.clone(), true).await.unwrap();
    assert_eq!(restored.bytes_written, 3 * BLOCK);
    assert!(disk.allocated() <= 4 * BLOCK, "{}", disk.allocated());
    for (block, byte) in [(0, 1), (last / 2, 2), (last, 3), (1, 0)] {
        let found = disk.read(block * BLOCK, BLOCK as u32).await.unwrap();
        assert!(found.iter().all(|found| *found == byte), "block {block}");
    }
    let different = compare(&world.resolver(moment), disk, &Progress::default()).await.unwrap();
    assert!(different.is_empty(), "{different:?}");
}

#[tokio::test]
async fn every_object_of_a_point_is_verified() {
    let world = world(13, 3 * MIB, 10).await;
    let entry = &world.history.last().unwrap().entry;
    let progress = Progress::default();
    let findings = verify_objects(world.chain(), entry, &progress).await;
    assert!(findings.bad.is_empty(), "{:?}", findings.bad);
    assert!(findings.runs > 0 && findings.packs > 10 && findings.records > 100, "{findings:?}");
    assert_eq!((progress.done(), progress.moved()), (progress.total(), progress.total()));

    // Each object that was read is needed: damaged or missing, it is found, and it alone.
    let mut keys = world.store.calls(Call::Get);
    keys.sort_unstable();
    keys.dedup();
    let objects: Vec<_> = keys.into_iter().filter(|key| key.contains("/packs/") || key.contains("/runs/")).collect();
    let mut found = 0;
    for key in &objects {
        for fault in [Fault::FlipBit, Fault::Status(404)] {
            world.store.every(Call::Get, key, fault.clone());
            let findings = verify_objects(world.chain(), entry, &Progress::default()).await;
            world.store.heal();
            let bad: Vec<_> = findings.bad.iter().map(|bad| bad.key.as_str()).collect();
            if !bad.is_empty() {
                assert_eq!(bad, [key.as_str()], "{fault:?}");
                found += 1;
            }
        }
    }
    assert_eq!(found, 2 * (findings_count(&world, entry).await), "every object of the point, with either fault");
}

async fn findings_count(world: &World, entry: &crate::format::entry::Entry) -> u64 {
    let findings = verify_objects(world.chain(), entry, &Progress::default()).await;
    findings.packs + findings.runs
}

#[tokio::test]
async fn an_entry_that_the_chain_does_not_link_to_is_found() {
    let world = world(14, MIB, 3).await;
    let moment = &world.history[world.history.len() / 2];
    let mut forged = (*moment.entry).clone();
    forged.heartbeat += 1;
    let findings = verify_objects(world.chain(), &forged, &Progress::default()).await;
    assert!(matches!(findings.bad[..], [super::verify::BadObject { fault: ObjectFault::Changed, .. }]), "{findings:?}");
}

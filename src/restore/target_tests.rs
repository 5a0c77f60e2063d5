use super::*;
use crate::disk::faulty::{Fault, FaultyDisk, Kind};
use crate::disk::{Errno, Geometry, MemoryDisk};
use crate::units::TIB;

fn filled(size: u64, byte: u8) -> MemoryDisk {
    let disk = MemoryDisk::new(size);
    put(&disk, 0, &vec![byte; size as usize]);
    disk
}

fn put(disk: &dyn Disk, offset: u64, data: &[u8]) {
    let done = disk.write(offset, Bytes::copy_from_slice(data), false);
    futures_util::FutureExt::now_or_never(done).expect("memory answers at once").unwrap();
}

async fn content(disk: &dyn Disk) -> Vec<u8> {
    disk.read(0, disk.geometry().size as u32).await.unwrap().to_vec()
}

fn less_able(size: u64, change: impl Fn(&mut Geometry)) -> MemoryDisk {
    let mut geometry = MemoryDisk::new(size).geometry();
    change(&mut geometry);
    MemoryDisk::with_geometry(geometry)
}

fn target(disk: Arc<dyn Disk>, size: u64, blank: bool) -> Target {
    Target::new(disk, size, blank, Arc::default()).unwrap()
}

#[tokio::test]
async fn one_byte_of_data_anywhere_is_data() {
    let size = 40 * MIB + 77;
    for offset in [0, 5000, 20 * MIB + 511, size - 1] {
        let disk = MemoryDisk::new(size);
        put(&disk, offset, &[1]);
        let found = survey(&disk).await.unwrap();
        assert!(matches!(found, Content::Data { offset: near } if offset - near < 4096), "{offset}: {found:?}");
    }
    assert_eq!(survey(&MemoryDisk::new(size)).await.unwrap(), Content::Blank);
    assert_eq!(survey(&filled(3 * MIB, 0)).await.unwrap(), Content::Blank, "allocated zeroes are zeroes");
    assert_eq!(survey(&MemoryDisk::new(0)).await.unwrap(), Content::Blank);
}

#[tokio::test]
async fn a_huge_disk_that_tells_no_holes_only_seems_blank() {
    let disk = less_able(TIB, |geometry| geometry.abilities.extents = false);
    assert_eq!(survey(&disk).await.unwrap(), Content::SeemsBlank);
    put(&disk, TIB - 1, &[1]);
    assert!(matches!(survey(&disk).await.unwrap(), Content::Data { .. }), "a backup of a partition table is seen");
    assert_eq!(survey(&MemoryDisk::new(64 * TIB)).await.unwrap(), Content::Blank, "holes are free");
}

/// Counterexample 27.
#[tokio::test]
async fn the_mark_stands_until_everything_else_is_durable() {
    let disk = Arc::new(FaultyDisk::new(MemoryDisk::new(4 * MIB)));
    let target = target(disk.clone(), 4 * MIB, true);
    target.begin().await.unwrap();
    target.write(0, Bytes::from(vec![7; 4 * MIB as usize])).await.unwrap();
    let now = content(&*disk).await;
    assert!(signature::is_unfinished(&now));
    assert!(is_zero(&now[SECTOR as usize..MIB as usize]), "the first MiB was written early");
    assert!(is_zero(&now[3 * MIB as usize..]), "the last MiB was written early");
    assert!(now[MIB as usize..3 * MIB as usize].iter().all(|byte| *byte == 7));

    // The second flush of the end fails: all is written but the first sector.
    disk.inject(Fault::instead(Kind::Flush, DiskError::Io(Errno::EIO)).skipping(1).once());
    let error = target.finish().await.unwrap_err();
    assert!(matches!(error, TargetError::Disk { action: Action::Flush, .. }));
    let now = content(&*disk).await;
    assert!(signature::is_unfinished(&now));
    assert!(now[SECTOR as usize..].iter().all(|byte| *byte == 7));
    assert_eq!(survey(&*disk).await.unwrap(), Content::Unfinished);
}

#[tokio::test]
async fn a_finished_target_holds_what_was_written_and_zeroes_elsewhere() {
    for (size, unit, blank) in [
        (5 * MIB + 300, 1, false),
        (5 * MIB + 300, 1, true),
        (5 * MIB, 4096, false),
        (5 * MIB + 512, 512, false),
        (2 * MIB - 7, 1, false),
        (300, 1, false),
        (1, 1, false),
    ] {
        let disk: Arc<dyn Disk> = if blank {
            Arc::new(MemoryDisk::new(size))
        } else {
            let disk = less_able(size.next_multiple_of(unit), |geometry| {
                geometry.block.minimum = unit as u32;
                geometry.block.preferred = unit.max(4096) as u32;
                geometry.abilities.write_zeroes = unit != 512;
            });
            put(&disk, 0, &vec![0xEE; disk.geometry().size as usize]);
            Arc::new(disk)
        };
        let target = target(disk.clone(), size, blank);
        target.begin().await.unwrap();
        let mut model = vec![0; size as usize];
        // Every second stretch of a length that is no multiple of the unit is written, the others become zero.
        for (i, piece) in Span::new(0, size).pieces(512 * 211).enumerate() {
            if i % 2 == 0 {
                let data: Vec<u8> = (piece.start..piece.end).map(|at| (at / 512 % 251) as u8).collect();
                model[piece.start as usize..piece.end as usize].copy_from_slice(&data);
                target.write(piece.start, data.into()).await.unwrap();
            } else {
                target.zero(piece).await.unwrap();
            }
        }
        target.finish().await.unwrap();
        assert!(content(&*disk).await[..size as usize] == model, "size {size}, unit {unit}, blank {blank}");
    }
}

#[tokio::test]
async fn zeroes_are_not_written_where_all_was_zero() {
    let disk = Arc::new(MemoryDisk::new(100 * MIB));
    let target = target(disk.clone(), 100 * MIB, true);
    target.begin().await.unwrap();
    target.zero(Span::new(0, 50 * MIB)).await.unwrap();
    let mut data = vec![0; 8 * MIB as usize];
    data[5 * MIB as usize] = 1;
    target.write(60 * MIB, data.into()).await.unwrap();
    target.finish().await.unwrap();
    assert!(disk.allocated() <= 2 * 64 * KIB, "{}", disk.allocated());
}

#[tokio::test]
async fn a_target_that_is_too_small_or_read_only_is_refused() {
    let refused = |disk: MemoryDisk| Target::new(Arc::new(disk), MIB, true, Arc::default()).err();
    let error = refused(MemoryDisk::new(MIB - 1));
    assert_eq!(error, Some(TargetError::TooSmall { target_size: MIB - 1, volume_size: MIB }));
    let error = refused(less_able(MIB, |geometry| geometry.abilities.read_only = true));
    assert_eq!(error, Some(TargetError::ReadOnly));
}

//! Commands about blocks.

use super::*;
use crate::disk::Pending;

fn compare_and_write(lba: u64, count: u8) -> [u8; 16] {
    let mut cdb = cdb16(0x89, lba, 0);
    cdb[13] = count;
    cdb
}

/// The parameter list of UNMAP.
fn ranges(ranges: &[(u64, u32)]) -> Vec<u8> {
    let length = 16 * ranges.len() as u16;
    let mut list = [&(length + 6).to_be_bytes()[..], &length.to_be_bytes(), &[0; 4]].concat();
    for (lba, count) in ranges {
        list.extend(lba.to_be_bytes());
        list.extend(count.to_be_bytes());
        list.extend([0; 4]);
    }
    list
}

fn unmap(list: &[u8]) -> [u8; 10] {
    cdb10(0x42, 0, list.len() as u16)
}

#[tokio::test]
async fn what_a_cdb_of_one_length_writes_those_of_all_lengths_read() {
    let (_unit, nexus) = memory();
    let writes: [&[u8]; 4] = [&[0x0A, 0, 0, 1, 2, 0], &write(3, 2), &cdb12(0xAA, 5, 2), &cdb16(0x8A, 7, 2)];
    for (index, cdb) in writes.into_iter().enumerate() {
        good(&nexus, cdb, &filled(index as u8 + 1, 2)).await;
    }
    let expected = [filled(1, 2), filled(2, 2), filled(3, 2), filled(4, 2)].concat();
    let reads: [&[u8]; 4] = [&[0x08, 0, 0, 1, 8, 0], &read(1, 8), &cdb12(0xA8, 1, 8), &cdb16(0x88, 1, 8)];
    for cdb in reads {
        assert_eq!(good(&nexus, cdb, &[]).await, expected, "{cdb:02x?}");
    }
    assert_eq!(good(&nexus, &[0x08, 0, 0, 0, 0, 0], &[]).await.len(), 256 * BLOCK, "zero is 256 in READ(6)");
    assert_eq!(good(&nexus, &read(0, 0), &[]).await.len(), 0, "zero is zero elsewhere");
}

#[tokio::test]
async fn a_disk_that_answers_at_once_is_not_waited_for() {
    let (_unit, nexus) = memory();
    for (cdb, data) in [(write(0, 8), filled(1, 8)), (read(0, 8), Vec::new())] {
        let command = nexus.admit(0, &cdb).unwrap();
        assert!(matches!(nexus.execute(command, data.into()), Pending::Ready(_)), "{cdb:02x?}");
    }
}

#[tokio::test]
async fn of_blocks_that_the_disk_does_not_have_the_first_is_told() {
    let (_unit, nexus) = memory();
    let end = SIZE / BLOCK as u64;
    for code in [0x88, 0x8A, 0x8B, 0x8E, 0x8F, 0x90, 0x91, 0x93] {
        let beyond = refused(&nexus, &cdb16(code, end - 1, 2), &filled(0, 2)).await;
        assert_eq!((beyond.code, beyond.information), (0x2100, Some(end)), "{code:02x}");
        let far = refused(&nexus, &cdb16(code, u64::MAX, 1), &filled(0, 1)).await;
        assert_eq!((far.code, far.information), (0x2100, Some(u64::MAX)), "{code:02x}");
    }
    assert_eq!(refused(&nexus, &cdb16(0x88, end + 1, 0), &[]).await.code, 0x2100);
    assert_eq!(good(&nexus, &cdb16(0x88, end, 0), &[]).await.len(), 0);
    let mut status = cdb16(0x9E, end, 24);
    status[1] = 0x12;
    assert_eq!(refused(&nexus, &status, &[]).await.code, 0x2100);
}

#[tokio::test]
async fn more_than_may_be_transferred_at_once_is_refused_before_its_data_is_fetched() {
    let unit = unit(MemoryDisk::new(4 * SIZE));
    let nexus = nexus(&unit, 1);
    let most =
        u32::from_be_bytes(good(&nexus, &[0x12, 1, 0xB0, 0, 64, 0], &[]).await[8..12].try_into().expect("four bytes"));
    for code in [0x88, 0x8A, 0x8B, 0x8E, 0x8F] {
        let admitted = nexus.admit(0, &cdb16(code, 0, most)).unwrap();
        assert!(admitted.data_out().max(admitted.data_in()) as u64 <= u64::from(most) * BLOCK as u64);
        let answer = nexus.admit(0, &cdb16(code, 0, most + 1)).err().unwrap();
        assert_eq!((super::code(&answer), answer.sense.unwrap().field.unwrap().byte), (0x2400, 10), "{code:02x}");
    }
}

#[tokio::test]
async fn whole_blocks_of_what_is_offered_are_written_and_a_part_of_one_is_refused() {
    let (_unit, nexus) = memory();
    good(&nexus, &write(0, 4), &filled(1, 4)).await;
    for cdb in [write(0, 2).to_vec(), with(cdb10(0x2E, 0, 2), 0x02)] {
        assert_eq!(refused(&nexus, &cdb, &[2; 700]).await.code, 0x0E03);
        good(&nexus, &cdb, &[]).await;
        assert_eq!(good(&nexus, &read(0, 4), &[]).await, filled(1, 4), "{cdb:02x?}");
        good(&nexus, &cdb, &filled(2, 1)).await;
        assert_eq!(good(&nexus, &read(0, 4), &[]).await, [filled(2, 1), filled(1, 3)].concat());
        good(&nexus, &cdb, &filled(1, 4)).await;
        assert_eq!(good(&nexus, &read(2, 2), &[]).await, filled(1, 2), "more than the CDB says");
    }
    for cdb in [compare_and_write(0, 1).to_vec(), cdb16(0x8B, 0, 1).to_vec(), with(cdb10(0x2F, 0, 1), 0x02)] {
        assert_eq!(refused(&nexus, &cdb, &[1; 200]).await.code, 0x0E03, "{cdb:02x?}");
    }
}

#[tokio::test]
async fn a_comparison_says_where_the_first_difference_is() {
    let (_unit, nexus) = memory();
    good(&nexus, &write(0, 4), &filled(1, 4)).await;
    let mut differs = filled(1, 4);
    differs[1030] = 9;
    differs[1040] = 9;
    for cdb in [with(cdb10(0x2F, 0, 4), 0x02), with(cdb12(0xAF, 0, 4), 0x02), with(cdb16(0x8F, 0, 4), 0x02)] {
        let miscompare = refused(&nexus, &cdb, &differs).await;
        assert_eq!((miscompare.code, miscompare.information), (0x1D00, Some(1030)));
        good(&nexus, &cdb, &filled(1, 4)).await;
    }
    good(&nexus, &cdb10(0x2F, 0, 4), &[]).await;
    good(&nexus, &with(cdb10(0x2F, 0, 4), 0x06), &filled(1, 1)).await;
    assert_eq!(refused(&nexus, &with(cdb10(0x2F, 0, 4), 0x06), &differs[1024..1536]).await.information, Some(6));
    assert_eq!(refused(&nexus, &with(cdb10(0x2F, 0, 4), 0x04), &[]).await.code, 0x2400, "BYTCHK 10b");

    let both = [&differs[1024..1536], &filled(7, 1)].concat();
    let miscompare = refused(&nexus, &compare_and_write(2, 1), &both).await;
    assert_eq!((miscompare.key, miscompare.information), (sense::Key::Miscompare, Some(6)));
    assert_eq!(good(&nexus, &read(0, 4), &[]).await, filled(1, 4), "and nothing is written");
    good(&nexus, &compare_and_write(2, 1), &[filled(1, 1), filled(7, 1)].concat()).await;
    assert_eq!(good(&nexus, &read(2, 1), &[]).await, filled(7, 1));
    assert_eq!(refused(&nexus, &compare_and_write(2, 0), &[]).await.code, 0x2400, "256 blocks come as none");
}

#[tokio::test]
async fn what_is_ored_keeps_what_was_set() {
    let (_unit, nexus) = memory();
    good(&nexus, &write(0, 2), &filled(0xA0, 2)).await;
    good(&nexus, &cdb16(0x8B, 0, 2), &filled(0x05, 2)).await;
    assert_eq!(good(&nexus, &read(0, 2), &[]).await, filled(0xA5, 2));
}

#[tokio::test]
async fn one_block_is_written_to_all_and_zeroes_cost_nothing() {
    let disk = Arc::new(MemoryDisk::new(SIZE));
    let unit = Unit::new(disk.clone(), settings()).unwrap();
    let nexus = nexus(&unit, 1);
    let block: Vec<u8> = (0..BLOCK).map(|at| at as u8).collect();
    good(&nexus, &cdb16(0x93, 3, 9000), &block).await;
    assert_eq!(good(&nexus, &read(3, 9000), &[]).await, block.repeat(9000));
    assert_eq!(good(&nexus, &cdb16(0x88, 2, 1), &[]).await, filled(0, 1));
    assert_eq!(good(&nexus, &read(9003, 1), &[]).await, filled(0, 1));
    good(&nexus, &with(cdb16(0x93, 0, (SIZE / 512) as u32), 0x08), &filled(0, 1)).await;
    assert_eq!(disk.allocated(), 0, "with UNMAP nothing is allocated");
    good(&nexus, &cdb16(0x93, 0, 8), &block).await;
    good(&nexus, &with(cdb16(0x93, 0, 8), 0x01), &[]).await;
    assert_eq!(good(&nexus, &read(0, 8), &[]).await, filled(0, 8), "NDOB is zeroes");
    assert!(disk.allocated() > 0, "without UNMAP they stay mapped");
    assert_eq!(refused(&nexus, &cdb10(0x41, 0, 0), &block).await.code, 0x2400, "WSNZ");
    assert_eq!(refused(&nexus, &with(cdb10(0x41, 0, 1), 0x10), &block).await.code, 0x2400, "ANCHOR");
    assert_eq!(refused(&nexus, &cdb10(0x41, 0, 1), &block[..200]).await.code, 0x0E03);
}

#[tokio::test]
async fn ranges_are_unmapped_together_or_not_at_all() {
    let (_unit, nexus) = memory();
    good(&nexus, &write(0, 512), &filled(1, 512)).await;
    let end = SIZE / BLOCK as u64;
    let wrong = ranges(&[(0, 8), (end - 1, 2)]);
    assert_eq!(refused(&nexus, &unmap(&wrong), &wrong).await.code, 0x2100);
    assert_eq!(good(&nexus, &read(0, 8), &[]).await, filled(1, 8));
    let list = ranges(&[(0, 8), (end, 0), (100, 1), (16, 0)]);
    good(&nexus, &unmap(&list), &list).await;
    let found = good(&nexus, &read(0, 102), &[]).await;
    assert_eq!(found, [filled(0, 8), filled(1, 92), filled(0, 1), filled(1, 1)].concat());
    good(&nexus, &unmap(&[]), &[]).await;
    assert_eq!(refused(&nexus, &unmap(&[0; 7]), &[0; 7]).await.code, 0x1A00);
    assert_eq!(refused(&nexus, &unmap(&list[..30]), &list[..30]).await.code, 0x1A00);
    let many = ranges(&[(0, 1); 257]);
    assert_eq!(refused(&nexus, &unmap(&many), &many).await.code, 0x2600);
}

#[tokio::test]
async fn what_is_mapped_is_told_from_what_is_not() {
    let (_unit, nexus) = memory();
    let page = (64 * KIB as usize / BLOCK) as u32;
    good(&nexus, &write(page, 1), &filled(1, 1)).await;
    let mut cdb = cdb16(0x9E, 5, 8 + 3 * 16);
    cdb[1] = 0x12;
    let found = good(&nexus, &cdb, &[]).await;
    assert_eq!(found.len(), 8 + 3 * 16);
    assert_eq!(found[..4], (4u32 + 3 * 16).to_be_bytes());
    let descriptors: Vec<_> = found[8..]
        .chunks(16)
        .map(|it| {
            (u64::from_be_bytes(it[..8].try_into().unwrap()), u32::from_be_bytes(it[8..12].try_into().unwrap()), it[12])
        })
        .collect();
    let rest = (SIZE / BLOCK as u64) as u32 - 2 * page;
    assert_eq!(descriptors, [(5, page - 5, 1), (page.into(), page, 0), (2 * u64::from(page), rest, 1)]);
}

#[tokio::test]
async fn a_disk_that_is_less_able_announces_no_more_and_does_it() {
    let able = MemoryDisk::new(SIZE).geometry();
    let plain = MemoryDisk::with_geometry(Geometry { abilities: Abilities::default(), ..able });
    let unit = unit(plain);
    let nexus = nexus(&unit, 1);
    let list = ranges(&[(0, 1)]);
    assert_eq!(refused(&nexus, &unmap(&list), &list).await.code, 0x2000);
    assert_eq!(refused(&nexus, &with(cdb10(0x41, 0, 1), 0x08), &filled(0, 1)).await.code, 0x2400);
    assert_eq!(refused(&nexus, &with(write(0, 1), 0x08), &filled(0, 1)).await.code, 0x2400, "FUA");
    assert_eq!(refused(&nexus, &with(read(0, 1), 0x10), &[]).await.code, 0x2400, "DPO");
    good(&nexus, &cdb10(0x35, 0, 0), &[]).await;
    good(&nexus, &cdb10(0x34, 0, 0), &[]).await;
    good(&nexus, &cdb10(0x41, 0, 9), &filled(0, 1)).await;
    assert_eq!(good(&nexus, &[0x12, 1, 0xB2, 0, 8, 0], &[]).await[5], 0, "LBPU, LBPWS, LBPWS10, LBPRZ");
    let usage = good(&nexus, &[0xA3, 0x0C, 1, 0x2A, 0, 0, 0, 0, 1, 0, 0, 0], &[]).await;
    assert_eq!(usage[5], 0, "of WRITE(10)");
}

#[tokio::test]
async fn blocks_are_as_long_as_the_disk_wants_them() {
    let able = MemoryDisk::new(SIZE + 1000).geometry();
    let block = crate::disk::BlockSizes { minimum: 4096, ..able.block };
    let unit = unit(MemoryDisk::with_geometry(Geometry { block, ..able }));
    let nexus = nexus(&unit, 1);
    let capacity = good(&nexus, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[]).await;
    let last = (SIZE / 4096 - 1) as u32;
    assert_eq!(capacity, [last.to_be_bytes(), 4096u32.to_be_bytes()].concat(), "the rest is not shown");
    good(&nexus, &write(last, 1), &[5; 4096]).await;
    assert_eq!(good(&nexus, &read(last, 1), &[]).await, vec![5; 4096]);
    assert_eq!(refused(&nexus, &read(last, 2), &[]).await.code, 0x2100);
}

#[tokio::test]
async fn a_read_with_fua_flushes_first() {
    let disk = Arc::new(FaultyDisk::new(MemoryDisk::new(SIZE)));
    let unit = Unit::new(disk.clone(), settings()).unwrap();
    let nexus = nexus(&unit, 1);
    good(&nexus, &read(0, 1), &[]).await;
    assert_eq!(disk.calls(Kind::Flush), 0);
    good(&nexus, &with(read(0, 1), 0x08), &[]).await;
    assert_eq!(disk.calls(Kind::Flush), 1);
    good(&nexus, &with(cdb10(0x35, 0, 0), 0x02), &[]).await;
    assert_eq!(disk.calls(Kind::Flush), 2);
    good(&nexus, &[0x1B, 0, 0, 0, 0, 0], &[]).await;
    assert_eq!(disk.calls(Kind::Flush), 3, "to stop is to flush");
}

#[tokio::test]
async fn what_the_disk_says_becomes_what_initiators_understand() {
    let disk = Arc::new(FaultyDisk::new(MemoryDisk::new(SIZE)));
    let unit = Unit::new(disk.clone(), settings()).unwrap();
    let nexus = nexus(&unit, 1);
    let cases = [
        (DiskError::Io(Errno::EIO), 0x1100, 0x0C00, 0x0C00),
        (DiskError::Io(Errno::EINVAL), 0x1100, 0x0C00, 0x0C00),
        (DiskError::Io(Errno::ENOTSUP), 0x2000, 0x2000, 0x0C00),
        (DiskError::Io(Errno::ENOSPC), 0x2707, 0x2707, 0x2707),
        (DiskError::Refused(Errno::EIO), 0x0401, 0x0401, 0x0401),
        (DiskError::Refused(Errno::ENOMEM), 0x0401, 0x0401, 0x0401),
        (DiskError::Refused(Errno::EPERM), 0x2700, 0x2700, 0x2700),
        // A flush that is refused as wrong has not flushed, and an initiator must not take that for success.
        (DiskError::Refused(Errno::EINVAL), 0x2400, 0x2400, 0x0C00),
        (DiskError::Refused(Errno::ENOTSUP), 0x2000, 0x2000, 0x0C00),
    ];
    for (error, reading, writing, flushing) in cases {
        disk.inject(Fault::instead(Kind::Read, error));
        disk.inject(Fault::instead(Kind::Write, error));
        disk.inject(Fault::instead(Kind::Flush, error));
        assert_eq!(refused(&nexus, &read(0, 1), &[]).await.code, reading, "{error}");
        assert_eq!(refused(&nexus, &cdb10(0x2F, 0, 1), &[]).await.code, reading, "{error}");
        assert_eq!(refused(&nexus, &write(0, 1), &filled(1, 1)).await.code, writing, "{error}");
        assert_eq!(refused(&nexus, &cdb10(0x2E, 0, 1), &filled(1, 1)).await.code, writing, "{error}");
        assert_eq!(refused(&nexus, &cdb10(0x41, 0, 1), &filled(1, 1)).await.code, writing, "{error}");
        assert_eq!(refused(&nexus, &cdb10(0x35, 0, 0), &[]).await.code, flushing, "{error}");
        assert_eq!(refused(&nexus, &with(read(0, 1), 0x08), &[]).await.code, flushing, "{error}");
        disk.heal();
    }
    good(&nexus, &read(0, 1), &[]).await;
}

/// As the store's own server would have it: who drives the unit ends its sessions.
#[tokio::test]
async fn a_store_that_is_lost_has_no_answer() {
    let disk = Arc::new(FaultyDisk::new(MemoryDisk::new(SIZE)));
    let unit = Unit::new(disk.clone(), settings()).unwrap();
    let nexus = nexus(&unit, 1);
    for error in [DiskError::Lost, DiskError::Refused(Errno::ESHUTDOWN)] {
        for kind in [Kind::Read, Kind::Write, Kind::Flush] {
            disk.inject(Fault::instead(kind, error));
        }
        for cdb in [&read(0, 1)[..], &write(0, 1), &cdb10(0x2E, 0, 1), &cdb10(0x41, 0, 1), &cdb10(0x35, 0, 0)] {
            let command = nexus.admit(0, cdb).unwrap();
            assert_eq!(nexus.execute(command, filled(1, 1).into()).await.err(), Some(DiskError::Lost), "{cdb:02x?}");
        }
        disk.heal();
    }
    good(&nexus, &read(0, 1), &[]).await;
}

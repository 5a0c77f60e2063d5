//! What a crash, a bad spot or another log leaves on a disk is a beginning of what was appended, or nothing.

use super::*;

/// Fault test 7.
#[test]
fn records_after_a_hole_are_refused_even_in_a_later_segment() {
    let disk = SimulatedDisk::blank(8, SIZE);
    let log = begin(&disk, LIMITS);
    let positions: Vec<Position> = (1..=40).map(|index| log.append(record(index, 1024, 1)).unwrap()).collect();
    sync(&log, 40);
    let hole = positions[9];
    disk.state().cached[hole.slot() as usize][hole.offset() as usize + 20] ^= 1;
    let (recovered, _) = recover(&open(&disk, 2, 1, LIMITS));
    assert_eq!((recovered.first, recovered.next), (LogIndex(1), LogIndex(10)));
    assert!(matches!(recovered.ended, Ended::Hole { resumes } if resumes > LogIndex(10)), "{:?}", recovered.ended);
}

/// Fault tests 4 and 6.
#[test]
fn what_a_first_crash_cut_off_does_not_come_back_after_a_second() {
    let disk = SimulatedDisk::blank(8, SIZE);
    let log = begin(&disk, Limits { commit_every: NEVER, ..LIMITS });
    let positions: Vec<Position> = (1..=6).map(|index| log.append(record(index, 512, 1)).unwrap()).collect();
    settle(&log, 6);
    // Record 4 did not reach the disk; 5 and 6 did.
    let lost = positions[3].offset() / 512 + 1;
    let image = disk.power_cut(|_, sector| sector != lost);
    let mut mended = image.clone();

    let disk = SimulatedDisk::new(image);
    let pool = open(&disk, 2, 1, LIMITS);
    let (recovered, _) = recover(&pool);
    assert_eq!(recovered.next, LogIndex(4));
    let log = pool.volume(VOLUME, Start::After(recovered)).unwrap();
    log.append(record(4, 512, 2)).unwrap();
    sync(&log, 4);
    let (recovered, records) = recover(&open(&disk, 3, 1, LIMITS));
    assert_eq!(recovered.next, LogIndex(5), "an old record 5 follows a new record 4");
    assert_same(&records[3].1, &record(4, 512, 2));

    // Even if the disk finds the lost sector again.
    let whole = positions[3].offset() as usize;
    mended[0][whole..whole + 592].copy_from_slice(&disk_bytes(&log_of_six(), 0, whole, 592));
    let state = disk.state().cached.clone();
    mended[1..].clone_from_slice(&state[1..]);
    let (recovered, records) = recover(&open(&SimulatedDisk::new(mended), 3, 1, LIMITS));
    assert_eq!(recovered.next, LogIndex(5));
    assert_same(&records[3].1, &record(4, 512, 2));
}

fn log_of_six() -> SimulatedDisk {
    let disk = SimulatedDisk::blank(8, SIZE);
    let log = begin(&disk, LIMITS);
    append_all(&log, 1..=6, 512, 1);
    settle(&log, 6);
    disk
}

fn disk_bytes(disk: &SimulatedDisk, slot: usize, at: usize, length: usize) -> Vec<u8> {
    disk.state().cached[slot][at..at + length].to_vec()
}

/// Fault test 6.
#[test]
fn another_log_and_a_later_epoch_are_not_believed() {
    let disk = log_of_six();
    assert_eq!(recover(&open(&disk, 2, 1, LIMITS)).0.next, LogIndex(7));
    assert_eq!(recover(&open(&disk, 0, 1, LIMITS)).0.ended, Ended::NoLog);
    let opened = Opened { created: false, log: LogId([8; 16]), epoch: 2 };
    let foreign = Pool(Arc::new(Inner::new(opened, Box::new(disk), SIZE, 8, 1, LIMITS)));
    assert_eq!(recover(&foreign).0.ended, Ended::NoLog);
}

/// A log of several segments, and what is in it.
fn filled() -> (SimulatedDisk, Vec<Record>) {
    let disk = SimulatedDisk::blank(5, SIZE);
    let log = begin(&disk, LIMITS);
    let records: Vec<Record> = (1..=24).map(|index| record(index, (index as usize % 5) * 500, 1)).collect();
    for record in &records {
        log.append(record.clone()).unwrap();
    }
    sync(&log, 24);
    (disk, records)
}

/// Whatever is accepted is a beginning of what was appended, byte for byte.
fn assert_beginning(disk: &SimulatedDisk, records: &[Record], what: &str) -> usize {
    let pool = open(disk, 2, 1, LIMITS);
    let (recovered, found) = recover(&pool);
    assert_eq!(recovered.first, LogIndex(1), "{what}");
    for ((position, header), record) in found.iter().zip(records) {
        assert_same(header, record);
        let segment = recovered.segments.iter().find(|segment| segment.slot == position.slot()).unwrap();
        let payload = reader::read(&pool.0, &segment.header, *position, header.index);
        assert_eq!(payload.as_ref(), Ok(&record.payload), "{what}");
    }
    found.len()
}

/// Fault test 5.
#[test]
fn a_flipped_bit_shortens_the_log_and_changes_nothing() {
    let (disk, records) = filled();
    assert_eq!(assert_beginning(&disk, &records, "untouched"), records.len());
    let image = disk.state().cached.clone();
    for slot in 0..5 {
        let openings =
            (0..FIRST_RECORD as usize).step_by(61).chain((0..FIRST_RECORD as usize).filter(|at| at % 4096 < 96));
        for at in openings.chain((FIRST_RECORD as usize..SIZE as usize).step_by(5)) {
            let mut damaged = image.clone();
            damaged[slot][at] ^= 1 << (at % 8);
            let what = format!("bit {} of byte {at} of {slot}", at % 8);
            let accepted = assert_beginning(&SimulatedDisk::new(damaged), &records, &what);
            assert!(at >= FIRST_RECORD as usize || accepted == records.len(), "an opening bears one flipped bit");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Fault test 25.
    #[test]
    fn a_misdirected_write_shortens_the_log_and_changes_nothing(
        (from, to) in ((0usize..5, 0..SIZE as usize / 512), (0usize..5, 0..SIZE as usize / 512)),
        sectors in 1usize..=8,
    ) {
        let (disk, records) = filled();
        let length = (sectors * 512).min(SIZE as usize - from.1 * 512).min(SIZE as usize - to.1 * 512);
        let bytes = disk_bytes(&disk, from.0, from.1 * 512, length);
        disk.state().cached[to.0][to.1 * 512..][..length].copy_from_slice(&bytes);
        assert_beginning(&disk, &records, "misdirected");
    }

    #[test]
    fn any_bytes_at_all_are_read_without_panic(
        noise in prop::collection::vec((0usize..5, 0..SIZE as usize, any::<u64>()), 1..40),
    ) {
        let (disk, _) = filled();
        for (slot, at, value) in noise {
            let at = at.min(SIZE as usize - 8);
            disk.state().cached[slot][at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        recover(&open(&disk, 2, 1, LIMITS));
    }
}

//! What the log promises, on a simulated disk that is slow, fails, decays and lies; and once on real files.

mod damage;
mod failures;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::pool::{Inner, LIMITS, Limits};
use super::recovery::FIRST_RECORD;
use super::simulated::{Call, SimulatedDisk};
use super::*;
use crate::format::VolumeId;
use crate::format::log::{LogId, RecordHeader};

const LOG: LogId = LogId([9; 16]);
pub(super) const VOLUME: VolumeId = VolumeId([1; 16]);
pub(super) const OTHER: VolumeId = VolumeId([2; 16]);
/// Small segments wrap around often.
pub(super) const SIZE: u64 = FIRST_RECORD + 8 * 1024;
pub(super) const NEVER: Duration = Duration::from_secs(3600);

pub(super) fn open(disk: &SimulatedDisk, epoch: u64, volumes: u32, limits: Limits) -> Pool {
    let slots = disk.state().cached.len() as u32;
    let opened = Opened { created: false, log: LOG, epoch };
    Pool(Arc::new(Inner::new(opened, Box::new(disk.clone()), SIZE, slots, volumes, limits)))
}

fn begin(disk: &SimulatedDisk, limits: Limits) -> VolumeLog {
    open(disk, 1, 1, limits).volume(VOLUME, Start::Empty(LogIndex(1))).unwrap()
}

/// A record whose content tells index and epoch.
pub(super) fn record(index: u64, length: usize, epoch: u64) -> Record {
    let payload: Vec<u8> = (0..length as u64).map(|at| (index * 31 + epoch * 101 + at / 512 * 7 + 1) as u8).collect();
    let op = if length == 0 { LogOp::Trim } else { LogOp::Write };
    let (length, offset) = (if length == 0 { 1 << 40 } else { length as u64 }, index * 4096);
    let sequence = Sequence(index * 10 + epoch);
    Record { index: LogIndex(index), sequence, op, offset, length, payload: payload.into() }
}

fn append_all(log: &VolumeLog, indices: impl Iterator<Item = u64>, length: usize, epoch: u64) {
    for index in indices {
        log.append(record(index, length, epoch)).unwrap();
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}

pub(super) fn sync(log: &VolumeLog, through: u64) {
    runtime().block_on(log.sync(LogIndex(through))).unwrap();
}

/// Waits until a record is written to its segment, synced or not.
pub(super) fn settle(log: &VolumeLog, through: u64) {
    let mut progress = log.watch();
    let wait = async { progress.wait_for(|progress| progress.appended >= LogIndex(through)).await.map(|_| ()) };
    runtime().block_on(wait).unwrap();
}

pub(super) fn recover(pool: &Pool) -> (Recovered, Vec<(Position, RecordHeader)>) {
    let mut records = Vec::new();
    let recovered = pool.recover(VOLUME, |position, header| records.push((position, *header)));
    let indices: Vec<u64> = records.iter().map(|(_, header)| header.index.0).collect();
    assert_eq!(indices, (recovered.first.0..recovered.next.0).collect::<Vec<_>>(), "not dense");
    (recovered, records)
}

pub(super) fn assert_same(header: &RecordHeader, record: &Record) {
    let found = (header.index, header.sequence, header.op, header.offset, header.length);
    assert_eq!(found, (record.index, record.sequence, record.op, record.offset, record.length));
}

#[test]
fn what_was_appended_is_read_back_from_memory_and_from_the_disk() {
    let disk = SimulatedDisk::blank(8, SIZE);
    disk.set_hang(true);
    let log = begin(&disk, LIMITS);
    let records: Vec<Record> = [512, 0, 1000, 1, 5000, 0, 7000, 512]
        .iter()
        .zip(1..)
        .map(|(length, index)| record(index, *length, 1))
        .collect();
    let positions: Vec<Position> = records.iter().map(|record| log.append(record.clone()).unwrap()).collect();
    let check = || {
        for (position, record) in positions.iter().zip(&records) {
            assert_eq!(log.read(*position, record.index).unwrap(), record.payload);
        }
    };
    check();
    assert!(log.queued_bytes() > 14_000);
    disk.set_hang(false);
    settle(&log, 8);
    check();
    assert_eq!(log.queued_bytes(), 0);
    let gone = ReadError::Gone { position: positions[0], index: LogIndex(9) };
    assert_eq!(log.read(positions[0], LogIndex(9)), Err(gone));
}

/// Fault test 22.
#[test]
fn a_damaged_record_is_never_handed_out() {
    let disk = SimulatedDisk::blank(4, SIZE);
    let log = begin(&disk, LIMITS);
    let position = log.append(record(1, 1024, 1)).unwrap();
    settle(&log, 1);
    for at in 0..80 + 1024 {
        let byte = (position.offset() + at) as usize;
        disk.state().cached[0][byte] ^= 1 << (at % 8);
        let read = log.read(position, LogIndex(1));
        assert!(matches!(read, Err(ReadError::Header { .. } | ReadError::Payload { .. })), "byte {at}: {read:?}");
        disk.state().cached[0][byte] ^= 1 << (at % 8);
    }
    assert!(log.read(position, LogIndex(1)).is_ok());
}

#[test]
fn a_segment_begins_with_a_synced_header() {
    let disk = SimulatedDisk::blank(16, SIZE);
    let log = begin(&disk, LIMITS);
    append_all(&log, 1..100, 512, 1);
    sync(&log, 99);
    let calls = disk.state().calls.clone();
    let mut begun = 0;
    for slot in 0..16 {
        let own: Vec<Call> = calls.iter().filter(|call| call.slot() == slot).copied().collect();
        let [header, synced, record, ..] = own[..] else { continue };
        begun += 1;
        assert_eq!(header, Call::Write { slot, offset: 0, length: FIRST_RECORD });
        assert_eq!(synced, Call::Sync { slot });
        assert!(matches!(record, Call::Write { offset: FIRST_RECORD, .. }), "{record:?}");
    }
    assert!(begun > 4);
}

#[test]
fn no_page_is_written_in_part_that_was_not_written_before() {
    let disk = SimulatedDisk::blank(4, SIZE);
    let log = begin(&disk, LIMITS);
    let mut written = BTreeMap::new();
    for index in 1..20 {
        append_all(&log, index..=index, 512 * (index as usize % 3 + 1), 1);
        settle(&log, index);
    }
    for call in &disk.state().calls {
        let &Call::Write { slot, offset, length } = call else { continue };
        let before = written.insert(slot, offset + length).unwrap_or_default();
        assert!(offset % 4096 == 0 || offset < before, "it begins a page in part: {call:?}");
        assert!((offset + length) % 4096 == 0 || offset + length == SIZE, "it ends a page in part: {call:?}");
    }
    assert!(written.len() > 1);
}

#[test]
fn small_records_are_written_many_at_once() {
    let disk = SimulatedDisk::blank(2, FIRST_RECORD + (1 << 20));
    let opened = Opened { created: false, log: LOG, epoch: 1 };
    let inner = Inner::new(opened, Box::new(disk.clone()), FIRST_RECORD + (1 << 20), 2, 1, LIMITS);
    let log = Pool(Arc::new(inner)).volume(VOLUME, Start::Empty(LogIndex(1))).unwrap();
    disk.set_hang(true);
    log.append(record(1, 512, 1)).unwrap();
    disk.wait_for_hang();
    append_all(&log, 2..1500, 512, 1);
    disk.set_hang(false);
    sync(&log, 1499);
    let calls = disk.state().calls.len();
    assert!(calls < 10, "{calls} calls for 1499 records");
}

/// Counterexample 11.
#[test]
fn nothing_is_taken_after_the_first_refusal() {
    let disk = SimulatedDisk::blank(2, SIZE);
    let log = begin(&disk, LIMITS);
    let refused = (1..).find(|index| log.append(record(*index, 4096, 1)).is_err()).unwrap();
    assert_eq!(log.append(record(refused, 0, 1)), Err(Full::Segments), "a small one that would fit");
    settle(&log, refused - 1);
    log.free(LogIndex(refused - 1));
    assert_eq!(log.append(record(refused, 0, 1)), Err(Full::Segments), "room again, but there is a gap already");
    log.reset(LogIndex(refused + 5));
    log.append(record(refused + 5, 4096, 1)).unwrap();
    sync(&log, refused + 5);
    let (recovered, _) = recover(&open(&disk, 2, 1, LIMITS));
    assert_eq!((recovered.first.0, recovered.next.0), (refused + 5, refused + 6));
}

/// Fault test 21.
#[test]
fn memory_is_bounded_for_all_volumes_together() {
    let disk = SimulatedDisk::blank(16, SIZE);
    let pool = open(&disk, 1, 2, Limits { in_flight: 10_000, ..LIMITS });
    let log = pool.volume(VOLUME, Start::Empty(LogIndex(1))).unwrap();
    let other = pool.volume(OTHER, Start::Empty(LogIndex(1))).unwrap();
    disk.set_hang(true);
    log.append(record(1, 4096, 1)).unwrap();
    log.append(record(2, 4096, 1)).unwrap();
    assert_eq!(other.append(record(1, 4096, 1)), Err(Full::Buffers));
    disk.set_hang(false);
    settle(&log, 2);
    assert_eq!(pool.in_flight_bytes(), 0);
    other.reset(LogIndex(1));
    other.append(record(1, 4096, 1)).unwrap();
    settle(&other, 1);
}

#[test]
fn a_greedy_volume_leaves_the_others_their_share() {
    let disk = SimulatedDisk::blank(16, SIZE);
    let pool = open(&disk, 1, 2, LIMITS);
    let greedy = pool.volume(VOLUME, Start::Empty(LogIndex(1))).unwrap();
    let other = pool.volume(OTHER, Start::Empty(LogIndex(1))).unwrap();
    let fill = |log: &VolumeLog| (1..).find(|index| log.append(record(*index, 4096, 1)).is_err());
    fill(&greedy);
    assert_eq!(greedy.used_bytes(), greedy.capacity_bytes());
    assert_eq!(greedy.used_bytes(), 12 * SIZE);
    fill(&other);
    assert_eq!(other.used_bytes(), 4 * SIZE);
}

#[test]
fn callers_of_sync_share_one_fdatasync() {
    let disk = SimulatedDisk::blank(4, SIZE);
    let log = begin(&disk, Limits { commit_every: NEVER, ..LIMITS });
    log.append(record(1, 0, 1)).unwrap();
    sync(&log, 1);
    let before = disk.state().calls.len();
    append_all(&log, 2..=20, 0, 1);
    runtime().block_on(async {
        let waits = (2..=20).map(|index| log.sync(LogIndex(index)));
        futures_util::future::try_join_all(waits).await.unwrap();
    });
    let syncs = disk.state().calls[before..].iter().filter(|call| matches!(call, Call::Sync { .. })).count();
    assert!((1..=2).contains(&syncs), "{syncs} syncs for 19 callers");
    assert_eq!(runtime().block_on(log.sync(LogIndex(21))), Err(LogFailed::NotLogged(LogIndex(21))));
}

#[test]
fn a_commit_comes_by_itself() {
    let disk = SimulatedDisk::blank(4, SIZE);
    let log = begin(&disk, Limits { commit_every: Duration::from_millis(1), ..LIMITS });
    log.append(record(1, 512, 1)).unwrap();
    let mut progress = log.watch();
    runtime()
        .block_on(async { progress.wait_for(|progress| progress.synced == LogIndex(1)).await.map(|_| ()) })
        .unwrap();
    let state = disk.state();
    assert_eq!(state.durable, state.cached);
}

/// Counterexample 11.
#[test]
fn records_out_of_order_or_of_another_length_are_refused() {
    for wrong in [
        record(2, 512, 1),
        Record { length: 511, ..record(1, 512, 1) },
        Record { op: LogOp::Zero, ..record(1, 512, 1) },
    ] {
        let log = begin(&SimulatedDisk::blank(4, SIZE), LIMITS);
        assert_eq!(log.append(wrong), Err(Full::Failed));
        assert!(log.failure().is_some());
    }
}

#[test]
fn closing_syncs_what_is_queued() {
    let disk = SimulatedDisk::blank(8, SIZE);
    let log = begin(&disk, Limits { commit_every: NEVER, ..LIMITS });
    append_all(&log, 1..=20, 512, 1);
    assert!(log.close(NEVER));
    assert_eq!(log.append(record(21, 512, 1)), Err(Full::Failed));
    let disk = SimulatedDisk::new(disk.power_cut(|_, _| false));
    assert_eq!(recover(&open(&disk, 2, 1, LIMITS)).0.next, LogIndex(21));
}

#[test]
fn volumes_that_are_gone_give_their_segments_back_when_all_others_are_open() {
    let disk = SimulatedDisk::blank(4, SIZE);
    let log = begin(&disk, LIMITS);
    append_all(&log, 1..=20, 1024, 1);
    assert!(log.close(NEVER));
    let pool = open(&disk, 2, 1, LIMITS);
    let other = pool.volume(OTHER, Start::Empty(LogIndex(1))).unwrap();
    append_all(&other, 1..=7, 1024, 2);
    assert_eq!(other.append(record(8, 1024, 2)), Err(Full::Segments));
    pool.release_unclaimed();
    other.reset(LogIndex(8));
    append_all(&other, 8..=27, 1024, 2);
}

#[test]
fn a_log_on_real_files_survives_its_process() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { size: 2 * SEGMENT, volumes: 1, discard: false };
    let (pool, _) = Pool::open(dir.path(), settings).unwrap();
    let log = pool.volume(VOLUME, Start::Empty(LogIndex(1))).unwrap();
    let records: Vec<Record> = (1..=90).map(|index| record(index, 1_000_000 + index as usize, 1)).collect();
    for record in &records {
        log.append(record.clone()).unwrap();
    }
    assert!(log.close(NEVER));
    drop((pool, log));

    let (pool, opened) = open_again(dir.path(), settings);
    assert_eq!((opened.created, opened.epoch), (false, 2));
    let (recovered, found) = recover(&pool);
    assert_eq!((recovered.first, recovered.next, recovered.ended), (LogIndex(1), LogIndex(91), Ended::End));
    let log = pool.volume(VOLUME, Start::After(recovered)).unwrap();
    for ((position, header), record) in found.iter().zip(&records) {
        assert_same(header, record);
        assert_eq!(log.read(*position, record.index).unwrap(), record.payload);
    }
    log.free(LogIndex(90));
    log.append(record(91, 512, 2)).unwrap();
}

/// The writer's thread lets go of the pool a moment after it has stopped.
fn open_again(dir: &std::path::Path, settings: Settings) -> (Pool, Opened) {
    loop {
        match Pool::open(dir, settings) {
            Err(OpenError::InUse { .. }) => std::thread::sleep(Duration::from_millis(1)),
            opened => return opened.unwrap(),
        }
    }
}

#[test]
fn appending_from_a_burst_and_reading_behind_it_loses_nothing() {
    let disk = SimulatedDisk::blank(64, SIZE);
    let log = begin(&disk, LIMITS);
    let (send, receive) = std::sync::mpsc::channel::<(Position, Record)>();
    let reader = std::thread::spawn({
        let log = log.clone();
        move || {
            for (position, record) in receive {
                assert_eq!(log.read(position, record.index).unwrap(), record.payload);
                log.free(LogIndex(record.index.0 - 1));
            }
        }
    });
    for index in 1..=3000 {
        let record = record(index, (index as usize * 37) % 1500, 1);
        let position = log.append(record.clone()).unwrap();
        send.send((position, record)).unwrap();
        if index % 200 == 0 {
            settle(&log, index);
            while log.used_bytes() > 20 * SIZE {
                std::thread::yield_now();
            }
        }
    }
    drop(send);
    reader.join().unwrap();
}

#[test]
fn a_position_keeps_slot_and_offset_apart() {
    let position = Position::new(u32::MAX, SEGMENT - 1);
    assert_eq!((position.slot(), position.offset()), (u32::MAX, SEGMENT - 1));
    assert_eq!(Position::from_bits(position.to_bits()), position);
}

#[test]
fn payload_is_shared_and_not_copied() {
    let disk = SimulatedDisk::blank(4, SIZE);
    disk.set_hang(true);
    let log = begin(&disk, LIMITS);
    let payload = Bytes::from(vec![5; 512]);
    let position = log.append(Record { payload: payload.clone(), ..record(1, 512, 1) }).unwrap();
    assert_eq!(log.read(position, LogIndex(1)).unwrap().as_ptr(), payload.as_ptr());
    disk.set_hang(false);
    assert!(log.close(NEVER));
    assert!(payload.is_unique(), "the log keeps what it has written");
}

//! A disk that fails or hangs loses the log and nothing else.

use super::*;

/// Fault test 8.
#[test]
fn a_failed_sync_is_final() {
    let disk = SimulatedDisk::blank(4, SIZE);
    let log = begin(&disk, LIMITS);
    log.append(record(1, 512, 1)).unwrap();
    sync(&log, 1);
    disk.state().fail_syncs = true;
    let position = log.append(record(2, 512, 1)).unwrap();
    let failure = LogFailure::Sync { slot: 0, error: Errno::EIO };
    assert_eq!(runtime().block_on(log.sync(LogIndex(2))), Err(LogFailed::Failed(failure)));
    assert!(log.watch().borrow().failed);
    disk.state().fail_syncs = false;
    let calls = disk.state().calls.len();
    assert_eq!(log.append(record(3, 512, 1)), Err(Full::Failed));
    assert_eq!(runtime().block_on(log.sync(LogIndex(2))), Err(LogFailed::Failed(failure)));
    assert_eq!((log.synced(), log.failure()), (LogIndex(1), Some(failure)));
    assert!(log.read(position, LogIndex(2)).is_ok(), "what can be read may still be published");
    log.reset(LogIndex(10));
    assert_eq!(log.append(record(10, 512, 1)), Err(Full::Failed));
    assert!(!log.close(NEVER));
    assert_eq!(disk.state().calls.len(), calls, "the disk was used after the failure");
}

fn revived(log: &VolumeLog, next: u64) {
    while log.failure().is_some() {
        lock(&log.0.0.queue).revive_again();
        log.revive(LogIndex(next));
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_log_that_failed_begins_anew_when_its_disk_is_sound_and_nothing_of_it_is_found_again() {
    let disk = SimulatedDisk::blank(4, SIZE);
    let log = begin(&disk, LIMITS);
    append_all(&log, 1..=12, 1024, 1);
    sync(&log, 12);
    disk.state().fail_syncs = true;
    log.append(record(13, 512, 1)).unwrap();
    assert!(runtime().block_on(log.sync(LogIndex(13))).is_err());
    log.revive(LogIndex(14));
    std::thread::sleep(Duration::from_millis(50));
    assert!(log.failure().is_some(), "the disk still fails");
    assert_eq!(log.append(record(14, 512, 1)), Err(Full::Failed));

    disk.state().fail_syncs = false;
    revived(&log, 14);
    assert_eq!(log.append(record(14, 512, 1)), Err(Full::Failed), "it was not begun");
    assert_eq!(log.used_bytes(), 0);
    let empty = SimulatedDisk::new(disk.power_cut(|_, _| true));
    assert_eq!(recover(&open(&empty, 2, 1, LIMITS)).1, []);

    log.reset(LogIndex(14));
    append_all(&log, 14..=30, 1024, 1);
    sync(&log, 30);
    let after = SimulatedDisk::new(disk.power_cut(|_, _| false));
    let (recovered, records) = recover(&open(&after, 2, 1, LIMITS));
    assert_eq!((recovered.first, recovered.next, records.len()), (LogIndex(14), LogIndex(31), 17));
}

#[test]
fn a_log_that_hangs_is_not_used_again_before_its_disk_has_answered() {
    let disk = SimulatedDisk::blank(4, SIZE);
    let log = begin(&disk, Limits { hang: Duration::from_millis(20), ..LIMITS });
    log.append(record(1, 512, 1)).unwrap();
    sync(&log, 1);
    disk.set_hang(true);
    log.append(record(2, 512, 1)).unwrap();
    disk.wait_for_hang();
    std::thread::sleep(Duration::from_millis(30));
    assert!(matches!(log.failure(), Some(LogFailure::Hung(_))));
    log.revive(LogIndex(3));
    std::thread::sleep(Duration::from_millis(30));
    assert!(log.failure().is_some(), "the write that hangs may still land");
    disk.set_hang(false);
    revived(&log, 3);
    log.reset(LogIndex(3));
    log.append(record(3, 512, 1)).unwrap();
    sync(&log, 3);
    let after = SimulatedDisk::new(disk.power_cut(|_, _| true));
    let (recovered, _) = recover(&open(&after, 2, 1, LIMITS));
    assert_eq!((recovered.first, recovered.next), (LogIndex(3), LogIndex(4)));
}

#[test]
fn a_failed_write_leaves_the_queue_readable() {
    let disk = SimulatedDisk::blank(4, SIZE);
    disk.set_hang(true);
    let log = begin(&disk, LIMITS);
    let first = log.append(record(1, 512, 1)).unwrap();
    disk.wait_for_hang();
    let second = log.append(record(2, 512, 1)).unwrap();
    disk.state().fail_writes = true;
    disk.set_hang(false);
    let failed = runtime().block_on(log.sync(LogIndex(1)));
    assert_eq!(failed, Err(LogFailed::Failed(LogFailure::Write { slot: 0, error: Errno::EIO })));
    assert_eq!(log.appended(), LogIndex(0));
    assert_eq!(log.read(first, LogIndex(1)).unwrap(), record(1, 512, 1).payload);
    assert_eq!(log.read(second, LogIndex(2)).unwrap(), record(2, 512, 1).payload);
    log.reset(LogIndex(3));
    assert_eq!(log.queued_bytes(), 0);
}

#[test]
fn a_disk_that_hangs_loses_the_log_and_nothing_else() {
    let disk = SimulatedDisk::blank(4, SIZE);
    disk.set_hang(true);
    let pool = open(&disk, 1, 1, Limits { hang: Duration::from_millis(20), ..LIMITS });
    let log = pool.volume(VOLUME, Start::Empty(LogIndex(1))).unwrap();
    let position = log.append(record(1, 512, 1)).unwrap();
    let hung = LogFailure::Hung(Duration::from_millis(20));
    assert_eq!(runtime().block_on(log.sync(LogIndex(1))), Err(LogFailed::Failed(hung)));
    assert_eq!(log.append(record(2, 512, 1)), Err(Full::Failed));
    assert_eq!(log.read(position, LogIndex(1)).unwrap(), record(1, 512, 1).payload);
    disk.set_hang(false);
    assert!(!log.close(NEVER), "a log that had hung recovered");
    assert_eq!((log.appended(), log.synced()), (LogIndex(0), LogIndex(0)));
    log.reset(LogIndex(2));
    assert_eq!(pool.in_flight_bytes(), 0);
}

/// Fault test 8.
#[test]
fn a_waiter_is_not_told_that_dropped_records_are_synced() {
    let disk = SimulatedDisk::blank(4, SIZE);
    disk.set_hang(true);
    let log = begin(&disk, LIMITS);
    log.append(record(1, 512, 1)).unwrap();
    let (waiter, ready) = (log.clone(), Arc::new(std::sync::Barrier::new(2)));
    let thread = std::thread::spawn({
        let ready = ready.clone();
        move || {
            ready.wait();
            runtime().block_on(waiter.sync(LogIndex(1)))
        }
    });
    ready.wait();
    disk.wait_for_hang();
    while lock(&log.0.0.queue).sync_through == LogIndex(0) {
        std::thread::yield_now();
    }
    log.reset(LogIndex(2));
    disk.set_hang(false);
    assert_eq!(thread.join().unwrap(), Err(LogFailed::Reset));
}

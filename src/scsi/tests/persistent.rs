//! PERSISTENT RESERVE and RESERVE(6), as nexuses see them.

use std::io;
use std::sync::Mutex;
use std::task::Poll;

use futures_util::poll;

use super::*;
use crate::scsi::Keep;

const REGISTER: u8 = 0x00;
const RESERVE: u8 = 0x01;
const RELEASE: u8 = 0x02;
const CLEAR: u8 = 0x03;
const PREEMPT: u8 = 0x04;
const PREEMPT_AND_ABORT: u8 = 0x05;
const REGISTER_AND_IGNORE: u8 = 0x06;

pub const WRITE_EXCLUSIVE: u8 = 1;
pub const EXCLUSIVE_ACCESS: u8 = 3;
const WRITE_EXCLUSIVE_REGISTRANTS: u8 = 5;
const EXCLUSIVE_ACCESS_ALL: u8 = 8;

/// The parameter list of PERSISTENT RESERVE OUT.
pub fn keys(current: u64, new: u64, flags: u8) -> Vec<u8> {
    let mut list = [current.to_be_bytes(), new.to_be_bytes(), [0; 8]].concat();
    list[20] = flags;
    list
}

pub fn out(action: u8, kind: u8) -> [u8; 10] {
    [0x5F, action, kind, 0, 0, 0, 0, 0, 24, 0]
}

pub async fn register(nexus: &Nexus, key: u64) {
    good(nexus, &out(REGISTER_AND_IGNORE, 0), &keys(0, key, 0)).await;
}

pub async fn reserve(nexus: &Nexus, key: u64, kind: u8) {
    good(nexus, &out(RESERVE, kind), &keys(key, 0, 0)).await;
}

/// PERSISTENT RESERVE IN.
pub async fn persistent_in(nexus: &Nexus, action: u8) -> Bytes {
    good(nexus, &[0x5E, action, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0], &[]).await
}

#[tokio::test]
async fn what_is_registered_and_held_is_read_back() {
    let (unit, first) = memory();
    let second = nexus(&unit, 2);
    register(&first, 0x11).await;
    register(&second, 0x22).await;
    reserve(&first, 0x11, WRITE_EXCLUSIVE).await;
    let read_keys = persistent_in(&second, 0).await;
    assert_eq!(read_keys[..], [[0, 0, 0, 2], [0, 0, 0, 16], [0; 4], [0, 0, 0, 0x11], [0; 4], [0, 0, 0, 0x22]].concat());
    let read_reservation = persistent_in(&second, 1).await;
    let held = [[0, 0, 0, 2], [0, 0, 0, 16], [0; 4], [0, 0, 0, 0x11], [0; 4], [0, WRITE_EXCLUSIVE, 0, 0]].concat();
    assert_eq!(read_reservation, held);
    assert_eq!(persistent_in(&second, 2).await[..], [0, 8, 0, 0x80, 0xEA, 0x01, 0, 0]);
    let status = persistent_in(&second, 3).await;
    let id = b"iqn.2026-11.example:host1,i,0x800000000001\0\0";
    assert_eq!(status[8..20], [0, 0, 0, 0, 0, 0, 0, 0x11, 0, 0, 0, 0]);
    assert_eq!(status[20..32], [1, WRITE_EXCLUSIVE, 0, 0, 0, 0, 0, 1, 0, 0, 0, 4 + id.len() as u8]);
    assert_eq!(status[32..36], [0x45, 0, 0, id.len() as u8]);
    assert_eq!(&status[36..36 + id.len()], id);
    let cut = good(&first, &[0x5E, 0, 0, 0, 0, 0, 0, 0, 8, 0], &[]).await;
    assert_eq!(cut[..], read_keys[..8], "ADDITIONAL LENGTH is that of all keys");
}

#[tokio::test]
async fn those_who_lose_something_are_told_what() {
    let (unit, first) = memory();
    let (second, third) = (nexus(&unit, 2), nexus(&unit, 3));
    for (nexus, key) in [(&first, 1), (&second, 2), (&third, 3)] {
        register(nexus, key).await;
    }
    reserve(&first, 1, WRITE_EXCLUSIVE_REGISTRANTS).await;
    good(&first, &out(RELEASE, WRITE_EXCLUSIVE_REGISTRANTS), &keys(1, 0, 0)).await;
    assert_eq!(refused(&second, &test_unit_ready(), &[]).await.code, 0x2A04);
    assert_eq!(refused(&third, &test_unit_ready(), &[]).await.code, 0x2A04);
    good(&first, &test_unit_ready(), &[]).await;
    good(&second, &out(PREEMPT, EXCLUSIVE_ACCESS_ALL), &keys(2, 1, 0)).await;
    assert_eq!(refused(&first, &test_unit_ready(), &[]).await.code, 0x2A05);
    good(&third, &test_unit_ready(), &[]).await;
    good(&second, &out(CLEAR, 0), &keys(2, 0, 0)).await;
    assert_eq!(refused(&third, &test_unit_ready(), &[]).await.code, 0x2A03);
    good(&second, &test_unit_ready(), &[]).await;
    assert_eq!(persistent_in(&first, 0).await.len(), 8);
}

#[tokio::test]
async fn what_is_asked_for_wrongly_changes_nothing() {
    let (_unit, nexus) = memory();
    assert_eq!(status(&nexus, &out(RESERVE, WRITE_EXCLUSIVE), &keys(1, 0, 0)).await, Status::ReservationConflict);
    assert_eq!(status(&nexus, &out(REGISTER, 0), &keys(1, 2, 0)).await, Status::ReservationConflict);
    register(&nexus, 1).await;
    assert_eq!(status(&nexus, &out(REGISTER, 0), &keys(0, 2, 0)).await, Status::ReservationConflict);
    reserve(&nexus, 1, WRITE_EXCLUSIVE).await;
    let before = (persistent_in(&nexus, 0).await, persistent_in(&nexus, 1).await);
    for (cdb, list, code) in [
        (out(RELEASE, EXCLUSIVE_ACCESS), keys(1, 0, 0), 0x2604),
        (out(RESERVE, 2), keys(1, 0, 0), 0x2400),
        (out(RESERVE, 0x10 | WRITE_EXCLUSIVE), keys(1, 0, 0), 0x2400),
        (out(PREEMPT, WRITE_EXCLUSIVE), keys(1, 0, 0), 0x2600),
        (out(REGISTER, 0), keys(1, 2, 0x08), 0x2600),
        (out(REGISTER, 0), keys(1, 2, 0x04), 0x2600),
        (out(REGISTER, 0), keys(1, 2, 0x01), 0x2600),
        (out(REGISTER, 0), keys(1, 2, 0)[..20].to_vec(), 0x0E03),
        ([0x5F, REGISTER, 0, 0, 0, 0, 0, 0, 23, 0], keys(1, 2, 0), 0x1A00),
        (out(0x07, 0), keys(1, 2, 0), 0x2400),
    ] {
        assert_eq!(refused(&nexus, &cdb, &list).await.code, code, "{cdb:02x?}");
        assert_eq!((persistent_in(&nexus, 0).await, persistent_in(&nexus, 1).await), before, "{cdb:02x?}");
    }
}

#[tokio::test]
async fn reserve_and_persistent_reservations_exclude_each_other() {
    let (unit, first) = memory();
    let second = nexus(&unit, 2);
    let (take, give) = ([0x16, 0, 0, 0, 0, 0], [0x17, 0, 0, 0, 0, 0]);
    good(&first, &take, &[]).await;
    good(&first, &take, &[]).await;
    assert_eq!(status(&second, &take, &[]).await, Status::ReservationConflict);
    assert_eq!(status(&second, &test_unit_ready(), &[]).await, Status::ReservationConflict);
    assert_eq!(status(&second, &out(REGISTER, 0), &keys(0, 1, 0)).await, Status::ReservationConflict);
    good(&second, &[0x12, 0, 0, 0, 36, 0], &[]).await;
    good(&second, &give, &[]).await;
    assert_eq!(status(&second, &read(0, 1), &[]).await, Status::ReservationConflict, "what another holds stays");
    drop(first);
    good(&second, &read(0, 1), &[]).await;
    register(&second, 1).await;
    assert_eq!(status(&second, &take, &[]).await, Status::ReservationConflict);
    let third = nexus(&unit, 3);
    assert_eq!(status(&third, &give, &[]).await, Status::ReservationConflict);
}

#[tokio::test]
async fn a_registration_is_of_the_port_and_not_of_its_session() {
    let (unit, first) = memory();
    register(&first, 1).await;
    reserve(&first, 1, EXCLUSIVE_ACCESS).await;
    drop(first);
    let other = nexus(&unit, 2);
    assert_eq!(status(&other, &read(0, 1), &[]).await, Status::ReservationConflict);
    let again = nexus(&unit, 1);
    good(&again, &read(0, 1), &[]).await;
    let through_another = unit.attach(InitiatorPort { target_port: 2, ..port(1) });
    assert!(through_another.admit(0, &test_unit_ready()).is_err());
    assert_eq!(status(&through_another, &read(0, 1), &[]).await, Status::ReservationConflict);
}

#[tokio::test]
async fn what_was_admitted_before_a_preemption_does_not_write_after_it() {
    let (unit, first) = memory();
    let second = nexus(&unit, 2);
    register(&second, 2).await;
    let admitted = first.admit(0, &write(0, 1)).unwrap();
    reserve(&second, 2, WRITE_EXCLUSIVE).await;
    let answer = first.execute(admitted, filled(9, 1).into()).await.unwrap();
    assert_eq!(answer.status, Status::ReservationConflict);
    assert_eq!(good(&first, &read(0, 1), &[]).await, filled(0, 1));
}

#[tokio::test]
async fn preempt_and_abort_waits_for_the_changes_that_the_other_has_begun() {
    let (disk, gate) = (FaultyDisk::new(MemoryDisk::new(SIZE)), Gate::new());
    disk.inject(Fault::hold(Kind::Write, &gate).once());
    let unit = unit(disk);
    let (first, second) = (nexus(&unit, 1), nexus(&unit, 2));
    register(&first, 1).await;
    register(&second, 2).await;
    reserve(&first, 1, WRITE_EXCLUSIVE).await;
    let command = first.admit(0, &write(0, 1)).unwrap();
    let mut begun = first.execute(command, filled(1, 1).into());
    assert!(poll!(&mut begun).is_pending());
    let waiting = first.admit(0, &write(1, 1)).unwrap();
    let preempt = second.admit(0, &out(PREEMPT_AND_ABORT, WRITE_EXCLUSIVE)).unwrap();
    let mut preempted = second.execute(preempt, keys(2, 1, 0).into());
    assert!(poll!(&mut preempted).is_pending(), "a write of the preempted is still under way");
    let mut late = first.execute(waiting, filled(1, 1).into());
    assert!(poll!(&mut late).is_pending(), "what comes now waits for the preemption");
    gate.open();
    assert_eq!(begun.await.unwrap().status, Status::Good);
    assert_eq!(preempted.await.unwrap().status, Status::Good);
    assert_eq!(late.await.unwrap().status, Status::ReservationConflict);
    assert!(matches!(
        poll!(&mut second.execute(second.admit(0, &write(2, 1)).unwrap(), filled(2, 1).into())),
        Poll::Ready(_)
    ));
}

/// A document in memory, and an error on order.
#[derive(Default)]
struct Document(Mutex<(Option<Vec<u8>>, bool)>);

impl Keep for Document {
    fn load(&self) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.lock().unwrap().0.clone())
    }

    fn store(&self, document: &[u8]) -> io::Result<()> {
        let mut kept = self.0.lock().unwrap();
        if kept.1 {
            return Err(io::Error::other("on order"));
        }
        kept.0 = Some(document.to_vec());
        Ok(())
    }
}

#[tokio::test]
async fn what_is_registered_to_last_outlasts_a_start_and_nothing_else_does() {
    let kept = Arc::new(Document::default());
    let start = || {
        let settings = UnitSettings { keep: Some(kept.clone()), ..settings() };
        Unit::new(Arc::new(MemoryDisk::new(SIZE)), settings).unwrap()
    };
    let unit = start();
    let first = nexus(&unit, 1);
    good(&first, &out(REGISTER, 0), &keys(0, 1, 1)).await;
    reserve(&first, 1, WRITE_EXCLUSIVE).await;
    let before = persistent_in(&first, 1).await;
    assert_eq!(persistent_in(&first, 2).await[2..4], [0x01, 0x81], "PTPL_C and PTPL_A");

    let unit = start();
    let (first, other) = (nexus(&unit, 1), nexus(&unit, 2));
    assert_eq!(persistent_in(&other, 1).await[4..], before[4..]);
    assert_eq!(status(&other, &write(0, 1), &filled(0, 1)).await, Status::ReservationConflict);
    good(&first, &write(0, 1), &filled(0, 1)).await;

    kept.0.lock().unwrap().1 = true;
    assert_eq!(refused(&first, &out(RELEASE, WRITE_EXCLUSIVE), &keys(1, 0, 0)).await.code, 0x4400);
    assert_eq!(persistent_in(&other, 1).await[4..], before[4..], "what could not be stored was not done");
    kept.0.lock().unwrap().1 = false;

    good(&first, &out(REGISTER, 0), &keys(1, 3, 0)).await;
    let unit = start();
    assert_eq!(persistent_in(&nexus(&unit, 2), 0).await[..], [0; 8], "without APTPL nothing lasts");
    kept.0.lock().unwrap().0.as_mut().unwrap()[3] ^= 1;
    let settings = UnitSettings { keep: Some(kept.clone()), ..settings() };
    assert!(Unit::new(Arc::new(MemoryDisk::new(SIZE)), settings).is_err(), "a unit without its reservations is served");
}

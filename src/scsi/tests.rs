//! Nexuses of a unit in front of a disk in memory: what they ask, and what they are answered.

mod blocks;
mod persistent;
mod reservations;
mod state;

use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use super::command::TABLE;
use super::{Answer, InitiatorPort, Nexus, Sense, Status, Unit, UnitSettings, fuzzing, sense};
use crate::disk::faulty::{Fault, FaultyDisk, Gate, Kind};
use crate::disk::{Abilities, Disk, DiskError, Errno, Geometry, MemoryDisk};
use crate::units::{KIB, MIB};

const SIZE: u64 = 64 * MIB;
const BLOCK: usize = 512;

fn settings() -> UnitSettings {
    UnitSettings {
        name: "disk0".into(),
        serial: "0123456789".into(),
        id: *b"\xffunit of tests!!",
        target: "iqn.2026-11.example:disk0".into(),
        target_ports: 2,
        keep: None,
    }
}

fn unit(disk: impl Disk) -> Unit {
    Unit::new(Arc::new(disk), settings()).unwrap()
}

fn port(number: u8) -> InitiatorPort {
    InitiatorPort {
        name: format!("iqn.2026-11.example:host{number}"),
        isid: [0x80, 0, 0, 0, 0, number],
        target_port: 1,
    }
}

/// A nexus that has been told of its start.
fn nexus(unit: &Unit, number: u8) -> Nexus {
    let nexus = unit.attach(port(number));
    assert_eq!(code(&nexus.admit(0, &test_unit_ready()).err().unwrap()), 0x2900);
    nexus
}

fn memory() -> (Unit, Nexus) {
    let unit = unit(MemoryDisk::new(SIZE));
    let nexus = nexus(&unit, 1);
    (unit, nexus)
}

async fn ask(nexus: &Nexus, cdb: &[u8], data: &[u8]) -> Answer {
    match nexus.admit(0, cdb) {
        Ok(command) => nexus.execute(command, Bytes::copy_from_slice(data)).await.unwrap(),
        Err(answer) => answer,
    }
}

/// Its data, of a command that succeeds.
async fn good(nexus: &Nexus, cdb: &[u8], data: &[u8]) -> Bytes {
    let answer = ask(nexus, cdb, data).await;
    assert_eq!(answer.status, Status::Good, "{cdb:02x?}: {answer:?}");
    answer.data
}

/// The sense data of a command that does not.
async fn refused(nexus: &Nexus, cdb: &[u8], data: &[u8]) -> Sense {
    let answer = ask(nexus, cdb, data).await;
    assert_eq!(answer.status, Status::CheckCondition, "{cdb:02x?}: {answer:?}");
    answer.sense.unwrap()
}

async fn status(nexus: &Nexus, cdb: &[u8], data: &[u8]) -> Status {
    ask(nexus, cdb, data).await.status
}

/// Additional sense code and qualifier; zero without sense data.
fn code(answer: &Answer) -> u16 {
    answer.sense.map_or(0, |sense| sense.code)
}

fn test_unit_ready() -> [u8; 6] {
    [0; 6]
}

fn cdb10(operation_code: u8, lba: u32, count: u16) -> [u8; 10] {
    let mut cdb = [0; 10];
    cdb[0] = operation_code;
    cdb[2..6].copy_from_slice(&lba.to_be_bytes());
    cdb[7..9].copy_from_slice(&count.to_be_bytes());
    cdb
}

fn cdb12(operation_code: u8, lba: u32, count: u32) -> [u8; 12] {
    let mut cdb = [0; 12];
    cdb[0] = operation_code;
    cdb[2..6].copy_from_slice(&lba.to_be_bytes());
    cdb[6..10].copy_from_slice(&count.to_be_bytes());
    cdb
}

fn cdb16(operation_code: u8, lba: u64, count: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = operation_code;
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&count.to_be_bytes());
    cdb
}

fn read(lba: u32, count: u16) -> [u8; 10] {
    cdb10(0x28, lba, count)
}

fn write(lba: u32, count: u16) -> [u8; 10] {
    cdb10(0x2A, lba, count)
}

/// With this in byte 1.
fn with(mut cdb: impl AsMut<[u8]> + Copy, flags: u8) -> Vec<u8> {
    cdb.as_mut()[1] |= flags;
    cdb.as_mut().to_vec()
}

fn filled(byte: u8, blocks: usize) -> Vec<u8> {
    vec![byte; blocks * BLOCK]
}

/// A random command of the table, or of none, with a few bits that may be wrong.
fn any_command() -> impl Strategy<Value = Vec<u8>> {
    let cdb = (0..TABLE.len(), any::<[u8; 16]>(), any::<[u8; 16]>()).prop_map(|(row, bits, rare)| {
        let full = Abilities { fua: true, trim: true, ..Abilities::default() };
        let mut cdb = [0; 16];
        for (index, known) in TABLE[row].usage(full).enumerate() {
            // Opcode and service action as they are; high bytes mostly zero, so that ranges lie inside.
            let fixed = index == 0 || index == 1 && TABLE[row].action;
            let bits = if (2..8).contains(&index) && rare[index] > 20 { 0 } else { bits[index] };
            cdb[index] = if fixed { known } else { bits & (known | u8::from(rare[index] == 0)) };
        }
        cdb.to_vec()
    });
    let data = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..64),
        (any::<u8>(), 0..4usize).prop_map(|(byte, blocks)| filled(byte, blocks)),
        // Keys that meet.
        (0..3u8, 0..3u8, 0..2u8).prop_map(|(current, new, flags)| persistent::keys(current.into(), new.into(), flags)),
    ];
    let cdb = prop_oneof![5 => cdb, 1 => prop::collection::vec(any::<u8>(), 16)];
    (0..16u8, cdb, data).prop_map(|(control, cdb, data)| {
        let control = if control < 14 { control & 1 } else { control & 7 };
        [&[control][..], &cdb, &(data.len() as u16).to_le_bytes(), &data].concat()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn whatever_an_initiator_says_nothing_panics_or_changes_the_medium_but_what_is_known_to(
        commands in prop::collection::vec(any_command(), 1..30),
    ) {
        fuzzing::initiator(&commands.concat());
    }

    #[test]
    fn bytes_that_are_no_commands_are_survived(input in prop::collection::vec(any::<u8>(), 0..600)) {
        fuzzing::initiator(&input);
    }
}

//! An initiator that says anything: entry point of [`crate::fuzzing`].
//!
//! An input is commands, each as it is drawn; what is missing at its end is zero.
//!
//! ```text
//!  0   1  bit 0: which of two nexuses; bit 1: the unit is reset first; bit 2: another LUN
//!  1  16  CDB
//! 17   2  little endian: bytes of data-out that are offered
//! 19      these
//! ```

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::{InitiatorPort, Nexus, Status, Unit, UnitSettings};
use crate::disk::{BlockSizes, Disk, Geometry, MemoryDisk};
use crate::units::{KIB, MIB};

/// Small enough that an input full of reads takes no time.
const TRANSFER_MAX: u32 = 256 * KIB as u32;

/// Whether every command was done.
pub(crate) fn initiator(mut input: &[u8]) -> bool {
    let able = MemoryDisk::new(MIB).geometry();
    let block = BlockSizes { maximum: TRANSFER_MAX, ..able.block };
    let disk = Arc::new(MemoryDisk::with_geometry(Geometry { block, ..able }));
    let settings = UnitSettings {
        name: "disk0".into(),
        serial: "0123456789".into(),
        id: [7; 16],
        target: "iqn.2026-11.example:disk0".into(),
        target_ports: 1,
        keep: None,
    };
    let unit = Unit::new(disk.clone(), settings).expect("there is nothing to load");
    let nexuses = ["iqn.2026-11.example:a", "iqn.2026-11.example:b"]
        .map(|name| unit.attach(InitiatorPort { name: name.into(), isid: [0x80, 0, 0, 0, 0, 1], target_port: 1 }));
    // The first command is told of the start.
    nexuses.iter().for_each(|nexus| drop(nexus.admit(0, &[0; 16])));
    let mut all_done = true;
    while !input.is_empty() {
        let mut head = [0; 19];
        let length = input.len().min(head.len());
        head[..length].copy_from_slice(&input[..length]);
        let rest = &input[length..];
        let offered = usize::from(u16::from_le_bytes([head[17], head[18]])).min(rest.len());
        let (data, rest) = rest.split_at(offered);
        input = rest;
        let nexus = &nexuses[usize::from(head[0] & 1)];
        if head[0] & 2 != 0 {
            nexus.reset_unit();
        }
        let lun = if head[0] & 4 != 0 { 1 << 48 } else { 0 };
        all_done &= command(nexus, &disk, lun, &head[1..17], Bytes::copy_from_slice(data));
    }
    all_done
}

fn command(nexus: &Nexus, disk: &MemoryDisk, lun: u64, cdb: &[u8], data: Bytes) -> bool {
    let before = disk.identity();
    let (answer, may_change, most) = match nexus.admit(lun, cdb) {
        Ok(command) => {
            let mut pending = pin!(nexus.execute(command, data));
            let Poll::Ready(Ok(answer)) = pending.as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
                panic!("{cdb:02x?} waits though its disk does not, or fails");
            };
            (answer, command.row.changes(), command.data_in() as usize)
        }
        // Of another LUN; the allocation length is not known here.
        Err(answer) => (answer, false, 96),
    };
    assert!(may_change || disk.identity() == before, "{cdb:02x?} changed the medium");
    assert!(answer.data.len() <= most, "{cdb:02x?} has {} bytes of data, {most} are asked for", answer.data.len());
    assert_eq!(answer.sense.is_some(), answer.status == Status::CheckCondition, "{cdb:02x?}: {answer:?}");
    if let Some(sense) = answer.sense {
        assert!(sense.encode().len() <= 252, "{cdb:02x?}: {sense:?}");
    }
    answer.status == Status::Good
}

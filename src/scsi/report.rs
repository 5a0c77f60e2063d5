//! What the unit reports of itself besides INQUIRY: its capacity, its commands, its ports (SPC-4, 6; SBC-4, 5).
//!
//! Every answer is whole; whoever sends it cuts it to the allocation length.

use bytes::{BufMut, Bytes, BytesMut};

use super::command::{Row, TABLE, rows};
use super::inquiry::TARGET_PORT_GROUP;
use super::sense::{INVALID_FIELD_IN_CDB, Sense};
use super::shape::{Command, Shape};
use crate::disk::Abilities;

pub(super) fn read_capacity_10(shape: &Shape) -> Bytes {
    let mut bytes = BytesMut::with_capacity(8);
    // All ones: ask READ CAPACITY(16).
    bytes.put_u32(u32::try_from(shape.blocks.saturating_sub(1)).unwrap_or(u32::MAX));
    bytes.put_u32(shape.block_length);
    bytes.freeze()
}

pub(super) fn read_capacity_16(shape: &Shape) -> Bytes {
    let mut bytes = BytesMut::with_capacity(32);
    bytes.put_u64(shape.blocks.saturating_sub(1));
    bytes.put_u32(shape.block_length);
    // No protection. Nothing is known of physical blocks: what is best written together is in the Block Limits page.
    bytes.put_u16(0);
    // LBPME and LBPRZ.
    let abilities = shape.abilities;
    bytes.put_u8(if abilities.trim { 0x80 } else { 0 } | if abilities.trim_reads_zero { 0x40 } else { 0 });
    bytes.resize(32, 0);
    bytes.freeze()
}

/// No defects are known, in whatever format they are asked for (SBC-4, 5.18).
pub(super) fn read_defect_data_10(command: &Command) -> Bytes {
    Bytes::copy_from_slice(&[0, command.cdb.byte(2), 0, 0])
}

pub(super) fn read_defect_data_12(command: &Command) -> Bytes {
    Bytes::copy_from_slice(&[0, command.cdb.byte(1), 0, 0, 0, 0, 0, 0])
}

pub(super) fn luns(command: &Command) -> Result<Bytes, Sense> {
    // SPC-4, 6.33: fewer would not hold one.
    if command.cdb.length() < 16 {
        return Err(INVALID_FIELD_IN_CDB.at_cdb(6));
    }
    let mut bytes = BytesMut::zeroed(8);
    match command.cdb.byte(2) {
        // SELECT REPORT: logical units that are not well known ones, or all.
        0x00 | 0x02 => {
            bytes[3] = 8;
            bytes.put_u64(0);
        }
        // Well known ones, or subsidiary ones.
        0x01 | 0x10..=0x12 => {}
        _ => return Err(INVALID_FIELD_IN_CDB.at_cdb(2)),
    }
    Ok(bytes.freeze())
}

/// One group of all ports, which are active and optimized (SPC-4, 6.37).
pub(super) fn target_port_groups(ports: u16, command: &Command) -> Bytes {
    let ports = ports.clamp(1, u8::MAX.into());
    let mut bytes = BytesMut::zeroed(4);
    // PARAMETER DATA FORMAT: with an extended header, which says nothing.
    if command.cdb.flag(0x20) {
        bytes.put_slice(&[0x10, 0, 0, 0]);
    }
    // The state; AO_SUP.
    bytes.put_slice(&[0x00, 0x01]);
    bytes.put_u16(TARGET_PORT_GROUP);
    bytes.put_slice(&[0, 0, 0, ports as u8]);
    for port in 1..=ports {
        bytes.put_u16(0);
        bytes.put_u16(port);
    }
    let length = bytes.len() as u32 - 4;
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    bytes.freeze()
}

/// SPC-4, 6.36: ABORT TASK, ABORT TASK SET, CLEAR TASK SET and LOGICAL UNIT RESET.
pub(super) fn supported_task_management_functions(command: &Command) -> Result<Bytes, Sense> {
    if command.cdb.length() < 4 {
        return Err(INVALID_FIELD_IN_CDB.at_cdb(6));
    }
    Ok(Bytes::from_static(&[0xD8, 0, 0, 0]))
}

/// SPC-4, 6.35.
pub(super) fn supported_operation_codes(abilities: Abilities, command: &Command) -> Result<Bytes, Sense> {
    let cdb = &command.cdb;
    let timeouts = cdb.byte(2) & 0x80 != 0;
    let (operation_code, service_action) = (cdb.byte(3), cdb.u16(4));
    let mut known = rows(operation_code).filter(|row| row.is_supported(abilities)).peekable();
    let actions = known.peek().map(|row| row.action);
    let unsuitable = INVALID_FIELD_IN_CDB.at_cdb_bit(2, 2);
    match cdb.byte(2) & 0x07 {
        0b000 => Ok(all_commands(abilities, timeouts)),
        0b001 if actions == Some(true) => Err(unsuitable),
        0b001 => Ok(one_command(known.next(), abilities, timeouts)),
        0b010 if actions == Some(false) => Err(unsuitable),
        0b010 | 0b011 => {
            let row = known.find(|row| u16::from(row.service_action()) == service_action);
            Ok(one_command(row, abilities, timeouts))
        }
        _ => Err(unsuitable),
    }
}

/// A command timeouts descriptor that says none.
const TIMEOUTS: [u8; 12] = [0, 0x0A, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn all_commands(abilities: Abilities, timeouts: bool) -> Bytes {
    let mut bytes = BytesMut::zeroed(4);
    for row in TABLE.iter().filter(|row| row.is_supported(abilities)) {
        bytes.put_slice(&[row.operation_code(), 0, 0, row.service_action(), 0]);
        // CTDP and SERVACTV.
        bytes.put_u8(if timeouts { 0x02 } else { 0 } | u8::from(row.action));
        bytes.put_u16(row.cdb_length() as u16);
        if timeouts {
            bytes.put_slice(&TIMEOUTS);
        }
    }
    let length = bytes.len() as u32 - 4;
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    bytes.freeze()
}

fn one_command(row: Option<&'static Row>, abilities: Abilities, timeouts: bool) -> Bytes {
    let mut bytes = BytesMut::new();
    // SUPPORT: not at all, or as the standard has it.
    let Some(row) = row else { return Bytes::from_static(&[0, 0x01, 0, 0]) };
    bytes.put_slice(&[0, if timeouts { 0x80 } else { 0 } | 0x03]);
    bytes.put_u16(row.cdb_length() as u16);
    bytes.extend(row.usage(abilities));
    if timeouts {
        bytes.put_slice(&TIMEOUTS);
    }
    bytes.freeze()
}

//! The table of commands, and a CDB that was found to be right.
//!
//! One table says which commands there are, which bits of their CDBs mean something here, and in the presence of which
//! reservations they are allowed. Decoding, REPORT SUPPORTED OPERATION CODES and the rules of reservations all follow
//! it. A command that is not in it is refused, and so is every bit that means nothing here: what is not understood must
//! not change a medium (SPC-4; SBC-3 and SBC-4).

use super::sense::{INVALID_COMMAND_OPERATION_CODE, INVALID_FIELD_IN_CDB, Sense};
use crate::disk::Abilities;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    TestUnitReady,
    RequestSense,
    Read,
    Write,
    Inquiry,
    ModeSelect,
    Reserve,
    Release,
    ModeSense,
    StartStopUnit,
    SendDiagnostic,
    PreventAllowMediumRemoval,
    ReadCapacity10,
    WriteAndVerify,
    Verify,
    PreFetch,
    SynchronizeCache,
    ReadDefectData10,
    WriteSame,
    Unmap,
    PersistentReserveIn,
    PersistentReserveOut,
    CompareAndWrite,
    OrWrite,
    ReadCapacity16,
    GetLbaStatus,
    ReportLuns,
    ReportTargetPortGroups,
    ReportSupportedOperationCodes,
    ReportSupportedTaskManagementFunctions,
    ReadDefectData12,
}

/// In the presence of whose reservations a command is allowed (SPC-4, table 70; SBC-3, table 14; SPC-2, table 9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Of any.
    Always,
    /// Of any but that of RESERVE(6).
    Tells,
    /// Of those that keep others from writing only.
    Reads,
    /// Of none but one's own, or those of which one is a registrant.
    Changes,
    /// The command is about reservations, and has rules of its own.
    Reserves,
}

/// A command as it is supported here.
pub(super) struct Row {
    pub kind: Kind,
    pub access: Access,
    /// The low five bits of byte 1 are a SERVICE ACTION.
    pub action: bool,
    /// Bits of byte 1 that need a disk with `fua`: DPO, FUA, FUA_NV.
    caching: u8,
    /// Bits of byte 1 that need a disk that trims: UNMAP.
    unmapping: u8,
    /// The CDB: OPERATION CODE, SERVICE ACTION, and of all else the bits that mean something. Its length is the CDB's.
    usage: &'static [u8],
}

const fn row(kind: Kind, access: Access, usage: &'static [u8]) -> Row {
    Row { kind, access, action: false, caching: 0, unmapping: 0, usage }
}

/// As [`row`], of an operation code that has service actions.
const fn action(kind: Kind, access: Access, usage: &'static [u8]) -> Row {
    Row { action: true, ..row(kind, access, usage) }
}

impl Row {
    const fn caching(self, caching: u8) -> Self {
        Self { caching, ..self }
    }

    const fn unmapping(self, unmapping: u8) -> Self {
        Self { unmapping, ..self }
    }

    pub fn operation_code(&self) -> u8 {
        self.usage[0]
    }

    /// Zero where there are none.
    pub fn service_action(&self) -> u8 {
        if self.action { self.usage[1] & SERVICE_ACTION } else { 0 }
    }

    /// Bytes.
    pub fn cdb_length(&self) -> usize {
        self.usage.len()
    }

    /// Whether it changes the medium.
    pub fn changes(&self) -> bool {
        use Kind::*;
        matches!(self.kind, Write | WriteAndVerify | WriteSame | Unmap | CompareAndWrite | OrWrite)
    }

    pub fn is_supported(&self, abilities: Abilities) -> bool {
        self.kind != Kind::Unmap || abilities.trim
    }

    /// The CDB USAGE DATA of a disk that is so able (SPC-4, 6.35.3).
    pub fn usage(&self, abilities: Abilities) -> impl Iterator<Item = u8> {
        let without = if abilities.fua { 0 } else { self.caching } | if abilities.trim { 0 } else { self.unmapping };
        self.usage.iter().enumerate().map(move |(index, bits)| if index == 1 { bits & !without } else { *bits })
    }

    /// Refuses bits that mean nothing here.
    fn check(&self, cdb: &[u8], abilities: Abilities) -> Result<(), Sense> {
        if cdb.len() < self.cdb_length() {
            return Err(INVALID_FIELD_IN_CDB);
        }
        for (index, (found, bits)) in cdb.iter().zip(self.usage(abilities)).enumerate().skip(1) {
            let known = if index == 1 && self.action { bits | SERVICE_ACTION } else { bits };
            let excess = found & !known;
            if excess != 0 {
                return Err(INVALID_FIELD_IN_CDB.at_cdb_bit(index as u16, excess.ilog2() as u8));
            }
        }
        Ok(())
    }
}

const SERVICE_ACTION: u8 = 0x1F;
const FF: u8 = 0xFF;
/// GROUP NUMBER: taken, and no statistics are kept by it.
const GP: u8 = 0x1F;
/// DPO and FUA, and the FUA_NV of SBC-2, which is taken for FUA. RDPROTECT and WRPROTECT must be zero.
const DF: u8 = 0x1A;
const DPO: u8 = 0x10;

use Access::*;

/// Every command there is, by operation code.
#[rustfmt::skip]
pub(super) static TABLE: [Row; 55] = [
    row(Kind::TestUnitReady, Tells, &[0x00, 0, 0, 0, 0, 0]),
    row(Kind::RequestSense, Always, &[0x03, 0x01, 0, 0, FF, 0]),
    row(Kind::Read, Reads, &[0x08, 0x1F, FF, FF, FF, 0]),
    row(Kind::Write, Changes, &[0x0A, 0x1F, FF, FF, FF, 0]),
    row(Kind::Inquiry, Always, &[0x12, 0x01, FF, FF, FF, 0]),
    row(Kind::ModeSelect, Changes, &[0x15, 0x11, 0, 0, FF, 0]),
    row(Kind::Reserve, Reserves, &[0x16, 0, 0, 0, 0, 0]),
    row(Kind::Release, Reserves, &[0x17, 0, 0, 0, 0, 0]),
    row(Kind::ModeSense, Reads, &[0x1A, 0x08, FF, FF, FF, 0]),
    // IMMED, NO_FLUSH, START. There is nothing to be ejected, and there are no power conditions.
    row(Kind::StartStopUnit, Changes, &[0x1B, 0x01, 0, 0, 0x05, 0]),
    // SELFTEST: the default self-test, without parameters and without others.
    row(Kind::SendDiagnostic, Changes, &[0x1D, 0x04, 0, 0, 0, 0]),
    row(Kind::PreventAllowMediumRemoval, Tells, &[0x1E, 0, 0, 0, 0x01, 0]),
    row(Kind::ReadCapacity10, Always, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    row(Kind::Read, Reads, &[0x28, DF, FF, FF, FF, FF, GP, FF, FF, 0]).caching(DF),
    row(Kind::Write, Changes, &[0x2A, DF, FF, FF, FF, FF, GP, FF, FF, 0]).caching(DF),
    row(Kind::WriteAndVerify, Changes, &[0x2E, 0x12, FF, FF, FF, FF, GP, FF, FF, 0]).caching(DPO),
    row(Kind::Verify, Reads, &[0x2F, 0x16, FF, FF, FF, FF, GP, FF, FF, 0]).caching(DPO),
    row(Kind::PreFetch, Reads, &[0x34, 0x02, FF, FF, FF, FF, GP, FF, FF, 0]),
    row(Kind::SynchronizeCache, Changes, &[0x35, 0x06, FF, FF, FF, FF, GP, FF, FF, 0]),
    row(Kind::ReadDefectData10, Reads, &[0x37, 0, 0x1F, 0, 0, 0, 0, FF, FF, 0]),
    // UNMAP; ANCHOR, PBDATA and LBDATA are refused.
    row(Kind::WriteSame, Changes, &[0x41, 0x08, FF, FF, FF, FF, GP, FF, FF, 0]).unmapping(0x08),
    row(Kind::Unmap, Changes, &[0x42, 0, 0, 0, 0, 0, GP, FF, FF, 0]),
    row(Kind::ModeSelect, Changes, &[0x55, 0x11, 0, 0, 0, 0, 0, FF, FF, 0]),
    row(Kind::ModeSense, Reads, &[0x5A, 0x18, FF, FF, 0, 0, 0, FF, FF, 0]),
    action(Kind::PersistentReserveIn, Tells, &[0x5E, 0x00, 0, 0, 0, 0, 0, FF, FF, 0]),
    action(Kind::PersistentReserveIn, Tells, &[0x5E, 0x01, 0, 0, 0, 0, 0, FF, FF, 0]),
    action(Kind::PersistentReserveIn, Tells, &[0x5E, 0x02, 0, 0, 0, 0, 0, FF, FF, 0]),
    action(Kind::PersistentReserveIn, Tells, &[0x5E, 0x03, 0, 0, 0, 0, 0, FF, FF, 0]),
    action(Kind::PersistentReserveOut, Reserves, &[0x5F, 0x00, FF, 0, 0, FF, FF, FF, FF, 0]),
    action(Kind::PersistentReserveOut, Reserves, &[0x5F, 0x01, FF, 0, 0, FF, FF, FF, FF, 0]),
    action(Kind::PersistentReserveOut, Reserves, &[0x5F, 0x02, FF, 0, 0, FF, FF, FF, FF, 0]),
    action(Kind::PersistentReserveOut, Reserves, &[0x5F, 0x03, FF, 0, 0, FF, FF, FF, FF, 0]),
    action(Kind::PersistentReserveOut, Reserves, &[0x5F, 0x04, FF, 0, 0, FF, FF, FF, FF, 0]),
    action(Kind::PersistentReserveOut, Reserves, &[0x5F, 0x05, FF, 0, 0, FF, FF, FF, FF, 0]),
    action(Kind::PersistentReserveOut, Reserves, &[0x5F, 0x06, FF, 0, 0, FF, FF, FF, FF, 0]),
    row(Kind::Read, Reads, &[0x88, DF, FF, FF, FF, FF, FF, FF, FF, FF, FF, FF, FF, FF, GP, 0]).caching(DF),
    row(Kind::CompareAndWrite, Changes, &[0x89, DF, FF, FF, FF, FF, FF, FF, FF, FF, 0, 0, 0, FF, GP, 0]).caching(DF),
    row(Kind::Write, Changes, &[0x8A, DF, FF, FF, FF, FF, FF, FF, FF, FF, FF, FF, FF, FF, GP, 0]).caching(DF),
    row(Kind::OrWrite, Changes, &[0x8B, DF, FF, FF, FF, FF, FF, FF, FF, FF, FF, FF, FF, FF, GP, 0]).caching(DF),
    row(Kind::WriteAndVerify, Changes, &[0x8E, 0x12, FF, FF, FF, FF, FF, FF, FF, FF, FF, FF, FF, FF, GP, 0]).caching(DPO),
    row(Kind::Verify, Reads, &[0x8F, 0x16, FF, FF, FF, FF, FF, FF, FF, FF, FF, FF, FF, FF, GP, 0]).caching(DPO),
    row(Kind::PreFetch, Reads, &[0x90, 0x02, FF, FF, FF, FF, FF, FF, FF, FF, FF, FF, FF, FF, GP, 0]),
    row(Kind::SynchronizeCache, Changes, &[0x91, 0x06, FF, FF, FF, FF, FF, FF, FF, FF, FF, FF, FF, FF, GP, 0]),
    // UNMAP and NDOB.
    row(Kind::WriteSame, Changes, &[0x93, 0x09, FF, FF, FF, FF, FF, FF, FF, FF, FF, FF, FF, FF, GP, 0]).unmapping(0x08),
    action(Kind::ReadCapacity16, Always, &[0x9E, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, FF, FF, FF, FF, 0, 0]),
    action(Kind::GetLbaStatus, Reads, &[0x9E, 0x12, FF, FF, FF, FF, FF, FF, FF, FF, FF, FF, FF, FF, 0, 0]),
    row(Kind::ReportLuns, Always, &[0xA0, 0, FF, 0, 0, 0, FF, FF, FF, FF, 0, 0]),
    // The low bit of PARAMETER DATA FORMAT: with an extended header or without.
    action(Kind::ReportTargetPortGroups, Tells, &[0xA3, 0x2A, 0, 0, 0, 0, FF, FF, FF, FF, 0, 0]),
    action(Kind::ReportSupportedOperationCodes, Reads, &[0xA3, 0x0C, 0x87, FF, FF, FF, FF, FF, FF, FF, 0, 0]),
    action(Kind::ReportSupportedTaskManagementFunctions, Reads, &[0xA3, 0x0D, 0, 0, 0, 0, FF, FF, FF, FF, 0, 0]),
    row(Kind::Read, Reads, &[0xA8, DF, FF, FF, FF, FF, FF, FF, FF, FF, GP, 0]).caching(DF),
    row(Kind::Write, Changes, &[0xAA, DF, FF, FF, FF, FF, FF, FF, FF, FF, GP, 0]).caching(DF),
    row(Kind::WriteAndVerify, Changes, &[0xAE, 0x12, FF, FF, FF, FF, FF, FF, FF, FF, GP, 0]).caching(DPO),
    row(Kind::Verify, Reads, &[0xAF, 0x16, FF, FF, FF, FF, FF, FF, FF, FF, GP, 0]).caching(DPO),
    row(Kind::ReadDefectData12, Reads, &[0xB7, 0x1F, 0, 0, 0, 0, FF, FF, FF, FF, 0, 0]),
];

/// The first row of each operation code; the table's length where there is none.
static FIRST: [u8; 256] = {
    let mut first = [TABLE.len() as u8; 256];
    let mut index = TABLE.len();
    while index > 0 {
        index -= 1;
        first[TABLE[index].usage[0] as usize] = index as u8;
    }
    first
};

/// The rows of an operation code.
pub(super) fn rows(operation_code: u8) -> impl Iterator<Item = &'static Row> {
    let first = &TABLE[usize::from(FIRST[usize::from(operation_code)])..];
    first.iter().take_while(move |row| row.operation_code() == operation_code)
}

/// The row that a CDB is of, whatever else it says.
pub(super) fn look_up(cdb: &[u8], abilities: Abilities) -> Result<&'static Row, Sense> {
    let &operation_code = cdb.first().ok_or(INVALID_COMMAND_OPERATION_CODE)?;
    let mut refused = INVALID_COMMAND_OPERATION_CODE;
    for row in rows(operation_code) {
        let action = cdb.get(1).map_or(0, |byte| byte & SERVICE_ACTION);
        if row.action && row.service_action() != action {
            refused = INVALID_FIELD_IN_CDB.at_cdb_bit(1, 4);
        } else if row.is_supported(abilities) {
            return Ok(row);
        }
    }
    Err(refused)
}

/// The bytes of a CDB, as long as its command has them and zero beyond.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cdb {
    bytes: [u8; 16],
    length: usize,
}

impl Cdb {
    /// Refuses what the row does not know.
    pub fn new(row: &Row, cdb: &[u8], abilities: Abilities) -> Result<Self, Sense> {
        row.check(cdb, abilities)?;
        let mut bytes = [0; 16];
        let length = row.cdb_length();
        bytes[..length].copy_from_slice(&cdb[..length]);
        Ok(Self { bytes, length })
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    pub fn byte(&self, index: usize) -> u8 {
        self.bytes[index]
    }

    /// Whether any of these bits of byte 1 is set.
    pub fn flag(&self, bits: u8) -> bool {
        self.bytes[1] & bits != 0
    }

    pub fn service_action(&self) -> u8 {
        self.bytes[1] & SERVICE_ACTION
    }

    pub fn u16(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    pub fn u32(&self, at: usize) -> u32 {
        u32::from_be_bytes([self.bytes[at], self.bytes[at + 1], self.bytes[at + 2], self.bytes[at + 3]])
    }

    /// LOGICAL BLOCK ADDRESS, where CDBs of this length have it (SPC-4, 4.3).
    pub fn lba(&self) -> u64 {
        match self.length {
            6 => (self.u32(0) & 0x001F_FFFF).into(),
            10 | 12 => self.u32(2).into(),
            _ => u64::from(self.u32(2)) << 32 | u64::from(self.u32(6)),
        }
    }

    /// Byte at which CDBs of this length have their TRANSFER, ALLOCATION or PARAMETER LIST LENGTH.
    pub fn length_at(&self) -> u16 {
        match self.length {
            6 => 4,
            10 => 7,
            12 => 6,
            _ => 10,
        }
    }

    /// What stands there.
    pub fn length(&self) -> u32 {
        match self.length {
            6 => self.bytes[4].into(),
            10 => self.u16(7).into(),
            12 => self.u32(6),
            _ => self.u32(10),
        }
    }

    /// Whether it is of the six bytes of SCSI-1.
    pub fn is_short(&self) -> bool {
        self.length == 6
    }
}

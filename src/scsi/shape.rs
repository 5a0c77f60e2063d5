//! A disk in logical blocks, what limits follow from that, and a command that fits them.

use super::command::{Access, Cdb, Kind, Row, look_up};
use super::sense::{Format, INVALID_FIELD_IN_CDB, LBA_OUT_OF_RANGE, PARAMETER_LIST_LENGTH_ERROR, Sense};
use crate::disk::{Abilities, Geometry};
use crate::units::{MIB, REQUEST_MAX, SECTOR};

/// Of one WRITE SAME, bytes. One of data that is not zero is as many writes, and Linux gives it 120 seconds.
const WRITE_SAME_MAX: u64 = 256 * MIB;
/// The field in the Block Limits page is a byte.
const COMPARE_AND_WRITE_MAX: u32 = 255;
/// Descriptors of one UNMAP, which run side by side.
pub(super) const UNMAP_DESCRIPTORS_MAX: u16 = 256;
/// Bytes of the parameter list of PERSISTENT RESERVE OUT.
const PERSISTENT_RESERVE_OUT_LIST: u32 = 24;

/// The block length is chosen once: initiators do not expect it to change.
pub(super) fn block_length(geometry: Geometry) -> u32 {
    geometry.block.minimum.max(SECTOR as u32)
}

/// A disk in logical blocks, as of now.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Bytes of a logical block.
    pub block_length: u32,
    /// Logical blocks; the part of one at the end of a disk is not shown.
    pub blocks: u64,
    /// Blocks that one command may transfer.
    pub transfer_max: u32,
    /// Blocks that are best read and written together.
    pub preferred: u16,
    pub abilities: Abilities,
}

impl Shape {
    pub fn new(geometry: Geometry, block_length: u32) -> Self {
        let Geometry { size, block, abilities } = geometry;
        Self {
            block_length,
            blocks: size / u64::from(block_length),
            transfer_max: (block.maximum.min(REQUEST_MAX) / block_length).max(1),
            preferred: u16::try_from(block.preferred / block_length).unwrap_or(u16::MAX).max(1),
            abilities,
        }
    }

    pub fn compare_and_write_max(&self) -> u32 {
        self.transfer_max.min(COMPARE_AND_WRITE_MAX)
    }

    pub fn write_same_max(&self) -> u64 {
        WRITE_SAME_MAX / u64::from(self.block_length)
    }

    /// Refuses blocks that the disk does not have; INFORMATION is the first of them (SBC-4, 4.11). No blocks at the very
    /// end are there.
    pub fn inside(&self, lba: u64, count: u64) -> Result<(), Sense> {
        if lba.checked_add(count).is_some_and(|end| end <= self.blocks) {
            Ok(())
        } else {
            Err(LBA_OUT_OF_RANGE.with_information(lba.max(self.blocks)))
        }
    }
}

/// A command that may be done: it is supported, and what its CDB says is right.
#[derive(Clone, Copy)]
pub struct Command {
    pub(super) row: &'static Row,
    pub(super) cdb: Cdb,
    /// Bytes from the start of the medium, of a command about blocks.
    pub(super) offset: u64,
    /// Bytes that it is about.
    pub(super) length: u64,
    data_out: u32,
    data_in: u32,
    /// Of its port, when it was admitted.
    pub(super) aborts: u64,
}

impl Command {
    /// Bytes of data-out that the CDB asks for (0 if none).
    pub fn data_out(&self) -> u32 {
        self.data_out
    }

    /// Bytes of data-in that the CDB asks for at most. A read that succeeds has exactly as many.
    pub fn data_in(&self) -> u32 {
        self.data_in
    }

    /// Whether it flushes, or what it changes is to be durable: its failure may be about earlier changes.
    pub fn makes_durable(&self) -> bool {
        match self.kind() {
            Kind::SynchronizeCache | Kind::StartStopUnit | Kind::WriteAndVerify => true,
            Kind::Read | Kind::Write | Kind::CompareAndWrite | Kind::OrWrite => {
                self.cdb.flag(FUA) && !self.cdb.is_short()
            }
            _ => false,
        }
    }

    pub(super) fn kind(&self) -> Kind {
        self.row.kind
    }

    pub(super) fn access(&self) -> Access {
        Self::access_of(self.row, self.cdb.bytes())
    }

    /// What the row says, unless the CDB says more.
    pub(super) fn access_of(row: &Row, cdb: &[u8]) -> Access {
        let low_bit = cdb.get(4).is_some_and(|byte| byte & 1 != 0);
        match row.kind {
            // To start is allowed to all, to stop is not (SBC-3, table 14).
            Kind::StartStopUnit if low_bit => Access::Always,
            Kind::PreventAllowMediumRemoval if low_bit => Access::Changes,
            _ => row.access,
        }
    }

    /// Of REQUEST SENSE, whose DESC bit says.
    pub(super) fn sense_format(&self) -> Format {
        if self.cdb.flag(0x01) { Format::Descriptor } else { Format::Fixed }
    }

    pub(super) fn look_up(cdb: &[u8], abilities: Abilities) -> Result<&'static Row, Sense> {
        look_up(cdb, abilities)
    }

    /// Looks at every field of the CDB that the medium has a say in.
    pub(super) fn new(row: &'static Row, cdb: &[u8], shape: &Shape) -> Result<Self, Sense> {
        let cdb = Cdb::new(row, cdb, shape.abilities)?;
        let mut command = Self { row, cdb, offset: 0, length: 0, data_out: 0, data_in: 0, aborts: 0 };
        match row.kind {
            Kind::Read => command.data_in = command.transfers(shape)?,
            Kind::Write | Kind::WriteAndVerify | Kind::OrWrite => command.data_out = command.transfers(shape)?,
            Kind::Verify => {
                let transferred = command.transfers(shape)?;
                command.data_out = match cdb.byte(1) & BYTCHK {
                    0b000 => 0,
                    0b010 => transferred,
                    0b110 if transferred > 0 => shape.block_length,
                    0b110 => 0,
                    _ => return Err(INVALID_FIELD_IN_CDB.at_cdb_bit(1, 2)),
                };
            }
            Kind::CompareAndWrite => {
                let count = u32::from(cdb.byte(13));
                command.blocks(shape, count.into())?;
                // 256 blocks, which the field cannot say, come as none: that is not to be answered as done.
                if count == 0 || count > shape.compare_and_write_max() {
                    return Err(INVALID_FIELD_IN_CDB.at_cdb(13));
                }
                command.data_out = 2 * count * shape.block_length;
            }
            Kind::WriteSame => {
                let count = u64::from(cdb.length());
                command.blocks(shape, count)?;
                // WSNZ: zero might be a slip, and would be the whole disk.
                if count == 0 || count > shape.write_same_max() {
                    return Err(INVALID_FIELD_IN_CDB.at_cdb(cdb.length_at()));
                }
                // NDOB.
                command.data_out = if cdb.flag(0x01) { 0 } else { shape.block_length };
            }
            Kind::PreFetch | Kind::SynchronizeCache => {
                let (lba, count) = (cdb.lba(), u64::from(cdb.length()));
                // Zero is up to the end.
                let count = if count == 0 { shape.blocks.saturating_sub(lba) } else { count };
                command.blocks(shape, count)?;
            }
            Kind::GetLbaStatus => {
                command.blocks(shape, 1)?;
                command.data_in = cdb.length();
            }
            Kind::Unmap | Kind::ModeSelect => command.data_out = cdb.length(),
            Kind::PersistentReserveOut => {
                // There is one length, without SPEC_I_PT (SPC-4, 6.16.3).
                if cdb.u32(5) != PERSISTENT_RESERVE_OUT_LIST {
                    return Err(PARAMETER_LIST_LENGTH_ERROR);
                }
                command.data_out = PERSISTENT_RESERVE_OUT_LIST;
            }
            Kind::Inquiry => command.data_in = cdb.u16(3).into(),
            Kind::ReadCapacity10 => command.data_in = 8,
            Kind::TestUnitReady
            | Kind::StartStopUnit
            | Kind::SendDiagnostic
            | Kind::PreventAllowMediumRemoval
            | Kind::Reserve
            | Kind::Release => {}
            Kind::RequestSense
            | Kind::ModeSense
            | Kind::ReadCapacity16
            | Kind::PersistentReserveIn
            | Kind::ReadDefectData10
            | Kind::ReadDefectData12
            | Kind::ReportLuns
            | Kind::ReportTargetPortGroups
            | Kind::ReportSupportedOperationCodes
            | Kind::ReportSupportedTaskManagementFunctions => command.data_in = cdb.length(),
        }
        Ok(command)
    }

    /// Sets the range of blocks.
    fn blocks(&mut self, shape: &Shape, count: u64) -> Result<(), Sense> {
        let lba = self.cdb.lba();
        shape.inside(lba, count)?;
        let block_length = u64::from(shape.block_length);
        (self.offset, self.length) = (lba * block_length, count * block_length);
        Ok(())
    }

    /// As many blocks as TRANSFER LENGTH says, if they may be transferred at once; says their bytes.
    fn transfers(&mut self, shape: &Shape) -> Result<u32, Sense> {
        let count = match self.cdb.length() {
            // READ(6) and WRITE(6): zero is 256.
            0 if self.cdb.is_short() => 256,
            count => count,
        };
        self.blocks(shape, count.into())?;
        if count > shape.transfer_max {
            return Err(INVALID_FIELD_IN_CDB.at_cdb(self.cdb.length_at()));
        }
        Ok(count * shape.block_length)
    }
}

/// Of VERIFY, in byte 1.
pub(super) const BYTCHK: u8 = 0x06;
/// With FUA_NV, in byte 1.
pub(super) const FUA: u8 = 0x0A;

//! Statuses and sense data, and what a disk's errors become (SAM-5, 5.3; SPC-4, 4.5).

use bytes::Bytes;

use crate::disk::{DiskError, Errno};

/// How a command ended (SAM-5, table 33).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    Good = 0x00,
    CheckCondition = 0x02,
    Busy = 0x08,
    ReservationConflict = 0x18,
    TaskSetFull = 0x28,
    TaskAborted = 0x40,
}

impl Status {
    /// None for one that no command of ours ends with.
    pub fn decode(byte: u8) -> Option<Self> {
        let all = [
            Self::Good,
            Self::CheckCondition,
            Self::Busy,
            Self::ReservationConflict,
            Self::TaskSetFull,
            Self::TaskAborted,
        ];
        all.into_iter().find(|status| *status as u8 == byte)
    }
}

/// SPC-4, table 48.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Key {
    NoSense = 0x0,
    RecoveredError = 0x1,
    NotReady = 0x2,
    MediumError = 0x3,
    HardwareError = 0x4,
    IllegalRequest = 0x5,
    UnitAttention = 0x6,
    DataProtect = 0x7,
    AbortedCommand = 0xB,
    Miscompare = 0xE,
}

/// Sense data that another sent: no more of it than what to do depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// A sense key; those that we never send have no name here.
    pub key: u8,
    /// As in [`Sense::code`].
    pub code: u16,
    /// It is about an earlier command, and this one was not done (SPC-4, 4.5.7).
    pub deferred: bool,
}

impl Received {
    /// In either format (SPC-4, 4.5.2 and 4.5.3); none if it is in no format, or too short for its key. What a short one
    /// leaves out is zero.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let at = |index: usize| bytes.get(index).copied().unwrap_or(0);
        let response = at(0) & 0x7F;
        let (key, code) = match response {
            // ADDITIONAL SENSE LENGTH may say that they are not there.
            0x70 | 0x71 if bytes.len() > 2 && at(7) < 6 => (at(2), [0, 0]),
            0x70 | 0x71 if bytes.len() > 2 => (at(2), [at(12), at(13)]),
            0x72 | 0x73 if bytes.len() > 1 => (at(1), [at(2), at(3)]),
            _ => return None,
        };
        Some(Self { key: key & 0x0F, code: u16::from_be_bytes(code), deferred: response & 1 != 0 })
    }

    pub fn is(&self, key: Key) -> bool {
        self.key == key as u8
    }
}

/// How sense data is laid out: the D_SENSE bit of the Control mode page says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Response code 70h, 18 bytes.
    Fixed,
    /// Response code 72h.
    Descriptor,
}

/// Where what was refused stands (SPC-4, 4.5.2.4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// In the CDB; else in the parameter data.
    pub in_cdb: bool,
    pub byte: u16,
    /// Most significant bit of the field, if it is not whole bytes.
    pub bit: Option<u8>,
}

/// Why a command did not do what it asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sense {
    pub key: Key,
    /// ADDITIONAL SENSE CODE, and in the low byte its qualifier.
    pub code: u16,
    /// The INFORMATION field; what it means depends on the code.
    pub information: Option<u64>,
    pub field: Option<Field>,
    pub format: Format,
}

impl Sense {
    /// The initiator offers less data than the command is about (SPC-4, table 58).
    pub const INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT: Self = Self::new(Key::IllegalRequest, 0x0E03);
    /// Data that does not fit what was asked for (RFC 7143, 11.4.7.2).
    pub const INCORRECT_AMOUNT_OF_DATA: Self = Self::new(Key::AbortedCommand, 0x0C0D);
    /// A task attribute that there is not (SPC-4, table 58).
    pub const INVALID_MESSAGE_ERROR: Self = Self::new(Key::IllegalRequest, 0x4900);
    /// Data that was lost on the way (RFC 7143, 11.4.7.2).
    pub const PROTOCOL_SERVICE_CRC_ERROR: Self = Self::new(Key::AbortedCommand, 0x4705);

    pub(super) const fn new(key: Key, code: u16) -> Self {
        Self { key, code, information: None, field: None, format: Format::Fixed }
    }

    pub(super) const fn with_information(self, information: u64) -> Self {
        Self { information: Some(information), ..self }
    }

    /// Of a field of the CDB.
    pub(super) const fn at_cdb(self, byte: u16) -> Self {
        Self { field: Some(Field { in_cdb: true, byte, bit: None }), ..self }
    }

    /// Of a field of the CDB that begins at this bit.
    pub(super) const fn at_cdb_bit(self, byte: u16, bit: u8) -> Self {
        Self { field: Some(Field { in_cdb: true, byte, bit: Some(bit) }), ..self }
    }

    /// Of a field of the parameter data.
    pub(super) const fn at_parameter(self, byte: u16) -> Self {
        Self { field: Some(Field { in_cdb: false, byte, bit: None }), ..self }
    }

    pub(super) const fn formatted(self, format: Format) -> Self {
        Self { format, ..self }
    }

    /// The error of a disk's change or flush that this is told for, if it is: nothing of what was refused.
    pub fn of_a_change(&self) -> Option<DiskError> {
        match self.code {
            code if code == WRITE_ERROR.code => Some(DiskError::Io(Errno::EIO)),
            code if code == SPACE_ALLOCATION_FAILED.code => Some(DiskError::Io(Errno::ENOSPC)),
            _ => None,
        }
    }

    /// As a current error, in its format (SPC-4, 4.5.2 and 4.5.3).
    pub fn encode(&self) -> Bytes {
        let [code, qualifier] = self.code.to_be_bytes();
        match self.format {
            Format::Fixed => {
                let mut bytes = [0; 18];
                bytes[0] = 0x70;
                // What is longer than the field is not valid.
                if let Some(information) = self.information.and_then(|all| u32::try_from(all).ok()) {
                    bytes[0] |= 0x80;
                    bytes[3..7].copy_from_slice(&information.to_be_bytes());
                }
                bytes[2] = self.key as u8;
                bytes[7] = 10;
                (bytes[12], bytes[13]) = (code, qualifier);
                if let Some(field) = self.field {
                    bytes[15..18].copy_from_slice(&field.encode());
                }
                Bytes::copy_from_slice(&bytes)
            }
            Format::Descriptor => {
                let mut bytes = vec![0x72, self.key as u8, code, qualifier, 0, 0, 0, 0];
                if let Some(information) = self.information {
                    bytes.extend([0x00, 0x0A, 0x80, 0]);
                    bytes.extend(information.to_be_bytes());
                }
                if let Some(field) = self.field {
                    bytes.extend([0x02, 0x06, 0, 0]);
                    bytes.extend(field.encode());
                    bytes.push(0);
                }
                bytes[7] = (bytes.len() - 8) as u8;
                bytes.into()
            }
        }
    }
}

impl Field {
    /// The sense key specific bytes.
    fn encode(self) -> [u8; 3] {
        let bit = self.bit.map_or(0, |bit| 0x08 | bit & 7);
        let [high, low] = self.byte.to_be_bytes();
        [0x80 | if self.in_cdb { 0x40 } else { 0 } | bit, high, low]
    }
}

pub(super) const NO_SENSE: Sense = Sense::new(Key::NoSense, 0);
/// LOGICAL UNIT IS IN PROCESS OF BECOMING READY: what initiators send again after a while.
pub(super) const BECOMING_READY: Sense = Sense::new(Key::NotReady, 0x0401);
pub(super) const UNRECOVERED_READ_ERROR: Sense = Sense::new(Key::MediumError, 0x1100);
pub(super) const WRITE_ERROR: Sense = Sense::new(Key::MediumError, 0x0C00);
pub(super) const INTERNAL_TARGET_FAILURE: Sense = Sense::new(Key::HardwareError, 0x4400);
pub(super) const PARAMETER_LIST_LENGTH_ERROR: Sense = Sense::new(Key::IllegalRequest, 0x1A00);
pub(super) const INVALID_COMMAND_OPERATION_CODE: Sense = Sense::new(Key::IllegalRequest, 0x2000);
pub(super) const LBA_OUT_OF_RANGE: Sense = Sense::new(Key::IllegalRequest, 0x2100);
pub(super) const INVALID_FIELD_IN_CDB: Sense = Sense::new(Key::IllegalRequest, 0x2400);
pub(super) const LOGICAL_UNIT_NOT_SUPPORTED: Sense = Sense::new(Key::IllegalRequest, 0x2500);
pub(super) const INVALID_FIELD_IN_PARAMETER_LIST: Sense = Sense::new(Key::IllegalRequest, 0x2600);
pub(super) const INVALID_RELEASE: Sense = Sense::new(Key::IllegalRequest, 0x2604);
pub(super) const SAVING_PARAMETERS_NOT_SUPPORTED: Sense = Sense::new(Key::IllegalRequest, 0x3900);
pub(super) const INSUFFICIENT_REGISTRATION_RESOURCES: Sense = Sense::new(Key::IllegalRequest, 0x5504);
pub(super) const WRITE_PROTECTED: Sense = Sense::new(Key::DataProtect, 0x2700);
pub(super) const SOFTWARE_WRITE_PROTECTED: Sense = Sense::new(Key::DataProtect, 0x2702);
pub(super) const SPACE_ALLOCATION_FAILED: Sense = Sense::new(Key::DataProtect, 0x2707);
/// No answer, and nothing known of what became of the command.
pub(super) const ABORTED_COMMAND: Sense = Sense::new(Key::AbortedCommand, 0x0000);
pub(super) const MISCOMPARE: Sense = Sense::new(Key::Miscompare, 0x1D00);

/// What a failed read is told as.
pub(super) fn of_read(error: DiskError) -> Sense {
    of(error, UNRECOVERED_READ_ERROR)
}

/// What a failed change is told as.
pub(super) fn of_change(error: DiskError) -> Sense {
    of(error, WRITE_ERROR)
}

/// What a failed flush is told as. Never as an ILLEGAL REQUEST, by which initiators (Linux) know that there is no cache and
/// all is well.
pub(super) fn of_flush(error: DiskError) -> Sense {
    match of_change(error) {
        Sense { key: Key::IllegalRequest, .. } => WRITE_ERROR,
        sense => sense,
    }
}

/// The one place where a disk's errors become sense data. A store that was lost ends the command as aborted, so that
/// initiators try again; whoever drives the unit should rather end its sessions, as the store's own server would have.
fn of(error: DiskError, medium: Sense) -> Sense {
    match (error, error.errno()) {
        (DiskError::Lost, _) | (_, Errno::ESHUTDOWN) => ABORTED_COMMAND,
        (_, Errno::ENOSPC) => SPACE_ALLOCATION_FAILED,
        (_, Errno::EPERM) => WRITE_PROTECTED,
        (_, Errno::ENOTSUP) => INVALID_COMMAND_OPERATION_CODE,
        (DiskError::Refused(_), Errno::EINVAL) => INVALID_FIELD_IN_CDB,
        // It was not done, and there is nothing wrong with it: the store was busy, or a region cannot be marked, for now.
        (DiskError::Refused(_), _) => BECOMING_READY,
        (DiskError::Io(_), _) => medium,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sense_that_was_encoded_is_read_in_either_format() {
        for format in [Format::Fixed, Format::Descriptor] {
            let sense = SPACE_ALLOCATION_FAILED.with_information(7).at_cdb(2).formatted(format);
            let received = Received::decode(&sense.encode()).unwrap();
            assert_eq!(received, Received { key: 7, code: 0x2707, deferred: false });
            assert!(received.is(Key::DataProtect));
        }
        assert_eq!(Received::decode(&[0x71, 0, 3]), Some(Received { key: 3, code: 0, deferred: true }));
        assert_eq!(Received::decode(&[0x73, 3, 0x0C, 0x02]), Some(Received { key: 3, code: 0x0C02, deferred: true }));
        for none in [&[][..], &[0x70], &[0x70, 0], &[0x72], &[0x7F, 0, 0, 0], &[0; 18]] {
            assert_eq!(Received::decode(none), None);
        }
    }
}

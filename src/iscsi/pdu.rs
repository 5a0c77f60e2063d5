//! The bytes of iSCSI's protocol data units (RFC 7143, section 11): pure, and the same for both directions.
//!
//! ```text
//! ┌────────────────────────┬──────────────────┬───────────────┬──────────────┬────────────┬─────────────┐
//! │ basic header, 48 bytes │ additional header│ header digest │ data segment │ 0–3 zeroes │ data digest │
//! └────────────────────────┴──────────────────┴───────────────┴──────────────┴────────────┴─────────────┘
//!   0 opcode │ 1 flags … │ 4 length of the additional header, words │ 5 length of the data, bytes │ 8 LUN │ 16 tag …
//! ```
//! Integers are big-endian, digests little-endian CRC32C (section 13.1). A digest stands only where it was negotiated;
//! that of the data only behind data.

use crate::format::log::crc32c;

/// Length of the basic header segment.
pub const BHS: usize = 48;
pub const DIGEST: usize = 4;

/// A basic header segment.
pub type Bhs = [u8; BHS];

/// Of a request that is to be carried out at once, beside the order of commands (11.2.1.1).
pub const IMMEDIATE: u8 = 0x40;
const OPCODE_MASK: u8 = 0x3f;

/// A tag that names no task, or no transfer.
pub const NO_TAG: u32 = 0xffff_ffff;

/// The last of a sequence, in byte 1 of almost all PDUs.
pub const FINAL: u8 = 0x80;

pub fn opcode(bhs: &Bhs) -> u8 {
    bhs[0] & OPCODE_MASK
}

pub fn is_immediate(bhs: &Bhs) -> bool {
    bhs[0] & IMMEDIATE != 0
}

/// Bytes of the additional header segments (11.2.1.5): a multiple of 4, at most 1020.
pub fn ahs_length(bhs: &Bhs) -> usize {
    usize::from(bhs[4]) * 4
}

/// Bytes of the data segment, without padding (11.2.1.6): below 16 MiB.
pub fn data_length(bhs: &Bhs) -> usize {
    u32::from_be_bytes([0, bhs[5], bhs[6], bhs[7]]) as usize
}

/// Zeroes behind so many bytes of data.
pub fn padding(length: usize) -> usize {
    length.wrapping_neg() % 4
}

pub fn digest(bytes: &[u8]) -> [u8; DIGEST] {
    crc32c(bytes).to_le_bytes()
}

/// What stands at a place of a header.
trait Field: Copy {
    fn get(bytes: &[u8]) -> Self;
    fn put(self, bytes: &mut [u8]);
}

macro_rules! integers {
    ($($integer:ty)*) => {$(
        impl Field for $integer {
            fn get(bytes: &[u8]) -> Self {
                Self::from_be_bytes(*bytes.first_chunk().expect("fields lie inside of the header"))
            }
            fn put(self, bytes: &mut [u8]) {
                bytes[..size_of::<Self>()].copy_from_slice(&self.to_be_bytes());
            }
        }
    )*};
}
integers!(u8 u16 u32 u64);

impl<const N: usize> Field for [u8; N] {
    fn get(bytes: &[u8]) -> Self {
        *bytes.first_chunk().expect("fields lie inside of the header")
    }
    fn put(self, bytes: &mut [u8]) {
        bytes[..N].copy_from_slice(&self);
    }
}

/// Draws PDUs: a name, its opcode, and its fields with the byte at which each begins.
macro_rules! layouts {
    ($($(#[$doc:meta])* $name:ident = $opcode:literal {
        $($(#[$of_field:meta])* $field:ident: $type:ty = $at:literal),* $(,)?
    })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name {
            $($(#[$of_field])* pub $field: $type),*
        }

        impl $name {
            pub const OPCODE: u8 = $opcode;

            pub fn decode(bhs: &Bhs) -> Self {
                Self { $($field: Field::get(&bhs[$at..])),* }
            }

            /// With the length of the data that follows, below 16 MiB; without additional headers.
            pub fn encode(&self, data_length: usize) -> Bhs {
                let mut bhs = [0; BHS];
                bhs[0] = Self::OPCODE;
                $(self.$field.put(&mut bhs[$at..]);)*
                bhs[5..8].copy_from_slice(&(data_length as u32).to_be_bytes()[1..]);
                bhs
            }
        }
    )*};
}

layouts! {
    /// 11.18
    NopOut = 0x00 {
        flags: u8 = 1,
        lun: u64 = 8,
        task: u32 = 16,
        transfer: u32 = 20,
        command_sn: u32 = 24,
        expected_status_sn: u32 = 28,
    }

    /// 11.3
    ScsiCommand = 0x01 {
        /// [`FINAL`], [`command::READ`], [`command::WRITE`], and the task's attribute.
        flags: u8 = 1,
        lun: u64 = 8,
        task: u32 = 16,
        /// Expected data transfer length, bytes.
        expected: u32 = 20,
        command_sn: u32 = 24,
        expected_status_sn: u32 = 28,
        cdb: [u8; 16] = 32,
    }

    /// 11.5
    TaskManagementRequest = 0x02 {
        /// [`FINAL`] and a function of [`task_management`].
        function: u8 = 1,
        lun: u64 = 8,
        task: u32 = 16,
        referenced: u32 = 20,
        command_sn: u32 = 24,
        expected_status_sn: u32 = 28,
        referenced_command_sn: u32 = 32,
        expected_data_sn: u32 = 36,
    }

    /// 11.12
    LoginRequest = 0x03 {
        /// [`login::TRANSIT`], [`login::CONTINUE`], the current stage and the next.
        flags: u8 = 1,
        version_max: u8 = 2,
        version_min: u8 = 3,
        isid: [u8; 6] = 8,
        tsih: u16 = 14,
        task: u32 = 16,
        connection: u16 = 20,
        command_sn: u32 = 24,
        expected_status_sn: u32 = 28,
    }

    /// 11.10
    TextRequest = 0x04 {
        /// [`FINAL`] and [`login::CONTINUE`].
        flags: u8 = 1,
        lun: u64 = 8,
        task: u32 = 16,
        transfer: u32 = 20,
        command_sn: u32 = 24,
        expected_status_sn: u32 = 28,
    }

    /// 11.7
    DataOut = 0x05 {
        flags: u8 = 1,
        lun: u64 = 8,
        task: u32 = 16,
        transfer: u32 = 20,
        expected_status_sn: u32 = 28,
        data_sn: u32 = 36,
        offset: u32 = 40,
    }

    /// 11.14
    LogoutRequest = 0x06 {
        /// [`FINAL`] and a reason of [`logout`].
        reason: u8 = 1,
        task: u32 = 16,
        connection: u16 = 20,
        command_sn: u32 = 24,
        expected_status_sn: u32 = 28,
    }

    /// 11.19
    NopIn = 0x20 {
        flags: u8 = 1,
        lun: u64 = 8,
        task: u32 = 16,
        transfer: u32 = 20,
        status_sn: u32 = 24,
        expected_command_sn: u32 = 28,
        command_sn_max: u32 = 32,
    }

    /// 11.4
    ScsiResponse = 0x21 {
        /// [`FINAL`] and those of [`residual`].
        flags: u8 = 1,
        /// 0: the command was completed at the target.
        response: u8 = 2,
        status: u8 = 3,
        task: u32 = 16,
        status_sn: u32 = 24,
        expected_command_sn: u32 = 28,
        command_sn_max: u32 = 32,
        expected_data_sn: u32 = 36,
        residual: u32 = 44,
    }

    /// 11.6
    TaskManagementResponse = 0x22 {
        flags: u8 = 1,
        response: u8 = 2,
        task: u32 = 16,
        status_sn: u32 = 24,
        expected_command_sn: u32 = 28,
        command_sn_max: u32 = 32,
    }

    /// 11.13
    LoginResponse = 0x23 {
        flags: u8 = 1,
        version_max: u8 = 2,
        version_active: u8 = 3,
        isid: [u8; 6] = 8,
        tsih: u16 = 14,
        task: u32 = 16,
        status_sn: u32 = 24,
        expected_command_sn: u32 = 28,
        command_sn_max: u32 = 32,
        /// Class and detail.
        status: u16 = 36,
    }

    /// 11.11
    TextResponse = 0x24 {
        flags: u8 = 1,
        lun: u64 = 8,
        task: u32 = 16,
        transfer: u32 = 20,
        status_sn: u32 = 24,
        expected_command_sn: u32 = 28,
        command_sn_max: u32 = 32,
    }

    /// 11.7
    DataIn = 0x25 {
        /// [`FINAL`], [`data_in::STATUS`], and those of [`residual`].
        flags: u8 = 1,
        status: u8 = 3,
        lun: u64 = 8,
        task: u32 = 16,
        transfer: u32 = 20,
        status_sn: u32 = 24,
        expected_command_sn: u32 = 28,
        command_sn_max: u32 = 32,
        data_sn: u32 = 36,
        offset: u32 = 40,
        residual: u32 = 44,
    }

    /// 11.15
    LogoutResponse = 0x26 {
        flags: u8 = 1,
        response: u8 = 2,
        task: u32 = 16,
        status_sn: u32 = 24,
        expected_command_sn: u32 = 28,
        command_sn_max: u32 = 32,
        time_to_wait: u16 = 40,
        time_to_retain: u16 = 42,
    }

    /// Ready to transfer (11.8).
    ReadyToTransfer = 0x31 {
        flags: u8 = 1,
        lun: u64 = 8,
        task: u32 = 16,
        transfer: u32 = 20,
        status_sn: u32 = 24,
        expected_command_sn: u32 = 28,
        command_sn_max: u32 = 32,
        r2t_sn: u32 = 36,
        offset: u32 = 40,
        length: u32 = 44,
    }

    /// 11.9
    AsyncMessage = 0x32 {
        flags: u8 = 1,
        lun: u64 = 8,
        task: u32 = 16,
        status_sn: u32 = 24,
        expected_command_sn: u32 = 28,
        command_sn_max: u32 = 32,
        event: u8 = 36,
        parameters: [u16; 3] = 38,
    }

    /// 11.17; its data is the header that was rejected.
    Reject = 0x3f {
        flags: u8 = 1,
        reason: u8 = 2,
        task: u32 = 16,
        status_sn: u32 = 24,
        expected_command_sn: u32 = 28,
        command_sn_max: u32 = 32,
        data_sn: u32 = 36,
    }
}

impl Field for [u16; 3] {
    fn get(bytes: &[u8]) -> Self {
        [0, 2, 4].map(|at| u16::get(&bytes[at..]))
    }
    fn put(self, bytes: &mut [u8]) {
        for (value, at) in self.into_iter().zip([0, 2, 4]) {
            value.put(&mut bytes[at..]);
        }
    }
}

/// Puts the serial numbers into a PDU of a target: all that it sends behind the login have them at the same places
/// (11.4.8 to 11.4.10).
pub fn number(bhs: &mut Bhs, status_sn: u32, expected_command_sn: u32, command_sn_max: u32) {
    for (number, at) in [(status_sn, 24), (expected_command_sn, 28), (command_sn_max, 32)] {
        number.put(&mut bhs[at..]);
    }
}

/// Flags of a SCSI command (11.3.1).
pub mod command {
    pub const READ: u8 = 0x40;
    pub const WRITE: u8 = 0x20;

    /// The bits of the task's attribute, which is one of the following; auto contingent allegiance is not.
    pub const ATTRIBUTE: u8 = 0x07;
    pub const UNTAGGED: u8 = 0;
    pub const SIMPLE: u8 = 1;
    pub const ORDERED: u8 = 2;
    pub const HEAD_OF_QUEUE: u8 = 3;
}

/// Flags of Data-In (11.7.1).
pub mod data_in {
    /// It carries the command's status, which is good.
    pub const STATUS: u8 = 0x01;
}

/// Flags that say what `residual` counts (11.4.1).
pub mod residual {
    /// Bytes that were not transferred because the initiator did not expect them.
    pub const OVERFLOW: u8 = 0x04;
    /// Bytes that the initiator expected and that were not transferred.
    pub const UNDERFLOW: u8 = 0x02;
}

/// Flags, stages and statuses of a login (11.12, 11.13).
pub mod login {
    pub const TRANSIT: u8 = 0x80;
    /// The text goes on in the next PDU.
    pub const CONTINUE: u8 = 0x40;

    pub const SECURITY: u8 = 0;
    pub const OPERATIONAL: u8 = 1;
    pub const FULL_FEATURE: u8 = 3;

    pub const SUCCESS: u16 = 0x0000;
    pub const INITIATOR_ERROR: u16 = 0x0200;
    pub const AUTHENTICATION_FAILURE: u16 = 0x0201;
    pub const NOT_FOUND: u16 = 0x0203;
    pub const UNSUPPORTED_VERSION: u16 = 0x0205;
    pub const MISSING_PARAMETER: u16 = 0x0207;
    pub const SESSION_TYPE_NOT_SUPPORTED: u16 = 0x0209;
    pub const SESSION_DOES_NOT_EXIST: u16 = 0x020a;
    pub const INVALID_DURING_LOGIN: u16 = 0x020b;
    pub const TARGET_ERROR: u16 = 0x0300;
    pub const SERVICE_UNAVAILABLE: u16 = 0x0301;

    /// Current and next stage.
    pub fn stages(flags: u8) -> (u8, u8) {
        (flags >> 2 & 3, flags & 3)
    }
}

/// Functions (11.5.1) and responses (11.6.1).
pub mod task_management {
    pub const ABORT_TASK: u8 = 1;
    pub const ABORT_TASK_SET: u8 = 2;
    pub const CLEAR_TASK_SET: u8 = 4;
    pub const LOGICAL_UNIT_RESET: u8 = 5;
    pub const TARGET_WARM_RESET: u8 = 6;
    pub const TASK_REASSIGN: u8 = 8;

    pub const COMPLETE: u8 = 0;
    pub const NO_SUCH_TASK: u8 = 1;
    pub const NO_SUCH_LUN: u8 = 2;
    pub const REASSIGNMENT_NOT_SUPPORTED: u8 = 4;
    pub const NOT_SUPPORTED: u8 = 5;
    pub const REJECTED: u8 = 255;
}

/// Reasons (11.14.1) and responses (11.15.1).
pub mod logout {
    pub const CLOSE_SESSION: u8 = 0;
    pub const CLOSE_CONNECTION: u8 = 1;

    pub const CLOSED: u8 = 0;
    pub const NO_SUCH_CONNECTION: u8 = 1;
    pub const RECOVERY_NOT_SUPPORTED: u8 = 2;
}

/// Events of an asynchronous message (11.9.1).
pub mod event {
    /// The unit says something; sense data comes with it.
    pub const SCSI: u8 = 0;
    /// The initiator is to log out within so many seconds, which the third parameter says.
    pub const LOGOUT_REQUESTED: u8 = 1;
    pub const DROPS_CONNECTION: u8 = 2;
    pub const DROPS_SESSION: u8 = 3;
    pub const NEGOTIATION_REQUESTED: u8 = 4;
}

/// Reasons of a reject (11.17.1).
pub mod reject {
    pub const PROTOCOL_ERROR: u8 = 0x04;
    pub const COMMAND_NOT_SUPPORTED: u8 = 0x05;
    pub const TOO_MANY_IMMEDIATE: u8 = 0x06;
    pub const TASK_IN_PROGRESS: u8 = 0x07;
    pub const INVALID_FIELD: u8 = 0x09;
}

/// Whether a serial number comes after another (RFC 1982): they wrap around.
pub fn is_after(number: u32, other: u32) -> bool {
    number != other && number.wrapping_sub(other) < 1 << 31
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix64;

    #[test]
    fn what_is_decoded_is_what_was_encoded() {
        let mut random = SplitMix64(7);
        for _ in 0..1000 {
            let bhs: Bhs = std::array::from_fn(|_| random.next() as u8);
            macro_rules! same {
                ($($pdu:ident)*) => {$({
                    let decoded = $pdu::decode(&bhs);
                    let encoded = decoded.encode(data_length(&bhs));
                    assert_eq!($pdu::decode(&encoded), decoded);
                    assert_eq!((opcode(&encoded), data_length(&encoded)), ($pdu::OPCODE, data_length(&bhs)));
                })*};
            }
            same!(NopOut ScsiCommand TaskManagementRequest LoginRequest TextRequest DataOut LogoutRequest NopIn
                ScsiResponse TaskManagementResponse LoginResponse TextResponse DataIn LogoutResponse ReadyToTransfer
                AsyncMessage Reject);
        }
    }

    /// As open-iscsi sends it: a READ(10) of 8 blocks from block 0x1234, and RFC 7143, 11.3.
    #[test]
    fn a_command_stands_where_the_specification_has_it() {
        let command = ScsiCommand {
            flags: FINAL | command::READ | 1,
            lun: 0,
            task: 0x10,
            expected: 4096,
            command_sn: 5,
            expected_status_sn: 6,
            cdb: [0x28, 0, 0, 0, 0x12, 0x34, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0],
        };
        let mut expected = [0; BHS];
        expected[..2].copy_from_slice(&[0x01, 0xc1]);
        (expected[19], expected[22], expected[27], expected[31]) = (0x10, 0x10, 5, 6);
        expected[32..48].copy_from_slice(&command.cdb);
        assert_eq!(command.encode(0), expected);
    }

    #[test]
    fn serial_numbers_wrap_around() {
        assert!(is_after(0, u32::MAX) && is_after(5, 4) && !is_after(4, 4) && !is_after(u32::MAX, 0));
    }

    /// RFC 7143 has no example; RFC 3720, appendix B.4 has: 32 bytes of zeroes.
    #[test]
    fn a_digest_is_crc32c_with_its_lowest_byte_first() {
        assert_eq!(digest(&[0; 32]), [0xaa, 0x36, 0x91, 0x8a]);
    }
}

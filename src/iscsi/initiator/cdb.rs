//! Commands as they are sent (SPC-4, section 6; SBC-3, section 5): pure. Addresses and counts are in logical blocks.

pub type Cdb = [u8; 16];

/// FUA, in byte 1 of reads and writes.
const FUA: u8 = 0x08;
/// Of WRITE SAME: blocks may be unmapped where they read the same then.
const UNMAP: u8 = 0x08;
/// DBD: no block descriptors.
const DBD: u8 = 0x08;
const EVPD: u8 = 0x01;

const SERVICE_ACTION_IN: u8 = 0x9E;
pub const WRITE_SAME_16: u8 = 0x93;
pub const SYNCHRONIZE_CACHE_10: u8 = 0x35;
pub const SYNCHRONIZE_CACHE_16: u8 = 0x91;

/// A command's operation code, and the rest of it by position.
fn cdb(head: &[u8], fields: &[(usize, &[u8])]) -> Cdb {
    let mut cdb = [0; 16];
    cdb[..head.len()].copy_from_slice(head);
    for (at, bytes) in fields {
        cdb[*at..*at + bytes.len()].copy_from_slice(bytes);
    }
    cdb
}

pub fn test_unit_ready() -> Cdb {
    [0; 16]
}

/// Of a page of vital product data, or of the standard data.
pub fn inquiry(page: Option<u8>, length: u16) -> Cdb {
    cdb(&[0x12, if page.is_some() { EVPD } else { 0 }, page.unwrap_or(0)], &[(3, &length.to_be_bytes())])
}

pub fn mode_sense_6(page: u8, length: u8) -> Cdb {
    cdb(&[0x1A, DBD, page, 0, length], &[])
}

pub fn mode_sense_10(page: u8, length: u16) -> Cdb {
    cdb(&[0x5A, DBD, page], &[(7, &length.to_be_bytes())])
}

pub fn read_capacity_10() -> Cdb {
    cdb(&[0x25], &[])
}

pub fn read_capacity_16(length: u32) -> Cdb {
    cdb(&[SERVICE_ACTION_IN, 0x10], &[(10, &length.to_be_bytes())])
}

/// Whether an operation code is supported, in the one-command format without timeouts.
pub fn report_supported_operation_code(operation_code: u8, length: u32) -> Cdb {
    cdb(&[0xA3, 0x0C, 0x01, operation_code], &[(6, &length.to_be_bytes())])
}

/// How long the forms of a command may be that a unit knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Addresses of 32 bits, counts of 16.
    Ten,
    Sixteen,
}

impl Form {
    /// Blocks that one command of this form can name.
    pub fn count_max(self) -> u32 {
        match self {
            Self::Ten => u16::MAX.into(),
            Self::Sixteen => u32::MAX,
        }
    }
}

fn blocks(form: Form, ten: u8, sixteen: u8, flags: u8, lba: u64, count: u32) -> Cdb {
    match form {
        // Who knows only these has no more blocks than they can name.
        Form::Ten => cdb(&[ten, flags], &[(2, &(lba as u32).to_be_bytes()), (7, &(count as u16).to_be_bytes())]),
        Form::Sixteen => cdb(&[sixteen, flags], &[(2, &lba.to_be_bytes()), (10, &count.to_be_bytes())]),
    }
}

pub fn read(form: Form, lba: u64, count: u32) -> Cdb {
    blocks(form, 0x28, 0x88, 0, lba, count)
}

pub fn write(form: Form, lba: u64, count: u32, fua: bool) -> Cdb {
    blocks(form, 0x2A, 0x8A, if fua { FUA } else { 0 }, lba, count)
}

/// Of the whole medium, and answered when it is done.
pub fn synchronize_cache(form: Form) -> Cdb {
    blocks(form, SYNCHRONIZE_CACHE_10, SYNCHRONIZE_CACHE_16, 0, 0, 0)
}

/// `count` must not be 0, which is all blocks up to the end.
pub fn write_same(lba: u64, count: u32, unmap: bool) -> Cdb {
    debug_assert!(count > 0);
    blocks(Form::Sixteen, 0, WRITE_SAME_16, if unmap { UNMAP } else { 0 }, lba, count)
}

/// With the one range that its parameter list names.
pub fn unmap(lba: u64, count: u32) -> (Cdb, [u8; 24]) {
    let mut list = [0; 24];
    list[..2].copy_from_slice(&22u16.to_be_bytes());
    list[2..4].copy_from_slice(&16u16.to_be_bytes());
    list[8..16].copy_from_slice(&lba.to_be_bytes());
    list[16..20].copy_from_slice(&count.to_be_bytes());
    (cdb(&[0x42], &[(7, &24u16.to_be_bytes())]), list)
}

pub fn get_lba_status(lba: u64, length: u32) -> Cdb {
    cdb(&[SERVICE_ACTION_IN, 0x12], &[(2, &lba.to_be_bytes()), (10, &length.to_be_bytes())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_stand_where_the_specification_has_them() {
        assert_eq!(inquiry(Some(0x83), 255)[..6], [0x12, 1, 0x83, 0, 255, 0]);
        assert_eq!(read(Form::Ten, 0x1234, 8)[..10], [0x28, 0, 0, 0, 0x12, 0x34, 0, 0, 8, 0]);
        let sixteen = [0x8A, 8, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0x10, 0, 0, 0];
        assert_eq!(write(Form::Sixteen, (1 << 32) + 2, 4096, true), sixteen);
        let same = [0x93, 8, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 6, 0, 0];
        assert_eq!(write_same(5, 6, true), same);
        let (cdb, list) = unmap(7, 9);
        assert_eq!(cdb[..10], [0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0]);
        assert_eq!(list, [0, 22, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 9, 0, 0, 0, 0]);
        assert_eq!(synchronize_cache(Form::Ten)[..10], [0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
}

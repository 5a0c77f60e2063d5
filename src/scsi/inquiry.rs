//! INQUIRY: what the unit is, and its vital product data (SPC-4, 6.6 and 7.8; SBC-4, 6.6).

use bytes::{BufMut, Bytes, BytesMut};

use super::sense::{INVALID_FIELD_IN_CDB, Sense};
use super::shape::{Command, Shape, UNMAP_DESCRIPTORS_MAX};
use super::unit::UnitSettings;

const VENDOR: &[u8; 8] = b"UMBRA   ";
const PRODUCT: &[u8; 16] = b"VOLUME          ";
const REVISION: &[u8; 4] = b"0001";
/// SAM-5, SPC-4, SBC-3 and iSCSI, no version of them claimed. All that SBC-3 asks for is here but FORMAT UNIT, by which
/// one command would be the end of a volume.
const VERSION_DESCRIPTORS: [u16; 4] = [0x00A0, 0x0460, 0x04C0, 0x0960];
/// PERIPHERAL QUALIFIER 011b and PERIPHERAL DEVICE TYPE 1Fh: nothing is there, and nothing could be.
const ABSENT: u8 = 0x7F;
/// The one target port group there is.
pub(super) const TARGET_PORT_GROUP: u16 = 1;

/// In ascending order.
const PAGES: [u8; 7] = [0x00, 0x80, 0x83, 0x86, 0xB0, 0xB1, 0xB2];

/// The answer may be longer than the initiator wants it.
pub(super) fn inquiry(
    settings: &UnitSettings,
    shape: &Shape,
    target_port: u16,
    command: &Command,
) -> Result<Bytes, Sense> {
    let page = command.cdb.byte(2);
    // EVPD.
    if !command.cdb.flag(0x01) {
        return if page == 0 { Ok(standard(0x00)) } else { Err(INVALID_FIELD_IN_CDB.at_cdb(2)) };
    }
    let mut bytes = BytesMut::new();
    match page {
        0x00 => bytes.put_slice(&PAGES),
        0x80 => bytes.put_slice(settings.serial.as_bytes()),
        0x83 => device_identification(&mut bytes, settings, target_port),
        0x86 => extended_inquiry(&mut bytes, shape),
        0xB0 => block_limits(&mut bytes, shape),
        0xB1 => block_device_characteristics(&mut bytes, shape),
        0xB2 => logical_block_provisioning(&mut bytes, shape),
        _ => return Err(INVALID_FIELD_IN_CDB.at_cdb(2)),
    }
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    let mut whole = BytesMut::with_capacity(4 + bytes.len());
    whole.put_slice(&[0x00, page]);
    whole.put_u16(length);
    whole.put_slice(&bytes[..length.into()]);
    Ok(whole.freeze())
}

/// Of a LUN that is not there.
pub(super) fn absent(command: &Command) -> Result<Bytes, Sense> {
    if command.cdb.flag(0x01) || command.cdb.byte(2) != 0 {
        return Err(INVALID_FIELD_IN_CDB.at_cdb(2));
    }
    let bytes = standard(ABSENT);
    Ok(bytes.slice(..bytes.len().min(command.data_in() as usize)))
}

fn standard(peripheral: u8) -> Bytes {
    let mut bytes = BytesMut::zeroed(58);
    bytes[0] = peripheral;
    // SPC-4; RESPONSE DATA FORMAT.
    (bytes[2], bytes[3]) = (0x06, 0x02);
    // TPGS: the target changes states of target port groups by itself, if anybody does.
    bytes[5] = 0x10;
    // CMDQUE.
    bytes[7] = 0x02;
    bytes[8..16].copy_from_slice(VENDOR);
    bytes[16..32].copy_from_slice(PRODUCT);
    bytes[32..36].copy_from_slice(REVISION);
    VERSION_DESCRIPTORS.iter().for_each(|descriptor| bytes.put_u16(*descriptor));
    bytes.resize(96, 0);
    bytes[4] = (bytes.len() - 5) as u8;
    bytes.freeze()
}

/// Association and type of a designator (SPC-4, 7.8.6.1).
const UNIT_T10: u8 = 0x01;
const UNIT_NAA: u8 = 0x03;
const PORT_RELATIVE: u8 = 0x14;
const PORT_GROUP: u8 = 0x15;
const PORT_NAME: u8 = 0x18;
const TARGET_NAME: u8 = 0x28;

/// Code sets, with the protocol identifier of iSCSI in the high half where there is one.
const BINARY: u8 = 0x01;
const ASCII: u8 = 0x02;
const ISCSI_BINARY: u8 = 0x51;
const ISCSI_UTF8: u8 = 0x53;
/// PIV: there is one.
const PIV: u8 = 0x80;

fn device_identification(bytes: &mut BytesMut, settings: &UnitSettings, target_port: u16) {
    let mut designator = |code_set: u8, kind: u8, value: &[u8]| {
        // One too long for its length is left out: a part of a name would name something else.
        if let Ok(length) = u8::try_from(value.len()) {
            bytes.put_slice(&[code_set, kind, 0, length]);
            bytes.put_slice(value);
        }
    };
    // NAA 3h, locally assigned: no company vouches for the rest.
    let mut naa = [0; 8];
    naa.copy_from_slice(&settings.id[..8]);
    naa[0] = 0x30 | naa[0] & 0x0F;
    designator(BINARY, UNIT_NAA, &naa);
    designator(ASCII, UNIT_T10, &[VENDOR, settings.serial.as_bytes()].concat());
    let [high, low] = target_port.to_be_bytes();
    designator(ISCSI_BINARY, PIV | PORT_RELATIVE, &[0, 0, high, low]);
    let [high, low] = TARGET_PORT_GROUP.to_be_bytes();
    designator(ISCSI_BINARY, PIV | PORT_GROUP, &[0, 0, high, low]);
    designator(ISCSI_UTF8, PIV | PORT_NAME, &words(format!("{},t,0x{target_port:04x}", settings.target)));
    designator(ISCSI_UTF8, PIV | TARGET_NAME, &words(settings.target.clone()));
}

/// Ended by a zero at least, in whole words (SPC-4, 7.8.6.11).
fn words(text: String) -> Vec<u8> {
    let mut bytes = text.into_bytes();
    bytes.resize((bytes.len() + 1).next_multiple_of(4), 0);
    bytes
}

/// Length of the pages that are mostly reserved.
const LONG_PAGE: usize = 0x3C;

fn extended_inquiry(bytes: &mut BytesMut, shape: &Shape) {
    let from = bytes.len();
    bytes.resize(from + LONG_PAGE, 0);
    // Offsets are those of the page, which has a header of four bytes.
    let page = &mut bytes[from..];
    // HEADSUP, ORDSUP and SIMPSUP.
    page[5 - 4] = 0x07;
    // V_SUP: there is a volatile cache.
    page[6 - 4] = u8::from(shape.abilities.flush);
}

fn block_limits(bytes: &mut BytesMut, shape: &Shape) {
    let trims = shape.abilities.trim;
    // WSNZ; MAXIMUM COMPARE AND WRITE LENGTH, a byte.
    bytes.put_slice(&[0x01, u8::try_from(shape.compare_and_write_max()).unwrap_or(u8::MAX)]);
    bytes.put_u16(shape.preferred);
    bytes.put_u32(shape.transfer_max);
    // OPTIMAL TRANSFER LENGTH and MAXIMUM PREFETCH LENGTH: not said.
    bytes.put_u64(0);
    // MAXIMUM UNMAP LBA COUNT: no limit, for a long trim costs what a short one does.
    bytes.put_u32(if trims { u32::MAX } else { 0 });
    bytes.put_u32(if trims { UNMAP_DESCRIPTORS_MAX.into() } else { 0 });
    // OPTIMAL UNMAP GRANULARITY; its alignment is not said.
    bytes.put_u32(if trims { shape.preferred.into() } else { 0 });
    bytes.put_u32(0);
    bytes.put_u64(shape.write_same_max());
    // Of WRITE ATOMIC: none.
    bytes.put_bytes(0, 20);
    debug_assert_eq!(bytes.len(), LONG_PAGE);
}

fn block_device_characteristics(bytes: &mut BytesMut, shape: &Shape) {
    // MEDIUM ROTATION RATE: it does not rotate, or at an unknown rate.
    bytes.put_u16(u16::from(!shape.abilities.rotational));
    bytes.put_bytes(0, LONG_PAGE - 2);
}

fn logical_block_provisioning(bytes: &mut BytesMut, shape: &Shape) {
    let abilities = shape.abilities;
    // LBPU, LBPWS and LBPWS10; LBPRZ 001b.
    let unmaps = if abilities.trim { 0xE0 } else { 0 };
    let zeroes = if abilities.trim_reads_zero { 0x04 } else { 0 };
    // PROVISIONING TYPE: thin, or not said.
    bytes.put_slice(&[0, unmaps | zeroes, if abilities.trim { 2 } else { 0 }, 0]);
}

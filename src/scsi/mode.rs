//! MODE SENSE and MODE SELECT: the Caching and the Control mode page (SPC-4, 7.5; SBC-4, 6.5).
//!
//! Changeable are D_SENSE and SWP, for all nexuses together. Nothing is saved.

use std::sync::atomic::Ordering::SeqCst;

use bytes::{BufMut, Bytes, BytesMut};

use super::blocks::all;
use super::sense::{
    INVALID_FIELD_IN_CDB, INVALID_FIELD_IN_PARAMETER_LIST, PARAMETER_LIST_LENGTH_ERROR,
    SAVING_PARAMETERS_NOT_SUPPORTED, Sense,
};
use super::shape::{Command, Shape};
use super::unit::Core;

/// Sense data has descriptors.
pub(super) const D_SENSE: u8 = 1 << 0;
/// The medium is write protected, by an initiator's wish.
pub(super) const SWP: u8 = 1 << 1;

const CACHING: u8 = 0x08;
const CONTROL: u8 = 0x0A;
const ALL_PAGES: u8 = 0x3F;
const ALL_SUBPAGES: u8 = 0xFF;

/// Number of bits and bytes of the Control page.
const D_SENSE_BIT: (usize, u8) = (2, 0x04);
const SWP_BIT: (usize, u8) = (4, 0x08);

/// PC, the page control field.
enum Values {
    Current(u8),
    Changeable,
}

fn caching(values: &Values, shape: &Shape) -> [u8; 20] {
    let mut page = [0; 20];
    (page[0], page[1]) = (CACHING, 18);
    if let Values::Current(_) = values {
        // WCE.
        page[2] = if shape.abilities.flush { 0x04 } else { 0 };
    }
    page
}

fn control(values: &Values) -> [u8; 12] {
    let mut page = [0; 12];
    (page[0], page[1]) = (CONTROL, 10);
    let bits = match values {
        Values::Current(bits) => {
            // GLTSD; QUEUE ALGORITHM MODIFIER: commands may be done in any order.
            (page[2], page[3]) = (0x02, 0x10);
            *bits
        }
        Values::Changeable => D_SENSE | SWP,
    };
    for (bit, (byte, mask)) in [(D_SENSE, D_SENSE_BIT), (SWP, SWP_BIT)] {
        page[byte] |= if bits & bit != 0 { mask } else { 0 };
    }
    page
}

/// The answer may be longer than the initiator wants it.
pub(super) fn sense(core: &Core, shape: &Shape, command: &Command) -> Result<Bytes, Sense> {
    let cdb = &command.cdb;
    let (page, subpage) = (cdb.byte(2) & 0x3F, cdb.byte(3));
    let mode = core.mode.load(SeqCst);
    let values = match cdb.byte(2) >> 6 {
        0b00 => Values::Current(mode),
        0b01 => Values::Changeable,
        0b10 => Values::Current(0),
        _ => return Err(SAVING_PARAMETERS_NOT_SUPPORTED),
    };
    if subpage != 0 && subpage != ALL_SUBPAGES {
        return Err(INVALID_FIELD_IN_CDB.at_cdb(3));
    }
    let mut pages = BytesMut::new();
    if matches!(page, CACHING | ALL_PAGES) {
        pages.put_slice(&caching(&values, shape));
    }
    if matches!(page, CONTROL | ALL_PAGES) {
        pages.put_slice(&control(&values));
    }
    if pages.is_empty() {
        return Err(INVALID_FIELD_IN_CDB.at_cdb_bit(2, 5));
    }
    // DBD; LLBAA.
    let descriptor = if cdb.flag(0x08) { Vec::new() } else { block_descriptor(shape, cdb.flag(0x10)) };
    let protected = shape.abilities.read_only || mode & SWP != 0;
    // WP and DPOFUA.
    let device_specific = if protected { 0x80 } else { 0 } | if shape.abilities.fua { 0x10 } else { 0 };
    let mut bytes = BytesMut::new();
    let length = descriptor.len() + pages.len();
    if cdb.is_short() {
        bytes.put_slice(&[3 + length as u8, 0, device_specific, descriptor.len() as u8]);
    } else {
        bytes.put_u16(6 + length as u16);
        // LONGLBA.
        bytes.put_slice(&[0, device_specific, u8::from(descriptor.len() == 16), 0]);
        bytes.put_u16(descriptor.len() as u16);
    }
    bytes.put_slice(&descriptor);
    bytes.put_slice(&pages);
    Ok(bytes.freeze())
}

/// SBC-4, 6.5.2.
fn block_descriptor(shape: &Shape, long: bool) -> Vec<u8> {
    let mut descriptor = Vec::with_capacity(16);
    if long {
        descriptor.put_u64(shape.blocks);
        descriptor.put_u32(0);
    } else {
        descriptor.put_u32(u32::try_from(shape.blocks).unwrap_or(u32::MAX));
    }
    descriptor.put_u32(shape.block_length);
    descriptor
}

/// Says whether anything changed.
pub(super) fn select(core: &Core, shape: &Shape, command: &Command, data: &Bytes) -> Result<bool, Sense> {
    let cdb = &command.cdb;
    // SP: there is nowhere to save to. PF: pages have no other form.
    if cdb.flag(0x01) {
        return Err(INVALID_FIELD_IN_CDB.at_cdb_bit(1, 0));
    }
    let list = all(data, command)?;
    if list.is_empty() {
        return Ok(false);
    }
    if !cdb.flag(0x10) {
        return Err(INVALID_FIELD_IN_CDB.at_cdb_bit(1, 4));
    }
    let current = core.mode.load(SeqCst);
    let selected = selected(&list, cdb.is_short(), current, shape)?;
    Ok(core.mode.swap(selected, SeqCst) != selected)
}

/// What a parameter list makes of the bits. All of it is right, or none of it counts.
fn selected(list: &[u8], short: bool, current: u8, shape: &Shape) -> Result<u8, Sense> {
    let wrong = |at: usize| INVALID_FIELD_IN_PARAMETER_LIST.at_parameter(u16::try_from(at).unwrap_or(u16::MAX));
    let header = if short { 4 } else { 8 };
    if list.len() < header {
        return Err(PARAMETER_LIST_LENGTH_ERROR);
    }
    let (descriptor_length, long) = if short {
        (usize::from(list[3]), false)
    } else {
        (usize::from(u16::from_be_bytes([list[6], list[7]])), list[4] & 1 != 0)
    };
    let mut at = header + descriptor_length;
    let Some(descriptor) = list.get(header..at) else { return Err(PARAMETER_LIST_LENGTH_ERROR) };
    if !descriptor.is_empty() && !is_block_descriptor(descriptor, shape, long) {
        return Err(wrong(header));
    }
    let mut bits = current;
    while at < list.len() {
        let (current, changeable) = match list[at] & 0x3F {
            CACHING => (caching(&Values::Current(bits), shape).to_vec(), caching(&Values::Changeable, shape).to_vec()),
            CONTROL => (control(&Values::Current(bits)).to_vec(), control(&Values::Changeable).to_vec()),
            _ => return Err(wrong(at)),
        };
        // SPF: there are no subpages.
        if list[at] & 0x40 != 0 {
            return Err(wrong(at));
        }
        let Some(page) = list.get(at..at + current.len()) else { return Err(PARAMETER_LIST_LENGTH_ERROR) };
        let differs = |index: &usize| (page[*index] ^ current[*index]) & !changeable[*index] != 0;
        if page[1] != current[1] {
            return Err(wrong(at + 1));
        }
        if let Some(index) = (2..page.len()).find(differs) {
            return Err(wrong(at + index));
        }
        if page[0] & 0x3F == CONTROL {
            let is_set = |(byte, mask): (usize, u8)| page[byte] & mask != 0;
            bits = if is_set(D_SENSE_BIT) { D_SENSE } else { 0 } | if is_set(SWP_BIT) { SWP } else { 0 };
        }
        at += current.len();
    }
    Ok(bits)
}

/// Whether it says what is so. NUMBER OF LOGICAL BLOCKS may be left at zero, or at all ones.
fn is_block_descriptor(descriptor: &[u8], shape: &Shape, long: bool) -> bool {
    let is = block_descriptor(shape, long);
    let number = if long { 8 } else { 4 };
    descriptor.len() == is.len()
        && descriptor[number..] == is[number..]
        && [&is[..number], &[0; 8][..number], &[0xFF; 8][..number]].contains(&&descriptor[..number])
}

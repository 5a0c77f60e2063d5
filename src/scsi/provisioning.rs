//! The commands about which blocks are mapped (SBC-4, 4.7): UNMAP, WRITE SAME, GET LBA STATUS.
//!
//! Ranges of zeroes and ranges that are not needed are one operation of the disk, however long. WRITE SAME of anything
//! else is written piece by piece.

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::future::join_all;

use super::Answer;
use super::blocks::{Task, all};
use super::sense::{self, INVALID_FIELD_IN_PARAMETER_LIST, PARAMETER_LIST_LENGTH_ERROR, Sense};
use super::shape::{Command, Shape, UNMAP_DESCRIPTORS_MAX};
use crate::disk::{Extent, Pending, ZeroMode};
use crate::units::{Span, is_zero};

/// Of the parameter list of UNMAP (SBC-4, 5.38.2).
const UNMAP_HEADER: usize = 8;
const UNMAP_DESCRIPTOR: usize = 16;
/// LBA status descriptors of one answer; initiators ask on from their end.
const STATUS_DESCRIPTORS_MAX: usize = 256;

pub(super) fn unmap(task: Task, command: &Command, data: Bytes) -> Pending<Answer> {
    let spans = match all(&data, command).and_then(|list| descriptors(&list, &task.shape)) {
        Ok(spans) if !spans.is_empty() => spans,
        refused => return task.ready(refused.map(|_| Bytes::new())),
    };
    task.run(async move |disk| {
        let trims = spans.into_iter().map(|span| disk.trim(span.start, span.len(), false));
        match join_all(trims).await.into_iter().find_map(Result::err) {
            Some(error) => Err(sense::of_change(error)),
            None => Ok(Bytes::new()),
        }
    })
}

/// The ranges of a parameter list, in bytes; those without blocks are left out. One that is wrong refuses them all.
fn descriptors(list: &[u8], shape: &Shape) -> Result<Vec<Span>, Sense> {
    if list.is_empty() {
        return Ok(Vec::new());
    }
    let Some((header, rest)) = list.split_at_checked(UNMAP_HEADER) else { return Err(PARAMETER_LIST_LENGTH_ERROR) };
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    // A descriptor that is there in part is passed over; one that is not there at all was forgotten.
    let Some(rest) = rest.get(..length) else { return Err(PARAMETER_LIST_LENGTH_ERROR) };
    if length / UNMAP_DESCRIPTOR > usize::from(UNMAP_DESCRIPTORS_MAX) {
        return Err(INVALID_FIELD_IN_PARAMETER_LIST.at_parameter(2));
    }
    let mut spans = Vec::with_capacity(length / UNMAP_DESCRIPTOR);
    for descriptor in rest.chunks_exact(UNMAP_DESCRIPTOR) {
        let [lba, count] = [&descriptor[..8], &descriptor[8..12]].map(number);
        shape.inside(lba, count)?;
        if count > 0 {
            let block_length = u64::from(shape.block_length);
            spans.push(Span::at(lba * block_length, count * block_length));
        }
    }
    Ok(spans)
}

/// Big-endian, at most eight bytes.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// One block is written to all (SBC-4, 5.50). With UNMAP they may be unmapped if they read the same then.
pub(super) fn write_same(task: Task, command: &Command, data: Bytes) -> Pending<Answer> {
    let block = match all(&data, command) {
        Ok(block) => block,
        Err(sense) => return task.ready(Err(sense)),
    };
    let (abilities, unmaps) = (task.shape.abilities, command.cdb.flag(0x08));
    let span = Span::at(command.offset, command.length);
    // No block with NDOB, which is zeroes.
    if is_zero(&block) && unmaps && abilities.trim_reads_zero {
        let pending = task.disk.trim(span.start, span.len(), false);
        return task.after(pending, |answer| answer.map(|()| Bytes::new()).map_err(sense::of_change));
    }
    if is_zero(&block) && abilities.write_zeroes {
        let mode = ZeroMode { no_hole: !unmaps, fast_only: false };
        let pending = task.disk.write_zeroes(span.start, span.len(), mode, false);
        return task.after(pending, |answer| answer.map(|()| Bytes::new()).map_err(sense::of_change));
    }
    let piece = task.piece();
    let length = piece.min(span.len()) as usize;
    let mut pattern = BytesMut::with_capacity(length);
    while pattern.len() < length {
        if block.is_empty() { pattern.put_bytes(0, length) } else { pattern.extend_from_slice(&block) }
    }
    let pattern = pattern.freeze();
    task.run(async move |disk| {
        for part in span.pieces(piece) {
            let data = pattern.slice(..part.len() as usize);
            disk.write(part.start, data, false).await.map_err(sense::of_change)?;
        }
        Ok(Bytes::new())
    })
}

pub(super) fn get_lba_status(task: Task, command: &Command) -> Pending<Answer> {
    let (shape, first, allocation) = (task.shape, command.cdb.lba(), command.cdb.length());
    let room = (allocation as usize).saturating_sub(8).div_ceil(16).clamp(1, STATUS_DESCRIPTORS_MAX);
    let rest = (shape.blocks - first) * u64::from(shape.block_length);
    let pending = task.disk.extents(command.offset, rest, room);
    task.after(pending, move |extents| {
        let runs = runs(&extents.map_err(sense::of_read)?, &shape, shape.blocks - first, room);
        let mut bytes = Vec::with_capacity(8 + 16 * runs.len());
        // PARAMETER DATA LENGTH counts what follows it.
        bytes.put_u32(4 + 16 * runs.len() as u32);
        bytes.put_u32(0);
        let mut lba = first;
        for (count, mapped) in runs {
            bytes.put_u64(lba);
            bytes.put_u32(count);
            // 0h mapped, 1h deallocated.
            bytes.put_slice(&[u8::from(!mapped), 0, 0, 0]);
            lba += u64::from(count);
        }
        bytes.truncate(allocation as usize);
        Ok(bytes.into())
    })
}

/// Runs of whole blocks: how many, and whether mapped. A block is mapped if any part of it is. At least one run, at most
/// `limit`, together at most `blocks`.
fn runs(extents: &[Extent], shape: &Shape, blocks: u64, limit: usize) -> Vec<(u32, bool)> {
    let block_length = u64::from(shape.block_length);
    let mut runs: Vec<(u32, bool)> = Vec::new();
    // In bytes and in blocks, from the first.
    let (mut end, mut told) = (0u64, 0u64);
    let mut add = |until: u64, mapped: bool| {
        let full = runs.len() == limit;
        let count = until.min(blocks).saturating_sub(told);
        let Ok(count) = u32::try_from(count) else {
            // Longer than a descriptor can say: what follows is told another time.
            if !full {
                runs.push((u32::MAX, mapped));
            }
            return false;
        };
        match runs.last_mut() {
            _ if count == 0 => {}
            Some((last, same)) if *same == mapped && last.checked_add(count).is_some() => *last += count,
            _ if full => return false,
            _ => runs.push((count, mapped)),
        }
        told += u64::from(count);
        true
    };
    for extent in extents {
        let start = end;
        end = end.saturating_add(extent.length);
        let hole = extent.hole && shape.abilities.trim;
        let goes_on = if hole {
            let whole = start.div_ceil(block_length)..end / block_length;
            whole.is_empty() || add(whole.start, true) && add(whole.end, false)
        } else {
            add(end.div_ceil(block_length), true)
        };
        if !goes_on {
            break;
        }
    }
    if runs.is_empty() {
        runs.push((u32::try_from(blocks).unwrap_or(u32::MAX), true));
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Disk, MemoryDisk};
    use crate::units::MIB;

    #[test]
    fn a_block_is_mapped_if_any_part_of_it_is() {
        let shape = Shape::new(MemoryDisk::new(MIB).geometry(), 512);
        let extents = [(1000, true), (24, false), (1024, true), (100, true), (412, false), (1536, true)]
            .map(|(length, hole)| Extent { length, hole, zero: hole });
        let expected = [(1, false), (1, true), (2, false), (1, true), (3, false)];
        assert_eq!(runs(&extents, &shape, 8, 16), expected);
        assert_eq!(runs(&extents, &shape, 7, 16)[4], (2, false), "beyond the last block");
        assert_eq!(runs(&extents, &shape, 8, 2), expected[..2]);
    }
}

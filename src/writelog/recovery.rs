//! Finding after a stop what a volume's log holds.
//!
//! Owns: how a segment begins, which segments make up a log, which records are believed. Does not own: what is done
//! with them.
//!
//! ```text
//! segment:  0     its header            4096  its header again      8192  the header of the segment before it;
//!                                                                         its own if the log begins here
//!           12288 records, one behind the other, none beyond the segment's end
//! ```
//! The header stands twice, because one that decays must not bring an older log of the volume back to life.
//!
//! From the newest segment of the volume (the highest lap) the links lead back to the first; where one leads to a
//! segment that is no longer there, it was freed, and the log begins behind it. From there records are read forward:
//! each must have the next index. A segment of a later epoch says by its first index where it began to replace what an
//! earlier one left; nothing from there on is taken of the earlier one, whatever can be read in it.

use std::io::{self, IoSlice};
use std::sync::Arc;

use tracing::info;

use super::Position;
use super::log::Segment;
use super::pool::Inner;
use super::reader::place;
use super::segments::{SegmentIo, Segments};
use crate::disk::Errno;
use crate::failpoint::{self, Safeguard};
use crate::format::VolumeId;
use crate::format::log::{LogId, RECORD_HEADER, RecordHeader, SEGMENT_HEADER, SegmentHeader, crc32c};
use crate::units::{LogIndex, MIB};

/// Where the first record of a segment lies; bytes.
pub(super) const FIRST_RECORD: u64 = 3 * SEGMENT_HEADER as u64;
/// Read at once while looking for records.
const READ_AHEAD: u64 = MIB;

/// What was found of a volume's log.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// Index of the first accepted record; equal to `next` if there is none.
    pub first: LogIndex,
    /// One more than that of the last accepted record.
    pub next: LogIndex,
    /// Nothing was logged before the first record since the log was emptied.
    pub begins: bool,
    pub ended: Ended,
    pub(super) segments: Vec<Segment>,
}

/// Why no more records were accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The volume has no segment in the log.
    NoLog,
    /// Nothing that belongs to the log follows the last record.
    End,
    /// Records are missing before those of a later segment, which begins with the index `resumes`.
    Hole { resumes: LogIndex },
    /// A segment that may belong to the log cannot be read.
    Unreadable { slot: u32, error: Errno },
}

/// What a slot's header says.
#[derive(Clone, Copy, Debug)]
pub(super) enum Found {
    /// It belongs to nobody.
    Free,
    Claimed(SegmentHeader),
    /// It cannot be read, and is never used.
    Unreadable(Errno),
}

/// The bytes with which a segment begins.
pub(super) fn opening(header: &SegmentHeader, before: Option<&SegmentHeader>) -> Vec<u8> {
    let mut page = [0; SEGMENT_HEADER];
    header.encode_into(&mut page);
    let mut bytes = page.repeat(2);
    before.unwrap_or(header).encode_into(&mut page);
    bytes.extend_from_slice(&page);
    bytes
}

/// Reads a slot's header, if it is of this log.
///
/// Where its two copies differ, one of them was torn, decayed or has strayed there, and the right one is that under
/// which the first record is valid. If none is, nothing is lost by taking the newer one. What was decided is written
/// down at once: the other copy must not be found alone when a later write tears this one.
pub(super) fn read_header(segments: &dyn Segments, slot: u32, log: LogId, epoch: u64) -> Found {
    let found = segments.open(slot).and_then(|segment| {
        let mut bytes = [0; FIRST_RECORD as usize + RECORD_HEADER];
        segment.read_at(&mut bytes, 0)?;
        let (pages, record) = bytes.split_at(FIRST_RECORD as usize);
        let (copies, _) = pages.split_at(2 * SEGMENT_HEADER);
        let header = copies
            .chunks_exact(SEGMENT_HEADER)
            .filter_map(|page| SegmentHeader::decode(page).ok())
            .filter(|header| header.log == log && header.epoch <= epoch)
            .max_by_key(|header| (RecordHeader::decode(record, &place(header, FIRST_RECORD)).is_ok(), header.lap));
        let Some(header) = header else { return Ok(Found::Free) };
        let both = &opening(&header, None)[..copies.len()];
        if copies != both {
            segment.write_at(&mut [IoSlice::new(both)], 0)?;
            segment.sync()?;
        }
        Ok(Found::Claimed(header))
    });
    found.unwrap_or_else(|error| Found::Unreadable(error.into()))
}

pub(super) fn recover(
    pool: &Inner,
    volume: VolumeId,
    found: &[Found],
    mut each: impl FnMut(Position, &RecordHeader),
) -> Recovered {
    let (chain, begins, broken) = match chain(pool, volume, found) {
        Ok((chain, begins)) => (chain, begins, Ended::NoLog),
        Err(ended) => (Vec::new(), false, ended),
    };
    let first = chain.first().map_or(LogIndex(1), |(_, header)| header.first);
    let mut recovered = Recovered { first, next: first, begins, ended: broken, segments: Vec::new() };
    for (at, (slot, header)) in chain.iter().enumerate() {
        let follows = chain.get(at + 1).map(|(_, header)| header.first);
        let before = recovered.next;
        let read = read_segment(pool, *slot, header, follows, &mut recovered.next, &mut each);
        if recovered.next > before {
            let last = LogIndex(recovered.next.0 - 1);
            recovered.segments.push(Segment { slot: *slot, header: *header, last });
        }
        recovered.ended = match (read, follows) {
            (Err(error), _) => Ended::Unreadable { slot: *slot, error: error.into() },
            (Ok(()), Some(resumes)) if resumes != recovered.next => Ended::Hole { resumes },
            (Ok(()), _) => Ended::End,
        };
        match recovered.ended {
            Ended::End => {}
            Ended::Hole { resumes } if !failpoint::stands(Safeguard::GapFreePrefix) => recovered.next = resumes,
            _ => break,
        }
    }
    let Recovered { first, next, ended, .. } = recovered;
    info!(%volume, %first, %next, ?ended, "log read");
    recovered
}

/// The volume's segments from the oldest that is still there to the newest, and whether the log begins with them.
fn chain(pool: &Inner, volume: VolumeId, found: &[Found]) -> Result<(Vec<(u32, SegmentHeader)>, bool), Ended> {
    let mut own: Vec<(u32, SegmentHeader)> = (0..)
        .zip(found)
        .filter_map(|(slot, found)| match found {
            Found::Claimed(header) if header.volume == volume => Some((slot, *header)),
            _ => None,
        })
        .collect();
    own.sort_by_key(|(_, header)| header.lap);
    let mut chain = Vec::new();
    let mut begins = false;
    while let Some((slot, header)) = own.pop() {
        let (link, used) = link(pool, slot, &header)?;
        begins = matches!(link, Link::Begins);
        match link {
            Link::Begins => own.clear(),
            // It was torn while it began, or as good as that: there is nothing in it, and its link may be an old one.
            _ if chain.is_empty() && !used => continue,
            Link::To(before) => {
                own.retain(|(_, header)| header.lap <= before.lap);
                if own.last().is_none_or(|(_, header)| *header != before) {
                    match bearing(pool, found, &before) {
                        Some(slot) => own.push((slot, before)),
                        None => own.clear(),
                    }
                    if let (true, Some(ended)) = (own.is_empty(), unreadable(found)) {
                        return Err(ended);
                    }
                }
            }
            // The link decayed; or the segment was freed, and was being taken into use again when all stopped. Then
            // nothing before it is needed. Dense indices tell whether the segment before it is the right one.
            Link::Unknown => {
                if let Some((slot, before)) = own.last() {
                    let mut next = before.first;
                    let read = read_segment(pool, *slot, before, Some(header.first), &mut next, &mut |_, _| {});
                    if read.is_err() || next != header.first {
                        own.clear();
                    }
                }
            }
        }
        chain.push((slot, header));
    }
    chain.reverse();
    Ok((chain, begins))
}

/// The slot whose records belong to `segment`, though both copies of its header have decayed. A slot with a valid
/// header is not asked: it may be in use again, with only some of the old records left.
fn bearing(pool: &Inner, found: &[Found], segment: &SegmentHeader) -> Option<u32> {
    let mut free = (0..).zip(found).filter(|(_, found)| matches!(found, Found::Free)).map(|(slot, _)| slot);
    free.find(|slot| {
        let mut record = [0; RECORD_HEADER];
        let read = pool.segments.open(*slot).and_then(|open| open.read_at(&mut record, FIRST_RECORD));
        read.is_ok() && RecordHeader::decode(&record, &place(segment, FIRST_RECORD)).is_ok()
    })
}

/// A segment that is not found may be one that cannot be read.
fn unreadable(found: &[Found]) -> Option<Ended> {
    (0..).zip(found).find_map(|(slot, found)| match found {
        Found::Unreadable(error) => Some(Ended::Unreadable { slot, error: *error }),
        _ => None,
    })
}

/// What a segment says of the one before it.
enum Link {
    Begins,
    To(SegmentHeader),
    Unknown,
}

/// Also says whether the segment holds a record: if so, all of its opening was on the disk before.
fn link(pool: &Inner, slot: u32, header: &SegmentHeader) -> Result<(Link, bool), Ended> {
    let failed = |error: io::Error| Ended::Unreadable { slot, error: error.into() };
    let segment = pool.segments.open(slot).map_err(failed)?;
    let mut bytes = [0; SEGMENT_HEADER + RECORD_HEADER];
    segment.read_at(&mut bytes, FIRST_RECORD - SEGMENT_HEADER as u64).map_err(failed)?;
    let (page, record) = bytes.split_at(SEGMENT_HEADER);
    let link = match SegmentHeader::decode(page) {
        Ok(before) if before == *header => Link::Begins,
        Ok(before) if before.log == header.log && before.volume == header.volume && before.lap < header.lap => {
            Link::To(before)
        }
        _ => Link::Unknown,
    };
    Ok((link, RecordHeader::decode(record, &place(header, FIRST_RECORD)).is_ok()))
}

/// Passes on the records of a segment that follow `next` without a gap, up to where the following segment begins.
fn read_segment(
    pool: &Inner,
    slot: u32,
    segment: &SegmentHeader,
    end: Option<LogIndex>,
    next: &mut LogIndex,
    each: &mut impl FnMut(Position, &RecordHeader),
) -> io::Result<()> {
    let mut window =
        Window { segment: pool.segments.open(slot)?, size: pool.segment_size, start: 0, bytes: Vec::new() };
    let mut offset = FIRST_RECORD;
    while end.is_none_or(|end| *next < end) {
        let Some(bytes) = window.bytes(offset, RECORD_HEADER as u64)? else { break };
        let Ok(header) = RecordHeader::decode(bytes, &place(segment, offset)) else { break };
        if header.index != *next {
            break;
        }
        let payload = offset + RECORD_HEADER as u64;
        match window.bytes(payload, header.payload.into())? {
            Some(bytes) if crc32c(bytes) == header.payload_crc || bytes.is_empty() => {}
            _ => break,
        }
        each(Position::new(slot, offset), &header);
        *next = next.next();
        offset = payload + u64::from(header.payload);
    }
    Ok(())
}

/// A part of a segment in memory, which moves on.
struct Window {
    segment: Arc<dyn SegmentIo>,
    /// Of the segment.
    size: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl Window {
    /// `length` bytes at `offset`; none if they would reach beyond the segment.
    fn bytes(&mut self, offset: u64, length: u64) -> io::Result<Option<&[u8]>> {
        if offset + length > self.size {
            return Ok(None);
        }
        if offset + length > self.start + self.bytes.len() as u64 {
            self.start = offset;
            self.bytes.resize(length.max(READ_AHEAD).min(self.size - offset) as usize, 0);
            self.segment.read_at(&mut self.bytes, offset)?;
        }
        let at = (offset - self.start) as usize;
        Ok(Some(&self.bytes[at..at + length as usize]))
    }
}

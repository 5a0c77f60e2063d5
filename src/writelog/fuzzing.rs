//! Segments of a log that hold anything: an entry point of [`crate::fuzzing`].
//!
//! ```text
//! input    1  log epoch         1  how many volumes share the pool        then, per segment, up to 8:
//!          1  bit n (of 0 to 2): the CRC of page n is made right; bit 3: those of the records and their payloads
//!        216  the first 72 bytes of the three pages with which the segment begins; the rest of a page is zero
//!          2  length of what follows: records; the rest of the segment is zero
//! ```

use std::io::{self, IoSlice};
use std::sync::Arc;

use parking_lot::Mutex;

use super::pool::{Inner, LIMITS};
use super::recovery::{self, FIRST_RECORD};
use super::segments::{SegmentIo, Segments};
use super::{Opened, reader};
use crate::format::VolumeId;
use crate::format::log::{LogId, RECORD_HEADER, SEGMENT_HEADER, crc32c};
use crate::units::KIB;

const LOG: LogId = LogId(*b"fedcba9876543210");
const VOLUME: VolumeId = VolumeId(*b"a fuzzed volume!");
/// Small, so that an input can fill several.
const SEGMENT: u64 = FIRST_RECORD + 16 * KIB;
const SEGMENTS: usize = 8;
const HEADER_FIELDS: usize = 72;
const FIX_RECORDS: u8 = 1 << 3;

/// Reads a log, and then what was found in it.
pub(crate) fn recovery(input: &[u8]) -> bool {
    let Some((&[epoch, volumes], mut rest)) = input.split_first_chunk() else { return false };
    let mut image = Vec::new();
    while image.len() < SEGMENTS
        && let Some(segment) = take_segment(&mut rest)
    {
        image.push(segment);
    }
    let slots = image.len() as u32;
    let image = Image(Arc::new(Mutex::new(image)));
    let open = || {
        let opened = Opened { created: false, log: LOG, epoch: epoch.into() };
        Inner::new(opened, Box::new(image.clone()), SEGMENT, slots, volumes.into(), LIMITS)
    };
    let pool = open();
    let found: Vec<_> = (0..slots).map(|slot| recovery::read_header(&image, slot, LOG, epoch.into())).collect();
    let mut records = Vec::new();
    let recovered = recovery::recover(&pool, VOLUME, &found, |position, header| records.push((position, *header)));

    let indices = records.iter().map(|(_, header)| header.index.0);
    assert!(indices.eq(recovered.first.0..recovered.next.0), "not gap-free");
    for (position, header) in &records {
        let segment = recovered.segments.iter().find(|segment| segment.slot == position.slot());
        let Some(segment) = segment else { panic!("{header:?} lies in no segment of the log") };
        let payload = reader::read(&pool, &segment.header, *position, header.index);
        let expected = if header.op.has_payload() { header.length } else { 0 };
        assert_eq!(payload.map(|payload| payload.len() as u64), Ok(expected), "{header:?}");
    }

    // What was decided stays decided.
    let mut again = Vec::new();
    let second = recovery::recover(&open(), VOLUME, &found, |position, header| again.push((position, *header)));
    assert_eq!((second.first, second.next, second.ended), (recovered.first, recovered.next, recovered.ended));
    assert!(again == records);

    // And the log goes on behind it, in segments that are not those.
    let kept: Vec<u32> = recovered.segments.iter().map(|segment| segment.slot).collect();
    pool.claim(VOLUME, &kept);
    while let Some((slot, _)) = pool.take(VOLUME) {
        assert!(!kept.contains(&slot), "segment {slot} is used again with what is in it");
    }
    !records.is_empty()
}

fn take_segment(input: &mut &[u8]) -> Option<Vec<u8>> {
    let mut take = |length| {
        let (taken, rest) = input.split_at_checked(length)?;
        *input = rest;
        Some(taken)
    };
    let &[fix] = take(1)? else { return None };
    let fields = take(3 * HEADER_FIELDS)?;
    let &[low, high] = take(2)? else { return None };
    let records = take(u16::from_le_bytes([low, high]).into())?;

    let mut segment = vec![0; SEGMENT as usize];
    let (pages, space) = segment.split_at_mut(FIRST_RECORD as usize);
    for (number, (page, fields)) in
        pages.chunks_exact_mut(SEGMENT_HEADER).zip(fields.chunks_exact(HEADER_FIELDS)).enumerate()
    {
        page[..HEADER_FIELDS].copy_from_slice(fields);
        if fix & 1 << number != 0 {
            let crc_at = SEGMENT_HEADER - 4;
            let crc = crc32c(&page[..crc_at]);
            page[crc_at..].copy_from_slice(&crc.to_le_bytes());
        }
    }
    let length = records.len().min(space.len());
    space[..length].copy_from_slice(&records[..length]);
    if fix & FIX_RECORDS != 0 {
        fix_records(space);
    }
    Some(segment)
}

/// Makes the CRCs right of records that follow each other, as far as their lengths lead.
fn fix_records(mut space: &mut [u8]) {
    while let Some((record, rest)) = space.split_at_mut_checked(RECORD_HEADER) {
        let length = u32::from_le_bytes([record[68], record[69], record[70], record[71]]) as usize;
        let Some((payload, rest)) = rest.split_at_mut_checked(length) else { return };
        if record.iter().all(|byte| *byte == 0) {
            return;
        }
        if length > 0 {
            record[72..76].copy_from_slice(&crc32c(payload).to_le_bytes());
        }
        let crc = crc32c(&record[..76]);
        record[76..].copy_from_slice(&crc.to_le_bytes());
        space = rest;
    }
}

/// Segments in memory. Clones are the same.
#[derive(Clone)]
struct Image(Arc<Mutex<Vec<Vec<u8>>>>);

impl Segments for Image {
    fn open(&self, slot: u32) -> io::Result<Arc<dyn SegmentIo>> {
        Ok(Arc::new(Slot { image: self.clone(), slot: slot as usize }))
    }
}

struct Slot {
    image: Image,
    slot: usize,
}

impl SegmentIo for Slot {
    fn write_at(&self, data: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        let bytes = data.iter().flat_map(|slice| slice.iter().copied());
        let segment = &mut self.image.0.lock()[self.slot];
        segment[offset as usize..].iter_mut().zip(bytes).for_each(|(old, new)| *old = new);
        Ok(())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let segment = &self.image.0.lock()[self.slot];
        let bytes = segment.get(offset as usize..offset as usize + buffer.len());
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

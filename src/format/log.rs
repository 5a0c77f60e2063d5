//! The write log's bytes: segment header and record header.
//!
//! Owns: telling a record that was written here, now, from anything else that can lie at its place: zeroes, a record
//! of an earlier use of the segment or of another log, one that a disk put at a wrong place, half a header. Does not
//! own: where records lie, what follows from a gap ([`crate`]'s `writelog`), the payload's check.
//!
//! ```text
//! segment header, one page of 4096           record header, 80
//!    0  8  magic "umbralog"                   0  4  magic "uwr1"
//!    8  2  version 1                          4  1  op: 1 write, 2 zero, 3 trim, 4 ahead, 5 read-back,
//!   10  6  zero                                     6 unreadable, 7 scan, 8 void, 9 heartbeat
//!   16 16  log                                5  3  zero
//!   32 16  volume id                          8  8  log, its halves xored
//!   48  8  log epoch                         16  8  log epoch
//!   56  8  lap, below 2⁶³                    24  8  lap of the segment
//!   64  8  first log index                   32  8  log index, below 2⁶³
//!   72     zero                              40  8  sequence, below 2⁶³
//! 4092  4  CRC-32C of all before it          48  8  offset in the volume, bytes; of a void the index that it
//!                                                   takes back, of a heartbeat its count
//!                                            56  8  length, bytes
//!                                            64  4  position of this header in its segment, bytes
//!                                            68  4  payload, bytes
//!                                            72  4  CRC-32C of the payload
//!                                            76  4  CRC-32C of bytes 0 to 76
//! ```
//! Versions: 1 (2026-11): first. The record's magic carries its version.

use super::VolumeId;
use super::codec::{FormatError, Part, Reader, Result, Writer, within};
use crate::units::{LogIndex, REQUEST_MAX, SECTOR, Sequence};

const SEGMENT_MAGIC: &[u8; 8] = b"umbralog";
const SEGMENT_VERSION: u16 = 1;
const RECORD_MAGIC: &[u8; 4] = b"uwr1";
/// Bytes of a segment header: one page of any disk, so that it can be written directly.
pub const SEGMENT_HEADER: usize = 4096;
/// Bytes of a record header.
pub const RECORD_HEADER: usize = 80;
const SEGMENT_CRC_AT: usize = SEGMENT_HEADER - 4;
const RECORD_CRC_AT: usize = RECORD_HEADER - 4;

/// Identifies a log: made new, at random, whenever one is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LogId(pub [u8; 16]);

impl LogId {
    /// Short enough for every record; the segment's header holds the whole.
    fn folded(self) -> u64 {
        let whole = u128::from_le_bytes(self.0);
        (whole >> 64) as u64 ^ whole as u64
    }
}

/// The first page of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    pub log: LogId,
    pub volume: VolumeId,
    /// Counts the openings of the log.
    pub epoch: u64,
    /// Ordinal of this use of a segment among all of the pool; never repeats.
    pub lap: u64,
    /// Index of the first record in the segment.
    pub first: LogIndex,
}

/// Where a record lies: what a header must agree with to be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordPlace {
    pub log: LogId,
    pub epoch: u64,
    pub lap: u64,
    /// Of the header in its segment, bytes.
    pub position: u32,
}

/// What a log record says happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogOp {
    /// A client's write; the payload follows.
    Write,
    /// The range now reads as zeroes; no payload.
    Zero,
    /// The range was trimmed; no payload.
    Trim,
    /// A change ahead of a scan: the scan will read what it wrote; no payload.
    Ahead,
    /// What the store was found to hold; the payload follows.
    ReadBack,
    /// The store could not read the range back; no payload.
    Unreadable,
    /// A scan read the range at this index; its data went to the remote without the log; no payload.
    Scan,
    /// The change of an earlier index, which stands in `offset`, was refused by the store: it did nothing. No payload.
    Void,
    /// The marks' heartbeat, which stands in `offset`. No payload.
    Heartbeat,
}

/// A record header without the fields that say where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    pub index: LogIndex,
    /// The newest client operation at that index.
    pub sequence: Sequence,
    pub op: LogOp,
    /// Byte range of the volume; multiples of 512 except for the end of an odd-sized volume.
    pub offset: u64,
    pub length: u64,
    /// Bytes of payload that follow the header: `length` rounded up to 512 for ops with payload, else 0.
    pub payload: u32,
    /// CRC-32C of the payload.
    pub payload_crc: u32,
}

/// Every segment that is taken into use has a higher lap than all before: far beyond what is ever reached, and far from
/// what overflows.
pub const LAP_MAX: u64 = u64::MAX >> 1;

/// CRC-32C (Castagnoli), as in iSCSI: of headers and payloads of the log.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

impl LogOp {
    const ALL: [Self; 9] = [
        Self::Write,
        Self::Zero,
        Self::Trim,
        Self::Ahead,
        Self::ReadBack,
        Self::Unreadable,
        Self::Scan,
        Self::Void,
        Self::Heartbeat,
    ];

    fn byte(self) -> u8 {
        self as u8 + 1
    }
    /// Whether the range's bytes follow the header.
    pub fn has_payload(self) -> bool {
        matches!(self, Self::Write | Self::ReadBack)
    }
}

impl SegmentHeader {
    /// Fills a whole page.
    pub fn encode_into(&self, page: &mut [u8; SEGMENT_HEADER]) {
        let mut out = Writer::new();
        out.put(SEGMENT_MAGIC).u16(SEGMENT_VERSION).put(&[0; 6]).put(&self.log.0).put(&self.volume.0);
        out.u64(self.epoch).u64(self.lap).u64(self.first.0);
        page.fill(0);
        page[..out.len()].copy_from_slice(out.as_bytes());
        let crc = crc32c(&page[..SEGMENT_CRC_AT]);
        page[SEGMENT_CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads the first [`SEGMENT_HEADER`] bytes of a segment. Whose log it is, and of which time, is the caller's to compare.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let part = Part::LogSegment;
        let page = Reader::new(part, bytes).take(SEGMENT_HEADER as u64)?;
        let mut input = Reader::new(part, page);
        input.magic(SEGMENT_MAGIC)?;
        input.version(SEGMENT_VERSION)?;
        input.reserved(6)?;
        let header = Self {
            log: LogId(input.array()?),
            volume: VolumeId(input.array()?),
            epoch: input.u64()?,
            lap: input.u64()?,
            first: LogIndex(input.u64()?),
        };
        input.reserved((SEGMENT_CRC_AT - input.offset()) as u64)?;
        if input.u32()? != crc32c(&page[..SEGMENT_CRC_AT]) {
            return Err(FormatError::Damaged { part, check: "CRC" });
        }
        within(part, "lap", header.lap, 0, LAP_MAX)?;
        within(part, "first index", header.first.0, 0, LogIndex::MAX.0)?;
        Ok(header)
    }
}

impl RecordHeader {
    /// Fills the first [`RECORD_HEADER`] bytes of `out`, which must have as many. On the path of every write: allocates
    /// nothing.
    pub fn encode_into(&self, place: &RecordPlace, out: &mut [u8]) {
        debug_assert!(self.check().is_ok(), "{self:?}");
        let out = &mut out[..RECORD_HEADER];
        out[..4].copy_from_slice(RECORD_MAGIC);
        out[4..8].copy_from_slice(&[self.op.byte(), 0, 0, 0]);
        let longs =
            [place.log.folded(), place.epoch, place.lap, self.index.0, self.sequence.0, self.offset, self.length];
        for (field, value) in out[8..64].chunks_exact_mut(8).zip(longs) {
            field.copy_from_slice(&value.to_le_bytes());
        }
        for (field, value) in out[64..76].chunks_exact_mut(4).zip([place.position, self.payload, self.payload_crc]) {
            field.copy_from_slice(&value.to_le_bytes());
        }
        let crc = crc32c(&out[..RECORD_CRC_AT]);
        out[RECORD_CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads the header at the start of `bytes` and believes it only at its `place`.
    pub fn decode(bytes: &[u8], place: &RecordPlace) -> Result<Self> {
        let part = Part::LogRecord;
        let bytes = Reader::new(part, bytes).take(RECORD_HEADER as u64)?;
        let mut input = Reader::new(part, bytes);
        let magic: [u8; 4] = input.array()?;
        if magic != *RECORD_MAGIC {
            let mut found = [0; 8];
            found[..4].copy_from_slice(&magic);
            return Err(FormatError::WrongMagic { part, found });
        }
        if bytes[RECORD_CRC_AT..] != crc32c(&bytes[..RECORD_CRC_AT]).to_le_bytes() {
            return Err(FormatError::Damaged { part, check: "CRC" });
        }
        let op = input.u8()?;
        let unknown = FormatError::Unknown { part, offset: 4, field: "op", found: op.into() };
        let op = LogOp::ALL.get(usize::from(op).wrapping_sub(1)).copied().ok_or(unknown)?;
        input.reserved(3)?;
        if input.u64()? != place.log.folded() {
            return Err(FormatError::Foreign { part, field: "log" });
        }
        let expect = |field, found: u64, expected| {
            if found == expected { Ok(()) } else { Err(FormatError::Mismatch { part, field, found, expected }) }
        };
        expect("epoch", input.u64()?, place.epoch)?;
        expect("lap", input.u64()?, place.lap)?;
        let (index, sequence) = (LogIndex(input.u64()?), Sequence(input.u64()?));
        let (offset, length) = (input.u64()?, input.u64()?);
        expect("position", input.u32()?.into(), place.position.into())?;
        let header = Self { index, sequence, op, offset, length, payload: input.u32()?, payload_crc: input.u32()? };
        header.check()?;
        Ok(header)
    }

    /// The range is one, and the payload is what op and range make it.
    fn check(&self) -> Result<()> {
        let part = Part::LogRecord;
        within(part, "index", self.index.0, 0, LogIndex::MAX.0)?;
        within(part, "sequence", self.sequence.0, 0, Sequence::MAX.0)?;
        within(part, "length", self.length, 0, u64::MAX - self.offset)?;
        let payload = if self.op.has_payload() {
            within(part, "length", self.length, 0, REQUEST_MAX.into())?.next_multiple_of(SECTOR)
        } else {
            within(part, "CRC of no payload", self.payload_crc.into(), 0, 0)?
        };
        within(part, "payload", self.payload.into(), payload, payload)?;
        Ok(())
    }
}

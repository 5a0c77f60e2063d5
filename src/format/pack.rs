//! A pack: the sectors that changed in one epoch, or that one stretch of a scan found, with an index of its own.
//!
//! ```text
//! pack       data         pages    directory   footer              (layout: [`super::index`])
//! data       the stored bytes of the data records, in the order of the records, without gaps
//!
//! record in a page
//!   1        bits 0–2  content: 0 raw, 1 zstd, 2 zero, 3 trimmed, 4 unreadable
//!            bits 3–4  form of the mask ([`super::mask`])
//!            bit  5    the slice is not that of the record before (of the first: not 0)
//!            bit  6    more than one block; full masks of voids only
//!            bit  7    zero
//!   leb      first block − first block of the record before (of the first: − 0)
//!   1        slice                      if bit 5
//!   leb      count of blocks − 2        if bit 6
//!   0–16     mask, by its form
//!   leb      offset in the object       first data record of a page; others begin where the one before ends
//!   leb      stored bytes               zstd only; raw has 512 per sector
//!   16       content hash               raw and zstd
//! ```
//! Records are ordered by (first block, slice, kind: data, zero, trimmed, unreadable); no sector is named twice in a
//! slice. A record is one zstd frame, or raw where that saves less than a sixteenth.

use std::cell::RefCell;

use bytes::Bytes;

use super::body::Body;
use super::codec::{FormatError, Part, Reader, Result, Writer, within};
use super::index::{self, Coverage, Footer, IndexWriter, Kind, Record};
use super::keys::Keys;
use super::mask::MaskForm;
use super::{ContentHash, Encoding, ObjectRef, PackContent, PackRecord, Stored, Void};
use crate::units::{BLOCK, Block, Generation, Mask, SECTOR};

/// Slices of one epoch at most; see [`PackRecord::slice`].
pub const SLICES_MAX: usize = 16;
/// Fast enough for an uplink of any speed: compression must not be what bounds it.
const ZSTD_LEVEL: i32 = 1;

const OTHER_SLICE: u8 = 1 << 5;
const MANY: u8 = 1 << 6;

/// The most bytes that zstd may need for a record of `plain` bytes, to be worth its time at every reader.
fn compressed_max(plain: usize) -> usize {
    plain - plain / 16
}

impl PackRecord {
    /// Bytes of the record's sectors, decoded.
    pub fn plain_bytes(&self) -> usize {
        self.mask.count() as usize * SECTOR as usize
    }
    fn kind(&self) -> u8 {
        match self.content {
            PackContent::Data(_) => 0,
            PackContent::Void(Void::Zero) => 2,
            PackContent::Void(Void::Trimmed) => 3,
            PackContent::Void(Void::Unreadable) => 4,
        }
    }
    fn content_bits(&self) -> u8 {
        match self.content {
            PackContent::Data(Stored { encoding: Encoding::Zstd, .. }) => 1,
            _ => self.kind(),
        }
    }
}

/// What the records of a pack have named so far, slice by slice.
#[derive(Default)]
pub struct PackOrder {
    last: Option<(Block, u8, u8)>,
    slices: [Coverage; SLICES_MAX],
}

#[derive(Default)]
pub struct Previous {
    first: u64,
    slice: u8,
    /// Where the bytes of the next data record begin.
    next: Option<u64>,
}

impl Record for PackRecord {
    const KIND: Kind = Kind::Pack;
    type Previous = Previous;
    type Order = PackOrder;

    fn first(&self) -> Block {
        self.first
    }
    fn count(&self) -> u64 {
        self.count
    }

    fn check(&self, footer: &Footer) -> Result<()> {
        check(self)?;
        if let PackContent::Data(stored) = &self.content {
            let end = stored.offset.saturating_add(stored.length.into());
            within(Part::PackPage, "end of a record's bytes", end, 0, footer.pages_at)?;
        }
        Ok(())
    }

    fn admit(&self, order: &mut PackOrder) -> bool {
        let place = Some((self.first, self.slice, self.kind()));
        let ordered = order.last < place;
        order.last = place;
        ordered && order.slices[self.slice as usize].admit(self.first, self.count, self.mask)
    }

    fn encode(&self, previous: &mut Previous, out: &mut Writer) {
        let form = MaskForm::of(self.mask);
        let mut bits = self.content_bits() | form.bits() << 3;
        if self.slice != previous.slice {
            bits |= OTHER_SLICE;
        }
        if self.count > 1 {
            bits |= MANY;
        }
        out.u8(bits).leb(self.first.0 - previous.first);
        if bits & OTHER_SLICE != 0 {
            out.u8(self.slice);
        }
        if bits & MANY != 0 {
            out.leb(self.count - 2);
        }
        form.encode(out);
        if let PackContent::Data(stored) = &self.content {
            if previous.next.is_none() {
                out.leb(stored.offset);
            }
            if stored.encoding == Encoding::Zstd {
                out.leb(stored.length.into());
            }
            out.put(&stored.hash.0);
            previous.next = Some(stored.offset + u64::from(stored.length));
        }
        (previous.first, previous.slice) = (self.first.0, self.slice);
    }

    fn decode(previous: &mut Previous, input: &mut Reader<'_>) -> Result<Self> {
        let (part, offset) = (input.part(), input.offset());
        let bits = input.u8()?;
        let content = bits & 7;
        if content > 4 || bits & 0x80 != 0 {
            return Err(FormatError::Unknown { part, offset, field: "kind of record", found: bits.into() });
        }
        let blocks = index::BLOCKS_MAX;
        let first = previous.first + input.leb_within("first block", 0, blocks - 1 - previous.first)?;
        let mut slice = previous.slice;
        if bits & OTHER_SLICE != 0 {
            slice = input.u8()?;
            if slice == previous.slice {
                return Err(FormatError::NotCanonical { part, offset });
            }
        }
        let count = if bits & MANY != 0 { 2 + input.leb_within("count of blocks", 0, blocks)? } else { 1 };
        let mask = MaskForm::decode(bits >> 3 & 3, input)?;
        let content = match content {
            2 => PackContent::Void(Void::Zero),
            3 => PackContent::Void(Void::Trimmed),
            4 => PackContent::Void(Void::Unreadable),
            encoding => {
                let begin = match previous.next {
                    Some(next) => next,
                    // Offsets are checked against the object's length later; the bound only keeps sums in range.
                    None => input.leb_within("offset", 0, u64::MAX / 2)?,
                };
                let plain = u64::from(mask.count()) * SECTOR;
                let (encoding, length) = match encoding {
                    0 => (Encoding::Raw, plain),
                    _ => (Encoding::Zstd, input.leb_within("stored bytes", 1, BLOCK)?),
                };
                previous.next = Some(begin.saturating_add(length));
                let hash = ContentHash(input.array()?);
                PackContent::Data(Stored { offset: begin, length: length as u32, encoding, hash })
            }
        };
        (previous.first, previous.slice) = (first, slice);
        Ok(Self { first: Block(first), count, slice, mask, content })
    }
}

/// Whether a record is possible by itself.
fn check(record: &PackRecord) -> Result<()> {
    let part = Part::PackPage;
    let void = matches!(record.content, PackContent::Void(_));
    index::check_extent(part, record.first, record.count, record.mask, void)?;
    within(part, "slice", record.slice.into(), 0, SLICES_MAX as u64 - 1)?;
    if let PackContent::Data(stored) = &record.content {
        let plain = record.plain_bytes();
        let (min, max) = match stored.encoding {
            Encoding::Raw => (plain, plain),
            Encoding::Zstd => (1, compressed_max(plain)),
        };
        within(part, "stored bytes", stored.length.into(), min as u64, max as u64)?;
    }
    Ok(())
}

/// Makes a pack out of records in order. Holds the object, and nothing besides it that grows.
pub struct PackBuilder {
    keys: Keys,
    data: Body,
    index: IndexWriter<PackRecord>,
    compressor: Option<zstd::bulk::Compressor<'static>>,
    scratch: Box<[u8; BLOCK as usize]>,
}

impl PackBuilder {
    pub fn new(keys: &Keys, generation: Generation, number: u64) -> Self {
        Self {
            keys: keys.clone(),
            data: Body::default(),
            index: IndexWriter::new(keys, generation, number),
            // Without a compressor (no memory for one) everything is stored raw.
            compressor: zstd::bulk::Compressor::new(ZSTD_LEVEL).ok(),
            scratch: Box::new([0; BLOCK as usize]),
        }
    }

    /// Adds the sectors of `mask` of block `first`; `bytes` are theirs, in order, without the others.
    pub fn push_data(&mut self, first: Block, slice: u8, mask: Mask, bytes: &[u8]) -> Result<()> {
        let hash = self.keys.content_hash(bytes);
        let stored =
            Stored { offset: self.data.len() as u64, length: bytes.len() as u32, encoding: Encoding::Raw, hash };
        let mut record = PackRecord { first, count: 1, slice, mask, content: PackContent::Data(stored) };
        within(
            Part::PackRecord,
            "bytes",
            bytes.len() as u64,
            record.plain_bytes() as u64,
            record.plain_bytes() as u64,
        )?;
        check(&record)?;
        self.index.admit(&record)?;
        let room = &mut self.scratch[..compressed_max(bytes.len())];
        // An error says that the result does not fit: too little is saved.
        match self.compressor.as_mut().and_then(|zstd| zstd.compress_to_buffer(bytes, room).ok()) {
            Some(length) => {
                let encoding = Encoding::Zstd;
                record.content = PackContent::Data(Stored { length: length as u32, encoding, ..stored });
                self.data.extend(&self.scratch[..length]);
            }
            None => self.data.extend(bytes),
        }
        self.index.push(&record);
        Ok(())
    }

    /// Adds `count` blocks from `first` (1 unless `mask` is full) in which the sectors of `mask` hold no data.
    pub fn push_void(&mut self, first: Block, count: u64, slice: u8, mask: Mask, void: Void) -> Result<()> {
        let record = PackRecord { first, count, slice, mask, content: PackContent::Void(void) };
        check(&record)?;
        self.index.admit(&record)?;
        self.index.push(&record);
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.index.records() == 0
    }
    pub fn records(&self) -> u64 {
        self.index.records()
    }
    /// Bytes that the object would have if it were finished now, within a few.
    pub fn stored_bytes(&self) -> u64 {
        self.data.len() as u64 + self.index.stored_bytes()
    }

    pub fn finish(self) -> (Bytes, ObjectRef) {
        self.index.finish(self.data, &[])
    }
}

/// At most `plain` bytes of a frame; the buffer is the bound, so a bomb ends in an error and not in memory.
fn decompress(frame: &[u8], plain: usize) -> Option<Vec<u8>> {
    thread_local! {
        /// A context takes longer to make than a small record to decompress.
        static CONTEXT: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
    }
    CONTEXT.with_borrow_mut(|context| {
        let context = match context {
            Some(context) => context,
            None => context.insert(zstd::bulk::Decompressor::new().ok()?),
        };
        let mut bytes = vec![0; plain];
        let length = context.decompress_to_buffer(frame, &mut bytes[..]).ok()?;
        bytes.truncate(length);
        Some(bytes)
    })
}

/// The sectors of a data record, from its stored bytes; checked against the hash in the index. A void has none.
pub fn decode_record(keys: &Keys, record: &PackRecord, bytes: &[u8]) -> Result<Bytes> {
    let part = Part::PackRecord;
    let PackContent::Data(stored) = &record.content else { return Ok(Bytes::new()) };
    let plain = record.plain_bytes();
    let (found, expected) = (bytes.len() as u64, stored.length.into());
    if found != expected {
        return Err(FormatError::Mismatch { part, field: "stored bytes", found, expected });
    }
    let decoded = match stored.encoding {
        Encoding::Raw => bytes.to_vec(),
        Encoding::Zstd => decompress(bytes, plain).ok_or(FormatError::Decompression { part, expected: plain })?,
    };
    if decoded.len() != plain {
        return Err(FormatError::Decompression { part, expected: plain });
    }
    if keys.content_hash(&decoded) != stored.hash {
        return Err(FormatError::Damaged { part, check: "content hash" });
    }
    Ok(decoded.into())
}

/// Checks every byte of a pack against what refers to it, and decodes every record. Returns its index.
pub fn verify_pack(keys: &Keys, bytes: &Bytes, object: &ObjectRef) -> Result<Vec<PackRecord>> {
    let (head, records) = index::verify::<PackRecord>(keys, bytes, object)?;
    let mut next = 0;
    for record in &records {
        if let PackContent::Data(stored) = &record.content {
            if stored.offset != next {
                let (found, expected) = (stored.offset, next);
                return Err(FormatError::Mismatch { part: Part::Pack, field: "offset of a record", found, expected });
            }
            next += u64::from(stored.length);
            decode_record(keys, record, &bytes[stored.offset as usize..next as usize])?;
        }
    }
    if next != head.footer.pages_at {
        let (found, expected) = (head.footer.pages_at, next);
        return Err(FormatError::Mismatch { part: Part::Pack, field: "offset of the pages", found, expected });
    }
    Ok(records)
}

//! The paged index that packs and runs share: how a reader finds what an object says of some blocks without reading
//! the rest of it.
//!
//! Owns: pages, directory, footer. Does not own: what a record is ([`super::pack`], [`super::run`]).
//!
//! ```text
//! object     data         pages         table        directory        footer
//!            packs only   ≤ 16 KiB each runs only    what is where    128 bytes
//!
//! page       records, in order, each as the difference to the one before it in the page; the first stands alone
//! directory  per page:  leb  first block − first block of the page before
//!                       leb  last block − first block
//!                       leb  bytes        leb  records        16  MAC of the page
//! footer       0  8  magic "umbraidx"
//!              8  2  version 1
//!             10  1  kind: 1 pack, 2 run
//!             11  1  zero
//!             12  4  generation
//!             16  8  number
//!             24 16  volume id
//!             40  8  records in all
//!             48  8  offset of the pages
//!             56  8  offset of the table        (the pages end there)
//!             64  8  offset of the directory    (the table ends there)
//!             72  8  length of the object       (the directory ends 128 before)
//!             80 16  MAC of the table
//!             96 16  MAC of the directory
//!            112 16  MAC of bytes 0 to 112
//! ```
//! The footer's MAC covers the directory's, and that the pages': a reader who holds the key and the object's length
//! trusts each page that it reads. Order is that of first blocks; a record may reach beyond the first block of the
//! next page (an extent in one slice, a write into it in the next).
//!
//! Versions: 1 (2026-11): first.

use std::ops::Range;

use bytes::Bytes;

use super::body::Body;
use super::codec::{FormatError, Part, Reader, Result, Writer, within};
use super::keys::{Keys, MAC_LENGTH, Mac, MacKind};
use super::{ObjectHash, ObjectRef, VolumeId};
use crate::units::{BLOCK, Block, Generation, Mask, SECTORS_PER_BLOCK, VOLUME_MAX};

const MAGIC: &[u8; 8] = b"umbraidx";
const VERSION: u16 = 1;
const MAC_AT: usize = 112;
/// Bytes of a footer.
pub const FOOTER_LENGTH: u64 = (MAC_AT + MAC_LENGTH) as u64;
/// Small enough to be read for one block, large enough that its place and MAC in the directory weigh 1/600 of it.
pub const PAGE_MAX: u64 = 16 * 1024;
/// What a reader asks for first, from the end of an object: it holds the index of an idle epoch's pack whole, and the
/// directory of one of 64 MiB.
pub const TAIL: u64 = 64 * 1024;
/// Blocks of the largest volume.
pub const BLOCKS_MAX: u64 = VOLUME_MAX / BLOCK;

/// What an object with an index is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Pack,
    Run,
}

impl Kind {
    fn byte(self) -> u8 {
        match self {
            Self::Pack => 1,
            Self::Run => 2,
        }
    }
    fn footer(self) -> (Part, MacKind) {
        match self {
            Self::Pack => (Part::PackFooter, MacKind::PackFooter),
            Self::Run => (Part::RunFooter, MacKind::RunFooter),
        }
    }
    fn table(self) -> (Part, MacKind) {
        match self {
            Self::Pack => (Part::PackFooter, MacKind::PackTable),
            Self::Run => (Part::RunTable, MacKind::RunTable),
        }
    }
    fn directory(self) -> (Part, MacKind) {
        match self {
            Self::Pack => (Part::PackDirectory, MacKind::PackDirectory),
            Self::Run => (Part::RunDirectory, MacKind::RunDirectory),
        }
    }
    fn page(self) -> (Part, MacKind) {
        match self {
            Self::Pack => (Part::PackPage, MacKind::PackPage),
            Self::Run => (Part::RunPage, MacKind::RunPage),
        }
    }
    fn whole(self) -> Part {
        match self {
            Self::Pack => Part::Pack,
            Self::Run => Part::Run,
        }
    }
    /// Key of the object in the bucket.
    pub fn key(self, volume: VolumeId, object: &ObjectRef) -> String {
        match self {
            Self::Pack => volume.pack_key(object),
            Self::Run => volume.run_key(object),
        }
    }
}

/// A record of an index.
pub trait Record: Copy + Send + Sync + 'static {
    const KIND: Kind;
    /// What the encoding of a record takes from those before it in its page.
    type Previous: Default;
    /// What tells whether a record may follow those before it.
    type Order: Default;

    fn first(&self) -> Block;
    fn count(&self) -> u64;
    /// Whether the record is possible by itself and points into an object of this shape.
    fn check(&self, footer: &Footer) -> Result<()>;
    fn admit(&self, order: &mut Self::Order) -> bool;
    fn encode(&self, previous: &mut Self::Previous, out: &mut Writer);
    fn decode(previous: &mut Self::Previous, input: &mut Reader<'_>) -> Result<Self>;
}

/// The last block of a record that passed [`Record::check`].
pub fn last<R: Record>(record: &R) -> Block {
    Block(record.first().0 + record.count() - 1)
}

/// Checks what every record has: it lies inside the largest volume, names something, and is an extent only if whole
/// blocks are of one kind.
pub(super) fn check_extent(part: Part, first: Block, count: u64, mask: Mask, extent: bool) -> Result<()> {
    within(part, "first block", first.0, 0, BLOCKS_MAX - 1)?;
    let most = if extent && mask == Mask::FULL { BLOCKS_MAX - first.0 } else { 1 };
    within(part, "count of blocks", count, 1, most)?;
    within(part, "count of sectors", mask.count().into(), 1, SECTORS_PER_BLOCK.into())?;
    Ok(())
}

/// What records in order have named so far; refuses what names a sector again.
#[derive(Clone, Copy, Default)]
pub(super) struct Coverage {
    /// Blocks below it are named by extents, or passed.
    end: u64,
    block: u64,
    mask: Mask,
}

impl Coverage {
    pub(super) fn admit(&mut self, first: Block, count: u64, mask: Mask) -> bool {
        let named = if self.block == first.0 { self.mask } else { Mask::NONE };
        if first.0 < self.end || first.0 < self.block || !named.and(mask).is_empty() {
            return false;
        }
        if count > 1 {
            self.end = first.0 + count;
        }
        (self.block, self.mask) = (first.0, named.or(mask));
        true
    }
}

/// The end of an object: where the rest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footer {
    pub kind: Kind,
    pub generation: Generation,
    pub number: u64,
    pub volume: VolumeId,
    pub records: u64,
    pub pages_at: u64,
    pub table_at: u64,
    pub directory_at: u64,
    /// Of the object, bytes.
    pub length: u64,
    pub table_mac: Mac,
    pub directory_mac: Mac,
}

impl Footer {
    fn encode(&self, keys: &Keys) -> Vec<u8> {
        let mut out = Writer::new();
        out.put(MAGIC).u16(VERSION).u8(self.kind.byte()).u8(0).u32(self.generation.0).u64(self.number);
        out.put(&self.volume.0).u64(self.records);
        out.u64(self.pages_at).u64(self.table_at).u64(self.directory_at).u64(self.length);
        out.put(&self.table_mac.0).put(&self.directory_mac.0);
        let mac = keys.mac(self.kind.footer().1, out.as_bytes());
        out.put(&mac.0);
        out.into_bytes()
    }

    /// Reads the footer of `object` at the end of `tail`, the object's last bytes.
    pub fn decode(keys: &Keys, kind: Kind, object: &ObjectRef, tail: &[u8]) -> Result<Self> {
        let (part, mac_kind) = kind.footer();
        let start = tail.len().saturating_sub(FOOTER_LENGTH as usize);
        let bytes = &tail[start..];
        let mut input = Reader::new(part, bytes);
        input.magic(MAGIC)?;
        input.version(VERSION)?;
        let found = input.u8()?;
        if found != kind.byte() {
            return Err(FormatError::Unknown { part, offset: 10, field: "kind", found: found.into() });
        }
        input.reserved(1)?;
        let footer = Self {
            kind,
            generation: Generation(input.u32()?),
            number: input.u64()?,
            volume: VolumeId(input.array()?),
            records: input.u64()?,
            pages_at: input.u64()?,
            table_at: input.u64()?,
            directory_at: input.u64()?,
            length: input.u64()?,
            table_mac: Mac(input.array()?),
            directory_mac: Mac(input.array()?),
        };
        let mac = Mac(input.array()?);
        input.end()?;
        if mac != keys.mac(mac_kind, &bytes[..MAC_AT]) {
            return Err(FormatError::Damaged { part, check: "MAC" });
        }
        if footer.volume != keys.volume() {
            return Err(FormatError::Foreign { part, field: "volume" });
        }
        if (footer.generation, footer.number) != (object.generation, object.number) {
            return Err(FormatError::Foreign { part, field: "name" });
        }
        let expect = |field, found, expected| {
            if found == expected { Ok(()) } else { Err(FormatError::Mismatch { part, field, found, expected }) }
        };
        expect("length of the object", footer.length, object.length)?;
        let end = within(part, "length", footer.length, FOOTER_LENGTH, u64::MAX)? - FOOTER_LENGTH;
        within(part, "offset of the directory", footer.directory_at, 0, end)?;
        within(part, "offset of the table", footer.table_at, 0, footer.directory_at)?;
        within(part, "offset of the pages", footer.pages_at, 0, footer.table_at)?;
        match kind {
            Kind::Pack => expect("offset of the table", footer.table_at, footer.directory_at)?,
            Kind::Run => expect("offset of the pages", footer.pages_at, 0)?,
        }
        Ok(footer)
    }

    /// Bytes of the object that hold table and directory: what [`Head::decode`] wants.
    pub fn head_range(&self) -> Range<u64> {
        self.table_at..self.length - FOOTER_LENGTH
    }
}

/// One page, as the directory lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// First block of its first record.
    pub first: Block,
    /// The highest last block of its records.
    pub last: Block,
    /// Byte offset in the object.
    pub offset: u64,
    pub length: u64,
    pub records: u64,
    mac: Mac,
}

impl Page {
    /// Bytes of the object that hold the page.
    pub fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.length
    }
}

/// Everything of an index but its pages.
#[derive(Clone, Debug)]
pub struct Head {
    pub footer: Footer,
    pages: Vec<Page>,
    /// Per page, the highest last block of it and all before it.
    reach: Vec<Block>,
    table: Bytes,
}

impl Head {
    /// `bytes` are those of [`Footer::head_range`].
    pub fn decode(keys: &Keys, footer: Footer, bytes: &Bytes) -> Result<Self> {
        let split = (footer.directory_at - footer.table_at) as usize;
        if bytes.len() as u64 != footer.length - FOOTER_LENGTH - footer.table_at {
            let (found, needed) = (bytes.len(), footer.length - FOOTER_LENGTH - footer.table_at);
            return Err(FormatError::Truncated { part: footer.kind.directory().0, offset: 0, needed, found });
        }
        let (table, directory) = (bytes.slice(..split), bytes.slice(split..));
        let (table_part, table_mac) = footer.kind.table();
        if keys.mac(table_mac, &table) != footer.table_mac {
            return Err(FormatError::Damaged { part: table_part, check: "MAC" });
        }
        let (part, directory_mac) = footer.kind.directory();
        if keys.mac(directory_mac, &directory) != footer.directory_mac {
            return Err(FormatError::Damaged { part, check: "MAC" });
        }
        let (pages, reach) = decode_directory(&footer, &directory)?;
        Ok(Self { footer, pages, reach, table })
    }

    pub fn pages(&self) -> &[Page] {
        &self.pages
    }
    /// Bytes of the table; empty in a pack.
    pub fn table(&self) -> &Bytes {
        &self.table
    }
    /// Memory that this takes, about, bytes.
    pub fn weight(&self) -> usize {
        size_of::<Self>() + self.pages.len() * (size_of::<Page>() + size_of::<Block>()) + self.table.len()
    }

    /// Numbers of the pages that have records on blocks of `first..=last`, in order.
    pub fn covering(&self, first: Block, last: Block) -> impl Iterator<Item = usize> + '_ {
        let from = self.reach.partition_point(|reach| *reach < first);
        let to = self.pages.partition_point(|page| page.first <= last);
        (from..to.max(from)).filter(move |page| self.pages[*page].last >= first)
    }

    /// Checks and decodes page `number`, whose bytes these are.
    pub fn decode_page<R: Record>(&self, keys: &Keys, number: usize, bytes: &[u8]) -> Result<Vec<R>> {
        let (part, mac) = R::KIND.page();
        let page = self.pages.get(number).filter(|_| R::KIND == self.footer.kind);
        let page = page.ok_or(FormatError::Mismatch {
            part,
            field: "number of pages",
            found: self.pages.len() as u64,
            expected: number as u64 + 1,
        })?;
        if keys.mac(mac, bytes) != page.mac {
            return Err(FormatError::Damaged { part, check: "MAC" });
        }
        let records = decode_records::<R>(&self.footer, bytes)?;
        let ends = (records.first().map(R::first), records.iter().map(last).max());
        if ends != (Some(page.first), Some(page.last)) || records.len() as u64 != page.records {
            return Err(FormatError::Mismatch {
                part,
                field: "count of records",
                found: records.len() as u64,
                expected: page.records,
            });
        }
        Ok(records)
    }
}

fn decode_directory(footer: &Footer, bytes: &[u8]) -> Result<(Vec<Page>, Vec<Block>)> {
    let part = footer.kind.directory().0;
    let mut input = Reader::new(part, bytes);
    let (mut pages, mut reach) = (Vec::new(), Vec::new());
    let (mut first, mut high, mut offset, mut records) = (0, 0, footer.pages_at, 0u64);
    while !input.is_empty() {
        first += input.leb_within("first block", 0, BLOCKS_MAX - 1 - first)?;
        let last = first + input.leb_within("last block", 0, BLOCKS_MAX - 1 - first)?;
        let length = input.leb_within("length of a page", 1, PAGE_MAX.min(footer.table_at - offset))?;
        let count = input.leb_within("count of records", 1, length)?;
        let mac = Mac(input.array()?);
        pages.push(Page { first: Block(first), last: Block(last), offset, length, records: count, mac });
        high = last.max(high);
        reach.push(Block(high));
        offset += length;
        records += count;
    }
    for (field, found, expected) in
        [("end of the pages", offset, footer.table_at), ("records", records, footer.records)]
    {
        if found != expected {
            return Err(FormatError::Mismatch { part, field, found, expected });
        }
    }
    Ok((pages, reach))
}

/// The records of a page whose MAC was checked.
pub(super) fn decode_records<R: Record>(footer: &Footer, bytes: &[u8]) -> Result<Vec<R>> {
    let mut input = Reader::new(R::KIND.page().0, bytes);
    let (mut previous, mut order) = (R::Previous::default(), R::Order::default());
    let mut records = Vec::new();
    while !input.is_empty() {
        let record = R::decode(&mut previous, &mut input)?;
        record.check(footer)?;
        if !record.admit(&mut order) {
            return Err(FormatError::Disorder { part: input.part(), item: records.len() as u64 });
        }
        records.push(record);
    }
    Ok(records)
}

/// Builds an index from records in order; what it holds is the index as stored, and 64 bytes per page.
pub(super) struct IndexWriter<R: Record> {
    keys: Keys,
    generation: Generation,
    number: u64,
    pages: Vec<u8>,
    /// The closed pages; offsets count from the first.
    closed: Vec<Page>,
    /// Of the open page: where it begins, its first and last block, its records.
    open_at: usize,
    open: Option<(Block, Block, u64)>,
    previous: R::Previous,
    order: R::Order,
    scratch: Writer,
    records: u64,
}

impl<R: Record> IndexWriter<R> {
    pub(super) fn new(keys: &Keys, generation: Generation, number: u64) -> Self {
        Self {
            keys: keys.clone(),
            generation,
            number,
            pages: Vec::new(),
            closed: Vec::new(),
            open_at: 0,
            open: None,
            previous: R::Previous::default(),
            order: R::Order::default(),
            scratch: Writer::new(),
            records: 0,
        }
    }

    pub(super) fn records(&self) -> u64 {
        self.records
    }
    /// Bytes of pages, directory and footer so far.
    pub(super) fn stored_bytes(&self) -> u64 {
        (self.pages.len() + (self.closed.len() + 1) * 32) as u64 + FOOTER_LENGTH
    }

    /// Whether `record` may come next.
    pub(super) fn admit(&mut self, record: &R) -> Result<()> {
        if record.admit(&mut self.order) {
            Ok(())
        } else {
            Err(FormatError::Disorder { part: R::KIND.page().0, item: self.records })
        }
    }

    /// Appends an admitted record.
    pub(super) fn push(&mut self, record: &R) {
        self.scratch.clear();
        record.encode(&mut self.previous, &mut self.scratch);
        if (self.pages.len() - self.open_at + self.scratch.len()) as u64 > PAGE_MAX {
            self.close_page();
            self.scratch.clear();
            record.encode(&mut self.previous, &mut self.scratch);
        }
        self.pages.extend_from_slice(self.scratch.as_bytes());
        let (first, high, records) = self.open.unwrap_or((record.first(), record.first(), 0));
        self.open = Some((first, high.max(last(record)), records + 1));
        self.records += 1;
    }

    fn close_page(&mut self) {
        if let Some((first, last, records)) = self.open.take() {
            let bytes = &self.pages[self.open_at..];
            let (offset, length) = (self.open_at as u64, bytes.len() as u64);
            self.closed.push(Page {
                first,
                last,
                offset,
                length,
                records,
                mac: self.keys.mac(R::KIND.page().1, bytes),
            });
            self.open_at = self.pages.len();
            self.previous = R::Previous::default();
        }
    }

    /// Puts the index behind `data`, which makes the object.
    pub(super) fn finish(mut self, mut data: Body, table: &[u8]) -> (Bytes, ObjectRef) {
        self.close_page();
        let mut directory = Writer::new();
        let mut before = 0;
        for page in &self.closed {
            directory.leb(page.first.0 - before).leb(page.last.0 - page.first.0).leb(page.length).leb(page.records);
            directory.put(&page.mac.0);
            before = page.first.0;
        }
        let pages_at = data.len() as u64;
        let table_at = pages_at + self.pages.len() as u64;
        let directory_at = table_at + table.len() as u64;
        let footer = Footer {
            kind: R::KIND,
            generation: self.generation,
            number: self.number,
            volume: self.keys.volume(),
            records: self.records,
            pages_at,
            table_at,
            directory_at,
            length: directory_at + directory.len() as u64 + FOOTER_LENGTH,
            table_mac: self.keys.mac(R::KIND.table().1, table),
            directory_mac: self.keys.mac(R::KIND.directory().1, directory.as_bytes()),
        };
        data.extend(&self.pages);
        data.extend(table);
        data.extend(directory.as_bytes());
        data.extend(&footer.encode(&self.keys));
        let (bytes, hash) = data.finish();
        let (generation, number, length) = (self.generation, self.number, bytes.len() as u64);
        (bytes, ObjectRef { generation, number, length, hash })
    }
}

/// Checks a whole object against what refers to it, and reads its head and all its records.
pub(super) fn verify<R: Record>(keys: &Keys, bytes: &Bytes, object: &ObjectRef) -> Result<(Head, Vec<R>)> {
    let part = R::KIND.whole();
    let found = bytes.len() as u64;
    if found != object.length {
        return Err(FormatError::Mismatch { part, field: "length", found, expected: object.length });
    }
    if ObjectHash::of(bytes) != object.hash {
        return Err(FormatError::Damaged { part, check: "hash" });
    }
    let footer = Footer::decode(keys, R::KIND, object, bytes)?;
    let range = footer.head_range();
    let head = Head::decode(keys, footer, &bytes.slice(range.start as usize..range.end as usize))?;
    let mut order = R::Order::default();
    let mut records = Vec::new();
    for (number, page) in head.pages().iter().enumerate() {
        let range = page.range();
        let page = head.decode_page::<R>(keys, number, &bytes[range.start as usize..range.end as usize])?;
        for record in &page {
            if !record.admit(&mut order) {
                return Err(FormatError::Disorder { part, item: records.len() as u64 });
            }
            records.push(*record);
        }
    }
    Ok((head, records))
}

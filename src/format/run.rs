//! A run: the merged index of many packs. It says which pack holds the newest content of what; the pack's own index
//! says the rest.
//!
//! ```text
//! run        pages    table    directory   footer                 (layout: [`super::index`])
//! table      per pack, in the order in which records first name them; 52 bytes; readable without a key
//!              4  generation     8  number     8  length     32  BLAKE3-256
//!
//! record in a page
//!   1        bits 0–1  form of the mask ([`super::mask`])
//!            bits 2–4  source: 0 the pack of the last record that had one, 1 another pack, 2 zero, 3 trimmed,
//!                      4 unreadable
//!            bit  5    more than one block; full masks only
//!            bits 6–7  zero
//!   leb      first block − first block of the record before (of the first: − 0)
//!   leb      number of the pack in the table    source 1
//!   leb      count of blocks − 2                if bit 5
//!   0–16     mask, by its form
//! ```
//! Records are ordered by (first block, source) and name no sector twice. Whole blocks that follow each other in one
//! pack are one record.

use std::collections::HashMap;

use bytes::Bytes;

use super::body::Body;
use super::codec::{FormatError, Part, Reader, Result, Writer, within};
use super::index::{self, Coverage, Footer, Head, IndexWriter, Kind, Record};
use super::keys::Keys;
use super::mask::MaskForm;
use super::{ObjectHash, ObjectRef, RunRecord, RunSource};
use crate::units::{Block, Generation, Mask};

/// Bytes of one pack in the table.
const TABLE_ENTRY: u64 = 52;
const MANY: u8 = 1 << 5;

#[derive(Default)]
pub struct RunOrder {
    last: Option<(Block, RunSource)>,
    named: Coverage,
}

#[derive(Default)]
pub struct Previous {
    first: u64,
    pack: Option<u32>,
}

impl Record for RunRecord {
    const KIND: Kind = Kind::Run;
    type Previous = Previous;
    type Order = RunOrder;

    fn first(&self) -> Block {
        self.first
    }
    fn count(&self) -> u64 {
        self.count
    }

    fn check(&self, footer: &Footer) -> Result<()> {
        check(self)?;
        if let RunSource::Pack(pack) = self.source {
            let packs = (footer.directory_at - footer.table_at) / TABLE_ENTRY;
            if u64::from(pack) >= packs {
                let (part, found) = (Part::RunPage, pack.into());
                return Err(FormatError::OutOfRange { part, field: "pack", found, min: 0, max: packs });
            }
        }
        Ok(())
    }

    fn admit(&self, order: &mut RunOrder) -> bool {
        let place = Some((self.first, self.source));
        let ordered = order.last < place;
        order.last = place;
        ordered && order.named.admit(self.first, self.count, self.mask)
    }

    fn encode(&self, previous: &mut Previous, out: &mut Writer) {
        let form = MaskForm::of(self.mask);
        let source = match self.source {
            RunSource::Pack(pack) if previous.pack == Some(pack) => 0,
            RunSource::Pack(_) => 1,
            RunSource::Zero => 2,
            RunSource::Trimmed => 3,
            RunSource::Unreadable => 4,
        };
        let many = if self.count > 1 { MANY } else { 0 };
        out.u8(form.bits() | source << 2 | many).leb(self.first.0 - previous.first);
        if let (RunSource::Pack(pack), 1) = (self.source, source) {
            out.leb(pack.into());
            previous.pack = Some(pack);
        }
        if many != 0 {
            out.leb(self.count - 2);
        }
        form.encode(out);
        previous.first = self.first.0;
    }

    fn decode(previous: &mut Previous, input: &mut Reader<'_>) -> Result<Self> {
        let (part, offset) = (input.part(), input.offset());
        let bits = input.u8()?;
        let blocks = index::BLOCKS_MAX;
        let first = previous.first + input.leb_within("first block", 0, blocks - 1 - previous.first)?;
        let source = match (bits >> 2 & 0b11_0111, previous.pack) {
            (0, Some(pack)) => RunSource::Pack(pack),
            (1, last) => {
                let pack = input.leb_within("pack", 0, u32::MAX.into())? as u32;
                if last == Some(pack) {
                    return Err(FormatError::NotCanonical { part, offset });
                }
                previous.pack = Some(pack);
                RunSource::Pack(pack)
            }
            (2, _) => RunSource::Zero,
            (3, _) => RunSource::Trimmed,
            (4, _) => RunSource::Unreadable,
            _ => return Err(FormatError::Unknown { part, offset, field: "kind of record", found: bits.into() }),
        };
        let count = if bits & MANY != 0 { 2 + input.leb_within("count of blocks", 0, blocks)? } else { 1 };
        let mask = MaskForm::decode(bits & 3, input)?;
        previous.first = first;
        Ok(Self { first: Block(first), count, mask, source })
    }
}

/// Whether a record is possible by itself.
fn check(record: &RunRecord) -> Result<()> {
    index::check_extent(Part::RunPage, record.first, record.count, record.mask, true)
}

/// The packs that a run names, from the bytes of its table. Needs no key: the run's hash, in what lists it, covers it.
pub fn decode_table(bytes: &[u8]) -> Result<Vec<ObjectRef>> {
    let mut input = Reader::new(Part::RunTable, bytes);
    let mut packs = Vec::with_capacity(bytes.len() / TABLE_ENTRY as usize);
    while !input.is_empty() {
        packs.push(decode_pack(&mut input)?);
    }
    Ok(packs)
}

/// One pack of a table, without decoding the rest.
pub fn pack_of_table(bytes: &[u8], number: u32) -> Result<ObjectRef> {
    let mut input = Reader::new(Part::RunTable, bytes);
    input.take(u64::from(number) * TABLE_ENTRY)?;
    decode_pack(&mut input)
}

fn decode_pack(input: &mut Reader<'_>) -> Result<ObjectRef> {
    let (generation, number, length) = (Generation(input.u32()?), input.u64()?, input.u64()?);
    Ok(ObjectRef { generation, number, length, hash: ObjectHash(input.array()?) })
}

/// Makes a run out of records in order. Holds the object and the table of its packs.
pub struct RunBuilder {
    index: IndexWriter<RunRecord>,
    table: Writer,
    packs: HashMap<ObjectRef, u32>,
    /// The last record: the next may continue it.
    open: Option<RunRecord>,
}

impl RunBuilder {
    pub fn new(keys: &Keys, generation: Generation, number: u64) -> Self {
        let index = IndexWriter::new(keys, generation, number);
        Self { index, table: Writer::new(), packs: HashMap::new(), open: None }
    }

    /// The number in this run's table of `pack`, which is added if it is new. Names without hash would do to tell
    /// packs apart, but not to notice that two are mixed up.
    pub fn pack(&mut self, pack: &ObjectRef) -> Result<u32> {
        let next = self.packs.len() as u64;
        if let Some(number) = self.packs.get(pack) {
            return Ok(*number);
        }
        let number = within(Part::RunTable, "count of packs", next, 0, u32::MAX.into())? as u32;
        self.packs.insert(*pack, number);
        self.table.u32(pack.generation.0).u64(pack.number).u64(pack.length).put(&pack.hash.0);
        Ok(number)
    }

    /// Adds a record; neighbours that say the same become one.
    pub fn push(&mut self, record: RunRecord) -> Result<()> {
        check(&record)?;
        if let RunSource::Pack(pack) = record.source {
            within(Part::RunPage, "pack", pack.into(), 0, (self.packs.len() as u64).saturating_sub(1))?;
        }
        if let Some(open) = &mut self.open {
            let whole = open.mask == Mask::FULL && record.mask == Mask::FULL;
            if whole && open.source == record.source && open.first.0 + open.count == record.first.0 {
                open.count += record.count;
                return Ok(());
            }
        }
        self.close_record()?;
        self.open = Some(record);
        Ok(())
    }

    fn close_record(&mut self) -> Result<()> {
        if let Some(record) = self.open.take() {
            self.index.admit(&record)?;
            self.index.push(&record);
        }
        Ok(())
    }

    pub fn finish(mut self) -> Result<(Bytes, ObjectRef)> {
        self.close_record()?;
        Ok(self.index.finish(Body::default(), self.table.as_bytes()))
    }
}

/// Checks every byte of a run against what refers to it. Returns its packs and its records.
pub fn verify_run(keys: &Keys, bytes: &Bytes, object: &ObjectRef) -> Result<(Vec<ObjectRef>, Vec<RunRecord>)> {
    let (head, records): (Head, _) = index::verify::<RunRecord>(keys, bytes, object)?;
    Ok((decode_table(head.table())?, records))
}

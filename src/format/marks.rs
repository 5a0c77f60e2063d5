//! The region marks' bytes: header, page and transaction. What regions, heat and divergence are says [`crate::marks`].
//!
//! Owns: telling what was written here, in this life, at this place, from anything else that can lie there: zeroes, an
//! earlier life, a unit that a disk put at a wrong place, half of one. Does not own: which of several valid ones holds.
//!
//! ```text
//! file
//!       0    8 KiB  two headers
//!   8 KiB    1 MiB  ring of 256 transactions; number n lies in slot n mod 256
//!           1 MiB  the same once more
//!           16 KiB per group of 16 pages: their slots 0, then their slots 1
//!
//! header, 4096                               transaction, 4096
//!    0  8  magic "umbramrk"                     0  8  magic "umbramtx"
//!    8  2  version 1                            8  2  version 1
//!   10  1  bit 0: there is a log               10  1  as there
//!          bit 1: doubted
//!   11  5  zero                                11  5  zero
//!   16 16  life                                16 16  life
//!   32  8  heartbeat                           32  8  heartbeat
//!   40  8  relied on                           40  8  relied on
//!   48 16  log, or zero                        48 16  log, or zero
//!   64 16  volume                              64 16  volume
//!   80  8  size of the volume, bytes           80  8  number
//!   88  8  number of the last transaction      88  8  number before the first of its batch
//!          that is in the pages                96  8  number of the last of its batch
//!   96  4  ordinal of the checkpoint          104  4  opening
//!  100  4  opening                            108  2  bytes of runs
//!  104  4  of each group, its stamp           110     runs
//!          zero                                       zero
//! 4092  4  CRC-32C of all before it          4092  4  CRC-32C of all before it
//!
//! page, 512                                  run of a transaction
//!    0  4  magic "ump1"                         leb  4 · gap + kind: 0 heat, 1 diverge, 2 cool, 3 converge
//!    4  4  number                               leb  regions − 1
//!    8 16  life
//!   24  8  volume, its halves xored          The gap counts from the end of the run before it if that is of the
//!   32  4  stamp                             same kind, else from region 0. Kinds ascend.
//!   36  4  zero
//!   40 232 hot: a bit for each of 1856       stamp of a group: 2 · ordinal of the checkpoint that wrote it + slot
//!  272 232 diverged            regions
//!  504  4  zero
//!  508  4  CRC-32C of all before it
//! ```
//! Versions: 1 (2026-11): first. The page's magic carries its version.

#[cfg(test)]
mod tests;

use std::ops::Range;

use super::VolumeId;
use super::codec::{FormatError, Part, Reader, Result, Writer, within};
use super::log::{LogId, crc32c};
use crate::units::{LogIndex, MIB, REGION, VOLUME_MAX};

const HEADER_MAGIC: &[u8; 8] = b"umbramrk";
const TRANSACTION_MAGIC: &[u8; 8] = b"umbramtx";
const VERSION: u16 = 1;
const PAGE_MAGIC: &[u8; 4] = b"ump1";

/// Bytes of a header and of a transaction: no disk has larger physical sectors, so that writing one disturbs no other.
pub const UNIT: usize = 4096;
const UNIT_CRC_AT: usize = UNIT - 4;
/// Bytes of a page: what is lost if a sector is.
pub const PAGE: usize = 512;
const PAGE_CRC_AT: usize = PAGE - 4;
/// Words of 64 regions, for each of the two marks, in a page.
pub const PAGE_WORDS: usize = 29;
pub const PAGE_REGIONS: u64 = PAGE_WORDS as u64 * 64;
/// Pages that are written together: more than a physical sector of any disk, and few enough groups for the header.
pub const GROUP_PAGES: usize = 16;
pub const GROUP_REGIONS: u64 = PAGE_REGIONS * GROUP_PAGES as u64;
/// Bytes of a group in one of its slots.
pub const GROUP: usize = PAGE * GROUP_PAGES;
/// Transactions that the ring holds.
pub const RING: u64 = MIB / UNIT as u64;

/// Where the two copies of the ring begin in the file.
pub const RINGS_AT: [u64; 2] = [2 * UNIT as u64, 2 * UNIT as u64 + RING * UNIT as u64];
const GROUPS_AT: u64 = RINGS_AT[1] + RING * UNIT as u64;

const STAMPS_AT: usize = 104;
const GROUPS_MAX: u64 = ((UNIT_CRC_AT - STAMPS_AT) / 4) as u64;
const RUNS_AT: usize = 110;
/// Bytes for runs in a transaction.
const RUNS_MAX: usize = UNIT_CRC_AT - RUNS_AT;
/// The most transactions of one batch.
pub const BATCH_MAX: u64 = RING / 2;

const _: () = assert!(PAGE_CRC_AT == 40 + 2 * PAGE_WORDS * 8 + 4);
const _: () = assert!(VOLUME_MAX.div_ceil(REGION).div_ceil(GROUP_REGIONS) <= GROUPS_MAX);

/// Groups of a volume of `size` bytes.
pub fn groups(size: u64) -> u64 {
    size.div_ceil(REGION).div_ceil(GROUP_REGIONS)
}

/// Where a slot of a group lies in the file.
pub fn group_offset(group: u64, slot: u32) -> u64 {
    GROUPS_AT + (2 * group + u64::from(slot)) * GROUP as u64
}

/// Bytes of the file for a volume of `size` bytes.
pub fn file_length(size: u64) -> u64 {
    group_offset(groups(size), 0)
}

/// One life of the marks of a volume, from "all hot" on: made new, at random, whenever one begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LifeId(pub [u8; 16]);

/// What stands beside the sets and changes with them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Counts the life of the volume's marks; the log and the chain have copies, which are never ahead of it unless
    /// these marks are older than they look.
    pub heartbeat: u64,
    /// The log that these marks are right together with.
    pub log: Option<LogId>,
    /// A region that is not hot may rely on the log up to this record: a log that ends before it has lost something.
    pub relied_on: LogIndex,
    /// Everything is hot for want of knowledge, and not because it was changed: the store may be another.
    pub doubted: bool,
}

/// Which slot of a group holds, and which checkpoint wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp(pub u32);

impl Stamp {
    pub const ORDINAL_MAX: u32 = u32::MAX >> 1;

    pub fn new(ordinal: u32, slot: u32) -> Self {
        debug_assert!(ordinal <= Self::ORDINAL_MAX && slot < 2);
        Self(ordinal << 1 | slot)
    }
    pub fn ordinal(self) -> u32 {
        self.0 >> 1
    }
    pub fn slot(self) -> u32 {
        self.0 & 1
    }
}

/// What the pages hold, and which pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub life: LifeId,
    pub facts: Facts,
    pub volume: VolumeId,
    /// Bytes of the volume, at most [`VOLUME_MAX`].
    pub size: u64,
    /// The pages hold all transactions through this one.
    pub through: u64,
    /// Counts checkpoints; some numbers are left out.
    pub ordinal: u32,
    /// The ordinal with which the file was opened; transactions after `through` bear it too.
    pub opening: u32,
    /// One for each group.
    pub stamps: Vec<Stamp>,
}

/// What a run of regions becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mark {
    Heat,
    Diverge,
    Cool,
    Converge,
}

impl Mark {
    const ALL: [Self; 4] = [Self::Heat, Self::Diverge, Self::Cool, Self::Converge];
}

/// Runs of regions, as many as fit in one transaction.
#[derive(Default)]
pub struct Runs {
    bytes: Writer,
    last: Option<(Mark, u64)>,
}

impl Runs {
    /// Adds a run, unless it no longer fits. Runs come in order of their mark, then of their regions, and don't overlap
    /// within a mark; none is empty.
    pub fn push(&mut self, mark: Mark, run: &Range<u64>) -> bool {
        let from = self.last.filter(|last| last.0 == mark).map_or(0, |last| last.1);
        let mut bytes = Writer::new();
        bytes.leb((run.start - from) << 2 | mark as u64).leb(run.end - run.start - 1);
        let fits = self.bytes.len() + bytes.len() <= RUNS_MAX;
        if fits {
            self.bytes.put(bytes.as_bytes());
            self.last = Some((mark, run.end));
        }
        fits
    }

    /// Takes `bytes` to pieces; regions are below `regions`.
    fn decode(bytes: &[u8], regions: u64) -> Result<Vec<(Mark, Range<u64>)>> {
        let part = Part::MarksTransaction;
        let mut input = Reader::new(part, bytes);
        let mut runs = Vec::new();
        let mut last = (Mark::Heat, 0);
        while !input.is_empty() {
            let tagged = input.leb()?;
            let mark = Mark::ALL[(tagged & 3) as usize];
            if mark < last.0 {
                return Err(FormatError::Disorder { part, item: runs.len() as u64 });
            }
            let from = if mark == last.0 { last.1 } else { 0 };
            let start = from + within(part, "gap", tagged >> 2, 0, regions - from)?;
            let end = start + 1 + within(part, "regions of a run", input.leb()?, 0, regions)?;
            within(part, "end of a run", end, 0, regions)?;
            last = (mark, end);
            runs.push((mark, start..end));
        }
        Ok(runs)
    }
}

/// Where a transaction stands among the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub life: LifeId,
    pub volume: VolumeId,
    /// One more than that of the transaction before.
    pub number: u64,
    /// All transactions through this one were durable before any of this batch was written; the batch begins behind it.
    pub after: u64,
    /// The last one of the batch. A batch counts if it is there as a whole.
    pub last: u64,
    pub opening: u32,
}

/// One step of the journal: what runs of regions become, whatever they were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    pub place: Place,
    pub facts: Facts,
    pub runs: Vec<(Mark, Range<u64>)>,
}

/// A page's bits; bits beyond the volume's end mean nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    pub hot: [u64; PAGE_WORDS],
    pub diverged: [u64; PAGE_WORDS],
}

/// Which page it is: what must agree for its bits to be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagePlace {
    pub life: LifeId,
    pub volume: VolumeId,
    pub number: u32,
}

fn put_head(out: &mut Writer, magic: &[u8; 8], life: LifeId, facts: &Facts, volume: VolumeId) {
    let flags = u8::from(facts.log.is_some()) | u8::from(facts.doubted) << 1;
    out.put(magic).u16(VERSION).u8(flags).put(&[0; 5]).put(&life.0);
    out.u64(facts.heartbeat).u64(facts.relied_on.0).put(&facts.log.map_or([0; 16], |log| log.0)).put(&volume.0);
}

/// Checks the CRC first, so that what follows is known to be somebody's words.
fn read_head<'a>(part: Part, bytes: &'a [u8], magic: &[u8; 8]) -> Result<(Reader<'a>, LifeId, Facts, VolumeId)> {
    let unit = Reader::new(part, bytes).take(UNIT as u64)?;
    let mut input = Reader::new(part, &unit[..UNIT_CRC_AT]);
    input.magic(magic)?;
    if unit[UNIT_CRC_AT..] != crc32c(&unit[..UNIT_CRC_AT]).to_le_bytes() {
        return Err(FormatError::Damaged { part, check: "CRC" });
    }
    input.version(VERSION)?;
    let flags = within(part, "flags", input.u8()?.into(), 0, 3)?;
    let (has_log, doubted) = (flags & 1 != 0, flags & 2 != 0);
    input.reserved(5)?;
    let life = LifeId(input.array()?);
    let (heartbeat, relied_on) = (input.u64()?, LogIndex(input.u64()?));
    let log = if has_log { Some(LogId(input.array()?)) } else { input.reserved(16).map(|()| None)? };
    let volume = VolumeId(input.array()?);
    Ok((input, life, Facts { heartbeat, log, relied_on, doubted }, volume))
}

fn finish(out: Writer) -> [u8; UNIT] {
    let mut unit = [0; UNIT];
    unit[..out.len()].copy_from_slice(out.as_bytes());
    let crc = crc32c(&unit[..UNIT_CRC_AT]);
    unit[UNIT_CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    unit
}

impl Header {
    pub fn encode(&self) -> [u8; UNIT] {
        debug_assert_eq!(self.stamps.len() as u64, groups(self.size));
        let mut out = Writer::new();
        put_head(&mut out, HEADER_MAGIC, self.life, &self.facts, self.volume);
        out.u64(self.size).u64(self.through).u32(self.ordinal).u32(self.opening);
        self.stamps.iter().for_each(|stamp| _ = out.u32(stamp.0));
        finish(out)
    }

    /// Reads the first [`UNIT`] bytes. Whose marks they are is the caller's to compare.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let part = Part::MarksHeader;
        let (mut input, life, facts, volume) = read_head(part, bytes, HEADER_MAGIC)?;
        let size = within(part, "size", input.u64()?, 0, VOLUME_MAX)?;
        let through = within(part, "transaction", input.u64()?, 0, NUMBER_MAX)?;
        let ordinal = within(part, "ordinal", input.u32()?.into(), 1, Stamp::ORDINAL_MAX.into())? as u32;
        let opening = within(part, "opening", input.u32()?.into(), 1, ordinal.into())? as u32;
        let stamps = (0..groups(size)).map(|_| Ok(Stamp(input.u32()?))).collect::<Result<_>>()?;
        input.reserved(input.remaining() as u64)?;
        Ok(Self { life, facts, volume, size, through, ordinal, opening, stamps })
    }
}

/// Of transactions: far beyond what is ever reached, and far from what overflows.
pub const NUMBER_MAX: u64 = u64::MAX >> 1;

impl Transaction {
    /// The bytes of a transaction with these runs.
    pub fn encode(place: &Place, facts: &Facts, runs: &Runs) -> [u8; UNIT] {
        let mut out = Writer::new();
        put_head(&mut out, TRANSACTION_MAGIC, place.life, facts, place.volume);
        out.u64(place.number).u64(place.after).u64(place.last).u32(place.opening);
        out.u16(runs.bytes.len() as u16).put(runs.bytes.as_bytes());
        finish(out)
    }

    /// Reads the first [`UNIT`] bytes; believes only what speaks of this life of this volume, and of regions below
    /// `regions`.
    pub fn decode(bytes: &[u8], life: LifeId, volume: VolumeId, regions: u64) -> Result<Self> {
        let part = Part::MarksTransaction;
        let (mut input, found_life, facts, found_volume) = read_head(part, bytes, TRANSACTION_MAGIC)?;
        if found_life != life {
            return Err(FormatError::Foreign { part, field: "life" });
        }
        if found_volume != volume {
            return Err(FormatError::Foreign { part, field: "volume" });
        }
        let number = within(part, "number", input.u64()?, 1, NUMBER_MAX)?;
        let after = within(part, "number before the batch", input.u64()?, 0, number - 1)?;
        let last = within(part, "last of the batch", input.u64()?, number, after + BATCH_MAX)?;
        let opening = within(part, "opening", input.u32()?.into(), 1, Stamp::ORDINAL_MAX.into())? as u32;
        let length = input.u16()?;
        let runs = Runs::decode(input.take(length.into())?, regions)?;
        input.reserved(input.remaining() as u64)?;
        Ok(Self { place: Place { life, volume, number, after, last, opening }, facts, runs })
    }
}

/// Short enough for a page; the header holds the whole.
fn folded(volume: VolumeId) -> u64 {
    let whole = u128::from_le_bytes(volume.0);
    (whole >> 64) as u64 ^ whole as u64
}

impl Page {
    /// Everything is hot and may be diverged: what a page that cannot be read has to say.
    pub const UNKNOWN: Self = Self { hot: [u64::MAX; PAGE_WORDS], diverged: [u64::MAX; PAGE_WORDS] };

    /// Fills the first [`PAGE`] bytes of `out`, which must have as many.
    pub fn encode_into(&self, place: &PagePlace, stamp: Stamp, out: &mut [u8]) {
        let out = &mut out[..PAGE];
        out.fill(0);
        out[..4].copy_from_slice(PAGE_MAGIC);
        out[4..8].copy_from_slice(&place.number.to_le_bytes());
        out[8..24].copy_from_slice(&place.life.0);
        out[24..32].copy_from_slice(&folded(place.volume).to_le_bytes());
        out[32..36].copy_from_slice(&stamp.0.to_le_bytes());
        for (field, word) in out[40..504].chunks_exact_mut(8).zip(self.hot.iter().chain(&self.diverged)) {
            field.copy_from_slice(&word.to_le_bytes());
        }
        let crc = crc32c(&out[..PAGE_CRC_AT]);
        out[PAGE_CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads the first [`PAGE`] bytes and believes them only at their `place`. Whether the stamp is the one that holds
    /// is the caller's to compare.
    pub fn decode(bytes: &[u8], place: &PagePlace) -> Result<(Self, Stamp)> {
        let part = Part::MarksPage;
        let bytes = Reader::new(part, bytes).take(PAGE as u64)?;
        let mut input = Reader::new(part, &bytes[..PAGE_CRC_AT]);
        let magic: [u8; 4] = input.array()?;
        if magic != *PAGE_MAGIC {
            let mut found = [0; 8];
            found[..4].copy_from_slice(&magic);
            return Err(FormatError::WrongMagic { part, found });
        }
        if bytes[PAGE_CRC_AT..] != crc32c(&bytes[..PAGE_CRC_AT]).to_le_bytes() {
            return Err(FormatError::Damaged { part, check: "CRC" });
        }
        let number = input.u32()?;
        if number != place.number {
            let (found, expected) = (number.into(), place.number.into());
            return Err(FormatError::Mismatch { part, field: "number", found, expected });
        }
        if input.array()? != place.life.0 {
            return Err(FormatError::Foreign { part, field: "life" });
        }
        if input.u64()? != folded(place.volume) {
            return Err(FormatError::Foreign { part, field: "volume" });
        }
        let stamp = Stamp(input.u32()?);
        input.reserved(4)?;
        let mut page = Self { hot: [0; PAGE_WORDS], diverged: [0; PAGE_WORDS] };
        for word in page.hot.iter_mut().chain(&mut page.diverged) {
            *word = input.u64()?;
        }
        input.reserved(4)?;
        Ok((page, stamp))
    }
}

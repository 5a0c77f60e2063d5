//! Reading the marks' file: what it says, or why it cannot be used.
//!
//! Owns: which header holds, which pages, how far the ring goes, what becomes of what is damaged. Writes nothing, so
//! that whoever distrusts what is found (an old heartbeat) can still begin anew. Does not own: the bytes
//! ([`crate::format::marks`]), writing ([`super::file`]).
//!
//! - The header with the highest ordinal holds. It names one slot of each group and the stamp that must be there.
//!   A page that is not there with that stamp is hot as a whole: it is never replaced by the other slot's, which is
//!   older. That also finds a write that the disk lost or put elsewhere.
//! - Batches of transactions follow from the header's number on, without a gap; one that is not there as a whole ends
//!   them, as a crash does. But if anything says that more than this was durable, something was lost: then everything
//!   is hot.
//! - Transactions of another opening than the header's are what a crash left behind, and are not replayed.
//!
//! What is hot by damage is diverged too, for a transaction may say that it is cool again, and nothing else would
//! then tell that it had diverged.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use super::MarksIo;
use super::regions::RegionSet;
use crate::format::VolumeId;
use crate::format::codec::{FormatError, Part};
use crate::format::marks::{
    Facts, GROUP, GROUP_PAGES, GROUP_REGIONS, Header, Mark, PAGE, PAGE_WORDS, Page, PagePlace, RING, RINGS_AT, Stamp,
    Transaction, UNIT, file_length, group_offset, groups,
};
use crate::units::{KIB, REGION, VOLUME_MAX};

/// What the file says. Neither set is ever less than what was committed last.
#[derive(Clone, Debug)]
pub struct Contents {
    pub hot: RegionSet,
    pub diverged: RegionSet,
    pub facts: Facts,
    /// Regions that count as hot because what spoke of them was damaged or lost, whatever they were.
    pub damaged: u64,
}

/// Why a file says nothing that can be used. Everything must count as hot; [`super::MarksFile::begin`] says so durably.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    #[error("no region marks were written there yet, or they were being made")]
    Absent,
    #[error(transparent)]
    Damaged(FormatError),
    #[error("these are region marks of another volume")]
    Foreign,
    #[error("the region marks are of a volume of {recorded} bytes, and it has {found}: it was cut or replaced")]
    Shrunk { recorded: u64, found: u64 },
    #[error("the volume has {found} bytes; region marks are made for up to {VOLUME_MAX}")]
    TooLarge { found: u64 },
    #[error("read the region marks: {0}")]
    Io(#[source] io::Error),
}

/// A file that cannot be used as it is, and why; a new life can begin in it.
#[derive(thiserror::Error)]
#[error("{why}")]
pub struct Refused {
    pub why: Unusable,
    pub io: Box<dyn MarksIo>,
}

impl std::fmt::Debug for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Refused").field(&self.why).finish()
    }
}

/// What was read, and how to go on from there.
pub(super) struct Found {
    pub header: Header,
    /// The slot of the header that holds.
    pub header_slot: usize,
    /// The newest transaction that was replayed.
    pub through: u64,
    /// No checkpoint has had a higher ordinal.
    pub ordinal: u32,
    pub contents: Contents,
    /// Groups whose pages are not what the sets are.
    pub dirty: Vec<bool>,
}

/// How many units that the disk cannot read are taken for damaged. More than that is not a bad spot: asking a dying
/// disk for each unit could take hours.
const UNREADABLE_MAX: u32 = 16;
/// Bytes of one read: large enough to be fast, and few enough to stay in a processor's cache until they are looked at.
const CHUNK: u64 = 128 * KIB;
const _: () = assert!(CHUNK.is_multiple_of(2 * GROUP as u64) && CHUNK.is_multiple_of(UNIT as u64));

pub(super) fn read(io: &dyn MarksIo, volume: VolumeId, size: u64) -> Result<Found, Unusable> {
    if size > VOLUME_MAX {
        return Err(Unusable::TooLarge { found: size });
    }
    let (header, header_slot) = header(io, volume)?;
    if size < header.size {
        return Err(Unusable::Shrunk { recorded: header.size, found: size });
    }
    let mut reader = Reader { io, unreadable: 0, buffer: vec![0; CHUNK as usize] };
    let mut sets = Sets::new(header.size);
    let written = pages(&mut reader, &header, &mut sets)?;
    let ring = ring(&mut reader, &header)?;
    let ordinal = ring.keys().fold(header.ordinal.max(written), |highest, (opening, _)| highest.max(*opening));
    let mut facts = header.facts;
    let through = replay(&ring, &header, &mut sets, &mut facts);
    let mut dirty = sets.dirty;
    if size > header.size {
        grow(&mut sets.hot, &mut sets.diverged, &mut dirty, header.size, size);
    }
    let contents = Contents { hot: sets.hot, diverged: sets.diverged, facts, damaged: sets.damaged.len() };
    Ok(Found { header, header_slot, through, ordinal, contents, dirty })
}

/// The header that holds, and its slot.
fn header(io: &dyn MarksIo, volume: VolumeId) -> Result<(Header, usize), Unusable> {
    let length = io.len().map_err(Unusable::Io)?;
    if length == 0 {
        return Err(Unusable::Absent);
    }
    let short = |part, needed: u64| {
        let found = usize::try_from(length).unwrap_or(usize::MAX);
        Unusable::Damaged(FormatError::Truncated { part, offset: 0, needed, found })
    };
    if length < RINGS_AT[0] {
        return Err(short(Part::MarksHeader, RINGS_AT[0]));
    }
    let mut best: Option<(Header, usize)> = None;
    let mut wrong = None;
    for slot in 0..2 {
        let mut unit = [0; UNIT];
        let found = match io.read_at(&mut unit, header_offset(slot)) {
            Err(error) => Err(Unusable::Io(error)),
            Ok(()) if unit == [0; UNIT] => Err(Unusable::Absent),
            Ok(()) => Header::decode(&unit)
                .map_err(Unusable::Damaged)
                .and_then(|header| if header.volume == volume { Ok(header) } else { Err(Unusable::Foreign) }),
        };
        match (found, &best) {
            (Ok(found), Some((other, _))) if found.life != other.life => {
                return Err(Unusable::Damaged(FormatError::Foreign { part: Part::MarksHeader, field: "life" }));
            }
            (Ok(found), Some((other, _))) if found.ordinal <= other.ordinal => {}
            (Ok(found), _) => best = Some((found, slot)),
            // What a newer program wrote must not be read by what it left of an older one.
            (Err(Unusable::Damaged(error @ FormatError::UnknownVersion { .. })), _) => {
                return Err(Unusable::Damaged(error));
            }
            (Err(error), _) if matches!(wrong, None | Some(Unusable::Absent)) => wrong = Some(error),
            (Err(_), _) => {}
        }
    }
    let (header, slot) = best.ok_or_else(|| wrong.unwrap_or(Unusable::Absent))?;
    let needed = file_length(header.size);
    if length < needed { Err(short(Part::Marks, needed)) } else { Ok((header, slot)) }
}

pub(super) fn header_offset(slot: usize) -> u64 {
    (slot * UNIT) as u64
}

/// Reads large pieces, and what is unreadable in them as zeroes: no page, no transaction.
struct Reader<'a> {
    io: &'a dyn MarksIo,
    unreadable: u32,
    /// [`CHUNK`] bytes.
    buffer: Vec<u8>,
}

impl Reader<'_> {
    /// Hands over what lies in `range` of the file in pieces of [`CHUNK`], the last one shorter.
    fn read(&mut self, range: Range<u64>, mut piece: impl FnMut(&[u8])) -> Result<(), Unusable> {
        let mut at = range.start;
        while at < range.end {
            let length = CHUNK.min(range.end - at);
            self.fill(length as usize, at)?;
            piece(&self.buffer[..length as usize]);
            at += length;
        }
        Ok(())
    }

    fn fill(&mut self, length: usize, offset: u64) -> Result<(), Unusable> {
        let buffer = &mut self.buffer[..length];
        if self.io.read_at(buffer, offset).is_ok() {
            return Ok(());
        }
        for (unit, at) in buffer.chunks_mut(UNIT).zip((offset..).step_by(UNIT)) {
            if let Err(error) = self.io.read_at(unit, at) {
                self.unreadable += 1;
                if self.unreadable > UNREADABLE_MAX {
                    return Err(Unusable::Io(error));
                }
                unit.fill(0);
            }
        }
        Ok(())
    }
}

/// The sets as they come together.
struct Sets {
    hot: RegionSet,
    diverged: RegionSet,
    damaged: RegionSet,
    dirty: Vec<bool>,
}

impl Sets {
    fn new(size: u64) -> Self {
        let dirty = vec![false; groups(size) as usize];
        Self { hot: RegionSet::new(size), diverged: RegionSet::new(size), damaged: RegionSet::new(size), dirty }
    }

    fn everything_unknown(&mut self) {
        let all = 0..self.hot.regions();
        self.damaged.insert_regions(all.clone());
        self.hot.insert_regions(all.clone());
        self.diverged.insert_regions(all);
        self.dirty.fill(true);
    }
}

/// Reads all groups; answers the highest ordinal that a page bears.
fn pages(reader: &mut Reader<'_>, header: &Header, sets: &mut Sets) -> Result<u32, Unusable> {
    let mut highest = 0;
    let mut group = 0;
    reader.read(group_offset(0, 0)..file_length(header.size), |piece| {
        for slots in piece.chunks(2 * GROUP) {
            highest = highest.max(one_group(slots, group, header, sets));
            group += 1;
        }
    })?;
    Ok(highest)
}

fn one_group(slots: &[u8], group: usize, header: &Header, sets: &mut Sets) -> u32 {
    let mut highest = 0;
    let named = header.stamps[group];
    for (slot, bytes) in (0..).zip(slots.chunks(GROUP)) {
        for (page, bytes) in bytes.chunks(PAGE).enumerate() {
            let number = group * GROUP_PAGES + page;
            let word = number * PAGE_WORDS;
            let first = word as u64 * 64;
            if first >= sets.hot.regions() {
                break;
            }
            let place = PagePlace { life: header.life, volume: header.volume, number: number as u32 };
            let found = Page::decode(bytes, &place).ok();
            highest = highest.max(found.map_or(0, |(_, stamp)| stamp.ordinal()));
            if slot != named.slot() {
                continue;
            }
            let page = match found {
                Some((page, stamp)) if stamp == named => page,
                _ => {
                    let end = (first + PAGE_WORDS as u64 * 64).min(sets.hot.regions());
                    sets.damaged.insert_regions(first..end);
                    sets.dirty[group] = true;
                    Page::UNKNOWN
                }
            };
            sets.hot.set_words(word, &page.hot);
            sets.diverged.set_words(word, &page.diverged);
        }
    }
    highest.min(Stamp::ORDINAL_MAX)
}

/// All transactions that are to be believed, of both copies of the ring. Within a life and an opening no number is
/// used twice, so that it does not matter where one is found.
fn ring(reader: &mut Reader<'_>, header: &Header) -> Result<BTreeMap<(u32, u64), Transaction>, Unusable> {
    let regions = header.size.div_ceil(REGION);
    let mut found = BTreeMap::new();
    for at in RINGS_AT {
        reader.read(at..at + RING * UNIT as u64, |piece| {
            for unit in piece.chunks(UNIT) {
                if let Ok(transaction) = Transaction::decode(unit, header.life, header.volume, regions) {
                    found.insert((transaction.place.opening, transaction.place.number), transaction);
                }
            }
        })?;
    }
    Ok(found)
}

/// Does to the sets what follows the header; answers the number of the last transaction of that.
fn replay(ring: &BTreeMap<(u32, u64), Transaction>, header: &Header, sets: &mut Sets, facts: &mut Facts) -> u64 {
    let opening = header.opening;
    let mut through = header.through;
    while let Some(first) = ring.get(&(opening, through + 1))
        && first.place.after == through
    {
        let last = first.place.last;
        let batch: Vec<_> = ring.range((opening, through + 1)..=(opening, last)).map(|(_, found)| found).collect();
        let is_one = |found: &&Transaction| (found.place.after, found.place.last) == (through, last);
        if batch.len() as u64 != last - through || !batch.iter().all(is_one) {
            break;
        }
        batch.iter().for_each(|transaction| replay_one(transaction, sets));
        *facts = first.facts;
        through = last;
    }
    let newer = |transaction: &Transaction| {
        let place = transaction.place;
        place.opening > opening || place.opening == opening && place.after > through
    };
    if ring.values().any(newer) {
        sets.everything_unknown();
    }
    through
}

fn replay_one(transaction: &Transaction, sets: &mut Sets) {
    for (mark, run) in &transaction.runs {
        sets.dirty[touched_groups(run)].fill(true);
        let run = run.clone();
        match mark {
            Mark::Heat => {
                sets.damaged.remove_regions(run.clone());
                sets.hot.insert_regions(run);
            }
            Mark::Cool => {
                sets.damaged.remove_regions(run.clone());
                sets.hot.remove_regions(run);
            }
            Mark::Diverge => sets.diverged.insert_regions(run),
            Mark::Converge => sets.diverged.remove_regions(run),
        }
    }
}

/// The groups that a run of regions, not empty, touches.
pub(super) fn touched_groups(run: &Range<u64>) -> Range<usize> {
    (run.start / GROUP_REGIONS) as usize..run.end.div_ceil(GROUP_REGIONS) as usize
}

/// What the volume has grown by is hot, and the region that was partial: nobody knows what stands there.
fn grow(hot: &mut RegionSet, diverged: &mut RegionSet, dirty: &mut Vec<bool>, from: u64, to: u64) {
    hot.grow(to);
    diverged.grow(to);
    dirty.resize(groups(to) as usize, true);
    let new = from / REGION..hot.regions();
    if !new.is_empty() {
        dirty[touched_groups(&new)].fill(true);
        hot.insert_regions(new);
    }
}

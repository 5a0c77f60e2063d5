//! The marks' file: every change durable in one sync.
//!
//! Owns: the order of writes and syncs. Does not own: what is read back ([`super::opening`]), the bytes
//! ([`crate::format::marks`]).
//!
//! A change is a batch of transactions, written to both copies of the ring and synced. When half of the ring is used,
//! a *checkpoint* writes the groups that changed to the slots that do not hold, syncs, writes the header that names
//! them to the slot that does not hold, syncs, and writes the same header to the other slot; that one becomes durable
//! with whatever is synced next, always before the first one is written again. A change too large for half of a ring
//! is a checkpoint itself.
//!
//! The first commit after an opening begins with a checkpoint. Thereby what was found becomes what the pages hold,
//! and what a crash left behind in the ring can never follow what is written now.
//!
//! Crash: in a commit, the change is there as a whole or not at all. In a checkpoint, the header before it holds, and
//! all that it names is untouched: half of a ring is too little to come round to what it needs. In a beginning, what
//! was there holds until no header does; then nothing does until everything is hot.

use std::io;
use std::ops::Range;

use super::opening::{self, Contents, Refused, header_offset, touched_groups};
use super::{Change, MarksIo, RegionSet};
use crate::format::VolumeId;
use crate::format::marks::{
    BATCH_MAX, Facts, GROUP, GROUP_PAGES, Header, LifeId, Mark, NUMBER_MAX, PAGE, PAGE_WORDS, Page, PagePlace, Place,
    RING, RINGS_AT, Runs, Stamp, Transaction, UNIT, file_length, group_offset, groups,
};
use crate::units::{MIB, VOLUME_MAX};

/// The marks of one volume, and the file that has them.
pub struct MarksFile {
    io: Box<dyn MarksIo>,
    /// Its facts, stamps and size are those of the last checkpoint; `through` and `opening` too.
    header: Header,
    /// The slot of the header that is durable for certain.
    header_slot: usize,
    size: u64,
    hot: RegionSet,
    diverged: RegionSet,
    facts: Facts,
    /// Groups whose pages are not what the sets are.
    dirty: Vec<bool>,
    /// The newest transaction.
    newest: u64,
    /// The highest ordinal that any checkpoint had.
    ordinal: u32,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Opened, and nothing was written yet.
    Found,
    Ready,
    /// What stands in the file is not known.
    Failed,
}

impl MarksFile {
    /// Reads what the file says of a volume of `size` bytes; writes nothing.
    pub fn open(io: Box<dyn MarksIo>, volume: VolumeId, size: u64) -> Result<(Self, Contents), Refused> {
        let found = match opening::read(&*io, volume, size) {
            Ok(found) => found,
            Err(why) => return Err(Refused { why, io }),
        };
        let contents = found.contents.clone();
        let file = Self {
            io,
            header: found.header,
            header_slot: found.header_slot,
            size,
            hot: found.contents.hot,
            diverged: found.contents.diverged,
            facts: found.contents.facts,
            dirty: found.dirty,
            newest: found.through,
            ordinal: found.ordinal,
            state: State::Found,
        };
        Ok((file, contents))
    }

    /// Begins a new life, whatever was there: everything is hot and nothing diverged, durably on return. Writes the
    /// whole file, so that no later write needs space.
    pub fn begin(io: Box<dyn MarksIo>, volume: VolumeId, size: u64, facts: Facts) -> io::Result<Self> {
        if size > VOLUME_MAX {
            let why = format!("the volume has {size} bytes; region marks are made for up to {VOLUME_MAX}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let mut file = Self {
            io,
            header: first_header(LifeId([0; 16]), volume, size, facts),
            header_slot: 0,
            size,
            hot: RegionSet::new(size),
            diverged: RegionSet::new(size),
            facts,
            dirty: Vec::new(),
            newest: 0,
            ordinal: 0,
            state: State::Failed,
        };
        file.begin_anew(facts)?;
        Ok(file)
    }

    /// As [`Self::begin`], in this file; the way on after a commit that failed.
    pub fn begin_anew(&mut self, facts: Facts) -> io::Result<()> {
        self.state = State::Failed;
        let mut life = [0; 16];
        getrandom::fill(&mut life).map_err(io::Error::other)?;
        // First no header may hold any more: nothing else would say that the rest is being overwritten.
        self.io.write_at(&[0; 2 * UNIT], 0)?;
        self.io.sync()?;
        self.hot = RegionSet::new(self.size);
        self.hot.insert_regions(0..self.hot.regions());
        self.diverged = RegionSet::new(self.size);
        self.header = first_header(LifeId(life), self.header.volume, self.size, facts);
        self.facts = facts;
        self.write_everything()?;
        self.io.sync()?;
        let unit = self.header.encode();
        self.io.write_at(&unit, header_offset(0))?;
        self.io.write_at(&unit, header_offset(1))?;
        self.io.sync()?;
        self.header_slot = 0;
        self.dirty = vec![false; self.header.stamps.len()];
        self.newest = 0;
        self.ordinal = self.header.ordinal;
        self.state = State::Ready;
        Ok(())
    }

    /// All but the headers: an empty ring, and each group in slot 0.
    fn write_everything(&self) -> io::Result<()> {
        self.io.set_len(file_length(self.size))?;
        let zeroes = vec![0; MIB as usize];
        for (at, end) in [(RINGS_AT[0], RINGS_AT[1]), (RINGS_AT[1], group_offset(0, 0))] {
            self.io.write_at(&zeroes[..(end - at) as usize], at)?;
        }
        for (first, stamps) in (0..).step_by(GROUPS_AT_ONCE).zip(self.header.stamps.chunks(GROUPS_AT_ONCE)) {
            let mut slots = vec![0; stamps.len() * 2 * GROUP];
            for ((group, stamp), slots) in (first..).zip(stamps).zip(slots.chunks_mut(2 * GROUP)) {
                self.encode_group(group, *stamp, &mut slots[..GROUP]);
            }
            self.io.write_at(&slots, group_offset(first as u64, 0))?;
        }
        Ok(())
    }

    /// Makes a change durable, as a whole. After an error nothing more is accepted until [`Self::begin_anew`]: what
    /// stands in the file is then not known. Of a region that is both heated and cooled (diverged and converged) the
    /// safe one holds; regions beyond the volume's end are left out.
    pub fn commit(&mut self, change: &Change) -> io::Result<()> {
        if self.state == State::Failed {
            return Err(io::Error::other("an earlier write of the region marks failed"));
        }
        let before = std::mem::replace(&mut self.state, State::Failed);
        let runs = self.runs(change);
        if before == State::Found {
            self.settle()?;
        }
        let bodies = bodies(&runs);
        let count = bodies.len() as u64;
        if self.newest + count > NUMBER_MAX {
            return Err(used_up());
        }
        if count > BATCH_MAX {
            self.apply(&runs, change.facts);
            self.checkpoint()?;
        } else {
            if self.newest + count - self.header.through > BATCH_MAX {
                self.checkpoint()?;
            }
            self.append(&bodies, &change.facts)?;
            self.apply(&runs, change.facts);
        }
        self.state = State::Ready;
        Ok(())
    }

    /// The change as runs in the order that transactions need, none of them contradicting another.
    fn runs(&self, change: &Change) -> Vec<(Mark, Range<u64>)> {
        let regions = self.hot.regions();
        let heat = merged(&change.heat, regions);
        let diverge = merged(&change.diverge, regions);
        let cool = without(merged(&change.cool, regions), &heat);
        let converge = without(merged(&change.converge, regions), &diverge);
        let kinds = [(Mark::Heat, heat), (Mark::Diverge, diverge), (Mark::Cool, cool), (Mark::Converge, converge)];
        kinds.into_iter().flat_map(|(mark, runs)| runs.into_iter().map(move |run| (mark, run))).collect()
    }

    fn apply(&mut self, runs: &[(Mark, Range<u64>)], facts: Facts) {
        for (mark, run) in runs {
            self.dirty[touched_groups(run)].fill(true);
            match mark {
                Mark::Heat => self.hot.insert_regions(run.clone()),
                Mark::Diverge => self.diverged.insert_regions(run.clone()),
                Mark::Cool => self.hot.remove_regions(run.clone()),
                Mark::Converge => self.diverged.remove_regions(run.clone()),
            }
        }
        self.facts = facts;
    }

    /// Writes a batch to both copies of the ring, and syncs.
    fn append(&mut self, bodies: &[Runs], facts: &Facts) -> io::Result<()> {
        let (after, last) = (self.newest, self.newest + bodies.len() as u64);
        let (life, volume, opening) = (self.header.life, self.header.volume, self.header.opening);
        let units: Vec<u8> = (after + 1..)
            .zip(bodies)
            .flat_map(|(number, runs)| {
                Transaction::encode(&Place { life, volume, number, after, last, opening }, facts, runs)
            })
            .collect();
        let slot = (after + 1) % RING;
        let before_the_end = units.len().min((RING - slot) as usize * UNIT);
        let (first, rest) = units.split_at(before_the_end);
        for ring in RINGS_AT {
            self.io.write_at(first, ring + slot * UNIT as u64)?;
            if !rest.is_empty() {
                self.io.write_at(rest, ring)?;
            }
        }
        self.io.sync()?;
        self.newest = last;
        Ok(())
    }

    /// Makes what was found what the pages hold, under an opening of its own.
    fn settle(&mut self) -> io::Result<()> {
        let (had, has) = (groups(self.header.size), groups(self.size));
        if has > had {
            self.io.set_len(file_length(self.size))?;
            let zeroes = vec![0; 2 * GROUP];
            (had..has).try_for_each(|group| self.io.write_at(&zeroes, group_offset(group, 0)))?;
        }
        self.header.stamps.resize(has as usize, Stamp::new(0, 0));
        self.header.size = self.size;
        self.header.opening = self.next_ordinal()?;
        self.checkpoint()
    }

    fn next_ordinal(&self) -> io::Result<u32> {
        let next = self.ordinal + 1;
        if next > Stamp::ORDINAL_MAX {
            return Err(used_up());
        }
        Ok(next)
    }

    /// Makes the pages hold what the sets are.
    fn checkpoint(&mut self) -> io::Result<()> {
        let ordinal = self.next_ordinal()?;
        let mut bytes = [0; GROUP];
        for group in (0..self.dirty.len()).filter(|group| self.dirty[*group]) {
            let stamp = Stamp::new(ordinal, self.header.stamps[group].slot() ^ 1);
            self.encode_group(group, stamp, &mut bytes);
            self.io.write_at(&bytes, group_offset(group as u64, stamp.slot()))?;
            self.header.stamps[group] = stamp;
        }
        self.io.sync()?;
        self.header.ordinal = ordinal;
        self.header.through = self.newest;
        self.header.facts = self.facts;
        let unit = self.header.encode();
        self.io.write_at(&unit, header_offset(self.header_slot ^ 1))?;
        self.io.sync()?;
        self.io.write_at(&unit, header_offset(self.header_slot))?;
        self.header_slot ^= 1;
        self.ordinal = ordinal;
        self.dirty.fill(false);
        Ok(())
    }

    fn encode_group(&self, group: usize, stamp: Stamp, out: &mut [u8]) {
        for (page, out) in out.chunks_mut(PAGE).enumerate() {
            let number = group * GROUP_PAGES + page;
            let word = number * PAGE_WORDS;
            let bits = Page { hot: self.hot.words(word), diverged: self.diverged.words(word) };
            let place = PagePlace { life: self.header.life, volume: self.header.volume, number: number as u32 };
            bits.encode_into(&place, stamp, out);
        }
    }
}

impl std::fmt::Debug for MarksFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MarksFile").field("size", &self.size).field("facts", &self.facts).finish_non_exhaustive()
    }
}

/// What is read back is believed only up to these numbers.
fn used_up() -> io::Error {
    io::Error::other("the region marks have used up their numbers, and must begin anew")
}

/// Groups in one write of a beginning.
const GROUPS_AT_ONCE: usize = MIB as usize / (2 * GROUP);
const _: () = assert!(RINGS_AT[1] - RINGS_AT[0] == MIB, "a ring is written from one buffer of zeroes");

fn first_header(life: LifeId, volume: VolumeId, size: u64, facts: Facts) -> Header {
    let stamps = vec![Stamp::new(1, 0); groups(size) as usize];
    Header { life, facts, volume, size, through: 0, ordinal: 1, opening: 1, stamps }
}

/// In order, without overlaps and empty ones, and below `regions`.
fn merged(runs: &[Range<u64>], regions: u64) -> Vec<Range<u64>> {
    let mut sorted: Vec<_> = runs.iter().map(|run| run.start..run.end.min(regions)).collect();
    sorted.retain(|run| run.start < run.end);
    sorted.sort_unstable_by_key(|run| run.start);
    let mut merged: Vec<Range<u64>> = Vec::with_capacity(sorted.len());
    for run in sorted {
        match merged.last_mut() {
            Some(last) if run.start <= last.end => last.end = last.end.max(run.end),
            _ => merged.push(run),
        }
    }
    merged
}

/// What of `runs` is not in `others`; both merged.
fn without(runs: Vec<Range<u64>>, others: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut left = Vec::with_capacity(runs.len());
    let mut others = others.iter().peekable();
    for mut run in runs {
        while let Some(other) = others.peek().filter(|other| other.start < run.end) {
            if run.start < other.start {
                left.push(run.start..other.start);
            }
            run.start = run.start.max(other.end.min(run.end));
            if other.end > run.end {
                break;
            }
            others.next();
        }
        if run.start < run.end {
            left.push(run);
        }
    }
    left
}

/// The runs, divided into as many transactions as they need; one if there are none.
fn bodies(runs: &[(Mark, Range<u64>)]) -> Vec<Runs> {
    let mut bodies = vec![];
    let mut body = Runs::default();
    for (mark, run) in runs {
        if !body.push(*mark, run) {
            bodies.push(std::mem::take(&mut body));
            body.push(*mark, run);
        }
    }
    bodies.push(body);
    bodies
}

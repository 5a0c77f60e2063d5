//! A marks' file that holds anything: an entry point of [`crate::fuzzing`].
//!
//! ```text
//! input    1  which of the sizes the volume has; bit 7: the file is a unit too short for it
//!          1  how many pieces of the file follow; what no piece covers is zero
//!             per piece: 1  what it is: 0 header, 1 transaction in the first copy of the ring, 2 in the second, 3 in both,
//!                           4 page, 5 a unit that cannot be read; bit 7: its CRC is made right
//!                        1  which one
//!                        2  length of the bytes with which it begins; its rest is zero
//!             then changes to commit, 6 bytes each, up to 4:
//!                        1  bit n (of 0 to 3): to heat, to cool, to diverge, to converge
//!                        1  how often it is committed, less 1, of 64; once if it has many runs
//!                        2  first region
//!                        1  regions of a run, less 1; the gap behind it has as many
//!                        1  sixteenth of the number of runs
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Change, Contents, Facts, MarksFile, MarksIo, RegionSet};
use crate::format::VolumeId;
use crate::format::log::{LogId, crc32c};
use crate::format::marks::{
    GROUP_PAGES, GROUP_REGIONS, PAGE, PAGE_REGIONS, RING, RINGS_AT, UNIT, file_length, group_offset,
};
use crate::units::{LogIndex, REGION, is_zero};

const VOLUME: VolumeId = VolumeId(*b"a fuzzed volume!");
/// No region; parts of one page, of two pages, of two groups, of three.
const SIZES: [u64; 6] = [
    0,
    512,
    77 * REGION,
    (PAGE_REGIONS + 1) * REGION,
    GROUP_REGIONS * REGION + 4096,
    (2 * GROUP_REGIONS + 3 * PAGE_REGIONS) * REGION - 512,
];
const CHANGES: usize = 4;
const FIX_CRC: u8 = 1 << 7;

/// Opens the marks, or begins them anew; what is committed then is found again.
pub(crate) fn opening(input: &[u8]) -> bool {
    let mut input = Input(input);
    let Some((image, size)) = take_image(&mut input) else { return false };
    let open = || MarksFile::open(Box::new(image.clone()), VOLUME, size);
    let (mut marks, mut model, valid) = match open() {
        Ok((marks, contents)) => {
            assert_counted(&contents, size);
            let again = open().expect("it was opened before, and nothing was written").1;
            assert_same(&again, &contents);
            let valid = contents.damaged == 0;
            (marks, contents, valid)
        }
        Err(refused) => {
            let facts = facts(1);
            let marks = MarksFile::begin(refused.io, VOLUME, size, facts).expect("the file obeys");
            let contents = begun(size, facts);
            assert_same(&open().expect("it was begun").1, &contents);
            (marks, contents, false)
        }
    };
    let regions = model.hot.regions();
    let mut beats = model.facts.heartbeat;
    for _ in 0..CHANGES {
        let Some((change, times)) = take_change(&mut input) else { break };
        for _ in 0..times {
            beats = beats.wrapping_add(1);
            let change = Change { facts: facts(beats), ..change.clone() };
            if marks.commit(&change).is_err() {
                // Numbers that no file reaches can stand in one: then there is no way on but a new life.
                marks.begin_anew(change.facts).expect("the file obeys");
                model = begun(size, change.facts);
                continue;
            }
            model.facts = change.facts;
            change.cool.iter().for_each(|run| model.hot.remove_regions(run.clone()));
            change.heat.iter().for_each(|run| model.hot.insert_regions(run.clone()));
            change.converge.iter().for_each(|run| model.diverged.remove_regions(run.clone()));
            change.diverge.iter().for_each(|run| model.diverged.insert_regions(run.clone()));
            model.damaged = 0;
        }
        // Some of them by what was opened anew.
        if beats % 2 == 0 {
            let (opened, contents) = open().expect("it was committed to");
            assert_same(&contents, &model);
            marks = opened;
        }
    }
    let (_, contents) = open().expect("it was committed to");
    assert_eq!(contents.hot.regions(), regions);
    assert_same(&contents, &model);
    valid
}

fn begun(size: u64, facts: Facts) -> Contents {
    let mut hot = RegionSet::new(size);
    hot.insert_regions(0..hot.regions());
    Contents { hot, diverged: RegionSet::new(size), facts, damaged: 0 }
}

fn facts(heartbeat: u64) -> Facts {
    Facts { heartbeat, log: Some(LogId([7; 16])), relied_on: LogIndex(heartbeat ^ 3), doubted: false }
}

fn assert_same(found: &Contents, expected: &Contents) {
    assert_eq!(found.facts, expected.facts);
    assert_eq!(found.damaged, expected.damaged);
    assert!(found.hot == expected.hot, "hot: {} regions, not {}", found.hot.len(), expected.hot.len());
    let (found, expected) = (&found.diverged, &expected.diverged);
    assert!(found == expected, "diverged: {} regions, not {}", found.len(), expected.len());
}

/// No region beyond the volume's end, and none that is damaged and not hot.
fn assert_counted(contents: &Contents, size: u64) {
    for set in [&contents.hot, &contents.diverged] {
        assert_eq!(set.regions(), size.div_ceil(REGION));
        assert_eq!(set.runs().map(|run| run.end - run.start).sum::<u64>(), set.len());
    }
    assert!(contents.damaged <= contents.hot.len());
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N).map(|bytes| bytes.try_into().expect("as many"))
    }
}

fn take_image(input: &mut Input<'_>) -> Option<(Image, u64)> {
    let [size, pieces] = input.array()?;
    let short = if size & 1 << 7 != 0 { UNIT as u64 } else { 0 };
    let size = SIZES[usize::from(size & 0x7f) % SIZES.len()];
    let image = Image::default();
    image.0.lock().length = file_length(size) - short;
    for _ in 0..pieces {
        let Some([kind, number, low, high]) = input.array() else { break };
        let length = u16::from_le_bytes([low, high]).into();
        let bytes = input.take(length)?;
        let number = u64::from(number);
        let (length, places) = match kind & 0x7f {
            0 => (UNIT, vec![number % 2 * UNIT as u64]),
            kind @ 1..=3 => {
                let at = number % RING * UNIT as u64;
                let copies = [kind & 1 != 0, kind & 2 != 0];
                let places = RINGS_AT.into_iter().zip(copies).filter(|(_, wanted)| *wanted);
                (UNIT, places.map(|(ring, _)| ring + at).collect())
            }
            4 => {
                let (slot, page) = (number / GROUP_PAGES as u64, number % GROUP_PAGES as u64);
                (PAGE, vec![group_offset(slot / 2, slot as u32 % 2) + page * PAGE as u64])
            }
            _ => {
                image.0.lock().unreadable.insert(number * 3);
                continue;
            }
        };
        let mut whole = vec![0; length];
        let given = bytes.len().min(length);
        whole[..given].copy_from_slice(&bytes[..given]);
        if kind & FIX_CRC != 0 {
            let crc_at = length - 4;
            let crc = crc32c(&whole[..crc_at]);
            whole[crc_at..].copy_from_slice(&crc.to_le_bytes());
        }
        places.into_iter().for_each(|at| image.put(&whole, at));
    }
    Some((image, size))
}

fn take_change(input: &mut Input<'_>) -> Option<(Change, u8)> {
    let [kinds, times, low, high, length, runs] = input.array()?;
    let times = if runs == 0 { times % 64 + 1 } else { 1 };
    let (first, length) = (u64::from(u16::from_le_bytes([low, high])), u64::from(length) + 1);
    let runs: Vec<Range<u64>> =
        (0..u64::from(runs) * 16 + 1).map(|run| first + run * 2 * length).map(|start| start..start + length).collect();
    let of = |bit: u8| if kinds & 1 << bit != 0 { runs.clone() } else { Vec::new() };
    let change = Change { heat: of(0), cool: of(1), diverge: of(2), converge: of(3), facts: Facts::default() };
    Some((change, times))
}

/// A file in memory; units that are zero take no room. Clones are the same.
#[derive(Clone, Default)]
struct Image(Arc<Mutex<Units>>);

#[derive(Default)]
struct Units {
    length: u64,
    written: BTreeMap<u64, Box<[u8; UNIT]>>,
    unreadable: BTreeSet<u64>,
}

impl Image {
    /// Writes what lies in the file.
    fn put(&self, bytes: &[u8], offset: u64) {
        let mut units = self.0.lock();
        let length = units.length;
        for (at, part) in parts(offset, bytes.len()) {
            let bytes = &bytes[part];
            let unit = at / UNIT as u64;
            units.unreadable.remove(&unit);
            if at + bytes.len() as u64 <= length && (units.written.contains_key(&unit) || !is_zero(bytes)) {
                let from = at as usize % UNIT;
                let whole = units.written.entry(unit).or_insert_with(|| Box::new([0; UNIT]));
                whole[from..from + bytes.len()].copy_from_slice(bytes);
            }
        }
    }
}

/// Where each part of a stretch that lies in one unit begins in the file, and which part it is.
fn parts(offset: u64, length: usize) -> impl Iterator<Item = (u64, Range<usize>)> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let at = offset + from as u64;
        let part = from..length.min(from + UNIT - at as usize % UNIT);
        from = part.end;
        (!part.is_empty()).then_some((at, part))
    })
}

impl MarksIo for Image {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().length)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut units = self.0.lock();
        units.length = len;
        units.written.split_off(&len.div_ceil(UNIT as u64));
        Ok(())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let units = self.0.lock();
        let end = offset + buffer.len() as u64;
        if end > units.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let touched = offset / UNIT as u64..end.div_ceil(UNIT as u64);
        if units.unreadable.range(touched.clone()).next().is_some() {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        buffer.fill(0);
        // Most of a file is zero: what is not is asked for, rather than each unit whether it is there.
        for (number, unit) in units.written.range(touched) {
            let starts = number * UNIT as u64;
            let (from, to) = (starts.max(offset), (starts + UNIT as u64).min(end));
            let part = &unit[(from - starts) as usize..(to - starts) as usize];
            buffer[(from - offset) as usize..(to - offset) as usize].copy_from_slice(part);
        }
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let end = offset + bytes.len() as u64;
        let length = self.0.lock().length;
        self.0.lock().length = length.max(end);
        self.put(bytes, offset);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

//! What every [`Disk`] must do, as one suite: run it on each implementation and each layer.
//!
//! A normal public module, so that the tests of other modules and programs can use it. It panics where a disk does not
//! keep to the trait, and names the seed of what it tried.
//!
//! The disk may hold anything at first; its content is overwritten. It is read whole into memory and should have from
//! some hundred KiB to some MiB. Nobody else may write to it meanwhile.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use futures_util::future::join_all;

use super::{Disk, DiskError, Errno, Geometry, ZeroMode};
use crate::random::SplitMix64;
use crate::units::{GIB, KIB, MIB, Span};

/// Small enough to be read whole at each step that needs it.
const SIZE_MAX: u64 = 256 * MIB;
const OPERATIONS: u32 = 400;
/// Operations stay below this, for many of them on a small disk.
const LENGTH_MAX: u64 = 200 * KIB;
/// Concurrent writers, each on ranges of its own.
const LANES: u64 = 8;
/// How far each of them counts.
const COUNTS: u64 = 50;

/// Runs the whole suite with a seed of its own each time; the seed is printed.
pub async fn check(disk: Arc<dyn Disk>) {
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).expect("the kernel gives random bytes");
    check_with_seed(disk, u64::from_le_bytes(seed)).await;
}

/// Runs the whole suite again as it was with this seed.
pub async fn check_with_seed(disk: Arc<dyn Disk>, seed: u64) {
    println!("conformance: seed {seed}");
    let geometry = disk.geometry();
    assert!(geometry.size <= SIZE_MAX, "a disk of {} bytes is too large for this suite", geometry.size);
    it_is_consistent(&*disk);
    it_refuses_what_lies_outside(&*disk).await;
    let mut model = Model::of(&*disk, seed).await;
    model.check_extents(&*disk, Span::new(0, geometry.size)).await;
    if geometry.abilities.read_only {
        it_refuses_changes(&*disk).await;
    } else {
        model.run(&*disk).await;
        model.write_the_largest(&*disk).await;
        disjoint_changes_leave_each_other_alone(&disk, &mut model).await;
        no_change_comes_between_the_two_halves_of_a_rewrite(&disk, &mut model).await;
        a_dropped_write_is_not_taken_back(&*disk, &mut model).await;
    }
    model.check_content(&*disk).await;
}

/// The geometry does not contradict itself.
pub fn it_is_consistent(disk: &dyn Disk) {
    let Geometry { size, block, abilities } = disk.geometry();
    for (name, bytes) in [("minimum", block.minimum), ("preferred", block.preferred), ("maximum", block.maximum)] {
        assert!(bytes > 0, "{name} block size is zero");
    }
    assert!(block.minimum.is_power_of_two() && block.preferred.is_power_of_two(), "{block:?}: no powers of two");
    assert!(block.minimum <= block.preferred && block.preferred <= block.maximum, "{block:?}: not in order");
    assert!(block.maximum % block.minimum == 0, "{block:?}: the maximum is no multiple of the minimum");
    assert!(size % u64::from(block.minimum) == 0, "{size} bytes end inside a block of {}", block.minimum);
    let changes = [abilities.trim, abilities.trim_reads_zero, abilities.write_zeroes, abilities.fast_zeroes];
    assert!(!abilities.read_only || !changes.contains(&true), "{abilities:?}: changes of a read-only disk");
    assert!(!abilities.trim_reads_zero || abilities.trim, "{abilities:?}: zeroes by a trim that is none");
    assert!(!abilities.fast_zeroes || abilities.write_zeroes, "{abilities:?}: fast at what it cannot do");
    let identity = disk.identity();
    assert_eq!(identity.size, size, "the identity tells of another size");
    assert_eq!(identity.name, disk.identity().name, "the identity changes from call to call");
}

/// What is outside or off the block borders fails, is not lost, and panics nowhere.
pub async fn it_refuses_what_lies_outside(disk: &dyn Disk) {
    let Geometry { size, block, abilities } = disk.geometry();
    let minimum = u64::from(block.minimum);
    let mut wrong = vec![(size, minimum), (size - minimum, 2 * minimum), (u64::MAX - minimum + 1, minimum)];
    wrong.push((i64::MAX as u64 / minimum * minimum, minimum));
    if minimum > 1 {
        wrong.extend([(1, minimum), (0, minimum - 1)]);
    }
    fn refused<T>(what: &str, (offset, length): (u64, u64), answer: super::Result<T>) {
        match answer {
            Ok(_) => panic!("{what} of {length} bytes at {offset} succeeded"),
            Err(DiskError::Lost) => panic!("{what} of {length} bytes at {offset} was issued and lost"),
            Err(DiskError::Io(_) | DiskError::Refused(_)) => {}
        }
    }
    for range @ (offset, length) in wrong {
        let data = || Bytes::from(vec![0xEE; length as usize]);
        refused("a read", range, disk.read(offset, length as u32).await);
        refused("a write", range, disk.write(offset, data(), false).await);
        refused("a map", range, disk.extents(offset, length, 4).await);
        if abilities.trim {
            refused("a trim", range, disk.trim(offset, length, false).await);
        }
        if abilities.write_zeroes {
            refused("zeroing", range, disk.write_zeroes(offset, length, ZeroMode::default(), false).await);
        }
        if abilities.cache {
            refused("caching", range, disk.cache(offset, length).await);
        }
    }
    if abilities.trim {
        let beyond = (0, size + GIB);
        refused("a trim", beyond, disk.trim(beyond.0, beyond.1, false).await);
    }
}

/// A read-only disk refuses each kind of change without having issued it.
pub async fn it_refuses_changes(disk: &dyn Disk) {
    let length = u64::from(disk.geometry().block.minimum);
    let answers = [
        disk.write(0, Bytes::from(vec![0xEE; length as usize]), false).await,
        disk.trim(0, length, false).await,
        disk.write_zeroes(0, length, ZeroMode::default(), false).await,
    ];
    for answer in answers {
        assert_eq!(answer, Err(DiskError::Refused(Errno::EPERM)));
    }
}

/// Changes side by side on ranges that touch and never overlap: each lane sees its own and nothing else.
async fn disjoint_changes_leave_each_other_alone(disk: &Arc<dyn Disk>, model: &mut Model) {
    let Geometry { size, block, abilities } = disk.geometry();
    let minimum = u64::from(block.minimum);
    // Odd where the disk takes odd ones, so that neighbours share sectors and pages.
    let stripe = if minimum == 1 { 777 } else { minimum };
    let stripes = (size / stripe).min(LANES * 64);
    let lanes = (0..LANES).map(|lane| {
        let (disk, mut random) = (disk.clone(), SplitMix64(model.random.next()));
        tokio::spawn(async move {
            let mut written = Vec::new();
            for number in (lane..stripes).step_by(LANES as usize) {
                let (offset, fill) = (number * stripe, random.next() as u8);
                if abilities.write_zeroes && fill < 64 {
                    disk.write_zeroes(offset, stripe, ZeroMode::default(), false).await.expect("zeroing");
                    written.push((offset, 0));
                } else {
                    let data = Bytes::from(vec![fill; stripe as usize]);
                    disk.write(offset, data, abilities.fua && fill > 250).await.expect("a write");
                    written.push((offset, fill));
                }
                let (offset, fill) = written[random.below(written.len() as u64) as usize];
                let read = disk.read(offset, stripe as u32).await.expect("a read");
                assert!(read.iter().all(|byte| *byte == fill), "lane {lane} lost its {stripe} bytes at {offset}");
                if abilities.flush && number % 97 == 0 {
                    disk.flush().await.expect("a flush");
                }
            }
            written
        })
    });
    for lane in join_all(lanes.collect::<Vec<_>>()).await {
        for (offset, fill) in lane.expect("a lane came to its end") {
            model.content[offset as usize..(offset + stripe) as usize].fill(fill);
        }
    }
    model.check_content(&**disk).await;
}

/// Lanes count in the same bytes: no count is lost. A rewrite that makes nothing changes nothing.
async fn no_change_comes_between_the_two_halves_of_a_rewrite(disk: &Arc<dyn Disk>, model: &mut Model) {
    let length = disk.geometry().block.minimum.max(8);
    disk.write(0, Bytes::from(vec![0; length as usize]), false).await.expect("a write");
    model.content[..length as usize].fill(0);
    match disk.rewrite(0, length, Box::new(|_| None), false).await {
        Err(DiskError::Refused(Errno::ENOTSUP)) => return,
        answer => assert_eq!(answer, Ok(false)),
    }
    let lanes = (0..LANES).map(|_| {
        let disk = disk.clone();
        tokio::spawn(async move {
            for _ in 0..COUNTS {
                let count = |found: Bytes| {
                    let mut bytes = found.to_vec();
                    let count = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
                    bytes[..8].copy_from_slice(&(count + 1).to_le_bytes());
                    Some(bytes.into())
                };
                assert_eq!(disk.rewrite(0, length, Box::new(count), false).await, Ok(true));
                assert_eq!(disk.rewrite(0, length, Box::new(|_| None), false).await, Ok(false));
            }
        })
    });
    for lane in join_all(lanes.collect::<Vec<_>>()).await {
        lane.expect("a lane came to its end");
    }
    model.content[..8].copy_from_slice(&(LANES * COUNTS).to_le_bytes());
    model.check_content(&**disk).await;
}

/// A write that was begun and whose answer nobody waits for is there in the end.
async fn a_dropped_write_is_not_taken_back(disk: &dyn Disk, model: &mut Model) {
    let length = u64::from(disk.geometry().block.minimum);
    let fill = model.content[0].wrapping_add(1);
    let mut write = disk.write(0, Bytes::from(vec![fill; length as usize]), false);
    poll_fn(|cx| {
        let _: Poll<super::Result<()>> = Pin::new(&mut write).poll(cx);
        Poll::Ready(())
    })
    .await;
    drop(write);
    while disk.read(0, length as u32).await.expect("a read")[0] != fill {
        tokio::task::yield_now().await;
    }
    model.content[..length as usize].fill(fill);
}

/// The bytes that the disk must hold, and what happens next.
struct Model {
    content: Vec<u8>,
    random: SplitMix64,
    seed: u64,
    geometry: Geometry,
}

impl Model {
    async fn of(disk: &dyn Disk, seed: u64) -> Self {
        let geometry = disk.geometry();
        let mut model = Self { content: vec![0; geometry.size as usize], random: SplitMix64(seed), seed, geometry };
        model.adopt(disk, Span::new(0, geometry.size)).await;
        model
    }

    /// Takes over what the disk holds.
    async fn adopt(&mut self, disk: &dyn Disk, span: Span) {
        for piece in span.pieces(self.geometry.block.maximum.into()) {
            let read = disk.read(piece.start, piece.len() as u32).await.expect("a read");
            assert_eq!(read.len() as u64, piece.len(), "a read of {piece} is of another length");
            self.content[range(piece)].copy_from_slice(&read);
        }
    }

    async fn run(&mut self, disk: &dyn Disk) {
        for operation in 0..OPERATIONS {
            self.step(disk, operation).await;
        }
        self.check_content(disk).await;
        self.check_extents(disk, Span::new(0, self.geometry.size)).await;
    }

    async fn step(&mut self, disk: &dyn Disk, operation: u32) {
        let abilities = self.geometry.abilities;
        let span = self.any_span();
        let fua = abilities.fua && self.random.below(8) == 0;
        let context = format!("operation {operation} at {span}, seed {}", self.seed);
        let done = |answer: super::Result<()>| answer.unwrap_or_else(|error| panic!("{context}: {error}"));
        match self.random.below(12) {
            0..4 => {
                let data = self.any_bytes(span.len());
                done(disk.write(span.start, data.clone(), fua).await);
                self.content[range(span)].copy_from_slice(&data);
            }
            4..6 if abilities.write_zeroes => {
                let bits = self.random.next();
                let mode = ZeroMode { no_hole: bits & 1 == 1, fast_only: bits & 2 == 2 && abilities.fast_zeroes };
                match disk.write_zeroes(span.start, span.len(), mode, fua).await {
                    Err(error) if mode.fast_only && error.errno() == Errno::ENOTSUP => {}
                    answer => {
                        done(answer);
                        self.content[range(span)].fill(0);
                    }
                }
            }
            6..8 if abilities.trim => {
                done(disk.trim(span.start, span.len(), fua).await);
                if abilities.trim_reads_zero {
                    self.content[range(span)].fill(0);
                } else {
                    // Any content will do, but it has to stay.
                    self.adopt(disk, span).await;
                }
            }
            8 if abilities.flush => done(disk.flush().await),
            9 if abilities.cache => done(disk.cache(span.start, span.len()).await),
            10 => self.check_extents(disk, span).await,
            _ => {}
        }
        // A little more than what was touched: its neighbours must not have changed.
        let around = Span::new(
            span.start.saturating_sub(u64::from(self.geometry.block.preferred)),
            span.end + u64::from(self.geometry.block.preferred),
        );
        let around = around.rounded_out(self.geometry.block.minimum.into());
        self.check_span(disk, around.intersect(Span::new(0, self.geometry.size)), &context).await;
    }

    async fn write_the_largest(&mut self, disk: &dyn Disk) {
        let block = self.geometry.block;
        let length = self.geometry.size.min(block.maximum.into());
        let data = self.any_bytes(length);
        disk.write(self.geometry.size - length, data.clone(), false).await.expect("the largest write");
        self.content[(self.geometry.size - length) as usize..].copy_from_slice(&data);
        self.check_content(disk).await;
    }

    async fn check_content(&self, disk: &dyn Disk) {
        self.check_span(disk, Span::new(0, self.geometry.size), "the whole disk").await;
    }

    async fn check_span(&self, disk: &dyn Disk, span: Span, context: &str) {
        for piece in span.pieces(self.geometry.block.maximum.into()) {
            let read = disk.read(piece.start, piece.len() as u32).await.expect("a read");
            let expected = &self.content[range(piece)];
            assert_eq!(read.len(), expected.len(), "{context}: a read of {piece} is of another length");
            if read != expected {
                let differing = read.iter().zip(expected).enumerate().filter(|(_, (a, b))| a != b);
                let at = differing.map(|(index, _)| piece.start + index as u64).collect::<BTreeSet<_>>();
                let (first, last) = (at.first().copied(), at.last().copied());
                panic!(
                    "{context}: {} bytes differ, from {first:?} to {last:?}; seed {}, {:?}",
                    at.len(),
                    self.seed,
                    self.geometry
                );
            }
        }
    }

    /// The map goes from end to end without a gap, keeps to its limit, and what it calls zero is zero.
    async fn check_extents(&mut self, disk: &dyn Disk, span: Span) {
        let mut at = span.start;
        while at < span.end {
            let limit = 1 + self.random.below(5) as usize;
            let extents = disk.extents(at, span.end - at, limit).await.expect("a map");
            assert!((1..=limit).contains(&extents.len()), "{} extents for a limit of {limit}", extents.len());
            for extent in extents {
                assert!(extent.length > 0, "an empty extent at {at}");
                assert!(extent.length <= span.end - at, "{extent:?} at {at} goes beyond {span}");
                assert!(extent.length % u64::from(self.geometry.block.minimum) == 0, "{extent:?} ends inside a block");
                assert!(self.geometry.abilities.extents || !extent.hole && !extent.zero, "{extent:?}: not announced");
                let content = &self.content[range(Span::at(at, extent.length))];
                assert!(!extent.zero || content.iter().all(|byte| *byte == 0), "{extent:?} at {at} is not zero");
                at += extent.length;
            }
        }
    }

    fn any_span(&mut self) -> Span {
        let minimum = u64::from(self.geometry.block.minimum);
        let blocks = self.geometry.size / minimum;
        // Every magnitude of length is as likely as the others, and borders of blocks are likelier than what is between.
        let magnitude = self.random.below(u64::from(LENGTH_MAX.ilog2()) + 1);
        let longest = (2 << magnitude).min(LENGTH_MAX).min(self.geometry.block.maximum.into()) / minimum;
        let length = 1 + self.random.below(longest.max(1)).min(blocks - 1);
        let mut start = self.random.below(blocks - length + 1);
        if self.random.below(3) == 0 {
            start -= start % (4096 / minimum).max(1);
        }
        if self.random.below(16) == 0 {
            start = blocks - length;
        }
        Span::at(start * minimum, length * minimum)
    }

    fn any_bytes(&mut self, length: u64) -> Bytes {
        (0..length.div_ceil(8)).flat_map(|_| self.random.next().to_le_bytes()).take(length as usize).collect()
    }
}

fn range(span: Span) -> std::ops::Range<usize> {
    span.start as usize..span.end as usize
}

#[cfg(test)]
mod tests;

//! What a restore writes to: admitted first, marked as unfinished while it is written, whole at the end.
//!
//! Owns: what counts as holding data, the mark, the order of the last writes, sparseness, alignment. Does not own:
//! where the bytes come from, which bytes are written when.
//!
//! Crash: until [`Target::finish`] has come to its last write, the first sector holds our
//! [signature], and the first and last MiB (partition tables, superblocks) hold nothing of the
//! volume. The same restore may be started again on such a target without `--overwrite`.

use std::future::Future;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::progress::Progress;
use super::signature;
use crate::disk::{Disk, DiskError, ZeroMode};
use crate::units::{BLOCK, GIB, KIB, MIB, SECTOR, Span, human_bytes, is_zero};

/// What is written last: partition tables, boot sectors and the superblocks of all common filesystems lie in it.
const EDGE: u64 = MIB;

/// Unit in which zeroes are left out: the block of nearly every filesystem.
const PAGE: usize = 4 * KIB as usize;

/// Up to so much is read to know that a target is empty (holes, where the target tells of them, are free): half a
/// minute on a fast disk. A larger one is looked at in samples, and then not taken for zero.
const SURVEY_IN_FULL: u64 = 16 * GIB;
/// Evenly spread reads of [`BLOCK`] bytes each; three minutes on a slow disk.
const SURVEY_SAMPLES: u64 = 16 * 1024;
const SURVEY_READ: u64 = MIB;
const SURVEY_PARALLEL: usize = 8;

/// One request of zeroing. A request this large does not time out on a disk that has to write the zeroes.
const ZEROES_MAX: u64 = 256 * MIB;
/// One request of writing, where the disk takes more.
const WRITE_MAX: u64 = 8 * MIB;

/// What a store was found to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Every byte is zero.
    Blank,
    /// Every byte that was looked at is zero; the store is too large to look at all.
    SeemsBlank,
    /// A restore of ours that was interrupted.
    Unfinished,
    /// Something else; `offset` is near a byte that is not zero.
    Data { offset: u64 },
}

/// What was being done to the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Read,
    Write,
    Zero,
    Flush,
    Map,
}

impl Action {
    fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Zero => "write zeroes to",
            Self::Flush => "flush",
            Self::Map => "ask for the extents of",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    #[error("the target has {} and the volume {} ({target_size} and {volume_size} bytes)",
        human_bytes(*target_size), human_bytes(*volume_size))]
    TooSmall { target_size: u64, volume_size: u64 },
    #[error("the target holds data (at byte {offset})")]
    HoldsData { offset: u64 },
    #[error("the target is read-only")]
    ReadOnly,
    /// What it had not flushed before may be gone.
    #[error("the connection to the target was lost meanwhile, and with it perhaps what was written before")]
    CameBack,
    #[error("{} the target at {span}", action.name())]
    Disk { action: Action, span: Span, source: DiskError },
}

/// Looks for anything but zeroes. Reads all that the store does not know to be zero, up to 16 GiB; what is beyond,
/// only in samples. Stops at the first byte that is not zero.
pub async fn survey(disk: &dyn Disk) -> Result<Content, TargetError> {
    let size = disk.geometry().size;
    let first = read(disk, Span::new(0, SECTOR.min(size))).await?;
    if signature::is_unfinished(&first) {
        return Ok(Content::Unfinished);
    }
    let mut budget = SURVEY_IN_FULL;
    let mut at = 0;
    while at < size {
        let extents = extents(disk, Span::new(at, size)).await?;
        for (span, zero) in extents {
            if !zero {
                if span.len() > budget {
                    return sample(disk, size).await;
                }
                budget -= span.len();
                if let Some(offset) = first_data(disk, span.pieces(SURVEY_READ)).await? {
                    return Ok(Content::Data { offset });
                }
            }
            at = span.end;
        }
    }
    Ok(Content::Blank)
}

async fn sample(disk: &dyn Disk, size: u64) -> Result<Content, TargetError> {
    let start = Span::new(0, (64 * MIB).min(size)).pieces(SURVEY_READ);
    let stride = size / SURVEY_SAMPLES / BLOCK * BLOCK;
    let spread = (0..SURVEY_SAMPLES).map(move |i| Span::at(i * stride, BLOCK));
    let end = Span::new((size - MIB) / BLOCK * BLOCK, size).pieces(SURVEY_READ);
    Ok(match first_data(disk, start.chain(end).chain(spread)).await? {
        Some(offset) => Content::Data { offset },
        None => Content::SeemsBlank,
    })
}

/// An offset near a byte that is not zero, in the first of `spans` that has one.
async fn first_data(disk: &dyn Disk, spans: impl Iterator<Item = Span> + Send) -> Result<Option<u64>, TargetError> {
    let mut reads =
        stream::iter(spans).map(|span| async move { Ok((span, read(disk, span).await?)) }).buffered(SURVEY_PARALLEL);
    while let Some((span, data)) = reads.try_next().await? {
        if let Some(page) = data.chunks(PAGE).position(|page| !is_zero(page)) {
            return Ok(Some(span.start + (page * PAGE) as u64));
        }
    }
    Ok(None)
}

/// The store's own map of `span`, from its start on, as far as one question tells: (range, known to be zero).
pub(super) async fn extents(disk: &dyn Disk, span: Span) -> Result<Vec<(Span, bool)>, TargetError> {
    if !disk.geometry().abilities.extents {
        return Ok(vec![(span, false)]);
    }
    /// As many as a reply of a few pages holds.
    const LIMIT: usize = 1024;
    /// NBD's lengths have 32 bits.
    const LENGTH: u64 = 2 * GIB;
    let asked = Span::at(span.start, span.len().min(LENGTH));
    let found = disk.extents(asked.start, asked.len(), LIMIT).await.map_err(|source| TargetError::Disk {
        action: Action::Map,
        span: asked,
        source,
    })?;
    let mut at = asked.start;
    let mut map = Vec::with_capacity(found.len());
    for extent in found {
        let span = Span::at(at, extent.length.min(asked.end - at));
        map.push((span, extent.zero));
        at = span.end;
    }
    // A map without an extent tells nothing: all data.
    if at == asked.start {
        map = vec![(asked, false)];
    }
    Ok(map)
}

pub(super) async fn read(disk: &dyn Disk, span: Span) -> Result<Bytes, TargetError> {
    if span.is_empty() {
        return Ok(Bytes::new());
    }
    let unit = u64::from(disk.geometry().block.minimum.max(1));
    let wide = aligned(span, unit, disk.geometry().size);
    let data = disk.read(wide.start, wide.len() as u32).await.map_err(|source| TargetError::Disk {
        action: Action::Read,
        span,
        source,
    })?;
    let skip = (span.start - wide.start) as usize;
    Ok(data.slice(skip..skip + span.len() as usize))
}

/// `span` in whole units, but never beyond the end of the disk.
fn aligned(span: Span, unit: u64, size: u64) -> Span {
    let wide = span.rounded_out(unit);
    Span::new(wide.start, wide.end.min(size.max(span.end)))
}

/// A disk that is being turned into a volume of `size` bytes.
pub struct Target {
    disk: Arc<dyn Disk>,
    size: u64,
    /// Of the disk when it was taken.
    incarnation: u64,
    /// Every byte of the disk was zero before we began: zeroes need not be written.
    blank: bool,
    /// The disk's minimum block size.
    unit: u64,
    write_max: u64,
    zeroes_max: u64,
    edges: Mutex<Edges>,
    /// Held while a part of a unit is read, changed and written back: records are disjoint, units of theirs are not.
    ragged: tokio::sync::Mutex<()>,
    progress: Arc<Progress>,
}

/// The first and the last bytes of the volume, kept back until the rest is durable.
struct Edges {
    head: Vec<u8>,
    tail: Vec<u8>,
}

impl Target {
    /// Takes a disk that may be written from byte 0 to `size`; `blank` only if all of that is known to be zero.
    /// Nothing is changed yet.
    pub fn new(disk: Arc<dyn Disk>, size: u64, blank: bool, progress: Arc<Progress>) -> Result<Self, TargetError> {
        let geometry = disk.geometry();
        if geometry.abilities.read_only {
            return Err(TargetError::ReadOnly);
        }
        if geometry.size < size {
            return Err(TargetError::TooSmall { target_size: geometry.size, volume_size: size });
        }
        let unit = u64::from(geometry.block.minimum.max(1));
        let write_max = u64::from(geometry.block.maximum).min(WRITE_MAX) / unit * unit;
        let head = EDGE.min(size);
        // From a block's border on, so that nothing but the end of the volume can be ragged.
        let tail = (size.saturating_sub(EDGE) / BLOCK * BLOCK).max(head);
        Ok(Self {
            size,
            incarnation: disk.incarnation(),
            blank,
            unit,
            write_max: write_max.max(unit),
            zeroes_max: if geometry.abilities.write_zeroes { ZEROES_MAX } else { write_max.max(unit).min(MIB) },
            edges: Mutex::new(Edges { head: vec![0; head as usize], tail: vec![0; (size - tail) as usize] }),
            ragged: tokio::sync::Mutex::new(()),
            progress,
            disk,
        })
    }

    /// Whether zeroes are there already.
    pub fn is_blank(&self) -> bool {
        self.blank
    }

    /// Marks the target as unfinished, durably. Comes before everything else.
    pub async fn begin(&self) -> Result<(), TargetError> {
        let mark = Bytes::copy_from_slice(&signature::unfinished());
        self.put(0, mark.slice(..self.mark_length())).await?;
        self.flush().await
    }

    /// Writes bytes that were verified. Ranges of concurrent calls must not overlap.
    pub async fn write(&self, offset: u64, data: Bytes) -> Result<(), TargetError> {
        self.progress.transfer(data.len() as u64);
        let span = Span::at(offset, data.len() as u64);
        let middle = self.keep_back(span, |edge, part| {
            let from = (part.start - offset) as usize;
            edge.copy_from_slice(&data[from..from + edge.len()]);
        });
        if middle.is_empty() {
            return Ok(());
        }
        let from = (middle.start - offset) as usize;
        self.put_sparse(middle.start, data.slice(from..from + middle.len() as usize)).await
    }

    /// Makes a range read as zeroes; free where the disk was blank.
    pub async fn zero(&self, span: Span) -> Result<(), TargetError> {
        if self.blank {
            return Ok(());
        }
        let middle = self.keep_back(span, |edge, _| edge.fill(0));
        let whole = middle.rounded_in(self.unit);
        if whole.is_empty() {
            return self.put(middle.start, zeroes(middle.len())).await;
        }
        self.put(middle.start, zeroes(whole.start - middle.start)).await?;
        stream::iter(whole.pieces(self.zeroes_max))
            .map(Ok)
            .try_for_each_concurrent(4, |piece| self.zero_whole(piece))
            .await?;
        self.put(whole.end, zeroes(middle.end - whole.end)).await
    }

    /// Flushes the body, writes what was kept back, flushes, takes the mark away, flushes.
    /// Nothing is written after it.
    pub async fn finish(&self) -> Result<(), TargetError> {
        self.flush().await?;
        let edges = std::mem::replace(
            &mut *self.edges.lock().unwrap_or_else(PoisonError::into_inner),
            Edges { head: Vec::new(), tail: Vec::new() },
        );
        let (head, tail) = (Bytes::from(edges.head), Bytes::from(edges.tail));
        let mark = self.mark_length();
        self.put_sparse(self.size - tail.len() as u64, tail).await?;
        self.put_sparse(mark as u64, head.slice(mark..)).await?;
        self.flush().await?;
        self.put(0, head.slice(..mark)).await?;
        self.flush().await
    }

    fn mark_length(&self) -> usize {
        SECTOR.min(self.size) as usize
    }

    /// Hands the parts of `span` that lie in an edge to `fill`, and returns what lies between the edges.
    fn keep_back(&self, span: Span, fill: impl Fn(&mut [u8], Span)) -> Span {
        let edges = &mut *self.edges.lock().unwrap_or_else(PoisonError::into_inner);
        let head = Span::new(0, edges.head.len() as u64);
        let tail = Span::new(self.size - edges.tail.len() as u64, self.size);
        for (edge, bytes) in [(head, &mut edges.head), (tail, &mut edges.tail)] {
            let part = span.intersect(edge);
            if !part.is_empty() {
                fill(&mut bytes[indices(part, edge.start)], part);
            }
        }
        span.intersect(Span::new(head.end, tail.start.max(head.end)))
    }

    /// Writes, leaving out pages of zeroes where the disk was blank.
    async fn put_sparse(&self, offset: u64, data: Bytes) -> Result<(), TargetError> {
        if !self.blank {
            return self.put(offset, data).await;
        }
        let whole = Span::at(offset, data.len() as u64);
        let part = |span: Span| data.slice(indices(span, offset));
        let mut run = Span::at(offset, 0);
        for page in whole.pieces(PAGE as u64) {
            if !is_zero(&data[indices(page, offset)]) {
                run.end = page.end;
                continue;
            }
            if !run.is_empty() {
                self.put(run.start, part(run)).await?;
            }
            run = Span::at(page.end, 0);
        }
        if run.is_empty() { Ok(()) } else { self.put(run.start, part(run)).await }
    }

    /// Writes, in requests that the disk takes.
    async fn put(&self, offset: u64, data: Bytes) -> Result<(), TargetError> {
        let span = Span::at(offset, data.len() as u64);
        for piece in span.pieces(self.write_max) {
            let bytes = data.slice(indices(piece, offset));
            if piece.start.is_multiple_of(self.unit) && piece.end.is_multiple_of(self.unit) {
                self.put_whole(piece.start, bytes).await?;
            } else {
                self.put_ragged(piece, bytes).await?;
            }
        }
        Ok(())
    }

    async fn put_whole(&self, offset: u64, data: Bytes) -> Result<(), TargetError> {
        let span = Span::at(offset, data.len() as u64);
        answer(Action::Write, span, self.disk.write(offset, data, false)).await
    }

    async fn put_ragged(&self, span: Span, data: Bytes) -> Result<(), TargetError> {
        let _lock = self.ragged.lock().await;
        let wide = aligned(span, self.unit, self.disk.geometry().size);
        let mut bytes = read(&*self.disk, wide).await?.to_vec();
        bytes[indices(span, wide.start)].copy_from_slice(&data);
        self.put_whole(wide.start, bytes.into()).await
    }

    async fn zero_whole(&self, span: Span) -> Result<(), TargetError> {
        if !self.disk.geometry().abilities.write_zeroes {
            return self.put_whole(span.start, zeroes(span.len())).await;
        }
        let zeroing = self.disk.write_zeroes(span.start, span.len(), ZeroMode::default(), false);
        answer(Action::Zero, span, zeroing).await
    }

    async fn flush(&self) -> Result<(), TargetError> {
        if self.disk.geometry().abilities.flush {
            answer(Action::Flush, Span::new(0, self.size), self.disk.flush()).await?;
        }
        if self.disk.incarnation() != self.incarnation { Err(TargetError::CameBack) } else { Ok(()) }
    }
}

async fn answer(
    action: Action,
    span: Span,
    operation: impl Future<Output = crate::disk::Result<()>>,
) -> Result<(), TargetError> {
    operation.await.map_err(|source| TargetError::Disk { action, span, source })
}

/// Where `span` lies in a buffer whose first byte is byte `base`.
fn indices(span: Span, base: u64) -> Range<usize> {
    (span.start - base) as usize..(span.end - base) as usize
}

fn zeroes(length: u64) -> Bytes {
    static ZEROES: [u8; MIB as usize] = [0; MIB as usize];
    if length <= MIB { Bytes::from_static(&ZEROES[..length as usize]) } else { vec![0; length as usize].into() }
}

#[cfg(test)]
#[path = "target_tests.rs"]
mod tests;

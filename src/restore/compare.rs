//! Compares a store with a recovery point, byte by byte, and names the ranges that differ.
//!
//! Reads the store once, and of the point mostly hashes; its data only where a hash does not decide (a record that is
//! visible in part) or says no (to tell which sectors differ). Ranges that were trimmed, or unreadable when the copy
//! was made, compare with anything. In memory: the places of the records of a window, and a few pieces of 4 MiB.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::task::JoinError;

use super::plan;
use super::progress::Progress;
use super::ranges::Ranges;
use super::target::{TargetError, extents, read};
use super::window::{Walk, Window};
use crate::chain::differs::{Policy, differs};
use crate::chain::resolve::{Content, Fragment, ResolveError, Resolver};
use crate::disk::Disk;
use crate::format::Void;
use crate::units::{BLOCK, Block, MIB, Mask, SECTOR, Span, is_zero};

/// What is read of the store at once.
const PIECE: u64 = 4 * MIB;
/// Pieces under way.
const PARALLEL: usize = 8;

const _: () = assert!(PIECE.is_multiple_of(BLOCK));

/// Why a comparison came to no end.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    #[error("read the store")]
    Store(#[from] TargetError),
    #[error("find out what the point holds")]
    Resolve(#[from] ResolveError),
    #[error("compare")]
    Task(#[from] JoinError),
}

/// Where `store` differs from the point that `resolver` resolves, up to the volume's size. What a shorter store lacks
/// differs; what a longer one has beyond is not looked at.
pub async fn compare(resolver: &Resolver, store: Arc<dyn Disk>, progress: &Progress) -> Result<Ranges, CompareError> {
    let (volume_size, store_size) = (resolver.size(), store.geometry().size);
    let common = volume_size.min(store_size);
    let mut different = Ranges::default();
    let mut walk = Walk::new(resolver);
    while let Some(window) = walk.next().await? {
        let span = window.span.intersect(Span::new(0, common));
        if span.is_empty() {
            break;
        }
        let work = Work::of(Window { span, fragments: window.fragments });
        let mut found = Vec::new();
        let mut pieces = stream::iter(work.mixed)
            .map(|(piece, fragments)| {
                let (resolver, store) = (resolver.clone(), store.clone());
                let span = Span::at(piece * PIECE, PIECE).intersect(span);
                let task = async move { mixed(&resolver, &*store, span, fragments).await };
                async move { tokio::spawn(task).await? }
            })
            .buffer_unordered(PARALLEL);
        while let Some(spans) = pieces.try_next().await? {
            found.extend(spans);
        }
        for zero in work.zero {
            found.extend(not_zero(&*store, zero, progress).await?);
        }
        progress.transfer(work.mixed_bytes);
        progress.pass(span.len());
        different.append(found);
    }
    if store_size < volume_size {
        progress.pass(volume_size - store_size);
        different.append(vec![Span::new(store_size, volume_size)]);
    }
    Ok(different)
}

/// What is to be compared in one window.
struct Work {
    /// By number of the piece: what the point says of blocks that hold data, or of which it names a part.
    mixed: BTreeMap<u64, Vec<Fragment>>,
    mixed_bytes: u64,
    /// Ranges in which the store should hold nothing but zeroes.
    zero: Vec<Span>,
}

impl Work {
    fn of(window: Window) -> Self {
        let mut mixed: BTreeMap<u64, Vec<Fragment>> = BTreeMap::new();
        // Blocks that are compared as mixed, or compare with anything.
        let mut taken = Vec::new();
        for fragment in window.fragments {
            match fragment.content {
                Content::Void(Void::Zero) if fragment.mask == Mask::FULL => {}
                Content::Void(_) if fragment.mask == Mask::FULL => {
                    taken.extend(plan::spans(&fragment, window.span.end))
                }
                _ => {
                    taken.push(Span::at(fragment.first.offset(), BLOCK));
                    mixed.entry(fragment.first.offset() / PIECE).or_default().push(fragment);
                }
            }
        }
        let mixed_bytes = mixed.len() as u64 * PIECE;
        Self { mixed, mixed_bytes, zero: plan::gaps(window.span, taken) }
    }
}

/// Where the blocks that `fragments` are about differ; they lie in `span`, or begin behind its end.
async fn mixed(
    resolver: &Resolver,
    store: &dyn Disk,
    span: Span,
    fragments: Vec<Fragment>,
) -> Result<Vec<Span>, CompareError> {
    let mut found = Vec::new();
    let local = read(store, span).await?;
    for of_block in fragments.chunk_by(|a, b| a.first == b.first) {
        let block = of_block[0].first;
        // A store that is shorter than the volume ends before it.
        let Some(from) = block.offset().checked_sub(span.start).filter(|from| *from < span.len()) else { continue };
        let from = from as usize;
        let local = &local[from..local.len().min(from + BLOCK as usize)];
        let suspect = differs(resolver.keys(), local, block, of_block, Policy::Lenient);
        if !suspect.is_empty() {
            let mask = confirmed(resolver, local, of_block, suspect).await?;
            found.extend(mask_spans(block, mask).map(|sectors| sectors.intersect(span)));
        }
    }
    Ok(found)
}

/// Of the sectors that may differ, those that do: what is data is read and compared. `local` is what the store holds of
/// the block that `fragments` are about, short only where the volume ends.
pub async fn confirmed(
    resolver: &Resolver,
    local: &[u8],
    fragments: &[Fragment],
    suspect: Mask,
) -> Result<Mask, ResolveError> {
    let data: Vec<Fragment> = fragments
        .iter()
        .filter(|fragment| matches!(fragment.content, Content::Data { .. }) && !fragment.mask.and(suspect).is_empty())
        .copied()
        .collect();
    let mut different = suspect;
    for (fragment, bytes) in data.iter().zip(resolver.read_records(&data).await?) {
        let mut sectors = bytes.chunks(SECTOR as usize);
        for (first, count) in fragment.mask.runs() {
            for sector in first..first + count {
                if sectors.next().is_some_and(|remote| remote.starts_with(sector_of(local, sector))) {
                    different = different.minus(Mask::range(sector, 1));
                }
            }
        }
    }
    Ok(different)
}

/// A sector of a block that may end early, at the end of the volume or of the store.
fn sector_of(block: &[u8], sector: u32) -> &[u8] {
    let from = (sector as usize * SECTOR as usize).min(block.len());
    &block[from..block.len().min(from + SECTOR as usize)]
}

fn mask_spans(block: Block, mask: Mask) -> impl Iterator<Item = Span> {
    let runs = mask.runs().collect::<Vec<_>>().into_iter();
    runs.map(move |(first, count)| Span::at(block.offset() + u64::from(first) * SECTOR, u64::from(count) * SECTOR))
}

/// The sectors of `span` in which the store holds something else than zeroes. What it knows to be zero is not read.
async fn not_zero(store: &dyn Disk, span: Span, progress: &Progress) -> Result<Vec<Span>, CompareError> {
    let mut found = Vec::new();
    let mut at = span.start;
    while at < span.end {
        for (extent, zero) in extents(store, Span::new(at, span.end)).await? {
            at = extent.end;
            if zero {
                continue;
            }
            let mut reads = stream::iter(extent.pieces(PIECE))
                .map(|piece| async move { Ok::<_, TargetError>((piece, read(store, piece).await?)) })
                .buffered(PARALLEL);
            while let Some((piece, data)) = reads.try_next().await? {
                progress.transfer(piece.len());
                found.extend(not_zero_sectors(piece.start, &data));
            }
        }
    }
    Ok(found)
}

fn not_zero_sectors(start: u64, data: &Bytes) -> Vec<Span> {
    if is_zero(data) {
        return Vec::new();
    }
    let sectors = data.chunks(SECTOR as usize).enumerate().filter(|(_, sector)| !is_zero(sector));
    sectors.map(|(i, sector)| Span::at(start + i as u64 * SECTOR, sector.len() as u64)).collect()
}

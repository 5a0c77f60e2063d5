//! Compares what was read of the store with what an entry says, sector by sector, while clients write.
//!
//! What changed after the entry's cut is passed over. Of the copy mostly hashes are read; its data only where a hash does
//! not decide, or says no. Ranges that are trimmed or unreadable in the copy compare with anything.

use std::time::Duration;

use bytes::Bytes;
use tracing::warn;

use super::status::Report;
use super::upload::with_causes;
use crate::chain::differs::{Policy, differs};
use crate::chain::resolve::{Content, Fragment, ResolveError, Resolver};
use crate::format::Keys;
use crate::restore::compare::confirmed;
use crate::task;
use crate::units::{BLOCK, Block, Mask, SECTOR, Span};
use crate::volume::scan::Part;
use crate::volume::watch::{Seen, sectors_of};

/// Between two questions to a remote that does not answer.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(15);

static ZEROES: [u8; BLOCK as usize] = [0; BLOCK as usize];

/// What a comparison found, in bytes.
#[derive(Debug, Default)]
pub struct Tally {
    pub compared: u64,
    /// Not compared, since it changed after the copy.
    pub changed: u64,
    /// Not compared, since the store cannot read it.
    pub unreadable: u64,
    /// Of what was compared, what the copy has data for.
    pub data: u64,
    /// Disjoint, in no order.
    pub different: Vec<Span>,
}

impl Tally {
    pub fn add(&mut self, other: Self) {
        self.compared += other.compared;
        self.changed += other.changed;
        self.unreadable += other.unreadable;
        self.data += other.data;
        self.different.extend(other.different);
    }
}

/// A block that differs, as far as hashes tell.
struct Suspect {
    block: Block,
    mask: Mask,
    local: Bytes,
    fragments: Vec<Fragment>,
}

/// Compares `seen` with what `copy` says, of a volume of `size` bytes. Waits as long as the remote is away.
pub async fn compare(copy: &Resolver, report: &Report, seen: Seen, size: u64) -> Result<Tally, ResolveError> {
    let first = Block::of(seen.span.start);
    let count = seen.span.end.div_ceil(BLOCK) - first.0;
    if seen.parts.is_empty() {
        // A hole over nothing, as most of a sparse volume is, costs a page and no look at its blocks.
        let next = answered(report, || copy.next_named(first)).await?;
        if next.is_none_or(|next| next.0 >= first.0 + count) {
            let changed = zip_blocks(&seen).map(|(block, changed)| bytes_of(block, changed, seen.span, size)).sum();
            return Ok(Tally { compared: seen.span.len() - changed, changed, ..Tally::default() });
        }
    }
    let held = answered(report, || copy.resolve(first, count)).await?;
    let keys = copy.keys().clone();
    let looked = task::unhurried(move || suspects(&keys, &seen, size, &held)).await;
    let (mut tally, suspects) = looked.expect("comparing does not panic");
    for Suspect { block, mask, local, fragments } in suspects {
        let confirmed = answered(report, || confirmed(copy, &local, &fragments, mask)).await;
        let mask = confirmed.map(|confirmed| confirmed.and(mask)).unwrap_or_else(|error| {
            let error = with_causes(&error);
            warn!(volume = report.volume(), %block, error, "the copy is damaged here");
            mask
        });
        tally.different.extend(spans_of(block.0, mask, size));
    }
    Ok(tally)
}

/// Each block of the piece, with what changed of it.
fn zip_blocks(seen: &Seen) -> impl Iterator<Item = (u64, Mask)> + '_ {
    (seen.span.start / BLOCK..seen.span.end.div_ceil(BLOCK)).zip(seen.changed.iter().copied())
}

fn suspects(keys: &Keys, seen: &Seen, size: u64, held: &[Fragment]) -> (Tally, Vec<Suspect>) {
    let (mut tally, mut suspects) = (Tally::default(), Vec::new());
    let mut from = 0;
    for (block, changed) in zip_blocks(seen) {
        let within = Span::at(block * BLOCK, BLOCK).intersect(seen.span);
        let (local, unreadable) = local_of(block, within, &seen.parts);
        let present = sectors_of(block, within);
        let compared = present.minus(changed).minus(unreadable);
        from += held[from..].partition_point(|fragment| fragment.first.0 + fragment.count <= block);
        let fragments: Vec<Fragment> =
            held[from..].iter().take_while(|fragment| fragment.first.0 <= block).copied().collect();
        let data = fragments.iter().filter(|fragment| matches!(fragment.content, Content::Data { .. }));
        let data = data.fold(Mask::NONE, |data, fragment| data.or(fragment.mask));
        tally.compared += bytes_of(block, compared, seen.span, size);
        tally.changed += bytes_of(block, changed.and(present), seen.span, size);
        tally.unreadable += bytes_of(block, unreadable.minus(changed), seen.span, size);
        tally.data += bytes_of(block, data.and(compared), seen.span, size);
        if compared.is_empty() {
            continue;
        }
        let mask = differs(keys, &local, Block(block), &fragments, Policy::Lenient).and(compared);
        if !mask.is_empty() {
            suspects.push(Suspect { block: Block(block), mask, local, fragments });
        }
    }
    (tally, suspects)
}

/// The bytes of a block from its beginning, as far as `within` goes, and its sectors that cannot be read. What lies in
/// none of the parts is zero.
fn local_of(block: u64, within: Span, parts: &[(Span, Part)]) -> (Bytes, Mask) {
    let begin = block * BLOCK;
    let mut local: Option<Vec<u8>> = None;
    let mut unreadable = Mask::NONE;
    for (span, part) in parts.iter().filter(|(span, _)| span.overlaps(within)) {
        let common = span.intersect(within);
        match part {
            Part::Unreadable => unreadable = unreadable.or(sectors_of(block, common)),
            Part::Data(data) => {
                let from = (common.start - span.start) as usize;
                let data = data.slice(from..from + common.len() as usize);
                if common == within && within.start == begin {
                    return (data, Mask::NONE);
                }
                let local = local.get_or_insert_with(|| vec![0; BLOCK as usize]);
                local[(common.start - begin) as usize..(common.end - begin) as usize].copy_from_slice(&data);
            }
        }
    }
    (local.map_or(Bytes::from_static(&ZEROES), Bytes::from), unreadable)
}

fn spans_of(block: u64, mask: Mask, size: u64) -> impl Iterator<Item = Span> {
    let runs: Vec<_> = mask.runs().collect();
    runs.into_iter().map(move |(first, count)| {
        let start = block * BLOCK + u64::from(first) * SECTOR;
        Span::new(start, (start + u64::from(count) * SECTOR).min(size))
    })
}

/// Bytes of the sectors of `mask`, as far as they lie in `span`.
fn bytes_of(block: u64, mask: Mask, span: Span, size: u64) -> u64 {
    spans_of(block, mask, size).map(|sectors| sectors.intersect(span).len()).sum()
}

/// Asks the remote copy until it answers, however long the remote is away.
pub async fn answered<T, F: Future<Output = Result<T, ResolveError>>>(
    report: &Report,
    mut ask: impl FnMut() -> F,
) -> Result<T, ResolveError> {
    let mut pause = PAUSE_MIN;
    loop {
        match ask().await {
            Err(error) if error.is_transient() => {
                let error = with_causes(&error);
                warn!(volume = report.volume(), error, retry_in = ?pause, "the remote is not available");
                report.failed(error);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
            answer => {
                if answer.is_ok() && pause > PAUSE_MIN {
                    report.reached();
                }
                return answer;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_put_together_from_the_parts_that_could_be_read() {
        let block = Span::at(BLOCK, BLOCK);
        let data = |span: Span, byte: u8| (span, Part::Data(Bytes::from(vec![byte; span.len() as usize])));
        let parts = [
            data(Span::new(0, BLOCK + 512), 1),
            (Span::new(BLOCK + 512, BLOCK + 4096), Part::Unreadable),
            data(Span::new(BLOCK + 4096, 2 * BLOCK + 4096), 2),
        ];
        let (local, unreadable) = local_of(1, block, &parts);
        assert_eq!(unreadable, Mask::range(1, 7));
        assert_eq!((local[0], local[511], local[512], local[4096], local[65535]), (1, 1, 0, 2, 2));
        let (whole, unreadable) = local_of(0, Span::at(0, BLOCK), &parts);
        assert_eq!((whole.len() as u64, unreadable), (BLOCK, Mask::NONE));
        let (hole, _) = local_of(7, Span::at(7 * BLOCK, BLOCK), &[]);
        assert!(hole.iter().all(|&byte| byte == 0));
        assert_eq!(bytes_of(1, Mask::range(0, 2), Span::new(0, BLOCK + 700), BLOCK + 700), 700);
    }
}

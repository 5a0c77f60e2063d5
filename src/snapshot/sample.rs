//! Compares, when a volume is opened, some of it with the newest entry.
//!
//! *What was written last.* A store that was set back to an earlier state (a snapshot of a LUN, or of the machine with all its disks) looks like
//! one that is current to every mark and counter that was set back with it. It differs where it was written last.
//!
//! What is marked or was changed since is expected to differ, and is passed over ([`crate::volume::watch`]).
//!
//! *Blocks from everywhere*, where something is going to be compared anyway. A blank disk, or another one, that bears the
//! name of the one that was shadowed must not become the newest point: it differs nearly everywhere.
//!
//! Crash: the next opening looks again.

use std::collections::{BTreeSet, HashMap};
use std::num::NonZeroU64;
use std::time::Duration;

use tracing::{debug, error, info};

use super::compare::{Pace, WINDOW};
use super::piece::{self, Tally, answered};
use super::status::{Base, Report};
use super::upload::with_causes;
use crate::chain::resolve::{ResolveError, Resolver};
use crate::units::{BLOCK, Block, KIB, MIB, Span};
use crate::volume::Volume;
use crate::volume::scan::Interrupted;

/// What is compared at most: a second of reading, and as good as certain to hold what was written last.
const SAMPLE: u64 = 64 * MIB;
/// Where reading is limited, no more than this takes: points wait for it.
const TIME_MAX: Duration = Duration::from_secs(10);
/// Watches, one after the other: each looks at all that is not published.
const WINDOWS_MAX: usize = 256;
/// Read in units of this, since disks are.
const UNIT: u64 = 4 * KIB;

/// Blocks from everywhere that are compared, about: their part that differs is then known to a few percent.
const BLOCKS: usize = 256;
/// Fewer say nothing: all of a small volume may well have been changed.
const BLOCKS_MIN: usize = 64;
/// More is another disk.
const PERCENT_MAX: u32 = 30;
/// Places that are asked for the next block, before those found have to do.
const PLACES_MAX: u64 = 4096;

const _: () = assert!(WINDOW.is_multiple_of(BLOCK) && BLOCK.is_multiple_of(UNIT));

/// Compares a sample; what differs makes the volume distrust its base, which is a full comparison. Waits for the remote.
pub async fn compare(volume: &Volume, report: &Report, base: Base, rate: Option<NonZeroU64>) {
    if volume.scan_left() >= volume.size() {
        return;
    }
    let tally = match look(volume, report, &base, rate).await {
        Ok(tally) => tally,
        Err(error) => {
            let error = with_causes(&error);
            info!(volume = volume.name(), error, "what was written last cannot be compared");
            return;
        }
    };
    match tally.different.first() {
        None => debug!(volume = volume.name(), bytes = tally.compared, "what was written last is as it was"),
        Some(first) => {
            let bytes: u64 = tally.different.iter().map(|span| span.len()).sum();
            error!(
                volume = volume.name(), bytes, of = tally.compared, %first,
                "the store is not what was published last: it, or this gateway, was set back or changed meanwhile; \
                 comparing everything"
            );
            volume.distrust_base().await;
        }
    }
}

/// Compares blocks from everywhere that should be as `entry` shows them, a draft too: what percentage of their data
/// differs. None if it is little, or there are too few to tell. Waits for the remote.
pub async fn is_another(volume: &Volume, report: &Report, copy: &Resolver) -> Option<u32> {
    let percent = match look_everywhere(volume, report, copy).await {
        Ok(percents) if percents.len() >= BLOCKS_MIN => percents.iter().sum::<u32>() / percents.len() as u32,
        Ok(_) => 0,
        Err(error) => {
            let error = with_causes(&error);
            info!(volume = volume.name(), error, "whether this is the store that was shadowed cannot be known");
            0
        }
    };
    (percent > PERCENT_MAX).then_some(percent)
}

/// Of each block of the sample, what percentage of the data that the copy has of it differs.
async fn look_everywhere(volume: &Volume, report: &Report, copy: &Resolver) -> Result<Vec<u32>, ResolveError> {
    let size = volume.size().min(copy.size());
    let span_of = |block: u64| Span::new(block * BLOCK, ((block + 1) * BLOCK).min(volume.size()));
    let mut blocks = BTreeSet::new();
    let mut places = BLOCKS as u64;
    while blocks.len() < BLOCKS && places <= PLACES_MAX {
        // Named by what was asked last: what lies before it need not be asked again.
        let mut named = None;
        for place in 0..places {
            let from = Block(size.div_ceil(BLOCK) * place / places);
            if named.is_some_and(|named| from <= named) {
                continue;
            }
            named = answered(report, || copy.next_named(from)).await?;
            match named {
                Some(block) if block.0 * BLOCK < size => blocks.insert(block.0),
                _ => break,
            };
        }
        blocks.retain(|block| volume.should_be_as_shown(span_of(*block)));
        places *= 4;
    }
    let every = (blocks.len() / BLOCKS).max(1);
    let mut percents = Vec::new();
    for block in blocks.into_iter().step_by(every) {
        let Ok(seen) = volume.peek(span_of(block)).await else { break };
        // What was written meanwhile may have been seen.
        if !volume.should_be_as_shown(span_of(block)) {
            continue;
        }
        let tally = piece::compare(copy, report, seen, volume.size()).await?;
        if tally.data > 0 {
            let different = tally.different.iter().map(|span| span.len()).sum::<u64>().min(tally.data);
            percents.push((different * 100 / tally.data) as u32);
        }
    }
    Ok(percents)
}

async fn look(volume: &Volume, report: &Report, base: &Base, rate: Option<NonZeroU64>) -> Result<Tally, ResolveError> {
    let copy = Resolver::new(base.remote.clone(), base.volume, &base.entry, None)?;
    let bytes = rate.map_or(SAMPLE, |rate| SAMPLE.min(rate.get() * TIME_MAX.as_secs()));
    let recent = answered(report, || copy.recently_written(bytes)).await?;
    let pace = Pace::new(rate);
    let mut tally = Tally::default();
    for (window, spans) in by_window(recent, volume.size().min(base.entry.size)) {
        let Some(watch) = volume.watch(window) else { break };
        if watch.since() > base.cut {
            break;
        }
        for span in spans {
            let mut start = span.start;
            while start < span.end {
                pace.wait().await;
                // Whatever interrupts is a reason for a resync by itself.
                let Ok(seen) = watch.read(Span::new(start, span.end)).await.map_err(|Interrupted| ()) else {
                    return Ok(tally);
                };
                start = seen.span.end;
                pace.read(seen.span.len());
                tally.add(piece::compare(&copy, report, seen, volume.size()).await?);
            }
        }
    }
    Ok(tally)
}

/// The spans of each window, joined and in whole units, windows in the order of their first span.
fn by_window(recent: Vec<Span>, size: u64) -> Vec<(Span, Vec<Span>)> {
    let mut places: HashMap<u64, usize> = HashMap::new();
    let mut windows: Vec<(Span, Vec<Span>)> = Vec::new();
    for span in recent.into_iter().filter(|span| span.start < size) {
        let span = Span::new(span.start, span.end.min(size)).rounded_out(UNIT);
        let span = Span::new(span.start, span.end.min(size));
        // A span lies in one block, and so in one window.
        let number = span.start / WINDOW;
        let place = match places.get(&number) {
            Some(place) => *place,
            None if windows.len() == WINDOWS_MAX => continue,
            None => {
                windows.push((Span::new(number * WINDOW, ((number + 1) * WINDOW).min(size)), Vec::new()));
                places.insert(number, windows.len() - 1);
                windows.len() - 1
            }
        };
        windows[place].1.push(span);
    }
    windows.iter_mut().for_each(|(_, spans)| join(spans));
    windows
}

fn join(spans: &mut Vec<Span>) {
    spans.sort_unstable();
    spans.dedup_by(|next, last| {
        let joins = next.start <= last.end;
        if joins {
            last.end = last.end.max(next.end);
        }
        joins
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_joined_window_by_window() {
        let size = 3 * WINDOW + 700;
        let recent = vec![
            Span::new(WINDOW + 512, WINDOW + 1024),
            Span::new(3 * WINDOW, 3 * WINDOW + 1024),
            Span::new(WINDOW + 4096, WINDOW + 8192),
            Span::new(4 * WINDOW, 4 * WINDOW + 512),
            Span::new(WINDOW + 512, WINDOW + 4096),
        ];
        let expected = [
            (Span::new(WINDOW, 2 * WINDOW), vec![Span::new(WINDOW, WINDOW + 8192)]),
            (Span::new(3 * WINDOW, size), vec![Span::new(3 * WINDOW, size)]),
        ];
        assert_eq!(by_window(recent, size), expected);
    }
}

//! What is to be done for one window of a volume: which bytes become zero, and which records are read together.
//! Pure: decides, and touches nothing.

use crate::chain::resolve::{Content, Fragment, PackId};
use crate::format::{PackContent, Void};
use crate::units::{BLOCK, KIB, MIB, Mask, SECTOR, Span};

/// The longest stretch of a pack that is got at once, and the most bytes that it may decode to: some ten of them hide
/// the round trips of a fast line, and fit into memory.
const BATCH_MAX: u64 = 4 * MIB;
/// Up to so many bytes that nobody wants are read along: cheaper than another request.
const GAP_MAX: u64 = 64 * KIB;

/// Records of one pack that lie close together.
#[derive(Debug)]
pub struct Batch {
    pub fragments: Vec<Fragment>,
    /// Bytes of the pack from the first to the last record.
    pub stored: u64,
    /// Bytes of the volume.
    pub plain: u64,
}

/// The bytes of a volume of `size` that a fragment is about, in order.
pub fn spans(fragment: &Fragment, size: u64) -> impl Iterator<Item = Span> + use<> {
    let start = fragment.first.offset();
    let volume = Span::new(0, size);
    let (whole, runs) = match fragment.mask {
        Mask::FULL => (Some(Span::at(start, fragment.count * BLOCK)), Mask::NONE),
        mask => (None, mask),
    };
    let runs = runs
        .runs()
        .map(move |(first, count)| Span::at(start + u64::from(first) * SECTOR, u64::from(count) * SECTOR))
        .collect::<Vec<_>>();
    whole.into_iter().chain(runs).map(move |span| span.intersect(volume)).filter(|span| !span.is_empty())
}

/// What of `window` is not data, in order. It becomes zero: what nothing names, what was zeroed or trimmed, and what
/// could not be read when the copy was made.
pub fn not_data(window: Span, fragments: &[Fragment]) -> Vec<Span> {
    let data = fragments.iter().filter(|fragment| matches!(fragment.content, Content::Data { .. }));
    gaps(window, data.flat_map(|fragment| spans(fragment, window.end)).collect())
}

/// What of `window` lies in none of `taken`, in order.
pub fn gaps(window: Span, mut taken: Vec<Span>) -> Vec<Span> {
    taken.sort_unstable();
    let mut gaps = Vec::new();
    let mut at = window.start;
    for span in taken.into_iter().take_while(|span| span.start < window.end) {
        if span.start > at {
            gaps.push(Span::new(at, span.start));
        }
        at = at.max(span.end);
    }
    if at < window.end {
        gaps.push(Span::new(at, window.end));
    }
    gaps
}

/// What of a volume of `size` could not be read when the copy was made.
pub fn unreadable(fragments: &[Fragment], size: u64) -> Vec<Span> {
    let unreadable = fragments.iter().filter(|fragment| fragment.content == Content::Void(Void::Unreadable));
    unreadable.flat_map(|fragment| spans(fragment, size)).collect()
}

/// The data of a window, in the order in which it lies in the packs, cut into what is read at once.
pub fn batches(fragments: Vec<Fragment>) -> Vec<Batch> {
    let mut located: Vec<_> =
        fragments.into_iter().filter_map(|fragment| Some((place(&fragment)?, fragment))).collect();
    located.sort_unstable_by_key(|(place, _)| *place);
    let mut batches: Vec<Batch> = Vec::new();
    let mut last: Option<Place> = None;
    let mut begin = 0;
    for (place, fragment) in located {
        let plain = u64::from(fragment.mask.count()) * SECTOR;
        let joined = last.is_some_and(|last| last.pack == place.pack && place.start <= last.end + GAP_MAX);
        match batches.last_mut() {
            Some(batch) if joined && place.end - begin <= BATCH_MAX && batch.plain + plain <= BATCH_MAX => {
                batch.fragments.push(fragment);
                batch.stored = place.end - begin;
                batch.plain += plain;
            }
            _ => {
                begin = place.start;
                batches.push(Batch { fragments: vec![fragment], stored: place.end - begin, plain });
            }
        }
        last = Some(place);
    }
    batches
}

/// Where a record lies; ordered by pack, then offset.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    pack: PackId,
    start: u64,
    end: u64,
}

fn place(fragment: &Fragment) -> Option<Place> {
    let Content::Data { pack, record } = fragment.content else { return None };
    let PackContent::Data(stored) = record.content else { return None };
    let end = stored.offset + u64::from(stored.length);
    Some(Place { pack, start: stored.offset, end })
}

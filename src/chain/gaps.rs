//! What of a range of blocks is still looked for, sector by sector.

use std::collections::BTreeMap;

use crate::units::{Block, Mask};

/// Disjoint extents by first block; more than one block only where whole blocks are missing, so that a range of any
/// size costs nothing until something is found in it.
#[derive(Default)]
pub(super) struct Gaps(BTreeMap<u64, (u64, Mask)>);

impl Gaps {
    /// Adds what the gaps do not have yet; `mask` is full if `count` is over 1.
    pub(super) fn add(&mut self, first: Block, count: u64, mask: Mask) {
        if count > 0 && !mask.is_empty() {
            let gap = self.0.entry(first.0).or_insert((count, Mask::NONE));
            gap.1 = gap.1.or(mask);
        }
    }

    pub(super) fn first(&self) -> Option<Block> {
        self.0.first_key_value().map(|(first, _)| Block(*first))
    }

    /// Takes out what the gaps have in common with `count` blocks from `first` (1 unless `mask` is full), and tells
    /// it, in order: first block, count, mask.
    pub(super) fn take(&mut self, first: Block, count: u64, mask: Mask, mut found: impl FnMut(Block, u64, Mask)) {
        let (first, end) = (first.0, first.0 + count);
        let reaching = self.0.range(..first).next_back().filter(|(at, (length, _))| *at + length > first);
        let mut from = reaching.map_or(first, |(at, _)| *at);
        while from < end
            && let Some((&at, &(length, gap))) = self.0.range(from..end).next()
        {
            from = at + length;
            let common = gap.and(mask);
            if common.is_empty() {
                continue;
            }
            let (low, high) = (at.max(first), from.min(end));
            found(Block(low), high - low, common);
            self.0.remove(&at);
            self.add(Block(at), low - at, Mask::FULL);
            self.add(Block(high), from - high, Mask::FULL);
            // Sectors are left over only where either was a single block.
            self.add(Block(low), 1, gap.minus(mask));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(gaps: &mut Gaps, first: u64, count: u64, mask: Mask) -> Vec<(u64, u64, Mask)> {
        let mut found = Vec::new();
        gaps.take(Block(first), count, mask, |first, count, mask| found.push((first.0, count, mask)));
        found
    }

    #[test]
    fn what_was_found_is_not_looked_for_again() {
        let mut gaps = Gaps::default();
        gaps.add(Block(10), 100, Mask::FULL);
        let (low, high) = (Mask::range(0, 64), Mask::range(64, 64));
        assert_eq!(take(&mut gaps, 20, 1, low), [(20, 1, low)]);
        assert_eq!(take(&mut gaps, 5, 20, Mask::FULL), [(10, 10, Mask::FULL), (20, 1, high), (21, 4, Mask::FULL)]);
        assert_eq!(take(&mut gaps, 0, 25, Mask::FULL), []);
        assert_eq!(take(&mut gaps, 109, 1, high), [(109, 1, high)]);
        assert_eq!(take(&mut gaps, 0, 1 << 40, Mask::FULL), [(25, 84, Mask::FULL), (109, 1, low)]);
        assert_eq!(gaps.first(), None);
    }
}

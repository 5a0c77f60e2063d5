//! A set of regions of a volume: one bit each, 2 MiB for 64 TiB.

use std::ops::Range;

use crate::units::{REGION, Span};

/// Regions 0, 1, 2 … of a volume, each in the set or not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegionSet {
    words: Vec<u64>,
    regions: u64,
    members: u64,
}

impl RegionSet {
    /// The empty set over a volume of `size` bytes.
    pub fn new(size: u64) -> Self {
        let regions = size.div_ceil(REGION);
        Self { words: vec![0; regions.div_ceil(64) as usize], regions, members: 0 }
    }

    /// How many regions the volume has.
    pub fn regions(&self) -> u64 {
        self.regions
    }

    /// Extends the set over a volume of `size` bytes, no smaller than before; what is new is not in it.
    pub fn grow(&mut self, size: u64) {
        debug_assert!(size.div_ceil(REGION) >= self.regions);
        self.regions = size.div_ceil(REGION);
        self.words.resize(self.regions.div_ceil(64) as usize, 0);
    }

    /// The empty set over the same volume.
    pub fn emptied(&self) -> Self {
        Self { words: vec![0; self.words.len()], regions: self.regions, members: 0 }
    }

    /// How many regions are in the set.
    pub fn len(&self) -> u64 {
        self.members
    }

    pub fn is_empty(&self) -> bool {
        self.members == 0
    }

    pub fn contains(&self, region: u64) -> bool {
        self.words[(region / 64) as usize] >> (region % 64) & 1 == 1
    }

    /// Adds every region that the bytes touch; a word at a time, for a trim may touch them all.
    pub fn insert(&mut self, span: Span) {
        let (start, end) = self.touched(span);
        self.insert_regions(start..end);
    }

    /// Removes every region that the bytes touch.
    pub fn remove(&mut self, span: Span) {
        let (start, end) = self.touched(span);
        self.remove_regions(start..end);
    }

    /// Adds every region that the bytes touch and that is in none of two other sets over the same volume.
    pub fn insert_except(&mut self, span: Span, one: &Self, other: &Self) {
        let (start, end) = self.touched(span);
        self.update_at(start..end, |at, word, bits| *word |= bits & !one.words[at] & !other.words[at]);
    }

    /// Adds regions by their numbers; what is beyond the volume's end is left out.
    pub fn insert_regions(&mut self, run: Range<u64>) {
        self.update(run, |word, bits| *word |= bits);
    }

    /// Removes regions by their numbers.
    pub fn remove_regions(&mut self, run: Range<u64>) {
        self.update(run, |word, bits| *word &= !bits);
    }

    fn update(&mut self, run: Range<u64>, change: impl Fn(&mut u64, u64)) {
        self.update_at(run, |_, word, bits| change(word, bits));
    }

    fn update_at(&mut self, run: Range<u64>, change: impl Fn(usize, &mut u64, u64)) {
        let (mut region, end) = (run.start, run.end.min(self.regions));
        while region < end {
            let bit = region % 64;
            let count = (64 - bit).min(end - region);
            let bits = (u64::MAX >> (64 - count)) << bit;
            let at = (region / 64) as usize;
            let word = &mut self.words[at];
            let before = word.count_ones();
            change(at, word, bits);
            self.members = self.members + u64::from(word.count_ones()) - u64::from(before);
            region += count;
        }
    }

    /// Whether every region that the bytes touch is in the set.
    pub fn contains_all(&self, span: Span) -> bool {
        let (start, end) = self.touched(span);
        self.next_absent(start, end) >= end
    }

    /// Whether any region that the bytes touch is in the set.
    pub fn contains_any(&self, span: Span) -> bool {
        let (start, end) = self.touched(span);
        self.next_before(start, end).is_some()
    }

    /// The first region in the set that is not before `region`.
    pub fn next_from(&self, region: u64) -> Option<u64> {
        self.next_before(region, self.regions)
    }

    /// The first region in the set that is neither before `region` nor, as all that is looked at, at `end` or after it.
    fn next_before(&self, region: u64, end: u64) -> Option<u64> {
        let mut from = region;
        while from < end {
            let word = self.words[(from / 64) as usize] >> (from % 64);
            if word != 0 {
                return Some(from + u64::from(word.trailing_zeros())).filter(|&found| found < end);
            }
            from = (from / 64 + 1) * 64;
        }
        None
    }

    /// The first region that is not in the set and not before `region`; looked for before `end` only, and `end` (or
    /// the number of regions) if there is none.
    pub fn next_absent(&self, region: u64, end: u64) -> u64 {
        let end = end.min(self.regions);
        let mut from = region;
        while from < end {
            let absent = !self.words[(from / 64) as usize] >> (from % 64);
            if absent != 0 {
                return (from + u64::from(absent.trailing_zeros())).min(end);
            }
            from = (from / 64 + 1) * 64;
        }
        end
    }

    /// The runs of consecutive regions in the set, in order.
    pub fn runs(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut from = 0;
        std::iter::from_fn(move || {
            let start = self.next_from(from)?;
            from = self.next_absent(start, self.regions);
            Some(start..from)
        })
    }

    /// Words of 64 regions from word `first` on; zero beyond the end.
    pub(super) fn words<const N: usize>(&self, first: usize) -> [u64; N] {
        std::array::from_fn(|at| self.words.get(first + at).copied().unwrap_or(0))
    }

    /// Replaces words of 64 regions from word `first` on; what is beyond the end is left out.
    pub(super) fn set_words(&mut self, first: usize, words: &[u64]) {
        for (at, found) in (first..self.words.len()).zip(words) {
            let there = (self.regions - at as u64 * 64).min(64);
            let word = found & (u64::MAX >> (64 - there));
            self.members = self.members + u64::from(word.count_ones()) - u64::from(self.words[at].count_ones());
            self.words[at] = word;
        }
    }

    /// Adds all regions of a set over the same volume.
    pub fn add(&mut self, other: &Self) {
        self.combine(other, |word, other| *word |= other);
    }

    /// Removes all regions of a set over the same volume.
    pub fn subtract(&mut self, other: &Self) {
        self.combine(other, |word, other| *word &= !other);
    }

    /// Removes every region.
    pub fn clear(&mut self) {
        self.words.fill(0);
        self.members = 0;
    }

    fn combine(&mut self, other: &Self, change: impl Fn(&mut u64, u64)) {
        debug_assert_eq!(self.regions, other.regions);
        let mut members = 0;
        for (word, other) in self.words.iter_mut().zip(&other.words) {
            change(word, *other);
            members += u64::from(word.count_ones());
        }
        self.members = members;
    }

    fn touched(&self, span: Span) -> (u64, u64) {
        let out = span.rounded_out(REGION);
        let end = (out.end / REGION).min(self.regions);
        ((out.start / REGION).min(end), end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_touches_the_regions_of_its_first_and_last_byte_and_all_between() {
        let mut set = RegionSet::new(300 * REGION);
        set.insert(Span::new(REGION - 1, 200 * REGION + 1));
        assert_eq!(set.len(), 201);
        assert!(set.contains(0) && set.contains(200) && !set.contains(201));
        set.remove(Span::new(REGION, 100 * REGION));
        assert_eq!(set.len(), 102);
        assert_eq!(set.next_from(1), Some(100));
        assert_eq!(set.next_from(201), None);
        assert_eq!(set.next_absent(100, u64::MAX), 201);
        assert_eq!(set.next_absent(100, 150), 150);
        assert_eq!(set.next_absent(250, 1000), 250);
        assert!(set.contains_all(Span::new(100 * REGION, 201 * REGION)));
        assert!(!set.contains_all(Span::new(99 * REGION, 101 * REGION)));
        assert!(set.contains_any(Span::new(99 * REGION, 101 * REGION)));
        assert!(!set.contains_any(Span::new(REGION, 100 * REGION)));
    }
}

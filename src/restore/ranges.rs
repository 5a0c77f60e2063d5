//! A list of byte ranges for people: joined where they touch, counted exactly, and bounded in memory.

use crate::units::Span;

/// As many ranges as are kept (1.6 MB); what is beyond is counted, not listed.
pub const LISTED_MAX: usize = 100_000;

/// Ranges in ascending order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges {
    listed: Vec<Span>,
    bytes: u64,
    unlisted: u64,
}

impl Ranges {
    /// Ranges that somebody else counted: those listed, in order, and how much there is in all.
    pub fn counted(listed: Vec<Span>, bytes: u64, unlisted: u64) -> Self {
        Self { listed, bytes, unlisted }
    }

    /// Adds ranges that all lie behind what was added before, among themselves in any order and disjoint.
    pub fn append(&mut self, mut spans: Vec<Span>) {
        spans.sort_unstable();
        for span in spans.into_iter().filter(|span| !span.is_empty()) {
            self.bytes += span.len();
            let room = self.listed.len() < LISTED_MAX;
            match self.listed.last_mut() {
                Some(last) if last.end == span.start => last.end = span.end,
                _ if room => self.listed.push(span),
                _ => self.unlisted += 1,
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// All bytes in all ranges, listed or not.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn listed(&self) -> &[Span] {
        &self.listed
    }

    /// How many pieces were counted in [`Ranges::bytes`] and not listed.
    pub fn unlisted(&self) -> u64 {
        self.unlisted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_are_one_and_the_others_stay_apart() {
        let mut ranges = Ranges::default();
        ranges.append(vec![Span::new(20, 30), Span::new(0, 10), Span::new(10, 20)]);
        ranges.append(vec![Span::new(30, 31), Span::new(40, 41), Span::new(50, 50)]);
        assert_eq!(ranges.listed(), [Span::new(0, 31), Span::new(40, 41)]);
        assert_eq!((ranges.bytes(), ranges.unlisted()), (32, 0));
    }

    #[test]
    fn what_is_beyond_the_bound_is_counted() {
        let mut ranges = Ranges::default();
        ranges.append((0..LISTED_MAX as u64 + 5).map(|i| Span::at(i * 2, 1)).collect());
        assert_eq!(ranges.listed().len(), LISTED_MAX);
        assert_eq!((ranges.bytes(), ranges.unlisted()), (LISTED_MAX as u64 + 5, 5));
    }
}

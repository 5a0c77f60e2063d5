//! The gateway's counter of client operations, never used twice: it restarts above a durable high-water mark.
//!
//! One counter serves all volumes, so that a cut over several of them is exact. The mark is reserved in steps of
//! 2²⁰ and renewed in the background long before it is reached, so that taking a number does no I/O. A gateway
//! without a mark starts at the seconds since 1970 × 2²⁰, above whatever an earlier state folder could have used.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::units::Sequence;

/// Numbers reserved at a time. At a million operations a second it lasts a second, the period of renewal.
pub const STEP: u64 = 1 << 20;

pub struct Sequences {
    newest: AtomicU64,
    /// Durable: no number above it may be taken.
    reserved: AtomicU64,
}

impl Sequences {
    /// Numbers above `mark`, the durable high-water mark of the last run; none may be taken before
    /// [`Self::reserved_through`] was called.
    pub fn above(mark: u64) -> Self {
        Self { newest: AtomicU64::new(mark), reserved: AtomicU64::new(mark) }
    }

    /// The next number; none if all that are reserved have been taken.
    pub fn take(&self) -> Option<Sequence> {
        let reserved = self.reserved.load(Ordering::Acquire);
        self.newest
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |newest| (newest < reserved).then_some(newest + 1))
            .ok()
            .map(|newest| Sequence(newest + 1))
    }

    /// The number taken last.
    pub fn newest(&self) -> Sequence {
        Sequence(self.newest.load(Ordering::Relaxed))
    }

    /// The mark to make durable next, if the reserve is less than half.
    pub fn wanted(&self) -> Option<u64> {
        let newest = self.newest.load(Ordering::Relaxed);
        let left = self.reserved.load(Ordering::Relaxed).saturating_sub(newest);
        (left < STEP / 2).then_some(newest + STEP)
    }

    /// `mark` is durable now.
    pub fn reserved_through(&self, mark: u64) {
        self.reserved.fetch_max(mark, Ordering::Release);
    }

    /// Continues above `sequence`, which the chain shows; takes effect with the next reservation if it lies beyond
    /// what is reserved.
    pub fn raise_above(&self, sequence: Sequence) {
        self.newest.fetch_max(sequence.0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counterexample 11.
    #[test]
    fn no_number_is_taken_beyond_what_is_durably_reserved() {
        let sequences = Sequences::above(10);
        assert_eq!(sequences.take(), None);
        let mark = sequences.wanted().expect("nothing is reserved");
        sequences.reserved_through(mark);
        assert_eq!(sequences.take(), Some(Sequence(11)));
        assert_eq!(sequences.wanted(), None);
        sequences.raise_above(Sequence(mark));
        assert_eq!(sequences.take(), None, "the chain is ahead of what is reserved");
        sequences.reserved_through(sequences.wanted().unwrap());
        assert_eq!(sequences.take(), Some(Sequence(mark + 1)));
    }
}

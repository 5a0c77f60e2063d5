//! What a flush proves when others are under way with it.
//!
//! A store tells of a failed write once: of two flushes that are under way together one may be told and the other succeed,
//! though both were to cover it. So a success counts only when all that was under way with it has ended, and nothing of
//! that has failed. Changes that are to be durable by themselves (FUA) count like flushes.
//!
//! Pure; [`super::admission`] holds it under its lock.

use std::collections::BTreeSet;

use super::heat::FlushToken;

#[derive(Debug, Default)]
pub struct Flushes {
    last: u64,
    under_way: BTreeSet<u64>,
    /// Successes, each with the last that was under way when it came; of each token the first.
    waiting: Vec<(u64, FlushToken)>,
    /// What began up to this one was under way with a failure.
    spoiled: u64,
}

/// A flush under way; to be handed back when it is answered.
#[must_use]
#[derive(Debug)]
pub struct Flushing {
    number: u64,
    token: Option<FlushToken>,
}

impl Flushes {
    /// `token` names what its success would prove.
    pub fn begin(&mut self, token: Option<FlushToken>) -> Flushing {
        self.last += 1;
        self.under_way.insert(self.last);
        Flushing { number: self.last, token }
    }

    /// Returns all that is proven now. This success is no proof unless it `proves`.
    pub fn succeeded(&mut self, flushing: Flushing, proves: bool) -> Vec<FlushToken> {
        self.under_way.remove(&flushing.number);
        if let Some(token) = flushing.token.filter(|_| proves && flushing.number > self.spoiled)
            && self.waiting.iter().all(|(_, waiting)| *waiting != token)
        {
            self.waiting.push((self.last, token));
        }
        let oldest = self.under_way.first().copied().unwrap_or(u64::MAX);
        self.waiting.extract_if(.., |(through, _)| *through < oldest).map(|(_, token)| token).collect()
    }

    pub fn failed(&mut self, flushing: Flushing) {
        self.under_way.remove(&flushing.number);
        self.waiting.clear();
        self.spoiled = self.last;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_success_counts_when_all_that_was_under_way_with_it_has_succeeded() {
        let mut flushes = Flushes::default();
        let token = |number| Some(FlushToken(number));
        let first = flushes.begin(token(1));
        assert_eq!(flushes.succeeded(first, true), [FlushToken(1)], "alone");

        let (first, second) = (flushes.begin(token(2)), flushes.begin(None));
        assert_eq!(flushes.succeeded(first, true), []);
        let third = flushes.begin(token(3));
        assert_eq!(flushes.succeeded(second, true), [FlushToken(2)], "what began after the success does not matter");
        assert_eq!(flushes.succeeded(third, false), [], "answered by a store that came back");

        let (first, second) = (flushes.begin(token(4)), flushes.begin(None));
        assert_eq!(flushes.succeeded(first, true), []);
        flushes.failed(second);
        let (third, fourth) = (flushes.begin(token(5)), flushes.begin(None));
        flushes.failed(fourth);
        assert_eq!(flushes.succeeded(third, true), [], "neither 4 nor 5 is proven by a success beside a failure");
        let fifth = flushes.begin(token(6));
        assert_eq!(flushes.succeeded(fifth, true), [FlushToken(6)]);
    }

    #[test]
    fn successes_that_wait_for_one_that_hangs_take_no_room() {
        let mut flushes = Flushes::default();
        let hangs = flushes.begin(None);
        for _ in 0..1000 {
            let flushing = flushes.begin(Some(FlushToken(1)));
            assert_eq!(flushes.succeeded(flushing, true), []);
        }
        assert_eq!(flushes.waiting.len(), 1);
        assert_eq!(flushes.succeeded(hangs, true), [FlushToken(1)]);
    }
}

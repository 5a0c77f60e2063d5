//! The operations that are logged and in no entry of the chain yet: how far the remote copy is behind.
//!
//! Owns: their descriptors, which are those after the published cut without a gap, so that an index is a place; what
//! they come to; how old the oldest is. Does not own: which of them are done ([`super::progress`]), the log, what lies
//! behind the chain without a descriptor.

use std::collections::VecDeque;

use tokio::time::Instant;

use super::descriptor::{Descriptor, Effect};
use super::progress::Cut;
use crate::units::{LogIndex, Sequence, Span};

/// Operations that are remembered at most (96 MiB of descriptors); one more is an overflow.
pub const DESCRIPTORS_MAX: usize = 4 << 20;

pub struct Backlog {
    published: Cut,
    /// Of the operations after `published`, in order.
    descriptors: VecDeque<Descriptor>,
    /// Of payload.
    bytes: u64,
    writes: u64,
    /// (index, when): operations after that index were admitted after that moment. The first is not after the
    /// published cut.
    ages: VecDeque<(LogIndex, Instant)>,
}

impl Backlog {
    /// Nothing is logged after that cut.
    pub fn new(published: Cut) -> Self {
        let ages = VecDeque::from([(published.index, Instant::now())]);
        Self { published, descriptors: VecDeque::new(), bytes: 0, writes: 0, ages }
    }

    pub fn published(&self) -> Cut {
        self.published
    }

    /// Index of the newest operation, published or not.
    pub fn newest(&self) -> LogIndex {
        LogIndex(self.published.index.0 + self.descriptors.len() as u64)
    }

    pub fn is_empty(&self) -> bool {
        self.descriptors.is_empty()
    }

    pub fn is_full(&self) -> bool {
        self.descriptors.len() >= DESCRIPTORS_MAX
    }

    /// The sequences of the oldest and of the newest; none if there is nothing.
    pub fn sequences(&self) -> Option<(Sequence, Sequence)> {
        Some((self.descriptors.front()?.sequence(), self.descriptors.back()?.sequence()))
    }

    /// The ranges of all.
    pub fn spans(&self) -> impl Iterator<Item = Span> + '_ {
        self.descriptors.iter().map(|descriptor| descriptor.span())
    }

    /// The operation after the newest.
    pub fn push(&mut self, descriptor: Descriptor) {
        // Only a client's operation takes a sequence of its own.
        let before = self.descriptors.back().map_or(self.published.sequence, |last| last.sequence());
        self.writes += u64::from(descriptor.sequence() != before);
        self.bytes += descriptor.lag_bytes();
        self.descriptors.push_back(descriptor);
    }

    /// The operation had no effect, or one that is not known. It may be none of these, if they were given up meanwhile.
    pub fn void(&mut self, index: LogIndex) {
        let at = index.0.checked_sub(self.published.index.0 + 1);
        if let Some(descriptor) = at.and_then(|at| self.descriptors.get_mut(at as usize)) {
            self.bytes -= descriptor.lag_bytes();
            descriptor.void();
        }
    }

    /// The cut behind an operation that is among these, or the published one.
    pub fn cut(&self, index: LogIndex) -> Cut {
        match self.count(index).checked_sub(1) {
            Some(last) => Cut { index, sequence: self.descriptors[last].sequence() },
            None => self.published,
        }
    }

    /// The cut behind all that come before a sequence.
    pub fn cut_before(&self, sequence: Sequence) -> Cut {
        let count = self.descriptors.iter().take_while(|descriptor| descriptor.sequence() < sequence).count();
        self.cut(LogIndex(self.published.index.0 + count as u64))
    }

    /// Those through `through`.
    pub fn batch(&self, through: LogIndex) -> Vec<Descriptor> {
        self.descriptors.range(..self.count(through)).copied().collect()
    }

    /// Whether any of those through `through` has an effect.
    pub fn says_something(&self, through: LogIndex) -> bool {
        self.descriptors.range(..self.count(through)).any(|descriptor| descriptor.effect() != Effect::Nothing)
    }

    fn count(&self, through: LogIndex) -> usize {
        (through.0 - self.published.index.0) as usize
    }

    /// All through `cut` are in the chain, or need not be.
    pub fn publish(&mut self, cut: Cut) {
        let mut sequence = self.published.sequence;
        for descriptor in self.descriptors.drain(..self.count(cut.index)) {
            self.bytes -= descriptor.lag_bytes();
            self.writes -= u64::from(descriptor.sequence() != sequence);
            sequence = descriptor.sequence();
        }
        self.descriptors.shrink_to(2 * self.descriptors.len());
        self.published = cut;
        while self.ages.get(1).is_some_and(|&(newest, _)| newest <= cut.index) {
            self.ages.pop_front();
        }
    }

    /// Called once a second, so that the age of the oldest is known to a second.
    pub fn tick(&mut self, now: Instant) {
        let newest = self.newest();
        match self.ages.back_mut() {
            Some((known, at)) if *known == newest => *at = now,
            _ => self.ages.push_back((newest, now)),
        }
    }

    /// No operation is older.
    pub fn since(&self) -> Option<Instant> {
        self.ages.front().map(|&(_, at)| at).filter(|_| !self.is_empty())
    }

    /// Of payload.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn writes(&self) -> u64 {
        self.writes
    }
}

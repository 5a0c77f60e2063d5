//! Which cut can be named: every operation up to it is done, and none of its outcomes is still to be found out.
//!
//! Operations have dense log indices. One is *done* when the store has answered it (its record stands in the log
//! queue since it was admitted, so how far the log is written is one number). An operation whose outcome is unknown
//! opens a *barrier*: no cut lies between it and the record that says what the store really holds, since a cut there
//! would show a state that never was.

use std::collections::{BTreeMap, VecDeque};

use crate::failpoint::{self, Safeguard};
use crate::units::{LogIndex, Sequence};

#[derive(Debug)]
pub struct Progress {
    /// Every operation up to this one is done.
    done: LogIndex,
    /// Of the operations after `done`: which are done.
    window: VecDeque<bool>,
    /// Operation of unknown outcome → the record that settles it, once it has been admitted, for each part of it.
    barriers: BTreeMap<LogIndex, Barrier>,
}

#[derive(Debug, Default)]
struct Barrier {
    /// Read-backs not yet admitted.
    open: u32,
    /// The newest record that settles a part.
    settled: LogIndex,
}

impl Progress {
    /// Nothing in flight; the next operation is the one after `done`.
    pub fn new(done: LogIndex) -> Self {
        Self { done, window: VecDeque::new(), barriers: BTreeMap::new() }
    }

    /// Operations are admitted in the order of their indices.
    pub fn admit(&mut self, index: LogIndex) {
        debug_assert_eq!(index.0, self.done.0 + self.window.len() as u64 + 1);
        self.window.push_back(false);
    }

    pub fn complete(&mut self, index: LogIndex) {
        let at = (index.0 - self.done.0 - 1) as usize;
        self.window[at] = true;
        while self.window.front() == Some(&true) {
            self.window.pop_front();
            self.done = self.done.next();
        }
    }

    /// The operation's outcome, in `parts` ranges, is to be read back. Call before it completes.
    pub fn bar(&mut self, index: LogIndex, parts: u32) {
        self.barriers.entry(index).or_default().open += parts;
    }

    /// `by` holds what the store shows in one of the parts. True if that was the last of them.
    pub fn settle(&mut self, index: LogIndex, by: LogIndex) -> bool {
        let Some(barrier) = self.barriers.get_mut(&index) else { return false };
        barrier.open -= 1;
        barrier.settled = barrier.settled.max(by);
        barrier.open == 0
    }

    /// The newest index that a cut may have, given that the log is written through `appended`.
    pub fn cut(&mut self, appended: LogIndex) -> LogIndex {
        let mut cut = self.done.min(appended);
        // From the newest down: lowering the cut can only bring it below an older barrier's end.
        for (&index, barrier) in self.barriers.iter().rev() {
            let bars = barrier.open > 0 || cut < barrier.settled;
            if index <= cut && bars && failpoint::stands(Safeguard::Barrier) {
                cut = LogIndex(index.0 - 1);
            }
        }
        cut
    }

    /// Whether the store has answered every operation.
    pub fn is_idle(&self) -> bool {
        self.window.is_empty()
    }

    /// Whether every unknown outcome has been found out.
    pub fn bars_nothing(&self) -> bool {
        self.barriers.values().all(|barrier| barrier.open == 0)
    }

    /// Forgets barriers that no later cut can meet.
    pub fn published(&mut self, cut: LogIndex) {
        self.barriers.retain(|_, barrier| barrier.open > 0 || barrier.settled > cut);
    }
}

/// A moment of the volume: its state after exactly the operations up to `index`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    pub index: LogIndex,
    /// The newest client operation in it.
    pub sequence: Sequence,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(count: u64) -> Progress {
        let mut progress = Progress::new(LogIndex(0));
        (1..=count).for_each(|index| progress.admit(LogIndex(index)));
        progress
    }

    const ALL: LogIndex = LogIndex(u64::MAX);

    #[test]
    fn a_cut_waits_for_every_operation_before_it_and_for_the_log() {
        let mut progress = admitted(3);
        progress.complete(LogIndex(1));
        progress.complete(LogIndex(3));
        assert_eq!(progress.cut(ALL), LogIndex(1));
        progress.complete(LogIndex(2));
        assert_eq!(progress.cut(ALL), LogIndex(3));
        assert_eq!(progress.cut(LogIndex(2)), LogIndex(2));
    }

    /// Counterexample 14.
    #[test]
    fn no_cut_lies_between_an_unknown_outcome_and_its_read_back() {
        let mut progress = admitted(4);
        progress.bar(LogIndex(2), 1);
        (1..=4).for_each(|index| progress.complete(LogIndex(index)));
        assert_eq!(progress.cut(ALL), LogIndex(1), "the outcome of 2 is unknown");
        progress.admit(LogIndex(5));
        progress.admit(LogIndex(6));
        progress.settle(LogIndex(2), LogIndex(6));
        progress.complete(LogIndex(5));
        assert_eq!(progress.cut(ALL), LogIndex(1), "5 lies before the read-back");
        progress.complete(LogIndex(6));
        assert_eq!(progress.cut(LogIndex(5)), LogIndex(1), "the read-back is not in the log yet");
        assert_eq!(progress.cut(ALL), LogIndex(6));
        progress.published(LogIndex(6));
        assert!(progress.barriers.is_empty());
    }

    #[test]
    fn barriers_that_overlap_are_passed_together_or_not_at_all() {
        let mut progress = admitted(2);
        progress.bar(LogIndex(1), 1);
        progress.bar(LogIndex(2), 2);
        progress.admit(LogIndex(3));
        progress.settle(LogIndex(2), LogIndex(3));
        progress.admit(LogIndex(4));
        progress.settle(LogIndex(1), LogIndex(4));
        (1..=4).for_each(|index| progress.complete(LogIndex(index)));
        assert_eq!(progress.cut(ALL), LogIndex(1 - 1), "a part of 2 is still unknown, and 1 is settled only by 4");
        progress.admit(LogIndex(5));
        progress.settle(LogIndex(2), LogIndex(5));
        progress.complete(LogIndex(5));
        assert_eq!(progress.cut(ALL), LogIndex(5));
    }
}

//! Names a cut every second, so that any second of an epoch can be restored.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::Clock;
use crate::format::pack::SLICES_MAX;
use crate::units::{LogIndex, Timestamp};
use crate::volume::{Cut, Volume};

/// How often a cut is named.
pub const SLICE_EVERY: Duration = Duration::from_secs(1);

/// A cut, and a time that is not after it: what was in the log by then is in the cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SliceCut {
    pub cut: Cut,
    pub time: Timestamp,
}

/// The cuts named since the last published one, oldest first.
#[derive(Clone)]
pub struct Slices {
    cuts: Arc<Mutex<Vec<SliceCut>>>,
    clock: Clock,
}

impl Slices {
    pub fn new(clock: Clock) -> Self {
        Self { cuts: Arc::default(), clock }
    }

    /// Names a cut each [`SLICE_EVERY`], and keeps the volume's other times; runs until it is dropped.
    pub async fn run(self, volume: Volume) {
        let mut ticks = tokio::time::interval(SLICE_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            volume.tick();
            self.keep(self.name(&volume));
        }
    }

    /// The cut of the volume as it stands. The clock is read first, so that nobody who asks for a time is given a
    /// copy which lacks what was done before it.
    pub fn name(&self, volume: &Volume) -> SliceCut {
        let _in_order = self.cuts.lock();
        let time = self.clock.now();
        SliceCut { cut: volume.cut(), time }
    }

    fn keep(&self, named: SliceCut) {
        let mut cuts = self.cuts.lock();
        if cuts.last().is_some_and(|last| last.cut.index >= named.cut.index) {
            return;
        }
        cuts.push(named);
        if cuts.len() >= SLICES_MAX {
            // An epoch that lasts longer (the remote is away) keeps every second one: its times grow coarse, evenly.
            let mut at = 0;
            let newest = cuts.len() - 1;
            cuts.retain(|_| {
                at += 1;
                at % 2 == 0 || at - 1 == newest
            });
        }
    }

    /// The cuts after `published` that are not after `through`, which comes last: at most [`SLICES_MAX`]. They
    /// are forgotten.
    pub fn take(&self, published: LogIndex, through: SliceCut) -> Vec<SliceCut> {
        let mut cuts = self.cuts.lock();
        let end = cuts.iter().position(|slice| slice.cut.index > through.cut.index).unwrap_or(cuts.len());
        let mut taken: Vec<SliceCut> = cuts.drain(..end).filter(|slice| slice.cut.index > published).collect();
        if taken.last().is_none_or(|last| last.cut != through.cut) {
            taken.push(through);
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Sequence;

    fn cut(index: u64) -> Cut {
        Cut { index: LogIndex(index), sequence: Sequence(index) }
    }

    fn named(index: u64) -> SliceCut {
        SliceCut { cut: cut(index), time: Timestamp(index) }
    }

    #[test]
    fn a_long_epoch_keeps_evenly_spread_slices_and_ends_with_its_cut() {
        let slices = Slices::new(Clock::from_fn(|| Timestamp(7)));
        (1..=100).for_each(|index| slices.keep(named(index)));
        let taken = slices.take(LogIndex(3), named(100));
        assert!(taken.len() <= SLICES_MAX);
        assert!(taken.iter().all(|slice| slice.cut.index > LogIndex(3)));
        assert_eq!(taken.last().unwrap().cut, cut(100));
        assert!(taken.windows(2).all(|pair| pair[0].cut.index < pair[1].cut.index));
        slices.keep(named(101));
        assert_eq!(slices.take(LogIndex(100), named(101)).len(), 1);
    }

    #[test]
    fn cuts_after_the_one_that_is_taken_stay() {
        let slices = Slices::new(Clock::from_fn(|| Timestamp(7)));
        (1..=4).for_each(|index| slices.keep(named(index)));
        assert_eq!(slices.take(LogIndex(0), named(2)).len(), 2);
        let later: Vec<_> = slices.take(LogIndex(2), named(4)).iter().map(|slice| slice.cut).collect();
        assert_eq!(later, [cut(3), cut(4)]);
    }
    /// Between the two a scan may be sealed and writes be answered, which the cut has not.
    #[test]
    fn a_cut_keeps_the_time_at_which_it_was_named_however_late_it_is_taken() {
        let slices = Slices::new(Clock::from_fn(|| Timestamp(1000)));
        assert_eq!(slices.take(LogIndex(0), named(7)), [named(7)]);
    }
}

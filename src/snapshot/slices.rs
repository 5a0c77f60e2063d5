//! Names a cut for every second, so that any second of an epoch can be restored.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::Clock;
use crate::format::pack::SLICES_MAX;
use crate::units::{LogIndex, Timestamp};
use crate::volume::{Cut, Volume};

/// No second passes without a slice, unless a change stays in flight for longer than [`NOTE_EVERY`].
const SLICE_EVERY: Duration = Duration::from_secs(1);
/// How often a time is noted: a cut bears the last one by which nothing was admitted that it lacks. Under load that is
/// now and then the present and mostly the one before, so that this is how far apart slices stray.
const NOTE_EVERY: Duration = Duration::from_millis(125);
const NOTES_PER_SECOND: u64 = 8;
/// Slices are at least so far apart; a note later they are a second.
const APART: Duration = SLICE_EVERY.saturating_sub(NOTE_EVERY);

/// Times that wait for a cut, at most: one that stands still holds all that follow.
const WAITING_MAX: usize = 64;

/// A cut, and a time that is not after it: whatever was answered by then is in the cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SliceCut {
    pub cut: Cut,
    pub time: Timestamp,
}

/// The cuts named since the last published one, oldest first.
#[derive(Clone)]
pub struct Slices {
    named: Arc<Mutex<Named>>,
    clock: Clock,
}

#[derive(Default)]
struct Named {
    cuts: Vec<SliceCut>,
    /// Of the newest that was kept or taken.
    newest: Option<Timestamp>,
    times: Times,
}

/// Which time a cut may bear. A cut lacks what is in flight, and what was answered behind that; so it bears the last
/// time that was noted together with an operation that it has.
#[derive(Default)]
struct Times {
    /// When an operation was the newest, and which; oldest first.
    waiting: VecDeque<(Timestamp, LogIndex)>,
    reached: Option<Timestamp>,
}

impl Times {
    /// By `time` nothing was admitted after `newest`.
    fn note(&mut self, time: Timestamp, newest: LogIndex) {
        if let Some(last) = self.waiting.back_mut()
            && last.1 == newest
        {
            last.0 = time;
        } else if self.waiting.len() < WAITING_MAX {
            self.waiting.push_back((time, newest));
        }
    }

    fn of(&mut self, cut: LogIndex) -> Option<Timestamp> {
        while let Some(&(time, newest)) = self.waiting.front()
            && newest <= cut
        {
            self.reached = Some(time);
            self.waiting.pop_front();
        }
        self.reached
    }
}

impl Slices {
    pub fn new(clock: Clock) -> Self {
        Self { named: Arc::default(), clock }
    }

    /// Keeps a cut for each second, and the volume's other times; runs until it is dropped.
    pub async fn run(self, volume: Volume) {
        let mut notes = tokio::time::interval(NOTE_EVERY);
        notes.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for note in 0_u64.. {
            notes.tick().await;
            if note % NOTES_PER_SECOND == 0 {
                volume.tick();
            }
            self.keep(self.name(&volume));
        }
    }

    /// The cut of the volume as it stands.
    pub fn name(&self, volume: &Volume) -> SliceCut {
        let times = &mut self.named.lock().times;
        // In this order: what is admitted after the clock was read was not answered before.
        let now = self.clock.now();
        // What changes unlogged is in no cut, so that there is no later time than that of the last that was logged.
        if let Some(newest) = volume.newest_logged() {
            times.note(now, newest);
        }
        let cut = volume.cut();
        SliceCut { cut, time: times.of(cut.index).unwrap_or(now) }
    }

    fn keep(&self, named: SliceCut) {
        let Named { cuts, newest, .. } = &mut *self.named.lock();
        if newest.is_some_and(|newest| named.time.since(newest) < APART)
            || cuts.last().is_some_and(|last| last.cut.index >= named.cut.index)
        {
            return;
        }
        *newest = Some(named.time);
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
        let Named { cuts, newest, .. } = &mut *self.named.lock();
        let end = cuts.iter().position(|slice| slice.cut.index > through.cut.index).unwrap_or(cuts.len());
        let mut taken: Vec<SliceCut> = cuts.drain(..end).filter(|slice| slice.cut.index > published).collect();
        match taken.last_mut() {
            Some(last) if last.cut == through.cut => {}
            Some(last) if last.time >= through.time => last.cut = through.cut,
            _ => taken.push(through),
        }
        *newest = cuts.last().or(taken.last()).map(|slice| slice.time);
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix64;
    use crate::units::Sequence;

    fn cut(index: u64) -> Cut {
        Cut { index: LogIndex(index), sequence: Sequence(index) }
    }

    fn named(index: u64) -> SliceCut {
        SliceCut { cut: cut(index), time: Timestamp(1000 * index) }
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

    #[test]
    fn a_cut_bears_the_last_time_by_which_it_has_all_that_was_answered() {
        let mut times = Times::default();
        assert_eq!(times.of(LogIndex(9)), None);
        times.note(Timestamp(10), LogIndex(4));
        times.note(Timestamp(20), LogIndex(4));
        times.note(Timestamp(30), LogIndex(7));
        assert_eq!(times.of(LogIndex(3)), None, "4 may have been answered by 10");
        assert_eq!(times.of(LogIndex(6)), Some(Timestamp(20)), "7 may have been answered by 30");
        assert_eq!(times.of(LogIndex(6)), Some(Timestamp(20)));
        assert_eq!(times.of(LogIndex(7)), Some(Timestamp(30)));
        (0..1000).for_each(|at| times.note(Timestamp(40 + at), LogIndex(8 + at)));
        assert!(times.waiting.len() <= WAITING_MAX);
        assert_eq!(times.of(LogIndex(8)), Some(Timestamp(40)));
    }

    #[test]
    fn two_cuts_of_one_time_are_one_slice_with_the_later_cut() {
        let slices = Slices::new(Clock::from_fn(|| Timestamp(7)));
        let at = |index, time| SliceCut { cut: cut(index), time: Timestamp(time) };
        slices.keep(at(1, 5));
        slices.keep(at(2, 5));
        assert_eq!(slices.take(LogIndex(0), at(3, 5)), [at(3, 5)]);
    }

    /// Whether a cut bears the present or the time before changes from one note to the next.
    #[test]
    fn no_second_is_without_a_slice_while_cuts_stray_by_a_note() {
        let note = NOTE_EVERY.as_millis() as u64;
        for seed in 0..200 {
            let mut random = SplitMix64(seed);
            let slices = Slices::new(Clock::from_fn(|| Timestamp(7)));
            let mut taken = Vec::new();
            for n in 1..=200 {
                let cut = SliceCut { time: Timestamp(note * (n - random.below(2))), ..named(n) };
                slices.keep(cut);
                if n % 40 == 0 {
                    taken.extend(slices.take(LogIndex(n - 40), cut));
                }
            }
            for pair in taken.windows(2) {
                let apart = pair[1].time.since(pair[0].time);
                assert!(apart <= SLICE_EVERY, "seed {seed}: {apart:?} between {pair:?}");
            }
            let most = 25_000 / APART.as_millis() as usize + 5;
            assert!(taken.len() <= most, "seed {seed}: {} slices in 25 seconds", taken.len());
        }
    }

    /// Between the two a scan may be sealed and writes be answered, which the cut has not.
    #[test]
    fn a_cut_keeps_the_time_at_which_it_was_named_however_late_it_is_taken() {
        let slices = Slices::new(Clock::from_fn(|| Timestamp(1000)));
        assert_eq!(slices.take(LogIndex(0), named(7)), [named(7)]);
    }
}

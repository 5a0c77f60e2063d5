//! Any sequence of appends, syncs, frees, resets and power cuts, with another volume in the same pool, against a model
//! of what the log must hold.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::pool::{LIMITS, Limits};
use super::simulated::SimulatedDisk;
use super::tests::{NEVER, OTHER, SIZE, VOLUME, assert_same, open, record, recover, settle, sync};
use super::*;

/// What may happen to a log.
#[derive(Clone, Copy, Debug)]
enum Step {
    Append {
        length: usize,
    },
    /// Waits until all is written.
    Settle,
    Sync,
    /// Frees all but this many of the newest records.
    Free {
        but: u64,
    },
    /// Drops everything and leaves out as many indices.
    Reset {
        gap: u64,
    },
    /// A power cut; of each unsynced sector the hash of `seed` decides whether it was written.
    Cut {
        seed: u64,
        odds: u64,
        resume: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => prop_oneof![Just(0usize), 1usize..600, 1000usize..4000].prop_map(|length| Step::Append { length }),
        3 => Just(Step::Settle),
        3 => Just(Step::Sync),
        3 => (0u64..30).prop_map(|but| Step::Free { but }),
        1 => (0u64..3).prop_map(|gap| Step::Reset { gap }),
        2 => (any::<u64>(), 0u64..5, prop::bool::weighted(0.8)).prop_map(|(seed, odds, resume)| Step::Cut { seed, odds, resume }),
    ]
}

/// A log, and beside it what it must hold.
struct World {
    disk: SimulatedDisk,
    epoch: u64,
    limits: Limits,
    log: VolumeLog,
    other: VolumeLog,
    other_next: u64,
    /// What was appended last at each index.
    history: BTreeMap<u64, Record>,
    next: u64,
    /// Records below are not needed.
    tail: u64,
}

impl World {
    fn new(commit_every: Duration) -> Self {
        let disk = SimulatedDisk::blank(7, SIZE);
        let limits = Limits { commit_every, ..LIMITS };
        let pool = open(&disk, 1, 2, limits);
        let log = pool.volume(VOLUME, Start::Empty(LogIndex(1))).unwrap();
        let other = pool.volume(OTHER, Start::Empty(LogIndex(1))).unwrap();
        Self { disk, epoch: 1, limits, log, other, other_next: 1, history: BTreeMap::new(), next: 1, tail: 1 }
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Append { length } => {
                let record = record(self.next, length, self.epoch);
                match self.log.append(record.clone()) {
                    Ok(_) => {
                        self.history.insert(self.next, record);
                        self.next += 1;
                    }
                    Err(full) => {
                        assert_eq!(full, Full::Segments);
                        self.apply(Step::Reset { gap: 1 });
                    }
                }
                self.disturb();
            }
            Step::Settle => settle(&self.log, self.next - 1),
            Step::Sync => sync(&self.log, self.next - 1),
            Step::Free { but } => {
                let through = self.next.saturating_sub(1 + but);
                self.log.free(LogIndex(through));
                self.tail = self.tail.max(through + 1);
            }
            Step::Reset { gap } => {
                self.next += gap;
                self.log.reset(LogIndex(self.next));
                self.tail = self.next;
            }
            Step::Cut { seed, odds, resume } => self.cut(seed, odds, resume),
        }
    }

    /// Another volume uses the pool, so that segments change their owner.
    fn disturb(&mut self) {
        let record = record(self.other_next, 700, 77);
        match self.other.append(record) {
            Ok(_) => self.other_next += 1,
            Err(_) => self.other.reset(LogIndex(self.other_next)),
        }
        self.other.free(LogIndex(self.other_next - 1));
    }

    fn cut(&mut self, seed: u64, odds: u64, resume: bool) {
        let synced = self.log.synced().0;
        let image = self.disk.power_cut(|slot, sector| {
            let mixed = (seed ^ u64::from(slot) << 32 ^ sector).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (mixed >> 33) % 4 < odds
        });
        self.epoch += 1;
        self.disk = SimulatedDisk::new(image);
        let pool = open(&self.disk, self.epoch, 2, self.limits);
        let (recovered, found) = recover(&pool);
        for (_, header) in &found {
            assert_same(header, &self.history[&header.index.0]);
        }
        if self.tail <= synced {
            assert!(recovered.first.0 <= self.tail, "{recovered:?} begins behind the tail {}", self.tail);
            assert!(recovered.next.0 > synced, "{recovered:?} ends before the synced {synced}");
        }
        let before = std::mem::replace(&mut self.next, 0);
        if resume && !found.is_empty() {
            self.next = recovered.next.0;
            self.tail = self.tail.max(recovered.first.0).min(self.next);
            self.history.split_off(&self.next);
            self.log = pool.volume(VOLUME, Start::After(recovered)).unwrap();
            for (position, header) in &found {
                let payload = self.log.read(*position, header.index).unwrap();
                assert_eq!(payload, self.history[&header.index.0].payload);
            }
        } else {
            self.next = before + 3;
            self.tail = self.next;
            self.log = pool.volume(VOLUME, Start::Empty(LogIndex(self.next))).unwrap();
        }
        self.other = pool.volume(OTHER, Start::Empty(LogIndex(self.other_next))).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Fault tests 2 to 7, as far as they concern the log.
    #[test]
    fn after_any_power_cuts_the_log_is_a_gap_free_beginning_with_all_that_was_synced(
        steps in prop::collection::vec(step(), 1..120),
        commit in prop_oneof![Just(Duration::ZERO), Just(Duration::from_millis(1)), Just(NEVER)],
    ) {
        let mut world = World::new(commit);
        steps.into_iter().for_each(|step| world.apply(step));
        world.cut(7, 2, true);
    }
}

/// Fault test 6.
#[test]
fn a_thousand_laps_leave_nothing_stale() {
    let mut world = World::new(Duration::from_millis(1));
    for lap in 0..250u64 {
        for length in [3000, 0, 500, 2500, 1200] {
            (0..4).for_each(|_| world.apply(Step::Append { length }));
        }
        world.apply(if lap % 3 == 0 { Step::Sync } else { Step::Settle });
        world.apply(Step::Free { but: lap % 9 });
        if lap % 10 == 9 {
            world.apply(Step::Cut { seed: lap, odds: lap % 5, resume: true });
        }
    }
}

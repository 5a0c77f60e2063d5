//! Whatever is done and wherever the power is cut: what was committed last is there, or what was being committed.

use proptest::prelude::*;

use super::simulated::{Call, SimulatedFile, Write, apply, cut};
use super::tests::{Model, SIZE, VOLUME, begun, change, facts, open};
use super::*;
use crate::random::SplitMix64;

/// Keeps `odds` of four sectors, by hash.
fn kept(seed: u64, odds: u64) -> impl FnMut(usize, u64) -> bool {
    move |write, sector| SplitMix64(seed ^ (write as u64) << 40 ^ sector).below(4) < odds
}

/// What one step of the recorded work leaves, and how many calls were made by its end.
struct Milestone {
    calls: usize,
    model: Model,
    is_beginning: bool,
}

/// Commits of all sizes, an opening in between, and a new beginning.
fn recorded() -> (Vec<Call>, Vec<Milestone>) {
    let file = SimulatedFile::default();
    file.state().history = Some(vec![]);
    let mut random = SplitMix64(11);
    let mut milestones = vec![];
    let mut marks = MarksFile::begin(file.io(), VOLUME, SIZE, facts(1)).unwrap();
    let mut model = Model::begun(SIZE, facts(1));
    let mut reached = |model: &Model, is_beginning| {
        let calls = file.state().history.as_ref().map_or(0, Vec::len);
        milestones.push(Milestone { calls, model: model.clone(), is_beginning });
    };
    reached(&model, true);
    for number in 0..50 {
        let change = change(&mut random);
        marks.commit(&change).unwrap();
        model.apply(&change);
        reached(&model, false);
        if number == 30 {
            marks = MarksFile::open(file.io(), VOLUME, SIZE).unwrap().0;
        }
        if number == 40 {
            marks.begin_anew(facts(2)).unwrap();
            model = Model::begun(SIZE, facts(2));
            reached(&model, true);
        }
    }
    let history = file.state().history.take().unwrap();
    (history, milestones)
}

#[test]
fn wherever_the_power_is_cut_the_last_commit_is_there_and_at_most_the_next() {
    let (history, milestones) = recorded();
    let mut durable = vec![];
    let mut unsynced: Vec<Write> = vec![];
    for (done, call) in history.iter().enumerate() {
        match call {
            Call::Sync => unsynced.drain(..).for_each(|write| apply(&mut durable, &write)),
            Call::Write(write) => unsynced.push(write.clone()),
        }
        let finished = milestones.iter().rposition(|milestone| milestone.calls <= done + 1);
        let next = milestones.get(finished.map_or(0, |at| at + 1));
        let last = finished.map(|at| &milestones[at].model);
        for odds in 0..=4 {
            let image = cut(&durable, &unsynced, kept(done as u64, odds));
            match open(image) {
                Ok((_, contents)) => {
                    let found = Model::of(&contents);
                    let is_one = Some(&found) == last || Some(&found) == next.map(|next| &next.model);
                    assert!(is_one, "call {done}, odds {odds}: found {:?}", found.facts);
                    assert_eq!(contents.damaged, 0, "call {done}, odds {odds}");
                }
                Err(why) => assert!(next.is_some_and(|next| next.is_beginning), "call {done}, odds {odds}: {why}"),
            }
        }
    }
}

/// What may happen to a file.
#[derive(Clone, Copy, Debug)]
enum Step {
    Commit {
        seed: u64,
    },
    /// The process dies.
    Kill,
    /// The power is cut while nothing is under way.
    Cut {
        seed: u64,
        odds: u64,
    },
    /// The power is cut in a commit, or the disk fails and then the power.
    CutCommit {
        seed: u64,
        fails: Fails,
        odds: u64,
    },
    /// A commit fails, and a new life begins.
    Begin {
        seed: u64,
        fails: Fails,
    },
    /// As that, and the power is cut in the beginning.
    CutBegin {
        seed: u64,
        fails: Fails,
        again: Fails,
        odds: u64,
    },
}

/// After how many writes or syncs.
#[derive(Clone, Copy, Debug)]
enum Fails {
    Write(u64),
    Sync(u64),
}

fn fails() -> impl Strategy<Value = Fails> {
    prop_oneof![(0u64..12).prop_map(Fails::Write), (0u64..4).prop_map(Fails::Sync)]
}

fn step() -> impl Strategy<Value = Step> {
    let (seed, odds) = (any::<u64>, || 0u64..5);
    prop_oneof![
        20 => seed().prop_map(|seed| Step::Commit { seed }),
        1 => Just(Step::Kill),
        2 => (seed(), odds()).prop_map(|(seed, odds)| Step::Cut { seed, odds }),
        4 => (seed(), fails(), odds()).prop_map(|(seed, fails, odds)| Step::CutCommit { seed, fails, odds }),
        1 => (seed(), fails()).prop_map(|(seed, fails)| Step::Begin { seed, fails }),
        1 => (seed(), fails(), fails(), odds())
            .prop_map(|(seed, fails, again, odds)| Step::CutBegin { seed, fails, again, odds }),
    ]
}

/// A file, and what it must say.
struct World {
    file: SimulatedFile,
    marks: MarksFile,
    model: Model,
    beats: u64,
}

impl World {
    fn new() -> Self {
        let (file, marks, model) = begun();
        Self { file, marks, model, beats: 1 }
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Commit { seed } => {
                let change = change(&mut SplitMix64(seed));
                self.marks.commit(&change).unwrap();
                self.model.apply(&change);
            }
            Step::Kill => self.reopen(self.file.image(), &[], false),
            Step::Cut { seed, odds } => self.reopen(self.file.power_cut(kept(seed, odds)), &[], false),
            Step::CutCommit { seed, fails, odds } => {
                let under_way = self.failed_commit(seed, fails);
                self.reopen(self.file.power_cut(kept(seed, odds)), &[under_way], false);
            }
            Step::Begin { seed, fails } => {
                self.failed_commit(seed, fails);
                self.beats += 1;
                self.marks.begin_anew(facts(self.beats)).unwrap();
                self.model = Model::begun(SIZE, facts(self.beats));
            }
            Step::CutBegin { seed, fails, again, odds } => {
                let under_way = self.failed_commit(seed, fails);
                self.beats += 1;
                self.limit(Some(again));
                let result = self.marks.begin_anew(facts(self.beats));
                self.limit(None);
                let begun = Model::begun(SIZE, facts(self.beats));
                let image = self.file.power_cut(kept(seed, odds));
                match result {
                    Ok(()) => {
                        self.model = begun;
                        self.reopen(image, &[], false);
                    }
                    Err(_) => self.reopen(image, &[under_way, begun], true),
                }
            }
        }
    }

    fn limit(&self, fails: Option<Fails>) {
        let mut state = self.file.state();
        (state.writes_left, state.syncs_left) = match fails {
            None => (None, None),
            Some(Fails::Write(left)) => (Some(left), None),
            Some(Fails::Sync(left)) => (None, Some(left)),
        };
    }

    /// Answers what would be there if it had not failed; it may also succeed, if it needs no more.
    fn failed_commit(&mut self, seed: u64, fails: Fails) -> Model {
        let change = change(&mut SplitMix64(seed));
        let under_way = self.model.after(&change);
        self.limit(Some(fails));
        if self.marks.commit(&change).is_ok() {
            self.model = under_way.clone();
        }
        self.limit(None);
        under_way
    }

    fn reopen(&mut self, image: Vec<u8>, under_way: &[Model], may_be_unusable: bool) {
        self.file = SimulatedFile::new(image);
        match MarksFile::open(self.file.io(), VOLUME, SIZE) {
            Ok((marks, contents)) => {
                let found = Model::of(&contents);
                assert!(found == self.model || under_way.contains(&found), "found {:?}", found.facts);
                assert_eq!(contents.damaged, 0);
                (self.marks, self.model) = (marks, found);
            }
            Err(refused) => {
                assert!(may_be_unusable, "{refused}");
                self.marks = MarksFile::begin(refused.io, VOLUME, SIZE, facts(self.beats)).unwrap();
                self.model = Model::begun(SIZE, facts(self.beats));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn after_any_failures_and_power_cuts_the_last_commit_is_there_or_the_one_under_way(
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let mut world = World::new();
        steps.into_iter().for_each(|step| world.apply(step));
        world.apply(Step::Kill);
    }
}

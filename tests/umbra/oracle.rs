//! Decides whether an image is *one cut*: the state after exactly the first n operations, for one n, in some order that
//! the clients' times allow.
//!
//! Operations that overlap were never in flight together, so each sector has one history. An image that shows at a
//! sector its operation v says: v and what came before it on this sector is *in* the cut, what came later is *out*.
//! There is a cut if and only if no operation is both (none is torn, none is skipped), and none that is out was
//! answered before one that is in was asked for. Zeroes do not say which operation wrote them; such a sector has several
//! *candidates*, which are narrowed by all others to a fixed point. What is undecided then may be out: an undecided
//! operation stands behind the first candidate of every sector that it touches, so that choosing the first candidate
//! everywhere contradicts nothing. Hence the answer is exact, in a few linear passes.
//!
//! An operation that was never answered may have taken place, in part or not at all: it only must not show before
//! it was asked for. The data of an operation that failed must not show.

use std::collections::HashMap;

use crate::trace::{Answer, Kind, Operation, SECTOR, Stamp, Trace};

/// The cut that an image shows.
#[derive(Debug, PartialEq, Eq)]
pub struct Cut {
    /// Highest place in the trace (from 1; flushes do not count) of an operation that the image holds.
    pub at_least: usize,
    /// Highest place before that of an operation which the image does not hold.
    pub at_most: usize,
}

/// Why an image is not one cut.
#[derive(Debug, thiserror::Error)]
pub enum Mixed {
    #[error("sector {sector} holds neither zeroes nor what the stamper wrote there, but {stamp:?}")]
    Foreign { sector: u64, stamp: Option<Stamp> },
    #[error("sector {sector} shows the data of an operation that has failed: {operation:?}")]
    Failed { sector: u64, operation: Operation },
    #[error("sector {sector} shows nothing that its history and the rest of the image allow: {history:?}")]
    Impossible { sector: u64, history: Vec<Operation> },
    #[error("sector {shown_at} is after, sector {missing_at} is before this operation: {operation:?}")]
    Torn { operation: Operation, shown_at: u64, missing_at: u64 },
    #[error(
        "sector {missing_at} lacks {missing:?}, which was answered before sector {shown_at}'s was asked for: {kept:?}"
    )]
    Order { kept: Box<Operation>, shown_at: u64, missing: Box<Operation>, missing_at: u64 },
    #[error("sector {sector} does not hold what was acknowledged: {operation:?}")]
    Lost { sector: u64, operation: Operation },
}

/// Index into the trace, or none for the initial zeroes.
type Shown = Option<u32>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Open,
    /// With the sector that says so.
    In(u64),
    Out(u64),
}

/// Histories of all sectors, laid out one after the other.
struct Histories {
    /// Where a sector's history begins in `operations`.
    start: Vec<u32>,
    operations: Vec<u32>,
}

impl Histories {
    fn of(trace: &Trace, sectors: usize) -> Self {
        let mut start = vec![0_u32; sectors + 1];
        for operation in &trace.operations {
            for sector in operation.first_sector..operation.first_sector + operation.sectors {
                start[sector as usize + 1] += 1;
            }
        }
        for sector in 0..sectors {
            start[sector + 1] += start[sector];
        }
        let mut next = start.clone();
        let mut operations = vec![0; start[sectors] as usize];
        for (index, operation) in trace.operations.iter().enumerate() {
            for sector in operation.first_sector..operation.first_sector + operation.sectors {
                let at = &mut next[sector as usize];
                operations[*at as usize] = index as u32;
                *at += 1;
            }
        }
        Self { start, operations }
    }

    fn at(&self, sector: usize) -> &[u32] {
        &self.operations[self.start[sector] as usize..self.start[sector + 1] as usize]
    }
}

struct Judge<'a> {
    trace: &'a Trace,
    histories: Histories,
    fates: Vec<Fate>,
    /// Latest time at which an operation that is in was asked for, and which.
    latest_in: (u64, Option<u32>),
    /// Earliest time at which an operation that is out was answered, and which.
    earliest_out: (u64, Option<u32>),
}

/// Finds the cut that the image shows, or what contradicts that there is one. The volume was all zeroes at first.
pub fn judge(trace: &Trace, image: &[u8]) -> Result<Cut, Mixed> {
    let sectors = image.len() / SECTOR;
    let mut judge = Judge {
        trace,
        histories: Histories::of(trace, sectors),
        fates: vec![Fate::Open; trace.operations.len()],
        latest_in: (0, None),
        earliest_out: (u64::MAX, None),
    };
    let numbers: HashMap<(u64, u64), u32> =
        trace.operations.iter().enumerate().map(|(index, o)| ((o.run, o.number), index as u32)).collect();

    let mut open = Vec::new();
    for sector in 0..sectors {
        let bytes = &image[sector * SECTOR..][..SECTOR];
        if bytes.iter().all(|b| *b == 0) {
            let candidates = judge.zero_candidates(sector);
            match candidates[..] {
                [] => return Err(judge.impossible(sector)),
                [only] => judge.decide(sector, &[only])?,
                _ => open.push((sector, candidates)),
            }
        } else {
            let shown = judge.stamped(sector, bytes, &numbers)?;
            judge.decide(sector, &[Some(shown)])?;
        }
    }
    loop {
        let before = open.iter().map(|(_, candidates)| candidates.len()).sum::<usize>();
        let fates_before = judge.decided();
        for (sector, candidates) in &mut open {
            candidates.retain(|shown| judge.allows(*sector, *shown));
            if candidates.is_empty() {
                return Err(judge.impossible(*sector));
            }
            judge.decide(*sector, candidates)?;
        }
        if open.iter().map(|(_, candidates)| candidates.len()).sum::<usize>() == before
            && judge.decided() == fates_before
        {
            break;
        }
    }
    Ok(judge.cut())
}

impl Judge<'_> {
    fn operation(&self, index: u32) -> Operation {
        self.trace.operations[index as usize]
    }

    fn answered(&self, index: u32) -> bool {
        matches!(self.operation(index).answer, Answer::Done(_))
    }

    fn stamped(&self, sector: usize, bytes: &[u8], numbers: &HashMap<(u64, u64), u32>) -> Result<u32, Mixed> {
        let stamp = Stamp::read(bytes);
        let foreign = Mixed::Foreign { sector: sector as u64, stamp };
        let Some(stamp) = stamp.filter(|s| s.lba == sector as u64) else { return Err(foreign) };
        let Some(index) = numbers.get(&(stamp.run, stamp.number)).copied() else { return Err(foreign) };
        let operation = self.operation(index);
        let covers = (operation.first_sector..operation.first_sector + operation.sectors).contains(&stamp.lba);
        if operation.kind != Kind::Write || !covers {
            return Err(foreign);
        }
        match operation.answer {
            Answer::Failed(..) => Err(Mixed::Failed { sector: sector as u64, operation }),
            Answer::Done(_) | Answer::Never => Ok(index),
        }
    }

    /// What could have left zeroes there: nothing yet, or any operation that zeroes.
    fn zero_candidates(&self, sector: usize) -> Vec<Shown> {
        let zeroes = |index: &u32| {
            let operation = self.operation(*index);
            matches!(operation.kind, Kind::Zero | Kind::Trim) && !matches!(operation.answer, Answer::Failed(..))
        };
        let history = self.histories.at(sector);
        std::iter::once(None).chain(history.iter().copied().filter(zeroes).map(Some)).collect()
    }

    /// Records what all candidates of a sector agree on.
    fn decide(&mut self, sector: usize, candidates: &[Shown]) -> Result<(), Mixed> {
        let (first, last) = (candidates[0], candidates[candidates.len() - 1]);
        for at in self.histories.start[sector]..self.histories.start[sector + 1] {
            let index = self.histories.operations[at as usize];
            let fate = if Some(index) <= first {
                Fate::In(sector as u64)
            } else if Some(index) > last {
                Fate::Out(sector as u64)
            } else {
                continue;
            };
            self.settle(index, fate, Some(index) == first)?;
        }
        Ok(())
    }

    fn settle(&mut self, index: u32, fate: Fate, shown: bool) -> Result<(), Mixed> {
        let operation = self.operation(index);
        match (operation.answer, fate) {
            (Answer::Failed(..), _) | (Answer::Never, Fate::Out(_)) => return Ok(()),
            (Answer::Never, _) if !shown => return Ok(()),
            _ => {}
        }
        match (self.fates[index as usize], fate) {
            // One that was not answered may be there in part.
            (Fate::In(shown_at), Fate::Out(missing_at)) | (Fate::Out(missing_at), Fate::In(shown_at)) => {
                return Err(Mixed::Torn { operation, shown_at, missing_at });
            }
            (Fate::Open, _) => self.fates[index as usize] = fate,
            _ => return Ok(()),
        }
        match (fate, operation.answer) {
            (Fate::In(_), _) if operation.submitted > self.latest_in.0 => {
                self.latest_in = (operation.submitted, Some(index));
            }
            (Fate::Out(_), Answer::Done(time)) if time < self.earliest_out.0 => self.earliest_out = (time, Some(index)),
            _ => {}
        }
        if self.latest_in.0 > self.earliest_out.0 {
            let (kept, missing) = (self.latest_in.1.unwrap(), self.earliest_out.1.unwrap());
            let place = |index: u32| match self.fates[index as usize] {
                Fate::In(sector) | Fate::Out(sector) => sector,
                Fate::Open => unreachable!("only a settled operation moves a bound"),
            };
            return Err(Mixed::Order {
                kept: Box::new(self.operation(kept)),
                shown_at: place(kept),
                missing: Box::new(self.operation(missing)),
                missing_at: place(missing),
            });
        }
        Ok(())
    }

    /// Whether a sector may show this, by what is settled so far.
    fn allows(&self, sector: usize, shown: Shown) -> bool {
        self.histories.at(sector).iter().all(|index| {
            let operation = self.operation(*index);
            let fate = self.fates[*index as usize];
            if Some(*index) > shown {
                match operation.answer {
                    Answer::Done(time) => !matches!(fate, Fate::In(_)) && time >= self.latest_in.0,
                    Answer::Failed(..) | Answer::Never => true,
                }
            } else if Some(*index) == shown || self.answered(*index) {
                !matches!(fate, Fate::Out(_)) && operation.submitted <= self.earliest_out.0
            } else {
                true
            }
        })
    }

    fn impossible(&self, sector: usize) -> Mixed {
        let history = self.histories.at(sector).iter().map(|index| self.operation(*index)).collect();
        Mixed::Impossible { sector: sector as u64, history }
    }

    fn decided(&self) -> usize {
        self.fates.iter().filter(|f| **f != Fate::Open).count()
    }

    fn cut(&self) -> Cut {
        let changes = self.trace.operations.iter().zip(&self.fates).filter(|(o, _)| o.kind != Kind::Flush);
        let mut cut = Cut { at_least: 0, at_most: 0 };
        let mut count = 0;
        let mut first_out = None;
        for (place, (_, fate)) in changes.enumerate() {
            count = place + 1;
            match fate {
                Fate::In(_) => cut.at_least = place + 1,
                Fate::Out(_) => first_out = first_out.or(Some(place)),
                Fate::Open => {}
            }
        }
        cut.at_most = first_out.unwrap_or(count).max(cut.at_least);
        cut
    }
}

/// Whether every sector holds the last operation that a client was told is done, or a later one that was not answered:
/// what a store must hold after its gateway was killed.
pub fn holds_everything_acknowledged(trace: &Trace, image: &[u8]) -> Result<(), Mixed> {
    holds_since(trace, image, |operation| matches!(operation.answer, Answer::Done(_)))
}

/// Whether every sector holds the last operation that a flush made durable before `time` (nanoseconds of
/// CLOCK_MONOTONIC), or a later one that was asked for before it: what a store must hold after a power cut. A flush of
/// any client covers what any client was told is done before it asked.
pub fn holds_everything_flushed(trace: &Trace, image: &[u8], time: u64) -> Result<(), Mixed> {
    let flushed = |operation: &&Operation| {
        operation.kind == Kind::Flush && matches!(operation.answer, Answer::Done(answered) if answered <= time)
    };
    let covered = trace.operations.iter().filter(flushed).map(|flush| flush.submitted).max().unwrap_or(0);
    let operations = trace.operations.iter().filter(|operation| operation.submitted <= time).copied().collect();
    let durable = |operation: &Operation| matches!(operation.answer, Answer::Done(answered) if answered < covered);
    holds_since(&Trace { operations }, image, durable)
}

/// Whether every sector holds the last operation of its history that must be there, or a later one.
fn holds_since(trace: &Trace, image: &[u8], must: impl Fn(&Operation) -> bool) -> Result<(), Mixed> {
    let sectors = image.len() / SECTOR;
    let histories = Histories::of(trace, sectors);
    for sector in 0..sectors {
        let history = histories.at(sector);
        let from = history.iter().rposition(|index| must(&trace.operations[*index as usize]));
        let bytes = &image[sector * SECTOR..][..SECTOR];
        let zero = bytes.iter().all(|b| *b == 0);
        let shows = |index: &u32| {
            let operation = trace.operations[*index as usize];
            match operation.kind {
                Kind::Write => {
                    let expected = Stamp { run: operation.run, number: operation.number, lba: sector as u64 };
                    Stamp::read(bytes) == Some(expected)
                }
                Kind::Zero | Kind::Trim => zero,
                Kind::Flush => false,
            }
        };
        let held = match from {
            Some(from) => history[from..].iter().any(shows),
            None => zero || history.iter().any(shows),
        };
        if !held {
            return Err(match from {
                Some(from) => {
                    Mixed::Lost { sector: sector as u64, operation: trace.operations[history[from] as usize] }
                }
                None => Mixed::Foreign { sector: sector as u64, stamp: Stamp::read(bytes) },
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::harness::{Load, MIB, Nbdkit, Stamper};

    const SECTORS: usize = 24;

    /// A world of its own: operations take effect at one instant between being asked for and answered; overlapping
    /// ones are never in flight together.
    #[derive(Clone, Debug)]
    struct World {
        trace: Trace,
        /// Places in the trace, in the order of effect.
        effects: Vec<usize>,
    }

    impl World {
        /// Each step is (kind, first sector, sectors, how long it waits for its effect, for its answer, answered?).
        fn new(steps: &[(u8, u64, u64, u64, u64, u8)]) -> Self {
            let mut operations: Vec<Operation> = Vec::new();
            let mut instants = Vec::new();
            let mut busy_until = [0_u64; SECTORS];
            let mut now = 1;
            for (number, (kind, first, sectors, wait, rest, fate)) in steps.iter().enumerate() {
                let range = *first as usize..(*first + *sectors).min(SECTORS as u64) as usize;
                let submitted = range.clone().map(|s| busy_until[s]).max().unwrap_or(0).max(now);
                let effect = submitted + wait * 2 + 1;
                let answered = effect + rest * 2 + 1;
                range.clone().for_each(|s| busy_until[s] = answered + 1);
                operations.push(Operation {
                    run: 1,
                    number: number as u64 + 1,
                    kind: match kind {
                        0 => Kind::Zero,
                        1 => Kind::Trim,
                        _ => Kind::Write,
                    },
                    first_sector: range.start as u64,
                    sectors: range.len() as u64,
                    submitted,
                    answer: match fate {
                        0 => Answer::Failed(answered, 5),
                        1 => Answer::Never,
                        _ => Answer::Done(answered),
                    },
                });
                instants.push(effect);
                now = submitted + 1;
            }
            let mut effects: Vec<usize> = (0..operations.len()).collect();
            effects.sort_by_key(|place| instants[*place]);
            Self { trace: Trace { operations }, effects }
        }

        /// The image after the first n effects.
        fn image(&self, n: usize) -> Vec<u8> {
            let mut image = vec![0; SECTORS * SECTOR];
            for place in &self.effects[..n] {
                let operation = self.trace.operations[*place];
                // Of those that are never answered, every other one takes place.
                let never = operation.answer == Answer::Never && operation.number.is_multiple_of(2);
                if never || matches!(operation.answer, Answer::Failed(..)) {
                    continue;
                }
                for lba in operation.first_sector..operation.first_sector + operation.sectors {
                    let sector = match operation.kind {
                        Kind::Write => Stamp { run: 1, number: operation.number, lba }.write(),
                        _ => [0; SECTOR],
                    };
                    image[lba as usize * SECTOR..][..SECTOR].copy_from_slice(&sector);
                }
            }
            image
        }

        /// The slow, obvious answer: does any set of operations that the times allow leave this image?
        fn is_some_cut(&self, image: &[u8]) -> bool {
            let operations = &self.trace.operations;
            let done = |o: &Operation| match o.answer {
                Answer::Done(time) => Some(time),
                _ => None,
            };
            (0_u32..1 << operations.len()).any(|set| {
                let inside = |place: usize| set >> place & 1 == 1;
                let ordered = operations.iter().enumerate().all(|(a, out)| {
                    inside(a)
                        || done(out).is_none_or(|answered| {
                            operations.iter().enumerate().all(|(b, kept)| !inside(b) || kept.submitted <= answered)
                        })
                });
                let failed = operations.iter().enumerate().any(|(p, o)| inside(p) && done(o).is_none());
                ordered && !failed && {
                    let mut subset = self.clone();
                    // Overlapping operations were in flight one after the other, so the order of asking is theirs.
                    subset.effects = (0..operations.len()).filter(|p| inside(*p)).collect();
                    subset.image(subset.effects.len()) == image
                }
            })
        }
    }

    fn steps(max: usize) -> impl Strategy<Value = Vec<(u8, u64, u64, u64, u64, u8)>> {
        let step = (0_u8..6, 0..SECTORS as u64 - 1, 1_u64..8, 0_u64..9, 0_u64..9, 0_u8..12);
        prop::collection::vec(step, 1..max)
    }

    proptest! {
        #[test]
        fn every_true_cut_is_accepted(steps in steps(60), at in any::<prop::sample::Index>()) {
            let world = World::new(&steps);
            let n = at.index(steps.len() + 1);
            prop_assert!(judge(&world.trace, &world.image(n)).is_ok());
        }

        #[test]
        fn the_answer_is_that_of_trying_every_cut(
            steps in steps(9),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 3),
            border in 1..SECTORS,
        ) {
            // Which part of an unanswered operation took place has too many answers to try.
            let steps: Vec<_> =
                steps.into_iter().map(|(k, a, b, w, r, fate)| (k, a, b, w, r, if fate == 1 { 2 } else { fate })).collect();
            let world = World::new(&steps);
            let images: Vec<_> = cuts.iter().map(|at| world.image(at.index(steps.len() + 1))).collect();
            let mut mixed = images[0].clone();
            mixed[border * SECTOR..].copy_from_slice(&images[1][border * SECTOR..]);
            mixed[..SECTOR].copy_from_slice(&images[2][..SECTOR]);
            prop_assert_eq!(judge(&world.trace, &mixed).is_ok(), world.is_some_cut(&mixed), "{:?}", judge(&world.trace, &mixed));
        }

        #[test]
        fn one_client_at_depth_one_names_the_number(steps in steps(40), at in any::<prop::sample::Index>()) {
            let steps: Vec<_> = steps.into_iter().map(|(_, a, b, _, _, _)| (9, a, b, 0, 0, 9)).collect();
            let mut world = World::new(&steps);
            for (place, operation) in world.trace.operations.iter_mut().enumerate() {
                operation.submitted = place as u64 * 10;
                operation.answer = Answer::Done(place as u64 * 10 + 5);
            }
            world.effects = (0..steps.len()).collect();
            let n = at.index(steps.len() + 1);
            prop_assert_eq!(judge(&world.trace, &world.image(n)).unwrap(), Cut { at_least: n, at_most: n });
        }
    }

    fn two_writes() -> World {
        // The first is answered before the second is asked for; they share no sector.
        let mut world = World::new(&[(9, 0, 4, 0, 0, 9), (9, 8, 4, 0, 0, 9)]);
        world.trace.operations[1].submitted = 100;
        world.trace.operations[1].answer = Answer::Done(200);
        world
    }

    #[test]
    fn a_later_write_without_an_earlier_one_is_no_cut() {
        let world = two_writes();
        let mut image = world.image(2);
        image[..4 * SECTOR].fill(0);
        assert!(matches!(judge(&world.trace, &image), Err(Mixed::Order { .. })));
    }

    #[test]
    fn half_of_a_write_is_no_cut() {
        let world = two_writes();
        let mut image = world.image(2);
        image[8 * SECTOR..9 * SECTOR].fill(0);
        assert!(matches!(judge(&world.trace, &image), Err(Mixed::Torn { .. })));
    }

    #[test]
    fn one_flipped_bit_and_one_misplaced_sector_are_no_cut() {
        let world = two_writes();
        let mut image = world.image(2);
        image[3 * SECTOR + 100] ^= 1;
        assert!(matches!(judge(&world.trace, &image), Err(Mixed::Foreign { sector: 3, .. })));
        let mut image = world.image(2);
        image.copy_within(0..SECTOR, SECTOR);
        assert!(matches!(judge(&world.trace, &image), Err(Mixed::Foreign { sector: 1, .. })));
    }

    #[test]
    fn the_data_of_a_failed_write_must_not_show() {
        let mut world = two_writes();
        let image = world.image(2);
        world.trace.operations[1].answer = Answer::Failed(200, 5);
        assert!(matches!(judge(&world.trace, &image), Err(Mixed::Failed { .. })));
        assert!(judge(&world.trace, &world.image(1)).is_ok());
    }

    #[test]
    fn an_unanswered_write_may_show_in_part_but_not_before_it_was_asked_for() {
        let mut world = two_writes();
        let mut image = world.image(2);
        world.trace.operations[1].answer = Answer::Never;
        image[8 * SECTOR..9 * SECTOR].fill(0);
        assert!(judge(&world.trace, &image).is_ok());
        assert!(judge(&world.trace, &world.image(1)).is_ok());
        image[..4 * SECTOR].fill(0);
        assert!(matches!(judge(&world.trace, &image), Err(Mixed::Order { .. })));
    }

    #[test]
    fn a_store_that_lost_an_acknowledged_write_is_found() {
        let mut world = two_writes();
        assert!(holds_everything_acknowledged(&world.trace, &world.image(2)).is_ok());
        assert!(matches!(
            holds_everything_acknowledged(&world.trace, &world.image(1)),
            Err(Mixed::Lost { sector: 8, .. })
        ));
        world.trace.operations[1].answer = Answer::Never;
        assert!(holds_everything_acknowledged(&world.trace, &world.image(1)).is_ok());
    }

    #[test]
    fn what_the_stamper_leaves_on_a_bare_store_is_its_last_cut() {
        let folder = tempfile::TempDir::new().unwrap();
        let file = folder.path().join("bare.img");
        std::fs::File::create(&file).unwrap().set_len(16 * MIB).unwrap();
        let bare = Nbdkit::start(&folder.path().join("bare.sock"), &["file", file.to_str().unwrap()]);
        let load = Load { ops: 4000, rate: 0, ..Load::MIXED };
        let mut trace = Stamper::start(&load, &bare.uri(), folder.path()).finish();
        let image = std::fs::read(&file).unwrap();
        let changes = trace.operations.iter().filter(|o| o.kind != Kind::Flush).count();
        assert_eq!(judge(&trace, &image).unwrap().at_most, changes);
        holds_everything_acknowledged(&trace, &image).unwrap();
        // A write that this image cannot show, though it was answered before others were asked for.
        let first = trace.operations[0].submitted;
        let unseen = Operation {
            run: 999,
            number: 1,
            kind: Kind::Write,
            first_sector: 0,
            sectors: 1,
            submitted: first,
            answer: Answer::Done(first),
        };
        trace.operations.push(unseen);
        assert!(judge(&trace, &image).is_err());
        assert!(holds_everything_acknowledged(&trace, &image).is_err());
    }
}

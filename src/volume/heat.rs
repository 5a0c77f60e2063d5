//! Which regions are hot, and when they may cool.
//!
//! Pure: knows sets, indices and what was proven; neither time nor any device. [`super::admission`] tells it what
//! happens, under its lock; [`super::marking`] carries what it wants to the disk.
//!
//! Changes come in *generations*: all regions that were touched since the last rotation. A generation is proven in
//! three steps, in this order:
//! 1. *Settled*: a cut can be named that covers all its changes; so each was answered by the store, and what was
//!    unknown was read back into the log. The cut is what the proof needs of the log.
//! 2. *Flushed*: a flush of the store has succeeded that was submitted after that.
//! 3. *Covered*: the log is synced up to that cut, or an entry shows it. What a scan read is covered by an entry only,
//!    since it did not go through the log.
//!
//! Invariants:
//! - A change is admitted only where all its regions are durably hot ([`Heat::claim`]).
//! - A region cools only if the newest generation that touched it is proven.
//! - A cold region with changes that no entry shows is durably diverged, since the change of the marks that cools it
//!   says so; those changes are in the synced log.

use std::collections::VecDeque;
use std::ops::Range;

use crate::failpoint::{Safeguard, stands};
use crate::marks::{Change, Facts, RegionSet};
use crate::units::{LogIndex, REGION, Span};

/// Regions that may be hot while nothing forces more (16 GiB): what a crash costs at most, and what a random load
/// can touch without waiting for marks.
pub const HOT_MAX: u64 = 4096;
/// Regions that are made hot ahead of a sequential stream: it then waits for a mark once in 32 MiB, if at all.
const AHEAD: u64 = 8;
/// Proven generations whose regions stay hot for the next change of them, unless there are too many.
const WARM: usize = 2;
/// Proven generations that are kept apart; older ones are joined.
const PROVEN_MAX: usize = 6;

/// A change has to wait until the marks have come so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cold(pub u64);

/// Names the generation that a flush of the store proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlushToken(pub(super) u64);

pub struct Heat {
    /// Durably hot.
    hot: RegionSet,
    /// To be made hot by the next change of the marks.
    wanted: RegionSet,
    /// Being made hot by the change under way.
    heating: RegionSet,
    /// Durably diverged, or about to be.
    diverged: RegionSet,
    /// Hot whatever is proven: what the store holds there cannot be known by reading.
    stuck: RegionSet,
    /// Hot until they were read once more, later: an old server may still change them.
    suspect: RegionSet,
    /// Touched since the last rotation.
    young: RegionSet,
    young_scanned: bool,
    old: Option<Old>,
    /// Oldest first.
    proven: VecDeque<Proven>,
    /// Of the last rotation.
    generation: u64,
    /// A generation was proven since the marks were changed last.
    may_cool: bool,
    /// Changes of the marks begun, and done.
    begun: u64,
    done: u64,
    facts: Facts,
    /// Of the facts, more than the heartbeat is not in the marks yet.
    has_news: bool,
    durable_heartbeat: u64,
    /// Log and chain may have a higher heartbeat than the marks.
    foretold: bool,
    /// Of the change under way.
    changing_heartbeat: u64,
    /// Where the newest change ended, in regions: the next one tells whether it is a stream.
    last: u64,
    hot_max: u64,
}

struct Old {
    generation: u64,
    regions: RegionSet,
    /// Index of the newest change.
    through: LogIndex,
    /// A scan is among the changes.
    scanned: bool,
    proof: Proof,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Proof {
    None,
    Settled { needs: LogIndex },
    Flushed { needs: LogIndex },
}

struct Proven {
    regions: RegionSet,
    /// The log up to this record has all changes.
    needs: LogIndex,
}

/// What the rest of the volume says at the moment.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// The newest cut that can be named.
    pub cut: LogIndex,
    pub synced: LogIndex,
    pub published: LogIndex,
}

impl Heat {
    /// The durable sets as they were found. What is `diverged` has changes in the log up to `through`.
    pub fn new(hot: RegionSet, diverged: RegionSet, through: LogIndex, facts: Facts, hot_max: u64) -> Self {
        let empty = hot.emptied();
        let replayed = Proven { regions: diverged.clone(), needs: through };
        Self {
            hot,
            wanted: empty.clone(),
            heating: empty.clone(),
            diverged,
            stuck: empty.clone(),
            suspect: empty.clone(),
            young: empty,
            young_scanned: false,
            old: None,
            proven: VecDeque::from([replayed]),
            generation: 0,
            may_cool: false,
            begun: 0,
            done: 0,
            has_news: false,
            durable_heartbeat: facts.heartbeat,
            foretold: false,
            changing_heartbeat: facts.heartbeat,
            facts,
            last: u64::MAX,
            hot_max,
        }
    }

    /// Regions that a crash would have read again.
    pub fn hot(&self) -> &RegionSet {
        &self.hot
    }

    /// The heartbeat that the marks durably have.
    pub fn heartbeat(&self) -> u64 {
        self.durable_heartbeat
    }

    /// Whether a change of `span` may go on; if not, it is seen to, and says for what to wait.
    pub fn claim(&mut self, span: Span) -> Result<(), Cold> {
        if self.hot.contains_all(span) || !stands(Safeguard::HotBeforeWrite) {
            return Ok(());
        }
        let regions = span.rounded_out(REGION);
        let follows = (regions.start / REGION).checked_sub(1).is_some_and(|before| self.hot.contains(before));
        self.want(if follows { ahead_of(span) } else { span });
        Err(self.awaited(span))
    }

    /// The change of the marks with which all that is wanted of `span` is hot.
    fn awaited(&self, span: Span) -> Cold {
        Cold(if self.wanted.contains_any(span) { self.begun + 1 } else { self.begun })
    }

    /// Makes regions hot, those that are not, with the next change of the marks; says which one that is.
    pub fn want(&mut self, span: Span) -> Cold {
        self.wanted.insert_except(span, &self.hot, &self.heating);
        self.awaited(span)
    }

    /// Whether the marks are to be changed.
    pub fn is_wanting(&self) -> bool {
        self.is_wanted() || self.may_cool || self.foretold || self.has_news
    }

    /// Whether regions are on their way to be hot.
    pub fn is_heating(&self) -> bool {
        self.is_wanted() || !self.heating.is_empty()
    }

    /// Whether regions are to be made hot.
    pub fn is_wanted(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// Whether the marks have come as far as somebody waits for.
    pub fn has_reached(&self, awaited: Cold) -> bool {
        self.done >= awaited.0
    }

    /// A change of hot regions was admitted, or what stands in them was found out. True if the marks should be
    /// changed soon: a stream is about to leave what is hot.
    pub fn touch(&mut self, span: Span) -> bool {
        self.young.insert(span);
        let Some(end) = span.end.checked_sub(1).map(|last| last / REGION) else { return false };
        let streaming = end == self.last.wrapping_add(1);
        self.last = end;
        let middle = Span::at((end + AHEAD / 2) * REGION, 1);
        if !streaming || self.hot.contains_all(middle) || self.heating.contains_all(middle) {
            return false;
        }
        self.want(ahead_of(span));
        !self.wanted.is_empty()
    }

    /// A range was read in a scan.
    pub fn touch_scanned(&mut self, span: Span) {
        self.young.insert(span);
        self.young_scanned = true;
    }

    /// Whether there is a generation to end: the one before is proven, and something was touched in this one or stays
    /// hot because of those before.
    pub fn can_rotate(&self) -> bool {
        let warm = self.proven.len().saturating_sub(WARM);
        let keeps_warm = self.proven.range(warm..).any(|proven| !proven.regions.is_empty());
        self.old.is_none() && (!self.young.is_empty() || keeps_warm)
    }

    pub fn is_crowded(&self) -> bool {
        self.hot.len() > self.hot_max + self.stuck.len()
    }

    /// Ends the generation: its changes are those up to `newest`.
    pub fn rotate(&mut self, newest: LogIndex) {
        debug_assert!(self.old.is_none());
        self.generation += 1;
        if self.young.is_empty() {
            return self.proved(Proven { regions: self.young.clone(), needs: LogIndex(0) });
        }
        let regions = std::mem::replace(&mut self.young, self.hot.emptied());
        let scanned = std::mem::take(&mut self.young_scanned);
        self.old = Some(Old { generation: self.generation, regions, through: newest, scanned, proof: Proof::None });
    }

    /// Before a flush is submitted to the store: what its success will prove.
    pub fn flushing(&mut self, cut: LogIndex) -> Option<FlushToken> {
        let old = self.old.as_mut()?;
        let answered = cut >= old.through || !stands(Safeguard::CoolAfterReadBack);
        if old.proof == Proof::None && answered {
            old.proof = Proof::Settled { needs: cut };
        }
        matches!(old.proof, Proof::Settled { .. }).then_some(FlushToken(old.generation))
    }

    /// The flush has succeeded.
    pub fn flushed(&mut self, token: FlushToken) {
        if let Some(old) = self.old.as_mut().filter(|old| old.generation == token.0)
            && let Proof::Settled { needs } = old.proof
        {
            old.proof = Proof::Flushed { needs };
        }
    }

    /// Whether a flush is what is missing.
    pub fn wants_flush(&self, standing: Standing) -> bool {
        self.old.as_ref().is_some_and(|old| match old.proof {
            Proof::None => standing.cut >= old.through,
            Proof::Settled { .. } => true,
            Proof::Flushed { .. } => false,
        })
    }

    /// Takes note of what the log and the chain have come to cover.
    pub fn prove(&mut self, standing: Standing) {
        if !stands(Safeguard::CoolAfterFlush)
            && let Some(old) = &mut self.old
            && standing.cut >= old.through
        {
            old.proof = Proof::Flushed { needs: standing.cut };
        }
        let Some(Old { proof: Proof::Flushed { needs }, scanned, .. }) = self.old else { return };
        let must_publish = scanned && stands(Safeguard::CoolAfterPublish);
        let synced = !must_publish && (standing.synced >= needs || !stands(Safeguard::CoolAfterSync));
        if !synced && standing.published < needs {
            return;
        }
        if let Some(old) = self.old.take() {
            self.proved(Proven { regions: old.regions, needs });
        }
    }

    fn proved(&mut self, proven: Proven) {
        self.proven.push_back(proven);
        self.may_cool = true;
        while self.proven.len() > PROVEN_MAX
            && let Some(oldest) = self.proven.pop_front()
            && let Some(next) = self.proven.front_mut()
        {
            next.regions.add(&oldest.regions);
            next.needs = next.needs.max(oldest.needs);
        }
    }

    /// The store may have forgotten what was not flushed, and flushes under way prove nothing.
    pub fn disprove(&mut self) {
        self.generation += 1;
        if let Some(old) = self.old.take() {
            self.young.add(&old.regions);
            self.young_scanned |= old.scanned;
        }
    }

    /// Regions that are hot now stay so.
    pub fn stick(&mut self) {
        self.stuck.add(&self.hot);
        self.stuck.add(&self.heating);
    }

    /// Hot ones that stay so, as an earlier run has left them.
    pub fn set_stuck(&mut self, stuck: RegionSet) {
        self.stuck = stuck;
    }

    pub fn stuck(&self) -> &RegionSet {
        &self.stuck
    }

    /// Regions that are hot now stay so until [`Self::suspects`] takes them.
    pub fn suspect(&mut self) {
        self.suspect.add(&self.hot);
    }

    pub fn suspects(&mut self) -> RegionSet {
        std::mem::replace(&mut self.suspect, self.hot.emptied())
    }

    /// Everything that is hot is proven but for what is `marked`: the volume is at rest, flushed, and published.
    pub fn settle(&mut self) -> Cold {
        self.young.clear();
        self.young_scanned = false;
        self.old = None;
        self.proven.clear();
        self.hot_max = 0;
        self.may_cool = true;
        Cold(self.begun + 1)
    }

    /// Whether everything is hot for want of knowledge, and the store may be another.
    pub fn is_doubted(&self) -> bool {
        self.facts.doubted
    }

    /// The next change of the marks says so.
    pub fn doubt(&mut self, doubted: bool) {
        self.has_news |= self.facts.doubted != doubted;
        self.facts.doubted = doubted;
    }

    /// The heartbeat is raised with the next change of the marks.
    pub fn beat(&mut self) {
        self.facts.heartbeat += 1;
    }

    /// Raises the heartbeat above what the marks have or are about to have, for the log and the chain to say it first;
    /// the next change of the marks follows. None if that is so already.
    pub fn foretell(&mut self) -> Option<u64> {
        // What a change under way carries is no longer ahead of the marks, whenever that comes to stand in them.
        if self.foretold && self.facts.heartbeat > self.changing_heartbeat {
            return None;
        }
        self.foretold = true;
        self.facts.heartbeat += 1;
        Some(self.facts.heartbeat)
    }

    pub fn foretold(&self) -> Option<u64> {
        self.foretold.then_some(self.facts.heartbeat)
    }

    /// The chain has such a heartbeat: the next change of the marks has a higher one.
    pub fn raise_heartbeat(&mut self, above: u64) {
        self.facts.heartbeat = self.facts.heartbeat.max(above) + 1;
    }

    /// For marks that begin anew: a heartbeat higher than the marks ever had, and what was foretold to log and chain.
    pub fn renewed_facts(&mut self) -> Facts {
        if !self.foretold {
            self.facts.heartbeat += 1;
        }
        self.facts.relied_on = LogIndex(0);
        self.facts
    }

    /// The next change of the marks. `cooling` says whether regions may cool at all, and which may not.
    pub fn change(&mut self, published: LogIndex, cooling: Option<&RegionSet>) -> Change {
        debug_assert!(self.heating.is_empty());
        self.begun += 1;
        std::mem::swap(&mut self.heating, &mut self.wanted);
        let mut change = Change { heat: runs(&self.heating), ..Change::default() };
        if let Some(marked) = cooling
            && std::mem::take(&mut self.may_cool)
        {
            change.cool = runs(&self.cooled(marked));
            let before = std::mem::replace(&mut self.diverged, self.hot.emptied());
            self.diverged = self.unpublished(published);
            let (mut diverge, mut converge) = (self.diverged.clone(), before.clone());
            diverge.subtract(&before);
            converge.subtract(&self.diverged);
            change.converge = runs(&converge);
            if stands(Safeguard::DivergedWhenCooled) {
                change.diverge = runs(&diverge);
            }
        }
        let relied_on = self.proven.iter().filter(|proven| proven.needs > published).map(|proven| proven.needs).max();
        self.facts.relied_on = relied_on.unwrap_or_default();
        change.facts = self.facts;
        self.has_news = false;
        self.changing_heartbeat = self.facts.heartbeat;
        change
    }

    /// The change is durable.
    pub fn changed(&mut self) {
        self.hot.add(&self.heating);
        // Whoever waited for them has not had a turn yet.
        self.young.add(&self.heating);
        self.heating.clear();
        self.durable_heartbeat = self.changing_heartbeat;
        self.foretold &= self.facts.heartbeat > self.durable_heartbeat;
        self.done = self.begun;
    }

    /// The marks begin anew: all is durably hot, nothing diverged.
    pub fn all_hot(&mut self, size: u64, facts: Facts) {
        self.hot.insert(Span::new(0, size));
        self.wanted.clear();
        self.heating.clear();
        self.diverged.clear();
        self.facts = facts;
        self.durable_heartbeat = facts.heartbeat;
        self.foretold = false;
        // Nobody waits for a change that was wanted before.
        self.begun += 1;
        self.done = self.begun;
    }

    /// Takes out of the hot regions what may cool: all that was not touched for some generations; and if there are
    /// too many, what was touched longest ago.
    fn cooled(&mut self, marked: &RegionSet) -> RegionSet {
        let mut cool = self.hot.clone();
        cool.subtract(marked);
        cool.subtract(&self.stuck);
        cool.subtract(&self.suspect);
        cool.subtract(&self.young);
        if let Some(old) = &self.old {
            cool.subtract(&old.regions);
        }
        let warm = self.proven.len().saturating_sub(WARM);
        let mut warmer: Vec<RegionSet> = Vec::new();
        for proven in self.proven.range(warm..) {
            let mut kept = cool.clone();
            kept.subtract(&proven.regions);
            let mut touched = cool.clone();
            touched.subtract(&kept);
            warmer.push(touched);
        }
        for touched in &warmer {
            cool.subtract(touched);
        }
        // What was touched longest ago goes first.
        let mut left = (self.hot.len() - cool.len()).saturating_sub(self.stuck.len());
        let room = if left > self.hot_max { self.hot_max - self.hot_max / 8 } else { left };
        for touched in warmer {
            for run in touched.runs() {
                if left <= room {
                    break;
                }
                let count = (run.end - run.start).min(left - room);
                let part = Span::new(run.start * REGION, (run.start + count) * REGION);
                let before = cool.len();
                cool.insert(part);
                left -= cool.len() - before;
            }
        }
        self.hot.subtract(&cool);
        cool
    }

    /// Cold regions with changes that no entry shows.
    fn unpublished(&mut self, published: LogIndex) -> RegionSet {
        let spare = self.proven.len().saturating_sub(WARM);
        let mut at = 0;
        self.proven.retain(|proven| {
            at += 1;
            proven.needs > published || at > spare
        });
        let mut diverged = self.hot.emptied();
        for proven in self.proven.iter().filter(|proven| proven.needs > published) {
            diverged.add(&proven.regions);
        }
        diverged.subtract(&self.hot);
        diverged.subtract(&self.heating);
        diverged
    }
}

fn ahead_of(span: Span) -> Span {
    Span::new(span.start, span.end.saturating_add(AHEAD * REGION))
}

fn runs(set: &RegionSet) -> Vec<Range<u64>> {
    set.runs().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failpoint::without;

    const SIZE: u64 = 1024 * REGION;
    const NOTHING: Standing = Standing { cut: LogIndex(0), synced: LogIndex(0), published: LogIndex(0) };

    fn region(number: u64) -> Span {
        Span::at(number * REGION, 1)
    }

    /// One run of one region.
    fn only(number: u64) -> Vec<Range<u64>> {
        std::iter::once(number..number + 1).collect()
    }

    /// Cold all over, and nothing stays hot for its own sake.
    fn cold() -> Heat {
        let empty = RegionSet::new(SIZE);
        Heat::new(empty.clone(), empty, LogIndex(0), Facts::default(), 0)
    }

    /// One change of the marks; what it cools.
    fn change(heat: &mut Heat, published: u64, marked: &RegionSet) -> Change {
        let change = heat.change(LogIndex(published), Some(marked));
        heat.changed();
        change
    }

    /// With region 5 hot, changed by record 7, and its generation ended.
    fn changed() -> Heat {
        let mut heat = cold();
        heat.claim(region(5)).expect_err("cold");
        change(&mut heat, 0, &RegionSet::new(SIZE));
        assert_eq!(heat.claim(region(5)), Ok(()));
        heat.touch(region(5));
        heat.rotate(LogIndex(7));
        heat
    }

    /// What has cooled when the store flushed (or did not) and log and chain stand so.
    fn cooled(mut heat: Heat, cut: u64, flushed: bool, synced: u64, published: u64) -> Change {
        let token = heat.flushing(LogIndex(cut));
        if let Some(token) = token.filter(|_| flushed) {
            heat.flushed(token);
        }
        let standing = Standing { cut: LogIndex(cut), synced: LogIndex(synced), published: LogIndex(published) };
        heat.prove(standing);
        change(&mut heat, published, &RegionSet::new(SIZE))
    }

    #[test]
    fn a_region_cools_when_its_changes_are_answered_flushed_and_logged_and_is_diverged_until_they_are_published() {
        let change = cooled(changed(), 7, true, 7, 0);
        assert_eq!((change.cool, change.diverge, change.facts.relied_on), (only(5), only(5), LogIndex(7)));
        let change = cooled(changed(), 7, true, 0, 7);
        assert_eq!((change.cool, change.diverge, change.facts.relied_on), (only(5), vec![], LogIndex(0)));
    }

    /// Counterexamples 1b and 2.
    #[test]
    fn each_rule_of_cooling_is_needed() {
        let stays = |safeguard: Safeguard, cool: &dyn Fn() -> Change| {
            assert_eq!(cool().cool, [], "{safeguard:?}");
            let _without = without(safeguard);
            assert_eq!(cool().cool, only(5), "without {safeguard:?}");
        };
        stays(Safeguard::CoolAfterReadBack, &|| cooled(changed(), 6, true, 7, 0));
        stays(Safeguard::CoolAfterFlush, &|| cooled(changed(), 7, false, 7, 0));
        stays(Safeguard::CoolAfterSync, &|| cooled(changed(), 7, true, 6, 0));
        stays(Safeguard::CoolAfterPublish, &|| {
            let mut heat = changed();
            heat.disprove();
            heat.touch_scanned(region(5));
            heat.rotate(LogIndex(7));
            cooled(heat, 7, true, 7, 6)
        });
        let _without = without(Safeguard::DivergedWhenCooled);
        assert_eq!(cooled(changed(), 7, true, 7, 0).diverge, []);
    }

    /// Counterexample 1.
    #[test]
    fn a_flush_proves_nothing_that_was_answered_after_it_was_submitted() {
        let mut heat = cold();
        heat.claim(region(5)).expect_err("cold");
        change(&mut heat, 0, &RegionSet::new(SIZE));
        heat.touch(region(5));
        assert_eq!(heat.flushing(LogIndex(7)), None, "its generation is not over");
        heat.rotate(LogIndex(7));
        assert_eq!(heat.flushing(LogIndex(6)), None, "it was not answered yet");
        let early = heat.flushing(LogIndex(7)).expect("a proof to come");
        heat.disprove();
        heat.rotate(LogIndex(7));
        let _late = heat.flushing(LogIndex(7)).expect("a proof to come");
        heat.flushed(early);
        heat.prove(Standing { cut: LogIndex(7), synced: LogIndex(7), published: LogIndex(7) });
        assert_eq!(change(&mut heat, 7, &RegionSet::new(SIZE)).cool, [], "the store was lost meanwhile");
    }

    #[test]
    fn what_is_marked_stuck_or_touched_again_stays_hot() {
        let mut marked = RegionSet::new(SIZE);
        marked.insert(region(5));
        let proven = |heat: &mut Heat| {
            let token = heat.flushing(LogIndex(7)).unwrap();
            heat.flushed(token);
            heat.prove(Standing { cut: LogIndex(7), synced: LogIndex(7), published: LogIndex(7) });
        };
        let mut heat = changed();
        proven(&mut heat);
        assert_eq!(change(&mut heat, 7, &marked).cool, []);
        let mut heat = changed();
        heat.stick();
        proven(&mut heat);
        assert_eq!(change(&mut heat, 7, &RegionSet::new(SIZE)).cool, []);
        let mut heat = changed();
        heat.touch(region(5));
        proven(&mut heat);
        assert_eq!(change(&mut heat, 7, &RegionSet::new(SIZE)).cool, []);
    }

    #[test]
    fn whoever_needs_a_region_waits_for_the_change_that_heats_it() {
        let mut heat = cold();
        let first = heat.claim(region(5)).unwrap_err();
        let under_way = heat.change(LogIndex(0), None);
        assert_eq!(under_way.heat, only(5));
        assert_eq!(heat.claim(region(5)), Err(first), "it is on its way");
        let second = heat.claim(region(900)).unwrap_err();
        assert!(second > first);
        heat.changed();
        assert!(heat.has_reached(first) && !heat.has_reached(second));
        assert_eq!(heat.change(LogIndex(0), None).heat, only(900));
        heat.all_hot(SIZE, Facts::default());
        assert!(heat.has_reached(second), "nobody waits for a change that will not come");
    }

    #[test]
    fn a_stream_is_heated_ahead_and_a_trim_of_everything_is_one_run() {
        let mut heat = cold();
        for number in 0..3 {
            if heat.claim(region(number)).is_err() {
                change(&mut heat, 0, &RegionSet::new(SIZE));
            }
            heat.touch(region(number));
        }
        assert!(heat.hot().contains(8), "the next regions are hot before they are needed");
        heat.want(Span::new(0, SIZE));
        assert_eq!(heat.change(LogIndex(0), None).heat.len(), 1);
    }

    #[test]
    fn a_heartbeat_that_the_marks_catch_up_with_is_raised_again() {
        let mut heat = cold();
        assert_eq!(heat.foretell(), Some(1));
        assert_eq!(heat.foretell(), None);
        heat.change(LogIndex(0), None);
        assert_eq!(heat.foretell(), Some(2), "the change under way may make the marks say 1");
        heat.changed();
        assert_eq!((heat.heartbeat(), heat.foretold()), (1, Some(2)));
        heat.prove(NOTHING);
    }
}

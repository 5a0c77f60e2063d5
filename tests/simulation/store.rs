//! The local store: a disk with a volatile cache, by the rule of dm-log-writes.
//!
//! A flush makes durable what had *completed when it was submitted*, and what had taken effect by then of operations
//! that nobody waits for any more: it stands in the cache like anything else. A crash of the store leaves of all else
//! any part, sector by sector. Operations take effect in an order of their own, and each effect is remembered with the sequence
//! that the operation took (the volume takes it in the moment in which it submits the operation), so that the image
//! after any number of operations can be told: see [`super::image`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;

use super::ground::{Ground, below, broken, failure, lock, note, once_in};
use super::pages::{Pages, sector_span};
use crate::disk::{Disk, DiskError, Errno, Extent, Geometry, Identity, Pending, Result, ZeroMode};
use crate::units::{KIB, SECTOR, Span};
use crate::volume::Sequences;

const EIO: DiskError = DiskError::Io(Errno::EIO);
const AWAY: DiskError = DiskError::Refused(Errno::ESHUTDOWN);

/// Granularity of holes, bytes.
const PAGE: u64 = 64 * KIB;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Read,
    Write,
    Flush,
    Trim,
    Zeroes,
}

/// What changed on the store at one moment, in the order in which it did.
pub struct Effect {
    /// Of the operation; none if it took none, or if the store changed by itself.
    pub sequence: Option<u64>,
    /// The newest sequence when it was submitted, or when it happened.
    pub after: u64,
    pub changes: Vec<(u64, Change)>,
    /// Its place in the order of answers that said so.
    completed: Option<u64>,
}

pub enum Change {
    Data(Bytes),
    Zero(u64),
}

impl Change {
    pub fn span(&self, offset: u64) -> Span {
        match self {
            Self::Data(data) => Span::at(offset, data.len() as u64),
            Self::Zero(length) => Span::at(offset, *length),
        }
    }

    pub fn apply(&self, offset: u64, image: &mut Pages) {
        match self {
            Self::Data(data) => image.write(offset, data),
            Self::Zero(_) => image.fill_zero(self.span(offset)),
        }
    }
}

/// An operation that the store has and has not carried out.
struct Operation {
    span: Span,
    /// None is zeroes.
    data: Option<Bytes>,
    sequence: Option<u64>,
    after: u64,
    /// Bytes of it that are carried out.
    part: u64,
    /// Nobody waits for the answer.
    abandoned: bool,
}

struct Version {
    effect: u32,
    /// None is zeroes.
    bytes: Option<Box<[u8]>>,
}

/// An answer that the store gave and that no client has claimed.
struct Answer {
    result: Result<()>,
    /// Of the content, for reads.
    hash: u64,
    effect: Option<u32>,
}

#[derive(Default)]
struct Faults {
    /// So many of the next changes fail.
    changes: u64,
    flushes: u64,
    unreadable: Vec<Span>,
}

pub struct State {
    /// What reads show; whole sectors.
    seen: Pages,
    medium: Pages,
    /// The effect that each sector on the medium is of.
    medium_of: Vec<u32>,
    dirty: BTreeMap<u64, Vec<Version>>,
    /// Shown, but not on the medium, and nobody will write it there.
    lost: BTreeSet<u64>,
    lost_until: Option<u64>,
    next: u64,
    in_flight: BTreeMap<(u64, u64), Operation>,
    effect_of: BTreeMap<u64, u32>,
    pub effects: Vec<Effect>,
    completions: u64,
    newest_sequence: u64,
    away_until: Option<u64>,
    incarnation: u64,
    faults: Faults,
    answers: BTreeMap<(Kind, u64, u64), Vec<Answer>>,
    /// The effect that a client was promised to find at least, by sector.
    floor: Vec<u32>,
    /// A flush has failed: what came before this effect is not covered by a later one.
    void_before: u32,
    /// Where a read has failed at some time.
    pub was_unreadable: Vec<Span>,
}

#[derive(Clone)]
pub struct Store {
    ground: Ground,
    pub sequences: Arc<Sequences>,
    geometry: Geometry,
    state: Arc<Mutex<State>>,
    /// Wakes whoever waits for an answer when there will be none.
    broken: Arc<Notify>,
    /// Milliseconds that an operation takes.
    latency: u64,
}

/// Of a read's content; four words at a time, since whole volumes are read.
pub fn hash(bytes: &[u8]) -> u64 {
    let mix = |hash: u64, word: u64| (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    let (groups, rest) = bytes.as_chunks::<32>();
    let mut lanes = [1, 2, 3, bytes.len() as u64];
    for group in groups {
        for (lane, word) in lanes.iter_mut().zip(group.as_chunks::<8>().0) {
            *lane = mix(*lane, u64::from_le_bytes(*word));
        }
    }
    let words = lanes.into_iter().chain(rest.iter().map(|byte| u64::from(*byte)));
    words.fold(0, mix)
}

impl Store {
    pub fn new(ground: Ground, sequences: Arc<Sequences>, geometry: Geometry, latency: u64) -> Self {
        let sectors = geometry.size.div_ceil(SECTOR) as usize;
        let bytes = Pages::zero(sectors as u64 * SECTOR);
        let state = State {
            medium: bytes.clone(),
            seen: bytes,
            medium_of: vec![0; sectors],
            dirty: BTreeMap::new(),
            lost: BTreeSet::new(),
            lost_until: None,
            next: 0,
            in_flight: BTreeMap::new(),
            effect_of: BTreeMap::new(),
            // The first stands for the empty store.
            effects: vec![Effect { sequence: None, after: 0, changes: Vec::new(), completed: None }],
            completions: 0,
            // An operation that is not logged takes none.
            newest_sequence: sequences.newest().0,
            away_until: None,
            incarnation: 1,
            faults: Faults::default(),
            answers: BTreeMap::new(),
            floor: vec![0; sectors],
            void_before: 0,
            was_unreadable: Vec::new(),
        };
        Self { ground, sequences, geometry, state: Arc::new(Mutex::new(state)), broken: Arc::default(), latency }
    }

    pub fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        let mut state = lock(&self.state);
        state.settle(&self.ground);
        look(&mut state)
    }

    /// What reads show.
    pub fn image(&self) -> Pages {
        self.with(|state| state.seen.clone())
    }

    pub fn fail_changes(&self, times: u64) {
        self.with(|state| state.faults.changes += times);
    }

    pub fn fail_flush(&self) {
        self.with(|state| state.faults.flushes += 1);
    }

    pub fn be_unreadable(&self, span: Span) {
        self.with(|state| {
            state.faults.unreadable.push(span);
            state.was_unreadable.push(span);
        });
    }

    /// No more faults, and the connection is back.
    pub fn heal(&self) {
        self.with(|state| {
            state.faults = Faults::default();
            if state.away_until.take().is_some() {
                for ((_, id), operation) in std::mem::take(&mut state.in_flight) {
                    state.carry_out(id, operation, &self.ground);
                }
                state.incarnation += 1;
            }
        });
    }

    /// The connection breaks, for so long; the store behind it goes on, and carries out what it has of it before it
    /// answers again.
    pub fn lose_connection(&self, millis: u64) {
        let now = self.ground.now();
        self.with(|state| {
            note!(self.ground, "store: connection lost");
            let had: Vec<_> = std::mem::take(&mut state.in_flight).into_iter().collect();
            for ((due, id), mut operation) in had {
                operation.abandoned = true;
                let due = match below(4) {
                    0 => continue,
                    1 => now + below(millis),
                    2 => {
                        operation.part = below(operation.span.len());
                        due
                    }
                    _ => due,
                };
                state.in_flight.insert((due.min(now + millis), id), operation);
            }
            state.complete_unanswered(&self.ground);
            state.away_until = Some(now + millis);
        });
        self.broken.notify_waiters();
    }

    /// The store alone crashes and is away for so long.
    pub fn crash(&self, keep_one_in: u64, millis: u64) {
        self.power_cut(keep_one_in);
        let until = self.ground.now() + millis;
        self.with(|state| state.away_until = Some(until));
        self.broken.notify_waiters();
    }

    /// Reads show what is on the medium from now on.
    pub fn forget(&self) {
        self.with(|state| state.forget(&self.ground));
    }

    /// The gateway is gone; the kernel finishes what it has, or does not.
    pub fn abandoned(&self) {
        self.with(|state| {
            state.carry_out_some(&self.ground);
            state.answers.clear();
        });
    }

    /// Of what was not flushed any part stays: one sector in `keep_one_in`.
    pub fn power_cut(&self, keep_one_in: u64) {
        let newest = self.sequences.newest().0;
        self.with(|state| {
            state.carry_out_some(&self.ground);
            note!(self.ground, "store: power cut, {} sectors not flushed", state.dirty.len());
            for (sector, versions) in std::mem::take(&mut state.dirty) {
                // Oldest first; what is on the medium is older still.
                let kept = if once_in(keep_one_in) { below(versions.len() as u64 + 1) as usize } else { 0 };
                if let Some(version) = kept.checked_sub(1).map(|at| &versions[at]) {
                    state.put(sector, version);
                }
                if state.medium_of[sector as usize] < state.floor[sector as usize] {
                    broken!(self.ground, "T2", "sector {sector} was flushed and is gone");
                }
            }
            state.show_medium(newest);
        });
    }

    /// A client was answered as the store answered; what its flush covers is counted from here. None if the store gave
    /// no such answer.
    pub fn claim(&self, kind: Kind, span: Span, result: Result<()>, content: &[u8]) -> Option<Option<u32>> {
        let hash = hash(content);
        self.with(|state| {
            let answers = state.answers.get_mut(&(kind, span.start, span.len()))?;
            let at = answers.iter().position(|answer| answer.result == result && answer.hash == hash)?;
            Some(answers.remove(at).effect)
        })
    }

    /// A client was told that these effects are durable.
    pub fn promise(&self, effects: &[u32]) {
        self.with(|state| {
            let State { effects: all, floor, .. } = state;
            for &effect in effects.iter().filter(|&&effect| effect >= state.void_before) {
                let spans = all[effect as usize].changes.iter().map(|(offset, change)| change.span(*offset));
                for span in spans.filter(|span| !span.is_empty()) {
                    let sectors = span.rounded_out(SECTOR);
                    for sector in sectors.start / SECTOR..sectors.end / SECTOR {
                        floor[sector as usize] = floor[sector as usize].max(effect);
                    }
                }
            }
        });
    }

    fn takes(&self) -> Duration {
        Duration::from_millis(if once_in(64) { below(40) } else { below(self.latency) })
    }

    fn submit(&self, kind: Kind, span: Span, data: Option<Bytes>, fua: bool) -> Pending<()> {
        let now = self.ground.now();
        let newest = self.sequences.newest().0;
        let (id, takes) = {
            let state = &mut *lock(&self.state);
            state.settle(&self.ground);
            let sequence = (newest > state.newest_sequence).then_some(newest);
            state.newest_sequence = newest;
            if state.is_away() {
                state.answered(kind, span, Err(AWAY), 0, None);
                return Pending::ready(Err(AWAY));
            }
            state.next += 1;
            note!(
                self.ground,
                "store: {kind:?} {} {span} sequence {sequence:?}{}",
                state.next,
                if fua { " fua" } else { "" }
            );
            let id = state.next;
            let leaves = kind == Kind::Trim && !self.geometry.abilities.trim_reads_zero && once_in(2);
            let part = if leaves { 0 } else { span.len() };
            state
                .in_flight
                .insert((now, id), Operation { span, data, sequence, after: newest, part, abandoned: false });
            if state.faults.changes > 0 && once_in(2) {
                state.faults.changes -= 1;
                let part = below(3) * span.len() / 2;
                state.in_flight.entry((now, id)).and_modify(|operation| operation.part = part.min(operation.part));
                state.settle(&self.ground);
                // What it changed nevertheless stands in the cache, and a flush covers it like anything else there.
                state.complete(id, false, &self.ground);
                let failed = Err(DiskError::Io(failure()));
                state.answered(kind, span, failed, 0, None);
                return Pending::ready(failed);
            }
            let takes = self.takes().as_millis() as u64;
            if takes == 0 {
                state.settle(&self.ground);
                let effect = state.complete(id, fua, &self.ground);
                state.answered(kind, span, Ok(()), 0, effect);
                return Pending::ready(Ok(()));
            }
            if let Some(operation) = state.in_flight.remove(&(now, id)) {
                state.in_flight.insert((now + takes, id), operation);
            }
            (id, takes)
        };
        let this = self.clone();
        let broken = self.broken.clone().notified_owned();
        let answer_takes = this.takes();
        Pending::later(async move {
            let answered = tokio::time::sleep(Duration::from_millis(takes) + answer_takes);
            let lost = tokio::select! {
                biased;
                () = broken => true,
                () = answered => false,
            };
            let state = &mut *lock(&this.state);
            state.settle(&this.ground);
            if lost {
                state.answered(kind, span, Err(DiskError::Lost), 0, None);
                return Err(DiskError::Lost);
            }
            let effect = state.complete(id, fua, &this.ground);
            note!(this.ground, "store: {id} answered");
            state.answered(kind, span, Ok(()), 0, effect);
            Ok(())
        })
    }

    /// Nothing reads the content before the returned time has passed, nor at its end.
    async fn sampled<T>(&self, sample: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        let broken = self.broken.clone().notified_owned();
        let (there, back) = (self.takes(), self.takes());
        let sampled = async {
            tokio::time::sleep(there).await;
            let sampled = self.with(|state| if state.is_away() { Err(AWAY) } else { sample(state) });
            tokio::time::sleep(back).await;
            sampled
        };
        tokio::select! {
            biased;
            () = broken => Err(DiskError::Lost),
            sampled = sampled => sampled,
        }
    }
}

impl State {
    fn is_away(&self) -> bool {
        self.away_until.is_some()
    }

    fn answered(&mut self, kind: Kind, span: Span, result: Result<()>, hash: u64, effect: Option<u32>) {
        let hash = if hash == 0 { self::hash(&[]) } else { hash };
        self.answers.entry((kind, span.start, span.len())).or_default().push(Answer { result, hash, effect });
    }

    /// Carries out what is due.
    fn settle(&mut self, ground: &Ground) {
        let now = ground.now();
        while let Some(entry) = self.in_flight.first_entry().filter(|entry| entry.key().0 <= now) {
            let ((_, id), operation) = entry.remove_entry();
            self.carry_out(id, operation, ground);
        }
        if self.lost_until.is_some_and(|until| until <= now) {
            self.forget(ground);
        }
        if self.away_until.is_some_and(|until| until <= now) {
            self.away_until = None;
            self.incarnation += 1;
        }
    }

    /// Of what is under way some is carried out, some in part, and some never.
    fn carry_out_some(&mut self, ground: &Ground) {
        for ((_, id), mut operation) in std::mem::take(&mut self.in_flight) {
            operation.part = (below(3) * operation.part / 2) / SECTOR * SECTOR;
            self.carry_out(id, operation, ground);
        }
        self.complete_unanswered(ground);
    }

    /// Nobody is told any more what was carried out and not answered.
    fn complete_unanswered(&mut self, ground: &Ground) {
        while let Some(&id) = self.effect_of.keys().next() {
            self.complete(id, false, ground);
        }
    }

    fn carry_out(&mut self, id: u64, operation: Operation, ground: &Ground) {
        let Operation { span, data, sequence, after, part, abandoned } = operation;
        let change = match data {
            Some(data) => Change::Data(data.slice(..part as usize)),
            None => Change::Zero(part),
        };
        note!(ground, "store: {id} carried out, {part} bytes");
        change.apply(span.start, &mut self.seen);
        self.changed(change.span(span.start));
        self.effect_of.insert(id, self.effects.len() as u32);
        self.effects.push(Effect { sequence, after, changes: vec![(span.start, change)], completed: None });
        if abandoned {
            self.complete(id, false, ground);
        }
    }

    /// These bytes are as the next effect leaves them.
    fn changed(&mut self, span: Span) {
        if span.is_empty() {
            return;
        }
        let effect = self.effects.len() as u32;
        for sector in span.start / SECTOR..span.end.div_ceil(SECTOR) {
            let span = sector_span(sector);
            let bytes = (!self.seen.is_zero(span)).then(|| self.seen.bytes(span).into());
            self.lost.remove(&sector);
            self.dirty.entry(sector).or_default().push(Version { effect, bytes });
        }
    }

    /// The operation is answered as done.
    fn complete(&mut self, id: u64, fua: bool, ground: &Ground) -> Option<u32> {
        let effect = self.effect_of.remove(&id)?;
        self.completions += 1;
        self.effects[effect as usize].completed = Some(self.completions);
        if fua {
            self.make_durable(|version, _| version.effect == effect);
            note!(ground, "store: {id} is durable");
        }
        Some(effect)
    }

    fn make_durable(&mut self, is_covered: impl Fn(&Version, &[Effect]) -> bool) {
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.retain(|&sector, versions| {
            if let Some(newest) = versions.iter().rposition(|version| is_covered(version, &self.effects)) {
                self.put(sector, &versions[newest]);
                versions.drain(..=newest);
            }
            !versions.is_empty()
        });
        self.dirty = dirty;
    }

    fn put(&mut self, sector: u64, version: &Version) {
        match &version.bytes {
            Some(bytes) => self.medium.write(sector * SECTOR, bytes),
            None => self.medium.fill_zero(sector_span(sector)),
        }
        self.medium_of[sector as usize] = version.effect;
    }

    /// A flush has failed: nobody writes again what is not written by now, and reads show it still.
    fn flush_fails(&mut self, now: u64) {
        for (sector, versions) in std::mem::take(&mut self.dirty) {
            self.floor[sector as usize] = 0;
            match versions.last() {
                Some(newest) if once_in(2) => self.put(sector, newest),
                _ => {
                    self.lost.insert(sector);
                }
            }
        }
        self.void_before = self.effects.len() as u32;
        self.lost_until = Some(now + below(20_000));
    }

    /// Reads show what is on the medium where something was lost.
    fn forget(&mut self, ground: &Ground) {
        self.lost_until = None;
        let lost = std::mem::take(&mut self.lost);
        note!(ground, "store: {} sectors are as they were", lost.len());
        let newest = self.newest_sequence;
        self.show(lost, newest);
    }

    /// After a crash.
    fn show_medium(&mut self, newest: u64) {
        self.lost.clear();
        self.lost_until = None;
        let differ: Vec<Span> = self.seen.differences(&self.medium).collect();
        self.show(differ.into_iter().flat_map(|span| span.start / SECTOR..span.end / SECTOR), newest);
    }

    fn show(&mut self, sectors: impl IntoIterator<Item = u64>, after: u64) {
        let mut changes = Vec::new();
        for span in sectors.into_iter().map(sector_span) {
            let bytes = self.medium.bytes(span);
            if self.seen.bytes(span) != bytes {
                self.seen.write(span.start, &bytes);
                changes.push((span.start, Change::Data(bytes.into())));
            }
        }
        if !changes.is_empty() {
            self.effects.push(Effect { sequence: None, after, changes, completed: None });
        }
    }
}

impl Disk for Store {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read(&self, offset: u64, length: u32) -> Pending<Bytes> {
        let this = self.clone();
        let span = Span::at(offset, length.into());
        Pending::later(async move {
            let sample = |state: &mut State| {
                if state.faults.unreadable.iter().any(|bad| bad.overlaps(span)) {
                    return Err(EIO);
                }
                Ok(Bytes::from(state.seen.bytes(span)))
            };
            let read = this.sampled(sample).await;
            let answer = read.as_ref().map(|_| ()).map_err(|error| *error);
            let hash = read.as_ref().map_or(0, |bytes| hash(bytes));
            note!(this.ground, "store: read {span} {answer:?} {hash:x}");
            lock(&this.state).answered(Kind::Read, span, answer, hash, None);
            read
        })
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> Pending<()> {
        self.submit(Kind::Write, Span::at(offset, data.len() as u64), Some(data), fua)
    }

    fn flush(&self) -> Pending<()> {
        let none = Span::new(0, 0);
        let this = self.clone();
        let covers = self.with(|state| state.completions);
        Pending::later(async move {
            let flushed = this
                .sampled(|state| {
                    if state.faults.flushes > 0 {
                        state.faults.flushes -= 1;
                        state.flush_fails(this.ground.now());
                        return Err(EIO);
                    }
                    state.make_durable(|version, effects| {
                        effects[version.effect as usize].completed.is_some_and(|completed| completed <= covers)
                    });
                    Ok(())
                })
                .await;
            note!(this.ground, "store: flush of {covers} {flushed:?}");
            lock(&this.state).answered(Kind::Flush, none, flushed, 0, None);
            flushed
        })
    }

    fn trim(&self, offset: u64, length: u64, fua: bool) -> Pending<()> {
        self.submit(Kind::Trim, Span::at(offset, length), None, fua)
    }

    fn write_zeroes(&self, offset: u64, length: u64, _: ZeroMode, fua: bool) -> Pending<()> {
        self.submit(Kind::Zeroes, Span::at(offset, length), None, fua)
    }

    fn cache(&self, _: u64, _: u64) -> Pending<()> {
        Pending::ready(Ok(()))
    }

    fn extents(&self, offset: u64, length: u64, limit: usize) -> Pending<Vec<Extent>> {
        let this = self.clone();
        Pending::later(async move {
            this.sampled(|state| {
                let mut extents: Vec<Extent> = Vec::new();
                let (mut at, end) = (offset, offset + length);
                while at < end {
                    let next = ((at / PAGE + 1) * PAGE).min(end);
                    let zero = state.seen.is_zero(Span::new(at, next));
                    let full = extents.len() == limit;
                    match extents.last_mut() {
                        Some(last) if last.zero == zero => last.length += next - at,
                        _ if full => break,
                        _ => extents.push(Extent { length: next - at, hole: zero, zero }),
                    }
                    at = next;
                }
                Ok(extents)
            })
            .await
        })
    }

    fn forget_cached(&self) -> Pending<bool> {
        let this = self.clone();
        Pending::later(async move {
            this.sampled(|state| {
                state.forget(&this.ground);
                Ok(true)
            })
            .await
        })
    }

    fn identity(&self) -> Identity {
        Identity { name: "simulated".into(), size: self.geometry.size, modified: None }
    }

    fn incarnation(&self) -> u64 {
        self.with(|state| state.incarnation)
    }
}

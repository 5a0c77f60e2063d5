//! What a volume begins with: its marks, and what its log holds, after whatever end the last run had.
//!
//! Order, each step durable before the next:
//! 1. The marks are read. What cannot be believed is hot.
//! 2. The log is looked at. If it is not the one that the marks rely on, or ends before what they rely on, everything
//!    diverged becomes hot: before a new log is made, so that a second crash finds it so.
//! 3. The log is opened, which raises its epoch, and its gap-free prefix is read.
//! 4. The marks take note of the log, and of its heartbeat. The chain's is compared when it is opened; until then
//!    none is raised.
//!
//! Every hot region is compared with what the log and the chain say of it, whatever the log covers: the store may
//! have forgotten what the log remembers.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;

use tracing::{info, warn};

use super::backlog::DESCRIPTORS_MAX;
use super::descriptor::{Descriptor, Effect};
use crate::format::VolumeId;
use crate::format::log::{LogOp, RecordHeader};
use crate::marks::{Change, Facts, MarksFile, MarksIo, Refused, RegionSet, Unusable};
use crate::units::{LogIndex, REGION, SECTOR, Span};
use crate::writelog;
use crate::writelog::{Look, OpenError, Opened, Pool, Position, Recovered, VolumeLog};

/// Marks as they were found, before the log is opened.
pub struct Found {
    name: String,
    volume: VolumeId,
    size: u64,
    /// A gateway was here before.
    known: bool,
    file: MarksFile,
    hot: RegionSet,
    stuck: RegionSet,
    diverged: RegionSet,
    facts: Facts,
}

/// What is to be replayed of the log.
#[derive(Default)]
pub struct Replay {
    /// Index before that of the first descriptor.
    pub before: LogIndex,
    pub descriptors: VecDeque<Descriptor>,
    /// Nothing was logged before the first of them since the log was emptied.
    pub begins: bool,
}

/// Everything that a volume starts from.
pub struct Start {
    pub marks: MarksFile,
    pub hot: RegionSet,
    /// Of the hot ones, those where a failed flush left something in the caches of a server that cannot be told to give
    /// them up.
    pub stuck: RegionSet,
    pub diverged: RegionSet,
    pub facts: Facts,
    pub replay: Replay,
    pub log: VolumeLog,
    /// A gateway was here before, and did not stop cleanly: what it asked of the store may still be under way.
    pub unclean: bool,
}

impl Found {
    /// Step 1. `volume` names the log that belongs to the marks; `size` is that of the store. Blocks.
    pub fn read(name: &str, volume: VolumeId, size: u64, io: Box<dyn MarksIo>) -> io::Result<Self> {
        let (file, contents) = match MarksFile::open(io, volume, size) {
            Ok(opened) => opened,
            Err(Refused { why, io }) => {
                let known = !matches!(why, Unusable::Absent);
                if !known {
                    info!(volume = name, "no marks yet: everything is compared with the remote copy");
                } else {
                    warn!(volume = name, %why, "the marks cannot be used; everything is compared with the remote copy");
                }
                let facts = Facts { doubted: true, ..Facts::default() };
                let file = MarksFile::begin(io, volume, size, facts)?;
                let (hot, none) = (all(size), RegionSet::new(size));
                let (stuck, diverged) = (none.clone(), none);
                return Ok(Self { name: name.to_owned(), volume, size, known, file, hot, stuck, diverged, facts });
            }
        };
        if contents.damaged > 0 {
            warn!(volume = name, regions = contents.damaged, "marks are damaged; what they spoke of is read again");
        }
        let (hot, diverged, facts) = (contents.hot, contents.diverged, contents.facts);
        let stuck = hot.emptied();
        Ok(Self { name: name.to_owned(), volume, size, known: true, file, hot, stuck, diverged, facts })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Everything is to be compared, for the store may be another.
    pub fn distrust(&mut self) -> io::Result<()> {
        self.heat(&all(self.size), Facts { doubted: true, ..self.facts })
    }

    /// What the store shows in these regions need not be what it holds ([`Start::stuck`]).
    pub fn stick(&mut self, regions: impl IntoIterator<Item = Range<u64>>) -> io::Result<()> {
        for region in regions {
            self.stuck.insert(Span::new(region.start * REGION, (region.end * REGION).min(self.size)));
        }
        let mut more = self.stuck.clone();
        more.subtract(&self.hot);
        if more.is_empty() {
            return Ok(());
        }
        self.file.commit(&Change { heat: more.runs().collect(), facts: self.facts, ..Change::default() })?;
        self.hot.add(&more);
        Ok(())
    }

    /// Regions that are to be read again.
    pub fn hot(&self) -> u64 {
        self.hot.len()
    }

    /// Step 2, for what is there of a log.
    pub fn log_found(&mut self, look: Look) -> io::Result<()> {
        let there = look.log;
        if look.doubted {
            warn!(volume = self.name, "marks could not be written before the last stop; everything is compared");
            self.distrust()?;
        }
        if there.is_some() && there == self.facts.log {
            return Ok(());
        }
        if self.facts.log.is_some() {
            warn!(
                volume = self.name,
                regions = self.diverged.len(),
                "the log is lost; what only it covered is read again"
            );
        }
        self.promote()
    }

    /// Steps 3 and 4, with the pool open. After a `clean` stop nothing in the log is needed.
    pub fn start(mut self, pool: &Pool, opened: Opened, clean: bool) -> Result<Start, StartError> {
        let mut reading = Reading::default();
        let ours = self.facts.log == Some(opened.log) && !opened.created;
        let recovered = ours.then(|| pool.recover(self.volume, |position, header| reading.take(position, header)));
        let next = recovered.as_ref().map_or(LogIndex(1), |recovered| recovered.next);
        if reading.heartbeat > self.facts.heartbeat {
            warn!(
                volume = self.name,
                found = self.facts.heartbeat,
                log = reading.heartbeat,
                "the marks are older than the log; everything is compared with the remote copy"
            );
            self.distrust()?;
        } else if ours && self.facts.relied_on >= next {
            warn!(
                volume = self.name,
                ends = %next,
                relied_on = %self.facts.relied_on,
                "the log has lost its end; what only it covered is read again"
            );
            self.promote()?;
        }
        if reading.too_many {
            warn!(volume = self.name, "the log holds more changes than can be replayed; they are read again");
            self.promote()?;
        }
        if !ours {
            self.promote()?;
        }
        if recovered
            .as_ref()
            .is_some_and(|log| log.begins && self.facts.relied_on.0 > 0 && log.first > self.facts.relied_on)
        {
            warn!(volume = self.name, "the log was emptied of what is relied on; it is read again");
            self.promote()?;
        }
        // Not raised beyond what log and marks say: the chain is still to be compared with it.
        let heartbeat = self.facts.heartbeat.max(reading.heartbeat);
        let relied_on = if self.diverged.is_empty() { LogIndex(0) } else { self.facts.relied_on };
        self.facts = Facts { heartbeat, log: Some(opened.log), relied_on, ..self.facts };
        self.file.commit(&Change { facts: self.facts, ..Change::default() })?;
        let (start, replay) = reading.into_replay(recovered, clean);
        if !replay.descriptors.is_empty() || self.hot() > 0 {
            info!(
                volume = self.name,
                records = replay.descriptors.len(),
                regions = self.hot(),
                "recovering: what is in the log is published, and what is hot read again"
            );
        }
        let log = pool.volume(self.volume, start)?;
        let Self { known, file: marks, hot, stuck, diverged, facts, .. } = self;
        Ok(Start { marks, hot, stuck, diverged, facts, replay, log, unclean: known && !clean })
    }

    fn promote(&mut self) -> io::Result<()> {
        let diverged = self.diverged.clone();
        self.heat(&diverged, self.facts)
    }

    fn heat(&mut self, regions: &RegionSet, facts: Facts) -> io::Result<()> {
        let mut more = regions.clone();
        more.subtract(&self.hot);
        let change = Change {
            heat: more.runs().collect(),
            converge: self.diverged.runs().collect(),
            facts,
            ..Change::default()
        };
        if change.heat.is_empty() && change.converge.is_empty() && facts == self.facts {
            return Ok(());
        }
        self.file.commit(&change)?;
        self.facts = facts;
        self.hot.add(&more);
        self.diverged.clear();
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("write the marks")]
    Marks(#[from] io::Error),
    #[error(transparent)]
    Log(#[from] OpenError),
}

fn all(size: u64) -> RegionSet {
    let mut all = RegionSet::new(size);
    all.insert(Span::new(0, size));
    all
}

/// Collects the records of a log.
#[derive(Default)]
struct Reading {
    first: Option<LogIndex>,
    descriptors: VecDeque<Descriptor>,
    heartbeat: u64,
    too_many: bool,
}

impl Reading {
    fn take(&mut self, position: Position, header: &RecordHeader) {
        let first = *self.first.get_or_insert(header.index);
        let about_range = !matches!(header.op, LogOp::Void | LogOp::Heartbeat);
        let sectors =
            if about_range { Span::at(header.offset, header.length).rounded_out(SECTOR) } else { Span::new(0, 0) };
        match header.op {
            LogOp::Heartbeat => self.heartbeat = self.heartbeat.max(header.offset),
            LogOp::Void => {
                let at = header.offset.checked_sub(first.0).and_then(|at| usize::try_from(at).ok());
                if let Some(descriptor) = at.and_then(|at| self.descriptors.get_mut(at)) {
                    descriptor.void();
                }
            }
            _ => {}
        }
        if self.descriptors.len() < DESCRIPTORS_MAX {
            let effect = Effect::of(header.op, sectors);
            self.descriptors.push_back(Descriptor::new(sectors, effect, position, header.sequence));
        } else {
            self.too_many = true;
        }
    }

    fn into_replay(self, recovered: Option<Recovered>, clean: bool) -> (writelog::Start, Replay) {
        let Some(recovered) = recovered else {
            return (writelog::Start::Empty(LogIndex(1)), Replay::default());
        };
        let before = LogIndex(recovered.next.0 - 1);
        if self.descriptors.is_empty() || self.too_many || clean {
            return (writelog::Start::Empty(recovered.next), Replay { before, ..Replay::default() });
        }
        let replay =
            Replay { before: LogIndex(recovered.first.0 - 1), descriptors: self.descriptors, begins: recovered.begins };
        (writelog::Start::After(recovered), replay)
    }
}

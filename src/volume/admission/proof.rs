//! What makes regions cool, and what is told to the marks: flushes of the store, the log's synced part, and the
//! heartbeat by which marks, log and chain are held against each other.

use super::{Admission, Ticket};
use crate::format::log::LogOp;
use crate::marks::{Change, Facts};
use crate::units::LogIndex;
use crate::volume::flushes::Flushing;
use crate::volume::heat::{Cold, Heat, Standing};
use crate::writelog::VolumeLog;

impl Admission {
    fn standing(&mut self, log: &VolumeLog) -> Standing {
        let cut = self.cut(log.appended()).index;
        Standing { cut, synced: log.synced(), published: self.published().index }
    }

    /// Before a flush is submitted to the store.
    pub fn flushing(&mut self, log: &VolumeLog) -> Flushing {
        let cut = self.cut(log.appended()).index;
        self.flushes.begin(self.heat.flushing(cut))
    }

    /// Before a change is submitted that is to be durable when it is answered; it proves nothing but itself.
    pub fn making_durable(&mut self) -> Flushing {
        self.flushes.begin(None)
    }

    /// That has succeeded; whether it `proves` anything depends on who answered.
    pub fn flushed(&mut self, flushing: Flushing, proves: bool) {
        for token in self.flushes.succeeded(flushing, proves) {
            self.heat.flushed(token);
        }
    }

    /// That has failed, or its answer is lost.
    pub fn not_flushed(&mut self, flushing: Flushing) {
        self.flushes.failed(flushing);
    }

    /// Takes note of what is proven by now, and ends the generation of changes where `due` says that it is old
    /// enough, or there are too many hot regions. Says whether it did, and whether a flush of the store is what is
    /// missing for more.
    pub fn prove(&mut self, log: &VolumeLog, due: bool) -> (bool, bool) {
        let standing = self.standing(log);
        self.heat.prove(standing);
        let logs = self.state.logs();
        let begins = logs && self.heat.can_rotate() && (due || self.heat.is_crowded());
        if begins {
            self.heat.rotate(self.newest());
        }
        (begins, logs && self.heat.wants_flush(standing))
    }

    /// The next change of the marks, if there is anything to change; the heartbeat is raised if it `beats`.
    pub fn marks_change(&mut self, beats: bool) -> Option<Change> {
        // Before the chain was seen a raised heartbeat would hide that the marks are older than it.
        let beats = beats && self.chain_seen;
        if !beats && !self.heat.is_wanting() {
            return None;
        }
        if beats {
            self.heat.beat();
        }
        // What is marked stays hot; in other states everything is on its way to be marked.
        let cooling = self.state.logs().then_some(&self.marked);
        Some(self.heat.change(self.published().index, cooling))
    }

    /// The change is durable; the log is told the heartbeat.
    pub fn marks_changed(&mut self, log: &VolumeLog, beats: bool) {
        self.heat.changed();
        if beats {
            // A log that cannot take it covers nothing any more.
            let Ticket(_) = self.remark(log, LogOp::Heartbeat, self.heat.heartbeat());
        }
    }

    /// The volume is at rest, all of it published, and the store flushed: only what is marked stays hot.
    /// Says when that is durable.
    pub fn settle_heat(&mut self, log: &VolumeLog) -> Option<Cold> {
        let rests = self.is_quiet(log.appended()) && self.is_published(log);
        rests.then(|| self.heat.settle())
    }

    /// Whether the marks are of the chain's time or later; if not, the next change of them says that everything is
    /// hot, with a higher heartbeat than any.
    pub fn chain_beats(&mut self, heartbeat: u64) -> bool {
        let older = heartbeat > self.found_heartbeat;
        if older {
            self.heat.raise_heartbeat(heartbeat);
        }
        self.chain_seen = true;
        !older
    }

    /// Before changes go unmarked: a heartbeat above what the marks have or are about to have, and the record of the
    /// log that says it. None if that was done already.
    pub fn foretell(&mut self, log: &VolumeLog) -> Option<(u64, Option<LogIndex>)> {
        let heartbeat = self.heat.foretell()?;
        let Ticket(index) = self.remark(log, LogOp::Heartbeat, heartbeat);
        Some((heartbeat, index))
    }

    pub fn heartbeat(&self) -> (u64, bool) {
        match self.heat.foretold() {
            Some(heartbeat) => (heartbeat, true),
            None => (self.heat.heartbeat(), false),
        }
    }

    /// Whether the marks may say less than the truth.
    pub fn doubts_marks(&self) -> bool {
        self.unmarked || self.heat.foretold().is_some()
    }

    /// For marks that begin anew.
    pub fn facts_of_new_marks(&mut self) -> Facts {
        self.heat.renewed_facts()
    }

    pub fn heat(&self) -> &Heat {
        &self.heat
    }
}

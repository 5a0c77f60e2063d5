//! Carries the marks that the volume wants to the disk, and what the disk makes of it back.
//!
//! One task per volume makes one change at a time; everybody who waits meanwhile shares the next. A change that a
//! client waits for is not waited for longer than [`MARK_MAX`]: then the volume is *untracked*, and clients go on.
//!
//! Order, when marks fail: at half the bound the counters in the log and the chain are raised above that of the marks
//! (each alone is enough), then the first unmarked change is issued. So a crash while the marks say less than the
//! truth is noticed at the next start by a heartbeat that is higher elsewhere, and everything is compared. The one
//! case that is not covered: marks, log and remote all fail at once, and then the gateway crashes.

use std::sync::Arc;
use std::sync::Weak;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use super::Core;
use super::heat::Cold;
use crate::disk::{DiskError, Errno};
use crate::failpoint::{self, Safeguard};
use crate::marks::{Facts, MarksFile};
use crate::task;

/// The longest that a change waits for a mark.
pub const MARK_MAX: Duration = Duration::from_secs(2);

/// How often the marks are looked after.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Proofs are looked at; the store is flushed at most so often for their sake.
    pub look: Duration,
    /// How long a generation of changes lasts; what was changed in the newest few is what a crash has read again.
    pub generation: Duration,
    /// The heartbeat is raised so often while there are changes.
    pub beat: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { look: seconds(1), generation: seconds(10), beat: seconds(10) }
    }
}

/// What to do with changes of regions that cannot be marked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MarksFail {
    /// Clients go on; what they change is found by a full compare.
    #[default]
    Forward,
    /// Such changes fail with EIO.
    Refuse,
}

/// Log and pool are being told that the marks may be wrong; each ends when it was, or cannot be.
struct Told {
    synced: JoinHandle<()>,
    noted: JoinHandle<Result<(), task::Died>>,
}

/// Keeps the marks of `core` until it is gone.
pub(super) async fn run(core: Weak<Core>, pace: Pace, wanted: Arc<Notify>, mut file: MarksFile) {
    let mut ticks = tokio::time::interval(pace.look);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut generation = Instant::now();
    let Some(newest) = core.upgrade().map(|core| core.admission.lock().newest()) else { return };
    // When the heart beat last, and what was the newest change then.
    let mut beat = (Instant::now(), newest);
    let mut failed = false;
    loop {
        tokio::select! {
            biased;
            () = wanted.notified() => {}
            _ = ticks.tick() => {
                let Some(core) = core.upgrade() else { return };
                let due = generation.elapsed() >= pace.generation;
                if core.prove(due) {
                    generation = Instant::now();
                }
            }
        }
        let Some(core) = core.upgrade() else { return };
        if failed {
            // Whatever the file holds now, only a new life of it can be believed.
            let Some(kept) = core.begin_marks_anew(file).await else { return };
            (file, failed) = kept;
            if failed {
                tokio::time::sleep(pace.look).await;
                wanted.notify_one();
            }
            continue;
        }
        let newest = core.admission.lock().newest();
        let beats = beat.0.elapsed() >= pace.beat && beat.1 != newest;
        let Some(change) = core.admission.lock().marks_change(beats) else { continue };
        let (done, kept) = match task::blocking(move || (file.commit(&change), file)).await {
            Ok(ended) => ended,
            Err(died) => return core.marks_lost(&died).await,
        };
        file = kept;
        match done {
            Ok(()) => {
                let mut admission = core.admission.lock();
                let untracked = admission.is_unmarked();
                let was_ahead = admission.heartbeat().1;
                admission.marks_changed(&core.log, beats && !untracked);
                if beats {
                    // The record of the beat itself is no change.
                    beat = (Instant::now(), admission.newest());
                }
                failed = untracked;
                let caught_up = was_ahead && !admission.heartbeat().1;
                drop(admission);
                if failed {
                    wanted.notify_one();
                } else if caught_up {
                    core.note_doubts();
                }
                core.marks_moved();
            }
            Err(error) => {
                error!(volume = core.name, %error, "the marks cannot be written");
                failed = true;
                if core.settings.marks_fail == MarksFail::Forward {
                    core.foretell_durably().await;
                    core.untrack(&error);
                }
                wanted.notify_one();
            }
        }
    }
}

impl Core {
    /// Waits until the marks have come so far, and no longer than [`MARK_MAX`] after `since`.
    pub(super) async fn wait_for_marks(self: &Arc<Self>, awaited: Cold, since: Instant) -> Result<(), DiskError> {
        self.marks_wanted.notify_one();
        if tokio::time::timeout_at(since + MARK_MAX / 2, self.until_marks_reach(awaited)).await.is_ok() {
            return Ok(());
        }
        if self.settings.marks_fail == MarksFail::Forward {
            self.foretell();
        }
        if tokio::time::timeout_at(since + MARK_MAX, self.until_marks_reach(awaited)).await.is_ok() {
            return Ok(());
        }
        match self.settings.marks_fail {
            MarksFail::Forward => {
                // Whatever the change under way carried may have come to stand in the marks meanwhile.
                self.foretell();
                self.untrack(&"the disk does not answer");
                Ok(())
            }
            MarksFail::Refuse => Err(DiskError::Refused(Errno::EIO)),
        }
    }

    /// Waits until the marks have come so far, however long that takes.
    pub(super) async fn until_marks_reach(&self, awaited: Cold) {
        loop {
            let mut moved = std::pin::pin!(self.marks_moved.notified());
            moved.as_mut().enable();
            if self.have_marks_reached(awaited) {
                return;
            }
            moved.await;
        }
    }

    /// What is at rest cools, durably.
    pub(super) async fn settle_marks(&self) -> bool {
        let Some(settled) = self.admission.lock().settle_heat(&self.log) else { return false };
        self.marks_wanted.notify_one();
        let reached = self.until_marks_reach(settled);
        tokio::time::timeout(MARK_MAX, reached).await.is_ok() && self.admission.lock().state().logs()
    }

    fn have_marks_reached(&self, awaited: Cold) -> bool {
        let admission = self.admission.lock();
        admission.heat().has_reached(awaited) || admission.is_unmarked()
    }

    fn marks_moved(&self) {
        self.marks_moved.notify_waiters();
    }

    /// Raises the counters of log and chain above that of the marks, as far as they can be; none if that was done already.
    fn foretell(self: &Arc<Self>) -> Option<Told> {
        if !failpoint::stands(Safeguard::Foretold) {
            return None;
        }
        let mut admission = self.admission.lock();
        let (heartbeat, index) = admission.foretell(&self.log)?;
        drop(admission);
        warn!(volume = self.name, heartbeat, "the marks are late; log and chain are told that they may be wrong");
        // The pool keeps the doubt of a log that is full or stands still.
        let noted = self.note_doubts();
        let log = self.log.clone();
        let synced = tokio::spawn(async move {
            if let Some(index) = index {
                let _ = log.sync(index).await;
            }
        });
        self.urgent.notify_one();
        Some(Told { synced, noted })
    }

    /// As [`Self::foretell`], and waits until log and pool have it, but not for long.
    async fn foretell_durably(self: &Arc<Self>) {
        if let Some(Told { synced, noted }) = self.foretell() {
            let _ = tokio::time::timeout(MARK_MAX / 2, async { (synced.await, noted.await) }).await;
        }
    }

    fn untrack(&self, why: &dyn std::fmt::Display) {
        let mut admission = self.admission.lock();
        let was = admission.state();
        admission.untrack();
        let now = admission.state();
        drop(admission);
        if was != now {
            error!(
                volume = self.name,
                %why,
                "the marks cannot be written: nothing is published until they can; clients are served, and everything \
                 is compared afterwards"
            );
            self.urgent.notify_one();
        }
        self.marks_moved();
    }

    /// Nobody keeps the marks any more.
    async fn marks_lost(self: &Arc<Self>, why: &task::Died) {
        if self.settings.marks_fail == MarksFail::Forward {
            self.foretell_durably().await;
            self.untrack(why);
        }
    }

    /// Writes the marks as those of a volume that is hot all over. The file, and whether that failed.
    async fn begin_marks_anew(self: &Arc<Self>, mut file: MarksFile) -> Option<(MarksFile, bool)> {
        let facts = self.admission.lock().facts_of_new_marks();
        let (begun, file) = match task::blocking(move || (file.begin_anew(facts), file)).await {
            Ok(ended) => ended,
            Err(died) => {
                self.marks_lost(&died).await;
                return None;
            }
        };
        match begun {
            Ok(()) => self.track_again(facts),
            Err(ref error) => debug!(volume = self.name, %error, "the marks still cannot be written"),
        }
        Some((file, begun.is_err()))
    }

    fn track_again(self: &Arc<Self>, facts: Facts) {
        let mut admission = self.admission.lock();
        admission.track_again(facts);
        drop(admission);
        self.note_doubts();
        info!(volume = self.name, "the marks can be written again; everything is compared with the remote copy");
        self.marks_moved();
        self.urgent.notify_one();
    }

    /// Has the log's pool note whether the marks may be wrong. One at a time, and each as it is by then: a note that
    /// came late would undo the one after it.
    fn note_doubts(self: &Arc<Self>) -> JoinHandle<Result<(), task::Died>> {
        let core = self.clone();
        tokio::spawn(task::blocking(move || {
            let _alone = core.doubting.lock();
            let doubted = core.admission.lock().doubts_marks();
            core.log.doubt_marks(doubted);
        }))
    }

    /// Takes note of what is proven; flushes the store where that is what is missing. True if a generation began.
    fn prove(self: &Arc<Self>, due: bool) -> bool {
        // What a store has answered that came back meanwhile proves nothing of what it held before.
        self.check_incarnation();
        self.check_suspects();
        let (begun, wants_flush) = {
            let mut admission = self.admission.lock();
            admission.release(&self.log);
            admission.prove(&self.log, due)
        };
        if wants_flush && self.geometry.abilities.flush {
            self.flush_for_lazy_clients();
        }
        if self.admission.lock().heat().is_wanting() {
            self.marks_wanted.notify_one();
        }
        begun
    }
}

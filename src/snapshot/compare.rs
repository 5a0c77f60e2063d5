//! Compares a volume's store with its newest entry while clients write, and uploads again what differs.
//!
//! Finds what was written past the gateway, what a store returned wrongly when it was copied, and what the remote copy
//! has lost. Owns: windows, their repetition, the decision whether to repair, pace. Does not own: what counts as
//! changed meanwhile ([`crate::volume::watch`]), when a volume is compared ([`super::scrub`], or whoever asks).
//!
//! Order: a window is watched before its base is taken, and the base's cut is not older than what the watch began at.
//! While the volume is not shadowed nothing is compared; the window under way begins anew afterwards.
//! Nothing waits for the remote while it holds a range, so no client does.
//! Crash: what was found and not repaired is found again.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{RwLock, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::error;

use super::piece::{self, Tally};
use super::scrub::ScrubStatus;
use super::status::Report;
use crate::chain::resolve::{ResolveError, Resolver};
use crate::restore::ranges::Ranges;
use crate::units::{MIB, REGION, Span};
use crate::volume::scan::Interrupted;
use crate::volume::watch::Watch;
use crate::volume::{State, Volume};

/// Compared with one entry: long, since the indexes of each are read anew.
pub const WINDOW: u64 = 256 * MIB;
/// Parts of a window that are compared at the same time, each a piece of a megabyte at a time.
const PARALLEL: usize = 4;
/// Between two looks whether the volume is shadowed, and the log has room.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Logged at a time by a repair.
const REPAIR_PIECE: u64 = MIB;
/// A store that differs in more than so many hundredths is taken for another one, and not for the truth.
const DIFFERENT_MAX: u64 = 30;
/// Where so much differs, it is also seen against the data alone: a blank disk equals a sparse volume nearly everywhere.
const DATA_MIN: u64 = 64 * MIB;

const _: () = assert!(WINDOW.is_multiple_of(REGION));

/// Why a comparison came to no end.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    #[error("the newest recovery point cannot be read")]
    Copy(#[from] ResolveError),
    #[error("another gateway publishes this volume")]
    Fenced,
    #[error("the log has failed, and with it shadowing")]
    Unlogged,
    #[error("the gateway is stopping")]
    Stopping,
}

/// What a comparison is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Doing {
    /// For the volume to be shadowed, or for its turn.
    #[default]
    Waiting,
    Comparing,
    Repairing,
}

/// How far a comparison is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    pub doing: Doing,
    /// Bytes of the volume that are done, of all.
    pub done: u64,
    pub total: u64,
    /// Bytes that differ, of what is done.
    pub different: u64,
}

/// What became of what differs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    #[default]
    Equal,
    /// All that can be read is logged, and will be in the next recovery point.
    Repaired,
    /// More than could be kept in mind differs: a part is repaired.
    PartlyRepaired,
    /// Nobody asked for a repair.
    Left,
    /// This is not the store that was shadowed: nothing is repaired.
    TooMuch,
}

/// What a comparison found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub compared: u64,
    pub changed: u64,
    pub unreadable: u64,
    /// Of what was compared, what the copy has data for.
    pub data: u64,
    pub different: Ranges,
    /// Bytes that were logged again.
    pub repaired: u64,
    pub verdict: Verdict,
}

impl Outcome {
    fn add(&mut self, tally: Tally) {
        self.compared += tally.compared;
        self.changed += tally.changed;
        self.unreadable += tally.unreadable;
        self.data += tally.data;
        self.different.append(tally.different);
    }

    /// Whether this looks like another store than the one that was shadowed.
    fn is_too_much(&self) -> bool {
        let different = u128::from(self.different.bytes()) * 100;
        let share = |of: u64| u128::from(of) * u128::from(DIFFERENT_MAX);
        different > share(self.compared) || (self.different.bytes() >= DATA_MIN && different > share(self.data))
    }
}

/// Compares one volume. Clones are the same.
#[derive(Clone)]
pub struct Comparer(Arc<Inner>);

pub(super) struct Inner {
    pub(super) volume: Volume,
    pub(super) report: Arc<Report>,
    /// Bytes per second that may be read; none is no limit.
    pub(super) rate: Option<NonZeroU64>,
    pub(super) scrub: Mutex<Option<ScrubStatus>>,
    /// Bytes that differed, of all comparisons.
    different: AtomicU64,
    /// Held by the one comparison that was asked for.
    turn: tokio::sync::Mutex<()>,
    stop: watch::Sender<bool>,
    /// Read by whatever is under way.
    running: RwLock<()>,
}

impl Comparer {
    pub fn new(volume: Volume, report: Arc<Report>, rate: Option<NonZeroU64>) -> Self {
        Self(Arc::new(Inner {
            volume,
            report,
            rate,
            scrub: Mutex::default(),
            different: AtomicU64::new(0),
            turn: tokio::sync::Mutex::default(),
            stop: watch::Sender::default(),
            running: RwLock::default(),
        }))
    }

    pub fn volume(&self) -> &Volume {
        &self.0.volume
    }

    /// Bytes that comparisons found different since the start.
    pub fn different(&self) -> u64 {
        self.0.different.load(Ordering::Relaxed)
    }

    pub(super) fn inner(&self) -> &Inner {
        &self.0
    }

    /// Compares all of the volume, one such comparison after the other, and repairs what differs if that is asked for and
    /// is not too much. Dropping the future ends it.
    pub async fn compare(&self, repair: bool, told: &watch::Sender<Progress>) -> Result<Outcome, Ended> {
        self.unless_stopped(async {
            let _turn = self.0.turn.lock().await;
            self.compare_all(repair, told).await
        })
        .await
    }

    /// Ends whatever is under way, and lets nothing begin: nothing is logged by us afterwards.
    pub async fn stop(&self) {
        self.0.stop.send_replace(true);
        drop(self.0.running.write().await);
    }

    pub(super) async fn unless_stopped<T>(&self, job: impl Future<Output = Result<T, Ended>>) -> Result<T, Ended> {
        let _running = self.0.running.read().await;
        let mut stop = self.0.stop.subscribe();
        tokio::select! {
            biased;
            _ = stop.wait_for(|&stop| stop) => Err(Ended::Stopping),
            done = job => done,
        }
    }

    async fn compare_all(&self, repair: bool, told: &watch::Sender<Progress>) -> Result<Outcome, Ended> {
        let Inner { volume, report, rate, .. } = &*self.0;
        let size = volume.size();
        told.send_modify(|progress| progress.total = size);
        let mut windows = Windows::new(volume, report, *rate, PARALLEL);
        let mut found = Outcome::default();
        let mut start = 0;
        while start < size {
            let span = Span::new(start, (start + WINDOW).min(size));
            found.add(windows.compare(span, told).await?);
            told.send_modify(|progress| progress.different = found.different.bytes());
            start = span.end;
        }
        found.verdict = match () {
            () if found.different.is_empty() => Verdict::Equal,
            () if found.is_too_much() => Verdict::TooMuch,
            () if !repair => Verdict::Left,
            () => {
                told.send_modify(|progress| progress.doing = Doing::Repairing);
                self.repair(&mut found).await?
            }
        };
        self.tell_of(&found);
        Ok(found)
    }

    /// Logs again what is listed as different.
    pub(super) async fn repair(&self, found: &mut Outcome) -> Result<Verdict, Ended> {
        let volume = &self.0.volume;
        for span in found.different.listed() {
            let mut start = span.start;
            while start < span.end {
                let piece = Span::new(start, ((start / REPAIR_PIECE + 1) * REPAIR_PIECE).min(span.end));
                shadowed(volume).await?;
                // What clients write has the first claim on the log.
                if volume.log().used_bytes() * 2 > volume.log().capacity_bytes() {
                    sleep(LOOK_EVERY).await;
                    continue;
                }
                match volume.log_again(piece).await {
                    Ok(logged) => {
                        found.repaired += logged.bytes;
                        start = piece.end;
                    }
                    Err(Interrupted) => sleep(LOOK_EVERY).await,
                }
            }
        }
        Ok(if found.different.unlisted() > 0 { Verdict::PartlyRepaired } else { Verdict::Repaired })
    }

    /// Counts what was found, and tells operators, once for each comparison that found something.
    fn tell_of(&self, found: &Outcome) {
        self.0.different.fetch_add(found.different.bytes(), Ordering::Relaxed);
        let Some(first) = found.different.listed().first() else { return };
        let (volume, bytes) = (self.0.report.volume(), found.different.bytes());
        let (ranges, repaired) = (found.different.listed().len() as u64 + found.different.unlisted(), found.repaired);
        match found.verdict {
            Verdict::TooMuch => error!(
                volume, bytes, ranges, %first,
                "the store differs from its copy in so much that it may be another store; nothing is repaired: see that it is \
                 the right one, then serve it with --compare"
            ),
            _ => error!(
                volume, bytes, ranges, %first, repaired,
                "the store was changed past the gateway, or its copy is damaged"
            ),
        }
    }

    /// Compares `span` alone, for a scrub: what differs in it is repaired if it is not too much of it.
    pub(super) async fn compare_window(
        &self,
        windows: &mut Windows<'_>,
        span: Span,
        told: &watch::Sender<Progress>,
    ) -> Result<Outcome, Ended> {
        let mut found = Outcome::default();
        found.add(windows.compare(span, told).await?);
        if !found.different.is_empty() {
            found.verdict = if found.is_too_much() { Verdict::TooMuch } else { self.repair(&mut found).await? };
        }
        self.tell_of(&found);
        Ok(found)
    }
}

/// Returns when the volume is shadowed.
async fn shadowed(volume: &Volume) -> Result<(), Ended> {
    loop {
        match volume.state() {
            State::Shadowing => return Ok(()),
            State::Fenced => return Err(Ended::Fenced),
            _ if volume.log().failure().is_some() => return Err(Ended::Unlogged),
            _ => sleep(LOOK_EVERY).await,
        }
    }
}

/// Compares windows one after the other; keeps what it has read of indexes meanwhile.
pub(super) struct Windows<'a> {
    volume: &'a Volume,
    report: &'a Report,
    parallel: usize,
    pace: Pace,
    copy: Option<Resolver>,
}

enum Broken {
    Interrupted,
    Copy(ResolveError),
}

impl From<Interrupted> for Broken {
    fn from(Interrupted: Interrupted) -> Self {
        Self::Interrupted
    }
}

impl From<ResolveError> for Broken {
    fn from(error: ResolveError) -> Self {
        Self::Copy(error)
    }
}

impl<'a> Windows<'a> {
    pub(super) fn new(volume: &'a Volume, report: &'a Report, rate: Option<NonZeroU64>, parallel: usize) -> Self {
        Self { volume, report, parallel, pace: Pace::new(rate), copy: None }
    }

    pub(super) fn set_rate(&mut self, rate: Option<NonZeroU64>) {
        self.pace.rate = rate;
    }

    /// Compares one window, as often as it takes to see it whole while the volume is shadowed.
    pub(super) async fn compare(&mut self, span: Span, told: &watch::Sender<Progress>) -> Result<Tally, Ended> {
        loop {
            told.send_modify(|progress| (progress.doing, progress.done) = (Doing::Waiting, span.start));
            let (watch, copy) = self.begin(span).await?;
            told.send_modify(|progress| progress.doing = Doing::Comparing);
            match self.compare_watched(&watch, &copy, told).await {
                Ok(tally) => return Ok(tally),
                Err(Broken::Copy(error)) => return Err(error.into()),
                Err(Broken::Interrupted) => {
                    drop(watch);
                    sleep(LOOK_EVERY).await;
                }
            }
        }
    }

    /// A watch, and the content of an entry that it covers all that came after.
    async fn begin(&mut self, span: Span) -> Result<(Watch, Resolver), Ended> {
        loop {
            shadowed(self.volume).await?;
            // Before the point that ends a scan, all that was scanned counts as changed.
            if self.volume.is_exact(self.volume.published())
                && let Some(watch) = self.volume.watch(span)
                && let Some(base) = self.report.base()
                && base.cut >= watch.since()
            {
                let copy = match &self.copy {
                    Some(copy) => copy.at(&base.entry)?,
                    None => Resolver::new(base.remote, base.volume, &base.entry, None)?,
                };
                self.copy = Some(copy.clone());
                return Ok((watch, copy));
            }
            sleep(LOOK_EVERY).await;
        }
    }

    async fn compare_watched(
        &self,
        watch: &Watch,
        copy: &Resolver,
        told: &watch::Sender<Progress>,
    ) -> Result<Tally, Broken> {
        let span = watch.span();
        let parts: Vec<Span> = parts(span).collect();
        let each = stream::iter(parts).map(|part| self.compare_part(watch, copy, part, told));
        let mut tally = Tally::default();
        let mut parts = each.buffer_unordered(self.parallel);
        while let Some(part) = parts.try_next().await? {
            tally.add(part);
        }
        Ok(tally)
    }

    async fn compare_part(
        &self,
        watch: &Watch,
        copy: &Resolver,
        part: Span,
        told: &watch::Sender<Progress>,
    ) -> Result<Tally, Broken> {
        let mut tally = Tally::default();
        let mut start = part.start;
        while start < part.end {
            self.pace.wait().await;
            let seen = watch.read(Span::new(start, part.end)).await?;
            let read = seen.span;
            if !seen.parts.is_empty() {
                self.pace.read(read.len());
            }
            tally.add(piece::compare(copy, self.report, seen, self.volume.size()).await?);
            told.send_modify(|progress| progress.done += read.len());
            start = read.end;
        }
        Ok(tally)
    }
}

/// The regions of a window.
fn parts(span: Span) -> impl Iterator<Item = Span> {
    (span.start / REGION..span.end.div_ceil(REGION))
        .map(move |region| Span::at(region * REGION, REGION).intersect(span))
}

/// When the next piece may be read.
pub(super) struct Pace {
    rate: Option<NonZeroU64>,
    due: Mutex<Instant>,
}

impl Pace {
    pub(super) fn new(rate: Option<NonZeroU64>) -> Self {
        Self { rate, due: Mutex::new(Instant::now()) }
    }

    pub(super) async fn wait(&self) {
        if self.rate.is_some() {
            let due = *self.due.lock();
            sleep_until(due).await;
        }
    }

    /// So many bytes were read.
    pub(super) fn read(&self, bytes: u64) {
        if let Some(rate) = self.rate {
            let mut due = self.due.lock();
            *due = (*due).max(Instant::now()) + Duration::from_micros(bytes * 1_000_000 / rate);
        }
    }
}

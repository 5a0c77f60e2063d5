//! What is looked at again and again while a gateway runs: the status, alarms, and what the state folder is to know.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::state::{StateError, StateFolder};
use crate::snapshot::compare::Comparer;
use crate::snapshot::status::Report;
use crate::status::forecast::Forecast;
use crate::status::{LogStatus, PointStatus, ScrubStatus, Status, VolumeStatus};
use crate::volume::{Sequences, Volume};

/// How often the sequence's reserve and the volumes' ages are looked at.
const HOUSEKEEPING_EVERY: Duration = Duration::from_millis(250);

/// A volume as the status and the alarm see it.
pub struct Watched {
    volume: Volume,
    report: Arc<Report>,
    comparer: Comparer,
    max_age: Duration,
    late: AtomicBool,
    forecast: Mutex<Forecast>,
    /// How many stuck regions the state folder knows.
    stuck: AtomicU64,
}

impl Watched {
    /// `max_age` is what the oldest unpublished change may have before the alarm.
    pub fn new(volume: Volume, report: Arc<Report>, comparer: Comparer, max_age: Duration) -> Self {
        Self {
            report,
            comparer,
            max_age,
            late: AtomicBool::new(false),
            forecast: Mutex::default(),
            stuck: AtomicU64::new(volume.stuck_regions()),
            volume,
        }
    }

    pub fn comparer(&self) -> &Comparer {
        &self.comparer
    }

    /// A failed flush has left something in caches that cannot be given up: the next start is to know.
    fn remember_stuck(&self, state: &StateFolder) {
        if self.volume.stuck_regions() == self.stuck.load(Ordering::Relaxed) {
            return;
        }
        let (name, stuck) = (self.volume.name(), self.volume.stuck());
        match state.change_volume(name, |kept| kept.stuck.clone_from(&stuck)) {
            Ok(()) => {
                let regions = stuck.iter().map(|run| run.end - run.start).sum();
                self.stuck.store(regions, Ordering::Relaxed);
            }
            Err(error) => warn!(volume = name, %error, "the state folder cannot be written"),
        }
    }

    fn alarm(&self) {
        let lag = self.volume.lag();
        match self.volume.state().logs() {
            true => self.forecast.lock().sample(Instant::now(), lag.bytes),
            // What was unpublished before says nothing of how the log fills afterwards.
            false => *self.forecast.lock() = Forecast::default(),
        }
        let age = lag.age;
        let late = age > self.max_age;
        if self.late.swap(late, Ordering::Relaxed) == late {
            return;
        }
        let name = self.volume.name();
        if late {
            error!(volume = name, ?age, max_age = ?self.max_age, "the oldest unpublished change is too old");
        } else {
            info!(volume = name, "recovery points are up to date again");
        }
    }

    fn status(&self) -> VolumeStatus {
        let Self { volume, report, .. } = self;
        let lag = volume.lag();
        let log = volume.log();
        let full_in = self.forecast.lock().full_in(log.capacity_bytes()).filter(|_| volume.state().logs());
        VolumeStatus {
            name: volume.name().to_owned(),
            state: volume.state().name().to_owned(),
            size: volume.size(),
            lag_bytes: lag.bytes,
            lag_writes: lag.writes,
            lag_seconds: (lag.age.as_secs_f64() * 1000.0).round() / 1000.0,
            late: lag.age > self.max_age,
            newest_point: report
                .newest_point()
                .map(|point| PointStatus { number: point.number.0, time: point.time.to_string() }),
            log: LogStatus {
                used: log.used_bytes(),
                size: log.capacity_bytes(),
                full_in_seconds: full_in.map(|left| left.as_secs_f64().round()),
            },
            scanned: volume.size() - volume.scan_left(),
            total: volume.size(),
            hot: volume.hot_bytes(),
            reread: volume.reread(),
            uploaded: report.uploaded_bytes(),
            points: report.points(),
            last_error: report.last_error(),
            differing: self.comparer.different(),
            scrub: self.comparer.scrub_status().map(|scrub| ScrubStatus {
                compared: scrub.compared,
                total: scrub.total,
                differing: scrub.differing,
                finished: scrub.finished.map(|time| time.to_string()),
            }),
            latency: volume.latencies().into(),
        }
    }
}

pub fn status_of(watched: &[Watched]) -> Status {
    Status { volumes: watched.iter().map(Watched::status).collect() }
}

/// Writes down how far sequences may go, before they go there.
pub fn reserve_sequences(state: &StateFolder, sequences: &Sequences) -> Result<(), StateError> {
    if let Some(mark) = sequences.wanted() {
        state.set_sequence(mark)?;
        sequences.reserved_through(mark);
    }
    Ok(())
}

/// Renews the sequence's reserve, and raises and lowers alarms.
pub async fn keep_house(state: Arc<StateFolder>, sequences: Arc<Sequences>, watched: Arc<[Watched]>) {
    loop {
        tokio::time::sleep(HOUSEKEEPING_EVERY).await;
        let (reserving, of) = (state.clone(), sequences.clone());
        let reserved = tokio::task::spawn_blocking(move || reserve_sequences(&reserving, &of)).await;
        if let Ok(Err(error)) = reserved {
            warn!(%error, "the state folder cannot be written");
        }
        for watched in watched.iter() {
            watched.volume.tick();
            watched.alarm();
            watched.remember_stuck(&state);
        }
    }
}

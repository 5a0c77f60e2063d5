//! What the publisher tells of itself: shared with whoever asks for the status.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::Serialize;

use crate::format::VolumeId;
use crate::format::entry::Entry;
use crate::remote::Remote;
use crate::units::{EntryNumber, LogIndex, Timestamp};

/// A recovery point that was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct NewestPoint {
    pub number: EntryNumber,
    pub time: Timestamp,
}

/// The newest entry of the chain, which is complete: what a store can be compared with.
#[derive(Clone)]
pub struct Base {
    pub remote: Remote,
    pub volume: VolumeId,
    pub entry: Arc<Entry>,
    /// It shows the volume after the operations up to this one.
    pub cut: LogIndex,
}

pub struct Report {
    volume: String,
    base: Mutex<Option<Base>>,
    newest_point: Mutex<Option<NewestPoint>>,
    /// What the remote said last, until it answers again.
    error: Mutex<Option<String>>,
    /// Why nothing is published any more.
    stopped: Mutex<Option<String>>,
    uploaded_bytes: AtomicU64,
    points: AtomicU64,
}

impl Report {
    pub fn new(volume: &str) -> Self {
        Self {
            volume: volume.to_owned(),
            base: Mutex::default(),
            newest_point: Mutex::default(),
            error: Mutex::default(),
            stopped: Mutex::default(),
            uploaded_bytes: AtomicU64::new(0),
            points: AtomicU64::new(0),
        }
    }

    pub fn volume(&self) -> &str {
        &self.volume
    }

    pub fn newest_point(&self) -> Option<NewestPoint> {
        *self.newest_point.lock()
    }

    /// None before the chain was opened, and while its newest entry is a draft.
    pub fn base(&self) -> Option<Base> {
        self.base.lock().clone()
    }

    pub fn last_error(&self) -> Option<String> {
        self.stopped.lock().clone().or_else(|| self.error.lock().clone())
    }

    /// Bytes of packs and runs since the start.
    pub fn uploaded_bytes(&self) -> u64 {
        self.uploaded_bytes.load(Ordering::Relaxed)
    }

    /// Points published since the start.
    pub fn points(&self) -> u64 {
        self.points.load(Ordering::Relaxed)
    }

    /// To be told before the volume is ([`crate::volume::Volume::set_published`]): whoever begins to watch the volume
    /// finds no base here that is older than what is watched.
    pub(super) fn set_base(&self, base: Option<Base>) {
        *self.base.lock() = base;
    }

    pub(super) fn found_point(&self, point: NewestPoint) {
        *self.newest_point.lock() = Some(point);
    }

    pub(super) fn published_point(&self, point: NewestPoint) {
        self.found_point(point);
        self.points.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn uploaded(&self, bytes: u64) {
        self.uploaded_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn failed(&self, error: String) {
        *self.error.lock() = Some(error);
    }

    pub(super) fn reached(&self) {
        *self.error.lock() = None;
    }

    pub(super) fn stopped(&self, why: String) {
        *self.stopped.lock() = Some(why);
    }
}

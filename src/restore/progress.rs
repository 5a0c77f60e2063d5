//! How far a long job is: written by the job, read by whoever draws it. It knows nothing of terminals.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counters that only grow; `done` never passes `total`, save while `total` itself is being found out.
#[derive(Debug, Default)]
pub struct Progress {
    total: AtomicU64,
    done: AtomicU64,
    moved: AtomicU64,
}

impl Progress {
    /// A job over `total` bytes.
    pub fn new(total: u64) -> Self {
        Self { total: AtomicU64::new(total), ..Self::default() }
    }

    /// More to do than was known.
    pub fn grow(&self, bytes: u64) {
        self.total.fetch_add(bytes, Relaxed);
    }

    /// `bytes` of the whole are behind us, moved or skipped.
    pub fn pass(&self, bytes: u64) {
        self.done.fetch_add(bytes, Relaxed);
    }

    /// `bytes` were really read or written.
    pub fn transfer(&self, bytes: u64) {
        self.moved.fetch_add(bytes, Relaxed);
    }

    pub fn total(&self) -> u64 {
        self.total.load(Relaxed)
    }

    pub fn done(&self) -> u64 {
        self.done.load(Relaxed)
    }

    pub fn moved(&self) -> u64 {
        self.moved.load(Relaxed)
    }
}

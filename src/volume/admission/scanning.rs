//! The scan of what is marked: its front moves in the critical section, so that a change is ahead of it or behind it.

use bytes::Bytes;
use tokio::time::Instant;

use super::{Admission, State, Ticket};
use crate::format::log::LogOp;
use crate::marks::RegionSet;
use crate::units::{LogIndex, REGION, Span};
use crate::volume::progress::Progress;
use crate::writelog::VolumeLog;

/// Regions that are looked at together in a scan: 4 GiB. A hole as long is passed under one lock.
const RUN_MAX: u64 = 1024;

/// A range whose turn it is in a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanTurn {
    pub index: LogIndex,
    /// The content is to be compared with the remote copy, not logged.
    pub compare: bool,
}

impl Admission {
    /// In Overflowed or Replaying, and drained: restarts the log and begins to scan the marked regions.
    pub fn begin_resync(&mut self, log: &VolumeLog) {
        debug_assert!(matches!(self.state, State::Overflowed | State::Replaying));
        debug_assert!(self.progress.is_idle());
        self.forget();
        self.progress = Progress::new(self.newest());
        self.blind = RegionSet::new(self.size);
        self.front = 0;
        self.exact_from = None;
        self.inexact_since.get_or_insert_with(Instant::now);
        log.reset(self.newest().next());
        self.state = State::Resyncing;
        // A log that holds nothing is not told from what lay there before it.
        let Ticket(_) = self.remark(log, LogOp::Heartbeat, self.heat.heartbeat());
    }

    /// In Resyncing: the next run of marked bytes from the front on; none at the end of the scan.
    pub fn scan_ahead(&self) -> Option<Span> {
        let region = self.marked.next_from(self.front / REGION)?;
        let start = (region * REGION).max(self.front);
        let end = (self.marked.next_absent(region, region + RUN_MAX) * REGION).min(self.size);
        Some(Span::new(start, end))
    }

    /// Takes a range's turn in the scan: moves the front behind it. The caller holds the range and reads it next.
    /// None if the scan has been interrupted.
    pub fn scan_turn(&mut self, log: &VolumeLog, span: Span) -> Option<ScanTurn> {
        if self.state != State::Resyncing {
            return None;
        }
        let compare = !self.blind.contains_any(span);
        let Ticket(Some(index)) = self.record(log, LogOp::Scan, span, Bytes::new()) else {
            return None;
        };
        self.front = span.end;
        self.heat.touch_scanned(span);
        // The region that the front stands in keeps its mark: writes to the rest of it are still ahead.
        let whole = if span.end == self.size { self.size } else { span.end / REGION * REGION };
        self.marked.remove(Span::new((span.start / REGION * REGION).min(whole), whole));
        Some(ScanTurn { index, compare })
    }

    /// The scan has come to the end: from the newest index on, cuts are exact. False if it was interrupted.
    pub fn scan_finished(&mut self) -> bool {
        if self.state != State::Resyncing || self.scan_ahead().is_some() {
            return false;
        }
        self.exact_from = Some(self.newest());
        self.state = State::Shadowing;
        true
    }

    /// Bytes that are still to be scanned.
    pub fn scan_left(&self) -> u64 {
        let marked = self.marked.len() * REGION;
        // The region that the front stands in is scanned in part; the last one may be short.
        let begun = if self.marked.next_from(self.front / REGION) == Some(self.front / REGION) {
            self.front % REGION
        } else {
            0
        };
        marked.saturating_sub(begun).min(self.size)
    }
}

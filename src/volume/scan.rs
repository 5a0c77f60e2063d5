//! Reads the marked regions of a volume from front to back, while clients change it.
//!
//! A piece is read with its range held, so no change is in flight on it: what is read is the store at the piece's
//! log index exactly. The front moves in the critical section that gives the index: a later change of the piece is
//! behind the front and logged. Writers of the same megabyte wait for one short read, all others for nothing.
//!
//! A *blind* piece (the log still holds changes of it) goes through the log as a read-back, so that its order with
//! them is the log's. Every other piece is handed out to be compared with the remote copy.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tracing::warn;

use super::change::whole_sectors;
use super::{Core, LOG_FULL, State, Volume};
use crate::disk::{Disk, DiskError, Errno};
use crate::failpoint::{self, Safeguard};
use crate::format::log::LogOp;
use crate::units::{KIB, LogIndex, MIB, REGION, SECTOR, Span};
use crate::volume::admission::Ticket;
use crate::volume::ranges::RangeGuard;

/// Bytes read at a time: a short read even on a rotating disk.
pub(super) const PIECE: u64 = MIB;
/// The smaller ones are tried when a piece cannot be read, to find the smallest part that is unreadable.
const PIECES: [u64; 3] = [PIECE, 64 * KIB, 4 * KIB];
/// A hole shorter than this is read as data.
const HOLE_MIN: u64 = PIECE;

const _: () = assert!(REGION.is_multiple_of(PIECE));

/// A range of the volume as it was at a log index.
#[derive(Debug)]
pub struct Piece {
    pub span: Span,
    pub index: LogIndex,
    pub content: Content,
}

#[derive(Debug)]
pub enum Content {
    /// Parts in order, which together are the span; all but the volume's last are in whole sectors.
    Parts(Vec<(Span, Part)>),
    /// Not allocated by the store: reads as zeroes.
    Hole,
    /// Went through the log.
    Logged,
}

#[derive(Debug)]
pub enum Part {
    Data(Bytes),
    Unreadable,
}

/// A piece whose turn has come: its place in the log is taken, its range is held until it has been read.
pub struct Turn {
    // In this order: the operation completes before its range is let go.
    operation: Operation,
    _guard: Option<RangeGuard>,
    span: Span,
    hole: bool,
    compare: bool,
    distrusts: u64,
}

/// The piece's operation in the log; it completes when this is dropped, however the scan goes on.
struct Operation {
    core: Arc<Core>,
    index: LogIndex,
}

impl Drop for Operation {
    fn drop(&mut self) {
        self.core.admission.lock().complete(self.index);
    }
}

/// Why a scan ended early; the volume is in Overflowed, or the store is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupted;

impl Volume {
    /// The next piece, in order; none when there is no more. When all pieces have been read and none was interrupted,
    /// [`Self::scan_finished`] ends the scan.
    pub async fn scan_next(&self) -> Result<Option<Turn>, Interrupted> {
        let core = &self.0;
        loop {
            let run = {
                let admission = core.admission.lock();
                if admission.state() != State::Resyncing {
                    return Err(Interrupted);
                }
                match admission.scan_ahead() {
                    Some(run) => run,
                    None => return Ok(None),
                }
            };
            let hole = core.hole(run).await?;
            let end = hole.unwrap_or((run.start / PIECE + 1) * PIECE).min(run.end);
            let mut span = Span::new(run.start, end);
            // A long hole is passed only while nothing changes it: writers must not queue behind whoever does.
            let guard = match core.ranges.try_acquire(span.rounded_out(SECTOR)) {
                Some(guard) => guard,
                None => {
                    span.end = span.end.min((span.start / PIECE + 1) * PIECE);
                    core.ranges.acquire(span.rounded_out(SECTOR)).await
                }
            };
            // What was a hole before the range was held need not be one now.
            let hole = match hole {
                Some(_) => core.hole(span).await? == Some(span.end),
                None => false,
            };
            if !hole && span.len() > PIECE {
                continue;
            }
            let (turn, distrusts) = {
                let mut admission = core.admission.lock();
                let was = admission.state();
                let turn = admission.scan_turn(&core.log, span);
                core.announce(was, &admission, LOG_FULL);
                (turn.ok_or(Interrupted)?, admission.distrusts())
            };
            let operation = Operation { core: core.clone(), index: turn.index };
            let guard = failpoint::stands(Safeguard::ScanHoldsRange).then_some(guard);
            return Ok(Some(Turn { operation, _guard: guard, span, hole, compare: turn.compare, distrusts }));
        }
    }
}

impl Volume {
    /// Every piece has been read: from now on cuts are exact. False if the scan was interrupted.
    pub fn scan_finished(&self) -> bool {
        self.0.admission.lock().scan_finished()
    }
}

impl Turn {
    pub fn index(&self) -> LogIndex {
        self.operation.index
    }

    /// When the next piece may be read, at `rate` bytes per second, if this one was due at `due`. Holes take no time.
    pub fn due_after(&self, rate: Option<NonZeroU64>, due: Instant) -> Instant {
        let Some(rate) = rate.filter(|_| !self.hole) else { return due };
        let micros = self.span.len() * 1_000_000 / rate;
        due.max(Instant::now()) + Duration::from_micros(micros)
    }

    /// Reads the piece; then changes of its range go on.
    pub async fn read(self) -> Result<Piece, Interrupted> {
        let core = &self.operation.core;
        if !self.hole {
            core.reread.fetch_add(self.span.len(), Ordering::Relaxed);
        }
        let content = match (self.hole, self.compare) {
            (true, true) => Content::Hole,
            (true, false) => {
                core.log_found(LogOp::Zero, self.span, Bytes::new())?;
                Content::Logged
            }
            (false, true) => Content::Parts(core.read_parts(self.span).await?),
            (false, false) => {
                core.log_parts(core.read_parts(self.span).await?)?;
                Content::Logged
            }
        };
        // A piece that shows what a store forgot afterwards does not fit the pieces that come.
        if core.check_incarnation() || core.admission.lock().distrusts() != self.distrusts {
            return Err(Interrupted);
        }
        Ok(Piece { span: self.span, index: self.operation.index, content })
    }
}

impl Core {
    /// If the span begins with a hole worth skipping: its end, a multiple of the piece, or the span's end.
    pub(super) async fn hole(&self, span: Span) -> Result<Option<u64>, Interrupted> {
        if !self.geometry.abilities.extents {
            return Ok(None);
        }
        let mut end = span.start;
        while end < span.end {
            let extents = match self.store.extents(end, span.end - end, 1).await {
                Ok(extents) => extents,
                Err(DiskError::Lost) => {
                    self.lost("a scan");
                    return Err(Interrupted);
                }
                Err(_) => break,
            };
            match extents.first() {
                Some(extent) if extent.zero && extent.length > 0 => end += extent.length,
                _ => break,
            }
        }
        let end = if end >= span.end { span.end } else { end / PIECE * PIECE };
        Ok((end >= span.start + HOLE_MIN || (end == span.end && end > span.start)).then_some(end))
    }

    /// What the span holds, in parts; where it cannot be read, in the smallest parts that are tried.
    pub(super) async fn read_parts(&self, span: Span) -> Result<Vec<(Span, Part)>, Interrupted> {
        let parts = self.read_quietly(span).await?;
        for (range, _) in parts.iter().filter(|(_, part)| matches!(part, Part::Unreadable)) {
            warn!(volume = self.name, %range, "a range cannot be read; it is unreadable in points");
        }
        Ok(parts)
    }

    /// As [`Self::read_parts`], but nobody is told of what cannot be read.
    pub(super) async fn read_quietly(&self, span: Span) -> Result<Vec<(Span, Part)>, Interrupted> {
        let mut parts = Vec::new();
        self.read_pieces(span, &PIECES, &mut parts).await?;
        Ok(parts)
    }

    /// Reads `span` in pieces of the first of these sizes, and one that fails in pieces of the next.
    async fn read_pieces(&self, span: Span, sizes: &[u64], parts: &mut Vec<(Span, Part)>) -> Result<(), Interrupted> {
        let Some((&size, smaller)) = sizes.split_first() else {
            parts.push((span, Part::Unreadable));
            return Ok(());
        };
        for piece in span.pieces(size) {
            match self.store.read(piece.start, piece.len() as u32).await {
                Ok(data) => parts.push((piece, Part::Data(data))),
                // A store that is away says nothing about what can be read.
                Err(DiskError::Lost | DiskError::Refused(_) | DiskError::Io(Errno::ESHUTDOWN)) => {
                    self.lost("a read of our own");
                    return Err(Interrupted);
                }
                Err(_) => Box::pin(self.read_pieces(piece, smaller, parts)).await?,
            }
        }
        Ok(())
    }

    /// Logs what was found; the index of the last record.
    pub(super) fn log_parts(&self, parts: Vec<(Span, Part)>) -> Result<LogIndex, Interrupted> {
        let mut last = Err(Interrupted);
        for (span, part) in parts {
            last = match part {
                Part::Data(data) => self.log_found(LogOp::ReadBack, span, whole_sectors(data)),
                Part::Unreadable => self.log_found(LogOp::Unreadable, span, Bytes::new()),
            };
            last?;
        }
        last
    }

    fn log_found(&self, op: LogOp, span: Span, payload: Bytes) -> Result<LogIndex, Interrupted> {
        let mut admission = self.admission.lock();
        let was = admission.state();
        let ticket = admission.admit_found(&self.log, op, span, payload);
        self.announce(was, &admission, LOG_FULL);
        match ticket {
            Ticket(Some(index)) => {
                admission.complete(index);
                Ok(index)
            }
            Ticket(None) => Err(Interrupted),
        }
    }
}

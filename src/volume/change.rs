//! The path of a change, as [`super`] draws it: lock, mark, record, forward, and what the answer means for the log.
//!
//! Owns: steps 1 to 5 of one operation. Does not own: what is known of the volume as a whole ([`super::admission`]).

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;
use tracing::warn;

use super::admission::{self, Ticket};
use super::flushes::Flushing;
use super::heat::Cold;
use super::latency::{Kind, Stopwatch};
use super::ranges::RangeGuard;
use super::{Core, LOG_FULL};
use crate::disk::{Disk, DiskError, Errno, Pending, Rewrite, ZeroMode};
use crate::format::log::LogOp;
use crate::units::{LogIndex, REQUEST_MAX, SECTOR, Span};

/// What decides how a change's answer is understood.
struct Mode {
    /// Zeroes only if that is fast: refusing changes nothing.
    fast_only: bool,
    /// It is to be durable when it is answered.
    durable: Option<Flushing>,
    /// How often the store had been distrusted when it was admitted.
    distrusts: u64,
}

/// A change as a client asks for it.
pub(super) enum Request {
    Write(Bytes),
    Trim,
    Zeroes(ZeroMode),
}

impl Request {
    fn kind(&self) -> Kind {
        match self {
            Self::Write(_) => Kind::Write,
            Self::Trim | Self::Zeroes(_) => Kind::Erase,
        }
    }
}

impl Core {
    /// What lies outside the volume has no place in the log; it is refused as the store would refuse it.
    pub(super) fn change(self: &Arc<Self>, offset: u64, length: u64, request: Request, fua: bool) -> Pending<()> {
        let watch = Stopwatch::start(request.kind());
        match self.geometry.admit_change(offset, length) {
            Ok(()) => match self.settings.throttle.and_then(|most| throttled(most, self.log.fill())) {
                None => self.submit(Span::at(offset, length), request, fua, watch),
                Some(delay) => {
                    let core = self.clone();
                    Pending::later(async move {
                        tokio::time::sleep(delay).await;
                        core.submit(Span::at(offset, length), request, fua, watch).await
                    })
                }
            },
            Err(refused) => Pending::ready(Err(refused)),
        }
    }

    /// A change that depends on what the range holds: it is read with the range held, and is a write from there on.
    pub(super) fn rewrite(self: &Arc<Self>, offset: u64, length: u32, change: Rewrite, fua: bool) -> Pending<bool> {
        let mut watch = Stopwatch::start(Kind::Write);
        let span = Span::at(offset, length.into());
        if let Err(refused) = self.geometry.admit_change(offset, length.into()) {
            return Pending::ready(Err(refused));
        }
        let core = self.clone();
        Pending::later(async move {
            if let Some(delay) = core.settings.throttle.and_then(|most| throttled(most, core.log.fill())) {
                tokio::time::sleep(delay).await;
            }
            let guard = core.ranges.acquire(span.rounded_out(SECTOR)).await;
            watch.lap_added();
            let found = core.store.read(offset, length).await?;
            watch.lap_store();
            if found.len() as u64 != span.len() {
                // What is missing was not compared.
                return Err(DiskError::Io(Errno::EIO));
            }
            let Some(data) = change(found) else { return Ok(false) };
            if data.len() as u64 != span.len() {
                // Elsewhere the range is not held.
                return Err(DiskError::Refused(Errno::EINVAL));
            }
            if !span.is_empty() {
                core.begin(guard, span, Request::Write(data), fua, watch).await?;
            }
            Ok(true)
        })
    }

    fn submit(self: &Arc<Self>, span: Span, request: Request, fua: bool, watch: Stopwatch) -> Pending<()> {
        if span.is_empty() {
            return self.issue(span, request, fua);
        }
        let locked = span.rounded_out(SECTOR);
        match self.ranges.try_acquire(locked) {
            Some(guard) => self.begin(guard, span, request, fua, watch),
            None => {
                let core = self.clone();
                Pending::later(async move {
                    let guard = core.ranges.acquire(locked).await;
                    core.begin(guard, span, request, fua, watch).await
                })
            }
        }
    }

    /// Steps 2 to 5, with the range held.
    fn begin(
        self: &Arc<Self>,
        guard: RangeGuard,
        span: Span,
        request: Request,
        fua: bool,
        watch: Stopwatch,
    ) -> Pending<()> {
        match self.admit(span, &request) {
            Ok(admitted) => self.forward(guard, admitted, span, request, fua, watch),
            Err(mut cold) => {
                let core = self.clone();
                Pending::later(async move {
                    let since = Instant::now();
                    let admitted = loop {
                        core.wait_for_marks(cold, since).await?;
                        match core.admit(span, &request) {
                            Ok(admitted) => break admitted,
                            // Cooled again before its turn came.
                            Err(again) => cold = again,
                        }
                    };
                    core.forward(guard, admitted, span, request, fua, watch).await
                })
            }
        }
    }

    /// Steps 4 and 5.
    fn forward(
        self: &Arc<Self>,
        guard: RangeGuard,
        (ticket, distrusts): (Ticket, u64),
        span: Span,
        request: Request,
        fua: bool,
        mut watch: Stopwatch,
    ) -> Pending<()> {
        let fast_only = matches!(request, Request::Zeroes(ZeroMode { fast_only: true, .. }));
        let durable = fua.then(|| self.admission.lock().making_durable());
        let mode = Mode { fast_only, durable, distrusts };
        watch.lap_added();
        match self.issue(span, request, fua) {
            Pending::Ready(answer) => {
                watch.lap_store();
                let answer = answer.expect("not polled yet");
                // Where it need not wait, it takes no longer than a few looks at the clock.
                let waits = self.admission.is_locked();
                self.finish(guard, ticket, span, answer, mode);
                if waits {
                    watch.lap_added();
                }
                watch.count(&self.latencies);
                Pending::ready(answer)
            }
            Pending::Later(answer) => {
                let core = self.clone();
                Pending::later(async move {
                    let answer = answer.await;
                    watch.lap_store();
                    core.finish(guard, ticket, span, answer, mode);
                    watch.lap_added();
                    watch.count(&core.latencies);
                    answer
                })
            }
        }
    }

    fn issue(&self, span: Span, request: Request, fua: bool) -> Pending<()> {
        match request {
            Request::Write(data) => self.store.write(span.start, data, fua),
            Request::Trim => self.store.trim(span.start, span.len(), fua),
            Request::Zeroes(mode) => self.store.write_zeroes(span.start, span.len(), mode, fua),
        }
    }

    /// Says also how often the store had been distrusted by then.
    fn admit(&self, span: Span, request: &Request) -> Result<(Ticket, u64), Cold> {
        let inner = admission::inner(span, self.geometry.size);
        let (op, payload) = match request {
            Request::Write(data) if inner.is_empty() => (LogOp::Write, data.slice(..0)),
            Request::Write(data) => {
                let from = (inner.start - span.start) as usize;
                (LogOp::Write, whole_sectors(data.slice(from..from + inner.len() as usize)))
            }
            Request::Trim if self.geometry.abilities.trim_reads_zero => (LogOp::Zero, Bytes::new()),
            Request::Trim => (LogOp::Trim, Bytes::new()),
            Request::Zeroes(_) => (LogOp::Zero, Bytes::new()),
        };
        let mut admission = self.admission.lock();
        let was = admission.state();
        // Regions are marked by what the operation may change, edges included; the record holds what it says.
        let ticket = admission.admit(&self.log, &self.sequences, op, span, inner, payload);
        self.announce(was, &admission, LOG_FULL);
        if admission.heat().is_wanted() {
            self.marks_wanted.notify_one();
        }
        Ok((ticket?, admission.distrusts()))
    }

    /// Step 5: what the store's answer means for the log.
    fn finish(
        self: &Arc<Self>,
        guard: RangeGuard,
        ticket: Ticket,
        span: Span,
        answer: Result<(), DiskError>,
        mode: Mode,
    ) {
        if let Some(durable) = mode.durable {
            self.flush_answered(durable, answer);
            // Its error may be about any earlier one, as that of a flush.
            if matches!(answer, Err(DiskError::Io(errno)) if errno != Errno::ENOTSUP) {
                self.flush_failed();
            }
        }
        let Ticket(Some(index)) = ticket else {
            if answer == Err(DiskError::Lost) {
                self.lost("a change");
            }
            return;
        };
        match answer {
            Ok(()) => {
                let edges = self.edges(span);
                let outer = self.clip(span.rounded_out(SECTOR));
                let incarnation = self.store.incarnation();
                let mut admission = self.admission.lock();
                if admission.is_stale(incarnation, mode.distrusts) {
                    // A cut that has it would show it beside what the store has forgotten.
                    admission.void_unknown(index, outer);
                    drop(admission);
                    self.check_incarnation();
                } else if edges.is_empty() {
                    admission.complete(index);
                } else {
                    admission.complete_ragged(index, outer, edges.len() as u32);
                    drop(admission);
                    self.read_back(guard, index, edges);
                }
            }
            Err(DiskError::Refused(_)) => self.refused(index, span),
            Err(DiskError::Io(Errno::ENOTSUP)) if mode.fast_only => self.refused(index, span),
            Err(DiskError::Io(errno)) => {
                let unknown = self.clip(span.rounded_out(SECTOR));
                warn!(volume = self.name, range = %unknown, %errno, "the store failed a change; reading back what it holds");
                self.admission.lock().void_unknown(index, unknown);
                self.read_back(guard, index, vec![unknown]);
            }
            Err(DiskError::Lost) => {
                self.admission.lock().void_unknown(index, self.clip(span.rounded_out(SECTOR)));
                self.lost("a change");
            }
        }
    }

    fn refused(&self, index: LogIndex, span: Span) {
        let mut admission = self.admission.lock();
        let was = admission.state();
        admission.void(&self.log, index, span);
        self.announce(was, &admission, LOG_FULL);
    }

    /// The sectors that a change covers in part only.
    fn edges(&self, span: Span) -> Vec<Span> {
        let inner = admission::inner(span, self.geometry.size);
        let outer = self.clip(span.rounded_out(SECTOR));
        if inner.is_empty() {
            return vec![outer];
        }
        [Span::new(outer.start, inner.start.max(outer.start)), Span::new(inner.end.min(outer.end), outer.end)]
            .into_iter()
            .filter(|edge| !edge.is_empty())
            .collect()
    }

    fn clip(&self, span: Span) -> Span {
        Span::new(span.start, span.end.min(self.geometry.size))
    }

    /// Finds out what stands in `parts`, which `index` left unknown, holding its range meanwhile. Nobody waits.
    fn read_back(self: &Arc<Self>, guard: RangeGuard, index: LogIndex, parts: Vec<Span>) {
        let core = self.clone();
        let distrusts = self.admission.lock().distrusts();
        tokio::spawn(async move {
            for part in parts {
                if part.len() > u64::from(REQUEST_MAX) {
                    // More than belongs into memory at once: the scan of a resync reads it instead.
                    let mut admission = core.admission.lock();
                    let was = admission.state();
                    admission.stop_logging(part);
                    core.announce(was, &admission, "a range too large to read back is unknown");
                    return;
                }
                // An interruption leaves the barrier, and the range is marked with all others.
                let Ok(found) = core.read_parts(part).await else { return };
                // What a store shows that has come back is not what it showed when the change was answered.
                if core.check_incarnation() || core.admission.lock().distrusts() != distrusts {
                    return;
                }
                let Ok(by) = core.log_parts(found) else { return };
                core.admission.lock().settle(index, by);
            }
            drop(guard);
        });
    }
}

/// How long a change is delayed when the log is so full: nothing up to the half, then ever more.
fn throttled(most: Duration, fill: f64) -> Option<Duration> {
    let excess = (fill - 0.5).max(0.0) * 2.0;
    (excess > 0.0).then(|| most.mul_f64(excess * excess))
}

/// Filled up with zeroes to whole sectors; copies only at the end of an odd-sized volume.
pub(super) fn whole_sectors(data: Bytes) -> Bytes {
    let rest = data.len() % SECTOR as usize;
    if rest == 0 {
        return data;
    }
    let mut padded = BytesMut::with_capacity(data.len().next_multiple_of(SECTOR as usize));
    padded.extend_from_slice(&data);
    padded.resize(data.len().next_multiple_of(SECTOR as usize), 0);
    padded.freeze()
}

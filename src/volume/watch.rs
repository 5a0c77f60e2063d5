//! Notes which sectors change while somebody compares them with the remote copy.
//!
//! The store is compared with an entry of the chain while clients write. What may differ rightly is what was changed
//! after that entry's cut: a *watch* begins with all that is not published, and notes every change from then on. So
//! a sector that differs and is not noted was changed past the volume, or its copy is damaged.
//!
//! Owns: the sets of noted sectors, and reading a piece together with what is noted of it. Does not own: what is
//! compared with what, and when ([`crate::snapshot::compare`]).
//!
//! Order: a watch begins before its base is looked up, so that it covers all that came after the base's cut. A piece is
//! read with its range held: no change of it is in flight, and those before have been noted.
//! A watch *breaks* when logging ends for whatever reason: what changes then is noted nowhere here.

use std::sync::Arc;

use super::scan::{Interrupted, PIECE, Part};
use super::{Core, Volume};
use crate::units::{BLOCK, LogIndex, Mask, SECTOR, Span};

/// Names a watch of one volume; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchId(u64);

/// The watches of a volume.
#[derive(Debug, Default)]
pub struct Watches {
    last: u64,
    open: Vec<Noted>,
}

#[derive(Debug)]
struct Noted {
    id: WatchId,
    span: Span,
    /// Of each block that the span touches, the sectors that changed: 256 KiB for a gibibyte.
    changed: Vec<Mask>,
}

impl Watches {
    /// From now on every change of `span` that [`Self::note`] is told of is kept, until [`Self::end`].
    pub fn begin(&mut self, span: Span) -> WatchId {
        self.last += 1;
        let id = WatchId(self.last);
        let blocks = span.end.div_ceil(BLOCK) - span.start / BLOCK;
        self.open.push(Noted { id, span, changed: vec![Mask::NONE; blocks as usize] });
        id
    }

    pub fn note(&mut self, changed: Span) {
        self.open.iter_mut().for_each(|watch| watch.note(changed));
    }

    /// Something changes, or has changed, that nobody can name.
    pub fn break_all(&mut self) {
        self.open.clear();
    }

    pub fn end(&mut self, id: WatchId) {
        self.open.retain(|watch| watch.id != id);
    }

    /// The noted sectors of each block that `part` touches, a part of the watched span; none if the watch is broken.
    pub fn changed(&self, id: WatchId, part: Span) -> Option<Vec<Mask>> {
        let watch = self.open.iter().find(|watch| watch.id == id)?;
        let first = watch.span.start / BLOCK;
        let (from, to) = (part.start / BLOCK - first, part.end.div_ceil(BLOCK) - first);
        Some(watch.changed[from as usize..to as usize].to_vec())
    }
}

impl Noted {
    fn note(&mut self, changed: Span) {
        let common = changed.rounded_out(SECTOR).intersect(self.span.rounded_out(SECTOR));
        if common.is_empty() {
            return;
        }
        let first = self.span.start / BLOCK;
        for block in common.start / BLOCK..common.end.div_ceil(BLOCK) {
            let changed = &mut self.changed[(block - first) as usize];
            *changed = changed.or(sectors_of(block, common));
        }
    }
}

/// The sectors of block number `block` that the bytes touch.
pub fn sectors_of(block: u64, span: Span) -> Mask {
    let within = span.intersect(Span::at(block * BLOCK, BLOCK));
    let first = (within.start - block * BLOCK) / SECTOR;
    let end = (within.end - block * BLOCK).div_ceil(SECTOR);
    if within.is_empty() { Mask::NONE } else { Mask::range(first as u32, (end - first) as u32) }
}

/// A watch on a span of a volume, which ends when this is dropped.
pub struct Watch {
    core: Arc<Core>,
    id: WatchId,
    span: Span,
    since: LogIndex,
    distrusts: u64,
}

/// A range of the store as it was at one moment.
#[derive(Debug)]
pub struct Seen {
    pub span: Span,
    /// In order, together the span; none of a hole, which reads as zeroes.
    pub parts: Vec<(Span, Part)>,
    /// Of each block that the span touches: the sectors that changed after the cut that the watch began at.
    pub changed: Vec<Mask>,
}

impl Volume {
    /// Begins to note what changes in `span`. None while changes are not logged. What a scan has still to read counts
    /// as changed.
    pub fn watch(&self, span: Span) -> Option<Watch> {
        let mut admission = self.0.admission.lock();
        let (id, since) = admission.watch(span)?;
        Some(Watch { core: self.0.clone(), id, span, since, distrusts: admission.distrusts() })
    }

    /// Reads `span`, at most a request's length, as it is at the moment, whatever changes it.
    pub async fn peek(&self, span: Span) -> Result<Seen, Interrupted> {
        let blocks = span.end.div_ceil(BLOCK) - span.start / BLOCK;
        let parts = self.0.read_quietly(span).await?;
        Ok(Seen { span, parts, changed: vec![Mask::NONE; blocks as usize] })
    }

    /// Puts what the store holds in `span`, at most a log record's payload, into the next recovery point. What cannot
    /// be read stays as it was. The bytes that were logged, and the index of the last record of them.
    pub async fn log_again(&self, span: Span) -> Result<Logged, Interrupted> {
        let core = &self.0;
        let distrusts = core.admission.lock().distrusts();
        let _guard = core.ranges.acquire(span.rounded_out(SECTOR)).await;
        let parts = core.read_quietly(span).await?;
        if !core.is_trusted(distrusts) {
            return Err(Interrupted);
        }
        let readable: Vec<_> = parts.into_iter().filter(|(_, part)| matches!(part, Part::Data(_))).collect();
        let bytes = readable.iter().map(|(span, _)| span.len()).sum();
        let through = if readable.is_empty() { None } else { Some(core.log_parts(readable)?) };
        Ok(Logged { bytes, through })
    }
}

/// What [`Volume::log_again`] has logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Logged {
    pub bytes: u64,
    pub through: Option<LogIndex>,
}

impl Watch {
    /// What was published when the watch began: everything after it is noted.
    pub fn since(&self) -> LogIndex {
        self.since
    }

    pub fn span(&self) -> Span {
        self.span
    }

    /// Reads the beginning of `span`, in whole sectors and within the watched one: a piece, or a hole up to its end.
    pub async fn read(&self, span: Span) -> Result<Seen, Interrupted> {
        let core = &self.core;
        let piece = |span: Span| Span::new(span.start, span.end.min((span.start / PIECE + 1) * PIECE));
        let hole = core.hole(span).await?;
        let mut span = hole.map_or(piece(span), |end| Span::new(span.start, end));
        // A long hole is looked at only while nothing changes it: writers must not queue behind whoever does.
        let guard = match core.ranges.try_acquire(span.rounded_out(SECTOR)) {
            Some(guard) => guard,
            None => {
                span = piece(span);
                core.ranges.acquire(span.rounded_out(SECTOR)).await
            }
        };
        let hole = hole.is_some() && core.hole(span).await? == Some(span.end);
        if !hole {
            span = piece(span);
        }
        let parts = if hole { Vec::new() } else { core.read_quietly(span).await? };
        let changed = core.admission.lock().watches().changed(self.id, span);
        drop(guard);
        // What a store shows that was lost says nothing of what it held when the piece was published.
        if !core.is_trusted(self.distrusts) {
            return Err(Interrupted);
        }
        Ok(Seen { span, parts, changed: changed.ok_or(Interrupted)? })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.core.admission.lock().watches().end(self.id);
    }
}

impl Core {
    /// Whether nothing has happened to the store since `distrusts` was taken.
    fn is_trusted(&self, distrusts: u64) -> bool {
        !self.check_incarnation() && self.admission.lock().distrusts() == distrusts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::MIB;

    #[test]
    fn a_watch_notes_the_sectors_that_change_while_it_is_open() {
        let mut watches = Watches::default();
        let span = Span::new(MIB, MIB + 3 * BLOCK + 700);
        watches.note(Span::at(MIB, 4096));
        let id = watches.begin(span);
        let other = watches.begin(Span::new(0, MIB));
        watches.note(Span::new(MIB - 1, MIB + 1));
        watches.note(Span::at(MIB + BLOCK - SECTOR, 2 * SECTOR));
        watches.note(Span::new(MIB + 3 * BLOCK + 600, 1 << 40));
        let first = Mask::range(0, 1).or(Mask::range(127, 1));
        let expected = [first, Mask::range(0, 1), Mask::NONE, Mask::range(1, 1)];
        assert_eq!(watches.changed(id, span).unwrap(), expected);
        assert_eq!(watches.changed(id, Span::at(MIB + BLOCK, BLOCK)).unwrap(), expected[1..2]);
        assert_eq!(watches.changed(other, Span::new(0, MIB)).unwrap()[15], Mask::range(127, 1));
        watches.end(other);
        assert_eq!(watches.changed(other, Span::new(0, MIB)), None);
        watches.break_all();
        assert_eq!(watches.changed(id, span), None, "a broken watch knows nothing");
    }
}

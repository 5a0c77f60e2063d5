//! Clients: they change and read the volume, stamp what they write with who, what and where, and hold every answer
//! against what the store answered (T1), and every flush against what it covers (T2).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::ground::{Ground, below, broken, lock, millis, note, once_in};
use super::store::{Kind, Store};
use crate::disk::{Disk, DiskError, Errno, ZeroMode};
use crate::units::{KIB, SECTOR, Span};
use crate::volume::{MARK_MAX, MarksFail};

/// The most that a request takes here: the store's own time, that of a few before it on the same range, and the bound
/// of a flush that waits for the log.
const WAIT_MAX: Duration = Duration::from_secs(4);

#[derive(Clone)]
pub struct Clients {
    pub ground: Ground,
    pub store: Store,
    /// Of the volume.
    marks_fail: MarksFail,
    /// So many at once.
    count: u64,
    access: Access,
    next: Arc<AtomicU64>,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    /// Effects of what was answered as done, in that order.
    done: Vec<u32>,
    /// The first so many of them are promised to be durable.
    promised: usize,
    /// Counts the losses of the store; a flush before one promises nothing after it.
    losses: u64,
    /// The newest sequence of what was answered.
    sequence: u64,
}

/// How clients reach the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Directly,
    /// Through a session of iSCSI, which loses its connection.
    ThroughSession,
}

/// What a client does.
#[derive(Clone, Copy)]
pub struct Habit {
    pub operations: u64,
    /// Where most of its operations go, bytes.
    pub hot: Span,
    /// Any byte, not only whole sectors.
    pub ragged: bool,
    /// After a few operations all clients pause until the next multiple of so many milliseconds, if it is not zero.
    pub rest: u64,
}

impl Clients {
    pub fn new(ground: Ground, store: Store, marks_fail: MarksFail, count: u64, access: Access) -> Self {
        Self { ground, store, marks_fail, count, access, next: Arc::default(), shared: Arc::default() }
    }

    /// The newest sequence that a client has an answer to.
    pub fn answered(&self) -> u64 {
        lock(&self.shared).sequence
    }

    /// The store has lost what was not flushed: it is promised no more.
    pub fn forget(&self) {
        let shared = &mut *lock(&self.shared);
        shared.done.clear();
        shared.promised = 0;
        shared.losses += 1;
    }

    pub async fn run(self, disk: Arc<dyn Disk>, habit: Habit) {
        for _ in 0..habit.operations {
            if once_in(3) {
                tokio::time::sleep(millis(if once_in(10) { 900 } else { 60 })).await;
            }
            self.step(&*disk, habit).await;
            if habit.rest > 0 && once_in(3) {
                if once_in(2) {
                    self.operate(&*disk, Kind::Flush, Span::new(0, 0), false).await;
                }
                let pause = habit.rest - self.ground.now() % habit.rest;
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
        }
    }

    /// One operation of any kind.
    pub async fn step(&self, disk: &dyn Disk, habit: Habit) {
        let size = disk.geometry().size;
        let span = range(size, habit);
        let fua = once_in(8);
        let (kind, span) = match below(16) {
            0 => (Kind::Trim, wide(span, size)),
            1 => (Kind::Zeroes, wide(span, size)),
            2 => (Kind::Flush, Span::new(0, 0)),
            3 => (Kind::Read, span),
            _ => (Kind::Write, span),
        };
        self.operate(disk, kind, span, fua).await;
    }

    async fn operate(&self, disk: &dyn Disk, kind: Kind, span: Span, fua: bool) {
        // A flush of its own, which the store answers beside it.
        let fua = fua && (self.access == Access::Directly || kind == Kind::Write);
        let incarnation = disk.incarnation();
        let id = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let begun = Instant::now();
        note!(self.ground, "client: {id} {kind:?} {span}");
        let (covered, losses) = {
            let shared = lock(&self.shared);
            (shared.done.len(), shared.losses)
        };
        let mut content = Bytes::new();
        let answer = match kind {
            Kind::Trim => disk.trim(span.start, span.len(), fua).await,
            Kind::Zeroes => disk.write_zeroes(span.start, span.len(), ZeroMode::default(), fua).await,
            Kind::Flush => disk.flush().await,
            Kind::Write => disk.write(span.start, stamped(id, span), fua).await,
            Kind::Read => disk.read(span.start, span.len() as u32).await.map(|read| content = read),
        };
        let took = begun.elapsed();
        note!(self.ground, "client: {id} answered {answer:?}");
        // Whose marks cannot be written waits for them to be refused, and holds up all that overlap meanwhile.
        let refuses = self.marks_fail == MarksFail::Refuse;
        let wait_max = WAIT_MAX + if refuses { MARK_MAX * self.count as u32 } else { Duration::ZERO };
        let refused = answer == Err(DiskError::Refused(Errno::EIO)) && !matches!(kind, Kind::Read | Kind::Flush);
        if refuses && refused && took >= MARK_MAX && took <= wait_max {
            return;
        }
        if self.access == Access::ThroughSession {
            if matches!(answer, Err(DiskError::Lost | DiskError::Refused(Errno::ESHUTDOWN))) {
                return;
            }
            // Else it waited for the next session.
            let same = disk.incarnation() == incarnation;
            if took > wait_max && same {
                broken!(self.ground, "T1", "operation {id} ({kind:?} {span}) waited for {took:?} in one session");
            }
        } else if took > wait_max {
            broken!(self.ground, "T1", "operation {id} ({kind:?} {span}) waited for {took:?}");
        }
        let mut claimed = self.store.claim(kind, span, answer, &content);
        if claimed.is_none() && self.access == Access::ThroughSession && kind == Kind::Zeroes {
            // Zeroes that may be unmapped are trimmed where that leaves zeroes.
            claimed = self.store.claim(Kind::Trim, span, answer, &content);
        }
        let Some(effect) = claimed else {
            broken!(
                self.ground,
                "T1",
                "operation {id} ({kind:?} {span}) was answered {answer:?}, and the store did not say so"
            );
            return;
        };
        if answer.is_err() {
            // Whoever is refused does not ask again at once.
            tokio::time::sleep(Duration::from_millis(20)).await;
            return;
        }
        let shared = &mut *lock(&self.shared);
        if losses != shared.losses {
            return;
        }
        match (kind, effect) {
            (Kind::Flush, _) if covered > shared.promised => {
                self.store.promise(&shared.done[shared.promised..covered]);
                shared.promised = covered;
            }
            (_, Some(effect)) => {
                shared.done.push(effect);
                if fua {
                    self.store.promise(&[effect]);
                }
                let sequence = self.store.with(|state| state.effects[effect as usize].sequence);
                shared.sequence = shared.sequence.max(sequence.unwrap_or(0));
            }
            _ => {}
        }
    }
}

fn range(size: u64, habit: Habit) -> Span {
    let unit = if habit.ragged && once_in(4) { 1 } else { SECTOR };
    let length = match below(16) {
        0 => below(48 * KIB),
        1..4 => below(12 * KIB),
        _ => below(3 * KIB),
    };
    let length = (length / unit * unit).max(unit).min(size);
    let start = if once_in(3) { below(size) } else { habit.hot.start + below(habit.hot.len()) };
    let start = (start.min(size - length)) / unit * unit;
    let span = Span::at(start, length);
    // The end of an odd-sized volume is a sector of its own.
    if habit.ragged && span.end + SECTOR > size && once_in(2) { Span::new(start, size) } else { span }
}

/// Now and then half of the volume.
fn wide(span: Span, size: u64) -> Span {
    let end = if once_in(12) { (span.start + size / 2).min(size) / SECTOR * SECTOR } else { span.end };
    Span::new(span.start, end.max(span.end))
}

/// Every eight bytes tell the operation and the place.
fn stamped(id: u64, span: Span) -> Bytes {
    let (first, end) = (span.start / 8, span.end.div_ceil(8));
    let mut bytes = Vec::with_capacity(((end - first) * 8) as usize);
    for word in first..end {
        bytes.extend_from_slice(
            &(id.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ word.wrapping_mul(0xd6e8_feb8_6659_fd93)).to_le_bytes(),
        );
    }
    let from = (span.start - first * 8) as usize;
    Bytes::from(bytes).slice(from..from + span.len() as usize)
}

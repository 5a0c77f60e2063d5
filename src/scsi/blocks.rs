//! The commands that read, write and compare blocks (SBC-4, 5), in terms of a [`Disk`].
//!
//! What the disk answers at once is answered at once, without a task and without a box. What initiators offer less than
//! a command is about is not written, but whole blocks of what they offer are; where that has no meaning the command is
//! refused.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use tokio::sync::OwnedRwLockReadGuard;

use super::Answer;
use super::sense::{self, Format, MISCOMPARE, Sense};
use super::shape::{BYTCHK, Command, FUA, Shape};
use crate::disk::{self, Disk, DiskError, Pending, Rewrite};
use crate::units::{MIB, Span};

/// What is read only to be looked at, or written again and again, takes so much memory.
pub(super) const PIECE: u32 = MIB as u32;
/// Bytes that one PRE-FETCH has read ahead at most.
const PREFETCH_MAX: u64 = 64 * MIB;

const IMMED: u8 = 0x02;

/// What an operation on the medium takes along.
pub(super) struct Task {
    pub disk: Arc<dyn Disk>,
    pub shape: Shape,
    pub format: Format,
    /// Of a change: while it lives, PREEMPT AND ABORT waits.
    pub _changing: Option<OwnedRwLockReadGuard<()>>,
}

/// What an operation found, or why not.
type Outcome = Result<Bytes, Sense>;

impl Task {
    pub fn answer(&self, outcome: Outcome) -> Answer {
        match outcome {
            Ok(data) => Answer::good(data),
            Err(sense) => Answer::check(sense, self.format),
        }
    }

    /// The answer, but for a store that was lost: that is the business of whoever drives the unit.
    fn ended(&self, outcome: Outcome) -> disk::Result<Answer> {
        if outcome == Err(sense::ABORTED_COMMAND) { Err(DiskError::Lost) } else { Ok(self.answer(outcome)) }
    }

    pub fn ready(self, outcome: Outcome) -> Pending<Answer> {
        Pending::ready(self.ended(outcome))
    }

    /// The answer to what the disk was asked.
    pub fn after<T: Send + Unpin>(
        self,
        pending: Pending<T>,
        outcome: impl FnOnce(disk::Result<T>) -> Outcome + Send + 'static,
    ) -> Pending<Answer> {
        match pending {
            Pending::Ready(answer) => self.ready(outcome(answer.expect("not polled yet"))),
            later @ Pending::Later(_) => Pending::later(async move {
                let found = later.await;
                self.ended(outcome(found))
            }),
        }
    }

    /// The answer that several questions lead to.
    pub fn run<F: Future<Output = Outcome> + Send + 'static>(
        self,
        steps: impl FnOnce(Arc<dyn Disk>) -> F,
    ) -> Pending<Answer> {
        let steps = steps(self.disk.clone());
        Pending::later(async move {
            let outcome = steps.await;
            self.ended(outcome)
        })
    }

    /// The largest piece that is read or written at once.
    pub fn piece(&self) -> u64 {
        u64::from(PIECE.min(self.shape.transfer_max * self.shape.block_length).max(self.shape.block_length))
    }
}

fn done(answer: disk::Result<()>) -> Outcome {
    answer.map(|()| Bytes::new()).map_err(sense::of_change)
}

pub(super) fn read(task: Task, command: &Command) -> Pending<Answer> {
    let (offset, length) = (command.offset, command.data_in());
    if length == 0 {
        return task.ready(Ok(Bytes::new()));
    }
    if command.cdb.flag(FUA) && !command.cdb.is_short() && task.shape.abilities.flush {
        return task.run(async move |disk| {
            disk.flush().await.map_err(sense::of_flush)?;
            content(offset, length, disk.read(offset, length).await)
        });
    }
    let pending = task.disk.read(offset, length);
    task.after(pending, move |found| content(offset, length, found))
}

/// What was read, if it is what was asked for.
fn content(offset: u64, length: u32, found: disk::Result<Bytes>) -> Outcome {
    let found = found.map_err(sense::of_read)?;
    if found.len() != length as usize {
        tracing::error!(offset, length, got = found.len(), "the disk answered a read with a wrong length");
        return Err(sense::UNRECOVERED_READ_ERROR);
    }
    Ok(found)
}

pub(super) fn write(task: Task, command: &Command, data: Bytes) -> Pending<Answer> {
    let data = match whole_blocks(data, command, &task.shape) {
        Ok(data) if !data.is_empty() => data,
        refused => return task.ready(refused.map(|_| Bytes::new())),
    };
    let fua = command.cdb.flag(FUA) && !command.cdb.is_short();
    let pending = task.disk.write(command.offset, data, fua);
    task.after(pending, done)
}

/// Of the data offered what the command asks for.
fn whole_blocks(data: Bytes, command: &Command, shape: &Shape) -> Result<Bytes, Sense> {
    let offered = data.len().min(command.data_out() as usize);
    if offered.is_multiple_of(shape.block_length as usize) {
        Ok(data.slice(..offered))
    } else {
        Err(Sense::INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT)
    }
}

/// All the data that the command asks for.
pub(super) fn all(data: &Bytes, command: &Command) -> Result<Bytes, Sense> {
    let wanted = command.data_out() as usize;
    if data.len() < wanted { Err(Sense::INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT) } else { Ok(data.slice(..wanted)) }
}

/// What is found on the medium is to be ...
enum Expected {
    /// Readable.
    Anything,
    /// This.
    Bytes(Bytes),
    /// This block, again and again.
    Blocks(Bytes),
}

pub(super) fn verify(task: Task, command: &Command, data: Bytes) -> Pending<Answer> {
    let (span, piece) = (Span::at(command.offset, command.length), task.piece());
    let expected = match command.cdb.byte(1) & BYTCHK {
        0b000 => Ok(Expected::Anything),
        0b010 => all(&data, command).map(Expected::Bytes),
        _ => all(&data, command).map(Expected::Blocks),
    };
    match expected {
        Ok(expected) if !span.is_empty() => task.run(async move |disk| compare(&*disk, span, &expected, piece).await),
        refused => task.ready(refused.map(|_| Bytes::new())),
    }
}

pub(super) fn write_and_verify(task: Task, command: &Command, data: Bytes) -> Pending<Answer> {
    let data = match whole_blocks(data, command, &task.shape) {
        Ok(data) if !data.is_empty() => data,
        refused => return task.ready(refused.map(|_| Bytes::new())),
    };
    let (span, piece) = (Span::at(command.offset, data.len() as u64), task.piece());
    let (abilities, compared) = (task.shape.abilities, command.cdb.byte(1) & BYTCHK != 0);
    task.run(async move |disk| {
        // What is verified is to be what will stay.
        disk.write(span.start, data.clone(), abilities.fua).await.map_err(sense::of_change)?;
        if abilities.flush && !abilities.fua {
            disk.flush().await.map_err(sense::of_flush)?;
        }
        let expected = if compared { Expected::Bytes(data) } else { Expected::Anything };
        compare(&*disk, span, &expected, piece).await
    })
}

/// Reads `span` piece by piece. INFORMATION is where in the data-out the first difference is.
async fn compare(disk: &dyn Disk, span: Span, expected: &Expected, piece: u64) -> Outcome {
    for part in span.pieces(piece) {
        let found = disk.read(part.start, part.len() as u32).await.map_err(sense::of_read)?;
        let from = (part.start - span.start) as usize;
        let difference = match expected {
            Expected::Anything => None,
            Expected::Bytes(bytes) => difference(&found, &bytes[from..from + found.len()]).map(|at| from + at),
            Expected::Blocks(block) => found.chunks(block.len()).find_map(|found| difference(found, block)),
        };
        if let Some(at) = difference {
            return Err(MISCOMPARE.with_information(at as u64));
        }
    }
    Ok(Bytes::new())
}

/// The first byte that differs.
fn difference(found: &[u8], expected: &[u8]) -> Option<usize> {
    if found == expected { None } else { found.iter().zip(expected).position(|(found, expected)| found != expected) }
}

/// The first half of the data is compared, the second written (SBC-4, 5.3). INFORMATION is where the first difference is.
pub(super) fn compare_and_write(task: Task, command: &Command, data: Bytes) -> Pending<Answer> {
    let data = match all(&data, command) {
        Ok(data) if !data.is_empty() => data,
        refused => return task.ready(refused.map(|_| Bytes::new())),
    };
    let (expected, new) = (data.slice(..data.len() / 2), data.slice(data.len() / 2..));
    let differs = Arc::new(OnceLock::new());
    let seen = differs.clone();
    let change: Rewrite = Box::new(move |found| match difference(&found, &expected) {
        Some(at) => {
            // Asked once.
            let _ = seen.set(at as u64);
            None
        }
        None => Some(new),
    });
    rewrite(task, command, change, move || match differs.get() {
        Some(&at) => MISCOMPARE.with_information(at),
        None => MISCOMPARE,
    })
}

/// What stands there and what comes are joined bit by bit (SBC-4, 4.26.4, "set only").
pub(super) fn or_write(task: Task, command: &Command, data: Bytes) -> Pending<Answer> {
    let data = match all(&data, command) {
        Ok(data) if !data.is_empty() => data,
        refused => return task.ready(refused.map(|_| Bytes::new())),
    };
    let change: Rewrite = Box::new(move |found| Some(found.iter().zip(&data).map(|(old, new)| old | new).collect()));
    rewrite(task, command, change, || MISCOMPARE)
}

fn rewrite(
    task: Task,
    command: &Command,
    change: Rewrite,
    refusal: impl FnOnce() -> Sense + Send + 'static,
) -> Pending<Answer> {
    // At most the largest transfer.
    let length = command.length as u32;
    let pending = task.disk.rewrite(command.offset, length, change, command.cdb.flag(FUA));
    task.after(pending, move |written| match written {
        Ok(true) => Ok(Bytes::new()),
        Ok(false) => Err(refusal()),
        Err(error) => Err(sense::of_change(error)),
    })
}

/// The whole disk is flushed. IMMED is taken as leave to be quicker, which nobody is told is made use of: an error
/// belongs to this command, not to a later one.
pub(super) fn synchronize_cache(task: Task) -> Pending<Answer> {
    if !task.shape.abilities.flush {
        return task.ready(Ok(Bytes::new()));
    }
    let pending = task.disk.flush();
    task.after(pending, |answer| answer.map(|()| Bytes::new()).map_err(sense::of_flush))
}

/// A hint: GOOD says that not all of it may be in a cache, and CONDITION MET is never claimed (SBC-4, 5.13).
pub(super) fn pre_fetch(task: Task, command: &Command) -> Pending<Answer> {
    if !task.shape.abilities.cache || command.length == 0 {
        return task.ready(Ok(Bytes::new()));
    }
    let pending = task.disk.cache(command.offset, command.length.min(PREFETCH_MAX));
    if command.cdb.flag(IMMED) {
        // It goes on by itself.
        drop(pending);
        return task.ready(Ok(Bytes::new()));
    }
    task.after(pending, |_| Ok(Bytes::new()))
}

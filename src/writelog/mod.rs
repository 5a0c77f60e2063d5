//! The write log: a one-dimensional queue of everything that clients changed, on a fast local disk, until a recovery
//! point covers it.
//!
//! Owns: preallocated segments, their division between volumes, appending in order, group commit, reading back with
//! every check, and finding after a stop what was appended. Does not own: which change gets which number, when a
//! record is covered, what to do when the log is full. Nothing is ever read here to answer a client.
//!
//! ```text
//!  volume ──append──► queue in memory ──one thread per volume──► segments ──fdatasync──► durable
//!                     (no I/O, no wait)      few large writes     64 MiB each, ≤ 200 ms apart
//! ```
//!
//! A [`Pool`] has all segments; a [`VolumeLog`] takes them from it one by one, and gives the oldest back when they
//! are covered. A segment begins with a header that is made durable alone, *before* any record follows it. Three facts
//! come from that order, and [`Pool::recover`] stands on them:
//! 1. where a record of a lap can be found on the disk, that lap's header is found too, so no header speaks for
//!    bytes that a later user has overwritten;
//! 2. each header names the one before it (slot and lap), and that one was durable first: if it is gone, it was
//!    freed and used again, and the log begins behind it;
//! 3. a record is believed only if uuid, epoch, lap, position and index are what they must be at that place.
//!
//! An epoch never appends to a segment of an earlier one. So the torn end of an earlier log can never continue a
//! later one, however often the gateway dies.
//!
//! Crash: what was synced is found again; of the rest a gap-free beginning. Records that were freed or dropped may be
//! found again too, as long as their segments were not used for something else: whoever replays skips by sequence.

pub(crate) mod fuzzing;
mod log;
mod pool;
#[cfg(test)]
mod power_cuts;
mod reader;
mod recovery;
mod segments;
mod signal;
#[cfg(test)]
mod simulated;
mod superblock;
#[cfg(test)]
mod tests;
mod writer;

use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

pub use self::log::VolumeLog;
pub use self::pool::{Look, Opened, Pool, Settings, Start};
pub use self::reader::ReadError;
pub use self::recovery::{Ended, Recovered};
pub use self::segments::copying_filesystem;
#[cfg(test)]
pub(crate) use self::segments::{SegmentIo, Segments};
#[cfg(test)]
pub(crate) use self::superblock::{Keeper, State, Superblock};
use crate::disk::Errno;
use crate::format::log::LogOp;
use crate::units::{LogIndex, MIB, REQUEST_MAX, Sequence, human_bytes};

/// Bytes of one segment: the unit in which volumes take and free log space. One header sync per segment costs little
/// at this size, and a small pool still has many.
pub const SEGMENT: u64 = 64 * MIB;
/// The most payload, all volumes together, that may wait in memory to be written; then the log counts as full. Two
/// commits of a disk that takes 1 GB/s fit in.
pub const IN_FLIGHT_MAX: u64 = 256 * MIB;
/// Fewer would have a volume overflow each time it frees its oldest segment while it fills the other.
pub const SEGMENTS_MIN: u32 = 2;
/// A group commit comes at most this long after the first write that it covers. Regions that are hot are read again
/// after a crash anyway, so that nothing depends on it being shorter.
pub const COMMIT_EVERY: Duration = Duration::from_millis(200);
/// A log whose disk answers a write or a sync not within this time is given up. Longer than any garbage collection
/// of a healthy SSD; by then a busy writer has filled [`IN_FLIGHT_MAX`] anyway.
pub const HANG_MAX: Duration = Duration::from_secs(10);

const _: () = assert!(REQUEST_MAX as u64 * 2 <= SEGMENT, "a record that does not fit wastes at most half a segment");
const _: () = assert!(SEGMENT <= u32::MAX as u64, "a position has 32 bits for the offset");

/// What is appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// One more than that of the record before.
    pub index: LogIndex,
    pub sequence: Sequence,
    pub op: LogOp,
    /// Byte range of the volume.
    pub offset: u64,
    pub length: u64,
    /// `length` bytes (at most [`REQUEST_MAX`]) for ops that carry data, else none. Shared, not copied; given up when
    /// written.
    pub payload: Bytes,
}

/// Where a record's header lies in the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(u64);

impl Position {
    fn new(slot: u32, offset: u64) -> Self {
        Self(u64::from(slot) << 32 | offset)
    }
    /// Number of the segment file.
    pub fn slot(self) -> u32 {
        (self.0 >> 32) as u32
    }
    /// Byte offset in the segment.
    pub fn offset(self) -> u64 {
        self.0 & u64::from(u32::MAX)
    }
    /// For a descriptor that has 8 bytes for it.
    pub fn to_bits(self) -> u64 {
        self.0
    }
    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
}

/// How far a volume's log has come. Every record up to and including the named one counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Written to the segment file: survives the process.
    pub appended: LogIndex,
    /// Synced: survives the machine.
    pub synced: LogIndex,
    /// Counts [`VolumeLog::reset`]s; indices of different eras say nothing about each other.
    pub era: u32,
    /// See [`VolumeLog::failure`].
    pub failed: bool,
}

/// Why a record was not taken. Nothing is taken after it until [`VolumeLog::reset`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    #[error("the log is full")]
    Segments,
    #[error("the log's disk is slower than the writers: more than {} wait for it", human_bytes(IN_FLIGHT_MAX))]
    Buffers,
    #[error("the log has failed")]
    Failed,
}

/// Why a volume's log is lost from some record on. What failed is never tried again: after a failed fsync the kernel
/// holds pages for clean that are not on the disk, and would say so the second time. A log goes on only when nothing
/// of it is needed any more, and begins anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogFailure {
    #[error("open log segment {slot}: {error}")]
    Open { slot: u32, error: Errno },
    #[error("write log segment {slot}: {error}")]
    Write { slot: u32, error: Errno },
    #[error("sync log segment {slot}: {error}")]
    Sync { slot: u32, error: Errno },
    #[error("write the log's superblock: {error}")]
    Superblock { error: Errno },
    #[error("the log's disk did not answer for {} s", .0.as_secs())]
    Hung(Duration),
    #[error("the log's writer ended by a bug")]
    Died,
    #[error("record {found} was given to the log where {expected} must follow")]
    OutOfOrder { expected: LogIndex, found: LogIndex },
    #[error("record {index} has {payload} bytes of payload for a range of {length}")]
    WrongPayload { index: LogIndex, length: u64, payload: usize },
}

impl LogFailure {
    /// Another attempt may find the disk sound; a bug stays.
    fn is_of_the_disk(self) -> bool {
        !matches!(self, Self::Died | Self::OutOfOrder { .. } | Self::WrongPayload { .. })
    }
}

/// Why [`VolumeLog::sync`] cannot promise anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogFailed {
    #[error(transparent)]
    Failed(#[from] LogFailure),
    #[error("record {0} is not in the log")]
    NotLogged(LogIndex),
    #[error("the log was emptied meanwhile")]
    Reset,
}

/// Why a pool cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("prepare the log's folder {path:?}: {source}")]
    Folder { path: PathBuf, source: io::Error },
    #[error(
        "{path:?} is on {filesystem}, which copies on write, so that a preallocated log could still run out of space: \
         use another filesystem, or make the folder with nodatacow (chattr +C) while it is empty"
    )]
    CopyOnWrite { path: PathBuf, filesystem: &'static str },
    #[error("{path:?} is in use by another process")]
    InUse { path: PathBuf },
    #[error("read or write {path:?}: {source}")]
    Superblock { path: PathBuf, source: io::Error },
    #[error("write the log's segments in {path:?}: {source}")]
    Create { path: PathBuf, source: io::Error },
    #[error("the log in {path:?} needs {}, and {} are free there", human_bytes(*needed), human_bytes(*available))]
    Space { path: PathBuf, needed: u64, available: u64 },
    #[error("log size {} is not enough for {volumes} volumes: at least {}", human_bytes(*size), human_bytes(*needed))]
    TooSmall { size: u64, needed: u64, volumes: u32 },
    #[error("log size {} is more than the {} that a log can have", human_bytes(*size), human_bytes(*limit))]
    TooLarge { size: u64, limit: u64 },
    #[error("the log in {path:?} was made with {} and may hold what is not uploaded yet", human_bytes(*found))]
    SizeChanged { path: PathBuf, found: u64 },
    #[error("the log in {path:?} is damaged: its superblock or segments are missing or unreadable")]
    Damaged { path: PathBuf },
    #[error("start the log's writer: {0}")]
    Thread(#[source] io::Error),
    #[error("draw a uuid for the log: {0}")]
    Random(getrandom::Error),
}

/// Locks; what a panicking thread left behind a lock here is whole, since no step between two changes can panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

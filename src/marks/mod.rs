//! Region marks: which regions of a volume may differ from the remote copy, durably, so that a crash costs a bounded
//! re-read.
//!
//! Two bits per region (4 MiB):
//! - *hot*: that the log has what happened to it, or that the store has flushed it, is not proven. It is read again
//!   after a crash of the gateway or a loss of the store.
//! - *diverged*: it differs from the newest entry's content, and the log has all of that. It is read again only if the
//!   log is lost.
//!
//! Owns: the sets, and their bytes on the disk. Does not own: when a region gets a mark and when it loses it
//! ([`crate::volume`]).

pub mod regions;

use std::ops::Range;

use crate::format::log::LogId;
use crate::units::LogIndex;

pub use regions::RegionSet;

/// What changes in one durable step. Ranges are of region numbers; within one change a region is in `heat` or in
/// `cool`, not both, and so for `diverge` and `converge`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    pub heat: Vec<Range<u64>>,
    pub cool: Vec<Range<u64>>,
    pub diverge: Vec<Range<u64>>,
    pub converge: Vec<Range<u64>>,
    pub facts: Facts,
}

/// What stands beside the sets and changes with them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Counts the life of the volume's marks; the log and the chain have copies, which are never ahead of it unless
    /// these marks are older than they look.
    pub heartbeat: u64,
    /// The log that these marks are right together with.
    pub log: Option<LogId>,
    /// A region that is not hot may rely on the log up to this record: a log that ends before it has lost something.
    pub relied_on: LogIndex,
}

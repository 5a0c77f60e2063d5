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

mod file;
pub(crate) mod fuzzing;
mod io;
mod opening;
#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "a change has runs of regions, often one")]
mod power_cuts;
mod regions;
#[cfg(test)]
pub(crate) mod simulated;
#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "a change has runs of regions, often one")]
mod tests;
#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "a change has runs of regions, often one")]
mod untruths;

use std::ops::Range;

pub use self::file::MarksFile;
pub use self::io::{MarksIo, open_io};
pub use self::opening::{Contents, Refused, Unusable};
pub use self::regions::RegionSet;
pub use crate::format::marks::Facts;

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

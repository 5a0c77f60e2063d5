//! The chain: the volume's history in the bucket, as dense, immutable entries 1, 2, 3 …
//!
//! Truth about a volume is its newest entry and nothing else. Entries are put with create-if-absent and never deleted
//! or overwritten, so whether a number exists never goes back from yes to no: the end is found by galloping and
//! binary search, and of two writers who try one number one learns that it lost. That is the fence (DESIGN §5).
//!
//! Owns: what follows what, who may write, which entry is meant by a time ([`reader`], [`opening`], [`writer`]); what an
//! entry shows ([`resolve`], [`fetch`], [`differs`]), and how its lists stay short ([`merge`]). Does not own: what a
//! point should contain, when to publish.
//! Crash: an entry whose put was not answered may stand in the chain or come to stand there; the next opening reads
//! it like any other.

mod cache;
pub mod conflict;
pub mod differs;
pub mod fetch;
mod gaps;
pub mod merge;
#[cfg(test)]
mod model;
pub mod opening;
pub mod reader;
mod recent;
pub mod resolve;
mod source;
#[cfg(test)]
mod tests;
pub mod writer;

use crate::format::entry::{Entry, EntryKind};

pub use opening::{OpenError, Opening};
pub use reader::{At, ChainError, ChainReader, Chosen, volumes};
pub use writer::{ChainWriter, Proposal, PublishError, Published};

/// Whether an entry of this kind shows content in its lists. The others are remarks that tools make, and say nothing
/// of it.
pub fn shows_content(kind: EntryKind) -> bool {
    !matches!(kind, EntryKind::Reclaim | EntryKind::Pin | EntryKind::Unpin)
}

/// Whether an entry of this kind is written by the gateway that has the volume open; the others may be written by
/// anyone with the key, and their generation is the one that they have seen.
pub fn of_gateway(kind: EntryKind) -> bool {
    shows_content(kind) && kind != EntryKind::Checkpoint
}

/// Whether the entry is offered for restore.
pub fn is_offered(entry: &Entry) -> bool {
    entry.kind == EntryKind::Point && !entry.draft
}

//! Bytes ↔ types of everything that outlives the process. Pure: no I/O, no clock, no randomness.
//!
//! Little endian; variable-length integers are canonical unsigned LEB128 (a longer encoding of the same number is
//! refused). Every decoder takes bytes of any origin: it checks a length before it allocates for it, refuses kinds
//! that it does not know, skips optional sections that it does not know, and never panics.
//!
//! ```text
//! <prefix>/names/<name>                         volume id                              [`names`]
//! <prefix>/<volume id>/volume                   id, created, format version            [`volume`]
//!                     /packs/<generation>-<number>   records and their index           [`pack`]
//!                     /runs/<generation>-<number>    merged index                      [`run`]
//!                     /chain/<number>                what a recovery point is          [`entry`]
//! ```

mod body;
pub mod codec;
pub mod entry;
pub mod index;
pub mod keys;
pub mod log;
pub mod marks;
mod mask;
pub mod names;
pub mod pack;
pub mod run;
pub mod volume;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;

pub use codec::FormatError;
pub use keys::Keys;

use crate::units::{Block, Generation, Mask};

/// Identifies a volume's remote copy for ever; random.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeId(pub [u8; 16]);

/// Identifies a gateway's state folder; random.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId(pub [u8; 16]);

/// BLAKE3-256 of an object's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ObjectHash(pub [u8; 32]);

impl ObjectHash {
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

/// Keyed BLAKE3-128 of the plaintext of a record: the sectors' bytes, as many as the mask says.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentHash(pub [u8; 16]);

/// A pack or a run, as an entry or a run lists it: enough to find it and to check every byte of it without a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ObjectRef {
    pub generation: Generation,
    pub number: u64,
    /// Bytes.
    pub length: u64,
    pub hash: ObjectHash,
}

/// What stands in some sectors, apart from data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Void {
    /// Zeroes.
    Zero,
    /// Trimmed by the client: reads as zero, compares as anything.
    Trimmed,
    /// The store could not read it when the copy was made.
    Unreadable,
}

/// How a record's bytes are stored in its pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    Raw,
    Zstd,
}

/// Where a data record's bytes lie in a pack, and how they are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stored {
    /// Byte offset in the pack object.
    pub offset: u64,
    /// Bytes in the pack; after decoding there are `512 × mask.count()`.
    pub length: u32,
    pub encoding: Encoding,
    pub hash: ContentHash,
}

/// One record of a pack's index: what the pack says of `count` blocks from `first`, in the sectors of `mask`.
///
/// Records are ordered by (first, slice, kind) and do not overlap within a slice. `count` is 1 unless `mask` is full
/// and the content is a [`Void`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackRecord {
    pub first: Block,
    pub count: u64,
    /// Which one-second slice of its epoch, 0 to 15.
    pub slice: u8,
    pub mask: Mask,
    pub content: PackContent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackContent {
    Data(Stored),
    Void(Void),
}

/// One record of a run's index: where the newest content of `count` blocks from `first` is found, among the packs
/// that the run merges, in the sectors of `mask`.
///
/// Records are ordered by (first, source) and do not overlap: masks of records of one block are disjoint. `count` is
/// 1 unless `mask` is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunRecord {
    pub first: Block,
    pub count: u64,
    pub mask: Mask,
    pub source: RunSource,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RunSource {
    /// Index into the run's table of packs; the pack's own index (all slices, newest first) says the rest.
    Pack(u32),
    Zero,
    Trimmed,
    Unreadable,
}

//! One entry of the chain: what a recovery point is. (codec to be written; types are agreed)

use super::{InstanceId, ObjectHash, ObjectRef};
use crate::units::{EntryNumber, Generation, Sequence, Timestamp};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A gateway opened the volume for writing, with a new generation.
    Open,
    /// A recovery point: the volume exactly as it was at the cut.
    Point,
    /// Content of a scan under way; never offered for restore.
    Draft,
    /// The same content with merged lists; repeats cut and draft-ness.
    Checkpoint,
    Reclaim,
    Pin,
    Unpin,
    RestoreBegin,
    RestoreEnd,
    Untracked,
}

/// A moment inside an epoch that can be restored: the packs' slices up to this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    pub sequence: Sequence,
    pub time: Timestamp,
}

/// How far a scan had come when a draft was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanCursor {
    /// Everything before this byte is named by this entry or its lists.
    pub front: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub number: EntryNumber,
    pub kind: EntryKind,
    pub generation: Generation,
    pub instance: InstanceId,
    /// Hash of the bytes of entry `number` − 1; zeroes for the first.
    pub previous: ObjectHash,
    /// The entry whose content this one builds on; 0 if it builds on nothing.
    pub parent: EntryNumber,
    /// Cut: the last change that is in the content. With `time`, equal to the last slice if there are slices.
    pub sequence: Sequence,
    /// Time of the cut; later than that of every earlier entry.
    pub time: Timestamp,
    pub heartbeat: u64,
    /// Size of the volume, bytes.
    pub size: u64,
    /// Whether what the lists show is a draft's content (a draft, or whatever repeats one's content: open, checkpoint).
    pub draft: bool,
    /// The last entry of a clean stop: no instance is alive behind it.
    pub leaving: bool,
    /// Bytes of the objects that this entry adds.
    pub new_bytes: u64,
    /// Of an open: the local store that is shadowed (name as `disk::Identity` has it).
    pub store: Option<String>,
    pub scan: Option<ScanCursor>,
    /// Oldest first; at most 16; empty where the entry adds no content of its own.
    pub slices: Vec<Slice>,
    /// Packs of this entry's own epoch, newest first.
    pub own: Vec<ObjectRef>,
    /// Lists of the content below, newest first: packs (L0), then runs L1, L2, L3.
    pub levels: [Vec<ObjectRef>; 4],
    /// Manifest of the partitioned base; none in version 1.0.
    pub base: Option<ObjectRef>,
    /// Payload of the kinds that have one of their own (reclaim, pin, restore-begin …); empty otherwise.
    pub detail: Vec<u8>,
}

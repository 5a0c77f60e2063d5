//! What it means that a number is taken. A pure table (DESIGN §5, "Conflict at number n"); the writer acts on it.
//!
//! ```text
//!   found at number n                                     while publishing       while opening
//!   the bytes that I tried                                mine                   mine
//!   nothing (a 409 of racing puts, a false conflict)      try the same again     try the same again
//!   bytes whose MAC is wrong                              noise: next number     noise: next number
//!   reclaim, pin, unpin, checkpoint of a generation ≤     adopt: next number     read all anew, next number
//!     mine that follows the entry I know
//!   anything else                                         fenced                 read all anew, next number
//! ```
//! Noise must not fence, or whoever may put objects could end a volume's protection for ever.

use super::of_gateway;
use super::reader::Found;
use crate::failpoint::{self, Safeguard};
use crate::format::{InstanceId, ObjectHash};
use crate::units::{EntryNumber, Generation};

/// Who took a number that was to be ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    pub number: EntryNumber,
    /// None if what stands there was written by a newer program: it cannot be read, but its MAC is right.
    pub by: Option<(Generation, InstanceId)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The attempt has succeeded, now or before.
    Mine,
    /// Nothing stands there: the same bytes may be tried again.
    Absent,
    /// Nobody with the key wrote it: it takes up a number and means nothing.
    Noise,
    /// A remark or a merge by a tool: it is part of the chain, and ours comes after it.
    Adopt,
    Fenced(Fence),
}

/// The attempt that met the conflict.
pub struct Attempted {
    pub number: EntryNumber,
    /// Of the attempt's bytes.
    pub hash: ObjectHash,
    pub generation: Generation,
    /// Of the bytes of the entry before.
    pub previous: ObjectHash,
}

/// The table's column for publishing.
pub fn judge(attempted: &Attempted, found: Option<&Found>) -> Verdict {
    let number = attempted.number;
    match found {
        None => Verdict::Absent,
        Some(found) if found.hash() == attempted.hash => Verdict::Mine,
        Some(Found::Noise { .. }) => Verdict::Noise,
        Some(Found::Unreadable { .. }) => Verdict::Fenced(Fence { number, by: None }),
        Some(Found::Entry { entry, .. }) => {
            let follows = !of_gateway(entry.kind) && entry.previous == attempted.previous;
            if follows && entry.generation <= attempted.generation {
                Verdict::Adopt
            } else if !failpoint::stands(Safeguard::Fence) {
                Verdict::Noise
            } else {
                Verdict::Fenced(Fence { number, by: Some((entry.generation, entry.instance)) })
            }
        }
    }
}

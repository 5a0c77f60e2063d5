//! From the remote back to a disk: restore a recovery point whole, verify what it is made of, compare it with a store.
//!
//! Owns: the order of reads and writes, bounded memory, and that no byte is written that was not checked. Does not
//! own: what a point's content is ([`crate::chain`]), how bytes are laid out ([`crate::format`]), what a target is
//! opened from (`cli`).
//!
//! Reads the remote only. Crash: a target under restore keeps its [signature]; nothing else is left behind.

pub mod progress;
pub mod ranges;
pub mod signature;

mod plan;
mod window;

pub mod target;

pub mod compare;
pub mod verify;
pub mod whole;

#[cfg(test)]
pub mod fixture;
#[cfg(test)]
mod tests;

pub use signature::is_unfinished;

//! Umbra, a transparent shadowing proxy for block storage.
//!
//! Umbra stands in front of a disk (the *local store*), forwards every request to it untouched, copies each
//! write into a local *write log*, and uploads the log to object storage as a chain of *recovery points*.
//!
//! ```text
//!         client (qemu, Linux, ESXi, nbdcopy, fio …)
//!              │ NBD · iSCSI
//!       ┌──────▼───────┐
//!       │ nbd    iscsi │   speak a protocol; know nothing but the trait Disk
//!       └──────┬───────┘
//!       ┌──────▼───────┐  records   ┌───────────┐  coalesced   ┌───────────┐  packs, then   ┌────────┐
//!       │ volume       ├───────────►│ writelog  ├─────────────►│ snapshot  ├───────────────►│ remote │
//!       │ (splitter)   │            │ (a queue) │  per epoch   │ (uploader)│  one entry     │        │
//!       └──────┬───────┘            └───────────┘              └───────────┘  (chain)       └───┬────┘
//!              │ forwarded untouched                                                           │
//!       ┌──────▼───────┐                                                                       │
//!       │ disk         │◄──────────────── restore ─────────────────────────────────────────────┘
//!       │ local store  │
//!       └──────────────┘
//! ```
//!
//! The modules stand bottom-up: each imports only from those above it in this list. Only `daemon` and `cli`
//! name concrete types of more than one layer.

pub mod units;

pub mod clock;
pub mod failpoint;
pub mod random;
pub mod task;

pub mod disk;
pub mod format;
pub mod net;
pub mod remote;

pub mod chain;
pub mod marks;
pub mod nbd;
pub mod scsi;
pub mod writelog;

pub mod iscsi;

pub mod config;
pub mod restore;
pub mod volume;

pub mod snapshot;
pub mod status;

pub mod admin;

pub mod daemon;

pub mod cli;

#[doc(hidden)]
pub mod fuzzing;
#[cfg(test)]
#[path = "../tests/simulation/mod.rs"]
mod simulation;

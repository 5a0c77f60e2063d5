//! Recovery points: what was logged in an epoch becomes packs and one entry of the chain.
//!
//! ```text
//! volume ──cuts, descriptors──► slices ─► coalesce ─► assemble ─┐
//!    │                                                          ├─► upload ─► publisher ─► chain
//!    └──────────pieces────────► scanner ────────────────────────┘                │
//!                                                         merger ◄───────────────┘
//! volume ──watched pieces───► compare, scrub, sample ◄── the newest entry
//! ```

pub mod assemble;
pub mod coalesce;
pub mod compare;
pub mod merger;
pub mod numbers;
mod piece;
pub mod publisher;
mod sample;
pub mod scanner;
pub mod scrub;
pub mod slices;
pub mod status;
pub mod upload;

#[cfg(test)]
mod tests;

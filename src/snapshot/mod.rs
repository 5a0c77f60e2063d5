//! Recovery points: what was logged in an epoch becomes packs and one entry of the chain.
//!
//! ```text
//! volume ──cuts, descriptors──► slices ─► coalesce ─► assemble ─┐
//!    │                                                          ├─► upload ─► publisher ─► chain
//!    └──────────pieces────────► scanner ────────────────────────┘                │
//!                                                         merger ◄───────────────┘
//! ```

pub mod assemble;
pub mod coalesce;
pub mod merger;
pub mod numbers;
pub mod publisher;
pub mod scanner;
pub mod slices;
pub mod status;
pub mod upload;

#[cfg(test)]
mod tests;

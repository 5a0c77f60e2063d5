//! Requests to a running gateway, over the unix socket in its state folder.
//!
//! ```text
//! client                                            gateway
//!   {"request":"status"}⏎                    ──►
//!                                            ◄──    one JSON document (crate::status::Status), end
//!   {"request":"compare","volume":"disk0","repair":true}⏎   ──►
//!                                            ◄──    {"progress":{…}}⏎          once a second
//!                                            ◄──    {"compared":{…}}⏎ or {"failed":"why"}⏎, end
//! ```
//! Whoever sends nothing and closes asks for the status. A client that goes away ends what it asked for.
//!
//! Owns: the lines and their bounds. Does not own: what is done about a request ([`Desk`]). The socket lies in a folder
//! that only its owner may enter, so whoever can ask may.

mod client;
mod server;

use serde::{Deserialize, Serialize};

use crate::snapshot::compare::{Outcome, Progress, Verdict};
use crate::units::Span;

pub use client::{AskError, compare};
pub use server::{Desk, answer};

/// The longest request, bytes.
const REQUEST_MAX: u64 = 4096;
/// The longest line of an answer to a comparison, bytes.
const LINE_MAX: u64 = 1 << 20;
/// Ranges in an answer; the others are counted.
const LISTED_MAX: usize = 10_000;
/// A range takes two numbers of twenty digits, and what stands between them.
const _: () = assert!(LISTED_MAX as u64 * 48 < LINE_MAX / 2);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    Status,
    /// Compares the volume's store with its newest point, and uploads again what differs if `repair` is true.
    Compare {
        volume: String,
        repair: bool,
    },
}

/// A line of the answer to [`Request::Compare`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Progress(Progress),
    Compared(Comparison),
    Failed(String),
}

/// What a comparison through the gateway found. Bytes, all of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Comparison {
    pub compared: u64,
    /// Not compared, since clients changed it after the newest point.
    pub changed: u64,
    /// Not compared, since the store cannot read it.
    pub unreadable: u64,
    pub different: u64,
    /// (offset, length), in order.
    pub ranges: Vec<(u64, u64)>,
    /// Ranges that are not listed.
    pub unlisted: u64,
    pub repaired: u64,
    pub verdict: Verdict,
}

impl From<Outcome> for Comparison {
    fn from(found: Outcome) -> Self {
        let listed = found.different.listed();
        let ranges: Vec<_> = listed.iter().take(LISTED_MAX).map(|span| (span.start, span.len())).collect();
        Self {
            compared: found.compared,
            changed: found.changed,
            unreadable: found.unreadable,
            different: found.different.bytes(),
            unlisted: found.different.unlisted() + (listed.len() - ranges.len()) as u64,
            ranges,
            repaired: found.repaired,
            verdict: found.verdict,
        }
    }
}

impl Comparison {
    /// The ranges that are listed.
    pub fn spans(&self) -> impl Iterator<Item = Span> + '_ {
        self.ranges.iter().map(|&(offset, length)| Span::new(offset, offset.saturating_add(length)))
    }
}

#[cfg(test)]
mod tests;

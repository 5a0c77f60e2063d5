//! How long clients' operations take, and how much of that the gateway adds.
//!
//! Of each operation two times are counted. The *store's* goes from the call of the store until its answer is taken
//! up; waits for a thread on that way are part of it. What the gateway *added* is all the rest, from the volume being
//! asked until it has the answer: throttling, the wait for overlapping changes, the wait for marks, the record for
//! the log, and what the answer means for the log; of a flush, the wait for one of our own and, with `sync = "flush"`,
//! for the log. Nothing of a read is added here: it goes to the store as it comes. What the protocol and its
//! connection cost is in neither.
//!
//! Counted is what the store has answered, errors too. Not counted: what is refused before it gets there or has no
//! length, a read that nobody waits for any more, and what the gateway asks of the store for its own sake (scans, reading back, flushes).
//!
//! A `Stopwatch` goes along with the operation; nothing is decided by what it shows. It looks at the clock twice for a
//! read and three times for a change that the store answers at once: there, what the answer means for the log is left
//! out (a fraction of a microsecond), unless it has to wait for that.

use std::time::Duration;

use tokio::time::Instant;

use super::histogram::Histogram;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    Flush,
    /// A trim or zeroes.
    Erase,
}

/// Of the operations since the start.
#[derive(Default)]
pub struct Latencies {
    pub reads: Latency,
    pub writes: Latency,
    pub flushes: Latency,
    /// Trims and zeroes.
    pub erasures: Latency,
}

/// Of all operations of one kind.
#[derive(Default)]
pub struct Latency {
    pub store: Histogram,
    pub added: Histogram,
}

/// Divides the time of one operation between store and gateway, lap by lap.
pub(super) struct Stopwatch {
    kind: Kind,
    lap_began: Instant,
    store: Duration,
    added: Duration,
}

impl Stopwatch {
    pub fn start(kind: Kind) -> Self {
        Self { kind, lap_began: Instant::now(), store: Duration::ZERO, added: Duration::ZERO }
    }

    /// What passed since the last lap was added by the gateway.
    pub fn lap_added(&mut self) {
        let lap = self.lap();
        self.added += lap;
    }

    /// What passed since the last lap was the store's.
    pub fn lap_store(&mut self) {
        let lap = self.lap();
        self.store += lap;
    }

    fn lap(&mut self) -> Duration {
        let now = Instant::now();
        now.duration_since(std::mem::replace(&mut self.lap_began, now))
    }

    /// Counts the operation; what passed since the last lap belongs to nobody.
    pub fn count(self, latencies: &Latencies) {
        let latency = match self.kind {
            Kind::Read => &latencies.reads,
            Kind::Write => &latencies.writes,
            Kind::Flush => &latencies.flushes,
            Kind::Erase => &latencies.erasures,
        };
        latency.store.add(self.store);
        latency.added.add(self.added);
    }
}

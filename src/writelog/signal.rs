//! What a log's threads see of each other: that there is something to do, and that one of them does not come back.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, LockResult, MutexGuard, WaitTimeoutResult};
use std::time::Duration;

use tokio::time::Instant;

use super::log::Queue;

/// A condition variable, on which in a simulated world a task can wait too.
#[derive(Default)]
pub(super) struct Signal {
    condition: Condvar,
    #[cfg(test)]
    simulated: tokio::sync::Notify,
}

impl Signal {
    pub fn notify_all(&self) {
        self.condition.notify_all();
        #[cfg(test)]
        self.simulated.notify_one();
    }

    pub fn wait<'q>(&self, queue: MutexGuard<'q, Queue>) -> LockResult<MutexGuard<'q, Queue>> {
        self.condition.wait(queue)
    }

    pub fn wait_timeout<'q>(
        &self,
        queue: MutexGuard<'q, Queue>,
        bound: Duration,
    ) -> LockResult<(MutexGuard<'q, Queue>, WaitTimeoutResult)> {
        self.condition.wait_timeout(queue, bound)
    }

    pub fn wait_timeout_while<'q>(
        &self,
        queue: MutexGuard<'q, Queue>,
        bound: Duration,
        waits: impl FnMut(&mut Queue) -> bool,
    ) -> LockResult<(MutexGuard<'q, Queue>, WaitTimeoutResult)> {
        self.condition.wait_timeout_while(queue, bound, waits)
    }

    /// Returns when the writer was woken after this was called last, or is.
    #[cfg(test)]
    pub async fn simulated(&self) {
        self.simulated.notified().await;
    }
}

/// Since when a thread is in a call that may not come back; another thread looks.
pub(super) struct Busy {
    base: Instant,
    /// Nanoseconds after `base`, plus one; 0 when it is in none.
    since: AtomicU64,
}

impl Busy {
    pub fn new() -> Self {
        Self { base: Instant::now(), since: AtomicU64::new(0) }
    }
    pub fn lasts(&self, bound: Duration) -> bool {
        let since = self.since.load(Ordering::Relaxed);
        since != 0 && self.base.elapsed() >= Duration::from_nanos(since) + bound
    }
    /// Runs a call to the disk.
    pub fn during<T>(&self, call: impl FnOnce() -> T) -> T {
        self.begin();
        let result = call();
        self.end();
        result
    }
    pub fn begin(&self) {
        self.since.store(self.base.elapsed().as_nanos() as u64 + 1, Ordering::Relaxed);
    }
    pub fn end(&self) {
        self.since.store(0, Ordering::Relaxed);
    }
}

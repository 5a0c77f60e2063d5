//! Which tasks of a target were begun before its last reset, and whether any of them is still under way.
//!
//! A reset may be answered only when nothing that it ended can touch the medium any more (SAM-5, 5.6); what was given to
//! a disk cannot be taken back, so it is waited for. A second reset waits for what the first one waits for as well.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

/// Held by a task from its beginning to its end.
pub struct Epoch {
    number: u64,
    of: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Tasks under way, by the epoch in which they were begun; none is not listed.
    tasks: Mutex<BTreeMap<u64, usize>>,
    number: watch::Sender<u64>,
    ended: Notify,
}

#[derive(Default)]
pub struct Epochs(Arc<Shared>);

impl Epochs {
    pub fn current(&self) -> Epoch {
        let mut tasks = self.0.tasks.lock();
        // Under the lock: no reset comes between.
        let number = *self.0.number.borrow();
        *tasks.entry(number).or_default() += 1;
        Epoch { number, of: self.0.clone() }
    }

    /// Whether a reset came after it was begun.
    pub fn is_over(&self, epoch: &Epoch) -> bool {
        epoch.number != *self.0.number.borrow()
    }

    /// Ends the current epoch. What is returned lasts as long as a task of it, or of an earlier one, does.
    pub fn end(&self) -> impl Future<Output = ()> + Send + use<> {
        let shared = self.0.clone();
        let last = {
            let _tasks = shared.tasks.lock();
            let last = *shared.number.borrow();
            shared.number.send_replace(last + 1);
            last
        };
        async move {
            loop {
                let ended = shared.ended.notified();
                if shared.tasks.lock().range(..=last).next().is_none() {
                    return;
                }
                ended.await;
            }
        }
    }

    /// Tells of each reset from now on.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.0.number.subscribe()
    }
}

impl Drop for Epoch {
    fn drop(&mut self) {
        let mut tasks = self.of.tasks.lock();
        if let Some(count) = tasks.get_mut(&self.number) {
            *count -= 1;
            if *count == 0 {
                tasks.remove(&self.number);
                self.of.ended.notify_waiters();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::poll;

    use super::*;

    #[tokio::test]
    async fn the_end_of_an_epoch_waits_for_its_tasks_and_for_no_later_ones() {
        let epochs = Epochs::default();
        let (first, second) = (epochs.current(), epochs.current());
        let mut ended = Box::pin(epochs.end());
        let later = epochs.current();
        assert!(epochs.is_over(&first) && !epochs.is_over(&later));
        assert!(poll!(&mut ended).is_pending(), "two tasks are under way");
        drop(first);
        assert!(poll!(&mut ended).is_pending(), "one task is under way");
        drop(second);
        assert!(poll!(&mut ended).is_ready());
        drop(later);
    }

    /// An initiator that waits too long for a reset sends a stronger one.
    #[tokio::test]
    async fn a_second_end_waits_for_what_the_first_waits_for() {
        let epochs = Epochs::default();
        let task = epochs.current();
        let (mut first, mut second) = (Box::pin(epochs.end()), Box::pin(epochs.end()));
        assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
        drop(task);
        assert!(poll!(&mut first).is_ready() && poll!(&mut second).is_ready());
    }
}

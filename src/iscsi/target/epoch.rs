//! Which tasks of a target were begun before its last reset, and whether any of them is still under way.
//!
//! A reset may be answered only when nothing that it ended can touch the medium any more (SAM-5, 5.6); what was given to
//! a disk cannot be taken back, so it is waited for.

use std::convert::Infallible;

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

/// Held by a task from its beginning to its end.
#[derive(Clone)]
pub struct Epoch {
    number: u64,
    _under_way: mpsc::Sender<Infallible>,
}

pub struct Epochs {
    current: Mutex<(Epoch, mpsc::Receiver<Infallible>)>,
    number: watch::Sender<u64>,
}

impl Default for Epochs {
    fn default() -> Self {
        Self { current: Mutex::new(begun(0)), number: watch::Sender::new(0) }
    }
}

fn begun(number: u64) -> (Epoch, mpsc::Receiver<Infallible>) {
    let (under_way, all_ended) = mpsc::channel(1);
    (Epoch { number, _under_way: under_way }, all_ended)
}

impl Epochs {
    pub fn current(&self) -> Epoch {
        self.current.lock().0.clone()
    }

    /// Whether a reset came after it was begun.
    pub fn is_over(&self, epoch: &Epoch) -> bool {
        epoch.number != *self.number.borrow()
    }

    /// Ends the current epoch. What is returned lasts as long as a task of it does.
    pub fn end(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut all_ended = {
            let mut current = self.current.lock();
            let next = begun(current.0.number + 1);
            self.number.send_replace(next.0.number);
            std::mem::replace(&mut *current, next).1
        };
        async move { while all_ended.recv().await.is_some() {} }
    }

    /// Tells of each reset from now on.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.number.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::poll;

    use super::*;

    #[tokio::test]
    async fn the_end_of_an_epoch_waits_for_its_tasks_and_for_no_others() {
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
}

//! Which byte ranges have a change in flight: overlapping changes wait for each other, others do not.
//!
//! Without it two overlapping changes could reach the store in one order and the log in the other, and the copy
//! would differ for ever. First come, first served among those that overlap: a large trim is not starved by small
//! writes, since whoever comes later and overlaps a waiter waits behind it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::failpoint::{self, Safeguard};
use crate::units::Span;

#[derive(Default)]
pub struct RangeLock(Mutex<Ranges>);

#[derive(Default)]
struct Ranges {
    /// start → end of the ranges held; they do not overlap.
    held: BTreeMap<u64, u64>,
    waiting: VecDeque<Waiter>,
}

struct Waiter {
    span: Span,
    grant: oneshot::Sender<RangeGuard>,
}

/// Holds a range until it is dropped.
pub struct RangeGuard {
    lock: Arc<RangeLock>,
    span: Span,
}

impl RangeLock {
    /// The range, if neither a holder nor a waiter overlaps it. An empty range overlaps nothing.
    pub fn try_acquire(self: &Arc<Self>, span: Span) -> Option<RangeGuard> {
        let mut ranges = self.0.lock();
        if failpoint::stands(Safeguard::RangeLock) && (ranges.is_held(span) || ranges.is_awaited(span)) {
            return None;
        }
        ranges.hold(span);
        Some(RangeGuard { lock: self.clone(), span })
    }

    /// The range, as soon as all that overlaps it and came before is gone.
    pub async fn acquire(self: &Arc<Self>, span: Span) -> RangeGuard {
        let granted = {
            let mut ranges = self.0.lock();
            if !ranges.is_held(span) && !ranges.is_awaited(span) {
                ranges.hold(span);
                return RangeGuard { lock: self.clone(), span };
            }
            let (grant, granted) = oneshot::channel();
            ranges.waiting.push_back(Waiter { span, grant });
            granted
        };
        granted.await.expect("a waiter is dropped only with its grant sent")
    }

    fn release(self: &Arc<Self>, span: Span) {
        let mut granted = Vec::new();
        {
            let mut ranges = self.0.lock();
            if !span.is_empty() {
                ranges.held.remove(&span.start);
            }
            let mut index = 0;
            while index < ranges.waiting.len() {
                let wanted = ranges.waiting[index].span;
                let earlier = ranges.waiting.range(..index).any(|waiter| waiter.span.overlaps(wanted));
                if earlier || ranges.is_held(wanted) {
                    index += 1;
                    continue;
                }
                ranges.hold(wanted);
                granted.extend(ranges.waiting.remove(index));
            }
        }
        // Outside the mutex: a waiter that has gone away gives its guard back, whose drop comes here again.
        for waiter in granted {
            let guard = RangeGuard { lock: self.clone(), span: waiter.span };
            drop(waiter.grant.send(guard));
        }
    }
}

impl Ranges {
    fn is_held(&self, span: Span) -> bool {
        !span.is_empty() && self.held.range(..span.end).next_back().is_some_and(|(_, &end)| end > span.start)
    }

    fn is_awaited(&self, span: Span) -> bool {
        self.waiting.iter().any(|waiter| waiter.span.overlaps(span))
    }

    fn hold(&mut self, span: Span) {
        if !span.is_empty() {
            self.held.insert(span.start, span.end);
        }
    }
}

impl Drop for RangeGuard {
    fn drop(&mut self) {
        self.lock.release(self.span);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Poll;

    use futures_util::poll;

    #[tokio::test]
    async fn overlapping_changes_wait_and_others_do_not() {
        let lock = Arc::new(RangeLock::default());
        let first = lock.acquire(Span::new(0, 1024)).await;
        let other = lock.acquire(Span::new(1024, 2048)).await;
        let mut second = Box::pin(lock.acquire(Span::new(512, 1536)));
        assert!(matches!(poll!(&mut second), Poll::Pending), "granted while two overlapping changes are in flight");
        drop(first);
        assert!(matches!(poll!(&mut second), Poll::Pending), "granted while one overlapping change is in flight");
        drop(other);
        assert!(matches!(poll!(&mut second), Poll::Ready(_)), "not granted when nothing overlaps");
    }

    /// Counterexample 28.
    #[tokio::test]
    async fn small_changes_do_not_starve_a_large_one() {
        let lock = Arc::new(RangeLock::default());
        let first = lock.acquire(Span::new(0, 512)).await;
        let mut large = Box::pin(lock.acquire(Span::new(0, 1 << 40)));
        assert!(matches!(poll!(&mut large), Poll::Pending), "granted while an overlapping change is in flight");
        assert!(lock.try_acquire(Span::new(4096, 8192)).is_none(), "overtook a waiter");
        drop(first);
        assert!(matches!(poll!(&mut large), Poll::Ready(_)), "not granted when nothing overlaps");
    }

    #[tokio::test]
    async fn a_waiter_that_went_away_holds_nothing() {
        let lock = Arc::new(RangeLock::default());
        let first = lock.acquire(Span::new(0, 512)).await;
        let mut gone = Box::pin(lock.acquire(Span::new(0, 512)));
        assert!(matches!(poll!(&mut gone), Poll::Pending), "granted while an overlapping change is in flight");
        drop(gone);
        drop(first);
        assert!(lock.try_acquire(Span::new(0, 512)).is_some());
    }
}

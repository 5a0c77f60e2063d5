//! Blocking work, out of the way of those who do not block.

/// The call panicked, or the runtime ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a task ended unexpectedly")]
pub struct Died;

/// Runs a call that blocks where it holds nobody up. In a simulated world it takes some virtual time and runs in its
/// place.
pub async fn blocking<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> Result<T, Died> {
    #[cfg(test)]
    if let Some(drawn) = crate::random::seeded::draw() {
        use crate::random::seeded;
        // What it does is done at once, and known when it returns.
        seeded::lasted();
        let returned = call();
        tokio::time::sleep(std::time::Duration::from_millis(drawn % 8 + seeded::lasted())).await;
        return Ok(returned);
    }
    tokio::task::spawn_blocking(call).await.map_err(|_| Died)
}

/// Polls to the end, without a runtime: for what is fuzzed. Whoever waits without having been woken would wait for ever,
/// and panics.
pub(crate) fn drive<T>(future: impl Future<Output = T>) -> T {
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Context, Poll, Wake, Waker};

    struct Woken(AtomicBool);
    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let woken = Arc::new(Woken(AtomicBool::new(false)));
    let waker = Waker::from(woken.clone());
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return value;
        }
        assert!(woken.0.swap(false, Ordering::SeqCst), "waits for what never comes");
    }
}

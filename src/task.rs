//! Work that takes its time, out of the way of those who have none.
//!
//! What takes the processor for long (hashes, compression, uploads with all that belongs to them) and has no client
//! waiting for it is *unhurried*: where processors are short, its threads get a tenth of what a thread gets that serves
//! clients. It holds no lock for long that a client's request takes.

use std::sync::OnceLock;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinSet;

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

/// As [`blocking`], for what is unhurried.
pub async fn unhurried<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> Result<T, Died> {
    // A virtual clock stands still for the threads of its own runtime only.
    if cfg!(test) {
        return blocking(call).await;
    }
    match patient() {
        Some(patient) => patient.spawn_blocking(call).await.map_err(|_| Died),
        None => blocking(call).await,
    }
}

/// As [`unhurried`], for what waits between its parts. Dropping the future ends it.
pub async fn unhurried_task<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> Result<T, Died> {
    if cfg!(test) {
        return Ok(task.await);
    }
    let Some(patient) = patient() else { return Ok(task.await) };
    let mut alone = JoinSet::new();
    alone.spawn_on(task, patient);
    alone.join_next().await.and_then(Result::ok).ok_or(Died)
}

/// The runtime of all that is unhurried; none if the process has no descriptors left for it.
pub fn patient() -> Option<&'static Handle> {
    /// More than uploads and merges keep busy at a time: connections wait for a worker that does not hash.
    const WORKERS: usize = 16;
    /// A tenth of the usual weight (sched(7)): enough to go on when clients take all they can get.
    const NICE: i32 = 10;
    static PATIENT: OnceLock<Option<Runtime>> = OnceLock::new();
    let nice = || {
        // On Linux, of the calling thread. One that may not be nice is like others.
        let _ = rustix::process::setpriority_process(None, NICE);
    };
    let start = || {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(WORKERS).enable_all().thread_name("umbra-patient").on_thread_start(nice).build().ok()
    };
    PATIENT.get_or_init(start).as_ref().map(Runtime::handle)
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

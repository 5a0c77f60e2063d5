//! Blocking work, out of the way of those who do not block.

/// The call panicked, or the runtime ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a task ended unexpectedly")]
pub struct Died;

/// Runs a call that blocks where it holds nobody up.
pub async fn blocking<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> Result<T, Died> {
    tokio::task::spawn_blocking(call).await.map_err(|_| Died)
}

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

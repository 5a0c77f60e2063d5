//! Wall-clock time as a parameter, so that a test can set it.

use std::sync::Arc;
use std::time::SystemTime;

use crate::units::Timestamp;

/// Tells the time of day. Durations are measured with `tokio::time` instead, which tests can pause.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    pub fn system() -> Self {
        Self(Arc::new(|| Timestamp::from_system(SystemTime::now())))
    }
    /// A clock that shows what `read` returns.
    pub fn from_fn(read: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }
    pub fn now(&self) -> Timestamp {
        (self.0)()
    }
}

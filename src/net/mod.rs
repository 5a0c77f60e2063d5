//! Sockets, whatever is spoken over them: listening on them, and moving bytes through them with few calls and copies.

mod listen;
mod stream;

use std::fmt;

pub use listen::{Address, Connection, ListenError, Listeners};
pub use stream::Stream;
pub(crate) use stream::{Inbox, Outbox};

/// An error with its sources, on one line.
pub struct Chain<'a>(pub &'a (dyn std::error::Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut error = self.0;
        while let Some(source) = error.source() {
            write!(f, ": {source}")?;
            error = source;
        }
        Ok(())
    }
}

//! The target's side: portals that listen, initiators that log in, and the tasks of their sessions.
//!
//! ```text
//!  server ── accepts ──► login ── agreed ──► session ── commands ──► scsi::Unit ──► Disk
//!                                   │           │
//!                                   └── seats ──┘   one session per initiator port and target
//! ```
//! Owns: targets, and who has a session with which. A target is a volume: it has one logical unit, number 0.

mod discovery;
mod epoch;
pub(crate) mod fuzzing;
mod login;
mod seats;
mod server;
mod session;
mod transfer;

use std::sync::Arc;

use crate::scsi::Unit;

pub use server::{BindError, Server};

use epoch::Epochs;
use seats::Seats;

/// A volume as initiators see it.
pub struct Target {
    /// Its iSCSI name.
    name: String,
    unit: Unit,
    epochs: Epochs,
    seats: Seats,
}

impl Target {
    pub fn new(name: String, unit: Unit) -> Arc<Self> {
        Arc::new(Self { name, unit, epochs: Epochs::default(), seats: Seats::default() })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Serves an initiator on a stream that is no socket, until its connection ends.
    #[cfg(test)]
    pub(crate) async fn serve(self: Arc<Self>, stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin) {
        let targets = discovery::Targets { all: [self].into(), portals: Vec::new() };
        let (_goes_on, stop) = tokio::sync::watch::channel(false);
        server::converse(stream, &targets, None, None, stop).await;
    }
}

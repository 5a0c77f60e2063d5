//! The server: who connects gets an export.
//!
//! Owns: how long a handshake may take, and what is logged of a connection. Leaves to `negotiation` and `session` what
//! is said, and to [`Listeners`] where. A connection that fails is logged and closed; nothing that one client does ends
//! another's connection.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;
use tracing::Instrument;

use super::export::{Export, Exports, NameTaken};
use super::negotiation::negotiate;
use super::session::{self, SessionError};
use crate::net::{Address, Chain, Connection, ListenError, Listeners, Stream};

/// Every client that is alive is through its handshake by then; the others shall not hold a connection.
const NEGOTIATION_MAX: Duration = Duration::from_secs(30);

/// Why a server does not listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Name(#[from] NameTaken),
}

/// Listens, but accepts nothing before it [runs](Server::run).
pub struct Server {
    listeners: Listeners,
    exports: Exports,
}

impl Server {
    /// As [`Listeners::bind`].
    pub async fn bind(addresses: &[Address], exports: Vec<Export>) -> Result<Self, BindError> {
        let exports = Exports::new(exports)?;
        Ok(Self { listeners: Listeners::bind(addresses).await?, exports })
    }

    /// As [`Listeners::addresses`].
    pub fn addresses(&self) -> Vec<Address> {
        self.listeners.addresses()
    }

    /// To add and remove exports while the server runs.
    pub fn exports(&self) -> Exports {
        self.exports.clone()
    }

    /// Serves until `stop` becomes true (or has no sender any more); then accepts and takes nothing new, answers what
    /// is in flight (for at most 20 s), and closes.
    pub async fn run(self, stop: watch::Receiver<bool>) {
        let Self { listeners, exports } = self;
        let sessions_stop = stop.clone();
        let connected = |Connection { stream, number, peer }| {
            let span = tracing::info_span!("nbd", connection = number, peer);
            serve(stream, exports.clone(), sessions_stop.clone()).instrument(span)
        };
        listeners.serve(stop, connected).await;
    }
}

/// One connection from its first byte to its last.
async fn serve(mut stream: Stream, exports: Exports, mut stop: watch::Receiver<bool>) {
    let negotiated = tokio::select! {
        _ = stop.wait_for(|stop| *stop) => return,
        negotiated = timeout(NEGOTIATION_MAX, negotiate(&mut stream, &exports)) => negotiated,
    };
    drop(exports);
    let agreed = match negotiated {
        Ok(Ok(Some(agreed))) => agreed,
        Ok(Ok(None)) => return tracing::debug!("the client looked and left"),
        Ok(Err(error)) => return tracing::info!(error = %Chain(&error), "the handshake failed"),
        Err(_) => return tracing::info!(limit = ?NEGOTIATION_MAX, "the handshake took too long"),
    };
    let export = agreed.export.clone();
    tracing::info!(export = export.name, "connected");
    match session::serve(stream, agreed, stop).await {
        Ok(end) => tracing::info!(export = export.name, ?end, "disconnected"),
        Err(SessionError::StoreLost) => tracing::warn!(export = export.name, "disconnected: the disk lost its store"),
        // The client's fault, or its network's.
        Err(error) => tracing::info!(export = export.name, error = %Chain(&error), "the connection was dropped"),
    }
}

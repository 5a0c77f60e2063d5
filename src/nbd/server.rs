//! The server: addresses that it listens on, and the connections that come in.
//!
//! Owns: listening, how many connections there are and how long a handshake may take, and an orderly stop. Leaves to
//! `negotiation` and `session` what is said. A connection that fails is
//! logged and closed; nothing that one client does ends another's connection.

use std::fmt;
use std::fs;
use std::future::poll_fn;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::Instrument;

use super::export::{Export, Exports, NameTaken};
use super::negotiation::negotiate;
use super::session::{self, SessionError};
use super::stream::Stream;
use super::wire::DEFAULT_PORT;

/// Connections at a time, over all exports. Idle ones cost half a megabyte each; see `session` for the others.
const CONNECTIONS_MAX: usize = 256;
/// Every client that is alive is through its handshake by then; the others shall not hold a connection.
const NEGOTIATION_MAX: Duration = Duration::from_secs(30);
/// What is in flight when the server is told to stop may take this long.
const STOP_MAX: Duration = Duration::from_secs(20);
/// After a failed accept, which is a lack of descriptors or memory that others must end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `host:port`; an IPv6 address in brackets. Port 0 is any that is free.
    Tcp(String),
    Unix(PathBuf),
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an address: write HOST:PORT, as in 127.0.0.1:{DEFAULT_PORT}, or unix:PATH")]
pub struct AddressError(pub String);

impl FromStr for Address {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let error = || AddressError(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(error()) } else { Ok(Self::Unix(path.into())) };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(error)?;
        let bracketed = host.starts_with('[') && host.ends_with(']');
        if host.is_empty() || (host.contains(':') && !bracketed) || port.parse::<u16>().is_err() {
            return Err(error());
        }
        Ok(Self::Tcp(text.to_owned()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Why a server does not listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("listen on {address}: another process listens there; stop it, or choose another address")]
    InUse { address: Address },
    #[error("listen on {address}: there is a file that is not a socket; remove it, or choose another path")]
    NotASocket { address: Address },
    #[error("listen on {address}: check that the address is this machine's and that it may be used")]
    Listen { address: Address, source: io::Error },
    #[error(transparent)]
    Name(#[from] NameTaken),
}

/// Listens, but accepts nothing before it [runs](Server::run).
pub struct Server {
    listeners: Vec<Listener>,
    exports: Exports,
}

impl Server {
    /// Listens on all of the addresses or, if one fails, on none. A unix socket that nobody listens on any more is
    /// replaced.
    pub async fn bind(addresses: &[Address], exports: Vec<Export>) -> Result<Self, BindError> {
        let exports = Exports::new(exports)?;
        let mut listeners = Vec::with_capacity(addresses.len());
        for address in addresses {
            listeners.push(Listener::bind(address).await?);
        }
        Ok(Self { listeners, exports })
    }

    /// What it really listens on: with the port that was free where 0 was asked for.
    pub fn addresses(&self) -> Vec<Address> {
        self.listeners.iter().map(Listener::address).collect()
    }

    /// To add and remove exports while the server runs.
    pub fn exports(&self) -> Exports {
        self.exports.clone()
    }

    /// Serves until `stop` becomes true (or has no sender any more); then accepts and takes nothing new, answers what
    /// is in flight (for at most 20 s), and closes.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let Self { listeners, exports } = self;
        let mut connections = JoinSet::new();
        let sessions_stop = stop.clone();
        let mut stopped = std::pin::pin!(stop.wait_for(|stop| *stop));
        let mut number = 0u64;
        loop {
            let accepted = tokio::select! {
                _ = &mut stopped => break,
                Some(ended) = connections.join_next() => {
                    log_panic(ended);
                    continue;
                }
                accepted = poll_fn(|cx| poll_accept(&listeners, cx)) => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            number += 1;
            if connections.len() >= CONNECTIONS_MAX {
                tracing::warn!(peer, limit = CONNECTIONS_MAX, "too many connections; one is refused");
                continue;
            }
            let span = tracing::info_span!("nbd", connection = number, peer);
            connections.spawn(serve(stream, exports.clone(), sessions_stop.clone()).instrument(span));
        }
        drop(listeners);
        let all_ended = async {
            while let Some(ended) = connections.join_next().await {
                log_panic(ended);
            }
        };
        if timeout(STOP_MAX, all_ended).await.is_err() {
            tracing::warn!(connections = connections.len(), "clients are disconnected before they were answered");
            connections.shutdown().await;
        }
    }
}

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a connection's task failed; this is a bug");
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

/// An error with its sources, on one line.
pub(super) struct Chain<'a>(pub &'a (dyn std::error::Error + 'static));

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

fn poll_accept(listeners: &[Listener], cx: &mut Context<'_>) -> Poll<io::Result<(Stream, String)>> {
    listeners.iter().map(|listener| listener.poll_accept(cx)).find(Poll::is_ready).unwrap_or(Poll::Pending)
}

enum Listener {
    Tcp(TcpListener, Address),
    Unix(UnixListener, SocketFile),
}

impl Listener {
    async fn bind(address: &Address) -> Result<Self, BindError> {
        let error = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => BindError::InUse { address: address.clone() },
            _ => BindError::Listen { address: address.clone(), source },
        };
        match address {
            Address::Tcp(host_and_port) => {
                let listener = TcpListener::bind(host_and_port).await.map_err(error)?;
                let bound = Address::Tcp(listener.local_addr().map_err(error)?.to_string());
                Ok(Self::Tcp(listener, bound))
            }
            Address::Unix(path) => {
                remove_stale(path, address).await?;
                let listener = UnixListener::bind(path).map_err(error)?;
                let file = SocketFile::new(path).map_err(error)?;
                Ok(Self::Unix(listener, file))
            }
        }
    }

    fn address(&self) -> Address {
        match self {
            Self::Tcp(_, bound) => bound.clone(),
            Self::Unix(_, file) => Address::Unix(file.path.clone()),
        }
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Stream, String)>> {
        match self {
            Self::Tcp(listener, _) => listener.poll_accept(cx).map(|accepted| {
                let (socket, peer) = accepted?;
                Ok((Stream::tcp(socket)?, peer.to_string()))
            }),
            Self::Unix(listener, _) => listener.poll_accept(cx).map(|accepted| {
                let (socket, _) = accepted?;
                let process = socket.peer_cred().ok().and_then(|peer| peer.pid());
                let peer = process.map_or("unix".to_owned(), |id| format!("process {id}"));
                Ok((Stream::unix(socket)?, peer))
            }),
        }
    }
}

/// Removes the socket that a process left behind that was killed.
async fn remove_stale(path: &Path, address: &Address) -> Result<(), BindError> {
    let address = || address.clone();
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(BindError::Listen { address: address(), source }),
        Ok(file) if !file.file_type().is_socket() => return Err(BindError::NotASocket { address: address() }),
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|source| BindError::Listen { address: address(), source })
        }
        Ok(_) => Err(BindError::InUse { address: address() }),
        Err(source) => Err(BindError::Listen { address: address(), source }),
    }
}

/// A socket's file, removed with its listener, unless another listener has taken the path.
struct SocketFile {
    path: PathBuf,
    device_and_inode: (u64, u64),
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        let file = fs::symlink_metadata(path)?;
        Ok(Self { path: path.to_owned(), device_and_inode: (file.dev(), file.ino()) })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let same = |file: fs::Metadata| (file.dev(), file.ino()) == self.device_and_inode;
        if fs::symlink_metadata(&self.path).is_ok_and(same) {
            // Left behind it would only be replaced at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_prints_as_it_is_read_and_an_error_says_what_to_write() {
        for text in ["127.0.0.1:10809", "[::1]:0", "localhost:1", "unix:/run/umbra.sock"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in ["", "unix:", "10809", ":10809", "::1:10809", "host:port", "host:65536"] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains("127.0.0.1:10809"), "{error}");
        }
    }

    #[tokio::test]
    async fn only_a_socket_that_nobody_listens_on_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let address = [Address::Unix(path.clone())];
        let first = Server::bind(&address, Vec::new()).await.unwrap();
        assert!(matches!(Server::bind(&address, Vec::new()).await, Err(BindError::InUse { .. })));
        drop(first);
        assert!(!path.exists(), "the socket outlived its server");

        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(Server::bind(&address, Vec::new()).await.unwrap());

        fs::write(&path, "precious").unwrap();
        assert!(matches!(Server::bind(&address, Vec::new()).await, Err(BindError::NotASocket { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn a_server_tells_the_port_that_was_free() {
        let server = Server::bind(&[Address::Tcp("127.0.0.1:0".into())], Vec::new()).await.unwrap();
        let [Address::Tcp(bound)] = &server.addresses()[..] else { panic!() };
        assert!(!bound.ends_with(":0"), "{bound}");
        assert!(matches!(
            Server::bind(&server.addresses(), Vec::new()).await,
            Err(BindError::InUse { address: Address::Tcp(_) })
        ));
    }
}

//! Addresses that are listened on, and the connections that come in.
//!
//! Owns: listening, how many connections there are, and an orderly stop. Leaves to whoever serves them what is said. A
//! connection that fails ends no other.

use std::fmt;
use std::fs;
use std::future::poll_fn;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{sleep, timeout};

use super::stream::Stream;

/// Connections at a time, over all addresses.
const CONNECTIONS_MAX: usize = 256;
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

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Why nothing listens.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("listen on {address}: another process listens there; stop it, or choose another address")]
    InUse { address: Address },
    #[error("listen on {address}: there is a file that is not a socket; remove it, or choose another path")]
    NotASocket { address: Address },
    #[error("listen on {address}: check that the address is this machine's and that it may be used")]
    Listen { address: Address, source: io::Error },
}

/// Who has connected.
pub struct Connection {
    pub stream: Stream,
    /// Counted from 1.
    pub number: u64,
    /// The address, or the process of a unix socket, for people.
    pub peer: String,
}

/// Listens, and accepts nothing before it [serves](Listeners::serve).
pub struct Listeners(Vec<Listener>);

impl Listeners {
    /// Listens on all of the addresses or, if one fails, on none. A unix socket that nobody listens on any more is
    /// replaced.
    pub async fn bind(addresses: &[Address]) -> Result<Self, ListenError> {
        let mut listeners = Vec::with_capacity(addresses.len());
        for address in addresses {
            listeners.push(Listener::bind(address).await?);
        }
        Ok(Self(listeners))
    }

    /// What it really listens on: with the port that was free where 0 was asked for.
    pub fn addresses(&self) -> Vec<Address> {
        self.0.iter().map(Listener::address).collect()
    }

    /// Has `serve` talk with each that connects until `stop` becomes true (or has no sender any more); then accepts
    /// nothing new, and waits for those that are served, for at most 20 s.
    pub async fn serve<F>(self, mut stop: watch::Receiver<bool>, mut serve: impl FnMut(Connection) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut connections = JoinSet::new();
        let mut stopped = std::pin::pin!(stop.wait_for(|stop| *stop));
        let mut number = 0u64;
        loop {
            let accepted = tokio::select! {
                _ = &mut stopped => break,
                Some(ended) = connections.join_next() => {
                    log_panic(ended);
                    continue;
                }
                accepted = poll_fn(|cx| self.poll_accept(cx)) => accepted,
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
            connections.spawn(serve(Connection { stream, number, peer }));
        }
        drop(self);
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

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Stream, String)>> {
        self.0.iter().map(|listener| listener.poll_accept(cx)).find(Poll::is_ready).unwrap_or(Poll::Pending)
    }
}

fn log_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a connection's task failed; this is a bug");
    }
}

enum Listener {
    Tcp(TcpListener, Address),
    Unix(UnixListener, SocketFile),
}

impl Listener {
    async fn bind(address: &Address) -> Result<Self, ListenError> {
        let error = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => ListenError::InUse { address: address.clone() },
            _ => ListenError::Listen { address: address.clone(), source },
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
async fn remove_stale(path: &Path, address: &Address) -> Result<(), ListenError> {
    let address = || address.clone();
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(ListenError::Listen { address: address(), source }),
        Ok(file) if !file.file_type().is_socket() => return Err(ListenError::NotASocket { address: address() }),
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|source| ListenError::Listen { address: address(), source })
        }
        Ok(_) => Err(ListenError::InUse { address: address() }),
        Err(source) => Err(ListenError::Listen { address: address(), source }),
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

    #[tokio::test]
    async fn only_a_socket_that_nobody_listens_on_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let address = [Address::Unix(path.clone())];
        let first = Listeners::bind(&address).await.unwrap();
        assert!(matches!(Listeners::bind(&address).await, Err(ListenError::InUse { .. })));
        drop(first);
        assert!(!path.exists(), "the socket outlived its server");

        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(Listeners::bind(&address).await.unwrap());

        fs::write(&path, "precious").unwrap();
        assert!(matches!(Listeners::bind(&address).await, Err(ListenError::NotASocket { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn the_port_that_was_free_is_told() {
        let listeners = Listeners::bind(&[Address::Tcp("127.0.0.1:0".into())]).await.unwrap();
        let [Address::Tcp(bound)] = &listeners.addresses()[..] else { panic!() };
        assert!(!bound.ends_with(":0"), "{bound}");
        assert!(matches!(
            Listeners::bind(&listeners.addresses()).await,
            Err(ListenError::InUse { address: Address::Tcp(_) })
        ));
    }
}

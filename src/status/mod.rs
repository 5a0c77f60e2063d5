//! What a running gateway tells of itself, over a unix socket in its state folder.
//!
//! Owns: the document ([`Status`]), the socket, asking for it. Does not own: answering, and what else can be asked for
//! ([`crate::admin`]). The socket lies in a folder that only its owner may enter; nothing secret and nothing of the
//! volumes' content is in the document.

pub mod forecast;
pub mod latency;
pub mod metrics;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

pub use latency::{LatencyStatus, OperationsStatus, TimesStatus};

/// Name of the socket in the state folder.
pub const SOCKET: &str = "status.sock";
/// A client that does not say what it wants, or does not take its answer, within this time is given up.
pub const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Larger than the status of thousands of volumes.
const DOCUMENT_MAX: u64 = 64 << 20;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub volumes: Vec<VolumeStatus>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VolumeStatus {
    pub name: String,
    /// `resyncing`, `shadowing`, `overflowed`, `untracked` or `fenced`.
    pub state: String,
    /// Bytes.
    pub size: u64,
    /// Payload that is in the log and in no entry of the chain.
    pub lag_bytes: u64,
    /// Client writes that are in no entry of the chain.
    pub lag_writes: u64,
    /// Age of the oldest change that is in no recovery point.
    pub lag_seconds: f64,
    /// That age is over the configuration's `max_age`.
    pub late: bool,
    pub newest_point: Option<PointStatus>,
    pub log: LogStatus,
    /// Bytes of the scan under way that are done; equal to `total` when there is none.
    pub scanned: u64,
    pub total: u64,
    /// Bytes of regions that a crash would have read again.
    pub hot: u64,
    /// Bytes of the store that scans have read since the start.
    pub reread: u64,
    /// Bytes uploaded since the start.
    pub uploaded: u64,
    /// Points published since the start.
    pub points: u64,
    pub last_error: Option<String>,
    /// Bytes that differed from the copy though no client had changed them, as comparisons found since the start.
    pub differing: u64,
    /// None where no comparison is scheduled.
    pub scrub: Option<ScrubStatus>,
    /// Nothing from a gateway that is older than what asks it.
    #[serde(default)]
    pub latency: LatencyStatus,
}

/// The scheduled comparison of the store with its copy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScrubStatus {
    /// Bytes of this round.
    pub compared: u64,
    pub total: u64,
    /// Bytes that differed in this round; after its end, until the next.
    pub differing: u64,
    /// When the last whole round ended, RFC 3339; none before the first.
    pub finished: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PointStatus {
    pub number: u64,
    /// RFC 3339.
    pub time: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogStatus {
    /// Bytes.
    pub used: u64,
    pub size: u64,
    /// Until it overflows, if it goes on filling up as it does; absent if it does not.
    pub full_in_seconds: Option<f64>,
}

#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    #[error("listen on {}", path.display())]
    Listen { path: PathBuf, source: std::io::Error },
    #[error("connect to {}; is the gateway running?", path.display())]
    Connect { path: PathBuf, source: std::io::Error },
    #[error("read the answer of {}", path.display())]
    Answer { path: PathBuf, source: std::io::Error },
    #[error("the answer of {} is not a status; is the gateway of another version?", path.display())]
    Document { path: PathBuf, source: serde_json::Error },
}

/// Listens in the state folder `state`. A socket left by an earlier process is replaced: the caller holds the folder.
pub fn listen(state: &Path) -> Result<UnixListener, StatusError> {
    let path = state.join(SOCKET);
    let failed = |source| StatusError::Listen { path: path.clone(), source };
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&path).map_err(failed)?;
    let owner_only = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&path, owner_only).map_err(failed)?;
    Ok(listener)
}

/// Connects to the gateway whose state folder it is, and sends `request` (see [`crate::admin`]).
pub async fn connect(state: &Path, request: &str) -> Result<UnixStream, StatusError> {
    let path = state.join(SOCKET);
    let mut stream = match UnixStream::connect(&path).await {
        Ok(stream) => stream,
        Err(source) => return Err(StatusError::Connect { path, source }),
    };
    match stream.write_all(format!("{request}\n").as_bytes()).await {
        Ok(()) => Ok(stream),
        Err(source) => Err(StatusError::Answer { path, source }),
    }
}

/// Asks the gateway whose state folder it is.
pub async fn ask(state: &Path) -> Result<Status, StatusError> {
    let path = state.join(SOCKET);
    let stream = connect(state, r#"{"request":"status"}"#).await?;
    let mut document = Vec::new();
    let mut stream = stream.take(DOCUMENT_MAX);
    let read = tokio::time::timeout(ANSWER_MAX, stream.read_to_end(&mut document));
    match read.await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())) {
        Err(source) => Err(StatusError::Answer { path, source }),
        Ok(_) => serde_json::from_slice(&document).map_err(|source| StatusError::Document { path, source }),
    }
}

//! Asks a running gateway.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::time::timeout;

use super::{Comparison, LINE_MAX, Line, Request};
use crate::snapshot::compare::Progress;
use crate::status::{self, StatusError};

/// A gateway that says nothing for so long, where it should once a second, does not answer.
const SILENCE_MAX: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error(transparent)]
    Connect(#[from] StatusError),
    #[error("read the answer of {}", path.display())]
    Answer { path: PathBuf, source: io::Error },
    #[error("the answer of {} is not understood; is the gateway of another version?", path.display())]
    Line { path: PathBuf, source: serde_json::Error },
    /// In the gateway's words.
    #[error("{0}")]
    Failed(String),
}

/// Has the gateway whose state folder it is compare a volume; tells how far it is.
pub async fn compare(
    state: &Path,
    volume: &str,
    repair: bool,
    mut told: impl FnMut(Progress),
) -> Result<Comparison, AskError> {
    let path = state.join(status::SOCKET);
    let request = Request::Compare { volume: volume.to_owned(), repair };
    let request = serde_json::to_string(&request).expect("plain data has a JSON form");
    let mut answer = BufReader::new(status::connect(state, &request).await?);
    loop {
        let mut line = String::new();
        let mut bounded = (&mut answer).take(LINE_MAX);
        let read = timeout(SILENCE_MAX, bounded.read_line(&mut line));
        match read.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(0) => return Err(AskError::Answer { path, source: io::ErrorKind::UnexpectedEof.into() }),
            Ok(_) => {}
            Err(source) => return Err(AskError::Answer { path, source }),
        }
        match serde_json::from_str(&line) {
            Ok(Line::Progress(progress)) => told(progress),
            Ok(Line::Compared(comparison)) => return Ok(comparison),
            Ok(Line::Failed(why)) => return Err(AskError::Failed(why)),
            Err(source) => return Err(AskError::Line { path, source }),
        }
    }
}

//! Answers requests.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::warn;

use super::{Comparison, Line, REQUEST_MAX, Request};
use crate::snapshot::compare::{Comparer, Progress};
use crate::snapshot::upload::with_causes;
use crate::status::{ANSWER_MAX, Status};

/// Clients at a time; more wait to be taken.
const CLIENTS_MAX: usize = 32;
/// Of them, those that wait for a comparison: the others are refused, and the status is always to be had.
const COMPARISONS_MAX: usize = 16;
/// How often a client is told how far its request is; this is also how its leaving is noticed.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// What requests are answered from.
pub struct Desk {
    pub status: Box<dyn Fn() -> Status + Send + Sync>,
    /// By name of the volume.
    pub comparers: HashMap<String, Comparer>,
}

const _: () = assert!(COMPARISONS_MAX < CLIENTS_MAX);

/// Answers everyone who connects, until it is dropped.
pub async fn answer(listener: UnixListener, desk: Arc<Desk>) {
    let clients = Arc::new(Semaphore::new(CLIENTS_MAX));
    let comparisons = Arc::new(Semaphore::new(COMPARISONS_MAX));
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let place = clients.clone().acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, _)) => {
                let (desk, comparisons) = (desk.clone(), comparisons.clone());
                tasks.spawn(async move {
                    // Whoever goes away before the end does not want to know.
                    let _ = serve(stream, &desk, &comparisons).await;
                    drop(place);
                });
            }
            Err(error) => {
                warn!(%error, "a request could not be taken");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// An error is one of the connection.
async fn serve(stream: UnixStream, desk: &Desk, comparisons: &Semaphore) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut read = BufReader::new(read).take(REQUEST_MAX);
    timeout(ANSWER_MAX, read.read_line(&mut line)).await??;
    let request = match line.trim() {
        "" => Ok(Request::Status),
        line => serde_json::from_str(line),
    };
    match request {
        Ok(Request::Status) => {
            let document = serde_json::to_vec(&(desk.status)()).unwrap_or_default();
            send(&mut write, &document).await
        }
        Ok(Request::Compare { volume, repair }) => match desk.comparers.get(&volume) {
            Some(comparer) => match comparisons.try_acquire() {
                Ok(_place) => compare(&mut write, comparer, repair).await,
                Err(_) => tell(&mut write, &Line::Failed("too many wait for a comparison".to_owned())).await,
            },
            None => tell(&mut write, &Line::Failed(format!("the gateway has no volume {volume:?}"))).await,
        },
        Err(error) => tell(&mut write, &Line::Failed(format!("this is no request: {error}"))).await,
    }
}

type Write = tokio::net::unix::OwnedWriteHalf;

async fn compare(write: &mut Write, comparer: &Comparer, repair: bool) -> std::io::Result<()> {
    let told = watch::Sender::new(Progress::default());
    let mut comparing = std::pin::pin!(comparer.compare(repair, &told));
    let mut ticks = interval(TELL_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let line = loop {
        tokio::select! {
            compared = &mut comparing => break match compared {
                Ok(found) => Line::Compared(Comparison::from(found)),
                Err(error) => Line::Failed(with_causes(&error)),
            },
            _ = ticks.tick() => {
                let progress = *told.borrow();
                tell(write, &Line::Progress(progress)).await?;
            }
        }
    };
    tell(write, &line).await
}

async fn tell(write: &mut Write, line: &Line) -> std::io::Result<()> {
    let mut text = serde_json::to_vec(line).unwrap_or_default();
    text.push(b'\n');
    send(write, &text).await
}

/// A client that does not take its answer is given up.
async fn send(write: &mut Write, bytes: &[u8]) -> std::io::Result<()> {
    timeout(ANSWER_MAX, write.write_all(bytes)).await?
}

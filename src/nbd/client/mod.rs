//! A remote export as a disk: [`NbdDisk`].
//!
//! Owns: connections, reconnection within a bound, splitting what is too large for the server. Leaves to its caller
//! the alignment to the server's minimum block size, and every retry: what was in flight when a connection broke is
//! answered as [`Lost`](DiskError::Lost), for the old server may still do it.
//!
//! All connections live and die together. After one is lost, requests wait for the next ones, for at most 30 s; then
//! they are refused, having never been issued, until the server is back. [`Disk::incarnation`] has risen by then.
//!
//! Several connections are used only if the server says that a flush on one covers all.

pub(super) mod fuzzing;
mod handshake;
mod link;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

pub use handshake::HandshakeError;
use handshake::{Terms, connect};
use link::{Dialect, Job, LinkError, Load, Reply};

use super::uri::{Uri, UriError};
use super::wire::{command, state};
use crate::disk::away::{Carrier, Jobs, RECONNECT_MAX, StillAway, come_back};
use crate::disk::{self, Disk, DiskError, Errno, Extent, Geometry, Identity, Pending, ZeroMode};
use crate::net::{Chain, Stream};
use crate::units::{GIB, KIB};

/// Connections to a server that allows several: as many as `nbdcopy` uses.
const CONNECTIONS: usize = 4;
/// What one connection has under way before another is used. Up to there, requests that share a send, and answers that
/// share a receive, are worth more than a second connection.
const SPREAD_ABOVE: u64 = 256 * KIB;
/// After the first one succeeded: a server that is full leaves the others without an answer.
const FURTHER_CONNECTION_MAX: Duration = Duration::from_secs(1);
/// Longest request without a payload: far below 2³², which some servers mishandle.
const RANGE_MAX: u64 = GIB;
/// What is in flight when the disk is dropped may take this long.
const LEAVE_MAX: Duration = Duration::from_secs(20);

const _: () = assert!(RANGE_MAX < u32::MAX as u64);

/// Why an export is not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Uri(#[from] UriError),
    #[error("open {uri}")]
    Handshake { uri: Uri, source: HandshakeError },
}

/// Why a server that came back is not used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Changed {
    #[error("the export's size changed from {before} to {now} bytes")]
    Size { before: u64, now: u64 },
    #[error("the export lost an ability: it had {before:?} and has {now:?}")]
    Abilities { before: Box<disk::Abilities>, now: Box<disk::Abilities> },
    #[error("the export's block sizes changed from {before:?} to {now:?}")]
    BlockSizes { before: disk::BlockSizes, now: disk::BlockSizes },
}

/// An export of an NBD server. Must be dropped inside the runtime that it was opened in, to leave in order.
pub struct NbdDisk {
    shared: Arc<Shared>,
}

struct Shared {
    uri: Uri,
    geometry: Geometry,
    has_context: bool,
    /// How long requests wait for a lost server.
    patience: Duration,
    incarnation: AtomicU64,
    jobs: Jobs<Ways>,
    /// The disk was dropped.
    dropped: Notify,
}

/// The connections.
struct Ways {
    ways: Vec<Way>,
    /// Which of them jobs go now.
    current: usize,
}

/// A connection, and what is under way on it.
struct Way {
    jobs: mpsc::UnboundedSender<Job>,
    /// Bytes of payload, or as many as a job without one is worth.
    load: Arc<AtomicU64>,
}

impl Way {
    fn new(jobs: mpsc::UnboundedSender<Job>) -> Self {
        Self { jobs, load: Arc::default() }
    }

    fn load(&self) -> u64 {
        self.load.load(Ordering::Relaxed)
    }

    fn send(&self, mut job: Job) -> Result<(), Job> {
        job.load = Some(Load::new(&self.load, &job));
        self.jobs.send(job).map_err(|unsent| Job { load: None, ..unsent.0 })
    }
}

impl Carrier for Ways {
    type Job = Job;

    fn carry(&mut self, job: Job) -> Result<(), Job> {
        let Self { ways, current } = self;
        if ways[*current].load() >= SPREAD_ABOVE {
            *current = (0..ways.len()).min_by_key(|&way| ways[way].load()).unwrap_or(0);
        }
        ways[*current].send(job)
    }

    fn refuse(job: Job) {
        // Whoever asked may not care any more.
        let _ = job.answer.send(Err(DiskError::Refused(Errno::ESHUTDOWN)));
    }
}

impl NbdDisk {
    /// Connects, once: whoever wants to wait for a server asks again.
    pub async fn open(uri: &str) -> Result<Self, OpenError> {
        Self::open_with(uri, RECONNECT_MAX).await
    }

    async fn open_with(uri: &str, patience: Duration) -> Result<Self, OpenError> {
        let uri: Uri = uri.parse()?;
        let connections =
            connect_all(&uri).await.map_err(|source| OpenError::Handshake { uri: uri.clone(), source })?;
        let terms = connections.terms;
        let (ways, links) = start(connections);
        let shared = Arc::new(Shared {
            uri,
            geometry: terms.geometry,
            has_context: terms.context.is_some(),
            patience,
            incarnation: AtomicU64::new(0),
            jobs: Jobs::new(ways),
            dropped: Notify::new(),
        });
        tokio::spawn(keep(shared.clone(), links));
        Ok(Self { shared })
    }
}

impl Drop for NbdDisk {
    fn drop(&mut self) {
        self.shared.dropped.notify_one();
    }
}

type Links = JoinSet<Result<(), LinkError>>;

/// Owns the connections: sees them end, and makes new ones, until the disk is dropped.
async fn keep(shared: Arc<Shared>, mut links: Links) {
    loop {
        let ended = tokio::select! {
            biased;
            _ = shared.dropped.notified() => {
                // Without senders the links end when the last job is answered.
                shared.jobs.refuse();
                let left = timeout(LEAVE_MAX, async { while links.join_next().await.is_some() {} }).await;
                if left.is_err() {
                    tracing::warn!(uri = %shared.uri, "the server did not answer in time; leaving");
                }
                return;
            }
            ended = links.join_next() => ended,
        };
        // New jobs wait from here on. Those in flight on the other links are lost with them.
        shared.jobs.wait(Vec::new());
        links.shutdown().await;
        let uri = &shared.uri;
        match ended {
            Some(Ok(Err(error))) => tracing::warn!(%uri, error = %Chain(&error), "connection lost; reconnecting"),
            Some(Err(error)) => tracing::error!(%uri, %error, "a connection's task failed; this is a bug"),
            _ => tracing::warn!(%uri, "connection lost; reconnecting"),
        }
        let connections = tokio::select! {
            _ = shared.dropped.notified() => {
                shared.jobs.refuse();
                return;
            }
            connections = come_back(uri, &shared.jobs, shared.patience, || reconnect(uri)) => connections,
        };
        if let Err(changed) = compare(&shared.geometry, &connections.terms.geometry) {
            tracing::error!(%uri, error = %changed, "another disk came back; it is not used before a restart");
            shared.jobs.refuse();
            return;
        }
        let incarnation = 1 + shared.incarnation.fetch_add(1, Ordering::SeqCst);
        tracing::info!(%uri, incarnation, connections = connections.streams.len(), "reconnected");
        let (ways, begun) = start(connections);
        shared.jobs.go_on(ways);
        links = begun;
    }
}

async fn reconnect(uri: &Uri) -> Result<Connections, StillAway> {
    connect_all(uri).await.map_err(|error| StillAway { why: Chain(&error).to_string(), is_another: false })
}

struct Connections {
    streams: Vec<(Stream, Dialect)>,
    /// The same for all, save the number of the context.
    terms: Terms,
}

/// Connects as often as the server allows.
async fn connect_all(uri: &Uri) -> Result<Connections, HandshakeError> {
    let dialect = |terms: Terms| Dialect { structured_replies: terms.structured_replies, context: terms.context };
    let (stream, terms) = connect(uri).await?;
    let mut streams = vec![(stream, dialect(terms))];
    while terms.geometry.abilities.multi_conn && streams.len() < CONNECTIONS {
        match timeout(FURTHER_CONNECTION_MAX, connect(uri)).await {
            Ok(Ok((stream, other))) if other.geometry == terms.geometry => streams.push((stream, dialect(other))),
            // A server may limit the number of connections, or be just changing; fewer do as well.
            _ => break,
        }
    }
    Ok(Connections { streams, terms })
}

/// A server that came back must be able to do all that was promised.
fn compare(before: &Geometry, now: &Geometry) -> Result<(), Changed> {
    if before.size != now.size {
        return Err(Changed::Size { before: before.size, now: now.size });
    }
    let (had, has) = (before.abilities, now.abilities);
    if !had.are_kept_by(&has) {
        return Err(Changed::Abilities { before: Box::new(had), now: Box::new(has) });
    }
    if now.block.minimum > before.block.minimum || now.block.maximum < before.block.maximum {
        return Err(Changed::BlockSizes { before: before.block, now: now.block });
    }
    Ok(())
}

/// Gives the connections a task each.
fn start(connections: Connections) -> (Ways, Links) {
    let mut links = Links::new();
    let ways = connections
        .streams
        .into_iter()
        .map(|(stream, dialect)| {
            let (sender, jobs) = mpsc::unbounded_channel();
            links.spawn(link::run(stream, dialect, jobs));
            Way::new(sender)
        })
        .collect();
    (Ways { ways, current: 0 }, links)
}

type Answer = oneshot::Receiver<disk::Result<Reply>>;

async fn outcome(answer: Answer) -> disk::Result<Reply> {
    answer.await.unwrap_or(Err(DiskError::Lost))
}

/// Waits for all, for a part that is still under way must not meet what its caller does next. What is lost is unknown
/// whatever the other parts say; any other error leaves a change made in part.
async fn outcomes(answers: Vec<Answer>) -> disk::Result<Vec<Reply>> {
    let mut replies = Ok(Vec::with_capacity(answers.len()));
    for answer in answers {
        match (outcome(answer).await, &mut replies) {
            (Ok(reply), Ok(replies)) => replies.push(reply),
            (Err(DiskError::Lost), _) => replies = Err(DiskError::Lost),
            (Err(error), Ok(_)) => replies = Err(DiskError::Io(error.errno())),
            (_, Err(_)) => {}
        }
    }
    replies
}

impl NbdDisk {
    fn submit(&self, command: u16, flags: u16, offset: u64, length: u32, data: Bytes) -> Answer {
        let (answer, receiver) = oneshot::channel();
        self.shared.jobs.submit(Job { command, flags, offset, length, data, answer, load: None });
        receiver
    }

    /// Issues a request in parts of at most `most` bytes, all at once.
    fn submit_parts(&self, command: u16, flags: u16, offset: u64, length: u64, data: Bytes, most: u64) -> Vec<Answer> {
        let mut rest = data;
        (0..length.div_ceil(most))
            .map(|part| {
                let length = most.min(length - part * most);
                let data = rest.split_to(rest.len().min(length as usize));
                self.submit(command, flags, offset + part * most, length as u32, data)
            })
            .collect()
    }

    fn change(&self, command: u16, flags: u16, offset: u64, length: u64, data: Bytes) -> Pending<()> {
        let most = if command == command::WRITE { self.payload_max() } else { self.range_max() };
        if length <= most {
            let answer = self.submit(command, flags, offset, length as u32, data);
            return Pending::later(async { outcome(answer).await.map(drop) });
        }
        let answers = self.submit_parts(command, flags, offset, length, data, most);
        Pending::later(async { outcomes(answers).await.map(drop) })
    }

    fn payload_max(&self) -> u64 {
        let block = self.shared.geometry.block;
        u64::from(block.maximum / block.minimum * block.minimum)
    }

    fn range_max(&self) -> u64 {
        let minimum = u64::from(self.shared.geometry.block.minimum);
        RANGE_MAX / minimum * minimum
    }

    /// As [`Self::admit`]; a read-only disk refuses every change as such, whatever else it cannot do.
    fn admit_change(&self, able: bool, offset: u64, length: u64, fua: bool) -> disk::Result<u16> {
        if self.shared.geometry.abilities.read_only {
            return Err(DiskError::Refused(Errno::EPERM));
        }
        self.admit(able, offset, length, fua)
    }

    /// The flags of a change of [`offset`, `offset + length`), if it may be asked for.
    fn admit(&self, able: bool, offset: u64, length: u64, fua: bool) -> disk::Result<u16> {
        let Geometry { size, abilities, .. } = self.shared.geometry;
        let inside = length > 0 && offset.checked_add(length).is_some_and(|end| end <= size);
        if able && inside && (abilities.fua || !fua) {
            Ok(if fua { command::FLAG_FUA } else { 0 })
        } else {
            Err(DiskError::Refused(Errno::EINVAL))
        }
    }
}

impl Disk for NbdDisk {
    fn geometry(&self) -> Geometry {
        self.shared.geometry
    }

    fn read(&self, offset: u64, length: u32) -> Pending<Bytes> {
        if let Err(error) = self.admit(true, offset, length.into(), false) {
            return Pending::ready(Err(error));
        }
        let most = self.payload_max();
        if u64::from(length) <= most {
            let answer = self.submit(command::READ, 0, offset, length, Bytes::new());
            return Pending::later(async { outcome(answer).await.map(|reply| reply.data) });
        }
        let answers = self.submit_parts(command::READ, 0, offset, length.into(), Bytes::new(), most);
        Pending::later(async move {
            let mut whole = BytesMut::with_capacity(length as usize);
            outcomes(answers).await?.iter().for_each(|reply| whole.extend_from_slice(&reply.data));
            Ok(whole.freeze())
        })
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> Pending<()> {
        match self.admit_change(true, offset, data.len() as u64, fua) {
            Ok(flags) => self.change(command::WRITE, flags, offset, data.len() as u64, data),
            Err(error) => Pending::ready(Err(error)),
        }
    }

    fn flush(&self) -> Pending<()> {
        if !self.shared.geometry.abilities.flush {
            return Pending::ready(Err(DiskError::Refused(Errno::EINVAL)));
        }
        self.change(command::FLUSH, 0, 0, 0, Bytes::new())
    }

    fn trim(&self, offset: u64, length: u64, fua: bool) -> Pending<()> {
        match self.admit_change(self.shared.geometry.abilities.trim, offset, length, fua) {
            Ok(flags) => self.change(command::TRIM, flags, offset, length, Bytes::new()),
            Err(error) => Pending::ready(Err(error)),
        }
    }

    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode, fua: bool) -> Pending<()> {
        let abilities = self.shared.geometry.abilities;
        let able = abilities.write_zeroes && (abilities.fast_zeroes || !mode.fast_only);
        match self.admit_change(able, offset, length, fua) {
            Ok(flags) => {
                let no_hole = if mode.no_hole { command::FLAG_NO_HOLE } else { 0 };
                let fast = if mode.fast_only { command::FLAG_FAST_ZERO } else { 0 };
                self.change(command::WRITE_ZEROES, flags | no_hole | fast, offset, length, Bytes::new())
            }
            Err(error) => Pending::ready(Err(error)),
        }
    }

    fn cache(&self, offset: u64, length: u64) -> Pending<()> {
        match self.admit(self.shared.geometry.abilities.cache, offset, length, false) {
            Ok(_) => self.change(command::CACHE, 0, offset, length, Bytes::new()),
            Err(error) => Pending::ready(Err(error)),
        }
    }

    fn extents(&self, offset: u64, length: u64, limit: usize) -> Pending<Vec<Extent>> {
        if let Err(error) = self.admit(true, offset, length, false) {
            return Pending::ready(Err(error));
        }
        if !self.shared.has_context {
            return Pending::ready(Ok(vec![Extent { length, hole: false, zero: false }]));
        }
        let length = length.min(self.range_max());
        let flags = if limit == 1 { command::FLAG_REQ_ONE } else { 0 };
        let answer = self.submit(command::BLOCK_STATUS, flags, offset, length as u32, Bytes::new());
        Pending::later(async move {
            let mut rest = length;
            let runs = outcome(answer).await?.runs;
            let extents = runs.iter().take(limit.max(1)).map(|run| {
                // The last one may reach beyond what was asked.
                let length = rest.min(run.length.into());
                rest -= length;
                Extent { length, hole: run.state & state::HOLE != 0, zero: run.state & state::ZERO != 0 }
            });
            Ok(extents.collect())
        })
    }

    fn identity(&self) -> Identity {
        Identity { name: format!("nbd:{}", self.shared.uri), size: self.shared.geometry.size, modified: None }
    }

    fn incarnation(&self) -> u64 {
        self.shared.incarnation.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests;

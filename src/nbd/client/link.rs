//! One connection to a server, in transmission: sends requests, and matches what comes back with them.
//!
//! A server is not trusted. What it sends is checked against the request before memory is set aside for it; the first
//! thing that does not fit ends the link, and everything in flight on it is lost. A link never retries.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};

use crate::disk;
use crate::nbd::wire::{self, Chunk, Fields, NbdError, Request, Run, SimpleReply, chunk, command};
use crate::net::{Inbox, Outbox};
use crate::units::Span;

/// Requests that are queued for the socket before more are taken.
const SEND_BATCH: usize = 256 * 1024;
/// Runs that a block status may have (proto.md, `NBD_REPLY_TYPE_BLOCK_STATUS`).
const RUNS_MAX: u32 = 1 << 20;
/// Longest payload of an error: code, message and its length, offset.
const ERROR_LENGTH_MAX: u32 = 4 + 2 + wire::STRING_MAX as u32 + 8;
/// Separate pieces of a read that are known before the gaps between them are; servers send in order, or almost.
const PIECES_MAX: usize = 1024;
/// What a job without a payload costs, as bytes of one.
const JOB_COST: u64 = 1024;

/// A request for a link. It is answered when the server did; not at all (the sender is dropped) if the link ended.
pub(super) struct Job {
    /// One of [`command`], with its flags.
    pub command: u16,
    pub flags: u16,
    pub offset: u64,
    pub length: u32,
    /// Of a write; else empty.
    pub data: Bytes,
    pub answer: oneshot::Sender<disk::Result<Reply>>,
    pub load: Option<Load>,
}

/// A job's part of what is under way on its connection, until it is dropped.
pub(super) struct Load {
    of: Arc<AtomicU64>,
    weight: u64,
}

impl Load {
    pub fn new(of: &Arc<AtomicU64>, job: &Job) -> Self {
        let weight = match job.command {
            command::READ | command::WRITE => JOB_COST + u64::from(job.length),
            command::BLOCK_STATUS => JOB_COST,
            // They may take long, and what comes behind them on a connection may wait for them.
            _ => super::SPREAD_ABOVE,
        };
        of.fetch_add(weight, Ordering::Relaxed);
        Self { of: of.clone(), weight }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.of.fetch_sub(self.weight, Ordering::Relaxed);
    }
}

/// What came back: data of a read, runs of a block status.
#[derive(Debug, Default)]
pub(super) struct Reply {
    pub data: Bytes,
    pub runs: Vec<Run>,
}

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("the server closed the connection")]
    Closed,
    #[error("connection")]
    Io(#[from] io::Error),
    #[error("the server broke the protocol: {0}")]
    Broken(&'static str),
}

/// How the server was told, in negotiation, to answer.
#[derive(Clone, Copy)]
pub(super) struct Dialect {
    pub structured_replies: bool,
    pub context: Option<u32>,
}

/// Runs until `jobs` is closed and all of them are answered, or the link breaks.
pub(super) async fn run(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    dialect: Dialect,
    jobs: mpsc::UnboundedReceiver<Job>,
) -> Result<(), LinkError> {
    let mut link = Link {
        stream,
        dialect,
        jobs,
        left: false,
        cookie: 0,
        in_flight: HashMap::new(),
        inbox: Inbox::default(),
        outbox: Outbox::default(),
        expected: Expected::Head,
    };
    poll_fn(|cx| link.poll(cx)).await
}

struct Link<S> {
    stream: S,
    dialect: Dialect,
    jobs: mpsc::UnboundedReceiver<Job>,
    /// Nobody has a job any more, and the server was told.
    left: bool,
    cookie: u64,
    in_flight: HashMap<u64, InFlight>,
    inbox: Inbox,
    outbox: Outbox,
    expected: Expected,
}

/// What the next bytes of the server are.
enum Expected {
    Head,
    /// What a simple reply's request reads.
    Data {
        cookie: u64,
        length: u32,
    },
    Payload(Chunk),
}

struct InFlight {
    command: u16,
    offset: u64,
    length: u32,
    answer: oneshot::Sender<disk::Result<Reply>>,
    collected: Collected,
    _load: Option<Load>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Link<S> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        loop {
            while !self.left && self.outbox.len() < SEND_BATCH {
                match self.jobs.poll_recv(cx) {
                    Poll::Ready(Some(job)) => self.send(job),
                    Poll::Ready(None) if self.in_flight.is_empty() => {
                        let leave = Request { flags: 0, command: command::DISC, cookie: 0, offset: 0, length: 0 };
                        self.outbox.put(&leave.encode());
                        self.left = true;
                    }
                    Poll::Ready(None) | Poll::Pending => break,
                }
            }
            let batch_full = self.outbox.len() >= SEND_BATCH;
            let all_sent = self.outbox.poll_send(cx, &mut self.stream)?.is_ready();
            if self.left {
                return if all_sent {
                    Pin::new(&mut self.stream).poll_shutdown(cx).map_err(LinkError::Io)
                } else {
                    Poll::Pending
                };
            }
            let answered = self.take_replies()?;
            match self.inbox.poll_fill(cx, &mut self.stream)? {
                Poll::Ready(0) => return Poll::Ready(Err(LinkError::Closed)),
                Poll::Ready(_) => {}
                // There may be jobs beyond the batch that was sent, or none will come and this was the last answer.
                Poll::Pending if answered || (all_sent && batch_full) => {}
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn send(&mut self, job: Job) {
        let Job { command, flags, offset, length, data, answer, load } = job;
        // Never 0, never used twice.
        self.cookie += 1;
        let cookie = self.cookie;
        self.outbox.put(&Request { flags, command, cookie, offset, length }.encode());
        self.outbox.put_payload(data);
        let collected = Collected::default();
        self.in_flight.insert(cookie, InFlight { command, offset, length, answer, collected, _load: load });
    }

    /// Takes all replies that were received; whether there were any.
    fn take_replies(&mut self) -> Result<bool, LinkError> {
        let mut any = false;
        loop {
            match self.expected {
                Expected::Head => {
                    if let Some(head) = self.inbox.peek().and_then(SimpleReply::decode) {
                        self.inbox.skip(SimpleReply::LENGTH);
                        self.simple(head)?;
                    } else if let Some(head) = self.inbox.peek() {
                        let head = Chunk::decode(head).ok_or(LinkError::Broken("the magic of a reply"))?;
                        self.inbox.skip(Chunk::LENGTH);
                        self.check(&head)?;
                        self.expected = Expected::Payload(head);
                    } else {
                        return Ok(any);
                    }
                }
                Expected::Data { cookie, length } => {
                    let Some(data) = self.inbox.take(length as usize) else { return Ok(any) };
                    self.expected = Expected::Head;
                    self.answer(cookie, Ok(Reply { data, runs: Vec::new() }));
                }
                Expected::Payload(head) => {
                    let Some(payload) = self.inbox.take(head.length as usize) else { return Ok(any) };
                    self.expected = Expected::Head;
                    self.chunk(head, payload)?;
                }
            }
            any = true;
        }
    }

    fn simple(&mut self, head: SimpleReply) -> Result<(), LinkError> {
        let waiting = self.in_flight.get(&head.cookie).ok_or(LinkError::Broken("a reply to no request"))?;
        if waiting.collected.begun {
            return Err(LinkError::Broken("a simple reply amid a structured one"));
        }
        let structured = self.dialect.structured_replies;
        match waiting.command {
            _ if head.error != 0 => self.answer(head.cookie, Err(NbdError(head.error).to_disk())),
            command::READ if structured => return Err(LinkError::Broken("a simple reply to a read")),
            command::READ => self.expected = Expected::Data { cookie: head.cookie, length: waiting.length },
            command::BLOCK_STATUS => return Err(LinkError::Broken("a simple reply to a block status")),
            _ => self.answer(head.cookie, Ok(Reply::default())),
        }
        Ok(())
    }

    /// Whether a chunk can belong to its request, before its payload is received.
    fn check(&self, head: &Chunk) -> Result<(), LinkError> {
        let waiting = self.in_flight.get(&head.cookie).ok_or(LinkError::Broken("a chunk for no request"))?;
        let read = waiting.command == command::READ;
        let fits = match head.kind {
            _ if !self.dialect.structured_replies => false,
            chunk::NONE => head.length == 0 && head.is_last(),
            chunk::OFFSET_DATA => read && head.length > 8 && head.length - 8 <= waiting.length,
            chunk::OFFSET_HOLE => read && head.length == 12,
            chunk::BLOCK_STATUS => {
                waiting.command == command::BLOCK_STATUS && head.length >= 12 && head.length <= 4 + 8 * RUNS_MAX
            }
            kind if kind & chunk::ERROR_BIT != 0 => head.length >= 6 && head.length <= ERROR_LENGTH_MAX,
            _ => false,
        };
        if fits { Ok(()) } else { Err(LinkError::Broken("a chunk that does not fit its request")) }
    }

    fn chunk(&mut self, head: Chunk, payload: Bytes) -> Result<(), LinkError> {
        let waiting = self.in_flight.get_mut(&head.cookie).ok_or(LinkError::Broken("a chunk for no request"))?;
        waiting.add(head.kind, payload, self.dialect.context).map_err(LinkError::Broken)?;
        if head.is_last()
            && let Some(waiting) = self.in_flight.remove(&head.cookie)
        {
            let (answer, outcome) = waiting.finish().map_err(LinkError::Broken)?;
            // Whoever asked may not care any more.
            let _ = answer.send(outcome);
        }
        Ok(())
    }

    fn answer(&mut self, cookie: u64, outcome: disk::Result<Reply>) {
        if let Some(waiting) = self.in_flight.remove(&cookie) {
            let _ = waiting.answer.send(outcome);
        }
    }
}

/// The chunks of a reply so far.
#[derive(Default)]
struct Collected {
    begun: bool,
    error: Option<NbdError>,
    /// Of a read that came in one chunk.
    whole: Option<Bytes>,
    /// Of a read that came in several: as long as the read, zero where nothing came.
    pieces: BytesMut,
    /// What came of it: in order, apart from each other, offsets of the disk.
    covered: Vec<Span>,
    runs: Vec<Run>,
}

impl InFlight {
    fn span(&self) -> Span {
        Span::at(self.offset, self.length.into())
    }

    fn add(&mut self, kind: u16, mut payload: Bytes, context: Option<u32>) -> Result<(), &'static str> {
        self.collected.begun = true;
        match kind {
            chunk::NONE => {}
            chunk::OFFSET_DATA => {
                let offset = payload.try_get_u64().map_err(|_| "data without an offset")?;
                let piece = self.cover(offset, payload.len() as u64)?;
                if piece == self.span() {
                    self.collected.whole = Some(payload);
                } else {
                    self.collected.pieces.resize(self.length as usize, 0);
                    let start = (piece.start - self.offset) as usize;
                    self.collected.pieces[start..start + payload.len()].copy_from_slice(&payload);
                }
            }
            chunk::OFFSET_HOLE => {
                let mut fields = Fields(&payload);
                let (offset, length) = fields.u64().zip(fields.u32()).ok_or("a malformed hole")?;
                self.cover(offset, length.into())?;
                self.collected.pieces.resize(self.length as usize, 0);
            }
            chunk::BLOCK_STATUS => {
                let (number, runs) = wire::decode_status(&payload).ok_or("a malformed block status")?;
                if Some(number) != context || !self.collected.runs.is_empty() {
                    return Err("a block status that was not asked for");
                }
                let before_last: u64 = runs[..runs.len() - 1].iter().map(|run| u64::from(run.length)).sum();
                if before_last >= self.length.into() {
                    return Err("a block status beyond its request");
                }
                self.collected.runs = runs;
            }
            _ => {
                let error = wire::decode_error(&payload).ok_or("a malformed error")?;
                self.collected.error.get_or_insert(error);
            }
        }
        Ok(())
    }

    /// Takes note of a piece of a read; it must lie inside, and nothing may come twice.
    fn cover(&mut self, offset: u64, length: u64) -> Result<Span, &'static str> {
        let end = offset.checked_add(length).ok_or("data beyond the end of offsets")?;
        let piece = Span::new(offset, end);
        if piece.is_empty() || !self.span().contains(piece) {
            return Err("data outside of its request");
        }
        let covered = &mut self.collected.covered;
        let at = covered.partition_point(|other| other.end <= piece.start);
        if covered.get(at).is_some_and(|next| next.overlaps(piece)) {
            return Err("the same data twice");
        }
        let joins_next = covered.get(at).is_some_and(|next| next.start == piece.end);
        let previous = at.checked_sub(1).filter(|&previous| covered[previous].end == piece.start);
        match (previous, joins_next) {
            (Some(previous), true) => covered[previous].end = covered.remove(at).end,
            (Some(previous), false) => covered[previous].end = piece.end,
            (None, true) => covered[at].start = piece.start,
            (None, false) if covered.len() == PIECES_MAX => return Err("data in too many pieces"),
            (None, false) => covered.insert(at, piece),
        }
        Ok(piece)
    }

    fn finish(self) -> Result<(oneshot::Sender<disk::Result<Reply>>, disk::Result<Reply>), &'static str> {
        let span = self.span();
        let Collected { error, whole, pieces, covered, runs, .. } = self.collected;
        let outcome = match (error, self.command) {
            (Some(error), _) => Err(error.to_disk()),
            (None, command::READ) if covered != [span] => return Err("a read without all of its data"),
            (None, command::BLOCK_STATUS) if runs.is_empty() => return Err("a block status without runs"),
            (None, _) => Ok(Reply { data: whole.unwrap_or_else(|| pieces.freeze()), runs }),
        };
        Ok((self.answer, outcome))
    }
}

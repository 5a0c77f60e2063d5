//! The server's side of transmission (proto.md, "Transmission"): one connection, many requests at a time.
//!
//! One task owns a connection. It takes all requests that a receive brought, begins each on the disk, and sends
//! replies that are ready with as few sends as pay, in the order in which they became ready. What the disk can answer
//! at once costs no task and no wake-up.
//!
//! Bounds: requests and bytes in flight, replies that the client does not fetch included; at a bound the socket is
//! not read. What the protocol forbids is refused with its error ([`admit`]); where its end could not be found, or
//! the disk lost its store, the connection ends.
//!
//! However a session ends, begun operations go on to their end: [`Pending`] sees to it. The session lasts until then;
//! its connection does not. What a flush was told then, and its client cannot be, the disk goes on owing.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

use super::negotiation::{Agreed, CONTEXT};
use super::wire::{self, NbdError, Request, Run, SimpleReply, command, state};
use crate::disk::{self, Disk, DiskError, Errno, Extent, Pending, ZeroMode};
use crate::net::{Inbox, Outbox};
use crate::units::{MIB, REQUEST_MAX};

/// Payloads under way and replies not yet fetched, per connection: a client that wants them all costs no more.
const IN_FLIGHT_BYTES_MAX: usize = 64 * MIB as usize;
const IN_FLIGHT_REQUESTS_MAX: usize = 1024;
/// Longest payload of a refused write that is read and dropped, so that the client gets its error. As in nbdkit,
/// twice what is accepted.
const SKIP_MAX: u32 = 2 * REQUEST_MAX;
/// Replies that are gathered before the first is sent: a send of this size is as cheap per byte as a larger one.
const SEND_BATCH: usize = 256 * 1024;
/// As much, of what the disk did not have at once: while the client works on a part, we do on the next.
const LATE_BATCH: usize = 32 * 1024;
/// Runs in one answer to a block status; the client asks on from their end.
const EXTENTS_MAX: usize = 4096;

// Else a single request might wait for itself.
const _: () = assert!(IN_FLIGHT_BYTES_MAX >= REQUEST_MAX as usize);

/// How a session ended when nothing was wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The client said that it leaves.
    Disconnected,
    /// The client closed the connection between two requests.
    Closed,
    /// We were told to stop.
    Stopped,
}

/// Why a connection was dropped.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error("a request did not begin with its magic")]
    BadMagic,
    #[error("the connection ended inside a request")]
    Truncated,
    #[error("a write of {0} bytes, too long to be skipped")]
    TooLong(u32),
    #[error("the disk lost its store")]
    StoreLost,
    #[error("connection")]
    Io(#[from] io::Error),
}

/// Serves a client until it leaves, breaks the protocol, or `stop` becomes true (or has no sender any more).
pub(super) async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    agreed: Agreed,
    mut stop: watch::Receiver<bool>,
) -> Result<End, SessionError> {
    let mut session = Session {
        stream,
        incarnation: agreed.export.disk.incarnation(),
        disk: agreed.export.disk.clone(),
        agreed,
        inbox: Inbox::default(),
        outbox: Outbox::default(),
        expected: Expected::Request,
        in_flight: FuturesUnordered::new(),
        in_flight_bytes: 0,
        untold: None,
        end: None,
    };
    let mut stopped = pin!(stop.wait_for(|stop| *stop));
    let ended = poll_fn(|cx| {
        if session.end.is_none() && stopped.as_mut().poll(cx).is_ready() {
            session.end = Some(End::Stopped);
        }
        session.poll(cx)
    })
    .await;
    let Session { mut stream, mut in_flight, outbox, disk, untold, .. } = session;
    // Before the client can come back, and flush again.
    untold.into_iter().for_each(|error| disk.owe(error));
    if ended.is_ok() {
        // The client may be gone already.
        let _ = stream.shutdown().await;
    }
    drop((stream, outbox));
    // Of a client that comes back again and again while the disk hangs, each connection keeps its place until then.
    while let Some((request, answer)) = in_flight.next().await {
        unwritten(&request, &answer).into_iter().for_each(|error| disk.owe(error));
    }
    ended
}

struct Session<S> {
    stream: S,
    disk: Arc<dyn Disk>,
    agreed: Agreed,
    inbox: Inbox,
    outbox: Outbox,
    expected: Expected,
    in_flight: FuturesUnordered<Running>,
    /// Payloads of what is in flight.
    in_flight_bytes: usize,
    /// What a reply says that was not made durable, until all is sent.
    untold: Option<DiskError>,
    /// Once set, no request is taken any more.
    end: Option<End>,
    /// Of the disk when the session began.
    incarnation: u64,
}

/// What the next bytes of the client are.
enum Expected {
    Request,
    /// Of a write that was admitted.
    Payload(Request),
    /// Rest of the payload of a write that was not.
    Refused {
        request: Request,
        error: NbdError,
        rest: usize,
    },
}

/// Why no more requests were taken.
enum Paused {
    /// All that was received is taken.
    Starved,
    /// It is time to send.
    Batch,
    /// A bound is reached.
    Full,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Session<S> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<End, SessionError>> {
        loop {
            let paused = if self.end.is_none() { self.take_requests()? } else { Paused::Full };
            while let Poll::Ready(Some((request, answer))) = self.in_flight.poll_next_unpin(cx) {
                self.in_flight_bytes -= payload_length(&request);
                self.reply(&request, answer)?;
                if self.outbox.len() >= LATE_BATCH {
                    // What the socket has no room for is sent below, or later.
                    let _ = self.outbox.poll_send(cx, &mut self.stream)?;
                }
            }
            let all_sent = self.outbox.poll_send(cx, &mut self.stream)?.is_ready();
            if all_sent {
                self.untold = None;
            }
            if let Some(end) = self.end {
                return if all_sent && self.in_flight.is_empty() { Poll::Ready(Ok(end)) } else { Poll::Pending };
            }
            match paused {
                Paused::Batch => {}
                Paused::Full
                    if self.inbox.peek().and_then(Request::decode).is_some_and(|next| self.has_room(&next)) => {}
                Paused::Full => return Poll::Pending,
                Paused::Starved => match self.inbox.poll_fill(cx, &mut self.stream)? {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(0) if matches!(self.expected, Expected::Request) && self.inbox.is_empty() => {
                        self.end = Some(End::Closed);
                    }
                    Poll::Ready(0) => return Poll::Ready(Err(SessionError::Truncated)),
                    Poll::Ready(_) => {}
                },
            }
        }
    }

    fn take_requests(&mut self) -> Result<Paused, SessionError> {
        let batch = self.outbox.len() + SEND_BATCH;
        while self.end.is_none() && self.outbox.len() < batch {
            match self.expected {
                Expected::Request => {
                    let Some(head) = self.inbox.peek() else { return Ok(Paused::Starved) };
                    let request = Request::decode(head).ok_or(SessionError::BadMagic)?;
                    if !self.has_room(&request) {
                        return Ok(Paused::Full);
                    }
                    self.inbox.skip(Request::LENGTH);
                    self.take(request)?;
                }
                Expected::Payload(request) => {
                    let Some(data) = self.inbox.take(request.length as usize) else { return Ok(Paused::Starved) };
                    self.expected = Expected::Request;
                    self.begin(request, data)?;
                }
                Expected::Refused { request, error, ref mut rest } => {
                    *rest = self.inbox.discard(*rest);
                    if *rest > 0 {
                        return Ok(Paused::Starved);
                    }
                    self.expected = Expected::Request;
                    self.refuse(&request, error);
                }
            }
        }
        Ok(Paused::Batch)
    }

    fn has_room(&self, request: &Request) -> bool {
        // What is longer is refused, and is not held in memory.
        let payload = payload_length(request).min(REQUEST_MAX as usize);
        self.in_flight.len() < IN_FLIGHT_REQUESTS_MAX
            && self.in_flight_bytes + self.outbox.len() + payload <= IN_FLIGHT_BYTES_MAX
    }

    fn take(&mut self, request: Request) -> Result<(), SessionError> {
        if request.command == command::DISC {
            self.end = Some(End::Disconnected);
            return Ok(());
        }
        match admit(&self.agreed, &request) {
            Ok(()) if request.command == command::WRITE => self.expected = Expected::Payload(request),
            Ok(()) => return self.begin(request, Bytes::new()),
            Err(_) if request.command == command::WRITE && request.length > SKIP_MAX => {
                return Err(SessionError::TooLong(request.length));
            }
            Err(error) if request.command == command::WRITE => {
                self.expected = Expected::Refused { request, error, rest: request.length as usize };
            }
            Err(error) => self.refuse(&request, error),
        }
        Ok(())
    }

    /// Begins an admitted request, and answers it if the disk does at once.
    fn begin(&mut self, request: Request, data: Bytes) -> Result<(), SessionError> {
        let Request { flags, command, offset, length, .. } = request;
        let has = |flag| flags & flag != 0;
        let fua = has(command::FLAG_FUA);
        let operation = match command {
            command::READ => Operation::Read(self.disk.read(offset, length)),
            command::WRITE => Operation::Change(self.disk.write(offset, data, fua)),
            command::FLUSH => Operation::Change(self.disk.flush()),
            command::TRIM => Operation::Change(self.disk.trim(offset, length.into(), fua)),
            command::WRITE_ZEROES => {
                let mode = ZeroMode { no_hole: has(command::FLAG_NO_HOLE), fast_only: has(command::FLAG_FAST_ZERO) };
                Operation::Change(self.disk.write_zeroes(offset, length.into(), mode, fua))
            }
            command::CACHE => Operation::Change(self.disk.cache(offset, length.into())),
            _ => {
                let limit = if has(command::FLAG_REQ_ONE) { 1 } else { EXTENTS_MAX };
                Operation::Map(self.disk.extents(offset, length.into(), limit))
            }
        };
        let mut running = Running { request, operation };
        if running.operation.is_ready()
            && let Poll::Ready((request, answer)) = running.poll(&mut Context::from_waker(Waker::noop()))
        {
            return self.reply(&request, answer);
        }
        self.in_flight_bytes += payload_length(&request);
        self.in_flight.push(running);
        Ok(())
    }

    fn reply(&mut self, request: &Request, answer: disk::Result<Answer>) -> Result<(), SessionError> {
        let &Request { cookie, offset, length, flags, .. } = request;
        self.untold = self.untold.or(unwritten(request, &answer));
        // A store that came back may have forgotten what this client was told is done, and its flush would not say so.
        if self.disk.incarnation() != self.incarnation {
            return Err(SessionError::StoreLost);
        }
        match answer {
            Ok(Answer::Data(data)) if data.len() != length as usize => {
                tracing::error!(offset, length, got = data.len(), "the disk answered a read with a wrong length");
                self.refuse(request, NbdError::EIO);
            }
            Ok(Answer::Data(data)) => {
                if self.agreed.structured_replies {
                    self.outbox.put(&wire::data_chunk(cookie, offset, length));
                } else {
                    self.outbox.put(&SimpleReply { error: 0, cookie }.encode());
                }
                self.outbox.put_payload(data);
            }
            Ok(Answer::Done) => self.outbox.put(&SimpleReply { error: 0, cookie }.encode()),
            Ok(Answer::Map(extents)) => match runs(request, &extents) {
                runs if runs.is_empty() => self.refuse(request, NbdError::EIO),
                runs => self.outbox.put(&wire::status_chunk(cookie, CONTEXT, &runs)),
            },
            // What the bare store would do: its clients reconnect and replay, or tell their users.
            Err(DiskError::Lost | DiskError::Refused(Errno::ESHUTDOWN)) => return Err(SessionError::StoreLost),
            Err(error) => self.refuse(request, NbdError::of(error.errno(), flags)),
        }
        Ok(())
    }

    fn refuse(&mut self, request: &Request, error: NbdError) {
        let cookie = request.cookie;
        // Only these two ever get structured replies from us.
        let structured = matches!(request.command, command::READ | command::BLOCK_STATUS);
        if structured && self.agreed.structured_replies {
            self.outbox.put(&wire::error_chunk(cookie, error));
        } else {
            self.outbox.put(&SimpleReply { error: error.0, cookie }.encode());
        }
    }
}

/// Bytes of a request's payload or its answer's.
fn payload_length(request: &Request) -> usize {
    match request.command {
        command::READ | command::WRITE => request.length as usize,
        _ => 0,
    }
}

/// What was to be durable and is not, by an error that comes once.
fn unwritten(request: &Request, answer: &disk::Result<Answer>) -> Option<DiskError> {
    let durable = match request.command {
        command::FLUSH => true,
        command::WRITE | command::TRIM | command::WRITE_ZEROES => request.flags & command::FLAG_FUA != 0,
        _ => false,
    };
    match answer {
        // Zeroes that are not to be written slowly, or what the disk does not know: nothing was tried.
        Err(DiskError::Io(Errno::ENOTSUP)) => None,
        Err(error @ DiskError::Io(_)) if durable => Some(*error),
        _ => None,
    }
}

/// Whether a request may be issued; the error is the client's. The order of the checks is nbdkit's.
fn admit(agreed: &Agreed, request: &Request) -> Result<(), NbdError> {
    let (geometry, abilities) = (agreed.geometry, agreed.geometry.abilities);
    let &Request { flags, command, offset, length, .. } = request;
    let require = |condition: bool| if condition { Ok(()) } else { Err(NbdError::EINVAL) };

    let changes = matches!(command, command::WRITE | command::TRIM | command::WRITE_ZEROES);
    let flags_of_command = match command {
        command::READ if agreed.structured_replies => command::FLAG_DF,
        command::WRITE_ZEROES if abilities.fast_zeroes => command::FLAG_NO_HOLE | command::FLAG_FAST_ZERO,
        command::WRITE_ZEROES => command::FLAG_NO_HOLE,
        command::BLOCK_STATUS => command::FLAG_REQ_ONE,
        command::READ | command::WRITE | command::FLUSH | command::TRIM | command::CACHE => 0,
        _ => return Err(NbdError::EINVAL),
    };
    if command == command::FLUSH {
        require(offset == 0 && length == 0)?;
    } else {
        let inside = length > 0 && offset.checked_add(length.into()).is_some_and(|end| end <= geometry.size);
        if !inside {
            let grows = matches!(command, command::WRITE | command::WRITE_ZEROES);
            return Err(if grows { NbdError::ENOSPC } else { NbdError::EINVAL });
        }
    }
    if changes && abilities.read_only {
        return Err(NbdError::EPERM);
    }
    let fua = if abilities.fua && !abilities.read_only { command::FLAG_FUA } else { 0 };
    require(flags & !(flags_of_command | fua) == 0)?;
    require(match command {
        command::FLUSH => abilities.flush,
        command::TRIM => abilities.trim,
        command::WRITE_ZEROES => abilities.write_zeroes,
        command::CACHE => abilities.cache,
        command::BLOCK_STATUS => agreed.block_status,
        _ => true,
    })?;
    let minimum = geometry.block.minimum.max(1);
    require(offset.is_multiple_of(minimum.into()) && length.is_multiple_of(minimum))?;
    require(payload_length(request) <= geometry.block.maximum.min(REQUEST_MAX) as usize)
}

/// Extents as they are sent: inside the request, none empty.
fn runs(request: &Request, extents: &[Extent]) -> Vec<Run> {
    let mut rest = u64::from(request.length);
    let mut runs = Vec::with_capacity(extents.len());
    for extent in extents {
        let length = extent.length.min(rest);
        if length == 0 {
            break;
        }
        rest -= length;
        let hole = if extent.hole { state::HOLE } else { 0 };
        let zero = if extent.zero { state::ZERO } else { 0 };
        runs.push(Run { length: length as u32, state: hole | zero });
    }
    if request.flags & command::FLAG_REQ_ONE != 0 {
        runs.truncate(1);
    }
    runs
}

enum Operation {
    Read(Pending<Bytes>),
    Change(Pending<()>),
    Map(Pending<Vec<Extent>>),
}

enum Answer {
    Data(Bytes),
    Done,
    Map(Vec<Extent>),
}

impl Operation {
    fn is_ready(&self) -> bool {
        matches!(self, Self::Read(Pending::Ready(_)) | Self::Change(Pending::Ready(_)) | Self::Map(Pending::Ready(_)))
    }
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<disk::Result<Answer>> {
        match self {
            Self::Read(pending) => Pin::new(pending).poll(cx).map_ok(Answer::Data),
            Self::Change(pending) => Pin::new(pending).poll(cx).map_ok(|()| Answer::Done),
            Self::Map(pending) => Pin::new(pending).poll(cx).map_ok(Answer::Map),
        }
    }
}

struct Running {
    request: Request,
    operation: Operation,
}

impl Running {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<(Request, disk::Result<Answer>)> {
        self.operation.poll(cx).map(|answer| (self.request, answer))
    }
}

impl Future for Running {
    type Output = (Request, disk::Result<Answer>);
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Running::poll(self.get_mut(), cx)
    }
}

//! The full feature phase (section 4.2.2 and on): one connection, many tasks at a time.
//!
//! One task of the runtime owns a connection. It takes all PDUs that a receive brought, begins each command on the unit,
//! and sends all responses that are ready with one send. What the disk can answer at once costs no task and no wake-up.
//!
//! Commands are delivered in the order of their numbers (4.2.2.1). On a single connection they come in it, so that a number
//! that is not the next is of a command that the initiator must not have sent: it is ignored, as outside of the window.
//! They are begun as they come, but for what an ordered task holds up.
//!
//! Bounds: the window of command numbers, immediate commands beside it, bytes of data under way, and bytes that the initiator
//! does not fetch; at the last the socket is not read. However a session ends, begun operations go on to their end: the
//! session lasts until then, its connection does not. What a flush was told then, and its initiator cannot be, the disk
//! goes on owing.

mod commands;
mod management;
mod turns;

use std::collections::{HashMap, HashSet, VecDeque};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};

use super::epoch::Epoch;
use super::transfer::Transfer;
use super::{Target, discovery};
use crate::disk::{self, DiskError, Pending};
use crate::iscsi::frames::{Frame, FrameError, Frames};
use crate::iscsi::parameters::Parameters;
use crate::iscsi::pdu::{
    self, AsyncMessage, Bhs, DataOut, FINAL, LogoutRequest, NO_TAG, NopIn, NopOut, Reject, ScsiCommand,
    TaskManagementRequest, TextRequest, TextResponse, event, reject,
};
use crate::net::{Inbox, Outbox};
use crate::scsi::{Answer, Command, Nexus};
use crate::units::MIB;

use turns::Era;

/// Commands that an initiator may have under way.
const WINDOW: u32 = 128;

/// The last number that an initiator may use whose next is `command_sn` and that has nothing under way.
pub fn window_from(command_sn: u32) -> u32 {
    command_sn.wrapping_add(WINDOW - 1)
}

/// Immediate ones beside them.
const IMMEDIATE_MAX: usize = 16;
/// Task management that waits for what it ends.
const MANAGEMENTS_MAX: usize = 64;
/// Data of commands under way, per session.
const IN_FLIGHT_BYTES_MAX: usize = 64 * MIB as usize;
/// Responses that an initiator does not fetch: no more is read from it then.
const UNSENT_MAX: usize = 64 * MIB as usize;
/// Responses that are gathered before the first is sent.
const SEND_BATCH: usize = 256 * 1024;
/// An initiator that says nothing for so long is asked whether it is there, and given up after as long again.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// At a stop initiators are asked to log out, and have so long for it.
const LEAVE_WITHIN: Duration = Duration::from_secs(3);

/// How a session ended when nothing was wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    LoggedOut,
    /// The initiator closed the connection between two PDUs.
    Closed,
    /// Its initiator port has logged in anew.
    Replaced,
    /// We were told to stop.
    Stopped,
}

/// Why a connection was dropped.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("bytes that are no PDU")]
    Frame(#[from] FrameError),
    #[error("the connection ended inside a PDU")]
    Truncated,
    #[error("the initiator is silent")]
    Silent,
    #[error("the disk lost its store")]
    StoreLost,
    #[error("connection")]
    Io(#[from] io::Error),
}

/// What a login leaves to the session.
pub struct Opened<S> {
    pub stream: S,
    pub inbox: Inbox,
    pub frames: Frames,
    pub parameters: Parameters,
    /// Number of the next command, and of the next response.
    pub command_sn: u32,
    pub status_sn: u32,
    pub connection: u16,
    pub targets: discovery::Targets,
    /// None in a discovery session.
    pub unit: Option<(Arc<Target>, Nexus)>,
}

/// Serves an initiator until it leaves, breaks the protocol, is replaced (`leave`) or we stop (`stop`).
pub async fn serve(
    opened: Opened<impl AsyncRead + AsyncWrite + Unpin>,
    mut leave: watch::Receiver<bool>,
    mut stop: watch::Receiver<bool>,
) -> Result<End, SessionError> {
    let mut session = Session::new(opened);
    let mut replaced = pin!(leave.wait_for(|leave| *leave));
    let mut stopped = pin!(stop.wait_for(|stop| *stop));
    let ended = poll_fn(|cx| {
        if session.end.is_none() && replaced.as_mut().poll(cx).is_ready() {
            session.finish(End::Replaced);
        }
        if session.leave_by.is_none() && stopped.as_mut().poll(cx).is_ready() {
            session.ask_to_leave();
        }
        session.poll(cx)
    })
    .await;
    let Session { mut stream, mut running, outbox, receiving, held, unit, untold, .. } = session;
    let owe = |error: Option<DiskError>| {
        if let (Some((target, _)), Some(error)) = (&unit, error) {
            target.unit.owe(error);
        }
    };
    // Before the initiator can come back, and flush again.
    owe(untold);
    if ended.is_ok() {
        // The initiator may be gone already.
        let _ = stream.shutdown().await;
    }
    drop((stream, outbox, receiving, held));
    while let Some((issued, answer)) = running.next().await {
        owe(commands::unwritten(&issued, &answer));
    }
    ended
}

/// A command that the unit has taken.
struct Issued {
    task: u32,
    lun: u64,
    /// Bytes that the initiator expects to be transferred, and whether it is to send them.
    expected: u32,
    writes: bool,
    /// Bytes of data-out that the command takes.
    data_out: u32,
    /// It is a flush, or what it changes is to be durable.
    durable: bool,
    /// Bytes under way that it counts for.
    weight: usize,
    era: Era,
    epoch: Epoch,
}

/// A command on the unit.
struct Running {
    issued: Option<Issued>,
    answer: Pending<Answer>,
}

impl Future for Running {
    type Output = (Issued, disk::Result<Answer>);
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = std::task::ready!(Pin::new(&mut self.answer).poll(cx));
        Poll::Ready((self.issued.take().expect("polled after it was ready"), answer))
    }
}

/// What is known of a command on the unit.
struct Begun {
    era: Era,
    /// It was ended by task management.
    aborted: bool,
}

/// A command whose data is under way.
struct Receiving {
    issued: Issued,
    command: Command,
    transfer: Transfer,
}

/// A request that ends tasks, and is answered when they have ended.
struct Management {
    reply: Reply,
    /// Tasks of this session.
    ended: HashSet<u32>,
    /// Tasks of all sessions, after a reset.
    all_ended: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

#[derive(Clone, Copy)]
enum Reply {
    /// To the task management request of this tag.
    Managed(u32),
    /// To the logout request of this tag, after which the session ends.
    LoggedOut(u32),
}

struct Session<S> {
    stream: S,
    inbox: Inbox,
    outbox: Outbox,
    frames: Frames,
    parameters: Parameters,
    connection: u16,
    targets: discovery::Targets,
    unit: Option<(Arc<Target>, Nexus)>,
    /// Of the disk when the session began.
    incarnation: u64,

    command_sn: u32,
    /// The last number that the initiator was told it may use: it is never taken back.
    command_sn_max: u32,
    status_sn: u32,
    /// The next tag of a transfer, or of a question whether the initiator is there.
    tag: u32,

    receiving: HashMap<u32, Receiving>,
    /// Of the next command.
    era: Era,
    /// Tasks whose data cannot be asked for yet, or that cannot be begun yet, for want of room or because of their turn.
    waiting: VecDeque<u32>,
    held: HashMap<u32, (Issued, Command, Bytes)>,
    running: FuturesUnordered<Running>,
    /// What runs, by its tag.
    tags: HashMap<u32, Begun>,
    in_flight_bytes: usize,
    /// What a response says that was not made durable, until all is sent.
    untold: Option<DiskError>,
    managements: Vec<Management>,
    resets: Option<Resets>,
    text: discovery::Exchange,

    heard: Instant,
    silence: Pin<Box<Sleep>>,
    asked: bool,
    /// The socket had no room for all that was to be sent.
    blocked: bool,
    /// When an initiator that was asked to leave is left.
    leave_by: Option<Pin<Box<Sleep>>>,
    /// Once set, nothing is taken any more.
    end: Option<End>,
}

/// What a PDU has as its number (4.2.2.2).
#[derive(Clone, Copy, PartialEq, Eq)]
enum StatusSn {
    /// One of its own: it is to be acknowledged.
    Own,
    /// That of the next PDU that has one of its own.
    Next,
    None,
}

type Resets = Pin<Box<dyn Future<Output = watch::Receiver<u64>> + Send>>;

fn next_reset(mut resets: watch::Receiver<u64>) -> Resets {
    Box::pin(async move {
        // The sender lives as long as the target, and that as long as the session.
        let _ = resets.changed().await;
        resets
    })
}

impl<S: AsyncRead + AsyncWrite + Unpin> Session<S> {
    fn new(opened: Opened<S>) -> Self {
        let Opened { stream, inbox, frames, parameters, command_sn, status_sn, connection, targets, unit } = opened;
        Self {
            stream,
            inbox,
            outbox: Outbox::default(),
            frames,
            parameters,
            connection,
            targets,
            incarnation: unit.as_ref().map_or(0, |(target, _)| target.unit.incarnation()),
            resets: unit.as_ref().map(|(target, _)| next_reset(target.epochs.watch())),
            unit,
            command_sn,
            command_sn_max: window_from(command_sn),
            status_sn,
            tag: 0,
            receiving: HashMap::new(),
            era: Era::FIRST,
            waiting: VecDeque::new(),
            held: HashMap::new(),
            running: FuturesUnordered::new(),
            tags: HashMap::new(),
            in_flight_bytes: 0,
            untold: None,
            managements: Vec::new(),
            text: discovery::Exchange::default(),
            heard: Instant::now(),
            silence: Box::pin(tokio::time::sleep(SILENCE_MAX)),
            asked: false,
            blocked: false,
            leave_by: None,
            end: None,
        }
    }

    /// Takes nothing more. What was not begun never is.
    fn finish(&mut self, end: End) {
        self.end = Some(end);
        self.receiving.clear();
        self.held.clear();
        self.waiting.clear();
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<End, SessionError>> {
        self.poll_clocks(cx)?;
        loop {
            let starved = self.take_frames()?;
            loop {
                // Before each look at what runs: what was not looked at since it was begun wakes nobody.
                self.begin_waiting()?;
                let Poll::Ready(Some((issued, answer))) = self.running.poll_next_unpin(cx) else { break };
                self.ended(issued, answer)?;
            }
            self.poll_managements(cx);
            let unsent = self.outbox.len();
            let all_sent = self.outbox.poll_send(cx, &mut self.stream)?.is_ready();
            if self.blocked && self.outbox.len() < unsent {
                // An initiator that goes on taking what it is sent is there, however slow its link. (What merely went
                // into the socket, such as our question, says nothing.)
                (self.heard, self.asked) = (Instant::now(), false);
            }
            self.blocked = !all_sent;
            if all_sent {
                self.untold = None;
            }
            if let Some(end) = self.end {
                // Nobody is there any more to fetch what is left of a session that was replaced.
                let done = self.running.is_empty() && (all_sent || end == End::Replaced);
                return if done { Poll::Ready(Ok(end)) } else { Poll::Pending };
            }
            if self.can_begin_waiting() {
                continue;
            }
            if !starved {
                if self.outbox.len() >= UNSENT_MAX {
                    return Poll::Pending;
                }
                continue;
            }
            match self.inbox.poll_fill(cx, &mut self.stream)? {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(0) if self.frames.is_between() && self.inbox.is_empty() => self.finish(End::Closed),
                Poll::Ready(0) => return Poll::Ready(Err(SessionError::Truncated)),
                Poll::Ready(_) => {
                    (self.heard, self.asked) = (Instant::now(), false);
                }
            }
        }
    }

    fn poll_clocks(&mut self, cx: &mut Context<'_>) -> Result<(), SessionError> {
        while self.silence.as_mut().poll(cx).is_ready() {
            let silent = self.heard.elapsed() >= SILENCE_MAX;
            if silent && self.asked {
                return Err(SessionError::Silent);
            }
            if silent {
                self.asked = true;
                self.ask_whether_there();
            }
            let since = if silent { Instant::now() } else { self.heard };
            self.silence.as_mut().reset(since + SILENCE_MAX);
        }
        if let Some(leave_by) = &mut self.leave_by
            && self.end.is_none()
            && leave_by.as_mut().poll(cx).is_ready()
        {
            self.tell(event::DROPS_SESSION, [0, 2, 0]);
            self.finish(End::Stopped);
        }
        while let Some(resets) = &mut self.resets
            && let Poll::Ready(watched) = resets.as_mut().poll(cx)
        {
            self.resets = Some(next_reset(watched));
            self.end_old_tasks();
        }
        Ok(())
    }

    /// True if all that was received is taken.
    fn take_frames(&mut self) -> Result<bool, SessionError> {
        let batch = (self.outbox.len() + SEND_BATCH).min(UNSENT_MAX);
        while self.end.is_none() {
            if self.outbox.len() >= batch {
                return Ok(false);
            }
            let Some(frame) = self.frames.take(&mut self.inbox)? else { return Ok(true) };
            self.take(frame)?;
        }
        Ok(true)
    }

    fn take(&mut self, frame: Frame) -> Result<(), SessionError> {
        let Frame { bhs, data, .. } = &frame;
        let opcode = pdu::opcode(bhs);
        // A command's number stands where Data-Out, which has none, has nothing.
        if opcode != DataOut::OPCODE && !self.is_next(bhs) {
            tracing::debug!(opcode, "a command outside of the window is ignored");
            return Ok(());
        }
        if opcode != DataOut::OPCODE && self.is_leaving() {
            // Nothing may come behind a logout (11.14).
            return Ok(());
        }
        match opcode {
            ScsiCommand::OPCODE => self.command(frame)?,
            DataOut::OPCODE => self.data(DataOut::decode(bhs), data.clone())?,
            NopOut::OPCODE => self.nop(NopOut::decode(bhs), data.clone()),
            TaskManagementRequest::OPCODE => self.manage(TaskManagementRequest::decode(bhs)),
            TextRequest::OPCODE => self.answer_text(bhs, data),
            LogoutRequest::OPCODE => self.log_out(LogoutRequest::decode(bhs)),
            _ => self.reject(bhs, reject::COMMAND_NOT_SUPPORTED),
        }
        Ok(())
    }

    /// Whether a request is to be taken: it is immediate, or the next (4.2.2.1).
    fn is_next(&mut self, bhs: &Bhs) -> bool {
        if pdu::is_immediate(bhs) {
            return true;
        }
        let number = NopOut::decode(bhs).command_sn;
        let next = number == self.command_sn && !pdu::is_after(number, self.command_sn_max);
        if next {
            self.command_sn = self.command_sn.wrapping_add(1);
        }
        next
    }

    fn tasks(&self) -> usize {
        self.tags.len() + self.receiving.len() + self.held.len()
    }

    /// What the initiator is told now.
    fn window_end(&mut self) -> u32 {
        let room = WINDOW.saturating_sub(self.tasks() as u32);
        let end = self.command_sn.wrapping_add(room).wrapping_sub(1);
        if pdu::is_after(end, self.command_sn_max) {
            self.command_sn_max = end;
        }
        self.command_sn_max
    }

    fn nop(&mut self, head: NopOut, data: Bytes) {
        // An answer to our question: that it came is enough.
        if head.task == NO_TAG {
            return;
        }
        let mut data = data;
        data.truncate(self.parameters.sent_max as usize);
        let response = NopIn { flags: FINAL, lun: head.lun, task: head.task, transfer: NO_TAG, ..NopIn::default() };
        self.put(response.encode(data.len()), data, StatusSn::Own);
    }

    fn ask_whether_there(&mut self) {
        let question = NopIn { flags: FINAL, task: NO_TAG, transfer: self.tag, ..NopIn::default() };
        self.tag = next_tag(self.tag);
        self.put(question.encode(0), Bytes::new(), StatusSn::Next);
    }

    /// Asks the initiator to log out: it may come back when we do (11.9.1).
    fn ask_to_leave(&mut self) {
        self.leave_by = Some(Box::pin(tokio::time::sleep(LEAVE_WITHIN)));
        if self.unit.is_some() {
            self.tell(event::LOGOUT_REQUESTED, [0, 0, LEAVE_WITHIN.as_secs() as u16]);
        } else {
            self.finish(End::Stopped);
        }
    }

    fn tell(&mut self, event: u8, parameters: [u16; 3]) {
        let message = AsyncMessage { flags: FINAL, task: NO_TAG, event, parameters, ..AsyncMessage::default() };
        self.put(message.encode(0), Bytes::new(), StatusSn::Own);
    }

    fn answer_text(&mut self, bhs: &Bhs, data: &[u8]) {
        let head = TextRequest::decode(bhs);
        let own = self.unit.as_ref().map(|(target, _)| target.name());
        let said = self.text.take(&head, data, &self.targets, own, &mut self.parameters);
        let Some((flags, transfer, text)) = said else { return self.reject(bhs, reject::PROTOCOL_ERROR) };
        let response = TextResponse { flags, lun: head.lun, task: head.task, transfer, ..TextResponse::default() };
        self.put(response.encode(text.len()), text, StatusSn::Own);
    }

    fn reject(&mut self, bhs: &Bhs, reason: u8) {
        let rejected = Reject { flags: FINAL, reason, task: NO_TAG, data_sn: 0, ..Reject::default() };
        self.put(rejected.encode(bhs.len()), Bytes::copy_from_slice(bhs), StatusSn::Own);
    }

    /// Queues a PDU, with the serial numbers as they are now.
    fn put(&mut self, mut bhs: Bhs, data: Bytes, status_sn: StatusSn) {
        let number = match status_sn {
            StatusSn::Own | StatusSn::Next => self.status_sn,
            StatusSn::None => 0,
        };
        if status_sn == StatusSn::Own {
            self.status_sn = number.wrapping_add(1);
        }
        pdu::number(&mut bhs, number, self.command_sn, self.window_end());
        self.frames.put(&mut self.outbox, &bhs, data);
    }
}

fn next_tag(tag: u32) -> u32 {
    // 0xffffffff is no tag.
    (tag + 1) % NO_TAG
}

#[cfg(test)]
mod tests;

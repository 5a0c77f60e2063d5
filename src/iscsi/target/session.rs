//! The full feature phase (section 4.2.2 and on): one connection, many tasks at a time.
//!
//! One task of the runtime owns a connection. It takes all PDUs that a receive brought, begins each command on the unit,
//! and sends all responses that are ready with one send. What the disk can answer at once costs no task and no wake-up.
//!
//! Commands are delivered in the order of their numbers (4.2.2.1). On a single connection they come in it, so that a number
//! that is not the next is of a command that the initiator must not have sent: it is ignored, as outside of the window.
//!
//! Bounds: the window of command numbers, immediate commands beside it, bytes of data under way, and bytes that the initiator
//! does not fetch; at the last the socket is not read. However a session ends, begun operations go on to their end: the
//! session lasts until then, its connection does not.

use std::collections::{HashMap, HashSet, VecDeque};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};

use super::epoch::Epoch;
use super::transfer::{Transfer, Wrong};
use super::{Target, discovery};
use crate::disk::{self, Pending};
use crate::iscsi::frames::{Frame, FrameError, Frames};
use crate::iscsi::parameters::Parameters;
use crate::iscsi::pdu::{
    self, AsyncMessage, Bhs, DataIn, DataOut, FINAL, LogoutRequest, LogoutResponse, NO_TAG, NopIn, NopOut,
    ReadyToTransfer, Reject, ScsiCommand, ScsiResponse, TaskManagementRequest, TaskManagementResponse, TextRequest,
    TextResponse, command, data_in, event, logout, reject, residual, task_management,
};
use crate::net::{Inbox, Outbox, Stream};
use crate::scsi::{Answer, Command, Nexus, Sense, Status, is_lun_zero};
use crate::units::MIB;

/// Commands that an initiator may have under way.
const WINDOW: u32 = 128;
/// Immediate ones beside them.
const IMMEDIATE_MAX: usize = 16;
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
pub struct Opened {
    pub stream: Stream,
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
    opened: Opened,
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
    let Session { mut stream, mut running, outbox, receiving, .. } = session;
    if ended.is_ok() {
        // The initiator may be gone already.
        let _ = stream.shutdown().await;
    }
    drop((stream, outbox, receiving));
    while running.next().await.is_some() {}
    ended
}

/// A command that the unit has taken.
struct Issued {
    task: u32,
    lun: u64,
    /// Bytes that the initiator expects to be transferred, and in which direction.
    expected: u32,
    reads: bool,
    /// Bytes of data-out that the command takes.
    data_out: u32,
    /// Bytes under way that it counts for.
    weight: usize,
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

struct Session {
    stream: Stream,
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
    status_sn: u32,
    /// The next tag of a transfer, or of a question whether the initiator is there.
    tag: u32,

    receiving: HashMap<u32, Receiving>,
    /// Tasks whose data cannot be asked for yet, or that cannot be begun yet, for want of room.
    waiting: VecDeque<u32>,
    held: HashMap<u32, (Issued, Command, Bytes)>,
    running: FuturesUnordered<Running>,
    /// Tags of what runs; true if it was ended by task management.
    tags: HashMap<u32, bool>,
    in_flight_bytes: usize,
    managements: Vec<Management>,
    resets: Option<Resets>,
    text: discovery::Exchange,

    heard: Instant,
    silence: Pin<Box<Sleep>>,
    asked: bool,
    /// When an initiator that was asked to leave is left.
    leave_by: Option<Pin<Box<Sleep>>>,
    /// Once set, nothing is taken any more.
    end: Option<End>,
}

type Resets = Pin<Box<dyn Future<Output = watch::Receiver<u64>> + Send>>;

fn next_reset(mut resets: watch::Receiver<u64>) -> Resets {
    Box::pin(async move {
        // The sender lives as long as the target, and that as long as the session.
        let _ = resets.changed().await;
        resets
    })
}

impl Session {
    fn new(opened: Opened) -> Self {
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
            status_sn,
            tag: 0,
            receiving: HashMap::new(),
            waiting: VecDeque::new(),
            held: HashMap::new(),
            running: FuturesUnordered::new(),
            tags: HashMap::new(),
            in_flight_bytes: 0,
            managements: Vec::new(),
            text: discovery::Exchange::default(),
            heard: Instant::now(),
            silence: Box::pin(tokio::time::sleep(SILENCE_MAX)),
            asked: false,
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
            while let Poll::Ready(Some((issued, answer))) = self.running.poll_next_unpin(cx) {
                self.ended(issued, answer)?;
            }
            self.poll_managements(cx);
            let all_sent = self.outbox.poll_send(cx, &mut self.stream)?.is_ready();
            if let Some(end) = self.end {
                // Nobody is there any more to fetch what is left of a session that was replaced.
                let done = self.running.is_empty() && (all_sent || end == End::Replaced);
                return if done { Poll::Ready(Ok(end)) } else { Poll::Pending };
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
        let next = number == self.command_sn && !pdu::is_after(number, self.command_sn_max());
        if next {
            self.command_sn = self.command_sn.wrapping_add(1);
        }
        next
    }

    fn tasks(&self) -> usize {
        self.tags.len() + self.receiving.len() + self.held.len()
    }

    fn command_sn_max(&self) -> u32 {
        let room = WINDOW.saturating_sub(self.tasks() as u32);
        self.command_sn.wrapping_add(room).wrapping_sub(1)
    }

    fn next_status_sn(&mut self) -> u32 {
        let number = self.status_sn;
        self.status_sn = number.wrapping_add(1);
        number
    }

    fn command(&mut self, frame: Frame) -> Result<(), SessionError> {
        let head = ScsiCommand::decode(&frame.bhs);
        let Some((target, nexus)) = &self.unit else {
            self.reject(&frame.bhs, reject::COMMAND_NOT_SUPPORTED);
            return Ok(());
        };
        let task = head.task;
        if self.tags.contains_key(&task) || self.receiving.contains_key(&task) || self.held.contains_key(&task) {
            self.reject(&frame.bhs, reject::TASK_IN_PROGRESS);
            return Ok(());
        }
        if pdu::is_immediate(&frame.bhs) && self.tasks() >= WINDOW as usize + IMMEDIATE_MAX {
            self.reject(&frame.bhs, reject::TOO_MANY_IMMEDIATE);
            return Ok(());
        }
        let (reads, writes) = (head.flags & command::READ != 0, head.flags & command::WRITE != 0);
        let expected = if reads || writes { head.expected } else { 0 };
        let admitted = if reads && writes || !frame.ahs.is_empty() {
            // No command that we know goes in both directions, or is longer than 16 bytes.
            Err(nexus.refuse(Sense::INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT))
        } else {
            nexus.admit(head.lun, &head.cdb)
        };
        let epoch = target.epochs.current();
        let mut issued = Issued { task, lun: head.lun, expected, reads, data_out: 0, weight: 0, epoch };
        let command = match admitted {
            Ok(command) => command,
            Err(answer) => return self.respond(&issued, answer),
        };
        issued.data_out = command.data_out();
        // Of what the initiator offers less of, the unit makes what it can.
        let length = issued.data_out.min(if writes { expected } else { 0 });
        if !writes {
            issued.weight = command.data_in() as usize;
            self.begin_or_hold(issued, command, Bytes::new())?;
            return Ok(());
        }
        let is_final = head.flags & FINAL != 0;
        if is_final && frame.data.len() >= length as usize && self.parameters.immediate_data {
            issued.weight = frame.data.len();
            return self.begin_or_hold(issued, command, frame.data.slice(..length as usize));
        }
        match Transfer::new(length, expected, frame.data, is_final, &self.parameters) {
            Err(wrong) => {
                let refused = nexus.refuse(sense_of(wrong));
                self.respond(&issued, refused)
            }
            Ok(transfer) => {
                self.receiving.insert(task, Receiving { issued, command, transfer });
                self.go_on_receiving(task)
            }
        }
    }

    fn has_room(&self, weight: usize) -> bool {
        self.in_flight_bytes == 0 || self.in_flight_bytes + self.outbox.len() + weight <= IN_FLIGHT_BYTES_MAX
    }

    fn begin_or_hold(&mut self, issued: Issued, command: Command, data: Bytes) -> Result<(), SessionError> {
        if self.waiting.is_empty() && self.has_room(issued.weight) {
            self.in_flight_bytes += issued.weight;
            return self.begin(issued, command, data);
        }
        self.waiting.push_back(issued.task);
        self.held.insert(issued.task, (issued, command, data));
        Ok(())
    }

    /// Begins a command whose weight is counted, and responds if the unit answers at once.
    fn begin(&mut self, issued: Issued, command: Command, data: Bytes) -> Result<(), SessionError> {
        let Some((_, nexus)) = &self.unit else { return Ok(()) };
        let task = issued.task;
        let mut running = Running { issued: Some(issued), answer: nexus.execute(command, data) };
        if let Pending::Ready(_) = running.answer
            && let Poll::Ready((issued, answer)) = Pin::new(&mut running).poll(&mut Context::from_waker(Waker::noop()))
        {
            self.in_flight_bytes -= issued.weight;
            return self.answered(&issued, answer);
        }
        self.tags.insert(task, false);
        self.running.push(running);
        Ok(())
    }

    /// Begins what waits for room, in the order in which it came.
    fn begin_waiting(&mut self) -> Result<(), SessionError> {
        while let Some(task) = self.waiting.front().copied() {
            if let Some((issued, ..)) = self.held.get(&task) {
                if !self.has_room(issued.weight) {
                    return Ok(());
                }
                self.waiting.pop_front();
                if let Some((issued, command, data)) = self.held.remove(&task) {
                    self.in_flight_bytes += issued.weight;
                    self.begin(issued, command, data)?;
                }
            } else if let Some(receiving) = self.receiving.get(&task) {
                if !self.has_room(receiving.issued.data_out as usize) {
                    return Ok(());
                }
                self.waiting.pop_front();
                self.ask(task);
            } else {
                self.waiting.pop_front();
            }
        }
        Ok(())
    }

    /// A command ended on the unit.
    fn ended(&mut self, issued: Issued, answer: disk::Result<Answer>) -> Result<(), SessionError> {
        let aborted = self.tags.remove(&issued.task).unwrap_or(false);
        self.in_flight_bytes -= issued.weight;
        let over = self.unit.as_ref().is_some_and(|(target, _)| target.epochs.is_over(&issued.epoch));
        if !aborted && !over && self.end.is_none() {
            self.answered(&issued, answer)?;
        }
        self.managements.iter_mut().for_each(|management| _ = management.ended.remove(&issued.task));
        drop(issued);
        self.begin_waiting()
    }

    fn answered(&mut self, issued: &Issued, answer: disk::Result<Answer>) -> Result<(), SessionError> {
        match answer {
            Ok(answer) => self.respond(issued, answer),
            // What the bare array would do when it loses power: its initiators log in anew.
            Err(_) => Err(SessionError::StoreLost),
        }
    }

    fn respond(&mut self, issued: &Issued, answer: Answer) -> Result<(), SessionError> {
        if let Some((target, _)) = &self.unit
            && target.unit.incarnation() != self.incarnation
        {
            // It may have forgotten what this initiator was told is done, and its flush would not say so.
            return Err(SessionError::StoreLost);
        }
        let Answer { status, sense, data } = answer;
        // What the command would have transferred, were there no bound; data of one that failed does not count.
        let transfers = match status {
            Status::Good if issued.reads => data.len() as u32,
            _ => issued.data_out,
        };
        let (flag, rest) = if transfers > issued.expected {
            (residual::OVERFLOW, transfers - issued.expected)
        } else if transfers < issued.expected {
            (residual::UNDERFLOW, issued.expected - transfers)
        } else {
            (0, 0)
        };
        if status == Status::Good && issued.reads && transfers.min(issued.expected) > 0 {
            self.send_data(issued, data.slice(..transfers.min(issued.expected) as usize), flag, rest);
            return Ok(());
        }
        let data = sense.map_or_else(Bytes::new, |sense| {
            let sense = sense.encode();
            [&(sense.len() as u16).to_be_bytes()[..], &sense].concat().into()
        });
        let response = ScsiResponse {
            flags: FINAL | flag,
            status: status as u8,
            task: issued.task,
            status_sn: self.next_status_sn(),
            expected_command_sn: self.command_sn,
            command_sn_max: self.command_sn_max(),
            residual: rest,
            ..ScsiResponse::default()
        };
        self.put(&response.encode(data.len()), data);
        Ok(())
    }

    /// Data-In PDUs, the last of which carries the good status (11.7.3).
    fn send_data(&mut self, issued: &Issued, data: Bytes, flag: u8, rest: u32) {
        let (sent_max, burst_max) = (self.parameters.sent_max as usize, self.parameters.burst_max as usize);
        let (mut from, mut data_sn) = (0, 0);
        while from < data.len() {
            // A sequence ends at each whole burst (13.13).
            let burst_end = (from / burst_max + 1) * burst_max;
            let to = data.len().min(from + sent_max).min(burst_end);
            let is_last = to == data.len();
            let mut head = DataIn {
                flags: if is_last || to == burst_end { FINAL } else { 0 },
                lun: issued.lun,
                task: issued.task,
                transfer: NO_TAG,
                expected_command_sn: self.command_sn,
                command_sn_max: self.command_sn_max(),
                data_sn,
                offset: from as u32,
                ..DataIn::default()
            };
            if is_last {
                head.flags |= data_in::STATUS | flag;
                head.status = Status::Good as u8;
                head.residual = rest;
                head.status_sn = self.next_status_sn();
            }
            self.put(&head.encode(to - from), data.slice(from..to));
            (from, data_sn) = (to, data_sn + 1);
        }
    }

    fn data(&mut self, head: DataOut, data: Bytes) -> Result<(), SessionError> {
        // Of a command that has ended: refused, aborted, or reset.
        let Some(receiving) = self.receiving.get_mut(&head.task) else { return Ok(()) };
        match receiving.transfer.take(&head, data) {
            Ok(()) => self.go_on_receiving(head.task),
            Err(wrong) => {
                tracing::debug!(task = head.task, ?wrong, "data that does not fit its command");
                let issued = self.stop_receiving(head.task);
                let refused = self.unit.as_ref().map(|(_, nexus)| nexus.refuse(sense_of(wrong)));
                match issued.zip(refused) {
                    Some((issued, refused)) => self.respond(&issued, refused),
                    None => Ok(()),
                }
            }
        }
    }

    /// Asks for what is missing, or begins the command that has all its data.
    fn go_on_receiving(&mut self, task: u32) -> Result<(), SessionError> {
        let Some(receiving) = self.receiving.get(&task) else { return Ok(()) };
        if receiving.transfer.is_complete() {
            let Some(Receiving { mut issued, command, transfer }) = self.receiving.remove(&task) else { return Ok(()) };
            if issued.weight > 0 {
                return self.begin(issued, command, transfer.into_data());
            }
            issued.weight = transfer.received() as usize;
            return self.begin_or_hold(issued, command, transfer.into_data());
        }
        if !receiving.transfer.wants(&self.parameters) {
            return Ok(());
        }
        if receiving.issued.weight > 0 || (self.waiting.is_empty() && self.has_room(receiving.issued.data_out as usize))
        {
            self.ask(task);
        } else if !self.waiting.contains(&task) {
            self.waiting.push_back(task);
        }
        Ok(())
    }

    /// Asks for data, for which there is room (11.8).
    fn ask(&mut self, task: u32) {
        let Some(receiving) = self.receiving.get_mut(&task) else { return };
        if receiving.issued.weight == 0 {
            receiving.issued.weight = receiving.issued.data_out as usize;
            self.in_flight_bytes += receiving.issued.weight;
        }
        let mut asked = Vec::new();
        while receiving.transfer.wants(&self.parameters) {
            asked.push(receiving.transfer.ask(self.tag, &self.parameters));
            self.tag = next_tag(self.tag);
        }
        let lun = receiving.issued.lun;
        for asked in asked {
            let r2t = ReadyToTransfer {
                flags: FINAL,
                lun,
                task,
                transfer: asked.transfer,
                status_sn: self.status_sn,
                expected_command_sn: self.command_sn,
                command_sn_max: self.command_sn_max(),
                r2t_sn: asked.number,
                offset: asked.offset,
                length: asked.length,
            };
            self.put(&r2t.encode(0), Bytes::new());
        }
    }

    /// Gives up a command whose data is under way; what else comes of it is dropped.
    fn stop_receiving(&mut self, task: u32) -> Option<Issued> {
        let Receiving { mut issued, .. } = self.receiving.remove(&task)?;
        self.in_flight_bytes -= std::mem::take(&mut issued.weight);
        Some(issued)
    }

    fn nop(&mut self, head: NopOut, data: Bytes) {
        // An answer to our question: that it came is enough.
        if head.task == NO_TAG {
            return;
        }
        let mut data = data;
        data.truncate(self.parameters.sent_max as usize);
        let response = NopIn {
            flags: FINAL,
            lun: head.lun,
            task: head.task,
            transfer: NO_TAG,
            status_sn: self.next_status_sn(),
            expected_command_sn: self.command_sn,
            command_sn_max: self.command_sn_max(),
        };
        self.put(&response.encode(data.len()), data);
    }

    fn ask_whether_there(&mut self) {
        let question = NopIn {
            flags: FINAL,
            task: NO_TAG,
            transfer: self.tag,
            status_sn: self.status_sn,
            expected_command_sn: self.command_sn,
            command_sn_max: self.command_sn_max(),
            ..NopIn::default()
        };
        self.tag = next_tag(self.tag);
        self.put(&question.encode(0), Bytes::new());
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
        let message = AsyncMessage {
            flags: FINAL,
            task: NO_TAG,
            status_sn: self.next_status_sn(),
            expected_command_sn: self.command_sn,
            command_sn_max: self.command_sn_max(),
            event,
            parameters,
            ..AsyncMessage::default()
        };
        self.put(&message.encode(0), Bytes::new());
    }

    fn manage(&mut self, head: TaskManagementRequest) {
        let function = head.function & !FINAL;
        let Some((target, nexus)) = &self.unit else { return self.managed(head.task, task_management::NOT_SUPPORTED) };
        let about_lun = function != task_management::TARGET_WARM_RESET;
        if about_lun && !is_lun_zero(head.lun) {
            return self.managed(head.task, task_management::NO_SUCH_LUN);
        }
        let (ended, all_ended) = match function {
            task_management::ABORT_TASK => match self.abort(head.referenced) {
                Some(ended) => (ended, None),
                None => return self.managed(head.task, task_management::NO_SUCH_TASK),
            },
            task_management::ABORT_TASK_SET => (self.abort_all(), None),
            task_management::CLEAR_TASK_SET
            | task_management::LOGICAL_UNIT_RESET
            | task_management::TARGET_WARM_RESET => {
                match function {
                    task_management::CLEAR_TASK_SET => nexus.clear_task_set(),
                    _ => nexus.reset_unit(),
                }
                let all_ended = target.epochs.end();
                self.end_old_tasks();
                (HashSet::new(), Some(Box::pin(all_ended) as _))
            }
            _ => return self.managed(head.task, task_management::NOT_SUPPORTED),
        };
        self.managements.push(Management { reply: Reply::Managed(head.task), ended, all_ended });
    }

    /// Ends a task, and tells what of it is still to be waited for; none if there is no such task.
    fn abort(&mut self, task: u32) -> Option<HashSet<u32>> {
        if let Some(aborted) = self.tags.get_mut(&task) {
            *aborted = true;
            return Some([task].into());
        }
        let found = self.held.remove(&task).is_some() | self.stop_receiving(task).is_some();
        found.then(HashSet::new)
    }

    /// The same of all tasks of the session.
    fn abort_all(&mut self) -> HashSet<u32> {
        let all: Vec<u32> = self.tags.keys().chain(self.receiving.keys()).chain(self.held.keys()).copied().collect();
        all.into_iter().filter_map(|task| self.abort(task)).flatten().collect()
    }

    /// After a reset: what was not begun never is, and what runs is answered to nobody.
    fn end_old_tasks(&mut self) {
        let Some((target, _)) = &self.unit else { return };
        let is_over = |issued: &Issued| target.epochs.is_over(&issued.epoch);
        let receiving = self.receiving.values().map(|receiving| &receiving.issued);
        let held = self.held.values().map(|(issued, ..)| issued);
        let over: Vec<u32> = receiving.chain(held).filter(|issued| is_over(issued)).map(|issued| issued.task).collect();
        over.into_iter().for_each(|task| _ = self.abort(task));
    }

    fn poll_managements(&mut self, cx: &mut Context<'_>) {
        let mut at = 0;
        while at < self.managements.len() {
            let management = &mut self.managements[at];
            if let Some(all_ended) = &mut management.all_ended
                && all_ended.as_mut().poll(cx).is_ready()
            {
                management.all_ended = None;
            }
            if management.ended.is_empty() && management.all_ended.is_none() {
                match self.managements.remove(at).reply {
                    Reply::Managed(task) => self.managed(task, task_management::COMPLETE),
                    Reply::LoggedOut(task) => {
                        self.logged_out(task, logout::CLOSED);
                        return self.finish(End::LoggedOut);
                    }
                }
            } else {
                at += 1;
            }
        }
    }

    fn managed(&mut self, task: u32, response: u8) {
        let response = TaskManagementResponse {
            flags: FINAL,
            response,
            task,
            status_sn: self.next_status_sn(),
            expected_command_sn: self.command_sn,
            command_sn_max: self.command_sn_max(),
        };
        self.put(&response.encode(0), Bytes::new());
    }

    fn answer_text(&mut self, bhs: &Bhs, data: &[u8]) {
        let head = TextRequest::decode(bhs);
        let own = self.unit.as_ref().map(|(target, _)| target.name());
        let said = self.text.take(&head, data, &self.targets, own, &mut self.parameters);
        let Some((flags, transfer, text)) = said else { return self.reject(bhs, reject::PROTOCOL_ERROR) };
        let response = TextResponse {
            flags,
            lun: head.lun,
            task: head.task,
            transfer,
            status_sn: self.next_status_sn(),
            expected_command_sn: self.command_sn,
            command_sn_max: self.command_sn_max(),
        };
        self.put(&response.encode(text.len()), text);
    }

    /// Tasks end before the answer: whoever has it may log in anew and go on (11.14).
    fn log_out(&mut self, head: LogoutRequest) {
        match head.reason & !FINAL {
            logout::CLOSE_SESSION => {}
            logout::CLOSE_CONNECTION if head.connection == self.connection => {}
            logout::CLOSE_CONNECTION => return self.logged_out(head.task, logout::NO_SUCH_CONNECTION),
            _ => return self.logged_out(head.task, logout::RECOVERY_NOT_SUPPORTED),
        }
        let ended = self.abort_all();
        self.managements.push(Management { reply: Reply::LoggedOut(head.task), ended, all_ended: None });
    }

    fn logged_out(&mut self, task: u32, response: u8) {
        let answer = LogoutResponse {
            flags: FINAL,
            response,
            task,
            status_sn: self.next_status_sn(),
            expected_command_sn: self.command_sn,
            command_sn_max: self.command_sn_max(),
            ..LogoutResponse::default()
        };
        self.put(&answer.encode(0), Bytes::new());
    }

    fn reject(&mut self, bhs: &Bhs, reason: u8) {
        let rejected = Reject {
            flags: FINAL,
            reason,
            task: NO_TAG,
            status_sn: self.next_status_sn(),
            expected_command_sn: self.command_sn,
            command_sn_max: self.command_sn_max(),
            data_sn: 0,
        };
        self.put(&rejected.encode(bhs.len()), Bytes::copy_from_slice(bhs));
    }

    fn put(&mut self, bhs: &Bhs, data: Bytes) {
        self.frames.put(&mut self.outbox, bhs, data);
    }
}

/// 11.4.7.2
fn sense_of(wrong: Wrong) -> Sense {
    match wrong {
        Wrong::Amount => Sense::INCORRECT_AMOUNT_OF_DATA,
        Wrong::Order => Sense::PROTOCOL_SERVICE_CRC_ERROR,
    }
}

fn next_tag(tag: u32) -> u32 {
    // 0xffffffff is no tag.
    (tag + 1) % NO_TAG
}

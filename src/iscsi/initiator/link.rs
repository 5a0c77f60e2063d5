//! One session in its full feature phase, on its one connection: sends commands, and matches what comes back with them.
//!
//! One task of the runtime owns a connection. It takes all PDUs that a receive brought, and sends all that is ready with
//! one send. Data is not copied but where a read's comes in several PDUs.
//!
//! A target is not trusted. What it sends is checked against the command before memory is set aside for it; the first
//! thing that does not fit ends the link, and everything in flight on it is lost. So does the first thing that says that
//! the unit may have become another: nothing more is sent to whom nobody has asked who it is. A link never retries, and
//! what it has not sent, or was told that it was not done for that reason, it gives back.
//!
//! Bounds: the target's window of command numbers, and as many commands as it can take (it says when they are too many);
//! how much it may ask for without taking it; how long a command may take, how long the target may be silent, and how
//! long leaving it may take.

mod receiving;
mod transfer;

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, Sleep};

use super::connect::Connection;
use super::watch::Watch;
use crate::disk;
use crate::iscsi::frames::{FrameError, Frames};
use crate::iscsi::parameters::Parameters;
use crate::iscsi::pdu::{
    self, FINAL, IMMEDIATE, LogoutRequest, NO_TAG, NopOut, ScsiCommand, command, logout, residual,
};
use crate::net::{Inbox, Outbox};
use crate::scsi::{Received, Status};
use transfer::{Incoming, Outgoing};

/// Requests that are queued for the socket before more are taken.
const SEND_BATCH: usize = 256 * 1024;
/// What is queued for the socket before nothing more is read, for what is read may ask for more. Several commands' bursts:
/// a target that takes nothing before it was heard would stand still.
const OUTBOX_MAX: usize = 16 * 1024 * 1024;
/// Commands under way, whatever the target's window: as many as Linux has on a session.
const DEPTH_MAX: usize = 128;
/// A target that says nothing for so long is asked whether it is there, and given up after as long again.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// A command that has no answer by then has lost it: another initiator's reset ends commands without a word (SAM-5,
/// 5.3.1). Linux gives the longest of ours, WRITE SAME, 120 s.
const COMMAND_MAX: Duration = Duration::from_secs(120);
/// A target that asks us to leave waits for what is in flight, at most so long.
const LEAVE_MAX: Duration = Duration::from_secs(20);
/// Questions of the target's that wait for it to take our answers.
const ANSWERS_MAX: usize = 1024;

const _: () = assert!(SEND_BATCH < OUTBOX_MAX);
const _: () = assert!(SILENCE_MAX.as_secs() * 2 < COMMAND_MAX.as_secs());

/// Data of a command.
pub(super) enum Transfer {
    None,
    /// So many bytes at most come back.
    In(u32),
    Out(Bytes),
}

/// A command for a link. Answered when the target did; not at all (the sender is dropped) if the link ended.
pub(super) struct Job {
    pub cdb: [u8; 16],
    pub transfer: Transfer,
    pub answer: oneshot::Sender<disk::Result<Completion>>,
}

/// How a command ended.
#[derive(Debug)]
pub(super) struct Completion {
    /// None for one that no command of ours should end with.
    pub status: Option<Status>,
    pub sense: Option<Received>,
    pub data: Bytes,
    pub residual: Residual,
}

/// Of a transfer (11.4.5): what was not transferred although it was expected, or not expected, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Residual {
    None,
    Under(u32),
    Over(u32),
}

impl Residual {
    fn new(flags: u8, count: u32) -> Result<Self, LinkError> {
        match flags & (residual::OVERFLOW | residual::UNDERFLOW) {
            0 => Ok(Self::None),
            residual::OVERFLOW => Ok(Self::Over(count)),
            residual::UNDERFLOW => Ok(Self::Under(count)),
            // They exclude each other (11.4.5.1).
            _ => Err(LinkError::Broken("a residual that is of too much and of too little")),
        }
    }
}

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("the target closed the connection")]
    Closed,
    #[error("connection")]
    Io(#[from] io::Error),
    #[error("bytes that are no PDU")]
    Frame(#[from] FrameError),
    #[error("the target broke the protocol: {0}")]
    Broken(&'static str),
    #[error("the target rejected a PDU (reason {reason:#04x}, opcode {opcode:#04x})")]
    Rejected { reason: u8, opcode: u8 },
    #[error("the target is silent")]
    Silent,
    #[error("a command has no answer for {COMMAND_MAX:?}, while the target is there")]
    Unanswered,
    #[error("the target drops the connection")]
    Dropped,
    #[error("the unit says that it may be another (sense key {:#x}, code {:#06x})", .0.key, .0.code)]
    Changed(Received),
    #[error("the unit is another")]
    Halted,
    #[error("the target asked for a logout, and did not answer what was in flight")]
    NotLeft,
}

/// A link that ended, in order or not.
pub(super) struct Ended {
    pub why: Result<(), LinkError>,
    /// Never sent, or known not to be done.
    pub unsent: Vec<Job>,
}

/// Runs until `jobs` is closed and all of them are answered, the target wants to be left, or the link breaks.
pub(super) async fn run<S: AsyncRead + AsyncWrite + Unpin>(
    connection: Connection<S>,
    lun: u64,
    jobs: mpsc::UnboundedReceiver<Job>,
    watch: Watch,
) -> Ended {
    let mut link = Link::new(connection, lun, jobs, watch);
    let why = poll_fn(|cx| link.poll(cx)).await;
    let Link { mut jobs, in_flight, stream, mut unsent, .. } = link;
    drop(stream);
    jobs.close();
    while let Some(job) = jobs.recv().await {
        unsent.push(job);
    }
    // Only now: whoever is told of a loss finds new commands waiting behind those that were not sent.
    drop(in_flight);
    Ended { why, unsent }
}

struct InFlight {
    cdb: [u8; 16],
    transfer: Direction,
    /// It was issued, or its data went on.
    since: Instant,
    /// Position in what is sent where its last byte so far ends.
    end: u64,
    answer: oneshot::Sender<disk::Result<Completion>>,
}

enum Direction {
    None,
    In(Incoming),
    Out(Outgoing),
}

impl InFlight {
    fn into_job(self) -> Job {
        let transfer = match self.transfer {
            Direction::None => Transfer::None,
            Direction::In(incoming) => Transfer::In(incoming.expected()),
            Direction::Out(outgoing) => Transfer::Out(outgoing.into_data()),
        };
        Job { cdb: self.cdb, transfer, answer: self.answer }
    }
}

enum Leaving {
    No,
    /// What is in flight ends first.
    Finishing {
        by: Instant,
    },
    /// The logout was sent.
    Asked {
        task: u32,
        by: Instant,
    },
    Left,
}

struct Link<S> {
    stream: S,
    inbox: Inbox,
    outbox: Outbox,
    frames: Frames,
    parameters: Parameters,
    lun: u64,
    jobs: mpsc::UnboundedReceiver<Job>,
    watch: Watch,

    command_sn: u32,
    command_sn_max: u32,
    status_sn: u32,
    task: u32,
    /// In an order, so that what is lost together is told in one.
    in_flight: BTreeMap<u32, InFlight>,
    /// Those that were not done.
    unsent: Vec<Job>,
    halt: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// Commands that the target can take, as far as is known, and how many were done since that was said.
    depth: usize,
    done_at_depth: usize,
    /// Bytes that were ever queued for the socket.
    queued: u64,
    /// Answers to the target's questions since all was sent.
    answers: usize,
    /// The socket had no room for all that was to be sent.
    blocked: bool,
    leaving: Leaving,

    heard: Instant,
    /// A command was sent or answered.
    progress: Instant,
    clock: Pin<Box<Sleep>>,
    /// The tag of our question whether the target is there.
    asked: Option<u32>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Link<S> {
    fn new(connection: Connection<S>, lun: u64, jobs: mpsc::UnboundedReceiver<Job>, watch: Watch) -> Self {
        let Connection { stream, inbox, frames, parameters, command_sn, command_sn_max, status_sn } = connection;
        let now = Instant::now();
        let halt = Box::pin(watch.halted());
        Self {
            stream,
            inbox,
            outbox: Outbox::default(),
            frames,
            parameters,
            lun,
            jobs,
            watch,
            command_sn,
            command_sn_max,
            status_sn,
            task: 0,
            in_flight: BTreeMap::new(),
            unsent: Vec::new(),
            halt,
            depth: DEPTH_MAX,
            done_at_depth: 0,
            queued: 0,
            answers: 0,
            blocked: false,
            leaving: Leaving::No,
            heard: now,
            progress: now,
            clock: Box::pin(tokio::time::sleep_until(now + SILENCE_MAX)),
            asked: None,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        self.poll_clock(cx)?;
        if self.halt.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(LinkError::Halted));
        }
        loop {
            self.take_jobs(cx);
            self.log_out_when_finished();
            let batch_full = self.outbox.len() >= SEND_BATCH;
            let unsent = self.outbox.len();
            let all_sent = self.outbox.poll_send(cx, &mut self.stream)?.is_ready();
            if self.blocked && self.outbox.len() < unsent {
                // A target that goes on taking what it is sent is there, however slow its link. (What merely went into
                // the socket, such as our question, says nothing.)
                (self.heard, self.asked) = (Instant::now(), None);
            }
            self.blocked = !all_sent;
            if all_sent {
                self.answers = 0;
            }
            let mut any = false;
            while self.outbox.len() <= OUTBOX_MAX
                && let Some(frame) = self.frames.take(&mut self.inbox)?
            {
                any = true;
                self.frame(frame)?;
            }
            if let Leaving::Left = self.leaving {
                return Pin::new(&mut self.stream).poll_shutdown(cx).map(|_| Ok(()));
            }
            if self.outbox.len() > OUTBOX_MAX {
                if any {
                    continue;
                }
                // It goes on when the socket takes more.
                return Poll::Pending;
            }
            match self.inbox.poll_fill(cx, &mut self.stream)? {
                // It knows that we leave, and is not obliged to wait for us.
                Poll::Ready(0) if matches!(self.leaving, Leaving::Asked { .. }) => return Poll::Ready(Ok(())),
                Poll::Ready(0) => return Poll::Ready(Err(LinkError::Closed)),
                Poll::Ready(_) => (self.heard, self.asked) = (Instant::now(), None),
                // What came may have made room for jobs, or is to be answered; and there may be jobs beyond the batch.
                Poll::Pending if any || (all_sent && batch_full) => {}
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn poll_clock(&mut self, cx: &mut Context<'_>) -> Result<(), LinkError> {
        while self.clock.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if self.leaving.limit().is_some_and(|by| by <= now) {
                return Err(LinkError::NotLeft);
            }
            let waits = self.in_flight.values().map(|waiting| waiting.since).min();
            // A window that never opens keeps commands from being sent at all.
            let shut = Some(self.progress).filter(|_| self.in_flight.is_empty() && !self.window_is_open());
            if waits.or(shut).is_some_and(|since| now >= since + COMMAND_MAX) {
                return Err(LinkError::Unanswered);
            }
            if now >= self.heard + SILENCE_MAX {
                if self.asked.is_some() {
                    return Err(LinkError::Silent);
                }
                self.heard = now;
                self.ask_whether_it_is_there();
            }
            let next = self.heard + SILENCE_MAX;
            self.clock.as_mut().reset(self.leaving.limit().map_or(next, |by| by.min(next)));
        }
        Ok(())
    }

    fn window_is_open(&self) -> bool {
        !pdu::is_after(self.command_sn, self.command_sn_max)
    }

    fn take_jobs(&mut self, cx: &mut Context<'_>) {
        while matches!(self.leaving, Leaving::No)
            && self.outbox.len() < SEND_BATCH
            && self.in_flight.len() < self.depth
            && self.window_is_open()
        {
            match self.jobs.poll_recv(cx) {
                Poll::Ready(Some(job)) => self.issue(job),
                Poll::Ready(None) => self.leave(LEAVE_MAX),
                Poll::Pending => return,
            }
        }
    }

    /// A tag that nothing under way has.
    fn tag(&mut self) -> u32 {
        loop {
            self.task = self.task.wrapping_add(1);
            if self.task != NO_TAG && !self.in_flight.contains_key(&self.task) && self.asked != Some(self.task) {
                return self.task;
            }
        }
    }

    fn issue(&mut self, job: Job) {
        let Job { cdb, transfer, answer } = job;
        let task = self.tag();
        let (direction, expected) = match &transfer {
            Transfer::None => (0, 0),
            Transfer::In(expected) => (command::READ, *expected),
            Transfer::Out(data) => (command::WRITE, data.len() as u32),
        };
        let mut head = ScsiCommand {
            // The target may order commands as it likes.
            flags: FINAL | direction | command::SIMPLE,
            lun: self.lun,
            task,
            expected,
            command_sn: self.command_sn,
            expected_status_sn: self.status_sn,
            cdb,
        };
        self.command_sn = self.command_sn.wrapping_add(1);
        let transfer = match transfer {
            Transfer::Out(data) => {
                let mut outgoing = Outgoing::new(data);
                let immediate = outgoing.immediate(&self.parameters);
                let unasked = outgoing.unasked(&self.parameters);
                if !unasked.is_empty() {
                    head.flags &= !FINAL;
                }
                self.put(&head.encode(immediate.len()), immediate);
                self.put_data(task, NO_TAG, unasked);
                Direction::Out(outgoing)
            }
            Transfer::In(expected) => {
                self.put(&head.encode(0), Bytes::new());
                Direction::In(Incoming::new(expected))
            }
            Transfer::None => {
                self.put(&head.encode(0), Bytes::new());
                Direction::None
            }
        };
        self.progress = Instant::now();
        let (since, end) = (self.progress, self.queued);
        self.in_flight.insert(task, InFlight { cdb, transfer, since, end, answer });
    }

    fn put(&mut self, bhs: &pdu::Bhs, data: Bytes) {
        let before = self.outbox.len();
        self.frames.put(&mut self.outbox, bhs, data);
        self.queued += (self.outbox.len() - before) as u64;
    }

    /// Position up to which the socket has taken what is sent.
    fn sent(&self) -> u64 {
        self.queued - self.outbox.len() as u64
    }

    fn put_data(&mut self, task: u32, transfer: u32, sequence: transfer::Sequence) {
        for (head, data) in sequence.pdus(self.parameters.sent_max) {
            let head = pdu::DataOut { lun: self.lun, task, transfer, expected_status_sn: self.status_sn, ..head };
            self.put(&head.encode(data.len()), data);
        }
    }

    fn put_immediate(&mut self, mut bhs: pdu::Bhs) {
        bhs[0] |= IMMEDIATE;
        self.put(&bhs, Bytes::new());
    }

    fn ask_whether_it_is_there(&mut self) {
        let task = self.tag();
        self.asked = Some(task);
        let head = NopOut {
            flags: FINAL,
            lun: 0,
            task,
            transfer: NO_TAG,
            command_sn: self.command_sn,
            expected_status_sn: self.status_sn,
        };
        self.put_immediate(head.encode(0));
    }

    /// Takes no more jobs.
    fn leave(&mut self, within: Duration) {
        if let Leaving::No = self.leaving {
            let by = Instant::now() + within;
            self.leaving = Leaving::Finishing { by };
            let next = by.min(self.heard + SILENCE_MAX);
            self.clock.as_mut().reset(next);
        }
    }

    fn log_out_when_finished(&mut self) {
        let Leaving::Finishing { by } = self.leaving else { return };
        if !self.in_flight.is_empty() {
            return;
        }
        let task = self.tag();
        self.leaving = Leaving::Asked { task, by };
        let head = LogoutRequest {
            reason: FINAL | logout::CLOSE_SESSION,
            task,
            connection: 0,
            command_sn: self.command_sn,
            expected_status_sn: self.status_sn,
        };
        self.put_immediate(head.encode(0));
    }
}

impl Leaving {
    fn limit(&self) -> Option<Instant> {
        match self {
            Self::Finishing { by } | Self::Asked { by, .. } => Some(*by),
            Self::No | Self::Left => None,
        }
    }
}

#[cfg(test)]
mod tests;

//! The link against a target that the test plays, rule by rule.

mod ends;
mod transfer;
mod units;

use std::sync::atomic::Ordering;

use tokio::io::DuplexStream;
use tokio::task::JoinHandle;

use super::super::cdb::{self, Form};
use super::super::command::{Effect, Failure, Patience, Submit, execute, execute_exactly};
use super::*;
use crate::disk::DiskError;
use crate::iscsi::frames::Frame;
use crate::iscsi::pdu::{
    AsyncMessage, DataIn, DataOut, LogoutResponse, NopIn, ReadyToTransfer, Reject, ScsiResponse, data_in, event,
};
use crate::units::KIB;

/// A target that does what the test says, and nothing else.
struct Target {
    stream: DuplexStream,
    inbox: Inbox,
    frames: Frames,
    status_sn: u32,
    command_sn: u32,
    window: u32,
}

struct Running {
    target: Target,
    jobs: Jobs,
    watch: Watch,
    link: JoinHandle<Ended>,
}

#[derive(Clone)]
struct Jobs(mpsc::UnboundedSender<Job>);

impl Submit for Jobs {
    fn submit(&self, job: Job) {
        let _ = self.0.send(job);
    }
    fn patience(&self) -> Patience {
        Patience::USUAL
    }
}

type Outcome = JoinHandle<Result<Completion, Failure>>;

impl Jobs {
    fn read(&self, lba: u64, blocks: u32) -> Outcome {
        let jobs = self.clone();
        tokio::spawn(async move {
            let (cdb, length) = (cdb::read(Form::Sixteen, lba, blocks), blocks * 512);
            execute_exactly(&jobs, cdb, || Transfer::In(length), Effect::Repeatable, length).await
        })
    }

    fn write(&self, lba: u64, data: Vec<u8>) -> Outcome {
        let (jobs, data) = (self.clone(), Bytes::from(data));
        tokio::spawn(async move {
            let length = data.len() as u32;
            let cdb = cdb::write(Form::Sixteen, lba, length / 512, false);
            execute_exactly(&jobs, cdb, || Transfer::Out(data.clone()), Effect::Changes, length).await
        })
    }

    fn ready(&self) -> Outcome {
        let jobs = self.clone();
        tokio::spawn(async move { execute(&jobs, cdb::test_unit_ready(), || Transfer::None, Effect::Repeatable).await })
    }
}

const WINDOW: u32 = 32;

fn start_with(parameters: Parameters, window: u32) -> Running {
    let watch = Watch::default();
    watch.heed();
    start_watched(parameters, window, watch)
}

fn start_watched(parameters: Parameters, window: u32, watch: Watch) -> Running {
    let (connection, target) = connected(parameters, window);
    let (jobs, receiver) = mpsc::unbounded_channel();
    let link = tokio::spawn(run(connection, 7 << 48, receiver, watch.clone()));
    Running { target, jobs: Jobs(jobs), watch, link }
}

fn connected(parameters: Parameters, window: u32) -> (Connection<DuplexStream>, Target) {
    let (here, there) = tokio::io::duplex(4 << 20);
    let mut frames = Frames::default();
    frames.agree(&parameters);
    let connection = Connection {
        stream: here,
        inbox: Inbox::default(),
        frames,
        parameters,
        command_sn: 1,
        command_sn_max: window,
        status_sn: 100,
    };
    let mut frames = Frames::default();
    frames.agree(&parameters);
    let target = Target { stream: there, inbox: Inbox::default(), frames, status_sn: 100, command_sn: 1, window };
    (connection, target)
}

fn start() -> Running {
    start_with(Parameters::default(), WINDOW)
}

impl Target {
    async fn receive(&mut self) -> Frame {
        loop {
            if let Some(frame) = self.frames.take(&mut self.inbox).unwrap() {
                return frame;
            }
            let count = poll_fn(|cx| self.inbox.poll_fill(cx, &mut self.stream)).await.unwrap();
            if count == 0 {
                // The link has closed the connection, and its end says why.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Nothing but the end comes.
    async fn receives_nothing_more(&mut self) {
        assert_eq!(poll_fn(|cx| self.inbox.poll_fill(cx, &mut self.stream)).await.unwrap_or(0), 0);
        assert!(self.frames.take(&mut self.inbox).unwrap().is_none() && self.inbox.is_empty());
    }

    async fn command(&mut self) -> (ScsiCommand, Bytes) {
        let frame = self.receive().await;
        assert_eq!(pdu::opcode(&frame.bhs), ScsiCommand::OPCODE);
        let head = ScsiCommand::decode(&frame.bhs);
        assert_eq!((head.command_sn, head.lun), (self.command_sn, 7 << 48));
        self.command_sn += 1;
        (head, frame.data)
    }

    async fn data_out(&mut self) -> (DataOut, Bytes) {
        let frame = self.receive().await;
        assert_eq!(pdu::opcode(&frame.bhs), DataOut::OPCODE);
        (DataOut::decode(&frame.bhs), frame.data)
    }

    async fn send(&mut self, bhs: pdu::Bhs, data: &[u8]) {
        let mut outbox = Outbox::default();
        self.frames.put(&mut outbox, &bhs, Bytes::copy_from_slice(data));
        let _ = poll_fn(|cx| outbox.poll_send(cx, &mut self.stream)).await;
    }

    fn next_status(&mut self) -> u32 {
        self.status_sn += 1;
        self.status_sn - 1
    }

    fn max(&self) -> u32 {
        self.command_sn + self.window - 1
    }

    async fn respond_with(&mut self, head: ScsiResponse, sense: &[u8]) {
        let data = if sense.is_empty() { vec![] } else { [&(sense.len() as u16).to_be_bytes()[..], sense].concat() };
        let head = ScsiResponse {
            flags: head.flags | FINAL,
            status_sn: self.next_status(),
            expected_command_sn: self.command_sn,
            command_sn_max: self.max(),
            ..head
        };
        self.send(head.encode(data.len()), &data).await;
    }

    async fn respond(&mut self, task: u32, status: Status) {
        self.respond_with(ScsiResponse { task, status: status as u8, ..ScsiResponse::default() }, &[]).await;
    }

    async fn check(&mut self, task: u32, key: u8, code: u16) {
        self.check_in(0x70, task, key, code).await;
    }

    async fn check_in(&mut self, format: u8, task: u32, key: u8, code: u16) {
        let [high, low] = code.to_be_bytes();
        let sense = [format, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, high, low, 0, 0, 0, 0];
        let head = ScsiResponse { task, status: Status::CheckCondition as u8, ..ScsiResponse::default() };
        self.respond_with(head, &sense).await;
    }

    async fn data_in(&mut self, task: u32, head: DataIn, data: &[u8]) {
        let status_sn = if head.flags & data_in::STATUS != 0 { self.next_status() } else { 0 };
        let (expected_command_sn, command_sn_max) = (self.command_sn, self.max());
        let head = DataIn { task, transfer: NO_TAG, status_sn, expected_command_sn, command_sn_max, ..head };
        self.send(head.encode(data.len()), data).await;
    }

    async fn ask(&mut self, task: u32, r2t_sn: u32, offset: u32, length: u32) {
        let head = ReadyToTransfer {
            flags: FINAL,
            task,
            transfer: 77 + r2t_sn,
            status_sn: self.status_sn,
            expected_command_sn: self.command_sn,
            command_sn_max: self.max(),
            r2t_sn,
            offset,
            length,
            ..ReadyToTransfer::default()
        };
        self.send(head.encode(0), &[]).await;
    }

    async fn message(&mut self, event: u8, seconds: u16) {
        let head = AsyncMessage {
            flags: FINAL,
            task: NO_TAG,
            status_sn: self.next_status(),
            expected_command_sn: self.command_sn,
            command_sn_max: self.max(),
            event,
            parameters: [0, 0, seconds],
            ..AsyncMessage::default()
        };
        self.send(head.encode(0), &[]).await;
    }

    async fn log_out(&mut self) {
        let frame = self.receive().await;
        assert_eq!(pdu::opcode(&frame.bhs), LogoutRequest::OPCODE);
        let request = LogoutRequest::decode(&frame.bhs);
        assert_eq!(request.reason, FINAL | logout::CLOSE_SESSION);
        let head = LogoutResponse {
            flags: FINAL,
            task: request.task,
            status_sn: self.next_status(),
            expected_command_sn: self.command_sn,
            command_sn_max: self.max(),
            ..LogoutResponse::default()
        };
        self.send(head.encode(0), &[]).await;
    }
}

fn good() -> DataIn {
    DataIn { flags: FINAL | data_in::STATUS, ..DataIn::default() }
}

async fn lost(outcome: Outcome) {
    let failure = outcome.await.unwrap().unwrap_err();
    assert_eq!(failure, Failure::Disk(DiskError::Lost));
}

/// The link ends for this reason.
async fn broken(link: JoinHandle<Ended>, reason: &str) {
    match link.await.unwrap().why {
        Err(LinkError::Broken(why)) => assert_eq!(why, reason),
        other => panic!("{other:?}"),
    }
}

//! The link against a target that the test plays, rule by rule.

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

#[tokio::test]
async fn answers_find_their_commands_in_whatever_order_they_come() {
    let Running { mut target, jobs, .. } = start();
    let (first, second) = (jobs.read(5, 1), jobs.read(9, 1));
    let (one, _) = target.command().await;
    let (two, _) = target.command().await;
    assert_eq!((one.flags, one.expected), (FINAL | command::READ | command::SIMPLE, 512));
    target.data_in(two.task, good(), &[two.cdb[9]; 512]).await;
    target.data_in(one.task, good(), &[one.cdb[9]; 512]).await;
    assert_eq!(first.await.unwrap().unwrap().data, vec![5; 512]);
    assert_eq!(second.await.unwrap().unwrap().data, vec![9; 512]);
}

#[tokio::test]
async fn data_that_comes_in_several_pdus_is_put_together() {
    let digests = Parameters { header_digest: true, data_digest: true, ..Parameters::default() };
    for parameters in [Parameters::default(), digests] {
        let Running { mut target, jobs, .. } = start_with(parameters, WINDOW);
        let read = jobs.read(0, 2);
        let task = target.command().await.0.task;
        target.data_in(task, DataIn::default(), &[1; 300]).await;
        target.data_in(task, DataIn { data_sn: 1, offset: 300, flags: FINAL, ..DataIn::default() }, &[2; 724]).await;
        target.respond(task, Status::Good).await;
        assert_eq!(read.await.unwrap().unwrap().data, [vec![1; 300], vec![2; 724]].concat());
    }
}

#[tokio::test]
async fn no_command_is_sent_outside_of_the_window() {
    let Running { mut target, jobs, .. } = start_with(Parameters::default(), 2);
    let reads: Vec<_> = (0..5).map(|lba| jobs.read(lba, 1)).collect();
    let (first, second) = (target.command().await.0.task, target.command().await.0.task);
    // Whatever else there is to be sent must have been by the time a question is answered.
    let question = NopIn { flags: FINAL, task: NO_TAG, transfer: 3, command_sn_max: 2, ..NopIn::default() };
    target.send(NopIn { expected_command_sn: 3, status_sn: 100, ..question }.encode(0), &[]).await;
    let frame = target.receive().await;
    let answer = NopOut::decode(&frame.bhs);
    assert_eq!(pdu::opcode(&frame.bhs), NopOut::OPCODE);
    assert_eq!((answer.task, answer.transfer, pdu::is_immediate(&frame.bhs)), (NO_TAG, 3, true));
    target.data_in(first, good(), &[0; 512]).await;
    target.data_in(second, good(), &[0; 512]).await;
    for _ in 2..5 {
        let task = target.command().await.0.task;
        target.data_in(task, good(), &[0; 512]).await;
    }
    for read in reads {
        read.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn responses_are_acknowledged() {
    let Running { mut target, jobs, .. } = start();
    for expected in [100, 101, 102] {
        let ready = jobs.ready();
        let head = target.command().await.0;
        assert_eq!(head.expected_status_sn, expected);
        target.respond(head.task, Status::Good).await;
        ready.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn what_is_written_goes_as_it_was_agreed() {
    for (immediate_data, initial_r2t) in [(true, true), (true, false), (false, true), (false, false)] {
        let parameters = Parameters {
            immediate_data,
            initial_r2t,
            sent_max: 4 * KIB as u32,
            first_burst_max: 12 * KIB as u32,
            burst_max: 16 * KIB as u32,
            ..Parameters::default()
        };
        let Running { mut target, jobs, .. } = start_with(parameters, WINDOW);
        let data: Vec<u8> = (0..40 * KIB).map(|at| (at % 253) as u8).collect();
        let write = jobs.write(0, data.clone());
        let (head, immediate) = target.command().await;
        assert_eq!(immediate.len(), if immediate_data { 4096 } else { 0 });
        assert_eq!(head.flags & FINAL != 0, initial_r2t, "more follows unasked or not");
        let mut received = immediate.to_vec();
        let mut sequence = 0;
        while !initial_r2t && received.len() < 12 * KIB as usize {
            let (head, data) = target.data_out().await;
            assert_eq!((head.transfer, head.data_sn, head.offset as usize), (NO_TAG, sequence, received.len()));
            sequence += 1;
            received.extend_from_slice(&data);
            assert_eq!(head.flags & FINAL != 0, received.len() == 12 * KIB as usize);
        }
        let mut r2t_sn = 0;
        while received.len() < data.len() {
            let length = (data.len() - received.len()).min(16 * KIB as usize);
            let end = received.len() + length;
            target.ask(head.task, r2t_sn, received.len() as u32, length as u32).await;
            let mut sequence = 0;
            while received.len() < end {
                let (head, data) = target.data_out().await;
                let expected = (77 + r2t_sn, sequence, received.len());
                assert_eq!((head.transfer, head.data_sn, head.offset as usize), expected);
                assert!(data.len() <= 4096);
                sequence += 1;
                received.extend_from_slice(&data);
                assert_eq!(head.flags & FINAL != 0, received.len() == end);
            }
            r2t_sn += 1;
        }
        assert!(received == data);
        target.respond(head.task, Status::Good).await;
        write.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_read_that_is_short_or_a_write_that_was_not_taken_whole_is_no_success() {
    let Running { mut target, jobs, .. } = start();
    let read = jobs.read(0, 2);
    let task = target.command().await.0.task;
    let short = DataIn { flags: FINAL | data_in::STATUS | residual::UNDERFLOW, residual: 512, ..DataIn::default() };
    target.data_in(task, short, &[1; 512]).await;
    assert_eq!(read.await.unwrap().unwrap_err(), Failure::Status);
    // The same without saying so.
    let read = jobs.read(0, 2);
    let task = target.command().await.0.task;
    target.data_in(task, good(), &[1; 512]).await;
    assert_eq!(read.await.unwrap().unwrap_err(), Failure::Status);
    let write = jobs.write(0, vec![1; 1024]);
    let task = target.command().await.0.task;
    let head = ScsiResponse { flags: residual::UNDERFLOW, task, residual: 512, ..ScsiResponse::default() };
    target.respond_with(head, &[]).await;
    assert_eq!(write.await.unwrap().unwrap_err(), Failure::Status);
}

#[tokio::test]
async fn data_that_does_not_fit_its_command_ends_the_link() {
    let bad = |data_sn, offset| DataIn { data_sn, offset, ..DataIn::default() };
    for (head, length, reason) in [
        (bad(1, 0), 512, "data out of order"),
        (bad(0, 512), 512, "data at another offset than is next"),
        (bad(0, 0), 513, "data beyond its command"),
        (DataIn { flags: data_in::STATUS, ..DataIn::default() }, 512, "a status before the last data"),
    ] {
        let Running { mut target, jobs, link, .. } = start();
        let read = jobs.read(0, 1);
        let task = target.command().await.0.task;
        target.data_in(task, head, &vec![1; length]).await;
        broken(link, reason).await;
        lost(read).await;
    }
    let Running { mut target, jobs, link, .. } = start();
    let write = jobs.write(0, vec![0; 512]);
    let task = target.command().await.0.task;
    target.data_in(task, good(), &[1; 512]).await;
    broken(link, "data of a command that reads none").await;
    lost(write).await;
}

#[tokio::test]
async fn what_may_not_be_asked_for_ends_the_link() {
    for (r2t_sn, offset, length, reason) in [
        (1, 8192, 4096, "it asks for data out of order"),
        (0, 0, 4096, "it asks for data at another offset than is next"),
        (0, 8192, 65536 - 8192 + 1, "it asks for data beyond its command"),
        (0, 8192, 0, "it asks for data beyond its command"),
    ] {
        let Running { mut target, jobs, link, .. } = start();
        let write = jobs.write(0, vec![0; 65536]);
        let task = target.command().await.0.task;
        target.ask(task, r2t_sn, offset, length).await;
        broken(link, reason).await;
        lost(write).await;
    }
    let Running { mut target, link, .. } = start();
    target.ask(5, 0, 0, 512).await;
    broken(link, "it asks for data of no command").await;
}

#[tokio::test]
async fn responses_that_cannot_be_end_the_link() {
    let Running { mut target, jobs, link, .. } = start();
    let read = jobs.read(0, 1);
    let task = target.command().await.0.task;
    target.status_sn += 1;
    target.respond(task, Status::Good).await;
    broken(link, "a status out of order").await;
    lost(read).await;

    let Running { mut target, link, jobs: _jobs, .. } = start();
    target.respond(3, Status::Good).await;
    broken(link, "a response to no command").await;

    for flags in [residual::OVERFLOW | residual::UNDERFLOW, residual::UNDERFLOW | residual::OVERFLOW | FINAL] {
        let Running { mut target, jobs, link, .. } = start();
        let write = jobs.write(0, vec![1; 512]);
        let task = target.command().await.0.task;
        target.respond_with(ScsiResponse { flags, task, ..ScsiResponse::default() }, &[]).await;
        broken(link, "a residual that is of too much and of too little").await;
        lost(write).await;
    }

    let Running { mut target, link, jobs: _jobs, .. } = start();
    target.command_sn = 5;
    let question = NopIn { flags: FINAL, task: NO_TAG, transfer: NO_TAG, expected_command_sn: 5, ..NopIn::default() };
    target.send(question.encode(0), &[]).await;
    broken(link, "a command expected behind one that was not sent").await;

    let Running { mut target, link, jobs: _jobs, .. } = start();
    target.send(pdu::TextResponse::default().encode(0), &[]).await;
    broken(link, "a PDU that nothing of ours is answered with").await;
}

#[tokio::test]
async fn a_unit_that_may_be_another_is_sent_nothing_more() {
    for (key, code) in [(6, 0x2800), (6, 0x2900), (6, 0x2907), (6, 0x3F03), (6, 0x3F05), (6, 0x3F0E), (5, 0x2500)] {
        let Running { mut target, jobs, watch, link } = start_with(Parameters::default(), 2);
        let write = jobs.write(0, vec![7; 512]);
        let (head, data) = target.command().await;
        let read = jobs.read(5, 1);
        target.command().await;
        let queued = jobs.read(9, 1);
        tokio::task::yield_now().await;
        target.check(head.task, key, code).await;
        let Ended { why, unsent } = link.await.unwrap();
        assert!(matches!(why, Err(LinkError::Changed(sense)) if sense.code == code), "{code:#06x}: {why:?}");
        assert_eq!(watch.incarnation.load(Ordering::SeqCst), 1);
        target.receives_nothing_more().await;
        lost(read).await;
        // What it came with was not done: it can be done to the right one.
        assert_eq!(unsent.len(), 2);
        assert!(unsent[0].cdb == head.cdb && matches!(&unsent[0].transfer, Transfer::Out(same) if *same == data));
        assert!(matches!(&unsent[1].transfer, Transfer::In(512)));
        drop(unsent);
        lost(write).await;
        lost(queued).await;
    }
}

#[tokio::test]
async fn what_a_unit_tells_a_new_initiator_is_no_event() {
    let disk = Watch::default();
    let Running { mut target, jobs, watch, .. } = start_watched(Parameters::default(), WINDOW, disk.of_a_session());
    let ready = jobs.ready();
    for code in [0x2900, 0x3F0E, 0x2A09] {
        let task = target.command().await.0.task;
        target.check(task, 6, code).await;
    }
    let task = target.command().await.0.task;
    target.respond(task, Status::Good).await;
    ready.await.unwrap().unwrap();
    assert_eq!(disk.incarnation.load(Ordering::SeqCst), 0);
    // But what could not be written is told, whoever was asked.
    let ready = jobs.ready();
    let task = target.command().await.0.task;
    target.check_in(0x71, task, 3, 0x0C00).await;
    let task = target.command().await.0.task;
    target.respond(task, Status::Good).await;
    ready.await.unwrap().unwrap();
    assert!(disk.deferred_error.load(Ordering::SeqCst));
    watch.heed();
    let write = jobs.write(0, vec![7; 512]);
    let task = target.command().await.0.task;
    target.check(task, 6, 0x2900).await;
    lost(write).await;
    assert_eq!(disk.incarnation.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_link_to_another_unit_sends_nothing_more_at_once() {
    let Running { mut target, jobs, watch, link } = start_with(Parameters::default(), 1);
    let write = jobs.write(0, vec![7; 512]);
    let task = target.command().await.0.task;
    let queued: Vec<_> = (1..4).map(|lba| jobs.write(lba, vec![7; 512])).collect();
    tokio::task::yield_now().await;
    watch.halt();
    drop(jobs);
    target.respond(task, Status::Good).await;
    let Ended { why, unsent } = link.await.unwrap();
    assert!(matches!(why, Err(LinkError::Halted)), "{why:?}");
    assert_eq!(unsent.len(), 3);
    target.receives_nothing_more().await;
    drop(unsent);
    for write in queued.into_iter().chain([write]) {
        lost(write).await;
    }
}

#[tokio::test]
async fn sense_data_that_cannot_be_read_may_have_told_of_a_reset() {
    let Running { mut target, jobs, watch, .. } = start();
    let write = jobs.write(0, vec![7; 512]);
    let task = target.command().await.0.task;
    target.respond(task, Status::CheckCondition).await;
    assert_eq!(write.await.unwrap().unwrap_err(), Failure::Status);
    assert_eq!(watch.incarnation.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_write_that_is_done_before_its_data_was_asked_for_is_not_done() {
    let Running { mut target, jobs, link, .. } = start();
    let write = jobs.write(0, vec![7; 65536]);
    let task = target.command().await.0.task;
    target.ask(task, 0, 8192, 4096).await;
    target.data_out().await;
    target.respond(task, Status::Good).await;
    broken(link, "a command done without its data").await;
    lost(write).await;
}

#[tokio::test]
async fn a_target_that_takes_nothing_cannot_ask_for_more_and_more() {
    let parameters =
        Parameters { outstanding_r2t_max: 8, burst_max: 1 << 20, sent_max: 1 << 18, ..Parameters::default() };
    let (connection, mut target) = connected(parameters, WINDOW);
    let (sender, receiver) = mpsc::unbounded_channel();
    let mut link = Link::new(connection, 7 << 48, receiver, Watch::default());
    let (jobs, data) = (Jobs(sender), vec![7; 4 << 20]);
    let writes: Vec<_> = (0..8).map(|lba| jobs.write(lba, data.clone())).collect();
    tokio::task::yield_now().await;
    let asking = async {
        for task in 1..=8 {
            for r2t_sn in 0..3 {
                target.ask(task, r2t_sn, (r2t_sn << 20) + (1 << 16), 1 << 20).await;
            }
        }
        // It is heard as far as it goes.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        ended = poll_fn(|cx| link.poll(cx)) => panic!("{ended:?}"),
        () = asking => {}
    }
    let queued = link.outbox.len();
    assert!((OUTBOX_MAX / 2..OUTBOX_MAX + (2 << 20)).contains(&queued), "{queued}");
    // And it goes on when it takes something.
    let taking = async {
        let mut taken = 0;
        while taken < 20 << 20 {
            let mut buffer = vec![0; 1 << 20];
            taken += tokio::io::AsyncReadExt::read(&mut target.stream, &mut buffer).await.unwrap();
        }
    };
    tokio::select! {
        ended = poll_fn(|cx| link.poll(cx)) => panic!("{ended:?}"),
        () = taking => {}
    }
    drop((link, writes));
}

#[tokio::test(start_paused = true)]
async fn a_large_command_over_a_slow_network_has_its_time() {
    let Running { mut target, jobs, .. } = start();
    let write = jobs.write(0, vec![7; 8192 + 20 * 512]);
    let task = target.command().await.0.task;
    let begun = Instant::now();
    for r2t_sn in 0..20 {
        tokio::time::sleep(SILENCE_MAX - Duration::from_secs(1)).await;
        target.ask(task, r2t_sn, 8192 + r2t_sn * 512, 512).await;
        target.data_out().await;
    }
    assert!(begun.elapsed() > COMMAND_MAX);
    target.respond(task, Status::Good).await;
    write.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_unit_that_has_changed_is_looked_at_again() {
    let Running { mut target, jobs, watch, .. } = start();
    let read = jobs.read(0, 1);
    let task = target.command().await.0.task;
    target.check(task, 6, 0x2A09).await;
    watch.look_again.notified().await;
    let task = target.command().await.0.task;
    target.data_in(task, good(), &[1; 512]).await;
    read.await.unwrap().unwrap();
    assert_eq!(watch.incarnation.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_deferred_error_is_noted_and_its_command_is_sent_again() {
    let Running { mut target, jobs, watch, .. } = start();
    let write = jobs.write(0, vec![7; 512]);
    let task = target.command().await.0.task;
    target.check_in(0x71, task, 3, 0x0C00).await;
    let task = target.command().await.0.task;
    assert!(watch.deferred_error.load(Ordering::SeqCst));
    assert_eq!(watch.incarnation.load(Ordering::SeqCst), 1);
    target.respond(task, Status::Good).await;
    write.await.unwrap().unwrap();
    // A retry that succeeded in the end is no error.
    let Running { mut target, jobs, watch, .. } = start();
    let write = jobs.write(0, vec![7; 512]);
    let task = target.command().await.0.task;
    target.check_in(0x71, task, 1, 0x0C01).await;
    let task = target.command().await.0.task;
    target.respond(task, Status::Good).await;
    write.await.unwrap().unwrap();
    assert!(!watch.deferred_error.load(Ordering::SeqCst));
    assert_eq!(watch.incarnation.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn unit_attentions_without_end_are_an_error() {
    let Running { mut target, jobs, .. } = start();
    let write = jobs.write(0, vec![7; 512]);
    for _ in 0..=Patience::USUAL.attempts {
        let task = target.command().await.0.task;
        target.check(task, 6, 0x2A01).await;
    }
    assert_eq!(write.await.unwrap().unwrap_err().to_disk(), DiskError::Refused(disk::Errno::EIO));
}

#[tokio::test(start_paused = true)]
async fn a_busy_unit_is_asked_again_for_a_while() {
    let Running { mut target, jobs, .. } = start();
    let write = jobs.write(0, vec![7; 512]);
    for status in [Status::Busy, Status::TaskSetFull, Status::Busy] {
        let task = target.command().await.0.task;
        target.respond(task, status).await;
    }
    let task = target.command().await.0.task;
    target.respond(task, Status::Good).await;
    write.await.unwrap().unwrap();

    let write = jobs.write(0, vec![7; 512]);
    let begun = Instant::now();
    while !write.is_finished() {
        assert!(begun.elapsed() < Duration::from_secs(40));
        tokio::select! {
            (head, _) = target.command() => target.respond(head.task, Status::Busy).await,
            () = tokio::time::sleep(Duration::from_secs(5)) => {}
        }
    }
    assert_eq!(write.await.unwrap().unwrap_err(), Failure::Busy);
    assert!(begun.elapsed() >= Patience::USUAL.busy);
}

#[tokio::test(start_paused = true)]
async fn a_full_target_gets_fewer_commands() {
    let Running { mut target, jobs, .. } = start();
    let reads: Vec<_> = (0..16).map(|lba| jobs.read(lba, 1)).collect();
    let mut tasks = Vec::new();
    for _ in 0..16 {
        tasks.push(target.command().await.0.task);
    }
    for task in tasks {
        target.respond(task, Status::TaskSetFull).await;
    }
    // All come again, but one after the other, until it seems to have room again.
    for number in 0..16 {
        let task = target.command().await.0.task;
        if number < 8 {
            let quiet = tokio::time::timeout(Duration::from_secs(3), target.command()).await;
            assert!(quiet.is_err(), "two at once");
        }
        target.data_in(task, good(), &[0; 512]).await;
    }
    for read in reads {
        read.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_change_whose_outcome_is_unknown_is_lost_and_never_sent_again() {
    let Running { mut target, jobs, link, .. } = start();
    let write = jobs.write(0, vec![7; 512]);
    let task = target.command().await.0.task;
    target.respond(task, Status::TaskAborted).await;
    lost(write).await;
    // The unit itself has ended it, and has answered: nothing is still to come.
    let write = jobs.write(0, vec![7; 512]);
    let task = target.command().await.0.task;
    target.check(task, 0xB, 0x0000).await;
    assert_eq!(write.await.unwrap().unwrap_err().to_disk(), DiskError::Io(disk::Errno::EIO));
    // Target failure.
    let write = jobs.write(0, vec![7; 512]);
    let task = target.command().await.0.task;
    target.respond_with(ScsiResponse { response: 1, task, ..ScsiResponse::default() }, &[]).await;
    lost(write).await;
    // A read can be done twice.
    let read = jobs.read(0, 1);
    let task = target.command().await.0.task;
    target.check(task, 0xB, 0x0000).await;
    let task = target.command().await.0.task;
    target.data_in(task, good(), &[1; 512]).await;
    read.await.unwrap().unwrap();
    let write = jobs.write(0, vec![7; 512]);
    target.command().await;
    drop(target);
    lost(write).await;
    assert!(matches!(link.await.unwrap().why, Err(LinkError::Closed | LinkError::Io(_))));
}

#[tokio::test]
async fn a_reject_ends_the_link_and_is_named() {
    let Running { mut target, jobs, link, .. } = start();
    let write = jobs.write(0, vec![7; 512]);
    let frame = target.receive().await;
    let head = Reject { flags: FINAL, reason: 4, task: NO_TAG, status_sn: target.next_status(), ..Reject::default() };
    target.send(head.encode(48), &frame.bhs).await;
    let ended = link.await.unwrap();
    assert!(matches!(ended.why, Err(LinkError::Rejected { reason: 4, opcode: 1 })), "{:?}", ended.why);
    lost(write).await;
}

#[tokio::test]
async fn a_target_that_wants_to_be_left_is_left_when_what_is_in_flight_has_ended() {
    let Running { mut target, jobs, link, .. } = start();
    let (write, read) = (jobs.write(0, vec![7; 512]), jobs.read(0, 1));
    let (first, second) = (target.command().await.0.task, target.command().await.0.task);
    target.message(event::LOGOUT_REQUESTED, 5).await;
    let later = jobs.read(9, 1);
    target.respond(first, Status::Good).await;
    target.data_in(second, good(), &[1; 512]).await;
    target.log_out().await;
    write.await.unwrap().unwrap();
    read.await.unwrap().unwrap();
    let Ended { why, unsent } = link.await.unwrap();
    assert!(why.is_ok());
    assert_eq!(unsent.len(), 1, "what was not sent is given back");
    target.receives_nothing_more().await;
    drop(unsent);
    lost(later).await;
}

#[tokio::test(start_paused = true)]
async fn a_target_that_wants_to_be_left_has_to_answer_in_its_time() {
    let Running { mut target, jobs, link, .. } = start();
    let write = jobs.write(0, vec![7; 512]);
    target.command().await;
    target.message(event::LOGOUT_REQUESTED, 5).await;
    let begun = Instant::now();
    assert!(matches!(link.await.unwrap().why, Err(LinkError::NotLeft)));
    assert!((5..7).contains(&begun.elapsed().as_secs()));
    lost(write).await;
}

#[tokio::test]
async fn a_target_that_drops_the_connection_has_dropped_it() {
    for event in [event::DROPS_CONNECTION, event::DROPS_SESSION] {
        let Running { mut target, jobs, link, .. } = start();
        let write = jobs.write(0, vec![7; 512]);
        target.command().await;
        target.message(event, 0).await;
        assert!(matches!(link.await.unwrap().why, Err(LinkError::Dropped)));
        lost(write).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_target_is_asked_and_then_given_up() {
    let Running { mut target, link, jobs: _jobs, .. } = start();
    let begun = Instant::now();
    for round in 1..=3 {
        let frame = target.receive().await;
        assert_eq!((pdu::opcode(&frame.bhs), begun.elapsed().as_secs()), (NopOut::OPCODE, 10 * round));
        if round < 3 {
            let task = NopOut::decode(&frame.bhs).task;
            let (status_sn, command_sn_max) = (target.next_status(), target.max());
            let answer = NopIn { flags: FINAL, task, transfer: NO_TAG, status_sn, command_sn_max, ..NopIn::default() };
            target.send(NopIn { expected_command_sn: 1, ..answer }.encode(0), &[]).await;
        }
    }
    assert!(matches!(link.await.unwrap().why, Err(LinkError::Silent)));
    assert_eq!(begun.elapsed().as_secs(), 40);
}

#[tokio::test(start_paused = true)]
async fn a_command_without_an_answer_costs_the_session() {
    let Running { mut target, jobs, link, .. } = start();
    let write = jobs.write(0, vec![7; 512]);
    target.command().await;
    let begun = Instant::now();
    let mut link = link;
    let ended = loop {
        tokio::select! {
            ended = &mut link => break ended.unwrap(),
            frame = target.receive() => {
                let task = NopOut::decode(&frame.bhs).task;
                let (status_sn, command_sn_max) = (target.next_status(), target.max());
                let answer = NopIn { flags: FINAL, task, transfer: NO_TAG, status_sn, command_sn_max, ..NopIn::default() };
                target.send(NopIn { expected_command_sn: 2, ..answer }.encode(0), &[]).await;
            }
        }
    };
    assert!(matches!(ended.why, Err(LinkError::Unanswered)), "{:?}", ended.why);
    assert!((120..=130).contains(&begun.elapsed().as_secs()));
    lost(write).await;
}

#[tokio::test]
async fn a_link_that_nobody_needs_logs_out() {
    let Running { mut target, jobs, link, .. } = start();
    let write = jobs.write(0, vec![7; 512]);
    drop(jobs);
    let task = target.command().await.0.task;
    target.respond(task, Status::Good).await;
    write.await.unwrap().unwrap();
    target.log_out().await;
    assert!(link.await.unwrap().why.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_target_that_takes_what_it_is_sent_slowly_is_not_given_up() {
    let parameters =
        Parameters { initial_r2t: false, first_burst_max: 1 << 20, burst_max: 1 << 20, ..Parameters::default() };
    let Running { mut target, jobs, link, .. } = start_with(parameters, WINDOW);
    let writes: Vec<_> = (0..8).map(|lba| jobs.write(lba, vec![7; 1 << 20])).collect();
    let begun = Instant::now();
    // Slower than it would be asked and given up, in small pieces.
    let mut received = 0;
    // Until the rest of it is in the socket.
    while received < 4 << 20 {
        tokio::time::sleep(Duration::from_secs(3)).await;
        let mut buffer = vec![0; 400_000];
        received += tokio::io::AsyncReadExt::read(&mut target.stream, &mut buffer).await.unwrap();
    }
    assert!(begun.elapsed() > 2 * SILENCE_MAX && !link.is_finished());
    drop(target);
    for write in writes {
        lost(write).await;
    }
}

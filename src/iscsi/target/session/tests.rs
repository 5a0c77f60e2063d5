//! A session whose initiator is a script, in front of a disk whose operations end when they are let.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, DuplexStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::disk::{Disk, Errno, Extent, Geometry, Identity, MemoryDisk, ZeroMode};
use crate::iscsi::pdu::{
    BHS, LogoutResponse, ReadyToTransfer, ScsiResponse, TaskManagementResponse, command, task_management,
};
use crate::scsi::{InitiatorPort, Status, Unit, UnitSettings};

const BLOCK: usize = 512;

/// A disk whose writes wait for a permit each, and flushes that fail.
struct Gated {
    memory: MemoryDisk,
    permits: Arc<Semaphore>,
    begun: Arc<AtomicUsize>,
    /// What the next flush tells.
    error: Mutex<Option<DiskError>>,
    incarnation: AtomicU64,
}

impl Disk for Gated {
    fn geometry(&self) -> Geometry {
        self.memory.geometry()
    }
    fn read(&self, offset: u64, length: u32) -> Pending<Bytes> {
        self.memory.read(offset, length)
    }
    fn write(&self, offset: u64, data: Bytes, fua: bool) -> Pending<()> {
        let (permits, memory) = (self.permits.clone(), self.memory.write(offset, data, fua));
        self.begun.fetch_add(1, Ordering::SeqCst);
        Pending::later(async move {
            permits.acquire().await.expect("never closed").forget();
            memory.await
        })
    }
    fn flush(&self) -> Pending<()> {
        let Some(error) = self.error.lock().take() else { return self.memory.flush() };
        let permits = self.permits.clone();
        self.begun.fetch_add(1, Ordering::SeqCst);
        Pending::later(async move {
            permits.acquire().await.expect("never closed").forget();
            Err(error)
        })
    }
    fn trim(&self, offset: u64, length: u64, fua: bool) -> Pending<()> {
        self.memory.trim(offset, length, fua)
    }
    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode, fua: bool) -> Pending<()> {
        self.memory.write_zeroes(offset, length, mode, fua)
    }
    fn cache(&self, offset: u64, length: u64) -> Pending<()> {
        self.memory.cache(offset, length)
    }
    fn extents(&self, offset: u64, length: u64, limit: usize) -> Pending<Vec<Extent>> {
        self.memory.extents(offset, length, limit)
    }
    fn identity(&self) -> Identity {
        self.memory.identity()
    }
    fn incarnation(&self) -> u64 {
        self.incarnation.load(Ordering::SeqCst)
    }
    fn owe(&self, error: DiskError) {
        *self.error.lock() = Some(error);
    }
}

/// A target, and what its disk waits for.
struct Stage {
    target: Arc<Target>,
    disk: Arc<Gated>,
    permits: Arc<Semaphore>,
    begun: Arc<AtomicUsize>,
}

impl Stage {
    fn new(size: u64) -> Self {
        let (permits, begun) = (Arc::new(Semaphore::new(0)), Arc::<AtomicUsize>::default());
        let disk = Arc::new(Gated {
            memory: MemoryDisk::new(size),
            permits: permits.clone(),
            begun: begun.clone(),
            error: Mutex::new(None),
            incarnation: AtomicU64::new(0),
        });
        let unit = Unit::new(disk.clone(), UnitSettings::example("iqn.t:disk0")).unwrap();
        Self { target: Target::new("iqn.t:disk0".into(), unit), disk, permits, begun }
    }

    fn log_in(&self, name: &str, parameters: Parameters) -> Initiator {
        let (here, there) = tokio::io::duplex(1 << 20);
        let (leave, leaving) = watch::channel(false);
        let (stop, stopping) = watch::channel(false);
        let nexus = self.target.unit.attach(InitiatorPort { name: name.into(), isid: [0; 6], target_port: 1 });
        let opened = Opened {
            stream: there,
            inbox: Inbox::default(),
            frames: Frames::default(),
            parameters,
            command_sn: 1,
            status_sn: 1,
            connection: 0,
            targets: discovery::Targets { all: [self.target.clone()].into(), portals: vec!["portal".into()] },
            unit: Some((self.target.clone(), nexus)),
        };
        let session = tokio::spawn(serve(opened, leaving, stopping));
        Initiator { stream: here, session, command_sn: 1, _leave: leave, stop }
    }

    /// One that may say whatever the keys allow, and was told of the unit's start.
    async fn initiator(&self) -> Initiator {
        let mut initiator = self.log_in("iqn.a", parameters());
        initiator.hear_power_on().await;
        initiator
    }

    async fn until_begun(&self, count: usize) {
        let begun = async {
            while self.begun.load(Ordering::SeqCst) < count {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(5), begun).await.expect("as many as are to begin");
    }
}

/// A script's side of a connection.
struct Initiator {
    stream: DuplexStream,
    session: JoinHandle<Result<End, SessionError>>,
    command_sn: u32,
    _leave: watch::Sender<bool>,
    stop: watch::Sender<bool>,
}

impl Initiator {
    async fn send(&mut self, bhs: Bhs, data: &[u8]) {
        self.stream.write_all(&bhs).await.unwrap();
        self.stream.write_all(data).await.unwrap();
        self.stream.write_all(&[0; 4][..pdu::padding(data.len())]).await.unwrap();
    }

    async fn command(&mut self, task: u32, flags: u8, expected: u32, cdb: [u8; 16], data: &[u8]) {
        let head = ScsiCommand { flags, task, expected, cdb, command_sn: self.command_sn, ..ScsiCommand::default() };
        self.command_sn += 1;
        self.send(head.encode(data.len()), data).await;
    }

    /// A WRITE(10) of so many blocks whose first data comes with it.
    async fn write(&mut self, task: u32, lba: u8, blocks: u8, data: &[u8]) {
        let cdb = [0x2A, 0, 0, 0, 0, lba, 0, 0, blocks, 0, 0, 0, 0, 0, 0, 0];
        self.command(task, FINAL | command::WRITE, u32::from(blocks) * BLOCK as u32, cdb, data).await;
    }

    /// A WRITE(10) of one block, with an attribute.
    async fn write_as(&mut self, attribute: u8, task: u32) {
        self.command(task, FINAL | command::WRITE | attribute, BLOCK as u32, WRITE_ONE, &[1; BLOCK]).await;
    }

    async fn synchronize_cache(&mut self, task: u32) {
        let cdb = [0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        self.command(task, FINAL, 0, cdb, &[]).await;
    }

    async fn manage(&mut self, task: u32, function: u8, referenced: u32) {
        let head = TaskManagementRequest { function: FINAL | function, task, referenced, ..Default::default() };
        let mut bhs = head.encode(0);
        bhs[0] |= pdu::IMMEDIATE;
        self.send(bhs, &[]).await;
    }

    async fn receive(&mut self) -> (Bhs, Vec<u8>) {
        let mut bhs = [0; BHS];
        timeout(Duration::from_secs(5), self.stream.read_exact(&mut bhs)).await.expect("an answer").unwrap();
        let length = pdu::data_length(&bhs);
        let mut data = vec![0; length + pdu::padding(length)];
        self.stream.read_exact(&mut data).await.unwrap();
        data.truncate(length);
        (bhs, data)
    }

    async fn is_silent(&mut self) -> bool {
        timeout(Duration::from_millis(50), self.stream.read_u8()).await.is_err()
    }

    /// The response to a command: its tag and status.
    async fn response(&mut self) -> (u32, u8) {
        let (bhs, _) = self.receive().await;
        assert_eq!(pdu::opcode(&bhs), ScsiResponse::OPCODE, "{bhs:02x?}");
        let response = ScsiResponse::decode(&bhs);
        (response.task, response.status)
    }

    async fn managed(&mut self) -> (u32, u8) {
        let (bhs, _) = self.receive().await;
        assert_eq!(pdu::opcode(&bhs), TaskManagementResponse::OPCODE, "{bhs:02x?}");
        let response = TaskManagementResponse::decode(&bhs);
        (response.task, response.response)
    }

    /// What every new nexus is told first.
    async fn hear_power_on(&mut self) {
        self.command(0xffff, FINAL, 0, [0; 16], &[]).await;
        assert_eq!(self.response().await, (0xffff, Status::CheckCondition as u8));
    }
}

const READ_ONE: [u8; 16] = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
const WRITE_ONE: [u8; 16] = [0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];

fn parameters() -> Parameters {
    Parameters { initial_r2t: false, sent_max: 1 << 18, outstanding_r2t_max: 2, ..Parameters::default() }
}

#[tokio::test]
async fn an_aborted_write_is_answered_to_nobody_and_its_abort_when_it_has_ended() {
    let stage = Stage::new(1 << 20);
    let mut initiator = stage.initiator().await;
    initiator.write(7, 0, 1, &[1; BLOCK]).await;
    stage.until_begun(1).await;
    initiator.manage(8, task_management::ABORT_TASK, 7).await;
    assert!(initiator.is_silent().await, "answered while the write can still happen");
    stage.permits.add_permits(1);
    assert_eq!(initiator.managed().await, (8, task_management::COMPLETE));
    initiator.manage(9, task_management::ABORT_TASK, 7).await;
    assert_eq!(initiator.managed().await, (9, task_management::NO_SUCH_TASK));
}

#[tokio::test]
async fn a_reset_waits_for_the_writes_of_other_sessions_and_drops_what_they_still_send() {
    let stage = Stage::new(1 << 20);
    let (mut first, mut second) = (stage.log_in("iqn.a", parameters()), stage.log_in("iqn.b", parameters()));
    first.hear_power_on().await;
    second.hear_power_on().await;
    first.write(1, 0, 1, &[1; BLOCK]).await;
    // One more whose data is still to come.
    first.write(2, 1, 2, &[]).await;
    let (bhs, _) = first.receive().await;
    let asked = ReadyToTransfer::decode(&bhs);
    assert_eq!((asked.task, asked.offset, asked.length), (2, 0, 2 * BLOCK as u32));
    stage.until_begun(1).await;
    second.manage(5, task_management::LOGICAL_UNIT_RESET, NO_TAG).await;
    assert!(second.is_silent().await, "answered while another session's write can still happen");
    stage.permits.add_permits(9);
    assert_eq!(second.managed().await, (5, task_management::COMPLETE));
    let out = DataOut { flags: FINAL, task: 2, transfer: asked.transfer, ..DataOut::default() };
    first.send(out.encode(2 * BLOCK), &[2; 2 * BLOCK]).await;
    // Neither was answered: what comes next is told of the reset.
    first.command(3, FINAL, 0, [0; 16], &[]).await;
    assert_eq!(first.response().await, (3, Status::CheckCondition as u8));
    assert_eq!(stage.begun.load(Ordering::SeqCst), 1, "data of before the reset was written");
}

/// Why an initiator is not told what it asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Untold {
    /// The store came back meanwhile.
    Lost,
    /// The same, and the session has ended by then.
    LostBefore,
    Aborted,
    Left,
}

#[tokio::test]
async fn an_error_of_a_flush_that_its_initiator_is_not_told_is_told_by_the_next_flush() {
    for untold in [Untold::Lost, Untold::LostBefore, Untold::Aborted, Untold::Left] {
        let stage = Stage::new(1 << 20);
        stage.disk.owe(DiskError::Io(Errno::EIO));
        let mut initiator = stage.initiator().await;
        if untold == Untold::LostBefore {
            initiator.write(6, 0, 1, &[1; BLOCK]).await;
            stage.until_begun(1).await;
        }
        initiator.synchronize_cache(7).await;
        stage.until_begun(if untold == Untold::LostBefore { 2 } else { 1 }).await;
        match untold {
            Untold::Lost | Untold::LostBefore => {
                stage.disk.incarnation.store(1, Ordering::SeqCst);
                stage.permits.add_permits(1);
                let mut rest = Vec::new();
                initiator.stream.read_to_end(&mut rest).await.unwrap();
                assert!(rest.is_empty());
            }
            Untold::Aborted => {
                initiator.manage(8, task_management::ABORT_TASK, 7).await;
                assert!(initiator.is_silent().await);
                stage.permits.add_permits(1);
                assert_eq!(initiator.managed().await, (8, task_management::COMPLETE));
            }
            Untold::Left => {}
        }
        drop(initiator.stream);
        // The session has heard of it before the flush ends.
        tokio::task::yield_now().await;
        stage.permits.add_permits(1);
        let _ = initiator.session.await.unwrap();
        let mut next = stage.initiator().await;
        stage.permits.add_permits(1);
        for (task, status) in [(1, Status::CheckCondition), (2, Status::Good)] {
            next.synchronize_cache(task).await;
            assert_eq!(next.response().await, (task, status as u8), "{untold:?}");
        }
    }
}

#[tokio::test]
async fn a_logout_is_answered_when_the_writes_of_the_session_have_ended() {
    let stage = Stage::new(1 << 20);
    let mut initiator = stage.initiator().await;
    initiator.write(1, 0, 1, &[1; BLOCK]).await;
    stage.until_begun(1).await;
    let logout = LogoutRequest { reason: FINAL, task: 2, command_sn: initiator.command_sn, ..LogoutRequest::default() };
    initiator.send(logout.encode(0), &[]).await;
    assert!(initiator.is_silent().await, "answered while a write can still happen");
    stage.permits.add_permits(1);
    assert_eq!(pdu::opcode(&initiator.receive().await.0), LogoutResponse::OPCODE);
    assert_eq!(initiator.session.await.unwrap().unwrap(), End::LoggedOut);
}

/// More than may be under way at a time, so that the last have to wait for room.
#[tokio::test]
async fn what_waits_for_room_is_begun_when_there_is_some() {
    let stage = Stage::new(256 << 20);
    stage.permits.add_permits(100);
    let mut initiator = stage.initiator().await;
    // 24 MiB each.
    let blocks = 49_152u32;
    for task in 0..4 {
        let [_, _, high, low] = blocks.to_be_bytes();
        let cdb = [0x2A, 0, 0, task, 0, 0, 0, high, low, 0, 0, 0, 0, 0, 0, 0];
        initiator.command(task.into(), FINAL | command::WRITE, blocks * BLOCK as u32, cdb, &[]).await;
    }
    let (mut ended, mut largest) = (Vec::new(), 0);
    let mut asked_of = HashSet::new();
    while ended.len() < 4 {
        let (bhs, _) = initiator.receive().await;
        if pdu::opcode(&bhs) == ScsiResponse::OPCODE {
            let response = ScsiResponse::decode(&bhs);
            assert_eq!(response.status, Status::Good as u8);
            asked_of.remove(&response.task);
            ended.push(response.task);
            continue;
        }
        let asked = ReadyToTransfer::decode(&bhs);
        asked_of.insert(asked.task);
        largest = largest.max(asked_of.len());
        let out = DataOut {
            flags: FINAL,
            task: asked.task,
            transfer: asked.transfer,
            offset: asked.offset,
            ..DataOut::default()
        };
        initiator.send(out.encode(asked.length as usize), &vec![3; asked.length as usize]).await;
    }
    assert_eq!(largest, 2, "48 of 64 MiB may be under way");
}

#[tokio::test]
async fn a_window_that_was_told_is_never_taken_back() {
    let stage = Stage::new(1 << 20);
    let mut initiator = stage.initiator().await;
    let mut told = window_from(1);
    for task in 0..100 {
        let cdb = [0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
        let head = ScsiCommand { flags: FINAL | command::WRITE, task, expected: 512, cdb, ..ScsiCommand::default() };
        let mut bhs = head.encode(BLOCK);
        bhs[0] |= pdu::IMMEDIATE;
        initiator.send(bhs, &[1; BLOCK]).await;
        let ping = NopOut { flags: FINAL, task: 0x1000 + task, transfer: NO_TAG, ..NopOut::default() };
        let mut bhs = ping.encode(0);
        bhs[0] |= pdu::IMMEDIATE;
        initiator.send(bhs, &[]).await;
        let answer = NopIn::decode(&initiator.receive().await.0);
        assert!(!pdu::is_after(told, answer.command_sn_max), "{told} was told, and then {}", answer.command_sn_max);
        told = answer.command_sn_max;
    }
}

#[tokio::test]
async fn data_out_of_order_ends_its_command_and_nothing_is_written() {
    let stage = Stage::new(1 << 20);
    let mut initiator = stage.initiator().await;
    initiator.write(1, 0, 2, &[]).await;
    let asked = ReadyToTransfer::decode(&initiator.receive().await.0);
    let out = DataOut { flags: FINAL, task: 1, transfer: asked.transfer, data_sn: 27, ..DataOut::default() };
    initiator.send(out.encode(2 * BLOCK), &[2; 2 * BLOCK]).await;
    assert_eq!(initiator.response().await, (1, Status::CheckCondition as u8));
    assert_eq!(stage.begun.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_stop_asks_the_initiator_to_log_out_and_serves_it_until_then() {
    let stage = Stage::new(1 << 20);
    let mut initiator = stage.initiator().await;
    initiator.stop.send_replace(true);
    let asked = AsyncMessage::decode(&initiator.receive().await.0);
    assert_eq!((asked.event, asked.task), (event::LOGOUT_REQUESTED, NO_TAG));
    initiator.command(1, FINAL, 0, [0; 16], &[]).await;
    assert_eq!(initiator.response().await, (1, Status::Good as u8));
}

/// With time that does not pass by itself.
#[tokio::test(start_paused = true)]
async fn a_silent_initiator_is_asked_whether_it_is_there_and_then_given_up() {
    let stage = Stage::new(1 << 20);
    let mut initiator = stage.log_in("iqn.a", parameters());
    let begun = Instant::now();
    let mut bhs = [0; BHS];
    initiator.stream.read_exact(&mut bhs).await.unwrap();
    let question = NopIn::decode(&bhs);
    assert_eq!((pdu::opcode(&bhs), question.task), (NopIn::OPCODE, NO_TAG));
    assert_ne!(question.transfer, NO_TAG, "an answer is wanted");
    assert!(matches!(initiator.session.await.unwrap(), Err(SessionError::Silent)));
    // That the question went into the socket is no sign of life.
    assert_eq!(begun.elapsed().as_secs(), 2 * SILENCE_MAX.as_secs());
}

/// SAM-5, 8.6.3.
#[tokio::test]
async fn an_ordered_task_waits_for_the_older_ones_and_the_younger_ones_for_it() {
    let stage = Stage::new(1 << 20);
    let mut initiator = stage.initiator().await;
    for (task, attribute) in [command::SIMPLE, command::UNTAGGED, command::ORDERED, command::SIMPLE, command::ORDERED]
        .into_iter()
        .enumerate()
    {
        initiator.write_as(attribute, task as u32).await;
    }
    for (begun, ended) in [(2, 2), (3, 1), (4, 1), (5, 1)] {
        stage.until_begun(begun).await;
        assert!(initiator.is_silent().await);
        assert_eq!(stage.begun.load(Ordering::SeqCst), begun, "begun out of turn");
        stage.permits.add_permits(ended);
        for _ in 0..ended {
            assert_eq!(initiator.response().await.1, Status::Good as u8);
        }
    }
    // Nothing is left of it.
    initiator.write_as(command::SIMPLE, 5).await;
    initiator.write_as(command::SIMPLE, 6).await;
    stage.until_begun(7).await;
}

/// SAM-5, 8.6.4.
#[tokio::test]
async fn the_head_of_the_queue_waits_for_nobody_and_ordered_tasks_wait_for_it() {
    let stage = Stage::new(1 << 20);
    let mut initiator = stage.initiator().await;
    initiator.write_as(command::SIMPLE, 0).await;
    initiator.write_as(command::ORDERED, 1).await;
    initiator.write_as(command::HEAD_OF_QUEUE, 2).await;
    stage.until_begun(2).await;
    stage.permits.add_permits(1);
    assert_eq!(initiator.response().await, (0, Status::Good as u8));
    assert!(initiator.is_silent().await);
    assert_eq!(stage.begun.load(Ordering::SeqCst), 2, "begun before the head of the queue has ended");
    stage.permits.add_permits(2);
    assert_eq!(initiator.response().await, (2, Status::Good as u8));
    assert_eq!(initiator.response().await, (1, Status::Good as u8));
}

#[tokio::test]
async fn an_ordered_task_that_was_aborted_holds_up_nobody() {
    let stage = Stage::new(1 << 20);
    let mut initiator = stage.initiator().await;
    initiator.write_as(command::SIMPLE, 0).await;
    initiator.write_as(command::ORDERED, 1).await;
    initiator.write_as(command::SIMPLE, 2).await;
    assert!(initiator.is_silent().await);
    assert_eq!(stage.begun.load(Ordering::SeqCst), 1);
    initiator.manage(9, task_management::ABORT_TASK, 1).await;
    assert_eq!(initiator.managed().await, (9, task_management::COMPLETE));
    stage.until_begun(2).await;
}

/// Its data comes when the ordered task, and one behind it, wait already.
#[tokio::test]
async fn an_older_task_whose_data_comes_late_is_not_held_up_by_those_that_wait_for_it() {
    let stage = Stage::new(1 << 20);
    stage.permits.add_permits(9);
    let mut initiator = stage.initiator().await;
    initiator.command(0, command::WRITE | command::SIMPLE, BLOCK as u32, WRITE_ONE, &[]).await;
    initiator.write_as(command::ORDERED, 1).await;
    initiator.write_as(command::SIMPLE, 2).await;
    assert!(initiator.is_silent().await);
    let out = DataOut { flags: FINAL, task: 0, transfer: NO_TAG, ..DataOut::default() };
    initiator.send(out.encode(BLOCK), &[1; BLOCK]).await;
    for task in 0..3 {
        assert_eq!(initiator.response().await, (task, Status::Good as u8));
    }
}

#[tokio::test]
async fn data_of_a_task_is_not_asked_for_before_its_turn() {
    let stage = Stage::new(1 << 20);
    let mut initiator = stage.initiator().await;
    initiator.write_as(command::SIMPLE, 0).await;
    initiator.command(1, FINAL | command::WRITE | command::ORDERED, BLOCK as u32, WRITE_ONE, &[]).await;
    assert!(initiator.is_silent().await, "asked for what would take the room of older tasks");
    stage.permits.add_permits(2);
    assert_eq!(initiator.response().await, (0, Status::Good as u8));
    let asked = ReadyToTransfer::decode(&initiator.receive().await.0);
    let out = DataOut { flags: FINAL, task: 1, transfer: asked.transfer, ..DataOut::default() };
    initiator.send(out.encode(BLOCK), &[1; BLOCK]).await;
    assert_eq!(initiator.response().await, (1, Status::Good as u8));
}

/// What a command was refused for: additional sense code and qualifier.
async fn sense_code(initiator: &mut Initiator) -> u16 {
    let (bhs, data) = initiator.receive().await;
    let response = ScsiResponse::decode(&bhs);
    assert_eq!((pdu::opcode(&bhs), response.status), (ScsiResponse::OPCODE, Status::CheckCondition as u8));
    u16::from_be_bytes([data[2 + 12], data[2 + 13]])
}

#[tokio::test]
async fn an_attribute_that_there_is_not_is_refused() {
    let stage = Stage::new(1 << 20);
    let mut initiator = stage.initiator().await;
    for attribute in 4..8 {
        initiator.write_as(attribute, 1).await;
        assert_eq!(sense_code(&mut initiator).await, 0x4900, "attribute {attribute}");
    }
    assert_eq!(stage.begun.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_write_that_says_it_reads_is_refused_and_a_read_that_says_nothing_overflows() {
    let stage = Stage::new(1 << 20);
    let mut initiator = stage.initiator().await;
    initiator.command(1, FINAL | command::READ, BLOCK as u32, WRITE_ONE, &[]).await;
    assert_eq!(sense_code(&mut initiator).await, 0x0E03);
    assert_eq!(stage.begun.load(Ordering::SeqCst), 0);
    initiator.command(2, FINAL, 0, READ_ONE, &[]).await;
    let response = ScsiResponse::decode(&initiator.receive().await.0);
    assert_eq!(response.status, Status::Good as u8);
    assert_eq!((response.flags, response.residual), (FINAL | pdu::residual::OVERFLOW, BLOCK as u32));
}

/// RFC 7143, 11.6.1.
#[tokio::test]
async fn a_task_is_not_reassigned() {
    let stage = Stage::new(1 << 20);
    let mut initiator = stage.initiator().await;
    initiator.manage(1, task_management::TASK_REASSIGN, 7).await;
    assert_eq!(initiator.managed().await, (1, 4));
}

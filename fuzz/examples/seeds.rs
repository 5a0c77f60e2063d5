//! Writes the inputs with which fuzzing begins: what the program's own encoders make, in the form that the entry
//! points (`src/fuzzing`) take. What must be accepted is named `valid-…`; what fuzzing finds is named by its hash.

use std::fs;
use std::path::Path;

use umbra::format::entry::{Entry, EntryKind, ScanCursor, Slice};
use umbra::format::index::{Footer, Kind};
use umbra::format::log::{LogId, LogOp, RECORD_HEADER, RecordHeader, RecordPlace, SEGMENT_HEADER, SegmentHeader};
use umbra::format::marks::{
    Facts, GROUP_REGIONS, Header, LifeId, Mark, PAGE, PAGE_REGIONS, PAGE_WORDS, Page, PagePlace, Place, Runs, Stamp,
    Transaction, UNIT, groups,
};
use umbra::format::pack::PackBuilder;
use umbra::format::run::RunBuilder;
use umbra::format::volume::{Encryption, VolumeObject};
use umbra::format::{InstanceId, Keys, ObjectHash, ObjectRef, RunRecord, RunSource, Void, VolumeId};
use umbra::iscsi::pdu::{
    self, AsyncMessage, DataIn, DataOut, FINAL, LoginRequest, LoginResponse, LogoutRequest, LogoutResponse, NO_TAG,
    NopIn, NopOut, ReadyToTransfer, ScsiCommand, ScsiResponse, TaskManagementRequest, TextRequest, data_in, event,
    login, residual, task_management,
};
use umbra::nbd::wire::{
    self, Chunk, ContextQuery, InfoQuery, OptionHeader, OptionReply, Request, Run, SimpleReply, chunk, command, info,
    option, reply,
};
use umbra::units::{Block, EntryNumber, Generation, LogIndex, Mask, REGION, Sequence, Timestamp};

const VOLUME: VolumeId = VolumeId(*b"a fuzzed volume!");
const LOG: LogId = LogId(*b"fedcba9876543210");

fn main() {
    nbd_client();
    nbd_server();
    iscsi_target();
    iscsi_initiator();
    scsi();
    log_recovery();
    marks();
    pack();
    run();
    entry();
    config();
}

fn write(target: &str, name: &str, parts: &[&[u8]]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&folder).and_then(|()| fs::write(folder.join(name), parts.concat())).unwrap();
}

/// Answers of a target: they have the numbers that their commands will have.
struct Answers {
    bytes: Vec<u8>,
    status_sn: u32,
    command_sn_max: u32,
}

impl Answers {
    fn put(&mut self, bhs: [u8; 48], data: &[u8]) {
        self.bytes.extend(bhs);
        self.bytes.extend(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn next(&mut self) -> u32 {
        self.status_sn += 1;
        self.status_sn - 1
    }

    fn login(&mut self, flags: u8, text: &str) {
        let head = LoginResponse {
            flags,
            isid: [0x80, 0, 0, 0, 0, 1],
            tsih: 1,
            task: 1,
            status_sn: self.next(),
            expected_command_sn: 1,
            command_sn_max: self.command_sn_max,
            ..LoginResponse::default()
        };
        self.put(head.encode(text.len()), text.as_bytes());
    }

    /// All data of a read with its status.
    fn data(&mut self, task: u32, data: &[u8], missing: u32) {
        let head = DataIn {
            flags: FINAL | data_in::STATUS | if missing > 0 { residual::UNDERFLOW } else { 0 },
            task,
            transfer: NO_TAG,
            status_sn: self.next(),
            expected_command_sn: 1,
            command_sn_max: self.command_sn_max,
            residual: missing,
            ..DataIn::default()
        };
        self.put(head.encode(data.len()), data);
    }

    fn status(&mut self, task: u32, status: u8, sense: &[u8]) {
        let head = ScsiResponse {
            flags: FINAL,
            status,
            task,
            status_sn: self.next(),
            expected_command_sn: 1,
            command_sn_max: self.command_sn_max,
            ..ScsiResponse::default()
        };
        let data = if sense.is_empty() { vec![] } else { [&(sense.len() as u16).to_be_bytes()[..], sense].concat() };
        self.put(head.encode(data.len()), &data);
    }

    fn ask(&mut self, task: u32, offset: u32, length: u32, r2t_sn: u32) {
        let head = ReadyToTransfer {
            flags: FINAL,
            task,
            transfer: 9,
            status_sn: self.status_sn,
            expected_command_sn: 1,
            command_sn_max: self.command_sn_max,
            r2t_sn,
            offset,
            length,
            ..ReadyToTransfer::default()
        };
        self.put(head.encode(0), &[]);
    }
}

fn iscsi_target() {
    let begun = || Answers { bytes: Vec::new(), status_sn: 1, command_sn_max: 32 };
    let (security, operational) = (login::TRANSIT | login::OPERATIONAL, login::TRANSIT | 1 << 2 | login::FULL_FEATURE);

    // Reads of 4 KiB, 4 KiB and four of 64 KiB; GET LBA STATUS twice; writes; a flush; UNMAP; WRITE SAME.
    let mut known = begun();
    known.data(1, &[7; 4096], 0);
    known.data(2, &[7; 4096], 0);
    let sense = [0x70, 0, 3, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x11, 0, 0, 0, 0, 0];
    let attention = [0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x29, 0, 0, 0, 0, 0];
    // Other modes than before: unlike a reset, that does not end the session.
    let changed = [0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x2A, 1, 0, 0, 0, 0];
    for task in 3..7 {
        known.status(task, 2, &sense);
    }
    let question = NopIn {
        flags: FINAL,
        task: NO_TAG,
        transfer: 5,
        status_sn: known.status_sn,
        expected_command_sn: 1,
        command_sn_max: 32,
        lun: 0,
    };
    known.put(question.encode(0), &[]);
    let runs = |count: u32| {
        let mut answer = vec![0, 0, 0, 36, 0, 0, 0, 0];
        answer.extend([&0u64.to_be_bytes()[..], &count.to_be_bytes(), &[0; 4]].concat());
        answer.extend([&u64::from(count).to_be_bytes()[..], &4096u32.to_be_bytes(), &[1, 0, 0, 0]].concat());
        answer
    };
    known.data(7, &runs(8), 1032 - 40);
    known.data(8, &runs(2040), 1032 - 40);
    known.status(9, 0, &[]);
    for (part, task) in (10..14).enumerate() {
        known.ask(task, 8192, 65536 - 8192, 0);
        known.status(task, if part == 0 { 8 } else { 0 }, &[]);
    }
    for task in 14..20 {
        known.status(task, if task == 15 { 2 } else { 0 }, if task == 15 { &changed } else { &[] });
    }
    for task in 20..24 {
        known.status(task, 0, &[]);
    }
    for mode in [0x40, 0x41, 0x46] {
        write("iscsi_target", &format!("valid-commands-{mode:02x}"), &[&[mode], &known.bytes]);
    }

    let mut whole = begun();
    whole.login(security, "AuthMethod=None\0TargetPortalGroupTag=1\0");
    whole.login(operational, "InitialR2T=No\0ImmediateData=Yes\0MaxBurstLength=65536\0DefaultTime2Wait=2\0");
    let mut standard = [0; 36];
    (standard[2], standard[3], standard[4]) = (6, 2, 31);
    standard[8..16].copy_from_slice(b"VENDOR  ");
    whole.data(1, &standard, 0);
    whole.status(2, 2, &attention);
    whole.status(3, 0, &[]);
    let page = |number: u8, data: &[u8]| [&[0, number, 0, data.len() as u8], data].concat();
    let pages = [
        page(0x00, &[0x00, 0x80, 0x83, 0xB0, 0xB1, 0xB2]),
        page(0x80, b"serial"),
        page(0x83, &[1, 3, 0, 8, 0x60, 1, 2, 3, 4, 5, 6, 7]),
        page(0xB0, &[0, 0, 0, 8, 0, 0, 0, 128, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 1]),
        page(0xB1, &[0, 1]),
        page(0xB2, &[0, 0xE4, 2, 0]),
    ];
    for (task, page) in (4..).zip(&pages) {
        whole.data(task, page, 255 - page.len() as u32);
    }
    let mut capacity = [0; 32];
    (capacity[6], capacity[7], capacity[10], capacity[13], capacity[14]) = (7, 255, 2, 3, 0xC0);
    whole.data(10, &capacity, 0);
    whole.data(11, &[3, 0, 0x10, 0], 192 - 4);
    whole.data(12, &[0; 512], 0);
    whole.data(13, &[0, 3], 62);
    whole.data(14, &runs(8), 1032 - 40);
    whole.status(15, 0, &[]);
    let message = AsyncMessage {
        flags: FINAL,
        task: NO_TAG,
        status_sn: whole.next(),
        expected_command_sn: 1,
        command_sn_max: 32,
        event: event::LOGOUT_REQUESTED,
        parameters: [0, 0, 3],
        lun: 0,
    };
    let before = whole.bytes.clone();
    whole.put(message.encode(0), &[]);
    let left = LogoutResponse { flags: FINAL, task: 16, status_sn: whole.next(), ..LogoutResponse::default() };
    whole.put(left.encode(0), &[]);
    for mode in [0x10, 0x12, 0x15] {
        write("iscsi_target", &format!("whole-{mode:02x}"), &[&[mode], &whole.bytes]);
    }
    write("iscsi_target", "inspected", &[&[0x10], &before]);

    let mut chap = begun();
    chap.login(0, "AuthMethod=CHAP\0");
    chap.login(0, "CHAP_A=5\0CHAP_I=7\0CHAP_C=0x0102030405060708\0");
    chap.login(security, "CHAP_N=array\0CHAP_R=0x00000000000000000000000000000000\0");
    write("iscsi_target", "chap", &[&[0x08], &chap.bytes]);
    let mut moved = begun();
    moved.login(0, "TargetAddress=10.0.0.2:3261,1\0");
    moved.bytes[36] = 1;
    moved.bytes[37] = 1;
    write("iscsi_target", "valid-moved", &[&[0], &moved.bytes]);
}

fn with_data(head: pdu::Bhs, data: &[u8]) -> Vec<u8> {
    [&head, data, &[0; 4][..pdu::padding(data.len())]].concat()
}

/// A request that transits between two stages; with what it says.
fn log_in(from: u8, to: u8, keys: &[&str]) -> Vec<u8> {
    let text = keys.iter().flat_map(|key| [key.as_bytes(), &[0]].concat()).collect::<Vec<_>>();
    let flags = pdu::login::TRANSIT | from << 2 | to;
    let head = LoginRequest { flags, isid: [0x80, 0, 0, 0, 0, 1], command_sn: 1, ..Default::default() };
    with_data(head.encode(text.len()), &text)
}

/// Writes with data of all three kinds, reads it, and whatever else a session has.
fn session() -> Vec<u8> {
    use pdu::command::{READ, WRITE};
    use pdu::{FINAL, IMMEDIATE};
    let mut command_sn = 0;
    let mut ask = |flags: u8, expected: u32, cdb: &[u8], data: &[u8]| {
        command_sn += 1;
        let mut command = ScsiCommand { flags, task: command_sn, expected, command_sn, ..ScsiCommand::default() };
        command.cdb[..cdb.len()].copy_from_slice(cdb);
        with_data(command.encode(data.len()), data)
    };
    let mut said = [
        ask(FINAL, 0, &[0], &[]),
        ask(FINAL | READ, 96, &[0x12, 0, 0, 0, 96, 0], &[]),
        // Two blocks: the first comes with the command, the second is asked for by our first ready to transfer.
        ask(FINAL | WRITE, 1024, &[0x2A, 0, 0, 0, 0, 8, 0, 0, 2, 0], &[0x5a; 512]),
    ]
    .concat();
    let data = DataOut { flags: FINAL, task: 3, transfer: 0, offset: 512, ..DataOut::default() };
    said.extend(with_data(data.encode(512), &[0xa5; 512]));
    said.extend(ask(FINAL | READ, 1024, &[0x28, 0, 0, 0, 0, 8, 0, 0, 2, 0], &[]));
    said.extend(with_data(
        {
            let nop = NopOut { flags: FINAL, task: 77, transfer: NO_TAG, command_sn: 5, ..NopOut::default() };
            let mut head = nop.encode(3);
            head[0] |= IMMEDIATE;
            head
        },
        b"hey",
    ));
    let text = TextRequest { flags: FINAL, task: 5, transfer: NO_TAG, command_sn: 5, ..TextRequest::default() };
    said.extend(with_data(text.encode(16), b"SendTargets=All\0"));
    let function = FINAL | task_management::LOGICAL_UNIT_RESET;
    said.extend(TaskManagementRequest { function, task: 6, command_sn: 6, ..Default::default() }.encode(0));
    said.extend(LogoutRequest { reason: FINAL, task: 7, command_sn: 7, ..LogoutRequest::default() }.encode(0));
    said
}

fn iscsi_initiator() {
    let names = ["InitiatorName=iqn.2026-11.example:b", "TargetName=iqn.2026-11.example:disk0"];
    let digests = ["HeaderDigest=CRC32C", "DataDigest=CRC32C"];
    let plain = log_in(1, 3, &names);
    for (mode, name) in [(0, "whole"), (2, "in-pieces"), (7, "slow")] {
        write("iscsi_initiator", &format!("valid-{name}"), &[&[mode], &plain, &session()]);
    }
    write("iscsi_initiator", "valid-agreed", &[&[0x40], &session()]);
    write("iscsi_initiator", "valid-agreed-digests", &[&[0x70], &session()]);
    write("iscsi_initiator", "valid-digests", &[&[0x30], &log_in(1, 3, &[names, digests].concat()), &session()]);
    let discovery = log_in(1, 3, &[names[0], "SessionType=Discovery"]);
    let text = TextRequest { flags: pdu::FINAL, task: 1, transfer: NO_TAG, command_sn: 1, ..TextRequest::default() };
    let text = with_data(text.encode(16), b"SendTargets=All\0");
    let leave = LogoutRequest { reason: pdu::FINAL, task: 2, command_sn: 2, ..LogoutRequest::default() }.encode(0);
    write("iscsi_initiator", "valid-discovery", &[&[0], &discovery, &text, &leave]);
    // The entry point writes the answer to the challenge over the zeroes.
    let answer = "CHAP_R=0x00000000000000000000000000000000";
    let chap = [
        log_in(0, 1, &[names[0], names[1], "AuthMethod=CHAP,None"]),
        log_in(0, 1, &["CHAP_A=5"]),
        log_in(0, 1, &["CHAP_N=alice", answer, "CHAP_I=7", "CHAP_C=0x0102030405060708090a0b0c0d0e0f10"]),
        log_in(1, 3, &["MaxRecvDataSegmentLength=8192", "ImmediateData=Yes", "InitialR2T=Yes"]),
    ];
    write("iscsi_initiator", "valid-chap", &[&[8], &chap.concat(), &session()]);
}

fn scsi() {
    let ask = |cdb: &[u8], data: &[u8]| {
        let mut bytes = vec![0; 19];
        bytes[1..=cdb.len()].copy_from_slice(cdb);
        bytes[17..].copy_from_slice(&(data.len() as u16).to_le_bytes());
        [&bytes, data].concat()
    };
    let look = [
        ask(&[0x12, 0, 0, 0, 96, 0], &[]),
        ask(&[0x12, 1, 0x83, 0, 255, 0], &[]),
        ask(&[0x12, 1, 0xB0, 0, 64, 0], &[]),
        ask(&[0x1A, 0, 0x3F, 0, 255, 0], &[]),
        ask(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[]),
        ask(&[0x9E, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0], &[]),
        ask(&[0xA0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0], &[]),
        ask(&[0xA3, 0x0C, 0x80, 0, 0, 0, 0, 0, 255, 255, 0, 0], &[]),
        ask(&[0xA3, 0x0C, 0x01, 0x2A, 0, 0, 0, 0, 255, 255, 0, 0], &[]),
        ask(&[0xA3, 0x2A, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0], &[]),
    ];
    write("scsi", "valid-look", &look.each_ref().map(|command| &command[..]));
    let mut unmap = vec![0, 22, 0, 16, 0, 0, 0, 0];
    unmap.extend([0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0]);
    let blocks = [
        ask(&[0x2A, 0x08, 0, 0, 0, 2, 0, 0, 1, 0], &[0xA5; 512]),
        ask(&[0x28, 0x08, 0, 0, 0, 2, 0, 0, 1, 0], &[]),
        ask(&[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0], &[[0xA5; 512], [0x11; 512]].concat()),
        ask(&[0x8B, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0], &[0x22; 512]),
        ask(&[0x2F, 0x02, 0, 0, 0, 2, 0, 0, 1, 0], &[0x33; 512]),
        ask(&[0x93, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 9, 0, 0], &[0x44; 512]),
        ask(&[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], &unmap),
        ask(&[0x9E, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 40, 0, 0], &[]),
        ask(&[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[]),
    ];
    write("scsi", "valid-blocks", &blocks.each_ref().map(|command| &command[..]));
    let keys = |current: u8, new: u8| {
        let mut list = [0; 24];
        (list[7], list[15]) = (current, new);
        list
    };
    let reservations = [
        ask(&[0x5F, 0x00, 0, 0, 0, 0, 0, 0, 24, 0], &keys(0, 1)),
        ask(&[0x5F, 0x01, 0x05, 0, 0, 0, 0, 0, 24, 0], &keys(1, 0)),
        ask(&[0x5E, 0x03, 0, 0, 0, 0, 0, 1, 0, 0], &[]),
        ask(&[0x5F, 0x02, 0x05, 0, 0, 0, 0, 0, 24, 0], &keys(1, 0)),
        ask(&[0x5F, 0x03, 0, 0, 0, 0, 0, 0, 24, 0], &keys(1, 0)),
        ask(&[0x16, 0, 0, 0, 0, 0], &[]),
    ];
    write("scsi", "valid-reservations", &reservations.each_ref().map(|command| &command[..]));
    let select = [0, 0, 0, 0, 0x0A, 0x0A, 0x06, 0x10, 0x08, 0, 0, 0, 0, 0, 0, 0];
    write("scsi", "valid-mode", &[&ask(&[0x15, 0x10, 0, 0, 16, 0], &select)]);
}

fn keys() -> Keys {
    Keys::unencrypted(VOLUME)
}

fn object(number: u8) -> ObjectRef {
    let hash = ObjectHash([number; 32]);
    ObjectRef { generation: Generation(3), number: number.into(), length: 1000 + u64::from(number), hash }
}

fn ask(option: u32, data: &[u8]) -> Vec<u8> {
    [&OptionHeader { option, length: data.len() as u32 }.encode()[..], data].concat()
}

fn go() -> Vec<u8> {
    ask(
        option::GO,
        &InfoQuery { name: b"disk0", kinds: vec![info::NAME, info::DESCRIPTION, info::BLOCK_SIZE] }.encode(),
    )
}

fn contexts(option: u32) -> Vec<u8> {
    ask(option, &ContextQuery { name: b"disk0", queries: vec![b"base:allocation"] }.encode())
}

fn requests() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut cookie = 0;
    let mut send = |command, flags, offset, length: u32| {
        cookie += 1;
        bytes.extend(Request { flags, command, cookie, offset, length }.encode());
        if command == command::WRITE {
            bytes.extend(vec![cookie as u8; length as usize]);
        }
    };
    send(command::WRITE, command::FLAG_FUA, 4096, 512);
    send(command::READ, command::FLAG_DF, 0, 8192);
    send(command::READ, 0, 1 << 20, 8192);
    send(command::WRITE, 0, 1 << 30, 64);
    send(command::FLUSH, 0, 0, 0);
    send(command::TRIM, 0, 65536, 65536);
    send(command::WRITE_ZEROES, command::FLAG_NO_HOLE, 0, 4096);
    send(command::WRITE_ZEROES, command::FLAG_FAST_ZERO, 131_072, 65536);
    send(command::CACHE, 0, 0, 4096);
    send(command::BLOCK_STATUS, 0, 0, 1 << 20);
    send(command::BLOCK_STATUS, command::FLAG_REQ_ONE, 0, 1 << 20);
    send(99, 0, 0, 4096);
    send(command::DISC, 0, 0, 0);
    bytes
}

fn nbd_client() {
    let flags = 3u32.to_be_bytes();
    let structured = ask(option::STRUCTURED_REPLY, &[]);
    let look = [
        ask(option::LIST, &[]),
        ask(option::INFO, &InfoQuery { name: b"", kinds: vec![] }.encode()),
        ask(option::STARTTLS, &[]),
        contexts(option::LIST_META_CONTEXT),
        ask(option::ABORT, &[]),
    ]
    .concat();
    let transmission = requests();
    let set = contexts(option::SET_META_CONTEXT);
    for (mode, name) in [(0, "whole"), (2, "in-pieces"), (0x0c, "late"), (0x10, "plain"), (0x20, "two")] {
        write(
            "nbd_client",
            &format!("valid-structured-{name}"),
            &[&[mode], &flags, &structured, &set, &go(), &transmission],
        );
    }
    write("nbd_client", "valid-simple", &[&[0], &flags, &go(), &transmission]);
    write(
        "nbd_client",
        "valid-export-name",
        &[&[1], &1u32.to_be_bytes(), &ask(option::EXPORT_NAME, b"disk0"), &transmission],
    );
    write("nbd_client", "valid-looks", &[&[0x20], &flags, &structured, &look]);
    write("nbd_client", "valid-requests", &[&[0x48], &transmission]);
    write("nbd_client", "valid-requests-structured", &[&[0xc8], &transmission]);
}

fn answer(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    [&OptionReply { option, kind, length: data.len() as u32 }.encode()[..], data].concat()
}

fn nbd_server() {
    let told =
        |size: u64, flags: u16| [&info::EXPORT.to_be_bytes()[..], &size.to_be_bytes(), &flags.to_be_bytes()].concat();
    let sizes =
        [&info::BLOCK_SIZE.to_be_bytes()[..], [512u32, 4096, 65536].map(u32::to_be_bytes).as_flattened()].concat();
    let context = [&1u32.to_be_bytes()[..], b"base:allocation"].concat();
    let ack = |option| answer(option, reply::ACK, &[]);
    let greeting = wire::greeting(3);
    let structured = [
        ack(option::STRUCTURED_REPLY),
        answer(option::SET_META_CONTEXT, reply::META_CONTEXT, &context),
        ack(option::SET_META_CONTEXT),
        answer(option::GO, reply::INFO, &told(1 << 20, 0x0d6d)),
        answer(option::GO, reply::INFO, &sizes),
        ack(option::GO),
    ]
    .concat();
    let unable = [
        answer(option::STRUCTURED_REPLY, reply::ERR_UNSUP, b"no"),
        answer(option::GO, reply::ERR_UNSUP, b"no"),
        (1u64 << 20).to_be_bytes().to_vec(),
        0x0d6du16.to_be_bytes().to_vec(),
    ]
    .concat();
    let chunk = |kind, flags, cookie, payload: &[u8]| {
        [&Chunk { flags, kind, cookie, length: payload.len() as u32 }.encode()[..], payload].concat()
    };
    let at = |offset: u64, data: &[u8]| [&offset.to_be_bytes()[..], data].concat();
    let hole = |offset: u64, length: u32| [&offset.to_be_bytes()[..], &length.to_be_bytes()].concat();
    let last = (1u64 << 20) - 4096;
    let runs = [Run { length: 65536, state: 0 }, Run { length: 1 << 20, state: 3 }];
    let mut chunks = [
        chunk(chunk::OFFSET_DATA, chunk::FLAG_DONE, 1, &at(0, &[1; 4096])),
        chunk(chunk::OFFSET_DATA, 0, 2, &at(last, &[2; 512])),
        chunk(chunk::OFFSET_HOLE, 0, 2, &hole(last + 512, 3584)),
        chunk(chunk::NONE, chunk::FLAG_DONE, 2, &[]),
    ]
    .concat();
    for part in 0..4 {
        chunks.extend(chunk(chunk::OFFSET_HOLE, chunk::FLAG_DONE, 3 + part, &hole(part * 65536, 65536)));
    }
    chunks.extend(wire::status_chunk(7, 1, &runs));
    chunks.extend(wire::status_chunk(8, 1, &runs[1..]));
    chunks.extend(wire::error_chunk(9, wire::NbdError::EIO));
    for cookie in 10..16 {
        chunks.extend(SimpleReply { error: 0, cookie }.encode());
    }
    let mut simple = [&SimpleReply { error: 0, cookie: 1 }.encode()[..], &[1; 4096]].concat();
    for cookie in 2..16 {
        simple.extend(SimpleReply { error: if cookie > 8 { 0 } else { 5 }, cookie }.encode());
    }
    write("nbd_server", "valid-structured", &[&[0], &greeting, &structured, &chunks]);
    write("nbd_server", "valid-in-pieces", &[&[6], &greeting, &structured, &chunks]);
    write("nbd_server", "valid-unable", &[&[0], &greeting, &unable, &simple]);
    write(
        "nbd_server",
        "valid-old-flags",
        &[&[0], &wire::greeting(0), &unable[unable.len() - 10..], &[0; 124], &simple],
    );
    write(
        "nbd_server",
        "odd-unknown-export",
        &[
            &[0],
            &greeting,
            &structured[..20],
            &answer(option::SET_META_CONTEXT, reply::ERR_UNKNOWN, b""),
            &answer(option::GO, reply::ERR_UNKNOWN, b"none"),
        ],
    );
    write("nbd_server", "valid-replies", &[&[0xc0], &chunks]);
    write("nbd_server", "valid-simple-replies", &[&[0x40], &simple]);
}

/// One segment as the entry point takes it: all checksums are made right there.
fn segment(headers: [&SegmentHeader; 3], records: &[(u64, LogOp, u64)]) -> Vec<u8> {
    const FIRST_RECORD: u32 = 3 * SEGMENT_HEADER as u32;
    let mut bytes = vec![0x0f];
    let mut page = [0; SEGMENT_HEADER];
    for header in headers {
        header.encode_into(&mut page);
        bytes.extend(&page[..72]);
    }
    let own = headers[0];
    let mut space = Vec::new();
    for &(index, op, length) in records {
        let payload = if op.has_payload() { length.next_multiple_of(512) as u32 } else { 0 };
        let (index, sequence) = (LogIndex(index), Sequence(index * 10));
        let header = RecordHeader { index, sequence, op, offset: index.0 * 4096, length, payload, payload_crc: 0 };
        let position = FIRST_RECORD + space.len() as u32;
        let place = RecordPlace { log: own.log, epoch: own.epoch, lap: own.lap, position };
        let mut head = [0; RECORD_HEADER];
        header.encode_into(&place, &mut head);
        space.extend(head);
        space.extend(vec![index.0 as u8; payload as usize]);
    }
    bytes.extend((space.len() as u16).to_le_bytes());
    bytes.extend(space);
    bytes
}

fn log_recovery() {
    let header = |epoch, lap, first| SegmentHeader { log: LOG, volume: VOLUME, epoch, lap, first: LogIndex(first) };
    let (a, b, c) = (header(1, 1, 1), header(1, 2, 5), header(2, 3, 7));
    let first = segment(
        [&a, &a, &a],
        &[(1, LogOp::Write, 512), (2, LogOp::Trim, 1 << 40), (3, LogOp::ReadBack, 700), (4, LogOp::Zero, 4096)],
    );
    let second = segment(
        [&b, &b, &a],
        &[(5, LogOp::Ahead, 512), (6, LogOp::Scan, 1 << 20), (7, LogOp::Unreadable, 512), (8, LogOp::Write, 1)],
    );
    let third = segment([&c, &c, &b], &[(7, LogOp::Write, 512), (8, LogOp::Trim, 512)]);
    let other = SegmentHeader { volume: VolumeId([2; 16]), ..header(1, 4, 1) };
    let foreign = segment([&other, &other, &other], &[(1, LogOp::Zero, 512)]);
    let torn = segment([&header(2, 5, 9), &a, &c], &[]);
    write("log_recovery", "valid-one-segment", &[&[1, 1], &first]);
    write("log_recovery", "valid-a-chain", &[&[2, 2], &third, &foreign, &second, &first]);
    write("log_recovery", "valid-freed", &[&[2, 1], &second, &third]);
    write("log_recovery", "valid-torn", &[&[3, 1], &first, &torn, &second, &third]);
}

/// A piece of a marks' file as the entry point takes it: its CRC is made right there.
fn piece(kind: u8, number: u8, bytes: &[u8]) -> Vec<u8> {
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    [&[kind | 1 << 7, number], &(end as u16).to_le_bytes()[..], &bytes[..end]].concat()
}

fn marks() {
    let life = LifeId(*b"one life of many");
    let facts = |heartbeat| Facts { heartbeat, log: Some(LOG), relied_on: LogIndex(40) };
    let size = (2 * GROUP_REGIONS + 3 * PAGE_REGIONS) * REGION - 512;
    let header = |size: u64, ordinal, through, slot| {
        let stamps = vec![Stamp::new(ordinal, slot); groups(size) as usize];
        Header { life, facts: facts(5), volume: VOLUME, size, through, ordinal, opening: 2, stamps }
    };
    let transaction = |number: u64, after, last, runs: &[(Mark, std::ops::Range<u64>)]| {
        let mut body = Runs::default();
        assert!(runs.iter().all(|(mark, run)| body.push(*mark, run)));
        let place = Place { life, volume: VOLUME, number, after, last, opening: 2 };
        piece(3, number as u8, &Transaction::encode(&place, &facts(number), &body)[..UNIT - 4])
    };
    let page = |group: u32, slot: u32, page: u32, ordinal| {
        let mut bytes = [0; PAGE];
        let mut bits = Page { hot: [0; PAGE_WORDS], diverged: [0; PAGE_WORDS] };
        bits.hot[page as usize % PAGE_WORDS] = 0x8001;
        bits.diverged[3] = u64::from(ordinal);
        let place = PagePlace { life, volume: VOLUME, number: group * 16 + page };
        bits.encode_into(&place, Stamp::new(ordinal, slot), &mut bytes);
        piece(4, ((group * 2 + slot) * 16 + page) as u8, &bytes[..PAGE - 4])
    };
    let headers = |first: &Header, second: &Header| {
        [piece(0, 0, &first.encode()[..UNIT - 4]), piece(0, 1, &second.encode()[..UNIT - 4])].concat()
    };
    // Heats and diverges some; cools all but some; as much as fills several transactions.
    let changes = [[0b0101, 0, 30, 1, 4, 1], [0b1010, 70, 0, 0, 200, 2], [0b0111, 1, 3, 0, 0, 255]].concat();

    let small = header(77 * REGION, 3, 7, 1);
    let older = header(77 * REGION, 2, 0, 0);
    let ring = [
        transaction(8, 7, 8, &[(Mark::Heat, 1..5), (Mark::Diverge, 1..2), (Mark::Cool, 9..12)]),
        transaction(9, 8, 10, &[(Mark::Heat, 30..31), (Mark::Heat, 40..77)]),
        transaction(10, 8, 10, &[(Mark::Converge, 0..77)]),
    ]
    .concat();
    let one_page = page(0, 1, 0, 3);
    write("marks", "valid-small", &[&[2, 6], &headers(&older, &small), &one_page, &ring, &changes]);
    write("marks", "valid-grown", &[&[5, 6], &headers(&small, &small), &one_page, &ring, &changes]);
    write("marks", "odd-unreadable", &[&[2, 7], &headers(&small, &older), &one_page, &[5, 1, 0, 0], &ring, &changes]);
    write("marks", "odd-lost-batch", &[&[2, 4], &headers(&small, &older), &one_page, &ring[ring.len() / 2..]]);
    write("marks", "odd-short", &[&[2 | 1 << 7, 3], &headers(&small, &older), &one_page, &changes]);
    write("marks", "odd-absent", &[&[5, 0], &changes]);
    let last = Header { ordinal: Stamp::ORDINAL_MAX, ..header(77 * REGION, 3, 7, 1) };
    write("marks", "odd-last-ordinal", &[&[2, 3], &headers(&older, &last), &one_page, &changes]);
    let last = header(77 * REGION, 3, u64::MAX >> 1, 1);
    write("marks", "odd-last-number", &[&[2, 3], &headers(&older, &last), &one_page, &changes]);
    let large = header(size, 4, 250, 0);
    let some = [page(0, 0, 0, 4), page(0, 1, 0, 3), page(1, 0, 7, 4), page(2, 0, 2, 4)].concat();
    write("marks", "odd-large", &[&[5, 6], &headers(&large, &large), &some, &changes]);
}

fn pack() {
    let mut pack = PackBuilder::new(&keys(), Generation(3), 0x2b);
    let mixed: Vec<u8> = (0..512u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    pack.push_data(Block(5), 0, Mask::range(3, 1), &mixed).unwrap();
    pack.push_void(Block(5), 1, 0, Mask::range(8, 16), Void::Zero).unwrap();
    pack.push_data(Block(5), 1, Mask::range(3, 2), &[7; 1024]).unwrap();
    pack.push_void(Block(5), 1, 1, Mask(0b101), Void::Unreadable).unwrap();
    pack.push_void(Block(6), 1 << 20, 4, Mask::FULL, Void::Trimmed).unwrap();
    pack.push_data(Block(9), 5, Mask::FULL, &[9; 65536]).unwrap();
    let (bytes, object) = pack.finish();
    let footer = Footer::decode(&keys(), Kind::Pack, &object, &bytes).unwrap();
    let (data, page) = (&bytes[..footer.pages_at as usize], &bytes[footer.pages_at as usize..footer.table_at as usize]);
    write("pack", "valid-as-it-is", &[&[0], &bytes]);
    write("pack", "valid-sealed", &[&[1], &bytes]);
    write("pack", "valid-composed", &[&[2], &(data.len() as u16).to_le_bytes(), data, page]);
    let mut many = PackBuilder::new(&keys(), Generation(3), 0x2b);
    for block in 0..3000 {
        many.push_void(Block(block * 77), 1, (block % 16) as u8, Mask(1 << 100 | 1 << (block % 90)), Void::Zero)
            .unwrap();
    }
    let (bytes, _) = many.finish();
    // Of several pages only their directory is of interest.
    let footer = bytes.len() - 128;
    write("pack", "odd-directory", &[&[1], &bytes[footer - 100..]]);
}

fn run() {
    let mut run = RunBuilder::new(&keys(), Generation(3), 0x2b);
    run.pack(&object(1)).unwrap();
    run.pack(&object(2)).unwrap();
    for (first, count, mask, source) in [
        (5, 1, Mask::range(3, 1), RunSource::Pack(1)),
        (5, 1, Mask::range(8, 16), RunSource::Zero),
        (6, 2, Mask::FULL, RunSource::Pack(0)),
        (9, 1, Mask::range(0, 8), RunSource::Pack(0)),
        (9, 1, Mask::range(8, 8), RunSource::Pack(1)),
        (9, 1, Mask(1 << 100 | 1 << 127), RunSource::Unreadable),
        (100, 1 << 20, Mask::FULL, RunSource::Trimmed),
    ] {
        run.push(RunRecord { first: Block(first), count, mask, source }).unwrap();
    }
    let (bytes, object) = run.finish().unwrap();
    let footer = Footer::decode(&keys(), Kind::Run, &object, &bytes).unwrap();
    let (page, table) =
        (&bytes[..footer.table_at as usize], &bytes[footer.table_at as usize..footer.directory_at as usize]);
    write("run", "valid-as-it-is", &[&[0], &bytes]);
    write("run", "valid-sealed", &[&[1], &bytes]);
    write("run", "valid-composed", &[&[2], &(table.len() as u16 / 52).to_le_bytes(), table, page]);
}

fn entry() {
    let time = Timestamp(1_795_000_000_000);
    let full = Entry {
        number: EntryNumber(812),
        kind: EntryKind::Point,
        generation: Generation(3),
        instance: InstanceId([0x11; 16]),
        previous: ObjectHash([0x22; 32]),
        parent: EntryNumber(811),
        sequence: Sequence(1_000_001),
        time,
        heartbeat: 77,
        size: 1 << 30,
        draft: true,
        leaving: true,
        new_bytes: 4242,
        store: Some("file:8:1:42".into()),
        scan: Some(ScanCursor { front: 4 << 20 }),
        slices: vec![
            Slice { sequence: Sequence(1_000_000), time: Timestamp(time.0 - 1000) },
            Slice { sequence: Sequence(1_000_001), time },
        ],
        own: vec![object(1)],
        levels: [vec![object(2), object(200)], vec![object(3)], vec![object(4)], vec![object(5)]],
        base: Some(object(6)),
        detail: b"detail".to_vec(),
    };
    let plain = Entry {
        kind: EntryKind::Open,
        draft: false,
        leaving: false,
        scan: None,
        slices: Vec::new(),
        own: Vec::new(),
        levels: Default::default(),
        base: None,
        detail: Vec::new(),
        ..full.clone()
    };
    write("entry", "valid-as-it-is", &[&[0], &full.encode(&keys()).unwrap()]);
    write("entry", "valid-full", &[&[1], &full.encode(&keys()).unwrap()]);
    write("entry", "valid-open", &[&[1], &plain.encode(&keys()).unwrap()]);
    let volume = VolumeObject { id: VOLUME, created: time, encryption: Encryption::None }.encode(&keys());
    write("entry", "valid-volume-as-it-is", &[&[2], &volume]);
    write("entry", "valid-volume", &[&[3], &volume]);
    write("entry", "valid-name-object", &[&[4], VOLUME.to_name_object().as_bytes()]);
    write("entry", "valid-name", &[&[5], b"a.b_c-d0"]);
}

fn config() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proxy-configs");
    for file in fs::read_dir(examples).unwrap().map(|file| file.unwrap()) {
        let text = fs::read(file.path()).unwrap();
        write("config", &format!("valid-{}", file.file_name().to_string_lossy().replace(".toml", "")), &[&text]);
    }
    let odd = "state = \"s\"\nlisten.nbd = [\"unix:n.sock\", \"[::1]:0\", \"h:65535\"]\n\
        [remote]\nurl = \"az://c/p/q\"\noptions = { azure_storage_account_key = \"Xs3cr3tX\", x = 1 }\n\
        [[volume]]\nname = \"a\"\nstore = \"nbd+unix:///a%20b?socket=s.sock\"\nmax_age = \"1h 5m\"\n\
        [[volume]]\nname = \"b\"\nstore = \"nbd://[::1]:1/e\"\n\
        [[volume]]\nname = \"c\"\nstore = \"file:///x\"\ncreate = 65536\ndirect = true\n\
        [upload]\nrate = \"1.5 MiB\"\nparallel = 64\n[log]\nsize = \"8GiB\"\nsync = \"flush\"\n";
    write("config", "odd-values", &[odd.as_bytes()]);
    let right = odd.replace(", x = 1", "");
    write("config", "valid-right", &[right.as_bytes()]);
}

//! The disk in front of units that the test plays: what it makes of what they say, and what it sends them.

use std::collections::HashMap;
use std::sync::Mutex as StdMutex;

use super::super::command::Failure;
use super::super::link::{Completion, Residual, Transfer};
use super::super::unit::{Synchronizes, Unmaps, WritesSame};
use super::*;
use crate::iscsi::initiator::cdb::Form;
use crate::scsi::{Key, Received, Status};

/// Answers by operation code, and by service action or page where it has one.
type Answers = HashMap<(u8, u8), Result<Vec<u8>, (Key, u16)>>;

/// What was sent: the CDB, and the bytes of data-out.
type Sent = Arc<StdMutex<Vec<([u8; 16], Vec<u8>)>>>;

fn completion(answer: &Result<Vec<u8>, (Key, u16)>, room: u32) -> Completion {
    let (status, sense, data) = match answer {
        Ok(data) => (Status::Good, None, data.clone()),
        Err((key, code)) => {
            (Status::CheckCondition, Some(Received { key: *key as u8, code: *code, deferred: false }), Vec::new())
        }
    };
    let data = data[..data.len().min(room as usize)].to_vec();
    let residual = match room - data.len() as u32 {
        0 => Residual::None,
        missing => Residual::Under(missing),
    };
    Completion { status: Some(status), sense, data: data.into(), residual }
}

/// A unit that answers so, and else that it does not know the command; reads are answered with zeroes.
fn unit(answers: Answers) -> (mpsc::UnboundedSender<Job>, Sent) {
    let (sender, mut jobs) = mpsc::unbounded_channel::<Job>();
    let sent = Sent::default();
    let seen = sent.clone();
    tokio::spawn(async move {
        while let Some(Job { cdb, transfer, answer }) = jobs.recv().await {
            let (room, out) = match transfer {
                Transfer::None => (0, Vec::new()),
                Transfer::In(room) => (room, Vec::new()),
                Transfer::Out(data) => (0, data.to_vec()),
            };
            seen.lock().unwrap().push((cdb, out));
            let selector = match cdb[0] {
                0x12 if cdb[1] & 1 == 0 => 0xFF,
                0x12 => cdb[2],
                0xA3 => cdb[3],
                0x9E => cdb[1],
                _ => 0,
            };
            let unknown = Err((Key::IllegalRequest, 0x2000));
            let zeroes = Ok(vec![0; room as usize]);
            let found = match answers.get(&(cdb[0], selector)) {
                Some(Ok(data)) if data.is_empty() => &zeroes,
                Some(found) => found,
                None => &unknown,
            };
            let _ = answer.send(Ok(completion(found, room)));
        }
    });
    (sender, sent)
}

/// As little as a disk can be: SBC-2 without anything optional.
fn plain() -> Answers {
    let mut standard = vec![0; 36];
    standard[8..16].copy_from_slice(b"VENDOR  ");
    let capacity = [2047u32.to_be_bytes(), 512u32.to_be_bytes()].concat();
    HashMap::from([
        ((0x12, 0xFF), Ok(standard)),
        ((0x00, 0), Ok(vec![])),
        ((0x25, 0), Ok(capacity)),
        ((0x28, 0), Ok(vec![])),
        ((0x2A, 0), Ok(vec![])),
    ])
}

fn url() -> Url {
    format!("iscsi://array/{NAME}/0").parse().unwrap()
}

async fn look(answers: Answers) -> Result<Facts, UnitError> {
    inspect(&Direct { jobs: unit(answers).0, patience: Patience::NONE }, &url()).await
}

fn disk(facts: Facts, answers: Answers) -> (IscsiDisk, Sent) {
    let (jobs, sent) = unit(answers);
    let watch = Watch::default();
    let options = Options { url: url(), initiator: NAME.into(), isid: [0; 6], chap: None };
    let shared = Shared::new(options, facts, Duration::ZERO, Patience::NONE, watch, jobs);
    (IscsiDisk { shared: Arc::new(shared) }, sent)
}

fn facts() -> Facts {
    Facts {
        name: "disk0".into(),
        block_length: 512,
        blocks: 1 << 40,
        preferred: 4096,
        transfer_max: 128,
        form: Form::Sixteen,
        synchronize: Synchronizes::By(Form::Ten),
        unmap: Some(Unmaps { count_max: 100, granularity: 8, alignment: 0 }),
        write_same: Some(WritesSame { count_max: 1000, unmaps: true }),
        lba_status: false,
        unmapped_is_zero: true,
        read_only: false,
        fua: true,
        rotational: false,
    }
}

fn all_good() -> Answers {
    [0x28, 0x2A, 0x35, 0x42, 0x88, 0x8A, 0x93].map(|code| ((code, 0), Ok(vec![]))).into()
}

/// Addresses and counts of what was sent with 16 bytes.
fn runs(sent: &Sent) -> Vec<(u8, u64, u32)> {
    let number = |bytes: &[u8]| bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
    let sent = sent.lock().unwrap();
    sent.iter().map(|(cdb, _)| (cdb[0], number(&cdb[2..10]), number(&cdb[10..14]) as u32)).collect()
}

#[tokio::test]
async fn a_unit_that_knows_only_what_it_must_is_a_disk() {
    let facts = look(plain()).await.unwrap();
    let expected = Facts {
        name: url().to_string(),
        blocks: 2048,
        transfer_max: 2048,
        form: Form::Ten,
        synchronize: Synchronizes::Perhaps,
        unmap: None,
        write_same: None,
        unmapped_is_zero: false,
        fua: false,
        ..super::units::facts()
    };
    assert_eq!(facts, expected);
    let abilities = Abilities { flush: true, multi_conn: true, ..Abilities::default() };
    assert_eq!(facts.geometry().abilities, abilities);
}

#[tokio::test]
async fn what_is_no_disk_that_can_be_served_is_refused() {
    let with = async |key: (u8, u8), change: &dyn Fn(&mut Vec<u8>)| {
        let mut answers = plain();
        change(answers.get_mut(&key).unwrap().as_mut().unwrap());
        look(answers).await.unwrap_err()
    };
    let standard = (0x12, 0xFF);
    assert!(matches!(with(standard, &|data| data[0] = 5).await, UnitError::NoDisk { kind: 5, .. }));
    assert!(matches!(with(standard, &|data| data[0] = 0x7F).await, UnitError::NoSuchLun(0)));
    assert!(matches!(with(standard, &|data| data[0] = 0x20).await, UnitError::NoSuchLun(0)));
    assert!(matches!(with(standard, &|data| data[1] = 0x80).await, UnitError::Removable(0)));
    assert!(matches!(with(standard, &|data| data.truncate(3)).await, UnitError::Malformed(_)));
    for length in [520u32, 528, 1024, 0] {
        let error = with((0x25, 0), &|data| data[4..].copy_from_slice(&length.to_be_bytes())).await;
        assert!(matches!(error, UnitError::BlockLength(found) if found == length));
    }
    let mut answers = plain();
    answers.insert((0x00, 0), Err((Key::NotReady, 0x3A00)));
    let error = look(answers).await.unwrap_err();
    assert!(matches!(error, UnitError::Failed { command: "TEST UNIT READY", failure: Failure::Sense(_) }), "{error}");
    let mut answers = plain();
    answers.insert((0x9E, 0x10), Ok(vec![0xFF; 32]));
    assert!(matches!(look(answers).await.unwrap_err(), UnitError::Size(u64::MAX)));
    // It has more blocks than this command can say.
    let error = with((0x25, 0), &|data| data[..4].fill(0xFF)).await;
    assert!(matches!(error, UnitError::Size(0x1_0000_0000)), "{error}");
}

#[tokio::test]
async fn limits_and_abilities_are_those_that_the_unit_states() {
    let mut answers = plain();
    let page = |number: u8, data: &[u8]| Ok([&[0, number, 0, data.len() as u8], data].concat());
    answers.insert((0x12, 0x00), page(0x00, &[0x00, 0x83, 0xB0, 0xB1, 0xB2]));
    answers.insert((0x12, 0x83), page(0x83, &[1, 3, 0, 8, 0x60, 1, 2, 3, 4, 5, 6, 7]));
    let mut limits = [0; 60];
    (limits[3], limits[7], limits[19], limits[23], limits[27]) = (64, 200, 50, 1, 16);
    (limits[28], limits[31], limits[39]) = (0x80, 4, 77);
    answers.insert((0x12, 0xB0), page(0xB0, &limits));
    answers.insert((0x12, 0xB1), page(0xB1, &[0x1C, 0x20]));
    answers.insert((0x12, 0xB2), page(0xB2, &[0, 0xC0]));
    let mut capacity = vec![0; 32];
    (capacity[7], capacity[10], capacity[13], capacity[14]) = (255, 2, 3, 0xC0);
    answers.insert((0x9E, 0x10), Ok(capacity));
    answers.insert((0x88, 0), Ok(vec![]));
    answers.insert((0xA3, 0x35), Ok(vec![0, 3, 0, 0]));
    answers.insert((0x1A, 0), Ok(vec![3, 0, 0x90, 0]));
    let facts = look(answers).await.unwrap();
    let expected = Facts {
        name: "iscsi:naa.6001020304050607".into(),
        blocks: 256,
        preferred: 32768,
        transfer_max: 200,
        unmap: Some(Unmaps { count_max: 50, granularity: 16, alignment: 4 }),
        write_same: Some(WritesSame { count_max: 77, unmaps: true }),
        read_only: true,
        rotational: true,
        ..super::units::facts()
    };
    assert_eq!(facts, expected);
    let abilities = facts.geometry().abilities;
    assert!(abilities.read_only && abilities.flush && !abilities.trim && !abilities.write_zeroes && !abilities.fua);
}

#[tokio::test]
async fn what_is_too_large_for_the_unit_is_split() {
    let (disk, sent) = disk(facts(), all_good());
    let length = 300 * 512;
    assert_eq!(disk.read(512, length).await.unwrap().len(), length as usize);
    assert_eq!(runs(&sent), [(0x88, 1, 128), (0x88, 129, 128), (0x88, 257, 44)]);
    sent.lock().unwrap().clear();
    let data: Vec<u8> = (0..length).map(|at| (at / 512) as u8).collect();
    disk.write(512, data.clone().into(), true).await.unwrap();
    assert_eq!(runs(&sent), [(0x8A, 1, 128), (0x8A, 129, 128), (0x8A, 257, 44)]);
    let parts: Vec<_> = sent.lock().unwrap().drain(..).collect();
    assert!(parts.iter().all(|(cdb, _)| cdb[1] == 0x08), "FUA");
    assert_eq!(parts.into_iter().flat_map(|(_, data)| data).collect::<Vec<_>>(), data);
    // By the borders that it unmaps by, and durable by a flush.
    disk.trim(512, 250 * 512, true).await.unwrap();
    let lists: Vec<_> = sent.lock().unwrap().drain(..).collect();
    let named = lists[..3].iter().map(|(cdb, list)| (cdb[0], list[15], list[19])).collect::<Vec<_>>();
    assert_eq!(named, [(0x42, 1, 95), (0x42, 96, 96), (0x42, 192, 59)]);
    assert_eq!((lists.len(), lists[3].0[0]), (4, 0x35));
    disk.write_zeroes(0, 1500 * 512, ZeroMode::default(), false).await.unwrap();
    assert_eq!(runs(&sent), [(0x93, 0, 1000), (0x93, 1000, 500)]);
    assert!(sent.lock().unwrap().drain(..).all(|(cdb, data)| cdb[1] == 0x08 && data == vec![0; 512]));
    disk.write_zeroes(0, 512, ZeroMode { no_hole: true, fast_only: false }, false).await.unwrap();
    assert_eq!(sent.lock().unwrap()[0].0[1], 0, "no hole is left");
    let fast = disk.write_zeroes(0, 512, ZeroMode { no_hole: false, fast_only: true }, false).await;
    assert_eq!(fast, Err(DiskError::Refused(Errno::ENOTSUP)));
}

#[tokio::test]
async fn what_was_never_written_is_told_by_the_next_flush() {
    let (disk, _) = disk(facts(), all_good());
    disk.flush().await.unwrap();
    disk.shared.watch.deferred_error.store(true, Ordering::SeqCst);
    disk.write(0, vec![0; 512].into(), false).await.unwrap();
    assert_eq!(disk.flush().await, Err(DiskError::Io(Errno::EIO)));
    disk.flush().await.unwrap();
}

#[tokio::test]
async fn a_full_array_is_out_of_space() {
    let mut answers = all_good();
    answers.insert((0x8A, 0), Err((Key::DataProtect, 0x2707)));
    answers.insert((0x88, 0), Err((Key::MediumError, 0x1100)));
    let (disk, _) = disk(facts(), answers);
    assert_eq!(disk.write(0, vec![0; 512].into(), false).await, Err(DiskError::Io(Errno::ENOSPC)));
    assert_eq!(disk.read(0, 512).await, Err(DiskError::Io(Errno::EIO)));
}

#[tokio::test]
async fn a_unit_that_is_less_than_was_promised_is_not_used() {
    let (disk, _) = disk(facts(), all_good());
    let with = |change: fn(&mut Facts)| {
        let mut facts = facts();
        change(&mut facts);
        disk.shared.adopt(facts)
    };
    assert!(matches!(with(|facts| facts.name = "disk1".into()), Err(Changed::Name { .. })));
    assert!(matches!(with(|facts| facts.blocks -= 1), Err(Changed::Shrunk { .. })));
    assert!(matches!(with(|facts| facts.block_length = 4096), Err(Changed::BlockLength { .. })));
    assert!(matches!(with(|facts| facts.read_only = true), Err(Changed::Abilities { .. })));
    assert!(matches!(with(|facts| facts.unmap = None), Err(Changed::Abilities { .. })));
    assert!(matches!(with(|facts| facts.synchronize = Synchronizes::No), Err(Changed::Abilities { .. })));
    let before = disk.geometry();
    assert_eq!(with(|facts| (facts.blocks, facts.transfer_max) = (facts.blocks + 1, 64)), Ok(()));
    assert_eq!(disk.geometry(), before, "what has grown is taken up at the next start");
    assert_eq!(disk.shared.facts().transfer_max, 64);
}

/// An answer of REPORT SUPPORTED OPERATION CODES.
fn support(code: u8) -> Result<Vec<u8>, (Key, u16)> {
    Ok(vec![0, code, 0, 0])
}

#[tokio::test]
async fn a_unit_that_is_looked_at_is_not_made_to_tell_what_it_could_not_write() {
    const NO: (Key, u16) = (Key::IllegalRequest, 0x2400);
    for (ten, sixteen, expected) in [
        (support(3), support(1), Synchronizes::By(Form::Ten)),
        (support(1), support(3), Synchronizes::By(Form::Sixteen)),
        (support(1), support(1), Synchronizes::No),
        (support(0), support(0), Synchronizes::Perhaps),
        (Err(NO), Err(NO), Synchronizes::Perhaps),
    ] {
        let mut answers = plain();
        for code in [0x35, 0x91] {
            answers.insert((code, 0), Err((Key::MediumError, 0x0C00)));
        }
        answers.extend([((0xA3, 0x35), ten), ((0xA3, 0x91), sixteen)]);
        let (jobs, sent) = unit(answers);
        let facts = inspect(&Direct { jobs, patience: Patience::NONE }, &url()).await.unwrap();
        assert_eq!(facts.synchronize, expected);
        assert!(sent.lock().unwrap().iter().all(|(cdb, _)| ![0x35, 0x91].contains(&cdb[0])));
    }
}

#[tokio::test]
async fn a_unit_without_the_command_has_nothing_to_flush_and_any_other_failure_is_told() {
    let flush = async |synchronize, ten: Option<(Key, u16)>, sixteen: Option<(Key, u16)>| {
        let answer = |failure: Option<(Key, u16)>| failure.map_or(Ok(vec![]), Err);
        let answers = Answers::from([((0x35, 0), answer(ten)), ((0x91, 0), answer(sixteen))]);
        disk(Facts { synchronize, ..facts() }, answers).0.flush().await
    };
    let (unknown, medium) = (Some((Key::IllegalRequest, 0x2000)), Some((Key::MediumError, 0x0C00)));
    let (perhaps, known) = (Synchronizes::Perhaps, Synchronizes::By(Form::Ten));
    let failed = Err(DiskError::Io(Errno::EIO));
    assert_eq!(flush(perhaps, unknown, unknown).await, Ok(()));
    assert_eq!(flush(perhaps, unknown, medium).await, failed);
    assert_eq!(flush(perhaps, medium, None).await, failed);
    assert_eq!(flush(known, medium, None).await, failed);
    assert_eq!(flush(known, unknown, None).await, Err(DiskError::Io(Errno::ENOTSUP)), "it said that it knows it");
    // One that was not done says nothing of what is not on the medium.
    for code in [0x0401, 0x3A00] {
        let refused = Err(DiskError::Refused(Errno::EIO));
        assert_eq!(flush(known, Some((Key::NotReady, code)), None).await, refused);
    }
}

#[tokio::test]
async fn only_a_flush_tells_what_was_never_written() {
    let (disk, _) = disk(facts(), all_good());
    disk.shared.watch.deferred_error.store(true, Ordering::SeqCst);
    disk.trim(0, 4096, true).await.unwrap();
    assert_eq!(disk.flush().await, Err(DiskError::Io(Errno::EIO)));
}

#[tokio::test]
async fn a_failure_that_passes_is_no_answer() {
    let mut able = plain();
    let mut capacity = vec![0; 32];
    (capacity[7], capacity[10], capacity[14]) = (255, 2, 0xC0);
    able.extend([((0x9E, 0x10), Ok(capacity)), ((0x88, 0), Ok(vec![]))]);
    look(able.clone()).await.unwrap();
    for command in [(0x1A, 0), (0x5A, 0), (0x88, 0), (0x9E, 0x10), (0x9E, 0x12), (0xA3, 0x35), (0xA3, 0x93), (0x12, 0)]
    {
        let mut answers = able.clone();
        for failure in [(Key::HardwareError, 0x4400), (Key::AbortedCommand, 0), (Key::IllegalRequest, 0x2500)] {
            answers.insert(command, Err(failure));
            let looked = look(answers.clone()).await;
            assert!(matches!(looked, Err(UnitError::Failed { .. })), "{command:x?}: {looked:?}");
        }
    }
    // A first block that cannot be read.
    able.insert((0x88, 0), Err((Key::MediumError, 0x1100)));
    assert_eq!(look(able).await.unwrap().form, Form::Sixteen);
}

#[tokio::test]
async fn a_unit_that_does_not_know_what_it_supports_has_not_said_no() {
    let mut answers = plain();
    let page = |number: u8, data: &[u8]| Ok([&[0, number, 0, data.len() as u8], data].concat());
    answers.insert((0x12, 0x00), page(0x00, &[0x00, 0xB2]));
    answers.insert((0x12, 0xB2), page(0xB2, &[0, 0x40]));
    for (said, expected) in [(0, true), (1, false), (3, true), (5, false)] {
        answers.insert((0xA3, 0x93), support(said));
        assert_eq!(look(answers.clone()).await.unwrap().write_same.is_some(), expected, "SUPPORT = {said}");
    }
}

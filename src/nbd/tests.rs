//! The server against clients that behave, and against those that do not.

mod negotiation;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;

use super::negotiation::NegotiationError;
use super::session::{End, SessionError};
use super::testing::{Client, Outcome, Ram, SIZE, Serving, able, exports, serve, until};
use super::wire::command::*;
use super::wire::{self, ContextQuery, ExportFlags, InfoQuery, NbdError, chunk, info, option, reply};
use crate::disk::{Abilities, Disk, DiskError, Errno};

const REQ: u32 = crate::units::REQUEST_MAX;

fn one(disk: Arc<Ram>) -> (Client, Serving) {
    serve(exports(vec![("disk0", disk)]))
}

fn shared(change: impl FnOnce(&mut Ram)) -> Arc<Ram> {
    let mut ram = Ram::new();
    change(&mut ram);
    Arc::new(ram)
}

#[tokio::test]
async fn what_is_written_is_read_back_in_either_dialect() {
    for structured in [false, true] {
        let (mut client, serving) = one(shared(|_| ()));
        client.open(structured).await;
        let data: Vec<u8> = (0..300_000).map(|i| (i % 251) as u8).collect();
        client.send(WRITE, FLAG_FUA, 1, 1000, data.len() as u32).await;
        client.0.write_all(&data).await.unwrap();
        assert_eq!(client.simple().await, (1, 0));
        client.send(READ, 0, 2, 1000, data.len() as u32).await;
        if structured {
            let (head, payload) = client.chunk().await;
            assert_eq!((head.kind, head.cookie, head.is_last()), (chunk::OFFSET_DATA, 2, true));
            assert_eq!(payload[..8], 1000u64.to_be_bytes());
            assert!(payload[8..] == data);
        } else {
            assert_eq!(client.simple().await, (2, 0));
            let mut read = vec![0; data.len()];
            tokio::io::AsyncReadExt::read_exact(&mut client.0, &mut read).await.unwrap();
            assert!(read == data);
        }
        client.send(DISC, 0, 0, 0, 0).await;
        assert!(matches!(serving.task.await.unwrap(), Outcome::Ended(End::Disconnected)));
    }
}

#[tokio::test]
async fn requests_that_break_a_rule_get_the_error_that_nbdkit_gives() {
    let (mut client, _serving) = one(shared(|_| ()));
    client.open(true).await;
    let (inval, nospc) = (NbdError::EINVAL.0, NbdError::ENOSPC.0);
    for (command, flags, offset, length, expected) in [
        (READ, 0, 0, 0, inval),
        (WRITE, 0, 0, 0, nospc),
        (TRIM, 0, 0, 0, inval),
        (WRITE_ZEROES, 0, 0, 0, nospc),
        (CACHE, 0, 0, 0, inval),
        (BLOCK_STATUS, 0, 0, 0, inval),
        (READ, 0, SIZE, 1, inval),
        (READ, 0, u64::MAX, 512, inval),
        (WRITE, 0, SIZE - 1, 2, nospc),
        (TRIM, 0, SIZE, 512, inval),
        (WRITE_ZEROES, 0, SIZE, 512, nospc),
        (WRITE_ZEROES, 0, 0, u32::MAX, nospc),
        (READ, 0x80, 0, 512, inval),
        (READ, FLAG_NO_HOLE, 0, 512, inval),
        (READ, FLAG_REQ_ONE, 0, 512, inval),
        (WRITE, FLAG_DF, 0, 1, inval),
        (TRIM, FLAG_FAST_ZERO, 0, 512, inval),
        (WRITE_ZEROES, FLAG_FAST_ZERO, 0, 512, inval),
        (FLUSH, 0, 0, 1, inval),
        (FLUSH, 0, 1, 0, inval),
        (8, 0, 0, 512, inval),
        (0xffff, 0xffff, 0, 0, inval),
        (READ, FLAG_FUA | FLAG_DF, 0, 1 << 20, 0),
        (FLUSH, FLAG_FUA, 0, 0, 0),
        (CACHE, FLAG_FUA, 0, 512, 0),
        (TRIM, FLAG_FUA, 0, 512, 0),
        (WRITE_ZEROES, FLAG_NO_HOLE, 0, 512, 0),
    ] {
        client.send(command, flags, 77, offset, length).await;
        if command == WRITE {
            client.0.write_all(&vec![0; length as usize]).await.unwrap();
        }
        let error = if matches!(command, READ | BLOCK_STATUS) {
            let (head, payload) = client.chunk().await;
            assert_eq!(head.cookie, 77);
            if head.kind == chunk::ERROR { wire::decode_error(&payload).unwrap().0 } else { 0 }
        } else {
            let (cookie, error) = client.simple().await;
            assert_eq!(cookie, 77);
            error
        };
        assert_eq!(error, expected, "command {command}, flags {flags:#x}, {length} at {offset}");
    }
}

#[tokio::test]
async fn a_disk_that_can_do_nothing_is_asked_nothing() {
    let disk = shared(|ram| ram.geometry.abilities = Abilities { read_only: true, ..Abilities::default() });
    let (mut client, _serving) = one(disk.clone());
    client.open(false).await;
    let (inval, perm) = (NbdError::EINVAL.0, NbdError::EPERM.0);
    for (command, flags, length, expected) in [
        (WRITE, 0, 1, perm),
        (TRIM, 0, 1, perm),
        (WRITE_ZEROES, 0, 1, perm),
        (FLUSH, 0, 0, inval),
        (CACHE, 0, 1, inval),
        (BLOCK_STATUS, 0, 1, inval),
        (READ, FLAG_FUA, 1, inval),
        (READ, FLAG_DF, 1, inval),
    ] {
        client.send(command, flags, 5, 0, length).await;
        if command == WRITE {
            client.0.write_all(b"x").await.unwrap();
        }
        assert_eq!(client.simple().await, (5, expected), "command {command}");
    }
    assert_eq!(disk.begun.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn block_sizes_are_enforced_and_the_stream_stays_in_step() {
    let disk = shared(|ram| {
        ram.geometry.block.minimum = 512;
        ram.geometry.block.maximum = 4096;
    });
    let (mut client, serving) = one(disk);
    client.open(false).await;
    for (offset, length) in [(0u64, 513u32), (1, 512), (0, 8192)] {
        for command in [READ, WRITE] {
            client.send(command, 0, 1, offset, length).await;
            if command == WRITE {
                client.0.write_all(&vec![0xff; length as usize]).await.unwrap();
            }
            assert_eq!(client.simple().await, (1, NbdError::EINVAL.0), "{length} at {offset}");
        }
    }
    // Only payloads have a maximum.
    client.send(WRITE_ZEROES, 0, 2, 0, 8192).await;
    assert_eq!(client.simple().await, (2, 0));
    // A write that is too long to be skipped takes the connection with it.
    client.send(WRITE, 0, 3, 0, 2 * REQ + 1).await;
    assert!(matches!(serving.task.await.unwrap(), Outcome::Dropped(SessionError::TooLong(_))));
}

#[tokio::test]
async fn a_block_status_tells_holes_and_obeys_req_one() {
    let (mut client, _serving) = one(shared(|_| ()));
    client.open(true).await;
    for (flags, expected) in [(0, vec![(65536 - 512, 0), (65536, 3), (512, 0)]), (FLAG_REQ_ONE, vec![(65024, 0)])] {
        client.send(BLOCK_STATUS, flags, 1, 512, 131_072 - 512 + 512).await;
        let (context, runs) = wire::decode_status(&client.chunk().await.1).unwrap();
        assert_eq!(context, super::negotiation::CONTEXT);
        assert_eq!(runs.iter().map(|run| (run.length, run.state)).collect::<Vec<_>>(), expected);
    }
}

#[tokio::test]
async fn an_error_of_the_disk_reaches_the_client_and_nothing_else_happens() {
    let disk = shared(|_| ());
    let (mut client, _serving) = one(disk.clone());
    client.open(true).await;
    *disk.failure.lock().unwrap() = Some(DiskError::Io(Errno::ENOSPC));
    client.send(READ, 0, 1, 0, 512).await;
    assert_eq!(wire::decode_error(&client.chunk().await.1), Some(NbdError::ENOSPC));
    client.send(FLUSH, 0, 2, 0, 0).await;
    assert_eq!(client.simple().await, (2, NbdError::ENOSPC.0));
    *disk.failure.lock().unwrap() = None;
    client.send(FLUSH, 0, 3, 0, 0).await;
    assert_eq!(client.simple().await, (3, 0));
}

/// Counterexample 32.
#[tokio::test]
async fn a_disk_that_lost_its_store_closes_the_connection_instead_of_inventing_an_error() {
    for error in [DiskError::Lost, DiskError::Refused(Errno::ESHUTDOWN)] {
        let disk = shared(|ram| ram.failure = Some(error).into());
        let (mut client, serving) = one(disk);
        client.open(true).await;
        client.send(WRITE, 0, 1, 0, 1).await;
        client.0.write_all(b"x").await.unwrap();
        assert!(client.rest().await.is_empty());
        assert!(matches!(serving.task.await.unwrap(), Outcome::Dropped(SessionError::StoreLost)));
    }
}

/// Why a client is not told what it asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Untold {
    /// The store came back meanwhile.
    Lost,
    /// The same, and the session has ended by then.
    LostBefore,
    /// The client has left.
    Left,
}

#[tokio::test]
async fn an_error_of_a_flush_that_its_client_is_not_told_is_told_by_the_next_flush() {
    for (command, flags, error, expected) in [
        (FLUSH, 0, Errno::EIO, NbdError::EIO.0),
        (TRIM, FLAG_FUA, Errno::EIO, NbdError::EIO.0),
        (WRITE_ZEROES, FLAG_FUA, Errno::ENOTSUP, 0),
        (TRIM, 0, Errno::EIO, 0),
        (CACHE, 0, Errno::EIO, 0),
    ] {
        for untold in [Untold::Lost, Untold::LostBefore, Untold::Left] {
            let gate = Arc::new(Semaphore::new(0));
            let failure = Some(DiskError::Io(error));
            let disk = shared(|ram| (ram.gate, ram.failure) = (Some(gate.clone()), failure.into()));
            let all = exports(vec![("disk0", disk.clone())]);
            let (mut client, serving) = serve(all.clone());
            client.open(true).await;
            if untold == Untold::LostBefore {
                client.send(READ, 0, 1, 0, 512).await;
                until(|| disk.begun.load(Ordering::SeqCst) == 1).await;
            }
            let begun = disk.begun.load(Ordering::SeqCst) + 1;
            client.send(command, flags, 2, 0, if command == FLUSH { 0 } else { 512 }).await;
            until(|| disk.begun.load(Ordering::SeqCst) == begun).await;
            if untold == Untold::Left {
                drop(client);
            } else {
                disk.incarnation.store(1, Ordering::SeqCst);
                gate.add_permits(1);
                assert!(client.rest().await.is_empty());
            }
            gate.add_permits(2);
            assert!(matches!(serving.task.await.unwrap(), Outcome::Dropped(_)));
            *disk.failure.lock().unwrap() = None;
            let (mut client, _serving) = serve(all);
            client.open(true).await;
            for (cookie, expected) in [(3, expected), (4, 0)] {
                gate.add_permits(1);
                client.send(FLUSH, 0, cookie, 0, 0).await;
                assert_eq!(client.simple().await, (cookie, expected), "{command} {flags} {untold:?}");
            }
        }
    }
}

#[tokio::test]
async fn garbage_between_requests_ends_the_connection() {
    let (mut client, serving) = one(shared(|_| ()));
    client.open(false).await;
    client.0.write_all(&[0; 28]).await.unwrap();
    assert!(matches!(serving.task.await.unwrap(), Outcome::Dropped(SessionError::BadMagic)));
}

#[tokio::test]
async fn only_between_requests_may_a_client_hang_up() {
    for (bytes, clean) in [(0, true), (27, false), (28, false), (35, false)] {
        let (mut client, serving) = one(shared(|_| ()));
        client.open(false).await;
        let request = wire::Request { flags: 0, command: WRITE, cookie: 1, offset: 0, length: 10 };
        let message = [&request.encode()[..], &[0; 10]].concat();
        client.0.write_all(&message[..bytes]).await.unwrap();
        client.0.shutdown().await.unwrap();
        let outcome = serving.task.await.unwrap();
        match outcome {
            Outcome::Ended(End::Closed) => assert!(clean),
            Outcome::Dropped(SessionError::Truncated) => assert!(!clean),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn requests_are_answered_as_they_finish_and_all_before_a_disconnect() {
    let gate = Arc::new(Semaphore::new(0));
    let disk = shared(|ram| ram.gate = Some(gate.clone()));
    let (mut client, serving) = one(disk.clone());
    client.open(false).await;
    for cookie in 0..100 {
        client.send(WRITE, 0, cookie, cookie * 512, 512).await;
        client.0.write_all(&[0xaa; 512]).await.unwrap();
    }
    client.send(DISC, 0, 0, 0, 0).await;
    until(|| disk.begun.load(Ordering::SeqCst) >= 100).await;
    gate.add_permits(100);
    let mut cookies = Vec::new();
    for _ in 0..100 {
        let (cookie, error) = client.simple().await;
        assert_eq!(error, 0);
        cookies.push(cookie);
    }
    cookies.sort_unstable();
    assert_eq!(cookies, (0..100).collect::<Vec<_>>());
    assert!(matches!(serving.task.await.unwrap(), Outcome::Ended(End::Disconnected)));
}

#[tokio::test]
async fn what_was_begun_is_completed_when_the_client_is_gone() {
    for aborted in [false, true] {
        let gate = Arc::new(Semaphore::new(0));
        let disk = shared(|ram| ram.gate = Some(gate.clone()));
        let (mut client, serving) = one(disk.clone());
        client.open(false).await;
        for cookie in 0..10 {
            client.send(FLUSH, 0, cookie, 0, 0).await;
        }
        until(|| disk.begun.load(Ordering::SeqCst) >= 10).await;
        if aborted {
            serving.task.abort();
        } else {
            client.0.write_all(&[0; 28]).await.unwrap();
        }
        assert!(client.rest().await.is_empty());
        // While it costs memory it counts as a connection.
        assert_eq!(serving.task.is_finished(), aborted);
        assert_eq!(disk.completed.load(Ordering::SeqCst), 0);
        gate.add_permits(10);
        until(|| disk.completed.load(Ordering::SeqCst) >= 10).await;
        assert_eq!(serving.task.await.is_err(), aborted);
    }
}

#[tokio::test]
async fn a_stop_takes_nothing_new_and_answers_what_is_in_flight() {
    let gate = Arc::new(Semaphore::new(0));
    let disk = shared(|ram| ram.gate = Some(gate.clone()));
    let (mut client, serving) = one(disk.clone());
    client.open(false).await;
    client.send(FLUSH, 0, 1, 0, 0).await;
    until(|| disk.begun.load(Ordering::SeqCst) >= 1).await;
    serving.stop.send(true).unwrap();
    client.send(FLUSH, 0, 2, 0, 0).await;
    gate.add_permits(2);
    assert_eq!(client.simple().await, (1, 0));
    assert!(client.rest().await.is_empty());
    assert!(matches!(serving.task.await.unwrap(), Outcome::Ended(End::Stopped)));
    assert_eq!(disk.begun.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_client_that_fetches_no_replies_is_not_served_without_end() {
    let disk = shared(|_| ());
    let (mut client, serving) = one(disk.clone());
    client.open(false).await;
    let sender = async {
        for cookie in 0..1000 {
            client.send(READ, 0, cookie, 0, 1 << 20).await;
        }
    };
    let idle = async {
        let mut before = usize::MAX;
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        while before != disk.begun.load(Ordering::SeqCst) {
            before = disk.begun.load(Ordering::SeqCst);
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
        }
        before
    };
    tokio::select! {
        _ = sender => {}
        _ = std::future::pending::<()>() => {}
    }
    let begun = idle.await;
    assert!((60..=64).contains(&begun), "{begun} MiB were read for a client that took none");
    drop(client);
    assert!(matches!(serving.task.await.unwrap(), Outcome::Dropped(SessionError::Io(_))));
}

#[tokio::test]
async fn requests_in_flight_are_bounded_and_the_rest_come_later() {
    let gate = Arc::new(Semaphore::new(0));
    let disk = shared(|ram| ram.gate = Some(gate.clone()));
    let (mut client, _serving) = one(disk.clone());
    client.open(false).await;
    for cookie in 0..1500 {
        client.send(FLUSH, 0, cookie, 0, 0).await;
    }
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(disk.begun.load(Ordering::SeqCst), 1024);
    gate.add_permits(1500);
    for _ in 0..1500 {
        assert_eq!(client.simple().await.1, 0);
    }
}

#[tokio::test]
async fn a_read_of_a_wrong_length_never_reaches_the_wire() {
    struct Short(Ram);
    impl Disk for Short {
        fn geometry(&self) -> crate::disk::Geometry {
            self.0.geometry()
        }
        fn read(&self, offset: u64, length: u32) -> crate::disk::Pending<bytes::Bytes> {
            self.0.read(offset, length - 1)
        }
        fn write(&self, offset: u64, data: bytes::Bytes, fua: bool) -> crate::disk::Pending<()> {
            self.0.write(offset, data, fua)
        }
        fn flush(&self) -> crate::disk::Pending<()> {
            self.0.flush()
        }
        fn trim(&self, offset: u64, length: u64, fua: bool) -> crate::disk::Pending<()> {
            self.0.trim(offset, length, fua)
        }
        fn write_zeroes(&self, o: u64, l: u64, mode: crate::disk::ZeroMode, fua: bool) -> crate::disk::Pending<()> {
            self.0.write_zeroes(o, l, mode, fua)
        }
        fn cache(&self, offset: u64, length: u64) -> crate::disk::Pending<()> {
            self.0.cache(offset, length)
        }
        fn extents(&self, o: u64, l: u64, limit: usize) -> crate::disk::Pending<Vec<crate::disk::Extent>> {
            self.0.extents(o, l, limit)
        }
        fn identity(&self) -> crate::disk::Identity {
            self.0.identity()
        }
    }
    let (mut client, _serving) = serve(exports(vec![("short", Arc::new(Short(Ram::new())))]));
    client.open(false).await;
    client.send(READ, 0, 1, 0, 512).await;
    assert_eq!(client.simple().await, (1, NbdError::EIO.0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever comes after a handshake, the session ends by itself; nothing panics.
    /// Fault test 39.
    #[test]
    fn no_bytes_confuse_a_session(
        requests in proptest::collection::vec((any::<u16>(), 0u16..12, any::<u64>(), any::<u32>()), 0..40),
        small in any::<bool>(),
        garbage in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (mut client, serving) = one(shared(|_| ()));
            client.open(true).await;
            let mut bytes = Vec::new();
            for (flags, command, offset, length) in requests {
                let (offset, length) = if small { (offset % SIZE, length % 5000) } else { (offset, length) };
                bytes.extend(wire::Request { flags: flags & 0x3f, command, cookie: offset, offset, length }.encode());
                if command == WRITE && small {
                    bytes.resize(bytes.len() + length as usize, 0);
                }
            }
            bytes.extend(garbage);
            let (mut reader, mut writer) = tokio::io::split(client.0);
            let reading = async {
                let mut sink = Vec::new();
                let _ = tokio::io::AsyncReadExt::read_to_end(&mut reader, &mut sink).await;
            };
            let writing = async {
                let _ = writer.write_all(&bytes).await;
                let _ = writer.shutdown().await;
            };
            tokio::join!(reading, writing);
            assert!(!matches!(serving.task.await.unwrap(), Outcome::Left | Outcome::Refused(_)));
        });
    }

    /// Fault test 39.
    #[test]
    fn no_bytes_confuse_a_negotiation(
        options in proptest::collection::vec((0u32..12, proptest::collection::vec(any::<u8>(), 0..40)), 0..20),
        garbage in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (mut client, serving) = one(shared(|_| ()));
            client.greet(3).await;
            for (option, data) in options {
                let _ = client.0.write_all(&wire::OptionHeader { option, length: data.len() as u32 }.encode()).await;
                let _ = client.0.write_all(&data).await;
            }
            let _ = client.0.write_all(&garbage).await;
            let _ = client.0.shutdown().await;
            client.rest().await;
            serving.task.await.unwrap();
        });
    }
}

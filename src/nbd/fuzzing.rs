//! Peers that say anything: entry points of [`crate::fuzzing`].
//!
//! Neither a socket nor a runtime is needed: what the peer says lies in memory, and whoever waits although nothing
//! will come is found at once.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

use super::export::{Export, Exports};
use super::negotiation::{Agreed, negotiate};
use super::session::{self, End, SessionError};
use super::wire::{Chunk, InfoQuery, OptionHeader, OptionReply, Request, SimpleReply, command, option};
use crate::disk::{Abilities, BlockSizes, Disk, Extent, Geometry, Identity, MemoryDisk, Pending, ZeroMode};
use crate::task::drive;
use crate::units::{KIB, MIB};

pub(crate) use super::client::fuzzing::server;

/// Bits of the first byte of an input. The two lowest say in what pieces the rest comes.
mod mode {
    /// Nothing comes at every other attempt.
    pub const PAUSES: u8 = 1 << 2;
    /// The disk answers later, and not in order.
    pub const LATE: u8 = 1 << 3;
    /// The disk is only read, and has blocks of 4 KiB.
    pub const PLAIN: u8 = 1 << 4;
    /// There are two exports.
    pub const TWO: u8 = 1 << 5;
    /// No negotiation: the rest is requests.
    pub const AGREED: u8 = 1 << 6;
    /// Of what was agreed on without negotiation: structured replies.
    pub const STRUCTURED: u8 = 1 << 7;
}

const SIZE: u64 = MIB + 4 * KIB;
/// Requests of it get buffers of their own; small enough that an input full of reads takes no time.
const BLOCK_MAX: u32 = 256 * KIB as u32;

/// Serves a client that says `input`, and after it one that is as it should be.
pub(crate) fn client(input: &[u8]) -> bool {
    let Some((&mode, said)) = input.split_first() else { return false };
    let exports = exports(mode);
    let mut stream = Script::new(mode, said);
    let left = matches!(drive(serve(&mut stream, &exports, mode)), Served::Looked | Served::Session(Ok(_)));

    let query = InfoQuery { name: b"disk0", kinds: Vec::new() }.encode();
    let read = Request { flags: 0, command: command::READ, cookie: 7, offset: 4096, length: 8192 };
    let leave = Request { command: command::DISC, offset: 0, length: 0, ..read };
    let go = OptionHeader { option: option::GO, length: query.len() as u32 }.encode();
    let said = [&3u32.to_be_bytes()[..], &go, &query, &read.encode(), &leave.encode()].concat();
    let mut stream = Script::new(0, &said);
    let end = drive(serve(&mut stream, &exports, 0));
    assert!(matches!(end, Served::Session(Ok(End::Disconnected))), "a client is not served after another: {end:?}");
    assert_eq!(stream.replies.count, 1);
    left
}

/// What became of a connection.
#[derive(Debug)]
enum Served {
    /// It left without opening an export.
    Looked,
    Refused,
    Session(Result<End, SessionError>),
}

async fn serve(stream: &mut Script<'_>, exports: &Exports, mode: u8) -> Served {
    let agreed = if mode & mode::AGREED != 0 {
        let Some(export) = exports.find(b"disk0") else { return Served::Refused };
        let (geometry, structured_replies) = (export.disk.geometry(), mode & mode::STRUCTURED != 0);
        Agreed { export, geometry, structured_replies, block_status: structured_replies }
    } else {
        let agreed = negotiate(stream, exports).await;
        stream.check_negotiation();
        match agreed {
            Ok(Some(agreed)) => agreed,
            Ok(None) => return Served::Looked,
            Err(_) => return Served::Refused,
        }
    };
    stream.replies.expected = Some(agreed.structured_replies);
    let (_go_on, stop) = watch::channel(false);
    let end = session::serve(&mut *stream, agreed, stop).await;
    stream.check_replies(end.is_ok());
    Served::Session(end)
}

fn exports(mode: u8) -> Exports {
    let exports = Exports::default();
    for name in ["disk0", "another"].into_iter().take(1 + usize::from(mode & mode::TWO != 0)) {
        let able = MemoryDisk::new(SIZE).geometry();
        let block = BlockSizes { maximum: BLOCK_MAX, ..able.block };
        let disk = MemoryDisk::with_geometry(if mode & mode::PLAIN == 0 {
            Geometry { block, ..able }
        } else {
            let abilities = Abilities { read_only: true, ..Abilities::default() };
            Geometry { size: SIZE, block: BlockSizes { minimum: 4096, ..block }, abilities }
        });
        let disk: Arc<dyn Disk> =
            if mode & mode::LATE == 0 { Arc::new(disk) } else { Arc::new(Late { disk, begun: AtomicUsize::new(0) }) };
        let export = Export { name: name.into(), description: "of the fuzzer".into(), disk };
        assert!(exports.add(export).is_ok());
    }
    exports
}

/// A connection to a peer that says what was written down for it, and hangs up.
pub(super) struct Script<'a> {
    said: &'a [u8],
    piece: usize,
    pauses: bool,
    paused: bool,
    /// What was said to the peer before `replies` were expected.
    heard: Vec<u8>,
    replies: Replies,
    /// Requests that the peer can have sent at most.
    requests_max: usize,
}

/// What was answered to requests: messages are counted, payloads passed over.
#[derive(Default)]
struct Replies {
    /// Whether reads are answered in chunks; none before transmission.
    expected: Option<bool>,
    head: Vec<u8>,
    payload: usize,
    count: usize,
}

impl<'a> Script<'a> {
    pub fn new(mode: u8, said: &'a [u8]) -> Self {
        let piece = [usize::MAX, 4096, 29, 1][usize::from(mode & 3)];
        let pauses = mode & mode::PAUSES != 0;
        let requests_max = said.len() / Request::LENGTH;
        Self { said, piece, pauses, paused: false, heard: Vec::new(), replies: Replies::default(), requests_max }
    }

    /// Whether it is the peer's turn to let us wait.
    fn pauses(&mut self, cx: &Context<'_>) -> bool {
        self.paused = self.pauses && !self.paused;
        if self.paused {
            cx.waker().wake_by_ref();
        }
        self.paused
    }

    /// A greeting, replies to options, perhaps the answer to `EXPORT_NAME`, and nothing else.
    fn check_negotiation(&self) {
        let Some((_, mut rest)) = self.heard.split_at_checked(18) else { panic!("no greeting") };
        while let Some((head, behind)) = rest.split_first_chunk()
            && let Some(reply) = OptionReply::decode(head)
        {
            let Some((_, behind)) = behind.split_at_checked(reply.length as usize) else {
                panic!("cut off: {reply:?}")
            };
            rest = behind;
        }
        assert!([0, 10, 134].contains(&rest.len()), "{rest:?} is no answer");
    }

    fn check_replies(&self, complete: bool) {
        let Replies { head, payload, count, .. } = &self.replies;
        assert!(*count <= self.requests_max, "{count} replies to {} requests", self.requests_max);
        assert!(!complete || (head.is_empty() && *payload == 0), "the last reply is cut off");
    }
}

impl Replies {
    fn hear(&mut self, mut bytes: &[u8]) {
        while let Some(structured) = self.expected
            && !bytes.is_empty()
        {
            let skipped = self.payload.min(bytes.len());
            self.payload -= skipped;
            bytes = &bytes[skipped..];
            // Data without a length of its own: only as many replies as there are can be told.
            let Some((byte, rest)) = bytes.split_first() else { return };
            self.head.push(*byte);
            bytes = rest;
            if let Some(simple) = self.head.first_chunk().and_then(SimpleReply::decode) {
                self.count += 1;
                self.head.clear();
                if !structured && simple.error == 0 {
                    self.expected = None;
                }
            } else if let Some(head) = self.head.first_chunk::<{ Chunk::LENGTH }>() {
                let Some(chunk) = Chunk::decode(head) else { panic!("{head:?} is no reply") };
                assert!(structured && chunk.is_last());
                self.count += 1;
                self.payload = chunk.length as usize;
                self.head.clear();
            }
        }
    }
}

impl AsyncRead for Script<'_> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.pauses(cx) {
            return Poll::Pending;
        }
        let (piece, rest) = self.said.split_at(self.piece.min(self.said.len()).min(buffer.remaining()));
        buffer.put_slice(piece);
        self.said = rest;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Script<'_> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.pauses(cx) {
            return Poll::Pending;
        }
        let taken = &bytes[..self.piece.saturating_mul(64).min(bytes.len())];
        if self.replies.expected.is_some() {
            self.replies.hear(taken)
        } else {
            self.heard.extend_from_slice(taken)
        }
        Poll::Ready(Ok(taken.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Does everything at once, and answers some of it later than what came after it.
struct Late {
    disk: MemoryDisk,
    begun: AtomicUsize,
}

impl Late {
    fn later<T: Send + Unpin + 'static>(&self, answer: Pending<T>) -> Pending<T> {
        let mut rounds = [0, 3, 1, 0, 5][self.begun.fetch_add(1, Ordering::SeqCst) % 5];
        if rounds == 0 {
            return answer;
        }
        Pending::later(async move {
            std::future::poll_fn(|cx| {
                if rounds == 0 {
                    return Poll::Ready(());
                }
                rounds -= 1;
                cx.waker().wake_by_ref();
                Poll::Pending
            })
            .await;
            answer.await
        })
    }
}

impl Disk for Late {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }
    fn read(&self, offset: u64, length: u32) -> Pending<Bytes> {
        self.later(self.disk.read(offset, length))
    }
    fn write(&self, offset: u64, data: Bytes, fua: bool) -> Pending<()> {
        self.later(self.disk.write(offset, data, fua))
    }
    fn flush(&self) -> Pending<()> {
        self.later(self.disk.flush())
    }
    fn trim(&self, offset: u64, length: u64, fua: bool) -> Pending<()> {
        self.later(self.disk.trim(offset, length, fua))
    }
    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode, fua: bool) -> Pending<()> {
        self.later(self.disk.write_zeroes(offset, length, mode, fua))
    }
    fn cache(&self, offset: u64, length: u64) -> Pending<()> {
        self.later(self.disk.cache(offset, length))
    }
    fn extents(&self, offset: u64, length: u64, limit: usize) -> Pending<Vec<Extent>> {
        self.later(self.disk.extents(offset, length, limit))
    }
    fn identity(&self) -> Identity {
        self.disk.identity()
    }
}

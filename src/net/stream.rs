//! A connection's bytes: the socket, and what was received but not taken, or queued but not sent.
//!
//! [`Inbox`] and [`Outbox`] exist so that many messages cost one system call and payloads are not copied: a payload
//! is a slice of the buffer that it was received into, or has a buffer of its own; what is sent is gathered. What stands
//! in a file that the kernel has in memory is sent from there.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use rustix::fs::sendfile;
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::disk::{Disk, FileRange, Pending};

/// What is received at once: some requests of the usual 128 KiB, or thousands of small ones.
const CHUNK: usize = 512 * 1024;
/// A payload at least this long that does not fit behind what is there gets a buffer of its own; below, copying the
/// part that is already there is cheaper.
const OWN_BUFFER_MIN: usize = 128 * 1024;
/// With less room than this a new chunk is begun, if no more than this must move to it.
const ROOM_MIN: usize = 16 * 1024;
/// Copying this much costs less than a slice of its own in a gathered send.
const COPY_MAX: usize = 8 * 1024;
/// Slices of one gathered send; Linux takes at most 1024.
const SLICES_MAX: usize = 64;

/// What a unix socket is asked to hold, of what is sent: the kernel gives as much of it as the system allows, which is
/// twice what it gives unasked. The fewer pieces a batch of replies takes, the fewer times the two sides wake each other.
const SEND_BUFFER: usize = 1024 * 1024;

/// A peer that vanished without a word is noticed after about half a minute: idle, then probes.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;
/// Likewise while something sent is not acknowledged.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(30);

/// A socket of either family.
#[derive(Debug)]
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// Takes a TCP socket as it is needed here: nothing held back, and a dead peer noticed.
    pub fn tcp(socket: TcpStream) -> io::Result<Self> {
        socket.set_nodelay(true)?;
        sockopt::set_socket_keepalive(&socket, true)?;
        sockopt::set_tcp_keepidle(&socket, KEEPALIVE_IDLE)?;
        sockopt::set_tcp_keepintvl(&socket, KEEPALIVE_INTERVAL)?;
        sockopt::set_tcp_keepcnt(&socket, KEEPALIVE_PROBES)?;
        sockopt::set_tcp_user_timeout(&socket, UNACKNOWLEDGED_MAX.as_millis() as u32)?;
        Ok(Self::Tcp(socket))
    }

    pub fn unix(socket: UnixStream) -> io::Result<Self> {
        sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER)?;
        Ok(Self::Unix(socket))
    }
}

/// Does the same with the socket of either family.
macro_rules! either {
    ($stream:expr, $socket:ident => $action:expr) => {
        match $stream.get_mut() {
            Stream::Tcp($socket) => $action,
            Stream::Unix($socket) => $action,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self, socket => Pin::new(socket).poll_read(cx, buffer))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, socket => Pin::new(socket).poll_write(cx, bytes))
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, socket => Pin::new(socket).poll_write_vectored(cx, slices))
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, socket => Pin::new(socket).poll_flush(cx))
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, socket => Pin::new(socket).poll_shutdown(cx))
    }
}

/// A stream to which the kernel can send from a file by itself.
pub(crate) trait SendFile: AsyncWrite {
    /// Answers how many bytes it sent; an error is of the file or of the stream, and sent nothing.
    fn poll_send_file(self: Pin<&mut Self>, _: &mut Context<'_>, _: &FileRange) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }
}

impl SendFile for Stream {
    fn poll_send_file(self: Pin<&mut Self>, cx: &mut Context<'_>, range: &FileRange) -> Poll<io::Result<usize>> {
        either!(self, socket => loop {
            ready!(socket.poll_write_ready(cx))?;
            let send = || {
                let mut offset = range.offset;
                Ok(sendfile(&*socket, range.disk.file(), Some(&mut offset), range.length as usize)?)
            };
            match socket.try_io(Interest::WRITABLE, send) {
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                sent => return Poll::Ready(sent),
            }
        })
    }
}

impl<S: SendFile + Unpin + ?Sized> SendFile for &mut S {
    fn poll_send_file(mut self: Pin<&mut Self>, cx: &mut Context<'_>, range: &FileRange) -> Poll<io::Result<usize>> {
        Pin::new(&mut **self).poll_send_file(cx, range)
    }
}

#[cfg(test)]
impl SendFile for tokio::io::DuplexStream {}

/// What was received and not yet taken.
#[derive(Default)]
pub(crate) struct Inbox {
    /// Empty while `large` is some.
    buffer: BytesMut,
    large: Option<Large>,
}

/// A payload under way into a buffer of its own, of exactly its length.
struct Large {
    data: BytesMut,
    length: usize,
}

impl Inbox {
    /// The first `N` bytes, if they are there.
    pub fn peek<const N: usize>(&self) -> Option<&[u8; N]> {
        self.buffer.first_chunk()
    }

    /// Drops `count` bytes that were seen by [`peek`](Self::peek).
    pub fn skip(&mut self, count: usize) {
        self.buffer.advance(count);
    }

    /// Drops up to `count` bytes; answers how many of them are still to come.
    pub fn discard(&mut self, count: usize) -> usize {
        let there = count.min(self.buffer.len());
        self.buffer.advance(there);
        count - there
    }

    /// Nothing is left of what was received.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty() && self.large.is_none()
    }

    /// The next `length` bytes, once they are all there; until then, whoever was told none asks for the same again.
    /// Memory for them is set aside here: the caller has checked the length.
    pub fn take(&mut self, length: usize) -> Option<Bytes> {
        if let Some(large) = &self.large {
            debug_assert_eq!(large.length, length);
            if large.data.len() < large.length {
                return None;
            }
            return self.large.take().map(|large| large.data.freeze());
        }
        if self.buffer.len() >= length {
            return Some(self.buffer.split_to(length).freeze());
        }
        if self.buffer.capacity() < length {
            if length < OWN_BUFFER_MIN {
                self.buffer.reserve(CHUNK);
            } else {
                let mut data = BytesMut::with_capacity(length);
                data.extend_from_slice(&self.buffer);
                self.buffer.clear();
                self.large = Some(Large { data, length });
            }
        }
        None
    }

    /// Receives what is there. `Ready(0)` is the end of the stream.
    pub fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut (impl AsyncRead + Unpin),
    ) -> Poll<io::Result<usize>> {
        if let Some(large) = &mut self.large {
            let rest = large.length - large.data.len();
            return pin!(stream.read_buf(&mut (&mut large.data).limit(rest))).poll(cx);
        }
        let room = self.buffer.capacity() - self.buffer.len();
        if room == 0 || (room < ROOM_MIN && self.buffer.len() < ROOM_MIN) {
            self.buffer.reserve(CHUNK);
        }
        pin!(stream.read_buf(&mut self.buffer)).poll(cx)
    }
}

/// What is queued and not yet sent, in order.
#[derive(Default)]
pub(crate) struct Outbox {
    sealed: VecDeque<Part>,
    /// Comes after all that is sealed; small messages gather here.
    tail: BytesMut,
    length: usize,
}

enum Part {
    Bytes(Bytes),
    File(FileRange),
    /// Of a file, but the kernel does not have it in memory any more.
    Read(Pending<Bytes>),
}

impl Part {
    fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            Self::File(_) | Self::Read(_) => None,
        }
    }
}

impl Outbox {
    /// Bytes queued.
    pub fn len(&self) -> usize {
        self.length
    }

    pub fn put(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        self.length += bytes.len();
    }

    /// Queues a payload, without a copy if it is long.
    pub fn put_payload(&mut self, data: Bytes) {
        if data.len() <= COPY_MAX {
            return self.put(&data);
        }
        self.length += data.len();
        self.seal(Part::Bytes(data));
    }

    /// Queues a payload that the kernel sends from where it stands.
    pub fn put_file(&mut self, range: FileRange) {
        self.length += range.length as usize;
        self.seal(Part::File(range));
    }

    fn seal(&mut self, part: Part) {
        if !self.tail.is_empty() {
            self.sealed.push_back(Part::Bytes(self.tail.split().freeze()));
        }
        self.sealed.push_back(part);
    }

    /// Sends; ready when nothing is left.
    pub fn poll_send(&mut self, cx: &mut Context<'_>, stream: &mut (impl SendFile + Unpin)) -> Poll<io::Result<()>> {
        while self.length > 0 {
            match self.sealed.front_mut() {
                Some(Part::File(range)) => {
                    let Poll::Ready(sent) = poll_send_range(range, cx, stream)? else { return Poll::Pending };
                    self.length -= sent.unwrap_or(0);
                    match sent {
                        None => self.sealed[0] = Part::Read(range.disk.read(range.offset, range.length)),
                        Some(_) if range.length == 0 => drop(self.sealed.pop_front()),
                        Some(_) => {}
                    }
                    continue;
                }
                Some(Part::Read(read)) => {
                    let data = ready!(Pin::new(read).poll(cx)).map_err(io::Error::other)?;
                    self.sealed[0] = Part::Bytes(data);
                }
                _ => {}
            }
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let queued = self.sealed.iter().map(Part::bytes).chain([Some(&self.tail[..])]).map_while(|bytes| bytes);
            let mut count = 0;
            for (slice, bytes) in slices.iter_mut().zip(queued) {
                *slice = IoSlice::new(bytes);
                count += 1;
            }
            let sent = ready!(Pin::new(&mut *stream).poll_write_vectored(cx, &slices[..count]))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.drop_sent(sent);
        }
        Poll::Ready(Ok(()))
    }

    fn drop_sent(&mut self, mut sent: usize) {
        self.length -= sent;
        while let Some(Part::Bytes(first)) = self.sealed.front_mut() {
            if sent < first.len() {
                return first.advance(sent);
            }
            sent -= first.len();
            self.sealed.pop_front();
        }
        if sent == self.tail.len() { self.tail.clear() } else { self.tail.advance(sent) }
    }
}

/// Sends from a file, and answers how much; none if that is to be read first. Whether the file or the stream is at
/// fault then shows by itself.
fn poll_send_range(
    range: &mut FileRange,
    cx: &mut Context<'_>,
    stream: &mut (impl SendFile + Unpin),
) -> Poll<io::Result<Option<usize>>> {
    // It may have waited long, and nobody else shall wait for a disk here.
    if range.disk.resident(range.offset, range.length).is_none() {
        return Poll::Ready(Ok(None));
    }
    Poll::Ready(match ready!(Pin::new(stream).poll_send_file(cx, range)) {
        // Cut off under us.
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(sent) => {
            range.offset += sent as u64;
            range.length -= sent as u32;
            Ok(Some(sent))
        }
        Err(_) => Ok(None),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::future::poll_fn;
    use tokio::io::AsyncWriteExt;

    use crate::disk::FileDisk;
    use crate::disk::file::Options;

    #[tokio::test]
    async fn what_is_taken_is_what_was_received_whatever_its_lengths() {
        let lengths = [1usize, 28, 4096, 100_000, 28, 600_000, 3, 28, 130_000, 500_000, 131_072, 5];
        let sent: Vec<u8> = (0..lengths.iter().sum::<usize>()).map(|i| ((i * 31) >> 3) as u8).collect();
        let (mut here, mut there) = tokio::io::duplex(70_000);
        let bytes = sent.clone();
        let sender = tokio::spawn(async move { there.write_all(&bytes).await });
        let mut inbox = Inbox::default();
        let mut received = Vec::new();
        for length in lengths {
            loop {
                if let Some(data) = inbox.take(length) {
                    assert_eq!(data.len(), length);
                    received.extend_from_slice(&data);
                    break;
                }
                assert!(poll_fn(|cx| inbox.poll_fill(cx, &mut here)).await.unwrap() > 0);
            }
        }
        sender.await.unwrap().unwrap();
        assert!(received == sent && inbox.is_empty());
    }

    /// Queues small and long payloads and parts of a file; answers what is to arrive.
    fn fill(outbox: &mut Outbox, disk: &FileDisk, content: &[u8]) -> Vec<u8> {
        let mut queued = Vec::new();
        for i in 0..300usize {
            let data = vec![i as u8; [16, 0, 9000, 20_000][i % 4]];
            queued.extend_from_slice(&data);
            if i % 3 == 0 {
                outbox.put(&data)
            } else {
                outbox.put_payload(data.into())
            }
            if i % 5 == 0 {
                let (start, length) = (i * 700, 1 + i * 1000 % 70_000);
                queued.extend_from_slice(&content[start..start + length]);
                outbox.put_file(FileRange { disk: disk.clone(), offset: start as u64, length: length as u32 });
            }
        }
        assert_eq!(outbox.len(), queued.len());
        queued
    }

    /// On a disk, where the page cache can be told to forget.
    fn folder() -> tempfile::TempDir {
        tempfile::tempdir_in("/var/tmp").unwrap()
    }

    async fn arrives(mut here: impl SendFile + Unpin, mut there: impl AsyncRead + Unpin + Send + 'static) {
        let folder = folder();
        let path = folder.path().join("disk");
        let content: Vec<u8> = (0..300_000u32).map(|i| (i >> 3) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let disk = FileDisk::open(&path, Options::default()).unwrap();
        let mut outbox = Outbox::default();
        let queued = fill(&mut outbox, &disk, &content);
        let receiver = tokio::spawn(async move {
            let mut received = vec![0; 1_000_000];
            there.read_exact(&mut received).await.unwrap();
            // What is not sent yet cannot be sent from memory any more, in part.
            disk.flush().await.unwrap();
            disk.forget_cached().await.unwrap();
            there.read_to_end(&mut received).await.map(|_| received)
        });
        poll_fn(|cx| outbox.poll_send(cx, &mut here)).await.unwrap();
        drop(here);
        assert!(receiver.await.unwrap().unwrap() == queued && outbox.len() == 0);
    }

    #[tokio::test]
    async fn what_is_sent_is_what_was_queued_in_order() {
        let (here, there) = UnixStream::pair().unwrap();
        arrives(Stream::unix(here).unwrap(), there).await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let there = TcpStream::connect(listener.local_addr().unwrap());
        let (there, here) = tokio::join!(there, listener.accept());
        arrives(Stream::tcp(here.unwrap().0).unwrap(), there.unwrap()).await;
        // To what the kernel cannot send from a file.
        let (here, there) = tokio::io::duplex(10_000);
        arrives(here, there).await;
    }

    #[tokio::test]
    async fn a_file_that_was_cut_off_ends_the_connection() {
        let folder = folder();
        let path = folder.path().join("disk");
        std::fs::write(&path, [1; 100_000]).unwrap();
        let disk = FileDisk::open(&path, Options::default()).unwrap();
        let (here, _there) = UnixStream::pair().unwrap();
        let (mut stream, mut outbox) = (Stream::unix(here).unwrap(), Outbox::default());
        outbox.put_file(FileRange { disk, offset: 0, length: 100_000 });
        File::options().write(true).open(&path).unwrap().set_len(50_000).unwrap();
        assert!(poll_fn(|cx| outbox.poll_send(cx, &mut stream)).await.is_err());
    }

    /// What is lent shows what was written, whether the medium has it or not.
    #[tokio::test]
    async fn a_file_whose_pages_wait_in_a_socket_has_not_forgotten_them() {
        const LENGTH: usize = 100_000;
        let folder = folder();
        let path = folder.path().join("disk");
        std::fs::write(&path, [1; LENGTH]).unwrap();
        let disk = FileDisk::open(&path, Options::default()).unwrap();
        disk.flush().await.unwrap();
        disk.read(0, LENGTH as u32).await.unwrap();
        // Before Linux 6.5 nothing is lent.
        let lends = disk.resident(0, LENGTH as u32).is_some();
        let (here, mut there) = UnixStream::pair().unwrap();
        let (mut stream, mut outbox) = (Stream::unix(here).unwrap(), Outbox::default());
        outbox.put_file(FileRange { disk: disk.clone(), offset: 0, length: LENGTH as u32 });
        poll_fn(|cx| outbox.poll_send(cx, &mut stream)).await.unwrap();
        assert_eq!(disk.forget_cached().await, Ok(!lends));
        there.read_exact(&mut [0; LENGTH]).await.unwrap();
        assert_eq!(disk.forget_cached().await, Ok(true));
    }
}

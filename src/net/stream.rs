//! A connection's bytes: the socket, and what was received but not taken, or queued but not sent.
//!
//! [`Inbox`] and [`Outbox`] exist so that many messages cost one system call and payloads are not copied: a payload
//! is a slice of the buffer that it was received into, or has a buffer of its own; what is sent is gathered.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

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

    /// Where the other side has connected to, as it knows it: `host:port`; of a unix socket its path.
    pub fn local_address(&self) -> io::Result<String> {
        Ok(match self {
            // A socket of both families knows addresses of IPv4 by another name than clients do.
            Self::Tcp(socket) => {
                let address = socket.local_addr()?;
                SocketAddr::new(address.ip().to_canonical(), address.port()).to_string()
            }
            Self::Unix(socket) => {
                socket.local_addr()?.as_pathname().map_or_else(String::new, |path| path.display().to_string())
            }
        })
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
    sealed: VecDeque<Bytes>,
    /// Comes after all that is sealed; small messages gather here.
    tail: BytesMut,
    length: usize,
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
        if !self.tail.is_empty() {
            self.sealed.push_back(self.tail.split().freeze());
        }
        self.length += data.len();
        self.sealed.push_back(data);
    }

    /// Sends; ready when nothing is left.
    pub fn poll_send(&mut self, cx: &mut Context<'_>, stream: &mut (impl AsyncWrite + Unpin)) -> Poll<io::Result<()>> {
        while self.length > 0 {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let queued = self.sealed.iter().map(|bytes| &bytes[..]).chain([&self.tail[..]]);
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
        while let Some(first) = self.sealed.front_mut() {
            if sent < first.len() {
                return first.advance(sent);
            }
            sent -= first.len();
            self.sealed.pop_front();
        }
        if sent == self.tail.len() { self.tail.clear() } else { self.tail.advance(sent) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::io::AsyncWriteExt;

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

    #[tokio::test]
    async fn what_is_sent_is_what_was_queued_in_order() {
        let (mut here, mut there) = tokio::io::duplex(10_000);
        let mut outbox = Outbox::default();
        let mut queued = Vec::new();
        for i in 0..300usize {
            let data = vec![i as u8; [16, 0, 9000, 20_000][i % 4]];
            queued.extend_from_slice(&data);
            if i % 3 == 0 { outbox.put(&data) } else { outbox.put_payload(data.into()) }
        }
        assert_eq!(outbox.len(), queued.len());
        let receiver = tokio::spawn(async move {
            let mut received = Vec::new();
            there.read_to_end(&mut received).await.map(|_| received)
        });
        poll_fn(|cx| outbox.poll_send(cx, &mut here)).await.unwrap();
        drop(here);
        assert!(receiver.await.unwrap().unwrap() == queued && outbox.len() == 0);
    }
}

//! PDUs on a connection: out of what was received and into what is to be sent, with their digests.

use bytes::{Bytes, BytesMut};

use super::parameters::{Parameters, RECEIVED_MAX};
use super::pdu::{self, BHS, Bhs, DIGEST};
use crate::net::{Inbox, Outbox};

/// A PDU as it was received.
#[derive(Debug)]
pub struct Frame {
    pub bhs: Bhs,
    /// Additional header segments.
    pub ahs: Bytes,
    pub data: Bytes,
}

/// Why the bytes of a connection are no PDUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("{0} bytes of data in one PDU")]
    TooLong(usize),
    #[error("a header that does not fit its digest")]
    HeaderDigest,
    #[error("data that does not fit its digest")]
    DataDigest,
}

/// Takes PDUs apart, and puts them together.
#[derive(Debug, Default)]
pub struct Frames {
    header_digest: bool,
    data_digest: bool,
    /// Of the PDU at hand.
    head: Option<(Bhs, Option<Bytes>)>,
}

impl Frames {
    /// From the next PDU on.
    pub fn agree(&mut self, parameters: &Parameters) {
        (self.header_digest, self.data_digest) = (parameters.header_digest, parameters.data_digest);
    }

    /// Whether nothing of a PDU was taken.
    pub fn is_between(&self) -> bool {
        self.head.is_none()
    }

    /// The next PDU, once all of it is there.
    pub fn take(&mut self, inbox: &mut Inbox) -> Result<Option<Frame>, FrameError> {
        if self.head.is_none() {
            let Some(bhs) = inbox.peek::<BHS>().copied() else { return Ok(None) };
            inbox.skip(BHS);
            self.head = Some((bhs, None));
        }
        let Some((bhs, ahs)) = &mut self.head else { return Ok(None) };
        if ahs.is_none() {
            let length = pdu::ahs_length(bhs);
            let Some(taken) = take(inbox, length + if self.header_digest { DIGEST } else { 0 }) else {
                return Ok(None);
            };
            // Its lengths are not to be trusted before.
            if self.header_digest && pdu::digest(&[bhs, &taken[..length]].concat()) != taken[length..] {
                return Err(FrameError::HeaderDigest);
            }
            if pdu::data_length(bhs) > RECEIVED_MAX as usize {
                return Err(FrameError::TooLong(pdu::data_length(bhs)));
            }
            *ahs = Some(taken.slice(..length));
        }
        let length = pdu::data_length(bhs);
        let padded = length + pdu::padding(length);
        let has_digest = self.data_digest && length > 0;
        let Some(mut data) = take(inbox, padded + if has_digest { DIGEST } else { 0 }) else { return Ok(None) };
        if has_digest && pdu::digest(&data[..padded]) != data[padded..] {
            return Err(FrameError::DataDigest);
        }
        data.truncate(length);
        let frame = self.head.take().map(|(bhs, ahs)| Frame { bhs, ahs: ahs.unwrap_or_default(), data });
        Ok(frame)
    }

    /// Queues a PDU without additional headers, of whose data its header has the length.
    pub fn put(&self, outbox: &mut Outbox, bhs: &Bhs, data: Bytes) {
        debug_assert_eq!(pdu::data_length(bhs), data.len());
        outbox.put(bhs);
        if self.header_digest {
            outbox.put(&pdu::digest(bhs));
        }
        if data.is_empty() {
            return;
        }
        let padding = &[0; 4][..pdu::padding(data.len())];
        let digest = self.data_digest.then(|| {
            if padding.is_empty() {
                return pdu::digest(&data);
            }
            let mut padded = BytesMut::from(&data[..]);
            padded.extend_from_slice(padding);
            pdu::digest(&padded)
        });
        outbox.put_payload(data);
        outbox.put(padding);
        if let Some(digest) = digest {
            outbox.put(&digest);
        }
    }
}

fn take(inbox: &mut Inbox, length: usize) -> Option<Bytes> {
    if length == 0 { Some(Bytes::new()) } else { inbox.take(length) }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::iscsi::pdu::NopOut;

    fn parameters(digests: bool) -> Parameters {
        Parameters { header_digest: digests, data_digest: digests, ..Parameters::default() }
    }

    /// PDUs of all lengths, as they are sent.
    async fn sent(digests: bool, lengths: &[usize]) -> Vec<u8> {
        let mut frames = Frames::default();
        frames.agree(&parameters(digests));
        let mut outbox = Outbox::default();
        for &length in lengths {
            let bhs = NopOut { task: length as u32, ..NopOut::default() }.encode(length);
            frames.put(&mut outbox, &bhs, (0..length).map(|at| at as u8).collect::<Vec<_>>().into());
        }
        let mut sent = vec![0; outbox.len()];
        let (mut here, mut there) = tokio::io::duplex(1 << 22);
        poll_fn(|cx| outbox.poll_send(cx, &mut here)).await.unwrap();
        tokio::io::AsyncReadExt::read_exact(&mut there, &mut sent).await.unwrap();
        sent
    }

    async fn received(digests: bool, bytes: &[u8]) -> Result<Vec<Frame>, FrameError> {
        let mut frames = Frames::default();
        frames.agree(&parameters(digests));
        let (mut here, mut there) = tokio::io::duplex(999);
        let bytes = bytes.to_vec();
        tokio::spawn(async move { here.write_all(&bytes).await });
        let (mut inbox, mut found) = (Inbox::default(), Vec::new());
        loop {
            match frames.take(&mut inbox)? {
                Some(frame) => found.push(frame),
                None if poll_fn(|cx| inbox.poll_fill(cx, &mut there)).await.unwrap() == 0 => return Ok(found),
                None => {}
            }
        }
    }

    #[tokio::test]
    async fn what_is_taken_is_what_was_put() {
        let lengths = [0, 1, 2, 3, 4, 5, 48, 8192, 200_001, 0, 262_144, 7];
        for digests in [false, true] {
            let frames = received(digests, &sent(digests, &lengths).await).await.unwrap();
            assert_eq!(frames.iter().map(|frame| frame.data.len()).collect::<Vec<_>>(), lengths);
            for frame in frames {
                assert_eq!(NopOut::decode(&frame.bhs).task as usize, frame.data.len());
                assert!(frame.data.iter().enumerate().all(|(at, byte)| *byte == at as u8));
            }
        }
    }

    #[tokio::test]
    async fn a_bit_that_fell_over_is_noticed() {
        let bytes = sent(true, &[100]).await;
        for at in 0..bytes.len() {
            let mut wrong = bytes.clone();
            wrong[at] ^= 0x10;
            let expected = if at < BHS + DIGEST { FrameError::HeaderDigest } else { FrameError::DataDigest };
            // A length that is too long waits for more.
            let found = received(true, &[wrong, vec![0; 2048]].concat()).await.unwrap_err();
            assert_eq!(found, expected, "byte {at}");
        }
    }

    #[tokio::test]
    async fn more_data_than_was_declared_is_refused_before_it_comes() {
        let bhs = NopOut::default().encode(RECEIVED_MAX as usize + 1);
        assert_eq!(received(false, &bhs).await.unwrap_err(), FrameError::TooLong(RECEIVED_MAX as usize + 1));
    }
}

//! The data of one command (RFC 7143, 4.2.5.2, 11.7 and 11.8): what comes is checked, what goes is cut as was agreed. Pure.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use crate::iscsi::parameters::Parameters;
use crate::iscsi::pdu::{DataIn, DataOut, FINAL, ReadyToTransfer};

/// What a command reads, as it comes: in order and without gaps, as was agreed.
pub struct Incoming {
    expected: usize,
    data_sn: u32,
    /// Of a read that came in one PDU.
    whole: Bytes,
    /// Of one that came in several.
    pieces: BytesMut,
}

impl Incoming {
    pub fn new(expected: u32) -> Self {
        Self { expected: expected as usize, data_sn: 0, whole: Bytes::new(), pieces: BytesMut::new() }
    }

    pub fn expected(&self) -> u32 {
        self.expected as u32
    }

    fn received(&self) -> usize {
        self.whole.len() + self.pieces.len()
    }

    pub fn take(&mut self, head: &DataIn, data: Bytes) -> Result<(), &'static str> {
        if head.data_sn != self.data_sn {
            return Err("data out of order");
        }
        self.data_sn = self.data_sn.wrapping_add(1);
        let received = self.received();
        if data.is_empty() {
            return Ok(());
        }
        if head.offset as usize != received {
            return Err("data at another offset than is next");
        }
        if data.len() > self.expected - received {
            return Err("data beyond its command");
        }
        if received == 0 {
            self.whole = data;
            return Ok(());
        }
        if self.pieces.is_empty() {
            // No more than the command asked for, which the caller has bounded.
            self.pieces = BytesMut::with_capacity(self.expected);
            self.pieces.extend_from_slice(&std::mem::take(&mut self.whole));
        }
        self.pieces.extend_from_slice(&data);
        Ok(())
    }

    pub fn finish(self) -> Bytes {
        if self.pieces.is_empty() { self.whole } else { self.pieces.freeze() }
    }
}

/// What a command writes.
pub struct Outgoing {
    data: Bytes,
    /// Bytes that were sent, or are about to be.
    sent: usize,
    r2t_sn: u32,
    /// Where what was asked for ends in what is sent on the connection, as long as it may not have been taken.
    asked: VecDeque<u64>,
}

impl Outgoing {
    pub fn new(data: Bytes) -> Self {
        Self { data, sent: 0, r2t_sn: 0, asked: VecDeque::new() }
    }

    pub fn is_sent(&self) -> bool {
        self.sent == self.data.len()
    }

    pub fn into_data(self) -> Bytes {
        self.data
    }

    fn next(&mut self, end: usize) -> Bytes {
        let from = std::mem::replace(&mut self.sent, end);
        self.data.slice(from..end)
    }

    /// What goes with the command itself (13.11).
    pub fn immediate(&mut self, parameters: &Parameters) -> Bytes {
        let most = parameters.unsolicited_max().min(parameters.sent_max) as usize;
        let end = if parameters.immediate_data { most.min(self.data.len()) } else { 0 };
        self.next(end)
    }

    /// What goes unasked behind it, up to the first burst (13.10, 13.14).
    pub fn unasked(&mut self, parameters: &Parameters) -> Sequence {
        let offset = self.sent;
        let most = if parameters.initial_r2t { 0 } else { parameters.unsolicited_max() as usize };
        let end = most.min(self.data.len()).max(offset);
        Sequence { offset, data: self.next(end) }
    }

    /// What the target asks for: what is next, as was agreed. `sent` is how far the connection has come.
    pub fn asked(
        &mut self,
        head: &ReadyToTransfer,
        sent: u64,
        parameters: &Parameters,
    ) -> Result<Sequence, &'static str> {
        while self.asked.front().is_some_and(|end| *end <= sent) {
            self.asked.pop_front();
        }
        // 13.17: without a bound, it could ask for every byte by itself, and take none.
        if self.asked.len() >= parameters.outstanding_r2t_max as usize {
            return Err("it asks for more at a time than was agreed");
        }
        if head.r2t_sn != self.r2t_sn {
            return Err("it asks for data out of order");
        }
        self.r2t_sn = self.r2t_sn.wrapping_add(1);
        if head.offset as usize != self.sent {
            return Err("it asks for data at another offset than is next");
        }
        let length = head.length as usize;
        if length == 0 || length > self.data.len() - self.sent {
            return Err("it asks for data beyond its command");
        }
        if head.length > parameters.burst_max {
            return Err("it asks for more data than was agreed");
        }
        let offset = self.sent;
        Ok(Sequence { offset, data: self.next(offset + length) })
    }

    /// What was asked for last goes up to there.
    pub fn answers_until(&mut self, end: u64) {
        self.asked.push_back(end);
    }
}

/// Data that goes in a row, up to its final bit.
pub struct Sequence {
    offset: usize,
    data: Bytes,
}

impl Sequence {
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// PDUs of at most `most` bytes of data; whose they are is the caller's to say.
    pub fn pdus(self, most: u32) -> impl Iterator<Item = (DataOut, Bytes)> {
        let Self { offset, mut data } = self;
        let mut at = offset as u32;
        let mut data_sn = 0;
        std::iter::from_fn(move || {
            if data.is_empty() {
                return None;
            }
            let piece = data.split_to(data.len().min(most as usize));
            let flags = if data.is_empty() { FINAL } else { 0 };
            let head = DataOut { flags, data_sn, offset: at, ..DataOut::default() };
            (at, data_sn) = (at + piece.len() as u32, data_sn + 1);
            Some((head, piece))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(length: usize) -> Bytes {
        (0..length).map(|at| (at % 251) as u8).collect()
    }

    fn parameters(immediate_data: bool, initial_r2t: bool) -> Parameters {
        Parameters {
            immediate_data,
            initial_r2t,
            sent_max: 1000,
            first_burst_max: 2500,
            burst_max: 4000,
            ..Parameters::default()
        }
    }

    #[test]
    fn what_goes_unasked_is_what_was_agreed() {
        for (immediate_data, initial_r2t, expected) in
            [(true, true, (1000, 0)), (true, false, (1000, 1500)), (false, false, (0, 2500)), (false, true, (0, 0))]
        {
            let with = parameters(immediate_data, initial_r2t);
            let mut outgoing = Outgoing::new(data(10_000));
            let found = (outgoing.immediate(&with).len(), outgoing.unasked(&with).data.len());
            assert_eq!(found, expected, "ImmediateData {immediate_data}, InitialR2T {initial_r2t}");
            let mut short = Outgoing::new(data(700));
            let unasked = short.immediate(&with).len() + short.unasked(&with).data.len();
            assert_eq!(unasked, if immediate_data || !initial_r2t { 700 } else { 0 });
        }
    }

    #[test]
    fn what_is_asked_for_goes_in_pdus_that_the_target_takes() {
        let with = parameters(true, true);
        let mut outgoing = Outgoing::new(data(5000));
        outgoing.immediate(&with);
        let ask = ReadyToTransfer { offset: 1000, length: 2500, ..ReadyToTransfer::default() };
        let pdus: Vec<_> = outgoing.asked(&ask, 0, &with).unwrap().pdus(1000).collect();
        let heads: Vec<_> =
            pdus.iter().map(|(head, data)| (head.data_sn, head.offset, data.len(), head.flags)).collect();
        assert_eq!(heads, [(0, 1000, 1000, 0), (1, 2000, 1000, 0), (2, 3000, 500, FINAL)]);
        assert_eq!(pdus.iter().flat_map(|(_, data)| data.to_vec()).collect::<Vec<_>>(), data(5000)[1000..3500]);
    }

    #[test]
    fn what_may_not_be_asked_for_is_refused() {
        let with = parameters(true, true);
        let ask = |r2t_sn, offset, length| ReadyToTransfer { r2t_sn, offset, length, ..ReadyToTransfer::default() };
        for wrong in [
            ask(1, 1000, 500),
            ask(0, 0, 500),
            ask(0, 1500, 500),
            ask(0, 1000, 0),
            ask(0, 1000, 4001),
            ask(0, 1000, 9001),
        ] {
            let mut outgoing = Outgoing::new(data(10_000));
            outgoing.immediate(&with);
            assert!(outgoing.asked(&wrong, 0, &with).is_err(), "{wrong:?}");
        }
        let mut outgoing = Outgoing::new(data(2000));
        outgoing.immediate(&with);
        assert!(outgoing.asked(&ask(0, 1000, 1001), 0, &with).is_err());
    }

    #[test]
    fn no_more_is_asked_for_at_a_time_than_was_agreed() {
        let with = Parameters { outstanding_r2t_max: 2, ..parameters(true, true) };
        let ask = |r2t_sn: u32| ReadyToTransfer {
            r2t_sn,
            offset: 1000 + 500 * r2t_sn,
            length: 500,
            ..ReadyToTransfer::default()
        };
        let mut outgoing = Outgoing::new(data(10_000));
        outgoing.immediate(&with);
        for (r2t_sn, end) in [(0, 2000), (1, 3000)] {
            assert!(outgoing.asked(&ask(r2t_sn), 1000, &with).is_ok());
            outgoing.answers_until(end);
        }
        assert!(outgoing.asked(&ask(2), 1999, &with).is_err());
        assert!(outgoing.asked(&ask(2), 2000, &with).is_ok());
    }

    #[test]
    fn data_comes_in_order_and_not_beyond_its_command() {
        let head = |data_sn, offset| DataIn { data_sn, offset, ..DataIn::default() };
        let mut incoming = Incoming::new(1000);
        incoming.take(&head(0, 0), data(600)).unwrap();
        incoming.take(&head(1, 600), data(400)).unwrap();
        assert_eq!(incoming.finish(), [data(600), data(400)].concat());
        for (wrong, length) in
            [(head(0, 600), 1), (head(2, 600), 1), (head(1, 0), 1), (head(1, 601), 1), (head(1, 600), 401)]
        {
            let mut incoming = Incoming::new(1000);
            incoming.take(&head(0, 0), data(600)).unwrap();
            assert!(incoming.take(&wrong, data(length)).is_err(), "{wrong:?}");
        }
    }
}

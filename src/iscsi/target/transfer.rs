//! The data of one command on its way to us (section 4.2.5.2 and 11.7, 11.8): unasked at first, as far as was agreed, then
//! asked for piece by piece. Pure.
//!
//! Invariants: data comes in order (we agree on nothing else), so that what is there is all up to some byte; never is more
//! asked for than the command takes, nor kept than it offered.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use crate::iscsi::parameters::Parameters;
use crate::iscsi::pdu::{DataOut, FINAL, NO_TAG};

/// Why a command's data is not what it should be: the command ends with it (11.4.7.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// More than was asked for, or less, or unasked where nothing may be.
    Amount,
    /// A number out of order: something was lost on the way.
    Order,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    pub transfer: u32,
    pub number: u32,
    pub offset: u32,
    pub length: u32,
}

/// What came so far: what comes in one piece is not copied, and the rest costs its bytes and no more.
#[derive(Debug)]
enum Held {
    Nothing,
    Piece(Bytes),
    Joined(BytesMut),
}

impl Held {
    /// Adds a piece of what has `length` bytes in the end.
    fn add(&mut self, piece: Bytes, length: u32) {
        match self {
            _ if piece.is_empty() => {}
            Self::Nothing => *self = Self::Piece(piece),
            Self::Piece(first) => {
                let mut joined = BytesMut::with_capacity((length as usize).max(first.len() + piece.len()));
                joined.extend_from_slice(first);
                joined.extend_from_slice(&piece);
                *self = Self::Joined(joined);
            }
            Self::Joined(joined) => joined.extend_from_slice(&piece),
        }
    }
}

#[derive(Debug)]
pub struct Transfer {
    /// What the command takes, bytes.
    length: u32,
    /// Its end, as far as it comes unasked; what lies beyond `length` is dropped.
    unasked_max: u32,
    /// Data is to come unasked.
    unasked: bool,
    data: Held,
    received: u32,
    /// Number of the next PDU of the sequence at hand.
    data_sn: u32,
    /// Up to here it was asked for.
    asked_to: u32,
    outstanding: VecDeque<Asked>,
    number: u32,
}

impl Transfer {
    /// Of a command that takes `length` bytes and offers `expected`, the first of which came with it; `final_` says that
    /// no more comes unasked.
    pub fn new(length: u32, expected: u32, immediate: Bytes, final_: bool, with: &Parameters) -> Result<Self, Wrong> {
        let unasked_max = with.unsolicited_max().min(expected);
        let received = u32::try_from(immediate.len()).unwrap_or(u32::MAX);
        let unwanted = received > 0 && !with.immediate_data || !final_ && with.initial_r2t;
        if unwanted || received > unasked_max {
            return Err(Wrong::Amount);
        }
        let mut data = Held::Nothing;
        data.add(immediate, length);
        Ok(Self {
            length,
            unasked_max,
            unasked: !final_,
            data,
            received,
            data_sn: 0,
            asked_to: received.min(length),
            outstanding: VecDeque::new(),
            number: 0,
        })
    }

    /// Bytes that are there, wanted or not.
    pub fn received(&self) -> u32 {
        self.received
    }

    pub fn is_complete(&self) -> bool {
        !self.unasked && self.received >= self.length
    }

    /// Whether there is something to ask for.
    pub fn wants(&self, with: &Parameters) -> bool {
        !self.unasked && self.asked_to < self.length && self.outstanding.len() < with.outstanding_r2t_max as usize
    }

    /// What to ask for next, under the tag that the caller has for it.
    pub fn ask(&mut self, transfer: u32, with: &Parameters) -> Asked {
        let length = (self.length - self.asked_to).min(with.burst_max);
        let asked = Asked { transfer, number: self.number, offset: self.asked_to, length };
        self.number += 1;
        self.asked_to += length;
        if self.outstanding.is_empty() {
            self.data_sn = 0;
        }
        self.outstanding.push_back(asked);
        asked
    }

    pub fn take(&mut self, head: &DataOut, data: Bytes) -> Result<(), Wrong> {
        let end = match self.outstanding.front() {
            _ if self.unasked && head.transfer == NO_TAG => self.unasked_max,
            Some(asked) if !self.unasked && asked.transfer == head.transfer => asked.offset + asked.length,
            _ => return Err(Wrong::Amount),
        };
        if head.data_sn != self.data_sn || head.offset != self.received {
            return Err(Wrong::Order);
        }
        let length = u32::try_from(data.len()).map_err(|_| Wrong::Amount)?;
        let received = self.received.checked_add(length).filter(|received| *received <= end).ok_or(Wrong::Amount)?;
        self.received = received;
        self.data_sn = self.data_sn.wrapping_add(1);
        self.data.add(data, self.length);
        let is_last = head.flags & FINAL != 0;
        if self.unasked {
            self.unasked = !is_last;
            self.asked_to = received.min(self.length);
        } else if is_last != (received == end) {
            return Err(Wrong::Amount);
        } else if is_last {
            self.outstanding.pop_front();
            self.data_sn = 0;
        }
        Ok(())
    }

    /// All of it, in one piece.
    pub fn into_data(self) -> Bytes {
        let mut data = match self.data {
            Held::Nothing => Bytes::new(),
            Held::Piece(piece) => piece,
            Held::Joined(joined) => joined.freeze(),
        };
        data.truncate(self.length as usize);
        data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(initial_r2t: bool, immediate_data: bool) -> Parameters {
        Parameters {
            initial_r2t,
            immediate_data,
            burst_max: 1000,
            first_burst_max: 600,
            outstanding_r2t_max: 2,
            ..Parameters::default()
        }
    }

    fn data(from: u32, length: u32) -> Bytes {
        (from..from + length).map(|at| at as u8).collect::<Vec<_>>().into()
    }

    fn out(transfer: u32, data_sn: u32, offset: u32, last: bool) -> DataOut {
        DataOut { flags: if last { FINAL } else { 0 }, transfer, data_sn, offset, ..DataOut::default() }
    }

    #[test]
    fn data_comes_unasked_and_then_asked_for_piece_by_piece() {
        let with = parameters(false, true);
        let mut transfer = Transfer::new(2800, 2800, data(0, 200), false, &with).unwrap();
        assert!(!transfer.wants(&with), "more comes unasked");
        transfer.take(&out(NO_TAG, 0, 200, false), data(200, 100)).unwrap();
        transfer.take(&out(NO_TAG, 1, 300, true), data(300, 300)).unwrap();
        assert!(transfer.wants(&with));
        assert_eq!(transfer.ask(5, &with), Asked { transfer: 5, number: 0, offset: 600, length: 1000 });
        assert_eq!(transfer.ask(6, &with), Asked { transfer: 6, number: 1, offset: 1600, length: 1000 });
        assert!(!transfer.wants(&with), "two are outstanding");
        transfer.take(&out(5, 0, 600, false), data(600, 500)).unwrap();
        transfer.take(&out(5, 1, 1100, true), data(1100, 500)).unwrap();
        assert!(transfer.wants(&with));
        assert_eq!(transfer.ask(7, &with), Asked { transfer: 7, number: 2, offset: 2600, length: 200 });
        transfer.take(&out(6, 0, 1600, true), data(1600, 1000)).unwrap();
        assert!(!transfer.is_complete() && !transfer.wants(&with));
        transfer.take(&out(7, 0, 2600, true), data(2600, 200)).unwrap();
        assert!(transfer.is_complete());
        assert_eq!(transfer.into_data(), data(0, 2800));
    }

    #[test]
    fn what_comes_in_one_piece_is_not_copied_and_what_is_not_wanted_is_dropped() {
        let whole = data(0, 600);
        let transfer = Transfer::new(512, 600, whole.clone(), true, &parameters(true, true)).unwrap();
        assert!(transfer.is_complete());
        let taken = transfer.into_data();
        assert_eq!((taken.as_ptr(), taken.len()), (whole.as_ptr(), 512));
    }

    #[test]
    fn data_that_nobody_asked_for_is_wrong() {
        let immediate = |with, length, last| Transfer::new(2000, 2000, data(0, length), last, &with).map(drop);
        assert_eq!(immediate(parameters(true, false), 1, true), Err(Wrong::Amount), "immediate data");
        assert_eq!(immediate(parameters(true, true), 1, false), Err(Wrong::Amount), "more unasked");
        assert_eq!(immediate(parameters(false, true), 601, true), Err(Wrong::Amount), "a first burst too long");
        assert_eq!(immediate(parameters(false, true), 600, true), Ok(()));
    }

    #[test]
    fn data_out_of_order_or_of_a_wrong_amount_is_wrong() {
        let asked = || {
            let with = parameters(true, true);
            let mut transfer = Transfer::new(2000, 2000, Bytes::new(), true, &with).unwrap();
            transfer.ask(9, &with);
            transfer
        };
        let mut two = asked();
        two.take(&out(9, 0, 0, false), data(0, 500)).unwrap();
        for (head, length, wrong) in [
            (out(9, 0, 500, true), 500, Wrong::Order),
            (out(9, 27, 500, true), 500, Wrong::Order),
            (out(9, 1, 400, true), 500, Wrong::Order),
            (out(9, 1, 500, true), 501, Wrong::Amount),
            (out(9, 1, 500, true), 499, Wrong::Amount),
            (out(9, 1, 500, false), 500, Wrong::Amount),
            (out(8, 1, 500, true), 500, Wrong::Amount),
            (out(NO_TAG, 1, 500, true), 500, Wrong::Amount),
        ] {
            let mut transfer = asked();
            transfer.take(&out(9, 0, 0, false), data(0, 500)).unwrap();
            assert_eq!(transfer.take(&head, data(500, length)), Err(wrong), "{head:?}, {length}");
        }
    }
}

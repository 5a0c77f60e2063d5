//! What is remembered of an operation until the chain covers it: 24 bytes.
//!
//! ```text
//! word 0   start sector 38 │ kind 4 │ position, high 22
//! word 1   sectors 38      │ position, low 22 │ – 4
//! word 2   sequence 64
//! ```
//! 38 bits of sectors are 128 TiB, 44 bits of position a log of 16 TiB.

use crate::format::log::LogOp;
use crate::units::{SECTOR, Sequence, Span, VOLUME_MAX};
use crate::writelog::{Position, SEGMENT};

const SECTOR_BITS: u32 = 38;
const HALF_POSITION_BITS: u32 = 22;
const SECTORS: u64 = (1 << SECTOR_BITS) - 1;
const HALF_POSITION: u64 = (1 << HALF_POSITION_BITS) - 1;

/// Of a position: the offset in a segment; the segment's number is above it.
const OFFSET_BITS: u32 = SEGMENT.trailing_zeros();

const _: () = assert!(VOLUME_MAX / SECTOR <= SECTORS);
const _: () = assert!(SEGMENT.is_power_of_two());

/// What an operation left in its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing that is to be uploaded: it failed, was ahead of a scan, or is the scan itself.
    Nothing = 0,
    /// The payload of the log record at the descriptor's position.
    Data = 1,
    Zero = 2,
    Trimmed = 3,
    Unreadable = 4,
}

impl Effect {
    /// Of a record that says `op` of `sectors`.
    pub fn of(op: LogOp, sectors: Span) -> Self {
        match op {
            LogOp::Write | LogOp::ReadBack if sectors.is_empty() => Self::Nothing,
            LogOp::Write | LogOp::ReadBack => Self::Data,
            LogOp::Zero => Self::Zero,
            LogOp::Trim => Self::Trimmed,
            LogOp::Unreadable => Self::Unreadable,
            LogOp::Ahead | LogOp::Scan | LogOp::Void | LogOp::Heartbeat => Self::Nothing,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Descriptor([u64; 3]);

impl Descriptor {
    /// `span` is in whole sectors.
    pub fn new(span: Span, effect: Effect, position: Position, sequence: Sequence) -> Self {
        debug_assert!(span.start.is_multiple_of(SECTOR) && span.end.is_multiple_of(SECTOR));
        let position = u64::from(position.slot()) << OFFSET_BITS | position.offset();
        debug_assert!(position >> (2 * HALF_POSITION_BITS) == 0);
        let (start, sectors) = (span.start / SECTOR, span.len() / SECTOR);
        Self([
            start | (effect as u64) << SECTOR_BITS | (position >> HALF_POSITION_BITS) << (SECTOR_BITS + 4),
            sectors | (position & HALF_POSITION) << SECTOR_BITS,
            sequence.0,
        ])
    }

    pub fn first_sector(self) -> u64 {
        self.0[0] & SECTORS
    }

    pub fn sectors(self) -> u64 {
        self.0[1] & SECTORS
    }

    pub fn span(self) -> Span {
        Span::at(self.first_sector() * SECTOR, self.sectors() * SECTOR)
    }

    pub fn effect(self) -> Effect {
        match self.0[0] >> SECTOR_BITS & 0xf {
            1 => Effect::Data,
            2 => Effect::Zero,
            3 => Effect::Trimmed,
            4 => Effect::Unreadable,
            _ => Effect::Nothing,
        }
    }

    /// Where the log record is.
    pub fn position(self) -> Position {
        let high = self.0[0] >> (SECTOR_BITS + 4);
        let position = high << HALF_POSITION_BITS | self.0[1] >> SECTOR_BITS & HALF_POSITION;
        Position::from_bits((position >> OFFSET_BITS) << 32 | position & (SEGMENT - 1))
    }

    pub fn sequence(self) -> Sequence {
        Sequence(self.0[2])
    }

    /// Bytes that it adds to the lag.
    pub fn lag_bytes(self) -> u64 {
        if self.effect() == Effect::Data { self.sectors() * SECTOR } else { 0 }
    }

    /// Its outcome is not what was asked for: whatever it left is told by a later record.
    pub fn void(&mut self) {
        self.0[0] &= !(0xf << SECTOR_BITS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_returns_what_was_put_in() {
        let span = Span::at(VOLUME_MAX - 3 * SECTOR, 3 * SECTOR);
        let position = Position::from_bits(((1 << 18) - 1) << 32 | (SEGMENT - 64));
        let mut descriptor = Descriptor::new(span, Effect::Data, position, Sequence(u64::MAX));
        assert_eq!(descriptor.span(), span);
        assert_eq!(descriptor.effect(), Effect::Data);
        assert_eq!(descriptor.position(), position);
        assert_eq!(descriptor.sequence(), Sequence(u64::MAX));
        descriptor.void();
        assert_eq!((descriptor.effect(), descriptor.span(), descriptor.position()), (Effect::Nothing, span, position));
        let whole = Descriptor::new(Span::new(0, VOLUME_MAX), Effect::Trimmed, Position::from_bits(0), Sequence(1));
        assert_eq!((whole.span(), whole.effect()), (Span::new(0, VOLUME_MAX), Effect::Trimmed));
        assert_eq!(size_of::<Descriptor>(), 24);
    }
}

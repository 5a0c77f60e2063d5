//! Turns the operations of an epoch into packs: what shows of them, slice by slice, in block order.
//!
//! Records are keyed (block, slice): coalescing never crosses a slice, so that each slice can be restored, and all
//! records of a block lie in one pack. An extent is cut where another slice has something to say, and so at the
//! border of every pack.
//!
//! Memory: the pack being built, the pieces of the epoch (24 bytes each) and 64 MiB of log payloads.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use super::coalesce::{self, Piece};
use crate::format::codec::FormatError;
use crate::format::keys::Keys;
use crate::format::pack::{PackBuilder, SLICES_MAX};
use crate::format::{ObjectRef, Void};
use crate::units::{Block, Generation, LogIndex, MIB, Mask, SECTOR, SECTORS_PER_BLOCK};
use crate::volume::{Descriptor, Effect};
use crate::writelog::{ReadError, VolumeLog};

/// A pack is closed when it has this many bytes: large enough that a base of them is cheap to list and keep, small
/// enough for one put.
pub const PACK_BYTES: u64 = 64 * MIB;
/// What is kept of log records that several blocks are made of, bytes.
const PAYLOADS_MAX: usize = 64 * MIB as usize;

const SECTORS: u64 = SECTORS_PER_BLOCK as u64;

#[derive(Debug, thiserror::Error)]
pub enum AssembleError {
    #[error("read record {index} of the log")]
    Log { index: LogIndex, source: ReadError },
    #[error("build a pack")]
    Format(#[from] FormatError),
}

/// The operations of an epoch, on their way into packs.
pub struct Assembler {
    keys: Keys,
    generation: Generation,
    payloads: Payloads,
    slices: Vec<Slice>,
}

/// What shows of one slice's operations, from the next piece on.
struct Slice {
    number: u8,
    pieces: std::iter::Peekable<std::vec::IntoIter<Piece>>,
}

/// Reads payloads back from the log, and keeps those that are needed again.
struct Payloads {
    log: VolumeLog,
    /// Index of the first descriptor.
    first: LogIndex,
    descriptors: Arc<[Descriptor]>,
    kept: HashMap<u32, Bytes>,
    order: VecDeque<u32>,
    bytes: usize,
}

impl Assembler {
    /// `descriptors` are those of the operations from `first` on; slice k is made of those before `ends[k]` and not
    /// in slice k − 1. There are at most [`SLICES_MAX`] slices.
    pub fn new(
        keys: &Keys,
        generation: Generation,
        log: VolumeLog,
        first: LogIndex,
        descriptors: Vec<Descriptor>,
        ends: &[LogIndex],
    ) -> Self {
        debug_assert!(ends.len() <= SLICES_MAX);
        let mut slices = Vec::with_capacity(ends.len());
        let mut begin = 0;
        for (number, end) in ends.iter().enumerate() {
            let end = (end.0 + 1 - first.0) as usize;
            let operations: Vec<_> = descriptors[begin..end]
                .iter()
                .map(|descriptor| match descriptor.effect() {
                    Effect::Nothing => (0, 0),
                    _ => (descriptor.first_sector(), descriptor.sectors()),
                })
                .collect();
            let mut pieces = coalesce::visible(&operations);
            pieces.iter_mut().for_each(|piece| piece.source += begin as u32);
            slices.push(Slice { number: number as u8, pieces: pieces.into_iter().peekable() });
            begin = end;
        }
        let descriptors = descriptors.into();
        let payloads = Payloads { log, first, descriptors, kept: HashMap::new(), order: VecDeque::new(), bytes: 0 };
        Self { keys: keys.clone(), generation, payloads, slices }
    }

    /// Whether nothing is left.
    pub fn is_empty(&mut self) -> bool {
        self.slices.iter_mut().all(|slice| slice.pieces.peek().is_none())
    }

    /// Builds the next pack, with the given number. Blocking.
    pub fn next_pack(&mut self, number: u64) -> Result<(Bytes, ObjectRef), AssembleError> {
        let mut pack = PackBuilder::new(&self.keys, self.generation, number);
        let mut last = None;
        while let Some((at, block)) = self.next_slice() {
            if last != Some(block) && pack.stored_bytes() >= PACK_BYTES {
                break;
            }
            last = Some(block);
            let border = self.next_of_others(at);
            self.slices[at].take(block, border, &mut self.payloads, &mut pack)?;
        }
        Ok(pack.finish())
    }

    /// The slice that has the first block left to say something of; of several the oldest.
    fn next_slice(&mut self) -> Option<(usize, u64)> {
        let heads = self.slices.iter_mut().enumerate();
        heads.filter_map(|(at, slice)| Some((at, slice.block()?))).min_by_key(|&(at, block)| (block, at))
    }

    fn next_of_others(&mut self, at: usize) -> u64 {
        let others = self.slices.iter_mut().enumerate().filter(|&(other, _)| other != at);
        others.filter_map(|(_, slice)| slice.block()).min().unwrap_or(u64::MAX)
    }
}

impl Slice {
    fn block(&mut self) -> Option<u64> {
        Some(self.pieces.peek()?.start / SECTORS)
    }

    /// Puts the slice's records of `block` into the pack, or an extent of whole blocks from there, which ends at
    /// `border`, the next block that another slice has something to say of.
    fn take(
        &mut self,
        block: u64,
        border: u64,
        payloads: &mut Payloads,
        pack: &mut PackBuilder,
    ) -> Result<(), AssembleError> {
        let begin = block * SECTORS;
        let end = begin + SECTORS;
        if let Some(head) = self.pieces.peek_mut() {
            let void = payloads.void(head.source);
            if let Some(void) = void
                && head.start == begin
                && head.end >= end
            {
                // Another slice may speak of this very block; it has records of its own there.
                let count = (head.end / SECTORS).min(border.max(block + 1)) - block;
                pack.push_void(Block(block), count, self.number, Mask::FULL, void)?;
                head.start = (block + count) * SECTORS;
                if head.start == head.end {
                    self.pieces.next();
                }
                return Ok(());
            }
        }
        let mut voids = [Mask::NONE; 3];
        let mut data = Mask::NONE;
        let mut parts: Vec<Bytes> = Vec::new();
        while let Some(head) = self.pieces.peek_mut().filter(|head| head.start < end) {
            let piece = Piece { end: head.end.min(end), ..*head };
            let mask = Mask::range((piece.start - begin) as u32, (piece.end - piece.start) as u32);
            match payloads.void(piece.source) {
                Some(void) => voids[void as usize] = voids[void as usize].or(mask),
                None => {
                    data = data.or(mask);
                    parts.push(payloads.read(piece, head.end > end)?);
                }
            }
            if head.end > end {
                head.start = end;
                break;
            }
            self.pieces.next();
        }
        if let [part] = parts.as_slice() {
            pack.push_data(Block(block), self.number, data, part)?;
        } else if !parts.is_empty() {
            pack.push_data(Block(block), self.number, data, &parts.concat())?;
        }
        for void in [Void::Zero, Void::Trimmed, Void::Unreadable] {
            let mask = voids[void as usize];
            if !mask.is_empty() {
                pack.push_void(Block(block), 1, self.number, mask, void)?;
            }
        }
        Ok(())
    }
}

impl Payloads {
    fn void(&self, source: u32) -> Option<Void> {
        match self.descriptors[source as usize].effect() {
            Effect::Zero => Some(Void::Zero),
            Effect::Trimmed => Some(Void::Trimmed),
            Effect::Unreadable => Some(Void::Unreadable),
            Effect::Data | Effect::Nothing => None,
        }
    }

    /// The bytes of a piece of a data operation; `again` if more of the operation is needed later.
    fn read(&mut self, piece: Piece, again: bool) -> Result<Bytes, AssembleError> {
        let descriptor = self.descriptors[piece.source as usize];
        let from = ((piece.start - descriptor.first_sector()) * SECTOR) as usize;
        let to = ((piece.end - descriptor.first_sector()) * SECTOR) as usize;
        if let Some(payload) = self.kept.get(&piece.source) {
            return Ok(payload.slice(from..to));
        }
        let index = LogIndex(self.first.0 + u64::from(piece.source));
        let payload =
            self.log.read(descriptor.position(), index).map_err(|source| AssembleError::Log { index, source })?;
        if payload.len() < to {
            return Err(AssembleError::Log {
                index,
                source: ReadError::Payload { position: descriptor.position(), index },
            });
        }
        let bytes = payload.slice(from..to);
        if again || piece.end < descriptor.first_sector() + descriptor.sectors() {
            self.keep(piece.source, payload);
        }
        Ok(bytes)
    }

    fn keep(&mut self, source: u32, payload: Bytes) {
        self.bytes += payload.len();
        self.order.push_back(source);
        self.kept.insert(source, payload);
        while self.bytes > PAYLOADS_MAX && self.order.len() > 1 {
            let oldest = self.order.pop_front().and_then(|source| self.kept.remove(&source));
            self.bytes -= oldest.map_or(0, |payload| payload.len());
        }
    }
}

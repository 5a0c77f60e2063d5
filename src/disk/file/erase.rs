//! Trims and zeroes ranges of a file or device by the quickest way that it knows.
//!
//! Owns: which ways there are, and which of them this filesystem turned out not to know. Durability is the caller's.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::{self, retry_on_intr};

use super::{Aligned, write_all};
use crate::disk::{DiskError, Errno, Result, ZeroMode, ioctl};
use crate::units::{MIB, Span};

/// True until the system was asked once and said that it cannot.
#[derive(Debug)]
pub(super) struct Latch(AtomicBool);

impl Latch {
    pub fn new(able: bool) -> Self {
        Self(AtomicBool::new(able))
    }

    pub fn is_able(&self) -> bool {
        self.0.load(Relaxed)
    }

    /// Whether `call` did it. False, now and later without a call, where the system knows no such thing.
    pub fn attempt(&self, call: impl FnMut() -> io::Result<()>) -> io::Result<bool> {
        if !self.is_able() {
            return Ok(false);
        }
        match retry_on_intr(call) {
            Ok(()) => Ok(true),
            // ENODEV and ENOTTY: device drivers that know neither fallocate nor the ioctl.
            Err(io::Errno::OPNOTSUPP | io::Errno::NOSYS | io::Errno::NODEV | io::Errno::NOTTY) => {
                self.0.store(false, Relaxed);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

/// Zeroes are written in pieces of this size, which bounds memory; larger ones gain nothing.
const PIECE: u64 = MIB;

pub(super) struct Eraser {
    device: bool,
    /// Unit of the device's own discarding and zeroing; 1 for files.
    block: u64,
    /// Buffers of direct I/O begin at multiples of this.
    alignment: usize,
    /// A trimmed range reads as zeroes: was promised, so a trim that cannot be done is written out.
    pub trim_reads_zero: bool,
    punch: Latch,
    zero_range: Latch,
    allocate: Latch,
    discard: Latch,
}

impl Eraser {
    pub fn new(device: bool, block: u64, alignment: usize, punches: bool) -> Self {
        Self {
            device,
            block,
            alignment,
            trim_reads_zero: !device && punches,
            punch: Latch::new(true),
            zero_range: Latch::new(true),
            allocate: Latch::new(!device),
            discard: Latch::new(device),
        }
    }

    /// On a filesystem that knows nothing of holes.
    #[cfg(test)]
    pub fn ignorant(trim_reads_zero: bool) -> Self {
        let unable = || Latch::new(false);
        let (punch, zero_range, allocate, discard) = (unable(), unable(), unable(), unable());
        Self { device: false, block: 1, alignment: 1, trim_reads_zero, punch, zero_range, allocate, discard }
    }

    /// A trim is advice: what cannot be done is left undone, as nbdkit does.
    pub fn trim(&self, file: &File, span: Span) -> Result<()> {
        if self.device {
            let whole = span.rounded_in(self.block);
            if !whole.is_empty() {
                self.discard.attempt(|| ioctl::discard(file, whole))?;
            }
        } else if !self.punch(file, span)? && self.trim_reads_zero {
            self.write_zeroes(file, span)?;
        }
        Ok(())
    }

    pub fn zero(&self, file: &File, span: Span, mode: ZeroMode) -> Result<()> {
        let whole = span.rounded_in(self.block);
        if whole.is_empty() {
            return self.write_zeroes(file, span);
        }
        // The middle first: a refusal must come before anything was changed.
        if !self.zero_whole(file, whole, mode)? {
            if mode.fast_only {
                return Err(DiskError::Refused(Errno::ENOTSUP));
            }
            return self.write_zeroes(file, span);
        }
        self.write_zeroes(file, Span::new(span.start, whole.start))?;
        self.write_zeroes(file, Span::new(whole.end, span.end))
    }

    /// Zeroes without being sent zeroes; false, with nothing changed, where no way was found.
    fn zero_whole(&self, file: &File, span: Span, mode: ZeroMode) -> io::Result<bool> {
        if !mode.no_hole && self.punch(file, span)? {
            return Ok(true);
        }
        // A device that cannot zero by itself is sent zeroes by the kernel here, which is not fast.
        if !(self.device && mode.fast_only) && self.zero_range(file, span)? {
            return Ok(true);
        }
        // Two steps, and the second may turn out impossible: not for those who must hear of that beforehand.
        Ok(!mode.fast_only && !self.device && self.punch(file, span)? && self.allocate(file, span)?)
    }

    fn punch(&self, file: &File, span: Span) -> io::Result<bool> {
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        self.punch.attempt(|| fallocate(file, mode, span.start, span.len()))
    }

    fn zero_range(&self, file: &File, span: Span) -> io::Result<bool> {
        let mode = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        self.zero_range.attempt(|| fallocate(file, mode, span.start, span.len()))
    }

    fn allocate(&self, file: &File, span: Span) -> io::Result<bool> {
        self.allocate.attempt(|| fallocate(file, FallocateFlags::KEEP_SIZE, span.start, span.len()))
    }

    fn write_zeroes(&self, file: &File, span: Span) -> Result<()> {
        let zeroes = Aligned::zeroed(span.len().min(PIECE) as usize, self.alignment);
        let mut at = span.start;
        while at < span.end {
            let piece = &zeroes.as_slice()[..(span.end - at).min(PIECE) as usize];
            write_all(file, piece, at, false)?;
            at += piece.len() as u64;
        }
        Ok(())
    }
}

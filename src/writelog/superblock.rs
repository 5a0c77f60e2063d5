//! What a pool of segments is, and how often it was opened.
//!
//! Owns: the file `superblock` and its lock (one process at a time). Does not own: segments.
//!
//! Two slots, written in turn: a write that is torn leaves the other slot, whose epoch is one lower; since nothing
//! is appended before the bump is durable, no record bears the epoch that was lost.
//!
//! ```text
//! slot 0 at byte 0, slot 1 at byte 4096; each, little endian:
//!    0  8  magic "UMBRALOG"
//!    8  4  version, 1
//!   12  4  state: 1 creating, 2 ready, 3 failed, 4 ready, and marks are doubted, 5 failed and doubted
//!   16 16  log uuid
//!   32  8  counter; the valid slot with the higher one holds
//!   40  8  log epoch
//!   48  8  segments in the pool
//!   56  4  CRC-32C of bytes 0..56
//! ```

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::FlockOperation;

use super::OpenError;

const MAGIC: [u8; 8] = *b"UMBRALOG";
const VERSION: u32 = 1;
/// Slots do not share a physical sector on any disk.
const SLOT: u64 = 4096;
const LENGTH: usize = 60;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Segments are being written; nothing is in them.
    Creating,
    Ready,
    /// A write or an fsync failed: what was not synced by then may stand in the page cache and not on the disk.
    Failed,
    /// As ready; but region marks could not be written while their volumes changed.
    Doubted,
    FailedAndDoubted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub state: State,
    pub log: [u8; 16],
    pub counter: u64,
    pub epoch: u64,
    pub segments: u64,
}

impl Superblock {
    fn encode(&self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        let state: u32 = match self.state {
            State::Creating => 1,
            State::Ready => 2,
            State::Failed => 3,
            State::Doubted => 4,
            State::FailedAndDoubted => 5,
        };
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&state.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.log);
        bytes[32..40].copy_from_slice(&self.counter.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.segments.to_le_bytes());
        let crc = crc_fast::crc32_iscsi(&bytes[..56]);
        bytes[56..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; LENGTH]) -> Option<Self> {
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        if bytes[..8] != MAGIC || u32_at(8) != VERSION || u32_at(56) != crc_fast::crc32_iscsi(&bytes[..56]) {
            return None;
        }
        let state = match u32_at(12) {
            1 => State::Creating,
            2 => State::Ready,
            3 => State::Failed,
            4 => State::Doubted,
            5 => State::FailedAndDoubted,
            _ => return None,
        };
        let log = std::array::from_fn(|i| bytes[16 + i]);
        Some(Self { state, log, counter: u64_at(32), epoch: u64_at(40), segments: u64_at(48) })
    }
}

/// Where the superblock is kept.
pub(crate) trait Keeper: Send {
    /// Makes it durable; the one before stays if that fails.
    fn write(&self, superblock: &Superblock) -> io::Result<()>;
}

/// What the file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// It was never written.
    Absent,
    /// Neither slot can be believed.
    Damaged,
    Valid(Superblock),
}

/// The file, open and locked.
pub(super) struct SuperblockFile {
    file: File,
}

impl SuperblockFile {
    pub(super) fn open(folder: &Path) -> Result<Self, OpenError> {
        let path = folder.join("superblock");
        let failed = |source| OpenError::Superblock { path: path.clone(), source };
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.map_err(failed)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { file }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::InUse { path: folder.into() }),
            Err(error) => Err(failed(error.into())),
        }
    }

    pub(super) fn read(&self) -> io::Result<Content> {
        if self.file.metadata()?.len() == 0 {
            return Ok(Content::Absent);
        }
        let mut newest: Option<Superblock> = None;
        for slot in 0..2 {
            let mut bytes = [0; LENGTH];
            match self.file.read_exact_at(&mut bytes, slot * SLOT) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => continue,
                Err(error) => return Err(error),
            }
            if let Some(found) = Superblock::decode(&bytes)
                && newest.is_none_or(|newest| found.counter > newest.counter)
            {
                newest = Some(found);
            }
        }
        Ok(newest.map_or(Content::Damaged, Content::Valid))
    }
}

impl Keeper for SuperblockFile {
    /// In the slot that does not hold the newest one.
    fn write(&self, superblock: &Superblock) -> io::Result<()> {
        self.file.write_all_at(&superblock.encode(), superblock.counter % 2 * SLOT)?;
        self.file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: Superblock = Superblock { state: State::Ready, log: [7; 16], counter: 5, epoch: 3, segments: 128 };

    #[test]
    fn the_bytes_of_version_1_stay() {
        let hex: String = EXAMPLE.encode().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "554d4252414c4f47010000000200000007070707070707070707070707070707\
             05000000000000000300000000000000800000000000000082537543",
            "existing logs could not be read: raise the version instead"
        );
        assert_eq!(Superblock::decode(&EXAMPLE.encode()), Some(EXAMPLE));
    }

    #[test]
    fn a_flipped_bit_is_never_believed() {
        for bit in 0..LENGTH * 8 {
            let mut bytes = EXAMPLE.encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Superblock::decode(&bytes), None, "bit {bit}");
        }
    }

    /// Fault test 4.
    #[test]
    fn a_torn_write_leaves_the_superblock_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = SuperblockFile::open(dir.path()).unwrap();
        assert_eq!(file.read().unwrap(), Content::Absent);
        let next = Superblock { counter: 6, epoch: 4, ..EXAMPLE };
        file.write(&EXAMPLE).unwrap();
        file.write(&next).unwrap();
        assert_eq!(file.read().unwrap(), Content::Valid(next));
        file.file.write_all_at(&[0; 30], 20).unwrap();
        assert_eq!(file.read().unwrap(), Content::Valid(EXAMPLE));
        file.file.write_all_at(&[0; 30], SLOT + 20).unwrap();
        assert_eq!(file.read().unwrap(), Content::Damaged);
    }

    #[test]
    fn a_second_process_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _first = SuperblockFile::open(dir.path()).unwrap();
        assert!(matches!(SuperblockFile::open(dir.path()), Err(OpenError::InUse { .. })));
    }
}

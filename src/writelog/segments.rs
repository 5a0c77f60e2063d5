//! The files that hold the log: how they are made, opened, written, read and made durable.
//!
//! Owns: the folder, one preallocated file per segment, what kind of filesystem may carry them. Does not own: what
//! the bytes mean, which segment belongs to whom. The trait [`SegmentIo`] is all that the rest of the log sees of a
//! disk, so that a test can stand in for one.
//!
//! One file per segment, not one for all: `fdatasync` of a volume's segment then waits for nothing of another
//! volume, and writers do not meet at one inode's lock.
//!
//! Crash: a file that bears its name is complete; one that was being made has another name and is made again.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::fs::{Advice, IFlags};
use tracing::info;

use super::{OpenError, SEGMENT, lock};
use crate::units::{MIB, human_bytes};

/// One segment, open.
pub(crate) trait SegmentIo: Send + Sync {
    /// Writes all of `data`, one slice after the other, from byte `offset` on. The slices are used up.
    fn write_at(&self, data: &mut [IoSlice<'_>], offset: u64) -> io::Result<()>;
    /// Fills `buffer`, or fails.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Makes durable all that was written.
    fn sync(&self) -> io::Result<()>;
    /// Has the disk begin to write `length` bytes from `offset` on, so that a sync has less to wait for. Promises
    /// nothing: what fails is for the sync to tell.
    fn begin_writeback(&self, _offset: u64, _length: u64) {}
}

/// All segments of a pool. Opening one again must not let an error of its writes be forgotten: a writer keeps what it
/// wrote to until that is synced.
pub(crate) trait Segments: Send + Sync {
    fn open(&self, slot: u32) -> io::Result<Arc<dyn SegmentIo>>;
    /// Reads show what is on the disk from now on, or what will be: after a failed sync the kernel holds pages for clean
    /// that are not.
    fn forget_cached(&self, _slot: u32) -> io::Result<()> {
        Ok(())
    }
    /// How long the next call of a writer takes in virtual time.
    #[cfg(test)]
    fn call_takes(&self) -> Duration {
        Duration::ZERO
    }
}

impl SegmentIo for File {
    fn write_at(&self, data: &mut [IoSlice<'_>], mut offset: u64) -> io::Result<()> {
        let mut rest = data;
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            match rustix::io::pwritev(self, &rest[..rest.len().min(SLICES_MAX)], offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    offset += written as u64;
                    IoSlice::advance_slices(&mut rest, written);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn begin_writeback(&self, offset: u64, length: u64) {
        let (offset, length) = (offset as libc::off64_t, length as libc::off64_t);
        // SAFETY: it takes numbers only, and the descriptor is open as long as the file is borrowed.
        unsafe { libc::sync_file_range(self.as_raw_fd(), offset, length, libc::SYNC_FILE_RANGE_WRITE) };
    }
}

/// The most slices that Linux takes in one `pwritev` (UIO_MAXIOV).
pub(super) const SLICES_MAX: usize = 1024;
/// How many segments stay open for readers; a long backlog must not use up the process's files.
const OPEN_MAX: usize = 64;

/// Segments as files of a folder.
pub(super) struct Folder {
    path: PathBuf,
    /// Opened last stands last.
    recent: Mutex<Vec<(u32, Arc<File>)>>,
}

impl Folder {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.into(), recent: Mutex::default() }
    }
}

impl Segments for Folder {
    fn open(&self, slot: u32) -> io::Result<Arc<dyn SegmentIo>> {
        let mut recent = lock(&self.recent);
        let file = match recent.iter().position(|(open, _)| *open == slot) {
            Some(at) => recent.remove(at).1,
            None => Arc::new(OpenOptions::new().read(true).write(true).open(segment_path(&self.path, slot))?),
        };
        if recent.len() == OPEN_MAX {
            recent.remove(0);
        }
        recent.push((slot, file.clone()));
        Ok(file)
    }

    fn forget_cached(&self, slot: u32) -> io::Result<()> {
        let file = File::open(segment_path(&self.path, slot))?;
        Ok(rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?)
    }
}

fn segment_path(folder: &Path, slot: u32) -> PathBuf {
    folder.join(format!("segment-{slot:06}"))
}

/// Makes the folder for the owner alone, and refuses filesystems that copy on write: there every write takes new
/// space, so that preallocation protects from nothing, and an `fdatasync` rewrites metadata.
pub(super) fn prepare_folder(path: &Path) -> Result<File, OpenError> {
    let failed = |source| OpenError::Folder { path: path.into(), source };
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    let folder = File::open(path).map_err(failed)?;
    rustix::fs::fchmod(&folder, rustix::fs::Mode::RWXU).map_err(|e| failed(e.into()))?;
    let magic = rustix::fs::fstatfs(&folder).map_err(|e| failed(e.into()))?.f_type;
    if let Some(filesystem) = copying_filesystem(magic as u64) {
        let nodatacow = rustix::fs::ioctl_getflags(&folder).is_ok_and(|flags| flags.contains(IFlags::NOCOW));
        if !nodatacow {
            return Err(OpenError::CopyOnWrite { path: path.into(), filesystem });
        }
    }
    Ok(folder)
}

/// The name of a filesystem that copies on write, by its magic number (statfs(2); ZFS: `ZFS_SUPER_MAGIC` of OpenZFS).
pub fn copying_filesystem(magic: u64) -> Option<&'static str> {
    match magic & 0xffff_ffff {
        0x9123_683e => Some("btrfs"),
        0x2fc1_2fc1 => Some("ZFS"),
        0xca45_1a4e => Some("bcachefs"),
        0x3434 => Some("nilfs2"),
        _ => None,
    }
}

/// Whether every segment file is there in full.
pub(super) fn is_complete(folder: &Path, slots: u32) -> bool {
    (0..slots).all(|slot| segment_path(folder, slot).metadata().is_ok_and(|meta| meta.len() == SEGMENT))
}

/// Writes the segment files that are not there yet, and removes what is too many. Zeroes are really written: an
/// unwritten extent would make each later `fdatasync` commit the filesystem's journal.
pub(super) fn create(path: &Path, folder: &File, slots: u32) -> Result<(), OpenError> {
    let failed = |source| OpenError::Create { path: path.into(), source };
    remove_surplus(path, slots).map_err(failed)?;
    let missing: Vec<u32> = (0..slots)
        .filter(|slot| !segment_path(path, *slot).metadata().is_ok_and(|meta| meta.len() == SEGMENT))
        .collect();
    let needed = missing.len() as u64 * SEGMENT;
    let space = rustix::fs::fstatvfs(folder).map_err(|e| failed(e.into()))?;
    let available = space.f_bavail * space.f_frsize;
    if needed > available {
        return Err(OpenError::Space { path: path.into(), needed, available });
    }
    info!(path = %path.display(), size = human_bytes(needed), "writing the log's segments, once");
    let mut reported = Instant::now();
    for (done, slot) in missing.iter().enumerate() {
        create_segment(path, *slot).map_err(failed)?;
        if reported.elapsed() >= REPORT_EVERY {
            reported = Instant::now();
            let written = human_bytes((done as u64 + 1) * SEGMENT);
            info!(path = %path.display(), written, of = human_bytes(needed), "writing the log's segments");
        }
    }
    folder.sync_all().map_err(failed)
}

/// Often enough to see that it goes on, seldom enough to be read.
const REPORT_EVERY: Duration = Duration::from_secs(5);

fn create_segment(folder: &Path, slot: u32) -> io::Result<()> {
    let unfinished = folder.join("unfinished");
    match std::fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
    let zeroes = vec![0; MIB as usize];
    for _ in 0..SEGMENT / MIB {
        file.write_all(&zeroes)?;
    }
    file.sync_all()?;
    std::fs::rename(unfinished, segment_path(folder, slot))
}

/// Removes segment files numbered `slots` and above.
fn remove_surplus(folder: &Path, slots: u32) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let slot = name.to_str().and_then(|name| name.strip_prefix("segment-")?.parse::<u32>().ok());
        if slot.is_some_and(|slot| slot >= slots) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Counterexample 30.
    #[test]
    fn filesystems_that_copy_on_write_are_known_by_their_magic() {
        assert_eq!(copying_filesystem(0x9123_683e), Some("btrfs"));
        assert_eq!(copying_filesystem(0xffff_ffff_9123_683e), Some("btrfs"), "sign-extended");
        assert_eq!(copying_filesystem(0x2fc1_2fc1), Some("ZFS"));
        assert_eq!(copying_filesystem(0xef53), None, "ext4");
        assert_eq!(copying_filesystem(0x5846_5342), None, "XFS");
    }

    #[test]
    fn a_creation_that_was_interrupted_is_finished() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let folder = prepare_folder(&path).unwrap();
        std::fs::write(path.join("unfinished"), [1; 100]).unwrap();
        std::fs::write(segment_path(&path, 1), [1; 100]).unwrap();
        std::fs::write(segment_path(&path, 2), [1; 100]).unwrap();
        assert!(!is_complete(&path, 2));
        create(&path, &folder, 2).unwrap();
        assert!(is_complete(&path, 2));
        assert!(!segment_path(&path, 2).exists(), "a segment beyond the size stays");
        assert!(std::fs::read(segment_path(&path, 1)).unwrap().iter().all(|byte| *byte == 0));
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&segment_path(&path, 0))), (0o700, 0o600));
    }

    #[test]
    fn all_slices_of_a_long_write_arrive_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
        let bytes: Vec<u8> = (0..5000u32).map(|n| (n % 251) as u8).collect();
        let mut slices: Vec<_> = bytes.chunks(2).map(IoSlice::new).collect();
        assert!(slices.len() > SLICES_MAX);
        slices.insert(7, IoSlice::new(&[]));
        SegmentIo::write_at(&file, &mut slices, 3).unwrap();
        assert_eq!(std::fs::read(&path).unwrap()[3..], bytes);
    }
}

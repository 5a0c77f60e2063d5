//! Folders and filesystems, looked at from outside.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, IFlags, accessat};

use super::Fault;

/// What the user that runs this may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "written",
        })
    }
}

/// Whether the effective user may read, or write as well; in a folder: list it, and make files.
pub fn require(path: &Path, access: Access) -> Result<(), Fault> {
    let mut wanted = rustix::fs::Access::READ_OK;
    wanted.set(rustix::fs::Access::WRITE_OK, access == Access::Write);
    wanted.set(rustix::fs::Access::EXEC_OK, path.is_dir());
    accessat(CWD, path, wanted, AtFlags::EACCESS).map_err(|error| Fault::NoAccess {
        path: path.to_owned(),
        access,
        source: error.into(),
    })
}

/// A folder that is there, or can be made.
#[derive(Debug, PartialEq, Eq)]
pub enum Folder {
    There,
    Absent,
}

impl Folder {
    /// Of the nearest folder that exists, whether it may be written to.
    pub fn look(path: &Path) -> Result<Self, Fault> {
        let nearest = existing(path);
        if !nearest.is_dir() {
            return Err(Fault::NotAFolder(nearest.to_owned()));
        }
        require(nearest, Access::Write)?;
        Ok(if nearest == path { Self::There } else { Self::Absent })
    }
}

/// The path itself, or the nearest above it that exists. A link that leads nowhere exists.
pub fn existing(path: &Path) -> &Path {
    path.ancestors().find(|ancestor| ancestor.symlink_metadata().is_ok()).unwrap_or(Path::new("/"))
}

/// Bytes that an ordinary user could still write.
pub fn free(path: &Path) -> io::Result<u64> {
    let space = rustix::fs::statvfs(path)?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize))
}

/// The filesystem's magic number (statfs(2)).
pub fn filesystem(path: &Path) -> io::Result<u64> {
    Ok(rustix::fs::statfs(path)?.f_type as u64)
}

pub fn has_nodatacow(folder: &Path) -> bool {
    fs::File::open(folder)
        .is_ok_and(|folder| rustix::fs::ioctl_getflags(&folder).is_ok_and(|flags| flags.contains(IFlags::NOCOW)))
}

/// Allocated to the files of the folder; 0 where there is none.
pub fn bytes_in(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|file| file.blocks() * 512).sum()
}

/// Whether somebody has the file locked whole for writing (flock(2)), as far as the kernel tells (proc_locks(5)).
pub fn is_locked(file: &fs::Metadata) -> bool {
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let device = file.dev();
    let wanted = format!("{:02x}:{:02x}:{}", rustix::fs::major(device), rustix::fs::minor(device), file.ino());
    locks.lines().any(|lock| {
        let words: Vec<&str> = lock.split_ascii_whitespace().collect();
        words.contains(&"FLOCK") && words.contains(&"WRITE") && words.contains(&wanted.as_str())
    })
}

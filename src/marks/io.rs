//! The file that the marks lie in, and what may stand in for it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// A preallocated file, or a simulation of one. Blocking.
#[allow(clippy::len_without_is_empty, reason = "a file's length is asked for, never whether it is empty")]
pub trait MarksIo: Send {
    /// Bytes of the file.
    fn len(&self) -> io::Result<u64>;
    /// Cuts the file, or makes it longer; what is new reads as zeroes.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Fills `buffer`, or fails.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `bytes`, beyond the end too.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes durable all that was written, and the length.
    fn sync(&self) -> io::Result<()>;
}

impl MarksIo for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

/// Opens the file at `path`, for its owner alone; if there is none, makes an empty one. On return its name is durable.
pub fn open_io(path: &Path) -> io::Result<Box<dyn MarksIo>> {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    // Also if the file was there: whoever made it may have died before this.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()?;
    // What was written there last may have failed: what is read is to be what is on the disk, or will be.
    let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
    Ok(Box::new(file))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_made_for_its_owner_alone_and_kept_when_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("marks");
        let io = open_io(&path).unwrap();
        assert_eq!(io.len().unwrap(), 0);
        io.write_at(b"here", 3).unwrap();
        io.sync().unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let io = open_io(&path).unwrap();
        let mut bytes = [1; 7];
        io.read_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, *b"\0\0\0here");
        assert!(io.read_at(&mut bytes, 1).is_err(), "a short read is not an error");
        assert!(open_io(&dir.path().join("no/such/folder")).is_err());
    }
}

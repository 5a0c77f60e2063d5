//! Opens a file or a block device and finds out what it is: kind, size, block sizes, name.
//!
//! Owns: refusing what is no disk, the lock against a second writer, creation. Changes nothing of what it finds, not
//! even a time stamp: what the filesystem can do is tried on an unnamed file beside.
//! Crash: a file under creation is left empty, and an empty file counts as absent when `create` is given.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, FallocateFlags, FlockOperation, Mode, OFlags, SeekFrom, StatxFlags, fallocate, flock, fstatfs,
    ioctl_blkpbszget, ioctl_blksszget, openat, seek, statx,
};

use crate::disk::{BlockSizes, ioctl};
use crate::units::{KIB, REQUEST_MAX};

/// How to open a file or device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Past the page cache (`O_DIRECT`). Requests are then multiples of the logical block size.
    pub direct: bool,
    /// Changes are refused, and no lock is taken.
    pub read_only: bool,
    /// Bytes: make the file, sparse, if it is absent or empty. Of no effect on what exists, on devices, and when read-only.
    pub create: Option<u64>,
}

/// Why there is no disk to be had at a path.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{} is {kind}; a store is a regular file or a block device", path.display())]
    NotADisk { path: PathBuf, kind: &'static str },
    #[error("{} is empty; give its size in `create`, or name another", path.display())]
    Empty { path: PathBuf },
    #[error("{} is open for writing in another program (its lock is held); stop that one first", path.display())]
    Locked { path: PathBuf },
    #[error("{} is mounted or in use by another driver; unmount it first", path.display())]
    InUse { path: PathBuf },
    #[error("the filesystem of {} has no direct I/O; open it buffered", path.display())]
    NoDirect { path: PathBuf },
    #[error(
        "{} has {size} bytes, which direct I/O in blocks of {block} cannot reach to the end; open it buffered, or \
         enlarge it to a multiple of {block}",
        path.display()
    )]
    Ragged { path: PathBuf, size: u64, block: u32 },
}

/// What was found out at opening, and does not change.
pub(super) struct Found {
    pub file: File,
    pub device: bool,
    pub size: u64,
    pub block: BlockSizes,
    /// Unit of discarding and zeroing by the device; 1 for files.
    pub erase_block: u64,
    pub rotational: bool,
    /// Holes can be punched (file), or the device zeroes without being sent zeroes.
    pub punches: bool,
    /// On tmpfs: reading and writing wait for nothing but memory.
    pub in_memory: bool,
    pub name: String,
}

/// What alignment is assumed for direct I/O where the filesystem does not tell (Linux before 6.1).
const DIRECT_BLOCK_ASSUMED: u32 = 4 * KIB as u32;

/// `TMPFS_MAGIC` of linux/magic.h.
const TMPFS: u64 = 0x0102_1994;

/// How long a process that was killed may seem to hold what it had open: the kernel ends what its io_uring was doing
/// first, beside everything else that it has to do.
const HOLDER_GONE_WITHIN: Duration = Duration::from_secs(3);
const HOLDER_PAUSE: Duration = Duration::from_millis(20);

/// Waits a moment for whoever holds it, see [`HOLDER_GONE_WITHIN`].
pub(super) fn open(path: &Path, options: Options) -> Result<Found, OpenError> {
    let begun = Instant::now();
    loop {
        match attempt(path, options) {
            Err(OpenError::Locked { .. } | OpenError::InUse { .. }) if begun.elapsed() < HOLDER_GONE_WITHIN => {
                std::thread::sleep(HOLDER_PAUSE);
            }
            opened => return opened,
        }
    }
}

fn attempt(path: &Path, options: Options) -> Result<Found, OpenError> {
    let create = options.create.filter(|_| !options.read_only);
    let failed = |action| {
        let path = path.to_owned();
        move |source: std::io::Error| OpenError::Io { action, path, source }
    };
    // Looked at before it is opened: opening a FIFO waits, and opening a tape moves it.
    let (device, absent) = match std::fs::metadata(path) {
        Ok(metadata) => (is_device(path, &metadata)?, false),
        Err(error) if error.kind() == ErrorKind::NotFound && create.is_some() => (false, true),
        Err(error) => return Err(failed("open")(error)),
    };

    let mut flags = OFlags::empty();
    flags.set(OFlags::DIRECT, options.direct);
    flags.set(OFlags::EXCL, device && !options.read_only || absent);
    let file = OpenOptions::new()
        .read(true)
        .write(!options.read_only || absent)
        .custom_flags((flags | if absent { OFlags::CREATE } else { OFlags::empty() }).bits() as i32)
        .mode(0o600)
        .open(path)
        .map_err(|error| match error.raw_os_error() {
            Some(libc::EBUSY) if device => OpenError::InUse { path: path.to_owned() },
            Some(libc::EINVAL) if options.direct => OpenError::NoDirect { path: path.to_owned() },
            _ => failed(if absent { "create" } else { "open" })(error),
        })?;
    let metadata = file.metadata().map_err(failed("look at"))?;
    if is_device(path, &metadata)? != device {
        return Err(failed("open")(ErrorKind::ResourceBusy.into()));
    }
    if !options.read_only {
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
            rustix::io::Errno::WOULDBLOCK => OpenError::Locked { path: path.to_owned() },
            error => failed("lock")(error.into()),
        })?;
    }
    if let Some(size) = create
        && !device
        // Asked again now that the lock is held: another may have created it in between.
        && file.metadata().map_err(failed("look at"))?.len() == 0
    {
        file.set_len(size).and_then(|()| file.sync_all()).map_err(failed("set the size of"))?;
        let folder = File::open(folder_of(path)).and_then(|folder| folder.sync_all());
        folder.map_err(failed("sync the folder of"))?;
    }

    let size = size(&file).map_err(|error| failed("measure")(error.into()))?;
    if size == 0 {
        return Err(OpenError::Empty { path: path.to_owned() });
    }
    let sysfs = device.then(|| Sysfs::of(metadata.rdev()));
    let logical = if device { ioctl_blksszget(&file).unwrap_or(512) } else { 1 };
    let minimum = if options.direct { logical.max(direct_block(&file)) } else { 1 };
    if size % u64::from(minimum) != 0 {
        return Err(OpenError::Ragged { path: path.to_owned(), size, block: minimum });
    }
    let physical = if device { ioctl_blkpbszget(&file).unwrap_or(logical) } else { 1 };
    Ok(Found {
        device,
        size,
        block: BlockSizes { minimum, preferred: physical.max(minimum).max(4 * KIB as u32), maximum: REQUEST_MAX },
        erase_block: u64::from(logical),
        // nbdkit calls no file rotational, and what lies under a file may be a disk, an array or a pool.
        rotational: sysfs.as_ref().is_some_and(|s| s.queue("rotational").is_some_and(|v| v == "1")),
        punches: match &sysfs {
            Some(sysfs) => sysfs.queue("write_zeroes_max_bytes").is_some_and(|v| v != "0"),
            None => folder_punches(folder_of(path), metadata.dev()),
        },
        in_memory: !device && !options.direct && fstatfs(&file).is_ok_and(|s| s.f_type as u64 == TMPFS),
        name: match &sysfs {
            Some(sysfs) => sysfs.name(),
            None => file_name(&file, &metadata),
        },
        file,
    })
}

/// Bytes of a file or device, as of now.
pub(super) fn size(file: &File) -> rustix::io::Result<u64> {
    seek(file, SeekFrom::End(0))
}

fn is_device(path: &Path, metadata: &std::fs::Metadata) -> Result<bool, OpenError> {
    let kind = metadata.file_type();
    let kind = match () {
        () if kind.is_file() => return Ok(false),
        () if kind.is_block_device() => return Ok(true),
        () if kind.is_dir() => "a directory",
        () if kind.is_socket() => "a socket",
        () if kind.is_fifo() => "a pipe",
        () => "a character device",
    };
    Err(OpenError::NotADisk { path: path.to_owned(), kind })
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// What direct I/O must be aligned to, in memory and on the disk alike.
fn direct_block(file: &File) -> u32 {
    /// `STATX_DIOALIGN` of linux/stat.h, Linux 6.1.
    const DIOALIGN: StatxFlags = StatxFlags::from_bits_retain(0x2000);
    match statx(file, c"", AtFlags::EMPTY_PATH, DIOALIGN) {
        Ok(stat) if stat.stx_mask & DIOALIGN.bits() != 0 && stat.stx_dio_offset_align != 0 => {
            stat.stx_dio_offset_align.max(stat.stx_dio_mem_align)
        }
        _ => DIRECT_BLOCK_ASSUMED,
    }
}

/// Whether holes can be punched on the filesystem of this folder. Not known is no.
fn folder_punches(folder: &Path, filesystem: u64) -> bool {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let Ok(trial) = openat(rustix::fs::CWD, folder, flags, Mode::from_raw_mode(0o600)) else { return false };
    rustix::fs::fstat(&trial).is_ok_and(|stat| stat.st_dev == filesystem)
        && fallocate(&trial, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, 4 * KIB).is_ok()
}

/// The filesystem's UUID where the kernel tells it; its device number, which another boot may change, where not.
fn file_name(file: &File, metadata: &std::fs::Metadata) -> String {
    match ioctl::filesystem_uuid(file) {
        Ok(uuid) => format!("file:{:032x}:{}", u128::from_be_bytes(uuid), metadata.ino()),
        Err(_) => format!("file:{}:{}", metadata.dev(), metadata.ino()),
    }
}

/// What sysfs says of a block device (Documentation/ABI/stable/sysfs-block).
struct Sysfs {
    numbers: String,
    folder: PathBuf,
}

impl Sysfs {
    fn of(rdev: u64) -> Self {
        let numbers = format!("{}:{}", rustix::fs::major(rdev), rustix::fs::minor(rdev));
        let folder = Path::new("/sys/dev/block").join(&numbers);
        // A link into the device tree, where a partition lies inside its disk.
        Self { folder: folder.canonicalize().unwrap_or(folder), numbers }
    }

    /// The disk's folder, and the partition's number if it is one.
    fn disk(&self) -> (&Path, Option<String>) {
        match (read(&self.folder.join("partition")), self.folder.parent()) {
            (Some(partition), Some(disk)) => (disk, Some(partition)),
            _ => (&self.folder, None),
        }
    }

    fn queue(&self, attribute: &str) -> Option<String> {
        read(&self.disk().0.join("queue").join(attribute))
    }

    /// What the hardware or the device mapper calls itself; the device's numbers where it has no name.
    fn name(&self) -> String {
        let (disk, partition) = self.disk();
        let attributes = ["wwid", "device/wwid", "dm/uuid", "md/uuid", "serial", "device/serial"];
        let name = attributes.iter().find_map(|attribute| read(&disk.join(attribute)));
        match (name, partition) {
            (None, _) => format!("device:{}", self.numbers),
            (Some(name), None) => format!("device:{name}"),
            (Some(name), Some(partition)) => format!("device:{name}:{partition}"),
        }
    }
}

fn read(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

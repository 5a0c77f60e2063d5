//! The trait [`Disk`]: one interface all the way down.
//!
//! A local store, the volume in front of it and whatever stands between them have the same interface, so that taking
//! a layer away leaves what was beneath it. Byte offsets and lengths everywhere; a request is valid if it lies inside
//! the disk's size and respects the minimum block size. Callers check that; a disk may answer
//! [`DiskError::Refused`] with `EINVAL` where they did not.
//!
//! **Durability.** A flush covers every change that had *completed when the flush was submitted*, on whatever
//! connection it completed. A change with `fua` is durable when it completes.
//!
//! **No cancellation.** An operation begins when the method is called or its [`Pending`] is first polled; dropping
//! the `Pending` does not take the operation back. Whoever must know the outcome polls to the end.

pub(crate) mod away;
pub mod conformance;
pub mod faulty;
pub mod file;
pub mod memory;

mod ioctl;

pub use faulty::FaultyDisk;
pub use file::FileDisk;
pub use memory::MemoryDisk;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;

/// What a disk is and what it can do. It advertises nothing that it cannot do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes; need not be a multiple of anything.
    pub size: u64,
    pub block: BlockSizes,
    pub abilities: Abilities,
}

impl Geometry {
    /// Refuses what lies outside the disk or off its block borders, with `EINVAL`.
    pub fn admit(&self, offset: u64, length: u64) -> Result<()> {
        let inside = offset.checked_add(length).is_some_and(|end| end <= self.size);
        let minimum = u64::from(self.block.minimum);
        if inside && offset.is_multiple_of(minimum) && length.is_multiple_of(minimum) {
            Ok(())
        } else {
            Err(DiskError::Refused(Errno::EINVAL))
        }
    }

    /// As [`admit`](Self::admit), and refuses every change of a read-only disk, with `EPERM`.
    pub fn admit_change(&self, offset: u64, length: u64) -> Result<()> {
        if self.abilities.read_only {
            return Err(DiskError::Refused(Errno::EPERM));
        }
        self.admit(offset, length)
    }
}

/// NBD's block size constraints (proto.md, "Block size constraints"), bytes; powers of two, minimum ≤ preferred ≤ maximum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    /// Offsets and lengths are multiples of this; 1 where the disk takes any.
    pub minimum: u32,
    pub preferred: u32,
    /// Largest payload of one request.
    pub maximum: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Abilities {
    pub read_only: bool,
    pub rotational: bool,
    pub flush: bool,
    /// Native, or by a flush after the change; without it `fua` must not be asked for.
    pub fua: bool,
    pub trim: bool,
    /// A trimmed range is known to read as zeroes afterwards.
    pub trim_reads_zero: bool,
    pub write_zeroes: bool,
    /// Zeroing that is not faster than writing can be refused with `ENOTSUP` at once.
    pub fast_zeroes: bool,
    pub cache: bool,
    /// [`Disk::extents`] tells more than "all data".
    pub extents: bool,
    /// A flush on one client connection covers what completed on every other.
    pub multi_conn: bool,
}

impl Abilities {
    /// Whether a disk that was found again can do all that this one can.
    pub fn are_kept_by(&self, now: &Self) -> bool {
        let promised = [
            (self.flush, now.flush),
            (self.fua, now.fua),
            (self.trim, now.trim),
            (self.write_zeroes, now.write_zeroes),
            (self.fast_zeroes, now.fast_zeroes),
            (self.cache, now.cache),
            (self.extents, now.extents),
            (self.multi_conn, now.multi_conn),
            (!self.read_only, !now.read_only),
        ];
        promised.iter().all(|&(had, has)| has || !had)
    }
}

/// How [`Disk::write_zeroes`] may go about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZeroMode {
    /// Leave no hole: the range stays allocated (NBD_CMD_FLAG_NO_HOLE).
    pub no_hole: bool,
    /// Fail with `ENOTSUP` rather than write zeroes slowly (NBD_CMD_FLAG_FAST_ZERO).
    pub fast_only: bool,
}

/// One run of a disk's allocation map, as in NBD's `base:allocation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub length: u64,
    /// Not allocated.
    pub hole: bool,
    /// Known to read as zeroes.
    pub zero: bool,
}

/// An errno of Linux.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    pub const EPERM: Self = Self(libc::EPERM);
    pub const EIO: Self = Self(libc::EIO);
    pub const ENOMEM: Self = Self(libc::ENOMEM);
    pub const EINVAL: Self = Self(libc::EINVAL);
    pub const ENOSPC: Self = Self(libc::ENOSPC);
    pub const EOVERFLOW: Self = Self(libc::EOVERFLOW);
    pub const ENOTSUP: Self = Self(libc::ENOTSUP);
    pub const ESHUTDOWN: Self = Self(libc::ESHUTDOWN);
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Errno({}: {self})", self.0)
    }
}

impl From<std::io::Error> for Errno {
    fn from(error: std::io::Error) -> Self {
        Self(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl From<rustix::io::Errno> for Errno {
    fn from(error: rustix::io::Errno) -> Self {
        Self(error.raw_os_error())
    }
}

/// Why an operation did not succeed, by what is known of its effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// The disk answered with an error; a change may have been made in part.
    #[error("{0}")]
    Io(Errno),
    /// No answer came, or none will: a change may have been made, or may still be made later.
    #[error("the connection to the disk was lost; the outcome is unknown")]
    Lost,
    /// The operation was never issued; nothing changed.
    #[error("refused: {0}")]
    Refused(Errno),
}

impl DiskError {
    /// What a client is told.
    pub fn errno(self) -> Errno {
        match self {
            Self::Io(errno) | Self::Refused(errno) => errno,
            Self::Lost => Errno::EIO,
        }
    }
}

impl From<rustix::io::Errno> for DiskError {
    fn from(error: rustix::io::Errno) -> Self {
        Self::Io(error.into())
    }
}

pub type Result<T> = std::result::Result<T, DiskError>;

/// An operation under way, or its answer where it was had at once: what is in the page cache costs no task.
pub enum Pending<T: 'static> {
    Ready(Option<Result<T>>),
    Later(Later<T>),
}

impl<T> Pending<T> {
    pub fn ready(answer: Result<T>) -> Self {
        Self::Ready(Some(answer))
    }
    pub fn later(future: impl Future<Output = Result<T>> + Send + 'static) -> Self {
        Self::Later(Later(Some(Box::pin(future))))
    }
}

impl<T: Unpin> Future for Pending<T> {
    type Output = Result<T>;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Ready(answer) => Poll::Ready(answer.take().expect("polled after it was ready")),
            Self::Later(later) => Pin::new(later).poll(cx),
        }
    }
}

/// An operation that goes on by being polled. Whoever drops it leaves it to a task of its own: it is never taken back.
pub struct Later<T: 'static>(Option<Pin<Box<dyn Future<Output = Result<T>> + Send>>>);

impl<T> Future for Later<T> {
    type Output = Result<T>;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let rest = &mut self.get_mut().0;
        let answer = rest.as_mut().expect("polled after it was ready").as_mut().poll(cx);
        if answer.is_ready() {
            *rest = None;
        }
        answer
    }
}

impl<T> Drop for Later<T> {
    fn drop(&mut self) {
        // Without a runtime there is nobody left who could complete anything.
        if let Some(rest) = self.0.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async { drop(rest.await) });
        }
    }
}

/// What tells one store from another, and a store that was changed behind our back from one that was not.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Identity {
    /// Which store it is: stays the same for its life (device and inode, WWN, export and URI).
    pub name: String,
    pub size: u64,
    /// Changes whenever its content was changed by anyone (a file's mtime, nanoseconds); none where nothing tells.
    pub modified: Option<i128>,
}

/// What [`Disk::rewrite`] makes of what a range holds: as many bytes to be written there, or nothing.
pub type Rewrite = Box<dyn FnOnce(Bytes) -> Option<Bytes> + Send>;

/// A disk: read, changed and flushed by byte ranges, many operations at a time, from any task.
pub trait Disk: Send + Sync + 'static {
    /// As of now; a disk may grow.
    fn geometry(&self) -> Geometry;

    /// Exactly `length` bytes (at most the maximum block size).
    fn read(&self, offset: u64, length: u32) -> Pending<Bytes>;

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> Pending<()>;

    /// Reads the range (at most the maximum block size) and writes what `change` makes of it; no other change of the
    /// range comes between. Nothing is written if it makes nothing. Says whether it was written.
    fn rewrite(&self, _offset: u64, _length: u32, _change: Rewrite, _fua: bool) -> Pending<bool> {
        Pending::ready(Err(DiskError::Refused(Errno::ENOTSUP)))
    }

    /// Makes durable all that had completed when this was called.
    fn flush(&self) -> Pending<()>;

    /// Tells the disk that the range is not needed; what it reads as afterwards is up to the disk, unless
    /// [`Abilities::trim_reads_zero`].
    fn trim(&self, offset: u64, length: u64, fua: bool) -> Pending<()>;

    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode, fua: bool) -> Pending<()>;

    /// A hint that the range will be read soon.
    fn cache(&self, offset: u64, length: u64) -> Pending<()>;

    /// The allocation map from `offset` on: at least one extent, in order, together at most `length` bytes (it may
    /// stop early, at most `limit` extents). "All data" is always a true answer.
    fn extents(&self, offset: u64, length: u64, limit: usize) -> Pending<Vec<Extent>>;

    /// After a failed flush: gives up whatever is cached of the disk's content, so that later reads show what is on
    /// the medium. False where that cannot be done.
    fn forget_cached(&self) -> Pending<bool> {
        Pending::ready(Ok(false))
    }

    fn identity(&self) -> Identity;

    /// How often the disk came back after it was lost. Whoever remembers the number knows that what had completed
    /// but was not flushed may be gone when it is higher.
    fn incarnation(&self) -> u64 {
        0
    }

    /// Takes back the error of a flush, or of a change with `fua`, that could not be told to whoever asked. A store tells
    /// once what it could not write: the next flush is told instead.
    fn owe(&self, _error: DiskError) {}
}

impl<D: Disk + ?Sized> Disk for std::sync::Arc<D> {
    fn geometry(&self) -> Geometry {
        (**self).geometry()
    }
    fn read(&self, offset: u64, length: u32) -> Pending<Bytes> {
        (**self).read(offset, length)
    }
    fn write(&self, offset: u64, data: Bytes, fua: bool) -> Pending<()> {
        (**self).write(offset, data, fua)
    }
    fn rewrite(&self, offset: u64, length: u32, change: Rewrite, fua: bool) -> Pending<bool> {
        (**self).rewrite(offset, length, change, fua)
    }
    fn flush(&self) -> Pending<()> {
        (**self).flush()
    }
    fn trim(&self, offset: u64, length: u64, fua: bool) -> Pending<()> {
        (**self).trim(offset, length, fua)
    }
    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode, fua: bool) -> Pending<()> {
        (**self).write_zeroes(offset, length, mode, fua)
    }
    fn cache(&self, offset: u64, length: u64) -> Pending<()> {
        (**self).cache(offset, length)
    }
    fn extents(&self, offset: u64, length: u64, limit: usize) -> Pending<Vec<Extent>> {
        (**self).extents(offset, length, limit)
    }
    fn forget_cached(&self) -> Pending<bool> {
        (**self).forget_cached()
    }
    fn identity(&self) -> Identity {
        (**self).identity()
    }
    fn incarnation(&self) -> u64 {
        (**self).incarnation()
    }
    fn owe(&self, error: DiskError) {
        (**self).owe(error);
    }
}

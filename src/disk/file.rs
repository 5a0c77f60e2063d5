//! A file or a block device as a [`Disk`].
//!
//! What a client of it sees is meant to be what it would see of `nbdkit file` on the same path. What is in the page
//! cache is read at once, in the caller's task. Short direct reads and writes, short reads of what is not in the page
//! cache, and flushes go through an io_uring (`ring`) where the kernel lets us have one, which is found out when the
//! disk is opened. All else runs on tokio's blocking threads, so methods are called inside a tokio runtime: what takes
//! longer than a hop to another thread, and buffered writes, which an io_uring would do one after the other, each
//! with its sync. An operation begins when its method is called.
//!
//! Owns: the descriptor and its lock, both until the last operation has ended. Dropping the disk waits a second at most
//! for what goes through the ring; after that the ring's thread keeps the lock. Errors of the kernel are passed on as
//! they are.
//! Crash: what was not flushed may be there, in part or not at all, as with any disk.

mod allocation;
mod erase;
mod open;
mod ring;

use std::fs::File;
use std::io::IoSlice;
use std::num::NonZeroU64;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use rustix::fs::{Advice, SeekFrom, fadvise, fdatasync, seek};
use rustix::io::{self, ReadWriteFlags, pwritev2, retry_on_intr};

use self::allocation::Allocation;
use self::erase::{Eraser, Latch};
pub use self::open::{OpenError, Options};
use self::ring::Ring;
use super::{Abilities, BlockSizes, Disk, Errno, Extent, Geometry, Identity, Pending, Result, ZeroMode};
use crate::units::{KIB, Span};

/// Up to this many bytes are copied from or to the page cache in the caller's task, or handed to the ring: some 30 µs,
/// about what a hop to another thread costs. What is larger would keep others waiting.
const INLINE_MAX: usize = 256 * KIB as usize;

/// A regular file or a block device.
pub struct FileDisk {
    inner: Arc<Inner>,
}

struct Inner {
    file: Arc<File>,
    /// None where the kernel has none for us, and where it would wait for nothing.
    ring: Option<Ring>,
    path: PathBuf,
    device: bool,
    size: AtomicU64,
    block: BlockSizes,
    abilities: Abilities,
    /// What buffers of direct I/O are aligned to; none where the page cache is used.
    direct: Option<usize>,
    in_memory: bool,
    name: String,
    read_nowait: Latch,
    write_nowait: Latch,
    eraser: Eraser,
    allocation: Allocation,
}

impl FileDisk {
    /// Opens what is at `path`. Unless read-only, no other writer that takes the same lock (another `FileDisk`, in this
    /// process or not) can have it at the same time, and a device must not be mounted.
    pub fn open(path: impl AsRef<Path>, options: Options) -> std::result::Result<Self, OpenError> {
        Self::open_with(path.as_ref(), options, Ring::start)
    }

    fn open_with(
        path: &Path,
        options: Options,
        start_ring: impl FnOnce(Arc<File>) -> std::io::Result<Ring>,
    ) -> std::result::Result<Self, OpenError> {
        let found = open::open(path, options)?;
        let direct = options.direct.then_some(found.block.minimum as usize);
        let eraser = Eraser::new(found.device, found.erase_block, direct.unwrap_or(1), found.punches);
        let writable = !options.read_only;
        let abilities = Abilities {
            read_only: options.read_only,
            rotational: found.rotational,
            flush: true,
            fua: writable,
            trim: writable,
            trim_reads_zero: writable && eraser.trim_reads_zero,
            write_zeroes: writable,
            fast_zeroes: writable && found.punches,
            cache: true,
            extents: seek(&found.file, SeekFrom::Hole(0)).is_ok(),
            // One descriptor serves all, and fdatasync knows no connections.
            multi_conn: true,
        };
        let file = Arc::new(found.file);
        let ring = if found.in_memory {
            None
        } else {
            start_ring(file.clone())
                .inspect_err(|error| {
                    tracing::debug!(path = %path.display(), %error, "no io_uring; operations run on threads instead");
                })
                .ok()
        };
        Ok(Self {
            inner: Arc::new(Inner {
                file,
                ring,
                path: path.to_owned(),
                device: found.device,
                size: AtomicU64::new(found.size),
                block: found.block,
                abilities,
                in_memory: found.in_memory,
                name: found.name,
                read_nowait: Latch::new(direct.is_none()),
                write_nowait: Latch::new(direct.is_none()),
                direct,
                eraser,
                allocation: Allocation::unknown(),
            }),
        })
    }

    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Whether it is a block device, not a file.
    pub fn is_device(&self) -> bool {
        self.inner.device
    }

    /// Looks at the size again, for a file or device that was resized; what is no multiple of the minimum block size
    /// is left out.
    pub fn refresh(&self) -> std::result::Result<Geometry, Errno> {
        let size = open::size(&self.inner.file)?;
        self.inner.size.store(size - size % u64::from(self.inner.block.minimum), Relaxed);
        Ok(self.geometry())
    }

    fn spawn<T: Send + 'static>(&self, work: impl FnOnce(&Inner) -> Result<T> + Send + 'static) -> Pending<T> {
        let inner = self.inner.clone();
        let task = tokio::task::spawn_blocking(move || work(&inner));
        // No answer comes only from a runtime that is being shut down.
        Pending::later(async move { task.await.unwrap_or(Err(super::DiskError::Lost)) })
    }
}

impl Inner {
    fn ring(&self) -> Option<&Ring> {
        self.ring.as_ref().filter(|ring| ring.is_open())
    }

    /// The ring, if an operation of this length goes through it.
    fn ring_for(&self, length: usize) -> Option<&Ring> {
        self.ring().filter(|_| (1..=INLINE_MAX).contains(&length))
    }

    /// Reads into an empty buffer what can be read without waiting.
    fn read_now(&self, buffer: &mut Vec<u8>, length: usize, offset: u64) {
        if length > INLINE_MAX {
            return;
        }
        // An error is left to the attempt that waits.
        if self.in_memory {
            let _ = read_to(&self.file, buffer, length, offset);
        } else {
            let _: io::Result<bool> = self.read_nowait.attempt(|| read_cached(&self.file, buffer, length, offset));
        }
    }

    /// How many bytes could be written without waiting. An error is left to the attempt that waits.
    fn write_now(&self, data: &[u8], offset: u64) -> usize {
        if data.len() > INLINE_MAX {
            return 0;
        }
        if self.in_memory {
            let result = write_all(&self.file, data, offset, false);
            return if result.is_ok() { data.len() } else { 0 };
        }
        let mut written = 0;
        let _: io::Result<bool> = self.write_nowait.attempt(|| {
            written = pwritev2(&self.file, &[IoSlice::new(data)], offset, ReadWriteFlags::NOWAIT)?;
            Ok(())
        });
        written
    }

    fn sync(&self) -> Result<()> {
        // The size never changes here, and what else is needed to find the data again is covered by fdatasync.
        Ok(retry_on_intr(|| fdatasync(&self.file))?)
    }

    /// What trims and zeroes share: nothing to do for an empty range, and `fua` by a flush, as nbdkit has it.
    fn erase(&self, span: Span, fua: bool, how: impl FnOnce(&Eraser) -> Result<()>) -> Result<()> {
        if !span.is_empty() {
            let erased = how(&self.eraser);
            // A part of it may be, when it failed.
            self.allocation.erased();
            erased?;
        }
        if fua { self.sync() } else { Ok(()) }
    }
}

impl Disk for FileDisk {
    fn geometry(&self) -> Geometry {
        let inner = &self.inner;
        Geometry { size: inner.size.load(Relaxed), block: inner.block, abilities: inner.abilities }
    }

    fn read(&self, offset: u64, length: u32) -> Pending<Bytes> {
        if let Err(refused) = self.geometry().admit(offset, length.into()) {
            return Pending::ready(Err(refused));
        }
        let length = length as usize;
        let ring = self.inner.ring_for(length);
        if let Some(alignment) = self.inner.direct {
            if let Some(ring) = ring {
                return ring.read(Aligned::reserved(length, alignment), 0, offset);
            }
            return self.spawn(move |inner| {
                let Aligned { mut bytes, start, .. } = Aligned::reserved(length, alignment);
                read_to(&inner.file, &mut bytes, start + length, offset)?;
                Ok(Bytes::from(bytes).slice(start..))
            });
        }
        let mut buffer = Vec::with_capacity(length);
        self.inner.read_now(&mut buffer, length, offset);
        if buffer.len() == length {
            return Pending::ready(Ok(buffer.into()));
        }
        if let Some(ring) = ring {
            let done = buffer.len();
            return ring.read(Aligned { bytes: buffer, start: 0, length }, done, offset);
        }
        self.spawn(move |inner| {
            let rest_at = offset + buffer.len() as u64;
            read_to(&inner.file, &mut buffer, length, rest_at)?;
            Ok(buffer.into())
        })
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> Pending<()> {
        if let Err(refused) = self.geometry().admit_change(offset, data.len() as u64) {
            return Pending::ready(Err(refused));
        }
        let done = if fua { 0 } else { self.inner.write_now(&data, offset) };
        if done == data.len() && !fua {
            return Pending::ready(Ok(()));
        }
        if let (Some(alignment), Some(ring)) = (self.inner.direct, self.inner.ring_for(data.len())) {
            return ring.write(aligned(data, alignment), offset, fua);
        }
        self.spawn(move |inner| {
            let data = aligned(data, inner.direct.unwrap_or(1));
            write_all(&inner.file, &data[done..], offset + done as u64, fua)
        })
    }

    fn flush(&self) -> Pending<()> {
        match self.inner.ring() {
            Some(ring) => ring.sync(),
            None => self.spawn(Inner::sync),
        }
    }

    fn trim(&self, offset: u64, length: u64, fua: bool) -> Pending<()> {
        if let Err(refused) = self.geometry().admit_change(offset, length) {
            return Pending::ready(Err(refused));
        }
        let span = Span::at(offset, length);
        self.spawn(move |inner| inner.erase(span, fua, |eraser| eraser.trim(&inner.file, span)))
    }

    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode, fua: bool) -> Pending<()> {
        if let Err(refused) = self.geometry().admit_change(offset, length) {
            return Pending::ready(Err(refused));
        }
        let span = Span::at(offset, length);
        self.spawn(move |inner| inner.erase(span, fua, |eraser| eraser.zero(&inner.file, span, mode)))
    }

    fn cache(&self, offset: u64, length: u64) -> Pending<()> {
        if let Err(refused) = self.geometry().admit(offset, length) {
            return Pending::ready(Err(refused));
        }
        // Zero would mean "to the end of the file".
        let Some(length) = NonZeroU64::new(length) else { return Pending::ready(Ok(())) };
        self.spawn(move |inner| Ok(retry_on_intr(|| fadvise(&inner.file, offset, Some(length), Advice::WillNeed))?))
    }

    fn extents(&self, offset: u64, length: u64, limit: usize) -> Pending<Vec<Extent>> {
        if let Err(refused) = self.geometry().admit(offset, length) {
            return Pending::ready(Err(refused));
        }
        if !self.inner.abilities.extents {
            return Pending::ready(Ok(vec![Extent { length, hole: false, zero: false }]));
        }
        self.spawn(move |inner| inner.allocation.extents(&inner.file, Span::at(offset, length), limit))
    }

    fn forget_cached(&self) -> Pending<bool> {
        self.spawn(|inner| {
            // Nothing is cached of what is read directly; clean pages are dropped, and those of a failed write-back
            // are clean.
            retry_on_intr(|| fadvise(&inner.file, 0, None, Advice::DontNeed))?;
            Ok(true)
        })
    }

    fn identity(&self) -> Identity {
        let inner = &self.inner;
        let modified = if inner.device { None } else { inner.file.metadata().ok() };
        Identity {
            name: inner.name.clone(),
            size: inner.size.load(Relaxed),
            modified: modified.map(|m| i128::from(m.mtime()) * 1_000_000_000 + i128::from(m.mtime_nsec())),
        }
    }
}

/// Appends what stands from `offset` on until the buffer holds `end` bytes, for which it has room. The end of the file
/// before that means that somebody cut it off under us: `EIO`.
fn read_to(file: &File, buffer: &mut Vec<u8>, end: usize, mut offset: u64) -> io::Result<()> {
    while buffer.len() < end {
        let there = buffer.len();
        let room = &mut buffer.spare_capacity_mut()[..end - there];
        let read = retry_on_intr(|| io::pread(file, &mut *room, offset).map(|(read, _)| read.len()))?;
        if read == 0 {
            return Err(io::Errno::IO);
        }
        // SAFETY: so many bytes of the room behind those that are there were written just now.
        unsafe { buffer.set_len(there + read) };
        offset += read as u64;
    }
    Ok(())
}

/// Appends what the page cache has of the next `length` bytes, for which the buffer has room.
fn read_cached(file: &File, buffer: &mut Vec<u8>, length: usize, offset: u64) -> io::Result<()> {
    let room = &mut buffer.spare_capacity_mut()[..length];
    let slice = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
    // SAFETY: the kernel writes into `room` alone, and is done when it returns.
    let read = unsafe { libc::preadv2(file.as_raw_fd(), &slice, 1, offset as i64, libc::RWF_NOWAIT) };
    let Ok(read) = usize::try_from(read) else {
        return Err(io::Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(io::Errno::IO));
    };
    // SAFETY: so many bytes of the room behind those that are there were written just now.
    unsafe { buffer.set_len(buffer.len() + read) };
    Ok(())
}

/// Writes all of it. With `fua`, each piece is durable before the next one begins, and only what was written here is
/// waited for.
fn write_all(file: &File, mut data: &[u8], mut offset: u64, fua: bool) -> Result<()> {
    let flags = if fua { ReadWriteFlags::DSYNC } else { ReadWriteFlags::empty() };
    while !data.is_empty() {
        let written = retry_on_intr(|| pwritev2(file, &[IoSlice::new(data)], offset, flags))?;
        if written == 0 {
            return Err(io::Errno::IO.into());
        }
        data = &data[written..];
        offset += written as u64;
    }
    Ok(())
}

/// The data itself where it begins at a multiple of `alignment` in memory, or else a copy that does.
fn aligned(data: Bytes, alignment: usize) -> Bytes {
    if (data.as_ptr() as usize).is_multiple_of(alignment) {
        return data;
    }
    let mut copy = Aligned::reserved(data.len(), alignment);
    copy.bytes.extend_from_slice(&data);
    copy.into_bytes()
}

/// A buffer that begins at a multiple of some power of two in memory, inside a longer one.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    fn zeroed(length: usize, alignment: usize) -> Self {
        let bytes = vec![0; length + alignment - 1];
        let start = (bytes.as_ptr() as usize).next_multiple_of(alignment) - bytes.as_ptr() as usize;
        Self { bytes, start, length }
    }

    /// With room for `length` bytes, none of which were written to yet.
    fn reserved(length: usize, alignment: usize) -> Self {
        let mut bytes = Vec::with_capacity(length + alignment - 1);
        let start = (bytes.as_ptr() as usize).next_multiple_of(alignment) - bytes.as_ptr() as usize;
        bytes.resize(start, 0);
        Self { bytes, start, length }
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.length]
    }

    fn into_bytes(self) -> Bytes {
        Bytes::from(self.bytes).slice(self.start..self.start + self.length)
    }
}

#[cfg(test)]
mod tests;

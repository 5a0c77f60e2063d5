//! What of a file the page cache holds, and what of that is lent.
//!
//! Whoever sends from the page cache lends its pages to a socket until the peer has them. A lent page cannot be given
//! up: were it of a write that never reached the medium, it would go on showing that write. So it is known whether any
//! may be lent, and whoever gives up what is cached looks whether all of it went.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::sleep;
use std::time::Duration;

use rustix::fs::{Advice, fadvise, fstatfs};
use rustix::io::retry_on_intr;
use rustix::param::page_size;

use crate::units::{MIB, Span};

/// More is not asked for at once: asking takes some 10 ns a page.
const SPAN_MAX: u64 = 4 * MIB;
/// `XFS_SUPER_MAGIC` of linux/magic.h.
const XFS: u64 = 0x5846_5342;
/// How often, and how far apart, pages that are lent are tried to be given up.
const ATTEMPTS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(50);

/// A file's mapping, which nobody ever touches: the kernel tells only of what is mapped.
pub(super) struct Residence {
    address: *mut libc::c_void,
    length: u64,
    lent: AtomicBool,
}

// SAFETY: the address is never followed, and what is asked about it may be asked by any thread.
unsafe impl Send for Residence {}
// SAFETY: as above.
unsafe impl Sync for Residence {}

impl Residence {
    /// None where pages that are lent could not be found again (before Linux 6.5), or where sending from the page cache
    /// waits for writers of the same file (XFS).
    pub fn of(file: &File, size: u64) -> Option<Self> {
        let waits = fstatfs(file).is_ok_and(|found| found.f_type as u64 == XFS);
        if waits || cached(file).is_err() {
            return None;
        }
        let length = usize::try_from(size).ok()?;
        // SAFETY: a new mapping, at an address of the kernel's choice, that allows no access.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_NONE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                0,
            )
        };
        // Of pages that were lent before this gateway began nothing is known.
        (address != libc::MAP_FAILED).then(|| Self { address, length: size, lent: AtomicBool::new(true) })
    }

    /// Whether all of the span can be had without waiting. Whoever asks is about to lend it.
    pub fn holds(&self, span: Span) -> bool {
        if span.is_empty() || span.len() > SPAN_MAX || span.end > self.length {
            return false;
        }
        let page = page_size() as u64;
        let start = span.start / page * page;
        let length = (span.end - start) as usize;
        let mut pages = [0; (SPAN_MAX / 4096 + 1) as usize];
        let count = length.div_ceil(page as usize);
        // SAFETY: the range lies inside the mapping, and the kernel writes a byte for each of its pages, which are
        // `count`, not more than there is room for: a page has 4096 bytes or more.
        let answer = unsafe { libc::mincore(self.address.byte_add(start as usize), length, pages.as_mut_ptr()) };
        // The lowest bit; of a page that is still being read it is not set.
        let holds = answer == 0 && pages[..count].iter().all(|page| page & 1 == 1);
        if holds {
            self.lent.store(true, Relaxed);
        }
        holds
    }

    /// Whether the page cache shows nothing any more that the medium may not have, given that it was told so. Pages that
    /// others read meanwhile are taken for ones that stayed.
    pub fn gave_up(&self, file: &File) -> bool {
        if !self.lent.swap(false, Relaxed) {
            return true;
        }
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                sleep(PAUSE);
                let _ = retry_on_intr(|| fadvise(file, 0, None, Advice::DontNeed));
            }
            if cached(file).is_ok_and(|pages| pages == 0) {
                return true;
            }
        }
        self.lent.store(true, Relaxed);
        false
    }
}

impl Drop for Residence {
    fn drop(&mut self) {
        // SAFETY: nobody follows the address, and nobody asks about it any more.
        unsafe { libc::munmap(self.address, self.length as usize) };
    }
}

/// How many pages of a file are cached and as on the medium, as far as the kernel knows.
fn cached(file: &File) -> io::Result<u64> {
    /// Its number is the same on all machines.
    const CACHESTAT: libc::c_long = 451;
    #[repr(C)]
    struct Range {
        offset: u64,
        /// Zero is all that comes.
        length: u64,
    }
    #[repr(C)]
    #[derive(Default)]
    struct Found {
        cached: u64,
        dirty: u64,
        writeback: u64,
        evicted: u64,
        recently_evicted: u64,
    }
    let range = Range { offset: 0, length: 0 };
    let mut found = Found::default();
    // SAFETY: both are as the kernel's `struct cachestat_range` and `struct cachestat`, and outlive the call.
    let answer = unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), &raw const range, &raw mut found, 0) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(found.cached.saturating_sub(found.dirty + found.writeback))
}

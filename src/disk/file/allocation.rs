//! Where a file has data, and where holes.
//!
//! The end of a run of data is remembered: some filesystems find it page by page, so that whoever looks at a file piece by
//! piece would have all the rest of it looked at each time (tens of milliseconds for each GiB of a file in tmpfs, at each look).
//! What is remembered is forgotten when anything is erased through this disk. Whoever else punches holes is noticed
//! late, which costs reads of zeroes and nothing more: "data" is always a true answer.

use std::fs::File;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{SeekFrom, seek};
use rustix::io;

use crate::disk::{Extent, Result};
use crate::units::Span;

pub(super) struct Allocation {
    known: Mutex<Known>,
}

#[derive(Clone, Copy)]
struct Known {
    /// All of it is data.
    data: Span,
    /// How often something was erased.
    erased: u64,
}

impl Allocation {
    pub fn unknown() -> Self {
        Self { known: Mutex::new(Known { data: Span::new(0, 0), erased: 0 }) }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After a range was erased.
    pub fn erased(&self) {
        let known = &mut *self.known();
        *known = Known { data: Span::new(0, 0), erased: known.erased + 1 };
    }

    /// The map of a range: at least one extent if it is not empty, at most `limit`.
    pub fn extents(&self, file: &File, span: Span, limit: usize) -> Result<Vec<Extent>> {
        let mut extents = Vec::new();
        let mut at = span.start;
        while at < span.end && extents.len() < limit {
            let (end, hole) = self.run(file, at, span.end)?;
            // Nothing in between: what was data has become a hole meanwhile. Look again.
            if end > at {
                extents.push(Extent { length: end - at, hole, zero: hole });
                at = end;
            }
        }
        Ok(extents)
    }

    /// The end of the run that `at` lies in, at most `end`, and whether it is a hole.
    fn run(&self, file: &File, at: u64, end: u64) -> io::Result<(u64, bool)> {
        let known = *self.known();
        if known.data.start <= at && at < known.data.end {
            return Ok((known.data.end.min(end), false));
        }
        // Past the last data, SEEK_DATA answers with ENXIO; so do both past the end of a file that became shorter.
        let find = |from| match seek(file, from) {
            Ok(found) => Ok(found),
            Err(io::Errno::NXIO) => Ok(end),
            Err(error) => Err(error),
        };
        let data = find(SeekFrom::Data(at))?;
        if data > at {
            return Ok((data.min(end), true));
        }
        let data = Span::new(at, find(SeekFrom::Hole(at))?.max(at));
        let mut now = self.known();
        // Else a hole that was punched meanwhile might be hidden until the next one is.
        if now.erased == known.erased {
            now.data = data;
        }
        Ok((data.end.min(end), false))
    }
}

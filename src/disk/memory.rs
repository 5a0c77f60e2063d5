//! A disk in memory: sparse, by pages; what was never written takes none.
//!
//! For tests and small tools. Every operation is complete when its method returns, and there is nothing to flush.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::{
    Abilities, BlockSizes, Disk, DiskError, Errno, Extent, Geometry, Identity, Pending, Result, Rewrite, ZeroMode,
};
use crate::units::{KIB, REQUEST_MAX, Span};

/// Unit of allocation, and so of holes.
const PAGE: u64 = 64 * KIB;

/// A disk in memory, zero at first.
pub struct MemoryDisk {
    geometry: Geometry,
    name: String,
    content: Mutex<Content>,
}

struct Content {
    pages: BTreeMap<u64, Box<[u8]>>,
    changes: i128,
}

impl MemoryDisk {
    /// A disk of `size` bytes that takes any offset and length and can do all there is.
    pub fn new(size: u64) -> Self {
        Self::with_geometry(Geometry {
            size,
            block: BlockSizes { minimum: 1, preferred: 4 * KIB as u32, maximum: REQUEST_MAX },
            abilities: Abilities {
                read_only: false,
                rotational: false,
                flush: true,
                fua: true,
                trim: true,
                trim_reads_zero: true,
                write_zeroes: true,
                fast_zeroes: true,
                cache: true,
                extents: true,
                multi_conn: true,
            },
        })
    }

    /// A disk that is less able. What it is not able to do it refuses with `ENOTSUP`; without `trim_reads_zero` a trim
    /// leaves the content as it was.
    pub fn with_geometry(geometry: Geometry) -> Self {
        Self {
            geometry,
            name: "memory".to_owned(),
            content: Mutex::new(Content { pages: BTreeMap::new(), changes: 0 }),
        }
    }

    /// Under another name, where one disk must be told from another.
    #[must_use]
    pub fn named(self, name: impl Into<String>) -> Self {
        Self { name: name.into(), ..self }
    }

    /// Bytes of memory that hold content.
    pub fn allocated(&self) -> u64 {
        self.lock().pages.len() as u64 * PAGE
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        // A page is never left half made: what another thread panicked over is as good as before.
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, span: (u64, u64), able: bool, make: impl FnOnce(&mut Content, Span)) -> Pending<()> {
        let (offset, length) = span;
        Pending::ready(self.geometry.admit_change(offset, length).and_then(|()| {
            require(able)?;
            let mut content = self.lock();
            content.changes += 1;
            make(&mut content, Span::at(offset, length));
            Ok(())
        }))
    }
}

fn require(able: bool) -> Result<()> {
    if able { Ok(()) } else { Err(DiskError::Refused(Errno::ENOTSUP)) }
}

/// The pages that a range touches: number, and the part of the page.
fn pages(span: Span) -> impl Iterator<Item = (u64, Span)> {
    let touched = span.rounded_out(PAGE);
    (touched.start / PAGE..touched.end / PAGE).filter_map(move |page| {
        let part = Span::at(page * PAGE, PAGE).intersect(span);
        (!part.is_empty()).then(|| (page, Span::new(part.start - page * PAGE, part.end - page * PAGE)))
    })
}

fn range(span: Span) -> std::ops::Range<usize> {
    span.start as usize..span.end as usize
}

impl Content {
    fn read(&self, span: Span) -> Bytes {
        let mut bytes = Vec::with_capacity(span.len() as usize);
        for (page, part) in pages(span) {
            match self.pages.get(&page) {
                Some(page) => bytes.extend_from_slice(&page[range(part)]),
                None => bytes.resize(bytes.len() + part.len() as usize, 0),
            }
        }
        bytes.into()
    }

    fn write(&mut self, span: Span, mut data: &[u8]) {
        for (page, part) in pages(span) {
            let (piece, rest) = data.split_at(part.len() as usize);
            self.allocate(page)[range(part)].copy_from_slice(piece);
            data = rest;
        }
    }

    fn allocate(&mut self, page: u64) -> &mut [u8] {
        self.pages.entry(page).or_insert_with(|| vec![0; PAGE as usize].into())
    }

    /// Takes time for the pages that exist, not for the length.
    fn punch(&mut self, span: Span) {
        let whole = span.rounded_in(PAGE);
        let (first, end) = (whole.start / PAGE, whole.end / PAGE);
        let gone: Vec<_> = self.pages.range(first..end).map(|(page, _)| *page).collect();
        for page in gone {
            self.pages.remove(&page);
        }
        let touched = span.rounded_out(PAGE);
        for page in [touched.start / PAGE, (touched.end / PAGE).saturating_sub(1)] {
            let part = Span::at(page * PAGE, PAGE).intersect(span);
            if let Some(bytes) = self.pages.get_mut(&page) {
                bytes[range(Span::at(part.start - page * PAGE, part.len()))].fill(0);
            }
        }
    }

    fn zero_allocated(&mut self, span: Span) {
        for (page, part) in pages(span) {
            self.allocate(page)[range(part)].fill(0);
        }
    }

    fn extents(&self, span: Span, limit: usize) -> Vec<Extent> {
        let mut extents: Vec<Extent> = Vec::new();
        let mut at = span.start;
        while at < span.end {
            let full = extents.len() == limit;
            let page = at / PAGE;
            let hole = !self.pages.contains_key(&page);
            let next = if hole {
                self.pages.range((Excluded(page), Unbounded)).next().map_or(span.end, |(next, _)| next * PAGE)
            } else {
                (page + 1) * PAGE
            };
            let length = next.min(span.end) - at;
            match extents.last_mut() {
                Some(last) if last.hole == hole => last.length += length,
                _ if full => break,
                _ => extents.push(Extent { length, hole, zero: hole }),
            }
            at += length;
        }
        extents
    }
}

impl Disk for MemoryDisk {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read(&self, offset: u64, length: u32) -> Pending<Bytes> {
        let admitted = self.geometry.admit(offset, length.into());
        Pending::ready(admitted.map(|()| self.lock().read(Span::at(offset, length.into()))))
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> Pending<()> {
        let able = !fua || self.geometry.abilities.fua;
        self.change((offset, data.len() as u64), able, |content, span| content.write(span, &data))
    }

    fn rewrite(&self, offset: u64, length: u32, change: Rewrite, fua: bool) -> Pending<bool> {
        Pending::ready(self.geometry.admit_change(offset, length.into()).and_then(|()| {
            require(!fua || self.geometry.abilities.fua)?;
            let mut content = self.lock();
            let span = Span::at(offset, length.into());
            let Some(data) = change(content.read(span)) else { return Ok(false) };
            if data.len() as u64 != span.len() {
                return Err(DiskError::Refused(Errno::EINVAL));
            }
            content.changes += 1;
            content.write(span, &data);
            Ok(true)
        }))
    }

    fn flush(&self) -> Pending<()> {
        Pending::ready(require(self.geometry.abilities.flush))
    }

    fn trim(&self, offset: u64, length: u64, fua: bool) -> Pending<()> {
        let abilities = self.geometry.abilities;
        self.change((offset, length), abilities.trim && (!fua || abilities.fua), |content, span| {
            if abilities.trim_reads_zero {
                content.punch(span);
            }
        })
    }

    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode, fua: bool) -> Pending<()> {
        let abilities = self.geometry.abilities;
        // To zero memory page by page is no faster than to write it.
        let slow = mode.fast_only && (mode.no_hole || !abilities.fast_zeroes);
        let able = abilities.write_zeroes && !slow && (!fua || abilities.fua);
        self.change((offset, length), able, |content, span| {
            if mode.no_hole { content.zero_allocated(span) } else { content.punch(span) }
        })
    }

    fn cache(&self, offset: u64, length: u64) -> Pending<()> {
        Pending::ready(self.geometry.admit(offset, length))
    }

    fn extents(&self, offset: u64, length: u64, limit: usize) -> Pending<Vec<Extent>> {
        Pending::ready(self.geometry.admit(offset, length).map(|()| {
            if self.geometry.abilities.extents {
                self.lock().extents(Span::at(offset, length), limit)
            } else {
                vec![Extent { length, hole: false, zero: false }]
            }
        }))
    }

    fn forget_cached(&self) -> Pending<bool> {
        Pending::ready(Ok(true))
    }

    fn identity(&self) -> Identity {
        Identity { name: self.name.clone(), size: self.geometry.size, modified: Some(self.lock().changes) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::disk::conformance;
    use crate::units::{MIB, TIB};

    #[tokio::test]
    async fn it_is_a_disk() {
        conformance::check(Arc::new(MemoryDisk::new(3 * MIB + 77))).await;
    }

    #[tokio::test]
    async fn it_is_a_disk_where_it_can_do_next_to_nothing() {
        let able = MemoryDisk::new(MIB).geometry();
        let block = BlockSizes { minimum: 4096, ..able.block };
        let plain = Geometry { block, abilities: Abilities::default(), ..able };
        conformance::check(Arc::new(MemoryDisk::with_geometry(plain))).await;
        let trims = Abilities { trim: true, write_zeroes: true, flush: true, ..Abilities::default() };
        conformance::check(Arc::new(MemoryDisk::with_geometry(Geometry { abilities: trims, ..able }))).await;
        let read_only = Abilities { read_only: true, extents: true, ..Abilities::default() };
        conformance::check(Arc::new(MemoryDisk::with_geometry(Geometry { abilities: read_only, ..able }))).await;
    }

    #[tokio::test]
    async fn a_huge_disk_costs_what_was_written_to_it() {
        let disk = MemoryDisk::new(64 * TIB);
        disk.write(63 * TIB + 5, Bytes::from_static(b"there"), false).await.unwrap();
        assert_eq!(disk.allocated(), PAGE);
        let holes = disk.extents(0, 64 * TIB, 16).await.unwrap();
        assert_eq!(holes.iter().map(|e| e.hole).collect::<Vec<_>>(), [true, false, true]);
        disk.trim(0, 64 * TIB, false).await.unwrap();
        assert_eq!(disk.allocated(), 0);
    }
}

//! Bytes of simulated devices and of points: pages that copies share until one is written, and none where all is zero.
//! A copy, a comparison and a crash cost what was written, not what could have been.

use std::ops::Range;
use std::sync::Arc;

use crate::units::{SECTOR, Span, is_zero};

const PAGE: usize = 4096;

type Page = [u8; PAGE];

static ZERO: Page = [0; PAGE];

#[derive(Clone, Default)]
pub struct Pages {
    pages: Vec<Option<Arc<Page>>>,
    length: u64,
}

impl Pages {
    /// So many bytes, all of them zero.
    pub fn zero(length: u64) -> Self {
        Self { pages: vec![None; (length as usize).div_ceil(PAGE)], length }
    }

    pub fn len(&self) -> u64 {
        self.length
    }

    /// Cuts it, or adds zeroes.
    pub fn set_len(&mut self, length: u64) {
        if length < self.length {
            self.fill_zero(Span::new(length, self.length));
        }
        self.pages.resize((length as usize).div_ceil(PAGE), None);
        self.length = length;
    }

    fn page(&self, at: usize) -> &Page {
        self.pages[at].as_deref().unwrap_or(&ZERO)
    }

    /// Where a span lies: page by page, the part of the page and the part of the span.
    fn parts(&self, span: Span) -> impl Iterator<Item = (usize, Range<usize>, Range<usize>)> + use<> {
        assert!(span.end <= self.length, "{span} of {} bytes", self.length);
        let (start, end) = (span.start as usize, span.end as usize);
        (start / PAGE..end.div_ceil(PAGE)).map(move |page| {
            let (from, to) = (start.max(page * PAGE), end.min((page + 1) * PAGE));
            (page, from - page * PAGE..to - page * PAGE, from - start..to - start)
        })
    }

    pub fn read(&self, offset: u64, buffer: &mut [u8]) {
        for (page, within, part) in self.parts(Span::at(offset, buffer.len() as u64)) {
            buffer[part].copy_from_slice(&self.page(page)[within]);
        }
    }

    pub fn bytes(&self, span: Span) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(span.len() as usize);
        self.parts(span).for_each(|(page, within, _)| bytes.extend_from_slice(&self.page(page)[within]));
        bytes
    }

    /// What a sector holds.
    pub fn sector(&self, sector: u64) -> &[u8] {
        let span = sector_span(sector);
        assert!(span.end <= self.length, "sector {sector} of {} bytes", self.length);
        &self.page(span.start as usize / PAGE)[span.start as usize % PAGE..][..SECTOR as usize]
    }

    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        for (page, within, part) in self.parts(Span::at(offset, bytes.len() as u64)) {
            let bytes = &bytes[part];
            if self.pages[page].is_some() || !is_zero(bytes) {
                self.own(page)[within].copy_from_slice(bytes);
            }
        }
    }

    pub fn fill_zero(&mut self, span: Span) {
        for (page, within, _) in self.parts(span) {
            if within.len() == PAGE {
                self.pages[page] = None;
            } else if self.pages[page].is_some() {
                self.own(page)[within].fill(0);
            }
        }
    }

    /// Takes over what another has in this span.
    pub fn take(&mut self, other: &Self, span: Span) {
        for (page, within, _) in self.parts(span) {
            if within.len() == PAGE {
                self.pages[page].clone_from(&other.pages[page]);
            } else if other.pages[page].is_some() || self.pages[page].is_some() {
                self.own(page)[within.clone()].copy_from_slice(&other.page(page)[within]);
            }
        }
    }

    fn own(&mut self, page: usize) -> &mut Page {
        Arc::make_mut(self.pages[page].get_or_insert_with(|| Arc::new(ZERO)))
    }

    pub fn is_zero(&self, span: Span) -> bool {
        self.parts(span).all(|(page, within, _)| self.pages[page].as_ref().is_none_or(|page| is_zero(&page[within])))
    }

    /// Parts of a page in length, ascending, in which the two are not the same, as far as both go.
    pub fn differences<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = Span> + 'a {
        let length = self.length.min(other.length);
        self.parts(Span::new(0, length)).filter_map(move |(page, within, part)| {
            let same = match (&self.pages[page], &other.pages[page]) {
                (None, None) => true,
                (Some(own), Some(others)) if Arc::ptr_eq(own, others) => true,
                _ => self.page(page)[within.clone()] == other.page(page)[within],
            };
            (!same).then(|| Span::new(part.start as u64, part.end as u64))
        })
    }
}

/// A set of sectors.
#[derive(Default)]
pub struct Sectors {
    words: Vec<u64>,
    count: u64,
}

impl Sectors {
    pub fn len(&self) -> u64 {
        self.count
    }

    pub fn contains(&self, sector: u64) -> bool {
        self.words.get(sector as usize / 64).is_some_and(|word| word >> (sector % 64) & 1 != 0)
    }

    /// Returns whether it was not in the set.
    pub fn insert(&mut self, sector: u64) -> bool {
        let at = sector as usize / 64;
        if self.words.len() <= at {
            self.words.resize(at + 1, 0);
        }
        let is_new = !self.contains(sector);
        self.words[at] |= 1 << (sector % 64);
        self.count += u64::from(is_new);
        is_new
    }

    pub fn remove(&mut self, sector: u64) {
        if self.contains(sector) {
            self.words[sector as usize / 64] &= !(1 << (sector % 64));
            self.count -= 1;
        }
    }

    /// Those in the range, ascending.
    pub fn within(&self, sectors: Range<u64>) -> impl Iterator<Item = u64> {
        let words = self.words.iter().zip(0..).filter(|(word, _)| **word != 0);
        let near = words.filter(move |(_, at)| (at + 1) * 64 > sectors.start && at * 64 < sectors.end);
        near.flat_map(|(word, at)| (0..64).filter(move |bit| word >> bit & 1 != 0).map(move |bit| at * 64 + bit))
            .filter(move |sector| sectors.contains(sector))
    }

    /// The sector that has so many before it.
    pub fn nth(&self, count: u64) -> Option<u64> {
        self.within(0..u64::MAX).nth(count as usize)
    }
}

/// Where a sector lies.
pub fn sector_span(sector: u64) -> Span {
    Span::at(sector * SECTOR, SECTOR)
}

//! Bytes behind a volatile cache, as disks of logs and marks have them: what was written is seen at once, and durable
//! when it was synced. A power cut leaves of every sector that was not synced the old or the new content, and whoever
//! is killed inside of a call leaves a part of what the call does. While nobody looks a sector may rot, fall back to
//! what it was before, or hold what belongs elsewhere.

use super::ground::{below, once_in};
use super::pages::{Pages, Sectors, sector_span};
use crate::units::SECTOR;

const UNIT: usize = SECTOR as usize;

#[derive(Default)]
pub struct Medium {
    cached: Pages,
    durable: Pages,
    dirty: Sectors,
    /// The kernel holds them for clean, and they never came to the disk: a sync has failed.
    stale: Sectors,
    /// What stood before that in each durable sector that has changed.
    older: Pages,
    changed: Sectors,
    /// What the call under way has done, oldest first, with the ends of its writes and syncs, and what was there before
    /// each step.
    call: Vec<(u64, Done)>,
    ends: Vec<usize>,
    before: Vec<u8>,
}

/// One step of a call, in one sector.
#[derive(Clone, Copy)]
enum Done {
    Wrote { was_dirty: bool },
    Synced,
}

impl Medium {
    /// So many bytes, whole sectors, all of them zero and durable.
    pub fn blank(length: u64) -> Self {
        let bytes = Pages::zero(length);
        Self { older: bytes.clone(), durable: bytes.clone(), cached: bytes, ..Self::default() }
    }

    pub fn len(&self) -> u64 {
        self.cached.len()
    }

    /// Cuts it, or adds zeroes; durable at once.
    pub fn set_len(&mut self, length: u64) {
        for pages in [&mut self.cached, &mut self.durable, &mut self.older] {
            pages.set_len(length);
        }
        for sectors in [&mut self.dirty, &mut self.stale, &mut self.changed] {
            let beyond: Vec<u64> = sectors.within(length.div_ceil(SECTOR)..u64::MAX).collect();
            beyond.into_iter().for_each(|sector| sectors.remove(sector));
        }
    }

    pub fn read(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        if offset + buffer.len() as u64 > self.len() {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        self.cached.read(offset, buffer);
        Ok(())
    }

    /// A call begins, of some writes and syncs; the one before is over.
    pub fn begin(&mut self) {
        self.call.clear();
        self.ends.clear();
        self.before.clear();
    }

    /// Whoever made the call is killed in it: only the first of its writes and syncs were done, and any part of the next.
    /// Returns how many sectors were not.
    pub fn interrupt(&mut self) -> usize {
        let at = below(self.ends.len() as u64) as usize;
        let start = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        let end = self.ends.get(at).copied().unwrap_or(0);
        let keep_one_in = 1 + below(4);
        let undone: Vec<_> = (0..)
            .zip(std::mem::take(&mut self.call))
            .filter(|(step, _)| *step >= end || *step >= start && !once_in(keep_one_in))
            .collect();
        self.ends.clear();
        for (step, (sector, done)) in undone.iter().rev() {
            let before = &self.before[step * UNIT..][..UNIT];
            match done {
                Done::Wrote { was_dirty } => {
                    self.cached.write(sector * SECTOR, before);
                    if !was_dirty {
                        self.dirty.remove(*sector);
                    }
                }
                Done::Synced => {
                    self.durable.write(sector * SECTOR, before);
                    self.dirty.insert(*sector);
                }
            }
        }
        undone.len()
    }

    pub fn write(&mut self, bytes: &[u8], offset: u64) {
        let sectors = offset / SECTOR..(offset + bytes.len() as u64).div_ceil(SECTOR);
        for sector in sectors {
            let was_dirty = !self.dirty.insert(sector);
            self.call.push((sector, Done::Wrote { was_dirty }));
            self.before.extend_from_slice(self.cached.sector(sector));
        }
        self.ends.push(self.call.len());
        self.cached.write(offset, bytes);
    }

    /// Makes durable what was written from byte `start` up to `end`. If that fails, some of it is, and the kernel holds
    /// all of it for clean.
    pub fn sync(&mut self, start: u64, end: u64, fails: bool) {
        let sectors: Vec<u64> = self.dirty.within(start / SECTOR..end.div_ceil(SECTOR)).collect();
        for sector in sectors {
            self.dirty.remove(sector);
            self.call.push((sector, Done::Synced));
            self.before.extend_from_slice(self.durable.sector(sector));
            if !fails || once_in(2) {
                self.land(sector);
            } else {
                self.stale.insert(sector);
            }
        }
        self.ends.push(self.call.len());
    }

    /// What is not waiting to be written is read from the disk again.
    pub fn forget_cached(&mut self, start: u64, end: u64) {
        let stale: Vec<u64> = self.stale.within(start / SECTOR..end.div_ceil(SECTOR)).collect();
        for sector in stale.into_iter().filter(|sector| !self.dirty.contains(*sector)) {
            self.stale.remove(sector);
            self.cached.take(&self.durable, sector_span(sector));
        }
    }

    /// Of each sector that was not synced, one in `keep_one_in` stays. Returns how many there were.
    pub fn power_cut(&mut self, keep_one_in: u64) -> u64 {
        let dirty = std::mem::take(&mut self.dirty);
        for sector in dirty.within(0..u64::MAX) {
            if once_in(keep_one_in) {
                self.land(sector);
            }
        }
        self.stale = Sectors::default();
        self.cached.clone_from(&self.durable);
        dirty.len()
    }

    fn land(&mut self, sector: u64) {
        self.stale.remove(sector);
        let span = sector_span(sector);
        if self.durable.sector(sector) != self.cached.sector(sector) {
            self.older.take(&self.durable, span);
            self.changed.insert(sector);
            self.durable.take(&self.cached, span);
        }
    }

    /// One sector of those that were ever written is not what it should be. Says which, and in what way.
    pub fn rot(&mut self) -> Option<(u64, &'static str)> {
        let any = |changed: &Sectors| changed.nth(below(changed.len()));
        let sector = any(&self.changed)?;
        let mut found = self.durable.sector(sector).to_vec();
        let how = match below(3) {
            0 => {
                found[below(SECTOR) as usize] ^= 1 << below(8);
                "has rotted"
            }
            1 => {
                found = self.older.sector(sector).to_vec();
                "is older"
            }
            _ => {
                found = self.durable.sector(any(&self.changed)?).to_vec();
                "is another"
            }
        };
        self.durable.write(sector * SECTOR, &found);
        self.cached.write(sector * SECTOR, &found);
        self.dirty.remove(sector);
        Some((sector, how))
    }
}

//! Bytes behind a volatile cache, as disks of logs and marks have them: what was written is seen at once, and durable
//! when it was synced. A power cut leaves of every sector that was not synced the old or the new content, and whoever
//! is killed inside of a call leaves a part of what the call does. While nobody looks a sector may rot, fall back to
//! what it was before, or hold what belongs elsewhere.

use std::collections::{BTreeMap, BTreeSet};

use super::ground::{below, once_in};
use crate::units::SECTOR;

const UNIT: usize = SECTOR as usize;

#[derive(Default)]
pub struct Medium {
    cached: Vec<u8>,
    durable: Vec<u8>,
    dirty: BTreeSet<u64>,
    /// What stood in each durable sector before that.
    older: BTreeMap<u64, Sector>,
    /// What the call under way has done, oldest first, with the ends of its writes and syncs.
    call: Vec<Done>,
    ends: Vec<usize>,
}

/// One step of a call, and what was there before.
enum Done {
    Wrote { sector: u64, before: Sector, was_dirty: bool },
    Synced { sector: u64, before: Sector },
}

type Sector = [u8; UNIT];

impl Medium {
    /// So many bytes, whole sectors, all of them zero and durable.
    pub fn blank(length: u64) -> Self {
        let bytes = vec![0; length as usize];
        Self { durable: bytes.clone(), cached: bytes, ..Self::default() }
    }

    pub fn len(&self) -> u64 {
        self.cached.len() as u64
    }

    /// Cuts it, or adds zeroes; durable at once.
    pub fn set_len(&mut self, length: u64) {
        self.cached.resize(length as usize, 0);
        self.durable.resize(length as usize, 0);
        self.dirty.retain(|sector| sector * SECTOR < length);
        self.older.retain(|sector, _| sector * SECTOR < length);
    }

    pub fn read(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        let bytes = self.cached.get(offset as usize..offset as usize + buffer.len());
        buffer.copy_from_slice(bytes.ok_or(std::io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    /// A call begins, of some writes and syncs; the one before is over.
    pub fn begin(&mut self) {
        self.call.clear();
        self.ends.clear();
    }

    /// Whoever made the call is killed in it: only the first of its writes and syncs were done, and any part of the next.
    /// Returns how many sectors were not.
    pub fn interrupt(&mut self) -> usize {
        let at = below(self.ends.len() as u64) as usize;
        let start = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        let end = self.ends.get(at).copied().unwrap_or(0);
        let keep_one_in = 1 + below(4);
        let undone: Vec<Done> = (0..)
            .zip(std::mem::take(&mut self.call))
            .filter(|(step, _)| *step >= end || *step >= start && !once_in(keep_one_in))
            .map(|(_, step)| step)
            .collect();
        self.ends.clear();
        let count = undone.len();
        for step in undone.into_iter().rev() {
            match step {
                Done::Wrote { sector, before, was_dirty } => {
                    self.cached[range(sector)].copy_from_slice(&before);
                    if !was_dirty {
                        self.dirty.remove(&sector);
                    }
                }
                Done::Synced { sector, before } => {
                    self.durable[range(sector)].copy_from_slice(&before);
                    self.dirty.insert(sector);
                }
            }
        }
        count
    }

    pub fn write(&mut self, bytes: &[u8], offset: u64) {
        let sectors = offset / SECTOR..(offset + bytes.len() as u64).div_ceil(SECTOR);
        for sector in sectors {
            let was_dirty = !self.dirty.insert(sector);
            self.call.push(Done::Wrote { sector, before: content(&self.cached, sector), was_dirty });
        }
        self.ends.push(self.call.len());
        let at = offset as usize;
        self.cached[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Makes durable what was written from byte `start` up to `end`. If that fails, some of it is, and the kernel holds
    /// all of it for clean.
    pub fn sync(&mut self, start: u64, end: u64, fails: bool) {
        let sectors: Vec<u64> = self.dirty.range(start / SECTOR..end.div_ceil(SECTOR)).copied().collect();
        for sector in sectors {
            self.dirty.remove(&sector);
            self.call.push(Done::Synced { sector, before: content(&self.durable, sector) });
            if !fails || once_in(2) {
                self.land(sector);
            }
        }
        self.ends.push(self.call.len());
    }

    /// What is not waiting to be written is read from the disk again.
    pub fn forget_cached(&mut self, start: u64, end: u64) {
        for sector in (start / SECTOR..end.div_ceil(SECTOR)).filter(|sector| !self.dirty.contains(sector)) {
            self.cached[range(sector)].copy_from_slice(&self.durable[range(sector)]);
        }
    }

    /// Of each sector that was not synced, one in `keep_one_in` stays. Returns how many there were.
    pub fn power_cut(&mut self, keep_one_in: u64) -> usize {
        let dirty = std::mem::take(&mut self.dirty);
        let count = dirty.len();
        for sector in dirty {
            if once_in(keep_one_in) {
                self.land(sector);
            }
        }
        self.cached.clone_from(&self.durable);
        count
    }

    fn land(&mut self, sector: u64) {
        let older = content(&self.durable, sector);
        let range = range(sector);
        if older[..] != self.cached[range.clone()] {
            self.older.insert(sector, older);
            self.durable[range.clone()].copy_from_slice(&self.cached[range]);
        }
    }

    /// One sector of those that were ever written is not what it should be. Says which, and in what way.
    pub fn rot(&mut self) -> Option<(u64, &'static str)> {
        let any = |older: &BTreeMap<u64, Sector>| older.keys().nth(below(older.len() as u64) as usize).copied();
        let sector = any(&self.older)?;
        let mut found = content(&self.durable, sector);
        let how = match below(3) {
            0 => {
                found[below(SECTOR) as usize] ^= 1 << below(8);
                "has rotted"
            }
            1 => {
                found = self.older[&sector];
                "is older"
            }
            _ => {
                found = content(&self.durable, any(&self.older)?);
                "is another"
            }
        };
        self.durable[range(sector)].copy_from_slice(&found);
        self.cached[range(sector)].copy_from_slice(&found);
        self.dirty.remove(&sector);
        Some((sector, how))
    }
}

fn content(bytes: &[u8], sector: u64) -> Sector {
    let mut content = [0; UNIT];
    content.copy_from_slice(&bytes[range(sector)]);
    content
}

fn range(sector: u64) -> std::ops::Range<usize> {
    let at = sector as usize * UNIT;
    at..at + UNIT
}

//! What the demo's client does: reads, writes, trims and zeroes at random places, many at a time, from one seed.
//!
//! Owns: the mix, its pace, what data looks like. Does not own: where it goes, and for how long.

use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::disk::{Disk, DiskError, ZeroMode};
use crate::nbd::NbdDisk;
use crate::random::SplitMix64;
use crate::units::{KIB, MIB};

/// Requests in flight.
const DEPTH: u64 = 16;
/// Requests are 4 to 64 KiB.
const UNIT: u64 = 4 * KIB;
const UNITS_MAX: u64 = 16;
/// Trims and zeroes are up to so many times longer.
const LONGER: u64 = 8;
/// Bytes per second, reads and writes together: what a busy small server does. As fast as memory allows would be a
/// measurement of the log's size, not a picture of a day.
const PACE: u64 = 64 * MIB;
const PAUSE: Duration = Duration::from_millis(2);
/// Of a hundred requests: so many reads, and then writes, trims; the rest are zeroes.
const READS: u64 = 45;
const WRITES: u64 = 48;
const TRIMS: u64 = 3;

const _: () = assert!(READS + WRITES + TRIMS < 100);

/// Half of all data is noise, the other half packs well.
fn fill(random: &mut SplitMix64, bytes: &mut [u8]) {
    let packs = random.below(2) == 0;
    let mut word = random.next();
    for chunk in bytes.chunks_mut(8) {
        // Text-like: few different words, each many times.
        word = if packs { word.wrapping_mul(5).wrapping_add(1) & 0x0707_0707_0707_0707 } else { random.next() };
        chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
    }
}

/// Makes a sparse file of `size` bytes, about half of which is data.
pub fn fill_file(path: &Path, size: u64, seed: u64) -> io::Result<()> {
    let file = std::fs::File::create_new(path)?;
    file.set_len(size)?;
    let mut out = BufWriter::with_capacity(MIB as usize, file);
    let mut random = SplitMix64(seed);
    let mut piece = vec![0; MIB as usize];
    let mut at = 0;
    while at < size {
        let length = MIB.min(size - at);
        if random.below(2) == 0 {
            fill(&mut random, &mut piece);
            out.seek(SeekFrom::Start(at))?;
            out.write_all(&piece[..length as usize])?;
        }
        at += length;
    }
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

/// What was done, all requests together. It only grows.
#[derive(Debug, Default)]
pub struct Done {
    pub reads: AtomicU64,
    pub writes: AtomicU64,
    /// Trims and zeroes.
    pub erased: AtomicU64,
    pub bytes_written: AtomicU64,
    moved: AtomicU64,
}

/// A client at work.
pub struct Workload {
    workers: JoinSet<Result<(), DiskError>>,
    stop: Arc<AtomicBool>,
}

impl Workload {
    pub fn start(disk: &Arc<NbdDisk>, seed: u64, done: &Arc<Done>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let pace = Arc::new(Pace { begun: Instant::now(), moved_before: done.moved.load(Relaxed) });
        let workers = (0..DEPTH)
            .map(|worker| {
                let (disk, stop, pace, done) = (disk.clone(), stop.clone(), pace.clone(), done.clone());
                async move {
                    let mut random = SplitMix64(seed << 8 | worker);
                    while !stop.load(Relaxed) {
                        pace.wait(&done).await;
                        one(&disk, &mut random, &done).await?;
                    }
                    Ok(())
                }
            })
            .collect();
        Self { workers, stop }
    }

    /// Lets what is in flight come to its end, then flushes.
    pub async fn quiesce(self, disk: &NbdDisk) -> Result<(), DiskError> {
        self.stop.store(true, Relaxed);
        for outcome in self.workers.join_all().await {
            outcome?;
        }
        disk.flush().await
    }
}

struct Pace {
    begun: Instant,
    moved_before: u64,
}

impl Pace {
    async fn wait(&self, done: &Done) {
        let allowed = || (self.begun.elapsed().as_secs_f64() * PACE as f64) as u64;
        while done.moved.load(Relaxed) - self.moved_before > allowed() {
            sleep(PAUSE).await;
        }
    }
}

async fn one(disk: &NbdDisk, random: &mut SplitMix64, done: &Done) -> Result<(), DiskError> {
    let geometry = disk.geometry();
    let units = geometry.size / UNIT;
    let span = |random: &mut SplitMix64, longest: u64| {
        let count = 1 + random.below(longest.min(units));
        (random.below(units - count + 1) * UNIT, count * UNIT)
    };
    let choice = random.below(100);
    if choice < READS {
        let (offset, length) = span(random, UNITS_MAX);
        disk.read(offset, length as u32).await?;
        done.reads.fetch_add(1, Relaxed);
        done.moved.fetch_add(length, Relaxed);
    } else if choice < READS + WRITES {
        let (offset, length) = span(random, UNITS_MAX);
        let mut data = vec![0; length as usize];
        fill(random, &mut data);
        disk.write(offset, Bytes::from(data), false).await?;
        done.writes.fetch_add(1, Relaxed);
        done.moved.fetch_add(length, Relaxed);
        done.bytes_written.fetch_add(length, Relaxed);
    } else {
        let (offset, length) = span(random, UNITS_MAX * LONGER);
        if choice < READS + WRITES + TRIMS && geometry.abilities.trim {
            disk.trim(offset, length, false).await?;
        } else if geometry.abilities.write_zeroes {
            disk.write_zeroes(offset, length, ZeroMode::default(), false).await?;
        } else {
            return Ok(());
        }
        done.erased.fetch_add(1, Relaxed);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_file_and_half_of_it_is_a_hole() {
        use std::os::unix::fs::MetadataExt;
        let temp = tempfile::tempdir().unwrap();
        let size = 32 * MIB + 4096;
        let make = |name: &str, seed| {
            let path = temp.path().join(name);
            fill_file(&path, size, seed).unwrap();
            (std::fs::read(&path).unwrap(), path.metadata().unwrap().blocks() * 512)
        };
        let (a, allocated) = make("a", 1);
        assert_eq!(a.len() as u64, size);
        assert!(a == make("b", 1).0 && a != make("c", 2).0);
        assert!(a.iter().any(|byte| *byte != 0) && allocated < size);
    }

    #[test]
    fn data_is_of_both_kinds() {
        let mut random = SplitMix64(7);
        let mut ratios: Vec<usize> = (0..32)
            .map(|_| {
                let mut bytes = vec![0; 64 * 1024];
                fill(&mut random, &mut bytes);
                zstd::bulk::compress(&bytes, 1).unwrap().len() * 100 / bytes.len()
            })
            .collect();
        ratios.sort_unstable();
        assert!(ratios[0] < 50 && ratios[31] > 95, "{ratios:?}");
    }
}

//! All segments of a gateway's log, and whose they are.
//!
//! Owns: opening and creating, the log epoch, which segment is free, quotas. Does not own: what a volume writes into
//! its segments, when it frees them.
//!
//! Crash: nothing but the superblock's epoch is kept; whose a segment is stands in its own header.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tracing::{info, warn};

use super::recovery::{self, Found, Recovered};
use super::segments::{self, Folder, Segments};
use super::superblock::{Content, Keeper, State, Superblock, SuperblockFile};
use super::{COMMIT_EVERY, HANG_MAX, IN_FLIGHT_MAX, OpenError, Position, SEGMENT, SEGMENTS_MIN, VolumeLog, lock};
use crate::disk::Errno;
use crate::format::VolumeId;
use crate::format::log::{LogId, RecordHeader};
use crate::units::LogIndex;

/// What a pool is opened with.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Bytes of all segments together; rounded down to whole [`SEGMENT`]s.
    pub size: u64,
    /// How many volumes will share it.
    pub volumes: u32,
    /// Nothing of an existing log is needed: make it new where it is damaged or has another size.
    pub discard: bool,
}

/// What [`Pool::open`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The log is new and empty: made for the first time, made anew, or given up because a write or an fsync of it had
    /// failed.
    pub created: bool,
    /// Identifies the log. Who keeps a state that is only right together with this log (marks) keeps this too, and
    /// knows by another one that the log was lost.
    pub log: LogId,
    /// Counts the openings; durable before this is known.
    pub epoch: u64,
}

/// What [`Pool::look`] saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// The log that is there; none if it will be made anew.
    pub log: Option<LogId>,
    /// Marks of some volume may say less than the truth: all are to be taken for hot, durably, before the log is opened.
    pub doubted: bool,
}

/// Where a volume's log goes on.
#[derive(Debug)]
pub enum Start {
    /// It holds nothing that is needed; the next record has this index.
    Empty(LogIndex),
    /// Behind what was recovered, which stays readable until it is freed.
    After(Recovered),
}

/// The pool; clones share it. It stays locked against other processes until the last clone and the last writer are gone.
#[derive(Clone)]
pub struct Pool(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub log: LogId,
    pub epoch: u64,
    pub segments: Box<dyn Segments>,
    pub segment_size: u64,
    pub limits: Limits,
    /// Payload that is queued in memory, of all volumes; bytes.
    pub in_flight: AtomicU64,
    slots: Mutex<Slots>,
    superblock: Option<Mutex<Kept>>,
    troubles: Mutex<Troubles>,
}

/// The superblock, and where it is kept.
struct Kept {
    keeper: Box<dyn Keeper>,
    /// As it was written last.
    superblock: Superblock,
    /// A later one may have been written.
    uncertain: bool,
}

/// What the next start is to know of the volumes.
#[derive(Default)]
struct Troubles {
    /// Those whose log has failed.
    failed: HashSet<VolumeId>,
    /// Those whose marks may say less than the truth.
    doubted: HashSet<VolumeId>,
}

/// The bounds of [`super`], which tests make small.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub in_flight: u64,
    pub commit_every: Duration,
    pub hang: Duration,
}

pub(super) const LIMITS: Limits = Limits { in_flight: IN_FLIGHT_MAX, commit_every: COMMIT_EVERY, hang: HANG_MAX };

struct Slots {
    /// What each slot's header said when the pool was opened, until a volume takes the slot over.
    found: Vec<Found>,
    /// Longest unused first, so that wear spreads.
    free: VecDeque<u32>,
    /// The newest lap; laps count the uses of segments over the whole pool.
    lap: u64,
    held: HashMap<VolumeId, u32>,
    quota: Quota,
}

/// How many segments a volume may hold.
///
/// Half of the pool is guaranteed in equal shares, so that one volume with a slow uplink or a first copy cannot push
/// the others into overflow; the other half goes to whoever needs it first, because bursts seldom come together and
/// room that stands unused protects nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Quota {
    /// Guaranteed to each volume.
    share: u32,
    /// For all together beyond their shares.
    shared: u32,
}

impl Quota {
    pub fn new(slots: u32, volumes: u32) -> Self {
        let share = (slots / 2 / volumes.max(1)).max(SEGMENTS_MIN);
        Self { share, shared: slots.saturating_sub(share.saturating_mul(volumes)) }
    }
    /// The most that one volume can hold.
    pub fn most(self) -> u32 {
        self.share + self.shared
    }
    fn allows(self, held: u32, of_all: impl Iterator<Item = u32>) -> bool {
        held < self.share || of_all.map(|held| held.saturating_sub(self.share)).sum::<u32>() < self.shared
    }
}

impl Pool {
    /// What [`Self::open`] will go on with. Changes nothing but that it makes the folder. Blocks.
    pub fn look(dir: &Path, settings: Settings) -> Result<Look, OpenError> {
        let slots = slots_of(settings)?;
        segments::prepare_folder(dir)?;
        let file = SuperblockFile::open(dir)?;
        let doubted = match file.read() {
            Ok(Content::Valid(found)) => matches!(found.state, State::Doubted | State::FailedAndDoubted),
            _ => false,
        };
        Ok(Look { log: existing(dir, &file, slots, settings)?.map(|found| LogId(found.log)), doubted })
    }

    /// Opens the log in the folder `dir`, or makes it: that writes every byte of it once, and takes as long.
    /// Blocks.
    pub fn open(dir: &Path, settings: Settings) -> Result<(Self, Opened), OpenError> {
        let slots = slots_of(settings)?;
        let folder = segments::prepare_folder(dir)?;
        let file = SuperblockFile::open(dir)?;
        let failed = |source| OpenError::Superblock { path: dir.join("superblock"), source };
        let (mut superblock, created) = match existing(dir, &file, slots, settings)? {
            Some(found) => (found, false),
            None => {
                let counter = match file.read().map_err(failed)? {
                    Content::Valid(old) => old.counter + 1,
                    Content::Absent | Content::Damaged => 1,
                };
                let new =
                    Superblock { state: State::Creating, log: random_id()?, counter, epoch: 0, segments: slots.into() };
                file.write(&new).map_err(failed)?;
                folder.sync_all().map_err(failed)?;
                segments::create(dir, &folder, slots)?;
                (new, true)
            }
        };
        superblock.state = State::Ready;
        superblock.counter += 1;
        superblock.epoch += 1;
        file.write(&superblock).map_err(failed)?;
        let opened = Opened { created, log: LogId(superblock.log), epoch: superblock.epoch };
        info!(path = %dir.display(), slots, created, epoch = opened.epoch, "log opened");
        let segments = Box::new(Folder::new(dir));
        let inner = Inner::new(opened, segments, SEGMENT, slots, settings.volumes, LIMITS);
        Ok((Self(Arc::new(inner.kept_by(Box::new(file), superblock))), opened))
    }

    /// Reads a volume's log as it was left by earlier epochs, and passes every accepted record to `each`, in order.
    /// Blocks. The volume must not have been opened in this epoch.
    pub fn recover(&self, volume: VolumeId, each: impl FnMut(Position, &RecordHeader)) -> Recovered {
        let found = lock(&self.0.slots).found.clone();
        recovery::recover(&self.0, volume, &found, each)
    }

    /// Begins the volume's log in this epoch; whatever of it is in the pool and not part of `start` is dropped.
    pub fn volume(&self, volume: VolumeId, start: Start) -> Result<VolumeLog, OpenError> {
        VolumeLog::start(self.0.clone(), volume, start)
    }

    /// Gives up what volumes left in the log that were not opened in this epoch. To be called when all were.
    pub fn release_unclaimed(&self) {
        let slots = &mut *lock(&self.0.slots);
        for (slot, found) in (0..).zip(&mut slots.found) {
            if let Found::Claimed(_) = found {
                *found = Found::Free;
                slots.free.push_back(slot);
            }
        }
    }

    /// Payload of all volumes that waits in memory to be written, bytes.
    pub fn in_flight_bytes(&self) -> u64 {
        self.0.in_flight.load(Ordering::Relaxed)
    }
}

/// What the configured size means in segments.
fn slots_of(settings: Settings) -> Result<u32, OpenError> {
    let Settings { size, volumes, .. } = settings;
    let needed = u64::from(volumes.max(1)) * u64::from(SEGMENTS_MIN) * SEGMENT;
    let limit = u64::from(u32::MAX) * SEGMENT;
    match u32::try_from(size / SEGMENT) {
        Err(_) => Err(OpenError::TooLarge { size, limit }),
        Ok(_) if size < needed => Err(OpenError::TooSmall { size, needed, volumes }),
        Ok(slots) => Ok(slots),
    }
}

/// The log that is there to be used; none if it is to be made.
fn existing(
    dir: &Path,
    file: &SuperblockFile,
    slots: u32,
    settings: Settings,
) -> Result<Option<Superblock>, OpenError> {
    let content = file.read().map_err(|source| OpenError::Superblock { path: dir.join("superblock"), source })?;
    match content {
        Content::Valid(found) if found.state == State::Creating => {
            info!(path = %dir.display(), "the log's creation was interrupted; it is finished now");
            Ok(None)
        }
        Content::Valid(found) if matches!(found.state, State::Failed | State::FailedAndDoubted) => {
            warn!(path = %dir.display(), "the log had failed; it begins anew");
            Ok(None)
        }
        Content::Valid(found) if found.segments == u64::from(slots) && segments::is_complete(dir, slots) => {
            Ok(Some(found))
        }
        _ if settings.discard => Ok(None),
        Content::Valid(found) if found.segments != u64::from(slots) => {
            Err(OpenError::SizeChanged { path: dir.into(), found: found.segments * SEGMENT })
        }
        Content::Absent | Content::Damaged if !segments::is_complete(dir, 1) => Ok(None),
        _ => Err(OpenError::Damaged { path: dir.into() }),
    }
}

fn random_id() -> Result<[u8; 16], OpenError> {
    let mut bytes = [0; 16];
    crate::random::fill(&mut bytes).map_err(OpenError::Random)?;
    Ok(bytes)
}

impl Inner {
    /// Reads all headers. A slot that cannot be read is never used.
    pub fn new(
        opened: Opened,
        segments: Box<dyn Segments>,
        segment_size: u64,
        slots: u32,
        volumes: u32,
        limits: Limits,
    ) -> Self {
        let read = |slot| {
            // Whoever wrote there last may have failed, and had no time to say so. Where it cannot be done, it is not.
            let _ = segments.forget_cached(slot);
            recovery::read_header(&*segments, slot, opened.log, opened.epoch)
        };
        let found: Vec<Found> = (0..slots).map(read).collect();
        let mut free = VecDeque::new();
        let mut lap = 0;
        for (slot, found) in (0..).zip(&found) {
            match found {
                Found::Free => free.push_back(slot),
                Found::Claimed(header) => lap = lap.max(header.lap),
                Found::Unreadable(error) => warn!(slot, %error, "a log segment cannot be read; it is left out"),
            }
        }
        let slots = Slots { found, free, lap, held: HashMap::new(), quota: Quota::new(slots, volumes) };
        Self {
            log: opened.log,
            epoch: opened.epoch,
            segments,
            segment_size,
            limits,
            in_flight: AtomicU64::new(0),
            slots: Mutex::new(slots),
            superblock: None,
            troubles: Mutex::default(),
        }
    }

    fn kept_by(self, keeper: Box<dyn Keeper>, superblock: Superblock) -> Self {
        Self { superblock: Some(Mutex::new(Kept { keeper, superblock, uncertain: false })), ..self }
    }

    /// Makes `volume` the owner of the segments `kept`, and frees what else it left in the pool.
    pub fn claim(&self, volume: VolumeId, kept: &[u32]) {
        let slots = &mut *lock(&self.slots);
        for (slot, found) in (0..).zip(&mut slots.found) {
            if matches!(found, Found::Claimed(header) if header.volume == volume) {
                *found = Found::Free;
                if !kept.contains(&slot) {
                    slots.free.push_back(slot);
                }
            }
        }
        slots.free.retain(|slot| !kept.contains(slot)); // One whose header had decayed was taken for free.
        *slots.held.entry(volume).or_default() += kept.len() as u32;
    }

    /// A free segment and its lap, if the volume may have one more.
    pub fn take(&self, volume: VolumeId) -> Option<(u32, u64)> {
        let slots = &mut *lock(&self.slots);
        let held = slots.held.get(&volume).copied().unwrap_or(0);
        if !slots.quota.allows(held, slots.held.values().copied()) {
            return None;
        }
        let slot = slots.free.pop_front()?;
        *slots.held.entry(volume).or_default() += 1;
        slots.lap += 1;
        Some((slot, slots.lap))
    }

    /// The segment may be given to anyone: nothing of it is needed, and no write to it is under way.
    pub fn give_back(&self, volume: VolumeId, slot: u32) {
        let slots = &mut *lock(&self.slots);
        slots.free.push_back(slot);
        if let Some(held) = slots.held.get_mut(&volume) {
            *held -= 1;
        }
    }

    /// Bytes of log that one volume can hold at most.
    pub fn volume_capacity(&self) -> u64 {
        u64::from(lock(&self.slots).quota.most()) * self.segment_size
    }

    /// Remembers, if the disk still can, that marks may say less than the truth.
    pub fn doubt_marks(&self, volume: VolumeId, doubt: bool) {
        let mut troubles = lock(&self.troubles);
        if !(if doubt { troubles.doubted.insert(volume) } else { troubles.doubted.remove(&volume) }) {
            return;
        }
        if let Err(error) = self.note(&troubles) {
            warn!(error = %Errno::from(error), "doubts about the marks could not be recorded");
        }
    }

    /// Remembers, if the disk still can, that what is in the log cannot be trusted to be on the disk.
    pub fn mark_failed(&self, volume: VolumeId) -> io::Result<()> {
        let mut troubles = lock(&self.troubles);
        troubles.failed.insert(volume);
        self.note(&troubles)
    }

    /// Nothing is in the log any more that is not on the disk because the volume's had failed.
    pub fn mark_sound(&self, volume: VolumeId) -> io::Result<()> {
        let mut troubles = lock(&self.troubles);
        troubles.failed.remove(&volume);
        self.note(&troubles)
    }

    /// Has the superblock say what `troubles` there are, if it does not yet.
    fn note(&self, troubles: &Troubles) -> io::Result<()> {
        let Some(superblock) = &self.superblock else { return Ok(()) };
        let Kept { keeper, superblock, uncertain } = &mut *lock(superblock);
        let state = match (troubles.failed.is_empty(), troubles.doubted.is_empty()) {
            (true, true) => State::Ready,
            (true, false) => State::Doubted,
            (false, true) => State::Failed,
            (false, false) => State::FailedAndDoubted,
        };
        if superblock.state == state && !*uncertain {
            return Ok(());
        }
        let next = Superblock { state, counter: superblock.counter + 1, ..*superblock };
        // What fails may have been written all the same, and is then written over.
        *uncertain = true;
        keeper.write(&next)?;
        (*superblock, *uncertain) = (next, false);
        Ok(())
    }
}

#[cfg(test)]
impl Pool {
    /// For a simulated world: one volume on segments of any kind, with bounds for records in memory (bytes) and for
    /// the time until a commit.
    pub(crate) fn simulated(
        opened: Opened,
        segments: Box<dyn Segments>,
        keeper: Box<dyn Keeper>,
        segment_size: u64,
        slots: u32,
        (in_flight, commit_every): (u64, Duration),
    ) -> Self {
        let limits = Limits { in_flight, commit_every, ..LIMITS };
        let Opened { log, epoch, .. } = opened;
        let superblock = Superblock { state: State::Ready, log: log.0, counter: 1, epoch, segments: slots.into() };
        let inner = Inner::new(opened, segments, segment_size, slots, 1, limits);
        Self(Arc::new(inner.kept_by(keeper, superblock)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::MIB;

    #[test]
    fn each_volume_has_its_share_however_much_the_others_want() {
        for (slots, volumes) in [(16, 1), (16, 2), (16, 4), (16, 8), (17, 3), (100, 7)] {
            let quota = Quota::new(slots, volumes);
            assert!(quota.share >= SEGMENTS_MIN);
            let mut held = vec![0; volumes as usize];
            while quota.allows(held[0], held.iter().copied()) {
                held[0] += 1;
            }
            assert_eq!(held[0], quota.most());
            for other in 1..held.len() {
                for _ in 0..quota.share {
                    assert!(quota.allows(held[other], held.iter().copied()), "{quota:?} {held:?}");
                    held[other] += 1;
                }
                assert!(!quota.allows(held[other], held.iter().copied()), "{quota:?} {held:?}");
            }
            assert!(held.iter().sum::<u32>() <= slots);
        }
    }

    fn settings(slots: u64) -> Settings {
        Settings { size: slots * SEGMENT + MIB, volumes: 1, discard: false }
    }

    #[test]
    fn a_pool_is_made_once_and_each_opening_is_another_epoch() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (pool, first) = Pool::open(&path, settings(2)).unwrap();
        assert_eq!((first.created, first.epoch), (true, 1));
        assert!(matches!(Pool::open(&path, settings(2)), Err(OpenError::InUse { .. })));
        drop(pool);
        let (pool, second) = Pool::open(&path, settings(2)).unwrap();
        assert_eq!(second, Opened { created: false, epoch: 2, ..first });

        pool.0.mark_failed(VolumeId([1; 16])).unwrap();
        drop(pool);
        let (pool, third) = Pool::open(&path, settings(2)).unwrap();
        assert!(third.created, "a log that had failed is trusted");
        assert_ne!(third.log, first.log);
        drop(pool);

        let (pool, fourth) = Pool::open(&path, settings(2)).unwrap();
        let [one, other] = [VolumeId([1; 16]), VolumeId([2; 16])];
        pool.0.mark_failed(one).unwrap();
        pool.0.mark_failed(other).unwrap();
        pool.0.mark_sound(one).unwrap();
        drop(pool);
        let (pool, fifth) = Pool::open(&path, settings(2)).unwrap();
        assert!(fifth.created && fifth.log != fourth.log, "the other volume's log had failed");
        pool.0.doubt_marks(other, true);
        pool.0.mark_failed(one).unwrap();
        drop(pool);
        let look = Pool::look(&path, settings(2)).unwrap();
        assert_eq!(look, Look { log: None, doubted: true }, "failed, and in doubt too");
        let (pool, sixth) = Pool::open(&path, settings(2)).unwrap();
        assert!(sixth.created);
        pool.0.doubt_marks(other, true);
        pool.0.mark_failed(one).unwrap();
        pool.0.mark_sound(one).unwrap();
        drop(pool);
        let look = Pool::look(&path, settings(2)).unwrap();
        assert_eq!(look, Look { log: Some(sixth.log), doubted: true }, "sound again, and the doubt stays");

        assert!(
            matches!(Pool::open(&path, settings(3)), Err(OpenError::SizeChanged { found, .. }) if found == 2 * SEGMENT)
        );
        std::fs::remove_file(path.join("segment-000001")).unwrap();
        assert!(matches!(Pool::open(&path, settings(2)), Err(OpenError::Damaged { .. })));
        let (_, last) = Pool::open(&path, Settings { discard: true, ..settings(2) }).unwrap();
        assert!(last.created);
    }

    #[test]
    fn a_lost_superblock_is_not_taken_for_a_log_that_never_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        drop(Pool::open(&path, settings(2)).unwrap());
        std::fs::remove_file(path.join("superblock")).unwrap();
        assert!(matches!(Pool::open(&path, settings(2)), Err(OpenError::Damaged { .. })));
        std::fs::write(path.join("superblock"), [0; 8192]).unwrap();
        assert!(matches!(Pool::open(&path, settings(2)), Err(OpenError::Damaged { .. })));
    }

    #[test]
    fn a_pool_too_small_for_its_volumes_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let refused = Pool::open(dir.path(), Settings { volumes: 3, ..settings(5) });
        assert!(matches!(refused, Err(OpenError::TooSmall { needed, .. }) if needed == 6 * SEGMENT));
    }
}

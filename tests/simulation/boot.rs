//! Starts a gateway on what is left of its devices, as the daemon does, and stops it.

use std::sync::Arc;
use std::time::Duration;

use object_store::path::Path;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::bucket::Bucket;
use super::ground::{Ground, broken, note, once_in};
use super::log_device::LogDevice;
use super::marks_device::MarksDevice;
use super::store::Store;
use crate::chain::Opening;
use crate::clock::Clock;
use crate::disk::Disk;
use crate::format::log::LogOp;
use crate::format::names::VolumeName;
use crate::format::{InstanceId, VolumeId};
use crate::remote::faulty::FaultyStore;
use crate::remote::{Limits, Remote};
use crate::snapshot::publisher::{self, Expected, Left, Parts};
use crate::snapshot::status::Report;
use crate::snapshot::upload::Memory;
use crate::units::{Generation, LogIndex, Timestamp};
use crate::volume::boot::Found;
use crate::volume::{self, MarksFail, Pace, Volume};
use crate::writelog::{Ended, Opened, Pool};

const VOLUME: VolumeId = VolumeId([9; 16]);
/// The day on which every world begins.
const BEGINNING: u64 = 1_700_000_000_000;

/// What outlives a gateway.
pub struct Devices {
    pub ground: Ground,
    pub store: Store,
    pub log: LogDevice,
    pub marks: MarksDevice,
    pub bucket: Bucket,
    pub faulty: Arc<FaultyStore>,
    /// What the gateway sees of the bucket.
    pub remote: Remote,
    pub settings: Settings,
}

/// What stays the same for all lives of a gateway.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub epoch: Duration,
    pub sync_log: bool,
    pub commit_every: Duration,
    /// Bytes of records that may wait in memory.
    pub in_flight: u64,
    /// Of a generation of changes.
    pub generation: Duration,
    /// An old connection to the store is over within.
    pub quarantine: Option<Duration>,
    pub hot_max: u64,
    /// The most that a change is delayed when the log is full.
    pub throttle: Option<Duration>,
    pub marks_fail: MarksFail,
}

/// What the last life left in its state folder.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kept {
    /// Of a clean stop.
    pub left: Option<Left>,
    pub volume: Option<(VolumeId, Generation)>,
    /// Another gateway may have taken the volume over.
    pub take_over: bool,
    /// The log was synced up to here, and nothing was dropped of it since it began at this life's start.
    pub synced: Option<LogIndex>,
    /// Marks, log and remote failed at once before it ended: nothing can tell that everything is to be compared.
    pub uncovered: bool,
}

pub struct Gateway {
    pub volume: Volume,
    /// The log held something.
    pub replays: bool,
    pub report: Arc<Report>,
    pub stop: watch::Sender<bool>,
    pub publisher: JoinHandle<Option<Left>>,
    pub opened: watch::Receiver<Option<(VolumeId, Generation)>>,
    _pool: Pool,
}

impl Devices {
    pub fn new(ground: Ground, store: Store, log: LogDevice, bucket: Bucket, settings: Settings) -> Self {
        let faulty = Arc::new(FaultyStore::new(Arc::new(bucket.clone())));
        let limits = Limits {
            answer: Duration::from_secs(5),
            patience: Duration::from_secs(20),
            pause_max: Duration::from_secs(2),
            ..Limits::default()
        };
        let remote = Remote::with_store(faulty.clone(), Path::default(), limits);
        let marks = MarksDevice::new(ground.clone());
        Self { ground, store, log, marks, bucket, faulty, remote, settings }
    }

    /// The bucket without faults, for those who check.
    pub fn plain_remote(&self) -> Remote {
        Remote::with_store(self.bucket.inner.clone(), Path::default(), Limits::default())
    }

    pub fn clock(&self) -> Clock {
        let ground = self.ground.clone();
        Clock::from_fn(move || Timestamp(BEGINNING + ground.now()))
    }

    pub fn name() -> VolumeName {
        "disk0".parse().expect("a valid name")
    }

    pub fn opening(&self, instance: u8, known: Option<VolumeId>, take_over: bool) -> Opening {
        Opening {
            instance: InstanceId([instance; 16]),
            store: "simulated".into(),
            size: self.store.geometry().size,
            adopt: false,
            take_over,
            created: self.clock().now(),
            known,
        }
    }

    fn pool(&self, opened: Opened) -> Pool {
        let limits = (self.settings.in_flight, self.settings.commit_every);
        let (segments, keeper) = (Box::new(self.log.clone()), Box::new(self.log.clone()));
        Pool::simulated(opened, segments, keeper, self.log.segment_size, self.log.slots, limits)
    }

    /// Whether the next boot hears from the log that marks of this heartbeat may be wrong.
    pub fn log_tells(&self, heartbeat: u64) -> bool {
        let Some(opened) = self.log.peek() else { return false };
        let mut highest = 0;
        self.pool(opened).recover(VOLUME, |_, header| {
            if header.op == LogOp::Heartbeat {
                highest = highest.max(header.offset);
            }
        });
        self.log.look().doubted || highest >= heartbeat
    }

    /// Opens the log and looks at what the last epoch left in it: a gap-free part, with all that was synced.
    fn open_log(&self, kept: &Kept, opened: Opened) -> Pool {
        let pool = self.pool(opened);
        let mut indices = Vec::new();
        let recovered = pool.recover(VOLUME, |_, header| indices.push(header.index));
        note!(self.ground, "log: recovered {}..{} {:?}", recovered.first, recovered.next, recovered.ended);
        let dense = indices.iter().copied().eq((recovered.first.0..recovered.next.0).map(LogIndex));
        if !dense || matches!(recovered.ended, Ended::Unreadable { .. }) {
            broken!(self.ground, "log", "{recovered:?} of {indices:?}");
        }
        if let Some(synced) = kept.synced.filter(|synced| !opened.created && synced.0 > 0)
            && recovered.next <= synced
        {
            broken!(self.ground, "log", "{synced} was synced, and {recovered:?} was found");
        }
        pool
    }

    /// Reads the marks, and notes in them what is to be known of the log before that is opened.
    fn find(&self, kept: &Kept) -> Found {
        let size = self.store.geometry().size;
        let mut found = Found::read("disk0", VOLUME, size, self.marks.io()).expect("marks can be written");
        if kept.uncovered {
            found.distrust().expect("marks can be written");
        }
        found.log_found(self.log.look()).expect("marks can be written");
        found
    }

    /// A start that is killed in its course, wherever that is.
    pub fn start_in_vain(&self, kept: &mut Kept) {
        let found = self.find(kept);
        if once_in(2) {
            note!(self.ground, "gateway: killed before the log is opened");
            return self.marks.abandoned();
        }
        self.marks.rests();
        let opened = self.log.open();
        if opened.created {
            kept.synced = None;
        }
        let pool = self.open_log(kept, opened);
        let _ = found.start(&pool, opened, kept.left.is_some()).expect("marks can be written");
        note!(self.ground, "gateway: killed when the log is open");
        self.marks.abandoned();
    }

    /// A gateway as it comes up after whatever happened to the one before.
    pub fn boot(&self, kept: &Kept) -> Gateway {
        let found = self.find(kept);
        let opened = self.log.open();
        let pool = self.open_log(kept, opened);
        let start = found.start(&pool, opened, kept.left.is_some()).expect("marks can be written");
        // From here on, what is killed is a gateway that serves.
        self.log.rests();
        self.marks.rests();
        let (records, hot) = (start.replay.descriptors.len(), start.hot.len());
        note!(self.ground, "gateway: boots with {records} records and {hot} hot regions, {:?}", start.facts);
        if start.unclean {
            // As the daemon: a flush may have failed while nobody was left to hear of it.
            self.store.forget();
        }
        let settings = volume::Settings {
            sync_log: self.settings.sync_log,
            pace: Pace {
                look: Duration::from_millis(200),
                generation: self.settings.generation,
                beat: self.settings.generation,
            },
            quarantine: self.settings.quarantine,
            hot_max: self.settings.hot_max,
            throttle: self.settings.throttle,
            marks_fail: self.settings.marks_fail,
        };
        let expected = Expected {
            entry: kept.left.map(|left| left.entry),
            generation: kept.volume.map(|(_, generation)| generation),
        };
        let sequences = self.store.sequences.clone();
        let store = Arc::new(self.store.clone());
        let volume = Volume::new("disk0", store, sequences.clone(), settings, start);
        let report = Arc::new(Report::new("disk0"));
        let (stop, stopping) = watch::channel(false);
        let (tell, opened) = watch::channel(None);
        let parts = Parts {
            volume: volume.clone(),
            remote: self.remote.clone(),
            name: Self::name(),
            opening: self.opening(1, kept.volume.map(|(volume, _)| volume), kept.take_over),
            expected,
            epoch: self.settings.epoch,
            scan_rate: None,
            clock: self.clock(),
            sequences,
            memory: Memory::default(),
            report: report.clone(),
            opened: Box::new(move |volume, generation| {
                tell.send_replace(Some((volume, generation)));
            }),
        };
        let publisher = tokio::spawn(publisher::run(parts, stopping));
        Gateway { volume, replays: records > 0, report, stop, publisher, opened, _pool: pool }
    }
}

impl Gateway {
    /// A clean stop, as far as it goes within two minutes; clients are gone.
    pub async fn leave(self, store: &Store) -> Option<Left> {
        self.stop.send_replace(true);
        let left = tokio::time::timeout(Duration::from_secs(120), self.publisher).await.ok()?.ok()??;
        // As the daemon does: the mark of a clean stop comes after the store's flush.
        let settled = self.volume.is_settled() && store.flush().await.is_ok() && self.volume.is_settled();
        (settled && self.volume.settle_marks().await && !self.volume.is_suspect()).then_some(left)
    }
}

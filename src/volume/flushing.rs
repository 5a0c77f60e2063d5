//! Flushes of the store: those of clients, our own for the sake of the marks, and what it means when one fails.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tracing::{error, warn};

use super::flushes::Flushing;
use super::latency::{Kind, Stopwatch};
use super::{Core, LOG_SYNC_MAX};
use crate::disk::{Disk, DiskError, Pending};
use crate::failpoint::{self, Safeguard};

impl Core {
    /// Flushes the store, and takes note of what that proves.
    pub(super) async fn flush_store(self: &Arc<Self>, watch: &mut Stopwatch) -> Result<(), DiskError> {
        let flushing = self.admission.lock().flushing(&self.log);
        watch.lap_added();
        let answer = self.store.flush().await;
        watch.lap_store();
        self.flush_answered(flushing, answer);
        match answer {
            Ok(()) | Err(DiskError::Refused(_)) => {}
            Err(DiskError::Lost) => self.lost("a flush"),
            Err(DiskError::Io(_)) => self.flush_failed(),
        }
        answer
    }

    pub(super) fn flush_answered(&self, flushing: Flushing, answer: Result<(), DiskError>) {
        // It may be the answer of a store that came back, which knows nothing of what the one before held.
        let came_back = self.check_incarnation();
        let mut admission = self.admission.lock();
        match answer {
            Ok(()) => admission.flushed(flushing, !came_back),
            Err(DiskError::Refused(_)) => admission.flushed(flushing, false),
            Err(_) => admission.not_flushed(flushing),
        }
    }

    /// Flushes the store for the sake of the marks, unless somebody is flushing it.
    pub(super) fn flush_for_lazy_clients(self: &Arc<Self>) {
        let core = self.clone();
        tokio::spawn(async move {
            let Ok(_alone) = core.flushes.try_write() else { return };
            // No client waits for it: it is not counted.
            let mut watch = Stopwatch::start(Kind::Flush);
            if let Err(error @ DiskError::Io(_)) = core.flush_store(&mut watch).await {
                core.owed.lock().get_or_insert(error);
            }
        });
    }

    /// For `sync = "flush"`: waits until what is logged is durable, but never longer than [`LOG_SYNC_MAX`].
    pub(super) async fn sync_log(&self) {
        let through = self.admission.lock().newest();
        if tokio::time::timeout(LOG_SYNC_MAX, self.log.sync(through)).await.is_err() {
            warn!(volume = self.name, waited = ?LOG_SYNC_MAX, "the log is slow; a flush was answered without it");
        }
    }

    /// A flush's error says that something that was written is not on the medium, and that nobody will try again. The
    /// caches may still show it: only what is read past them is what the store holds.
    pub(super) fn flush_failed(self: &Arc<Self>) {
        if !failpoint::stands(Safeguard::DistrustAfterFailedFlush) {
            return;
        }
        error!(volume = self.name, "the store failed a flush; what is not known to be on it will be compared");
        self.forgetting.fetch_add(1, Ordering::Relaxed);
        self.admission.lock().distrust();
        let core = self.clone();
        let forgotten = if failpoint::stands(Safeguard::ForgottenCaches) {
            self.store.forget_cached()
        } else {
            Pending::ready(Ok(true))
        };
        tokio::spawn(async move {
            if forgotten.await != Ok(true) {
                let mut admission = core.admission.lock();
                let first = admission.heat().stuck().is_empty();
                admission.distrust_for_good();
                drop(admission);
                if first {
                    warn!(
                        volume = core.name,
                        "the store's caches cannot be passed by: what was hot is read again at every start, until the \
                         store was restarted and then the gateway, with --compare"
                    );
                }
            }
            core.forgetting.fetch_sub(1, Ordering::Relaxed);
            core.urgent.notify_one();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::boot::Found;
    use super::super::{Sequences, Settings, Volume};
    use super::*;
    use crate::disk::faulty::{Fault, Kind};
    use crate::disk::{Errno, FaultyDisk, MemoryDisk};
    use crate::format::VolumeId;
    use crate::units::MIB;
    use crate::{marks, writelog};

    #[tokio::test]
    async fn what_a_client_could_not_be_told_is_told_by_the_next_flush_that_tells_anything() {
        let folder = tempfile::tempdir().unwrap();
        let (log, settings) =
            (folder.path().join("log"), writelog::Settings { size: 256 * MIB, volumes: 1, discard: true });
        let marks = marks::open_io(&folder.path().join("marks")).unwrap();
        let mut found = Found::read("disk0", VolumeId([9; 16]), MIB, marks).unwrap();
        found.log_found(writelog::Pool::look(&log, settings).unwrap()).unwrap();
        let (pool, opened) = writelog::Pool::open(&log, settings).unwrap();
        let start = found.start(&pool, opened, false).unwrap();
        let store = Arc::new(FaultyDisk::new(MemoryDisk::new(MIB)));
        let sequences = Arc::new(Sequences::above(1 << 50));
        let volume = Volume::new("disk0", store.clone(), sequences, Settings::default(), start);

        let untold = DiskError::Io(Errno::ENOSPC);
        volume.owe(untold);
        assert_eq!(volume.flush().await, Err(untold));
        assert_eq!(volume.flush().await, Ok(()));
        for tells_nothing in [DiskError::Lost, DiskError::Refused(Errno::EIO)] {
            volume.owe(untold);
            store.inject(Fault::instead(Kind::Flush, tells_nothing).once());
            assert_eq!(volume.flush().await, Err(tells_nothing));
            assert_eq!(volume.flush().await, Err(untold));
        }
    }
}

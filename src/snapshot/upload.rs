//! Puts finished packs and runs. Order does not matter here: an object is invisible until an entry names it.
//!
//! Owns: the memory that objects on their way may take, and trying until it is done. Does not own: concurrency and
//! rate ([`crate::remote`]), what is published, deleting.
//! Crash: objects that no entry names remain; reclaiming finds them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::warn;

use super::status::Report;
use crate::format::{ObjectHash, ObjectRef};
use crate::remote::{PutOutcome, Remote, RemoteError};
use crate::task;
use crate::units::MIB;

/// Memory of packs being built or uploaded, of all volumes of a gateway, MiB: for the log's, and as much for scans'.
/// A scan keeps its share until its pack is full or its publisher comes to seal it, and must not hold up publishers.
pub const PACK_MEMORY_MIB: u32 = 144;
/// The most that one pack is charged with, MiB: it is closed at 64, and its last block's records and index follow.
const PACK_CHARGE_MIB: u32 = 72;

const _: () = assert!(PACK_CHARGE_MIB * 2 <= PACK_MEMORY_MIB, "one can be built while another is uploaded");

/// Between two rounds of attempts at the same thing.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(15);

/// The object's name is taken by other content: this generation is not ours alone.
#[derive(Debug, thiserror::Error)]
#[error("{key} exists with other content: another gateway writes with the same generation")]
pub struct Taken {
    pub key: String,
}

/// What a pack is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Log,
    Scan,
}

/// The memory for all packs of a gateway; clones share it.
#[derive(Clone)]
pub struct Memory {
    log: Arc<Semaphore>,
    scan: Arc<Semaphore>,
}

impl Default for Memory {
    fn default() -> Self {
        let share = || Arc::new(Semaphore::new(PACK_MEMORY_MIB as usize));
        Self { log: share(), scan: share() }
    }
}

#[derive(Clone)]
pub struct Uploader {
    remote: Remote,
    memory: Memory,
    report: Arc<Report>,
}

/// A share of the memory for packs.
pub struct Room(OwnedSemaphorePermit);

impl Uploader {
    /// `memory` is shared by all volumes.
    pub fn new(remote: Remote, memory: Memory, report: Arc<Report>) -> Self {
        Self { remote, memory, report }
    }

    /// Waits until another pack may be built.
    pub async fn room(&self, purpose: Purpose) -> Room {
        let memory = match purpose {
            Purpose::Log => &self.memory.log,
            Purpose::Scan => &self.memory.scan,
        };
        let permit = memory.clone().acquire_many_owned(PACK_CHARGE_MIB).await;
        Room(permit.expect("the semaphore is never closed"))
    }

    /// Puts an object under `key`, however long the remote is away.
    pub async fn put(
        &self,
        key: String,
        body: Bytes,
        object: ObjectRef,
        room: Option<Room>,
    ) -> Result<ObjectRef, Taken> {
        // A small pack gives back what it does not need.
        let _room = room.map(|mut room| {
            let surplus = PACK_CHARGE_MIB.saturating_sub(body.len().div_ceil(MIB as usize) as u32);
            drop(room.0.split(surplus as usize));
            room
        });
        // A put whose answer was lost is normal; other bytes under our name are not.
        let found = persist(&self.report, || self.put_or_find(&key, &body)).await;
        self.report.uploaded(object.length);
        if let Some(found) = found {
            let hash = task::unhurried_task(async move { blake3::hash(&found) }).await;
            if ObjectHash(*hash.expect("hashing does not panic").as_bytes()) != object.hash {
                return Err(Taken { key });
            }
        }
        Ok(object)
    }
}

impl Uploader {
    /// Puts the object, or finds what stands there. S3 says "taken" of a put that raced with another attempt at the
    /// same, whatever becomes of both: nothing may stand there, and then only another put helps.
    async fn put_or_find(&self, key: &str, body: &Bytes) -> Result<Option<Bytes>, RemoteError> {
        match self.remote.put_new(key, body.clone()).await? {
            PutOutcome::Created => Ok(None),
            PutOutcome::Exists => self.remote.get(key).await.map(Some),
        }
    }
}

/// Repeats a remote operation until it succeeds: whoever cannot wait for ever drops the future. What goes wrong is
/// logged and shown in the status.
pub async fn persist<T, E: std::error::Error, F: Future<Output = Result<T, E>>>(
    report: &Report,
    mut operation: impl FnMut() -> F,
) -> T {
    let mut pause = PAUSE_MIN;
    loop {
        match operation().await {
            Ok(done) => {
                report.reached();
                return done;
            }
            Err(error) => {
                let error = with_causes(&error);
                warn!(volume = report.volume(), error, retry_in = ?pause, "the remote is not available");
                report.failed(error);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

/// An error with all its causes, in one line.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

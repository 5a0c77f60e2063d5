//! An object store as the rest of Umbra sees it: immutable objects, put with create-if-absent, got whole or by range.
//!
//! Owns: the way to the store, time-outs, retries, concurrency and rate of uploads, counters. Does not own: what the
//! keys mean ([`crate::format`]), whether bytes are the right ones (hashes are checked where they are known), what to
//! do when a store stays away.
//! Order: none between operations. An answer that was lost leaves a put done or undone, or done later: it is tried
//! again, and [`PutOutcome::Exists`] then says no more than that something is there; the caller compares.
//! Crash: objects that were put and not yet named by an entry remain.
//!
//! Nothing here deletes or overwrites, and only [`Remote::list`] lists: a gateway needs no such right.

pub mod error;
pub mod faulty;
pub mod limits;
mod open;
pub mod probe;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, GetResult, GetResultPayload, ObjectStore, PutMode, PutOptions, PutPayload};
use tokio::time::{Instant, timeout};

use crate::task;
use crate::units::MIB;
pub use error::{Operation, RemoteError};
use limits::{Gate, Pace, WRONG_ANSWERS_MAX};
pub use limits::{Limits, Stats};
pub use open::OpenError;

/// What became of a put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutOutcome {
    /// This put made the object.
    Created,
    /// An object may be there: an earlier attempt of the same put, another writer's, or (S3 answers 409 to one of two
    /// racing puts) one whose fate is open. Only a get tells.
    Exists,
}

/// The longest object that [`Remote::get`] reads whole, bytes: a pack with its index, and room.
const WHOLE_MAX: u64 = 128 * MIB;
/// Where a listing stops: names of volumes, not objects.
const LIST_MAX: usize = 100_000;

/// A bucket and a prefix in it. Clones share connections, limits and counters.
#[derive(Clone)]
pub struct Remote(Arc<Inner>);

struct Inner {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    name: String,
    folder: Option<open::Folder>,
    limits: Limits,
    gate: Gate,
    up: Pace,
    down: Pace,
    stats: Stats,
}

impl Remote {
    /// Opens `file:FOLDER`, `s3://BUCKET/PREFIX`, `az://CONTAINER/PREFIX`, `gs://BUCKET/PREFIX` or `memory:` (a new,
    /// empty one). Nothing is asked of the store yet. `options` are object_store's, by name.
    ///
    /// What follows `file:` is a path as it is, relative or absolute; `file:///path` is the same as `file:/path`.
    pub fn open(url: &str, options: &BTreeMap<String, String>, limits: Limits) -> Result<Self, OpenError> {
        Ok(Self::of(open::open(url, options, open::Caller::Reader)?, limits))
    }

    /// As [`Remote::open`], for a gateway: the folder of a `file:` remote is made where it is absent, and connections
    /// are served by threads that let others go first.
    pub fn create(url: &str, options: &BTreeMap<String, String>, limits: Limits) -> Result<Self, OpenError> {
        Ok(Self::of(open::open(url, options, open::Caller::Gateway)?, limits))
    }

    /// A remote over any store.
    pub fn with_store(store: Arc<dyn ObjectStore>, prefix: Path, limits: Limits) -> Self {
        let name = store.to_string();
        Self::of(open::Opened { store, prefix, name, folder: None }, limits)
    }

    fn of(opened: open::Opened, limits: Limits) -> Self {
        let open::Opened { store, prefix, name, folder } = opened;
        let gate = Gate::new(&limits);
        let (up, down) = (Pace::new(), Pace::new());
        Self(Arc::new(Inner { store, prefix, name, folder, limits, gate, up, down, stats: Stats::default() }))
    }

    pub fn stats(&self) -> &Stats {
        &self.0.stats
    }

    /// The whole object, at most 128 MiB.
    pub async fn get(&self, key: &str) -> Result<Bytes, RemoteError> {
        self.until_done(Operation::Get, key, || self.get_once(key, None)).await
    }

    /// Exactly these bytes of the object.
    pub async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, RemoteError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        self.until_done(Operation::Get, key, || self.get_once(key, Some(range.clone()))).await
    }

    /// Makes the object if there is none. It is durable at the store when this returns [`PutOutcome::Created`].
    ///
    /// Dropping the future, like a time-out, leaves open whether the object is made now, later or never.
    pub async fn put_new(&self, key: &str, body: Bytes) -> Result<PutOutcome, RemoteError> {
        self.until_done(Operation::Put, key, || self.put_once(key, body.clone())).await
    }

    /// Whether the object is there. The answer has no body, so that a bucket that is missing cannot be told from an
    /// object that is; [`Remote::get`] can.
    pub async fn exists(&self, key: &str) -> Result<bool, RemoteError> {
        match self.until_done(Operation::Head, key, || self.head_once(key)).await {
            Ok(()) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The keys below `prefix` (whole segments), in order. For readers; the store may be asked many times.
    pub async fn list(&self, prefix: &str) -> Result<Vec<String>, RemoteError> {
        self.until_done(Operation::List, prefix, || self.list_once(prefix)).await
    }

    fn path(&self, key: &str) -> Path {
        let segments = key.split('/').filter(|segment| !segment.is_empty());
        segments.fold(self.0.prefix.clone(), |path, segment| path.join(segment))
    }

    /// Tries until it is done, or hopeless, or has taken too long.
    async fn until_done<T, A>(
        &self,
        operation: Operation,
        key: &str,
        mut attempt: impl FnMut() -> A,
    ) -> Result<T, RemoteError>
    where
        A: Future<Output = Result<T, RemoteError>>,
    {
        let Inner { limits, stats, .. } = &*self.0;
        let start = Instant::now();
        let mut pause = limits.pause_min;
        let mut wrong_answers = 0;
        loop {
            let error = match attempt().await {
                Ok(answer) => return Ok(answer),
                // Not in another folder.
                Err(error) if error.is_not_found() => self.is_there(operation, key).await.err().unwrap_or(error),
                Err(error) => error,
            };
            if !error.is_not_found() {
                stats.failed(&error);
            }
            wrong_answers += u32::from(matches!(error, RemoteError::Corrupt { .. }));
            // Nobody puts a folder back in a moment.
            let replaced = matches!(error, RemoteError::Replaced { .. });
            let late = replaced || start.elapsed() + pause > limits.patience;
            if late || wrong_answers == WRONG_ANSWERS_MAX || !error.is_transient() {
                return Err(error);
            }
            stats.retries.fetch_add(1, Relaxed);
            tracing::debug!(remote = %self.0.name, %operation, key, error = error.with_causes(), "will try again");
            tokio::time::sleep(jittered(pause)).await;
            pause = (pause * 2).min(limits.pause_max);
        }
    }

    /// Whether the folder of a `file:` remote is the one that was opened.
    async fn is_there(&self, operation: Operation, key: &str) -> Result<(), RemoteError> {
        let Some(folder) = self.0.folder.clone() else { return Ok(()) };
        let (key, path) = (key.to_owned(), folder.path.clone());
        // A folder on the network may hang.
        match timeout(self.0.limits.answer, task::blocking(move || folder.is_there())).await {
            Ok(Ok(true)) => Ok(()),
            Ok(_) => Err(RemoteError::Replaced { operation, key, path }),
            Err(_) => Err(RemoteError::TimedOut { operation, key, after: self.0.limits.answer }),
        }
    }

    async fn get_once(&self, key: &str, wanted: Option<Range<u64>>) -> Result<Bytes, RemoteError> {
        let operation = Operation::Get;
        let Inner { store, limits, down, stats, .. } = &*self.0;
        let failed = |error| RemoteError::from_store(operation, key, error);
        let timed_out = |after| RemoteError::TimedOut { operation, key: key.to_owned(), after };
        let options = GetOptions { range: wanted.clone().map(GetRange::Bounded), ..GetOptions::default() };

        let answer = timeout(limits.answer, store.get_opts(&self.path(key), options))
            .await
            .map_err(|_| timed_out(limits.answer))?
            .map_err(failed)?;
        let wanted = wanted.unwrap_or(0..answer.meta.size);
        let expected = wanted.end - wanted.start;
        let corrupt = |got| RemoteError::Corrupt { operation, key: key.to_owned(), expected, got };
        if answer.range != wanted {
            return Err(corrupt(answer.range.end.saturating_sub(answer.range.start)));
        }
        if expected > WHOLE_MAX {
            return Err(RemoteError::TooLarge { operation, key: key.to_owned(), length: expected, limit: WHOLE_MAX });
        }

        let begun = Instant::now();
        let allowance = down.allowance(limits.answer, expected);
        let body = timeout(allowance, collect(answer, expected)).await.map_err(|_| {
            down.timed_out();
            timed_out(allowance)
        })?;
        let body = body.map_err(failed)?;
        if body.len() as u64 != expected {
            return Err(corrupt(body.len() as u64));
        }
        down.done(begun.elapsed(), allowance);
        stats.gets.fetch_add(1, Relaxed);
        stats.bytes_down.fetch_add(expected, Relaxed);
        Ok(body)
    }

    async fn put_once(&self, key: &str, body: Bytes) -> Result<PutOutcome, RemoteError> {
        let length = body.len() as u64;
        let _slot = self.0.gate.admit(length).await;
        self.is_there(Operation::Put, key).await?;
        let outcome = self.put_unlimited(key, body).await?;
        // What was put meanwhile may have come into another.
        self.is_there(Operation::Put, key).await?;
        Ok(outcome)
    }

    /// One attempt at a put, regardless of concurrency and rate.
    async fn put_unlimited(&self, key: &str, body: Bytes) -> Result<PutOutcome, RemoteError> {
        let operation = Operation::Put;
        let Inner { store, limits, up, stats, .. } = &*self.0;
        let length = body.len() as u64;
        let begun = Instant::now();
        let allowance = up.allowance(limits.answer, length);
        let (store, path, options) = (store.clone(), self.path(key), PutOptions::from(PutMode::Create));
        // The processor has to copy it, and most stores want its hash.
        let put = task::unhurried_task(async move { store.put_opts(&path, PutPayload::from(body), options).await });
        let died = |died| Err(object_store::Error::Generic { store: "remote", source: Box::new(died) });
        let outcome = match timeout(allowance, put).await.map(|put| put.unwrap_or_else(died)) {
            Ok(Ok(_)) => PutOutcome::Created,
            Ok(Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. })) => {
                PutOutcome::Exists
            }
            Ok(Err(error)) => return Err(RemoteError::from_store(operation, key, error)),
            Err(_) => {
                up.timed_out();
                return Err(RemoteError::TimedOut { operation, key: key.to_owned(), after: allowance });
            }
        };
        up.done(begun.elapsed(), allowance);
        stats.puts.fetch_add(1, Relaxed);
        stats.bytes_up.fetch_add(length, Relaxed);
        Ok(outcome)
    }

    async fn head_once(&self, key: &str) -> Result<(), RemoteError> {
        let operation = Operation::Head;
        let after = self.0.limits.answer;
        let options = GetOptions { head: true, ..GetOptions::default() };
        match timeout(after, self.0.store.get_opts(&self.path(key), options)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(RemoteError::from_store(operation, key, error)),
            Err(_) => Err(RemoteError::TimedOut { operation, key: key.to_owned(), after }),
        }
    }

    async fn list_once(&self, prefix: &str) -> Result<Vec<String>, RemoteError> {
        let operation = Operation::List;
        let after = self.0.limits.answer;
        let path = self.path(prefix);
        let mut found = self.0.store.list(Some(&path));
        let mut keys = Vec::new();
        loop {
            let next = match timeout(after, found.try_next()).await {
                Ok(next) => next.map_err(|error| RemoteError::from_store(operation, prefix, error))?,
                Err(_) => return Err(RemoteError::TimedOut { operation, key: prefix.to_owned(), after }),
            };
            let Some(object) = next else { break };
            if keys.len() == LIST_MAX {
                let (length, limit) = (LIST_MAX as u64 + 1, LIST_MAX as u64);
                return Err(RemoteError::TooLarge { operation, key: prefix.to_owned(), length, limit });
            }
            let whole = object.location.as_ref();
            let below = whole.strip_prefix(self.0.prefix.as_ref()).unwrap_or(whole);
            keys.push(below.trim_start_matches('/').to_owned());
        }
        keys.sort_unstable();
        Ok(keys)
    }
}

/// The body, or what came of it, if it is not `expected` bytes long.
async fn collect(answer: GetResult, expected: u64) -> object_store::Result<Bytes> {
    if matches!(answer.payload, GetResultPayload::File(..)) {
        return answer.bytes().await;
    }
    let mut stream = answer.into_stream();
    let Some(first) = stream.try_next().await? else { return Ok(Bytes::new()) };
    if first.len() as u64 >= expected {
        return Ok(first);
    }
    // `expected` was checked against WHOLE_MAX.
    let mut body = BytesMut::with_capacity(expected as usize);
    body.extend_from_slice(&first);
    while let Some(part) = stream.try_next().await? {
        body.extend_from_slice(&part);
        if body.len() as u64 > expected {
            break;
        }
    }
    Ok(body.freeze())
}

/// Between half of `pause` and all of it, so that those who failed together do not come back together.
fn jittered(pause: Duration) -> Duration {
    let half = pause / 2;
    match crate::random::u32() {
        Ok(random) => half + half.mul_f64(f64::from(random) / f64::from(u32::MAX)),
        Err(_) => pause,
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.name)
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Remote({})", self.0.name)
    }
}

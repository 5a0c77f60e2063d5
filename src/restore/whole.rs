//! Rebuilds a whole volume from a recovery point.
//!
//! The volume is taken in [windows](super::window). Inside a window the records are read pack by pack in the order in
//! which they lie there, so that a volume that was written in tiny pieces costs few gets; what is not data is made
//! zero. Reads and writes of one window go on while the next is looked up.
//!
//! Promises: no byte is written that was not checked; what the point does not name becomes zero; after an error the
//! target keeps its mark. In memory: 96 MiB of records under way, and the places of the records of one window.

use std::future::Future;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};

use super::plan::{self, Batch};
use super::progress::Progress;
use super::ranges::Ranges;
use super::target::{Target, TargetError};
use super::window::{Walk, Window};
use crate::chain::resolve::{ResolveError, Resolver};
use crate::units::{EntryNumber, KIB, MIB, SECTOR, Span};

/// Records under way, stored and decoded bytes together.
const UNDER_WAY_MAX: u64 = 96 * MIB;
/// Jobs under way, however small: as many requests as an object store likes to have from one client.
const JOBS_MAX: u64 = 24;
/// What a job counts for at least, so that no more than [`JOBS_MAX`] are under way.
const JOB_MIN: u64 = UNDER_WAY_MAX / JOBS_MAX;
/// Neighbouring records are written together up to this length: enough for the full speed of any disk.
const WRITE_MAX: usize = MIB as usize;
/// Writes of one job under way.
const WRITES_AT_ONCE: usize = 8;

/// Why a volume was not restored. The target holds a part of it, and is marked as unfinished.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error("find out what point {number} holds")]
    Resolve { number: EntryNumber, source: ResolveError },
    #[error("read bytes {} to {} of point {number}", span.start, span.end)]
    Read { number: EntryNumber, span: Span, source: ResolveError },
    #[error("interrupted")]
    Interrupted(#[source] JoinError),
}

/// What became of a restore that came to its end.
#[derive(Debug, Default)]
pub struct Restored {
    /// Data, zeroes not counted.
    pub bytes_written: u64,
    /// What could not be read when the copy was made; the target has zeroes there.
    pub unreadable: Ranges,
}

/// Writes the content of point `number`, which `resolver` resolves, to `target`; all that is not data becomes zero.
pub async fn restore(
    resolver: &Resolver,
    number: EntryNumber,
    target: Target,
    progress: &Arc<Progress>,
) -> Result<Restored, RestoreError> {
    target.begin().await?;
    let before = progress.moved();
    let target = Arc::new(target);
    let mut unreadable = Ranges::default();
    let mut jobs = Jobs::new();
    let mut walk = Walk::new(resolver);
    while let Some(window) = walk.next().await.map_err(|source| RestoreError::Resolve { number, source })? {
        let Window { span, fragments } = window;
        unreadable.append(plan::unreadable(&fragments, span.end));
        for gap in plan::not_data(span, &fragments) {
            if target.is_blank() {
                progress.pass(gap.len());
                continue;
            }
            let (target, progress) = (target.clone(), progress.clone());
            jobs.start(0, async move {
                target.zero(gap).await?;
                progress.pass(gap.len());
                Ok(())
            })
            .await?;
        }
        for batch in plan::batches(fragments) {
            // Decoded records are joined by copying.
            let weight = batch.stored + 2 * batch.plain;
            let (resolver, target, progress) = (resolver.clone(), target.clone(), progress.clone());
            jobs.start(weight, async move { copy(&resolver, number, &target, &progress, batch).await }).await?;
        }
    }
    jobs.finish().await?;
    target.finish().await?;
    Ok(Restored { bytes_written: progress.moved() - before, unreadable })
}

/// Reads the records of a batch, and writes them.
async fn copy(
    resolver: &Resolver,
    number: EntryNumber,
    target: &Target,
    progress: &Progress,
    batch: Batch,
) -> Result<(), RestoreError> {
    let size = resolver.size();
    let records = resolver.read_records(&batch.fragments).await.map_err(|source| {
        let spans = batch.fragments.iter().flat_map(|fragment| plan::spans(fragment, size));
        let span = spans.reduce(|all, span| Span::new(all.start.min(span.start), all.end.max(span.end)));
        RestoreError::Read { number, span: span.unwrap_or(Span::new(0, 0)), source }
    })?;
    let mut pieces = Vec::new();
    for (fragment, bytes) in batch.fragments.iter().zip(records) {
        let mut from = 0;
        for span in plan::spans(fragment, size) {
            pieces.push((span.start, bytes.slice(from..from + span.len() as usize)));
            // Only the volume's last sector can be shorter than its record's.
            from += span.len().next_multiple_of(SECTOR) as usize;
        }
    }
    stream::iter(joined(pieces))
        .map(Ok)
        .try_for_each_concurrent(WRITES_AT_ONCE, |(offset, data)| async move {
            let length = data.len() as u64;
            target.write(offset, data).await?;
            progress.pass(length);
            Ok(())
        })
        .await
}

/// Makes of neighbouring pieces one, up to [`WRITE_MAX`]. A piece that stands alone is not copied.
fn joined(mut pieces: Vec<(u64, Bytes)>) -> Vec<(u64, Bytes)> {
    pieces.sort_unstable_by_key(|(offset, _)| *offset);
    let mut whole = Vec::new();
    let mut rest = &pieces[..];
    while let Some((offset, first)) = rest.first() {
        let mut length = 0;
        let run = rest.iter().take_while(|(at, piece)| {
            let follows = *at == offset + length as u64 && (length == 0 || length + piece.len() <= WRITE_MAX);
            length += if follows { piece.len() } else { 0 };
            follows
        });
        let count = run.count();
        if count == 1 {
            whole.push((*offset, first.clone()));
        } else {
            let mut bytes = BytesMut::with_capacity(length);
            rest[..count].iter().for_each(|(_, piece)| bytes.extend_from_slice(piece));
            whole.push((*offset, bytes.freeze()));
        }
        rest = &rest[count..];
    }
    whole
}

/// Tasks under way, as many as fit into [`UNDER_WAY_MAX`]. The first error ends them all.
struct Jobs {
    tasks: JoinSet<Result<(), RestoreError>>,
    /// In KiB.
    room: Arc<Semaphore>,
}

impl Jobs {
    fn new() -> Self {
        Self { tasks: JoinSet::new(), room: Arc::new(Semaphore::new((UNDER_WAY_MAX / KIB) as usize)) }
    }

    /// Waits for room for `weight` bytes. Returns the error of any job that has ended by then.
    async fn start(
        &mut self,
        weight: u64,
        job: impl Future<Output = Result<(), RestoreError>> + Send + 'static,
    ) -> Result<(), RestoreError> {
        let weight = weight.clamp(JOB_MIN, UNDER_WAY_MAX).div_ceil(KIB) as u32;
        // Never closed: what cannot be had is a permit to go on without a bound.
        let room = self.room.clone().acquire_many_owned(weight).await;
        while let Some(ended) = self.tasks.try_join_next() {
            outcome(ended)?;
        }
        self.tasks.spawn(async move {
            let _room = room;
            job.await
        });
        Ok(())
    }

    async fn finish(mut self) -> Result<(), RestoreError> {
        while let Some(ended) = self.tasks.join_next().await {
            outcome(ended)?;
        }
        Ok(())
    }
}

/// A panic in a task is a panic here: only a bug of ours makes one.
fn outcome(ended: Result<Result<(), RestoreError>, JoinError>) -> Result<(), RestoreError> {
    match ended {
        Ok(outcome) => outcome,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(cancelled) => Err(RestoreError::Interrupted(cancelled)),
        },
    }
}

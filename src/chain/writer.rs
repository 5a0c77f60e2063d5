//! Publishes entries: one at a time, each under the next number, none twice.
//!
//! Order: an entry follows exactly the entries that this writer knows. Bytes for a number never vary once tried: as
//! long as nobody knows whether a put was done, the writer stays on that number with those bytes.
//! Crash: the entry under way may stand in the chain or come to; the next opening takes it as it is.
//!
//! The clock of the gateway gives the times. (DESIGN §5 wants it clamped to the store's Date; object_store shows none
//! with a put.)

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::conflict::{Attempted, Fence, Verdict, judge};
use super::reader::{ChainError, ChainReader, Found};
use super::shows_content;
use crate::format::codec::FormatError;
use crate::format::entry::{Entry, EntryKind, ScanCursor, Slice};
use crate::format::{InstanceId, Keys, ObjectHash, ObjectRef, VolumeId};
use crate::remote::{PutOutcome, RemoteError};
use crate::units::{EntryNumber, Generation, Sequence, Timestamp};

/// What is to be published. It stands on [`ChainWriter::newest`]: lists and sequence must contain all that it shows.
#[derive(Clone, Debug)]
pub struct Proposal {
    pub kind: EntryKind,
    /// The cut; that of the last slice, if there are slices.
    pub sequence: Sequence,
    /// Of the cut. Where the clock was set back, the published time is later.
    pub time: Timestamp,
    /// Of the volume, bytes.
    pub size: u64,
    pub draft: bool,
    pub leaving: bool,
    pub scan: Option<ScanCursor>,
    pub slices: Vec<Slice>,
    pub own: Vec<ObjectRef>,
    pub levels: [Vec<ObjectRef>; 4],
    pub new_bytes: u64,
    pub detail: Vec<u8>,
}

impl Proposal {
    /// An entry of this kind that shows the same content as `entry`: a heartbeat, a leaving.
    pub fn repeating(entry: &Entry, kind: EntryKind, time: Timestamp) -> Self {
        Self {
            kind,
            sequence: entry.sequence,
            time,
            size: entry.size,
            draft: entry.draft,
            leaving: false,
            scan: entry.scan,
            slices: Vec::new(),
            own: entry.own.clone(),
            levels: entry.levels.clone(),
            new_bytes: 0,
            detail: Vec::new(),
        }
    }
}

/// An entry that stands in the chain.
#[derive(Clone, Debug)]
pub struct Published {
    pub entry: Arc<Entry>,
    /// Entries of others that were met on the way and come before it, oldest first: pins, and checkpoints, which show
    /// the same content as before with merged lists. The entry was published on its own lists, as proposed: correct,
    /// but whoever proposes the next should build on the lists of the last checkpoint among these, with what was
    /// added since in front.
    pub adopted: Vec<Arc<Entry>>,
    /// It is an earlier proposal whose outcome was unknown until now. What was proposed in this call was **not**
    /// published, and must be proposed again on top of it.
    pub settled: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// Whether the entry was or will be published is unknown. Proposing again settles that first.
    #[error("publish entry {number}: the outcome is unknown")]
    Unknown { number: EntryNumber, source: RemoteError },
    #[error("publish entry {number}: what stands there cannot be read; the outcome is unknown")]
    Conflict { number: EntryNumber, source: ChainError },
    /// Another writer has the volume. Final: this writer publishes nothing more.
    #[error(
        "fenced at entry {} by {}",
        .0.number,
        .0.by.map_or("a newer version of Umbra".to_owned(), |(generation, instance)| {
            format!("generation {generation} of instance {instance}")
        })
    )]
    Fenced(Fence),
    /// Objects were condemned meanwhile, and the proposal may list them. It was not published; what it still needs of
    /// them must be uploaded again under new names.
    #[error("publish entry {}: objects were condemned by entry {}", .entry.number.next(), .entry.number)]
    Reclaimed { entry: Arc<Entry> },
    #[error("publish entry {number}: it cannot be written")]
    Entry { number: EntryNumber, source: FormatError },
    /// Not fenced, and nothing is under way: proposing again goes on from there.
    #[error("publish entry {number}: every number so far was taken by something that is not an entry")]
    Crowded { number: EntryNumber },
}

/// The last thing in the chain that this writer knows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tip {
    pub(super) number: EntryNumber,
    /// Of its bytes.
    pub(super) hash: ObjectHash,
    /// Of the newest entry up to it.
    pub(super) time: Timestamp,
}

impl Tip {
    /// Before the first entry.
    pub(super) const START: Self = Self { number: EntryNumber(0), hash: ObjectHash([0; 32]), time: Timestamp(0) };

    /// `wanted`, or just after all that stands in the chain.
    pub(super) fn time_after(&self, wanted: Timestamp) -> Timestamp {
        wanted.max(Timestamp(self.time.0.saturating_add(1)))
    }
}

/// Looks at a number that is said to be taken and found absent, each followed by another put.
pub(super) const ABSENT_MAX: u32 = 8;
/// Numbers that may be taken by noise and remarks in one call.
const NUMBERS_MAX: usize = 64;

/// A store that answers "taken" and "absent" in turn is settling a race of puts.
pub(super) async fn pause_before_another_look(look: u32) {
    if look > 0 {
        tokio::time::sleep(Duration::from_millis(5) * 2u32.saturating_pow(look)).await;
    }
}

/// An entry whose put was or will be tried.
struct Attempt {
    entry: Arc<Entry>,
    bytes: Bytes,
    hash: ObjectHash,
}

/// Has a volume open for writing.
pub struct ChainWriter {
    reader: ChainReader,
    instance: InstanceId,
    generation: Generation,
    heartbeat: u64,
    tip: Tip,
    /// The newest entry that shows content.
    newest: Arc<Entry>,
    /// Who published last before the `open`.
    before: Option<(InstanceId, Generation)>,
    /// Tried, with an unknown outcome.
    pending: Option<Attempt>,
    fence: Option<Fence>,
}

impl ChainWriter {
    /// Of a generation whose `open` has been published, and is the tip.
    pub(super) fn opened(reader: ChainReader, tip: Tip, open: Arc<Entry>, before: Option<Arc<Entry>>) -> Self {
        let (instance, generation, heartbeat) = (open.instance, open.generation, open.heartbeat);
        let before = before.map(|entry| (entry.instance, entry.generation));
        Self { reader, instance, generation, heartbeat, tip, newest: open, before, pending: None, fence: None }
    }

    /// The last gateway that published before this one opened the volume, and the generation in which it did. Openings
    /// of this instance that published nothing do not count.
    pub fn before(&self) -> Option<(InstanceId, Generation)> {
        self.before
    }

    pub fn volume(&self) -> VolumeId {
        self.reader.volume()
    }
    pub fn keys(&self) -> &Keys {
        self.reader.keys()
    }
    pub fn reader(&self) -> &ChainReader {
        &self.reader
    }
    pub fn generation(&self) -> Generation {
        self.generation
    }
    /// The newest entry that shows content, on which a proposal stands: at first the `open`, which shows what the
    /// chain showed before. If it is a draft, a scan was under way; of an empty chain it is one, too.
    pub fn newest(&self) -> &Arc<Entry> {
        &self.newest
    }
    /// Who has fenced this writer, if anyone has.
    pub fn fence(&self) -> Option<Fence> {
        self.fence
    }
    /// The counter that entries carry from now on.
    pub fn set_heartbeat(&mut self, heartbeat: u64) {
        self.heartbeat = heartbeat;
    }

    /// Publishes what is proposed as the next entry, after anything whose outcome is still unknown: see
    /// [`Published::settled`]. Whoever proposes the same again until it is published can ignore the difference, save
    /// that then it is published already.
    ///
    /// Dropping the future leaves the outcome unknown, as an error of the remote does.
    pub async fn publish(&mut self, proposal: Proposal) -> Result<Published, PublishError> {
        if let Some(fence) = self.fence {
            return Err(PublishError::Fenced(fence));
        }
        let mut adopted = Vec::new();
        if self.pending.is_some()
            && let Some(entry) = self.land(&mut adopted).await?
        {
            return Ok(Published { entry, adopted, settled: true });
        }
        for _ in 0..NUMBERS_MAX {
            self.pending = Some(self.attempt(&proposal)?);
            if let Some(entry) = self.land(&mut adopted).await? {
                return Ok(Published { entry, adopted, settled: false });
            }
        }
        Err(PublishError::Crowded { number: self.tip.number.next() })
    }

    fn attempt(&self, proposal: &Proposal) -> Result<Attempt, PublishError> {
        let number = self.tip.number.next();
        let mut before = self.tip;
        let mut slices = proposal.slices.clone();
        for slice in &mut slices {
            slice.time = before.time_after(slice.time);
            before.time = slice.time;
        }
        let time = slices.last().map_or_else(|| self.tip.time_after(proposal.time), |slice| slice.time);
        let entry = Entry {
            number,
            kind: proposal.kind,
            generation: self.generation,
            instance: self.instance,
            previous: self.tip.hash,
            parent: self.newest.number,
            sequence: proposal.sequence,
            time,
            heartbeat: self.heartbeat,
            size: proposal.size,
            draft: proposal.draft,
            leaving: proposal.leaving,
            new_bytes: proposal.new_bytes,
            store: None,
            scan: proposal.scan,
            slices,
            own: proposal.own.clone(),
            levels: proposal.levels.clone(),
            base: self.newest.base,
            detail: proposal.detail.clone(),
        };
        let bytes: Bytes = entry.encode(self.keys()).map_err(|source| PublishError::Entry { number, source })?.into();
        Ok(Attempt { entry: Arc::new(entry), hash: ObjectHash::of(&bytes), bytes })
    }

    /// Puts the pending attempt until its number is taken: by it, or by something that does not fence.
    async fn land(&mut self, adopted: &mut Vec<Arc<Entry>>) -> Result<Option<Arc<Entry>>, PublishError> {
        for look in 0..ABSENT_MAX {
            let Some(attempt) = &self.pending else { return Ok(None) };
            let (number, hash) = (attempt.entry.number, attempt.hash);
            pause_before_another_look(look).await;
            let key = self.volume().entry_key(number);
            let put = self.reader.remote().put_new(&key, attempt.bytes.clone()).await;
            match put.map_err(|source| PublishError::Unknown { number, source })? {
                PutOutcome::Created => return Ok(self.landed()),
                PutOutcome::Exists => {}
            }
            let found = self.reader.look(number).await.map_err(|source| PublishError::Conflict { number, source })?;
            let attempted = Attempted { number, hash, generation: self.generation, previous: self.tip.hash };
            match (judge(&attempted, found.as_ref()), found) {
                (Verdict::Mine, _) => return Ok(self.landed()),
                (Verdict::Absent, _) | (_, None) => {}
                (Verdict::Fenced(fence), _) => {
                    self.pending = None;
                    self.fence = Some(fence);
                    return Err(PublishError::Fenced(fence));
                }
                (Verdict::Noise | Verdict::Adopt, Some(taken)) => {
                    self.pending = None;
                    self.tip = Tip { number, hash: taken.hash(), time: self.tip.time };
                    return self.step_over(taken, adopted).map(|()| None);
                }
            }
        }
        let number = self.tip.number.next();
        let source = ChainError::NoEntry { number, newest: self.tip.number };
        Err(PublishError::Conflict { number, source })
    }

    fn landed(&mut self) -> Option<Arc<Entry>> {
        let Attempt { entry, hash, .. } = self.pending.take()?;
        self.tip = Tip { number: entry.number, hash, time: entry.time };
        if shows_content(entry.kind) {
            self.newest = entry.clone();
        }
        Some(entry)
    }

    /// Goes on behind what took a number without fencing.
    fn step_over(&mut self, taken: Found, adopted: &mut Vec<Arc<Entry>>) -> Result<(), PublishError> {
        let volume = self.volume();
        match taken {
            Found::Noise { source, .. } | Found::Unreadable { source, .. } => {
                tracing::error!(
                    %volume, number = %self.tip.number, %source,
                    "something that is not an entry stands in the chain: who else may put objects there?"
                );
                Ok(())
            }
            Found::Entry { entry, .. } => {
                tracing::info!(%volume, number = %entry.number, kind = ?entry.kind, "adopted");
                self.tip.time = self.tip.time.max(entry.time);
                if entry.kind == EntryKind::Reclaim {
                    return Err(PublishError::Reclaimed { entry });
                }
                if shows_content(entry.kind) {
                    self.newest = entry.clone();
                }
                adopted.push(entry);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
impl ChainWriter {
    /// As a snapshot of a virtual machine does it: the same instance, generation and attempt under way.
    pub(super) fn cloned_with_its_machine(&self) -> Self {
        let pending = self.pending.as_ref().map(|attempt| Attempt {
            entry: attempt.entry.clone(),
            bytes: attempt.bytes.clone(),
            hash: attempt.hash,
        });
        Self { reader: self.reader.clone(), newest: self.newest.clone(), pending, ..*self }
    }

    pub(super) fn bytes_under_way(&self) -> Option<Bytes> {
        self.pending.as_ref().map(|attempt| attempt.bytes.clone())
    }
}

impl std::fmt::Debug for ChainWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let pending = self.pending.as_ref().map(|attempt| attempt.entry.number);
        f.debug_struct("ChainWriter")
            .field("volume", &self.volume())
            .field("generation", &self.generation)
            .field("tip", &self.tip)
            .field("pending", &pending)
            .field("fence", &self.fence)
            .finish_non_exhaustive()
    }
}

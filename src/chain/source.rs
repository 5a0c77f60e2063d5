//! Reads the indexes of packs and runs: heads and pages, verified, cached, a bounded number of GETs at a time.
//!
//! Owns: what is read at once, second attempts at damaged bytes, the cache. Does not own: which of several objects
//! counts ([`super::resolve`]), the way to the store and its retries ([`crate::remote`]).

use std::mem::size_of;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::future::try_join_all;
use tokio::sync::Semaphore;

use super::cache::Cache;
use crate::format::index::{Footer, Head, Kind, Record, TAIL};
use crate::format::run::pack_of_table;
use crate::format::{
    FormatError, Keys, ObjectRef, PackContent, PackRecord, RunRecord, RunSource, Stored, Void, VolumeId,
};
use crate::remote::{Remote, RemoteError};
use crate::units::{Block, KIB, MIB, Mask};

/// Memory for verified heads and pages, bytes; about 700 pages.
const CACHE_MAX: usize = 64 * MIB as usize;
/// GETs under way at a time: enough to hide a round trip of 100 ms behind pages of 16 KiB on a fast line.
const GETS_MAX: usize = 16;
/// An object up to this length is kept whole with its head, data and all: an idle volume's packs are of this kind.
const WHOLE_MAX: u64 = 16 * KIB;
/// Pages that follow each other are read together up to this many bytes.
const PAGES_AT_ONCE: u64 = 256 * KIB;

/// Why content cannot be told or read.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// Named by an entry or a run, and not there.
    #[error("{key} is missing")]
    Missing { key: String },
    /// There, and twice not what it was when it was put.
    #[error("{key} is damaged at byte {offset}")]
    Damaged { key: String, offset: u64, source: FormatError },
    /// A record's bytes, twice not what the index says.
    #[error("{key} is damaged at byte {offset}, which holds block {block}")]
    DamagedRecord { key: String, offset: u64, block: Block, source: FormatError },
    #[error("read from the remote copy")]
    Remote(#[source] RemoteError),
    /// The run says that the pack has something there, and the pack says that it has not.
    #[error("{key} has nothing on block {block}, where a run says it has")]
    NotInPack { key: String, block: Block },
    #[error("there is no slice {slice}: the entry has {slices}")]
    NoSuchSlice { slice: usize, slices: usize },
    #[error("the entry has a partitioned base, which this version cannot read")]
    PartitionedBase,
    /// Never, unless this program is wrong.
    #[error("build a run")]
    Build(#[source] FormatError),
}

impl ResolveError {
    pub(super) fn remote(error: RemoteError) -> Self {
        match error {
            RemoteError::NotFound { key, .. } => Self::Missing { key },
            error => Self::Remote(error),
        }
    }

    /// Whether the same question may be answered later. An object that is shorter than it was is not: the remote has
    /// asked for its bytes often enough.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Remote(error) if error.is_transient() && !matches!(error, RemoteError::Corrupt { .. }))
    }
}

pub type Result<T> = std::result::Result<T, ResolveError>;

/// A record of a pack or a run, in one form.
#[derive(Clone, Copy, Debug)]
pub(super) struct Named {
    pub first: Block,
    pub count: u64,
    pub mask: Mask,
    /// 0 in runs.
    pub slice: u8,
    pub what: What,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum What {
    Stored(Stored),
    /// Number in the run's table.
    Pack(u32),
    Void(Void),
}

impl Named {
    pub(super) fn end(&self) -> u64 {
        self.first.0 + self.count
    }
}

impl From<PackRecord> for Named {
    fn from(record: PackRecord) -> Self {
        let PackRecord { first, count, mask, slice, content } = record;
        let what = match content {
            PackContent::Data(stored) => What::Stored(stored),
            PackContent::Void(void) => What::Void(void),
        };
        Self { first, count, mask, slice, what }
    }
}

impl From<RunRecord> for Named {
    fn from(record: RunRecord) -> Self {
        let RunRecord { first, count, mask, source } = record;
        let what = match source {
            RunSource::Pack(number) => What::Pack(number),
            RunSource::Zero => What::Void(Void::Zero),
            RunSource::Trimmed => What::Void(Void::Trimmed),
            RunSource::Unreadable => What::Void(Void::Unreadable),
        };
        Self { first, count, mask, slice: 0, what }
    }
}

/// A head, and what came with it when it was read: the last pages, or all of a small object.
pub(super) struct Loaded {
    pub object: ObjectRef,
    pub kind: Kind,
    pub head: Head,
    tail: Bytes,
    tail_at: u64,
}

impl Loaded {
    /// The pack under this number in a run's table.
    pub(super) fn pack(&self, volume: VolumeId, number: u32) -> Result<ObjectRef> {
        pack_of_table(self.head.table(), number).map_err(|source| ResolveError::Damaged {
            key: self.kind.key(volume, &self.object),
            offset: self.head.footer.table_at,
            source,
        })
    }

    /// Bytes of the object, if they were read together with the head.
    fn in_tail(&self, range: Range<u64>) -> Option<Bytes> {
        let from = range.start.checked_sub(self.tail_at)?;
        let to = range.end.checked_sub(self.tail_at).filter(|to| *to <= self.tail.len() as u64)?;
        Some(self.tail.slice(from as usize..to as usize))
    }

    /// Memory that the records of page `number` take, bytes.
    pub(super) fn page_weight(&self, number: usize) -> usize {
        self.head.pages().get(number).map_or(0, |page| page.records as usize * size_of::<Named>())
    }
}

pub(super) type Page = Arc<Vec<Named>>;

#[derive(Clone)]
enum Value {
    Head(Arc<Loaded>),
    Page(Page),
}

/// The head, or a page by its number.
type Key = (Kind, ObjectRef, Option<usize>);

/// The objects of one volume.
pub(super) struct Source {
    remote: Remote,
    pub keys: Keys,
    gets: Semaphore,
    cache: Mutex<Cache<Key, Value>>,
}

impl Source {
    pub(super) fn new(remote: Remote, keys: Keys) -> Self {
        Self { remote, keys, gets: Semaphore::new(GETS_MAX), cache: Mutex::new(Cache::new(CACHE_MAX)) }
    }

    pub(super) fn key(&self, kind: Kind, object: &ObjectRef) -> String {
        kind.key(self.keys.volume(), object)
    }

    pub(super) async fn get(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        // The semaphore is never closed: an error here would mean no bound, not no answer.
        let _permit = self.gets.acquire().await;
        self.remote.get_range(key, range).await.map_err(ResolveError::remote)
    }

    /// Bytes of a pack, not checked: at no cost where the pack is so small that they came with its head.
    pub(super) async fn data(&self, pack: &ObjectRef, range: Range<u64>) -> Result<Bytes> {
        if let Some(Value::Head(head)) = self.cached(&(Kind::Pack, *pack, None))
            && let Some(bytes) = head.in_tail(range.clone())
        {
            return Ok(bytes);
        }
        self.get(&self.key(Kind::Pack, pack), range).await
    }

    /// Reads bytes that can be checked. Damage on the way heals itself at the second attempt; damage at rest does not.
    async fn checked<T>(
        &self,
        kind: Kind,
        object: &ObjectRef,
        range: Range<u64>,
        check: impl Fn(Bytes) -> std::result::Result<T, FormatError>,
    ) -> Result<T> {
        let key = self.key(kind, object);
        if let Ok(checked) = check(self.get(&key, range.clone()).await?) {
            return Ok(checked);
        }
        tracing::warn!(key, offset = range.start, "damaged when read; reading it again");
        let offset = range.start;
        check(self.get(&key, range).await?).map_err(|source| ResolveError::Damaged { key, offset, source })
    }

    fn cached(&self, key: &Key) -> Option<Value> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).get(key)
    }
    fn keep(&self, key: Key, value: Value, weight: usize) {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).insert(key, value, weight);
    }

    pub(super) async fn head(&self, kind: Kind, object: &ObjectRef) -> Result<Arc<Loaded>> {
        if let Some(Value::Head(head)) = self.cached(&(kind, *object, None)) {
            return Ok(head);
        }
        let tail_at = object.length.saturating_sub(TAIL);
        let read = |tail: Bytes| {
            let footer = Footer::decode(&self.keys, kind, object, &tail)?;
            let range = footer.head_range();
            let head = match range.start.checked_sub(tail_at) {
                Some(from) => {
                    let bytes = tail.slice(from as usize..(range.end - tail_at) as usize);
                    Some(Head::decode(&self.keys, footer, &bytes)?)
                }
                None => None,
            };
            Ok((footer, head, tail))
        };
        let (footer, head, tail) = self.checked(kind, object, tail_at..object.length, read).await?;
        let head = match head {
            Some(head) => head,
            None => {
                let decode = |bytes: Bytes| Head::decode(&self.keys, footer, &bytes);
                self.checked(kind, object, footer.head_range(), decode).await?
            }
        };
        let (tail, tail_at) = if object.length <= WHOLE_MAX {
            (tail, tail_at)
        } else {
            // Only pages are of use later; a copy lets go of the rest.
            let from = footer.pages_at.max(tail_at);
            let to = footer.table_at.max(from);
            (Bytes::copy_from_slice(&tail[(from - tail_at) as usize..(to - tail_at) as usize]), from)
        };
        let weight = head.weight() + tail.len();
        let loaded = Arc::new(Loaded { object: *object, kind, head, tail, tail_at });
        self.keep((kind, *object, None), Value::Head(loaded.clone()), weight);
        Ok(loaded)
    }

    /// The pages of these numbers (ascending), in that order.
    pub(super) async fn pages(&self, of: &Loaded, numbers: &[usize]) -> Result<Vec<Page>> {
        let mut pages: Vec<Option<Page>> = Vec::with_capacity(numbers.len());
        // Neighbours to be read with one GET: (first, last) as places in `numbers`.
        let mut groups: Vec<(usize, usize)> = Vec::new();
        for (place, number) in numbers.iter().enumerate() {
            let page = match self.cached(&(of.kind, of.object, Some(*number))) {
                Some(Value::Page(page)) => Some(page),
                _ => self.page_in_tail(of, *number),
            };
            if page.is_none() {
                let end = of.head.pages()[*number].range().end;
                match groups.last_mut() {
                    Some((first, last))
                        if *last + 1 == place
                            && numbers[*last] + 1 == *number
                            && end - of.head.pages()[numbers[*first]].offset <= PAGES_AT_ONCE =>
                    {
                        *last = place;
                    }
                    _ => groups.push((place, place)),
                }
            }
            pages.push(page);
        }
        let reads = groups.iter().map(|(first, last)| self.read_pages(of, numbers[*first]..numbers[*last] + 1));
        let read = try_join_all(reads).await?;
        let mut read = read.into_iter().flatten();
        // Each page that was not at hand is in exactly one group, and groups are in order.
        Ok(pages.into_iter().filter_map(|page| page.or_else(|| read.next())).collect())
    }

    /// A page that was read together with the head; none if it was not, or is damaged and to be read again.
    fn page_in_tail(&self, of: &Loaded, number: usize) -> Option<Page> {
        let bytes = of.in_tail(of.head.pages()[number].range())?;
        self.decode(of, number, &bytes).ok()
    }

    async fn read_pages(&self, of: &Loaded, numbers: Range<usize>) -> Result<Vec<Page>> {
        let pages = &of.head.pages()[numbers.clone()];
        let (Some(first), Some(last)) = (pages.first(), pages.last()) else { return Ok(Vec::new()) };
        let start = first.offset;
        let decode = |bytes: Bytes| {
            let each = numbers.clone().zip(pages);
            each.map(|(number, page)| {
                let from = (page.offset - start) as usize;
                self.decode(of, number, &bytes[from..from + page.length as usize])
            })
            .collect()
        };
        self.checked(of.kind, &of.object, start..last.range().end, decode).await
    }

    fn decode(&self, of: &Loaded, number: usize, bytes: &[u8]) -> std::result::Result<Page, FormatError> {
        let records: Vec<Named> = match of.kind {
            Kind::Pack => decode_page::<PackRecord>(&self.keys, of, number, bytes)?,
            Kind::Run => decode_page::<RunRecord>(&self.keys, of, number, bytes)?,
        };
        let weight = of.page_weight(number);
        let page = Arc::new(records);
        self.keep((of.kind, of.object, Some(number)), Value::Page(page.clone()), weight);
        Ok(page)
    }
}

fn decode_page<R>(keys: &Keys, of: &Loaded, number: usize, bytes: &[u8]) -> std::result::Result<Vec<Named>, FormatError>
where
    R: Record + Into<Named>,
{
    Ok(of.head.decode_page::<R>(keys, number, bytes)?.into_iter().map(Into::into).collect())
}

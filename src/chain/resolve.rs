//! Tells what a volume held at an entry of the chain: for any range of blocks, where each sector's content lies.
//!
//! Owns: which of several objects counts. Does not own: reading indexes (`source`), reading data ([`super::fetch`]).
//!
//! ```text
//! own packs of the entry, newest first; in each the slices up to the one asked for, newest first
//! L0 packs, newest first; all slices                       ▲ what is found here hides
//! L1 L2 L3 runs, newest first                              │ what is found below
//! nothing: zero
//! ```
//! Reads only index pages that cover the range; of a run's pack, only those that cover what the run says is there.
//! Memory: the cache (64 MiB), the heads of the listed objects, pages of one stretch (32 MiB, and
//! as much for the packs of runs), and the answer. Nothing grows with the volume.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::try_join_all;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use tokio::sync::OnceCell;

use super::gaps::Gaps;
pub use super::source::ResolveError;
use super::source::{Loaded, Named, Page, Result, Source, What};
use crate::format::entry::Entry;
use crate::format::index::Kind;
use crate::format::pack::SLICES_MAX;
use crate::format::{Keys, ObjectRef, PackContent, PackRecord, Stored, Void, VolumeId};
use crate::remote::Remote;
use crate::units::{BLOCK, Block, MIB, Mask, SECTOR};

/// Memory for the pages of one stretch of blocks, bytes; a stretch is halved until its pages fit (or it is a block).
pub(super) const STRETCH_MAX: usize = 32 * MIB as usize;
/// Packs of runs whose pages are read at a time, and memory for those of each: as much as a stretch in all.
const PACKS_MAX: usize = 8;
const PACK_STRETCH_MAX: usize = STRETCH_MAX / PACKS_MAX;

/// A pack, in the table of one [`Resolver`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackId(u32);

/// What the sectors of `mask` of `count` blocks from `first` hold; `count` is 1 unless the mask is full and the
/// content is void.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    pub first: Block,
    pub count: u64,
    pub mask: Mask,
    pub content: Content,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// The record may hold more sectors than are visible.
    Data {
        pack: PackId,
        record: PackRecord,
    },
    Void(Void),
}

/// The content of a volume at one entry, or at one slice of it. Clones share the cache.
#[derive(Clone)]
pub struct Resolver(Arc<Inner>);

struct Inner {
    layers: Layers,
    size: u64,
}

impl Resolver {
    /// The content up to and including `slice` of `entry`; of all its slices if none is given. Reads nothing yet.
    pub fn new(remote: Remote, volume: VolumeId, entry: &Entry, slice: Option<usize>) -> Result<Self> {
        Self::over(Arc::new(Source::new(remote, Keys::unencrypted(volume))), entry, slice)
    }

    /// The content of another entry of the same volume: what was read of objects that both list is shared.
    pub fn at(&self, entry: &Entry) -> Result<Self> {
        Self::over(self.0.layers.source.clone(), entry, None)
    }

    fn over(source: Arc<Source>, entry: &Entry, slice: Option<usize>) -> Result<Self> {
        let slices = entry.slices.len();
        if entry.base.is_some() {
            return Err(ResolveError::PartitionedBase);
        }
        if let Some(slice) = slice.filter(|slice| *slice >= slices) {
            return Err(ResolveError::NoSuchSlice { slice, slices });
        }
        let newest = slice.map_or(ALL_SLICES, |slice| slice as u8);
        let mut layers = Layers::new(source);
        entry.own.iter().for_each(|pack| layers.push(Kind::Pack, *pack, newest));
        let [packs, runs @ ..] = &entry.levels;
        packs.iter().for_each(|pack| layers.push(Kind::Pack, *pack, ALL_SLICES));
        runs.iter().flatten().for_each(|run| layers.push(Kind::Run, *run, ALL_SLICES));
        Ok(Self(Arc::new(Inner { layers, size: entry.size })))
    }

    /// Of the volume at that entry, bytes.
    pub fn size(&self) -> u64 {
        self.0.size
    }
    pub fn keys(&self) -> &Keys {
        &self.source().keys
    }
    pub(super) fn layers(&self) -> &Layers {
        &self.0.layers
    }
    pub(super) fn source(&self) -> &Source {
        &self.0.layers.source
    }

    /// The pack, and its key in the bucket.
    pub fn pack(&self, id: PackId) -> (ObjectRef, String) {
        let object = self.0.layers.pack(id);
        (object, self.source().key(Kind::Pack, &object))
    }

    /// What `count` blocks from `first` hold, as far as they lie in the volume: ordered by block, disjoint. What is
    /// not listed was never written, and is zero. The answer has a fragment for each record that is visible, so that
    /// the caller's range bounds it.
    pub async fn resolve(&self, first: Block, count: u64) -> Result<Vec<Fragment>> {
        let layers = &self.0.layers;
        let blocks = self.0.size.div_ceil(BLOCK);
        let end = first.0.saturating_add(count).min(blocks);
        let heads = if first.0 < end { layers.heads().await? } else { &[] };
        let mut fragments = Vec::new();
        let mut from = first.0;
        while from < end {
            let to = layers.stretch(heads, from, end, STRETCH_MAX);
            let pieces = layers.sweep(heads, self.gaps(from, to), from, to).await?;
            fragments.extend(layers.locate(pieces).await?);
            from = to;
        }
        Ok(joined(fragments))
    }

    /// All of these blocks that lies in the volume.
    fn gaps(&self, from: u64, to: u64) -> Gaps {
        let whole = self.0.size / BLOCK;
        let mut gaps = Gaps::default();
        gaps.add(Block(from), to.min(whole).saturating_sub(from), Mask::FULL);
        if to > whole {
            let sectors = (self.0.size % BLOCK).div_ceil(SECTOR) as u32;
            gaps.add(Block(whole), 1, Mask::range(0, sectors));
        }
        gaps
    }

    /// The first block from `from` on of which anything is said, or a block before that: whatever lies between is
    /// absent. None if nothing more is said. Costs no more than a page of each object.
    pub async fn next_named(&self, from: Block) -> Result<Option<Block>> {
        let layers = &self.0.layers;
        let heads = layers.heads().await?;
        let each = heads.iter().map(|head| layers.next_in(head, from));
        let next = try_join_all(each).await?.into_iter().flatten().min();
        Ok(next.filter(|block| block.0 < self.0.size.div_ceil(BLOCK)))
    }
}

const ALL_SLICES: u8 = SLICES_MAX as u8 - 1;

/// Orders fragments, and makes one of voids that continue each other.
fn joined(mut fragments: Vec<Fragment>) -> Vec<Fragment> {
    fragments.sort_unstable_by_key(|fragment| (fragment.first, fragment.mask.0.trailing_zeros()));
    fragments.dedup_by(|next, last| {
        let void = matches!(next.content, Content::Void(_)) && next.content == last.content;
        let whole = next.mask == Mask::FULL && last.mask == Mask::FULL;
        let joins = void && whole && last.first.0 + last.count == next.first.0;
        if joins {
            last.count += next.count;
        }
        joins
    });
    fragments
}

/// Where the newest content of some sectors was found among layers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub first: Block,
    pub count: u64,
    pub mask: Mask,
    pub found: Found,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Found {
    Data {
        pack: PackId,
        record: PackRecord,
    },
    /// A run says that it is in this pack.
    InPack(PackId),
    Void(Void),
}

/// Packs and runs, newest first, of which an upper one hides a lower one.
pub(super) struct Layers {
    pub source: Arc<Source>,
    layers: Vec<Layer>,
    /// Of each layer, once they were read: every answer needs all of them.
    heads: OnceCell<Vec<Arc<Loaded>>>,
    packs: Mutex<Packs>,
}

struct Layer {
    kind: Kind,
    object: ObjectRef,
    /// Slices after it do not count.
    newest: u8,
}

#[derive(Default)]
struct Packs {
    objects: Vec<ObjectRef>,
    ids: HashMap<ObjectRef, PackId>,
}

impl Layers {
    pub(super) fn new(source: Arc<Source>) -> Self {
        Self { source, layers: Vec::new(), heads: OnceCell::new(), packs: Mutex::default() }
    }

    pub(super) fn push(&mut self, kind: Kind, object: ObjectRef, newest: u8) {
        self.layers.push(Layer { kind, object, newest });
    }

    fn intern(&self, object: ObjectRef) -> PackId {
        let Packs { objects, ids } = &mut *self.packs.lock().unwrap_or_else(PoisonError::into_inner);
        *ids.entry(object).or_insert_with(|| {
            objects.push(object);
            PackId(objects.len() as u32 - 1)
        })
    }

    pub(super) fn pack(&self, id: PackId) -> ObjectRef {
        self.packs.lock().unwrap_or_else(PoisonError::into_inner).objects[id.0 as usize]
    }

    pub(super) async fn heads(&self) -> Result<&[Arc<Loaded>]> {
        let read = || try_join_all(self.layers.iter().map(|layer| self.source.head(layer.kind, &layer.object)));
        Ok(self.heads.get_or_try_init(read).await?)
    }

    /// The end of the longest stretch from `from`, at most `to`, whose pages take no more than `memory` together (or one block).
    pub(super) fn stretch(&self, heads: &[Arc<Loaded>], from: u64, to: u64, memory: usize) -> u64 {
        // Stops at the page that is too much: the cost is that of the stretch, not of the volume.
        let fits = |to: u64| {
            let mut room = memory;
            heads.iter().all(|head| {
                head.head.covering(Block(from), Block(to - 1)).all(|page| {
                    let left = room.checked_sub(head.page_weight(page));
                    room = left.unwrap_or(0);
                    left.is_some()
                })
            })
        };
        let mut to = to;
        while to - from > 1 && !fits(to) {
            to = from + (to - from) / 2;
        }
        to
    }

    /// Finds what the layers say of the gaps, which lie in `from..to`; in no order.
    pub(super) async fn sweep(&self, heads: &[Arc<Loaded>], mut gaps: Gaps, from: u64, to: u64) -> Result<Vec<Piece>> {
        let pages = try_join_all(heads.iter().map(|head| async move {
            let numbers: Vec<_> = head.head.covering(Block(from), Block(to - 1)).collect();
            self.source.pages(head, &numbers).await
        }))
        .await?;
        let mut pieces = Vec::new();
        for ((layer, head), pages) in self.layers.iter().zip(heads).zip(&pages) {
            if gaps.first().is_none() {
                break;
            }
            let mut table = HashMap::new();
            let mut failed = None;
            let own = (layer.kind == Kind::Pack && !pages.is_empty()).then(|| self.intern(layer.object));
            take_newest(pages, layer.newest, from, to, &mut gaps, |named, first, count, mask| {
                let found = match (named.what, own) {
                    (What::Void(void), _) => Found::Void(void),
                    (What::Stored(stored), Some(pack)) => Found::Data { pack, record: pack_record(named, stored) },
                    (What::Stored(_), None) => return,
                    (What::Pack(number), _) => match table.get(&number) {
                        Some(pack) => Found::InPack(*pack),
                        None => match head.pack(self.source.keys.volume(), number) {
                            Ok(object) => Found::InPack(*table.entry(number).or_insert(self.intern(object))),
                            Err(error) => return failed = Some(error),
                        },
                    },
                };
                pieces.push(Piece { first, count, mask, found });
            });
            if let Some(error) = failed {
                return Err(error);
            }
        }
        Ok(pieces)
    }

    /// Finds the records of what runs say is in packs.
    async fn locate(&self, pieces: Vec<Piece>) -> Result<Vec<Fragment>> {
        let mut fragments = Vec::with_capacity(pieces.len());
        let mut in_packs: BTreeMap<PackId, Vec<Piece>> = BTreeMap::new();
        for piece in pieces {
            let content = match piece.found {
                Found::Data { pack, record } => Content::Data { pack, record },
                Found::Void(void) => Content::Void(void),
                Found::InPack(pack) => {
                    in_packs.entry(pack).or_default().push(piece);
                    continue;
                }
            };
            let Piece { first, count, mask, .. } = piece;
            fragments.push(Fragment { first, count, mask, content });
        }
        let packs = stream::iter(in_packs).map(|(pack, pieces)| self.locate_in(pack, pieces));
        let mut found = packs.buffer_unordered(PACKS_MAX);
        while let Some(found) = found.try_next().await? {
            fragments.extend(found);
        }
        Ok(fragments)
    }

    async fn locate_in(&self, pack: PackId, pieces: Vec<Piece>) -> Result<Vec<Fragment>> {
        let object = self.pack(pack);
        let head = self.source.head(Kind::Pack, &object).await?;
        let mut wanted = Gaps::default();
        pieces.iter().for_each(|piece| wanted.add(piece.first, piece.count, piece.mask));
        let end = pieces.iter().map(|piece| piece.first.0 + piece.count).max().unwrap_or(0);
        let mut fragments = Vec::with_capacity(pieces.len());
        while let Some(Block(from)) = wanted.first() {
            let to = self.stretch(std::slice::from_ref(&head), from, end, PACK_STRETCH_MAX);
            let (mut gaps, mut numbers) = (Gaps::default(), Vec::new());
            wanted.take(Block(from), to - from, Mask::FULL, |first, count, mask| {
                gaps.add(first, count, mask);
                numbers.extend(head.head.covering(first, Block(first.0 + count - 1)));
            });
            numbers.sort_unstable();
            numbers.dedup();
            let pages = self.source.pages(&head, &numbers).await?;
            take_newest(&pages, ALL_SLICES, from, to, &mut gaps, |named, first, count, mask| {
                let content = match named.what {
                    What::Void(void) => Content::Void(void),
                    What::Stored(stored) => Content::Data { pack, record: pack_record(named, stored) },
                    What::Pack(_) => return,
                };
                fragments.push(Fragment { first, count, mask, content });
            });
            if let Some(block) = gaps.first() {
                return Err(ResolveError::NotInPack { key: self.source.key(Kind::Pack, &object), block });
            }
        }
        Ok(fragments)
    }

    /// A lower bound, as exact as one object's directory and a page or two can tell.
    async fn next_in(&self, head: &Loaded, from: Block) -> Result<Option<Block>> {
        let mut next: Option<Block> = None;
        for number in head.head.covering(from, Block(u64::MAX)) {
            let page = &head.head.pages()[number];
            if next.is_some_and(|next| next <= page.first) {
                break;
            }
            if page.first >= from {
                next = Some(page.first);
                break;
            }
            let records = self.source.pages(head, &[number]).await?;
            let reaching = records.iter().flat_map(|page| page.iter()).filter(|named| named.end() > from.0);
            let found = reaching.map(|named| named.first.max(from)).min();
            next = next.into_iter().chain(found).min();
        }
        Ok(next)
    }
}

fn pack_record(named: &Named, stored: Stored) -> PackRecord {
    let Named { first, count, mask, slice, .. } = *named;
    PackRecord { first, count, slice, mask, content: PackContent::Data(stored) }
}

/// Takes out of the gaps what pages of one object name in slices up to `newest`, newest first, in blocks `from..to`.
fn take_newest(
    pages: &[Page],
    newest: u8,
    from: u64,
    to: u64,
    gaps: &mut Gaps,
    mut found: impl FnMut(&Named, Block, u64, Mask),
) {
    let records = || pages.iter().flat_map(|page| page.iter()).filter(|named| named.first.0 < to && named.end() > from);
    let slices = records().fold(0u32, |slices, named| slices | 1 << named.slice);
    for slice in (0..=newest).rev().filter(|slice| slices >> slice & 1 == 1) {
        for named in records().filter(|named| named.slice == slice) {
            gaps.take(named.first, named.count, named.mask, |first, count, mask| found(named, first, count, mask));
        }
    }
}

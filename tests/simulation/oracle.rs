//! Reads the chain as anyone could and holds every published point against what the store was.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::boot::Devices;
use super::ground::{broken, note, once_in};
use super::image::Images;
use super::pages::Pages;
use super::restored;
use crate::chain::resolve::{Content, Resolver};
use crate::chain::{At, ChainError, ChainReader, is_offered, of_gateway};
use crate::format::Void;
use crate::format::entry::{Entry, EntryKind};
use crate::units::{BLOCK, Block, EntryNumber, Generation, SECTOR, Span};

/// What a point holds.
struct Held {
    bytes: Pages,
    /// Compares with anything.
    trimmed: Vec<Span>,
    unreadable: Vec<Span>,
}

/// What was found of the chain so far.
pub struct Oracle {
    images: Images,
    checked: u64,
    generation: Generation,
    /// Whose each generation is.
    owners: BTreeMap<u32, [u8; 16]>,
    /// Points and what they held when they were seen first.
    points: BTreeMap<u64, (Arc<Entry>, Pages)>,
}

impl Oracle {
    pub fn new(size: u64) -> Self {
        Self {
            images: Images::new(size),
            checked: 0,
            generation: Generation(0),
            owners: BTreeMap::new(),
            points: BTreeMap::new(),
        }
    }

    pub fn points(&self) -> usize {
        self.points.len()
    }

    /// Checks what was published since this was called last: T4 for every point and slice, T6, T7.
    pub async fn check(&mut self, devices: &Devices) {
        let ground = &devices.ground;
        let Some(chain) = chain(devices).await else { return };
        let end = chain.end(EntryNumber(self.checked)).await.expect("memory answers");
        let entries = chain.entries(self.checked + 1..=end.0).await.expect("memory answers");
        self.checked = end.0;
        for entry in entries {
            let Entry { number, kind, generation, instance, .. } = *entry;
            note!(ground, "oracle: entry {number} {kind:?} generation {generation} sequence {}", entry.sequence);
            if of_gateway(kind) {
                let opens = kind == EntryKind::Open;
                if generation < self.generation || (generation > self.generation) != opens {
                    broken!(
                        ground,
                        "T6",
                        "entry {number} {kind:?} of generation {generation} after {}",
                        self.generation
                    );
                }
                self.generation = self.generation.max(generation);
                let owner = self.owners.entry(generation.0).or_insert(instance.0);
                if *owner != instance.0 {
                    broken!(ground, "T6", "entry {number} is of generation {generation} of another instance");
                }
            }
            if is_offered(&entry) {
                self.check_point(devices, &chain, entry).await;
            }
        }
    }

    async fn check_point(&mut self, devices: &Devices, chain: &ChainReader, entry: Arc<Entry>) {
        let ground = &devices.ground;
        let moments = (0..entry.slices.len()).map(Some).chain([None]);
        for slice in moments {
            let sequence = slice.map_or(entry.sequence, |slice| entry.slices[slice].sequence);
            // The last slice is the entry.
            if slice.is_some_and(|slice| slice + 1 == entry.slices.len()) {
                continue;
            }
            let held = match held(devices, chain, &entry, slice).await {
                Ok(held) => held,
                Err(error) => {
                    broken!(ground, "T5", "entry {} slice {slice:?} cannot be read: {error}", entry.number);
                    continue;
                }
            };
            let (was_unreadable, found) = devices.store.with(|state| {
                let found = self.images.any(&state.effects, sequence.0, |image| differs(&held, image).is_none());
                (state.was_unreadable.clone(), found)
            });
            if !found {
                let shown = devices.store.with(|state| {
                    let at = std::cell::Cell::new(None);
                    self.images.any(&state.effects, sequence.0, |image| {
                        at.set(at.get().or(differs(&held, image)));
                        false
                    });
                    at.get()
                });
                broken!(
                    ground,
                    "T4",
                    "entry {} slice {slice:?} is not the store after sequence {sequence}: byte {shown:?}",
                    entry.number
                );
            }
            let invented = held.unreadable.iter().find(|span| !was_unreadable.iter().any(|bad| bad.overlaps(**span)));
            if let Some(span) = invented {
                broken!(ground, "T7", "entry {} says that {span} is unreadable", entry.number);
            }
            if slice.is_none() {
                self.points.insert(entry.number.0, (entry.clone(), held.bytes));
            }
        }
    }

    /// Every point ever seen still holds what it held, and some of them are restored (T5).
    pub async fn check_all_again(&self, devices: &Devices) {
        let Some(chain) = chain(devices).await else { return };
        for (entry, before) in self.points.values() {
            match held(devices, &chain, entry, None).await {
                Ok(held) if held.bytes.differences(before).next().is_none() => {
                    if once_in(self.points.len() as u64) {
                        restored::check(devices, &chain, entry, &held.bytes).await;
                    }
                }
                Ok(_) => broken!(devices.ground, "T5", "entry {} is not what it was", entry.number),
                Err(error) => broken!(devices.ground, "T5", "entry {} cannot be read any more: {error}", entry.number),
            }
        }
    }

    /// The highest that an entry shows by now.
    pub async fn heartbeat(&self, devices: &Devices) -> u64 {
        let Some(chain) = chain(devices).await else { return 0 };
        let end = chain.end(EntryNumber(self.checked)).await.expect("memory answers");
        let entries = chain.entries(1..=end.0).await.expect("memory answers");
        entries.iter().map(|entry| entry.heartbeat).max().unwrap_or(0)
    }

    /// Nothing changes, and all is published: the newest point equals the store (T3, T5).
    pub async fn check_settled(&self, devices: &Devices) {
        let ground = &devices.ground;
        let Some(chain) = chain(devices).await else {
            return broken!(ground, "T5", "settled without a chain");
        };
        let entry = match chain.find(At::Latest).await {
            Ok(found) => found.entry,
            Err(error) => return broken!(ground, "T5", "settled without a point: {error}"),
        };
        let was_unreadable = devices.store.with(|state| state.was_unreadable.clone());
        let held = match held(devices, &chain, &entry, None).await {
            Ok(held) => held,
            Err(error) => return broken!(ground, "T5", "entry {} cannot be read: {error}", entry.number),
        };
        if held.unreadable.iter().any(|span| !was_unreadable.iter().any(|bad| bad.overlaps(*span))) {
            broken!(ground, "T7", "entry {} says that {:?} is unreadable", entry.number, held.unreadable);
        }
        if let Some(at) = differs(&held, &devices.store.image()) {
            broken!(ground, "T3", "the newest point, {}, differs from the settled store at byte {at}", entry.number);
        }
    }
}

async fn chain(devices: &Devices) -> Option<ChainReader> {
    devices.bucket.settle();
    match ChainReader::open(&devices.plain_remote(), &Devices::name()).await {
        Ok(chain) => Some(chain),
        Err(ChainError::NoVolume { .. }) => None,
        Err(error) => {
            broken!(devices.ground, "T9", "the chain cannot be opened: {error}");
            None
        }
    }
}

/// The first byte in which the image is not what the point holds.
fn differs(held: &Held, image: &Pages) -> Option<u64> {
    let any = |span: Span| held.trimmed.iter().chain(&held.unreadable).any(|any| any.contains(span));
    held.bytes.differences(image).filter(|part| !any(*part)).find_map(|part| {
        let (held, image) = (held.bytes.bytes(part), image.bytes(part));
        let differ = (part.start..).zip(held.iter().zip(&image)).filter(|(_, (held, image))| held != image);
        differ.map(|(at, _)| at).find(|&at| !any(Span::at(at, 1)))
    })
}

/// What a point holds, read without any of the code that restores.
async fn held(
    devices: &Devices,
    chain: &ChainReader,
    entry: &Entry,
    slice: Option<usize>,
) -> Result<Held, crate::chain::resolve::ResolveError> {
    let resolver = Resolver::new(devices.plain_remote(), chain.volume(), entry, slice)?;
    let blocks = entry.size.div_ceil(BLOCK);
    let fragments = resolver.resolve(Block(0), blocks).await?;
    let records = resolver.read_records(&fragments).await?;
    let mut held = Held { bytes: Pages::zero(blocks * BLOCK), trimmed: Vec::new(), unreadable: Vec::new() };
    for (fragment, record) in fragments.iter().zip(records) {
        let spans = fragment.mask.runs().map(|(first, count)| {
            let start = fragment.first.offset() + u64::from(first) * SECTOR;
            Span::at(start, (fragment.count - 1) * BLOCK + u64::from(count) * SECTOR)
        });
        match fragment.content {
            Content::Void(Void::Zero) => {}
            Content::Void(Void::Trimmed) => held.trimmed.extend(spans),
            Content::Void(Void::Unreadable) => held.unreadable.extend(spans),
            Content::Data { .. } => {
                let mut from = 0;
                for span in spans {
                    let length = span.len() as usize;
                    held.bytes.write(span.start, &record[from..from + length]);
                    from += length;
                }
            }
        }
    }
    held.bytes.set_len(entry.size);
    Ok(held)
}

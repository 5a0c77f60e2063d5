//! Reads the chain: finds its end, its entries, and the point that is meant. Needs GET alone (and LIST to name all
//! volumes), no key but the volume's, and no state.
//!
//! Entries never change, so what was read once is kept; that an entry is absent is never kept.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::is_offered;
use crate::format::codec::{FormatError, Part};
use crate::format::entry::{ENTRY_MAX, Entry, EntryKind};
use crate::format::keys::{Keys, MAC_LENGTH, MacKind};
use crate::format::names::VolumeName;
use crate::format::volume::VolumeObject;
use crate::format::{ObjectHash, VolumeId};
use crate::remote::{Remote, RemoteError};
use crate::units::{EntryNumber, Timestamp};

/// Gets of entries under way at the same time.
const PARALLEL: usize = 32;
/// How far behind an end a chain is looked for that goes on, as a power of two.
const GAP_PROBES: u32 = 16;
/// Entries kept, of 1–3 KiB each: a search by time reads fewer than 32.
const KEPT: usize = 128;

#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    #[error("read the chain")]
    Remote(#[from] RemoteError),
    #[error("no volume is named {name} in {remote}")]
    NoVolume { name: VolumeName, remote: String },
    #[error("{key} cannot be understood")]
    Format { key: String, source: FormatError },
    #[error("volume {name} has the id {volume}, whose object `volume` is missing")]
    NoVolumeObject { name: VolumeName, volume: VolumeId },
    #[error("there is no entry {number}; the newest is {newest}")]
    NoEntry { number: EntryNumber, newest: EntryNumber },
    #[error("the chain has {newest} entries and no recovery point yet: the first copy is not complete")]
    NoPoint { newest: EntryNumber },
    #[error(
        "entry {number} is no recovery point but {}; restorable are those that `umbra points` lists",
        if *draft { "part of a scan under way".to_owned() } else { format!("of kind {kind:?}") }
    )]
    NotAPoint { number: EntryNumber, kind: EntryKind, draft: bool },
    #[error("no recovery point is as old as {wanted}; the first is of {first}, the newest of {newest}")]
    TooEarly { wanted: Timestamp, first: Timestamp, newest: Timestamp },
}

/// Which content is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    Latest,
    Number(EntryNumber),
    /// The last slice that is not later.
    Time(Timestamp),
}

/// Content that can be restored.
#[derive(Clone, Debug)]
pub struct Chosen {
    pub entry: Arc<Entry>,
    /// Index of the entry's last slice that belongs to it; none is the whole entry.
    pub slice: Option<usize>,
    /// Of the cut.
    pub time: Timestamp,
}

/// What stands under a number.
#[derive(Clone, Debug)]
pub enum Found {
    Entry {
        entry: Arc<Entry>,
        hash: ObjectHash,
    },
    /// Written with the volume's key, but not by a program as old as this.
    Unreadable {
        hash: ObjectHash,
        source: FormatError,
    },
    /// Not written with the volume's key, or for another place.
    Noise {
        hash: ObjectHash,
        source: FormatError,
    },
}

impl Found {
    /// Of the bytes.
    pub fn hash(&self) -> ObjectHash {
        match self {
            Self::Entry { hash, .. } | Self::Unreadable { hash, .. } | Self::Noise { hash, .. } => *hash,
        }
    }

    fn of(keys: &Keys, number: EntryNumber, bytes: &[u8]) -> Self {
        let hash = ObjectHash::of(bytes);
        match Entry::decode(keys, bytes) {
            Ok(entry) if entry.number == number => Self::Entry { entry: Arc::new(entry), hash },
            Ok(_) => Self::Noise { hash, source: FormatError::Foreign { part: Part::Entry, field: "number" } },
            Err(source) if is_authentic(keys, bytes) => Self::Unreadable { hash, source },
            Err(source) => Self::Noise { hash, source },
        }
    }
}

/// Whether the MAC is right, whatever the version: it ends an entry of every version.
fn is_authentic(keys: &Keys, bytes: &[u8]) -> bool {
    bytes.len() <= ENTRY_MAX
        && bytes
            .split_last_chunk::<MAC_LENGTH>()
            .is_some_and(|(signed, mac)| keys.mac(MacKind::Entry, signed).0 == *mac)
}

/// The names of all volumes, in order. Asks the store for a listing.
pub async fn volumes(remote: &Remote) -> Result<Vec<VolumeName>, ChainError> {
    let keys = remote.list("names").await?;
    Ok(keys.iter().filter_map(|key| key.strip_prefix("names/")?.parse().ok()).collect())
}

/// Reads one volume's chain. Clones share what they have read.
#[derive(Clone)]
pub struct ChainReader(Arc<Inner>);

struct Inner {
    remote: Remote,
    keys: Keys,
    object: VolumeObject,
    /// Most recently used last.
    kept: Mutex<VecDeque<(EntryNumber, Found)>>,
}

impl ChainReader {
    pub async fn open(remote: &Remote, name: &VolumeName) -> Result<Self, ChainError> {
        let key = name.key();
        let body = remote.get(&key).await.map_err(|error| match error {
            error if error.is_not_found() => ChainError::NoVolume { name: name.clone(), remote: remote.to_string() },
            error => error.into(),
        })?;
        let volume = VolumeId::from_name_object(&body).map_err(|source| ChainError::Format { key, source })?;
        Self::of_volume(remote, name, volume).await
    }

    /// Of the volume that the name was found to stand for.
    pub(super) async fn of_volume(remote: &Remote, name: &VolumeName, volume: VolumeId) -> Result<Self, ChainError> {
        let keys = Keys::unencrypted(volume);
        let key = volume.volume_key();
        let body = remote.get(&key).await.map_err(|error| match error {
            error if error.is_not_found() => ChainError::NoVolumeObject { name: name.clone(), volume },
            error => error.into(),
        })?;
        let object = VolumeObject::decode(&keys, &body).map_err(|source| ChainError::Format { key, source })?;
        Ok(Self(Arc::new(Inner { remote: remote.clone(), keys, object, kept: Mutex::default() })))
    }

    pub fn remote(&self) -> &Remote {
        &self.0.remote
    }
    pub fn volume(&self) -> VolumeId {
        self.0.object.id
    }
    pub fn keys(&self) -> &Keys {
        &self.0.keys
    }
    /// When the volume was first opened for writing.
    pub fn created(&self) -> Timestamp {
        self.0.object.created
    }

    /// The number of the newest entry; 0 while there is none. `hint` is an entry that was there before, or 0.
    pub async fn end(&self, hint: EntryNumber) -> Result<EntryNumber, ChainError> {
        let mut end = self.gap_from(hint).await?;
        while let Some(behind) = self.behind_gap(end).await? {
            end = self.gap_from(behind).await?;
        }
        Ok(end)
    }

    /// An entry behind the gap that follows `end`, if there is one: nobody but who deletes objects makes any, and what
    /// is left is not to be taken for the newest. A gap is passed over if at least as many entries follow it, and
    /// always if it is of one entry.
    async fn behind_gap(&self, end: EntryNumber) -> Result<Option<EntryNumber>, ChainError> {
        let probes = (0..GAP_PROBES).filter_map(|power| end.0.checked_add(1 + (1 << power))).map(EntryNumber);
        let found = stream::iter(probes)
            .map(|number| async move {
                let found = self.look(number).await?;
                Ok(matches!(found, Some(Found::Entry { .. } | Found::Unreadable { .. })).then_some(number))
            })
            .buffered(PARALLEL);
        let found: Result<Vec<_>, ChainError> =
            found.try_filter_map(|number| async move { Ok(number) }).try_collect().await;
        let found = found?;
        if let Some(behind) = found.last() {
            tracing::warn!(volume = %self.volume(), missing = %end.next(), %behind, "entries are missing from the chain");
        }
        Ok(found.last().copied())
    }

    /// The last number before the first that is missing behind `hint`, or behind one of those that it tries.
    async fn gap_from(&self, hint: EntryNumber) -> Result<EntryNumber, ChainError> {
        let mut there = hint.0;
        if there > 0 && !self.reaches(hint).await? {
            there = 0;
        }
        let mut step = 1;
        let mut absent = loop {
            let number = there.saturating_add(step);
            if !self.reaches(EntryNumber(number)).await? {
                break number;
            }
            there = number;
            step *= 2;
        };
        while absent - there > 1 {
            let middle = there + (absent - there) / 2;
            if self.reaches(EntryNumber(middle)).await? {
                there = middle;
            } else {
                absent = middle;
            }
        }
        // What comes behind the last entry without a gap is noise, or has just been published.
        while self.look(EntryNumber(there + 1)).await?.is_some() {
            there += 1;
        }
        Ok(EntryNumber(there))
    }

    /// Whether there is an entry of this number or a later one. Entries are dense but for noise that took a number;
    /// noise beyond the end (who may put objects can put it anywhere) proves nothing.
    async fn reaches(&self, number: EntryNumber) -> Result<bool, ChainError> {
        let mut number = number;
        loop {
            match self.look(number).await? {
                Some(Found::Entry { .. } | Found::Unreadable { .. }) => return Ok(true),
                Some(Found::Noise { .. }) if number.0 < u64::MAX => number = number.next(),
                _ => return Ok(false),
            }
        }
    }

    /// The entry of this number. Its MAC, its number and its volume were checked.
    pub async fn get(&self, number: EntryNumber) -> Result<Arc<Entry>, ChainError> {
        match self.look(number).await? {
            Some(Found::Entry { entry, .. }) => Ok(entry),
            Some(Found::Unreadable { source, .. } | Found::Noise { source, .. }) => {
                Err(ChainError::Format { key: self.volume().entry_key(number), source })
            }
            None => Err(ChainError::NoEntry { number, newest: self.end(EntryNumber(0)).await? }),
        }
    }

    /// The entries of these numbers, in order; up to 32 are asked for at the same time. What is no entry of the
    /// volume is left out, and logged.
    pub async fn entries(&self, numbers: RangeInclusive<u64>) -> Result<Vec<Arc<Entry>>, ChainError> {
        let found = stream::iter(numbers.map(EntryNumber))
            .map(|number| async move {
                match self.look(number).await? {
                    Some(Found::Entry { entry, .. }) => Ok(Some(entry)),
                    Some(Found::Unreadable { source, .. }) => {
                        Err(ChainError::Format { key: self.volume().entry_key(number), source })
                    }
                    Some(Found::Noise { source, .. }) => {
                        tracing::warn!(volume = %self.volume(), %number, %source, "not an entry of this volume; left out");
                        Ok(None)
                    }
                    None => Err(ChainError::NoEntry { number, newest: self.end(EntryNumber(0)).await? }),
                }
            })
            .buffered(PARALLEL);
        found.try_filter_map(|entry| async move { Ok(entry) }).try_collect().await
    }

    /// The content that can be restored and is meant by `at`.
    pub async fn find(&self, at: At) -> Result<Chosen, ChainError> {
        let newest = self.end(EntryNumber(0)).await?;
        match at {
            At::Latest => {
                let point = self.newest_point(newest.0).await?;
                point.map(whole).ok_or(ChainError::NoPoint { newest })
            }
            At::Number(number) => {
                if number.0 == 0 || number > newest {
                    return Err(ChainError::NoEntry { number, newest });
                }
                let entry = self.get(number).await?;
                if is_offered(&entry) {
                    Ok(whole(entry))
                } else {
                    Err(ChainError::NotAPoint { number, kind: entry.kind, draft: entry.draft })
                }
            }
            At::Time(time) => self.at_time(time, newest).await,
        }
    }

    async fn at_time(&self, time: Timestamp, newest: EntryNumber) -> Result<Chosen, ChainError> {
        // Times grow with numbers. `before` is the last entry known not to be later, `after` the first that is.
        let (mut before, mut after) = (0, newest.0 + 1);
        let mut next = None;
        while after - before > 1 {
            // Noise has no time: what stands in its place is the nearest entry beneath it.
            let mut middle = before + (after - before) / 2;
            let entry = loop {
                match self.look(EntryNumber(middle)).await? {
                    Some(Found::Entry { entry, .. }) => break Some(entry),
                    _ if middle - before > 1 => middle -= 1,
                    _ => break None,
                }
            };
            match entry {
                Some(entry) if entry.time > time => {
                    after = middle;
                    next = Some(entry);
                }
                Some(entry) => before = entry.number.0.max(before + 1),
                // All between is noise up to the middle that was looked at first.
                None => before += (after - before) / 2,
            }
        }
        if let Some(point) = next.filter(|entry| is_offered(entry)) {
            let slice = point.slices.partition_point(|slice| slice.time <= time);
            if let Some(slice) = slice.checked_sub(1) {
                return Ok(Chosen { time: point.slices[slice].time, slice: Some(slice), entry: point });
            }
        }
        if let Some(point) = self.newest_point(before).await? {
            return Ok(whole(point));
        }
        let first = self.oldest_point(before + 1, newest.0).await?.ok_or(ChainError::NoPoint { newest })?;
        let last = self.newest_point(newest.0).await?.ok_or(ChainError::NoPoint { newest })?;
        let first = first.slices.first().map_or(first.time, |slice| slice.time);
        Err(ChainError::TooEarly { wanted: time, first, newest: last.time })
    }

    /// The newest point up to this number. A long scan may have left many drafts behind it.
    async fn newest_point(&self, up_to: u64) -> Result<Option<Arc<Entry>>, ChainError> {
        let (mut end, mut window) = (up_to, 1);
        while end > 0 {
            let start = end.saturating_sub(window - 1).max(1);
            let entries = self.entries(start..=end).await?;
            if let Some(point) = entries.into_iter().rev().find(|entry| is_offered(entry)) {
                return Ok(Some(point));
            }
            end = start - 1;
            window = (window * 2).min(WINDOW_MAX);
        }
        Ok(None)
    }

    async fn oldest_point(&self, from: u64, up_to: u64) -> Result<Option<Arc<Entry>>, ChainError> {
        let (mut start, mut window) = (from, 1);
        while start <= up_to {
            let end = (start + window - 1).min(up_to);
            let entries = self.entries(start..=end).await?;
            if let Some(point) = entries.into_iter().find(|entry| is_offered(entry)) {
                return Ok(Some(point));
            }
            start = end + 1;
            window = (window * 2).min(WINDOW_MAX);
        }
        Ok(None)
    }

    /// What stands under the number, if anything does.
    pub(super) async fn look(&self, number: EntryNumber) -> Result<Option<Found>, ChainError> {
        if let Some(found) = self.kept(number) {
            return Ok(Some(found));
        }
        let Some(bytes) = self.bytes(number).await? else { return Ok(None) };
        let found = Found::of(self.keys(), number, &bytes);
        let mut kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back((number, found.clone()));
        Ok(Some(found))
    }

    fn kept(&self, number: EntryNumber) -> Option<Found> {
        let mut kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|(n, _)| *n == number)?;
        let item = kept.remove(at)?;
        let found = item.1.clone();
        kept.push_back(item);
        Some(found)
    }

    async fn bytes(&self, number: EntryNumber) -> Result<Option<Bytes>, ChainError> {
        match self.remote().get(&self.volume().entry_key(number)).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.is_not_found() => Ok(None),
            // S3 denies, to those who may not list, the get of an object that is not there. Whoever can still get
            // what is known to be there is not denied as such.
            Err(denied @ RemoteError::Denied { .. }) => match self.remote().get(&self.volume().volume_key()).await {
                Ok(_) => Ok(None),
                Err(_) => Err(denied.into()),
            },
            Err(error) => Err(error.into()),
        }
    }
}

/// Entries that are asked for together while a point is looked for.
const WINDOW_MAX: u64 = 512;

fn whole(entry: Arc<Entry>) -> Chosen {
    Chosen { time: entry.time, slice: None, entry }
}

//! Opens a volume for writing: finds or makes it, makes sure that nobody else is using it, and publishes an `open`
//! with the next generation.
//!
//! The refusals here guard against accidents (a test clone that steals production's chain). The fence is the
//! generation: it holds whatever was refused or not.
//!
//! Crash: the object `volume` is put before the name that leads to it, so a name never leads nowhere; a `volume`
//! without a name remains of a crash between the two or of a lost race, and is never read.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::reader::{ChainError, ChainReader, Found};
use super::writer::{ABSENT_MAX, ChainWriter, Tip, pause_before_another_look};
use super::{of_gateway, shows_content};
use crate::clock::Clock;
use crate::format::codec::FormatError;
use crate::format::entry::{Entry, EntryKind};
use crate::format::names::VolumeName;
use crate::format::volume::{Encryption, VolumeObject};
use crate::format::{InstanceId, Keys, ObjectHash, VolumeId};
use crate::remote::{PutOutcome, Remote, RemoteError};
use crate::units::{EntryNumber, Generation, Sequence, Timestamp};

/// What whoever opens knows and wants.
#[derive(Clone, Debug)]
pub struct Opening {
    /// Of the state folder.
    pub instance: InstanceId,
    /// Name of the local store, as [`crate::disk::Identity`] has it.
    pub store: String,
    /// Size of the volume, bytes.
    pub size: u64,
    /// Take a name that exists and is not known here, and a store that is not the one that was shadowed last.
    pub adopt: bool,
    /// Open although another instance seems to be alive.
    pub take_over: bool,
    /// Goes into the object `volume` of a new volume.
    pub created: Timestamp,
    /// The volume that this state folder has had open under the name.
    pub known: Option<VolumeId>,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("open the chain for writing")]
    Remote(#[from] RemoteError),
    #[error("open the chain for writing")]
    Chain(#[from] ChainError),
    #[error("no random id for the volume")]
    Random(#[source] getrandom::Error),
    #[error("the entry `open` cannot be written")]
    Entry(#[source] FormatError),
    #[error(
        "the name {name} is taken by the volume {volume}, which this state folder does not know; use --adopt to \
         continue that volume, or another name"
    )]
    NameTaken { name: VolumeName, volume: VolumeId },
    #[error(
        "the volume {volume} that this state folder knows as {name} is not in {remote}; check the URL, or remove the \
         volume's state to begin a new one"
    )]
    Vanished { name: VolumeName, volume: VolumeId, remote: String },
    #[error(
        "instance {instance} published {} s ago and may be alive; stop it, or wait until it was silent for {} s, or \
         use --take-over: then it is fenced",
        .seen.as_secs(), .silence.as_secs()
    )]
    InUse { instance: InstanceId, seen: Duration, silence: Duration },
    #[error(
        "the store is {found:?}, but {recorded:?} was shadowed last; if it holds the volume's data, use --adopt: a \
         blank replacement must be restored first"
    )]
    OtherStore { recorded: String, found: String },
    #[error(
        "the store has {found} bytes, and the newest entry {recorded}: what was cut off is in the remote; enlarge the \
         store, or begin a new volume under another name"
    )]
    Shrunk { recorded: u64, found: u64 },
    /// The last entry written before was written by a newer program.
    #[error("entry {number} was written by a newer version of Umbra; this one must not continue the chain")]
    Newer { number: EntryNumber, source: FormatError },
    #[error("the chain has used up all generations; begin a new volume under another name")]
    Exhausted,
    /// Or the store says "taken" and "absent" in turn and never settles.
    #[error("{key} and all before it were taken while opening; others open the volume over and over")]
    Contended { key: String },
}

impl OpenError {
    /// Whether trying again cannot help: something has to be decided first.
    pub fn is_final(&self) -> bool {
        matches!(
            self,
            Self::Entry(_)
                | Self::NameTaken { .. }
                | Self::Vanished { .. }
                | Self::OtherStore { .. }
                | Self::Shrunk { .. }
                | Self::InUse { .. }
                | Self::Newer { .. }
                | Self::Exhausted { .. }
        )
    }
}

/// Silence after which an instance that was publishing all the time is taken for dead.
const SILENCE_UNDER_LOAD: Duration = Duration::from_secs(60);
/// Silence after which an idle instance is taken for dead: three heartbeats of 15 minutes.
const SILENCE_IDLE: Duration = Duration::from_secs(45 * 60);
/// Numbers tried until others are found to be in the way on purpose.
const NUMBERS_MAX: usize = 64;

/// The chain as it stands.
struct Standing {
    tip: Tip,
    /// The newest entry that shows content.
    content: Option<Arc<Entry>>,
    /// The newest entry of a gateway, and the one before it.
    gateway: Option<Arc<Entry>>,
    gateway_before: Option<Arc<Entry>>,
    /// The newest entry of a gateway that is not an `open` of this instance, which adds nothing by itself.
    published: Option<Arc<Entry>>,
}

impl ChainWriter {
    /// Opens the volume for writing. Nothing fences here: whatever was published meanwhile is read, and the next
    /// number is tried.
    ///
    /// After an error the `open` may stand in the chain nevertheless, or come to; opening again is always right.
    pub async fn open(remote: &Remote, name: &VolumeName, opening: Opening, clock: Clock) -> Result<Self, OpenError> {
        let volume = find_or_create(remote, name, &opening).await?;
        let reader = ChainReader::of_volume(remote, name, volume).await?;
        let mut end = EntryNumber(0);
        for _ in 0..NUMBERS_MAX {
            end = reader.end(end).await?;
            let standing = Standing::read(&reader, end, opening.instance).await?;
            standing.check(&reader, name, &opening, clock.now()).await?;
            let generation = standing.next_generation().ok_or(OpenError::Exhausted)?;
            let entry = standing.open_entry(&opening, generation, clock.now());
            let bytes: Bytes = entry.encode(reader.keys()).map_err(OpenError::Entry)?.into();
            if put_and_read(remote, &volume.entry_key(entry.number), bytes.clone()).await? == bytes {
                let tip = Tip { number: entry.number, hash: ObjectHash::of(&bytes), time: entry.time };
                tracing::info!(
                    volume = %name, id = %volume, generation = %entry.generation, number = %entry.number,
                    "opened the chain for writing"
                );
                return Ok(Self::opened(reader, tip, Arc::new(entry), standing.published));
            }
        }
        Err(OpenError::Contended { key: volume.entry_key(end) })
    }
}

/// The volume that the name stands for, made if there was none.
async fn find_or_create(remote: &Remote, name: &VolumeName, opening: &Opening) -> Result<VolumeId, OpenError> {
    if let Some(known) = opening.known {
        return match read_name(remote, name).await {
            Ok(volume) => Ok(volume),
            Err(OpenError::Remote(error)) if error.is_not_found() => {
                Err(OpenError::Vanished { name: name.clone(), volume: known, remote: remote.to_string() })
            }
            Err(error) => Err(error),
        };
    }
    match read_name(remote, name).await {
        // Those who may not list are denied what is not there; putting tells.
        Err(OpenError::Remote(RemoteError::NotFound { .. } | RemoteError::Denied { .. })) => {}
        found => return found,
    }
    let mut id = [0; 16];
    crate::random::fill(&mut id).map_err(OpenError::Random)?;
    let id = VolumeId(id);
    let object = VolumeObject { id, created: opening.created, encryption: Encryption::None };
    let keys = Keys::unencrypted(id);
    put_and_read(remote, &id.volume_key(), object.encode(&keys).into()).await?;
    let key = name.key();
    let body = put_and_read(remote, &key, id.to_name_object().into()).await?;
    VolumeId::from_name_object(&body).map_err(|source| ChainError::Format { key, source }.into())
}

/// What stands under the key once this was put: it, or what was there before.
async fn put_and_read(remote: &Remote, key: &str, body: Bytes) -> Result<Bytes, OpenError> {
    for look in 0..ABSENT_MAX {
        pause_before_another_look(look).await;
        if remote.put_new(key, body.clone()).await? == PutOutcome::Created {
            return Ok(body);
        }
        match remote.get(key).await {
            Err(error) if error.is_not_found() => {}
            found => return Ok(found?),
        }
    }
    Err(OpenError::Contended { key: key.to_owned() })
}

async fn read_name(remote: &Remote, name: &VolumeName) -> Result<VolumeId, OpenError> {
    let key = name.key();
    let body = remote.get(&key).await?;
    VolumeId::from_name_object(&body).map_err(|source| ChainError::Format { key, source }.into())
}

impl Standing {
    async fn read(reader: &ChainReader, end: EntryNumber, instance: InstanceId) -> Result<Self, OpenError> {
        let mut standing =
            Self { tip: Tip::START, content: None, gateway: None, gateway_before: None, published: None };
        let mut number = end;
        while number.0 > 0 && (standing.gateway_before.is_none() || standing.published.is_none()) {
            let found = reader.look(number).await?.ok_or(ChainError::NoEntry { number, newest: end })?;
            if number == end {
                standing.tip = Tip { number: end, hash: found.hash(), time: Timestamp(0) };
            }
            match found {
                Found::Entry { entry, .. } => {
                    standing.tip.time = standing.tip.time.max(entry.time);
                    if shows_content(entry.kind) {
                        standing.content.get_or_insert_with(|| entry.clone());
                    }
                    if of_gateway(entry.kind) {
                        if entry.kind != EntryKind::Open || entry.instance != instance {
                            standing.published.get_or_insert_with(|| entry.clone());
                        }
                        match standing.gateway {
                            None => standing.gateway = Some(entry),
                            Some(_) => {
                                standing.gateway_before.get_or_insert(entry);
                            }
                        }
                    }
                }
                Found::Unreadable { source, .. } => return Err(OpenError::Newer { number, source }),
                Found::Noise { source, .. } => {
                    tracing::error!(volume = %reader.volume(), %number, %source, "the chain holds something that is not an entry");
                }
            }
            number.0 -= 1;
        }
        Ok(standing)
    }

    async fn check(
        &self,
        reader: &ChainReader,
        name: &VolumeName,
        opening: &Opening,
        now: Timestamp,
    ) -> Result<(), OpenError> {
        let volume = reader.volume();
        let ours = match (opening.known, &self.gateway) {
            (Some(known), _) => known == volume,
            // The same state folder is the same instance, even if it crashed before it noted the volume's id.
            (None, Some(last)) => last.instance == opening.instance,
            // An empty chain belongs to nobody: whoever made the name came no further, or is in this race.
            (None, None) => true,
        };
        if !ours && !opening.adopt {
            return Err(OpenError::NameTaken { name: name.clone(), volume });
        }
        if let Some(content) = self.content.as_ref().filter(|content| content.size > opening.size) {
            return Err(OpenError::Shrunk { recorded: content.size, found: opening.size });
        }
        let Some(last) = &self.gateway else { return Ok(()) };
        let (seen, silence) = (now.since(last.time), self.silence());
        if last.instance != opening.instance && !last.leaving && !opening.take_over && seen < silence {
            return Err(OpenError::InUse { instance: last.instance, seen, silence });
        }
        if !opening.adopt {
            let open = self.open_of(reader, last).await?;
            if let Some(recorded) = open.and_then(|open| open.store.clone()).filter(|store| *store != opening.store) {
                return Err(OpenError::OtherStore { recorded, found: opening.store.clone() });
            }
        }
        Ok(())
    }

    /// How long the last gateway must have been silent to be taken for dead. It was under load if its last two
    /// entries both brought something new and came close together; anything else may be idleness.
    fn silence(&self) -> Duration {
        match (&self.gateway, &self.gateway_before) {
            (Some(last), Some(before))
                if last.new_bytes > 0 && before.new_bytes > 0 && last.time.since(before.time) < SILENCE_UNDER_LOAD =>
            {
                SILENCE_UNDER_LOAD
            }
            _ => SILENCE_IDLE,
        }
    }

    /// The `open` of the generation that published `last`: generations of gateways grow with numbers, so it is the
    /// first of its generation.
    async fn open_of(&self, reader: &ChainReader, last: &Arc<Entry>) -> Result<Option<Arc<Entry>>, OpenError> {
        // `old` is known to be of an earlier generation (0 is before all), `open` of this one.
        let (mut old, mut open) = (0, last.clone());
        while open.number.0 - old > 1 {
            let middle = old + (open.number.0 - old) / 2;
            match gateway_entry_in(reader, old + 1, middle).await? {
                Some(entry) if entry.generation >= last.generation => open = entry,
                // Up to the middle all is of earlier generations, or not by gateways.
                _ => old = middle,
            }
        }
        Ok((open.kind == EntryKind::Open).then_some(open))
    }

    /// Tools carry the generation that they have seen, which may be an older one; a gateway's is the newest.
    fn next_generation(&self) -> Option<Generation> {
        match &self.gateway {
            Some(last) => last.generation.0.checked_add(1).map(Generation),
            None => Some(Generation(1)),
        }
    }

    /// The entry that opens the generation, showing what the newest one shows.
    fn open_entry(&self, opening: &Opening, generation: Generation, now: Timestamp) -> Entry {
        let content = self.content.as_deref();
        Entry {
            number: self.tip.number.next(),
            kind: EntryKind::Open,
            generation,
            instance: opening.instance,
            previous: self.tip.hash,
            parent: content.map_or(EntryNumber(0), |content| content.number),
            sequence: content.map_or(Sequence(0), |content| content.sequence),
            time: self.tip.time_after(now),
            heartbeat: content
                .into_iter()
                .chain(self.gateway.as_deref())
                .map(|entry| entry.heartbeat)
                .max()
                .unwrap_or(0),
            size: opening.size,
            // Nothing yet is a draft of everything.
            draft: content.is_none_or(|content| content.draft),
            leaving: false,
            new_bytes: 0,
            store: Some(opening.store.clone()),
            scan: content.and_then(|content| content.scan),
            slices: Vec::new(),
            own: content.map_or(Vec::new(), |content| content.own.clone()),
            levels: content.map_or_else(Default::default, |content| content.levels.clone()),
            base: content.and_then(|content| content.base),
            detail: Vec::new(),
        }
    }
}

/// The last entry of a gateway among these numbers.
async fn gateway_entry_in(reader: &ChainReader, first: u64, last: u64) -> Result<Option<Arc<Entry>>, OpenError> {
    for number in (first..=last).rev() {
        if let Some(Found::Entry { entry, .. }) = reader.look(EntryNumber(number)).await?
            && of_gateway(entry.kind)
        {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

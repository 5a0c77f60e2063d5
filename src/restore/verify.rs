//! Reads every object that a recovery point names and checks every byte of it: lengths and hashes against the lists,
//! MACs of index pages, the content hash of every record, and the entry's links in the chain.
//!
//! Goes on after a fault: what is asked for is the whole truth. Holds a few whole objects (of at most 128 MiB, as a
//! rule 64 MiB) at a time, and the names of all.

use std::collections::HashSet;

use futures_util::{StreamExt, stream};

use super::progress::Progress;
use crate::chain::{ChainError, ChainReader};
use crate::format::entry::Entry;
use crate::format::index::Kind;
use crate::format::pack::verify_pack;
use crate::format::run::verify_run;
use crate::format::{FormatError, Keys, ObjectHash, ObjectRef, PackContent};
use crate::remote::{Remote, RemoteError};
use crate::task;
use crate::units::EntryNumber;

/// Objects in memory at a time: enough that reading, hashing and decoding keep two cores and a network busy.
const PARALLEL: usize = 3;

/// Why an object is not what the point needs.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("cannot be read")]
    Remote(#[source] RemoteError),
    #[error("is not what was written")]
    Format(#[from] FormatError),
    /// Its hash is not what entry `by` says.
    #[error("is not the entry that entry {by} follows")]
    Unlinked { by: EntryNumber },
    /// It decodes, but into another entry than was chosen.
    #[error("is another entry than the one that was chosen")]
    Changed,
    #[error("is a list of a kind that this version does not know")]
    UnknownBase,
    /// Checking it came to no end.
    #[error("could not be checked")]
    Unchecked(#[source] task::Died),
}

/// An object with a fault, by its key.
#[derive(Debug)]
pub struct BadObject {
    pub key: String,
    pub fault: Fault,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Findings {
    pub entries: u64,
    pub packs: u64,
    pub runs: u64,
    /// Data records that were decoded and compared with their hashes.
    pub records: u64,
    /// Bytes of sound objects.
    pub bytes: u64,
    pub bad: Vec<BadObject>,
}

/// What one sound object adds.
struct Sound {
    /// Of a run: the packs that it merges.
    packs: Vec<ObjectRef>,
    records: u64,
}

impl Findings {
    fn bad(&mut self, key: String, fault: Fault) {
        self.bad.push(BadObject { key, fault });
    }
}

/// Checks the entry and all objects that its content needs.
pub async fn verify_objects(chain: &ChainReader, entry: &Entry, progress: &Progress) -> Findings {
    let (remote, keys) = (chain.remote(), chain.keys());
    let mut findings = Findings::default();
    verify_links(chain, entry, &mut findings).await;
    if let Some(base) = &entry.base {
        findings.bad(Kind::Run.key(keys.volume(), base), Fault::UnknownBase);
    }

    let [packs, runs @ ..] = &entry.levels;
    let runs: HashSet<ObjectRef> = runs.iter().flatten().copied().collect();
    let mut packs: HashSet<ObjectRef> = entry.own.iter().chain(packs).copied().collect();
    packs.extend(verify_all(remote, keys, Kind::Run, runs, &mut findings, progress).await);
    verify_all(remote, keys, Kind::Pack, packs, &mut findings, progress).await;
    findings
}

/// Checks that the entry stands in the chain as it was read, follows the one before it and is followed by the next.
async fn verify_links(chain: &ChainReader, entry: &Entry, findings: &mut Findings) {
    let (remote, keys) = (chain.remote(), chain.keys());
    let key = |number| keys.volume().entry_key(number);
    let own = match remote.get(&key(entry.number)).await {
        Ok(bytes) => bytes,
        Err(error) => return findings.bad(key(entry.number), Fault::Remote(error)),
    };
    match Entry::decode(keys, &own) {
        Ok(found) if found == *entry => findings.entries += 1,
        Ok(_) => findings.bad(key(entry.number), Fault::Changed),
        Err(error) => findings.bad(key(entry.number), error.into()),
    }
    if entry.number.0 > 1 {
        let before = EntryNumber(entry.number.0 - 1);
        match remote.get(&key(before)).await {
            Ok(bytes) if ObjectHash::of(&bytes) == entry.previous => findings.entries += 1,
            Ok(_) => findings.bad(key(before), Fault::Unlinked { by: entry.number }),
            Err(error) => findings.bad(key(before), Fault::Remote(error)),
        }
    }
    let after = entry.number.next();
    match chain.get(after).await {
        Ok(next) if next.previous != ObjectHash::of(&own) => {
            findings.bad(key(entry.number), Fault::Unlinked { by: after });
        }
        Err(ChainError::Remote(error)) => findings.bad(key(after), Fault::Remote(error)),
        // The newest entry has none after it, and what is no entry is noise, which publishers step over.
        Ok(_) | Err(_) => {}
    }
}

/// Checks objects of one kind, a few at a time. Returns the packs that they name.
async fn verify_all(
    remote: &Remote,
    keys: &Keys,
    kind: Kind,
    objects: HashSet<ObjectRef>,
    findings: &mut Findings,
    progress: &Progress,
) -> HashSet<ObjectRef> {
    progress.grow(objects.iter().map(|object| object.length).sum());
    let mut checks = stream::iter(objects)
        .map(|object| async move { (object, verify_one(remote, keys, kind, object).await) })
        .buffer_unordered(PARALLEL);
    let mut named = HashSet::new();
    while let Some((object, outcome)) = checks.next().await {
        progress.pass(object.length);
        match outcome {
            Ok(sound) => {
                progress.transfer(object.length);
                *match kind {
                    Kind::Pack => &mut findings.packs,
                    Kind::Run => &mut findings.runs,
                } += 1;
                findings.records += sound.records;
                findings.bytes += object.length;
                named.extend(sound.packs);
            }
            Err(fault) => findings.bad(kind.key(keys.volume(), &object), fault),
        }
    }
    named
}

async fn verify_one(remote: &Remote, keys: &Keys, kind: Kind, object: ObjectRef) -> Result<Sound, Fault> {
    let bytes = remote.get(&kind.key(keys.volume(), &object)).await.map_err(Fault::Remote)?;
    let keys = keys.clone();
    // Half a second of hashing and decompressing: not on a thread that answers the network.
    let check = move || match kind {
        Kind::Run => verify_run(&keys, &bytes, &object).map(|(packs, _)| Sound { packs, records: 0 }),
        Kind::Pack => verify_pack(&keys, &bytes, &object).map(|records| {
            let data = records.iter().filter(|record| matches!(record.content, PackContent::Data(_)));
            Sound { packs: Vec::new(), records: data.count() as u64 }
        }),
    };
    Ok(task::blocking(check).await.map_err(Fault::Unchecked)??)
}

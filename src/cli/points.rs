//! `umbra points`: what a bucket holds, from the bucket alone.

use serde::Serialize;

use super::PointsArgs;
use super::failure::Failure;
use super::output;
use super::source::chain_failure;
use crate::chain::{ChainError, ChainReader, is_offered, volumes};
use crate::format::entry::{Entry, EntryKind};
use crate::format::names::VolumeName;
use crate::remote::Remote;
use crate::units::{EntryNumber, Generation, Sequence, Timestamp, human_bytes};

/// Entries that are in memory besides the rows.
const BATCH: u64 = 1024;
/// Numbers that a person is shown.
const SHOWN_MAX: usize = 10;

#[derive(Serialize)]
struct Listing {
    volume: String,
    points: Vec<Row>,
    /// Entries that are missing, or that this version cannot read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unreadable: Vec<EntryNumber>,
}

#[derive(Serialize)]
struct Row {
    number: EntryNumber,
    time: Timestamp,
    kind: &'static str,
    sequence: Sequence,
    generation: Generation,
    /// Bytes of the objects that the entry added.
    new_bytes: u64,
    /// Of the volume, bytes.
    size: u64,
}

pub async fn run(args: PointsArgs) -> Result<(), Failure> {
    let remote = args.source.open()?;
    match &args.volume {
        Some(name) => {
            let listing = list(&remote, name, args.all).await?;
            if args.json {
                output::print_json(&listing)?
            } else {
                output::print(&listing.table())?
            }
            whole(&[listing])
        }
        None => {
            let names = volumes(&remote)
                .await
                .map_err(|error| chain_failure("list the volumes in", &remote.to_string(), &error))?;
            let mut listings = Vec::with_capacity(names.len());
            for name in &names {
                listings.push(list(&remote, name, args.all).await?);
            }
            if listings.is_empty() {
                output::announce(&format!("{remote} holds no volume"));
            }
            if args.json {
                output::print_json(&listings)?;
            } else {
                let titled = listings.iter().map(|listing| format!("{}\n{}", listing.volume, listing.table()));
                output::print(&titled.collect::<Vec<_>>().join("\n"))?;
            }
            whole(&listings)
        }
    }
}

/// Fails if there is what could not be listed.
fn whole(listings: &[Listing]) -> Result<(), Failure> {
    let Some(Listing { volume, unreadable, .. }) = listings.iter().find(|listing| !listing.unreadable.is_empty())
    else {
        return Ok(());
    };
    let shown: Vec<_> = unreadable.iter().take(SHOWN_MAX).map(EntryNumber::to_string).collect();
    let more = if unreadable.len() > SHOWN_MAX { " and others" } else { "" };
    let failure = Failure::new("list all points of", volume)
        .why(format!("entries cannot be read: {}{more}", shown.join(", ")))
        .remedy(
            "each point that is listed can be restored; use a version of umbra as new as the gateway's, and check that \
             nothing deletes objects in the bucket",
        );
    Err(failure)
}

async fn list(remote: &Remote, name: &VolumeName, all: bool) -> Result<Listing, Failure> {
    read(remote, name, all).await.map_err(|error| chain_failure("list the points of", name.as_str(), &error))
}

async fn read(remote: &Remote, name: &VolumeName, all: bool) -> Result<Listing, ChainError> {
    let chain = ChainReader::open(remote, name).await?;
    let newest = chain.end(EntryNumber(0)).await?.0;
    if newest > BATCH {
        output::announce(&format!("reading {newest} entries of {name}"));
    }
    let mut listing = Listing { volume: name.to_string(), points: Vec::new(), unreadable: Vec::new() };
    let (mut first, mut batch) = (1, BATCH);
    while first <= newest {
        let last = newest.min(first + batch - 1);
        let entries = match chain.entries(first..=last).await {
            Ok(entries) => entries,
            // Which of them it is: what can be listed is, and still many at a time.
            Err(ChainError::NoEntry { .. } | ChainError::Format { .. }) if first < last => {
                batch = (last - first).div_ceil(2);
                continue;
            }
            Err(ChainError::NoEntry { .. } | ChainError::Format { .. }) => {
                listing.unreadable.push(EntryNumber(first));
                Vec::new()
            }
            Err(error) => return Err(error),
        };
        listing.points.extend(entries.iter().filter(|entry| all || is_offered(entry)).map(|entry| Row::of(entry)));
        (first, batch) = (last + 1, (batch * 2).min(BATCH));
    }
    Ok(listing)
}

impl Row {
    fn of(entry: &Entry) -> Self {
        Self {
            number: entry.number,
            time: entry.time,
            kind: kind_name(entry.kind),
            sequence: entry.sequence,
            generation: entry.generation,
            new_bytes: entry.new_bytes,
            size: entry.size,
        }
    }
}

/// A kind as the design and the configuration spell it.
fn kind_name(kind: EntryKind) -> &'static str {
    match kind {
        EntryKind::Open => "open",
        EntryKind::Point => "point",
        EntryKind::Draft => "draft",
        EntryKind::Checkpoint => "checkpoint",
        EntryKind::Reclaim => "reclaim",
        EntryKind::Pin => "pin",
        EntryKind::Unpin => "unpin",
        EntryKind::RestoreBegin => "restore-begin",
        EntryKind::RestoreEnd => "restore-end",
        EntryKind::Untracked => "untracked",
    }
}

impl Listing {
    fn table(&self) -> String {
        if self.points.is_empty() {
            return "no recovery point yet\n".to_owned();
        }
        let rows = self.points.iter().map(|row| {
            vec![
                row.number.to_string(),
                row.time.to_string(),
                row.kind.to_owned(),
                row.sequence.to_string(),
                row.generation.to_string(),
                human_bytes(row.new_bytes),
                human_bytes(row.size),
            ]
        });
        output::table(
            &["NUMBER", "TIME", "KIND", "SEQUENCE", "GENERATION", "NEW", "SIZE"],
            &[true, false, false, true, true, true, true],
            &rows.collect::<Vec<_>>(),
        )
    }
}

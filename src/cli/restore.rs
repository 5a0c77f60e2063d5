//! `umbra restore`: a volume back from a recovery point.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::RestoreArgs;
use super::failure::Failure;
use super::output::{self, Meter};
use super::source::{Point, remote_remedy};
use crate::chain::resolve::{ResolveError, Resolver};
use crate::restore::progress::Progress;
use crate::restore::ranges::Ranges;
use crate::restore::whole::{RestoreError, Restored, restore};
use crate::units::{EntryNumber, Sequence, Span, Timestamp, human_bytes};

/// Ranges that a person is shown; all that are known are in the JSON.
pub const SHOWN_MAX: usize = 20;

#[derive(Serialize)]
struct Summary<'a> {
    volume: &'a str,
    number: EntryNumber,
    time: Timestamp,
    age_seconds: u64,
    sequence: Sequence,
    size: u64,
    bytes_written: u64,
    unreadable: Vec<Range>,
    seconds: f64,
}

/// A range as the JSON has it.
#[derive(Serialize)]
pub struct Range {
    offset: u64,
    length: u64,
}

impl From<&Span> for Range {
    fn from(span: &Span) -> Self {
        Self { offset: span.start, length: span.len() }
    }
}

pub async fn run(args: RestoreArgs) -> Result<(), Failure> {
    let on = format!("{} to {}", args.point.volume, args.to);
    let remote = args.source.open()?;
    let point = args.point.choose(&remote).await?;
    output::announce(&format!("restore {on}: {point}"));
    let (entry, slice) = (&point.chosen.entry, point.chosen.slice);
    let resolver = Resolver::new(remote, point.chain.volume(), entry, slice)
        .map_err(|source| failed(&on, &RestoreError::Resolve { number: entry.number, source }))?;
    // Whether the indexes are there is found out before the target is touched.
    resolver
        .next_named(crate::units::Block(0))
        .await
        .map_err(|source| failed(&on, &RestoreError::Resolve { number: entry.number, source }))?;

    let progress = Arc::new(Progress::new(point.size()));
    let target = args.to.open_target(&args.initiator.login(), point.size(), args.overwrite, progress.clone()).await?;
    let begun = Instant::now();
    let meter = Meter::start("restore", progress.clone());
    let outcome = restore(&resolver, entry.number, target, &progress).await;
    drop(meter);
    let restored = outcome.map_err(|error| failed(&on, &error))?;
    report(&args, &point, &restored, begun.elapsed())?;
    if restored.unreadable.is_empty() { Ok(()) } else { Err(unreadable(&on, &restored.unreadable)) }
}

fn report(args: &RestoreArgs, point: &Point, restored: &Restored, took: Duration) -> Result<(), Failure> {
    let volume = args.point.volume.as_str();
    if args.json {
        return output::print_json(&Summary {
            volume,
            number: point.chosen.entry.number,
            time: point.chosen.time,
            age_seconds: point.age.as_secs(),
            sequence: point.sequence(),
            size: point.size(),
            bytes_written: restored.bytes_written,
            unreadable: restored.unreadable.listed().iter().map(Range::from).collect(),
            seconds: took.as_secs_f64(),
        });
    }
    let rate = restored.bytes_written as f64 / took.as_secs_f64().max(0.001);
    let mut text = format!(
        "restored {volume} to {}: {point}, {} of data in {:.1} s ({}/s)\n",
        args.to,
        human_bytes(restored.bytes_written),
        took.as_secs_f64(),
        human_bytes(rate as u64),
    );
    if !restored.unreadable.is_empty() {
        text += "unreadable when the copy was made, now zero:\n";
        text += &shown(&restored.unreadable);
    }
    output::print(&text)
}

/// The first ranges, one to a line.
pub fn shown(ranges: &Ranges) -> String {
    let listed = ranges.listed();
    let mut text = String::new();
    for span in listed.iter().take(SHOWN_MAX) {
        text += &format!("  {} bytes at {}\n", span.len(), span.start);
    }
    let more = listed.len().saturating_sub(SHOWN_MAX) as u64 + ranges.unlisted();
    if more > 0 {
        text += &format!("  and {more} more ranges\n");
    }
    text
}

fn unreadable(on: &str, ranges: &Ranges) -> Failure {
    Failure::new("restore", on)
        .why(format!(
            "{} could not be read from the original when the copy was made; all else was restored",
            human_bytes(ranges.bytes())
        ))
        .remedy("take these ranges from an older point, or repair what uses them (fsck)")
}

fn failed(on: &str, error: &RestoreError) -> Failure {
    let failure = Failure::new("restore", on).because(error);
    match error {
        RestoreError::Target(_) => {
            failure.remedy("see that the target works, and restore again; until then it is marked as unfinished")
        }
        RestoreError::Resolve { source, .. } | RestoreError::Read { source, .. } => {
            failure.remedy(resolve_remedy(source))
        }
        RestoreError::Interrupted(_) => failure.remedy("restore again"),
    }
}

/// What to do where a point cannot be read.
pub fn resolve_remedy(error: &ResolveError) -> &'static str {
    match error {
        ResolveError::Remote(error) => remote_remedy(error),
        ResolveError::PartitionedBase => "use a version of umbra as new as the gateway's",
        _ => "choose another point with --at, an older one if need be; `umbra verify` tells which are sound",
    }
}

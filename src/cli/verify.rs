//! `umbra verify`: whether a recovery point is sound, and whether a store equals it.

use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use super::VerifyArgs;
use super::failure::Failure;
use super::online;
use super::output::{self, Meter};
use super::place::Place;
use super::restore::{Range, resolve_remedy, shown};
use super::source::Point;
use crate::admin::Comparison;
use crate::chain::resolve::Resolver;
use crate::restore::compare::{CompareError, compare};
use crate::restore::progress::Progress;
use crate::restore::ranges::Ranges;
use crate::restore::verify::{Fault, Findings, verify_objects};
use crate::snapshot::compare::Verdict;
use crate::units::{EntryNumber, Sequence, Timestamp, human_bytes};

/// Objects with a fault that a person is shown; all are in the JSON.
const SHOWN_MAX: usize = 20;

#[derive(Serialize)]
struct Summary<'a> {
    volume: &'a str,
    number: EntryNumber,
    time: Timestamp,
    age_seconds: u64,
    sequence: Sequence,
    size: u64,
    packs: u64,
    runs: u64,
    records: u64,
    bytes_checked: u64,
    bad: Vec<Bad<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    against: Option<Against>,
    seconds: f64,
}

#[derive(Serialize)]
struct Bad<'a> {
    object: &'a str,
    why: String,
}

#[derive(Serialize)]
struct Against {
    store: String,
    store_size: u64,
    different_bytes: u64,
    /// At most [`crate::restore::ranges::LISTED_MAX`].
    different: Vec<Range>,
    /// How many more there are.
    unlisted: u64,
    /// Where the gateway that serves the store has compared it.
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<Online>,
}

/// What only the gateway can say of a store that it serves.
#[derive(Serialize)]
struct Online {
    compared_bytes: u64,
    changed_bytes: u64,
    unreadable_bytes: u64,
    repaired_bytes: u64,
    verdict: Verdict,
}

/// A store that was compared with the point; by its gateway, with the newest point.
struct Compared {
    store: Place,
    store_size: u64,
    different: Ranges,
    gateway: Option<Comparison>,
}

pub async fn run(args: VerifyArgs) -> Result<(), Failure> {
    let on = args.point.volume.to_string();
    let (remote, config) = args.source.open()?;
    let against = online::Against::find(&args, config.as_ref()).await?;
    let point = args.point.choose(&remote).await?;
    output::announce(&format!("verify {on}: {point}"));
    // What is named wrongly is told before everything is read.
    let store = match &against {
        online::Against::Us(place) => {
            let volume = args.point.volume.as_str();
            let login = config
                .as_ref()
                .map_or_else(|| args.initiator.login(), |config| args.initiator.login_of(config, volume));
            Some(place.open_store(&login).await?)
        }
        online::Against::Nobody | online::Against::Gateway(_) => None,
    };
    let begun = Instant::now();
    let progress = Arc::new(Progress::default());
    let meter = Meter::start("verify", progress.clone());
    let findings = verify_objects(&point.chain, &point.chosen.entry, &progress).await;
    drop(meter);

    let compared = match (against, store) {
        (online::Against::Us(place), Some(store)) => {
            let (entry, slice) = (&point.chosen.entry, point.chosen.slice);
            let broken = |error: CompareError| cannot_compare(&on, &place, &error, &findings);
            let resolver = Resolver::new(remote, point.chain.volume(), entry, slice)
                .map_err(|error| broken(CompareError::Resolve(error)))?;
            let progress = Arc::new(Progress::new(point.size()));
            let _meter = Meter::start("compare", progress.clone());
            let store_size = store.geometry().size;
            let different = compare(&resolver, store, &progress).await.map_err(broken)?;
            Some(Compared { store: place, store_size, different, gateway: None })
        }
        (online::Against::Gateway(served), _) => {
            let found = served.compare(!args.no_repair).await?;
            let different = Ranges::counted(found.spans().collect(), found.different, found.unlisted);
            Some(Compared { store: served.place, store_size: served.size, different, gateway: Some(found) })
        }
        _ => None,
    };
    if args.json {
        output::print_json(&summary(&args, &point, &findings, compared.as_ref(), begun.elapsed().as_secs_f64()))?;
    } else {
        output::print(&text(&on, &point, &findings, compared.as_ref()))?;
    }
    verdict(&on, &findings, compared.as_ref())
}

fn summary<'a>(
    args: &'a VerifyArgs,
    point: &Point,
    findings: &'a Findings,
    compared: Option<&Compared>,
    seconds: f64,
) -> Summary<'a> {
    Summary {
        volume: args.point.volume.as_str(),
        number: point.chosen.entry.number,
        time: point.chosen.time,
        age_seconds: point.age.as_secs(),
        sequence: point.sequence(),
        size: point.size(),
        packs: findings.packs,
        runs: findings.runs,
        records: findings.records,
        bytes_checked: findings.bytes,
        bad: findings.bad.iter().map(|bad| Bad { object: &bad.key, why: why(&bad.fault) }).collect(),
        against: compared.map(|compared| Against {
            store: compared.store.to_string(),
            store_size: compared.store_size,
            different_bytes: compared.different.bytes(),
            different: compared.different.listed().iter().map(Range::from).collect(),
            unlisted: compared.different.unlisted(),
            gateway: compared.gateway.as_ref().map(|found| Online {
                compared_bytes: found.compared,
                changed_bytes: found.changed,
                unreadable_bytes: found.unreadable,
                repaired_bytes: found.repaired,
                verdict: found.verdict,
            }),
        }),
        seconds,
    }
}

fn text(on: &str, point: &Point, findings: &Findings, compared: Option<&Compared>) -> String {
    let Findings { entries: _, packs, runs, records, bytes, bad } = findings;
    let mut text = format!(
        "{on}: {point}: {packs} packs and {runs} runs are sound ({}, {records} records)\n",
        human_bytes(*bytes)
    );
    for object in bad.iter().take(SHOWN_MAX) {
        text += &format!("  bad: {} {}\n", object.key, why(&object.fault));
    }
    if bad.len() > SHOWN_MAX {
        text += &format!("  and {} more bad objects\n", bad.len() - SHOWN_MAX);
    }
    if let Some(Compared { store, store_size, different, gateway }) = compared {
        if let Some(found) = gateway {
            text += &format!(
                "{store}, as its gateway compares it with the newest point: {} compared, {} passed over since clients \
                 changed it, {} unreadable\n",
                human_bytes(found.compared),
                human_bytes(found.changed),
                human_bytes(found.unreadable)
            );
        }
        if different.is_empty() {
            let what = if unreadable(gateway) > 0 { "what can be read of " } else { "" };
            text += &format!("{what}{store} equals the point\n");
        } else {
            text += &format!("{store} differs from the point in {}:\n", human_bytes(different.bytes()));
            text += &shown(different);
        }
        if let Some(found) = gateway.as_ref().filter(|found| found.repaired > 0) {
            text += &format!("{} are uploaded again, for the next recovery point\n", human_bytes(found.repaired));
        }
        if *store_size != point.size() {
            text += &format!("{store} has {store_size} bytes, the volume {}\n", point.size());
        }
    }
    text
}

fn verdict(on: &str, findings: &Findings, compared: Option<&Compared>) -> Result<(), Failure> {
    if !findings.bad.is_empty() {
        return Err(Failure::new("verify", on)
            .why(count_bad(findings))
            .remedy("choose another point with --at; serve with --compare publishes a new one from the local store"));
    }
    match compared {
        Some(Compared { store, different, gateway, .. }) if !different.is_empty() => {
            let why = format!("{store} differs from the point in {}", human_bytes(different.bytes()));
            let failure = Failure::new("verify", on).why(why);
            Err(match gateway {
                Some(found) => failure.remedy(online_remedy(found.verdict)),
                None => failure.remedy(
                    "a store that was written after the point differs rightly, and one that a gateway serves is compared \
                     with --config FILE; else serve with --compare brings the copy up to date, and restore brings the \
                     store back",
                ),
            })
        }
        Some(Compared { store, gateway, .. }) if unreadable(gateway) > 0 => {
            let why = format!("{} of {store} cannot be read", human_bytes(unreadable(gateway)));
            let remedy = "see whether the disk is sound, and as large as it was; a point can be restored to another";
            Err(Failure::new("verify", on).why(why).remedy(remedy))
        }
        _ => Ok(()),
    }
}

/// Bytes of its store that the gateway could not read.
fn unreadable(gateway: &Option<Comparison>) -> u64 {
    gateway.as_ref().map_or(0, |found| found.unreadable)
}

fn online_remedy(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Equal | Verdict::Repaired => {
            "the next recovery point has what the store holds; see who writes past the gateway, or whether the disk is \
             sound"
        }
        Verdict::PartlyRepaired => "verify again: there was more than could be repaired at once",
        Verdict::Left => "see who writes past the gateway; without --no-repair what the store holds is uploaded",
        Verdict::TooMuch => {
            "so much looks like another store than the one that was shadowed, and nothing was repaired: see that it is \
             the right one, then restart the gateway with --compare"
        }
    }
}

fn count_bad(findings: &Findings) -> String {
    match &findings.bad[..] {
        [one] => format!("{} {}", one.key, why(&one.fault)),
        many => format!("{} objects are missing or damaged", many.len()),
    }
}

fn cannot_compare(on: &str, place: &Place, error: &CompareError, findings: &Findings) -> Failure {
    let mut failure = Failure::new("verify", format!("{on} against {place}")).because(error);
    if !findings.bad.is_empty() {
        failure = failure.why(count_bad(findings));
    }
    match error {
        CompareError::Store(_) => failure.remedy("see that the store can be read"),
        CompareError::Resolve(error) => failure.remedy(resolve_remedy(error)),
        CompareError::Task(_) => failure.remedy("try again"),
    }
}

/// A fault and its causes on one line.
fn why(fault: &Fault) -> String {
    let mut text = fault.to_string();
    let mut next = std::error::Error::source(fault);
    while let Some(cause) = next {
        text += &format!(": {cause}");
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_cannot_be_read_everywhere_is_not_said_to_be_equal() {
        let compared = |unreadable| Compared {
            store: Place::parse("file:disk0.img").unwrap(),
            store_size: 1 << 20,
            different: Ranges::counted(Vec::new(), 0, 0),
            gateway: Some(Comparison {
                compared: (1 << 20) - unreadable,
                changed: 0,
                unreadable,
                different: 0,
                ranges: Vec::new(),
                unlisted: 0,
                repaired: 0,
                verdict: Verdict::Equal,
            }),
        };
        assert!(verdict("disk0", &Findings::default(), Some(&compared(0))).is_ok());
        let failure = verdict("disk0", &Findings::default(), Some(&compared(4096))).unwrap_err().to_string();
        assert!(failure.contains("4.0 KiB of") && failure.contains("cannot be read"), "{failure}");
    }
}

//! Safeguards that are taken away one by one: some world must notice each, or it guards nothing that is proven.

use std::time::{Duration, Instant};

use super::clients::Access;
use super::ground;
use super::world::{self, Trouble};
use crate::failpoint::{self, Safeguard};

/// The most that finding out may take.
const TIME_MAX: Duration = Duration::from_secs(5);

/// Which safeguard, in worlds about which trouble if any, and the seeds of the worlds that are asked: they begin where
/// one was found that notices. What is missing here (the other rules of cooling) is shown by the tests of `volume::heat`.
/// In worlds about one trouble the sample that is compared at each start is missing too: it is all of their volumes, and
/// would find whatever went wrong.
const CANARIES: &[(Safeguard, Option<Trouble>, std::ops::Range<u64>)] = &[
    (Safeguard::RangeLock, None, 4..104),
    (Safeguard::GapFreePrefix, None, 256..356),
    (Safeguard::Barrier, None, 30..130),
    (Safeguard::Fence, None, 19..119),
    (Safeguard::ScanBelowLog, None, 4..104),
    (Safeguard::ScanHoldsRange, None, 91..191),
    (Safeguard::DistrustAfterLoss, None, 85..185),
    (Safeguard::StaleAnswers, None, 845..945),
    (Safeguard::DistrustAfterFailedFlush, None, 304..404),
    (Safeguard::ForgottenCaches, None, 34..134),
    (Safeguard::FlushForwarded, None, 0..100),
    (Safeguard::OverflowEndsLogging, None, 12..112),
    (Safeguard::HotBeforeWrite, None, 172..272),
    (Safeguard::CoolAfterFlush, Some(Trouble::CrashedStore), 153..253),
    (Safeguard::DivergedWhenCooled, Some(Trouble::DeadRemote), 5..105),
    (Safeguard::Foretold, Some(Trouble::FailingMarks), 335..435),
];

/// Whether it says what is broken, and not only that a world does not come to rest.
#[allow(clippy::ptr_arg, reason = "what an iterator of them asks")]
fn tells(broken: &String) -> bool {
    !broken.starts_with("T8")
}

#[test]
fn each_safeguard_that_is_taken_away_is_missed() {
    ground::quiet(true);
    let mut unnoticed = Vec::new();
    for (safeguard, about, seeds) in CANARIES {
        let _without = failpoint::without(*safeguard);
        let _unsampled = about.map(|_| failpoint::without(Safeguard::SampleAtOpen));
        let begun = Instant::now();
        let noticed = seeds.clone().take_while(|_| begun.elapsed() < TIME_MAX).find_map(|seed| {
            let broken = world::run(seed, *about, Access::Directly, false).broken;
            broken.into_iter().find(tells).map(|what| (seed, what))
        });
        match noticed {
            Some((seed, what)) => println!("{safeguard:?}: world {seed} after {:?}: {what}", begun.elapsed()),
            None => unnoticed.push(safeguard),
        }
    }
    ground::quiet(false);
    assert!(unnoticed.is_empty(), "taken away, and no world noticed: {unnoticed:?}");
}

/// Looks for worlds that notice: SIMULATE_WITHOUT=Barrier (or nothing, for each safeguard in turn), and as many worlds
/// from SIMULATE_FIRST_SEED on as SIMULATE_WORLDS says.
#[test]
#[ignore = "finds the seeds of the canaries anew when worlds have changed"]
fn seeds_of_worlds_that_miss_a_safeguard() {
    let wanted = std::env::var("SIMULATE_WITHOUT").unwrap_or_default();
    let (worlds, first) = super::wanted_worlds();
    ground::quiet(true);
    for (safeguard, about, _) in CANARIES.iter().filter(|(safeguard, ..)| format!("{safeguard:?}").contains(&wanted)) {
        let _without = failpoint::without(*safeguard);
        let _unsampled = about.map(|_| failpoint::without(Safeguard::SampleAtOpen));
        let noticed = (first..first + worlds).filter_map(|seed| {
            let begun = Instant::now();
            let what = world::run(seed, *about, Access::Directly, false).broken.into_iter().find(tells)?;
            Some((seed, begun.elapsed(), what))
        });
        // A few to choose the fastest from.
        for (seed, took, what) in noticed.take(4) {
            println!("{safeguard:?}: world {seed} after {took:?}: {}", what.get(..100).unwrap_or(&what));
        }
    }
    ground::quiet(false);
}

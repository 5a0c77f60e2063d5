//! Safeguards that are taken away one by one: some world must notice each, or it guards nothing that is proven.

use std::time::{Duration, Instant};

use super::ground;
use super::world::{self, Shape};
use crate::failpoint::{self, Safeguard};

/// The most that finding out may take.
const TIME_MAX: Duration = Duration::from_secs(5);

const COOLING: Option<Shape> = Some(Shape::Cooling);

/// Which safeguard, in worlds of what shape, and the seeds of the worlds that are asked: they begin where one was found that notices. What is
/// missing here (the other rules of cooling) is shown by the tests of `volume::heat`.
const CANARIES: &[(Safeguard, Option<Shape>, std::ops::Range<u64>)] = &[
    (Safeguard::RangeLock, None, 2..100),
    (Safeguard::GapFreePrefix, None, 1616..1700),
    (Safeguard::Barrier, None, 5..100),
    (Safeguard::Fence, None, 0..100),
    (Safeguard::ScanBelowLog, None, 0..100),
    (Safeguard::ScanHoldsRange, None, 119..200),
    (Safeguard::DistrustAfterLoss, None, 5..100),
    (Safeguard::StaleAnswers, None, 192..260),
    (Safeguard::DistrustAfterFailedFlush, None, 147..240),
    (Safeguard::ForgottenCaches, None, 0..100),
    (Safeguard::FlushForwarded, None, 0..100),
    (Safeguard::OverflowEndsLogging, None, 0..100),
    (Safeguard::HotBeforeWrite, None, 130..230),
    (Safeguard::CoolAfterFlush, COOLING, 1440..1500),
    (Safeguard::CoolAfterSync, COOLING, 0..100),
    (Safeguard::CoolAfterReadBack, COOLING, 0..100),
    (Safeguard::CoolAfterPublish, COOLING, 0..100),
    (Safeguard::DivergedWhenCooled, COOLING, 0..100),
    (Safeguard::Foretold, COOLING, 0..100),
];

#[test]
fn each_safeguard_that_is_taken_away_is_missed() {
    ground::quiet(true);
    let mut unnoticed = Vec::new();
    for (safeguard, shape, seeds) in CANARIES {
        let _without = failpoint::without(*safeguard);
        let begun = Instant::now();
        let noticed = seeds.clone().take_while(|_| begun.elapsed() < TIME_MAX).find_map(|seed| {
            let broken = world::run_shaped(seed, *shape, false).broken;
            broken.into_iter().next().map(|what| (seed, what))
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
    for (safeguard, shape, _) in CANARIES.iter().filter(|(safeguard, ..)| format!("{safeguard:?}").contains(&wanted)) {
        let _without = failpoint::without(*safeguard);
        for seed in first..first + worlds {
            let begun = Instant::now();
            if let Some(what) = world::run_shaped(seed, *shape, false).broken.first() {
                println!(
                    "{safeguard:?}: world {seed} after {:?}: {}",
                    begun.elapsed(),
                    what.get(..120).unwrap_or(what)
                );
            }
        }
    }
    ground::quiet(false);
}

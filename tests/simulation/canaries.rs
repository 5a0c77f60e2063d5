//! Safeguards that are taken away one by one: some world must notice each, or it guards nothing that is proven.

use std::time::{Duration, Instant};

use super::{ground, world};
use crate::failpoint::{self, Safeguard};

/// The most that finding out may take.
const TIME_MAX: Duration = Duration::from_secs(5);

/// Which safeguard, and the seeds of the worlds that are asked: they begin where one was found that notices. What is
/// missing here (the other rules of cooling) is shown by the tests of `volume::heat`.
const CANARIES: &[(Safeguard, std::ops::Range<u64>)] = &[
    (Safeguard::RangeLock, 2..100),
    (Safeguard::GapFreePrefix, 1616..1700),
    (Safeguard::Barrier, 5..100),
    (Safeguard::Fence, 0..100),
    (Safeguard::ScanBelowLog, 0..100),
    (Safeguard::ScanHoldsRange, 119..200),
    (Safeguard::DistrustAfterLoss, 5..100),
    (Safeguard::StaleAnswers, 192..260),
    (Safeguard::DistrustAfterFailedFlush, 147..240),
    (Safeguard::ForgottenCaches, 0..100),
    (Safeguard::FlushForwarded, 0..100),
    (Safeguard::OverflowEndsLogging, 0..100),
    (Safeguard::HotBeforeWrite, 130..230),
    (Safeguard::CoolAfterFlush, 1440..1500),
];

#[test]
fn each_safeguard_that_is_taken_away_is_missed() {
    ground::quiet(true);
    let mut unnoticed = Vec::new();
    for (safeguard, seeds) in CANARIES {
        let _without = failpoint::without(*safeguard);
        let begun = Instant::now();
        let noticed = seeds.clone().take_while(|_| begun.elapsed() < TIME_MAX).find_map(|seed| {
            let broken = world::run(seed, false).broken;
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

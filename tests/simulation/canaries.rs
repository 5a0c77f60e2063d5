//! Safeguards that are taken away one by one: some world must notice each, or it guards nothing that is proven.

use std::time::{Duration, Instant};

use super::{ground, world};
use crate::failpoint::{self, Safeguard};

/// The most that finding out may take.
const TIME_MAX: Duration = Duration::from_secs(45);

/// Which safeguard, and the seeds of the worlds that are asked: they begin where one was found that notices.
const CANARIES: &[(Safeguard, std::ops::Range<u64>)] = &[
    (Safeguard::RangeLock, 0..700),
    (Safeguard::GapFreePrefix, 0..700),
    (Safeguard::Barrier, 0..700),
    (Safeguard::Fence, 0..700),
    (Safeguard::ScanBelowLog, 0..700),
    (Safeguard::ScanHoldsRange, 0..700),
    (Safeguard::DistrustAfterLoss, 0..700),
    (Safeguard::StaleAnswers, 0..700),
    (Safeguard::DistrustAfterFailedFlush, 0..700),
    (Safeguard::ForgottenCaches, 0..700),
    (Safeguard::FlushForwarded, 0..700),
    (Safeguard::OverflowEndsLogging, 0..700),
    (Safeguard::HotBeforeWrite, 0..700),
    (Safeguard::CoolAfterFlush, 0..700),
    (Safeguard::CoolAfterSync, 0..700),
    (Safeguard::CoolAfterReadBack, 0..700),
    (Safeguard::CoolAfterPublish, 0..700),
    (Safeguard::DivergedWhenCooled, 0..700),
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

//! Simulated worlds: the real volume, log, publisher, scanner, chain and resolver over simulated devices, in virtual
//! time. A seed decides everything, so that a world that breaks a promise can be lived through again, call by call.
//!
//! ```text
//!  clients ──► Volume ──► store       volatile cache, subsets and tearing, EIO, ENOSPC, loss of the connection, crashes
//!                │  ├───► log device  the same, and hanging, full
//!                │  └───► marks       the same
//!                └─publisher──► bucket  errors, lost answers, late puts, silence
//!  oracle: reads the chain as anyone could, and knows what the store was after every operation
//! ```
//!
//! In some worlds the arrow from clients to volume is a session of iSCSI, both sides of it ours, whose connections break.
//!
//! A gateway is killed at any time, while it starts as well, and power may fail then.
//!
//! `tests/simulate` runs as many worlds as wanted, and replays one. What is not simulated: the kernel, sockets, more
//! than one volume, a store that grows, real time.

mod boot;
mod bucket;
mod canaries;
mod clients;
mod ground;
mod image;
mod log_device;
mod marks_device;
mod medium;
mod oracle;
mod pages;
mod restored;
mod session;
mod store;
mod world;

use std::time::Instant;

use clients::Access;
use world::Trouble;

/// Worlds of each of the four tests below that run side by side.
const WORLDS: u64 = 350;

/// Lives through these worlds, and through those that break a promise again, with words.
fn hold(seeds: impl Iterator<Item = u64>, about: Option<Trouble>, access: Access) -> (u64, usize, Vec<u64>) {
    let (mut worlds, mut points, mut failing) = (0, 0, Vec::new());
    for seed in seeds {
        let outcome = world::run(seed, about, access, false);
        worlds += 1;
        points += outcome.points;
        if !outcome.broken.is_empty() {
            if failing.is_empty() {
                show(seed, about, access, 400);
            } else {
                println!("world {seed}: {}", outcome.broken.join("; "));
            }
            failing.push(seed);
        }
    }
    (worlds, points, failing)
}

/// Tells a world's last calls before it broke a promise, and which; true if it broke none.
fn show(seed: u64, about: Option<Trouble>, access: Access, calls: usize) -> bool {
    let outcome = world::run(seed, about, access, true);
    let before = outcome.tail.len().saturating_sub(calls);
    let told = if outcome.broken.is_empty() { &[] } else { &outcome.tail[before..] };
    told.iter().for_each(|call| println!("{call}"));
    println!("world {seed}: {} calls, trace {:016x}", outcome.calls, outcome.hash);
    outcome.broken.iter().for_each(|broken| println!("  {broken}"));
    if !outcome.broken.is_empty() {
        let about = about.map_or(String::new(), |trouble| format!("SIMULATE_ABOUT={trouble:?} "));
        let through = if access == Access::ThroughSession { "SIMULATE_THROUGH=iscsi " } else { "" };
        println!("replay it: {about}{through}tests/simulate 1 {seed}");
    }
    outcome.broken.is_empty()
}

fn assert_held(seeds: impl Iterator<Item = u64>, access: Access) {
    let (worlds, points, failing) = hold(seeds, None, access);
    assert!(failing.is_empty(), "worlds {failing:?} of {worlds} break a promise; the first is told above");
    assert!(points > worlds as usize, "{points} points in {worlds} worlds prove little");
}

#[test]
fn a_seed_replays_its_world_call_by_call() {
    let direct = (1_000_000..1_000_012).map(|seed| (seed, Access::Directly));
    for (seed, access) in direct.chain((1_000_000..1_000_006).map(|seed| (seed, Access::ThroughSession))) {
        let (first, second) = (world::run(seed, None, access, true), world::run(seed, None, access, true));
        let differs = first.tail.iter().zip(&second.tail).find(|(first, second)| first != second);
        assert_eq!(differs, None, "world {seed}");
        assert_eq!((first.hash, first.calls), (second.hash, second.calls), "world {seed}");
    }
}

#[test]
fn every_promise_holds_in_the_first_quarter_of_worlds() {
    assert_held(0..WORLDS, Access::Directly);
}

#[test]
fn every_promise_holds_in_the_second_quarter_of_worlds() {
    assert_held(WORLDS..2 * WORLDS, Access::Directly);
}

#[test]
fn every_promise_holds_in_the_third_quarter_of_worlds() {
    assert_held(2 * WORLDS..3 * WORLDS, Access::Directly);
}

#[test]
fn every_promise_holds_in_the_last_quarter_of_worlds() {
    assert_held(3 * WORLDS..4 * WORLDS, Access::Directly);
}

#[test]
fn every_promise_holds_through_sessions_of_iscsi_that_break() {
    assert_held(0..WORLDS, Access::ThroughSession);
}

/// How many worlds, and from which seed on.
fn wanted_worlds() -> (u64, u64) {
    let number = |name: &str, default: u64| {
        std::env::var(name)
            .map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
    };
    (number("SIMULATE_WORLDS", 20), number("SIMULATE_FIRST_SEED", 10_000_000))
}

/// What all worlds are to be about; anything, if nothing is said.
fn wanted_trouble() -> Option<Trouble> {
    let name = std::env::var("SIMULATE_ABOUT").ok()?;
    let found = world::TROUBLES.into_iter().find(|trouble| format!("{trouble:?}") == name);
    Some(found.unwrap_or_else(|| panic!("SIMULATE_ABOUT={name}: one of {:?}", world::TROUBLES)))
}

/// How clients reach the volume in all worlds; directly, if nothing is said.
fn wanted_access() -> Access {
    match std::env::var("SIMULATE_THROUGH").as_deref() {
        Err(_) => Access::Directly,
        Ok("iscsi") => Access::ThroughSession,
        Ok(other) => panic!("SIMULATE_THROUGH={other}: iscsi, or nothing"),
    }
}

/// For `tests/simulate`: as many worlds as it says, from the seed that it says.
#[test]
#[ignore = "as long as wanted; tests/simulate runs it"]
fn every_promise_holds_in_as_many_worlds_as_wanted() {
    let ((worlds, first), about, access) = (wanted_worlds(), wanted_trouble(), wanted_access());
    if worlds == 1 {
        return assert!(show(first, about, access, usize::MAX), "world {first} breaks a promise");
    }
    let begun = Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get() as u64);
    let ran = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || hold((first + thread..first + worlds).step_by(threads as usize), about, access))
            })
            .collect();
        running.into_iter().map(|running| running.join().expect("worlds catch their panics")).collect::<Vec<_>>()
    });
    let lived: u64 = ran.iter().map(|(worlds, ..)| worlds).sum();
    let points: usize = ran.iter().map(|(_, points, _)| points).sum();
    let mut failing: Vec<u64> = ran.into_iter().flat_map(|(.., failing)| failing).collect();
    failing.sort_unstable();
    let seconds = begun.elapsed().as_secs_f64();
    println!("{lived} worlds, {points} points, {:.1} worlds/s on {threads} threads", lived as f64 / seconds);
    assert!(failing.is_empty(), "failing seeds: {failing:?}");
}

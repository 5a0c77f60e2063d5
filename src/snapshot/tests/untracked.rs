//! Marks that cannot be written: clients go on, and whatever they change meanwhile is found.

use std::time::Instant;

use super::*;
use crate::volume::{MARK_MAX, MarksFail};

/// A region that is cold in `tracked`, and stays so in the marks when they can no longer be written.
const UNMARKED: u64 = 10 * REGION;
/// One that nobody changes through the gateway: that it differs is found only where everything is compared.
const UNTOUCHED: Span = Span { start: 15 * REGION, end: 15 * REGION + 512 };

/// A gateway whose marks lie in a file of their own, settled and cold.
async fn tracked() -> (World, SimulatedFile, Gateway) {
    let mut world = World::new(64 * MIB);
    let file = SimulatedFile::default();
    world.marks = Some(file.clone());
    let gateway = world.start().await;
    gateway.volume.write(0, SplitMix64(1).bytes(4096), false).await.unwrap();
    gateway.settled().await;
    durably_cold(&gateway, &file).await;
    (world, file, gateway)
}

/// Until it is dropped, the file hangs: a test that fails must not wait for it.
struct Hang(SimulatedFile);

impl Hang {
    fn of(file: &SimulatedFile) -> Self {
        file.state().hangs = true;
        Self(file.clone())
    }
}

impl Drop for Hang {
    fn drop(&mut self) {
        self.0.state().hangs = false;
    }
}

/// Waits until the marks on the disk say so too.
async fn durably_cold(gateway: &Gateway, file: &SimulatedFile) {
    gateway.until_cold().await;
    let cold = async {
        loop {
            let image = SimulatedFile::new(file.image());
            let found = marks::MarksFile::open(image.io(), VolumeId([9; 16]), gateway.volume.size());
            if found.is_ok_and(|(_, contents)| contents.hot.is_empty()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, cold).await.expect("the marks on the disk stay hot");
}

/// Writes where a mark is needed; `None` if that is not answered in time.
async fn write(gateway: &Gateway, offset: u64, seed: u64) -> Option<Result<(), DiskError>> {
    let write = gateway.volume.write(offset, SplitMix64(seed).bytes(4096), false);
    tokio::time::timeout(2 * MARK_MAX, write).await.ok()
}

async fn past_the_gateway(world: &World) {
    super::compare::past_the_gateway(world, UNTOUCHED).await;
}

/// Counterexample 7.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_client_waits_longer_than_stated_for_marks_that_hang_and_everything_is_compared_when_they_do_not() {
    let (world, file, gateway) = tracked().await;
    let hang = Hang::of(&file);
    let begun = Instant::now();
    assert_eq!(write(&gateway, UNMARKED, 2).await, Some(Ok(())));
    let waited = begun.elapsed();
    assert!(waited < MARK_MAX + Duration::from_millis(500), "a client waited {waited:?}");
    assert_eq!(gateway.volume.state(), State::Untracked);
    let begun = Instant::now();
    for region in 11..15 {
        gateway.volume.write(region * REGION, SplitMix64(region).bytes(4096), false).await.unwrap();
    }
    assert!(begun.elapsed() < MARK_MAX, "each client waits");
    let published = world.newest_point().await.number;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.newest_point().await.number, published, "a point was made while nothing was tracked");
    let newest = world.entries().await.pop().unwrap();
    assert_eq!(newest.kind, EntryKind::Untracked, "the chain was not told");

    past_the_gateway(&world).await;
    drop(hang);
    gateway.settles_current(&world).await;
}

/// Counterexample 7.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn marks_that_fail_cost_no_client_anything_and_are_begun_anew() {
    let (world, file, gateway) = tracked().await;
    file.state().writes_left = Some(0);
    for region in 10..15 {
        gateway.volume.write(region * REGION, SplitMix64(region).bytes(4096), false).await.unwrap();
    }
    gateway.until(State::Untracked).await;
    past_the_gateway(&world).await;
    file.state().writes_left = None;
    gateway.settled().await;
    world.assert_current().await;
    // From here on a crash costs what is hot again, and no more.
    gateway.until_cold().await;
    assert_eq!(write(&gateway, UNMARKED, 3).await, Some(Ok(())));
    let hot = gateway.volume.hot_bytes();
    gateway.die().await;
    let gateway = world.start().await;
    gateway.settled().await;
    world.assert_current().await;
    assert!(gateway.volume.reread() <= hot, "{} bytes were read again, and {hot} were hot", gateway.volume.reread());
    gateway.die().await;
}

/// Counterexample 7.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_cannot_be_marked_fails_where_that_was_chosen_and_nothing_goes_untracked() {
    let (mut world, file, gateway) = tracked().await;
    gateway.leave().await.expect("a clean stop");
    world.settings.marks_fail = MarksFail::Refuse;
    let gateway = world.start().await;
    gateway.settled().await;
    durably_cold(&gateway, &file).await;
    let hang = Hang::of(&file);
    assert_eq!(write(&gateway, UNMARKED, 2).await, Some(Err(DiskError::Refused(Errno::EIO))));
    assert_ne!(gateway.volume.state(), State::Untracked);
    assert!(world.store_bytes().await[UNMARKED as usize..][..4096].iter().all(|&byte| byte == 0), "it was forwarded");
    drop(hang);
    gateway.volume.write(UNMARKED, SplitMix64(3).bytes(4096), false).await.unwrap();
    gateway.settles_current(&world).await;
}

/// What survives to tell the next start that the marks say too little.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Witness {
    Log,
    Chain,
}

/// Changes a region that the marks do not know of, crashes, and starts where only the witness knows that.
async fn crash_while_untracked(witness: Witness) {
    let (mut world, file, gateway) = tracked().await;
    if witness == Witness::Log {
        world.refuse_puts();
    }
    file.state().writes_left = Some(0);
    gateway.volume.write(UNMARKED, SplitMix64(2).bytes(4096), false).await.unwrap();
    gateway.until(State::Untracked).await;
    if witness == Witness::Chain {
        let told = async {
            while world.entries().await.pop().unwrap().kind != EntryKind::Untracked {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, told).await.expect("the chain was not told");
    }
    // Whatever hot regions are logged or not: nothing but the marks could know of this one.
    gateway.volume.write(UNMARKED + REGION, SplitMix64(3).bytes(4096), false).await.unwrap();
    gateway.volume.flush().await.unwrap();
    gateway.die().await;

    // A copy: the dead gateway may not be done with what it was writing.
    world.marks = Some(SimulatedFile::new(file.image()));
    world.bucket.heal();
    if witness == Witness::Chain {
        std::fs::remove_dir_all(world.folder.path().join("log")).unwrap();
    }
    past_the_gateway(&world).await;
    let gateway = world.start().await;
    gateway.settled().await;
    world.until_current().await;
    gateway.die().await;
}

/// Counterexample 7.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_crash_without_marks_and_remote_the_log_says_that_everything_is_to_be_compared() {
    crash_while_untracked(Witness::Log).await;
}

/// Counterexample 7.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_crash_without_marks_and_log_the_chain_says_that_everything_is_to_be_compared() {
    crash_while_untracked(Witness::Chain).await;
}

//! What was written past the gateway is found while clients write, and nothing else.

use std::num::NonZeroU64;

use super::*;
use crate::disk::{Abilities, Extent, Geometry, Identity, Pending};
use crate::snapshot::compare::{Comparer, Doing, Ended, Outcome, Progress, Verdict};
use crate::snapshot::scrub::{Kept, Scrub};

impl Gateway {
    fn comparer(&self) -> Comparer {
        Comparer::new(self.volume.clone(), self.report.clone(), None)
    }

    async fn compare(&self, repair: bool) -> Outcome {
        let (comparer, told) = (self.comparer(), watch::Sender::new(Progress::default()));
        let compared = comparer.compare(repair, &told);
        tokio::time::timeout(PATIENCE, compared).await.expect("a comparison ends").unwrap()
    }
}

/// A world whose store was copied, with data all over it.
async fn copied(world: &World) -> Gateway {
    for megabyte in 0..world.store.geometry().size / MIB {
        let bytes = SplitMix64(megabyte).bytes(MIB as usize);
        world.store.write(megabyte * MIB, bytes, false).await.unwrap();
    }
    let gateway = world.start().await;
    gateway.settled().await;
    gateway
}

/// Changes the store, and the gateway does not know.
pub(super) async fn past_the_gateway(world: &World, span: Span) {
    let changed: Vec<u8> = world.store.inner().read(span.start, span.len() as u32).await.unwrap().to_vec();
    let changed: Bytes = changed.into_iter().map(|byte| byte ^ 0x55).collect();
    world.store.inner().write(span.start, changed, false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_past_the_gateway_is_found_under_load_and_uploaded_again() {
    let world = World::new(SIZE);
    let gateway = copied(&world).await;
    // Clients stay in the first megabytes, ragged and overlapping.
    let volume = gateway.volume.clone();
    let clients = tokio::spawn(async move {
        let mut random = SplitMix64(5);
        for _ in 0..600 {
            let (offset, length) = (random.below(8 * MIB), random.below(64 * KIB) as usize + 1);
            volume.write(offset, random.bytes(length), false).await.unwrap();
        }
    });
    let odd = [Span::at(12 * MIB + 1024, 512), Span::at(15 * MIB - 4096, 8192), Span::new(24 * MIB + 3072, SIZE)];
    for span in odd {
        past_the_gateway(&world, span).await;
    }
    let found = gateway.compare(true).await;
    clients.await.unwrap();
    assert_eq!(found.different.listed(), odd);
    assert_eq!(found.verdict, Verdict::Repaired);
    assert_eq!((found.different.bytes(), found.repaired), (512 + 8192 + 17, 512 + 8192 + 17));
    assert_eq!(found.compared + found.changed, SIZE, "{found:?}");
    gateway.settled().await;
    world.assert_current().await;
    assert_eq!(gateway.compare(false).await.verdict, Verdict::Equal);
    gateway.die().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_clients_do_counts_as_a_difference() {
    let world = World::new(SIZE);
    let gateway = copied(&world).await;
    let volume = gateway.volume.clone();
    let clients = tokio::spawn(async move {
        for round in 0..4 {
            load(&volume, 40 + round, 8, 120).await;
        }
    });
    let mut compared = 0;
    while !clients.is_finished() {
        let found = gateway.compare(true).await;
        assert_eq!((found.verdict, found.different.listed()), (Verdict::Equal, &[][..]));
        compared += 1;
    }
    assert!(compared > 1, "the clients were done before the second comparison");
    clients.await.unwrap();
    gateway.settles_current(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_whose_outcome_is_unknown_is_no_difference() {
    let world = World::new(SIZE);
    let gateway = copied(&world).await;
    let eio = DiskError::Io(Errno::EIO);
    world.store.inject(Fault::halfway(Kind::Write, eio).times(20));
    for at in 0..20 {
        let _ = gateway.volume.write(at * 700 * KIB + 100, SplitMix64(at).bytes(9000), false).await;
        if at % 7 == 0 {
            assert_eq!(gateway.compare(true).await.verdict, Verdict::Equal);
        }
    }
    assert_eq!(gateway.compare(true).await.verdict, Verdict::Equal);
    gateway.settles_current(&world).await;
}

/// Counterexample 15.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_trimmed_compares_with_anything() {
    let mut world = World::new(SIZE);
    let plain = MemoryDisk::new(SIZE).geometry();
    let abilities = Abilities { trim_reads_zero: false, ..plain.abilities };
    world.store = Arc::new(FaultyDisk::new(MemoryDisk::with_geometry(Geometry { abilities, ..plain })));
    let gateway = copied(&world).await;
    let trimmed = Span::at(3 * MIB, 2 * MIB);
    gateway.volume.trim(trimmed.start, trimmed.len(), false).await.unwrap();
    gateway.settled().await;
    past_the_gateway(&world, trimmed).await;
    assert_eq!(gateway.compare(true).await.verdict, Verdict::Equal);
    gateway.die().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_is_counted_apart_and_stays_in_the_copy() {
    let world = World::new(SIZE);
    let gateway = copied(&world).await;
    let bad = Span::at(7 * MIB + 8192, 4096);
    world.store.inject(Fault::instead(Kind::Read, DiskError::Io(Errno::EIO)).at(bad));
    past_the_gateway(&world, Span::at(bad.start - 512, 512)).await;
    let found = gateway.compare(true).await;
    assert_eq!((found.unreadable, found.different.bytes(), found.repaired), (4096, 512, 512));
    assert_eq!(found.compared, SIZE - 4096);
    world.store.heal();
    gateway.settles_current(&world).await;
}

/// Counterexample 8.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_differs_too_much_is_not_taken_for_the_truth() {
    let world = World::new(SIZE);
    let gateway = copied(&world).await;
    let before = world.store_bytes().await;
    for megabyte in 0..10 {
        past_the_gateway(&world, Span::at(megabyte * 2 * MIB, MIB)).await;
    }
    let found = gateway.compare(true).await;
    assert_eq!((found.verdict, found.repaired), (Verdict::TooMuch, 0));
    assert_eq!(found.different.bytes(), 10 * MIB);
    gateway.settled().await;
    let (point, ..) = world.content(world.newest_point().await.as_ref(), None).await;
    assert_same(&point, &before, &[]);
    gateway.die().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_for_no_repair_is_only_told() {
    let world = World::new(SIZE);
    let gateway = copied(&world).await;
    past_the_gateway(&world, Span::at(MIB, 512)).await;
    for _ in 0..2 {
        let found = gateway.compare(false).await;
        assert_eq!((found.verdict, found.different.bytes(), found.repaired), (Verdict::Left, 512, 0));
    }
    gateway.die().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_lost_meanwhile_is_compared_after_its_resync() {
    let world = World::new(SIZE);
    let gateway = copied(&world).await;
    let gate = Gate::new();
    world.store.inject(Fault::hold(Kind::Read, &gate).at(Span::at(20 * MIB, 4096)).once());
    let odd = Span::at(2 * MIB, 4096);
    past_the_gateway(&world, odd).await;
    let (comparer, told) = (gateway.comparer(), watch::Sender::new(Progress::default()));
    let mut seen = told.subscribe();
    let comparing = tokio::spawn(async move { comparer.compare(true, &told).await.unwrap() });
    gate.arrived(1).await;
    assert_eq!(seen.borrow_and_update().doing, Doing::Comparing);
    world.store.come_back();
    while gateway.volume.state() == State::Shadowing {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    gate.open();
    // The window begins anew, when the resync has uploaded what differed.
    let found = tokio::time::timeout(PATIENCE, comparing).await.unwrap().unwrap();
    assert_eq!((found.verdict, found.compared), (Verdict::Equal, SIZE));
    gateway.settles_current(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_client_waits_for_a_remote_that_a_comparison_waits_for() {
    let world = World::new(SIZE);
    let gateway = copied(&world).await;
    world.bucket.every(Call::Get, "", crate::remote::faulty::Fault::BlackHole);
    let reads = world.store.calls(Kind::Read);
    let (comparer, told) = (gateway.comparer(), watch::Sender::new(Progress::default()));
    let comparing = {
        let comparer = comparer.clone();
        tokio::spawn(async move { comparer.compare(true, &told).await })
    };
    while world.store.calls(Kind::Read) == reads {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let all = async {
        for megabyte in 0..24 {
            gateway.volume.write(megabyte * MIB, SplitMix64(1).bytes(MIB as usize), false).await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, all).await.expect("clients waited for the remote");
    tokio::time::timeout(PATIENCE, comparer.stop()).await.expect("a comparison can be stopped");
    assert!(matches!(comparing.await.unwrap(), Err(Ended::Stopping)));
    gateway.die().await;
}

/// A disk that answers its first read of a sector with a bit flipped.
struct LiesOnce {
    inner: MemoryDisk,
    sector: Span,
    told: std::sync::atomic::AtomicBool,
}

impl Disk for LiesOnce {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }
    fn read(&self, offset: u64, length: u32) -> Pending<Bytes> {
        let read = self.inner.read(offset, length);
        let span = Span::at(offset, length.into());
        if !span.contains(self.sector) || self.told.swap(true, std::sync::atomic::Ordering::SeqCst) {
            return read;
        }
        let at = (self.sector.start - offset) as usize;
        Pending::later(async move {
            let mut bytes = read.await?.to_vec();
            bytes[at] ^= 1;
            Ok(bytes.into())
        })
    }
    fn write(&self, offset: u64, data: Bytes, fua: bool) -> Pending<()> {
        self.inner.write(offset, data, fua)
    }
    fn flush(&self) -> Pending<()> {
        self.inner.flush()
    }
    fn trim(&self, offset: u64, length: u64, fua: bool) -> Pending<()> {
        self.inner.trim(offset, length, fua)
    }
    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode, fua: bool) -> Pending<()> {
        self.inner.write_zeroes(offset, length, mode, fua)
    }
    fn cache(&self, offset: u64, length: u64) -> Pending<()> {
        self.inner.cache(offset, length)
    }
    fn extents(&self, offset: u64, length: u64, limit: usize) -> Pending<Vec<Extent>> {
        self.inner.extents(offset, length, limit)
    }
    fn identity(&self) -> Identity {
        self.inner.identity()
    }
}

/// Fault test 15.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_store_returned_wrongly_at_the_first_copy_is_found_by_a_scrub() {
    let mut world = World::new(SIZE);
    let sector = Span::at(5 * MIB + 512, 512);
    let lying = LiesOnce { inner: MemoryDisk::new(SIZE), sector, told: false.into() };
    world.store = Arc::new(FaultyDisk::new(lying));
    let gateway = copied(&world).await;
    let (point, ..) = world.content(world.newest_point().await.as_ref(), None).await;
    assert!(point != world.store_bytes().await, "nothing can tell at the first copy");

    let comparer = gateway.comparer();
    let (kept, mut keeping) = watch::channel(Kept::default());
    let schedule = Scrub {
        period: Duration::from_secs(3600),
        clock: Clock::system(),
        kept: Kept { next: 4 * MIB, begun: Some(1), ..Kept::default() },
        keep: Box::new(move |state| {
            kept.send_replace(state);
        }),
    };
    let scrub = tokio::spawn(schedule.run(comparer.clone()));
    let finished = keeping.wait_for(|kept| kept.finished.is_some());
    let finished = *tokio::time::timeout(PATIENCE, finished).await.expect("a round ends").unwrap();
    assert_eq!((finished.differing, finished.next), (512, SIZE));
    gateway.settled().await;
    world.assert_current().await;
    let status = comparer.scrub_status().unwrap();
    assert_eq!(status.total, SIZE);
    assert!(status.finished.is_some(), "{status:?}");
    comparer.stop().await;
    scrub.await.unwrap();
    gateway.die().await;
}

/// Counterexample 18.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_was_set_back_while_the_gateway_was_down_is_compared_in_full() {
    let world = World::new(SIZE);
    let gateway = copied(&world).await;
    let before = world.store.inner().read(9 * MIB, 8192).await.unwrap();
    gateway.volume.write(9 * MIB, SplitMix64(99).bytes(8192), false).await.unwrap();
    gateway.settled().await;
    let left = gateway.leave().await.expect("a clean stop");
    world.store.inner().write(9 * MIB, before, false).await.unwrap();
    // Nothing but the sample can know: what else is different is far from what was written last.
    past_the_gateway(&world, Span::at(20 * MIB, 512)).await;

    let gateway = world.start_expecting(Some(left.entry)).await;
    gateway.first_point().await;
    gateway.settles_current(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_clients_write_before_the_sample_is_compared_is_no_reason_for_distrust() {
    let world = World::new(SIZE);
    let gateway = copied(&world).await;
    gateway.volume.write(9 * MIB, SplitMix64(99).bytes(MIB as usize), false).await.unwrap();
    gateway.settled().await;
    let left = gateway.leave().await.expect("a clean stop");
    world.bucket.every(Call::Get, "", crate::remote::faulty::Fault::Status(503));
    let gateway = world.start_expecting(Some(left.entry)).await;
    load(&gateway.volume, 7, 4, 100).await;
    world.bucket.heal();
    while gateway.report.points() == 0 {
        assert_eq!(gateway.volume.state(), State::Shadowing);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    gateway.settles_current(&world).await;
}

/// All of it is marked, since clients have changed all of it: nothing is left to tell this store from another by.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_was_rewritten_while_nothing_was_logged_is_not_taken_for_another() {
    for crashes in [false, true] {
        let mut world = World::new(SIZE);
        world.log_size = 128 * MIB;
        copied(&world).await.die().await;
        // Slow enough to be stopped in the middle of a scan.
        world.scan_rate = NonZeroU64::new(4 * MIB);
        let gateway = world.start().await;
        gateway.settled().await;
        world.refuse_puts();
        let mut random = SplitMix64(11);
        let megabytes = SIZE.div_ceil(MIB);
        for at in (0..8 * megabytes).map(|at| at % megabytes * MIB) {
            let span = Span::new(at, (at + MIB).min(SIZE));
            gateway.volume.write(span.start, random.bytes(span.len() as usize), false).await.unwrap();
        }
        gateway.until(State::Overflowed).await;
        world.bucket.heal();
        gateway.until(State::Resyncing).await;
        let left = match crashes {
            true => {
                gateway.die().await;
                None
            }
            false => gateway.leave().await.map(|left| left.entry),
        };
        world.scan_rate = None;
        world.start_expecting(left).await.settles_current(&world).await;
    }
}

//! A remote that fails, goes away or belongs to another costs lag and nothing else.

use super::*;

/// Fault tests 26 and 27.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_remote_that_fails_and_forgets_its_answers_costs_lag_and_nothing_else() {
    let world = World::new(SIZE);
    world.bucket.seeded(17, 4);
    let gateway = world.start().await;
    load(&gateway.volume, 2, 8, 100).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    world.bucket.heal();
    gateway.settles_current(&world).await;
}

/// Counterexample 19.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pack_that_is_said_to_be_there_and_is_not_is_put_again() {
    let world = World::new(SIZE);
    world.bucket.once(Call::Create, "packs/", crate::remote::faulty::Fault::Status(409));
    let gateway = world.start().await;
    gateway.volume.write(0, SplitMix64(1).bytes(4096), false).await.unwrap();
    gateway.settles_current(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_client_waits_for_a_remote_that_goes_away_during_a_first_copy() {
    let world = World::new(64 * MIB);
    for megabyte in 0..64 {
        world.store.write(megabyte * MIB, SplitMix64(megabyte).bytes(MIB as usize), false).await.unwrap();
    }
    let gateway = world.start().await;
    while gateway.volume.scan_front() < 4 * MIB {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    world.bucket.every(Call::Get, "", crate::remote::faulty::Fault::BlackHole);
    world.bucket.every(Call::Create, "", crate::remote::faulty::Fault::BlackHole);
    let all = async {
        for megabyte in 0..64 {
            gateway.volume.write(megabyte * MIB + 4096, SplitMix64(1).bytes(8192), false).await.unwrap();
        }
        gateway.volume.trim(0, 64 * MIB, false).await.unwrap();
        gateway.volume.flush().await.unwrap();
    };
    tokio::time::timeout(Duration::from_secs(10), all).await.expect("clients waited for the remote");
    gateway.die().await;
}

/// Fault test 36.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_gateway_fences_the_first_which_goes_on_serving() {
    let mut world = World::new(SIZE);
    let first = world.start().await;
    first.settled().await;
    world.instance = 2;
    let entry = world.newest_point().await;
    let chain = world.chain().await;
    let opening = Opening {
        instance: InstanceId([2; 16]),
        store: "memory".into(),
        size: SIZE,
        adopt: true,
        take_over: true,
        created: Timestamp(0),
        known: Some(chain.volume()),
    };
    let second =
        crate::chain::ChainWriter::open(&world.remote, &World::name(), opening, Clock::system()).await.unwrap();
    assert!(second.generation() > entry.generation);
    first.volume.write(0, SplitMix64(1).bytes(4096), false).await.unwrap();
    first.until(State::Fenced).await;
    first.volume.write(0, SplitMix64(2).bytes(4096), false).await.unwrap();
    assert_eq!(first.volume.read(0, 4096).await.unwrap(), SplitMix64(2).bytes(4096));
    assert!(first.report.last_error().is_some_and(|error| error.contains("fenced")), "{:?}", first.report.last_error());
    assert_eq!(world.newest_point().await.number, entry.number, "the first published after it was fenced");
    assert_eq!(first.leave().await, None);
}

//! What is counted as the store's time, and what as added by the gateway. Time is virtual: only waiting takes any.

use super::*;
use crate::volume::histogram::{Histogram, SHORTEST};

const DELAY: Duration = Duration::from_millis(100);
/// Upper bounds of the buckets of one delay and of two.
const ONE: Duration = Duration::from_micros(114_688);
const TWO: Duration = Duration::from_micros(229_376);

/// Without a publisher, and with nothing that would flush or cool by itself.
async fn still(mut world: World) -> (World, Gateway) {
    let never = Duration::from_secs(1 << 20);
    world.settings.pace = Pace { look: never, generation: never, beat: never };
    let gateway = world.start().await;
    gateway.publisher.abort();
    (world, gateway)
}

fn counted(histogram: &Histogram) -> Vec<(Duration, u64)> {
    histogram.counts().buckets().map(|(below, count)| (below.unwrap(), count)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_slow_store_is_not_held_against_the_gateway() {
    let (world, gateway) = still(World::new(SIZE)).await;
    let (volume, latencies) = (&gateway.volume, gateway.volume.latencies());
    let data = Bytes::from_static(&[7; 4096]);
    for slow in [false, true] {
        if slow {
            for kind in [Kind::Read, Kind::Write, Kind::Flush, Kind::Trim, Kind::Zeroes] {
                world.store.inject(Fault::delay(kind, DELAY));
            }
        }
        volume.read(0, 4096).await.unwrap();
        volume.write(0, data.clone(), false).await.unwrap();
        volume.flush().await.unwrap();
        volume.trim(0, 4096, false).await.unwrap();
        volume.write_zeroes(4096, 4096, ZeroMode::default(), false).await.unwrap();
    }
    for (latency, times) in
        [(&latencies.reads, 1), (&latencies.writes, 1), (&latencies.flushes, 1), (&latencies.erasures, 2)]
    {
        assert_eq!(counted(&latency.store), [(SHORTEST, times), (ONE, times)]);
        assert_eq!(counted(&latency.added), [(SHORTEST, 2 * times)]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_an_overlapping_change_is_added_by_the_gateway() {
    let (world, gateway) = still(World::new(SIZE)).await;
    let (volume, writes) = (&gateway.volume, &gateway.volume.latencies().writes);
    world.store.inject(Fault::delay(Kind::Write, DELAY));
    let data = Bytes::from_static(&[7; 4096]);
    let first = volume.write(0, data.clone(), false);
    let second = volume.write(0, data.clone(), false);
    let third = volume.write(0, data.clone(), false);
    let beside = volume.write(8192, data, false);
    let (first, second, third, beside) = tokio::join!(first, second, third, beside);
    assert_eq!([first, second, third, beside], [Ok(()); 4]);
    assert_eq!(counted(&writes.store), [(ONE, 4)]);
    assert_eq!(counted(&writes.added), [(SHORTEST, 2), (ONE, 1), (TWO, 1)]);
}

#[tokio::test(start_paused = true)]
async fn what_the_store_fails_is_counted_and_what_never_reaches_it_is_not() {
    let (world, gateway) = still(World::new(SIZE)).await;
    let (volume, writes) = (&gateway.volume, &gateway.volume.latencies().writes);
    world.store.inject(Fault::instead(Kind::Write, DiskError::Io(Errno::EIO)).once());
    let data = Bytes::from_static(&[7; 4096]);
    assert_eq!(volume.write(0, data.clone(), false).await, Err(DiskError::Io(Errno::EIO)));
    assert_eq!(writes.store.counts().total(), 1);
    assert_eq!(volume.write(SIZE, data, false).await, Err(DiskError::Refused(Errno::EINVAL)));
    assert_eq!((writes.store.counts().total(), writes.added.counts().total()), (1, 1));
}

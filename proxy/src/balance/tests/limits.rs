//! Permits: what may be in flight at once.

use proptest::prelude::*;
use tokio::time::Instant;

use super::{EWMA, Outcome, SECOND, World, budget, cluster, plain, rng};
use crate::{
    config::{
        cluster::{Breaker, Limits},
        units::Fraction,
    },
    fault::Fault,
};

fn limited(limits: Limits) -> World {
    let mut config = cluster(EWMA);
    config.limits = limits;
    World::new(config, plain(3))
}

#[tokio::test(start_paused = true)]
async fn rt_04_the_retry_budget_is_a_share_of_what_is_in_flight_waiting_ones_included() {
    let world = limited(Limits {
        retry_budget: budget(20, 3),
        ..Limits::DEFAULT
    });
    let now = Instant::now();
    let requests: Vec<_> = (0..100)
        .map(|_| world.handle.admit(false, now, &mut rng()).expect("room"))
        .collect();
    // Every request wants a retry and holds its permit while it backs off.
    let waiting: Vec<_> = (0..100).filter_map(|_| world.handle.retry(now)).collect();
    assert_eq!(waiting.len(), 20);
    drop(requests);
    assert!(
        world.handle.retry(now).is_none(),
        "those that wait still count"
    );
    drop(waiting);
    let few: Vec<_> = (0..10).filter_map(|_| world.handle.retry(now)).collect();
    assert_eq!(few.len(), 3, "a few are always allowed");
    let stats = world.handle.stats(now);
    assert_eq!((stats.retries, stats.over_retries), (23, 88));
}

#[tokio::test(start_paused = true)]
async fn rt_07_each_limit_has_its_own_fault_and_counter() {
    let world = limited(Limits {
        max_connections: 3,
        max_pending: 2,
        max_requests: 4,
        ..Limits::DEFAULT
    });
    let (handle, now) = (&world.handle, Instant::now());
    let connections: Vec<_> = (0..5).map(|_| handle.connection(false)).collect();
    let pending: Vec<_> = (0..5).map(|_| handle.pending(false)).collect();
    let requests: Vec<_> = (0..5)
        .map(|_| handle.admit(false, now, &mut rng()))
        .collect();
    assert_eq!(connections.iter().filter(|c| c.is_ok()).count(), 3);
    assert_eq!(pending.iter().filter(|p| p.is_ok()).count(), 2);
    assert_eq!(requests.iter().filter(|r| r.is_ok()).count(), 4);
    // Whoever waits asks many times and counts once.
    handle.connections_overflowed();
    assert_eq!(
        connections[4].as_ref().err(),
        Some(&Fault::OverflowConnections)
    );
    assert_eq!(pending[4].as_ref().err(), Some(&Fault::OverflowPending));
    assert_eq!(requests[4].as_ref().err(), Some(&Fault::OverflowRequests));
    let stats = handle.stats(now);
    let over = (
        stats.over_connections,
        stats.over_pending,
        stats.over_requests,
    );
    assert_eq!(over, (1, 3, 1));
    // The other priority has room of its own.
    handle.admit(true, now, &mut rng()).expect("room");
    drop((connections, pending, requests));
    let stats = handle.stats(now);
    let left = (
        stats.active_connections,
        stats.pending,
        stats.active_requests,
    );
    assert_eq!(left, (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_ends_without_a_word_does_not_wedge_half_open() {
    let mut config = cluster(EWMA);
    config.breaker = Some(Breaker {
        failure_rate: 50.0,
        slow_call_rate: 100.0,
        slow_call: SECOND,
        window: 10 * SECOND,
        minimum_calls: 4,
        open_for: 5 * SECOND,
        probes: 1,
        ramp: std::time::Duration::ZERO,
    });
    let world = World::new(config, plain(1));
    let admit = || world.handle.admit(false, Instant::now(), &mut rng());
    for _ in 0..4 {
        let permit = admit().expect("closed");
        permit.finish(Outcome::ServerError, SECOND / 10, Instant::now());
    }
    assert_eq!(admit().err(), Some(Fault::BreakerOpen));
    tokio::time::advance(5 * SECOND).await;
    for _ in 0..10 {
        drop(admit().expect("the probe's place is free again"));
    }
    let probe = admit().expect("a probe");
    assert_eq!(admit().err(), Some(Fault::BreakerOpen), "one at a time");
    probe.finish(Outcome::Success, SECOND / 10, Instant::now());
    admit().expect("closed again");
    assert_eq!(world.handle.stats(Instant::now()).breaker_rejected, 2);
}

#[tokio::test(start_paused = true)]
async fn the_control_plane_can_have_a_share_dropped() {
    let mut members = plain(2);
    members.drops = vec![("half".into(), Fraction::new(50, 100))];
    let mut world = World::new(cluster(EWMA), members);
    let now = Instant::now();
    let mut admit = || world.handle.admit(false, now, &mut world.rng).err();
    let dropped = (0..1000)
        .filter(|_| admit() == Some(Fault::DropOverload))
        .count();
    assert!((450..550).contains(&dropped), "{dropped}");
    assert_eq!(world.handle.stats(now).dropped, dropped as u64);
}

proptest! {
    /// Whatever is taken and given back in whatever order, no counter passes its limit or leaks.
    #[test]
    fn permits_never_pass_their_limit_and_never_leak(
        max in 0_u32..6,
        steps in prop::collection::vec((0_u8..4, any::<bool>(), any::<usize>()), 0..200),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        let _inside = runtime.enter();
        let world = limited(Limits {
            max_connections: max,
            max_pending: max,
            max_requests: max,
            max_retries: max,
            retry_budget: budget(100, max),
        });
        let (handle, now) = (&world.handle, Instant::now());
        let mut held: Vec<Box<dyn std::any::Any>> = Vec::new();
        for (kind, take, which) in steps {
            if take {
                match kind {
                    0 => held.extend(handle.admit(false, now, &mut rng()).ok().map(boxed)),
                    1 => held.extend(handle.connection(false).ok().map(boxed)),
                    2 => held.extend(handle.pending(false).ok().map(boxed)),
                    _ => held.extend(handle.retry(now).map(boxed)),
                }
            } else if !held.is_empty() {
                drop(held.swap_remove(which % held.len()));
            }
            let s = handle.stats(now);
            let all = [s.active_requests, s.active_connections, s.pending, s.retries_now];
            prop_assert!(all.iter().all(|n| *n <= max), "{all:?}");
            prop_assert_eq!(all.iter().sum::<u32>() as usize, held.len());
        }
        drop(held);
        let s = handle.stats(now);
        prop_assert_eq!(
            [s.active_requests, s.active_connections, s.pending, s.retries_now],
            [0; 4]
        );
    }
}

fn boxed<T: 'static>(permit: T) -> Box<dyn std::any::Any> {
    Box::new(permit)
}

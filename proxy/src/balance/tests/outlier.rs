//! Passive ejection.

use std::sync::Arc;

use proptest::prelude::*;
use tokio::time::{Instant, advance};

use super::{EWMA, Outcome, SECOND, World, cluster, endpoint, outlier, place, plain};
use crate::{
    balance::EjectionReason,
    config::cluster::{FailurePercentage, Outlier, SuccessRate},
};

fn world(rules: Outlier, members: u16) -> World {
    let mut config = cluster(EWMA);
    config.outlier = Some(rules);
    World::new(config, plain(members))
}

fn reasons(world: &World) -> Vec<EjectionReason> {
    let counts = world.handle.stats(Instant::now()).ejections_by_reason;
    let all = EjectionReason::ALL.into_iter().zip(counts);
    all.filter(|(_, n)| *n > 0)
        .map(|(reason, _)| reason)
        .collect()
}

#[tokio::test(start_paused = true)]
async fn rt_09_the_limit_on_ejections_is_an_upper_bound() {
    // (members, percent, one at least) -> how many of them are out when all fail
    let table = [
        (3, 75, false, 2),
        (3, 50, false, 1),
        (3, 10, false, 0),
        (3, 10, true, 1),
        (1, 50, false, 0),
        (1, 50, true, 1),
        (4, 100, false, 4),
        (4, 0, false, 0),
    ];
    for (members, percent, one, out) in table {
        let mut world = world(
            Outlier {
                max_ejection_percent: percent,
                always_eject_one: one,
                ..outlier()
            },
            members,
        );
        for n in 1..=members {
            world.answer(n, Outcome::ServerError, 10);
        }
        assert_eq!(world.ejected(), out, "{members} at {percent} %, {one}");
        // Nobody healthy enough is left: health is ignored rather than all refused.
        world.pick();
    }
}

#[tokio::test(start_paused = true)]
async fn an_ejected_endpoint_gets_nothing_until_its_time_is_over() {
    let mut world = world(outlier(), 4);
    world.answer(2, Outcome::ServerError, 4);
    world.answer(2, Outcome::Success, 1);
    world.answer(2, Outcome::ServerError, 4);
    assert_eq!(world.ejected(), 0, "a success ends the streak");
    world.answer(2, Outcome::ServerError, 1);
    assert_eq!(world.spread(1000).get(&2), None);
    advance(30 * SECOND).await;
    // Its failures have faded by then as far as they count for latency.
    advance(300 * SECOND).await;
    assert!(world.spread(1000).contains_key(&2));
}

#[tokio::test(start_paused = true)]
async fn rt_10_an_ejection_outlives_pushes_and_ends_on_time() {
    let mut world = world(outlier(), 4);
    world.answer(2, Outcome::ServerError, 5);
    for round in 0..299 {
        advance(SECOND / 10).await;
        // Now the very same list, now with another weight.
        let mut members: Vec<_> = (1..=4).map(endpoint).collect();
        members[0].weight = 1 + round % 2;
        world.push(super::endpoints(vec![vec![place("", None, members)]]));
        assert_eq!(world.ejected(), 1, "round {round}");
        assert_eq!(world.spread(20).get(&2), None, "round {round}");
    }
    advance(SECOND / 10).await;
    assert_eq!(world.ejected(), 0);

    world.answer(2, Outcome::ServerError, 5);
    world.push(plain(1));
    world.push(plain(4));
    assert_eq!(world.ejected(), 0, "an address that returns is new");
}

#[tokio::test(start_paused = true)]
async fn rt_10_an_ejection_noticed_through_an_old_handle_holds_for_the_new_one() {
    let mut world = world(outlier(), 2);
    let old = Arc::clone(&world.handle);
    world.push(plain(3));
    let new = std::mem::replace(&mut world.handle, old);
    world.answer(2, Outcome::ServerError, 5);
    world.handle = new;
    assert_eq!(world.spread(200).get(&2), None);
}

#[tokio::test(start_paused = true)]
async fn rt_10_ejections_grow_longer_and_forgive() {
    let mut world = world(outlier(), 4);
    let lengths = |world: &World| {
        let all = world.handle.endpoints(Instant::now());
        all[1].ejected_for.expect("ejected").as_secs()
    };
    for times in 1..=3 {
        world.answer(2, Outcome::ServerError, 5);
        assert_eq!(lengths(&world), 30 * times);
        advance(300 * SECOND).await;
    }
    for _ in 0..3 {
        world.handle.sweep(Instant::now());
    }
    world.answer(2, Outcome::ServerError, 5);
    assert_eq!(lengths(&world), 30);
}

#[tokio::test(start_paused = true)]
async fn local_failures_count_apart_when_asked_to() {
    let split = Outlier {
        split_local: true,
        consecutive_5xx: Some(3),
        ..outlier()
    };
    let mut world = world(split, 4);
    world.answer(1, Outcome::ConnectFailed, 4);
    world.answer(1, Outcome::ServerError, 1);
    world.answer(1, Outcome::ConnectFailed, 4);
    assert_eq!(world.ejected(), 0, "an answer ends a local streak");
    world.answer(1, Outcome::Timeout, 1);
    assert_eq!(reasons(&world), [EjectionReason::ConsecutiveLocal]);

    let mut config = cluster(EWMA);
    config.outlier = Some(outlier());
    let mut world = World::new(config, plain(4));
    world.answer(1, Outcome::ConnectFailed, 5);
    assert_eq!(reasons(&world), [EjectionReason::Consecutive5xx]);
}

#[tokio::test(start_paused = true)]
async fn gateway_failures_have_a_streak_of_their_own() {
    let rules = Outlier {
        consecutive_gateway: Some(3),
        ..outlier()
    };
    let mut world = world(rules, 4);
    world.answer(1, Outcome::GatewayError, 2);
    world.answer(1, Outcome::ServerError, 1);
    world.answer(1, Outcome::GatewayError, 1);
    assert_eq!(world.ejected(), 0);
    world.answer(2, Outcome::GatewayError, 3);
    assert_eq!(reasons(&world), [EjectionReason::ConsecutiveGateway]);
    world.answer(3, Outcome::Neutral, 100);
    assert_eq!(world.ejected(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_one_far_below_the_mean_is_swept_out() {
    let rules = Outlier {
        consecutive_5xx: None,
        success_rate: Some(SuccessRate {
            minimum_hosts: 5,
            request_volume: 100,
            stdev_factor: 1.9,
        }),
        ..outlier()
    };
    let mut world = world(rules, 6);
    for n in 1..=6 {
        // The last one has too little to go by, bad as it is.
        let (good, bad) =
            [(98, 2), (97, 3), (99, 1), (98, 2), (60, 40), (0, 50)][usize::from(n) - 1];
        world.answer(n, Outcome::Success, good);
        world.answer(n, Outcome::ServerError, bad);
    }
    world.handle.sweep(Instant::now());
    assert_eq!(reasons(&world), [EjectionReason::SuccessRate]);
    assert_eq!(world.ejected(), 1);
    assert_eq!(world.spread(300).get(&5), None);
    // What was judged once is not judged again.
    advance(31 * SECOND).await;
    world.handle.sweep(Instant::now());
    assert_eq!(world.ejected(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_share_of_failures_is_enough_where_asked_for() {
    let rules = Outlier {
        consecutive_5xx: None,
        failure_percentage: Some(FailurePercentage {
            threshold: 85,
            minimum_hosts: 3,
            request_volume: 50,
        }),
        ..outlier()
    };
    let mut world = world(rules, 3);
    world.answer(1, Outcome::Success, 50);
    for (n, bad) in [(2, 85), (3, 84)] {
        world.answer(n, Outcome::ServerError, bad);
        world.answer(n, Outcome::Success, 100 - bad);
    }
    world.handle.sweep(Instant::now());
    assert_eq!(reasons(&world), [EjectionReason::FailurePercentage]);
    assert_eq!(world.spread(300).get(&2), None);
}

proptest! {
    /// Whoever fails in whatever order while time passes: never more out than allowed.
    #[test]
    fn no_more_are_ejected_than_allowed(
        members in 1_u16..8,
        percent in 0_u32..=100,
        steps in prop::collection::vec((1_u16..8, 0_u64..40, any::<bool>()), 0..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        runtime.block_on(async move {
            let rules = Outlier { max_ejection_percent: percent, ..outlier() };
            let mut world = world(rules, members);
            let allowed = usize::from(members) * percent as usize / 100;
            for (who, seconds, swept) in steps {
                world.answer((who - 1) % members + 1, Outcome::ServerError, 5);
                if swept {
                    world.handle.sweep(Instant::now());
                }
                prop_assert!(world.ejected() <= allowed);
                advance(std::time::Duration::from_secs(seconds)).await;
            }
            Ok(())
        })?;
    }
}

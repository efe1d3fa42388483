//! Members that come and go, aggregates.

use std::{collections::BTreeSet, sync::Arc};

use rand::{RngExt, seq::SliceRandom};
use tokio::time::Instant;

use super::{Clusters, EWMA, PickCx, World, at, cluster, endpoint, endpoints, place, plain, rng};
use crate::{
    config::{Snapshot, cluster::Discovery, endpoint::HealthStatus},
    fault::Fault,
};

#[tokio::test(start_paused = true)]
async fn lb_03_after_any_pushes_exactly_the_last_members_are_there() {
    let mut world = World::new(cluster(EWMA), plain(100));
    let mut order: Vec<u16> = (1..=100).collect();
    let mut gone = Vec::new();
    for _ in 0..1000 {
        order.shuffle(&mut world.rng);
        let n = world.rng.random_range(1..=order.len());
        let wanted: BTreeSet<_> = order[..n].iter().map(|n| at(*n)).collect();
        gone.extend(world.handle.members.iter().flatten().cloned());
        let members = order[..n].iter().map(|n| endpoint(*n)).collect();
        world.push(endpoints(vec![vec![place("", None, members)]]));
        let views = world.handle.endpoints(Instant::now());
        let there: BTreeSet<_> = views.iter().map(|view| view.address).collect();
        assert_eq!(there, wanted);
        let current = |id| world.handle.members.iter().flatten().any(|m| m.id == id);
        for member in gone.drain(..) {
            assert_eq!(member.is_removed(), !current(member.id));
        }
    }
    world.push(plain(1));
    assert_eq!(
        world.spread(100).into_iter().collect::<Vec<_>>(),
        [(1, 100)]
    );
}

#[tokio::test(start_paused = true)]
async fn a_push_that_changes_nothing_keeps_the_handle_and_one_that_does_keeps_what_was_learned() {
    let mut clusters = Clusters::new(Instant::now());
    let mut snapshot = Snapshot::default();
    let config = Arc::new(cluster(EWMA));
    snapshot
        .endpoints
        .insert(config.name.clone(), Arc::new(plain(2)));
    snapshot
        .clusters
        .insert(config.name.clone(), Arc::clone(&config));
    let first = clusters.update(Arc::new(snapshot.clone()), Instant::now());
    let second = clusters.update(Arc::new(snapshot.clone()), Instant::now());
    let of = |live: &super::super::Live| Arc::clone(&live.clusters[&config.name]);
    assert!(Arc::ptr_eq(&of(&first), &of(&second)));

    let _permit = of(&first)
        .admit(false, Instant::now(), &mut rng())
        .expect("room");
    snapshot
        .endpoints
        .insert(config.name.clone(), Arc::new(plain(3)));
    let third = clusters.update(Arc::new(snapshot), Instant::now());
    assert_eq!(of(&third).stats(Instant::now()).active_requests, 1);
    let ids = |live| {
        of(live)
            .members
            .iter()
            .flatten()
            .map(|m| m.id)
            .collect::<Vec<_>>()
    };
    assert_eq!(ids(&third)[..2], ids(&first)[..]);
}

#[tokio::test(start_paused = true)]
async fn draining_and_unhealthy_members_get_nothing() {
    let mut members: Vec<_> = (1..=6).map(endpoint).collect();
    members[0].health = HealthStatus::Draining;
    members[1].health = HealthStatus::Unhealthy;
    let mut world = World::new(
        cluster(EWMA),
        endpoints(vec![vec![place("", None, members.clone())]]),
    );
    let spread = world.spread(1000);
    assert_eq!(spread.keys().copied().collect::<Vec<_>>(), [3, 4, 5, 6]);

    // In panic the unhealthy one is better than nothing; the draining one never is.
    for member in &mut members[1..] {
        member.health = HealthStatus::Unhealthy;
    }
    world.push(endpoints(vec![vec![place("", None, members)]]));
    let spread = world.spread(1000);
    assert_eq!(spread.keys().copied().collect::<Vec<_>>(), [2, 3, 4, 5, 6]);
}

#[tokio::test(start_paused = true)]
async fn an_aggregate_is_its_first_part_with_somebody_to_ask() {
    let mut clusters = Clusters::new(Instant::now());
    let mut snapshot = Snapshot::default();
    let mut add = |name: &str, discovery: Discovery, members: Option<(u16, HealthStatus)>| {
        let mut config = cluster(EWMA);
        config.name = name.to_owned().into();
        config.discovery = discovery;
        config.panic_threshold = 0;
        if let Some((n, health)) = members {
            let mut one = endpoint(n);
            one.health = health;
            let all = endpoints(vec![vec![place("", None, vec![one])]]);
            snapshot
                .endpoints
                .insert(config.name.clone(), Arc::new(all));
        }
        snapshot
            .clusters
            .insert(config.name.clone(), Arc::new(config));
    };
    let names = |all: &[&str]| {
        let all = all.iter().map(|name| (*name).to_owned().into());
        Discovery::Aggregate(all.collect())
    };
    let eds = || Discovery::Eds("x".into());
    add("empty", eds(), None);
    add("sick", eds(), Some((1, HealthStatus::Unhealthy)));
    add("good", eds(), Some((2, HealthStatus::Healthy)));
    add("inner", names(&["sick", "outer", "good"]), None);
    add("outer", names(&["empty", "inner", "missing"]), None);
    add("hopeless", names(&["empty", "sick"]), None);
    let live = clusters.update(Arc::new(snapshot), Instant::now());
    let get = |name: &str| &live.clusters[name];
    let cx = PickCx {
        hash: None,
        tried: &[],
        original_dst: None,
        now: Instant::now(),
    };
    let resolved = get("outer").resolve(cx.now);
    assert!(Arc::ptr_eq(&resolved, get("good")));
    let picked = get("outer").pick(&cx, &mut rng()).expect("an endpoint");
    assert_eq!(picked.endpoint.config.address, at(2));
    let none = get("hopeless").pick(&cx, &mut rng()).err();
    assert_eq!(none, Some(Fault::NoEndpoints));
}

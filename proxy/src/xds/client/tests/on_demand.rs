//! Destinations on demand, and what is kept of them over a restart.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_destination_is_known_only_when_everything_it_needs_is_published() {
    let mut rig = Rig::named(&[]);
    let mut first = rig.ask("10.0.0.1:80");
    let mut second = rig.ask("10.0.0.1:80");
    assert_eq!(rig.subscribed(Kind::Listener), ["outbound/10.0.0.1:80"]);
    let listener = tcp_listener("10.0.0.1:80", "c");
    rig.send(
        Kind::Listener,
        &[("outbound/10.0.0.1:80", "1", listener)],
        &[],
    );
    rig.send(Kind::Cluster, &[("c", "1", eds_cluster("c"))], &[]);
    assert!(first.try_recv().is_err(), "its endpoints are missing");
    rig.send(
        Kind::Endpoints,
        &[("c", "1", endpoints("c", &["10.1.0.1:1"]))],
        &[],
    );
    assert!(matches!(first.try_recv(), Ok(Demanded::Known(_))));
    assert!(matches!(second.try_recv(), Ok(Demanded::Known(_))));
    let address = "10.0.0.1:80".parse().expect("an address");
    assert!(
        rig.published
            .lock()
            .expect("not poisoned")
            .last()
            .is_some_and(|snapshot| { snapshot.by_destination.contains_key(&address) })
    );
    assert!(matches!(rig.demand.peek(address), Some(Demanded::Known(_))));
    assert!(rig.asked.try_recv().is_err(), "peeking asks nobody");
}

#[tokio::test(start_paused = true)]
async fn an_absent_destination_is_remembered_and_heard_of_when_it_appears() {
    let mut rig = Rig::named(&[]);
    let mut heard = rig.ask("10.0.0.1:80");
    rig.requests();
    rig.send(Kind::Listener, &[], &["outbound/10.0.0.1:80"]);
    assert!(matches!(heard.try_recv(), Ok(Demanded::Absent)));
    let address = "10.0.0.1:80".parse().expect("an address");
    assert!(matches!(rig.demand.peek(address), Some(Demanded::Absent)));
    rig.serve("10.0.0.1:80", "c");
    assert!(matches!(rig.demand.peek(address), Some(Demanded::Known(_))));
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_server_that_is_away_or_for_a_refused_resource() {
    let mut rig = Rig::named(&[]);
    let mut waits = rig.ask("10.0.0.1:80");
    rig.client.unreachable();
    assert!(matches!(waits.try_recv(), Ok(Demanded::Unavailable)));
    assert!(matches!(
        rig.ask("10.0.0.2:80").try_recv(),
        Ok(Demanded::Unavailable)
    ));
    rig.client.connected(Instant::now());
    let names = rig.subscribed(Kind::Listener);
    assert_eq!(
        names,
        ["outbound/10.0.0.1:80", "outbound/10.0.0.2:80"],
        "asked for all the same"
    );
    let mut refused = rig.ask("10.0.0.1:80");
    let bad = Bytes::from_static(b"\xff\xff");
    rig.send(Kind::Listener, &[("outbound/10.0.0.1:80", "1", bad)], &[]);
    assert!(matches!(refused.try_recv(), Ok(Demanded::Unavailable)));
}

#[tokio::test(start_paused = true)]
async fn a_destination_given_in_advance_is_taken_and_kept_like_one_that_was_asked_for() {
    let mut rig = Rig::named(&["in"]);
    rig.requests();
    rig.serve("10.0.0.1:80", "c");
    let address = "10.0.0.1:80".parse().expect("an address");
    assert!(matches!(rig.demand.peek(address), Some(Demanded::Known(_))));
    assert!(
        rig.subscribed(Kind::Listener)
            .contains(&"outbound/10.0.0.1:80".to_owned())
    );
    // Other unasked resources are not.
    rig.send(
        Kind::Listener,
        &[("stranger", "1", tcp_listener("10.0.0.2:80", "c"))],
        &[],
    );
    assert!(!rig.snapshot().listeners.contains_key("stranger"));
}

#[tokio::test(start_paused = true)]
async fn an_unused_destination_is_let_go_with_everything_it_needed() {
    let mut rig = Rig::named(&[]);
    let heard = rig.ask("10.0.0.1:80");
    rig.requests();
    rig.serve("10.0.0.1:80", "c");
    let guard = heard.await.expect("known");
    for _ in 0..20 {
        tokio::time::advance(IDLE / 16).await;
        rig.client.timer(Instant::now());
    }
    assert_eq!(rig.snapshot().clusters.len(), 1, "a connection uses it");
    drop(guard);
    for _ in 0..20 {
        tokio::time::advance(IDLE / 16).await;
        rig.client.timer(Instant::now());
    }
    assert!(rig.snapshot().clusters.is_empty() && rig.snapshot().listeners.is_empty());
    assert_eq!(rig.client.deadline(), None, "at rest");
}

#[tokio::test(start_paused = true)]
async fn what_was_saved_is_served_again_and_confirmed_by_version() {
    let mut rig = Rig::named(&["in"]);
    rig.send(
        Kind::Listener,
        &[("in", "7", rds_listener("in", "10.0.0.5:80", "r"))],
        &[],
    );
    rig.send(Kind::Route, &[("r", "1", routes("r", "c"))], &[]);
    rig.serve("10.0.0.1:80", "c");
    drop(rig.ask("10.0.0.2:80"));
    rig.send(Kind::Listener, &[], &["outbound/10.0.0.2:80"]);
    let saved = rig.client.save();
    let mut next = Rig::new(
        Variant::Delta,
        &Subscription::Named(BTreeSet::from(["in".into()])),
    );
    next.client.restore(saved);
    assert!(next.stats.from_disk.load(Ordering::Relaxed));
    let snapshot = next.snapshot();
    assert_eq!((snapshot.listeners.len(), snapshot.clusters.len()), (2, 1));
    let address = "10.0.0.1:80".parse().expect("an address");
    assert!(matches!(
        next.demand.peek(address),
        Some(Demanded::Known(_))
    ));
    let outside = "10.0.0.2:80".parse().expect("an address");
    assert!(matches!(next.demand.peek(outside), Some(Demanded::Absent)));
    next.client.connected(Instant::now());
    let first = next
        .requests()
        .into_iter()
        .find(|r| r.kind == Kind::Listener);
    let Some(Body::Delta {
        initial_versions, ..
    }) = first.map(|r| r.body)
    else {
        panic!("a request for listeners");
    };
    assert!(initial_versions.contains(&("in".into(), "7".into())));
}

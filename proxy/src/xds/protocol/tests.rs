//! Tests of the module above.

use super::*;

fn names(of: &[&str]) -> BTreeSet<Name> {
    of.iter().map(|&name| name.into()).collect()
}

fn nothing(_: Kind) -> Vec<(Name, Name)> {
    Vec::new()
}

fn delta(request: &Request) -> (Vec<&str>, Vec<&str>, usize) {
    let Body::Delta {
        subscribe,
        unsubscribe,
        initial_versions,
    } = &request.body
    else {
        panic!("not a delta request");
    };
    (
        subscribe.iter().map(|n| &**n).collect(),
        unsubscribe.iter().map(|n| &**n).collect(),
        initial_versions.len(),
    )
}

fn sotw(request: &Request) -> (&str, Vec<&str>) {
    let Body::Sotw { version, names } = &request.body else {
        panic!("not a state-of-the-world request");
    };
    (version, names.iter().map(|n| &**n).collect())
}

fn started(variant: Variant) -> (Protocol, Instant) {
    let now = Instant::now();
    let mut protocol = Protocol::new(variant);
    protocol.connected(now);
    (protocol, now)
}

#[tokio::test(start_paused = true)]
async fn the_first_request_alone_carries_the_node_and_clusters_go_first() {
    let (mut protocol, now) = started(Variant::Delta);
    protocol.want(Kind::Listener, names(&["in", "out"]));
    protocol.want_all(Kind::Cluster);
    let first = protocol.poll(now, &nothing).expect("clusters");
    assert_eq!((first.kind, first.with_node), (Kind::Cluster, true));
    assert_eq!(delta(&first), (vec![], vec![], 0), "empty is everything");
    let second = protocol.poll(now, &nothing).expect("listeners");
    assert_eq!((second.kind, second.with_node), (Kind::Listener, false));
    assert_eq!(delta(&second).0, ["in", "out"]);
    assert_eq!(protocol.poll(now, &nothing), None);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_without_a_stream() {
    let mut protocol = Protocol::new(Variant::Delta);
    protocol.want(Kind::Listener, names(&["in"]));
    assert_eq!(protocol.poll(Instant::now(), &nothing), None);
}

#[tokio::test(start_paused = true)]
async fn an_acknowledgement_never_changes_a_subscription() {
    let (mut protocol, now) = started(Variant::Delta);
    protocol.want(Kind::Endpoints, names(&["a"]));
    protocol.poll(now, &nothing).expect("first");
    assert!(protocol.received(Kind::Endpoints, "n1"));
    protocol.accept(Kind::Endpoints, "");
    protocol.want(Kind::Endpoints, names(&["b"]));
    let ack = protocol.poll(now, &nothing).expect("ack");
    assert_eq!((ack.nonce.as_str(), ack.error.as_deref()), ("n1", None));
    assert_eq!(delta(&ack), (vec![], vec![], 0));
    let change = protocol.poll(now, &nothing).expect("change");
    assert_eq!(change.nonce, "");
    assert_eq!(delta(&change), (vec!["b"], vec!["a"], 0));
    assert!(!protocol.received(Kind::Endpoints, "n2"), "not the first");
    protocol.reject(Kind::Endpoints, "bad".into());
    let nack = protocol.poll(now, &nothing).expect("nack");
    assert_eq!(
        (nack.nonce.as_str(), nack.error.as_deref()),
        ("n2", Some("bad"))
    );
}

#[tokio::test(start_paused = true)]
async fn a_name_dropped_and_wanted_again_is_asked_for_anew() {
    let (mut protocol, now) = started(Variant::Delta);
    protocol.want(Kind::Route, names(&["r"]));
    protocol.poll(now, &nothing).expect("first");
    protocol.heard_of(Kind::Route, "r");
    assert_eq!(protocol.want(Kind::Route, names(&[])).dropped, ["r".into()]);
    protocol.want(Kind::Route, names(&["r"]));
    let again = protocol.poll(now, &nothing).expect("asked anew");
    assert_eq!(delta(&again), (vec!["r"], vec![], 0));
    assert!(protocol.deadline().is_some(), "and waited for anew");
    assert_eq!(protocol.poll(now, &nothing), None);

    let (mut protocol, now) = started(Variant::Sotw);
    protocol.want(Kind::Route, names(&["q", "r"]));
    protocol.poll(now, &nothing).expect("first");
    protocol.want(Kind::Route, names(&["q"]));
    protocol.want(Kind::Route, names(&["q", "r"]));
    let without = protocol.poll(now, &nothing).expect("without it");
    assert_eq!(sotw(&without).1, ["q"]);
    let with = protocol.poll(now, &nothing).expect("with it");
    assert_eq!(sotw(&with).1, ["q", "r"]);
    assert_eq!(protocol.poll(now, &nothing), None);
}

#[tokio::test(start_paused = true)]
async fn xd_04_a_new_stream_begins_with_all_names_and_versions_and_no_old_nonce() {
    let (mut protocol, now) = started(Variant::Delta);
    protocol.want(Kind::Listener, names(&["a", "b"]));
    protocol.poll(now, &nothing).expect("first");
    protocol.received(Kind::Listener, "old-nonce");
    protocol.accept(Kind::Listener, "v1");
    protocol.disconnected();
    protocol.connected(now);
    let held = |kind| match kind {
        Kind::Listener => vec![("a".into(), "7".into())],
        Kind::Cluster | Kind::Endpoints | Kind::Route | Kind::Secret => Vec::new(),
    };
    let again = protocol.poll(now, &held).expect("again");
    assert!(again.with_node);
    assert_eq!(again.nonce, "");
    assert_eq!(delta(&again), (vec!["a", "b"], vec![], 1));
    assert_eq!(protocol.poll(now, &held), None, "no stale acknowledgement");
    assert_eq!(protocol.overdue(now + NOT_THERE_AFTER).len(), 1, "only b");
}

#[tokio::test(start_paused = true)]
async fn xd_04_state_of_the_world_sends_the_last_version_only_when_all_is_held() {
    let (mut protocol, now) = started(Variant::Sotw);
    protocol.want(Kind::Endpoints, names(&["a", "b"]));
    protocol.poll(now, &nothing).expect("first");
    protocol.received(Kind::Endpoints, "n");
    protocol.accept(Kind::Endpoints, "v3");
    let ack = protocol.poll(now, &nothing).expect("ack");
    assert_eq!(
        (sotw(&ack), ack.nonce.as_str()),
        (("v3", vec!["a", "b"]), "n")
    );
    protocol.connected(now);
    let one = |_| vec![(Name::from("a"), Name::from("v3"))];
    assert_eq!(sotw(&protocol.poll(now, &one).expect("again")).0, "");
    protocol.connected(now);
    let both = |_| vec![("a".into(), "v3".into()), ("b".into(), "v3".into())];
    assert_eq!(sotw(&protocol.poll(now, &both).expect("again")).0, "v3");
}

#[tokio::test(start_paused = true)]
async fn a_rejection_keeps_the_last_good_version() {
    let (mut protocol, now) = started(Variant::Sotw);
    protocol.want_all(Kind::Cluster);
    protocol.poll(now, &nothing).expect("first");
    protocol.received(Kind::Cluster, "1");
    protocol.accept(Kind::Cluster, "good");
    protocol.poll(now, &nothing).expect("ack");
    protocol.received(Kind::Cluster, "2");
    protocol.reject(Kind::Cluster, "cluster \"x\": why".into());
    let nack = protocol.poll(now, &nothing).expect("nack");
    assert_eq!(sotw(&nack).0, "good");
    assert_eq!(nack.nonce, "2");
    assert!(nack.error.is_some());
}

#[tokio::test(start_paused = true)]
async fn everything_is_asked_for_by_a_star_once_names_were_used() {
    for variant in [Variant::Delta, Variant::Sotw] {
        let (mut protocol, now) = started(variant);
        protocol.want(Kind::Listener, names(&["a"]));
        protocol.poll(now, &nothing).expect("first");
        protocol.want_all(Kind::Listener);
        protocol.want(Kind::Listener, names(&[]));
        let next = protocol.poll(now, &nothing).expect("star");
        match variant {
            Variant::Delta => assert_eq!(delta(&next), (vec!["*"], vec!["a"], 0)),
            Variant::Sotw => assert_eq!(sotw(&next).1, ["*"]),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn names_nobody_answers_for_are_given_up_after_fifteen_seconds_of_stream() {
    let (mut protocol, now) = started(Variant::Delta);
    protocol.want(Kind::Cluster, names(&["a", "b"]));
    assert!(!protocol.owed(), "not sent yet");
    protocol.poll(now, &nothing).expect("first");
    assert!(protocol.owed());
    protocol.heard_of(Kind::Cluster, "a");
    assert_eq!(protocol.deadline(), Some(now + NOT_THERE_AFTER));
    assert!(protocol.overdue(now + Duration::from_secs(14)).is_empty());
    let late = protocol.overdue(now + NOT_THERE_AFTER);
    assert_eq!(late, [(Kind::Cluster, "b".into())]);
    assert!(!protocol.owed());
    protocol.disconnected();
    assert_eq!(protocol.deadline(), None, "no stream, no clock");
}

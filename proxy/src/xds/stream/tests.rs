//! The stream against a scripted server, under a paused clock.

mod server;

use std::{collections::BTreeSet, sync::Mutex, time::SystemTime};

use bytes::Bytes;
use outrigger_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryResponse, Resource,
};
use prost_types::Any;
use rand::SeedableRng;

use self::server::{Connector, DeltaSession, Door, Server, server};
use super::*;
use crate::{
    config::Snapshot,
    xds::{
        Kind,
        demand::Demanded,
        testing::{eds_cluster, endpoints, resource, tcp_listener},
    },
};

struct Rig {
    connector: Connector,
    server: Server,
    handles: Handles,
    published: Arc<Mutex<Vec<Arc<Snapshot>>>>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

fn settings(variant: Variant) -> Settings {
    Settings {
        node: NodeInfo {
            id: "sidecar~10.0.0.9~web.shop~shop.svc.outrigger.local".to_owned(),
            on_demand: true,
            ..NodeInfo::default()
        },
        variant,
        subscription: match variant {
            Variant::Delta => Subscription::Named(BTreeSet::from(["in".into()])),
            Variant::Sotw => Subscription::Everything,
        },
        idle: IDLE,
        state_dir: None,
    }
}

fn start(settings: Settings, doors: Vec<Door>) -> Rig {
    let (connector, server) = server(doors);
    let published = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&published);
    let publish: Publish = Arc::new(move |snapshot| {
        sink.lock().expect("not poisoned").push(snapshot);
    });
    let clock: WallClock = Arc::new(|| SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000));
    let (xds, handles) = Xds::new(settings, publish, &clock);
    let stop = CancellationToken::new();
    let task = tokio::spawn(xds.run(connector.clone(), StdRng::seed_from_u64(7), stop.clone()));
    Rig {
        connector,
        server,
        handles,
        published,
        stop,
        task,
    }
}

impl Rig {
    async fn session(&mut self) -> DeltaSession {
        let next = tokio::time::timeout(Duration::from_secs(600), self.server.delta.recv());
        next.await
            .expect("a stream in time")
            .expect("the client runs")
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        let all = self.published.lock().expect("not poisoned");
        all.last().cloned().unwrap_or_default()
    }

    /// Waits until the newest snapshot is as wanted.
    async fn until(&self, wanted: impl Fn(&Snapshot) -> bool) {
        for _ in 0..10_000 {
            if wanted(&self.snapshot()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never: {:?}", self.snapshot());
    }
}

fn delta(
    kind: Kind,
    nonce: &str,
    all: &[(&str, &str, Bytes)],
    removed: &[&str],
) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: kind.type_url().to_owned(),
        nonce: nonce.to_owned(),
        resources: all
            .iter()
            .map(|(name, version, raw)| Resource {
                name: (*name).to_owned(),
                version: (*version).to_owned(),
                resource: Some(any(kind, raw)),
                ..Resource::default()
            })
            .collect(),
        removed_resources: removed.iter().map(|&name| name.to_owned()).collect(),
        ..DeltaDiscoveryResponse::default()
    }
}

fn any(kind: Kind, raw: &Bytes) -> Any {
    Any {
        type_url: kind.type_url().to_owned(),
        value: raw.to_vec(),
    }
}

fn listener() -> Bytes {
    resource(
        Kind::Listener,
        "
name: in
address: { socket_address: { address: 0.0.0.0, port_value: 15006 } }
use_original_dst: true
traffic_direction: INBOUND
",
    )
}

/// The next request of a type that is no reply.
async fn asks(session: &mut DeltaSession, kind: Kind) -> DeltaDiscoveryRequest {
    loop {
        let request = session.request().await;
        if request.type_url == kind.type_url() && request.response_nonce.is_empty() {
            return request;
        }
    }
}

/// The reply to a nonce.
async fn reply(session: &mut DeltaSession, nonce: &str) -> DeltaDiscoveryRequest {
    loop {
        let request = session.request().await;
        if request.response_nonce == nonce {
            return request;
        }
    }
}

/// Gives the client its one listener.
async fn greet(session: &mut DeltaSession) {
    asks(session, Kind::Listener).await;
    let all = [("in", "1", listener())];
    session
        .answer(delta(Kind::Listener, "hello", &all, &[]))
        .await;
    assert_eq!(reply(session, "hello").await.error_detail, None);
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_published_before_it_is_acknowledged() {
    let mut rig = start(settings(Variant::Delta), vec![Door::Open]);
    let mut session = rig.session().await;
    let first = asks(&mut session, Kind::Listener).await;
    assert_eq!(first.resource_names_subscribe, ["in"]);
    let node = first.node.expect("who we are");
    assert!(node.id.starts_with("sidecar~10.0.0.9~"));
    assert!(
        node.metadata
            .expect("metadata")
            .fields
            .contains_key("OUTRIGGER_ON_DEMAND")
    );
    let all = [("in", "1", listener())];
    session.answer(delta(Kind::Listener, "n", &all, &[])).await;
    let ack = reply(&mut session, "n").await;
    assert_eq!((ack.error_detail, ack.node), (None, None));
    assert!(rig.snapshot().listeners.contains_key("in"));
    assert!(rig.handles.stats.connected.load(Ordering::Relaxed));
}

#[tokio::test(start_paused = true)]
async fn a_destination_is_subscribed_when_it_is_asked_for() {
    let mut rig = start(settings(Variant::Delta), vec![Door::Open]);
    let mut session = rig.session().await;
    greet(&mut session).await;
    let demand = rig.handles.demand.clone();
    let address = "10.0.0.1:80".parse().expect("an address");
    let asked = tokio::spawn(async move { demand.destination(address).await });
    let name = "outbound/10.0.0.1:80";
    assert_eq!(
        asks(&mut session, Kind::Listener)
            .await
            .resource_names_subscribe,
        [name]
    );
    let all = [(name, "1", tcp_listener("10.0.0.1:80", "c"))];
    session.answer(delta(Kind::Listener, "1", &all, &[])).await;
    assert_eq!(
        asks(&mut session, Kind::Cluster)
            .await
            .resource_names_subscribe,
        ["c"]
    );
    let all = [("c", "1", eds_cluster("c"))];
    session.answer(delta(Kind::Cluster, "2", &all, &[])).await;
    assert_eq!(
        asks(&mut session, Kind::Endpoints)
            .await
            .resource_names_subscribe,
        ["c"]
    );
    let all = [("c", "1", endpoints("c", &["10.1.0.1:80"]))];
    session.answer(delta(Kind::Endpoints, "3", &all, &[])).await;
    assert!(matches!(asked.await.expect("no panic"), Demanded::Known(_)));
    assert!(rig.snapshot().by_destination.contains_key(&address));
    assert_eq!(rig.handles.stats.destinations.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_refused_resource_is_named_in_the_nack_and_taken_once_it_is_mended() {
    let mut rig = start(settings(Variant::Delta), vec![Door::Open]);
    let mut session = rig.session().await;
    asks(&mut session, Kind::Listener).await;
    let bad = resource(
        Kind::Listener,
        "{name: in, use_original_dst: true, address: {socket_address: {address: nowhere, \
         port_value: 1}}}",
    );
    session
        .answer(delta(Kind::Listener, "1", &[("in", "1", bad)], &[]))
        .await;
    let error = reply(&mut session, "1").await.error_detail.expect("a NACK");
    assert_eq!(
        error.message,
        "listener \"in\": address.socket_address.address: \"nowhere\" is no IP address"
    );
    let view = rig.handles.view.resources(Kind::Listener);
    assert_eq!(
        view.first().map(|one| one.status),
        Some(crate::xds::Status::Nacked)
    );
    session
        .answer(delta(Kind::Listener, "2", &[("in", "2", listener())], &[]))
        .await;
    assert_eq!(reply(&mut session, "2").await.error_detail, None);
    let view = rig.handles.view.resources(Kind::Listener);
    assert_eq!(
        view.first().map(|one| one.status),
        Some(crate::xds::Status::Acked)
    );
    assert!(rig.snapshot().listeners.contains_key("in"));
}

#[tokio::test(start_paused = true)]
async fn xd_04_a_lost_stream_is_resumed_with_what_is_held_and_nothing_is_dropped_meanwhile() {
    let mut rig = start(settings(Variant::Delta), vec![Door::Open]);
    let mut session = rig.session().await;
    greet(&mut session).await;
    drop(session);
    let mut session = rig.session().await;
    assert!(rig.snapshot().listeners.contains_key("in"));
    let first = asks(&mut session, Kind::Listener).await;
    assert!(first.node.is_some());
    assert_eq!(first.resource_names_subscribe, ["in"]);
    assert_eq!(
        first
            .initial_resource_versions
            .get("in")
            .map(String::as_str),
        Some("1")
    );
    // Removed while away: it goes, after the grace that an empty server is given.
    let begun = Instant::now();
    session
        .answer(delta(Kind::Listener, "1", &[], &["in"]))
        .await;
    reply(&mut session, "1").await;
    assert!(rig.snapshot().listeners.contains_key("in"));
    rig.until(|snapshot| snapshot.listeners.is_empty()).await;
    assert!(begun.elapsed() >= crate::xds::GRACE - Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn lb_02_a_server_that_never_answers_is_left_for_the_next() {
    let mut rig = start(settings(Variant::Delta), vec![Door::Frozen, Door::Open]);
    let begun = Instant::now();
    let mut session = rig.session().await;
    greet(&mut session).await;
    assert!(
        begun.elapsed() < FIRST_ANSWER + Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(rig.handles.stats.failures.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn lb_02_a_stream_that_falls_silent_is_found_by_ping_and_replaced() {
    let mut rig = start(settings(Variant::Delta), vec![Door::Open]);
    let mut session = rig.session().await;
    greet(&mut session).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    let before = rig.snapshot();
    rig.connector.freeze();
    let begun = Instant::now();
    let mut next = rig.session().await;
    assert!(
        begun.elapsed() < PING.0 + PING.1 + Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
    asks(&mut next, Kind::Listener).await;
    assert!(Arc::ptr_eq(&before, &rig.snapshot()));
}

#[tokio::test(start_paused = true)]
async fn a_server_with_nothing_new_to_say_is_not_taken_for_dead() {
    let mut rig = start(settings(Variant::Delta), vec![Door::Open]);
    let mut session = rig.session().await;
    greet(&mut session).await;
    drop(session);
    let mut session = rig.session().await;
    asks(&mut session, Kind::Listener).await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(rig.handles.stats.streams.load(Ordering::Relaxed), 2);
    assert!(rig.snapshot().listeners.contains_key("in"));
}

#[tokio::test(start_paused = true)]
async fn xd_05_attempts_back_off_until_an_answer_comes() {
    let rig = start(settings(Variant::Delta), vec![Door::Refuse]);
    tokio::time::sleep(Duration::from_secs(600)).await;
    let attempts = rig.connector.attempts.load(Ordering::Relaxed);
    // Full jitter up to 30 s: about 40 in ten minutes, and by far not one a second.
    assert!((25..90).contains(&attempts), "{attempts}");
    assert!(!rig.handles.stats.connected.load(Ordering::Relaxed));
}

#[tokio::test(start_paused = true)]
async fn xd_05_a_stream_without_an_answer_does_not_reset_the_back_off() {
    let mut rig = start(settings(Variant::Delta), vec![Door::Open]);
    let begun = Instant::now();
    let mut streams = 0_u32;
    while begun.elapsed() < Duration::from_secs(600) {
        drop(rig.session().await);
        streams += 1;
    }
    assert!((25..90).contains(&streams), "{streams}");
}

#[tokio::test(start_paused = true)]
async fn callers_are_told_at_once_when_no_server_can_be_reached() {
    let rig = start(settings(Variant::Delta), vec![Door::Refuse]);
    let address = "10.0.0.1:80".parse().expect("an address");
    let begun = Instant::now();
    let demand = rig.handles.demand.clone();
    assert!(matches!(
        demand.destination(address).await,
        Demanded::Unavailable
    ));
    assert!(matches!(
        demand.destination(address).await,
        Demanded::Unavailable
    ));
    assert!(begun.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn xd_08_an_answer_far_above_four_mebibytes_is_taken() {
    let mut rig = start(settings(Variant::Delta), vec![Door::Open]);
    let mut session = rig.session().await;
    asks(&mut session, Kind::Listener).await;
    let padding = "x".repeat(8 << 20);
    let yaml = format!(
        "{{name: in, stat_prefix: {padding}, address: {{socket_address: {{address: 0.0.0.0, \
         port_value: 1}}}}, use_original_dst: true}}"
    );
    let large = resource(Kind::Listener, &yaml);
    session
        .answer(delta(Kind::Listener, "1", &[("in", "1", large)], &[]))
        .await;
    assert_eq!(reply(&mut session, "1").await.error_detail, None);
    assert!(rig.snapshot().listeners.contains_key("in"));
}

#[tokio::test(start_paused = true)]
async fn xd_08_bytes_that_are_no_resource_are_refused_and_the_stream_lives() {
    let mut rig = start(settings(Variant::Delta), vec![Door::Open]);
    let mut session = rig.session().await;
    asks(&mut session, Kind::Listener).await;
    // A length of 4 GiB, and messages within messages without end.
    let long = Bytes::from_static(b"\x0a\xff\xff\xff\xff\x0f");
    let deep = Bytes::from(vec![0x12; 1 << 16]);
    for (nonce, bad) in [("1", long), ("2", deep)] {
        session
            .answer(delta(Kind::Listener, nonce, &[("in", nonce, bad)], &[]))
            .await;
        assert!(reply(&mut session, nonce).await.error_detail.is_some());
    }
    session
        .answer(delta(Kind::Listener, "3", &[("in", "3", listener())], &[]))
        .await;
    assert_eq!(reply(&mut session, "3").await.error_detail, None);
    assert_eq!(rig.handles.stats.streams.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_received_is_served_by_the_next_run_without_a_server() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut first = settings(Variant::Delta);
    first.state_dir = Some(dir.path().to_owned());
    let mut rig = start(first.clone(), vec![Door::Open]);
    let mut session = rig.session().await;
    greet(&mut session).await;
    rig.stop.cancel();
    rig.task.await.expect("no panic");
    let next = start(first, vec![Door::Refuse]);
    assert!(
        next.snapshot().listeners.contains_key("in"),
        "published before any stream"
    );
    assert!(next.handles.stats.from_disk.load(Ordering::Relaxed));
    let received = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    assert_eq!(next.handles.stats.last_update(), Some(received));
}

#[tokio::test(start_paused = true)]
async fn a_state_of_the_world_server_is_spoken_to_as_well() {
    let mut rig = start(settings(Variant::Sotw), vec![Door::Open]);
    let mut session = rig.server.sotw.recv().await.expect("a stream");
    let first = session.request().await;
    assert_eq!(first.type_url, Kind::Cluster.type_url());
    assert!(first.resource_names.is_empty(), "everything");
    session
        .answer(DiscoveryResponse {
            version_info: "v1".to_owned(),
            type_url: Kind::Listener.type_url().to_owned(),
            nonce: "1".to_owned(),
            resources: vec![any(Kind::Listener, &listener())],
            ..DiscoveryResponse::default()
        })
        .await;
    let ack = loop {
        let request = session.request().await;
        if request.response_nonce == "1" {
            break request;
        }
    };
    assert_eq!((ack.version_info.as_str(), ack.error_detail), ("v1", None));
    assert!(rig.snapshot().listeners.contains_key("in"));
    assert!(
        rig.handles
            .demand
            .peek("1.2.3.4:5".parse().expect("an address"))
            .is_some()
    );
}

//! Resources whose life depends on others or on time: secrets, TTLs, aggregates, wrapped ones.

use super::*;
use crate::{config::tls::SecretRef, xds::testing::resource};

fn secret(pem: &str) -> Bytes {
    let yaml =
        format!("{{name: roots, validation_context: {{trusted_ca: {{inline_string: {pem}}}}}}}");
    resource(Kind::Secret, &yaml)
}

fn secured(timeout: &str) -> Bytes {
    let yaml = format!(
        "{{name: c, type: STATIC, connect_timeout: {timeout}, transport_socket: {{name: tls, \
         typed_config: {{'@type': \
         type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, \
         common_tls_context: {{validation_context_sds_secret_config: {{name: roots}}}}}}}}}}"
    );
    resource(Kind::Cluster, &yaml)
}

fn roots(snapshot: &Snapshot) -> String {
    let tls = snapshot.clusters["c"].tls.default.as_ref().expect("TLS");
    let SecretRef::Inline(secret) = &tls.roots else {
        panic!("{:?}", tls.roots);
    };
    String::from_utf8_lossy(&secret.trusted_ca).into_owned()
}

#[tokio::test(start_paused = true)]
async fn tl_02_a_cluster_waits_for_its_secret_and_follows_its_rotation() {
    let mut rig = Rig::everything(Variant::Delta);
    rig.send(Kind::Cluster, &[("c", "1", secured("1s"))], &[]);
    assert_eq!(rig.subscribed(Kind::Secret), ["roots"]);
    assert!(rig.snapshot().clusters.is_empty());
    rig.send(Kind::Secret, &[("roots", "1", secret("old"))], &[]);
    let before = rig.snapshot();
    assert_eq!(roots(&before), "old");
    rig.send(Kind::Secret, &[("roots", "2", secret("both"))], &[]);
    let after = rig.snapshot();
    assert_eq!(roots(&after), "both");
    assert!(!Arc::ptr_eq(&before.clusters["c"], &after.clusters["c"]));
    // A bad one leaves the last good one in use.
    rig.send(
        Kind::Secret,
        &[("roots", "3", Bytes::from_static(b"\x0a\x05roots"))],
        &[],
    );
    assert!(rig.reply(Kind::Secret).is_some());
    assert!(Arc::ptr_eq(&after, &rig.snapshot()));
    // An equal cluster is the very one of before, secret and all.
    rig.send(Kind::Cluster, &[("c", "2", secured("1s"))], &[]);
    assert!(Arc::ptr_eq(&after, &rig.snapshot()));
    assert!(
        rig.client.save().iter().all(|one| one.kind != Kind::Secret),
        "no keys on disk"
    );
}

#[tokio::test(start_paused = true)]
async fn a_resource_with_a_time_to_live_goes_when_its_heartbeat_stops() {
    let mut rig = Rig::everything(Variant::Delta);
    let ttl = Some(Duration::from_secs(10));
    let beat = |rig: &mut Rig, body: Option<Bytes>| {
        let received = Received {
            name: "c".to_owned(),
            version: "1".to_owned(),
            ttl,
            body: body.map(|raw| (Kind::Cluster.type_url().to_owned(), raw)),
        };
        let answer = Answer {
            kind: Kind::Cluster,
            nonce: "n".to_owned(),
            version: String::new(),
            resources: vec![received],
            removed: Vec::new(),
            errors: Vec::new(),
        };
        rig.client.answer(answer, Instant::now());
    };
    beat(
        &mut rig,
        Some(resource(Kind::Cluster, "{name: c, type: STATIC}")),
    );
    for _ in 0..5 {
        tokio::time::advance(Duration::from_secs(8)).await;
        rig.client.timer(Instant::now());
        assert!(rig.snapshot().clusters.contains_key("c"));
        beat(&mut rig, None);
    }
    assert_eq!(
        rig.client.deadline(),
        Some(Instant::now() + Duration::from_secs(10))
    );
    tokio::time::advance(Duration::from_secs(10)).await;
    rig.client.timer(Instant::now());
    assert!(rig.snapshot().clusters.is_empty());
    assert_eq!(rig.client.deadline(), None);
}

#[tokio::test(start_paused = true)]
async fn an_aggregate_subscribes_its_members_and_their_members() {
    let mut rig = Rig::named(&["in"]);
    let aggregate = |name: &str, members: &str| {
        let yaml = format!(
            "{{name: {name}, cluster_type: {{name: envoy.clusters.aggregate, typed_config: \
             {{'@type': type.googleapis.com/envoy.extensions.clusters.aggregate.v3.ClusterConfig, \
             clusters: [{members}]}}}}}}"
        );
        resource(Kind::Cluster, &yaml)
    };
    rig.send(
        Kind::Listener,
        &[("in", "1", rds_listener("in", "10.0.0.1:80", "r"))],
        &[],
    );
    rig.send(Kind::Route, &[("r", "1", routes("r", "a"))], &[]);
    rig.send(Kind::Cluster, &[("a", "1", aggregate("a", "b, x"))], &[]);
    // A ring is followed once around.
    rig.send(Kind::Cluster, &[("b", "1", aggregate("b", "a, c"))], &["x"]);
    let mut names = rig.subscribed(Kind::Cluster);
    names.sort();
    assert_eq!(names, ["a", "b", "c", "x"]);
    assert!(rig.snapshot().listeners.is_empty(), "c is on its way");
    rig.send(
        Kind::Cluster,
        &[("c", "1", resource(Kind::Cluster, "{name: c, type: STATIC}"))],
        &[],
    );
    assert!(rig.snapshot().listeners.contains_key("in"));
}

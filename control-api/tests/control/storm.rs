//! Many proxies at once.

use std::time::Duration;

use futures_util::future::join_all;
use outrigger_control::clock::Clock;
use outrigger_proto::{outrigger::control::v1 as pb, type_url};
use tokio::time::Instant;

use crate::common::{Ads, Svid, api, apply, certificate, channel, control_plane, token};

const PROXIES: usize = 200;
const SERVICES: usize = 50;

/// Services `s0` to `s49` with three endpoints each.
fn services(port: u16) -> String {
    let one = |i: usize| {
        format!(
            "apiVersion: outrigger.dev/v1\nkind: Service\nmetadata: {{name: s{i}, namespace: \
             n}}\nspec: {{ports: [{{port: 80, targetPort: {port}}}], addresses: [10.96.0.{i}], \
             endpoints: [{{address: 10.1.{i}.1}}, {{address: 10.1.{i}.2}}, {{address: \
             10.1.{i}.3}}]}}\n"
        )
    };
    (0..SERVICES).map(one).collect::<Vec<_>>().join("---\n")
}

/// Connects and takes what twenty destinations need.
async fn join(
    running: &outrigger_control::app::Running,
    root: &std::path::Path,
    svid: &Svid,
) -> Ads {
    let known = channel(running, root, Some(svid)).await.unwrap();
    let mut ads = Ads::open(known).await.unwrap();
    let clusters: Vec<_> = (0..20)
        .map(|i| format!("outbound|80||s{i}.n.svc"))
        .collect();
    let clusters: Vec<_> = clusters.iter().map(String::as_str).collect();
    let listeners: Vec<_> = (0..20)
        .map(|i| format!("outbound/10.96.0.{i}:80"))
        .collect();
    let listeners: Vec<_> = listeners.iter().map(String::as_str).collect();
    for (kind, names) in [
        (type_url::LISTENER, &listeners),
        (type_url::CLUSTER, &clusters),
        (type_url::CLUSTER_LOAD_ASSIGNMENT, &clusters),
    ] {
        ads.subscribe(kind, names).await;
        let answer = ads.next().await;
        assert_eq!(answer.resources.len(), 20);
        ads.answer(&answer, None).await;
    }
    ads
}

/// 200 proxies come at once, as after an outage, and a change of every service then reaches all of
/// them. The goal is 1,000 in 60 s on two cores; a fifth of them has a fifth of the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn xd_05_proxies_come_back_all_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let running = control_plane(dir.path(), Clock::system()).await;
    let root = dir.path().join("ca/root.pem");
    apply(&running, &services(8080)).await.unwrap();
    let join_token = token(&running, "shop", "cart").await;
    let anonymous = channel(&running, &root, None).await.unwrap();
    let (_, svid) = certificate(anonymous, &join_token).await.unwrap();

    let begin = Instant::now();
    let streams = join_all((0..PROXIES).map(|_| join(&running, &root, &svid))).await;
    let joined = begin.elapsed();

    let begin = Instant::now();
    let applied = apply(&running, &services(9090)).await.unwrap();
    let take = streams.into_iter().map(async |mut ads| {
        // Endpoints and nothing else: the port of the endpoints is all that changed.
        let answer = ads.next().await;
        assert_eq!(answer.type_url, type_url::CLUSTER_LOAD_ASSIGNMENT);
        assert_eq!(answer.resources.len(), 20);
        ads.answer(&answer, None).await;
        ads
    });
    let streams = join_all(take).await;
    let wait = pb::WaitRevisionRequest {
        revision: applied.revision,
        timeout: None,
    };
    let waited = api(&running)
        .wait_revision(wait)
        .await
        .unwrap()
        .into_inner();
    assert_eq!((waited.proxies, waited.acked), (200, 200));
    let live = begin.elapsed();
    println!("{PROXIES} proxies joined in {joined:?}; a change of everything live in {live:?}");
    assert!(joined < Duration::from_secs(12), "{joined:?}");
    assert!(live < Duration::from_secs(5), "{live:?}");
    drop(streams);
    running.stop().await;
}

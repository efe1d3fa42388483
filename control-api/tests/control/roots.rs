//! Replacing the root while proxies are connected.

use std::{fs, path::Path, time::Duration};

use outrigger_control::{app::Running, clock::Clock};
use outrigger_proto::{
    outrigger::identity::v1::{
        WatchTrustBundleRequest, certificate_service_client::CertificateServiceClient,
    },
    type_url,
};
use tokio::time::timeout;

use crate::{
    api::run,
    common::{Ads, PATIENCE, Svid, apply, certificate, channel, control_plane, token},
};

fn roots_in(pem: &str) -> usize {
    pem.matches("BEGIN CERTIFICATE").count()
}

#[tokio::test]
async fn a_new_root_comes_to_all_and_no_stream_is_broken() {
    let dir = tempfile::tempdir().unwrap();
    let running = control_plane(dir.path(), Clock::system()).await;
    let root = dir.path().join("ca/root.pem");
    // As a proxy has it that was started before.
    let old = dir.path().join("old.pem");
    fs::copy(&root, &old).unwrap();
    let join = token(&running, "shop", "cart").await;
    let anonymous = channel(&running, &old, None).await.unwrap();
    let (answer, svid) = certificate(anonymous.clone(), &join).await.unwrap();
    assert_eq!(roots_in(&answer.trust_bundle_pem), 1);
    let known = channel(&running, &old, Some(&svid)).await.unwrap();
    let mut ads = Ads::open(known).await.unwrap();
    ads.subscribe(type_url::LISTENER, &["inbound"]).await;
    let first = ads.next().await;
    ads.answer(&first, None).await;

    let mut watching = CertificateServiceClient::new(anonymous);
    let bundles = watching
        .watch_trust_bundle(WatchTrustBundleRequest {})
        .await;
    let mut bundles = bundles.unwrap().into_inner();
    let mut next = async || {
        let message = timeout(PATIENCE * 3, bundles.message()).await.unwrap();
        message.unwrap().unwrap().trust_bundle_pem
    };
    assert_eq!(
        next().await,
        answer.trust_bundle_pem,
        "what there is comes first"
    );

    let (result, table) = run(&running, &["ca", "rotate", "--overlap", "1s"]).await;
    result.unwrap();
    let lines: Vec<Vec<_>> = table
        .lines()
        .map(|l| l.split_whitespace().collect())
        .collect();
    assert_eq!(lines[0], ["FINGERPRINT", "STATE", "EXPIRES", "IN", "NEXT"]);
    assert_eq!((lines[1][1], lines[2][1]), ("active", "next"));
    // In a moment, or any moment on a slow machine.
    assert!(table.contains("signs "), "{table}");
    let both = next().await;
    assert_eq!(roots_in(&both), 2);
    assert_eq!(fs::read_to_string(&root).unwrap(), both);
    let (refused, _) = run(&running, &["ca", "rotate"]).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("is being rotated already"), "{refused}");

    // The new one signs; the old one is still trusted.
    let turned = next().await;
    assert_eq!(roots_in(&turned), 2);
    assert!(
        !turned.starts_with(&answer.trust_bundle_pem),
        "the new one is first"
    );
    let alone = next().await;
    assert_eq!(roots_in(&alone), 1);
    assert!(turned.starts_with(&alone));
    let (_, bundle) = run(&running, &["ca", "bundle"]).await;
    assert_eq!(bundle, alone);

    shut_out(&running, &old, &root, (join.as_str(), &svid)).await;
    // The stream of before goes on through all of it.
    let service = "
apiVersion: outrigger.dev/v1
kind: MutualTLS
metadata: {name: strict, namespace: shop}
spec: {mode: strict}
";
    apply(&running, service).await.unwrap();
    let changed = timeout(Duration::from_secs(5), ads.next()).await.unwrap();
    assert_eq!(changed.resources[0].name, "inbound");
    running.stop().await;
}

/// That the old root counts for nothing, and the new one does.
async fn shut_out(running: &Running, old: &Path, root: &Path, (join, svid): (&str, &Svid)) {
    // Who knows the old root alone does not come in any more, nor does who has only its signature.
    assert!(channel(running, old, None).await.is_err());
    // The listener takes its new settings from the same announcement, a moment before or after us.
    let refused = async || match channel(running, root, Some(svid)).await {
        Ok(channel) => certificate(channel, "").await.is_err(),
        Err(_) => true,
    };
    let end = tokio::time::Instant::now() + PATIENCE;
    while !refused().await {
        let late = tokio::time::Instant::now() >= end;
        assert!(!late, "a certificate of the old root");
    }
    let newcomer = channel(running, root, None).await.unwrap();
    let (_, renewed) = certificate(newcomer, join).await.unwrap();
    let known = channel(running, root, Some(&renewed)).await.unwrap();
    Ads::open(known)
        .await
        .unwrap()
        .subscribe(type_url::LISTENER, &["inbound"])
        .await;
}

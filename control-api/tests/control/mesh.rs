//! A proxy's whole dialogue with the control plane: token, certificate, configuration, refusal.

use crate::common::{Ads, api, apply, certificate, channel, control_plane, token};
use outrigger_control::clock::Clock;
use outrigger_proto::{
    any::unpack,
    envoy::config::{endpoint::v3::ClusterLoadAssignment, listener::v3::Listener},
    outrigger::control::v1 as pb,
    type_url,
};
use tonic::Code;

const CART: &str = "
apiVersion: outrigger.dev/v1
kind: Service
metadata: {name: cart, namespace: shop}
spec:
  ports: [{name: http, port: 80, targetPort: 8080, appProtocol: http}]
  addresses: [10.96.0.10]
  serviceAccount: cart
  endpoints: [{address: 10.1.0.2}]
";
const CLUSTER: &str = "outbound|80||cart.shop.svc";

#[tokio::test]
async fn a_proxy_joins_and_follows_the_objects() {
    let dir = tempfile::tempdir().unwrap();
    let running = control_plane(dir.path(), Clock::system()).await;
    let root = dir.path().join("ca/root.pem");
    apply(&running, CART).await.unwrap();

    let anonymous = channel(&running, &root, None).await.unwrap();
    let join = token(&running, "shop", "cart").await;
    let (_, svid) = certificate(anonymous, &join).await.unwrap();
    let known = channel(&running, &root, Some(&svid)).await.unwrap();
    let mut ads = Ads::open(known.clone()).await.unwrap();

    ads.subscribe(
        type_url::LISTENER,
        &["outbound/10.96.0.10:80", "outbound/192.0.2.1:80"],
    )
    .await;
    let answer = ads.next().await;
    assert_eq!(answer.removed_resources, ["outbound/192.0.2.1:80"]);
    let listener: Listener = unpack(answer.resources[0].resource.as_ref().unwrap()).unwrap();
    assert_eq!(listener.name, "outbound/10.96.0.10:80");
    ads.answer(&answer, None).await;

    ads.subscribe(type_url::CLUSTER_LOAD_ASSIGNMENT, &[CLUSTER])
        .await;
    let first = ads.next().await;
    ads.answer(&first, None).await;

    let two = CART.replace(
        "{address: 10.1.0.2}",
        "{address: 10.1.0.2}, {address: 10.1.0.3}",
    );
    let applied = apply(&running, &two).await.unwrap();
    let second = ads.next().await;
    let endpoints: ClusterLoadAssignment =
        unpack(second.resources[0].resource.as_ref().unwrap()).unwrap();
    assert_eq!(endpoints.endpoints[0].lb_endpoints.len(), 2);
    ads.answer(&second, Some("endpoints[0]: I do not like it"))
        .await;

    let wait = pb::WaitRevisionRequest {
        revision: applied.revision,
        timeout: None,
    };
    let waited = api(&running)
        .wait_revision(wait)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (waited.proxies, waited.acked, waited.pending.len()),
        (1, 0, 0)
    );
    assert_eq!(
        waited.rejected[0].rejections[0].reason,
        "endpoints[0]: I do not like it"
    );
    assert_eq!(waited.rejected[0].name, "shop/cart-1");

    // The certificate in hand is proof enough for the next one.
    certificate(known, "").await.unwrap();
    running.stop().await;
}

#[tokio::test]
async fn nobody_gets_anything_without_proof() {
    let dir = tempfile::tempdir().unwrap();
    let running = control_plane(dir.path(), Clock::system()).await;
    let root = dir.path().join("ca/root.pem");
    let anonymous = channel(&running, &root, None).await.unwrap();
    for bad in ["", "ort_0000"] {
        let refused = certificate(anonymous.clone(), bad).await.err().unwrap();
        assert_eq!(refused.code(), Code::Unauthenticated, "{bad:?}");
    }
    let mut ads = Ads::open(anonymous).await.unwrap();
    ads.subscribe(type_url::LISTENER, &["inbound"]).await;
    let refused = ads.answers.message().await.err().unwrap();
    assert_eq!(refused.code(), Code::Unauthenticated);
    running.stop().await;
}

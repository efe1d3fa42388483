//! The state-of-the-world variant over the network: what gRPC clients and older Envoys speak.

use crate::common::{PATIENCE, apply, certificate, channel, control_plane, node, token};
use outrigger_control::clock::Clock;
use outrigger_proto::{
    any::unpack,
    envoy::{
        config::{cluster::v3::Cluster, endpoint::v3::ClusterLoadAssignment},
        service::discovery::v3::{
            DiscoveryRequest, DiscoveryResponse,
            aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
    },
    type_url,
};
use tokio::{sync::mpsc, time::timeout};

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

fn want(type_url: &str, names: &[&str], after: Option<&DiscoveryResponse>) -> DiscoveryRequest {
    DiscoveryRequest {
        node: Some(node()),
        type_url: type_url.into(),
        resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
        version_info: after.map(|a| a.version_info.clone()).unwrap_or_default(),
        response_nonce: after.map(|a| a.nonce.clone()).unwrap_or_default(),
        ..DiscoveryRequest::default()
    }
}

#[tokio::test]
async fn a_client_without_the_incremental_variant_is_served_too() {
    let dir = tempfile::tempdir().unwrap();
    let running = control_plane(dir.path(), Clock::system()).await;
    let root = dir.path().join("ca/root.pem");
    apply(&running, CART).await.unwrap();
    let anonymous = channel(&running, &root, None).await.unwrap();
    let join = token(&running, "shop", "cart").await;
    let (_, svid) = certificate(anonymous, &join).await.unwrap();
    let known = channel(&running, &root, Some(&svid)).await.unwrap();
    let (requests, queue) = mpsc::channel(16);
    let stream = futures_util::stream::unfold(queue, |mut queue| async {
        let next = queue.recv().await?;
        Some((next, queue))
    });
    let mut client = AggregatedDiscoveryServiceClient::new(known);
    let answers = client.stream_aggregated_resources(stream).await.unwrap();
    let mut answers = answers.into_inner();
    let mut next = async || {
        timeout(PATIENCE, answers.message())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
    };

    requests
        .send(want(type_url::CLUSTER, &[], None))
        .await
        .unwrap();
    let clusters = next().await;
    let all: Vec<Cluster> = clusters
        .resources
        .iter()
        .map(|any| unpack(any).unwrap())
        .collect();
    let names: Vec<_> = all.iter().map(|cluster| cluster.name.as_str()).collect();
    assert!(
        names.contains(&CLUSTER) && names.contains(&"PassthroughCluster"),
        "{names:?}"
    );
    requests
        .send(want(type_url::CLUSTER, &[], Some(&clusters)))
        .await
        .unwrap();

    let endpoints = type_url::CLUSTER_LOAD_ASSIGNMENT;
    requests
        .send(want(endpoints, &[CLUSTER], None))
        .await
        .unwrap();
    let first = next().await;
    assert_eq!(first.resources.len(), 1);
    requests
        .send(want(endpoints, &[CLUSTER], Some(&first)))
        .await
        .unwrap();
    let two = CART.replace("10.1.0.2}]", "10.1.0.2}, {address: 10.1.0.3}]");
    apply(&running, &two).await.unwrap();
    // Its identities are the same, so the cluster is, and only endpoints are sent.
    let second = next().await;
    assert_eq!(second.type_url, endpoints);
    let members: ClusterLoadAssignment = unpack(&second.resources[0]).unwrap();
    assert_eq!(members.endpoints[0].lb_endpoints.len(), 2);
    running.stop().await;
}

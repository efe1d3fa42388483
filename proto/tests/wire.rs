//! The bytes on the wire are those of Envoy's definitions: fields are told by number and wire type,
//! so these are written by hand from the numbers that Envoy's documentation gives.

use std::fmt::Debug;

use outrigger_proto::any::pack;
use outrigger_proto::envoy::config::cluster::v3::{Cluster, OutlierDetection, cluster};
use outrigger_proto::envoy::config::core::v3::{Node, SocketAddress, socket_address};
use outrigger_proto::envoy::config::endpoint::v3::{LbEndpoint, LocalityLbEndpoints, lb_endpoint};
use outrigger_proto::envoy::config::listener::v3::{FilterChainMatch, Listener};
use outrigger_proto::envoy::config::rbac::v3::{Principal, principal};
use outrigger_proto::envoy::config::route::v3::{RouteAction, route_action};
use outrigger_proto::envoy::extensions::filters::http::router::v3::Router;
use outrigger_proto::envoy::extensions::transport_sockets::tls::v3::TlsParameters;
use outrigger_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use prost::Message;

/// The message and its bytes are the same, up to the order of the fields, which is free.
fn same<M: Message + Default + PartialEq + Debug>(message: &M, bytes: &[u8]) {
    assert_eq!(M::decode(bytes).as_ref(), Ok(message));
    let (mut ours, mut theirs) = (message.encode_to_vec(), bytes.to_vec());
    ours.sort_unstable();
    theirs.sort_unstable();
    assert_eq!(ours, theirs, "{message:?}");
}

#[test]
fn discovery_requests() {
    let node = Node {
        id: "n".to_owned(),
        ..Node::default()
    };
    let request = DiscoveryRequest {
        version_info: "1".to_owned(),
        node: Some(node.clone()),
        resource_names: vec!["a".to_owned()],
        type_url: "t".to_owned(),
        response_nonce: "9".to_owned(),
        ..DiscoveryRequest::default()
    };
    same(
        &request,
        b"\x0a\x011\x12\x03\x0a\x01n\x1a\x01a\x22\x01t\x2a\x019",
    );

    let delta = DeltaDiscoveryRequest {
        node: Some(node),
        type_url: "t".to_owned(),
        resource_names_subscribe: vec!["a".to_owned()],
        resource_names_unsubscribe: vec!["b".to_owned()],
        initial_resource_versions: [("c".to_owned(), "1".to_owned())].into(),
        response_nonce: "9".to_owned(),
        ..DeltaDiscoveryRequest::default()
    };
    let bytes = b"\x0a\x03\x0a\x01n\x12\x01t\x1a\x01a\x22\x01b\x2a\x06\x0a\x01c\x12\x011\x32\x019";
    same(&delta, bytes);
}

#[test]
fn listeners() {
    let listener = Listener {
        name: "l".to_owned(),
        use_original_dst: Some(true),
        traffic_direction: 2,
        bind_to_port: Some(false),
        ..Listener::default()
    };
    // bind_to_port = 26 and traffic_direction = 16 need two bytes of tag.
    same(
        &listener,
        b"\x0a\x01l\x22\x02\x08\x01\x80\x01\x02\xd2\x01\x00",
    );

    let matches = FilterChainMatch {
        destination_port: Some(80),
        transport_protocol: "tls".to_owned(),
        application_protocols: vec!["h2".to_owned()],
        ..FilterChainMatch::default()
    };
    same(&matches, b"\x42\x02\x08\x50\x4a\x03tls\x52\x02h2");

    let address = SocketAddress {
        address: "::1".to_owned(),
        port_specifier: Some(socket_address::PortSpecifier::PortValue(15001)),
        ..SocketAddress::default()
    };
    same(&address, b"\x12\x03::1\x18\x99\x75");
}

#[test]
fn clusters_and_endpoints() {
    let cluster = Cluster {
        name: "c".to_owned(),
        lb_policy: 1,
        cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(3)),
        outlier_detection: Some(OutlierDetection {
            consecutive_5xx: Some(5),
            max_ejection_time_jitter: Some(prost_types::Duration {
                seconds: 1,
                nanos: 0,
            }),
            ..OutlierDetection::default()
        }),
        ..Cluster::default()
    };
    let bytes = b"\x0a\x01c\x10\x03\x30\x01\x9a\x01\x09\x0a\x02\x08\x05\xb2\x01\x02\x08\x01";
    same(&cluster, bytes);

    let locality = LocalityLbEndpoints {
        lb_endpoints: vec![LbEndpoint {
            health_status: 2,
            load_balancing_weight: Some(7),
            host_identifier: Some(lb_endpoint::HostIdentifier::EndpointName("e".to_owned())),
            ..LbEndpoint::default()
        }],
        priority: 1,
        ..LocalityLbEndpoints::default()
    };
    same(
        &locality,
        b"\x12\x09\x10\x02\x22\x02\x08\x07\x2a\x01e\x28\x01",
    );
}

#[test]
fn routes_and_authorization() {
    let action = RouteAction {
        cluster_specifier: Some(route_action::ClusterSpecifier::Cluster("c".to_owned())),
        timeout: Some(prost_types::Duration {
            seconds: 15,
            nanos: 0,
        }),
        ..RouteAction::default()
    };
    same(&action, b"\x0a\x01c\x42\x02\x08\x0f");

    let any = Principal {
        identifier: Some(principal::Identifier::Any(true)),
    };
    let not = Principal {
        identifier: Some(principal::Identifier::NotId(Box::new(any))),
    };
    same(&not, b"\x42\x02\x18\x01");
}

#[test]
fn tls_parameters() {
    let parameters = TlsParameters {
        tls_minimum_protocol_version: 4,
        tls_maximum_protocol_version: 4,
        ecdh_curves: vec!["X25519MLKEM768".to_owned()],
        ..TlsParameters::default()
    };
    same(&parameters, b"\x08\x04\x10\x04\x22\x0eX25519MLKEM768");
}

#[test]
fn extensions_carry_the_url_that_envoy_looks_up() {
    let any = pack(&Router {
        suppress_envoy_headers: true,
        ..Router::default()
    });
    assert_eq!(
        any.type_url,
        "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
    );
    assert_eq!(any.value, b"\x20\x01");
}

//! Clusters.

use std::{collections::BTreeMap, net::SocketAddr};

use outrigger_proto::{
    any::Any,
    envoy::{
        config::{
            cluster::v3::{
                CircuitBreakers, Cluster, LoadBalancingPolicy,
                circuit_breakers::{Thresholds, thresholds::RetryBudget},
                cluster::{
                    ClusterDiscoveryType, DiscoveryType, EdsClusterConfig, LbPolicy,
                    TransportSocketMatch,
                },
                load_balancing_policy::Policy,
            },
            core::v3::{Http1ProtocolOptions, Http2ProtocolOptions},
        },
        extensions::{
            load_balancing_policies::least_request::v3::LeastRequest,
            transport_sockets::{raw_buffer::v3::RawBuffer, tls::v3::UpstreamTlsContext},
            upstreams::http::v3::{
                HttpProtocolOptions,
                http_protocol_options::{
                    ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
                    explicit_http_config::ProtocolConfig,
                },
            },
        },
    },
    outrigger::extensions::v1::PeakEwma,
};

use super::{
    endpoint, names,
    names::ClusterName,
    proto::{ads, any, extension, percent, seconds, strings, transport_socket},
    tls,
    world::{PortRef, World},
};
use crate::model::AppProtocol;

/// The key of the HTTP options in `typed_extension_protocol_options`.
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
/// Envoy's default, said aloud.
const CONNECT_TIMEOUT: i64 = 5;
/// Connections, requests and retries that one proxy has to one service at most. Envoy's 1,024 cut
/// off services that hold many quiet connections; a bound is needed all the same.
const MAX_CONNECTIONS: u32 = 16_384;
const MAX_REQUESTS: u32 = 16_384;
/// Requests that wait for a connection; Envoy's default.
const MAX_PENDING: u32 = 1_024;
/// Retries add at most this share of load (design §8); never fewer than some at a time.
const RETRY_PERCENT: f64 = 20.0;
const MIN_RETRIES: u32 = 3;

/// The cluster of this name.
pub(super) fn cluster(world: &World, name: &str) -> Option<Cluster> {
    match ClusterName::parse(name)? {
        ClusterName::Passthrough | ClusterName::InboundPassthrough => Some(passthrough(name)),
        // Whether the workload has such a port is for its listener to say.
        ClusterName::Inbound(_) => Some(passthrough(name)),
        ClusterName::Pod(address) => pod(world, name, address),
        service @ ClusterName::Service { .. } => {
            Some(self::service(name, &world.service_port(&service)?))
        }
    }
}

/// Goes where the connection was going.
fn passthrough(name: &str) -> Cluster {
    Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(
            DiscoveryType::OriginalDst.into(),
        )),
        lb_policy: LbPolicy::ClusterProvided.into(),
        connect_timeout: Some(seconds(CONNECT_TIMEOUT)),
        circuit_breakers: Some(limits()),
        typed_extension_protocol_options: http_options(None),
        ..Cluster::default()
    }
}

fn service(name: &str, port: &PortRef<'_>) -> Cluster {
    Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(ads()),
            service_name: name.to_owned(),
        }),
        load_balancing_policy: Some(balancing()),
        ..common(port)
    }
}

fn pod(world: &World, name: &str, address: SocketAddr) -> Option<Cluster> {
    let instance = world.instance(address)?;
    let members = endpoint::single(name, &instance, address.port());
    Some(Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
        load_assignment: Some(members),
        transport_socket_matches: socket_matches(
            &instance.port,
            [instance.port.identity(instance.endpoint)],
        ),
        ..common(&instance.port)
    })
}

fn common(port: &PortRef<'_>) -> Cluster {
    Cluster {
        connect_timeout: Some(seconds(CONNECT_TIMEOUT)),
        circuit_breakers: Some(limits()),
        typed_extension_protocol_options: http_options(port.port.app_protocol),
        transport_socket_matches: socket_matches(port, port.identities()),
        ..Cluster::default()
    }
}

/// Endpoints in the mesh are spoken to over mutual TLS and must have one of `identities`.
fn socket_matches(
    port: &PortRef<'_>,
    identities: impl IntoIterator<Item = String>,
) -> Vec<TransportSocketMatch> {
    let mesh: UpstreamTlsContext = tls::upstream(&names::host(port), identities);
    vec![
        TransportSocketMatch {
            name: "mesh".to_owned(),
            r#match: Some(strings(&[tls::MODE_MESH])),
            transport_socket: Some(transport_socket("envoy.transport_sockets.tls", &mesh)),
        },
        TransportSocketMatch {
            name: "plaintext".to_owned(),
            r#match: Some(strings(&[])),
            transport_socket: Some(transport_socket(
                "envoy.transport_sockets.raw_buffer",
                &RawBuffer::default(),
            )),
        },
    ]
}

/// Ours first; Envoy takes the first that it knows.
fn balancing() -> LoadBalancingPolicy {
    let policy = |typed_extension_config| Policy {
        typed_extension_config: Some(typed_extension_config),
    };
    LoadBalancingPolicy {
        policies: vec![
            policy(extension("outrigger.peak_ewma", &PeakEwma::default())),
            policy(extension(
                "envoy.load_balancing_policies.least_request",
                &LeastRequest::default(),
            )),
        ],
    }
}

fn limits() -> CircuitBreakers {
    CircuitBreakers {
        thresholds: vec![Thresholds {
            max_connections: Some(MAX_CONNECTIONS),
            max_pending_requests: Some(MAX_PENDING),
            max_requests: Some(MAX_REQUESTS),
            retry_budget: Some(RetryBudget {
                budget_percent: Some(percent(RETRY_PERCENT)),
                min_retry_concurrency: Some(MIN_RETRIES),
                budget_interval: None,
            }),
            ..Thresholds::default()
        }],
        ..CircuitBreakers::default()
    }
}

/// HTTP stays the version it was, unless the port speaks HTTP/2 only.
fn http_options(protocol: Option<AppProtocol>) -> BTreeMap<String, Any> {
    let upstream = match protocol {
        Some(AppProtocol::Http2 | AppProtocol::Grpc) => {
            UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
                protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(
                    Http2ProtocolOptions::default(),
                )),
            })
        }
        Some(AppProtocol::Http | AppProtocol::Tcp) | None => {
            UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
                http_protocol_options: Some(Http1ProtocolOptions::default()),
                http2_protocol_options: Some(Http2ProtocolOptions::default()),
            })
        }
    };
    let options = HttpProtocolOptions {
        upstream_protocol_options: Some(upstream),
        ..HttpProtocolOptions::default()
    };
    BTreeMap::from([(HTTP_OPTIONS.to_owned(), any(&options))])
}

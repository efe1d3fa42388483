//! Clusters.

use std::{collections::BTreeMap, net::SocketAddr};

use outrigger_proto::{
    any::Any,
    envoy::{
        config::{
            cluster::v3::{
                Cluster,
                cluster::{
                    ClusterDiscoveryType, DiscoveryType, EdsClusterConfig, LbPolicy,
                    TransportSocketMatch,
                },
            },
            core::v3::{
                Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions as CommonOptions,
            },
        },
        extensions::{
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
};

use super::{
    endpoint, names,
    names::ClusterName,
    policy::Traffic,
    proto::{ads, any, duration, seconds, strings, transport_socket},
    tls, tuning,
    world::{PortRef, World},
};
use crate::model::{AppProtocol, Connections};

/// The key of the HTTP options in `typed_extension_protocol_options`.
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
/// Envoy's default, said aloud.
const CONNECT_TIMEOUT: i64 = 5;

/// The cluster of this name.
pub(super) fn cluster(world: &World, name: &str) -> Option<Cluster> {
    match ClusterName::parse(name)? {
        ClusterName::Passthrough | ClusterName::InboundPassthrough => Some(passthrough(name)),
        // Whether the workload has such a port is for its listener to say.
        ClusterName::Inbound(_) => Some(passthrough(name)),
        ClusterName::Pod(address) => pod(world, name, address),
        service @ ClusterName::Service { .. } => {
            Some(self::service(world, name, &world.service_port(&service)?))
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
        circuit_breakers: Some(tuning::limits(&Traffic::default())),
        typed_extension_protocol_options: http_options(None, None),
        ..Cluster::default()
    }
}

fn service(world: &World, name: &str, port: &PortRef<'_>) -> Cluster {
    let traffic = Traffic::of(world, port);
    let mut cluster = Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(ads()),
            service_name: name.to_owned(),
        }),
        ..common(&traffic, port)
    };
    tuning::endpoints(&traffic, &names::host(port), &mut cluster);
    cluster
}

fn pod(world: &World, name: &str, address: SocketAddr) -> Option<Cluster> {
    let instance = world.instance(address)?;
    let traffic = Traffic::of(world, &instance.port);
    let members = endpoint::single(name, &instance, address.port());
    Some(Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
        load_assignment: Some(members),
        transport_socket_matches: socket_matches(
            &instance.port,
            [instance.port.identity(instance.endpoint)],
        ),
        ..common(&traffic, &instance.port)
    })
}

fn common(traffic: &Traffic<'_>, port: &PortRef<'_>) -> Cluster {
    let mut cluster = Cluster {
        connect_timeout: Some(seconds(CONNECT_TIMEOUT)),
        circuit_breakers: Some(tuning::limits(traffic)),
        typed_extension_protocol_options: http_options(
            port.port.app_protocol,
            traffic.connections(),
        ),
        transport_socket_matches: socket_matches(port, port.identities()),
        ..Cluster::default()
    };
    tuning::connections(traffic, &mut cluster);
    cluster
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

/// HTTP stays the version it was, unless the port speaks HTTP/2 only, or connections are to be
/// shared.
fn http_options(
    protocol: Option<AppProtocol>,
    connections: Option<&Connections>,
) -> BTreeMap<String, Any> {
    let shared = connections.and_then(|c| c.http2).unwrap_or_default();
    let only = matches!(protocol, Some(AppProtocol::Http2 | AppProtocol::Grpc));
    let upstream = if shared || only {
        UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(
                Http2ProtocolOptions::default(),
            )),
        })
    } else {
        UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
            http_protocol_options: Some(Http1ProtocolOptions::default()),
            http2_protocol_options: Some(Http2ProtocolOptions::default()),
        })
    };
    let common = connections.map(|c| CommonOptions {
        idle_timeout: c.idle_timeout.map(|idle| duration(idle.0)),
        max_requests_per_connection: c.max_requests_per_connection,
        ..CommonOptions::default()
    });
    let options = HttpProtocolOptions {
        common_http_protocol_options: common,
        upstream_protocol_options: Some(upstream),
        ..HttpProtocolOptions::default()
    };
    BTreeMap::from([(HTTP_OPTIONS.to_owned(), any(&options))])
}

//! Resources for tests, written as Envoy's YAML.

use bytes::Bytes;
use outrigger_proto::{
    envoy::{
        config::{
            cluster::v3::Cluster, endpoint::v3::ClusterLoadAssignment, listener::v3::Listener,
            route::v3::RouteConfiguration,
        },
        extensions::transport_sockets::tls::v3::Secret,
    },
    json,
    type_url::{HTTP_CONNECTION_MANAGER, ROUTER},
};
use prost::{Message, Name};

use super::kind::Kind;

/// The wire form of a resource written as YAML.
pub(crate) fn resource(kind: Kind, yaml: &str) -> Bytes {
    fn encoded<M: Message + Name + Default>(value: &serde_json::Value) -> Bytes {
        let message = json::from_json::<M>(value).unwrap_or_else(|e| panic!("{e}\n{value:#}"));
        message.encode_to_vec().into()
    }
    let value = serde_saphyr::from_str(yaml).unwrap_or_else(|e| panic!("{e}\n{yaml}"));
    match kind {
        Kind::Cluster => encoded::<Cluster>(&value),
        Kind::Endpoints => encoded::<ClusterLoadAssignment>(&value),
        Kind::Listener => encoded::<Listener>(&value),
        Kind::Route => encoded::<RouteConfiguration>(&value),
        Kind::Secret => encoded::<Secret>(&value),
    }
}

/// An opaque listener for one destination.
pub(crate) fn tcp_listener(address: &str, cluster: &str) -> Bytes {
    let socket: std::net::SocketAddr = address.parse().expect("an address");
    let (ip, port) = (socket.ip(), socket.port());
    let yaml = format!(
        "
name: outbound/{address}
address: {{ socket_address: {{ address: \"{ip}\", port_value: {port} }} }}
bind_to_port: false
traffic_direction: OUTBOUND
default_filter_chain:
  filters:
  - name: tcp
    typed_config:
      '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
      stat_prefix: tcp
      cluster: {cluster}
"
    );
    resource(Kind::Listener, &yaml)
}

/// A listener of some name whose routes come by RDS.
pub(crate) fn rds_listener(name: &str, address: &str, routes: &str) -> Bytes {
    let socket: std::net::SocketAddr = address.parse().expect("an address");
    let (ip, port) = (socket.ip(), socket.port());
    let yaml = format!(
        "
name: {name}
address: {{ socket_address: {{ address: \"{ip}\", port_value: {port} }} }}
bind_to_port: false
filter_chains:
- filters:
  - name: http
    typed_config:
      '@type': {HTTP_CONNECTION_MANAGER}
      stat_prefix: http
      rds: {{ route_config_name: {routes}, config_source: {{ ads: {{}} }} }}
      http_filters:
      - name: router
        typed_config: {{ '@type': {ROUTER} }}
"
    );
    resource(Kind::Listener, &yaml)
}

/// A route configuration that sends everything to one cluster.
pub(crate) fn routes(name: &str, cluster: &str) -> Bytes {
    let yaml = format!(
        "
name: {name}
virtual_hosts:
- name: all
  domains: ['*']
  routes:
  - match: {{ prefix: / }}
    route: {{ cluster: {cluster} }}
"
    );
    resource(Kind::Route, &yaml)
}

/// A cluster whose endpoints come by EDS under its own name.
pub(crate) fn eds_cluster(name: &str) -> Bytes {
    let yaml = format!(
        "
name: {name}
type: EDS
eds_cluster_config: {{ eds_config: {{ ads: {{}} }} }}
"
    );
    resource(Kind::Cluster, &yaml)
}

/// Endpoints, all in one place.
pub(crate) fn endpoints(name: &str, addresses: &[&str]) -> Bytes {
    let mut yaml = format!("cluster_name: {name}\n");
    if !addresses.is_empty() {
        yaml.push_str("endpoints:\n- lb_endpoints:\n");
    }
    for address in addresses {
        let socket: std::net::SocketAddr = address.parse().expect("an address");
        let (ip, port) = (socket.ip(), socket.port());
        let socket = format!("socket_address: {{ address: \"{ip}\", port_value: {port} }}");
        yaml.push_str(&format!("  - endpoint: {{ address: {{ {socket} }} }}\n"));
    }
    resource(Kind::Endpoints, &yaml)
}

//! The Listener for what comes into a pod.

use std::net::{IpAddr, Ipv4Addr};

use outrigger_proto::envoy::config::{
    core::v3::TrafficDirection,
    listener::v3::{Filter, FilterChain, FilterChainMatch, Listener},
};

use super::{
    Viewer,
    http::{self, Routing},
    listener::{HTTP_FOUND, http_inspector, original_dst, tcp, tls_inspector},
    names,
    proto::{address, filter, seconds},
    route,
    tls::{self, ALPN_HTTP1, ALPN_HTTP2, ALPN_TCP},
    world::World,
};
use crate::model::AppProtocol;

/// Where redirected connections to the application arrive.
const INBOUND_PORT: u16 = 15006;
/// Envoy waits for the first bytes no longer than this; our proxy does not wait at all.
const INSPECT: i64 = 1;

/// The `inbound` Listener of `viewer`.
pub(super) fn listener(world: &World, viewer: &Viewer) -> Listener {
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let mut chains = Vec::new();
    for (port, protocol) in world.inbound(viewer) {
        let side = Side {
            trust_domain: world.trust_domain(),
            port: Some(port),
            cluster: names::inbound_cluster(port),
        };
        side.mesh(&mut chains);
        side.plain(protocol, &mut chains);
    }
    let rest = Side {
        trust_domain: world.trust_domain(),
        port: None,
        cluster: names::INBOUND_PASSTHROUGH.to_owned(),
    };
    rest.mesh(&mut chains);
    Listener {
        name: names::INBOUND.to_owned(),
        address: Some(address(any, INBOUND_PORT)),
        traffic_direction: TrafficDirection::Inbound.into(),
        use_original_dst: Some(true),
        listener_filters: vec![original_dst(), tls_inspector(), http_inspector()],
        listener_filters_timeout: Some(seconds(INSPECT)),
        continue_on_listener_filters_timeout: true,
        filter_chains: chains,
        default_filter_chain: Some(FilterChain {
            name: "passthrough".to_owned(),
            filters: vec![tcp(&rest.cluster, "inbound")],
            ..FilterChain::default()
        }),
        ..Listener::default()
    }
}

/// The chains of one port, or, without one, of all others.
struct Side<'w> {
    trust_domain: &'w str,
    port: Option<u16>,
    cluster: String,
}

impl Side<'_> {
    fn http(&self, mesh: bool) -> Filter {
        let routes = route::to_cluster(&self.cluster, &self.cluster);
        filter(
            http::NAME,
            &http::inbound(Routing::Inline(Box::new(routes)), mesh),
        )
    }

    fn chain(&self, what: &str, transport: &str, protocols: &[&str], end: Filter) -> FilterChain {
        let port = self
            .port
            .map_or_else(|| "rest".to_owned(), |p| p.to_string());
        FilterChain {
            name: format!("{port}-{what}"),
            filter_chain_match: Some(FilterChainMatch {
                destination_port: self.port.map(u32::from),
                transport_protocol: transport.to_owned(),
                application_protocols: protocols.iter().map(|p| (*p).to_owned()).collect(),
                ..FilterChainMatch::default()
            }),
            filters: vec![end],
            ..FilterChain::default()
        }
    }

    /// Mutual TLS between proxies, told by its ALPN.
    fn mesh(&self, chains: &mut Vec<FilterChain>) {
        let socket = tls::downstream(self.trust_domain);
        let http = self.chain(
            "mesh-http",
            "tls",
            &[ALPN_HTTP1, ALPN_HTTP2],
            self.http(true),
        );
        let opaque = self.chain(
            "mesh-tcp",
            "tls",
            &[ALPN_TCP],
            tcp(&self.cluster, "inbound"),
        );
        chains.extend([http, opaque].map(|chain| FilterChain {
            transport_socket: Some(socket.clone()),
            ..chain
        }));
    }

    /// Callers outside the mesh, and the application's own TLS.
    fn plain(&self, protocol: Option<AppProtocol>, chains: &mut Vec<FilterChain>) {
        let opaque = || tcp(&self.cluster, "inbound");
        // One chain for each transport: Envoy does not look for a less exact one once the
        // transport has matched.
        match protocol {
            Some(AppProtocol::Tcp) => {}
            Some(_) => chains.push(self.chain("http", "raw_buffer", &[], self.http(false))),
            None => {
                chains.push(self.chain("http", "raw_buffer", &HTTP_FOUND, self.http(false)));
            }
        }
        if matches!(protocol, Some(AppProtocol::Tcp) | None) {
            chains.push(self.chain("tcp", "raw_buffer", &[], opaque()));
        }
        chains.push(self.chain("tls", "tls", &[], opaque()));
    }
}

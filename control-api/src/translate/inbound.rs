//! The Listener for what comes into a pod.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use outrigger_proto::envoy::config::{
    core::v3::TrafficDirection,
    listener::v3::{Filter, FilterChain, FilterChainMatch, Listener},
};

use super::{
    Viewer, authz,
    authz::Rules,
    http::{self, Gate, Routing},
    listener::{HTTP_FOUND, http_inspector, original_dst, tcp, tls_inspector},
    names,
    proto::{address, filter, seconds},
    route,
    tls::{self, ALPN_HTTP1, ALPN_HTTP2, ALPN_TCP},
    workload,
    workload::{MutualTls, Telemetry},
    world::World,
};
use crate::model::{AppProtocol, RateLimitSpec};

/// Where redirected connections to the application arrive.
const INBOUND_PORT: u16 = 15006;
/// Envoy waits for the first bytes no longer than this; our proxy does not wait at all.
const INSPECT: i64 = 1;

/// The `inbound` Listener of `viewer`.
pub(super) fn listener(world: &World, viewer: &Viewer) -> Listener {
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let mutual = MutualTls::of(world, viewer);
    let shared = Shared {
        trust_domain: world.trust_domain(),
        limit: workload::rate_limit(world, viewer),
        telemetry: Telemetry::of(world, viewer),
    };
    // Ports of services, and others for which a policy says something.
    let mut ports: BTreeMap<_, _> = world.inbound(viewer).collect();
    for port in mutual.ports() {
        ports.entry(port).or_insert(None);
    }
    let mut chains = Vec::new();
    for (port, protocol) in ports {
        let rules = Rules::of(world, viewer, Some(port));
        let side = Side {
            shared: &shared,
            rules: &rules,
            port: Some(port),
            cluster: names::inbound_cluster(port),
        };
        side.mesh(&mut chains);
        if !mutual.is_strict(Some(port)) {
            side.plain(protocol, &mut chains);
        } else if !mutual.is_strict(None) {
            side.refusal(&mut chains);
        }
    }
    let rules = Rules::of(world, viewer, None);
    let rest = Side {
        shared: &shared,
        rules: &rules,
        port: None,
        cluster: names::INBOUND_PASSTHROUGH.to_owned(),
    };
    rest.mesh(&mut chains);
    // Without it, what no chain matches is closed.
    let passthrough = (!mutual.is_strict(None)).then(|| FilterChain {
        name: "passthrough".to_owned(),
        filters: rest.opaque(),
        ..FilterChain::default()
    });
    Listener {
        name: names::INBOUND.to_owned(),
        address: Some(address(any, INBOUND_PORT)),
        traffic_direction: TrafficDirection::Inbound.into(),
        use_original_dst: Some(true),
        listener_filters: vec![original_dst(), tls_inspector(), http_inspector()],
        listener_filters_timeout: Some(seconds(INSPECT)),
        continue_on_listener_filters_timeout: true,
        filter_chains: chains,
        default_filter_chain: passthrough,
        ..Listener::default()
    }
}

/// What all ports have in common.
struct Shared<'w> {
    trust_domain: &'w str,
    limit: Option<&'w RateLimitSpec>,
    telemetry: Telemetry,
}

/// The chains of one port, or, without one, of all others.
struct Side<'w> {
    shared: &'w Shared<'w>,
    rules: &'w Rules<'w>,
    port: Option<u16>,
    cluster: String,
}

impl Side<'_> {
    fn http(&self, mesh: bool) -> Vec<Filter> {
        let routes = route::to_cluster(&self.cluster, &self.cluster);
        let gate = Gate {
            rules: self.rules,
            limit: self.shared.limit,
            telemetry: self.shared.telemetry,
            mesh,
        };
        let manager = http::inbound(&gate, Routing::Inline(Box::new(routes)));
        vec![filter(http::NAME, &manager)]
    }

    fn opaque(&self) -> Vec<Filter> {
        let rules = self.rules.filters(false);
        let rules = rules.into_iter().map(network_rbac);
        let end = tcp(&self.cluster, "inbound", self.shared.telemetry);
        rules.chain([end]).collect()
    }

    fn chain(
        &self,
        what: &str,
        transport: &str,
        protocols: &[&str],
        filters: Vec<Filter>,
    ) -> FilterChain {
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
            filters,
            ..FilterChain::default()
        }
    }

    /// Mutual TLS between proxies, told by its ALPN.
    fn mesh(&self, chains: &mut Vec<FilterChain>) {
        let socket = tls::downstream(self.shared.trust_domain);
        let http = self.chain(
            "mesh-http",
            "tls",
            &[ALPN_HTTP1, ALPN_HTTP2],
            self.http(true),
        );
        let opaque = self.chain("mesh-tcp", "tls", &[ALPN_TCP], self.opaque());
        chains.extend([http, opaque].map(|chain| FilterChain {
            transport_socket: Some(socket.clone()),
            ..chain
        }));
    }

    /// Callers outside the mesh, and the application's own TLS. One chain for each transport: Envoy
    /// does not look for a less exact one once the transport has matched.
    fn plain(&self, protocol: Option<AppProtocol>, chains: &mut Vec<FilterChain>) {
        match protocol {
            Some(AppProtocol::Tcp) => {}
            Some(_) => chains.push(self.chain("http", "raw_buffer", &[], self.http(false))),
            None => {
                chains.push(self.chain("http", "raw_buffer", &HTTP_FOUND, self.http(false)));
            }
        }
        if matches!(protocol, Some(AppProtocol::Tcp) | None) {
            chains.push(self.chain("tcp", "raw_buffer", &[], self.opaque()));
        }
        chains.push(self.chain("tls", "tls", &[], self.opaque()));
    }

    /// Where mutual TLS is demanded here, but not elsewhere: what is not would find the chain of
    /// all other ports.
    fn refusal(&self, chains: &mut Vec<FilterChain>) {
        let nobody = || {
            let end = tcp(&self.cluster, "inbound", self.shared.telemetry);
            vec![network_rbac(authz::Filter::nobody()), end]
        };
        chains.push(self.chain("strict", "raw_buffer", &[], nobody()));
        chains.push(self.chain("strict-tls", "tls", &[], nobody()));
    }
}

fn network_rbac(rules: authz::Filter) -> Filter {
    let name = format!("envoy.filters.network.rbac.{}", rules.name);
    filter(&name, &rules.network())
}

//! Outbound Listeners: one that catches all, and one for each destination that is dialled.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use outrigger_proto::envoy::{
    config::{
        core::v3::TrafficDirection,
        listener::v3::{Filter, FilterChain, FilterChainMatch, Listener, ListenerFilter},
    },
    extensions::filters::{
        listener::{
            http_inspector::v3::HttpInspector, original_dst::v3::OriginalDst,
            tls_inspector::v3::TlsInspector,
        },
        network::tcp_proxy::v3::{TcpProxy, tcp_proxy::ClusterSpecifier},
    },
};

use super::{
    Viewer,
    http::{self, Routing},
    layer4::Layer4,
    names,
    proto::{address, filter, listener_filter, seconds},
    route,
    workload::Telemetry,
    world::World,
};
use crate::model::AppProtocol;

/// Where redirected connections of the application arrive.
const OUTBOUND_PORT: u16 = 15001;
/// What the HTTP inspector finds.
pub(super) const HTTP_FOUND: [&str; 3] = ["http/1.0", "http/1.1", "h2c"];
/// Opaque connections may be quiet for long; the operating system's keepalive finds the dead.
const TCP_IDLE: i64 = 24 * 3_600;
/// Envoy waits for the first bytes no longer than this; our proxy does not wait at all.
const INSPECT: i64 = 1;

/// `outbound`.
pub(super) fn catch_all(telemetry: Telemetry) -> Listener {
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    Listener {
        name: names::OUTBOUND.to_owned(),
        address: Some(address(any, OUTBOUND_PORT)),
        traffic_direction: TrafficDirection::Outbound.into(),
        use_original_dst: Some(true),
        listener_filters: vec![original_dst()],
        default_filter_chain: Some(FilterChain {
            name: "passthrough".to_owned(),
            filters: vec![tcp(names::PASSTHROUGH, "outbound", telemetry)],
            ..FilterChain::default()
        }),
        ..Listener::default()
    }
}

/// `outbound/<ip>:<port>`: a service's virtual address, or an endpoint's own.
pub(super) fn destination(world: &World, viewer: &Viewer, dialled: SocketAddr) -> Option<Listener> {
    let telemetry = Telemetry::of(world, viewer);
    let (protocol, routing, cluster, layer4) = if let Some(port) = world.virtual_port(dialled) {
        let routing = Routing::Rds(names::routes(&port));
        let layer4 = Layer4::of(world, viewer, &port, telemetry);
        (
            port.port.app_protocol,
            routing,
            names::cluster(&port),
            layer4,
        )
    } else {
        let instance = world.instance(dialled)?;
        let cluster = names::pod_cluster(dialled.ip(), dialled.port());
        let routes = route::to_cluster(&cluster, &cluster);
        let protocol = instance.port.port.app_protocol;
        let routing = Routing::Inline(Box::new(routes));
        (protocol, routing, cluster, Layer4::default())
    };
    let mut listener = Listener {
        name: names::listener(dialled),
        address: Some(address(dialled.ip(), dialled.port())),
        traffic_direction: TrafficDirection::Outbound.into(),
        bind_to_port: Some(false),
        ..Listener::default()
    };
    let http = || filter(http::NAME, &http::outbound(telemetry, routing));
    let opaque = layer4
        .tcp
        .unwrap_or_else(|| tcp(&cluster, "outbound", telemetry));
    match protocol {
        Some(AppProtocol::Http | AppProtocol::Http2 | AppProtocol::Grpc) => {
            listener.filter_chains = vec![chain("http", http())];
            return Some(listener);
        }
        Some(AppProtocol::Tcp) => {}
        None if layer4.only => {}
        None => {
            listener.listener_filters = vec![tls_inspector(), http_inspector()];
            listener.filter_chains = vec![FilterChain {
                filter_chain_match: Some(FilterChainMatch {
                    application_protocols: HTTP_FOUND.map(str::to_owned).into(),
                    transport_protocol: "raw_buffer".to_owned(),
                    ..FilterChainMatch::default()
                }),
                ..chain("http", http())
            }];
        }
    }
    if !layer4.tls.is_empty() && listener.listener_filters.is_empty() {
        listener.listener_filters = vec![tls_inspector()];
    }
    listener.filter_chains.extend(layer4.tls);
    if listener.listener_filters.is_empty() {
        listener.filter_chains = vec![chain("tcp", opaque)];
    } else {
        listener.listener_filters_timeout = Some(seconds(INSPECT));
        listener.continue_on_listener_filters_timeout = true;
        listener.default_filter_chain = Some(chain("tcp", opaque));
    }
    Some(listener)
}

fn chain(name: &str, end: Filter) -> FilterChain {
    FilterChain {
        name: name.to_owned(),
        filters: vec![end],
        ..FilterChain::default()
    }
}

/// Opaque bytes to one cluster.
pub(super) fn tcp(cluster: &str, stat_prefix: &str, telemetry: Telemetry) -> Filter {
    tcp_to(TcpProxy {
        access_log: telemetry.log(),
        stat_prefix: stat_prefix.to_owned(),
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
        ..TcpProxy::default()
    })
}

/// What every relay of opaque bytes has.
pub(super) fn tcp_to(proxy: TcpProxy) -> Filter {
    let proxy = TcpProxy {
        idle_timeout: Some(seconds(TCP_IDLE)),
        ..proxy
    };
    filter("envoy.filters.network.tcp_proxy", &proxy)
}

pub(super) fn original_dst() -> ListenerFilter {
    listener_filter(
        "envoy.filters.listener.original_dst",
        &OriginalDst::default(),
    )
}

pub(super) fn tls_inspector() -> ListenerFilter {
    listener_filter(
        "envoy.filters.listener.tls_inspector",
        &TlsInspector::default(),
    )
}

pub(super) fn http_inspector() -> ListenerFilter {
    listener_filter(
        "envoy.filters.listener.http_inspector",
        &HttpInspector::default(),
    )
}

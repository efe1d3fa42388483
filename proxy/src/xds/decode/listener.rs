//! `Listener`: chains, what selects them and what they end in.

use std::{sync::Arc, time::Duration};

use outrigger_proto::{
    any::Any,
    envoy::{
        config::{
            core::v3::TrafficDirection,
            listener::v3::{
                Filter, FilterChain as ChainMessage, FilterChainMatch, Listener as Message,
                ListenerFilter, filter, filter_chain_match::ConnectionSourceType, listener_filter,
            },
        },
        extensions::filters::network::tcp_proxy::v3::{TcpProxy as TcpMessage, tcp_proxy},
    },
    type_url,
};

use super::{
    at::At,
    http, rbac, tls,
    value::{
        Decoded, by_type, cidrs, enumerated, limit, port_number, required, socket_address, unpack,
    },
};
use crate::config::{
    ClusterName, Listener, ListenerName,
    listener::{ChainKind, ChainMatch, Direction, FilterChain, TcpProxy, Transport},
    rbac::Rbac,
};

/// Envoy's `listener_filters_timeout`.
const INSPECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Envoy's idle time-out of opaque connections.
const TCP_IDLE: Duration = Duration::from_secs(3600);

pub(super) fn listener(at: At<'_>, value: &Message) -> Decoded<Listener> {
    refuse_misleading(at, value)?;
    let inspect = inspectors(at, &value.listener_filters)?;
    let chains = value.filter_chains.iter().enumerate();
    let chains: Vec<Arc<FilterChain>> = chains
        .map(|(i, one)| chain(at.item("filter_chains", i), one).map(Arc::new))
        .collect::<Decoded<_>>()?;
    for (i, one) in chains.iter().enumerate() {
        let again = chains
            .iter()
            .take(i)
            .any(|other| other.matcher == one.matcher);
        at.item("filter_chains", i)
            .field("filter_chain_match")
            .refuse_if(again, "is the same as an earlier chain's")?;
    }
    let default = value.default_filter_chain.as_ref();
    let default = default.map(|one| chain(at.field("default_filter_chain"), one));
    let default_chain = default.transpose()?.map(Arc::new);
    at.field("filter_chains").refuse_if(
        chains.is_empty() && default_chain.is_none() && value.use_original_dst != Some(true),
        "needs a chain or a default_filter_chain",
    )?;
    let at_timeout = at.field("listener_filters_timeout");
    let timeout = limit(at_timeout, value.listener_filters_timeout.as_ref(), None)?;
    Ok(Listener {
        name: ListenerName::from(value.name.as_str()),
        direction: match enumerated(at.field("traffic_direction"), value.traffic_direction)? {
            TrafficDirection::Inbound => Direction::Inbound,
            TrafficDirection::Outbound | TrafficDirection::Unspecified => Direction::Outbound,
        },
        address: socket_address(at.field("address"), value.address.as_ref())?,
        bind: value.bind_to_port.unwrap_or(true),
        use_original_dst: value.use_original_dst.unwrap_or_default(),
        inspect_tls: inspect.tls,
        inspect_http: inspect.http,
        proxy_protocol: inspect.proxy_protocol,
        inspect_timeout: timeout.unwrap_or(INSPECT_TIMEOUT),
        chains,
        default_chain,
    })
}

fn refuse_misleading(at: At<'_>, value: &Message) -> Decoded<()> {
    required(at.field("name"), &value.name)?;
    at.field("api_listener")
        .refuse_if(value.api_listener.is_some(), "is for gRPC clients")?;
    at.field("internal_listener").refuse_if(
        value.listener_specifier.is_some(),
        "there are no internal listeners",
    )?;
    at.field("filter_chain_matcher").refuse_if(
        value.filter_chain_matcher.is_some(),
        "chains are chosen by filter_chain_match",
    )?;
    let more = !value.additional_addresses.is_empty();
    if value.bind_to_port == Some(false) {
        at.field("additional_addresses")
            .refuse_if(more, "send one Listener for each destination")?;
    } else {
        at.ignores("additional_addresses", more);
    }
    at.ignores("access_log", !value.access_log.is_empty());
    at.ignores("transparent", value.transparent == Some(true));
    at.ignores(
        "per_connection_buffer_limit_bytes",
        value.per_connection_buffer_limit_bytes.is_some(),
    );
    Ok(())
}

#[derive(Default)]
struct Inspect {
    tls: bool,
    http: bool,
    proxy_protocol: bool,
}

fn inspectors(at: At<'_>, filters: &[ListenerFilter]) -> Decoded<Inspect> {
    let mut out = Inspect::default();
    for (i, filter) in filters.iter().enumerate() {
        let at = at.item("listener_filters", i);
        at.ignores("filter_disabled", filter.filter_disabled.is_some());
        let any = match &filter.config_type {
            Some(listener_filter::ConfigType::TypedConfig(any)) => any,
            Some(listener_filter::ConfigType::ConfigDiscovery(_)) => {
                return Err(at.field("config_discovery").bad("has to stand here"));
            }
            None => return Err(at.bad(format!("{:?} has no typed_config", filter.name))),
        };
        by_type(at, any);
        match any.type_url.as_str() {
            type_url::TLS_INSPECTOR => out.tls = true,
            type_url::HTTP_INSPECTOR => out.http = true,
            type_url::PROXY_PROTOCOL => out.proxy_protocol = true,
            // The original destination is always asked for.
            type_url::ORIGINAL_DST => {}
            _ if super::is_noop(Some(any)) => at.ignored(),
            other => return Err(at.bad(format!("{other:?} is not a known listener filter"))),
        }
    }
    Ok(out)
}

fn chain(at: At<'_>, value: &ChainMessage) -> Decoded<FilterChain> {
    at.ignores(
        "transport_socket_connect_timeout",
        value.transport_socket_connect_timeout.is_some(),
    );
    let conditions = value.filter_chain_match.clone().unwrap_or_default();
    let socket = value.transport_socket.as_ref();
    let socket = socket.map(|socket| tls::server(at.field("transport_socket"), socket));
    let (rbac, kind) = network_filters(at, &value.filters)?;
    Ok(FilterChain {
        name: Arc::from(value.name.as_str()),
        matcher: chain_match(at.field("filter_chain_match"), &conditions)?,
        tls: socket.transpose()?.flatten().map(Arc::new),
        rbac,
        kind,
    })
}

fn network_filters(at: At<'_>, filters: &[Filter]) -> Decoded<(Vec<Arc<Rbac>>, ChainKind)> {
    let mut rbac_filters = Vec::new();
    let last = filters.len().saturating_sub(1);
    for (i, value) in filters.iter().enumerate() {
        let at = at.item("filters", i);
        let any = network_config(at, value)?;
        let at_config = at.field("typed_config");
        let end = match any.type_url.as_str() {
            type_url::NETWORK_RBAC => {
                rbac_filters.push(Arc::new(rbac::network(
                    at_config,
                    &unpack(at_config, any)?,
                )?));
                None
            }
            type_url::HTTP_CONNECTION_MANAGER => {
                let manager = http::manager(at_config, &unpack(at_config, any)?)?;
                Some(ChainKind::Http(Arc::new(manager)))
            }
            type_url::TCP_PROXY => {
                let proxy = tcp_proxy_of(at_config, &unpack(at_config, any)?)?;
                Some(ChainKind::Tcp(Arc::new(proxy)))
            }
            _ if super::is_noop(Some(any)) => {
                at.ignored();
                None
            }
            other => return Err(at.bad(format!("{other:?} is not a known network filter"))),
        };
        if let Some(kind) = end {
            at.refuse_if(i != last, "ends the chain, but is not its last filter")?;
            return Ok((rbac_filters, kind));
        }
    }
    Err(at
        .field("filters")
        .bad("must end in an HttpConnectionManager or a TcpProxy"))
}

fn network_config<'f>(at: At<'_>, value: &'f Filter) -> Decoded<&'f Any> {
    match &value.config_type {
        Some(filter::ConfigType::TypedConfig(any)) => Ok(any),
        Some(filter::ConfigType::ConfigDiscovery(_)) => {
            Err(at.field("config_discovery").bad("has to stand here"))
        }
        None => Err(at.bad(format!("{:?} has no typed_config", value.name))),
    }
}

fn chain_match(at: At<'_>, value: &FilterChainMatch) -> Decoded<ChainMatch> {
    let at_type = at.field("source_type");
    match enumerated(at_type, value.source_type)? {
        ConnectionSourceType::Any => {}
        ConnectionSourceType::SameIpOrLoopback | ConnectionSourceType::External => {
            return Err(at_type.bad("is not compared"));
        }
    }
    let suffix = !value.address_suffix.is_empty() || value.suffix_len.is_some();
    at.field("address_suffix")
        .refuse_if(suffix, "is not compared")?;
    let direct = !value.direct_source_prefix_ranges.is_empty();
    // Both mean the peer of the connection here.
    let (field, sources) = if direct {
        let both = !value.source_prefix_ranges.is_empty();
        at.field("direct_source_prefix_ranges")
            .refuse_if(both, "stands beside source_prefix_ranges")?;
        (
            "direct_source_prefix_ranges",
            &value.direct_source_prefix_ranges,
        )
    } else {
        ("source_prefix_ranges", &value.source_prefix_ranges)
    };
    let port = value.destination_port;
    let port = port
        .map(|port| port_number(at.field("destination_port"), port))
        .transpose()?;
    let ports = value.source_ports.iter().enumerate();
    let names = value.server_names.iter().enumerate();
    let protocols = value.application_protocols.iter();
    Ok(ChainMatch {
        destination_port: port,
        destinations: cidrs(at, "prefix_ranges", &value.prefix_ranges)?,
        server_names: names
            .map(|(i, name)| server_name(at.item("server_names", i), name))
            .collect::<Decoded<_>>()?,
        transport: match value.transport_protocol.as_str() {
            "" => None,
            "tls" => Some(Transport::Tls),
            "raw_buffer" => Some(Transport::RawBuffer),
            other => {
                let at = at.field("transport_protocol");
                return Err(at.bad(format!("{other:?} is neither \"tls\" nor \"raw_buffer\"")));
            }
        },
        application_protocols: protocols.map(|name| name.as_bytes().into()).collect(),
        sources: cidrs(at, field, sources)?,
        source_ports: ports
            .map(|(i, port)| port_number(at.item("source_ports", i), *port))
            .collect::<Decoded<_>>()?,
    })
}

fn server_name(at: At<'_>, name: &str) -> Decoded<Box<str>> {
    let name = required(at, name)?.to_ascii_lowercase();
    let rest = name.strip_prefix('*').unwrap_or(&name);
    at.refuse_if(rest.contains('*'), "has a star that is not first")?;
    Ok(name.into())
}

fn tcp_proxy_of(at: At<'_>, value: &TcpMessage) -> Decoded<TcpProxy> {
    at.field("tunneling_config").refuse_if(
        value.tunneling_config.is_some(),
        "connections are not tunnelled",
    )?;
    at.field("metadata_match").refuse_if(
        value.metadata_match.is_some(),
        "there are no subsets of endpoints",
    )?;
    at.ignores("hash_policy", !value.hash_policy.is_empty());
    at.ignores(
        "max_downstream_connection_duration",
        value.max_downstream_connection_duration.is_some(),
    );
    let attempts = value.max_connect_attempts.unwrap_or(1);
    at.field("max_connect_attempts")
        .refuse_if(attempts == 0, "must be 1 or more")?;
    Ok(TcpProxy {
        stat_prefix: Arc::from(value.stat_prefix.as_str()),
        clusters: tcp_clusters(at, value)?,
        idle_timeout: limit(
            at.field("idle_timeout"),
            value.idle_timeout.as_ref(),
            Some(TCP_IDLE),
        )?,
        max_connect_attempts: attempts,
        access_log: !value.access_log.is_empty(),
    })
}

fn tcp_clusters(at: At<'_>, value: &TcpMessage) -> Decoded<Vec<(ClusterName, u32)>> {
    match &value.cluster_specifier {
        Some(tcp_proxy::ClusterSpecifier::Cluster(name)) => {
            let name = required(at.field("cluster"), name)?;
            Ok(vec![(ClusterName::from(name), 1)])
        }
        Some(tcp_proxy::ClusterSpecifier::WeightedClusters(inner)) => {
            let at = at.field("weighted_clusters");
            at.field("clusters")
                .refuse_if(inner.clusters.is_empty(), "needs at least one")?;
            let mut sum: u64 = 0;
            let mut out = Vec::with_capacity(inner.clusters.len());
            for (i, arm) in inner.clusters.iter().enumerate() {
                let at = at.item("clusters", i);
                at.field("metadata_match").refuse_if(
                    arm.metadata_match.is_some(),
                    "there are no subsets of endpoints",
                )?;
                at.field("weight")
                    .refuse_if(arm.weight == 0, "must be 1 or more")?;
                sum += u64::from(arm.weight);
                let name = required(at.field("name"), &arm.name)?;
                out.push((ClusterName::from(name), arm.weight));
            }
            at.refuse_if(
                sum > u64::from(u32::MAX),
                "the weights add up to over 4294967295",
            )?;
            Ok(out)
        }
        None => Err(at.bad("needs cluster or weighted_clusters")),
    }
}

//! `Cluster`: a destination and the rules for reaching it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use outrigger_proto::{
    envoy::{
        config::{
            cluster::v3::{
                CircuitBreakers, Cluster as Message,
                circuit_breakers::Thresholds,
                cluster::{
                    ClusterDiscoveryType, CustomClusterType, DiscoveryType, DnsLookupFamily,
                    LbConfig, TransportSocketMatch,
                },
            },
            core::v3::{
                Http2ProtocolOptions, HttpProtocolOptions as CommonOptions, RoutingPriority,
                TransportSocket,
            },
            endpoint::v3::{ClusterLoadAssignment, lb_endpoint::HostIdentifier},
        },
        extensions::{
            clusters::aggregate::v3::ClusterConfig,
            upstreams::http::v3::{
                HttpProtocolOptions,
                http_protocol_options::{
                    UpstreamProtocolOptions as Upstream, explicit_http_config::ProtocolConfig,
                },
            },
        },
    },
    type_url,
};
use prost_types::value::Kind;

use super::{
    at::At,
    balancing, endpoint, health,
    value::{Decoded, enumerated, host_and_port, limit, positive, required, unpack, whole_percent},
};
use crate::config::{
    Cluster, ClusterName, Endpoints,
    cluster::{
        Breaker, Discovery, H2Keepalive, Limits, RetryBudget, TcpKeepalive, TlsChoice, TlsMatch,
        UpstreamProtocol,
    },
    tls::ClientTls,
};

/// The key of the HTTP options in `typed_extension_protocol_options`.
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
/// More members than anybody lists; each is a lookup in a chain of fallbacks.
const MAX_AGGREGATE: usize = 64;

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A cluster, and its members where they stand in the resource itself.
pub(super) fn cluster(at: At<'_>, value: &Message) -> Decoded<(Cluster, Option<Endpoints>)> {
    refuse_misleading(at, value)?;
    let (discovery, members) = discovery(at, value)?;
    let policy = balancing::policy(at, value)?;
    let http = http(at, value, &discovery)?;
    let common = value.common_lb_config.clone().unwrap_or_default();
    let outlier = value.outlier_detection.as_ref();
    let outlier = outlier.map(|inner| health::outlier(at.field("outlier_detection"), inner));
    let (limits, high_priority_limits) = limits(
        at.field("circuit_breakers"),
        value.circuit_breakers.as_ref(),
    )?;
    let cluster = Cluster {
        name: ClusterName::from(value.name.as_str()),
        discovery,
        connect_timeout: positive(
            at.field("connect_timeout"),
            value.connect_timeout.as_ref(),
            seconds(5),
        )?,
        balancing: policy.balancing,
        locality: policy.locality,
        panic_threshold: whole_percent(
            at.field("common_lb_config")
                .field("healthy_panic_threshold"),
            common.healthy_panic_threshold.as_ref(),
            50,
        )?,
        protocol: http.protocol,
        max_requests_per_connection: http.max_requests.filter(|n| *n > 0),
        idle_timeout: http.idle_timeout,
        limits,
        high_priority_limits,
        outlier: outlier.transpose()?,
        breaker: breaker(at, value)?,
        health_checks: health::checks(at, &value.health_checks)?,
        close_on_health_failure: value.close_connections_on_host_health_failure,
        tls: tls(at, value)?,
        tcp_keepalive: keepalive(value),
        slow_start: policy.slow_start,
        h2_keepalive: http.keepalive,
    };
    Ok((cluster, members))
}

fn refuse_misleading(at: At<'_>, value: &Message) -> Decoded<()> {
    required(at.field("name"), &value.name)?;
    at.field("lb_subset_config").refuse_if(
        value.lb_subset_config.is_some(),
        "there are no subsets of endpoints",
    )?;
    for (i, filter) in value.filters.iter().enumerate() {
        let at = at.item("filters", i);
        if super::is_noop(filter.typed_config.as_ref()) {
            at.ignored();
        } else {
            return Err(at.bad(format!("{:?} is not a known filter", filter.name)));
        }
    }
    at.ignores("upstream_bind_config", value.upstream_bind_config.is_some());
    at.ignores("lrs_server", value.lrs_server.is_some());
    at.ignores(
        "typed_dns_resolver_config",
        value.typed_dns_resolver_config.is_some(),
    );
    at.ignores(
        "per_connection_buffer_limit_bytes",
        value.per_connection_buffer_limit_bytes.is_some(),
    );
    at.ignores("respect_dns_ttl", value.respect_dns_ttl);
    at.ignores(
        "ignore_health_on_host_removal",
        value.ignore_health_on_host_removal,
    );
    Ok(())
}

fn discovery(at: At<'_>, value: &Message) -> Decoded<(Discovery, Option<Endpoints>)> {
    let kind = match &value.cluster_discovery_type {
        Some(ClusterDiscoveryType::ClusterType(custom)) => {
            return Ok((aggregate(at.field("cluster_type"), custom)?, None));
        }
        Some(ClusterDiscoveryType::Type(kind)) => *kind,
        None => 0,
    };
    let at_type = at.field("type");
    let kind = enumerated(at_type, kind)?;
    let at_members = at.field("load_assignment");
    let listed = value.load_assignment.clone().unwrap_or_default();
    Ok(match kind {
        DiscoveryType::Static => {
            let members = endpoint::assignment(at_members, &listed)?;
            (Discovery::Static, Some(members))
        }
        DiscoveryType::Eds => (eds(at, value)?, None),
        DiscoveryType::StrictDns => (dns(at, value, &listed, false)?, None),
        DiscoveryType::LogicalDns => (dns(at, value, &listed, true)?, None),
        DiscoveryType::OriginalDst => {
            if let Some(LbConfig::OriginalDstLbConfig(inner)) = &value.lb_config {
                let at = at.field("original_dst_lb_config");
                let why = "the destination is the one that was dialled";
                at.field("use_http_header")
                    .refuse_if(inner.use_http_header, why)?;
                at.field("metadata_key")
                    .refuse_if(inner.metadata_key.is_some(), why)?;
                at.field("upstream_port_override")
                    .refuse_if(inner.upstream_port_override.is_some(), why)?;
            }
            (Discovery::OriginalDst, None)
        }
    })
}

fn eds(at: At<'_>, value: &Message) -> Decoded<Discovery> {
    let at = at.field("eds_cluster_config");
    let config = value.eds_cluster_config.as_ref();
    let config = config.ok_or_else(|| at.bad("is required"))?;
    super::own_source(at.field("eds_config"), config.eds_config.as_ref())?;
    let name = match config.service_name.as_str() {
        "" => value.name.as_str(),
        name => name,
    };
    Ok(Discovery::Eds(Arc::from(name)))
}

fn aggregate(at: At<'_>, custom: &CustomClusterType) -> Decoded<Discovery> {
    let at_config = at.field("typed_config");
    match &custom.typed_config {
        Some(any) if any.type_url == type_url::AGGREGATE_CLUSTER => {
            let ClusterConfig { clusters } = unpack(at_config, any)?;
            let at = at_config.field("clusters");
            let count = clusters.len();
            at.refuse_if(count == 0 || count > MAX_AGGREGATE, "must be 1 to 64 names")?;
            for name in &clusters {
                required(at, name)?;
            }
            let names = clusters.into_iter().map(ClusterName::from);
            Ok(Discovery::Aggregate(names.collect()))
        }
        _ => Err(at.bad(format!("{:?} is not a known type of cluster", custom.name))),
    }
}

fn dns(
    at: At<'_>,
    value: &Message,
    listed: &ClusterLoadAssignment,
    logical: bool,
) -> Decoded<Discovery> {
    let at_family = at.field("dns_lookup_family");
    let family = enumerated(at_family, value.dns_lookup_family)?;
    let any = [
        DnsLookupFamily::Auto,
        DnsLookupFamily::All,
        DnsLookupFamily::V4Preferred,
    ];
    at.ignores("dns_lookup_family", !any.contains(&family));
    let mut hosts = Vec::new();
    let at_members = at.field("load_assignment");
    for (i, group) in listed.endpoints.iter().enumerate() {
        let at = at_members.item("endpoints", i);
        for (j, member) in group.lb_endpoints.iter().enumerate() {
            let at = at.item("lb_endpoints", j);
            hosts.push(dns_host(at, member.host_identifier.as_ref())?);
        }
    }
    at_members.refuse_if(hosts.is_empty(), "needs an endpoint")?;
    // gRFC A37, Envoy.
    at_members.refuse_if(
        logical && hosts.len() != 1,
        "LOGICAL_DNS has exactly one endpoint",
    )?;
    Ok(Discovery::Dns {
        hosts,
        logical,
        refresh: positive(
            at.field("dns_refresh_rate"),
            value.dns_refresh_rate.as_ref(),
            seconds(5),
        )?,
    })
}

fn dns_host(at: At<'_>, member: Option<&HostIdentifier>) -> Decoded<(Box<str>, u16)> {
    use outrigger_proto::envoy::config::core::v3::address::Address;
    let at = at.field("endpoint");
    let at = at.field("address");
    let Some(HostIdentifier::Endpoint(member)) = member else {
        return Err(at.bad("is required"));
    };
    match member
        .address
        .as_ref()
        .and_then(|inner| inner.address.as_ref())
    {
        Some(Address::SocketAddress(socket)) => {
            let at = at.field("socket_address");
            let (host, port) = host_and_port(at, socket)?;
            Ok((required(at.field("address"), host)?.into(), port))
        }
        Some(Address::Pipe(_) | Address::EnvoyInternalAddress(_)) | None => {
            Err(at.bad("needs a socket_address"))
        }
    }
}

struct Http {
    protocol: UpstreamProtocol,
    idle_timeout: Option<Duration>,
    max_requests: Option<u32>,
    keepalive: Option<H2Keepalive>,
}

fn http(at: At<'_>, value: &Message, discovery: &Discovery) -> Decoded<Http> {
    let at_options = at.field("typed_extension_protocol_options");
    for key in value.typed_extension_protocol_options.keys() {
        if key != HTTP_OPTIONS {
            let at = at.key("typed_extension_protocol_options", key);
            return Err(at.bad("is not known"));
        }
    }
    let options: Option<HttpProtocolOptions> = value
        .typed_extension_protocol_options
        .get(HTTP_OPTIONS)
        .map(|any| unpack(at_options, any))
        .transpose()?;
    let Some(options) = options else {
        let protocol = match (&value.http2_protocol_options, discovery) {
            (Some(_), _) => UpstreamProtocol::Http2,
            // What was dialled there speaks what its client speaks.
            (None, Discovery::OriginalDst) => UpstreamProtocol::Downstream,
            (None, _) => UpstreamProtocol::Http1,
        };
        return Ok(Http {
            keepalive: h2_keepalive(at, value.http2_protocol_options.as_ref())?,
            ..common_http(
                at,
                value.common_http_protocol_options.as_ref(),
                value,
                protocol,
            )?
        });
    };
    note_http(at_options, &options)?;
    let (protocol, h2) = match &options.upstream_protocol_options {
        Some(Upstream::ExplicitHttpConfig(inner)) => match &inner.protocol_config {
            Some(ProtocolConfig::Http2ProtocolOptions(h2)) => (UpstreamProtocol::Http2, Some(h2)),
            Some(ProtocolConfig::HttpProtocolOptions(_)) => (UpstreamProtocol::Http1, None),
            None => {
                let at = at_options.field("explicit_http_config");
                return Err(at.bad("names no protocol"));
            }
        },
        Some(Upstream::UseDownstreamProtocolConfig(inner)) => (
            UpstreamProtocol::Downstream,
            inner.http2_protocol_options.as_ref(),
        ),
        Some(Upstream::AutoConfig(inner)) => (
            UpstreamProtocol::Downstream,
            inner.http2_protocol_options.as_ref(),
        ),
        None => return Err(at_options.bad("names no protocol")),
    };
    let common = options.common_http_protocol_options.as_ref();
    Ok(Http {
        keepalive: h2_keepalive(at_options, h2)?,
        ..common_http(at_options, common, value, protocol)?
    })
}

fn note_http(at: At<'_>, options: &HttpProtocolOptions) -> Decoded<()> {
    at.field("http_filters").refuse_if(
        options
            .http_filters
            .iter()
            .any(|filter| !filter.name.ends_with("upstream_codec")),
        "there are no upstream filters",
    )?;
    if let Some(tls) = &options.upstream_http_protocol_options {
        let at = at.field("upstream_http_protocol_options");
        at.ignores("auto_sni", tls.auto_sni);
        at.field("auto_san_validation")
            .refuse_if(tls.auto_san_validation, "is not enforced")?;
    }
    Ok(())
}

fn common_http(
    at: At<'_>,
    options: Option<&CommonOptions>,
    cluster: &Message,
    protocol: UpstreamProtocol,
) -> Decoded<Http> {
    // Envoy's default.
    let hour = Some(seconds(3600));
    let at = at.field("common_http_protocol_options");
    if let Some(options) = options {
        at.ignores(
            "max_connection_duration",
            options.max_connection_duration.is_some(),
        );
        at.ignores("max_stream_duration", options.max_stream_duration.is_some());
        at.ignores("max_headers_count", options.max_headers_count.is_some());
        at.ignores(
            "max_response_headers_kb",
            options.max_response_headers_kb.is_some(),
        );
    }
    let idle = options.and_then(|options| options.idle_timeout.as_ref());
    let requests = options.and_then(|options| options.max_requests_per_connection);
    Ok(Http {
        protocol,
        idle_timeout: limit(at.field("idle_timeout"), idle, hour)?,
        max_requests: requests.or(cluster.max_requests_per_connection),
        keepalive: None,
    })
}

fn h2_keepalive(
    at: At<'_>,
    options: Option<&Http2ProtocolOptions>,
) -> Decoded<Option<H2Keepalive>> {
    let settings = options.and_then(|options| options.connection_keepalive.as_ref());
    let Some(settings) = settings else {
        return Ok(None);
    };
    let at = at.field("connection_keepalive");
    let at_interval = at.field("interval");
    let Some(interval) = limit(at_interval, settings.interval.as_ref(), None)? else {
        return Ok(None);
    };
    at.field("timeout")
        .refuse_if(settings.timeout.is_none(), "is required")?;
    Ok(Some(H2Keepalive {
        interval,
        timeout: positive(at.field("timeout"), settings.timeout.as_ref(), seconds(1))?,
    }))
}

/// Limits for ordinary and for high-priority requests.
fn limits(at: At<'_>, value: Option<&CircuitBreakers>) -> Decoded<(Limits, Limits)> {
    let (mut normal, mut high) = (Limits::DEFAULT, Limits::DEFAULT);
    let Some(value) = value else {
        return Ok((normal, high));
    };
    at.ignores("per_host_thresholds", !value.per_host_thresholds.is_empty());
    // gRFC A32: the first entry of a priority counts.
    for (i, entry) in value.thresholds.iter().enumerate().rev() {
        let at = at.item("thresholds", i);
        let decoded = thresholds(at, entry)?;
        match enumerated(at.field("priority"), entry.priority)? {
            RoutingPriority::Default => normal = decoded,
            RoutingPriority::High => high = decoded,
        }
    }
    Ok((normal, high))
}

fn thresholds(at: At<'_>, value: &Thresholds) -> Decoded<Limits> {
    let default = Limits::DEFAULT;
    let mut budget = default.retry_budget;
    if let Some(own) = &value.retry_budget {
        let at = at.field("retry_budget");
        budget = RetryBudget {
            percent: whole_percent(
                at.field("budget_percent"),
                own.budget_percent.as_ref(),
                budget.percent,
            )?,
            min_concurrency: own.min_retry_concurrency.unwrap_or(budget.min_concurrency),
            interval: positive(
                at.field("budget_interval"),
                own.budget_interval.as_ref(),
                budget.interval,
            )?,
        };
    }
    Ok(Limits {
        max_connections: value.max_connections.unwrap_or(default.max_connections),
        max_pending: value.max_pending_requests.unwrap_or(default.max_pending),
        max_requests: value.max_requests.unwrap_or(default.max_requests),
        max_retries: value.max_retries.unwrap_or(default.max_retries),
        retry_budget: budget,
    })
}

fn breaker(at: At<'_>, value: &Message) -> Decoded<Option<Breaker>> {
    let metadata = value.metadata.as_ref();
    let any = metadata.and_then(|m| m.typed_filter_metadata.get(type_url::BREAKER_METADATA_KEY));
    let Some(any) = any else { return Ok(None) };
    let at = at.field("metadata");
    let at = at.key("typed_filter_metadata", type_url::BREAKER_METADATA_KEY);
    health::breaker(at, &unpack(at, any)?).map(Some)
}

fn tls(at: At<'_>, value: &Message) -> Decoded<TlsChoice> {
    let socket =
        |at: At<'_>, socket: Option<&TransportSocket>| -> Decoded<Option<Arc<ClientTls>>> {
            match socket {
                Some(socket) => Ok(super::tls::client(at, socket)?.map(Arc::new)),
                None => Ok(None),
            }
        };
    let each = value.transport_socket_matches.iter().enumerate();
    Ok(TlsChoice {
        default: socket(
            at.field("transport_socket"),
            value.transport_socket.as_ref(),
        )?,
        matches: each
            .map(|(i, entry)| {
                let at = at.item("transport_socket_matches", i);
                Ok(TlsMatch {
                    pairs: pairs(at, entry)?,
                    tls: socket(
                        at.field("transport_socket"),
                        entry.transport_socket.as_ref(),
                    )?,
                })
            })
            .collect::<Decoded<_>>()?,
    })
}

type Pair = (Box<str>, Box<str>);

fn pairs(at: At<'_>, entry: &TransportSocketMatch) -> Decoded<Vec<Pair>> {
    let none = BTreeMap::new();
    let fields = entry.r#match.as_ref().map_or(&none, |inner| &inner.fields);
    let each = fields.iter();
    each.map(|(key, value)| match &value.kind {
        Some(Kind::StringValue(text)) => Ok((key.as_str().into(), text.as_str().into())),
        _ => Err(at.key("match", key).bad("only texts are compared")),
    })
    .collect()
}

fn keepalive(value: &Message) -> Option<TcpKeepalive> {
    let options = value.upstream_connection_options.as_ref()?;
    let settings = options.tcp_keepalive.as_ref()?;
    let time = |setting: Option<u32>, default: u64| {
        setting.map_or_else(|| seconds(default), |n| seconds(n.max(1).into()))
    };
    // Linux's own defaults are hours; these are the proxy's.
    Some(TcpKeepalive {
        time: time(settings.keepalive_time, 30),
        interval: time(settings.keepalive_interval, 10),
        probes: settings.keepalive_probes.unwrap_or(3).max(1),
    })
}

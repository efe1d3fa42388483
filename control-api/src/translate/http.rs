//! The HTTP connection manager of every HTTP chain.

use outrigger_proto::envoy::{
    config::{
        core::v3::{Http1ProtocolOptions, RuntimeFractionalPercent},
        route::v3::RouteConfiguration,
    },
    extensions::filters::{
        http::{fault::v3::HttpFault, local_ratelimit::v3::LocalRateLimit},
        network::http_connection_manager::v3::{
            HttpConnectionManager, HttpFilter, Rds,
            http_connection_manager::{
                CodecType, ForwardClientCertDetails, RouteSpecifier, ServerHeaderTransformation,
                SetCurrentClientCertDetails, Tracing,
            },
        },
    },
    r#type::v3::TokenBucket,
};

use super::{
    authz::Rules,
    proto::{ads, duration, http_filter, percent, router, seconds},
    route::fraction,
    workload::Telemetry,
};
use crate::model::RateLimitSpec;

/// The filter's name.
pub(super) const NAME: &str = "envoy.filters.network.http_connection_manager";
/// The fault filter's name, under which routes say what faults they want.
pub(super) const FAULT: &str = "envoy.filters.http.fault";

/// The rate limit's name, under which routes say theirs.
pub(super) const RATE_LIMIT: &str = "envoy.filters.http.local_ratelimit";

/// Where routes are.
pub(super) enum Routing {
    /// In a resource of this name.
    Rds(String),
    /// Here.
    Inline(Box<RouteConfiguration>),
}

/// For requests that leave the pod.
pub(super) fn outbound(telemetry: Telemetry, routing: Routing) -> HttpConnectionManager {
    HttpConnectionManager {
        stat_prefix: "outbound".to_owned(),
        // These do nothing until a route asks for them, so that asking changes the route alone.
        ..common(
            telemetry,
            routing,
            vec![
                http_filter(RATE_LIMIT, &no_limit()),
                http_filter(FAULT, &HttpFault::default()),
            ],
        )
    }
}

/// What requests that come into the pod pass.
pub(super) struct Gate<'w> {
    pub(super) rules: &'w Rules<'w>,
    pub(super) limit: Option<&'w RateLimitSpec>,
    pub(super) telemetry: Telemetry,
    /// Over mutual TLS: the application is told who calls.
    pub(super) mesh: bool,
}

/// For requests that come into the pod.
pub(super) fn inbound(gate: &Gate<'_>, routing: Routing) -> HttpConnectionManager {
    let rules = gate.rules.filters(true);
    let guarded = !rules.is_empty();
    let mut filters = Vec::new();
    for filter in rules {
        let name = format!("envoy.filters.http.rbac.{}", filter.name);
        filters.push(http_filter(&name, &filter.http()));
    }
    if let Some(limit) = gate.limit {
        filters.push(http_filter(RATE_LIMIT, &rate_limit("inbound", limit)));
    }
    HttpConnectionManager {
        stat_prefix: "inbound".to_owned(),
        forward_client_cert_details: if gate.mesh {
            ForwardClientCertDetails::SanitizeSet.into()
        } else {
            ForwardClientCertDetails::Sanitize.into()
        },
        set_current_client_cert_details: gate.mesh.then(|| SetCurrentClientCertDetails {
            uri: true,
            ..SetCurrentClientCertDetails::default()
        }),
        // Rules must see the path that the application will see.
        normalize_path: guarded.then_some(true),
        merge_slashes: guarded,
        ..common(gate.telemetry, routing, filters)
    }
}

fn no_limit() -> LocalRateLimit {
    LocalRateLimit {
        stat_prefix: "outbound".to_owned(),
        ..LocalRateLimit::default()
    }
}

/// `name` tells limits apart: what has the same shares one bucket.
pub(super) fn rate_limit(name: &str, own: &RateLimitSpec) -> LocalRateLimit {
    let always = || RuntimeFractionalPercent {
        default_value: Some(fraction(1_000_000)),
        runtime_key: String::new(),
    };
    LocalRateLimit {
        stat_prefix: name.to_owned(),
        token_bucket: Some(TokenBucket {
            max_tokens: own.burst.unwrap_or(own.requests),
            tokens_per_fill: Some(own.requests),
            fill_interval: Some(duration(own.per.0)),
        }),
        filter_enabled: Some(always()),
        filter_enforced: Some(always()),
        ..LocalRateLimit::default()
    }
}

/// What every manager has: nothing that changes a message, no limit that ends a stream at work.
fn common(
    telemetry: Telemetry,
    routing: Routing,
    mut filters: Vec<HttpFilter>,
) -> HttpConnectionManager {
    filters.push(router());
    HttpConnectionManager {
        codec_type: CodecType::Auto.into(),
        route_specifier: Some(match routing {
            Routing::Rds(name) => RouteSpecifier::Rds(Rds {
                config_source: Some(ads()),
                route_config_name: name,
            }),
            Routing::Inline(routes) => RouteSpecifier::RouteConfig(*routes),
        }),
        http_filters: filters,
        access_log: telemetry.log(),
        http_protocol_options: Some(Http1ProtocolOptions {
            accept_http_10: true,
            ..Http1ProtocolOptions::default()
        }),
        server_header_transformation: ServerHeaderTransformation::PassThrough.into(),
        stream_idle_timeout: Some(seconds(0)),
        preserve_external_request_id: true,
        tracing: telemetry.sampling.map(|share| Tracing {
            random_sampling: Some(percent(share.percent())),
            ..Tracing::default()
        }),
        ..HttpConnectionManager::default()
    }
}

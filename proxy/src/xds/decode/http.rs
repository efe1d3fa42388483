//! `HttpConnectionManager` and the HTTP filters.

use std::{sync::Arc, time::Duration};

use ::http::StatusCode;
use outrigger_proto::{
    any::Any,
    envoy::{
        config::{
            accesslog::v3::access_log,
            core::v3::{HttpProtocolOptions, grpc_service::TargetSpecifier, http_protocol_options},
            trace::v3::{OpenTelemetryConfig, tracing::http as provider},
        },
        extensions::filters::{
            common::fault::v3::{FaultDelay, fault_delay},
            http::{
                fault::v3::{FaultAbort, HttpFault, fault_abort},
                local_ratelimit::v3::LocalRateLimit as RateLimitMessage,
            },
            network::http_connection_manager::v3::{
                HttpConnectionManager as Message, HttpFilter as FilterMessage,
                http_connection_manager::{
                    CodecType, ForwardClientCertDetails, RouteSpecifier, Tracing as TracingMessage,
                    UpgradeConfig,
                },
                http_filter,
            },
        },
        r#type::v3::FractionalPercent,
    },
    type_url,
};

use super::{
    at::At,
    matcher, rbac, route,
    value::{
        Decoded, by_type, enumerated, fraction, limit, percent, positive, required,
        runtime_fraction, share, status, unpack,
    },
};
use crate::config::{
    RouteConfigName,
    listener::{
        Codec, Collector, ForwardClientCert, HttpFilter, HttpManager, LocalRateLimit, Routes,
        Tracing,
    },
    route::{Abort, FaultInjection},
    units::Fraction,
};

const fn minutes(n: u64) -> Option<Duration> {
    Some(Duration::from_secs(60 * n))
}

/// Envoy's maximum of a request head.
const MAX_HEADERS_KB: u32 = 8192;
/// Envoy's default of a request head.
const HEADERS_KB: u32 = 60;

pub(super) fn manager(at: At<'_>, value: &Message) -> Decoded<HttpManager> {
    refuse_misleading(at, value)?;
    let kb = value.max_request_headers_kb.unwrap_or(HEADERS_KB);
    at.field("max_request_headers_kb")
        .refuse_if(kb == 0 || kb > MAX_HEADERS_KB, "must be 1 to 8192")?;
    let at_common = at.field("common_http_protocol_options");
    let common = value.common_http_protocol_options.unwrap_or_default();
    refuse_common(at_common, &common)?;
    let tracing = value.tracing.as_ref();
    let tracing = tracing.map(|inner| tracing_of(at.field("tracing"), inner));
    Ok(HttpManager {
        stat_prefix: Arc::from(value.stat_prefix.as_str()),
        codec: codec(at.field("codec_type"), value.codec_type)?,
        routes: routes(at, value)?,
        filters: filters(at, &value.http_filters)?,
        stream_idle_timeout: limit(
            at.field("stream_idle_timeout"),
            value.stream_idle_timeout.as_ref(),
            minutes(5),
        )?,
        idle_timeout: limit(
            at_common.field("idle_timeout"),
            common.idle_timeout.as_ref(),
            minutes(60),
        )?,
        request_headers_timeout: limit(
            at.field("request_headers_timeout"),
            value.request_headers_timeout.as_ref(),
            minutes(1),
        )?,
        max_stream_duration: limit(
            at_common.field("max_stream_duration"),
            common.max_stream_duration.as_ref(),
            None,
        )?,
        max_request_headers_kb: kb,
        max_requests_per_connection: common.max_requests_per_connection.filter(|n| *n > 0),
        upgrades: upgrades(at, &value.upgrade_configs)?,
        tracing: tracing.transpose()?,
        forward_client_cert: forward_cert(at, value.forward_client_cert_details)?,
        access_log: !value.access_log.is_empty(),
        server_name: match value.server_name.as_str() {
            "" => "outrigger".into(),
            name => name.into(),
        },
    })
}

fn refuse_misleading(at: At<'_>, value: &Message) -> Decoded<()> {
    at.field("xff_num_trusted_hops").refuse_if(
        value.xff_num_trusted_hops != 0,
        "x-forwarded-for is trusted from nobody",
    )?;
    at.field("original_ip_detection_extensions").refuse_if(
        !value.original_ip_detection_extensions.is_empty(),
        "no extensions are known",
    )?;
    for (i, log) in value.access_log.iter().enumerate() {
        let at = at.item("access_log", i);
        at.ignores("filter", log.filter.is_some());
        // Where and how it is written is the proxy's own setting.
        let own = matches!(&log.config_type, Some(access_log::ConfigType::TypedConfig(any))
            if any.type_url == type_url::STDOUT_ACCESS_LOG && any.value.is_empty());
        at.ignores("typed_config", log.config_type.is_some() && !own);
    }
    note_unhonoured(at, value);
    Ok(())
}

/// What is set and done otherwise, or not at all.
fn note_unhonoured(at: At<'_>, value: &Message) {
    let strips = value.strip_matching_host_port || value.strip_port_mode.is_some();
    let http1 = value.http_protocol_options.as_ref();
    let names = http1.is_some_and(|options| options.header_key_format.is_some());
    for (field, set) in [
        ("strip_matching_host_port", strips),
        ("local_reply_config", value.local_reply_config.is_some()),
        ("request_timeout", value.request_timeout.is_some()),
        ("drain_timeout", value.drain_timeout.is_some()),
        (
            "delayed_close_timeout",
            value.delayed_close_timeout.is_some(),
        ),
        ("via", !value.via.is_empty()),
        ("append_x_forwarded_port", value.append_x_forwarded_port),
        ("skip_xff_append", value.skip_xff_append),
        (
            "internal_address_config",
            value.internal_address_config.is_some(),
        ),
        ("http_protocol_options.header_key_format", names),
        (
            "http2_protocol_options",
            value.http2_protocol_options.is_some(),
        ),
        ("proxy_100_continue", value.proxy_100_continue),
        ("merge_slashes", value.merge_slashes),
        // Paths are always normalized, and judged in every reading of an escaped slash.
        ("normalize_path", value.normalize_path == Some(false)),
        (
            "path_with_escaped_slashes_action",
            value.path_with_escaped_slashes_action > 1,
        ),
        (
            "generate_request_id",
            value.generate_request_id == Some(false),
        ),
        (
            "always_set_request_id_in_response",
            value.always_set_request_id_in_response,
        ),
        // Answers pass with the header that they came with.
        (
            "server_header_transformation",
            value.server_header_transformation == 1,
        ),
    ] {
        at.ignores(field, set);
    }
}

fn refuse_common(at: At<'_>, common: &HttpProtocolOptions) -> Decoded<()> {
    use http_protocol_options::HeadersWithUnderscoresAction as A;
    let at_action = at.field("headers_with_underscores_action");
    match enumerated(at_action, common.headers_with_underscores_action)? {
        A::Allow => {}
        A::RejectRequest | A::DropHeader => return Err(at_action.bad("is not enforced")),
    }
    at.ignores("max_headers_count", common.max_headers_count.is_some());
    at.ignores(
        "max_connection_duration",
        common.max_connection_duration.is_some(),
    );
    Ok(())
}

fn codec(at: At<'_>, value: i32) -> Decoded<Codec> {
    match enumerated(at, value)? {
        CodecType::Auto => Ok(Codec::Auto),
        CodecType::Http1 => Ok(Codec::Http1),
        CodecType::Http2 => Ok(Codec::Http2),
        CodecType::Http3 => Err(at.bad("HTTP/3 is not spoken")),
    }
}

fn routes(at: At<'_>, value: &Message) -> Decoded<Routes> {
    match &value.route_specifier {
        Some(RouteSpecifier::Rds(rds)) => {
            let at = at.field("rds");
            super::own_source(at.field("config_source"), rds.config_source.as_ref())?;
            let name = required(at.field("route_config_name"), &rds.route_config_name)?;
            Ok(Routes::Rds(RouteConfigName::from(name)))
        }
        Some(RouteSpecifier::RouteConfig(inner)) => {
            let inner = route::config(at.field("route_config"), inner)?;
            Ok(Routes::Inline(Arc::new(inner)))
        }
        Some(RouteSpecifier::ScopedRoutes(_)) => Err(at
            .field("scoped_routes")
            .bad("routes are not chosen by scope")),
        None => Err(at.bad("needs rds or route_config")),
    }
}

/// The filters before the router, which has to be there and last.
fn filters(at: At<'_>, all: &[FilterMessage]) -> Decoded<Vec<HttpFilter>> {
    let mut out = Vec::new();
    let mut routed = false;
    for (i, value) in all.iter().enumerate() {
        let at = at.item("http_filters", i);
        at.refuse_if(routed, "stands after the router")?;
        let any = match &value.config_type {
            Some(http_filter::ConfigType::TypedConfig(any)) => any,
            Some(http_filter::ConfigType::ConfigDiscovery(_)) => {
                return Err(at.field("config_discovery").bad("has to stand here"));
            }
            None if value.is_optional => continue,
            None => return Err(at.bad(format!("{:?} has no typed_config", value.name))),
        };
        routed = any.type_url == type_url::ROUTER;
        let at_config = at.field("typed_config");
        match filter(at_config, any)? {
            Known::Filter(filter) if !value.disabled => out.push(filter),
            Known::Filter(_) | Known::Nothing => {}
            Known::No if value.is_optional => at.ignored(),
            Known::No => {
                return Err(at.bad(format!("{:?} is not a known filter", any.type_url)));
            }
        }
    }
    at.field("http_filters")
        .refuse_if(!routed, "must end in a Router")?;
    Ok(out)
}

enum Known {
    Filter(HttpFilter),
    /// Known, and nothing is to be done for it here.
    Nothing,
    No,
}

fn filter(at: At<'_>, any: &Any) -> Decoded<Known> {
    Ok(Known::Filter(match any.type_url.as_str() {
        type_url::HTTP_RBAC => HttpFilter::Rbac(Arc::new(rbac::http(at, &unpack(at, any)?)?)),
        type_url::FAULT => {
            let inner: HttpFault = unpack(at, any)?;
            let empty = inner.delay.is_none() && inner.abort.is_none();
            let own = (!empty).then(|| fault(at, &inner)).transpose()?;
            HttpFilter::Fault(own.map(Arc::new))
        }
        type_url::LOCAL_RATE_LIMIT => {
            let inner: RateLimitMessage = unpack(at, any)?;
            HttpFilter::LocalRateLimit(rate_limit(at, &inner)?.map(Arc::new))
        }
        // Without a policy at a route these two do nothing.
        type_url::ROUTER | type_url::CORS => {
            by_type(at, any);
            return Ok(Known::Nothing);
        }
        _ if super::is_noop(Some(any)) => {
            at.ignored();
            return Ok(Known::Nothing);
        }
        _ => return Ok(Known::No),
    }))
}

pub(super) fn fault(at: At<'_>, value: &HttpFault) -> Decoded<FaultInjection> {
    at.field("response_rate_limit").refuse_if(
        value.response_rate_limit.is_some(),
        "responses are not slowed down",
    )?;
    at.field("upstream_cluster").refuse_if(
        !value.upstream_cluster.is_empty(),
        "is not compared; put the fault at the route",
    )?;
    at.field("downstream_nodes")
        .refuse_if(!value.downstream_nodes.is_empty(), "is not compared")?;
    let delay = value.delay.as_ref();
    let abort = value.abort.as_ref();
    Ok(FaultInjection {
        delay: delay
            .map(|inner| fault_delay_of(at.field("delay"), inner))
            .transpose()?,
        abort: abort
            .map(|inner| fault_abort_of(at.field("abort"), inner))
            .transpose()?,
        headers: matcher::headers(at, "headers", &value.headers)?,
        max_active: value.max_active_faults,
    })
}

/// Envoy: no percentage means no request.
fn how_many(at: At<'_>, value: Option<&FractionalPercent>) -> Decoded<Fraction> {
    let at = at.field("percentage");
    value.map_or(Ok(Fraction::NONE), |value| fraction(at, value))
}

fn fault_delay_of(at: At<'_>, value: &FaultDelay) -> Decoded<(Duration, Fraction)> {
    match &value.fault_delay_secifier {
        Some(fault_delay::FaultDelaySecifier::FixedDelay(fixed)) => {
            let at_delay = at.field("fixed_delay");
            let delay = positive(at_delay, Some(fixed), Duration::ZERO)?;
            Ok((delay, how_many(at, value.percentage.as_ref())?))
        }
        Some(fault_delay::FaultDelaySecifier::HeaderDelay(_)) => {
            Err(at.field("header_delay").bad("callers do not choose faults"))
        }
        None => Err(at.bad("needs fixed_delay")),
    }
}

fn fault_abort_of(at: At<'_>, value: &FaultAbort) -> Decoded<(Abort, Fraction)> {
    let abort = match &value.error_type {
        Some(fault_abort::ErrorType::HttpStatus(code)) => {
            Abort::Http(status(at.field("http_status"), *code, 200, 599)?)
        }
        Some(fault_abort::ErrorType::GrpcStatus(code)) => {
            at.field("grpc_status")
                .refuse_if(*code > 16, "is above 16")?;
            Abort::Grpc(*code)
        }
        Some(fault_abort::ErrorType::HeaderAbort(_)) => {
            return Err(at.field("header_abort").bad("callers do not choose faults"));
        }
        None => return Err(at.bad("needs http_status or grpc_status")),
    };
    Ok((abort, how_many(at, value.percentage.as_ref())?))
}

/// `None` when the filter is there but limits nothing.
pub(super) fn rate_limit(at: At<'_>, value: &RateLimitMessage) -> Decoded<Option<LocalRateLimit>> {
    at.field("descriptors").refuse_if(
        !value.descriptors.is_empty(),
        "there is one bucket for all requests",
    )?;
    at.ignores("rate_limits", !value.rate_limits.is_empty());
    at.ignores(
        "response_headers_to_add",
        !value.response_headers_to_add.is_empty(),
    );
    at.ignores(
        "enable_x_ratelimit_headers",
        value.enable_x_ratelimit_headers != 0,
    );
    at.field("local_rate_limit_per_downstream_connection")
        .refuse_if(
            value.local_rate_limit_per_downstream_connection,
            "the bucket is the proxy's",
        )?;
    for (field, share) in [
        ("filter_enabled", &value.filter_enabled),
        ("filter_enforced", &value.filter_enforced),
    ] {
        // Envoy's default of both is that nothing is limited.
        let share = share.as_ref();
        let share = share
            .map(|inner| runtime_fraction(at.field(field), inner))
            .transpose()?;
        let share = share.unwrap_or(Fraction::NONE).as_f64();
        if share <= 0.0 {
            return Ok(None);
        }
        at.ignores(field, share < 1.0);
    }
    let at_bucket = at.field("token_bucket");
    let bucket = value.token_bucket.as_ref();
    let bucket = bucket.ok_or_else(|| at_bucket.bad("is required"))?;
    at_bucket
        .field("max_tokens")
        .refuse_if(bucket.max_tokens == 0, "must be 1 or more")?;
    let fill = bucket.tokens_per_fill.unwrap_or(1);
    at_bucket
        .field("tokens_per_fill")
        .refuse_if(fill == 0, "must be 1 or more")?;
    let at_interval = at_bucket.field("fill_interval");
    at_interval.refuse_if(bucket.fill_interval.is_none(), "is required")?;
    let interval = positive(at_interval, bucket.fill_interval.as_ref(), Duration::ZERO)?;
    // Envoy's least, so that refilling costs nothing to speak of.
    at_interval.refuse_if(interval < Duration::from_millis(50), "must be 50ms or more")?;
    // An unset or successful status would hide that the request was refused.
    let code = value
        .status
        .as_ref()
        .and_then(|status| u16::try_from(status.code).ok());
    let code = code.and_then(|code| StatusCode::from_u16(code).ok());
    Ok(Some(LocalRateLimit {
        max_tokens: bucket.max_tokens,
        tokens_per_fill: fill,
        fill_interval: interval,
        status: code
            .filter(|code| code.as_u16() >= 400)
            .unwrap_or(StatusCode::TOO_MANY_REQUESTS),
    }))
}

/// Allowed tokens. Nothing said allows every upgrade, as a transparent proxy must.
fn upgrades(at: At<'_>, all: &[UpgradeConfig]) -> Decoded<Vec<Box<str>>> {
    let mut out = Vec::new();
    for (i, value) in all.iter().enumerate() {
        let at = at.item("upgrade_configs", i);
        at.field("filters").refuse_if(
            !value.filters.is_empty(),
            "upgrades have no filters of their own",
        )?;
        let token = required(at.field("upgrade_type"), &value.upgrade_type)?;
        if value.enabled != Some(false) {
            out.push(token.to_ascii_lowercase().into());
        }
    }
    at.field("upgrade_configs").refuse_if(
        out.is_empty() && !all.is_empty(),
        "cannot forbid every upgrade",
    )?;
    Ok(out)
}

fn tracing_of(at: At<'_>, value: &TracingMessage) -> Decoded<Tracing> {
    at.ignores("client_sampling", value.client_sampling.is_some());
    at.ignores("custom_tags", !value.custom_tags.is_empty());
    let random = percent(at.field("random_sampling"), value.random_sampling.as_ref())?;
    let overall = percent(
        at.field("overall_sampling"),
        value.overall_sampling.as_ref(),
    )?;
    let random = random.unwrap_or(100.0) * overall.unwrap_or(100.0) / 100.0;
    let config = value
        .provider
        .as_ref()
        .and_then(|inner| inner.config_type.as_ref());
    let collector = match config {
        Some(provider::ConfigType::TypedConfig(any))
            if any.type_url == type_url::OPEN_TELEMETRY =>
        {
            let at = at.field("provider");
            collector(at, unpack(at, any)?)
        }
        Some(provider::ConfigType::TypedConfig(_)) => {
            at.field("provider").ignored();
            None
        }
        None => None,
    };
    Ok(Tracing {
        random_sampling: share(random),
        collector: collector.map(Arc::new),
    })
}

/// The cluster that gets the spans; `None` for one that is reached by other means than ours, where
/// the proxy's own setting holds.
fn collector(at: At<'_>, value: OpenTelemetryConfig) -> Option<Collector> {
    at.ignores("http_service", value.http_service.is_some());
    at.ignores("resource_detectors", !value.resource_detectors.is_empty());
    at.ignores("sampler", value.sampler.is_some());
    let service = value.grpc_service?;
    let at = at.field("grpc_service");
    at.ignores("initial_metadata", !service.initial_metadata.is_empty());
    match service.target_specifier? {
        TargetSpecifier::EnvoyGrpc(grpc) => Some(Collector {
            cluster: grpc.cluster_name.into(),
            authority: grpc.authority.into(),
            service_name: value.service_name.into(),
        }),
        TargetSpecifier::GoogleGrpc(_) => {
            at.field("google_grpc").ignored();
            None
        }
    }
}

fn forward_cert(at: At<'_>, value: i32) -> Decoded<ForwardClientCert> {
    use ForwardClientCertDetails as D;
    let at = at.field("forward_client_cert_details");
    Ok(match enumerated(at, value)? {
        D::Sanitize => ForwardClientCert::Sanitize,
        D::ForwardOnly => ForwardClientCert::ForwardOnly,
        D::AppendForward => ForwardClientCert::AppendForward,
        D::SanitizeSet => ForwardClientCert::SanitizeSet,
        D::AlwaysForwardOnly => ForwardClientCert::AlwaysForwardOnly,
    })
}

//! What watches a cluster: outlier detection, the breaker, active health checks.

use std::time::Duration;

use http::{Method, StatusCode};
use outrigger_proto::{
    envoy::{
        config::{
            cluster::v3::OutlierDetection,
            core::v3::{
                HealthCheck as Check, RequestMethod,
                health_check::{HealthChecker, HttpHealthCheck, Payload, payload},
            },
        },
        r#type::v3::CodecClientType,
    },
    outrigger::extensions::v1::{Breaker as BreakerMessage, breaker},
};

use super::{
    at::At,
    value::{Decoded, duration, enumerated, limit, percent, positive, required, status},
};
use crate::config::cluster::{
    Breaker, FailurePercentage, HealthCheck, HealthCheckKind, Outlier, SuccessRate,
};

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Outlier detection with Envoy's defaults.
pub(super) fn outlier(at: At<'_>, value: &OutlierDetection) -> Decoded<Outlier> {
    let on = |enforcing: Option<u32>, default: u32| enforcing.unwrap_or(default) > 0;
    note_partial(at, value);
    let base = positive(
        at.field("base_ejection_time"),
        value.base_ejection_time.as_ref(),
        seconds(30),
    )?;
    let max = positive(
        at.field("max_ejection_time"),
        value.max_ejection_time.as_ref(),
        seconds(300),
    )?;
    let percent = value.max_ejection_percent.unwrap_or(10);
    at.field("max_ejection_percent")
        .refuse_if(percent > 100, "is above 100")?;
    let nonzero = |count: u32| (count > 0).then_some(count);
    let consecutive = |enforced: bool, count: Option<u32>| {
        enforced.then(|| nonzero(count.unwrap_or(5))).flatten()
    };
    let split = value.split_external_local_origin_errors;
    Ok(Outlier {
        interval: positive(at.field("interval"), value.interval.as_ref(), seconds(10))?,
        base_ejection: base,
        max_ejection: max.max(base),
        max_ejection_percent: percent,
        always_eject_one: value.always_eject_one_host.unwrap_or(true),
        consecutive_5xx: consecutive(
            on(value.enforcing_consecutive_5xx, 100),
            value.consecutive_5xx,
        ),
        consecutive_gateway: consecutive(
            on(value.enforcing_consecutive_gateway_failure, 0),
            value.consecutive_gateway_failure,
        ),
        consecutive_local: consecutive(
            split && on(value.enforcing_consecutive_local_origin_failure, 100),
            value.consecutive_local_origin_failure,
        ),
        split_local: split,
        success_rate: on(value.enforcing_success_rate, 100).then(|| SuccessRate {
            minimum_hosts: value.success_rate_minimum_hosts.unwrap_or(5),
            request_volume: value.success_rate_request_volume.unwrap_or(100),
            // Envoy: thousandths.
            stdev_factor: f64::from(value.success_rate_stdev_factor.unwrap_or(1900)) / 1000.0,
        }),
        failure_percentage: on(value.enforcing_failure_percentage, 0).then(|| FailurePercentage {
            threshold: value.failure_percentage_threshold.unwrap_or(85),
            minimum_hosts: value.failure_percentage_minimum_hosts.unwrap_or(5),
            request_volume: value.failure_percentage_request_volume.unwrap_or(50),
        }),
    })
}

/// An ejection is made or not made; the shares in between are remarked.
fn note_partial(at: At<'_>, value: &OutlierDetection) {
    let partial = |share: Option<u32>| share.is_some_and(|share| share > 0 && share < 100);
    at.ignores(
        "enforcing_consecutive_5xx",
        partial(value.enforcing_consecutive_5xx),
    );
    at.ignores(
        "enforcing_success_rate",
        partial(value.enforcing_success_rate),
    );
    at.ignores(
        "enforcing_consecutive_gateway_failure",
        partial(value.enforcing_consecutive_gateway_failure),
    );
    at.ignores(
        "enforcing_failure_percentage",
        partial(value.enforcing_failure_percentage),
    );
    at.ignores(
        "enforcing_failure_percentage_local_origin",
        value
            .enforcing_failure_percentage_local_origin
            .is_some_and(|share| share > 0),
    );
    at.ignores(
        "max_ejection_time_jitter",
        value.max_ejection_time_jitter.is_some(),
    );
    at.ignores(
        "successful_active_health_check_uneject_host",
        value.successful_active_health_check_uneject_host == Some(false),
    );
}

/// Defaults of the breaker follow resilience4j, with a window in time instead of calls.
pub(super) fn breaker(at: At<'_>, value: &BreakerMessage) -> Decoded<Breaker> {
    match enumerated(at.field("scope"), value.scope)? {
        breaker::Scope::Unspecified
        | breaker::Scope::Service
        | breaker::Scope::ServiceAndEndpoint => {}
        breaker::Scope::Endpoint => at.field("scope").ignored(),
    }
    let failure = percent(
        at.field("failure_rate_threshold"),
        value.failure_rate_threshold.as_ref(),
    )?;
    let slow = percent(
        at.field("slow_call_rate_threshold"),
        value.slow_call_rate_threshold.as_ref(),
    )?;
    // A rate that cannot be reached never opens it.
    const NEVER: f64 = 101.0;
    let failure = match (failure, slow) {
        (None, None) => 50.0,
        (failure, _) => failure.unwrap_or(NEVER),
    };
    let probes = value.half_open_probes.unwrap_or(10);
    at.field("half_open_probes")
        .refuse_if(probes == 0, "must be 1 or more")?;
    let ramp = duration(at.field("ramp_duration"), value.ramp_duration.as_ref())?;
    Ok(Breaker {
        failure_rate: failure,
        slow_call_rate: slow.unwrap_or(NEVER),
        slow_call: positive(
            at.field("slow_call_duration"),
            value.slow_call_duration.as_ref(),
            seconds(60),
        )?,
        window: positive(at.field("window"), value.window.as_ref(), seconds(10))?,
        minimum_calls: value.minimum_calls.unwrap_or(20),
        open_for: positive(
            at.field("open_duration"),
            value.open_duration.as_ref(),
            seconds(5),
        )?,
        probes,
        ramp: ramp.unwrap_or_else(|| seconds(10)),
    })
}

pub(super) fn checks(at: At<'_>, all: &[Check]) -> Decoded<Vec<HealthCheck>> {
    let each = all.iter().enumerate();
    each.map(|(i, value)| check(at.item("health_checks", i), value))
        .collect()
}

fn check(at: At<'_>, value: &Check) -> Decoded<HealthCheck> {
    at.field("alt_port").refuse_if(
        value.alt_port.is_some(),
        "set the endpoint's health_check_config instead",
    )?;
    at.ignores("initial_jitter", value.initial_jitter.is_some());
    at.ignores("unhealthy_interval", value.unhealthy_interval.is_some());
    at.ignores(
        "unhealthy_edge_interval",
        value.unhealthy_edge_interval.is_some(),
    );
    at.ignores(
        "healthy_edge_interval",
        value.healthy_edge_interval.is_some(),
    );
    at.ignores("tls_options", value.tls_options.is_some());
    at.ignores(
        "transport_socket_match_criteria",
        value.transport_socket_match_criteria.is_some(),
    );
    let need = |field, value: Option<&prost_types::Duration>| {
        let at = at.field(field);
        at.refuse_if(value.is_none(), "is required")?;
        positive(at, value, seconds(1))
    };
    let threshold = |field, count: Option<u32>| {
        let at = at.field(field);
        match count {
            Some(count) if count > 0 => Ok(count),
            _ => Err(at.bad("must be 1 or more")),
        }
    };
    Ok(HealthCheck {
        timeout: need("timeout", value.timeout.as_ref())?,
        interval: need("interval", value.interval.as_ref())?,
        jitter: duration(at.field("interval_jitter"), value.interval_jitter.as_ref())?
            .unwrap_or_default(),
        unhealthy_threshold: threshold("unhealthy_threshold", value.unhealthy_threshold)?,
        healthy_threshold: threshold("healthy_threshold", value.healthy_threshold)?,
        no_traffic_interval: limit(
            at.field("no_traffic_interval"),
            value.no_traffic_interval.as_ref(),
            None,
        )?,
        reuse_connection: value.reuse_connection.unwrap_or(true),
        kind: kind(at, value)?,
    })
}

fn kind(at: At<'_>, value: &Check) -> Decoded<HealthCheckKind> {
    match &value.health_checker {
        Some(HealthChecker::HttpHealthCheck(inner)) => {
            http_check(at.field("http_health_check"), inner)
        }
        Some(HealthChecker::TcpHealthCheck(inner)) => {
            let at = at.field("tcp_health_check");
            let send = inner.send.as_ref();
            let send = send.map(|part| bytes(at.field("send"), part)).transpose()?;
            let each = inner.receive.iter().enumerate();
            Ok(HealthCheckKind::Tcp {
                send: send.unwrap_or_default(),
                receive: each
                    .map(|(i, part)| bytes(at.item("receive", i), part))
                    .collect::<Decoded<_>>()?,
            })
        }
        Some(HealthChecker::GrpcHealthCheck(inner)) => {
            let at = at.field("grpc_health_check");
            at.ignores("initial_metadata", !inner.initial_metadata.is_empty());
            Ok(HealthCheckKind::Grpc {
                service: inner.service_name.as_str().into(),
                authority: inner.authority.as_str().into(),
            })
        }
        Some(HealthChecker::CustomHealthCheck(_)) => {
            let at = at.field("custom_health_check");
            Err(at.bad("no custom checks are known"))
        }
        None => Err(at.bad("needs http_health_check, tcp_health_check or grpc_health_check")),
    }
}

fn http_check(at: At<'_>, value: &HttpHealthCheck) -> Decoded<HealthCheckKind> {
    at.field("receive")
        .refuse_if(!value.receive.is_empty(), "bodies are not compared")?;
    at.field("service_name_matcher")
        .refuse_if(value.service_name_matcher.is_some(), "is not compared")?;
    at.ignores("send", value.send.is_some());
    at.ignores(
        "request_headers_to_add",
        !value.request_headers_to_add.is_empty(),
    );
    at.ignores(
        "request_headers_to_remove",
        !value.request_headers_to_remove.is_empty(),
    );
    at.ignores("retriable_statuses", !value.retriable_statuses.is_empty());
    let at_path = at.field("path");
    let path = required(at_path, &value.path)?;
    at_path.refuse_if(!path.starts_with('/'), "must begin with a slash")?;
    let at_codec = at.field("codec_client_type");
    let http2 = match enumerated(at_codec, value.codec_client_type)? {
        CodecClientType::Http1 => false,
        CodecClientType::Http2 => true,
        CodecClientType::Http3 => return Err(at_codec.bad("HTTP/3 is not spoken")),
    };
    let mut expected = Vec::new();
    for (i, range) in value.expected_statuses.iter().enumerate() {
        let at = at.item("expected_statuses", i);
        match (u32::try_from(range.start), u16::try_from(range.end)) {
            (Ok(start), Ok(end)) if end <= 600 && range.start < range.end => {
                expected.push((status(at, start, 100, 599)?, end));
            }
            _ => return Err(at.bad("is no range within 100 to 600")),
        }
    }
    if expected.is_empty() {
        expected.push((StatusCode::OK, 201));
    }
    Ok(HealthCheckKind::Http {
        host: value.host.as_str().into(),
        path: path.into(),
        method: method(at.field("method"), value.method)?,
        expected,
        http2,
    })
}

fn method(at: At<'_>, value: i32) -> Decoded<Method> {
    Ok(match enumerated(at, value)? {
        RequestMethod::MethodUnspecified | RequestMethod::Get => Method::GET,
        RequestMethod::Head => Method::HEAD,
        RequestMethod::Post => Method::POST,
        RequestMethod::Put => Method::PUT,
        RequestMethod::Delete => Method::DELETE,
        RequestMethod::Options => Method::OPTIONS,
        RequestMethod::Trace => Method::TRACE,
        RequestMethod::Patch => Method::PATCH,
        RequestMethod::Connect => return Err(at.bad("CONNECT is no check")),
    })
}

/// Envoy writes payloads as hexadecimal text.
fn bytes(at: At<'_>, value: &Payload) -> Decoded<Vec<u8>> {
    match &value.payload {
        Some(payload::Payload::Binary(bytes)) => Ok(bytes.clone()),
        Some(payload::Payload::Text(text)) => {
            let digits: Option<Vec<u8>> = text
                .chars()
                .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
                .collect();
            match digits {
                Some(digits) if digits.len().is_multiple_of(2) => Ok(digits
                    .chunks_exact(2)
                    .map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit))
                    .collect()),
                _ => Err(at.field("text").bad("is not hexadecimal")),
            }
        }
        None => Err(at.bad("needs text or binary")),
    }
}

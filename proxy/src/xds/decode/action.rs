//! What a route does: forward, redirect, answer; retries.

use std::time::Duration;

use bytes::Bytes;
use http::{StatusCode, uri::Scheme};
use outrigger_proto::envoy::config::{
    core::v3::RoutingPriority,
    route::v3::{
        DirectResponseAction, RedirectAction, RetryPolicy as RetryMessage, Route as RouteMessage,
        RouteAction, WeightedCluster as WeightedMessage,
        redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier},
        route::Action as ActionMessage,
        route_action::{
            ClusterNotFoundResponseCode, ClusterSpecifier, HashPolicy as HashMessage,
            HostRewriteSpecifier, RequestMirrorPolicy, hash_policy::PolicySpecifier,
        },
        weighted_cluster::cluster_weight,
    },
};
use prost_types::value::Kind;

use super::{
    at::At,
    matcher,
    route::{Shared, mods},
    value::{
        Decoded, duration, enumerated, header_name, header_value, inline_bytes, limit,
        override_limit, port_number, required, runtime_fraction, status,
    },
};
use crate::config::{
    ClusterName,
    route::{
        Action, DirectResponse, Forward, HashPolicy, HashSource, HostRewrite, Mirror, PathRewrite,
        Redirect, RedirectPath, RetryOn, RetryPolicy, Target, WeightedCluster,
    },
    units::{Backoff, Fraction},
};

/// Envoy's time-out of a whole response.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Route metadata by which our control plane says that a method with side effects may be run again.
const RETRY_METADATA: &str = "outrigger.retry";

pub(super) fn action(at: At<'_>, value: &RouteMessage, shared: &Shared<'_>) -> Decoded<Action> {
    Ok(match &value.action {
        Some(ActionMessage::Route(inner)) => {
            let mut forward = forward(at.field("route"), inner, shared)?;
            if let Some(retry) = &mut forward.retry
                && may_repeat(value)
            {
                std::sync::Arc::make_mut(retry).allow_non_idempotent = true;
            }
            Action::Forward(Box::new(forward))
        }
        Some(ActionMessage::Redirect(inner)) => {
            Action::Redirect(Box::new(redirect(at.field("redirect"), inner)?))
        }
        Some(ActionMessage::DirectResponse(inner)) => Action::Respond(Box::new(direct(
            at.field("direct_response"),
            inner,
            shared,
        )?)),
        Some(ActionMessage::NonForwardingAction(_)) => {
            let at = at.field("non_forwarding_action");
            return Err(at.bad("is for gRPC servers; a proxy has to forward"));
        }
        None => return Err(at.bad("needs an action")),
    })
}

fn may_repeat(value: &RouteMessage) -> bool {
    let metadata = value.metadata.as_ref();
    let all = metadata.and_then(|metadata| metadata.filter_metadata.get(RETRY_METADATA));
    let flag = all.and_then(|all| all.fields.get("allow_non_idempotent"));
    matches!(
        flag.and_then(|flag| flag.kind.as_ref()),
        Some(Kind::BoolValue(true))
    )
}

fn forward(at: At<'_>, value: &RouteAction, shared: &Shared<'_>) -> Decoded<Forward> {
    refuse_misleading(at, value)?;
    let mirrors = if value.request_mirror_policies.is_empty() {
        shared.mirrors
    } else {
        &value.request_mirror_policies
    };
    let mirrors = mirrors.iter().enumerate();
    let not_found = at.field("cluster_not_found_response_code");
    let retry = value.retry_policy.as_ref();
    let retry = retry
        .map(|inner| self::retry(at.field("retry_policy"), inner))
        .transpose()?;
    let stream = value.max_stream_duration.unwrap_or_default();
    let at_stream = at.field("max_stream_duration");
    at_stream.ignores(
        "grpc_timeout_header_offset",
        stream.grpc_timeout_header_offset.is_some(),
    );
    let priority: RoutingPriority = enumerated(at.field("priority"), value.priority)?;
    let grpc = stream.grpc_timeout_header_max.or(value.max_grpc_timeout);
    Ok(Forward {
        target: target(at, value)?,
        path_rewrite: path_rewrite(at, value)?,
        host_rewrite: host_rewrite(at, value)?,
        timeout: limit(at.field("timeout"), value.timeout.as_ref(), Some(TIMEOUT))?,
        idle_timeout: override_limit(at.field("idle_timeout"), value.idle_timeout.as_ref())?,
        max_stream_duration: override_limit(
            at_stream.field("max_stream_duration"),
            stream.max_stream_duration.as_ref(),
        )?,
        grpc_timeout_max: duration(at_stream.field("grpc_timeout_header_max"), grpc.as_ref())?,
        retry: retry.map(std::sync::Arc::new),
        mirrors: mirrors
            .map(|(i, one)| mirror(at.item("request_mirror_policies", i), one))
            .collect::<Decoded<_>>()?,
        hash: hashes(at, &value.hash_policy)?,
        high_priority: priority == RoutingPriority::High,
        cluster_not_found: match enumerated(not_found, value.cluster_not_found_response_code)? {
            ClusterNotFoundResponseCode::ServiceUnavailable => StatusCode::SERVICE_UNAVAILABLE,
            ClusterNotFoundResponseCode::NotFound => StatusCode::NOT_FOUND,
            ClusterNotFoundResponseCode::InternalServerError => StatusCode::INTERNAL_SERVER_ERROR,
        },
    })
}

fn refuse_misleading(at: At<'_>, value: &RouteAction) -> Decoded<()> {
    at.field("metadata_match").refuse_if(
        value.metadata_match.is_some(),
        "there are no subsets of endpoints",
    )?;
    at.field("hedge_policy")
        .refuse_if(value.hedge_policy.is_some(), "requests are not hedged")?;
    at.field("internal_redirect_policy").refuse_if(
        value.internal_redirect_policy.is_some(),
        "redirects go to the client",
    )?;
    for (i, upgrade) in value.upgrade_configs.iter().enumerate() {
        let at = at.item("upgrade_configs", i);
        at.field("connect_config").refuse_if(
            upgrade.connect_config.is_some(),
            "CONNECT is not terminated",
        )?;
        at.ignored();
    }
    at.ignores("rate_limits", !value.rate_limits.is_empty());
    at.ignores("append_x_forwarded_host", value.append_x_forwarded_host);
    Ok(())
}

fn target(at: At<'_>, value: &RouteAction) -> Decoded<Target> {
    Ok(match &value.cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => {
            Target::Cluster(ClusterName::from(required(at.field("cluster"), name)?))
        }
        Some(ClusterSpecifier::ClusterHeader(name)) => {
            Target::Header(header_name(at.field("cluster_header"), name)?)
        }
        Some(ClusterSpecifier::WeightedClusters(inner)) => {
            Target::Weighted(weighted(at.field("weighted_clusters"), inner)?)
        }
        Some(ClusterSpecifier::ClusterSpecifierPlugin(_)) => {
            return Err(at
                .field("cluster_specifier_plugin")
                .bad("no plugins are known"));
        }
        None => return Err(at.bad("needs a cluster")),
    })
}

fn weighted(at: At<'_>, value: &WeightedMessage) -> Decoded<Vec<WeightedCluster>> {
    let mut out = Vec::with_capacity(value.clusters.len());
    let mut sum: u64 = 0;
    for (i, arm) in value.clusters.iter().enumerate() {
        let at = at.item("clusters", i);
        at.field("metadata_match").refuse_if(
            arm.metadata_match.is_some(),
            "there are no subsets of endpoints",
        )?;
        let per_arm = !arm.typed_per_filter_config.is_empty();
        at.field("typed_per_filter_config")
            .refuse_if(per_arm, "filters run before a cluster is chosen")?;
        let weight = arm.weight.unwrap_or_default();
        sum += u64::from(weight);
        let rewrite = match &arm.host_rewrite_specifier {
            Some(cluster_weight::HostRewriteSpecifier::HostRewriteLiteral(host)) => {
                let at = at.field("host_rewrite_literal");
                Some(HostRewrite::Literal(header_value(at, host.as_bytes())?))
            }
            None => None,
        };
        out.push(WeightedCluster {
            name: ClusterName::from(required(at.field("name"), &arm.name)?),
            weight,
            headers: mods(
                at,
                (&arm.request_headers_to_add, &arm.request_headers_to_remove),
                (
                    &arm.response_headers_to_add,
                    &arm.response_headers_to_remove,
                ),
            )?,
            host_rewrite: rewrite,
        });
    }
    // XD-08: 0 would leave nothing to draw from; the sum has to fit what it is drawn with.
    let fits = (1..=u64::from(u32::MAX)).contains(&sum);
    at.refuse_if(!fits, "the weights must add up to 1 to 4294967295")?;
    Ok(out)
}

fn path_rewrite(at: At<'_>, value: &RouteAction) -> Decoded<Option<PathRewrite>> {
    let prefix = (!value.prefix_rewrite.is_empty()).then_some(value.prefix_rewrite.as_str());
    match (prefix, &value.regex_rewrite) {
        (Some(_), Some(_)) => Err(at
            .field("regex_rewrite")
            .bad("stands beside prefix_rewrite")),
        (Some(prefix), None) => Ok(Some(PathRewrite::Prefix(prefix.into()))),
        (None, Some(regex)) => {
            let at = at.field("regex_rewrite");
            let (pattern, substitution) = matcher::substitution(at, regex)?;
            Ok(Some(PathRewrite::Regex {
                pattern,
                substitution,
            }))
        }
        (None, None) => Ok(None),
    }
}

fn host_rewrite(at: At<'_>, value: &RouteAction) -> Decoded<Option<HostRewrite>> {
    Ok(match &value.host_rewrite_specifier {
        Some(HostRewriteSpecifier::HostRewriteLiteral(host)) => {
            let at = at.field("host_rewrite_literal");
            Some(HostRewrite::Literal(header_value(
                at,
                required(at, host)?.as_bytes(),
            )?))
        }
        Some(HostRewriteSpecifier::AutoHostRewrite(auto)) => auto.then_some(HostRewrite::Endpoint),
        Some(HostRewriteSpecifier::HostRewriteHeader(name)) => {
            let at = at.field("host_rewrite_header");
            Some(HostRewrite::Header(header_name(at, name)?))
        }
        Some(HostRewriteSpecifier::HostRewritePathRegex(_)) => {
            let at = at.field("host_rewrite_path_regex");
            return Err(at.bad("hosts are not made from paths"));
        }
        None => None,
    })
}

fn mirror(at: At<'_>, value: &RequestMirrorPolicy) -> Decoded<Mirror> {
    at.field("cluster_header").refuse_if(
        !value.cluster_header.is_empty(),
        "has to be a cluster's name",
    )?;
    at.ignores("trace_sampled", value.trace_sampled.is_some());
    let fraction = value.runtime_fraction.as_ref();
    let fraction = fraction.map(|inner| runtime_fraction(at.field("runtime_fraction"), inner));
    Ok(Mirror {
        cluster: ClusterName::from(required(at.field("cluster"), &value.cluster)?),
        fraction: fraction.transpose()?.unwrap_or(Fraction::ALL),
        keep_host: value.disable_shadow_host_suffix_append,
    })
}

fn hashes(at: At<'_>, all: &[HashMessage]) -> Decoded<Vec<HashPolicy>> {
    let mut out = Vec::new();
    for (i, value) in all.iter().enumerate() {
        let at = at.item("hash_policy", i);
        let source = match &value.policy_specifier {
            Some(PolicySpecifier::Header(inner)) => {
                let at = at.field("header");
                at.field("regex_rewrite").refuse_if(
                    inner.regex_rewrite.is_some(),
                    "headers are hashed as they are",
                )?;
                HashSource::Header(header_name(at.field("header_name"), &inner.header_name)?)
            }
            Some(PolicySpecifier::Cookie(inner)) => {
                let at = at.field("cookie");
                HashSource::Cookie {
                    name: required(at.field("name"), &inner.name)?.into(),
                    ttl: duration(at.field("ttl"), inner.ttl.as_ref())?,
                    path: inner.path.as_str().into(),
                }
            }
            Some(PolicySpecifier::ConnectionProperties(inner)) if inner.source_ip => {
                HashSource::SourceIp
            }
            Some(PolicySpecifier::QueryParameter(inner)) => {
                let at = at.field("query_parameter");
                HashSource::Query(required(at.field("name"), &inner.name)?.into())
            }
            // A proxy has no such state (gRFC A42 is about a client's channel).
            Some(PolicySpecifier::FilterState(_) | PolicySpecifier::ConnectionProperties(_)) => {
                at.ignored();
                continue;
            }
            None => return Err(at.bad("needs a source")),
        };
        out.push(HashPolicy {
            source,
            terminal: value.terminal,
        });
    }
    Ok(out)
}

pub(super) fn retry(at: At<'_>, value: &RetryMessage) -> Decoded<RetryPolicy> {
    at.field("retriable_request_headers").refuse_if(
        !value.retriable_request_headers.is_empty(),
        "is not compared, and more would be retried without it",
    )?;
    at.ignores("retriable_headers", !value.retriable_headers.is_empty());
    at.ignores("retry_priority", value.retry_priority.is_some());
    at.ignores("per_try_idle_timeout", value.per_try_idle_timeout.is_some());
    at.ignores(
        "rate_limited_retry_back_off",
        value.rate_limited_retry_back_off.is_some(),
    );
    let codes = value.retriable_status_codes.iter().enumerate();
    Ok(RetryPolicy {
        on: retry_on(at, &value.retry_on),
        status_codes: codes
            .map(|(i, code)| status(at.item("retriable_status_codes", i), *code, 100, 599))
            .collect::<Decoded<_>>()?,
        num_retries: value.num_retries.unwrap_or(1),
        per_try_timeout: limit(
            at.field("per_try_timeout"),
            value.per_try_timeout.as_ref(),
            None,
        )?,
        backoff: backoff(at.field("retry_back_off"), value)?,
        allow_non_idempotent: false,
    })
}

fn backoff(at: At<'_>, value: &RetryMessage) -> Decoded<Backoff> {
    let Some(own) = &value.retry_back_off else {
        return Ok(Backoff::REQUEST);
    };
    let at_base = at.field("base_interval");
    at_base.refuse_if(own.base_interval.is_none(), "is required")?;
    let base = duration(at_base, own.base_interval.as_ref())?.unwrap_or_default();
    // Envoy: below a millisecond counts as one; the maximum is ten times the base unless set.
    let base = if base.is_zero() {
        base
    } else {
        base.max(Duration::from_millis(1))
    };
    let max = duration(at.field("max_interval"), own.max_interval.as_ref())?;
    let max = max.unwrap_or_else(|| base.saturating_mul(10));
    Backoff::new(base, max).map_err(|error| at.wrap(error))
}

/// Envoy's words; an unknown one is remarked, as it only makes fewer retries.
fn retry_on(at: At<'_>, words: &str) -> RetryOn {
    let mut on = RetryOn::default();
    for word in words
        .split(',')
        .map(str::trim)
        .filter(|word| !word.is_empty())
    {
        let switch = match word {
            "5xx" => &mut on.server_error_5xx,
            "gateway-error" => &mut on.gateway_error,
            "reset" => &mut on.reset,
            "reset-before-request" => &mut on.reset_before_request,
            "connect-failure" => &mut on.connect_failure,
            "refused-stream" => &mut on.refused_stream,
            "retriable-4xx" => &mut on.retriable_4xx,
            "retriable-status-codes" => &mut on.status_codes,
            "cancelled" => &mut on.grpc_cancelled,
            "deadline-exceeded" => &mut on.grpc_deadline_exceeded,
            "internal" => &mut on.grpc_internal,
            "resource-exhausted" => &mut on.grpc_resource_exhausted,
            "unavailable" => &mut on.grpc_unavailable,
            _ => {
                at.field("retry_on").ignored();
                continue;
            }
        };
        *switch = true;
    }
    on
}

fn redirect(at: At<'_>, value: &RedirectAction) -> Decoded<Redirect> {
    let text = |text: &str| (!text.is_empty()).then(|| Box::from(text));
    let scheme = match &value.scheme_rewrite_specifier {
        Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https".into()),
        Some(SchemeRewriteSpecifier::HttpsRedirect(false)) | None => None,
        Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => {
            let bad = Scheme::try_from(scheme.as_str()).is_err();
            at.field("scheme_redirect").refuse_if(bad, "is no scheme")?;
            Some(scheme.as_str().into())
        }
    };
    let path = match &value.path_rewrite_specifier {
        Some(PathRewriteSpecifier::PathRedirect(path)) => {
            Some(RedirectPath::Full(path.as_str().into()))
        }
        Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => {
            Some(RedirectPath::Prefix(prefix.as_str().into()))
        }
        Some(PathRewriteSpecifier::RegexRewrite(regex)) => {
            let (pattern, substitution) = matcher::substitution(at.field("regex_rewrite"), regex)?;
            Some(RedirectPath::Regex {
                pattern,
                substitution,
            })
        }
        None => None,
    };
    let port = port_number(at.field("port_redirect"), value.port_redirect)?;
    Ok(Redirect {
        status: match enumerated(at.field("response_code"), value.response_code)? {
            RedirectResponseCode::MovedPermanently => StatusCode::MOVED_PERMANENTLY,
            RedirectResponseCode::Found => StatusCode::FOUND,
            RedirectResponseCode::SeeOther => StatusCode::SEE_OTHER,
            RedirectResponseCode::TemporaryRedirect => StatusCode::TEMPORARY_REDIRECT,
            RedirectResponseCode::PermanentRedirect => StatusCode::PERMANENT_REDIRECT,
        },
        scheme,
        host: text(&value.host_redirect),
        port: (port != 0).then_some(port),
        path,
        strip_query: value.strip_query,
    })
}

fn direct(
    at: At<'_>,
    value: &DirectResponseAction,
    shared: &Shared<'_>,
) -> Decoded<DirectResponse> {
    let at_body = at.field("body");
    let body = inline_bytes(at_body, value.body.as_ref())?.unwrap_or_default();
    let long = u32::try_from(body.len()).map_or(true, |length| length > shared.max_body);
    at_body.refuse_if(long, "is longer than max_direct_response_body_size_bytes")?;
    Ok(DirectResponse {
        status: status(at.field("status"), value.status, 200, 599)?,
        body: Bytes::from(body),
    })
}

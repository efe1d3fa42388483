//! Where requests go, how long they may take, and what is tried again.

use std::collections::BTreeMap;

use outrigger_proto::envoy::{
    config::{
        core::v3::Metadata,
        route::v3::{
            RetryPolicy, Route, RouteAction, WeightedCluster,
            retry_policy::{RetryBackOff, RetryHostPredicate, retry_host_predicate::ConfigType},
            route::Action,
            route_action::{
                ClusterNotFoundResponseCode, ClusterSpecifier, HashPolicy, MaxStreamDuration,
                hash_policy::{
                    ConnectionProperties, Cookie, Header, PolicySpecifier, QueryParameter,
                },
            },
            weighted_cluster::ClusterWeight,
        },
    },
    extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate,
};
use prost_types::{Struct, Value, value::Kind};

use super::{changes::HeaderChanges, everything};
use crate::{
    model::{BackendRef, Filter, HashSource, Retry, Timeouts},
    translate::{
        names,
        names::ClusterName,
        policy::Traffic,
        proto::{any, duration, seconds},
        world::{PortRef, World},
    },
};

/// What is tried again when nobody says: what cannot have been processed, and requests of safe
/// methods whose connection broke (the proxy, not this list, tells them apart).
const RETRY_ON: &str = "connect-failure,refused-stream,reset,reset-before-request";
/// The same for a route that names codes.
const RETRY_ON_CODES: &str =
    "connect-failure,refused-stream,reset,reset-before-request,retriable-status-codes";
const RETRIES: u32 = 2;
/// Envoy looks this often for an endpoint that was not tried yet.
const OTHER_HOST_ATTEMPTS: i64 = 5;
/// Route metadata by which the proxy knows that a method with side effects may be run again.
const RETRY_METADATA: &str = "outrigger.retry";

/// What a rule says of its own.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Own<'r> {
    pub(super) timeouts: Option<&'r Timeouts>,
    pub(super) retry: Option<&'r Retry>,
}

/// All requests to the service itself, as its policies say.
pub(super) fn default(world: &World, port: &PortRef<'_>) -> Route {
    let traffic = Traffic::of(world, port);
    let action = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(names::cluster(port))),
        hash_policy: hashes(&traffic),
        ..tuned(&traffic, Own::default())
    };
    Route {
        metadata: metadata(&traffic),
        ..everything(action)
    }
}

/// An action without destination: times and retries.
pub(super) fn tuned(traffic: &Traffic<'_>, own: Own<'_>) -> RouteAction {
    let policy = traffic.timeouts();
    let request = own
        .timeouts
        .and_then(|t| t.request)
        .or_else(|| policy.and_then(|t| t.request));
    let longest = policy.and_then(|t| t.max_stream_duration);
    RouteAction {
        timeout: Some(request.map_or(seconds(0), |t| duration(t.0))),
        idle_timeout: policy.and_then(|t| t.stream_idle).map(|t| duration(t.0)),
        max_stream_duration: longest.map(|t| MaxStreamDuration {
            max_stream_duration: Some(duration(t.0)),
            ..MaxStreamDuration::default()
        }),
        retry_policy: Some(retries(traffic, own)),
        // What the Gateway API asks for when a backend is not there.
        cluster_not_found_response_code: ClusterNotFoundResponseCode::InternalServerError.into(),
        ..RouteAction::default()
    }
}

fn retries(traffic: &Traffic<'_>, own: Own<'_>) -> RetryPolicy {
    let (policy, route) = (traffic.retries(), own.retry);
    let per_try = own
        .timeouts
        .and_then(|t| t.backend_request)
        .or_else(|| policy.and_then(|p| p.per_try_timeout))
        .or_else(|| traffic.timeouts().and_then(|t| t.backend_request));
    let attempts = match route {
        Some(route) => Some(route.attempts.unwrap_or(1)),
        None => policy.and_then(|p| p.attempts),
    };
    let words = policy.filter(|p| route.is_none() && !p.on.is_empty());
    let codes = match (route, policy) {
        (Some(route), _) => route.codes.as_slice(),
        (None, Some(policy)) => policy.codes.as_slice(),
        (None, None) => &[],
    };
    let retry_on = match words {
        Some(policy) => {
            let mut words = policy.on.clone();
            let word = "retriable-status-codes";
            if !codes.is_empty() && !words.iter().any(|w| w == word) {
                words.push(word.to_owned());
            }
            words.join(",")
        }
        None if codes.is_empty() => RETRY_ON.to_owned(),
        None => RETRY_ON_CODES.to_owned(),
    };
    let backoff = route.and_then(|r| r.backoff).map(|base| (base, None));
    let backoff = backoff.or_else(|| {
        policy
            .and_then(|p| p.backoff.as_ref())
            .map(|b| (b.base, b.max))
    });
    RetryPolicy {
        retry_on,
        num_retries: Some(attempts.unwrap_or(RETRIES)),
        per_try_timeout: per_try.map(|t| duration(t.0)),
        retriable_status_codes: codes.iter().map(|code| u32::from(*code)).collect(),
        retry_back_off: backoff.map(|(base, max)| RetryBackOff {
            base_interval: Some(duration(base.0)),
            max_interval: max.map(|max| duration(max.0)),
        }),
        retry_host_predicate: vec![RetryHostPredicate {
            name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
            config_type: Some(ConfigType::TypedConfig(any(&PreviousHostsPredicate {}))),
        }],
        host_selection_retry_max_attempts: OTHER_HOST_ATTEMPTS,
        ..RetryPolicy::default()
    }
}

pub(super) fn metadata(traffic: &Traffic<'_>) -> Option<Metadata> {
    let allowed = traffic.retries()?.allow_non_idempotent?;
    let on = Value {
        kind: Some(Kind::BoolValue(allowed)),
    };
    let fields = BTreeMap::from([("allow_non_idempotent".to_owned(), on)]);
    Some(Metadata {
        filter_metadata: BTreeMap::from([(RETRY_METADATA.to_owned(), Struct { fields })]),
        ..Metadata::default()
    })
}

fn hashes(traffic: &Traffic<'_>) -> Vec<HashPolicy> {
    let sources = traffic
        .load_balancer()
        .map_or(&[][..], |b| b.hash.as_slice());
    let policy = |source: &HashSource| HashPolicy {
        policy_specifier: Some(match source {
            HashSource::Header(name) => PolicySpecifier::Header(Header {
                header_name: name.to_ascii_lowercase(),
                ..Header::default()
            }),
            HashSource::Cookie { name, ttl, path } => PolicySpecifier::Cookie(Cookie {
                name: name.clone(),
                ttl: Some(ttl.map_or(seconds(0), |ttl| duration(ttl.0))),
                path: path.clone().unwrap_or_else(|| "/".to_owned()),
            }),
            HashSource::QueryParameter(name) => {
                PolicySpecifier::QueryParameter(QueryParameter { name: name.clone() })
            }
            HashSource::SourceIp(_) => {
                PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true })
            }
        }),
        // The first that is there.
        terminal: true,
    };
    sources.iter().map(policy).collect()
}

/// The action of a rule: to its backends by weight, or, without any, to the parent. `None` if
/// nobody may answer.
pub(super) fn to_backends(
    world: &World,
    parent: &PortRef<'_>,
    namespace: &str,
    backends: &[BackendRef],
    own: Own<'_>,
) -> Option<Action> {
    let traffic = Traffic::of(world, parent);
    let mut action = tuned(&traffic, own);
    if backends.is_empty() {
        action.hash_policy = hashes(&traffic);
        action.cluster_specifier = Some(ClusterSpecifier::Cluster(names::cluster(parent)));
        return Some(Action::Route(action));
    }
    let used: Vec<_> = backends.iter().filter(|b| b.weight != Some(0)).collect();
    let first = used.first()?;
    let of_first = ClusterName::parse(&cluster(namespace, first));
    let port = of_first.and_then(|name| world.service_port(&name));
    action.hash_policy = port
        .map(|p| hashes(&Traffic::of(world, &p)))
        .unwrap_or_default();
    let plain = used.len() == 1 && first.filters.is_empty();
    action.cluster_specifier = Some(if plain {
        ClusterSpecifier::Cluster(cluster(namespace, first))
    } else {
        let weighted = used.iter().map(|backend| weighted(namespace, backend));
        ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: weighted.collect(),
            ..WeightedCluster::default()
        })
    });
    Some(Action::Route(action))
}

/// Also a backend that is not there has a name: when it comes, it is used.
pub(in crate::translate) fn cluster(namespace: &str, backend: &BackendRef) -> String {
    let namespace = backend.namespace.as_deref().unwrap_or(namespace);
    names::service_cluster(namespace, &backend.name, backend.port.unwrap_or_default())
}

fn weighted(namespace: &str, backend: &BackendRef) -> ClusterWeight {
    let (mut request, mut response) = (HeaderChanges::default(), HeaderChanges::default());
    for filter in &backend.filters {
        match filter {
            Filter::RequestHeaderModifier { modifier } => request = HeaderChanges::of(modifier),
            Filter::ResponseHeaderModifier { modifier } => response = HeaderChanges::of(modifier),
            _ => {}
        }
    }
    ClusterWeight {
        name: cluster(namespace, backend),
        weight: Some(backend.weight.unwrap_or(1)),
        request_headers_to_add: request.add,
        request_headers_to_remove: request.remove,
        response_headers_to_add: response.add,
        response_headers_to_remove: response.remove,
        ..ClusterWeight::default()
    }
}

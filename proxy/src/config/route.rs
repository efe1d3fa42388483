//! Routes: which cluster a request goes to and what is done to it on the way (Envoy
//! `RouteConfiguration`). Order is meaning: the first route that matches wins.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use http::{HeaderName, HeaderValue, StatusCode};

use super::{
    listener::LocalRateLimit,
    matcher::{HeaderMatch, StringMatch},
    rbac::Rbac,
    units::{Backoff, ClusterName, Fraction, RouteConfigName},
};

/// All virtual hosts behind one HTTP connection manager.
#[derive(Clone, Debug)]
pub struct RouteConfig {
    pub name: RouteConfigName,
    pub virtual_hosts: Vec<VirtualHost>,
    pub headers: HeaderMods,
    /// Compare hosts without their port.
    pub ignore_port_in_host: bool,
}

/// Routes for a set of hosts.
#[derive(Clone, Debug)]
pub struct VirtualHost {
    pub name: Arc<str>,
    pub domains: Vec<Domain>,
    pub routes: Vec<Arc<Route>>,
    pub headers: HeaderMods,
    /// Used by routes that say nothing about retries.
    pub retry: Option<Arc<RetryPolicy>>,
    pub filters: RouteFilters,
    /// Tell the upstream which attempt this is, in `x-envoy-attempt-count`.
    pub attempt_count_header: bool,
}

/// A host pattern. Envoy's order of preference: exact, longest suffix, longest prefix, any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Domain {
    /// Lower case, port included if it was given.
    Exact(Box<str>),
    /// `*.example.com`, kept as `.example.com`.
    Suffix(Box<str>),
    /// `cart.*`, kept as `cart.`.
    Prefix(Box<str>),
    Any,
}

/// One rule.
#[derive(Clone, Debug)]
pub struct Route {
    /// Shown in metrics, traces and logs; never empty (the decoder names nameless ones).
    pub name: Arc<str>,
    pub matcher: RouteMatch,
    pub action: Action,
    pub headers: HeaderMods,
    pub filters: RouteFilters,
}

/// Filters configured for a route or virtual host (Envoy `typed_per_filter_config`).
#[derive(Clone, Debug, Default)]
pub struct RouteFilters {
    pub fault: Option<Arc<FaultInjection>>,
    /// `Some(None)` switches the listener's RBAC off for this route.
    pub rbac: Option<Option<Arc<Rbac>>>,
    /// `Some(None)` switches the listener's rate limit off for this route.
    pub rate_limit: Option<Option<Arc<RouteRateLimit>>>,
}

/// A rate limit of routes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteRateLimit {
    /// Envoy's `stat_prefix`. Routes whose limits have the same name and setting share one bucket,
    /// over all listeners of the proxy.
    pub name: Arc<str>,
    pub limit: LocalRateLimit,
}

/// Conditions; all must hold.
#[derive(Clone, Debug)]
pub struct RouteMatch {
    pub path: PathMatch,
    pub headers: Vec<HeaderMatch>,
    pub query: Vec<QueryMatch>,
    /// Only gRPC requests (`content-type: application/grpc…`).
    pub grpc_only: bool,
    /// Only this share of otherwise matching requests.
    pub fraction: Option<Fraction>,
}

/// How the path, without its query, is compared.
#[derive(Clone, Debug)]
pub enum PathMatch {
    Prefix {
        text: Box<str>,
        ignore_case: bool,
    },
    Exact {
        text: Box<str>,
        ignore_case: bool,
    },
    /// Whole path elements: `/api` matches `/api` and `/api/x`, not `/apix`.
    ElementPrefix {
        text: Box<str>,
        ignore_case: bool,
    },
    Regex(regex::Regex),
    /// Only CONNECT requests.
    Connect,
}

/// A condition on a query parameter; the first of that name counts.
#[derive(Clone, Debug)]
pub struct QueryMatch {
    pub name: Box<str>,
    /// `None` asks only that the parameter is there.
    pub value: Option<StringMatch>,
}

/// What happens to a matched request.
#[derive(Clone, Debug)]
pub enum Action {
    Forward(Box<Forward>),
    Redirect(Box<Redirect>),
    Respond(Box<DirectResponse>),
}

/// Sending a request on.
#[derive(Clone, Debug)]
pub struct Forward {
    pub target: Target,
    pub path_rewrite: Option<PathRewrite>,
    pub host_rewrite: Option<HostRewrite>,
    /// Whole response, all tries and back-off included; `None` is no limit (Envoy: 15 s).
    pub timeout: Option<Duration>,
    /// No byte in either direction for so long; `None` inherits the connection manager's.
    pub idle_timeout: Option<Duration>,
    /// Life of a stream, however busy; also caps `grpc-timeout` when set (gRFC A31).
    pub max_stream_duration: Option<Duration>,
    /// The most that a caller's `grpc-timeout` may ask for; `Some(ZERO)` is "as asked", `None`
    /// ignores that header.
    pub grpc_timeout_max: Option<Duration>,
    pub retry: Option<Arc<RetryPolicy>>,
    pub mirrors: Vec<Mirror>,
    pub hash: Vec<HashPolicy>,
    /// Envoy's HIGH routing priority, which has circuit-breaker limits of its own.
    pub high_priority: bool,
    /// What a missing cluster answers; Envoy's default is 503.
    pub cluster_not_found: StatusCode,
}

/// Where to.
#[derive(Clone, Debug)]
pub enum Target {
    Cluster(ClusterName),
    Weighted(Vec<WeightedCluster>),
    /// The cluster's name stands in a request header.
    Header(HeaderName),
}

/// One arm of a split.
#[derive(Clone, Debug)]
pub struct WeightedCluster {
    pub name: ClusterName,
    pub weight: u32,
    pub headers: HeaderMods,
    pub host_rewrite: Option<HostRewrite>,
}

/// How the path changes. A substitution is in the syntax of the `regex` crate, `${1}`.
#[derive(Clone, Debug)]
pub enum PathRewrite {
    /// Replaces what the route's path matcher matched.
    Prefix(Box<str>),
    Regex {
        pattern: regex::Regex,
        substitution: Box<str>,
    },
}

/// How `host` / `:authority` changes.
#[derive(Clone, Debug)]
pub enum HostRewrite {
    Literal(HeaderValue),
    /// Taken from another request header, if it is there.
    Header(HeaderName),
    /// The chosen endpoint's hostname.
    Endpoint,
}

/// A copy of the request goes to another cluster; its answer is thrown away.
#[derive(Clone, Debug)]
pub struct Mirror {
    pub cluster: ClusterName,
    pub fraction: Fraction,
    /// Envoy appends `-shadow` to the host unless told not to.
    pub keep_host: bool,
}

/// What a consistent-hash balancer hashes, in order; the values are combined.
#[derive(Clone, Debug)]
pub struct HashPolicy {
    pub source: HashSource,
    /// Stop here if this one gave a value.
    pub terminal: bool,
}

/// One input of a hash.
#[derive(Clone, Debug)]
pub enum HashSource {
    Header(HeaderName),
    Cookie {
        name: Box<str>,
        /// Set the cookie when it is missing, with this life; `ZERO` is a session cookie.
        ttl: Option<Duration>,
        path: Box<str>,
    },
    SourceIp,
    Query(Box<str>),
}

/// When and how a request is tried again.
#[derive(Clone, Debug)]
pub struct RetryPolicy {
    pub on: RetryOn,
    /// Status codes for `retriable-status-codes`.
    pub status_codes: Vec<StatusCode>,
    /// Tries beyond the first.
    pub num_retries: u32,
    /// From sending a try until its response headers are in; never cuts a begun body.
    pub per_try_timeout: Option<Duration>,
    pub backoff: Backoff,
    /// Methods that may be sent again after the peer may have acted on them, beyond the
    /// idempotent ones of RFC 9110 §9.2.2.
    pub allow_non_idempotent: bool,
}

/// Envoy's `retry_on` words. Each says when the *response or failure* is retriable; whether the
/// *request* may be sent again is a second question (`policy::retry`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "they are independent switches"
)]
pub struct RetryOn {
    pub connect_failure: bool,
    pub refused_stream: bool,
    pub reset: bool,
    pub reset_before_request: bool,
    pub server_error_5xx: bool,
    pub gateway_error: bool,
    pub retriable_4xx: bool,
    pub status_codes: bool,
    pub grpc_cancelled: bool,
    pub grpc_deadline_exceeded: bool,
    pub grpc_internal: bool,
    pub grpc_resource_exhausted: bool,
    pub grpc_unavailable: bool,
}

impl RetryPolicy {
    /// What applies when nobody configured retries: one more try than two, only where the request
    /// cannot have been processed, plus safe methods on a reset (design: "never make it worse").
    #[must_use]
    pub fn standard() -> Self {
        Self {
            on: RetryOn {
                connect_failure: true,
                refused_stream: true,
                reset: true,
                reset_before_request: true,
                ..RetryOn::default()
            },
            status_codes: Vec::new(),
            num_retries: 2,
            per_try_timeout: None,
            backoff: Backoff::REQUEST,
            allow_non_idempotent: false,
        }
    }

    /// [`Self::standard`], made once.
    #[must_use]
    pub fn shared() -> Arc<Self> {
        static STANDARD: LazyLock<Arc<RetryPolicy>> =
            LazyLock::new(|| Arc::new(RetryPolicy::standard()));
        Arc::clone(&STANDARD)
    }
}

/// Answers with a redirect.
#[derive(Clone, Debug)]
pub struct Redirect {
    pub status: StatusCode,
    pub scheme: Option<Box<str>>,
    pub host: Option<Box<str>>,
    pub port: Option<u16>,
    pub path: Option<RedirectPath>,
    pub strip_query: bool,
}

/// How a redirect changes the path. A substitution is in the syntax of the `regex` crate, `${1}`.
#[derive(Clone, Debug)]
pub enum RedirectPath {
    Full(Box<str>),
    Prefix(Box<str>),
    Regex {
        pattern: regex::Regex,
        substitution: Box<str>,
    },
}

/// Answers without any upstream.
#[derive(Clone, Debug)]
pub struct DirectResponse {
    pub status: StatusCode,
    pub body: bytes::Bytes,
}

/// Changes to request and response headers.
#[derive(Clone, Debug, Default)]
pub struct HeaderMods {
    pub request_add: Vec<HeaderAdd>,
    pub request_remove: Vec<HeaderName>,
    pub response_add: Vec<HeaderAdd>,
    pub response_remove: Vec<HeaderName>,
}

/// One header to write.
#[derive(Clone, Debug)]
pub struct HeaderAdd {
    pub name: HeaderName,
    pub value: HeaderValue,
    pub how: AppendAction,
}

/// Envoy's `HeaderAppendAction`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendAction {
    AppendOrAdd,
    AddIfAbsent,
    OverwriteOrAdd,
    OverwriteIfExists,
}

/// Faults made on purpose (Envoy `HTTPFault`).
#[derive(Clone, Debug)]
pub struct FaultInjection {
    pub delay: Option<(Duration, Fraction)>,
    pub abort: Option<(Abort, Fraction)>,
    /// Only requests that match these.
    pub headers: Vec<HeaderMatch>,
    /// At most so many delayed or aborted requests at once.
    pub max_active: Option<u32>,
}

/// What an injected abort answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort {
    Http(StatusCode),
    Grpc(u32),
}

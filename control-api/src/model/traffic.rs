//! `TrafficPolicy`: how callers treat a Service.

mod check;

use serde::{Deserialize, Serialize};

use super::common::{Share, Span, TargetRef};

/// Each section that is absent keeps its defaults. A policy for a port goes before one for the
/// whole Service, section by section.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficPolicySpec {
    /// The Services, in the policy's namespace.
    pub target_refs: Vec<TargetRef>,
    /// Which endpoint is chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancer>,
    /// Connections, and how many of them and of requests there may be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<Connections>,
    /// How long a request may take, where its route does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<PolicyTimeouts>,
    /// What is tried again, where the route does not say; and how much retries may add.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<Retries>,
    /// When calls are refused for a while.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub circuit_breaker: Option<CircuitBreaker>,
    /// When an endpoint that fails is passed over for a while.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<OutlierDetection>,
    /// How endpoints are probed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub health_checks: Vec<HealthCheck>,
}

/// Which endpoint is chosen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoadBalancer {
    /// How; absent: `peakEwma`.
    #[serde(default)]
    pub policy: BalancePolicy,
    /// What of a request chooses the endpoint, for `ringHash` and `maglev`; the first there is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hash: Vec<HashSource>,
    /// A new endpoint gets its full share after this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<Span>,
    /// Below this share of healthy endpoints all are used; absent: 50.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub panic_threshold: Option<Share>,
    /// Endpoints of the caller's zone are preferred, as far as they carry the load; absent: yes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone_aware: Option<bool>,
}

/// How an endpoint is chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BalancePolicy {
    /// The better of two by latency and load.
    #[default]
    PeakEwma,
    /// The better of two by load.
    LeastRequest,
    /// In turn.
    RoundRobin,
    /// By chance.
    Random,
    /// By hash, on a ring.
    RingHash,
    /// By hash, by a table.
    Maglev,
}

/// What of a request is hashed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum HashSource {
    /// A header.
    Header(String),
    /// A cookie, which is set when it is not there.
    Cookie {
        /// Its name.
        name: String,
        /// Its life; absent: the session.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ttl: Option<Span>,
        /// Its path.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path: Option<String>,
    },
    /// A query parameter.
    QueryParameter(String),
    /// The caller's address.
    SourceIp(bool),
}

/// Connections from one proxy to the Service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Connections {
    /// For the handshakes of TCP and TLS; absent: 5 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_timeout: Option<Span>,
    /// At once; absent: 16384.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// Requests that wait for a connection; absent: 1024.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_pending_requests: Option<u32>,
    /// Requests at once; absent: 16384.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_requests: Option<u32>,
    /// Requests on one connection; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_requests_per_connection: Option<u32>,
    /// A connection without requests is closed after this time; absent: 1 h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Span>,
    /// TCP keepalive; absent: the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// HTTP/1.1 requests share connections over HTTP/2; absent: no.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http2: Option<bool>,
}

/// TCP keepalive.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpKeepalive {
    /// Quiet time before the first probe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Span>,
    /// Between probes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Span>,
    /// Probes without answer before the connection counts as broken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probes: Option<u32>,
}

/// How long things may take; `0s`: no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyTimeouts {
    /// A request with every retry; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Span>,
    /// Each try; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_request: Option<Span>,
    /// A stream on which nothing moves; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream_idle: Option<Span>,
    /// A stream altogether; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_stream_duration: Option<Span>,
}

/// What is tried again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Retries {
    /// How often at most, after the first try; 0: never; absent: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// Envoy's words; absent: what cannot have been processed, and safe methods whose connection
    /// broke.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub on: Vec<String>,
    /// Answers that are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub codes: Vec<u16>,
    /// Each try.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_try_timeout: Option<Span>,
    /// Waits between tries, grown at random up to the maximum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Backoff>,
    /// A method with side effects may be run twice; absent: no.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_non_idempotent: Option<bool>,
    /// How much retries may add; absent: 20 %, at least 10 at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<RetryBudget>,
}

/// Waits between tries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Backoff {
    /// The first.
    pub base: Span,
    /// The longest; absent: ten times the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<Span>,
}

/// A bound for retries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetryBudget {
    /// Share of requests.
    pub percent: Share,
    /// So many at once are allowed always; absent: 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_concurrent: Option<u32>,
    /// The time that requests are counted over, beside those in flight; absent: 10 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Span>,
}

/// What opens as one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BreakerScope {
    /// The whole Service: calls are answered 503 at once.
    Service,
    /// One endpoint: others take its calls.
    Endpoint,
    /// Both.
    #[default]
    ServiceAndEndpoint,
}

/// A breaker: closed, open, half-open, ramping.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CircuitBreaker {
    /// What opens as one.
    #[serde(default)]
    pub scope: BreakerScope,
    /// Opens at this share of failed calls; absent: 50, unless a share of slow calls is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_rate: Option<Share>,
    /// Opens at this share of slow calls; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_call_rate: Option<Share>,
    /// What takes longer is slow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_call_duration: Option<Span>,
    /// How far back calls count; absent: 10 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Span>,
    /// Fewer calls in the window never open it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_calls: Option<u32>,
    /// How long it stays open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_duration: Option<Span>,
    /// Calls that are let through to see whether it is good again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub half_open_probes: Option<u32>,
    /// Time over which traffic then grows back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ramp: Option<Span>,
}

/// Which endpoints are passed over, and for how long.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OutlierDetection {
    /// Failures one after the other; 0: not looked at; absent: 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consecutive_errors: Option<u32>,
    /// 502, 503 and 504 and failures to connect, one after the other; absent: not looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consecutive_gateway_errors: Option<u32>,
    /// Share of failures in an interval; absent: not looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_percentage: Option<Share>,
    /// Fewer requests in an interval say nothing of shares; absent: 50.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_requests: Option<u32>,
    /// Between two looks; absent: 10 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Span>,
    /// The first time out; it grows with each; absent: 30 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_ejection_time: Option<Span>,
    /// The longest time out; absent: 300 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ejection_time: Option<Span>,
    /// No more than this share of endpoints is out at once; absent: 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ejection_percent: Option<Share>,
}

/// A probe.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HealthCheck {
    /// By an HTTP request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpProbe>,
    /// By connecting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpProbe>,
    /// By gRPC's health service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc: Option<GrpcProbe>,
    /// Between probes; absent: 5 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Span>,
    /// For one probe; absent: 1 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    /// So many bad ones make it unhealthy; absent: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unhealthy_threshold: Option<u32>,
    /// So many good ones make it healthy; absent: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthy_threshold: Option<u32>,
    /// Another port than that of the Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// An HTTP request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpProbe {
    /// What is asked for.
    pub path: String,
    /// The `Host`; absent: the Service's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Good answers; none: 200.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expected_statuses: Vec<u16>,
}

/// A connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TcpProbe {}

/// A call of `grpc.health.v1.Health/Check`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrpcProbe {
    /// Whose health; absent: the server's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service: String,
}

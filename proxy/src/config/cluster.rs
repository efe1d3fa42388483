//! Clusters: a destination and the rules for reaching it (Envoy `Cluster`).

use std::{sync::Arc, time::Duration};

use http::StatusCode;

use super::{tls::ClientTls, units::ClusterName};

/// One cluster.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub name: ClusterName,
    pub discovery: Discovery,
    pub connect_timeout: Duration,
    pub balancing: Balancing,
    pub locality: LocalityMode,
    /// Below this share of healthy hosts (percent) health is ignored; 0 never does (Envoy: 50).
    pub panic_threshold: u32,
    pub protocol: UpstreamProtocol,
    /// Requests per upstream connection before it is retired.
    pub max_requests_per_connection: Option<u32>,
    /// An unused pooled connection is closed after this.
    pub idle_timeout: Option<Duration>,
    pub limits: Limits,
    pub high_priority_limits: Limits,
    pub outlier: Option<Outlier>,
    pub breaker: Option<Breaker>,
    pub health_checks: Vec<HealthCheck>,
    /// Close connections to an endpoint that a health check marks down.
    pub close_on_health_failure: bool,
    pub tls: TlsChoice,
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// A new endpoint's share grows over this window.
    pub slow_start: Option<SlowStart>,
    /// HTTP/2 PING on connections with open streams (gRFC A8); `None` is off.
    pub h2_keepalive: Option<H2Keepalive>,
}

/// How members are found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Discovery {
    /// Listed in the resource; held in the snapshot like EDS ones.
    Static,
    /// By EDS under this service name.
    Eds(Arc<str>),
    /// By DNS, all addresses (STRICT_DNS) or the first (LOGICAL_DNS).
    Dns {
        hosts: Vec<(Box<str>, u16)>,
        logical: bool,
        refresh: Duration,
    },
    /// The connection's original destination is the only member.
    OriginalDst,
    /// The first of these clusters that has a usable endpoint (gRFC A37).
    Aggregate(Vec<ClusterName>),
}

/// How an endpoint is picked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Balancing {
    RoundRobin,
    /// Of `choices` drawn at random the one with the fewest requests in flight.
    LeastRequest {
        choices: u32,
        bias: f64,
    },
    /// Of two drawn at random the one with the lower latency × (in flight + 1).
    PeakEwma {
        decay: Duration,
        default_rtt: Duration,
    },
    Random,
    RingHash {
        min_size: u32,
        max_size: u32,
    },
    Maglev {
        table_size: u32,
    },
    /// Connect to the first that works, keep to it.
    PickFirst {
        shuffle: bool,
    },
}

/// How localities share load inside a priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalityMode {
    /// Localities do not matter.
    Ignore,
    /// By their weights.
    Weighted,
    /// Keep to the own zone as far as its share of capacity allows.
    ZoneAware { min_cluster_size: u32 },
}

/// HTTP version towards the endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamProtocol {
    /// As the client spoke.
    Downstream,
    Http1,
    Http2,
}

/// Upper limits of work towards a cluster (Envoy circuit breakers). Each has a counter and a
/// response detail of its own when it is hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub max_connections: u32,
    pub max_pending: u32,
    pub max_requests: u32,
    /// Retries at once; replaced by the budget when that is set.
    pub max_retries: u32,
    pub retry_budget: RetryBudget,
}

/// Retries as a share of the requests in flight, waiting ones included, and as the same share of
/// those of the last interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryBudget {
    /// Thousandths of a percent avoided: whole percent of active requests.
    pub percent: u32,
    /// So many at once, and so many a second, are always allowed.
    pub min_concurrency: u32,
    /// How far back requests and retries count.
    pub interval: Duration,
}

impl Limits {
    /// Envoy's defaults, with the retry budget on: 20 %, and 10 at least, so that what a dying
    /// instance of a small service had in its hands can go elsewhere all at once.
    pub const DEFAULT: Self = Self {
        max_connections: 1024,
        max_pending: 1024,
        max_requests: 1024,
        max_retries: 1024,
        retry_budget: RetryBudget {
            percent: 20,
            min_concurrency: 10,
            interval: Duration::from_secs(10),
        },
    };
}

/// Passive ejection (Envoy outlier detection, gRFC A50).
#[derive(Clone, Debug, PartialEq)]
pub struct Outlier {
    pub interval: Duration,
    pub base_ejection: Duration,
    pub max_ejection: Duration,
    pub max_ejection_percent: u32,
    /// One host may be ejected even when the percentage allows none.
    pub always_eject_one: bool,
    pub consecutive_5xx: Option<u32>,
    pub consecutive_gateway: Option<u32>,
    pub consecutive_local: Option<u32>,
    /// Count connect failures and time-outs apart from the upstream's own 5xx.
    pub split_local: bool,
    pub success_rate: Option<SuccessRate>,
    pub failure_percentage: Option<FailurePercentage>,
}

/// Ejects hosts whose success rate is far below the mean.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SuccessRate {
    pub minimum_hosts: u32,
    pub request_volume: u32,
    /// Standard deviations below the mean.
    pub stdev_factor: f64,
}

/// Ejects hosts whose failures reach a share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailurePercentage {
    pub threshold: u32,
    pub minimum_hosts: u32,
    pub request_volume: u32,
}

/// The breaker of Hystrix and resilience4j: closed, open, half-open.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Breaker {
    /// Percent of failed calls in the window that opens it.
    pub failure_rate: f64,
    /// Percent of slow calls that opens it; 100 and over never does.
    pub slow_call_rate: f64,
    pub slow_call: Duration,
    pub window: Duration,
    /// Fewer calls than this in the window never open it.
    pub minimum_calls: u32,
    /// Stays open this long before it probes.
    pub open_for: Duration,
    /// Calls let through in half-open; all must succeed (by the rates above) to close.
    pub probes: u32,
    /// After closing, the admitted share grows from its first step to all over this time.
    pub ramp: Duration,
}

/// An active check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    pub timeout: Duration,
    pub interval: Duration,
    pub jitter: Duration,
    pub unhealthy_threshold: u32,
    pub healthy_threshold: u32,
    /// Interval while the cluster has no traffic; `None` is `interval`.
    pub no_traffic_interval: Option<Duration>,
    pub reuse_connection: bool,
    pub kind: HealthCheckKind,
}

/// What an active check does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HealthCheckKind {
    Http {
        host: Box<str>,
        path: Box<str>,
        method: http::Method,
        /// Half-open ranges; 200 only when empty.
        expected: Vec<(StatusCode, u16)>,
        http2: bool,
    },
    /// Connects; sends and expects bytes when given.
    Tcp {
        send: Vec<u8>,
        receive: Vec<Vec<u8>>,
    },
    /// `grpc.health.v1.Health/Check`.
    Grpc {
        service: Box<str>,
        authority: Box<str>,
    },
}

/// Which TLS, by the endpoint's `envoy.transport_socket_match` metadata: the first entry whose
/// pairs are all there, else the default.
#[derive(Clone, Debug, Default)]
pub struct TlsChoice {
    pub matches: Vec<TlsMatch>,
    /// `None` is plaintext.
    pub default: Option<Arc<ClientTls>>,
}

/// One entry of `transport_socket_matches`.
#[derive(Clone, Debug)]
pub struct TlsMatch {
    pub pairs: Vec<(Box<str>, Box<str>)>,
    pub tls: Option<Arc<ClientTls>>,
}

impl TlsChoice {
    /// The TLS settings for an endpoint.
    #[must_use]
    pub fn of(&self, endpoint: &super::endpoint::Endpoint) -> Option<&Arc<ClientTls>> {
        self.matches
            .iter()
            .find(|entry| {
                let has = |pair| endpoint.transport_match.contains(pair);
                entry.pairs.iter().all(has)
            })
            .map_or(self.default.as_ref(), |entry| entry.tls.as_ref())
    }
}

/// Kernel keepalive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpKeepalive {
    pub time: Duration,
    pub interval: Duration,
    pub probes: u32,
}

/// Gradual load for new endpoints.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowStart {
    pub window: Duration,
    pub aggression: f64,
    /// The smallest share of its weight a new endpoint starts with, percent.
    pub min_weight_percent: f64,
}

/// HTTP/2 keepalive towards the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct H2Keepalive {
    pub interval: Duration,
    pub timeout: Duration,
}

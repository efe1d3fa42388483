//! `TrafficPolicy`: how callers treat a Service.

use serde::{Deserialize, Serialize};

use super::common::{Faults, MAX_LIST, Share, Span, TargetRef, is_token, target_faults};

/// Each section that is absent keeps its defaults. A policy for a port goes before one for the whole
/// Service, section by section.
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
    /// What of a request chooses the endpoint, for `ringHash` and `maglev`; the first that is there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hash: Vec<HashSource>,
    /// A new endpoint gets its full share after this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<Span>,
    /// Below this share of healthy endpoints all are used; absent: 50.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub panic_threshold: Option<Share>,
    /// Endpoints of the caller's zone are preferred, as far as they can carry the load; absent: yes.
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

/// Conditions under which a try is repeated.
const RETRY_WORDS: [&str; 13] = [
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "refused-stream",
    "retriable-4xx",
    "retriable-status-codes",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

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
    /// How much retries may add; absent: 20 %, at least 3 at once.
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
    /// So many at once are allowed always; absent: 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_concurrent: Option<u32>,
    /// The time that requests are counted over; absent: those in flight.
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

impl TrafficPolicySpec {
    /// Everything wrong with it: path below `spec`, and why.
    #[must_use]
    pub fn faults(&self) -> Faults {
        let mut faults = Faults::new();
        if self.target_refs.is_empty() {
            faults.push(("targetRefs".into(), "must have 1 or more entries".into()));
        }
        target_faults(&self.target_refs, &mut faults);
        let mut bad_if = |wrong: bool, path: &str, why: &str| {
            if wrong {
                faults.push((path.to_owned(), why.to_owned()));
            }
        };
        if let Some(balancer) = &self.load_balancer {
            balancer.check(&mut bad_if);
        }
        if let Some(inner) = &self.connections {
            inner.check(&mut bad_if);
        }
        if let Some(inner) = &self.retries {
            inner.check(&mut bad_if);
        }
        if let Some(inner) = &self.circuit_breaker {
            inner.check(&mut bad_if);
        }
        if let Some(inner) = &self.outlier_detection {
            inner.check(&mut bad_if);
        }
        bad_if(
            self.health_checks.len() > 8,
            "healthChecks",
            "must have at most 8 entries",
        );
        for (i, probe) in self.health_checks.iter().enumerate() {
            probe.check(&format!("healthChecks[{i}]"), &mut bad_if);
        }
        faults
    }
}

type BadIf<'f> = &'f mut dyn FnMut(bool, &str, &str);

fn zero(span: Option<Span>) -> bool {
    span.is_some_and(|span| span.0.is_zero())
}

impl LoadBalancer {
    fn check(&self, bad_if: BadIf<'_>) {
        let hashing = matches!(self.policy, BalancePolicy::RingHash | BalancePolicy::Maglev);
        let path = "loadBalancer.hash";
        bad_if(
            hashing && self.hash.is_empty(),
            path,
            "must say what is hashed",
        );
        bad_if(
            !hashing && !self.hash.is_empty(),
            path,
            "needs policy ringHash or maglev",
        );
        bad_if(self.hash.len() > 16, path, "must have at most 16 entries");
        let odd = |source: &HashSource| match source {
            HashSource::Header(name) | HashSource::Cookie { name, .. } => !is_token(name),
            HashSource::QueryParameter(name) => name.is_empty(),
            HashSource::SourceIp(on) => !on,
        };
        bad_if(
            self.hash.iter().any(odd),
            path,
            "must name headers, cookies or parameters",
        );
        let early = hashing || self.policy == BalancePolicy::Random;
        let slow = self.slow_start.is_some();
        bad_if(
            early && slow,
            "loadBalancer.slowStart",
            "does not go with this policy",
        );
        bad_if(
            zero(self.slow_start),
            "loadBalancer.slowStart",
            "must be over 0",
        );
    }
}

impl Connections {
    fn check(&self, bad_if: BadIf<'_>) {
        let zeros = [
            ("maxConnections", self.max_connections),
            ("maxRequests", self.max_requests),
            ("maxRequestsPerConnection", self.max_requests_per_connection),
        ];
        for (field, value) in zeros {
            bad_if(
                value == Some(0),
                &format!("connections.{field}"),
                "must be over 0",
            );
        }
        bad_if(
            zero(self.connect_timeout),
            "connections.connectTimeout",
            "must be over 0",
        );
    }
}

impl Retries {
    fn check(&self, bad_if: BadIf<'_>) {
        bad_if(
            self.attempts.is_some_and(|n| n > 100),
            "retries.attempts",
            "must be 0 to 100",
        );
        for (i, word) in self.on.iter().enumerate() {
            let known = RETRY_WORDS.contains(&word.as_str());
            let why = format!("must be one of {}", RETRY_WORDS.join(", "));
            bad_if(!known, &format!("retries.on[{i}]"), &why);
        }
        for (i, code) in self.codes.iter().enumerate() {
            let odd = !(400..=599).contains(code);
            bad_if(odd, &format!("retries.codes[{i}]"), "must be 400 to 599");
        }
        bad_if(
            self.codes.len() > MAX_LIST,
            "retries.codes",
            "must have at most 1000 entries",
        );
        if let Some(backoff) = &self.backoff {
            bad_if(
                zero(Some(backoff.base)),
                "retries.backoff.base",
                "must be over 0",
            );
            let less = backoff.max.is_some_and(|max| max < backoff.base);
            bad_if(less, "retries.backoff.max", "must not be less than base");
        }
    }
}

impl CircuitBreaker {
    fn check(&self, bad_if: BadIf<'_>) {
        let none = |share: Option<Share>| share.is_some_and(|share| share.millionths == 0);
        bad_if(
            none(self.failure_rate),
            "circuitBreaker.failureRate",
            "must be over 0",
        );
        bad_if(
            none(self.slow_call_rate),
            "circuitBreaker.slowCallRate",
            "must be over 0",
        );
        let alone = self.slow_call_rate.is_some() && self.slow_call_duration.is_none();
        bad_if(
            alone,
            "circuitBreaker.slowCallDuration",
            "must say what is slow",
        );
        bad_if(zero(self.window), "circuitBreaker.window", "must be over 0");
        bad_if(
            zero(self.open_duration),
            "circuitBreaker.openDuration",
            "must be over 0",
        );
        let odd = self.half_open_probes == Some(0);
        bad_if(odd, "circuitBreaker.halfOpenProbes", "must be over 0");
    }
}

impl OutlierDetection {
    fn check(&self, bad_if: BadIf<'_>) {
        bad_if(
            zero(self.interval),
            "outlierDetection.interval",
            "must be over 0",
        );
        let path = "outlierDetection.baseEjectionTime";
        bad_if(zero(self.base_ejection_time), path, "must be over 0");
        let whole = |share: Share| share.millionths.is_multiple_of(10_000);
        let odd = self.max_ejection_percent.is_some_and(|share| !whole(share));
        bad_if(
            odd,
            "outlierDetection.maxEjectionPercent",
            "must be a whole number",
        );
        let odd = self.failure_percentage.is_some_and(|share| !whole(share));
        bad_if(
            odd,
            "outlierDetection.failurePercentage",
            "must be a whole number",
        );
    }
}

impl HealthCheck {
    fn check(&self, path: &str, bad_if: BadIf<'_>) {
        let ways = [self.http.is_some(), self.tcp.is_some(), self.grpc.is_some()];
        let one = ways.iter().filter(|way| **way).count() == 1;
        bad_if(!one, path, "must have one of http, tcp and grpc");
        bad_if(
            zero(self.interval),
            &format!("{path}.interval"),
            "must be over 0",
        );
        bad_if(
            zero(self.timeout),
            &format!("{path}.timeout"),
            "must be over 0",
        );
        bad_if(
            self.port == Some(0),
            &format!("{path}.port"),
            "must be 1 to 65535",
        );
        for (field, value) in [
            ("unhealthyThreshold", self.unhealthy_threshold),
            ("healthyThreshold", self.healthy_threshold),
        ] {
            bad_if(
                value == Some(0),
                &format!("{path}.{field}"),
                "must be over 0",
            );
        }
        if let Some(http) = &self.http {
            let odd = !http.path.starts_with('/');
            bad_if(odd, &format!("{path}.http.path"), "must begin with /");
            let odd = http
                .expected_statuses
                .iter()
                .any(|s| !(100..=599).contains(s));
            bad_if(
                odd,
                &format!("{path}.http.expectedStatuses"),
                "must be 100 to 599",
            );
        }
    }
}

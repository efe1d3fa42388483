//! What a traffic policy may not say.

use super::{
    BalancePolicy, CircuitBreaker, Connections, HashSource, HealthCheck, LoadBalancer,
    OutlierDetection, Retries, TrafficPolicySpec,
};
use crate::model::common::{Faults, MAX_LIST, Share, Span, is_token, target_faults};

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

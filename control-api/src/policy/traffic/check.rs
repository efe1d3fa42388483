//! What serde cannot say about a `TrafficPolicy`: ranges, and what excludes what.

use super::{
    Breaker, Connections, HashSource, HealthCheck, LoadBalancer, OutlierDetection, Policy, Retries,
    TrafficPolicySpec,
};
use crate::policy::{
    Faults, Spec, http_route::MAX_ATTEMPTS, matching, reference::targets, units::Span,
};

/// What the proxy knows of Envoy's `retry_on`.
const RETRY_ON: [&str; 13] = [
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
/// Envoy's limits.
const MAX_RING: u64 = 8 << 20;
const MAX_TABLE: u64 = 5_000_011;
const MAX_CHOICES: u32 = 10;
const MAX_CHECKS: usize = 8;
const MAX_HASHES: usize = 8;

impl Spec for TrafficPolicySpec {
    fn check(&self, faults: &mut Faults) {
        targets(
            faults,
            &self.target_refs,
            &["Service", "HTTPRoute", "GRPCRoute"],
        );
        self.check_route(faults);
        faults.some("loadBalancer", self.load_balancer.as_ref(), |f, inner| {
            inner.check(f)
        });
        faults.some("connections", self.connections.as_ref(), |f, inner| {
            inner.check(f)
        });
        faults.some("retries", self.retries.as_ref(), |f, inner| inner.check(f));
        faults.some(
            "circuitBreaker",
            self.circuit_breaker.as_ref(),
            |f, inner| {
                f.some("breaker", inner.breaker.as_ref(), |f, inner| inner.check(f));
            },
        );
        faults.some(
            "outlierDetection",
            self.outlier_detection.as_ref(),
            |f, inner| {
                inner.check(f);
            },
        );
        let many = self.health_checks.len() > MAX_CHECKS;
        faults.add_if(many, "healthChecks", "must have at most 8 entries");
        faults.each("healthChecks", &self.health_checks, |f, inner| {
            inner.check(f)
        });
        let timeouts = self.timeouts.unwrap_or_default();
        let retries = self.retries.as_ref();
        let per_try = retries.and_then(|retries| retries.per_try_timeout);
        if let (Some(request), Some(per_try)) = (timeouts.request, per_try) {
            let longer = !request.is_zero() && per_try > request;
            let why = "must not be longer than timeouts.request";
            faults.add_if(longer, "retries.perTryTimeout", why);
        }
    }
}

impl TrafficPolicySpec {
    /// What belongs to endpoints cannot hang on a route.
    fn check_route(&self, faults: &mut Faults) {
        let routes = self
            .target_refs
            .iter()
            .any(|target| target.kind != "Service");
        if !routes {
            return;
        }
        const WHY: &str = "is for Services: a route has no endpoints of its own";
        let balancer = self.load_balancer.as_ref();
        let budget = self.retries.as_ref().and_then(|retries| retries.budget);
        faults.add_if(balancer.is_some(), "loadBalancer", WHY);
        faults.add_if(self.connections.is_some(), "connections", WHY);
        faults.add_if(self.circuit_breaker.is_some(), "circuitBreaker", WHY);
        faults.add_if(self.outlier_detection.is_some(), "outlierDetection", WHY);
        faults.add_if(!self.health_checks.is_empty(), "healthChecks", WHY);
        faults.add_if(budget.is_some(), "retries.budget", WHY);
    }
}

fn positive(faults: &mut Faults, all: &[(&str, Option<Span>)]) {
    for (field, span) in all {
        faults.add_if(
            span.is_some_and(Span::is_zero),
            field,
            "must be more than 0s",
        );
    }
}

impl LoadBalancer {
    fn check(&self, faults: &mut Faults) {
        self.check_policy(faults);
        let rings = [
            ("minimumRingSize", self.minimum_ring_size),
            ("maximumRingSize", self.maximum_ring_size),
        ];
        for (field, size) in rings {
            let bad = size.is_some_and(|size| size == 0 || size > MAX_RING);
            faults.add_if(bad, field, "must be 1 to 8388608");
        }
        let least = self.minimum_ring_size.unwrap_or(1024);
        let below = least > self.maximum_ring_size.unwrap_or(MAX_RING);
        let why = "must not be below minimumRingSize";
        faults.add_if(below, "maximumRingSize", why);
        let bad = |size| size > MAX_TABLE || !is_prime(size);
        let bad = self.table_size.is_some_and(bad);
        faults.add_if(bad, "tableSize", "must be a prime up to 5000011");
        let many = self.hash_on.len() > MAX_HASHES;
        faults.add_if(many, "hashOn", "must have at most 8 entries");
        faults.each("hashOn", &self.hash_on, |faults, source| {
            source.check(faults);
        });
        positive(faults, &[("decay", self.decay)]);
        let choices = self.choice_count;
        let bad = choices.is_some_and(|n| !(2..=MAX_CHOICES).contains(&n));
        faults.add_if(bad, "choiceCount", "must be 2 to 10");
        faults.some("slowStart", self.slow_start.as_ref(), |faults, slow| {
            positive(faults, &[("window", Some(slow.window))]);
            let bad = slow.aggression.is_some_and(|a| !(a > 0.0 && a.is_finite()));
            faults.add_if(bad, "aggression", "must be above 0");
        });
    }

    /// Every setting belongs to some of the policies.
    fn check_policy(&self, faults: &mut Faults) {
        use Policy as P;
        let settings: [(_, _, &[Policy], _); 7] = [
            ("decay", self.decay.is_some(), &[P::PeakEwma], "peakEwma"),
            (
                "choiceCount",
                self.choice_count.is_some(),
                &[P::LeastRequest],
                "leastRequest",
            ),
            (
                "minimumRingSize",
                self.minimum_ring_size.is_some(),
                &[P::RingHash],
                "ringHash",
            ),
            (
                "maximumRingSize",
                self.maximum_ring_size.is_some(),
                &[P::RingHash],
                "ringHash",
            ),
            (
                "tableSize",
                self.table_size.is_some(),
                &[P::Maglev],
                "maglev",
            ),
            (
                "hashOn",
                !self.hash_on.is_empty(),
                &[P::RingHash, P::Maglev],
                "ringHash or maglev",
            ),
            // Peak EWMA lets unknown endpoints in by their latency.
            (
                "slowStart",
                self.slow_start.is_some(),
                &[P::LeastRequest, P::RoundRobin],
                "leastRequest or roundRobin",
            ),
        ];
        for (field, set, of, names) in settings {
            let other = set && !of.contains(&self.policy);
            faults.add_if(other, field, &format!("is for policy {names}"));
        }
    }
}

fn is_prime(n: u64) -> bool {
    n > 1
        && (2..)
            .take_while(|d| d * d <= n)
            .all(|d| !n.is_multiple_of(d))
}

impl HashSource {
    fn check(&self, faults: &mut Faults) {
        let set = [
            self.header.is_some(),
            self.cookie.is_some(),
            self.query_param.is_some(),
            self.source_ip.is_some(),
        ];
        let one = set.iter().filter(|set| **set).count() == 1;
        faults.add_if(
            !one,
            "",
            "must have exactly one of header, cookie, queryParam and sourceIp",
        );
        if let Some(name) = &self.header {
            matching::header_name(faults, "header", name);
        }
        let named = |name: &str| !name.is_empty() && name.bytes().all(|c| c.is_ascii_graphic());
        faults.some("cookie", self.cookie.as_ref(), |faults, cookie| {
            let bad = !named(&cookie.name) || cookie.name.contains(['=', ';', ',']);
            faults.add_if(bad, "name", "must be the name of a cookie");
            let slash = cookie
                .path
                .as_ref()
                .is_none_or(|path| path.starts_with('/'));
            faults.add_if(!slash, "path", "must begin with '/'");
        });
        let bad = self.query_param.as_ref().is_some_and(|name| !named(name));
        faults.add_if(bad, "queryParam", "must be the name of a query parameter");
        faults.add_if(self.source_ip == Some(false), "sourceIp", "must be true");
    }
}

impl Connections {
    fn check(&self, faults: &mut Faults) {
        positive(faults, &[("connectTimeout", self.connect_timeout)]);
        let zero = self.max_requests_per_connection == Some(0);
        faults.add_if(zero, "maxRequestsPerConnection", "must be 1 or more");
        faults.some("keepalive", self.keepalive.as_ref(), |faults, keep| {
            for (field, span) in [("time", keep.time), ("interval", keep.interval)] {
                let whole = |span: Span| !span.is_zero() && span.0.subsec_nanos() == 0;
                let bad = span.is_some_and(|span| !whole(span));
                faults.add_if(bad, field, "must be one or more whole seconds");
            }
            faults.add_if(keep.probes == Some(0), "probes", "must be 1 or more");
        });
    }
}

impl Retries {
    fn check(&self, faults: &mut Faults) {
        let many = self.attempts.is_some_and(|n| n > MAX_ATTEMPTS);
        faults.add_if(many, "attempts", "must be at most 10");
        for (i, word) in self.retry_on.iter().enumerate() {
            if !RETRY_ON.contains(&word.as_str()) {
                let why = format!("{word:?} must be one of {}", RETRY_ON.join(", "));
                faults.add(&format!("retryOn[{i}]"), why);
            }
        }
        for (i, code) in self.status_codes.iter().enumerate() {
            let bad = !(400..=599).contains(code);
            faults.add_if(bad, &format!("statusCodes[{i}]"), "must be 400 to 599");
        }
        faults.some("backoff", self.backoff.as_ref(), |faults, backoff| {
            positive(faults, &[("base", Some(backoff.base))]);
            let less = backoff.max.is_some_and(|max| max < backoff.base);
            faults.add_if(less, "max", "must not be below base");
        });
        faults.some("budget", self.budget.as_ref(), |faults, budget| {
            positive(faults, &[("interval", budget.interval)]);
        });
    }
}

impl Breaker {
    fn check(&self, faults: &mut Faults) {
        let rates = [
            ("failureRateThreshold", self.failure_rate_threshold),
            ("slowCallRateThreshold", self.slow_call_rate_threshold),
        ];
        for (field, rate) in rates {
            let zero = rate.is_some_and(|rate| rate.get() == 0.0);
            faults.add_if(zero, field, "must be above 0");
        }
        let lone = self.slow_call_rate_threshold.is_some() && self.slow_call_duration.is_none();
        faults.add_if(
            lone,
            "slowCallDuration",
            "is required with slowCallRateThreshold",
        );
        positive(
            faults,
            &[
                ("slowCallDuration", self.slow_call_duration),
                ("window", self.window),
                ("openDuration", self.open_duration),
            ],
        );
        faults.add_if(
            self.minimum_calls == Some(0),
            "minimumCalls",
            "must be 1 or more",
        );
        faults.add_if(
            self.half_open_probes == Some(0),
            "halfOpenProbes",
            "must be 1 or more",
        );
    }
}

impl OutlierDetection {
    fn check(&self, faults: &mut Faults) {
        positive(
            faults,
            &[
                ("interval", self.interval),
                ("baseEjectionTime", self.base_ejection_time),
                ("maxEjectionTime", self.max_ejection_time),
            ],
        );
        if let (Some(base), Some(max)) = (self.base_ejection_time, self.max_ejection_time) {
            faults.add_if(
                max < base,
                "maxEjectionTime",
                "must not be below baseEjectionTime",
            );
        }
        let above = self
            .max_ejection_percent
            .is_some_and(|percent| percent > 100);
        faults.add_if(above, "maxEjectionPercent", "must be 0 to 100");
        faults.some("successRate", self.success_rate.as_ref(), |faults, rate| {
            // Envoy counts in thousandths, in 32 bits.
            let bad = rate
                .stdev_factor
                .is_some_and(|f| !(0.001..=1000.0).contains(&f));
            faults.add_if(bad, "stdevFactor", "must be 0.001 to 1000");
        });
        faults.some(
            "failurePercentage",
            self.failure_percentage.as_ref(),
            |faults, rate| {
                let bad = rate.threshold.is_some_and(|t| t == 0 || t > 100);
                faults.add_if(bad, "threshold", "must be 1 to 100");
            },
        );
    }
}

impl HealthCheck {
    fn check(&self, faults: &mut Faults) {
        let set = [self.http.is_some(), self.tcp.is_some(), self.grpc.is_some()];
        let one = set.iter().filter(|set| **set).count() == 1;
        faults.add_if(!one, "", "must have exactly one of http, tcp and grpc");
        faults.some("http", self.http.as_ref(), |faults, http| {
            let path = &http.path;
            let bad = !path.starts_with('/') || path.bytes().any(|c| !c.is_ascii_graphic());
            faults.add_if(
                bad,
                "path",
                "must begin with '/' and be written as in a request",
            );
            let host = http.host.as_ref();
            let bad = host.is_some_and(|host| http::HeaderValue::try_from(host).is_err());
            faults.add_if(bad, "host", "must be the value of a header");
            faults.each(
                "expectedStatuses",
                &http.expected_statuses,
                |faults, range| {
                    let good = 100 <= range.start && range.start < range.end && range.end <= 600;
                    faults.add_if(!good, "", "must have 100 <= start < end <= 600");
                },
            );
        });
        positive(
            faults,
            &[("interval", self.interval), ("timeout", self.timeout)],
        );
        faults.add_if(
            self.unhealthy_threshold == Some(0),
            "unhealthyThreshold",
            "must be 1 or more",
        );
        faults.add_if(
            self.healthy_threshold == Some(0),
            "healthyThreshold",
            "must be 1 or more",
        );
    }
}

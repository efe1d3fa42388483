//! What a traffic policy changes at a cluster.

use std::collections::BTreeMap;

use outrigger_proto::{
    any::pack,
    envoy::{
        config::{
            cluster::v3::{
                CircuitBreakers, Cluster, LoadBalancingPolicy, OutlierDetection as Outlier,
                UpstreamConnectionOptions,
                circuit_breakers::{Thresholds, thresholds::RetryBudget},
                cluster::CommonLbConfig,
                load_balancing_policy::Policy,
            },
            core::v3::{
                HealthCheck as Probe, Metadata, TcpKeepalive, TypedExtensionConfig,
                health_check::{GrpcHealthCheck, HealthChecker, HttpHealthCheck, TcpHealthCheck},
            },
        },
        extensions::load_balancing_policies::{
            common::v3::{
                LocalityLbConfig, SlowStartConfig,
                locality_lb_config::{LocalityConfigSpecifier, ZoneAwareLbConfig},
            },
            least_request::v3::LeastRequest,
            maglev::v3::Maglev,
            random::v3::Random,
            ring_hash::v3::RingHash,
            round_robin::v3::RoundRobin,
        },
        r#type::v3::Int64Range,
    },
    outrigger::extensions::v1::{Breaker, PeakEwma, breaker::Scope},
    type_url,
};

use super::{
    policy::Traffic,
    proto::{duration, extension, percent},
};
use crate::model::{
    BalancePolicy, BreakerScope, CircuitBreaker, HealthCheck, LoadBalancer, OutlierDetection, Share,
};

/// Connections and requests that one proxy has to one service at most. Envoy's 1,024 cuts off
/// services that hold many quiet connections; a bound is needed all the same.
const MAX_CONNECTIONS: u32 = 16_384;
const MAX_REQUESTS: u32 = 16_384;
/// Requests that wait for a connection; Envoy's default.
const MAX_PENDING: u32 = 1_024;
/// Retries add at most this share of load (design §8); never fewer than some at a time.
const RETRY_PERCENT: f64 = 20.0;
const MIN_RETRIES: u32 = 10;
/// A breaker that says nothing of rates opens at half.
const FAILURE_RATE: Share = Share {
    millionths: 500_000,
};

/// Limits of a cluster.
pub(super) fn limits(traffic: &Traffic<'_>) -> CircuitBreakers {
    let own = traffic.connections();
    let budget = traffic
        .retries()
        .and_then(|retries| retries.budget.as_ref());
    CircuitBreakers {
        thresholds: vec![Thresholds {
            max_connections: own
                .and_then(|c| c.max_connections)
                .or(Some(MAX_CONNECTIONS)),
            max_pending_requests: own
                .and_then(|c| c.max_pending_requests)
                .or(Some(MAX_PENDING)),
            max_requests: own.and_then(|c| c.max_requests).or(Some(MAX_REQUESTS)),
            retry_budget: Some(RetryBudget {
                budget_percent: Some(percent(
                    budget.map_or(RETRY_PERCENT, |budget| budget.percent.percent()),
                )),
                min_retry_concurrency: budget
                    .and_then(|budget| budget.min_concurrent)
                    .or(Some(MIN_RETRIES)),
                budget_interval: budget.and_then(|b| b.interval).map(|i| duration(i.0)),
            }),
            ..Thresholds::default()
        }],
        ..CircuitBreakers::default()
    }
}

/// Sets what a policy says of connections and of the breaker.
pub(super) fn connections(traffic: &Traffic<'_>, cluster: &mut Cluster) {
    if let Some(own) = traffic.connections() {
        if let Some(timeout) = own.connect_timeout {
            cluster.connect_timeout = Some(duration(timeout.0));
        }
        cluster.upstream_connection_options =
            own.tcp_keepalive
                .as_ref()
                .map(|keepalive| UpstreamConnectionOptions {
                    tcp_keepalive: Some(TcpKeepalive {
                        keepalive_probes: keepalive.probes,
                        keepalive_time: keepalive.time.map(|t| seconds(t.0)),
                        keepalive_interval: keepalive.interval.map(|t| seconds(t.0)),
                    }),
                });
    }
    if let Some(own) = traffic.breaker() {
        let key = type_url::BREAKER_METADATA_KEY.to_owned();
        cluster.metadata = Some(Metadata {
            typed_filter_metadata: BTreeMap::from([(key, pack(&breaker(own)))]),
            ..Metadata::default()
        });
    }
}

fn seconds(value: std::time::Duration) -> u32 {
    u32::try_from(value.as_secs()).unwrap_or(u32::MAX).max(1)
}

fn breaker(own: &CircuitBreaker) -> Breaker {
    let rate = own
        .failure_rate
        .or_else(|| own.slow_call_rate.is_none().then_some(FAILURE_RATE));
    let scope = match own.scope {
        BreakerScope::Service => Scope::Service,
        BreakerScope::Endpoint => Scope::Endpoint,
        BreakerScope::ServiceAndEndpoint => Scope::ServiceAndEndpoint,
    };
    Breaker {
        scope: scope.into(),
        failure_rate_threshold: rate.map(|rate| percent(rate.percent())),
        slow_call_rate_threshold: own.slow_call_rate.map(|rate| percent(rate.percent())),
        slow_call_duration: own.slow_call_duration.map(|d| duration(d.0)),
        window: own.window.map(|d| duration(d.0)),
        minimum_calls: own.minimum_calls,
        open_duration: own.open_duration.map(|d| duration(d.0)),
        half_open_probes: own.half_open_probes,
        ramp_duration: own.ramp.map(|d| duration(d.0)),
    }
}

/// Sets what a policy says of choosing, watching and probing endpoints.
pub(super) fn endpoints(traffic: &Traffic<'_>, host: &str, cluster: &mut Cluster) {
    let balancer = traffic.load_balancer().cloned().unwrap_or_default();
    cluster.load_balancing_policy = Some(balancing(&balancer));
    cluster.common_lb_config = balancer.panic_threshold.map(|share| CommonLbConfig {
        healthy_panic_threshold: Some(percent(share.percent())),
        ..CommonLbConfig::default()
    });
    cluster.outlier_detection = traffic.outlier().map(outlier);
    let probes = traffic.health_checks().iter();
    cluster.health_checks = probes.map(|probe| self::probe(probe, host)).collect();
}

/// Ours first; Envoy takes the first that it knows.
fn balancing(own: &LoadBalancer) -> LoadBalancingPolicy {
    let zone_aware = own.zone_aware.unwrap_or(true);
    let locality = zone_aware.then(|| LocalityLbConfig {
        locality_config_specifier: Some(LocalityConfigSpecifier::ZoneAwareLbConfig(
            ZoneAwareLbConfig::default(),
        )),
    });
    let slow = own.slow_start.map(|window| SlowStartConfig {
        slow_start_window: Some(duration(window.0)),
        ..SlowStartConfig::default()
    });
    let least = || {
        let config = LeastRequest {
            slow_start_config: slow.clone(),
            locality_lb_config: locality,
            ..LeastRequest::default()
        };
        extension("envoy.load_balancing_policies.least_request", &config)
    };
    let policies = match own.policy {
        BalancePolicy::PeakEwma => {
            let config = PeakEwma {
                slow_start_config: slow.clone(),
                locality_lb_config: locality,
                ..PeakEwma::default()
            };
            vec![extension("outrigger.peak_ewma", &config), least()]
        }
        BalancePolicy::LeastRequest => vec![least()],
        BalancePolicy::RoundRobin => {
            let config = RoundRobin {
                slow_start_config: slow.clone(),
                locality_lb_config: locality,
            };
            vec![extension(
                "envoy.load_balancing_policies.round_robin",
                &config,
            )]
        }
        BalancePolicy::Random => {
            let config = Random {
                locality_lb_config: locality,
            };
            vec![extension("envoy.load_balancing_policies.random", &config)]
        }
        BalancePolicy::RingHash => {
            let config = RingHash::default();
            vec![extension(
                "envoy.load_balancing_policies.ring_hash",
                &config,
            )]
        }
        BalancePolicy::Maglev => {
            vec![extension(
                "envoy.load_balancing_policies.maglev",
                &Maglev::default(),
            )]
        }
    };
    let policy = |config: TypedExtensionConfig| Policy {
        typed_extension_config: Some(config),
    };
    LoadBalancingPolicy {
        policies: policies.into_iter().map(policy).collect(),
    }
}

/// Whole percents, as Envoy has them here.
const fn whole(share: Share) -> u32 {
    share.millionths / 10_000
}

fn outlier(own: &OutlierDetection) -> Outlier {
    let enforced = |on: bool| Some(if on { 100 } else { 0 });
    Outlier {
        consecutive_5xx: own.consecutive_errors.filter(|n| *n > 0),
        enforcing_consecutive_5xx: enforced(own.consecutive_errors != Some(0)),
        consecutive_gateway_failure: own.consecutive_gateway_errors,
        enforcing_consecutive_gateway_failure: enforced(own.consecutive_gateway_errors.is_some()),
        failure_percentage_threshold: own.failure_percentage.map(whole),
        enforcing_failure_percentage: enforced(own.failure_percentage.is_some()),
        failure_percentage_request_volume: own.minimum_requests,
        // Not asked for.
        enforcing_success_rate: Some(0),
        interval: own.interval.map(|d| duration(d.0)),
        base_ejection_time: own.base_ejection_time.map(|d| duration(d.0)),
        max_ejection_time: own.max_ejection_time.map(|d| duration(d.0)),
        max_ejection_percent: own.max_ejection_percent.map(whole),
        ..Outlier::default()
    }
}

/// Envoy's defaults would be none.
const PROBE_INTERVAL: std::time::Duration = std::time::Duration::from_secs(5);
const PROBE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(1);
const UNHEALTHY_AFTER: u32 = 2;
const HEALTHY_AFTER: u32 = 1;

fn probe(own: &HealthCheck, host: &str) -> Probe {
    let checker = if let Some(http) = &own.http {
        let range = |code: &u16| Int64Range {
            start: i64::from(*code),
            end: i64::from(*code) + 1,
        };
        HealthChecker::HttpHealthCheck(HttpHealthCheck {
            host: http.host.clone().unwrap_or_else(|| host.to_owned()),
            path: http.path.clone(),
            expected_statuses: http.expected_statuses.iter().map(range).collect(),
            ..HttpHealthCheck::default()
        })
    } else if let Some(grpc) = &own.grpc {
        HealthChecker::GrpcHealthCheck(GrpcHealthCheck {
            service_name: grpc.service.clone(),
            authority: host.to_owned(),
            ..GrpcHealthCheck::default()
        })
    } else {
        HealthChecker::TcpHealthCheck(TcpHealthCheck::default())
    };
    Probe {
        interval: Some(duration(own.interval.map_or(PROBE_INTERVAL, |d| d.0))),
        timeout: Some(duration(own.timeout.map_or(PROBE_TIMEOUT, |d| d.0))),
        unhealthy_threshold: own.unhealthy_threshold.or(Some(UNHEALTHY_AFTER)),
        healthy_threshold: own.healthy_threshold.or(Some(HEALTHY_AFTER)),
        alt_port: own.port.map(u32::from),
        health_checker: Some(checker),
        ..Probe::default()
    }
}

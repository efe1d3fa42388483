//! Clusters and endpoints at work, in Envoy's two forms (`envoy.admin.v3.Clusters`) with what
//! Envoy does not have beside it.

use std::{collections::HashSet, sync::Arc};

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    Admin, Origin,
    call::{Answer, Call},
    state::socket_address,
};
use crate::{
    balance::{ClusterHandle, ClusterStats, EndpointView},
    config::{cluster::Limits, endpoint::HealthStatus},
    xds::Kind,
};

/// The page.
pub(super) fn page(admin: &Admin, call: &Call<'_>) -> Answer {
    let world = admin.shared.world.load();
    let now = Instant::now();
    let mut all: Vec<_> = world.live.clusters.values().collect();
    all.sort_by(|a, b| a.config.name.cmp(&b.config.name));
    match call.get("format") {
        None | Some("text") => {
            let mut text = String::new();
            for cluster in all {
                lines(&mut text, cluster, now);
            }
            Answer::text(text)
        }
        Some("json") => {
            let from_file: HashSet<Arc<str>> = admin
                .resources(Kind::Cluster)
                .filter(|(origin, _)| *origin == Origin::File)
                .map(|(_, resource)| resource.name)
                .collect();
            let each = all.into_iter().map(|cluster| {
                let by_api = !from_file.contains(cluster.config.name.as_str());
                object(cluster, by_api, now)
            });
            Answer::json(&json!({ "cluster_statuses": each.collect::<Vec<_>>() }))
        }
        Some(other) => Answer::refused(&format!("format: {other:?} is neither text nor json")),
    }
}

/// The settings of one priority, under their names in both forms.
const fn limits(of: &Limits) -> [(&'static str, u32); 4] {
    [
        ("max_connections", of.max_connections),
        ("max_pending_requests", of.max_pending),
        ("max_requests", of.max_requests),
        ("max_retries", of.max_retries),
    ]
}

/// The cluster's own numbers.
fn numbers(stats: &ClusterStats) -> [(&'static str, u64); 14] {
    [
        ("rq_active", stats.active_requests.into()),
        ("cx_active", stats.active_connections.into()),
        ("rq_pending_active", stats.pending.into()),
        ("rq_retry_active", stats.retries_now.into()),
        ("rq_total", stats.requests),
        ("cx_total", stats.connections),
        ("rq_retry", stats.retries),
        ("rq_overflow", stats.over_requests),
        ("cx_overflow", stats.over_connections),
        ("rq_pending_overflow", stats.over_pending),
        ("rq_retry_overflow", stats.over_retries),
        ("breaker_rejected", stats.breaker_rejected),
        ("ejections", stats.ejections),
        ("membership_healthy", stats.healthy as u64),
    ]
}

fn lines(text: &mut String, cluster: &ClusterHandle, now: Instant) {
    let config = &cluster.config;
    let name = &config.name;
    let stats = cluster.stats(now);
    let mut line = |rest: std::fmt::Arguments<'_>| text.push_str(&format!("{name}::{rest}\n"));
    let priorities = [
        ("default_priority", &config.limits),
        ("high_priority", &config.high_priority_limits),
    ];
    for (priority, of) in priorities {
        for (key, value) in limits(of) {
            line(format_args!("{priority}::{key}::{value}"));
        }
    }
    if let Some((state, transitions)) = stats.breaker {
        line(format_args!("breaker::{}", state.as_str()));
        line(format_args!("breaker_transitions::{transitions}"));
    }
    for (key, value) in numbers(&stats) {
        line(format_args!("{key}::{value}"));
    }
    for one in cluster.endpoints(now) {
        let at = one.address;
        line(format_args!("{at}::rq_active::{}", one.in_flight));
        line(format_args!("{at}::rq_success::{}", one.successes));
        line(format_args!("{at}::rq_error::{}", one.failures));
        line(format_args!("{at}::weight::{}", one.weight));
        line(format_args!("{at}::health_flags::{}", flags(&one)));
        line(format_args!(
            "{at}::latency_ewma_ms::{:.3}",
            one.ewma.as_secs_f64() * 1e3
        ));
        if let Some(left) = one.ejected_for {
            line(format_args!("{at}::ejected_for_ms::{}", left.as_millis()));
        }
    }
}

/// Envoy's words for everything that is wrong with an endpoint.
fn flags(one: &EndpointView) -> String {
    let eds = match one.health {
        HealthStatus::Healthy => "",
        HealthStatus::Degraded => "/degraded_eds_health",
        HealthStatus::Unhealthy => "/failed_eds_health",
        HealthStatus::Draining => "/eds_status_draining",
    };
    let check = if one.check_failed {
        "/failed_active_hc"
    } else {
        ""
    };
    let outlier = if one.ejected_for.is_some() {
        "/failed_outlier_check"
    } else {
        ""
    };
    let all = [check, outlier, eds].concat();
    if all.is_empty() {
        return "healthy".to_owned();
    }
    all
}

fn object(cluster: &ClusterHandle, added_via_api: bool, now: Instant) -> Value {
    let config = &cluster.config;
    let stats = cluster.stats(now);
    let hosts: Vec<_> = cluster.endpoints(now).iter().map(host).collect();
    let threshold = |priority: &str, of: &Limits| {
        let mut all: serde_json::Map<_, _> = limits(of)
            .into_iter()
            .map(|(key, value)| (key.to_owned(), json!(value)))
            .collect();
        all.insert("priority".to_owned(), json!(priority));
        Value::Object(all)
    };
    let own: serde_json::Map<_, _> = numbers(&stats)
        .into_iter()
        .map(|(key, value)| (key.to_owned(), json!(value)))
        .collect();
    json!({
        "name": config.name.as_str(),
        "observability_name": config.name.as_str(),
        "added_via_api": added_via_api,
        "host_statuses": hosts,
        "circuit_breakers": { "thresholds": [
            threshold("DEFAULT", &config.limits),
            threshold("HIGH", &config.high_priority_limits),
        ] },
        "stats": own,
        "breaker": stats.breaker.map(|(state, transitions)| json!({
            "state": state.as_str(),
            "transitions": transitions,
        })),
    })
}

fn host(one: &EndpointView) -> Value {
    // `SimpleMetric`: a 64-bit number is a string in proto3 JSON.
    let stat = |kind: &str, name: &str, value: u64| {
        let value = value.to_string();
        json!({ "type": kind, "name": name, "value": value })
    };
    let eds = match one.health {
        HealthStatus::Healthy => "HEALTHY",
        HealthStatus::Degraded => "DEGRADED",
        HealthStatus::Unhealthy => "UNHEALTHY",
        HealthStatus::Draining => "DRAINING",
    };
    json!({
        "address": socket_address(one.address),
        "stats": [
            stat("GAUGE", "rq_active", one.in_flight.into()),
            stat("COUNTER", "rq_success", one.successes),
            stat("COUNTER", "rq_error", one.failures),
        ],
        "health_status": {
            "eds_health_status": eds,
            "failed_active_health_check": one.check_failed,
            "failed_outlier_check": one.ejected_for.is_some(),
        },
        "weight": one.weight,
        "latency_ewma_ms": one.ewma.as_secs_f64() * 1e3,
        "ejected_for_ms": one.ejected_for.map(|left| left.as_secs_f64() * 1e3),
    })
}

//! What good clusters become.

use super::*;
use crate::config::{
    cluster::{Balancing, Discovery, HealthCheckKind, LocalityMode, UpstreamProtocol},
    endpoint::HealthStatus,
    tls::SecretRef,
    units::Fraction,
};

#[test]
fn the_first_policy_that_is_known_balances() {
    let policy = |kind: &str, fields: &str| {
        format!(
            "{{typed_extension_config: {{name: x, typed_config: {{'@type': '{kind}', {fields}}}}}}}"
        )
    };
    let list = |all: &[String]| {
        format!(
            "load_balancing_policy: {{policies: [{}]}}, lb_policy: RANDOM",
            all.join(", ")
        )
    };
    let own = "decay: 5s, locality_lb_config: {zone_aware_lb_config: {}}, slow_start_config: \
               {slow_start_window: 30s}";
    let ours = [policy("@EWMA", own), policy("@LEAST", "")];
    let (first, _) = cluster(&with_cluster(&list(&ours)));
    let expected = Balancing::PeakEwma {
        decay: seconds(5),
        default_rtt: Duration::from_millis(30),
    };
    assert_eq!(first.balancing, expected);
    assert!(matches!(first.locality, LocalityMode::ZoneAware { .. }));
    assert!(first.slow_start.is_some());
    let foreign = [
        policy("@STRANGER", ""),
        policy("@LEAST", "choice_count: 99"),
    ];
    let (second, _) = cluster(&with_cluster(&list(&foreign)));
    assert_eq!(
        second.balancing,
        Balancing::LeastRequest {
            choices: 10,
            bias: 1.0
        }
    );
    let inner = policy("@ROUND", "slow_start_config: {slow_start_window: 30s}");
    let weighted = [policy(
        "@WRR",
        &format!("endpoint_picking_policy: {{policies: [{inner}]}}"),
    )];
    let (third, _) = cluster(&with_cluster(&list(&weighted)));
    assert_eq!(
        (third.balancing, third.locality),
        (Balancing::RoundRobin, LocalityMode::Weighted)
    );
    assert_eq!(
        third.slow_start.map(|start| start.window),
        Some(seconds(30))
    );
}

#[test]
fn protection_of_a_cluster() {
    let (cluster, ignored) = cluster(&with_cluster(
        "circuit_breakers: {thresholds: [{max_requests: 7, retry_budget: {budget_percent: \
         {value: 33.4}, budget_interval: 7s}}, {priority: HIGH, max_connections: 8}, \
         {max_requests: 99}]}, outlier_detection: {consecutive_5xx: 3, \
         enforcing_success_rate: 0, max_ejection_percent: 40, \
         base_ejection_time: 400s, split_external_local_origin_errors: true, \
         enforcing_failure_percentage: 50}, metadata: {typed_filter_metadata: {outrigger.breaker: \
         {'@type': '@BREAKER', slow_call_rate_threshold: {value: 80}, half_open_probes: 2}}}, \
         health_checks: [{timeout: 1s, interval: 2s, healthy_threshold: 1, unhealthy_threshold: 3, \
         grpc_health_check: {service_name: s}}], common_lb_config: {zone_aware_lb_config: {}, \
         healthy_panic_threshold: {}}, close_connections_on_host_health_failure: true",
    ));
    assert_eq!(
        (
            cluster.limits.max_requests,
            cluster.limits.retry_budget.percent,
            cluster.limits.retry_budget.interval
        ),
        (7, 33, seconds(7))
    );
    assert_eq!(cluster.high_priority_limits.max_connections, 8);
    let outlier = cluster.outlier.as_ref().expect("set");
    assert_eq!(
        (outlier.consecutive_5xx, outlier.consecutive_gateway),
        (Some(3), None)
    );
    assert_eq!(
        (outlier.consecutive_local, outlier.success_rate),
        (Some(5), None)
    );
    assert_eq!(outlier.max_ejection, seconds(400), "never under the base");
    assert_eq!(
        outlier.failure_percentage.map(|one| one.threshold),
        Some(85)
    );
    let breaker = cluster.breaker.expect("set");
    assert!(breaker.failure_rate > 100.0, "not by failures");
    assert_eq!((breaker.slow_call_rate, breaker.probes), (80.0, 2));
    let HealthCheckKind::Grpc { service, .. } = &cluster.health_checks[0].kind else {
        panic!("a gRPC check");
    };
    assert_eq!(&**service, "s");
    assert_eq!(
        cluster.locality,
        LocalityMode::ZoneAware {
            min_cluster_size: 6
        }
    );
    assert_eq!(cluster.panic_threshold, 0, "switched off");
    assert!(cluster.close_on_health_failure);
    assert_eq!(ignored, ["outlier_detection.enforcing_failure_percentage"]);
}

#[test]
fn the_protocol_towards_the_upstream() {
    let with = |options: &str| {
        let (cluster, _) = cluster(&with_cluster(&format!(
            "typed_extension_protocol_options: {{{}: {{'@type': '@HTTP_OPTIONS', {options}}}}}",
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
        )));
        cluster
    };
    let h2 = with(
        "explicit_http_config: {http2_protocol_options: {connection_keepalive: {interval: 30s, \
         timeout: 5s}}}, common_http_protocol_options: {idle_timeout: 9s, \
         max_requests_per_connection: 4}",
    );
    assert_eq!(h2.protocol, UpstreamProtocol::Http2);
    assert_eq!(
        (h2.idle_timeout, h2.max_requests_per_connection),
        (Some(seconds(9)), Some(4))
    );
    assert_eq!(h2.h2_keepalive.map(|one| one.timeout), Some(seconds(5)));
    let same = with("use_downstream_protocol_config: {}");
    assert_eq!(same.protocol, UpstreamProtocol::Downstream);
    let (original, _) = cluster("{name: c, type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED}");
    assert_eq!(original.protocol, UpstreamProtocol::Downstream);
    assert_eq!(original.discovery, Discovery::OriginalDst);
}

#[test]
fn dns_and_aggregate_clusters() {
    let (dns, _) = cluster(
        "{name: c, type: STRICT_DNS, load_assignment: {cluster_name: c, endpoints: \
         [{lb_endpoints: [{endpoint: {address: {socket_address: {address: db.example, port_value: \
         5432}}}}]}]}}",
    );
    let Discovery::Dns {
        hosts,
        logical,
        refresh,
    } = &dns.discovery
    else {
        panic!("{dns:?}");
    };
    assert_eq!(
        (hosts.as_slice(), *logical),
        (&[("db.example".into(), 5432)][..], false)
    );
    assert_eq!(*refresh, seconds(5));
    let (aggregate, _) = cluster(
        "{name: c, cluster_type: {name: envoy.clusters.aggregate, typed_config: {'@type': \
         '@AGGREGATE', clusters: [a, b]}}}",
    );
    assert_eq!(
        aggregate.discovery,
        Discovery::Aggregate(vec!["a".into(), "b".into()])
    );
}

#[test]
fn mesh_tls_by_endpoint_metadata() {
    let context = "common_tls_context: {alpn_protocols: [outrigger-h2], \
         tls_certificate_sds_secret_configs: [{name: default}], combined_validation_context: \
         {default_validation_context: {}, validation_context_sds_secret_config: {name: ROOTCA}}}, \
         sni: x";
    let (cluster, _) = cluster(&with_cluster(&format!(
        "transport_socket_matches: [{{name: mesh, match: {{tlsMode: mesh}}, transport_socket: \
         {{name: tls, typed_config: {{'@type': '@UPSTREAM', {context}}}}}}}]"
    )));
    let parsed = good(
        Kind::Endpoints,
        "{cluster_name: c, endpoints: [{lb_endpoints: [{metadata: {filter_metadata: \
         {envoy.transport_socket_match: {tlsMode: mesh}, envoy.lb: {hash_key: k}, \
         outrigger.workload: {name: web}}}, endpoint: {hostname: h, address: {socket_address: \
         {address: 10.0.0.2, port_value: 80}}}}, {health_status: DRAINING, endpoint: {address: \
         {socket_address: {address: 10.0.0.1, port_value: 80}}}}]}]}",
    );
    let Resource::Endpoints(all) = parsed.resource else {
        panic!("endpoints");
    };
    let [plain, mesh] = all.priorities[0][0].endpoints.as_slice() else {
        panic!("two, sorted by address");
    };
    assert_eq!(plain.health, HealthStatus::Draining);
    assert!(cluster.tls.of(plain).is_none());
    let tls = cluster.tls.of(mesh).expect("the mesh's TLS");
    assert_eq!(
        (tls.certificate.as_ref(), &tls.roots),
        (Some(&SecretRef::Workload), &SecretRef::MeshRoots)
    );
    assert_eq!((&*tls.sni, tls.alpn.len()), ("x", 1));
    assert_eq!(
        (mesh.hash_key.as_deref(), mesh.workload.as_deref()),
        (Some("k"), Some("web"))
    );
    assert_eq!(mesh.hostname.as_deref(), Some("h"));
}

#[test]
fn priorities_close_their_gaps_and_repeated_members_count_once() {
    let parsed = good(
        Kind::Endpoints,
        "{cluster_name: c, policy: {drop_overloads: [{category: lb, drop_percentage: {numerator: \
         10}}]}, endpoints: [{priority: 7, lb_endpoints: [{endpoint: {address: {socket_address: \
         {address: 10.0.0.2, port_value: 80}}}}]}, {locality: {zone: b}, load_balancing_weight: 2, \
         lb_endpoints: [{endpoint: {address: {socket_address: {address: 10.0.0.1, port_value: \
         80}}}}, {endpoint: {address: {socket_address: {address: 10.0.0.1, port_value: 80}}}}]}, \
         {locality: {zone: empty}}]}",
    );
    let Resource::Endpoints(all) = parsed.resource else {
        panic!("endpoints");
    };
    assert_eq!(all.priorities.len(), 2);
    assert_eq!(all.priorities[0].len(), 1, "an empty place is none");
    assert_eq!(
        (
            all.priorities[0][0].weight,
            all.priorities[0][0].endpoints.len()
        ),
        (Some(2), 1)
    );
    assert_eq!(all.drops, [("lb".into(), Fraction::new(10, 100))]);
    assert_eq!(all.overprovisioning, 140);
}

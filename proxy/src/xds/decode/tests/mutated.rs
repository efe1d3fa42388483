//! XD-08: whatever the bytes are, decoding ends, and ends without a panic.

use proptest::prelude::*;

use super::*;
use crate::xds::testing::resource;

/// Rich resources to begin from.
fn seeds() -> Vec<(Kind, Vec<u8>)> {
    let cluster = with_cluster(
        "lb_policy: RING_HASH, ring_hash_lb_config: {minimum_ring_size: 9}, outlier_detection: \
         {interval: 1s}, circuit_breakers: {thresholds: [{max_requests: 9}]}, metadata: \
         {typed_filter_metadata: {outrigger.breaker: {'@type': '@BREAKER', window: 1s}}}, \
         health_checks: [{timeout: 1s, interval: 1s, healthy_threshold: 1, unhealthy_threshold: 1, \
         http_health_check: {path: /, expected_statuses: [{start: 200, end: 300}]}}]",
    );
    let tls = with_tls(
        "common_tls_context: {alpn_protocols: [h2], validation_context_sds_secret_config: {name: \
         ROOTCA}}",
    );
    let filter = with_filter(
        "{name: f, typed_config: {'@type': '@RBAC', rules: {policies: {p: {permissions: \
         [{not_rule: {url_path: {path: {safe_regex: {regex: 'a+'}}}}}], principals: [{or_ids: \
         {ids: [{remote_ip: {address_prefix: 10.0.0.0, prefix_len: 8}}]}}]}}}}}",
    );
    let route = with_forward(
        "timeout: 3s, retry_policy: {retry_on: 5xx, num_retries: 2, retry_back_off: \
         {base_interval: 1s}}, hash_policy: [{cookie: {name: c, ttl: 5s}}], regex_rewrite: \
         {pattern: {regex: '(a)'}, substitution: 'x\\1'}",
    );
    let endpoints = "{cluster_name: c, policy: {overprovisioning_factor: 140}, endpoints: \
         [{locality: {zone: z}, load_balancing_weight: 1, priority: 1, lb_endpoints: \
         [{health_status: DRAINING, load_balancing_weight: 3, endpoint: {address: \
         {socket_address: {address: '::1', port_value: 80}}}}]}]}";
    let secret = "{name: s, validation_context: {trusted_ca: {inline_string: pem}}}";
    [
        (Kind::Cluster, cluster.as_str()),
        (Kind::Cluster, &tls),
        (Kind::Listener, &filter),
        (Kind::Route, &route),
        (Kind::Endpoints, endpoints),
        (Kind::Secret, secret),
    ]
    .into_iter()
    .map(|(kind, yaml)| (kind, resource(kind, &expanded(yaml)).to_vec()))
    .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn xd_08_decoding_never_panics_on_mutated_resources(
        seed in 0_usize..6,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let (kind, mut bytes) = seeds().swap_remove(seed);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        for other in [kind, Kind::Route] {
            if let Err(why) = parse(other, &bytes) {
                prop_assert!(!why.why.is_empty());
            }
        }
        let _name = name_of(kind, &bytes);
    }

    #[test]
    fn xd_08_decoding_never_panics_on_noise(
        kind in 0_usize..5,
        bytes in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        drop(parse(Kind::ALL[kind], &bytes));
    }
}

#[test]
fn xd_08_rules_within_rules_end_at_the_decoders_depth() {
    let mut rule = "{any: true}".to_owned();
    for _ in 0..10 {
        rule = format!("{{not_rule: {rule}}}");
    }
    let policy = format!("{{permissions: [{rule}], principals: [{{any: true}}]}}");
    let filter = format!(
        "{{name: f, typed_config: {{'@type': '@RBAC', rules: {{policies: {{p: {policy}}}}}}}}}"
    );
    good(Kind::Listener, &with_filter(&filter));
    // Deeper than any decoder goes: nested `not_rule` on the wire, field 8.
    let mut wire = vec![0x18, 1];
    for _ in 0..3000 {
        let mut outer = vec![0x42];
        prost::encoding::encode_varint(wire.len() as u64, &mut outer);
        outer.extend(&wire);
        wire = outer;
    }
    let parsed = outrigger_proto::envoy::config::rbac::v3::Permission::decode(wire.as_slice());
    assert!(parsed.is_err(), "bounded");
}

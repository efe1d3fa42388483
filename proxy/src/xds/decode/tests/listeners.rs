//! What good listeners become.

use super::*;
use crate::config::{
    ClusterName,
    listener::{Direction, HttpFilter, Transport},
    matcher::HeaderKey,
    rbac::{Permission, Principal, RbacAction},
    route::Abort,
    tls::SecretRef,
    units::Fraction,
};

#[test]
fn the_inbound_listener_of_a_permissive_port() {
    let tls = "transport_socket: {name: tls, typed_config: {'@type': '@DOWNSTREAM', \
         require_client_certificate: true, common_tls_context: {alpn_protocols: [outrigger-h2, \
         outrigger], tls_certificate_sds_secret_configs: [{name: default}], \
         combined_validation_context: {default_validation_context: \
         {match_typed_subject_alt_names: [{san_type: URI, matcher: {exact: \
         spiffe://td/ns/a/sa/b}}]}, \
         validation_context_sds_secret_config: {name: ROOTCA}}}}}";
    let tcp = "filters: [{name: t, typed_config: {'@type': '@TCP', cluster: c, idle_timeout: 0s}}]";
    let yaml = format!(
        "{{name: inbound, address: {{socket_address: {{address: 0.0.0.0, port_value: 15006}}}}, \
         traffic_direction: INBOUND, use_original_dst: true, listener_filters: [{{name: t, \
         typed_config: {{'@type': '@TLS_INSPECTOR'}}}}, {{name: h, typed_config: {{'@type': \
         '@HTTP_INSPECTOR'}}}}], filter_chains: [{{name: mesh, filter_chain_match: \
         {{destination_port: 8080, transport_protocol: tls, application_protocols: [outrigger]}}, \
         {tls}, {tcp}}}], default_filter_chain: {{{tcp}}}}}"
    );
    let (listener, ignored) = listener(&yaml);
    assert_eq!(listener.direction, Direction::Inbound);
    assert!(listener.bind && listener.use_original_dst);
    assert!(listener.inspect_tls && listener.inspect_http && !listener.proxy_protocol);
    let chain = &listener.chains[0];
    assert_eq!(chain.matcher.destination_port, Some(8080));
    assert_eq!(chain.matcher.transport, Some(Transport::Tls));
    let tls = chain.tls.as_ref().expect("TLS");
    assert_eq!(tls.certificate, SecretRef::Workload);
    assert_eq!(tls.roots, Some(SecretRef::MeshRoots));
    assert!(tls.require_client_certificate && !tls.allow_tls12);
    assert_eq!(tls.alpn.len(), 2);
    assert!(tls.peers.identities[0].matches("spiffe://td/ns/a/sa/b"));
    let ChainKind::Tcp(proxy) = &chain.kind else {
        panic!("opaque");
    };
    assert_eq!(proxy.clusters, [(ClusterName::from("c"), 1)]);
    assert_eq!((proxy.idle_timeout, proxy.max_connect_attempts), (None, 1));
    assert!(listener.default_chain.is_some() && ignored.is_empty());
}

#[test]
fn filters_keep_their_order_and_an_unknown_optional_one_is_passed_over() {
    let (manager, ignored) = manager(&with_filter(
        "{name: a, typed_config: {'@type': '@RBAC', rules: {action: DENY, policies: {p: \
         {permissions: [{any: true}], principals: [{authenticated: {}}]}}}}}, {name: b, \
         typed_config: {'@type': '@FAULT', delay: {fixed_delay: 2s, percentage: {numerator: 5, \
         denominator: TEN_THOUSAND}}, abort: {grpc_status: 14, percentage: {numerator: 100}}}}, \
         {name: c, typed_config: {'@type': '@LIMIT', stat_prefix: s, token_bucket: {max_tokens: 9, \
         tokens_per_fill: 3, fill_interval: 1s}, filter_enabled: {default_value: {numerator: \
         100}}, filter_enforced: {default_value: {numerator: 100}}}}, {name: d, is_optional: true, \
         typed_config: {'@type': '@TCP'}}, {name: e, disabled: true, typed_config: {'@type': \
         '@FAULT'}}",
    ));
    let [
        HttpFilter::Rbac(rbac),
        HttpFilter::Fault(Some(fault)),
        HttpFilter::LocalRateLimit(Some(limit)),
    ] = manager.filters.as_slice()
    else {
        panic!("{:?}", manager.filters);
    };
    let rules = rbac.rules.as_ref().expect("rules");
    assert_eq!(rules.action, RbacAction::Deny);
    assert!(matches!(
        rules.policies[0].principals[0],
        Principal::Authenticated(None)
    ));
    assert_eq!(fault.delay, Some((seconds(2), Fraction::new(5, 10_000))));
    assert_eq!(
        fault.abort,
        Some((Abort::Grpc(14), Fraction::new(100, 100)))
    );
    assert_eq!(
        (
            limit.max_tokens,
            limit.tokens_per_fill,
            limit.status.as_u16()
        ),
        (9, 3, 429)
    );
    assert_eq!(
        ignored,
        ["filter_chains[0].filters[0].typed_config.http_filters[3]"]
    );
}

#[test]
fn istios_own_filters_are_passed_over() {
    let (manager, ignored) = manager(&with_filter(
        "{name: istio.metadata_exchange, typed_config: {'@type': '@STRUCT', type_url: \
         type.googleapis.com/stats.PluginConfig, value: {}}}",
    ));
    assert!(manager.filters.is_empty());
    assert_eq!(ignored.len(), 1);
}

#[test]
fn every_kind_of_permission_and_principal() {
    let (manager, _) = manager(&with_filter(
        "{name: a, typed_config: {'@type': '@RBAC', shadow_rules: {action: LOG, policies: {p: \
         {permissions: [{and_rules: {rules: [{header: {name: ':method', string_match: {exact: \
         GET}}}, {url_path: {path: {prefix: /a}}}]}}, {destination_port_range: {start: 80, end: \
         65536}}, {not_rule: {destination_ip: {address_prefix: 10.1.2.3, prefix_len: 8}}}], \
         principals: [{filter_state: {key: io.istio.peer_principal, string_match: {prefix: \
         spiffe}}}, {remote_ip: {address_prefix: '::1', prefix_len: 128}}, {or_ids: {ids: [{any: \
         true}]}}]}}}}}",
    ));
    let [HttpFilter::Rbac(rbac)] = manager.filters.as_slice() else {
        panic!("{:?}", manager.filters);
    };
    assert!(rbac.rules.is_none());
    let policy = &rbac.shadow.as_ref().expect("shadow rules").policies[0];
    let Permission::All(both) = &policy.permissions[0] else {
        panic!("{policy:?}");
    };
    assert!(matches!(&both[0], Permission::Header(one) if one.key == HeaderKey::Method));
    let Permission::OneOf(ports) = &policy.permissions[1] else {
        panic!("{policy:?}");
    };
    assert!(
        matches!(ports[1], Permission::DestinationPort(65535)),
        "the last port counts"
    );
    let Permission::Not(inner) = &policy.permissions[2] else {
        panic!("{policy:?}");
    };
    assert!(matches!(&**inner, Permission::DestinationIp(net) if net.to_string() == "10.0.0.0/8"));
    assert!(matches!(
        policy.principals[0],
        Principal::Authenticated(Some(_))
    ));
    assert!(matches!(policy.principals[1], Principal::RemoteIp(_)));
}

#[test]
fn unknown_fields_are_found_inside_extensions_too() {
    use outrigger_proto::{any::pack, envoy::config::listener::v3 as listener_proto};
    let mut message = listener_proto::Listener::decode(
        resource(Kind::Listener, &expanded(&with_manager(""))).as_ref(),
    )
    .expect("good");
    let filter = &mut message.filter_chains[0].filters[0];
    let Some(listener_proto::filter::ConfigType::TypedConfig(any)) = &mut filter.config_type else {
        panic!("a typed config");
    };
    // Field 4000, a varint.
    any.value.extend([0x80, 0xfa, 0x01, 0x01]);
    let mut bytes = pack(&message).value;
    bytes.extend([0x80, 0xfa, 0x01, 0x01]);
    let parsed = parse(Kind::Listener, &bytes).expect("still good");
    assert_eq!(parsed.ignored.len(), 2, "{:?}", parsed.ignored);
    assert!(
        parsed.ignored.iter().all(|path| path.contains("4000")),
        "{:?}",
        parsed.ignored
    );
}

#[test]
fn tracing_names_a_share_and_perhaps_a_collector() {
    let yaml = with_manager(
        "tracing: {random_sampling: {value: 50}, overall_sampling: {value: 10}, provider: {name: \
         o, typed_config: {'@type': '@OTEL', service_name: cart, grpc_service: {envoy_grpc: \
         {cluster_name: jaeger, authority: jaeger.obs}}}}}",
    );
    let (manager, ignored) = manager(&yaml);
    let tracing = manager.tracing.as_ref().expect("tracing");
    assert_eq!(tracing.random_sampling, Fraction::new(50_000, 1_000_000));
    let collector = tracing.collector.as_ref().expect("a collector");
    assert_eq!(collector.cluster, ClusterName::from("jaeger"));
    assert_eq!(
        (&*collector.authority, &*collector.service_name),
        ("jaeger.obs", "cart")
    );
    assert!(ignored.is_empty(), "{ignored:?}");
    // Its cluster is needed like any other that the listener names.
    let refs = crate::xds::refs::of(&good(Kind::Listener, &yaml).resource);
    assert!(refs.contains(&(Kind::Cluster, "jaeger".into())), "{refs:?}");
}

#[test]
fn a_collector_that_is_reached_by_other_means_is_passed_over() {
    let provider = |config: &str| {
        with_manager(&format!(
            "tracing: {{provider: {{name: o, typed_config: {{'@type': '@OTEL', {config}}}}}}}"
        ))
    };
    for config in [
        "grpc_service: {google_grpc: {target_uri: 'jaeger:4317', stat_prefix: s}}",
        "http_service: {http_uri: {uri: 'http://jaeger:4318/v1/traces', cluster: j, timeout: 1s}}",
    ] {
        let (manager, ignored) = manager(&provider(config));
        let tracing = manager.tracing.as_ref().expect("tracing");
        assert!(tracing.collector.is_none());
        assert_eq!(ignored.len(), 1, "{ignored:?}");
    }
}

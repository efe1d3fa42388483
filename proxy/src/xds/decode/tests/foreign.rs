//! What other control planes send has to be taken. The shapes are those that istiod generates for a
//! sidecar; only what carries meaning is kept.

use super::*;
use crate::config::{
    cluster::{Balancing, UpstreamProtocol},
    listener::{Direction, ForwardClientCert, Transport},
    tls::SecretRef,
};

const SDS: &str = "sds_config: {api_config_source: {api_type: GRPC, transport_api_version: V3, \
     grpc_services: [{envoy_grpc: {cluster_name: sds-grpc}}]}, initial_fetch_timeout: 0s, \
     resource_api_version: V3}";
const EXCHANGE: &str = "{name: istio.metadata_exchange, typed_config: {'@type': '@STRUCT', \
     type_url: type.googleapis.com/envoy.tcp.metadataexchange.config.MetadataExchange, value: \
     {protocol: istio-peer-exchange}}}";

fn inbound() -> String {
    let tls = format!(
        "transport_socket: {{name: envoy.transport_sockets.tls, typed_config: {{'@type': \
         '@DOWNSTREAM', require_client_certificate: true, common_tls_context: {{tls_params: \
         {{tls_minimum_protocol_version: TLSv1_2, cipher_suites: \
         [ECDHE-ECDSA-AES256-GCM-SHA384]}}, \
         alpn_protocols: [istio-peer-exchange, h2, http/1.1], tls_certificate_sds_secret_configs: \
         [{{name: default, {SDS}}}], combined_validation_context: {{default_validation_context: \
         {{match_subject_alt_names: [{{prefix: 'spiffe://cluster.local/'}}]}}, \
         validation_context_sds_secret_config: {{name: ROOTCA, {SDS}}}}}}}}}}}"
    );
    let manager = "{name: envoy.filters.network.http_connection_manager, typed_config: {'@type': \
         '@HCM', stat_prefix: 'inbound_0.0.0.0_9080', route_config: {name: 'inbound|9080||', \
         virtual_hosts: [{name: 'inbound|http|9080', domains: ['*'], routes: [{name: default, \
         match: {prefix: /}, route: {cluster: 'inbound|9080||', timeout: 0s, max_stream_duration: \
         {max_stream_duration: 0s, grpc_timeout_header_max: 0s}, retry_policy: {retry_on: \
         reset-before-request, num_retries: 2}}, decorator: {operation: \
         'productpage.default.svc.cluster.local:9080/*'}}]}], validate_clusters: false}, \
         http_filters: [{name: istio.stats, typed_config: {'@type': '@STRUCT', type_url: \
         type.googleapis.com/stats.PluginConfig, value: {}}}, {name: envoy.filters.http.cors, \
         typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors}}, \
         {name: envoy.filters.http.grpc_stats, typed_config: {'@type': \
         type.googleapis.com/envoy.extensions.filters.http.grpc_stats.v3.FilterConfig, \
         emit_filter_state: true}}, {name: envoy.filters.http.fault, typed_config: {'@type': \
         '@FAULT'}}, {name: envoy.filters.http.router, typed_config: {'@type': '@ROUTER'}}], \
         tracing: {client_sampling: {value: 100}, random_sampling: {value: 1}, overall_sampling: \
         {value: 100}}, server_name: istio-envoy, use_remote_address: false, \
         forward_client_cert_details: APPEND_FORWARD, set_current_client_cert_details: {subject: \
         true, dns: true, uri: true}, upgrade_configs: [{upgrade_type: websocket}], \
         stream_idle_timeout: 0s, normalize_path: true, proxy_100_continue: true, \
         path_with_escaped_slashes_action: KEEP_UNCHANGED, request_id_extension: {typed_config: \
         {'@type': type.googleapis.com/envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig, \
         use_request_id_for_trace_sampling: true}}}}";
    let tcp = "{name: envoy.filters.network.tcp_proxy, typed_config: {'@type': '@TCP', \
         stat_prefix: b, cluster: BlackHoleCluster}}";
    format!(
        "{{name: virtualInbound, address: {{socket_address: {{address: 0.0.0.0, port_value: \
         15006}}}}, use_original_dst: true, traffic_direction: INBOUND, listener_filters_timeout: \
         0s, continue_on_listener_filters_timeout: true, listener_filters: [{{name: o, \
         typed_config: {{'@type': \
         type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst}}}}, \
         {{name: t, typed_config: {{'@type': '@TLS_INSPECTOR'}}}}, {{name: h, typed_config: \
         {{'@type': '@HTTP_INSPECTOR'}}, filter_disabled: {{or_match: {{rules: \
         [{{destination_port_range: {{start: 1, end: 2}}}}]}}}}}}], filter_chains: [{{name: \
         virtualInbound-blackhole, filter_chain_match: {{destination_port: 15006}}, filters: \
         [{EXCHANGE}, {tcp}]}}, {{name: '0.0.0.0_9080', filter_chain_match: {{destination_port: \
         9080, transport_protocol: tls, application_protocols: [istio-http/1.0, istio-http/1.1, \
         istio-h2]}}, filters: [{EXCHANGE}, {manager}], {tls}}}]}}"
    )
}

#[test]
fn istiods_inbound_listener() {
    let (listener, ignored) = listener(&inbound());
    assert_eq!(listener.direction, Direction::Inbound);
    assert!(listener.inspect_tls && listener.inspect_http);
    let chain = &listener.chains[1];
    assert_eq!(chain.matcher.transport, Some(Transport::Tls));
    let tls = chain.tls.as_ref().expect("TLS");
    assert_eq!(
        (&tls.certificate, tls.allow_tls12),
        (&SecretRef::Workload, true)
    );
    assert!(tls.peers.identities[0].matches("spiffe://cluster.local/ns/a/sa/b"));
    let ChainKind::Http(manager) = &chain.kind else {
        panic!("HTTP");
    };
    assert_eq!(
        manager.forward_client_cert,
        ForwardClientCert::AppendForward
    );
    assert_eq!(
        (&*manager.server_name, &*manager.upgrades[0]),
        ("istio-envoy", "websocket")
    );
    for expected in [
        "proxy_100_continue",
        "filter_disabled",
        "decorator",
        "cipher_suites",
    ] {
        let named = ignored.iter().any(|path| path.ends_with(expected));
        assert!(named, "{expected} is not in {ignored:?}");
    }
}

#[test]
fn istiods_clusters() {
    let upstream = format!(
        "{{'@type': '@UPSTREAM', sni: outbound_.9080_._.p.default.svc.cluster.local, \
         common_tls_context: {{alpn_protocols: [istio-peer-exchange, istio], \
         tls_certificate_sds_secret_configs: [{{name: default, {SDS}}}], \
         combined_validation_context: {{default_validation_context: {{match_subject_alt_names: \
         [{{exact: 'spiffe://cluster.local/ns/default/sa/p'}}]}}, \
         validation_context_sds_secret_config: {{name: ROOTCA, {SDS}}}}}}}}}"
    );
    let (outbound, _) = cluster(&format!(
        "{{name: 'outbound|9080||p.default.svc.cluster.local', type: EDS, eds_cluster_config: \
         {{eds_config: {{ads: {{}}, initial_fetch_timeout: 0s, resource_api_version: V3}}, \
         service_name: 'outbound|9080||p.default.svc.cluster.local'}}, connect_timeout: 10s, \
         lb_policy: LEAST_REQUEST, circuit_breakers: {{thresholds: [{{max_connections: 4294967295, \
         max_pending_requests: 4294967295, max_requests: 4294967295, max_retries: 4294967295, \
         track_remaining: true}}]}}, typed_extension_protocol_options: \
         {{envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{'@type': '@HTTP_OPTIONS', \
         use_downstream_protocol_config: {{http2_protocol_options: {{}}}}}}}}, common_lb_config: \
         {{locality_weighted_lb_config: {{}}}}, transport_socket_matches: [{{name: tlsMode-istio, \
         match: {{tlsMode: istio}}, transport_socket: {{name: envoy.transport_sockets.tls, \
         typed_config: {upstream}}}}}, {{name: tlsMode-disabled, match: {{}}, transport_socket: \
         {{name: envoy.transport_sockets.raw_buffer, typed_config: {{'@type': \
         type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}}}}}], \
         metadata: {{filter_metadata: {{istio: {{services: [{{host: p}}]}}}}}}, filters: \
         [{EXCHANGE}]}}"
    ));
    assert_eq!(
        outbound.balancing,
        Balancing::LeastRequest {
            choices: 2,
            bias: 1.0
        }
    );
    assert_eq!(outbound.protocol, UpstreamProtocol::Downstream);
    assert!(outbound.tls.matches[0].tls.is_some() && outbound.tls.matches[1].tls.is_none());
    cluster("{name: BlackHoleCluster, type: STATIC, connect_timeout: 10s}");
    cluster(
        "{name: 'inbound|9080||', type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED, \
         cleanup_interval: 60s, upstream_bind_config: {source_address: {address: 127.0.0.6, \
         port_value: 0}}}",
    );
}

/// Everything that our own control plane makes is taken, and nothing of it passed over.
#[test]
fn the_golden_resources_of_our_control_plane() {
    let dir = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../control-api/src/translate/tests/snapshots"
    );
    let mut count = 0;
    for file in std::fs::read_dir(dir).expect("the snapshots") {
        let path = file.expect("a file").path();
        let text = std::fs::read_to_string(&path).expect("text");
        let json = text.splitn(3, "---\n").nth(2).expect("a header and a body");
        let mut value: serde_json::Value = serde_json::from_str(json).expect("JSON");
        let kind = value
            .as_object_mut()
            .and_then(|fields| fields.remove("@type"));
        let Some(kind) = kind
            .as_ref()
            .and_then(|url| Kind::from_type_url(url.as_str()?))
        else {
            continue;
        };
        let parsed = parse(kind, &resource(kind, &value.to_string()));
        let parsed = parsed.unwrap_or_else(|why| panic!("{}: {why}", path.display()));
        // Slashes are not merged here, but rules are asked about both readings.
        let known = |path: &&String| path.ends_with("typed_config.merge_slashes");
        let other: Vec<_> = parsed.ignored.iter().filter(|path| !known(path)).collect();
        assert!(other.is_empty(), "{}: {other:?}", path.display());
        count += 1;
    }
    assert!(count > 10, "{count} resources");
}

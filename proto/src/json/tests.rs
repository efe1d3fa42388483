//! JSON in and out, on the resources that we use.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::any::{Any, pack};
use crate::envoy::config::cluster::v3::{Cluster, cluster};
use crate::envoy::config::core::v3::{DataSource, Metadata, data_source};
use crate::envoy::config::listener::v3::{FilterChain, Listener};
use crate::envoy::config::route::v3::RouteMatch;
use crate::envoy::extensions::filters::http::router::v3::Router;
use crate::envoy::extensions::transport_sockets::tls::v3::{Secret, TlsCertificate, secret};
use crate::envoy::r#type::v3::Percent;
use crate::outrigger::extensions::v1::Breaker;

fn listener_json() -> Value {
    json!({
        "name": "outbound",
        "address": {"socket_address": {"address": "0.0.0.0", "port_value": 15001}},
        "use_original_dst": true,
        "traffic_direction": "OUTBOUND",
        "listener_filters_timeout": "0.250s",
        "filter_chains": [{
            "filter_chain_match": {"application_protocols": ["h2c"], "destination_port": 80},
            "filters": [{
                "name": "http",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.\
                              http_connection_manager.v3.HttpConnectionManager",
                    "stat_prefix": "outbound",
                    "stream_idle_timeout": "300s",
                    "route_config": {
                        "name": "cart",
                        "virtual_hosts": [{
                            "name": "all",
                            "domains": ["*"],
                            "typed_per_filter_config": {
                                "envoy.filters.http.fault": {
                                    "@type": "type.googleapis.com/\
                                              envoy.extensions.filters.http.fault.v3.HTTPFault",
                                    "abort": {"http_status": 503, "percentage": {"numerator": 5}}
                                }
                            },
                            "routes": [{
                                "match": {"prefix": ""},
                                "route": {"cluster": "cart", "timeout": "0s"}
                            }]
                        }]
                    },
                    "http_filters": [{
                        "name": "router",
                        "typed_config": {
                            "@type": "type.googleapis.com/\
                                      envoy.extensions.filters.http.router.v3.Router"
                        }
                    }]
                }
            }]
        }]
    })
}

fn cluster_json() -> Value {
    json!({
        "name": "outbound|80||cart.shop.svc",
        "type": "EDS",
        "eds_cluster_config": {"eds_config": {"ads": {}, "resource_api_version": "V3"}},
        "connect_timeout": "5s",
        "lb_policy": "LEAST_REQUEST",
        "ring_hash_lb_config": {"minimum_ring_size": "1024"},
        "common_lb_config": {"healthy_panic_threshold": {"value": 0.5}},
        "outlier_detection": {"consecutive_5xx": 5, "base_ejection_time": "30s"},
        "metadata": {
            "filter_metadata": {
                "istio": {"services": [{"host": "cart", "weight": 1.5, "gone": null, "ok": true}]}
            },
            "typed_filter_metadata": {
                "outrigger.breaker": {
                    "@type": "type.googleapis.com/outrigger.extensions.v1.Breaker",
                    "failure_rate_threshold": {"value": 50},
                    "minimum_calls": 20
                }
            }
        }
    })
}

fn why<M: Message + Name + Default + std::fmt::Debug>(json: &Value) -> String {
    from_json::<M>(json).unwrap_err().to_string()
}

#[test]
fn a_listener_reads_and_prints_the_same() {
    let listener: Listener = from_json(&listener_json()).unwrap();
    assert_eq!(listener.name, "outbound");
    assert_eq!(
        listener.listener_filters_timeout.unwrap().nanos,
        250_000_000
    );
    assert_eq!(to_json(&listener), listener_json());
}

#[test]
fn a_cluster_reads_and_prints_the_same() {
    let cluster: Cluster = from_json(&cluster_json()).unwrap();
    assert_eq!(
        cluster.cluster_discovery_type,
        Some(cluster::ClusterDiscoveryType::Type(3))
    );
    let Metadata {
        typed_filter_metadata,
        ..
    } = cluster.metadata.clone().unwrap();
    let breaker = Breaker {
        failure_rate_threshold: Some(Percent { value: 50.0 }),
        minimum_calls: Some(20),
        ..Breaker::default()
    };
    assert_eq!(typed_filter_metadata["outrigger.breaker"], pack(&breaker));
    assert_eq!(to_json(&cluster), cluster_json());
}

#[test]
fn camel_case_names_and_other_spellings_of_values_are_read() {
    let cluster: Cluster = from_json(&json!({
        "type": 3,
        "connectTimeout": "1.5s",
        "perConnectionBufferLimitBytes": "32768",
        "ringHashLbConfig": {"minimumRingSize": 1024.0},
        "metadata": null
    }))
    .unwrap();
    let expected = json!({
        "type": "EDS",
        "connect_timeout": "1.500s",
        "per_connection_buffer_limit_bytes": 32768,
        "ring_hash_lb_config": {"minimum_ring_size": "1024"}
    });
    assert_eq!(to_json(&cluster), expected);
}

#[test]
fn bytes_are_read_in_every_base64_and_printed_padded() {
    for text in ["-_8", "-_8=", "+/8", "+/8="] {
        let source: DataSource = from_json(&json!({"inline_bytes": text})).unwrap();
        let bytes = data_source::Specifier::InlineBytes(vec![0xfb, 0xff]);
        assert_eq!(source.specifier, Some(bytes), "{text}");
        assert_eq!(to_json(&source), json!({"inline_bytes": "+/8="}));
    }
}

#[test]
fn errors_name_the_field_and_what_was_there() {
    let mut json = listener_json();
    let hcm = &mut json["filter_chains"][0]["filters"][0]["typed_config"];
    hcm["route_config"]["virtual_hosts"][0]["routes"][0]["route"]["timeout"] = json!(15);
    assert_eq!(
        why::<Listener>(&json),
        "filter_chains[0].filters[0].typed_config<HttpConnectionManager>.route_config\
         .virtual_hosts[0].routes[0].route.timeout: expected a duration like \"1.5s\", found 15"
    );
    for (json, expected) in [
        (json!([]), "expected an object, found an array"),
        (
            json!({"nam": "x"}),
            "nam: envoy.config.cluster.v3.Cluster has no such field",
        ),
        (json!({"name": 7}), "name: expected a string, found 7"),
        (
            json!({"lb_policy": "FASTEST"}),
            "lb_policy: envoy.config.cluster.v3.Cluster.LbPolicy has no value \"FASTEST\"",
        ),
        (
            json!({"health_checks": {}}),
            "health_checks: expected an array, found an object",
        ),
        (
            json!({"circuit_breakers": {"thresholds": [{}, {"max_requests": -1}]}}),
            "circuit_breakers.thresholds[1].max_requests: -1 is out of range",
        ),
        (
            json!({"circuit_breakers": {"thresholds": [{"max_requests": 1.5}]}}),
            "circuit_breakers.thresholds[0].max_requests: expected a whole number, found 1.5",
        ),
        (
            json!({"typed_extension_protocol_options": {"a.b": {"x": 1}}}),
            "typed_extension_protocol_options[\"a.b\"]: has no @type",
        ),
        (
            json!({"transport_socket": {"typed_config": {"@type": "x/y.Z", "a": 1}}}),
            "transport_socket.typed_config<Z>: is a type that is not supported",
        ),
        (
            json!({"connect_timeout": "400000000000s"}),
            "expected a duration",
        ),
        (
            json!({"connectTimeout": "1s", "connect_timeout": "2s"}),
            "is set twice",
        ),
        (
            json!({"type": "EDS", "cluster_type": {"name": "x"}}),
            "type: cannot be set together with cluster_type",
        ),
    ] {
        let why = why::<Cluster>(&json);
        assert!(why.contains(expected), "{json}: {why}");
    }
}

#[test]
fn lenient_reading_names_what_it_ignored() {
    let json = json!({
        "name": "outbound",
        "future": 1,
        "filter_chains": [
            {"filters": [{"typed_config": {"@type": "type.googleapis.com/x.Wasm", "code": {}}}]},
            {"filterChainMatch": {"colour": "red"}}
        ]
    });
    let (listener, ignored) = from_json_lenient::<Listener>(&json).unwrap();
    let expected = [
        "filter_chains[0].filters[0].typed_config<Wasm>",
        "filter_chains[1].filter_chain_match.colour",
        "future",
    ];
    assert_eq!(ignored, expected);
    assert_eq!(listener.name, "outbound");
    let kept = to_json(&listener)["filter_chains"][0]["filters"][0]["typed_config"].clone();
    assert_eq!(
        kept,
        json!({"@type": "type.googleapis.com/x.Wasm", "value": ""})
    );
}

#[test]
fn an_any_of_unknown_type_prints_closed_and_reads_back() {
    let any = Any {
        type_url: "type.googleapis.com/x.Wasm".to_owned(),
        value: vec![1, 2, 3],
    };
    let json = any_to_json_redacted(&any);
    assert_eq!(
        json,
        json!({"@type": "type.googleapis.com/x.Wasm", "value": "AQID"})
    );
    let cluster = json!({"transport_socket": {"typed_config": json}});
    let cluster: Cluster = from_json(&cluster).unwrap();
    assert_eq!(to_json(&cluster)["transport_socket"]["typed_config"], json);
}

#[test]
fn an_any_of_a_well_known_type_holds_it_under_value() {
    let json = json!({"@type": "type.googleapis.com/google.protobuf.Duration", "value": "1.500s"});
    let cluster = json!({"transport_socket": {"typed_config": json}});
    let cluster: Cluster = from_json(&cluster).unwrap();
    assert_eq!(to_json(&cluster)["transport_socket"]["typed_config"], json);
}

#[test]
fn private_keys_are_redacted() {
    let data = |text: &str| DataSource {
        specifier: Some(data_source::Specifier::InlineString(text.to_owned())),
    };
    let certificate = TlsCertificate {
        certificate_chain: Some(data("chain")),
        private_key: Some(data("key")),
        ..TlsCertificate::default()
    };
    let secret = Secret {
        name: "default".to_owned(),
        r#type: Some(secret::Type::TlsCertificate(certificate)),
    };
    let shown = json!({"name": "default", "tls_certificate": {
        "certificate_chain": {"inline_string": "chain"}, "private_key": "[redacted]"}});
    assert_eq!(to_json_redacted(&secret), shown);
    let whole = to_json(&secret);
    assert_eq!(
        whole["tls_certificate"]["private_key"]["inline_string"],
        "key"
    );
    assert_eq!(
        any_to_json_redacted(&pack(&secret))["tls_certificate"],
        shown["tls_certificate"]
    );
}

#[test]
fn nesting_without_end_is_an_error_in_and_closed_out() {
    let mut json = json!({"prefix": "/"});
    for _ in 0..200 {
        json = json!({"@type": "x/google.protobuf.Any", "value": json});
    }
    let mut any = pack(&RouteMatch::default());
    for _ in 0..5_000 {
        any = Any {
            type_url: "x/google.protobuf.Any".to_owned(),
            value: any.encode_to_vec(),
        };
    }
    let cluster = json!({"transport_socket": {"typed_config": json}});
    assert!(why::<Cluster>(&cluster).ends_with("messages nest deeper than 64 levels"));

    let mut shown = &any_to_json_redacted(&any);
    let mut levels = 0;
    while let Some(inner) = shown.get("value") {
        (shown, levels) = (inner, levels + 1);
    }
    assert!(shown.is_string());
    assert_eq!(levels, MAX_DEPTH + 1);
}

#[test]
fn values_at_the_edge_print_and_never_panic() {
    let duration = |seconds, nanos| {
        let listener = Listener {
            listener_filters_timeout: Some(prost_types::Duration { seconds, nanos }),
            ..Listener::default()
        };
        to_json(&listener)["listener_filters_timeout"].clone()
    };
    assert_eq!(
        duration(i64::MIN, i32::MIN),
        "-9223372036854775808.2147483648s"
    );
    assert_eq!(duration(-1, -500_000_000), "-1.500s");
    assert_eq!(duration(0, 1), "0.000000001s");
    let percent = |value| to_json(&Percent { value })["value"].clone();
    assert_eq!(percent(f64::NAN), "NaN");
    assert_eq!(percent(f64::NEG_INFINITY), "-Infinity");
    assert_eq!(
        from_json::<Percent>(&json!({"value": "Infinity"}))
            .unwrap()
            .value,
        f64::INFINITY
    );
}

#[test]
fn empty_messages_are_kept() {
    let listener = Listener {
        filter_chains: vec![FilterChain::default(), FilterChain::default()],
        default_filter_chain: Some(FilterChain::default()),
        ..Listener::default()
    };
    let json = to_json(&listener);
    assert_eq!(
        json,
        json!({"filter_chains": [{}, {}], "default_filter_chain": {}})
    );
    assert_eq!(from_json::<Listener>(&json).unwrap(), listener);
    assert_eq!(to_json(&Router::default()), json!({}));
}

/// Any scalar, and the shapes that are most often in the wrong place.
fn wrong_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!(null)),
        Just(json!([])),
        Just(json!({})),
        Just(json!({"@type": "type.googleapis.com/google.protobuf.Duration"})),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[-0-9.s]{0,20}".prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ]
}

/// Every place in the document, as JSON pointers.
fn pointers(json: &Value, here: String, found: &mut Vec<String>) {
    match json {
        Value::Object(fields) => {
            for (name, value) in fields {
                let name = name.replace('~', "~0").replace('/', "~1");
                pointers(value, format!("{here}/{name}"), found);
            }
        }
        Value::Array(values) => {
            for (index, value) in values.iter().enumerate() {
                pointers(value, format!("{here}/{index}"), found);
            }
        }
        _ => {}
    }
    found.push(here);
}

proptest! {
    #[test]
    fn a_wrong_value_anywhere_is_read_or_named(
        place in any::<prop::sample::Index>(),
        wrong in wrong_value(),
    ) {
        let mut json = cluster_json();
        let mut places = Vec::new();
        pointers(&json, String::new(), &mut places);
        let place = place.get(&places);
        *json.pointer_mut(place).unwrap() = wrong;
        match from_json::<Cluster>(&json) {
            Ok(cluster) => {
                let again = from_json::<Cluster>(&to_json(&cluster)).unwrap();
                prop_assert_eq!(to_json(&again), to_json(&cluster));
            }
            Err(error) => prop_assert!(place.is_empty() || !error.path.is_empty(), "{error}"),
        }
    }
}

//! Manifests in, objects or faults out.

use super::*;

fn faults(text: &str) -> Vec<String> {
    let found = parse_manifest(text, "shop").unwrap_err();
    found.iter().map(ToString::to_string).collect()
}

#[test]
fn every_kind_is_read_by_its_name_and_group() {
    for kind in Kind::ALL {
        assert_eq!(Kind::parse(kind.as_str()), Some(*kind));
        assert_eq!(Kind::parse(&kind.as_str().to_lowercase()), Some(*kind));
    }
    assert_eq!(Kind::parse("httproutes"), Some(Kind::HttpRoute));
    assert_eq!(Kind::parse("trafficpolicies"), Some(Kind::TrafficPolicy));
    assert_eq!(Kind::parse("mutualtls"), Some(Kind::MutualTls));
    assert_eq!(Kind::parse("telemetries"), Some(Kind::Telemetry));
    assert_eq!(Kind::parse("pods"), None);
}

#[test]
fn a_fault_names_object_field_and_reason() {
    let text = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: cart}
spec: {parentRefs: [{name: cart}], rules: [{timeouts: {request: 1s, backendRequest: 2s}}]}
---
apiVersion: outrigger.dev/v1
kind: TrafficPolicy
metadata: {name: cart}
spec: {targetRefs: [{kind: Service, name: cart}], retries: {atempts: 3}}
---
apiVersion: v1
kind: MutualTLS
metadata: {name: all}
spec: {mode: STRICT}
";
    let found = faults(text);
    let timeouts = "HTTPRoute shop/cart: spec.rules[0].timeouts.backendRequest: must not be longer \
                    than request";
    assert_eq!(found.first().map(String::as_str), Some(timeouts));
    let slip = found.get(1).unwrap();
    assert!(
        slip.starts_with("TrafficPolicy shop/cart: spec.retries"),
        "{slip}"
    );
    assert!(slip.ends_with("did you mean `attempts`?"), "{slip}");
    let group = "MutualTLS shop/all: apiVersion: must be outrigger.dev/v1";
    assert_eq!(found.get(2).map(String::as_str), Some(group));
}

#[test]
fn what_is_kept_is_the_normal_form() {
    let text = "
apiVersion: outrigger.dev/v1
kind: MutualTLS
metadata: {name: all, namespace: shop, labels: {team: shop}}
spec: {mode: strict}
";
    let objects = parse_manifest(text, "default").unwrap();
    let object = objects.first().unwrap();
    let expected = serde_json::json!({
        "apiVersion": "outrigger.dev/v1",
        "kind": "MutualTLS",
        "metadata": {"name": "all", "namespace": "shop", "labels": {"team": "shop"}},
        "spec": {"mode": "STRICT"},
    });
    assert_eq!(object.json, expected);
    let again = parse_object(object.json.clone(), "", 0).unwrap();
    assert_eq!(again.json, expected);
}

//! What the API server is answered.

use super::*;

fn settings() -> Settings {
    Settings {
        image: "proxy:1".into(),
        pull_policy: "Never".into(),
        control_plane: "control:15012".into(),
        trust_domain: "outrigger.local".into(),
        trust_bundle: "PEM".into(),
        otlp_endpoint: String::new(),
    }
}

fn asked(pod: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "42",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "namespace": "shop",
            "operation": "CREATE",
            "object": pod,
        },
    })
}

#[test]
fn a_pod_is_patched() {
    let pod = json!({"metadata": {"generateName": "cart-"}, "spec": {"containers": [{
        "name": "app", "image": "app:1"}]}});
    let answer = review(&asked(&pod), &settings()).expect("an answer");
    assert_eq!(answer["response"]["uid"], "42");
    assert_eq!(answer["response"]["allowed"], true);
    let patch = answer["response"]["patch"].as_str().expect("a patch");
    let patch = BASE64_STANDARD.decode(patch).expect("base64");
    let patch: Vec<Value> = serde_json::from_slice(&patch).expect("JSON");
    let paths: Vec<_> = patch.iter().filter_map(|op| op["path"].as_str()).collect();
    assert_eq!(
        paths,
        [
            "/metadata/labels",
            "/metadata/annotations",
            "/spec/initContainers",
            "/spec/containers",
            "/spec/volumes"
        ]
    );
}

#[test]
fn a_pod_that_cannot_be_protected_is_refused_with_the_reason() {
    let pod = json!({"metadata": {"name": "x"}, "spec": {"hostNetwork": true, "containers": []}});
    let answer = review(&asked(&pod), &settings()).expect("an answer");
    assert_eq!(answer["response"]["allowed"], false);
    let message = answer["response"]["status"]["message"]
        .as_str()
        .expect("why");
    assert!(message.contains("host's network"), "{message}");
    assert!(answer["response"].get("patch").is_none());
}

#[test]
fn who_opted_out_is_let_through() {
    let pod = json!({"metadata": {"name": "x", "annotations": {"outrigger.dev/inject": "false"}},
        "spec": {"hostNetwork": true, "containers": []}});
    let answer = review(&asked(&pod), &settings()).expect("an answer");
    assert_eq!(answer["response"], json!({"uid": "42", "allowed": true}));
}

#[test]
fn what_is_no_question_gets_no_answer() {
    let table = [
        json!({}),
        json!({"request": {"uid": "1"}}),
        json!({"request": {"uid": "1", "object": {}, "kind": {"kind": "Node"}}}),
    ];
    for asked in table {
        assert!(review(&asked, &settings()).is_err(), "{asked}");
    }
}

#[test]
fn ku_11_a_bundle_that_is_another_is_replaced_and_the_right_one_left_alone() {
    let configuration = |bundles: [Option<&str>; 2]| {
        let webhooks = bundles.iter().enumerate().map(|(i, bundle)| {
            json!({
                "name": format!("w{i}"),
                "clientConfig": {"caBundle": bundle.map(|b| BASE64_STANDARD.encode(b))},
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
            })
        });
        let webhooks: Vec<_> = webhooks.collect();
        let whole = json!({"metadata": {"name": "n"}, "webhooks": webhooks});
        serde_json::from_value::<MutatingWebhookConfiguration>(whole).expect("a configuration")
    };
    assert_eq!(
        trust(&configuration([Some("new"), Some("new")]), "new"),
        None
    );
    let patch = trust(&configuration([Some("old"), None]), "new").expect("a patch");
    assert_eq!(patch["webhooks"].as_array().map(Vec::len), Some(2));
    assert_eq!(
        patch["webhooks"][0]["clientConfig"]["caBundle"],
        BASE64_STANDARD.encode("new")
    );
    let one = trust(&configuration([Some("new"), None]), "new").expect("a patch");
    assert_eq!(one["webhooks"][0]["name"], "w1");
}

/// What is answered about an object that replaces `old`.
fn judged(kind: &str, object: &Value, old: Option<&Value>) -> Value {
    let asked = json!({"request": {"uid": "7", "kind": {"kind": kind}, "operation": "UPDATE",
        "object": object, "oldObject": old}});
    judge(&asked).expect("an answer")["response"].clone()
}

fn limit(spec: &Value) -> Value {
    json!({"apiVersion": "outrigger.dev/v1", "kind": "TrafficPolicy", "spec": spec,
        "metadata": {"name": "x", "namespace": "shop"}})
}

#[test]
fn a_policy_that_would_not_be_taken_is_refused_with_every_reason() {
    let good = limit(&json!({"targetRefs": [{"name": "cart"}]}));
    let bad = limit(&json!({"targetRefs": [], "circuitBreaker": {"slowCallRate": 20}}));
    let allowed = json!({"uid": "7", "allowed": true});
    assert_eq!(judged("TrafficPolicy", &good, None), allowed);
    let refused = judged("TrafficPolicy", &bad, Some(&good));
    assert_eq!(
        (&refused["allowed"], &refused["status"]["code"]),
        (&json!(false), &json!(422))
    );
    let message = refused["status"]["message"].as_str().expect("why");
    assert!(message.starts_with("outrigger: spec."), "{message}");

    // It was like that before, or is on its way out.
    let mut renamed = bad.clone();
    renamed["metadata"]["labels"] = json!({"a": "b"});
    assert_eq!(judged("TrafficPolicy", &renamed, Some(&bad)), allowed);
    renamed["metadata"]["deletionTimestamp"] = "2026-11-25T10:00:00Z".into();
    assert_eq!(judged("TrafficPolicy", &renamed, Some(&good)), allowed);
}

#[test]
fn the_author_of_a_route_is_warned() {
    let route = |kind: &str| {
        json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {"name": "x", "namespace": "shop"},
            "spec": {"parentRefs": [{"group": "", "kind": kind, "name": "cart"}],
                "rules": [{"filters": [{"type": "ExtensionRef"}]}]}})
    };
    let told = judged("HTTPRoute", &route("Service"), None);
    assert_eq!(told["allowed"], true);
    let warning = told["warnings"][0].as_str().expect("a warning");
    assert!(
        warning.starts_with("outrigger: not taken: spec.rules[0]"),
        "{warning}"
    );
    let others = judged("HTTPRoute", &route("Gateway"), None);
    assert_eq!(
        others,
        json!({"uid": "7", "allowed": true}),
        "not ours to judge"
    );
}

#[test]
fn only_routes_and_policies_are_judged() {
    for kind in ["Service", "Pod"] {
        let asked = json!({"request": {"uid": "7", "kind": {"kind": kind}, "object": {}}});
        assert!(judge(&asked).is_err(), "{kind}");
    }
}

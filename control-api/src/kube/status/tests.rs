//! Verdicts on objects of a cluster.

use k8s_openapi::api::core::v1::Service;

use super::*;
use crate::kube::{
    Name,
    cluster::{Change, Delta},
};

const NOW: &str = "2026-11-25T10:00:00Z";

fn route(backend: &str, parent: &str, status: &Value) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "r", "namespace": "shop", "generation": 7, "resourceVersion": "12"},
        "spec": {
            "parentRefs": [
                {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "edge"},
                {"group": "", "kind": "Service", "name": parent, "port": 80},
            ],
            "rules": [{"backendRefs": [{"name": backend, "port": 80}]}],
        },
        "status": status,
    })
}

fn verdict_of(kind: Kind, document: Value) -> Option<Value> {
    let mut cluster = Cluster::default();
    let service: Service = serde_json::from_value(json!({
        "metadata": {"name": "cart", "namespace": "shop"},
        "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80}]},
    }))
    .expect("a Service");
    let set = Change::Set(Name::new("shop", "cart"), Box::new(service));
    cluster.apply(Delta::Services(set));
    let set = Change::Set(Name::new("shop", "r"), document);
    cluster.apply(Delta::Policies(kind, set));
    let mut objects = Objects::default();
    for (key, object) in cluster.changes() {
        if let Some(object) = object {
            objects.by_key.insert(key, Arc::new(object));
        }
    }
    let (key, policy) = cluster.policies().next().expect("one");
    status((key, policy), &cluster.permitted(policy).1, &objects, NOW)
}

/// Type, status and reason of each condition.
fn told(conditions: &Value) -> Vec<String> {
    let all = conditions.as_array().expect("a list").iter();
    let text = |one: &Value, key: &str| one[key].as_str().expect(key).to_owned();
    all.map(|one| {
        format!(
            "{}={} {}",
            text(one, "type"),
            text(one, "status"),
            text(one, "reason")
        )
    })
    .collect()
}

#[test]
fn a_good_route_is_accepted_once_for_each_service() {
    let others = json!([{"controllerName": "edge.example/gateway", "parentRef": {"name": "edge"},
        "conditions": []}]);
    let status = verdict_of(
        Kind::HttpRoute,
        route("cart", "cart", &json!({"parents": others})),
    );
    let parents = status.expect("something to write")["parents"].clone();
    assert_eq!(parents.as_array().map(Vec::len), Some(2));
    assert_eq!(parents[0], others[0], "another's entry stays");
    assert_eq!(parents[1]["controllerName"], CONTROLLER);
    assert_eq!(parents[1]["parentRef"]["name"], "cart");
    assert_eq!(
        told(&parents[1]["conditions"]),
        ["Accepted=True Accepted", "ResolvedRefs=True ResolvedRefs"]
    );
    assert_eq!(parents[1]["conditions"][0]["observedGeneration"], 7);
    assert_eq!(parents[1]["conditions"][0]["lastTransitionTime"], NOW);

    let again = verdict_of(
        Kind::HttpRoute,
        route("cart", "cart", &json!({"parents": parents})),
    );
    assert_eq!(again, None, "it is there already");
}

#[test]
fn what_is_wrong_is_said_where() {
    let backend = verdict_of(Kind::HttpRoute, route("nobody", "cart", &json!({})));
    let conditions = backend.expect("something to write")["parents"][0]["conditions"].clone();
    assert_eq!(
        told(&conditions),
        [
            "Accepted=True Accepted",
            "ResolvedRefs=False BackendNotFound"
        ]
    );
    let message = conditions[1]["message"].as_str().expect("a text");
    assert!(
        message.contains("spec.rules[0].backendRefs[0]"),
        "{message}"
    );

    let parent = verdict_of(Kind::HttpRoute, route("cart", "nobody", &json!({})));
    let conditions = parent.expect("something to write")["parents"][0]["conditions"].clone();
    assert_eq!(
        told(&conditions),
        [
            "Accepted=False NoMatchingParent",
            "ResolvedRefs=True ResolvedRefs"
        ]
    );

    let mut bad = route("cart", "cart", &json!({}));
    bad["spec"]["rules"][0]["filters"] = json!([{"type": "ExtensionRef"}]);
    let conditions =
        verdict_of(Kind::HttpRoute, bad).expect("something to write")["parents"][0]["conditions"]
            .clone();
    let first = told(&conditions).first().cloned();
    assert_eq!(first.as_deref(), Some("Accepted=False UnsupportedValue"));
}

#[test]
fn a_condition_that_stays_keeps_its_time() {
    let since = "2020-01-01T00:00:00Z";
    let document = json!({
        "apiVersion": "outrigger.dev/v1",
        "kind": "TrafficPolicy",
        "metadata": {"name": "r", "namespace": "shop", "generation": 2},
        "spec": {"targetRefs": [{"name": "nobody"}]},
        "status": {"conditions": [
            {"type": "Accepted", "status": "True", "lastTransitionTime": since},
            {"type": "ResolvedRefs", "status": "True", "lastTransitionTime": since},
        ]},
    });
    let status = verdict_of(Kind::TrafficPolicy, document).expect("something to write");
    assert_eq!(
        told(&status["conditions"]),
        [
            "Accepted=False NoMatchingParent",
            "ResolvedRefs=True ResolvedRefs"
        ]
    );
    assert_eq!(status["conditions"][0]["lastTransitionTime"], NOW);
    assert_eq!(status["conditions"][1]["lastTransitionTime"], since);
}

#[test]
fn a_reference_that_is_not_granted_is_not_followed_until_it_is() {
    let mut document = route("cart", "cart", &json!({}));
    document["spec"]["rules"][0]["backendRefs"][0]["namespace"] = "stock".into();
    let mut cluster = Cluster::default();
    let set = Change::Set(Name::new("shop", "r"), document);
    cluster.apply(Delta::Policies(Kind::HttpRoute, set));
    drop(cluster.changes());
    let reason = |cluster: &Cluster| {
        let (key, policy) = cluster.policies().next().expect("one");
        let denied = cluster.permitted(policy).1;
        let status = status((key, policy), &denied, &Objects::default(), NOW);
        let status = status.expect("something to write");
        told(&status["parents"][0]["conditions"]).pop()
    };
    let denied = Some("ResolvedRefs=False RefNotPermitted".to_owned());
    assert_eq!(reason(&cluster), denied);

    let grant = json!({"metadata": {"name": "g"}, "spec": {
        "from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "shop"}],
        "to": [{"group": "", "kind": "Service"}]}});
    let name = Name::new("stock", "g");
    cluster.apply(Delta::Grants(Change::Set(name.clone(), grant)));
    let changed: Vec<_> = cluster
        .changes()
        .into_iter()
        .map(|(key, _)| key.name)
        .collect();
    assert_eq!(changed, ["r"], "a grant changes what a route is");
    let granted = Some("ResolvedRefs=False BackendNotFound".to_owned());
    assert_eq!(reason(&cluster), granted);
    cluster.apply(Delta::Grants(Change::Gone(name)));
    assert_eq!(cluster.changes().len(), 1);
    assert_eq!(reason(&cluster), denied);
}

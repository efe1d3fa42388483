//! From manifests of a cluster to the mesh's objects.

use serde::de::DeserializeOwned;
use serde_json::json;

use super::*;
use crate::model::{AppProtocol, ServiceSpec, Spec};

fn yaml<T: DeserializeOwned>(text: &str) -> T {
    serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn set<K: kube::Resource + DeserializeOwned>(text: &str) -> Change<Box<K>> {
    let object: K = yaml(text);
    Change::Set(Name::of(&object), Box::new(object))
}

fn pod(name: &str, facts: &str) -> Delta {
    let text = format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop");
    let object = yaml(&format!("{text}, {facts}"));
    Delta::Pods(Change::Set(
        Name::of::<k8s_openapi::api::core::v1::Pod>(&object),
        PodFacts::of(&object),
    ))
}

const IN_MESH: &str = "labels: {outrigger.dev/mesh: sidecar, pod-template-hash: 7d9f},
  ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: cart-7d9f, uid: u, controller: true}]}
spec: {serviceAccountName: cart, containers: []}";

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop, labels: {app: cart}}
spec:
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, 'fd00:96::10']
  ports:
    - {name: http, port: 80, targetPort: web, appProtocol: kubernetes.io/ws}
    - {name: grpc, port: 9000, appProtocol: kubernetes.io/h2c}
    - {name: any, port: 7000, targetPort: 7001, protocol: TCP, appProtocol: example.com/own}
    - {name: dns, port: 53, protocol: UDP}
";

fn slice(name: &str, family: &str, endpoints: &str) -> Delta {
    Delta::Slices(set(&format!(
        "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}, namespace: shop, labels: {{kubernetes.io/service-name: cart}}}}
addressType: {family}
ports:
  - {{name: http, port: 8080, protocol: TCP}}
  - {{name: grpc, port: 9000, protocol: TCP}}
  - {{name: any, port: 7001, protocol: TCP}}
  - {{name: dns, port: 53, protocol: UDP}}
endpoints: [{endpoints}]
"
    )))
}

fn endpoint(address: &str, pod: &str, conditions: &str) -> String {
    format!(
        "{{addresses: ['{address}'], zone: a, conditions: {{{conditions}}}, \
         targetRef: {{kind: Pod, name: {pod}, namespace: shop}}}}"
    )
}

/// The service as the mesh has it after these changes.
fn cart(deltas: impl IntoIterator<Item = Delta>) -> Option<Arc<ServiceSpec>> {
    let mut cluster = Cluster::default();
    for delta in deltas {
        cluster.apply(delta);
    }
    let changed = cluster.changes();
    let (_, object) = changed.into_iter().find(|(key, _)| key.name == "cart")?;
    match object?.spec {
        Spec::Service(service) => Some(service),
        other => panic!("{other:?}"),
    }
}

fn addresses(service: &ServiceSpec) -> Vec<String> {
    let all = service.endpoints.iter().map(|e| e.address.to_string());
    all.collect()
}

#[test]
fn a_service_with_named_ports_of_both_families() {
    let both = [
        Delta::Services(set(SERVICE)),
        pod("a", IN_MESH),
        slice("cart-4", "IPv4", &endpoint("10.1.0.2", "a", "ready: true")),
        slice("cart-6", "IPv6", &endpoint("fd00:1::2", "a", "ready: true")),
    ];
    let service = cart(both).expect("a service");
    let ports: Vec<_> = service
        .ports
        .iter()
        .map(|p| (p.name.as_str(), p.port))
        .collect();
    assert_eq!(
        ports,
        [("http", 80), ("grpc", 9000), ("any", 7000)],
        "UDP is not ours"
    );
    let protocols: Vec<_> = service.ports.iter().map(|p| p.app_protocol).collect();
    assert_eq!(
        protocols,
        [Some(AppProtocol::Http), Some(AppProtocol::Http2), None]
    );
    let vips: Vec<_> = service.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(vips, ["10.96.0.10", "fd00:96::10"]);
    assert_eq!(addresses(&service), ["10.1.0.2", "fd00:1::2"]);
    for endpoint in &service.endpoints {
        let numbers = service
            .ports
            .iter()
            .map(|p| service.endpoint_port(endpoint, p));
        assert_eq!(numbers.collect::<Vec<_>>(), [8080, 9000, 7001]);
        assert_eq!(endpoint.service_account.as_deref(), Some("cart"));
        assert_eq!(
            endpoint.workload.as_deref(),
            Some("cart"),
            "the Deployment's name"
        );
        assert_eq!(endpoint.zone.as_deref(), Some("a"));
        assert!(endpoint.in_mesh());
    }
}

#[test]
fn a_pod_without_the_proxy_is_spoken_to_in_clear() {
    let outside = "labels: {app: cart}}\nspec: {containers: []}";
    let host = "labels: {outrigger.dev/mesh: sidecar}}\nspec: {hostNetwork: true, containers: []}";
    for facts in [outside, host] {
        let service = cart([
            Delta::Services(set(SERVICE)),
            pod("a", facts),
            slice("cart-4", "IPv4", &endpoint("10.1.0.2", "a", "ready: true")),
        ]);
        let service = service.expect("a service");
        let one = service.endpoints.first().expect("one");
        assert!(!one.in_mesh());
        assert_eq!(one.workload.as_deref(), Some("a"));
        assert_eq!(one.service_account.as_deref(), Some("default"));
    }
}

#[test]
fn conditions_decide_who_is_called() {
    let table: [(&str, &[&str]); 6] = [
        (
            "ready: true, serving: true, terminating: false",
            &["10.1.0.2", "10.1.0.3"],
        ),
        ("", &["10.1.0.2", "10.1.0.3"]),
        (
            "ready: false, serving: false, terminating: false",
            &["10.1.0.3"],
        ),
        // It ends, and another is there.
        (
            "ready: false, serving: true, terminating: true",
            &["10.1.0.3"],
        ),
        (
            "ready: false, serving: false, terminating: true",
            &["10.1.0.3"],
        ),
        // publishNotReadyAddresses: Kubernetes calls it ready although it does not serve.
        (
            "ready: true, serving: false, terminating: true",
            &["10.1.0.2", "10.1.0.3"],
        ),
    ];
    for (conditions, expected) in table {
        let two = [
            endpoint("10.1.0.2", "a", conditions),
            endpoint("10.1.0.3", "a", "ready: true"),
        ];
        let service = cart([
            Delta::Services(set(SERVICE)),
            pod("a", IN_MESH),
            slice("cart-4", "IPv4", &two.join(", ")),
        ]);
        let service = service.expect("a service");
        assert_eq!(addresses(&service), expected, "{conditions}");
    }
}

#[test]
fn pods_that_end_are_better_than_none() {
    let ending = "ready: false, serving: true, terminating: true";
    let service = cart([
        Delta::Services(set(SERVICE)),
        pod("a", IN_MESH),
        slice("cart-4", "IPv4", &endpoint("10.1.0.2", "a", ending)),
    ]);
    assert_eq!(addresses(&service.expect("a service")), ["10.1.0.2"]);
}

#[test]
fn a_headless_service_is_reached_by_its_pods() {
    let headless = SERVICE
        .replace("clusterIP: 10.96.0.10", "clusterIP: None")
        .replace("[10.96.0.10, 'fd00:96::10']", "[None]");
    let service = cart([
        Delta::Services(set(&headless)),
        pod("a", IN_MESH),
        slice("cart-4", "IPv4", &endpoint("10.1.0.2", "a", "ready: true")),
    ]);
    let service = service.expect("a service");
    assert!(service.addresses.is_empty());
    assert_eq!(addresses(&service), ["10.1.0.2"]);
}

#[test]
fn what_has_no_tcp_port_or_is_elsewhere_is_not_ours() {
    let external = "
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {type: ExternalName, externalName: cart.example.com, ports: [{port: 80}]}
";
    let udp = "
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {clusterIP: 10.96.0.1, ports: [{port: 53, protocol: UDP}]}
";
    for service in [external, udp] {
        assert_eq!(cart([Delta::Services(set(service))]), None);
    }
}

#[test]
fn a_pod_that_lacks_a_named_port_does_not_serve_it() {
    let Delta::Slices(Change::Set(name, mut slice)) =
        slice("cart-4", "IPv4", &endpoint("10.1.0.2", "a", "ready: true"))
    else {
        panic!("a slice");
    };
    slice.ports.iter_mut().flatten().next().expect("http").name = Some("other".into());
    let service = cart([
        Delta::Services(set(SERVICE)),
        pod("a", IN_MESH),
        Delta::Slices(Change::Set(name, slice)),
    ]);
    let service = service.expect("a service");
    let one = service.endpoints.first().expect("one");
    let numbers = service.ports.iter().map(|p| service.endpoint_port(one, p));
    assert_eq!(numbers.collect::<Vec<_>>(), [0, 9000, 7001]);
}

#[test]
fn whoever_comes_first_the_outcome_is_the_same() {
    let make: [fn() -> Delta; 3] = [
        || Delta::Services(set(SERVICE)),
        || pod("a", IN_MESH),
        || slice("cart-4", "IPv4", &endpoint("10.1.0.2", "a", "ready: true")),
    ];
    let expected = cart(make.iter().map(|make| make()));
    assert!(expected.is_some());
    for order in [[0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mut cluster = Cluster::default();
        let mut last = None;
        for at in order {
            cluster.apply(make[at]());
            for (key, object) in cluster.changes() {
                assert_eq!(key.name, "cart");
                last = object;
            }
        }
        let Some(Spec::Service(service)) = last.map(|object| object.spec) else {
            panic!("{order:?}: no service");
        };
        assert_eq!(Some(service), expected, "{order:?}");
    }
}

#[test]
fn a_slice_without_its_pod_is_not_called() {
    let service = cart([
        Delta::Services(set(SERVICE)),
        slice("cart-4", "IPv4", &endpoint("10.1.0.2", "a", "ready: true")),
    ]);
    assert_eq!(service.expect("a service").endpoints, []);
}

#[test]
fn a_fresh_list_takes_away_what_is_not_in_it() {
    let mut cluster = Cluster::default();
    cluster.apply(Delta::Services(set(SERVICE)));
    cluster.apply(Delta::Services(set(&SERVICE.replace("cart", "old"))));
    assert_eq!(cluster.changes().len(), 2);
    let Change::Set(name, service) = set(SERVICE) else {
        panic!("a service");
    };
    cluster.apply(Delta::Services(Change::All(vec![(name, service)])));
    let gone: Vec<_> = cluster
        .changes()
        .into_iter()
        .filter(|(_, o)| o.is_none())
        .collect();
    assert_eq!(gone.len(), 1);
    assert!(gone.iter().all(|(key, _)| key.name == "old"));
}

#[test]
fn only_what_changed_is_made_again() {
    let mut cluster = Cluster::default();
    cluster.apply(Delta::Services(set(SERVICE)));
    cluster.apply(Delta::Services(set(&SERVICE.replace("cart", "other"))));
    cluster.apply(slice(
        "cart-4",
        "IPv4",
        &endpoint("10.1.0.2", "a", "ready: true"),
    ));
    cluster.apply(pod("a", IN_MESH));
    drop(cluster.changes());
    cluster.apply(pod("a", IN_MESH));
    assert!(cluster.changes().is_empty(), "the same facts again");
    cluster.apply(pod("b", IN_MESH));
    assert!(cluster.changes().is_empty(), "a pod of no service");
    cluster.apply(Delta::Pods(Change::Gone(Name::new("shop", "a"))));
    let names: Vec<_> = cluster
        .changes()
        .into_iter()
        .map(|(key, _)| key.name)
        .collect();
    assert_eq!(names, ["cart"]);
}

#[test]
fn a_route_that_turns_bad_leaves_the_last_good_one_in_force() {
    let route = |parent: &str, weight: i64| {
        let document = json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": {"name": "cart", "namespace": "shop", "generation": 3, "uid": "u"},
            "spec": {
                "parentRefs": [{"group": "", "kind": parent, "name": "cart"},
                    {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "edge"}],
                "rules": [{"backendRefs": [
                    {"group": "", "kind": "Service", "name": "cart", "port": 80, "weight": weight},
                ]}],
            },
            "status": {"parents": []},
        });
        Delta::Policies(
            Kind::HttpRoute,
            Change::Set(Name::new("shop", "cart"), document),
        )
    };
    let mut cluster = Cluster::default();
    cluster.apply(route("Service", 1));
    let first = cluster.changes().pop().and_then(|(_, object)| object);
    let first = first.expect("taken");
    let Spec::HttpRoute(spec) = &first.spec else {
        panic!("{first:?}");
    };
    assert_eq!(spec.parent_refs.len(), 1, "the Gateway is another's");

    cluster.apply(route("Service", -1));
    let kept = cluster.changes().pop().and_then(|(_, object)| object);
    assert_eq!(kept.expect("kept").json, first.json);
    let (_, policy) = cluster.policies().next().expect("known");
    let fault = policy.faults.first().expect("a reason").to_string();
    assert!(fault.contains("spec.rules[0].backendRefs[0]"), "{fault}");

    cluster.apply(route("Gateway", 1));
    assert!(
        matches!(cluster.changes().as_slice(), [(_, None)]),
        "no longer of a Service"
    );
}

#[test]
fn everything_is_waited_for() {
    let mut cluster = Cluster::default();
    assert_eq!(cluster.missing().count(), 3 + Kind::ALL.len());
    cluster.apply(Delta::Services(Change::All(vec![])));
    cluster.apply(Delta::Slices(Change::All(vec![])));
    cluster.apply(Delta::Pods(Change::All(vec![])));
    cluster.apply(Delta::Grants(Change::All(vec![])));
    for kind in Kind::ALL.iter().filter(|kind| **kind != Kind::Service) {
        assert!(cluster.missing().any(|missing| missing == kind.as_str()));
        cluster.apply(Delta::Policies(*kind, Change::All(vec![])));
    }
    assert_eq!(cluster.missing().count(), 0);
}

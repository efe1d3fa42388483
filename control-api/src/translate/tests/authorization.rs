//! Who may call, and where mutual TLS is demanded.

use serde_json::Value;

use super::{ResourceType, SHOP, cart, json, web, world};

/// The chains of the inbound listener by name, with the names of their filters.
fn chains(manifest: &str) -> Vec<(String, Vec<String>)> {
    let listener = json(&world(manifest), &cart(), ResourceType::Listener, "inbound");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let filters = |chain: &Value| -> Vec<String> {
        let all = chain["filters"].as_array().unwrap();
        let short = |name: String| name.rsplit('.').next().unwrap().to_owned();
        all.iter()
            .map(|filter| short(text(&filter["name"])))
            .collect()
    };
    let all = listener["filter_chains"].as_array().unwrap().iter();
    let default = listener.get("default_filter_chain").into_iter();
    all.chain(default)
        .map(|chain| (text(&chain["name"]), filters(chain)))
        .collect()
}

fn names(manifest: &str) -> Vec<String> {
    chains(manifest).into_iter().map(|(name, _)| name).collect()
}

const BARE: &str = "
apiVersion: outrigger.dev/v1
kind: Service
metadata: {name: cart, namespace: shop}
spec:
  ports: [{port: 80, targetPort: 8080, appProtocol: http}, {name: db, port: 5432, appProtocol: tcp}]
  endpoints: [{address: 10.1.0.2}]
";

fn with(policy: &str) -> String {
    format!("{BARE}\n---\napiVersion: outrigger.dev/v1\n{policy}")
}

#[test]
fn permissive_ports_take_everything() {
    let expected = [
        "5432-mesh-http",
        "5432-mesh-tcp",
        "5432-tcp",
        "5432-tls",
        "8080-mesh-http",
        "8080-mesh-tcp",
        "8080-http",
        "8080-tls",
        "rest-mesh-http",
        "rest-mesh-tcp",
        "passthrough",
    ];
    assert_eq!(names(BARE), expected);
}

#[test]
fn tl_08_strict_workloads_have_mesh_chains_only() {
    let strict =
        with("kind: MutualTLS\nmetadata: {name: s, namespace: shop}\nspec: {mode: strict}");
    assert!(names(&strict).iter().all(|name| name.contains("mesh")));
    let mesh = with(
        "kind: MutualTLS\nmetadata: {name: s, namespace: outrigger-system}\nspec: {mode: strict}",
    );
    assert!(names(&mesh).iter().all(|name| name.contains("mesh")));
    let other = with("kind: MutualTLS\nmetadata: {name: s, namespace: web}\nspec: {mode: strict}");
    assert_eq!(names(&other), names(BARE));
}

#[test]
fn one_strict_port_does_not_fall_through_to_the_others() {
    let policy = "kind: MutualTLS\nmetadata: {name: s, namespace: shop}\nspec: {mode: permissive, \
                  ports: {8080: strict}}";
    let found = chains(&with(policy));
    let of = |name: &str| {
        found
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, filters)| filters)
    };
    assert_eq!(of("8080-http"), None);
    assert_eq!(
        of("8080-strict"),
        Some(&vec!["strict".to_owned(), "tcp_proxy".to_owned()])
    );
    assert!(of("8080-strict-tls").is_some() && of("5432-tcp").is_some());
}

#[test]
fn requests_rules_do_not_hold_where_there_are_no_requests() {
    let policy = |action: &str| {
        with(&format!(
            "kind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {{action: \
             {action}, rules: [{{to: [{{methods: [GET]}}]}}]}}"
        ))
    };
    let rbac = |action: &str| {
        let world = world(&policy(action));
        let listener = json(&world, &cart(), ResourceType::Listener, "inbound");
        let chains = listener["filter_chains"].as_array().unwrap().clone();
        let chain = chains
            .into_iter()
            .find(|c| c["name"] == "5432-mesh-tcp")
            .unwrap();
        chain["filters"][0]["typed_config"]["rules"].clone()
    };
    // Nobody is let in because of a method that nobody can see.
    assert_eq!(rbac("allow").get("policies"), None);
    // The deny holds for everybody.
    let denied = rbac("deny");
    let rule = &denied["policies"]["shop/p/0"]["permissions"][0];
    assert_eq!(rule["any"], true);
}

#[test]
fn policies_of_services_hold_for_their_ports_only() {
    let policy = "kind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\nspec: \
                  {targetRefs: [{name: cart, port: 80}], rules: [{from: [{namespaces: [web]}]}]}";
    let found = chains(&with(policy));
    let guarded: Vec<_> = found
        .iter()
        .filter(|(_, filters)| filters.iter().any(|f| f == "allow"))
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(guarded, ["8080-mesh-tcp", "8080-tls"]);
    let world = world(&with(policy));
    let listener = json(&world, &cart(), ResourceType::Listener, "inbound").to_string();
    assert!(listener.contains("envoy.filters.http.rbac.allow"));
}

#[test]
fn others_are_not_told_of_policies_that_are_not_for_them() {
    let listener = json(&world(SHOP), &web(), ResourceType::Listener, "inbound").to_string();
    assert!(!listener.contains("rbac"));
}

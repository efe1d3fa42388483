//! Which rule goes first, and whose route holds.

use serde_json::Value;

use super::{ResourceType, SHOP, Viewer, cart, json, routes, web, world};

const NAME: &str = "outbound|80|cart.shop.svc";

fn with_rules(rules: &str) -> String {
    format!(
        "{SHOP}
---
apiVersion: outrigger.dev/v1
kind: Service
metadata: {{name: s, namespace: t}}
spec: {{ports: [{{port: 80}}], addresses: [10.96.1.1]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: r, namespace: t}}
spec:
  parentRefs: [{{name: s}}]
  rules: {rules}
"
    )
}

fn order(rules: &str) -> Vec<String> {
    let world = world(&with_rules(rules));
    let all = routes(&world, &web(), "outbound|80|s.t.svc");
    let name = |route: &Value| {
        let name = route["name"].as_str().unwrap();
        name.rsplit('/').next().unwrap().to_owned()
    };
    all.iter().map(name).collect()
}

#[test]
fn the_best_match_goes_first() {
    let rules = r#"
    - {name: all}
    - {name: short, matches: [{path: {value: /a}}]}
    - {name: long, matches: [{path: {value: /a/b/}}]}
    - {name: regex, matches: [{path: {type: RegularExpression, value: "/a/[0-9]+"}}]}
    - {name: exact, matches: [{path: {type: Exact, value: /a}}]}
    - {name: get, matches: [{path: {value: /a}, method: GET}]}
    - {name: header, matches: [{path: {value: /a}, headers: [{name: x, value: y}]}]}
    - {name: query, matches: [{path: {value: /a}, queryParams: [{name: x, value: y}]}]}
    "#;
    let expected = [
        "exact", "regex", "long", "get", "header", "query", "short", "all",
    ];
    assert_eq!(order(rules), expected);
}

#[test]
fn equal_matches_stay_in_the_order_of_rules() {
    let rules =
        "[{name: b, matches: [{path: {value: /x}}]}, {name: a, matches: [{path: {value: /y}}]}]";
    assert_eq!(order(rules), ["b", "a"]);
}

#[test]
fn a_consumers_route_holds_for_its_namespace_only() {
    let world = world(SHOP);
    let names = |viewer: &Viewer| -> Vec<String> {
        let all = routes(&world, viewer, NAME);
        all.iter()
            .map(|r| r["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names(&web()), ["web/cart-for-web/0"]);
    assert_eq!(
        names(&cart()),
        ["shop/cart/moved", "shop/cart/legacy", "shop/cart/split"]
    );
}

#[test]
fn a_rule_without_backends_leads_to_the_parent() {
    let world = world(SHOP);
    let route = &routes(&world, &web(), NAME)[0];
    assert_eq!(route["route"]["cluster"], "outbound|80||cart.shop.svc");
}

#[test]
fn a_rule_whose_backends_weigh_nothing_answers_500() {
    let world = world(&with_rules(
        "[{backendRefs: [{name: s, port: 80, weight: 0}]}]",
    ));
    let route = &routes(&world, &web(), "outbound|80|s.t.svc")[0];
    assert_eq!(route["direct_response"]["status"], 500);
}

#[test]
fn a_replaced_prefix_never_leaves_two_slashes() {
    let rewritten = |old: &str, new: &str| {
        let rules = format!(
            "[{{matches: [{{path: {{value: {old}}}}}], filters: [{{type: URLRewrite, urlRewrite: \
             {{path: {{type: ReplacePrefixMatch, replacePrefixMatch: {new}}}}}}}]}}]"
        );
        let world = world(&with_rules(&rules));
        let route = routes(&world, &web(), "outbound|80|s.t.svc").remove(0);
        let action = &route["route"];
        match action["regex_rewrite"]["pattern"]["regex"].as_str() {
            Some(pattern) => format!("{pattern} -> {}", action["regex_rewrite"]["substitution"]),
            None => action["prefix_rewrite"].to_string(),
        }
    };
    assert_eq!(rewritten("/a", "/b"), "\"/b\"");
    assert_eq!(rewritten("/a/", "/b/"), "\"/b\"");
    assert_eq!(rewritten("/a", "/"), "^/a/? -> \"/\"");
    assert_eq!(rewritten("/", "/b"), "\"/b/\"");
    assert_eq!(rewritten("/", "/"), "\"/\"");
}

fn chains(world: &crate::translate::World, viewer: &Viewer) -> Vec<String> {
    let listener = json(
        world,
        viewer,
        ResourceType::Listener,
        "outbound/10.96.1.1:80",
    );
    let all = listener["filter_chains"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let default = listener.get("default_filter_chain").cloned();
    let end = |chain: &Value| {
        let end = &chain["filters"][0]["typed_config"];
        let target = end
            .get("cluster")
            .unwrap_or_else(|| &end["rds"]["route_config_name"]);
        format!(
            "{} {}",
            chain["name"].as_str().unwrap(),
            target.as_str().unwrap()
        )
    };
    all.iter().chain(&default).map(end).collect()
}

fn with_layer4(namespace: &str, kinds: &[&str]) -> String {
    let mut manifest = with_rules("[{}]");
    for kind in kinds {
        let hosts = if *kind == "TLSRoute" {
            "hostnames: [h.example]"
        } else {
            ""
        };
        manifest.push_str(&format!(
            "---
apiVersion: gateway.networking.k8s.io/v1
kind: {kind}
metadata: {{name: l4, namespace: {namespace}}}
spec:
  parentRefs: [{{name: s, namespace: t}}]
  {hosts}
  rules: [{{backendRefs: [{{name: o, port: 1}}]}}]
"
        ));
    }
    manifest
}

#[test]
fn routes_of_connections_hold_for_what_is_no_request() {
    let http = "http outbound|80|s.t.svc";
    let own = "tcp outbound|80||s.t.svc";
    let tcp = world(&with_layer4("t", &["TCPRoute"]));
    assert_eq!(chains(&tcp, &web()), [http, "tcp outbound|1||o.t.svc"]);
    let tls = world(&with_layer4("t", &["TLSRoute"]));
    assert_eq!(
        chains(&tls, &web()),
        [http, "t/l4 outbound|1||o.t.svc", own]
    );
    // A consumer's is for its namespace.
    let consumer = world(&with_layer4("web", &["TCPRoute", "TLSRoute"]));
    assert_eq!(chains(&consumer, &cart()), [http, own]);
    let theirs = [
        http,
        "web/l4 outbound|1||o.web.svc",
        "tcp outbound|1||o.web.svc",
    ];
    assert_eq!(chains(&consumer, &web()), theirs);
}

#[test]
fn a_tcp_route_alone_makes_the_port_opaque() {
    let manifest = with_layer4("t", &["TCPRoute"]);
    let documents = manifest.split("---");
    let kept: Vec<_> = documents
        .filter(|text| !text.contains("name: r, namespace: t"))
        .collect();
    let alone = world(&kept.join("---"));
    assert_eq!(chains(&alone, &web()), ["tcp outbound|1||o.t.svc"]);
}

#[test]
fn a_rate_limit_of_a_route_is_told_by_its_routes_alone() {
    let limit = |target: &str| {
        format!(
            "{SHOP}
---
apiVersion: outrigger.dev/v1
kind: RateLimit
metadata: {{name: slow, namespace: shop}}
spec: {{requests: 7, per: 1m, targetRefs: [{{kind: HTTPRoute, name: {target}}}]}}
"
        )
    };
    let name = "outbound|80|cart.shop.svc";
    let limited = |manifest: &str| -> Vec<Option<Value>> {
        let world = world(manifest);
        let key = "envoy.filters.http.local_ratelimit";
        let all = routes(&world, &cart(), name).into_iter();
        let of = |route: Value| {
            route
                .pointer(&format!("/typed_per_filter_config/{key}"))
                .cloned()
        };
        all.map(of).collect()
    };
    let own = limited(&limit("cart"));
    assert!(!own.is_empty());
    for limit in own {
        let limit = limit.expect("every match of the route");
        assert_eq!(limit["stat_prefix"], "shop/slow");
        assert_eq!(limit["token_bucket"]["max_tokens"], 7);
    }
    assert!(limited(&limit("other")).iter().all(Option::is_none));
    // Workloads are left alone by it.
    let inbound = json(
        &world(&limit("cart")),
        &cart(),
        ResourceType::Listener,
        "inbound",
    );
    assert!(!inbound.to_string().contains("\"max_tokens\":7"));
}

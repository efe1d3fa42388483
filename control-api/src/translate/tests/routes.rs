//! Which rule goes first, and whose route holds.

use super::{SHOP, Viewer, cart, routes, web, world};

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
    let name = |route: &serde_json::Value| {
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

//! Whole resources, as they were looked at and found right.

use serde_json::Value;

use super::{ResourceType, SHOP, cart, json, web, world};

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap()
}

const GUARDED: &str = "
apiVersion: outrigger.dev/v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {ports: [{port: 80, targetPort: 8080}], endpoints: [{address: 10.1.0.2}]}
---
apiVersion: outrigger.dev/v1
kind: AuthorizationPolicy
metadata: {name: cart, namespace: shop}
spec:
  targetRefs: [{name: cart}]
  rules:
    - from: [{identities: [web/frontend], notIpBlocks: [10.9.0.0/16]}]
      to: [{methods: [GET], paths: [/cart/*], hosts: [cart.example], notPorts: [9]}]
";

#[test]
fn inbound_listener() {
    let listener = json(&world(GUARDED), &cart(), ResourceType::Listener, "inbound");
    insta::assert_snapshot!(pretty(&listener));
}

#[test]
fn outbound_listeners() {
    let world = world(SHOP);
    for (name, listener) in [
        ("catch_all", "outbound"),
        ("http", "outbound/10.96.0.10:80"),
        ("unknown", "outbound/[fd00:96::10]:7000"),
        ("tcp", "outbound/10.96.0.10:5432"),
        ("pod", "outbound/10.1.0.3:8081"),
    ] {
        let made = json(&world, &web(), ResourceType::Listener, listener);
        insta::assert_snapshot!(format!("outbound_{name}"), pretty(&made));
    }
}

#[test]
fn clusters() {
    let world = world(SHOP);
    for (name, cluster) in [
        ("service", "outbound|80||cart.shop.svc"),
        ("hashed", "outbound|80||cart-v2.shop.svc"),
        ("pod", "pod|10.1.0.3:8081"),
        ("inbound", "inbound|8080||"),
    ] {
        let made = json(&world, &web(), ResourceType::Cluster, cluster);
        insta::assert_snapshot!(format!("cluster_{name}"), pretty(&made));
    }
}

#[test]
fn endpoints() {
    let world = world(SHOP);
    let name = "outbound|80||cart.shop.svc";
    let made = json(&world, &web(), ResourceType::Endpoints, name);
    insta::assert_snapshot!(pretty(&made));
}

#[test]
fn route_configurations() {
    let world = world(SHOP);
    for (name, viewer, routes) in [
        ("producer", cart(), "outbound|80|cart.shop.svc"),
        ("consumer", web(), "outbound|80|cart.shop.svc"),
        ("grpc", cart(), "outbound|9000|cart.shop.svc"),
        ("default", cart(), "outbound|80|cart-v2.shop.svc"),
    ] {
        let made = json(&world, &viewer, ResourceType::Routes, routes);
        insta::assert_snapshot!(format!("routes_{name}"), pretty(&made));
    }
}

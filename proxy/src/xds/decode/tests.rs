//! Tests of the decoder: what good resources become, what is refused and with which words, and that
//! nothing makes it panic.

mod clusters;
mod defaults;
mod foreign;
mod listeners;
mod mutated;
mod refused;
mod routes;

use std::time::Duration;

use outrigger_proto::type_url;

use super::*;
use crate::{
    config::{
        listener::{ChainKind, HttpManager},
        route::{Action, Forward},
    },
    xds::testing::resource,
};

/// Decodes YAML in which `@NAME` stands for a type URL.
fn parse_yaml(kind: Kind, yaml: &str) -> Result<Parsed, Invalid> {
    parse(kind, &resource(kind, &expanded(yaml)))
}

fn expanded(yaml: &str) -> String {
    let types = [
        ("@HCM", type_url::HTTP_CONNECTION_MANAGER),
        ("@ROUTER", type_url::ROUTER),
        ("@TCP", type_url::TCP_PROXY),
        ("@NETWORK_RBAC", type_url::NETWORK_RBAC),
        ("@RBAC_ROUTE", type_url::HTTP_RBAC_PER_ROUTE),
        ("@RBAC", type_url::HTTP_RBAC),
        ("@FAULT", type_url::FAULT),
        ("@LIMIT", type_url::LOCAL_RATE_LIMIT),
        ("@CORS_POLICY", type_url::CORS_POLICY),
        ("@FILTER_CONFIG", type_url::ROUTE_FILTER_CONFIG),
        ("@TLS_INSPECTOR", type_url::TLS_INSPECTOR),
        ("@HTTP_INSPECTOR", type_url::HTTP_INSPECTOR),
        ("@DOWNSTREAM", type_url::DOWNSTREAM_TLS_CONTEXT),
        ("@UPSTREAM", type_url::UPSTREAM_TLS_CONTEXT),
        ("@HTTP_OPTIONS", type_url::HTTP_PROTOCOL_OPTIONS),
        ("@EWMA", type_url::PEAK_EWMA),
        ("@BREAKER", type_url::BREAKER),
        ("@LEAST", type_url::LEAST_REQUEST),
        ("@ROUND", type_url::ROUND_ROBIN),
        ("@WRR", type_url::WRR_LOCALITY),
        ("@STRANGER", type_url::ROUTER),
        ("@AGGREGATE", type_url::AGGREGATE_CLUSTER),
        ("@OTEL", type_url::OPEN_TELEMETRY),
        ("@STRUCT", type_url::UDPA_TYPED_STRUCT),
    ];
    types.iter().fold(yaml.to_owned(), |text, (name, url)| {
        text.replace(&format!("'{name}'"), &format!("'{url}'"))
    })
}

fn good(kind: Kind, yaml: &str) -> Parsed {
    parse_yaml(kind, yaml).unwrap_or_else(|why| panic!("{why}\n{yaml}"))
}

fn listener(yaml: &str) -> (Arc<Listener>, Vec<String>) {
    let parsed = good(Kind::Listener, yaml);
    match parsed.resource {
        Resource::Listener(listener) => (listener, parsed.ignored),
        other => panic!("{other:?}"),
    }
}

fn cluster(yaml: &str) -> (Arc<Cluster>, Vec<String>) {
    let parsed = good(Kind::Cluster, yaml);
    match parsed.resource {
        Resource::Cluster(cluster, _) => (cluster, parsed.ignored),
        other => panic!("{other:?}"),
    }
}

fn routes(yaml: &str) -> (Arc<RouteConfig>, Vec<String>) {
    let parsed = good(Kind::Route, yaml);
    match parsed.resource {
        Resource::Route(routes) => (routes, parsed.ignored),
        other => panic!("{other:?}"),
    }
}

const ADDRESS: &str = "address: {socket_address: {address: 10.0.0.1, port_value: 80}}";

/// A listener with one chain of these fields.
fn with_chain(chain: &str) -> String {
    format!("{{name: l, {ADDRESS}, filter_chains: [{{{chain}}}]}}")
}

/// A chain that ends in a connection manager with these fields.
fn with_manager(fields: &str) -> String {
    let mut all = vec!["'@type': '@HCM', stat_prefix: s"];
    if !fields.contains("rds:") {
        all.push("rds: {route_config_name: r, config_source: {ads: {}}}");
    }
    if !fields.contains("http_filters") {
        all.push("http_filters: [{name: r, typed_config: {'@type': '@ROUTER'}}]");
    }
    if !fields.is_empty() {
        all.push(fields);
    }
    let config = all.join(", ");
    with_chain(&format!(
        "filters: [{{name: hcm, typed_config: {{{config}}}}}]"
    ))
}

/// A connection manager with this filter before the router.
fn with_filter(filter: &str) -> String {
    with_manager(&format!(
        "http_filters: [{filter}, {{name: r, typed_config: {{'@type': '@ROUTER'}}}}]"
    ))
}

/// A route configuration with one route of these fields.
fn with_route(route: &str) -> String {
    format!("{{name: r, virtual_hosts: [{{name: v, domains: ['*'], routes: [{{{route}}}]}}]}}")
}

/// A route that forwards with these further fields.
fn with_forward(fields: &str) -> String {
    with_route(&format!(
        "match: {{prefix: /}}, route: {{cluster: c, {fields}}}"
    ))
}

/// A cluster with these further fields.
fn with_cluster(fields: &str) -> String {
    format!("{{name: c, type: EDS, eds_cluster_config: {{eds_config: {{ads: {{}}}}}}, {fields}}}")
}

/// A cluster with this TLS context.
fn with_tls(context: &str) -> String {
    let config = format!("{{'@type': '@UPSTREAM', {context}}}");
    with_cluster(&format!(
        "transport_socket: {{name: tls, typed_config: {config}}}"
    ))
}

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn manager(yaml: &str) -> (Arc<HttpManager>, Vec<String>) {
    let (listener, ignored) = listener(yaml);
    match &listener.chains[0].kind {
        ChainKind::Http(manager) => (Arc::clone(manager), ignored),
        ChainKind::Tcp(other) => panic!("{other:?}"),
    }
}

fn forward(yaml: &str) -> Box<Forward> {
    let (routes, _) = routes(yaml);
    match &routes.virtual_hosts[0].routes[0].action {
        Action::Forward(forward) => forward.clone(),
        other => panic!("{other:?}"),
    }
}

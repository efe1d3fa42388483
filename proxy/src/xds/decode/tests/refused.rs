//! What is refused, and with which words: they are what the author of the configuration gets to
//! read. The table is `refused.txt`.

use super::*;

/// The whole resource, and the path at which its fields stand.
fn whole(heading: &str, fields: &str) -> (Kind, String, &'static str) {
    const RULES: &str = "filter_chains[0].filters[0].typed_config.http_filters[0].typed_config\
         .rules.policies[p]";
    const MANAGER: &str = "filter_chains[0].filters[0].typed_config";
    let tcp = "filters: [{name: t, typed_config: {'@type': '@TCP', cluster: c}}]";
    let rules = format!(
        "{{name: f, typed_config: {{'@type': '@RBAC', rules: {{policies: {{p: {{{fields}}}}}}}}}}}"
    );
    let socket = format!(
        "{tcp}, transport_socket: {{name: tls, typed_config: {{'@type': '@DOWNSTREAM', \
         {fields}}}}}"
    );
    match heading {
        "listener" => (Kind::Listener, fields.to_owned(), ""),
        "chain" => (Kind::Listener, with_chain(fields), "filter_chains[0]"),
        "manager" => (Kind::Listener, with_manager(fields), MANAGER),
        "http filter" => (Kind::Listener, with_filter(fields), MANAGER),
        "rules" => (Kind::Listener, with_filter(&rules), RULES),
        "server tls" => (
            Kind::Listener,
            with_chain(&socket),
            "filter_chains[0].transport_socket.typed_config",
        ),
        "routes" => (Kind::Route, fields.to_owned(), ""),
        "route" => (
            Kind::Route,
            with_route(fields),
            "virtual_hosts[0].routes[0]",
        ),
        "forward" => (
            Kind::Route,
            with_forward(fields),
            "virtual_hosts[0].routes[0].route",
        ),
        "whole cluster" => (Kind::Cluster, fields.to_owned(), ""),
        "cluster" => (Kind::Cluster, with_cluster(fields), ""),
        "client tls" => (
            Kind::Cluster,
            with_tls(&format!("common_tls_context: {{{fields}}}")),
            "transport_socket.typed_config.common_tls_context",
        ),
        "endpoints" => (
            Kind::Endpoints,
            format!("{{cluster_name: c, {fields}}}"),
            "",
        ),
        "secret" => (Kind::Secret, fields.to_owned(), ""),
        other => panic!("no heading {other:?}"),
    }
}

#[test]
fn every_entry_of_the_table_is_refused_in_its_words() {
    let mut heading = "";
    let mut fields = None;
    let mut wrong = Vec::new();
    let mut count = 0;
    let lines = include_str!("refused.txt").lines();
    for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            heading = name;
            continue;
        }
        let Some(expected) = line.strip_prefix("    ") else {
            fields = Some(line);
            continue;
        };
        let (kind, yaml, outer) = whole(heading, fields.take().expect("fields before an error"));
        count += 1;
        let text = match parse_yaml(kind, &yaml) {
            Ok(parsed) => format!("taken as {:?}", parsed.resource),
            Err(why) => why.path + ": " + &why.why,
        };
        let inner = text.strip_prefix(outer).unwrap_or(&text);
        let inner = inner
            .strip_prefix('.')
            .unwrap_or(inner)
            .replace('\n', "\\n");
        if inner != expected {
            wrong.push(format!("{yaml}\n  expected {expected}\n       got {inner}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 100, "{count} entries");
}

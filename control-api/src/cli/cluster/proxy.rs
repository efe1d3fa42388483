//! What one proxy runs and knows, asked of itself.

use std::io::Write;

use anyhow::Context as _;
use http::Method;
use serde_json::{Value, json};

use super::Cluster;
use crate::cli::{
    args::{Output, Proxy, ResourceKind},
    show,
};

pub(super) async fn run(
    cluster: &Cluster,
    what: Proxy,
    out: &mut (impl Write + Send),
) -> anyhow::Result<()> {
    match what {
        Proxy::Config {
            pod,
            kind,
            named,
            output,
        } => {
            let pod = cluster.pod(&pod.namespace, &pod.name).await?;
            let dump = cluster.ask_json(&pod, "/config_dump?include_eds").await?;
            let mut all = resources(&dump);
            all.retain(|one| kind.is_none_or(|kind| one.kind == kind));
            all.retain(|one| named.as_ref().is_none_or(|part| one.name.contains(part)));
            config(out, &all, output)
        }
        Proxy::Endpoints {
            pod,
            cluster: wanted,
            output,
        } => {
            let pod = cluster.pod(&pod.namespace, &pod.name).await?;
            let clusters = cluster.ask_json(&pod, "/clusters?format=json").await?;
            endpoints(out, &clusters, wanted.as_deref(), output)
        }
        Proxy::LogLevel { pod, level } => {
            let pod = cluster.pod(&pod.namespace, &pod.name).await?;
            let now = match level {
                None => cluster.ask(&pod, Method::GET, "/logging").await?,
                Some(level) => {
                    let page = format!("/logging?level={}", escaped(&level));
                    cluster.ask(&pod, Method::POST, &page).await?
                }
            };
            Ok(writeln!(out, "{}", now.trim())?)
        }
    }
}

/// As it may stand in a query.
fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~,:=".contains(&byte);
    let each = text.bytes().map(|byte| match byte {
        byte if plain(byte) => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    });
    each.collect()
}

/// A resource in a dump (`envoy.admin.v3.ConfigDump`).
struct Resource<'d> {
    kind: ResourceKind,
    word: &'static str,
    name: &'d str,
    version: &'d str,
    body: &'d Value,
}

/// Field of an entry that holds the resource; what it is; field that holds its name.
const FIELDS: [(&str, ResourceKind, &str, &str); 4] = [
    ("listener", ResourceKind::Listener, "listener", "name"),
    ("route_config", ResourceKind::Route, "route", "name"),
    ("cluster", ResourceKind::Cluster, "cluster", "name"),
    (
        "endpoint_config",
        ResourceKind::Endpoint,
        "endpoint",
        "cluster_name",
    ),
];

fn resources(dump: &Value) -> Vec<Resource<'_>> {
    let configs = dump.get("configs").and_then(Value::as_array);
    let parts = configs.into_iter().flatten().filter_map(Value::as_object);
    let lists = parts
        .flat_map(|part| part.values())
        .filter_map(Value::as_array);
    let mut all: Vec<_> = lists.flatten().filter_map(resource).collect();
    let place = |one: &Resource<'_>| FIELDS.iter().position(|field| field.1 == one.kind);
    all.sort_by(|a, b| (place(a), a.name).cmp(&(place(b), b.name)));
    all
}

fn resource(entry: &Value) -> Option<Resource<'_>> {
    let state = entry.get("active_state").unwrap_or(entry);
    FIELDS.iter().find_map(|(field, kind, word, name)| {
        let body = state.get(field)?;
        let version = state.get("version_info").and_then(Value::as_str);
        Some(Resource {
            kind: *kind,
            word,
            name: body.get(name).and_then(Value::as_str).unwrap_or_default(),
            version: version.unwrap_or_default(),
            body,
        })
    })
}

fn config(out: &mut impl Write, all: &[Resource<'_>], output: Output) -> anyhow::Result<()> {
    if matches!(output, Output::Json | Output::Yaml) {
        let each = all.iter().map(|one| {
            json!({"type": one.word, "name": one.name, "version": one.version,
                "resource": one.body})
        });
        return show::data(out, &[each.collect()], output);
    }
    let rows = all.iter().map(|one| {
        [one.word, one.name, one.version]
            .map(str::to_owned)
            .to_vec()
    });
    show::table(out, &["TYPE", "NAME", "VERSION"], &rows.collect::<Vec<_>>())
}

fn endpoints(
    out: &mut impl Write,
    clusters: &Value,
    wanted: Option<&str>,
    output: Output,
) -> anyhow::Result<()> {
    let all = clusters.get("cluster_statuses").and_then(Value::as_array);
    let all = all.context("the proxy's answer lists no clusters")?;
    let named = |cluster: &&Value| {
        let name = cluster.get("name").and_then(Value::as_str);
        wanted.is_none_or(|wanted| name.is_some_and(|name| name.contains(wanted)))
    };
    let all: Vec<_> = all.iter().filter(named).collect();
    if matches!(output, Output::Json | Output::Yaml) {
        let all: Vec<_> = all.into_iter().cloned().collect();
        return show::data(out, &[Value::Array(all)], output);
    }
    let mut rows = Vec::new();
    for cluster in all {
        let name = cluster
            .get("name")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let hosts = cluster.get("host_statuses").and_then(Value::as_array);
        for host in hosts.into_iter().flatten() {
            let mut row = vec![name.to_owned()];
            row.extend(endpoint(host));
            rows.push(row);
        }
    }
    let header = [
        "CLUSTER", "ENDPOINT", "STATE", "WEIGHT", "ACTIVE", "OK", "FAILED", "LATENCY",
    ];
    show::table(out, &header, &rows)
}

/// The columns after the cluster's name.
fn endpoint(host: &Value) -> [String; 7] {
    let at = |path: &str| host.pointer(path);
    let shown = |path: &str| match at(path) {
        None => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    let address = shown("/address/socket_address/address");
    let port = shown("/address/socket_address/port_value");
    let address = match address.contains(':') {
        true => format!("[{address}]:{port}"),
        false => format!("{address}:{port}"),
    };
    let stat = |name: &str| {
        let stats = at("/stats").and_then(Value::as_array).into_iter().flatten();
        let mut stats = stats.filter(|stat| stat.get("name") == Some(&name.into()));
        let value = stats.next().and_then(|stat| stat.get("value"));
        value.and_then(Value::as_str).unwrap_or("0").to_owned()
    };
    let is = |path: &str| at(path) == Some(&Value::Bool(true));
    let state = if is("/health_status/failed_outlier_check") {
        "ejected".to_owned()
    } else if is("/health_status/failed_active_health_check") {
        "check failed".to_owned()
    } else {
        shown("/health_status/eds_health_status").to_ascii_lowercase()
    };
    let latency = at("/latency_ewma_ms")
        .and_then(Value::as_f64)
        .unwrap_or(0.0);
    [
        address,
        state,
        shown("/weight"),
        stat("rq_active"),
        stat("rq_success"),
        stat("rq_error"),
        format!("{latency:.1}ms"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_whole_when_it_arrives() {
        assert_eq!(escaped("info,a::b=trace"), "info,a::b=trace");
        assert_eq!(escaped("a[b]&c=%d +"), "a%5Bb%5D%26c=%25d%20%2B");
    }

    #[test]
    fn a_dump_is_a_list_of_resources() {
        let dump = json!({"configs": [
            {"@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump",
             "static_clusters": [{"cluster": {"name": "own"}}],
             "dynamic_active_clusters": [{"version_info": "7", "cluster": {"name": "a"}}]},
            {"dynamic_listeners": [
                {"name": "in", "active_state": {"version_info": "8", "listener": {"name": "in"}}}]},
            {"dynamic_endpoint_configs": [
                {"version_info": "9", "endpoint_config": {"cluster_name": "a"}}]},
            {"dynamic_route_configs": [{"version_info": "1", "route_config": {"name": "r"}}]},
        ]});
        let all = resources(&dump);
        let all: Vec<_> = all.iter().map(|r| (r.word, r.name, r.version)).collect();
        let want = [
            ("listener", "in", "8"),
            ("route", "r", "1"),
            ("cluster", "a", "7"),
            ("cluster", "own", ""),
            ("endpoint", "a", "9"),
        ];
        assert_eq!(all, want);
    }
}

//! Probes and hooks that the kubelet makes over the network are pointed at the proxy, which asks the
//! application in its place: where mutual TLS is demanded, the kubelet would be refused (KU-10).

use serde_json::{Map, Value, json};

use super::pod::HEALTH_PORT;

/// Where a container has what the kubelet asks, and what it is called in the proxy's path.
const PLACES: [(&str, &str); 5] = [
    ("/startupProbe", "startup"),
    ("/readinessProbe", "readiness"),
    ("/livenessProbe", "liveness"),
    ("/lifecycle/postStart", "postStart"),
    ("/lifecycle/preStop", "preStop"),
];
/// A hook has no time-out of its own.
const HOOK_SECONDS: u64 = 30;

/// Points what can be at the proxy; returns what it has to ask the application then, by path.
pub(super) fn redirect(spec: &mut Value) -> Map<String, Value> {
    let mut probes = Map::new();
    for list in ["initContainers", "containers"] {
        let containers = spec.get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let name = container.get("name").and_then(Value::as_str);
            let name = name.unwrap_or_default().to_owned();
            let ports = container.get("ports").cloned().unwrap_or_default();
            for (place, word) in PLACES {
                let Some(probe) = container.pointer_mut(place).and_then(Value::as_object_mut)
                else {
                    continue;
                };
                let hook = place.starts_with("/lifecycle");
                if let Some(question) = question(probe, &ports, hook) {
                    let path = format!("{name}/{word}");
                    let there = json!({"path": format!("/probe/{path}"), "port": HEALTH_PORT});
                    probe.insert("httpGet".to_owned(), there);
                    probes.insert(path, question);
                }
            }
        }
    }
    probes
}

/// Takes the question out of a probe, as the proxy wants it; `None` if it stays: commands are run in
/// the container, and what asks another host is not ours.
fn question(probe: &mut Map<String, Value>, ports: &Value, hook: bool) -> Option<Value> {
    let timeout = probe.get("timeoutSeconds").and_then(Value::as_u64);
    let timeout = timeout.unwrap_or(if hook { HOOK_SECONDS } else { 1 });
    let kind = ["httpGet", "tcpSocket", "grpc"]
        .into_iter()
        .find(|kind| probe.get(*kind).is_some_and(Value::is_object))?;
    let asked = probe.get(kind)?;
    let text = |key: &str| asked.get(key).and_then(Value::as_str);
    if text("host").is_some_and(|host| !host.is_empty()) {
        return None;
    }
    let port = port(asked.get("port")?, ports)?;
    let question = match kind {
        "httpGet" => {
            let headers = asked.get("httpHeaders").and_then(Value::as_array);
            let headers = headers.into_iter().flatten().filter_map(|header| {
                Some(json!([
                    header.get("name")?.as_str()?,
                    header.get("value")?.as_str()?
                ]))
            });
            json!({"timeout": timeout, "http": {
                "port": port,
                "tls": text("scheme").is_some_and(|s| s.eq_ignore_ascii_case("https")),
                "path": text("path").unwrap_or("/"),
                "headers": headers.collect::<Vec<_>>(),
            }})
        }
        "tcpSocket" => json!({"timeout": timeout, "tcp": {"port": port}}),
        _ => json!({"timeout": timeout, "grpc": {
            "port": port,
            "service": text("service").unwrap_or_default(),
        }}),
    };
    probe.remove(kind);
    Some(question)
}

/// A number, or one of the container's ports by its name.
fn port(port: &Value, ports: &Value) -> Option<u64> {
    if let Some(number) = port.as_u64() {
        return Some(number);
    }
    let name = port.as_str()?;
    let mut all = ports.as_array()?.iter();
    let named = all.find(|one| one.get("name").and_then(Value::as_str) == Some(name))?;
    named.get("containerPort")?.as_u64()
}

//! The parts that a pod gets.

use serde_json::{Map, Value, json};

use super::{Annotations, Settings, probe};
use crate::kube::{AUDIENCE, DOMAIN, MESH_LABEL, MESH_SIDECAR};

/// The proxy's container.
pub const PROXY: &str = "outrigger-proxy";
/// The container that redirects.
const INIT: &str = "outrigger-init";
/// Who the proxy runs as; traffic of this user is not redirected.
const PROXY_UID: u64 = 1337;
pub(super) const HEALTH_PORT: u16 = 15021;
const TELEMETRY_PORT: u16 = 15020;
/// The token's volume, and the proxy's own.
const IDENTITY: &str = "outrigger-identity";
const STATE: &str = "outrigger-state";
const IDENTITY_DIR: &str = "/var/run/outrigger";
const STATE_DIR: &str = "/var/lib/outrigger";
/// A token lives this long; the kubelet writes a new one into the volume before that.
const TOKEN_SECONDS: u32 = 3_600;
/// What a pod has to end when it does not say.
const GRACE_SECONDS: u64 = 30;
/// Connections that the application left open are given this long; the application is gone then.
const DRAIN_TIMEOUT: &str = "5s";

fn containers<'p>(pod: &'p Value, list: &str) -> impl Iterator<Item = &'p Value> + use<'p> {
    let found = pod.pointer(&format!("/spec/{list}"));
    found.and_then(Value::as_array).into_iter().flatten()
}

fn all(pod: &Value) -> impl Iterator<Item = &Value> {
    containers(pod, "initContainers").chain(containers(pod, "containers"))
}

fn name(container: &Value) -> &str {
    container
        .get("name")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// Whether the proxy is there already.
pub(super) fn has_proxy(pod: &Value) -> bool {
    all(pod).any(|container| name(container) == PROXY)
}

/// Why a pod cannot have the proxy.
pub(super) fn obstacle(pod: &Value) -> Option<String> {
    let out = format!("annotate it with {DOMAIN}/inject: \"false\" to run it outside the mesh");
    if pod.pointer("/spec/hostNetwork") == Some(&Value::Bool(true)) {
        return Some(format!(
            "a pod in the host's network cannot be in the mesh: its rules would redirect the \
             whole node's traffic; {out}"
        ));
    }
    let uid = |value: &Value| {
        let user = value.pointer("/securityContext/runAsUser");
        user.and_then(Value::as_u64) == Some(PROXY_UID)
    };
    let spec = pod.get("spec")?;
    if uid(spec) {
        return Some(format!(
            "it runs as user {PROXY_UID}, which is the proxy's: its traffic would pass by the \
             mesh; choose another user, or {out}"
        ));
    }
    let clash = all(pod).find(|container| uid(container))?;
    Some(format!(
        "container {:?} runs as user {PROXY_UID}, which is the proxy's: its traffic would pass \
         by the mesh; choose another user, or {out}",
        name(clash)
    ))
}

/// The member `key`, made as `empty` if it is not there.
fn slot<'v>(value: &'v mut Value, key: &str, empty: Value) -> &'v mut Value {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => {
            let slot = map.entry(key).or_insert(Value::Null);
            if slot.is_null() {
                *slot = empty;
            }
            slot
        }
        other => other,
    }
}

fn object<'v>(value: &'v mut Value, key: &str) -> &'v mut Value {
    slot(value, key, json!({}))
}

fn list<'v>(value: &'v mut Value, key: &str) -> Option<&'v mut Vec<Value>> {
    slot(value, key, json!([])).as_array_mut()
}

/// Adds everything to `pod`.
pub(super) fn add(pod: &mut Value, by: &Annotations, settings: &Settings) {
    let labels = labels_of(pod);
    let meta = object(pod, "metadata");
    *object(object(meta, "labels"), MESH_LABEL) = MESH_SIDECAR.into();
    let bundle = settings.trust_bundle.as_str();
    *object(
        object(meta, "annotations"),
        &format!("{DOMAIN}/trust-bundle"),
    ) = bundle.into();
    let workload = workload(pod);
    let spec = object(pod, "spec");
    let grace = spec
        .get("terminationGracePeriodSeconds")
        .and_then(Value::as_u64);
    let probes = probe::redirect(spec);
    if let Some(containers) = list(spec, "containers") {
        for container in containers {
            wait_before_end(container, by, grace.unwrap_or(GRACE_SECONDS));
        }
    }
    if let Some(volumes) = list(spec, "volumes") {
        volumes.extend(self::volumes());
    }
    let proxy = proxy(&workload, &labels, &probes, by, settings);
    if let Some(first) = list(spec, "initContainers") {
        first.splice(0..0, [init(by, settings), proxy]);
    }
}

/// `key=value,...` as the proxy takes them; neither may hold a comma (Kubernetes' label syntax).
fn labels_of(pod: &Value) -> String {
    let labels = pod.pointer("/metadata/labels").and_then(Value::as_object);
    let pairs = labels.into_iter().flatten();
    let pairs = pairs.filter_map(|(key, value)| Some(format!("{key}={}", value.as_str()?)));
    pairs.collect::<Vec<_>>().join(",")
}

/// As [`crate::kube::convert::PodFacts`] has it; before a pod has a name, that of its owner.
fn workload(pod: &Value) -> String {
    let text = |path: &str| pod.pointer(path).and_then(Value::as_str);
    let hash = text("/metadata/labels/pod-template-hash").map(|hash| format!("-{hash}"));
    let owner = text("/metadata/ownerReferences/0/name");
    let generated = text("/metadata/generateName").map(|name| name.trim_end_matches('-'));
    let name = owner
        .or_else(|| text("/metadata/name"))
        .or(generated)
        .unwrap_or("unknown");
    let stem = hash.and_then(|hash| name.strip_suffix(&hash));
    stem.unwrap_or(name).to_owned()
}

/// A container whose author says nothing waits before it is told to end, while its endpoints are
/// withdrawn from callers (KU-01).
fn wait_before_end(container: &mut Value, by: &Annotations, grace: u64) {
    // The API server refuses a wait that is longer than the grace period.
    let seconds = u64::from(by.drain_seconds).min(grace.saturating_sub(1));
    if seconds == 0 || container.pointer("/lifecycle/preStop").is_some() {
        return;
    }
    *object(object(container, "lifecycle"), "preStop") = json!({"sleep": {"seconds": seconds}});
}

fn volumes() -> [Value; 2] {
    let token = json!({"serviceAccountToken": {
        "path": "token", "audience": AUDIENCE, "expirationSeconds": TOKEN_SECONDS,
    }});
    let bundle = json!({"downwardAPI": {"items": [{
        "path": "root.pem",
        "fieldRef": {"fieldPath": format!("metadata.annotations['{DOMAIN}/trust-bundle']")},
    }]}});
    [
        json!({"name": IDENTITY, "projected": {"sources": [token, bundle]}}),
        // The key is in there: never on a disk.
        json!({"name": STATE, "emptyDir": {"medium": "Memory", "sizeLimit": "32Mi"}}),
    ]
}

fn image<'a>(by: &'a Annotations, settings: &'a Settings) -> &'a str {
    by.image.as_deref().unwrap_or(&settings.image)
}

fn init(by: &Annotations, settings: &Settings) -> Value {
    let mut args = vec!["init".to_owned()];
    let flags = [
        ("exclude-inbound-ports", &by.exclude_inbound_ports),
        ("exclude-outbound-ports", &by.exclude_outbound_ports),
        ("exclude-outbound-cidrs", &by.exclude_outbound_cidrs),
    ];
    for (flag, value) in flags {
        if let Some(value) = value {
            args.extend([format!("--{flag}"), value.clone()]);
        }
    }
    json!({
        "name": INIT,
        "image": image(by, settings),
        "imagePullPolicy": settings.pull_policy,
        "args": args,
        "resources": {"requests": by.requests, "limits": by.limits},
        "securityContext": {
            "runAsUser": 0,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]},
        },
    })
}

fn proxy(
    workload: &str,
    labels: &str,
    probes: &Map<String, Value>,
    by: &Annotations,
    settings: &Settings,
) -> Value {
    let field = |path: &str| json!({"fieldRef": {"fieldPath": path}});
    let mut env = vec![
        json!({"name": "OUTRIGGER_WORKLOAD", "value": workload}),
        json!({"name": "OUTRIGGER_NAMESPACE", "valueFrom": field("metadata.namespace")}),
        json!({"name": "OUTRIGGER_SERVICE_ACCOUNT", "valueFrom": field("spec.serviceAccountName")}),
        json!({"name": "OUTRIGGER_POD_IP", "valueFrom": field("status.podIPs")}),
        json!({"name": "OUTRIGGER_ZONE",
            "valueFrom": field("metadata.labels['topology.kubernetes.io/zone']")}),
        json!({"name": "OUTRIGGER_LABELS", "value": labels}),
        json!({"name": "OUTRIGGER_TRUST_DOMAIN", "value": settings.trust_domain}),
        json!({"name": "OUTRIGGER_CONTROL_PLANE", "value": settings.control_plane}),
        json!({"name": "OUTRIGGER_TRUST_BUNDLE", "value": format!("{IDENTITY_DIR}/root.pem")}),
        json!({"name": "OUTRIGGER_TOKEN_FILE", "value": format!("{IDENTITY_DIR}/token")}),
        json!({"name": "OUTRIGGER_STATE_DIR", "value": STATE_DIR}),
        // It is told to end after the application has.
        json!({"name": "OUTRIGGER_DRAIN_DELAY", "value": "0s"}),
        json!({"name": "OUTRIGGER_DRAIN_TIMEOUT", "value": DRAIN_TIMEOUT}),
    ];
    if !probes.is_empty() {
        let text = Value::from(probes.clone()).to_string();
        env.push(json!({"name": "OUTRIGGER_PROBES", "value": text}));
    }
    let otlp = &settings.otlp_endpoint;
    let optional = [
        ("OUTRIGGER_LOG_LEVEL", by.log_level.as_ref()),
        ("OUTRIGGER_ACCESS_LOG", by.access_log.as_ref()),
        (
            "OUTRIGGER_OTLP_ENDPOINT",
            (!otlp.is_empty()).then_some(otlp),
        ),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            env.push(json!({"name": name, "value": value}));
        }
    }
    json!({
        "name": PROXY,
        "image": image(by, settings),
        "imagePullPolicy": settings.pull_policy,
        "args": ["run"],
        "restartPolicy": "Always",
        "env": env,
        "ports": [{"name": "mesh-metrics", "containerPort": TELEMETRY_PORT}],
        "resources": {"requests": by.requests, "limits": by.limits},
        // Nothing of the application starts before it can speak.
        "startupProbe": {
            "httpGet": {"path": "/healthz/ready", "port": HEALTH_PORT},
            "periodSeconds": 1,
            "failureThreshold": 600,
        },
        "securityContext": {
            "runAsUser": PROXY_UID,
            "runAsGroup": PROXY_UID,
            "runAsNonRoot": true,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [
            {"name": IDENTITY, "mountPath": IDENTITY_DIR, "readOnly": true},
            {"name": STATE, "mountPath": STATE_DIR},
        ],
    })
}

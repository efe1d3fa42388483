//! Pages about the process as a whole: readiness, version, listeners, memory.

use std::{fs, net::SocketAddr, sync::atomic::Ordering::Relaxed};

use http::StatusCode;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::{
    Admin,
    call::{Answer, Call},
};
use crate::{drain::Phase, xds::NodeInfo};

impl Admin {
    /// Envoy's word for where the proxy is in its life (`ServerInfo.State`), and why it is not
    /// ready.
    ///
    /// From SIGTERM on it is not: that tells load balancers to look elsewhere while everything is
    /// still served (KU-01).
    fn life(&self) -> (&'static str, Vec<&'static str>) {
        if self.shared.drain.phase() > Phase::Serving {
            return ("DRAINING", vec!["an end to come"]);
        }
        let missing = self.readiness.missing();
        if missing.is_empty() {
            ("LIVE", missing)
        } else {
            ("INITIALIZING", missing)
        }
    }

    /// What stands in the way at this moment, as far as it is known.
    fn troubles(&self) -> Vec<String> {
        let certificate = self.shared.identity.trouble();
        let certificate = certificate.map(|why| format!("certificate: {why}"));
        let stream = self.stream.as_ref().and_then(|stats| stats.trouble());
        let stream = stream.map(|why| format!("control plane: {why}"));
        certificate.into_iter().chain(stream).collect()
    }
}

/// Whether traffic may come.
pub(super) fn ready(admin: &Admin, _: &Call<'_>) -> Answer {
    let (state, missing) = admin.life();
    if missing.is_empty() {
        return Answer::text(format!("{state}\n"));
    }
    let mut body = format!("{state}: waiting for {}\n", missing.join(", "));
    for trouble in admin.troubles() {
        body.push_str(&format!("{trouble}\n"));
    }
    Answer::new(StatusCode::SERVICE_UNAVAILABLE, Answer::TEXT, body)
}

/// Whether the process works: it does if this is answered.
pub(super) fn live(_: &Admin, _: &Call<'_>) -> Answer {
    Answer::text("OK\n")
}

/// `envoy.admin.v3.ServerInfo`.
pub(super) fn server_info(admin: &Admin, _: &Call<'_>) -> Answer {
    let (state, missing) = admin.life();
    let uptime = Instant::now().duration_since(admin.started).as_secs();
    let world = admin.shared.world.load();
    Answer::json(&json!({
        "version": concat!("outrigger/", env!("CARGO_PKG_VERSION")),
        "state": state,
        "waiting_for": missing,
        "control_plane": admin.stream.as_ref().map(|stats| json!({
            "connected": stats.connected.load(Relaxed),
            "trouble": stats.trouble(),
            "configuration_from_disk": stats.from_disk.load(Relaxed),
        })),
        "certificate_trouble": admin.shared.identity.trouble(),
        "uptime_current_epoch": format!("{uptime}s"),
        "uptime_all_epochs": format!("{uptime}s"),
        "config_generation": world.live.snapshot.generation,
        "connections": admin.shared.drain.connections(),
        "node": node(&admin.node),
    }))
}

/// `envoy.config.core.v3.Node`, as the control plane is told it.
pub(super) fn node(info: &NodeInfo) -> Value {
    let addresses: Vec<_> = info.addresses.iter().map(ToString::to_string).collect();
    let mut metadata: Map<String, Value> = [
        ("NAMESPACE", json!(info.namespace)),
        ("SERVICE_ACCOUNT", json!(info.service_account)),
        ("WORKLOAD_NAME", json!(info.workload)),
        ("LABELS", json!(info.labels)),
        ("INSTANCE_IPS", json!(addresses.join(","))),
        ("OUTRIGGER_VERSION", json!(env!("CARGO_PKG_VERSION"))),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect();
    for (key, value) in &info.extra {
        metadata.insert(key.clone(), json!(value));
    }
    json!({
        "id": info.id,
        "metadata": metadata,
        "locality": { "region": info.region, "zone": info.zone },
    })
}

/// `envoy.config.core.v3.Address`.
pub(super) fn socket_address(address: SocketAddr) -> Value {
    json!({ "socket_address": {
        "address": address.ip().to_string(),
        "port_value": address.port(),
    } })
}

/// Listeners in force.
pub(super) fn listeners(admin: &Admin, call: &Call<'_>) -> Answer {
    let world = admin.shared.world.load();
    let snapshot = &world.live.snapshot;
    let named = snapshot.listeners.values();
    let mut all: Vec<_> = named.chain(snapshot.by_destination.values()).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    // Many a listener is there under its name and under its destination.
    all.dedup_by(|a, b| a.name == b.name);
    match call.get("format") {
        None | Some("text") => {
            let lines = all.iter();
            let lines = lines.map(|one| format!("{}::{}\n", one.name, one.address));
            Answer::text(lines.collect::<String>())
        }
        Some("json") => {
            let each = all.into_iter().map(|one| {
                json!({
                    "name": one.name.as_str(),
                    "local_address": socket_address(one.address),
                    "direction": one.direction.as_str(),
                    "bind": one.bind,
                })
            });
            Answer::json(&json!({ "listener_statuses": each.collect::<Vec<_>>() }))
        }
        Some(other) => Answer::refused(&format!("format: {other:?} is neither text nor json")),
    }
}

/// What the kernel has given to this process, in bytes.
pub(super) fn memory(_: &Admin, _: &Call<'_>) -> Answer {
    let rollup = fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let fields = [
        ("resident", &rollup, "Rss:"),
        ("proportional", &rollup, "Pss:"),
        ("anonymous", &rollup, "Anonymous:"),
        ("swapped", &rollup, "Swap:"),
        ("resident_peak", &status, "VmHWM:"),
        ("virtual", &status, "VmSize:"),
    ];
    let known = fields.into_iter().filter_map(|(name, text, key)| {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        let kib: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
        Some((name.to_owned(), json!(kib * 1024)))
    });
    Answer::json(&Value::Object(known.collect()))
}

//! Following a revision to the proxies.

use std::time::Duration;

use outrigger_proto::{json::any_to_json_redacted, outrigger::control::v1 as pb};
use serde_json::{Map, Value, json};
use tokio::time::{Instant, timeout_at};

use super::convert::proxy;
use crate::xds::{Proxies, ProxyEntry, Published, View as _, ViewOf};

/// Waits until every connected proxy has settled `revision`, or until the time is up. Proxies that
/// connect later count too; proxies that leave do not.
pub(super) async fn wait(
    proxies: &Proxies,
    revision: u64,
    patience: Duration,
) -> pb::WaitRevisionResponse {
    let deadline = Instant::now() + patience;
    let mut changed = proxies.watch();
    loop {
        changed.borrow_and_update();
        let all = proxies.all();
        let open = |entry: &&ProxyEntry| entry.settled < revision;
        if !all.iter().any(|entry| open(&entry)) {
            return answer(&all, revision);
        }
        match timeout_at(deadline, changed.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return answer(&all, revision),
        }
    }
}

fn answer(all: &[ProxyEntry], revision: u64) -> pb::WaitRevisionResponse {
    let (settled, open): (Vec<_>, Vec<_>) = all.iter().partition(|entry| entry.settled >= revision);
    let (rejecting, good): (Vec<_>, Vec<_>) =
        settled.into_iter().partition(|entry| entry.is_rejecting());
    pb::WaitRevisionResponse {
        proxies: count(all.len()),
        acked: count(good.len()),
        rejected: rejecting.into_iter().map(proxy).collect(),
        pending: open.into_iter().map(proxy).collect(),
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// What a proxy has, as it is now: `{<type URL>: {<name>: {version, resource}}}`.
pub(super) fn dump(entry: &ProxyEntry, published: &Published) -> Value {
    let view = ViewOf {
        published,
        viewer: &entry.node.viewer,
    };
    let mut types = Map::new();
    for (kind, name, version) in &entry.held {
        let names = types.entry(kind.url()).or_insert_with(|| json!({}));
        let now = view.get(*kind, name);
        let resource = now.map(|now| any_to_json_redacted(&now.resource));
        if let Some(names) = names.as_object_mut() {
            names.insert(
                name.clone(),
                json!({"version": version, "resource": resource}),
            );
        }
    }
    Value::Object(types)
}

/// Why there is no such proxy, with those that there are.
pub(super) fn unknown(wanted: &str, all: &[ProxyEntry]) -> String {
    /// Names that fit on a screen.
    const SHOWN: usize = 10;
    let mut names: Vec<_> = all.iter().map(|entry| entry.node.name()).collect();
    names.sort();
    names.dedup();
    let more = if names.len() > SHOWN { ", ..." } else { "" };
    names.truncate(SHOWN);
    match names.as_slice() {
        [] => format!("no proxy {wanted:?}: none is connected"),
        names => format!(
            "no proxy {wanted:?} is connected; there are {}{more}",
            names.join(", ")
        ),
    }
}

//! What became of a route or policy, written into its status for those who wrote it.
//!
//! Every replica of the control plane comes to the same verdict of the same objects, and writes only
//! what is not there yet: nobody has to be chosen to write. Conditions of other controllers are left
//! as they are.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ::kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value, json};
use tokio::{sync::watch, time::sleep};

use super::{
    cluster::{Cluster, Policy},
    convert::is_service,
    watch::served,
};
use crate::{
    clock::Clock,
    model::{Invalid, Key, Kind, Objects, Spec, dangling},
};

/// How the Gateway API tells our entries from others'.
pub const CONTROLLER: &str = "outrigger.dev/mesh";
/// After a failure of the API server.
const TRY_AGAIN: Duration = Duration::from_secs(2);
/// What a condition may say (KEP-1623).
const MAX_MESSAGE: usize = 32_768;

/// Statuses that are not yet what they should be, with the version of the object that they are of.
pub type Wanted = BTreeMap<Key, Value>;

/// A condition, but for its times.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Condition {
    kind: &'static str,
    good: bool,
    reason: &'static str,
    message: String,
}

/// What all statuses should be and are not.
#[must_use]
pub fn wanted(cluster: &Cluster, objects: &Objects, clock: &Clock) -> Wanted {
    let now = now(clock);
    let all = cluster.policies().filter_map(|(key, policy)| {
        let denied = cluster.permitted(policy).1;
        let status = status((key, policy), &denied, objects, &now)?;
        let mut patch = json!({"status": status});
        // Somebody else's change in between is not undone: the API server refuses then.
        if let Some(version) = policy.document.pointer("/metadata/resourceVersion") {
            merge(&mut patch, "metadata", json!({"resourceVersion": version}));
        }
        Some((key.clone(), patch))
    });
    all.collect()
}

fn now(clock: &Clock) -> String {
    let seconds = i64::try_from(clock.unix()).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds)
        .unwrap_or(Timestamp::UNIX_EPOCH)
        .to_string()
}

fn merge(object: &mut Value, key: &str, value: Value) {
    if let Some(map) = object.as_object_mut() {
        map.insert(key.to_owned(), value);
    }
}

pub(super) fn is_route(kind: Kind) -> bool {
    let versions = kind.api_versions().first();
    versions.is_some_and(|version| version.starts_with("gateway."))
}

/// The status that `policy` should have; `None` if it has it, or is not ours to judge.
fn status(
    (key, policy): (&Key, &Policy),
    denied: &[Invalid],
    objects: &Objects,
    now: &str,
) -> Option<Value> {
    let document = &policy.document;
    let generation = document.pointer("/metadata/generation").cloned();
    let generation = generation.unwrap_or_default();
    let gaps = match &policy.object {
        Some(object) if policy.faults.is_empty() => dangling(objects, object),
        _ => Vec::new(),
    };
    let (missing, gaps): (Vec<_>, Vec<_>) = gaps.into_iter().partition(is_of_target);
    let unresolved = Unresolved {
        denied: if policy.faults.is_empty() {
            denied
        } else {
            &[]
        },
        gaps: &gaps,
    };
    if !is_route(key.kind) {
        let old = document.pointer("/status/conditions");
        let conditions = verdict(&policy.faults, missing.first(), &unresolved);
        let new = dated(&conditions, old, &generation, now);
        return (old != Some(&new)).then(|| json!({"conditions": new}));
    }
    let old = document
        .pointer("/status/parents")
        .and_then(Value::as_array);
    let old: &[Value] = old.map_or(&[], Vec::as_slice);
    let ours = |entry: &Value| entry.get("controllerName") == Some(&CONTROLLER.into());
    let mut new: Vec<Value> = old.iter().filter(|entry| !ours(entry)).cloned().collect();
    let parents = document
        .pointer("/spec/parentRefs")
        .and_then(Value::as_array);
    let parents = parents.into_iter().flatten().filter(|p| is_service(p));
    for (i, parent) in parents.enumerate() {
        let path = format!("spec.parentRefs[{i}]");
        let missing = missing.iter().find(|gap| gap.path == path);
        let conditions = verdict(&policy.faults, missing, &unresolved);
        let mut mine = old.iter().filter(|entry| ours(entry));
        let known = mine.find(|entry| entry.get("parentRef") == Some(parent));
        let known = known.and_then(|entry| entry.get("conditions"));
        new.push(json!({
            "parentRef": parent,
            "controllerName": CONTROLLER,
            "conditions": dated(&conditions, known, &generation, now),
        }));
    }
    (new.as_slice() != old).then(|| json!({"parents": new}))
}

fn is_of_target(gap: &Invalid) -> bool {
    gap.path.starts_with("spec.parentRefs") || gap.path.starts_with("spec.targetRefs")
}

/// References of an object that are not followed.
struct Unresolved<'a> {
    /// It may not refer to these.
    denied: &'a [Invalid],
    /// These are not there.
    gaps: &'a [Invalid],
}

/// The conditions of an object with these faults, whose target or parent is perhaps not there.
fn verdict(
    faults: &[Invalid],
    missing: Option<&Invalid>,
    unresolved: &Unresolved<'_>,
) -> [Condition; 2] {
    let told = |all: &[Invalid]| {
        let lines = all.iter().map(|one| format!("{}: {}", one.path, one.why));
        let mut text = lines.collect::<Vec<_>>().join("; ");
        while text.len() > MAX_MESSAGE {
            text.pop();
        }
        text
    };
    let accepted = match (faults, missing) {
        ([], None) => (
            "Accepted",
            true,
            "Accepted",
            "The mesh has taken it".to_owned(),
        ),
        ([], Some(gap)) => {
            let message = format!("{}: {}", gap.path, gap.why);
            ("Accepted", false, "NoMatchingParent", message)
        }
        (faults, _) => ("Accepted", false, "UnsupportedValue", told(faults)),
    };
    let resolved = match (unresolved.denied, unresolved.gaps) {
        ([], []) => (
            "ResolvedRefs",
            true,
            "ResolvedRefs",
            "All references lead somewhere".to_owned(),
        ),
        ([], gaps) => ("ResolvedRefs", false, "BackendNotFound", told(gaps)),
        (denied, _) => ("ResolvedRefs", false, "RefNotPermitted", told(denied)),
    };
    [accepted, resolved].map(|(kind, good, reason, message)| Condition {
        kind,
        good,
        reason,
        message,
    })
}

/// The conditions as they are written; the time of one that stays as it was stays too.
fn dated(new: &[Condition], old: Option<&Value>, generation: &Value, now: &str) -> Value {
    let old = old.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let all = new.iter().map(|condition| {
        let status = if condition.good { "True" } else { "False" };
        let known = old.iter().find(|known| {
            known.get("type") == Some(&condition.kind.into())
                && known.get("status") == Some(&status.into())
        });
        let since = known.and_then(|known| known.get("lastTransitionTime"));
        let since = since.cloned().unwrap_or_else(|| now.into());
        let mut map = Map::new();
        map.insert("type".into(), condition.kind.into());
        map.insert("status".into(), status.into());
        map.insert("reason".into(), condition.reason.into());
        map.insert("message".into(), condition.message.clone().into());
        map.insert("observedGeneration".into(), generation.clone());
        map.insert("lastTransitionTime".into(), since);
        Value::Object(map)
    });
    all.collect::<Vec<_>>().into()
}

/// Writes what is wanted, for as long as it runs. Only the newest counts: what was wanted before is
/// either written or no longer right.
pub async fn write(client: Client, mut wanted: watch::Receiver<Arc<Wanted>>) {
    let mut kinds: BTreeMap<Kind, ApiResource> = BTreeMap::new();
    while wanted.changed().await.is_ok() {
        let all = Arc::clone(&wanted.borrow_and_update());
        for (key, patch) in all.iter() {
            if wanted.has_changed().unwrap_or(false) {
                break;
            }
            match one(&client, &mut kinds, key, patch).await {
                Ok(()) => tracing::debug!(object = %key, "status written"),
                // It is gone, or newer than we know: we shall be told.
                Err(::kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                Err(error) => {
                    tracing::warn!(object = %key, %error, "status not written");
                    sleep(TRY_AGAIN).await;
                    break;
                }
            }
        }
    }
}

async fn one(
    client: &Client,
    kinds: &mut BTreeMap<Kind, ApiResource>,
    key: &Key,
    patch: &Value,
) -> Result<(), ::kube::Error> {
    let resource = match kinds.get(&key.kind) {
        Some(known) => known.clone(),
        None => {
            let Some(found) = served(client, key.kind).await? else {
                return Ok(());
            };
            kinds.insert(key.kind, found.clone());
            found
        }
    };
    let api = Api::<DynamicObject>::namespaced_with(client.clone(), &key.namespace, &resource);
    let patch = Patch::Merge(patch);
    api.patch_status(&key.name, &PatchParams::default(), &patch)
        .await?;
    Ok(())
}

/// Whether a change can have changed a status: of a policy, or of which services there are.
#[must_use]
pub fn concerned(changes: &[(Key, Option<crate::model::Object>)], before: &Objects) -> bool {
    let mut all = changes.iter();
    all.any(|(key, object)| {
        let ports = |spec: &Spec| match spec {
            Spec::Service(service) => Some(
                service
                    .ports
                    .iter()
                    .map(|port| port.port)
                    .collect::<Vec<_>>(),
            ),
            _ => None,
        };
        let old = before.by_key.get(key).and_then(|old| ports(&old.spec));
        let new = object.as_ref().and_then(|new| ports(&new.spec));
        key.kind != Kind::Service || old != new
    })
}

#[cfg(test)]
mod tests;

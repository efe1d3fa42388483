//! Changes to a part of an object, and what differs between two states.

use std::net::IpAddr;

use outrigger_proto::outrigger::control::v1 as pb;
use serde_json::{Map, Value, json};
use tonic::Status;

use super::convert;
use crate::model::{DEFAULT_NAMESPACE, Invalid, Key, Kind, Object, Objects, parse_object};

pub(super) fn address(text: &str) -> Result<IpAddr, Status> {
    text.parse()
        .map_err(|_| Status::invalid_argument(format!("address {text:?} is no IP address")))
}

pub(super) fn service_key(namespace: String, name: String) -> Result<Key, Status> {
    if name.is_empty() {
        return Err(Status::invalid_argument("service: must not be empty"));
    }
    Ok(Key {
        kind: Kind::Service,
        namespace: if namespace.is_empty() {
            DEFAULT_NAMESPACE.to_owned()
        } else {
            namespace
        },
        name,
    })
}

/// The endpoint as it stands in a manifest.
pub(super) fn endpoint_json(endpoint: &pb::Endpoint) -> Value {
    let mut out = Map::new();
    out.insert("address".into(), endpoint.address.clone().into());
    if !endpoint.ports.is_empty() {
        out.insert("ports".into(), json!(endpoint.ports));
    }
    let texts = [
        ("serviceAccount", &endpoint.service_account),
        ("workload", &endpoint.workload),
        ("zone", &endpoint.zone),
    ];
    for (name, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
        out.insert(name.into(), text.clone().into());
    }
    if endpoint.weight != 0 {
        out.insert("weight".into(), endpoint.weight.into());
    }
    if let Some(mesh) = endpoint.mesh {
        out.insert("mesh".into(), mesh.into());
    }
    Value::Object(out)
}

/// The service with the endpoint of this address replaced, added, or, without a `new` one, removed.
pub(super) fn edit_endpoints(
    service: &Object,
    address: IpAddr,
    new: Option<Value>,
) -> Result<Object, Vec<Invalid>> {
    let mut json = service.json.clone();
    let spec = json.get_mut("spec").and_then(Value::as_object_mut);
    if let Some(spec) = spec {
        let entry = spec.entry("endpoints").or_insert_with(|| json!([]));
        if let Some(endpoints) = entry.as_array_mut() {
            let of = |e: &Value| e.get("address").and_then(Value::as_str)?.parse().ok();
            let place = endpoints.iter().position(|e| of(e) == Some(address));
            match (place.and_then(|i| endpoints.get_mut(i)), new) {
                (Some(old), Some(new)) => *old = new,
                (Some(_), None) => endpoints.retain(|e| of(e) != Some(address)),
                (None, Some(new)) => endpoints.push(new),
                (None, None) => {}
            }
        }
    }
    parse_object(json, &service.key.namespace, 0)
}

fn selects(kind: Option<Kind>, namespace: &str, key: &Key) -> bool {
    kind.is_none_or(|kind| kind == key.kind) && (namespace.is_empty() || namespace == key.namespace)
}

/// The selected objects, in order.
pub(super) fn chosen(objects: &Objects, kind: Option<Kind>, namespace: &str) -> Vec<pb::Object> {
    let all = objects.by_key.values();
    all.filter(|object| selects(kind, namespace, &object.key))
        .map(|object| convert::object(object))
        .collect()
}

/// What of the selected objects differs between two states.
pub(super) fn difference(
    before: Option<&Objects>,
    now: &Objects,
    kind: Option<Kind>,
    namespace: &str,
) -> pb::WatchResponse {
    let none = Objects::default();
    let before = before.unwrap_or(&none);
    let changed = now.by_key.iter().filter(|(key, object)| {
        let old = before.by_key.get(*key);
        selects(kind, namespace, key) && old.is_none_or(|old| old.revision != object.revision)
    });
    let deleted = before.by_key.keys();
    let deleted =
        deleted.filter(|key| selects(kind, namespace, key) && !now.by_key.contains_key(*key));
    pb::WatchResponse {
        revision: now.revision,
        changed: changed.map(|(_, object)| convert::object(object)).collect(),
        deleted: deleted.map(convert::key_message).collect(),
    }
}

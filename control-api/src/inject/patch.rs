//! The difference between a pod and the pod with the proxy, as the API server wants it.

use serde_json::{Map, Value, json};

/// Parts of a pod that are replaced as wholes.
const PARTS: [&str; 7] = [
    "/metadata/labels",
    "/metadata/annotations",
    "/spec/initContainers",
    "/spec/containers",
    "/spec/volumes",
    "/spec/terminationGracePeriodSeconds",
    "/spec/securityContext",
];

/// A JSON patch (RFC 6902) that makes `new` of `old`. `add` replaces what is there (§4.1).
#[must_use]
pub fn patch(old: &Value, new: &Value) -> Vec<Value> {
    let mut operations = Vec::new();
    if old.get("metadata").is_none() {
        operations.push(json!({"op": "add", "path": "/metadata", "value": Map::new()}));
    }
    for part in PARTS {
        if let Some(value) = new.pointer(part)
            && old.pointer(part) != Some(value)
        {
            operations.push(json!({"op": "add", "path": part, "value": value}));
        }
    }
    operations
}

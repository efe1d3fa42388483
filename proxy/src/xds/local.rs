//! Static configuration from a file, in the shape of Envoy's bootstrap `static_resources`, YAML or
//! JSON. It goes through the same decoder and assembler as what comes over the stream.

#[cfg(test)]
mod tests;

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::SystemTime,
};

use bytes::Bytes;
use outrigger_proto::{envoy::config::bootstrap::v3::Bootstrap, json};
use prost::Message;
use serde_json::Value;

use super::{
    assemble::Assembler,
    decode,
    kind::Kind,
    protocol::Name,
    store::{Incoming, Store},
    view::View,
};
use crate::config::{Invalid, Snapshot};

/// Files above this are refused unread: no hand writes them.
const MAX_FILE: u64 = 32 << 20;

/// What a file gave.
#[derive(Debug)]
pub struct Local {
    pub snapshot: Arc<Snapshot>,
    /// For the admin.
    pub view: View,
    /// Paths of fields that were passed over.
    pub ignored: Vec<String>,
}

/// Reads a file.
///
/// # Errors
/// Everything that is wrong with it, each with resource, field and reason.
pub fn load(path: &Path, now: SystemTime) -> Result<Local, Vec<Invalid>> {
    let name = path.display().to_string();
    let file = |why: String| vec![Invalid::at("", why).of("file", &name)];
    let size = std::fs::metadata(path)
        .map_err(|e| file(e.to_string()))?
        .len();
    if size > MAX_FILE {
        return Err(file(format!("is larger than {MAX_FILE} bytes")));
    }
    let text = std::fs::read_to_string(path).map_err(|e| file(e.to_string()))?;
    // JSON is YAML too, but the YAML reader has a budget of nodes, against bombs of aliases, that a
    // generated file of a few thousand clusters exceeds. JSON has no aliases.
    let value: Value = match serde_json::from_str(&text) {
        Ok(value) => value,
        Err(_) => serde_saphyr::from_str(&text).map_err(|e| file(e.to_string()))?,
    };
    drop(text);
    read(value, now, &name)
}

fn read(value: Value, now: SystemTime, file: &str) -> Result<Local, Vec<Invalid>> {
    let (bootstrap, mut ignored) = json::from_json_lenient::<Bootstrap>(&wrapped(value))
        .map_err(|error| vec![Invalid::at(error.path, error.why).of("file", file)])?;
    let all = bootstrap.static_resources.unwrap_or_default();
    let mut store = Store::default();
    let mut wrong = Vec::new();
    let clusters = all
        .clusters
        .iter()
        .map(|one| (Kind::Cluster, one.encode_to_vec()));
    let listeners = all
        .listeners
        .iter()
        .map(|one| (Kind::Listener, one.encode_to_vec()));
    let secrets = all
        .secrets
        .iter()
        .map(|one| (Kind::Secret, one.encode_to_vec()));
    for (kind, bytes) in clusters.chain(listeners).chain(secrets) {
        let raw = Bytes::from(bytes);
        match decode::parse(kind, &raw) {
            Err(why) => wrong.push(why),
            Ok(parsed) => {
                let name = Name::from(parsed.name.as_str());
                if store.get(kind, &name).is_some() {
                    let twice = Invalid::at("name", "stands twice in this file");
                    wrong.push(twice.of(kind.as_str(), &name));
                    continue;
                }
                let paths = parsed.ignored.iter();
                ignored.extend(paths.map(|path| format!("{} {name:?}: {path}", kind.as_str())));
                let incoming = Incoming {
                    version: "static".into(),
                    raw,
                    expires: None,
                    updated: now,
                };
                store.accept(kind, &name, incoming, parsed, None);
            }
        }
    }
    dangling(&store, &mut wrong);
    if !wrong.is_empty() {
        return Err(wrong);
    }
    let mut assembler = Assembler::default();
    assembler.assemble(&store, &|_, _| false);
    Ok(Local {
        snapshot: Arc::clone(assembler.snapshot()),
        view: View::new(Arc::new(Mutex::new(store))),
        ignored,
    })
}

/// Takes the resources with or without the bootstrap around them.
fn wrapped(value: Value) -> Value {
    let bare = ["listeners", "clusters", "secrets"];
    if value.get("static_resources").is_none() && bare.iter().any(|key| value.get(key).is_some()) {
        return serde_json::json!({ "static_resources": value });
    }
    value
}

/// Nobody will ever bring what the file only names.
fn dangling(store: &Store, wrong: &mut Vec<Invalid>) {
    for kind in Kind::ALL {
        for (name, held) in store.all_held(kind) {
            let missing = held.refs.iter();
            let missing = missing.filter(|(kind, name)| store.held(*kind, name).is_none());
            for (needed, other) in missing {
                let why = format!("names the {} {other:?}, which is not here", needed.as_str());
                wrong.push(Invalid::at("", why).of(kind.as_str(), name));
            }
        }
    }
}

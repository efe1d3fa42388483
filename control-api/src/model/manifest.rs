//! From YAML text to objects.

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::{Invalid, Key, Kind, Object, Spec, common::Faults, suggest::did_you_mean};

/// Where objects go that name no namespace.
pub const DEFAULT_NAMESPACE: &str = "default";
/// A manifest's size: ten thousand services with twenty endpoints each.
pub const MAX_MANIFEST: usize = 16 << 20;
/// Its documents, and what they hold; a document that small can hardly be deep or repeat itself.
const MAX_DOCUMENTS: usize = 20_000;
const MAX_NODES: usize = 4_000_000;
/// RFC 1123 subdomain, as Kubernetes has it for names.
const MAX_NAME: usize = 253;
/// RFC 1123 label, as Kubernetes has it for namespaces.
const MAX_NAMESPACE: usize = 63;
/// Annotation in which kubectl keeps the object as it was last applied.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Reads every object of a manifest.
///
/// # Errors
/// Everything that is wrong, in the order of the text.
pub fn parse_manifest(text: &str, namespace: &str) -> Result<Vec<Object>, Vec<Invalid>> {
    let whole = |why: String| {
        vec![Invalid {
            object: "manifest".into(),
            path: String::new(),
            why,
        }]
    };
    if text.len() > MAX_MANIFEST {
        return Err(whole(format!("is longer than {MAX_MANIFEST} bytes")));
    }
    // YAML 1.2: a header's value `on` or `y` is a text.
    let budget = serde_saphyr::budget! {
        max_documents: MAX_DOCUMENTS,
        max_nodes: MAX_NODES,
        max_events: MAX_NODES * 2,
    };
    let options = serde_saphyr::options! {
        strict_booleans: true,
        budget: budget,
    };
    let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(text, options)
        .map_err(|error| whole(format!("is not YAML: {error}")))?;
    let (mut objects, mut faults) = (Vec::<Object>::new(), Vec::new());
    let flat = documents.into_iter().flat_map(items);
    for (i, document) in flat.filter(|document| !document.is_null()).enumerate() {
        match parse_object(document, namespace, i) {
            Ok(object) if objects.iter().any(|other| other.key == object.key) => {
                faults.push(fault(&object.key, "", "stands in the manifest twice"));
            }
            Ok(object) => objects.push(object),
            Err(found) => faults.extend(found),
        }
    }
    if objects.is_empty() && faults.is_empty() {
        return Err(whole("holds no object".into()));
    }
    if faults.is_empty() {
        Ok(objects)
    } else {
        Err(faults)
    }
}

/// The documents in a `kind: List`, or the document itself.
fn items(document: Value) -> Vec<Value> {
    match document {
        Value::Object(mut map)
            if map.get("kind").and_then(Value::as_str) == Some("List")
                && map.get("items").is_some_and(Value::is_array) =>
        {
            match map.remove("items") {
                Some(Value::Array(items)) => items,
                _ => Vec::new(),
            }
        }
        other => vec![other],
    }
}

fn fault(object: &dyn std::fmt::Display, path: &str, why: impl Into<String>) -> Invalid {
    Invalid {
        object: object.to_string(),
        path: path.to_owned(),
        why: why.into(),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Envelope {
    api_version: String,
    kind: String,
    metadata: Metadata,
    #[serde(default)]
    spec: Option<Value>,
    /// What a cluster says of the object; not ours to keep.
    #[serde(default, rename = "status")]
    _status: Option<Value>,
}

/// Kubernetes' metadata: name, namespace, labels and annotations are kept; what the API server adds
/// is passed over, so that the output of `kubectl get -o yaml` can be applied.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: String,
    #[serde(default)]
    namespace: Option<String>,
    #[serde(default)]
    labels: Map<String, Value>,
    #[serde(default)]
    annotations: Map<String, Value>,
    #[serde(default)]
    creation_timestamp: Option<String>,
}

/// Reads one object; `index` says where in its manifest it stands.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse_object(
    document: Value,
    namespace: &str,
    index: usize,
) -> Result<Object, Vec<Invalid>> {
    let at = format!("object {} of the manifest", index + 1);
    if !document.is_object() {
        return Err(vec![fault(
            &at,
            "",
            "must be a mapping with apiVersion, kind and metadata",
        )]);
    }
    let envelope: Envelope = typed(document).map_err(|(path, why)| vec![fault(&at, &path, why)])?;
    let name = envelope.metadata.name;
    let namespace = envelope
        .metadata
        .namespace
        .filter(|given| !given.is_empty())
        .unwrap_or_else(|| namespace.to_owned());
    let Some(kind) = Kind::ALL.iter().find(|k| k.as_str() == envelope.kind) else {
        return Err(vec![fault(&at, "kind", Kind::unknown(&envelope.kind))]);
    };
    let key = Key {
        kind: *kind,
        namespace,
        name,
    };
    let mut faults = Vec::new();
    if !kind.api_versions().contains(&envelope.api_version.as_str()) {
        let why = format!("must be {}", kind.api_versions().join(" or "));
        faults.push(fault(&key, "apiVersion", why));
    }
    if !is_dns(&key.name, MAX_NAME) {
        let why = "must be lower-case letters, digits, '-' and '.'";
        faults.push(fault(&key, "metadata.name", why));
    }
    if !is_dns(&key.namespace, MAX_NAMESPACE) || key.namespace.contains('.') {
        let why = "must be lower-case letters, digits and '-'";
        faults.push(fault(&key, "metadata.namespace", why));
    }
    let spec = envelope.spec.unwrap_or_else(|| Value::Object(Map::new()));
    let spec = Spec::read(*kind, spec);
    let (spec, json) = match spec {
        Ok(read) if faults.is_empty() => read,
        Ok(_) => return Err(faults),
        Err(found) => {
            faults.extend(found.into_iter().map(|(path, why)| {
                let dot = if path.is_empty() { "" } else { "." };
                fault(&key, &format!("spec{dot}{path}"), why)
            }));
            return Err(faults);
        }
    };
    let created = envelope.metadata.creation_timestamp.as_deref();
    let created = created.and_then(|text| text.parse::<prost_types::Timestamp>().ok());
    let created = created
        .and_then(|time| u64::try_from(time.seconds).ok())
        .unwrap_or(0);
    let mut annotations = envelope.metadata.annotations;
    annotations.remove(LAST_APPLIED);
    let json = document_of(&key, envelope.metadata.labels, annotations, &json);
    Ok(Object {
        key,
        revision: 0,
        created,
        json,
        spec,
    })
}

/// The typed spec and its normal form.
pub(super) fn read<T: DeserializeOwned + serde::Serialize>(
    spec: Value,
    faults: impl Fn(&T) -> Faults,
) -> Result<(T, Value), Faults> {
    let read: T = typed(spec).map_err(|fault| vec![fault])?;
    let found = faults(&read);
    if !found.is_empty() {
        return Err(found);
    }
    let json = serde_json::to_value(&read).map_err(|e| vec![(String::new(), e.to_string())])?;
    Ok((read, json))
}

fn typed<T: DeserializeOwned>(value: Value) -> Result<T, (String, String)> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let path = if path == "." { String::new() } else { path };
        (path, did_you_mean(&error.into_inner().to_string()))
    })
}

pub(super) fn document_of(
    key: &Key,
    labels: Map<String, Value>,
    annotations: Map<String, Value>,
    spec: &Value,
) -> Value {
    let mut metadata = Map::new();
    metadata.insert("name".into(), key.name.clone().into());
    metadata.insert("namespace".into(), key.namespace.clone().into());
    for (name, map) in [("labels", labels), ("annotations", annotations)] {
        if !map.is_empty() {
            metadata.insert(name.into(), Value::Object(map));
        }
    }
    let version = key.kind.api_versions().first().copied().unwrap_or_default();
    serde_json::json!({
        "apiVersion": version,
        "kind": key.kind.as_str(),
        "metadata": metadata,
        "spec": spec,
    })
}

/// Lower-case letters, digits, `-` and `.`, beginning and ending in a letter or digit.
pub(crate) fn is_dns(name: &str, max: usize) -> bool {
    let edge = |c: Option<u8>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-' || c == b'.';
    name.len() <= max
        && edge(name.bytes().next())
        && edge(name.bytes().next_back())
        && name.bytes().all(inner)
}

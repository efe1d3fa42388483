//! The desired state: objects as people write them, checked and typed.

mod manifest;
mod service;

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde_json::Value;

pub use manifest::{DEFAULT_NAMESPACE, parse_manifest, parse_object};
pub use service::{AppProtocol, Endpoint, ServicePort, ServiceSpec};

/// What is wrong with an object, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {path}{}{why}", if path.is_empty() { "" } else { ": " })]
pub struct Invalid {
    /// `<Kind> <namespace>/<name>`, or where in the manifest it stands.
    pub object: String,
    /// The field, like `spec.ports[0].port`; empty for the object as a whole.
    pub path: String,
    /// What is wrong with it.
    pub why: String,
}

/// The kinds of object there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A service, its ports, addresses and endpoints.
    Service,
}

impl Kind {
    /// Every kind.
    pub const ALL: &[Self] = &[Self::Service];

    /// As in `kind:`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Service => "Service",
        }
    }

    /// The `apiVersion` values that are taken for it; the first is what we write.
    #[must_use]
    pub const fn api_versions(self) -> &'static [&'static str] {
        match self {
            Self::Service => &["outrigger.dev/v1"],
        }
    }

    /// By its name, in any case, in the singular or the plural.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let wanted = name.to_ascii_lowercase();
        Self::ALL.iter().copied().find(|kind| {
            let own = kind.as_str().to_ascii_lowercase();
            let plural = match own.strip_suffix('y') {
                Some(stem) => format!("{stem}ies"),
                None => format!("{own}s"),
            };
            wanted == own || wanted == plural
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Names an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// The namespace it is in.
    pub namespace: String,
    /// Its name, unique among those of its kind in the namespace.
    pub name: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// What an object says, typed.
#[derive(Debug, Clone)]
pub enum Spec {
    /// See [`ServiceSpec`].
    Service(Arc<ServiceSpec>),
}

/// One object.
#[derive(Debug, Clone)]
pub struct Object {
    /// Its name.
    pub key: Key,
    /// The revision that wrote it; 0 before it is stored.
    pub revision: u64,
    /// The whole of it as it is shown.
    pub json: Value,
    /// What it says.
    pub spec: Spec,
}

/// All objects at one revision.
#[derive(Debug, Clone, Default)]
pub struct Objects {
    /// Counts changes.
    pub revision: u64,
    /// By name.
    pub by_key: BTreeMap<Key, Arc<Object>>,
}

impl Objects {
    /// The services with their names.
    pub fn services(&self) -> impl Iterator<Item = (&Key, &Arc<ServiceSpec>)> {
        self.by_key.iter().map(|(key, object)| match &object.spec {
            Spec::Service(service) => (key, service),
        })
    }

    /// What is wrong between objects that are right by themselves.
    #[must_use]
    pub fn conflicts(&self) -> Vec<Invalid> {
        let mut owners = BTreeMap::new();
        let mut found = Vec::new();
        for (key, service) in self.services() {
            for (i, address) in service.addresses.iter().enumerate() {
                for port in &service.ports {
                    let Some(owner) = owners.insert((*address, port.port), key) else {
                        continue;
                    };
                    found.push(Invalid {
                        object: key.to_string(),
                        path: format!("spec.addresses[{i}]"),
                        why: format!("{address} port {} already belongs to {owner}", port.port),
                    });
                }
            }
        }
        found
    }
}

//! What is held, wanted and refused, for people to look at (Envoy's config dump, CSDS).

use std::{
    sync::{Arc, Mutex},
    time::SystemTime,
};

use bytes::Bytes;

use super::{
    client::lock,
    decode,
    kind::Kind,
    store::{Entry, Store},
};

/// A look at the resources. For the control thread: it locks what the stream writes to.
#[derive(Clone, Debug)]
pub struct View(Arc<Mutex<Store>>);

/// State of a resource (`envoy.admin.v3.ClientResourceStatus`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// Asked for; nothing was said about it yet.
    Requested,
    DoesNotExist,
    Acked,
    /// The latest was refused; an earlier one may be in use.
    Nacked,
}

impl Status {
    /// As CSDS spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "REQUESTED",
            Self::DoesNotExist => "DOES_NOT_EXIST",
            Self::Acked => "ACKED",
            Self::Nacked => "NACKED",
        }
    }
}

/// One resource.
#[derive(Clone, Debug)]
pub struct ResourceView {
    pub kind: Kind,
    pub name: Arc<str>,
    pub status: Status,
    /// Version and time of the one in use, if there is one.
    pub version: Option<Arc<str>>,
    pub last_updated: Option<SystemTime>,
    /// Its wire form.
    pub raw: Option<Bytes>,
    /// Version, time and reason of the one that was refused.
    pub error: Option<(Arc<str>, SystemTime, String)>,
}

impl ResourceView {
    /// The resource in Envoy's JSON, with its `@type`; keys are redacted.
    #[must_use]
    pub fn json(&self) -> Option<serde_json::Value> {
        let raw = self.raw.as_ref()?;
        Some(decode::to_json(self.kind, raw))
    }
}

impl View {
    pub(crate) const fn new(store: Arc<Mutex<Store>>) -> Self {
        Self(store)
    }

    /// All resources of a type, by name.
    #[must_use]
    pub fn resources(&self, kind: Kind) -> Vec<ResourceView> {
        let store = lock(&self.0);
        let each = store.all(kind);
        each.map(|(name, entry)| shown(kind, name, entry)).collect()
    }
}

fn shown(kind: Kind, name: &Arc<str>, entry: &Entry) -> ResourceView {
    let held = entry.held.as_ref();
    let status = match (&entry.rejected, held, entry.absent) {
        (Some(_), _, _) => Status::Nacked,
        (None, Some(_), _) => Status::Acked,
        (None, None, true) => Status::DoesNotExist,
        (None, None, false) => Status::Requested,
    };
    let rejected = entry.rejected.as_ref();
    ResourceView {
        kind,
        name: Arc::clone(name),
        status,
        version: held.map(|held| Arc::clone(&held.version)),
        last_updated: held.map(|held| held.updated),
        raw: held.map(|held| held.raw.clone()),
        error: rejected.map(|one| (Arc::clone(&one.version), one.at, one.why.clone())),
    }
}

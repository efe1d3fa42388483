//! What was seen of the cluster, and which of the mesh's objects a change touches.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use serde_json::Value;

use super::{
    Name,
    convert::{self, PodFacts},
    grants::{self, Grant},
};
use crate::model::{Invalid, Key, Kind, Object};

/// A change of objects of one kind.
#[derive(Debug)]
pub enum Change<T> {
    /// One is there, new or different.
    Set(Name, T),
    /// One is gone.
    Gone(Name),
    /// These and no others are there.
    All(Vec<(Name, T)>),
}

/// A change of the cluster.
#[derive(Debug)]
pub enum Delta {
    /// Of Services.
    Services(Change<Box<Service>>),
    /// Of EndpointSlices.
    Slices(Change<Box<EndpointSlice>>),
    /// Of Pods.
    Pods(Change<PodFacts>),
    /// Of routes or policies, as JSON.
    Policies(Kind, Change<Value>),
    /// Of ReferenceGrants, as JSON.
    Grants(Change<Value>),
}

/// A route or policy: the last one that was good, and what is wrong with the newest.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// In force.
    pub object: Option<Object>,
    /// What is wrong with the newest; then an older one is in force, or none.
    pub faults: Vec<Invalid>,
    /// The newest, whole.
    pub document: Arc<Value>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Cluster {
    services: BTreeMap<Name, Box<Service>>,
    /// By the Service, then by the slice's own name.
    slices: BTreeMap<Name, BTreeMap<String, Box<EndpointSlice>>>,
    /// The Service of each slice.
    owners: HashMap<Name, Name>,
    pods: HashMap<Name, PodFacts>,
    policies: BTreeMap<Key, Policy>,
    grants: BTreeMap<Name, Grant>,
    /// What has to be made again.
    dirty: BTreeSet<Key>,
    /// Kinds that were seen in whole.
    seen: BTreeSet<&'static str>,
}

/// What has to be seen in whole before anything is told to proxies: a part would take away from
/// them what is only not seen yet.
fn sources() -> impl Iterator<Item = &'static str> {
    let policies = Kind::ALL.iter().filter(|kind| **kind != Kind::Service);
    ["services", "slices", "pods", grants::KIND]
        .into_iter()
        .chain(policies.map(|kind| kind.as_str()))
}

fn service_key(name: &Name) -> Key {
    Key {
        kind: Kind::Service,
        namespace: name.namespace.clone(),
        name: name.name.clone(),
    }
}

impl Cluster {
    /// Takes a change in.
    pub fn apply(&mut self, delta: Delta) {
        match delta {
            Delta::Services(change) => {
                self.seen("services", &change);
                for (name, service) in changes(change, || self.services.keys().cloned().collect()) {
                    self.dirty.insert(service_key(&name));
                    match service {
                        Some(service) => drop(self.services.insert(name, service)),
                        None => drop(self.services.remove(&name)),
                    }
                }
            }
            Delta::Slices(change) => {
                self.seen("slices", &change);
                for (name, slice) in changes(change, || self.owners.keys().cloned().collect()) {
                    self.slice(name, slice);
                }
            }
            Delta::Pods(change) => {
                self.seen("pods", &change);
                for (name, facts) in changes(change, || self.pods.keys().cloned().collect()) {
                    self.pod(name, facts);
                }
            }
            Delta::Policies(kind, change) => {
                self.seen(kind.as_str(), &change);
                let known = || {
                    let keys = self.policies.keys().filter(|key| key.kind == kind);
                    keys.map(|key| Name::new(&key.namespace, &key.name))
                        .collect()
                };
                for (name, document) in changes(change, known) {
                    self.policy(kind, name, document);
                }
            }
            Delta::Grants(change) => {
                self.seen(grants::KIND, &change);
                for (name, grant) in changes(change, || self.grants.keys().cloned().collect()) {
                    match grant {
                        Some(grant) => drop(self.grants.insert(name, Grant::of(&grant))),
                        None => drop(self.grants.remove(&name)),
                    }
                }
                let all = self.policies.iter().filter(|(_, policy)| {
                    let object = policy.object.as_ref();
                    object.is_some_and(grants::concerns)
                });
                self.dirty.extend(all.map(|(key, _)| key.clone()));
            }
        }
    }

    fn seen<T>(&mut self, source: &'static str, change: &Change<T>) {
        if matches!(change, Change::All(_)) {
            self.seen.insert(source);
        }
    }

    /// Kinds that were not yet seen in whole.
    pub fn missing(&self) -> impl Iterator<Item = &'static str> {
        sources().filter(|source| !self.seen.contains(source))
    }

    fn slice(&mut self, name: Name, slice: Option<Box<EndpointSlice>>) {
        let owner = slice.as_ref().and_then(|slice| convert::slice_owner(slice));
        let old = match &owner {
            Some(owner) => self.owners.insert(name.clone(), owner.clone()),
            None => self.owners.remove(&name),
        };
        if let Some(old) = old {
            self.dirty.insert(service_key(&old));
            if let Some(slices) = self.slices.get_mut(&old) {
                slices.remove(&name.name);
                if slices.is_empty() {
                    self.slices.remove(&old);
                }
            }
        }
        if let (Some(owner), Some(slice)) = (owner, slice) {
            self.dirty.insert(service_key(&owner));
            let slices = self.slices.entry(owner).or_default();
            slices.insert(name.name, slice);
        }
    }

    fn pod(&mut self, name: Name, facts: Option<PodFacts>) {
        let same = self.pods.get(&name) == facts.as_ref();
        if same {
            return;
        }
        let names = |slice: &EndpointSlice| {
            let mut pods = slice.endpoints.iter().flatten();
            pods.any(|e| convert::pod_of(&name.namespace, e).as_ref() == Some(&name))
        };
        let first = Name::new(&name.namespace, "");
        let here = self.slices.range(first..);
        for (service, slices) in here.take_while(|(s, _)| s.namespace == name.namespace) {
            if slices.values().any(|slice| names(slice)) {
                self.dirty.insert(service_key(service));
            }
        }
        match facts {
            Some(facts) => drop(self.pods.insert(name, facts)),
            None => drop(self.pods.remove(&name)),
        }
    }

    fn policy(&mut self, kind: Kind, name: Name, document: Option<Value>) {
        let key = Key {
            kind,
            namespace: name.namespace,
            name: name.name,
        };
        let Some(document) = document else {
            self.policies.remove(&key);
            self.dirty.insert(key);
            return;
        };
        let policy = self.policies.entry(key.clone()).or_default();
        policy.document = Arc::new(document.clone());
        match convert::policy(document) {
            Ok(object) => {
                policy.object = object;
                policy.faults.clear();
            }
            Err(faults) => {
                for fault in &faults {
                    tracing::warn!(%fault, kept = policy.object.is_some(), "object not taken");
                }
                policy.faults = faults;
            }
        }
        self.dirty.insert(key);
    }

    /// The objects that changed since the last call, `None` for those that are gone.
    pub fn changes(&mut self) -> Vec<(Key, Option<Object>)> {
        let dirty = std::mem::take(&mut self.dirty);
        let made = dirty.into_iter().map(|key| {
            let object = match key.kind {
                Kind::Service => self.service(&key),
                _ => self
                    .policies
                    .get(&key)
                    .and_then(|policy| self.permitted(policy).0),
            };
            (key, object)
        });
        made.collect()
    }

    fn service(&self, key: &Key) -> Option<Object> {
        let name = Name::new(&key.namespace, &key.name);
        let service = self.services.get(&name)?;
        let slices = self.slices.get(&name).into_iter();
        let slices = slices.flat_map(|slices| slices.values().map(AsRef::as_ref));
        let spec = convert::service(service, slices, &|pod| self.pods.get(pod).cloned())?;
        let labels = service.metadata.labels.clone().unwrap_or_default();
        Some(Object::service(key.clone(), labels, spec))
    }

    /// What is in force of a policy, without what it may not refer to; and what that is.
    pub fn permitted(&self, policy: &Policy) -> (Option<Object>, Vec<Invalid>) {
        let Some(mut object) = policy.object.clone() else {
            return (None, Vec::new());
        };
        let denied = grants::enforce(&mut object, &self.grants);
        (Some(object), denied)
    }

    /// Routes and policies, also those that are not in force.
    pub fn policies(&self) -> impl Iterator<Item = (&Key, &Policy)> {
        self.policies.iter()
    }
}

/// Each object that a change sets or takes away; `known` are those that are there before.
fn changes<T>(change: Change<T>, known: impl FnOnce() -> BTreeSet<Name>) -> Vec<(Name, Option<T>)> {
    match change {
        Change::Set(name, object) => vec![(name, Some(object))],
        Change::Gone(name) => vec![(name, None)],
        Change::All(all) => {
            let there: BTreeSet<_> = all.iter().map(|(name, _)| name.clone()).collect();
            let known = known();
            let gone = known.difference(&there).cloned().map(|name| (name, None));
            let gone: Vec<_> = gone.collect();
            let set = all.into_iter().map(|(name, object)| (name, Some(object)));
            set.chain(gone).collect()
        }
    }
}

#[cfg(test)]
mod tests;

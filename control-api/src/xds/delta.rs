//! The incremental protocol of one stream, without any I/O: requests and worlds in, answers out
//! (Envoy `xds_protocol.rst`, "Incremental xDS").

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use outrigger_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource,
};
use prost::Message as _;
use tonic::Status;

use super::published::View;
use crate::translate::ResourceType;

/// Subscribes to everything.
pub(super) const WILDCARD: &str = "*";
/// Names of one type that a stream may be subscribed to.
const MAX_NAMES: usize = 100_000;
/// Longest name; ours have some 300 bytes at most.
const MAX_NAME: usize = 1_024;
/// Bytes of resources in one answer, so that it stays far below gRPC's 4 MiB.
const MAX_ANSWER: usize = 1 << 20;
/// Answers of one type that wait for their ACK; what changes meanwhile is sent together after it.
const MAX_IN_FLIGHT: usize = 32;
/// Longest reason of a NACK that is kept.
pub(super) const MAX_REASON: usize = 4_096;

/// Answers that a proxy refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// The world that they were of.
    pub revision: u64,
    /// What the proxy says.
    pub reason: String,
    /// What was in them.
    pub names: Vec<String>,
}

/// Whether a name can be one of ours.
pub(super) fn check_name(name: &str) -> Result<(), Status> {
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(Status::invalid_argument(format!(
            "a resource name has {} bytes, not 1 to {MAX_NAME}",
            name.len()
        )));
    }
    Ok(())
}

/// Whether a stream may be subscribed to so many names of one type.
pub(super) fn check_count(names: usize) -> Result<(), Status> {
    if names > MAX_NAMES {
        return Err(Status::resource_exhausted(format!(
            "more than {MAX_NAMES} names subscribed"
        )));
    }
    Ok(())
}

#[derive(Debug)]
struct InFlight {
    nonce: String,
    revision: u64,
    names: Vec<String>,
}

/// What a proxy has of one type.
#[derive(Debug, Default)]
struct Subscription {
    wildcard: bool,
    names: BTreeSet<String>,
    /// Version by name; `None` where the proxy was told that there is none.
    held: BTreeMap<String, Option<String>>,
    /// To be sent whether changed or not.
    due: BTreeSet<String>,
    /// An answer is owed even if it is empty.
    answer_owed: bool,
    in_flight: VecDeque<InFlight>,
    rejected: Option<Rejected>,
}

/// The state of a stream.
#[derive(Debug, Default)]
pub struct DeltaStream {
    types: BTreeMap<ResourceType, Subscription>,
    answers: u64,
    looked_at: u64,
}

impl DeltaStream {
    /// Takes a request in. Call [`DeltaStream::push`] afterwards.
    ///
    /// # Errors
    /// When it asks for more than anybody may; the stream is to be ended with the status.
    pub fn request(
        &mut self,
        kind: ResourceType,
        request: DeltaDiscoveryRequest,
    ) -> Result<(), Status> {
        let first = !self.types.contains_key(&kind);
        let state = self.types.entry(kind).or_default();
        if !request.response_nonce.is_empty() {
            let error = request.error_detail.as_ref();
            state.answered(&request.response_nonce, error.map(|e| e.message.as_str()));
        }
        if first {
            let held = request.initial_resource_versions;
            state.held = held.into_iter().map(|(name, v)| (name, Some(v))).collect();
            let all = request.resource_names_subscribe.is_empty();
            if all && matches!(kind, ResourceType::Listener | ResourceType::Cluster) {
                state.subscribe(WILDCARD.to_owned(), true);
            }
        }
        for name in request.resource_names_subscribe {
            check_name(&name)?;
            state.subscribe(name, first);
        }
        for name in request.resource_names_unsubscribe {
            state.unsubscribe(&name);
        }
        check_count(state.names.len())?;
        if first && !state.wildcard {
            // What the proxy still holds but no longer wants is not ours to follow.
            state.held.retain(|name, _| state.names.contains(name));
        }
        Ok(())
    }

    /// Everything that the proxy does not have yet, in the order in which it can be taken: what is
    /// named before who names it, and removals of what was named last.
    pub fn push(&mut self, view: &impl View) -> Vec<DeltaDiscoveryResponse> {
        let mut answers = Vec::new();
        let mut removals = Vec::new();
        let mut clusters = Vec::new();
        for (kind, state) in &mut self.types {
            if state.in_flight.len() >= MAX_IN_FLIGHT {
                continue;
            }
            if *kind == ResourceType::Endpoints {
                state.renew(std::mem::take(&mut clusters));
            }
            let mut news = state.news(*kind, view);
            match kind {
                ResourceType::Cluster => {
                    clusters = news.changed.iter().map(|r| r.name.clone()).collect();
                    removals.push((*kind, std::mem::take(&mut news.removed)));
                }
                ResourceType::Endpoints => {
                    removals.push((*kind, std::mem::take(&mut news.removed)));
                }
                ResourceType::Listener | ResourceType::Routes => {}
            }
            let owed = std::mem::take(&mut state.answer_owed);
            for part in news.parts(owed) {
                answers.push(Self::answer(&mut self.answers, state, *kind, part, view));
            }
        }
        for (kind, removed) in removals {
            let Some(state) = self.types.get_mut(&kind) else {
                continue;
            };
            let news = News {
                changed: Vec::new(),
                removed,
            };
            for part in news.parts(false) {
                answers.push(Self::answer(&mut self.answers, state, kind, part, view));
            }
        }
        self.looked_at = view.revision();
        answers
    }

    fn answer(
        count: &mut u64,
        state: &mut Subscription,
        kind: ResourceType,
        news: News,
        view: &impl View,
    ) -> DeltaDiscoveryResponse {
        *count += 1;
        let nonce = count.to_string();
        let changed = news.changed.iter().map(|resource| resource.name.clone());
        state.in_flight.push_back(InFlight {
            nonce: nonce.clone(),
            revision: view.revision(),
            names: changed.chain(news.removed.iter().cloned()).collect(),
        });
        DeltaDiscoveryResponse {
            system_version_info: view.revision().to_string(),
            resources: news.changed,
            type_url: kind.url().to_owned(),
            nonce,
            removed_resources: news.removed,
            ..DeltaDiscoveryResponse::default()
        }
    }

    /// The world that was last pushed.
    #[must_use]
    pub const fn looked_at(&self) -> u64 {
        self.looked_at
    }

    /// Every answer up to the world of this revision has been taken or refused.
    #[must_use]
    pub fn settled(&self) -> u64 {
        let flying = self.types.values().flat_map(|state| &state.in_flight);
        let oldest = flying.map(|answer| answer.revision).min();
        oldest.map_or(self.looked_at, |oldest| oldest.saturating_sub(1))
    }

    /// What the proxy refused and has not taken since.
    pub fn rejected(&self) -> impl Iterator<Item = (ResourceType, &Rejected)> {
        let types = self.types.iter();
        types.filter_map(|(kind, state)| Some((*kind, state.rejected.as_ref()?)))
    }

    /// What the proxy has: type, name and version.
    pub fn held(&self) -> impl Iterator<Item = (ResourceType, &str, &str)> {
        self.types.iter().flat_map(|(kind, state)| {
            let held = state.held.iter();
            held.filter_map(|(name, v)| Some((*kind, name.as_str(), v.as_deref()?)))
        })
    }
}

impl Subscription {
    fn answered(&mut self, nonce: &str, error: Option<&str>) {
        let position = self.in_flight.iter().position(|a| a.nonce == nonce);
        let Some(answer) = position.and_then(|i| self.in_flight.remove(i)) else {
            return;
        };
        if let Some(reason) = error {
            self.rejected = Some(Rejected {
                revision: answer.revision,
                reason: reason.chars().take(MAX_REASON).collect(),
                names: answer.names,
            });
        } else if let Some(rejected) = &mut self.rejected {
            // Good again is what was taken in a later version, or is no longer there.
            rejected.names.retain(|name| !answer.names.contains(name));
            if rejected.names.is_empty() {
                self.rejected = None;
            }
        }
    }

    fn subscribe(&mut self, name: String, first: bool) {
        if name == WILDCARD {
            self.answer_owed |= !self.wildcard;
            self.wildcard = true;
            return;
        }
        // A proxy that says what it has needs no second copy; one that subscribes anew may have
        // forgotten ("…must be sent again").
        if !(first && self.held.contains_key(&name)) {
            self.due.insert(name.clone());
        }
        self.names.insert(name);
    }

    /// A cluster that is sent again warms again, and Envoy waits for an answer about its endpoints
    /// although nothing changed there (envoyproxy/envoy#33607). Endpoints are called as their
    /// cluster.
    fn renew(&mut self, clusters: Vec<String>) {
        let held = clusters
            .into_iter()
            .filter(|name| self.held.contains_key(name));
        self.due.extend(held);
    }

    fn unsubscribe(&mut self, name: &str) {
        if name == WILDCARD {
            self.wildcard = false;
            self.held.retain(|name, _| self.names.contains(name));
            return;
        }
        self.names.remove(name);
        self.due.remove(name);
        if self.wildcard {
            // Still wanted: the proxy has to be told of it, since it may forget it now.
            self.due.insert(name.to_owned());
        } else {
            self.held.remove(name);
        }
    }

    fn news(&mut self, kind: ResourceType, view: &impl View) -> News {
        let due = std::mem::take(&mut self.due);
        let mut wanted = self.names.clone();
        if self.wildcard {
            wanted.extend(view.names(kind));
            wanted.extend(self.held.keys().cloned());
            wanted.extend(due.iter().cloned());
        }
        let (mut changed, mut removed) = (Vec::new(), Vec::new());
        for name in wanted {
            let current = view.get(kind, &name);
            let version = current.as_ref().map(|c| c.version.as_str());
            let same = self
                .held
                .get(&name)
                .is_some_and(|v| v.as_deref() == version);
            if same && !due.contains(&name) {
                continue;
            }
            let Some(current) = current else {
                if self.names.contains(&name) {
                    self.held.insert(name.clone(), None);
                } else {
                    self.held.remove(&name);
                }
                removed.push(name);
                continue;
            };
            self.held
                .insert(name.clone(), Some(current.version.clone()));
            changed.push(Resource {
                version: current.version.clone(),
                resource: Some(current.resource.clone()),
                name,
                ..Resource::default()
            });
        }
        News { changed, removed }
    }
}

#[derive(Debug, Default)]
struct News {
    changed: Vec<Resource>,
    removed: Vec<String>,
}

impl News {
    /// In pieces of a size that can be sent; one empty piece if an answer is owed.
    fn parts(self, owed: bool) -> Vec<Self> {
        let mut parts = Vec::new();
        let (mut part, mut size) = (Self::default(), 0);
        for resource in self.changed {
            let bytes = resource.encoded_len();
            if size + bytes > MAX_ANSWER && !part.changed.is_empty() {
                parts.push(std::mem::take(&mut part));
                size = 0;
            }
            size += bytes;
            part.changed.push(resource);
        }
        part.removed = self.removed;
        if !part.changed.is_empty() || !part.removed.is_empty() || (owed && parts.is_empty()) {
            parts.push(part);
        }
        parts
    }
}

#[cfg(test)]
mod tests;

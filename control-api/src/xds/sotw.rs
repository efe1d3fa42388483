//! The state-of-the-world protocol of one stream, without any I/O (Envoy `xds_protocol.rst`, "State
//! of the world"): what gRPC clients speak, and Envoy when it is told to.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use aws_lc_rs::digest;
use outrigger_proto::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use tonic::Status;

use super::{
    Rejected,
    delta::{MAX_REASON, WILDCARD, check_count, check_name},
    published::{Encoded, View},
};
use crate::{hex::hex, translate::ResourceType};

/// The answer that waits for its ACK or NACK. There is one of each type at most: what changes
/// meanwhile is sent together after it.
#[derive(Debug)]
struct InFlight {
    revision: u64,
    names: Vec<String>,
}

/// What a proxy has of one type.
#[derive(Debug, Default)]
struct Subscription {
    wildcard: bool,
    /// Once a name was sent, no names are no longer all names.
    named: bool,
    names: BTreeSet<String>,
    /// What was sent, by name.
    held: BTreeMap<String, Arc<Encoded>>,
    /// To be sent whether changed or not.
    due: BTreeSet<String>,
    answer_owed: bool,
    nonce: String,
    in_flight: Option<InFlight>,
    rejected: Option<Rejected>,
}

/// The state of a stream.
#[derive(Debug, Default)]
pub struct SotwStream {
    types: BTreeMap<ResourceType, Subscription>,
    answers: u64,
    looked_at: u64,
}

/// Of these an answer is the whole state: what is missing is gone. Of the others an answer says
/// nothing about what is missing.
const fn is_whole(kind: ResourceType) -> bool {
    matches!(kind, ResourceType::Listener | ResourceType::Cluster)
}

impl SotwStream {
    /// Takes a request in. Call [`SotwStream::push`] afterwards.
    ///
    /// # Errors
    /// When it asks for more than anybody may; the stream is to be ended with the status.
    pub fn request(&mut self, kind: ResourceType, request: DiscoveryRequest) -> Result<(), Status> {
        let first = !self.types.contains_key(&kind);
        let state = self.types.entry(kind).or_default();
        // The nonce of an earlier stream means nothing here.
        let stale = !first && request.response_nonce != state.nonce;
        if stale {
            // The proxy has not seen the newest answer yet, and will speak again once it has.
            return Ok(());
        }
        if !first {
            let error = request.error_detail.as_ref();
            state.answered(error.map(|error| error.message.as_str()));
        }
        for name in &request.resource_names {
            check_name(name)?;
        }
        let names: BTreeSet<String> = request.resource_names.into_iter().collect();
        check_count(names.len())?;
        state.subscribe(kind, names, first);
        Ok(())
    }

    /// Everything that the proxy does not have yet, in the order in which it can be taken: what is
    /// named before who names it, and removals of what was named last.
    pub fn push(&mut self, view: &impl View) -> Vec<DiscoveryResponse> {
        let mut answers = Vec::new();
        let mut clusters = Vec::new();
        let mut shrinks = false;
        for (kind, state) in &mut self.types {
            if state.in_flight.is_some() {
                continue;
            }
            if *kind == ResourceType::Endpoints {
                state.renew(&clusters);
            }
            let Some(mut news) = state.news(*kind, view) else {
                continue;
            };
            if *kind == ResourceType::Cluster {
                clusters.clone_from(&news.changed);
                // What goes away stays one answer longer: by then nobody names it any more.
                shrinks = news.keep(&state.held);
            }
            answers.extend(state.answer(&mut self.answers, *kind, news, view.revision()));
        }
        self.looked_at = view.revision();
        if shrinks && answers.len() == 1 {
            // Nothing else changes, so nothing has to be waited for.
            return self.shrink(view);
        }
        answers
    }

    /// The clusters without those that are gone, in place of the answer that still has them.
    fn shrink(&mut self, view: &impl View) -> Vec<DiscoveryResponse> {
        let kind = ResourceType::Cluster;
        let Some(state) = self.types.get_mut(&kind) else {
            return Vec::new();
        };
        state.in_flight = None;
        let news = state.news(kind, view);
        let answer =
            news.and_then(|news| state.answer(&mut self.answers, kind, news, view.revision()));
        answer.into_iter().collect()
    }

    /// The world that was last pushed.
    #[must_use]
    pub const fn looked_at(&self) -> u64 {
        self.looked_at
    }

    /// Every answer up to the world of this revision has been taken or refused.
    #[must_use]
    pub fn settled(&self) -> u64 {
        let flying = self
            .types
            .values()
            .filter_map(|state| state.in_flight.as_ref());
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
            held.map(|(name, own)| (*kind, name.as_str(), own.version.as_str()))
        })
    }
}

/// What an answer is made of.
#[derive(Debug, Default)]
struct News {
    resources: BTreeMap<String, Arc<Encoded>>,
    changed: Vec<String>,
}

impl News {
    /// Puts back what is held and no longer there; whether there was anything.
    fn keep(&mut self, held: &BTreeMap<String, Arc<Encoded>>) -> bool {
        let before = self.resources.len();
        for (name, own) in held {
            let gone = self.resources.entry(name.clone());
            gone.or_insert_with(|| Arc::clone(own));
        }
        self.resources.len() > before
    }
}

impl Subscription {
    fn answered(&mut self, error: Option<&str>) {
        let Some(answer) = self.in_flight.take() else {
            return;
        };
        self.rejected = error.map(|reason| Rejected {
            revision: answer.revision,
            reason: reason.chars().take(MAX_REASON).collect(),
            names: answer.names,
        });
    }

    fn subscribe(&mut self, kind: ResourceType, names: BTreeSet<String>, first: bool) {
        self.named |= !names.is_empty();
        let all = names.contains(WILDCARD) || !self.named && is_whole(kind);
        self.answer_owed |= first || all && !self.wildcard;
        self.wildcard = all;
        // A name that comes back is sent again: the proxy may have forgotten it.
        let new = names.difference(&self.names).cloned();
        self.due.extend(new.filter(|name| name != WILDCARD));
        self.names = names;
        self.names.remove(WILDCARD);
        if !self.wildcard {
            let (names, due) = (&self.names, &mut self.due);
            self.held.retain(|name, _| names.contains(name));
            due.retain(|name| names.contains(name));
        }
    }

    /// See the same of the incremental protocol.
    fn renew(&mut self, clusters: &[String]) {
        let held = clusters.iter().filter(|name| self.held.contains_key(*name));
        self.due.extend(held.cloned());
    }

    /// `None` if there is nothing to say.
    fn news(&mut self, kind: ResourceType, view: &impl View) -> Option<News> {
        let mut wanted = self.names.clone();
        if self.wildcard {
            wanted.extend(view.names(kind));
        }
        let due = std::mem::take(&mut self.due);
        let owed = std::mem::take(&mut self.answer_owed);
        let mut news = News::default();
        for name in wanted {
            let Some(current) = view.get(kind, &name) else {
                if !is_whole(kind) {
                    // Should it come back, it is sent, whatever the proxy did meanwhile.
                    self.held.remove(&name);
                }
                continue;
            };
            let same = self
                .held
                .get(&name)
                .is_some_and(|own| own.version == current.version);
            if !same || due.contains(&name) {
                news.changed.push(name.clone());
            } else if !is_whole(kind) {
                continue;
            }
            news.resources.insert(name, current);
        }
        let gone = |name: &String| is_whole(kind) && !news.resources.contains_key(name);
        let gone = self.held.keys().any(gone);
        // Who asked for a listener or cluster that is not there learns it from its absence.
        let asked = is_whole(kind) && !due.is_empty();
        let silent = news.changed.is_empty() && !gone && !asked;
        let empty = owed && news.resources.is_empty() && !is_whole(kind);
        (!silent || owed && !empty).then_some(news)
    }

    fn answer(
        &mut self,
        count: &mut u64,
        kind: ResourceType,
        news: News,
        revision: u64,
    ) -> Option<DiscoveryResponse> {
        *count += 1;
        self.nonce = count.to_string();
        self.in_flight = Some(InFlight {
            revision,
            names: news.changed,
        });
        let resources = news.resources.values();
        let resources = resources.map(|own| own.resource.clone()).collect();
        if is_whole(kind) {
            self.held = news.resources;
        } else {
            self.held.extend(news.resources);
        }
        Some(DiscoveryResponse {
            version_info: version(&self.held),
            resources,
            type_url: kind.url().to_owned(),
            nonce: self.nonce.clone(),
            ..DiscoveryResponse::default()
        })
    }
}

/// The same for the same resources, also after a restart (XD-04).
fn version(held: &BTreeMap<String, Arc<Encoded>>) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    for (name, own) in held {
        context.update(name.as_bytes());
        context.update(&[0]);
        context.update(own.version.as_bytes());
        context.update(&[0]);
    }
    let hash = context.finish();
    let short = hash.as_ref().iter().take(8);
    hex(short)
}

#[cfg(test)]
mod tests;

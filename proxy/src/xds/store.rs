//! The resources held: the last good one of each name, beside what was wrong with a later one.
//!
//! An equal resource keeps its `Arc`, so that pointer equality downstream tells what changed
//! (XD-06). A removal or an emptied endpoint list that arrives at the beginning of a new
//! stream waits for a grace before it counts, for it may come from a server that has only just
//! begun to know things (LB-02).

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    decode::{Parsed, Resource},
    kind::{Kind, PerKind},
    protocol::Name,
    refs::{self, Ref},
};
use crate::config::Endpoints;

/// Everything known about names.
#[derive(Debug, Default)]
pub(crate) struct Store {
    kinds: PerKind<BTreeMap<Name, Entry>>,
    /// Something waits for its time. Rare, so that the search for it is spared otherwise.
    timed: bool,
}

/// What is known about one name.
#[derive(Debug, Default)]
pub(crate) struct Entry {
    pub(crate) held: Option<Held>,
    pub(crate) rejected: Option<Rejected>,
    /// The server said, or its silence did, that there is no such resource.
    pub(crate) absent: bool,
    later: Option<Later>,
}

/// A good resource.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) version: Name,
    /// Wire form, as it came.
    pub(crate) raw: Bytes,
    pub(crate) resource: Resource,
    pub(crate) refs: Vec<Ref>,
    pub(crate) updated: SystemTime,
    /// When its TTL ends, if it has one.
    expires: Option<Instant>,
    /// It is from before the present stream, and nothing was said about it on this one.
    unconfirmed: bool,
}

/// A resource that was not taken.
#[derive(Debug)]
pub(crate) struct Rejected {
    pub(crate) version: Name,
    pub(crate) why: String,
    pub(crate) at: SystemTime,
}

/// A change that waits for its grace to end.
#[derive(Debug)]
struct Later {
    due: Instant,
    /// `None` removes the resource.
    instead: Option<Held>,
}

/// What an update did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing that anybody downstream could notice.
    Same,
    Changed,
    /// Will be done when the grace is over.
    Deferred,
}

/// An incoming resource, as the wire had it.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) version: Name,
    pub(crate) raw: Bytes,
    pub(crate) expires: Option<Instant>,
    pub(crate) updated: SystemTime,
}

impl Store {
    pub(crate) fn get(&self, kind: Kind, name: &str) -> Option<&Entry> {
        self.kinds.of(kind).get(name)
    }

    pub(crate) fn held(&self, kind: Kind, name: &str) -> Option<&Held> {
        self.get(kind, name)?.held.as_ref()
    }

    pub(crate) fn all(&self, kind: Kind) -> impl Iterator<Item = (&Name, &Entry)> {
        self.kinds.of(kind).iter()
    }

    /// Held resources of a type.
    pub(crate) fn all_held(&self, kind: Kind) -> impl Iterator<Item = (&Name, &Held)> {
        let each = self.kinds.of(kind).iter();
        each.filter_map(|(name, entry)| Some((name, entry.held.as_ref()?)))
    }

    /// Names and versions held of a type: what a new stream begins with.
    pub(crate) fn versions(&self, kind: Kind) -> Vec<(Name, Name)> {
        let each = self.all_held(kind);
        each.map(|(name, held)| (Arc::clone(name), Arc::clone(&held.version)))
            .collect()
    }

    /// Whether this is byte for byte what is held; then it is confirmed and need not be decoded.
    pub(crate) fn confirm(&mut self, kind: Kind, name: &str, incoming: &Incoming) -> bool {
        let Some(entry) = self.kinds.of_mut(kind).get_mut(name) else {
            return false;
        };
        self.timed |= incoming.expires.is_some();
        match &mut entry.held {
            Some(held) if held.raw == incoming.raw => {
                held.version = Arc::clone(&incoming.version);
                held.expires = incoming.expires;
                held.unconfirmed = false;
                entry.later = None;
                entry.rejected = None;
                entry.absent = false;
                true
            }
            _ => false,
        }
    }

    /// Moves the end of a resource's life: a heartbeat.
    pub(crate) fn heartbeat(&mut self, kind: Kind, name: &str, expires: Option<Instant>) {
        self.timed |= expires.is_some();
        let entry = self.kinds.of_mut(kind).get_mut(name);
        if let Some(held) = entry.and_then(|entry| entry.held.as_mut()) {
            held.expires = expires;
            held.unconfirmed = false;
        }
    }

    /// Takes a good resource. With `grace`, an endpoint list from before this stream that lost all
    /// of its members waits until then.
    pub(crate) fn accept(
        &mut self,
        kind: Kind,
        name: &Name,
        incoming: Incoming,
        parsed: Parsed,
        grace: Option<Instant>,
    ) -> Effect {
        self.timed |= grace.is_some() || incoming.expires.is_some();
        let entry = self.kinds.of_mut(kind).entry(Arc::clone(name)).or_default();
        let mut resource = parsed.resource;
        let mut effect = Effect::Changed;
        let mut emptied = false;
        if let (Some(old), Resource::Endpoints(new)) = (&entry.held, &mut resource)
            && let Resource::Endpoints(old) = &old.resource
        {
            if old == new {
                *new = Arc::clone(old);
                effect = Effect::Same;
            }
            emptied = new.priorities.is_empty() && !old.priorities.is_empty();
            share(old, new);
        }
        entry.rejected = None;
        entry.absent = false;
        entry.later = None;
        let held = Held {
            refs: refs::of(&resource),
            version: incoming.version,
            raw: incoming.raw,
            resource,
            updated: incoming.updated,
            expires: incoming.expires,
            unconfirmed: false,
        };
        let old = entry.held.as_ref().is_some_and(|held| held.unconfirmed);
        if let Some(due) = grace.filter(|_| emptied && old) {
            entry.later = Some(Later {
                due,
                instead: Some(held),
            });
            return Effect::Deferred;
        }
        entry.held = Some(held);
        effect
    }

    /// Notes a resource that was not taken; the last good one stays.
    pub(crate) fn reject(&mut self, kind: Kind, name: &Name, rejected: Rejected) {
        let entry = self.kinds.of_mut(kind).entry(Arc::clone(name)).or_default();
        entry.absent = false;
        entry.later = None;
        entry.rejected = Some(rejected);
    }

    /// The server says that there is no such resource (any more). With `grace`, one from before
    /// this stream stays until then.
    pub(crate) fn remove(&mut self, kind: Kind, name: &str, grace: Option<Instant>) -> Effect {
        self.timed |= grace.is_some();
        let entries = self.kinds.of_mut(kind);
        let entry = entries.entry(name.into()).or_default();
        let old = entry.held.as_ref().is_some_and(|held| held.unconfirmed);
        if let Some(due) = grace.filter(|_| old) {
            entry.later = Some(Later { due, instead: None });
            return Effect::Deferred;
        }
        if entry.absent && entry.held.is_none() {
            return Effect::Same;
        }
        *entry = Entry {
            absent: true,
            ..Entry::default()
        };
        Effect::Changed
    }

    /// Forgets all names but those that `keep` is true of.
    pub(crate) fn retain(&mut self, keep: impl Fn(Kind, &str) -> bool) {
        for (kind, entries) in self.kinds.iter_mut() {
            entries.retain(|name, _| keep(kind, name));
        }
    }

    /// A name was asked for.
    pub(crate) fn expect(&mut self, kind: Kind, name: &Name) {
        let entries = self.kinds.of_mut(kind);
        entries.entry(Arc::clone(name)).or_default();
    }

    /// A new stream begins: what an earlier server gave or took away, this one has to itself.
    pub(crate) fn reprieve(&mut self) {
        for (_, entries) in self.kinds.iter_mut() {
            for entry in entries.values_mut() {
                entry.later = None;
                if let Some(held) = &mut entry.held {
                    held.unconfirmed = true;
                }
            }
        }
    }

    /// Nobody wants this name any more.
    pub(crate) fn forget(&mut self, kind: Kind, name: &str) {
        self.kinds.of_mut(kind).remove(name);
    }

    /// When the next deferred change or TTL falls due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        if !self.timed {
            return None;
        }
        let entries = self.kinds.iter().flat_map(|(_, entries)| entries.values());
        entries
            .flat_map(|entry| {
                let later = entry.later.as_ref().map(|later| later.due);
                let ttl = entry.held.as_ref().and_then(|held| held.expires);
                [later, ttl]
            })
            .flatten()
            .min()
    }

    /// Carries out what is due. Returns the kinds and names that changed.
    pub(crate) fn settle(&mut self, now: Instant) -> Vec<(Kind, Name)> {
        let mut changed = Vec::new();
        if !self.timed {
            return changed;
        }
        for (kind, entries) in self.kinds.iter_mut() {
            for (name, entry) in entries {
                let due = entry.later.as_ref().is_some_and(|later| later.due <= now);
                let ended = entry.held.as_ref().and_then(|held| held.expires);
                if due {
                    entry.held = entry.later.take().and_then(|later| later.instead);
                } else if ended.is_some_and(|at| at <= now) {
                    entry.held = None;
                } else {
                    continue;
                }
                entry.absent = entry.held.is_none();
                changed.push((kind, Arc::clone(name)));
            }
        }
        self.timed = self.deadline().is_some();
        changed
    }
}

/// Lets `new` use the very endpoints of `old` where they are equal: churn then costs no memory, and
/// what is kept per endpoint can be found by pointer.
fn share(old: &Arc<Endpoints>, new: &mut Arc<Endpoints>) {
    if Arc::ptr_eq(old, new) {
        return;
    }
    let flat = |all: &Endpoints| -> BTreeMap<_, _> {
        let localities = all.priorities.iter().flatten();
        let members = localities.flat_map(|locality| &locality.endpoints);
        members.map(|one| (one.address, Arc::clone(one))).collect()
    };
    let before = flat(old);
    if let Some(new) = Arc::get_mut(new) {
        for locality in new.priorities.iter_mut().flatten() {
            for member in &mut locality.endpoints {
                if let Some(same) = before.get(&member.address).filter(|same| *same == member) {
                    *member = Arc::clone(same);
                }
            }
        }
    }
}

//! An answer of the server is taken apart, resource by resource: the good ones are kept whatever
//! the others are like (gRFC A46).

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
    time::SystemTime,
};

use tokio::time::Instant;

use super::{Answer, Client, GRACE, Received, SETTLING, lock};
use crate::xds::{
    decode, demand,
    kind::Kind,
    protocol::{Name, Variant},
    stats::UpdateResult,
    store::{Effect, Incoming, Rejected},
};

/// A NACK names so many resources; the log names them all.
const MAX_NAMED: usize = 20;

impl Client {
    /// The server answered.
    pub(crate) fn answer(&mut self, answer: Answer, now: Instant) {
        let kind = answer.kind;
        let first = self.protocol.received(kind, &answer.nonce);
        let begun = self.protocol.since().unwrap_or(now);
        let early = first || now < begun + SETTLING;
        let grace = early.then(|| begun + GRACE);
        let wall = (self.clock)();
        self.stats.connected.store(true, Ordering::Relaxed);
        self.stats.set_trouble(None);
        self.stats.from_disk.store(false, Ordering::Relaxed);
        self.stats.updated_at(wall);

        let mut round = Round {
            kind,
            grace,
            wall,
            now,
            named: BTreeSet::new(),
            refused: Vec::new(),
            changed: Vec::new(),
            lost: false,
        };
        for received in answer.resources {
            self.take(&mut round, received);
        }
        self.removals(&mut round, &answer.removed);
        for (name, why) in &answer.errors {
            tracing::warn!(
                kind = kind.as_str(),
                name,
                why,
                "the server cannot give a resource"
            );
            self.protocol.heard_of(kind, name);
        }
        // Now that all of a type is known, what is missing of it is a gap and no wait.
        let seen = self.seen_all.insert(kind) && self.protocol.wants_all(kind);
        let whole = seen || round.lost || !round.refused.is_empty();
        let news = !round.changed.is_empty();
        match kind {
            Kind::Endpoints if news && !whole => self.refresh_members(&round.changed),
            Kind::Cluster | Kind::Endpoints | Kind::Listener | Kind::Route | Kind::Secret => {
                if news || whole {
                    self.refresh(kind != Kind::Endpoints);
                }
            }
        }
        if round.refused.is_empty() {
            self.protocol.accept(kind, &answer.version);
        } else {
            self.stats.nacks.fetch_add(1, Ordering::Relaxed);
            self.protocol.reject(kind, round.complaint());
        }
    }

    fn take(&mut self, round: &mut Round, received: Received) {
        let kind = round.kind;
        let Some((type_url, raw)) = received.body else {
            let expires = received.ttl.map(|ttl| round.now + ttl);
            lock(&self.store).heartbeat(kind, &received.name, expires);
            round.named.insert(received.name.as_str().into());
            return;
        };
        let name = if received.name.is_empty() {
            decode::name_of(kind, &raw).unwrap_or_default()
        } else {
            received.name
        };
        let name = Name::from(name);
        if !round.named.insert(Arc::clone(&name)) {
            let why = "stands twice in one answer".to_owned();
            return round
                .refused
                .push(format!("{} {name:?}: {why}", kind.as_str()));
        }
        if name.is_empty() {
            let what = kind.as_str();
            return round.refused.push(format!("{what} without a name"));
        }
        if !self.is_wanted(kind, &name) {
            tracing::debug!(kind = kind.as_str(), %name, "not asked for");
            return;
        }
        self.protocol.heard_of(kind, &name);
        if type_url != kind.type_url() {
            let why = format!("{} {name:?}: is a {type_url:?}", kind.as_str());
            return self.refuse(round, &name, received.version, why);
        }
        let incoming = Incoming {
            version: received.version.as_str().into(),
            raw,
            expires: received.ttl.map(|ttl| round.now + ttl),
            updated: round.wall,
        };
        if lock(&self.store).confirm(kind, &name, &incoming) {
            self.stats.count(kind, UpdateResult::Unchanged);
            return;
        }
        match decode::parse(kind, &incoming.raw) {
            Ok(parsed) if *parsed.name != *name => {
                let (what, inside) = (kind.as_str(), parsed.name);
                let why = format!("{what} {name:?}: is called {inside:?} inside");
                self.refuse(round, &name, received.version, why);
            }
            Ok(parsed) => {
                self.remark(kind, &name, &parsed.ignored);
                let mut store = lock(&self.store);
                let effect = store.accept(kind, &name, incoming, parsed, round.grace);
                drop(store);
                self.note(round, &name, effect, UpdateResult::Accepted);
            }
            Err(why) => self.refuse(round, &name, received.version, why.to_string()),
        }
    }

    /// Whether a resource was asked for; one that our control plane gives in advance, because the
    /// workload's other replicas use it, counts as asked for.
    fn is_wanted(&mut self, kind: Kind, name: &Name) -> bool {
        if self.protocol.wants(kind, name) {
            return true;
        }
        let address = demand::address_of(name).filter(|_| self.on_demand && kind == Kind::Listener);
        let Some(address) = address else { return false };
        let taken = self.destinations.prefetched(address);
        if taken {
            self.want();
        }
        taken
    }

    fn removals(&mut self, round: &mut Round, removed: &[String]) {
        let kind = round.kind;
        let whole = self.protocol.variant() == Variant::Sotw && kind.answers_are_complete();
        let mut gone: BTreeSet<Name> = removed.iter().map(|name| name.as_str().into()).collect();
        if whole {
            let store = lock(&self.store);
            let known = store.all(kind).map(|(name, _)| name);
            gone.extend(known.filter(|name| !round.named.contains(*name)).cloned());
            // A name that was never held may have been asked for after this answer was made.
            let by_name = |name: &Name| self.protocol.wants_name(kind, name);
            gone.retain(|name| store.held(kind, name).is_some() || !by_name(name));
        }
        for name in gone {
            self.protocol.heard_of(kind, &name);
            if !self.protocol.wants(kind, &name) {
                continue;
            }
            let effect = lock(&self.store).remove(kind, &name, round.grace);
            self.note(round, &name, effect, UpdateResult::Removed);
            if effect != Effect::Deferred {
                self.tidy_up(kind, &name);
            }
        }
    }

    /// Where everything is subscribed, what is gone needs no remembering: names come and go without
    /// end.
    pub(super) fn tidy_up(&self, kind: Kind, name: &str) {
        let mut store = lock(&self.store);
        if !self.protocol.wants_name(kind, name) && store.held(kind, name).is_none() {
            store.forget(kind, name);
        }
    }

    fn note(&mut self, round: &mut Round, name: &Name, effect: Effect, result: UpdateResult) {
        let kind = round.kind;
        match effect {
            Effect::Changed => {
                self.dirty = true;
                if result == UpdateResult::Removed {
                    round.lost = true;
                } else {
                    round.changed.push(Arc::clone(name));
                }
                self.stats.count(kind, result);
                tracing::debug!(kind = kind.as_str(), %name, result = result.as_str(), "xds");
            }
            Effect::Same => self.stats.count(kind, UpdateResult::Unchanged),
            Effect::Deferred => tracing::warn!(
                kind = kind.as_str(),
                %name,
                "the server that was just connected takes this away; kept for {GRACE:?}"
            ),
        }
    }

    fn refuse(&self, round: &mut Round, name: &Name, version: String, why: String) {
        let kind = round.kind;
        tracing::warn!(kind = kind.as_str(), %name, %why, "resource refused, the last good stays");
        self.stats.count(kind, UpdateResult::Rejected);
        let rejected = Rejected {
            version: version.into(),
            why: why.clone(),
            at: round.wall,
        };
        lock(&self.store).reject(kind, name, rejected);
        round.refused.push(why);
    }

    fn remark(&self, kind: Kind, name: &Name, ignored: &[String]) {
        if ignored.is_empty() {
            return;
        }
        self.stats.count_ignored(kind, ignored);
        tracing::debug!(kind = kind.as_str(), %name, fields = ?ignored, "fields passed over");
    }
}

/// One answer being worked on.
struct Round {
    kind: Kind,
    grace: Option<Instant>,
    wall: SystemTime,
    now: Instant,
    named: BTreeSet<Name>,
    refused: Vec<String>,
    /// Taken, and different from before.
    changed: Vec<Name>,
    /// Something was taken away or is known not to exist.
    lost: bool,
}

impl Round {
    fn complaint(&self) -> String {
        let mut text = self
            .refused
            .iter()
            .take(MAX_NAMED)
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join("; ");
        let more = self.refused.len().saturating_sub(MAX_NAMED);
        if more > 0 {
            text.push_str(&format!("; and {more} more"));
        }
        text
    }
}

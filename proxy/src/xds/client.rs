//! The whole client without sockets and tasks: answers, questions and time in; requests, snapshots
//! and resolved destinations out. `stream` puts it on a connection, `local` feeds it from a file.

mod answer;
#[cfg(test)]
mod tests;
mod want;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    assemble::{Assembler, Built},
    decode,
    demand::{self, Ask, Destinations, State},
    kind::Kind,
    persist::Saved,
    protocol::{Name, Protocol, Request, Variant},
    stats::{Stats, UpdateResult},
    store::{Incoming, Store},
};
use crate::config::Snapshot;

/// What a new stream takes away at its beginning is kept for so long, counted from there, in case
/// the server has only just started and does not know everything yet (LB-02).
pub const GRACE: Duration = Duration::from_secs(30);
/// The beginning of a stream: the first answer of each type, and so long.
const SETTLING: Duration = Duration::from_secs(5);

/// What is subscribed without being asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subscription {
    /// Every listener and every cluster, as foreign control planes expect.
    Everything,
    /// These listeners and what they lead to; destinations come on demand.
    Named(BTreeSet<Box<str>>),
}

/// Receives each new configuration.
pub type Publish = Arc<dyn Fn(Arc<Snapshot>) + Send + Sync>;
/// Wall time, for what people read.
pub type WallClock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// An answer of the server, either variant.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) kind: Kind,
    pub(crate) nonce: String,
    pub(crate) version: String,
    pub(crate) resources: Vec<Received>,
    pub(crate) removed: Vec<String>,
    /// Names that the server could not give, and why (gRFC A88).
    pub(crate) errors: Vec<(String, String)>,
}

/// One resource of an answer.
#[derive(Debug)]
pub(crate) struct Received {
    /// Empty where only the resource itself says it.
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) ttl: Option<Duration>,
    /// Type URL and bytes; `None` is a heartbeat.
    pub(crate) body: Option<(String, Bytes)>,
}

/// The client.
pub(crate) struct Client {
    protocol: Protocol,
    store: Arc<Mutex<Store>>,
    assembler: Assembler,
    destinations: Destinations,
    roots: BTreeSet<Name>,
    on_demand: bool,
    /// Types of which a whole answer came once, so that what it lacked does not exist.
    seen_all: BTreeSet<Kind>,
    /// The server can be asked: a stream is open, or the first one is being opened.
    reachable: bool,
    sweep: Option<Instant>,
    stats: Arc<Stats>,
    publish: Publish,
    clock: WallClock,
    /// Something worth keeping on disk changed.
    dirty: bool,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("protocol", &self.protocol)
            .field("reachable", &self.reachable)
            .finish_non_exhaustive()
    }
}

impl Client {
    pub(crate) fn new(
        variant: Variant,
        subscription: &Subscription,
        destinations: Destinations,
        stats: Arc<Stats>,
        publish: Publish,
        clock: WallClock,
    ) -> Self {
        let mut protocol = Protocol::new(variant);
        let mut roots = BTreeSet::new();
        let on_demand = match subscription {
            Subscription::Everything => {
                protocol.want_all(Kind::Listener);
                protocol.want_all(Kind::Cluster);
                false
            }
            Subscription::Named(names) => {
                roots.extend(names.iter().map(|name| Name::from(&**name)));
                true
            }
        };
        let mut client = Self {
            protocol,
            store: Arc::default(),
            assembler: Assembler::default(),
            destinations,
            roots,
            on_demand,
            seen_all: BTreeSet::new(),
            reachable: true,
            sweep: None,
            stats,
            publish,
            clock,
            dirty: false,
        };
        client.want();
        client
    }

    /// The resources, shared with whoever shows them.
    pub(crate) const fn store(&self) -> &Arc<Mutex<Store>> {
        &self.store
    }

    pub(crate) const fn protocol(&self) -> &Protocol {
        &self.protocol
    }

    /// Whether something changed since this was last asked.
    pub(crate) fn take_dirty(&mut self) -> bool {
        std::mem::take(&mut self.dirty)
    }

    /// Puts in what an earlier run held; it is used as it is until a server says otherwise.
    pub(crate) fn restore(&mut self, saved: Vec<Saved>) {
        let newest = saved.iter().map(|one| one.updated).max();
        for one in saved {
            self.restore_one(one);
        }
        if let Some(newest) = newest {
            self.stats.from_disk.store(true, Ordering::Relaxed);
            self.stats.updated_at(newest);
        }
        self.want();
        lock(&self.store).retain(|kind, name| self.protocol.wants(kind, name));
        // What the earlier run did not have either is not waited for.
        let built = self.assembler.assemble(&lock(&self.store), &|_, _| false);
        self.show(built);
        self.dirty = false;
    }

    fn restore_one(&mut self, one: Saved) {
        if let Some(address) = demand::address_of(&one.name).filter(|_| self.on_demand) {
            self.destinations.prefetched(address);
        }
        let Some(raw) = one.raw else {
            lock(&self.store).remove(one.kind, &one.name, None);
            return;
        };
        match decode::parse(one.kind, &raw) {
            Ok(parsed) => {
                let incoming = Incoming {
                    version: one.version,
                    raw,
                    expires: None,
                    updated: one.updated,
                };
                lock(&self.store).accept(one.kind, &one.name, incoming, parsed, None);
            }
            Err(why) => tracing::warn!(%why, "a saved resource is not usable any more"),
        }
    }

    /// What is worth keeping on disk. Keys are not.
    pub(crate) fn save(&self) -> Vec<Saved> {
        let store = lock(&self.store);
        let kinds = Kind::ALL.into_iter().filter(|kind| *kind != Kind::Secret);
        let mut all = Vec::new();
        for kind in kinds {
            all.extend(store.all_held(kind).map(|(name, held)| Saved {
                kind,
                name: Arc::clone(name),
                version: Arc::clone(&held.version),
                updated: held.updated,
                raw: Some(held.raw.clone()),
            }));
        }
        // So that the way out of the mesh is open after a restart as it was before.
        let listeners = store.all(Kind::Listener);
        all.extend(
            listeners
                .filter(|(_, entry)| entry.absent)
                .map(|(name, _)| Saved {
                    kind: Kind::Listener,
                    name: Arc::clone(name),
                    version: "".into(),
                    updated: SystemTime::UNIX_EPOCH,
                    raw: None,
                }),
        );
        all
    }

    /// A stream is open.
    pub(crate) fn connected(&mut self, now: Instant) {
        lock(&self.store).reprieve();
        self.protocol.connected(now);
        self.reachable = true;
    }

    /// The stream ended. Nothing is dropped for that (static stability).
    pub(crate) fn disconnected(&mut self) {
        self.protocol.disconnected();
        self.stats.connected.store(false, Ordering::Relaxed);
    }

    /// A stream could not be opened, or was dead: callers need not wait for the next one.
    pub(crate) fn unreachable(&mut self) {
        self.disconnected();
        self.reachable = false;
        self.destinations.unreachable();
    }

    /// The request to send next.
    pub(crate) fn next_request(&mut self, now: Instant) -> Option<Request> {
        let store = lock(&self.store);
        self.protocol.poll(now, &|kind| store.versions(kind))
    }

    /// When [`Self::timer`] has to be called at the latest.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let settle = lock(&self.store).deadline();
        [self.protocol.deadline(), settle, self.sweep]
            .into_iter()
            .flatten()
            .min()
    }

    /// Does what is due.
    pub(crate) fn timer(&mut self, now: Instant) {
        let mut changed = false;
        let answered = self.protocol.answered();
        // Silence says something only of a server that has said anything at all.
        for (kind, name) in self.protocol.overdue(now).into_iter().filter(|_| answered) {
            tracing::warn!(kind = kind.as_str(), %name, "nobody answered for this resource");
            lock(&self.store).remove(kind, &name, None);
            changed = true;
        }
        let settled = lock(&self.store).settle(now);
        for (kind, name) in settled {
            tracing::info!(kind = kind.as_str(), %name, "removed: not confirmed in time");
            self.stats.count(kind, UpdateResult::Removed);
            self.tidy_up(kind, &name);
            changed = true;
        }
        if self.sweep.is_some_and(|at| at <= now) {
            changed |= self.destinations.sweep();
            self.sweep = self.destinations.next_sweep(now);
        }
        if changed {
            self.dirty = true;
            self.refresh(true);
        }
    }

    /// A caller asks for a destination.
    pub(crate) fn ask(&mut self, ask: Ask, now: Instant) {
        if self.destinations.ask(ask, self.reachable) {
            self.want();
        }
        let next = self.destinations.next_sweep(now);
        self.sweep = self.sweep.or(next);
        self.gauge();
    }

    /// Subscribes to what was newly named, if there is such, publishes what can be used, and lets
    /// go of what nothing in use names any more.
    fn refresh(&mut self, newly_named: bool) {
        if newly_named {
            self.want();
        }
        if self.update() && self.want() {
            self.update();
        }
    }

    /// Endpoints changed and nothing else.
    fn refresh_members(&mut self, changed: &[Name]) {
        let store = lock(&self.store);
        let built = self.assembler.replace_members(&store, changed);
        drop(store);
        match built {
            Some(built) => self.show(Some(built)),
            None => self.refresh(false),
        }
    }

    /// Publishes what changed, then tells whoever waited for it. Returns whether other resources
    /// may be named than before.
    fn update(&mut self) -> bool {
        let store = lock(&self.store);
        let (protocol, seen) = (&self.protocol, &self.seen_all);
        let built = self.assembler.assemble(&store, &|kind, name| {
            let known = store.get(kind, name);
            let settled = known.is_some_and(|one| one.absent || one.rejected.is_some());
            let expected = if protocol.wants_all(kind) {
                !seen.contains(&kind)
            } else {
                protocol.wants(kind, name)
            };
            expected && !settled
        });
        drop(store);
        let renamed = built.as_ref().is_some_and(|built| !built.only_members);
        self.show(built);
        renamed
    }

    fn show(&mut self, built: Option<Built>) {
        if let Some(Built { snapshot, .. }) = built {
            self.stats.published.fetch_add(1, Ordering::Relaxed);
            (self.publish)(snapshot);
        }
        let store = lock(&self.store);
        let assembler = &self.assembler;
        self.destinations.resolve(&|name| {
            let entry = store.get(Kind::Listener, name);
            if assembler.uses_listener(name) {
                State::Known
            } else if entry.is_some_and(|entry| entry.absent) {
                State::Absent
            } else if entry.is_some_and(|entry| entry.held.is_none() && entry.rejected.is_some()) {
                State::Unusable
            } else {
                State::Asked
            }
        });
        drop(store);
        self.gauge();
    }

    fn gauge(&self) {
        let count = u64::try_from(self.destinations.len()).unwrap_or(u64::MAX);
        self.stats.destinations.store(count, Ordering::Relaxed);
    }
}

/// Locks without minding that another holder panicked: the maps are consistent between statements.
pub(crate) fn lock(store: &Mutex<Store>) -> MutexGuard<'_, Store> {
    store.lock().unwrap_or_else(PoisonError::into_inner)
}

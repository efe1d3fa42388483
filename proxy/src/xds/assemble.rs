//! Held resources in, a closed [`Snapshot`] out.
//!
//! A cluster is used when its endpoints and secrets are there, a route configuration when its
//! clusters are, a listener when its routes and clusters are. Until then the one before it is used,
//! or none (gRFC A74). What the server said does not exist, or what it sent and was refused, is not
//! waited for: it is a gap, and the data path has a stated fault for it.

use std::{collections::HashMap, sync::Arc};

use super::{
    decode::Resource,
    kind::Kind,
    protocol::Name,
    refs,
    store::{Held, Store},
};
use crate::config::{
    Cluster, Endpoints, Listener, RouteConfig, Snapshot,
    cluster::{Discovery, TlsChoice},
    listener::FilterChain,
    tls::{ClientTls, InlineSecret, SecretRef, ServerTls},
};

/// gRFC A37: aggregates may hold aggregates so deep.
const MAX_DEPTH: u32 = 16;

/// Remembers what is in use.
#[derive(Debug, Default)]
pub(crate) struct Assembler {
    clusters: HashMap<Name, Used<Cluster>>,
    routes: HashMap<Name, Arc<RouteConfig>>,
    listeners: HashMap<Name, Used<Listener>>,
    /// Clusters in use by the name under which their endpoints come.
    served: HashMap<Name, Vec<Name>>,
    /// Everything held is in use: nothing waits for anything.
    settled: bool,
    /// Stands for the endpoints of a cluster whose list does not exist.
    nobody: Arc<Endpoints>,
    snapshot: Arc<Snapshot>,
}

type Secrets = Vec<(Name, Arc<InlineSecret>)>;

/// A resource in use: as it was received, and with its secrets put in.
#[derive(Debug)]
struct Used<T> {
    held: Arc<T>,
    secrets: Secrets,
    built: Arc<T>,
}

impl<T> Clone for Used<T> {
    fn clone(&self) -> Self {
        Self {
            held: Arc::clone(&self.held),
            secrets: self.secrets.clone(),
            built: Arc::clone(&self.built),
        }
    }
}

/// Whether something that is needed can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    Met,
    /// On its way.
    Waiting,
    /// Will not come.
    Gap,
}

/// A configuration that differs from the one before.
#[derive(Debug)]
pub(crate) struct Built {
    pub(crate) snapshot: Arc<Snapshot>,
    /// Nothing but endpoints changed, so that no other resource is named than before.
    pub(crate) only_members: bool,
}

/// Says of a name that is not held whether it is still on its way.
pub(crate) type Awaited<'a> = &'a dyn Fn(Kind, &str) -> bool;

impl Assembler {
    /// The configuration in use.
    pub(crate) const fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// Whether a listener of this name is in use.
    pub(crate) fn uses_listener(&self, name: &str) -> bool {
        self.listeners.contains_key(name)
    }

    /// What the resources in use name, so that it stays subscribed while a newer one warms up.
    pub(crate) fn refs_in_use(&self, kind: Kind, name: &str) -> Vec<refs::Ref> {
        let resource = match kind {
            Kind::Cluster => self
                .clusters
                .get(name)
                .map(|used| Resource::Cluster(Arc::clone(&used.held), None)),
            Kind::Route => self.routes.get(name).cloned().map(Resource::Route),
            Kind::Listener => self
                .listeners
                .get(name)
                .map(|used| Resource::Listener(Arc::clone(&used.held))),
            Kind::Endpoints | Kind::Secret => None,
        };
        resource.as_ref().map(refs::of).unwrap_or_default()
    }

    /// Whether what is in use is what is held, so that [`Self::refs_in_use`] has nothing to add.
    pub(crate) fn is_current(&self, kind: Kind, name: &str, held: &Held) -> bool {
        match (kind, &held.resource) {
            (Kind::Cluster, Resource::Cluster(held, _)) => {
                let used = self.clusters.get(name);
                used.is_none_or(|used| Arc::ptr_eq(&used.held, held))
            }
            (Kind::Route, Resource::Route(held)) => self
                .routes
                .get(name)
                .is_none_or(|used| Arc::ptr_eq(used, held)),
            (Kind::Listener, Resource::Listener(held)) => {
                let used = self.listeners.get(name);
                used.is_none_or(|used| Arc::ptr_eq(&used.held, held))
            }
            _ => true,
        }
    }

    /// Puts changed endpoints in, at the cost of the change and of a copied table; `None` when more
    /// than that may follow from them, and [`Self::assemble`] has to be called.
    pub(crate) fn replace_members(&mut self, store: &Store, changed: &[Name]) -> Option<Built> {
        if !self.settled {
            return None;
        }
        let mut next = Snapshot::clone(&self.snapshot);
        next.generation += 1;
        for service in changed {
            let Some(Held {
                resource: Resource::Endpoints(all),
                ..
            }) = store.held(Kind::Endpoints, service)
            else {
                return None;
            };
            for cluster in self.served.get(service).into_iter().flatten() {
                next.endpoints.insert((&**cluster).into(), Arc::clone(all));
            }
        }
        self.snapshot = Arc::new(next);
        Some(Built {
            snapshot: Arc::clone(&self.snapshot),
            only_members: true,
        })
    }

    /// Builds the configuration anew; `None` when nothing changed.
    pub(crate) fn assemble(&mut self, store: &Store, awaited: Awaited<'_>) -> Option<Built> {
        let work = Work { store, awaited };
        let (clusters, endpoints) = self.clusters(&work);
        self.clusters = clusters;
        self.routes = self.routes(&work);
        self.listeners = self.listeners(&work);
        self.index(store);
        let before = &self.snapshot;
        let mut next = Snapshot {
            generation: before.generation + 1,
            clusters: keyed(&self.clusters, |used| &used.built),
            routes: keyed(&self.routes, |routes| routes),
            listeners: keyed(&self.listeners, |used| &used.built),
            endpoints: endpoints
                .iter()
                .map(|(name, all)| ((&**name).into(), Arc::clone(all)))
                .collect(),
            by_destination: HashMap::new(),
        };
        let only_members = equal(&before.clusters, &next.clusters)
            && equal(&before.routes, &next.routes)
            && equal(&before.listeners, &next.listeners);
        if only_members && equal(&before.endpoints, &next.endpoints) {
            return None;
        }
        let unbound = next.listeners.values().filter(|listener| !listener.bind);
        next.by_destination = unbound
            .map(|listener| (listener.address, Arc::clone(listener)))
            .collect();
        self.snapshot = Arc::new(next);
        Some(Built {
            snapshot: Arc::clone(&self.snapshot),
            only_members,
        })
    }

    /// Notes what [`Self::replace_members`] needs.
    fn index(&mut self, store: &Store) {
        self.served.clear();
        for (name, used) in &self.clusters {
            if let Discovery::Eds(service) = &used.held.discovery {
                let clusters = self.served.entry(Arc::clone(service)).or_default();
                clusters.push(Arc::clone(name));
            }
        }
        let kinds = [Kind::Cluster, Kind::Route, Kind::Listener];
        self.settled = kinds.into_iter().all(|kind| {
            let mut held = store.all_held(kind);
            held.all(|(name, held)| self.is_used(kind, name, held))
        });
    }

    fn is_used(&self, kind: Kind, name: &str, held: &Held) -> bool {
        let there = match kind {
            Kind::Cluster => self.clusters.contains_key(name),
            Kind::Route => self.routes.contains_key(name),
            Kind::Listener => self.listeners.contains_key(name),
            Kind::Endpoints | Kind::Secret => true,
        };
        there && self.is_current(kind, name, held)
    }

    fn clusters(&self, work: &Work<'_>) -> (HashMap<Name, Used<Cluster>>, Members) {
        let mut clusters = HashMap::new();
        let mut endpoints = HashMap::new();
        for (name, held) in work.store.all_held(Kind::Cluster) {
            let Resource::Cluster(cluster, listed) = &held.resource else {
                continue;
            };
            let before = self.clusters.get(name);
            let members = self.members(work, cluster, listed.as_ref());
            let used = match (members, work.secrets(held)) {
                (Need::Met, Ok(secrets)) => {
                    Some(keep_or(before, cluster, secrets, with_cluster_secrets))
                }
                _ => before.cloned(),
            };
            let Some(used) = used else { continue };
            let own = Arc::ptr_eq(&used.held, cluster);
            let listed = listed.as_ref().filter(|_| own);
            if let Some(all) = self.endpoints_of(work, &used.held, listed) {
                endpoints.insert(Arc::clone(name), all);
            }
            clusters.insert(Arc::clone(name), used);
        }
        (clusters, endpoints)
    }

    fn members(&self, work: &Work<'_>, cluster: &Cluster, listed: Option<&Arc<Endpoints>>) -> Need {
        match &cluster.discovery {
            Discovery::Eds(service) => match work.need(Kind::Endpoints, service) {
                // An empty list is better than none: it answers "no healthy upstream" at once.
                Need::Gap => Need::Met,
                other => other,
            },
            Discovery::Static if listed.is_none() => Need::Waiting,
            Discovery::Static
            | Discovery::Dns { .. }
            | Discovery::OriginalDst
            | Discovery::Aggregate(_) => Need::Met,
        }
    }

    fn endpoints_of(
        &self,
        work: &Work<'_>,
        cluster: &Cluster,
        listed: Option<&Arc<Endpoints>>,
    ) -> Option<Arc<Endpoints>> {
        let before = || self.snapshot.endpoints.get(&cluster.name).cloned();
        match &cluster.discovery {
            Discovery::Eds(service) => match work.store.held(Kind::Endpoints, service) {
                Some(Held {
                    resource: Resource::Endpoints(all),
                    ..
                }) => Some(Arc::clone(all)),
                _ if (work.awaited)(Kind::Endpoints, service) => before(),
                _ => Some(Arc::clone(&self.nobody)),
            },
            Discovery::Static => listed.cloned().or_else(before),
            Discovery::Dns { .. } | Discovery::OriginalDst | Discovery::Aggregate(_) => None,
        }
    }

    fn routes(&self, work: &Work<'_>) -> HashMap<Name, Arc<RouteConfig>> {
        let mut routes = HashMap::new();
        for (name, held) in work.store.all_held(Kind::Route) {
            let Resource::Route(config) = &held.resource else {
                continue;
            };
            let before = self.routes.get(name);
            let current = before.is_some_and(|before| Arc::ptr_eq(before, config));
            let used = if current || self.needs_of(work, held) {
                Some(Arc::clone(config))
            } else {
                before.cloned()
            };
            routes.extend(used.map(|used| (Arc::clone(name), used)));
        }
        routes
    }

    fn listeners(&self, work: &Work<'_>) -> HashMap<Name, Used<Listener>> {
        let mut listeners = HashMap::new();
        for (name, held) in work.store.all_held(Kind::Listener) {
            let Resource::Listener(listener) = &held.resource else {
                continue;
            };
            let before = self.listeners.get(name);
            let current = before.is_some_and(|before| Arc::ptr_eq(&before.held, listener));
            let used = match work.secrets(held) {
                Ok(secrets) if current || self.needs_of(work, held) => {
                    Some(keep_or(before, listener, secrets, with_listener_secrets))
                }
                _ => before.cloned(),
            };
            listeners.extend(used.map(|used| (Arc::clone(name), used)));
        }
        listeners
    }

    /// Whether everything that a route configuration or a listener names is in use or will not
    /// come.
    fn needs_of(&self, work: &Work<'_>, held: &Held) -> bool {
        held.refs.iter().all(|(kind, name)| match kind {
            Kind::Cluster => self.cluster_need(work, name, 0) != Need::Waiting,
            Kind::Route => self.routes.contains_key(name) || work.need(*kind, name) == Need::Gap,
            Kind::Endpoints | Kind::Listener | Kind::Secret => true,
        })
    }

    fn cluster_need(&self, work: &Work<'_>, name: &str, depth: u32) -> Need {
        let Some(used) = self.clusters.get(name) else {
            let held = work.store.held(Kind::Cluster, name);
            return match held {
                // Its secrets will not come: waiting for it would hold up everything else.
                Some(held) if work.secrets(held) == Err(Need::Gap) => Need::Gap,
                Some(_) => Need::Waiting,
                None => work.need(Kind::Cluster, name),
            };
        };
        match &used.held.discovery {
            Discovery::Aggregate(names) if depth < MAX_DEPTH => {
                let waits = |name: &crate::config::ClusterName| {
                    self.cluster_need(work, name.as_str(), depth + 1) == Need::Waiting
                };
                if names.iter().any(waits) {
                    Need::Waiting
                } else {
                    Need::Met
                }
            }
            _ => Need::Met,
        }
    }
}

type Members = HashMap<Name, Arc<Endpoints>>;

struct Work<'a> {
    store: &'a Store,
    awaited: Awaited<'a>,
}

impl Work<'_> {
    fn need(&self, kind: Kind, name: &str) -> Need {
        if self.store.held(kind, name).is_some() {
            Need::Met
        } else if (self.awaited)(kind, name) {
            Need::Waiting
        } else {
            Need::Gap
        }
    }

    /// The secrets that a resource names.
    fn secrets(&self, held: &Held) -> Result<Secrets, Need> {
        let names = held.refs.iter().filter(|(kind, _)| *kind == Kind::Secret);
        names
            .map(|(kind, name)| match self.store.held(*kind, name) {
                Some(Held {
                    resource: Resource::Secret(secret),
                    ..
                }) => Ok((Arc::clone(name), Arc::clone(secret))),
                _ => Err(self.need(*kind, name)),
            })
            .collect()
    }
}

fn keyed<K, V, T>(all: &HashMap<Name, V>, value: fn(&V) -> &Arc<T>) -> HashMap<K, Arc<T>>
where
    K: for<'n> From<&'n str> + Eq + std::hash::Hash,
{
    let each = all.iter();
    each.map(|(name, one)| ((&**name).into(), Arc::clone(value(one))))
        .collect()
}

fn equal<K: Eq + std::hash::Hash, T>(a: &HashMap<K, Arc<T>>, b: &HashMap<K, Arc<T>>) -> bool {
    a.len() == b.len()
        && a.iter()
            .all(|(key, one)| b.get(key).is_some_and(|other| Arc::ptr_eq(one, other)))
}

/// The resource with its secrets put in; the very one of before when neither changed.
fn keep_or<T>(
    before: Option<&Used<T>>,
    held: &Arc<T>,
    secrets: Secrets,
    build: fn(&T, &Secrets) -> T,
) -> Used<T> {
    let same = |before: &Secrets| {
        before.len() == secrets.len()
            && before
                .iter()
                .zip(&secrets)
                .all(|((_, a), (_, b))| Arc::ptr_eq(a, b))
    };
    if let Some(before) = before
        && Arc::ptr_eq(&before.held, held)
        && same(&before.secrets)
    {
        return before.clone();
    }
    let built = if secrets.is_empty() {
        Arc::clone(held)
    } else {
        Arc::new(build(held, &secrets))
    };
    Used {
        held: Arc::clone(held),
        secrets,
        built,
    }
}

fn with_cluster_secrets(cluster: &Cluster, secrets: &Secrets) -> Cluster {
    let client = |tls: &Option<Arc<ClientTls>>| {
        let tls = tls.as_ref()?;
        Some(Arc::new(ClientTls {
            certificate: tls.certificate.as_ref().map(|one| filled(one, secrets)),
            roots: filled(&tls.roots, secrets),
            ..ClientTls::clone(tls)
        }))
    };
    let mut out = cluster.clone();
    let mut matches = out.tls.matches;
    for entry in &mut matches {
        entry.tls = client(&entry.tls);
    }
    out.tls = TlsChoice {
        default: client(&out.tls.default),
        matches,
    };
    out
}

fn with_listener_secrets(listener: &Listener, secrets: &Secrets) -> Listener {
    let chain = |chain: &Arc<FilterChain>| {
        let Some(tls) = &chain.tls else {
            return Arc::clone(chain);
        };
        Arc::new(FilterChain {
            tls: Some(Arc::new(ServerTls {
                certificate: filled(&tls.certificate, secrets),
                roots: tls.roots.as_ref().map(|one| filled(one, secrets)),
                ..ServerTls::clone(tls)
            })),
            ..FilterChain::clone(chain)
        })
    };
    Listener {
        chains: listener.chains.iter().map(chain).collect(),
        default_chain: listener.default_chain.as_ref().map(chain),
        ..listener.clone()
    }
}

fn filled(reference: &SecretRef, secrets: &Secrets) -> SecretRef {
    match reference {
        SecretRef::Sds(name) => {
            let found = secrets.iter().find(|(own, _)| own == name);
            found.map_or_else(
                || reference.clone(),
                |(_, one)| SecretRef::Inline(Arc::clone(one)),
            )
        }
        SecretRef::Workload | SecretRef::MeshRoots | SecretRef::Inline(_) => reference.clone(),
    }
}

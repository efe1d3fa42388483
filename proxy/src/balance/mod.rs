//! Clusters at work: who is a member, who may be chosen, how much may be in flight, and what is
//! learned from each answer. Shared by all workers; the request path takes no lock but that of a
//! configured breaker.

mod breaker;
mod budget;
mod cluster;
mod endpoint;
pub mod health;
mod outlier;
mod pick;
mod tables;
#[cfg(test)]
mod tests;
mod zones;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use cluster::{ClusterRun, Makings};

pub use breaker::BreakerState;
pub use cluster::{
    ClusterHandle, ClusterStats, ConnectionPermit, PendingPermit, Picked, RequestPermit,
    RetryPermit,
};
pub use endpoint::{EndpointState, EndpointView};
pub use outlier::EjectionReason;
pub use pick::PickCx;

use crate::config::{
    Cluster, ClusterName, Endpoints, Snapshot,
    cluster::{Balancing, Discovery},
    endpoint::Locality,
};

/// Aggregates may name aggregates so deep; what is deeper is left out.
const MAX_DEPTH: usize = 8;

/// How a try or a request ended, as far as it says something about the endpoint or the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Success,
    /// A 5xx other than the gateway ones, or a gRPC status that blames the server.
    ServerError,
    /// 502, 503, 504.
    GatewayError,
    ConnectFailed,
    Timeout,
    Reset,
    /// The client went away, or the answer is the client's fault.
    Neutral,
}

/// What workers read through one pointer.
#[derive(Clone, Debug, Default)]
pub struct Live {
    pub snapshot: Arc<Snapshot>,
    pub clusters: HashMap<ClusterName, Arc<ClusterHandle>>,
}

/// Makes [`Live`] out of snapshots, carrying over what was learned.
#[derive(Debug)]
pub struct Clusters {
    base: Instant,
    home: Arc<Locality>,
    current: HashMap<ClusterName, Arc<ClusterHandle>>,
    ids: Arc<AtomicU64>,
}

impl Clusters {
    /// No clusters yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            base: now,
            home: Arc::default(),
            current: HashMap::new(),
            ids: Arc::new(AtomicU64::new(1)),
        }
    }

    /// The same for a proxy that runs in `home`, which zone-aware clusters prefer.
    #[must_use]
    pub fn at_home(mut self, home: Locality) -> Self {
        self.home = Arc::new(home);
        self
    }

    /// The handles for `snapshot`. A cluster whose resource and members are the very same keeps its
    /// handle; a member whose address stays keeps its ejection, latency and requests in flight
    /// (RT-10); one that left and came back is new.
    pub fn update(&mut self, snapshot: Arc<Snapshot>, now: Instant) -> Live {
        let none = Arc::new(Endpoints::default());
        let mut next = HashMap::with_capacity(snapshot.clusters.len());
        let is_aggregate = |c: &Cluster| matches!(c.discovery, Discovery::Aggregate(_));
        for (name, config) in snapshot.clusters.iter().filter(|(_, c)| !is_aggregate(c)) {
            let source = snapshot.endpoints.get(name).unwrap_or(&none);
            let old = self.current.get(name);
            let handle = match old {
                Some(old)
                    if Arc::ptr_eq(&old.config, config)
                        && (Arc::ptr_eq(&old.source, source)
                            || (old.source.priorities.is_empty() && old.source == *source)) =>
                {
                    Arc::clone(old)
                }
                _ => self.renewed(old, config, source, Vec::new(), now),
            };
            next.insert(name.clone(), handle);
        }
        for (name, config) in snapshot.clusters.iter().filter(|(_, c)| is_aggregate(c)) {
            let mut flat = Flat {
                snapshot: &snapshot,
                made: &next,
                seen: HashSet::new(),
                parts: Vec::new(),
            };
            flat.add(name, MAX_DEPTH);
            let parts = flat.parts;
            let old = self.current.get(name);
            let same = |old: &&Arc<ClusterHandle>| {
                let mut pairs = old.parts.iter().zip(&parts);
                Arc::ptr_eq(&old.config, config)
                    && old.parts.len() == parts.len()
                    && pairs.all(|(a, b)| Arc::ptr_eq(a, b))
            };
            let handle = match old.filter(same) {
                Some(old) => Arc::clone(old),
                None => self.renewed(old, config, &none, parts, now),
            };
            next.insert(name.clone(), handle);
        }
        for (name, old) in &self.current {
            match next.get(name) {
                Some(new) if Arc::ptr_eq(new, old) => {}
                new => mark_removed(old, new),
            }
        }
        self.current.clone_from(&next);
        Live {
            snapshot,
            clusters: next,
        }
    }

    fn renewed(
        &self,
        old: Option<&Arc<ClusterHandle>>,
        config: &Arc<Cluster>,
        source: &Arc<Endpoints>,
        parts: Vec<Arc<ClusterHandle>>,
        now: Instant,
    ) -> Arc<ClusterHandle> {
        let known: HashMap<_, _> = old
            .iter()
            .flat_map(|old| old.members.iter().flatten())
            .map(|member| (member.config.address, &member.run))
            .collect();
        let rtt = match config.balancing {
            Balancing::PeakEwma { default_rtt, .. } => default_rtt,
            _ => Duration::ZERO,
        };
        let member = |endpoint: &Arc<crate::config::endpoint::Endpoint>| {
            let run = known.get(&endpoint.address).map_or_else(
                || endpoint::Runtime::new(self.ids.fetch_add(1, Relaxed), self.base, rtt, now),
                |run| Arc::clone(run),
            );
            Arc::new(EndpointState {
                id: run.id,
                tls: config.tls.of(endpoint).cloned(),
                config: Arc::clone(endpoint),
                run,
            })
        };
        let members = source
            .priorities
            .iter()
            .map(|level| {
                let all = level.iter().flat_map(|locality| &locality.endpoints);
                all.map(member).collect()
            })
            .collect();
        let run = old.map_or_else(|| ClusterRun::new(self.base), |old| Arc::clone(&old.run));
        let makings = Makings {
            config: Arc::clone(config),
            source: Arc::clone(source),
            run,
            members,
            parts,
            home: Arc::clone(&self.home),
            ids: Arc::clone(&self.ids),
        };
        ClusterHandle::new(makings, now)
    }
}

/// The clusters that an aggregate is made of in the end, in order, each once.
struct Flat<'a> {
    snapshot: &'a Snapshot,
    made: &'a HashMap<ClusterName, Arc<ClusterHandle>>,
    /// Names met before add nothing new; this also ends cycles.
    seen: HashSet<&'a ClusterName>,
    parts: Vec<Arc<ClusterHandle>>,
}

impl<'a> Flat<'a> {
    fn add(&mut self, name: &'a ClusterName, depth: usize) {
        if !self.seen.insert(name) {
            return;
        }
        // The resource is asked first: handles of other aggregates may be among those made.
        let config = self.snapshot.clusters.get(name);
        if let Some(Discovery::Aggregate(names)) = config.map(|config| &config.discovery) {
            for name in names.iter().filter(|_| depth > 0) {
                self.add(name, depth - 1);
            }
        } else if let Some(handle) = self.made.get(name) {
            self.parts.push(Arc::clone(handle));
        }
    }
}

/// Tells those who hold an endpoint that its address is no member any more.
fn mark_removed(old: &ClusterHandle, new: Option<&Arc<ClusterHandle>>) {
    for member in old.members.iter().flatten() {
        let stays = new.is_some_and(|new| {
            let mut members = new.members.iter().flatten();
            members.any(|other| Arc::ptr_eq(&other.run, &member.run))
        });
        if !stays {
            member.run.remove();
        }
    }
}

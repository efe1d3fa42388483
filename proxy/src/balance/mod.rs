//! Clusters at work: who is a member, who may be chosen, how much may be in flight, and what is
//! learned from each answer. Shared by all workers; the request path takes no lock but that of a
//! configured breaker.

mod breaker;
mod cluster;
mod endpoint;
mod pick;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

pub use breaker::BreakerState;
pub use cluster::{
    ClusterHandle, ClusterStats, ConnectionPermit, PendingPermit, Picked, RequestPermit,
    RetryPermit,
};
pub use endpoint::{EndpointState, EndpointView};
pub use pick::PickCx;

use crate::config::{Cluster, ClusterName, Endpoints, Snapshot, cluster::Balancing};

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
    current: HashMap<ClusterName, Arc<ClusterHandle>>,
    ids: Arc<AtomicU64>,
}

impl Clusters {
    /// No clusters yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            base: now,
            current: HashMap::new(),
            ids: Arc::new(AtomicU64::new(1)),
        }
    }

    /// The handles for `snapshot`. A cluster whose resource and members are the very same keeps its
    /// handle; a member whose address stays keeps its ejection, latency and requests in flight
    /// (RT-10); one that left and came back is new.
    pub fn update(&mut self, snapshot: Arc<Snapshot>, now: Instant) -> Live {
        let none = Arc::new(Endpoints::default());
        let mut next = HashMap::with_capacity(snapshot.clusters.len());
        for (name, config) in &snapshot.clusters {
            let source = snapshot.endpoints.get(name).unwrap_or(&none);
            let old = self.current.get(name);
            let handle = match old {
                Some(old)
                    if Arc::ptr_eq(&old.config, config)
                        && (Arc::ptr_eq(&old.source, source)
                            || (old.members.is_empty() && source.priorities.is_empty())) =>
                {
                    Arc::clone(old)
                }
                _ => self.renewed(old, config, source, now),
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
                || endpoint::Runtime::new(self.ids.fetch_add(1, Relaxed), self.base, rtt),
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
        let run = old.map_or_else(
            || cluster::ClusterRun::new(self.base),
            |old| Arc::clone(&old.run),
        );
        ClusterHandle::new(
            Arc::clone(config),
            Arc::clone(source),
            run,
            members,
            Arc::clone(&self.ids),
            now,
        )
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
            member.run.removed.store(true, Relaxed);
        }
    }
}

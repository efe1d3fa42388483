//! The counters that requests and connections feed, found without a lock and without formatting.
//!
//! A series belongs to a (direction, cluster, route, peer). It is made when first used and dies
//! when its cluster or route leaves the configuration. Their number is bounded: beyond
//! [`MAX_PEERS`] the peer is `other`, beyond [`MAX_SERIES`] everything is (OB-04).

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwap;

use super::metrics::{BUCKETS, Value};
use crate::config::listener::Direction;

/// Series of requests in all: a pod that calls a hundred services with ten routes each has half.
/// One takes about 600 bytes, so all of them 1.2 MiB.
pub const MAX_SERIES: usize = 2048;
/// Peers told apart on one route. More than that call only a few services, and those can tell by
/// their access log.
pub const MAX_PEERS: usize = 64;
/// Answers told apart in one series; status codes are few, but an upstream may invent them.
pub(super) const MAX_OUTCOMES: usize = 48;
/// What is counted together.
pub const OTHER: &str = "other";

/// A histogram over [`BUCKETS`].
#[derive(Debug, Default)]
pub(super) struct Histogram {
    /// One more than there are bounds: the last has none.
    counts: [AtomicU64; BUCKETS.len() + 1],
    sum_nanos: AtomicU64,
}

impl Histogram {
    pub(super) fn observe(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let at = BUCKETS.partition_point(|bound| *bound < seconds);
        if let Some(count) = self.counts.get(at) {
            count.fetch_add(1, Relaxed);
        }
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.sum_nanos.fetch_add(nanos, Relaxed);
    }

    /// `None` as long as it is empty.
    pub(super) fn value(&self) -> Option<Value> {
        let bounds = BUCKETS.iter().copied().chain([f64::INFINITY]);
        let counts = self.counts.iter().map(|count| count.load(Relaxed));
        let buckets: Vec<_> = bounds.zip(counts).collect();
        let sum = Duration::from_nanos(self.sum_nanos.load(Relaxed)).as_secs_f64();
        let some = buckets.iter().any(|(_, count)| *count > 0);
        some.then_some(Value::Histogram { sum, buckets })
    }
}

/// Counters by a small key, in a list that only grows, at most [`MAX_OUTCOMES`] long.
#[derive(Debug, Default)]
pub(super) struct Outcomes {
    first: OnceLock<Box<Outcome>>,
}

#[derive(Debug)]
struct Outcome {
    key: u64,
    count: AtomicU64,
    next: OnceLock<Box<Self>>,
}

impl Outcomes {
    /// What does not fit any more is counted here.
    pub(super) const OVERFLOW: u64 = u64::MAX;

    pub(super) fn count(&self, key: u64) {
        let mut at = &self.first;
        for n in 0..=MAX_OUTCOMES {
            let key = if n == MAX_OUTCOMES {
                Self::OVERFLOW
            } else {
                key
            };
            let outcome = at.get_or_init(|| {
                Box::new(Outcome {
                    key,
                    count: AtomicU64::new(0),
                    next: OnceLock::new(),
                })
            });
            if outcome.key == key || outcome.key == Self::OVERFLOW {
                outcome.count.fetch_add(1, Relaxed);
                return;
            }
            at = &outcome.next;
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        let first = self.first.get();
        std::iter::successors(first, |outcome| outcome.next.get())
            .map(|outcome| (outcome.key, outcome.count.load(Relaxed)))
    }
}

/// What one (direction, cluster, route, peer) counts.
#[derive(Debug, Default)]
pub(super) struct RouteSeries {
    /// By status, gRPC status and flag.
    pub(super) outcomes: Outcomes,
    pub(super) duration: Histogram,
    pub(super) request_bytes: AtomicU64,
    pub(super) response_bytes: AtomicU64,
    /// Opaque connections by flag.
    pub(super) connections: Outcomes,
    pub(super) sent: AtomicU64,
    pub(super) received: AtomicU64,
}

/// What one (direction, cluster) counts.
#[derive(Debug, Default)]
pub(super) struct ClusterSeries {
    pub(super) attempts: Outcomes,
    pub(super) connect: Histogram,
    pub(super) tls: Histogram,
}

/// Names of a series; empty where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subject<'a> {
    pub(super) direction: Direction,
    pub(super) cluster: &'a str,
    pub(super) route: &'a str,
    pub(super) peer: &'a str,
}

type Peers = HashMap<Arc<str>, Arc<RouteSeries>>;

/// One cluster's.
#[derive(Clone, Debug, Default)]
struct Node {
    own: Arc<ClusterSeries>,
    routes: HashMap<Arc<str>, Peers>,
}

type Side = HashMap<Arc<str>, Arc<Node>>;

#[derive(Clone, Debug, Default)]
struct Tree {
    inbound: Side,
    outbound: Side,
    routes: usize,
}

impl Tree {
    const fn side(&self, direction: Direction) -> &Side {
        match direction {
            Direction::Inbound => &self.inbound,
            Direction::Outbound => &self.outbound,
        }
    }

    const fn side_mut(&mut self, direction: Direction) -> &mut Side {
        match direction {
            Direction::Inbound => &mut self.inbound,
            Direction::Outbound => &mut self.outbound,
        }
    }

    fn find(&self, of: &Subject<'_>) -> Option<(Arc<RouteSeries>, Arc<ClusterSeries>)> {
        let node = self.side(of.direction).get(of.cluster)?;
        let peers = node.routes.get(of.route)?;
        let series = match peers.get(of.peer) {
            None if peers.len() > MAX_PEERS => peers.get(OTHER)?,
            found => found?,
        };
        Some((Arc::clone(series), Arc::clone(&node.own)))
    }

    fn count(&mut self) {
        let sides = [&self.inbound, &self.outbound];
        let nodes = sides.into_iter().flat_map(HashMap::values);
        let peers = nodes.flat_map(|node| node.routes.values());
        self.routes = peers.map(HashMap::len).sum();
    }
}

/// All series. Reading is wait-free; a new series copies the table of its cluster.
#[derive(Debug, Default)]
pub(super) struct Store {
    tree: ArcSwap<Tree>,
    growing: Mutex<()>,
    overflow: [(Arc<RouteSeries>, Arc<ClusterSeries>); 2],
    overflowed: AtomicU64,
}

impl Store {
    /// The series of `of`.
    pub(super) fn get(&self, of: &Subject<'_>) -> (Arc<RouteSeries>, Arc<ClusterSeries>) {
        let tree = self.tree.load();
        match tree.find(of) {
            Some(found) => found,
            None if tree.routes >= MAX_SERIES => self.overflow(of.direction),
            None => self.grow(of),
        }
    }

    fn overflow(&self, direction: Direction) -> (Arc<RouteSeries>, Arc<ClusterSeries>) {
        self.overflowed.fetch_add(1, Relaxed);
        let [inbound, outbound] = &self.overflow;
        match direction {
            Direction::Inbound => inbound.clone(),
            Direction::Outbound => outbound.clone(),
        }
    }

    #[cold]
    fn grow(&self, of: &Subject<'_>) -> (Arc<RouteSeries>, Arc<ClusterSeries>) {
        let _growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.tree.load_full();
        // Another worker may have been first.
        if let Some(found) = now.find(of) {
            return found;
        }
        if now.routes >= MAX_SERIES {
            return self.overflow(of.direction);
        }
        let mut next = Tree::clone(&now);
        let node = next
            .side_mut(of.direction)
            .entry(of.cluster.into())
            .or_default();
        let node = Arc::make_mut(node);
        let peers = node.routes.entry(of.route.into()).or_default();
        let peer = if peers.len() >= MAX_PEERS {
            OTHER
        } else {
            of.peer
        };
        let series = Arc::clone(peers.entry(peer.into()).or_default());
        let found = (series, Arc::clone(&node.own));
        next.count();
        self.tree.store(Arc::new(next));
        found
    }

    /// Drops what is not configured any more.
    pub(super) fn retain(&self, lives: &dyn Fn(&str, &str) -> bool) {
        let _growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.tree.load_full();
        let mut next = Tree::clone(&now);
        for side in [&mut next.inbound, &mut next.outbound] {
            for (cluster, node) in side.iter_mut() {
                if !node.routes.keys().all(|route| lives(cluster, route)) {
                    let node = Arc::make_mut(node);
                    node.routes.retain(|route, _| lives(cluster, route));
                }
            }
            side.retain(|_, node| !node.routes.is_empty());
        }
        next.count();
        if next.routes != now.routes {
            self.tree.store(Arc::new(next));
        }
    }

    /// Requests that were counted under [`OTHER`].
    pub(super) fn overflowed(&self) -> u64 {
        self.overflowed.load(Relaxed)
    }

    /// Each cluster's own counters.
    pub(super) fn each_cluster(&self, mut see: impl FnMut(Direction, &str, &ClusterSeries)) {
        let tree = self.tree.load_full();
        for direction in [Direction::Inbound, Direction::Outbound] {
            for (cluster, node) in tree.side(direction) {
                see(direction, cluster, &node.own);
            }
        }
        for (direction, (_, own)) in self.overflow_by_direction() {
            see(direction, OTHER, own);
        }
    }

    /// Each series of requests and opaque connections.
    pub(super) fn each_route(&self, mut see: impl FnMut(Subject<'_>, &RouteSeries)) {
        let tree = self.tree.load_full();
        for direction in [Direction::Inbound, Direction::Outbound] {
            for (cluster, node) in tree.side(direction) {
                for (route, peers) in &node.routes {
                    for (peer, series) in peers {
                        let subject = Subject {
                            direction,
                            cluster,
                            route,
                            peer,
                        };
                        see(subject, series);
                    }
                }
            }
        }
        for (direction, (series, _)) in self.overflow_by_direction() {
            let subject = Subject {
                direction,
                cluster: OTHER,
                route: OTHER,
                peer: OTHER,
            };
            see(subject, series);
        }
    }

    fn overflow_by_direction(
        &self,
    ) -> impl Iterator<Item = (Direction, &(Arc<RouteSeries>, Arc<ClusterSeries>))> {
        [Direction::Inbound, Direction::Outbound]
            .into_iter()
            .zip(&self.overflow)
    }
}

#[cfg(test)]
mod tests;

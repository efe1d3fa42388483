//! What a worker needs to serve a request: the configuration in force, its own connections, and the
//! few things all workers share.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use arc_swap::ArcSwap;
use rand::{SeedableRng, rngs::StdRng};
use tokio::{sync::Notify, time::Instant};

use super::{fault_injection::ActiveFaults, ratelimit::TokenBucket};
use crate::{
    balance::{EndpointState, Live},
    config::{
        Cluster, Listener, RouteConfig, RouteConfigName,
        listener::{ChainKind, Direction, HttpFilter, HttpManager, LocalRateLimit, Routes},
        route::RouteRateLimit,
        snapshot::Snapshot,
    },
    drain::Drain,
    pool::{Pool, Target},
    route::RouteTable,
    telemetry::Telemetry,
    tls::{IdentityStore, ServerTlsCache},
    xds::Demand,
};

/// The configuration in force, with what is derived from it once per change.
#[derive(Debug, Default)]
pub struct World {
    pub live: Live,
    /// Which of this process's configurations it is; no two have the same.
    pub serial: u64,
    /// The catch-all listeners, by direction.
    pub inbound: Option<Arc<Listener>>,
    pub outbound: Option<Arc<Listener>>,
    /// Compiled route configurations from RDS.
    tables: HashMap<RouteConfigName, Arc<RouteTable>>,
    /// Compiled inline ones, by the address of their connection manager, which `live` keeps alive.
    inline: HashMap<usize, Arc<RouteTable>>,
    /// Token buckets, by the address of their setting, which `live` keeps alive.
    buckets: HashMap<usize, Arc<TokenBucket>>,
    /// Those of routes, by name.
    route_buckets: HashMap<Arc<str>, Arc<TokenBucket>>,
}

/// What serves a request: a connection manager, and the configuration in which its routes are
/// looked up. Taken together: inline routes are found in no other configuration than one that has
/// the manager.
#[derive(Clone, Debug)]
pub struct InForce {
    /// The configuration.
    pub world: Arc<World>,
    /// The manager.
    pub manager: Arc<HttpManager>,
}

impl World {
    /// Derives the next world; what did not change is carried over from `previous`.
    #[must_use]
    pub fn next(previous: &Self, live: Live, now: Instant) -> Self {
        let snapshot = Arc::clone(&live.snapshot);
        let tables = snapshot
            .routes
            .iter()
            .map(|(name, config)| {
                let kept = previous
                    .live
                    .snapshot
                    .routes
                    .get(name)
                    .filter(|old| Arc::ptr_eq(old, config))
                    .and_then(|_| previous.tables.get(name));
                let table =
                    kept.map_or_else(|| Arc::new(RouteTable::new(Arc::clone(config))), Arc::clone);
                (name.clone(), table)
            })
            .collect();
        let mut inline = HashMap::new();
        let mut buckets = HashMap::new();
        let kept: HashSet<_> = managers(&previous.live.snapshot)
            .map(|manager| Arc::as_ptr(manager).addr())
            .collect();
        for manager in managers(&snapshot) {
            let key = Arc::as_ptr(manager).addr();
            // The same address means the same manager only because the old world keeps it alive.
            let same = kept.contains(&key);
            if let Routes::Inline(config) = &manager.routes {
                inline.entry(key).or_insert_with(|| {
                    let old = previous.inline.get(&key).filter(|_| same);
                    old.map_or_else(|| Arc::new(RouteTable::new(Arc::clone(config))), Arc::clone)
                });
            }
            for filter in &manager.filters {
                if let HttpFilter::LocalRateLimit(Some(limit)) = filter {
                    let key = Arc::as_ptr(limit).addr();
                    buckets.entry(key).or_insert_with(|| {
                        let old = previous.buckets.get(&key).filter(|_| same);
                        old.map_or_else(|| Arc::new(TokenBucket::new(**limit, now)), Arc::clone)
                    });
                }
            }
        }
        let route_buckets = route_limits(&snapshot)
            .map(|own| {
                let old = previous.route_buckets.get(&own.name);
                let old = old.filter(|old| *old.config() == own.limit);
                let new = || Arc::new(TokenBucket::new(own.limit, now));
                (Arc::clone(&own.name), old.map_or_else(new, Arc::clone))
            })
            .collect();
        let catch_all = |direction| {
            snapshot
                .listeners
                .values()
                .find(|l| l.direction == direction && l.use_original_dst && l.bind)
                .cloned()
        };
        Self {
            inbound: catch_all(Direction::Inbound),
            outbound: catch_all(Direction::Outbound),
            tables,
            inline,
            buckets,
            route_buckets,
            live,
            serial: previous.serial.wrapping_add(1),
        }
    }

    /// The token bucket of a rate limit of routes.
    #[must_use]
    pub fn route_bucket(&self, limit: &RouteRateLimit) -> Option<&Arc<TokenBucket>> {
        self.route_buckets.get(&limit.name)
    }

    /// The token bucket of a rate limit.
    #[must_use]
    pub fn bucket(&self, limit: &Arc<LocalRateLimit>) -> Option<&Arc<TokenBucket>> {
        self.buckets.get(&Arc::as_ptr(limit).addr())
    }

    /// The routes of a connection manager; `None` while RDS has not delivered them.
    #[must_use]
    pub fn routes(&self, manager: &Arc<HttpManager>) -> Option<&Arc<RouteTable>> {
        match &manager.routes {
            Routes::Inline(_) => self.inline.get(&Arc::as_ptr(manager).addr()),
            Routes::Rds(name) => self.tables.get(name),
        }
    }

    /// Every route configuration in force.
    pub fn route_configs(&self) -> impl Iterator<Item = &Arc<RouteConfig>> {
        route_configs(&self.live.snapshot)
    }

    /// The catch-all listener of a direction.
    #[must_use]
    pub const fn catch_all(&self, direction: Direction) -> Option<&Arc<Listener>> {
        match direction {
            Direction::Inbound => self.inbound.as_ref(),
            Direction::Outbound => self.outbound.as_ref(),
        }
    }

    /// The listener that serves an original destination, if one does: by its exact address, else by
    /// its port alone.
    #[must_use]
    pub fn destination(&self, address: SocketAddr) -> Option<&Arc<Listener>> {
        let by_destination = &self.live.snapshot.by_destination;
        by_destination.get(&address).or_else(|| {
            let any: SocketAddr = if address.is_ipv4() {
                (std::net::Ipv4Addr::UNSPECIFIED, address.port()).into()
            } else {
                (std::net::Ipv6Addr::UNSPECIFIED, address.port()).into()
            };
            by_destination.get(&any)
        })
    }
}

fn route_configs(snapshot: &Snapshot) -> impl Iterator<Item = &Arc<RouteConfig>> {
    let inline = managers(snapshot).filter_map(|manager| match &manager.routes {
        Routes::Inline(config) => Some(config),
        Routes::Rds(_) => None,
    });
    snapshot.routes.values().chain(inline)
}

/// The rate limits of all virtual hosts and routes.
fn route_limits(snapshot: &Snapshot) -> impl Iterator<Item = &Arc<RouteRateLimit>> {
    let hosts = route_configs(snapshot).flat_map(|config| &config.virtual_hosts);
    hosts
        .flat_map(|host| {
            let routes = host.routes.iter().map(|route| &route.filters);
            std::iter::once(&host.filters).chain(routes)
        })
        .filter_map(|filters| filters.rate_limit.as_ref()?.as_ref())
}

fn managers(snapshot: &Snapshot) -> impl Iterator<Item = &Arc<HttpManager>> {
    snapshot
        .listeners
        .values()
        .chain(snapshot.by_destination.values())
        .flat_map(|listener| listener.chains.iter().chain(&listener.default_chain))
        .filter_map(|chain| match &chain.kind {
            ChainKind::Http(manager) => Some(manager),
            ChainKind::Tcp(_) => None,
        })
}

/// What all workers share.
#[derive(Debug)]
pub struct Shared {
    pub world: ArcSwap<World>,
    /// Told each time `world` changes.
    pub changed: Notify,
    /// Asks the control plane for a destination that is not known yet.
    pub demand: OnceLock<Demand>,
    pub identity: Arc<IdentityStore>,
    pub server_tls: ServerTlsCache,
    pub drain: Drain,
    pub telemetry: Arc<Telemetry>,
    /// Faults made on purpose that are under way.
    pub faults: ActiveFaults,
    /// Ports of this proxy, which nothing may be sent to (TC-10).
    pub own_ports: Vec<u16>,
    /// Addresses of this pod. A call that is balanced to the pod itself stays inside it and needs
    /// no TLS (KU-13).
    pub own_ips: Vec<IpAddr>,
}

/// Where nothing comes on demand.
static NO_DEMAND: Demand = Demand::none();

impl Shared {
    /// Asks for destinations.
    #[must_use]
    pub fn demand(&self) -> &Demand {
        self.demand.get().unwrap_or(&NO_DEMAND)
    }

    /// Whether an address is this pod's. The loopback is not counted in: whoever configures TLS for
    /// an endpoint there wants it.
    #[must_use]
    pub fn is_own(&self, ip: IpAddr) -> bool {
        self.own_ips.contains(&ip)
    }
}

/// One worker thread's own things.
#[derive(Debug)]
pub struct Worker {
    pub shared: Arc<Shared>,
    pub pool: Arc<Pool>,
    rng: Mutex<StdRng>,
}

impl Worker {
    /// A worker whose random choices follow `seed`.
    #[must_use]
    pub fn new(shared: Arc<Shared>, pool: Arc<Pool>, seed: u64) -> Arc<Self> {
        Arc::new(Self {
            shared,
            pool,
            rng: Mutex::new(StdRng::seed_from_u64(seed)),
        })
    }

    /// Draws from the worker's generator. The lock is this thread's alone and never waited for.
    pub fn with_rng<T>(&self, draw: impl FnOnce(&mut StdRng) -> T) -> T {
        draw(&mut self.rng.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Worker {
    /// Where and how to connect for an endpoint of a cluster.
    #[must_use]
    pub fn target(&self, cluster: &Cluster, endpoint: &EndpointState) -> Target {
        let address = endpoint.config.address;
        let own = self.shared.is_own(address.ip());
        Target {
            endpoint: endpoint.id,
            cluster: cluster.name.clone(),
            address,
            tls: endpoint.tls.clone().filter(|_| !own),
            connect_timeout: cluster.connect_timeout,
            idle_timeout: cluster.idle_timeout,
            max_requests: cluster.max_requests_per_connection,
            h2_keepalive: cluster.h2_keepalive,
            generation: endpoint.generation(),
        }
    }
}

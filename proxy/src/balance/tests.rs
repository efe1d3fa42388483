//! Clusters at work, by their public face. What the tests need to build one is here.

mod choice;
mod limits;
mod membership;
mod outlier;

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use rand::{SeedableRng, rngs::StdRng};
use tokio::time::Instant;

use super::{ClusterHandle, Clusters, Outcome, PickCx, Picked};
use crate::config::{
    Cluster, Endpoints, Snapshot,
    cluster::{
        Balancing, Discovery, Limits, LocalityMode, Outlier, RetryBudget, TlsChoice,
        UpstreamProtocol,
    },
    endpoint::{Endpoint, HealthStatus, Locality, LocalityEndpoints},
};

pub(super) const MS: Duration = Duration::from_millis(1);
pub(super) const SECOND: Duration = Duration::from_secs(1);

pub(super) fn rng() -> StdRng {
    StdRng::seed_from_u64(1)
}

pub(super) fn cluster(balancing: Balancing) -> Cluster {
    Cluster {
        name: "c".to_owned().into(),
        discovery: Discovery::Eds("c".into()),
        connect_timeout: SECOND,
        balancing,
        locality: LocalityMode::Ignore,
        panic_threshold: 50,
        protocol: UpstreamProtocol::Http1,
        max_requests_per_connection: None,
        idle_timeout: None,
        limits: Limits::DEFAULT,
        high_priority_limits: Limits::DEFAULT,
        outlier: None,
        breaker: None,
        health_checks: Vec::new(),
        close_on_health_failure: false,
        tls: TlsChoice::default(),
        tcp_keepalive: None,
        slow_start: None,
        h2_keepalive: None,
    }
}

pub(super) const EWMA: Balancing = Balancing::PeakEwma {
    decay: Duration::from_secs(10),
    default_rtt: Duration::from_millis(30),
};

pub(super) fn outlier() -> Outlier {
    Outlier {
        interval: 10 * SECOND,
        base_ejection: 30 * SECOND,
        max_ejection: 300 * SECOND,
        max_ejection_percent: 100,
        always_eject_one: false,
        consecutive_5xx: Some(5),
        consecutive_gateway: None,
        consecutive_local: Some(5),
        split_local: false,
        success_rate: None,
        failure_percentage: None,
    }
}

pub(super) fn at(n: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], n))
}

pub(super) fn endpoint(n: u16) -> Endpoint {
    Endpoint {
        address: at(n),
        health: HealthStatus::Healthy,
        weight: 1,
        hostname: None,
        health_check_address: None,
        transport_match: Vec::new(),
        hash_key: None,
        workload: None,
    }
}

pub(super) fn zone(name: &str) -> Locality {
    Locality {
        zone: name.into(),
        ..Locality::default()
    }
}

pub(super) fn place(name: &str, weight: Option<u32>, all: Vec<Endpoint>) -> LocalityEndpoints {
    LocalityEndpoints {
        locality: zone(name),
        weight,
        endpoints: all.into_iter().map(Arc::new).collect(),
    }
}

pub(super) fn endpoints(priorities: Vec<Vec<LocalityEndpoints>>) -> Endpoints {
    Endpoints {
        priorities,
        drops: Vec::new(),
        overprovisioning: 140,
    }
}

/// Members 1 to `n`, all alike.
pub(super) fn plain(n: u16) -> Endpoints {
    endpoints(vec![vec![place("", None, (1..=n).map(endpoint).collect())]])
}

/// One cluster under a control plane that is the test.
pub(super) struct World {
    pub(super) clusters: Clusters,
    pub(super) handle: Arc<ClusterHandle>,
    pub(super) rng: StdRng,
}

impl World {
    pub(super) fn new(config: Cluster, members: Endpoints) -> Self {
        Self::at_home(config, members, Locality::default())
    }

    pub(super) fn at_home(config: Cluster, members: Endpoints, home: Locality) -> Self {
        let mut clusters = Clusters::new(Instant::now()).at_home(home);
        let handle = push(&mut clusters, Arc::new(config), members);
        Self {
            clusters,
            handle,
            rng: rng(),
        }
    }

    /// A push of new members.
    pub(super) fn push(&mut self, members: Endpoints) {
        let config = Arc::clone(&self.handle.config);
        self.handle = push(&mut self.clusters, config, members);
    }

    pub(super) fn pick_but(&mut self, tried: &[SocketAddr]) -> Picked {
        let cx = PickCx {
            hash: None,
            tried,
            original_dst: None,
            now: Instant::now(),
        };
        self.handle.pick(&cx, &mut self.rng).expect("an endpoint")
    }

    pub(super) fn pick(&mut self) -> Picked {
        self.pick_but(&[])
    }

    /// Makes tries end with `outcome` on member `n` until there were `times` of them.
    pub(super) fn answer(&mut self, n: u16, outcome: Outcome, times: u32) {
        let all: Vec<_> = self.handle.members.iter().flatten().collect();
        let member = all.iter().find(|m| m.config.address == at(n));
        let member = Arc::clone(member.expect("a member"));
        for _ in 0..times {
            let run = &member.run;
            run.in_flight
                .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let picked = Picked::for_tests(Arc::clone(&member), Arc::clone(&self.handle));
            picked.record(outcome, MS, Instant::now());
        }
    }

    /// How `n` requests, each over before the next comes, spread over the members.
    pub(super) fn spread(&mut self, n: u32) -> BTreeMap<u16, u32> {
        let mut counts = BTreeMap::new();
        for _ in 0..n {
            let port = self.pick().endpoint.config.address.port();
            *counts.entry(port).or_default() += 1;
        }
        counts
    }

    pub(super) fn ejected(&self) -> usize {
        let all = self.handle.endpoints(Instant::now());
        all.iter().filter(|m| m.ejected_for.is_some()).count()
    }
}

fn push(clusters: &mut Clusters, config: Arc<Cluster>, members: Endpoints) -> Arc<ClusterHandle> {
    let name = config.name.clone();
    let mut snapshot = Snapshot::default();
    snapshot.endpoints.insert(name.clone(), Arc::new(members));
    snapshot.clusters.insert(name.clone(), config);
    let live = clusters.update(Arc::new(snapshot), Instant::now());
    Arc::clone(&live.clusters[&name])
}

pub(super) const fn budget(percent: u32, min_concurrency: u32) -> RetryBudget {
    RetryBudget {
        percent,
        min_concurrency,
        interval: Duration::from_secs(10),
    }
}

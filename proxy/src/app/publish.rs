//! Putting a new configuration in force.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use crate::{
    balance::Clusters,
    config::{ClusterName, ListenerName, Snapshot, endpoint::Locality},
    policy::worker::{Shared, World},
};

/// Sockets that listeners of the configuration want for themselves.
pub(super) type Binds = Vec<(ListenerName, SocketAddr)>;

/// Turns snapshots into what the workers read.
#[derive(Debug)]
pub(super) struct Publisher {
    shared: Arc<Shared>,
    clusters: Mutex<Clusters>,
    binds: watch::Sender<Binds>,
}

impl Publisher {
    pub(super) fn new(shared: Arc<Shared>, home: Locality, now: Instant) -> Arc<Self> {
        Arc::new(Self {
            shared,
            clusters: Mutex::new(Clusters::new(now).at_home(home)),
            binds: watch::Sender::new(Vec::new()),
        })
    }

    /// Puts `snapshot` in force for every request from now on.
    pub(super) fn publish(&self, snapshot: Arc<Snapshot>) {
        let now = Instant::now();
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        let mut binds: Binds = snapshot
            .listeners
            .values()
            .filter(|listener| listener.bind && !listener.use_original_dst)
            .map(|listener| (listener.name.clone(), listener.address))
            .collect();
        binds.sort();
        let live = clusters.update(snapshot, now);
        let next = World::next(&self.shared.world.load(), live, now);
        self.shared.world.store(Arc::new(next));
        self.shared.changed.notify_waiters();
        self.binds.send_if_modified(|old| {
            let changed = *old != binds;
            *old = binds;
            changed
        });
    }

    pub(super) fn binds(&self) -> watch::Receiver<Binds> {
        self.binds.subscribe()
    }
}

/// Once an outlier interval, judges the rates and lets ejection times shrink again.
pub(super) async fn sweep_outliers(shared: Arc<Shared>) {
    let mut last: HashMap<ClusterName, Instant> = HashMap::new();
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = Instant::now();
        let world = shared.world.load_full();
        last.retain(|name, _| world.live.clusters.contains_key(name));
        for (name, cluster) in &world.live.clusters {
            let Some(outlier) = &cluster.config.outlier else {
                continue;
            };
            let swept = last.entry(name.clone()).or_insert(now);
            if now.duration_since(*swept) >= outlier.interval {
                *swept = now;
                cluster.sweep(now);
            }
        }
    }
}

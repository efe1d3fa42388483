//! The export of spans, on the control thread: gives it connections and the workload's name.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    balance::PickCx,
    bootstrap::RunArgs,
    config::ClusterName,
    net::{BoxIo, Dialer},
    policy::worker::{Shared, Worker},
    pool::{Pool, Wire},
    telemetry::spans::{Dial, Queue, To, Workload, export},
    tls::ClientTlsCache,
};

/// One address of a collector; its name may have several.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Starts exporting what comes out of `queue`. The task ends some time after `stop`.
pub(super) fn start(
    args: &RunArgs,
    dialer: Dialer,
    shared: &Arc<Shared>,
    queue: Queue,
    rng: &mut StdRng,
    stop: CancellationToken,
) -> JoinHandle<()> {
    let tls = ClientTlsCache::new(Arc::clone(&shared.identity));
    let pool = Pool::new(dialer, Arc::new(tls));
    // It serves nobody, but knows how to reach the endpoints of a cluster.
    let worker = Worker::new(Arc::clone(shared), pool, rng.random());
    let dial: Dial = Arc::new(move |to| {
        let worker = Arc::clone(&worker);
        Box::pin(async move {
            match to {
                To::Address(name) => by_name(dialer, &name).await,
                To::Cluster(name) => member(&worker, &name).await,
            }
        })
    });
    let workload = Workload {
        name: args.workload.clone(),
        namespace: args.namespace.clone(),
        instance: args.node(),
        region: args.region.clone(),
        zone: args.zone.clone(),
    };
    let seed = StdRng::seed_from_u64(rng.random());
    let endpoint = args.otlp_endpoint.clone();
    tokio::spawn(export(queue, endpoint, workload, dial, seed, stop))
}

/// A connection to the first address of `name` that takes one.
async fn by_name(dialer: Dialer, name: &str) -> io::Result<BoxIo> {
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host(name).await?.collect();
    let mut last = io::Error::other("the name has no address");
    for address in addresses {
        match dialer.connect(address, CONNECT_TIMEOUT).await {
            Ok(io) => return Ok(Box::new(io)),
            Err(error) => last = io::Error::new(error.kind(), format!("{address}: {error}")),
        }
    }
    Err(last)
}

/// A connection to an endpoint of a cluster, as the data path would make it.
async fn member(worker: &Worker, name: &ClusterName) -> io::Result<BoxIo> {
    let unknown = || io::Error::other(format!("cluster {} is not known", name.as_str()));
    let world = worker.shared.world.load_full();
    let cluster = world.live.clusters.get(name).ok_or_else(unknown)?;
    let cx = PickCx {
        hash: None,
        tried: &[],
        original_dst: None,
        now: Instant::now(),
    };
    let picked = worker.with_rng(|rng| cluster.pick(&cx, rng));
    let picked = picked.map_err(|fault| io::Error::other(fault.row().text))?;
    let target = worker.target(&cluster.config, &picked.endpoint);
    let fresh = worker.pool.fresh(&target, Wire::Http2).await;
    fresh.map_err(io::Error::other)
}

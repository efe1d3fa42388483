//! Active health checks, on the control thread.

use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    balance::{
        EndpointState,
        health::{Checkers, Dial, Speaks},
    },
    net::{BoxIo, Dialer},
    policy::worker::Shared,
    pool::{Pool, Target, Wire},
    tls::ClientTlsCache,
};

/// A check limits its own time, which is the configured one and covers the connection too.
const NO_LIMIT: Duration = Duration::from_secs(3600);

/// Connections as the data path makes them, with its identity and its view of TLS.
struct Connections {
    shared: Arc<Shared>,
    pool: Arc<Pool>,
}

impl Dial for Connections {
    fn dial(
        &self,
        endpoint: &EndpointState,
        address: SocketAddr,
        speaks: Speaks,
    ) -> impl Future<Output = io::Result<BoxIo>> + Send {
        let own = self.shared.is_own(address.ip());
        let target = Target {
            endpoint: endpoint.id,
            // Checks are outside its limits.
            cluster: "".into(),
            address,
            tls: endpoint.tls.clone().filter(|_| !own),
            connect_timeout: NO_LIMIT,
            idle_timeout: None,
            max_requests: None,
            h2_keepalive: None,
            generation: endpoint.generation(),
        };
        let wire = match speaks {
            Speaks::Http1 => Wire::Http1,
            Speaks::Http2 => Wire::Http2,
            Speaks::Opaque => Wire::Tcp,
        };
        async move {
            let fresh = self.pool.fresh(&target, wire).await;
            fresh.map_err(io::Error::other)
        }
    }
}

/// Starts checking what the configuration in force says is to be checked, as long as the process
/// lives.
pub(super) fn start(shared: &Arc<Shared>, dialer: Dialer, rng: &mut StdRng) {
    let tls = ClientTlsCache::new(Arc::clone(&shared.identity));
    let connections = Connections {
        shared: Arc::clone(shared),
        pool: Pool::new(dialer, Arc::new(tls)),
    };
    let seed = StdRng::seed_from_u64(rng.random());
    tokio::spawn(run(Arc::clone(shared), connections, seed));
}

async fn run(shared: Arc<Shared>, connections: Connections, rng: StdRng) {
    let mut checkers = Checkers::new(connections, rng);
    loop {
        let mut changed = std::pin::pin!(shared.changed.notified());
        // Before looking, so that no change is missed between looking and waiting.
        changed.as_mut().enable();
        checkers.update(&shared.world.load().live);
        changed.await;
    }
}

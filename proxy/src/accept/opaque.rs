//! Connections whose content is not looked at: choose an endpoint, connect, relay.

use std::{net::SocketAddr, sync::Arc};

use bytes::BytesMut;
use rand::RngExt;
use tokio::{io::AsyncReadExt, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{Chosen, rechoose};
use crate::{
    balance::{Outcome, PickCx, Picked},
    config::{
        ClusterName,
        listener::{ChainKind, TcpProxy},
    },
    drain::Phase,
    fault::{Fault, Side},
    net::{BoxIo, Io, Prefixed},
    policy::worker::Worker,
    pool::{ConnectError, Dialed, Permit},
    tcp::{End, relay},
    telemetry::ConnectionRecord,
};

/// Connect attempts in all, each at another endpoint while there is one: no byte was sent, so
/// trying again is always safe.
const MIN_ATTEMPTS: u32 = 3;

/// A connection to an endpoint, and what it may have said already.
pub(super) struct Upstream {
    dialed: Dialed,
    picked: Picked,
    cluster: ClusterName,
    said: BytesMut,
}

impl Upstream {
    /// Waits for the endpoint's first bytes (or its end) and keeps them.
    pub(super) async fn first_byte(&mut self) -> std::io::Result<usize> {
        self.dialed.io.read_buf(&mut self.said).await
    }
}

/// Connects to an endpoint of the proxy's cluster.
pub(super) async fn dial(
    worker: &Arc<Worker>,
    proxy: &TcpProxy,
    destination: SocketAddr,
) -> Result<Upstream, ConnectError> {
    let world = worker.shared.world.load_full();
    let sum: u64 = proxy
        .clusters
        .iter()
        .map(|(_, weight)| u64::from(*weight))
        .sum();
    let mut draw = worker.with_rng(|rng| rng.random_range(0..sum.max(1)));
    let name = proxy.clusters.iter().find_map(|(name, weight)| {
        let hit = draw < u64::from(*weight);
        draw = draw.saturating_sub(u64::from(*weight));
        hit.then_some(name)
    });
    let cluster = name
        .and_then(|name| world.live.clusters.get(name))
        .ok_or(Fault::ClusterNotFound)?
        .resolve(Instant::now());
    let mut tried = Vec::new();
    loop {
        let now = Instant::now();
        let picked = worker.with_rng(|rng| {
            let cx = PickCx {
                hash: None,
                tried: &tried,
                original_dst: Some(destination),
                now,
            };
            cluster.pick(&cx, rng)
        })?;
        let target = worker.target(&cluster.config, &picked.endpoint);
        let admit = || Ok(Box::new(cluster.connection(false)?) as Permit);
        match worker.pool.tcp(&target, &admit).await {
            Ok(dialed) => {
                return Ok(Upstream {
                    dialed,
                    picked,
                    cluster: cluster.config.name.clone(),
                    said: BytesMut::new(),
                });
            }
            Err(error) => {
                if error.fault == Fault::OverflowConnections {
                    cluster.connections_overflowed();
                }
                if error.fault.row().side == Side::Proxy {
                    // What this proxy lacks is no fault of the endpoint, nor mended at another.
                    picked.record(Outcome::Neutral, now.elapsed(), Instant::now());
                    return Err(error);
                }
                picked.record(Outcome::ConnectFailed, now.elapsed(), Instant::now());
                let again = tried.contains(&target.address);
                tried.push(target.address);
                let limit = proxy.max_connect_attempts.max(MIN_ATTEMPTS) as usize;
                if again || tried.len() >= limit {
                    return Err(error);
                }
            }
        }
    }
}

/// Relays a connection to its end.
pub(super) async fn serve(worker: &Arc<Worker>, mut chosen: Chosen, proxy: &TcpProxy) {
    let mut record = ConnectionRecord::new(
        chosen.conn.listener.direction,
        chosen.conn.source,
        chosen.conn.destination,
        chosen.conn.peer.clone(),
        Instant::now(),
    );
    record.logged = proxy.access_log;
    let dialled = match chosen.dialled.take() {
        Some(upstream) => Ok(upstream),
        None => dial(worker, proxy, chosen.conn.destination).await,
    };
    match dialled {
        Ok(upstream) => {
            let Upstream {
                dialed,
                picked,
                cluster,
                said,
            } = upstream;
            record.cluster = Some(cluster);
            record.endpoint = Some(picked.endpoint.config.address);
            record.upstream_peer.clone_from(&dialed.peer);
            let up: BoxIo = if said.is_empty() {
                dialed.io
            } else {
                Box::new(Prefixed::new(dialed.io, said.freeze()))
            };
            let stop = stopped(worker, &chosen);
            let (end, moved) = relay(chosen.io, up, proxy.idle_timeout, stop).await;
            let _permit = dialed.permit;
            let outcome = if end == End::UpstreamError && moved.down == 0 {
                Outcome::Reset
            } else {
                Outcome::Success
            };
            picked.record(outcome, dialed.timings.connect, Instant::now());
            (record.bytes_in, record.bytes_out) = (moved.up, moved.down);
            record.fault = match end {
                End::DownstreamError => Some(Fault::DownstreamReset),
                End::UpstreamError => Some(Fault::UpstreamReset),
                End::Idle => Some(Fault::StreamIdle),
                End::Complete | End::Cancelled => None,
            };
        }
        Err(error) => {
            record.fault = Some(error.fault);
            record.details = error.detail.to_string();
            chosen.io.reset_on_drop();
        }
    }
    record.ended = Instant::now();
    worker.shared.telemetry.connection(&record);
}

/// Resolves when the connection must not go on: the proxy is closing, or policy no longer allows it
/// (TL-11).
fn stopped(worker: &Arc<Worker>, chosen: &Chosen) -> impl Future<Output = ()> + use<> {
    let worker = Arc::clone(worker);
    let listener = Arc::clone(&chosen.conn.listener);
    let facts = super::Facts {
        source: chosen.facts.source,
        destination: chosen.facts.destination,
        transport: chosen.facts.transport,
        server_name: chosen.facts.server_name.clone(),
        protocols: chosen.facts.protocols.clone(),
    };
    let peer = chosen.conn.peer.clone();
    async move {
        let closing = worker.shared.drain.reached(Phase::Closing);
        let denied = async {
            loop {
                worker.shared.changed.notified().await;
                let world = worker.shared.world.load_full();
                let Some(chain) = rechoose(&world, &listener, &facts) else {
                    // The listener went with its service; what is under way may end by itself.
                    continue;
                };
                let conn = crate::policy::serve::Connection {
                    listener: Arc::clone(&listener),
                    source: facts.source,
                    destination: facts.destination,
                    peer: peer.clone(),
                    server_name: facts.server_name.clone(),
                    tls: peer.is_some(),
                    cut: CancellationToken::new(),
                };
                let opaque = matches!(chain.kind, ChainKind::Tcp(_));
                let allowed = |rbac| super::authorize(rbac, &conn).is_ok();
                if opaque && !chain.rbac.iter().all(|rbac| allowed(rbac)) {
                    return;
                }
            }
        };
        tokio::select! {
            () = closing => {}
            () = denied => {}
        }
    }
}

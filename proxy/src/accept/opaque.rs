//! Connections whose content is not looked at: choose an endpoint, connect, relay.

use std::{net::SocketAddr, pin::pin, sync::Arc};

use bytes::BytesMut;
use rand::RngExt;
use tokio::{io::AsyncReadExt, time::Instant};

use super::{Chosen, Facts, rechoose};
use crate::{
    balance::{Outcome, PickCx, Picked},
    config::{
        ClusterName,
        listener::{ChainKind, TcpProxy},
    },
    drain::Phase,
    fault::{Fault, Side},
    net::{BoxIo, Io, Prefixed},
    policy::{serve::Connection, worker::Worker},
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
pub(super) async fn serve(worker: &Arc<Worker>, chosen: Box<Chosen>, proxy: &TcpProxy) {
    let Chosen {
        conn,
        facts,
        io,
        dialled,
        _in_use: in_use,
        ..
    } = *chosen;
    let began = Instant::now();
    let dialled = match dialled {
        Some(upstream) => Ok(upstream),
        None => Box::pin(dial(worker, proxy, conn.destination)).await,
    };
    let (direction, peer) = (conn.listener.direction, conn.peer.clone());
    let mut record = ConnectionRecord::new(direction, conn.source, conn.destination, peer, began);
    record.logged = proxy.access_log;
    match dialled {
        Ok(upstream) => {
            // By reference: a future that is handed on by value is kept twice.
            let stop = pin!(stopped(worker, &conn, &facts));
            carry(io, upstream, proxy, stop, &mut record).await;
        }
        Err(error) => {
            record.fault = Some(error.fault);
            record.details = error.detail.to_string();
            io.reset_on_drop();
        }
    }
    record.ended = Instant::now();
    worker.shared.telemetry.connection(&record);
    drop(in_use);
}

/// Relays between the client and an endpoint that was reached.
async fn carry(
    down: BoxIo,
    upstream: Upstream,
    proxy: &TcpProxy,
    stop: impl Future<Output = ()>,
    record: &mut ConnectionRecord,
) {
    let Upstream {
        dialed,
        picked,
        cluster,
        said,
    } = upstream;
    let Dialed {
        io,
        peer,
        timings,
        permit,
    } = dialed;
    record.cluster = Some(cluster);
    record.endpoint = Some(picked.endpoint.config.address);
    record.upstream_peer = peer;
    let up: BoxIo = if said.is_empty() {
        io
    } else {
        Box::new(Prefixed::new(io, said.freeze()))
    };
    let (end, moved) = relay(down, up, proxy.idle_timeout, stop).await;
    let outcome = if end == End::UpstreamError && moved.down == 0 {
        Outcome::Reset
    } else {
        Outcome::Success
    };
    picked.record(outcome, timings.connect, Instant::now());
    (record.bytes_in, record.bytes_out) = (moved.up, moved.down);
    record.fault = match end {
        End::DownstreamError => Some(Fault::DownstreamReset),
        End::UpstreamError => Some(Fault::UpstreamReset),
        End::Idle => Some(Fault::StreamIdle),
        End::Complete | End::Cancelled => None,
    };
    drop(permit);
}

/// Resolves when the connection must not go on: the proxy is closing, or policy no longer allows it
/// (TL-11).
async fn stopped(worker: &Arc<Worker>, conn: &Connection, facts: &Facts) {
    let closing = worker.shared.drain.reached(Phase::Closing);
    let denied = async {
        loop {
            worker.shared.changed.notified().await;
            let world = worker.shared.world.load_full();
            let Some(chain) = rechoose(&world, &conn.listener, facts) else {
                // The listener went with its service; what is under way may end by itself.
                continue;
            };
            let opaque = matches!(chain.kind, ChainKind::Tcp(_));
            let allowed = |rbac| super::authorize(rbac, conn).is_ok();
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

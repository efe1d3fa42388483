//! The worker threads: each with its own runtime, its own sockets on the shared ports, and its own
//! connections. A request never changes threads.

use std::{collections::HashMap, io, net::SocketAddr, sync::Arc, thread, time::Duration};

use anyhow::Context as _;
use rand::{RngExt, rngs::StdRng};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

use super::publish::{Binds, Publisher};
use crate::{
    accept::{Door, connection},
    bootstrap::RunArgs,
    config::listener::Direction,
    net::{Dialer, has_ipv6, listen},
    policy::worker::{Shared, Worker},
    pool::Pool,
    tls::ClientTlsCache,
};

/// How long accepting rests when the process is out of file descriptors (LK-02).
const OUT_OF_FILES: Duration = Duration::from_millis(50);

/// Starts the workers. All of them have bound the redirect ports when this returns.
///
/// # Errors
/// When a port cannot be bound or a thread cannot be started.
pub(super) fn start(
    args: &RunArgs,
    dialer: Dialer,
    shared: &Arc<Shared>,
    publisher: &Arc<Publisher>,
    rng: &mut StdRng,
) -> anyhow::Result<Vec<thread::JoinHandle<()>>> {
    let count = args.workers.map_or_else(granted_cpus, usize::from);
    let client_tls = Arc::new(ClientTlsCache::new(Arc::clone(&shared.identity)));
    (0..count)
        .map(|n| {
            let doors = doors(args)?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let pool = Pool::new(dialer, Arc::clone(&client_tls));
            let worker = Worker::new(Arc::clone(shared), pool, rng.random());
            let binds = publisher.binds();
            thread::Builder::new()
                .name(format!("worker-{n}"))
                .spawn(move || runtime.block_on(run(worker, doors, binds)))
                .context("starting a worker thread")
        })
        .collect()
}

fn granted_cpus() -> usize {
    // Takes cgroup quotas and affinity into account.
    thread::available_parallelism().map_or(1, usize::from)
}

type Doors = Vec<(std::net::TcpListener, Direction)>;

/// The sockets that the kernel redirects to.
fn doors(args: &RunArgs) -> anyhow::Result<Doors> {
    let mut doors = Vec::new();
    let sides = [
        (args.outbound_port, Direction::Outbound),
        (args.inbound_port, Direction::Inbound),
    ];
    for (port, direction) in sides {
        if port == 0 {
            continue;
        }
        let mut addresses = vec![SocketAddr::from(([0; 4], port))];
        if has_ipv6() {
            addresses.push(SocketAddr::from(([0_u16; 8], port)));
        }
        for address in addresses {
            let socket = listen(address)
                .with_context(|| format!("{} port {address}", direction.as_str()))?;
            doors.push((socket, direction));
        }
    }
    Ok(doors)
}

async fn run(worker: Arc<Worker>, doors: Doors, mut binds: watch::Receiver<Binds>) {
    for (socket, direction) in doors {
        match TcpListener::from_std(socket) {
            Ok(listener) => {
                let door = Door::Redirect(direction);
                tokio::spawn(accept(Arc::clone(&worker), listener, door));
            }
            Err(error) => tracing::error!(%error, "a redirect socket is unusable"),
        }
    }
    tokio::spawn(Arc::clone(&worker.pool).sweep_forever());
    let mut bound: HashMap<_, JoinHandle<()>> = HashMap::new();
    loop {
        let wanted = binds.borrow_and_update().clone();
        bound.retain(|key, task| {
            let keep = wanted.contains(key);
            if !keep {
                task.abort();
            }
            keep
        });
        for key in wanted {
            if bound.contains_key(&key) {
                continue;
            }
            let opened = listen(key.1).and_then(TcpListener::from_std);
            match opened {
                Ok(listener) => {
                    let door = Door::Listener(key.0.clone());
                    let task = tokio::spawn(accept(Arc::clone(&worker), listener, door));
                    bound.insert(key, task);
                }
                Err(error) => {
                    tracing::error!(listener = %key.0, address = %key.1, %error, "cannot listen");
                }
            }
        }
        if binds.changed().await.is_err() {
            // The publisher lives as long as the process.
            return;
        }
    }
}

async fn accept(worker: Arc<Worker>, listener: TcpListener, door: Door) {
    loop {
        match listener.accept().await {
            Ok((stream, source)) => {
                tokio::spawn(connection(
                    Arc::clone(&worker),
                    stream,
                    source,
                    door.clone(),
                ));
            }
            Err(error) if is_exhaustion(&error) => {
                tracing::warn!(%error, ?door, "cannot accept; resting");
                tokio::time::sleep(OUT_OF_FILES).await;
            }
            // The client left before it was accepted.
            Err(error) => tracing::debug!(%error, ?door, "accept"),
        }
    }
}

/// EMFILE, ENFILE, ENOBUFS, ENOMEM: trying again at once would only spin.
fn is_exhaustion(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(24 | 23 | 105 | 12))
}

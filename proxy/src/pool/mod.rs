//! Upstream connections, one pool a worker. A connection belongs to an endpoint, a protocol and a
//! TLS setting; it is never lent to a request that asks for other ones.
//!
//! Limits: connections per cluster by the permit that the caller brings ([`Admit`]), streams per
//! HTTP/2 connection by [`MAX_STREAMS_PER_CONNECTION`] and by what the peer allows, idle life by
//! the cluster's idle time-out.

mod dial;
mod http1;
mod http2;

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

pub use dial::{ConnectError, Dialed, Timings};
pub use http1::Http1Lease;
pub use http2::Http2Lease;

use crate::{
    config::{ClusterName, cluster::H2Keepalive, tls::ClientTls},
    fault::Fault,
    net::{BoxIo, Dialer},
    tls::ClientTlsCache,
};

/// More streams than this open another connection: one TCP connection's losses and one core's
/// codec are then not everybody's.
pub const MAX_STREAMS_PER_CONNECTION: usize = 100;
/// How often idle connections are looked at.
pub const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// A place to connect to.
#[derive(Clone, Debug)]
pub struct Target {
    /// Tells endpoints apart even when an address is used again by another one (LB-01).
    pub endpoint: u64,
    /// Whose limit of connections counts.
    pub cluster: ClusterName,
    pub address: SocketAddr,
    pub tls: Option<Arc<ClientTls>>,
    pub connect_timeout: Duration,
    pub idle_timeout: Option<Duration>,
    pub max_requests: Option<u32>,
    pub h2_keepalive: Option<H2Keepalive>,
    /// Grows when the endpoint's connections are to end: those in use with the requests they have,
    /// idle ones within [`SWEEP_EVERY`].
    pub generation: Arc<AtomicU32>,
}

/// The endpoint's generation that a connection was made under.
struct Bond {
    generation: Arc<AtomicU32>,
    made: u32,
}

impl Bond {
    fn of(target: &Target) -> Self {
        Self {
            generation: Arc::clone(&target.generation),
            made: target.generation.load(Ordering::Relaxed),
        }
    }

    /// Whether the connection may serve another request.
    fn holds(&self) -> bool {
        self.generation.load(Ordering::Relaxed) == self.made
    }
}

/// What is spoken on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wire {
    Http1,
    Http2,
    Tcp,
}

/// Held as long as the connection lives; dropping it gives the cluster's limit back.
pub type Permit = Box<dyn Send + Sync>;

/// Asks the cluster's limits for one more connection.
pub trait Admit: Send + Sync {
    /// # Errors
    /// The limit that was hit.
    fn admit(&self) -> Result<Permit, Fault>;
}

impl<F: Fn() -> Result<Permit, Fault> + Send + Sync> Admit for F {
    fn admit(&self) -> Result<Permit, Fault> {
        self()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    endpoint: u64,
    tls: usize,
}

impl Key {
    fn of(target: &Target) -> Self {
        let tls = target.tls.as_ref();
        Self {
            endpoint: target.endpoint,
            tls: tls.map_or(0, |tls| Arc::as_ptr(tls).addr()),
        }
    }
}

#[derive(Default)]
struct Entry {
    http1: Vec<http1::Idle>,
    http2: http2::Connections,
}

/// One worker's connections.
pub struct Pool {
    dialer: Dialer,
    tls: Arc<ClientTlsCache>,
    entries: Mutex<HashMap<Key, Entry>>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

impl Pool {
    /// An empty pool.
    #[must_use]
    pub fn new(dialer: Dialer, tls: Arc<ClientTlsCache>) -> Arc<Self> {
        Arc::new(Self {
            dialer,
            tls,
            entries: Mutex::default(),
        })
    }

    fn with_entry<T>(&self, key: Key, act: impl FnOnce(&mut Entry) -> T) -> T {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        act(entries.entry(key).or_default())
    }

    /// Closes what has been idle for too long, was closed by the peer or leads to an address that
    /// is no endpoint any more, for as long as it runs.
    pub async fn sweep_forever(self: Arc<Self>) {
        loop {
            tokio::time::sleep(SWEEP_EVERY).await;
            self.sweep(Instant::now());
        }
    }

    /// Closes what has been idle for too long, was closed by the peer or leads to an address that
    /// is no endpoint any more.
    pub fn sweep(&self, now: Instant) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|_, entry| {
            entry.http1.retain_mut(|idle| idle.keep(now));
            if entry.http1.is_empty() {
                entry.http1 = Vec::new();
            }
            entry.http2.sweep(now);
            !entry.http1.is_empty() || !entry.http2.is_empty()
        });
    }

    /// A connection that is nobody's: not counted, not shared, not kept. For health checks.
    ///
    /// # Errors
    /// When it cannot be had.
    pub async fn fresh(&self, target: &Target, wire: Wire) -> Result<BoxIo, ConnectError> {
        let dialed = self.dial(target, wire, Box::new(())).await?;
        Ok(dialed.io)
    }

    /// The right to one more connection. At the cluster's limit the connection to one of its other
    /// endpoints that has been idle for longest makes way: otherwise requests would be turned away
    /// by connections that nobody uses (RT-07).
    fn permit(&self, target: &Target, admit: &dyn Admit) -> Result<Permit, Fault> {
        let fault = match admit.admit() {
            Ok(permit) => return Ok(permit),
            Err(fault) => fault,
        };
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        // The first of an entry is the one that was used least recently.
        let longest = entries
            .values_mut()
            .filter(|entry| {
                entry
                    .http1
                    .first()
                    .is_some_and(|idle| idle.is_of(&target.cluster))
            })
            .min_by_key(|entry| entry.http1.first().map(http1::Idle::since));
        let Some(entry) = longest else {
            return Err(fault);
        };
        drop(entry.http1.remove(0));
        drop(entries);
        admit.admit()
    }

    /// A connection for opaque bytes, never shared and never kept.
    ///
    /// # Errors
    /// When it cannot be had.
    pub async fn tcp(&self, target: &Target, admit: &dyn Admit) -> Result<Dialed, ConnectError> {
        let permit = self.permit(target, admit)?;
        self.dial(target, Wire::Tcp, permit).await
    }
}

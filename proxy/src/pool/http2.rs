//! Shared HTTP/2 connections. Many requests that find no connection wait for one dial, not for one
//! each (LB-09); a connection that got a GOAWAY or died leaves the pool at once (H2-07); what needs
//! credit does not go where others wait for it (H2-05).

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use h2::{
    Reason,
    client::{Connection, SendRequest},
};
use tokio::time::Instant;

use super::{
    Admit, Bond, ConnectError, Dialed, Key, MAX_STREAMS_PER_CONNECTION, Permit, Pool, Target,
    Timings, Wire,
};
use crate::{
    config::{SpiffeId, cluster::H2Keepalive},
    fault::Fault,
    http::h2::{CONNECTION_WINDOW, DECODED_HEAD_BYTES, MAX_SEND_BUFFER, STREAM_WINDOW},
    net::BoxIo,
};

/// When nobody on a connection has got credit for so long though somebody waits for it, request
/// bodies go over another connection: an endpoint that does not read one of them may have no credit
/// left for the rest (H2-05). Far above a round trip inside a cluster.
const STARVED_AFTER: Duration = Duration::from_millis(50);
/// Connections to one endpoint beyond which starved ones are used as well.
const MAX_SPILL: usize = 8;
/// The interval of pings is doubled no more often than this: 64 times as long.
const MAX_CALMED: u32 = 6;
/// Connections found useless one after the other before a request is told so.
const MAX_STALE: usize = 4;

/// One shared connection.
struct Conn {
    send: SendRequest<Bytes>,
    peer: Option<SpiffeId>,
    streams: AtomicUsize,
    served: AtomicU32,
    max_requests: Option<u32>,
    closed: AtomicBool,
    bond: Bond,
    idle_timeout: Option<Duration>,
    opened: Instant,
    /// Milliseconds from `opened` to the end of the last request.
    last_used: AtomicU32,
    /// Milliseconds from `opened`, and one, to when somebody began to wait for credit and nobody
    /// has got any since; 0 when nobody waits.
    starved: AtomicU32,
    timings: Timings,
}

impl Conn {
    fn age(&self) -> u32 {
        u32::try_from(self.opened.elapsed().as_millis()).unwrap_or(u32::MAX)
    }

    fn is_starved(&self) -> bool {
        let since = self.starved.load(Ordering::Relaxed);
        let waited = self.age().saturating_add(1).saturating_sub(since);
        since > 0 && u128::from(waited) >= STARVED_AFTER.as_millis()
    }

    fn usable(&self) -> bool {
        let worn = |max| self.served.load(Ordering::Relaxed) >= max;
        !self.closed.load(Ordering::Relaxed)
            && self.bond.holds()
            && !self.max_requests.is_some_and(worn)
    }

    fn has_room(&self) -> bool {
        let allowed = self
            .send
            .current_max_send_streams()
            .min(MAX_STREAMS_PER_CONNECTION);
        self.streams.load(Ordering::Relaxed) < allowed.max(1)
    }
}

type Dialing = Shared<BoxFuture<'static, Result<Arc<Conn>, ConnectError>>>;

/// The connections to one endpoint.
#[derive(Default)]
pub(super) struct Connections {
    open: Vec<Arc<Conn>>,
    dialing: Option<Dialing>,
    /// How often the endpoint found that it is pinged too often; each time doubles the interval
    /// (gRFC A8).
    calmed: u32,
}

impl Connections {
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty() && self.dialing.is_none() && self.calmed == 0
    }

    pub(super) fn sweep(&mut self, now: Instant) {
        self.open.retain(|conn| {
            let since = Duration::from_millis(conn.last_used.load(Ordering::Relaxed).into());
            let idle = now.duration_since(conn.opened).saturating_sub(since);
            let busy = conn.streams.load(Ordering::Relaxed) > 0;
            let expired = conn.idle_timeout.is_some_and(|limit| idle >= limit);
            conn.usable() && (busy || !expired)
        });
    }

    /// The least busy connection with room, and with credit where a `body` needs it; without one
    /// anywhere, none.
    fn best(&mut self, body: bool) -> Option<Arc<Conn>> {
        self.open.retain(|conn| conn.usable());
        let picky = body && self.open.len() < MAX_SPILL;
        let good = |conn: &&Arc<Conn>| conn.has_room() && !(picky && conn.is_starved());
        let good = self.open.iter().filter(good);
        good.min_by_key(|conn| conn.streams.load(Ordering::Relaxed))
            .cloned()
    }
}

/// One stream's share of a connection.
pub struct Http2Lease {
    pub send: SendRequest<Bytes>,
    pub reused: bool,
    pub timings: Timings,
    conn: Arc<Conn>,
    waits: bool,
}

impl std::fmt::Debug for Http2Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Http2Lease")
            .field("reused", &self.reused)
            .finish_non_exhaustive()
    }
}

impl Http2Lease {
    fn of(conn: Arc<Conn>, send: SendRequest<Bytes>, reused: bool) -> Self {
        conn.streams.fetch_add(1, Ordering::Relaxed);
        conn.served.fetch_add(1, Ordering::Relaxed);
        Self {
            send,
            reused,
            timings: if reused {
                Timings::default()
            } else {
                conn.timings
            },
            conn,
            waits: false,
        }
    }

    /// Who the other side is.
    #[must_use]
    pub fn peer(&self) -> Option<&SpiffeId> {
        self.conn.peer.as_ref()
    }

    /// Says that a request body waits for credit.
    pub fn credit_awaited(&mut self) {
        self.waits = true;
        let now = self.conn.age().saturating_add(1);
        let starved = &self.conn.starved;
        // Not when somebody has been waiting for longer.
        let _unless = starved.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Says that a request body got credit.
    pub fn credit_came(&mut self) {
        self.waits = false;
        self.conn.starved.store(0, Ordering::Relaxed);
    }

    /// Takes the whole connection out of use for new requests.
    pub fn condemn(&self) {
        self.conn.closed.store(true, Ordering::Relaxed);
    }
}

impl Drop for Http2Lease {
    fn drop(&mut self) {
        if self.waits {
            // Whoever else waits will say so again.
            self.credit_came();
        }
        self.conn.streams.fetch_sub(1, Ordering::Relaxed);
        let age = self.conn.age();
        self.conn.last_used.store(age, Ordering::Relaxed);
    }
}

impl Pool {
    /// A stream's worth of an HTTP/2 connection, kept or new, for a request with or without `body`.
    /// It takes a stream now: one that got a GOAWAY in the meantime is passed over.
    ///
    /// # Errors
    /// When none can be had.
    pub async fn http2(
        self: &Arc<Self>,
        target: &Target,
        admit: &dyn Admit,
        body: bool,
    ) -> Result<Http2Lease, ConnectError> {
        let mut stale = String::new();
        for _ in 0..MAX_STALE {
            let (conn, reused) = self.http2_conn(target, admit, body).await?;
            match conn.send.clone().ready().await {
                Ok(send) => return Ok(Http2Lease::of(conn, send, reused)),
                Err(error) => {
                    conn.closed.store(true, Ordering::Relaxed);
                    stale = error.to_string();
                }
            }
        }
        Err(ConnectError {
            fault: Fault::UpstreamRefused,
            detail: format!("{}: {stale}", target.address).into(),
        })
    }

    /// A connection, and whether it was there before.
    async fn http2_conn(
        self: &Arc<Self>,
        target: &Target,
        admit: &dyn Admit,
        body: bool,
    ) -> Result<(Arc<Conn>, bool), ConnectError> {
        let key = Key::of(target);
        let found = self.with_entry(key, |entry| {
            if let Some(conn) = entry.http2.best(body) {
                return Ok(Ok(conn));
            }
            if let Some(dialing) = &entry.http2.dialing {
                return Ok(Err(dialing.clone()));
            }
            let permit = match admit.admit() {
                Ok(permit) => permit,
                // No new connection may be made: share the least busy one beyond its room, where
                // the stream waits for its turn.
                Err(fault) => {
                    let crowded = entry.http2.open.iter();
                    let least = crowded.min_by_key(|c| c.streams.load(Ordering::Relaxed));
                    return least.cloned().map(Ok).ok_or(fault);
                }
            };
            let dialing = open(Arc::clone(self), target.clone(), key, permit)
                .boxed()
                .shared();
            entry.http2.dialing = Some(dialing.clone());
            Ok(Err(dialing))
        })?;
        match found {
            Ok(conn) => Ok((conn, true)),
            Err(dialing) => dialing.await.map(|conn| (conn, false)),
        }
    }
}

/// Dials, shakes hands and puts the connection into the pool.
async fn open(
    pool: Arc<Pool>,
    target: Target,
    key: Key,
    permit: Permit,
) -> Result<Arc<Conn>, ConnectError> {
    let calmed = pool.with_entry(key, |entry| entry.http2.calmed);
    let opened = connect(&pool, &target, key, calmed, permit).await;
    pool.with_entry(key, |entry| {
        entry.http2.dialing = None;
        if let Ok(conn) = &opened {
            entry.http2.open.push(Arc::clone(conn));
        }
    });
    opened
}

async fn connect(
    pool: &Arc<Pool>,
    target: &Target,
    key: Key,
    calmed: u32,
    permit: Permit,
) -> Result<Arc<Conn>, ConnectError> {
    let bond = Bond::of(target);
    let Dialed {
        io,
        peer,
        timings,
        permit,
    } = pool.dial(target, Wire::Http2, permit).await?;
    let (send, connection) = h2::client::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(DECODED_HEAD_BYTES)
        .max_send_buffer_size(MAX_SEND_BUFFER)
        .enable_push(false)
        .handshake::<_, Bytes>(io)
        .await
        .map_err(|error| ConnectError {
            fault: Fault::UpstreamProtocol,
            detail: format!("{}: HTTP/2 preface: {error}", target.address).into(),
        })?;
    let conn = Arc::new(Conn {
        send,
        peer,
        streams: AtomicUsize::new(0),
        served: AtomicU32::new(0),
        max_requests: target.max_requests,
        closed: AtomicBool::new(false),
        bond,
        idle_timeout: target.idle_timeout,
        opened: Instant::now(),
        last_used: AtomicU32::new(0),
        starved: AtomicU32::new(0),
        timings,
    });
    let weak = Arc::downgrade(&conn);
    let weak_pool = Arc::downgrade(pool);
    let keepalive = target.h2_keepalive.map(|own| H2Keepalive {
        interval: own.interval * (1 << calmed),
        ..own
    });
    tokio::spawn(async move {
        let ended = Box::pin(drive(connection, keepalive, &weak)).await;
        if let Some(conn) = weak.upgrade() {
            conn.closed.store(true, Ordering::Relaxed);
        }
        if let Err(error) = &ended {
            tracing::debug!(error = error.text, "an upstream HTTP/2 connection ended");
        }
        if ended.is_err_and(|error| error.calm)
            && let Some(pool) = weak_pool.upgrade()
        {
            pool.with_entry(key, |entry| {
                entry.http2.calmed = (calmed + 1).min(MAX_CALMED);
            });
        }
        drop(permit);
    });
    Ok(conn)
}

/// Why a connection ended.
struct Ended {
    text: String,
    /// The endpoint was pinged and asked for calm.
    calm: bool,
}

/// Runs the connection until it ends, pinging a peer that may have vanished (gRFC A8). Without
/// streams nobody waits for anything, so nothing is pinged: servers count that as abuse (H2-15).
async fn drive(
    mut connection: Connection<BoxIo, Bytes>,
    keepalive: Option<H2Keepalive>,
    conn: &Weak<Conn>,
) -> Result<(), Ended> {
    let ended = |error: &h2::Error, pinged| Ended {
        text: error.to_string(),
        calm: pinged && error.is_go_away() && error.reason() == Some(Reason::ENHANCE_YOUR_CALM),
    };
    let (Some(keepalive), Some(mut ping)) = (keepalive, connection.ping_pong()) else {
        return connection.await.map_err(|error| ended(&error, false));
    };
    let busy = || {
        let streams = |conn: Arc<Conn>| conn.streams.load(Ordering::Relaxed);
        conn.upgrade().is_some_and(|conn| streams(conn) > 0)
    };
    let pings = async {
        loop {
            tokio::time::sleep(keepalive.interval).await;
            if !busy() {
                continue;
            }
            let pong = ping.ping(h2::Ping::opaque());
            match tokio::time::timeout(keepalive.timeout, pong).await {
                Ok(Ok(_)) => {}
                // The connection itself will say why.
                Ok(Err(_)) => std::future::pending().await,
                Err(_) => return format!("no PING answer within {:?}", keepalive.timeout),
            }
        }
    };
    tokio::select! {
        done = connection => done.map_err(|error| ended(&error, true)),
        text = pings => Err(Ended { text, calm: false }),
    }
}

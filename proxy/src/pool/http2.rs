//! Shared HTTP/2 connections. Many requests that find no connection wait for one dial, not for one
//! each (LB-09); a connection that got a GOAWAY or died leaves the pool at once (H2-07).

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use h2::client::{Connection, SendRequest};
use tokio::time::Instant;

use super::{
    Admit, ConnectError, Dialed, Key, MAX_STREAMS_PER_CONNECTION, Permit, Pool, Target, Timings,
    Wire,
};
use crate::{
    config::{SpiffeId, cluster::H2Keepalive},
    fault::Fault,
    http::MAX_HEAD_BYTES,
    http::h2::{CONNECTION_WINDOW, STREAM_WINDOW},
    net::BoxIo,
};

/// One shared connection.
struct Conn {
    send: SendRequest<Bytes>,
    peer: Option<SpiffeId>,
    streams: AtomicUsize,
    served: AtomicU32,
    max_requests: Option<u32>,
    closed: AtomicBool,
    idle_timeout: Option<Duration>,
    opened: Instant,
    /// Milliseconds from `opened` to the end of the last request.
    last_used: AtomicU32,
    timings: Timings,
}

impl Conn {
    fn usable(&self) -> bool {
        let worn = |max| self.served.load(Ordering::Relaxed) >= max;
        !self.closed.load(Ordering::Relaxed) && !self.max_requests.is_some_and(worn)
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
}

impl Connections {
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty() && self.dialing.is_none()
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

    /// The least busy connection with room; without room anywhere, none.
    fn best(&mut self) -> Option<Arc<Conn>> {
        self.open.retain(|conn| conn.usable());
        let with_room = self.open.iter().filter(|conn| conn.has_room());
        with_room
            .min_by_key(|conn| conn.streams.load(Ordering::Relaxed))
            .cloned()
    }
}

/// One stream's share of a connection.
pub struct Http2Lease {
    pub send: SendRequest<Bytes>,
    pub reused: bool,
    pub timings: Timings,
    conn: Arc<Conn>,
}

impl std::fmt::Debug for Http2Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Http2Lease")
            .field("reused", &self.reused)
            .finish_non_exhaustive()
    }
}

impl Http2Lease {
    fn of(conn: Arc<Conn>, reused: bool) -> Self {
        conn.streams.fetch_add(1, Ordering::Relaxed);
        conn.served.fetch_add(1, Ordering::Relaxed);
        Self {
            send: conn.send.clone(),
            reused,
            timings: if reused {
                Timings::default()
            } else {
                conn.timings
            },
            conn,
        }
    }

    /// Who the other side is.
    #[must_use]
    pub fn peer(&self) -> Option<&SpiffeId> {
        self.conn.peer.as_ref()
    }

    /// Takes the whole connection out of use for new requests.
    pub fn condemn(&self) {
        self.conn.closed.store(true, Ordering::Relaxed);
    }
}

impl Drop for Http2Lease {
    fn drop(&mut self) {
        self.conn.streams.fetch_sub(1, Ordering::Relaxed);
        let age = u32::try_from(self.conn.opened.elapsed().as_millis()).unwrap_or(u32::MAX);
        self.conn.last_used.store(age, Ordering::Relaxed);
    }
}

impl Pool {
    /// A stream's worth of an HTTP/2 connection, kept or new.
    ///
    /// # Errors
    /// When none can be had.
    pub async fn http2(
        self: &Arc<Self>,
        target: &Target,
        admit: &dyn Admit,
    ) -> Result<Http2Lease, ConnectError> {
        let key = Key::of(target);
        let found = self.with_entry(key, |entry| {
            if let Some(conn) = entry.http2.best() {
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
            Ok(conn) => Ok(Http2Lease::of(conn, true)),
            Err(dialing) => dialing.await.map(|conn| Http2Lease::of(conn, false)),
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
    let opened = connect(&pool, &target, permit).await;
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
    permit: Permit,
) -> Result<Arc<Conn>, ConnectError> {
    let Dialed {
        io,
        peer,
        timings,
        permit,
    } = pool.dial(target, Wire::Http2, permit).await?;
    let (send, connection) = h2::client::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_HEAD_BYTES)
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
        idle_timeout: target.idle_timeout,
        opened: Instant::now(),
        last_used: AtomicU32::new(0),
        timings,
    });
    let weak = Arc::downgrade(&conn);
    let keepalive = target.h2_keepalive;
    tokio::spawn(async move {
        let ended = drive(connection, keepalive).await;
        if let Some(conn) = weak.upgrade() {
            conn.closed.store(true, Ordering::Relaxed);
        }
        if let Err(error) = ended {
            tracing::debug!(error, "an upstream HTTP/2 connection ended");
        }
        drop(permit);
    });
    Ok(conn)
}

/// Runs the connection until it ends, pinging a peer that may have vanished (gRFC A8).
async fn drive(
    mut connection: Connection<BoxIo, Bytes>,
    keepalive: Option<H2Keepalive>,
) -> Result<(), String> {
    let (Some(keepalive), Some(mut ping)) = (keepalive, connection.ping_pong()) else {
        return connection.await.map_err(|e| e.to_string());
    };
    let pings = async {
        loop {
            tokio::time::sleep(keepalive.interval).await;
            let pong = ping.ping(h2::Ping::opaque());
            match tokio::time::timeout(keepalive.timeout, pong).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return error.to_string(),
                Err(_) => return format!("no PING answer within {:?}", keepalive.timeout),
            }
        }
    };
    tokio::select! {
        ended = connection => ended.map_err(|e| e.to_string()),
        why = pings => Err(why),
    }
}

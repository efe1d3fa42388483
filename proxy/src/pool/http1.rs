//! Kept HTTP/1.1 connections. The most recently used is taken first, so that surplus ones age out.

use std::{
    sync::Arc,
    task::{Context, Waker},
    time::Duration,
};

use tokio::time::Instant;

use super::{Admit, Bond, ConnectError, Dialed, Key, Permit, Pool, Target, Timings, Wire};
use crate::{
    config::{ClusterName, SpiffeId},
    http::h1::{ClientConn, Limits},
    net::BoxIo,
};

/// Idle connections kept to one endpoint by one worker; more are closed as they come back.
const MAX_IDLE: usize = 256;
/// How long before an endpoint's announced close its connection is no longer used.
const CLOSE_MARGIN: Duration = Duration::from_secs(1);

/// A connection with what belongs to it. Boxed once, then handed from the pool to requests and
/// back.
struct Kept {
    conn: ClientConn<BoxIo>,
    key: Key,
    cluster: ClusterName,
    peer: Option<SpiffeId>,
    permit: Permit,
    served: u32,
    idle_timeout: Option<Duration>,
    max_requests: Option<u32>,
    bond: Bond,
}

/// A connection that waits for its next request.
pub(super) struct Idle {
    kept: Box<Kept>,
    since: Instant,
}

impl Idle {
    pub(super) fn is_of(&self, cluster: &ClusterName) -> bool {
        self.kept.cluster == *cluster
    }

    pub(super) const fn since(&self) -> Instant {
        self.since
    }

    /// Whether it is still good: not too old, not closed or written to by the peer meanwhile
    /// (RT-02: a FIN that is already here is seen before the request is sent).
    pub(super) fn keep(&mut self, now: Instant) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        let limit = self.kept.idle_timeout;
        self.kept.bond.holds()
            && limit.is_none_or(|limit| now.duration_since(self.since) < limit)
            && self.kept.conn.poll_idle_closed(&mut cx).is_pending()
    }
}

/// How long a connection may be idle: what is configured, and no longer than the endpoint says that
/// it waits, less the time by which a request could cross its close on the way (RT-02).
fn idle_limit(configured: Option<Duration>, told: Option<Duration>) -> Option<Duration> {
    let told = told.map(|told| told.saturating_sub(CLOSE_MARGIN.min(told / 2)));
    match (configured, told) {
        (Some(own), Some(told)) => Some(own.min(told)),
        (own, told) => own.or(told),
    }
}

/// A connection lent to one request.
pub struct Http1Lease {
    kept: Box<Kept>,
    /// It has served requests before, so that the peer may be closing it at this moment.
    pub reused: bool,
    pub timings: Timings,
    pool: Arc<Pool>,
}

impl std::fmt::Debug for Http1Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Http1Lease")
            .field("reused", &self.reused)
            .finish_non_exhaustive()
    }
}

impl Http1Lease {
    /// The connection.
    pub const fn conn(&mut self) -> &mut ClientConn<BoxIo> {
        &mut self.kept.conn
    }

    /// Whether the response that came on it has been received whole.
    #[must_use]
    pub const fn response_body_done(&self) -> bool {
        self.kept.conn.response_body_done()
    }

    /// Who the other side is.
    #[must_use]
    pub const fn peer(&self) -> Option<&SpiffeId> {
        self.kept.peer.as_ref()
    }

    /// Ends the loan: the connection is kept if it can serve another request, closed otherwise.
    pub fn give_back(self, now: Instant) {
        let Self { mut kept, pool, .. } = self;
        kept.served += 1;
        kept.idle_timeout = idle_limit(kept.idle_timeout, kept.conn.keep_alive_timeout());
        let worn = kept.max_requests.is_some_and(|max| kept.served >= max);
        if worn || !kept.bond.holds() || !kept.conn.is_reusable() {
            return;
        }
        kept.conn.rest();
        pool.with_entry(kept.key, |entry| {
            if entry.http1.len() < MAX_IDLE {
                entry.http1.push(Idle { kept, since: now });
            }
        });
    }

    /// The raw stream after a protocol switch, with what was read beyond it and the permit that
    /// must live as long.
    #[must_use]
    pub fn into_raw(self) -> (BoxIo, bytes::Bytes, Permit) {
        let Kept { conn, permit, .. } = *self.kept;
        let (io, rest) = conn.into_parts();
        (io, rest, permit)
    }
}

impl Pool {
    /// A connection that speaks HTTP/1.1, kept or new; `fresh` asks for a new one.
    ///
    /// # Errors
    /// When none can be had.
    pub async fn http1(
        self: &Arc<Self>,
        target: &Target,
        admit: &dyn Admit,
        fresh: bool,
    ) -> Result<Http1Lease, ConnectError> {
        let key = Key::of(target);
        let now = Instant::now();
        let kept = || {
            self.with_entry(key, |entry| {
                loop {
                    let mut idle = entry.http1.pop()?;
                    if idle.keep(now) {
                        return Some(idle);
                    }
                }
            })
        };
        if !fresh && let Some(idle) = kept() {
            return Ok(Http1Lease {
                kept: idle.kept,
                reused: true,
                timings: Timings::default(),
                pool: Arc::clone(self),
            });
        }
        let permit = self.permit(target, admit)?;
        let bond = Bond::of(target);
        let Dialed {
            io,
            peer,
            timings,
            permit,
        } = self.dial(target, Wire::Http1, permit).await?;
        Ok(Http1Lease {
            reused: false,
            timings,
            kept: Box::new(Kept {
                conn: ClientConn::new(io, Limits::default()),
                key,
                cluster: target.cluster.clone(),
                peer,
                permit,
                served: 0,
                idle_timeout: target.idle_timeout,
                max_requests: target.max_requests,
                bond,
            }),
            pool: Arc::clone(self),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rt_02_the_endpoint_is_not_met_at_its_close() {
        let seconds = Duration::from_secs;
        for (own, told, limit) in [
            (None, None, None),
            (Some(seconds(60)), None, Some(seconds(60))),
            (None, Some(seconds(5)), Some(seconds(4))),
            (Some(seconds(60)), Some(seconds(5)), Some(seconds(4))),
            (Some(seconds(3)), Some(seconds(5)), Some(seconds(3))),
            (None, Some(seconds(1)), Some(Duration::from_millis(500))),
            (None, Some(seconds(0)), Some(seconds(0))),
        ] {
            assert_eq!(idle_limit(own, told), limit, "{own:?} {told:?}");
        }
    }
}

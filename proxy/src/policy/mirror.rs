//! Copies of a request to other clusters. Nobody waits for them, and what they answer is thrown
//! away; they can neither delay nor fail the request that they are copies of.

use std::{sync::Arc, time::Duration};

use http::{HeaderValue, Request, header};
use tokio::time::{Instant, timeout};

use super::{
    exchange::Exchange,
    replay::Replay,
    serve::{Job, authority},
    upstream::{Upstream, for_http1},
    worker::Worker,
};
use crate::{
    balance::{ClusterHandle, Outcome, PickCx},
    config::{cluster::UpstreamProtocol, route::Mirror},
    fault::Fault,
    http::{BodyLen, Frame, h1::strip_hop_by_hop},
    pool::Permit,
    route::RouteHit,
};

/// A copy is given up after this, answered or not.
const LIMIT: Duration = Duration::from_secs(15);

impl Job<'_> {
    /// Sends the copies that the route asks for. The body is the one kept for retries: a request
    /// whose body is longer than that is not copied, which is said in the log.
    pub(super) fn mirror(&self, hit: &RouteHit, exchange: &Exchange<'_, '_>) {
        let wanted: Vec<Mirror> = self
            .worker
            .with_rng(|rng| hit.mirrors(rng).cloned().collect());
        if wanted.is_empty() {
            return;
        }
        let Some(body) = exchange.replay.whole() else {
            tracing::debug!(route = %hit.route.name, "the body is too long to be mirrored");
            return;
        };
        for mirror in wanted {
            let Some(cluster) = self.world.live.clusters.get(&mirror.cluster) else {
                tracing::debug!(cluster = %mirror.cluster, "the mirror's cluster is not known");
                continue;
            };
            let mut head = Request::new(());
            *head.method_mut() = self.head.method().clone();
            *head.uri_mut() = self.head.uri().clone();
            *head.headers_mut() = self.head.headers().clone();
            // No copy switches protocols.
            strip_hop_by_hop(head.headers_mut());
            if let Some(trace) = &self.record.trace {
                trace.inject(head.headers_mut(), &trace.span_id);
            }
            if let Some(host) = mirror.host(authority(&self.head)) {
                head.headers_mut().insert(header::HOST, host);
            }
            let length: usize = body.iter().map(length_of).sum();
            let len = if self.len.is_empty() {
                self.len
            } else {
                head.headers_mut()
                    .insert(header::CONTENT_LENGTH, HeaderValue::from(length));
                BodyLen::Known(length as u64)
            };
            let copy = send(
                Arc::clone(self.worker),
                cluster.resolve(Instant::now()),
                head,
                len,
                body.clone(),
            );
            tokio::spawn(async move {
                if timeout(LIMIT, copy).await.is_err() {
                    tracing::debug!("a mirrored request took too long");
                }
            });
        }
    }
}

fn length_of(frame: &Frame) -> usize {
    match frame {
        Frame::Data(data) => data.len(),
        Frame::Trailers(_) => 0,
    }
}

/// Sends one copy to its end.
async fn send(
    worker: Arc<Worker>,
    cluster: Arc<ClusterHandle>,
    mut head: Request<()>,
    len: BodyLen,
    body: Vec<Frame>,
) {
    let now = Instant::now();
    let cx = PickCx {
        hash: None,
        tried: &[],
        original_dst: None,
        now,
    };
    let permit = worker.with_rng(|rng| cluster.admit(false, now, rng));
    let (Ok(permit), Ok(picked)) = (permit, worker.with_rng(|rng| cluster.pick(&cx, rng))) else {
        return;
    };
    let target = worker.target(&cluster.config, &picked.endpoint);
    let admit = || Ok::<Permit, Fault>(Box::new(cluster.connection(false)?));
    let http2 = cluster.config.protocol == UpstreamProtocol::Http2;
    let up = if http2 {
        let Ok(lease) = worker.pool.http2(&target, &admit, !len.is_empty()).await else {
            return picked.record(Outcome::ConnectFailed, now.elapsed(), Instant::now());
        };
        Upstream::http2(lease, &head, len, target.tls.is_some())
    } else {
        let Ok(lease) = worker.pool.http1(&target, &admit, false).await else {
            return picked.record(Outcome::ConnectFailed, now.elapsed(), Instant::now());
        };
        for_http1(head.headers_mut());
        Ok(Upstream::http1(lease, &head, len, None))
    };
    let Ok(mut up) = up else {
        return;
    };
    let answered = Replay::of(body).drive(&mut up).await;
    let outcome = if answered {
        Outcome::Success
    } else {
        Outcome::Reset
    };
    picked.record(outcome, now.elapsed(), Instant::now());
    permit.finish(outcome, now.elapsed(), Instant::now());
    if answered {
        up.give_back();
    }
}

//! The tries of one request: choose an endpoint, get a connection, send, judge what came, and
//! perhaps again elsewhere.

use std::{future::poll_fn, net::SocketAddr, sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue, Method, Response, Uri, Version, header};
use smallvec::SmallVec;
use tokio::time::Instant;

use super::{
    deadline::{self, Deadlines},
    exchange::Exchange,
    respond::Tunnel,
    retry::{self, Decision, Tried},
    serve::{Job, Local},
    upstream::{Failure, FinalHead, Upstream, for_http1},
};
use crate::{
    balance::{ClusterHandle, Outcome, PickCx, Picked},
    config::{cluster::UpstreamProtocol, route::RetryPolicy},
    fault::{Fault, Resend, Side},
    http::{grpc, reply},
    pool::{Admit, ConnectError, Permit, Target, Wire},
    route::{HashInput, HostHeader, RouteHit, Vars},
    telemetry::Attempt,
};

/// How often a connection is asked for again while the cluster's limit is reached.
const CONNECTION_POLL: Duration = Duration::from_millis(2);
const ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");

/// What all tries of a request share.
pub(super) struct Tries<'r> {
    pub(super) hit: &'r RouteHit,
    cluster: Arc<ClusterHandle>,
    policy: Arc<RetryPolicy>,
    pub(super) deadlines: Deadlines,
    high: bool,
    hash: Option<u64>,
    pub(super) cookies: Vec<HeaderValue>,
    tried: SmallVec<[SocketAddr; 3]>,
    host: Host,
}

/// Whose name the request is for.
enum Host {
    AsItIs,
    /// Each endpoint's own, where it has one; this is the client's.
    OfEndpoint(Option<HeaderValue>),
}

/// One try that brought a response head.
pub(super) struct Answered {
    pub(super) up: Upstream,
    pub(super) head: FinalHead,
    pub(super) picked: Picked,
    pub(super) latency: Duration,
}

impl Job<'_> {
    pub(super) async fn forward(
        &mut self,
        hit: &RouteHit,
        exchange: &mut Exchange<'_, '_>,
    ) -> Result<Option<Tunnel>, Local> {
        let mut tries = self.prepare(hit)?;
        if self.len.is_empty() {
            tries.deadlines.request_ended(Instant::now());
        }
        let cluster = Arc::clone(&tries.cluster);
        let permit = self
            .worker
            .with_rng(|rng| cluster.admit(tries.high, Instant::now(), rng))
            .map_err(|fault| Local::new(fault, cluster.config.name.as_str()))?;
        let mut retry_permit = None;
        loop {
            let tried = self.attempt(&mut tries, exchange).await;
            drop(retry_permit.take());
            let wait = match self.judge(&tries, exchange, &tried) {
                Decision::Retry { wait } => {
                    retry_permit = cluster.retry(Instant::now());
                    retry_permit.is_some().then_some(wait)
                }
                Decision::Stop(_) => None,
            };
            match (wait, tried) {
                (None, Ok(answered)) => {
                    self.set_host(&tries.host, None);
                    self.mirror(hit, exchange);
                    return self.respond(tries, answered, permit, exchange).await;
                }
                (None, Err((failure, _))) => {
                    let (outcome, now) = (outcome_of(failure.fault), Instant::now());
                    permit.finish(outcome, now - self.record.started, now);
                    return Err(failure.into());
                }
                (Some(wait), tried) => {
                    if let Ok(answered) = tried {
                        answered.discard();
                    }
                    self.pause(wait, exchange).await?;
                }
            }
        }
    }

    fn prepare<'r>(&mut self, hit: &'r RouteHit) -> Result<Tries<'r>, Local> {
        let world = Arc::clone(&self.world);
        let forward = hit
            .forward()
            .ok_or_else(|| Local::new(Fault::Internal, "the route does not forward"))?;
        let missing = |name: &str| Local {
            status: Some(forward.cluster_not_found),
            ..Local::new(Fault::ClusterNotFound, name)
        };
        let name = hit.cluster.as_ref().ok_or_else(|| missing(""))?;
        let cluster = world.live.clusters.get(name);
        let cluster = cluster.ok_or_else(|| missing(name.as_str()))?;
        let cluster = cluster.resolve(Instant::now());
        self.record.cluster = Some(name.clone());
        let policy = hit.retry().map_or_else(RetryPolicy::shared, Arc::clone);
        let asked = self
            .caller
            .grpc
            .as_ref()
            .and_then(|_| deadline::grpc_timeout(self.head.headers()));
        let deadlines = Deadlines::new(forward, &policy, self.manager, asked, self.record.started);
        let hash = if forward.hash.is_empty() {
            None
        } else {
            let view = self.view();
            let input = HashInput {
                request: &view,
                source: self.conn.source.ip(),
            };
            Some(self.worker.with_rng(|rng| hit.hash(&input, rng)))
        };
        let high = forward.high_priority;
        let host = self.rewrite(hit);
        let (hash, cookies) = hash.map_or((None, Vec::new()), |h| (h.value, h.set_cookies));
        Ok(Tries {
            hit,
            cluster,
            policy,
            deadlines,
            high,
            hash,
            cookies,
            tried: SmallVec::new(),
            host,
        })
    }

    /// What the route changes in the head, for all tries alike.
    fn rewrite(&mut self, hit: &RouteHit) -> Host {
        if let Some(target) = self
            .head
            .uri()
            .path_and_query()
            .and_then(|target| hit.rewritten_path(target.as_str()))
        {
            *self.head.uri_mut() = Uri::from(target);
        }
        let host = hit.host_header(self.head.headers());
        if hit.changes_request() {
            let mut headers = self.head.headers().clone();
            let vars = Vars {
                remote: self.conn.source,
                protocol: match self.head.version() {
                    Version::HTTP_2 => "HTTP/2",
                    Version::HTTP_10 => "HTTP/1.0",
                    _ => "HTTP/1.1",
                },
                request: self.view(),
            };
            hit.apply_to_request(&mut headers, &vars);
            *self.head.headers_mut() = headers;
        }
        match host {
            HostHeader::Set(host) => {
                self.head.headers_mut().insert(header::HOST, host);
                Host::AsItIs
            }
            HostHeader::OfEndpoint => {
                Host::OfEndpoint(self.head.headers().get(header::HOST).cloned())
            }
            HostHeader::Keep => Host::AsItIs,
        }
    }

    /// One try, up to its response head.
    async fn attempt(
        &mut self,
        tries: &mut Tries<'_>,
        exchange: &mut Exchange<'_, '_>,
    ) -> Result<Answered, (Failure, Option<SocketAddr>)> {
        let began = Instant::now();
        let picked = self.worker.with_rng(|rng| {
            let cx = PickCx {
                hash: tries.hash,
                tried: &tries.tried,
                original_dst: Some(self.conn.destination),
                now: began,
            };
            tries.cluster.pick(&cx, rng)
        });
        let name = tries.cluster.config.name.as_str();
        let picked = picked.map_err(|fault| (Failure::before_sending(fault, name), None))?;
        let address = picked.endpoint.config.address;
        tries.tried.push(address);
        let mut attempt = Attempt::new(address, began);
        if let Some(trace) = &mut self.record.trace {
            attempt.span_id = self.worker.with_rng(|rng| trace.next_try(rng));
        }
        let sent = self.send(tries, &picked, &mut attempt, exchange).await;
        let result = match sent {
            Ok(up) => self.receive(tries, up, exchange).await,
            Err(failure) => Err(failure),
        };
        let now = Instant::now();
        attempt.ended = now;
        let latency = now - began;
        let result = result.and_then(|(up, head)| {
            // An answer that the endpoint's own proxy made is a failure of this try, and says
            // whether the application can have seen the request.
            match self
                .record
                .upstream_peer
                .is_some()
                .then(|| told(&head.head))
                .flatten()
            {
                Some(failure) => Err(failure),
                None => Ok((up, head)),
            }
        });
        match result {
            Ok((up, head)) => {
                attempt.status = Some(head.head.status());
                attempt.grpc_status = grpc::status(head.head.headers());
                self.record.attempts.push(attempt);
                Ok(Answered {
                    up,
                    head,
                    picked,
                    latency,
                })
            }
            Err(failure) => {
                attempt.fault = Some(failure.fault);
                attempt.detail.clone_from(&failure.detail);
                self.record.attempts.push(attempt);
                picked.record(outcome_of(failure.fault), latency, now);
                Err((failure, Some(address)))
            }
        }
    }

    /// The response's head; where the next retry may hang on it, also what comes right behind it.
    async fn receive(
        &self,
        tries: &mut Tries<'_>,
        mut up: Upstream,
        exchange: &mut Exchange<'_, '_>,
    ) -> Result<(Upstream, FinalHead), Failure> {
        let head = exchange.head(&mut up, &mut tries.deadlines).await?;
        let open = !head.len.is_empty() && grpc::status(head.head.headers()).is_none();
        // This try is not on record yet.
        let made = self.record.attempts.len();
        if open && retry::awaits_trailers(&tries.policy, &self.tried(tries, exchange, made, true)) {
            exchange.peek(&mut up, retry::TRAILERS_WAIT).await?;
        }
        Ok((up, head))
    }

    /// Gets a connection to the endpoint and puts the head on it.
    async fn send(
        &mut self,
        tries: &Tries<'_>,
        picked: &Picked,
        attempt: &mut Attempt,
        exchange: &mut Exchange<'_, '_>,
    ) -> Result<Upstream, Failure> {
        let cluster = &tries.cluster;
        let config = &cluster.config;
        let target = self.worker.target(config, &picked.endpoint);
        let high = tries.high;
        let admit = || {
            let permit = cluster.connection(high)?;
            Ok(Box::new(permit) as Permit)
        };
        let wire = self.wire(config.protocol);
        self.set_head(tries, picked, attempt, wire);
        let limit = tries.deadlines.head_by();
        let connected = self.lease(wire, &target, &admit, cluster, high);
        let lease = tokio::select! {
            // What was taken back already is not sent (H2-01).
            biased;
            () = poll_fn(|cx| exchange.down.poll_gone(cx)) => {
                return Err(Failure::before_sending(Fault::DownstreamReset, ""));
            }
            lease = connected => lease
                .map_err(|error| Failure::before_sending(error.fault, &*error.detail))?,
            fault = until(limit) => return Err(Failure::before_sending(fault, "")),
        };
        attempt.wait = Instant::now() - attempt.began;
        match lease {
            Lease::One(lease) => {
                attempt.connect = lease.timings.connect;
                attempt.tls = lease.timings.tls;
                attempt.reused = lease.reused;
                self.record.upstream_peer = lease.peer().cloned();
                let names = self.names.as_ref();
                Ok(Upstream::http1(lease, &self.head, self.len, names))
            }
            Lease::Two(lease) => {
                attempt.connect = lease.timings.connect;
                attempt.tls = lease.timings.tls;
                attempt.reused = lease.reused;
                self.record.upstream_peer = lease.peer().cloned();
                Upstream::http2(lease, &self.head, self.len, target.tls.is_some())
            }
        }
    }

    /// A connection, waited for while the cluster's limit is reached. Only whoever waits for that
    /// counts as pending: the making of a connection of one's own is no queue.
    async fn lease(
        &self,
        wire: Wire,
        target: &Target,
        admit: &dyn Admit,
        cluster: &ClusterHandle,
        high: bool,
    ) -> Result<Lease, ConnectError> {
        let pool = &self.worker.pool;
        let body = !self.len.is_empty();
        if wire == Wire::Http2 {
            let lease = pool.http2(target, admit, body).await;
            if matches!(&lease, Err(error) if error.fault == Fault::OverflowConnections) {
                cluster.connections_overflowed();
            }
            return lease.map(Lease::Two);
        }
        let give_up = Instant::now() + target.connect_timeout;
        let mut place = None;
        loop {
            match pool.http1(target, admit, false).await {
                Ok(lease) => return Ok(Lease::One(lease)),
                Err(error)
                    if error.fault == Fault::OverflowConnections && Instant::now() < give_up =>
                {
                    if place.is_none() {
                        cluster.connections_overflowed();
                        place = Some(cluster.pending(high)?);
                    }
                    tokio::time::sleep(CONNECTION_POLL).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Which version this leg speaks. Switching protocols needs HTTP/1.1 (HT-11), and so do tunnels
    /// that came in it.
    fn wire(&self, protocol: UpstreamProtocol) -> Wire {
        let old = self.head.version() < Version::HTTP_2;
        match protocol {
            _ if self.upgrade.is_some() => Wire::Http1,
            _ if *self.head.method() == Method::CONNECT && old => Wire::Http1,
            UpstreamProtocol::Http1 => Wire::Http1,
            UpstreamProtocol::Http2 => Wire::Http2,
            UpstreamProtocol::Downstream if self.head.version() == Version::HTTP_2 => Wire::Http2,
            UpstreamProtocol::Downstream => Wire::Http1,
        }
    }

    /// What differs from try to try, written over what the one before had. The head is not copied:
    /// HTTP/1.1 writes it from here.
    fn set_head(&mut self, tries: &Tries<'_>, picked: &Picked, attempt: &Attempt, wire: Wire) {
        self.set_host(&tries.host, picked.endpoint.config.hostname.as_deref());
        let headers = self.head.headers_mut();
        if let Some(left) = tries.deadlines.grpc_timeout(Instant::now()) {
            headers.insert(grpc::GRPC_TIMEOUT, left);
        }
        if tries.hit.host.attempt_count_header {
            headers.insert(ATTEMPT_COUNT, HeaderValue::from(tries.tried.len()));
        }
        if let Some(trace) = &self.record.trace {
            trace.inject(headers, &attempt.span_id);
        }
        if wire == Wire::Http1 {
            for_http1(headers);
            if let Some(token) = &self.upgrade {
                let upgrade = HeaderValue::from_static("upgrade");
                headers.insert(header::CONNECTION, upgrade);
                headers.insert(header::UPGRADE, token.clone());
            }
        }
    }

    /// The endpoint's name where the route asks for it, otherwise what the client said.
    fn set_host(&mut self, host: &Host, endpoint: Option<&str>) {
        let Host::OfEndpoint(own) = host else {
            return;
        };
        let named = endpoint.and_then(|name| HeaderValue::from_str(name).ok());
        let headers = self.head.headers_mut();
        match named.or_else(|| own.clone()) {
            Some(host) => drop(headers.insert(header::HOST, host)),
            None => drop(headers.remove(header::HOST)),
        }
    }

    fn judge(
        &self,
        tries: &Tries<'_>,
        exchange: &Exchange<'_, '_>,
        tried: &Result<Answered, (Failure, Option<SocketAddr>)>,
    ) -> Decision {
        let (sent, outcome) = match tried {
            Ok(answered) => (
                true,
                retry::Outcome::Response {
                    status: answered.head.head.status(),
                    headers: answered.head.head.headers(),
                    trailers: answered.up.trailers_ahead(),
                },
            ),
            Err((failure, _)) => (failure.sent, retry::Outcome::Fault(failure.fault)),
        };
        let retries = self.record.attempts.len().saturating_sub(1);
        let facts = self.tried(tries, exchange, retries, sent);
        self.worker
            .with_rng(|rng| retry::decide(&tries.policy, &facts, &outcome, rng))
    }

    fn tried(
        &self,
        tries: &Tries<'_>,
        exchange: &Exchange<'_, '_>,
        retries: usize,
        sent: bool,
    ) -> Tried<'_> {
        Tried {
            method: self.head.method(),
            grpc: self.record.grpc,
            retries: u32::try_from(retries).unwrap_or(u32::MAX),
            sent,
            committed: false,
            replayable: exchange.replay.replayable() && self.upgrade.is_none(),
            elsewhere: tries.cluster.endpoint_count() > tries.tried.len(),
            remaining: tries.deadlines.remaining(Instant::now()),
        }
    }

    /// Waits before a retry, unless the client goes.
    async fn pause(&self, wait: Duration, exchange: &mut Exchange<'_, '_>) -> Result<(), Local> {
        if wait.is_zero() {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => Ok(()),
            () = poll_fn(|cx| exchange.down.poll_gone(cx)) => {
                Err(Local::new(Fault::DownstreamReset, ""))
            }
        }
    }
}

/// The failure that a mesh peer's proxy reports instead of its application's answer. Only failures
/// on the way to the application count: a refusal by policy is an answer.
fn told(head: &Response<()>) -> Option<Failure> {
    let fault = reply::told_fault(head.headers())?;
    let row = fault.row();
    let on_the_way = row.side == Side::Upstream || fault == Fault::Draining;
    on_the_way.then(|| Failure {
        fault,
        detail: "reported by the endpoint's proxy".to_owned(),
        grpc_status: None,
        sent: row.resend != Resend::Safe,
    })
}

enum Lease {
    One(crate::pool::Http1Lease),
    Two(crate::pool::Http2Lease),
}

async fn until(limit: Option<deadline::Limit>) -> Fault {
    match limit {
        Some(limit) => {
            tokio::time::sleep_until(limit.at).await;
            limit.fault
        }
        None => std::future::pending().await,
    }
}

/// What a failure says about the endpoint.
pub(super) fn outcome_of(fault: Fault) -> Outcome {
    match fault {
        Fault::ConnectFailed
        | Fault::ConnectTimeout
        | Fault::TlsFailed
        | Fault::PeerIdentityMismatch => Outcome::ConnectFailed,
        Fault::PerTryTimeout | Fault::RequestTimeout | Fault::StreamIdle => Outcome::Timeout,
        Fault::UpstreamClosed | Fault::UpstreamReset | Fault::UpstreamProtocol => Outcome::Reset,
        _ => Outcome::Neutral,
    }
}

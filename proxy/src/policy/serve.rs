//! One request, top to bottom: route, filters in their order, answer or forward, record.

use std::{future::poll_fn, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, Version, header};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    authz,
    exchange::Exchange,
    fault_injection,
    replay::Replay,
    respond::Tunnel,
    upstream::Failure,
    worker::{InForce, Worker, World},
};
use crate::{
    config::{
        Listener, SpiffeId,
        listener::{HttpFilter, HttpManager, LocalRateLimit},
        matcher::RequestView,
    },
    fault::Fault,
    http::{
        BodyLen, Downstream, grpc,
        h1::{self, OriginalNames, strip_hop_by_hop, upgrade_token},
        h2,
        reply::{self, Caller, LocalReply},
    },
    route::{RouteHit, Vars, path},
    telemetry::{Record, Text, TraceContext},
};

/// What is known of the connection that a request came on.
#[derive(Debug)]
pub struct Connection {
    pub listener: Arc<Listener>,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    /// The client's authenticated identity.
    pub peer: Option<SpiffeId>,
    pub server_name: Option<String>,
    pub tls: bool,
    /// Cancelled when what is still under way has to end.
    pub cut: CancellationToken,
}

impl Connection {
    pub(super) fn facts(&self) -> authz::Connection<'_> {
        authz::Connection {
            peer: self.peer.as_ref(),
            source: self.source,
            client: self.source.ip(),
            destination: self.destination,
            server_name: self.server_name.as_deref(),
        }
    }
}

/// A request as it was read.
#[derive(Debug)]
pub struct Incoming {
    pub head: Request<()>,
    pub len: BodyLen,
    pub names: Option<OriginalNames>,
}

/// An answer of the proxy's own.
#[derive(Debug)]
pub(super) struct Local {
    pub(super) fault: Fault,
    pub(super) details: String,
    pub(super) status: Option<StatusCode>,
    pub(super) grpc_status: Option<u32>,
    pub(super) retry_after: Option<std::time::Duration>,
}

impl From<Failure> for Local {
    fn from(failure: Failure) -> Self {
        Self {
            grpc_status: failure.grpc_status,
            ..Self::new(failure.fault, failure.detail)
        }
    }
}

impl Local {
    pub(super) fn new(fault: Fault, details: impl Into<String>) -> Self {
        Self {
            fault,
            details: details.into(),
            status: None,
            grpc_status: None,
            retry_after: None,
        }
    }
}

/// A request on its way, without the client's side of it.
#[derive(Debug)]
pub(super) struct Job<'a> {
    pub(super) worker: &'a Arc<Worker>,
    pub(super) world: Arc<World>,
    pub(super) conn: &'a Connection,
    pub(super) manager: &'a Arc<HttpManager>,
    pub(super) caller: Caller,
    /// As it came at first, then as it is sent on: what differs from try to try is written over.
    pub(super) head: Request<()>,
    pub(super) len: BodyLen,
    pub(super) names: Option<OriginalNames>,
    /// The protocol that the client asks to switch to.
    pub(super) upgrade: Option<HeaderValue>,
    pub(super) record: Record,
    /// The route, when it changes the headers of responses.
    changes: Option<RouteHit>,
}

/// What is to be done with a request.
enum Plan {
    Answer(Response<Bytes>),
    Forward(RouteHit),
}

/// Serves one request; its future is large, so that connections box it. Returns the two raw
/// streams' upstream half when it became a tunnel.
pub async fn serve(
    worker: &Arc<Worker>,
    conn: &Connection,
    in_force: &InForce,
    incoming: Incoming,
    down: &mut Downstream<'_>,
) -> Option<Tunnel> {
    let mut job = Job::new(worker, conn, in_force, incoming);
    let mut exchange = Exchange::new(down, Replay::new(job.len.is_empty()));
    let served = tokio::select! {
        biased;
        served = job.run(&mut exchange) => served,
        () = conn.cut.cancelled() => Err(Local::new(Fault::DrainTimeout, "")),
    };
    job.record.bytes_in = exchange.bytes.request;
    let tunnel = match served {
        Ok(tunnel) => tunnel,
        Err(local) => {
            job.answer(&mut exchange, &local).await;
            None
        }
    };
    job.record.bytes_out = exchange.bytes.response;
    job.record.ended = Instant::now();
    worker.shared.telemetry.request(&job.record);
    tunnel
}

impl<'a> Job<'a> {
    fn new(
        worker: &'a Arc<Worker>,
        conn: &'a Connection,
        InForce { world, manager }: &'a InForce,
        incoming: Incoming,
    ) -> Self {
        let Incoming {
            mut head,
            len,
            names,
        } = incoming;
        let now = Instant::now();
        let mut record = Record::new(conn.listener.direction, conn.source, conn.destination, now);
        let caller = Caller::of(head.method(), head.version(), head.headers());
        record.logged = manager.access_log;
        record.peer.clone_from(&conn.peer);
        record.method = head.method().clone();
        record.version = head.version();
        record.grpc = caller.grpc.is_some();
        record.authority = match head.headers().get(header::HOST) {
            Some(host) => Text::Value(host.clone()),
            None => authority(&head).into(),
        };
        record.path = match head.uri().path_and_query() {
            Some(target) => Text::Target(target.clone()),
            None => Text::default(),
        };
        let tracing = manager.tracing.as_ref();
        let sampling = worker.shared.telemetry.sampling(tracing);
        record.trace = worker.with_rng(|rng| TraceContext::extract(head.headers(), sampling, rng));
        record.collector = tracing.and_then(|tracing| tracing.collector.clone());
        let upgrade = upgrade_token(head.headers());
        strip_hop_by_hop(head.headers_mut());
        Self {
            worker,
            world: Arc::clone(world),
            conn,
            manager,
            caller,
            head,
            len,
            names,
            upgrade,
            record,
            changes: None,
        }
    }

    async fn run(&mut self, exchange: &mut Exchange<'_, '_>) -> Result<Option<Tunnel>, Local> {
        self.check_size()?;
        self.normalize()?;
        let hit = match self.plan()? {
            Plan::Answer(response) => {
                self.record.status = Some(response.status());
                let _rest = exchange.down.discard_received();
                // A client that is gone does not get it; nothing else is lost.
                if let Err(fault) = exchange.reply(response).await {
                    self.record.fault = Some(fault);
                }
                return Ok(None);
            }
            Plan::Forward(hit) => hit,
        };
        self.inject(&hit, exchange).await?;
        self.forward(&hit, exchange).await
    }

    /// The limits that the HTTP/1.1 codec keeps, for what came in HTTP/2 (HT-25).
    fn check_size(&self) -> Result<(), Local> {
        if self.head.version() != Version::HTTP_2 {
            return Ok(());
        }
        let refuse = |error: h1::Error| Local::new(error.downstream_fault(), error.to_string());
        let most = h1::Limits::default().uri_bytes;
        let target = self.head.uri().path_and_query().map_or("", |p| p.as_str());
        if target.len() > most {
            return Err(refuse(h1::Error::UriTooLong(most)));
        }
        h2::check_size(self.head.headers()).map_err(refuse)
    }

    /// The path in its normal form, which is what is matched, judged and sent on.
    fn normalize(&mut self) -> Result<(), Local> {
        let Some(target) = self.head.uri().path_and_query() else {
            return Ok(());
        };
        let normal = path::normalize(target.as_str());
        if normal.as_ref() != target.as_str() {
            let uri: Uri = normal.parse().map_err(|_| {
                Local::new(Fault::DownstreamProtocol, "the path cannot be normalised")
            })?;
            *self.head.uri_mut() = uri;
        }
        Ok(())
    }

    pub(super) fn view(&self) -> RequestView<'_> {
        RequestView {
            method: self.head.method().as_str(),
            // A CONNECT has none, and is for whoever takes everything.
            path_and_query: self.head.uri().path_and_query().map_or("/", |p| p.as_str()),
            authority: authority(&self.head),
            scheme: if self.conn.tls { "https" } else { "http" },
            headers: self.head.headers(),
        }
    }

    fn plan(&mut self) -> Result<Plan, Local> {
        let world = Arc::clone(&self.world);
        let table = world
            .routes(self.manager)
            .ok_or_else(|| Local::new(Fault::NoConfig, "the routes have not been received yet"))?;
        let grpc = self.caller.grpc.is_some();
        let hit = self
            .worker
            .with_rng(|rng| table.hit(&self.view(), grpc, rng))
            .map_err(|none| Local::new(Fault::NoRoute, none.to_string()))?;
        self.record.route = Some(Arc::clone(&hit.route.name));
        self.changes = hit.changes_response().then(|| hit.clone());
        self.filter(&hit)?;
        if let Some(answer) = hit.answer(&self.view()) {
            let mut response = reply::direct(answer.status, &answer.body, &self.caller);
            if let Some(location) = answer.location {
                response.headers_mut().insert(header::LOCATION, location);
            }
            self.change_response(response.headers_mut());
            return Ok(Plan::Answer(response));
        }
        Ok(Plan::Forward(hit))
    }

    /// The connection manager's filters, in their order.
    fn filter(&self, hit: &RouteHit) -> Result<(), Local> {
        for filter in &self.manager.filters {
            match filter {
                HttpFilter::Rbac(listener) => {
                    let rbac = authz::effective(listener, &hit.host.filters, &hit.route.filters);
                    if let Some(rbac) = rbac {
                        self.authorize(rbac)?;
                    }
                }
                HttpFilter::LocalRateLimit(limit) => self.limit(limit.as_ref(), hit)?,
                // Faults wait, so they come after the filters that only decide.
                HttpFilter::Fault(_) => {}
            }
        }
        Ok(())
    }

    /// The route's rate limit, else its virtual host's, else the listener's.
    fn limit(&self, listener: Option<&Arc<LocalRateLimit>>, hit: &RouteHit) -> Result<(), Local> {
        let (host, route) = (&hit.host.filters, &hit.route.filters);
        let (bucket, limit) = match route.rate_limit.as_ref().or(host.rate_limit.as_ref()) {
            Some(Some(own)) => (self.world.route_bucket(own), Some(&own.limit)),
            Some(None) => (None, None),
            None => (
                listener.and_then(|limit| self.world.bucket(limit)),
                listener.map(AsRef::as_ref),
            ),
        };
        if let (Some(bucket), Some(limit)) = (bucket, limit)
            && let Err(wait) = bucket.take(Instant::now())
        {
            return Err(Local {
                status: Some(limit.status),
                retry_after: Some(wait),
                ..Local::new(Fault::RateLimited, "local rate limit")
            });
        }
        Ok(())
    }

    fn authorize(&self, rbac: &crate::config::rbac::Rbac) -> Result<(), Local> {
        let verdict = authz::request(rbac, &self.conn.facts(), &self.view());
        if let Some(shadow) = &verdict.shadow
            && !shadow.allowed
        {
            tracing::info!(
                target: "authz",
                policy = shadow.policy.map(|p| &**p),
                path = &*self.record.path,
                "would be denied (dry run)"
            );
        }
        if verdict.enforced.allowed {
            return Ok(());
        }
        Err(Local::new(Fault::Denied, verdict.enforced.reason()))
    }

    /// Faults made on purpose: a delay, an abort.
    async fn inject(&self, hit: &RouteHit, exchange: &mut Exchange<'_, '_>) -> Result<(), Local> {
        let listener = self.manager.filters.iter().find_map(|filter| match filter {
            HttpFilter::Fault(fault) => Some(fault.as_ref()),
            _ => None,
        });
        let Some(listener) = listener else {
            return Ok(());
        };
        let own = fault_injection::effective(listener, &hit.host.filters, &hit.route.filters);
        let Some(config) = own else {
            return Ok(());
        };
        let active = &self.worker.shared.faults;
        let drawn = self
            .worker
            .with_rng(|rng| active.draw(config, &self.view(), rng));
        let Some(injected) = drawn else {
            return Ok(());
        };
        if let Some(delay) = injected.delay {
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = poll_fn(|cx| exchange.down.poll_gone(cx)) => {
                    return Err(Local::new(Fault::DownstreamReset, ""));
                }
            }
        }
        match injected.abort {
            None => Ok(()),
            Some(abort) => {
                let reply = fault_injection::reply(abort);
                Err(Local {
                    status: reply.status,
                    grpc_status: reply.grpc_status,
                    ..Local::new(Fault::FaultInjected, "")
                })
            }
        }
    }

    /// Changes the headers of a response, also one of our own, as the route asks.
    pub(super) fn change_response(&self, headers: &mut HeaderMap) {
        let Some(hit) = &self.changes else {
            return;
        };
        let original = HeaderMap::new();
        let vars = Vars {
            remote: self.conn.source,
            protocol: "HTTP/1.1",
            request: RequestView {
                authority: authority(&self.head),
                headers: &original,
                ..self.view()
            },
        };
        hit.apply_to_response(headers, &vars);
    }

    /// Sends an answer of our own, or ends a response that had begun in the way its client reads
    /// as a failure.
    async fn answer(&mut self, exchange: &mut Exchange<'_, '_>, local: &Local) {
        self.record.fault = Some(local.fault);
        self.record.details.clone_from(&local.details);
        let reply = LocalReply {
            status: local.status,
            grpc_status: local.grpc_status,
            retry_after: local.retry_after,
            ..LocalReply::new(local.fault, &local.details)
        };
        if self.record.grpc {
            self.record.grpc_status = Some(reply.grpc_code());
        }
        if local.fault == Fault::DownstreamReset {
            exchange.down.abort();
            return;
        }
        if self.record.status.is_some() {
            // The head is out already. gRPC can still say why; nobody else can (GR-01, GR-08).
            if !(self.record.grpc && exchange.down.fail(reply.trailers())) {
                exchange.pass_on_queued().await;
                exchange.down.abort();
            }
            return;
        }
        let mut response = reply.build(&self.caller);
        self.change_response(response.headers_mut());
        self.record.status = Some(response.status());
        if !exchange.down.discard_received() || reply.closes() {
            exchange.down.close_after();
        }
        if let Err(fault) = exchange.reply(response).await {
            tracing::debug!(?fault, "the client did not wait for its answer");
        }
    }
}

pub(super) fn authority(head: &Request<()>) -> &str {
    head.headers()
        .get(header::HOST)
        .and_then(|host| host.to_str().ok())
        .or_else(|| head.uri().authority().map(|a| a.as_str()))
        .unwrap_or_default()
}

/// Whether a gRPC status blames the server rather than the caller.
pub(super) const fn grpc_blames_server(status: u32) -> bool {
    matches!(
        status,
        grpc::code::UNKNOWN
            | grpc::code::DEADLINE_EXCEEDED
            | grpc::code::INTERNAL
            | grpc::code::UNAVAILABLE
            | grpc::code::DATA_LOSS
    )
}

#[cfg(test)]
mod tests {
    use super::serve;
    use crate::sizes::{check, of_5};

    #[test]
    fn requests_are_small() {
        check(&[("a request", of_5(serve), 6144)]);
    }
}

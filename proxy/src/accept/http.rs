//! HTTP connections: one request after the other, or many at once.

use std::{
    future::poll_fn,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use h2::{
    Reason,
    server::{Builder, SendResponse},
};
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header, request::Parts,
    uri::Authority,
};
use rand::RngExt;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{Chosen, Facts, rechoose};
use crate::{
    config::{
        listener::{ChainKind, Codec, HttpManager},
        tls::{ALPN_MESH_HTTP1, ALPN_MESH_HTTP2},
    },
    detect::{Peek, Protocol},
    drain::Phase,
    fault::Fault,
    http::{
        BodyLen, Downstream,
        downstream::{Asks, Http2Exchange},
        h1::{self, Limits, ServerConn},
        h2::{CONNECTION_WINDOW, DECODED_HEAD_BYTES, MAX_SEND_BUFFER, MAX_STREAMS, STREAM_WINDOW},
        reply::{Caller, LocalReply},
    },
    net::{BoxIo, Prefixed},
    policy::{
        Tunnel,
        serve::{Connection, Incoming, serve as serve_request},
        worker::{InForce, Worker, World},
    },
    tcp::relay,
    telemetry::{Record, TraceContext},
};

/// How long a lingering close waits for the client to notice (HT-18).
const LINGER: Duration = Duration::from_secs(5);
/// Streams that may have been taken back before they were looked at. `h2`'s own 20 is less than
/// what an honest client cancels at once when it has a hundred calls under way (H2-02).
const MAX_RESET_UNSEEN: usize = 200;
/// When the proxy's time to drain is over, HTTP/2 streams end with a status (GR-06), for which
/// their connection is given this long.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// A head has to come within this from its first byte, unless the manager says otherwise (LK-05).
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// So many streams of a connection are looked at before it is judged by them (H2-01); as in Envoy
/// (`overload.premature_reset_total_stream_count`).
const JUDGED: u32 = 500;
/// A stream that its client takes back sooner than this was hardly wanted.
const PREMATURE: Duration = Duration::from_secs(1);

/// How a client deals with the streams that it opens.
#[derive(Debug, Default)]
struct Conduct {
    ended: AtomicU32,
    premature: AtomicU32,
    /// Told when more than half of them were taken back at once.
    bad: Notify,
}

impl Conduct {
    fn stream_ended(&self, premature: bool) {
        let ended = self.ended.fetch_add(1, Ordering::Relaxed) + 1;
        let premature = self
            .premature
            .fetch_add(premature.into(), Ordering::Relaxed)
            + u32::from(premature);
        if ended >= JUDGED {
            if premature > ended / 2 {
                self.bad.notify_one();
            }
            // What was long ago counts less and less.
            self.ended.store(ended / 2, Ordering::Relaxed);
            self.premature.store(premature / 2, Ordering::Relaxed);
        }
    }
}

/// A connection with the settings that serve it, looked up again when configuration changes.
struct Served {
    conn: Connection,
    facts: Facts,
    manager: Arc<HttpManager>,
    /// The configuration that `manager` is of; 0 before the first look.
    world: u64,
}

impl Served {
    /// Takes up the settings now in force (TL-11: a new policy holds for the next request).
    fn renew(&mut self, world: &World) {
        if world.serial != self.world {
            self.world = world.serial;
            let chain = rechoose(world, &self.conn.listener, &self.facts);
            if let Some(ChainKind::Http(manager)) = chain.as_deref().map(|c| &c.kind) {
                self.manager = Arc::clone(manager);
            }
        }
    }

    /// What serves a request that begins now.
    fn in_force(&mut self, worker: &Worker) -> InForce {
        let world = worker.shared.world.load_full();
        self.renew(&world);
        let manager = Arc::clone(&self.manager);
        InForce { world, manager }
    }
}

/// Serves a connection to its end.
pub(super) async fn serve(worker: &Arc<Worker>, chosen: Box<Chosen>, manager: Arc<HttpManager>) {
    let Chosen {
        conn,
        facts,
        mut io,
        alpn,
        protocol,
        _in_use: in_use,
        ..
    } = *chosen;
    let known = match (manager.codec, alpn.as_deref(), &protocol) {
        (Codec::Http1, ..) => Some(false),
        (Codec::Http2, ..) | (_, Some(b"h2" | ALPN_MESH_HTTP2), _) => Some(true),
        (_, Some(b"http/1.1" | ALPN_MESH_HTTP1), _) => Some(false),
        (_, None, Some(Protocol::Http2)) => Some(true),
        (_, None, Some(Protocol::Http10 | Protocol::Http11)) => Some(false),
        _ => None,
    };
    let http2 = match known {
        Some(known) => known,
        None => match sniff(&mut io).await {
            Some((http2, prefix)) => {
                io = Box::new(Prefixed::new(io, prefix));
                http2
            }
            None => return,
        },
    };
    let served = Served {
        conn,
        facts,
        manager,
        world: 0,
    };
    if http2 {
        serve_http2(worker, served, io).await;
    } else {
        serve_http1(worker, served, io).await;
    }
    drop(in_use);
}

/// Tells HTTP/2 by its preface where nothing else did.
async fn sniff(io: &mut BoxIo) -> Option<(bool, Bytes)> {
    let mut peek = Peek::default();
    let give_up = Instant::now() + HEAD_TIMEOUT;
    loop {
        tokio::select! {
            read = peek.read_more(io) => read.ok()?,
            () = sleep_until(give_up) => return None,
        }
        if peek.is_empty() && peek.ended() {
            return None;
        }
        if let Some(verdict) = peek.verdict() {
            return Some((verdict == Protocol::Http2, peek.into_bytes()));
        }
    }
}

async fn serve_http1(worker: &Arc<Worker>, mut served: Served, io: BoxIo) {
    let mut server = ServerConn::new(io, Bytes::new(), Limits::default());
    let drain = worker.shared.drain.clone();
    let mut draining = pin!(drain.reached(Phase::Draining));
    let mut requests = 0_u32;
    loop {
        let idle = served.manager.idle_timeout;
        let begun = tokio::select! {
            biased;
            begun = poll_fn(|cx| server.poll_begun(cx)) => begun.unwrap_or(false),
            () = draining.as_mut(), if drain.phase() < Phase::Draining || requests > 0 => false,
            () = sleep(idle.unwrap_or(Duration::MAX)), if idle.is_some() => false,
        };
        if !begun {
            return;
        }
        served.renew(&worker.shared.world.load());
        let limit = served.manager.request_headers_timeout;
        let limit = limit.unwrap_or(HEAD_TIMEOUT);
        let head = match timeout(limit, poll_fn(|cx| server.poll_request(cx))).await {
            Ok(Ok(Some(head))) => head,
            Ok(Ok(None)) => return,
            // The last of a connection, boxed like its requests: idle ones are many.
            Ok(Err(error)) => return Box::pin(refuse(worker, &served, server, &error)).await,
            Err(_) => return Box::pin(stalled(worker, &served, server)).await,
        };
        requests = requests.saturating_add(1);
        // Again: the head may have taken its time.
        let in_force = served.in_force(worker);
        let worn = in_force.manager.max_requests_per_connection;
        if worn.is_some_and(|max| requests >= max) || drain.phase() >= Phase::Draining {
            server.set_close();
        }
        let incoming = Incoming {
            head: head.head,
            len: head.len,
            names: head.names,
        };
        let mut down = Downstream::Http1(&mut server);
        let request = serve_request(worker, &served.conn, &in_force, incoming, &mut down);
        let tunnel = Box::pin(request).await;
        if let Some(tunnel) = tunnel {
            return Box::pin(run_tunnel(worker, server, tunnel)).await;
        }
        if server.is_broken() {
            return;
        }
        if !server.is_reusable() {
            let linger = poll_fn(|cx| server.poll_linger(cx));
            // Over the limit is over: the client had its time.
            let _late = timeout(LINGER, linger).await;
            return;
        }
        server.done();
    }
}

/// Relays what follows a protocol switch on an HTTP/1.1 connection.
async fn run_tunnel(worker: &Arc<Worker>, server: ServerConn<BoxIo>, tunnel: Tunnel) {
    let (down, ahead) = server.into_parts();
    relay_tunnel(worker, prefixed(down, ahead), tunnel).await;
}

async fn relay_tunnel(worker: &Arc<Worker>, down: BoxIo, tunnel: Tunnel) {
    // The head is written by the connection's own task; it leaves before what follows can break.
    tokio::task::yield_now().await;
    let Tunnel { io, rest, idle, .. } = tunnel;
    let closing = worker.shared.drain.reached(Phase::Closing);
    relay(down, prefixed(io, rest), idle, closing).await;
}

fn prefixed(io: BoxIo, bytes: Bytes) -> BoxIo {
    if bytes.is_empty() {
        io
    } else {
        Box::new(Prefixed::new(io, bytes))
    }
}

/// Answers what is no request, says so in the log, and closes.
async fn refuse(
    worker: &Arc<Worker>,
    served: &Served,
    server: ServerConn<BoxIo>,
    error: &h1::Error,
) {
    let fault = error.downstream_fault();
    if fault == Fault::DownstreamReset {
        return;
    }
    let details = error.to_string();
    let mut reply = LocalReply::new(fault, &details);
    reply.status = error.status();
    local_answer(worker, served, server, &reply).await;
}

async fn stalled(worker: &Arc<Worker>, served: &Served, server: ServerConn<BoxIo>) {
    let reply = LocalReply::new(Fault::DownstreamIdle, "the head did not come in time");
    local_answer(worker, served, server, &reply).await;
}

async fn local_answer(
    worker: &Arc<Worker>,
    served: &Served,
    mut server: ServerConn<BoxIo>,
    reply: &LocalReply<'_>,
) {
    let conn = &served.conn;
    let mut record = Record::new(
        conn.listener.direction,
        conn.source,
        conn.destination,
        Instant::now(),
    );
    let caller = Caller {
        http1: true,
        ..Caller::default()
    };
    let response = reply.build(&caller);
    record.peer.clone_from(&conn.peer);
    record.fault = Some(reply.fault);
    // What could not be read belongs to no trace of its caller's.
    let telemetry = &worker.shared.telemetry;
    let tracing = served.manager.tracing.as_ref();
    let sampling = telemetry.sampling(tracing);
    record.trace = worker.with_rng(|rng| TraceContext::extract(&HeaderMap::new(), sampling, rng));
    record.collector = tracing.and_then(|tracing| tracing.collector.clone());
    reply.details.clone_into(&mut record.details);
    record.status = Some(response.status());
    let (parts, body) = response.into_parts();
    server.set_close();
    let len = BodyLen::Known(body.len() as u64);
    server.send_response(&Response::from_parts(parts, ()), len, None);
    server.send_data(body);
    let _late = timeout(LINGER, poll_fn(|cx| server.poll_linger(cx))).await;
    telemetry.request(&record);
}

/// The settings that HTTP/2 clients get; `None` for one that does not speak it after all.
async fn handshake(io: BoxIo, source: SocketAddr) -> Option<h2::server::Connection<BoxIo, Bytes>> {
    let handshake = Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .enable_connect_protocol()
        .max_header_list_size(DECODED_HEAD_BYTES)
        .max_send_buffer_size(MAX_SEND_BUFFER)
        .max_pending_accept_reset_streams(MAX_RESET_UNSEEN)
        .handshake(io);
    match timeout(HEAD_TIMEOUT, handshake).await {
        Ok(Ok(connection)) => Some(connection),
        Ok(Err(error)) => {
            tracing::debug!(%error, %source, "HTTP/2 preface");
            None
        }
        Err(_) => None,
    }
}

async fn serve_http2(worker: &Arc<Worker>, mut served: Served, io: BoxIo) {
    let Some(mut connection) = handshake(io, served.conn.source).await else {
        return;
    };
    let conn = Arc::new(Connection {
        listener: Arc::clone(&served.conn.listener),
        source: served.conn.source,
        destination: served.conn.destination,
        peer: served.conn.peer.clone(),
        server_name: served.conn.server_name.clone(),
        tls: served.conn.tls,
        cut: served.conn.cut.clone(),
    });
    let drain = worker.shared.drain.clone();
    let mut draining = pin!(drain.reached(Phase::Draining));
    let mut over = pin!(async {
        conn.cut.cancelled().await;
        sleep(LAST_WORDS).await;
    });
    let conduct = Arc::new(Conduct::default());
    let mut told = false;
    loop {
        let idle = served.manager.idle_timeout;
        let quiet = idle.is_some() && !connection.has_streams() && !told;
        let next = tokio::select! {
            next = connection.accept() => next,
            () = draining.as_mut(), if !told => {
                told = true;
                connection.graceful_shutdown();
                continue;
            }
            () = conduct.bad.notified() => {
                told = true;
                tracing::info!(source = %conn.source, "HTTP/2 client takes back what it asks for");
                connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                continue;
            }
            () = over.as_mut() => return,
            () = sleep(idle.unwrap_or(Duration::MAX)), if quiet => {
                told = true;
                connection.graceful_shutdown();
                continue;
            }
        };
        match next {
            Some(Ok((request, respond))) => {
                let in_force = served.in_force(worker);
                let worker = Arc::clone(worker);
                let conn = Arc::clone(&conn);
                let conduct = Arc::clone(&conduct);
                tokio::spawn(async move {
                    let began = Instant::now();
                    #[expect(clippy::large_futures, reason = "the task is its box")]
                    let gone = serve_stream(&worker, &conn, &in_force, request, respond).await;
                    conduct.stream_ended(gone && began.elapsed() < PREMATURE);
                });
            }
            Some(Err(error)) => {
                tracing::debug!(%error, source = %conn.source, "HTTP/2 connection ended");
                return;
            }
            None => return,
        }
    }
}

/// Serves a stream; true when its client took it back.
async fn serve_stream(
    worker: &Arc<Worker>,
    conn: &Connection,
    in_force: &InForce,
    request: Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
) -> bool {
    let (mut parts, body) = request.into_parts();
    let asks = match asked(worker, &mut parts) {
        Ok(asks) => asks,
        Err(status) => {
            let mut refusal = Response::new(());
            *refusal.status_mut() = status;
            let _gone = respond.send_response(refusal, true);
            return false;
        }
    };
    // One form inside the proxy: authority in `host`, target in origin form (H2-12).
    let authority = parts.uri.authority().map(Authority::as_str);
    if let Some(host) = authority.and_then(|a| HeaderValue::from_str(a).ok()) {
        parts.headers.insert(header::HOST, host);
    }
    if let Some(target) = parts.uri.path_and_query() {
        parts.uri = Uri::from(target.clone());
    }
    let ended = body.is_end_stream() || asks != Asks::Exchange;
    let len = parts
        .headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse().ok());
    let len = match (ended, len) {
        (true, Some(0)) => BodyLen::Known(0),
        (true, _) => BodyLen::Empty,
        (false, Some(n)) => BodyLen::Known(n),
        (false, None) => BodyLen::Chunked,
    };
    let incoming = Incoming {
        head: Request::from_parts(parts, ()),
        len,
        names: None,
    };
    let exchange = Http2Exchange::new(body, respond, asks);
    let mut down = Downstream::Http2(exchange);
    #[expect(clippy::large_futures, reason = "the stream's task is its box")]
    let tunnel = serve_request(worker, conn, in_force, incoming, &mut down).await;
    let gone = down.was_given_up();
    if let Some(tunnel) = tunnel
        && let Some(down) = down.into_tunnel()
    {
        relay_tunnel(worker, down, tunnel).await;
    }
    gone
}

/// What a stream is for. An extended CONNECT (RFC 8441 §5) gets the form that it would have had in
/// HTTP/1.1; which is known for WebSocket alone.
fn asked(worker: &Worker, parts: &mut Parts) -> Result<Asks, StatusCode> {
    if parts.method != Method::CONNECT {
        return Ok(Asks::Exchange);
    }
    let Some(protocol) = parts.extensions.remove::<h2::ext::Protocol>() else {
        return Ok(Asks::Tunnel);
    };
    if !protocol.as_str().eq_ignore_ascii_case("websocket") {
        return Err(StatusCode::NOT_IMPLEMENTED);
    }
    parts.method = Method::GET;
    let headers = &mut parts.headers;
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    let key = worker.with_rng(websocket_key);
    headers.insert(header::SEC_WEBSOCKET_KEY, key);
    Ok(Asks::Switch)
}

/// Sixteen random bytes in base64 (RFC 6455 §4.1).
fn websocket_key(rng: &mut impl rand::Rng) -> HeaderValue {
    let key = BASE64_STANDARD.encode(rng.random::<[u8; 16]>());
    HeaderValue::try_from(key).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::{serve, serve_http1, serve_http2, serve_stream};
    use crate::sizes::{check, of_3, of_5};

    #[test]
    fn connections_and_streams_are_small() {
        check(&[
            ("HTTP connection", of_3(serve), 3200),
            ("HTTP/1 connection", of_3(serve_http1), 2304),
            ("HTTP/2 connection", of_3(serve_http2), 2560),
            ("HTTP/2 stream", of_5(serve_stream), 6400),
        ]);
    }
}

//! The application that tests and the demo put behind sidecars, and the load that calls it.
//!
//!     outrigger-testapp http  --listen ADDR --name NAME [--calls URL]
//!                                                    (HTTP/1.1, HTTP/2; answers gRPC health checks too)
//!     outrigger-testapp load  --url URL --rate N --seconds N [--method M] [--connections N]
//!                             [--fresh 1]            (each request on a connection of its own)
//!                             [--skip-late 1]        (what cannot be sent within a second is not sent)
//!                                                    (SIGTERM ends it early)
//!     outrigger-testapp echo  --listen ADDR          (TCP: sends back what it gets, ends when it ends)
//!     outrigger-testapp greet --listen ADDR          (TCP: greets first, then echoes)
//!     outrigger-testapp trap  --listen ADDR,ADDR,... (TCP and UDP: says where one was going)
//!     outrigger-testapp dial  --to ADDR [--mark N] [--udp 1] [--send TEXT]
//!                                                    (prints what it is told, within 3 s)
//!     outrigger-testapp spans --listen ADDR          (OTLP over gRPC: prints each span as a line of JSON)

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU16, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::{Request, Response, StatusCode, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    time::Instant,
};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

struct Args(HashMap<String, String>);

impl Args {
    fn get(&self, name: &str) -> Result<&str> {
        let found = self.0.get(name).map(String::as_str);
        found.ok_or_else(|| format!("--{name} is missing").into())
    }

    fn number(&self, name: &str, default: u64) -> Result<u64> {
        self.0
            .get(name)
            .map_or(Ok(default), |text| text.parse().map_err(Into::into))
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let command = words.next().unwrap_or_default();
    let mut args = HashMap::new();
    while let (Some(key), Some(value)) = (words.next(), words.next()) {
        args.insert(key.trim_start_matches('-').to_owned(), value);
    }
    let args = Args(args);
    match command.as_str() {
        "http" => http(&args).await,
        "load" => load(&args).await,
        "echo" => tcp(&args, b"").await,
        "greet" => tcp(&args, b"220 ready\r\n").await,
        "trap" => trap(&args).await,
        "dial" => tokio::time::timeout(Duration::from_secs(3), dial(&args)).await?,
        "spans" => spans(&args).await,
        other => Err(format!("unknown command {other:?}").into()),
    }
}

#[derive(Default)]
struct App {
    name: String,
    calls: Option<String>,
    /// Status that every request gets while it is not 0.
    fail: AtomicU16,
    delay_ms: AtomicU64,
    served: AtomicU64,
    /// Times each request id was seen.
    counts: Mutex<BTreeMap<String, u64>>,
}

async fn http(args: &Args) -> Result<()> {
    let listener = TcpListener::bind(args.get("listen")?).await?;
    let app = Arc::new(App {
        name: args.get("name")?.to_owned(),
        calls: args.0.get("calls").cloned(),
        ..App::default()
    });
    loop {
        let (stream, peer) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let app = Arc::clone(&app);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let app = Arc::clone(&app);
                async move {
                    if request.uri().path() == HEALTH_CHECK {
                        return Ok(health(&app));
                    }
                    let answer = answer(app, request, peer).await;
                    answer.map(|answer| answer.map(http_body_util::BodyExt::boxed))
                }
            });
            let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            let served = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
            drop(served.await);
        });
    }
}

/// gRPC's health protocol, as the kubelet speaks it.
const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";

/// Serving, unless the application was told to fail.
fn health(app: &App) -> Response<BoxBody<Bytes, Infallible>> {
    let serving = app.fail.load(Ordering::Relaxed) == 0;
    // Not compressed, two bytes long, field 1 of HealthCheckResponse: SERVING or NOT_SERVING.
    let message = [0, 0, 0, 0, 2, 8, if serving { 1 } else { 2 }];
    let mut end = HeaderMap::new();
    end.insert("grpc-status", HeaderValue::from_static("0"));
    let body = Full::new(Bytes::copy_from_slice(&message));
    let body = body.with_trailers(std::future::ready(Some(Ok(end))));
    let mut response = Response::new(body.boxed());
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert("content-type", grpc);
    response
}

fn query(request: &Request<Incoming>) -> HashMap<String, String> {
    let query = request.uri().query().unwrap_or_default();
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// What tests ask of the application itself: to fail, to be slow, to say what it has seen.
fn control(
    app: &App,
    path: &str,
    query: &HashMap<String, String>,
) -> Option<Response<Full<Bytes>>> {
    let number = |key: &str| query.get(key).and_then(|v| v.parse::<u64>().ok());
    let text = match path {
        "/control/fail" => {
            let status = number("status").and_then(|n| u16::try_from(n).ok());
            app.fail.store(status.unwrap_or(0), Ordering::Relaxed);
            let delay = number("delay").unwrap_or(0);
            app.delay_ms.store(delay, Ordering::Relaxed);
            String::new()
        }
        "/control/counts" => {
            let counts = app.counts.lock().unwrap_or_else(PoisonError::into_inner);
            let most = counts.values().max().copied().unwrap_or(0);
            let served = app.served.load(Ordering::Relaxed);
            serde_json::json!({ "ids": counts.len(), "most": most, "served": served }).to_string()
        }
        _ => return None,
    };
    Some(Response::new(Full::new(Bytes::from(text))))
}

async fn answer(
    app: Arc<App>,
    request: Request<Incoming>,
    peer: SocketAddr,
) -> std::result::Result<Response<Full<Bytes>>, Infallible> {
    let query = query(&request);
    let path = request.uri().path().to_owned();
    if let Some(answer) = control(&app, &path, &query) {
        return Ok(answer);
    }
    let reply = |status: StatusCode, body: String| {
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        Ok(response)
    };
    let number = |key: &str| query.get(key).and_then(|v| v.parse::<u64>().ok());
    app.served.fetch_add(1, Ordering::Relaxed);
    let headers: BTreeMap<String, String> = request
        .headers()
        .iter()
        .map(|(n, v)| {
            (
                n.to_string(),
                String::from_utf8_lossy(v.as_bytes()).into_owned(),
            )
        })
        .collect();
    let method = request.method().to_string();
    let body = request
        .into_body()
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes);
    let body = body.unwrap_or_default();
    if let Some(id) = headers.get("x-request-id") {
        let mut counts = app.counts.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(id.clone()).or_default() += 1;
    }
    let delay = number("delay").unwrap_or(0) + app.delay_ms.load(Ordering::Relaxed);
    if delay > 0 {
        tokio::time::sleep(Duration::from_millis(delay)).await;
    }
    let fail = app.fail.load(Ordering::Relaxed);
    let status = number("status").unwrap_or(if fail == 0 { 200 } else { fail.into() });
    let status = u16::try_from(status)
        .ok()
        .and_then(|s| StatusCode::from_u16(s).ok());
    let status = status.unwrap_or(StatusCode::BAD_REQUEST);
    if let Some(size) = number("size") {
        let size = usize::try_from(size.min(2_000_000_000)).unwrap_or(0);
        return reply(status, "x".repeat(size));
    }
    let below = match &app.calls {
        Some(url) if status.is_success() => Some(call(url, &headers).await),
        _ => None,
    };
    let text = serde_json::json!({
        "instance": app.name, "method": method, "path": path, "headers": headers,
        "body": body.len(), "peer": peer.to_string(), "below": below,
    });
    let status = match &below {
        Some((code, _)) if *code != 200 => StatusCode::BAD_GATEWAY,
        _ => status,
    };
    reply(status, text.to_string())
}

/// Headers that carry a trace; an application passes them on.
const TRACE: [&str; 9] = [
    "traceparent",
    "tracestate",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "x-request-id",
];

async fn call(url: &str, headers: &BTreeMap<String, String>) -> (u16, String) {
    let mut request = Request::get(url);
    for name in TRACE {
        if let Some(value) = headers.get(name) {
            request = request.header(name, value);
        }
    }
    match send(url, request).await {
        Ok((status, body)) => (status, String::from_utf8_lossy(&body).into_owned()),
        Err(error) => (0, error.to_string()),
    }
}

async fn send(url: &str, request: http::request::Builder) -> Result<(u16, Bytes)> {
    let uri: hyper::Uri = url.parse()?;
    let authority = uri.authority().ok_or("no authority")?;
    let port = authority.port_u16().unwrap_or(80);
    let stream = TcpStream::connect((authority.host(), port)).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let target = uri.path_and_query().map_or("/", |p| p.as_str());
    let request = request
        .uri(target)
        .header("host", authority.as_str())
        .body(Full::new(Bytes::new()))?;
    let response = sender.send_request(request).await?;
    let status = response.status().as_u16();
    Ok((status, response.into_body().collect().await?.to_bytes()))
}

#[derive(Default)]
struct Tally {
    statuses: BTreeMap<String, u64>,
    causes: BTreeMap<String, u64>,
    micros: Vec<u64>,
}

/// Sends at a fixed rate, whatever the answers do, and counts from the scheduled moment.
async fn load(args: &Args) -> Result<()> {
    let url: hyper::Uri = args.get("url")?.parse()?;
    let rate = args.number("rate", 100)?.max(1);
    let seconds = args.number("seconds", 5)?.min(600);
    let connections = args.number("connections", 16)?.clamp(1, 1024);
    let method = args
        .0
        .get("method")
        .map_or("GET", String::as_str)
        .to_owned();
    let fresh = args.number("fresh", 0)? == 1;
    let skip = args.number("skip-late", 0)? == 1;
    let tally = Arc::new(Mutex::new(Tally::default()));
    // One second's worth.
    let waiting = if skip { rate } else { 100_000 };
    let waiting = usize::try_from(waiting)?;
    let (queue, jobs) = tokio::sync::mpsc::channel::<(Instant, u64)>(waiting);
    let jobs = Arc::new(tokio::sync::Mutex::new(jobs));
    let workers: Vec<_> = (0..connections)
        .map(|_| {
            tokio::spawn(sender(
                (url.clone(), method.clone(), fresh),
                Arc::clone(&jobs),
                Arc::clone(&tally),
            ))
        })
        .collect();
    let begin = Instant::now();
    let run = u64::from(std::process::id());
    let (mut sent, mut skipped): (u64, u64) = (0, 0);
    let mut told = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    for n in 0..rate * seconds {
        let due = begin + Duration::from_nanos(1_000_000_000 / rate * n);
        tokio::select! {
            () = tokio::time::sleep_until(due) => {}
            _ = told.recv() => break,
        }
        let job = (due, run << 32 | n);
        if !skip {
            queue.send(job).await?;
        } else if queue.try_send(job).is_err() {
            skipped += 1;
            continue;
        }
        sent += 1;
    }
    drop(queue);
    for worker in workers {
        worker.await?;
    }
    let tally = std::mem::take(&mut *tally.lock().unwrap_or_else(PoisonError::into_inner));
    println!("{}", summary(tally, sent, skipped));
    Ok(())
}

/// What the load prints at its end.
fn summary(mut tally: Tally, sent: u64, skipped: u64) -> serde_json::Value {
    tally.micros.sort_unstable();
    let at = |share: f64| {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index"
        )]
        let n = (tally.micros.len() as f64 * share) as usize;
        tally
            .micros
            .get(n.min(tally.micros.len().saturating_sub(1)))
            .copied()
            .unwrap_or(0)
    };
    let failed: u64 = tally
        .statuses
        .iter()
        .filter(|(status, _)| !status.starts_with('2'))
        .map(|(_, n)| n)
        .sum();
    serde_json::json!({
        "sent": sent, "skipped": skipped, "failed": failed, "statuses": tally.statuses,
        "causes": tally.causes, "p50_us": at(0.5), "p99_us": at(0.99), "max_us": at(1.0),
    })
}

type Jobs = Arc<tokio::sync::Mutex<tokio::sync::mpsc::Receiver<(Instant, u64)>>>;

async fn sender(
    (url, method, fresh): (hyper::Uri, String, bool),
    jobs: Jobs,
    tally: Arc<Mutex<Tally>>,
) {
    let mut kept = None;
    loop {
        let job = jobs.lock().await.recv().await;
        let Some((due, id)) = job else {
            return;
        };
        let outcome = one(&url, &method, id, &mut kept).await;
        if fresh {
            kept = None;
        }
        let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
        let (key, cause) = match outcome {
            Ok((status, cause)) => (status.to_string(), cause),
            Err(error) => ("error".to_owned(), Some(error.to_string())),
        };
        *tally.statuses.entry(key).or_default() += 1;
        if let Some(cause) = cause {
            *tally.causes.entry(cause).or_default() += 1;
        }
        let micros = u64::try_from(due.elapsed().as_micros()).unwrap_or(u64::MAX);
        tally.micros.push(micros);
    }
}

type Sender = hyper::client::conn::http1::SendRequest<Full<Bytes>>;

async fn one(
    url: &hyper::Uri,
    method: &str,
    id: u64,
    kept: &mut Option<Sender>,
) -> Result<(u16, Option<String>)> {
    let authority = url.authority().ok_or("no authority")?;
    let mut sender = match kept.take() {
        Some(sender) if sender.is_ready() => sender,
        _ => {
            let port = authority.port_u16().unwrap_or(80);
            let stream = TcpStream::connect((authority.host(), port)).await?;
            stream.set_nodelay(true)?;
            let (sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            sender
        }
    };
    let body = if method == "POST" { "payload" } else { "" };
    let request = Request::builder()
        .method(method)
        .uri(url.path_and_query().map_or("/", |p| p.as_str()))
        .header("host", authority.as_str())
        .header("x-request-id", id.to_string())
        .body(Full::new(Bytes::from(body)))?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let cause = response
        .headers()
        .get("proxy-status")
        .map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
    response.into_body().collect().await?;
    // Ready again once the connection has seen the end of the response.
    if sender.ready().await.is_ok() {
        *kept = Some(sender);
    }
    Ok((status.as_u16(), cause.filter(|_| !status.is_success())))
}

async fn spans(args: &Args) -> Result<()> {
    let listener = TcpListener::bind(args.get("listen")?).await?;
    outrigger_tests::otlp::serve(listener, |span| println!("{}", span.to_json())).await;
    Ok(())
}

async fn tcp(args: &Args, greeting: &'static [u8]) -> Result<()> {
    let listener = TcpListener::bind(args.get("listen")?).await?;
    loop {
        let (mut stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            let mut buffer = vec![0; 64 * 1024];
            if stream.write_all(greeting).await.is_err() {
                return;
            }
            loop {
                match stream.read(&mut buffer).await {
                    Ok(0) | Err(_) => break,
                    Ok(n) => {
                        let Some(data) = buffer.get(..n) else { break };
                        if stream.write_all(data).await.is_err() {
                            return;
                        }
                    }
                }
            }
            drop(stream.shutdown().await);
        });
    }
}

/// Answers every connection with `PORT ORIGINAL`: the port that it came to, and where the kernel
/// says it was going before it was redirected (`-` if it was not). Every datagram with `udp PORT`.
async fn trap(args: &Args) -> Result<()> {
    let mut tasks = tokio::task::JoinSet::new();
    for listen in args.get("listen")?.split(',') {
        let listen: SocketAddr = listen.parse()?;
        let listener = TcpListener::bind(listen).await?;
        let datagrams = UdpSocket::bind(listen).await?;
        tasks.spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await?;
                let original = outrigger_proxy::net::original_destination(&stream)?;
                let original = original.map_or_else(|| "-".to_owned(), |to| to.to_string());
                let answer = format!("{} {original}\n", listen.port());
                drop(stream.write_all(answer.as_bytes()).await);
            }
        });
        tasks.spawn(async move {
            let answer = format!("udp {}\n", listen.port());
            loop {
                let (_, from) = datagrams.recv_from(&mut [0; 1]).await?;
                datagrams.send_to(answer.as_bytes(), from).await?;
            }
        });
    }
    println!("ready");
    let ended: Option<std::result::Result<Result<()>, _>> = tasks.join_next().await;
    ended.ok_or("nothing to listen on")??
}

async fn dial(args: &Args) -> Result<()> {
    let to: SocketAddr = args.get("to")?.parse()?;
    let mut told = Vec::new();
    if args.0.contains_key("udp") {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).await?;
        socket.send_to(b"?", to).await?;
        told.resize(100, 0);
        let (len, _) = socket.recv_from(&mut told).await?;
        told.truncate(len);
    } else {
        let mark = args.number("mark", 0)?;
        let dialer = outrigger_proxy::net::Dialer {
            mark: u32::try_from(mark).ok().filter(|mark| *mark > 0),
        };
        let mut stream = dialer.connect(to, Duration::from_secs(2)).await?;
        if let Some(text) = args.0.get("send") {
            stream.write_all(text.as_bytes()).await?;
        }
        stream.read_to_end(&mut told).await?;
    }
    print!("{}", String::from_utf8_lossy(&told));
    Ok(())
}

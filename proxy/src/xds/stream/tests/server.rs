//! A scripted ADS server in this process: the test decides what every stream says, and what happens
//! to every connection.

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{Stream, future::BoxFuture, stream};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use outrigger_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    aggregated_discovery_service_server::{
        AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf},
    sync::mpsc,
};
use tonic::{Request, Response, Status, Streaming};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// One stream that a client opened.
#[derive(Debug)]
pub(super) struct Session<Q, A> {
    pub(super) requests: Streaming<Q>,
    pub(super) answers: mpsc::Sender<Result<A, Status>>,
}

pub(super) type DeltaSession = Session<DeltaDiscoveryRequest, DeltaDiscoveryResponse>;
pub(super) type SotwSession = Session<DiscoveryRequest, DiscoveryResponse>;

impl<Q, A> Session<Q, A> {
    /// The next request, within a generous time.
    pub(super) async fn request(&mut self) -> Q {
        let next = tokio::time::timeout(Duration::from_secs(120), self.requests.message());
        let next = next.await.expect("a request in time");
        next.expect("no error").expect("not the end")
    }

    pub(super) async fn answer(&self, answer: A) {
        self.answers
            .send(Ok(answer))
            .await
            .expect("the client listens");
    }
}

#[derive(Clone, Debug)]
struct Ads {
    delta: mpsc::Sender<DeltaSession>,
    sotw: mpsc::Sender<SotwSession>,
}

fn session<Q, A: Send + 'static>(requests: Streaming<Q>) -> (Session<Q, A>, Answers<A>) {
    let (answers, mut given) = mpsc::channel(16);
    let out = stream::poll_fn(move |cx| given.poll_recv(cx));
    (Session { requests, answers }, Box::pin(out))
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type StreamAggregatedResourcesStream = Answers<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Answers<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let (session, answers) = session(request.into_inner());
        self.sotw
            .send(session)
            .await
            .map_err(|_| Status::aborted("the test is over"))?;
        Ok(Response::new(answers))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (session, answers) = session(request.into_inner());
        self.delta
            .send(session)
            .await
            .map_err(|_| Status::aborted("the test is over"))?;
        Ok(Response::new(answers))
    }
}

/// What becomes of a connection.
#[derive(Clone, Debug)]
pub(super) enum Door {
    Open,
    Refuse,
    /// Accepts, and neither reads nor writes; also what an open one turns into by
    /// [`Connector::freeze`].
    Frozen,
}

/// Makes connections to the scripted server.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    ads: Ads,
    pub(super) doors: Arc<std::sync::Mutex<Vec<Door>>>,
    pub(super) attempts: Arc<AtomicUsize>,
    frozen: Arc<AtomicBool>,
}

/// The server: streams come out here.
pub(super) struct Server {
    pub(super) delta: mpsc::Receiver<DeltaSession>,
    pub(super) sotw: mpsc::Receiver<SotwSession>,
}

/// A server and the way to it. The first connections meet `doors`, later ones the last of them.
pub(super) fn server(doors: Vec<Door>) -> (Connector, Server) {
    let (delta, delta_out) = mpsc::channel(16);
    let (sotw, sotw_out) = mpsc::channel(16);
    let connector = Connector {
        ads: Ads { delta, sotw },
        doors: Arc::new(std::sync::Mutex::new(doors)),
        attempts: Arc::default(),
        frozen: Arc::default(),
    };
    let server = Server {
        delta: delta_out,
        sotw: sotw_out,
    };
    (connector, server)
}

impl Connector {
    /// Stops all traffic of connections made so far, as SIGSTOP does; later ones work.
    pub(super) fn freeze(&mut self) {
        self.frozen.store(true, Ordering::Relaxed);
    }

    fn open(&self) -> io::Result<TokioIo<Freezable>> {
        let n = self.attempts.fetch_add(1, Ordering::Relaxed);
        let door = {
            let doors = self.doors.lock().expect("not poisoned");
            doors
                .get(n)
                .or_else(|| doors.last())
                .cloned()
                .unwrap_or(Door::Open)
        };
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        // Only what is open now can freeze later.
        let frozen = match door {
            Door::Refuse => return Err(io::ErrorKind::ConnectionRefused.into()),
            Door::Frozen => Arc::new(AtomicBool::new(true)),
            Door::Open if self.frozen.load(Ordering::Relaxed) => Arc::default(),
            Door::Open => Arc::clone(&self.frozen),
        };
        let ads = AggregatedDiscoveryServiceServer::new(self.ads.clone());
        let ads = ads.max_decoding_message_size(64 << 20);
        tokio::spawn(async move {
            let service = service_fn(move |request: hyper::Request<Incoming>| {
                let mut ads = ads.clone();
                async move {
                    let answer = tower_service::Service::call(&mut ads, request).await;
                    Ok::<_, Infallible>(answer.expect("infallible"))
                }
            });
            let io = TokioIo::new(theirs);
            let mut http = http2::Builder::new(TokioExecutor::new());
            let served = http
                .timer(TokioTimer::new())
                .serve_connection(io, service)
                .await;
            drop(served);
        });
        let io = Freezable { io: ours, frozen };
        Ok(TokioIo::new(io))
    }
}

impl tower_service::Service<http::Uri> for Connector {
    type Response = TokioIo<Freezable>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<TokioIo<Freezable>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Self::Future {
        let opened = self.open();
        Box::pin(async move { opened })
    }
}

/// A pipe that can fall silent without closing.
#[derive(Debug)]
pub(super) struct Freezable {
    io: DuplexStream,
    frozen: Arc<AtomicBool>,
}

impl Freezable {
    fn silent(&self) -> bool {
        self.frozen.load(Ordering::Relaxed)
    }
}

impl AsyncRead for Freezable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.silent() {
            return Poll::Pending;
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Freezable {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.silent() {
            // The kernel's buffer takes it.
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.silent() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

//! Serves gRPC on a port, with or without TLS.

use std::{collections::BTreeMap, convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Status, body::Body};
use tower_service::Service;

use crate::{
    bearer::Bearer,
    tls::{self, Acceptor, Peer},
};

/// Connections at once; one control plane serves a few thousand proxies (design, numbers).
const MAX_CONNECTIONS: usize = 20_000;
/// Handshakes at once: a thousand proxies that come back together must not hold every core (XD-05).
const MAX_HANDSHAKES: usize = 64;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A proxy that went away without a word is noticed after this and [`PING_TIMEOUT`].
const PING_EVERY: Duration = Duration::from_secs(15);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// A proxy has two: configuration and certificates.
const MAX_STREAMS: u32 = 128;
/// What a stopping server waits for streams that do not end by themselves.
const DRAIN: Duration = Duration::from_secs(2);
/// After a failed accept (no file descriptors), so as not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

type Handler = dyn Fn(Request<Incoming>) -> BoxFuture<'static, Response<Body>> + Send + Sync;

/// gRPC services by name.
#[derive(Clone, Default)]
pub struct Routes {
    handlers: BTreeMap<&'static str, Arc<Handler>>,
    /// What callers have to show, except for those of `open`.
    bearer: Option<Bearer>,
    open: Option<&'static str>,
}

impl std::fmt::Debug for Routes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.handlers.keys()).finish()
    }
}

impl Routes {
    /// With `service` under its full name.
    #[must_use]
    pub fn with<S>(mut self, name: &'static str, service: S) -> Self
    where
        S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible>
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        let handler = move |request| -> BoxFuture<'static, Response<Body>> {
            // Services that tonic generates are always ready.
            let answer = service.clone().call(request);
            Box::pin(async move {
                match answer.await {
                    Ok(response) => response,
                    Err(never) => match never {},
                }
            })
        };
        self.handlers.insert(name, Arc::new(handler));
        self
    }

    /// Only for callers that show `bearer`, if there is one; but `open` is for everybody.
    #[must_use]
    pub fn guarded(mut self, bearer: Option<Bearer>, open: &'static str) -> Self {
        self.bearer = bearer;
        self.open = Some(open);
        self
    }

    fn call(&self, request: Request<Incoming>) -> BoxFuture<'static, Response<Body>> {
        let name = request.uri().path().split('/').nth(1).unwrap_or_default();
        if let Some(bearer) = &self.bearer
            && self.open != Some(name)
            && let Err(status) = bearer.check(request.headers())
        {
            return Box::pin(std::future::ready(status.into_http()));
        }
        match self.handlers.get(name) {
            Some(handler) => handler(request),
            None => {
                let status = Status::unimplemented(format!("no service {name:?} here"));
                Box::pin(std::future::ready(status.into_http()))
            }
        }
    }
}

/// One port.
pub struct Port {
    /// Where connections come in.
    pub listener: TcpListener,
    /// `None` is plaintext.
    pub tls: Option<Arc<Acceptor>>,
    /// What is served.
    pub routes: Routes,
}

impl std::fmt::Debug for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Port")
            .field("listener", &self.listener)
            .field("tls", &self.tls.is_some())
            .field("routes", &self.routes)
            .finish()
    }
}

impl Port {
    /// Serves until `stop`, then lets streams end for a short while.
    pub async fn serve(self, stop: CancellationToken) {
        let Self {
            listener,
            tls,
            routes,
        } = self;
        let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
        let tasks = TaskTracker::new();
        accept_each(
            &listener,
            MAX_CONNECTIONS,
            &stop,
            &tasks,
            |stream, address| {
                let one = Accepted { stream, address };
                let tls = tls.as_ref().map(|tls| tls.now());
                one.serve(tls, routes.clone(), Arc::clone(&handshakes), stop.clone())
            },
        )
        .await;
        tasks.close();
        if timeout(DRAIN * 2, tasks.wait()).await.is_err() {
            tracing::warn!(left = tasks.len(), "connections cut at stop");
        }
    }
}

/// Accepts connections until `stop`, and gives each, of `most` at a time, a task of `tasks`.
pub(crate) async fn accept_each<F>(
    listener: &TcpListener,
    most: usize,
    stop: &CancellationToken,
    tasks: &TaskTracker,
    serve: impl Fn(TcpStream, SocketAddr) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(most));
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = stop.cancelled() => return,
            next = next => next,
        };
        match accepted {
            Ok((stream, address)) => {
                let served = Box::pin(serve(stream, address));
                tasks.spawn(async move {
                    let _place = place;
                    served.await;
                });
            }
            Err(error) => {
                let port = listener.local_addr().map(|own| own.port()).unwrap_or(0);
                tracing::warn!(%error, port, "cannot accept");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

struct Accepted {
    stream: TcpStream,
    address: SocketAddr,
}

impl Accepted {
    async fn serve(
        self,
        tls: Option<TlsAcceptor>,
        routes: Routes,
        handshakes: Arc<Semaphore>,
        stop: CancellationToken,
    ) {
        let address = self.address;
        if let Err(error) = self.stream.set_nodelay(true) {
            tracing::debug!(%error, %address, "no TCP_NODELAY");
        }
        let Some(tls) = tls else {
            let peer = Peer {
                address,
                identity: None,
                certificate_until: None,
            };
            return Box::pin(http(self.stream, peer, routes, stop)).await;
        };
        let handshake = async {
            let _turn = handshakes.acquire().await;
            tls.accept(self.stream).await
        };
        let stream = match timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::info!(%address, %error, "TLS handshake failed"),
            Err(_) => return tracing::info!(%address, "TLS handshake took too long"),
        };
        match tls::peer_of(&stream, address) {
            Ok(peer) => Box::pin(http(stream, peer, routes, stop)).await,
            Err(why) => tracing::info!(%address, why, "client refused"),
        }
    }
}

async fn http<I>(io: I, peer: Peer, routes: Routes, stop: CancellationToken)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let address = peer.address;
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        let answer = routes.call(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_concurrent_streams(MAX_STREAMS)
        .serve_connection(TokioIo::new(io), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            match timeout(DRAIN, connection).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%address, %error, "connection ended");
    }
}

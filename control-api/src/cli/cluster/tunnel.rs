//! A connection to a port of a pod, through the API server: what `kubectl port-forward` makes,
//! without a port on this machine.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use ::kube::{Api, Client, Error};
use anyhow::Context as _;
use futures_util::{FutureExt as _, future::BoxFuture};
use http::{Method, Request, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf},
    time::timeout,
};

use crate::kube::Name;

/// Where a proxy answers operators, on its pod's loopback.
const ADMIN_PORT: u16 = 15000;
/// For the API server to make the way to a pod.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// For a whole answer of a proxy, which may be a large dump.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Configurations of some megabytes are met; this is a bound, not a size.
const MAX_ANSWER: usize = 256 << 20;

/// Bytes to and from the port.
pub(super) struct Tunnel {
    stream: DuplexStream,
    /// What the kubelet says when it cannot reach the port; nothing once it was said.
    broken: Option<BoxFuture<'static, Option<String>>>,
    place: String,
}

impl Tunnel {
    /// To `port` of a pod, on its loopback.
    pub(super) async fn open(client: &Client, pod: &Name, port: u16) -> io::Result<Self> {
        let Name { namespace, name } = pod;
        let place = format!("port {port} of pod {namespace}/{name}");
        let fail = |why: String| io::Error::other(format!("{place}: {why}"));
        let api = Api::<Pod>::namespaced(client.clone(), namespace);
        let made = timeout(OPEN_TIMEOUT, api.portforward(name, &[port])).await;
        let made = made.map_err(|_| fail("the API server made no way to it in time".into()))?;
        let mut forwarder = made.map_err(|error| fail(refusal(&error)))?;
        let parts = forwarder
            .take_stream(port)
            .zip(forwarder.take_error(port))
            .ok_or_else(|| fail("the port-forward has no stream".into()))?;
        Ok(Self {
            stream: parts.0,
            broken: Some(parts.1.boxed()),
            place,
        })
    }
}

/// Why there is no way to a pod.
fn refusal(error: &Error) -> String {
    match error {
        Error::Api(status) if status.code == 403 => {
            format!("no right to make a port-forward: {}", status.message)
        }
        Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

impl Tunnel {
    /// What is wrong with the way, if it was said.
    fn reason(&mut self) -> Option<io::Error> {
        let said = self.broken.as_mut()?.now_or_never()?;
        self.broken = None;
        let why = format!("{}: {}", self.place, said?.trim());
        Some(io::Error::other(why))
    }

    /// A failure, with its reason if that was said.
    fn explained<T>(&mut self, done: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match done {
            Poll::Ready(Err(error)) => Poll::Ready(Err(self.reason().unwrap_or(error))),
            other => other,
        }
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        let ended = matches!(read, Poll::Ready(Ok(()))) && buffer.filled().len() == before;
        // What is wrong is said before the end is.
        if ended
            && buffer.remaining() > 0
            && let Some(error) = self.reason()
        {
            return Poll::Ready(Err(error));
        }
        self.explained(read)
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.explained(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.explained(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(context);
        self.explained(shut)
    }
}

/// Makes the connections of a gRPC channel.
#[derive(Clone)]
pub(super) struct Connector {
    pub(super) client: Client,
    pub(super) pod: Name,
    pub(super) port: u16,
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<Tunnel>;
    type Error = io::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let tunnel = Tunnel::open(&this.client, &this.pod, this.port).await?;
            Ok(TokioIo::new(tunnel))
        })
    }
}

/// Asks the proxy of a pod for a page.
pub(super) async fn ask(
    client: &Client,
    pod: &Name,
    method: Method,
    page: &str,
) -> anyhow::Result<String> {
    let asked = Box::pin(exchange(client, pod, method, page));
    let Name { namespace, name } = pod;
    match timeout(ANSWER_TIMEOUT, asked).await {
        Ok(answer) => answer.with_context(|| format!("the proxy of pod {namespace}/{name}")),
        Err(_) => anyhow::bail!("the proxy of pod {namespace}/{name} does not answer in time"),
    }
}

async fn exchange(
    client: &Client,
    pod: &Name,
    method: Method,
    page: &str,
) -> anyhow::Result<String> {
    let tunnel = Tunnel::open(client, pod, ADMIN_PORT).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(tunnel)).await?;
    let request = Request::builder()
        .method(method)
        .uri(page)
        .header(header::HOST, "localhost")
        .body(Empty::<Bytes>::new())?;
    // Takes the sender along: without one the connection ends, which would else be kept for more.
    let answer = async move {
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| innermost(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await;
        let body = body.map_err(|error| anyhow::anyhow!("its answer was cut off: {error}"))?;
        let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
        if status.is_success() {
            Ok(text)
        } else {
            anyhow::bail!("{}", text.trim())
        }
    };
    // The connection ends with an answer of its own only if it breaks, and then so does the other.
    let (answer, _) = tokio::join!(answer, connection);
    answer
}

/// What hyper has to say, without its own words around it.
fn innermost(error: &hyper::Error) -> anyhow::Error {
    let mut reason: &dyn std::error::Error = error;
    while let Some(source) = reason.source() {
        reason = source;
    }
    anyhow::anyhow!("{reason}")
}

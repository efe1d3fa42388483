//! HTTP/2 and gRPC clients and endpoints over the `h2` crate.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use h2::{
    RecvStream, SendStream,
    client::{ResponseFuture, SendRequest},
    server::SendResponse,
};
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};

use super::raw;

/// No step of a test waits longer than this.
const STEP: Duration = Duration::from_secs(20);

/// What a client gets of a response.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
    /// How it ended.
    pub end: Result<(), h2::Error>,
}

impl Reply {
    /// The `grpc-status`, from the trailers or from a head without content.
    #[must_use]
    pub fn grpc(&self) -> Option<u32> {
        let block = self.trailers.as_ref().unwrap_or(&self.headers);
        block.get("grpc-status")?.to_str().ok()?.parse().ok()
    }

    /// The `grpc-message`.
    #[must_use]
    pub fn grpc_message(&self) -> &str {
        let block = self.trailers.as_ref().unwrap_or(&self.headers);
        let value = block.get("grpc-message");
        value.and_then(|v| v.to_str().ok()).unwrap_or_default()
    }
}

/// A client on a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    send: SendRequest<Bytes>,
    authority: String,
}

impl Client {
    /// Connects with windows that never hold anybody up, except where a test reads slowly.
    ///
    /// # Panics
    /// When there is no connection.
    pub async fn connect(address: SocketAddr) -> Self {
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(1 << 20)
            .initial_connection_window_size(1 << 24)
            .max_header_list_size(1 << 20);
        Self::with(address, &builder).await
    }

    /// Connects with settings of the test's own.
    ///
    /// # Panics
    /// When there is no connection.
    pub async fn with(address: SocketAddr, builder: &h2::client::Builder) -> Self {
        let stream = TcpStream::connect(address).await.expect("connected");
        stream.set_nodelay(true).expect("a socket");
        Self::over(stream, address, builder).await
    }

    /// Speaks over any stream.
    ///
    /// # Panics
    /// When the handshake fails.
    pub async fn over<I>(io: I, address: SocketAddr, builder: &h2::client::Builder) -> Self
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let shaken = builder.handshake::<_, Bytes>(io).await;
        let (send, connection) = shaken.expect("an HTTP/2 handshake");
        tokio::spawn(async move {
            // How it ends shows in what its streams get.
            let _ended = connection.await;
        });
        Self {
            send,
            authority: address.to_string(),
        }
    }

    /// A request with the connection's authority.
    #[must_use]
    pub fn request(&self, method: Method, path: &str) -> Request<()> {
        Request::builder()
            .method(method)
            .version(Version::HTTP_2)
            .uri(format!("http://{}{path}", self.authority))
            .body(())
            .expect("a request")
    }

    /// Sends a request's head.
    ///
    /// # Errors
    /// When the connection takes none.
    ///
    /// # Panics
    /// When it says nothing at all.
    pub async fn open(
        &self,
        request: Request<()>,
        end: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        let ready = timeout(STEP, self.send.clone().ready()).await;
        ready
            .expect("room for a stream")?
            .send_request(request, end)
    }

    /// One exchange, start to end.
    ///
    /// # Errors
    /// When there is no response head.
    pub async fn send(&self, request: Request<()>, body: &[u8]) -> Result<Reply, h2::Error> {
        let (response, mut stream) = self.open(request, body.is_empty()).await?;
        if !body.is_empty() {
            send_all(&mut stream, Bytes::copy_from_slice(body), true).await?;
        }
        reply(response).await
    }

    /// A GET.
    ///
    /// # Errors
    /// When there is no response head.
    pub async fn get(&self, path: &str) -> Result<Reply, h2::Error> {
        self.send(self.request(Method::GET, path), b"").await
    }

    /// The head of a gRPC call.
    #[must_use]
    pub fn call_head(&self, path: &str) -> Request<()> {
        let mut request = self.request(Method::POST, path);
        let headers = request.headers_mut();
        headers.insert(
            "content-type",
            http::HeaderValue::from_static("application/grpc"),
        );
        headers.insert("te", http::HeaderValue::from_static("trailers"));
        request
    }

    /// A gRPC call with one message.
    ///
    /// # Errors
    /// When there is no response head.
    pub async fn call(&self, path: &str) -> Result<Reply, h2::Error> {
        self.send(self.call_head(path), &message(b"hello")).await
    }
}

/// A gRPC message with its five bytes of prefix.
///
/// # Panics
/// When it is longer than gRPC can say.
#[must_use]
pub fn message(content: &[u8]) -> Vec<u8> {
    let len = u32::try_from(content.len()).expect("a short message");
    let mut framed = vec![0];
    framed.extend(len.to_be_bytes());
    framed.extend(content);
    framed
}

/// Receives a response to its end.
///
/// # Errors
/// When there is no head.
///
/// # Panics
/// When it stalls.
pub async fn reply(response: ResponseFuture) -> Result<Reply, h2::Error> {
    let head = timeout(STEP, response).await.expect("a response head")?;
    let (parts, mut stream) = head.into_parts();
    let received = timeout(STEP, receive(&mut stream)).await;
    let (body, trailers, end) = received.expect("a response that does not stall");
    Ok(Reply {
        status: parts.status,
        headers: parts.headers,
        body,
        trailers,
        end,
    })
}

/// Receives a body to its end, giving credit as it comes.
pub async fn receive(stream: &mut RecvStream) -> (Bytes, Option<HeaderMap>, Result<(), h2::Error>) {
    let mut body = BytesMut::new();
    while let Some(piece) = stream.data().await {
        match piece {
            Ok(piece) => {
                let _closed = stream.flow_control().release_capacity(piece.len());
                body.extend_from_slice(&piece);
            }
            Err(error) => return (body.freeze(), None, Err(error)),
        }
    }
    match stream.trailers().await {
        Ok(trailers) => (body.freeze(), trailers, Ok(())),
        Err(error) => (body.freeze(), None, Err(error)),
    }
}

/// Sends all of a body as credit allows.
///
/// # Errors
/// When the stream is reset.
///
/// # Panics
/// When there is no credit for long.
pub async fn send_all(
    stream: &mut SendStream<Bytes>,
    mut data: Bytes,
    end: bool,
) -> Result<(), h2::Error> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len().min(1 << 16));
        let credit = std::future::poll_fn(|cx| stream.poll_capacity(cx));
        let credit = timeout(STEP, credit).await.expect("credit");
        let Some(credit) = credit.transpose()? else {
            return Err(h2::Reason::STREAM_CLOSED.into());
        };
        let piece = data.split_to(credit.min(data.len()));
        let last = end && data.is_empty();
        stream.send_data(piece, last)?;
    }
    Ok(())
}

/// An endpoint: `serve` answers each stream. What is counted is connections.
///
/// # Panics
/// When there is no port.
pub async fn serve<F, Fut>(serve: F) -> (SocketAddr, Arc<AtomicUsize>)
where
    F: Fn(Request<RecvStream>, SendResponse<Bytes>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(1 << 20)
        .initial_connection_window_size(1 << 24)
        .max_header_list_size(1 << 20);
    serve_with(builder, serve).await
}

/// An endpoint with settings of the test's own.
///
/// # Panics
/// When there is no port.
pub async fn serve_with<F, Fut>(
    builder: h2::server::Builder,
    serve: F,
) -> (SocketAddr, Arc<AtomicUsize>)
where
    F: Fn(Request<RecvStream>, SendResponse<Bytes>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    let address = raw::serve(move |stream, _| {
        counted.fetch_add(1, Ordering::Relaxed);
        let (builder, serve) = (builder.clone(), serve.clone());
        async move {
            let Ok(mut connection) = builder.handshake(stream).await else {
                return;
            };
            while let Some(Ok((request, respond))) = connection.accept().await {
                tokio::spawn(serve(request, respond));
            }
        }
    })
    .await;
    (address, connections)
}

/// Answers with a head alone, or a head and a body.
pub fn answer(mut respond: SendResponse<Bytes>, status: u16, body: &'static [u8]) {
    let head = Response::builder().status(status).body(());
    let head = head.expect("a head");
    if let Ok(mut stream) = respond.send_response(head, body.is_empty())
        && !body.is_empty()
    {
        let _gone = stream.send_data(Bytes::from_static(body), true);
    }
}

/// The head of a gRPC response.
///
/// # Panics
/// Never.
#[must_use]
pub fn grpc_head() -> Response<()> {
    let head = Response::builder().header("content-type", "application/grpc");
    head.body(()).expect("a head")
}

/// Trailers of a gRPC response.
///
/// # Panics
/// Never.
#[must_use]
pub fn grpc_trailers(status: u32) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", status.into());
    trailers
}

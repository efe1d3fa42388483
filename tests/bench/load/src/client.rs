//! A client with a fixed number of connections, and one exchange on one of them.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    str::FromStr,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    Method, Request,
    client::conn::http1,
    header::{CONNECTION, CONTENT_TYPE, HOST, TE},
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, sync::Semaphore, task::spawn_local};

use crate::Result;

/// The host that is asked for; the configurations route it by `*`.
const HOST_NAME: &str = "server.bench";
/// What the application answers with.
const BODY_BYTES: usize = 1024;
/// A gRPC message as it goes over the wire: not compressed, 16 bytes, one string field.
const GRPC_CALL: &[u8] = b"\0\0\0\0\x10\x0a\x0eping-ping-ping";
/// Its answer: five bytes of prefix and 1024 of message.
const GRPC_BODY_BYTES: usize = 1029;
const GRPC_PATH: &str = "/bench.Echo/Ping";
const WINDOW: u32 = 1 << 20;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
    Grpc,
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "http1" => Ok(Self::Http1),
            "http2" => Ok(Self::Http2),
            "grpc" => Ok(Self::Grpc),
            other => Err(format!("--protocol {other:?}: http1, http2 or grpc")),
        }
    }
}

type Http1 = http1::SendRequest<Empty<Bytes>>;
type Http2 = h2::client::SendRequest<Bytes>;

pub(crate) struct Client {
    to: SocketAddr,
    protocol: Protocol,
    /// A new connection for each request.
    fresh: bool,
    /// Requests that may be under way at once.
    slots: Semaphore,
    /// HTTP/1.1 connections that are free.
    free: RefCell<Vec<Http1>>,
    /// HTTP/2 connections, used in turn.
    shared: Vec<Http2>,
    turn: Cell<usize>,
}

pub(crate) async fn dial(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl Client {
    /// Connects all connections, so that connecting is not measured. HTTP/1.1 ones are made when
    /// they are first needed: a proxy may have limits on silent ones.
    pub(crate) async fn new(
        to: SocketAddr,
        protocol: Protocol,
        connections: usize,
        streams: usize,
        fresh: bool,
    ) -> Result<Self> {
        let mut client = Self {
            to,
            protocol,
            fresh,
            slots: Semaphore::new(connections),
            free: RefCell::default(),
            shared: Vec::new(),
            turn: Cell::new(0),
        };
        if protocol != Protocol::Http1 {
            client.slots = Semaphore::new(connections * streams);
            for _ in 0..connections {
                client.shared.push(http2(to).await?);
            }
        }
        Ok(client)
    }

    /// One request and its whole answer, checked.
    pub(crate) async fn exchange(&self) -> Result<()> {
        let _slot = self.slots.acquire().await?;
        match self.protocol {
            Protocol::Http1 => self.over_http1().await,
            Protocol::Http2 => self.over_http2(false).await,
            Protocol::Grpc => self.over_http2(true).await,
        }
    }

    async fn over_http1(&self) -> Result<()> {
        let kept = self.free.borrow_mut().pop();
        let mut sender = match kept {
            Some(sender) if !sender.is_closed() => sender,
            _ => http1(self.to).await?,
        };
        let mut request = Request::get("/").header(HOST, HOST_NAME);
        if self.fresh {
            request = request.header(CONNECTION, "close");
        }
        sender.ready().await?;
        let response = sender.send_request(request.body(Empty::new())?).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await?.to_bytes();
        if !self.fresh {
            self.free.borrow_mut().push(sender);
        }
        check(status, body.len(), BODY_BYTES)
    }

    async fn over_http2(&self, grpc: bool) -> Result<()> {
        let turn = self.turn.get();
        self.turn.set(turn.wrapping_add(1));
        let shared = self.shared.get(turn % self.shared.len().max(1));
        let sender = shared.ok_or("no connections")?.clone();
        let mut sender = sender.ready().await?;
        let path = if grpc { GRPC_PATH } else { "/" };
        let mut request = Request::builder().uri(format!("http://{HOST_NAME}{path}"));
        if grpc {
            request = request
                .method(Method::POST)
                .header(CONTENT_TYPE, "application/grpc")
                .header(TE, "trailers");
        }
        let (response, mut stream) = sender.send_request(request.body(())?, !grpc)?;
        if grpc {
            stream.send_data(Bytes::from_static(GRPC_CALL), true)?;
        }
        let response = response.await?;
        let status = response.status().as_u16();
        if let Some(code) = response.headers().get("grpc-status") {
            let why = response.headers().get("grpc-message");
            return Err(format!("grpc-status {code:?} without a body: {why:?}").into());
        }
        let mut body = response.into_body();
        let mut length = 0;
        while let Some(data) = body.data().await {
            let data = data?;
            length += data.len();
            body.flow_control().release_capacity(data.len())?;
        }
        if !grpc {
            return check(status, length, BODY_BYTES);
        }
        let trailers = body.trailers().await?.ok_or("no trailers")?;
        if trailers.get("grpc-status").is_none_or(|code| code != "0") {
            return Err(format!("trailers {trailers:?}").into());
        }
        check(status, length, GRPC_BODY_BYTES)
    }
}

fn check(status: u16, length: usize, wanted: usize) -> Result<()> {
    if status == 200 && length == wanted {
        return Ok(());
    }
    Err(format!("status {status}, {length} bytes of body").into())
}

async fn http1(to: SocketAddr) -> Result<Http1> {
    let (sender, connection) = http1::handshake(TokioIo::new(dial(to).await?)).await?;
    spawn_local(connection);
    Ok(sender)
}

async fn http2(to: SocketAddr) -> Result<Http2> {
    let (sender, connection) = h2::client::Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW * 8)
        .handshake(dial(to).await?)
        .await?;
    spawn_local(connection);
    Ok(sender)
}

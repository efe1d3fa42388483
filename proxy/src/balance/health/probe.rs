//! One check, on one connection: HTTP/1.1, HTTP/2, gRPC (`grpc.health.v1`) or bytes over TCP.

use std::{io, net::SocketAddr};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header, uri::PathAndQuery};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Dial, Speaks, Subject, address};
use crate::{
    config::cluster::{HealthCheck, HealthCheckKind},
    net::BoxIo,
};

/// More of an answer than this is not read: its beginning says it all.
const MAX_ANSWER: usize = 16 * 1024;
/// Header fields of an answer.
const MAX_FIELDS: usize = 64;
/// Envoy's way to say "take me out": honoured for the sake of servers that do.
const LEAVING: &str = "x-envoy-immediate-health-check-fail";
const USER_AGENT: HeaderValue = HeaderValue::from_static("outrigger-health");
const SERVING: i32 = 1;

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Passed,
    /// No proper answer, which may be an accident of the way.
    Failed(String),
    /// An answer, and it says no.
    Refused(String),
    /// An answer that says "I am going away" (HC-05): status 410 where that is not expected, or
    /// the header that Envoy knows. A GOAWAY frame is none: servers send it to limit the age of
    /// connections too.
    Leaving,
}

/// `grpc.health.v1.HealthCheckResponse`; facts of a public interface.
#[derive(Clone, PartialEq, prost::Message)]
struct Served {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct Ask {
    #[prost(string, tag = "1")]
    service: String,
}

/// Makes one check. A time-out drops the connection with everything on it.
pub(super) async fn probe<D: Dial>(dial: &D, subject: &Subject, check: &HealthCheck) -> Verdict {
    let attempt = Box::pin(attempt(dial, subject, &check.kind));
    match tokio::time::timeout(check.timeout, attempt).await {
        Ok(Ok(verdict)) => verdict,
        Ok(Err(error)) => Verdict::Failed(error.to_string()),
        Err(_elapsed) => Verdict::Failed("no answer in time".to_owned()),
    }
}

async fn attempt<D: Dial>(
    dial: &D,
    subject: &Subject,
    kind: &HealthCheckKind,
) -> io::Result<Verdict> {
    let endpoint = &subject.endpoint;
    let speaks = match kind {
        HealthCheckKind::Http { http2: false, .. } => Speaks::Http1,
        HealthCheckKind::Http { http2: true, .. } | HealthCheckKind::Grpc { .. } => Speaks::Http2,
        HealthCheckKind::Tcp { .. } => Speaks::Opaque,
    };
    let at: SocketAddr = address(endpoint);
    let io = dial.dial(endpoint, at, speaks).await?;
    let scheme = if endpoint.tls.is_some() {
        "https"
    } else {
        "http"
    };
    let named = |host: &str| -> String {
        let cluster = subject.cluster.as_str();
        let host = if host.is_empty() { cluster } else { host };
        host.to_owned()
    };
    match kind {
        HealthCheckKind::Tcp { send, receive } => tcp(io, send, receive).await,
        HealthCheckKind::Grpc { service, authority } => {
            let uri = (scheme, authority_of(&named(authority), at));
            grpc(io, uri, service).await
        }
        HealthCheckKind::Http {
            host,
            path,
            method,
            expected,
            http2,
        } => {
            let path: PathAndQuery = path.parse().map_err(invalid)?;
            let (status, fields) = if *http2 {
                let uri = (scheme, authority_of(&named(host), at));
                http2_head(io, uri, method.clone(), path).await?
            } else {
                let host = HeaderValue::from_str(&named(host)).map_err(invalid)?;
                http1_head(io, &host, method, &path, &HeaderMap::new()).await?
            };
            Ok(judge(status, &fields, expected))
        }
    }
}

/// The cluster's name need not be an authority that may stand in a URI; then the address does.
fn authority_of(name: &str, at: SocketAddr) -> String {
    match name.parse::<http::uri::Authority>() {
        Ok(authority) => authority.to_string(),
        Err(_) => at.to_string(),
    }
}

fn judge(status: StatusCode, fields: &HeaderMap, expected: &[(StatusCode, u16)]) -> Verdict {
    let code = status.as_u16();
    let wanted = if expected.is_empty() {
        status == StatusCode::OK
    } else {
        let mut ranges = expected.iter();
        ranges.any(|(from, end)| (from.as_u16()..*end).contains(&code))
    };
    if fields.contains_key(LEAVING) {
        Verdict::Leaving
    } else if wanted {
        Verdict::Passed
    } else if status == StatusCode::GONE {
        Verdict::Leaving
    } else {
        Verdict::Refused(format!("status {code}"))
    }
}

/// Sends what is to be sent and waits for the expected parts, which have to come in their order
/// but may have anything between them (Envoy).
async fn tcp(mut io: BoxIo, send: &[u8], receive: &[Vec<u8>]) -> io::Result<Verdict> {
    if !send.is_empty() {
        io.write_all(send).await?;
        io.flush().await?;
    }
    let mut got = BytesMut::new();
    while !contains_in_order(&got, receive) {
        read_more(&mut io, &mut got).await?;
    }
    Ok(Verdict::Passed)
}

fn contains_in_order(mut got: &[u8], parts: &[Vec<u8>]) -> bool {
    for part in parts.iter().filter(|part| !part.is_empty()) {
        let found = got.windows(part.len()).position(|window| window == part);
        let Some(rest) = found.and_then(|at| got.get(at + part.len()..)) else {
            return false;
        };
        got = rest;
    }
    true
}

/// At least one more byte.
async fn read_more(io: &mut BoxIo, got: &mut BytesMut) -> io::Result<()> {
    if got.len() >= MAX_ANSWER {
        return Err(invalid("the answer is too long"));
    }
    if io.read_buf(got).await? == 0 {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "closed without the expected answer",
        ));
    }
    Ok(())
}

/// Head of the answer to a request with these fields beside those that every request has.
pub(crate) async fn http1_head(
    mut io: BoxIo,
    host: &HeaderValue,
    method: &Method,
    path: &PathAndQuery,
    more: &HeaderMap,
) -> io::Result<(StatusCode, HeaderMap)> {
    let mut request = BytesMut::new();
    request.put_slice(format!("{method} {path} HTTP/1.1\r\nhost: ").as_bytes());
    request.put_slice(host.as_bytes());
    for (name, value) in more {
        request.put_slice(format!("\r\n{name}: ").as_bytes());
        request.put_slice(value.as_bytes());
    }
    if !more.contains_key(header::USER_AGENT) {
        request.put_slice(b"\r\nuser-agent: ");
        request.put_slice(USER_AGENT.as_bytes());
    }
    request.put_slice(b"\r\nconnection: close\r\n\r\n");
    io.write_all(&request).await?;
    io.flush().await?;
    let mut got = BytesMut::new();
    loop {
        read_more(&mut io, &mut got).await?;
        while let Some((length, status, fields)) = parse_head(&got)? {
            // Interim answers come before the real one.
            if !status.is_informational() {
                return Ok((status, fields));
            }
            got = got.split_off(length);
        }
    }
}

fn parse_head(got: &[u8]) -> io::Result<Option<(usize, StatusCode, HeaderMap)>> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut head = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(length) = head.parse(got).map_err(invalid)? else {
        return Ok(None);
    };
    let code = head.code.unwrap_or_default();
    let status = StatusCode::from_u16(code).map_err(invalid)?;
    let mut map = HeaderMap::new();
    for field in head.headers.iter() {
        let name = header::HeaderName::from_bytes(field.name.as_bytes()).map_err(invalid)?;
        let value = HeaderValue::from_bytes(field.value).map_err(invalid)?;
        map.append(name, value);
    }
    Ok(Some((length, status, map)))
}

/// What an HTTP/2 exchange brought.
struct Reply {
    status: StatusCode,
    fields: HeaderMap,
    body: BytesMut,
    trailers: HeaderMap,
}

/// One request on a fresh connection. `read` is whether to wait for the body.
async fn http2(io: BoxIo, request: Request<()>, body: Bytes, read: bool) -> io::Result<Reply> {
    let handshake = h2::client::Builder::new()
        .enable_push(false)
        .handshake::<_, Bytes>(io);
    let (send, connection) = handshake.await.map_err(io::Error::other)?;
    let exchange = async {
        let mut send = send.ready().await.map_err(io::Error::other)?;
        let (answer, mut out) = send
            .send_request(request, body.is_empty())
            .map_err(io::Error::other)?;
        if !body.is_empty() {
            out.send_data(body, true).map_err(io::Error::other)?;
        }
        let (head, mut incoming) = answer.await.map_err(io::Error::other)?.into_parts();
        let mut reply = Reply {
            status: head.status,
            fields: head.headers,
            body: BytesMut::new(),
            trailers: HeaderMap::new(),
        };
        if !read {
            return Ok(reply);
        }
        while let Some(part) = incoming.data().await {
            let part = part.map_err(io::Error::other)?;
            if reply.body.len() + part.len() > MAX_ANSWER {
                return Err(invalid("the answer is too long"));
            }
            // Only fails when the stream is gone, which the next read tells better.
            let _released = incoming.flow_control().release_capacity(part.len());
            reply.body.put_slice(&part);
        }
        let trailers = incoming.trailers().await.map_err(io::Error::other)?;
        reply.trailers = trailers.unwrap_or_default();
        Ok(reply)
    };
    let drive = async {
        // When the connection ends, so does the exchange, and it knows why.
        let _end = connection.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        reply = exchange => reply,
        () = drive => Err(io::ErrorKind::ConnectionAborted.into()),
    }
}

fn request(
    (scheme, authority): (&str, String),
    path: &str,
    method: Method,
) -> io::Result<Request<()>> {
    let uri = http::Uri::builder()
        .scheme(scheme)
        .authority(authority)
        .path_and_query(path)
        .build()
        .map_err(invalid)?;
    let request = Request::builder().method(method).uri(uri);
    request
        .header(header::USER_AGENT, USER_AGENT)
        .body(())
        .map_err(invalid)
}

async fn http2_head(
    io: BoxIo,
    uri: (&str, String),
    method: Method,
    path: PathAndQuery,
) -> io::Result<(StatusCode, HeaderMap)> {
    let request = request(uri, path.as_str(), method)?;
    let reply = http2(io, request, Bytes::new(), false).await?;
    Ok((reply.status, reply.fields))
}

/// Whether a server says that it, or one of its services, serves; if not, why.
pub(crate) async fn grpc_serving(
    io: BoxIo,
    authority: String,
    service: &str,
) -> io::Result<Result<(), String>> {
    Ok(match grpc(io, ("http", authority), service).await? {
        Verdict::Passed => Ok(()),
        Verdict::Failed(why) | Verdict::Refused(why) => Err(why),
        Verdict::Leaving => Err("it is leaving".to_owned()),
    })
}

/// Only SERVING is healthy (HC-04): whatever else is answered, also by a server that does not know
/// the service or is none of gRPC, is a no.
async fn grpc(io: BoxIo, uri: (&str, String), service: &str) -> io::Result<Verdict> {
    let mut ask = request(uri, "/grpc.health.v1.Health/Check", Method::POST)?;
    let fields = ask.headers_mut();
    fields.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
    fields.insert(header::TE, HeaderValue::from_static("trailers"));
    let message = prost::Message::encode_to_vec(&Ask {
        service: service.to_owned(),
    });
    let mut body = BytesMut::new();
    body.put_u8(0);
    body.put_u32(u32::try_from(message.len()).map_err(invalid)?);
    body.put_slice(&message);
    let reply = http2(io, ask, body.freeze(), true).await?;

    let refused = |why: String| Ok(Verdict::Refused(why));
    if reply.status != StatusCode::OK {
        return refused(format!("status {}", reply.status.as_u16()));
    }
    let kind = reply.fields.get(header::CONTENT_TYPE);
    if !kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
        return refused("the answer is not gRPC".to_owned());
    }
    let status = |fields: &HeaderMap| fields.get("grpc-status").cloned();
    let status = status(&reply.trailers).or_else(|| status(&reply.fields));
    match status.as_ref().map(HeaderValue::as_bytes) {
        Some(b"0") => {}
        Some(other) => return refused(format!("grpc-status {}", other.escape_ascii())),
        None => return refused("no grpc-status".to_owned()),
    }
    let message = reply.body.get(5..).unwrap_or_default();
    let served: Served = prost::Message::decode(message).map_err(invalid)?;
    if served.status == SERVING {
        Ok(Verdict::Passed)
    } else {
        refused(format!("serving status {}", served.status))
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

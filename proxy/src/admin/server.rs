//! A small HTTP/1.1 server with limits on everything.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

use super::{
    Admin, HEALTH,
    call::{self, Answer, Page},
};
use crate::net::has_ipv6;

/// Connections at once on each port: some people, a scraper and a kubelet. More are closed at once.
pub const MAX_CONNECTIONS: usize = 64;
/// No page reads a body; a larger one is refused rather than read.
pub const MAX_BODY: usize = 64 << 10;
/// For a request's head, and between two requests of a connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// A head larger than this is nobody's honest one.
const MAX_HEAD: usize = 16 << 10;
/// No connection lives longer. A large dump over a slow line fits; a reader who stalls does not
/// keep it for ever.
const MAX_LIFE: Duration = Duration::from_secs(600);
/// How long accepting rests when the process is out of file descriptors (LK-02).
const OUT_OF_FILES: Duration = Duration::from_millis(50);

/// Opens a port. All IPv4 addresses mean all IPv6 ones too, where there is IPv6: a kubelet asks at
/// the family that the pod has.
///
/// # Errors
/// What the kernel says, such as an address in use.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    if address.is_ipv4() && address.ip().is_unspecified() && has_ipv6() {
        let both = SocketAddr::from(([0_u16; 8], address.port()));
        return TcpListener::bind(both).await;
    }
    TcpListener::bind(address).await
}

/// Serves `pages` for as long as it runs.
pub async fn serve(listener: TcpListener, pages: &'static [Page], admin: Arc<Admin>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept on an admin port; resting");
                tokio::time::sleep(OUT_OF_FILES).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            tracing::warn!(limit = MAX_CONNECTIONS, "too many admin connections");
            continue;
        };
        let admin = Arc::clone(&admin);
        tokio::spawn(async move {
            let served = Box::pin(connection(stream, pages, admin));
            // Past its life it is dropped, and so closed.
            drop(tokio::time::timeout(MAX_LIFE, served).await);
            drop(place);
        });
    }
}

async fn connection(stream: TcpStream, pages: &'static [Page], admin: Arc<Admin>) {
    let service = service_fn(|request| respond(request, pages, &admin));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "an admin connection ended");
    }
}

async fn respond(
    request: Request<Incoming>,
    pages: &'static [Page],
    admin: &Admin,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let read = Limited::new(body, MAX_BODY).collect();
    // No page wants a body, yet what was sent has to go before the next request can come.
    let answer = match tokio::time::timeout(HEAD_TIMEOUT, read).await {
        Ok(Ok(_)) if std::ptr::eq(pages, HEALTH) && head.method == Method::GET => {
            match admin.prober.answer(head.uri.path()).await {
                Some(answer) => answer,
                None => call::answer(admin, pages, &Request::from_parts(head, ())),
            }
        }
        Ok(Ok(_)) => call::answer(admin, pages, &Request::from_parts(head, ())),
        Ok(Err(error)) => Answer::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            Answer::TEXT,
            format!("the body is unreadable or over {MAX_BODY} bytes: {error}\n"),
        ),
        Err(_) => Answer::new(
            StatusCode::REQUEST_TIMEOUT,
            Answer::TEXT,
            "the body did not come\n".to_owned(),
        ),
    };
    Ok(answer.response())
}

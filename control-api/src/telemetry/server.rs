//! `/metrics`, `/healthz` and `/readyz` over HTTP/1.1.

use std::{convert::Infallible, sync::Arc, time::Duration};

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::Metrics;
use crate::{serve::accept_each, store::Store, xds::Proxies};

/// Scrapers and probes; there are a handful.
const MAX_CONNECTIONS: usize = 64;
/// A connection that is quiet or slow is closed after this.
const PATIENCE: Duration = Duration::from_secs(60);
/// What Prometheus' text format 1.0 of OpenMetrics is called.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

struct Source {
    metrics: Arc<Metrics>,
    proxies: Arc<Proxies>,
    store: Arc<Store>,
}

/// Serves until `stop`.
pub async fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    proxies: Arc<Proxies>,
    store: Arc<Store>,
    stop: CancellationToken,
) {
    let source = Arc::new(Source {
        metrics,
        proxies,
        store,
    });
    let tasks = TaskTracker::new();
    accept_each(&listener, MAX_CONNECTIONS, &stop, &tasks, |stream, _| {
        let (source, stop) = (Arc::clone(&source), stop.clone());
        async move {
            let service = service_fn(move |request| {
                let answer = source.answer(&request);
                async move { Ok::<_, Infallible>(answer) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .serve_connection(TokioIo::new(stream), service);
            let ended = timeout(PATIENCE * 60, connection);
            if let Some(Ok(Err(error))) = stop.run_until_cancelled(ended).await {
                tracing::debug!(%error, "telemetry connection ended");
            }
        }
    })
    .await;
}

impl Source {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let get = matches!(*request.method(), Method::GET | Method::HEAD);
        let (status, kind, body) = match request.uri().path() {
            _ if !get => (StatusCode::METHOD_NOT_ALLOWED, "text/plain", String::new()),
            "/metrics" => {
                let text = self.metrics.text(&self.proxies, &self.store.objects());
                (StatusCode::OK, OPEN_METRICS, text)
            }
            // It serves when it is started, and ends when it cannot.
            "/healthz" | "/readyz" => (StatusCode::OK, "text/plain", "ok\n".to_owned()),
            _ => (
                StatusCode::NOT_FOUND,
                "text/plain",
                "not found\n".to_owned(),
            ),
        };
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        let kind = http::HeaderValue::from_static(kind);
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }
}

//! A collector of traces, small enough to look into: takes spans by OTLP over gRPC and hands each
//! of them on.

use std::{collections::BTreeMap, fmt::Write as _, sync::Arc};

use hyper::{Request, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::{Span as Message, span::SpanKind, status::StatusCode},
};
use tokio::net::TcpListener;
use tower_service::Service as _;

/// One span, as far as tests look at it.
#[derive(Clone, Debug)]
pub struct Span {
    /// `service.name` of whoever sent it.
    pub service: String,
    pub trace: String,
    pub id: String,
    /// Empty for none.
    pub parent: String,
    pub name: String,
    /// `server`, `client`, or another in lower case.
    pub kind: String,
    /// Nanoseconds of Unix time.
    pub start: u64,
    pub end: u64,
    pub error: bool,
    pub message: String,
    pub attributes: BTreeMap<String, String>,
    pub events: Vec<String>,
}

impl Span {
    fn of(service: &str, span: Message) -> Self {
        let status = span.status.unwrap_or_default();
        let kind = SpanKind::try_from(span.kind).unwrap_or_default();
        let kind = kind.as_str_name().trim_start_matches("SPAN_KIND_");
        Self {
            service: service.to_owned(),
            trace: hex(&span.trace_id),
            id: hex(&span.span_id),
            parent: hex(&span.parent_span_id),
            name: span.name,
            kind: kind.to_lowercase(),
            start: span.start_time_unix_nano,
            end: span.end_time_unix_nano,
            error: status.code == i32::from(StatusCode::Error),
            message: status.message,
            attributes: pairs(span.attributes).collect(),
            events: span.events.into_iter().map(|event| event.name).collect(),
        }
    }

    /// The span as an object.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "service": self.service, "trace": self.trace, "id": self.id, "parent": self.parent,
            "name": self.name, "kind": self.kind, "start": self.start, "end": self.end,
            "error": self.error, "message": self.message, "attributes": self.attributes,
            "events": self.events,
        })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _done = write!(text, "{byte:02x}");
        text
    })
}

fn pairs(all: Vec<KeyValue>) -> impl Iterator<Item = (String, String)> {
    all.into_iter().map(|pair| (pair.key, text(pair.value)))
}

fn text(value: Option<AnyValue>) -> String {
    match value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(n)) => n.to_string(),
        Some(Value::DoubleValue(n)) => n.to_string(),
        Some(Value::BoolValue(is)) => is.to_string(),
        other => format!("{other:?}"),
    }
}

struct Sink<F>(F);

#[tonic::async_trait]
impl<F: Fn(Span) + Send + Sync + 'static> TraceService for Sink<F> {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        for from in request.into_inner().resource_spans {
            let about = from.resource.unwrap_or_default().attributes;
            let about: BTreeMap<_, _> = pairs(about).collect();
            let service = about.get("service.name").cloned().unwrap_or_default();
            for span in from.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                (self.0)(Span::of(&service, span));
            }
        }
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

/// Serves `listener` as long as it is polled; every span that comes is given to `take`.
pub async fn serve(listener: TcpListener, take: impl Fn(Span) + Send + Sync + 'static) {
    let service = TraceServiceServer::from_arc(Arc::new(Sink(take)));
    while let Ok((stream, _)) = listener.accept().await {
        let service = service.clone();
        tokio::spawn(async move {
            let one = service_fn(move |request: Request<Incoming>| service.clone().call(request));
            let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            drop(builder.serve_connection(TokioIo::new(stream), one).await);
        });
    }
}

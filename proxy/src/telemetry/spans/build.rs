//! What a span says, in the words of OpenTelemetry's semantic conventions for HTTP and RPC; what
//! they have no words for begins with `outrigger.`.
//!
//! A request that came into the pod is a SERVER span, one that left it a CLIENT span. A request
//! with one try is one span. With more, each try is a CLIENT span below the request's.

use std::{
    borrow::Cow,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use http::{Method, StatusCode, Version};
use opentelemetry::{
    InstrumentationScope, KeyValue, Value,
    trace::{Event, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState},
};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use tokio::time::Instant;

use super::{Finished, Record};
use crate::{
    config::listener::Direction,
    fault::{Fault, Side},
    http::grpc::code,
    telemetry::{Attempt, TraceContext, trace},
};

/// How many spans a request has.
pub(super) fn number(record: &Record) -> u64 {
    match record.attempts.len() {
        0 | 1 => 1,
        tries => 1 + tries as u64,
    }
}

/// The spans of a request.
pub(super) fn spans(finished: &Finished, scope: &InstrumentationScope) -> Vec<SpanData> {
    let record = &finished.record;
    let Some(trace) = &record.trace else {
        return Vec::new();
    };
    let make = Maker {
        finished,
        record,
        trace,
        scope,
    };
    match record.attempts.as_slice() {
        [] => vec![make.request(None)],
        [only] => vec![make.request(Some(only))],
        all => {
            let tries = all.iter().enumerate().map(|(n, one)| make.attempt(n, one));
            std::iter::once(make.request(None)).chain(tries).collect()
        }
    }
}

struct Maker<'a> {
    finished: &'a Finished,
    record: &'a Record,
    trace: &'a TraceContext,
    scope: &'a InstrumentationScope,
}

/// What differs from span to span.
struct Draft {
    id: trace::SpanId,
    kind: SpanKind,
    /// From when to when.
    times: (Instant, Instant),
    attributes: Vec<KeyValue>,
    events: Vec<Event>,
}

/// How something ended.
#[derive(Clone, Copy)]
struct Ending<'a> {
    status: Option<StatusCode>,
    grpc_status: Option<u32>,
    fault: Option<Fault>,
    detail: &'a str,
}

impl Maker<'_> {
    /// The request's own span, which says what is known of its only try, too.
    fn request(&self, only: Option<&Attempt>) -> SpanData {
        let record = self.record;
        let (kind, other_end) = match record.direction {
            Direction::Inbound => (SpanKind::Server, Some(record.source)),
            Direction::Outbound => (SpanKind::Client, only.map(|only| only.endpoint)),
        };
        let mut attributes = self.about_request();
        if let Some(address) = other_end {
            peer(&mut attributes, address);
        }
        let ending = Ending {
            status: record.status,
            grpc_status: record.grpc_status,
            fault: record.fault,
            detail: &record.details,
        };
        let draft = Draft {
            id: self.trace.request_span(),
            kind,
            times: (record.started, record.ended),
            attributes,
            events: only
                .and_then(|only| self.connection(only))
                .into_iter()
                .collect(),
        };
        let parent = self.trace.parent;
        SpanData {
            parent_span_id: parent.map_or(SpanId::INVALID, SpanId::from_bytes),
            parent_span_is_remote: parent.is_some(),
            ..self.span(draft, &ending)
        }
    }

    /// One try of several.
    fn attempt(&self, n: usize, attempt: &Attempt) -> SpanData {
        let record = self.record;
        let mut attributes = vec![
            method(&record.method),
            KeyValue::new("outrigger.attempt", count(n + 1)),
        ];
        method_original(&mut attributes, &record.method);
        server(&mut attributes, record);
        if n > 0 {
            attributes.push(KeyValue::new("http.request.resend_count", count(n)));
        }
        peer(&mut attributes, attempt.endpoint);
        let mut ending = Ending {
            status: attempt.status,
            grpc_status: attempt.grpc_status,
            fault: attempt.fault,
            detail: &attempt.detail,
        };
        let mut ended = attempt.ended;
        let last = n + 1 == record.attempts.len();
        // The last try, once it was answered, is what the client got, to its last byte.
        if last && attempt.fault.is_none() {
            ended = record.ended;
            ending.grpc_status = ending.grpc_status.or(record.grpc_status);
            ending.fault = record.fault;
            ending.detail = &record.details;
        }
        let draft = Draft {
            id: attempt.span_id,
            kind: SpanKind::Client,
            times: (attempt.began, ended),
            attributes,
            events: self.connection(attempt).into_iter().collect(),
        };
        SpanData {
            parent_span_id: SpanId::from_bytes(self.trace.request_span()),
            ..self.span(draft, &ending)
        }
    }

    fn span(&self, draft: Draft, ending: &Ending<'_>) -> SpanData {
        let Draft {
            id,
            kind,
            times: (began, ended),
            mut attributes,
            events,
        } = draft;
        let end_time = self.at(ended);
        ending.say(&mut attributes, &kind);
        let mut all = SpanEvents::default();
        all.events = events;
        all.events.extend(ending.event(end_time));
        SpanData {
            span_context: SpanContext::new(
                TraceId::from_bytes(self.trace.trace_id),
                SpanId::from_bytes(id),
                TraceFlags::SAMPLED,
                false,
                TraceState::NONE,
            ),
            parent_span_id: SpanId::INVALID,
            parent_span_is_remote: false,
            status: ending.status_of(&kind),
            span_kind: kind,
            name: self.name(),
            start_time: self.at(began),
            end_time,
            attributes,
            dropped_attributes_count: 0,
            events: all,
            links: SpanLinks::default(),
            instrumentation_scope: self.scope.clone(),
        }
    }

    /// Low in number, as the names of operations have to be: the method and whom the configuration
    /// says it is for; of a gRPC call, its method.
    fn name(&self) -> Cow<'static, str> {
        let record = self.record;
        if record.grpc {
            return record.path.trim_start_matches('/').to_owned().into();
        }
        let method = known_method(&record.method).unwrap_or("HTTP");
        let cluster = record.cluster.as_ref().map_or("", |name| name.as_str());
        match cluster.rsplit('|').next() {
            Some(target) if !target.is_empty() => format!("{method} {target}").into(),
            _ => method.into(),
        }
    }

    fn about_request(&self) -> Vec<KeyValue> {
        let record = self.record;
        let version = match record.version {
            Version::HTTP_2 => "2",
            Version::HTTP_10 => "1.0",
            _ => "1.1",
        };
        let mut all = vec![
            method(&record.method),
            KeyValue::new("url.scheme", "http"),
            KeyValue::new("url.path", record.path.to_string()),
            KeyValue::new("network.protocol.name", "http"),
            KeyValue::new("network.protocol.version", version),
            KeyValue::new("http.request.body.size", size(record.bytes_in)),
            KeyValue::new("http.response.body.size", size(record.bytes_out)),
        ];
        method_original(&mut all, &record.method);
        server(&mut all, record);
        if record.direction == Direction::Inbound {
            all.push(KeyValue::new(
                "client.address",
                record.source.ip().to_string(),
            ));
        }
        if record.grpc {
            all.push(KeyValue::new("rpc.system", "grpc"));
            let path = record.path.trim_start_matches('/');
            if let Some((service, method)) = path.rsplit_once('/') {
                all.push(KeyValue::new("rpc.service", service.to_owned()));
                all.push(KeyValue::new("rpc.method", method.to_owned()));
            }
        }
        for (key, value) in [
            ("outrigger.route", record.route.as_deref()),
            (
                "outrigger.cluster",
                record.cluster.as_ref().map(|name| name.as_str()),
            ),
            ("outrigger.peer", record.remote().map(|id| id.as_str())),
        ] {
            if let Some(value) = value.filter(|value| !value.is_empty()) {
                all.push(KeyValue::new(key, value.to_owned()));
            }
        }
        if !record.attempts.is_empty() {
            all.push(KeyValue::new(
                "outrigger.tries",
                count(record.attempts.len()),
            ));
        }
        all
    }

    /// When there was a connection, and what that took (OB-06).
    fn connection(&self, attempt: &Attempt) -> Option<Event> {
        let had = attempt.reused || !attempt.connect.is_zero();
        had.then(|| {
            let mut about = vec![
                KeyValue::new("outrigger.connection.reused", attempt.reused),
                KeyValue::new("outrigger.connection.queue_us", micros(attempt.queued())),
            ];
            if !attempt.reused {
                about.push(KeyValue::new(
                    "outrigger.connection.connect_us",
                    micros(attempt.connect),
                ));
                about.push(KeyValue::new(
                    "outrigger.connection.tls_us",
                    micros(attempt.tls),
                ));
            }
            Event::new(
                "connection",
                self.at(attempt.began + attempt.wait),
                about,
                0,
            )
        })
    }

    /// The time of day of a moment of this request.
    fn at(&self, moment: Instant) -> SystemTime {
        let before_end = self.record.ended.saturating_duration_since(moment);
        let ended = self.finished.ended;
        ended.checked_sub(before_end).unwrap_or(ended)
    }
}

impl Ending<'_> {
    fn say(&self, attributes: &mut Vec<KeyValue>, kind: &SpanKind) {
        if let Some(status) = self.status {
            attributes.push(KeyValue::new(
                "http.response.status_code",
                i64::from(status.as_u16()),
            ));
        }
        if let Some(status) = self.grpc_status {
            attributes.push(KeyValue::new("rpc.grpc.status_code", i64::from(status)));
        }
        if let Some(fault) = self.fault {
            attributes.extend(cause(fault, self.detail));
        }
        if self.is_error(kind) {
            let what: Value = match (self.fault, self.status) {
                (Some(fault), _) => fault.name().into(),
                (None, Some(status)) if !status.is_success() => status.as_str().to_owned().into(),
                _ => match self.grpc_status {
                    Some(status) => status.to_string().into(),
                    None => "_OTHER".into(),
                },
            };
            attributes.push(KeyValue::new("error.type", what));
        }
    }

    /// The cause once more, where a trace shows what happened when.
    fn event(&self, at: SystemTime) -> Option<Event> {
        self.fault.map(|fault| {
            let about = cause(fault, self.detail).collect();
            Event::new("fault", at, about, 0)
        })
    }

    fn status_of(&self, kind: &SpanKind) -> Status {
        if !self.is_error(kind) {
            return Status::Unset;
        }
        let description = match self.fault {
            Some(fault) if self.detail.is_empty() => fault.row().text.into(),
            Some(fault) => format!("{}: {}", fault.row().text, self.detail).into(),
            // The status says it all.
            None => Cow::Borrowed(""),
        };
        Status::Error { description }
    }

    /// A server is to blame for less than a client has to call a failure: what the other side did
    /// wrong (4xx) is no error of a server. A client that went away is nobody's error (OB-02).
    fn is_error(&self, kind: &SpanKind) -> bool {
        let server = *kind == SpanKind::Server;
        if let Some(fault) = self.fault {
            let row = fault.row();
            return match row.side {
                Side::Downstream if fault == Fault::DownstreamReset => false,
                _ if server => row.http >= 500,
                _ => true,
            };
        }
        let grpc = self.grpc_status.is_some_and(|status| {
            if server {
                matches!(
                    status,
                    code::UNKNOWN
                        | code::DEADLINE_EXCEEDED
                        | code::UNIMPLEMENTED
                        | code::INTERNAL
                        | code::UNAVAILABLE
                        | code::DATA_LOSS
                )
            } else {
                status != code::OK
            }
        });
        let http = self.status.is_some_and(|status| {
            status.is_server_error() || (!server && status.is_client_error())
        });
        grpc || http
    }
}

/// The same words as in `proxy-status` and in the access log.
fn cause(fault: Fault, detail: &str) -> impl Iterator<Item = KeyValue> {
    let detail = (!detail.is_empty()).then(|| detail.to_owned());
    [
        KeyValue::new("outrigger.response_flag", fault.row().flag),
        KeyValue::new("outrigger.cause", fault.name()),
    ]
    .into_iter()
    .chain(detail.map(|detail| KeyValue::new("outrigger.details", detail)))
}

/// Methods that the conventions know; an invention of a client must not become an operation's name.
fn known_method(method: &Method) -> Option<&'static str> {
    [
        "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
    ]
    .into_iter()
    .find(|known| *known == method.as_str())
}

fn method(method: &Method) -> KeyValue {
    let known = known_method(method).unwrap_or("_OTHER");
    KeyValue::new("http.request.method", known)
}

fn method_original(attributes: &mut Vec<KeyValue>, method: &Method) {
    if known_method(method).is_none() {
        let mut original = method.as_str().to_owned();
        super::cut(&mut original);
        attributes.push(KeyValue::new("http.request.method_original", original));
    }
}

/// Whom the client thought it was talking to.
fn server(attributes: &mut Vec<KeyValue>, record: &Record) {
    let name = record.authority.rsplit_once(':');
    let (host, port) = match name.map(|(host, port)| (host, port.parse::<u16>())) {
        Some((host, Ok(port))) => (host, port),
        _ => (&*record.authority, record.destination.port()),
    };
    let host = if host.is_empty() {
        record.destination.ip().to_string()
    } else {
        host.to_owned()
    };
    attributes.push(KeyValue::new("server.address", host));
    attributes.push(KeyValue::new("server.port", i64::from(port)));
}

/// The other end of the connection.
fn peer(attributes: &mut Vec<KeyValue>, address: SocketAddr) {
    attributes.push(KeyValue::new(
        "network.peer.address",
        address.ip().to_string(),
    ));
    attributes.push(KeyValue::new(
        "network.peer.port",
        i64::from(address.port()),
    ));
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn size(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

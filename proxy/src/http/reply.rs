//! The answers that the proxy makes itself. One place turns a [`Fault`] into what its caller can
//! read: an HTTP status with one sentence, or for gRPC callers a gRPC status, always with a
//! `proxy-status` field (RFC 9209) that names the cause.
//!
//! ```text
//! HTTP/1.1 503 Service Unavailable
//! proxy-status: outrigger; error=connection_refused; details="ConnectFailed: 10.0.0.7:8080: …"
//! content-type: text/plain; charset=utf-8
//!
//! could not connect to the upstream (ConnectFailed: 10.0.0.7:8080: …)
//! ```

use std::time::Duration;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version,
    header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER},
};

use super::grpc::{self, GRPC_MESSAGE, GRPC_STATUS};
use crate::fault::Fault;

/// RFC 9209 names no limit; this keeps a local answer's head small whatever an error text holds.
pub const MAX_DETAILS: usize = 256;
/// Carries the cause of an answer made by a proxy (RFC 9209).
pub const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// The fault that another Outrigger proxy put into `proxy-status`, if it did.
#[must_use]
pub fn told_fault(headers: &HeaderMap) -> Option<Fault> {
    let value = headers.get(PROXY_STATUS)?.to_str().ok()?;
    let rest = value.strip_prefix("outrigger;")?;
    let (_, details) = rest.split_once("details=\"")?;
    let name = details.split([':', '"']).next()?;
    Fault::ALL
        .iter()
        .copied()
        .find(|fault| fault.name() == name)
}

/// What the caller of a request can read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// The request's content type when it is a gRPC call; the answer keeps it.
    pub grpc: Option<HeaderValue>,
    /// Speaks HTTP/1, where closing is announced by `connection: close`.
    pub http1: bool,
    /// Asked with HEAD: the answer has no content.
    pub head: bool,
}

impl Caller {
    /// The caller of a request.
    #[must_use]
    pub fn of(method: &Method, version: Version, headers: &HeaderMap) -> Self {
        let grpc = grpc::is_grpc(headers)
            .then(|| headers.get(CONTENT_TYPE).cloned())
            .flatten();
        Self {
            grpc,
            http1: version < Version::HTTP_2,
            head: method == Method::HEAD,
        }
    }
}

/// An answer in the making. Everything but the fault is optional.
#[derive(Clone, Copy, Debug)]
pub struct LocalReply<'a> {
    pub fault: Fault,
    /// What exactly happened: an address, a limit, the name of a policy. Cut at [`MAX_DETAILS`].
    pub details: &'a str,
    /// In place of the fault's own status (fault injection, rate limits with a configured status).
    pub status: Option<StatusCode>,
    /// In place of the fault's own gRPC code.
    pub grpc_status: Option<u32>,
    /// When trying again makes sense.
    pub retry_after: Option<Duration>,
    /// The connection ends after this answer, for a reason beyond the fault itself.
    pub close: bool,
}

impl<'a> LocalReply<'a> {
    /// The answer to `fault`.
    #[must_use]
    pub const fn new(fault: Fault, details: &'a str) -> Self {
        Self {
            fault,
            details,
            status: None,
            grpc_status: None,
            retry_after: None,
            close: false,
        }
    }

    /// The HTTP status that callers other than gRPC's get.
    #[must_use]
    pub fn http_status(&self) -> StatusCode {
        self.status.unwrap_or_else(|| {
            StatusCode::from_u16(self.fault.row().http).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
        })
    }

    /// The gRPC code that gRPC callers get: the one asked for, else what gRPC derives from a status
    /// asked for that is not the fault's own, else the fault's.
    #[must_use]
    pub fn grpc_code(&self) -> u32 {
        let row = self.fault.row();
        let other = self.status.filter(|status| status.as_u16() != row.http);
        self.grpc_status
            .or_else(|| other.map(grpc::from_http))
            .unwrap_or_else(|| u32::from(row.grpc))
    }

    /// Whether the connection has to end after this answer: the framing of what follows on it
    /// cannot be trusted, or it was asked for.
    #[must_use]
    pub const fn closes(&self) -> bool {
        self.close
            || matches!(
                self.fault,
                Fault::DownstreamProtocol
                    | Fault::DownstreamIdle
                    | Fault::HeadersTooLarge
                    | Fault::UriTooLong
            )
    }

    /// The whole answer. For a gRPC caller it is a trailers-only block: status 200, the gRPC status
    /// in the head, no content, and the stream has to end with it.
    #[must_use]
    pub fn build(&self, caller: &Caller) -> Response<Bytes> {
        let mut response = match &caller.grpc {
            Some(content_type) => self.grpc_head(content_type),
            None => self.http_reply(caller.head),
        };
        let headers = response.headers_mut();
        headers.insert(PROXY_STATUS, self.proxy_status());
        if let Some(wait) = self.retry_after {
            // Rounded up: coming back early only fails again.
            let secs = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            headers.insert(RETRY_AFTER, secs.into());
        }
        if caller.http1 && self.closes() {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// The trailers that end a gRPC response whose head is already out. Other responses cannot be
    /// ended in words: they have to be reset, so that nobody takes them for complete.
    #[must_use]
    pub fn trailers(&self) -> HeaderMap {
        let mut block = HeaderMap::with_capacity(2);
        self.write_grpc(&mut block);
        block
    }

    /// `proxy-status` of this answer (RFC 9209 §2).
    #[must_use]
    pub fn proxy_status(&self) -> HeaderValue {
        let mut text = format!(
            "outrigger; error={}; details=\"",
            self.fault.row().proxy_status
        );
        push_quoted(&mut text, self.fault.name());
        if !self.details.is_empty() {
            text.push_str(": ");
            push_quoted(&mut text, self.cut());
        }
        text.push('"');
        HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("outrigger"))
    }

    fn http_reply(&self, head: bool) -> Response<Bytes> {
        let body = if head {
            Bytes::new()
        } else {
            Bytes::from(self.sentence() + "\n")
        };
        let mut response = Response::new(body);
        *response.status_mut() = self.http_status();
        response.headers_mut().insert(
            CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        );
        response
    }

    fn grpc_head(&self, content_type: &HeaderValue) -> Response<Bytes> {
        let mut response = Response::new(Bytes::new());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, content_type.clone());
        self.write_grpc(headers);
        response
    }

    fn write_grpc(&self, block: &mut HeaderMap) {
        block.insert(GRPC_STATUS, self.grpc_code().into());
        // Room for the sentence around the details; each part is bounded.
        let message = grpc::encode_message(&self.sentence(), 2 * MAX_DETAILS);
        block.insert(GRPC_MESSAGE, message);
    }

    /// One sentence for people.
    fn sentence(&self) -> String {
        let row = self.fault.row();
        if self.details.is_empty() {
            format!("{} ({})", row.text, self.fault.name())
        } else {
            format!("{} ({}: {})", row.text, self.fault.name(), self.cut())
        }
    }

    fn cut(&self) -> &'a str {
        let end = self.details.floor_char_boundary(MAX_DETAILS);
        self.details.split_at(end).0
    }
}

/// An answer that configuration asked for (`direct_response`): its status and body; for gRPC
/// callers a trailers-only block whose code follows from the status and whose message is the body.
#[must_use]
pub fn direct(status: StatusCode, body: &Bytes, caller: &Caller) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    if let Some(content_type) = &caller.grpc {
        let code = if status.is_success() {
            grpc::code::OK
        } else {
            grpc::from_http(status)
        };
        let message = String::from_utf8_lossy(body);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, content_type.clone());
        headers.insert(GRPC_STATUS, code.into());
        headers.insert(
            GRPC_MESSAGE,
            grpc::encode_message(&message, 2 * MAX_DETAILS),
        );
        return response;
    }
    *response.status_mut() = status;
    if !body.is_empty() {
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        if !caller.head {
            *response.body_mut() = body.clone();
        }
    }
    response
}

/// Appends `text` as the inside of a structured-field string (RFC 8941 §3.3.3): printable ASCII,
/// with `"` and `\` escaped; anything else becomes `?`.
fn push_quoted(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            ' '..='~' => out.push(c),
            _ => out.push('?'),
        }
    }
}

#[cfg(test)]
mod tests;

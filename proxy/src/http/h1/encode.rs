//! Heads and trailers as bytes.

use std::io::Write as _;

use bytes::{BufMut, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};

use super::OriginalNames;

/// Which framing fields to write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Framing {
    /// `Some` writes `content-length`, in place of what the head has.
    pub(super) length: Option<u64>,
    pub(super) chunked: bool,
    /// The head's own `content-length` stays, since it describes no body (HEAD, 304).
    pub(super) keep_length: bool,
    /// The head's own `connection` field stays (protocol switches).
    pub(super) keep_connection: bool,
    pub(super) connection: Option<&'static str>,
}

impl Framing {
    /// Whether a field of the head is not copied.
    fn skips(&self, name: &[u8]) -> bool {
        let is = |other: &HeaderName| name.eq_ignore_ascii_case(other.as_str().as_bytes());
        (is(&header::CONTENT_LENGTH) && !self.keep_length)
            || is(&header::TRANSFER_ENCODING)
            || (is(&header::CONNECTION) && !self.keep_connection)
    }
}

pub(super) fn request(
    out: &mut BytesMut,
    head: &Request<()>,
    names: Option<&OriginalNames>,
    framing: Framing,
) {
    out.put_slice(head.method().as_str().as_bytes());
    out.put_u8(b' ');
    if *head.method() == Method::CONNECT {
        let authority = head.uri().authority().map_or("", |a| a.as_str());
        out.put_slice(authority.as_bytes());
    } else {
        let target = head.uri().path_and_query().map_or("/", |p| p.as_str());
        if target.starts_with('?') {
            out.put_u8(b'/');
        }
        out.put_slice(target.as_bytes());
    }
    out.put_slice(b" HTTP/1.1\r\n");
    fields(out, head.headers(), names, framing);
}

pub(super) fn response(
    out: &mut BytesMut,
    head: &Response<()>,
    names: Option<&OriginalNames>,
    framing: Framing,
) {
    out.put_slice(b"HTTP/1.1 ");
    out.put_slice(head.status().as_str().as_bytes());
    out.put_u8(b' ');
    out.put_slice(reason(head.status(), names));
    out.put_slice(b"\r\n");
    fields(out, head.headers(), names, framing);
}

fn reason(status: StatusCode, names: Option<&OriginalNames>) -> &[u8] {
    names
        .and_then(|names| names.reason(status))
        .unwrap_or_else(|| status.canonical_reason().unwrap_or_default().as_bytes())
}

/// Fields that came are written in the order and spelling in which they came, others after them as
/// they are.
fn fields(
    out: &mut BytesMut,
    headers: &HeaderMap,
    names: Option<&OriginalNames>,
    framing: Framing,
) {
    let mut length = framing.length;
    let mut found = 0;
    // A map is mostly in the order in which it was filled, so that few names are looked up.
    let mut in_order = headers.iter().peekable();
    for (name, nth) in names.into_iter().flat_map(OriginalNames::iter) {
        let is_next = |(key, _): &(&HeaderName, &HeaderValue)| {
            nth == 0 && name.eq_ignore_ascii_case(key.as_str().as_bytes())
        };
        let value = match in_order.next_if(is_next) {
            Some((_, value)) => Some(value),
            None => look_up(headers, name, nth),
        };
        found += usize::from(value.is_some());
        if name.eq_ignore_ascii_case(header::CONTENT_LENGTH.as_str().as_bytes())
            && let Some(length) = length.take()
        {
            number(out, name, length);
        } else if let Some(value) = value
            && !framing.skips(name)
        {
            line(out, name, value.as_bytes());
        }
    }
    if found < headers.len() {
        added(out, headers, names, framing);
    }
    if let Some(length) = length {
        number(out, header::CONTENT_LENGTH.as_str().as_bytes(), length);
    }
    if framing.chunked {
        let name = header::TRANSFER_ENCODING.as_str().as_bytes();
        line(out, name, b"chunked");
    }
    if let Some(connection) = framing.connection {
        let name = header::CONNECTION.as_str().as_bytes();
        line(out, name, connection.as_bytes());
    }
    out.put_slice(b"\r\n");
}

fn look_up<'h>(headers: &'h HeaderMap, name: &[u8], nth: usize) -> Option<&'h HeaderValue> {
    let name = std::str::from_utf8(name).ok()?;
    headers.get_all(name).iter().nth(nth)
}

/// The fields that did not come.
fn added(out: &mut BytesMut, headers: &HeaderMap, names: Option<&OriginalNames>, framing: Framing) {
    // Lines of one name follow each other in a map.
    let mut run: Option<&HeaderName> = None;
    let (mut seen, mut written) = (0, 0);
    for (key, value) in headers {
        if run != Some(key) {
            run = Some(key);
            seen = 0;
            written = names.map_or(0, |names| names.count_of(key));
        }
        seen += 1;
        let name = key.as_str().as_bytes();
        if seen > written && !framing.skips(name) {
            line(out, name, value.as_bytes());
        }
    }
}

fn line(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.put_slice(name);
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

fn number(out: &mut BytesMut, name: &[u8], number: u64) {
    // Twenty digits hold every u64.
    let mut digits = [0; 20];
    let mut rest = &mut digits[..];
    let left = write!(rest, "{number}").map_or(20, |()| rest.len());
    line(out, name, digits.get(..20 - left).unwrap_or_default());
}

/// The trailer section with the empty line that ends it.
pub(super) fn trailers(out: &mut BytesMut, trailers: &HeaderMap<HeaderValue>) {
    for (name, value) in trailers {
        line(out, name.as_str().as_bytes(), value.as_bytes());
    }
    out.put_slice(b"\r\n");
}

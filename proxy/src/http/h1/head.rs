//! Start lines and fields, read and written.

use std::io::Write as _;

use bytes::{BufMut, Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header,
};

use super::{BodyLen, Error, Limits, MAX_HEADERS};

/// The spelling and order in which field names came, for passing on to a peer that reads them
/// byte for byte.
#[derive(Clone, Debug)]
pub struct OriginalNames {
    head: Bytes,
    spans: Vec<(u32, u16)>,
}

impl OriginalNames {
    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.spans.iter().filter_map(|(at, len)| {
            let at = *at as usize;
            self.head.get(at..at + usize::from(*len))
        })
    }
}

/// A request's head.
#[derive(Debug)]
pub struct RequestHead {
    pub head: Request<()>,
    pub len: BodyLen,
    pub names: Option<OriginalNames>,
}

/// Length of the head at the start of `bytes`, looking from `from` on; `None` when it is not whole.
///
/// A line end is CRLF and nothing else: a bare CR or LF means different things to different
/// readers (RFC 9112 §2.2; HT-06).
pub(super) fn find_end(bytes: &[u8], from: usize) -> Result<Option<usize>, Error> {
    let mut at = from.saturating_sub(3);
    while let Some(rest) = bytes.get(at..) {
        let Some(found) = rest.iter().position(|b| matches!(b, b'\r' | b'\n' | 0)) else {
            return Ok(None);
        };
        at += found;
        match bytes.get(at..) {
            Some([b'\r', b'\n', b'\r', b'\n', ..]) => return Ok(Some(at + 4)),
            // A line that begins with white space is a folded one (RFC 9112 §5.2).
            Some([b'\r', b'\n', b' ' | b'\t', ..]) => {
                return Err(Error::Syntax("folded header field"));
            }
            Some([b'\r', b'\n', ..]) => at += 2,
            Some([b'\r']) => return Ok(None),
            Some([b'\r', ..]) => return Err(Error::Syntax("bare CR in the head")),
            Some([b'\n', ..]) if at == 0 || bytes.get(at - 1) != Some(&b'\r') => {
                return Err(Error::Syntax("bare LF in the head"));
            }
            Some([b'\n', ..]) => at += 1,
            _ => return Err(Error::Syntax("NUL in the head")),
        }
    }
    Ok(None)
}

fn parse_error(error: httparse::Error, limits: &Limits) -> Error {
    match error {
        httparse::Error::HeaderName => Error::Syntax("invalid header field name"),
        httparse::Error::HeaderValue => Error::Syntax("invalid header field value"),
        httparse::Error::NewLine => Error::Syntax("invalid line end"),
        httparse::Error::Status => Error::Syntax("invalid status code"),
        httparse::Error::Token => Error::Syntax("invalid start line"),
        httparse::Error::TooManyHeaders => Error::TooManyHeaders(limits.header_count),
        httparse::Error::Version => Error::UnsupportedVersion,
    }
}

/// A request head. The framing fields are checked and, where they say the same twice, made one.
pub(super) fn parse_request(head: &Bytes, limits: &Limits) -> Result<RequestHead, Error> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut fields);
    match parsed.parse(head).map_err(|e| parse_error(e, limits))? {
        httparse::Status::Complete(n) if n == head.len() => {}
        _ => return Err(Error::Syntax("incomplete head")),
    }
    let (Some(method), Some(target), Some(minor)) = (parsed.method, parsed.path, parsed.version)
    else {
        return Err(Error::Syntax("incomplete request line"));
    };
    if target.len() > limits.uri_bytes {
        return Err(Error::UriTooLong(limits.uri_bytes));
    }
    let method =
        Method::from_bytes(method.as_bytes()).map_err(|_| Error::Syntax("invalid method"))?;
    let (mut headers, names) = fields_of(head, parsed.headers, limits)?;
    let version = if minor == 0 {
        Version::HTTP_10
    } else {
        Version::HTTP_11
    };
    let uri = target_of(head, target, &method, &mut headers)?;
    check_host(&headers, version)?;
    let len = request_len(&mut headers, version)?;
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.version_mut() = version;
    *request.headers_mut() = headers;
    Ok(RequestHead {
        head: request,
        len,
        names,
    })
}

/// The target in origin form. An absolute one overrules `host` (RFC 9112 §3.2.2; HT-22).
fn target_of(
    head: &Bytes,
    target: &str,
    method: &Method,
    headers: &mut HeaderMap,
) -> Result<Uri, Error> {
    let bad = |_| Error::Syntax("invalid request target");
    let shared = head.slice_ref(target.as_bytes());
    if *method == Method::CONNECT {
        let uri = Uri::from_maybe_shared(shared).map_err(bad)?;
        let authority = uri.scheme().is_none() && uri.path_and_query().is_none();
        return match uri.port_u16() {
            Some(_) if authority => Ok(uri),
            _ => Err(Error::Syntax("CONNECT needs host:port")),
        };
    }
    if target.starts_with('/') || (target == "*" && *method == Method::OPTIONS) {
        return Uri::from_maybe_shared(shared).map_err(|_| Error::Syntax("invalid request target"));
    }
    let uri =
        Uri::from_maybe_shared(shared).map_err(|_| Error::Syntax("invalid request target"))?;
    let (Some(_), Some(authority)) = (uri.scheme(), uri.authority()) else {
        return Err(Error::Syntax("invalid request target"));
    };
    let host = HeaderValue::from_str(authority.as_str())
        .map_err(|_| Error::Syntax("invalid authority"))?;
    headers.insert(header::HOST, host);
    let origin = uri.path_and_query().map_or("/", |p| p.as_str());
    origin
        .parse()
        .map_err(|_| Error::Syntax("invalid request target"))
}

fn check_host(headers: &HeaderMap, version: Version) -> Result<(), Error> {
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (_, Some(_)) => Err(Error::Syntax("more than one host field")),
        (None, None) if version == Version::HTTP_11 => Err(Error::Syntax("no host field")),
        _ => Ok(()),
    }
}

/// A response head.
pub(super) fn parse_response(
    head: &Bytes,
    limits: &Limits,
) -> Result<(Response<()>, Option<OriginalNames>), Error> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut fields);
    match parsed.parse(head).map_err(|e| parse_error(e, limits))? {
        httparse::Status::Complete(n) if n == head.len() => {}
        _ => return Err(Error::Syntax("incomplete head")),
    }
    let (Some(code), Some(minor)) = (parsed.code, parsed.version) else {
        return Err(Error::Syntax("incomplete status line"));
    };
    let (headers, names) = fields_of(head, parsed.headers, limits)?;
    let mut response = Response::new(());
    *response.status_mut() =
        StatusCode::from_u16(code).map_err(|_| Error::Syntax("invalid status code"))?;
    *response.version_mut() = if minor == 0 {
        Version::HTTP_10
    } else {
        Version::HTTP_11
    };
    *response.headers_mut() = headers;
    Ok((response, names))
}

fn fields_of(
    head: &Bytes,
    fields: &[httparse::Header<'_>],
    limits: &Limits,
) -> Result<(HeaderMap, Option<OriginalNames>), Error> {
    if fields.len() > limits.header_count {
        return Err(Error::TooManyHeaders(limits.header_count));
    }
    let mut headers = HeaderMap::with_capacity(fields.len() + 4);
    let mut spans = Vec::with_capacity(fields.len());
    let base = head.as_ptr().addr();
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes())
            .map_err(|_| Error::Syntax("invalid header field name"))?;
        let value = HeaderValue::from_maybe_shared(head.slice_ref(field.value))
            .map_err(|_| Error::Syntax("invalid header field value"))?;
        let at = field.name.as_ptr().addr() - base;
        if let (Ok(at), Ok(len)) = (u32::try_from(at), u16::try_from(field.name.len())) {
            spans.push((at, len));
        }
        headers.append(name, value);
    }
    let names = (!spans.is_empty()).then(|| OriginalNames {
        head: head.clone(),
        spans,
    });
    Ok((headers, names))
}

/// RFC 9112 §6.1, §6.3: what delimits a request, with everything refused that two readers could
/// read differently (HT-01, HT-03, HT-07).
fn request_len(headers: &mut HeaderMap, version: Version) -> Result<BodyLen, Error> {
    let chunked = is_chunked(headers)?;
    let length = content_length(headers)?;
    match (chunked, length) {
        (true, Some(_)) => Err(Error::Framing("both content-length and transfer-encoding")),
        (true, None) if version == Version::HTTP_10 => {
            Err(Error::Framing("transfer-encoding in HTTP/1.0"))
        }
        (true, None) => Ok(BodyLen::Chunked),
        (false, Some(n)) => Ok(BodyLen::Known(n)),
        (false, None) => Ok(BodyLen::Empty),
    }
}

/// What delimits a response to `method`, and whether the connection can be trusted after it.
pub(super) fn response_len(
    response: &mut Response<()>,
    method: &Method,
) -> Result<(BodyLen, bool), Error> {
    let status = response.status();
    let connected = *method == Method::CONNECT && status.is_success();
    let headers = response.headers_mut();
    if status.is_informational() || status == StatusCode::NO_CONTENT || connected {
        headers.remove(header::CONTENT_LENGTH);
        headers.remove(header::TRANSFER_ENCODING);
        return Ok((BodyLen::Empty, true));
    }
    if status == StatusCode::NOT_MODIFIED || *method == Method::HEAD {
        headers.remove(header::TRANSFER_ENCODING);
        return Ok((BodyLen::Empty, true));
    }
    let chunked = is_chunked(headers)?;
    if chunked {
        // A length beside it is dropped, and nobody knows what the sender takes for the next
        // message (RFC 9112 §6.3 item 3; HT-02).
        let clean = headers.remove(header::CONTENT_LENGTH).is_none();
        headers.remove(header::TRANSFER_ENCODING);
        return Ok((BodyLen::Chunked, clean));
    }
    Ok(match content_length(headers)? {
        Some(n) => (BodyLen::Known(n), true),
        None => (BodyLen::UntilClose, false),
    })
}

fn is_chunked(headers: &HeaderMap) -> Result<bool, Error> {
    let mut lines = headers.get_all(header::TRANSFER_ENCODING).iter();
    let Some(line) = lines.next() else {
        return Ok(false);
    };
    if lines.next().is_some() {
        return Err(Error::Framing("more than one transfer-encoding field"));
    }
    let value = line.as_bytes();
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(true);
    }
    let last = value.rsplit(|b| *b == b',').next().unwrap_or_default();
    let first = value.split(|b| *b == b',').next().unwrap_or_default();
    let is = |coding: &[u8]| coding.trim_ascii().eq_ignore_ascii_case(b"chunked");
    if is(last) && !is(first) {
        Err(Error::UnsupportedCoding)
    } else {
        Err(Error::Framing(
            "chunked is not the one and last transfer coding",
        ))
    }
}

/// The declared length; a list of equal ones is made one (RFC 9110 §8.6).
fn content_length(headers: &mut HeaderMap) -> Result<Option<u64>, Error> {
    let mut found: Option<u64> = None;
    let mut seen = 0;
    for line in headers.get_all(header::CONTENT_LENGTH) {
        for part in line.as_bytes().split(|b| *b == b',') {
            let digits = part.trim_ascii();
            if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
                return Err(Error::Framing("content-length is not a number"));
            }
            let number = std::str::from_utf8(digits)
                .ok()
                .and_then(|text| text.parse().ok())
                .ok_or(Error::Framing("content-length is too large"))?;
            if found.is_some_and(|before| before != number) {
                return Err(Error::Framing("content-lengths that differ"));
            }
            found = Some(number);
            seen += 1;
        }
    }
    if let Some(number) = found
        && seen > 1
    {
        headers.insert(header::CONTENT_LENGTH, number.into());
    }
    Ok(found)
}

/// Which framing fields to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

pub(super) fn write_request(
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
        out.put_slice(target.as_bytes());
    }
    out.put_slice(b" HTTP/1.1\r\n");
    write_fields(out, head.headers(), names, framing);
}

pub(super) fn write_response(
    out: &mut BytesMut,
    head: &Response<()>,
    names: Option<&OriginalNames>,
    framing: Framing,
) {
    out.put_slice(b"HTTP/1.1 ");
    out.put_slice(head.status().as_str().as_bytes());
    out.put_u8(b' ');
    out.put_slice(
        head.status()
            .canonical_reason()
            .unwrap_or_default()
            .as_bytes(),
    );
    out.put_slice(b"\r\n");
    write_fields(out, head.headers(), names, framing);
}

fn write_fields(
    out: &mut BytesMut,
    headers: &HeaderMap,
    names: Option<&OriginalNames>,
    framing: Framing,
) {
    let skip = |name: &HeaderName| {
        (*name == header::CONTENT_LENGTH && !framing.keep_length)
            || *name == header::TRANSFER_ENCODING
            || (*name == header::CONNECTION && !framing.keep_connection)
    };
    let line = |out: &mut BytesMut, name: &[u8], value: &[u8]| {
        out.reserve(name.len() + value.len() + 4);
        out.put_slice(name);
        out.put_slice(b": ");
        out.put_slice(value);
        out.put_slice(b"\r\n");
    };
    let mut length_written = false;
    let spelt: Vec<&[u8]> = names.map(|n| n.iter().collect()).unwrap_or_default();
    for (n, name) in spelt.iter().enumerate() {
        let before = spelt.get(..n).unwrap_or_default();
        if before.iter().any(|b| b.eq_ignore_ascii_case(name)) {
            continue;
        }
        let Ok(key) = HeaderName::from_bytes(name) else {
            continue;
        };
        if key == header::CONTENT_LENGTH
            && let Some(length) = framing.length
        {
            let mut digits = itoa_buffer();
            line(out, name, digits.format(length));
            length_written = true;
        }
        if !skip(&key) {
            for value in headers.get_all(&key) {
                line(out, name, value.as_bytes());
            }
        }
    }
    for (key, value) in headers {
        let text = key.as_str().as_bytes();
        if !skip(key) && !spelt.iter().any(|s| s.eq_ignore_ascii_case(text)) {
            line(out, text, value.as_bytes());
        }
    }
    if let Some(length) = framing.length
        && !length_written
    {
        let mut digits = itoa_buffer();
        line(out, b"content-length", digits.format(length));
    }
    if framing.chunked {
        line(out, b"transfer-encoding", b"chunked");
    }
    if let Some(connection) = framing.connection {
        line(out, b"connection", connection.as_bytes());
    }
    out.put_slice(b"\r\n");
}

/// Decimal digits without an allocation.
struct Digits([u8; 20], usize);

const fn itoa_buffer() -> Digits {
    Digits([0; 20], 0)
}

impl Digits {
    fn format(&mut self, number: u64) -> &[u8] {
        let mut rest = &mut self.0[..];
        // Twenty digits hold every u64.
        let written = write!(rest, "{number}").is_ok();
        self.1 = if written { 20 - rest.len() } else { 0 };
        self.0.get(..self.1).unwrap_or_default()
    }
}

pub(super) fn write_trailers(out: &mut BytesMut, trailers: &HeaderMap) {
    for (name, value) in trailers {
        out.reserve(name.as_str().len() + value.len() + 4);
        out.put_slice(name.as_str().as_bytes());
        out.put_slice(b": ");
        out.put_slice(value.as_bytes());
        out.put_slice(b"\r\n");
    }
    out.put_slice(b"\r\n");
}

/// Trailer fields; those that may not stand in trailers (RFC 9110 §6.5.1) are dropped.
pub(super) fn parse_trailers(block: &Bytes, limits: &Limits) -> Result<HeaderMap, Error> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let parsed = httparse::parse_headers(block, &mut fields).map_err(|e| parse_error(e, limits))?;
    let httparse::Status::Complete((_, fields)) = parsed else {
        return Err(Error::Syntax("incomplete trailers"));
    };
    let (mut trailers, _) = fields_of(block, fields, limits)?;
    for name in [
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::HOST,
        header::CONNECTION,
        header::TE,
        header::TRAILER,
        header::CONTENT_ENCODING,
        header::CONTENT_TYPE,
        header::AUTHORIZATION,
        header::SET_COOKIE,
    ] {
        trailers.remove(name);
    }
    Ok(trailers)
}

//! Start lines and fields, read.

use std::mem::MaybeUninit;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header,
};
use memchr::memchr3;

use super::{BodyLen, Error, Limits, MAX_HEADERS, OriginalNames, framing, target};

/// A request's head.
#[derive(Debug)]
pub struct RequestHead {
    pub head: Request<()>,
    pub len: BodyLen,
    pub names: Option<OriginalNames>,
}

/// Fields that the proxy adds to a head without growing its map.
const ROOM: usize = 4;

type Slots<'a> = [MaybeUninit<httparse::Header<'a>>; MAX_HEADERS];

/// Length of the head at the start of `bytes`, looking from `from` on; `None` when it is not whole.
///
/// A line end is CRLF and nothing else: a bare CR or LF means different things to different
/// readers (RFC 9112 §2.2; HT-06).
pub(super) fn find_end(bytes: &[u8], from: usize) -> Result<Option<usize>, Error> {
    let mut at = from.saturating_sub(3);
    while let Some(rest) = bytes.get(at..) {
        let Some(found) = memchr3(b'\r', b'\n', 0, rest) else {
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
    let mut slots: Slots<'_> = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut []);
    match parsed.parse_with_uninit_headers(head, &mut slots) {
        Ok(httparse::Status::Complete(n)) if n == head.len() => {}
        Ok(_) => return Err(Error::Syntax("incomplete head")),
        // Said of any tail of the line, as of a target with a space in it.
        Err(httparse::Error::Version) if !names_a_version(head) => {
            return Err(Error::Syntax("invalid request line"));
        }
        Err(error) => return Err(parse_error(error, limits)),
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
    for field in parsed.headers.iter() {
        check_coding_space(head, field)?;
    }
    let (mut headers, names) = fields_of(head, parsed.headers, limits)?;
    let version = version_of(minor);
    target::check_host(&headers, version)?;
    let uri = target::of(head, target, &method, &mut headers)?;
    let len = framing::request_len(&mut headers, version)?;
    if version == Version::HTTP_10 {
        // It has no protocol switch (RFC 9110 §7.8).
        headers.remove(header::UPGRADE);
    }
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.version_mut() = version;
    *request.headers_mut() = headers;
    Ok(RequestHead {
        head: request,
        len,
        names: Some(names),
    })
}

/// Whether the first line has three parts, of which the last is a version of HTTP.
fn names_a_version(head: &[u8]) -> bool {
    let line = head.split(|b| *b == b'\r').next().unwrap_or_default();
    let mut parts = line.splitn(3, |b| *b == b' ');
    matches!(
        (parts.next(), parts.next(), parts.next()),
        (Some([_, ..]), Some([_, ..]), Some([b'H', b'T', b'T', b'P', b'/', major, b'.', minor]))
            if major.is_ascii_digit() && minor.is_ascii_digit()
    )
}

const fn version_of(minor: u8) -> Version {
    if minor == 0 {
        Version::HTTP_10
    } else {
        Version::HTTP_11
    }
}

/// A tab beside the coding is allowed by the grammar, used by nobody but smugglers, and seen by
/// some servers as part of the value (HT-03).
fn check_coding_space(head: &[u8], field: &httparse::Header<'_>) -> Result<(), Error> {
    if field.name.len() != 17
        || !field
            .name
            .eq_ignore_ascii_case(header::TRANSFER_ENCODING.as_str())
    {
        return Ok(());
    }
    let at = field
        .value
        .as_ptr()
        .addr()
        .wrapping_sub(head.as_ptr().addr());
    let before = head.get(at.wrapping_sub(1));
    let after = head.get(at.wrapping_add(field.value.len()));
    if before == Some(&b'\t') || after == Some(&b'\t') {
        return Err(Error::Framing("tab beside the transfer coding"));
    }
    Ok(())
}

/// A response head.
pub(super) fn parse_response(
    head: &Bytes,
    limits: &Limits,
) -> Result<(Response<()>, OriginalNames), Error> {
    let mut slots: Slots<'_> = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    match config.parse_response_with_uninit_headers(&mut parsed, head, &mut slots) {
        Ok(httparse::Status::Complete(n)) if n == head.len() => {}
        Ok(_) => return Err(Error::Syntax("incomplete head")),
        Err(error) => return Err(parse_error(error, limits)),
    }
    let (Some(code), Some(minor)) = (parsed.code, parsed.version) else {
        return Err(Error::Syntax("incomplete status line"));
    };
    let status = StatusCode::from_u16(code).map_err(|_| Error::Syntax("invalid status code"))?;
    let (headers, mut names) = fields_of(head, parsed.headers, limits)?;
    names.set_reason(status, parsed.reason.unwrap_or_default());
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.version_mut() = version_of(minor);
    *response.headers_mut() = headers;
    Ok((response, names))
}

fn fields_of(
    head: &Bytes,
    fields: &[httparse::Header<'_>],
    limits: &Limits,
) -> Result<(HeaderMap, OriginalNames), Error> {
    if fields.len() > limits.header_count {
        return Err(Error::TooManyHeaders(limits.header_count));
    }
    let mut headers = HeaderMap::with_capacity(fields.len() + ROOM);
    let mut names = OriginalNames::new(head, fields.len());
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes())
            .map_err(|_| Error::Syntax("invalid header field name"))?;
        let value = HeaderValue::from_maybe_shared(head.slice_ref(field.value))
            .map_err(|_| Error::Syntax("invalid header field value"))?;
        names.push(field.name, headers.append(name, value));
    }
    Ok((headers, names))
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

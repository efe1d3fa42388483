//! Where a body ends (RFC 9112 §6). Strict: what two readers could delimit differently is how
//! requests are smuggled.

use http::{HeaderMap, Method, Response, StatusCode, Version, header};

use super::{BodyLen, Error};

/// What delimits a request (HT-01, HT-03, HT-07). A `content-length` said twice is made one.
pub(super) fn request_len(headers: &mut HeaderMap, version: Version) -> Result<BodyLen, Error> {
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
/// Fields that do not describe a body are removed.
pub(super) fn response_len(
    response: &mut Response<()>,
    method: &Method,
) -> Result<(BodyLen, bool), Error> {
    let status = response.status();
    let old = response.version() == Version::HTTP_10;
    let connected = *method == Method::CONNECT && status.is_success();
    let headers = response.headers_mut();
    if status.is_informational() || status == StatusCode::NO_CONTENT || connected {
        headers.remove(header::CONTENT_LENGTH);
        headers.remove(header::TRANSFER_ENCODING);
        return Ok((BodyLen::Empty, true));
    }
    let bodiless = status == StatusCode::NOT_MODIFIED || *method == Method::HEAD;
    if is_chunked(headers)? {
        // A length beside it is dropped, and nobody knows what the sender takes for the next
        // message (RFC 9112 §6.3 item 3; HT-02). In HTTP/1.0 the coding itself is faulty (§6.1).
        let length = headers.remove(header::CONTENT_LENGTH);
        headers.remove(header::TRANSFER_ENCODING);
        return Ok(if bodiless {
            (BodyLen::Empty, true)
        } else {
            (BodyLen::Chunked, length.is_none() && !old)
        });
    }
    let length = content_length(headers)?;
    Ok(match length {
        _ if bodiless => (BodyLen::Empty, true),
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
    let is = |coding: &[u8]| coding.trim_ascii().eq_ignore_ascii_case(b"chunked");
    let mut codings = value.rsplit(|b| *b == b',');
    if codings.next().is_some_and(is) && !codings.any(is) {
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

//! HTTP by its first line: `METHOD target HTTP/1.x`, or the HTTP/2 preface.

use super::{Protocol, Verdict};

/// RFC 9113 §3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Longest method considered; the longest registered one (`UPDATEREDIRECTREF`) has 17 bytes.
const MAX_METHOD: usize = 32;

pub(super) fn parse(bytes: &[u8]) -> Verdict {
    // A server may be sent an empty line before a request (RFC 9112 §2.2).
    let bytes = bytes.strip_prefix(b"\r\n").unwrap_or(bytes);
    if matches!(bytes, b"" | b"\r") {
        return Verdict::More;
    }
    if bytes.starts_with(PREFACE) {
        return Verdict::Is(Protocol::Http2);
    }
    if PREFACE.starts_with(bytes) {
        return Verdict::More;
    }
    let token = |c: &u8| c.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(c);
    let method = bytes.iter().take_while(|c| token(c)).count();
    match bytes.get(method) {
        None if method <= MAX_METHOD => return Verdict::More,
        Some(b' ') if (1..=MAX_METHOD).contains(&method) => {}
        _ => return Verdict::Is(Protocol::Opaque),
    }
    let target = bytes.get(method + 1..).unwrap_or_default();
    // Neither controls nor a line end may come before the version.
    let line = target
        .iter()
        .position(|c| *c < b' ')
        .unwrap_or(target.len());
    let (line, rest) = target.split_at(line);
    if rest.is_empty() {
        return Verdict::More;
    }
    if !rest.starts_with(b"\r") && !rest.starts_with(b"\n") {
        return Verdict::Is(Protocol::Opaque);
    }
    if line.ends_with(b" HTTP/1.1") {
        Verdict::Is(Protocol::Http11)
    } else if line.ends_with(b" HTTP/1.0") {
        Verdict::Is(Protocol::Http10)
    } else {
        Verdict::Is(Protocol::Opaque)
    }
}

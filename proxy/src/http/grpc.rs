//! gRPC over HTTP, as far as a proxy has to know it: telling such requests apart, reading the
//! status of a call, and writing one (gRPC `PROTOCOL-HTTP2.md`).

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header::CONTENT_TYPE};

/// Carries the status code of a call, in trailers or in a trailers-only header block.
pub const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// Carries the percent-encoded message of a call's status.
pub const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// Carries how long the caller is ready to wait.
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// Carries a server's word on when, or whether, to try again (gRFC A6).
pub const GRPC_RETRY_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// Status codes of gRPC that the proxy itself has to do with.
pub mod code {
    pub const OK: u32 = 0;
    pub const CANCELLED: u32 = 1;
    pub const UNKNOWN: u32 = 2;
    pub const DEADLINE_EXCEEDED: u32 = 4;
    pub const PERMISSION_DENIED: u32 = 7;
    pub const RESOURCE_EXHAUSTED: u32 = 8;
    pub const UNIMPLEMENTED: u32 = 12;
    pub const INTERNAL: u32 = 13;
    pub const UNAVAILABLE: u32 = 14;
    pub const DATA_LOSS: u32 = 15;
    pub const UNAUTHENTICATED: u32 = 16;
}

/// Whether `content_type` is that of a gRPC message: `application/grpc`, alone or followed by
/// `+codec` or parameters. gRPC-Web (`application/grpc-web…`) and Connect are not gRPC: their
/// callers read the HTTP status.
#[must_use]
pub fn is_grpc_content_type(content_type: &[u8]) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    content_type
        .split_at_checked(GRPC.len())
        .is_some_and(|(head, rest)| {
            head.eq_ignore_ascii_case(GRPC)
                && matches!(rest.first(), None | Some(b'+' | b';' | b' ' | b'\t'))
        })
}

/// Whether a message with these headers is gRPC.
#[must_use]
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .is_some_and(|value| is_grpc_content_type(value.as_bytes()))
}

/// The `grpc-status` in a header or trailer block, if there is one. A value that is no number is
/// UNKNOWN, as gRPC clients read it.
#[must_use]
pub fn status(block: &HeaderMap) -> Option<u32> {
    let value = block.get(GRPC_STATUS)?;
    let number = value.to_str().ok().and_then(|text| text.parse().ok());
    Some(number.unwrap_or(code::UNKNOWN))
}

/// The status of a finished call: from the trailers, else from the head (a trailers-only answer),
/// else from the HTTP status. A call that ends well without saying so is UNKNOWN, never OK.
#[must_use]
pub fn final_status(http: StatusCode, head: &HeaderMap, trailers: Option<&HeaderMap>) -> u32 {
    trailers
        .and_then(status)
        .or_else(|| status(head))
        .unwrap_or_else(|| from_http(http))
}

/// The code that a gRPC client derives from an HTTP status that came without a `grpc-status`
/// (gRPC `http-grpc-status-mapping.md`).
#[must_use]
pub fn from_http(http: StatusCode) -> u32 {
    match http.as_u16() {
        400 => code::INTERNAL,
        401 => code::UNAUTHENTICATED,
        403 => code::PERMISSION_DENIED,
        404 => code::UNIMPLEMENTED,
        429 | 502 | 503 | 504 => code::UNAVAILABLE,
        _ => code::UNKNOWN,
    }
}

/// The HTTP status closest to a gRPC code (`google.rpc.Code`), for callers that do not speak gRPC.
#[must_use]
pub fn to_http(code: u32) -> StatusCode {
    let number = match code {
        code::OK => 200,
        code::CANCELLED => 499,
        3 | 9 | 11 => 400,
        code::DEADLINE_EXCEEDED => 504,
        5 => 404,
        6 | 10 => 409,
        code::PERMISSION_DENIED => 403,
        code::RESOURCE_EXHAUSTED => 429,
        code::UNIMPLEMENTED => 501,
        code::UNAVAILABLE => 503,
        code::UNAUTHENTICATED => 401,
        _ => 500,
    };
    StatusCode::from_u16(number).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// `text` as a `grpc-message`: all but printable ASCII, and `%` itself, percent-encoded byte by
/// byte. At most `limit` bytes of `text` are taken, cut between characters.
#[must_use]
pub fn encode_message(text: &str, limit: usize) -> HeaderValue {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let digit = |nibble: u8| HEX.get(usize::from(nibble)).copied().unwrap_or(b'0');
    let end = text.floor_char_boundary(limit);
    let mut out = Vec::with_capacity(end);
    for &byte in text.as_bytes().iter().take(end) {
        match byte {
            b'%' | 0..0x20 | 0x7f.. => out.extend([b'%', digit(byte >> 4), digit(byte & 15)]),
            plain => out.push(plain),
        }
    }
    HeaderValue::from_bytes(&out).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)))
            .collect()
    }

    #[test]
    fn gr_01_only_grpc_itself_counts_as_grpc() {
        for yes in [
            "application/grpc",
            "application/grpc+proto",
            "application/grpc+json",
            "Application/gRPC",
            "application/grpc;charset=utf-8",
        ] {
            assert!(is_grpc(&block(&[("content-type", yes)])), "{yes}");
        }
        for no in [
            "application/grpc-web",
            "application/grpc-web+proto",
            "application/connect+proto",
            "application/proto",
            "application/grpcx",
            "text/plain",
            "",
        ] {
            assert!(!is_grpc(&block(&[("content-type", no)])), "{no}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }

    #[test]
    fn gr_07_a_call_without_a_status_is_not_a_success() {
        let none = HeaderMap::new();
        let five = block(&[("grpc-status", "5")]);
        let zero = block(&[("grpc-status", "0")]);
        let odd = block(&[("grpc-status", "five")]);
        assert_eq!(final_status(StatusCode::OK, &none, None), 2);
        assert_eq!(final_status(StatusCode::OK, &none, Some(&none)), 2);
        assert_eq!(final_status(StatusCode::OK, &none, Some(&five)), 5);
        assert_eq!(final_status(StatusCode::OK, &five, None), 5);
        assert_eq!(final_status(StatusCode::OK, &zero, Some(&five)), 5);
        assert_eq!(final_status(StatusCode::OK, &none, Some(&odd)), 2);
        assert_eq!(
            final_status(StatusCode::SERVICE_UNAVAILABLE, &none, None),
            14
        );
    }

    #[test]
    fn http_statuses_map_as_the_grpc_document_says() {
        let table = [
            (400, 13),
            (401, 16),
            (403, 7),
            (404, 12),
            (429, 14),
            (502, 14),
            (503, 14),
            (504, 14),
            (500, 2),
            (418, 2),
            (200, 2),
        ];
        for (http, grpc) in table {
            let status = StatusCode::from_u16(http).expect("a status");
            assert_eq!(from_http(status), grpc, "{http}");
        }
    }

    #[test]
    fn codes_have_a_nearest_http_status() {
        for (code, http) in [
            (0, 200),
            (1, 499),
            (4, 504),
            (5, 404),
            (13, 500),
            (14, 503),
            (99, 500),
        ] {
            assert_eq!(to_http(code), http, "{code}");
        }
        // Those that HTTP tells apart come back as they were.
        for code in [7, 12, 14, 16] {
            let again = from_http(to_http(code));
            assert_eq!(again, if code == 12 { 2 } else { code });
        }
    }

    #[test]
    fn gr_01_messages_are_percent_encoded_and_cut_between_characters() {
        assert_eq!(
            encode_message("50% off\n", 99),
            "50%25 off%0A",
            "percent and control"
        );
        assert_eq!(encode_message("é", 99), "%C3%A9");
        assert_eq!(encode_message("aé", 2), "a", "no half character");
        assert_eq!(encode_message("\u{7f}", 9), "%7F");
    }
}

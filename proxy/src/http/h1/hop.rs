//! Fields that belong to one connection and must not cross the proxy (RFC 9110 §7.6.1).

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, header};

const HOP_BY_HOP: [HeaderName; 5] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Removes the connection's own fields and every field that a `connection` line nominates, from
/// all such lines (HT-23). Call it before adding any field. `te: trailers` stays, since gRPC lives
/// on it and we do pass trailers on; framing and routing fields cannot be nominated away.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let protected = [header::HOST, header::CONTENT_LENGTH, header::TE];
    if headers.contains_key(header::CONNECTION) {
        let nominated: Vec<HeaderName> = tokens(headers, &header::CONNECTION)
            .filter_map(|token| HeaderName::from_bytes(token).ok())
            .filter(|name| !protected.contains(name))
            .collect();
        for name in nominated {
            headers.remove(name);
        }
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    if headers.contains_key(header::TE) {
        let trailers = tokens(headers, &header::TE).any(|t| t.eq_ignore_ascii_case(b"trailers"));
        if trailers {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        } else {
            headers.remove(header::TE);
        }
    }
}

/// The protocol that a message asks or agrees to switch to: an `upgrade` field that `connection`
/// announces.
#[must_use]
pub fn upgrade_token(headers: &HeaderMap) -> Option<HeaderValue> {
    tokens(headers, &header::CONNECTION)
        .any(|token| token.eq_ignore_ascii_case(b"upgrade"))
        .then(|| headers.get(header::UPGRADE).cloned())
        .flatten()
}

/// How long an endpoint says that it keeps the connection open while nothing is sent. Used longer,
/// a request races with the endpoint's close (RT-02).
#[must_use]
pub fn keep_alive_timeout(headers: &HeaderMap) -> Option<Duration> {
    let name = HeaderName::from_static("keep-alive");
    tokens(headers, &name)
        .filter_map(|token| {
            let (key, value) = std::str::from_utf8(token).ok()?.split_once('=')?;
            let named = key.trim_ascii_end().eq_ignore_ascii_case("timeout");
            let seconds = value.trim_matches([' ', '\t', '"']).parse::<u32>().ok()?;
            named.then(|| Duration::from_secs(seconds.into()))
        })
        .min()
}

/// The comma-separated members of all lines of a field.
pub(super) fn tokens<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> impl Iterator<Item = &'a [u8]> + use<'a> {
    headers
        .get_all(name)
        .into_iter()
        .flat_map(|line| line.as_bytes().split(|b| *b == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|token| !token.is_empty())
}

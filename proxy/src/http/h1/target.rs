//! Request targets and the host they name (RFC 9112 §3.2).

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Uri, Version, header};

use super::Error;

const BAD_TARGET: Error = Error::Syntax("invalid request target");

/// The target in origin form (authority form for CONNECT). One that names an authority overrules
/// `host` (RFC 9112 §3.2.2; HT-22). `host` must have been checked before.
pub(super) fn of(
    head: &Bytes,
    target: &str,
    method: &Method,
    headers: &mut HeaderMap,
) -> Result<Uri, Error> {
    // A fragment is never sent (RFC 9112 §3.2); readers differ on whether it is part of the path.
    if target.contains('#') {
        return Err(Error::Syntax("fragment in the request target"));
    }
    let uri = |part: &str| {
        Uri::from_maybe_shared(head.slice_ref(part.as_bytes())).map_err(|_| BAD_TARGET)
    };
    if *method == Method::CONNECT {
        let uri = uri(target)?;
        let authority = uri.authority().ok_or(BAD_TARGET)?;
        if uri.scheme().is_some() || uri.path_and_query().is_some() || uri.port_u16().is_none() {
            return Err(Error::Syntax("CONNECT needs host:port"));
        }
        set_host(authority.as_str(), headers)?;
        return Ok(uri);
    }
    if target.starts_with('/') || (target == "*" && *method == Method::OPTIONS) {
        return uri(target);
    }
    let whole = uri(target)?;
    let (Some("http" | "https"), Some(authority)) = (whole.scheme_str(), whole.authority()) else {
        return Err(BAD_TARGET);
    };
    set_host(authority.as_str(), headers)?;
    let after = target.split_once("://").map_or("", |(_, rest)| rest);
    let path = after.find(['/', '?']).and_then(|at| after.get(at..));
    match path {
        Some(path) if path.starts_with('/') => uri(path),
        Some(query) => format!("/{query}").parse().map_err(|_| BAD_TARGET),
        // RFC 9112 §3.2.4.
        None if *method == Method::OPTIONS => Ok(Uri::from_static("*")),
        None => Ok(Uri::from_static("/")),
    }
}

fn set_host(authority: &str, headers: &mut HeaderMap) -> Result<(), Error> {
    // `http://trusted@evil/` is there to deceive (RFC 9110 §4.2.4).
    if !valid_host(authority.as_bytes()) {
        return Err(Error::Syntax("invalid authority in the request target"));
    }
    if headers
        .get(header::HOST)
        .is_some_and(|host| host.as_bytes() == authority.as_bytes())
    {
        return Ok(());
    }
    let host = HeaderValue::from_str(authority).map_err(|_| BAD_TARGET)?;
    headers.insert(header::HOST, host);
    Ok(())
}

/// One valid `host`; HTTP/1.0 may do without (RFC 9112 §3.2).
pub(super) fn check_host(headers: &HeaderMap, version: Version) -> Result<(), Error> {
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (_, Some(_)) => Err(Error::Syntax("more than one host field")),
        (None, None) if version == Version::HTTP_11 => Err(Error::Syntax("no host field")),
        (Some(host), None) if !valid_host(host.as_bytes()) => {
            Err(Error::Syntax("invalid host field"))
        }
        _ => Ok(()),
    }
}

/// `uri-host [ ":" port ]`, by its characters: what routing could read in two ways is out.
fn valid_host(host: &[u8]) -> bool {
    let (name, port) = match host {
        [b'[', ..] => {
            let Some(end) = host.iter().position(|b| *b == b']') else {
                return false;
            };
            let (address, rest) = host.split_at(end + 1);
            let inner = address.get(1..end).unwrap_or_default();
            if !inner.iter().all(|b| is_reg_name(*b) || *b == b':') {
                return false;
            }
            match rest {
                [] => return true,
                [b':', port @ ..] => (&b""[..], port),
                _ => return false,
            }
        }
        _ => match host.iter().position(|b| *b == b':') {
            Some(at) => (
                host.get(..at).unwrap_or_default(),
                host.get(at + 1..).unwrap_or_default(),
            ),
            None => (host, &b""[..]),
        },
    };
    name.iter().all(|b| is_reg_name(*b)) && port.iter().all(u8::is_ascii_digit)
}

/// RFC 3986 §3.2.2: unreserved, percent-encoded, sub-delims.
const fn is_reg_name(b: u8) -> bool {
    b.is_ascii_alphanumeric()
        || matches!(
            b,
            b'-' | b'.'
                | b'_'
                | b'~'
                | b'%'
                | b'!'
                | b'$'
                | b'&'
                | b'\''
                | b'('
                | b')'
                | b'*'
                | b'+'
                | b','
                | b';'
                | b'='
        )
}

//! Header changes that routes ask for (Envoy `request_headers_to_add` and its siblings).
//!
//! At each level removals come before additions, and levels go from the most to the least specific,
//! so that with overwriting the least specific has the last word, as in Envoy.
//!
//! Values may hold variables, a subset of Envoy's: `%REQ(name)%`, `%REQ(name?other)%`, with an
//! optional `:length` after the bracket; `%PROTOCOL%`; `%DOWNSTREAM_REMOTE_ADDRESS%` and its
//! `_WITHOUT_PORT` form; `%%` is a percent sign. Anything else in percent signs stays as written. A
//! header whose value comes out empty is not added.

use std::{borrow::Cow, fmt::Write, net::SocketAddr};

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::table::RouteHit;
use crate::config::{
    matcher::RequestView,
    route::{AppendAction, HeaderAdd},
};

/// A value with variables filled in is cut here, so that echoing request headers cannot blow up a
/// message.
const MAX_VALUE: usize = 8 << 10;

/// What the variables in header values stand for.
#[derive(Clone, Copy, Debug)]
pub struct Vars<'a> {
    /// The address of the connection's peer.
    pub remote: SocketAddr,
    /// `HTTP/1.1` or `HTTP/2`.
    pub protocol: &'a str,
    /// The request as it came from the client.
    pub request: RequestView<'a>,
}

impl RouteHit {
    /// Changes the headers of the request that goes upstream.
    pub fn apply_to_request(&self, headers: &mut HeaderMap, vars: &Vars<'_>) {
        for mods in self.header_mods() {
            change(headers, &mods.request_remove, &mods.request_add, vars);
        }
    }

    /// Changes the headers of the response that goes back, local answers of the route included.
    pub fn apply_to_response(&self, headers: &mut HeaderMap, vars: &Vars<'_>) {
        for mods in self.header_mods() {
            change(headers, &mods.response_remove, &mods.response_add, vars);
        }
    }

    /// Whether the route changes request headers at all, so that those that came need not be kept
    /// for the variables when it does not.
    #[must_use]
    pub fn changes_request(&self) -> bool {
        self.header_mods()
            .any(|mods| !(mods.request_add.is_empty() && mods.request_remove.is_empty()))
    }

    /// Whether the route changes response headers at all, so that the request need not be kept for
    /// the variables when it does not.
    #[must_use]
    pub fn changes_response(&self) -> bool {
        self.header_mods()
            .any(|mods| !(mods.response_add.is_empty() && mods.response_remove.is_empty()))
    }
}

fn change(headers: &mut HeaderMap, remove: &[HeaderName], add: &[HeaderAdd], vars: &Vars<'_>) {
    for name in remove.iter().filter(|name| !protected(name)) {
        headers.remove(name);
    }
    for HeaderAdd { name, value, how } in add.iter().filter(|add| !protected(&add.name)) {
        let Some(value) = filled(value, vars) else {
            continue;
        };
        match how {
            AppendAction::AppendOrAdd => {
                headers.append(name, value);
            }
            AppendAction::AddIfAbsent => {
                headers.entry(name).or_insert(value);
            }
            AppendAction::OverwriteOrAdd => {
                headers.insert(name, value);
            }
            AppendAction::OverwriteIfExists => {
                if headers.contains_key(name) {
                    headers.insert(name, value);
                }
            }
        }
    }
}

/// Fields that frame a message or belong to one connection (RFC 9110 §7.6.1, RFC 9112 §6), and the
/// host, which has a rewrite of its own: the codec alone writes these. The decoder refuses them;
/// this is the second line.
fn protected(name: &HeaderName) -> bool {
    [
        header::HOST,
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::CONNECTION,
        header::UPGRADE,
        header::TE,
        header::TRAILER,
    ]
    .contains(name)
        || matches!(
            name.as_str(),
            "keep-alive" | "proxy-connection" | "http2-settings"
        )
}

/// The value with its variables filled in. Without any it is a reference count.
fn filled(value: &HeaderValue, vars: &Vars<'_>) -> Option<HeaderValue> {
    if !value.as_bytes().contains(&b'%') {
        return Some(value.clone());
    }
    let Ok(text) = value.to_str() else {
        return Some(value.clone());
    };
    let mut out = fill(text, vars);
    out.truncate(out.floor_char_boundary(MAX_VALUE));
    (!out.is_empty())
        .then(|| HeaderValue::from_str(&out).ok())
        .flatten()
}

fn fill(template: &str, vars: &Vars<'_>) -> String {
    let mut out = String::with_capacity(template.len() + 32);
    let mut rest = template;
    while let Some((before, tail)) = rest.split_once('%') {
        out.push_str(before);
        let Some((variable, after)) = tail.split_once('%') else {
            out.push('%');
            rest = tail;
            continue;
        };
        if variable.is_empty() {
            out.push('%');
        } else if let Some(value) = lookup(variable, vars) {
            out.push_str(&value);
        } else if variable.starts_with(|c: char| c.is_ascii_uppercase()) {
            // An unknown variable stays as written.
            out.extend(["%", variable, "%"]);
        } else {
            // No variable at all; the second sign may begin one.
            out.push('%');
            rest = tail;
            continue;
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// The value of a variable; `None` when there is no such variable.
fn lookup<'v>(variable: &str, vars: &Vars<'v>) -> Option<Cow<'v, str>> {
    match variable {
        "PROTOCOL" => Some(vars.protocol.into()),
        "DOWNSTREAM_REMOTE_ADDRESS" => Some(vars.remote.to_string().into()),
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => {
            let mut text = String::new();
            // Writing to a string cannot fail.
            write!(text, "{}", vars.remote.ip().to_canonical()).ok()?;
            Some(text.into())
        }
        _ => request_header(variable, vars),
    }
}

/// `REQ(name?other):length`.
fn request_header<'v>(variable: &str, vars: &Vars<'v>) -> Option<Cow<'v, str>> {
    let (names, length) = variable.strip_prefix("REQ(")?.rsplit_once(')')?;
    let limit = match length.strip_prefix(':') {
        Some(digits) => digits.parse().ok()?,
        None if length.is_empty() => usize::MAX,
        None => return None,
    };
    let value = names.split('?').find_map(|name| one_header(name, vars));
    let value = value.unwrap_or_default();
    let end = value.floor_char_boundary(limit);
    Some(value.split_at(end).0.into())
}

fn one_header<'v>(name: &str, vars: &Vars<'v>) -> Option<&'v str> {
    let request = &vars.request;
    let by_name = |name: &str| request.headers.get(name)?.to_str().ok();
    match name.to_ascii_lowercase().as_str() {
        ":path" => Some(request.path_and_query),
        ":method" => Some(request.method),
        ":authority" | "host" => Some(request.authority),
        ":scheme" => Some(request.scheme),
        other => by_name(other),
    }
}

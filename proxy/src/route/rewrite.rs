//! Changes to path and host of a forwarded request.

use http::{HeaderMap, HeaderValue, uri::PathAndQuery};
use regex::Regex;

use super::{host::split_port, matcher::rest_after, table::RouteHit};
use crate::config::route::{HostRewrite, PathMatch, PathRewrite};

/// A path may grow this much by a rewrite and not more; past it the rewrite is not done. Envoy's
/// and our limit for a request head is 60 KiB.
const MAX_PATH: usize = 60 << 10;

/// What `host` / `:authority` becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostHeader {
    Keep,
    Set(HeaderValue),
    /// The hostname of the endpoint that will be chosen, if it has one.
    OfEndpoint,
}

impl RouteHit {
    /// The path and query that go upstream when the route rewrites them; `None` leaves them as they
    /// are. A rewrite whose result is no path is not done.
    #[must_use]
    pub fn rewritten_path(&self, path_and_query: &str) -> Option<PathAndQuery> {
        let rewrite = self.forward()?.path_rewrite.as_ref()?;
        let (path, query) = split_query(path_and_query);
        let mut new = match rewrite {
            PathRewrite::Prefix(text) => replace_prefix(&self.route.matcher.path, path, text)?,
            PathRewrite::Regex {
                pattern,
                substitution,
            } => replace_regex(pattern, substitution, path)?,
        };
        if new.starts_with('/') {
            new.push_str(query);
        } else {
            new = format!("/{new}{query}");
        }
        PathAndQuery::try_from(new).ok()
    }

    /// What the route does to the host.
    #[must_use]
    pub fn host_header(&self, headers: &HeaderMap) -> HostHeader {
        match self.host_rewrite() {
            None => HostHeader::Keep,
            Some(HostRewrite::Literal(host)) => HostHeader::Set(host.clone()),
            Some(HostRewrite::Endpoint) => HostHeader::OfEndpoint,
            Some(HostRewrite::Header(name)) => headers
                .get(name)
                .filter(|value| !value.is_empty())
                .map_or(HostHeader::Keep, |value| HostHeader::Set(value.clone())),
        }
    }
}

/// The host of a mirrored request: Envoy marks it with `-shadow`, before the port.
#[must_use]
pub(super) fn shadow_host(authority: &str) -> String {
    match split_port(authority) {
        Some((host, port)) => format!("{host}-shadow:{port}"),
        None => format!("{authority}-shadow"),
    }
}

impl crate::config::route::Mirror {
    /// The host of the mirrored request when it differs from the original one.
    #[must_use]
    pub fn host(&self, authority: &str) -> Option<HeaderValue> {
        if self.keep_host {
            return None;
        }
        HeaderValue::try_from(shadow_host(authority)).ok()
    }
}

/// Splits at the first `?`, which stays with the query.
pub(super) fn split_query(path_and_query: &str) -> (&str, &str) {
    let at = path_and_query.find('?').unwrap_or(path_and_query.len());
    path_and_query.split_at(at)
}

/// `path` with what the route's matcher matched replaced by `new`; `None` when the matcher matches
/// no prefix of the path.
///
/// Envoy pastes texts together. Whole path elements are joined as the Gateway API wants it, with
/// exactly one slash at the seam: `/foo/bar` under prefix `/foo` becomes `/xyz/bar` with `/xyz`
/// and `/xyz/` alike, and `/foo` becomes `/xyz`. That also holds for a plain prefix that ends in a
/// slash or is followed by one. A plain prefix that ends inside an element is pasted: `/foobar`
/// under `/foo` becomes `/xyzbar`.
pub(super) fn replace_prefix(matcher: &PathMatch, path: &str, new: &str) -> Option<String> {
    let (rest, at_boundary) = match matcher {
        PathMatch::Prefix { text, ignore_case } => {
            let rest = rest_after(path, text, *ignore_case)?;
            (rest, text.ends_with('/') || rest.starts_with('/'))
        }
        PathMatch::ElementPrefix { text, ignore_case } => {
            let rest = rest_after(path, text.trim_end_matches('/'), *ignore_case)?;
            (rest, true)
        }
        // These matched the whole path.
        PathMatch::Exact { .. } | PathMatch::Regex(_) => ("", false),
        PathMatch::Connect => return None,
    };
    let joined = if at_boundary && !rest.is_empty() {
        let left = new.trim_end_matches('/');
        format!("{left}/{}", rest.strip_prefix('/').unwrap_or(rest))
    } else {
        format!("{new}{rest}")
    };
    let joined = if joined.is_empty() {
        "/".to_owned()
    } else {
        joined
    };
    (joined.len() <= MAX_PATH).then_some(joined)
}

/// Replaces every match of `pattern`; `${1}` in the substitution is a group, `$$` a dollar sign.
pub(super) fn replace_regex(pattern: &Regex, substitution: &str, path: &str) -> Option<String> {
    let mut out = String::with_capacity(path.len() + substitution.len());
    let mut end = 0;
    for groups in pattern.captures_iter(path) {
        let whole = groups.get(0)?;
        out.push_str(path.get(end..whole.start())?);
        groups.expand(substitution, &mut out);
        end = whole.end();
        if out.len() > MAX_PATH {
            return None;
        }
    }
    out.push_str(path.get(end..)?);
    (out.len() <= MAX_PATH).then_some(out)
}

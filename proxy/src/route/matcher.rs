//! Whether a request fulfils a route's conditions.

use super::path::decode;
use crate::config::{
    matcher::RequestView,
    route::{PathMatch, QueryMatch, RouteMatch},
};

/// A request, taken apart once for all the routes it is compared with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a> {
    pub(super) view: &'a RequestView<'a>,
    pub(super) path: &'a str,
    pub(super) grpc: bool,
}

/// Whether all conditions hold. The share of requests (`fraction`) is drawn last, so that it is a
/// share of the requests that match otherwise.
pub(super) fn matches(
    matcher: &RouteMatch,
    request: &Request<'_>,
    rng: &mut impl rand::Rng,
) -> bool {
    path_matches(&matcher.path, request)
        && (!matcher.grpc_only || request.grpc)
        && matcher.headers.iter().all(|h| h.matches(request.view))
        && (matcher.query.is_empty() || query_matches(&matcher.query, request.view))
        && matcher.fraction.is_none_or(|share| share.hits(rng))
}

fn path_matches(matcher: &PathMatch, request: &Request<'_>) -> bool {
    let path = request.path;
    match matcher {
        PathMatch::Prefix { text, ignore_case } => rest_after(path, text, *ignore_case).is_some(),
        PathMatch::Exact { text, ignore_case } => {
            rest_after(path, text, *ignore_case).is_some_and(str::is_empty)
        }
        PathMatch::ElementPrefix { text, ignore_case } => {
            rest_after(path, text.trim_end_matches('/'), *ignore_case)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
        PathMatch::Regex(regex) => regex.is_match(path),
        PathMatch::Connect => request.view.method == "CONNECT",
    }
}

/// What follows `prefix` in `path`.
pub(super) fn rest_after<'p>(path: &'p str, prefix: &str, ignore_case: bool) -> Option<&'p str> {
    let (head, rest) = path.split_at_checked(prefix.len())?;
    let same = if ignore_case {
        head.eq_ignore_ascii_case(prefix)
    } else {
        head == prefix
    };
    same.then_some(rest)
}

/// The first value of a query parameter, as written. Its name is found as written or
/// percent-encoded; a parameter without `=` has an empty value.
pub(super) fn query_value<'q>(view: &RequestView<'q>, name: &str) -> Option<&'q str> {
    let (_, query) = view.path_and_query.split_once('?')?;
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (!pair.is_empty() && (key == name || decode(key) == name)).then_some(value)
    })
}

/// A value matches as it is written, which is all that Envoy looks at, or as what it stands for,
/// which is what people mean: `a=x%20y` is `x y`.
fn query_matches(conditions: &[QueryMatch], view: &RequestView<'_>) -> bool {
    conditions.iter().all(|condition| {
        let value = query_value(view, &condition.name);
        match (&condition.value, value) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(matcher), Some(value)) => {
                matcher.matches(value) || matcher.matches(&decode(value))
            }
        }
    })
}

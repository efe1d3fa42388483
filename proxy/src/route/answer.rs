//! Routes that answer by themselves: redirects and direct responses.

use bytes::Bytes;
use http::{HeaderValue, StatusCode};

use super::{
    host::split_port,
    rewrite::{replace_prefix, replace_regex, split_query},
    table::RouteHit,
};
use crate::config::{
    matcher::RequestView,
    route::{Action, PathMatch, Redirect, RedirectPath},
};

/// An answer that needs no upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: StatusCode,
    /// `location` of a redirect.
    pub location: Option<HeaderValue>,
    pub body: Bytes,
}

impl RouteHit {
    /// The route's own answer, if it does not forward.
    #[must_use]
    pub fn answer(&self, request: &RequestView<'_>) -> Option<Answer> {
        match &self.route.action {
            Action::Forward(_) => None,
            Action::Redirect(redirect) => {
                let target = location(redirect, &self.route.matcher.path, request);
                let location = target.and_then(|text| HeaderValue::try_from(text).ok());
                // What cannot be written as a location must not become a redirect to nowhere.
                let status = match location {
                    Some(_) => redirect.status,
                    None => StatusCode::BAD_REQUEST,
                };
                Some(Answer {
                    status,
                    location,
                    body: Bytes::new(),
                })
            }
            Action::Respond(direct) => Some(Answer {
                status: direct.status,
                location: None,
                body: direct.body.clone(),
            }),
        }
    }
}

/// The absolute URI that a redirect points to.
fn location(redirect: &Redirect, matcher: &PathMatch, request: &RequestView<'_>) -> Option<String> {
    let scheme = redirect.scheme.as_deref().unwrap_or(request.scheme);
    let (path, query) = split_query(request.path_and_query);
    let kept_query = if redirect.strip_query { "" } else { query };
    let (path, query) = match &redirect.path {
        None => (path.to_owned(), kept_query),
        // A query in the configuration takes the place of the request's (Envoy).
        Some(RedirectPath::Full(text)) if text.contains('?') => (text.to_string(), ""),
        Some(RedirectPath::Full(text)) => (text.to_string(), kept_query),
        Some(RedirectPath::Prefix(text)) => (replace_prefix(matcher, path, text)?, kept_query),
        Some(RedirectPath::Regex {
            pattern,
            substitution,
        }) => (replace_regex(pattern, substitution, path)?, kept_query),
    };
    let authority = authority(redirect, scheme, request);
    let slash = if path.starts_with('/') { "" } else { "/" };
    Some(format!("{scheme}://{authority}{slash}{path}{query}"))
}

/// Host and port of a redirect. Without a configured host it is the request's; its port is kept
/// only while the scheme stays, since the port of one scheme is not that of another (Gateway API:
/// a new scheme means its well-known port). A port that the scheme implies is not written.
fn authority(redirect: &Redirect, scheme: &str, request: &RequestView<'_>) -> String {
    let (own_host, own_port) = split_port(request.authority)
        .map_or((request.authority, None), |(host, port)| (host, Some(port)));
    let same_scheme = scheme.eq_ignore_ascii_case(request.scheme);
    let (host, kept) = match &redirect.host {
        Some(host) => (&**host, None),
        None => (own_host, own_port.filter(|_| same_scheme)),
    };
    let port = match redirect.port {
        Some(port) => Some(port),
        None => kept.and_then(|digits| digits.parse().ok()),
    };
    match port {
        Some(port) if Some(port) != default_port(scheme) => format!("{host}:{port}"),
        _ => host.to_owned(),
    }
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

//! Conditions of rules, and which of them goes first.

use std::cmp::Reverse;

use outrigger_proto::envoy::{
    config::route::v3::{
        HeaderMatcher, QueryParameterMatcher, RouteMatch,
        query_parameter_matcher::QueryParameterMatchSpecifier,
        route_match::{GrpcRouteMatchOptions, PathSpecifier},
    },
    r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern},
};

use crate::{
    model::{GrpcMatch, GrpcMethod, HttpMatch, PathKind, ValueKind, ValueMatch},
    translate::text::{compared_header as header, regex, string},
};

/// The order in which routes are asked, as the Gateway API has it for matches: exact paths, then
/// the longest prefix, then a method, then the most headers, then the most query parameters. Regular
/// expressions, whose place it leaves open, come after exact paths.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Precedence {
    path: u8,
    length: Reverse<usize>,
    no_method: bool,
    headers: Reverse<usize>,
    queries: Reverse<usize>,
}

fn value(one: &ValueMatch) -> StringMatcher {
    string(match one.kind {
        ValueKind::Exact => MatchPattern::Exact(one.value.clone()),
        ValueKind::RegularExpression => MatchPattern::SafeRegex(regex(&one.value)),
    })
}

fn headers(all: &[ValueMatch]) -> Vec<HeaderMatcher> {
    all.iter()
        .map(|one| header(&one.name, value(one)))
        .collect()
}

/// A prefix without the slash at its end; the root is empty.
pub(super) fn bare(prefix: &str) -> &str {
    prefix.trim_end_matches('/')
}

fn prefix(value: &str) -> PathSpecifier {
    match bare(value) {
        "" => PathSpecifier::Prefix("/".to_owned()),
        bare => PathSpecifier::PathSeparatedPrefix(bare.to_owned()),
    }
}

pub(super) fn http(one: &HttpMatch) -> (Precedence, RouteMatch) {
    let (rank, length, path) = match &one.path {
        None => (2, 1, prefix("/")),
        Some(path) => match path.kind {
            PathKind::Exact => {
                let exact = PathSpecifier::Path(path.value.clone());
                (0, path.value.len(), exact)
            }
            PathKind::RegularExpression => {
                let pattern = PathSpecifier::SafeRegex(regex(&path.value));
                (1, path.value.len(), pattern)
            }
            PathKind::PathPrefix => {
                let length = bare(&path.value).len().max(1);
                (2, length, prefix(&path.value))
            }
        },
    };
    let mut conditions = headers(&one.headers);
    if let Some(method) = &one.method {
        let exact = MatchPattern::Exact(method.clone());
        conditions.insert(0, header(":method", string(exact)));
    }
    let queries = one.query_params.iter().map(|one| QueryParameterMatcher {
        name: one.name.clone(),
        query_parameter_match_specifier: Some(QueryParameterMatchSpecifier::StringMatch(value(
            one,
        ))),
    });
    let precedence = Precedence {
        path: rank,
        length: Reverse(length),
        no_method: one.method.is_none(),
        headers: Reverse(one.headers.len()),
        queries: Reverse(one.query_params.len()),
    };
    let conditions = RouteMatch {
        path_specifier: Some(path),
        headers: conditions,
        query_parameters: queries.collect(),
        ..RouteMatch::default()
    };
    (precedence, conditions)
}

pub(super) fn grpc(one: &GrpcMatch) -> (Precedence, RouteMatch) {
    let (rank, length, path) = match &one.method {
        None => (2, 1, prefix("/")),
        Some(method) => grpc_path(method),
    };
    let precedence = Precedence {
        path: rank,
        length: Reverse(length),
        no_method: one.method.as_ref().is_none_or(|m| m.method.is_none()),
        headers: Reverse(one.headers.len()),
        queries: Reverse(0),
    };
    let conditions = RouteMatch {
        path_specifier: Some(path),
        headers: headers(&one.headers),
        grpc: Some(GrpcRouteMatchOptions {}),
        ..RouteMatch::default()
    };
    (precedence, conditions)
}

/// gRPC's paths are `/<service>/<method>`.
fn grpc_path(method: &GrpcMethod) -> (u8, usize, PathSpecifier) {
    let (service, name) = (method.service.as_deref(), method.method.as_deref());
    let any = "[^/]+";
    match (method.kind, service, name) {
        (ValueKind::Exact, Some(service), Some(name)) => {
            let path = format!("/{service}/{name}");
            (0, path.len(), PathSpecifier::Path(path))
        }
        (ValueKind::Exact, Some(service), None) => {
            let path = format!("/{service}");
            (2, path.len(), PathSpecifier::PathSeparatedPrefix(path))
        }
        (ValueKind::Exact, None, name) => {
            let name = regex::escape(name.unwrap_or_default());
            let path = format!("/{any}/{name}");
            (1, path.len(), PathSpecifier::SafeRegex(regex(&path)))
        }
        (ValueKind::RegularExpression, service, name) => {
            let (service, name) = (service.unwrap_or(any), name.unwrap_or(any));
            let path = format!("/(?:{service})/(?:{name})");
            (1, path.len(), PathSpecifier::SafeRegex(regex(&path)))
        }
    }
}

//! Tests of the compiled table as a whole.

mod actions;
mod headers;
mod matching;

use std::sync::Arc;

use http::{HeaderMap, StatusCode};
use rand::SeedableRng;

use super::*;
use crate::config::{
    RouteConfig,
    matcher::RequestView,
    route::{
        Action, DirectResponse, Domain, Forward, HeaderMods, PathMatch, Route, RouteFilters,
        RouteMatch, Target, VirtualHost,
    },
};

fn rng() -> rand::rngs::StdRng {
    rand::rngs::StdRng::seed_from_u64(1)
}

fn prefix(text: &str) -> PathMatch {
    PathMatch::Prefix {
        text: text.into(),
        ignore_case: false,
    }
}

fn element(text: &str) -> PathMatch {
    PathMatch::ElementPrefix {
        text: text.into(),
        ignore_case: false,
    }
}

fn exact(text: &str) -> PathMatch {
    PathMatch::Exact {
        text: text.into(),
        ignore_case: false,
    }
}

fn on(path: PathMatch) -> RouteMatch {
    RouteMatch {
        path,
        headers: Vec::new(),
        query: Vec::new(),
        grpc_only: false,
        fraction: None,
    }
}

fn forward(target: Target) -> Forward {
    Forward {
        target,
        path_rewrite: None,
        host_rewrite: None,
        timeout: None,
        idle_timeout: None,
        max_stream_duration: None,
        grpc_timeout_max: None,
        retry: None,
        mirrors: Vec::new(),
        hash: Vec::new(),
        high_priority: false,
        cluster_not_found: StatusCode::SERVICE_UNAVAILABLE,
    }
}

fn route(name: &str, matcher: RouteMatch, action: Action) -> Arc<Route> {
    Arc::new(Route {
        name: name.into(),
        matcher,
        action,
        headers: HeaderMods::default(),
        filters: RouteFilters::default(),
    })
}

/// A route that is told apart by its name only.
fn named(name: &str, matcher: RouteMatch) -> Arc<Route> {
    let direct = DirectResponse {
        status: StatusCode::OK,
        body: bytes::Bytes::new(),
    };
    route(name, matcher, Action::Respond(Box::new(direct)))
}

fn virtual_host(routes: Vec<Arc<Route>>) -> VirtualHost {
    VirtualHost {
        name: "host".into(),
        domains: vec![Domain::Any],
        routes,
        headers: HeaderMods::default(),
        retry: None,
        filters: RouteFilters::default(),
        attempt_count_header: false,
    }
}

fn table(routes: Vec<Arc<Route>>) -> RouteTable {
    RouteTable::new(Arc::new(RouteConfig {
        name: "config".into(),
        virtual_hosts: vec![virtual_host(routes)],
        headers: HeaderMods::default(),
        ignore_port_in_host: false,
    }))
}

fn view<'a>(path_and_query: &'a str, headers: &'a HeaderMap) -> RequestView<'a> {
    RequestView {
        method: "GET",
        path_and_query,
        authority: "shop.test",
        scheme: "http",
        headers,
    }
}

/// The only route of a table with the given matcher and action, hit by `path`.
fn hit(matcher: PathMatch, action: Action, path: &str) -> RouteHit {
    let table = table(vec![route("r", on(matcher), action)]);
    table
        .hit(&view(path, &HeaderMap::new()), false, &mut rng())
        .expect("matches")
}

//! The rules of the routes that are attached to a service port, best match first.

use std::collections::BTreeMap;

use outrigger_proto::{
    any::Any,
    envoy::config::route::v3::{
        DirectResponseAction, Route, RouteAction, RouteMatch, route::Action,
        route_action::HostRewriteSpecifier,
    },
};

use super::{
    action::{self, Own, to_backends},
    changes::{self, HeaderChanges, NewPath},
    matching::{self, Precedence},
};
use crate::{
    model::{
        BackendRef, Filter, GrpcMatch, HttpMatch, HttpRule, Object, ParentRef, PathKind, Spec,
    },
    translate::{
        Viewer, http,
        policy::Traffic,
        proto::any,
        world::{PortRef, World},
    },
};

/// What a rule of either kind comes to.
struct Rule<'r> {
    /// Namespace of the route.
    namespace: &'r str,
    name: String,
    matches: Vec<Match<'r>>,
    filters: &'r [Filter],
    backends: &'r [BackendRef],
    own: Own<'r>,
}

struct Match<'r> {
    precedence: Precedence,
    conditions: RouteMatch,
    /// The prefix that is replaced by a rewrite.
    prefix: Option<&'r str>,
}

/// Which routes a function looks at.
type Of = fn(&Spec) -> bool;

/// The routes of a sort that hold for `port` and callers like `viewer`. Routes in the caller's
/// namespace for a service of another one go before the service's own (GEP-1426: consumer routes).
pub(in crate::translate) fn chosen<'w>(
    world: &'w World,
    viewer: &Viewer,
    port: &PortRef<'w>,
    of: Of,
) -> Vec<&'w Object> {
    let attached = world.attached(port.key).iter();
    let fitting = attached.filter(|object| of(&object.spec) && is_for(object, port));
    let (own, others): (Vec<&Object>, Vec<&Object>) = fitting
        .map(AsRef::as_ref)
        .partition(|object| object.key.namespace == port.key.namespace);
    let consumer = |object: &&Object| object.key.namespace == viewer.namespace;
    let consumers: Vec<_> = others.into_iter().filter(consumer).collect();
    if consumers.is_empty() { own } else { consumers }
}

/// Whether routes of requests hold for `port`.
pub(in crate::translate) const HTTP: Of =
    |spec| matches!(spec, Spec::HttpRoute(_) | Spec::GrpcRoute(_));

/// Routes for requests to `port`; `None` if no route is attached to it.
pub(super) fn routes(world: &World, viewer: &Viewer, port: &PortRef<'_>) -> Option<Vec<Route>> {
    let chosen = chosen(world, viewer, port, HTTP);
    if chosen.is_empty() {
        return None;
    }
    let mut all = Vec::new();
    for object in chosen {
        let filters = filters(world, object);
        for rule in rules(object) {
            all.extend(rule.routes(world, port, &filters));
        }
    }
    // Stable: what is equal stays in the order of age, names and rules.
    all.sort_by(|(a, _), (b, _)| a.cmp(b));
    Some(all.into_iter().map(|(_, route)| route).collect())
}

/// What filters are told by all routes of `object`: the oldest rate limit that is aimed at it.
fn filters(world: &World, object: &Object) -> BTreeMap<String, Any> {
    let limit = world
        .attached(&object.key)
        .iter()
        .find_map(|policy| match &policy.spec {
            Spec::RateLimit(limit) => Some((&policy.key, limit)),
            _ => None,
        });
    let limit = limit.map(|(key, limit)| {
        let name = format!("{}/{}", key.namespace, key.name);
        (
            http::RATE_LIMIT.to_owned(),
            any(&http::rate_limit(&name, limit)),
        )
    });
    limit.into_iter().collect()
}

/// Whether the routes of a service depend on the namespace of who asks.
pub(in crate::translate) fn has_consumers(world: &World, port: &PortRef<'_>) -> bool {
    let attached = world.attached(port.key).iter();
    let mut others = attached.filter(|object| object.key.namespace != port.key.namespace);
    others.any(|object| is_for(object, port))
}

fn parents(object: &Object) -> &[ParentRef] {
    match &object.spec {
        Spec::HttpRoute(route) => &route.parent_refs,
        Spec::GrpcRoute(route) => &route.parent_refs,
        Spec::TlsRoute(route) => &route.parent_refs,
        Spec::TcpRoute(route) => &route.parent_refs,
        _ => &[],
    }
}

fn is_for(object: &Object, port: &PortRef<'_>) -> bool {
    parents(object).iter().any(|parent| {
        let namespace = parent.namespace.as_deref().unwrap_or(&object.key.namespace);
        namespace == port.key.namespace
            && parent.name == port.key.name
            && parent.port.is_none_or(|wanted| wanted == port.port.port)
    })
}

fn rules(object: &Object) -> Vec<Rule<'_>> {
    let namespace = object.key.namespace.as_str();
    let name = |own: Option<&String>, i: usize| {
        let own = own.cloned().unwrap_or_else(|| i.to_string());
        format!("{namespace}/{}/{own}", object.key.name)
    };
    match &object.spec {
        Spec::HttpRoute(route) => {
            let rules = route.rules.iter().enumerate();
            rules
                .map(|(i, rule)| Rule {
                    namespace,
                    name: name(rule.name.as_ref(), i),
                    matches: http_matches(rule),
                    filters: &rule.filters,
                    backends: &rule.backend_refs,
                    own: Own {
                        timeouts: rule.timeouts.as_ref(),
                        retry: rule.retry.as_ref(),
                    },
                })
                .collect()
        }
        Spec::GrpcRoute(route) => {
            let rules = route.rules.iter().enumerate();
            rules
                .map(|(i, rule)| Rule {
                    namespace,
                    name: name(rule.name.as_ref(), i),
                    matches: grpc_matches(&rule.matches),
                    filters: &rule.filters,
                    backends: &rule.backend_refs,
                    own: Own::default(),
                })
                .collect()
        }
        _ => Vec::new(),
    }
}

fn http_matches(rule: &HttpRule) -> Vec<Match<'_>> {
    if rule.matches.is_empty() {
        let (precedence, conditions) = matching::http(&HttpMatch::default());
        return vec![Match {
            precedence,
            conditions,
            prefix: Some("/"),
        }];
    }
    let each = rule.matches.iter().map(|one| {
        let (precedence, conditions) = matching::http(one);
        let prefix = match &one.path {
            None => Some("/"),
            Some(path) => (path.kind == PathKind::PathPrefix).then_some(path.value.as_str()),
        };
        Match {
            precedence,
            conditions,
            prefix,
        }
    });
    each.collect()
}

fn grpc_matches(matches: &[GrpcMatch]) -> Vec<Match<'_>> {
    let all = [GrpcMatch::default()];
    let matches = if matches.is_empty() { &all } else { matches };
    let each = matches.iter().map(|one| {
        let (precedence, conditions) = matching::grpc(one);
        Match {
            precedence,
            conditions,
            prefix: None,
        }
    });
    each.collect()
}

impl Rule<'_> {
    fn routes(
        self,
        world: &World,
        port: &PortRef<'_>,
        filters: &BTreeMap<String, Any>,
    ) -> Vec<(Precedence, Route)> {
        let traffic = Traffic::of(world, port);
        let (mut request, mut response) = (HeaderChanges::default(), HeaderChanges::default());
        for filter in self.filters {
            match filter {
                Filter::RequestHeaderModifier { modifier } => request = HeaderChanges::of(modifier),
                Filter::ResponseHeaderModifier { modifier } => {
                    response = HeaderChanges::of(modifier);
                }
                _ => {}
            }
        }
        let each = self.matches.iter().map(|one| {
            let route = Route {
                name: self.name.clone(),
                r#match: Some(one.conditions.clone()),
                action: Some(self.action(world, port, one.prefix)),
                metadata: action::metadata(&traffic),
                typed_per_filter_config: filters.clone(),
                request_headers_to_add: request.add.clone(),
                request_headers_to_remove: request.remove.clone(),
                response_headers_to_add: response.add.clone(),
                response_headers_to_remove: response.remove.clone(),
                ..Route::default()
            };
            (one.precedence.clone(), route)
        });
        each.collect()
    }

    fn action(&self, world: &World, port: &PortRef<'_>, prefix: Option<&str>) -> Action {
        for filter in self.filters {
            if let Filter::RequestRedirect { redirect } = filter {
                return Action::Redirect(changes::redirect(redirect, prefix));
            }
        }
        let action = to_backends(world, port, self.namespace, self.backends, self.own);
        match action {
            Some(Action::Route(mut action)) => {
                self.rewrite(&mut action, prefix);
                Action::Route(action)
            }
            // The Gateway API: nobody to send it to.
            _ => Action::DirectResponse(DirectResponseAction {
                status: 500,
                body: None,
            }),
        }
    }

    fn rewrite(&self, action: &mut RouteAction, prefix: Option<&str>) {
        for filter in self.filters {
            match filter {
                Filter::UrlRewrite { rewrite } => {
                    if let Some(host) = &rewrite.hostname {
                        let literal = HostRewriteSpecifier::HostRewriteLiteral(host.clone());
                        action.host_rewrite_specifier = Some(literal);
                    }
                    match rewrite.path.as_ref().map(|path| NewPath::of(path, prefix)) {
                        Some(NewPath::Prefix(new)) => action.prefix_rewrite = new,
                        Some(NewPath::Pattern(pattern)) => action.regex_rewrite = Some(pattern),
                        None => {}
                    }
                }
                Filter::RequestMirror { mirror } => {
                    let cluster = action::cluster(self.namespace, &mirror.backend_ref);
                    let mirror = changes::mirror(mirror, cluster);
                    action.request_mirror_policies.push(mirror);
                }
                _ => {}
            }
        }
    }
}

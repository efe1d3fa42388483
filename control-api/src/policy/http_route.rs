//! `HTTPRoute`: where requests to a Service go (Gateway API v1, GAMMA: attached to Services).

use serde::{Deserialize, Serialize};

use super::{
    Faults, HeaderMatch, ParentRef, PathMatch, PathMatchType, QueryParamMatch, Spec,
    http_filter::{Filter, FilterType, PathModifierType},
    matching,
    reference::names,
    units::Span,
};

/// Gateway API limits of a route.
const MAX_PARENTS: usize = 32;
const MAX_HOSTNAMES: usize = 16;
const MAX_RULES: usize = 16;
const MAX_MATCHES: usize = 64;
const MAX_ALL_MATCHES: usize = 128;
const MAX_FILTERS: usize = 16;
const MAX_BACKENDS: usize = 16;
const MAX_WEIGHT: u32 = 1_000_000;
const METHODS: [&str; 9] = [
    "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
];
/// Tries beyond this would only be a storm.
pub(super) const MAX_ATTEMPTS: u32 = 10;

/// `spec` of an `HTTPRoute`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteSpec {
    /// The Services whose callers it is for.
    pub parent_refs: Vec<ParentRef>,
    /// Not looked at: a mesh goes by the address that was dialled (GAMMA).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hostnames: Vec<String>,
    /// What is done with which requests; no rules: all requests go to the Service.
    #[serde(default)]
    pub rules: Vec<RouteRule>,
}

/// Gateway API `HTTPRouteRule`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RouteRule {
    /// By which policies and metrics name it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Any of them; empty: every request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<RouteMatch>,
    /// What is done besides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<Filter>,
    /// Where it goes; empty: to the Service that the route is attached to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backend_refs: Vec<BackendRef>,
    /// How long it may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<Timeouts>,
    /// When it is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
}

/// Gateway API `HTTPRouteMatch`: all of it must match.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RouteMatch {
    /// Absent: every path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathMatch>,
    /// All of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderMatch>,
    /// All of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub query_params: Vec<QueryParamMatch>,
    /// Absent: every method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
}

/// Gateway API `HTTPBackendRef`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendRef {
    /// Empty for Services.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Must be `Service`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Absent: the route's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Name of the Service.
    pub name: String,
    /// Port of the Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Share relative to the others; absent: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// What is done to requests that go there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<Filter>,
}

/// Gateway API `HTTPRouteTimeouts` (GEP-1742). Zero means none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Timeouts {
    /// All of it, tries included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Span>,
    /// One try.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_request: Option<Span>,
}

/// Gateway API `HTTPRouteRetry` (GEP-1731). Failures to connect are always tried again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Retry {
    /// Statuses that are tried again, 400 to 599.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub codes: Vec<u16>,
    /// Tries after the first; absent: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// Least time between tries; it grows and is randomized.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Span>,
}

impl Spec for HttpRouteSpec {
    fn check(&self, faults: &mut Faults) {
        parents(faults, &self.parent_refs);
        let many = self.hostnames.len() > MAX_HOSTNAMES;
        faults.add_if(many, "hostnames", "must have at most 16 entries");
        faults.add_if(
            self.rules.len() > MAX_RULES,
            "rules",
            "must have at most 16 entries",
        );
        let matches: usize = self.rules.iter().map(|rule| rule.matches.len()).sum();
        let many = matches > MAX_ALL_MATCHES;
        faults.add_if(many, "rules", "must have at most 128 matches together");
        rule_names(faults, self.rules.iter().map(|rule| rule.name.as_deref()));
        faults.each("rules", &self.rules, |faults, rule| rule.check(faults));
    }
}

pub(super) fn parents(faults: &mut Faults, all: &[ParentRef]) {
    let few = (1..=MAX_PARENTS).contains(&all.len());
    faults.add_if(!few, "parentRefs", "must have 1 to 32 entries");
    faults.each("parentRefs", all, |faults, parent| parent.check(faults));
    for (i, parent) in all.iter().enumerate() {
        let again = all.iter().take(i).any(|other| other == parent);
        faults.add_if(again, &format!("parentRefs[{i}]"), "stands there twice");
    }
}

/// Gateway API: names of rules are unique in a route.
pub(super) fn rule_names<'a>(faults: &mut Faults, all: impl Iterator<Item = Option<&'a str>>) {
    let all: Vec<_> = all.collect();
    for (i, name) in all.iter().enumerate() {
        let Some(name) = name else { continue };
        let field = format!("rules[{i}].name");
        let spelt = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-.".contains(&c);
        let bad = name.is_empty() || name.len() > 253 || !name.bytes().all(spelt);
        faults.add_if(
            bad,
            &field,
            "must be lower-case letters, digits, '-' and '.'",
        );
        let again = all.iter().take(i).any(|other| *other == Some(name));
        faults.add_if(again, &field, "stands there twice");
    }
}

impl RouteRule {
    fn check(&self, faults: &mut Faults) {
        faults.add_if(
            self.matches.len() > MAX_MATCHES,
            "matches",
            "must have at most 64 entries",
        );
        faults.each("matches", &self.matches, |faults, inner| {
            inner.check(faults)
        });
        let many = self.filters.len() > MAX_FILTERS;
        faults.add_if(many, "filters", "must have at most 16 entries");
        faults.each("filters", &self.filters, |faults, filter| {
            filter.check(faults, false)
        });
        self.check_combination(faults);
        let many = self.backend_refs.len() > MAX_BACKENDS;
        faults.add_if(many, "backendRefs", "must have at most 16 entries");
        faults.each("backendRefs", &self.backend_refs, |faults, backend| {
            backend.check(faults);
        });
        faults.some("timeouts", self.timeouts.as_ref(), |faults, inner| {
            inner.check(faults)
        });
        faults.some("retry", self.retry.as_ref(), |faults, inner| {
            inner.check(faults)
        });
    }

    fn check_combination(&self, faults: &mut Faults) {
        let at = |kind| self.filters.iter().position(|filter| filter.kind == kind);
        let redirect = at(FilterType::RequestRedirect);
        if let Some(redirect) = redirect {
            let field = format!("filters[{redirect}]");
            let rewrites = at(FilterType::UrlRewrite).is_some();
            faults.add_if(rewrites, &field, "a redirect excludes a URLRewrite");
            let forwards = !self.backend_refs.is_empty();
            faults.add_if(forwards, &field, "a redirect excludes backendRefs");
        }
        for (i, filter) in self.filters.iter().enumerate() {
            let mirror = filter.kind == FilterType::RequestMirror;
            let again = self
                .filters
                .iter()
                .take(i)
                .any(|other| other.kind == filter.kind);
            let field = format!("filters[{i}].type");
            faults.add_if(again && !mirror, &field, "stands there twice");
            let prefix = filter.path().map(|path| path.kind);
            // Gateway API: there must be a prefix to replace, and one only.
            let prefixes = |m: &RouteMatch| {
                m.path
                    .as_ref()
                    .is_none_or(|path| path.kind == PathMatchType::PathPrefix)
            };
            let replaceable = self.matches.len() <= 1 && self.matches.iter().all(prefixes);
            let bad = prefix == Some(PathModifierType::ReplacePrefixMatch) && !replaceable;
            faults.add_if(
                bad,
                &format!("filters[{i}]"),
                "needs exactly one match, of type PathPrefix",
            );
        }
    }
}

impl RouteMatch {
    fn check(&self, faults: &mut Faults) {
        faults.some("path", self.path.as_ref(), |faults, path| {
            path.check(faults)
        });
        matching::headers(faults, &self.headers);
        matching::query_params(faults, &self.query_params);
        let method = self.method.as_deref();
        let bad = method.is_some_and(|method| !METHODS.contains(&method));
        faults.add_if(
            bad,
            "method",
            &format!("must be one of {}", METHODS.join(", ")),
        );
    }
}

impl BackendRef {
    pub(super) fn check(&self, faults: &mut Faults) {
        service_ref(faults, self.group.as_deref(), self.kind.as_deref());
        names(faults, self.namespace.as_deref(), &self.name);
        let given = self.port.is_some_and(|port| port != 0);
        faults.add_if(!given, "port", "must be 1 to 65535");
        let heavy = self.weight.is_some_and(|weight| weight > MAX_WEIGHT);
        faults.add_if(heavy, "weight", "must be 0 to 1000000");
        faults.each("filters", &self.filters, |faults, filter| {
            filter.check(faults, true)
        });
    }
}

pub(super) fn service_ref(faults: &mut Faults, group: Option<&str>, kind: Option<&str>) {
    let core = matches!(group.unwrap_or_default(), "" | "core" | "outrigger.dev");
    faults.add_if(!core, "group", "must be empty: backends are Services");
    faults.add_if(
        kind.unwrap_or("Service") != "Service",
        "kind",
        "must be Service",
    );
}

impl Timeouts {
    pub(super) fn check(&self, faults: &mut Faults) {
        let (Some(request), Some(backend)) = (self.request, self.backend_request) else {
            return;
        };
        let longer = !request.is_zero() && backend > request;
        faults.add_if(longer, "backendRequest", "must not be longer than request");
    }
}

impl Retry {
    pub(super) fn check(&self, faults: &mut Faults) {
        for (i, code) in self.codes.iter().enumerate() {
            let bad = !(400..=599).contains(code);
            faults.add_if(bad, &format!("codes[{i}]"), "must be 400 to 599");
        }
        let bad = self.attempts.is_some_and(|n| n == 0 || n > MAX_ATTEMPTS);
        faults.add_if(bad, "attempts", "must be 1 to 10");
        let zero = self.backoff.is_some_and(Span::is_zero);
        faults.add_if(zero, "backoff", "must be more than 0s");
    }
}

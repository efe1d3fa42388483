//! What a route may not say.

use std::collections::BTreeSet;

use super::{
    BackendRef, Filter, GrpcMatch, GrpcRouteSpec, HeaderModifier, HttpMatch, HttpRouteSpec,
    Layer4Rule, ParentRef, PathKind, PathMatch, PathModifier, Redirect, Retry, Rewrite,
    TcpRouteSpec, Timeouts, TlsRouteSpec, ValueKind, ValueMatch,
};
use crate::model::common::{Faults, is_field_value, is_token, regex_fault};

/// The Gateway API's limits.
const MAX_RULES: usize = 16;
const MAX_MATCHES: usize = 64;
const MAX_FILTERS: usize = 16;
const MAX_BACKENDS: usize = 16;
const MAX_VALUES: usize = 16;
const MAX_WEIGHT: u32 = 1_000_000;
const MAX_PATH: usize = 1_024;
const MAX_ATTEMPTS: u32 = 100;

/// Gathers faults below a path.
struct At<'f> {
    path: String,
    faults: &'f mut Faults,
}

impl At<'_> {
    fn bad(&mut self, field: &str, why: impl Into<String>) {
        let dot = if field.is_empty() { "" } else { "." };
        let path = format!("{}{dot}{field}", self.path);
        self.faults.push((path, why.into()));
    }

    fn bad_if(&mut self, wrong: bool, field: &str, why: &str) {
        if wrong {
            self.bad(field, why);
        }
    }

    fn within(&mut self, path: &str) -> At<'_> {
        At {
            path: format!("{}.{path}", self.path),
            faults: self.faults,
        }
    }
}

impl HttpRouteSpec {
    /// Everything wrong with it: path below `spec`, and why.
    #[must_use]
    pub fn faults(&self) -> Faults {
        let mut faults = Faults::new();
        parents(&self.parent_refs, &mut faults);
        count(self.rules.len(), 1, MAX_RULES, "rules", &mut faults);
        let mut names = BTreeSet::new();
        for (i, rule) in self.rules.iter().enumerate() {
            let path = format!("rules[{i}]");
            let mut at = At {
                path,
                faults: &mut faults,
            };
            if let Some(name) = &rule.name {
                at.bad_if(
                    !names.insert(name),
                    "name",
                    "must be unique among the rules",
                );
            }
            at.bad_if(
                rule.matches.len() > MAX_MATCHES,
                "matches",
                "must have at most 64 entries",
            );
            for (m, one) in rule.matches.iter().enumerate() {
                http_match(one, &mut at.within(&format!("matches[{m}]")));
            }
            let prefixes = !rule.matches.is_empty()
                && rule.matches.iter().all(|one| {
                    one.path
                        .as_ref()
                        .is_none_or(|p| p.kind == PathKind::PathPrefix)
                });
            filters(&rule.filters, prefixes || rule.matches.is_empty(), &mut at);
            backends(&rule.backend_refs, &mut at);
            let redirects = rule.filters.iter().any(is_redirect);
            at.bad_if(
                redirects && !rule.backend_refs.is_empty(),
                "backendRefs",
                "must be empty beside a RequestRedirect",
            );
            if let Some(value) = &rule.timeouts {
                timeouts(value, &mut at.within("timeouts"));
            }
            if let Some(value) = &rule.retry {
                retry(value, &mut at.within("retry"));
            }
        }
        faults
    }
}

impl GrpcRouteSpec {
    /// Everything wrong with it: path below `spec`, and why.
    #[must_use]
    pub fn faults(&self) -> Faults {
        let mut faults = Faults::new();
        parents(&self.parent_refs, &mut faults);
        count(self.rules.len(), 1, MAX_RULES, "rules", &mut faults);
        for (i, rule) in self.rules.iter().enumerate() {
            let path = format!("rules[{i}]");
            let mut at = At {
                path,
                faults: &mut faults,
            };
            at.bad_if(
                rule.matches.len() > MAX_MATCHES,
                "matches",
                "must have at most 64 entries",
            );
            for (m, one) in rule.matches.iter().enumerate() {
                grpc_match(one, &mut at.within(&format!("matches[{m}]")));
            }
            for (f, one) in rule.filters.iter().enumerate() {
                let foreign = matches!(
                    one,
                    Filter::RequestRedirect { .. } | Filter::UrlRewrite { .. }
                );
                at.bad_if(foreign, &format!("filters[{f}].type"), "is not for gRPC");
            }
            filters(&rule.filters, false, &mut at);
            backends(&rule.backend_refs, &mut at);
        }
        faults
    }
}

impl TcpRouteSpec {
    /// Everything wrong with it: path below `spec`, and why.
    #[must_use]
    pub fn faults(&self) -> Faults {
        let mut faults = Faults::new();
        parents(&self.parent_refs, &mut faults);
        layer4(&self.rules, &mut faults);
        faults
    }
}

impl TlsRouteSpec {
    /// Everything wrong with it: path below `spec`, and why.
    #[must_use]
    pub fn faults(&self) -> Faults {
        let mut faults = Faults::new();
        parents(&self.parent_refs, &mut faults);
        count(self.hostnames.len(), 1, 16, "hostnames", &mut faults);
        for (i, name) in self.hostnames.iter().enumerate() {
            let bare = name.strip_prefix("*.").unwrap_or(name);
            if !crate::model::manifest::is_dns(bare, 253) {
                faults.push((format!("hostnames[{i}]"), "must be a host name".into()));
            }
        }
        layer4(&self.rules, &mut faults);
        faults
    }
}

fn layer4(rules: &[Layer4Rule], faults: &mut Faults) {
    count(rules.len(), 1, 1, "rules", faults);
    for (i, rule) in rules.iter().enumerate() {
        let path = format!("rules[{i}]");
        let mut at = At { path, faults };
        backends(&rule.backend_refs, &mut at);
        let filtered = rule.backend_refs.iter().any(|b| !b.filters.is_empty());
        at.bad_if(filtered, "backendRefs", "must not have filters");
        let weighty = rule.backend_refs.iter().any(|b| b.weight != Some(0));
        at.bad_if(
            !weighty,
            "backendRefs",
            "must have one with a weight over 0",
        );
    }
}

fn count(n: usize, min: usize, max: usize, path: &str, faults: &mut Faults) {
    if n < min || n > max {
        faults.push((path.into(), format!("must have {min} to {max} entries")));
    }
}

fn is_redirect(filter: &Filter) -> bool {
    matches!(filter, Filter::RequestRedirect { .. })
}

fn parents(parents: &[ParentRef], faults: &mut Faults) {
    count(parents.len(), 1, 32, "parentRefs", faults);
    for (i, parent) in parents.iter().enumerate() {
        let path = format!("parentRefs[{i}]");
        let mut at = At { path, faults };
        object(&parent.group, &parent.kind, &parent.name, &mut at);
        at.bad_if(parent.port == Some(0), "port", "must be 1 to 65535");
    }
}

fn object(group: &str, kind: &str, name: &str, at: &mut At<'_>) {
    at.bad_if(kind != "Service", "kind", "must be Service");
    let ours = matches!(group, "" | "core" | "outrigger.dev");
    at.bad_if(!ours, "group", "must be empty");
    at.bad_if(name.is_empty(), "name", "must not be empty");
}

fn backends(all: &[BackendRef], at: &mut At<'_>) {
    at.bad_if(
        all.len() > MAX_BACKENDS,
        "backendRefs",
        "must have at most 16 entries",
    );
    for (i, one) in all.iter().enumerate() {
        let mut at = at.within(&format!("backendRefs[{i}]"));
        backend(one, &mut at);
        let headers = |filter: &Filter| {
            matches!(
                filter,
                Filter::RequestHeaderModifier { .. } | Filter::ResponseHeaderModifier { .. }
            )
        };
        for (f, filter) in one.filters.iter().enumerate() {
            let path = format!("filters[{f}].type");
            at.bad_if(
                !headers(filter),
                &path,
                "must change headers only for one backend",
            );
        }
        filters(&one.filters, false, &mut at);
    }
}

fn backend(one: &BackendRef, at: &mut At<'_>) {
    object(&one.group, &one.kind, &one.name, at);
    at.bad_if(
        matches!(one.port, None | Some(0)),
        "port",
        "must be 1 to 65535",
    );
    let heavy = one.weight.is_some_and(|weight| weight > MAX_WEIGHT);
    at.bad_if(heavy, "weight", "must be 0 to 1000000");
}

fn http_match(one: &HttpMatch, at: &mut At<'_>) {
    if let Some(value) = &one.path {
        path(value, &mut at.within("path"));
    }
    values(&one.headers, "headers", true, at);
    values(&one.query_params, "queryParams", false, at);
    if let Some(method) = &one.method {
        at.bad_if(!is_token(method), "method", "must be a method");
    }
}

fn path(value: &PathMatch, at: &mut At<'_>) {
    at.bad_if(
        value.value.len() > MAX_PATH,
        "value",
        "must have at most 1024 bytes",
    );
    if value.kind == PathKind::RegularExpression {
        if let Some(why) = regex_fault(&value.value) {
            at.bad("value", why);
        }
    } else {
        let odd = !value.value.starts_with('/')
            || ["//", "/./", "/../", "%2f", "%2F", "#", "?"]
                .iter()
                .any(|part| value.value.contains(part));
        at.bad_if(odd, "value", "must begin with / and be a plain path");
    }
}

fn values(all: &[ValueMatch], field: &str, headers: bool, at: &mut At<'_>) {
    at.bad_if(
        all.len() > MAX_VALUES,
        field,
        "must have at most 16 entries",
    );
    let mut names = BTreeSet::new();
    for (i, one) in all.iter().enumerate() {
        let mut at = at.within(&format!("{field}[{i}]"));
        let name = if headers {
            one.name.to_ascii_lowercase()
        } else {
            one.name.clone()
        };
        let ill = if headers {
            !is_token(&name)
        } else {
            name.is_empty()
        };
        at.bad_if(ill, "name", "must be a name");
        at.bad_if(!names.insert(name), "name", "stands there twice");
        if one.kind == ValueKind::RegularExpression
            && let Some(why) = regex_fault(&one.value)
        {
            at.bad("value", why);
        }
    }
}

fn grpc_match(one: &GrpcMatch, at: &mut At<'_>) {
    if let Some(method) = &one.method {
        let mut at = at.within("method");
        let none = method.service.is_none() && method.method.is_none();
        at.bad_if(none, "", "must name a service or a method");
        for (field, value) in [("service", &method.service), ("method", &method.method)] {
            let Some(value) = value else { continue };
            if method.kind == ValueKind::RegularExpression {
                if let Some(why) = regex_fault(value) {
                    at.bad(field, why);
                }
            } else {
                let odd = value.is_empty() || value.contains('/');
                at.bad_if(odd, field, "must be a name without /");
            }
        }
    }
    values(&one.headers, "headers", true, at);
}

fn filters(all: &[Filter], prefixes: bool, at: &mut At<'_>) {
    at.bad_if(
        all.len() > MAX_FILTERS,
        "filters",
        "must have at most 16 entries",
    );
    let mut kinds = Vec::new();
    for (i, filter) in all.iter().enumerate() {
        let mut at = at.within(&format!("filters[{i}]"));
        let kind = std::mem::discriminant(filter);
        let repeatable = matches!(filter, Filter::RequestMirror { .. });
        at.bad_if(
            kinds.contains(&kind) && !repeatable,
            "type",
            "stands there twice",
        );
        kinds.push(kind);
        match filter {
            Filter::RequestHeaderModifier { modifier: inner } => {
                modifier(inner, &mut at.within("requestHeaderModifier"));
            }
            Filter::ResponseHeaderModifier { modifier: inner } => {
                modifier(inner, &mut at.within("responseHeaderModifier"));
            }
            Filter::RequestRedirect { redirect: inner } => {
                redirect(inner, prefixes, &mut at.within("requestRedirect"));
            }
            Filter::UrlRewrite { rewrite: inner } => {
                rewrite(inner, prefixes, &mut at.within("urlRewrite"));
            }
            Filter::RequestMirror { mirror } => {
                let mut at = at.within("requestMirror");
                backend(&mirror.backend_ref, &mut at.within("backendRef"));
                let both = mirror.percent.is_some() && mirror.fraction.is_some();
                at.bad_if(both, "fraction", "must not stand beside percent");
                let over = |f: super::Fraction| f.denominator == 0 || f.numerator > f.denominator;
                at.bad_if(
                    mirror.fraction.is_some_and(over),
                    "fraction",
                    "must be at most 1",
                );
            }
        }
    }
    let rewrites = |f: &Filter| matches!(f, Filter::UrlRewrite { .. });
    let both = all.iter().any(is_redirect) && all.iter().any(rewrites);
    at.bad_if(both, "filters", "must not both redirect and rewrite");
}

/// Headers that carry the message's framing or its target.
const UNTOUCHABLE: [&str; 7] = [
    "host",
    "connection",
    "content-length",
    "transfer-encoding",
    "upgrade",
    "te",
    "keep-alive",
];

fn modifier(value: &HeaderModifier, at: &mut At<'_>) {
    let mut names = BTreeSet::new();
    let lists = [("set", &value.set), ("add", &value.add)];
    for (field, list) in lists {
        at.bad_if(
            list.len() > MAX_VALUES,
            field,
            "must have at most 16 entries",
        );
        for (i, header) in list.iter().enumerate() {
            let mut at = at.within(&format!("{field}[{i}]"));
            let name = header.name.to_ascii_lowercase();
            header_name(&name, "name", &mut at);
            at.bad_if(
                !is_field_value(&header.value),
                "value",
                "must be a header's value",
            );
            at.bad_if(!names.insert((field, name)), "name", "stands there twice");
        }
    }
    at.bad_if(
        value.remove.len() > MAX_VALUES,
        "remove",
        "must have at most 16 entries",
    );
    for (i, name) in value.remove.iter().enumerate() {
        header_name(&name.to_ascii_lowercase(), &format!("remove[{i}]"), at);
    }
}

fn header_name(name: &str, field: &str, at: &mut At<'_>) {
    at.bad_if(!is_token(name), field, "must be a header's name");
    at.bad_if(
        UNTOUCHABLE.contains(&name),
        field,
        "must not be a header of the connection",
    );
}

fn redirect(value: &Redirect, prefixes: bool, at: &mut At<'_>) {
    let odd = value
        .scheme
        .as_deref()
        .is_some_and(|s| !matches!(s, "http" | "https"));
    at.bad_if(odd, "scheme", "must be http or https");
    let odd = value
        .status_code
        .is_some_and(|c| !matches!(c, 301 | 302 | 303 | 307 | 308));
    at.bad_if(odd, "statusCode", "must be 301, 302, 303, 307 or 308");
    at.bad_if(value.port == Some(0), "port", "must be 1 to 65535");
    hostname(value.hostname.as_deref(), at);
    path_modifier(value.path.as_ref(), prefixes, at);
}

fn rewrite(value: &Rewrite, prefixes: bool, at: &mut At<'_>) {
    let none = value.hostname.is_none() && value.path.is_none();
    at.bad_if(none, "", "must change the hostname or the path");
    hostname(value.hostname.as_deref(), at);
    path_modifier(value.path.as_ref(), prefixes, at);
}

fn hostname(name: Option<&str>, at: &mut At<'_>) {
    let odd = name.is_some_and(|name| !crate::model::manifest::is_dns(name, 253));
    at.bad_if(odd, "hostname", "must be a host name");
}

fn path_modifier(value: Option<&PathModifier>, prefixes: bool, at: &mut At<'_>) {
    let Some(value) = value else { return };
    let new = match value {
        PathModifier::ReplaceFullPath { value } => value,
        PathModifier::ReplacePrefixMatch { value } => {
            at.bad_if(
                !prefixes,
                "path.type",
                "needs matches that are all of PathPrefix",
            );
            value
        }
    };
    let odd = !new.is_empty() && !new.starts_with('/') || new.contains(['#', '?']);
    at.bad_if(odd, "path", "must begin with / and be a plain path");
    at.bad_if(new.len() > MAX_PATH, "path", "must have at most 1024 bytes");
}

fn timeouts(value: &Timeouts, at: &mut At<'_>) {
    if let (Some(whole), Some(each)) = (value.request, value.backend_request) {
        let longer = !whole.0.is_zero() && each > whole;
        at.bad_if(longer, "backendRequest", "must not be longer than request");
    }
}

fn retry(value: &Retry, at: &mut At<'_>) {
    for (i, code) in value.codes.iter().enumerate() {
        let odd = !(400..=599).contains(code);
        at.bad_if(odd, &format!("codes[{i}]"), "must be 400 to 599");
    }
    let odd = value.attempts.is_some_and(|n| n == 0 || n > MAX_ATTEMPTS);
    at.bad_if(odd, "attempts", "must be 1 to 100");
    let odd = value.backoff.is_some_and(|b| b.0.is_zero());
    at.bad_if(odd, "backoff", "must be over 0");
}

//! `GRPCRoute`: where gRPC calls to a Service go (Gateway API v1).

use serde::{Deserialize, Serialize};

use super::{
    Faults, HeaderMatch, HeaderModifier, Mirror, ParentRef, Spec, ValueMatchType,
    http_route::{parents, rule_names, service_ref},
    matching,
    reference::names,
};

const MAX_RULES: usize = 16;
const MAX_MATCHES: usize = 64;
const MAX_FILTERS: usize = 16;
const MAX_BACKENDS: usize = 16;
const MAX_WEIGHT: u32 = 1_000_000;
/// Gateway API: names of services and methods have at most so many characters.
const MAX_METHOD: usize = 1024;

/// `spec` of a `GRPCRoute`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcRouteSpec {
    /// The Services whose callers it is for.
    pub parent_refs: Vec<ParentRef>,
    /// Not looked at: a mesh goes by the address that was dialled (GAMMA).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hostnames: Vec<String>,
    /// What is done with which calls; no rules: all calls go to the Service.
    #[serde(default)]
    pub rules: Vec<GrpcRouteRule>,
}

/// Gateway API `GRPCRouteRule`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcRouteRule {
    /// By which policies and metrics name it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Any of them; empty: every call.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<GrpcRouteMatch>,
    /// What is done besides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<GrpcFilter>,
    /// Where it goes; empty: to the Service that the route is attached to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backend_refs: Vec<GrpcBackendRef>,
}

/// Gateway API `GRPCRouteMatch`: all of it must match.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcRouteMatch {
    /// Absent: every method of every service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<GrpcMethodMatch>,
    /// All of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderMatch>,
}

/// Gateway API `GRPCMethodMatch`: a service, a method, or both.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcMethodMatch {
    /// How they are compared.
    #[serde(default, rename = "type")]
    pub kind: ValueMatchType,
    /// Full name, like `shop.v1.Cart`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Name within the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
}

/// Gateway API `GRPCRouteFilterType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum GrpcFilterType {
    /// [`GrpcFilter::request_header_modifier`].
    RequestHeaderModifier,
    /// [`GrpcFilter::response_header_modifier`].
    ResponseHeaderModifier,
    /// [`GrpcFilter::request_mirror`].
    RequestMirror,
}

/// Gateway API `GRPCRouteFilter`: the field that `type` names, and no other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcFilter {
    /// Which of the following it is.
    #[serde(rename = "type")]
    pub kind: GrpcFilterType,
    /// Changes to the call's metadata.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_header_modifier: Option<HeaderModifier>,
    /// Changes to the answer's metadata.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_header_modifier: Option<HeaderModifier>,
    /// A copy that goes elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_mirror: Option<Mirror>,
}

/// Gateway API `GRPCBackendRef`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcBackendRef {
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
    /// What is done to calls that go there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<GrpcFilter>,
}

impl Spec for GrpcRouteSpec {
    fn check(&self, faults: &mut Faults) {
        parents(faults, &self.parent_refs);
        faults.add_if(
            self.rules.len() > MAX_RULES,
            "rules",
            "must have at most 16 entries",
        );
        rule_names(faults, self.rules.iter().map(|rule| rule.name.as_deref()));
        faults.each("rules", &self.rules, |faults, rule| rule.check(faults));
    }
}

impl GrpcRouteRule {
    fn check(&self, faults: &mut Faults) {
        faults.add_if(
            self.matches.len() > MAX_MATCHES,
            "matches",
            "must have at most 64 entries",
        );
        faults.each("matches", &self.matches, |faults, inner| {
            faults.some("method", inner.method.as_ref(), |faults, m| m.check(faults));
            matching::headers(faults, &inner.headers);
        });
        filters(faults, &self.filters, false);
        let many = self.backend_refs.len() > MAX_BACKENDS;
        faults.add_if(many, "backendRefs", "must have at most 16 entries");
        faults.each("backendRefs", &self.backend_refs, |faults, backend| {
            service_ref(faults, backend.group.as_deref(), backend.kind.as_deref());
            names(faults, backend.namespace.as_deref(), &backend.name);
            let given = backend.port.is_some_and(|port| port != 0);
            faults.add_if(!given, "port", "must be 1 to 65535");
            let heavy = backend.weight.is_some_and(|weight| weight > MAX_WEIGHT);
            faults.add_if(heavy, "weight", "must be 0 to 1000000");
            filters(faults, &backend.filters, true);
        });
    }
}

fn filters(faults: &mut Faults, all: &[GrpcFilter], backend: bool) {
    faults.add_if(
        all.len() > MAX_FILTERS,
        "filters",
        "must have at most 16 entries",
    );
    for (i, filter) in all.iter().enumerate() {
        let again = all.iter().take(i).any(|other| other.kind == filter.kind);
        let mirror = filter.kind == GrpcFilterType::RequestMirror;
        faults.within(format_args!("filters[{i}]"), |faults| {
            faults.add_if(again && !mirror, "type", "stands there twice");
            faults.add_if(backend && mirror, "type", "is not possible at a backend");
            filter.check(faults);
        });
    }
}

impl GrpcFilter {
    fn check(&self, faults: &mut Faults) {
        use GrpcFilterType as T;
        let parts = [
            (
                T::RequestHeaderModifier,
                "requestHeaderModifier",
                &self.request_header_modifier,
            ),
            (
                T::ResponseHeaderModifier,
                "responseHeaderModifier",
                &self.response_header_modifier,
            ),
        ];
        for (kind, field, modifier) in parts {
            let own = kind == self.kind;
            faults.add_if(
                own && modifier.is_none(),
                field,
                "is required for this type",
            );
            faults.add_if(
                !own && modifier.is_some(),
                field,
                "does not go with this type",
            );
            faults.some(field, modifier.as_ref(), |faults, inner| {
                inner.check(faults)
            });
        }
        let (field, mirror) = ("requestMirror", self.request_mirror.as_ref());
        let own = self.kind == T::RequestMirror;
        faults.add_if(own && mirror.is_none(), field, "is required for this type");
        faults.add_if(
            !own && mirror.is_some(),
            field,
            "does not go with this type",
        );
        faults.some(field, mirror, |faults, inner| inner.check(faults));
    }
}

impl GrpcMethodMatch {
    fn check(&self, faults: &mut Faults) {
        let none = self.service.is_none() && self.method.is_none();
        faults.add_if(none, "", "must name a service, a method, or both");
        for (field, value) in [("service", &self.service), ("method", &self.method)] {
            let Some(value) = value else { continue };
            if self.kind == ValueMatchType::RegularExpression {
                matching::regex(faults, field, value, MAX_METHOD);
                continue;
            }
            let dots = field == "service";
            let spelt = |c: u8| c.is_ascii_alphanumeric() || c == b'_' || dots && c == b'.';
            let bad = value.is_empty() || value.len() > MAX_METHOD || !value.bytes().all(spelt);
            faults.add_if(bad, field, "must be a name of protobuf");
        }
    }
}

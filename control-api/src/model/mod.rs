//! The desired state: objects as people write them, checked and typed.

mod authz;
mod common;
mod manifest;
mod references;
mod route;
mod service;
mod suggest;
#[cfg(test)]
mod tests;
mod traffic;
mod workload;

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde_json::{Map, Value};

pub use authz::{Action, AuthorizationPolicySpec, Block, HeaderMatch, Operation, Rule, Source};
pub use common::{Selector, Share, Span, TargetRef, TextMatch};
pub use manifest::{DEFAULT_NAMESPACE, MAX_MANIFEST, parse_manifest, parse_object};
pub use references::dangling;
pub use route::{
    BackendRef, Filter, Fraction, GrpcMatch, GrpcMethod, GrpcRouteSpec, GrpcRule, HeaderModifier,
    HeaderValue, HttpMatch, HttpRouteSpec, HttpRule, Layer4Rule, Mirror, ParentRef, PathKind,
    PathMatch, PathModifier, Redirect, Retry, Rewrite, TcpRouteSpec, Timeouts, TlsRouteSpec,
    ValueKind, ValueMatch,
};
pub use service::{AppProtocol, Endpoint, ServicePort, ServiceSpec};
pub use traffic::{
    Backoff, BalancePolicy, BreakerScope, CircuitBreaker, Connections, GrpcProbe, HashSource,
    HealthCheck, HttpProbe, LoadBalancer, OutlierDetection, PolicyTimeouts, Retries, RetryBudget,
    TcpKeepalive, TcpProbe, TrafficPolicySpec,
};
pub use workload::{
    Abort, Delay, FaultInjectionSpec, HeaderCondition, MutualTlsSpec, RateLimitSpec, RouteRef,
    TelemetrySpec, TlsMode, TracingSpec,
};

/// What is wrong with an object, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {path}{}{why}", if path.is_empty() { "" } else { ": " })]
pub struct Invalid {
    /// `<Kind> <namespace>/<name>`, or where in the manifest it stands.
    pub object: String,
    /// The field, like `spec.ports[0].port`; empty for the object as a whole.
    pub path: String,
    /// What is wrong with it.
    pub why: String,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident($spec:ty) $name:literal $versions:expr;)*) => {
        /// The kinds of object there are.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind {
            $($(#[$doc])* $kind,)*
        }

        /// What an object says, typed.
        #[derive(Debug, Clone)]
        pub enum Spec {
            $($(#[$doc])* $kind(Arc<$spec>),)*
        }

        impl Kind {
            /// Every kind.
            pub const ALL: &[Self] = &[$(Self::$kind),*];

            /// As in `kind:`.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)*
                }
            }

            /// The `apiVersion` values that are taken for it; the first is what we write.
            #[must_use]
            pub const fn api_versions(self) -> &'static [&'static str] {
                match self {
                    $(Self::$kind => $versions,)*
                }
            }
        }

        impl Spec {
            /// Reads and checks the spec of an object of this kind; also its normal form.
            fn read(kind: Kind, spec: Value) -> Result<(Self, Value), common::Faults> {
                match kind {
                    $(Kind::$kind => manifest::read(spec, <$spec>::faults)
                        .map(|(spec, json)| (Self::$kind(Arc::new(spec)), json)),)*
                }
            }
        }
    };
}

kinds! {
    /// A service, its ports, addresses and endpoints.
    Service(ServiceSpec) "Service" OURS;
    /// Where HTTP requests go.
    HttpRoute(HttpRouteSpec) "HTTPRoute" &[GATEWAY, "gateway.networking.k8s.io/v1beta1"];
    /// Where gRPC calls go.
    GrpcRoute(GrpcRouteSpec) "GRPCRoute" &[GATEWAY];
    /// Where the application's own TLS connections go.
    TlsRoute(TlsRouteSpec) "TLSRoute" &[GATEWAY, "gateway.networking.k8s.io/v1alpha2"];
    /// Where connections go.
    TcpRoute(TcpRouteSpec) "TCPRoute" &[GATEWAY, "gateway.networking.k8s.io/v1alpha2"];
    /// How callers treat a service.
    TrafficPolicy(TrafficPolicySpec) "TrafficPolicy" OURS;
    /// Who may call.
    AuthorizationPolicy(AuthorizationPolicySpec) "AuthorizationPolicy" OURS;
    /// Whether mutual TLS is demanded.
    MutualTls(MutualTlsSpec) "MutualTLS" OURS;
    /// Faults on purpose.
    FaultInjection(FaultInjectionSpec) "FaultInjection" OURS;
    /// How many requests a workload takes.
    RateLimit(RateLimitSpec) "RateLimit" OURS;
    /// What is told of requests.
    Telemetry(TelemetrySpec) "Telemetry" OURS;
}

const OURS: &[&str] = &["outrigger.dev/v1"];
const GATEWAY: &str = "gateway.networking.k8s.io/v1";

impl Kind {
    /// By its name, in any case, in the singular or the plural; `svc` is a Service as with kubectl.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let wanted = name.to_ascii_lowercase();
        if wanted == "svc" {
            return Some(Self::Service);
        }
        Self::ALL.iter().copied().find(|kind| {
            let own = kind.as_str().to_ascii_lowercase();
            let plural = match own.strip_suffix('y') {
                Some(stem) => format!("{stem}ies"),
                None => format!("{own}s"),
            };
            wanted == own || wanted == plural
        })
    }

    /// Why a name is none of ours, with the one that may have been meant.
    #[must_use]
    pub fn unknown(name: &str) -> String {
        let known: Vec<_> = Self::ALL.iter().map(|kind| kind.as_str()).collect();
        let slip = suggest::closest(name, known.iter().copied());
        let slip = slip.map_or_else(String::new, |meant| format!("; did you mean {meant}?"));
        format!("{name:?} is not one of {}{slip}", known.join(", "))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Names an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// The namespace it is in.
    pub namespace: String,
    /// Its name, unique among those of its kind in the namespace.
    pub name: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// One object.
#[derive(Debug, Clone)]
pub struct Object {
    /// Its name.
    pub key: Key,
    /// The revision that wrote it; 0 before it is stored.
    pub revision: u64,
    /// When it was first written: of two objects the one with the lower number is the older. Our
    /// store counts revisions; a cluster counts seconds since 1970.
    pub created: u64,
    /// The whole of it as it is shown.
    pub json: Value,
    /// What it says.
    pub spec: Spec,
}

impl Object {
    /// A service that nobody wrote as one of our objects.
    #[must_use]
    pub fn service(key: Key, labels: BTreeMap<String, String>, spec: ServiceSpec) -> Self {
        let labels = labels.into_iter().map(|(name, value)| (name, value.into()));
        let json = serde_json::to_value(&spec).unwrap_or_default();
        Self {
            json: manifest::document_of(&key, labels.collect(), Map::new(), &json),
            key,
            revision: 0,
            created: 0,
            spec: Spec::Service(Arc::new(spec)),
        }
    }
}

/// All objects at one revision.
#[derive(Debug, Clone, Default)]
pub struct Objects {
    /// Counts changes.
    pub revision: u64,
    /// By name.
    pub by_key: BTreeMap<Key, Arc<Object>>,
}

impl Objects {
    /// The services with their names.
    pub fn services(&self) -> impl Iterator<Item = (&Key, &Arc<ServiceSpec>)> {
        self.by_key
            .iter()
            .filter_map(|(key, object)| match &object.spec {
                Spec::Service(service) => Some((key, service)),
                _ => None,
            })
    }

    /// What is wrong between objects that are right by themselves.
    #[must_use]
    pub fn conflicts(&self) -> Vec<Invalid> {
        let mut owners = BTreeMap::new();
        let mut found = Vec::new();
        for (key, service) in self.services() {
            for (i, address) in service.addresses.iter().enumerate() {
                for port in &service.ports {
                    let Some(owner) = owners.insert((*address, port.port), key) else {
                        continue;
                    };
                    found.push(Invalid {
                        object: key.to_string(),
                        path: format!("spec.addresses[{i}]"),
                        why: format!("{address} port {} already belongs to {owner}", port.port),
                    });
                }
            }
        }
        self.doubles(&mut found);
        found
    }

    /// Two policies of one kind for the very same target: neither could be said to hold.
    fn doubles(&self, found: &mut Vec<Invalid>) {
        let mut owners = BTreeMap::new();
        for (key, object) in &self.by_key {
            let targets = match &object.spec {
                Spec::TrafficPolicy(policy) => &policy.target_refs,
                Spec::FaultInjection(policy) => &policy.target_refs,
                _ => continue,
            };
            for (i, target) in targets.iter().enumerate() {
                let place = (key.kind, &key.namespace, &target.name, target.port);
                let Some(owner) = owners.insert(place, key) else {
                    continue;
                };
                found.push(Invalid {
                    object: key.to_string(),
                    path: format!("spec.targetRefs[{i}]"),
                    why: format!("{target} already has {owner}"),
                });
            }
        }
    }
}

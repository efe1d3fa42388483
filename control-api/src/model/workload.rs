//! Policies of workloads and small policies of Services: `MutualTLS`, `FaultInjection`,
//! `RateLimit`, `Telemetry`.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{
    Kind,
    common::{
        Faults, MAX_LIST, Selector, Share, Span, TargetRef, TextMatch, is_token, target_faults,
    },
};

/// Whether callers without mutual TLS are let in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MutualTlsSpec {
    /// Workloads; absent: all of the namespace, or, in `outrigger-system`, all of the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// For every port that is not below.
    pub mode: TlsMode,
    /// By port on which the workload listens.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<u16, TlsMode>,
}

/// See [`MutualTlsSpec`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsMode {
    /// Only mutual TLS.
    Strict,
    /// Whatever comes.
    Permissive,
}

impl Serialize for TlsMode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self {
            Self::Strict => "strict",
            Self::Permissive => "permissive",
        })
    }
}

impl<'de> Deserialize<'de> for TlsMode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.to_ascii_lowercase().as_str() {
            "strict" => Ok(Self::Strict),
            "permissive" => Ok(Self::Permissive),
            _ => Err(de::Error::custom(format!(
                "{text:?} is not one of strict, permissive"
            ))),
        }
    }
}

impl MutualTlsSpec {
    /// Everything wrong with it: path below `spec`, and why.
    #[must_use]
    pub fn faults(&self) -> Faults {
        let zero = self.ports.contains_key(&0);
        zero.then(|| ("ports.0".to_owned(), "must be 1 to 65535".to_owned()))
            .into_iter()
            .collect()
    }
}

/// Faults that callers of a Service meet on purpose.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultInjectionSpec {
    /// The Services, in the policy's namespace.
    pub target_refs: Vec<TargetRef>,
    /// Only requests with all of these headers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderCondition>,
    /// Requests wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<Delay>,
    /// Requests are answered without being sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abort: Option<Abort>,
    /// Faults at once in one proxy; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_active: Option<u32>,
}

/// A header that a request has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderCondition {
    /// Which.
    pub name: String,
    /// How it is compared.
    pub value: TextMatch,
}

/// Requests wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Delay {
    /// How long.
    pub duration: Span,
    /// Share of requests.
    pub percent: Share,
}

/// Requests are answered without being sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Abort {
    /// Status of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_status: Option<u16>,
    /// The same for gRPC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc_status: Option<u16>,
    /// Share of requests.
    pub percent: Share,
}

impl FaultInjectionSpec {
    /// Everything wrong with it: path below `spec`, and why.
    #[must_use]
    pub fn faults(&self) -> Faults {
        let mut faults = Faults::new();
        if self.target_refs.is_empty() {
            faults.push(("targetRefs".into(), "must have 1 or more entries".into()));
        }
        target_faults(&self.target_refs, &mut faults);
        for (i, header) in self.headers.iter().enumerate() {
            if !is_token(&header.name) {
                let why = "must be a header's name";
                faults.push((format!("headers[{i}].name"), why.into()));
            }
            let why = header.value.fault();
            faults.extend(why.map(|why| (format!("headers[{i}].value"), why)));
        }
        if self.delay.is_none() && self.abort.is_none() {
            faults.push((String::new(), "must have a delay or an abort".into()));
        }
        if self.delay.as_ref().is_some_and(|d| d.duration.0.is_zero()) {
            faults.push(("delay.duration".into(), "must be over 0".into()));
        }
        if let Some(abort) = &self.abort {
            if abort.http_status.is_some() == abort.grpc_status.is_some() {
                let why = "must have either httpStatus or grpcStatus";
                faults.push(("abort".into(), why.into()));
            }
            if abort.http_status.is_some_and(|s| !(200..=599).contains(&s)) {
                faults.push(("abort.httpStatus".into(), "must be 200 to 599".into()));
            }
            if abort.grpc_status.is_some_and(|s| s > 16) {
                faults.push(("abort.grpcStatus".into(), "must be 0 to 16".into()));
            }
        }
        faults
    }
}

/// A bound for the requests that one instance of a workload takes, or, for routes, that one caller
/// sends by them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimitSpec {
    /// The routes; each caller's proxy counts what it sends by all of them together. Not beside
    /// `selector`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub target_refs: Vec<RouteRef>,
    /// Workloads; absent: all of the namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// Requests in the time of `per`, over all ports.
    pub requests: u32,
    /// The time; absent: 1 s.
    #[serde(default = "second")]
    pub per: Span,
    /// Requests that may come at once; absent: `requests`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
}

/// Names a route in the policy's namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RouteRef {
    /// `gateway.networking.k8s.io`.
    #[serde(default = "gateway_group")]
    pub group: String,
    /// `HTTPRoute` or `GRPCRoute`.
    pub kind: String,
    /// The route's name.
    pub name: String,
}

fn gateway_group() -> String {
    GATEWAY_GROUP.to_owned()
}

const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

impl RouteRef {
    /// Whose kind it names; `None` if that is no route of requests.
    #[must_use]
    pub fn kind(&self) -> Option<Kind> {
        [Kind::HttpRoute, Kind::GrpcRoute]
            .into_iter()
            .find(|kind| kind.as_str() == self.kind)
    }
}

const fn second() -> Span {
    Span(std::time::Duration::from_secs(1))
}

impl RateLimitSpec {
    /// Everything wrong with it: path below `spec`, and why.
    #[must_use]
    pub fn faults(&self) -> Faults {
        let mut faults = Faults::new();
        if self.selector.is_some() && !self.target_refs.is_empty() {
            faults.push(("selector".into(), "must not stand beside targetRefs".into()));
        }
        if self.target_refs.len() > MAX_LIST {
            faults.push(("targetRefs".into(), "must have at most 1000 entries".into()));
        }
        for (i, target) in self.target_refs.iter().enumerate() {
            let mut fault = |field: &str, why: &str| {
                faults.push((format!("targetRefs[{i}].{field}"), why.to_owned()));
            };
            if target.kind().is_none() {
                fault(
                    "kind",
                    "must be HTTPRoute or GRPCRoute; workloads are chosen by selector",
                );
            }
            if target.group != GATEWAY_GROUP {
                fault("group", "must be gateway.networking.k8s.io");
            }
            if target.name.is_empty() {
                fault("name", "must not be empty");
            }
        }
        if self.requests == 0 {
            faults.push(("requests".into(), "must be over 0".into()));
        }
        if self.burst == Some(0) {
            faults.push(("burst".into(), "must be over 0".into()));
        }
        // Envoy fills buckets no faster.
        if self.per.0 < std::time::Duration::from_millis(50) {
            faults.push(("per".into(), "must be 50ms or more".into()));
        }
        faults
    }
}

/// What is told of requests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TelemetrySpec {
    /// Workloads; absent: all of the namespace, or, in `outrigger-system`, all of the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// Traces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracing: Option<TracingSpec>,
    /// Whether requests and connections have a line in the access log; absent: yes. A proxy that was
    /// started with `--access-log off` or `--access-log-scope all` does not ask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_log: Option<bool>,
}

/// Traces.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TracingSpec {
    /// Share of requests that are traced when their caller has not decided; absent: what the proxy
    /// was started with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling: Option<Share>,
}

impl TelemetrySpec {
    /// Nothing can be wrong with it that was readable.
    #[must_use]
    pub const fn faults(&self) -> Faults {
        Faults::new()
    }
}

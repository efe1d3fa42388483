//! `FaultInjection`: requests that are delayed or answered with an error on purpose, by the caller's
//! proxy.

use serde::{Deserialize, Serialize};

use super::{
    Faults, HeaderMatch, Spec, TargetRef, matching,
    reference::targets,
    units::{Percent, Span},
};

/// `spec` of a `FaultInjection`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultInjectionSpec {
    /// Services, their ports, routes or rules.
    pub target_refs: Vec<TargetRef>,
    /// Only requests that match all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderMatch>,
    /// Waits before it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<Delay>,
    /// Answers itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abort: Option<Abort>,
    /// At most so many at the same time in each proxy. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_active_faults: Option<u32>,
}

/// Waits before it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Delay {
    /// How long.
    pub fixed_delay: Span,
    /// Which share. Default: all.
    #[serde(default = "all")]
    pub percentage: Percent,
}

/// Answers itself, with exactly one of the statuses.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Abort {
    /// 200 to 599.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_status: Option<u16>,
    /// 0 to 16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc_status: Option<u32>,
    /// Which share. Default: all.
    #[serde(default = "all")]
    pub percentage: Percent,
}

const fn all() -> Percent {
    Percent::ALL
}

impl Spec for FaultInjectionSpec {
    fn check(&self, faults: &mut Faults) {
        targets(
            faults,
            &self.target_refs,
            &["Service", "HTTPRoute", "GRPCRoute"],
        );
        matching::headers(faults, &self.headers);
        let none = self.delay.is_none() && self.abort.is_none();
        faults.add_if(none, "", "must have delay, abort, or both");
        faults.some("delay", self.delay.as_ref(), |faults, delay| {
            let zero = delay.fixed_delay.is_zero();
            faults.add_if(zero, "fixedDelay", "must be more than 0s");
        });
        faults.some("abort", self.abort.as_ref(), |faults, abort| {
            let one = abort.http_status.is_some() != abort.grpc_status.is_some();
            faults.add_if(
                !one,
                "",
                "must have exactly one of httpStatus and grpcStatus",
            );
            let bad = abort
                .http_status
                .is_some_and(|code| !(200..=599).contains(&code));
            faults.add_if(bad, "httpStatus", "must be 200 to 599");
            let bad = abort.grpc_status.is_some_and(|code| code > 16);
            faults.add_if(bad, "grpcStatus", "must be 0 to 16");
        });
        let zero = self.max_active_faults == Some(0);
        faults.add_if(zero, "maxActiveFaults", "must be 1 or more");
    }
}

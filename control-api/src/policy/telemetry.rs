//! `Telemetry`: what proxies report of requests.

use serde::{Deserialize, Serialize};

use super::{Faults, Selector, Spec, units::Percent};

/// `spec` of a `Telemetry`. Without `selector` it is for every workload of its namespace; one with a
/// selector counts before one without, section by section.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TelemetrySpec {
    /// The workloads it is for, by label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// Traces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracing: Option<Tracing>,
    /// Lines in a log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_log: Option<AccessLog>,
}

/// Traces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tracing {
    /// Share of requests without a decision of their caller that is traced. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub random_sampling: Option<Percent>,
    /// No request is traced, whatever its caller decided.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disabled: bool,
}

/// Lines in a log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessLog {
    /// What a line looks like.
    #[serde(default)]
    pub format: AccessLogFormat,
    /// No lines are written.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disabled: bool,
}

/// What a line looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessLogFormat {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

impl Spec for TelemetrySpec {
    fn check(&self, faults: &mut Faults) {
        faults.some("selector", self.selector.as_ref(), |faults, inner| {
            inner.check(faults)
        });
        let none = self.tracing.is_none() && self.access_log.is_none();
        faults.add_if(none, "", "must have tracing, accessLog, or both");
        faults.some("tracing", self.tracing.as_ref(), |faults, tracing| {
            let both = tracing.disabled && tracing.random_sampling.is_some();
            faults.add_if(both, "disabled", "excludes randomSampling");
        });
    }
}

//! The policy kinds: what people may write in `spec`, typed, and what is wrong with it.
//!
//! Every kind here is a plain serde type whose unknown fields are errors, and a [`Spec`] that says
//! what serde cannot: ranges, names, and fields that exclude each other. A fault names the field
//! below `spec` and the reason.

mod authorization;
mod fault_injection;
mod grpc_route;
mod http_filter;
mod http_route;
mod matching;
mod mutual_tls;
mod reference;
mod telemetry;
mod traffic;
mod units;

#[cfg(test)]
mod tests;

use std::fmt::Display;

pub use authorization::{
    Action, AuthorizationPolicySpec, Operation, Rule as AuthorizationRule, Source,
};
pub use fault_injection::{Abort, Delay, FaultInjectionSpec};
pub use grpc_route::{
    GrpcBackendRef, GrpcFilter, GrpcFilterType, GrpcMethodMatch, GrpcRouteMatch, GrpcRouteRule,
    GrpcRouteSpec,
};
pub use http_filter::{
    Filter, FilterType, Fraction, HeaderModifier, HeaderValue, Mirror, PathModifier,
    PathModifierType, Redirect, UrlRewrite,
};
pub use http_route::{
    BackendRef, HttpRouteSpec, Retry, RouteMatch, RouteRule, Timeouts as RouteTimeouts,
};
pub use matching::{HeaderMatch, PathMatch, PathMatchType, QueryParamMatch, ValueMatchType};
pub use mutual_tls::{Mode, MutualTlsSpec, PortMode};
pub use reference::{ParentRef, Selector, TargetRef};
pub use telemetry::{AccessLog, AccessLogFormat, TelemetrySpec, Tracing};
pub use traffic::{
    Backoff, Breaker, BreakerScope, CircuitBreaker, Connections, Cookie, FailurePercentage,
    GrpcCheck, HashSource, HealthCheck, HttpCheck, KeepAlive, Limits, LoadBalancer,
    OutlierDetection, Policy, Retries, RetryBudget, SlowStart, StatusRange, SuccessRate, TcpCheck,
    Timeouts, TrafficPolicySpec,
};
pub use units::{Percent, Span};

/// The typed `spec` of an object.
pub trait Spec {
    /// Notes everything that is wrong with it.
    fn check(&self, faults: &mut Faults);

    /// Everything that is wrong with it: the field below `spec`, and why.
    fn faults(&self) -> Vec<(String, String)> {
        let mut faults = Faults::default();
        self.check(&mut faults);
        faults.found
    }
}

/// What was found wrong, while walking down an object.
#[derive(Debug, Default)]
pub struct Faults {
    at: String,
    found: Vec<(String, String)>,
}

impl Faults {
    /// Goes down into a field; a field written `[3]` joins without a dot.
    pub fn within(&mut self, field: impl Display, check: impl FnOnce(&mut Self)) {
        let length = self.at.len();
        self.at = self.path(&field.to_string());
        check(self);
        self.at.truncate(length);
    }

    /// Goes down into every item of a list.
    pub fn each<T>(&mut self, field: &str, items: &[T], mut check: impl FnMut(&mut Self, &T)) {
        for (i, item) in items.iter().enumerate() {
            self.within(format_args!("{field}[{i}]"), |faults| check(faults, item));
        }
    }

    /// Goes down into a field that may be absent.
    pub fn some<T>(&mut self, field: &str, item: Option<&T>, check: impl FnOnce(&mut Self, &T)) {
        if let Some(item) = item {
            self.within(field, |faults| check(faults, item));
        }
    }

    /// Notes a fault of a field here; an empty name means what is being looked at itself.
    pub fn add(&mut self, field: &str, why: impl Into<String>) {
        let path = self.path(field);
        self.found.push((path, why.into()));
    }

    /// Notes a fault if there is one.
    pub fn add_if(&mut self, bad: bool, field: &str, why: &str) {
        if bad {
            self.add(field, why);
        }
    }

    fn path(&self, field: &str) -> String {
        let dot = !self.at.is_empty() && !field.is_empty() && !field.starts_with('[');
        format!("{}{}{field}", self.at, if dot { "." } else { "" })
    }
}

/// Adds to serde's message about an unknown field or value the known one that looks most like it.
///
/// ```
/// use outrigger_control::policy::did_you_mean;
///
/// let message = did_you_mean("unknown field `timeuots`, expected `timeouts` or `retry`");
/// assert!(message.ends_with("; did you mean `timeouts`?"));
/// ```
#[must_use]
pub fn did_you_mean(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let unknown = message.starts_with("unknown field") || message.starts_with("unknown variant");
    let (true, Some(given)) = (unknown, quoted.next()) else {
        return message.to_owned();
    };
    let distances = quoted.map(|known| (distance(given, known), known));
    // A third of the letters wrong is a slip; more is another word.
    let close = distances.filter(|(far, known)| *far <= (known.len() / 3).max(1));
    match close.min_by_key(|(far, _)| *far) {
        Some((_, known)) => format!("{message}; did you mean `{known}`?"),
        None => message.to_owned(),
    }
}

/// Longest text that is compared; field names are shorter.
const MAX_COMPARED: usize = 64;

/// Letters to change, add, drop or swap with their neighbour, regardless of case.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.to_lowercase().chars().take(MAX_COMPARED).collect();
    let b: Vec<char> = b.to_lowercase().chars().take(MAX_COMPARED).collect();
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    let mut last = None;
    for (i, x) in a.iter().enumerate() {
        let mut next = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let at = |row: &[usize], j: usize| row.get(j).copied().unwrap_or(usize::MAX / 2);
            let mut best = (at(&row, j) + usize::from(x != y))
                .min(at(&row, j + 1) + 1)
                .min(at(&next, j) + 1);
            let swapped = j > 0 && last == Some(y) && b.get(j - 1) == Some(x);
            if swapped {
                best = best.min(at(&before, j - 1) + 1);
            }
            next.push(best);
        }
        before = std::mem::replace(&mut row, next);
        last = Some(x);
    }
    row.last().copied().unwrap_or_default()
}

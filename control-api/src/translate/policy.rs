//! Which policy holds where.

use crate::model::{
    CircuitBreaker, Connections, FaultInjectionSpec, HealthCheck, Key, LoadBalancer,
    OutlierDetection, PolicyTimeouts, Retries, Spec, TargetRef, TrafficPolicySpec,
};

use super::world::{PortRef, World};

/// The traffic policies of a service port, the more exact one first.
#[derive(Debug, Default)]
pub(super) struct Traffic<'w> {
    policies: Vec<&'w TrafficPolicySpec>,
}

impl<'w> Traffic<'w> {
    /// For callers of `port`.
    pub(super) fn of(world: &'w World, port: &PortRef<'_>) -> Self {
        let exact = |targets: &[TargetRef], exact: bool| names(targets, port, exact);
        let attached = world.attached(port.key);
        let all = attached.iter().filter_map(|object| match &object.spec {
            Spec::TrafficPolicy(policy) => Some(policy.as_ref()),
            _ => None,
        });
        let all: Vec<_> = all.collect();
        let of_port = all.iter().filter(|policy| exact(&policy.target_refs, true));
        let of_service = all
            .iter()
            .filter(|policy| exact(&policy.target_refs, false));
        Self {
            policies: of_port.chain(of_service).copied().collect(),
        }
    }

    fn section<T>(&self, of: impl Fn(&'w TrafficPolicySpec) -> Option<&'w T>) -> Option<&'w T> {
        self.policies.iter().find_map(|policy| of(policy))
    }

    pub(super) fn load_balancer(&self) -> Option<&'w LoadBalancer> {
        self.section(|policy| policy.load_balancer.as_ref())
    }

    pub(super) fn connections(&self) -> Option<&'w Connections> {
        self.section(|policy| policy.connections.as_ref())
    }

    pub(super) fn timeouts(&self) -> Option<&'w PolicyTimeouts> {
        self.section(|policy| policy.timeouts.as_ref())
    }

    pub(super) fn retries(&self) -> Option<&'w Retries> {
        self.section(|policy| policy.retries.as_ref())
    }

    pub(super) fn breaker(&self) -> Option<&'w CircuitBreaker> {
        self.section(|policy| policy.circuit_breaker.as_ref())
    }

    pub(super) fn outlier(&self) -> Option<&'w OutlierDetection> {
        self.section(|policy| policy.outlier_detection.as_ref())
    }

    pub(super) fn health_checks(&self) -> &'w [HealthCheck] {
        let with = self
            .policies
            .iter()
            .find(|policy| !policy.health_checks.is_empty());
        with.map_or(&[], |policy| policy.health_checks.as_slice())
    }
}

/// Whether one of `targets` is `port` itself, or, if not `exact`, its whole service.
fn names(targets: &[TargetRef], port: &PortRef<'_>, exact: bool) -> bool {
    let wanted = exact.then_some(port.port.port);
    targets
        .iter()
        .any(|target| target.name == port.key.name && target.port == wanted)
}

/// The faults that callers of `port` meet on purpose.
pub(super) fn faults<'w>(world: &'w World, port: &PortRef<'_>) -> Option<&'w FaultInjectionSpec> {
    let attached = world.attached(port.key);
    let of = |exact| {
        attached.iter().find_map(|object| match &object.spec {
            Spec::FaultInjection(policy) if names(&policy.target_refs, port, exact) => {
                Some(policy.as_ref())
            }
            _ => None,
        })
    };
    of(true).or_else(|| of(false))
}

/// Whether any of `targets` covers this port of this service.
pub(super) fn covers(targets: &[TargetRef], service: &Key, port: u16) -> bool {
    targets
        .iter()
        .any(|t| t.name == service.name && t.port.is_none_or(|wanted| wanted == port))
}

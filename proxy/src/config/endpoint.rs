//! The members of a cluster (Envoy `ClusterLoadAssignment`).

use std::{net::SocketAddr, sync::Arc};

use super::units::Fraction;

/// All endpoints of a cluster, in priority order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// Index is the priority: 0 is used first. Without gaps.
    pub priorities: Vec<Vec<LocalityEndpoints>>,
    /// Shares of requests to drop on purpose, by category.
    pub drops: Vec<(Arc<str>, Fraction)>,
    /// In percent; how much healthier than needed a priority counts (Envoy: 140).
    pub overprovisioning: u32,
}

/// Endpoints in one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalityEndpoints {
    pub locality: Locality,
    /// Weight among the localities of this priority; `None` when locality weighting is not used.
    pub weight: Option<u32>,
    pub endpoints: Vec<Arc<Endpoint>>,
}

/// Where something runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Locality {
    pub region: Box<str>,
    pub zone: Box<str>,
    pub sub_zone: Box<str>,
}

/// One member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub address: SocketAddr,
    /// What the control plane knows of its health.
    pub health: HealthStatus,
    /// At least 1.
    pub weight: u32,
    pub hostname: Option<Box<str>>,
    /// Active health checks go here instead of to `address`.
    pub health_check_address: Option<SocketAddr>,
    /// `envoy.transport_socket_match` metadata, which selects the TLS settings; sorted by key.
    pub transport_match: Vec<(Box<str>, Box<str>)>,
    /// `envoy.lb` metadata `hash_key` (gRFC A76), used by ring hash in place of the address.
    pub hash_key: Option<Box<str>>,
    /// Name of the workload, for metrics and traces, if the control plane told it.
    pub workload: Option<Arc<str>>,
}

/// Health as the control plane sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthStatus {
    /// Unknown counts as healthy (Envoy).
    Healthy,
    Degraded,
    Unhealthy,
    /// Takes no new requests; those in flight end.
    Draining,
}

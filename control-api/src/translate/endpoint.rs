//! Endpoints.

use std::collections::BTreeMap;

use outrigger_proto::envoy::config::{
    core::v3::Locality,
    endpoint::v3::{
        ClusterLoadAssignment, Endpoint as Member, LbEndpoint, LocalityLbEndpoints,
        lb_endpoint::HostIdentifier,
    },
};

use super::{
    proto::{address, metadata, strings},
    tls,
    world::{Instance, PortRef},
};
use crate::model::Endpoint;

/// Metadata namespace in which the proxy finds the workload behind an endpoint.
const WORKLOAD: &str = "outrigger.workload";

/// The endpoints of a service port, by zone.
pub(super) fn assignment(name: &str, port: PortRef<'_>) -> ClusterLoadAssignment {
    let mut zones: BTreeMap<&str, Vec<LbEndpoint>> = BTreeMap::new();
    for (endpoint, number) in port.endpoints() {
        let zone = endpoint.zone.as_deref().unwrap_or_default();
        let members = zones.entry(zone).or_default();
        members.push(member(&port, endpoint, number));
    }
    ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: zones
            .into_iter()
            .map(|(zone, all)| locality(zone, all))
            .collect(),
        policy: None,
    }
}

/// One endpoint alone.
pub(super) fn single(name: &str, instance: &Instance<'_>, port: u16) -> ClusterLoadAssignment {
    let one = member(&instance.port, instance.endpoint, port);
    let zone = instance.endpoint.zone.as_deref().unwrap_or_default();
    ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: vec![locality(zone, vec![one])],
        policy: None,
    }
}

fn locality(zone: &str, mut members: Vec<LbEndpoint>) -> LocalityLbEndpoints {
    // The order in which endpoints were written is no difference.
    members.sort_by_cached_key(order);
    let weights = members
        .iter()
        .filter_map(|member| member.load_balancing_weight);
    LocalityLbEndpoints {
        locality: Some(Locality {
            zone: zone.to_owned(),
            ..Locality::default()
        }),
        // gRPC passes over a locality without weight (gRFC A27).
        load_balancing_weight: Some(weights.fold(0, u32::saturating_add)),
        lb_endpoints: members,
        ..LocalityLbEndpoints::default()
    }
}

fn order(member: &LbEndpoint) -> Option<String> {
    match &member.host_identifier {
        Some(HostIdentifier::Endpoint(one)) => one.address.as_ref().map(|a| format!("{a:?}")),
        Some(HostIdentifier::EndpointName(_)) | None => None,
    }
}

fn member(port: &PortRef<'_>, endpoint: &Endpoint, number: u16) -> LbEndpoint {
    let mut about = Vec::new();
    if endpoint.in_mesh() {
        about.push((tls::MATCH_NAMESPACE.to_owned(), strings(&[tls::MODE_MESH])));
    }
    if let Some(name) = &endpoint.workload {
        let pairs = [
            ("name", name.as_str()),
            ("namespace", &port.key.namespace),
            ("service_account", port.service.account(endpoint)),
        ];
        about.push((WORKLOAD.to_owned(), strings(&pairs)));
    }
    LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Member {
            address: Some(address(endpoint.address, number)),
            ..Member::default()
        })),
        metadata: (!about.is_empty()).then(|| metadata(about)),
        load_balancing_weight: Some(endpoint.weight.unwrap_or(1)),
        ..LbEndpoint::default()
    }
}

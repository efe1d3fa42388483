//! `ClusterLoadAssignment`: the members of a cluster.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use outrigger_proto::envoy::config::{
    core::v3::{HealthStatus as Status, Metadata},
    endpoint::v3::{
        ClusterLoadAssignment, Endpoint as Member, LbEndpoint, LocalityLbEndpoints,
        cluster_load_assignment::Policy, lb_endpoint::HostIdentifier,
        locality_lb_endpoints::LbConfig,
    },
};
use prost_types::{Struct, value::Kind};

use super::{
    at::At,
    value::{Decoded, enumerated, fraction, socket_address},
};
use crate::config::endpoint::{Endpoint, Endpoints, HealthStatus, Locality, LocalityEndpoints};

/// Envoy's: a priority counts as healthy up to 140 % of the share of its healthy hosts.
const OVERPROVISIONING: u32 = 140;
/// More priorities than anybody uses; the table grows by the highest number, so it has a bound.
const MAX_PRIORITY: u32 = 128;
/// Metadata namespace that selects the TLS settings.
const TRANSPORT_MATCH: &str = "envoy.transport_socket_match";
/// Metadata namespace of the load balancer (gRFC A76).
const LB: &str = "envoy.lb";
/// Metadata namespace in which our control plane names the workload behind an endpoint.
const WORKLOAD: &str = "outrigger.workload";

pub(super) fn assignment(at: At<'_>, value: &ClusterLoadAssignment) -> Decoded<Endpoints> {
    let mut by_priority: BTreeMap<u32, Vec<LocalityEndpoints>> = BTreeMap::new();
    let mut places = HashSet::new();
    for (i, group) in value.endpoints.iter().enumerate() {
        let at = at.item("endpoints", i);
        let decoded = locality(at, group)?;
        if decoded.endpoints.is_empty() {
            continue;
        }
        at.field("priority")
            .refuse_if(group.priority > MAX_PRIORITY, "is above 128")?;
        if !places.insert((group.priority, decoded.locality.clone())) {
            return Err(at.field("locality").bad("stands twice in this priority"));
        }
        by_priority.entry(group.priority).or_default().push(decoded);
    }
    let policy = value.policy.clone().unwrap_or_default();
    Ok(Endpoints {
        priorities: without_gaps(by_priority),
        drops: drops(at.field("policy"), &policy)?,
        overprovisioning: policy.overprovisioning_factor.unwrap_or(OVERPROVISIONING),
    })
}

/// Localities in a fixed order, so that a list that was only shuffled is equal to the one before.
fn without_gaps(groups: BTreeMap<u32, Vec<LocalityEndpoints>>) -> Vec<Vec<LocalityEndpoints>> {
    let mut priorities: Vec<_> = groups.into_values().collect();
    for localities in &mut priorities {
        localities.sort_by(|a, b| a.locality.cmp(&b.locality));
    }
    priorities
}

fn drops(at: At<'_>, policy: &Policy) -> Decoded<Vec<(Arc<str>, crate::config::units::Fraction)>> {
    at.ignores("weighted_priority_health", policy.weighted_priority_health);
    let mut out = Vec::new();
    for (i, drop) in policy.drop_overloads.iter().enumerate() {
        let at = at.item("drop_overloads", i);
        let share = drop.drop_percentage.as_ref();
        let share = share.ok_or_else(|| at.field("drop_percentage").bad("is required"))?;
        let share = fraction(at.field("drop_percentage"), share)?;
        out.push((Arc::from(drop.category.as_str()), share));
    }
    Ok(out)
}

fn locality(at: At<'_>, group: &LocalityLbEndpoints) -> Decoded<LocalityEndpoints> {
    if let Some(LbConfig::LedsClusterLocalityConfig(_)) = group.lb_config {
        let at = at.field("leds_cluster_locality_config");
        return Err(at.bad("endpoints have to be in the resource itself"));
    }
    let place = group.locality.clone().unwrap_or_default();
    let mut endpoints = Vec::with_capacity(group.lb_endpoints.len());
    let mut seen = BTreeSet::new();
    for (i, member) in group.lb_endpoints.iter().enumerate() {
        let endpoint = endpoint(at.item("lb_endpoints", i), member)?;
        // Envoy takes the first of several entries for one address.
        if seen.insert(endpoint.address) {
            endpoints.push(Arc::new(endpoint));
        }
    }
    endpoints.sort_by_key(|endpoint| endpoint.address);
    Ok(LocalityEndpoints {
        locality: Locality {
            region: place.region.into(),
            zone: place.zone.into(),
            sub_zone: place.sub_zone.into(),
        },
        weight: group.load_balancing_weight,
        endpoints,
    })
}

fn endpoint(at: At<'_>, value: &LbEndpoint) -> Decoded<Endpoint> {
    let member = match &value.host_identifier {
        Some(HostIdentifier::Endpoint(member)) => member,
        Some(HostIdentifier::EndpointName(_)) => {
            return Err(at.field("endpoint_name").bad("has to be a whole endpoint"));
        }
        None => return Err(at.field("endpoint").bad("is required")),
    };
    let weight = value.load_balancing_weight.unwrap_or(1);
    at.field("load_balancing_weight")
        .refuse_if(weight == 0, "must be 1 or more")?;
    let at_member = at.field("endpoint");
    at_member.ignores(
        "additional_addresses",
        !member.additional_addresses.is_empty(),
    );
    let address = socket_address(at_member.field("address"), member.address.as_ref())?;
    let zero = address.port() == 0;
    at_member.field("address").refuse_if(zero, "needs a port")?;
    let text = |namespace, key| text(value.metadata.as_ref(), namespace, key);
    Ok(Endpoint {
        address,
        health: health(at.field("health_status"), value.health_status)?,
        weight,
        hostname: (!member.hostname.is_empty()).then(|| member.hostname.as_str().into()),
        health_check_address: check_address(at_member, member, address)?,
        transport_match: pairs(value.metadata.as_ref()),
        hash_key: text(LB, "hash_key").map(Box::from),
        workload: text(WORKLOAD, "name").map(Arc::from),
    })
}

fn health(at: At<'_>, status: i32) -> Decoded<HealthStatus> {
    Ok(match enumerated(at, status)? {
        Status::Unknown | Status::Healthy => HealthStatus::Healthy,
        Status::Degraded => HealthStatus::Degraded,
        Status::Unhealthy | Status::Timeout => HealthStatus::Unhealthy,
        Status::Draining => HealthStatus::Draining,
    })
}

fn check_address(
    at: At<'_>,
    member: &Member,
    address: std::net::SocketAddr,
) -> Decoded<Option<std::net::SocketAddr>> {
    let Some(config) = &member.health_check_config else {
        return Ok(None);
    };
    let at = at.field("health_check_config");
    at.ignores("hostname", !config.hostname.is_empty());
    at.ignores(
        "disable_active_health_check",
        config.disable_active_health_check,
    );
    if config.address.is_some() {
        let own = socket_address(at.field("address"), config.address.as_ref())?;
        return Ok(Some(own));
    }
    let port = super::value::port_number(at.field("port_value"), config.port_value)?;
    Ok((port != 0).then(|| std::net::SocketAddr::new(address.ip(), port)))
}

fn namespace<'m>(metadata: Option<&'m Metadata>, namespace: &str) -> Option<&'m Struct> {
    metadata?.filter_metadata.get(namespace)
}

fn text<'m>(metadata: Option<&'m Metadata>, space: &str, key: &str) -> Option<&'m str> {
    match namespace(metadata, space)?.fields.get(key)?.kind.as_ref()? {
        Kind::StringValue(text) => Some(text),
        Kind::NullValue(_)
        | Kind::NumberValue(_)
        | Kind::BoolValue(_)
        | Kind::StructValue(_)
        | Kind::ListValue(_) => None,
    }
}

/// The pairs that select the TLS settings, in the map's own order, which is by key. Values that are
/// no text match nothing, as in the cluster's own list.
fn pairs(metadata: Option<&Metadata>) -> Vec<(Box<str>, Box<str>)> {
    let Some(all) = namespace(metadata, TRANSPORT_MATCH) else {
        return Vec::new();
    };
    let each = all.fields.keys();
    each.filter_map(|key| {
        let value = text(metadata, TRANSPORT_MATCH, key)?;
        Some((key.as_str().into(), value.into()))
    })
    .collect()
}

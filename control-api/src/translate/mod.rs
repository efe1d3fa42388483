//! From objects to xDS resources. Pure: the same objects give the same bytes.

mod authz;
mod changes;
mod cluster;
mod endpoint;
mod http;
mod inbound;
mod layer4;
mod listener;
mod names;
mod policy;
mod proto;
mod route;
#[cfg(test)]
mod tests;
mod text;
mod tls;
mod tuning;
mod workload;
mod world;

use std::{collections::BTreeMap, net::IpAddr};

use outrigger_proto::{any::Any, type_url};

pub use changes::Changes;
pub use names::{ClusterName, ListenerName};
pub use workload::{aimed_at, is_strict};
pub use world::{Instance, PortRef, World};

/// The types of resource that are served, in the order in which they are sent: what is named by
/// another comes before it (make before break).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceType {
    /// CDS.
    Cluster,
    /// EDS.
    Endpoints,
    /// LDS.
    Listener,
    /// RDS.
    Routes,
}

impl ResourceType {
    /// Every type, in order.
    pub const ALL: [Self; 4] = [Self::Cluster, Self::Endpoints, Self::Listener, Self::Routes];

    /// Its type URL.
    #[must_use]
    pub const fn url(self) -> &'static str {
        match self {
            Self::Cluster => type_url::CLUSTER,
            Self::Endpoints => type_url::CLUSTER_LOAD_ASSIGNMENT,
            Self::Listener => type_url::LISTENER,
            Self::Routes => type_url::ROUTE_CONFIGURATION,
        }
    }

    /// For people and metrics.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Endpoints => "endpoints",
            Self::Listener => "listener",
            Self::Routes => "routes",
        }
    }

    /// By its type URL.
    #[must_use]
    pub fn of(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.url() == url)
    }
}

/// What a proxy's resources depend on beside the objects.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Viewer {
    /// Namespace of its workload.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
    /// Its workload's name.
    pub workload: String,
    /// Labels of the workload.
    pub labels: BTreeMap<String, String>,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
}

/// The resource of this type and name as `viewer` gets it; `None` if there is none.
#[must_use]
pub fn resource(world: &World, viewer: &Viewer, kind: ResourceType, name: &str) -> Option<Any> {
    match kind {
        ResourceType::Listener => match ListenerName::parse(name)? {
            ListenerName::Inbound => Some(proto::any(&inbound::listener(world, viewer))),
            ListenerName::Outbound => {
                let telemetry = workload::Telemetry::of(world, viewer);
                Some(proto::any(&listener::catch_all(telemetry)))
            }
            ListenerName::To(address) => {
                listener::destination(world, viewer, address).map(|l| proto::any(&l))
            }
        },
        ResourceType::Cluster => cluster::cluster(world, name).map(|c| proto::any(&c)),
        ResourceType::Endpoints => {
            let port = world.service_port(&ClusterName::parse(name)?)?;
            Some(proto::any(&endpoint::assignment(name, port)))
        }
        ResourceType::Routes => {
            let port = world.routed_port(name)?;
            Some(proto::any(&route::service(world, viewer, name, &port)))
        }
    }
}

/// Which proxies get the same resource of this type and name as `viewer`: those with the same
/// answer. `None`: nobody else.
#[must_use]
pub fn sharing(world: &World, viewer: &Viewer, kind: ResourceType, name: &str) -> Option<String> {
    match kind {
        ResourceType::Listener if name == names::INBOUND => None,
        ResourceType::Listener => {
            let port = match ListenerName::parse(name) {
                Some(ListenerName::To(address)) => world.virtual_port(address),
                _ => None,
            };
            let telemetry = workload::Telemetry::of(world, viewer);
            Some(format!("{telemetry} {}", consumer(world, viewer, port)))
        }
        ResourceType::Routes => Some(consumer(world, viewer, world.routed_port(name)).to_owned()),
        ResourceType::Cluster | ResourceType::Endpoints => Some(String::new()),
    }
}

/// The namespace of `viewer`, if routes differ by it.
fn consumer<'v>(world: &World, viewer: &'v Viewer, port: Option<PortRef<'_>>) -> &'v str {
    if port.is_some_and(|port| route::has_consumers(world, &port)) {
        &viewer.namespace
    } else {
        ""
    }
}

/// Every name of this type, for those who subscribe to all.
#[must_use]
pub fn names(world: &World, viewer: &Viewer, kind: ResourceType) -> Vec<String> {
    match kind {
        ResourceType::Listener => {
            let fixed = [names::INBOUND.to_owned(), names::OUTBOUND.to_owned()];
            let vips = world.virtual_addresses().map(names::listener);
            fixed.into_iter().chain(vips).collect()
        }
        ResourceType::Cluster => {
            let mut all = vec![
                names::PASSTHROUGH.to_owned(),
                names::INBOUND_PASSTHROUGH.to_owned(),
            ];
            let ports = world.inbound(viewer);
            all.extend(ports.map(|(port, _)| names::inbound_cluster(port)));
            all.extend(world.service_ports().map(|port| names::cluster(&port)));
            all
        }
        ResourceType::Endpoints => world.service_ports().map(|p| names::cluster(&p)).collect(),
        ResourceType::Routes => world.service_ports().map(|p| names::routes(&p)).collect(),
    }
}

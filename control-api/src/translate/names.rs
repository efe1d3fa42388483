//! Names of resources; the proxy and operators know them.

use std::net::{IpAddr, SocketAddr};

use super::world::PortRef;

pub(crate) const INBOUND: &str = "inbound";
pub(crate) const OUTBOUND: &str = "outbound";
/// Where connections go that are not for the mesh.
pub(crate) const PASSTHROUGH: &str = "PassthroughCluster";
/// Where connections go that come in on a port of no service.
pub(crate) const INBOUND_PASSTHROUGH: &str = "InboundPassthroughCluster";

/// What a Listener is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenerName {
    /// What comes into the pod.
    Inbound,
    /// What leaves the pod for no destination of its own.
    Outbound,
    /// What leaves the pod for this destination.
    To(SocketAddr),
}

impl ListenerName {
    /// By its name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            INBOUND => Some(Self::Inbound),
            OUTBOUND => Some(Self::Outbound),
            _ => {
                let address = name.strip_prefix("outbound/")?.parse().ok()?;
                // Other spellings of the same address are no names of ours.
                (listener(address) == name).then_some(Self::To(address))
            }
        }
    }
}

/// What a Cluster leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterName {
    /// A port of a service.
    Service {
        /// Namespace of the service.
        namespace: String,
        /// Its name.
        service: String,
        /// The port that callers dial.
        port: u16,
    },
    /// One endpoint that was dialled by its own address.
    Pod(SocketAddr),
    /// The application of this pod on this port.
    Inbound(u16),
    /// See [`PASSTHROUGH`].
    Passthrough,
    /// See [`INBOUND_PASSTHROUGH`].
    InboundPassthrough,
}

impl ClusterName {
    /// By its name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            PASSTHROUGH => return Some(Self::Passthrough),
            INBOUND_PASSTHROUGH => return Some(Self::InboundPassthrough),
            _ => {}
        }
        let (direction, rest) = name.split_once('|')?;
        match direction {
            "outbound" => {
                let (port, host) = rest.split_once("||")?;
                service_of(port, host)
            }
            "pod" => rest.parse().ok().map(Self::Pod),
            "inbound" => rest.strip_suffix("||")?.parse().ok().map(Self::Inbound),
            _ => None,
        }
    }
}

fn service_of(port: &str, host: &str) -> Option<ClusterName> {
    let (service, namespace) = host.strip_suffix(".svc")?.rsplit_once('.')?;
    Some(ClusterName::Service {
        namespace: namespace.to_owned(),
        service: service.to_owned(),
        port: port.parse().ok()?,
    })
}

/// The service port that a RouteConfiguration is for.
pub(crate) fn parse_routes(name: &str) -> Option<ClusterName> {
    let (port, host) = name.strip_prefix("outbound|")?.split_once('|')?;
    service_of(port, host)
}

/// IPv6 in brackets.
pub(crate) fn listener(address: SocketAddr) -> String {
    format!("outbound/{address}")
}

/// `<service>.<namespace>.svc`.
pub(crate) fn host(port: &PortRef<'_>) -> String {
    format!("{}.{}.svc", port.key.name, port.key.namespace)
}

pub(crate) fn cluster(port: &PortRef<'_>) -> String {
    service_cluster(&port.key.namespace, &port.key.name, port.port.port)
}

pub(crate) fn service_cluster(namespace: &str, service: &str, port: u16) -> String {
    format!("outbound|{port}||{service}.{namespace}.svc")
}

pub(crate) fn routes(port: &PortRef<'_>) -> String {
    format!("outbound|{}|{}", port.port.port, host(port))
}

pub(crate) fn pod_cluster(ip: IpAddr, port: u16) -> String {
    format!("pod|{}", SocketAddr::new(ip, port))
}

pub(crate) fn inbound_cluster(port: u16) -> String {
    format!("inbound|{port}||")
}

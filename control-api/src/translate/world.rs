//! The objects, indexed by what proxies ask for.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{
    Viewer,
    names::{self, ClusterName},
};
use crate::model::{AppProtocol, Endpoint, Key, Kind, Objects, ServicePort, ServiceSpec, Spec};

/// A port of a service.
#[derive(Debug, Clone, Copy)]
pub struct PortRef<'w> {
    /// The service.
    pub key: &'w Key,
    /// What it says.
    pub service: &'w ServiceSpec,
    /// The port.
    pub port: &'w ServicePort,
    /// Whose identities are valid.
    pub trust_domain: &'w str,
}

impl<'w> PortRef<'w> {
    /// Identities that its endpoints have, in order.
    #[must_use]
    pub fn identities(&self) -> BTreeSet<String> {
        let mesh = self.service.endpoints.iter().filter(|e| e.in_mesh());
        mesh.map(|endpoint| self.identity(endpoint)).collect()
    }

    /// The identity of one endpoint.
    #[must_use]
    pub fn identity(&self, endpoint: &Endpoint) -> String {
        format!(
            "spiffe://{}/ns/{}/sa/{}",
            self.trust_domain,
            self.key.namespace,
            self.service.account(endpoint)
        )
    }

    /// The endpoints with the port that each listens on.
    pub fn endpoints(&self) -> impl Iterator<Item = (&'w Endpoint, u16)> {
        let (service, port) = (self.service, self.port);
        let endpoints = service.endpoints.iter();
        endpoints.map(move |endpoint| (endpoint, service.endpoint_port(endpoint, port)))
    }
}

/// One endpoint as an instance of a service port.
#[derive(Debug, Clone, Copy)]
pub struct Instance<'w> {
    /// Of which it is an instance.
    pub port: PortRef<'w>,
    /// The endpoint.
    pub endpoint: &'w Endpoint,
}

/// Where in a service something stands.
#[derive(Debug, Clone)]
struct Place {
    key: Key,
    port: usize,
    endpoint: usize,
}

/// See the module.
#[derive(Debug, Default)]
pub struct World {
    objects: Arc<Objects>,
    trust_domain: String,
    virtual_addresses: BTreeMap<SocketAddr, Place>,
    instances: BTreeMap<SocketAddr, Vec<Place>>,
}

impl World {
    /// Indexes `objects`.
    #[must_use]
    pub fn new(objects: Arc<Objects>, trust_domain: &str) -> Self {
        let (mut virtual_addresses, mut instances) = (BTreeMap::new(), BTreeMap::new());
        for (key, service) in objects.services() {
            for (p, port) in service.ports.iter().enumerate() {
                let place = |endpoint| Place {
                    key: key.clone(),
                    port: p,
                    endpoint,
                };
                for ip in &service.addresses {
                    let dialled = SocketAddr::new(*ip, port.port);
                    virtual_addresses.entry(dialled).or_insert_with(|| place(0));
                }
                for (e, endpoint) in service.endpoints.iter().enumerate() {
                    let port = service.endpoint_port(endpoint, port);
                    let at = SocketAddr::new(endpoint.address, port);
                    let places: &mut Vec<Place> = instances.entry(at).or_default();
                    places.push(place(e));
                }
            }
        }
        Self {
            objects,
            trust_domain: trust_domain.to_owned(),
            virtual_addresses,
            instances,
        }
    }

    /// The revision of the objects.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.objects.revision
    }

    /// The objects themselves.
    #[must_use]
    pub const fn objects(&self) -> &Arc<Objects> {
        &self.objects
    }

    /// The domain of all identities.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    fn service(&self, key: &Key) -> Option<(&Key, &ServiceSpec)> {
        let (key, object) = self.objects.by_key.get_key_value(key)?;
        match &object.spec {
            Spec::Service(service) => Some((key, service)),
        }
    }

    fn at(&self, place: &Place) -> Option<Instance<'_>> {
        let port = self.port_at(place)?;
        let endpoint = port.service.endpoints.get(place.endpoint)?;
        Some(Instance { port, endpoint })
    }

    fn port_at(&self, place: &Place) -> Option<PortRef<'_>> {
        let (key, service) = self.service(&place.key)?;
        Some(PortRef {
            key,
            service,
            port: service.ports.get(place.port)?,
            trust_domain: &self.trust_domain,
        })
    }

    /// The service port that is dialled by this virtual address.
    #[must_use]
    pub fn virtual_port(&self, dialled: SocketAddr) -> Option<PortRef<'_>> {
        self.port_at(self.virtual_addresses.get(&dialled)?)
    }

    /// Every address and port that callers may dial.
    pub fn virtual_addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.virtual_addresses.keys().copied()
    }

    /// What listens on an endpoint's own address; the first, where several services share it. A port
    /// whose protocol is said is preferred to one where it has to be found out.
    #[must_use]
    pub fn instance(&self, dialled: SocketAddr) -> Option<Instance<'_>> {
        let mut all = self
            .instances
            .get(&dialled)?
            .iter()
            .filter_map(|p| self.at(p));
        let first = all.next()?;
        if first.port.port.app_protocol.is_some() {
            return Some(first);
        }
        let said = all.find(|instance| instance.port.port.app_protocol.is_some());
        Some(said.unwrap_or(first))
    }

    /// The service port that a cluster leads to.
    #[must_use]
    pub fn service_port(&self, name: &ClusterName) -> Option<PortRef<'_>> {
        let ClusterName::Service {
            namespace,
            service,
            port,
        } = name
        else {
            return None;
        };
        let key = Key {
            kind: Kind::Service,
            namespace: namespace.clone(),
            name: service.clone(),
        };
        let (key, service) = self.service(&key)?;
        Some(PortRef {
            key,
            service,
            port: service.ports.iter().find(|p| p.port == *port)?,
            trust_domain: &self.trust_domain,
        })
    }

    /// The service port that a RouteConfiguration is for.
    #[must_use]
    pub fn routed_port(&self, routes: &str) -> Option<PortRef<'_>> {
        self.service_port(&names::parse_routes(routes)?)
    }

    /// Every port of every service.
    pub fn service_ports(&self) -> impl Iterator<Item = PortRef<'_>> {
        let trust_domain = self.trust_domain.as_str();
        self.objects.services().flat_map(move |(key, service)| {
            service.ports.iter().map(move |port| PortRef {
                key,
                service,
                port,
                trust_domain,
            })
        })
    }

    /// The ports on which this workload is an endpoint, with what they speak. Ports that two
    /// services describe differently are found out.
    pub fn inbound(&self, viewer: &Viewer) -> impl Iterator<Item = (u16, Option<AppProtocol>)> {
        let mut ports = BTreeMap::new();
        for ip in &viewer.addresses {
            let (from, to) = (SocketAddr::new(*ip, 0), SocketAddr::new(*ip, u16::MAX));
            for at in self.instances.range(from..=to).map(|(at, _)| *at) {
                let protocol = self.instance(at).and_then(|i| i.port.port.app_protocol);
                let merged = ports.entry(at.port()).or_insert(protocol);
                if *merged != protocol {
                    *merged = None;
                }
            }
        }
        ports.into_iter()
    }

    /// Whether any service is behind this address.
    #[must_use]
    pub fn is_virtual(&self, ip: IpAddr) -> bool {
        let (from, to) = (SocketAddr::new(ip, 0), SocketAddr::new(ip, u16::MAX));
        self.virtual_addresses.range(from..=to).next().is_some()
    }
}

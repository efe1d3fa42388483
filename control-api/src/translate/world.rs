//! The objects, indexed by what proxies ask for.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{
    Viewer,
    names::{self, ClusterName},
};
use crate::model::{
    AppProtocol, Endpoint, Key, Kind, Object, Objects, ParentRef, ServicePort, ServiceSpec, Spec,
    TargetRef,
};

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
    /// Identities that its endpoints have, in order; never none, since that would mean anybody.
    #[must_use]
    pub fn identities(&self) -> BTreeSet<String> {
        let mesh = self.service.endpoints.iter().filter(|e| e.in_mesh());
        let mut all: BTreeSet<_> = mesh.map(|endpoint| self.identity(endpoint)).collect();
        if all.is_empty() {
            all.insert(self.identity_of(self.service.default_account()));
        }
        all
    }

    fn identity_of(&self, account: &str) -> String {
        let (domain, namespace) = (self.trust_domain, &self.key.namespace);
        format!("spiffe://{domain}/ns/{namespace}/sa/{account}")
    }

    /// The identity of one endpoint.
    #[must_use]
    pub fn identity(&self, endpoint: &Endpoint) -> String {
        self.identity_of(self.service.account(endpoint))
    }

    /// The endpoints that serve it, with the port that each listens on.
    pub fn endpoints(&self) -> impl Iterator<Item = (&'w Endpoint, u16)> {
        let (service, port) = (self.service, self.port);
        let endpoints = service.endpoints.iter();
        endpoints
            .map(move |endpoint| (endpoint, service.endpoint_port(endpoint, port)))
            .filter(|(_, number)| *number != 0)
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
#[derive(Debug, Clone, Copy)]
struct Place {
    service: usize,
    port: usize,
    endpoint: usize,
}

/// The services, or routes, that an object is attached to, each once.
fn targets_of(object: &Object) -> BTreeSet<Key> {
    let key = |namespace: &str, name: &str| Key {
        kind: Kind::Service,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    };
    let own = object.key.namespace.as_str();
    let parent = |p: &ParentRef| key(p.namespace.as_deref().unwrap_or(own), &p.name);
    let target = |t: &TargetRef| key(own, &t.name);
    match &object.spec {
        Spec::HttpRoute(route) => route.parent_refs.iter().map(parent).collect(),
        Spec::GrpcRoute(route) => route.parent_refs.iter().map(parent).collect(),
        Spec::TlsRoute(route) => route.parent_refs.iter().map(parent).collect(),
        Spec::TcpRoute(route) => route.parent_refs.iter().map(parent).collect(),
        Spec::TrafficPolicy(policy) => policy.target_refs.iter().map(target).collect(),
        Spec::AuthorizationPolicy(policy) => policy.target_refs.iter().map(target).collect(),
        Spec::FaultInjection(policy) => policy.target_refs.iter().map(target).collect(),
        Spec::RateLimit(policy) => {
            let routes = policy.target_refs.iter().filter_map(|route| {
                Some(Key {
                    kind: route.kind()?,
                    ..key(own, &route.name)
                })
            });
            routes.collect()
        }
        Spec::Service(_) | Spec::MutualTls(_) | Spec::Telemetry(_) => BTreeSet::new(),
    }
}

fn service_in(object: &Object) -> Option<&ServiceSpec> {
    match &object.spec {
        Spec::Service(service) => Some(service),
        _ => None,
    }
}

fn is_of_workloads(object: &Object) -> bool {
    match &object.spec {
        Spec::AuthorizationPolicy(policy) => policy.target_refs.is_empty(),
        Spec::RateLimit(policy) => policy.target_refs.is_empty(),
        Spec::MutualTls(_) | Spec::Telemetry(_) => true,
        _ => false,
    }
}

/// Policies here hold for the whole mesh.
pub(crate) const SYSTEM_NAMESPACE: &str = "outrigger-system";

/// See the module.
#[derive(Debug, Default)]
pub struct World {
    objects: Arc<Objects>,
    trust_domain: String,
    services: Vec<Arc<Object>>,
    virtual_addresses: BTreeMap<SocketAddr, Place>,
    /// By the endpoint's address, with the port on which it listens.
    instances: HashMap<IpAddr, Vec<(u16, Place)>>,
    /// Policies and routes by the service, or the route, that they are attached to.
    attached: BTreeMap<Key, Vec<Arc<Object>>>,
    /// Policies of workloads by their namespace.
    workloads: BTreeMap<String, Vec<Arc<Object>>>,
}

impl World {
    /// Indexes `objects`.
    #[must_use]
    pub fn new(objects: Arc<Objects>, trust_domain: &str) -> Self {
        let all = objects.by_key.values();
        let services: Vec<_> = all.filter(|o| service_in(o).is_some()).cloned().collect();
        let mut virtual_addresses = BTreeMap::new();
        let mut instances: HashMap<IpAddr, Vec<(u16, Place)>> = HashMap::new();
        for (s, object) in services.iter().enumerate() {
            let Some(service) = service_in(object) else {
                continue;
            };
            for (p, port) in service.ports.iter().enumerate() {
                let place = |endpoint| Place {
                    service: s,
                    port: p,
                    endpoint,
                };
                for ip in &service.addresses {
                    let dialled = SocketAddr::new(*ip, port.port);
                    virtual_addresses.entry(dialled).or_insert_with(|| place(0));
                }
                for (e, endpoint) in service.endpoints.iter().enumerate() {
                    let port = service.endpoint_port(endpoint, port);
                    if port == 0 {
                        continue;
                    }
                    let places = instances.entry(endpoint.address).or_default();
                    places.push((port, place(e)));
                }
            }
        }
        let (mut attached, mut workloads) = (BTreeMap::new(), BTreeMap::new());
        // The Gateway API's order of precedence: the oldest, then by name.
        let mut by_age: Vec<_> = objects.by_key.values().collect();
        by_age.sort_by_key(|object| (object.created, &object.key));
        for object in by_age {
            for target in targets_of(object) {
                let list: &mut Vec<_> = attached.entry(target).or_default();
                list.push(Arc::clone(object));
            }
            if is_of_workloads(object) {
                let namespace = object.key.namespace.clone();
                let list: &mut Vec<_> = workloads.entry(namespace).or_default();
                list.push(Arc::clone(object));
            }
        }
        Self {
            objects,
            trust_domain: trust_domain.to_owned(),
            services,
            virtual_addresses,
            instances,
            attached,
            workloads,
        }
    }

    /// What is attached to a service or a route, the oldest first.
    #[must_use]
    pub fn attached(&self, target: &Key) -> &[Arc<Object>] {
        self.attached.get(target).map_or(&[], Vec::as_slice)
    }

    /// Policies for the workloads of a namespace: those of the mesh first, then its own; of each the
    /// oldest first.
    pub fn workload_policies(&self, namespace: &str) -> impl Iterator<Item = &Arc<Object>> {
        let of = |namespace| self.workloads.get(namespace).map_or(&[][..], Vec::as_slice);
        let mesh = of(SYSTEM_NAMESPACE).iter();
        let own = (namespace != SYSTEM_NAMESPACE).then(|| of(namespace).iter());
        mesh.chain(own.into_iter().flatten())
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
        Some((key, service_in(object)?))
    }

    fn at(&self, place: &Place) -> Option<Instance<'_>> {
        let port = self.port_at(place)?;
        let endpoint = port.service.endpoints.get(place.endpoint)?;
        Some(Instance { port, endpoint })
    }

    fn port_at(&self, place: &Place) -> Option<PortRef<'_>> {
        let object = self.services.get(place.service)?;
        let service = service_in(object)?;
        Some(PortRef {
            key: &object.key,
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

    /// What listens on an endpoint's own address; the first, where several services share it. A
    /// port whose protocol is said is preferred to one where it has to be found out.
    #[must_use]
    pub fn instance(&self, dialled: SocketAddr) -> Option<Instance<'_>> {
        let places = self.instances.get(&dialled.ip())?.iter();
        let mut all = places
            .filter(|(port, _)| *port == dialled.port())
            .filter_map(|(_, place)| self.at(place));
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
            for (number, _) in self.instances.get(ip).into_iter().flatten() {
                let at = SocketAddr::new(*ip, *number);
                let protocol = self.instance(at).and_then(|i| i.port.port.app_protocol);
                let merged = ports.entry(*number).or_insert(protocol);
                if *merged != protocol {
                    *merged = None;
                }
            }
        }
        ports.into_iter()
    }

    /// The services of which this workload is an endpoint on `port`, with their own ports.
    pub fn inbound_services(
        &self,
        viewer: &Viewer,
        port: u16,
    ) -> impl Iterator<Item = (&Key, u16)> {
        let of = |ip| self.instances.get(ip).into_iter().flatten();
        let places = viewer.addresses.iter().flat_map(of);
        let places: Vec<_> = places.filter(|(number, _)| *number == port).collect();
        places.into_iter().filter_map(|(_, place)| {
            let port = self.port_at(place)?;
            Some((port.key, port.port.port))
        })
    }

    /// Addresses of the service of this name, its own and its endpoints'.
    pub(crate) fn addresses(&self, service: &Key) -> impl Iterator<Item = IpAddr> {
        let found = self.service(service);
        found.into_iter().flat_map(|(_, service)| {
            let endpoints = service.endpoints.iter().map(|endpoint| endpoint.address);
            service.addresses.iter().copied().chain(endpoints)
        })
    }
}

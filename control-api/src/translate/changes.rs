//! Which resources a change of the objects cannot have touched. Endpoints come and go all the time;
//! what is made again because of one has to be little (XD-07).

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
    sync::Arc,
};

use super::{
    ResourceType, World,
    names::{self, ClusterName, ListenerName},
};
use crate::model::{Key, Kind, Spec};

/// The services that differ between two worlds.
#[derive(Debug)]
pub struct Changes {
    services: BTreeSet<Key>,
    /// Their addresses before and after, and their endpoints'.
    addresses: HashSet<IpAddr>,
}

impl Changes {
    /// What changed from `old` to `new`; `None` if more than services did, which touches anything.
    #[must_use]
    pub fn between(old: &World, new: &World) -> Option<Self> {
        let (before, after) = (&old.objects().by_key, &new.objects().by_key);
        let gone = before.keys().filter(|key| !after.contains_key(*key));
        let news = after.iter().filter_map(|(key, object)| {
            let same = before.get(key).is_some_and(|old| Arc::ptr_eq(old, object));
            (!same).then_some(key)
        });
        let services: BTreeSet<Key> = gone.chain(news).cloned().collect();
        if services.iter().any(|key| key.kind != Kind::Service) {
            return None;
        }
        let of = |world: &World| -> Vec<IpAddr> {
            let all = services.iter().flat_map(|key| world.addresses(key));
            all.collect()
        };
        let addresses = of(old).into_iter().chain(of(new)).collect();
        Some(Self {
            services,
            addresses,
        })
    }

    /// Whether the resource is still what it was.
    #[must_use]
    pub fn spare(&self, world: &World, kind: ResourceType, name: &str) -> bool {
        match kind {
            ResourceType::Listener => match ListenerName::parse(name) {
                Some(ListenerName::To(address)) => !self.addresses.contains(&address.ip()),
                Some(ListenerName::Outbound) => true,
                Some(ListenerName::Inbound) | None => false,
            },
            ResourceType::Cluster | ResourceType::Endpoints => match ClusterName::parse(name) {
                Some(ClusterName::Pod(address)) => !self.addresses.contains(&address.ip()),
                Some(service @ ClusterName::Service { .. }) => self.spares_service(&service),
                Some(_) => true,
                None => false,
            },
            // The routes of objects name other services, of which some things are looked up.
            ResourceType::Routes => names::parse_routes(name).is_some_and(|service| {
                let port = world.service_port(&service);
                let attached = port.map(|port| world.attached(port.key));
                let routed = attached.is_some_and(|all| {
                    let mut specs = all.iter().map(|object| &object.spec);
                    specs.any(|spec| matches!(spec, Spec::HttpRoute(_) | Spec::GrpcRoute(_)))
                });
                !routed && self.spares_service(&service)
            }),
        }
    }

    fn spares_service(&self, name: &ClusterName) -> bool {
        let ClusterName::Service {
            namespace, service, ..
        } = name
        else {
            return false;
        };
        let key = Key {
            kind: Kind::Service,
            namespace: namespace.clone(),
            name: service.clone(),
        };
        !self.services.contains(&key)
    }
}

//! From the cluster's objects to ours, purely.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::{
    api::{
        core::v1::{Pod, Service, ServicePort as KubePort},
        discovery::v1::{Endpoint as KubeEndpoint, EndpointSlice},
    },
    apimachinery::pkg::{apis::meta::v1::Time, util::intstr::IntOrString},
};
use serde_json::Value;

use super::{MESH_LABEL, MESH_SIDECAR, Name};
use crate::model::{
    AppProtocol, Endpoint, Invalid, Object, ServicePort, ServiceSpec, parse_object,
};

/// Label of an EndpointSlice: the Service that it belongs to.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label that a Deployment gives to the pods of one of its versions.
const TEMPLATE_HASH: &str = "pod-template-hash";

/// What the mesh wants to know of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodFacts {
    /// Its service account.
    pub account: String,
    /// The Deployment, StatefulSet, Job... it is an instance of, or its own name.
    pub workload: String,
    /// Whether our proxy stands before it.
    pub mesh: bool,
}

impl PodFacts {
    /// Of this pod.
    #[must_use]
    pub fn of(pod: &Pod) -> Self {
        let spec = pod.spec.as_ref();
        let account = spec.and_then(|spec| spec.service_account_name.clone());
        let labels = pod.metadata.labels.as_ref();
        let host = spec.and_then(|spec| spec.host_network) == Some(true);
        let sidecar = labels.and_then(|l| l.get(MESH_LABEL)).map(String::as_str);
        Self {
            account: account.unwrap_or_else(|| "default".to_owned()),
            workload: workload(pod),
            mesh: !host && sidecar == Some(MESH_SIDECAR),
        }
    }
}

/// What controls the pod; a ReplicaSet's name without the version is its Deployment's.
fn workload(pod: &Pod) -> String {
    let own = pod.metadata.name.clone().unwrap_or_default();
    let owners = pod.metadata.owner_references.iter().flatten();
    let Some(owner) = owners.clone().find(|o| o.controller == Some(true)) else {
        return own;
    };
    let labels = pod.metadata.labels.as_ref();
    let hash = labels.and_then(|labels| labels.get(TEMPLATE_HASH));
    let version = hash.map(|hash| format!("-{hash}")).unwrap_or_default();
    match owner.name.strip_suffix(&version) {
        Some(deployment) if owner.kind == "ReplicaSet" => deployment.to_owned(),
        _ => owner.name.clone(),
    }
}

/// The Service that a slice belongs to.
#[must_use]
pub fn slice_owner(slice: &EndpointSlice) -> Option<Name> {
    let service = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
    Some(Name::new(namespace, service))
}

/// The pod behind an endpoint, if it is one of the Service's namespace: that is whose identities
/// callers expect.
#[must_use]
pub fn pod_of(namespace: &str, endpoint: &KubeEndpoint) -> Option<Name> {
    let target = endpoint.target_ref.as_ref()?;
    let kind = target.kind.as_deref() == Some("Pod");
    let here = target.namespace.as_deref().is_none_or(|n| n == namespace);
    (kind && here).then(|| Name::new(namespace, target.name.as_deref().unwrap_or_default()))
}

/// What a Service with these slices is to the mesh; `None` if it has no TCP port or, being an
/// ExternalName, neither address nor endpoint: what is dialled then is another's.
pub fn service<'s>(
    service: &Service,
    slices: impl Iterator<Item = &'s EndpointSlice>,
    pod: &dyn Fn(&Name) -> Option<PodFacts>,
) -> Option<ServiceSpec> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    let tcp = |port: &&KubePort| is_tcp(port.protocol.as_deref());
    let ports: Vec<_> = spec.ports.iter().flatten().filter(tcp).collect();
    let ports: Vec<_> = ports.into_iter().filter_map(service_port).collect();
    if ports.is_empty() {
        return None;
    }
    let single = spec.cluster_ip.iter();
    let addresses = match &spec.cluster_ips {
        Some(all) => parsed(all.iter()),
        None => parsed(single),
    };
    let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
    let (mut ready, mut leaving) = (Vec::new(), Vec::new());
    for slice in slices {
        for endpoint in slice.endpoints.iter().flatten() {
            let list = match Stage::of(endpoint) {
                Stage::Ready => &mut ready,
                Stage::Leaving => &mut leaving,
                Stage::Down => continue,
            };
            let facts = match pod_of(namespace, endpoint) {
                // Whether it speaks mutual TLS is not known before the pod is; in clear text, it
                // would refuse.
                Some(name) => match pod(&name) {
                    Some(facts) => Some(facts),
                    None => continue,
                },
                None => None,
            };
            list.extend(member(&ports, slice, endpoint, facts.as_ref()));
        }
    }
    Some(ServiceSpec {
        ports,
        addresses,
        // As kube-proxy does: pods that end, but still serve, are better than none.
        endpoints: if ready.is_empty() { leaving } else { ready },
        service_account: None,
    })
}

/// Where an endpoint is in its life.
enum Stage {
    Ready,
    Leaving,
    Down,
}

impl Stage {
    /// Absent conditions mean: ready, serving, not terminating (EndpointConditions).
    fn of(endpoint: &KubeEndpoint) -> Self {
        let conditions = endpoint.conditions.as_ref();
        let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
        let serving = conditions.and_then(|c| c.serving).unwrap_or(ready);
        let leaving = conditions.and_then(|c| c.terminating).unwrap_or(false);
        match (ready, serving, leaving) {
            (true, _, _) => Self::Ready,
            (false, true, true) => Self::Leaving,
            (false, _, _) => Self::Down,
        }
    }
}

fn is_tcp(protocol: Option<&str>) -> bool {
    protocol.is_none_or(|protocol| protocol == "TCP")
}

fn parsed<'a>(texts: impl Iterator<Item = &'a String>) -> Vec<IpAddr> {
    // A headless Service's is "None".
    texts.filter_map(|text| text.parse().ok()).collect()
}

fn service_port(port: &KubePort) -> Option<ServicePort> {
    let target = match &port.target_port {
        Some(IntOrString::Int(number)) => u16::try_from(*number).ok(),
        // A name is looked up in each pod: the slices say what came of it.
        Some(IntOrString::String(_)) | None => None,
    };
    let number = u16::try_from(port.port).ok()?;
    Some(ServicePort {
        name: port.name.clone().unwrap_or_default(),
        port: number,
        target_port: target.filter(|target| *target != number && *target != 0),
        app_protocol: port.app_protocol.as_deref().and_then(AppProtocol::parse),
    })
}

/// An endpoint of a slice; every address is one, though Kubernetes writes only one.
fn member(
    ports: &[ServicePort],
    slice: &EndpointSlice,
    endpoint: &KubeEndpoint,
    facts: Option<&PodFacts>,
) -> Vec<Endpoint> {
    let mut numbers = BTreeMap::new();
    for port in ports {
        let own = slice.ports.iter().flatten().find(|own| {
            own.name.as_deref().unwrap_or_default() == port.name && is_tcp(own.protocol.as_deref())
        });
        let number = own.and_then(|own| u16::try_from(own.port?).ok());
        let expected = port.target_port.unwrap_or(port.port);
        // Pods without the named port are in slices that lack it: 0 says so.
        let number = number.unwrap_or(0);
        if number != expected {
            numbers.insert(port.name.clone(), number);
        }
    }
    let mesh = facts.is_some_and(|facts| facts.mesh);
    let addresses = parsed(endpoint.addresses.iter().take(1));
    let one = |address| Endpoint {
        address,
        ports: numbers.clone(),
        service_account: facts.map(|facts| facts.account.clone()),
        workload: facts.map(|facts| facts.workload.clone()),
        zone: endpoint.zone.clone(),
        weight: None,
        mesh: (!mesh).then_some(false),
    };
    addresses.into_iter().map(one).collect()
}

/// A route or policy of the cluster as ours; `None` for a route that is attached to no Service
/// and therefore somebody else's.
///
/// # Errors
/// Everything that is wrong with it.
pub fn policy(mut document: Value) -> Result<Option<Object>, Vec<Invalid>> {
    if let Some(parents) = document.pointer_mut("/spec/parentRefs")
        && let Some(list) = parents.as_array_mut()
    {
        list.retain(is_service);
        if list.is_empty() {
            return Ok(None);
        }
    }
    let created = created(&document);
    let object = parse_object(document, "", 0)?;
    Ok(Some(Object { created, ..object }))
}

/// When the cluster says that an object was made, in seconds since 1970; 0 if it does not say.
fn created(document: &Value) -> u64 {
    let stamp = document.pointer("/metadata/creationTimestamp").cloned();
    stamp
        .and_then(|stamp| serde_json::from_value::<Time>(stamp).ok())
        .and_then(|time| u64::try_from(time.0.as_second()).ok())
        .unwrap_or(0)
}

/// Whether a parentRef names a Service; without a kind it names a Gateway.
pub(super) fn is_service(parent: &Value) -> bool {
    let text = |key| parent.get(key).and_then(Value::as_str);
    text("kind") == Some("Service") && matches!(text("group"), Some("" | "core"))
}

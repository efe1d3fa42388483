//! `Service`: what callers dial, and who answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Ports of a service; Kubernetes objects of 1 MiB hold fewer.
const MAX_PORTS: usize = 1_000;
/// Endpoints of a service; Kubernetes is tested with 5,000 pods in one.
const MAX_ENDPOINTS: usize = 10_000;
/// Weight of an endpoint, so that their sum stays in 32 bits (Envoy's limit for a locality).
const MAX_WEIGHT: u32 = 100_000;

/// A named set of endpoints behind addresses and ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceSpec {
    /// What it listens on.
    pub ports: Vec<ServicePort>,
    /// Virtual addresses that callers dial. None: it is reached by its endpoints' own addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// Its instances.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<Endpoint>,
    /// Service account of endpoints that name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
}

/// One port of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServicePort {
    /// Needed, and unique, when there are several.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// What callers dial.
    pub port: u16,
    /// Where endpoints listen; absent: the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_port: Option<u16>,
    /// What is spoken there; absent: found out for each connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<AppProtocol>,
}

/// What a port speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppProtocol {
    /// HTTP/1.1 or HTTP/2 in clear.
    Http,
    /// HTTP/2 in clear, always.
    Http2,
    /// gRPC, so HTTP/2.
    Grpc,
    /// Anything else, also the application's own TLS.
    Tcp,
}

impl AppProtocol {
    /// By one of its names: IANA's, Kubernetes' and those that people use.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "http" | "http1" | "kubernetes.io/ws" => Some(Self::Http),
            "http2" | "h2c" | "kubernetes.io/h2c" => Some(Self::Http2),
            "grpc" => Some(Self::Grpc),
            "tcp" | "tls" | "https" | "kubernetes.io/wss" => Some(Self::Tcp),
            _ => None,
        }
    }

    /// As it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
        }
    }
}

impl Serialize for AppProtocol {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for AppProtocol {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            de::Error::custom(format!(
                "{text:?} is not one of http, http2, h2c, grpc, tcp, tls, https"
            ))
        })
    }
}

/// One instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Endpoint {
    /// Where it is.
    pub address: IpAddr,
    /// Port by name of the service's port, where it is not the service's target port; 0: this
    /// instance does not serve that port.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, u16>,
    /// Service account; absent: the service's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
    /// The workload it is an instance of, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// Failure domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Share relative to others; absent: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Whether a proxy stands before it that speaks mutual TLS; absent: yes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mesh: Option<bool>,
}

impl Endpoint {
    /// Whether it is spoken to over mutual TLS.
    #[must_use]
    pub fn in_mesh(&self) -> bool {
        self.mesh.unwrap_or(true)
    }
}

impl ServiceSpec {
    /// Where `endpoint` listens for the service's `port`; 0: it does not.
    #[must_use]
    pub fn endpoint_port(&self, endpoint: &Endpoint, port: &ServicePort) -> u16 {
        let own = endpoint.ports.get(&port.name).copied();
        own.or(port.target_port).unwrap_or(port.port)
    }

    /// The service account of `endpoint`.
    #[must_use]
    pub fn account<'a>(&'a self, endpoint: &'a Endpoint) -> &'a str {
        let own = endpoint.service_account.as_deref();
        own.unwrap_or_else(|| self.default_account())
    }

    /// The service account of endpoints that name none.
    #[must_use]
    pub fn default_account(&self) -> &str {
        self.service_account.as_deref().unwrap_or("default")
    }

    /// Everything wrong with it: path below `spec`, and why.
    #[must_use]
    pub fn faults(&self) -> Vec<(String, String)> {
        let mut faults = Vec::new();
        let mut fault = |path: String, why: &str| faults.push((path, why.to_owned()));
        if self.ports.is_empty() || self.ports.len() > MAX_PORTS {
            fault("ports".into(), "must have 1 to 1000 entries");
        }
        if self.endpoints.len() > MAX_ENDPOINTS {
            fault("endpoints".into(), "must have at most 10000 entries");
        }
        let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
        for (i, port) in self.ports.iter().enumerate() {
            if port.port == 0 {
                fault(format!("ports[{i}].port"), "must be 1 to 65535");
            }
            if port.target_port == Some(0) {
                fault(format!("ports[{i}].targetPort"), "must be 1 to 65535");
            }
            if !numbers.insert(port.port) {
                fault(format!("ports[{i}].port"), "stands there twice");
            }
            if !names.insert(port.name.as_str()) {
                fault(format!("ports[{i}].name"), "must be unique among the ports");
            }
        }
        for (i, address) in self.addresses.iter().enumerate() {
            if unusable(*address) {
                fault(format!("addresses[{i}]"), UNUSABLE);
            }
        }
        let mut seen = BTreeSet::new();
        for (i, endpoint) in self.endpoints.iter().enumerate() {
            if !seen.insert(endpoint.address) {
                fault(format!("endpoints[{i}].address"), "stands there twice");
            }
            endpoint.faults(&names, |path, why| {
                fault(format!("endpoints[{i}].{path}"), why);
            });
        }
        faults
    }
}

const UNUSABLE: &str = "must be the address of one host";

fn unusable(address: IpAddr) -> bool {
    address.is_unspecified() || address.is_multicast()
}

impl Endpoint {
    fn faults(&self, names: &BTreeSet<&str>, mut fault: impl FnMut(String, &str)) {
        if unusable(self.address) {
            fault("address".into(), UNUSABLE);
        }
        for name in self.ports.keys() {
            if !names.contains(name.as_str()) {
                fault(format!("ports.{name}"), "is no port of the service");
            }
        }
        if self.weight.is_some_and(|w| w == 0 || w > MAX_WEIGHT) {
            fault("weight".into(), "must be 1 to 100000");
        }
    }
}

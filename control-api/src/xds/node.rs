//! What a proxy says about itself.

use std::{collections::BTreeMap, net::IpAddr};

use outrigger_proto::envoy::config::core::v3::{Node, node::UserAgentVersionType};
use prost_types::{Struct, value::Kind};

use crate::{identity::Identity, translate::Viewer};

/// Addresses of one pod; dual stack has two.
const MAX_ADDRESSES: usize = 16;
/// Longest node id that is taken.
const MAX_ID: usize = 1_024;

/// A proxy, as it introduced itself and as its certificate proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeInfo {
    /// Node id.
    pub id: String,
    /// Software and version.
    pub version: String,
    /// What its resources depend on.
    pub viewer: Viewer,
}

impl NodeInfo {
    /// Reads a `Node`. Namespace and service account are those of the certificate; a node that
    /// claims others is refused.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(node: &Node, identity: &Identity) -> Result<Self, String> {
        if node.id.is_empty() || node.id.len() > MAX_ID {
            return Err("node.id must have 1 to 1024 bytes".into());
        }
        let metadata = node.metadata.as_ref();
        let claims = [
            ("NAMESPACE", &identity.namespace),
            ("SERVICE_ACCOUNT", &identity.service_account),
        ];
        for (key, proven) in claims {
            match text(metadata, key) {
                Some(claimed) if claimed != proven => {
                    return Err(format!(
                        "node metadata {key} is {claimed:?}, but its certificate \
                                        is for {identity}"
                    ));
                }
                Some(_) | None => {}
            }
        }
        let mut addresses = Vec::new();
        let listed = text(metadata, "INSTANCE_IPS").unwrap_or_default();
        for word in listed.split(',').filter(|word| !word.is_empty()) {
            let address: IpAddr = word
                .trim()
                .parse()
                .map_err(|_| format!("node metadata INSTANCE_IPS: {word:?} is no address"))?;
            addresses.push(address);
        }
        // `sidecar~<ip>~<workload>.<ns>~<domain>`
        let mut parts = node.id.split('~').skip(1);
        let (ip, name) = (parts.next(), parts.next());
        if addresses.is_empty() {
            addresses.extend(ip.and_then(|ip| ip.parse::<IpAddr>().ok()));
        }
        addresses.truncate(MAX_ADDRESSES);
        let workload = text(metadata, "WORKLOAD_NAME").map(str::to_owned);
        let workload = workload.or_else(|| {
            let name = name?.rsplit_once('.').map_or(name?, |(name, _)| name);
            Some(name.to_owned())
        });
        Ok(Self {
            id: node.id.clone(),
            version: version(node),
            viewer: Viewer {
                namespace: identity.namespace.clone(),
                service_account: identity.service_account.clone(),
                workload: workload.unwrap_or_default(),
                labels: labels(metadata),
                addresses,
            },
        })
    }

    /// `<namespace>/<workload>`, for people.
    #[must_use]
    pub fn name(&self) -> String {
        let Viewer {
            namespace,
            workload,
            ..
        } = &self.viewer;
        if workload.is_empty() {
            self.id.clone()
        } else {
            format!("{namespace}/{workload}")
        }
    }
}

fn text<'m>(metadata: Option<&'m Struct>, key: &str) -> Option<&'m str> {
    match metadata?.fields.get(key)?.kind.as_ref()? {
        Kind::StringValue(text) => Some(text),
        _ => None,
    }
}

/// Labels of one workload; Kubernetes has no bound, but objects are bounded.
const MAX_LABELS: usize = 256;

fn labels(metadata: Option<&Struct>) -> BTreeMap<String, String> {
    let kind = metadata.and_then(|all| all.fields.get("LABELS")?.kind.as_ref());
    let Some(Kind::StructValue(labels)) = kind else {
        return BTreeMap::new();
    };
    let texts = labels
        .fields
        .iter()
        .filter_map(|(key, value)| match &value.kind {
            Some(Kind::StringValue(text)) => Some((key.clone(), text.clone())),
            _ => None,
        });
    texts.take(MAX_LABELS).collect()
}

fn version(node: &Node) -> String {
    let own = text(node.metadata.as_ref(), "OUTRIGGER_VERSION");
    let agent = match &node.user_agent_version_type {
        Some(UserAgentVersionType::UserAgentVersion(version)) => version.clone(),
        Some(UserAgentVersionType::UserAgentBuildVersion(build)) => {
            let version = build.version.unwrap_or_default();
            let (major, minor) = (version.major_number, version.minor_number);
            format!("{major}.{minor}.{}", version.patch)
        }
        None => String::new(),
    };
    format!("{} {}", node.user_agent_name, own.unwrap_or(&agent))
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn identity() -> Identity {
        Identity::new("td", "shop", "cart").unwrap()
    }

    fn node(id: &str, metadata: &[(&str, Kind)]) -> Node {
        let fields = metadata.iter().map(|(key, kind)| {
            let value = prost_types::Value {
                kind: Some(kind.clone()),
            };
            ((*key).to_owned(), value)
        });
        Node {
            id: id.into(),
            metadata: Some(Struct {
                fields: fields.collect(),
            }),
            ..Node::default()
        }
    }

    fn text(text: &str) -> Kind {
        Kind::StringValue(text.into())
    }

    #[test]
    fn a_sidecar_introduces_itself() {
        let labels = BTreeMap::from([("app".to_owned(), "cart".to_owned())]);
        let fields = labels.iter().map(|(key, value)| {
            let kind = Some(text(value));
            (key.clone(), prost_types::Value { kind })
        });
        let struct_of = Struct {
            fields: fields.collect(),
        };
        let node = node(
            "sidecar~10.1.0.2~cart-1.shop~shop.svc.td",
            &[
                ("NAMESPACE", text("shop")),
                ("SERVICE_ACCOUNT", text("cart")),
                ("INSTANCE_IPS", text("10.1.0.2,fd00::2")),
                ("LABELS", Kind::StructValue(struct_of)),
                ("OUTRIGGER_VERSION", text("0.1.0")),
            ],
        );
        let info = NodeInfo::read(&node, &identity()).unwrap();
        assert_eq!(info.name(), "shop/cart-1");
        assert_eq!(info.version, "0.1.0");
        assert_eq!(info.viewer.labels, labels);
        let addresses: [IpAddr; 2] = ["10.1.0.2", "fd00::2"].map(|ip| ip.parse().unwrap());
        assert_eq!(info.viewer.addresses, addresses);
    }

    #[test]
    fn the_id_says_what_metadata_does_not() {
        let node = node("sidecar~10.1.0.2~cart-1.shop~shop.svc.td", &[]);
        let info = NodeInfo::read(&node, &identity()).unwrap();
        assert_eq!(
            info.viewer.addresses,
            ["10.1.0.2".parse::<IpAddr>().unwrap()]
        );
        assert_eq!(info.viewer.workload, "cart-1");
        assert_eq!(info.viewer.namespace, "shop");
    }

    #[test]
    fn nobody_claims_to_be_somebody_else() {
        for (key, value) in [("NAMESPACE", "bank"), ("SERVICE_ACCOUNT", "admin")] {
            let node = node("x", &[(key, text(value))]);
            let refused = NodeInfo::read(&node, &identity()).unwrap_err();
            assert!(
                refused.contains(key) && refused.contains("shop"),
                "{refused}"
            );
        }
    }

    #[test]
    fn xd_08_odd_nodes_are_refused() {
        for (id, ips) in [
            ("", ""),
            (&*"x".repeat(MAX_ID + 1), ""),
            ("x", "10.1.0.2,no"),
        ] {
            let node = node(id, &[("INSTANCE_IPS", text(ips))]);
            assert!(NodeInfo::read(&node, &identity()).is_err(), "{id:.9} {ips}");
        }
    }
}

//! Who we say we are: the `Node` of the first request of a stream.

use std::{collections::BTreeMap, net::IpAddr};

use outrigger_proto::envoy::config::core::v3::{Locality, Node, node::UserAgentVersionType};
use prost_types::{Struct, Value, value::Kind};

/// This proxy, as control planes know sidecars. The keys are those that istiod reads, and ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeInfo {
    /// `sidecar~<ip>~<workload>.<namespace>~<namespace>.svc.<domain>`; stays the same over
    /// restarts, since servers key what they keep by it.
    pub id: String,
    pub namespace: String,
    pub service_account: String,
    pub workload: String,
    pub labels: BTreeMap<String, String>,
    pub addresses: Vec<IpAddr>,
    pub region: String,
    pub zone: String,
    /// Asks for destinations one by one.
    pub on_demand: bool,
    /// Further metadata, such as `ISTIO_VERSION` for an istiod.
    pub extra: BTreeMap<String, String>,
}

impl NodeInfo {
    /// The message.
    pub(crate) fn message(&self) -> Node {
        let addresses: Vec<String> = self.addresses.iter().map(ToString::to_string).collect();
        let version = env!("CARGO_PKG_VERSION");
        let mut fields = BTreeMap::from([
            ("NAMESPACE".to_owned(), text(&self.namespace)),
            ("SERVICE_ACCOUNT".to_owned(), text(&self.service_account)),
            ("WORKLOAD_NAME".to_owned(), text(&self.workload)),
            ("INSTANCE_IPS".to_owned(), text(&addresses.join(","))),
            ("LABELS".to_owned(), object(&self.labels)),
            ("OUTRIGGER_VERSION".to_owned(), text(version)),
        ]);
        if self.on_demand {
            let on = Value {
                kind: Some(Kind::BoolValue(true)),
            };
            fields.insert("OUTRIGGER_ON_DEMAND".to_owned(), on);
        }
        let extra = self.extra.iter();
        fields.extend(extra.map(|(key, value)| (key.clone(), text(value))));
        Node {
            id: self.id.clone(),
            cluster: format!("{}.{}", self.workload, self.namespace),
            metadata: Some(Struct { fields }),
            locality: Some(Locality {
                region: self.region.clone(),
                zone: self.zone.clone(),
                sub_zone: String::new(),
            }),
            user_agent_name: "outrigger-proxy".to_owned(),
            user_agent_version_type: Some(UserAgentVersionType::UserAgentVersion(
                version.to_owned(),
            )),
            client_features: vec!["xds.config.supports-resource-ttl".to_owned()],
        }
    }
}

fn text(value: &str) -> Value {
    Value {
        kind: Some(Kind::StringValue(value.to_owned())),
    }
}

fn object(pairs: &BTreeMap<String, String>) -> Value {
    let fields = pairs.iter();
    let fields = fields
        .map(|(key, value)| (key.clone(), text(value)))
        .collect();
    Value {
        kind: Some(Kind::StructValue(Struct { fields })),
    }
}

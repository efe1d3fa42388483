//! The configuration as it was received, in the shape of `envoy.admin.v3.ConfigDump`. Keys of
//! certificates are left out.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use regex::Regex;
use serde_json::{Map, Value, json};

use super::{
    Admin, Origin,
    call::{Answer, Call},
    state,
};
use crate::{
    tls::Identity,
    xds::{Kind, ResourceView},
};

const PREFIX: &str = "type.googleapis.com/envoy.admin.v3.";
const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

/// How Envoy dumps one type of resources.
struct Shape {
    kind: Kind,
    dump: &'static str,
    /// List and type of the entries that come from a file, and of those that came over xDS.
    from_file: [&'static str; 2],
    over_xds: [&'static str; 2],
    /// Field of an entry that holds the resource.
    field: &'static str,
    /// Field of the resource that holds its name.
    name: &'static str,
    /// Whether an entry has the name, too.
    named: bool,
    /// Field of an entry that holds version, resource and time, if they are not there directly.
    state: Option<&'static str>,
}

/// In Envoy's order.
const SHAPES: [Shape; 5] = [
    Shape {
        kind: Kind::Cluster,
        dump: "ClustersConfigDump",
        from_file: ["static_clusters", "StaticCluster"],
        over_xds: ["dynamic_active_clusters", "DynamicCluster"],
        field: "cluster",
        name: "name",
        named: false,
        state: None,
    },
    Shape {
        kind: Kind::Endpoints,
        dump: "EndpointsConfigDump",
        from_file: ["static_endpoint_configs", "StaticEndpointConfig"],
        over_xds: ["dynamic_endpoint_configs", "DynamicEndpointConfig"],
        field: "endpoint_config",
        name: "cluster_name",
        named: false,
        state: None,
    },
    Shape {
        kind: Kind::Listener,
        dump: "ListenersConfigDump",
        from_file: ["static_listeners", "StaticListener"],
        over_xds: ["dynamic_listeners", "DynamicListener"],
        field: "listener",
        name: "name",
        named: true,
        state: Some("active_state"),
    },
    Shape {
        kind: Kind::Route,
        dump: "RoutesConfigDump",
        from_file: ["static_route_configs", "StaticRouteConfig"],
        over_xds: ["dynamic_route_configs", "DynamicRouteConfig"],
        field: "route_config",
        name: "name",
        named: false,
        state: None,
    },
    Shape {
        kind: Kind::Secret,
        dump: "SecretsConfigDump",
        from_file: ["static_secrets", "StaticSecret"],
        over_xds: ["dynamic_active_secrets", "DynamicSecret"],
        field: "secret",
        name: "name",
        named: true,
        state: None,
    },
];

/// The page.
pub(super) fn page(admin: &Admin, call: &Call<'_>) -> Answer {
    let names = match call.regex("name_regex") {
        Ok(names) => names,
        Err(refusal) => return refusal,
    };
    if let Some(wanted) = call.get("resource") {
        return one_list(admin, wanted, names.as_ref());
    }
    let mut configs = vec![json!({
        "@type": format!("{PREFIX}BootstrapConfigDump"),
        "bootstrap": { "node": state::node(&admin.node) },
    })];
    for shape in &SHAPES {
        // Endpoints are many and change all the time; Envoy too shows them when asked to.
        if shape.kind == Kind::Endpoints && !call.has("include_eds") {
            continue;
        }
        let mut dump = Map::new();
        dump.insert("@type".to_owned(), format!("{PREFIX}{}", shape.dump).into());
        let [from_file, over_xds] = lists(admin, shape, names.as_ref());
        for (list, [name, _]) in [(from_file, shape.from_file), (over_xds, shape.over_xds)] {
            if !list.is_empty() {
                dump.insert(name.to_owned(), list.into());
            }
        }
        configs.push(Value::Object(dump));
    }
    Answer::json(&json!({ "configs": configs }))
}

/// `?resource=`: the entries of one list, each with its type.
fn one_list(admin: &Admin, wanted: &str, names: Option<&Regex>) -> Answer {
    for shape in &SHAPES {
        for (at, [list, entry]) in [shape.from_file, shape.over_xds].into_iter().enumerate() {
            if list != wanted {
                continue;
            }
            let all = lists(admin, shape, names).into_iter().nth(at);
            let mut all = all.unwrap_or_default();
            for one in all.iter_mut().filter_map(Value::as_object_mut) {
                let url = format!("{PREFIX}{}.{entry}", shape.dump);
                one.insert("@type".to_owned(), url.into());
            }
            return Answer::json(&json!({ "configs": all }));
        }
    }
    let each = SHAPES.iter();
    let known: Vec<_> = each
        .flat_map(|shape| [shape.from_file, shape.over_xds])
        .map(|[list, _]| list)
        .collect();
    Answer::refused(&format!(
        "resource: no list {wanted:?}; there are {}",
        known.join(", ")
    ))
}

/// Entries from a file, and entries over xDS.
fn lists(admin: &Admin, shape: &Shape, names: Option<&Regex>) -> [Vec<Value>; 2] {
    let wanted = |name: &str| names.is_none_or(|names| names.is_match(name));
    let mut from_file = Vec::new();
    let mut over_xds = Vec::new();
    for (origin, resource) in admin.resources(shape.kind) {
        if !wanted(&resource.name) {
            continue;
        }
        match origin {
            Origin::File => from_file.push(static_entry(shape, &resource)),
            Origin::ControlPlane => over_xds.push(dynamic_entry(shape, &resource)),
        }
    }
    if shape.kind == Kind::Secret
        && let Some(identity) = admin.shared.identity.get()
    {
        let own = own_secrets(&identity).into_iter();
        over_xds.extend(own.filter(|(name, _)| wanted(name)).map(|(_, entry)| entry));
    }
    [from_file, over_xds]
}

/// The resource, or as much of it as is known: its name.
fn body(shape: &Shape, resource: &ResourceView) -> Value {
    resource
        .json()
        .unwrap_or_else(|| json!({ "@type": shape.kind.type_url(), shape.name: &*resource.name }))
}

fn static_entry(shape: &Shape, resource: &ResourceView) -> Value {
    let mut entry = Map::new();
    if shape.named {
        entry.insert("name".to_owned(), json!(&*resource.name));
    }
    entry.insert(shape.field.to_owned(), body(shape, resource));
    if let Some(at) = resource.last_updated {
        entry.insert("last_updated".to_owned(), stamp(at));
    }
    Value::Object(entry)
}

fn dynamic_entry(shape: &Shape, resource: &ResourceView) -> Value {
    let mut held = Map::new();
    if let Some(version) = &resource.version {
        held.insert("version_info".to_owned(), json!(&**version));
    }
    held.insert(shape.field.to_owned(), body(shape, resource));
    if let Some(at) = resource.last_updated {
        held.insert("last_updated".to_owned(), stamp(at));
    }
    let mut entry = match shape.state {
        None => held,
        Some(field) if resource.raw.is_some() => Map::from_iter([(field.to_owned(), held.into())]),
        Some(_) => Map::new(),
    };
    if shape.named {
        entry.insert("name".to_owned(), json!(&*resource.name));
    }
    entry.insert("client_status".to_owned(), resource.status.as_str().into());
    if let Some((version, at, why)) = &resource.error {
        let failure = json!({
            "details": why,
            "version_info": &**version,
            "last_update_attempt": stamp(*at),
        });
        entry.insert("error_state".to_owned(), failure);
    }
    Value::Object(entry)
}

/// Our own certificate and the bundle, under the names that configurations call them by. The key
/// is not even here to be shown.
fn own_secrets(identity: &Identity) -> [(&'static str, Value); 2] {
    let since = UNIX_EPOCH + Duration::from_secs(identity.not_before);
    let entry = |name: &'static str, field: &str, what: Value| {
        let secret = json!({
            "name": name,
            "version_info": identity.serial,
            "last_updated": stamp(since),
            "client_status": "ACKED",
            "secret": { "@type": SECRET, "name": name, field: what },
        });
        (name, secret)
    };
    [
        entry(
            "default",
            "tls_certificate",
            json!({
                "certificate_chain": { "inline_string": identity.chain_pem },
                "private_key": "[redacted]",
            }),
        ),
        entry(
            "ROOTCA",
            "validation_context",
            json!({ "trusted_ca": { "inline_string": identity.roots_pem } }),
        ),
    ]
}

/// A time as proto3 JSON has it.
pub(super) fn stamp(at: SystemTime) -> Value {
    prost_types::Timestamp::from(at).to_string().into()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::xds::Status;

    fn view(kind: Kind, status: Status) -> ResourceView {
        ResourceView {
            kind,
            name: "web".into(),
            status,
            version: None,
            last_updated: None,
            raw: None,
            error: None,
        }
    }

    fn shape(kind: Kind) -> &'static Shape {
        SHAPES
            .iter()
            .find(|shape| shape.kind == kind)
            .expect("all kinds")
    }

    #[test]
    fn what_was_only_asked_for_is_shown_by_its_name() {
        let cluster = dynamic_entry(
            shape(Kind::Cluster),
            &view(Kind::Cluster, Status::Requested),
        );
        let expected = json!({
            "client_status": "REQUESTED",
            "cluster": { "@type": Kind::Cluster.type_url(), "name": "web" },
        });
        assert_eq!(cluster, expected);
        let listener = dynamic_entry(
            shape(Kind::Listener),
            &view(Kind::Listener, Status::DoesNotExist),
        );
        let expected = json!({ "client_status": "DOES_NOT_EXIST", "name": "web" });
        assert_eq!(listener, expected);
    }

    #[test]
    fn what_was_refused_stands_beside_what_is_in_use() {
        let at = UNIX_EPOCH + Duration::from_millis(1_795_564_800_500);
        let mut listener = view(Kind::Listener, Status::Nacked);
        listener.version = Some("7".into());
        listener.last_updated = Some(at);
        listener.raw = Some(bytes::Bytes::new());
        listener.error = Some((Arc::from("8"), at, "address: missing".to_owned()));
        let entry = dynamic_entry(shape(Kind::Listener), &listener);
        let time = "2026-11-25T00:00:00.500Z";
        assert_eq!(entry["active_state"]["version_info"], "7");
        assert_eq!(entry["active_state"]["last_updated"], time);
        assert_eq!(entry["client_status"], "NACKED");
        let failure = json!({
            "version_info": "8",
            "details": "address: missing",
            "last_update_attempt": time,
        });
        assert_eq!(entry["error_state"], failure);
    }
}

//! One object of every kind, and what proxies are told because of it.

mod authorization;
mod changes;
mod golden;
mod routes;

use std::{collections::BTreeMap, sync::Arc};

use outrigger_proto::json::any_to_json_redacted;
use outrigger_proxy::xds::{Kind, decode};
use serde_json::Value;

use super::{ResourceType, Viewer, World, names, resource};
use crate::model::{Objects, parse_manifest};

const SHOP: &str = include_str!("../../../examples/shop.yaml");

fn world(manifest: &str) -> World {
    let parsed = parse_manifest(manifest, "default");
    let objects = parsed.unwrap_or_else(|faults| panic!("{faults:#?}"));
    let by_key = objects.into_iter().map(|o| (o.key.clone(), Arc::new(o)));
    let objects = Objects {
        revision: 1,
        by_key: by_key.collect(),
    };
    assert_eq!(objects.conflicts(), []);
    World::new(Arc::new(objects), "outrigger.local")
}

/// An endpoint of `cart`.
fn cart() -> Viewer {
    Viewer {
        namespace: "shop".into(),
        service_account: "cart".into(),
        workload: "cart-a".into(),
        labels: BTreeMap::from([("app".into(), "cart".into())]),
        addresses: vec!["10.1.0.2".parse().unwrap()],
    }
}

/// A caller in another namespace.
fn web() -> Viewer {
    Viewer {
        namespace: "web".into(),
        service_account: "frontend".into(),
        workload: "frontend".into(),
        labels: BTreeMap::new(),
        addresses: vec!["10.1.0.9".parse().unwrap()],
    }
}

fn json(world: &World, viewer: &Viewer, kind: ResourceType, name: &str) -> Value {
    let any = resource(world, viewer, kind, name).unwrap_or_else(|| panic!("no {name}"));
    any_to_json_redacted(&any)
}

fn routes(world: &World, viewer: &Viewer, name: &str) -> Vec<Value> {
    let config = json(world, viewer, ResourceType::Routes, name);
    config["virtual_hosts"][0]["routes"]
        .as_array()
        .unwrap()
        .clone()
}

/// What the proxy passes over on purpose.
const ONLY_FOR_ENVOY: [&str; 4] = [
    "normalize_path",
    "merge_slashes",
    "ecdh_curves",
    "access_log",
];

#[test]
fn the_proxy_understands_every_field_of_every_resource() {
    let world = world(SHOP);
    for viewer in [cart(), web()] {
        let mut listeners = names(&world, &viewer, ResourceType::Listener);
        listeners.push("outbound/10.1.0.3:8081".into());
        let mut clusters = names(&world, &viewer, ResourceType::Cluster);
        clusters.push("pod|10.1.0.3:8081".into());
        let all = [
            (ResourceType::Listener, Kind::Listener, listeners),
            (ResourceType::Cluster, Kind::Cluster, clusters),
            (
                ResourceType::Endpoints,
                Kind::Endpoints,
                names(&world, &viewer, ResourceType::Endpoints),
            ),
            (
                ResourceType::Routes,
                Kind::Route,
                names(&world, &viewer, ResourceType::Routes),
            ),
        ];
        for (kind, theirs, names) in all {
            assert!(!names.is_empty());
            for name in names {
                let any = resource(&world, &viewer, kind, &name).expect(&name);
                assert_eq!(any.type_url, kind.url());
                let parsed = decode::parse(theirs, &any.value);
                let parsed = parsed.unwrap_or_else(|why| panic!("{name}: {why}"));
                assert_eq!(parsed.name, name);
                let passed = |path: &&String| !ONLY_FOR_ENVOY.iter().any(|f| path.contains(f));
                let ignored: Vec<_> = parsed.ignored.iter().filter(passed).collect();
                assert!(ignored.is_empty(), "{name}: {ignored:?}");
            }
        }
    }
}

#[test]
fn the_same_objects_give_the_same_bytes() {
    let (one, other) = (world(SHOP), world(SHOP));
    for kind in ResourceType::ALL {
        for name in names(&one, &cart(), kind) {
            let made = resource(&one, &cart(), kind, &name);
            assert_eq!(made, resource(&other, &cart(), kind, &name), "{name}");
        }
    }
}

#[test]
fn what_is_not_there_is_not_made_up() {
    let world = world(SHOP);
    let absent = [
        (ResourceType::Listener, "outbound/192.0.2.1:80"),
        (ResourceType::Listener, "outbound/10.96.0.10:81"),
        (ResourceType::Listener, "outbound/010.96.0.10:80"),
        (ResourceType::Listener, "outbound/"),
        (ResourceType::Listener, "other"),
        (ResourceType::Cluster, "outbound|81||cart.shop.svc"),
        (ResourceType::Cluster, "outbound|80||cart.web.svc"),
        (ResourceType::Cluster, "outbound|x||cart.shop.svc"),
        (ResourceType::Cluster, "pod|192.0.2.1:80"),
        (ResourceType::Cluster, "inbound|99999||"),
        (ResourceType::Cluster, ""),
        (ResourceType::Endpoints, "pod|10.1.0.2:8080"),
        (ResourceType::Routes, "outbound|81|cart.shop.svc"),
        (ResourceType::Routes, "outbound|80||cart.shop.svc"),
    ];
    for (kind, name) in absent {
        assert_eq!(resource(&world, &web(), kind, name), None, "{name}");
    }
}

#[test]
fn a_policy_says_what_share_is_traced_and_without_one_the_proxy_does() {
    let service = SHOP.split("---").next().expect("a first object");
    let policy = |sampling: &str| {
        format!(
            "{service}\n---\napiVersion: outrigger.dev/v1\nkind: Telemetry\n\
             metadata: {{name: t, namespace: shop}}\nspec: {{{sampling}}}\n"
        )
    };
    let tracing = |manifest: &str| {
        let inbound = json(&world(manifest), &cart(), ResourceType::Listener, "inbound");
        let text = inbound.to_string();
        text.split("\"tracing\":").nth(1).map(|rest| {
            let end = rest.find("}}").expect("an end");
            rest.get(..end + 2).expect("text").to_owned()
        })
    };
    assert_eq!(tracing(service), None);
    assert_eq!(tracing(&policy("accessLog: true")), None);
    let half = r#"{"random_sampling":{"value":0.5}}"#;
    let stated = tracing(&policy("tracing: {sampling: 0.5}"));
    assert_eq!(stated.as_deref(), Some(half));
}

//! What is kept when something changes must be what would be made again.

use std::sync::Arc;

use proptest::prelude::*;

use super::{ResourceType, SHOP, Viewer, cart, web};
use crate::{
    model::{Object, Objects, parse_manifest},
    translate::{Changes, World, names, resource},
};

fn objects() -> Vec<Arc<Object>> {
    let parsed = parse_manifest(SHOP, "default").unwrap();
    let variant = SHOP
        .replace("address: 10.1.0.3", "address: 10.1.0.7")
        .replace("weight: 2", "weight: 3")
        .replace("10.96.0.11", "10.96.0.12")
        .replace("mode: strict", "mode: permissive")
        .replace("percent: 10}", "percent: 20}");
    let variant = parse_manifest(&variant, "default").unwrap();
    parsed.into_iter().chain(variant).map(Arc::new).collect()
}

fn world(chosen: &[bool], all: &[Arc<Object>]) -> World {
    let chosen = all.iter().zip(chosen).filter(|(_, on)| **on);
    let by_key = chosen.map(|(object, _)| (object.key.clone(), Arc::clone(object)));
    let objects = Objects {
        revision: 1,
        by_key: by_key.collect(),
    };
    World::new(Arc::new(objects), "outrigger.local")
}

fn check(old: &World, new: &World, viewer: &Viewer) -> Result<(), TestCaseError> {
    let Some(changes) = Changes::between(old, new) else {
        return Ok(());
    };
    for kind in ResourceType::ALL {
        let mut all = names(old, viewer, kind);
        all.extend(["outbound/10.1.0.3:8081".into(), "pod|10.1.0.3:8081".into()]);
        for name in all {
            if changes.spare(new, kind, &name) {
                let before = resource(old, viewer, kind, &name);
                let after = resource(new, viewer, kind, &name);
                prop_assert!(before == after, "{name}");
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_spared_is_the_same(
        first in proptest::collection::vec(any::<bool>(), 64),
        flips in proptest::collection::vec(0_usize..64, 1..4),
        services in any::<bool>(),
    ) {
        let all = objects();
        let mut second = first.clone();
        for flip in flips {
            // Changes of services alone are those that spare anything.
            let service = all.get(flip).is_some_and(|o| o.key.kind.as_str() == "Service");
            if service || !services {
                second[flip] = !second[flip];
            }
        }
        for viewer in [cart(), web()] {
            check(&world(&first, &all), &world(&second, &all), &viewer)?;
        }
    }
}

#[test]
fn one_endpoint_more_touches_its_service_only() {
    let all = objects();
    let half = all.len() / 2;
    let mut first = vec![true; half];
    first.resize(all.len(), false);
    let mut second = first.clone();
    // The other `cart`.
    second[half] = true;
    let (old, new) = (world(&first, &all), world(&second, &all));
    let changes = Changes::between(&old, &new).unwrap();
    let spared = |kind, name| changes.spare(&new, kind, name);
    assert!(!spared(
        ResourceType::Endpoints,
        "outbound|80||cart.shop.svc"
    ));
    assert!(!spared(ResourceType::Listener, "outbound/10.1.0.7:8081"));
    assert!(!spared(ResourceType::Listener, "inbound"));
    assert!(spared(
        ResourceType::Endpoints,
        "outbound|80||cart-v2.shop.svc"
    ));
    assert!(spared(
        ResourceType::Cluster,
        "outbound|80||cart-v2.shop.svc"
    ));
    assert!(spared(ResourceType::Listener, "outbound/10.96.0.11:80"));
    assert!(spared(ResourceType::Listener, "outbound"));
}

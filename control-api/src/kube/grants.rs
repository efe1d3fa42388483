//! Who may send requests into another namespace: the Gateway API's ReferenceGrants. A route names a
//! Service of another namespace only where that namespace has granted it.

use std::{collections::BTreeMap, sync::Arc};

use serde::Deserialize;
use serde_json::Value;

use super::Name;
use crate::model::{BackendRef, Filter, Invalid, Kind, Object, ParentRef, Spec};

/// The kind, as the cluster has it.
pub const KIND: &str = "ReferenceGrant";
/// Its versions; the first that is served is taken.
pub const VERSIONS: &[&str] = &[
    "gateway.networking.k8s.io/v1",
    "gateway.networking.k8s.io/v1beta1",
];
/// Group of the routes.
const ROUTES: &str = "gateway.networking.k8s.io";
/// Annotation of a route, as it is shown, with what it may not refer to.
const DENIED: &str = "outrigger.dev/not-permitted";

/// One grant, as far as it is about routes and Services.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Grant {
    #[serde(default)]
    from: Vec<From>,
    #[serde(default)]
    to: Vec<To>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct From {
    #[serde(default)]
    group: String,
    kind: String,
    namespace: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct To {
    #[serde(default)]
    group: String,
    kind: String,
    #[serde(default)]
    name: Option<String>,
}

impl Grant {
    /// Of an object; one that cannot be read grants nothing.
    #[must_use]
    pub fn of(document: &Value) -> Self {
        let spec = document.get("spec").cloned().unwrap_or_default();
        serde_json::from_value(spec).unwrap_or_else(|error| {
            let name = document.pointer("/metadata/name").and_then(Value::as_str);
            tracing::warn!(%error, name, "ReferenceGrant not understood: it grants nothing");
            Self::default()
        })
    }

    /// Whether routes of this kind and namespace may name the Service.
    fn permits(&self, kind: Kind, namespace: &str, service: &str) -> bool {
        let from = self.from.iter().any(|from| {
            from.group == ROUTES && from.kind == kind.as_str() && from.namespace == namespace
        });
        let to = self.to.iter().any(|to| {
            let name = to.name.as_deref().filter(|name| !name.is_empty());
            to.group.is_empty() && to.kind == "Service" && name.is_none_or(|own| own == service)
        });
        from && to
    }
}

/// Takes out of `object` what it may not refer to, and says what that is. `grants` are those of the
/// namespaces, each with its name.
///
/// The Service that a route is attached to needs no grant: such a route concerns only callers of
/// its own namespace, which could call that Service without it.
pub fn enforce(object: &mut Object, grants: &BTreeMap<Name, Grant>) -> Vec<Invalid> {
    let key = object.key.clone();
    let parents = parents(&object.spec).to_vec();
    let mut denied = Vec::new();
    each_backend(&mut object.spec, &mut |path, backend| {
        let Some(namespace) = backend.namespace.as_deref() else {
            return;
        };
        let own = namespace == key.namespace;
        let parent = parents
            .iter()
            .any(|p| p.name == backend.name && p.namespace.as_deref() == Some(namespace));
        let granted = grants.iter().any(|(place, grant)| {
            let here = place.namespace == namespace;
            here && grant.permits(key.kind, &key.namespace, &backend.name)
        });
        if own || parent || granted {
            return;
        }
        denied.push(Invalid {
            object: key.to_string(),
            path,
            why: format!(
                "no {KIND} in namespace {namespace} lets a {} of namespace {} refer to Service {}",
                key.kind, key.namespace, backend.name
            ),
        });
        // No Service has such a port: requests that were to go there are answered with 500, as the
        // Gateway API has it.
        backend.port = None;
    });
    if !denied.is_empty() {
        mark(object, &denied);
    }
    denied
}

/// What is shown says it too.
fn mark(object: &mut Object, denied: &[Invalid]) {
    let paths: Vec<_> = denied.iter().map(|one| one.path.as_str()).collect();
    let paths = paths.join(", ");
    let metadata = object
        .json
        .get_mut("metadata")
        .and_then(Value::as_object_mut);
    let Some(metadata) = metadata else { return };
    let annotations = metadata
        .entry("annotations")
        .or_insert_with(|| Value::Object(<_>::default()));
    if let Some(annotations) = annotations.as_object_mut() {
        annotations.insert(DENIED.to_owned(), paths.into());
    }
}

/// Whether it refers to another namespace, so that grants decide what it is.
#[must_use]
pub fn concerns(object: &Object) -> bool {
    let mut found = false;
    let mut spec = object.spec.clone();
    each_backend(&mut spec, &mut |_, backend| {
        let elsewhere = backend.namespace.as_ref();
        found |= elsewhere.is_some_and(|namespace| *namespace != object.key.namespace);
    });
    found
}

fn parents(spec: &Spec) -> &[ParentRef] {
    match spec {
        Spec::HttpRoute(route) => &route.parent_refs,
        Spec::GrpcRoute(route) => &route.parent_refs,
        Spec::TlsRoute(route) => &route.parent_refs,
        Spec::TcpRoute(route) => &route.parent_refs,
        _ => &[],
    }
}

/// Every backend of a route, mirrors included, with where it stands.
fn each_backend(spec: &mut Spec, visit: &mut dyn FnMut(String, &mut BackendRef)) {
    let mut rule = |i: usize, backends: &mut [BackendRef], filters: &mut [Filter]| {
        for (j, backend) in backends.iter_mut().enumerate() {
            visit(format!("spec.rules[{i}].backendRefs[{j}]"), backend);
        }
        for (j, filter) in filters.iter_mut().enumerate() {
            if let Filter::RequestMirror { mirror } = filter {
                let path = format!("spec.rules[{i}].filters[{j}].requestMirror.backendRef");
                visit(path, &mut mirror.backend_ref);
            }
        }
    };
    match spec {
        Spec::HttpRoute(route) => {
            for (i, one) in Arc::make_mut(route).rules.iter_mut().enumerate() {
                rule(i, &mut one.backend_refs, &mut one.filters);
            }
        }
        Spec::GrpcRoute(route) => {
            for (i, one) in Arc::make_mut(route).rules.iter_mut().enumerate() {
                rule(i, &mut one.backend_refs, &mut one.filters);
            }
        }
        Spec::TlsRoute(route) => {
            for (i, one) in Arc::make_mut(route).rules.iter_mut().enumerate() {
                rule(i, &mut one.backend_refs, &mut []);
            }
        }
        Spec::TcpRoute(route) => {
            for (i, one) in Arc::make_mut(route).rules.iter_mut().enumerate() {
                rule(i, &mut one.backend_refs, &mut []);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::parse_object;

    fn route(kind: &str, parent: &str) -> Object {
        let parsed = parse_object(
            json!({
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": kind,
                "metadata": {"name": "r", "namespace": "shop"},
                "spec": {
                    "parentRefs": [{"kind": "Service", "group": "", "name": parent,
                        "namespace": "stock"}],
                    "rules": [{"backendRefs": [
                        {"name": "own", "port": 80},
                        {"name": "store", "namespace": "stock", "port": 80},
                    ]}],
                },
            }),
            "",
            0,
        );
        parsed.expect("a route")
    }

    /// Paths that are denied by a grant in namespace `place`.
    fn denied(mut object: Object, place: &str, spec: &Value) -> Vec<String> {
        let grant = Grant::of(&json!({"spec": spec}));
        let grants = BTreeMap::from([(Name::new(place, "g"), grant)]);
        let denied = enforce(&mut object, &grants);
        denied.into_iter().map(|one| one.path).collect()
    }

    #[test]
    fn another_namespace_is_named_only_where_that_has_granted_it() {
        let from = json!({"group": ROUTES, "kind": "HTTPRoute", "namespace": "shop"});
        let whole = json!({"from": [from], "to": [{"group": "", "kind": "Service"}]});
        let there = "spec.rules[0].backendRefs[1]";
        let named = |name: &str| {
            let to = json!({"group": "", "kind": "Service", "name": name});
            json!({"from": [from], "to": [to]})
        };
        let mut elsewhere = whole.clone();
        elsewhere["from"][0]["namespace"] = "blog".into();
        let mut secrets = whole.clone();
        secrets["to"][0]["kind"] = "Secret".into();
        let table = [
            ("stock", whole.clone(), false),
            ("stock", named("store"), false),
            ("stock", named("other"), true),
            ("blog", whole.clone(), true),
            ("stock", elsewhere, true),
            ("stock", secrets, true),
            ("stock", json!({"from": "nonsense"}), true),
        ];
        for (place, spec, no) in table {
            let want: &[&str] = if no { &[there] } else { &[] };
            assert_eq!(
                denied(route("HTTPRoute", "x"), place, &spec),
                want,
                "{place} {spec}"
            );
        }
        // A grant for HTTPRoutes is none for others.
        assert_eq!(denied(route("GRPCRoute", "x"), "stock", &whole), [there]);
        // To go where one is attached is nobody else's business.
        assert!(denied(route("HTTPRoute", "store"), "blog", &whole).is_empty());
    }

    #[test]
    fn what_is_denied_leads_nowhere_and_is_shown() {
        let mut object = route("TCPRoute", "x");
        assert!(concerns(&object));
        let denied = enforce(&mut object, &BTreeMap::new());
        assert_eq!(denied.len(), 1);
        let Spec::TcpRoute(spec) = &object.spec else {
            panic!("{:?}", object.spec);
        };
        let ports: Vec<_> = spec.rules[0].backend_refs.iter().map(|b| b.port).collect();
        assert_eq!(ports, [Some(80), None]);
        let shown = &object.json["metadata"]["annotations"][DENIED];
        assert_eq!(shown, "spec.rules[0].backendRefs[1]");
    }
}

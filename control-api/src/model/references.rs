//! References that lead nowhere. They are no faults, since what they name may come later; but who
//! wrote them wants to know.

use super::{
    BackendRef, Filter, Invalid, Key, Kind, Object, Objects, ParentRef, RouteRef, Spec, TargetRef,
};

/// What `object` names and is not among `objects`.
#[must_use]
pub fn dangling(objects: &Objects, object: &Object) -> Vec<Invalid> {
    let mut gaps = Gaps {
        objects,
        object,
        found: Vec::new(),
    };
    match &object.spec {
        Spec::HttpRoute(route) => {
            gaps.parents(&route.parent_refs);
            for (i, rule) in route.rules.iter().enumerate() {
                gaps.backends(i, &rule.backend_refs);
                gaps.mirrors(i, &rule.filters);
            }
        }
        Spec::GrpcRoute(route) => {
            gaps.parents(&route.parent_refs);
            for (i, rule) in route.rules.iter().enumerate() {
                gaps.backends(i, &rule.backend_refs);
                gaps.mirrors(i, &rule.filters);
            }
        }
        Spec::TlsRoute(route) => {
            gaps.parents(&route.parent_refs);
            for (i, rule) in route.rules.iter().enumerate() {
                gaps.backends(i, &rule.backend_refs);
            }
        }
        Spec::TcpRoute(route) => {
            gaps.parents(&route.parent_refs);
            for (i, rule) in route.rules.iter().enumerate() {
                gaps.backends(i, &rule.backend_refs);
            }
        }
        Spec::TrafficPolicy(policy) => gaps.targets(&policy.target_refs),
        Spec::AuthorizationPolicy(policy) => gaps.targets(&policy.target_refs),
        Spec::FaultInjection(policy) => gaps.targets(&policy.target_refs),
        Spec::RateLimit(policy) => gaps.routes(&policy.target_refs),
        Spec::Service(_) | Spec::MutualTls(_) | Spec::Telemetry(_) => {}
    }
    gaps.found
}

struct Gaps<'o> {
    objects: &'o Objects,
    object: &'o Object,
    found: Vec<Invalid>,
}

impl Gaps<'_> {
    fn look(&mut self, path: String, namespace: Option<&str>, name: &str, port: Option<u16>) {
        let key = Key {
            kind: Kind::Service,
            namespace: namespace.unwrap_or(&self.object.key.namespace).to_owned(),
            name: name.to_owned(),
        };
        let service = self.objects.by_key.get(&key).map(|object| &object.spec);
        let why = match (service, port) {
            (Some(Spec::Service(service)), Some(port)) => {
                if service.ports.iter().any(|own| own.port == port) {
                    return;
                }
                format!("{key} has no port {port}")
            }
            (Some(_), _) => return,
            (None, _) => format!("{key} does not exist"),
        };
        self.found.push(Invalid {
            object: self.object.key.to_string(),
            path,
            why,
        });
    }

    fn parents(&mut self, parents: &[ParentRef]) {
        for (i, parent) in parents.iter().enumerate() {
            let path = format!("spec.parentRefs[{i}]");
            self.look(path, parent.namespace.as_deref(), &parent.name, parent.port);
        }
    }

    fn targets(&mut self, targets: &[TargetRef]) {
        for (i, target) in targets.iter().enumerate() {
            self.look(
                format!("spec.targetRefs[{i}]"),
                None,
                &target.name,
                target.port,
            );
        }
    }

    fn routes(&mut self, targets: &[RouteRef]) {
        for (i, target) in targets.iter().enumerate() {
            let Some(kind) = target.kind() else { continue };
            let key = Key {
                kind,
                namespace: self.object.key.namespace.clone(),
                name: target.name.clone(),
            };
            if !self.objects.by_key.contains_key(&key) {
                self.found.push(Invalid {
                    object: self.object.key.to_string(),
                    path: format!("spec.targetRefs[{i}]"),
                    why: format!("{key} does not exist"),
                });
            }
        }
    }

    fn backends(&mut self, rule: usize, backends: &[BackendRef]) {
        for (i, backend) in backends.iter().enumerate() {
            let path = format!("spec.rules[{rule}].backendRefs[{i}]");
            self.look(
                path,
                backend.namespace.as_deref(),
                &backend.name,
                backend.port,
            );
        }
    }

    fn mirrors(&mut self, rule: usize, filters: &[Filter]) {
        for (i, filter) in filters.iter().enumerate() {
            if let Filter::RequestMirror { mirror } = filter {
                let to = &mirror.backend_ref;
                let path = format!("spec.rules[{rule}].filters[{i}].requestMirror.backendRef");
                self.look(path, to.namespace.as_deref(), &to.name, to.port);
            }
        }
    }
}

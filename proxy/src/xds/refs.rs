//! What a resource needs from others.

use super::{decode::Resource, kind::Kind, protocol::Name};
use crate::config::{
    Cluster, Listener, RouteConfig,
    cluster::Discovery,
    listener::{ChainKind, Routes},
    route::{Action, Target},
    tls::{ClientTls, SecretRef, ServerTls},
};

/// A resource that another one names.
pub(crate) type Ref = (Kind, Name);

/// Everything a resource names, without repetition.
pub(crate) fn of(resource: &Resource) -> Vec<Ref> {
    let mut out = Vec::new();
    match resource {
        Resource::Cluster(cluster, _) => of_cluster(cluster, &mut out),
        Resource::Listener(listener) => of_listener(listener, &mut out),
        Resource::Route(routes) => of_routes(routes, &mut out),
        Resource::Endpoints(_) | Resource::Secret(_) => {}
    }
    out.sort_unstable();
    out.dedup();
    out
}

fn of_listener(listener: &Listener, out: &mut Vec<Ref>) {
    for chain in listener.chains.iter().chain(&listener.default_chain) {
        if let Some(tls) = &chain.tls {
            secrets_of_server(tls, out);
        }
        match &chain.kind {
            ChainKind::Http(manager) => {
                match &manager.routes {
                    Routes::Inline(routes) => of_routes(routes, out),
                    Routes::Rds(name) => out.push((Kind::Route, name.as_str().into())),
                }
                let collector = manager.tracing.as_ref().and_then(|t| t.collector.as_ref());
                out.extend(collector.map(|c| (Kind::Cluster, c.cluster.as_str().into())));
            }
            ChainKind::Tcp(proxy) => {
                let names = proxy.clusters.iter();
                out.extend(names.map(|(name, _)| (Kind::Cluster, name.as_str().into())));
            }
        }
    }
}

fn of_routes(routes: &RouteConfig, out: &mut Vec<Ref>) {
    for route in routes.virtual_hosts.iter().flat_map(|host| &host.routes) {
        let Action::Forward(forward) = &route.action else {
            continue;
        };
        match &forward.target {
            Target::Cluster(name) => out.push((Kind::Cluster, name.as_str().into())),
            Target::Weighted(arms) => {
                let names = arms.iter().map(|arm| arm.name.as_str().into());
                out.extend(names.map(|name| (Kind::Cluster, name)));
            }
            // Only the request knows; such clusters have to be subscribed by other means.
            Target::Header(_) => {}
        }
        let mirrors = forward.mirrors.iter();
        out.extend(mirrors.map(|mirror| (Kind::Cluster, mirror.cluster.as_str().into())));
    }
}

fn of_cluster(cluster: &Cluster, out: &mut Vec<Ref>) {
    match &cluster.discovery {
        Discovery::Eds(name) => out.push((Kind::Endpoints, name.clone())),
        Discovery::Aggregate(names) => {
            out.extend(
                names
                    .iter()
                    .map(|name| (Kind::Cluster, name.as_str().into())),
            );
        }
        Discovery::Static | Discovery::Dns { .. } | Discovery::OriginalDst => {}
    }
    let matches = cluster.tls.matches.iter().map(|entry| &entry.tls);
    for tls in matches.chain([&cluster.tls.default]).flatten() {
        secrets_of_client(tls, out);
    }
}

fn secrets_of_server(tls: &ServerTls, out: &mut Vec<Ref>) {
    secret(Some(&tls.certificate), out);
    secret(tls.roots.as_ref(), out);
}

fn secrets_of_client(tls: &ClientTls, out: &mut Vec<Ref>) {
    secret(tls.certificate.as_ref(), out);
    secret(Some(&tls.roots), out);
}

fn secret(reference: Option<&SecretRef>, out: &mut Vec<Ref>) {
    if let Some(SecretRef::Sds(name)) = reference {
        out.push((Kind::Secret, name.clone()));
    }
}

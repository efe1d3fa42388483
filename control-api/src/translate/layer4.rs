//! Routes of connections: `TCPRoute` and `TLSRoute`.

use outrigger_proto::envoy::{
    config::listener::v3::{Filter, FilterChain, FilterChainMatch},
    extensions::filters::network::tcp_proxy::v3::{
        TcpProxy,
        tcp_proxy::{ClusterSpecifier, WeightedCluster, weighted_cluster::ClusterWeight},
    },
};

use super::{
    Viewer,
    listener::tcp_to,
    route,
    workload::Telemetry,
    world::{PortRef, World},
};
use crate::model::{BackendRef, Layer4Rule, Object, Spec};

/// Where connections to one service port go.
#[derive(Debug, Default)]
pub(super) struct Layer4 {
    /// Chains for the application's own TLS, by server name.
    pub(super) tls: Vec<FilterChain>,
    /// Every other opaque connection; `None`: to the service itself.
    pub(super) tcp: Option<Filter>,
    /// No request is looked for in what comes.
    pub(super) only: bool,
}

impl Layer4 {
    pub(super) fn of(
        world: &World,
        viewer: &Viewer,
        port: &PortRef<'_>,
        telemetry: Telemetry,
    ) -> Self {
        let tls = route::chosen(world, viewer, port, |s| matches!(s, Spec::TlsRoute(_)));
        let tcp = route::chosen(world, viewer, port, |s| matches!(s, Spec::TcpRoute(_)));
        let http = route::chosen(world, viewer, port, route::HTTP);
        let mut taken = Vec::new();
        Self {
            tls: tls
                .iter()
                .filter_map(|object| chain(object, &mut taken, telemetry))
                .collect(),
            // Of several the oldest, as the Gateway API has it.
            tcp: tcp.first().and_then(|object| match &object.spec {
                Spec::TcpRoute(route) => {
                    route.rules.first().map(|rule| to(object, rule, telemetry))
                }
                _ => None,
            }),
            only: !tcp.is_empty() && http.is_empty(),
        }
    }
}

/// A server name belongs to the first route that has it.
fn chain(object: &Object, taken: &mut Vec<String>, telemetry: Telemetry) -> Option<FilterChain> {
    let Spec::TlsRoute(route) = &object.spec else {
        return None;
    };
    let names = route.hostnames.iter();
    let names: Vec<_> = names
        .filter(|name| !taken.contains(name))
        .cloned()
        .collect();
    if names.is_empty() {
        return None;
    }
    taken.extend(names.iter().cloned());
    Some(FilterChain {
        name: format!("{}/{}", object.key.namespace, object.key.name),
        filter_chain_match: Some(FilterChainMatch {
            transport_protocol: "tls".to_owned(),
            server_names: names,
            ..FilterChainMatch::default()
        }),
        filters: vec![to(object, route.rules.first()?, telemetry)],
        ..FilterChain::default()
    })
}

fn to(object: &Object, rule: &Layer4Rule, telemetry: Telemetry) -> Filter {
    let weight = |backend: &BackendRef| ClusterWeight {
        name: route::cluster(&object.key.namespace, backend),
        weight: backend.weight.unwrap_or(1),
        metadata_match: None,
    };
    let used = rule.backend_refs.iter().filter(|b| b.weight != Some(0));
    let mut clusters: Vec<_> = used.map(weight).collect();
    let specifier = match clusters.as_mut_slice() {
        [one] => ClusterSpecifier::Cluster(std::mem::take(&mut one.name)),
        _ => ClusterSpecifier::WeightedClusters(WeightedCluster { clusters }),
    };
    tcp_to(TcpProxy {
        access_log: telemetry.log(),
        stat_prefix: "outbound".to_owned(),
        cluster_specifier: Some(specifier),
        ..TcpProxy::default()
    })
}

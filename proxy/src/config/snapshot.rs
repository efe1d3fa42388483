//! One consistent state of all configuration. Published whole; never changed in place.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use super::{
    Cluster, ClusterName, Endpoints, Listener, ListenerName, RouteConfig, RouteConfigName,
};

/// Everything that steers the data path at one moment. It is closed: a route names no cluster and a
/// cluster no endpoints that are not here, except where the control plane itself left a gap, which
/// is then a stated fault (`cluster_not_found`) and not a wait.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Grows with each publication.
    pub generation: u64,
    pub listeners: HashMap<ListenerName, Arc<Listener>>,
    /// Listeners without a socket of their own, by the original destination they serve.
    pub by_destination: HashMap<SocketAddr, Arc<Listener>>,
    pub routes: HashMap<RouteConfigName, Arc<RouteConfig>>,
    pub clusters: HashMap<ClusterName, Arc<Cluster>>,
    /// Members by cluster name (STATIC and EDS alike). An entry whose `Arc` is unchanged from the
    /// snapshot before means an unchanged cluster.
    pub endpoints: HashMap<ClusterName, Arc<Endpoints>>,
}

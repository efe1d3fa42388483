//! Routes.

use outrigger_proto::envoy::config::route::v3::{
    RetryPolicy, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route::Action,
    route_action::ClusterSpecifier, route_match::PathSpecifier,
};

use super::{names, proto::seconds, world::PortRef};

/// What is tried again when nobody says: what cannot have been processed, and requests of safe
/// methods whose connection broke (the proxy, not this list, tells them apart).
const RETRY_ON: &str = "connect-failure,refused-stream,reset,reset-before-request";
const RETRIES: u32 = 2;

/// The routes of a service port.
pub(super) fn service(name: &str, port: PortRef<'_>) -> RouteConfiguration {
    let cluster = names::cluster(&port);
    let mut routes = to_cluster(name, &cluster);
    for host in &mut routes.virtual_hosts {
        host.retry_policy = Some(retries());
    }
    routes
}

/// Everything to one cluster, whatever host is asked for.
pub(super) fn to_cluster(name: &str, cluster: &str) -> RouteConfiguration {
    RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: vec![VirtualHost {
            name: "all".to_owned(),
            domains: vec!["*".to_owned()],
            routes: vec![Route {
                name: "default".to_owned(),
                r#match: Some(RouteMatch {
                    path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
                    ..RouteMatch::default()
                }),
                action: Some(Action::Route(RouteAction {
                    cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
                    timeout: Some(seconds(0)),
                    ..RouteAction::default()
                })),
                ..Route::default()
            }],
            ..VirtualHost::default()
        }],
        // Its clusters may come after it.
        validate_clusters: Some(false),
        ..RouteConfiguration::default()
    }
}

fn retries() -> RetryPolicy {
    RetryPolicy {
        retry_on: RETRY_ON.to_owned(),
        num_retries: Some(RETRIES),
        ..RetryPolicy::default()
    }
}

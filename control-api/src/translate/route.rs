//! Routes.

mod action;
mod changes;
mod matching;
mod rules;

use std::collections::BTreeMap;

use outrigger_proto::envoy::{
    config::route::v3::{
        Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route::Action,
        route_action::ClusterSpecifier, route_match::PathSpecifier,
    },
    extensions::filters::{
        common::fault::v3::{FaultDelay, fault_delay::FaultDelaySecifier},
        http::fault::v3::{FaultAbort, HttpFault, fault_abort::ErrorType},
    },
};

pub(super) use action::cluster;
pub(super) use changes::fraction;
pub(super) use rules::{HTTP, chosen, has_consumers};

use super::{
    Viewer,
    http::FAULT,
    policy,
    proto::{any, duration, seconds},
    text,
    world::{PortRef, World},
};
use crate::model::FaultInjectionSpec;

/// The routes of a service port for callers like `viewer`.
pub(super) fn service(
    world: &World,
    viewer: &Viewer,
    name: &str,
    port: &PortRef<'_>,
) -> RouteConfiguration {
    let routes = rules::routes(world, viewer, port);
    let routes = routes.unwrap_or_else(|| vec![action::default(world, port)]);
    let mut config = one_host(name, routes);
    if let Some(faults) = policy::faults(world, port) {
        let injected = any(&http_fault(faults));
        for host in &mut config.virtual_hosts {
            host.typed_per_filter_config = BTreeMap::from([(FAULT.to_owned(), injected.clone())]);
        }
    }
    config
}

/// Everything to one cluster, whatever host is asked for.
pub(super) fn to_cluster(name: &str, cluster: &str) -> RouteConfiguration {
    let action = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
        timeout: Some(seconds(0)),
        ..RouteAction::default()
    };
    one_host(name, vec![everything(action)])
}

/// The route that takes every request.
fn everything(action: RouteAction) -> Route {
    Route {
        name: "default".to_owned(),
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
            ..RouteMatch::default()
        }),
        action: Some(Action::Route(action)),
        ..Route::default()
    }
}

/// The destination was chosen by its address: the host that is asked for says nothing.
fn one_host(name: &str, routes: Vec<Route>) -> RouteConfiguration {
    RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: vec![VirtualHost {
            name: "all".to_owned(),
            domains: vec!["*".to_owned()],
            routes,
            ..VirtualHost::default()
        }],
        // Its clusters may come after it.
        validate_clusters: Some(false),
        ..RouteConfiguration::default()
    }
}

fn http_fault(own: &FaultInjectionSpec) -> HttpFault {
    let delay = own.delay.as_ref().map(|delay| FaultDelay {
        fault_delay_secifier: Some(FaultDelaySecifier::FixedDelay(duration(delay.duration.0))),
        percentage: Some(fraction(delay.percent.millionths)),
    });
    let abort = own.abort.as_ref().map(|abort| FaultAbort {
        error_type: match (abort.http_status, abort.grpc_status) {
            (Some(status), _) => Some(ErrorType::HttpStatus(status.into())),
            (None, status) => status.map(|status| ErrorType::GrpcStatus(status.into())),
        },
        percentage: Some(fraction(abort.percent.millionths)),
    });
    let headers = own.headers.iter();
    HttpFault {
        delay,
        abort,
        headers: headers
            .map(|h| text::header(&h.name, &h.value, false))
            .collect(),
        max_active_faults: own.max_active,
        ..HttpFault::default()
    }
}

//! The HTTP connection manager of every HTTP chain.

use outrigger_proto::envoy::{
    config::{core::v3::Http1ProtocolOptions, route::v3::RouteConfiguration},
    extensions::filters::network::http_connection_manager::v3::{
        HttpConnectionManager, HttpFilter, Rds,
        http_connection_manager::{
            CodecType, ForwardClientCertDetails, RouteSpecifier, ServerHeaderTransformation,
            SetCurrentClientCertDetails, Tracing,
        },
    },
};

use super::{
    proto::{ads, percent, router, seconds},
    world::World,
};

/// The filter's name.
pub(super) const NAME: &str = "envoy.filters.network.http_connection_manager";
/// Share of requests that are traced when their caller has not decided.
const SAMPLING: f64 = 1.0;

/// Where routes are.
pub(super) enum Routing {
    /// In a resource of this name.
    Rds(String),
    /// Here.
    Inline(Box<RouteConfiguration>),
}

/// For requests that leave the pod.
pub(super) fn outbound(_: &World, routing: Routing) -> HttpConnectionManager {
    HttpConnectionManager {
        stat_prefix: "outbound".to_owned(),
        ..common(routing, Vec::new())
    }
}

/// For requests that come into the pod; those over mutual TLS tell the application who calls.
pub(super) fn inbound(routing: Routing, mesh: bool) -> HttpConnectionManager {
    HttpConnectionManager {
        stat_prefix: "inbound".to_owned(),
        forward_client_cert_details: if mesh {
            ForwardClientCertDetails::SanitizeSet.into()
        } else {
            ForwardClientCertDetails::Sanitize.into()
        },
        set_current_client_cert_details: mesh.then(|| SetCurrentClientCertDetails {
            uri: true,
            ..SetCurrentClientCertDetails::default()
        }),
        ..common(routing, Vec::new())
    }
}

/// What every manager has: nothing that changes a message, no limit that ends a stream at work.
fn common(routing: Routing, mut filters: Vec<HttpFilter>) -> HttpConnectionManager {
    filters.push(router());
    HttpConnectionManager {
        codec_type: CodecType::Auto.into(),
        route_specifier: Some(match routing {
            Routing::Rds(name) => RouteSpecifier::Rds(Rds {
                config_source: Some(ads()),
                route_config_name: name,
            }),
            Routing::Inline(routes) => RouteSpecifier::RouteConfig(*routes),
        }),
        http_filters: filters,
        http_protocol_options: Some(Http1ProtocolOptions {
            accept_http_10: true,
            ..Http1ProtocolOptions::default()
        }),
        server_header_transformation: ServerHeaderTransformation::PassThrough.into(),
        stream_idle_timeout: Some(seconds(0)),
        preserve_external_request_id: true,
        tracing: Some(Tracing {
            random_sampling: Some(percent(SAMPLING)),
            ..Tracing::default()
        }),
        ..HttpConnectionManager::default()
    }
}

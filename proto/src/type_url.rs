//! The type URLs of resources and extensions, as a `match` wants them: constants.

macro_rules! type_urls {
    ($($(#[$doc:meta])* $name:ident = $full_name:literal;)*) => {
        $($(#[$doc])*
        #[doc = concat!("`", $full_name, "`.")]
        pub const $name: &str = concat!("type.googleapis.com/", $full_name);)*

        #[cfg(test)]
        const ALL: &[&str] = &[$($full_name),*];
    };
}

type_urls! {
    /// LDS:
    LISTENER = "envoy.config.listener.v3.Listener";
    /// RDS:
    ROUTE_CONFIGURATION = "envoy.config.route.v3.RouteConfiguration";
    /// CDS:
    CLUSTER = "envoy.config.cluster.v3.Cluster";
    /// EDS:
    CLUSTER_LOAD_ASSIGNMENT = "envoy.config.endpoint.v3.ClusterLoadAssignment";
    /// SDS:
    SECRET = "envoy.extensions.transport_sockets.tls.v3.Secret";
    HTTP_CONNECTION_MANAGER =
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    TCP_PROXY = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
    NETWORK_RBAC = "envoy.extensions.filters.network.rbac.v3.RBAC";
    ORIGINAL_DST = "envoy.extensions.filters.listener.original_dst.v3.OriginalDst";
    TLS_INSPECTOR = "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector";
    HTTP_INSPECTOR = "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector";
    PROXY_PROTOCOL = "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol";
    ROUTER = "envoy.extensions.filters.http.router.v3.Router";
    FAULT = "envoy.extensions.filters.http.fault.v3.HTTPFault";
    HTTP_RBAC = "envoy.extensions.filters.http.rbac.v3.RBAC";
    HTTP_RBAC_PER_ROUTE = "envoy.extensions.filters.http.rbac.v3.RBACPerRoute";
    CORS = "envoy.extensions.filters.http.cors.v3.Cors";
    CORS_POLICY = "envoy.extensions.filters.http.cors.v3.CorsPolicy";
    LOCAL_RATE_LIMIT = "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit";
    GRPC_STATS = "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig";
    /// wraps a filter's per-route configuration:
    ROUTE_FILTER_CONFIG = "envoy.config.route.v3.FilterConfig";
    UPSTREAM_TLS_CONTEXT = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
    DOWNSTREAM_TLS_CONTEXT = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
    RAW_BUFFER = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";
    SPIFFE_CERT_VALIDATOR = "envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";
    HTTP_PROTOCOL_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    AGGREGATE_CLUSTER = "envoy.extensions.clusters.aggregate.v3.ClusterConfig";
    ROUND_ROBIN = "envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin";
    LEAST_REQUEST = "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest";
    RANDOM = "envoy.extensions.load_balancing_policies.random.v3.Random";
    RING_HASH = "envoy.extensions.load_balancing_policies.ring_hash.v3.RingHash";
    MAGLEV = "envoy.extensions.load_balancing_policies.maglev.v3.Maglev";
    PICK_FIRST = "envoy.extensions.load_balancing_policies.pick_first.v3.PickFirst";
    WRR_LOCALITY = "envoy.extensions.load_balancing_policies.wrr_locality.v3.WrrLocality";
    FILE_ACCESS_LOG = "envoy.extensions.access_loggers.file.v3.FileAccessLog";
    STDOUT_ACCESS_LOG = "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog";
    STDERR_ACCESS_LOG = "envoy.extensions.access_loggers.stream.v3.StderrAccessLog";
    OPEN_TELEMETRY = "envoy.config.trace.v3.OpenTelemetryConfig";
    UUID_REQUEST_ID = "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig";
    PREVIOUS_HOSTS = "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate";
    PREVIOUS_PRIORITIES =
        "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig";
    TYPED_STRUCT = "xds.type.v3.TypedStruct";
    UDPA_TYPED_STRUCT = "udpa.type.v1.TypedStruct";
    ISTIO_ALPN = "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig";
    ISTIO_STATS = "stats.PluginConfig";
    BREAKER = "outrigger.extensions.v1.Breaker";
    PEAK_EWMA = "outrigger.extensions.v1.PeakEwma";
}

/// The metadata key under which [`BREAKER`] rides in `Cluster.metadata.typed_filter_metadata`.
pub const BREAKER_METADATA_KEY: &str = "outrigger.breaker";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_url_names_a_type_of_this_crate() {
        for name in ALL {
            assert!(
                crate::descriptor::pool()
                    .get_message_by_name(name)
                    .is_some(),
                "{name}"
            );
        }
    }

    #[test]
    fn a_url_is_what_pack_writes() {
        let packed = crate::any::pack(&crate::outrigger::extensions::v1::PeakEwma::default());
        assert_eq!(packed.type_url, PEAK_EWMA);
    }
}

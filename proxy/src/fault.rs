//! Why the proxy answered instead of the peer. One enum, one row a variant: the HTTP status, the
//! gRPC code, the response flag, the `proxy-status` error type (RFC 9209 §2.3), whose doing it was,
//! and whether the request may be sent again. Access log, metric label, span, local reply and retry
//! decision all read the same row.

/// Whose doing a fault was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    Downstream,
    Proxy,
    Upstream,
}

/// Whether a request that met this fault may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Resend {
    /// The peer cannot have processed it: any method may go again.
    Safe,
    /// The peer may have processed it: only what the route's policy and the method allow.
    IfPolicy,
    Never,
}

/// What a fault means to everything outside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Status of the local reply.
    pub http: u16,
    /// Status of the local reply to a gRPC caller.
    pub grpc: u8,
    /// Envoy's response flag where it has one; our own letters where one flag of Envoy's would
    /// cover two causes.
    pub flag: &'static str,
    /// RFC 9209 `error` parameter.
    pub proxy_status: &'static str,
    /// One sentence for the caller and the log.
    pub text: &'static str,
    pub side: Side,
    pub resend: Resend,
}

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident => $http:literal, $grpc:literal, $flag:literal, $ps:literal,
       $side:ident, $resend:ident, $text:literal;)*) => {
        /// Every way a request or connection can end without the peer's own answer.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Fault {
            $($(#[$doc])* $name,)*
        }

        impl Fault {
            /// All of them, for the table in the README and for metrics.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The single table. A new variant does not compile until it has a row.
            #[must_use]
            pub const fn row(self) -> Row {
                match self {
                    $(Self::$name => Row {
                        http: $http,
                        grpc: $grpc,
                        flag: $flag,
                        proxy_status: $ps,
                        text: $text,
                        side: Side::$side,
                        resend: Resend::$resend,
                    },)*
                }
            }

            /// Stable name, the `cause` label and log field.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }
        }
    };
}

faults! {
    /// Authorization refused it.
    Denied => 403, 7, "RBAC", "http_request_denied", Proxy, Never,
        "authorization policy denied the request";
    BreakerOpen => 503, 14, "BO", "connection_limit_reached", Proxy, Never,
        "circuit breaker is open";
    ConnectFailed => 503, 14, "UF", "connection_refused", Upstream, Safe,
        "could not connect to the upstream";
    ConnectTimeout => 503, 14, "UFT", "connection_timeout", Upstream, Safe,
        "connecting to the upstream took too long";
    ClusterNotFound => 503, 14, "NC", "destination_not_found", Proxy, Never,
        "the route names a cluster that is not known";
    /// `max_connections` reached and nothing to queue on.
    OverflowConnections => 503, 14, "UOC", "connection_limit_reached", Proxy, Never,
        "connection limit of the cluster reached";
    OverflowPending => 503, 14, "UOP", "connection_limit_reached", Proxy, Never,
        "limit of pending requests of the cluster reached";
    OverflowRequests => 503, 14, "UOR", "connection_limit_reached", Proxy, Never,
        "limit of concurrent requests of the cluster reached";
    Draining => 503, 14, "DR", "proxy_internal_response", Proxy, Safe,
        "the proxy is shutting down";
    /// The request was under way; it may have been processed.
    DrainTimeout => 503, 14, "DRT", "proxy_internal_response", Proxy, Never,
        "the proxy is shutting down and its requests' time is over";
    DownstreamReset => 499, 1, "DC", "http_request_error", Downstream, Never,
        "the client went away";
    /// The client stopped sending its request.
    DownstreamIdle => 408, 4, "SI", "http_request_error", Downstream, Never,
        "the request stalled for longer than the idle time-out";
    DownstreamProtocol => 400, 13, "DPE", "http_request_error", Downstream, Never,
        "the request is malformed";
    DropOverload => 503, 14, "DO", "http_request_denied", Proxy, Never,
        "dropped on purpose: the control plane asked for load shedding";
    /// The client's handshake, so it is told by an alert and not by a status.
    DownstreamTls => 400, 13, "DTF", "http_request_error", Downstream, Never,
        "the TLS handshake with the client failed";
    FaultInjected => 503, 14, "FI", "proxy_internal_response", Proxy, Never,
        "aborted by fault injection";
    HeadersTooLarge => 431, 8, "DHL", "http_request_error", Downstream, Never,
        "the request headers are larger than the limit";
    UriTooLong => 414, 8, "DUL", "http_request_error", Downstream, Never,
        "the request target is longer than the limit";
    IdentityMissing => 503, 14, "ID", "tls_certificate_error", Proxy, Safe,
        "this proxy has no valid certificate";
    Internal => 500, 13, "PI", "proxy_internal_error", Proxy, Never,
        "internal error of the proxy";
    LoopDetected => 508, 13, "LP", "proxy_loop_detected", Proxy, Never,
        "the destination is the proxy itself";
    NoConfig => 503, 14, "NCF", "proxy_configuration_error", Proxy, Never,
        "the proxy has no configuration for this destination yet";
    NoHealthyEndpoint => 503, 14, "UH", "destination_unavailable", Proxy, Never,
        "no endpoint of the cluster is healthy";
    NoEndpoints => 503, 14, "UHE", "destination_unavailable", Proxy, Never,
        "the cluster has no endpoints";
    NoRoute => 404, 12, "NR", "destination_not_found", Proxy, Never,
        "no route matches the request";
    PeerIdentityMismatch => 503, 14, "UID", "tls_certificate_error", Upstream, Safe,
        "the upstream presented the wrong identity";
    PerTryTimeout => 504, 4, "UPT", "http_response_timeout", Upstream, IfPolicy,
        "a try took longer than its time-out";
    RateLimited => 429, 8, "RL", "http_request_denied", Proxy, Never,
        "rate limit reached";
    RequestTimeout => 504, 4, "UT", "http_response_timeout", Proxy, Never,
        "the request took longer than its time-out";
    StreamDuration => 504, 4, "DT", "http_response_timeout", Proxy, Never,
        "the stream lived longer than its limit";
    StreamIdle => 504, 4, "SIU", "http_response_timeout", Upstream, Never,
        "the response stalled for longer than the idle time-out";
    TlsFailed => 503, 14, "UTF", "tls_protocol_error", Upstream, Safe,
        "the TLS handshake with the upstream failed";
    /// Refused before the upstream did anything with it (REFUSED_STREAM, GOAWAY).
    UpstreamRefused => 503, 14, "URX", "http_request_denied", Upstream, Safe,
        "the upstream refused the stream";
    /// The upstream ended the connection before any byte of a response.
    UpstreamClosed => 503, 14, "UC", "connection_terminated", Upstream, IfPolicy,
        "the upstream closed the connection before it answered";
    UpstreamReset => 503, 14, "UR", "connection_terminated", Upstream, IfPolicy,
        "the upstream reset the request";
    UpstreamProtocol => 502, 13, "UPE", "http_protocol_error", Upstream, IfPolicy,
        "the upstream's response is malformed";
    ResponseHeadersTooLarge => 502, 8, "UHL", "http_response_header_section_size", Upstream, Never,
        "the upstream's response headers are larger than the limit";
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_response_flag_names_one_cause_only() {
        let flags: HashSet<_> = Fault::ALL.iter().map(|f| f.row().flag).collect();
        assert_eq!(flags.len(), Fault::ALL.len());
    }

    #[test]
    fn what_the_peer_cannot_have_processed_is_never_a_504() {
        for f in Fault::ALL.iter().filter(|f| f.row().resend == Resend::Safe) {
            assert_ne!(f.row().http, 504, "{f:?}");
        }
    }

    #[test]
    fn a_gateway_timeout_is_deadline_exceeded_for_grpc() {
        for f in Fault::ALL.iter().filter(|f| f.row().http == 504) {
            assert_eq!(f.row().grpc, 4, "{f:?}");
        }
    }
}

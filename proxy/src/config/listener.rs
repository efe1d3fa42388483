//! Listeners: what is done with an accepted connection (Envoy `Listener`).

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;

use super::{
    rbac::Rbac,
    route::{FaultInjection, RouteConfig},
    tls::ServerTls,
    units::{ClusterName, Fraction, ListenerName, RouteConfigName},
};

/// Which side of the pod a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    Inbound,
    Outbound,
}

impl Direction {
    /// As written in metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// One listener.
#[derive(Clone, Debug)]
pub struct Listener {
    pub name: ListenerName,
    pub direction: Direction,
    /// The address it listens on, or the original destination that it serves.
    pub address: SocketAddr,
    /// False: no socket of its own; connections reach it by their original destination.
    pub bind: bool,
    /// Hand connections over to the listener of their original destination.
    pub use_original_dst: bool,
    pub inspect_tls: bool,
    pub inspect_http: bool,
    pub proxy_protocol: bool,
    /// How long the first bytes are waited for before the connection counts as opaque. Server-first
    /// protocols do not wait for it: the upstream is dialled meanwhile.
    pub inspect_timeout: Duration,
    pub chains: Vec<Arc<FilterChain>>,
    pub default_chain: Option<Arc<FilterChain>>,
}

/// A chain and what selects it.
#[derive(Clone, Debug)]
pub struct FilterChain {
    pub name: Arc<str>,
    pub matcher: ChainMatch,
    /// `None` is plaintext.
    pub tls: Option<Arc<ServerTls>>,
    /// Connection-level authorization, in order.
    pub rbac: Vec<Arc<Rbac>>,
    pub kind: ChainKind,
}

/// What a chain ends in.
#[derive(Clone, Debug)]
pub enum ChainKind {
    Http(Arc<HttpManager>),
    Tcp(Arc<TcpProxy>),
}

/// Conditions of a chain. Envoy's order of preference: destination port, destination address,
/// server name, transport protocol, application protocol, source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChainMatch {
    pub destination_port: Option<u16>,
    pub destinations: Vec<IpNet>,
    pub server_names: Vec<Box<str>>,
    pub transport: Option<Transport>,
    pub application_protocols: Vec<Box<[u8]>>,
    pub sources: Vec<IpNet>,
    pub source_ports: Vec<u16>,
}

/// `transport_protocol` of a chain match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tls,
    RawBuffer,
}

/// Settings of the HTTP connection manager.
#[derive(Clone, Debug)]
pub struct HttpManager {
    pub stat_prefix: Arc<str>,
    pub codec: Codec,
    pub routes: Routes,
    /// HTTP filters before the router, in order.
    pub filters: Vec<HttpFilter>,
    /// No byte in either direction of a stream; Envoy: 5 min. `None` is no limit.
    pub stream_idle_timeout: Option<Duration>,
    /// No stream on the connection; Envoy: 1 h.
    pub idle_timeout: Option<Duration>,
    /// From the first byte of a request to the end of its head; Envoy: none, ours: 60 s.
    pub request_headers_timeout: Option<Duration>,
    pub max_stream_duration: Option<Duration>,
    pub max_request_headers_kb: u32,
    /// Requests per connection before it is closed gracefully.
    pub max_requests_per_connection: Option<u32>,
    /// Tokens that may switch protocols; empty allows all.
    pub upgrades: Vec<Box<str>>,
    pub tracing: Option<Tracing>,
    pub forward_client_cert: ForwardClientCert,
    pub access_log: bool,
    /// `server` header on answers the proxy makes.
    pub server_name: Box<str>,
}

/// Which HTTP version a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    Auto,
    Http1,
    Http2,
}

/// Where routes come from.
#[derive(Clone, Debug)]
pub enum Routes {
    Inline(Arc<RouteConfig>),
    /// By name, looked up in the snapshot at each request.
    Rds(RouteConfigName),
}

/// An HTTP filter.
#[derive(Clone, Debug)]
pub enum HttpFilter {
    Rbac(Arc<Rbac>),
    /// `None` only enables faults that routes configure.
    Fault(Option<Arc<FaultInjection>>),
    /// `None` only enables limits that routes configure.
    LocalRateLimit(Option<Arc<LocalRateLimit>>),
}

/// A token bucket (Envoy `LocalRateLimit`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalRateLimit {
    pub max_tokens: u32,
    pub tokens_per_fill: u32,
    pub fill_interval: Duration,
    pub status: http::StatusCode,
}

/// What is traced.
#[derive(Clone, Debug)]
pub struct Tracing {
    /// Share of requests without a sampling decision of their caller that are traced.
    pub random_sampling: Fraction,
    /// Who gets the spans; `None` leaves that to how the proxy was started.
    pub collector: Option<Arc<Collector>>,
}

/// A collector of traces that is a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Collector {
    pub cluster: ClusterName,
    /// `:authority` of the calls.
    pub authority: Box<str>,
    /// `service.name` of our spans; empty for the workload's own.
    pub service_name: Box<str>,
}

/// What happens to `x-forwarded-client-cert`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForwardClientCert {
    #[default]
    Sanitize,
    ForwardOnly,
    AppendForward,
    SanitizeSet,
    AlwaysForwardOnly,
}

/// Settings of the opaque TCP proxy.
#[derive(Clone, Debug)]
pub struct TcpProxy {
    pub stat_prefix: Arc<str>,
    /// At least one; weights over 0.
    pub clusters: Vec<(ClusterName, u32)>,
    /// No byte in either direction; `None` is no limit.
    pub idle_timeout: Option<Duration>,
    /// Dial attempts before giving up; Envoy: 1.
    pub max_connect_attempts: u32,
    pub access_log: bool,
}

/// What is known of a connection when its chain is chosen.
#[derive(Clone, Copy, Debug)]
pub struct ConnFacts<'a> {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub transport: Transport,
    pub server_name: Option<&'a str>,
    /// ALPN offers, or what the HTTP inspector saw (`http/1.0`, `http/1.1`, `h2c`).
    pub application_protocols: &'a [&'a [u8]],
}

impl Listener {
    /// The chain for a connection, by Envoy's most-specific-first rule; the default chain when none
    /// matches.
    #[must_use]
    pub fn chain(&self, facts: &ConnFacts<'_>) -> Option<&Arc<FilterChain>> {
        let mut best: Option<(&Arc<FilterChain>, Specificity)> = None;
        for chain in &self.chains {
            if let Some(score) = chain.matcher.score(facts)
                && best.as_ref().is_none_or(|(_, top)| score > *top)
            {
                best = Some((chain, score));
            }
        }
        best.map(|(chain, _)| chain).or(self.default_chain.as_ref())
    }

    /// Whether any chain asks for what only the first bytes can tell.
    #[must_use]
    pub const fn needs_inspection(&self) -> bool {
        self.inspect_tls || self.inspect_http
    }
}

/// How closely a chain matches: compared field by field, in Envoy's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Specificity {
    port: bool,
    destination: u8,
    server_name: usize,
    transport: bool,
    application: bool,
    source: u8,
    source_port: bool,
}

impl ChainMatch {
    fn score(&self, facts: &ConnFacts<'_>) -> Option<Specificity> {
        let port = exact(self.destination_port, facts.destination.port())?;
        let transport = exact(self.transport, facts.transport)?;
        let application = if self.application_protocols.is_empty() {
            false
        } else {
            let seen = |own: &[u8]| facts.application_protocols.contains(&own);
            self.application_protocols
                .iter()
                .any(|p| seen(p))
                .then_some(true)?
        };
        let source_port = if self.source_ports.is_empty() {
            false
        } else {
            self.source_ports
                .contains(&facts.source.port())
                .then_some(true)?
        };
        Some(Specificity {
            port,
            destination: longest(&self.destinations, facts.destination.ip())?,
            server_name: self.server_name_score(facts.server_name)?,
            transport,
            application,
            source: longest(&self.sources, facts.source.ip())?,
            source_port,
        })
    }

    fn server_name_score(&self, name: Option<&str>) -> Option<usize> {
        if self.server_names.is_empty() {
            return Some(0);
        }
        let name = name?;
        self.server_names
            .iter()
            .filter_map(|pattern| match pattern.strip_prefix('*') {
                // An exact name beats every wildcard: twice its length is never reached by one.
                None => (**pattern == *name).then_some(pattern.len() * 2),
                Some(suffix) => name.ends_with(suffix).then_some(suffix.len().max(1)),
            })
            .max()
    }
}

fn exact<T: Copy + PartialEq>(want: Option<T>, have: T) -> Option<bool> {
    match want {
        None => Some(false),
        Some(want) => (want == have).then_some(true),
    }
}

/// `Some(prefix length + 1)` of the longest net that holds `ip`; `Some(0)` when there are no nets.
fn longest(nets: &[IpNet], ip: IpAddr) -> Option<u8> {
    if nets.is_empty() {
        return Some(0);
    }
    let ip = ip.to_canonical();
    nets.iter()
        .filter(|net| net.contains(&ip))
        .map(|net| net.prefix_len() + 1)
        .max()
}

#[cfg(test)]
mod tests;

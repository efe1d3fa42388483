//! What TLS a connection uses (Envoy `DownstreamTlsContext`, `UpstreamTlsContext`). Keys and
//! bundles are named here and held by `tls::source`, which swaps them under live connections.

use std::sync::Arc;

use super::matcher::StringMatch;

/// Where a certificate or a trust bundle comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SecretRef {
    /// SDS name `default`: this workload's own certificate, from its identity source.
    Workload,
    /// SDS name `ROOTCA`: the trust bundle that came with it.
    MeshRoots,
    /// A Secret resource from the control plane.
    Sds(Arc<str>),
    /// Given inside the resource as PEM.
    Inline(Arc<InlineSecret>),
}

/// PEM given inside a resource.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct InlineSecret {
    pub certificate_chain: Vec<u8>,
    pub private_key: Vec<u8>,
    pub trusted_ca: Vec<u8>,
}

/// Which peers are let in or spoken to.
#[derive(Clone, Debug, Default)]
pub struct PeerMatch {
    /// Any of these must match the peer's SPIFFE identity; empty accepts every verified peer.
    pub identities: Vec<StringMatch>,
    /// DNS names that do as well (for upstreams outside the mesh).
    pub dns_names: Vec<StringMatch>,
}

/// TLS on accepted connections.
#[derive(Clone, Debug)]
pub struct ServerTls {
    pub certificate: SecretRef,
    /// `None` asks the client for no certificate.
    pub roots: Option<SecretRef>,
    pub require_client_certificate: bool,
    pub peers: PeerMatch,
    /// In order of preference.
    pub alpn: Vec<Arc<[u8]>>,
    /// Allow TLS 1.2 as well; the mesh itself speaks 1.3 only.
    pub allow_tls12: bool,
}

/// TLS on dialled connections.
#[derive(Clone, Debug)]
pub struct ClientTls {
    /// Our certificate, if the server is to know us.
    pub certificate: Option<SecretRef>,
    pub roots: SecretRef,
    pub peers: PeerMatch,
    /// Empty sends no SNI.
    pub sni: Box<str>,
    pub alpn: Vec<Arc<[u8]>>,
    pub allow_tls12: bool,
}

/// ALPN between two sidecars: HTTP/1.1 inside.
pub const ALPN_MESH_HTTP1: &[u8] = b"outrigger-http/1.1";
/// ALPN between two sidecars: HTTP/2 inside.
pub const ALPN_MESH_HTTP2: &[u8] = b"outrigger-h2";
/// ALPN between two sidecars: opaque bytes inside.
pub const ALPN_MESH_TCP: &[u8] = b"outrigger";

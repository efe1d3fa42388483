//! Mutual TLS between proxies. Keys and roots are the proxies' own: they are only named here.

use outrigger_proto::envoy::{
    config::core::v3::TransportSocket,
    extensions::transport_sockets::tls::v3::{
        CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig,
        SubjectAltNameMatcher, TlsParameters, UpstreamTlsContext,
        common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
        subject_alt_name_matcher::SanType,
        tls_parameters::TlsProtocol,
    },
    r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern},
};

use super::proto::{ads, transport_socket};

/// Endpoint metadata that asks for mutual TLS: key and value.
pub(super) const MODE_MESH: (&str, &str) = ("tlsMode", "mesh");
/// Metadata namespace that Envoy compares `transport_socket_matches` with.
pub(super) const MATCH_NAMESPACE: &str = "envoy.transport_socket_match";
/// HTTP/2 inside.
pub(super) const ALPN_HTTP2: &str = "outrigger-h2";
/// HTTP/1.1 inside.
pub(super) const ALPN_HTTP1: &str = "outrigger-http/1.1";
/// Opaque bytes inside.
pub(super) const ALPN_TCP: &str = "outrigger";
/// The workload's own certificate.
const OWN: &str = "default";
/// The trust bundle.
const ROOTS: &str = "ROOTCA";

/// Towards endpoints that have one of `identities`.
pub(super) fn upstream(
    sni: &str,
    identities: impl IntoIterator<Item = String>,
) -> UpstreamTlsContext {
    let exact = identities.into_iter().map(MatchPattern::Exact);
    UpstreamTlsContext {
        common_tls_context: Some(common(exact.collect())),
        sni: sni.to_owned(),
        ..UpstreamTlsContext::default()
    }
}

/// From clients that have any identity of the trust domain.
pub(super) fn downstream(trust_domain: &str) -> TransportSocket {
    let any = MatchPattern::Prefix(format!("spiffe://{trust_domain}/"));
    let context = DownstreamTlsContext {
        common_tls_context: Some(common(vec![any])),
        require_client_certificate: Some(true),
        ..DownstreamTlsContext::default()
    };
    transport_socket("envoy.transport_sockets.tls", &context)
}

fn common(peers: Vec<MatchPattern>) -> CommonTlsContext {
    let matchers = peers.into_iter().map(|pattern| SubjectAltNameMatcher {
        san_type: SanType::Uri.into(),
        matcher: Some(StringMatcher {
            match_pattern: Some(pattern),
            ..StringMatcher::default()
        }),
        ..SubjectAltNameMatcher::default()
    });
    CommonTlsContext {
        tls_params: Some(TlsParameters {
            tls_minimum_protocol_version: TlsProtocol::TlSv13.into(),
            // Envoy's clients stop at 1.2 unless told.
            tls_maximum_protocol_version: TlsProtocol::TlSv13.into(),
            ecdh_curves: ["X25519MLKEM768", "X25519", "P-256"]
                .map(str::to_owned)
                .into(),
            ..TlsParameters::default()
        }),
        alpn_protocols: [ALPN_HTTP2, ALPN_HTTP1, ALPN_TCP].map(str::to_owned).into(),
        tls_certificate_sds_secret_configs: vec![secret(OWN)],
        validation_context_type: Some(ValidationContextType::CombinedValidationContext(
            CombinedCertificateValidationContext {
                default_validation_context: Some(CertificateValidationContext {
                    match_typed_subject_alt_names: matchers.collect(),
                    ..CertificateValidationContext::default()
                }),
                validation_context_sds_secret_config: Some(secret(ROOTS)),
            },
        )),
        ..CommonTlsContext::default()
    }
}

fn secret(name: &str) -> SdsSecretConfig {
    SdsSecretConfig {
        name: name.to_owned(),
        sds_config: Some(ads()),
    }
}

//! TLS contexts and Secrets.
//!
//! What would weaken a check if it were passed over refuses the resource: pinned keys and hashes,
//! revocation lists, foreign validators, required SNI (the list of gRFC A29, and ours).

use std::sync::Arc;

use outrigger_proto::{
    envoy::{
        config::core::v3::{TransportSocket, transport_socket::ConfigType},
        extensions::transport_sockets::tls::v3::{
            CertificateProviderPluginInstance, CertificateValidationContext, CommonTlsContext,
            DownstreamTlsContext, SdsSecretConfig, Secret, SubjectAltNameMatcher, TlsCertificate,
            UpstreamTlsContext, certificate_validation_context::TrustChainVerification,
            common_tls_context::ValidationContextType, downstream_tls_context::OcspStaplePolicy,
            secret, subject_alt_name_matcher::SanType, tls_parameters::TlsProtocol,
        },
    },
    type_url,
};

use super::{
    at::At,
    matcher,
    value::{Decoded, enumerated, inline_bytes, required, unpack},
};
use crate::config::tls::{ClientTls, InlineSecret, PeerMatch, SecretRef, ServerTls};

/// SDS name of the workload's own certificate, as Envoy sidecars are used to.
const OWN: &str = "default";
/// Key exchange groups that are offered, whatever the order asked for.
const CURVES: [&str; 3] = ["X25519MLKEM768", "X25519", "P-256"];
/// SDS name of the mesh's trust bundle.
const ROOTS: &str = "ROOTCA";

/// The TLS of accepted connections; `None` is plaintext.
pub(super) fn server(at: At<'_>, socket: &TransportSocket) -> Decoded<Option<ServerTls>> {
    let Some(any) = typed(at, socket, type_url::DOWNSTREAM_TLS_CONTEXT)? else {
        return Ok(None);
    };
    let at = at.field("typed_config");
    let context: DownstreamTlsContext = unpack(at, any)?;
    at.field("require_sni")
        .refuse_if(context.require_sni == Some(true), "is not enforced")?;
    let staple = at.field("ocsp_staple_policy");
    match enumerated(staple, context.ocsp_staple_policy)? {
        OcspStaplePolicy::LenientStapling => {}
        OcspStaplePolicy::StrictStapling | OcspStaplePolicy::MustStaple => {
            return Err(staple.bad("no OCSP answers are stapled"));
        }
    }
    let common = common(at, context.common_tls_context.as_ref())?;
    let at_common = at.field("common_tls_context");
    let certificate = common
        .certificate
        .ok_or_else(|| at_common.bad("needs a certificate"))?;
    let require = context.require_client_certificate.unwrap_or_default();
    at_common.refuse_if(
        require && common.roots.is_none(),
        "requires client certificates but has no roots to check them against",
    )?;
    Ok(Some(ServerTls {
        certificate,
        roots: common.roots,
        require_client_certificate: require,
        peers: common.peers,
        alpn: common.alpn,
        allow_tls12: common.allow_tls12,
    }))
}

/// The TLS of dialled connections; `None` is plaintext.
pub(super) fn client(at: At<'_>, socket: &TransportSocket) -> Decoded<Option<ClientTls>> {
    let Some(any) = typed(at, socket, type_url::UPSTREAM_TLS_CONTEXT)? else {
        return Ok(None);
    };
    let at = at.field("typed_config");
    let context: UpstreamTlsContext = unpack(at, any)?;
    at.ignores("auto_host_sni", context.auto_host_sni);
    at.field("auto_sni_san_validation")
        .refuse_if(context.auto_sni_san_validation, "is not enforced")?;
    let common = common(at, context.common_tls_context.as_ref())?;
    // Envoy takes any peer when there are no roots; that is no TLS worth the name.
    let roots = common.roots.ok_or_else(|| {
        let at = at.field("common_tls_context");
        at.bad("needs a validation context: unverified peers are not spoken to")
    })?;
    Ok(Some(ClientTls {
        certificate: common.certificate,
        roots,
        peers: common.peers,
        sni: context.sni.into(),
        alpn: common.alpn,
        allow_tls12: common.allow_tls12,
    }))
}

fn typed<'s>(
    at: At<'_>,
    socket: &'s TransportSocket,
    wanted: &str,
) -> Decoded<Option<&'s prost_types::Any>> {
    let Some(ConfigType::TypedConfig(any)) = &socket.config_type else {
        // The name alone is enough for plaintext.
        return match socket.name.as_str() {
            "envoy.transport_sockets.raw_buffer" | "raw_buffer" => Ok(None),
            other => Err(at.bad(format!("{other:?} has no typed_config"))),
        };
    };
    match any.type_url.as_str() {
        type_url::RAW_BUFFER => Ok(None),
        url if url == wanted => Ok(Some(any)),
        other => Err(at
            .field("typed_config")
            .bad(format!("{other:?} is not a known socket"))),
    }
}

struct Common {
    certificate: Option<SecretRef>,
    roots: Option<SecretRef>,
    peers: PeerMatch,
    alpn: Vec<Arc<[u8]>>,
    allow_tls12: bool,
}

fn common(at: At<'_>, context: Option<&CommonTlsContext>) -> Decoded<Common> {
    let at = at.field("common_tls_context");
    let context = context.ok_or_else(|| at.bad("is required"))?;
    at.field("custom_handshaker").refuse_if(
        context.custom_handshaker.is_some(),
        "no handshakers are known",
    )?;
    let (roots, peers) = match &context.validation_context_type {
        None => (None, PeerMatch::default()),
        Some(ValidationContextType::ValidationContext(inner)) => {
            validation(at.field("validation_context"), inner)?
        }
        Some(ValidationContextType::ValidationContextSdsSecretConfig(sds)) => {
            let at = at.field("validation_context_sds_secret_config");
            (Some(secret_ref(at, sds)?), PeerMatch::default())
        }
        Some(ValidationContextType::CombinedValidationContext(both)) => {
            let at = at.field("combined_validation_context");
            let inner = both.default_validation_context.clone().unwrap_or_default();
            let (own, peers) = validation(at.field("default_validation_context"), &inner)?;
            let sds = both.validation_context_sds_secret_config.as_ref();
            let at = at.field("validation_context_sds_secret_config");
            let roots = sds.map(|sds| secret_ref(at, sds)).transpose()?;
            (roots.or(own), peers)
        }
    };
    let alpn = context.alpn_protocols.iter().enumerate();
    Ok(Common {
        certificate: certificate(at, context)?,
        roots,
        peers,
        alpn: alpn
            .map(|(i, name)| protocol(at.item("alpn_protocols", i), name))
            .collect::<Decoded<_>>()?,
        allow_tls12: versions(at, context)?,
    })
}

fn protocol(at: At<'_>, name: &str) -> Decoded<Arc<[u8]>> {
    // RFC 7301 §3.1: 1 to 255 bytes.
    at.refuse_if(
        name.is_empty() || name.len() > 255,
        "must be 1 to 255 bytes",
    )?;
    Ok(Arc::from(name.as_bytes()))
}

/// Whether TLS 1.2 is to be allowed. Envoy's client stops at 1.2 unless told otherwise; we speak
/// 1.3 wherever the peer does, and 1.2 only when the configuration asks for it by name.
fn versions(at: At<'_>, context: &CommonTlsContext) -> Decoded<bool> {
    let Some(params) = &context.tls_params else {
        return Ok(false);
    };
    let at = at.field("tls_params");
    // rustls has only modern suites, curves and signatures; a narrower list is not enforced.
    at.ignores("cipher_suites", !params.cipher_suites.is_empty());
    let other = |curve: &String| !CURVES.contains(&curve.as_str());
    at.ignores("ecdh_curves", params.ecdh_curves.iter().any(other));
    at.ignores(
        "signature_algorithms",
        !params.signature_algorithms.is_empty(),
    );
    let fips = !params.compliance_policies.is_empty();
    at.field("compliance_policies")
        .refuse_if(fips, "is not enforced")?;
    let least = enumerated(
        at.field("tls_minimum_protocol_version"),
        params.tls_minimum_protocol_version,
    )?;
    let most = enumerated(
        at.field("tls_maximum_protocol_version"),
        params.tls_maximum_protocol_version,
    )?;
    let old = [TlsProtocol::TlSv10, TlsProtocol::TlSv11];
    at.field("tls_maximum_protocol_version")
        .refuse_if(old.contains(&most), "TLS 1.0 and 1.1 are not spoken")?;
    Ok(old.contains(&least) || least == TlsProtocol::TlSv12 || most == TlsProtocol::TlSv12)
}

fn certificate(at: At<'_>, context: &CommonTlsContext) -> Decoded<Option<SecretRef>> {
    let sds = &context.tls_certificate_sds_secret_configs;
    if let [sds, rest @ ..] = sds.as_slice() {
        let at_sds = at.field("tls_certificate_sds_secret_configs");
        at_sds.refuse_if(!rest.is_empty(), "only one certificate is served")?;
        return secret_ref(at_sds, sds).map(Some);
    }
    if let Some(instance) = &context.tls_certificate_provider_instance {
        let at = at.field("tls_certificate_provider_instance");
        return provider(at, instance, SecretRef::Workload).map(Some);
    }
    let at = at.field("tls_certificates");
    match context.tls_certificates.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(SecretRef::Inline(Arc::new(key_pair(at, one)?)))),
        _ => Err(at.bad("only one certificate is served")),
    }
}

/// gRFC A29: an instance of a provider that the bootstrap names. There is one provider here, the
/// workload's identity.
fn provider(
    at: At<'_>,
    instance: &CertificateProviderPluginInstance,
    secret: SecretRef,
) -> Decoded<SecretRef> {
    match instance.instance_name.as_str() {
        "default" => Ok(secret),
        other => Err(at
            .field("instance_name")
            .bad(format!("{other:?} is not \"default\""))),
    }
}

fn secret_ref(at: At<'_>, sds: &SdsSecretConfig) -> Decoded<SecretRef> {
    Ok(match required(at.field("name"), &sds.name)? {
        OWN => SecretRef::Workload,
        ROOTS => SecretRef::MeshRoots,
        other => SecretRef::Sds(other.into()),
    })
}

fn key_pair(at: At<'_>, value: &TlsCertificate) -> Decoded<InlineSecret> {
    at.field("private_key_provider").refuse_if(
        value.private_key_provider.is_some(),
        "no providers are known",
    )?;
    at.field("password")
        .refuse_if(value.password.is_some(), "encrypted keys are not read")?;
    at.ignores("ocsp_staple", value.ocsp_staple.is_some());
    let need = |field, source| {
        let at = at.field(field);
        inline_bytes(at, source)?.ok_or_else(|| at.bad("is required"))
    };
    Ok(InlineSecret {
        certificate_chain: need("certificate_chain", value.certificate_chain.as_ref())?,
        private_key: need("private_key", value.private_key.as_ref())?,
        trusted_ca: Vec::new(),
    })
}

fn validation(
    at: At<'_>,
    value: &CertificateValidationContext,
) -> Decoded<(Option<SecretRef>, PeerMatch)> {
    refuse_unchecked(at, value)?;
    let mut peers = PeerMatch::default();
    for (i, san) in value.match_typed_subject_alt_names.iter().enumerate() {
        typed_name(at.item("match_typed_subject_alt_names", i), san, &mut peers)?;
    }
    for (i, name) in value.match_subject_alt_names.iter().enumerate() {
        // Without a type either kind of name may match (deprecated in Envoy, used by gRPC).
        let name = matcher::string(at.item("match_subject_alt_names", i), name)?;
        peers.identities.push(name.clone());
        peers.dns_names.push(name);
    }
    let roots = if let Some(ca) = inline_bytes(at.field("trusted_ca"), value.trusted_ca.as_ref())? {
        Some(SecretRef::Inline(Arc::new(InlineSecret {
            trusted_ca: ca,
            ..InlineSecret::default()
        })))
    } else if let Some(instance) = &value.ca_certificate_provider_instance {
        let at = at.field("ca_certificate_provider_instance");
        Some(provider(at, instance, SecretRef::MeshRoots)?)
    } else {
        None
    };
    Ok((roots, peers))
}

fn refuse_unchecked(at: At<'_>, value: &CertificateValidationContext) -> Decoded<()> {
    let hashes = !value.verify_certificate_hash.is_empty();
    let keys = !value.verify_certificate_spki.is_empty();
    let transparency = value.require_signed_certificate_timestamp == Some(true);
    let why = "is not enforced";
    at.field("verify_certificate_hash").refuse_if(hashes, why)?;
    at.field("verify_certificate_spki").refuse_if(keys, why)?;
    at.field("require_signed_certificate_timestamp")
        .refuse_if(transparency, why)?;
    at.field("crl").refuse_if(value.crl.is_some(), why)?;
    at.field("custom_validator_config").refuse_if(
        value.custom_validator_config.is_some(),
        "no validators are known",
    )?;
    at.field("system_root_certs").refuse_if(
        value.system_root_certs.is_some(),
        "system roots are not used",
    )?;
    let at_chain = at.field("trust_chain_verification");
    match enumerated(at_chain, value.trust_chain_verification)? {
        TrustChainVerification::VerifyTrustChain => {}
        TrustChainVerification::AcceptUntrusted => {
            return Err(at_chain.bad("unverified peers are not accepted"));
        }
    }
    // Both are stricter here than what was asked for.
    at.ignores("allow_expired_certificate", value.allow_expired_certificate);
    at.ignores("max_verify_depth", value.max_verify_depth.is_some());
    Ok(())
}

fn typed_name(at: At<'_>, san: &SubjectAltNameMatcher, peers: &mut PeerMatch) -> Decoded<()> {
    let at_type = at.field("san_type");
    let kind = enumerated(at_type, san.san_type)?;
    let at_matcher = at.field("matcher");
    let name = san.matcher.as_ref();
    let name = name.ok_or_else(|| at_matcher.bad("is required"))?;
    let name = matcher::string(at_matcher, name)?;
    match kind {
        SanType::Uri => peers.identities.push(name),
        SanType::Dns => peers.dns_names.push(name),
        SanType::Unspecified | SanType::Email | SanType::IpAddress | SanType::OtherName => {
            return Err(at_type.bad("only URI and DNS names are compared"));
        }
    }
    Ok(())
}

/// A Secret resource: a key pair or a trust bundle.
pub(super) fn secret(at: At<'_>, value: &Secret) -> Decoded<InlineSecret> {
    match &value.r#type {
        Some(secret::Type::TlsCertificate(pair)) => key_pair(at.field("tls_certificate"), pair),
        Some(secret::Type::ValidationContext(context)) => {
            let at = at.field("validation_context");
            refuse_unchecked(at, context)?;
            let names = !context.match_typed_subject_alt_names.is_empty()
                || !context.match_subject_alt_names.is_empty();
            at.field("match_typed_subject_alt_names")
                .refuse_if(names, "belongs into the TLS context, not into the Secret")?;
            let at = at.field("trusted_ca");
            let ca = inline_bytes(at, context.trusted_ca.as_ref())?;
            Ok(InlineSecret {
                trusted_ca: ca.ok_or_else(|| at.bad("is required"))?,
                ..InlineSecret::default()
            })
        }
        Some(secret::Type::SessionTicketKeys(_) | secret::Type::GenericSecret(_)) | None => {
            Err(at.bad("is neither a tls_certificate nor a validation_context"))
        }
    }
}

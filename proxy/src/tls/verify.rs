//! Whom we believe: chain to a root of the current bundle, then exactly one SPIFFE URI, then the
//! match that the cluster or listener asks for (SPIFFE X.509-SVID §2 to §5; TL-09).

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, SignatureVerificationAlgorithm, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use webpki::{EndEntityCert, KeyUsage};

use super::{
    der::{Facts, hex},
    identity::{Bundle, IdentityStore},
};
use crate::config::{SpiffeId, tls::PeerMatch};

/// What a leaf certificate says about its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateIdentity {
    /// `None` when it has no URI name at all.
    pub id: Option<SpiffeId>,
    /// Seconds since 1970.
    pub not_before: u64,
    pub not_after: u64,
    /// Hexadecimal.
    pub serial: String,
}

impl CertificateIdentity {
    /// Reads a certificate.
    ///
    /// # Errors
    /// When it is not one, or names more than one URI, or a URI that is no SPIFFE ID.
    pub fn of(der: &CertificateDer<'_>) -> Result<Self, Error> {
        let cert = EndEntityCert::try_from(der)
            .map_err(|e| Error::General(format!("not an X.509 leaf: {e}")))?;
        let Facts {
            not_before,
            not_after,
            ..
        } = Facts::of(der).ok_or_else(|| Error::General("not an X.509 leaf".into()))?;
        let serial = hex(cert.serial());
        let mut uris = cert.valid_uri_names();
        let first = uris.next();
        if uris.next().is_some() {
            return Err(refuse("more than one URI name"));
        }
        let id = first
            .map(|uri| SpiffeId::parse(uri).map_err(|e| refuse(&e.why)))
            .transpose()?;
        Ok(Self {
            id,
            not_before,
            not_after,
            serial,
        })
    }
}

/// Any certificate, an authority's too, for people to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateView {
    /// Hexadecimal.
    pub serial: String,
    /// Seconds since 1970.
    pub not_before: u64,
    pub not_after: u64,
    /// Names and key identifiers, which tell roots of one name apart.
    pub issuer: String,
    pub subject: String,
    /// URI names, as they are written.
    pub uris: Vec<String>,
}

impl CertificateView {
    /// Reads a certificate; `None` if it is none.
    #[must_use]
    pub fn of(der: &CertificateDer<'_>) -> Option<Self> {
        let cert = EndEntityCert::try_from(der).ok()?;
        let facts = Facts::of(der)?;
        Some(Self {
            serial: hex(cert.serial()),
            not_before: facts.not_before,
            not_after: facts.not_after,
            issuer: facts.named_issuer(),
            subject: facts.named_subject(),
            uris: cert.valid_uri_names().map(ToOwned::to_owned).collect(),
        })
    }
}

fn refuse(why: &str) -> Error {
    Error::General(format!("peer certificate: {why}"))
}

/// The identity of an authenticated peer, from the chain it presented.
#[must_use]
pub fn peer_identity(chain: Option<&[CertificateDer<'_>]>) -> Option<SpiffeId> {
    let leaf = chain?.first()?;
    CertificateIdentity::of(leaf).ok()?.id
}

/// Which roots a verifier uses.
#[derive(Debug)]
pub(super) enum Roots {
    /// The bundle that came with our own identity, as it is at the moment of the handshake.
    Mesh(Arc<IdentityStore>),
    Fixed(Arc<Bundle>),
}

/// Verifies peers in both roles.
#[derive(Debug)]
pub(super) struct PeerVerifier {
    pub(super) roots: Roots,
    pub(super) peers: PeerMatch,
    pub(super) required: bool,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl PeerVerifier {
    pub(super) fn new(
        roots: Roots,
        peers: PeerMatch,
        required: bool,
        provider: &CryptoProvider,
    ) -> Self {
        Self {
            roots,
            peers,
            required,
            algorithms: provider.signature_verification_algorithms,
        }
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        usage: KeyUsage,
        now: UnixTime,
    ) -> Result<(), Error> {
        let roots = match &self.roots {
            Roots::Fixed(roots) => Arc::clone(roots),
            Roots::Mesh(store) => store
                .get()
                .map(|identity| Arc::clone(&identity.roots))
                .ok_or_else(|| Error::General("no trust bundle yet".into()))?,
        };
        let cert = EndEntityCert::try_from(leaf)
            .map_err(|error| Refused::new(leaf, Why::Unusable(error.to_string())))?;
        let algorithms: &[&dyn SignatureVerificationAlgorithm] = self.algorithms.all;
        cert.verify_for_usage(
            algorithms,
            &roots.store.roots,
            intermediates,
            now,
            usage,
            None,
            None,
        )
        .map_err(|error| Refused::new(leaf, Why::of(error, &roots, leaf)))?;
        self.check_names(leaf, &cert)
    }

    fn check_names(
        &self,
        leaf: &CertificateDer<'_>,
        cert: &EndEntityCert<'_>,
    ) -> Result<(), Error> {
        let PeerMatch {
            identities,
            dns_names,
        } = &self.peers;
        let id = CertificateIdentity::of(leaf)
            .map_err(|error| Refused::new(leaf, Why::Unusable(error.to_string())))?
            .id;
        if identities.is_empty() && dns_names.is_empty() {
            return Ok(());
        }
        if let Some(id) = &id
            && identities.iter().any(|want| want.matches(id.as_str()))
        {
            return Ok(());
        }
        let mut names = cert.valid_dns_names();
        if names.any(|name| dns_names.iter().any(|want| want.matches(name))) {
            return Ok(());
        }
        Err(Refused::new(leaf, Why::NotMeant).into())
    }
}

/// A peer that is not believed. Every refusal says whom the certificate names, since that is what
/// has to be looked for (TL-12). To the peer all of them are the alert `certificate_unknown`.
#[derive(Debug, thiserror::Error)]
#[error("the certificate of {holder} {why}")]
pub(super) struct Refused {
    holder: String,
    pub(super) why: Why,
}

/// What is wrong with a peer's certificate.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Why {
    /// Somebody else than the one that was meant.
    #[error("names nobody who is accepted here")]
    NotMeant,
    #[error("expired {0} s ago")]
    Expired(u64),
    #[error("is not valid yet, for another {0} s")]
    TooEarly(u64),
    /// Says both names, since which of the two sides is behind is what has to be found out (TL-02).
    #[error("was issued by {issuer}, which is not in our trust bundle: {bundle}")]
    Untrusted { issuer: String, bundle: String },
    #[error("is not usable: {0}")]
    Unusable(String),
}

impl Why {
    fn of(error: webpki::Error, bundle: &Bundle, leaf: &CertificateDer<'_>) -> Self {
        let between = |from: UnixTime, to: UnixTime| to.as_secs().saturating_sub(from.as_secs());
        match error {
            webpki::Error::CertExpired { time, not_after } => {
                Self::Expired(between(not_after, time))
            }
            webpki::Error::CertNotValidYet { time, not_before } => {
                Self::TooEarly(between(time, not_before))
            }
            // The second is what comes of a root that has the name of the issuer and another key,
            // as the old and the new one of a rotation have.
            webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
                Self::Untrusted {
                    issuer: Facts::of(leaf).map_or_else(String::new, |facts| facts.named_issuer()),
                    bundle: bundle.names(),
                }
            }
            other => Self::Unusable(other.to_string()),
        }
    }
}

impl Refused {
    fn new(leaf: &CertificateDer<'_>, why: Why) -> Self {
        let uris = EndEntityCert::try_from(leaf)
            .map(|cert| cert.valid_uri_names().collect::<Vec<_>>().join(" and "))
            .unwrap_or_default();
        let holder = if uris.is_empty() {
            Facts::of(leaf).map_or_else(|| "nobody".to_owned(), |facts| facts.named_subject())
        } else {
            uris
        };
        Self { holder, why }
    }
}

/// What a failed handshake has to say of the peer's certificate, if it was that. rustls itself
/// shows such errors in the form that is meant for programmers.
pub(super) fn refused(error: &std::io::Error) -> Option<&Refused> {
    match error.get_ref()?.downcast_ref()? {
        Error::InvalidCertificate(CertificateError::Other(other)) => other.0.downcast_ref(),
        _ => None,
    }
}

/// Why a handshake failed.
#[must_use]
pub fn explain(error: &std::io::Error) -> String {
    refused(error).map_or_else(|| error.to_string(), ToString::to_string)
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        CertificateError::Other(rustls::OtherError(Arc::new(refused))).into()
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(end_entity, intermediates, KeyUsage::server_auth(), now)?;
        if self.peers.identities.is_empty() && self.peers.dns_names.is_empty() {
            // Nobody in particular is asked for: then the name that was dialled has to be in it.
            EndEntityCert::try_from(end_entity)
                .and_then(|cert| cert.verify_is_valid_for_subject_name(server_name))
                .map_err(|_| Refused::new(end_entity, Why::NotMeant))?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Hints cost bytes in every handshake and must be borrowed from a bundle that may change.
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        self.required
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(end_entity, intermediates, KeyUsage::client_auth(), now)
            .map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

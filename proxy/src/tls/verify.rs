//! Whom we believe: chain to a root of the current bundle, then exactly one SPIFFE URI, then the
//! match that the cluster or listener asks for (SPIFFE X.509-SVID §2 to §5; TL-09).

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, SignatureVerificationAlgorithm, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use webpki::{EndEntityCert, KeyUsage};

use super::identity::IdentityStore;
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
        let (not_before, not_after) = validity(der.as_ref())
            .ok_or_else(|| Error::General("no validity period in it".into()))?;
        let serial = cert.serial().iter().map(|b| format!("{b:02x}")).collect();
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
    /// URI names, as they are written.
    pub uris: Vec<String>,
}

impl CertificateView {
    /// Reads a certificate; `None` if it is none.
    #[must_use]
    pub fn of(der: &CertificateDer<'_>) -> Option<Self> {
        let cert = EndEntityCert::try_from(der).ok()?;
        let (not_before, not_after) = validity(der.as_ref())?;
        Some(Self {
            serial: cert.serial().iter().map(|b| format!("{b:02x}")).collect(),
            not_before,
            not_after,
            uris: cert.valid_uri_names().map(ToOwned::to_owned).collect(),
        })
    }
}

fn refuse(why: &str) -> Error {
    Error::General(format!("peer certificate: {why}"))
}

/// Validity out of the DER: `TBSCertificate.validity` (RFC 5280 §4.1.2.5). `webpki` checks it but
/// does not show it.
fn validity(der: &[u8]) -> Option<(u64, u64)> {
    let (certificate, _) = element(der, 0x30)?;
    let (mut tbs, _) = element(certificate, 0x30)?;
    if tbs.first() == Some(&0xa0) {
        tbs = element(tbs, 0xa0)?.1; // version
    }
    tbs = element(tbs, 0x02)?.1; // serial number
    tbs = element(tbs, 0x30)?.1; // signature
    tbs = element(tbs, 0x30)?.1; // issuer
    let (times, _) = element(tbs, 0x30)?;
    let (from, rest) = time(times)?;
    let (to, _) = time(rest)?;
    Some((from, to))
}

/// The content of the DER element that starts `bytes`, and what follows it.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (head, rest) = bytes.split_first()?;
    if *head != tag {
        return None;
    }
    let (first, rest) = rest.split_first()?;
    let (length, rest) = if *first < 0x80 {
        (usize::from(*first), rest)
    } else {
        let count = usize::from(*first & 0x7f);
        let (digits, rest) = rest.split_at_checked(count)?;
        if count > 4 {
            return None;
        }
        let length = digits.iter().fold(0, |n, b| n << 8 | usize::from(*b));
        (length, rest)
    };
    rest.split_at_checked(length)
}

/// UTCTime or GeneralizedTime as seconds since 1970.
fn time(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (text, rest, long) = match element(bytes, 0x17) {
        Some((text, rest)) => (text, rest, false),
        None => element(bytes, 0x18).map(|(text, rest)| (text, rest, true))?,
    };
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let (year, text) = text.split_at_checked(if long { 4 } else { 2 })?;
    let year: u64 = year.parse().ok()?;
    let year = match (long, year) {
        (true, year) => year,
        (false, year) if year >= 50 => 1900 + year,
        (false, year) => 2000 + year,
    };
    let part = |n: usize| text.get(n * 2..n * 2 + 2)?.parse::<u64>().ok();
    let (month, day) = (part(0)?, part(1)?);
    let seconds = part(2)? * 3600 + part(3)? * 60 + part(4)?;
    if year < 1970 || !(1..=12).contains(&month) {
        return None;
    }
    // Days from 1970 to a civil date, by counting years from March.
    let (y, m) = if month <= 2 {
        (year - 1, month + 9)
    } else {
        (year, month - 3)
    };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + day - 1;
    Some((days.checked_sub(719_468)? * 86_400 + seconds, rest))
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
    Fixed(Arc<RootCertStore>),
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
        let cert = EndEntityCert::try_from(leaf).map_err(|e| refuse(&e.to_string()))?;
        let algorithms: &[&dyn SignatureVerificationAlgorithm] = self.algorithms.all;
        cert.verify_for_usage(
            algorithms,
            &roots.roots,
            intermediates,
            now,
            usage,
            None,
            None,
        )
        .map_err(|e| match e {
            webpki::Error::CertExpired { .. } => CertificateError::Expired.into(),
            webpki::Error::CertNotValidYet { .. } => CertificateError::NotValidYet.into(),
            webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer.into(),
            other => refuse(&other.to_string()),
        })?;
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
        let id = CertificateIdentity::of(leaf)?.id;
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
        Err(id.map_or_else(
            || CertificateError::NotValidForName.into(),
            |id| WrongIdentity(id).into(),
        ))
    }
}

/// The peer is somebody else than the one that was meant.
#[derive(Debug, thiserror::Error)]
#[error("the peer is {0}, which is not accepted here")]
pub(super) struct WrongIdentity(pub(super) SpiffeId);

impl From<WrongIdentity> for Error {
    fn from(wrong: WrongIdentity) -> Self {
        CertificateError::Other(rustls::OtherError(Arc::new(wrong))).into()
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
                .map_err(|_| Error::from(CertificateError::NotValidForName))?;
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

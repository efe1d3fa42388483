//! The certificate authority: a root that lives in the state directory, and the leaves it signs.

mod service;
mod token;

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use aws_lc_rs::rand as random;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _};

pub use service::CertificateServer;
pub use token::{DEFAULT_TTL, MAX_TTL, TokenError, Tokens};

use crate::{clock::Clock, identity::Identity};

/// Peers whose clock is behind, by up to a minute and a half as found in the field, must not find a
/// certificate that is not valid yet (TL-03).
const BACKDATE: Duration = Duration::from_secs(120);
/// Life of the root: ten years.
const ROOT_LIFE: Duration = Duration::from_secs(3_650 * 24 * 3_600);
/// A certificate that lives shorter would be renewed all the time.
pub const MIN_TTL: Duration = Duration::from_secs(5);
/// The end of the year 9999, the last that X.509 can say (RFC 5280 §4.1.2.5).
const LAST_SECOND: u64 = 253_402_300_799;
/// RFC 5280 §4.1.2.2: up to 20 bytes.
const SERIAL_BYTES: usize = 16;

/// Why the authority could not start or sign.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file could not be read or written.
    #[error("{path}: {error}")]
    File {
        /// The file.
        path: PathBuf,
        /// What happened.
        error: io::Error,
    },
    /// Signing failed.
    #[error("cannot sign: {0}")]
    Sign(#[from] rcgen::Error),
    /// The root that is there cannot be used.
    #[error("{path}: {why}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The root has expired, or is not valid yet by our clock: nobody would take what it signs.
    #[error("the root certificate is valid from {from} to {to} (seconds since 1970), now is {now}")]
    RootNotValid {
        /// When it begins.
        from: u64,
        /// When it ends.
        to: u64,
        /// What our clock says.
        now: u64,
    },
    /// The request to sign is not one.
    #[error("certificate request: {0}")]
    Request(String),
    /// No random numbers.
    #[error("no random numbers from the system")]
    Random,
}

/// A leaf and the way it is shown.
#[derive(Debug)]
pub struct Issued {
    /// The leaf in PEM.
    pub chain_pem: String,
    /// The leaf in DER.
    pub der: CertificateDer<'static>,
    /// Seconds since 1970.
    pub not_after: u64,
}

/// Signs certificates.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root_pem: String,
    root: CertificateDer<'static>,
    /// When the root is valid, in seconds since 1970.
    root_validity: (u64, u64),
    trust_domain: String,
    clock: Clock,
    ttl: Duration,
}

impl Authority {
    /// Opens the root in `<dir>/root.pem` and `<dir>/root.key`, or makes one. Leaves live `ttl` at
    /// most.
    ///
    /// # Errors
    /// When a file cannot be read or written, or holds something else.
    pub fn open(
        dir: &Path,
        trust_domain: &str,
        ttl: Duration,
        clock: Clock,
    ) -> Result<Self, CaError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |error| CaError::File { path, error }
        };
        fs::create_dir_all(dir).map_err(at(dir))?;
        let (pem_path, key_path) = (dir.join("root.pem"), dir.join("root.key"));
        let key = match fs::read_to_string(&key_path) {
            Ok(pem) => KeyPair::from_pem(&pem)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
                write_file(&key_path, &key.serialize_pem(), 0o600).map_err(at(&key_path))?;
                key
            }
            Err(error) => return Err(at(&key_path)(error)),
        };
        let root_pem = match fs::read_to_string(&pem_path) {
            Ok(pem) => pem,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let pem = root_params(trust_domain, clock.unix())
                    .self_signed(&key)?
                    .pem();
                write_file(&pem_path, &pem, 0o644).map_err(at(&pem_path))?;
                pem
            }
            Err(error) => return Err(at(&pem_path)(error)),
        };
        let unusable = |why: &str| CaError::Unusable {
            path: pem_path.clone(),
            why: why.to_owned(),
        };
        let root = CertificateDer::from_pem_slice(root_pem.as_bytes())
            .map_err(|_| unusable("holds no certificate in PEM"))?;
        let belongs = webpki::EndEntityCert::try_from(&root)
            .is_ok_and(|cert| *cert.subject_public_key_info() == *key.subject_public_key_info());
        if !belongs {
            return Err(unusable("does not belong to the key in root.key"));
        }
        let root_validity = validity_of(&root).ok_or_else(|| unusable("is no certificate"))?;
        Ok(Self {
            root_validity,
            issuer: Issuer::from_ca_cert_der(&root, key)?,
            root_pem,
            root,
            trust_domain: trust_domain.to_owned(),
            clock,
            ttl,
        })
    }

    /// Roots that peers may chain to, in PEM.
    #[must_use]
    pub fn bundle_pem(&self) -> &str {
        &self.root_pem
    }

    /// The root in DER.
    #[must_use]
    pub const fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// The domain whose identities it certifies.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The clock that validity is counted by.
    #[must_use]
    pub const fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Signs what a request asks for: its key, for `identity`; any name in it is ignored.
    ///
    /// # Errors
    /// When it is no PKCS#10 in PEM, its signature is wrong or its key is of another kind.
    pub fn sign_request(
        &self,
        csr_pem: &str,
        identity: &Identity,
        validity: Option<Duration>,
    ) -> Result<Issued, CaError> {
        let request = CertificateSigningRequestParams::from_pem(csr_pem)
            .map_err(|error| CaError::Request(error.to_string()))?;
        if *request.public_key.algorithm() != PKCS_ECDSA_P256_SHA256 {
            return Err(CaError::Request("the key must be ECDSA P-256".into()));
        }
        self.issue(identity, &request.public_key, validity)
    }

    /// Makes a key and a leaf for `identity`.
    ///
    /// # Errors
    /// When signing fails.
    pub fn self_issue(
        &self,
        identity: &Identity,
    ) -> Result<(Issued, PrivateKeyDer<'static>), CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let issued = self.issue(identity, &key, None)?;
        let der = PrivatePkcs8KeyDer::from(key.serialize_der());
        Ok((issued, der.into()))
    }

    fn issue(
        &self,
        identity: &Identity,
        key: &impl PublicKeyData,
        validity: Option<Duration>,
    ) -> Result<Issued, CaError> {
        let life = validity
            .unwrap_or(self.ttl)
            .clamp(MIN_TTL, self.ttl.max(MIN_TTL));
        let now = self.clock.unix();
        let (from, to) = self.root_validity;
        if !(from..to).contains(&now) {
            return Err(CaError::RootNotValid { from, to, now });
        }
        // A leaf that outlives its root would be refused without looking expired.
        let not_after = now.saturating_add(life.as_secs()).min(to);
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
        set_validity(
            &mut params,
            now.saturating_sub(BACKDATE.as_secs()).max(from),
            not_after,
        );
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        let mut serial = [0_u8; SERIAL_BYTES];
        random::fill(&mut serial).map_err(|_| CaError::Random)?;
        // RFC 5280 §4.1.2.2: positive and without a leading zero byte.
        serial[0] = serial[0] & 0x7f | 0x40;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let cert = params.signed_by(key, &self.issuer)?;
        Ok(Issued {
            chain_pem: cert.pem(),
            der: cert.der().clone(),
            not_after,
        })
    }
}

/// From when to when a certificate is valid, in seconds since 1970.
fn validity_of(cert: &CertificateDer<'_>) -> Option<(u64, u64)> {
    let (_, parsed) = x509_parser::parse_x509_certificate(cert).ok()?;
    let validity = parsed.validity();
    let seconds = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).ok();
    Some((seconds(validity.not_before)?, seconds(validity.not_after)?))
}

fn root_params(trust_domain: &str, now: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Outrigger");
    name.push(DnType::CommonName, format!("{trust_domain} root"));
    params.distinguished_name = name;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let (day, life) = (24 * 3_600, ROOT_LIFE.as_secs());
    set_validity(
        &mut params,
        now.saturating_sub(day),
        now.saturating_add(life),
    );
    params
}

/// Both times in seconds since 1970.
fn set_validity(params: &mut CertificateParams, from: u64, to: u64) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(from.min(LAST_SECOND));
    params.not_after = epoch + Duration::from_secs(to.min(LAST_SECOND));
}

/// Writes a whole file or none of it.
fn write_file(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(dir) => fs::File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;

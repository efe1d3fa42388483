//! The certificate authority: what signs, what is trusted, and the leaves that are signed.

mod proof;
mod roots;
mod service;
mod token;

use std::{
    fmt, fs, io,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use aws_lc_rs::rand as random;
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::watch;

use roots::{Keeper, Signer, State};

pub use proof::{Proof, ProofError};
pub use roots::{Bundle, Origin, Root, RootState, Text, new_root};
pub use service::CertificateServer;
pub use token::{CreatedToken, DEFAULT_TTL, KnownToken, MAX_TTL, TokenError, Tokens};

use crate::{clock::Clock, identity::Identity};

/// Peers whose clock is behind, by up to a minute and a half as found in the field, must not find a
/// certificate that is not valid yet (TL-03).
const BACKDATE: Duration = Duration::from_secs(120);
/// How often files and the stages of a rotation are looked at.
const CHECK_EVERY: Duration = Duration::from_secs(10);
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
    #[error("{place}: {why}")]
    Unusable {
        /// The file or Secret.
        place: String,
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
    /// One rotation at a time.
    #[error("the root is being rotated already, until {until} (seconds since 1970)")]
    Rotating {
        /// When that ends.
        until: u64,
    },
    /// An operator's roots are the operator's to rotate.
    #[error("the certificate authority is an operator's: put the new root where it is kept")]
    NotOurs,
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
    /// The leaf, then what is between it and a root, in PEM.
    pub chain_pem: String,
    /// The same in DER.
    pub chain: Vec<CertificateDer<'static>>,
    /// Seconds since 1970.
    pub not_after: u64,
}

/// What one of our own ports is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Own {
    /// By those who know identities: proxies.
    Identity(Identity),
    /// By those who know host names: the cluster's API server.
    Host(String),
}

impl fmt::Display for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity(identity) => identity.fmt(f),
            Self::Host(host) => f.write_str(host),
        }
    }
}

/// Signs certificates. What signs and what is trusted can change while it runs.
#[derive(Debug)]
pub struct Authority {
    /// Held while files are changed.
    keeper: Mutex<Keeper>,
    signer: ArcSwap<Signer>,
    bundle: watch::Sender<Arc<Bundle>>,
    trust_domain: String,
    clock: Clock,
    ttl: Duration,
}

impl Authority {
    /// Opens the authority in `origin`; roots of our own are made where there are none. Leaves live
    /// `ttl` at most.
    ///
    /// # Errors
    /// When a file cannot be read or written, holds something else, or what would be signed could
    /// not be verified.
    pub fn open(
        origin: Origin,
        trust_domain: &str,
        ttl: Duration,
        clock: Clock,
    ) -> Result<Self, CaError> {
        let keeper = Keeper::new(origin, trust_domain.to_owned(), ttl);
        let state = keeper.load(clock.unix())?;
        let this = Self {
            keeper: Mutex::new(keeper),
            signer: ArcSwap::from_pointee(state.signer),
            bundle: watch::channel(Arc::new(state.bundle)).0,
            trust_domain: trust_domain.to_owned(),
            clock,
            ttl,
        };
        this.step()?;
        Ok(this)
    }

    /// Roots that peers may chain to.
    #[must_use]
    pub fn bundle(&self) -> Arc<Bundle> {
        Arc::clone(&self.bundle.borrow())
    }

    /// Follows the roots.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<Bundle>> {
        self.bundle.subscribe()
    }

    fn keeper(&self) -> MutexGuard<'_, Keeper> {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to replace the root: the new one is trusted at once, signs after `overlap` (by
    /// default the life of a leaf: then nobody has a certificate and an older bundle), and stands
    /// alone after another. Blocks on the disk.
    ///
    /// # Errors
    /// When a rotation goes on already, the authority is an operator's, or the disk fails.
    pub fn rotate(&self, overlap: Option<Duration>) -> Result<(), CaError> {
        let keeper = self.keeper();
        let overlap = overlap.unwrap_or(self.ttl);
        keeper.rotate(overlap, self.clock.unix())?;
        tracing::info!(
            ?overlap,
            "a new root is trusted; it signs after the overlap"
        );
        self.reload(&keeper)
    }

    /// Does what is due: the next stage of a rotation, or reading an operator's files again.
    /// Blocks on the disk.
    ///
    /// # Errors
    /// When that fails; what was in force stays so.
    pub fn step(&self) -> Result<(), CaError> {
        let keeper = self.keeper();
        if keeper.step(&self.bundle(), self.clock.unix())? {
            self.reload(&keeper)?;
        }
        Ok(())
    }

    fn reload(&self, keeper: &Keeper) -> Result<(), CaError> {
        let State { signer, bundle } = keeper.load(self.clock.unix())?;
        let old = self.signer.load();
        let states = |bundle: &Bundle| -> Vec<_> {
            let roots = bundle.roots.iter();
            roots.map(|r| (r.pem.clone(), r.state)).collect()
        };
        let unchanged = states(&bundle) == states(&self.bundle.borrow())
            && signer.between == old.between
            && signer.validity == old.validity;
        self.signer.store(Arc::new(signer));
        if !unchanged {
            tracing::info!(roots = bundle.roots.len(), "trust bundle changed");
        }
        self.bundle.send_if_modified(|held| {
            *held = Arc::new(bundle);
            !unchanged
        });
        Ok(())
    }

    /// Puts another authority in force.
    ///
    /// # Errors
    /// When it is not good; what was in force stays so.
    pub fn replace(&self, origin: Origin) -> Result<(), CaError> {
        let mut keeper = self.keeper();
        let next = Keeper::new(origin, self.trust_domain.clone(), self.ttl);
        self.reload(&next)?;
        *keeper = next;
        Ok(())
    }

    /// Looks after the roots for as long as it runs.
    pub async fn keep(self: Arc<Self>) {
        let mut bundles = self.watch();
        loop {
            let due = bundles
                .borrow_and_update()
                .roots
                .iter()
                .filter_map(|r| r.until)
                .min();
            let left = due.map(|due| due.saturating_sub(self.clock.unix()).max(1));
            let wait = left.map_or(CHECK_EVERY, |left| {
                CHECK_EVERY.min(Duration::from_secs(left))
            });
            // The wall clock is looked at: a timer would sleep with the machine (TL-03).
            let changed = tokio::time::timeout(wait, bundles.changed()).await;
            if changed.is_ok() {
                continue;
            }
            let this = Arc::clone(&self);
            let stepped = tokio::task::spawn_blocking(move || this.step()).await;
            if let Ok(Err(error)) = stepped {
                tracing::error!(%error, "the authority's files are not taken; what was stays");
            }
        }
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
        self.issue(uri_of(identity)?, &request.public_key, validity)
    }

    /// Makes a key and a leaf for one of our own ports.
    ///
    /// # Errors
    /// When signing fails.
    pub fn self_issue(&self, name: &Own) -> Result<(Issued, PrivateKeyDer<'static>), CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let name = match name {
            Own::Identity(identity) => uri_of(identity)?,
            Own::Host(host) => SanType::DnsName(host.as_str().try_into()?),
        };
        let issued = self.issue(name, &key, None)?;
        let der = PrivatePkcs8KeyDer::from(key.serialize_der());
        Ok((issued, der.into()))
    }

    fn issue(
        &self,
        name: SanType,
        key: &impl PublicKeyData,
        validity: Option<Duration>,
    ) -> Result<Issued, CaError> {
        let life = validity
            .unwrap_or(self.ttl)
            .clamp(MIN_TTL, self.ttl.max(MIN_TTL));
        let now = self.clock.unix();
        let signer = self.signer.load();
        let (from, to) = signer.validity;
        if !(from..to).contains(&now) {
            return Err(CaError::RootNotValid { from, to, now });
        }
        // A leaf that outlives its root would be refused without looking expired.
        let not_after = now.saturating_add(life.as_secs()).min(to);
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![name];
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
        let cert = params.signed_by(key, &signer.issuer)?;
        let mut chain_pem = cert.pem();
        chain_pem.extend(signer.between.iter().map(|one| one.pem.as_str()));
        let leaf = std::iter::once(cert.der().clone());
        Ok(Issued {
            chain_pem,
            chain: leaf
                .chain(signer.between.iter().map(|one| one.der.clone()))
                .collect(),
            not_after,
        })
    }
}

fn uri_of(identity: &Identity) -> Result<SanType, CaError> {
    Ok(SanType::URI(identity.to_string().try_into()?))
}

/// From when to when a certificate is valid, in seconds since 1970.
pub(crate) fn validity_of(cert: &CertificateDer<'_>) -> Option<(u64, u64)> {
    let (_, parsed) = x509_parser::parse_x509_certificate(cert).ok()?;
    let validity = parsed.validity();
    let seconds = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).ok();
    Some((seconds(validity.not_before)?, seconds(validity.not_after)?))
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

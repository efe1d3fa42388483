//! What signs, and what is trusted: roots of our own, that are rotated here, or an operator's
//! certificate authority in files.
//!
//! Our own roots are files of one directory: `root.pem` is the bundle that peers trust, the active
//! root first; `root.key` is the active root's key. While a root is rotated there are `next.key`,
//! the key of the root that will sign, and `rotation.json`, which says when. One rename
//! (`next.key` to `root.key`) makes the new root the active one, so that a crash at any point
//! leaves either the old state or the new.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use aws_lc_rs::digest;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls_pki_types::{CertificateDer, UnixTime, pem::PemObject as _};
use serde::{Deserialize, Serialize};

use super::{CaError, set_validity, validity_of, write_file};
use crate::{clock::Clock, hex::hex};

/// Life of a root: ten years.
const ROOT_LIFE: Duration = Duration::from_secs(3_650 * 24 * 3_600);
/// A root is replaced by itself when so small a part of its life is left.
const RENEW_PART: u64 = 10;
/// And no later than this many lives of a leaf before its end.
const RENEW_LEAVES: u64 = 4;
/// Certificates in a file of an operator's; chains and bundles of a few dozen fit.
const MAX_CERTIFICATES: usize = 128;

/// Where the authority comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Roots of our own, in this directory.
    Own(PathBuf),
    /// Files of an operator's, read again when they change.
    Files {
        /// The certificate that signs, then those between it and a root; PEM.
        cert: PathBuf,
        /// Its key; PEM, PKCS#8.
        key: PathBuf,
        /// The roots that peers trust; PEM. `None` if the last certificate of `cert` is the root.
        roots: Option<PathBuf>,
    },
    /// Texts of an operator's, which somebody else follows: a cluster's Secret.
    Given {
        /// As in `Files`.
        cert: Text,
        /// As in `Files`.
        key: Text,
        /// As in `Files`.
        roots: Option<Text>,
    },
}

/// What signs.
#[derive(Debug)]
pub(super) struct Signer {
    pub(super) issuer: Issuer<'static, KeyPair>,
    /// Shown after each leaf: what is between it and a root.
    pub(super) between: Vec<Certificate>,
    /// When everything above a leaf is valid, in seconds since 1970.
    pub(super) validity: (u64, u64),
}

/// What a root is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootState {
    /// It signs.
    Active,
    /// It will sign.
    Next,
    /// It has signed; trusted as long as that may be in use.
    Retiring,
}

/// A trusted root.
#[derive(Debug, Clone)]
pub struct Root {
    /// The certificate.
    pub der: CertificateDer<'static>,
    /// The same, for files and messages.
    pub pem: String,
    /// What it is there for.
    pub state: RootState,
    /// From when to when it is valid, in seconds since 1970.
    pub validity: (u64, u64),
    /// When its state ends, in seconds since 1970.
    pub until: Option<u64>,
}

impl Root {
    fn new(cert: Certificate, state: RootState) -> Option<Self> {
        Some(Self {
            validity: validity_of(&cert.der)?,
            der: cert.der,
            pem: cert.pem,
            state,
            until: None,
        })
    }

    /// SHA-256 of the certificate, in hexadecimal.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let hash = digest::digest(&digest::SHA256, &self.der);
        hex(hash.as_ref())
    }

    /// Its name, for people.
    #[must_use]
    pub fn subject(&self) -> String {
        let parsed = x509_parser::parse_x509_certificate(&self.der);
        parsed.map_or_else(|_| String::new(), |(_, cert)| cert.subject().to_string())
    }
}

/// The roots that are trusted together, the active one first.
#[derive(Debug, Clone, Default)]
pub struct Bundle {
    /// Each of them.
    pub roots: Vec<Root>,
}

impl Bundle {
    /// All of them in PEM.
    #[must_use]
    pub fn pem(&self) -> String {
        self.roots.iter().map(|root| root.pem.as_str()).collect()
    }
}

/// When a rotation goes on; in seconds since 1970 both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Rotation {
    /// The new root signs from then on.
    activate: u64,
    /// The old root is not trusted any more.
    retire: u64,
}

/// Reads and changes the files.
#[derive(Debug)]
pub(super) struct Keeper {
    origin: Origin,
    trust_domain: String,
    /// Life of a leaf.
    ttl: Duration,
}

/// Everything read at once.
#[derive(Debug)]
pub(super) struct State {
    pub(super) signer: Signer,
    pub(super) bundle: Bundle,
}

impl Keeper {
    pub(super) const fn new(origin: Origin, trust_domain: String, ttl: Duration) -> Self {
        Self {
            origin,
            trust_domain,
            ttl,
        }
    }

    /// Reads what is there; roots of our own are made where there are none.
    pub(super) fn load(&self, now: u64) -> Result<State, CaError> {
        match &self.origin {
            Origin::Own(dir) => self.load_own(dir, now),
            Origin::Files { cert, key, roots } => load_files(cert, key, roots.as_deref(), now),
            Origin::Given { cert, key, roots } => given(cert, key, roots.as_ref(), now),
        }
    }

    fn load_own(&self, dir: &Path, now: u64) -> Result<State, CaError> {
        fs::create_dir_all(dir).map_err(at(dir))?;
        let files = Files::of(dir);
        let key = match read(&files.key)? {
            Some(pem) => KeyPair::from_pem(&pem)?,
            None => {
                let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
                write(&files.key, &key.serialize_pem(), 0o600)?;
                key
            }
        };
        let pem = match read(&files.bundle)? {
            Some(pem) => pem,
            None => {
                let pem = self.self_signed(&key, now)?;
                write(&files.bundle, &pem, 0o644)?;
                pem
            }
        };
        let unusable = |why: &str| unusable(&files.bundle, why);
        let all = certificates(&pem).ok_or_else(|| unusable("holds no certificate in PEM"))?;
        let next = match read(&files.next)? {
            Some(pem) => Some(KeyPair::from_pem(&pem)?),
            None => None,
        };
        let rotation = self.rotation(dir)?;
        let mut roots = Vec::new();
        for cert in all {
            let (state, until) = if belongs(&cert.der, &key) {
                (RootState::Active, None)
            } else if next.as_ref().is_some_and(|next| belongs(&cert.der, next)) {
                (RootState::Next, rotation.map(|r| r.activate))
            } else {
                (RootState::Retiring, rotation.map(|r| r.retire))
            };
            let root = Root::new(cert, state).ok_or_else(|| unusable("is no certificate"))?;
            roots.push(Root { until, ..root });
        }
        roots.sort_by_key(|root| root.state != RootState::Active);
        let active = roots.first().filter(|root| root.state == RootState::Active);
        let active = active.ok_or_else(|| unusable("does not belong to the key in root.key"))?;
        let signer = Signer {
            issuer: Issuer::from_ca_cert_der(&active.der, key)?,
            between: Vec::new(),
            validity: active.validity,
        };
        Ok(State {
            signer,
            bundle: Bundle { roots },
        })
    }

    fn self_signed(&self, key: &KeyPair, now: u64) -> Result<String, CaError> {
        Ok(root_params(&self.trust_domain, now).self_signed(key)?.pem())
    }

    fn rotation(&self, dir: &Path) -> Result<Option<Rotation>, CaError> {
        let path = Files::of(dir).rotation;
        let Some(text) = read(&path)? else {
            return Ok(None);
        };
        let parsed = serde_json::from_str(&text);
        parsed
            .map(Some)
            .map_err(|error| unusable(&path, error.to_string()))
    }

    /// Begins to replace the active root by a new one, which is trusted from now on, signs after
    /// `overlap`, and stands alone after another `overlap`.
    ///
    /// # Errors
    /// When a rotation goes on already, the authority is an operator's, or the disk fails.
    pub(super) fn rotate(&self, overlap: Duration, now: u64) -> Result<(), CaError> {
        let Origin::Own(dir) = &self.origin else {
            return Err(CaError::NotOurs);
        };
        let files = Files::of(dir);
        if let Some(rotation) = self.rotation(dir)? {
            return Err(CaError::Rotating {
                until: rotation.retire,
            });
        }
        let bundle = read(&files.bundle)?.unwrap_or_default();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let overlap = overlap.as_secs();
        let rotation = Rotation {
            activate: now.saturating_add(overlap),
            retire: now.saturating_add(overlap.saturating_mul(2)),
        };
        write(&files.next, &key.serialize_pem(), 0o600)?;
        // Until the bundle has the new root, nothing has begun: see `step`.
        let both = format!("{bundle}{}", self.self_signed(&key, now)?);
        write(&files.rotation, &encode(rotation), 0o644)?;
        write(&files.bundle, &both, 0o644)
    }

    /// Does what is due; says whether anything is different now.
    ///
    /// # Errors
    /// When a file cannot be read or written; it is tried again.
    pub(super) fn step(&self, bundle: &Bundle, now: u64) -> Result<bool, CaError> {
        let dir = match &self.origin {
            Origin::Own(dir) => dir,
            Origin::Files { .. } => return Ok(true),
            Origin::Given { .. } => return Ok(false),
        };
        let files = Files::of(dir);
        let next_is_trusted = bundle.roots.iter().any(|r| r.state == RootState::Next);
        let Some(rotation) = self.rotation(dir)? else {
            if self.is_old(bundle, now) {
                self.rotate(self.ttl, now)?;
                return Ok(true);
            }
            return Ok(false);
        };
        if files.next.exists() {
            if !next_is_trusted {
                // A crash came before the bundle was written.
                remove(&files.rotation)?;
                remove(&files.next)?;
                return Ok(true);
            }
            if now < rotation.activate {
                return Ok(false);
            }
            // The old root is trusted for the whole overlap, however late this comes.
            let overlap = rotation.retire.saturating_sub(rotation.activate);
            let retire = now.saturating_add(overlap);
            let later = Rotation { retire, ..rotation };
            write(&files.rotation, &encode(later), 0o644)?;
            fs::rename(&files.next, &files.key).map_err(at(&files.key))?;
            return Ok(true);
        }
        if now < rotation.retire {
            return Ok(false);
        }
        let active = bundle.roots.iter().filter(|r| r.state == RootState::Active);
        let active: String = active.map(|root| root.pem.as_str()).collect();
        write(&files.bundle, &active, 0o644)?;
        remove(&files.rotation)?;
        Ok(true)
    }

    /// Whether the active root is so near its end that it has to be replaced.
    fn is_old(&self, bundle: &Bundle, now: u64) -> bool {
        let Some(active) = bundle.roots.first() else {
            return false;
        };
        let (from, to) = active.validity;
        let life = to.saturating_sub(from);
        let leaves = self.ttl.as_secs().saturating_mul(RENEW_LEAVES);
        let early = (life / RENEW_PART).max(leaves).min(life / 2);
        to.saturating_sub(now) < early
    }
}

/// The files of a directory of our own.
struct Files {
    bundle: PathBuf,
    key: PathBuf,
    next: PathBuf,
    rotation: PathBuf,
}

impl Files {
    fn of(dir: &Path) -> Self {
        Self {
            bundle: dir.join("root.pem"),
            key: dir.join("root.key"),
            next: dir.join("next.key"),
            rotation: dir.join("rotation.json"),
        }
    }
}

fn load_files(cert: &Path, key: &Path, roots: Option<&Path>, now: u64) -> Result<State, CaError> {
    let text = |path: &Path| -> Result<Text, CaError> {
        Ok(Text {
            place: path.display().to_string(),
            pem: fs::read_to_string(path).map_err(at(path))?,
        })
    };
    let roots = roots.map(text).transpose()?;
    given(&text(cert)?, &text(key)?, roots.as_ref(), now)
}

/// PEM, and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// The file or Secret, for messages.
    pub place: String,
    /// What is there.
    pub pem: String,
}

impl Text {
    fn unusable(&self, why: impl Into<String>) -> CaError {
        CaError::Unusable {
            place: self.place.clone(),
            why: why.into(),
        }
    }

    fn certificates(&self) -> Result<Vec<Certificate>, CaError> {
        certificates(&self.pem).ok_or_else(|| self.unusable("holds no certificate in PEM"))
    }
}

/// An authority that somebody else made.
fn given(cert: &Text, key: &Text, roots: Option<&Text>, now: u64) -> Result<State, CaError> {
    let chain = cert.certificates()?;
    let signing = KeyPair::from_pem(&key.pem)
        .map_err(|error| key.unusable(format!("is no private key in PKCS#8: {error}")))?;
    let first = chain.first().ok_or_else(|| cert.unusable("is empty"))?;
    if !belongs(&first.der, &signing) {
        return Err(cert.unusable(format!("does not belong to the key in {}", key.place)));
    }
    if !is_authority(&first.der) {
        return Err(cert.unusable("may not sign certificates (RFC 5280 §4.2.1.9)"));
    }
    let trusted = match roots {
        Some(roots) => roots.certificates()?,
        None => {
            let last = chain.last().filter(|last| is_self_issued(&last.der));
            let last = last.ok_or_else(|| {
                cert.unusable("does not end in a root, so that --ca-roots is needed")
            })?;
            vec![last.clone()]
        }
    };
    let mut validity = (0, u64::MAX);
    for one in &chain {
        let (from, to) = validity_of(&one.der).ok_or_else(|| cert.unusable("is no certificate"))?;
        validity = (validity.0.max(from), validity.1.min(to));
    }
    let mut all = Vec::new();
    for one in trusted {
        let place = roots.unwrap_or(cert);
        let state = RootState::Active;
        all.push(Root::new(one, state).ok_or_else(|| place.unusable("is no certificate"))?);
    }
    let between = chain.iter().filter(|one| !is_self_issued(&one.der));
    let signer = Signer {
        between: between.cloned().collect(),
        issuer: Issuer::from_ca_cert_der(&first.der, signing)?,
        validity,
    };
    let state = State {
        signer,
        bundle: Bundle { roots: all },
    };
    prove(&state, cert, now)?;
    Ok(state)
}

/// A root's certificate and key, in PEM.
///
/// # Errors
/// When it cannot be made.
pub fn new_root(trust_domain: &str, clock: &Clock) -> Result<(String, String), CaError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let root = root_params(trust_domain, clock.unix()).self_signed(&key)?;
    Ok((root.pem(), key.serialize_pem()))
}

/// A certificate, with the text that it was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Certificate {
    pub(super) der: CertificateDer<'static>,
    pub(super) pem: String,
}

/// The certificates in a file; `None` if it has none, or a broken one.
fn certificates(text: &str) -> Option<Vec<Certificate>> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    let mut all = Vec::new();
    for part in text.split(BEGIN).skip(1).take(MAX_CERTIFICATES) {
        let (body, _) = part.split_once("-----END CERTIFICATE-----")?;
        let pem = format!("{BEGIN}{body}-----END CERTIFICATE-----\n");
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
        all.push(Certificate { der, pem });
    }
    (!all.is_empty()).then_some(all)
}

/// That a leaf signed now can be verified by those who trust the roots.
fn prove(state: &State, place: &Text, now: u64) -> Result<(), CaError> {
    let (from, to) = state.signer.validity;
    let time = now.clamp(from, to.saturating_sub(1).max(from));
    let mut params = CertificateParams::default();
    set_validity(&mut params, from, to);
    params.is_ca = IsCa::ExplicitNoCa;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let leaf = params.signed_by(&key, &state.signer.issuer)?;
    let between: Vec<_> = state.signer.between.iter().map(|c| c.der.clone()).collect();
    let roots = &state.bundle.roots;
    let anchors: Vec<_> = roots
        .iter()
        .filter_map(|root| webpki::anchor_from_trusted_cert(&root.der).ok())
        .collect();
    let verified = webpki::EndEntityCert::try_from(leaf.der()).and_then(|leaf| {
        let time = UnixTime::since_unix_epoch(Duration::from_secs(time));
        let usage = webpki::KeyUsage::server_auth();
        let algorithms = webpki::ALL_VERIFICATION_ALGS;
        leaf.verify_for_usage(algorithms, &anchors, &between, time, usage, None, None)
            .map(drop)
    });
    let why = |error| format!("does not lead to a root that peers trust: {error}");
    verified.map_err(|error| place.unusable(why(error)))
}

fn belongs(cert: &CertificateDer<'_>, key: &KeyPair) -> bool {
    use rcgen::PublicKeyData as _;
    webpki::EndEntityCert::try_from(cert)
        .is_ok_and(|cert| *cert.subject_public_key_info() == *key.subject_public_key_info())
}

fn is_authority(cert: &CertificateDer<'_>) -> bool {
    let parsed = x509_parser::parse_x509_certificate(cert);
    parsed.is_ok_and(|(_, cert)| cert.is_ca())
}

fn is_self_issued(cert: &CertificateDer<'_>) -> bool {
    let parsed = x509_parser::parse_x509_certificate(cert);
    parsed.is_ok_and(|(_, cert)| cert.subject() == cert.issuer())
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

fn encode(rotation: Rotation) -> String {
    let Rotation { activate, retire } = rotation;
    format!("{{\"activate\": {activate}, \"retire\": {retire}}}\n")
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> CaError {
    let path = path.to_owned();
    move |error| CaError::File { path, error }
}

fn unusable(path: &Path, why: impl Into<String>) -> CaError {
    CaError::Unusable {
        place: path.display().to_string(),
        why: why.into(),
    }
}

/// A file's text; `None` if it is not there.
fn read(path: &Path) -> Result<Option<String>, CaError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at(path)(error)),
    }
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), CaError> {
    write_file(path, text, mode).map_err(at(path))
}

fn remove(path: &Path) -> Result<(), CaError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path)(error)),
        _ => Ok(()),
    }
}

//! This workload's certificate and trust bundle, swapped under live connections.

use std::{fmt, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject},
    sign::CertifiedKey,
};

use super::{der::Facts, verify::CertificateIdentity};
use crate::config::SpiffeId;

/// A certificate chain longer than this is nobody's honest one.
const MAX_CHAIN: usize = 8;
/// Roots in a bundle; SPIFFE federation of a few dozen trust domains fits.
const MAX_ROOTS: usize = 128;
/// Roots that are named in a log line.
const NAMED_ROOTS: usize = 4;

/// Why a certificate, key or bundle is not taken. The one in use stays (TL-04).
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("certificate chain: {0}")]
    Chain(String),
    #[error("private key: {0}")]
    Key(String),
    #[error("certificate and private key do not belong together")]
    KeyMismatch,
    #[error("the private key is of certificate {0} of the chain; the leaf has to come first")]
    LeafNotFirst(usize),
    #[error("trust bundle: {0}")]
    Bundle(String),
    #[error("certificate names {found}, expected {expected}")]
    WrongIdentity { found: String, expected: String },
    #[error("certificate expired {0:?} ago")]
    Expired(Duration),
}

/// One generation of who we are and whom we trust.
pub struct Identity {
    pub id: Option<SpiffeId>,
    pub key: Arc<CertifiedKey>,
    pub roots: Arc<Bundle>,
    /// When it was taken into use, or becomes valid if that is later, in seconds since 1970.
    pub since: u64,
    /// Seconds since 1970.
    pub not_before: u64,
    pub not_after: u64,
    /// Serial number of the leaf, in hexadecimal.
    pub serial: String,
    /// The chain and bundle as given, for the admin page; never the key.
    pub chain_pem: String,
    pub roots_pem: String,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("id", &self.id)
            .field("serial", &self.serial)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// Checks and loads a chain (leaf first), its key and a trust bundle, all PEM. A broken
    /// certificate among good ones in the bundle is skipped with a warning naming it (TL-05).
    ///
    /// # Errors
    /// When no usable identity comes out of it; `expected` guards against a certificate that was
    /// issued for somebody else.
    pub fn from_pem(
        chain_pem: &str,
        key_pem: &str,
        roots_pem: &str,
        expected: Option<&SpiffeId>,
        now: UnixTime,
    ) -> Result<Self, IdentityError> {
        let chain = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
            .take(MAX_CHAIN)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| IdentityError::Chain(e.to_string()))?;
        let leaf = chain
            .first()
            .ok_or_else(|| IdentityError::Chain("no certificate in it".into()))?;
        let facts =
            CertificateIdentity::of(leaf).map_err(|e| IdentityError::Chain(e.to_string()))?;
        if let Some(expected) = expected
            && facts.id.as_ref() != Some(expected)
        {
            return Err(IdentityError::WrongIdentity {
                found: facts
                    .id
                    .as_ref()
                    .map_or_else(|| "no SPIFFE identity".to_owned(), ToString::to_string),
                expected: expected.to_string(),
            });
        }
        if facts.not_after <= now.as_secs() {
            let age = Duration::from_secs(now.as_secs() - facts.not_after);
            return Err(IdentityError::Expired(age));
        }
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
            .map_err(|e| IdentityError::Key(e.to_string()))?;
        let key = super::provider()
            .key_provider
            .load_private_key(key)
            .map_err(|e| IdentityError::Key(e.to_string()))?;
        let certified = CertifiedKey::new(chain, key);
        if certified.keys_match().is_err() {
            let later = (1..certified.cert.len()).find(|n| {
                let rest = certified.cert.get(*n..).unwrap_or_default().to_vec();
                CertifiedKey::new(rest, Arc::clone(&certified.key)).keys_match() == Ok(())
            });
            return Err(later.map_or(IdentityError::KeyMismatch, |n| {
                IdentityError::LeafNotFirst(n + 1)
            }));
        }
        Ok(Self {
            id: facts.id,
            key: Arc::new(certified),
            roots: Arc::new(Bundle::from_pem(roots_pem, now)?),
            since: facts.not_before.max(now.as_secs()),
            not_before: facts.not_before,
            not_after: facts.not_after,
            serial: facts.serial,
            chain_pem: chain_pem.to_owned(),
            roots_pem: roots_pem.to_owned(),
        })
    }

    /// Whether it is good for handshakes at `now`.
    #[must_use]
    pub const fn is_valid(&self, now: UnixTime) -> bool {
        now.as_secs() < self.not_after
    }

    /// The same certificate, with another trust bundle.
    ///
    /// # Errors
    /// When no root in it is usable.
    pub fn with_roots(&self, roots_pem: &str, now: UnixTime) -> Result<Self, IdentityError> {
        Ok(Self {
            id: self.id.clone(),
            key: Arc::clone(&self.key),
            roots: Arc::new(Bundle::from_pem(roots_pem, now)?),
            since: self.since,
            serial: self.serial.clone(),
            chain_pem: self.chain_pem.clone(),
            roots_pem: roots_pem.to_owned(),
            not_before: self.not_before,
            not_after: self.not_after,
        })
    }

    /// Whether our certificate chains to the first root of the bundle, which is the one that signs.
    #[must_use]
    pub fn is_of_first_root(&self, now: UnixTime) -> bool {
        let Some((leaf, between)) = self.key.cert.split_first() else {
            return false;
        };
        let Ok(leaf) = webpki::EndEntityCert::try_from(leaf) else {
            return false;
        };
        let first = self.roots.store.roots.get(..1).unwrap_or_default();
        let usage = webpki::KeyUsage::client_auth();
        let algorithms = super::provider().signature_verification_algorithms.all;
        leaf.verify_for_usage(algorithms, first, between, now, usage, None, None)
            .is_ok()
    }

    /// When to fetch the next one: at two thirds of the life that it had when it came, less up to a
    /// tenth of that so that replicas do not all come at once. `jitter` is from 0 to 1. Its whole
    /// life would not do: authorities date certificates back, short-lived ones by more than a third
    /// of their life, and the next one would be due the moment that this one came.
    #[must_use]
    pub fn renew_at(&self, jitter: f64) -> u64 {
        let life = self.not_after.saturating_sub(self.since);
        let early = Duration::from_secs(life).mul_f64(jitter.clamp(0.0, 1.0) / 10.0);
        (self.since + life * 2 / 3).saturating_sub(early.as_secs())
    }
}

/// The roots that peers are believed by.
#[derive(Debug)]
pub struct Bundle {
    pub(super) store: RootCertStore,
    names: Vec<String>,
}

impl Bundle {
    /// Loads a bundle. Certificates that are broken or expired among good ones are left out, each
    /// with a warning that names it (TL-05).
    ///
    /// # Errors
    /// When nothing usable is left.
    pub(super) fn from_pem(pem: &str, now: UnixTime) -> Result<Self, IdentityError> {
        let mut bundle = Self {
            store: RootCertStore::empty(),
            names: Vec::new(),
        };
        let mut first_error = None;
        let all = CertificateDer::pem_slice_iter(pem.as_bytes());
        for (n, root) in all.take(MAX_ROOTS).enumerate() {
            let added = root
                .map_err(|error| error.to_string())
                .and_then(|der| bundle.add(der, now));
            if let Err(error) = added {
                tracing::warn!(
                    certificate = n + 1,
                    error,
                    "a root is left out of the bundle"
                );
                first_error.get_or_insert_with(|| format!("certificate {}: {error}", n + 1));
            }
        }
        if bundle.store.is_empty() {
            let why = first_error.map_or_else(String::new, |error| format!(" ({error})"));
            return Err(IdentityError::Bundle(format!("no usable root in it{why}")));
        }
        Ok(bundle)
    }

    fn add(&mut self, der: CertificateDer<'_>, now: UnixTime) -> Result<(), String> {
        let facts = Facts::of(&der).ok_or("it is no X.509 certificate")?;
        let name = facts.named_subject();
        if facts.not_after <= now.as_secs() {
            return Err(format!("{name} has expired"));
        }
        self.store
            .add(der)
            .map_err(|error| format!("{name}: {error}"))?;
        if !self.names.contains(&name) {
            self.names.push(name);
        }
        Ok(())
    }

    /// The roots by name, for a log line.
    #[must_use]
    pub fn names(&self) -> String {
        let named = self.names.get(..NAMED_ROOTS).unwrap_or(&self.names);
        let more = self.names.len() - named.len();
        let mut text = named.join("; ");
        if more > 0 {
            text.push_str(&format!("; and {more} more"));
        }
        text
    }
}

/// The identity in force. Cheap to read, swapped whole.
#[derive(Debug, Default)]
pub struct IdentityStore {
    current: ArcSwapOption<Identity>,
    /// Why there is no newer one.
    trouble: ArcSwapOption<String>,
    changed: tokio::sync::Notify,
}

impl IdentityStore {
    /// An empty store: until [`Self::set`], no handshake succeeds.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// The identity in force, if there is one.
    #[must_use]
    pub fn get(&self) -> Option<Arc<Identity>> {
        self.current.load_full()
    }

    /// Puts `identity` in force for all handshakes from now on, in both roles.
    pub fn set(&self, identity: Identity) {
        self.current.store(Some(Arc::new(identity)));
        self.trouble.store(None);
        self.changed.notify_waiters();
    }

    /// Remembers why an identity that is due did not come, for people to read.
    pub fn set_trouble(&self, why: String) {
        self.trouble.store(Some(Arc::new(why)));
    }

    /// Why the identity that is due has not come; `None` when none is.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.trouble
            .load()
            .as_ref()
            .map(|why| why.as_str().to_owned())
    }

    /// Waits until an identity is put in force, from this call on.
    pub fn changed(&self) -> impl Future<Output = ()> {
        self.changed.notified()
    }

    /// Waits until there is an identity.
    pub async fn ready(&self) -> Arc<Identity> {
        loop {
            let changed = self.changed.notified();
            if let Some(identity) = self.get() {
                return identity;
            }
            changed.await;
        }
    }
}

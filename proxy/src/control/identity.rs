//! Where our certificate comes from, and when the next one is due.

use std::{path::PathBuf, sync::Arc, time::Duration};

use outrigger_proto::outrigger::identity::v1::{
    CreateCertificateRequest, CreateCertificateResponse, WatchTrustBundleRequest,
    certificate_service_client::CertificateServiceClient,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use tokio::sync::mpsc;
use tonic::transport::Endpoint;

use super::{Connector, WallClock};
use crate::{
    config::{SpiffeId, units::Backoff},
    tls::{Identity, IdentityError, IdentityStore},
};

/// The wall clock is looked at this often, whatever a timer on the monotonic clock would say: a
/// machine that slept wakes up with an expired certificate (TL-03).
const CHECK_EVERY: Duration = Duration::from_secs(30);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Waits between failed requests.
const RETRY_BASE: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(15);
/// Waits between streams of trust bundles; a bundle also comes with every certificate.
const BUNDLE_RETRY_MAX: Duration = Duration::from_secs(60);
/// When another root signs, proxies renew within this time, not all at once.
const RENEW_SPREAD: Duration = Duration::from_secs(10);
/// A stream whose other end is gone without a word is noticed after this and [`REQUEST_TIMEOUT`].
const PING_EVERY: Duration = Duration::from_secs(30);

/// Why there is no new certificate; the old one stays in force.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("cannot read {path}: {error}")]
    File {
        path: PathBuf,
        error: std::io::Error,
    },
    #[error("cannot make a key and a request for it: {0}")]
    Request(#[from] rcgen::Error),
    #[error("cannot reach the control plane: {}", reason(.0))]
    Connect(#[from] tonic::transport::Error),
    #[error("the control plane refused a certificate: {}", .0.message())]
    Refused(Box<tonic::Status>),
    #[error("the certificate received is not usable: {0}")]
    Unusable(#[from] IdentityError),
}

/// tonic's own text is "transport error"; the reason is behind it.
fn reason(error: &tonic::transport::Error) -> String {
    let source = std::error::Error::source(error);
    source.map_or_else(|| error.to_string(), ToString::to_string)
}

/// What a request for a certificate is backed by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// The certificate in force, shown in the handshake.
    Certificate,
    /// A join token; no certificate is shown.
    Token(String),
}

/// Who signs requests: the control plane, or what stands for it in a test.
pub trait Authority: Send + Sync {
    /// Has a request signed.
    ///
    /// # Errors
    /// When it is not, or nobody is reached.
    fn sign(
        &self,
        csr_pem: String,
        proof: Proof,
    ) -> impl Future<Output = Result<CreateCertificateResponse, SourceError>> + Send;

    /// Sends the trust bundle, then each new one as it comes into force, to `news`. Ends when
    /// nothing more will come this way; one that has no news to tell never does.
    ///
    /// # Errors
    /// When it cannot be followed, or no longer.
    fn follow(
        &self,
        news: &mpsc::Sender<String>,
    ) -> impl Future<Output = Result<(), SourceError>> + Send {
        let _nobody = news;
        std::future::pending()
    }
}

impl Authority for Connector {
    async fn sign(
        &self,
        csr_pem: String,
        proof: Proof,
    ) -> Result<CreateCertificateResponse, SourceError> {
        let (connector, token) = match proof {
            Proof::Certificate => (self.clone(), String::new()),
            Proof::Token(token) => (self.anonymous(), token),
        };
        let channel = Endpoint::from_static("http://control-plane")
            .timeout(REQUEST_TIMEOUT)
            .connect_with_connector(connector)
            .await?;
        let answer = CertificateServiceClient::new(channel)
            .create_certificate(CreateCertificateRequest {
                csr_pem,
                token,
                validity: None,
            })
            .await
            .map_err(|status| SourceError::Refused(Box::new(status)))?;
        Ok(answer.into_inner())
    }

    async fn follow(&self, news: &mpsc::Sender<String>) -> Result<(), SourceError> {
        let channel = Endpoint::from_static("http://control-plane")
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(REQUEST_TIMEOUT)
            .connect_with_connector(self.clone())
            .await?;
        let refused = |status| SourceError::Refused(Box::new(status));
        let mut client = CertificateServiceClient::new(channel);
        let answer = client.watch_trust_bundle(WatchTrustBundleRequest {}).await;
        let mut stream = answer.map_err(refused)?.into_inner();
        while let Some(message) = stream.message().await.map_err(refused)? {
            if news.send(message.trust_bundle_pem).await.is_err() {
                break;
            }
        }
        Ok(())
    }
}

/// Asks the control plane's certificate authority. The key is made here and never leaves.
#[derive(Debug)]
pub struct CertificateSource<A = Connector> {
    pub authority: A,
    pub id: SpiffeId,
    /// Proof for the first certificate; later ones are asked for with the one before.
    pub token_file: Option<PathBuf>,
    pub clock: WallClock,
    /// Where the identity is kept for a restart while the control plane is away, readable by the
    /// proxy alone. The key does not leave the pod by it.
    pub state_dir: Option<PathBuf>,
}

/// The identity in the state directory.
const SAVED: &str = "identity.pem";
/// Between its three parts.
const PART: &str = "\n# ----\n";

/// What trust bundles that were sent have led to.
#[derive(Debug, Default)]
struct News {
    /// The one that was sent last, which is newer than any that came with a certificate.
    bundle: Option<String>,
    /// Ask for a certificate then, in seconds since 1970: another root signs now.
    early: Option<u64>,
}

impl<A: Authority> CertificateSource<A> {
    /// Fetches and renews for as long as it runs, putting each new identity, and each new trust
    /// bundle, into `store`.
    pub async fn run(self, store: Arc<IdentityStore>, mut rng: StdRng) {
        let backoff = Backoff::new(RETRY_BASE, RETRY_MAX).unwrap_or(Backoff::REQUEST);
        let mut failures = 0_u32;
        let jitter = rng.random::<f64>();
        if let Some(saved) = self.saved().await {
            let not_after = saved.not_after;
            tracing::info!(identity = %self.id, not_after, "saved certificate in use");
            store.set(saved);
        }
        let (send, mut bundles) = mpsc::channel(1);
        let mut seeded = StdRng::seed_from_u64(rng.random());
        let mut follow = std::pin::pin!(self.follow(&store, send, &mut seeded));
        let mut news = News::default();
        loop {
            let now = self.clock.now();
            let current = store.get();
            let due = current.as_ref().map_or(0, |own| own.renew_at(jitter));
            let due = due.min(news.early.unwrap_or(u64::MAX));
            if let Some(wait @ 1..) = due.checked_sub(now.as_secs()) {
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_secs(wait).min(CHECK_EVERY)) => {}
                    () = &mut follow => {}
                    Some(bundle) = bundles.recv() => {
                        self.trust(&store, &mut news, bundle, &mut rng).await;
                    }
                }
                continue;
            }
            match self.fetch(current.as_deref(), failures).await {
                Ok(identity) => {
                    tracing::info!(
                        identity = %self.id,
                        serial = identity.serial,
                        not_after = identity.not_after,
                        bundle = identity.roots.names(),
                        "certificate received"
                    );
                    failures = 0;
                    news.early = None;
                    store.set(self.newest(identity, &news).await);
                    // However short-lived certificates are, the authority gets a rest.
                    tokio::time::sleep(RETRY_BASE).await;
                }
                Err(error) => {
                    let wait = backoff.wait(failures, &mut rng) + RETRY_BASE;
                    failures = failures.saturating_add(1);
                    tracing::warn!(%error, failures, retry_in = ?wait, "no new certificate");
                    store.set_trouble(error.to_string());
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    /// Follows the authority's trust bundles, from when there is a certificate on.
    async fn follow(&self, store: &IdentityStore, send: mpsc::Sender<String>, rng: &mut StdRng) {
        store.ready().await;
        let backoff = Backoff::new(RETRY_BASE, BUNDLE_RETRY_MAX).unwrap_or(Backoff::REQUEST);
        let mut failures = 0_u32;
        loop {
            let began = tokio::time::Instant::now();
            let ended = self.authority.follow(&send).await;
            if began.elapsed() > BUNDLE_RETRY_MAX {
                failures = 0;
            }
            let wait = backoff.wait(failures, rng) + RETRY_BASE;
            failures = failures.saturating_add(1);
            let why = ended.err().map(|error| error.to_string());
            tracing::debug!(why, retry_in = ?wait, "the trust bundle is not followed");
            tokio::time::sleep(wait).await;
        }
    }

    /// Puts a trust bundle in force for all handshakes from now on.
    async fn trust(
        &self,
        store: &IdentityStore,
        news: &mut News,
        bundle: String,
        rng: &mut StdRng,
    ) {
        let Some(current) = store.get() else {
            return;
        };
        let now = self.clock.now();
        if current.roots_pem != bundle {
            let identity = match current.with_roots(&bundle, now) {
                Ok(identity) => identity,
                Err(error) => {
                    tracing::warn!(%error, "the trust bundle sent is not usable");
                    return;
                }
            };
            let replaced = !identity.is_of_first_root(now);
            let names = identity.roots.names();
            tracing::info!(bundle = names, replaced, "trust bundle changed");
            if replaced {
                let spread = rng.random_range(0..=RENEW_SPREAD.as_secs());
                news.early = Some(now.as_secs().saturating_add(spread));
            }
            self.save_bundle(&bundle).await;
            store.set(identity);
        }
        news.bundle = Some(bundle);
    }

    /// `identity` with the bundle that was sent last: it may have come after the request.
    async fn newest(&self, identity: Identity, news: &News) -> Identity {
        let Some(bundle) = news.bundle.as_ref().filter(|b| **b != identity.roots_pem) else {
            return identity;
        };
        match identity.with_roots(bundle, self.clock.now()) {
            Ok(newer) => {
                self.save_bundle(bundle).await;
                newer
            }
            Err(_) => identity,
        }
    }

    /// Keeps the saved certificate with another bundle.
    async fn save_bundle(&self, bundle: &str) {
        let Some(dir) = &self.state_dir else { return };
        let Ok(text) = tokio::fs::read_to_string(dir.join(SAVED)).await else {
            return;
        };
        let mut parts = text.split(PART);
        let (Some(chain), Some(key)) = (parts.next(), parts.next()) else {
            return;
        };
        if let Err(error) = save(dir, &[chain, key, bundle].join(PART)).await {
            tracing::warn!(dir = %dir.display(), %error, "the trust bundle is not saved");
        }
    }

    /// One request, after so many failed ones. What comes is checked before it takes the place of
    /// what we have (TL-04).
    ///
    /// # Errors
    /// See [`SourceError`].
    pub async fn fetch(
        &self,
        current: Option<&Identity>,
        failures: u32,
    ) -> Result<Identity, SourceError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(self.id.as_str().try_into()?)];
        let csr_pem = params.serialize_request(&key)?.pem()?;
        let proof = self.proof(current, failures).await?;
        let answer = self.authority.sign(csr_pem, proof).await?;
        let key_pem = key.serialize_pem();
        let identity = Identity::from_pem(
            &answer.cert_chain_pem,
            &key_pem,
            &answer.trust_bundle_pem,
            Some(&self.id),
            self.clock.now(),
        )?;
        let parts = [&answer.cert_chain_pem, &key_pem, &answer.trust_bundle_pem];
        if let Some(dir) = &self.state_dir
            && let Err(error) = save(dir, &parts.map(String::as_str).join(PART)).await
        {
            tracing::warn!(dir = %dir.display(), %error, "the certificate is not saved");
        }
        Ok(identity)
    }

    /// The certificate in force while it is valid, else the token. While requests fail the two take
    /// turns: an authority that was set up anew knows neither us nor our certificate, but may well
    /// know the token.
    async fn proof(&self, current: Option<&Identity>, failures: u32) -> Result<Proof, SourceError> {
        let valid = current.is_some_and(|own| own.is_valid(self.clock.now()));
        let Some(path) = &self.token_file else {
            return Ok(Proof::Certificate);
        };
        if valid && failures.is_multiple_of(2) {
            return Ok(Proof::Certificate);
        }
        match tokio::fs::read_to_string(path).await {
            Ok(token) => Ok(Proof::Token(token.trim().to_owned())),
            Err(_) if valid => Ok(Proof::Certificate),
            Err(error) => Err(SourceError::File {
                path: path.clone(),
                error,
            }),
        }
    }

    /// What an earlier run saved, if it is still good.
    async fn saved(&self) -> Option<Identity> {
        let path = self.state_dir.as_ref()?.join(SAVED);
        let text = tokio::fs::read_to_string(path).await.ok()?;
        let mut parts = text.split(PART);
        let (chain, key, roots) = (parts.next()?, parts.next()?, parts.next()?);
        let loaded = Identity::from_pem(chain, key, roots, Some(&self.id), self.clock.now());
        loaded
            .inspect_err(|error| tracing::warn!(%error, "the saved certificate is not used"))
            .ok()
    }
}

/// Written beside and moved into place, so that it is whole or not there.
async fn save(dir: &std::path::Path, text: &str) -> std::io::Result<()> {
    tokio::fs::create_dir_all(dir).await?;
    let new = dir.join(format!("{SAVED}.new"));
    let mut options = tokio::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&new).await?;
    tokio::io::AsyncWriteExt::write_all(&mut file, text.as_bytes()).await?;
    file.sync_all().await?;
    tokio::fs::rename(&new, dir.join(SAVED)).await
}

#[cfg(test)]
mod tests;

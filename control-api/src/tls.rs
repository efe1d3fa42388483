//! TLS of the port that proxies use: our own certificate, renewed in place, and theirs, verified
//! when they show one.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use rustls::{
    RootCertStore, ServerConfig,
    server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
    version::TLS13,
};
use rustls_pki_types::CertificateDer;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::{
    ca::{Authority, CaError},
    identity::Identity,
};

/// Who is at the other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// From where.
    pub address: SocketAddr,
    /// Proven by a certificate; `None` when it showed none.
    pub identity: Option<Identity>,
}

/// Namespace of the control plane.
const NAMESPACE: &str = "outrigger-system";
/// Service account by which proxies know the control plane.
const ACCOUNT: &str = "outrigger-control";
/// The wall clock is looked at this often: a timer would sleep with the machine.
const CHECK_EVERY: Duration = Duration::from_secs(30);

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// No certificate for ourselves.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The identity of the control plane is not well formed.
    #[error("{0}")]
    Identity(String),
    /// rustls refused.
    #[error("TLS: {0}")]
    Rustls(#[from] rustls::Error),
    /// The roots are of no use for clients.
    #[error("TLS: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// Our own certificate.
#[derive(Debug)]
pub struct OwnCertificate {
    authority: Arc<Authority>,
    identity: Identity,
    current: ArcSwap<(Arc<CertifiedKey>, u64)>,
}

impl OwnCertificate {
    fn issue(
        authority: &Authority,
        identity: &Identity,
    ) -> Result<(Arc<CertifiedKey>, u64), TlsError> {
        let (issued, key) = authority.self_issue(identity)?;
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let key = CertifiedKey::from_der(vec![issued.der], key, &provider)?;
        Ok((Arc::new(key), issued.not_after))
    }

    /// Renews at two thirds of the certificate's life, for as long as it runs.
    pub async fn keep_fresh(self: Arc<Self>) {
        let clock = self.authority.clock().clone();
        let mut issued = clock.unix();
        loop {
            let not_after = self.current.load().1;
            let due = issued + not_after.saturating_sub(issued) * 2 / 3;
            let now = clock.unix();
            if now < due {
                let wait = Duration::from_secs(due - now);
                tokio::time::sleep(wait.min(CHECK_EVERY)).await;
                continue;
            }
            match Self::issue(&self.authority, &self.identity) {
                Ok(fresh) => {
                    issued = now;
                    self.current.store(Arc::new(fresh));
                    tracing::info!(identity = %self.identity, "own certificate renewed");
                }
                Err(error) => {
                    tracing::error!(%error, "own certificate not renewed");
                    tokio::time::sleep(CHECK_EVERY).await;
                }
            }
        }
    }
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.load().0))
    }
}

/// Accepts TLS 1.3 with ALPN `h2`; client certificates are optional, and must be of our roots.
///
/// # Errors
/// When the authority gives us no certificate, or its root is of no use.
pub fn acceptor(
    authority: &Arc<Authority>,
) -> Result<(TlsAcceptor, Arc<OwnCertificate>), TlsError> {
    let identity =
        Identity::new(authority.trust_domain(), NAMESPACE, ACCOUNT).map_err(TlsError::Identity)?;
    let first = OwnCertificate::issue(authority, &identity)?;
    let own = Arc::new(OwnCertificate {
        authority: Arc::clone(authority),
        identity,
        current: ArcSwap::from_pointee(first),
    });
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(authority.root().clone())?;
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::clone(&own) as Arc<dyn ResolvesServerCert>);
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok((TlsAcceptor::from(Arc::new(config)), own))
}

/// Who the other end of `stream` is.
///
/// # Errors
/// When it showed a certificate that does not name exactly one SPIFFE ID of ours (TL-09).
pub fn peer_of(stream: &TlsStream<TcpStream>, address: SocketAddr) -> Result<Peer, String> {
    let certificates = stream.get_ref().1.peer_certificates();
    let identity = match certificates.and_then(|chain| chain.first()) {
        Some(leaf) => Some(identity_of(leaf)?),
        None => None,
    };
    Ok(Peer { address, identity })
}

fn identity_of(leaf: &CertificateDer<'_>) -> Result<Identity, String> {
    let cert = webpki::EndEntityCert::try_from(leaf)
        .map_err(|error| format!("client certificate: {error}"))?;
    let mut uris = cert.valid_uri_names();
    let first = uris.next().ok_or("client certificate names no URI")?;
    if uris.next().is_some() {
        return Err("client certificate names more than one URI".into());
    }
    Identity::parse(first)
}

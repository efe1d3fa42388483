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
    ca::{self, Authority, CaError, Own},
    identity::Identity,
};

/// Who is at the other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// From where.
    pub address: SocketAddr,
    /// Proven by a certificate; `None` when it showed none.
    pub identity: Option<Identity>,
    /// End of that certificate, in seconds since 1970.
    pub certificate_until: Option<u64>,
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
    name: Own,
    current: ArcSwap<(Arc<CertifiedKey>, u64)>,
}

impl OwnCertificate {
    /// A first certificate for `name`.
    ///
    /// # Errors
    /// When the authority gives us none.
    pub fn new(authority: &Arc<Authority>, name: Own) -> Result<Arc<Self>, TlsError> {
        let first = Self::issue(authority, &name)?;
        Ok(Arc::new(Self {
            authority: Arc::clone(authority),
            name,
            current: ArcSwap::from_pointee(first),
        }))
    }

    fn issue(authority: &Authority, name: &Own) -> Result<(Arc<CertifiedKey>, u64), TlsError> {
        let (issued, key) = authority.self_issue(name)?;
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let key = CertifiedKey::from_der(issued.chain, key, &provider)?;
        Ok((Arc::new(key), issued.not_after))
    }

    fn renew(&self) -> Result<(), TlsError> {
        let fresh = Self::issue(&self.authority, &self.name)?;
        self.current.store(Arc::new(fresh));
        tracing::info!(name = %self.name, "own certificate renewed");
        Ok(())
    }

    /// Renews at two thirds of the certificate's life, and when the roots are other ones, for as
    /// long as it runs; `renewed` is called each time, and both are tried again when it fails.
    pub async fn keep_fresh(self: Arc<Self>, renewed: impl Fn() -> Result<(), TlsError> + Send) {
        let clock = self.authority.clock().clone();
        let mut bundles = self.authority.watch();
        let (mut issued, mut overdue) = (clock.unix(), false);
        loop {
            let not_after = self.current.load().1;
            let due = issued + not_after.saturating_sub(issued) * 2 / 3;
            let left = Duration::from_secs(due.saturating_sub(clock.unix()));
            let wait = if overdue {
                CHECK_EVERY
            } else {
                left.min(CHECK_EVERY)
            };
            // The wall clock decides: a timer would sleep with the machine (TL-03).
            let changed = tokio::select! {
                () = tokio::time::sleep(wait) => false,
                changed = bundles.changed() => match changed {
                    Ok(()) => true,
                    Err(_) => return,
                },
            };
            if !changed && !overdue && clock.unix() < due {
                continue;
            }
            match self.renew().and_then(|()| renewed()) {
                Ok(()) => (issued, overdue) = (clock.unix(), false),
                Err(error) => {
                    tracing::error!(%error, "own certificate not renewed");
                    overdue = true;
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

/// Accepts TLS 1.3 with ALPN `h2`, by our own certificate and the roots of the moment.
#[derive(Debug)]
pub struct Acceptor {
    own: Arc<OwnCertificate>,
    /// Whether clients are asked for a certificate; it is optional, and must be of our roots.
    ask_clients: bool,
    config: ArcSwap<ServerConfig>,
}

impl Acceptor {
    /// One that asks clients for certificates, and one that does not.
    ///
    /// # Errors
    /// When the authority gives us no certificate, or its roots are of no use.
    pub fn pair(authority: &Arc<Authority>) -> Result<[Arc<Self>; 2], TlsError> {
        let domain = authority.trust_domain();
        let identity = Identity::new(domain, NAMESPACE, ACCOUNT).map_err(TlsError::Identity)?;
        let own = OwnCertificate::new(authority, Own::Identity(identity))?;
        let build = |ask_clients| -> Result<Arc<Self>, TlsError> {
            Ok(Arc::new(Self {
                config: ArcSwap::new(config(&own, ask_clients)?),
                own: Arc::clone(&own),
                ask_clients,
            }))
        };
        Ok([build(true)?, build(false)?])
    }

    /// For the next connection.
    #[must_use]
    pub fn now(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.load_full())
    }

    fn refresh(&self) -> Result<(), TlsError> {
        self.config.store(config(&self.own, self.ask_clients)?);
        Ok(())
    }
}

/// Keeps our certificate fresh, and the roots that clients are checked by, for as long as it runs.
/// Connections that are there stay.
pub async fn keep_fresh(pair: [Arc<Acceptor>; 2]) {
    let [first, _] = &pair;
    let own = Arc::clone(&first.own);
    own.keep_fresh(|| pair.iter().try_for_each(|acceptor| acceptor.refresh()))
        .await;
}

fn config(own: &Arc<OwnCertificate>, ask_clients: bool) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])?;
    let builder = if ask_clients {
        let mut roots = RootCertStore::empty();
        for root in &own.authority.bundle().roots {
            roots.add(root.der.clone())?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .allow_unauthenticated()
            .build()?;
        builder.with_client_cert_verifier(verifier)
    } else {
        builder.with_no_client_auth()
    };
    let mut config = builder.with_cert_resolver(Arc::clone(own) as Arc<dyn ResolvesServerCert>);
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// Who the other end of `stream` is.
///
/// # Errors
/// When it showed a certificate that does not name exactly one SPIFFE ID of ours (TL-09).
pub fn peer_of(stream: &TlsStream<TcpStream>, address: SocketAddr) -> Result<Peer, String> {
    let certificates = stream.get_ref().1.peer_certificates();
    let leaf = certificates.and_then(|chain| chain.first());
    Ok(Peer {
        address,
        identity: leaf.map(identity_of).transpose()?,
        certificate_until: leaf.and_then(ca::validity_of).map(|(_, until)| until),
    })
}

/// That a certificate, verified otherwise, is the control plane's.
///
/// # Errors
/// Whose it is instead.
pub(crate) fn is_control_plane(leaf: &CertificateDer<'_>) -> Result<(), String> {
    let identity = identity_of(leaf)?;
    if identity.namespace == NAMESPACE && identity.service_account == ACCOUNT {
        Ok(())
    } else {
        Err(format!("{identity} is not the control plane"))
    }
}

fn identity_of(leaf: &CertificateDer<'_>) -> Result<Identity, String> {
    let cert =
        webpki::EndEntityCert::try_from(leaf).map_err(|error| format!("certificate: {error}"))?;
    let mut uris = cert.valid_uri_names();
    let first = uris.next().ok_or("the certificate names no URI")?;
    if uris.next().is_some() {
        return Err("the certificate names more than one URI".into());
    }
    Identity::parse(first)
}

//! Dials the control plane. Several addresses are tried in turn, one an attempt, so that a frozen
//! replica is left for another (LB-02).

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::BoxFuture;
use http::Uri;
use hyper_util::rt::TokioIo;
use tower_service::Service;

use super::WallClock;
use crate::{
    config::{
        Invalid, TrustDomain,
        matcher::StringMatch,
        tls::{ClientTls, InlineSecret, PeerMatch, SecretRef},
    },
    net::{BoxIo, Dialer},
    tls::{ClientTlsCache, IdentityStore},
};

/// For name resolution, TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Service account of the control plane, whose identity proves it.
const CONTROL_ACCOUNT: &str = "outrigger-control";

/// What a [`Connector`] is made of.
#[derive(Debug)]
pub struct ConnectorSettings {
    /// `host:port` of each replica.
    pub addresses: Vec<String>,
    /// PEM file with roots that the control plane is believed by. It is looked at again at each
    /// attempt, so that a change of the roots needs no restart (TL-02).
    pub bundle: PathBuf,
    /// Of the control plane.
    pub domain: TrustDomain,
    pub dialer: Dialer,
    /// Our own certificate, and the roots that came with it, which the control plane is believed by
    /// as well.
    pub identity: Arc<IdentityStore>,
    pub clock: WallClock,
}

/// Makes authenticated connections to the control plane.
#[derive(Clone, Debug)]
pub struct Connector {
    settings: Arc<ConnectorSettings>,
    next: Arc<AtomicUsize>,
    tls: Arc<ClientTlsCache>,
    expected: PeerMatch,
    /// The setting in use, by the roots and by whether our certificate is shown.
    built: Arc<Mutex<Option<Arc<ClientTls>>>>,
    anonymous: bool,
}

impl Connector {
    /// A connector to the control plane. Our own certificate is shown while we have a valid one.
    ///
    /// # Errors
    /// When there is no address, or one has no port, or the bundle cannot be read.
    pub fn new(settings: ConnectorSettings) -> Result<Self, Invalid> {
        if settings.addresses.is_empty() {
            return Err(Invalid::at("control-plane", "no address given"));
        }
        for address in &settings.addresses {
            let port = address
                .rsplit_once(':')
                .map(|(_, port)| port.parse::<u16>());
            if !matches!(port, Some(Ok(1..))) {
                let why = format!("{address:?} is not host:port");
                return Err(Invalid::at("control-plane", why));
            }
        }
        if let Err(error) = std::fs::metadata(&settings.bundle) {
            let why = format!("{}: {error}", settings.bundle.display());
            return Err(Invalid::at("trust-bundle", why));
        }
        let domain = regex::escape(settings.domain.as_str());
        let expected = format!("spiffe://{domain}/ns/[^/]+/sa/{CONTROL_ACCOUNT}");
        Ok(Self {
            tls: Arc::new(ClientTlsCache::new(Arc::clone(&settings.identity))),
            settings: Arc::new(settings),
            next: Arc::default(),
            expected: PeerMatch {
                identities: vec![StringMatch::regex(&expected)?],
                dns_names: Vec::new(),
            },
            built: Arc::default(),
            anonymous: false,
        })
    }

    /// The same one, which never shows our certificate: a control plane that does not accept it
    /// (it has lost its authority, or the certificate has expired) would end the handshake.
    #[must_use]
    pub fn anonymous(&self) -> Self {
        Self {
            built: Arc::default(),
            anonymous: true,
            ..self.clone()
        }
    }

    /// How to shake hands at this moment.
    async fn tls_now(&self) -> Arc<ClientTls> {
        let ConnectorSettings {
            bundle,
            identity,
            clock,
            ..
        } = &*self.settings;
        let current = identity.get();
        let now = clock.now();
        let shown = !self.anonymous && current.as_ref().is_some_and(|own| own.is_valid(now));
        let mut trusted_ca = tokio::fs::read(bundle).await.unwrap_or_else(|error| {
            tracing::warn!(path = %bundle.display(), %error, "cannot read the trust bundle");
            Vec::new()
        });
        if let Some(current) = &current {
            trusted_ca.push(b'\n');
            trusted_ca.extend_from_slice(current.roots_pem.as_bytes());
        }
        let secret = InlineSecret {
            trusted_ca,
            ..InlineSecret::default()
        };
        let new = ClientTls {
            certificate: shown.then_some(SecretRef::Workload),
            roots: SecretRef::Inline(Arc::new(secret)),
            peers: self.expected.clone(),
            sni: CONTROL_ACCOUNT.into(),
            alpn: vec![b"h2".as_slice().into()],
            allow_tls12: false,
        };
        let mut built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        match &*built {
            Some(old) if old.certificate == new.certificate && old.roots == new.roots => {
                Arc::clone(old)
            }
            _ => Arc::clone(built.insert(Arc::new(new))),
        }
    }

    /// One attempt, at the next address.
    ///
    /// # Errors
    /// What went wrong, with the address.
    pub async fn connect(&self) -> io::Result<BoxIo> {
        let addresses = &self.settings.addresses;
        let n = self.next.fetch_add(1, Ordering::Relaxed) % addresses.len();
        let Some(name) = addresses.get(n) else {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        };
        let attempt = async {
            let address = tokio::net::lookup_host(name.as_str())
                .await?
                .next()
                .ok_or_else(|| io::Error::other("the name has no address"))?;
            let dialer = self.settings.dialer;
            let io = dialer.connect(address, CONNECT_TIMEOUT).await?;
            let tls = self.tls_now().await;
            let session = self.tls.connect(&tls, b"h2", io).await;
            session.map(|s| s.io).map_err(io::Error::other)
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, attempt).await {
            Ok(Ok(io)) => Ok(io),
            Ok(Err(error)) => Err(io::Error::new(
                error.kind(),
                format!("control plane {name}: {error}"),
            )),
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("control plane {name}: no connection within {CONNECT_TIMEOUT:?}"),
            )),
        }
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<BoxIo>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<TokioIo<BoxIo>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { this.connect().await.map(TokioIo::new) })
    }
}

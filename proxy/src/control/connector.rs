//! Dials the control plane. Several addresses are tried in turn, one an attempt, so that a frozen
//! replica is left for another (LB-02).

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::BoxFuture;
use http::Uri;
use hyper_util::rt::TokioIo;
use tower_service::Service;

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

/// Makes authenticated connections to the control plane.
#[derive(Clone, Debug)]
pub struct Connector {
    addresses: Arc<[String]>,
    next: Arc<AtomicUsize>,
    dialer: Dialer,
    tls: Arc<ClientTlsCache>,
    identity: Arc<IdentityStore>,
    anonymous: Arc<ClientTls>,
    known: Arc<ClientTls>,
}

impl Connector {
    /// A connector to `addresses` (`host:port`), which have to prove the identity of the control
    /// plane by a root in `bundle_pem`. Our own certificate is shown once we have one.
    ///
    /// # Errors
    /// When there is no address, or one has no port.
    pub fn new(
        addresses: &[String],
        bundle_pem: Vec<u8>,
        domain: &TrustDomain,
        dialer: Dialer,
        identity: Arc<IdentityStore>,
    ) -> Result<Self, Invalid> {
        if addresses.is_empty() {
            return Err(Invalid::at("control-plane", "no address given"));
        }
        for address in addresses {
            let port = address
                .rsplit_once(':')
                .map(|(_, port)| port.parse::<u16>());
            if !matches!(port, Some(Ok(1..))) {
                let why = format!("{address:?} is not host:port");
                return Err(Invalid::at("control-plane", why));
            }
        }
        let domain = regex::escape(domain.as_str());
        let expected = format!("spiffe://{domain}/ns/[^/]+/sa/{CONTROL_ACCOUNT}");
        let tls = ClientTls {
            certificate: None,
            roots: SecretRef::Inline(Arc::new(InlineSecret {
                trusted_ca: bundle_pem,
                ..InlineSecret::default()
            })),
            peers: PeerMatch {
                identities: vec![StringMatch::regex(&expected)?],
                dns_names: Vec::new(),
            },
            sni: CONTROL_ACCOUNT.into(),
            alpn: vec![b"h2".as_slice().into()],
            allow_tls12: false,
        };
        Ok(Self {
            addresses: addresses.into(),
            next: Arc::default(),
            dialer,
            tls: Arc::new(ClientTlsCache::new(Arc::clone(&identity))),
            identity,
            known: Arc::new(ClientTls {
                certificate: Some(SecretRef::Workload),
                ..tls.clone()
            }),
            anonymous: Arc::new(tls),
        })
    }

    /// One attempt, at the next address.
    ///
    /// # Errors
    /// What went wrong, with the address.
    pub async fn connect(&self) -> io::Result<BoxIo> {
        let n = self.next.fetch_add(1, Ordering::Relaxed) % self.addresses.len();
        let Some(name) = self.addresses.get(n) else {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        };
        let attempt = async {
            let address = tokio::net::lookup_host(name.as_str())
                .await?
                .next()
                .ok_or_else(|| io::Error::other("the name has no address"))?;
            let io = self.dialer.connect(address, CONNECT_TIMEOUT).await?;
            let tls = if self.identity.get().is_some() {
                &self.known
            } else {
                &self.anonymous
            };
            let session = self.tls.connect(tls, b"h2", io).await;
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

//! Dialling with TLS.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use rustls::{
    ClientConfig,
    client::{ResolvesClientCert, Resumption},
    pki_types::ServerName,
    sign::CertifiedKey,
};
use tokio_rustls::TlsConnector;

use super::{
    dialled::Dialled,
    identity::IdentityStore,
    server::{roots_of, store_of},
    verify::{PeerVerifier, Why, peer_identity, refused},
};
use crate::{
    config::{SpiffeId, tls::ClientTls},
    fault::Fault,
    net::{BoxIo, Io},
};

/// Presents whatever certificate the identity store holds when the handshake happens.
#[derive(Debug)]
struct CurrentKey(Option<Arc<IdentityStore>>);

impl ResolvesClientCert for CurrentKey {
    fn resolve(
        &self,
        _root_hints: &[&[u8]],
        _schemes: &[rustls::SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        let identity = self.0.as_ref()?.get()?;
        Some(Arc::clone(&identity.key))
    }

    fn has_certs(&self) -> bool {
        self.0.is_some()
    }
}

/// A finished handshake.
#[derive(Debug)]
pub struct Session {
    pub io: BoxIo,
    pub peer: Option<SpiffeId>,
    pub alpn: Option<Vec<u8>>,
}

/// A handshake that failed. No byte of the application was sent.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// TLS settings cannot be used.
    #[error("TLS settings: {0}")]
    Config(#[source] rustls::Error),
    /// We have no certificate (yet).
    #[error("no certificate of our own")]
    NoIdentity,
    /// The peer is somebody else.
    #[error("{0}")]
    WrongPeer(String),
    /// Anything else that went wrong in the handshake.
    #[error("TLS handshake: {0}")]
    Failed(#[source] io::Error),
}

impl HandshakeError {
    /// The cause that callers, logs and metrics see.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        match self {
            Self::NoIdentity => Fault::IdentityMissing,
            Self::WrongPeer(_) => Fault::PeerIdentityMismatch,
            Self::Config(_) | Self::Failed(_) => Fault::TlsFailed,
        }
    }
}

type Built = (Weak<ClientTls>, Vec<u8>, Arc<ClientConfig>);

/// One `rustls` configuration per TLS setting and ALPN offer.
#[derive(Debug)]
pub struct ClientTlsCache {
    identity: Arc<IdentityStore>,
    built: Mutex<Vec<Built>>,
}

impl ClientTlsCache {
    /// A cache whose mesh settings follow `identity`.
    #[must_use]
    pub const fn new(identity: Arc<IdentityStore>) -> Self {
        Self {
            identity,
            built: Mutex::new(Vec::new()),
        }
    }

    /// Performs the handshake over `io`, offering `alpn` alone when it is not empty, else all that
    /// the setting lists.
    ///
    /// # Errors
    /// See [`HandshakeError`].
    pub async fn connect<I: Io + 'static>(
        &self,
        tls: &Arc<ClientTls>,
        alpn: &[u8],
        io: I,
    ) -> Result<Session, HandshakeError> {
        let config = self.config(tls, alpn).map_err(HandshakeError::Config)?;
        if tls.certificate.is_some() && self.identity.get().is_none() {
            return Err(HandshakeError::NoIdentity);
        }
        let stream = TlsConnector::from(config)
            .connect(server_name(&tls.sni), io)
            .await
            .map_err(classify)?;
        let (_, connection) = stream.get_ref();
        Ok(Session {
            peer: peer_identity(connection.peer_certificates()),
            alpn: connection.alpn_protocol().map(<[u8]>::to_vec),
            io: Box::new(Dialled(stream)),
        })
    }

    fn config(
        &self,
        tls: &Arc<ClientTls>,
        alpn: &[u8],
    ) -> Result<Arc<ClientConfig>, rustls::Error> {
        let mut built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |(weak, offer, _): &&Built| {
            std::ptr::eq(weak.as_ptr(), Arc::as_ptr(tls)) && offer == alpn
        };
        if let Some((_, _, config)) = built.iter().find(same) {
            return Ok(Arc::clone(config));
        }
        let config = Arc::new(self.build(tls, alpn)?);
        built.retain(|(weak, _, _)| weak.strong_count() > 0);
        built.push((Arc::downgrade(tls), alpn.to_vec(), Arc::clone(&config)));
        Ok(config)
    }

    fn build(&self, tls: &ClientTls, alpn: &[u8]) -> Result<ClientConfig, rustls::Error> {
        let provider = super::provider();
        let verifier = PeerVerifier::new(
            roots_of(&tls.roots, &self.identity)?,
            tls.peers.clone(),
            true,
            &provider,
        );
        let certificate = tls
            .certificate
            .as_ref()
            .map(|secret| store_of(secret, &self.identity))
            .transpose()?;
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(CurrentKey(certificate)));
        config.alpn_protocols = if alpn.is_empty() {
            tls.alpn.iter().map(|p| p.to_vec()).collect()
        } else {
            vec![alpn.to_vec()]
        };
        config.enable_sni = !tls.sni.is_empty();
        config.resumption = Resumption::disabled();
        Ok(config)
    }
}

/// The name for SNI. Peers are matched by identity, so a name that is no host name is left out.
fn server_name(sni: &str) -> ServerName<'static> {
    ServerName::try_from(sni.to_owned())
        .unwrap_or_else(|_| ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into()))
}

fn classify(error: io::Error) -> HandshakeError {
    match refused(&error) {
        Some(who) if who.why == Why::NotMeant => HandshakeError::WrongPeer(who.to_string()),
        Some(who) => HandshakeError::Failed(io::Error::other(who.to_string())),
        None => HandshakeError::Failed(error),
    }
}

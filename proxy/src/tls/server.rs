//! Accepting TLS.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustls::{
    ServerConfig,
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::{
    identity::{Bundle, Identity, IdentityStore},
    verify::{PeerVerifier, Roots},
};
use crate::config::tls::{SecretRef, ServerTls};

/// Serves whatever certificate the identity store holds when the handshake happens.
#[derive(Debug)]
pub(super) struct CurrentKey(pub(super) Arc<IdentityStore>);

impl ResolvesServerCert for CurrentKey {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.get().map(|identity| Arc::clone(&identity.key))
    }
}

type Built = (Weak<ServerTls>, Arc<ServerConfig>);

/// One `rustls` configuration per TLS setting, built at first use and shared by all connections.
#[derive(Debug)]
pub struct ServerTlsCache {
    identity: Arc<IdentityStore>,
    /// Few entries: settings in use at once. Dead ones are swept at each insertion.
    built: Mutex<Vec<Built>>,
}

impl ServerTlsCache {
    /// A cache whose mesh settings follow `identity`.
    #[must_use]
    pub const fn new(identity: Arc<IdentityStore>) -> Self {
        Self {
            identity,
            built: Mutex::new(Vec::new()),
        }
    }

    /// The configuration for `tls`.
    ///
    /// # Errors
    /// When a certificate or root given inline cannot be used.
    pub fn config(&self, tls: &Arc<ServerTls>) -> Result<Arc<ServerConfig>, rustls::Error> {
        let mut built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |(weak, _): &&Built| std::ptr::eq(weak.as_ptr(), Arc::as_ptr(tls));
        if let Some((_, config)) = built.iter().find(same) {
            return Ok(Arc::clone(config));
        }
        let config = Arc::new(self.build(tls)?);
        built.retain(|(weak, _)| weak.strong_count() > 0);
        built.push((Arc::downgrade(tls), Arc::clone(&config)));
        Ok(config)
    }

    fn build(&self, tls: &ServerTls) -> Result<ServerConfig, rustls::Error> {
        let provider = super::provider();
        let versions: &[_] = &[&rustls::version::TLS13];
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)?;
        let builder = match &tls.roots {
            None => builder.with_no_client_auth(),
            Some(roots) => builder.with_client_cert_verifier(Arc::new(PeerVerifier::new(
                roots_of(roots, &self.identity)?,
                tls.peers.clone(),
                tls.require_client_certificate,
                &provider,
            ))),
        };
        let mut config = builder.with_cert_resolver(Arc::new(CurrentKey(store_of(
            &tls.certificate,
            &self.identity,
        )?)));
        config.alpn_protocols = tls.alpn.iter().map(|p| p.to_vec()).collect();
        // A resumed session skips the check of the peer's certificate against today's bundle and
        // policy; without tickets each connection is proven anew.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

/// The store that holds the certificate a setting names.
pub(super) fn store_of(
    secret: &SecretRef,
    mesh: &Arc<IdentityStore>,
) -> Result<Arc<IdentityStore>, rustls::Error> {
    match secret {
        SecretRef::Workload | SecretRef::MeshRoots => Ok(Arc::clone(mesh)),
        SecretRef::Inline(pem) => {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let chain = text(&pem.certificate_chain);
            // A key pair alone has no bundle; its own chain stands in and is never consulted.
            let roots = if pem.trusted_ca.is_empty() {
                chain.clone()
            } else {
                text(&pem.trusted_ca)
            };
            let now = rustls::pki_types::UnixTime::now();
            let identity = Identity::from_pem(&chain, &text(&pem.private_key), &roots, None, now)
                .map_err(|e| rustls::Error::General(e.to_string()))?;
            let store = IdentityStore::new();
            store.set(identity);
            Ok(store)
        }
        SecretRef::Sds(name) => Err(rustls::Error::General(format!(
            "secret {name:?} has not been received"
        ))),
    }
}

/// The roots a setting names.
pub(super) fn roots_of(
    secret: &SecretRef,
    mesh: &Arc<IdentityStore>,
) -> Result<Roots, rustls::Error> {
    match secret {
        SecretRef::Workload | SecretRef::MeshRoots => Ok(Roots::Mesh(Arc::clone(mesh))),
        SecretRef::Inline(pem) => {
            let text = String::from_utf8_lossy(&pem.trusted_ca);
            Bundle::from_pem(&text, rustls::pki_types::UnixTime::now())
                .map(|roots| Roots::Fixed(Arc::new(roots)))
                .map_err(|e| rustls::Error::General(e.to_string()))
        }
        SecretRef::Sds(name) => Err(rustls::Error::General(format!(
            "secret {name:?} has not been received"
        ))),
    }
}

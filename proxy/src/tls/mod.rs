//! Mutual TLS: who we are, whom we accept, and the handshakes both ways.
//!
//! One `rustls` configuration is built per TLS setting and kept; certificate and trust bundle are
//! looked up in the [`IdentityStore`] at each handshake, so that a rotation swaps both roles at
//! once, needs no rebuild and breaks no connection (TL-01, TL-02).

mod client;
mod der;
mod dialled;
mod identity;
mod server;
mod verify;

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};

pub use client::{ClientTlsCache, HandshakeError, Session};
pub use identity::{Bundle, Identity, IdentityError, IdentityStore};
pub use server::ServerTlsCache;
pub use verify::{CertificateIdentity, CertificateView, explain, peer_identity};

/// aws-lc-rs with the order we want: AES-128-GCM first (it costs least, and TLS 1.3 gives it no
/// known weakness), X25519MLKEM768 first among the key exchanges.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![
        aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
        aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    provider.kx_groups = vec![
        aws_lc_rs::kx_group::X25519MLKEM768,
        aws_lc_rs::kx_group::X25519,
        aws_lc_rs::kx_group::SECP256R1,
    ];
    Arc::new(provider)
}

#[cfg(test)]
mod tests;

//! What proves who asks for a first certificate.

use futures_util::future::BoxFuture;

use super::{TokenError, Tokens};
use crate::identity::Identity;

/// Why a token proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// It is not good.
    #[error("{0}")]
    Refused(String),
    /// Whether it is good cannot be told now.
    #[error("{0}")]
    Unavailable(String),
}

/// Knows a kind of token.
pub trait Proof: std::fmt::Debug + Send + Sync {
    /// The identity that `token` proves.
    fn identity<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Identity, ProofError>>;
}

impl Proof for Tokens {
    fn identity<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Identity, ProofError>> {
        let checked = self.check(token).map_err(|error| match error {
            TokenError::Store(_) | TokenError::Random => ProofError::Unavailable(error.to_string()),
            _ => ProofError::Refused(error.to_string()),
        });
        Box::pin(std::future::ready(checked))
    }
}

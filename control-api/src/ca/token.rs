//! Join tokens: random, shown once, kept as hashes.

use std::{sync::Arc, time::Duration};

use aws_lc_rs::{digest, rand as random};

use crate::{
    clock::Clock,
    identity::Identity,
    store::{Grant, Store, StoreError},
};

/// So that a token is recognised where it leaks.
const PREFIX: &str = "ort_";
/// As hard to guess as a key.
const SECRET_BYTES: usize = 32;
/// Life of a token that asks for none.
pub const DEFAULT_TTL: Duration = Duration::from_secs(3_600);
/// A token is for a start, not for good: 90 days.
pub const MAX_TTL: Duration = Duration::from_secs(90 * 24 * 3_600);

/// Why there is no token, or why one proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// No random numbers.
    #[error("no random numbers from the system")]
    Random,
    /// The disk failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Nobody made it, or it is forgotten since it expired.
    #[error("the join token is not known")]
    Unknown,
    /// It was good once.
    #[error("the join token for {0} has expired")]
    Expired(Box<Identity>),
    /// It was made for something that is no identity here.
    #[error("the join token's identity: {0}")]
    Identity(String),
}

/// Makes and checks join tokens.
#[derive(Debug, Clone)]
pub struct Tokens {
    store: Arc<Store>,
    trust_domain: String,
    clock: Clock,
}

impl Tokens {
    /// Tokens in `store` for identities of `trust_domain`.
    #[must_use]
    pub fn new(store: Arc<Store>, trust_domain: &str, clock: Clock) -> Self {
        Self {
            store,
            trust_domain: trust_domain.to_owned(),
            clock,
        }
    }

    /// Makes a token; returns it, what it proves, and when it expires in seconds since 1970.
    ///
    /// # Errors
    /// When the identity is not well formed, or the disk fails.
    pub fn create(
        &self,
        namespace: &str,
        account: &str,
        ttl: Duration,
    ) -> Result<(String, Identity, u64), TokenError> {
        let identity =
            Identity::new(&self.trust_domain, namespace, account).map_err(TokenError::Identity)?;
        let mut secret = [0_u8; SECRET_BYTES];
        random::fill(&mut secret).map_err(|_| TokenError::Random)?;
        let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let token = format!("{PREFIX}{hex}");
        let now = self.clock.unix();
        let expires = now.saturating_add(ttl.min(MAX_TTL).as_secs());
        let grant = Grant {
            namespace: namespace.to_owned(),
            service_account: account.to_owned(),
            expires,
        };
        self.store.put_token(hash(&token).as_ref(), &grant, now)?;
        Ok((token, identity, expires))
    }

    /// The identity that a token proves.
    ///
    /// # Errors
    /// When it proves none.
    pub fn check(&self, token: &str) -> Result<Identity, TokenError> {
        let grant = self.store.token(hash(token).as_ref())?;
        let grant = grant.ok_or(TokenError::Unknown)?;
        let identity = Identity::new(&self.trust_domain, &grant.namespace, &grant.service_account)
            .map_err(TokenError::Identity)?;
        if grant.expires <= self.clock.unix() {
            return Err(TokenError::Expired(Box::new(identity)));
        }
        Ok(identity)
    }
}

fn hash(token: &str) -> digest::Digest {
    digest::digest(&digest::SHA256, token.as_bytes())
}

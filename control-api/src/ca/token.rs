//! Join tokens: random, shown once, kept as hashes.

use std::{sync::Arc, time::Duration};

use aws_lc_rs::{digest, rand as random};

use crate::{
    clock::Clock,
    hex::hex,
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
    /// No token that can still be used has this id.
    #[error("there is no join token {0:?}")]
    NoSuchId(String),
    /// Too little of an id.
    #[error("{0:?} is too short for the beginning of a token's id: {MIN_ID} characters or more")]
    ShortId(String),
    /// Several tokens begin like this.
    #[error("several join tokens have an id that begins with {0:?}")]
    ManyIds(String),
    /// It was made for something that is no identity here.
    #[error("the join token's identity: {0}")]
    Identity(String),
}

/// Characters of a token's id: the beginning of its hash, in hexadecimal. Enough to tell a million
/// tokens apart; nothing follows from it.
const ID: usize = 12;
/// So many characters of an id have to be given at least.
const MIN_ID: usize = 6;

/// A token that was just made.
#[derive(Debug)]
pub struct CreatedToken {
    /// The secret itself, shown once.
    pub token: String,
    /// By which it is listed and revoked.
    pub id: String,
    /// What it proves.
    pub identity: Identity,
    /// Seconds since 1970.
    pub expires: u64,
}

/// What is known of a token afterwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownToken {
    /// See [`CreatedToken::id`].
    pub id: String,
    /// What it proves.
    pub identity: Identity,
    /// As stored.
    pub grant: Grant,
    hash: Vec<u8>,
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

    /// Makes a token.
    ///
    /// # Errors
    /// When the identity is not well formed, or the disk fails.
    pub fn create(
        &self,
        namespace: &str,
        account: &str,
        ttl: Duration,
    ) -> Result<CreatedToken, TokenError> {
        let identity =
            Identity::new(&self.trust_domain, namespace, account).map_err(TokenError::Identity)?;
        let mut secret = [0_u8; SECRET_BYTES];
        random::fill(&mut secret).map_err(|_| TokenError::Random)?;
        let token = format!("{PREFIX}{}", hex(&secret));
        let now = self.clock.unix();
        let expires = now.saturating_add(ttl.min(MAX_TTL).as_secs());
        let grant = Grant {
            namespace: namespace.to_owned(),
            service_account: account.to_owned(),
            expires,
        };
        let hash = hash(&token);
        self.store.put_token(hash.as_ref(), &grant, now)?;
        Ok(CreatedToken {
            token,
            id: id_of(hash.as_ref()),
            identity,
            expires,
        })
    }

    /// Tokens that can still be used, of one namespace or, when that is empty, of all.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn list(&self, namespace: &str) -> Result<Vec<KnownToken>, TokenError> {
        let now = self.clock.unix();
        let wanted = |grant: &Grant| {
            grant.expires > now && (namespace.is_empty() || grant.namespace == namespace)
        };
        let mut known = Vec::new();
        for (hash, grant) in self.store.tokens()? {
            if !wanted(&grant) {
                continue;
            }
            let (namespace, account) = (&grant.namespace, &grant.service_account);
            let identity = Identity::new(&self.trust_domain, namespace, account)
                .map_err(TokenError::Identity)?;
            known.push(KnownToken {
                id: id_of(&hash),
                identity,
                grant,
                hash,
            });
        }
        known.sort_by(|a, b| {
            let key = |token: &KnownToken| (token.identity.clone(), token.grant.expires);
            key(a).cmp(&key(b))
        });
        Ok(known)
    }

    /// Makes the tokens with these ids, or beginnings of ids, useless: all of them or none.
    ///
    /// # Errors
    /// When one is not there or may be several; or the disk fails.
    pub fn revoke(&self, ids: &[String]) -> Result<Vec<KnownToken>, TokenError> {
        let known = self.list("")?;
        let mut chosen: Vec<KnownToken> = Vec::new();
        for id in ids {
            if id.len() < MIN_ID {
                return Err(TokenError::ShortId(id.clone()));
            }
            let mut fitting = known
                .iter()
                .filter(|token| token.id.starts_with(id.as_str()));
            let token = fitting
                .next()
                .ok_or_else(|| TokenError::NoSuchId(id.clone()))?;
            if fitting.next().is_some() {
                return Err(TokenError::ManyIds(id.clone()));
            }
            if !chosen.contains(token) {
                chosen.push(token.clone());
            }
        }
        let hashes: Vec<_> = chosen.iter().map(|token| token.hash.as_slice()).collect();
        self.store.remove_tokens(&hashes)?;
        Ok(chosen)
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

fn id_of(hash: &[u8]) -> String {
    hex(hash.iter().take(ID / 2))
}

fn hash(token: &str) -> digest::Digest {
    digest::digest(&digest::SHA256, token.as_bytes())
}

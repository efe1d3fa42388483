//! The authority's root as a Secret: whichever replica comes first makes it, all use it.

use std::{collections::BTreeMap, pin::pin, sync::Arc};

use ::kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
    runtime::{WatchStreamExt as _, watcher},
};
use futures_util::StreamExt as _;
use k8s_openapi::{ByteString, api::core::v1::Secret};

use crate::{
    ca::{self, Authority, CaError, Origin, Text},
    clock::Clock,
};

/// Where the root lies; an operator's own root or intermediate may be put there beforehand.
pub const NAME: &str = "outrigger-ca";
/// As cert-manager has it.
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
/// What is trusted, if the certificate does not end in its root, or more than that one is: an old
/// and a new root while they are replaced. As cert-manager has it.
const ROOTS: &str = "ca.crt";

/// Why there is no root.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The API server said no.
    #[error("secret {NAME}: {0}")]
    Api(#[from] Box<::kube::Error>),
    /// It lacks a part.
    #[error("secret {NAME}: {0} is missing or no text")]
    Part(&'static str),
    /// No root can be made.
    #[error(transparent)]
    Ca(#[from] CaError),
}

/// Certificate and key of the root, in PEM.
#[derive(Clone)]
pub struct Root {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
    /// What is trusted, if that is said.
    pub roots: Option<String>,
}

impl Root {
    /// As the authority takes it.
    #[must_use]
    pub fn origin(self, namespace: &str) -> Origin {
        let place = format!("secret {namespace}/{NAME}");
        let text = |pem| Text {
            place: place.clone(),
            pem,
        };
        Origin::Given {
            cert: text(self.certificate),
            key: text(self.key),
            roots: self.roots.map(text),
        }
    }
}

impl std::fmt::Debug for Root {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Root").finish_non_exhaustive()
    }
}

/// Reads the root, or makes one and keeps it.
///
/// # Errors
/// See [`SecretError`].
pub async fn root(
    client: &Client,
    namespace: &str,
    trust_domain: &str,
    clock: &Clock,
) -> Result<Root, SecretError> {
    let api = Api::<Secret>::namespaced(client.clone(), namespace);
    if let Some(secret) = api.get_opt(NAME).await.map_err(Box::new)? {
        return parts(&secret);
    }
    let (certificate, key) = ca::new_root(trust_domain, clock)?;
    let data = [(CERTIFICATE, certificate), (KEY, key)];
    let data = data.map(|(name, text)| (name.to_owned(), ByteString(text.into_bytes())));
    let fresh = Secret {
        metadata: ObjectMeta {
            name: Some(NAME.to_owned()),
            labels: Some(BTreeMap::from([(
                "app.kubernetes.io/part-of".to_owned(),
                "outrigger".to_owned(),
            )])),
            ..ObjectMeta::default()
        },
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(BTreeMap::from(data)),
        ..Secret::default()
    };
    match api.create(&PostParams::default(), &fresh).await {
        Ok(made) => {
            tracing::info!(namespace, "made the root certificate");
            parts(&made)
        }
        // Another replica was faster.
        Err(::kube::Error::Api(status)) if status.code == 409 => {
            parts(&api.get(NAME).await.map_err(Box::new)?)
        }
        Err(error) => Err(Box::new(error).into()),
    }
}

/// Puts what the Secret holds in force whenever it changes, for as long as it runs. What is no good,
/// or gone, leaves what was.
pub async fn follow(client: Client, namespace: String, authority: Arc<Authority>) {
    let api = Api::<Secret>::namespaced(client, &namespace);
    let only = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
    let mut seen = pin!(watcher(api, only).default_backoff().applied_objects());
    while let Some(next) = seen.next().await {
        match next {
            Ok(secret) => take(&authority, &secret, &namespace),
            Err(error) => tracing::warn!(%error, "secret {NAME} not followed"),
        }
    }
}

fn take(authority: &Authority, secret: &Secret, namespace: &str) {
    let taken = parts(secret).and_then(|root| Ok(authority.replace(root.origin(namespace))?));
    if let Err(error) = taken {
        tracing::error!(%error, "the new authority is not taken; what was stays");
    }
}

fn parts(secret: &Secret) -> Result<Root, SecretError> {
    let part = |name: &'static str| {
        let bytes = secret.data.as_ref().and_then(|data| data.get(name));
        let text = bytes.and_then(|bytes| String::from_utf8(bytes.0.clone()).ok());
        text.filter(|text| !text.is_empty())
            .ok_or(SecretError::Part(name))
    };
    Ok(Root {
        certificate: part(CERTIFICATE)?,
        key: part(KEY)?,
        roots: part(ROOTS).ok(),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn secret(parts: &[(&str, &str)]) -> Secret {
        let part = |(name, text): &(&str, &str)| {
            ((*name).to_owned(), ByteString(text.as_bytes().to_vec()))
        };
        Secret {
            data: Some(parts.iter().map(part).collect()),
            ..Secret::default()
        }
    }

    #[test]
    fn tl_02_a_root_is_replaced_while_both_are_trusted() {
        let clock = Clock::system();
        let root = || ca::new_root("outrigger.local", &clock).expect("a root");
        let ((old, old_key), (new, new_key)) = (root(), root());
        let first = secret(&[(CERTIFICATE, &old), (KEY, &old_key)]);
        let origin = parts(&first).expect("good").origin("o");
        let ttl = Duration::from_secs(3_600);
        let authority = Authority::open(origin, "outrigger.local", ttl, clock.clone());
        let authority = authority.expect("an authority");
        let trusted = || authority.bundle().pem();
        assert_eq!(trusted().trim(), old.trim());

        let both = format!("{old}{new}");
        let second = [(CERTIFICATE, &*new), (KEY, &*new_key), (ROOTS, &*both)];
        take(&authority, &secret(&second), "o");
        assert!(trusted().contains(old.trim()) && trusted().contains(new.trim()));

        // A key of another certificate, and nothing at all: what was stays.
        for bad in [&[(CERTIFICATE, &*new), (KEY, &*old_key)][..], &[]] {
            take(&authority, &secret(bad), "o");
            assert!(trusted().contains(old.trim()));
        }
        take(
            &authority,
            &secret(&[(CERTIFICATE, &new), (KEY, &new_key)]),
            "o",
        );
        assert_eq!(trusted().trim(), new.trim());
    }
}

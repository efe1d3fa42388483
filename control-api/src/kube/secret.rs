//! The authority's root as a Secret: whichever replica comes first makes it, all use it.

use std::collections::BTreeMap;

use ::kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use k8s_openapi::{ByteString, api::core::v1::Secret};

use crate::{
    ca::{self, CaError},
    clock::Clock,
};

/// Where the root lies; an operator's own root or intermediate may be put there beforehand.
pub const NAME: &str = "outrigger-ca";
/// As cert-manager has it.
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";

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
    })
}

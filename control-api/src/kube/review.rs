//! Who shows a service account's token.

use std::collections::BTreeSet;

use ::kube::{Api, Client, api::PostParams};
use futures_util::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};

use super::AUDIENCE;
use crate::{
    ca::{Proof, ProofError},
    identity::Identity,
};

/// How the API server names service accounts.
const USER: &str = "system:serviceaccount:";

/// Asks the API server.
#[derive(Clone)]
pub struct TokenReviews {
    client: Client,
    trust_domain: String,
}

impl std::fmt::Debug for TokenReviews {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenReviews")
            .field("trust_domain", &self.trust_domain)
            .finish_non_exhaustive()
    }
}

impl TokenReviews {
    /// For identities of `trust_domain`.
    #[must_use]
    pub fn new(client: Client, trust_domain: &str) -> Self {
        Self {
            client,
            trust_domain: trust_domain.to_owned(),
        }
    }

    async fn review(&self, token: &str) -> Result<Identity, ProofError> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: token.to_owned(),
                audiences: Some(vec![AUDIENCE.to_owned()]),
            },
            ..TokenReview::default()
        };
        let answer = Api::<TokenReview>::all(self.client.clone())
            .create(&PostParams::default(), &review)
            .await
            .map_err(|error| ProofError::Unavailable(format!("token review: {error}")))?;
        verdict(answer.status.as_ref(), &self.trust_domain)
    }
}

impl Proof for TokenReviews {
    fn identity<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Identity, ProofError>> {
        Box::pin(self.review(token))
    }
}

/// What the API server's answer proves.
fn verdict(status: Option<&TokenReviewStatus>, domain: &str) -> Result<Identity, ProofError> {
    let refused = |why: String| ProofError::Refused(format!("service account token: {why}"));
    let status = status.ok_or_else(|| refused("the API server gave no verdict".into()))?;
    if status.authenticated != Some(true) {
        let why = status.error.clone().filter(|why| !why.is_empty());
        return Err(refused(why.unwrap_or_else(|| "not authenticated".into())));
    }
    // A server that knows nothing of audiences names none: then it may be anybody's token.
    let audiences: BTreeSet<_> = status.audiences.iter().flatten().collect();
    if !audiences.contains(&AUDIENCE.to_owned()) {
        return Err(refused(format!("it is not for audience {AUDIENCE:?}")));
    }
    let user = status
        .user
        .as_ref()
        .and_then(|user| user.username.as_deref());
    let user = user.unwrap_or_default();
    let account = user
        .strip_prefix(USER)
        .and_then(|name| name.split_once(':'));
    let (namespace, account) =
        account.ok_or_else(|| refused(format!("{user:?} is no service account")))?;
    Identity::new(domain, namespace, account).map_err(refused)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::authentication::v1::UserInfo;

    use super::*;

    fn status(authenticated: bool, audience: &str, user: &str) -> TokenReviewStatus {
        TokenReviewStatus {
            authenticated: Some(authenticated),
            audiences: (!audience.is_empty()).then(|| vec![audience.to_owned()]),
            user: Some(UserInfo {
                username: Some(user.to_owned()),
                ..UserInfo::default()
            }),
            ..TokenReviewStatus::default()
        }
    }

    #[test]
    fn a_token_of_ours_proves_its_service_account() {
        let good = status(true, "outrigger", "system:serviceaccount:shop:cart");
        let identity = verdict(Some(&good), "outrigger.local").expect("good");
        assert_eq!(
            identity.to_string(),
            "spiffe://outrigger.local/ns/shop/sa/cart"
        );
    }

    #[test]
    fn nothing_else_does() {
        let account = "system:serviceaccount:shop:cart";
        let table = [
            (status(false, "outrigger", account), "not authenticated"),
            (status(true, "", account), "not for audience"),
            (status(true, "vault", account), "not for audience"),
            (status(true, "outrigger", "admin"), "no service account"),
            (
                status(true, "outrigger", "system:serviceaccount:shop:a/b"),
                "must be letters",
            ),
        ];
        for (status, why) in table {
            let error = verdict(Some(&status), "outrigger.local").expect_err(why);
            assert!(error.to_string().contains(why), "{error}");
        }
        assert!(verdict(None, "outrigger.local").is_err());
    }
}

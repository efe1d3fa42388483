//! `outrigger.identity.v1.CertificateService`.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::Stream;
use outrigger_proto::outrigger::identity::v1::{
    CreateCertificateRequest, CreateCertificateResponse, WatchTrustBundleRequest,
    WatchTrustBundleResponse, certificate_service_server::CertificateService,
};
use tonic::{Request, Response, Status};

use super::{Authority, CaError, Proof, ProofError};
use crate::{identity::Identity, telemetry::Metrics, tls::Peer, xds::Proxies};

/// A request for a P-256 key has some 300 bytes.
const MAX_CSR: usize = 16 << 10;
/// A service account's token has some 1,500 bytes.
const MAX_TOKEN: usize = 16 << 10;

/// Answers requests for certificates.
#[derive(Debug)]
pub struct CertificateServer {
    authority: Arc<Authority>,
    proof: Arc<dyn Proof>,
    proxies: Arc<Proxies>,
    metrics: Arc<Metrics>,
}

impl CertificateServer {
    /// Signs with `authority` for those who show a token that is `proof`, or their certificate.
    /// What is issued is noted with `proxies`.
    #[must_use]
    pub fn new(
        authority: Arc<Authority>,
        proof: Arc<dyn Proof>,
        proxies: Arc<Proxies>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            authority,
            proof,
            proxies,
            metrics,
        }
    }

    async fn prove(&self, token: &str, peer: Option<&Peer>) -> Result<Identity, Status> {
        if !token.is_empty() {
            return self
                .proof
                .identity(token)
                .await
                .map_err(|error| match error {
                    ProofError::Unavailable(why) => Status::unavailable(why),
                    ProofError::Refused(why) => Status::unauthenticated(why),
                });
        }
        match peer.and_then(|peer| peer.identity.clone()) {
            Some(identity) if identity.trust_domain == self.authority.trust_domain() => {
                Ok(identity)
            }
            Some(identity) => Err(Status::permission_denied(format!(
                "{identity} is not of trust domain {}",
                self.authority.trust_domain()
            ))),
            None => Err(Status::unauthenticated(
                "neither a token nor a client certificate was shown",
            )),
        }
    }
}

#[tonic::async_trait]
impl CertificateService for CertificateServer {
    async fn create_certificate(
        &self,
        request: Request<CreateCertificateRequest>,
    ) -> Result<Response<CreateCertificateResponse>, Status> {
        let answer = self.create(request).await;
        self.metrics.certificate(answer.is_ok());
        answer
    }

    type WatchTrustBundleStream = Bundles;

    async fn watch_trust_bundle(
        &self,
        _: Request<WatchTrustBundleRequest>,
    ) -> Result<Response<Bundles>, Status> {
        let mut bundles = self.authority.watch();
        bundles.mark_changed();
        let stream = futures_util::stream::unfold(bundles, |mut bundles| async {
            bundles.changed().await.ok()?;
            let trust_bundle_pem = bundles.borrow_and_update().pem();
            Some((Ok(WatchTrustBundleResponse { trust_bundle_pem }), bundles))
        });
        Ok(Response::new(Box::pin(stream)))
    }
}

type Bundles = Pin<Box<dyn Stream<Item = Result<WatchTrustBundleResponse, Status>> + Send>>;

impl CertificateServer {
    async fn create(
        &self,
        request: Request<CreateCertificateRequest>,
    ) -> Result<Response<CreateCertificateResponse>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let address = peer.as_ref().map(|peer| peer.address);
        let request = request.into_inner();
        if request.csr_pem.len() > MAX_CSR {
            return Err(Status::invalid_argument("the request is too long"));
        }
        if request.token.len() > MAX_TOKEN {
            return Err(Status::invalid_argument("the token is too long"));
        }
        let validity = match request.validity {
            None => None,
            Some(wish) => match Duration::try_from(wish) {
                Ok(wish) if !wish.is_zero() => Some(wish),
                _ => return Err(Status::invalid_argument("validity must be over 0")),
            },
        };
        let identity = self
            .prove(&request.token, peer.as_ref())
            .await
            .inspect_err(|status| {
                tracing::warn!(?address, reason = status.message(), "certificate refused");
            })?;
        let issued = self
            .authority
            .sign_request(&request.csr_pem, &identity, validity)
            .map_err(|error| match error {
                CaError::Request(_) => Status::invalid_argument(error.to_string()),
                _ => Status::internal(error.to_string()),
            })?;
        tracing::info!(%identity, ?address, not_after = issued.not_after, "certificate issued");
        if let Some(address) = address {
            self.proxies
                .renewed(&identity, address.ip(), issued.not_after);
        }
        Ok(Response::new(CreateCertificateResponse {
            cert_chain_pem: issued.chain_pem,
            trust_bundle_pem: self.authority.bundle().pem(),
        }))
    }
}

//! Kubernetes: the cluster's API server is the store, and its objects are the mesh's.
//!
//! [`watch`] follows Services, EndpointSlices, Pods and the routes and policies; [`cluster`] holds
//! what was seen and knows what a change touches; [`convert`] makes the mesh's objects of it,
//! purely; [`grants`] are what one namespace lets another do; [`status`] tells those who wrote them
//! what became of them. Who asks for a certificate proves with a service account's token who it is
//! ([`review`]). The authority's key is a Secret ([`secret`]), so that all replicas sign alike.
//! [`webhook`] puts the proxy into pods that are made, and refuses policies that are none. Nothing
//! is kept on a disk of our own: a replica that ends takes nothing with it.

pub mod cluster;
pub mod convert;
pub mod grants;
pub mod review;
pub mod secret;
pub mod status;
pub mod watch;
pub mod webhook;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use ::kube::Client;
use futures_util::FutureExt as _;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use tokio::{net::TcpListener, sync::watch as channel};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    ca::{Authority, CaError, Own, Proof},
    clock::Clock,
    inject,
    store::Store,
    tls::{OwnCertificate, TlsError},
};

/// Prefix of our labels and annotations.
pub const DOMAIN: &str = "outrigger.dev";
/// Label of a pod that has our proxy beside its application, set by the injector.
pub const MESH_LABEL: &str = "outrigger.dev/mesh";
/// Its value.
pub const MESH_SIDECAR: &str = "sidecar";
/// Who our tokens are for; nobody else accepts them, and we accept no others.
pub const AUDIENCE: &str = "outrigger";

/// Namespace and name of an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// The namespace.
    pub namespace: String,
    /// The name in it.
    pub name: String,
}

impl Name {
    /// Out of both.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    /// Of an object.
    #[must_use]
    pub fn of<K: kube::Resource>(object: &K) -> Self {
        let meta = object.meta();
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        }
    }
}

/// What is to be known to work in a cluster.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The namespace that the control plane runs in.
    pub namespace: String,
    /// Where the API server calls the injector.
    pub webhook_addr: SocketAddr,
    /// The name of our Service, by which the API server calls us.
    pub service: String,
    /// The name of the MutatingWebhookConfiguration.
    pub webhook: String,
    /// The name of the ValidatingWebhookConfiguration.
    pub validator: String,
    /// The image with the proxy.
    pub proxy_image: String,
    /// Its pull policy.
    pub proxy_pull_policy: String,
    /// Where proxies send traces; empty: nowhere.
    pub otlp_endpoint: String,
    /// The port at which proxies find us, at our Service.
    pub xds_port: u16,
}

/// Why the cluster cannot be worked in.
#[derive(Debug, thiserror::Error)]
pub enum KubeError {
    /// There is none.
    #[error("no cluster: {0}")]
    Client(Box<::kube::Error>),
    /// The root's Secret is of no use.
    #[error(transparent)]
    Secret(#[from] secret::SecretError),
    /// The root itself is of no use.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// TLS for the injector cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The injector's address cannot be listened on.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What happened.
        error: std::io::Error,
    },
}

/// The cluster.
pub struct Connection {
    client: Client,
    settings: Settings,
    trust_domain: String,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// To the cluster that we run in, or that the kubeconfig names.
    ///
    /// # Errors
    /// When there is none.
    pub async fn open(settings: &Settings, trust_domain: &str) -> Result<Self, KubeError> {
        let client = Client::try_default().await;
        Ok(Self {
            client: client.map_err(|error| KubeError::Client(Box::new(error)))?,
            settings: settings.clone(),
            trust_domain: trust_domain.to_owned(),
        })
    }

    /// The authority, with the cluster's root.
    ///
    /// # Errors
    /// When the root cannot be had.
    pub async fn authority(&self, ttl: Duration, clock: &Clock) -> Result<Authority, KubeError> {
        let (namespace, domain) = (&self.settings.namespace, &self.trust_domain);
        let root = secret::root(&self.client, namespace, domain, clock).await?;
        let origin = root.origin(namespace);
        Ok(Authority::open(origin, domain, ttl, clock.clone())?)
    }

    /// What proves who a pod is.
    #[must_use]
    pub fn proof(&self) -> Arc<dyn Proof> {
        let reviews = review::TokenReviews::new(self.client.clone(), &self.trust_domain);
        Arc::new(reviews)
    }

    /// Keeps `store` like the cluster; returns when it is.
    pub async fn mirror(
        &self,
        store: &Arc<Store>,
        clock: &Clock,
        (tasks, stop): (&TaskTracker, &CancellationToken),
    ) {
        let (synced, mut until) = channel::channel(false);
        let (client, store) = (self.client.clone(), Arc::clone(store));
        tasks.spawn(watch::mirror(
            client,
            store,
            synced,
            clock.clone(),
            stop.clone(),
        ));
        // Fails only when the mirror has ended, and then so have we.
        drop(until.wait_for(|synced| *synced).await);
    }

    /// Starts the webhooks; when this returns, they answer. Follows the authority's Secret.
    ///
    /// # Errors
    /// When it cannot be reached or has no certificate.
    pub async fn inject(
        &self,
        authority: &Arc<Authority>,
        (tasks, stop): (&TaskTracker, &CancellationToken),
    ) -> Result<(), KubeError> {
        let (service, namespace) = (&self.settings.service, &self.settings.namespace);
        let host = format!("{service}.{namespace}.svc");
        let own = OwnCertificate::new(authority, Own::Host(host.clone()))?;
        let acceptor = webhook::acceptor(Arc::clone(&own))?;
        let address = self.settings.webhook_addr;
        let listener = TcpListener::bind(address)
            .await
            .map_err(|error| KubeError::Listen { address, error })?;
        let inject = inject::Settings {
            image: self.settings.proxy_image.clone(),
            pull_policy: self.settings.proxy_pull_policy.clone(),
            control_plane: format!("{host}:{}", self.settings.xds_port),
            trust_domain: self.trust_domain.clone(),
            // That of the moment is put in for each pod.
            trust_bundle: String::new(),
            otlp_endpoint: self.settings.otlp_endpoint.clone(),
        };
        tasks.spawn(webhook::serve(
            listener,
            acceptor,
            Arc::new(webhook::Webhooks {
                settings: inject,
                bundle: authority.watch(),
            }),
            stop.clone(),
        ));
        let trusted = webhook::keep_trusted::<MutatingWebhookConfiguration>(
            self.client.clone(),
            self.settings.webhook.clone(),
            authority.watch(),
        );
        let validator = webhook::keep_trusted::<ValidatingWebhookConfiguration>(
            self.client.clone(),
            self.settings.validator.clone(),
            authority.watch(),
        );
        let client = self.client.clone();
        let secret = secret::follow(client, namespace.clone(), Arc::clone(authority));
        let tasks_of_ours = [
            trusted.boxed(),
            validator.boxed(),
            secret.boxed(),
            own.keep_fresh(|| Ok(())).boxed(),
        ];
        for task in tasks_of_ours {
            let task = stop.clone().run_until_cancelled_owned(task);
            tasks.spawn(async move {
                task.await;
            });
        }
        Ok(())
    }
}

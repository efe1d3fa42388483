//! Puts the control plane together, and takes it down again.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use outrigger_proto::{
    descriptor::FILE_DESCRIPTOR_SET,
    envoy::service::discovery::v3::aggregated_discovery_service_server as ads,
    outrigger::{
        control::v1::control_service_server as control,
        identity::v1::certificate_service_server as certificates,
    },
};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_reflection::server as reflection;

use crate::{
    api::ControlServer,
    bearer::Bearer,
    ca::{Authority, CaError, CertificateServer, Origin, Proof, Tokens},
    clock::Clock,
    identity::check_trust_domain,
    kube::{self, KubeError},
    model::MAX_MANIFEST,
    serve::{Port, Routes},
    store::{Store, StoreError},
    telemetry::{self, Metrics},
    tls::{self, TlsError},
    translate::World,
    xds::{AdsServer, Proxies, Published, publish},
};

/// Settings of the control plane.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where everything is kept; in a cluster, nothing is.
    pub state_dir: PathBuf,
    /// In a cluster, its API server is the store.
    pub kubernetes: Option<kube::Settings>,
    /// For proxies: configuration and certificates, mutual TLS.
    pub xds_addr: SocketAddr,
    /// For people and programs that hold the mesh in their hands. In clear on the loopback; over
    /// TLS and with a secret anywhere else.
    pub api_addr: SocketAddr,
    /// In clear and without a secret wherever it is.
    pub api_insecure: bool,
    /// The secret that callers show; absent: `api.token` in the state directory, where one is
    /// needed.
    pub api_token_file: Option<PathBuf>,
    /// An operator's certificate authority; `None`: roots of our own in the state directory.
    pub ca_files: Option<Origin>,
    /// For Prometheus and probes.
    pub telemetry_addr: SocketAddr,
    /// Whose identities are certified.
    pub trust_domain: String,
    /// Life of a certificate.
    pub certificate_ttl: Duration,
}

/// Why the control plane did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Settings that cannot be.
    #[error("{0}")]
    Settings(String),
    /// The state directory cannot be made.
    #[error("{path}: {error}")]
    StateDir {
        /// The directory.
        path: PathBuf,
        /// What happened.
        error: std::io::Error,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What happened.
        error: std::io::Error,
    },
    /// The store does not open.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The authority does not start.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The secret of the control API cannot be had.
    #[error("secret of the control API, {path}: {error}")]
    Secret {
        /// The file.
        path: PathBuf,
        /// What happened.
        error: std::io::Error,
    },
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The cluster does not let us.
    #[error(transparent)]
    Kube(#[from] KubeError),
}

/// A running control plane.
#[derive(Debug)]
pub struct Running {
    /// Where proxies are served.
    pub xds_addr: SocketAddr,
    /// Where the control API is served.
    pub api_addr: SocketAddr,
    /// Where telemetry is served.
    pub telemetry_addr: SocketAddr,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Running {
    /// Ends everything and waits until it has ended.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// What the services share.
struct Parts {
    store: Arc<Store>,
    authority: Arc<Authority>,
    tokens: Tokens,
    proof: Arc<dyn Proof>,
    proxies: Arc<Proxies>,
    published: watch::Receiver<Arc<Published>>,
    metrics: Arc<Metrics>,
    clock: Clock,
    stop: CancellationToken,
}

impl Parts {
    /// For proxies.
    fn xds(&self) -> Routes {
        let streams = AdsServer::new(
            self.published.clone(),
            Arc::clone(&self.proxies),
            self.clock.clone(),
            Arc::clone(&self.metrics),
            self.stop.clone(),
        );
        let issuer = CertificateServer::new(
            Arc::clone(&self.authority),
            Arc::clone(&self.proof),
            Arc::clone(&self.proxies),
            Arc::clone(&self.metrics),
        );
        Routes::default()
            .with(
                ads::SERVICE_NAME,
                ads::AggregatedDiscoveryServiceServer::new(streams),
            )
            .with(
                certificates::SERVICE_NAME,
                certificates::CertificateServiceServer::new(issuer),
            )
            .with(HEALTH, health())
    }

    /// For people and programs.
    fn api(&self, bearer: Option<Bearer>) -> Result<Routes, StartError> {
        let control = ControlServer::new(
            Arc::clone(&self.store),
            self.tokens.clone(),
            Arc::clone(&self.authority),
            Arc::clone(&self.proxies),
            self.published.clone(),
        );
        let reflection = || {
            reflection::Builder::configure()
                .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
                .with_service_name(control::SERVICE_NAME)
        };
        let broken = |error: reflection::Error| StartError::Settings(error.to_string());
        Ok(Routes::default()
            .guarded(bearer, HEALTH)
            .with(
                control::SERVICE_NAME,
                control::ControlServiceServer::new(control)
                    .max_decoding_message_size(MAX_MANIFEST + API_OVERHEAD),
            )
            .with(HEALTH, health())
            .with(REFLECTION, reflection().build_v1().map_err(broken)?)
            .with(
                REFLECTION_OLD,
                reflection().build_v1alpha().map_err(broken)?,
            ))
    }
}

/// What an Apply has beside the manifest.
const API_OVERHEAD: usize = 64 << 10;
const HEALTH: &str = "grpc.health.v1.Health";
const REFLECTION: &str = "grpc.reflection.v1.ServerReflection";
/// Older tools ask for this one only.
const REFLECTION_OLD: &str = "grpc.reflection.v1alpha.ServerReflection";

/// Says "serving" for the server as a whole: it serves everything or it does not run.
fn health() -> HealthServer<impl Health> {
    tonic_health::server::health_reporter().1
}

/// What the control plane stands on: a directory of its own, or a cluster.
struct Ground {
    store: Arc<Store>,
    authority: Arc<Authority>,
    tokens: Tokens,
    proof: Arc<dyn Proof>,
}

impl Ground {
    fn directory(settings: &Settings, clock: &Clock) -> Result<Self, StartError> {
        let (dir, domain) = (&settings.state_dir, settings.trust_domain.as_str());
        std::fs::create_dir_all(dir).map_err(|error| StartError::StateDir {
            path: dir.clone(),
            error,
        })?;
        let store = Arc::new(Store::open(&dir.join("store.redb"))?);
        let authority = authority(settings, clock.clone())?;
        let tokens = Tokens::new(Arc::clone(&store), domain, clock.clone());
        Ok(Self {
            store,
            authority: Arc::new(authority),
            proof: Arc::new(tokens.clone()),
            tokens,
        })
    }

    /// Returns when the store holds what the cluster holds.
    async fn cluster(
        settings: &Settings,
        kubernetes: &kube::Settings,
        clock: &Clock,
        running: (&TaskTracker, &CancellationToken),
    ) -> Result<Self, StartError> {
        let domain = settings.trust_domain.as_str();
        let store = Arc::new(Store::of_cluster()?);
        let cluster = kube::Connection::open(kubernetes, domain).await?;
        let ttl = settings.certificate_ttl;
        let authority = Arc::new(cluster.authority(ttl, clock).await?);
        cluster.mirror(&store, clock, running).await;
        cluster.inject(&authority, running).await?;
        Ok(Self {
            tokens: Tokens::new(Arc::clone(&store), domain, clock.clone()),
            store,
            authority,
            proof: cluster.proof(),
        })
    }
}

/// Starts a control plane; when this returns, it serves.
///
/// # Errors
/// See [`StartError`].
pub async fn start(settings: Settings, clock: Clock) -> Result<Running, StartError> {
    check_trust_domain(&settings.trust_domain).map_err(StartError::Settings)?;
    let domain = settings.trust_domain.as_str();
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let ground = match &settings.kubernetes {
        None => Ground::directory(&settings, &clock)?,
        Some(cluster) => {
            Box::pin(Ground::cluster(&settings, cluster, &clock, (&tasks, &stop))).await?
        }
    };
    let acceptors = tls::Acceptor::pair(&ground.authority)?;
    let [for_proxies, for_people] = acceptors.clone();
    let secured = !settings.api_insecure && !settings.api_addr.ip().is_loopback();
    let bearer = secret(&settings, secured)?;
    let world = World::new(ground.store.objects(), domain);
    let (publisher, published) = watch::channel(Arc::new(Published::new(world)));
    let parts = Parts {
        tokens: ground.tokens,
        store: ground.store,
        authority: ground.authority,
        proof: ground.proof,
        proxies: Arc::default(),
        published,
        metrics: Arc::default(),
        clock,
        stop,
    };
    let xds = Port {
        listener: listen(settings.xds_addr).await?,
        tls: Some(for_proxies),
        routes: parts.xds(),
    };
    let api = Port {
        listener: listen(settings.api_addr).await?,
        tls: secured.then_some(for_people),
        routes: parts.api(bearer)?,
    };
    let telemetry = listen(settings.telemetry_addr).await?;
    let running = Running {
        xds_addr: local(&xds.listener, settings.xds_addr),
        api_addr: local(&api.listener, settings.api_addr),
        telemetry_addr: local(&telemetry, settings.telemetry_addr),
        tasks,
        stop: parts.stop.clone(),
    };
    let (tasks, stop) = (&running.tasks, &running.stop);
    let publish = publish(
        parts.store.watch(),
        domain.to_owned(),
        publisher,
        stop.clone(),
    );
    tasks.spawn(publish);
    let authority = Arc::clone(&parts.authority);
    let upkeep = async move { tokio::join!(authority.keep(), tls::keep_fresh(acceptors)) };
    let upkeep = stop.clone().run_until_cancelled_owned(upkeep);
    tasks.spawn(async move {
        upkeep.await;
    });
    tasks.spawn(xds.serve(stop.clone()));
    tasks.spawn(api.serve(stop.clone()));
    tasks.spawn(telemetry::serve(
        telemetry,
        parts.metrics,
        parts.proxies,
        parts.store,
        stop.clone(),
    ));
    Ok(running)
}

/// The operator's authority, or our own.
fn authority(settings: &Settings, clock: Clock) -> Result<Authority, CaError> {
    let own = || Origin::Own(settings.state_dir.join("ca"));
    let origin = settings.ca_files.clone().unwrap_or_else(own);
    let (domain, ttl) = (&settings.trust_domain, settings.certificate_ttl);
    Authority::open(origin, domain, ttl, clock)
}

/// What callers of the control API have to show.
fn secret(settings: &Settings, secured: bool) -> Result<Option<Bearer>, StartError> {
    let fail = |path: &std::path::Path| {
        let path = path.to_owned();
        move |error| StartError::Secret { path, error }
    };
    if let Some(path) = &settings.api_token_file {
        return Bearer::read(path).map(Some).map_err(fail(path));
    }
    if !secured {
        return Ok(None);
    }
    let path = settings.state_dir.join("api.token");
    Bearer::read_or_make(&path).map(Some).map_err(fail(&path))
}

async fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address)
        .await
        .map_err(|error| StartError::Listen { address, error })
}

/// The address with the port that was really taken.
fn local(listener: &TcpListener, asked: SocketAddr) -> SocketAddr {
    listener.local_addr().unwrap_or(asked)
}

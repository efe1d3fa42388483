//! Puts the control plane together, and takes it down again.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use outrigger_proto::{
    envoy::service::discovery::v3::aggregated_discovery_service_server as ads,
    outrigger::{
        control::v1::control_service_server as control,
        identity::v1::certificate_service_server as certificates,
    },
};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    api::ControlServer,
    ca::{Authority, CaError, CertificateServer, Tokens},
    clock::Clock,
    identity::check_trust_domain,
    serve::{Port, Routes},
    store::{Store, StoreError},
    tls::{self, TlsError},
    translate::World,
    xds::{AdsServer, Proxies, Published, publish},
};

/// Settings of the control plane.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where everything is kept.
    pub state_dir: PathBuf,
    /// For proxies: configuration and certificates, mutual TLS.
    pub xds_addr: SocketAddr,
    /// For people and programs that hold the mesh in their hands: plaintext, so loopback.
    pub api_addr: SocketAddr,
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
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
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

/// Starts a control plane; when this returns, it serves.
///
/// # Errors
/// See [`StartError`].
pub async fn start(settings: Settings, clock: Clock) -> Result<Running, StartError> {
    check_trust_domain(&settings.trust_domain).map_err(StartError::Settings)?;
    let dir = &settings.state_dir;
    std::fs::create_dir_all(dir).map_err(|error| StartError::StateDir {
        path: dir.clone(),
        error,
    })?;
    let domain = settings.trust_domain.as_str();
    let store = Arc::new(Store::open(&dir.join("store.redb"))?);
    let ttl = settings.certificate_ttl;
    let authority = Arc::new(Authority::open(
        &dir.join("ca"),
        domain,
        ttl,
        clock.clone(),
    )?);
    let (acceptor, own) = tls::acceptor(&authority)?;
    let tokens = Tokens::new(Arc::clone(&store), domain, clock.clone());
    let proxies = Arc::new(Proxies::default());
    let world = World::new(store.objects(), domain);
    let (publisher, published) = watch::channel(Arc::new(Published::new(world)));
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());

    let streams = AdsServer::new(published.clone(), Arc::clone(&proxies), clock, stop.clone());
    let certificates = certificates::CertificateServiceServer::new(CertificateServer::new(
        authority,
        tokens.clone(),
    ));
    let xds = Port {
        listener: listen(settings.xds_addr).await?,
        tls: Some(acceptor),
        routes: Routes::default()
            .with(
                ads::SERVICE_NAME,
                ads::AggregatedDiscoveryServiceServer::new(streams),
            )
            .with(
                outrigger_proto::outrigger::identity::v1::certificate_service_server::SERVICE_NAME,
                certificates,
            ),
    };
    let control = ControlServer::new(Arc::clone(&store), tokens, proxies, published);
    let api = Port {
        listener: listen(settings.api_addr).await?,
        tls: None,
        routes: Routes::default().with(
            control::SERVICE_NAME,
            control::ControlServiceServer::new(control),
        ),
    };
    let running = Running {
        xds_addr: local(&xds.listener, settings.xds_addr),
        api_addr: local(&api.listener, settings.api_addr),
        telemetry_addr: settings.telemetry_addr,
        tasks: tasks.clone(),
        stop: stop.clone(),
    };
    let objects = store.watch();
    tasks.spawn(publish(objects, domain.to_owned(), publisher, stop.clone()));
    let ending = stop.clone();
    tasks.spawn(async move {
        tokio::select! {
            () = ending.cancelled() => {}
            () = own.keep_fresh() => {}
        }
    });
    tasks.spawn(xds.serve(stop.clone()));
    tasks.spawn(api.serve(stop));
    Ok(running)
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

//! The ports that people, scrapers and kubelets ask at, readiness, and the order to end.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use tokio::{sync::watch, time::Instant};

use crate::{
    admin::{self, Admin, BlockReady, LogFilter, Origin, Page, Prober, Quit, Readiness},
    bootstrap::RunArgs,
    config::listener::Direction,
    control::WallClock,
    drain::{Drain, Phase},
    policy::worker::Shared,
    telemetry::Logging,
    tls::IdentityStore,
    xds::{NodeInfo, Stats, View},
};

/// What readiness waits for first.
const CERTIFICATE: &str = "a certificate";
/// How often it is looked at whether it is valid still.
const CERTIFICATE_CHECK: Duration = Duration::from_secs(1);

/// What the pages are made of, as far as only the composition root knows it.
pub(super) struct Parts {
    pub(super) node: NodeInfo,
    pub(super) sources: Vec<(Origin, View)>,
    /// What happens on the stream to the control plane, if there is one.
    pub(super) stream: Option<Arc<Stats>>,
    pub(super) log_filter: LogFilter,
}

/// Shows the log filter in force, and puts another in force.
pub(super) fn log_filter(logging: &Logging) -> LogFilter {
    let logging = logging.clone();
    Box::new(move |new| {
        if let Some(new) = new {
            logging.set(new).map_err(|error| error.to_string())?;
        }
        Ok(logging.filter())
    })
}

/// Opens the ports. What is returned says when somebody asks the process to end.
///
/// # Errors
/// When a port cannot be opened.
pub(super) async fn start(
    args: &RunArgs,
    shared: &Arc<Shared>,
    parts: Parts,
) -> anyhow::Result<watch::Receiver<Option<Quit>>> {
    let readiness = Readiness::default();
    let secured = !args.control_plane.is_empty() || args.cert_file.is_some();
    if secured {
        let identity = Arc::clone(&shared.identity);
        let missing = readiness.block(CERTIFICATE);
        tokio::spawn(certified(
            identity,
            readiness.clone(),
            missing,
            WallClock::system(),
        ));
    }
    if !args.control_plane.is_empty() {
        let missing = readiness.block("the configuration");
        tokio::spawn(configured(sides(args), Arc::clone(shared), missing));
    }
    let (quit, told) = watch::channel(None);
    tokio::spawn(hasten(told.clone(), shared.drain.clone()));
    let admin = Arc::new(Admin {
        node: parts.node,
        shared: Arc::clone(shared),
        sources: parts.sources,
        stream: parts.stream,
        readiness,
        prober: prober(args),
        log_filter: parts.log_filter,
        quit,
        started: Instant::now(),
        clock: WallClock::system(),
    });
    open("--admin-addr", args.admin_addr, admin::ADMIN, &admin).await?;
    open(
        "--telemetry-addr",
        args.telemetry_addr,
        admin::TELEMETRY,
        &admin,
    )
    .await?;
    open("--health-addr", args.health_addr, admin::HEALTH, &admin).await?;
    Ok(told)
}

/// The application is asked where the kubelet would have asked it.
fn prober(args: &RunArgs) -> Prober {
    let own = args.pod_ip.first().copied();
    let address = own.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    Prober::new(args.probes.clone(), address)
}

async fn open(
    flag: &str,
    address: SocketAddr,
    pages: &'static [Page],
    admin: &Arc<Admin>,
) -> anyhow::Result<()> {
    let listener = admin::bind(address)
        .await
        .with_context(|| format!("{flag} {address}"))?;
    tokio::spawn(admin::serve(listener, pages, Arc::clone(admin)));
    Ok(())
}

/// The sides that are redirected to this proxy.
fn sides(args: &RunArgs) -> Vec<Direction> {
    let all = [
        (args.outbound_port, Direction::Outbound),
        (args.inbound_port, Direction::Inbound),
    ];
    let on = all.into_iter().filter(|(port, _)| *port != 0);
    on.map(|(_, direction)| direction).collect()
}

/// Holds `missing` until connections of all `sides` have a listener to go to.
async fn configured(sides: Vec<Direction>, shared: Arc<Shared>, missing: BlockReady) {
    loop {
        let changed = shared.changed.notified();
        let world = shared.world.load_full();
        if sides.iter().all(|side| world.catch_all(*side).is_some()) {
            drop(missing);
            return;
        }
        drop(world);
        changed.await;
    }
}

/// Holds readiness back while there is no certificate, or it has expired: nothing that speaks
/// mutual TLS works then (TL-04).
async fn certified(
    identity: Arc<IdentityStore>,
    readiness: Readiness,
    missing: BlockReady,
    clock: WallClock,
) {
    let mut missing = Some(missing);
    loop {
        let changed = identity.changed();
        let current = identity.get();
        match current.filter(|own| own.is_valid(clock.now())) {
            Some(_) => missing = None,
            None if missing.is_none() => {
                tracing::error!("the certificate has expired; not ready until there is a new one");
                missing = Some(readiness.block(CERTIFICATE));
            }
            None => {}
        }
        // The wall clock may jump, so that no timer can be set for the end.
        drop(tokio::time::timeout(CERTIFICATE_CHECK, changed).await);
    }
}

/// Waits for the order to end.
pub(super) async fn ended(mut told: watch::Receiver<Option<Quit>>) {
    if told.wait_for(Option::is_some).await.is_err() {
        // No order can come any more.
        std::future::pending().await
    }
}

/// The order that brooks no delay leaves nothing to drain (KU-03).
async fn hasten(mut told: watch::Receiver<Option<Quit>>, drain: Drain) {
    if told.wait_for(|how| *how == Some(Quit::Now)).await.is_ok() {
        drain.advance(Phase::Closing);
    }
}

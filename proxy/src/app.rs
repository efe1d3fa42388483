//! The composition root: builds each part once, owns the threads and tasks, readiness and shutdown.

mod checks;
mod collector;
mod observe;
mod publish;
mod status;
mod threads;

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::Notify,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    admin::Origin,
    bootstrap::RunArgs,
    config::{TrustDomain, endpoint::Locality},
    control::{CertificateSource, Connector, ConnectorSettings, FileSource, WallClock},
    drain::{Drain, Phase},
    net::Dialer,
    policy::{
        fault_injection::ActiveFaults,
        worker::{Shared, World},
    },
    telemetry::{Logging, Spans},
    tls::{IdentityStore, ServerTlsCache},
    xds,
};
use publish::Publisher;

/// The end of the time to drain over which the connections that are left are cut, one after the
/// other; of a short time a tenth.
const CUT_SPREAD: Duration = Duration::from_secs(2);
/// After the connections are cut, for their last words to the log.
pub const LAST_WORDS: Duration = Duration::from_millis(250);
/// After that, for the spans that wait.
pub const LAST_SPANS: Duration = Duration::from_secs(1);

/// Runs the proxy until it is told to stop.
///
/// # Errors
/// What keeps it from starting: unusable settings, ports in use, unreadable files.
pub fn run(args: &RunArgs, logging: &Logging) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_name("control")
        .build()?;
    runtime.block_on(control(args, logging))
}

/// The control thread: everything that is not traffic.
async fn control(args: &RunArgs, logging: &Logging) -> anyhow::Result<()> {
    let mut rng = StdRng::from_rng(&mut rand::rng());
    let dialer = Dialer { mark: args.mark };
    let identity = IdentityStore::new();
    let drain = Drain::default();
    let (spans, queue) = Spans::new(args.trace_sampling, args.otlp_endpoint.is_some());
    let shared = Arc::new(Shared {
        world: ArcSwap::from_pointee(World::default()),
        changed: Notify::new(),
        demand: OnceLock::new(),
        identity: Arc::clone(&identity),
        server_tls: ServerTlsCache::new(Arc::clone(&identity)),
        drain: drain.clone(),
        telemetry: observe::telemetry(args, spans)?,
        faults: ActiveFaults::default(),
        own_ports: own_ports(args),
        own_ips: own_ips(args),
    });
    observe::watch(&shared);
    let publisher = Publisher::new(Arc::clone(&shared), home(args), Instant::now());
    let stop = CancellationToken::new();
    let mut sources = Vec::new();

    if let Some(path) = &args.config {
        sources.push((Origin::File, static_config(path, &publisher)?));
    }
    start_identity(args, &shared).await?;
    let mut stream = None;
    if args.control_plane.is_empty() {
        if args.config.is_none() {
            anyhow::bail!("nothing to do: give --control-plane, --config, or both");
        }
    } else {
        let connector = connector(args, dialer, &shared)?;
        let (view, stats) = start_control(args, connector, &shared, &publisher, &mut rng, &stop)?;
        sources.push((Origin::ControlPlane, view));
        stream = Some(stats);
    }
    let threads = threads::start(args, dialer, &shared, &publisher, &mut rng)?;
    let parts = status::Parts {
        node: settings(args, &shared.own_ips).node,
        sources,
        stream,
        log_filter: status::log_filter(logging),
    };
    let told = status::start(args, &shared, parts).await?;
    tokio::spawn(publish::sweep_outliers(Arc::clone(&shared)));
    checks::start(&shared, dialer, &mut rng);
    let exported = collector::start(args, dialer, &shared, queue, &mut rng, stop.clone());
    tracing::info!(
        node = args.node(),
        workers = threads.len(),
        outbound = args.outbound_port,
        inbound = args.inbound_port,
        "proxy started"
    );

    tokio::select! {
        signal = wait_for_signal() => signal?,
        () = status::ended(told) => {}
    }
    shut_down(args, &drain).await;
    stop.cancel();
    // A collector that does not take them in this time does not keep the pod from ending.
    drop(tokio::time::timeout(LAST_SPANS, exported).await);
    shared.telemetry.flush(LAST_WORDS);
    Ok(())
}

/// Puts the configuration of a file in force.
fn static_config(path: &Path, publisher: &Publisher) -> anyhow::Result<xds::View> {
    let local = xds::local::load(path, wall_clock()())
        .map_err(|all| anyhow::anyhow!(list(&all)))
        .with_context(|| format!("static configuration {}", path.display()))?;
    for path in &local.ignored {
        tracing::warn!(path, "field not known, ignored");
    }
    publisher.publish(local.snapshot);
    Ok(local.view)
}

/// Certificate from files, if they are given.
async fn start_identity(args: &RunArgs, shared: &Arc<Shared>) -> anyhow::Result<()> {
    if let (Some(cert), Some(key), Some(ca)) = (&args.cert_file, &args.key_file, &args.ca_file) {
        let source = FileSource {
            cert: cert.clone(),
            key: key.clone(),
            ca: ca.clone(),
            clock: WallClock::system(),
        };
        shared
            .identity
            .set(source.load().await.context("--cert-file")?);
        tokio::spawn(source.run(Arc::clone(&shared.identity)));
    }
    Ok(())
}

fn connector(args: &RunArgs, dialer: Dialer, shared: &Shared) -> anyhow::Result<Connector> {
    let bundle = args
        .trust_bundle
        .clone()
        .context("--control-plane needs --trust-bundle, the roots that authenticate it")?;
    Ok(Connector::new(ConnectorSettings {
        addresses: args.control_plane.clone(),
        bundle,
        domain: TrustDomain::parse(&args.trust_domain)?,
        dialer,
        identity: Arc::clone(&shared.identity),
        clock: WallClock::system(),
    })?)
}

/// Certificate and configuration from the control plane.
fn start_control(
    args: &RunArgs,
    connector: Connector,
    shared: &Arc<Shared>,
    publisher: &Arc<Publisher>,
    rng: &mut StdRng,
    stop: &CancellationToken,
) -> anyhow::Result<(xds::View, Arc<xds::Stats>)> {
    if args.cert_file.is_none() {
        let source = CertificateSource {
            authority: connector.clone(),
            id: args.spiffe_id()?,
            token_file: args.token_file.clone(),
            clock: WallClock::system(),
            state_dir: args.state_dir.clone(),
        };
        let seed = StdRng::seed_from_u64(rng.random());
        tokio::spawn(source.run(Arc::clone(&shared.identity), seed));
    }
    let publish = Arc::clone(publisher);
    let (task, handles) = xds::Xds::new(
        settings(args, &shared.own_ips),
        Arc::new(move |snapshot| publish.publish(snapshot)),
        &wall_clock(),
    );
    observe::watch_xds(&shared.telemetry, Arc::clone(&handles.stats));
    // Set once, here; workers start after.
    drop(shared.demand.set(handles.demand));
    let (seed, stop) = (StdRng::seed_from_u64(rng.random()), stop.clone());
    let identity = Arc::clone(&shared.identity);
    tokio::spawn(async move {
        // The stream is authenticated by the certificate, so that comes first.
        identity.ready().await;
        Box::pin(task.run(connector, seed, stop)).await;
    });
    Ok((handles.view, handles.stats))
}

fn settings(args: &RunArgs, own_ips: &[IpAddr]) -> xds::Settings {
    let named: BTreeSet<Box<str>> = ["inbound", "outbound"].map(Into::into).into();
    xds::Settings {
        node: xds::NodeInfo {
            id: args.node(),
            namespace: args.namespace.clone(),
            service_account: args.service_account.clone(),
            workload: args.workload.clone(),
            labels: args.labels.0.clone(),
            addresses: own_ips.to_vec(),
            region: args.region.clone(),
            zone: args.zone.clone(),
            on_demand: !args.xds_sotw,
            extra: std::collections::BTreeMap::new(),
        },
        variant: if args.xds_sotw {
            xds::Variant::Sotw
        } else {
            xds::Variant::Delta
        },
        subscription: if args.xds_sotw {
            xds::Subscription::Everything
        } else {
            xds::Subscription::Named(named)
        },
        idle: xds::IDLE,
        state_dir: args.state_dir.clone(),
    }
}

fn wall_clock() -> xds::WallClock {
    Arc::new(|| {
        let now = rustls::pki_types::UnixTime::now();
        std::time::UNIX_EPOCH + Duration::from_secs(now.as_secs())
    })
}

fn own_ips(args: &RunArgs) -> Vec<IpAddr> {
    if args.pod_ip.is_empty() {
        crate::net::own_addresses()
    } else {
        args.pod_ip.clone()
    }
}

/// Where this proxy runs.
fn home(args: &RunArgs) -> Locality {
    Locality {
        region: args.region.as_str().into(),
        zone: args.zone.as_str().into(),
        sub_zone: Box::default(),
    }
}

fn own_ports(args: &RunArgs) -> Vec<u16> {
    let mut ports = vec![
        args.admin_addr.port(),
        args.telemetry_addr.port(),
        args.health_addr.port(),
    ];
    ports.extend([args.outbound_port, args.inbound_port]);
    ports.retain(|port| *port != 0);
    ports
}

fn list(all: &[crate::config::Invalid]) -> String {
    let lines: Vec<_> = all.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

async fn wait_for_signal() -> std::io::Result<()> {
    let (mut term, mut int) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let name = tokio::select! {
        _ = term.recv() => "SIGTERM",
        _ = int.recv() => "SIGINT",
    };
    tracing::info!(signal = name, "stopping");
    Ok(())
}

/// The stages of [`Phase`], each as short as the connections allow.
async fn shut_down(args: &RunArgs, drain: &Drain) {
    let again = async {
        // A second signal is somebody who does not want to wait.
        if wait_for_signal().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let stages = async {
        drain.advance(Phase::Lingering);
        tokio::time::sleep(args.drain_delay).await;
        drain.advance(Phase::Draining);
        tracing::info!(connections = drain.connections(), "draining");
        let spread = (args.drain_timeout / 10).min(CUT_SPREAD);
        if tokio::time::timeout(args.drain_timeout - spread, drain.idle())
            .await
            .is_err()
        {
            tracing::warn!(
                connections = drain.connections(),
                after = ?args.drain_timeout,
                "cutting the connections that are left"
            );
            drain.cut_over(spread).await;
        }
    };
    tokio::select! {
        () = stages => {}
        () = again => {}
        () = drain.reached(Phase::Closing) => {}
    }
    drain.advance(Phase::Closing);
    // What is cut ends at once; whatever does not is cut by the exit.
    drop(tokio::time::timeout(LAST_WORDS, drain.idle()).await);
}

#[cfg(test)]
mod tests;

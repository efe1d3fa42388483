//! `outrigger-control`: the control plane server.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Parser, Subcommand};
use outrigger_control::{app, ca::Origin, clock::Clock, duration, kube};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// The Outrigger control plane.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until SIGTERM.
    Run(Run),
}

#[derive(Debug, clap::Args)]
struct Run {
    /// Where objects, tokens and the root certificate are kept, outside a cluster.
    #[arg(
        long,
        env = "OUTRIGGER_STATE_DIR",
        required_unless_present = "kubernetes"
    )]
    state_dir: Option<PathBuf>,
    /// Configuration and certificates for proxies, over mutual TLS.
    #[arg(long, env = "OUTRIGGER_XDS_ADDR", default_value = "0.0.0.0:15012")]
    xds_addr: SocketAddr,
    /// The control API. On the loopback it is in clear; anywhere else it is over TLS, and callers
    /// show the token that is in `api.token` of the state directory.
    #[arg(long, env = "OUTRIGGER_API_ADDR", default_value = "127.0.0.1:15010")]
    api_addr: SocketAddr,
    /// Serve the control API in clear and to everybody even where it is not on the loopback:
    /// whoever reaches it holds the mesh.
    #[arg(long, env = "OUTRIGGER_API_INSECURE")]
    api_insecure: bool,
    /// File with the token that callers of the control API have to show, 16 characters or more.
    #[arg(long, env = "OUTRIGGER_API_TOKEN_FILE")]
    api_token_file: Option<PathBuf>,
    /// Metrics and health.
    #[arg(
        long,
        env = "OUTRIGGER_TELEMETRY_ADDR",
        default_value = "0.0.0.0:15014"
    )]
    telemetry_addr: SocketAddr,
    /// Trust domain of every identity.
    #[arg(
        long,
        env = "OUTRIGGER_TRUST_DOMAIN",
        default_value = "outrigger.local"
    )]
    trust_domain: String,
    /// Life of a workload's certificate.
    #[arg(long, env = "OUTRIGGER_CERTIFICATE_TTL", default_value = "24h", value_parser = ttl)]
    certificate_ttl: Duration,
    /// PEM file with a certificate authority to sign with, and what is between it and its root,
    /// instead of roots of our own. Read again when it changes.
    #[arg(long, env = "OUTRIGGER_CA_CERT", requires = "ca_key")]
    ca_cert: Option<PathBuf>,
    /// PEM file with the key of --ca-cert, PKCS#8.
    #[arg(long, env = "OUTRIGGER_CA_KEY", requires = "ca_cert")]
    ca_key: Option<PathBuf>,
    /// PEM file with the roots that the mesh trusts, if --ca-cert does not end in the root: old and
    /// new ones together while they are rotated.
    #[arg(long, env = "OUTRIGGER_CA_ROOTS", requires = "ca_cert")]
    ca_roots: Option<PathBuf>,
    #[command(flatten)]
    kubernetes: Kubernetes,
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter like `outrigger_control=debug`.
    #[arg(long, env = "OUTRIGGER_LOG_LEVEL", default_value = "info")]
    log_level: String,
}

/// In a cluster.
#[derive(Debug, clap::Args)]
struct Kubernetes {
    /// Take services, routes and policies from the Kubernetes cluster that this runs in, or that the
    /// kubeconfig names; its API server is the store.
    #[arg(long, env = "OUTRIGGER_KUBERNETES")]
    kubernetes: bool,
    /// The namespace of the control plane.
    #[arg(
        long,
        env = "OUTRIGGER_CONTROL_NAMESPACE",
        default_value = "outrigger-system"
    )]
    control_namespace: String,
    /// The Service of the control plane, by which the API server and proxies find it.
    #[arg(
        long,
        env = "OUTRIGGER_CONTROL_SERVICE",
        default_value = "outrigger-control"
    )]
    control_service: String,
    /// The injector, which the API server calls.
    #[arg(long, env = "OUTRIGGER_WEBHOOK_ADDR", default_value = "0.0.0.0:15017")]
    webhook_addr: SocketAddr,
    /// The injector's MutatingWebhookConfiguration.
    #[arg(
        long,
        env = "OUTRIGGER_WEBHOOK_NAME",
        default_value = "outrigger-injector"
    )]
    webhook_name: String,
    /// The ValidatingWebhookConfiguration of the policies.
    #[arg(
        long,
        env = "OUTRIGGER_VALIDATOR_NAME",
        default_value = "outrigger-policies"
    )]
    validator_name: String,
    /// The image with the proxy that pods get.
    #[arg(
        long,
        env = "OUTRIGGER_PROXY_IMAGE",
        default_value = "outrigger-proxy:0.1.0"
    )]
    proxy_image: String,
    /// When that image is pulled: Always, IfNotPresent, Never.
    #[arg(
        long,
        env = "OUTRIGGER_PROXY_PULL_POLICY",
        default_value = "IfNotPresent"
    )]
    proxy_pull_policy: String,
    /// Where proxies send traces, such as http://jaeger.observability:4317.
    #[arg(long, env = "OUTRIGGER_OTLP_ENDPOINT", default_value = "")]
    otlp_endpoint: String,
}

impl Kubernetes {
    fn settings(self, xds: SocketAddr) -> Option<kube::Settings> {
        self.kubernetes.then(|| kube::Settings {
            namespace: self.control_namespace,
            webhook_addr: self.webhook_addr,
            service: self.control_service,
            webhook: self.webhook_name,
            validator: self.validator_name,
            proxy_image: self.proxy_image,
            proxy_pull_policy: self.proxy_pull_policy,
            otlp_endpoint: self.otlp_endpoint,
            xds_port: xds.port(),
        })
    }
}

fn ttl(text: &str) -> Result<Duration, String> {
    let ttl = duration::parse(text)?;
    if ttl < outrigger_control::ca::MIN_TTL {
        return Err("must be 5s or more".into());
    }
    Ok(ttl)
}

fn main() -> anyhow::Result<()> {
    let Command::Run(run) = Args::parse().command;
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(&run.log_level)?)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        // Saying so on a standard error that nobody reads any more would panic.
        .log_internal_errors(false)
        .init();
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(serve(run))
}

async fn serve(run: Run) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let ca_files = run
        .ca_cert
        .zip(run.ca_key)
        .map(|(cert, key)| Origin::Files {
            cert,
            key,
            roots: run.ca_roots,
        });
    let settings = app::Settings {
        api_insecure: run.api_insecure,
        api_token_file: run.api_token_file,
        ca_files,
        // Not looked at in a cluster; outside, it is demanded.
        state_dir: run.state_dir.unwrap_or_default(),
        kubernetes: run.kubernetes.settings(run.xds_addr),
        xds_addr: run.xds_addr,
        api_addr: run.api_addr,
        telemetry_addr: run.telemetry_addr,
        trust_domain: run.trust_domain,
        certificate_ttl: run.certificate_ttl,
    };
    let running = app::start(settings, Clock::system()).await?;
    tracing::info!(
        xds = %running.xds_addr,
        api = %running.api_addr,
        telemetry = %running.telemetry_addr,
        "ready"
    );
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    running.stop().await;
    Ok(())
}

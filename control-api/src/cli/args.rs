//! What can be said on the command line.

use std::{path::PathBuf, time::Duration};

use clap::{Parser, Subcommand, ValueEnum};

use super::help;
use crate::duration;

/// Steers an Outrigger mesh.
#[derive(Debug, Parser)]
#[command(version, name = "outrigger", max_term_width = 100, after_help = help::AFTER)]
pub struct Args {
    /// The control API, `host:port`, of a control plane outside a cluster. Absent: the cluster that
    /// the kubeconfig names, or 127.0.0.1:15010 where there is no kubeconfig.
    #[arg(long, global = true, env = "OUTRIGGER_SERVER")]
    pub server: Option<String>,
    /// PEM file with the root of the control plane (`ca/root.pem` in its state directory): the
    /// control API is spoken to over TLS. Needed where it is not on the control plane's loopback.
    #[arg(long, global = true, env = "OUTRIGGER_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// The token that the control API wants (`api.token` in the state directory).
    #[arg(
        long,
        global = true,
        env = "OUTRIGGER_TOKEN",
        hide_env_values = true,
        conflicts_with = "token_file"
    )]
    pub token: Option<String>,
    /// File with that token.
    #[arg(long, global = true, env = "OUTRIGGER_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// The way to a cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The way to a cluster, by the kubeconfig as kubectl has it.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Kubernetes")]
pub struct ClusterArgs {
    /// The kubeconfig; absent: `KUBECONFIG`, or `~/.kube/config`. Goes before --server.
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The context in it; absent: the current one. Goes before --server.
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// The namespace that the control plane runs in.
    #[arg(
        long,
        global = true,
        env = "OUTRIGGER_CONTROL_NAMESPACE",
        value_name = "NAMESPACE",
        default_value = "outrigger-system"
    )]
    pub control_namespace: String,
}

/// How what is shown is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Output {
    /// A table.
    #[default]
    Table,
    /// A table with everything.
    Wide,
    /// YAML, as it can be applied again.
    Yaml,
    /// JSON.
    Json,
}

/// How what was done is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Report {
    /// For people.
    #[default]
    Text,
    /// YAML.
    Yaml,
    /// JSON.
    Json,
}

impl Report {
    /// `None` for text.
    pub(super) const fn data(self) -> Option<Output> {
        match self {
            Self::Text => None,
            Self::Yaml => Some(Output::Yaml),
            Self::Json => Some(Output::Json),
        }
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create or replace objects, all or none.
    Apply(Apply),
    /// Remove objects, all or none.
    Delete(Delete),
    /// Show one object.
    #[command(after_help = help::GET)]
    Get {
        /// Like `service`, `svc` or `httproute`.
        kind: String,
        /// Its name.
        name: String,
        /// Its namespace.
        #[arg(short, long, default_value = "default")]
        namespace: String,
        /// Format.
        #[arg(short, long, value_enum, default_value = "yaml")]
        output: Output,
    },
    /// List objects.
    #[command(after_help = help::LIST)]
    List {
        /// Like `services`; absent: every kind.
        kind: Option<String>,
        /// Only of this namespace.
        #[arg(short, long)]
        namespace: Option<String>,
        /// Format.
        #[arg(short, long, value_enum, default_value = "table")]
        output: Output,
    },
    /// Show connected proxies: what they have taken, what they refused and why, and until when
    /// their certificates are good.
    #[command(after_help = help::STATUS)]
    Status {
        /// Format.
        #[arg(short, long, value_enum, default_value = "table")]
        output: Output,
    },
    /// Show what is there, then what changes, as it changes.
    #[command(after_help = help::WATCH)]
    Watch {
        /// Like `services`; absent: every kind.
        kind: Option<String>,
        /// Only of this namespace.
        #[arg(short, long)]
        namespace: Option<String>,
        /// Format; JSON is one object a line.
        #[arg(short, long, value_enum, default_value = "text")]
        output: Report,
    },
    /// List the endpoints of services.
    #[command(after_help = help::ENDPOINTS)]
    Endpoints {
        /// The service's name; absent: all.
        service: Option<String>,
        /// Its namespace; absent: all.
        #[arg(short, long)]
        namespace: Option<String>,
        /// Format.
        #[arg(short, long, value_enum, default_value = "table")]
        output: Output,
    },
    /// Add an instance to a service, or take one out, at once.
    #[command(subcommand)]
    Endpoint(Endpoint),
    /// Show the xDS resources that a proxy has.
    #[command(after_help = help::CONFIG_DUMP)]
    ConfigDump {
        /// `<namespace>/<workload>` or its node id, as in `outrigger status`.
        proxy: String,
        /// Only resources of this type.
        #[arg(short = 't', long = "type", value_enum)]
        kind: Option<ResourceKind>,
        /// Only resources whose name contains this.
        #[arg(long)]
        name: Option<String>,
        /// Format; tables list names and versions.
        #[arg(short, long, value_enum, default_value = "json")]
        output: Output,
    },
    /// Join tokens: the proofs with which workloads get their first certificates.
    #[command(subcommand)]
    Token(Token),
    /// The certificate authority: its roots, and replacing them.
    #[command(subcommand)]
    Ca(Ca),
    /// Say what a pod, a service or a policy is to the mesh, and what is wrong with it.
    #[command(subcommand)]
    Describe(Describe),
    /// Look into the proxy of a pod.
    #[command(subcommand)]
    Proxy(Proxy),
    /// Show requests and what they took, by pod, as their proxies count them.
    #[command(after_help = help::TOP)]
    Top(Top),
    /// Say what is wrong with the mesh in a cluster, or, before there is one, with the cluster.
    #[command(after_help = help::CHECK)]
    Check {
        /// Before it is installed: whether the cluster can have a mesh.
        #[arg(long)]
        pre: bool,
        /// Format.
        #[arg(short, long, value_enum, default_value = "text")]
        output: Report,
    },
    /// Print the control plane's manifests for Kubernetes: `outrigger install | kubectl apply -f -`.
    Install(Install),
    /// Print what is to be deleted: `outrigger uninstall | kubectl delete -f -`.
    #[command(after_help = help::UNINSTALL)]
    Uninstall {
        /// Even while pods run that depend on it.
        #[arg(long)]
        force: bool,
        /// Also the root's key, the namespace, and the definitions of the policies: that deletes
        /// every policy.
        #[arg(long)]
        purge: bool,
    },
    /// Show a whole mesh working on this machine, in network namespaces; needs no root and no
    /// control plane. Exits with 0 if everything that it promises was seen.
    Demo(Demo),
    /// Print a Kubernetes manifest with the proxy beside every pod's application.
    Inject(Inject),
    /// Write a completion script for a shell.
    #[command(after_help = help::COMPLETIONS)]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Types of xDS resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ResourceKind {
    /// Where connections are taken, and what is done with them.
    Listener,
    /// Where requests go.
    Route,
    /// Groups of endpoints, and how they are spoken to.
    Cluster,
    /// Endpoints.
    Endpoint,
}

impl ResourceKind {
    /// The type URL.
    pub(super) const fn url(self) -> &'static str {
        use crate::translate::ResourceType;
        match self {
            Self::Listener => ResourceType::Listener.url(),
            Self::Route => ResourceType::Routes.url(),
            Self::Cluster => ResourceType::Cluster.url(),
            Self::Endpoint => ResourceType::Endpoints.url(),
        }
    }
}

/// See [`Command::Describe`].
#[derive(Debug, Subcommand)]
pub enum Describe {
    /// Whether it is in the mesh and well, who it is, which services it serves, what holds for it.
    Pod(Described),
    /// Its ports, endpoints, routes and policies.
    #[command(visible_alias = "svc")]
    Service(Described),
    /// What became of a route or policy.
    Policy {
        /// Like `httproute` or `trafficpolicy`.
        kind: String,
        /// See there.
        #[command(flatten)]
        one: Described,
    },
}

/// An object in a cluster.
#[derive(Debug, clap::Args)]
pub struct Described {
    /// Its name.
    pub name: String,
    /// Its namespace.
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
}

/// See [`Command::Proxy`].
#[derive(Debug, Subcommand)]
pub enum Proxy {
    /// The configuration that it runs.
    #[command(after_help = help::PROXY_CONFIG)]
    Config {
        /// The pod.
        #[command(flatten)]
        pod: Described,
        /// Only resources of this type.
        #[arg(short = 't', long = "type", value_enum)]
        kind: Option<ResourceKind>,
        /// Only resources whose name contains this.
        #[arg(long = "name", value_name = "TEXT")]
        named: Option<String>,
        /// Format; tables list names and versions.
        #[arg(short, long, value_enum, default_value = "table")]
        output: Output,
    },
    /// The endpoints that it knows, and how they do.
    Endpoints {
        /// The pod.
        #[command(flatten)]
        pod: Described,
        /// Only clusters whose name contains this.
        #[arg(long)]
        cluster: Option<String>,
        /// Format.
        #[arg(short, long, value_enum, default_value = "table")]
        output: Output,
    },
    /// Show or change what it logs, until it ends.
    #[command(after_help = help::LOG_LEVEL)]
    LogLevel {
        /// The pod.
        #[command(flatten)]
        pod: Described,
        /// Like `debug`, or `info,outrigger_proxy::pool=trace`; absent: show the one in force.
        level: Option<String>,
    },
}

/// See [`Command::Top`].
#[derive(Debug, clap::Args)]
pub struct Top {
    /// The pod; absent: every pod of the namespace.
    pub pod: Option<String>,
    /// The namespace.
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// How long requests are counted.
    #[arg(long, default_value = "5s", value_parser = duration::parse)]
    pub window: Duration,
    /// Format.
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
}

/// See [`Command::Endpoint`].
#[derive(Debug, Subcommand)]
pub enum Endpoint {
    /// Add or replace an instance.
    #[command(after_help = help::REGISTER)]
    Register(Register),
    /// Take an instance out.
    Deregister {
        /// The service's name.
        service: String,
        /// The instance's address.
        address: String,
        /// The service's namespace.
        #[arg(short, long, default_value = "default")]
        namespace: String,
        /// Format.
        #[arg(short, long, value_enum, default_value = "text")]
        output: Report,
    },
}

/// See [`Endpoint::Register`].
#[derive(Debug, clap::Args)]
pub struct Register {
    /// The service's name.
    pub service: String,
    /// The instance's address.
    pub address: String,
    /// The service's namespace.
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// Where it listens, if not on the target port: `<name of the service's port>=<port>`.
    #[arg(long, value_parser = named_port)]
    pub port: Vec<(String, u32)>,
    /// Its service account; absent: the service's.
    #[arg(long)]
    pub service_account: Option<String>,
    /// The workload it is an instance of.
    #[arg(long)]
    pub workload: Option<String>,
    /// Its zone.
    #[arg(long)]
    pub zone: Option<String>,
    /// Its share relative to others.
    #[arg(long, default_value_t = 1)]
    pub weight: u32,
    /// It has no proxy.
    #[arg(long)]
    pub no_mesh: bool,
    /// Format.
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Report,
}

fn named_port(text: &str) -> Result<(String, u32), String> {
    let (name, port) = text.split_once('=').ok_or("must be <name>=<port>")?;
    let port = port.parse().map_err(|_| "must be <name>=<port>")?;
    Ok((name.to_owned(), port))
}

/// See [`Command::Apply`].
#[derive(Debug, clap::Args)]
#[command(after_help = help::APPLY)]
pub struct Apply {
    /// YAML or JSON; `-` is standard input. May stand several times.
    #[arg(short, long = "filename", required = true)]
    pub file: Vec<PathBuf>,
    /// For objects that name no namespace.
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// Check only; change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Return when every connected proxy has taken it. Exit code 3: one refused it, or has not
    /// answered in time.
    #[arg(long)]
    pub wait: bool,
    /// How long `--wait` waits.
    #[arg(long, default_value = "30s", value_parser = duration::parse)]
    pub timeout: Duration,
    /// Format.
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Report,
}

/// See [`Command::Delete`].
#[derive(Debug, clap::Args)]
#[command(after_help = help::DELETE)]
pub struct Delete {
    /// Like `service`.
    #[arg(required_unless_present = "file")]
    pub kind: Option<String>,
    /// The objects' names.
    #[arg(required_unless_present = "file")]
    pub names: Vec<String>,
    /// Delete the objects in this file; `-` is standard input.
    #[arg(short, long = "filename", conflicts_with_all = ["kind", "names"])]
    pub file: Vec<PathBuf>,
    /// Their namespace.
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// Pass over what is not there.
    #[arg(long)]
    pub ignore_not_found: bool,
    /// Return when every connected proxy has taken it. Exit code 3: one refused it, or has not
    /// answered in time.
    #[arg(long)]
    pub wait: bool,
    /// How long `--wait` waits.
    #[arg(long, default_value = "30s", value_parser = duration::parse)]
    pub timeout: Duration,
    /// Format.
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Report,
}

/// Join tokens.
#[derive(Debug, Subcommand)]
pub enum Token {
    /// Make one. It is shown once, on standard output.
    #[command(after_help = help::TOKEN_CREATE)]
    Create {
        /// Namespace of the workload.
        #[arg(short, long)]
        namespace: String,
        /// Its service account.
        #[arg(long)]
        service_account: String,
        /// How long it can be used, at most 90 days.
        #[arg(long, default_value = "1h", value_parser = duration::parse)]
        ttl: Duration,
        /// Format.
        #[arg(short, long, value_enum, default_value = "text")]
        output: Report,
    },
    /// List those that can still be used. The tokens themselves are not known, only their hashes.
    List {
        /// Only for workloads of this namespace.
        #[arg(short, long)]
        namespace: Option<String>,
        /// Format.
        #[arg(short, long, value_enum, default_value = "table")]
        output: Output,
    },
    /// Make tokens useless at once, all or none. Certificates that were got with them stay good
    /// until they end.
    #[command(after_help = help::TOKEN_REVOKE)]
    Revoke {
        /// As in `outrigger token list`; a beginning of 6 or more characters will do.
        #[arg(required = true)]
        ids: Vec<String>,
        /// Format.
        #[arg(short, long, value_enum, default_value = "text")]
        output: Report,
    },
}

/// The certificate authority.
#[derive(Debug, Subcommand)]
pub enum Ca {
    /// List the roots that are trusted, and what becomes of each.
    List {
        /// Format.
        #[arg(short, long, value_enum, default_value = "table")]
        output: Output,
    },
    /// Write the roots that are trusted in PEM, as `outrigger-proxy run --trust-bundle` and `--ca`
    /// want them.
    Bundle,
    /// Replace the root. The new one is trusted at once, signs after the overlap, and after another
    /// the old one is not trusted any more. No connection is broken.
    #[command(after_help = help::CA_ROTATE)]
    Rotate {
        /// How long the stages take; absent: the life of a certificate, which is safe even for
        /// proxies that cannot be reached at the moment.
        #[arg(long, value_parser = duration::parse)]
        overlap: Option<Duration>,
        /// Format.
        #[arg(short, long, value_enum, default_value = "table")]
        output: Output,
    },
}

/// See [`Command::Demo`].
#[derive(Debug, clap::Args)]
pub struct Demo {
    /// How long the story takes, about.
    #[arg(long, value_parser = duration::parse, default_value = "60s")]
    pub duration: Duration,
    /// Requests per second.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rate: u32,
    /// No bold type.
    #[arg(long)]
    pub plain: bool,
}

/// See [`Command::Install`].
#[derive(Debug, clap::Args)]
pub struct Install {
    /// Image of the control plane.
    #[arg(long, default_value = CONTROL_IMAGE)]
    pub image: String,
    /// Image of the proxy.
    #[arg(long, default_value = PROXY_IMAGE)]
    pub proxy_image: String,
    /// When images are pulled.
    #[arg(long, default_value = PULL_POLICY, value_parser = PULL_POLICIES)]
    pub pull_policy: String,
    /// Replicas of the control plane.
    #[arg(long, default_value_t = REPLICAS, value_parser = clap::value_parser!(u8).range(1..))]
    pub replicas: u8,
    /// Trust domain of every identity.
    #[arg(long, default_value = TRUST_DOMAIN)]
    pub trust_domain: String,
    /// Where proxies send traces, such as http://jaeger.observability:4317.
    #[arg(long, default_value = "")]
    pub otlp_endpoint: String,
    /// Log level of the control plane.
    #[arg(long, default_value = LOG_LEVEL)]
    pub log_level: String,
}

impl Default for Install {
    /// What the command line says when it says nothing, and the chart too.
    fn default() -> Self {
        Self {
            image: CONTROL_IMAGE.to_owned(),
            proxy_image: PROXY_IMAGE.to_owned(),
            pull_policy: PULL_POLICY.to_owned(),
            replicas: REPLICAS,
            trust_domain: TRUST_DOMAIN.to_owned(),
            otlp_endpoint: String::new(),
            log_level: LOG_LEVEL.to_owned(),
        }
    }
}

const CONTROL_IMAGE: &str = "outrigger-control:0.1.0";
const PROXY_IMAGE: &str = "outrigger-proxy:0.1.0";
const PULL_POLICY: &str = "IfNotPresent";
const REPLICAS: u8 = 2;
const TRUST_DOMAIN: &str = "outrigger.local";
const LOG_LEVEL: &str = "info";
const PULL_POLICIES: [&str; 3] = ["Always", "IfNotPresent", "Never"];

/// See [`Command::Inject`].
#[derive(Debug, clap::Args)]
pub struct Inject {
    /// The manifest; `-` is standard input.
    #[arg(short, long = "filename", required = true)]
    pub file: Vec<PathBuf>,
    /// File with the mesh's root certificate: `kubectl -n outrigger-system get secret outrigger-ca
    /// -o jsonpath='{.data.tls\.crt}' | base64 -d`.
    #[arg(long)]
    pub trust_bundle: PathBuf,
    /// Image of the proxy.
    #[arg(long, default_value = PROXY_IMAGE)]
    pub proxy_image: String,
    /// When it is pulled.
    #[arg(long, default_value = PULL_POLICY, value_parser = PULL_POLICIES)]
    pub pull_policy: String,
    /// Where proxies find the control plane.
    #[arg(long, default_value = "outrigger-control.outrigger-system.svc:15012")]
    pub control_plane: String,
    /// Trust domain of every identity.
    #[arg(long, default_value = TRUST_DOMAIN)]
    pub trust_domain: String,
    /// Where proxies send traces.
    #[arg(long, default_value = "")]
    pub otlp_endpoint: String,
}

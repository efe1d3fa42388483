//! The only reader of arguments and environment: one table of every setting, its default and its
//! reason. Each flag has an environment variable `OUTRIGGER_<FLAG>`.

mod probes;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use probes::{Ask, Probe, Probes};

use crate::{
    config::{Invalid, SpiffeId, TrustDomain, units::Fraction},
    init::{CheckArgs, InitArgs},
    telemetry::{
        access_log::{Format, Scope},
        spans::Endpoint,
    },
};

/// Outrigger's sidecar proxy.
#[derive(Debug, Parser)]
#[command(name = "outrigger-proxy", version, about, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the proxy
    Run(Box<RunArgs>),
    /// Install, verify or remove the rules that redirect a pod's traffic to the proxy
    Init(Box<InitArgs>),
    /// Say what is right and what is wrong in this pod; fails if anything is wrong
    Check(Box<CheckArgs>),
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

impl From<LogFormat> for Format {
    fn from(format: LogFormat) -> Self {
        match format {
            LogFormat::Text => Self::Text,
            LogFormat::Json => Self::Json,
        }
    }
}

/// How access log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AccessLogFormat {
    /// No access log.
    Off,
    Text,
    Json,
}

impl AccessLogFormat {
    /// `None` for no access log.
    #[must_use]
    pub const fn format(self) -> Option<Format> {
        match self {
            Self::Off => None,
            Self::Text => Some(Format::Text),
            Self::Json => Some(Format::Json),
        }
    }
}

/// What has a line in the access log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AccessLogScope {
    /// Every request and connection.
    All,
    /// Those for which the configuration asks.
    Configured,
}

/// Settings of `outrigger-proxy run`.
#[derive(Clone, Debug, Args)]
#[command(next_line_help = false)]
pub struct RunArgs {
    /// Name of the workload (Deployment, service) in metrics, traces and logs
    #[arg(long, env = "OUTRIGGER_WORKLOAD", default_value = "unknown")]
    pub workload: String,
    /// Namespace of the workload
    #[arg(long, env = "OUTRIGGER_NAMESPACE", default_value = "default")]
    pub namespace: String,
    /// Service account of the workload; with the namespace it makes its identity
    #[arg(long, env = "OUTRIGGER_SERVICE_ACCOUNT", default_value = "default")]
    pub service_account: String,
    /// Labels of the workload, `key=value,...`
    #[arg(long, env = "OUTRIGGER_LABELS", value_parser = parse_labels, default_value = "")]
    pub labels: Labels,
    /// Addresses of this pod; found from the network interfaces when not given
    #[arg(long, env = "OUTRIGGER_POD_IP", value_delimiter = ',')]
    pub pod_ip: Vec<IpAddr>,
    /// Unique name of this proxy at the control plane [default: sidecar~IP~WORKLOAD.NS~DOMAIN]
    #[arg(long, env = "OUTRIGGER_NODE_ID")]
    pub node_id: Option<String>,
    /// Region of this pod's node
    #[arg(long, env = "OUTRIGGER_REGION", default_value = "")]
    pub region: String,
    /// Zone of this pod's node
    #[arg(long, env = "OUTRIGGER_ZONE", default_value = "")]
    pub zone: String,
    /// SPIFFE trust domain of the mesh
    #[arg(
        long,
        env = "OUTRIGGER_TRUST_DOMAIN",
        default_value = "outrigger.local"
    )]
    pub trust_domain: String,

    /// Address of the control plane's xDS port, `host:port`; several are tried in turn
    #[arg(long, env = "OUTRIGGER_CONTROL_PLANE", value_delimiter = ',')]
    pub control_plane: Vec<String>,
    /// PEM file with the roots that authenticate the control plane
    #[arg(long, env = "OUTRIGGER_TRUST_BUNDLE")]
    pub trust_bundle: Option<PathBuf>,
    /// File with the token that proves who we are when asking for a certificate
    #[arg(long, env = "OUTRIGGER_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// PEM certificate chain to use instead of asking the control plane for one
    #[arg(
        long,
        env = "OUTRIGGER_CERT_FILE",
        requires = "key_file",
        requires = "ca_file"
    )]
    pub cert_file: Option<PathBuf>,
    /// PEM private key that goes with --cert-file
    #[arg(long, env = "OUTRIGGER_KEY_FILE")]
    pub key_file: Option<PathBuf>,
    /// PEM trust bundle that goes with --cert-file
    #[arg(long, env = "OUTRIGGER_CA_FILE")]
    pub ca_file: Option<PathBuf>,
    /// Static configuration, YAML or JSON, shaped like Envoy's bootstrap `static_resources`
    #[arg(long, env = "OUTRIGGER_CONFIG")]
    pub config: Option<PathBuf>,
    /// Directory that keeps the last configuration, to start without the control plane
    #[arg(long, env = "OUTRIGGER_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// Speak state-of-the-world xDS rather than incremental, and subscribe to everything
    #[arg(long, env = "OUTRIGGER_XDS_SOTW")]
    pub xds_sotw: bool,

    /// Port that outbound connections are redirected to; 0 turns the outbound side off
    #[arg(long, env = "OUTRIGGER_OUTBOUND_PORT", default_value_t = 15001)]
    pub outbound_port: u16,
    /// Port that inbound connections are redirected to; 0 turns the inbound side off
    #[arg(long, env = "OUTRIGGER_INBOUND_PORT", default_value_t = 15006)]
    pub inbound_port: u16,
    /// Admin address; keep it on the loopback
    #[arg(long, env = "OUTRIGGER_ADMIN_ADDR", default_value = "127.0.0.1:15000")]
    pub admin_addr: SocketAddr,
    /// Address that serves /metrics
    #[arg(
        long,
        env = "OUTRIGGER_TELEMETRY_ADDR",
        default_value = "0.0.0.0:15020"
    )]
    pub telemetry_addr: SocketAddr,
    /// Address that serves /healthz/ready and /healthz/live
    #[arg(long, env = "OUTRIGGER_HEALTH_ADDR", default_value = "0.0.0.0:15021")]
    pub health_addr: SocketAddr,

    /// Probes of the application that the health port passes on, as the injector writes them
    #[arg(
        long,
        env = "OUTRIGGER_PROBES",
        default_value = "",
        hide_default_value = true
    )]
    pub probes: Probes,

    /// Worker threads [default: one per CPU the cgroup grants]
    #[arg(long, env = "OUTRIGGER_WORKERS", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: Option<u16>,
    /// SO_MARK of the proxy's own connections, where redirect rules tell it by mark and not by uid
    #[arg(long, env = "OUTRIGGER_MARK")]
    pub mark: Option<u32>,
    /// Log filter, such as `info` or `outrigger_proxy=debug`
    #[arg(long, env = "OUTRIGGER_LOG_LEVEL", default_value = "info")]
    pub log_level: String,
    /// Log format
    #[arg(long, env = "OUTRIGGER_LOG_FORMAT", value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// Access log on standard output
    #[arg(long, env = "OUTRIGGER_ACCESS_LOG", value_enum, default_value = "text")]
    pub access_log: AccessLogFormat,
    /// What has a line in the access log [default: configured with --control-plane, where policies
    /// decide, and all without]
    #[arg(long, env = "OUTRIGGER_ACCESS_LOG_SCOPE", value_enum)]
    pub access_log_scope: Option<AccessLogScope>,
    /// How long connections may go on after SIGTERM
    #[arg(long, env = "OUTRIGGER_DRAIN_TIMEOUT", value_parser = duration, default_value = "30s")]
    pub drain_timeout: Duration,
    /// Time after SIGTERM in which everything is served as before, while endpoints are withdrawn
    #[arg(long, env = "OUTRIGGER_DRAIN_DELAY", value_parser = duration, default_value = "5s")]
    pub drain_delay: Duration,
    /// OTLP/gRPC collector that gets the traces, such as http://jaeger:4317, whichever one the
    /// control plane names
    #[arg(long, env = "OUTRIGGER_OTLP_ENDPOINT", value_parser = Endpoint::parse)]
    pub otlp_endpoint: Option<Endpoint>,
    /// Percentage of requests that are traced when neither their caller nor the control plane says
    #[arg(long, env = "OUTRIGGER_TRACE_SAMPLING", value_parser = percentage, default_value = "1")]
    pub trace_sampling: Fraction,
}

/// Labels in order of their keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(pub BTreeMap<String, String>);

fn parse_labels(text: &str) -> Result<Labels, String> {
    text.split(',')
        .filter(|pair| !pair.trim().is_empty())
        .map(|pair| {
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| format!("{pair:?} is not key=value"))?;
            Ok((key.trim().to_owned(), value.trim().to_owned()))
        })
        .collect::<Result<_, _>>()
        .map(Labels)
}

/// `500ms`, `30s`, `5m`, `1h`; a bare number is refused, since its unit would be a guess.
fn duration(text: &str) -> Result<Duration, String> {
    let at = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .ok_or_else(|| format!("{text:?} has no unit (ms, s, m, h)"))?;
    let (number, unit) = text.split_at(at);
    let number: f64 = number
        .parse()
        .map_err(|_| format!("{text:?} does not begin with a number"))?;
    let scale = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("{unit:?} is not one of ms, s, m, h")),
    };
    Duration::try_from_secs_f64(number * scale).map_err(|e| format!("{text:?}: {e}"))
}

/// `0` to `100`.
fn percentage(text: &str) -> Result<Fraction, String> {
    let number: f64 = text
        .parse()
        .map_err(|_| format!("{text:?} is not a number"))?;
    if !(0.0..=100.0).contains(&number) {
        return Err("must be from 0 to 100".to_owned());
    }
    Ok(Fraction::of_percent(number))
}

impl RunArgs {
    /// The identity that this workload has.
    ///
    /// # Errors
    /// When trust domain, namespace or service account cannot stand in a SPIFFE ID.
    pub fn spiffe_id(&self) -> Result<SpiffeId, Invalid> {
        let domain = TrustDomain::parse(&self.trust_domain)?;
        SpiffeId::of(&domain, &self.namespace, &self.service_account)
    }

    /// What has a line in the access log.
    #[must_use]
    pub fn scope(&self) -> Scope {
        match self.access_log_scope {
            Some(AccessLogScope::All) => Scope::All,
            Some(AccessLogScope::Configured) => Scope::Configured,
            None if self.control_plane.is_empty() => Scope::All,
            None => Scope::Configured,
        }
    }

    /// The node's name at the control plane, in the four-part form that Istio's tools know.
    #[must_use]
    pub fn node(&self) -> String {
        self.node_id.clone().unwrap_or_else(|| {
            let ip = self
                .pod_ip
                .first()
                .map_or_else(|| "0.0.0.0".to_owned(), ToString::to_string);
            format!(
                "sidecar~{ip}~{}.{ns}~{ns}.svc.{}",
                self.workload,
                self.trust_domain,
                ns = self.namespace
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_need_their_unit() {
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for bad in ["", "5", "s", "5d", "-1s", "1e400s"] {
            assert!(duration(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_percentage_is_of_a_hundred() {
        let share = |text| percentage(text).map(Fraction::as_f64);
        assert_eq!((share("100"), share("0")), (Ok(1.0), Ok(0.0)));
        assert_eq!(share("0.5"), Ok(0.005));
        for bad in ["", "1%", "-1", "100.1", "NaN", "inf"] {
            assert!(percentage(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn labels_are_pairs() {
        let labels = parse_labels("app=web, tier=front").expect("good");
        assert_eq!(labels.0.len(), 2);
        assert!(parse_labels("app").is_err());
        assert_eq!(parse_labels("").expect("none"), Labels::default());
    }
}

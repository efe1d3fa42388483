//! `outrigger-proxy init` and `check`: the redirect rules of a pod's network namespace.
//!
//! Outbound TCP is redirected to the outbound port, inbound TCP to the inbound port; UDP and
//! everything else is left alone (KU-12). The proxy's own connections pass, told apart by user,
//! group or socket mark, and so do connections to the loopback; since the proxy dials the
//! application at the very address that was dialled, nothing more is needed to be free of loops.
//! Rules are put in by what works here, read back, and checked by real traffic; a family that
//! exists and is not covered is an error (KU-06, KU-07).
//!
//! *Why not TPROXY:* it would keep the address of the caller for inbound connections, but needs
//! `CAP_NET_ADMIN` in the proxy itself, which REDIRECT does not.

mod backend;
mod check;
mod host;
mod lists;
mod program;
mod rules;
mod run;
mod sidecar;
mod traffic;

use std::net::SocketAddr;

use clap::{ArgAction, Args, ValueEnum, value_parser};

pub use check::{Checklist, Finding, Verdict, check};
pub use lists::{NetSet, PortSet, parse_ids, parse_nets, parse_ports};
pub use rules::{Families, iptables_script, nft_script};
pub use run::{Report, run};
pub use traffic::Seen;

/// What programs the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// The first of the others that works.
    Auto,
    Nft,
    /// Whichever flavour is installed under that name.
    Iptables,
    IptablesLegacy,
}

/// Whether an IP family is covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Family {
    /// If this network namespace has it.
    Auto,
    On,
    Off,
}

/// User id of the proxy where nothing else is said, as with Istio.
pub const PROXY_UID: u32 = 1337;

/// Which traffic is redirected, and how.
#[derive(Clone, Debug, Args)]
pub struct RuleArgs {
    /// Port that outbound connections are redirected to
    #[arg(long, default_value_t = 15001, value_parser = value_parser!(u16).range(1..))]
    pub outbound_port: u16,
    /// Port that inbound connections are redirected to
    #[arg(long, default_value_t = 15006, value_parser = value_parser!(u16).range(1..))]
    pub inbound_port: u16,
    /// User id of the proxy, whose connections are not redirected [default: 1337, unless
    /// --proxy-gid or --proxy-mark is given]
    #[arg(long)]
    pub proxy_uid: Option<u32>,
    /// Group id of the proxy, instead of its user id or besides
    #[arg(long)]
    pub proxy_gid: Option<u32>,
    /// Socket mark of the proxy's connections (`run --mark`), instead of its user id or besides
    #[arg(long, value_parser = value_parser!(u32).range(1..))]
    pub proxy_mark: Option<u32>,
    /// What programs the kernel
    #[arg(long, value_enum, default_value = "auto")]
    pub backend: Backend,
    /// Cover IPv4
    #[arg(long, value_enum, default_value = "auto")]
    pub ipv4: Family,
    /// Cover IPv6
    #[arg(long, value_enum, default_value = "auto")]
    pub ipv6: Family,
    /// Inbound ports that are redirected: `*`, or like `80,8000-8010`
    #[arg(long, value_parser = parse_ports, default_value = "*")]
    pub include_inbound_ports: PortSet,
    /// Inbound ports that are not redirected, beside the proxy's own
    #[arg(long, value_parser = parse_ports, default_value = "")]
    pub exclude_inbound_ports: PortSet,
    /// Destinations that are redirected: `*`, or CIDRs like `10.0.0.0/8,fd00::/8`
    #[arg(long, value_parser = parse_nets, default_value = "*")]
    pub include_outbound_cidrs: NetSet,
    /// Destinations that are not redirected
    #[arg(long, value_parser = parse_nets, default_value = "")]
    pub exclude_outbound_cidrs: NetSet,
    /// Outbound ports that are not redirected
    #[arg(long, value_parser = parse_ports, default_value = "")]
    pub exclude_outbound_ports: PortSet,
    /// User ids whose connections are not redirected, like `0,1000`
    #[arg(long, value_parser = parse_ids, default_value = "")]
    pub exclude_uids: Ids,
    /// Allow the network namespace of the node itself
    #[arg(long)]
    pub allow_host_network: bool,
}

/// User ids, sorted, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ids(Vec<u32>);

impl RuleArgs {
    /// The proxy's user id, if that is what tells it.
    #[must_use]
    pub fn uid(&self) -> Option<u32> {
        let told = self.proxy_gid.is_some() || self.proxy_mark.is_some();
        self.proxy_uid.or_else(|| (!told).then_some(PROXY_UID))
    }
}

/// Settings of `outrigger-proxy init`.
#[derive(Clone, Debug, Args)]
pub struct InitArgs {
    #[command(flatten)]
    pub rules: RuleArgs,
    /// Take the rules out again, whichever backend put them in
    #[arg(long)]
    pub remove: bool,
    /// Print the rules and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Make a connection and see that it is redirected
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1,
          default_missing_value = "true", require_equals = true)]
    pub verify: bool,
}

/// Settings of `outrigger-proxy check`; give it what `init` was given.
#[derive(Clone, Debug, Args)]
pub struct CheckArgs {
    #[command(flatten)]
    pub rules: RuleArgs,
    /// Check the redirect rules alone, before the proxy runs
    #[arg(long)]
    pub rules_only: bool,
    /// Admin address of the proxy
    #[arg(long, env = "OUTRIGGER_ADMIN_ADDR", default_value = "127.0.0.1:15000")]
    pub admin_addr: SocketAddr,
    /// Try again for this many seconds while something is wrong: rules may be put in by another
    /// program that has not run yet
    #[arg(long, default_value_t = 0, value_parser = value_parser!(u32).range(..=3600))]
    pub wait: u32,
}

/// Admin, telemetry, health and Envoy's metrics port: scraping and probing them never goes through
/// the mesh (KU-09).
pub const PROXY_PORTS: [u16; 4] = [15000, 15020, 15021, 15090];

/// Why a pod is not covered.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error(
        "this is the node's own network namespace ({0}): rules here would take over the whole \
         node; --allow-host-network if that is meant"
    )]
    HostNetwork(String),
    #[error("{0}")]
    Settings(&'static str),
    #[error("{0} is not installed")]
    NoProgram(&'static str),
    #[error("`{command}` failed: {stderr}")]
    Failed { command: String, stderr: String },
    #[error("`{command}`: {error}")]
    Spawn {
        command: String,
        error: std::io::Error,
    },
    #[error("{backend} took the rules, but reading them back shows otherwise: {what}")]
    NotThere { backend: &'static str, what: String },
    #[error("{backend} took the rules, but reading them back shows otherwise: there is nothing")]
    Absent { backend: &'static str },
    #[error("{backend} took the rules, but a connection was not redirected: {why}")]
    NoEffect { backend: &'static str, why: String },
    #[error("no backend works here; what each says:{0}")]
    NoneWorks(String),
}

#[cfg(test)]
mod tests;

//! `outrigger-proxy init`: the redirect rules of a pod's network namespace.
//!
//! Outbound TCP is redirected to the outbound port, inbound TCP to the inbound port; UDP and
//! everything else is left alone (KU-12). The proxy's own connections pass, told apart by uid or by
//! socket mark. Rules are put in by what works here, read back, and checked by real traffic; a
//! family that exists and is not covered is an error (KU-06, KU-07).

mod ports;
mod rules;
mod run;
mod verify;

use clap::{Args, ValueEnum};

pub use ports::{PortSet, parse_ports};
pub use rules::{iptables_script, nft_script};
pub use run::{InitError, Report, run};

/// What programs the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// The first that works.
    Auto,
    Nft,
    Iptables,
    IptablesLegacy,
}

/// Whether an IP family is covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Family {
    /// If this namespace has it.
    Auto,
    On,
    Off,
}

/// Settings of `outrigger-proxy init`.
#[derive(Clone, Debug, Args)]
pub struct InitArgs {
    /// Port that outbound connections are redirected to
    #[arg(long, default_value_t = 15001)]
    pub outbound_port: u16,
    /// Port that inbound connections are redirected to
    #[arg(long, default_value_t = 15006)]
    pub inbound_port: u16,
    /// User id of the proxy, whose connections are not redirected
    #[arg(long, default_value_t = 1337)]
    pub proxy_uid: u32,
    /// Socket mark of the proxy's connections, instead of its user id
    #[arg(long)]
    pub proxy_mark: Option<u32>,
    /// What programs the kernel
    #[arg(long, value_enum, default_value = "auto")]
    pub backend: Backend,
    /// Cover IPv6
    #[arg(long, value_enum, default_value = "auto")]
    pub ipv6: Family,
    /// Inbound ports that are not redirected, beside the proxy's own: `80,8000-8010`
    #[arg(long, value_parser = parse_ports, default_value = "")]
    pub exclude_inbound_ports: PortSet,
    /// Outbound ports that are not redirected
    #[arg(long, value_parser = parse_ports, default_value = "")]
    pub exclude_outbound_ports: PortSet,
    /// Destinations that are not redirected, as CIDR
    #[arg(long, value_delimiter = ',')]
    pub exclude_outbound_cidrs: Vec<ipnet::IpNet>,
    /// User ids whose connections are not redirected
    #[arg(long, value_delimiter = ',')]
    pub exclude_uids: Vec<u32>,
    /// Take the rules out again
    #[arg(long)]
    pub remove: bool,
    /// Print the rules and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Allow the network namespace of the node itself
    #[arg(long)]
    pub allow_host_network: bool,
}

/// Admin, telemetry and health ports of the proxy: scraping and probing them never goes through the
/// mesh (KU-09).
pub const PROXY_PORTS: [u16; 4] = [15000, 15020, 15021, 15090];

#[cfg(test)]
mod tests;

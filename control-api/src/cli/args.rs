//! What can be said on the command line.

use std::{path::PathBuf, time::Duration};

use clap::{Parser, Subcommand, ValueEnum};

use crate::duration;

/// Steers an Outrigger mesh.
#[derive(Debug, Parser)]
#[command(version, name = "outrigger")]
pub struct Args {
    /// The control API.
    #[arg(
        long,
        global = true,
        env = "OUTRIGGER_SERVER",
        default_value = "127.0.0.1:15010"
    )]
    pub server: String,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How results are written.
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

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create or replace objects, all or none.
    Apply(Apply),
    /// Remove objects, all or none.
    Delete(Delete),
    /// Show one object.
    Get {
        /// Like `service`.
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
    /// Show connected proxies: what they have taken, and what they refused and why.
    Status {
        /// Format.
        #[arg(short, long, value_enum, default_value = "table")]
        output: Output,
    },
    /// Show what is there, then what changes, as it changes.
    Watch {
        /// Like `services`; absent: every kind.
        kind: Option<String>,
        /// Only of this namespace.
        #[arg(short, long)]
        namespace: Option<String>,
    },
    /// List the endpoints of a service.
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
    /// Show the xDS resources that a proxy has, as JSON.
    ConfigDump {
        /// `<namespace>/<workload>` or its node id.
        proxy: String,
    },
    /// Join tokens.
    #[command(subcommand)]
    Token(Token),
    /// Write a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// See [`Command::Endpoint`].
#[derive(Debug, Subcommand)]
pub enum Endpoint {
    /// Add or replace an instance.
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
}

fn named_port(text: &str) -> Result<(String, u32), String> {
    let (name, port) = text.split_once('=').ok_or("must be <name>=<port>")?;
    let port = port.parse().map_err(|_| "must be <name>=<port>")?;
    Ok((name.to_owned(), port))
}

/// See [`Command::Apply`].
#[derive(Debug, clap::Args)]
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
}

/// See [`Command::Delete`].
#[derive(Debug, clap::Args)]
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
}

/// Join tokens.
#[derive(Debug, Subcommand)]
pub enum Token {
    /// Make one: the proof with which a workload gets its first certificate.
    Create {
        /// Namespace of the workload.
        #[arg(short, long)]
        namespace: String,
        /// Its service account.
        #[arg(long)]
        service_account: String,
        /// How long it can be used.
        #[arg(long, default_value = "1h", value_parser = duration::parse)]
        ttl: Duration,
    },
}

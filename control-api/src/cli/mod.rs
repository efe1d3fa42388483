//! The command-line client.

pub mod args;
mod cluster;
mod commands;
mod connect;
mod demo;
mod help;
mod kube;
mod show;

use std::{io::Write, process::ExitCode};

use clap::Parser as _;

pub use args::Args;
use args::Command;
use connect::Client;

/// Some proxies refused what was applied, or have not answered in time.
pub const EXIT_NOT_LIVE: u8 = 3;

/// Runs the client with the process's arguments.
pub async fn main() -> ExitCode {
    let args = Args::parse();
    let mut out = std::io::stdout();
    match Box::pin(run(args, &mut out)).await {
        Ok(code) => code,
        Err(error) => {
            let mut stderr = std::io::stderr();
            // Nobody is left to be told when this fails.
            drop(writeln!(stderr, "error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Runs one command, which writes to `out`.
///
/// # Errors
/// What went wrong, for people.
pub async fn run(args: Args, out: &mut (impl Write + Send)) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Install(_) | Command::Inject(_) | Command::Completions { .. } => {
            commands::local(args.command, out)
        }
        Command::Demo(args) => demo::run(args).await,
        Command::Describe(_)
        | Command::Proxy(_)
        | Command::Top(_)
        | Command::Check { .. }
        | Command::Uninstall { .. } => {
            Box::pin(cluster::run(&args.cluster, args.command, out)).await
        }
        _ if cluster::is_meant(&args) => {
            let cluster = Box::pin(cluster::Cluster::open(&args.cluster)).await?;
            Box::pin(cluster.control(args.command, out)).await
        }
        _ => Box::pin(commands::run(connect::connect(&args)?, args.command, out)).await,
    }
}

/// The message of a status, which is all that people want of it.
fn said(status: &tonic::Status) -> anyhow::Error {
    // One that came from there has no source; one that was made here has the reason at its end.
    let mut reason = None;
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        reason = Some(error.to_string());
        source = error.source();
    }
    if let Some(reason) = reason {
        return anyhow::anyhow!("cannot reach the control plane: {reason}");
    }
    let code = status.code();
    match status.message() {
        "" => anyhow::anyhow!("{code}"),
        message if code == tonic::Code::Unavailable => {
            anyhow::anyhow!("cannot reach the control plane: {message}")
        }
        message => anyhow::anyhow!("{message}"),
    }
}

//! The command-line client.

pub mod args;
mod commands;
mod show;

use std::{io::Write, process::ExitCode};

use anyhow::Context as _;
use clap::Parser as _;
use outrigger_proto::outrigger::control::v1::control_service_client::ControlServiceClient;
use tonic::transport::{Channel, Endpoint};

pub use args::Args;

/// For a call and for the connection that it needs; waiting calls say their own.
const CONNECT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// A list of everything may be longer than what was ever applied at once.
const MAX_ANSWER: usize = 256 << 20;

/// Some proxies refused what was applied, or have not answered in time.
pub const EXIT_NOT_LIVE: u8 = 3;

type Client = ControlServiceClient<Channel>;

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
    let client = connect(&args.server)?;
    commands::run(client, args.command, out).await
}

/// Connects when the first call is made.
fn connect(server: &str) -> anyhow::Result<Client> {
    let endpoint = Endpoint::from_shared(format!("http://{server}"))
        .with_context(|| format!("--server {server:?} is not host:port"))?
        .connect_timeout(CONNECT_TIMEOUT);
    Ok(Client::new(endpoint.connect_lazy()).max_decoding_message_size(MAX_ANSWER))
}

/// The message of a status, which is all that people want of it.
fn said(status: &tonic::Status) -> anyhow::Error {
    let code = status.code();
    match status.message() {
        "" => anyhow::anyhow!("{code}"),
        message if code == tonic::Code::Unavailable => {
            anyhow::anyhow!("cannot reach the control plane: {message}")
        }
        message => anyhow::anyhow!("{message}"),
    }
}

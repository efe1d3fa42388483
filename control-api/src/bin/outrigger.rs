//! `outrigger`: the command-line client.

use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    outrigger_control::cli::main().await
}

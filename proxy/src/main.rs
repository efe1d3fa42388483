//! `outrigger-proxy`: the sidecar binary.

use std::process::ExitCode;

use clap::Parser as _;
use outrigger_proxy::{
    app,
    bootstrap::{Cli, Command},
    init::{self, InitArgs},
    telemetry::Logging,
};

/// Gives memory back to the kernel after a burst, which glibc's does not.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let args = match Cli::parse().command {
        Command::Run(args) => args,
        Command::Init(args) => return redirect(&args),
    };
    let logging = match Logging::start(&args.log_level, args.log_format.into()) {
        Ok(logging) => logging,
        Err(error) => {
            complain(&anyhow::Error::new(error).context("--log-level"));
            return ExitCode::from(2);
        }
    };
    let result = app::run(&args);
    logging.flush(app::LAST_WORDS);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "the command's output")]
fn redirect(args: &InitArgs) -> ExitCode {
    match init::run(args) {
        Ok(report) if args.dry_run => print!("{}", report.rules),
        Ok(report) if args.remove => println!("redirect rules removed ({})", report.backend),
        Ok(report) => println!(
            "redirecting outbound TCP to {}, inbound to {} ({}, {}), {}",
            args.outbound_port,
            args.inbound_port,
            report.backend,
            if report.ipv6 { "IPv4 and IPv6" } else { "IPv4" },
            if report.verified {
                "verified by traffic"
            } else {
                "not tried by traffic: there is no route"
            },
        ),
        Err(error) => {
            complain(&anyhow::Error::new(error).context("init"));
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

#[expect(
    clippy::print_stderr,
    reason = "the last word before exit is for a person"
)]
fn complain(error: &anyhow::Error) {
    eprintln!("outrigger-proxy: {error:#}");
}

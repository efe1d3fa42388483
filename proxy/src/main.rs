//! `outrigger-proxy`: the sidecar binary.

use std::process::ExitCode;

use clap::Parser as _;
use outrigger_proxy::{
    app,
    bootstrap::{Cli, Command},
    init::{self, CheckArgs, InitArgs},
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
        Command::Check(args) => return check(&args),
    };
    let logging = match Logging::start(&args.log_level, args.log_format.into()) {
        Ok(logging) => logging,
        Err(error) => {
            complain(&anyhow::Error::new(error).context("--log-level"));
            return ExitCode::from(2);
        }
    };
    let result = app::run(&args, &logging);
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
        Ok(report) => {
            print!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            complain(&anyhow::Error::new(error).context("init"));
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "the command's output")]
fn check(args: &CheckArgs) -> ExitCode {
    let list = init::check(args);
    print!("{list}");
    if list.passed() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

#[expect(
    clippy::print_stderr,
    reason = "the last word before exit is for a person"
)]
fn complain(error: &anyhow::Error) {
    eprintln!("outrigger-proxy: {error:#}");
}

//! `outrigger demo`: the demonstration of `deploy/demo`, from wherever the programs are.

use std::{env, path::Path, process::ExitCode};

use anyhow::Context as _;
use tokio::process::Command;

use super::args::Demo;

/// The script and what it imports, by the names that it knows them by.
const FILES: [(&str, &str); 2] = [
    ("demo", include_str!("../../../deploy/demo")),
    ("traces.py", include_str!("../../../deploy/traces.py")),
];
/// What the script starts; all are built together.
const PROGRAMS: [&str; 3] = ["outrigger-control", "outrigger-proxy", "outrigger-testapp"];

/// Tells the story; the exit code is the script's, 0 if all that it promises was seen.
///
/// # Errors
/// When a program that it needs is not beside this one, or Python is missing.
pub(super) async fn run(args: &Demo) -> anyhow::Result<ExitCode> {
    let own = env::current_exe().context("where this program is")?;
    let beside = own.parent().unwrap_or_else(|| Path::new("/"));
    for name in PROGRAMS {
        anyhow::ensure!(
            beside.join(name).is_file(),
            "{name} is not in {}, where this program is; in a clone of the project, `deploy/demo` \
             builds all that the demo needs",
            beside.display()
        );
    }
    let folder = tempfile::tempdir().context("a folder for the demo's script")?;
    for (name, text) in FILES {
        let path = folder.path().join(name);
        std::fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    let mut script = Command::new("python3");
    script
        .arg(folder.path().join("demo"))
        .arg("--no-build")
        .args(["--duration", &args.duration.as_secs_f64().to_string()])
        .args(["--rate", &args.rate.to_string()])
        .args(args.plain.then_some("--plain"))
        .env("OUTRIGGER_BIN_DIR", beside);
    let mut script = script.spawn().context("python3, which tells the demo")?;
    // An interrupt reaches the script as well, which then cleans up; its folder must outlive that.
    let ended = tokio::select! {
        ended = script.wait() => ended,
        _ = tokio::signal::ctrl_c() => script.wait().await,
    };
    let code = ended.context("the demo's script")?.code().unwrap_or(1);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

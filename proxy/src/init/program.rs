//! Running the programs that program the kernel.

use std::{
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::InitError;

/// A program in PATH, or where distributions keep such programs.
///
/// # Errors
/// That it is not installed.
pub(super) fn find(name: &'static str) -> Result<PathBuf, InitError> {
    #[expect(
        clippy::disallowed_methods,
        reason = "init is a command of its own, run once"
    )]
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"])
        .map(|dir| Path::new(dir).join(name))
        .find(|candidate| candidate.is_file())
        .ok_or(InitError::NoProgram(name))
}

/// Runs a program to its end and gives what it printed.
///
/// # Errors
/// When it fails, with what it complained about.
pub(super) fn call(
    program: &Path,
    args: &[&str],
    input: Option<&str>,
) -> Result<String, InitError> {
    let command = format!("{} {}", program.display(), args.join(" "));
    let spawn = |error| InitError::Spawn {
        command: command.clone(),
        error,
    };
    let mut child = Command::new(program)
        .args(args)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(spawn)?;
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        match stdin.write_all(input.as_bytes()) {
            // It ended without reading; its complaint says why.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            written => written.map_err(spawn)?,
        }
    }
    let output = child.wait_with_output().map_err(spawn)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(InitError::Failed {
        stderr: if stderr.is_empty() {
            output.status.to_string()
        } else {
            stderr
        },
        command,
    })
}

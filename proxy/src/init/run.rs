//! Putting the rules in force, and making sure that they are.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{
    Backend, Family, InitArgs,
    rules::{CHAIN_IN, CHAIN_OUT, TABLE, iptables_script, nft_script},
    verify,
};

/// Why a pod is not covered. Nothing is left half done that would let traffic past unseen without
/// this error.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error("this is the node's own network namespace; rules here would take over the whole node")]
    HostNetwork,
    #[error("none of {0} is installed")]
    NoProgram(&'static str),
    #[error("{command}: {stderr}")]
    Failed { command: String, stderr: String },
    #[error("{command}: {error}")]
    Spawn {
        command: String,
        error: std::io::Error,
    },
    #[error("no backend works here: {0}")]
    NoneWorks(String),
    #[error("{backend} took the rules, but they are not there when read back")]
    NotThere { backend: &'static str },
    #[error("the rules are there, but a connection was not redirected: {0}")]
    NoEffect(String),
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The program that took the rules.
    pub backend: &'static str,
    pub ipv6: bool,
    /// The rules, as given to it.
    pub rules: String,
    /// Whether a real connection was seen to be redirected.
    pub verified: bool,
}

/// Does what `args` say.
///
/// # Errors
/// See [`InitError`].
pub fn run(args: &InitArgs) -> Result<Report, InitError> {
    if !args.allow_host_network && !args.dry_run && verify::is_host_network() {
        return Err(InitError::HostNetwork);
    }
    let ipv6 = match args.ipv6 {
        Family::On => true,
        Family::Off => false,
        Family::Auto => crate::net::has_ipv6(),
    };
    let backends: &[Backend] = match args.backend {
        Backend::Auto => &[Backend::Nft, Backend::Iptables, Backend::IptablesLegacy],
        Backend::Nft => &[Backend::Nft],
        Backend::Iptables => &[Backend::Iptables],
        Backend::IptablesLegacy => &[Backend::IptablesLegacy],
    };
    let mut failures = Vec::new();
    for backend in backends {
        match try_backend(*backend, args, ipv6) {
            Ok(report) => return Ok(report),
            Err(error) => failures.push(error),
        }
    }
    if failures.len() == 1
        && let Some(only) = failures.pop()
    {
        return Err(only);
    }
    let all: Vec<_> = failures.iter().map(ToString::to_string).collect();
    Err(InitError::NoneWorks(all.join("; ")))
}

fn try_backend(backend: Backend, args: &InitArgs, ipv6: bool) -> Result<Report, InitError> {
    let (name, rules) = match backend {
        Backend::Nft | Backend::Auto => ("nft", nft_script(args, ipv6)),
        Backend::Iptables => ("iptables", both_families(args, ipv6)),
        Backend::IptablesLegacy => ("iptables-legacy", both_families(args, ipv6)),
    };
    let mut report = Report {
        backend: name,
        ipv6,
        rules,
        verified: false,
    };
    if args.dry_run {
        return Ok(report);
    }
    match backend {
        Backend::Nft | Backend::Auto => nft(args, ipv6, &report.rules)?,
        Backend::Iptables => iptables(args, ipv6, ["iptables", "ip6tables"])?,
        Backend::IptablesLegacy => {
            iptables(args, ipv6, ["iptables-legacy", "ip6tables-legacy"])?;
        }
    }
    if !args.remove {
        report.verified = verify::by_traffic(args, ipv6).map_err(InitError::NoEffect)?;
    }
    Ok(report)
}

fn both_families(args: &InitArgs, ipv6: bool) -> String {
    let mut rules = iptables_script(args, false);
    if ipv6 {
        rules.push_str(&iptables_script(args, true));
    }
    rules
}

fn nft(args: &InitArgs, ipv6: bool, script: &str) -> Result<(), InitError> {
    let nft = find("nft").ok_or(InitError::NoProgram("nft"))?;
    call(&nft, &["-f", "-"], Some(script))?;
    if args.remove {
        return Ok(());
    }
    let family = if ipv6 { "inet" } else { "ip" };
    let listed = call(&nft, &["list", "table", family, TABLE], None)?;
    let there = |port: u16| listed.contains(&format!("redirect to :{port}"));
    if there(args.outbound_port) && there(args.inbound_port) {
        Ok(())
    } else {
        Err(InitError::NotThere { backend: "nft" })
    }
}

fn iptables(args: &InitArgs, ipv6: bool, names: [&'static str; 2]) -> Result<(), InitError> {
    let families = if ipv6 { &names[..] } else { &names[..1] };
    for name in families {
        let program = find(name).ok_or(InitError::NoProgram(name))?;
        let restore = find(&format!("{name}-restore")).ok_or(InitError::NoProgram(name))?;
        let hooks = [("OUTPUT", CHAIN_OUT), ("PREROUTING", CHAIN_IN)];
        for (hook, chain) in hooks {
            // Absent is what is wanted.
            let _absent = call(
                &program,
                &["-w", "-t", "nat", "-D", hook, "-p", "tcp", "-j", chain],
                None,
            );
        }
        if args.remove {
            for (_, chain) in hooks {
                let _absent = call(&program, &["-w", "-t", "nat", "-F", chain], None);
                let _absent = call(&program, &["-w", "-t", "nat", "-X", chain], None);
            }
            continue;
        }
        let script = iptables_script(args, name.starts_with("ip6"));
        call(&restore, &["-w", "--noflush"], Some(&script))?;
        for (hook, chain) in hooks {
            call(
                &program,
                &["-w", "-t", "nat", "-A", hook, "-p", "tcp", "-j", chain],
                None,
            )?;
        }
        let listed = call(&program, &["-w", "-t", "nat", "-S"], None)?;
        let port = args.outbound_port;
        if !listed.contains(&format!(
            "-A {CHAIN_OUT} -p tcp -j REDIRECT --to-ports {port}"
        )) {
            return Err(InitError::NotThere { backend: name });
        }
    }
    Ok(())
}

/// A program in PATH or where Debian and Alpine keep such programs.
fn find(name: &str) -> Option<PathBuf> {
    #[expect(
        clippy::disallowed_methods,
        reason = "init is a command of its own, run once"
    )]
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"])
        .map(|dir| Path::new(dir).join(name))
        .find(|candidate| candidate.is_file())
}

fn call(program: &Path, args: &[&str], input: Option<&str>) -> Result<String, InitError> {
    let command = format!("{} {}", program.display(), args.join(" "));
    let spawn = |error| InitError::Spawn {
        command: command.clone(),
        error,
    };
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(spawn)?;
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        stdin.write_all(input.as_bytes()).map_err(spawn)?;
    }
    let output = child.wait_with_output().map_err(spawn)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(InitError::Failed {
        command,
        stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

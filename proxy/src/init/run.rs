//! Putting the rules in force, and making sure that they are.

use std::{fmt, fs};

use super::{
    Family, InitArgs, InitError, RuleArgs, Seen, backend::Tool, host, rules::Families, traffic,
};

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// Nothing; these rules would be put in.
    Shown(String),
    /// Rules of these backends were taken out.
    Removed(Vec<&'static str>),
    /// Rules were put in and read back.
    Installed {
        backend: &'static str,
        families: Families,
        outbound_port: u16,
        inbound_port: u16,
        /// Backends whose rules of before were replaced.
        replaced: Vec<&'static str>,
        /// What a connection showed, `true` for IPv6. Empty when none was to be made.
        seen: Vec<(bool, Seen)>,
    },
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shown(rules) => f.write_str(rules),
            Self::Removed(backends) if backends.is_empty() => {
                writeln!(f, "there were no redirect rules")
            }
            Self::Removed(backends) => {
                writeln!(f, "redirect rules removed ({})", backends.join(", "))
            }
            Self::Installed {
                backend,
                families,
                outbound_port,
                inbound_port,
                replaced,
                seen,
            } => {
                writeln!(
                    f,
                    "redirecting outbound TCP to port {outbound_port}, inbound TCP to port \
                     {inbound_port} ({backend}, {families})"
                )?;
                if !replaced.is_empty() {
                    writeln!(f, "replaced the rules of {}", replaced.join(", "))?;
                }
                for (ipv6, seen) in seen {
                    writeln!(f, "{}: {seen}", family_name(*ipv6))?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for Families {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.iter().map(family_name).collect();
        f.write_str(&names.join(" and "))
    }
}

/// What people call a family.
pub(super) const fn family_name(ipv6: bool) -> &'static str {
    if ipv6 { "IPv6" } else { "IPv4" }
}

/// Does what `args` say.
///
/// When this fails, the rules of the last backend that was tried may be there: a pod is rather
/// cut off than let out unprotected. `--remove` takes them out.
///
/// # Errors
/// See [`InitError`].
pub fn run(args: &InitArgs) -> Result<Report, InitError> {
    let tools = args.rules.backend.tools();
    if args.remove {
        return remove(tools);
    }
    if args.rules.outbound_port == args.rules.inbound_port {
        return Err(InitError::Settings(
            "--outbound-port and --inbound-port must differ",
        ));
    }
    let families = families(&args.rules)?;
    if args.dry_run {
        let scripts = tools.iter().take(1);
        let scripts = scripts.map(|tool| tool.script(&args.rules, families));
        return Ok(Report::Shown(scripts.collect()));
    }
    if let Some(why) = host::Facts::gather().host_network()
        && !args.rules.allow_host_network
    {
        return Err(InitError::HostNetwork(why));
    }
    let mut failures = Vec::new();
    for tool in tools {
        match install(*tool, args, families) {
            Ok(report) => return Ok(report),
            Err(error) => failures.push((tool.name(), error)),
        }
    }
    if failures.len() == 1
        && let Some((_, only)) = failures.pop()
    {
        return Err(only);
    }
    let all = failures
        .iter()
        .map(|(name, error)| format!("\n  {name}: {error}"));
    Err(InitError::NoneWorks(all.collect()))
}

fn install(tool: Tool, args: &InitArgs, families: Families) -> Result<Report, InitError> {
    let backend = tool.name();
    tool.install(&args.rules, families)?;
    let replaced = remove_others(tool)?;
    tool.read_back(&args.rules, families)?;
    let mut seen = Vec::new();
    for ipv6 in families.iter().filter(|_| args.verify) {
        let probed = traffic::probe(&args.rules, ipv6);
        let probed = probed.map_err(|why| InitError::NoEffect { backend, why })?;
        seen.push((ipv6, probed));
    }
    Ok(Report::Installed {
        backend,
        families,
        outbound_port: args.rules.outbound_port,
        inbound_port: args.rules.inbound_port,
        replaced,
        seen,
    })
}

/// Takes out what another backend put in before: of two sets of rules the older might decide.
fn remove_others(tool: Tool) -> Result<Vec<&'static str>, InitError> {
    let home = tool.home()?;
    let mut removed = Vec::new();
    for other in Tool::ALL {
        // A program that does not even start has put nothing in.
        if other.home().is_ok_and(|its| its != home) && other.remove().unwrap_or(false) {
            removed.push(other.name());
        }
    }
    Ok(removed)
}

fn remove(tools: &[Tool]) -> Result<Report, InitError> {
    let mut removed = Vec::new();
    for tool in tools {
        if tool.remove()? {
            removed.push(tool.name());
        }
    }
    Ok(Report::Removed(removed))
}

/// The families to cover.
///
/// # Errors
/// When that is none.
pub(super) fn families(args: &RuleArgs) -> Result<Families, InitError> {
    let wanted = |family: Family, exists: bool| match family {
        Family::Auto => exists,
        Family::On => true,
        Family::Off => false,
    };
    // An interface may have IPv6 where the loopback has not.
    let addresses = fs::read_to_string("/proc/self/net/if_inet6").unwrap_or_default();
    let families = Families {
        v4: wanted(args.ipv4, true),
        v6: wanted(args.ipv6, !addresses.is_empty() || crate::net::has_ipv6()),
    };
    if families.v4 || families.v6 {
        Ok(families)
    } else {
        Err(InitError::Settings(
            "neither IPv4 nor IPv6 is to be covered: nothing to do",
        ))
    }
}

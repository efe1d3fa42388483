//! `outrigger-proxy check`: what is right and what is wrong in this pod, each thing with its
//! verdict and what to do about it. Needs no privilege. With `--rules-only` it can run before proxy
//! and application start, and keep the application from starting unprotected (KU-06).

use std::{fmt, fs, time::Duration};

use super::{
    CheckArgs, InitError, RuleArgs, Seen,
    backend::Tool,
    host,
    rules::Families,
    run::{families, family_name},
    sidecar,
    traffic::{self, pause},
};

/// Open files below which a busy proxy runs out: each connection has two ends.
const ENOUGH_FILES: u64 = 16_384;
/// `CAP_NET_ADMIN` and `CAP_NET_RAW` in `/proc/self/status`.
const NET_ADMIN: u64 = 1 << 12;
const NET_RAW: u64 = 1 << 13;

/// How a thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Good,
    /// Worth knowing; works nevertheless.
    Note,
    Bad,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub what: &'static str,
    pub verdict: Verdict,
    pub detail: String,
}

/// All that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checklist(pub Vec<Finding>);

impl Checklist {
    /// Whether nothing is bad.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.0.iter().all(|f| f.verdict != Verdict::Bad)
    }
}

impl fmt::Display for Checklist {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.0 {
            let mark = match finding.verdict {
                Verdict::Good => "ok  ",
                Verdict::Note => "note",
                Verdict::Bad => "BAD ",
            };
            writeln!(f, "{mark}  {}: {}", finding.what, finding.detail)?;
        }
        match self.0.iter().filter(|f| f.verdict == Verdict::Bad).count() {
            0 => writeln!(f, "all is well"),
            1 => writeln!(f, "1 thing is wrong"),
            wrong => writeln!(f, "{wrong} things are wrong"),
        }
    }
}

pub(super) const fn finding(what: &'static str, verdict: Verdict, detail: String) -> Finding {
    Finding {
        what,
        verdict,
        detail,
    }
}

/// Looks at everything; as long as something is bad, again until `--wait` is over.
#[must_use]
pub fn check(args: &CheckArgs) -> Checklist {
    let mut left = args.wait;
    loop {
        let list = once(args);
        if list.passed() || left == 0 {
            return list;
        }
        left -= 1;
        pause(Duration::from_secs(1));
    }
}

fn once(check: &CheckArgs) -> Checklist {
    let args = &check.rules;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut list = vec![namespace(args), user(&status), programs(), files()];
    list.extend(args.proxy_mark.map(|_| mark(&status)));
    match families(args) {
        Err(error) => list.push(finding("families", Verdict::Bad, error.to_string())),
        Ok(families) => {
            let rules = rules(args, families, &status);
            let readable = rules.verdict == Verdict::Good;
            list.push(rules);
            for ipv6 in families.iter() {
                list.push(by_traffic(args, ipv6, readable));
            }
            if !check.rules_only {
                list.extend(sidecar::look(check, families));
            }
        }
    }
    Checklist(list)
}

fn namespace(args: &RuleArgs) -> Finding {
    let facts = host::Facts::gather();
    let (verdict, detail) = match facts.host_network() {
        None => (
            Verdict::Good,
            format!("a pod's own, with {}", facts.interfaces.join(", ")),
        ),
        Some(why) if args.allow_host_network => (Verdict::Note, format!("the node's ({why})")),
        Some(why) => (Verdict::Bad, format!("the node's ({why})")),
    };
    finding("network namespace", verdict, detail)
}

/// A field of `/proc/self/status`.
fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let mut lines = status.lines();
    let found = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    found.unwrap_or_default().trim()
}

fn capabilities(status: &str) -> u64 {
    u64::from_str_radix(field(status, "CapEff"), 16).unwrap_or(0)
}

fn user(status: &str) -> Finding {
    let uid = field(status, "Uid")
        .split_whitespace()
        .next()
        .unwrap_or("?");
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let words: Vec<_> = map.split_whitespace().collect();
    let nested = if words == ["0", "0", "4294967295"] {
        "the machine's user namespace"
    } else {
        "a user namespace of its own"
    };
    let held = capabilities(status);
    let admin = if held & NET_ADMIN != 0 {
        "has"
    } else {
        "lacks"
    };
    let detail = format!("{uid} in {nested}; {admin} CAP_NET_ADMIN, which only `init` needs");
    finding("user", Verdict::Good, detail)
}

fn programs() -> Finding {
    let versions: Vec<_> = Tool::ALL
        .into_iter()
        .filter_map(|tool| Some(format!("{} ({})", tool.name(), tool.version().ok()?)))
        .collect();
    let (verdict, detail) = if versions.is_empty() {
        let why = "neither nft nor iptables; needed where `init` runs";
        (Verdict::Note, why.to_owned())
    } else {
        (Verdict::Good, versions.join(", "))
    };
    finding("programs", verdict, detail)
}

fn files() -> Finding {
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().next());
    let soft = soft.unwrap_or("unknown");
    let verdict = match soft.parse::<u64>() {
        Ok(files) if files < ENOUGH_FILES => Verdict::Note,
        _ => Verdict::Good,
    };
    let detail = format!("at most {soft}; a proxied connection takes two");
    finding("open files", verdict, detail)
}

fn mark(status: &str) -> Finding {
    let (verdict, detail) = if capabilities(status) & (NET_ADMIN | NET_RAW) == 0 {
        let why = "the proxy needs CAP_NET_ADMIN or CAP_NET_RAW to mark its connections; without, \
                   tell it apart by --proxy-uid";
        (Verdict::Note, why)
    } else {
        (Verdict::Good, "this user may set it")
    };
    finding("socket mark", verdict, detail.to_owned())
}

fn rules(args: &RuleArgs, families: Families, status: &str) -> Finding {
    let what = "rules";
    if capabilities(status) & NET_ADMIN == 0 {
        let detail = "cannot be read without CAP_NET_ADMIN; traffic decides".to_owned();
        return finding(what, Verdict::Note, detail);
    }
    let mut differing = Vec::new();
    for tool in args.backend.tools() {
        if *tool != Tool::Nft && !tool.in_use(!families.v4) {
            continue;
        }
        match tool.read_back(args, families) {
            Ok(()) => {
                let detail = format!("as they should be ({}, {families})", tool.name());
                return finding(what, Verdict::Good, detail);
            }
            // There are none.
            Err(InitError::Failed { .. } | InitError::NoProgram(_) | InitError::Absent { .. }) => {}
            Err(error) => differing.push(error.to_string()),
        }
    }
    let detail = if differing.is_empty() {
        "there are none; `outrigger-proxy init` puts them in".to_owned()
    } else {
        differing.join("; ")
    };
    finding(what, Verdict::Bad, detail)
}

fn by_traffic(args: &RuleArgs, ipv6: bool, readable: bool) -> Finding {
    let (verdict, detail) = match traffic::probe(args, ipv6) {
        // Rules that were read will do; otherwise nothing speaks for them.
        Ok(seen @ Seen::NoWay) => (Verdict::Note, seen.to_string()),
        Ok(seen @ Seen::Untested(_)) if readable => (Verdict::Note, seen.to_string()),
        Ok(seen @ Seen::Untested(_)) => (Verdict::Bad, seen.to_string()),
        Ok(seen) => (Verdict::Good, seen.to_string()),
        Err(why) => (Verdict::Bad, why),
    };
    let what = match family_name(ipv6) {
        "IPv6" => "IPv6 traffic",
        _ => "IPv4 traffic",
    };
    finding(what, verdict, detail)
}

//! nftables and iptables: putting the rules in, reading them back, taking them out.

use std::{fmt, fs};

use super::{
    Backend, InitError, RuleArgs,
    program::{call, find},
    rules::{CHAIN_IN, CHAIN_OUT, Families, HOOKS, TABLE, iptables_script, nft_script},
};

/// How long iptables may wait for another program that holds its lock, in seconds.
const LOCK_WAIT: &str = "5";

/// One way to program the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tool {
    Nft,
    Iptables,
    IptablesLegacy,
}

/// Where a tool's rules live in the kernel: two tools may share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Home {
    Nft,
    /// iptables on top of nftables.
    NfTables,
    /// The tables that iptables had before nftables.
    XTables,
}

/// What is compared of rules that were written and rules that were read: programs differ in how
/// they spell a rule, but not in how many there are and where they lead.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Shape(Vec<Chain>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Chain {
    name: String,
    hooked: bool,
    rules: usize,
    redirects: Vec<String>,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("nothing");
        }
        for (n, chain) in self.0.iter().enumerate() {
            let comma = if n > 0 { "; " } else { "" };
            let hooked = if chain.hooked { "" } else { "not in use, " };
            let (name, rules) = (&chain.name, chain.rules);
            write!(f, "{comma}{name}: {hooked}{rules} rules")?;
            if !chain.redirects.is_empty() {
                write!(f, " to port {}", chain.redirects.join(", "))?;
            }
        }
        Ok(())
    }
}

impl Backend {
    /// What to try, in order.
    pub(super) const fn tools(self) -> &'static [Tool] {
        match self {
            Self::Auto => &Tool::ALL,
            Self::Nft => &[Tool::Nft],
            Self::Iptables => &[Tool::Iptables],
            Self::IptablesLegacy => &[Tool::IptablesLegacy],
        }
    }
}

impl Tool {
    pub(super) const ALL: [Self; 3] = [Self::Nft, Self::Iptables, Self::IptablesLegacy];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Iptables => "iptables",
            Self::IptablesLegacy => "iptables-legacy",
        }
    }

    /// The programs of a family that list and restore rules.
    const fn programs(self, ipv6: bool) -> [&'static str; 2] {
        match (self, ipv6) {
            (Self::Nft, _) => ["nft", "nft"],
            (Self::Iptables, false) => ["iptables", "iptables-restore"],
            (Self::Iptables, true) => ["ip6tables", "ip6tables-restore"],
            (Self::IptablesLegacy, false) => ["iptables-legacy", "iptables-legacy-restore"],
            (Self::IptablesLegacy, true) => ["ip6tables-legacy", "ip6tables-legacy-restore"],
        }
    }

    /// What the program says about itself.
    pub(super) fn version(self) -> Result<String, InitError> {
        let [program, _] = self.programs(false);
        Ok(call(&find(program)?, &["--version"], None)?
            .trim()
            .to_owned())
    }

    pub(super) fn home(self) -> Result<Home, InitError> {
        Ok(match self {
            Self::Nft => Home::Nft,
            Self::Iptables if self.version()?.contains("nf_tables") => Home::NfTables,
            Self::Iptables | Self::IptablesLegacy => Home::XTables,
        })
    }

    /// All that is given to the program, for people to read.
    pub(super) fn script(self, args: &RuleArgs, families: Families) -> String {
        if self == Self::Nft {
            return nft_script(args, families);
        }
        let scripts = families.iter().map(|ipv6| {
            let [_, restore] = self.programs(ipv6);
            let script = iptables_script(args, ipv6, [false; 2]);
            format!("# {restore} --noflush\n{script}")
        });
        scripts.collect()
    }

    /// Puts the rules in. Those of before are replaced in one step, so that traffic never passes
    /// without any.
    pub(super) fn install(self, args: &RuleArgs, families: Families) -> Result<(), InitError> {
        if self == Self::Nft {
            let script = nft_script(args, families);
            call(&find("nft")?, &["-f", "-"], Some(&script))?;
            // A table of before may have been for other families.
            for family in nft_tables()? {
                if family != families.nft() {
                    delete_nft_table(&family)?;
                }
            }
            return Ok(());
        }
        for ipv6 in families.iter() {
            let listed = self.list(ipv6)?;
            let hooked = HOOKS.map(|hook| is_hooked(&listed, hook));
            self.restore(ipv6, &iptables_script(args, ipv6, hooked))?;
        }
        for ipv6 in [false, true] {
            if !families.iter().any(|covered| covered == ipv6) && self.in_use(ipv6) {
                self.remove_family(ipv6)?;
            }
        }
        Ok(())
    }

    /// Compares what is in the kernel with what was put in.
    pub(super) fn read_back(self, args: &RuleArgs, families: Families) -> Result<(), InitError> {
        let mut compared = Vec::new();
        if self == Self::Nft {
            let listing = call(
                &find("nft")?,
                &["list", "table", families.nft(), TABLE],
                None,
            )?;
            compared.push((nft_shape(&nft_script(args, families)), nft_shape(&listing)));
        } else {
            for ipv6 in families.iter() {
                let script = iptables_script(args, ipv6, [false; 2]);
                compared.push((iptables_shape(&script), iptables_shape(&self.list(ipv6)?)));
            }
        }
        for (want, got) in compared {
            if want != got && got.0.is_empty() {
                let backend = self.name();
                return Err(InitError::Absent { backend });
            }
            if want != got {
                return Err(InitError::NotThere {
                    backend: self.name(),
                    what: format!("there is {got}; it should be {want}"),
                });
            }
        }
        Ok(())
    }

    /// Takes our rules out; says whether there were any. A program that is not installed has none.
    pub(super) fn remove(self) -> Result<bool, InitError> {
        let mut any = false;
        if self == Self::Nft {
            if find("nft").is_ok() {
                for family in nft_tables()? {
                    delete_nft_table(&family)?;
                    any = true;
                }
            }
            return Ok(any);
        }
        for ipv6 in [false, true] {
            if self.in_use(ipv6) {
                any |= self.remove_family(ipv6)?;
            }
        }
        Ok(any)
    }

    /// Whether asking the program makes sense: asking creates the old tables where they were not.
    pub(super) fn in_use(self, ipv6: bool) -> bool {
        let [program, restore] = self.programs(ipv6);
        if find(program).is_err() || find(restore).is_err() {
            return false;
        }
        let names = if ipv6 {
            "/proc/self/net/ip6_tables_names"
        } else {
            "/proc/self/net/ip_tables_names"
        };
        match self.home() {
            Ok(Home::XTables) => {
                let names = fs::read_to_string(names).unwrap_or_default();
                names.lines().any(|name| name == "nat")
            }
            Ok(_) => true,
            Err(_) => false,
        }
    }

    fn list(self, ipv6: bool) -> Result<String, InitError> {
        let [program, _] = self.programs(ipv6);
        call(&find(program)?, &["-w", LOCK_WAIT, "-t", "nat", "-S"], None)
    }

    fn restore(self, ipv6: bool, script: &str) -> Result<(), InitError> {
        let [_, restore] = self.programs(ipv6);
        call(
            &find(restore)?,
            &["-w", LOCK_WAIT, "--noflush"],
            Some(script),
        )?;
        Ok(())
    }

    fn remove_family(self, ipv6: bool) -> Result<bool, InitError> {
        let removal = iptables_removal(&self.list(ipv6)?);
        if let Some(script) = &removal {
            self.restore(ipv6, script)?;
        }
        Ok(removal.is_some())
    }
}

/// The families in which our table exists.
fn nft_tables() -> Result<Vec<String>, InitError> {
    let listed = call(&find("nft")?, &["list", "tables"], None)?;
    let ours = listed.lines().filter_map(|line| {
        let family = line.trim().strip_prefix("table ")?.strip_suffix(TABLE)?;
        Some(family.strip_suffix(' ')?.to_owned())
    });
    Ok(ours.collect())
}

fn delete_nft_table(family: &str) -> Result<(), InitError> {
    call(&find("nft")?, &["delete", "table", family, TABLE], None)?;
    Ok(())
}

/// Whether a chain of the kernel jumps to ours, in what `iptables -S` printed.
fn is_hooked(listed: &str, (hook, chain): (&str, &str)) -> bool {
    let jump = format!("-A {hook} -p tcp -j {chain}");
    listed.lines().any(|line| line == jump)
}

/// What takes our chains out of what `iptables -S` printed, in one commit.
fn iptables_removal(listed: &str) -> Option<String> {
    let ours = [CHAIN_OUT, CHAIN_IN];
    let leads_to_us = |line: &&str| {
        let target = line.rsplit(' ').next().unwrap_or_default();
        ours.contains(&target) && line.starts_with("-A ")
    };
    let mut script = String::new();
    for line in listed.lines().filter(leads_to_us) {
        script.push_str(&line.replacen("-A", "-D", 1));
        script.push('\n');
    }
    for chain in ours {
        let created = format!("-N {chain}");
        if listed.lines().any(|line| line == created) {
            script.push_str(&format!("-F {chain}\n-X {chain}\n"));
        }
    }
    (!script.is_empty()).then(|| format!("*nat\n{script}COMMIT\n"))
}

/// The shape of our chains in a script for nft, or in its listing.
pub(super) fn nft_shape(text: &str) -> Shape {
    let mut chains: Vec<Chain> = Vec::new();
    let mut inside = false;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("chain ") {
            inside = true;
            chains.push(Chain {
                name: name.trim_end_matches(" {").to_owned(),
                hooked: false,
                rules: 0,
                redirects: Vec::new(),
            });
            continue;
        }
        inside &= line != "}";
        let Some(chain) = chains.last_mut().filter(|_| inside && !line.is_empty()) else {
            continue;
        };
        if line.starts_with("type nat hook ") {
            chain.hooked = true;
            continue;
        }
        chain.rules += 1;
        let port = line.split("redirect to :").nth(1);
        chain.redirects.extend(port.map(str::to_owned));
    }
    Shape(chains)
}

/// The shape of our chains in a script for iptables-restore, or in what `iptables -S` printed.
pub(super) fn iptables_shape(text: &str) -> Shape {
    let chains = HOOKS.map(|(hook, chain)| {
        let rules = text.lines().filter_map(|line| {
            let rule = line.strip_prefix("-A ")?.strip_prefix(chain)?;
            rule.strip_prefix(' ')
        });
        let ports = rules.clone().filter_map(|rule| {
            let port = rule.split("--to-ports ").nth(1)?;
            Some(port.trim().to_owned())
        });
        let jumps = [
            format!("-A {hook} -p tcp -j {chain}"),
            format!("-I {hook} 1 -p tcp -j {chain}"),
        ];
        Chain {
            name: chain.to_owned(),
            hooked: text
                .lines()
                .any(|line| jumps.iter().any(|jump| jump == line)),
            rules: rules.clone().count(),
            redirects: ports.collect(),
        }
    });
    Shape(
        chains
            .into_iter()
            .filter(|c| c.hooked || c.rules > 0)
            .collect(),
    )
}

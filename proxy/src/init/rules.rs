//! The rules as text, for nftables and for iptables-restore. Pure: what is tested is what is run.

use std::fmt::Write as _;

use super::{PROXY_PORTS, RuleArgs};

/// Our table and chains; nobody else's are touched.
pub(super) const TABLE: &str = "outrigger";
pub(super) const CHAIN_OUT: &str = "OUTRIGGER_OUTPUT";
pub(super) const CHAIN_IN: &str = "OUTRIGGER_INBOUND";
/// The kernel's chains and which of ours each jumps to.
pub(super) const HOOKS: [(&str, &str); 2] = [("OUTPUT", CHAIN_OUT), ("PREROUTING", CHAIN_IN)];

/// Which IP families are covered; at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Families {
    pub v4: bool,
    pub v6: bool,
}

impl Families {
    /// The covered ones, `true` for IPv6.
    pub(super) fn iter(self) -> impl Iterator<Item = bool> {
        let covered = [(self.v4, false), (self.v6, true)];
        covered
            .into_iter()
            .filter_map(|(on, ipv6)| on.then_some(ipv6))
    }

    /// How nftables calls a table for them. A kernel without IPv6 does not know `inet`.
    pub(super) const fn nft(self) -> &'static str {
        match (self.v4, self.v6) {
            (true, true) => "inet",
            (false, true) => "ip6",
            (_, false) => "ip",
        }
    }
}

/// What nftables calls the addresses of a family.
const fn daddr(ipv6: bool) -> &'static str {
    if ipv6 { "ip6 daddr" } else { "ip daddr" }
}

/// A transaction that replaces our whole table; nothing is ever half in force.
#[must_use]
pub fn nft_script(args: &RuleArgs, families: Families) -> String {
    let family = families.nft();
    let mut out = format!(
        "table {family} {TABLE}\n\
         delete table {family} {TABLE}\n\
         table {family} {TABLE} {{\n"
    );
    let mut chain = |name: &str, rules: &[String]| {
        // Writing to a string does not fail.
        let _done = writeln!(
            out,
            "  chain {name} {{\n    \
               type nat hook {name} priority -100; policy accept;\n    \
               meta l4proto != tcp return"
        );
        for rule in rules {
            let _done = writeln!(out, "    {rule}");
        }
        out.push_str("  }\n");
    };
    chain("output", &nft_output(args, families));
    chain("prerouting", &nft_prerouting(args));
    out.push_str("}\n");
    out
}

fn nft_output(args: &RuleArgs, families: Families) -> Vec<String> {
    let mut rules = Vec::new();
    let own = [
        ("mark", args.proxy_mark),
        ("skuid", args.uid()),
        ("skgid", args.proxy_gid),
    ];
    for (key, value) in own {
        rules.extend(value.map(|value| format!("meta {key} {value} return")));
    }
    let excluded = args.exclude_uids.iter();
    rules.extend(excluded.map(|uid| format!("meta skuid {uid} return")));
    for ipv6 in families.iter() {
        let loopback = if ipv6 { "::1" } else { "127.0.0.0/8" };
        rules.push(format!("oifname \"lo\" {} {loopback} return", daddr(ipv6)));
    }
    if !args.exclude_outbound_ports.is_empty() {
        let ports = &args.exclude_outbound_ports;
        rules.push(format!("tcp dport {{ {ports} }} return"));
    }
    for ipv6 in families.iter() {
        let excluded = args.exclude_outbound_cidrs.family(ipv6);
        rules.extend(excluded.map(|net| format!("{} {net} return", daddr(ipv6))));
    }
    let redirect = format!("meta l4proto tcp redirect to :{}", args.outbound_port);
    let included = &args.include_outbound_cidrs;
    if families.iter().all(|ipv6| included.is_all(ipv6)) {
        rules.push(redirect);
        return rules;
    }
    for ipv6 in families.iter() {
        let nets = included.family(ipv6);
        rules.extend(nets.map(|net| format!("{} {net} {redirect}", daddr(ipv6))));
    }
    rules
}

fn nft_prerouting(args: &RuleArgs) -> Vec<String> {
    let excluded = args.exclude_inbound_ports.with(&PROXY_PORTS);
    let included = &args.include_inbound_ports;
    let mut rules = vec![format!("tcp dport {{ {excluded} }} return")];
    if included.is_all() {
        rules.push(format!(
            "meta l4proto tcp redirect to :{}",
            args.inbound_port
        ));
    } else if !included.is_empty() {
        rules.push(format!(
            "tcp dport {{ {included} }} redirect to :{}",
            args.inbound_port
        ));
    }
    rules
}

/// Input for `iptables-restore --noflush` (or its IPv6 twin): our chains are emptied, filled and
/// hooked in by one commit. `hooked` says which of [`HOOKS`] jump to them already.
#[must_use]
pub fn iptables_script(args: &RuleArgs, ipv6: bool, hooked: [bool; 2]) -> String {
    let mut out = format!("*nat\n:{CHAIN_OUT} - [0:0]\n:{CHAIN_IN} - [0:0]\n");
    for rule in iptables_output(args, ipv6) {
        let _done = writeln!(out, "-A {CHAIN_OUT} {rule}");
    }
    for rule in iptables_prerouting(args) {
        let _done = writeln!(out, "-A {CHAIN_IN} {rule}");
    }
    for ((hook, chain), hooked) in HOOKS.into_iter().zip(hooked) {
        if !hooked {
            let _done = writeln!(out, "-I {hook} 1 -p tcp -j {chain}");
        }
    }
    out.push_str("COMMIT\n");
    out
}

fn iptables_output(args: &RuleArgs, ipv6: bool) -> Vec<String> {
    let mut rules = Vec::new();
    let owner = |kind: &str, id: u32| format!("-m owner --{kind}-owner {id} -j RETURN");
    rules.extend(
        args.proxy_mark
            .map(|mark| format!("-m mark --mark {mark} -j RETURN")),
    );
    rules.extend(args.uid().map(|uid| owner("uid", uid)));
    rules.extend(args.proxy_gid.map(|gid| owner("gid", gid)));
    rules.extend(args.exclude_uids.iter().map(|uid| owner("uid", *uid)));
    let loopback = if ipv6 { "::1/128" } else { "127.0.0.0/8" };
    rules.push(format!("-o lo -d {loopback} -j RETURN"));
    for range in args.exclude_outbound_ports.iter() {
        let ports = format!("{}:{}", range.start(), range.end());
        rules.push(format!("-p tcp --dport {ports} -j RETURN"));
    }
    let excluded = args.exclude_outbound_cidrs.family(ipv6);
    rules.extend(excluded.map(|net| format!("-d {net} -j RETURN")));
    let redirect = format!("-p tcp -j REDIRECT --to-ports {}", args.outbound_port);
    let included = &args.include_outbound_cidrs;
    if included.is_all(ipv6) {
        rules.push(redirect);
    } else {
        let nets = included.family(ipv6);
        rules.extend(nets.map(|net| format!("-d {net} {redirect}")));
    }
    rules
}

fn iptables_prerouting(args: &RuleArgs) -> Vec<String> {
    let excluded = args.exclude_inbound_ports.with(&PROXY_PORTS);
    let target = format!("-j REDIRECT --to-ports {}", args.inbound_port);
    let mut rules = Vec::new();
    for range in excluded.iter() {
        let ports = format!("{}:{}", range.start(), range.end());
        rules.push(format!("-p tcp --dport {ports} -j RETURN"));
    }
    let included = &args.include_inbound_ports;
    if included.is_all() {
        rules.push(format!("-p tcp {target}"));
        return rules;
    }
    for range in included.iter() {
        let ports = format!("{}:{}", range.start(), range.end());
        rules.push(format!("-p tcp --dport {ports} {target}"));
    }
    rules
}

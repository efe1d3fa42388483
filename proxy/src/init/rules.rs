//! The rules as text, for nftables and for iptables-restore. Pure: what is tested is what is run.

use std::fmt::Write as _;

use ipnet::IpNet;

use super::{InitArgs, PROXY_PORTS};

/// Our table and chains; nobody else's are touched.
pub(super) const TABLE: &str = "outrigger";
pub(super) const CHAIN_OUT: &str = "OUTRIGGER_OUTPUT";
pub(super) const CHAIN_IN: &str = "OUTRIGGER_INBOUND";

/// A transaction that replaces our whole table; nothing is ever half in force.
#[must_use]
pub fn nft_script(args: &InitArgs, ipv6: bool) -> String {
    let family = if ipv6 { "inet" } else { "ip" };
    let mut out = format!("table {family} {TABLE}\ndelete table {family} {TABLE}\n");
    if args.remove {
        return out;
    }
    let mut line = |text: &str| {
        out.push_str(text);
        out.push('\n');
    };
    line(&format!("table {family} {TABLE} {{"));
    line("  chain output {");
    line("    type nat hook output priority -100; policy accept;");
    line("    meta l4proto != tcp return");
    match args.proxy_mark {
        Some(mark) => line(&format!("    meta mark {mark} return")),
        None => line(&format!("    meta skuid {} return", args.proxy_uid)),
    }
    for uid in &args.exclude_uids {
        line(&format!("    meta skuid {uid} return"));
    }
    line("    oifname \"lo\" ip daddr 127.0.0.0/8 return");
    if ipv6 {
        line("    oifname \"lo\" ip6 daddr ::1 return");
    }
    for net in &args.exclude_outbound_cidrs {
        match net {
            IpNet::V4(net) => line(&format!("    ip daddr {net} return")),
            IpNet::V6(net) if ipv6 => line(&format!("    ip6 daddr {net} return")),
            IpNet::V6(_) => {}
        }
    }
    if !args.exclude_outbound_ports.is_empty() {
        line(&format!(
            "    tcp dport {{ {} }} return",
            args.exclude_outbound_ports
        ));
    }
    line(&format!(
        "    meta l4proto tcp redirect to :{}",
        args.outbound_port
    ));
    line("  }");
    line("  chain prerouting {");
    line("    type nat hook prerouting priority -100; policy accept;");
    line("    meta l4proto != tcp return");
    line(&format!(
        "    tcp dport {{ {} }} return",
        args.exclude_inbound_ports.with(&PROXY_PORTS)
    ));
    line(&format!(
        "    meta l4proto tcp redirect to :{}",
        args.inbound_port
    ));
    line("  }");
    line("}");
    out
}

/// Input for `iptables-restore --noflush` (or its IPv6 twin): our chains are emptied and filled in
/// one go, and hooked in by the caller.
#[must_use]
pub fn iptables_script(args: &InitArgs, ipv6: bool) -> String {
    let mut out = format!("*nat\n:{CHAIN_OUT} - [0:0]\n:{CHAIN_IN} - [0:0]\n");
    let mut rule = |chain: &str, text: &str| {
        // Writing to a string does not fail.
        let _done = writeln!(out, "-A {chain} {text}");
    };
    match args.proxy_mark {
        Some(mark) => rule(CHAIN_OUT, &format!("-m mark --mark {mark} -j RETURN")),
        None => rule(
            CHAIN_OUT,
            &format!("-m owner --uid-owner {} -j RETURN", args.proxy_uid),
        ),
    }
    for uid in &args.exclude_uids {
        rule(CHAIN_OUT, &format!("-m owner --uid-owner {uid} -j RETURN"));
    }
    let loopback = if ipv6 { "::1/128" } else { "127.0.0.0/8" };
    rule(CHAIN_OUT, &format!("-o lo -d {loopback} -j RETURN"));
    for net in &args.exclude_outbound_cidrs {
        if matches!(net, IpNet::V6(_)) == ipv6 {
            rule(CHAIN_OUT, &format!("-d {net} -j RETURN"));
        }
    }
    for range in args.exclude_outbound_ports.iter() {
        let ports = format!("{}:{}", range.start(), range.end());
        rule(CHAIN_OUT, &format!("-p tcp --dport {ports} -j RETURN"));
    }
    let to = |port| format!("-p tcp -j REDIRECT --to-ports {port}");
    rule(CHAIN_OUT, &to(args.outbound_port));
    for range in args.exclude_inbound_ports.with(&PROXY_PORTS).iter() {
        let ports = format!("{}:{}", range.start(), range.end());
        rule(CHAIN_IN, &format!("-p tcp --dport {ports} -j RETURN"));
    }
    rule(CHAIN_IN, &to(args.inbound_port));
    out.push_str("COMMIT\n");
    out
}

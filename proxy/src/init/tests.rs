//! Lists, the rules as text, what is read of them, and which namespace is the node's.
use clap::Parser;

use super::{
    backend::{iptables_shape, nft_shape},
    host::Facts,
    *,
};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: RuleArgs,
}

const BOTH: Families = Families { v4: true, v6: true };
const V4: Families = Families {
    v4: true,
    v6: false,
};
const EXCLUSIONS: &str = "--exclude-inbound-ports 9000 --exclude-outbound-ports 3306,5432-5440 \
     --exclude-outbound-cidrs 10.0.0.0/8,fd00::/8 --exclude-uids 0";

fn parse(text: &str) -> Result<RuleArgs, clap::Error> {
    let words = std::iter::once("init").chain(text.split_whitespace());
    Cli::try_parse_from(words).map(|cli| cli.args)
}

fn args(text: &str) -> RuleArgs {
    parse(text).expect(text)
}

#[test]
fn ku_09_port_lists_are_read_strictly() {
    for (text, want) in [
        ("", ""),
        (" ", ""),
        ("80", "80"),
        (" 80 , 443", "80, 443"),
        ("8000-8010", "8000-8010"),
        ("8000 - 8010", "8000-8010"),
        ("8000-8010,8005-8020,8021", "8000-8021"),
        ("8000-8010,8002-8003", "8000-8010"),
        ("80,80,80", "80"),
        ("65535,65534", "65534-65535"),
        ("1-65535", "1-65535"),
        ("*", "1-65535"),
        ("0080", "80"),
    ] {
        assert_eq!(parse_ports(text).expect(text).to_string(), want, "{text:?}");
    }
    for bad in [
        "0", "65536", "-1", "+80", "80-", "-80", "90-80", "0-80", "80-65536", "80,,81", "80,", ",",
        "http", "80;81", "80 81", "1-2-3", "*,80", "8.0", "0x50", "８０",
    ] {
        assert!(parse_ports(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn ku_09_networks_are_read_strictly() {
    let nets = |text: &str| {
        let set = parse_nets(text).expect(text);
        let both = [false, true].map(|ipv6| set.family(ipv6).map(ToString::to_string).collect());
        let [v4, v6]: [Vec<_>; 2] = both;
        [v4.join(" "), v6.join(" ")]
    };
    for (text, v4, v6) in [
        ("", "", ""),
        ("*", "0.0.0.0/0", "::/0"),
        ("10.1.2.3/8", "10.0.0.0/8", ""),
        ("192.0.2.7", "192.0.2.7/32", ""),
        (
            "10.0.0.0/8, 10.1.0.0/16 ,fd00::1/8",
            "10.0.0.0/8",
            "fd00::/8",
        ),
        ("0.0.0.0/0,10.0.0.0/8", "0.0.0.0/0", ""),
    ] {
        assert_eq!(nets(text), [v4, v6], "{text:?}");
    }
    for bad in [
        "10.0.0.0/33",
        "10.0.0",
        "fd00::/129",
        "10.0.0.0/8,",
        "all",
        "*,::/0",
    ] {
        assert!(parse_nets(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn ku_09_settings_that_would_let_everything_pass_are_refused() {
    for bad in [
        "--outbound-port 0",
        "--inbound-port 0",
        "--proxy-mark 0",
        "--exclude-uids root",
        "--exclude-uids -1",
        "--exclude-uids 1,,2",
    ] {
        assert!(parse(bad).is_err(), "{bad}");
    }
    assert_eq!(parse_ids(" 1000,0,1000").expect("good"), Ids(vec![0, 1000]));
}

#[test]
fn the_proxy_is_told_by_user_unless_something_else_is_given() {
    assert_eq!(args("").uid(), Some(PROXY_UID));
    assert_eq!(args("--proxy-mark 7").uid(), None);
    assert_eq!(args("--proxy-gid 7").uid(), None);
    assert_eq!(args("--proxy-mark 7 --proxy-uid 0").uid(), Some(0));
}

#[test]
fn ku_12_only_tcp_is_redirected_and_loopback_is_left_alone() {
    assert_eq!(
        nft_script(&args("--proxy-mark 7"), BOTH),
        "table inet outrigger
delete table inet outrigger
table inet outrigger {
  chain output {
    type nat hook output priority -100; policy accept;
    meta l4proto != tcp return
    meta mark 7 return
    oifname \"lo\" ip daddr 127.0.0.0/8 return
    oifname \"lo\" ip6 daddr ::1 return
    meta l4proto tcp redirect to :15001
  }
  chain prerouting {
    type nat hook prerouting priority -100; policy accept;
    meta l4proto != tcp return
    tcp dport { 15000, 15020-15021, 15090 } return
    meta l4proto tcp redirect to :15006
  }
}
"
    );
}

#[test]
fn ku_09_exclusions_come_before_the_redirect() {
    assert_eq!(
        nft_script(&args(EXCLUSIONS), V4),
        "table ip outrigger
delete table ip outrigger
table ip outrigger {
  chain output {
    type nat hook output priority -100; policy accept;
    meta l4proto != tcp return
    meta skuid 1337 return
    meta skuid 0 return
    oifname \"lo\" ip daddr 127.0.0.0/8 return
    tcp dport { 3306, 5432-5440 } return
    ip daddr 10.0.0.0/8 return
    meta l4proto tcp redirect to :15001
  }
  chain prerouting {
    type nat hook prerouting priority -100; policy accept;
    meta l4proto != tcp return
    tcp dport { 9000, 15000, 15020-15021, 15090 } return
    meta l4proto tcp redirect to :15006
  }
}
"
    );
    let v4 = iptables_script(&args(EXCLUSIONS), false, [false, true]);
    assert_eq!(
        v4,
        "*nat
:OUTRIGGER_OUTPUT - [0:0]
:OUTRIGGER_INBOUND - [0:0]
-A OUTRIGGER_OUTPUT -m owner --uid-owner 1337 -j RETURN
-A OUTRIGGER_OUTPUT -m owner --uid-owner 0 -j RETURN
-A OUTRIGGER_OUTPUT -o lo -d 127.0.0.0/8 -j RETURN
-A OUTRIGGER_OUTPUT -p tcp --dport 3306:3306 -j RETURN
-A OUTRIGGER_OUTPUT -p tcp --dport 5432:5440 -j RETURN
-A OUTRIGGER_OUTPUT -d 10.0.0.0/8 -j RETURN
-A OUTRIGGER_OUTPUT -p tcp -j REDIRECT --to-ports 15001
-A OUTRIGGER_INBOUND -p tcp --dport 9000:9000 -j RETURN
-A OUTRIGGER_INBOUND -p tcp --dport 15000:15000 -j RETURN
-A OUTRIGGER_INBOUND -p tcp --dport 15020:15021 -j RETURN
-A OUTRIGGER_INBOUND -p tcp --dport 15090:15090 -j RETURN
-A OUTRIGGER_INBOUND -p tcp -j REDIRECT --to-ports 15006
-I OUTPUT 1 -p tcp -j OUTRIGGER_OUTPUT
COMMIT
"
    );
    let v6 = iptables_script(&args(EXCLUSIONS), true, [false, false]);
    assert!(v6.contains("-d fd00::/8 -j RETURN") && !v6.contains("10.0.0.0"));
}

#[test]
fn what_is_included_is_all_that_is_redirected() {
    let args = args(
        "--proxy-gid 9 --include-outbound-cidrs 10.96.0.0/12,fd00::/8 \
         --include-inbound-ports 80,8000-8010 --outbound-port 1 --inbound-port 2",
    );
    let nft = nft_script(&args, BOTH);
    let rules: Vec<_> = nft
        .lines()
        .filter(|line| line.contains("redirect") || line.contains("skgid"))
        .map(str::trim)
        .collect();
    let want = [
        "meta skgid 9 return",
        "ip daddr 10.96.0.0/12 meta l4proto tcp redirect to :1",
        "ip6 daddr fd00::/8 meta l4proto tcp redirect to :1",
        "tcp dport { 80, 8000-8010 } redirect to :2",
    ];
    assert_eq!(rules, want);
    let iptables = iptables_script(&args, true, [true, true]);
    let rules: Vec<_> = iptables
        .lines()
        .filter(|l| l.contains("REDIRECT"))
        .collect();
    let want = [
        "-A OUTRIGGER_OUTPUT -d fd00::/8 -p tcp -j REDIRECT --to-ports 1",
        "-A OUTRIGGER_INBOUND -p tcp --dport 80:80 -j REDIRECT --to-ports 2",
        "-A OUTRIGGER_INBOUND -p tcp --dport 8000:8010 -j REDIRECT --to-ports 2",
    ];
    assert_eq!(rules, want);
}

#[test]
fn nothing_included_is_nothing_redirected() {
    let args = args("--include-inbound-ports= --include-outbound-cidrs=");
    let nft = nft_script(&args, BOTH);
    let iptables = iptables_script(&args, false, [false, false]);
    assert!(!nft.contains("redirect"), "{nft}");
    assert!(!iptables.contains("REDIRECT"), "{iptables}");
}

/// As nft 1.0.6 and iptables 1.8.9 print the rules of [`EXCLUSIONS`].
const NFT_LISTING: &str = "table ip outrigger {
\tchain output {
\t\ttype nat hook output priority dstnat; policy accept;
\t\tmeta l4proto != tcp return
\t\tmeta skuid 1337 return
\t\tmeta skuid 0 return
\t\toifname \"lo\" ip daddr 127.0.0.0/8 return
\t\ttcp dport { 3306, 5432-5440 } return
\t\tip daddr 10.0.0.0/8 return
\t\tmeta l4proto tcp redirect to :15001
\t}

\tchain prerouting {
\t\ttype nat hook prerouting priority dstnat; policy accept;
\t\tmeta l4proto != tcp return
\t\ttcp dport { 9000, 15000, 15020-15021, 15090 } return
\t\tmeta l4proto tcp redirect to :15006
\t}
}
";
const IPTABLES_LISTING: &str = "-P PREROUTING ACCEPT
-P INPUT ACCEPT
-P OUTPUT ACCEPT
-P POSTROUTING ACCEPT
-N OUTRIGGER_INBOUND
-N OUTRIGGER_OUTPUT
-A PREROUTING -p tcp -j OUTRIGGER_INBOUND
-A OUTPUT -p tcp -j OUTRIGGER_OUTPUT
-A OUTRIGGER_INBOUND -p tcp -m tcp --dport 9000 -j RETURN
-A OUTRIGGER_INBOUND -p tcp -m tcp --dport 15000 -j RETURN
-A OUTRIGGER_INBOUND -p tcp -m tcp --dport 15020:15021 -j RETURN
-A OUTRIGGER_INBOUND -p tcp -m tcp --dport 15090 -j RETURN
-A OUTRIGGER_INBOUND -p tcp -j REDIRECT --to-ports 15006
-A OUTRIGGER_OUTPUT -m owner --uid-owner 1337 -j RETURN
-A OUTRIGGER_OUTPUT -m owner --uid-owner 0 -j RETURN
-A OUTRIGGER_OUTPUT -d 127.0.0.0/8 -o lo -j RETURN
-A OUTRIGGER_OUTPUT -p tcp -m tcp --dport 3306 -j RETURN
-A OUTRIGGER_OUTPUT -p tcp -m tcp --dport 5432:5440 -j RETURN
-A OUTRIGGER_OUTPUT -d 10.0.0.0/8 -j RETURN
-A OUTRIGGER_OUTPUT -p tcp -j REDIRECT --to-ports 15001
";

#[test]
fn ku_07_what_is_read_back_is_compared_with_what_was_written() {
    let args = args(EXCLUSIONS);
    let want = nft_shape(&nft_script(&args, V4));
    assert_eq!(nft_shape(NFT_LISTING), want);
    assert_eq!(
        want.to_string(),
        "output: 7 rules to port 15001; prerouting: 3 rules to port 15006"
    );
    for lost in NFT_LISTING.lines().filter(|line| line.starts_with("\t\t")) {
        let listing = NFT_LISTING.replacen(&format!("{lost}\n"), "", 1);
        assert_ne!(nft_shape(&listing), want, "without {lost}");
    }
    assert_ne!(nft_shape(&NFT_LISTING.replace("15006", "15007")), want);

    let want = iptables_shape(&iptables_script(&args, false, [false, false]));
    assert_eq!(iptables_shape(IPTABLES_LISTING), want);
    for lost in IPTABLES_LISTING
        .lines()
        .filter(|line| line.starts_with("-A"))
    {
        let listing = IPTABLES_LISTING.replacen(&format!("{lost}\n"), "", 1);
        assert_ne!(iptables_shape(&listing), want, "without {lost}");
    }
    assert_eq!(iptables_shape("-P OUTPUT ACCEPT\n").to_string(), "nothing");
}

#[test]
fn ku_08_the_network_of_the_node_is_known() {
    let pod = Facts {
        own: Some("net:[4026532180]".into()),
        first: Some("net:[4026532180]".into()),
        init: "pause".to_owned(),
        interfaces: ["lo", "eth0", "tunl0", "net1"].map(str::to_owned).to_vec(),
    };
    assert_eq!(pod.host_network(), None);
    let shared_ids = Facts {
        first: Some("net:[4026531840]".into()),
        init: "systemd".to_owned(),
        ..pod.clone()
    };
    assert_eq!(shared_ids.host_network(), None);
    let unreadable = Facts {
        first: None,
        ..pod.clone()
    };
    assert_eq!(unreadable.host_network(), None);

    let first = Facts {
        own: Some("net:[4026531833]".into()),
        ..pod.clone()
    };
    let machine = Facts {
        init: "systemd".to_owned(),
        ..pod.clone()
    };
    let mut nodes = vec![first, machine];
    for interface in ["cni0", "docker0", "veth3f2a1c0", "cali123", "lxc_health"] {
        let mut node = pod.clone();
        node.interfaces.push(interface.to_owned());
        nodes.push(node);
    }
    for node in nodes {
        assert!(node.host_network().is_some(), "{node:?}");
    }
}

#[test]
fn who_listens_is_read_from_the_kernels_table() {
    // As Linux 6.1 prints it: one that listens, one connection, one that listens in IPv6.
    let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid
   0: 00000000:3A99 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1
   1: 0100007F:3A9E 0100007F:1234 01 00000000:00000000 00:00000000 00000000     0        0 2
   2: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0";
    assert!(sidecar::listens(table, 15001));
    assert!(sidecar::listens(table, 80));
    assert!(
        !sidecar::listens(table, 15006),
        "a connection, not a listener"
    );
    assert!(!sidecar::listens(table, 0x1234));
    assert!(!sidecar::listens("", 80));
}

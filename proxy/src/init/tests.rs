//! Lists of ports, and the rules as text.
use clap::Parser;

use super::*;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: InitArgs,
}

fn args(text: &str) -> InitArgs {
    let words = std::iter::once("init").chain(text.split_whitespace());
    Cli::try_parse_from(words).expect(text).args
}

#[test]
fn ku_09_port_lists_are_read_strictly() {
    for (text, want) in [
        ("", ""),
        ("80", "80"),
        (" 80 , 443", "80, 443"),
        ("8000-8010", "8000-8010"),
        ("8000-8010,8005-8020,8021", "8000-8021"),
        ("80,80,80", "80"),
        ("65535,65534", "65534-65535"),
    ] {
        assert_eq!(parse_ports(text).expect(text).to_string(), want, "{text:?}");
    }
    for bad in [
        "0", "65536", "-1", "80-", "-80", "90-80", "80,,81", "http", "80;81", "1-2-3",
    ] {
        assert!(parse_ports(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn ku_12_only_tcp_is_redirected_and_loopback_is_left_alone() {
    let script = nft_script(&args("--proxy-mark 7"), true);
    assert_eq!(
        script,
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
    let args = args(
        "--exclude-inbound-ports 9000 --exclude-outbound-ports 3306,5432 \
         --exclude-outbound-cidrs 10.0.0.0/8,fd00::/8 --exclude-uids 0",
    );
    let script = iptables_script(&args, false);
    assert_eq!(
        script,
        "*nat
:OUTRIGGER_OUTPUT - [0:0]
:OUTRIGGER_INBOUND - [0:0]
-A OUTRIGGER_OUTPUT -m owner --uid-owner 1337 -j RETURN
-A OUTRIGGER_OUTPUT -m owner --uid-owner 0 -j RETURN
-A OUTRIGGER_OUTPUT -o lo -d 127.0.0.0/8 -j RETURN
-A OUTRIGGER_OUTPUT -d 10.0.0.0/8 -j RETURN
-A OUTRIGGER_OUTPUT -p tcp --dport 3306:3306 -j RETURN
-A OUTRIGGER_OUTPUT -p tcp --dport 5432:5432 -j RETURN
-A OUTRIGGER_OUTPUT -p tcp -j REDIRECT --to-ports 15001
-A OUTRIGGER_INBOUND -p tcp --dport 9000:9000 -j RETURN
-A OUTRIGGER_INBOUND -p tcp --dport 15000:15000 -j RETURN
-A OUTRIGGER_INBOUND -p tcp --dport 15020:15021 -j RETURN
-A OUTRIGGER_INBOUND -p tcp --dport 15090:15090 -j RETURN
-A OUTRIGGER_INBOUND -p tcp -j REDIRECT --to-ports 15006
COMMIT
"
    );
    assert!(iptables_script(&args, true).contains("-d fd00::/8 -j RETURN"));
    let nft = nft_script(&args, false);
    assert!(nft.contains("tcp dport { 3306, 5432 } return") && !nft.contains("ip6"));
}

#[test]
fn removing_leaves_no_table() {
    let script = nft_script(&args("--remove"), true);
    assert_eq!(
        script,
        "table inet outrigger\ndelete table inet outrigger\n"
    );
}

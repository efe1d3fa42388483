//! The redirect rules by themselves: every backend, both families, with real connections that end
//! in a trap instead of a proxy.

use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt as _, process::Command};

use outrigger_tests::{
    bin, mesh_test,
    netns::{MARK, Mesh, Pod, run_as_nobody, texts, until},
};

use crate::support::{PATIENCE, control_plane, proxy, sidecar};

const BACKENDS: [&str; 3] = ["nft", "iptables", "iptables-legacy"];
const MARKED: &str = "--proxy-mark=1337";
/// Nobody has these.
const NOWHERE: &str = "10.9.9.9:1234";
const NOWHERE6: &str = "[fd99::9]:1234";

/// Listens on both redirect ports of a pod and on some of an application.
fn trap(mesh: &mut Mesh, pod: &Pod) {
    let ports = [15001, 15006, 15020, 8080, 9000, 53];
    let listen: Vec<_> = ports.iter().map(|port| format!("[::]:{port}")).collect();
    let mut trap = Command::new(bin("outrigger-testapp"));
    trap.args(["trap", "--listen", &listen.join(",")]);
    mesh.spawn_in(pod, "trap", &trap);
    let log = format!("{}-trap", pod.name);
    until("the trap", PATIENCE, || {
        mesh.log(&log).contains("ready").then_some(())
    });
}

/// Dials, and gives what was answered or why not.
fn dial(pod: &Pod, to: &str, more: &[&str]) -> String {
    let mut dial = Command::new(bin("outrigger-testapp"));
    dial.args(["dial", "--to", to]).args(more);
    let (code, out, err) = texts(&pod.output(&dial));
    if code == Some(0) {
        out.trim().to_owned()
    } else {
        format!("failed: {}", err.trim())
    }
}

/// That TCP to `to` ends at `port` of this pod, knowing where it was going.
fn assert_caught(pod: &Pod, to: &str, port: u16) {
    assert_eq!(dial(pod, to, &[]), format!("{port} {to}"));
}

fn at(pod: &Pod, ipv6: bool, port: u16) -> String {
    if ipv6 {
        SocketAddr::from((pod.ip6, port)).to_string()
    } else {
        SocketAddr::from((pod.ip, port)).to_string()
    }
}

fn init(pod: &Pod, words: &[&str]) -> String {
    let (code, out, err) = pod.init(&[MARKED], words);
    assert_eq!(code, Some(0), "init {words:?}: {out}{err}");
    out
}

/// Runs init where it has to fail; what it says.
fn init_fails(pod: &Pod, words: &[&str]) -> String {
    let (code, out, err) = pod.init(&[MARKED], words);
    assert_eq!(code, Some(1), "init {words:?}: {out}{err}");
    err
}

/// Runs `outrigger-proxy check`: whether it passed, and what it printed.
fn check(pod: &Pod, words: &[&str]) -> (bool, String) {
    let mut check = Command::new(bin("outrigger-proxy"));
    check.args(["check", "--rules-only", MARKED]).args(words);
    let (code, out, err) = texts(&pod.output(&check));
    (code == Some(0), format!("{out}{err}"))
}

/// A folder with a program of that name before all others, in place of the real one.
fn fake(mesh: &Mesh, programs: &[&str], script: &str) -> String {
    let dir = mesh.dir.join(format!("fake-{}", programs.join("-")));
    fs::create_dir_all(&dir).expect("made");
    for program in programs {
        let file = dir.join(program);
        fs::write(&file, format!("#!/bin/sh\n{script}\n")).expect("written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("made executable");
    }
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{}:{path}:/usr/sbin:/sbin", dir.display())
}

/// Init with a PATH of its own.
fn init_with_path(pod: &Pod, path: &str, words: &[&str]) -> (Option<i32>, String, String) {
    let mut init = Command::new(bin("outrigger-proxy"));
    init.args(["init", MARKED]).args(words).env("PATH", path);
    texts(&pod.output(&init))
}

mesh_test!(
    ku_07_each_backend_redirects_both_families_both_ways,
    mesh,
    {
        let peer = mesh.pod("peer");
        trap(mesh, &peer);
        for backend in BACKENDS {
            let pod = mesh.pod(backend);
            trap(mesh, &pod);
            let said = init(&pod, &["--backend", backend]);
            for line in [
                format!("({backend}, IPv4 and IPv6)"),
                "IPv4: a connection to 192.0.2.1:9 was".to_owned(),
                "IPv6: a connection to [2001:db8::1]:9 was".to_owned(),
            ] {
                assert!(said.contains(&line), "{said}");
            }
            for to in [NOWHERE, NOWHERE6] {
                assert_caught(&pod, to, 15001);
            }
            for ipv6 in [false, true] {
                // Out: what another pod serves is not reached directly, but for the proxy.
                let served = at(&peer, ipv6, 8080);
                assert_caught(&pod, &served, 15001);
                let mark = MARK.to_string();
                assert_eq!(dial(&pod, &served, &["--mark", &mark]), "8080 -");
                // In: from elsewhere, but for the proxy's own ports.
                assert_caught(&peer, &at(&pod, ipv6, 8080), 15006);
                assert_eq!(dial(&peer, &at(&pod, ipv6, 15020), &[]), "15020 -");
                // A pod that calls itself goes through its proxy (KU-13), which is not caught
                // when it goes on to the application.
                let own = at(&pod, ipv6, 8080);
                assert_caught(&pod, &own, 15001);
                assert_eq!(dial(&pod, &own, &["--mark", &mark]), "8080 -");
            }
            // The loopback is left alone.
            assert_eq!(dial(&pod, "127.0.0.1:8080", &[]), "8080 -");
            assert_eq!(dial(&pod, "[::1]:8080", &[]), "8080 -");
        }
    }
);

mesh_test!(ku_12_udp_passes_both_ways, mesh, {
    let peer = mesh.pod("peer");
    trap(mesh, &peer);
    for backend in BACKENDS {
        let pod = mesh.pod(backend);
        trap(mesh, &pod);
        init(&pod, &["--backend", backend]);
        for ipv6 in [false, true] {
            let udp = ["--udp", "1"];
            assert_eq!(dial(&pod, &at(&peer, ipv6, 53), &udp), "udp 53");
            assert_eq!(dial(&peer, &at(&pod, ipv6, 8080), &udp), "udp 8080");
            // DNS over TCP goes through the proxy like all TCP.
            assert_caught(&pod, &at(&peer, ipv6, 53), 15001);
        }
    }
});

mesh_test!(ku_09_what_is_excluded_is_left_alone, mesh, {
    let peer = mesh.pod("peer");
    trap(mesh, &peer);
    for backend in BACKENDS {
        let pod = mesh.pod(backend);
        trap(mesh, &pod);
        let ports = ["--exclude-outbound-ports", "8080-8090,53"];
        let inbound = ["--exclude-inbound-ports", "8000-8100"];
        init(
            &pod,
            &[&["--backend", backend][..], &ports, &inbound].concat(),
        );
        for ipv6 in [false, true] {
            assert_eq!(dial(&pod, &at(&peer, ipv6, 8080), &[]), "8080 -");
            assert_eq!(dial(&pod, &at(&peer, ipv6, 53), &[]), "53 -");
            assert_caught(&pod, &at(&peer, ipv6, 9000), 15001);
            assert_eq!(dial(&peer, &at(&pod, ipv6, 8080), &[]), "8080 -");
            assert_caught(&peer, &at(&pod, ipv6, 9000), 15006);
        }
        let cidrs = ["--exclude-outbound-cidrs", "10.77.0.0/16,fd77::/64"];
        init(&pod, &[&["--backend", backend][..], &cidrs].concat());
        for ipv6 in [false, true] {
            // Rules of before are gone, those of now are there.
            assert_eq!(dial(&pod, &at(&peer, ipv6, 9000), &[]), "9000 -");
            assert_caught(&peer, &at(&pod, ipv6, 8080), 15006);
        }
        assert_caught(&pod, NOWHERE, 15001);
        assert_caught(&pod, NOWHERE6, 15001);

        let only = ["--include-outbound-cidrs", "10.9.0.0/16,fd99::/16"];
        let inbound = ["--include-inbound-ports", "9000"];
        init(
            &pod,
            &[&["--backend", backend][..], &only, &inbound].concat(),
        );
        for ipv6 in [false, true] {
            assert_eq!(dial(&pod, &at(&peer, ipv6, 9000), &[]), "9000 -");
            assert_eq!(dial(&peer, &at(&pod, ipv6, 8080), &[]), "8080 -");
            assert_caught(&peer, &at(&pod, ipv6, 9000), 15006);
        }
        assert_caught(&pod, NOWHERE, 15001);
        assert_caught(&pod, NOWHERE6, 15001);

        // Tests have one user only, and without it nothing is left to redirect.
        let said = init(&pod, &["--backend", backend, "--exclude-uids", "0"]);
        let why = "IPv4: not tried by traffic: connections of user 0 are not redirected";
        assert!(said.contains(why), "{said}");
        assert_eq!(dial(&pod, &at(&peer, false, 9000), &[]), "9000 -");
    }
});

mesh_test!(rules_are_replaced_and_removed_whole, mesh, {
    let pod = mesh.pod("pod");
    trap(mesh, &pod);
    let dump = "nft list ruleset; iptables-legacy-save -t nat; ip6tables-legacy-save -t nat";
    let rules = |pod: &Pod| {
        let (_, out, _) = pod.sh(dump);
        let ours = out.lines().filter(|line| line.contains("1500"));
        ours.count()
    };
    for backend in BACKENDS {
        init(&pod, &["--backend", backend]);
        let once = rules(&pod);
        let said = init(&pod, &["--backend", backend]);
        assert!(!said.contains("replaced"), "{said}");
        assert_eq!(rules(&pod), once, "{backend} again");
        assert_caught(&pod, NOWHERE, 15001);
    }
    // Each backend took out what the one before had put in.
    let said = init(&pod, &["--backend", "nft"]);
    assert!(
        said.contains("replaced the rules of iptables-legacy"),
        "{said}"
    );
    let said = init(&pod, &["--ipv6", "off"]);
    assert!(said.contains("(nft, IPv4)"), "{said}");
    assert_caught(&pod, NOWHERE, 15001);
    assert!(dial(&pod, NOWHERE6, &[]).starts_with("failed"));

    let said = init(&pod, &["--remove"]);
    assert_eq!(said, "redirect rules removed (nft)\n");
    assert_eq!(rules(&pod), 0, "{}", pod.sh(dump).1);
    assert!(dial(&pod, NOWHERE, &[]).starts_with("failed"));
    assert_eq!(init(&pod, &["--remove"]), "there were no redirect rules\n");
});

mesh_test!(ku_07_the_first_backend_that_works_is_taken, mesh, {
    let said = |mesh: &mut Mesh, name: &str, path: Option<&str>| {
        let pod = mesh.pod(name);
        trap(mesh, &pod);
        let (code, out, err) = match path {
            Some(path) => init_with_path(&pod, path, &[]),
            None => pod.init(&[MARKED], &[]),
        };
        assert_eq!(code, Some(0), "{out}{err}");
        assert_caught(&pod, NOWHERE, 15001);
        assert_caught(&pod, NOWHERE6, 15001);
        out
    };
    let all = said(mesh, "all", None);
    assert!(all.contains("(nft, IPv4 and IPv6)"), "{all}");
    let refusing = fake(mesh, &["nft"], "echo 'Operation not supported' >&2; exit 1");
    let out = said(mesh, "nft-fails", Some(&refusing));
    assert!(out.contains("(iptables, IPv4 and IPv6)"), "{out}");
    // Takes everything and does nothing.
    let silent = fake(mesh, &["nft"], "cat >/dev/null");
    let out = said(mesh, "nft-lies", Some(&silent));
    assert!(out.contains("(iptables, IPv4 and IPv6)"), "{out}");
    mesh.hide("nft");
    let out = said(mesh, "no-nft", None);
    assert!(out.contains("(iptables, IPv4 and IPv6)"), "{out}");
    for program in ["iptables", "ip6tables"] {
        mesh.hide(program);
    }
    let out = said(mesh, "legacy-only", None);
    assert!(out.contains("(iptables-legacy, IPv4 and IPv6)"), "{out}");
});

mesh_test!(ku_07_rules_that_are_not_in_force_are_an_error, mesh, {
    let pod = mesh.pod("pod");
    let liar = fake(
        mesh,
        &[
            "iptables",
            "iptables-restore",
            "ip6tables",
            "ip6tables-restore",
        ],
        "cat >/dev/null; echo 'iptables v1.8.9 (nf_tables)'",
    );
    let (code, _, err) = init_with_path(&pod, &liar, &["--backend", "iptables"]);
    assert_eq!(code, Some(1), "{err}");
    assert!(
        err.contains("reading them back shows otherwise: there is nothing"),
        "{err}"
    );

    // IPv6 would get past (linkerd/linkerd2-proxy-init#388).
    let script = "echo 'ip6tables: no nat table here' >&2; exit 3";
    let no_v6 = fake(mesh, &["ip6tables-restore"], script);
    let (code, _, err) = init_with_path(&pod, &no_v6, &["--backend", "iptables"]);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("ip6tables: no nat table here"), "{err}");
    let words = ["--backend", "iptables", "--ipv6", "off"];
    let (code, out, err) = init_with_path(&pod, &no_v6, &words);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("(iptables, IPv4)"), "{out}");
    init(&pod, &["--remove"]);

    // The rules are there, but connections are kept from them.
    let untracked = "nft add table inet early && nft add chain inet early out \
         '{ type filter hook output priority raw; }' && \
         nft add rule inet early out tcp dport 9 notrack";
    let (code, _, err) = pod.sh(untracked);
    assert_eq!(code, Some(0), "{err}");
    for backend in BACKENDS {
        let err = init_fails(&pod, &["--backend", backend]);
        assert!(err.contains("but a connection was not redirected"), "{err}");
        assert!(err.contains("192.0.2.1:9"), "{err}");
        let (passed, list) = check(&pod, &["--backend", backend]);
        assert!(!passed && list.contains("BAD   IPv4 traffic"), "{list}");
        init(&pod, &["--backend", backend, "--verify=false"]);
    }
});

mesh_test!(ku_07_without_ipv6_only_ipv4_is_covered, mesh, {
    for backend in BACKENDS {
        let pod = mesh.pod(backend);
        trap(mesh, &pod);
        let off = "for f in /proc/sys/net/ipv6/conf/*/disable_ipv6; do echo 1 > $f; done";
        let (code, _, err) = pod.sh(off);
        assert_eq!(code, Some(0), "{err}");
        let said = init(&pod, &["--backend", backend]);
        assert!(said.contains(&format!("({backend}, IPv4)")), "{said}");
        assert_caught(&pod, NOWHERE, 15001);
        let (passed, list) = check(&pod, &["--backend", backend]);
        assert!(passed && !list.contains("IPv6"), "{list}");
    }
    // IPv6 without a way out is covered, and nothing can be tried.
    let pod = mesh.pod("local");
    let (code, _, err) = pod.sh("ip -6 addr flush dev eth0; ip -6 route flush default");
    assert_eq!(code, Some(0), "{err}");
    let said = init(&pod, &[]);
    assert!(said.contains("IPv6: nothing gets out"), "{said}");
    let (passed, list) = check(&pod, &[]);
    assert!(passed, "{list}");
});

mesh_test!(ku_07_without_a_route_a_pod_still_proves_its_rules, mesh, {
    let pod = mesh.pod("pod");
    let (code, _, err) = pod.sh("ip route del default && ip -6 route del default");
    assert_eq!(code, Some(0), "{err}");
    let said = init(&pod, &[]);
    for ipv6 in [false, true] {
        let own = format!("a connection to {} was redirected", at(&pod, ipv6, 9));
        assert!(said.contains(&own), "{said}");
    }
});

mesh_test!(ku_08_the_network_of_the_node_is_left_alone, mesh, {
    let pod = mesh.pod("pod");
    let untouched = |pod: &Pod| {
        let (_, out, _) = pod.sh("nft list ruleset; iptables-legacy-save -t nat");
        assert!(!out.contains("1500"), "{out}");
    };
    // A network plug-in's bridge.
    let (code, _, err) = pod.sh("ip link add cni0 type bridge");
    assert_eq!(code, Some(0), "{err}");
    let err = init_fails(&pod, &[]);
    assert!(err.contains("node's own network namespace"), "{err}");
    assert!(
        err.contains("cni0") && err.contains("--allow-host-network"),
        "{err}"
    );
    untouched(&pod);
    let (passed, list) = check(&pod, &[]);
    assert!(
        !passed && list.contains("BAD   network namespace: the node's"),
        "{list}"
    );
    let (code, ..) = pod.sh("ip link del cni0");
    assert_eq!(code, Some(0));

    // Process 1 is the machine's, and the network is its own.
    let systemd = mesh.dir.join("systemd");
    std::os::unix::fs::symlink("/bin/sh", &systemd).expect("a link");
    let inside = |tail: &str| {
        let proxy = bin("outrigger-proxy");
        let line = format!(
            "unshare -pf --mount-proc {} -c '{} init {MARKED}{tail}; exit $?'",
            systemd.display(),
            proxy.display()
        );
        pod.sh(&line)
    };
    let (code, _, err) = inside("");
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("that of process 1, systemd"), "{err}");
    untouched(&pod);
    // A pod that only sees the node's processes is a pod.
    let (code, out, err) = pod.sh(&format!(
        "unshare -n -- sh -c 'ip link set lo up; {} init {MARKED}'",
        bin("outrigger-proxy").display()
    ));
    assert_eq!(code, Some(0), "{out}{err}");
    let (code, out, err) = inside(" --allow-host-network");
    assert_eq!(code, Some(0), "{out}{err}");
    init(&pod, &["--remove"]);
    // Otherwise it is a pod as any other.
    init(&pod, &[]);
});

mesh_test!(ku_06_check_tells_whether_traffic_is_redirected, mesh, {
    let pod = mesh.pod("pod");
    let (passed, list) = check(&pod, &[]);
    assert!(!passed, "{list}");
    for line in [
        "ok    network namespace: a pod's own, with lo, eth0",
        "BAD   rules: there are none",
        "BAD   IPv4 traffic: dialling 192.0.2.1:9: ",
        "BAD   IPv6 traffic: dialling ",
        "3 things are wrong",
    ] {
        assert!(list.contains(line), "no {line:?} in\n{list}");
    }
    for backend in BACKENDS {
        init(&pod, &["--backend", backend]);
        let (passed, list) = check(&pod, &[]);
        assert!(passed, "{list}");
        for line in [
            format!("ok    rules: as they should be ({backend}, IPv4 and IPv6)"),
            "ok    IPv4 traffic: a connection to 192.0.2.1:9 was redirected".to_owned(),
            "ok    IPv6 traffic: a connection to [2001:db8::1]:9 was redirected".to_owned(),
        ] {
            assert!(list.contains(&line), "no {line:?} in\n{list}");
        }
        // Rules for other settings than these.
        let (passed, list) = check(&pod, &["--exclude-outbound-ports", "443"]);
        assert!(!passed && list.contains("BAD   rules: "), "{list}");
        assert!(list.contains("it should be"), "{list}");
    }
    // Without privilege, what traffic shows is enough.
    let bare = format!(
        "setpriv --bounding-set=-all --inh-caps=-all --ambient-caps=-all \
         {} check --rules-only {MARKED}",
        bin("outrigger-proxy").display()
    );
    let (code, out, err) = pod.sh(&bare);
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(
        out.contains("note  rules: cannot be read without CAP_NET_ADMIN"),
        "{out}"
    );
    init(&pod, &["--remove"]);
    let (code, out, _) = pod.sh(&bare);
    assert_eq!(code, Some(1), "{out}");
});

mesh_test!(ku_06_check_waits_for_rules_that_come_late, mesh, {
    let pod = mesh.pod("pod");
    let mut waiting = Command::new(bin("outrigger-proxy"));
    waiting.args(["check", "--rules-only", MARKED, "--wait", "30"]);
    mesh.spawn_in(&pod, "check", &waiting);
    std::thread::sleep(std::time::Duration::from_secs(1));
    init(&pod, &[]);
    until("the check to pass", PATIENCE, || {
        let log = mesh.log("pod-check");
        log.contains("all is well").then_some(())
    });
});

#[test]
fn rules_need_no_root() {
    let name = concat!(module_path!(), "::rules_need_no_root");
    let binaries = ["outrigger-proxy", "outrigger-testapp"];
    run_as_nobody(name, &binaries, |mesh| {
        let outside = fs::read_to_string("/proc/self/uid_map").expect("a map");
        let words: Vec<_> = outside.split_whitespace().collect();
        assert_ne!(words.get(1), Some(&"0"), "root after all: {outside}");
        for backend in BACKENDS {
            let pod = mesh.pod(backend);
            trap(mesh, &pod);
            init(&pod, &["--backend", backend]);
            assert_caught(&pod, NOWHERE, 15001);
            assert_caught(&pod, NOWHERE6, 15001);
        }
    });
}

/// `outrigger-proxy check` of a pod with a proxy: whether it passed, and what it printed.
fn check_all(pod: &Pod) -> (bool, String) {
    let mut check = Command::new(bin("outrigger-proxy"));
    check.args(["check", MARKED]);
    let (code, out, err) = texts(&pod.output(&check));
    (code == Some(0), format!("{out}{err}"))
}

mesh_test!(check_tells_what_a_sidecar_lacks, mesh, {
    let pod = mesh.pod("pod");
    init(&pod, &[]);
    let holds = |list: &str, lines: &[&str]| {
        for line in lines {
            assert!(list.contains(line), "no {line:?} in\n{list}");
        }
    };
    // Rules alone: whatever the pod sends is refused.
    let (passed, list) = check_all(&pod);
    assert!(!passed, "{list}");
    holds(
        &list,
        &[
            "ok    rules: as they should be",
            "BAD   ports: nobody listens on 15001 (IPv4), 15006 (IPv4), 15001 (IPv6), 15006 (IPv6)",
            "BAD   proxy: nobody answers at its admin port 127.0.0.1:15000: Connection refused",
            "2 things are wrong",
        ],
    );
    // A proxy whose control plane is away, and that has no certificate yet.
    fs::create_dir_all(mesh.dir.join("control/ca")).expect("made");
    let key = rcgen::KeyPair::generate().expect("a key");
    let some = rcgen::CertificateParams::new(vec!["root".to_owned()]).expect("good");
    let some = some.self_signed(&key).expect("signed").pem();
    fs::write(mesh.dir.join("control/ca/root.pem"), some).expect("written");
    fs::write(mesh.dir.join("pod.token"), "ort_none").expect("written");
    proxy(mesh, &pod, "web", &[]);
    let list = until("a reason", PATIENCE, || {
        let (passed, list) = check_all(&pod);
        assert!(!passed, "{list}");
        list.contains("Connection refused").then_some(list)
    });
    holds(
        &list,
        &[
            "ok    ports: 15001 and 15006 listen (IPv4 and IPv6)",
            "note  proxy: outrigger/",
            "BAD   control plane: not connected: ",
            "BAD   certificate: none: ",
            "BAD   configuration: the first has not come",
            "3 things are wrong",
        ],
    );
    let (_, ready, _) = pod.sh("curl -s http://127.0.0.1:15021/healthz/ready");
    holds(
        &ready,
        &[
            "INITIALIZING: waiting for a certificate",
            "certificate: cannot reach",
        ],
    );
    drop(mesh.signal("pod-proxy", "KILL"));

    // All of it there.
    fs::remove_file(mesh.dir.join("pod.token")).expect("removed");
    fs::remove_dir_all(mesh.dir.join("control")).expect("removed");
    control_plane(mesh);
    sidecar(mesh, &pod, "web", &[]);
    let list = until("a good pod", PATIENCE, || {
        let (passed, list) = check_all(&pod);
        passed.then_some(list)
    });
    holds(
        &list,
        &[
            "ok    proxy: outrigger/",
            "ok    control plane: its stream is open",
            "ok    certificate: spiffe://outrigger.local/ns/shop/sa/web until ",
            "ok    configuration: number ",
            "all is well",
        ],
    );
    // The log filter can be changed while it runs.
    let (_, said, _) = pod.sh("curl -s -X POST 'http://127.0.0.1:15000/logging?level=debug'");
    assert_eq!(said.trim(), "debug");
    let (_, said, _) = pod.sh("curl -s http://127.0.0.1:15000/logging");
    assert_eq!(said.trim(), "debug");
});

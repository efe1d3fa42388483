//! One request through everything: redirected by the kernel, over mutual TLS, between two proxies
//! that learned route, endpoints and certificates from the real control plane.

use std::{net::IpAddr, process::Command};

use outrigger_tests::{bin, mesh_test, netns::until};

use crate::support::{PATIENCE, app, apply, capture, cli, control_plane, service, sidecar, wire};

mesh_test!(one_request_over_mtls, mesh, {
    control_plane(mesh);
    let (client, server) = (mesh.pod("client"), mesh.pod("server"));
    app(mesh, &server, 8080, &[]);
    let ports = "[{port: 80, targetPort: 8080}]";
    apply(mesh, &service("web", "10.96.0.10", ports, &[server.ip]));
    sidecar(mesh, &server, "web", &[]);
    sidecar(mesh, &client, "client", &[]);
    capture(mesh);
    let answer = until("an answer", PATIENCE, || {
        let (code, out, _) = client
            .sh("curl -sf -m 5 -H 'X-Secret-Marker: plainly-visible' http://10.96.0.10/hello");
        (code == Some(0)).then_some(out)
    });
    let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
    assert_eq!(answer["instance"], "server");
    assert_eq!(answer["path"], "/hello");
    assert_eq!(answer["headers"]["x-secret-marker"], "plainly-visible");
    // The bytes between the pods are TLS and hide what was sent.
    let wire = wire(mesh);
    assert!(wire.len() > 1000, "{} bytes captured", wire.len());
    let holds = |needle: &[u8]| wire.windows(needle.len()).any(|window| window == needle);
    assert!(!holds(b"plainly-visible"), "clear text on the wire");
    assert!(
        holds(b"outrigger-http/1.1"),
        "no mesh ALPN in a ClientHello"
    );
    // What the server chose, as its ServerHello says it: TLS 1.3 (RFC 8446 §4.2.1), and a key share
    // of X25519MLKEM768 (0x11ec, 1088 + 32 bytes).
    assert!(holds(&[0x00, 0x2b, 0x00, 0x02, 0x03, 0x04]), "not TLS 1.3");
    let share = [0x00, 0x33, 0x04, 0x64, 0x11, 0xec, 0x04, 0x60];
    assert!(holds(&share), "the key exchange is not post-quantum");
    let (ok, status, _) = cli(mesh, &["status"]);
    assert!(ok && status.contains("client"), "{status}");
});

mesh_test!(one_request_over_mtls_and_ipv6, mesh, {
    control_plane(mesh);
    let (client, server) = (mesh.pod("client"), mesh.pod("server"));
    let mut app = Command::new(bin("outrigger-testapp"));
    app.args(["http", "--listen", "[::]:8080", "--name", "server"]);
    mesh.spawn_in(&server, "app", &app);
    let service = |name: &str, vip: &str, endpoint: IpAddr| {
        format!(
            "apiVersion: outrigger.dev/v1\nkind: Service\n\
             metadata: {{name: {name}, namespace: shop}}\nspec:\n  serviceAccount: web\n  \
             addresses: ['{vip}']\n  ports: [{{port: 80, targetPort: 8080}}]\n  \
             endpoints: [{{address: '{endpoint}', workload: web-0}}]\n"
        )
    };
    apply(mesh, &service("six", "fd96::10", server.ip6.into()));
    apply(mesh, &service("mixed", "fd96::11", server.ip.into()));
    for pod in [&server, &client] {
        let account = if pod.name == "server" {
            "web"
        } else {
            "client"
        };
        sidecar(mesh, pod, account, &["--pod-ip", &pod.ip6.to_string()]);
    }
    capture(mesh);
    // A service address in IPv6 with an endpoint of either family, and the pod by itself.
    let pod = format!("[{}]:8080", server.ip6);
    for host in ["[fd96::10]", "[fd96::11]", &pod] {
        let line = format!("curl -gsf -m 5 -H 'X-Secret-Marker: in-the-clear' http://{host}/hello");
        let answer = until(host, PATIENCE, || {
            let (code, out, _) = client.sh(&line);
            (code == Some(0)).then_some(out)
        });
        let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
        assert_eq!(answer["instance"], "server", "{host}");
        assert_eq!(answer["headers"]["x-secret-marker"], "in-the-clear");
    }
    let wire = wire(mesh);
    let holds = |needle: &[u8]| wire.windows(needle.len()).any(|window| window == needle);
    assert!(!holds(b"in-the-clear"), "clear text on the wire");
    // Source and destination stand beside each other in a header (RFC 8200 §3).
    let [from, to] = [client.ip6, server.ip6].map(|ip| ip.octets());
    assert!(
        holds(&[from, to].concat()),
        "no packet from pod to pod in IPv6"
    );
    assert!(
        holds(b"outrigger-http/1.1"),
        "no mesh ALPN in a ClientHello"
    );
});

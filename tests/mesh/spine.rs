//! One request through everything: redirected by the kernel, over mutual TLS, between two proxies
//! that learned route, endpoints and certificates from the real control plane.

use outrigger_tests::{mesh_test, netns::until};

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

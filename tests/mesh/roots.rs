//! The root of the mesh is replaced under load.

use std::{process::Command, time::Duration};

use outrigger_tests::{
    bin, mesh_test,
    netns::{Mesh, Pod, until},
};

use crate::support::{PATIENCE, app, apply, cli, control_plane, proxy, service, sidecar};

const VIP: &str = "10.96.0.50";
/// For which time the new root is trusted before it signs, and the old one after. Connected proxies
/// renew within ten seconds when another root signs.
const OVERLAP: &str = "12s";

/// States of the roots, in order.
fn states(mesh: &Mesh) -> Vec<String> {
    let (ok, out, err) = cli(mesh, &["ca", "list", "-o", "json"]);
    assert!(ok, "{out}{err}");
    let roots: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    let roots = roots.as_array().expect("a list").iter();
    let state = |root: &serde_json::Value| root["state"].as_str().expect("a state").to_owned();
    roots.map(state).collect()
}

/// Serial number of a proxy's certificate, and how many roots it trusts.
fn certificate(pod: &Pod) -> (String, usize) {
    let (_, out, _) = pod.sh("curl -s http://127.0.0.1:15000/certs");
    let certs: serde_json::Value = serde_json::from_str(&out).unwrap_or_default();
    let own = &certs["certificates"][0];
    let serial = own["cert_chain"][0]["serial_number"]
        .as_str()
        .unwrap_or_default();
    (
        serial.to_owned(),
        own["ca_cert"].as_array().map_or(0, Vec::len),
    )
}

mesh_test!(tl_02_the_root_is_replaced_and_no_request_is_lost, mesh, {
    control_plane(mesh);
    let (client, server) = (mesh.pod("client"), mesh.pod("server"));
    app(mesh, &server, 8080, &[]);
    let ports = "[{port: 80, targetPort: 8080, appProtocol: http}]";
    apply(mesh, &service("web", VIP, ports, &[server.ip]));
    apply(
        mesh,
        "apiVersion: outrigger.dev/v1\nkind: MutualTLS\n\
         metadata: {name: strict, namespace: shop}\nspec: {mode: strict}\n",
    );
    sidecar(mesh, &server, "web", &[]);
    sidecar(mesh, &client, "client", &[]);
    until("an answer", PATIENCE, || {
        let (code, ..) = client.sh(&format!("curl -sf -m 2 http://{VIP}/"));
        (code == Some(0)).then_some(())
    });
    // Connections of before, and new ones all the time.
    let mut load = Command::new(bin("outrigger-testapp"));
    load.args(["load", "--url", &format!("http://{VIP}/")]);
    load.args(["--rate", "50", "--seconds", "35"]);
    mesh.spawn_in(&client, "load", &load);
    let before = [&client, &server].map(certificate);
    let (ok, out, err) = cli(mesh, &["ca", "rotate", "--overlap", OVERLAP]);
    assert!(ok, "{out}{err}");
    until(
        "both proxies to trust both roots",
        Duration::from_secs(5),
        || {
            let both = [&client, &server].iter().all(|pod| certificate(pod).1 == 2);
            both.then_some(())
        },
    );
    until("the new root to sign", PATIENCE * 2, || {
        (states(mesh) == ["active", "retiring"]).then_some(())
    });
    until("certificates of the new root", PATIENCE, || {
        let after = [&client, &server].map(certificate);
        let renewed = before.iter().zip(&after).all(|(old, new)| old.0 != new.0);
        renewed.then_some(())
    });
    until("the old root to go", PATIENCE * 2, || {
        (states(mesh) == ["active"]).then_some(())
    });
    until("nobody to trust it", Duration::from_secs(5), || {
        let alone = [&client, &server].iter().all(|pod| certificate(pod).1 == 1);
        alone.then_some(())
    });
    let summary = until("the load's end", PATIENCE * 2, || {
        let log = mesh.log("client-load");
        let line = log.lines().find(|line| line.starts_with('{'))?;
        Some(line.to_owned())
    });
    let summary: serde_json::Value = serde_json::from_str(&summary).expect("JSON");
    assert_eq!(summary["failed"], 0, "{summary}");
    // New handshakes under the new root alone, with the identity that was saved.
    drop(mesh.signal("client-proxy", "KILL"));
    proxy(mesh, &client, "client", &[]);
    until("an answer", PATIENCE, || {
        let (code, ..) = client.sh(&format!("curl -sf -m 2 http://{VIP}/"));
        (code == Some(0)).then_some(())
    });
});

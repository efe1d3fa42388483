//! A change is applied, and when the command returns it is in force on every proxy; or it says
//! which proxy did not take it, and why.

use std::time::{Duration, Instant};

use outrigger_tests::{
    mesh_test,
    netns::{Mesh, NODE, Pod, until},
    refuser::Refuser,
};

use crate::support::{
    NAMESPACE, PATIENCE, app, apply, cli, control_plane, object, service, sidecar, token,
};

const VIP: &str = "10.96.0.60";
const PROXIES: usize = 20;

/// A server and nineteen clients, each of which holds the route to the service.
fn rig(mesh: &mut Mesh) -> Vec<Pod> {
    control_plane(mesh);
    let server = mesh.pod("server");
    app(mesh, &server, 8080, &[]);
    let ports = "[{port: 80, targetPort: 8080, appProtocol: http}]";
    apply(mesh, &service("web", VIP, ports, &[server.ip]));
    sidecar(mesh, &server, "web", &[]);
    let mut clients = Vec::new();
    for n in 1..PROXIES {
        let client = mesh.pod(&format!("client{n}"));
        sidecar(mesh, &client, "client", &[]);
        clients.push(client);
    }
    for client in &clients {
        until("an answer", PATIENCE * 2, || {
            (version(client) == "none").then_some(())
        });
    }
    clients
}

/// The version that the route puts into its answers; `none` without one, empty without an answer.
fn version(client: &Pod) -> String {
    let head = format!("curl -sf -m 5 -D - -o /dev/null http://{VIP}/");
    let (code, head, _) = client.sh(&head);
    if code != Some(0) {
        return String::new();
    }
    let line = head.lines().find_map(|l| l.strip_prefix("x-version: "));
    line.map_or("none", str::trim).to_owned()
}

/// A route that names its version in each answer.
fn route(version: u32) -> String {
    let spec = format!(
        "{{parentRefs: [{{kind: Service, group: '', name: web}}], rules: [{{filters: [\
         {{type: ResponseHeaderModifier, responseHeaderModifier: {{set: [\
         {{name: x-version, value: 'v{version}'}}]}}}}]}}]}}"
    );
    object("HTTPRoute", "versioned", &spec)
}

/// Applies with `--wait`: success, what was said, how long it took.
fn apply_and_wait(mesh: &Mesh, yaml: &str) -> (bool, String, Duration) {
    std::fs::write(mesh.dir.join("change.yaml"), yaml).expect("written");
    let began = Instant::now();
    let args = ["apply", "-f", "change.yaml", "--wait", "--timeout", "20s"];
    let (ok, out, err) = cli(mesh, &args);
    (ok, out + &err, began.elapsed())
}

mesh_test!(apply_returns_when_twenty_proxies_serve_by_it, mesh, {
    let clients = rig(mesh);
    let mut times = Vec::new();
    for round in 1..=10 {
        let (ok, said, took) = apply_and_wait(mesh, &route(round));
        assert!(ok && said.contains("taken by 20 of 20 proxies"), "{said}");
        times.push(took);
        // No patience: the next request of whichever client goes by it.
        let some = clients.iter().skip(round as usize % 6).step_by(6);
        for client in some {
            assert_eq!(version(client), format!("v{round}"), "{}", client.name);
        }
    }
    for client in &clients {
        assert_eq!(version(client), "v10", "{}", client.name);
    }
    times.sort_unstable();
    println!(
        "apply --wait on {PROXIES} proxies: median {:?}, longest {:?}",
        times.get(times.len() / 2).expect("ten"),
        times.last().expect("ten")
    );
    // What is invalid changes nothing, and says where and why.
    let bad = route(11).replace("x-version", "x version");
    let (ok, said, _) = apply_and_wait(mesh, &bad);
    let at =
        "HTTPRoute shop/versioned: spec.rules[0].filters[0].responseHeaderModifier.set[0].name";
    assert!(
        !ok && said.contains(at) && said.contains("must be a header's name"),
        "{said}"
    );
    for client in clients.iter().take(3) {
        assert_eq!(version(client), "v10", "{}", client.name);
    }
});

mesh_test!(
    a_change_while_a_head_is_on_its_way_costs_no_request,
    mesh,
    {
        control_plane(mesh);
        let (server, outsider) = (mesh.pod("server"), mesh.pod("outsider"));
        app(mesh, &server, 8080, &[]);
        let ports = "[{port: 80, targetPort: 8080, appProtocol: http}]";
        apply(mesh, &service("web", VIP, ports, &[server.ip]));
        sidecar(mesh, &server, "web", &[]);
        let url = format!("http://{}:8080/", server.ip);
        until("an answer", PATIENCE, || {
            let (code, ..) = outsider.sh(&format!("curl -sf -m 3 -o /dev/null {url}"));
            (code == Some(0)).then_some(())
        });
        let (begun, go) = (mesh.dir.join("begun"), mesh.dir.join("go"));
        let script = format!(
            "exec 3<>/dev/tcp/{}/8080; printf 'GET / HTTP/1.1\\r\\nhost: web\\r\\n' >&3; touch {}; \
         until [ -e {} ]; do sleep 0.05; done; printf '\\r\\n' >&3; head -n 1 <&3",
            server.ip,
            begun.display(),
            go.display()
        );
        let answer = std::thread::scope(|scope| {
            let request =
                scope.spawn(|| outsider.sh(&format!("timeout 20 bash -c \"{script}\"")).1);
            until("half a head is sent", PATIENCE, || {
                begun.exists().then_some(())
            });
            // Settings of the server's own listener, which the request is none of.
            let spec = "{action: deny, rules: [{from: [{identities: [shop/nobody]}]}]}";
            let (ok, said, _) = apply_and_wait(mesh, &object("AuthorizationPolicy", "test", spec));
            assert!(ok && said.contains("taken by 1 of 1 proxy"), "{said}");
            std::fs::write(&go, "").expect("written");
            request.join().expect("the request's thread")
        });
        assert_eq!(answer.trim(), "HTTP/1.1 200 OK");
    }
);

mesh_test!(a_proxy_that_rejects_is_named_with_its_reason, mesh, {
    control_plane(mesh);
    let (server, client) = (mesh.pod("server"), mesh.pod("client"));
    app(mesh, &server, 8080, &[]);
    let ports = "[{port: 80, targetPort: 8080, appProtocol: http}]";
    apply(mesh, &service("web", VIP, ports, &[server.ip]));
    sidecar(mesh, &server, "web", &[]);
    sidecar(mesh, &client, "client", &[]);
    until("an answer", PATIENCE, || {
        (version(&client) == "none").then_some(())
    });
    let refusing = Refuser {
        control_plane: format!("{NODE}:15012"),
        root: mesh.dir.join("control/ca/root.pem"),
        token: token(mesh, "another", "another"),
        namespace: NAMESPACE.to_owned(),
        service_account: "another".to_owned(),
        address: NODE,
        cluster: "outbound|80||web.shop.svc".to_owned(),
        reason: "circuit_breakers: 77 is not known to this version".to_owned(),
    }
    .start();
    until("the third proxy", PATIENCE, || {
        (refusing.taken() > 0).then_some(())
    });
    let policy = |n: u32| {
        let spec = format!(
            "{{targetRefs: [{{kind: Service, name: web}}], connections: {{maxRequests: {n}}}}}"
        );
        object("TrafficPolicy", "limit", &spec)
    };
    let (ok, said, _) = apply_and_wait(mesh, &policy(76));
    assert!(ok && said.contains("taken by 3 of 3 proxies"), "{said}");
    refusing.begin();
    let (ok, said, _) = apply_and_wait(mesh, &policy(77));
    assert!(!ok, "{said}");
    assert!(said.contains("taken by 2 of 3 proxies"), "{said}");
    let named = "rejected by shop/another: circuit_breakers: 77 is not known to this version";
    assert!(said.contains(named), "{said}");
    // The others serve on, by it.
    assert_eq!(version(&client), "none");
    let (_, held, _) = client.sh("curl -s 'http://127.0.0.1:15000/config_dump?name_regex=web'");
    assert!(held.contains("77"), "{held}");
});

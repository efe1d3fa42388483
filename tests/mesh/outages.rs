//! Endpoints, proxies and the control plane go away under load; nobody notices.

use std::time::Duration;

use outrigger_tests::{
    mesh_test,
    netns::{Mesh, Pod, until},
};

use crate::support::{PATIENCE, app, apply, control_plane, load, proxy, service, sidecar, summary};

const VIP: &str = "10.96.0.30";

/// A client and `n` instances of one service, all in the mesh.
fn rig(mesh: &mut Mesh, n: usize, more: &[&str]) -> (Pod, Vec<Pod>) {
    control_plane(mesh);
    let client = mesh.pod("client");
    let servers: Vec<_> = (0..n).map(|n| mesh.pod(&format!("web{n}"))).collect();
    let addresses: Vec<_> = servers.iter().map(|pod| pod.ip).collect();
    let ports = "[{port: 80, targetPort: 8080, appProtocol: http}]";
    apply(mesh, &service("web", VIP, ports, &addresses));
    for server in &servers {
        app(mesh, server, 8080, &[]);
        sidecar(mesh, server, "web", more);
    }
    sidecar(mesh, &client, "client", more);
    until("an answer", PATIENCE, || {
        let (code, ..) = client.sh(&format!("curl -sf -m 2 http://{VIP}/"));
        (code == Some(0)).then_some(())
    });
    (client, servers)
}

fn counts(pod: &Pod) -> serde_json::Value {
    let (_, out, _) = pod.sh("curl -s -m 2 http://127.0.0.1:8080/control/counts");
    serde_json::from_str(&out).unwrap_or_default()
}

mesh_test!(rt_01_one_dead_endpoint_of_three_costs_no_request, mesh, {
    let (client, servers) = rig(mesh, 3, &[]);
    load(mesh, &client, "get", ("GET", VIP), 200, 6);
    load(mesh, &client, "post", ("POST", VIP), 100, 6);
    std::thread::sleep(Duration::from_secs(2));
    drop(mesh.signal("web1-app", "KILL"));
    let gets = summary(mesh, "get", PATIENCE);
    let posts = summary(mesh, "post", PATIENCE);
    assert_eq!(gets["failed"], 0, "{gets}");
    // What the dead instance had begun is lost for a POST, and is not run again.
    for server in [0, 2] {
        let seen = counts(servers.get(server).expect("a server"));
        assert_eq!(seen["most"], 1, "a request ran twice: {seen}; {posts}");
    }
});

mesh_test!(lb_02_a_minute_without_control_plane_under_load, mesh, {
    let (client, _) = rig(mesh, 2, &[]);
    load(mesh, &client, "get", ("GET", VIP), 100, 68);
    drop(mesh.signal("control", "KILL"));
    std::thread::sleep(Duration::from_secs(30));
    // New connections, and endpoints that go, are no trouble either.
    drop(mesh.signal("web1-app", "KILL"));
    let (code, _, err) = client.sh(&format!("curl -sf -m 2 http://{VIP}/"));
    assert_eq!(code, Some(0), "{err}");
    std::thread::sleep(Duration::from_secs(30));
    control_plane(mesh);
    // Back again, changes flow: the one endpoint that is left is gone, and another one serves.
    let other = mesh.pod("web9");
    app(mesh, &other, 8080, &[]);
    sidecar(mesh, &other, "web", &[]);
    let ports = "[{port: 80, targetPort: 8080, appProtocol: http}]";
    apply(mesh, &service("web", VIP, ports, &[other.ip]));
    until("the other endpoint", PATIENCE, || {
        let (_, out, _) = client.sh(&format!("curl -sf -m 2 http://{VIP}/"));
        out.contains("web9").then_some(())
    });
    let gets = summary(mesh, "get", PATIENCE);
    assert_eq!(gets["failed"], 0, "{gets}");
});

mesh_test!(
    ku_01_sigterm_to_proxy_and_application_loses_no_request,
    mesh,
    {
        let stops = ["--drain-delay", "2s", "--drain-timeout", "5s"];
        let (client, servers) = rig(mesh, 2, &stops);
        load(mesh, &client, "get", ("GET", VIP), 500, 10);
        std::thread::sleep(Duration::from_secs(2));
        let mut stopping = mesh.signal("web1-proxy", "TERM");
        // The endpoint is withdrawn a moment later, as an operator's system does.
        std::thread::sleep(Duration::from_millis(500));
        let left: Vec<_> = servers.iter().take(1).map(|pod| pod.ip).collect();
        let ports = "[{port: 80, targetPort: 8080, appProtocol: http}]";
        apply(mesh, &service("web", VIP, ports, &left));
        std::thread::sleep(Duration::from_millis(1500));
        drop(mesh.signal("web1-app", "TERM"));
        let (code, log) = stopping.wait(Duration::from_secs(12));
        assert_eq!(code, Some(0), "{log}");
        let gets = summary(mesh, "get", PATIENCE * 2);
        assert_eq!(gets["failed"], 0, "{gets}");
    }
);

mesh_test!(
    lb_02_a_proxy_restarted_without_control_plane_serves_what_it_saved,
    mesh,
    {
        let (client, _) = rig(mesh, 1, &[]);
        // What is in force is written a moment after it changed.
        std::thread::sleep(Duration::from_secs(2));
        drop(mesh.signal("control", "KILL"));
        drop(mesh.signal("client-proxy", "KILL"));
        proxy(mesh, &client, "client", &[]);
        until("an answer from what was saved", PATIENCE, || {
            let (code, ..) = client.sh(&format!("curl -sf -m 2 http://{VIP}/"));
            (code == Some(0)).then_some(())
        });
    }
);

mesh_test!(connections_to_a_withdrawn_endpoint_are_closed, mesh, {
    let (client, servers) = rig(mesh, 2, &[]);
    let [stays, goes] = servers.as_slice() else {
        panic!("two servers")
    };
    let open = |pod: &Pod, to: &Pod| {
        let (_, out, _) = pod.sh(&format!("ss -Htn state established dst {}", to.ip));
        out.lines().count()
    };
    // Both have a connection that waits for more.
    until("connections to both", PATIENCE, || {
        let (code, ..) = client.sh(&format!("curl -sf -m 2 http://{VIP}/"));
        assert_eq!(code, Some(0));
        (open(&client, stays) > 0 && open(&client, goes) > 0).then_some(())
    });
    let ports = "[{port: 80, targetPort: 8080, appProtocol: http}]";
    apply(mesh, &service("web", VIP, ports, &[stays.ip]));
    // Every five seconds the pool is looked through.
    until(
        "the connection to be closed",
        Duration::from_secs(8),
        || (open(&client, goes) == 0).then_some(()),
    );
    assert!(open(&client, stays) > 0, "the other one is kept");
});

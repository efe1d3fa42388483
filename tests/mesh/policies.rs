//! Policies pushed through the control API, seen from the applications.

use outrigger_tests::{
    mesh_test,
    netns::{Mesh, Pod, until},
};

use crate::support::{PATIENCE, app, apply, cli, control_plane, object, service, sidecar};

const VIP: &str = "10.96.0.40";

/// A client and a server in the mesh.
fn pair(mesh: &mut Mesh) -> (Pod, Pod) {
    control_plane(mesh);
    let (client, server) = (mesh.pod("client"), mesh.pod("server"));
    app(mesh, &server, 8080, &[]);
    let ports = "[{port: 80, targetPort: 8080, appProtocol: http}]";
    apply(mesh, &service("web", VIP, ports, &[server.ip]));
    sidecar(mesh, &server, "web", &[]);
    sidecar(mesh, &client, "client", &[]);
    until("an answer", PATIENCE, || {
        (get(&client, VIP) == "200").then_some(())
    });
    (client, server)
}

/// The status of a GET, `000` when there was no answer.
fn get(pod: &Pod, target: &str) -> String {
    let line = format!("curl -s -m 3 -o /dev/null -w '%{{http_code}}' http://{target}/");
    pod.sh(&line).1
}

mesh_test!(
    tl_08_strict_refuses_clear_text_that_permissive_serves,
    mesh,
    {
        let (client, server) = pair(mesh);
        let outsider = mesh.pod("outsider");
        let direct = format!("{}:8080", server.ip);
        assert_eq!(get(&outsider, &direct), "200", "permissive is the default");
        apply(mesh, &object("MutualTLS", "test", "{mode: strict}"));
        until("strictness", PATIENCE, || {
            (get(&outsider, &direct) == "000").then_some(())
        });
        assert_eq!(get(&client, VIP), "200", "the mesh itself goes on");
    }
);

mesh_test!(
    tl_11_authorization_by_identity_holds_for_the_next_request,
    mesh,
    {
        let (client, _server) = pair(mesh);
        let other = mesh.pod("other");
        sidecar(mesh, &other, "other", &[]);
        until("an answer", PATIENCE, || {
            (get(&other, VIP) == "200").then_some(())
        });
        let spec = "{action: Allow, rules: [{from: [{identities: [\
                spiffe://outrigger.local/ns/shop/sa/client]}]}]}";
        apply(mesh, &object("AuthorizationPolicy", "test", spec));
        until("the denial", PATIENCE, || {
            (get(&other, VIP) == "403").then_some(())
        });
        assert_eq!(get(&client, VIP), "200");
        let (_, head, _) = other.sh(&format!("curl -s -m 3 -D - -o /dev/null http://{VIP}/"));
        assert!(
            head.contains("proxy-status: outrigger; error=http_request_denied"),
            "{head}"
        );
    }
);

mesh_test!(the_breaker_opens_states_its_cause_and_heals, mesh, {
    let (client, server) = pair(mesh);
    let spec = "{targetRefs: [{kind: Service, name: web}], circuitBreaker: {failureRate: 50, \
                minimumCalls: 10, window: 2s, openDuration: 1s, halfOpenProbes: 2, ramp: 1s}}";
    apply(mesh, &object("TrafficPolicy", "test", spec));
    let control = "http://127.0.0.1:8080/control/fail";
    assert_eq!(
        server.sh(&format!("curl -s '{control}?status=503'")).0,
        Some(0)
    );
    until("the breaker to open", PATIENCE, || {
        let (_, head, _) = client.sh(&format!("curl -s -m 3 -D - -o /dev/null http://{VIP}/"));
        head.contains("BreakerOpen").then_some(())
    });
    assert_eq!(server.sh(&format!("curl -s {control}")).0, Some(0));
    until("ten answers in a row", PATIENCE, || {
        (0..10).all(|_| get(&client, VIP) == "200").then_some(())
    });
});

mesh_test!(an_invalid_policy_changes_nothing_and_says_why, mesh, {
    let (client, _server) = pair(mesh);
    let file = mesh.dir.join("bad.yaml");
    let bad = object(
        "TrafficPolicy",
        "test",
        "{targetRefs: [{name: web}], timeouts: {request: soon}}",
    );
    std::fs::write(file, bad).expect("written");
    let (ok, _, err) = cli(mesh, &["apply", "-f", "bad.yaml"]);
    assert!(!ok);
    assert!(
        err.contains("TrafficPolicy") && err.contains("timeouts.request"),
        "{err}"
    );
    assert_eq!(get(&client, VIP), "200");
});

mesh_test!(a_rate_limit_of_a_route_holds_for_each_caller, mesh, {
    let (client, _server) = pair(mesh);
    let other = mesh.pod("other");
    sidecar(mesh, &other, "other", &[]);
    let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
                 metadata: {name: web, namespace: shop}\n\
                 spec: {parentRefs: [{name: web}], rules: [\
                 {matches: [{path: {value: /slow}}, {path: {value: /also}}], \
                  backendRefs: [{name: web, port: 80}]}]}\n---\n\
                 apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
                 metadata: {name: rest, namespace: shop}\n\
                 spec: {parentRefs: [{name: web}], rules: [{backendRefs: [{name: web, port: 80}]}]}\n";
    apply(mesh, route);
    let limit = "{targetRefs: [{kind: HTTPRoute, name: web}], requests: 2, per: 1h}";
    apply(mesh, &object("RateLimit", "test", limit));
    let at = |pod: &Pod, path: &str| {
        let line = format!("curl -s -m 3 -o /dev/null -w '%{{http_code}}' http://{VIP}{path}");
        pod.sh(&line).1
    };
    until("the limit", PATIENCE, || {
        let both = at(&client, "/slow") == "429" && at(&client, "/also") == "429";
        both.then_some(())
    });
    assert_eq!(at(&client, "/"), "200", "another route");
    // One bucket for all matches of the route, and one in each proxy.
    let answers = ["/slow", "/also", "/slow"].map(|path| at(&other, path));
    assert_eq!(answers, ["200", "200", "429"]);
});

mesh_test!(the_access_log_follows_telemetry_policies, mesh, {
    let (client, _server) = pair(mesh);
    let lines = |mesh: &Mesh, path: &str| {
        ["client-proxy", "server-proxy"].map(|log| mesh.log(log).matches(path).count())
    };
    let ask = |path: &str| {
        let (code, ..) = client.sh(&format!("curl -sf -m 3 http://{VIP}{path}"));
        assert_eq!(code, Some(0));
    };
    ask("/first");
    until("a line at both ends", PATIENCE, || {
        (lines(mesh, "/first") == [1, 1]).then_some(())
    });
    apply(mesh, &object("Telemetry", "test", "{accessLog: false}"));
    until("silence", PATIENCE, || {
        let path = format!("/quiet-{}", std::process::id());
        let before = lines(mesh, &path);
        ask(&path);
        std::thread::sleep(std::time::Duration::from_millis(300));
        (lines(mesh, &path) == before).then_some(())
    });
});

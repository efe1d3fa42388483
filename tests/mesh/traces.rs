//! Traces through a chain of three services, as Jaeger has them.

use std::{collections::BTreeMap, process::Command, time::Duration};

use outrigger_tests::{
    bin, mesh_test,
    netns::{Mesh, NODE, Pod, until},
};
use serde_json::Value;

use crate::support::{NAMESPACE, PATIENCE, app, apply, control_plane, object, service, sidecar};

const FRONT: &str = "10.96.0.50";
const CART: &str = "10.96.0.51";
const STOCK: &str = "10.96.0.52";
/// A caller's trace and span.
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

/// Builds Jaeger if that is not done, and starts it on the node.
fn jaeger(mesh: &mut Mesh) {
    let build = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/jaeger/build");
    let built = Command::new(build).output().expect("a shell");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        built.status.success(),
        "run {build} first, where there is a network: {}",
        text(&built.stderr)
    );
    let mut jaeger = Command::new(text(&built.stdout).trim());
    jaeger.env("SPAN_STORAGE_TYPE", "memory").args([
        &format!("--collector.otlp.grpc.host-port={NODE}:4317"),
        "--collector.otlp.http.host-port=127.0.0.1:4318",
        &format!("--query.http-server.host-port={NODE}:16686"),
    ]);
    mesh.spawn("jaeger", jaeger);
    until("Jaeger", PATIENCE, || query("services"));
}

/// Asks Jaeger's query API.
fn query(what: &str) -> Option<Value> {
    let url = format!("http://{NODE}:16686/api/{what}");
    let output = Command::new("curl")
        .args(["-sf", "-m", "5", &url])
        .output()
        .expect("curl");
    serde_json::from_slice(&output.stdout).ok()
}

/// One span of a trace.
#[derive(Debug)]
struct Span {
    service: String,
    id: String,
    parent: Option<String>,
    tags: BTreeMap<String, String>,
}

impl Span {
    fn tag(&self, key: &str) -> &str {
        self.tags.get(key).map_or("", String::as_str)
    }
}

/// A trace once it has a span of each of these services and kinds: they come in their own time, from
/// several proxies.
fn trace(id: &str, wanted: &[(&str, &str)]) -> Vec<Span> {
    until(&format!("{wanted:?} of {id}"), PATIENCE, || {
        let found = read(id);
        let has = |(service, kind): &(&str, &str)| {
            let mut all = found.iter();
            all.any(|span| span.service == *service && span.tag("span.kind") == *kind)
        };
        wanted.iter().all(has).then_some(found)
    })
}

fn read(id: &str) -> Vec<Span> {
    let Some(answer) = query(&format!("traces/{id}")) else {
        return Vec::new();
    };
    let trace = &answer["data"][0];
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let spans = trace["spans"].as_array().into_iter().flatten();
    spans
        .map(|span| {
            let process = text(&span["processID"]);
            let references = span["references"].as_array();
            let tags = span["tags"].as_array().expect("tags").iter();
            Span {
                service: text(&trace["processes"][process]["serviceName"]),
                id: text(&span["spanID"]),
                parent: references.and_then(|all| all.first().map(|one| text(&one["spanID"]))),
                tags: tags
                    .map(|tag| (text(&tag["key"]), text(&tag["value"])))
                    .collect(),
            }
        })
        .collect()
}

/// The one span of a service of a kind.
fn only<'s>(spans: &'s [Span], service: &str, kind: &str) -> &'s Span {
    let found: Vec<_> = spans
        .iter()
        .filter(|span| span.service == service && span.tag("span.kind") == kind)
        .collect();
    match found.as_slice() {
        [one] => one,
        _ => panic!("not one {kind} span of {service} in {spans:#?}"),
    }
}

/// Asserts that the spans are a chain, each below the one before it, and the first below `root`.
fn chain(spans: &[Span], root: Option<&str>, links: &[(&str, &str)]) {
    assert_eq!(spans.len(), links.len(), "{spans:#?}");
    let mut above = root.map(str::to_owned);
    for (service, kind) in links {
        let span = only(spans, service, kind);
        assert_eq!(span.parent, above, "{service} {kind} in {spans:#?}");
        above = Some(span.id.clone());
    }
}

const CHAIN: [(&str, &str); 6] = [
    ("client", "client"),
    ("front", "server"),
    ("front", "client"),
    ("cart", "server"),
    ("cart", "client"),
    ("stock0", "server"),
];

/// `client` → `front` → `cart` → `stock0`, all in the mesh.
fn rig(mesh: &mut Mesh, sampling: &str) -> [Pod; 4] {
    control_plane(mesh);
    let pods = ["client", "front", "cart", "stock0"].map(|name| mesh.pod(name));
    let [client, front, cart, stock] = &pods;
    let ports = "[{port: 80, targetPort: 8080, appProtocol: http}]";
    apply(mesh, &service("front", FRONT, ports, &[front.ip]));
    apply(mesh, &service("cart", CART, ports, &[cart.ip]));
    apply(mesh, &service("stock", STOCK, ports, &[stock.ip]));
    app(
        mesh,
        front,
        8080,
        &["--calls", &format!("http://{CART}/cart")],
    );
    app(
        mesh,
        cart,
        8080,
        &["--calls", &format!("http://{STOCK}/stock")],
    );
    app(mesh, stock, 8080, &[]);
    for pod in &pods {
        let account = pod.name.trim_end_matches('0');
        traced(mesh, pod, account, sampling);
    }
    until("an answer", PATIENCE, || {
        (call(client, "").0 == "200").then_some(())
    });
    pods
}

fn traced(mesh: &mut Mesh, pod: &Pod, account: &str, sampling: &str) {
    let collector = format!("http://{NODE}:4317");
    let more = ["--otlp-endpoint", &collector, "--trace-sampling", sampling];
    sidecar(mesh, pod, account, &more);
}

/// A request through the chain with these headers: the status, and the answer's body.
fn call(client: &Pod, headers: &str) -> (String, Value) {
    let line = format!("curl -s -m 5 -w ' %{{http_code}}' {headers} http://{FRONT}/items?q=secret");
    let (_, out, _) = client.sh(&line);
    let (body, status) = out.rsplit_once(' ').unwrap_or_default();
    (
        status.to_owned(),
        serde_json::from_str(body).unwrap_or_default(),
    )
}

fn traceparent(trace: &str, flags: &str) -> String {
    format!("-H 'traceparent: 00-{trace}-{SPAN}-{flags}'")
}

mesh_test!(
    ob_01_one_trace_over_three_services_with_the_right_parents,
    mesh,
    {
        // Nothing is traced but what a caller wants traced.
        jaeger(mesh);
        let [client, ..] = rig(mesh, "0");
        let b3_single = TRACE.replace('4', "5");
        let b3_multi = TRACE.replace('4', "6");
        let callers = [
            (TRACE, traceparent(TRACE, "01")),
            (&b3_single, format!("-H 'b3: {b3_single}-{SPAN}-1'")),
            (
                &b3_multi,
                format!(
                    "-H 'X-B3-TraceId: {b3_multi}' -H 'X-B3-SpanId: {SPAN}' -H 'X-B3-Sampled: 1'"
                ),
            ),
        ];
        for (id, headers) in callers {
            let (status, _) = call(&client, &headers);
            assert_eq!(status, "200", "{headers}");
            let spans = trace(id, &CHAIN);
            chain(&spans, Some(SPAN), &CHAIN);
            for span in &spans {
                assert_eq!(span.tag("http.request.method"), "GET");
                assert_eq!(span.tag("http.response.status_code"), "200");
                assert_eq!(span.tag("error"), "", "{span:?}");
                let all = format!("{span:?}");
                assert!(
                    !all.contains("secret"),
                    "a query is nobody's business: {all}"
                );
            }
            let front = only(&spans, "front", "server");
            assert_eq!(front.tag("url.path"), "/items");
            let identity = format!("spiffe://outrigger.local/ns/{NAMESPACE}/sa/client");
            assert_eq!(front.tag("outrigger.peer"), identity);
        }
        // A caller that does not want to be traced is not, and neither is one without an opinion.
        let unwanted = TRACE.replace('4', "7");
        assert_eq!(call(&client, &traceparent(&unwanted, "00")).0, "200");
        assert_eq!(call(&client, "").0, "200");
        std::thread::sleep(Duration::from_secs(3));
        assert!(read(&unwanted).is_empty());
        for service in ["client", "front", "cart", "stock0"] {
            let all = query(&format!("traces?service={service}&limit=100")).expect("traces");
            let number = all["data"].as_array().map_or(0, Vec::len);
            assert_eq!(number, 3, "{service}: {all}");
        }
    }
);

mesh_test!(
    ob_02_a_failed_and_a_successful_try_are_spans_of_their_own,
    mesh,
    {
        jaeger(mesh);
        let [client, _, _, alive] = rig(mesh, "0");
        // A second instance of stock whose application is not there: its proxy says so.
        let dead = mesh.pod("stock1");
        traced(mesh, &dead, "stock", "0");
        until("its proxy", PATIENCE, || {
            let (code, ..) = dead.sh("curl -sf -m 2 http://127.0.0.1:15021/healthz/ready");
            (code == Some(0)).then_some(())
        });
        let ports = "[{port: 80, targetPort: 8080, appProtocol: http}]";
        apply(mesh, &service("stock", STOCK, ports, &[alive.ip, dead.ip]));
        let mut n: u64 = 0;
        let spans = until("a request that is tried twice", PATIENCE, || {
            n += 1;
            let id = format!("{n:016x}{n:016x}");
            let (status, _) = call(&client, &traceparent(&id, "01"));
            assert_eq!(status, "200", "a dead instance costs nobody an answer");
            let spans = trace(&id, &CHAIN);
            let retried = spans.iter().any(|span| span.tag("outrigger.tries") == "2");
            retried.then(|| trace(&id, &[&CHAIN[..], &[("stock1", "server")]].concat()))
        });
        let of_cart: Vec<_> = spans
            .iter()
            .filter(|span| span.service == "cart" && span.tag("span.kind") == "client")
            .collect();
        let find = |what: &str, is: &dyn Fn(&Span) -> bool| {
            let found = of_cart.iter().find(|span| is(span));
            *found.unwrap_or_else(|| panic!("no {what} in {of_cart:#?}"))
        };
        let request = find("request", &|span| span.tag("outrigger.tries") == "2");
        let first = find("first try", &|span| span.tag("outrigger.attempt") == "1");
        let second = find("second try", &|span| span.tag("outrigger.attempt") == "2");
        assert_eq!(
            request.parent.as_ref(),
            Some(&only(&spans, "cart", "server").id)
        );
        assert_eq!(request.tag("error"), "", "the request itself went well");
        for attempt in [first, second] {
            assert_eq!(attempt.parent.as_ref(), Some(&request.id));
        }
        assert_eq!(first.tag("error"), "true");
        assert_eq!(first.tag("outrigger.cause"), "ConnectFailed");
        assert_eq!(first.tag("network.peer.address"), dead.ip.to_string());
        assert_eq!(
            (second.tag("error"), second.tag("http.request.resend_count")),
            ("", "1")
        );
        // Each instance's proxy has its span below the try that reached it, and states its cause.
        let refused = only(&spans, "stock1", "server");
        assert_eq!(refused.parent.as_ref(), Some(&first.id));
        assert_eq!(refused.tag("outrigger.response_flag"), "UF");
        let good = only(&spans, "stock0", "server");
        assert_eq!(good.parent.as_ref(), Some(&second.id));
    }
);

mesh_test!(sampling_by_policy_holds_for_the_next_request, mesh, {
    jaeger(mesh);
    let [client, ..] = rig(mesh, "0");
    let policy = |share: &str| {
        object(
            "Telemetry",
            "test",
            &format!("{{tracing: {{sampling: {share}}}}}"),
        )
    };
    let traces = || {
        let found = query("traces?service=client&limit=1000").expect("traces");
        found["data"].as_array().map_or(0, Vec::len)
    };
    assert_eq!(traces(), 0);
    apply(mesh, &policy("100"));
    until("a trace of everything", PATIENCE, || {
        assert_eq!(call(&client, "").0, "200");
        (traces() > 0).then_some(())
    });
    let found = query("traces?service=client&limit=1").expect("a trace");
    let id = found["data"][0]["traceID"]
        .as_str()
        .expect("an id")
        .to_owned();
    // Who began it decides for all: the whole chain is there, and it has no parent.
    chain(&trace(&id, &CHAIN), None, &CHAIN);
    apply(mesh, &policy("0"));
    until("an end of it", PATIENCE, || {
        let (_, body) = call(&client, "");
        let told = body["headers"]["traceparent"].as_str()?;
        told.ends_with("-00").then_some(())
    });
});

/// Takes connections, and never a byte.
const BLACK_HOLE: &str = "
import socket, sys, time
held = socket.create_server((sys.argv[1], 4317))
print('listening', flush=True)
time.sleep(600)
";

mesh_test!(ob_03_a_collector_that_is_away_costs_no_request, mesh, {
    let mut python = Command::new("python3");
    python.args(["-c", BLACK_HOLE, &NODE.to_string()]);
    mesh.spawn("hole", python);
    until("the black hole", PATIENCE, || {
        mesh.log("hole").contains("listening").then_some(())
    });
    // Everything is traced.
    let [client, ..] = rig(mesh, "100");
    let spans = |outcome: &str| {
        let (_, text, _) = client.sh("curl -s -m 5 http://127.0.0.1:15020/metrics");
        let start = format!("outrigger_spans_total{{outcome=\"{outcome}\"}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&start));
        line.and_then(|n| n.parse::<u64>().ok()).unwrap_or(0)
    };
    let mut load = Command::new(bin("outrigger-testapp"));
    let url = format!("http://{FRONT}/");
    load.args(["load", "--url", &url, "--rate", "50", "--seconds", "25"]);
    mesh.spawn_in(&client, "load", &load);
    until("spans to be given up", PATIENCE * 2, || {
        (spans("failed") > 0).then_some(())
    });
    assert_eq!(spans("exported"), 0);
    drop(mesh.signal("hole", "KILL"));
    let mut sink = Command::new(bin("outrigger-testapp"));
    sink.args(["spans", "--listen", &format!("{NODE}:4317")]);
    mesh.spawn("sink", sink);
    until("spans to be taken again", PATIENCE, || {
        (spans("exported") > 0).then_some(())
    });
    let summary = until("the load's summary", PATIENCE * 2, || {
        let log = mesh.log("client-load");
        let line = log.lines().find(|line| line.starts_with('{'))?;
        Some(serde_json::from_str::<Value>(line).expect("JSON"))
    });
    assert_eq!(summary["failed"], 0, "{summary}");
    // What waited is sent when a proxy ends.
    let before = mesh.log("sink").lines().count();
    assert!(before > 0);
    let last = "f".repeat(32);
    assert_eq!(call(&client, &traceparent(&last, "01")).0, "200");
    let mut stopping = mesh.signal("client-proxy", "TERM");
    let (code, log) = stopping.wait(PATIENCE);
    assert_eq!(code, Some(0), "{log}");
    assert!(mesh.log("sink").contains(&last));
});

/// A listener with a socket of its own, whose spans go to a cluster, in the form that Envoy reads.
const NAMED: &str = r#"
static_resources:
  listeners:
  - name: web
    address: {socket_address: {address: 127.0.0.1, port_value: 9000}}
    traffic_direction: OUTBOUND
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: web
          tracing:
            random_sampling: {value: 100}
            provider:
              name: otel
              typed_config:
                "@type": type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig
                service_name: cart-of-the-configuration
                grpc_service: {envoy_grpc: {cluster_name: collector}}
          route_config:
            name: local
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes: [{match: {prefix: /}, direct_response: {status: 204}}]
          http_filters:
          - name: router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
  - name: collector
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    load_assignment:
      cluster_name: collector
      endpoints:
      - lb_endpoints:
        - endpoint: {address: {socket_address: {address: NODE, port_value: 4317}}}
"#;

mesh_test!(
    a_cluster_that_the_configuration_names_gets_the_spans,
    mesh,
    {
        let mut sink = Command::new(bin("outrigger-testapp"));
        sink.args(["spans", "--listen", &format!("{NODE}:4317")]);
        mesh.spawn("sink", sink);
        let pod = mesh.pod("pod");
        let file = mesh.dir.join("static.yaml");
        std::fs::write(&file, NAMED.replace("NODE", &NODE.to_string())).expect("written");
        let mut proxy = Command::new(bin("outrigger-proxy"));
        proxy.args(["run", "--workers", "1", "--config"]).arg(&file);
        proxy.args(["--outbound-port", "0", "--inbound-port", "0"]);
        mesh.spawn_in(&pod, "proxy", &proxy);
        let line = format!(
            "curl -sf -m 2 {} http://127.0.0.1:9000/",
            traceparent(TRACE, "01")
        );
        until("an answer", PATIENCE, || {
            (pod.sh(&line).0 == Some(0)).then_some(())
        });
        let span: Value = until("a span", PATIENCE, || {
            let log = mesh.log("sink");
            let line = log.lines().find(|line| line.contains(TRACE))?;
            serde_json::from_str(line).ok()
        });
        assert_eq!(span["service"], "cart-of-the-configuration");
        assert_eq!(span["parent"], SPAN);
        assert_eq!(span["kind"], "client");
        assert_eq!(span["attributes"]["http.response.status_code"], "204");
    }
);

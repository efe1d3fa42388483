//! The commands for a cluster, against an API server that plays a script; the control plane and
//! the proxy at the other end of its port-forwards are real.

mod server;
mod views;

use std::{net::SocketAddr, path::Path, process::ExitCode, time::Duration};

use clap::Parser as _;
use outrigger_control::{app::Running, cli, clock::Clock};
use outrigger_proto::type_url;
use serde_json::{Value, json};

use crate::common::{Ads, apply, certificate, channel, control_plane, token};
use server::{ApiServer, Script};

const SHOP: &str = "
apiVersion: outrigger.dev/v1
kind: Service
metadata: {name: cart, namespace: shop}
spec:
  serviceAccount: cart
  ports: [{name: http, port: 80, targetPort: 8080, appProtocol: http}]
  addresses: [10.96.0.10]
  endpoints: [{address: 127.0.0.1, workload: cart}, {address: 10.1.0.9, mesh: false}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: slow, namespace: shop}
spec:
  parentRefs: [{name: cart, kind: Service, group: ''}]
  rules: [{backendRefs: [{name: cart, port: 80}]}]
---
apiVersion: outrigger.dev/v1
kind: MutualTLS
metadata: {name: all, namespace: shop}
spec: {mode: strict, ports: {8080: permissive}}
---
apiVersion: outrigger.dev/v1
kind: TrafficPolicy
metadata: {name: cart, namespace: shop}
spec: {targetRefs: [{name: cart}]}
";
/// What the proxy of these tests runs.
const PROXY: &str = "
listeners:
- name: web
  address: {socket_address: {address: 127.0.0.1, port_value: 1}}
  filter_chains:
  - filters:
    - name: tcp
      typed_config:
        '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
        stat_prefix: web
        cluster: cart
clusters:
- name: cart
  type: STATIC
  connect_timeout: 1s
  load_assignment:
    cluster_name: cart
    endpoints:
    - lb_endpoints:
      - endpoint: {address: {socket_address: {address: 10.0.0.7, port_value: 8080}}}
      - endpoint: {address: {socket_address: {address: 10.0.0.8, port_value: 8080}}}
        health_status: DRAINING
";

fn pod(namespace: &str, name: &str, labels: &Value, proxy: bool) -> Value {
    let mut first = Vec::new();
    let mut running = Vec::new();
    if proxy {
        first.push(json!({"name": "outrigger-proxy", "image": "proxy:1"}));
        running.push(
            json!({"name": "outrigger-proxy", "image": "proxy:1", "imageID": "",
            "ready": true, "restartCount": 0, "state": {"running": {}}}),
        );
    }
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"serviceAccountName": "cart", "nodeName": "n1", "initContainers": first,
            "containers": [{"name": "app", "image": "app:1"}]},
        "status": {"phase": "Running", "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}],
            "initContainerStatuses": running,
            "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

fn namespace(name: &str, inject: Option<&str>) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name,
        "labels": inject.map(|inject| json!({"outrigger.dev/inject": inject}))}})
}

/// A mesh with one proxy that is connected, and the cluster that it is in.
struct Mesh {
    api: ApiServer,
    control: Running,
    dir: tempfile::TempDir,
    _ads: Ads,
}

async fn mesh() -> Mesh {
    let dir = tempfile::tempdir().unwrap();
    let control = control_plane(dir.path(), Clock::system()).await;
    apply(&control, SHOP).await.unwrap();
    let root = dir.path().join("ca/root.pem");
    let anonymous = channel(&control, &root, None).await.unwrap();
    let join = token(&control, "shop", "cart").await;
    let (_, svid) = certificate(anonymous, &join).await.unwrap();
    let known = channel(&control, &root, Some(&svid)).await.unwrap();
    let mut ads = Ads::open(known).await.unwrap();
    ads.subscribe(type_url::LISTENER, &["outbound/10.96.0.10:80"])
        .await;
    let first = ads.next().await;
    ads.answer(&first, None).await;
    let bundle = std::fs::read_to_string(&root).unwrap();
    let mut script = Script {
        minor: 34,
        ..Script::default()
    };
    script.objects = vec![
        namespace("shop", Some("enabled")),
        namespace("outrigger-system", Some("disabled")),
        pod(
            "outrigger-system",
            "control-0",
            &json!({"app": "outrigger-control"}),
            false,
        ),
        pod(
            "shop",
            "cart-0",
            &json!({"outrigger.dev/mesh": "sidecar"}),
            true,
        ),
        deployment(1),
        webhooks("Mutating", &bundle),
        webhooks("Validating", &bundle),
    ];
    script.kinds.insert(
        "outrigger.dev/v1",
        vec![
            "TrafficPolicy",
            "AuthorizationPolicy",
            "MutualTLS",
            "FaultInjection",
            "RateLimit",
            "Telemetry",
        ],
    );
    script.kinds.insert(
        "gateway.networking.k8s.io/v1",
        vec!["HTTPRoute", "GRPCRoute", "TCPRoute", "TLSRoute"],
    );
    script
        .ports
        .insert(("control-0".into(), 15010), control.api_addr);
    let api = ApiServer::start(dir.path(), script).await;
    Mesh {
        api,
        control,
        dir,
        _ads: ads,
    }
}

fn deployment(ready: u32) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "outrigger-control", "namespace": "outrigger-system"},
        "spec": {"replicas": 1, "selector": {}, "template": {}},
        "status": {"readyReplicas": ready}})
}

fn webhooks(which: &str, bundle: &str) -> Value {
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    let injector = which == "Mutating";
    let name = if injector {
        "outrigger-injector"
    } else {
        "outrigger-policies"
    };
    json!({"apiVersion": "admissionregistration.k8s.io/v1",
        "kind": format!("{which}WebhookConfiguration"), "metadata": {"name": name},
        "webhooks": [{"name": "n", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"caBundle": BASE64_STANDARD.encode(bundle)}}]})
}

async fn run(api: &ApiServer, words: &[&str]) -> (anyhow::Result<ExitCode>, String) {
    let kubeconfig = api.kubeconfig.to_str().unwrap();
    let all = ["outrigger", "--kubeconfig", kubeconfig].into_iter();
    let all = all.chain(words.iter().copied());
    let mut out = Vec::new();
    let result = Box::pin(cli::run(cli::Args::parse_from(all), &mut out)).await;
    (result, String::from_utf8(out).unwrap())
}

async fn said(api: &ApiServer, words: &[&str]) -> String {
    let (result, text) = run(api, words).await;
    assert_eq!(result.unwrap(), ExitCode::SUCCESS, "{words:?}: {text}");
    text
}

async fn refused(api: &ApiServer, words: &[&str]) -> String {
    let (result, text) = run(api, words).await;
    assert_eq!(text, "", "{words:?}");
    format!("{:#}", result.unwrap_err())
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

/// A proxy of this process, on ports of its own; where its admin answers.
async fn proxy(dir: &Path) -> SocketAddr {
    use outrigger_proxy::{
        app,
        bootstrap::{Cli, Command},
        telemetry::Logging,
    };
    let config = dir.join("proxy.yaml");
    std::fs::write(&config, PROXY).unwrap();
    let free = || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let (admin, telemetry, health) = (free(), free(), free());
    let (outbound, inbound) = (free().port().to_string(), free().port().to_string());
    let words = [
        "outrigger-proxy",
        "run",
        "--config",
        config.to_str().unwrap(),
        "--admin-addr",
        &admin.to_string(),
        "--telemetry-addr",
        &telemetry.to_string(),
        "--health-addr",
        &health.to_string(),
        "--outbound-port",
        &outbound,
        "--inbound-port",
        &inbound,
        "--access-log",
        "off",
        "--workers",
        "1",
    ];
    let Command::Run(args) = Cli::parse_from(words).command else {
        unreachable!("run");
    };
    std::thread::spawn(move || {
        let logging = Logging::start(&args.log_level, args.log_format.into()).unwrap();
        app::run(&args, &logging).unwrap();
    });
    for _ in 0..200 {
        if std::net::TcpStream::connect(admin).is_ok() {
            return admin;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    unreachable!("the proxy does not start");
}

#[tokio::test]
async fn the_control_plane_is_asked_through_a_port_forward() {
    let mesh = mesh().await;
    let table = said(&mesh.api, &["status"]).await;
    let lines: Vec<_> = table.lines().map(words).collect();
    assert_eq!(lines[1][..3], ["shop/cart-1", "1/1", "current"], "{table}");
    let all: Value =
        serde_json::from_str(&said(&mesh.api, &["status", "-o", "json"]).await).unwrap();
    assert_eq!(all["proxies"][0]["controlPlane"], "control-0");
    assert_eq!(all["proxies"][0]["revision"], 1);
    let list = said(&mesh.api, &["list", "services"]).await;
    assert!(list.contains("cart"), "{list}");
    let dump = said(&mesh.api, &["config-dump", "shop/cart-1", "-o", "table"]).await;
    assert!(dump.contains("outbound/10.96.0.10:80"), "{dump}");
    mesh.control.stop().await;
}

#[tokio::test]
async fn what_is_in_the_way_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let api = ApiServer::start(dir.path(), Script::default()).await;
    let error = refused(&api, &["status"]).await;
    assert!(
        error.contains("no control plane in namespace outrigger-system of test"),
        "{error}"
    );

    let mut control = pod(
        "outrigger-system",
        "c",
        &json!({"app": "outrigger-control"}),
        false,
    );
    api.script.lock().unwrap().objects = vec![control.clone()];
    let error = refused(&api, &["status"]).await;
    assert!(
        error.contains("port 15010 of pod outrigger-system/c: dial tcp4")
            && error.ends_with("refused"),
        "{error}"
    );

    api.script
        .lock()
        .unwrap()
        .forbidden
        .insert("pods/portforward");
    let error = refused(&api, &["status"]).await;
    assert!(error.contains("no right to make a port-forward"), "{error}");

    control["status"]["conditions"][0]["status"] = "False".into();
    api.script.lock().unwrap().objects = vec![control];
    let error = refused(&api, &["status"]).await;
    assert!(
        error.contains("none of the 1 pods of the control plane"),
        "{error}"
    );

    let words = ["outrigger", "--kubeconfig", "/nowhere", "status"];
    let error = cli::run(cli::Args::parse_from(words), &mut Vec::new()).await;
    let error = format!("{:#}", error.unwrap_err());
    assert!(error.starts_with("--kubeconfig /nowhere"), "{error}");
    let error = refused(&api, &["--context", "else", "status"]).await;
    assert!(error.contains("names no cluster"), "{error}");
}

#[tokio::test]
async fn a_proxy_is_looked_into() {
    let mesh = mesh().await;
    let admin = proxy(mesh.dir.path()).await;
    let error = refused(&mesh.api, &["proxy", "config", "cart-0", "-n", "shop"]).await;
    assert!(
        error.contains("pod shop/cart-0") && error.contains("refused"),
        "{error}"
    );
    let to = ("cart-0".to_owned(), 15000);
    mesh.api.script.lock().unwrap().ports.insert(to, admin);

    let table = said(&mesh.api, &["proxy", "config", "cart-0", "-n", "shop"]).await;
    let rows: Vec<_> = table.lines().map(words).collect();
    assert!(rows.contains(&vec!["listener", "web"]), "{table}");
    assert!(rows.contains(&vec!["cluster", "cart"]), "{table}");
    let one = [
        "proxy", "config", "cart-0", "-n", "shop", "-t", "cluster", "-o", "json",
    ];
    let one: Value = serde_json::from_str(&said(&mesh.api, &one).await).unwrap();
    assert_eq!(one[0]["resource"]["name"], "cart");
    assert_eq!(one.as_array().unwrap().len(), 1);

    let table = said(&mesh.api, &["proxy", "endpoints", "cart-0", "-n", "shop"]).await;
    let rows: Vec<_> = table.lines().map(words).collect();
    assert_eq!(
        rows[1][..3],
        ["cart", "10.0.0.7:8080", "healthy"],
        "{table}"
    );
    assert_eq!(
        rows[2][..3],
        ["cart", "10.0.0.8:8080", "draining"],
        "{table}"
    );
    let other = [
        "proxy",
        "endpoints",
        "cart-0",
        "-n",
        "shop",
        "--cluster",
        "else",
    ];
    assert_eq!(said(&mesh.api, &other).await, "none\n");

    let level = ["proxy", "log-level", "cart-0", "-n", "shop"];
    assert_eq!(said(&mesh.api, &level).await, "info\n");
    let set = [&level[..], &["warn,outrigger_proxy::pool=trace"]].concat();
    let now = said(&mesh.api, &set).await;
    assert!(now.contains("outrigger_proxy::pool=trace"), "{now}");
    assert_eq!(said(&mesh.api, &level).await, now);
    let wrong = [&level[..], &["a=b=c"]].concat();
    let error = refused(&mesh.api, &wrong).await;
    assert!(
        error.starts_with("the proxy of pod shop/cart-0: "),
        "{error}"
    );

    let top = ["top", "-n", "shop", "--window", "10ms"];
    let table = said(&mesh.api, &top).await;
    let rows: Vec<_> = table.lines().map(words).collect();
    assert_eq!(
        rows[1],
        ["cart-0", "0.0", "-", "-", "-", "0.0", "-", "-", "-"],
        "{table}"
    );
    let error = refused(&mesh.api, &["top", "-n", "empty"]).await;
    assert_eq!(error, "no pod of namespace empty is in the mesh");
    mesh.control.stop().await;
}

#[tokio::test]
async fn a_pod_outside_is_no_proxy() {
    let mesh = mesh().await;
    let outside = pod("shop", "old-0", &json!({}), false);
    mesh.api.script.lock().unwrap().objects.push(outside);
    let error = refused(&mesh.api, &["proxy", "config", "old-0", "-n", "shop"]).await;
    assert_eq!(
        error,
        "pod shop/old-0 has no outrigger-proxy: it is outside the mesh"
    );
    let error = refused(&mesh.api, &["proxy", "config", "nobody", "-n", "shop"]).await;
    assert!(
        error.starts_with("there is no pod shop/nobody in test"),
        "{error}"
    );
    let text = said(&mesh.api, &["describe", "pod", "old-0", "-n", "shop"]).await;
    assert!(text.contains("outside: it was made before"), "{text}");
    mesh.control.stop().await;
}

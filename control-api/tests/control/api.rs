//! The control API and the command-line client.

use std::{process::ExitCode, time::Duration};

use clap::Parser as _;
use outrigger_control::{app::Running, cli, clock::Clock};
use outrigger_proto::outrigger::control::v1 as pb;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tonic::{Code, transport::Endpoint};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::common::{Ads, PATIENCE, api, apply, certificate, channel, control_plane, token};

const CART: &str = "
apiVersion: outrigger.dev/v1
kind: Service
metadata: {name: cart, namespace: shop}
spec:
  ports: [{name: http, port: 80, targetPort: 8080}]
  addresses: [10.96.0.10]
  endpoints: [{address: 10.1.0.2}]
";

pub(crate) async fn run(running: &Running, words: &[&str]) -> (anyhow::Result<ExitCode>, String) {
    let server = running.api_addr.to_string();
    let all = ["outrigger", "--server", &server]
        .into_iter()
        .chain(words.iter().copied());
    let mut out = Vec::new();
    let result = Box::pin(cli::run(cli::Args::parse_from(all), &mut out)).await;
    (result, String::from_utf8(out).unwrap())
}

#[tokio::test]
async fn an_apply_is_all_or_nothing_and_names_every_fault() {
    let dir = tempfile::tempdir().unwrap();
    let running = control_plane(dir.path(), Clock::system()).await;
    let bad = format!(
        "{CART}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: cart, namespace: shop}}
spec:
  parentRefs: [{{name: cart}}]
  rules: [{{backendRefs: [{{name: cart, port: 80}}, {{name: v2, port: 80, weight: -1}}]}}]
---
apiVersion: outrigger.dev/v1
kind: TrafficPolicy
metadata: {{name: cart, namespace: shop}}
spec: {{targetRefs: [{{name: cart}}], circuitBreaker: {{slowCallRate: 20}}}}
"
    );
    let refused = apply(&running, &bad).await.err().unwrap();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let lines: Vec<_> = refused.message().lines().collect();
    assert_eq!(
        lines,
        [
            "HTTPRoute shop/cart: spec.rules[0].backendRefs[1].weight: invalid value: integer `-1`, \
             expected u32",
            "TrafficPolicy shop/cart: spec.circuitBreaker.slowCallDuration: must say what is slow",
        ]
    );
    let list = api(&running)
        .list(pb::ListRequest::default())
        .await
        .unwrap();
    assert!(list.into_inner().objects.is_empty());
    running.stop().await;
}

#[tokio::test]
async fn what_is_checked_only_is_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let running = control_plane(dir.path(), Clock::system()).await;
    let request = pb::ApplyRequest {
        manifest: CART.into(),
        dry_run: true,
        ..pb::ApplyRequest::default()
    };
    let answer = api(&running).apply(request).await.unwrap().into_inner();
    assert_eq!(answer.outcomes[0].change(), pb::outcome::Change::Created);
    let list = api(&running)
        .list(pb::ListRequest::default())
        .await
        .unwrap();
    assert!(list.into_inner().objects.is_empty());
    running.stop().await;
}

#[tokio::test]
async fn references_that_lead_nowhere_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let running = control_plane(dir.path(), Clock::system()).await;
    let route = format!(
        "{CART}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: cart, namespace: shop}}
spec:
  parentRefs: [{{name: cart, port: 81}}]
  rules: [{{backendRefs: [{{name: cart, port: 80}}, {{name: v2, namespace: other, port: 80}}]}}]
"
    );
    let answer = apply(&running, &route).await.unwrap();
    assert_eq!(
        answer.warnings,
        [
            "HTTPRoute shop/cart: spec.parentRefs[0]: Service shop/cart has no port 81",
            "HTTPRoute shop/cart: spec.rules[0].backendRefs[1]: Service other/v2 does not exist",
        ]
    );
    running.stop().await;
}

#[tokio::test]
async fn two_services_cannot_have_one_address() {
    let dir = tempfile::tempdir().unwrap();
    let running = control_plane(dir.path(), Clock::system()).await;
    apply(&running, CART).await.unwrap();
    let other = CART.replace("name: cart", "name: other");
    let refused = apply(&running, &other).await.err().unwrap();
    assert_eq!(
        refused.message(),
        "Service shop/other: spec.addresses[0]: 10.96.0.10 port 80 already belongs to Service \
         shop/cart"
    );
    running.stop().await;
}

#[tokio::test]
async fn endpoints_come_and_go_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let running = control_plane(dir.path(), Clock::system()).await;
    apply(&running, CART).await.unwrap();
    let mut states = api(&running)
        .watch(pb::WatchRequest::default())
        .await
        .unwrap()
        .into_inner();
    let mut next = async || {
        let state = timeout(PATIENCE, states.message()).await.unwrap();
        state.unwrap().unwrap()
    };
    assert_eq!(next().await.changed.len(), 1);

    let words = [
        "endpoint",
        "register",
        "cart",
        "10.1.0.3",
        "-n",
        "shop",
        "--port",
        "http=9090",
        "--zone",
        "b",
    ];
    let (result, said) = run(&running, &words).await;
    assert_eq!(
        (result.unwrap(), said.as_str()),
        (ExitCode::SUCCESS, "revision 2\n")
    );
    assert!(next().await.changed[0].json.contains("10.1.0.3"));
    let words = ["endpoint", "deregister", "cart", "10.1.0.2", "-n", "shop"];
    run(&running, &words).await.0.unwrap();
    let state = next().await;
    assert_eq!(state.revision, 3);
    assert!(!state.changed[0].json.contains("10.1.0.2"));

    let (_, table) = run(&running, &["endpoints"]).await;
    let row: Vec<_> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row, ["shop", "cart", "10.1.0.3", "b", "mTLS", "default"]);
    let words = [
        "endpoint", "register", "cart", "10.1.0.4", "--port", "none=1", "-n", "shop",
    ];
    let refused = run(&running, &words).await.0.unwrap_err().to_string();
    assert!(
        refused.ends_with("ports.none: is no port of the service"),
        "{refused}"
    );

    run(
        &running,
        &["delete", "service", "cart", "-n", "shop", "--wait"],
    )
    .await
    .0
    .unwrap();
    let state = next().await;
    assert_eq!(state.deleted[0].name, "cart");
    running.stop().await;
}

#[tokio::test]
async fn apply_and_wait_tells_who_refused() {
    let dir = tempfile::tempdir().unwrap();
    let running = control_plane(dir.path(), Clock::system()).await;
    let root = dir.path().join("ca/root.pem");
    let join = token(&running, "shop", "cart").await;
    let anonymous = channel(&running, &root, None).await.unwrap();
    let (_, svid) = certificate(anonymous, &join).await.unwrap();
    let known = channel(&running, &root, Some(&svid)).await.unwrap();
    let mut ads = Ads::open(known).await.unwrap();
    let listener = "outbound/10.96.0.10:80";
    ads.subscribe(outrigger_proto::type_url::LISTENER, &[listener])
        .await;
    let absent = ads.next().await;
    ads.answer(&absent, None).await;

    let file = dir.path().join("cart.yaml");
    std::fs::write(&file, CART).unwrap();
    let file = file.to_str().unwrap();
    let refuse = async {
        let answer = ads.next().await;
        ads.answer(&answer, Some("no such thing as a cart")).await;
        ads
    };
    let words = ["apply", "-f", file, "--wait"];
    let ((result, said), ads) = tokio::join!(run(&running, &words), refuse);
    assert_eq!(result.unwrap(), ExitCode::from(cli::EXIT_NOT_LIVE));
    assert!(said.contains("taken by 0 of 1 proxy"), "{said}");
    assert!(
        said.contains("rejected by shop/cart-1: no such thing as a cart"),
        "{said}"
    );

    let (_, status) = run(&running, &["status"]).await;
    assert!(
        status.contains("rejected revision 1: no such thing as a cart"),
        "{status}"
    );
    let (_, dump) = run(&running, &["config-dump", "shop/cart-1"]).await;
    let dump: serde_json::Value = serde_json::from_str(&dump).unwrap();
    let held = &dump[outrigger_proto::type_url::LISTENER][listener];
    assert_eq!(held["resource"]["name"], listener);

    let metrics = get(&running, "/metrics").await;
    for line in [
        "outrigger_control_proxies 1",
        "outrigger_control_proxies_rejecting 1",
        "outrigger_control_xds_refusals_total{type=\"listener\"} 1",
        "outrigger_control_certificates_total{outcome=\"issued\"} 1",
        "outrigger_control_objects{kind=\"Service\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    drop(ads);
    running.stop().await;
}

async fn get(running: &Running, path: &str) -> String {
    let mut stream = TcpStream::connect(running.telemetry_addr).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut text))
        .await
        .unwrap()
        .unwrap();
    text
}

#[tokio::test]
async fn health_is_told_in_both_ways() {
    let dir = tempfile::tempdir().unwrap();
    let running = control_plane(dir.path(), Clock::system()).await;
    assert!(
        get(&running, "/healthz")
            .await
            .starts_with("HTTP/1.1 200 OK")
    );
    assert!(get(&running, "/else").await.starts_with("HTTP/1.1 404"));
    let channel = Endpoint::from_shared(format!("http://{}", running.api_addr))
        .unwrap()
        .connect_timeout(Duration::from_secs(5))
        .connect_lazy();
    let health = HealthClient::new(channel)
        .check(HealthCheckRequest::default())
        .await;
    let status = health.unwrap().into_inner().status();
    assert_eq!(status, ServingStatus::Serving);
    running.stop().await;
}

#[tokio::test]
async fn the_api_describes_itself() {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let dir = tempfile::tempdir().unwrap();
    let running = control_plane(dir.path(), Clock::system()).await;
    let channel = Endpoint::from_shared(format!("http://{}", running.api_addr))
        .unwrap()
        .connect_lazy();
    let question = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let questions = futures_util::stream::iter([question]);
    let mut client = ServerReflectionClient::new(channel);
    let answers = client.server_reflection_info(questions).await.unwrap();
    let answer = answers.into_inner().message().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        unreachable!("{answer:?}");
    };
    let names: Vec<_> = list.service.into_iter().map(|s| s.name).collect();
    assert!(
        names.contains(&"outrigger.control.v1.ControlService".to_owned()),
        "{names:?}"
    );
    running.stop().await;
}

#[tokio::test]
async fn completions_name_the_commands() {
    let dir = tempfile::tempdir().unwrap();
    let running = control_plane(dir.path(), Clock::system()).await;
    let (_, script) = run(&running, &["completions", "bash"]).await;
    assert!(script.contains("config-dump") && script.contains("complete -F _outrigger"));
    running.stop().await;
}

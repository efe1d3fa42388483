//! The pages, asked over real sockets.

use std::{
    fs,
    net::SocketAddr,
    sync::{Mutex, OnceLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use rustls::pki_types::UnixTime;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Notify,
};

use super::*;
use crate::{
    balance::Clusters,
    config::SpiffeId,
    drain::{Drain, Phase},
    policy::{fault_injection::ActiveFaults, worker::World},
    telemetry::Telemetry,
    tls::{Identity, IdentityStore, ServerTlsCache},
    xds,
};

/// 2026-11-25T00:00:00Z
const NOW: u64 = 1_795_564_800;

const CONFIG: &str = r"
listeners:
- name: web
  address: {socket_address: {address: 10.0.0.1, port_value: 80}}
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

/// A proxy with a configuration from a file.
fn admin() -> Arc<Admin> {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("config.yaml");
    fs::write(&file, CONFIG).expect("written");
    let at = UNIX_EPOCH + Duration::from_secs(NOW);
    let local = xds::local::load(&file, at).expect("a good configuration");
    let now = Instant::now();
    let live = Clusters::new(now).update(local.snapshot, now);
    let world = World::next(&World::default(), live, now);
    let identity = IdentityStore::new();
    let shared = Shared {
        world: ArcSwap::from_pointee(world),
        changed: Notify::new(),
        demand: OnceLock::new(),
        identity: Arc::clone(&identity),
        server_tls: ServerTlsCache::new(identity),
        drain: Drain::default(),
        telemetry: Arc::new(Telemetry::default()),
        faults: ActiveFaults::default(),
        own_ports: Vec::new(),
        own_ips: Vec::new(),
    };
    let filter = Mutex::new("info".to_owned());
    Arc::new(Admin {
        node: NodeInfo {
            id: "sidecar~10.0.0.1~web.shop~shop.svc.outrigger.local".into(),
            workload: "web".into(),
            ..NodeInfo::default()
        },
        shared: Arc::new(shared),
        sources: vec![(Origin::File, local.view)],
        stream: None,
        readiness: Readiness::default(),
        prober: Prober::new(
            crate::bootstrap::Probes::default(),
            std::net::Ipv4Addr::LOCALHOST.into(),
        ),
        log_filter: Box::new(move |new| {
            let mut filter = filter.lock().expect("not poisoned");
            match new {
                Some("nonsense") => return Err("level: no such level".to_owned()),
                Some(new) => new.clone_into(&mut filter),
                None => {}
            }
            Ok(filter.clone())
        }),
        quit: watch::Sender::new(None),
        started: now,
        clock: WallClock::of(|| UnixTime::since_unix_epoch(Duration::from_secs(NOW))),
    })
}

/// Serves `pages` on a port of its own.
async fn serving(admin: &Arc<Admin>, pages: &'static [Page]) -> SocketAddr {
    let listener = bind("127.0.0.1:0".parse().expect("an address"))
        .await
        .expect("bound");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(serve(listener, pages, Arc::clone(admin)));
    address
}

/// Sends `request` as it is and reads to the end: status, head, body.
async fn raw(to: SocketAddr, request: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(to).await.expect("connected");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answered");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    (status.expect("a status"), head.to_owned(), body.to_owned())
}

async fn ask(to: SocketAddr, method: &str, target: &str) -> (u16, String) {
    let end = "host: localhost\r\nconnection: close\r\n\r\n";
    let (status, _, body) = raw(to, &format!("{method} {target} HTTP/1.1\r\n{end}")).await;
    (status, body)
}

async fn get_json(to: SocketAddr, target: &str) -> Value {
    let (status, body) = ask(to, "GET", target).await;
    assert_eq!(status, 200, "{target}: {body}");
    serde_json::from_str(&body).expect("JSON")
}

#[tokio::test]
async fn every_page_is_listed_and_answers_as_its_kind_says() {
    for pages in [ADMIN, TELEMETRY, HEALTH] {
        let to = serving(&admin(), pages).await;
        for page in pages {
            let (status, body) = ask(to, "GET", page.path).await;
            assert_eq!(status, if page.shows { 200 } else { 405 }, "{body}");
            let (status, _) = ask(to, "PUT", page.path).await;
            assert_eq!(status, 405, "{}", page.path);
            if !page.changes {
                let (status, _) = ask(to, "POST", page.path).await;
                assert_eq!(status, 405, "{}", page.path);
            }
        }
    }
    let to = serving(&admin(), ADMIN).await;
    let (_, help) = ask(to, "GET", "/").await;
    insta::assert_snapshot!(help);
}

#[tokio::test]
async fn a_wrong_question_is_told_what_is_wrong() {
    let to = serving(&admin(), ADMIN).await;
    let table = [
        ("GET", "/nothing", 404, "/config_dump"),
        ("GET", "/stats?filtre=x", 400, "filter, format, usedonly"),
        ("GET", "/stats?filter=(", 400, "unclosed group"),
        ("GET", "/stats?format=xml", 400, "text, json, prometheus"),
        ("GET", "/clusters?format=xml", 400, "text nor json"),
        ("GET", "/config_dump?resource=all", 400, "dynamic_listeners"),
        ("GET", "/logging?level=debug", 400, "POST"),
        ("POST", "/logging?level=nonsense", 400, "no such level"),
        ("DELETE", "/clusters", 405, "not for DELETE"),
    ];
    for (method, target, status, says) in table {
        let (got, body) = ask(to, method, target).await;
        assert_eq!(got, status, "{method} {target}: {body}");
        assert!(body.contains(says), "{method} {target}: {body}");
    }
}

#[tokio::test]
async fn a_browser_cannot_change_anything() {
    let admin = admin();
    let to = serving(&admin, ADMIN).await;
    let from_page = "POST /quitquitquit HTTP/1.1\r\nhost: localhost\r\n\
                     origin: https://evil.example\r\nconnection: close\r\n\r\n";
    let (status, ..) = raw(to, from_page).await;
    assert_eq!(status, 403);
    assert_eq!(*admin.quit.borrow(), None);
}

#[tokio::test]
async fn a_body_is_bounded() {
    let to = serving(&admin(), ADMIN).await;
    let length = MAX_BODY + 1;
    let body = "x".repeat(length);
    let head = "POST /drain_listeners HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n";
    let (status, ..) = raw(to, &format!("{head}content-length: {length}\r\n\r\n{body}")).await;
    assert_eq!(status, 413);
    let (status, ..) = raw(to, &format!("{head}content-length: 2\r\n\r\n{{}}")).await;
    assert_eq!(status, 200);
}

#[tokio::test(start_paused = true)]
async fn lk_05_a_slow_head_ends_and_connections_are_bounded() {
    let to = serving(&admin(), HEALTH).await;
    let mut held = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        let mut stream = TcpStream::connect(to).await.expect("connected");
        stream
            .write_all(b"GET /healthz/live HT")
            .await
            .expect("sent");
        held.push(stream);
    }
    let begun = Instant::now();
    let mut over = TcpStream::connect(to).await.expect("connected");
    let mut end = Vec::new();
    // Closed at once; with bytes unread that may be a reset.
    drop(over.read_to_end(&mut end).await);
    assert_eq!(end, b"");
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
    for stream in &mut held {
        let mut end = Vec::new();
        drop(stream.read_to_end(&mut end).await);
    }
    let waited = begun.elapsed();
    assert!((9..20).contains(&waited.as_secs()), "{waited:?}");
    let (status, _) = ask(to, "GET", "/healthz/live").await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn ku_01_ready_says_what_is_missing_and_ends_with_the_first_signal() {
    let admin = admin();
    let to = serving(&admin, HEALTH).await;
    let ready = || ask(to, "GET", "/healthz/ready");
    let missing = admin.readiness.block("a certificate");
    let waiting = "INITIALIZING: waiting for a certificate\n";
    assert_eq!(ready().await, (503, waiting.to_owned()));
    drop(missing);
    assert_eq!(ready().await, (200, "LIVE\n".to_owned()));
    admin.shared.drain.advance(Phase::Lingering);
    let (status, body) = ready().await;
    assert_eq!(status, 503);
    assert!(body.starts_with("DRAINING"), "{body}");
    assert_eq!(ask(to, "GET", "/healthz/live").await.0, 200);
}

#[tokio::test]
async fn ku_03_a_job_ends_its_proxy() {
    let admin = admin();
    let to = serving(&admin, ADMIN).await;
    assert_eq!(ask(to, "GET", "/quitquitquit").await.0, 405);
    assert_eq!(*admin.quit.borrow(), None);
    let graceful = ask(to, "POST", "/quitquitquit?graceful").await;
    assert_eq!(graceful, (200, "OK\n".to_owned()));
    assert_eq!(*admin.quit.borrow(), Some(Quit::Gracefully));
    assert_eq!(ask(to, "POST", "/quitquitquit").await.0, 200);
    assert_eq!(*admin.quit.borrow(), Some(Quit::Now));
}

#[tokio::test]
async fn an_operator_drains_and_sets_the_log_level() {
    let admin = admin();
    let to = serving(&admin, ADMIN).await;
    assert_eq!(ask(to, "GET", "/logging").await, (200, "info\n".to_owned()));
    let set = ask(to, "POST", "/logging?level=info%2Ch2=trace").await;
    assert_eq!(set, (200, "info,h2=trace\n".to_owned()));
    assert_eq!(ask(to, "POST", "/drain_listeners").await.0, 200);
    assert_eq!(admin.shared.drain.phase(), Phase::Draining);
    let info = get_json(to, "/server_info").await;
    assert_eq!(info["state"], "DRAINING");
    assert_eq!(info["node"]["metadata"]["WORKLOAD_NAME"], "web");
}

#[tokio::test]
async fn the_dump_has_envoys_shape() {
    let to = serving(&admin(), ADMIN).await;
    let dump = get_json(to, "/config_dump").await;
    let configs = dump["configs"].as_array().expect("a list");
    let types: Vec<_> = configs
        .iter()
        .filter_map(|one| one["@type"].as_str()?.rsplit('.').next())
        .collect();
    let expected = [
        "BootstrapConfigDump",
        "ClustersConfigDump",
        "ListenersConfigDump",
        "RoutesConfigDump",
        "SecretsConfigDump",
    ];
    assert_eq!(types, expected);
    let listener = &configs[2]["static_listeners"][0];
    assert_eq!(listener["last_updated"], "2026-11-25T00:00:00Z");
    assert_eq!(listener["listener"]["name"], "web");
    let filter = &listener["listener"]["filter_chains"][0]["filters"][0];
    assert_eq!(filter["typed_config"]["cluster"], "cart");

    let clusters = get_json(to, "/config_dump?resource=static_clusters").await;
    let first = &clusters["configs"][0];
    assert_eq!(
        first["@type"],
        "type.googleapis.com/envoy.admin.v3.ClustersConfigDump.StaticCluster"
    );
    assert_eq!(first["cluster"]["name"], "cart");
    let none = get_json(to, "/config_dump?resource=static_clusters&name_regex=^x").await;
    assert_eq!(none["configs"], json!([]));
}

#[tokio::test]
async fn clusters_in_both_forms() {
    let to = serving(&admin(), ADMIN).await;
    let (_, text) = ask(to, "GET", "/clusters").await;
    for line in [
        "cart::default_priority::max_connections::1024",
        "cart::rq_total::0",
        "cart::10.0.0.7:8080::health_flags::healthy",
        "cart::10.0.0.8:8080::health_flags::/eds_status_draining",
    ] {
        assert!(text.lines().any(|one| one == line), "{line}\n{text}");
    }
    let all = get_json(to, "/clusters?format=json").await;
    let cart = &all["cluster_statuses"][0];
    assert_eq!(cart["name"], "cart");
    assert_eq!(cart["added_via_api"], false);
    let host = &cart["host_statuses"][0];
    let address = json!({"socket_address": {"address": "10.0.0.7", "port_value": 8080}});
    assert_eq!(host["address"], address);
    assert_eq!(host["health_status"]["eds_health_status"], "HEALTHY");
    assert_eq!(ask(to, "GET", "/listeners").await.1, "web::10.0.0.1:80\n");
    let listeners = get_json(to, "/listeners?format=json").await;
    assert_eq!(listeners["listener_statuses"][0]["name"], "web");
}

#[tokio::test]
async fn certificates_are_shown_and_keys_are_not() {
    let admin = admin();
    let to = serving(&admin, ADMIN).await;
    let empty = get_json(to, "/certs").await;
    assert_eq!(empty["certificates"], json!([]));

    let (chain, key, root) = issued("spiffe://outrigger.local/ns/shop/sa/web", NOW);
    let now = UnixTime::since_unix_epoch(Duration::from_secs(NOW));
    let id = SpiffeId::parse("spiffe://outrigger.local/ns/shop/sa/web").expect("good");
    let identity = Identity::from_pem(&chain, &key, &root, Some(&id), now).expect("good");
    admin.shared.identity.set(identity);

    let certs = get_json(to, "/certs").await;
    assert_eq!(certs["identity"], id.as_str());
    let own = &certs["certificates"][0]["cert_chain"][0];
    assert_eq!(own["subject_alt_names"], json!([{"uri": id.as_str()}]));
    assert_eq!(own["days_until_expiration"], "3");
    assert_eq!(own["expiration_time"], "2026-11-28T00:00:00Z");
    let ca = &certs["certificates"][0]["ca_cert"][0];
    assert_eq!(ca["days_until_expiration"], "365");

    let secrets = get_json(to, "/config_dump?resource=dynamic_active_secrets").await;
    assert_eq!(secrets["configs"][0]["name"], "default");
    assert_eq!(secrets["configs"][1]["name"], "ROOTCA");
    let text = secrets.to_string();
    assert!(text.contains("BEGIN CERTIFICATE"), "{text}");
    assert!(!text.contains("PRIVATE KEY"), "{text}");
}

/// Chain, key and root as PEM: a leaf good for three days from `now`.
fn issued(id: &str, now: u64) -> (String, String, String) {
    let at = |seconds| (SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).into();
    let key = || rcgen::KeyPair::generate().expect("a key");
    let mut ca = rcgen::CertificateParams::default();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    (ca.not_before, ca.not_after) = (at(now), at(now + 365 * 86_400));
    let ca_key = key();
    let root = ca.self_signed(&ca_key).expect("signed");
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let mut leaf = rcgen::CertificateParams::default();
    leaf.subject_alt_names = vec![rcgen::SanType::URI(id.try_into().expect("ASCII"))];
    (leaf.not_before, leaf.not_after) = (at(now), at(now + 3 * 86_400));
    let leaf_key = key();
    let cert = leaf.signed_by(&leaf_key, &issuer).expect("signed");
    (cert.pem(), leaf_key.serialize_pem(), root.pem())
}

#[tokio::test]
async fn numbers_for_prometheus_and_for_people() {
    let admin = admin();
    let _open = admin
        .shared
        .telemetry
        .accepted(crate::config::listener::Direction::Inbound);
    let to = serving(&admin, TELEMETRY).await;
    let end = "host: localhost\r\nconnection: close\r\n\r\n";
    let (status, head, body) = raw(to, &format!("GET /metrics HTTP/1.1\r\n{end}")).await;
    assert_eq!(status, 200);
    assert!(head.contains("application/openmetrics-text"), "{head}");
    assert!(body.ends_with("# EOF\n"), "{body}");
    let line = "outrigger_connections_total{direction=\"inbound\"} 1";
    assert!(body.contains(line), "{body}");

    let to = serving(&admin, ADMIN).await;
    let target = "/stats?filter=^outrigger_connections_&usedonly";
    let (_, text) = ask(to, "GET", target).await;
    let expected = "outrigger_connections_total{direction=\"inbound\"}: 1\n\
                    outrigger_connections_active{direction=\"inbound\"}: 1\n";
    assert_eq!(text, expected);
    let json = get_json(to, &format!("{target}&format=json")).await;
    assert_eq!(json["stats"][0]["labels"]["direction"], "inbound");
    assert_eq!(json["stats"][0]["value"], 1);
}

#[tokio::test]
async fn memory_by_the_kernels_books() {
    let to = serving(&admin(), ADMIN).await;
    let memory = get_json(to, "/memory").await;
    let resident = memory["resident"].as_u64().expect("a number");
    assert!(resident > 1 << 20, "{memory}");
}

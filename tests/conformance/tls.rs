//! Group E: mutual TLS between two proxies, and what a proxy does with other people's TLS.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use outrigger_proto::type_url;
use outrigger_tests::loopback::{
    PATIENCE, Proxy, Setup,
    certs::{self, Authority, DB, Files, Leaf, MESH_HTTP, MESH_TCP, STRANGER, WEB, accepts, dials},
    cluster, merge, raw, socket_address,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Mutex,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

const STEP: Duration = Duration::from_secs(20);

/// Answers each request with 200.
async fn good() -> SocketAddr {
    raw::serve(|mut stream, _| async move {
        while raw::try_read_head(&mut stream).await.is_some() {
            raw::write(
                &mut stream,
                b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            )
            .await;
        }
    })
    .await
}

/// A client's proxy and an application's, with mutual TLS between them.
struct Pair {
    near: Proxy,
    far: Proxy,
    web: Files,
    db: Files,
}

impl Pair {
    async fn start(ca: &Authority, app: SocketAddr) -> Self {
        let (web, db) = (
            Files::new(&ca.leaf(WEB), &[ca]),
            Files::new(&ca.leaf(DB), &[ca]),
        );
        let far = Setup::http(app).chain(&accepts(&MESH_HTTP)).identity(&db);
        let far = far.start().await;
        // No connection is kept, so that each request is a handshake.
        let near = Setup::http(far.address)
            .cluster(&dials(DB))
            .cluster(&per_connection(1))
            .identity(&web)
            .start()
            .await;
        Self { near, far, web, db }
    }

    async fn get(&self) -> u16 {
        status_of(&self.near, "GET").await
    }
}

fn per_connection(requests: u32) -> Value {
    let name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    json!({"typed_extension_protocol_options": {name: {
        "@type": format!("type.googleapis.com/{name}"),
        "explicit_http_config": {"http_protocol_options": {}},
        "common_http_protocol_options": {"max_requests_per_connection": requests},
    }}})
}

async fn status_of(proxy: &Proxy, method: &str) -> u16 {
    let mut client = proxy.connect().await;
    let request = format!("{method} / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n");
    raw::write(&mut client, request.as_bytes()).await;
    raw::status(&raw::read_response(&mut client).await.0)
}

/// Waits until a proxy's log has said something so many times.
async fn said(proxy: &Proxy, what: &str, times: usize) {
    let end = Instant::now() + PATIENCE;
    while proxy.log().matches(what).count() < times {
        assert!(Instant::now() < end, "{what:?} was not said {times} times");
        sleep(Duration::from_millis(50)).await;
    }
}

const CHANGED: &str = "certificate files changed";

/// Certificates that scripted servers were shown, without repetition.
type Shown = Arc<Mutex<Vec<Vec<u8>>>>;

/// A TLS server that echoes, and notes whose certificate it was shown.
async fn noting(ca: &Authority, shown: &Shown) -> SocketAddr {
    let acceptor = certs::server(&ca.leaf(DB), &[ca], &MESH_TCP);
    let shown = Arc::clone(shown);
    raw::serve(move |stream, _| {
        let (acceptor, shown) = (acceptor.clone(), Arc::clone(&shown));
        async move {
            let Ok(tls) = acceptor.accept(stream).await else {
                return;
            };
            let chain = tls.get_ref().1.peer_certificates().unwrap_or_default();
            let leaf = chain.first().map(|leaf| leaf.to_vec()).unwrap_or_default();
            let mut all = shown.lock().await;
            if !all.contains(&leaf) {
                all.push(leaf);
            }
            drop(all);
            let (mut reader, mut writer) = tokio::io::split(tls);
            let _gone = tokio::io::copy(&mut reader, &mut writer).await;
        }
    })
    .await
}

/// The certificate that a proxy shows to its clients.
async fn served(proxy: &Proxy, as_whom: &Leaf) -> Vec<u8> {
    let tcp = proxy.connect().await;
    let connector = certs::client(Some(as_whom), &MESH_HTTP);
    let tls = connector.connect(certs::server_name(), tcp).await;
    let tls = tls.expect("a handshake");
    let chain = tls.get_ref().1.peer_certificates().unwrap_or_default();
    chain.first().expect("a certificate").to_vec()
}

/// Requests one after the other on one connection, until told to stop: how many went well, and
/// what went wrong.
async fn keeps_asking(
    to: SocketAddr,
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
) -> Result<(), String> {
    let mut client = TcpStream::connect(to).await.map_err(|e| e.to_string())?;
    while !stop.load(Relaxed) {
        raw::write(
            &mut client,
            b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n",
        )
        .await;
        let (head, body) = raw::read_response(&mut client).await;
        if raw::status(&head) != 200 {
            let body = String::from_utf8_lossy(&body);
            return Err(format!("{head}{body}"));
        }
        asked.fetch_add(1, Relaxed);
        sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// A client's proxy that has a second listener, whose bytes go to `echo`.
async fn with_opaque_listener(
    far: SocketAddr,
    echo: SocketAddr,
    identity: &Files,
) -> (Proxy, SocketAddr) {
    let setup = Setup::http(far);
    let opaque = SocketAddr::from((setup.address(), 9000));
    let mut echoing = cluster("echo", &[echo]);
    merge(&mut echoing, &dials(DB));
    let near = setup
        .cluster(&dials(DB))
        .cluster(&per_connection(5))
        .identity(identity)
        .with_cluster(echoing)
        .with_listener(json!({
            "name": "opaque", "traffic_direction": "OUTBOUND", "address": socket_address(opaque),
            "filter_chains": [{"filters": [{"name": "tcp", "typed_config": {
                "@type": type_url::TCP_PROXY, "stat_prefix": "test", "cluster": "echo",
            }}]}],
        }))
        .start()
        .await;
    (near, opaque)
}

#[tokio::test(flavor = "multi_thread")]
async fn tl_01_leaves_rotate_under_load_without_a_failure() {
    const ROTATIONS: usize = 3;
    let ca = Authority::new("mesh");
    let shown = Shown::default();
    let echo = noting(&ca, &shown).await;
    let (web, db) = (
        Files::new(&ca.leaf(WEB), &[&ca]),
        Files::new(&ca.leaf(DB), &[&ca]),
    );
    let far = Setup::http(good().await)
        .chain(&accepts(&MESH_HTTP))
        .identity(&db);
    let far = far.start().await;
    let (near, opaque) = with_opaque_listener(far.address, echo, &web).await;

    let (stop, asked) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
    let mut askers = JoinSet::new();
    for _ in 0..6 {
        askers.spawn(keeps_asking(
            near.address,
            Arc::clone(&stop),
            Arc::clone(&asked),
        ));
    }
    let mut streams = Vec::new();
    for _ in 0..10 {
        streams.push(TcpStream::connect(opaque).await.expect("connected"));
    }
    let scripted = ca.leaf(WEB);
    let mut seen = vec![served(&far, &scripted).await];
    for n in 1..=ROTATIONS {
        let (new_web, new_db) = (ca.leaf(WEB), ca.leaf(DB));
        web.put(&new_web, &[&ca]);
        db.put(&new_db, &[&ca]);
        said(&near, CHANGED, n).await;
        said(&far, CHANGED, n).await;
        // In the server's role at once …
        let serving = served(&far, &scripted).await;
        assert_eq!(serving, new_db.first().to_vec(), "rotation {n}");
        seen.push(serving);
        // … in the client's as well …
        let mut fresh = TcpStream::connect(opaque).await.expect("connected");
        raw::write(&mut fresh, b"hello").await;
        assert_eq!(raw::read_exact(&mut fresh, 5).await, b"hello");
        let last = shown.lock().await.last().cloned();
        assert_eq!(last, Some(new_web.first().to_vec()), "rotation {n}");
        // … and what was open stays open.
        for stream in &mut streams {
            raw::write(stream, b"still?").await;
            assert_eq!(raw::read_exact(stream, 6).await, b"still?");
        }
    }
    seen.dedup();
    assert_eq!(seen.len(), ROTATIONS + 1);
    stop.store(true, Relaxed);
    while let Some(asker) = askers.join_next().await {
        assert_eq!(asker.expect("a task"), Ok(()));
    }
    let asked = asked.load(Relaxed);
    assert!(asked > 200, "only {asked} requests were made meanwhile");
    // Nobody's certificate was refused on either side.
    for proxy in [&near, &far] {
        let log = proxy.log();
        let refused = log.lines().find(|line| line.contains("certificate of"));
        assert_eq!(refused, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tl_02_a_trust_bundle_rotates_at_different_times_without_a_failure() {
    let (a, b) = (Authority::new("mesh root"), Authority::new("mesh root"));
    let pair = Pair::start(&a, good().await).await;
    assert_eq!(pair.get().await, 200);
    let stop = Arc::<AtomicBool>::default();
    let asked = Arc::<AtomicUsize>::default();
    let mut askers = JoinSet::new();
    for _ in 0..3 {
        let to = pair.near.address;
        askers.spawn(keeps_asking(to, Arc::clone(&stop), Arc::clone(&asked)));
    }
    // Who goes first changes with each step, as it would with ten proxies.
    let steps: [(&Authority, &[&Authority]); 4] = [
        (&a, &[&a, &b]),
        (&b, &[&a, &b]),
        (&b, &[&b]),
        (&b, &[&b, &a]),
    ];
    for (n, (issuer, bundle)) in steps.iter().enumerate() {
        let put_web = || pair.web.put(&issuer.leaf(WEB), bundle);
        let put_db = || pair.db.put(&issuer.leaf(DB), bundle);
        if n % 2 == 0 {
            put_web();
            said(&pair.near, CHANGED, n + 1).await;
            assert_eq!(pair.get().await, 200, "step {n}");
            put_db();
        } else {
            put_db();
            said(&pair.far, CHANGED, n + 1).await;
            assert_eq!(pair.get().await, 200, "step {n}");
            put_web();
        }
        said(&pair.near, CHANGED, n + 1).await;
        said(&pair.far, CHANGED, n + 1).await;
        assert_eq!(pair.get().await, 200, "step {n}");
    }
    stop.store(true, Relaxed);
    while let Some(asker) = askers.join_next().await {
        assert_eq!(asker.expect("a task"), Ok(()));
    }
    // Tooling learns from the proxy itself when the old root may go.
    let page: Value = serde_json::from_str(&pair.far.admin("/certs").await).expect("JSON");
    let issuer = page["certificates"][0]["cert_chain"][0]["issuer"].clone();
    let issuer = issuer.as_str().expect("an issuer");
    let roots = page["certificates"][0]["ca_cert"]
        .as_array()
        .expect("roots")
        .clone();
    let known: Vec<_> = roots
        .iter()
        .filter(|root| root["subject"] == issuer)
        .collect();
    assert_eq!((roots.len(), known.len()), (2, 1), "{page:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tl_02_bundles_that_do_not_overlap_are_refused_with_both_names() {
    let (a, b) = (Authority::new("root of a"), Authority::new("root of b"));
    let pair = Pair::start(&a, good().await).await;
    // The server is ahead: it no longer knows the root of its clients.
    pair.db.put(&a.leaf(DB), &[&b]);
    said(&pair.far, CHANGED, 1).await;
    assert_eq!(pair.get().await, 503);
    said(&pair.far, "not in our trust bundle", 1).await;
    let log = pair.far.log();
    let line = log
        .lines()
        .find(|line| line.contains("not in our trust bundle"));
    let line = line.expect("a line about the handshake");
    for name in [WEB, "CN=root of a", "CN=root of b"] {
        assert!(line.contains(name), "{name} is not in {line}");
    }
    // The client is behind: it does not know the root of the server yet.
    pair.db.put(&b.leaf(DB), &[&a, &b]);
    said(&pair.far, CHANGED, 2).await;
    assert_eq!(pair.get().await, 503);
    said(&pair.near, "not in our trust bundle", 1).await;
    let log = pair.near.log();
    let line = log
        .lines()
        .rfind(|line| line.contains("not in our trust bundle"));
    let line = line.expect("a line about the handshake");
    for name in [DB, "CN=root of b", "CN=root of a"] {
        assert!(line.contains(name), "{name} is not in {line}");
    }
}

async fn ready(proxy: &Proxy) -> bool {
    proxy.health("/healthz/ready").await == 200
}

#[tokio::test(flavor = "multi_thread")]
async fn tl_04_an_expired_certificate_makes_unready_and_a_new_one_ready_again() {
    let ca = Authority::new("mesh");
    let files = Files::new(&ca.lasting(WEB, 10), &[&ca]);
    let proxy = Setup::http(good().await).identity(&files).start().await;
    assert!(ready(&proxy).await, "valid for some seconds still");
    let end = Instant::now() + Duration::from_secs(25);
    while ready(&proxy).await {
        assert!(Instant::now() < end, "it has expired");
        sleep(Duration::from_millis(100)).await;
    }
    let metrics = proxy.metrics().await;
    let left = metrics
        .lines()
        .find_map(|line| line.strip_prefix("outrigger_identity_expiry_seconds "));
    let left: f64 = left.expect("a gauge").parse().expect("a number");
    assert!(left <= 0.0, "{left} s left");
    // One that is no better is not taken …
    files.put(&ca.lasting(WEB, -60), &[&ca]);
    said(&proxy, "certificate files not taken", 1).await;
    assert!(!ready(&proxy).await);
    // … a good one is.
    files.put(&ca.leaf(WEB), &[&ca]);
    let end = Instant::now() + Duration::from_secs(10);
    while !ready(&proxy).await {
        assert!(Instant::now() < end, "it has a good one");
        sleep(Duration::from_millis(100)).await;
    }
}

/// An application that takes all there is on one port: HTTP in clear text, its own TLS, and bytes
/// that it echoes. Notes the first bytes of each connection.
async fn takes_all(leaf: &Leaf, seen: &Arc<Mutex<Vec<Vec<u8>>>>) -> SocketAddr {
    let acceptor = certs::server(leaf, &[], &["h2", "http/1.1"]);
    let seen = Arc::clone(seen);
    raw::serve(move |mut stream, _| {
        let (acceptor, seen) = (acceptor.clone(), Arc::clone(&seen));
        async move {
            let mut first = [0; 3];
            let Ok(n) = stream.peek(&mut first).await else {
                return;
            };
            if n == 0 {
                return;
            }
            seen.lock().await.push(first[..n].to_vec());
            if first[0] == 0x16 {
                let Ok(tls) = acceptor.accept(stream).await else {
                    return;
                };
                let alpn = tls.get_ref().1.alpn_protocol().unwrap_or(b"none").to_vec();
                let (mut reader, mut writer) = tokio::io::split(tls);
                let _gone = writer.write_all(&alpn).await;
                let _gone = tokio::io::copy(&mut reader, &mut writer).await;
            } else if &first == b"GET" {
                let _head = raw::try_read_head(&mut stream).await;
                raw::write(
                    &mut stream,
                    b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
                )
                .await;
            } else {
                let (mut reader, mut writer) = stream.into_split();
                let _gone = tokio::io::copy(&mut reader, &mut writer).await;
            }
        }
    })
    .await
}

/// The chains of an inbound port, as the control plane makes them.
fn inbound(app: SocketAddr, permissive: bool) -> Setup {
    let tcp = json!([{"name": "tcp", "typed_config": {
        "@type": type_url::TCP_PROXY, "stat_prefix": "test", "cluster": "app",
    }}]);
    let http = json!([{"name": "http", "typed_config": {
        "@type": type_url::HTTP_CONNECTION_MANAGER,
        "stat_prefix": "test",
        "http_filters": [{"name": "envoy.filters.http.router",
            "typed_config": {"@type": type_url::ROUTER}}],
        "route_config": {"name": "in", "virtual_hosts": [{"name": "all", "domains": ["*"],
            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "app"}}]}]},
    }}]);
    let all = [&MESH_HTTP[..], &MESH_TCP[..]].concat();
    let mesh = |alpn: &[&str], filters: &Value| {
        let mut chain = json!({
            "name": format!("mesh {alpn:?}"),
            "filter_chain_match": {"transport_protocol": "tls", "application_protocols": alpn},
            "filters": filters,
        });
        merge(&mut chain, &accepts(&all));
        chain
    };
    let mut chains = vec![mesh(&MESH_HTTP, &http), mesh(&MESH_TCP, &tcp)];
    if permissive {
        chains.push(json!({
            "name": "http",
            "filter_chain_match": {
                "transport_protocol": "raw_buffer",
                "application_protocols": ["http/1.0", "http/1.1", "h2c"],
            },
            "filters": http,
        }));
        chains.push(json!({
            "name": "tcp",
            "filter_chain_match": {"transport_protocol": "raw_buffer"},
            "filters": tcp,
        }));
        chains.push(json!({
            "name": "tls of the application",
            "filter_chain_match": {"transport_protocol": "tls"},
            "filters": tcp,
        }));
    }
    Setup::tcp(app).listener(&json!({
        "traffic_direction": "INBOUND",
        "filter_chains": chains,
        "listener_filters": [
            {"name": "tls", "typed_config": {"@type":
                "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"}},
            {"name": "http", "typed_config": {"@type":
                "type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector"}},
        ],
    }))
}

/// What a client of some kind gets; `None` when it is turned away.
async fn visit(proxy: &Proxy, kind: &str, mesh: &Leaf) -> Option<String> {
    let mut tcp = proxy.connect().await;
    let get = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let own = |alpn: &[&str]| certs::client(None, alpn);
    match kind {
        "clear HTTP" => {
            raw::write(&mut tcp, get).await;
            let head = raw::try_read_head(&mut tcp).await?;
            Some(raw::status(&head).to_string())
        }
        "clear TCP" => {
            raw::write(&mut tcp, b"\x01\x02bytes").await;
            let mut echo = [0; 7];
            let read = timeout(STEP, tcp.read_exact(&mut echo))
                .await
                .expect("in time");
            read.ok().map(|_| echo.escape_ascii().to_string())
        }
        "mesh HTTP" => {
            let tls = certs::client(Some(mesh), &MESH_HTTP[1..]);
            let mut tls = tls.connect(certs::server_name(), tcp).await.ok()?;
            tls.write_all(get).await.ok()?;
            let head = raw::try_read_head(&mut tls).await?;
            Some(raw::status(&head).to_string())
        }
        "mesh with TLS inside" => {
            let tls = certs::client(Some(mesh), &MESH_TCP);
            let outer = tls.connect(certs::server_name(), tcp).await.ok()?;
            let inner = own(&["h2"]).connect(certs::server_name(), outer).await;
            let mut inner = inner.ok()?;
            Some(String::from_utf8_lossy(&raw::read_exact(&mut inner, 2).await).into_owned())
        }
        other => {
            let alpn: &[&str] = match other {
                "TLS for h2" => &["h2"],
                "TLS for HTTP/1.1" => &["http/1.1"],
                _ => &[],
            };
            let tls = own(alpn).connect(certs::server_name(), tcp).await;
            let mut tls = tls.ok()?;
            let expected = alpn.first().map_or(4, |name| name.len());
            Some(String::from_utf8_lossy(&raw::read_exact(&mut tls, expected).await).into_owned())
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tl_07_the_applications_own_tls_is_never_touched() {
    let (ca, other) = (Authority::new("mesh"), Authority::new("application"));
    let files = Files::new(&ca.leaf(DB), &[&ca]);
    let seen = Arc::<Mutex<Vec<Vec<u8>>>>::default();
    let app = takes_all(&other.leaf(STRANGER), &seen).await;
    let mesh = ca.leaf(WEB);
    let table = [
        ("clear HTTP", "200", None),
        ("clear TCP", "\\x01\\x02bytes", None),
        ("mesh HTTP", "200", Some("200")),
        ("mesh with TLS inside", "h2", Some("h2")),
        ("TLS for h2", "h2", None),
        ("TLS for HTTP/1.1", "http/1.1", None),
        ("TLS for nothing", "none", None),
    ];
    let permissive = inbound(app, true).identity(&files).start().await;
    let strict = inbound(app, false).identity(&files).start().await;
    for (kind, when_permissive, when_strict) in table {
        let got = visit(&permissive, kind, &mesh).await;
        assert_eq!(got.as_deref(), Some(when_permissive), "{kind}, permissive");
        seen.lock().await.clear();
        let got = visit(&strict, kind, &mesh).await;
        assert_eq!(got.as_deref(), when_strict, "{kind}, strict");
        sleep(Duration::from_millis(100)).await;
        let reached = !seen.lock().await.is_empty();
        assert_eq!(
            reached,
            when_strict.is_some(),
            "{kind}: did it reach the application?"
        );
    }
}

/// A name, what is shown, and what the log has to say.
type Case<'a> = (&'a str, Option<Leaf>, &'a [&'a str]);

#[tokio::test(flavor = "multi_thread")]
async fn tl_08_who_is_not_of_the_mesh_is_turned_away_with_one_line_that_says_why() {
    let (ca, other) = (Authority::new("mesh"), Authority::new("other mesh"));
    let files = Files::new(&ca.leaf(DB), &[&ca]);
    let reached = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&reached);
    let app = raw::serve(move |_, _| {
        count.fetch_add(1, Relaxed);
        std::future::ready(())
    })
    .await;
    let proxy = inbound(app, false).identity(&files).start().await;
    let foreign = "spiffe://elsewhere.example/ns/shop/sa/web";
    let cases: [Case<'_>; 5] = [
        ("nobody", None, &["no certificates"]),
        (
            "another root",
            Some(other.leaf(WEB)),
            &[WEB, "CN=other mesh", "CN=mesh"],
        ),
        ("expired", Some(ca.lasting(WEB, -60)), &[WEB, "expired"]),
        (
            "another domain",
            Some(ca.leaf(foreign)),
            &[foreign, "nobody who is accepted"],
        ),
        ("no identity", Some(ca.leaf("urn:web")), &["urn:web"]),
    ];
    for (n, (what, leaf, reasons)) in cases.iter().enumerate() {
        let tcp = proxy.connect().await;
        let from = tcp.local_addr().expect("an address").to_string();
        let tls = certs::client(leaf.as_ref(), &MESH_TCP);
        // In TLS 1.3 the client is done first; its refusal is what it reads first.
        if let Ok(mut tls) = tls.connect(certs::server_name(), tcp).await {
            let _gone = tls.write_all(b"hello").await;
            let mut said = Vec::new();
            let read = timeout(STEP, tls.read_to_end(&mut said))
                .await
                .expect("in time");
            let told = read.expect_err(what).to_string();
            assert!(told.contains("alert"), "{what}: {told}");
            assert!(said.is_empty());
        }
        let log = proxy.faults(n + 1).await;
        let line = log.last().expect("a line").to_string();
        // TL-12: from where, for which name, with what protocol, as whom, and why.
        for fact in [from.as_str(), "outrigger", MESH_TCP[0]]
            .iter()
            .chain(*reasons)
        {
            assert!(line.contains(fact), "{what}: {fact:?} is not in {line}");
        }
    }
    let mut plain = proxy.connect().await;
    raw::write(&mut plain, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let (got, _) = raw::read_to_end(&mut plain).await;
    assert!(got.is_empty());
    let log = proxy.faults(cases.len() + 1).await;
    let line = log.last().expect("a line").to_string();
    assert!(line.contains("no filter chain takes it"), "{line}");
    sleep(Duration::from_millis(200)).await;
    assert_eq!(proxy.faults(cases.len() + 1).await.len(), cases.len() + 1);
    assert_eq!(reached.load(Relaxed), 0, "connections to the application");
}

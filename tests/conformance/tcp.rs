//! Group D: opaque TCP, through one proxy and through two with mutual TLS between them: ends, resets,
//! and who speaks first.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use outrigger_proto::type_url;
use outrigger_tests::loopback::{
    Proxy, Setup,
    certs::{Authority, DB, Files, MESH_TCP, WEB, accepts, dials, server},
    raw,
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

/// No step waits longer.
pub(crate) const STEP: Duration = Duration::from_secs(20);

/// Proxies between a client and an application.
pub(crate) struct Path {
    /// Where the client connects.
    pub(crate) enter: SocketAddr,
    pub(crate) proxies: Vec<Proxy>,
    _identities: Vec<Files>,
}

impl Path {
    /// One proxy.
    pub(crate) async fn one(app: SocketAddr) -> Self {
        Self::of(Setup::tcp(app)).await
    }

    pub(crate) async fn of(setup: Setup) -> Self {
        let proxy = setup.start().await;
        Self {
            enter: proxy.address,
            proxies: vec![proxy],
            _identities: Vec::new(),
        }
    }

    /// Two, with mutual TLS between them.
    pub(crate) async fn two(app: SocketAddr) -> Self {
        let ca = Authority::new("mesh");
        let (web, db) = (
            Files::new(&ca.leaf(WEB), &[&ca]),
            Files::new(&ca.leaf(DB), &[&ca]),
        );
        let near_app = Setup::tcp(app).chain(&accepts(&MESH_TCP)).identity(&db);
        let near_app = near_app.start().await;
        let near_client = Setup::tcp(near_app.address)
            .cluster(&dials(DB))
            .identity(&web)
            .start()
            .await;
        Self {
            enter: near_client.address,
            proxies: vec![near_client, near_app],
            _identities: vec![web, db],
        }
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        self.proxies[0].connect().await
    }
}

/// Bytes that are nowhere the same for long.
pub(crate) fn noise(seed: u32, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(length + 4);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn assert_same(what: &str, got: &[u8], want: &[u8]) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    assert!(got == want, "{what}: content");
}

const UP: usize = 1 << 20;
const DOWN: usize = 10 << 20;

/// Reads to the client's end, computes for a while, answers ten times as much.
async fn computes() -> SocketAddr {
    raw::serve(|mut stream, _| async move {
        let (got, end) = raw::read_to_end(&mut stream).await;
        end.expect("a clean end");
        if got.is_empty() {
            // The harness, which looks whether a proxy listens.
            return;
        }
        assert_same("what the application got", &got, &noise(1, UP));
        sleep(Duration::from_millis(300)).await;
        let answer = noise(2, DOWN);
        timeout(STEP, stream.write_all(&answer))
            .await
            .expect("in time")
            .expect("answered");
    })
    .await
}

async fn client_ends_first(path: &Path) {
    let mut client = path.connect().await;
    timeout(STEP, client.write_all(&noise(1, UP)))
        .await
        .expect("in time")
        .expect("sent");
    client.shutdown().await.expect("ended");
    let (got, end) = raw::read_to_end(&mut client).await;
    end.expect("a clean end");
    assert_same("the answer", &got, &noise(2, DOWN));
}

#[tokio::test(flavor = "multi_thread")]
async fn tc_01_the_client_ends_first_and_gets_its_whole_answer() {
    let app = computes().await;
    for path in [Path::one(app).await, Path::two(app).await] {
        let all = futures_util::future::join_all((0..4).map(|_| client_ends_first(&path)));
        all.await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tc_01_the_application_ends_first_and_gets_all_that_follows() {
    let (done, mut finished) = mpsc::unbounded_channel();
    let app = raw::serve(move |mut stream, _| {
        let done = done.clone();
        async move {
            stream.write_all(b"bye").await.expect("written");
            stream.shutdown().await.expect("ended");
            let (got, end) = raw::read_to_end(&mut stream).await;
            // The harness looks whether a proxy listens, and says nothing.
            if !got.is_empty() {
                done.send((got, end)).expect("a test");
            }
        }
    })
    .await;
    for path in [Path::one(app).await, Path::two(app).await] {
        for _ in 0..4 {
            let mut client = path.connect().await;
            let (said, end) = raw::read_to_end(&mut client).await;
            end.expect("a clean end");
            assert_eq!(said, b"bye");
            let body = noise(3, DOWN);
            timeout(STEP, client.write_all(&body))
                .await
                .expect("in time")
                .expect("the way up stays open");
            client.shutdown().await.expect("ended");
            let (got, end) = timeout(STEP, finished.recv())
                .await
                .expect("in time")
                .expect("an application");
            end.expect("a clean end");
            assert_same("what the application got", &got, &body);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tc_01_a_thousand_short_half_closes_lose_nothing() {
    let app = raw::serve(|mut stream, _| async move {
        let (got, _) = raw::read_to_end(&mut stream).await;
        raw::write(&mut stream, &got).await;
    })
    .await;
    for path in [Path::one(app).await, Path::two(app).await] {
        for round in 0..20_u32 {
            let all = (0..25_u32).map(|n| {
                let path = &path;
                async move {
                    let body = noise(round * 25 + n, 3000);
                    let mut client = path.connect().await;
                    raw::write(&mut client, &body).await;
                    client.shutdown().await.expect("ended");
                    let (got, end) = raw::read_to_end(&mut client).await;
                    end.expect("a clean end");
                    assert_same("the echo", &got, &body);
                }
            });
            futures_util::future::join_all(all).await;
        }
    }
}

pub(crate) fn is_reset(end: &io::Result<()>) -> bool {
    matches!(end, Err(error) if error.kind() == io::ErrorKind::ConnectionReset)
}

#[tokio::test(flavor = "multi_thread")]
async fn tc_02_a_reset_by_the_application_is_no_end() {
    let app = raw::serve(|mut stream, _| async move {
        if timeout(STEP, stream.read_u8())
            .await
            .expect("in time")
            .is_err()
        {
            return;
        }
        raw::write(&mut stream, &[7; 100_000]).await;
        // Its client has read what was sent, so that the reset throws nothing away.
        raw::read_exact(&mut stream, 1).await;
        raw::reset(stream);
    })
    .await;
    for path in [Path::one(app).await, Path::two(app).await] {
        for _ in 0..10 {
            let mut client = path.connect().await;
            raw::write(&mut client, b"?").await;
            raw::read_exact(&mut client, 100_000).await;
            raw::write(&mut client, b"!").await;
            let (rest, end) = raw::read_to_end(&mut client).await;
            assert!(rest.is_empty());
            assert!(is_reset(&end), "{end:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tc_02_a_reset_by_the_client_reaches_the_application_at_once() {
    let (ended, mut ends) = mpsc::unbounded_channel();
    let app = raw::serve(move |mut stream, _| {
        let ended = ended.clone();
        async move {
            raw::write(&mut stream, b"hello").await;
            let (got, end) = raw::read_to_end(&mut stream).await;
            // The harness looks whether a proxy listens, and says nothing.
            if !got.is_empty() {
                ended.send(end).expect("a test");
            }
        }
    })
    .await;
    for path in [Path::one(app).await, Path::two(app).await] {
        let mut client = path.connect().await;
        raw::write(&mut client, b"hello").await;
        raw::read_exact(&mut client, 5).await;
        sleep(Duration::from_millis(200)).await;
        let began = Instant::now();
        raw::reset(client);
        let end = timeout(STEP, ends.recv()).await.expect("in time");
        let end = end.expect("an application");
        assert!(is_reset(&end), "{end:?}");
        assert!(
            began.elapsed() < Duration::from_secs(3),
            "{:?}",
            began.elapsed()
        );
    }
}

/// A TLS stream that ends without a `close_notify` was cut, by whomever.
#[tokio::test(flavor = "multi_thread")]
async fn tc_02_a_cut_tls_stream_is_no_end() {
    let ca = Authority::new("mesh");
    let files = Files::new(&ca.leaf(WEB), &[&ca]);
    let acceptor = server(&ca.leaf(DB), &[&ca], &MESH_TCP);
    let app = raw::serve(move |stream, nth| {
        let acceptor = acceptor.clone();
        async move {
            let mut tls = acceptor.accept(stream).await.expect("a handshake");
            tls.write_all(&[7; 5000]).await.expect("written");
            tls.flush().await.expect("flushed");
            // Not before the client has it all: a reset could overtake even its connecting.
            let _ended = tls.read_to_end(&mut Vec::new()).await;
            if nth % 2 == 0 {
                tls.shutdown().await.expect("ended");
            } else {
                let (mut tcp, _) = tls.into_inner();
                tcp.shutdown().await.expect("cut");
                // So that the close is a plain end of TCP.
                let _rest = raw::read_to_end(&mut tcp).await;
            }
        }
    })
    .await;
    let setup = Setup::tcp(app).cluster(&dials(DB)).identity(&files);
    let path = Path::of(setup).await;
    // The harness's own probe may have been the first connection; so both kinds are sought.
    let (mut whole, mut cut) = (0, 0);
    for _ in 0..6 {
        let mut client = path.connect().await;
        raw::read_exact(&mut client, 5000).await;
        client.shutdown().await.expect("ended");
        let (_, end) = raw::read_to_end(&mut client).await;
        if is_reset(&end) {
            cut += 1;
        } else {
            end.expect("an end");
            whole += 1;
        }
    }
    assert_eq!((whole, cut), (3, 3));
}

/// A listener whose protocol is not declared, as the control plane makes it.
fn undeclared(app: SocketAddr) -> Setup {
    let protocols = json!(["http/1.0", "http/1.1", "h2c"]);
    Setup::http(app)
        .chain(&json!({"filter_chain_match": {"application_protocols": protocols}}))
        .listener(&json!({
            "listener_filters": [
                {"name": "tls", "typed_config": {"@type": TLS_INSPECTOR}},
                {"name": "http", "typed_config": {"@type": HTTP_INSPECTOR}},
            ],
            "default_filter_chain": {"filters": [{"name": "tcp", "typed_config": {
                "@type": type_url::TCP_PROXY, "stat_prefix": "test", "cluster": "app",
            }}]},
        }))
}

const TLS_INSPECTOR: &str =
    "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector";
const HTTP_INSPECTOR: &str =
    "type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector";

/// Greets at once, like MySQL or SMTP, then echoes.
pub(crate) async fn greeter() -> SocketAddr {
    raw::serve(|mut stream, _| async move {
        raw::write(&mut stream, b"220 mail ready\r\n").await;
        let (mut reader, mut writer) = stream.into_split();
        let _gone = tokio::io::copy(&mut reader, &mut writer).await;
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn tc_03_a_server_that_speaks_first_is_not_held_up() {
    let app = greeter().await;
    let ca = Authority::new("mesh");
    let (web, db) = (
        Files::new(&ca.leaf(WEB), &[&ca]),
        Files::new(&ca.leaf(DB), &[&ca]),
    );
    let near_app = Setup::tcp(app).chain(&accepts(&MESH_TCP)).identity(&db);
    let near_app = near_app.start().await;
    let far = undeclared(near_app.address)
        .cluster(&dials(DB))
        .identity(&web);
    for proxy in [undeclared(app).start().await, far.start().await] {
        let mut best = Duration::MAX;
        for _ in 0..10 {
            let began = Instant::now();
            let mut client = proxy.connect().await;
            let said = raw::read_exact(&mut client, 16).await;
            best = best.min(began.elapsed());
            assert_eq!(said, b"220 mail ready\r\n");
            raw::write(&mut client, b"EHLO me\r\n").await;
            assert_eq!(raw::read_exact(&mut client, 9).await, b"EHLO me\r\n");
        }
        // Of ten, so that a busy machine does not decide.
        assert!(
            best < Duration::from_millis(300),
            "{best:?} to the greeting"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tc_03_on_the_same_port_a_client_that_speaks_first_is_served_as_what_it_speaks() {
    let app = raw::serve(|mut stream, _| async move {
        while raw::try_read_head(&mut stream).await.is_some() {
            raw::write(
                &mut stream,
                b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            )
            .await;
        }
    })
    .await;
    let proxy = undeclared(app).start().await;
    for wait in [0, 60, 300] {
        let mut client = proxy.connect().await;
        sleep(Duration::from_millis(wait)).await;
        raw::write(&mut client, b"GET /late HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let (head, body) = raw::read_response(&mut client).await;
        assert_eq!((raw::status(&head), body), (200, b"ok".to_vec()));
    }
    let end = Instant::now() + STEP;
    while proxy.log().matches("\"path\":\"/late\"").count() < 3 {
        assert!(Instant::now() < end, "not each was seen as HTTP");
        sleep(Duration::from_millis(50)).await;
    }
}

/// Serves HTTP, but ends as many connections on which nothing is said as it is told to.
async fn leaver(reset: bool) -> (SocketAddr, Arc<AtomicUsize>) {
    let leaves = Arc::new(AtomicUsize::new(0));
    let told = Arc::clone(&leaves);
    let app = raw::serve(move |mut stream, _| {
        let told = Arc::clone(&told);
        async move {
            let mut byte = [0];
            let heard = timeout(Duration::from_millis(50), stream.peek(&mut byte));
            let silent = heard.await.is_err();
            let one_less = |left: usize| left.checked_sub(1);
            if silent && told.fetch_update(SeqCst, SeqCst, one_less).is_ok() {
                if reset {
                    raw::reset(stream);
                }
                return;
            }
            while raw::try_read_head(&mut stream).await.is_some() {
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                raw::write(&mut stream, answer).await;
            }
        }
    });
    (app.await, leaves)
}

#[tokio::test(flavor = "multi_thread")]
async fn tc_03_an_endpoint_that_leaves_before_a_word_takes_no_client_with_it() {
    for reset in [false, true] {
        let (app, leaves) = leaver(reset).await;
        let proxy = undeclared(app).start().await;
        leaves.store(1, SeqCst);
        let mut client = proxy.connect().await;
        let end = Instant::now() + STEP;
        while leaves.load(SeqCst) > 0 {
            assert!(Instant::now() < end, "it did not leave");
            sleep(Duration::from_millis(10)).await;
        }
        sleep(Duration::from_millis(100)).await;
        raw::write(&mut client, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let (head, body) = raw::read_response(&mut client).await;
        assert_eq!((raw::status(&head), body), (200, b"ok".to_vec()), "{reset}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tc_03_a_service_that_only_closes_is_seen_to_close() {
    let (app, leaves) = leaver(false).await;
    leaves.store(usize::MAX, SeqCst);
    let proxy = undeclared(app).start().await;
    let mut client = proxy.connect().await;
    let (got, end) = raw::read_to_end(&mut client).await;
    assert!(got.is_empty());
    end.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn tc_03_silent_connections_cost_little_and_are_given_back() {
    const SILENT: usize = 400;
    let app = raw::serve(|mut stream, _| async move {
        let _end = raw::read_to_end(&mut stream).await;
    })
    .await;
    let proxy = undeclared(app).start().await;
    drop(proxy.connect().await);
    sleep(Duration::from_millis(300)).await;
    let (memory, files) = (proxy.resident(), proxy.descriptors());
    let mut clients = Vec::new();
    for _ in 0..SILENT {
        clients.push(proxy.connect().await);
    }
    sleep(Duration::from_secs(1)).await;
    let each = proxy.resident().saturating_sub(memory) / SILENT as u64;
    assert!(each < 48 << 10, "{each} bytes for a silent connection");
    drop(clients);
    let end = Instant::now() + Duration::from_secs(5);
    while proxy.descriptors() > files + 2 {
        assert!(
            Instant::now() < end,
            "{} of {files} files",
            proxy.descriptors()
        );
        sleep(Duration::from_millis(50)).await;
    }
}

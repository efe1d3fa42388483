//! Group B: clients that mean ill, or look as if they did.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Method, StatusCode};
use outrigger_tests::loopback::{
    Proxy, Setup,
    frames::{self, block, frame},
    h2::{self as stream, Client, answer},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

/// What an attack may cost in memory, with room for what the allocator keeps.
const MEMORY: u64 = 24 << 20;

/// The head of a request, as literal fields.
fn get(path: &str) -> Vec<u8> {
    let fields = [
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "a"),
        (":path", path),
    ];
    block(&fields)
}

/// An endpoint that counts requests, and answers after a moment.
async fn counting() -> (SocketAddr, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let (address, _) = stream::serve(move |_, respond| {
        counted.fetch_add(1, Ordering::Relaxed);
        async move {
            sleep(Duration::from_millis(1)).await;
            answer(respond, 200, b"ok");
        }
    })
    .await;
    (address, count)
}

/// A client beside an attack, which has to be served all the while.
struct Bystander {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Duration>,
}

impl Bystander {
    async fn start(proxy: &Proxy) -> Self {
        let client = Client::connect(proxy.address).await;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let mut worst = Duration::ZERO;
            while !stopped.load(Ordering::Relaxed) {
                let began = Instant::now();
                let reply = client.get("/bystander").await.expect("a reply");
                assert_eq!(reply.status, StatusCode::OK);
                worst = worst.max(began.elapsed());
                sleep(Duration::from_millis(5)).await;
            }
            worst
        });
        Self { stop, task }
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        let worst = self.task.await.expect("served");
        assert!(worst < Duration::from_secs(3), "waited {worst:?}");
    }
}

/// Sends `attack` again and again, and reads nothing, until the proxy ends the connection or takes
/// no more: true when it ended it.
async fn flood(proxy: &Proxy, opening: &[u8], attack: &[u8], times: usize) -> bool {
    let mut client = proxy.connect().await;
    frames::greet(&mut client).await;
    frames::send(&mut client, opening).await;
    for _ in 0..times {
        match timeout(Duration::from_secs(1), client.write_all(attack)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return true,
            Err(_) => return false,
        }
    }
    let mut rest = Vec::new();
    timeout(Duration::from_secs(2), client.read_to_end(&mut rest))
        .await
        .is_ok()
}

#[tokio::test]
async fn h2_01_rapid_resets_are_cut_off() {
    let (upstream, requests) = counting().await;
    let proxy = Setup::http(upstream).http2().start().await;
    let bystander = Bystander::start(&proxy).await;
    let before = proxy.resident();
    for _ in 0..4 {
        let mut client = proxy.connect().await;
        frames::greet(&mut client).await;
        let mut cut = false;
        for n in 0..1000_u32 {
            let mut bytes = Vec::new();
            for k in 0..20 {
                let id = (n * 20 + k) * 2 + 1;
                let flags = frames::END_HEADERS | frames::END_STREAM;
                bytes.extend(frame(frames::HEADERS, flags, id, &get("/attack")));
                bytes.extend(frame(frames::RST_STREAM, 0, id, &8_u32.to_be_bytes()));
            }
            if client.write_all(&bytes).await.is_err() {
                cut = true;
                break;
            }
        }
        let goaway = frames::until(&mut client, frames::GOAWAY).await;
        cut |= goaway.is_some_and(|goaway| goaway.payload[4..8] == 11_u32.to_be_bytes());
        assert!(cut, "20000 resets and still connected");
    }
    bystander.stop().await;
    let seen = requests.load(Ordering::Relaxed);
    assert!(seen < 8000, "{seen} requests of 80000 reached the endpoint");
    assert!(proxy.resident().saturating_sub(before) < MEMORY);
}

/// The same, slow enough that each request is under way before it is taken back.
#[tokio::test]
async fn h2_01_requests_taken_back_at_once_are_cut_off() {
    let (upstream, requests) = counting().await;
    let proxy = Setup::http(upstream).http2().start().await;
    let client = Client::connect(proxy.address).await;
    let mut sent = 0;
    while sent < 5000 {
        let head = client.request(Method::GET, "/attack");
        let Ok((response, _)) = client.open(head, true).await else {
            break;
        };
        sent += 1;
        tokio::task::yield_now().await;
        if sent % 10 == 0 {
            sleep(Duration::from_millis(1)).await;
        }
        drop(response);
    }
    assert!(sent < 5000, "5000 requests taken back and still connected");
    assert!(requests.load(Ordering::Relaxed) <= sent);
}

#[tokio::test]
async fn h2_02_resets_provoked_from_the_proxy_are_cut_off() {
    let (upstream, _) = counting().await;
    let proxy = Setup::http(upstream).http2().start().await;
    let before = proxy.resident();
    let zero = 0_u32.to_be_bytes();
    let whole = 0x7fff_ffff_u32.to_be_bytes();
    for what in ["zero", "overflow", "after the end"] {
        let mut client = proxy.connect().await;
        frames::greet(&mut client).await;
        let mut cut = false;
        for n in 0..10_000_u32 {
            let id = n * 2 + 1;
            let flags = frames::END_HEADERS | frames::END_STREAM;
            let mut bytes = frame(frames::HEADERS, flags, id, &get("/attack"));
            bytes.extend(match what {
                "zero" => frame(frames::WINDOW_UPDATE, 0, id, &zero),
                "overflow" => frame(frames::WINDOW_UPDATE, 0, id, &whole),
                _ => frame(frames::DATA, 0, id, b"x"),
            });
            if client.write_all(&bytes).await.is_err() {
                cut = true;
                break;
            }
        }
        let goaway = timeout(Duration::from_secs(5), async {
            frames::until(&mut client, frames::GOAWAY).await.is_some()
                || client.read_u8().await.is_err()
        });
        assert!(cut || goaway.await.is_ok(), "{what}: still connected");
    }
    assert!(proxy.resident().saturating_sub(before) < MEMORY);
}

/// A busy client whose users change their minds is no attacker.
#[tokio::test]
async fn h2_02_a_client_that_cancels_a_third_stays_connected() {
    let (upstream, _) = stream::serve(|_, respond| async move {
        sleep(Duration::from_millis(2)).await;
        answer(respond, 200, b"ok");
    })
    .await;
    let proxy = Setup::http(upstream).http2().start().await;
    let client = Client::connect(proxy.address).await;
    for round in 0..60 {
        let mut answers = Vec::new();
        for n in 0..50 {
            let head = client.request(Method::GET, "/");
            let opened = client.open(head, true).await;
            let (response, _) = opened.unwrap_or_else(|e| panic!("round {round}: {e}"));
            // All at once, some before the proxy has even read them.
            if n % 3 == 0 {
                drop(response);
            } else {
                answers.push(response);
            }
        }
        for response in answers {
            let reply = stream::reply(response).await;
            let reply = reply.unwrap_or_else(|e| panic!("round {round}: {e}"));
            assert_eq!(reply.status, StatusCode::OK);
        }
    }
}

#[tokio::test]
async fn h2_03_endless_continuations_are_cut_off() {
    let (upstream, requests) = counting().await;
    let proxy = Setup::http(upstream).http2().start().await;
    let bystander = Bystander::start(&proxy).await;
    let before = proxy.resident();
    let counted = requests.load(Ordering::Relaxed);
    let opening = frame(frames::HEADERS, frames::END_STREAM, 1, &get("/attack"));
    let long = "v".repeat(4000);
    let fields = block(&[("x-field", &long)]);
    for part in [&fields[..], &[]] {
        let began = Instant::now();
        let attack = frame(frames::CONTINUATION, 0, 1, part);
        assert!(
            flood(&proxy, &opening, &attack, 10_000).await,
            "still connected"
        );
        assert!(
            began.elapsed() < Duration::from_secs(2),
            "{:?}",
            began.elapsed()
        );
    }
    assert!(requests.load(Ordering::Relaxed) >= counted);
    bystander.stop().await;
    assert!(proxy.resident().saturating_sub(before) < MEMORY);
}

/// Frames that cost their sender nothing, from a client that never reads an answer.
#[tokio::test]
async fn h2_04_floods_are_bounded() {
    let (upstream, _) = counting().await;
    let proxy = Setup::http(upstream).http2().start().await;
    let bystander = Bystander::start(&proxy).await;
    let head = [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "a"),
        (":path", "/attack"),
    ];
    let open = frame(frames::HEADERS, frames::END_HEADERS, 1, &block(&head));
    let floods = [
        ("SETTINGS", frame(frames::SETTINGS, 0, 0, &[]), true),
        ("PING", frame(frames::PING, 0, 0, &[0; 8]), true),
        ("empty DATA", frame(frames::DATA, 0, 1, &[]), true),
        ("PRIORITY", frame(2, 0, 3, &[0, 0, 0, 0, 1]), false),
        ("unknown", frame(0x42, 0, 0, &[0; 8]), false),
    ];
    for (what, attack, answered) in floods {
        let before = proxy.resident();
        let (opening, attack) = (open.clone(), attack.repeat(1000));
        let ended = flood(&proxy, &opening, &attack, 100).await;
        let grown = proxy.resident().saturating_sub(before);
        assert!(
            grown < MEMORY,
            "{what}: {} KiB, ended: {ended}",
            grown / 1024
        );
        // What is ignored may go on; what costs an answer or a wake-up may not.
        if what == "empty DATA" {
            assert!(answered && ended, "{what}: still connected");
        }
    }
    bystander.stop().await;
}

/// The preface alone, or half a head, holds a connection for a while and nothing else.
#[tokio::test]
async fn h2_04_a_half_head_holds_nobody_up() {
    let (upstream, _) = counting().await;
    let proxy = Setup::http(upstream).http2().start().await;
    let mut held: Vec<TcpStream> = Vec::new();
    for n in 0..200 {
        let mut client = proxy.connect().await;
        if n % 2 == 0 {
            frames::greet(&mut client).await;
            let half = frame(frames::HEADERS, 0, 1, &get("/half"));
            frames::send(&mut client, &half).await;
        } else {
            frames::send(&mut client, &frames::PREFACE[..10]).await;
        }
        held.push(client);
    }
    let client = Client::connect(proxy.address).await;
    let reply = timeout(Duration::from_secs(5), client.get("/")).await;
    assert_eq!(
        reply.expect("in time").expect("a reply").body,
        Bytes::from_static(b"ok")
    );
}

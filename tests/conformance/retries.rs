//! Group F: who is tried again, where, and for how long. Uploads and limits have files of their own.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use outrigger_tests::loopback::{Proxy, Setup, raw};
use rand::RngExt as _;
use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpStream,
    sync::Mutex,
    time::{Instant, sleep, timeout},
};

pub(crate) const STEP: Duration = Duration::from_secs(20);
pub(crate) const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
pub(crate) const UNAVAILABLE: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";

/// Endpoints are asked one after the other.
pub(crate) fn in_turn() -> Value {
    json!({"lb_policy": "ROUND_ROBIN"})
}

/// Answers each request with `answer`, and counts them.
pub(crate) async fn counting(answer: &'static [u8]) -> (SocketAddr, Arc<AtomicUsize>) {
    let count = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&count);
    let address = raw::serve(move |mut stream, _| {
        let counted = Arc::clone(&counted);
        async move {
            while raw::try_read_head(&mut stream).await.is_some() {
                counted.fetch_add(1, Relaxed);
                raw::write(&mut stream, answer).await;
            }
        }
    })
    .await;
    (address, count)
}

/// One request on a connection of its own: its status, 0 when there was no answer.
pub(crate) async fn ask(proxy: &Proxy, method: &str, path: &str, body: &[u8]) -> u16 {
    let mut client = proxy.connect().await;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    raw::write(&mut client, &[head.as_bytes(), body].concat()).await;
    let head = raw::try_read_head(&mut client).await;
    head.map_or(0, |head| raw::status(&head))
}

/// Runs the request, noting each run, and then behaves badly at random.
async fn unreliable(runs: &Arc<Mutex<HashMap<String, usize>>>) -> SocketAddr {
    let runs = Arc::clone(runs);
    raw::serve(move |mut stream, _| {
        let runs = Arc::clone(&runs);
        async move {
            if rand::rng().random_ratio(1, 10) {
                return raw::reset(stream);
            }
            while let Some(head) = raw::try_read_head(&mut stream).await {
                let length = raw::field(&head, "content-length").and_then(|n| n.parse().ok());
                raw::read_exact(&mut stream, length.unwrap_or(0)).await;
                let line = head.lines().next().unwrap_or_default().to_owned();
                *runs.lock().await.entry(line).or_default() += 1;
                let mood = rand::rng().random_range(0..10);
                match mood {
                    0 => return,
                    1 => return raw::reset(stream),
                    2 => raw::write(&mut stream, UNAVAILABLE).await,
                    3 => {
                        raw::write(&mut stream, b"HTTP/1.1 200 OK\r\ncontent-le").await;
                        return raw::reset(stream);
                    }
                    _ => raw::write(&mut stream, OK).await,
                }
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn rt_01_a_post_runs_at_most_once_whatever_the_endpoints_do() {
    const POSTS: usize = 600;
    let runs = Arc::<Mutex<HashMap<String, usize>>>::default();
    let (nobody, _socket) = raw::nobody();
    let all = [unreliable(&runs).await, nobody, unreliable(&runs).await];
    let proxy = Setup::http(nobody)
        .endpoints(&all)
        .cluster(&in_turn())
        .start()
        .await;
    let mut answered = HashMap::<u16, usize>::new();
    for chunk in 0..POSTS / 20 {
        let all = (0..20).map(|n| {
            let path = format!("/pay/{}", chunk * 20 + n);
            let proxy = &proxy;
            async move { ask(proxy, "POST", &path, b"money").await }
        });
        for status in futures_util::future::join_all(all).await {
            *answered.entry(status).or_default() += 1;
        }
    }
    let runs = runs.lock().await;
    let twice: Vec<_> = runs.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "ran more than once: {twice:?}");
    // A refused connection and a reset before anything was read are no reason to fail.
    let good = answered.get(&200).copied().unwrap_or_default();
    assert!(good > POSTS / 3, "{answered:?}");
    assert!(
        answered
            .keys()
            .all(|status| matches!(status, 200 | 502 | 503)),
        "{answered:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rt_01_what_may_run_twice_goes_again_and_a_policy_can_opt_in() {
    // Every connection's first request is read and then dropped.
    let forgetful = || {
        raw::serve(|mut stream, nth| async move {
            while raw::try_read_head(&mut stream).await.is_some() {
                if nth % 2 == 1 {
                    return raw::reset(stream);
                }
                raw::write(&mut stream, OK).await;
                let _end = stream.shutdown().await;
            }
        })
    };
    let proxy = Setup::http(forgetful().await).start().await;
    for method in ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"] {
        for _ in 0..4 {
            assert_eq!(ask(&proxy, method, "/", b"").await, 200, "{method}");
        }
    }
    let mut lost = 0;
    for _ in 0..8 {
        lost += usize::from(ask(&proxy, "POST", "/", b"").await != 200);
    }
    assert!(lost >= 3, "a POST does not go again: {lost} of 8 lost");
    // `retry-on: 503` is the operator's word that asking again is safe.
    let count = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&count);
    let busy = raw::serve(move |mut stream, _| {
        let counted = Arc::clone(&counted);
        async move {
            while raw::try_read_head(&mut stream).await.is_some() {
                let n = counted.fetch_add(1, Relaxed);
                raw::write(&mut stream, if n % 2 == 0 { UNAVAILABLE } else { OK }).await;
            }
        }
    });
    let policy = json!({"retry_policy": {
        "retry_on": "retriable-status-codes", "retriable_status_codes": [503], "num_retries": 1,
    }});
    let proxy = Setup::http(busy.await).route(&policy).start().await;
    for _ in 0..5 {
        assert_eq!(ask(&proxy, "POST", "/", b"x").await, 200);
    }
    assert_eq!(count.load(Relaxed), 10);
}

/// Keeps a connection until it was idle for so long, as application servers do.
async fn impatient(idle: Duration, runs: &Arc<Mutex<HashMap<String, usize>>>) -> SocketAddr {
    let runs = Arc::clone(runs);
    raw::serve(move |mut stream, _| {
        let runs = Arc::clone(&runs);
        async move {
            while let Ok(Some(head)) = timeout(idle, raw::try_read_head(&mut stream)).await {
                let line = head.lines().next().unwrap_or_default().to_owned();
                *runs.lock().await.entry(line).or_default() += 1;
                raw::write(&mut stream, OK).await;
            }
        }
    })
    .await
}

/// Two milliseconds more or less.
fn about(time: Duration) -> Duration {
    time + Duration::from_micros(rand::rng().random_range(0..4000)) - Duration::from_millis(2)
}

/// The failures of a client that keeps its connection for as long as it lasts.
async fn posts_directly(app: SocketAddr, idle: Duration) -> usize {
    let mut failed = 0;
    let mut kept = None;
    for _ in 0..10 {
        let mut client = match kept.take() {
            Some(client) => client,
            None => TcpStream::connect(app).await.expect("connected"),
        };
        raw::write(
            &mut client,
            b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n",
        )
        .await;
        match raw::try_read_head(&mut client).await {
            Some(_) => {
                raw::read_exact(&mut client, 2).await;
                kept = Some(client);
            }
            None => failed += 1,
        }
        sleep(about(idle)).await;
    }
    failed
}

#[tokio::test(flavor = "multi_thread")]
async fn rt_02_requests_that_cross_the_endpoints_close_do_not_fail() {
    const IDLE: Duration = Duration::from_secs(1);
    const CLIENTS: usize = 24;
    let runs = Arc::<Mutex<HashMap<String, usize>>>::default();
    let app = impatient(IDLE, &runs).await;
    let proxy = Arc::new(Setup::http(app).start().await);
    let plain = impatient(IDLE, &Arc::default()).await;
    let direct = tokio::spawn(async move {
        let clients = (0..CLIENTS / 4).map(|_| posts_directly(plain, IDLE));
        let failed = futures_util::future::join_all(clients).await;
        failed.into_iter().sum::<usize>()
    });
    let clients = (0..CLIENTS).map(|n| {
        let proxy = Arc::clone(&proxy);
        async move {
            let method = if n % 4 == 0 { "POST" } else { "GET" };
            let mut client = proxy.connect().await;
            let mut failed = 0;
            for round in 0..10 {
                let path = format!("/{n}/{round}");
                let head =
                    format!("{method} {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n");
                raw::write(&mut client, head.as_bytes()).await;
                let (head, _) = raw::read_response(&mut client).await;
                failed += usize::from(raw::status(&head) != 200);
                sleep(about(IDLE)).await;
            }
            (method, failed)
        }
    });
    let mut failures = HashMap::<&str, usize>::new();
    for (method, failed) in futures_util::future::join_all(clients).await {
        *failures.entry(method).or_default() += failed;
    }
    assert_eq!(failures["GET"], 0, "{failures:?}");
    // One whose bytes were written when the close came may have run: it is not sent again, and
    // counts as what it is.
    // Without a proxy there would be more of them.
    let direct = direct.await.expect("direct clients");
    eprintln!("failed: {failures:?} through the proxy, {direct} POSTs without");
    assert!(
        failures["POST"] <= direct + 2,
        "{failures:?}, {direct} directly"
    );
    let runs = runs.lock().await;
    let twice = runs
        .iter()
        .filter(|(line, n)| line.starts_with("POST") && **n > 1);
    assert_eq!(twice.count(), 0);
    let log = proxy.access_log(CLIENTS * 10).await;
    let posts = log.iter().filter(|line| line["status"] == 503);
    assert!(
        posts.clone().all(|line| line["method"] == "POST"),
        "{log:#?}"
    );
    assert_eq!(posts.count(), failures["POST"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rt_04_retries_of_three_hops_do_not_multiply() {
    const REQUESTS: usize = 1500;
    let failing = Arc::new(AtomicBool::new(true));
    let count = Arc::<AtomicUsize>::default();
    let (fails, counted) = (Arc::clone(&failing), Arc::clone(&count));
    let app = raw::serve(move |mut stream, _| {
        let (fails, counted) = (Arc::clone(&fails), Arc::clone(&counted));
        async move {
            while raw::try_read_head(&mut stream).await.is_some() {
                counted.fetch_add(1, Relaxed);
                sleep(Duration::from_millis(5)).await;
                let answer = if fails.load(Relaxed) { UNAVAILABLE } else { OK };
                raw::write(&mut stream, answer).await;
            }
        }
    })
    .await;
    let policy = json!({"retry_policy": {"retry_on": "5xx", "num_retries": 3}});
    let budget = json!({"circuit_breakers": {"thresholds": [{
        "retry_budget": {"budget_percent": {"value": 20}, "min_retry_concurrency": 1},
    }]}});
    let hop = |to| Setup::http(to).route(&policy).cluster(&budget);
    let last = hop(app).start().await;
    let middle = hop(last.address).start().await;
    let first = hop(middle.address).start().await;
    let began = Instant::now();
    let clients = (0..20).map(|_| async {
        let mut client = first.connect().await;
        for _ in 0..REQUESTS / 20 {
            raw::write(&mut client, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
            let (head, _) = raw::read_response(&mut client).await;
            assert_eq!(raw::status(&head), 503);
        }
    });
    futures_util::future::join_all(clients).await;
    let took = began.elapsed();
    let load = count.load(Relaxed);
    eprintln!("{REQUESTS} requests in {took:?} made {load} at the last hop");
    assert!(load >= REQUESTS);
    // A retry a second is always allowed, to each hop, in intervals of ten seconds.
    let intervals = usize::try_from(took.as_secs() / 10).expect("a short test") + 2;
    let most = REQUESTS * 12 / 10 + 3 * 10 * intervals;
    assert!(
        load <= most,
        "{load} at the last hop for {REQUESTS}, which could be {most}; 64 times without budget"
    );
    // It recovers at once.
    failing.store(false, Relaxed);
    for _ in 0..20 {
        assert_eq!(ask(&first, "GET", "/", b"").await, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rt_05_the_second_try_is_elsewhere() {
    let (nobody, _socket) = raw::nobody();
    let ((one, seen_one), (two, seen_two)) = (counting(OK).await, counting(OK).await);
    let policy = json!({"retry_policy": {"retry_on": "connect-failure", "num_retries": 1}});
    for lb_policy in ["ROUND_ROBIN", "RANDOM", "LEAST_REQUEST"] {
        let proxy = Setup::http(one)
            .endpoints(&[one, nobody, two])
            .cluster(&json!({"lb_policy": lb_policy}))
            .route(&policy)
            .start()
            .await;
        for n in 0..60 {
            assert_eq!(ask(&proxy, "POST", "/", b"x").await, 200, "{lb_policy} {n}");
        }
        let log = proxy.access_log(60).await;
        let again = log.iter().filter(|line| line["tries"] == 2).count();
        assert!(again > 0, "{lb_policy}: the dead one was never met");
    }
    assert_eq!(seen_one.load(Relaxed) + seen_two.load(Relaxed), 180);
}

#[tokio::test(flavor = "multi_thread")]
async fn rt_05_an_only_endpoint_is_tried_again_after_a_wait() {
    let times = Arc::<Mutex<Vec<Instant>>>::default();
    let noted = Arc::clone(&times);
    let app = raw::serve(move |mut stream, _| {
        let noted = Arc::clone(&noted);
        async move {
            while raw::try_read_head(&mut stream).await.is_some() {
                noted.lock().await.push(Instant::now());
                raw::write(&mut stream, UNAVAILABLE).await;
            }
        }
    });
    let policy = json!({"retry_policy": {
        "retry_on": "5xx", "num_retries": 3,
        "retry_back_off": {"base_interval": "0.2s", "max_interval": "0.8s"},
    }});
    let proxy = Setup::http(app.await).route(&policy).start().await;
    let (mut waits, mut most) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..4 {
        times.lock().await.clear();
        assert_eq!(ask(&proxy, "GET", "/", b"").await, 503);
        let times = times.lock().await;
        assert_eq!(times.len(), 4, "one try and three more");
        for pair in times.windows(2) {
            let wait = pair[1] - pair[0];
            waits += wait;
            most = most.max(wait);
        }
    }
    // Full jitter: 100, 200 and 400 ms on average.
    assert!(waits / 4 > Duration::from_millis(200), "{waits:?} in all");
    assert!(most < Duration::from_millis(1500), "{most:?}");
}

/// Answers each request after the time that its path names, in milliseconds, or that time less with
/// every try (`/first/rest`).
pub(crate) async fn slow() -> (SocketAddr, Arc<AtomicUsize>) {
    let count = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&count);
    let address = raw::serve(move |mut stream, _| {
        let counted = Arc::clone(&counted);
        async move {
            while let Some(head) = raw::try_read_head(&mut stream).await {
                let length = raw::field(&head, "content-length").and_then(|n| n.parse().ok());
                raw::read_exact(&mut stream, length.unwrap_or(0)).await;
                let n = counted.fetch_add(1, Relaxed);
                let path = head.split(' ').nth(1).unwrap_or_default();
                let mut times = path
                    .trim_start_matches('/')
                    .split('/')
                    .filter_map(|t| t.parse().ok());
                let first = times.next().unwrap_or(0);
                let rest = times.next().unwrap_or(first);
                let wait = if n == 0 { first } else { rest };
                sleep(Duration::from_millis(wait)).await;
                raw::write(&mut stream, OK).await;
            }
        }
    })
    .await;
    (address, count)
}

#[tokio::test(flavor = "multi_thread")]
async fn rt_06_the_time_of_a_try_and_the_time_of_all() {
    let policy = json!({"timeout": "3s", "retry_policy": {
        "retry_on": "reset,gateway-error", "num_retries": 2, "per_try_timeout": "0.6s",
    }});
    for (path, method, status, tries, least, most) in [
        // Within the time of a try.
        ("/100", "GET", 200, 1, 0, 600),
        // The second one is.
        ("/2000/10", "GET", 200, 2, 600, 1800),
        // None is: 504 after three.
        ("/2000", "GET", 504, 3, 1800, 3000),
        // A POST may have run.
        ("/2000/10", "POST", 504, 1, 600, 1500),
    ] {
        let (app, count) = slow().await;
        let proxy = Setup::http(app).route(&policy).start().await;
        let began = Instant::now();
        assert_eq!(
            ask(&proxy, method, path, b"").await,
            status,
            "{method} {path}"
        );
        let took = began.elapsed();
        assert_eq!(count.load(Relaxed), tries, "{method} {path}");
        assert!(
            took >= Duration::from_millis(least),
            "{method} {path}: {took:?}"
        );
        assert!(
            took < Duration::from_millis(most + 1000),
            "{method} {path}: {took:?}"
        );
    }
    // The overall time covers tries and waits.
    let policy = json!({"timeout": "1s", "retry_policy": {
        "retry_on": "reset,gateway-error", "num_retries": 20, "per_try_timeout": "0.3s",
    }});
    let (app, count) = slow().await;
    let proxy = Setup::http(app).route(&policy).start().await;
    let began = Instant::now();
    assert_eq!(ask(&proxy, "GET", "/2000", b"").await, 504);
    let took = began.elapsed();
    assert!(
        took >= Duration::from_millis(900) && took < Duration::from_secs(3),
        "{took:?}"
    );
    assert!((2..=4).contains(&count.load(Relaxed)));
    let log = proxy.access_log(1).await;
    // Whichever time ran out last; a wait that would outlast the whole is not begun.
    let cause = log[0]["cause"].as_str().unwrap_or_default();
    assert!(
        ["RequestTimeout", "PerTryTimeout"].contains(&cause),
        "{log:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rt_06_neither_a_slow_upload_nor_a_slow_body_is_cut() {
    let app = raw::serve(|mut stream, _| async move {
        while let Some(head) = raw::try_read_head(&mut stream).await {
            let length = raw::field(&head, "content-length").and_then(|n| n.parse().ok());
            raw::read_exact(&mut stream, length.unwrap_or(0)).await;
            raw::write(&mut stream, b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n").await;
            for piece in b"whole" {
                sleep(Duration::from_millis(250)).await;
                raw::write(&mut stream, &[*piece]).await;
            }
        }
    });
    let policy = json!({"retry_policy": {
        "retry_on": "5xx", "num_retries": 2, "per_try_timeout": "0.5s",
    }});
    let proxy = Setup::http(app.await).route(&policy).start().await;
    let mut client = proxy.connect().await;
    raw::write(
        &mut client,
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n",
    )
    .await;
    for piece in b"slow!" {
        sleep(Duration::from_millis(250)).await;
        raw::write(&mut client, &[*piece]).await;
    }
    let (head, body) = raw::read_response(&mut client).await;
    assert_eq!((raw::status(&head), body), (200, b"whole".to_vec()));
}

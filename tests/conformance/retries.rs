//! Group F: retries, time limits, circuit breaking, ejection.

use std::{
    cell::Cell,
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
    net::{TcpListener, TcpStream},
    sync::Mutex,
    time::{Instant, sleep, timeout},
};

const STEP: Duration = Duration::from_secs(20);
const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const UNAVAILABLE: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";

/// Endpoints are asked one after the other.
fn in_turn() -> Value {
    json!({"lb_policy": "ROUND_ROBIN"})
}

/// Answers each request with `answer`, and counts them.
async fn counting(answer: &'static [u8]) -> (SocketAddr, Arc<AtomicUsize>) {
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
async fn ask(proxy: &Proxy, method: &str, path: &str, body: &[u8]) -> u16 {
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

/// Ten megabytes that differ from place to place.
fn upload_body() -> Vec<u8> {
    (0..10_u32 << 20)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0])
        .collect()
}

/// Uploads, in a length or in chunks, and returns the status and the answer.
async fn upload(proxy: &Proxy, method: &str, body: &[u8], chunked: bool) -> (u16, Vec<u8>) {
    let client = proxy.connect().await;
    let (mut reader, mut writer) = client.into_split();
    let framing = if chunked {
        "transfer-encoding: chunked".to_owned()
    } else {
        format!("content-length: {}", body.len())
    };
    let head = format!("{method} /up HTTP/1.1\r\nhost: a\r\n{framing}\r\n\r\n");
    let sending = async {
        writer.write_all(head.as_bytes()).await?;
        for piece in body.chunks(50_000) {
            if chunked {
                writer
                    .write_all(format!("{:x}\r\n", piece.len()).as_bytes())
                    .await?;
            }
            writer.write_all(piece).await?;
            if chunked {
                writer.write_all(b"\r\n").await?;
            }
        }
        if chunked {
            writer.write_all(b"0\r\n\r\n").await?;
        }
        Ok::<_, std::io::Error>(())
    };
    let reading = raw::read_response(&mut reader);
    let (_, (head, body)) = tokio::join!(timeout(STEP, sending), reading);
    (raw::status(&head), body)
}

/// Compares what is uploaded with what was meant, and says whether it was the same.
async fn comparing(body: &Arc<Vec<u8>>) -> SocketAddr {
    let want = Arc::clone(body);
    raw::serve(move |mut stream, _| {
        let want = Arc::clone(&want);
        async move {
            let Some(head) = raw::try_read_head(&mut stream).await else {
                return;
            };
            let got = match raw::field(&head, "content-length").and_then(|n| n.parse().ok()) {
                Some(length) => raw::read_exact(&mut stream, length).await,
                None => read_chunks(&mut stream).await,
            };
            let same = if got == *want { "same" } else { "else" };
            let answer =
                format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 4\r\n\r\n{same}");
            raw::write(&mut stream, answer.as_bytes()).await;
        }
    })
    .await
}

async fn read_chunks(stream: &mut TcpStream) -> Vec<u8> {
    use tokio::io::AsyncBufReadExt as _;
    let mut reader = tokio::io::BufReader::new(stream);
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).await.expect("a chunk");
        let length = usize::from_str_radix(line.trim_end(), 16).expect("its length");
        let mut chunk = raw::read_exact(&mut reader, length + 2).await;
        if length == 0 {
            return body;
        }
        chunk.truncate(length);
        body.extend(chunk);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rt_03_a_large_upload_goes_to_another_endpoint_when_the_first_refuses() {
    const AT_ONCE: usize = 12;
    let body = Arc::new(upload_body());
    let (nobody, _socket) = raw::nobody();
    let all = [nobody, comparing(&body).await];
    let proxy = Setup::http(nobody)
        .endpoints(&all)
        .cluster(&in_turn())
        .start()
        .await;
    for chunked in [false, true] {
        // A few to begin with, so that what the allocator keeps is counted before.
        upload(&proxy, "POST", &body, chunked).await;
        let before = proxy.resident();
        let uploads = (0..AT_ONCE).map(|_| upload(&proxy, "POST", &body, chunked));
        let most = Cell::new(before);
        let watch = async {
            loop {
                most.set(most.get().max(proxy.resident()));
                sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            answers = futures_util::future::join_all(uploads) => {
                for answer in answers {
                    assert_eq!(answer, (200, b"same".to_vec()), "chunked: {chunked}");
                }
            }
            () = watch => {}
        }
        let each = most.get().saturating_sub(before) / AT_ONCE as u64;
        assert!(
            each < 2 << 20,
            "{each} bytes for an upload of ten megabytes"
        );
    }
    let log = proxy.access_log(2 + 2 * AT_ONCE).await;
    assert!(log.iter().any(|line| line["tries"] == 2), "{log:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rt_03_an_upload_that_fails_in_its_middle_is_not_begun_anew() {
    let body = upload_body();
    let begun = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&begun);
    let dies = move || {
        let count = Arc::clone(&count);
        raw::serve(move |mut stream, _| {
            let count = Arc::clone(&count);
            async move {
                if raw::try_read_head(&mut stream).await.is_some() {
                    count.fetch_add(1, Relaxed);
                    raw::read_exact(&mut stream, 1 << 20).await;
                    raw::reset(stream);
                }
            }
        })
    };
    let all = [dies().await, dies().await];
    let proxy = Setup::http(all[0])
        .endpoints(&all)
        .cluster(&in_turn())
        .start()
        .await;
    for (n, method) in ["POST", "PUT"].iter().enumerate() {
        for chunked in [false, true] {
            let began = Instant::now();
            let (status, _) = upload(&proxy, method, &body, chunked).await;
            assert_eq!(status, 503, "{method}");
            assert!(began.elapsed() < Duration::from_secs(10));
        }
        assert_eq!(begun.load(Relaxed), 2 * (n + 1), "{method}: one try each");
    }
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
async fn slow() -> (SocketAddr, Arc<AtomicUsize>) {
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

/// So many requests at once, each held by the endpoint for half a second: the statuses.
async fn at_once(proxy: &Proxy, count: usize) -> HashMap<u16, usize> {
    let all = (0..count).map(|_| ask(proxy, "GET", "/500", b""));
    let mut statuses = HashMap::new();
    for status in futures_util::future::join_all(all).await {
        *statuses.entry(status).or_default() += 1;
    }
    statuses
}

/// The sum of the series whose line begins so.
fn metric(text: &str, start: &str) -> f64 {
    let lines: Vec<_> = text.lines().filter(|l| l.starts_with(start)).collect();
    assert!(!lines.is_empty(), "{start:?} is not in {text}");
    let numbers = lines.iter().filter_map(|line| line.rsplit(' ').next());
    numbers.map(|n| n.parse::<f64>().expect("a number")).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn rt_07_each_limit_means_what_it_says_and_has_a_count_and_a_flag_of_its_own() {
    let limit = |limits: Value| json!({"circuit_breakers": {"thresholds": [limits]}});
    // Three have a connection, three wait for one, two find no place to wait.
    let proxy = Setup::http(slow().await.0)
        .cluster(&limit(
            json!({"max_connections": 3, "max_pending_requests": 3}),
        ))
        .start()
        .await;
    assert_eq!(
        at_once(&proxy, 6).await,
        HashMap::from([(200, 6)]),
        "3 + 3 fit"
    );
    let statuses = at_once(&proxy, 8).await;
    assert_eq!(statuses, HashMap::from([(200, 6), (503, 2)]));
    let log = proxy.access_log(14).await;
    let flags: Vec<_> = log.iter().filter(|line| line["status"] == 503).collect();
    assert!(
        flags.iter().all(|line| line["cause"] == "OverflowPending"),
        "{flags:#?}"
    );
    let metrics = proxy.metrics().await;
    let over = |what: &str| {
        let name = format!("outrigger_cluster_overflow_total{{cluster=\"app\",limit=\"{what}\"");
        metric(&metrics, &name)
    };
    assert_eq!(over("pending"), 2.0, "{metrics}");
    assert_eq!(over("requests"), 0.0);

    let proxy = Setup::http(slow().await.0)
        .cluster(&limit(json!({"max_requests": 4})))
        .start()
        .await;
    let statuses = at_once(&proxy, 6).await;
    assert_eq!(statuses, HashMap::from([(200, 4), (503, 2)]));
    let log = proxy.access_log(6).await;
    let causes: Vec<_> = log.iter().filter(|line| line["status"] == 503).collect();
    assert!(
        causes
            .iter()
            .all(|line| line["cause"] == "OverflowRequests"),
        "{causes:#?}"
    );
    // And what was taken is given back.
    sleep(Duration::from_millis(200)).await;
    let metrics = proxy.metrics().await;
    for gauge in [
        "outrigger_cluster_requests_active",
        "outrigger_cluster_pending",
    ] {
        assert_eq!(
            metric(&metrics, &format!("{gauge}{{cluster=\"app\"}}")),
            0.0,
            "{metrics}"
        );
    }
}

fn ejecting(percent: u32) -> Value {
    json!({
        "lb_policy": "ROUND_ROBIN",
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "outlier_detection": {
            "consecutive_5xx": 3, "enforcing_consecutive_5xx": 100,
            "enforcing_consecutive_gateway_failure": 0, "enforcing_success_rate": 0,
            "interval": "1s", "base_ejection_time": "60s", "max_ejection_percent": percent, "always_eject_one_host": false,
        },
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn rt_09_no_more_are_ejected_than_allowed_and_all_only_by_choice() {
    for (percent, ejected, last) in [
        (50, 1.0, "503"),
        (70, 2.0, "503"),
        (100, 3.0, "NoHealthyEndpoint"),
    ] {
        let mut all = Vec::new();
        let mut counts = Vec::new();
        for _ in 0..3 {
            let (address, count) = counting(UNAVAILABLE).await;
            all.push(address);
            counts.push(count);
        }
        let proxy = Setup::http(all[0])
            .endpoints(&all)
            .cluster(&ejecting(percent))
            .start()
            .await;
        for _ in 0..30 {
            assert_eq!(ask(&proxy, "GET", "/", b"").await, 503);
        }
        let metrics = proxy.metrics().await;
        let name = "outrigger_cluster_endpoints{cluster=\"app\",state=\"unavailable\"";
        assert_eq!(metric(&metrics, name), ejected, "at {percent} %: {metrics}");
        let reached: usize = counts.iter().map(|count| count.load(Relaxed)).sum();
        let log = proxy.access_log(30).await;
        if last == "503" {
            assert_eq!(reached, 30, "at {percent} %: those that are left answer");
        } else {
            assert_eq!(
                reached, 9,
                "at {percent} %: three each, then nobody is asked"
            );
            assert_eq!(log[29]["cause"], last, "{log:#?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rt_09_a_single_endpoint_is_not_ejected_below_the_limit() {
    let (app, count) = counting(UNAVAILABLE).await;
    let proxy = Setup::http(app).cluster(&ejecting(99)).start().await;
    for _ in 0..12 {
        assert_eq!(ask(&proxy, "GET", "/", b"").await, 503);
    }
    assert_eq!(count.load(Relaxed), 12);
}

/// An endpoint that can be killed, with everything open on it, and come back on its port.
struct Mortal {
    address: SocketAddr,
    alive: tokio::task::JoinHandle<()>,
}

impl Mortal {
    async fn start(at: SocketAddr) -> Self {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(true).expect("shared");
        socket.bind(at).expect("a port");
        let listener: TcpListener = socket.listen(1024).expect("listening");
        let address = listener.local_addr().expect("an address");
        let alive = tokio::spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                open.spawn(async move {
                    let _now = stream.set_zero_linger();
                    while raw::try_read_head(&mut stream).await.is_some() {
                        sleep(Duration::from_millis(3)).await;
                        raw::write(&mut stream, OK).await;
                    }
                });
            }
        });
        Self { address, alive }
    }

    async fn die(&mut self) {
        self.alive.abort();
        let _dead = (&mut self.alive).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rt_12_killed_endpoints_cost_no_request() {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut all = Vec::new();
    for _ in 0..5 {
        all.push(Mortal::start(any).await);
    }
    let addresses: Vec<_> = all.iter().map(|one| one.address).collect();
    let proxy = Arc::new(
        Setup::http(addresses[0])
            .endpoints(&addresses)
            .cluster(&in_turn())
            .start()
            .await,
    );
    let stop = Arc::<AtomicBool>::default();
    let clients: Vec<_> = (0..10)
        .map(|_| {
            let (proxy, stop) = (Arc::clone(&proxy), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut client = proxy.connect().await;
                let (mut asked, mut failed) = (0, 0);
                while !stop.load(Relaxed) {
                    raw::write(&mut client, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
                    let (head, _) = raw::read_response(&mut client).await;
                    asked += 1;
                    failed += usize::from(raw::status(&head) != 200);
                    sleep(Duration::from_millis(10)).await;
                }
                (asked, failed)
            })
        })
        .collect();
    for round in 0..10 {
        let one = &mut all[round % 5];
        one.die().await;
        sleep(Duration::from_millis(400)).await;
        *one = Mortal::start(one.address).await;
        sleep(Duration::from_millis(200)).await;
    }
    stop.store(true, Relaxed);
    let (mut asked, mut failed) = (0, 0);
    for client in clients {
        let (some, bad) = client.await.expect("a client");
        asked += some;
        failed += bad;
    }
    assert!(asked > 500, "only {asked} were asked");
    assert_eq!(failed, 0, "of {asked}");
}

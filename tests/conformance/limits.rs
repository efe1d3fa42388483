//! Group F: limits, ejection, and endpoints that are killed.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use outrigger_tests::loopback::{Proxy, Setup, raw};
use serde_json::{Value, json};
use tokio::{net::TcpListener, time::sleep};

use crate::retries::{OK, UNAVAILABLE, ask, counting, in_turn, slow};

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

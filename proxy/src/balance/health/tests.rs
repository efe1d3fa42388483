//! Checks against scripted servers, under the paused clock.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{BufMut, BytesMut};
use http::{Method, Response, StatusCode};
use rand::SeedableRng;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    time::{Instant, sleep},
};

use super::{
    super::{
        Live,
        tests::{EWMA, SECOND, World, at, cluster, outlier, plain},
    },
    Checkers, Dial, EndpointState, HealthCheck, Speaks, StdRng,
};
use crate::{
    config::{
        Cluster,
        cluster::{HealthCheckKind, Outlier},
    },
    net::BoxIo,
};

/// What a scripted member does with a connection.
#[derive(Clone, Debug)]
enum Does {
    /// HTTP/1.1 bytes, whatever is asked.
    Says(&'static str),
    /// Accepts and is silent.
    Hangs,
    Refuses,
    /// gRPC: HTTP status, content type, `grpc-status`, serving status.
    Grpc(u16, &'static str, &'static str, u8),
    ResetsStream,
}

const OK: Does = Does::Says("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
const BUSY: Does = Does::Says("HTTP/1.1 503 Service Unavailable\r\n\r\n");
const GONE: Does = Does::Says("HTTP/1.1 410 Gone\r\n\r\n");
const GARBAGE: Does = Does::Says("\u{1}\u{2}\u{3} nonsense\r\n\r\n");

/// Members by port; all that is not scripted is [`OK`].
#[derive(Clone, Debug, Default)]
struct Servers {
    script: Arc<Mutex<std::collections::HashMap<u16, Does>>>,
    dialed: Arc<Mutex<Vec<(SocketAddr, Instant)>>>,
    open: Arc<AtomicU32>,
}

impl Servers {
    fn set(&self, port: u16, does: Does) {
        self.script.lock().expect("unpoisoned").insert(port, does);
    }

    fn times(&self) -> Vec<Instant> {
        let dialed = self.dialed.lock().expect("unpoisoned");
        dialed.iter().map(|(_, time)| *time).collect()
    }
}

impl Dial for Servers {
    async fn dial(
        &self,
        _endpoint: &EndpointState,
        address: SocketAddr,
        speaks: Speaks,
    ) -> io::Result<BoxIo> {
        let now = Instant::now();
        self.dialed.lock().expect("unpoisoned").push((address, now));
        let script = self.script.lock().expect("unpoisoned");
        let does = script.get(&address.port()).cloned().unwrap_or(OK);
        drop(script);
        if matches!(does, Does::Refuses) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (ours, theirs) = duplex(4096);
        let open = Arc::clone(&self.open);
        open.fetch_add(1, Relaxed);
        tokio::spawn(async move {
            serve(theirs, does, speaks).await;
            open.fetch_sub(1, Relaxed);
        });
        Ok(Box::new(ours))
    }
}

/// Serves until the other side is gone.
async fn serve(mut io: DuplexStream, does: Does, speaks: Speaks) {
    let mut buffer = [0; 1024];
    match does {
        Does::Says(text) => {
            if speaks == Speaks::Http1 {
                let n = io.read(&mut buffer).await.expect("a request");
                assert!(buffer[..n].starts_with(b"GET /healthz HTTP/1.1\r\nhost: c\r\n"));
            }
            io.write_all(text.as_bytes()).await.expect("written");
            while io.read(&mut buffer).await.is_ok_and(|n| n > 0) {}
        }
        Does::Hangs | Does::Refuses => while io.read(&mut buffer).await.is_ok_and(|n| n > 0) {},
        Does::Grpc(..) | Does::ResetsStream => grpc_server(io, does).await,
    }
}

async fn grpc_server(io: DuplexStream, does: Does) {
    let mut server = h2::server::handshake(io).await.expect("HTTP/2");
    while let Some(Ok((request, mut respond))) = server.accept().await {
        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
        let Does::Grpc(status, kind, grpc, serving) = does else {
            respond.send_reset(h2::Reason::INTERNAL_ERROR);
            continue;
        };
        let head = Response::builder()
            .status(status)
            .header("content-type", kind)
            .body(())
            .expect("a head");
        let mut out = respond.send_response(head, false).expect("sent");
        let mut body = BytesMut::new();
        body.put_u8(0);
        body.put_u32(2);
        body.put_slice(&[8, serving]);
        out.send_data(body.freeze(), false).expect("sent");
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", grpc.parse().expect("a value"));
        out.send_trailers(trailers).expect("sent");
    }
}

fn http_check() -> HealthCheck {
    HealthCheck {
        timeout: SECOND,
        interval: 5 * SECOND,
        jitter: Duration::ZERO,
        unhealthy_threshold: 3,
        healthy_threshold: 2,
        no_traffic_interval: None,
        reuse_connection: true,
        kind: HealthCheckKind::Http {
            host: "".into(),
            path: "/healthz".into(),
            method: Method::GET,
            expected: Vec::new(),
            http2: false,
        },
    }
}

fn with(kind: HealthCheckKind) -> HealthCheck {
    HealthCheck {
        kind,
        ..http_check()
    }
}

/// A world whose members are being checked.
struct Checked {
    world: World,
    servers: Servers,
    checkers: Checkers<Servers>,
}

impl Checked {
    fn new(check: HealthCheck, members: u16, script: &[(u16, Does)]) -> Self {
        Self::of(cluster(EWMA), check, members, script)
    }

    fn of(mut config: Cluster, check: HealthCheck, members: u16, script: &[(u16, Does)]) -> Self {
        config.health_checks = vec![check];
        let servers = Servers::default();
        for (port, does) in script {
            servers.set(*port, does.clone());
        }
        let mut this = Self {
            world: World::new(config, plain(members)),
            checkers: Checkers::new(servers.clone(), StdRng::seed_from_u64(1)),
            servers,
        };
        this.update();
        this
    }

    fn update(&mut self) {
        let handle = Arc::clone(&self.world.handle);
        let mut live = Live::default();
        live.clusters.insert(handle.config.name.clone(), handle);
        self.checkers.update(&live);
    }

    /// Ports of the members that get requests.
    fn used(&mut self) -> Vec<u16> {
        self.world.spread(400).into_keys().collect()
    }
}

#[tokio::test(start_paused = true)]
async fn hc_01_every_kind_of_failure_counts_and_leaves_no_connection() {
    for bad in [GARBAGE, Does::Hangs, Does::Refuses, Does::Says("")] {
        let mut checked = Checked::new(http_check(), 3, &[]);
        sleep(SECOND).await;
        checked.servers.set(2, bad.clone());
        // Checks at 5, 10 and 15 s; the third completes the threshold, at most a time-out later.
        sleep(10 * SECOND).await;
        assert_eq!(checked.used(), [1, 2, 3], "{bad:?}: under the threshold");
        sleep(8 * SECOND).await;
        assert_eq!(checked.used(), [1, 3], "{bad:?}");
        assert_eq!(checked.servers.open.load(Relaxed), 0, "{bad:?}");

        checked.servers.set(2, OK);
        sleep(5 * SECOND).await;
        assert_eq!(checked.used(), [1, 3], "one good check is not two");
        sleep(6 * SECOND).await;
        assert_eq!(checked.used(), [1, 2, 3]);
    }
}

#[tokio::test(start_paused = true)]
async fn hc_01_an_answer_that_says_no_needs_no_threshold() {
    let mut checked = Checked::new(http_check(), 2, &[]);
    sleep(SECOND).await;
    checked.servers.set(2, BUSY);
    sleep(5 * SECOND).await;
    assert_eq!(checked.used(), [1]);
    let stats = checked.world.handle.stats(Instant::now());
    assert_eq!(
        (stats.checks, stats.checks_failed, stats.healthy),
        (4, 1, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn hc_02_the_pace_follows_traffic_at_once() {
    let mut check = http_check();
    check.no_traffic_interval = Some(60 * SECOND);
    let mut checked = Checked::new(check, 1, &[]);
    sleep(100 * SECOND).await;
    assert_eq!(checked.servers.times().len(), 2, "at 0 and 60 s");
    let now = Instant::now();
    let rng = &mut checked.world.rng;
    drop(checked.world.handle.admit(false, now, rng).expect("room"));
    sleep(5 * SECOND + SECOND / 10).await;
    assert_eq!(checked.servers.times().len(), 3, "within one interval");
}

#[tokio::test(start_paused = true)]
async fn hc_02_without_that_setting_an_idle_cluster_is_checked_as_often_and_jitter_spreads() {
    let mut check = http_check();
    check.jitter = 2 * SECOND;
    let checked = Checked::new(check, 1, &[]);
    sleep(300 * SECOND).await;
    let times = checked.servers.times();
    let gaps: Vec<_> = times.windows(2).map(|two| two[1] - two[0]).collect();
    assert!(gaps.len() >= 42, "{}", gaps.len());
    assert!(
        gaps.iter()
            .all(|gap| (5 * SECOND..=7 * SECOND).contains(gap))
    );
    assert!(gaps.windows(2).any(|two| two[0] != two[1]));
}

#[tokio::test(start_paused = true)]
async fn hc_03_removal_wins_and_active_failures_know_no_ejection_limit() {
    let mut config = cluster(EWMA);
    config.panic_threshold = 0;
    config.outlier = Some(Outlier {
        max_ejection_percent: 25,
        ..outlier()
    });
    let mut checked = Checked::of(config, http_check(), 4, &[]);
    for port in [1, 2, 3] {
        checked.servers.set(port, BUSY);
    }
    sleep(6 * SECOND).await;
    assert_eq!(
        checked.used(),
        [4],
        "three of four, though 25 % may be ejected"
    );

    // It passes every check, and it is gone all the same.
    for port in 1..=4 {
        checked.servers.set(port, OK);
    }
    sleep(15 * SECOND).await;
    checked.world.push(plain(3));
    assert_eq!(checked.used(), [1, 2, 3]);
    checked.update();
    let before = checked.servers.times().len();
    sleep(5 * SECOND + SECOND / 10).await;
    let dialed = checked.servers.dialed.lock().expect("unpoisoned").clone();
    let late = &dialed[before..];
    assert!(!late.is_empty() && late.iter().all(|(address, _)| *address != at(4)));
}

#[tokio::test(start_paused = true)]
async fn hc_04_only_serving_is_healthy() {
    const GRPC: &str = "application/grpc";
    let table = [
        (Does::Grpc(200, GRPC, "0", 1), true),
        (Does::Grpc(200, "application/grpc+proto", "0", 1), true),
        (Does::Grpc(200, GRPC, "0", 2), false),
        (Does::Grpc(200, GRPC, "0", 3), false),
        (Does::Grpc(200, GRPC, "0", 0), false),
        (Does::Grpc(200, GRPC, "12", 1), false),
        (Does::Grpc(200, "text/plain", "0", 1), false),
        (Does::Grpc(503, GRPC, "0", 1), false),
        (Does::ResetsStream, false),
        (OK, false),
        (Does::Hangs, false),
    ];
    for (does, healthy) in table {
        let check = with(HealthCheckKind::Grpc {
            service: "shop.Cart".into(),
            authority: "".into(),
        });
        let mut checked = Checked::new(check, 2, &[(1, Does::Grpc(200, GRPC, "0", 1))]);
        checked.servers.set(2, does.clone());
        sleep(2 * SECOND).await;
        assert_eq!(checked.used().contains(&2), healthy, "{does:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn hc_05_going_away_is_no_failure_and_causes_no_panic() {
    let mut checked = Checked::new(http_check(), 6, &[]);
    sleep(SECOND).await;
    let header = "HTTP/1.1 200 OK\r\nx-envoy-immediate-health-check-fail: true\r\n\r\n";
    for port in [1, 2, 3] {
        checked.servers.set(port, GONE);
    }
    checked.servers.set(4, Does::Says(header));
    sleep(5 * SECOND).await;
    // A third of six would be panic, and then all would be used.
    assert_eq!(checked.used(), [5, 6]);
    // Having left, they do not answer; that is still no panic.
    for port in 1..=4 {
        checked.servers.set(port, Does::Refuses);
    }
    sleep(30 * SECOND).await;
    assert_eq!(checked.used(), [5, 6]);
}

#[tokio::test(start_paused = true)]
async fn hc_06_members_are_usable_before_their_first_check_which_comes_at_once() {
    let mut checked = Checked::new(http_check(), 3, &[(3, Does::Refuses)]);
    assert_eq!(checked.used(), [1, 2, 3], "no waiting for a check");
    let began = Instant::now();
    sleep(Duration::from_millis(1)).await;
    assert_eq!(checked.servers.times(), [began; 3]);
    assert_eq!(checked.used(), [1, 2], "the first check decides by itself");
}

#[tokio::test(start_paused = true)]
async fn a_member_that_is_not_checked_any_more_is_not_held_down() {
    let mut checked = Checked::new(http_check(), 2, &[(2, BUSY)]);
    sleep(SECOND).await;
    assert_eq!(checked.used(), [1]);
    checked.checkers.update(&Live::default());
    assert_eq!(checked.used(), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_push_disturbs_no_checks() {
    let mut checked = Checked::new(http_check(), 2, &[]);
    for _ in 0..100 {
        sleep(SECOND / 10).await;
        let mut members = plain(2);
        members.overprovisioning = 150;
        checked.world.push(members);
        checked.update();
    }
    assert_eq!(
        checked.servers.times().len(),
        4,
        "two members, at 0 and 5 s"
    );
}

#[tokio::test(start_paused = true)]
async fn tcp_checks_expect_their_parts_in_order() {
    let table: &[(&[&str], Does, bool)] = &[
        (&[], Does::Hangs, true),
        (&[], Does::Refuses, false),
        (&["+PONG"], Does::Says("+PONG\r\n"), true),
        (&["a", "b"], Does::Says("xaxbx"), true),
        (&["b", "a"], Does::Says("xaxbx"), false),
        (&["+PONG"], Does::Says("-ERR\r\n"), false),
    ];
    for (receive, does, healthy) in table {
        let check = with(HealthCheckKind::Tcp {
            send: b"PING\r\n".to_vec(),
            receive: receive
                .iter()
                .map(|part| part.as_bytes().to_vec())
                .collect(),
        });
        let script = [(1, Does::Says("+PONG a b\r\n")), (2, does.clone())];
        let checked = Checked::new(check, 2, &script);
        sleep(2 * SECOND).await;
        let views = checked.world.handle.endpoints(Instant::now());
        assert_eq!(!views[1].check_failed, *healthy, "{receive:?} {does:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn statuses_are_compared_with_the_expected_ranges() {
    for (status, healthy) in [(199, false), (200, true), (399, true), (400, false)] {
        let mut check = http_check();
        let HealthCheckKind::Http { expected, .. } = &mut check.kind else {
            panic!("it is");
        };
        expected.push((StatusCode::OK, 400));
        let text = format!("HTTP/1.1 {status} X\r\n\r\n");
        let does = Does::Says(Box::leak(text.into_boxed_str()));
        let mut checked = Checked::new(check, 2, &[(2, does)]);
        sleep(2 * SECOND).await;
        assert_eq!(checked.used().contains(&2), healthy, "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_endless_answer_is_not_read_to_its_end() {
    let text = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(1 << 20));
    let does = Does::Says(Box::leak(text.into_boxed_str()));
    let (ours, theirs) = duplex(4096);
    tokio::spawn(serve_quietly(theirs, does));
    let host = http::HeaderValue::from_static("c");
    let path = "/".parse().expect("a path");
    let read = super::probe::http1_head(
        Box::new(ours),
        &host,
        &Method::GET,
        &path,
        &http::HeaderMap::new(),
    )
    .await;
    let error = read.expect_err("too long");
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
}

async fn serve_quietly(mut io: DuplexStream, does: Does) {
    if let Does::Says(text) = does {
        // Ends with an error when the reader has had enough.
        let _end = io.write_all(text.as_bytes()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn connections_end_with_the_health_of_their_endpoint_where_that_is_asked_for() {
    for close in [false, true] {
        let mut config = cluster(EWMA);
        config.close_on_health_failure = close;
        let checked = Checked::of(config, http_check(), 2, &[]);
        let members = checked.world.handle.members.iter().flatten();
        let generations: Vec<_> = members.map(|member| member.generation()).collect();
        let now = || -> Vec<u32> { generations.iter().map(|g| g.load(Relaxed)).collect() };
        sleep(SECOND).await;
        checked.servers.set(2, BUSY);
        sleep(6 * SECOND).await;
        assert_eq!(now(), [0, u32::from(close)]);
        // Coming back ends nothing.
        checked.servers.set(2, OK);
        sleep(20 * SECOND).await;
        assert_eq!(now(), [0, u32::from(close)]);
    }
}

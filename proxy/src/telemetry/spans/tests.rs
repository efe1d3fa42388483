//! What spans say, and what becomes of them.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http::{HeaderMap, Method, StatusCode};
use rand::{SeedableRng, rngs::StdRng};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{
    testing::{Mood, Seen, Stub},
    *,
};
use crate::{
    config::{ClusterName, SpiffeId, listener::Direction},
    fault::Fault,
    telemetry::{Attempt, Setup, Telemetry, TraceContext},
};

const CALLER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn address(port: u16) -> SocketAddr {
    ([10, 0, 0, 1], port).into()
}

/// A request of a sampled caller that began 100 ms ago and has not been tried yet.
fn record(direction: Direction) -> Record {
    let mut headers = HeaderMap::new();
    headers.insert("traceparent", CALLER.parse().expect("a value"));
    let mut rng = StdRng::seed_from_u64(7);
    let now = Instant::now();
    let mut record = Record::new(direction, address(1234), address(80), now);
    record.trace = TraceContext::extract(&headers, Some(Fraction::NONE), &mut rng);
    record.authority = "cart.shop:80".into();
    record.path = "/items".into();
    record.cluster = Some(ClusterName::from("outbound|80||cart.shop.svc"));
    record.ended = now + Duration::from_millis(100);
    record
}

fn add_try(record: &mut Record, status: Option<u16>, fault: Option<Fault>) {
    let before = u32::try_from(record.attempts.len()).expect("few");
    let mut rng = StdRng::seed_from_u64(u64::from(before));
    let began = record.started + Duration::from_millis(10) * before;
    let span_id = record.trace.as_mut().expect("traced").next_try(&mut rng);
    record.attempts.push(Attempt {
        span_id,
        ended: began + Duration::from_millis(10),
        connect: Duration::from_micros(300),
        wait: Duration::from_micros(300),
        status: status.and_then(|code| StatusCode::from_u16(code).ok()),
        fault,
        ..Attempt::new(address(8080), began)
    });
}

fn with_status(mut record: Record, code: u16) -> Record {
    record.status = StatusCode::from_u16(code).ok();
    record
}

fn telemetry(spans: Spans) -> Telemetry {
    Telemetry::new(Setup {
        spans: Some(spans),
        ..Setup::default()
    })
}

/// The spans of a record, as a collector gets them.
async fn exported(record: &Record) -> Vec<Seen> {
    let stop = CancellationToken::new();
    let (stub, spans, task) = Stub::start(stop.clone());
    telemetry(spans).request(record);
    stop.cancel();
    task.await.expect("no panic");
    stub.seen()
}

/// How many spans came to which end.
fn outcomes(telemetry: &Telemetry) -> (u64, u64, u64) {
    let text = telemetry.scrape().openmetrics();
    let of = |outcome: &str| {
        let start = format!("outrigger_spans_total{{outcome=\"{outcome}\"}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&start));
        line.and_then(|n| n.parse().ok()).expect(outcome)
    };
    (of("exported"), of("dropped"), of("failed"))
}

#[tokio::test]
async fn ob_02_a_request_with_one_try_is_one_span() {
    let mut outbound = with_status(record(Direction::Outbound), 200);
    add_try(&mut outbound, Some(200), None);
    let told = outbound.attempts.first().expect("a try").span_id;
    let [span] = exported(&outbound).await.try_into().expect("one");
    assert_eq!(span.id, crate::telemetry::trace::hex(&told));
    assert_eq!(span.parent, "00f067aa0ba902b7");
    assert_eq!(span.trace_id, "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!((span.kind.as_str(), span.error), ("Client", false));
    assert_eq!(span.name, "GET cart.shop.svc");
    assert_eq!(span.lasted, Duration::from_millis(100));
    for (key, value) in [
        ("http.request.method", "GET"),
        ("url.path", "/items"),
        ("http.response.status_code", "200"),
        ("server.address", "cart.shop"),
        ("server.port", "80"),
        ("network.peer.address", "10.0.0.1"),
        ("network.peer.port", "8080"),
        ("network.protocol.version", "1.1"),
        ("outrigger.cluster", "outbound|80||cart.shop.svc"),
        ("error.type", ""),
    ] {
        assert_eq!(span.get(key), value, "{key} in {span:?}");
    }
    assert_eq!(span.events, ["connection"]);

    let mut inbound = with_status(record(Direction::Inbound), 200);
    inbound.cluster = Some(ClusterName::from("inbound|8080||"));
    inbound.peer = SpiffeId::parse("spiffe://td/ns/shop/sa/front").ok();
    add_try(&mut inbound, Some(200), None);
    let [span] = exported(&inbound).await.try_into().expect("one");
    assert_eq!((span.kind.as_str(), span.name.as_str()), ("Server", "GET"));
    assert_eq!(span.get("network.peer.port"), "1234");
    assert_eq!(span.get("client.address"), "10.0.0.1");
    assert_eq!(span.get("outrigger.peer"), "spiffe://td/ns/shop/sa/front");
}

#[tokio::test]
async fn ob_02_each_of_several_tries_is_a_span_below_the_requests() {
    let mut record = with_status(record(Direction::Outbound), 200);
    add_try(&mut record, None, Some(Fault::ConnectFailed));
    add_try(&mut record, Some(503), None);
    add_try(&mut record, Some(200), None);
    let [request, refused, failed, good] = exported(&record).await.try_into().expect("four");
    assert_eq!(request.parent, "00f067aa0ba902b7");
    assert_eq!(
        (request.error, request.get("outrigger.tries")),
        (false, "3")
    );
    for (n, (span, error, kind_of_error)) in [
        (&refused, true, "ConnectFailed"),
        (&failed, true, "503"),
        (&good, false, ""),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(
            (span.parent.as_str(), span.kind.as_str()),
            (&*request.id, "Client")
        );
        assert_eq!((span.error, span.get("error.type")), (error, kind_of_error));
        assert_eq!(span.get("outrigger.attempt"), (n + 1).to_string());
        let resend = if n == 0 { String::new() } else { n.to_string() };
        assert_eq!(span.get("http.request.resend_count"), resend);
    }
    assert_eq!(refused.get("outrigger.response_flag"), "UF");
    assert_eq!(refused.events, ["connection", "fault"]);
    assert_eq!(refused.lasted, Duration::from_millis(10));
    // The last one lasts as long as its answer does.
    assert_eq!(good.lasted, Duration::from_millis(80));
    let ids = [&request.id, &refused.id, &failed.id, &good.id];
    let distinct: std::collections::HashSet<_> = ids.into_iter().collect();
    assert_eq!(distinct.len(), 4);
}

#[tokio::test]
async fn ob_02_what_is_an_error_depends_on_whose_it_is() {
    use Direction::{Inbound, Outbound};
    let table = [
        (Inbound, Some(404), None, None, false, ""),
        (Outbound, Some(404), None, None, true, "404"),
        (Inbound, Some(500), None, None, true, "500"),
        (Outbound, Some(302), None, None, false, ""),
        // The client went away: nobody's error.
        (Inbound, None, None, Some(Fault::DownstreamReset), false, ""),
        (
            Outbound,
            None,
            None,
            Some(Fault::DownstreamReset),
            false,
            "",
        ),
        (
            Outbound,
            Some(200),
            None,
            Some(Fault::DownstreamReset),
            false,
            "",
        ),
        // The answer broke off in its body.
        (
            Outbound,
            Some(200),
            None,
            Some(Fault::UpstreamReset),
            true,
            "UpstreamReset",
        ),
        (Inbound, Some(403), None, Some(Fault::Denied), false, ""),
        (
            Outbound,
            Some(503),
            None,
            Some(Fault::BreakerOpen),
            true,
            "BreakerOpen",
        ),
        (Inbound, Some(200), Some(5), None, false, ""),
        (Outbound, Some(200), Some(5), None, true, "5"),
        (Inbound, Some(200), Some(14), None, true, "14"),
        (Outbound, Some(200), Some(0), None, false, ""),
    ];
    for case in table {
        let (direction, status, grpc, fault, error, kind) = case;
        let mut record = record(direction);
        record.status = status.and_then(|code| StatusCode::from_u16(code).ok());
        (record.grpc, record.grpc_status, record.fault) = (grpc.is_some(), grpc, fault);
        let [span] = exported(&record).await.try_into().expect("one");
        assert_eq!(
            (span.error, span.get("error.type")),
            (error, kind),
            "{case:?}"
        );
        let flag = fault.map_or("", |fault| fault.row().flag);
        assert_eq!(span.get("outrigger.response_flag"), flag, "{case:?}");
        let events: &[&str] = if fault.is_some() { &["fault"] } else { &[] };
        assert_eq!(span.events, events, "{case:?}");
    }
}

#[tokio::test]
async fn a_grpc_call_is_named_by_its_method() {
    let mut record = with_status(record(Direction::Inbound), 200);
    (record.grpc, record.grpc_status) = (true, Some(0));
    record.path = "/shop.v1.Cart/Get".into();
    let [span] = exported(&record).await.try_into().expect("one");
    assert_eq!(span.name, "shop.v1.Cart/Get");
    assert_eq!(span.get("rpc.system"), "grpc");
    assert_eq!(span.get("rpc.service"), "shop.v1.Cart");
    assert_eq!(span.get("rpc.method"), "Get");
    assert_eq!(span.get("rpc.grpc.status_code"), "0");
}

#[tokio::test]
async fn what_a_client_invents_is_short_and_no_name_of_an_operation() {
    let mut record = with_status(record(Direction::Outbound), 200);
    record.method = Method::from_bytes(b"BREW").expect("a token");
    record.path = format!("/{}", "\u{e9}".repeat(40_000)).into();
    let [span] = exported(&record).await.try_into().expect("one");
    assert_eq!(span.name, "HTTP cart.shop.svc");
    assert_eq!(span.get("http.request.method"), "_OTHER");
    assert_eq!(span.get("http.request.method_original"), "BREW");
    assert!((1000..=1024).contains(&span.get("url.path").len()));
}

#[tokio::test]
async fn what_is_not_sampled_is_not_exported() {
    let mut record = record(Direction::Outbound);
    if let Some(trace) = &mut record.trace {
        trace.sampled = false;
    }
    assert!(exported(&record).await.is_empty());
    record.trace = None;
    assert!(exported(&record).await.is_empty());
}

#[test]
fn tracing_is_where_a_collector_is() {
    let half = Fraction::new(1, 2);
    let plain = Tracing {
        random_sampling: half,
        collector: None,
    };
    let named = Tracing {
        collector: Some(Arc::new(Collector {
            cluster: ClusterName::from("otel"),
            authority: "".into(),
            service_name: "".into(),
        })),
        ..plain
    };
    let (own, _queue) = Spans::new(Fraction::ALL, true);
    assert_eq!(own.sampling(None), Some(Fraction::ALL));
    assert_eq!(own.sampling(Some(&plain)), Some(half));
    let (none, _queue) = Spans::new(Fraction::ALL, false);
    assert_eq!(none.sampling(None), None);
    assert_eq!(none.sampling(Some(&plain)), None);
    assert_eq!(none.sampling(Some(&named)), Some(half));
}

#[tokio::test(start_paused = true)]
async fn ob_03_a_collector_that_hangs_costs_spans_and_nothing_else() {
    let stop = CancellationToken::new();
    let (stub, spans, _task) = Stub::start(stop.clone());
    let telemetry = telemetry(spans);
    let one = with_status(record(Direction::Outbound), 200);
    stub.mood(Mood::Hangs);
    // Ten minutes of traffic, and the clock stands still while a request is handed over.
    for _ in 0..600 {
        let before = Instant::now();
        for _ in 0..100 {
            telemetry.request(&one);
        }
        assert_eq!(Instant::now(), before);
        sleep(Duration::from_secs(1)).await;
    }
    let (exported, dropped, failed) = outcomes(&telemetry);
    assert_eq!(exported, 0);
    assert!(dropped > 50_000, "{dropped} dropped, {failed} failed");
    let waiting = 60_000 - dropped - failed;
    let bound = (MAX_QUEUED + 256) as u64;
    assert!(waiting <= bound, "{waiting} wait");
    // Calls of five seconds, with waits of at most as long between them.
    assert!((60..=120).contains(&stub.calls()), "{} calls", stub.calls());

    stub.mood(Mood::Takes);
    sleep(Duration::from_secs(20)).await;
    let seen = stub.seen().len() as u64;
    assert!(seen >= MAX_QUEUED as u64, "what waited comes: {seen}");
    telemetry.request(&one);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(
        stub.seen().len() as u64,
        seen + 1,
        "and so does what is new"
    );
    let (exported, dropped, failed) = outcomes(&telemetry);
    assert_eq!(exported + dropped + failed, 60_001, "each is counted once");
}

#[tokio::test(start_paused = true)]
async fn ob_03_a_collector_that_refuses_is_asked_again_and_then_not() {
    let (stub, spans, _task) = Stub::start(CancellationToken::new());
    let telemetry = telemetry(spans);
    let one = with_status(record(Direction::Outbound), 200);
    stub.mood(Mood::Refuses);
    telemetry.request(&one);
    sleep(Duration::from_secs(30)).await;
    assert_eq!((stub.calls(), outcomes(&telemetry)), (3, (0, 0, 1)));
    stub.mood(Mood::Takes);
    telemetry.request(&one);
    sleep(Duration::from_secs(2)).await;
    assert_eq!((stub.calls(), outcomes(&telemetry)), (4, (1, 0, 1)));
}

#[tokio::test(start_paused = true)]
async fn what_waits_is_sent_at_the_end() {
    let stop = CancellationToken::new();
    let (stub, spans, task) = Stub::start(stop.clone());
    let telemetry = telemetry(spans);
    let one = with_status(record(Direction::Outbound), 200);
    for _ in 0..1000 {
        telemetry.request(&one);
    }
    let before = Instant::now();
    stop.cancel();
    task.await.expect("no panic");
    assert_eq!(stub.seen().len(), 1000);
    assert_eq!(Instant::now(), before, "without waiting for more");
    telemetry.request(&one);
    assert_eq!(outcomes(&telemetry), (1000, 1, 0), "too late is dropped");
}

#[tokio::test(start_paused = true)]
async fn spans_are_gathered_into_few_calls() {
    let (stub, spans, _task) = Stub::start(CancellationToken::new());
    let telemetry = telemetry(spans);
    let one = with_status(record(Direction::Outbound), 200);
    for _ in 0..50 {
        telemetry.request(&one);
        sleep(Duration::from_millis(10)).await;
    }
    sleep(Duration::from_secs(1)).await;
    assert_eq!((stub.seen().len(), stub.calls()), (50, 1));
}

//! Clocks by the cases they come from.

use proptest::prelude::*;

use super::*;
use crate::config::{
    listener::{Codec, ForwardClientCert, Routes},
    route::Target,
};

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn forward() -> Forward {
    Forward {
        target: Target::Cluster("c".into()),
        path_rewrite: None,
        host_rewrite: None,
        timeout: None,
        idle_timeout: None,
        max_stream_duration: None,
        grpc_timeout_max: None,
        retry: None,
        mirrors: Vec::new(),
        hash: Vec::new(),
        high_priority: false,
        cluster_not_found: StatusCode::SERVICE_UNAVAILABLE,
    }
}

fn manager() -> HttpManager {
    HttpManager {
        stat_prefix: "in".into(),
        codec: Codec::Auto,
        routes: Routes::Rds("r".into()),
        filters: Vec::new(),
        stream_idle_timeout: Some(ms(300_000)),
        idle_timeout: None,
        request_headers_timeout: None,
        max_stream_duration: None,
        max_request_headers_kb: 60,
        max_requests_per_connection: None,
        upgrades: Vec::new(),
        tracing: None,
        forward_client_cert: ForwardClientCert::Sanitize,
        access_log: false,
        server_name: "outrigger".into(),
    }
}

fn per_try(limit: u64) -> RetryPolicy {
    RetryPolicy {
        per_try_timeout: Some(ms(limit)),
        ..RetryPolicy::standard()
    }
}

fn start(forward: &Forward, asked: Option<Duration>) -> (Deadlines, Instant) {
    let now = Instant::now();
    let deadlines = Deadlines::new(forward, &RetryPolicy::standard(), &manager(), asked, now);
    (deadlines, now)
}

fn limit(at: Instant, fault: Fault) -> Option<Limit> {
    Some(Limit { at, fault })
}

#[test]
fn rt_06_a_slow_upload_eats_neither_the_overall_nor_the_try_time() {
    let forward = Forward {
        timeout: Some(ms(100)),
        ..forward()
    };
    let now = Instant::now();
    let mut deadlines = Deadlines::new(&forward, &per_try(50), &manager(), None, now);
    assert_eq!(deadlines.head_by(), None, "still uploading");
    let ended = now + ms(5_000);
    deadlines.request_ended(ended);
    assert_eq!(
        deadlines.head_by(),
        limit(ended + ms(100), Fault::RequestTimeout)
    );
    assert_eq!(
        deadlines.try_by(ended),
        limit(ended + ms(50), Fault::PerTryTimeout)
    );
}

#[test]
fn rt_06_the_overall_time_covers_all_tries_and_wins_a_tie() {
    let forward = Forward {
        timeout: Some(ms(100)),
        ..forward()
    };
    let now = Instant::now();
    let mut deadlines = Deadlines::new(&forward, &per_try(50), &manager(), None, now);
    deadlines.request_ended(now);
    let table = [
        (0, 50, Fault::PerTryTimeout),
        (40, 90, Fault::PerTryTimeout),
        (50, 100, Fault::RequestTimeout),
        (60, 100, Fault::RequestTimeout),
    ];
    for (ready, at, fault) in table {
        assert_eq!(
            deadlines.try_by(now + ms(ready)),
            limit(now + ms(at), fault),
            "{ready}"
        );
    }
    deadlines.request_ended(now + ms(70));
    assert_eq!(
        deadlines.head_by(),
        limit(now + ms(100), Fault::RequestTimeout),
        "started once"
    );
    assert_eq!(deadlines.remaining(now + ms(30)), Some(ms(70)));
    assert_eq!(deadlines.remaining(now + ms(130)), Some(Duration::ZERO));
}

#[test]
fn rt_06_a_begun_body_is_never_cut_by_the_try_time() {
    let now = Instant::now();
    let mut deadlines = Deadlines::new(&forward(), &per_try(50), &manager(), None, now);
    deadlines.request_ended(now);
    assert!(deadlines.try_by(now).is_some());
    assert_eq!(deadlines.end_by(false), None);
}

#[test]
fn gr_05_the_overall_time_lets_go_of_a_stream_once_it_answers() {
    let forward = Forward {
        timeout: Some(ms(15_000)),
        ..forward()
    };
    let (mut deadlines, now) = start(&forward, None);
    deadlines.request_ended(now);
    assert!(deadlines.head_by().is_some());
    assert_eq!(deadlines.end_by(true), None);
    assert_eq!(
        deadlines.end_by(false),
        limit(now + ms(15_000), Fault::RequestTimeout)
    );
    assert_eq!(deadlines.idle(), Some(ms(300_000)));
}

#[test]
fn gr_05_streams_are_cut_only_when_asked() {
    let forward = Forward {
        max_stream_duration: Some(ms(1_000)),
        idle_timeout: Some(Duration::ZERO),
        ..forward()
    };
    let (deadlines, now) = start(&forward, None);
    assert_eq!(
        deadlines.end_by(true),
        limit(now + ms(1_000), Fault::StreamDuration)
    );
    assert_eq!(deadlines.idle(), None, "zero switches it off");
}

#[test]
fn gr_05_which_responses_stream() {
    let check = |status: u16, content_type: Option<&'static str>| {
        let mut headers = HeaderMap::new();
        if let Some(value) = content_type {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(value));
        }
        is_streaming(StatusCode::from_u16(status).expect("a status"), &headers)
    };
    assert!(check(101, None) && check(101, Some("text/plain")));
    assert!(check(200, Some("application/grpc+proto")));
    assert!(check(200, Some("Text/Event-Stream; charset=utf-8")));
    assert!(!check(200, None));
    assert!(!check(200, Some("text/plain")));
    assert!(!check(200, Some("application/grpc-web")));
}

#[test]
fn a_callers_deadline_is_kept_as_far_as_the_route_says() {
    let with = |max: Option<u64>, asked: Option<u64>| {
        let forward = Forward {
            grpc_timeout_max: max.map(ms),
            max_stream_duration: Some(ms(7_000)),
            ..forward()
        };
        let (deadlines, now) = start(&forward, asked.map(ms));
        deadlines
            .end_by(true)
            .map(|limit| (limit.at - now, limit.fault))
    };
    let caller = |millis| Some((ms(millis), Fault::RequestTimeout));
    let stream = Some((ms(7_000), Fault::StreamDuration));
    assert_eq!(with(None, Some(100)), stream, "not enforced");
    assert_eq!(with(Some(0), Some(100)), caller(100));
    assert_eq!(
        with(Some(0), Some(9_000)),
        caller(9_000),
        "in place of the route's"
    );
    assert_eq!(with(Some(50), Some(100)), caller(50));
    assert_eq!(with(Some(50), None), stream);
    assert_eq!(with(None, None), stream);
}

#[test]
fn no_try_is_made_that_the_caller_no_longer_waits_for() {
    let (deadlines, now) = start(&forward(), Some(ms(100)));
    assert_eq!(deadlines.end_by(false), None, "not enforced");
    assert_eq!(deadlines.remaining(now + ms(30)), Some(ms(70)));
}

#[test]
fn the_upstream_is_told_what_is_left() {
    let forward = Forward {
        timeout: Some(ms(60)),
        ..forward()
    };
    let (mut deadlines, now) = start(&forward, Some(ms(100)));
    assert_eq!(
        deadlines.grpc_timeout(now + ms(30)).expect("asked"),
        "70000000n"
    );
    deadlines.request_ended(now);
    assert_eq!(
        deadlines.grpc_timeout(now + ms(30)).expect("asked"),
        "30000000n"
    );
    assert_eq!(deadlines.grpc_timeout(now + ms(900)).expect("asked"), "1n");
    let (silent, now) = start(&forward, None);
    assert_eq!(silent.grpc_timeout(now), None, "none is made up");
}

fn parse(text: &str) -> Option<Duration> {
    let mut headers = HeaderMap::new();
    headers.insert(GRPC_TIMEOUT, HeaderValue::from_str(text).expect("a value"));
    grpc_timeout(&headers)
}

#[test]
fn grpc_timeouts_parse_by_the_grammar_only() {
    for (text, want) in [
        ("1H", Some(Duration::from_secs(3600))),
        ("2M", Some(Duration::from_secs(120))),
        ("3S", Some(Duration::from_secs(3))),
        ("4m", Some(ms(4))),
        ("5u", Some(Duration::from_micros(5))),
        ("6n", Some(Duration::from_nanos(6))),
        ("0S", Some(Duration::ZERO)),
        ("99999999H", Some(Duration::from_secs(359_999_996_400))),
        ("100000000n", None),
        ("S", None),
        ("", None),
        ("5", None),
        ("5s", None),
        ("-5S", None),
        ("+5S", None),
        ("5 S", None),
        ("1.5S", None),
    ] {
        assert_eq!(parse(text), want, "{text}");
    }
    assert_eq!(grpc_timeout(&HeaderMap::new()), None);
}

#[test]
fn envoys_timeout_headers_are_not_read() {
    let mut headers = HeaderMap::new();
    headers.insert(
        "x-envoy-upstream-rq-timeout-ms",
        HeaderValue::from_static("1"),
    );
    headers.insert(
        "x-envoy-expected-rq-timeout-ms",
        HeaderValue::from_static("1"),
    );
    assert_eq!(grpc_timeout(&headers), None);
}

#[test]
fn times_without_end_do_not_overflow() {
    let forward = Forward {
        timeout: Some(Duration::MAX),
        max_stream_duration: Some(Duration::MAX),
        grpc_timeout_max: Some(Duration::ZERO),
        ..forward()
    };
    let (mut deadlines, now) = start(&forward, Some(Duration::MAX));
    deadlines.request_ended(now);
    assert_eq!(
        (deadlines.head_by(), deadlines.remaining(now)),
        (None, None)
    );
    assert_eq!(format_timeout(Duration::MAX), "99999999H");
}

proptest! {
    #[test]
    fn a_formatted_timeout_parses_to_hardly_less(
        secs in 0..400_000_000_u64,
        nanos in 0..1_000_000_000_u32,
    ) {
        let left = Duration::new(secs, nanos);
        let text = format_timeout(left);
        let again = parse(text.to_str().expect("ascii")).expect("valid");
        prop_assert!(again <= left.max(Duration::from_nanos(1)));
        // Eight digits: at worst a whole second is lost where milliseconds no longer fit.
        let lost = left.as_nanos().saturating_sub(again.as_nanos());
        prop_assert!(lost <= left.as_nanos() / 100_000);
    }
}

//! Retry decisions, by the cases they come from.

use http::{HeaderName, HeaderValue};
use rand::SeedableRng;

use super::*;
use crate::config::units::Backoff;

fn first(method: &Method) -> Tried<'_> {
    Tried {
        method,
        grpc: false,
        retries: 0,
        sent: true,
        committed: false,
        replayable: true,
        elsewhere: true,
        remaining: None,
    }
}

fn policy(on: RetryOn) -> RetryPolicy {
    RetryPolicy {
        on,
        ..RetryPolicy::standard()
    }
}

fn run(policy: &RetryPolicy, tried: &Tried<'_>, outcome: &Outcome<'_>) -> Decision {
    let mut rng = rand::rngs::StdRng::seed_from_u64(3);
    decide(policy, tried, outcome, &mut rng)
}

fn stops(policy: &RetryPolicy, tried: &Tried<'_>, outcome: &Outcome<'_>) -> Option<Why> {
    match run(policy, tried, outcome) {
        Decision::Retry { .. } => None,
        Decision::Stop(why) => Some(why),
    }
}

fn block(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)))
        .collect()
}

fn response(status: u16, headers: &HeaderMap) -> Outcome<'_> {
    Outcome::Response {
        status: StatusCode::from_u16(status).expect("a status"),
        headers,
        trailers: None,
    }
}

const MAY_HAVE_RUN: [Fault; 4] = [
    Fault::UpstreamClosed,
    Fault::UpstreamReset,
    Fault::UpstreamProtocol,
    Fault::PerTryTimeout,
];

#[test]
fn rt_01_by_default_only_what_cannot_have_run_goes_again() {
    let standard = RetryPolicy::standard();
    for &fault in Fault::ALL {
        let row = fault.row();
        let want = match (row.side, row.resend) {
            (Side::Proxy, _) | (_, Resend::Never) => Some(Why::NotAsked),
            (_, Resend::Safe) => None,
            (_, Resend::IfPolicy) => Some(Why::MayHaveRun),
        };
        let post = first(&Method::POST);
        assert_eq!(
            stops(&standard, &post, &Outcome::Fault(fault)),
            want,
            "{fault:?}"
        );
    }
    let none = HeaderMap::new();
    for status in [200, 409, 429, 500, 502, 503, 504] {
        let got = stops(&standard, &first(&Method::GET), &response(status, &none));
        assert_eq!(got, Some(Why::NotAsked), "{status}");
    }
}

#[test]
fn rt_01_idempotent_methods_go_again_after_a_reset() {
    let standard = RetryPolicy::standard();
    for (method, again) in [
        (Method::GET, true),
        (Method::HEAD, true),
        (Method::OPTIONS, true),
        (Method::PUT, true),
        (Method::DELETE, true),
        (Method::POST, false),
        (Method::PATCH, false),
        (Method::CONNECT, false),
    ] {
        for fault in MAY_HAVE_RUN {
            let want = (!again).then_some(Why::MayHaveRun);
            let got = stops(&standard, &first(&method), &Outcome::Fault(fault));
            assert_eq!(got, want, "{method} {fault:?}");
        }
    }
}

#[test]
fn rt_01_five_hundreds_do_not_opt_a_post_in_to_run_twice_after_a_reset() {
    let mut named = policy(RetryOn {
        server_error_5xx: true,
        gateway_error: true,
        reset: true,
        ..RetryOn::default()
    });
    let post = first(&Method::POST);
    for fault in MAY_HAVE_RUN {
        assert_eq!(
            stops(&named, &post, &Outcome::Fault(fault)),
            Some(Why::MayHaveRun)
        );
    }
    named.allow_non_idempotent = true;
    for fault in MAY_HAVE_RUN {
        assert_eq!(
            stops(&named, &post, &Outcome::Fault(fault)),
            None,
            "{fault:?}"
        );
    }
}

#[test]
fn rt_01_an_answer_that_the_policy_names_is_the_operators_word() {
    let none = HeaderMap::new();
    let on = RetryOn::default();
    let table = [
        (
            RetryOn {
                server_error_5xx: true,
                ..on
            },
            vec![500, 503, 599],
            vec![200, 404, 499],
        ),
        (
            RetryOn {
                gateway_error: true,
                ..on
            },
            vec![502, 503, 504],
            vec![500, 501, 505],
        ),
        (
            RetryOn {
                retriable_4xx: true,
                ..on
            },
            vec![409],
            vec![400, 408, 429],
        ),
        (
            RetryOn {
                status_codes: true,
                ..on
            },
            vec![418],
            vec![500, 503],
        ),
        (
            RetryOn {
                reset: true,
                connect_failure: true,
                ..on
            },
            vec![],
            vec![500, 503],
        ),
    ];
    for (on, again, stands) in table {
        let mut policy = policy(on);
        policy.status_codes = vec![StatusCode::IM_A_TEAPOT];
        let post = first(&Method::POST);
        for status in again {
            assert_eq!(
                stops(&policy, &post, &response(status, &none)),
                None,
                "{on:?} {status}"
            );
        }
        for status in stands {
            let got = stops(&policy, &post, &response(status, &none));
            assert_eq!(got, Some(Why::NotAsked), "{on:?} {status}");
        }
    }
}

#[test]
fn rt_02_a_post_of_which_nothing_was_written_goes_again() {
    let mut post = first(&Method::POST);
    post.sent = false;
    let outcome = Outcome::Fault(Fault::UpstreamClosed);
    assert_eq!(stops(&RetryPolicy::standard(), &post, &outcome), None);
    let silent = policy(RetryOn::default());
    assert_eq!(stops(&silent, &post, &outcome), Some(Why::NotAsked));
}

#[test]
fn safe_faults_go_again_whatever_the_words_but_not_against_a_no() {
    let mut silent = policy(RetryOn::default());
    let post = first(&Method::POST);
    for fault in [
        Fault::ConnectFailed,
        Fault::ConnectTimeout,
        Fault::TlsFailed,
        Fault::PeerIdentityMismatch,
        Fault::UpstreamRefused,
    ] {
        assert_eq!(
            stops(&silent, &post, &Outcome::Fault(fault)),
            None,
            "{fault:?}"
        );
    }
    silent.num_retries = 0;
    let refused = Outcome::Fault(Fault::ConnectFailed);
    assert_eq!(stops(&silent, &post, &refused), Some(Why::Exhausted));
}

#[test]
fn rt_03_without_its_body_a_request_cannot_go_again() {
    let mut put = first(&Method::PUT);
    put.replayable = false;
    for fault in [Fault::ConnectFailed, Fault::UpstreamReset] {
        let got = stops(&RetryPolicy::standard(), &put, &Outcome::Fault(fault));
        assert_eq!(got, Some(Why::BodyGone), "{fault:?}");
    }
}

#[test]
fn gr_03_what_has_begun_to_reach_the_client_stands() {
    let mut get = first(&Method::GET);
    get.committed = true;
    let got = stops(
        &RetryPolicy::standard(),
        &get,
        &Outcome::Fault(Fault::UpstreamReset),
    );
    assert_eq!(got, Some(Why::Committed));
}

fn grpc_policy() -> RetryPolicy {
    policy(RetryOn {
        grpc_cancelled: true,
        grpc_unavailable: true,
        ..RetryOn::default()
    })
}

#[test]
fn gr_03_grpc_codes_count_in_trailers_and_in_trailers_only_heads() {
    let mut call = first(&Method::POST);
    call.grpc = true;
    let none = HeaderMap::new();
    let policy = grpc_policy();
    for (code, want) in [
        ("14", None),
        ("1", None),
        ("13", Some(Why::NotAsked)),
        ("0", Some(Why::NotAsked)),
        ("x", Some(Why::NotAsked)),
    ] {
        let status = block(&[("grpc-status", code)]);
        let in_head = response(200, &status);
        let in_trailers = Outcome::Response {
            status: StatusCode::OK,
            headers: &none,
            trailers: Some(&status),
        };
        assert_eq!(stops(&policy, &call, &in_head), want, "{code}");
        assert_eq!(stops(&policy, &call, &in_trailers), want, "{code}");
    }
    let open = response(200, &none);
    assert_eq!(
        stops(&policy, &call, &open),
        Some(Why::NotAsked),
        "not known yet"
    );
}

#[test]
fn gr_03_a_head_is_held_for_trailers_only_when_that_could_matter() {
    let mut call = first(&Method::POST);
    call.grpc = true;
    assert!(awaits_trailers(&grpc_policy(), &call));
    assert!(!awaits_trailers(&RetryPolicy::standard(), &call));
    let off = [
        Tried {
            grpc: false,
            ..call
        },
        Tried {
            committed: true,
            ..call
        },
        Tried {
            replayable: false,
            ..call
        },
        Tried { retries: 2, ..call },
    ];
    for tried in off {
        assert!(!awaits_trailers(&grpc_policy(), &tried), "{tried:?}");
    }
}

#[test]
fn the_upstreams_word_on_when_to_try_again_is_kept_within_bounds() {
    let by_code = policy(RetryOn {
        server_error_5xx: true,
        status_codes: true,
        grpc_unavailable: true,
        ..RetryOn::default()
    });
    let by_code = RetryPolicy {
        status_codes: vec![StatusCode::TOO_MANY_REQUESTS],
        ..by_code
    };
    let wait = |ms| Decision::Retry {
        wait: Duration::from_millis(ms),
    };
    let not_wanted = Decision::Stop(Why::NotWanted);
    let post = first(&Method::POST);
    for (status, name, value, want) in [
        (503, "retry-after", "0", wait(0)),
        (503, "retry-after", "2", wait(2_000)),
        (429, "retry-after", "5", wait(5_000)),
        (503, "retry-after", "6", not_wanted),
        (503, "retry-after", "99999999999999999999", not_wanted),
        (
            503,
            "retry-after",
            "Wed, 21 Oct 2026 07:28:00 GMT",
            not_wanted,
        ),
        (500, "grpc-retry-pushback-ms", "100", wait(100)),
        (500, "grpc-retry-pushback-ms", "-1", not_wanted),
        (500, "grpc-retry-pushback-ms", "soon", not_wanted),
        (500, "grpc-retry-pushback-ms", "5001", not_wanted),
    ] {
        let headers = block(&[(name, value)]);
        assert_eq!(
            run(&by_code, &post, &response(status, &headers)),
            want,
            "{name} {value}"
        );
    }
    // 500 is no status that `retry-after` belongs to: the policy's own back-off holds.
    let headers = block(&[("retry-after", "1000")]);
    assert_eq!(stops(&by_code, &post, &response(500, &headers)), None);
    let pushback = block(&[("grpc-status", "14"), ("grpc-retry-pushback-ms", "7")]);
    let none = HeaderMap::new();
    let in_trailers = Outcome::Response {
        status: StatusCode::OK,
        headers: &none,
        trailers: Some(&pushback),
    };
    assert_eq!(run(&by_code, &post, &in_trailers), wait(7));
}

#[test]
fn rt_06_no_try_begins_after_the_requests_time() {
    let mut get = first(&Method::GET);
    get.elsewhere = false;
    let reset = Outcome::Fault(Fault::UpstreamReset);
    get.remaining = Some(Duration::ZERO);
    assert_eq!(
        stops(&RetryPolicy::standard(), &get, &reset),
        Some(Why::NoTimeLeft)
    );
    get.remaining = Some(Duration::from_secs(1));
    assert_eq!(stops(&RetryPolicy::standard(), &get, &reset), None);
}

#[test]
fn tries_are_counted() {
    let standard = RetryPolicy::standard();
    let reset = Outcome::Fault(Fault::UpstreamReset);
    let made: Vec<_> = (0..4)
        .map(|retries| {
            let get = Tried {
                retries,
                ..first(&Method::GET)
            };
            stops(&standard, &get, &reset)
        })
        .collect();
    let over = Some(Why::Exhausted);
    assert_eq!(made, [None, None, over, over]);
}

#[test]
fn rt_05_another_endpoint_is_tried_at_once_and_the_same_one_after_a_wait() {
    let policy = RetryPolicy {
        backoff: Backoff::new(Duration::from_secs(8), Duration::from_secs(8)).expect("valid"),
        ..RetryPolicy::standard()
    };
    let waits = |elsewhere, retries, fault| {
        let tried = Tried {
            elsewhere,
            retries,
            ..first(&Method::GET)
        };
        match run(&policy, &tried, &Outcome::Fault(fault)) {
            Decision::Retry { wait } => !wait.is_zero(),
            Decision::Stop(why) => panic!("{why:?}"),
        }
    };
    assert!(!waits(true, 0, Fault::ConnectFailed));
    assert!(waits(false, 0, Fault::ConnectFailed));
    assert!(waits(true, 1, Fault::ConnectFailed));
    assert!(waits(true, 0, Fault::UpstreamReset));
}

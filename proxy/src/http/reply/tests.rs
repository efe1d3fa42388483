//! Local answers: every fault, for every kind of caller.

use std::collections::HashSet;

use super::*;

fn caller(content_type: Option<&'static str>) -> Caller {
    let mut headers = HeaderMap::new();
    if let Some(value) = content_type {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(value));
    }
    Caller::of(&Method::POST, Version::HTTP_2, &headers)
}

fn text<'a>(response: &'a Response<Bytes>, name: &str) -> &'a str {
    response
        .headers()
        .get(name)
        .map_or("", |v| v.to_str().expect("ascii"))
}

#[test]
fn gr_01_every_fault_is_a_grpc_status_to_a_grpc_caller() {
    let grpc = caller(Some("application/grpc+proto"));
    for &fault in Fault::ALL {
        let response = LocalReply::new(fault, "why").build(&grpc);
        assert_eq!(response.status(), StatusCode::OK, "{fault:?}");
        assert_eq!(text(&response, "content-type"), "application/grpc+proto");
        let code: u32 = text(&response, "grpc-status").parse().expect("a number");
        assert_eq!(code, u32::from(fault.row().grpc), "{fault:?}");
        assert_ne!(code, 0, "{fault:?} is no success");
        assert!(text(&response, "grpc-message").contains(fault.row().text));
        assert!(response.body().is_empty());
        assert!(!response.headers().contains_key("content-length"));
    }
}

#[test]
fn gr_01_the_codes_of_the_table() {
    let table = [
        (Fault::NoRoute, 12),
        (Fault::NoEndpoints, 14),
        (Fault::ConnectFailed, 14),
        (Fault::ConnectTimeout, 14),
        (Fault::TlsFailed, 14),
        (Fault::Denied, 7),
        (Fault::BreakerOpen, 14),
        (Fault::OverflowPending, 14),
        (Fault::RateLimited, 8),
        (Fault::RequestTimeout, 4),
        (Fault::UpstreamReset, 14),
        (Fault::Draining, 14),
    ];
    for (fault, code) in table {
        assert_eq!(LocalReply::new(fault, "").grpc_code(), code, "{fault:?}");
    }
}

#[test]
fn gr_01_other_callers_keep_http_statuses() {
    for content_type in [
        None,
        Some("application/grpc-web+proto"),
        Some("application/connect+proto"),
        Some("application/json"),
    ] {
        let caller = caller(content_type);
        for &fault in Fault::ALL {
            let response = LocalReply::new(fault, "").build(&caller);
            assert_eq!(response.status().as_u16(), fault.row().http, "{fault:?}");
            assert!(!response.headers().contains_key("grpc-status"));
            let body = std::str::from_utf8(response.body()).expect("text");
            assert!(body.contains(fault.row().text) && body.contains(fault.name()));
        }
    }
}

#[test]
fn gr_01_after_the_head_a_call_ends_with_trailers_only() {
    let trailers = LocalReply::new(Fault::UpstreamReset, "50% done\n").trailers();
    let names: HashSet<_> = trailers.keys().map(HeaderName::as_str).collect();
    assert_eq!(names, HashSet::from(["grpc-status", "grpc-message"]));
    assert_eq!(trailers[GRPC_STATUS], "14");
    assert!(
        trailers[GRPC_MESSAGE]
            .to_str()
            .expect("ascii")
            .contains("50%25 done%0A")
    );
}

#[test]
fn the_cause_is_said_in_proxy_status_and_cannot_break_out_of_it() {
    let reply = LocalReply::new(Fault::ConnectFailed, "10.0.0.7:80: \"no\"\r\nx: é\\");
    let response = reply.build(&caller(None));
    assert_eq!(
        text(&response, "proxy-status"),
        "outrigger; error=connection_refused; \
         details=\"ConnectFailed: 10.0.0.7:80: \\\"no\\\"??x: ?\\\\\""
    );
}

#[test]
fn details_are_bounded() {
    let long = "é".repeat(100_000);
    let reply = LocalReply::new(Fault::Internal, &long);
    let http = reply.build(&caller(None));
    assert!(http.body().len() < 2 * MAX_DETAILS);
    assert!(text(&http, "proxy-status").len() < 2 * MAX_DETAILS);
    let grpc = reply.build(&caller(Some("application/grpc")));
    // Percent-encoding makes three bytes of each.
    assert!(text(&grpc, "grpc-message").len() < 4 * MAX_DETAILS);
}

#[test]
fn a_connection_whose_framing_is_lost_is_closed_in_http1_only() {
    let closing = LocalReply::new(Fault::DownstreamProtocol, "bare CR");
    let mut http1 = caller(None);
    http1.http1 = true;
    assert_eq!(text(&closing.build(&http1), "connection"), "close");
    assert_eq!(text(&closing.build(&caller(None)), "connection"), "");
    let mut kept = LocalReply::new(Fault::NoRoute, "");
    assert_eq!(text(&kept.build(&http1), "connection"), "");
    kept.close = true;
    assert_eq!(text(&kept.build(&http1), "connection"), "close");
}

#[test]
fn ht_14_an_answer_to_head_has_no_content() {
    let mut head = caller(None);
    head.head = true;
    assert!(
        LocalReply::new(Fault::NoRoute, "")
            .build(&head)
            .body()
            .is_empty()
    );
    let direct = direct(StatusCode::OK, &Bytes::from_static(b"hi"), &head);
    assert!(direct.body().is_empty());
}

#[test]
fn configured_statuses_replace_the_faults_own() {
    let mut reply = LocalReply::new(Fault::FaultInjected, "");
    reply.status = Some(StatusCode::IM_A_TEAPOT);
    assert_eq!(reply.build(&caller(None)).status(), StatusCode::IM_A_TEAPOT);
    assert_eq!(reply.grpc_code(), 2, "what gRPC makes of a 418");
    reply.grpc_status = Some(5);
    assert_eq!(reply.grpc_code(), 5);
    let mut limited = LocalReply::new(Fault::RateLimited, "");
    limited.status = Some(StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(
        limited.grpc_code(),
        8,
        "the fault's own status keeps its code"
    );
}

#[test]
fn retry_after_is_whole_seconds_rounded_up() {
    let mut reply = LocalReply::new(Fault::RateLimited, "");
    for (wait, want) in [(0, "0"), (1, "1"), (1000, "1"), (1001, "2")] {
        reply.retry_after = Some(Duration::from_millis(wait));
        assert_eq!(text(&reply.build(&caller(None)), "retry-after"), want);
    }
}

#[test]
fn a_direct_response_is_as_configured_and_a_status_to_grpc() {
    let body = Bytes::from_static(b"gone");
    let http = direct(StatusCode::GONE, &body, &caller(None));
    assert_eq!((http.status(), http.body()), (StatusCode::GONE, &body));
    let denied = direct(
        StatusCode::FORBIDDEN,
        &body,
        &caller(Some("application/grpc")),
    );
    assert_eq!(denied.status(), StatusCode::OK);
    assert_eq!(text(&denied, "grpc-status"), "7");
    assert_eq!(text(&denied, "grpc-message"), "gone");
    let fine = direct(
        StatusCode::OK,
        &Bytes::new(),
        &caller(Some("application/grpc")),
    );
    assert_eq!(text(&fine, "grpc-status"), "0");
    let empty = direct(StatusCode::NOT_FOUND, &Bytes::new(), &caller(None));
    assert!(!empty.headers().contains_key("content-type"));
}

//! Responses as a client reads them.

use bytes::Bytes;
use http::{Method, Request, StatusCode};

use super::mock::{Body, Mock, Step, client, collect, cuts, once, run};
use crate::{
    fault::Fault,
    http::h1::{BodyLen, ClientConn, Error, Limits, ResponseHead},
};

/// A client that has sent a request of this method.
fn sent(method: Method, upgrade: bool, steps: Vec<Step>) -> ClientConn<Mock> {
    let mut conn = ClientConn::new(Mock::new(steps), Limits::default());
    let target = if method == Method::CONNECT {
        "a:1"
    } else {
        "/"
    };
    let mut request = Request::builder().method(method).uri(target);
    if upgrade {
        request = request
            .header("connection", "upgrade")
            .header("upgrade", "websocket");
    }
    conn.send_request(&request.body(()).unwrap(), BodyLen::Empty, None);
    conn.finish();
    run(|cx| conn.poll_flush(cx)).unwrap();
    conn
}

#[derive(Debug, PartialEq, Eq)]
struct Seen {
    interim: Vec<u16>,
    status: u16,
    len: BodyLen,
    fields: Vec<String>,
    body: String,
    reusable: bool,
}

fn read(conn: &mut ClientConn<Mock>) -> Result<Seen, Error> {
    let mut interim = Vec::new();
    loop {
        match run(|cx| conn.poll_response(cx))? {
            ResponseHead::Interim(head) => interim.push(head.status().as_u16()),
            ResponseHead::Final { head, len, .. } => {
                let body = collect(|cx| conn.poll_recv(cx))?;
                assert!(conn.response_body_done());
                let field = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
                    format!("{name}={}", value.to_str().unwrap_or("?"))
                };
                return Ok(Seen {
                    interim,
                    status: head.status().as_u16(),
                    len,
                    fields: head.headers().iter().map(field).collect(),
                    body: String::from_utf8_lossy(&body.data).into_owned(),
                    reusable: conn.is_reusable(),
                });
            }
        }
    }
}

/// What a response to `method` reads as, however its bytes come. `end` closes after it.
fn response(method: &Method, raw: &str, end: bool) -> Result<Seen, Error> {
    let mut last: Option<Result<Seen, Error>> = None;
    for mut steps in cuts(raw.as_bytes()) {
        if end {
            steps.push(Step::End);
        }
        let seen = read(&mut sent(method.clone(), false, steps));
        match (&last, &seen) {
            (Some(Ok(a)), Ok(b)) => assert_eq!(a, b, "{raw:?}"),
            (Some(a), b) => assert_eq!(a.is_ok(), b.is_ok(), "{raw:?}: {a:?} {b:?}"),
            (None, _) => {}
        }
        last = Some(seen);
    }
    last.expect("at least one cut")
}

fn good(method: &Method, raw: &str) -> Seen {
    response(method, raw, false).unwrap_or_else(|error| panic!("{raw:?}: {error}"))
}

#[test]
fn ht_02_a_response_with_both_is_chunked_and_the_last() {
    for fields in [
        "Content-Length: 3\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: Chunked\r\nContent-Length: 99",
    ] {
        let raw = format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
        let seen = good(&Method::GET, &raw);
        assert_eq!(seen.len, BodyLen::Chunked);
        assert_eq!(seen.body, "abc");
        assert!(seen.fields.is_empty(), "{:?}", seen.fields);
        assert!(!seen.reusable);
    }
    // In HTTP/1.0 the coding alone is enough to distrust what follows (RFC 9112 §6.1).
    let raw =
        "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    assert!(!good(&Method::GET, raw).reusable);
}

#[test]
fn ht_03_odd_codings_of_a_response() {
    for coding in [
        "gzip, chunked",
        "chunked, gzip",
        "identity",
        "chunked, chunked",
        "xchunked",
        "",
    ] {
        let raw = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: {coding}\r\n\r\n0\r\n\r\n");
        let error = response(&Method::GET, &raw, true).expect_err(coding);
        assert_eq!(error.upstream_fault(), Fault::UpstreamProtocol, "{coding}");
    }
}

#[test]
fn ht_06_responses_are_read_as_strictly_as_requests() {
    for line in [
        "X: a\nContent-Length: 40",
        "X: a\rTransfer-Encoding: chunked",
        "X: a\r\n folded",
        "Transfer-Encoding : chunked",
        " X: a",
        "X: a\0",
        ": a",
        "X",
    ] {
        for raw in [
            format!("HTTP/1.1 200 OK\r\n{line}\r\nContent-Length: 0\r\n\r\n"),
            format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{line}\r\n\r\n"),
        ] {
            let error = response(&Method::GET, &raw, true).expect_err(&raw);
            assert!(matches!(error, Error::Syntax(_)), "{raw:?}: {error:?}");
            assert_eq!(error.upstream_fault(), Fault::UpstreamProtocol);
        }
    }
    for raw in [
        "HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n",
        "\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1  200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 abc OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1\r\n\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "http/1.1 200 OK\r\n\r\n",
        "ICY 200 OK\r\n\r\n",
    ] {
        let error = response(&Method::GET, raw, true).expect_err(raw);
        assert_eq!(error.upstream_fault(), Fault::UpstreamProtocol, "{raw:?}");
    }
}

#[test]
fn a_server_of_another_protocol_is_recognised_at_once() {
    for bytes in [
        &b"220 smtp.example ESMTP\r\n"[..],
        b"SSH-2.0-x",
        b"\0\0\0\x12",
        b"HTTX",
    ] {
        let step = Step::Bytes(Bytes::copy_from_slice(bytes));
        let mut conn = sent(Method::GET, false, vec![step]);
        let polled = once(|cx| conn.poll_response(cx));
        assert!(
            matches!(polled, std::task::Poll::Ready(Err(Error::Syntax(_)))),
            "{polled:?}"
        );
    }
}

#[test]
fn ht_07_response_lengths() {
    for value in [
        "+5",
        "5,6",
        "0x5",
        "",
        "99999999999999999999",
        "5\r\nContent-Length: 6",
    ] {
        let raw = format!("HTTP/1.1 200 OK\r\nContent-Length: {value}\r\n\r\nhello");
        for method in [Method::GET, Method::HEAD] {
            let error = response(&method, &raw, true).expect_err(value);
            assert!(matches!(error, Error::Framing(_)), "{value:?}: {error:?}");
        }
    }
    let raw = "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\nContent-Length: 5\r\n\r\nhello";
    let seen = good(&Method::GET, raw);
    assert_eq!(
        (seen.body.as_str(), &seen.fields[..]),
        ("hello", &["content-length=5".to_owned()][..])
    );
    assert!(seen.reusable);
}

#[test]
fn ht_08_only_an_asked_for_101_switches() {
    let raw = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\nraw";
    let step = || vec![Step::Bytes(Bytes::from_static(raw))];
    let mut conn = sent(Method::GET, false, step());
    let error = run(|cx| conn.poll_response(cx)).expect_err("not asked for");
    assert_eq!(error.upstream_fault(), Fault::UpstreamProtocol);
    let mut conn = sent(Method::GET, true, step());
    let head = run(|cx| conn.poll_response(cx)).unwrap();
    assert!(
        matches!(
            head,
            ResponseHead::Final {
                len: BodyLen::Empty,
                ..
            }
        ),
        "{head:?}"
    );
    assert!(!conn.is_reusable());
    assert_eq!(conn.into_parts().1, "raw");
    // Any other answer is plain HTTP.
    let raw = b"HTTP/1.1 200 OK\r\nUpgrade: h2\r\nContent-Length: 2\r\n\r\nok";
    let mut conn = sent(
        Method::GET,
        true,
        vec![Step::Bytes(Bytes::from_static(raw))],
    );
    let seen = read(&mut conn).unwrap();
    assert_eq!((seen.body.as_str(), seen.reusable), ("ok", true));
}

#[test]
fn ht_10_a_101_has_no_framing() {
    let raw = b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\
                Transfer-Encoding: chunked\r\nContent-Length: 7\r\n\r\n";
    let mut conn = sent(
        Method::GET,
        true,
        vec![Step::Bytes(Bytes::from_static(raw))],
    );
    let ResponseHead::Final { head, len, .. } = run(|cx| conn.poll_response(cx)).unwrap() else {
        panic!("interim");
    };
    assert_eq!(len, BodyLen::Empty);
    let names: Vec<_> = head
        .headers()
        .keys()
        .map(http::HeaderName::as_str)
        .collect();
    assert_eq!(names, ["upgrade", "connection"]);
}

#[test]
fn ht_12_a_connect_that_succeeds_has_no_body() {
    for fields in [
        "Content-Length: 0",
        "Content-Length: 5",
        "Transfer-Encoding: chunked",
    ] {
        let raw = format!("HTTP/1.1 200 OK\r\n{fields}\r\nX: y\r\n\r\n");
        let seen = good(&Method::CONNECT, &raw);
        assert_eq!((seen.len, seen.reusable), (BodyLen::Empty, false));
        assert_eq!(seen.fields, ["x=y"]);
    }
    let seen = good(
        &Method::CONNECT,
        "HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno",
    );
    assert_eq!((seen.body.as_str(), seen.reusable), ("no", true));
}

#[test]
fn ht_14_responses_without_a_body() {
    for (method, raw, fields) in [
        (
            Method::HEAD,
            "200 OK\r\nContent-Length: 123",
            "content-length=123",
        ),
        (Method::HEAD, "200 OK\r\nTransfer-Encoding: chunked", ""),
        (
            Method::HEAD,
            "200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked",
            "",
        ),
        (Method::HEAD, "200 OK", ""),
        (
            Method::HEAD,
            "404 Not Found\r\nContent-Length: 9",
            "content-length=9",
        ),
        (
            Method::GET,
            "304 Not Modified\r\nContent-Length: 5",
            "content-length=5",
        ),
        (Method::GET, "204 No Content\r\nContent-Length: 5", ""),
        (
            Method::GET,
            "204 No Content\r\nTransfer-Encoding: chunked",
            "",
        ),
        (Method::GET, "204 No Content", ""),
    ] {
        let seen = good(&method, &format!("HTTP/1.1 {raw}\r\n\r\n"));
        assert_eq!((seen.len, seen.reusable), (BodyLen::Empty, true), "{raw}");
        assert_eq!(seen.fields.join("|"), fields, "{raw}");
    }
}

#[test]
fn ht_16_interim_responses_come_through() {
    let raw = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\
               Connection: x\r\nX: y\r\nContent-Length: 4\r\n\r\n\
               HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let seen = good(&Method::GET, raw);
    assert_eq!(seen.interim, [100, 103]);
    assert_eq!((seen.body.as_str(), seen.reusable), ("ok", true));
    let (mut conn, _mock) = client(cuts(raw.as_bytes()).swap_remove(0));
    let mut hints = None;
    while let ResponseHead::Interim(head) = run(|cx| conn.poll_response(cx)).unwrap() {
        hints = Some(head);
    }
    let hints = hints.unwrap();
    assert_eq!(hints.status(), StatusCode::EARLY_HINTS);
    assert_eq!(hints.headers().len(), 1, "hop-by-hop fields are gone");
    assert_eq!(hints.headers()["link"], "</a>");
}

#[test]
fn a_body_may_last_until_the_close() {
    for raw in [
        "HTTP/1.1 200 OK\r\n\r\nall of it",
        "HTTP/1.0 200 OK\r\n\r\nall of it",
    ] {
        let seen = response(&Method::GET, raw, true).unwrap();
        assert_eq!(seen.len, BodyLen::UntilClose);
        assert_eq!((seen.body.as_str(), seen.reusable), ("all of it", false));
    }
    // A reset is no end.
    let mut conn = sent(
        Method::GET,
        false,
        vec![
            Step::Bytes(Bytes::from_static(b"HTTP/1.1 200 OK\r\n\r\nhalf")),
            Step::Reset,
        ],
    );
    let error = read(&mut conn).expect_err("reset");
    assert_eq!(error.upstream_fault(), Fault::UpstreamReset);
    assert!(!conn.response_body_done());
}

#[test]
fn connections_are_kept_when_both_sides_may() {
    for (raw, kept) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 0", true),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: Close",
            false,
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: x\r\nConnection: y, close",
            false,
        ),
        ("HTTP/1.0 200 OK\r\nContent-Length: 0", false),
        (
            "HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: Keep-Alive",
            true,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0",
            true,
        ),
    ] {
        assert_eq!(
            good(&Method::GET, &format!("{raw}\r\n\r\n")).reusable,
            kept,
            "{raw}"
        );
    }
    // Bytes nobody asked for.
    let raw = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n";
    let (mut conn, _mock) = client(cuts(raw.as_bytes()).swap_remove(0));
    assert!(!read(&mut conn).unwrap().reusable);
}

#[test]
fn many_exchanges_on_one_connection() {
    let (mut conn, mock) = client([]);
    for n in 0..5 {
        mock.written();
        mock.feed(b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=4\r\nContent-Length: 1\r\n\r\nx");
        let seen = read(&mut conn).unwrap();
        assert!(seen.reusable, "exchange {n}");
        assert_eq!(
            conn.keep_alive_timeout(),
            Some(std::time::Duration::from_secs(4))
        );
        conn.rest();
        assert!(once(|cx| conn.poll_idle_closed(cx)).is_pending());
        let next = Request::put("/").header("host", "a").body(()).unwrap();
        conn.send_request(&next, BodyLen::Known(2), None);
        assert!(!conn.is_reusable());
        assert_eq!(conn.request_bytes_written(), 0);
        assert!(!conn.any_response_byte());
        conn.send_data(Bytes::from_static(b"ab"));
        conn.finish();
        run(|cx| conn.poll_flush(cx)).unwrap();
        assert_eq!(conn.request_bytes_written(), mock.written().len() as u64);
    }
}

#[test]
fn rt_01_what_the_endpoint_can_have_seen() {
    let mock = Mock::default();
    mock.state().room = Some(0);
    let mut conn = ClientConn::new(mock.clone(), Limits::default());
    let request = Request::post("/").header("host", "a").body(()).unwrap();
    conn.send_request(&request, BodyLen::Known(1), None);
    assert!(once(|cx| conn.poll_flush(cx)).is_pending());
    assert_eq!(conn.request_bytes_written(), 0);
    mock.state().room = Some(3);
    assert!(once(|cx| conn.poll_flush(cx)).is_pending());
    assert_eq!(conn.request_bytes_written(), 3);
    assert!(once(|cx| conn.poll_response(cx)).is_pending());
    assert!(!conn.any_response_byte());
    mock.feed(b"H");
    assert!(once(|cx| conn.poll_response(cx)).is_pending());
    assert!(conn.any_response_byte());
    mock.push(Step::End);
    let error = run(|cx| conn.poll_response(cx)).unwrap_err();
    assert!(matches!(error, Error::Cut), "{error:?}");
    // An interim response is a part of the answer.
    let (mut conn, _mock) = client([Step::Bytes(Bytes::from_static(b"HTTP/1.1 102 X\r\n\r\n"))]);
    assert!(run(|cx| conn.poll_response(cx)).is_ok());
    assert!(conn.any_response_byte());
    // Closed without a byte: the keep-alive race (RT-02).
    let (mut conn, _mock) = client([Step::End]);
    let error = run(|cx| conn.poll_response(cx)).unwrap_err();
    assert_eq!(error.upstream_fault(), Fault::UpstreamClosed);
    assert!(!conn.any_response_byte() && !conn.is_reusable());
}

#[test]
fn rt_02_an_idle_connection_that_ended_is_noticed() {
    let raw = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    for last in [
        Step::End,
        Step::Reset,
        Step::Bytes(Bytes::from_static(b"HTTP/1.1 408 Request Timeout\r\n\r\n")),
    ] {
        let (mut conn, mock) = client(cuts(raw.as_bytes()).swap_remove(0));
        assert!(read(&mut conn).unwrap().reusable);
        assert!(once(|cx| conn.poll_idle_closed(cx)).is_pending());
        mock.push(last);
        assert!(once(|cx| conn.poll_idle_closed(cx)).is_ready());
        assert!(!conn.is_reusable());
    }
}

#[test]
fn ht_18_an_answer_before_the_request_has_ended() {
    let (mut conn, mock) = client([]);
    mock.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    read(&mut conn).unwrap();
    let request = Request::post("/").header("host", "a").body(()).unwrap();
    conn.send_request(&request, BodyLen::Known(50_000_000), None);
    conn.send_data(Bytes::from_static(b"begin"));
    mock.feed(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig");
    let seen = read(&mut conn).unwrap();
    assert_eq!((seen.status, seen.body.as_str()), (413, "big"));
    assert!(!seen.reusable, "the request is not whole");
    // Giving up the rest does not make it so.
    conn.finish();
    assert!(!conn.is_reusable());
    // Nor does sending it, when the endpoint has said that it closes.
    let (mut conn, mock) = client([]);
    mock.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    read(&mut conn).unwrap();
    conn.send_request(&request, BodyLen::Chunked, None);
    mock.feed(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    read(&mut conn).unwrap();
    conn.finish();
    run(|cx| conn.poll_flush(cx)).unwrap();
    assert!(!conn.is_reusable());
}

#[test]
fn a_fresh_connection_is_ready_for_use() {
    let conn = ClientConn::new(Mock::default(), Limits::default());
    assert!(conn.is_reusable() && conn.response_body_done());
    assert!(!conn.any_response_byte() && conn.request_bytes_written() == 0);
}

#[test]
fn ht_25_limits_of_responses() {
    let head = |fields: String| format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{fields}\r\n");
    let cookies = |n: usize| head(format!("Set-Cookie: {}\r\n", "c".repeat(986)).repeat(n));
    assert_eq!(good(&Method::GET, &cookies(60)).fields.len(), 61);
    for raw in [
        cookies(90),
        head("A: b\r\n".repeat(200)),
        format!("HTTP/1.1 200 {}", "x".repeat(90_000)),
    ] {
        let error = response(&Method::GET, &raw, false).expect_err("over the limit");
        assert_eq!(
            error.upstream_fault(),
            Fault::ResponseHeadersTooLarge,
            "{error:?}"
        );
    }
}

#[test]
fn an_empty_body_is_no_frame() {
    let (mut conn, _mock) =
        client(cuts(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").swap_remove(0));
    run(|cx| conn.poll_response(cx)).unwrap();
    assert!(conn.response_body_done());
    assert_eq!(collect(|cx| conn.poll_recv(cx)).unwrap(), Body::default());
}

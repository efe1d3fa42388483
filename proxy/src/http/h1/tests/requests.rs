//! Requests as a server reads them.

use bytes::Bytes;
use http::{Method, StatusCode, Version};

use super::mock::{Step, cuts, run, serve_all, served, server, show};
use crate::{
    fault::Fault,
    http::h1::{BodyLen, Error},
};

/// What refuses a request, however its bytes come. Nothing of the request gets through.
fn refusal(raw: &[u8]) -> Error {
    let mut last = None;
    for steps in cuts(raw) {
        let (seen, error) = serve_all(steps);
        let error = error.unwrap_or_else(|| panic!("accepted: {}", raw.escape_ascii()));
        assert!(seen.is_empty(), "{} gave {seen:?}", raw.escape_ascii());
        last = Some(error);
    }
    last.expect("at least one cut")
}

/// What is accepted, however its bytes come, as text.
fn accepted(raw: &[u8]) -> Vec<String> {
    let mut first: Option<Vec<String>> = None;
    for steps in cuts(raw) {
        let (seen, error) = serve_all(steps);
        assert!(error.is_none(), "{}: {error:?}", raw.escape_ascii());
        let texts = seen
            .into_iter()
            .map(|(head, body)| format!("{head} {}", body.data.escape_ascii()))
            .collect();
        match &first {
            None => first = Some(texts),
            Some(first) => assert_eq!(*first, texts, "{}", raw.escape_ascii()),
        }
    }
    first.expect("at least one cut")
}

fn status(error: &Error) -> u16 {
    let row = error.downstream_fault().row();
    error.status().map_or(row.http, |status| status.as_u16())
}

#[test]
fn ht_01_both_length_and_coding_are_refused() {
    let tail = "0\r\n\r\nGET /evil HTTP/1.1\r\nHost: x\r\n\r\n";
    for fields in [
        "Content-Length: 6\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 6",
        "content-length: 6\r\ntransfer-encoding: CHUNKED",
        "TRANSFER-ENCODING: Chunked\r\nX: y\r\nCONTENT-LENGTH: 0",
        "Content-Length: 5\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
    ] {
        let raw = format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n{tail}");
        let error = refusal(raw.as_bytes());
        assert!(matches!(error, Error::Framing(_)), "{fields}: {error:?}");
        assert_eq!(status(&error), 400);
    }
    let old = format!("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n{tail}");
    assert!(matches!(refusal(old.as_bytes()), Error::Framing(_)));
}

#[test]
fn ht_01_the_connection_is_not_used_on() {
    let raw =
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n";
    let (mut conn, mock) = server([Step::Bytes(Bytes::from_static(raw.as_bytes()))]);
    assert!(run(|cx| conn.poll_request(cx)).is_err());
    let mut answer = http::Response::new(());
    *answer.status_mut() = StatusCode::BAD_REQUEST;
    conn.send_response(&answer, BodyLen::Empty, None);
    conn.finish();
    assert!(!conn.is_reusable());
    run(|cx| conn.poll_flush(cx)).unwrap();
    assert_eq!(
        mock.written(),
        "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    );
}

#[test]
fn ht_03_odd_transfer_codings() {
    for (coding, expected) in [
        ("Transfer-Encoding: identity, chunked", 501),
        ("Transfer-Encoding: gzip, chunked", 501),
        ("Transfer-Encoding: chunked, gzip", 400),
        ("Transfer-Encoding: chunked,chunked", 400),
        ("Transfer-Encoding: chunked, gzip, chunked", 400),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            400,
        ),
        ("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked", 400),
        ("Transfer-Encoding: xchunked", 400),
        ("Transfer-Encoding: chunkedx", 400),
        ("Transfer-Encoding: \"chunked\"", 400),
        ("Transfer-Encoding: chunked;q=1", 400),
        ("Transfer-Encoding: identity", 400),
        ("Transfer-Encoding:", 400),
        ("Transfer-Encoding: ,chunked", 501),
        ("Transfer-Encoding:\tchunked", 400),
        ("Transfer-Encoding: \tchunked", 400),
        ("Transfer-Encoding: chunked\t", 400),
        ("Transfer-Encoding: \x0bchunked", 400),
        ("Transfer-Encoding: chun\u{212a}ed", 400),
    ] {
        let raw = format!("POST / HTTP/1.1\r\nHost: x\r\n{coding}\r\n\r\n0\r\n\r\n");
        assert_eq!(status(&refusal(raw.as_bytes())), expected, "{coding:?}");
    }
}

#[test]
fn ht_06_what_readers_take_for_different_fields() {
    for line in [
        "X: a\nContent-Length: 40",
        "X: a\rTransfer-Encoding: chunked",
        "X: a\r\n folded",
        "X: a\r\n\tfolded",
        "X : a",
        "X\t: a",
        "Transfer-Encoding : chunked",
        " X: a",
        "\tX: a",
        "X: a\0b",
        "X\0: a",
        "X: a\x01b",
        "X: a\x7fb",
        ": a",
        "X",
        "X y: a",
        "X(: a",
        "X\u{e9}: a",
        "\r: a",
        "X: a\r",
    ] {
        // Once as the first field, once later on.
        for raw in [
            format!("GET / HTTP/1.1\r\n{line}\r\nHost: x\r\n\r\n"),
            format!("GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n{line}\r\nC: d\r\n\r\n"),
        ] {
            let error = refusal(raw.as_bytes());
            assert!(matches!(error, Error::Syntax(_)), "{raw:?}: {error:?}");
            assert_eq!(status(&error), 400);
        }
    }
    for raw in [
        "GET / HTTP/1.1\nHost: x\n\n",
        "GET / HTTP/1.1\r\nHost: x\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\n\n",
        "\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
        "\rGET / HTTP/1.1\r\nHost: x\r\n\r\n",
        " GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET  / HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /  HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET\t/ HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET / HTTP/1.1 \r\nHost: x\r\n\r\n",
        "GET / a HTTP/1.1\r\nHost: x\r\n\r\n",
        "G(T / HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /\0 HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /\r\n\r\n",
        "/ HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET / http/1.1\r\nHost: x\r\n\r\n",
        "\x16\x03\x01\x02\0\x01\0\x01\x7c\r\n\r\n",
    ] {
        assert_eq!(status(&refusal(raw.as_bytes())), 400, "{raw:?}");
    }
}

#[test]
fn other_versions_are_named_as_the_cause() {
    for version in ["HTTP/2.0", "HTTP/1.2", "HTTP/0.9", "HTTP/3.0"] {
        let raw = format!("GET / {version}\r\nHost: x\r\n\r\n");
        assert_eq!(status(&refusal(raw.as_bytes())), 505, "{version}");
    }
}

#[test]
fn ht_07_content_lengths() {
    for value in [
        "+5",
        "-5",
        "5,6",
        "0x5",
        "",
        "5 5",
        "5;",
        "5.0",
        "1e3",
        " 5, 6",
        "5,",
        ",5",
        "\u{665}",
        "99999999999999999999",
        "18446744073709551616",
        "5\r\nContent-Length: 6",
        "5\r\nContent-Length:",
        "5\r\ncontent-length: 05x",
    ] {
        let raw = format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {value}\r\n\r\nhello");
        let error = refusal(raw.as_bytes());
        assert!(matches!(error, Error::Framing(_)), "{value:?}: {error:?}");
    }
    for value in ["5", "5, 5", "5,5,5", "05", "5\r\nContent-Length: 5", "\t5 "] {
        let raw = format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {value}\r\n\r\nhello");
        let seen = accepted(raw.as_bytes());
        let length = value.trim().trim_start_matches('0').len();
        let field = if length == 1 { value.trim() } else { "5" };
        assert_eq!(
            seen,
            [format!(
                "POST / HTTP/1.1 Known(5)|host=x|content-length={field} hello"
            )],
            "{value:?}"
        );
    }
}

#[test]
fn ht_13_bodiless_requests_have_no_framing() {
    for method in ["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "QUERY"] {
        let raw = format!("{method} / HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(
            accepted(raw.as_bytes()),
            [format!("{method} / HTTP/1.1 Empty|host=x ")]
        );
    }
    assert_eq!(
        accepted(
            b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"
        ),
        ["GET / HTTP/1.1 Chunked|host=x|transfer-encoding=chunked ab"]
    );
    assert_eq!(
        accepted(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"),
        ["POST / HTTP/1.1 Known(0)|host=x|content-length=0 "]
    );
}

#[test]
fn ht_22_targets() {
    for (line, host, expected) in [
        ("GET /a?b=c", "h", "GET /a?b=c HTTP/1.1 Empty|host=h "),
        ("GET //a//b", "h", "GET //a//b HTTP/1.1 Empty|host=h "),
        ("GET /a/../%2e", "h", "GET /a/../%2e HTTP/1.1 Empty|host=h "),
        ("GET http://a/p", "b", "GET /p HTTP/1.1 Empty|host=a "),
        (
            "GET http://a:8080/p?q",
            "b",
            "GET /p?q HTTP/1.1 Empty|host=a:8080 ",
        ),
        ("GET HTTP://a", "b", "GET / HTTP/1.1 Empty|host=a "),
        ("GET https://a?x=1", "b", "GET /?x=1 HTTP/1.1 Empty|host=a "),
        (
            "GET http://[::1]:80/",
            "b",
            "GET / HTTP/1.1 Empty|host=[::1]:80 ",
        ),
        ("OPTIONS *", "h", "OPTIONS * HTTP/1.1 Empty|host=h "),
        ("OPTIONS http://a", "b", "OPTIONS * HTTP/1.1 Empty|host=a "),
        ("OPTIONS http://a/", "b", "OPTIONS / HTTP/1.1 Empty|host=a "),
        (
            "CONNECT a:443",
            "b",
            "CONNECT a:443 HTTP/1.1 Empty|host=a:443 ",
        ),
        ("GET /", "[::1]", "GET / HTTP/1.1 Empty|host=[::1] "),
        ("GET /", "", "GET / HTTP/1.1 Empty|host= "),
        (
            "GET /",
            "[2001:db8::1]:80",
            "GET / HTTP/1.1 Empty|host=[2001:db8::1]:80 ",
        ),
    ] {
        let raw = format!("{line} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(accepted(raw.as_bytes()), [expected], "{line}");
    }
}

#[test]
fn ht_22_bad_targets_and_hosts() {
    for (line, host) in [
        ("GET products", "Host: h"),
        ("GET a.example/x", "Host: h"),
        ("GET ftp://a/", "Host: h"),
        ("GET http:///x", "Host: h"),
        ("GET http://u@a/", "Host: h"),
        ("GET http://a b/", "Host: h"),
        ("GET /a#b", "Host: h"),
        ("GET http://a/#b", "Host: h"),
        ("GET *", "Host: h"),
        ("GET ?a", "Host: h"),
        ("CONNECT /", "Host: h"),
        ("CONNECT a", "Host: h"),
        ("CONNECT http://a:1/", "Host: h"),
        ("CONNECT u@a:1", "Host: h"),
        ("GET /", "Host: a\r\nHost: b"),
        ("GET /", "Host: a\r\nhost: a"),
        ("GET http://a/", "Host: a\r\nHost: b"),
        ("GET http://a/", "X: y"),
        ("GET /", "X: y"),
        ("GET /", "Host: a/b"),
        ("GET /", "Host: a@b"),
        ("GET /", "Host: a b"),
        ("GET /", "Host: a:b"),
        ("GET /", "Host: [::1"),
        ("GET /", "Host: [::1]x"),
        ("GET /", "Host: [::1/x]"),
        ("GET /", "Host: [a@b]:80"),
        ("GET /", "Host: a:1:2"),
        ("GET /", "Host: a?b"),
        ("GET /", "Host: a\\b"),
        ("GET /", "Host: \"a\""),
    ] {
        let raw = format!("{line} HTTP/1.1\r\n{host}\r\n\r\n");
        assert_eq!(status(&refusal(raw.as_bytes())), 400, "{line} {host:?}");
    }
}

#[test]
fn ht_21_http_1_0_requests() {
    let (conn, _mock, head) = served("GET / HTTP/1.0\r\n\r\n");
    assert_eq!(head.head.version(), Version::HTTP_10);
    assert_eq!(show(&head), "GET / HTTP/1.0 Empty");
    assert!(!conn.is_reusable());
    // A protocol switch is not for HTTP/1.0, nor may it be answered with one.
    let (_, _, head) =
        served("GET / HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n");
    assert_eq!(head.head.headers().get("upgrade"), None);
    assert_eq!(
        accepted(
            b"POST / HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n\
              abGET /2 HTTP/1.0\r\n\r\n"
        ),
        [
            "POST / HTTP/1.0 Known(2)|connection=keep-alive|content-length=2 ab",
            "GET /2 HTTP/1.0 Empty ",
        ]
    );
}

#[test]
fn ht_25_limits_have_their_own_answers() {
    let head = |fields: &str| format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
    let many = |n: usize| head(&"A: b\r\n".repeat(n));
    assert_eq!(accepted(many(127).as_bytes()).len(), 1);
    let error = refusal(many(128).as_bytes());
    assert!(matches!(error, Error::TooManyHeaders(128)), "{error:?}");
    assert_eq!(status(&error), 431);

    let big = |n: usize| head(&format!("Cookie: {}\r\n", "c".repeat(n)));
    assert_eq!(accepted(big(70_000).as_bytes()).len(), 1);
    let error = refusal(big(81_920).as_bytes());
    assert!(matches!(error, Error::HeadTooLarge(_)), "{error:?}");
    assert_eq!(status(&error), 431);

    let long = |n: usize| format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "u".repeat(n));
    assert_eq!(accepted(long(60_000).as_bytes()).len(), 1);
    // Within what a head may have, beyond it, and never ending.
    for raw in [
        long(70_000),
        long(90_000),
        format!("GET /{}", "u".repeat(90_000)),
    ] {
        let error = refusal(raw.as_bytes());
        assert_eq!(error.downstream_fault(), Fault::UriTooLong, "{error:?}");
        assert_eq!(status(&error), 414);
    }
}

#[test]
fn ht_24_pipelined_requests_come_one_by_one() {
    let raw = "POST /1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n\
          0\r\n\r\n\
               GET /2 HTTP/1.1\r\nHost: x\r\n\r\n\
               \r\n\r\nPUT /3 HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nde\
               GET /4 HTTP/1.1\r\nHost: x\r\nConnection: foo, Close\r\n\r\n\
               GET /never HTTP/1.1\r\nHost: x\r\n\r\n";
    assert_eq!(
        accepted(raw.as_bytes()),
        [
            "POST /1 HTTP/1.1 Chunked|host=x|transfer-encoding=chunked abc",
            "GET /2 HTTP/1.1 Empty|host=x ",
            "PUT /3 HTTP/1.1 Known(2)|host=x|content-length=2 de",
            "GET /4 HTTP/1.1 Empty|host=x|connection=foo, Close ",
        ]
    );
}

#[test]
fn ht_24_a_body_that_came_can_be_thrown_away() {
    let two = "POST /1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n\
               GET /2 HTTP/1.1\r\nHost: x\r\n\r\n";
    let (mut conn, mock, _) = served(two);
    assert!(conn.discard_received());
    let mut answer = http::Response::new(());
    *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    conn.send_response(&answer, BodyLen::Empty, None);
    conn.finish();
    assert!(conn.is_reusable());
    conn.done();
    let next = run(|cx| conn.poll_request(cx)).unwrap().unwrap();
    assert_eq!(next.head.uri(), "/2");
    run(|cx| conn.poll_flush(cx)).unwrap();
    assert!(!mock.written().contains("close"));

    // The rest is still to come: the connection ends, and says so.
    let (mut conn, mock, _) = served("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc");
    assert!(!conn.discard_received());
    conn.send_response(&answer, BodyLen::Empty, None);
    conn.finish();
    assert!(!conn.is_reusable());
    run(|cx| conn.poll_flush(cx)).unwrap();
    assert!(mock.written().contains("connection: close\r\n"));

    // What is no body is not thrown away as one.
    let bad = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n0\r\n\r\n";
    let (mut conn, _mock, _) = served(bad);
    assert!(!conn.discard_received() && !conn.discard_received());
    assert!(!conn.request_body_done() && run(|cx| conn.poll_recv(cx)).is_err());
}

#[test]
fn a_prefix_is_read_first() {
    let mock = super::mock::Mock::new([Step::Bytes(Bytes::from_static(b"ost: x\r\n\r\n"))]);
    let prefix = Bytes::from_static(b"GET / HTTP/1.1\r\nH");
    let mut conn = crate::http::h1::ServerConn::new(mock, prefix, Default::default());
    assert!(conn.request_begun());
    let head = run(|cx| conn.poll_request(cx)).unwrap().unwrap();
    assert_eq!(*head.head.method(), Method::GET);
}

#[test]
fn an_end_between_requests_is_clean_and_inside_one_is_not() {
    let (seen, error) = serve_all(vec![]);
    assert!(seen.is_empty() && error.is_none());
    for part in ["G", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nHost: x\r\n\r"] {
        let (_, error) = serve_all(vec![Step::Bytes(Bytes::from_static(part.as_bytes()))]);
        assert!(matches!(error, Some(Error::Cut)), "{part:?}: {error:?}");
    }
    let (_, error) = serve_all(vec![Step::Bytes(Bytes::from_static(b"\r\n\r"))]);
    assert!(error.is_none(), "{error:?}");
}

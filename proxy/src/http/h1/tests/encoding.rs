//! Heads as they are written.

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};

use super::mock::{Mock, Step, client, once, run, served};
use crate::http::h1::{
    BodyLen, ClientConn, Limits, RequestHead, ResponseHead, ServerConn, strip_hop_by_hop,
};

/// What an endpoint gets of a request that is passed on.
fn forwarded(raw: &str, change: impl FnOnce(&mut RequestHead)) -> String {
    let (_, _, mut head) = served(raw);
    strip_hop_by_hop(head.head.headers_mut());
    change(&mut head);
    let mock = Mock::default();
    let mut conn = ClientConn::new(mock.clone(), Limits::default());
    conn.send_request(&head.head, head.len, head.names.as_ref());
    run(|cx| conn.poll_flush(cx)).unwrap();
    mock.written()
}

/// What a client gets of a response that is passed on, head only.
fn returned(request: &str, raw: &str) -> (String, ServerConn<Mock>) {
    let (mut down, out, head) = served(request);
    let mut up = ClientConn::new(Mock::default(), Limits::default());
    up.send_request(&head.head, head.len, None);
    let (_, rest) = up.into_parts();
    assert!(rest.is_empty());
    let mock = Mock::new([Step::Bytes(Bytes::copy_from_slice(raw.as_bytes()))]);
    let mut up = ClientConn::new(mock, Limits::default());
    up.send_request(&head.head, head.len, None);
    loop {
        match run(|cx| up.poll_response(cx)).unwrap() {
            ResponseHead::Interim(head) => down.send_informational(&head),
            ResponseHead::Final {
                mut head,
                len,
                names,
            } => {
                if head.status() != StatusCode::SWITCHING_PROTOCOLS {
                    strip_hop_by_hop(head.headers_mut());
                }
                down.send_response(&head, len, names.as_ref());
                break;
            }
        }
    }
    run(|cx| down.poll_flush(cx)).unwrap();
    (out.written(), down)
}

const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

#[test]
fn names_keep_their_spelling_and_order() {
    let raw = "GET /?q HTTP/1.1\r\nhOST: x\r\nX-Custom-ID: 1\r\nACCEPT: a\r\nSet-cookie: 1\r\n\
               x-b: 2\r\nsEt-Cookie: 2\r\nContent-LENGTH: 0\r\nX-Empty:\r\n\r\n";
    assert_eq!(
        forwarded(raw, |_| {}),
        "GET /?q HTTP/1.1\r\nhOST: x\r\nX-Custom-ID: 1\r\nACCEPT: a\r\nSet-cookie: 1\r\n\
         x-b: 2\r\nsEt-Cookie: 2\r\nContent-LENGTH: 0\r\nX-Empty: \r\n\r\n"
    );
}

#[test]
fn repeated_names_keep_their_places_when_the_map_loses_its_order() {
    let raw = "GET / HTTP/1.1\r\nY: 0\r\nA: 1\r\nX: 2\r\nA: 3\r\nHost: x\r\nZ: 4\r\nA: 5\r\n\r\n";
    let text = forwarded(raw, |head| {
        head.head.headers_mut().remove("y");
    });
    let left = "GET / HTTP/1.1\r\nA: 1\r\nX: 2\r\nA: 3\r\nHost: x\r\nZ: 4\r\nA: 5\r\n\r\n";
    assert_eq!(text, left);
}

#[test]
fn what_the_proxy_changes_shows() {
    let raw = "GET / HTTP/1.1\r\nHost: x\r\nX-Gone: 1\r\nX-Changed: old\r\nX-Many: 1\r\n\
               Connection: close, X-Hop\r\nX-Hop: 1\r\nX-Many: 2\r\nX-Many: 3\r\n\r\n";
    let text = forwarded(raw, |head| {
        let headers = head.head.headers_mut();
        headers.remove("x-gone");
        headers.insert("x-changed", HeaderValue::from_static("new"));
        headers.insert("x-many", HeaderValue::from_static("1"));
        headers.append("x-added", HeaderValue::from_static("a"));
        headers.append("x-added", HeaderValue::from_static("b"));
        headers.append("host", HeaderValue::from_static("not the first"));
        headers.insert("x-hop", HeaderValue::from_static("ours"));
    });
    assert_eq!(
        text,
        "GET / HTTP/1.1\r\nHost: x\r\nX-Changed: new\r\nX-Many: 1\r\nX-Hop: ours\r\n\
         host: not the first\r\nx-added: a\r\nx-added: b\r\n\r\n"
    );
}

#[test]
fn ht_13_framing_is_passed_on_as_it_came() {
    for (request, framing) in [
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", ""),
        ("POST / HTTP/1.1\r\nHost: x\r\n\r\n", ""),
        (
            "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
            "Content-Length: 0\r\n",
        ),
        (
            "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
            "Content-Length: 3\r\n",
        ),
        (
            "GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n0\r\n\r\n",
            "transfer-encoding: chunked\r\n",
        ),
    ] {
        let line = request.split("\r\n").next().unwrap();
        assert_eq!(
            forwarded(request, |_| {}),
            format!("{line}\r\nHost: x\r\n{framing}\r\n")
        );
    }
    // An HTTP/1.0 request goes on as HTTP/1.1, our own version.
    assert_eq!(forwarded("GET / HTTP/1.0\r\nHost: x\r\n\r\n", |_| {}), GET);
}

#[test]
fn ht_22_origin_form_stays_and_absolute_becomes_it() {
    for (line, written) in [
        (
            "GET /a?b HTTP/1.1\r\nHost: x",
            "GET /a?b HTTP/1.1\r\nHost: x",
        ),
        (
            "GET http://a/p HTTP/1.1\r\nHost: b",
            "GET /p HTTP/1.1\r\nHost: a",
        ),
        (
            "GET http://a?q HTTP/1.1\r\nHost: b",
            "GET /?q HTTP/1.1\r\nHost: a",
        ),
        (
            "OPTIONS * HTTP/1.1\r\nHost: x",
            "OPTIONS * HTTP/1.1\r\nHost: x",
        ),
        (
            "CONNECT a:1 HTTP/1.1\r\nHost: b",
            "CONNECT a:1 HTTP/1.1\r\nHost: a:1",
        ),
    ] {
        let text = forwarded(&format!("{line}\r\n\r\n"), |_| {});
        assert_eq!(text, format!("{written}\r\n\r\n"));
    }
    // A query without a path, as a rewrite may leave it.
    let (mut conn, mock) = client([]);
    mock.written();
    let request = Request::get("http://a?q").body(()).unwrap();
    conn.send_request(&request, BodyLen::Empty, None);
    run(|cx| conn.poll_flush(cx)).unwrap();
    assert_eq!(mock.written(), "GET /?q HTTP/1.1\r\n\r\n");
}

#[test]
fn upgrades_keep_their_connection_field() {
    let raw = "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let (_, _, head) = served(raw);
    let mock = Mock::default();
    let mut conn = ClientConn::new(mock.clone(), Limits::default());
    conn.send_request(&head.head, head.len, head.names.as_ref());
    run(|cx| conn.poll_flush(cx)).unwrap();
    assert_eq!(mock.written(), raw);
    // Without an upgrade, the field is another connection's.
    let text = forwarded(
        "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        |head| {
            head.head
                .headers_mut()
                .insert(header::CONNECTION, HeaderValue::from_static("close"));
        },
    );
    assert_eq!(text, GET);
}

#[test]
fn responses_keep_spelling_and_reason() {
    for raw in [
        "HTTP/1.1 200 Fine By Me\r\nX-ID: 1\r\nSet-COOKIE: a\r\nContent-Length: 3\r\n\r\n",
        "HTTP/1.1 599 \r\nX-ID: 1\r\nContent-Length: 3\r\n\r\n",
        "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
    ] {
        assert_eq!(returned(GET, raw).0, raw);
    }
    // The phrase belongs to its status.
    let (mut down, out, _) = served(GET);
    let (mut up, _mock) = client([Step::Bytes(Bytes::from_static(
        b"HTTP/1.1 200 Fine\r\nContent-Length: 0\r\n\r\n",
    ))]);
    let ResponseHead::Final {
        mut head,
        len,
        names,
    } = run(|cx| up.poll_response(cx)).unwrap()
    else {
        panic!("interim");
    };
    *head.status_mut() = StatusCode::CREATED;
    down.send_response(&head, len, names.as_ref());
    run(|cx| down.poll_flush(cx)).unwrap();
    assert_eq!(
        out.written(),
        "HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"
    );
}

#[test]
fn ht_02_ht_10_responses_leave_with_one_framing() {
    let (text, _) = returned(
        GET,
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\nUpgrade: h2\r\n\r\n",
    );
    assert_eq!(
        text,
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    let (text, _) = returned(
        GET,
        "HTTP/1.1 426 Upgrade Required\r\nConnection: upgrade\r\nUpgrade: h2\r\n\
         Content-Length: 2\r\n\r\nno",
    );
    assert_eq!(
        text,
        "HTTP/1.1 426 Upgrade Required\r\nContent-Length: 2\r\n\r\n"
    );
    let request = "GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: w\r\n\r\n";
    let (text, down) = returned(
        request,
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: w\r\n\
         Transfer-Encoding: chunked\r\n\r\n",
    );
    assert_eq!(
        text,
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: w\r\n\r\n"
    );
    assert!(!down.is_reusable());
}

#[test]
fn framing_fields_of_a_head_never_double_the_codec_s() {
    let mut answer = Response::new(());
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("7"));
    headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("gzip"));
    headers.insert(
        header::CONNECTION,
        HeaderValue::from_static("keep-alive, x"),
    );
    for (len, written) in [
        (BodyLen::Empty, "content-length: 0\r\n"),
        (BodyLen::Known(3), "content-length: 3\r\n"),
        (BodyLen::Chunked, "transfer-encoding: chunked\r\n"),
    ] {
        let (mut conn, out, _) = served(GET);
        conn.send_response(&answer, len, None);
        run(|cx| conn.poll_flush(cx)).unwrap();
        assert_eq!(out.written(), format!("HTTP/1.1 200 OK\r\n{written}\r\n"));
    }
    let mut request = Request::post("/").body(()).unwrap();
    *request.headers_mut() = answer.headers().clone();
    let (mut conn, out) = client([]);
    out.written();
    conn.send_request(&request, BodyLen::Empty, None);
    run(|cx| conn.poll_flush(cx)).unwrap();
    assert_eq!(out.written(), "POST / HTTP/1.1\r\n\r\n");
}

#[test]
fn ht_12_a_tunnel_begins_without_framing() {
    let request = "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\nearly";
    let (text, down) = returned(
        request,
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: y\r\n\r\n",
    );
    assert_eq!(text, "HTTP/1.1 200 OK\r\nX: y\r\n\r\n");
    assert!(!down.is_reusable());
    assert_eq!(down.into_parts().1, "early");
    let (text, _) = returned(request, "HTTP/1.1 502 No\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(text, "HTTP/1.1 502 No\r\nContent-Length: 0\r\n\r\n");
}

#[test]
fn ht_14_lengths_of_bodies_that_are_not_sent() {
    let head = "HEAD / HTTP/1.1\r\nHost: x\r\n\r\n";
    for (request, response, written) in [
        (
            head,
            "200 OK\r\nContent-Length: 123",
            "200 OK\r\nContent-Length: 123",
        ),
        (head, "200 OK\r\nTransfer-Encoding: chunked", "200 OK"),
        (
            GET,
            "304 Not Modified\r\nContent-Length: 5",
            "304 Not Modified\r\nContent-Length: 5",
        ),
        (GET, "204 No Content\r\nContent-Length: 5", "204 No Content"),
        (
            GET,
            "200 OK\r\nContent-Length: 0",
            "200 OK\r\nContent-Length: 0",
        ),
    ] {
        let (text, mut down) = returned(request, &format!("HTTP/1.1 {response}\r\n\r\n"));
        assert_eq!(text, format!("HTTP/1.1 {written}\r\n\r\n"));
        down.finish();
        assert!(down.is_reusable(), "{response}");
    }
    // An answer of our own to HEAD sends no body either.
    let (mut conn, out, _) = served(head);
    let mut answer = Response::new(());
    answer
        .headers_mut()
        .insert(header::CONTENT_LENGTH, HeaderValue::from_static("3"));
    conn.send_response(&answer, BodyLen::Known(3), None);
    conn.send_data(Bytes::from_static(b"abc"));
    conn.finish();
    run(|cx| conn.poll_flush(cx)).unwrap();
    assert_eq!(
        out.written(),
        "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n"
    );
    assert!(conn.is_reusable() && !conn.is_broken());
}

#[test]
fn ht_16_interim_responses_are_relayed_once() {
    let (mut conn, out, _) =
        served("PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    let interim = |status: u16| {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        response
            .headers_mut()
            .insert("x", HeaderValue::from_static("y"));
        response
    };
    conn.send_informational(&interim(100));
    conn.send_informational(&interim(100));
    conn.send_informational(&interim(103));
    conn.send_informational(&interim(103));
    run(|cx| conn.poll_flush(cx)).unwrap();
    assert_eq!(
        out.written(),
        "HTTP/1.1 100 Continue\r\nx: y\r\n\r\nHTTP/1.1 103 Early Hints\r\nx: y\r\n\r\n\
         HTTP/1.1 103 Early Hints\r\nx: y\r\n\r\n"
    );
    out.feed(b"hello");
    while run(|cx| conn.poll_recv(cx)).unwrap().is_some() {}
    conn.send_response(&Response::new(()), BodyLen::Empty, None);
    // Too late for another.
    conn.send_informational(&interim(103));
    conn.finish();
    run(|cx| conn.poll_flush(cx)).unwrap();
    assert_eq!(
        out.written(),
        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
    );
    assert!(conn.is_reusable());
    // Spelling survives in them, too.
    let raw = "HTTP/1.1 103 Early Hints\r\nLINK: </a>\r\n\r\n\
               HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(returned(GET, raw).0, raw);
}

#[test]
fn ht_16_a_refusal_instead_of_100_ends_the_connection() {
    let expecting =
        "PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
    for status in [200, 401, 417] {
        let (mut conn, out, _) = served(expecting);
        let mut answer = Response::new(());
        *answer.status_mut() = StatusCode::from_u16(status).unwrap();
        conn.send_response(&answer, BodyLen::Empty, None);
        conn.finish();
        run(|cx| conn.poll_flush(cx)).unwrap();
        assert!(
            out.written().contains("\r\nconnection: close\r\n"),
            "{status}"
        );
        assert!(!conn.is_reusable());
    }
}

#[test]
fn interim_responses_do_not_pile_up() {
    let (mut conn, out, _) = served(GET);
    out.state().room = Some(0);
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::PROCESSING;
    for _ in 0..100_000 {
        conn.send_informational(&response);
    }
    assert!(once(|cx| conn.poll_flush(cx)).is_pending());
    conn.send_response(&Response::new(()), BodyLen::Empty, None);
    conn.finish();
    out.state().room = None;
    run(|cx| conn.poll_flush(cx)).unwrap();
    let text = out.written();
    assert!(text.len() < 70_000, "{}", text.len());
    assert!(text.ends_with("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"));
}

#[test]
fn ht_21_responses_to_http_1_0() {
    let answer = |request: &str, len: BodyLen| {
        let (mut conn, out, _) = served(request);
        let mut interim = Response::new(());
        *interim.status_mut() = StatusCode::CONTINUE;
        conn.send_informational(&interim);
        conn.send_response(&Response::new(()), len, None);
        conn.send_data(Bytes::from_static(b"abc"));
        conn.finish();
        run(|cx| conn.poll_flush(cx)).unwrap();
        (out.written(), conn.is_reusable())
    };
    let plain = "GET / HTTP/1.0\r\n\r\n";
    let keep = "GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n";
    let head = "HTTP/1.1 200 OK\r\n";
    assert_eq!(
        answer(plain, BodyLen::Known(3)),
        (
            format!("{head}content-length: 3\r\nconnection: close\r\n\r\nabc"),
            false
        )
    );
    assert_eq!(
        answer(keep, BodyLen::Known(3)),
        (
            format!("{head}content-length: 3\r\nconnection: keep-alive\r\n\r\nabc"),
            true
        )
    );
    for len in [BodyLen::Chunked, BodyLen::UntilClose] {
        for request in [plain, keep] {
            let expected = (format!("{head}connection: close\r\n\r\nabc"), false);
            assert_eq!(answer(request, len), expected);
        }
    }
    // To HTTP/1.1, a body of unknown length is chunked and the connection lives.
    assert_eq!(
        answer(GET, BodyLen::UntilClose),
        (
            format!(
                "HTTP/1.1 100 Continue\r\n\r\n\
                 {head}transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
            ),
            true
        )
    );
}

#[test]
fn a_close_is_announced() {
    let (mut conn, out, _) = served(GET);
    conn.set_close();
    conn.send_response(&Response::new(()), BodyLen::Empty, None);
    conn.finish();
    run(|cx| conn.poll_flush(cx)).unwrap();
    assert!(out.written().ends_with("\r\nconnection: close\r\n\r\n"));
    assert!(!conn.is_reusable());
}

//! Group A: whole messages through a proxy, in each pair of versions.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use outrigger_tests::loopback::{
    Proxy, Setup,
    h2::{self as stream, Client},
    raw,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{sleep, timeout},
};

/// Says how a request was framed, and with what body.
fn framing(length: Option<&str>, coding: Option<&str>, body: &[u8]) -> String {
    let body = String::from_utf8_lossy(body);
    format!("length {length:?}, coding {coding:?}, body {body:?}")
}

/// Endpoints that answer with what they saw.
async fn describing() -> (SocketAddr, SocketAddr) {
    let one = raw::serve(|mut stream, _| async move {
        while let Some(head) = raw::try_read_head(&mut stream).await {
            let length = raw::field(&head, "content-length");
            let coding = raw::field(&head, "transfer-encoding");
            let mut body = Vec::new();
            if coding.is_some() {
                while !body.ends_with(b"0\r\n\r\n") {
                    body.extend(raw::read_exact(&mut stream, 1).await);
                }
                body.truncate(body.len() - 5);
                // What is left is one chunk: its size, its bytes.
                let text = String::from_utf8_lossy(&body).into_owned();
                body = text.split("\r\n").nth(1).unwrap_or_default().into();
            } else if let Some(n) = length {
                body = raw::read_exact(&mut stream, n.parse().expect("a number")).await;
            }
            let seen = framing(length, coding, &body);
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", seen.len());
            raw::write(&mut stream, (head + &seen).as_bytes()).await;
        }
    });
    let (two, _) = stream::serve(|request, mut respond| async move {
        let field = |headers: &HeaderMap, name| {
            let value: Option<&HeaderValue> = headers.get(name);
            value.map(|value| value.to_str().unwrap_or_default().to_owned())
        };
        let length = field(request.headers(), "content-length");
        let coding = field(request.headers(), "transfer-encoding");
        let (body, ..) = stream::receive(&mut request.into_body()).await;
        let seen = framing(length.as_deref(), coding.as_deref(), &body);
        let mut sent = respond
            .send_response(http::Response::new(()), false)
            .expect("sent");
        let _gone = sent.send_data(Bytes::from(seen), true);
    })
    .await;
    (one.await, two)
}

async fn ask_http1(proxy: &Proxy, method: &str, framed: &str) -> String {
    let mut client = proxy.connect().await;
    let request = format!("{method} / HTTP/1.1\r\nhost: a\r\n{framed}");
    raw::write(&mut client, request.as_bytes()).await;
    let mut head = raw::read_head(&mut client).await;
    assert_eq!(raw::status(&head), 200, "{head}");
    head.make_ascii_lowercase();
    if head.contains("transfer-encoding: chunked") {
        let mut body = Vec::new();
        while !body.ends_with(b"0\r\n\r\n") {
            body.extend(raw::read_exact(&mut client, 1).await);
        }
        let text = String::from_utf8_lossy(&body).into_owned();
        return text.split("\r\n").nth(1).unwrap_or_default().to_owned();
    }
    let length = raw::field(&head, "content-length").and_then(|n| n.parse().ok());
    let body = raw::read_exact(&mut client, length.unwrap_or(0)).await;
    String::from_utf8_lossy(&body).into_owned()
}

async fn ask_http2(client: &Client, method: &str, length: Option<usize>, body: &str) -> String {
    let method = Method::from_bytes(method.as_bytes()).expect("a method");
    let mut head = client.request(method, "/");
    if let Some(length) = length {
        head.headers_mut().insert("content-length", length.into());
    }
    let reply = client.send(head, body.as_bytes()).await.expect("a reply");
    assert_eq!(reply.status, StatusCode::OK);
    String::from_utf8_lossy(&reply.body).into_owned()
}

/// No request gains or loses framing on its way, whatever its method, and none of HTTP/1.1's is
/// seen in HTTP/2.
#[tokio::test]
async fn ht_13_framing_comes_through_in_all_pairs_of_versions() {
    let (one, two) = describing().await;
    let one = Setup::http(one).start().await;
    let two = Setup::http(two).http2().start().await;
    for method in ["GET", "POST", "DELETE"] {
        for (proxy, chunked) in [(&one, Some("chunked")), (&two, None)] {
            let none = framing(None, None, b"");
            let zero = framing(Some("0"), None, b"");
            let known = framing(Some("5"), None, b"hello");
            let open = framing(None, chunked, b"hello");
            for (framed, expected) in [
                ("\r\n", &none),
                ("content-length: 0\r\n\r\n", &zero),
                ("content-length: 5\r\n\r\nhello", &known),
                (
                    "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
                    &open,
                ),
            ] {
                let seen = ask_http1(proxy, method, framed).await;
                assert_eq!(seen, *expected, "HTTP/1.1 {method} {framed:?}");
            }
            let client = Client::connect(proxy.address).await;
            for (length, body, expected) in [
                (None, "", &none),
                (Some(0), "", &zero),
                (Some(5), "hello", &known),
                (None, "hello", &open),
            ] {
                let seen = ask_http2(&client, method, length, body).await;
                assert_eq!(seen, *expected, "HTTP/2 {method} {length:?} {body:?}");
            }
        }
    }
}

const EXPECTS: &[u8] = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\
                         expect: 100-continue\r\n\r\n";

/// An endpoint that answers a client who waits for 100 with `first`, reads the body if it is then
/// to have one, and answers with how much of it came.
async fn expecting(first: &'static [u8], reads: bool) -> SocketAddr {
    raw::serve(move |mut stream, _| async move {
        let head = raw::read_head(&mut stream).await;
        assert_eq!(raw::field(&head, "expect"), Some("100-continue"), "{head}");
        raw::write(&mut stream, first).await;
        if reads {
            let body = raw::read_exact(&mut stream, 5).await;
            assert_eq!(body, b"hello");
            raw::write(&mut stream, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        } else {
            let (rest, _) = raw::read_to_end(&mut stream).await;
            assert!(rest.is_empty(), "a body that was refused");
        }
    })
    .await
}

#[tokio::test]
async fn ht_16_a_refusal_comes_before_the_body() {
    let refusal = b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n";
    let proxy = Setup::http(expecting(refusal, false).await).start().await;
    let mut client = proxy.connect().await;
    raw::write(&mut client, EXPECTS).await;
    let (head, _) = raw::read_response(&mut client).await;
    assert_eq!(raw::status(&head), 401, "no 100 before it");
    assert_eq!(raw::field(&head, "connection"), Some("close"), "{head}");
}

#[tokio::test]
async fn ht_16_a_hundred_is_relayed_once() {
    const ONCE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
    const TWICE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n";
    for first in [ONCE, TWICE] {
        let proxy = Setup::http(expecting(first, true).await).start().await;
        let mut client = proxy.connect().await;
        raw::write(&mut client, EXPECTS).await;
        let head = raw::read_head(&mut client).await;
        assert_eq!(raw::status(&head), 100);
        raw::write(&mut client, b"hello").await;
        let (head, _) = raw::read_response(&mut client).await;
        assert_eq!(raw::status(&head), 200, "{head}");
    }
}

/// Old servers send none; a client that then sends its body anyway is served.
#[tokio::test]
async fn ht_16_no_hundred_is_invented() {
    let proxy = Setup::http(expecting(b"", true).await).start().await;
    let mut client = proxy.connect().await;
    raw::write(&mut client, EXPECTS).await;
    let mut byte = [0];
    let early = timeout(Duration::from_millis(500), client.read(&mut byte)).await;
    assert!(early.is_err(), "something came: {byte:?}");
    raw::write(&mut client, b"hello").await;
    let (head, _) = raw::read_response(&mut client).await;
    assert_eq!(raw::status(&head), 200, "{head}");
}

/// `printf … | nc -N`: the client has said all it has to say, and waits.
#[tokio::test]
async fn ht_19_a_half_close_is_answered() {
    let upstream = raw::serve(|mut stream, _| async move {
        raw::read_head(&mut stream).await;
        sleep(Duration::from_secs(1)).await;
        raw::write(
            &mut stream,
            b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nslow",
        )
        .await;
    });
    let proxy = Setup::http(upstream.await).start().await;
    for connection in ["close", "keep-alive"] {
        let mut client = proxy.connect().await;
        let request = format!("GET /slow HTTP/1.1\r\nhost: a\r\nconnection: {connection}\r\n\r\n");
        raw::write(&mut client, request.as_bytes()).await;
        client.shutdown().await.expect("a socket");
        let (answer, end) = raw::read_to_end(&mut client).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.ends_with("\r\n\r\nslow"), "{connection}: {answer}");
        assert!(end.is_ok(), "{connection}: {end:?}");
    }
}

#[tokio::test]
async fn ht_21_a_client_of_http_1_0_gets_no_chunks() {
    let upstream = raw::serve(|mut stream, _| async move {
        while let Some(head) = raw::try_read_head(&mut stream).await {
            let answer: &[u8] = if head.starts_with("GET /known") {
                b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
            } else {
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
            };
            raw::write(&mut stream, answer).await;
        }
    });
    let proxy = Setup::http(upstream.await).start().await;
    // By default it closes; no `host` is needed.
    for path in ["/known", "/open"] {
        let mut client = proxy.connect().await;
        raw::write(
            &mut client,
            format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes(),
        )
        .await;
        let (answer, end) = raw::read_to_end(&mut client).await;
        let answer = String::from_utf8_lossy(&answer).to_lowercase();
        assert!(
            end.is_ok() && answer.ends_with("\r\n\r\nhello"),
            "{path}: {answer}"
        );
        assert!(!answer.contains("transfer-encoding"), "{path}: {answer}");
    }
    // What has a length may keep the connection (`ab -k`).
    let mut client = proxy.connect().await;
    for _ in 0..3 {
        let request = b"GET /known HTTP/1.0\r\nconnection: keep-alive\r\n\r\n";
        raw::write(&mut client, request).await;
        let (head, body) = raw::read_response(&mut client).await;
        assert_eq!(body, b"hello");
        assert_eq!(
            raw::field(&head, "connection"),
            Some("keep-alive"),
            "{head}"
        );
    }
    // What has none cannot.
    let request = b"GET /open HTTP/1.0\r\nconnection: keep-alive\r\n\r\n";
    raw::write(&mut client, request).await;
    let (answer, _) = raw::read_to_end(&mut client).await;
    assert!(answer.ends_with(b"\r\n\r\nhello"));
}

//! Group B: what changes in a head between the versions, and what must not.

use std::{net::SocketAddr, sync::Arc};

use http::HeaderValue;
use outrigger_tests::loopback::{
    Setup,
    frames::{self, block, frame},
    h2::{self as stream, Client, answer, grpc_head, grpc_trailers},
    raw,
};
use tokio::sync::Mutex;

/// What an endpoint was sent, as lines.
type Seen = Arc<Mutex<Vec<String>>>;

/// Endpoints that note each head, in HTTP/1.1 and HTTP/2.
async fn noting() -> (SocketAddr, SocketAddr, Seen) {
    let seen = Seen::default();
    let noted = Arc::clone(&seen);
    let one = raw::serve(move |mut stream, _| {
        let noted = Arc::clone(&noted);
        async move {
            while let Some(head) = raw::try_read_head(&mut stream).await {
                noted.lock().await.push(head);
                raw::write(&mut stream, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            }
        }
    });
    let noted = Arc::clone(&seen);
    let (two, _) = stream::serve(move |request, mut respond| {
        let noted = Arc::clone(&noted);
        async move {
            let uri = request.uri();
            let mut text = format!(
                ":scheme: {}\r\n:authority: {}\r\n",
                uri.scheme_str().unwrap_or_default(),
                uri.authority().map_or("", |a| a.as_str()),
            );
            for (name, value) in request.headers() {
                text += &format!("{name}: {}\r\n", value.to_str().unwrap_or_default());
            }
            noted.lock().await.push(text);
            if request.headers().contains_key("grpc-timeout") {
                let sent = respond.send_response(grpc_head(), false);
                let _sent = sent.expect("sent").send_trailers(grpc_trailers(0));
            } else {
                answer(respond, 200, b"");
            }
        }
    })
    .await;
    (one.await, two, seen)
}

/// nginx leaves `:authority` out of gRPC calls; others write a `:scheme` that is not the leg's.
#[tokio::test]
async fn h2_12_authority_from_host_and_the_scheme_of_the_leg() {
    let (one, two, seen) = noting().await;
    let one = Setup::http(one).start().await;
    let two = Setup::http(two).http2().start().await;
    for proxy in [&one, &two] {
        let mut client = proxy.connect().await;
        frames::greet(&mut client).await;
        let fields = [
            (":method", "GET"),
            (":scheme", "https"),
            (":path", "/"),
            ("host", "named.example:81"),
        ];
        let flags = frames::END_HEADERS | frames::END_STREAM;
        let request = frame(frames::HEADERS, flags, 1, &block(&fields));
        frames::send(&mut client, &request).await;
        frames::until(&mut client, frames::HEADERS)
            .await
            .expect("a reply");
    }
    let seen = seen.lock().await;
    assert_eq!(
        raw::field(&seen[0], "host"),
        Some("named.example:81"),
        "{}",
        seen[0]
    );
    assert!(
        seen[1].contains(":authority: named.example:81\r\n"),
        "{}",
        seen[1]
    );
    assert!(seen[1].contains(":scheme: http\r\n"), "{}", seen[1]);
    assert!(!seen[1].contains("\nhost:"), "{}", seen[1]);
}

/// Where both are there, `:authority` counts and is all that is passed on (RFC 9113 §8.3.1).
#[tokio::test]
async fn h2_12_authority_before_host() {
    let (one, _, seen) = noting().await;
    let proxy = Setup::http(one).start().await;
    let client = Client::connect(proxy.address).await;
    let mut head = client.request(http::Method::GET, "/");
    head.headers_mut()
        .insert("host", HeaderValue::from_static("other.example"));
    client.send(head, b"").await.expect("a reply");
    let seen = seen.lock().await;
    let hosts: Vec<_> = seen[0]
        .lines()
        .filter(|line| line.starts_with("host"))
        .collect();
    assert_eq!(hosts, [format!("host: {}", proxy.address)]);
}

#[tokio::test]
async fn h2_13_te_trailers_reaches_a_grpc_server() {
    let (_, two, seen) = noting().await;
    // Two proxies: it must come through both.
    let inner = Setup::http(two).http2().start().await;
    let outer = Setup::http(inner.address).http2().start().await;
    let client = Client::connect(outer.address).await;
    let mut head = client.call_head("/s/M");
    head.headers_mut()
        .insert("grpc-timeout", HeaderValue::from_static("10S"));
    let reply = client.send(head, b"").await.expect("a reply");
    assert_eq!(reply.grpc(), Some(0), "{reply:?}");
    let seen = seen.lock().await;
    assert_eq!(raw::field(&seen[0], "te"), Some("trailers"), "{}", seen[0]);
}

/// Other codings in `te` are a matter of one hop; on HTTP/2 they are not allowed.
#[tokio::test]
async fn h2_13_other_values_of_te_do_not_reach_http2() {
    let (_, two, seen) = noting().await;
    let proxy = Setup::http(two).http2().start().await;
    for (te, expected) in [
        ("gzip", None),
        ("gzip, trailers", Some("trailers")),
        ("trailers", Some("trailers")),
    ] {
        let mut client = proxy.connect().await;
        let request = format!("GET / HTTP/1.1\r\nhost: a\r\nconnection: te\r\nte: {te}\r\n\r\n");
        raw::write(&mut client, request.as_bytes()).await;
        let (head, _) = raw::read_response(&mut client).await;
        assert_eq!(raw::status(&head), 200, "{te}: {head}");
        let last = seen.lock().await.pop().expect("a request");
        assert_eq!(raw::field(&last, "te"), expected, "{te}: {last}");
    }
}

#[tokio::test]
async fn h2_10_cookie_crumbs_are_one_line_in_http1() {
    let (one, _, seen) = noting().await;
    let proxy = Setup::http(one).start().await;
    let client = Client::connect(proxy.address).await;
    let mut head = client.request(http::Method::GET, "/");
    for crumb in ["a=1", "b=2", "c=3"] {
        head.headers_mut()
            .append("cookie", HeaderValue::from_static(crumb));
    }
    client.send(head, b"").await.expect("a reply");
    let seen = seen.lock().await;
    let lines: Vec<_> = seen[0]
        .lines()
        .filter(|line| line.starts_with("cookie"))
        .collect();
    assert_eq!(lines, ["cookie: a=1; b=2; c=3"]);
}

//! Group A: HTTP/1.1.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use outrigger_tests::loopback::{
    Proxy, Setup, cluster,
    h2::{self as stream, Client, answer},
    raw,
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::{sleep, timeout},
};

/// Answers each request of a connection with 200 and the request's first line.
async fn parrot() -> SocketAddr {
    raw::serve(|mut stream, _| async move {
        while let Some(head) = raw::try_read_head(&mut stream).await {
            let line = head.lines().next().unwrap_or_default();
            let length = raw::field(&head, "content-length").and_then(|n| n.parse().ok());
            raw::read_exact(&mut stream, length.unwrap_or(0)).await;
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{line}",
                line.len()
            );
            raw::write(&mut stream, answer.as_bytes()).await;
        }
    })
    .await
}

/// An endpoint that refuses an upload after its first bytes and is gone at once: with what it left
/// unread, its close is a reset. `late` lets the refusal arrive before that.
async fn refuses_uploads(late: bool) -> SocketAddr {
    raw::serve(move |mut stream, _| async move {
        if raw::try_read_head(&mut stream).await.is_none() {
            return;
        }
        raw::read_exact(&mut stream, 8192).await;
        let refusal = "HTTP/1.1 413 Content Too Large\r\nconnection: close\r\n\
                       content-length: 9\r\n\r\ntoo large";
        raw::write(&mut stream, refusal.as_bytes()).await;
        if late {
            sleep(Duration::from_millis(50)).await;
            raw::reset(stream);
        }
    })
    .await
}

/// Uploads while reading, as clients that notice an early answer do.
async fn upload(proxy: SocketAddr, size: usize) -> (String, Vec<u8>) {
    let stream = TcpStream::connect(proxy).await.expect("connected");
    let (mut reader, mut writer) = stream.into_split();
    let head = format!("POST /up HTTP/1.1\r\nhost: a\r\ncontent-length: {size}\r\n\r\n");
    let sending = tokio::spawn(async move {
        let piece = vec![b'x'; 64 * 1024];
        let mut sent = writer.write_all(head.as_bytes()).await;
        for _ in 0..size / piece.len() {
            if sent.is_err() {
                return;
            }
            sent = writer.write_all(&piece).await;
        }
    });
    let answer = raw::read_response(&mut reader).await;
    sending.abort();
    answer
}

const UPLOAD: usize = 4 << 20;

async fn refused_200_times(late: bool) {
    let proxy = Setup::http(refuses_uploads(late).await).start().await;
    for _ in 0..20 {
        let mut uploads = JoinSet::new();
        for _ in 0..10 {
            uploads.spawn(upload(proxy.address, UPLOAD));
        }
        while let Some(done) = uploads.join_next().await {
            let (head, body) = done.expect("an answer");
            assert_eq!(raw::status(&head), 413, "{head}");
            assert_eq!(body, b"too large");
        }
    }
    // Unless all of it had come by then, the client is told that nobody reads on.
    let whole = u64::try_from(UPLOAD).expect("a size");
    let log = proxy.access_log(200).await;
    assert!(
        log.iter()
            .any(|line| line["bytes_in"].as_u64() < Some(whole)),
        "no refusal was early"
    );
}

#[tokio::test]
async fn ht_18_a_refused_upload_gets_its_refusal_200_times() {
    refused_200_times(false).await;
}

#[tokio::test]
async fn ht_18_a_refused_upload_gets_its_refusal_though_a_reset_follows_200_times() {
    refused_200_times(true).await;
}

/// A client that reads nothing before it has sent everything.
#[tokio::test]
async fn ht_18_a_client_that_sends_first_and_reads_then_gets_the_refusal() {
    let proxy = Setup::http(refuses_uploads(false).await).start().await;
    for _ in 0..10 {
        let mut client = proxy.connect().await;
        let size = 20 << 20;
        let head = format!("POST /up HTTP/1.1\r\nhost: a\r\ncontent-length: {size}\r\n\r\n");
        raw::write(&mut client, head.as_bytes()).await;
        client
            .write_all(&vec![b'x'; size])
            .await
            .expect("all of it is taken");
        let (head, body) = raw::read_response(&mut client).await;
        assert_eq!((raw::status(&head), &body[..]), (413, &b"too large"[..]));
    }
}

#[tokio::test]
async fn ht_18_the_same_over_http2() {
    for late in [false, true] {
        let proxy = Setup::http(refuses_uploads(late).await).start().await;
        let client = Client::connect(proxy.address).await;
        for _ in 0..50 {
            let head = client.request(Method::POST, "/up");
            let (response, mut body) = client.open(head, false).await.expect("open");
            let sending = tokio::spawn(async move {
                let piece = Bytes::from(vec![b'x'; 1 << 20]);
                // Cut short when the proxy wants no more of it.
                let _cut = stream::send_all(&mut body, piece, false).await;
                body
            });
            let reply = stream::reply(response).await.expect("a head");
            assert_eq!(reply.status, StatusCode::PAYLOAD_TOO_LARGE);
            assert_eq!(reply.body, "too large", "{:?}", reply.end);
            sending.abort();
        }
    }
}

/// Two requests in one segment, the first with a body for an endpoint that is down.
#[tokio::test]
async fn ht_24_a_failed_request_does_not_take_the_next_one_along() {
    let (down, _held) = raw::nobody();
    let routes = json!({"route_config": {"name": "r", "virtual_hosts": [{
        "name": "all", "domains": ["*"],
        "routes": [
            {"match": {"prefix": "/down"}, "route": {"cluster": "down"}},
            {"match": {"prefix": "/none"}, "direct_response": {"status": 200}},
            {"match": {"prefix": "/"}, "route": {"cluster": "app"}},
        ],
    }]}});
    let setup = Setup::http(parrot().await).filter(&routes);
    let proxy = setup.with_cluster(cluster("down", &[down])).start().await;
    for (path, status) in [("/down", 503), ("/none", 200)] {
        let mut client = proxy.connect().await;
        let both = format!(
            "POST {path} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n\
             1\r\nx\r\n0\r\n\r\nGET /next HTTP/1.1\r\nhost: a\r\n\r\n"
        );
        raw::write(&mut client, both.as_bytes()).await;
        let (head, _) = raw::read_response(&mut client).await;
        assert_eq!(raw::status(&head), status, "{head}");
        assert_eq!(raw::field(&head, "connection"), None, "{head}");
        let (head, body) = raw::read_response(&mut client).await;
        assert_eq!(raw::status(&head), 200, "{head}");
        assert_eq!(body, b"GET /next HTTP/1.1");
    }
}

/// A body that has not come is not waited for: the answer says that the connection ends.
#[tokio::test]
async fn ht_24_a_body_still_to_come_ends_the_connection() {
    let (down, _held) = raw::nobody();
    let proxy = Setup::http(down).start().await;
    let mut client = proxy.connect().await;
    let half = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nhalf";
    raw::write(&mut client, half).await;
    let (head, _) = raw::read_response(&mut client).await;
    assert_eq!(raw::status(&head), 503);
    assert_eq!(raw::field(&head, "connection"), Some("close"));
    let (rest, end) = raw::read_to_end(&mut client).await;
    assert!(rest.is_empty() && end.is_ok(), "{end:?}");
}

#[tokio::test]
async fn ht_09_an_unknown_upgrade_is_no_fault() {
    let proxy = Setup::http(parrot().await).start().await;
    for token in ["TLS/1.2", "h2c", "something-else", "websocket, websocket"] {
        let mut client = proxy.connect().await;
        let request = format!(
            "GET /plain HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: {token}\r\n\r\n\
             GET /second HTTP/1.1\r\nhost: a\r\n\r\n"
        );
        raw::write(&mut client, request.as_bytes()).await;
        for line in ["GET /plain HTTP/1.1", "GET /second HTTP/1.1"] {
            let (head, body) = raw::read_response(&mut client).await;
            assert_eq!(raw::status(&head), 200, "{token}: {head}");
            assert_eq!(String::from_utf8_lossy(&body), line, "{token}");
        }
    }
}

/// Two proxies with HTTP/2 between them and a client that switches to another protocol.
async fn switched() -> (Proxy, Proxy, TcpStream) {
    let upstream = raw::serve(|mut stream, _| async move {
        let head = raw::read_head(&mut stream).await;
        assert_eq!(raw::field(&head, "upgrade"), Some("websocket"), "{head}");
        assert_eq!(
            raw::field(&head, "sec-websocket-key"),
            Some("a2V5"),
            "{head}"
        );
        let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
                      upgrade: websocket\r\nsec-websocket-accept: YWNjZXB0\r\n\r\n";
        raw::write(&mut stream, answer.as_bytes()).await;
        let (mut reader, mut writer) = stream.into_split();
        // An echo that ends when the client does, or when it is told to.
        let mut piece = vec![0; 64 * 1024];
        while let Ok(n) = reader.read(&mut piece).await
            && n > 0
            && !piece[..n].starts_with(b"bye")
        {
            writer.write_all(&piece[..n]).await.expect("echoed");
        }
    })
    .await;
    let inner = Setup::http(upstream).start().await;
    let outer = Setup::http(inner.address).http2().start().await;
    let mut client = outer.connect().await;
    let request = b"GET /chat HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
                    sec-websocket-version: 13\r\nsec-websocket-key: a2V5\r\n\r\n";
    raw::write(&mut client, request).await;
    let head = raw::read_head(&mut client).await;
    assert_eq!(raw::status(&head), 101, "{head}");
    assert_eq!(
        raw::field(&head, "sec-websocket-accept"),
        Some("YWNjZXB0"),
        "{head}"
    );
    (inner, outer, client)
}

#[tokio::test]
async fn ht_11_a_switch_of_protocols_passes_two_proxies() {
    let (_inner, _outer, client) = switched().await;
    let data: Vec<u8> = (0..1 << 20).map(|n: u32| n.to_le_bytes()[1]).collect();
    let (mut reader, mut writer) = client.into_split();
    let copy = data.clone();
    let sending = tokio::spawn(async move {
        writer.write_all(&copy).await.expect("sent");
        writer
    });
    let back = raw::read_exact(&mut reader, data.len()).await;
    assert!(back == data, "the echo differs");
    // The client ends.
    let mut writer = sending.await.expect("sent");
    writer.shutdown().await.expect("a socket");
    let (rest, end) = raw::read_to_end(&mut reader).await;
    assert!(rest.is_empty() && end.is_ok(), "{end:?}");
}

#[tokio::test]
async fn ht_11_the_end_may_come_from_the_server() {
    let (_inner, _outer, mut client) = switched().await;
    raw::write(&mut client, b"bye").await;
    let (rest, end) = raw::read_to_end(&mut client).await;
    assert!(rest.is_empty() && end.is_ok(), "{end:?}");
}

/// What passes in one version passes in the other, and what is refused is refused in both.
#[tokio::test]
async fn ht_25_one_limit_for_request_heads_in_both_versions() {
    let one = Setup::http(parrot().await).start().await;
    let (upstream, _) = stream::serve(|_, respond| async { answer(respond, 200, b"ok") }).await;
    let two = Setup::http(upstream).http2().start().await;
    for proxy in [&one, &two] {
        let client = Client::connect(proxy.address).await;
        for (what, size, status) in [
            ("cookie", 20_000, 200),
            ("cookie", 79_000, 200),
            ("cookie", 85_000, 431),
            ("cookie", 200_000, 431),
            ("count", 120, 200),
            ("count", 200, 431),
            ("url", 60_000, 200),
            ("url", 63_000, 414),
        ] {
            let mut head = client.request(Method::GET, "/");
            let mut text = String::new();
            let mut path = "/".to_owned();
            match what {
                "cookie" => {
                    let value = "c".repeat(size);
                    text = format!("cookie: {value}\r\n");
                    let value = HeaderValue::from_str(&value).expect("a value");
                    head.headers_mut().insert("cookie", value);
                }
                "count" => {
                    for n in 0..size {
                        text += &format!("x-{n}: v\r\n");
                        let name = HeaderName::try_from(format!("x-{n}")).expect("a name");
                        head.headers_mut()
                            .insert(name, HeaderValue::from_static("v"));
                    }
                }
                _ => {
                    path += &"u".repeat(size);
                    head = client.request(Method::GET, &path);
                }
            }
            let reply = client.send(head, b"").await.expect("a reply");
            assert_eq!(reply.status.as_u16(), status, "HTTP/2 {what} {size}");
            let mut plain = proxy.connect().await;
            let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\n{text}\r\n");
            raw::write(&mut plain, request.as_bytes()).await;
            let (head, _) = raw::read_response(&mut plain).await;
            assert_eq!(raw::status(&head), status, "HTTP/1.1 {what} {size}");
        }
    }
}

#[tokio::test]
async fn ht_25_one_limit_for_response_heads_in_both_versions() {
    let one = raw::serve(|mut stream, _| async move {
        while let Some(head) = raw::try_read_head(&mut stream).await {
            let lines = lines(head.split(' ').nth(1).unwrap_or_default());
            let mut answer = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n".to_owned();
            for _ in 0..lines {
                answer += &format!("set-cookie: {}\r\n", "c".repeat(4000));
            }
            raw::write(&mut stream, (answer + "\r\n").as_bytes()).await;
        }
    });
    let (two, _) = stream::serve(|request, mut respond| async move {
        let mut head = http::Response::new(());
        for _ in 0..lines(request.uri().path()) {
            let value = HeaderValue::from_str(&"c".repeat(4000)).expect("a value");
            head.headers_mut().append("set-cookie", value);
        }
        let _sent = respond.send_response(head, true);
    })
    .await;
    let one = Setup::http(one.await).start().await;
    let two = Setup::http(two).http2().start().await;
    for proxy in [&one, &two] {
        let client = Client::connect(proxy.address).await;
        for (lines, status) in [(15, 200), (19, 200), (22, 502), (50, 502), (1, 200)] {
            let reply = client.get(&format!("/{lines}")).await.expect("a reply");
            assert_eq!(reply.status.as_u16(), status, "HTTP/2 {lines}");
            if status == 200 {
                let got = reply.headers.get_all("set-cookie").iter().count();
                assert_eq!(got, lines);
            } else {
                assert!(
                    String::from_utf8_lossy(&reply.body).contains("81920"),
                    "{reply:?}"
                );
            }
            let mut plain = proxy.connect().await;
            let request = format!("GET /{lines} HTTP/1.1\r\nhost: a\r\n\r\n");
            raw::write(&mut plain, request.as_bytes()).await;
            let (head, _) = raw::read_response(&mut plain).await;
            assert_eq!(raw::status(&head), status, "HTTP/1.1 {lines}");
        }
    }
}

fn lines(path: &str) -> usize {
    path.trim_start_matches('/').parse().unwrap_or(0)
}

/// An upload that nobody answers yet does not keep a client from being noticed when it goes.
#[tokio::test]
async fn ht_19_a_reset_cancels_the_request_upstream() {
    let (gone, told) = tokio::sync::oneshot::channel();
    let gone = std::sync::Arc::new(std::sync::Mutex::new(Some(gone)));
    let upstream = raw::serve(move |mut stream, _| {
        let gone = gone.lock().expect("one thread").take();
        async move {
            raw::read_head(&mut stream).await;
            let (rest, _) = raw::read_to_end(&mut stream).await;
            let _told = gone.map(|gone| gone.send(rest));
        }
    });
    let proxy = Setup::http(upstream.await).start().await;
    let mut client = proxy.connect().await;
    raw::write(&mut client, b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await;
    sleep(Duration::from_millis(200)).await;
    raw::reset(client);
    let rest = timeout(Duration::from_secs(5), told)
        .await
        .expect("in time")
        .expect("told");
    assert!(rest.is_empty());
}

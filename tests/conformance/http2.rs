//! Group B: HTTP/2.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Method, StatusCode};
use outrigger_tests::loopback::{
    Setup,
    frames::{self, frame},
    h2::{self as stream, Client, answer, send_all},
    raw,
};
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpStream,
    time::{sleep, timeout},
};

/// A request that takes longer was held up by others: it needs milliseconds.
const HELD_UP: Duration = Duration::from_secs(5);

/// A response of 200 with ten kilobytes of a body that then breaks off with `reason`.
async fn breaks_off(mut stream: TcpStream, reason: u32, fields: &[(&str, &str)]) {
    frames::welcome(&mut stream, &[]).await;
    while let Some(request) = frames::until(&mut stream, frames::HEADERS).await {
        let id = request.stream;
        let block = frames::block(fields);
        let mut bytes = frame(frames::HEADERS, frames::END_HEADERS, id, &block);
        bytes.extend(frame(frames::DATA, 0, id, &[b'x'; 10_000]));
        bytes.extend(frame(frames::RST_STREAM, 0, id, &reason.to_be_bytes()));
        frames::send(&mut stream, &bytes).await;
    }
}

/// PROTOCOL_ERROR, INTERNAL_ERROR, REFUSED_STREAM, CANCEL.
const REASONS: [u32; 4] = [1, 2, 7, 8];

#[tokio::test]
async fn h2_08_a_reset_is_no_end_for_http1_in_chunks() {
    for reason in REASONS {
        let upstream = raw::serve(move |stream, _| async move {
            breaks_off(stream, reason, &[(":status", "200")]).await;
        });
        let proxy = Setup::http(upstream.await).http2().start().await;
        let mut client = proxy.connect().await;
        raw::write(&mut client, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let head = raw::read_head(&mut client).await;
        assert_eq!(raw::status(&head), 200);
        assert_eq!(raw::field(&head, "transfer-encoding"), Some("chunked"));
        let (body, _) = raw::read_to_end(&mut client).await;
        assert!(!body.ends_with(b"0\r\n\r\n"), "{reason}: a last chunk");
        let log = proxy.access_log(1).await;
        assert_ne!(log[0]["response_flags"], "-", "{reason}: {log:?}");
    }
}

#[tokio::test]
async fn h2_08_a_reset_is_no_end_for_http1_with_a_length() {
    for reason in REASONS {
        let upstream = raw::serve(move |stream, _| async move {
            let fields = [(":status", "200"), ("content-length", "20000")];
            breaks_off(stream, reason, &fields).await;
        });
        let proxy = Setup::http(upstream.await).http2().start().await;
        let mut client = proxy.connect().await;
        raw::write(&mut client, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let head = raw::read_head(&mut client).await;
        assert_eq!(raw::field(&head, "content-length"), Some("20000"));
        let (body, _) = raw::read_to_end(&mut client).await;
        assert!(body.len() <= 10_000, "{reason}: {} bytes", body.len());
    }
}

#[tokio::test]
async fn h2_08_a_reset_is_a_reset_for_http2() {
    for reason in REASONS {
        let upstream = raw::serve(move |stream, _| async move {
            breaks_off(stream, reason, &[(":status", "200")]).await;
        });
        let proxy = Setup::http(upstream.await).http2().start().await;
        let client = Client::connect(proxy.address).await;
        let reply = client.get("/").await.expect("a head");
        assert_eq!(reply.status, StatusCode::OK);
        let error = reply.end.expect_err("not complete");
        assert!(error.is_reset(), "{reason}: {error}");
        // The connection is none the worse.
        client.get("/").await.expect("another head");
    }
}

/// gRPC `PROTOCOL-HTTP2.md`, "Errors": what a client reads from a reset, the proxy's client reads
/// from trailers.
#[tokio::test]
async fn h2_08_a_reset_is_a_status_for_grpc() {
    for (reason, code) in [(1, 13), (2, 13), (7, 14), (8, 1), (11, 8), (12, 7)] {
        let upstream = raw::serve(move |stream, _| async move {
            let fields = [(":status", "200"), ("content-type", "application/grpc")];
            breaks_off(stream, reason, &fields).await;
        });
        let proxy = Setup::http(upstream.await).http2().start().await;
        let client = Client::connect(proxy.address).await;
        let reply = client.call("/s/M").await.expect("a head");
        assert_eq!(reply.status, StatusCode::OK);
        assert!(reply.end.is_ok(), "{reason}: {:?}", reply.end);
        assert_eq!(reply.grpc(), Some(code), "{reason}: {reply:?}");
        assert_eq!(reply.body.len(), 10_000, "what came is passed on");
    }
}

#[tokio::test]
async fn h2_08_a_cut_http1_body_is_a_reset_for_http2() {
    for head in ["content-length: 20000", "transfer-encoding: chunked"] {
        let upstream = raw::serve(move |mut stream, _| async move {
            raw::read_head(&mut stream).await;
            let answer = format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n");
            raw::write(&mut stream, answer.as_bytes()).await;
            raw::write(&mut stream, b"5\r\nabcde\r\n").await;
        });
        let proxy = Setup::http(upstream.await).start().await;
        let client = Client::connect(proxy.address).await;
        let reply = client.get("/").await.expect("a head");
        assert!(reply.end.expect_err("not complete").is_reset(), "{head}");
    }
}

#[tokio::test]
async fn h2_05_readers_that_stand_still_hold_nobody_up() {
    let (upstream, connections) = stream::serve(|request, mut respond| async move {
        if request.uri().path() == "/small" {
            return answer(respond, 200, b"small");
        }
        let head = http::Response::new(());
        let mut body = respond.send_response(head, false).expect("sent");
        // Far more than any window; ends when the stream does.
        let piece = Bytes::from(vec![b'x'; 1 << 20]);
        while send_all(&mut body, piece.clone(), false).await.is_ok() {}
    })
    .await;
    let proxy = Setup::http(upstream).http2().start().await;
    let mut stuck = Vec::new();
    for n in 0..64 {
        let mut client = proxy.connect().await;
        raw::write(&mut client, b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n").await;
        // Half of them begin to read, half do not even that.
        if n % 2 == 0 {
            raw::read_head(&mut client).await;
        }
        stuck.push(client);
    }
    // Until every window is full.
    sleep(Duration::from_millis(500)).await;
    let client = Client::connect(proxy.address).await;
    for n in 0..50 {
        let reply = timeout(HELD_UP, client.get("/small")).await;
        let reply = reply.unwrap_or_else(|_| panic!("request {n} is held up"));
        assert_eq!(reply.expect("a reply").body, "small");
    }
    assert_eq!(
        connections.load(Ordering::Relaxed),
        1,
        "all on one connection"
    );
}

/// An upload that only waits for its client's next byte must not keep credit to itself: with a
/// connection window of 64 KiB, which is what a server gives that never thought about it, one such
/// reservation is all there is.
#[tokio::test]
async fn h2_05_idle_uploads_hold_nobody_up() {
    let builder = h2::server::Builder::new();
    let (upstream, connections) = stream::serve_with(builder, |request, respond| async move {
        let (_, _, end) = stream::receive(&mut request.into_body()).await;
        if end.is_ok() {
            answer(respond, 200, b"");
        }
    })
    .await;
    let proxy = Setup::http(upstream).http2().start().await;
    let client = Client::connect(proxy.address).await;
    let mut idle = Vec::new();
    for _ in 0..8 {
        let head = client.request(Method::POST, "/idle");
        let (response, mut body) = client.open(head, false).await.expect("open");
        send_all(&mut body, Bytes::from_static(b"x"), false)
            .await
            .expect("sent");
        idle.push((response, body));
    }
    sleep(Duration::from_millis(200)).await;
    for n in 0..10 {
        let head = client.request(Method::POST, "/busy");
        let sent = timeout(HELD_UP, client.send(head, &[b'y'; 100_000])).await;
        let reply = sent.unwrap_or_else(|_| panic!("upload {n} is held up"));
        assert_eq!(reply.expect("a reply").status, StatusCode::OK);
    }
    for (response, mut body) in idle {
        body.send_data(Bytes::from_static(b"z"), true)
            .expect("sent");
        let reply = stream::reply(response).await.expect("a reply");
        assert_eq!(reply.status, StatusCode::OK);
    }
    assert_eq!(
        connections.load(Ordering::Relaxed),
        1,
        "all on one connection"
    );
}

/// Uploads that the endpoint does not read take all of a connection window that is no larger than a
/// stream's. Those that come after go over another connection.
#[tokio::test]
async fn h2_05_stuck_uploads_hold_nobody_up() {
    let builder = h2::server::Builder::new();
    let (upstream, connections) = stream::serve_with(builder, |request, respond| async move {
        let stuck = request.uri().path() == "/stuck";
        let mut body = request.into_body();
        if stuck {
            // Kept and not read.
            sleep(Duration::from_secs(60)).await;
        }
        let (_, _, end) = stream::receive(&mut body).await;
        if end.is_ok() {
            answer(respond, 200, b"");
        }
    })
    .await;
    let proxy = Setup::http(upstream).http2().start().await;
    let client = Client::connect(proxy.address).await;
    let mut stuck = Vec::new();
    for _ in 0..2 {
        let head = client.request(Method::POST, "/stuck");
        let (response, mut body) = client.open(head, false).await.expect("open");
        body.send_data(Bytes::from(vec![b'x'; 200_000]), false)
            .expect("sent");
        stuck.push((response, body));
    }
    sleep(Duration::from_millis(500)).await;
    for n in 0..10 {
        let head = client.request(Method::POST, "/busy");
        let sent = timeout(HELD_UP, client.send(head, &[b'y'; 100_000])).await;
        let reply = sent.unwrap_or_else(|_| panic!("upload {n} is held up"));
        assert_eq!(reply.expect("a reply").status, StatusCode::OK);
    }
    let used = connections.load(Ordering::Relaxed);
    assert!(used <= 3, "{used} connections");
}

/// A server that sends every connection away after twenty requests, politely: a GOAWAY that names
/// no last stream, then one that does, while one long stream is always open.
#[tokio::test]
async fn h2_07_connections_that_reach_their_age_lose_no_request() {
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    let upstream = raw::serve(move |stream, _| {
        counted.fetch_add(1, Ordering::Relaxed);
        async move {
            let shaken = h2::server::handshake(stream).await;
            let mut connection = shaken.expect("a handshake");
            let mut served = 0;
            while let Some(Ok((request, respond))) = connection.accept().await {
                served += 1;
                if served == 20 {
                    connection.graceful_shutdown();
                }
                tokio::spawn(async move {
                    let long = request.uri().path() == "/long";
                    let (_, _, end) = stream::receive(&mut request.into_body()).await;
                    if long {
                        sleep(Duration::from_secs(60)).await;
                    }
                    if end.is_ok() {
                        answer(respond, 200, b"done");
                    }
                });
            }
        }
    });
    let proxy = Setup::http(upstream.await).http2().start().await;
    let long = Client::connect(proxy.address).await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..8 {
        let (long, address) = (long.clone(), proxy.address);
        tasks.spawn(async move {
            let client = Client::connect(address).await;
            let mut open = Vec::new();
            for i in 0..100 {
                if n == 0 && i % 10 == 0 {
                    let head = long.request(Method::GET, "/long");
                    open.push(long.open(head, true).await.expect("open"));
                }
                let post = i % 2 == 0;
                let method = if post { Method::POST } else { Method::GET };
                let body: &[u8] = if post { b"body" } else { b"" };
                let reply = client.send(client.request(method, "/short"), body).await;
                let reply = reply.expect("a reply");
                assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
                assert_eq!(reply.body, "done");
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("every request");
    }
    let used = connections.load(Ordering::Relaxed);
    assert!(used >= 10, "{used} connections for 800 requests");
}

/// A hard GOAWAY: what is beyond its last stream was not processed and goes elsewhere, POST or not
/// (RFC 9113 §6.8, §8.7); what is not beyond it is answered where it is.
#[tokio::test]
async fn h2_07_streams_beyond_the_last_one_are_sent_again() {
    let upstream = raw::serve(|mut stream, nth| async move {
        frames::welcome(&mut stream, &[]).await;
        let ok = frames::block(&[(":status", "200"), ("x-connection", &nth.to_string())]);
        let mut ids = Vec::new();
        let expected = if nth == 0 { 3 } else { 1 };
        loop {
            while ids.len() < expected {
                let Some(next) = frames::next(&mut stream).await else {
                    return;
                };
                if next.flags & frames::END_STREAM != 0 && next.kind < 2 {
                    ids.push(next.stream);
                }
            }
            let mut bytes = Vec::new();
            if nth == 0 {
                let last = [ids[0].to_be_bytes(), 0_u32.to_be_bytes()].concat();
                bytes.extend(frame(frames::GOAWAY, 0, 0, &last));
                ids.truncate(1);
            }
            for id in ids.drain(..) {
                let flags = frames::END_HEADERS | frames::END_STREAM;
                bytes.extend(frame(frames::HEADERS, flags, id, &ok));
            }
            frames::send(&mut stream, &bytes).await;
        }
    });
    let proxy = Setup::http(upstream.await).http2().start().await;
    let client = Client::connect(proxy.address).await;
    let mut answers = Vec::new();
    for _ in 0..3 {
        let head = client.request(Method::POST, "/");
        let (response, mut body) = client.open(head, false).await.expect("open");
        body.send_data(Bytes::from_static(b"body"), true)
            .expect("sent");
        answers.push(response);
    }
    let mut from = Vec::new();
    for response in answers {
        let reply = stream::reply(response).await.expect("a reply");
        assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
        from.push(reply.headers["x-connection"].clone());
    }
    from.sort();
    assert_eq!(from[0], "0", "the one that was accepted");
    assert_eq!(from[1..], ["1", "1"], "the two that were not");
}

#[tokio::test]
async fn h2_08_what_is_left_unread_by_a_client_that_goes_is_cancelled() {
    let (told, cancelled) = tokio::sync::oneshot::channel();
    let told = Arc::new(std::sync::Mutex::new(Some(told)));
    let (upstream, _) = stream::serve(move |_, mut respond| {
        let told = Arc::clone(&told);
        async move {
            let head = http::Response::new(());
            let mut body = respond.send_response(head, false).expect("sent");
            body.send_data(Bytes::from_static(b"begun"), false)
                .expect("sent");
            let reason = std::future::poll_fn(|cx| body.poll_reset(cx)).await;
            let told = told.lock().expect("one thread").take();
            let _asked = told.map(|told| told.send(reason.expect("a reset")));
        }
    })
    .await;
    let proxy = Setup::http(upstream).http2().start().await;
    let mut client = proxy.connect().await;
    raw::write(&mut client, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    raw::read_head(&mut client).await;
    client.flush().await.expect("a socket");
    raw::reset(client);
    let reason = timeout(HELD_UP, cancelled)
        .await
        .expect("in time")
        .expect("told");
    assert_eq!(reason, h2::Reason::CANCEL);
}

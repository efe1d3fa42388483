//! Group C: gRPC.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, StatusCode};
use outrigger_proto::type_url;
use outrigger_tests::loopback::{
    Setup,
    frames::{self, frame},
    h2::{self as stream, Client, Reply, grpc_head, grpc_trailers, message},
    raw,
};
use serde_json::json;
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpSocket, TcpStream},
    time::{Instant, sleep, timeout},
};

/// A service that answers every call with one message and success.
async fn echo() -> SocketAddr {
    let (address, _) = stream::serve(|request, respond| async move {
        let (body, ..) = stream::receive(&mut request.into_body()).await;
        finish(respond, body, grpc_trailers(0));
    })
    .await;
    address
}

/// A whole response: head, one message, trailers.
fn finish(mut respond: SendResponse<Bytes>, body: Bytes, trailers: HeaderMap) {
    if let Ok(mut stream) = respond.send_response(grpc_head(), false) {
        let _sent = stream.send_data(body, false);
        let _sent = stream.send_trailers(trailers);
    }
}

/// Asserts that a call failed in gRPC's words, and that the same request without gRPC's content
/// type fails in HTTP's.
async fn fails(what: &str, setup: Setup, code: u32, http: u16) {
    let proxy = setup.start().await;
    let client = Client::connect(proxy.address).await;
    let reply = client.call("/s/M").await.expect(what);
    assert_failed(what, &reply, code);
    for content_type in ["application/grpc-web+proto", "application/connect+proto"] {
        let mut head = client.call_head("/s/M");
        head.headers_mut()
            .insert("content-type", HeaderValue::from_static(content_type));
        let reply = client.send(head, b"hello").await.expect(what);
        assert_eq!(reply.status.as_u16(), http, "{what}: {reply:?}");
        assert_eq!(reply.grpc(), None, "{what}: {reply:?}");
    }
}

fn assert_failed(what: &str, reply: &Reply, code: u32) {
    assert_eq!(reply.status, StatusCode::OK, "{what}: {reply:?}");
    assert_eq!(reply.grpc(), Some(code), "{what}: {reply:?}");
    assert!(reply.end.is_ok(), "{what}: {reply:?}");
    let content_type = &reply.headers["content-type"];
    assert_eq!(content_type, "application/grpc", "{what}: {reply:?}");
    let message = reply.grpc_message();
    assert!(
        !message.is_empty() && message.is_ascii(),
        "{what}: {reply:?}"
    );
}

#[tokio::test]
async fn gr_01_no_route() {
    let routes = json!({"route_config": {"name": "r", "virtual_hosts": [{
        "name": "all", "domains": ["*"],
        "routes": [{"match": {"path": "/other"}, "route": {"cluster": "app"}}],
    }]}});
    let setup = Setup::http(echo().await).http2().filter(&routes);
    fails("no route", setup, 12, 404).await;
}

#[tokio::test]
async fn gr_01_no_endpoints() {
    let setup = Setup::http(echo().await).http2().endpoints(&[]);
    fails("no endpoints", setup, 14, 503).await;
}

#[tokio::test]
async fn gr_01_connect_refused() {
    let (address, _held) = raw::nobody();
    fails("connect refused", Setup::http(address).http2(), 14, 503).await;
}

#[tokio::test]
async fn gr_01_connect_timeout() {
    // An accept queue that is full: the kernel answers no further connection.
    let socket = TcpSocket::new_v4().expect("a socket");
    socket
        .bind(SocketAddr::from(([127, 0, 0, 1], 0)))
        .expect("a port");
    let listener = socket.listen(0).expect("a queue");
    let address = listener.local_addr().expect("an address");
    let mut queued = Vec::new();
    while let Ok(Ok(one)) = timeout(Duration::from_millis(200), TcpStream::connect(address)).await {
        queued.push(one);
    }
    let setup = Setup::http(address).http2();
    let setup = setup.cluster(&json!({"connect_timeout": "0.2s"}));
    fails("connect time-out", setup, 14, 503).await;
}

#[tokio::test]
async fn gr_01_tls_failure() {
    let key = rcgen::KeyPair::generate().expect("a key");
    let params = rcgen::CertificateParams::new(vec!["a".to_owned()]).expect("a name");
    let root = params.self_signed(&key).expect("a certificate").pem();
    let upstream = raw::serve(|mut stream, _| async move {
        raw::write(&mut stream, b"this is not TLS\r\n").await;
        let _all = raw::read_to_end(&mut stream).await;
    })
    .await;
    let setup = Setup::http(upstream).http2();
    let setup = setup.cluster(
        &json!({"transport_socket": {"name": "tls", "typed_config": {
            "@type": type_url::UPSTREAM_TLS_CONTEXT,
            "sni": "a",
            "common_tls_context": {"validation_context": {"trusted_ca": {"inline_string": root}}},
        }}}),
    );
    fails("TLS failure", setup, 14, 503).await;
}

#[tokio::test]
async fn gr_01_denied() {
    let setup = Setup::http(echo().await).http2().http_filter(
        "envoy.filters.http.rbac",
        &json!({"@type": type_url::HTTP_RBAC, "rules": {"action": "DENY", "policies": {
            "all": {"permissions": [{"any": true}], "principals": [{"any": true}]},
        }}}),
    );
    fails("policy", setup, 7, 403).await;
}

#[tokio::test]
async fn gr_01_circuit_open() {
    let (address, _held) = raw::nobody();
    let setup = Setup::http(address).http2().cluster(&json!({"metadata": {
        "typed_filter_metadata": {type_url::BREAKER_METADATA_KEY: {
            "@type": type_url::BREAKER, "scope": "SERVICE", "minimum_calls": 1,
            "failure_rate_threshold": {"value": 1.0}, "open_duration": "60s",
        }},
    }}));
    let proxy = setup.start().await;
    let client = Client::connect(proxy.address).await;
    client.call("/s/M").await.expect("a reply");
    let reply = client.call("/s/M").await.expect("a reply");
    assert_failed("circuit", &reply, 14);
    assert!(reply.grpc_message().contains("BreakerOpen"), "{reply:?}");
    let plain = client.get("/").await.expect("a reply");
    assert_eq!(plain.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn gr_01_limits_reached() {
    for (limit, name) in [
        ("max_requests", "OverflowRequests"),
        ("max_connections", "OverflowConnections"),
    ] {
        let limits = json!({"circuit_breakers": {"thresholds": [{limit: 0}]}});
        let setup = Setup::http(echo().await).http2().cluster(&limits);
        let proxy = setup.clone().start().await;
        let client = Client::connect(proxy.address).await;
        let reply = client.call("/s/M").await.expect("a reply");
        assert!(reply.grpc_message().contains(name), "{reply:?}");
        drop(proxy);
        fails(limit, setup, 14, 503).await;
    }
}

#[tokio::test]
async fn gr_01_rate_limit() {
    let all = json!({"default_value": {"numerator": 100}});
    let setup = Setup::http(echo().await).http2().http_filter(
        "envoy.filters.http.local_ratelimit",
        &json!({
            "@type": type_url::LOCAL_RATE_LIMIT, "stat_prefix": "l",
            "token_bucket": {"max_tokens": 1, "tokens_per_fill": 1, "fill_interval": "3600s"},
            "filter_enabled": all, "filter_enforced": all,
        }),
    );
    let proxy = setup.start().await;
    let client = Client::connect(proxy.address).await;
    let reply = client.call("/s/M").await.expect("a reply");
    assert_eq!(reply.grpc(), Some(0), "{reply:?}");
    let reply = client.call("/s/M").await.expect("a reply");
    assert_failed("rate limit", &reply, 8);
    let plain = client.get("/").await.expect("a reply");
    assert_eq!(plain.status, StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn gr_01_timeout_before_the_answer() {
    let (upstream, _) = stream::serve(|_, respond| async move {
        sleep(Duration::from_secs(60)).await;
        drop(respond);
    })
    .await;
    let setup = Setup::http(upstream).http2();
    let setup = setup.route(&json!({"timeout": "0.2s"}));
    fails("time-out", setup, 4, 504).await;
}

#[tokio::test]
async fn gr_01_fault_injection() {
    let setup = Setup::http(echo().await).http2().http_filter(
        "envoy.filters.http.fault",
        &json!({"@type": type_url::FAULT, "abort": {
            "http_status": 503, "percentage": {"numerator": 100},
        }}),
    );
    fails("fault injection", setup, 14, 503).await;
}

/// One message, then `then`.
async fn one_message_and<F, Fut>(then: F) -> SocketAddr
where
    F: Fn(h2::SendStream<Bytes>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let (address, _) = stream::serve(move |_, mut respond: SendResponse<Bytes>| {
        let then = then.clone();
        async move {
            let mut body = respond.send_response(grpc_head(), false).expect("sent");
            let first = Bytes::from(message(b"first"));
            body.send_data(first, false).expect("sent");
            then(body).await;
        }
    })
    .await;
    address
}

/// After the head is out there is one way left to say it: trailers (never a second head).
#[tokio::test]
async fn gr_01_timeout_after_the_first_message() {
    let silent = one_message_and(|body| async move {
        sleep(Duration::from_secs(60)).await;
        drop(body);
    });
    let setup = Setup::http(silent.await).http2();
    for (what, route) in [
        (
            "stream duration",
            json!({"max_stream_duration": {"max_stream_duration": "0.3s"}}),
        ),
        ("idle", json!({"idle_timeout": "0.3s"})),
    ] {
        let proxy = setup.clone().route(&route).start().await;
        let client = Client::connect(proxy.address).await;
        let reply = client.call("/s/M").await.expect("a head");
        assert_failed(what, &reply, 4);
        assert_eq!(reply.body, message(b"first"), "{what}");
    }
}

#[tokio::test]
async fn gr_01_a_caller_over_http1_gets_its_answer_too() {
    let (address, _held) = raw::nobody();
    let proxy = Setup::http(address).http2().start().await;
    let mut client = proxy.connect().await;
    let call = b"POST /s/M HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\n\
                 content-length: 0\r\n\r\n";
    raw::write(&mut client, call).await;
    let (head, body) = raw::read_response(&mut client).await;
    assert_eq!(raw::status(&head), 200, "{head}");
    assert_eq!(raw::field(&head, "grpc-status"), Some("14"), "{head}");
    assert!(body.is_empty());
}

/// The log has the status of each call, wherever it stood; a call that ends without one is UNKNOWN.
#[tokio::test]
async fn gr_07_every_status_is_on_record() {
    let (upstream, _) = stream::serve(|request, mut respond| async move {
        let path = request.uri().path().to_owned();
        let (way, _, status) = split(&path);
        let status = u32::try_from(status).expect("a code");
        match way {
            "alone" => {
                let mut head = grpc_head();
                head.headers_mut().extend(grpc_trailers(status));
                let _sent = respond.send_response(head, true);
            }
            "after" => finish(respond, Bytes::from(message(b"m")), grpc_trailers(status)),
            _ => finish(respond, Bytes::from(message(b"m")), HeaderMap::new()),
        }
    })
    .await;
    let proxy = Setup::http(upstream).http2().start().await;
    let client = Client::connect(proxy.address).await;
    let mut expected = Vec::new();
    for status in 0..=16 {
        for way in ["alone", "after"] {
            let reply = client
                .call(&format!("/{way}/{status}"))
                .await
                .expect("a reply");
            assert_eq!(reply.grpc(), Some(status), "{way} {status}");
            expected.push(status);
        }
    }
    client.call("/missing/0").await.expect("a reply");
    expected.push(2);
    let log = proxy.access_log(expected.len()).await;
    let logged: Vec<_> = log
        .iter()
        .map(|line| line["grpc_status"].as_u64())
        .collect();
    let expected: Vec<_> = expected.into_iter().map(|n| Some(u64::from(n))).collect();
    assert_eq!(logged, expected);
}

/// The endpoint's process dies while a stream is open: clients that subscribe again on UNAVAILABLE
/// must be told that.
#[tokio::test]
async fn gr_08_a_dead_peer_is_unavailable() {
    for reset in [false, true] {
        let upstream = raw::serve(move |mut stream, _| async move {
            frames::welcome(&mut stream, &[]).await;
            let Some(call) = frames::until(&mut stream, frames::HEADERS).await else {
                return;
            };
            let fields = [(":status", "200"), ("content-type", "application/grpc")];
            let block = frames::block(&fields);
            let mut bytes = frame(frames::HEADERS, frames::END_HEADERS, call.stream, &block);
            bytes.extend(frame(frames::DATA, 0, call.stream, &message(b"first")));
            frames::send(&mut stream, &bytes).await;
            // Read before it goes, or a reset would overtake it.
            sleep(Duration::from_millis(300)).await;
            if reset {
                raw::reset(stream);
            }
        });
        let proxy = Setup::http(upstream.await).http2().start().await;
        let client = Client::connect(proxy.address).await;
        let reply = client.call("/s/Watch").await.expect("a head");
        assert_failed("dead peer", &reply, 14);
        assert_eq!(reply.body, message(b"first"));
        let log = proxy.access_log(1).await;
        assert_eq!(log[0]["grpc_status"], 14, "{log:?}");
    }
}

/// Everything up to the documented limit comes through whole, in trailers and in a head without
/// content; beyond it the call fails by a status that names the limit.
#[tokio::test]
async fn gr_02_large_trailers() {
    let (upstream, connections) = stream::serve(|request, mut respond| async move {
        let path = request.uri().path().to_owned();
        let (_, alone, kilobytes) = split(&path);
        if kilobytes == 0 {
            return finish(respond, Bytes::from(message(b"small")), grpc_trailers(0));
        }
        let mut status = grpc_trailers(5);
        let details = vec![b'd'; kilobytes * 1000];
        let details = HeaderValue::from_bytes(&details).expect("a value");
        status.insert("grpc-status-details-bin", details);
        if alone {
            let mut head = grpc_head();
            head.headers_mut().extend(status);
            let _sent = respond.send_response(head, true);
        } else {
            finish(respond, Bytes::from(message(b"one")), status);
        }
    })
    .await;
    let proxy = Setup::http(upstream).http2().start().await;
    let client = Client::connect(proxy.address).await;
    for kilobytes in [4, 8, 12, 16, 20, 40, 63, 70, 80] {
        for way in ["alone", "after"] {
            let reply = client.call(&format!("/{way}/{kilobytes}")).await;
            let reply = reply.unwrap_or_else(|e| panic!("{way} {kilobytes}: {e}"));
            assert_eq!(reply.grpc(), Some(5), "{way} {kilobytes}");
            let block = reply.trailers.as_ref().unwrap_or(&reply.headers);
            let details = block["grpc-status-details-bin"].as_bytes();
            assert_eq!(details.len(), kilobytes * 1000, "{way} {kilobytes}");
        }
    }
    for kilobytes in [90, 200] {
        for way in ["alone", "after"] {
            let reply = client.call(&format!("/{way}/{kilobytes}")).await;
            let reply = reply.unwrap_or_else(|e| panic!("{way} {kilobytes}: {e}"));
            assert_eq!(reply.grpc(), Some(8), "{way} {kilobytes}: {reply:?}");
            let named = reply.grpc_message().contains("81920");
            assert!(named, "{way} {kilobytes}: {reply:?}");
        }
    }
    let reply = client.call("/after/0").await.expect("a reply");
    assert_eq!(reply.grpc(), Some(0), "{reply:?}");
    let used = connections.load(Ordering::Relaxed);
    assert_eq!(used, 1, "no connection was lost over it");
}

fn split(path: &str) -> (&str, bool, usize) {
    let (way, size) = path
        .trim_start_matches('/')
        .split_once('/')
        .expect("two parts");
    (way, way == "alone", size.parse().expect("a size"))
}

#[tokio::test]
async fn gr_02_long_messages() {
    let text = "%C3%A9".repeat(2000);
    let copy = text.clone();
    let (upstream, _) = stream::serve(move |_, mut respond| {
        let text = copy.clone();
        async move {
            let mut head = grpc_head();
            head.headers_mut().extend(grpc_trailers(3));
            let message = HeaderValue::from_str(&text).expect("a value");
            head.headers_mut().insert("grpc-message", message);
            let _sent = respond.send_response(head, true);
        }
    })
    .await;
    let proxy = Setup::http(upstream).http2().start().await;
    let reply = Client::connect(proxy.address).await.call("/s/M").await;
    let reply = reply.expect("a reply");
    assert_eq!(reply.grpc(), Some(3));
    assert_eq!(reply.grpc_message(), text);
    assert_eq!(reply.headers["content-type"], "application/grpc");
}

/// Fails twice with a head first and the status in trailers right behind it, then succeeds.
#[tokio::test]
async fn gr_03_a_status_in_trailers_is_retried() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let (upstream, _) = stream::serve(move |request, mut respond| {
        let nth = counted.fetch_add(1, Ordering::Relaxed);
        async move {
            let (body, ..) = stream::receive(&mut request.into_body()).await;
            if nth < 2 {
                let mut stream = respond.send_response(grpc_head(), false).expect("sent");
                let _sent = stream.send_trailers(grpc_trailers(14));
            } else {
                finish(respond, body, grpc_trailers(0));
            }
        }
    })
    .await;
    let policy = json!({"retry_policy": {
        "retry_on": "unavailable", "num_retries": 3,
        "retry_back_off": {"base_interval": "0.001s", "max_interval": "0.002s"},
    }});
    let proxy = Setup::http(upstream).http2().route(&policy).start().await;
    let client = Client::connect(proxy.address).await;
    let reply = client.call("/s/M").await.expect("a reply");
    assert_eq!(reply.grpc(), Some(0), "{reply:?}");
    assert_eq!(
        reply.body,
        message(b"hello"),
        "the message went along each time"
    );
    assert_eq!(calls.load(Ordering::Relaxed), 3);
}

/// Once a message went to the caller the call is committed, and waiting for what may decide about a
/// retry holds no answer up.
#[tokio::test]
async fn gr_03_streams_are_neither_retried_nor_held_up() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let (upstream, _) = stream::serve(move |request, mut respond| {
        counted.fetch_add(1, Ordering::Relaxed);
        async move {
            let quiet = request.uri().path() == "/s/Quiet";
            let mut stream = respond.send_response(grpc_head(), false).expect("sent");
            if !quiet {
                stream
                    .send_data(Bytes::from(message(b"one")), false)
                    .expect("sent");
            }
            sleep(Duration::from_secs(1)).await;
            let _sent = stream.send_trailers(grpc_trailers(14));
        }
    })
    .await;
    let policy = json!({"retry_policy": {"retry_on": "unavailable", "num_retries": 3}});
    let proxy = Setup::http(upstream).http2().route(&policy).start().await;
    let client = Client::connect(proxy.address).await;
    for path in ["/s/Stream", "/s/Quiet"] {
        let began = Instant::now();
        let (response, mut body) = client
            .open(client.call_head(path), false)
            .await
            .expect("open");
        body.send_data(Bytes::from(message(b"hello")), true)
            .expect("sent");
        let head = timeout(Duration::from_secs(5), response)
            .await
            .expect("in time");
        let held = began.elapsed();
        assert!(held < Duration::from_millis(900), "{path}: {held:?}");
        let mut rest = head.expect("a head").into_body();
        let (_, trailers, end) = stream::receive(&mut rest).await;
        assert!(end.is_ok(), "{path}");
        assert_eq!(trailers.expect("trailers")["grpc-status"], "14", "{path}");
    }
    assert_eq!(calls.load(Ordering::Relaxed), 2, "one each");
}

/// A stream outlives the route's time-out, and its idle time-out as long as anything moves in
/// either direction.
#[tokio::test]
async fn gr_05_streams_outlive_the_request_timeout() {
    let (upstream, _) = stream::serve(|request, mut respond| async move {
        let mut stream = respond.send_response(grpc_head(), false).expect("sent");
        let mut body = request.into_body();
        // Answers every other message, so that each direction is alone for a while.
        let mut seen = 0;
        while let Some(Ok(piece)) = body.data().await {
            let _given = body.flow_control().release_capacity(piece.len());
            seen += 1;
            if seen % 2 == 0 {
                stream.send_data(piece, false).expect("sent");
            }
        }
        let _sent = stream.send_trailers(grpc_trailers(0));
    })
    .await;
    let limits = json!({"timeout": "0.4s", "idle_timeout": "0.8s"});
    let proxy = Setup::http(upstream).http2().route(&limits).start().await;
    let client = Client::connect(proxy.address).await;
    let head = client.call_head("/s/Bidi");
    let (response, mut body) = client.open(head, false).await.expect("open");
    let receiving = tokio::spawn(stream::reply(response));
    for n in 0..10_u8 {
        body.send_data(Bytes::from(message(&[n])), false)
            .expect("sent");
        sleep(Duration::from_millis(250)).await;
    }
    body.send_data(Bytes::new(), true).expect("sent");
    let reply = receiving.await.expect("no panic").expect("a head");
    assert_eq!(reply.grpc(), Some(0), "{reply:?}");
    assert_eq!(reply.body.len(), 5 * 6);
}

/// SIGTERM with streams open: those that end by themselves end well, those over the limit get a
/// status, and the process ends when the last one has.
#[tokio::test]
async fn gr_06_streams_and_drain() {
    let (upstream, _) = stream::serve(|request, mut respond| async move {
        let path = request.uri().path().to_owned();
        let wait: u64 = path
            .trim_start_matches("/s/")
            .parse()
            .expect("milliseconds");
        let mut body = respond.send_response(grpc_head(), false).expect("sent");
        body.send_data(Bytes::from(message(b"one")), false)
            .expect("sent");
        sleep(Duration::from_millis(wait)).await;
        let _sent = body.send_trailers(grpc_trailers(0));
    })
    .await;
    let flags = ["--drain-delay", "0ms", "--drain-timeout", "3s"];
    let mut proxy = Setup::http(upstream).http2().flags(&flags).start().await;
    let mut ending = Vec::new();
    let mut staying = Vec::new();
    for n in 0..40 {
        let client = Client::connect(proxy.address).await;
        let path = if n % 10 == 9 {
            "/s/60000".to_owned()
        } else {
            format!("/s/{}", 50 * n)
        };
        let head = client.call_head(&path);
        let (response, _) = client.open(head, true).await.expect("open");
        let response = timeout(Duration::from_secs(10), response).await;
        let body = response.expect("in time").expect("a head").into_body();
        if n % 10 == 9 {
            &mut staying
        } else {
            &mut ending
        }
        .push((client, body));
    }
    let began = Instant::now();
    proxy.signal("TERM");
    for (_client, mut body) in ending {
        let (_, trailers, end) = stream::receive(&mut body).await;
        assert!(end.is_ok(), "{end:?}");
        assert_eq!(trailers.expect("trailers")["grpc-status"], "0");
    }
    let mut cut = tokio::task::JoinSet::new();
    for (client, mut body) in staying {
        cut.spawn(async move {
            let (_, trailers, end) = stream::receive(&mut body).await;
            assert!(end.is_ok(), "{end:?} after {:?}", began.elapsed());
            assert_eq!(trailers.expect("trailers")["grpc-status"], "14");
            drop(client);
            began.elapsed()
        });
    }
    let times = cut.join_all().await;
    let (first, last) = (times.iter().min(), times.iter().max());
    let spread = *last.expect("some") - *first.expect("some");
    assert!(
        spread >= Duration::from_millis(50),
        "all cut at once: {times:?}"
    );
    assert_eq!(proxy.ended(Duration::from_secs(10)).await, Some(0));
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(2), "cut too early: {took:?}");
}

#[tokio::test]
async fn gr_06_nothing_is_waited_for_when_nothing_is_left() {
    let flags = ["--drain-delay", "0ms", "--drain-timeout", "60s"];
    let mut proxy = Setup::http(echo().await)
        .http2()
        .flags(&flags)
        .start()
        .await;
    let client = Client::connect(proxy.address).await;
    client.call("/s/M").await.expect("a reply");
    proxy.signal("TERM");
    assert_eq!(proxy.ended(Duration::from_secs(10)).await, Some(0));
}

/// A server that sends without end and clients that do not read: the server has to stop, and
/// nobody's memory grows with what it would like to send.
#[tokio::test]
async fn gr_09_slow_readers_hold_the_server_back() {
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    let (upstream, _) = stream::serve(move |_, mut respond: SendResponse<Bytes>| {
        let counted = Arc::clone(&counted);
        async move {
            let mut body = respond.send_response(grpc_head(), false).expect("sent");
            let piece = Bytes::from(vec![b'x'; 64 * 1024]);
            while stream::send_all(&mut body, piece.clone(), false)
                .await
                .is_ok()
            {
                counted.fetch_add(piece.len(), Ordering::Relaxed);
            }
        }
    })
    .await;
    // Two proxies, as between two pods.
    let inner = Setup::http(upstream).http2().start().await;
    let outer = Setup::http(inner.address).http2().start().await;
    let (before_inner, before_outer) = (inner.resident(), outer.resident());
    let builder = h2::client::Builder::new();
    let mut readers = Vec::new();
    for _ in 0..40 {
        let client = Client::with(outer.address, &builder).await;
        let head = client.call_head("/s/Endless");
        let (response, _) = client.open(head, true).await.expect("open");
        let response = timeout(Duration::from_secs(10), response).await;
        let mut body = response.expect("in time").expect("a head").into_body();
        let _first = body.data().await.expect("a piece").expect("a piece");
        readers.push((client, body));
    }
    let mut last = 0;
    for _ in 0..50 {
        sleep(Duration::from_millis(200)).await;
        let now = sent.swap(0, Ordering::Relaxed) + last;
        if now == last && now > 0 {
            break;
        }
        last = now;
    }
    sleep(Duration::from_millis(500)).await;
    assert_eq!(sent.load(Ordering::Relaxed), 0, "the server still sends");
    // A window and the send buffer of each leg, for each stream, and what the allocator keeps.
    let most = 40 * (256 + 128 + 128) * 1024 + (16 << 20);
    for (name, before, proxy) in [
        ("inner", before_inner, &inner),
        ("outer", before_outer, &outer),
    ] {
        let grown = proxy.resident().saturating_sub(before);
        assert!(grown < most, "{name} grew by {} KiB", grown / 1024);
    }
    let mut probe = outer.connect().await;
    raw::write(&mut probe, b"GET /healthy HTTP/1.0\r\n\r\n").await;
    assert!(probe.read_u8().await.is_ok(), "still answers");
}

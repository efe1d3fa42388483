//! Group B: CONNECT and switches of protocol inside HTTP/2.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Method, Request, StatusCode, Version};
use outrigger_tests::loopback::{
    Proxy, Setup,
    frames::{self, frame},
    h2::{self as stream, Client, send_all},
    raw,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{sleep, timeout},
};

fn connect(proxy: &Proxy, protocol: Option<&'static str>) -> Request<()> {
    let mut request = Request::builder()
        .method(Method::CONNECT)
        .version(Version::HTTP_2);
    request = match protocol {
        Some(_) => request.uri(format!("http://{}/chat", proxy.address)),
        None => request.uri("db.internal:5432"),
    };
    let mut request = request.body(()).expect("a request");
    if let Some(protocol) = protocol {
        request
            .extensions_mut()
            .insert(h2::ext::Protocol::from_static(protocol));
    }
    request
}

/// Echoes until its client ends, then ends.
async fn echo(stream: TcpStream) {
    let (mut reader, mut writer) = stream.into_split();
    let _copied = tokio::io::copy(&mut reader, &mut writer).await;
    let _gone = writer.shutdown().await;
}

/// A server of tunnels in HTTP/1.1: takes a CONNECT with 200, a WebSocket with 101.
async fn tunnels() -> SocketAddr {
    raw::serve(|mut stream, _| async move {
        let head = raw::read_head(&mut stream).await;
        let answer = match head.split(' ').next() {
            Some("CONNECT") => {
                assert!(
                    head.starts_with("CONNECT db.internal:5432 HTTP/1.1\r\n"),
                    "{head}"
                );
                "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_owned()
            }
            _ if head.starts_with("GET /chat HTTP/1.1") => {
                let field = |name| raw::field(&head, name).unwrap_or_default();
                assert_eq!(field("upgrade"), "websocket", "{head}");
                assert_eq!(field("connection"), "upgrade", "{head}");
                assert_eq!(field("sec-websocket-key").len(), 24, "{head}");
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
                 upgrade: websocket\r\nsec-websocket-accept: x\r\n\r\n"
                    .to_owned()
            }
            _ => "HTTP/1.1 404 Not Found\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
                .to_owned(),
        };
        raw::write(&mut stream, answer.as_bytes()).await;
        echo(stream).await;
    })
    .await
}

/// A client that knows what the proxy's settings allow.
async fn client(proxy: &Proxy) -> Client {
    let client = Client::connect(proxy.address).await;
    // The proxy's settings have come once something was answered.
    let _any = client.get("/nothing").await;
    client
}

#[tokio::test]
async fn h2_16_a_websocket_in_http2_reaches_a_server_of_http1() {
    let proxy = Setup::http(tunnels().await).start().await;
    let client = client(&proxy).await;
    echoes(&client, connect(&proxy, Some("websocket"))).await;
}

#[tokio::test]
async fn h2_16_a_connect_reaches_a_server_of_http1() {
    let proxy = Setup::http(tunnels().await).start().await;
    echoes(&client(&proxy).await, connect(&proxy, None)).await;
}

#[tokio::test]
async fn h2_16_a_connect_passes_two_proxies_in_http2() {
    let inner = Setup::http(tunnels().await).start().await;
    let outer = Setup::http(inner.address).http2().start().await;
    echoes(&client(&outer).await, connect(&outer, None)).await;
}

/// A megabyte there and back, then the client's end, which has to come back as the server's.
async fn echoes(client: &Client, request: Request<()>) {
    let (response, mut body) = client.open(request, false).await.expect("open");
    let response = timeout(Duration::from_secs(5), response)
        .await
        .expect("in time");
    let response = response.expect("a head");
    assert_eq!(response.status(), StatusCode::OK);
    for name in [
        "connection",
        "upgrade",
        "content-length",
        "sec-websocket-accept",
    ] {
        assert!(!response.headers().contains_key(name), "{name}");
    }
    let data: Bytes = (0..1 << 20).map(|n: u32| n.to_le_bytes()[1]).collect();
    let copy = data.clone();
    let sending = tokio::spawn(async move {
        send_all(&mut body, copy, true).await.expect("sent");
    });
    let mut back = response.into_body();
    let (back, _, end) = stream::receive(&mut back).await;
    end.expect("an end");
    assert!(back == data, "the echo differs: {} bytes", back.len());
    sending.await.expect("sent");
}

#[tokio::test]
async fn h2_16_what_is_not_known_is_refused_by_a_status() {
    let proxy = Setup::http(tunnels().await).start().await;
    let client = client(&proxy).await;
    let request = connect(&proxy, Some("connect-udp"));
    let (response, _) = client.open(request, false).await.expect("open");
    let response = timeout(Duration::from_secs(5), response)
        .await
        .expect("in time");
    assert_eq!(
        response.expect("a head").status(),
        StatusCode::NOT_IMPLEMENTED
    );
}

/// A server that does not switch must not look as if it had: to an extended CONNECT, 200 says so.
#[tokio::test]
async fn h2_16_a_switch_that_did_not_happen_is_not_reported() {
    let upstream = raw::serve(|mut stream, _| async move {
        while raw::try_read_head(&mut stream).await.is_some() {
            raw::write(
                &mut stream,
                b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nhtml",
            )
            .await;
        }
    });
    let proxy = Setup::http(upstream.await).start().await;
    let client = client(&proxy).await;
    let request = connect(&proxy, Some("websocket"));
    let (response, _body) = client.open(request, false).await.expect("open");
    let reply = stream::reply(response).await.expect("a head");
    assert_eq!(reply.status, StatusCode::BAD_GATEWAY);
}

/// A tunnel whose far end is reset is cut, on whichever leg that happened.
#[tokio::test]
async fn h2_08_a_reset_is_no_end_in_a_tunnel() {
    let one = raw::serve(|mut stream, _| async move {
        raw::read_head(&mut stream).await;
        raw::write(&mut stream, b"HTTP/1.1 200 OK\r\n\r\npart of it").await;
        sleep(Duration::from_millis(200)).await;
        raw::reset(stream);
    });
    let two = raw::serve(|mut stream, _| async move {
        frames::welcome(&mut stream, &[]).await;
        while let Some(request) = frames::until(&mut stream, frames::HEADERS).await {
            let id = request.stream;
            let block = frames::block(&[(":status", "200")]);
            let mut bytes = frame(frames::HEADERS, frames::END_HEADERS, id, &block);
            bytes.extend(frame(frames::DATA, 0, id, b"part of it"));
            bytes.extend(frame(frames::RST_STREAM, 0, id, &8_u32.to_be_bytes()));
            frames::send(&mut stream, &bytes).await;
        }
    });
    let one = Setup::http(one.await).start().await;
    let two = Setup::http(two.await).http2().start().await;
    for (leg, proxy) in [("HTTP/1.1", &one), ("HTTP/2", &two)] {
        let client = Client::connect(proxy.address).await;
        let (response, _body) = client
            .open(connect(proxy, None), false)
            .await
            .expect("open");
        let response = timeout(Duration::from_secs(5), response)
            .await
            .expect("in time");
        let mut body = response.expect("a head").into_body();
        let (_, _, end) = timeout(Duration::from_secs(5), stream::receive(&mut body))
            .await
            .expect("in time");
        let error = end.expect_err("the tunnel was cut");
        assert!(error.is_reset(), "{leg}: {error}");
    }
}

/// And the other way about: a client that resets its stream resets the far end.
#[tokio::test]
async fn h2_08_a_client_that_resets_a_tunnel_resets_its_far_end() {
    let (told, ended) = tokio::sync::oneshot::channel();
    let told = std::sync::Mutex::new(Some(told));
    let upstream = raw::serve(move |mut stream, _| {
        let told = told.lock().expect("one thread").take();
        async move {
            raw::read_head(&mut stream).await;
            raw::write(&mut stream, b"HTTP/1.1 200 OK\r\n\r\n").await;
            let mut byte = [0];
            let end = stream.read(&mut byte).await.map_err(|error| error.kind());
            let _told = told.map(|told| told.send(end));
        }
    });
    let proxy = Setup::http(upstream.await).start().await;
    let client = Client::connect(proxy.address).await;
    let (response, mut body) = client
        .open(connect(&proxy, None), false)
        .await
        .expect("open");
    let response = timeout(Duration::from_secs(5), response)
        .await
        .expect("in time");
    assert_eq!(response.expect("a head").status(), StatusCode::OK);
    body.send_reset(h2::Reason::CANCEL);
    let end = timeout(Duration::from_secs(5), ended)
        .await
        .expect("in time")
        .expect("told");
    assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset));
}

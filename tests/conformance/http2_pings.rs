//! Group B: PINGs, each between two neighbours.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use outrigger_tests::loopback::{
    Setup,
    frames::{self, frame},
    h2::{self as stream, Client, message},
    raw,
};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

/// Pings a peer every 200 ms and gives it half a second to answer.
fn keepalive() -> serde_json::Value {
    json!({"connection_keepalive": {"interval": "0.2s", "timeout": "0.5s"}})
}

const END: u8 = frames::END_HEADERS | frames::END_STREAM;

/// Pings that came on each connection.
type Pings = Arc<[AtomicUsize; 4]>;

/// An endpoint that counts PINGs, answers `/quick` at once and keeps the rest open.
async fn counting(calm: bool) -> (std::net::SocketAddr, Pings) {
    let pings = Pings::default();
    let counted = Arc::clone(&pings);
    let address = raw::serve(move |mut stream, nth| {
        let counted = Arc::clone(&counted);
        async move {
            frames::welcome(&mut stream, &[]).await;
            while let Some(next) = frames::next(&mut stream).await {
                if next.kind == frames::PING && next.flags & frames::ACK == 0 {
                    let count = counted[nth.min(3)].fetch_add(1, Ordering::Relaxed);
                    if calm && nth == 0 && count == 1 {
                        let mut last = 1_u32.to_be_bytes().to_vec();
                        last.extend(11_u32.to_be_bytes());
                        last.extend(b"too_many_pings");
                        frames::send(&mut stream, &frame(frames::GOAWAY, 0, 0, &last)).await;
                        return;
                    }
                }
                if next.kind == frames::HEADERS && next.flags & frames::END_STREAM != 0 {
                    let block = frames::block(&[(":status", "200")]);
                    let head = frame(frames::HEADERS, END, next.stream, &block);
                    frames::send(&mut stream, &head).await;
                }
            }
        }
    });
    (address.await, pings)
}

#[tokio::test]
async fn h2_15_nothing_is_pinged_without_streams() {
    let (upstream, pings) = counting(false).await;
    let proxy = Setup::http(upstream).http2_with(&keepalive()).start().await;
    let client = Client::connect(proxy.address).await;
    client.get("/quick").await.expect("a reply");
    sleep(Duration::from_millis(1500)).await;
    assert_eq!(pings[0].load(Ordering::Relaxed), 0);
    // With one open, there is somebody to ask for.
    let head = client.call_head("/s/Stream");
    let (_response, mut body) = client.open(head, false).await.expect("open");
    body.send_data(Bytes::from(message(b"m")), false)
        .expect("sent");
    sleep(Duration::from_millis(1500)).await;
    let count = pings[0].load(Ordering::Relaxed);
    assert!((2..=8).contains(&count), "{count} pings in 1.5 s");
}

#[tokio::test]
async fn h2_15_who_finds_it_too_much_is_pinged_half_as_often() {
    let (upstream, pings) = counting(true).await;
    let proxy = Setup::http(upstream).http2_with(&keepalive()).start().await;
    let client = Client::connect(proxy.address).await;
    for _ in 0..2 {
        let head = client.call_head("/s/Stream");
        let (response, mut body) = client.open(head, false).await.expect("open");
        body.send_data(Bytes::from(message(b"m")), false)
            .expect("sent");
        let _ended = timeout(Duration::from_millis(2200), response).await;
    }
    assert_eq!(pings[0].load(Ordering::Relaxed), 2);
    // Every 400 ms from now on.
    let count = pings[1].load(Ordering::Relaxed);
    assert!((2..=6).contains(&count), "{count} pings in 2.2 s");
}

#[tokio::test]
async fn h2_15_a_peer_that_does_not_answer_is_given_up() {
    let upstream = raw::serve(|mut stream, _| async move {
        frames::welcome(&mut stream, &[]).await;
        // The machine is gone; its kernel says nothing.
        sleep(Duration::from_secs(60)).await;
    });
    let proxy = Setup::http(upstream.await)
        .http2_with(&keepalive())
        .start()
        .await;
    let client = Client::connect(proxy.address).await;
    let began = Instant::now();
    let reply = client.call("/s/M").await.expect("a reply");
    assert_eq!(reply.grpc(), Some(14), "{reply:?}");
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
}

/// The client's own PINGs are answered here and not passed on.
#[tokio::test]
async fn h2_15_pings_of_a_client_end_here() {
    let (upstream, pings) = counting(false).await;
    let proxy = Setup::http(upstream).http2().start().await;
    let other = Client::connect(proxy.address).await;
    other.get("/quick").await.expect("a reply");
    let mut client = proxy.connect().await;
    frames::greet(&mut client).await;
    for n in 0..20_u64 {
        frames::send(&mut client, &frame(frames::PING, 0, 0, &n.to_be_bytes())).await;
        let pong = frames::until(&mut client, frames::PING)
            .await
            .expect("an answer");
        assert_eq!(
            (pong.flags, pong.payload),
            (frames::ACK, n.to_be_bytes().to_vec())
        );
    }
    assert_eq!(pings[0].load(Ordering::Relaxed), 0);
}

/// A whole exchange still works beside pings in both directions.
#[tokio::test]
async fn h2_15_pings_disturb_no_exchange() {
    let (upstream, _) = stream::serve(|request, respond| async move {
        let (body, ..) = stream::receive(&mut request.into_body()).await;
        assert_eq!(body.len(), 1 << 20);
        sleep(Duration::from_millis(700)).await;
        stream::answer(respond, 200, b"done");
    })
    .await;
    let proxy = Setup::http(upstream).http2_with(&keepalive()).start().await;
    let client = Client::connect(proxy.address).await;
    let head = client.request(http::Method::POST, "/");
    let reply = client
        .send(head, &vec![b'x'; 1 << 20])
        .await
        .expect("a reply");
    assert_eq!(reply.body, "done");
}

//! Group LB: which endpoint is asked.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use outrigger_tests::loopback::{
    Proxy, Setup,
    certs::{self, Authority, DB, Files, MESH_HTTP, STRANGER, WEB, dials},
    h2::{self as stream, Client},
    raw,
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{Instant, sleep},
};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// A server with mutual TLS: the bytes of applications that reached it, and its handshakes.
async fn secured(
    acceptor: tokio_rustls::TlsAcceptor,
) -> (SocketAddr, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let (bytes, met) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let (counted, shaken) = (Arc::clone(&bytes), Arc::clone(&met));
    let address = raw::serve(move |tcp, _| {
        let (acceptor, counted) = (acceptor.clone(), Arc::clone(&counted));
        let shaken = Arc::clone(&shaken);
        async move {
            shaken.fetch_add(1, Relaxed);
            let Ok(mut tls) = acceptor.accept(tcp).await else {
                return;
            };
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = tls.read(&mut buffer).await {
                counted.fetch_add(n, Relaxed);
                if buffer[..n].windows(4).any(|four| four == b"\r\n\r\n") {
                    let _gone = tls.write_all(OK).await;
                    let _gone = tls.flush().await;
                }
            }
        }
    })
    .await;
    (address, bytes, met)
}

async fn post(proxy: &Proxy) -> u16 {
    let mut client = proxy.connect().await;
    raw::write(
        &mut client,
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n",
    )
    .await;
    raw::status(&raw::read_response(&mut client).await.0)
}

#[tokio::test(flavor = "multi_thread")]
async fn lb_01_an_address_that_belongs_to_somebody_else_now_gets_no_byte() {
    let ca = Authority::new("mesh");
    let files = Files::new(&ca.leaf(WEB), &[&ca]);
    let own = certs::server(&ca.leaf(DB), &[&ca], &MESH_HTTP[1..]);
    let other = certs::server(&ca.leaf(STRANGER), &[&ca], &MESH_HTTP[1..]);
    let (right, served, _) = secured(own).await;
    let (reused, leaked, met) = secured(other).await;
    let proxy = Setup::http(right)
        .endpoints(&[reused, right])
        .cluster(&dials(DB))
        .cluster(&json!({"lb_policy": "ROUND_ROBIN"}))
        .identity(&files)
        .start()
        .await;
    for n in 0..20 {
        assert_eq!(post(&proxy).await, 200, "POST {n}");
    }
    assert!(met.load(Relaxed) > 0, "the wrong one was never tried");
    assert_eq!(leaked.load(Relaxed), 0, "bytes that reached the wrong one");
    assert!(served.load(Relaxed) > 0);

    // With nobody else there, the cause is told apart from all others.
    let alone = Setup::http(reused)
        .cluster(&dials(DB))
        .identity(&files)
        .start()
        .await;
    assert_eq!(post(&alone).await, 503);
    let log = alone.access_log(1).await;
    assert_eq!(log[0]["cause"], "PeerIdentityMismatch", "{log:#?}");
    assert!(log[0]["details"].to_string().contains(STRANGER), "{log:#?}");
    assert_eq!(leaked.load(Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn lb_06_who_fails_fast_is_not_taken_for_fast() {
    let mut counts = Vec::new();
    let mut all = Vec::new();
    for n in 0..4 {
        let count = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&count);
        let address = raw::serve(move |mut tcp, _| {
            let counted = Arc::clone(&counted);
            async move {
                while raw::try_read_head(&mut tcp).await.is_some() {
                    counted.fetch_add(1, Relaxed);
                    if n == 0 {
                        let bad = b"HTTP/1.1 503 Bad\r\ncontent-length: 0\r\n\r\n";
                        raw::write(&mut tcp, bad).await;
                    } else {
                        sleep(Duration::from_millis(30)).await;
                        raw::write(&mut tcp, OK).await;
                    }
                }
            }
        });
        all.push(address.await);
        counts.push(count);
    }
    let proxy = Setup::http(all[0])
        .endpoints(&all)
        .cluster(
            &json!({"load_balancing_policy": {"policies": [{"typed_extension_config": {
                "name": "outrigger.peak_ewma",
                "typed_config": {
                    "@type": "type.googleapis.com/outrigger.extensions.v1.PeakEwma",
                },
            }}]}}),
        )
        .start()
        .await;
    let clients = (0..8).map(|_| async {
        let mut client = proxy.connect().await;
        for _ in 0..40 {
            raw::write(&mut client, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
            raw::read_response(&mut client).await;
        }
    });
    futures_util::future::join_all(clients).await;
    let counts: Vec<_> = counts.iter().map(|count| count.load(Relaxed)).collect();
    let total: usize = counts.iter().sum();
    assert!(counts[0] * 4 < total, "the failing one's share: {counts:?}");
    for good in &counts[1..] {
        assert!(good * 10 > total, "a good one's share: {counts:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lb_09_a_thousand_requests_at_once_share_few_connections() {
    const STREAMS: usize = 1000;
    let (app, connections) = stream::serve(|_, respond| async move {
        sleep(Duration::from_millis(50)).await;
        stream::answer(respond, 200, b"ok");
    })
    .await;
    let proxy = Setup::http(app).http2().start().await;
    let began = Instant::now();
    let clients = (0..20).map(|_| async {
        let client = Client::connect(proxy.address).await;
        let all = (0..STREAMS / 20).map(|_| client.get("/"));
        for reply in futures_util::future::join_all(all).await {
            assert_eq!(reply.expect("a reply").status.as_u16(), 200);
        }
    });
    futures_util::future::join_all(clients).await;
    let opened = connections.load(Relaxed);
    eprintln!(
        "{STREAMS} requests in {:?} over {opened} connections",
        began.elapsed()
    );
    assert!((1..=24).contains(&opened), "{opened} connections");
}

#[tokio::test(flavor = "multi_thread")]
async fn lb_09_when_the_one_endpoint_refuses_all_who_wait_are_told() {
    let (nobody, _socket) = raw::nobody();
    let proxy = Setup::http(nobody).http2().start().await;
    let client = Client::connect(proxy.address).await;
    let all = (0..100).map(|_| client.get("/"));
    for reply in futures_util::future::join_all(all).await {
        assert_eq!(reply.expect("a reply").status.as_u16(), 503);
    }
    let log = proxy.access_log(100).await;
    assert!(
        log.iter().all(|line| line["cause"] == "ConnectFailed"),
        "{log:#?}"
    );
}

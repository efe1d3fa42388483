//! Group D: how long opaque connections live, dead nodes, and what is left of them.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use outrigger_proto::type_url;
use outrigger_tests::loopback::{Proxy, Setup, raw};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use crate::tcp::{Path, STEP, greeter, is_reset};

#[tokio::test(flavor = "multi_thread")]
async fn tc_05_an_idle_connection_ends_and_a_busy_one_does_not() {
    let app = raw::serve(|stream, _| async move {
        let (mut reader, mut writer) = stream.into_split();
        let _gone = tokio::io::copy(&mut reader, &mut writer).await;
    })
    .await;
    let setup = Setup::tcp(app).filter(&json!({"idle_timeout": "1s"}));
    let path = Path::of(setup).await;
    let began = Instant::now();
    let (mut busy, mut idle) = (path.connect().await, path.connect().await);
    let watched = tokio::spawn(async move {
        let (_, end) = raw::read_to_end(&mut idle).await;
        (end, began.elapsed())
    });
    for _ in 0..12 {
        raw::write(&mut busy, b"x").await;
        raw::read_exact(&mut busy, 1).await;
        sleep(Duration::from_millis(250)).await;
    }
    let (end, took) = watched.await.expect("watched");
    assert!(is_reset(&end), "{end:?}");
    assert!(
        took >= Duration::from_secs(1) && took < Duration::from_secs(3),
        "{took:?}"
    );
}

/// The state of the kernel's timer of each open socket that has this address at either end (`tr` of
/// `/proc/net/tcp`).
fn timers(address: SocketAddr) -> Vec<String> {
    let SocketAddr::V4(address) = address else {
        panic!("{address} is not of IPv4");
    };
    let ip = u32::from_le_bytes(address.ip().octets());
    let wanted = format!("{ip:08X}:{:04X}", address.port());
    let table = std::fs::read_to_string("/proc/net/tcp").expect("a table");
    let sockets = table.lines().skip(1).map(str::split_whitespace);
    sockets
        .filter_map(|fields| {
            let fields: Vec<_> = fields.collect();
            let ends = [*fields.get(1)?, *fields.get(2)?];
            let open = fields.get(3) == Some(&"01");
            let timer = *fields.get(5)?;
            (open && ends.contains(&wanted.as_str())).then(|| timer.to_owned())
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn tc_05_the_kernel_watches_over_both_legs() {
    let (keep, mut connected) = mpsc::unbounded_channel();
    let app = raw::serve(move |stream, _| {
        keep.send(stream).expect("a test");
        std::future::ready(())
    })
    .await;
    let path = Path::one(app).await;
    let mut client = path.connect().await;
    raw::write(&mut client, b"x").await;
    // The harness's own probe came before, and has ended.
    let mut kept = Vec::new();
    loop {
        let next = timeout(STEP, connected.recv()).await.expect("in time");
        let mut app_side = next.expect("a connection");
        let got = timeout(STEP, app_side.read(&mut [0]))
            .await
            .expect("in time");
        kept.push(app_side);
        if got.expect("read") == 1 {
            break;
        }
    }
    sleep(Duration::from_millis(500)).await;
    // Two ends of a connection each; the proxy's has its keepalive timer (02) running.
    for address in [path.enter, app] {
        let all = timers(address);
        let watched = all.iter().filter(|timer| timer.starts_with("02:")).count();
        assert_eq!(watched, 1, "{address}: {all:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tc_06_an_idle_or_half_closed_connection_does_not_keep_the_proxy_alive() {
    let app = raw::serve(|stream, _| async move {
        sleep(Duration::from_secs(60)).await;
        drop(stream);
    })
    .await;
    let flags = ["--drain-timeout", "1s", "--drain-delay", "0ms"];
    let mut proxy = Setup::tcp(app).flags(&flags).start().await;
    let (mut idle, mut half) = (proxy.connect().await, proxy.connect().await);
    raw::write(&mut idle, b"x").await;
    half.shutdown().await.expect("half closed");
    sleep(Duration::from_millis(300)).await;
    let began = Instant::now();
    proxy.signal("TERM");
    let code = proxy.ended(Duration::from_secs(10)).await;
    let took = began.elapsed();
    assert_eq!(code, Some(0));
    assert!(
        took >= Duration::from_millis(900),
        "{took:?}: it was given its time"
    );
    assert!(took < Duration::from_secs(5), "{took:?}");
    let (_, end) = raw::read_to_end(&mut idle).await;
    assert!(is_reset(&end), "a cut connection is no whole one: {end:?}");
}

/// Answers nothing, not even a SYN: its queue of one is full.
async fn black_hole() -> (SocketAddr, Vec<TcpStream>, std::net::TcpListener) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let socket = socket.expect("a socket");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    socket.bind(&any.into()).expect("a port");
    socket.listen(0).expect("listening");
    let listener: std::net::TcpListener = socket.into();
    let address = listener.local_addr().expect("an address");
    let mut filling = Vec::new();
    while let Ok(Ok(one)) = timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
        filling.push(one);
        assert!(filling.len() < 64, "the queue has no end");
    }
    (address, filling, listener)
}

/// Answers each request with 200.
async fn good() -> SocketAddr {
    raw::serve(|mut stream, _| async move {
        while raw::try_read_head(&mut stream).await.is_some() {
            raw::write(
                &mut stream,
                b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            )
            .await;
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn tc_07_a_dead_node_costs_no_request_more_than_the_time_to_connect() {
    let (hole, _filling, _listener) = black_hole().await;
    let all = [hole, good().await, good().await];
    let proxy = Setup::http(hole)
        .endpoints(&all)
        .cluster(&json!({"connect_timeout": "0.5s", "lb_policy": "ROUND_ROBIN"}))
        .start()
        .await;
    let mut met = 0;
    for _ in 0..9 {
        let mut client = proxy.connect().await;
        let began = Instant::now();
        raw::write(
            &mut client,
            b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n",
        )
        .await;
        let (head, _) = raw::read_response(&mut client).await;
        assert_eq!(
            raw::status(&head),
            200,
            "nothing was sent, so a POST goes again"
        );
        let took = began.elapsed();
        assert!(took < Duration::from_secs(3), "{took:?}");
        met += usize::from(took >= Duration::from_millis(450));
    }
    // A retry takes a turn too, so that of three endpoints the dead one is the first of every other
    // request.
    assert!(
        (1..=5).contains(&met),
        "the dead node was met {met} times of 9"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tc_07_opaque_connections_go_to_another_endpoint_as_well() {
    let (hole, _filling, _listener) = black_hole().await;
    let all = [hole, greeter().await];
    let setup = Setup::tcp(hole).endpoints(&all);
    let setup = setup.cluster(&json!({"connect_timeout": "0.5s", "lb_policy": "ROUND_ROBIN"}));
    let path = Path::of(setup).await;
    for _ in 0..4 {
        let mut client = path.connect().await;
        assert_eq!(raw::read_exact(&mut client, 3).await, b"220");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tc_10_who_dials_the_redirect_port_itself_is_refused_at_once() {
    let reserved = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = reserved.local_addr().expect("an address").port();
    drop(reserved);
    let catch_all = json!({
        "name": "outbound", "traffic_direction": "OUTBOUND", "use_original_dst": true,
        "address": {"socket_address": {"address": "0.0.0.0", "port_value": port}},
        "default_filter_chain": {"filters": [{"name": "tcp", "typed_config": {
            "@type": type_url::TCP_PROXY, "stat_prefix": "test", "cluster": "anywhere",
        }}]},
    });
    let anywhere = json!({
        "name": "anywhere", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "1s",
    });
    let proxy = Setup::tcp(good().await)
        .with_listener(catch_all)
        .with_cluster(anywhere)
        .flags(&["--outbound-port", &port.to_string()])
        .start()
        .await;
    sleep(Duration::from_millis(200)).await;
    let files = proxy.descriptors();
    for _ in 0..20 {
        let target = (std::net::Ipv4Addr::LOCALHOST, port);
        // It may be refused before the client knows that it is connected.
        let Ok(mut client) = TcpStream::connect(target).await else {
            continue;
        };
        raw::write(&mut client, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let (said, _) = raw::read_to_end(&mut client).await;
        assert!(said.is_empty(), "{}", said.escape_ascii());
    }
    sleep(Duration::from_millis(200)).await;
    assert!(
        proxy.descriptors() <= files + 2,
        "{} of {files}",
        proxy.descriptors()
    );
    let told = proxy.faults(20).await;
    assert!(
        told.iter().all(|line| line["cause"] == "LoopDetected"),
        "{told:#?}"
    );
}

/// What is left of a proxy's files and threads of work when all connections have ended somehow.
#[tokio::test(flavor = "multi_thread")]
async fn lk_02_every_kind_of_end_gives_its_files_back_and_leaves_no_work() {
    let app = raw::serve(|mut stream, nth| async move {
        match nth % 4 {
            0 => raw::reset(stream),
            1 => drop(stream),
            2 => {
                let end = raw::read_to_end(&mut stream);
                let _end = timeout(Duration::from_millis(200), end).await;
            }
            _ => {
                raw::write(&mut stream, &[7; 200_000]).await;
                let _half = stream.shutdown().await;
                let end = raw::read_to_end(&mut stream);
                let _end = timeout(Duration::from_millis(200), end).await;
            }
        }
    })
    .await;
    let path = Arc::new(Path::two(app).await);
    sleep(Duration::from_millis(300)).await;
    let before: Vec<_> = path.proxies.iter().map(Proxy::descriptors).collect();
    for _ in 0..10 {
        let all = (0..40_usize).map(|n| {
            let path = Arc::clone(&path);
            async move {
                let mut client = path.connect().await;
                match n % 5 {
                    0 => raw::reset(client),
                    1 => drop(client),
                    2 => {
                        let _half = client.shutdown().await;
                        let _end = raw::read_to_end(&mut client).await;
                    }
                    3 => {
                        let mut buffer = [0; 100];
                        let some = client.read(&mut buffer);
                        let _some = timeout(Duration::from_millis(100), some).await;
                        raw::reset(client);
                    }
                    _ => {
                        raw::write(&mut client, &[1; 100_000]).await;
                    }
                }
            }
        });
        futures_util::future::join_all(all).await;
    }
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let now: Vec<_> = path.proxies.iter().map(Proxy::descriptors).collect();
        if now
            .iter()
            .zip(&before)
            .all(|(now, before)| now <= &(before + 2))
        {
            break;
        }
        assert!(
            Instant::now() < end,
            "files before {before:?}, after {now:?}"
        );
        sleep(Duration::from_millis(100)).await;
    }
    rests(&path.proxies).await;
}

/// LK-03: a proxy with nothing to do does nothing.
async fn rests(proxies: &[Proxy]) {
    for proxy in proxies {
        let began = proxy.cpu();
        sleep(Duration::from_secs(2)).await;
        let spent = proxy.cpu() - began;
        assert!(
            spent <= Duration::from_millis(40),
            "{spent:?} of 2 s when idle"
        );
    }
}

//! Half-closes, resets and idleness over in-memory streams.
use std::future::pending;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;

/// `(client, upstream, relay task)`.
fn rig(
    idle: Option<Duration>,
) -> (
    DuplexStream,
    DuplexStream,
    tokio::task::JoinHandle<(End, Moved)>,
) {
    let (client, down) = duplex(1024);
    let (upstream, up) = duplex(1024);
    let task = tokio::spawn(relay(Box::new(down), Box::new(up), idle, pending()));
    (client, upstream, task)
}

#[tokio::test(start_paused = true)]
async fn tc_01_the_client_may_end_first_and_still_get_its_answer() {
    let (mut client, mut upstream, task) = rig(None);
    let body = vec![7; 1_000_000];
    let sent = body.clone();
    let app = tokio::spawn(async move {
        let mut got = Vec::new();
        upstream.read_to_end(&mut got).await.expect("read");
        tokio::time::sleep(Duration::from_secs(3)).await;
        upstream.write_all(&got).await.expect("answered");
    });
    let (mut read, mut write) = tokio::io::split(&mut client);
    let mut got = Vec::new();
    let (sent, got_all) = tokio::join!(
        async {
            write.write_all(&sent).await?;
            write.shutdown().await
        },
        read.read_to_end(&mut got)
    );
    sent.expect("sent");
    got_all.expect("read");
    app.await.expect("the application");
    assert_eq!(got, body);
    let moved = Moved {
        up: 1_000_000,
        down: 1_000_000,
    };
    assert_eq!(task.await.expect("relay"), (End::Complete, moved));
}

#[tokio::test(start_paused = true)]
async fn tc_01_the_upstream_may_end_first_and_the_client_goes_on() {
    let (mut client, mut upstream, task) = rig(None);
    upstream.shutdown().await.expect("ended");
    let mut nothing = Vec::new();
    client.read_to_end(&mut nothing).await.expect("an end");
    let writer = tokio::spawn(async move {
        client.write_all(&[1; 10_000_000]).await.expect("sent");
        client.shutdown().await.expect("ended");
        client
    });
    let mut got = Vec::new();
    upstream.read_to_end(&mut got).await.expect("read");
    assert_eq!(got.len(), 10_000_000);
    let _client = writer.await.expect("client");
    assert_eq!(task.await.expect("relay").0, End::Complete);
}

#[tokio::test(start_paused = true)]
async fn tc_05_a_silent_connection_ends_after_its_limit_and_a_busy_one_does_not() {
    let (mut client, mut upstream, task) = rig(Some(Duration::from_secs(10)));
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_secs(8)).await;
        client.write_all(b"x").await.expect("sent");
        upstream.read_u8().await.expect("read");
    }
    let began = Instant::now();
    assert_eq!(task.await.expect("relay").0, End::Idle);
    assert!(began.elapsed() >= Duration::from_secs(10));
}

#[tokio::test(start_paused = true)]
async fn an_error_of_one_side_is_told_apart_from_an_end() {
    let (client, down) = duplex(64);
    let up = tokio_test_io::broken();
    let (end, _) = relay(Box::new(down), Box::new(up), None, pending()).await;
    assert_eq!(end, End::UpstreamError);
    drop(client);
}

#[tokio::test(start_paused = true)]
async fn a_relay_stops_when_told() {
    let (_client, down) = duplex(64);
    let (_upstream, up) = duplex(64);
    let stop = tokio::time::sleep(Duration::from_secs(1));
    let (end, _) = relay(Box::new(down), Box::new(up), None, stop).await;
    assert_eq!(end, End::Cancelled);
}

mod tokio_test_io {
    use super::*;

    /// A stream whose peer has reset it.
    #[derive(Debug)]
    pub(super) struct Broken;

    pub(super) const fn broken() -> Broken {
        Broken
    }

    impl crate::net::Io for Broken {}

    impl AsyncRead for Broken {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
        }
    }

    impl AsyncWrite for Broken {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }
}

//! Group F: large uploads whose endpoints fail (RT-03).

use std::{
    cell::Cell,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use outrigger_tests::loopback::{Proxy, Setup, raw};
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use crate::retries::{STEP, in_turn};

/// Ten megabytes that differ from place to place.
fn upload_body() -> Vec<u8> {
    (0..10_u32 << 20)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0])
        .collect()
}

/// Uploads, in a length or in chunks, and returns the status and the answer.
async fn upload(proxy: &Proxy, method: &str, body: &[u8], chunked: bool) -> (u16, Vec<u8>) {
    let client = proxy.connect().await;
    let (mut reader, mut writer) = client.into_split();
    let framing = if chunked {
        "transfer-encoding: chunked".to_owned()
    } else {
        format!("content-length: {}", body.len())
    };
    let head = format!("{method} /up HTTP/1.1\r\nhost: a\r\n{framing}\r\n\r\n");
    let sending = async {
        writer.write_all(head.as_bytes()).await?;
        for piece in body.chunks(50_000) {
            if chunked {
                writer
                    .write_all(format!("{:x}\r\n", piece.len()).as_bytes())
                    .await?;
            }
            writer.write_all(piece).await?;
            if chunked {
                writer.write_all(b"\r\n").await?;
            }
        }
        if chunked {
            writer.write_all(b"0\r\n\r\n").await?;
        }
        Ok::<_, std::io::Error>(())
    };
    let reading = raw::read_response(&mut reader);
    let (_, (head, body)) = tokio::join!(timeout(STEP, sending), reading);
    (raw::status(&head), body)
}

/// Compares what is uploaded with what was meant, and says whether it was the same.
async fn comparing(body: &Arc<Vec<u8>>) -> SocketAddr {
    let want = Arc::clone(body);
    raw::serve(move |mut stream, _| {
        let want = Arc::clone(&want);
        async move {
            let Some(head) = raw::try_read_head(&mut stream).await else {
                return;
            };
            let got = match raw::field(&head, "content-length").and_then(|n| n.parse().ok()) {
                Some(length) => raw::read_exact(&mut stream, length).await,
                None => read_chunks(&mut stream).await,
            };
            let same = if got == *want { "same" } else { "else" };
            let answer =
                format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 4\r\n\r\n{same}");
            raw::write(&mut stream, answer.as_bytes()).await;
        }
    })
    .await
}

async fn read_chunks(stream: &mut TcpStream) -> Vec<u8> {
    use tokio::io::AsyncBufReadExt as _;
    let mut reader = tokio::io::BufReader::new(stream);
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).await.expect("a chunk");
        let length = usize::from_str_radix(line.trim_end(), 16).expect("its length");
        let mut chunk = raw::read_exact(&mut reader, length + 2).await;
        if length == 0 {
            return body;
        }
        chunk.truncate(length);
        body.extend(chunk);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rt_03_a_large_upload_goes_to_another_endpoint_when_the_first_refuses() {
    const AT_ONCE: usize = 12;
    let body = Arc::new(upload_body());
    let (nobody, _socket) = raw::nobody();
    let all = [nobody, comparing(&body).await];
    let proxy = Setup::http(nobody)
        .endpoints(&all)
        .cluster(&in_turn())
        .start()
        .await;
    for chunked in [false, true] {
        // A few to begin with, so that what the allocator keeps is counted before.
        upload(&proxy, "POST", &body, chunked).await;
        let before = proxy.resident();
        let uploads = (0..AT_ONCE).map(|_| upload(&proxy, "POST", &body, chunked));
        let most = Cell::new(before);
        let watch = async {
            loop {
                most.set(most.get().max(proxy.resident()));
                sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            answers = futures_util::future::join_all(uploads) => {
                for answer in answers {
                    assert_eq!(answer, (200, b"same".to_vec()), "chunked: {chunked}");
                }
            }
            () = watch => {}
        }
        let each = most.get().saturating_sub(before) / AT_ONCE as u64;
        assert!(
            each < 2 << 20,
            "{each} bytes for an upload of ten megabytes"
        );
    }
    let log = proxy.access_log(2 + 2 * AT_ONCE).await;
    assert!(log.iter().any(|line| line["tries"] == 2), "{log:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rt_03_an_upload_that_fails_in_its_middle_is_not_begun_anew() {
    let body = upload_body();
    let begun = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&begun);
    let dies = move || {
        let count = Arc::clone(&count);
        raw::serve(move |mut stream, _| {
            let count = Arc::clone(&count);
            async move {
                if raw::try_read_head(&mut stream).await.is_some() {
                    count.fetch_add(1, Relaxed);
                    raw::read_exact(&mut stream, 1 << 20).await;
                    raw::reset(stream);
                }
            }
        })
    };
    let all = [dies().await, dies().await];
    let proxy = Setup::http(all[0])
        .endpoints(&all)
        .cluster(&in_turn())
        .start()
        .await;
    for (n, method) in ["POST", "PUT"].iter().enumerate() {
        for chunked in [false, true] {
            let began = Instant::now();
            let (status, _) = upload(&proxy, method, &body, chunked).await;
            assert_eq!(status, 503, "{method}");
            assert!(began.elapsed() < Duration::from_secs(10));
        }
        assert_eq!(begun.load(Relaxed), 2 * (n + 1), "{method}: one try each");
    }
}

//! Group A: messages on whose end two readers could disagree, sent through a proxy.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use outrigger_tests::loopback::{Setup, raw};
use tokio::{io::AsyncWriteExt as _, net::TcpStream, sync::Mutex, time::timeout};

/// All that an endpoint was sent, whatever it was.
type Seen = Arc<Mutex<Vec<u8>>>;

/// An endpoint that notes every byte and answers whatever looks like the end of a head.
async fn recording() -> (SocketAddr, Seen) {
    let seen = Seen::default();
    let noted = Arc::clone(&seen);
    let address = raw::serve(move |mut stream, _| {
        let noted = Arc::clone(&noted);
        async move {
            while let Some(head) = raw::try_read_head(&mut stream).await {
                noted.lock().await.extend(head.as_bytes());
                raw::write(&mut stream, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            }
        }
    });
    (address.await, seen)
}

/// Sends bytes; the statuses of what came back before the connection ended, which it has to.
async fn statuses(proxy: SocketAddr, bytes: &[u8]) -> Vec<u16> {
    let mut client = TcpStream::connect(proxy).await.expect("connected");
    raw::write(&mut client, bytes).await;
    let mut statuses = Vec::new();
    while let Some(head) = raw::try_read_head(&mut client).await {
        statuses.push(raw::status(&head));
        let length = raw::field(&head, "content-length").and_then(|n| n.parse().ok());
        raw::read_exact(&mut client, length.unwrap_or(0)).await;
    }
    statuses
}

/// What is refused reaches no endpoint, and nothing behind it is read as a request.
async fn all_refused(requests: &[&str]) {
    let (upstream, seen) = recording().await;
    let proxy = Setup::http(upstream).start().await;
    for request in requests {
        let smuggled = format!("{request}GET /evil HTTP/1.1\r\nhost: x\r\n\r\n");
        let got = statuses(proxy.address, smuggled.as_bytes()).await;
        assert_eq!(got.len(), 1, "{request:?}: {got:?}");
        assert!(matches!(got[0], 400 | 501), "{request:?}: {got:?}");
    }
    let seen = seen.lock().await;
    assert!(seen.is_empty(), "{}", seen.escape_ascii());
}

#[tokio::test]
async fn ht_01_a_length_and_a_coding_are_refused() {
    all_refused(&[
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n\
         0\r\n\r\nG",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n\
         0\r\n\r\nG",
        "POST / HTTP/1.1\r\nHost: x\r\ncontent-LENGTH: 6\r\ntransfer-ENCODING: Chunked\r\n\r\n\
         0\r\n\r\nG",
        "POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ])
    .await;
}

#[tokio::test]
async fn ht_03_odd_codings_are_refused() {
    let mut requests = Vec::new();
    for coding in [
        "identity, chunked",
        "chunked, gzip",
        "chunked,chunked",
        "xchunked",
        "chunked\r\nTransfer-Encoding: identity",
        "chunked\r\nTransfer-Encoding: chunked",
        "\u{b}chunked",
    ] {
        requests.push(format!(
            "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: {coding}\r\n\r\n0\r\n\r\n"
        ));
    }
    let requests: Vec<_> = requests.iter().map(String::as_str).collect();
    all_refused(&requests).await;
}

#[tokio::test]
async fn ht_06_ht_07_what_readers_split_differently_is_refused() {
    let mut requests = Vec::new();
    for field in [
        "X: a\nContent-Length: 40",
        "X: a\rTransfer-Encoding: chunked",
        "X: a\r\n folded",
        "Transfer-Encoding : chunked",
        "X: nul\0byte",
        " Leading: space",
        "Content-Length: +5",
        "Content-Length: 5,6",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 0x5",
        "Content-Length: ",
        "Content-Length: 99999999999999999999",
    ] {
        requests.push(format!("GET / HTTP/1.1\r\nHost: x\r\n{field}\r\n\r\n"));
    }
    let requests: Vec<_> = requests.iter().map(String::as_str).collect();
    all_refused(&requests).await;
}

#[tokio::test]
async fn ht_22_targets_and_hosts_that_are_none_are_refused() {
    all_refused(&[
        "GET products HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
    ])
    .await;
}

/// The URI counts where it names the host, and the endpoint sees one form (RFC 9112 §3.2.2).
#[tokio::test]
async fn ht_22_an_absolute_target_replaces_the_host() {
    let (upstream, seen) = recording().await;
    let proxy = Setup::http(upstream).start().await;
    let request = b"GET http://named/path?q HTTP/1.1\r\nHost: stale\r\nconnection: close\r\n\r\n";
    assert_eq!(statuses(proxy.address, request).await, [200]);
    let seen = String::from_utf8_lossy(&seen.lock().await).to_lowercase();
    assert!(seen.starts_with("get /path?q http/1.1\r\n"), "{seen}");
    assert_eq!(raw::field(&seen, "host"), Some("named"), "{seen}");
    assert!(!seen.contains("stale"), "{seen}");
}

#[tokio::test]
async fn ht_23_what_belongs_to_one_hop_stays_there() {
    let (upstream, seen) = recording().await;
    let proxy = Setup::http(upstream).start().await;
    let request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: X-Secret\r\nX-Secret: 1\r\n\
                    Connection: X-Other, close\r\nX-Other: 2\r\nKeep-Alive: timeout=5\r\n\
                    Proxy-Connection: keep-alive\r\nTE: gzip\r\nX-Kept: 3\r\n\r\n";
    assert_eq!(statuses(proxy.address, request).await, [200]);
    let seen = String::from_utf8_lossy(&seen.lock().await).to_lowercase();
    for gone in [
        "x-secret",
        "x-other",
        "keep-alive",
        "proxy-connection",
        "\nte:",
    ] {
        assert!(!seen.contains(gone), "{gone}: {seen}");
    }
    assert!(seen.contains("x-kept: 3"), "{seen}");
}

/// An endpoint that answers with these bytes; counts connections.
async fn answering(answer: &'static [u8]) -> (SocketAddr, Arc<AtomicUsize>) {
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    let address = raw::serve(move |mut stream, _| {
        counted.fetch_add(1, Ordering::Relaxed);
        async move {
            while raw::try_read_head(&mut stream).await.is_some() {
                raw::write(&mut stream, answer).await;
            }
        }
    });
    (address.await, connections)
}

/// Never both to the client, and never another request on a connection whose answers have no sure
/// end.
#[tokio::test]
async fn ht_02_a_response_with_a_length_and_a_coding() {
    let (upstream, connections) = answering(
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n\
          2\r\nhi\r\n0\r\n\r\n",
    )
    .await;
    let proxy = Setup::http(upstream).start().await;
    let mut client = proxy.connect().await;
    for n in 1..=3 {
        raw::write(&mut client, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let head = raw::read_head(&mut client).await;
        assert_eq!(raw::status(&head), 200, "{head}");
        assert_eq!(
            raw::field(&head, "transfer-encoding"),
            Some("chunked"),
            "{head}"
        );
        assert_eq!(raw::field(&head, "content-length"), None, "{head}");
        assert_eq!(
            raw::read_exact(&mut client, 12).await,
            b"2\r\nhi\r\n0\r\n\r\n"
        );
        assert_eq!(
            connections.load(Ordering::Relaxed),
            n,
            "a new connection each time"
        );
    }
}

#[tokio::test]
async fn ht_06_responses_are_read_as_strictly() {
    for answer in [
        &b"HTTP/1.1 200 OK\r\nX: a\nContent-Length: 40\r\n\r\n"[..],
        b"HTTP/1.1 200 OK\r\nX: a\rTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding : chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
    ] {
        let (upstream, _) = answering(answer).await;
        let proxy = Setup::http(upstream).start().await;
        let mut client = proxy.connect().await;
        raw::write(&mut client, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let (head, _) = raw::read_response(&mut client).await;
        assert_eq!(raw::status(&head), 502, "{}", answer.escape_ascii());
    }
}

/// The client's next bytes stay requests until a 101 says otherwise.
#[tokio::test]
async fn ht_08_no_switch_before_the_101() {
    let (upstream, seen) = recording().await;
    let proxy = Setup::http(upstream).start().await;
    let both = b"GET /one HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n\
                 GET /two HTTP/1.1\r\nHost: a\r\nConnection: X-Secret, close\r\nX-Secret: 1\r\n\r\n";
    assert_eq!(statuses(proxy.address, both).await, [200, 200]);
    let seen = String::from_utf8_lossy(&seen.lock().await).to_lowercase();
    assert!(seen.contains("get /two"), "{seen}");
    assert!(
        !seen.contains("x-secret"),
        "the second was handled as a request: {seen}"
    );
}

#[tokio::test]
async fn ht_10_fields_of_a_switch_that_did_not_happen_are_gone() {
    for answer in [
        &b"HTTP/1.1 200 OK\r\nconnection: upgrade\r\nupgrade: h2\r\n\
           transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"[..],
        b"HTTP/1.1 426 Upgrade Required\r\nconnection: upgrade\r\nupgrade: h2\r\n\
          content-length: 2\r\n\r\nhi",
    ] {
        let (upstream, _) = answering(answer).await;
        let proxy = Setup::http(upstream).start().await;
        let mut client = proxy.connect().await;
        let request = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        raw::write(&mut client, request).await;
        let (bytes, end) = raw::read_to_end(&mut client).await;
        let text = String::from_utf8_lossy(&bytes).to_lowercase();
        assert!(end.is_ok() && text.contains("hi"), "{text}");
        let (head, _) = text.split_once("\r\n\r\n").expect("a head");
        assert!(!head.contains("\r\nupgrade:"), "{head}");
    }
}

/// A tunnel begins with the 2xx, whatever fields that had; what is no 2xx is an answer.
#[tokio::test]
async fn ht_12_connect() {
    let upstream = raw::serve(|mut stream, _| async move {
        let head = raw::read_head(&mut stream).await;
        if head.starts_with("CONNECT closed:1 HTTP/1.1\r\n") {
            raw::write(
                &mut stream,
                b"HTTP/1.1 403 No\r\ncontent-length: 2\r\n\r\nno",
            )
            .await;
            return;
        }
        assert!(head.starts_with("CONNECT open:1 HTTP/1.1\r\n"), "{head}");
        raw::write(&mut stream, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        let (mut reader, mut writer) = stream.into_split();
        let _copied = tokio::io::copy(&mut reader, &mut writer).await;
        // The client's end came first; there is more to say.
        let _said = writer.write_all(b"the end").await;
    });
    let proxy = Setup::http(upstream.await).start().await;
    let mut client = proxy.connect().await;
    raw::write(
        &mut client,
        b"CONNECT closed:1 HTTP/1.1\r\nhost: closed:1\r\n\r\n",
    )
    .await;
    let (head, body) = raw::read_response(&mut client).await;
    assert_eq!((raw::status(&head), &body[..]), (403, &b"no"[..]));
    for version in ["1.1", "1.0"] {
        let mut client = proxy.connect().await;
        let request = format!("CONNECT open:1 HTTP/{version}\r\nhost: open:1\r\n\r\n");
        raw::write(&mut client, request.as_bytes()).await;
        let head = raw::read_head(&mut client).await;
        assert_eq!(raw::status(&head), 200, "{head}");
        assert_eq!(raw::field(&head, "content-length"), None, "{head}");
        let data: Vec<u8> = (0..1 << 20).map(|n: u32| n.to_le_bytes()[1]).collect();
        let (mut reader, mut writer) = client.into_split();
        let copy = data.clone();
        let sending = tokio::spawn(async move {
            writer.write_all(&copy).await.expect("sent");
            writer.shutdown().await.expect("a socket");
            writer
        });
        let (back, end) = raw::read_to_end(&mut reader).await;
        assert!(end.is_ok(), "{end:?}");
        assert!(
            back.strip_suffix(b"the end") == Some(&data[..]),
            "the echo differs"
        );
        sending.await.expect("sent");
    }
}

/// What has no content is not waited for: the next request on the connection is answered at once.
#[tokio::test]
async fn ht_14_answers_without_content() {
    for (method, answer, length) in [
        (
            "HEAD",
            &b"HTTP/1.1 200 OK\r\ncontent-length: 123\r\n\r\n"[..],
            Some("123"),
        ),
        (
            "HEAD",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            None,
        ),
        (
            "GET",
            b"HTTP/1.1 304 Not Modified\r\ncontent-length: 123\r\n\r\n",
            Some("123"),
        ),
        (
            "GET",
            b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n",
            None,
        ),
    ] {
        let (upstream, connections) = answering(answer).await;
        let proxy = Setup::http(upstream).start().await;
        let mut client = proxy.connect().await;
        for _ in 0..3 {
            let request = format!("{method} / HTTP/1.1\r\nhost: a\r\n\r\n");
            raw::write(&mut client, request.as_bytes()).await;
            let head = timeout(Duration::from_secs(5), raw::read_head(&mut client)).await;
            let head = head.expect("at once");
            assert_eq!(
                raw::field(&head, "content-length"),
                length,
                "{method}: {head}"
            );
        }
        assert_eq!(
            connections.load(Ordering::Relaxed),
            1,
            "{method}: kept open"
        );
    }
}

#[tokio::test]
async fn ht_15_trailers_of_a_response() {
    let answer = b"HTTP/1.1 200 OK\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n\
                   2\r\nhi\r\n0\r\nX-Sum: 1\r\n\r\n";
    let (upstream, connections) = answering(answer).await;
    let proxy = Setup::http(upstream).start().await;
    let mut client = proxy.connect().await;
    for _ in 0..2 {
        raw::write(&mut client, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        raw::read_head(&mut client).await;
        assert_eq!(raw::read_exact(&mut client, 10).await, b"2\r\nhi\r\n0\r\n");
        let trailers = raw::read_head(&mut client).await;
        assert_eq!(raw::field(&trailers, "x-sum"), Some("1"), "{trailers:?}");
    }
    assert_eq!(connections.load(Ordering::Relaxed), 1);
}

/// Extensions of chunks are dropped; one without end is refused and not kept.
#[tokio::test]
async fn ht_05_extensions_of_chunks() {
    let seen = Seen::default();
    let noted = Arc::clone(&seen);
    let upstream = raw::serve(move |mut stream, _| {
        let noted = Arc::clone(&noted);
        async move {
            let (bytes, _) = raw::read_to_end(&mut stream).await;
            noted.lock().await.extend(bytes);
        }
    });
    let proxy = Setup::http(upstream.await).start().await;
    let mut client = proxy.connect().await;
    let head = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2;a=b\r\nhi\r\n2;";
    raw::write(&mut client, head).await;
    let before = proxy.resident();
    let (mut reader, mut writer) = client.into_split();
    let sending = tokio::spawn(async move {
        let endless = [b'x'; 64 * 1024];
        // Fifty megabytes, of which nobody takes note.
        for _ in 0..800 {
            if writer.write_all(&endless).await.is_err() {
                return;
            }
        }
    });
    let (head, _) = raw::read_response(&mut reader).await;
    assert_eq!(raw::status(&head), 400, "{head}");
    assert_eq!(raw::field(&head, "connection"), Some("close"), "{head}");
    let done = timeout(Duration::from_secs(10), sending).await;
    assert!(done.is_ok(), "still taken");
    assert!(proxy.resident().saturating_sub(before) < 8 << 20);
    let seen = String::from_utf8_lossy(&seen.lock().await).into_owned();
    assert!(!seen.contains("a=b") && !seen.contains("xx"), "{seen}");
}

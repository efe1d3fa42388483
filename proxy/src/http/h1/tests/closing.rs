//! How connections end.

use std::task::Poll;

use bytes::Bytes;
use http::{Response, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::mock::{Mock, Step, once, run, served, server};
use crate::http::h1::{BodyLen, ClientConn, Frame, Limits, ServerConn, wire::Wire};

const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

#[test]
fn ht_18_the_answer_is_safe_while_the_client_still_sends() {
    let raw = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 50000000\r\n\r\nbegin";
    let (mut conn, mock, _) = served(raw);
    let mut answer = Response::new(());
    *answer.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
    conn.send_response(&answer, BodyLen::Known(3), None);
    conn.send_data(Bytes::from_static(b"big"));
    conn.finish();
    assert!(!conn.is_reusable());
    for _ in 0..100 {
        mock.feed(&[b'x'; 10_000]);
        assert!(once(|cx| conn.poll_linger(cx)).is_pending());
    }
    assert_eq!(mock.state().shut, 1, "closed once, after the answer");
    assert_eq!(
        mock.written(),
        "HTTP/1.1 413 Payload Too Large\r\ncontent-length: 3\r\nconnection: close\r\n\r\nbig"
    );
    assert!(!mock.state().reset_on_drop);
    mock.push(Step::End);
    assert!(once(|cx| conn.poll_linger(cx)).is_ready());
}

#[test]
fn ht_18_what_is_refused_unread_ends_the_connection() {
    let raw = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nbegin";
    for (status, says) in [
        (200, false),
        (307, false),
        (400, true),
        (413, true),
        (503, true),
    ] {
        let (mut conn, mock, _) = served(raw);
        let mut answer = Response::new(());
        *answer.status_mut() = StatusCode::from_u16(status).unwrap();
        conn.send_response(&answer, BodyLen::Empty, None);
        conn.finish();
        run(|cx| conn.poll_flush(cx)).unwrap();
        assert_eq!(
            mock.written().contains("connection: close"),
            says,
            "{status}"
        );
        assert!(!conn.is_reusable(), "the request is not whole");
        // An answer that goes beside the upload leaves the connection usable after both.
        mock.feed(b"rest");
        while run(|cx| conn.poll_recv(cx)).unwrap().is_some() {}
        assert_eq!(conn.is_reusable(), !says, "{status}");
    }
    // A body that broke its framing is followed by nothing, whatever the answer.
    let raw = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n";
    let (mut conn, mock, _) = served(raw);
    assert!(run(|cx| conn.poll_recv(cx)).is_err());
    conn.send_response(&Response::new(()), BodyLen::Empty, None);
    conn.finish();
    run(|cx| conn.poll_flush(cx)).unwrap();
    assert!(mock.written().contains("connection: close"));
}

#[test]
fn an_answer_belongs_to_its_own_request() {
    let raw = "HEAD / HTTP/1.1\r\nHost: x\r\n\r\nbad\r\n\r\n";
    let (mut conn, mock, _) = served(raw);
    conn.send_response(&Response::new(()), BodyLen::Empty, None);
    conn.finish();
    conn.done();
    assert!(run(|cx| conn.poll_request(cx)).is_err());
    run(|cx| conn.poll_flush(cx)).unwrap();
    mock.written();
    let mut answer = Response::new(());
    *answer.status_mut() = StatusCode::BAD_REQUEST;
    conn.send_response(&answer, BodyLen::Known(3), None);
    conn.send_data(Bytes::from_static(b"bad"));
    conn.finish();
    run(|cx| conn.poll_flush(cx)).unwrap();
    let text = mock.written();
    assert!(
        text.contains("content-length: 3\r\n") && text.ends_with("\r\n\r\nbad"),
        "{text}"
    );
}

#[test]
fn ht_18_a_client_that_never_stops_is_left() {
    let (mut conn, mock, _) = served(GET);
    conn.set_close();
    conn.send_response(&Response::new(()), BodyLen::Empty, None);
    conn.finish();
    let block = Bytes::from(vec![b'x'; 1 << 20]);
    let mut sent = 0;
    loop {
        mock.push(Step::Bytes(block.clone()));
        sent += block.len();
        if once(|cx| conn.poll_linger(cx)).is_ready() {
            break;
        }
        assert!(sent < 100 << 20, "no limit");
    }
    assert!(sent >= 50 << 20, "too little for a large upload");
    assert!(
        conn.into_parts().1.len() < 64 << 10,
        "thrown away, not kept"
    );
}

#[test]
fn a_linger_ends_when_the_client_does() {
    for last in [Step::End, Step::Reset] {
        let (mut conn, mock) = server([]);
        mock.push(last);
        assert!(once(|cx| conn.poll_linger(cx)).is_ready());
    }
}

#[test]
fn ht_19_half_closed_is_not_gone() {
    let (mut conn, mock, _) = served(GET);
    mock.push(Step::End);
    for _ in 0..3 {
        assert!(once(|cx| conn.poll_closed(cx)).is_pending());
    }
    conn.send_response(&Response::new(()), BodyLen::Known(2), None);
    conn.send_data(Bytes::from_static(b"ok"));
    conn.finish();
    run(|cx| conn.poll_flush(cx)).unwrap();
    assert_eq!(
        mock.written(),
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"
    );
    assert!(!conn.is_reusable());
}

#[test]
fn ht_19_a_request_that_came_before_the_half_close_is_served() {
    let (mut conn, mock, _) = served(GET);
    mock.feed(GET.as_bytes());
    mock.push(Step::End);
    assert!(once(|cx| conn.poll_closed(cx)).is_pending());
    conn.send_response(&Response::new(()), BodyLen::Empty, None);
    conn.finish();
    assert!(conn.is_reusable());
    conn.done();
    assert!(run(|cx| conn.poll_request(cx)).unwrap().is_some());
    conn.send_response(&Response::new(()), BodyLen::Empty, None);
    conn.finish();
    run(|cx| conn.poll_flush(cx)).unwrap();
    assert_eq!(mock.written().matches("connection: close").count(), 1);
}

#[test]
fn ht_19_a_reset_is_gone() {
    let (mut conn, mock, _) = served(GET);
    assert!(once(|cx| conn.poll_closed(cx)).is_pending());
    mock.push(Step::Reset);
    assert!(once(|cx| conn.poll_closed(cx)).is_ready());
    assert!(!conn.is_reusable());
}

#[test]
fn what_comes_early_is_kept_within_bounds() {
    let (mut conn, mock, _) = served(GET);
    for _ in 0..1000 {
        mock.feed(&[b'G'; 1024]);
    }
    assert!(once(|cx| conn.poll_closed(cx)).is_pending());
    let left: usize = mock.state().input.len();
    assert!((800..=940).contains(&left), "{left} KiB left unread");
    // A body that is being read is nobody else's to read.
    let (mut conn, mock, _) = served("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n");
    mock.feed(b"body");
    assert!(once(|cx| conn.poll_closed(cx)).is_pending());
    assert_eq!(mock.state().input.len(), 1);
}

#[test]
fn a_cut_response_never_looks_whole() {
    // Shorter than announced.
    let (mut conn, mock, _) = served(GET);
    conn.send_response(&Response::new(()), BodyLen::Known(10), None);
    conn.send_data(Bytes::from_static(b"half"));
    assert!(!conn.is_broken() && !conn.is_reusable());
    conn.finish();
    assert!(conn.is_broken() && !conn.is_reusable());
    assert!(mock.state().reset_on_drop);
    let (mut conn, mock, _) = served(GET);
    conn.send_response(&Response::new(()), BodyLen::Known(10), None);
    conn.send_trailers(&http::HeaderMap::new());
    assert!(conn.is_broken() && mock.state().reset_on_drop);
    // Given up: no last chunk, nor a clean close of a body that lasts until it.
    for (request, len) in [
        (GET, BodyLen::Chunked),
        ("GET / HTTP/1.0\r\n\r\n", BodyLen::UntilClose),
    ] {
        let (mut conn, mock, _) = served(request);
        conn.send_response(&Response::new(()), len, None);
        conn.send_data(Bytes::from_static(b"half"));
        run(|cx| conn.poll_flush(cx)).unwrap();
        conn.abort();
        assert!(mock.state().reset_on_drop);
        assert!(conn.is_broken() && !conn.is_reusable());
        let text = mock.written();
        assert!(
            text.contains("half") && !text.ends_with("0\r\n\r\n"),
            "{text}"
        );
        assert_eq!(mock.state().shut, 0);
    }
}

#[test]
fn more_than_announced_is_not_the_next_response() {
    let (mut conn, mock, _) = served(GET);
    conn.send_response(&Response::new(()), BodyLen::Known(2), None);
    conn.send_data(Bytes::from_static(b"ok and HTTP/1.1 200 OK"));
    conn.send_data(Bytes::from_static(b"more"));
    conn.finish();
    run(|cx| conn.poll_flush(cx)).unwrap();
    assert!(mock.written().ends_with("\r\n\r\nok"));
}

#[test]
fn an_idle_connection_keeps_next_to_nothing() {
    let mock = Mock::default();
    let mut wire = Wire::new(mock.clone(), Bytes::new());
    mock.feed(&[b'x'; 100]);
    assert!(once(|cx| wire.poll_fill(cx)).is_ready());
    assert!(wire.input.capacity() > 4096);
    wire.input.clear();
    for (body, kept) in [(100, false), (3000, false), (20_000, false), (0, true)] {
        wire.make_room(body);
        wire.out().extend_from_slice(b"head");
        wire.push(Bytes::from(vec![b'x'; usize::try_from(body).unwrap()]));
        assert!(once(|cx| wire.poll_flush(cx)).is_ready());
        wire.relax();
        let capacity = wire.out().capacity();
        assert_eq!(capacity > 0 && capacity <= 512, kept, "{body}: {capacity}");
    }
    // Written in parts.
    wire.out().extend_from_slice(&[b'x'; 500]);
    mock.state().room = Some(400);
    assert!(once(|cx| wire.poll_flush(cx)).is_pending());
    mock.state().room = None;
    assert!(once(|cx| wire.poll_flush(cx)).is_ready());
    wire.relax();
    assert_eq!(wire.out().capacity(), 0);
    assert!(once(|cx| wire.poll_fill(cx)).is_pending());
    assert_eq!(wire.input.capacity(), 0);
    assert!(size_of::<ServerConn<crate::net::BoxIo>>() <= 256);
    assert!(size_of::<ClientConn<crate::net::BoxIo>>() <= 256);
}

#[test]
fn a_request_without_an_answer_ends_the_connection() {
    let (conn, _mock, _) = served(GET);
    assert!(!conn.is_reusable());
}

/// An echo over a stream with little room: both directions have to move at once.
#[tokio::test]
async fn a_response_is_written_while_the_request_is_read() {
    const SIZE: usize = 300_000;
    let (client, io) = duplex(1000);
    let serve = async move {
        let mut conn = ServerConn::new(io, Bytes::new(), Limits::default());
        let head = std::future::poll_fn(|cx| conn.poll_request(cx))
            .await
            .unwrap()
            .unwrap();
        conn.send_response(&Response::new(()), head.len, None);
        let mut held = None;
        std::future::poll_fn(|cx| {
            loop {
                if conn.poll_ready(cx).is_pending() {
                    return Poll::Pending;
                }
                if let Some(data) = held.take() {
                    conn.send_data(data);
                    continue;
                }
                match conn.poll_recv(cx) {
                    Poll::Ready(Ok(Some(Frame::Data(data)))) => held = Some(data),
                    Poll::Ready(Ok(_)) => {
                        conn.finish();
                        return Poll::Ready(());
                    }
                    Poll::Ready(Err(error)) => panic!("{error}"),
                    Poll::Pending => {
                        let _flushed = conn.poll_flush(cx);
                        return Poll::Pending;
                    }
                }
            }
        })
        .await;
        std::future::poll_fn(|cx| conn.poll_flush(cx))
            .await
            .unwrap();
        assert!(conn.is_reusable());
        conn.done();
        assert!(
            std::future::poll_fn(|cx| conn.poll_request(cx))
                .await
                .unwrap()
                .is_none()
        );
    };
    let (mut read, mut write) = tokio::io::split(client);
    let send = async {
        let head = format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {SIZE}\r\n\r\n");
        write.write_all(head.as_bytes()).await.unwrap();
        for _ in 0..SIZE / 1000 {
            write.write_all(&[b'x'; 1000]).await.unwrap();
        }
        write.shutdown().await.unwrap();
    };
    let receive = async {
        let mut text = String::new();
        read.read_to_string(&mut text).await.unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with(&format!("content-length: {SIZE}")), "{head}");
        assert_eq!(body.len(), SIZE);
    };
    let all = async { tokio::join!(serve, send, receive) };
    tokio::time::timeout(std::time::Duration::from_secs(20), all)
        .await
        .expect("stuck");
}

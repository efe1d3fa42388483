//! Bodies taken apart and put together.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use proptest::prelude::*;

use super::mock::{Body, Step, client, collect, cuts, run, served, server};
use crate::http::h1::{BodyLen, Error, Frame, Limits, ResponseHead, ServerConn};

const POST: &str = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";

/// Receives a chunked request body that comes as `steps`.
fn receive(steps: Vec<Step>) -> Result<Body, Error> {
    let head = Step::Bytes(Bytes::from_static(POST.as_bytes()));
    let (mut conn, _mock) = server([head].into_iter().chain(steps).chain([Step::End]));
    run(|cx| conn.poll_request(cx))?.expect("a request");
    let body = collect(|cx| conn.poll_recv(cx));
    assert_eq!(conn.request_body_done(), body.is_ok());
    if body.is_err() {
        assert!(!conn.is_reusable());
        // An error is not forgotten.
        assert!(run(|cx| conn.poll_recv(cx)).is_err());
        assert!(!conn.request_body_done());
    }
    body
}

#[test]
fn ht_04_chunk_sizes() {
    for size in [
        "0x5",
        "5_0",
        "+5",
        "-1",
        "\r5",
        "",
        " 5",
        "\t5",
        "5 5",
        "g",
        "5g",
        "5,",
        "0x",
        "5\r",
        "5\0",
        "5\x01",
        "\u{665}",
        "10000000000000000",
        "fffffffffffffffff",
        "8000000000000000",
        "5\n",
        "5;a\nb",
        "5;a\rb",
        "5;a\0b",
    ] {
        let raw = format!("{size}\r\nhello\r\n0\r\n\r\n");
        for steps in cuts(raw.as_bytes()) {
            let error = receive(steps).expect_err(size);
            assert!(matches!(error, Error::Framing(_)), "{size:?}: {error:?}");
        }
    }
    for size in [
        "5",
        "05",
        "0000000000000000000000005",
        "5 ",
        "5\t",
        "5;",
        "5 ;a",
        "5;a=b;c=\"d e\"",
    ] {
        let raw = format!("{size}\r\nhello\r\n0\r\n\r\n");
        for steps in cuts(raw.as_bytes()) {
            let body = receive(steps).unwrap_or_else(|error| panic!("{size:?}: {error}"));
            assert_eq!(body.data, b"hello", "{size:?}");
        }
    }
    for hex in ["A", "a", "00a", "0A"] {
        let raw = format!("{hex}\r\n0123456789\r\n0\r\n\r\n");
        assert_eq!(
            receive(cuts(raw.as_bytes()).swap_remove(0))
                .unwrap()
                .data
                .len(),
            10
        );
    }
}

#[test]
fn ht_04_line_ends_and_lengths() {
    for raw in [
        "5\r\nhelloX0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello\rX0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "4\r\nhello\r\n0\r\n\r\n",
        "\n0\r\n\r\n",
        "\r\n0\r\n\r\n",
    ] {
        for steps in cuts(raw.as_bytes()) {
            let error = receive(steps).expect_err(raw);
            assert!(matches!(error, Error::Framing(_)), "{raw:?}: {error:?}");
        }
    }
    // A hundred kilobytes of zeros are not a number worth waiting for.
    let zeros = "0".repeat(100_000);
    let error = receive(vec![Step::Bytes(Bytes::from(zeros))]).expect_err("zeros");
    assert!(matches!(error, Error::Framing(_)), "{error:?}");
}

#[test]
fn a_cut_body_never_looks_whole() {
    let raw = b"5\r\nhello\r\n0\r\nX: y\r\n\r\n";
    for at in 0..raw.len() {
        let cut = vec![Step::Bytes(Bytes::copy_from_slice(&raw[..at])), Step::Gap];
        let error = receive(cut).expect_err("cut");
        assert!(matches!(error, Error::Cut), "at {at}: {error:?}");
    }
    let (mut conn, mock, _) = served("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc");
    mock.push(Step::End);
    assert!(matches!(collect(|cx| conn.poll_recv(cx)), Err(Error::Cut)));
    let (mut conn, mock, _) = served("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc");
    mock.push(Step::Reset);
    assert!(matches!(
        collect(|cx| conn.poll_recv(cx)),
        Err(Error::Io(_))
    ));
}

#[test]
fn ht_05_extensions_and_trailers() {
    let raw = b"2;a=b\r\nok\r\n0;last\r\nX-Sum: 1\r\nx-sum: 2\r\n\r\n";
    for steps in cuts(raw) {
        let body = receive(steps).unwrap();
        assert_eq!(body.data, b"ok");
        let trailers = body.trailers.expect("trailers");
        let sums: Vec<_> = trailers.get_all("x-sum").iter().collect();
        assert_eq!(sums, ["1", "2"]);
    }
    // One line of extensions that never ends.
    let error = receive(vec![Step::Bytes(Bytes::from(format!(
        "2;{}",
        "e".repeat(10_000)
    )))]);
    assert!(matches!(error, Err(Error::Framing(_))), "{error:?}");
    // Many chunks that are mostly extension.
    let chunk = format!("1;{}\r\nx\r\n", "e".repeat(1000));
    let error = receive(vec![Step::Bytes(Bytes::from(chunk.repeat(100)))]);
    assert!(matches!(error, Err(Error::Framing(_))), "{error:?}");
    // Ten thousand trailers, few enough to fit, and too many even for that.
    let many = |n: usize| {
        vec![Step::Bytes(Bytes::from(format!(
            "0\r\n{}\r\n",
            "A: b\r\n".repeat(n)
        )))]
    };
    let error = receive(many(129));
    assert!(matches!(error, Err(Error::TooManyHeaders(_))), "{error:?}");
    let error = receive(many(20_000));
    assert!(matches!(error, Err(Error::HeadTooLarge(_))), "{error:?}");
    assert_eq!(receive(many(128)).unwrap().trailers.unwrap().len(), 128);
}

#[test]
fn ht_06_trailers_are_as_strict_as_heads() {
    for line in [
        "X: a\nY: b",
        " X: a",
        "X: a\r\n b",
        "X : a",
        "X: a\0",
        "X",
        "X: a\rb",
    ] {
        let raw = format!("0\r\n{line}\r\n\r\n");
        for steps in cuts(raw.as_bytes()) {
            let error = receive(steps).expect_err(line);
            assert!(matches!(error, Error::Syntax(_)), "{line:?}: {error:?}");
        }
    }
}

#[test]
fn trailers_cannot_bring_framing_or_routing() {
    let raw = b"0\r\nContent-Length: 5\r\nHost: evil\r\nTransfer-Encoding: chunked\r\n\
          Authorization: x\r\nOk: 1\r\n\r\n";
    let trailers = receive(cuts(raw).swap_remove(0)).unwrap().trailers.unwrap();
    assert_eq!(trailers.len(), 1);
    assert_eq!(trailers["ok"], "1");
    // Nothing is left: there are none.
    let raw = b"0\r\nHost: evil\r\n\r\n";
    assert_eq!(receive(cuts(raw).swap_remove(0)).unwrap().trailers, None);
}

#[test]
fn ht_15_response_trailers() {
    let raw = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3\r\n\
          abc\r\n0\r\nX-Sum: 1\r\n\r\n";
    for steps in cuts(raw) {
        let (mut conn, _mock) = client(steps);
        let ResponseHead::Final { len, .. } = run(|cx| conn.poll_response(cx)).unwrap() else {
            panic!("interim");
        };
        assert_eq!(len, BodyLen::Chunked);
        let body = collect(|cx| conn.poll_recv(cx)).unwrap();
        assert_eq!(
            (&body.data[..], body.trailers.unwrap().len()),
            (&b"abc"[..], 1)
        );
        assert!(conn.is_reusable());
    }
}

#[test]
fn ht_15_trailers_are_written_in_chunked_framing_only() {
    let mut trailers = HeaderMap::new();
    trailers.append("x-sum", HeaderValue::from_static("1"));
    let (mut conn, mock, _) = served("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    conn.send_response(&Response::new(()), BodyLen::Chunked, None);
    conn.send_data(Bytes::from_static(b"abc"));
    conn.send_trailers(&trailers);
    run(|cx| conn.poll_flush(cx)).unwrap();
    assert_eq!(
        mock.written(),
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n"
    );
    assert!(conn.is_reusable());
    let (mut conn, mock, _) = served("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    conn.send_response(&Response::new(()), BodyLen::Known(3), None);
    conn.send_data(Bytes::from_static(b"abc"));
    conn.send_trailers(&trailers);
    run(|cx| conn.poll_flush(cx)).unwrap();
    assert!(mock.written().ends_with("content-length: 3\r\n\r\nabc"));
    assert!(conn.is_reusable());
}

#[test]
fn a_small_answer_is_one_write_and_large_data_is_not_copied_together() {
    let (mut conn, mock, _) = served("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    conn.send_response(&Response::new(()), BodyLen::Known(1024), None);
    conn.send_data(Bytes::from(vec![b'x'; 1024]));
    conn.finish();
    run(|cx| conn.poll_flush(cx)).unwrap();
    assert_eq!(mock.state().writes, 1);

    let (mut conn, mock, _) = served("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    conn.send_response(&Response::new(()), BodyLen::Chunked, None);
    for _ in 0..3 {
        conn.send_data(Bytes::from(vec![b'x'; 10_000]));
    }
    conn.finish();
    run(|cx| conn.poll_flush(cx)).unwrap();
    assert_eq!(mock.state().writes, 1, "vectored");
    let text = mock.written();
    assert!(text.ends_with("x\r\n0\r\n\r\n"));
    assert_eq!(text.matches("2710\r\n").count(), 3);
}

#[test]
fn a_slow_reader_holds_the_writer_back() {
    let (mut conn, mock, _) = served("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    mock.state().room = Some(0);
    conn.send_response(&Response::new(()), BodyLen::Chunked, None);
    let mut taken = 0;
    while super::mock::once(|cx| conn.poll_ready(cx)).is_ready() {
        conn.send_data(Bytes::from(vec![b'x'; 16_384]));
        taken += 16_384;
        assert!(taken < 1 << 20, "no limit");
    }
    assert!(taken >= 65_536);
    // Any number of bytes at a time, everything arrives.
    for step in [1, 7, 1000, 100_000] {
        mock.state().room = Some(step);
        let _more = super::mock::once(|cx| conn.poll_flush(cx));
    }
    mock.state().room = None;
    conn.finish();
    run(|cx| conn.poll_flush(cx)).unwrap();
    let text = mock.written();
    assert_eq!(text.matches('x').count(), taken);
    assert!(text.ends_with("\r\n0\r\n\r\n"));
}

/// Splits `data` into pieces of the given sizes, repeated.
fn pieces(data: &[u8], sizes: &[usize]) -> Vec<Bytes> {
    let mut rest = data;
    let mut out = Vec::new();
    for size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (now, later) = rest.split_at((*size).clamp(1, rest.len()));
        out.push(Bytes::copy_from_slice(now));
        rest = later;
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// What one codec writes the other reads, whatever the pieces on the way.
    #[test]
    fn a_body_arrives_as_it_was_sent(
        data in proptest::collection::vec(any::<u8>(), 0..60_000),
        sizes in proptest::collection::vec(1_usize..20_000, 1..6),
        reads in proptest::collection::vec(1_usize..9_000, 1..6),
        known in any::<bool>(),
        trailer in proptest::option::of("[a-z]{1,10}"),
    ) {
        let (mut out, wire) = client([]);
        let request = http::Request::post("/").header("host", "a").body(()).unwrap();
        wire.written();
        let len = if known { BodyLen::Known(data.len() as u64) } else { BodyLen::Chunked };
        out.send_request(&request, len, None);
        for piece in pieces(&data, &sizes) {
            run(|cx| out.poll_ready(cx)).unwrap();
            out.send_data(piece);
        }
        let trailers: Option<HeaderMap> = trailer.as_ref().map(|value| {
            let name = HeaderName::from_static("x-t");
            [(name, HeaderValue::from_str(value).unwrap())].into_iter().collect()
        });
        match &trailers {
            Some(trailers) => out.send_trailers(trailers),
            None => out.finish(),
        }
        run(|cx| out.poll_flush(cx)).unwrap();
        let raw = std::mem::take(&mut wire.state().output);
        let steps = pieces(&raw, &reads).into_iter().flat_map(|b| [Step::Bytes(b), Step::Gap]);
        let mock = super::mock::Mock::new(steps);
        let mut conn = ServerConn::new(mock, Bytes::new(), Limits::default());
        let head = run(|cx| conn.poll_request(cx)).unwrap().unwrap();
        prop_assert_eq!(head.len, len);
        let body = collect(|cx| conn.poll_recv(cx)).unwrap();
        prop_assert_eq!(body.data, data);
        prop_assert_eq!(body.trailers, trailers.filter(|_| !known));
        prop_assert!(conn.request_body_done());
    }

    /// No bytes make the decoder panic, spin or accept more than came.
    #[test]
    fn any_bytes_end_in_a_body_or_an_error(
        raw in proptest::collection::vec(
            prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'0'), Just(b'5'), Just(b';'), any::<u8>()],
            0..200,
        ),
        at in 0_usize..200,
    ) {
        let (one, two) = raw.split_at(at.min(raw.len()));
        let whole = receive(vec![Step::Bytes(Bytes::copy_from_slice(&raw))]);
        let halves = receive(vec![
            Step::Bytes(Bytes::copy_from_slice(one)),
            Step::Gap,
            Step::Bytes(Bytes::copy_from_slice(two)),
        ]);
        match (whole, halves) {
            (Ok(a), Ok(b)) => prop_assert_eq!(a, b),
            (Err(_), Err(_)) => {}
            (a, b) => prop_assert!(false, "{:?} but in halves {:?}", a, b),
        }
    }
}

#[test]
fn frames_carry_no_copy_of_a_large_read() {
    let (mut conn, mock, _) =
        served("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n");
    mock.feed(&[b'x'; 100_000]);
    let mut total = 0;
    let mut frames = 0;
    while let Some(Frame::Data(data)) = run(|cx| conn.poll_recv(cx)).unwrap() {
        total += data.len();
        frames += 1;
    }
    assert_eq!(total, 100_000);
    assert!(frames < 20, "{frames} frames");
}

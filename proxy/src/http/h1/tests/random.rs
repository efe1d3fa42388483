//! Heads put together at random from what parsers stumble over.

use bytes::Bytes;
use proptest::prelude::*;

use super::mock::{Mock, Step, run, serve_all, server, show};
use crate::http::h1::{ClientConn, Limits, ResponseHead};

/// Pieces of heads, right and wrong.
fn piece() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "GET / HTTP/1.1\r\n",
        "POST /a?b HTTP/1.1\r\n",
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.0 304 \r\n",
        "Host: x\r\n",
        "Host: x\r\n",
        "Host: x\r\n",
        "host: y\r\n",
        "Content-Length: 3\r\n",
        "content-length: 0\r\n",
        "Content-Length: 3, 3\r\n",
        "Transfer-Encoding: chunked\r\n",
        "transfer-encoding: gzip\r\n",
        "Connection: close\r\n",
        "X: \r\n",
        "X:y\r\n",
        "X : y\r\n",
        "\r\n",
        "\r\n",
        "\r\n\r\n",
        "\r",
        "\n",
        " ",
        "\t",
        ":",
        "abc",
        "0\r\n\r\n",
        "3\r\nabc\r\n",
        "\0",
        "\u{e9}",
        "HTTP/1.1",
        "/",
    ])
}

/// A message that often is a good one.
fn message(start: &'static str) -> impl Strategy<Value = String> {
    (any::<bool>(), prop::collection::vec(piece(), 0..10)).prop_map(move |(begun, pieces)| {
        let start = if begun { start } else { "" };
        format!("{start}{}", pieces.concat())
    })
}

fn step(bytes: &[u8]) -> Step {
    Step::Bytes(Bytes::copy_from_slice(bytes))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Where the bytes are cut on their way changes nothing.
    #[test]
    fn requests_read_the_same_in_pieces(
        raw in message("POST / HTTP/1.1\r\nHost: x\r\n"),
        at: usize,
    ) {
        let (one, two) = raw.as_bytes().split_at(at % (raw.len() + 1));
        let (whole, error) = serve_all(vec![step(raw.as_bytes())]);
        let (halves, other) = serve_all(vec![step(one), Step::Gap, step(two)]);
        prop_assert_eq!(whole, halves);
        prop_assert_eq!(error.is_some(), other.is_some(), "{:?} {:?}", error, other);
    }

    /// What is accepted leaves as something that reads the same, with one framing and one host.
    #[test]
    fn what_is_accepted_is_written_well_formed(raw in message("GET / HTTP/1.1\r\nHost: x\r\n")) {
        let (mut conn, _mock) = server([step(raw.as_bytes()), Step::End]);
        let Ok(Some(head)) = run(|cx| conn.poll_request(cx)) else {
            return Ok(());
        };
        let wire = Mock::default();
        let mut out = ClientConn::new(wire.clone(), Limits::default());
        out.send_request(&head.head, head.len, head.names.as_ref());
        run(|cx| out.poll_flush(cx)).unwrap();
        let written = wire.written();
        let lower = written.to_ascii_lowercase();
        let framing = ["\r\ncontent-length:", "\r\ntransfer-encoding:"];
        let count: usize = framing.iter().map(|name| lower.matches(name).count()).sum();
        prop_assert!(count <= 1, "{}", written);
        prop_assert!(lower.matches("\r\nhost:").count() <= 1, "{}", written);
        let (mut again, _mock) = server([step(written.as_bytes()), Step::End]);
        let copy = run(|cx| again.poll_request(cx)).unwrap().unwrap();
        prop_assert_eq!(copy.len, head.len);
        prop_assert_eq!(copy.head.uri(), head.head.uri());
        let fields = |text: String| {
            let mut fields: Vec<_> = text
                .split('|')
                .skip(1)
                .filter(|f| !f.starts_with("connection="))
                .map(str::to_owned)
                .collect();
            fields.sort();
            fields
        };
        prop_assert_eq!(fields(show(&copy)), fields(show(&head)));
    }

    /// Responses, too, and none makes the client panic or spin.
    #[test]
    fn responses_read_the_same_in_pieces(raw in message("HTTP/1.1 200 OK\r\n"), at: usize) {
        let read = |steps: Vec<Step>| {
            let (mut conn, _mock) = super::mock::client(steps);
            let mut seen = Vec::new();
            loop {
                match run(|cx| conn.poll_response(cx)) {
                    Ok(ResponseHead::Interim(head)) => seen.push(format!("{head:?}")),
                    Ok(ResponseHead::Final { head, len, .. }) => {
                        seen.push(format!("{head:?} {len:?}"));
                        let body = super::mock::collect(|cx| conn.poll_recv(cx));
                        seen.push(format!("{:?}", body.ok()));
                        return seen;
                    }
                    Err(_) => {
                        seen.push("error".to_owned());
                        return seen;
                    }
                }
            }
        };
        let (one, two) = raw.as_bytes().split_at(at % (raw.len() + 1));
        let whole = read(vec![step(raw.as_bytes()), Step::End]);
        prop_assert_eq!(whole, read(vec![step(one), Step::Gap, step(two), Step::End]));
    }
}

//! Golden lines, and lines that a client tries to forge.

use std::{
    io,
    sync::{Arc, Mutex},
};

use http::StatusCode;
use rand::{SeedableRng, rngs::StdRng};
use tokio::time::Instant;

use super::*;
use crate::{
    config::{SpiffeId, listener::Direction, units::Fraction},
    telemetry::{TraceContext, tests::record},
};

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("lock").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn written(format: Format, write: impl FnOnce(&AccessLog, SystemTime)) -> String {
    let sink = Sink::default();
    let lines = Lines::start("test", sink.clone()).expect("a thread");
    let scope = Scope::Configured;
    let log = AccessLog {
        format,
        scope,
        lines,
    };
    write(&log, UNIX_EPOCH + Duration::from_millis(1_795_774_272_123));
    log.lines.flush(Duration::from_secs(10));
    let bytes = sink.0.lock().expect("lock").clone();
    String::from_utf8(bytes).expect("text")
}

fn sample() -> Record {
    let mut record = record(Instant::now());
    record.authority = "cart:8080".into();
    record.path = "/items".into();
    record.first_byte = Some(Duration::from_micros(1400));
    record
}

fn failed() -> Record {
    let mut record = sample();
    record.fault = Some(Fault::UpstreamClosed);
    record.status = Some(StatusCode::SERVICE_UNAVAILABLE);
    record.grpc_status = Some(14);
    record.details = "the peer said \"go away\"".into();
    record
}

#[test]
fn ob_05_a_line_of_text() {
    insta::assert_snapshot!(written(Format::Text, |log, at| log.request(&sample(), at)));
    insta::assert_snapshot!(written(Format::Text, |log, at| log.request(&failed(), at)));
}

#[test]
fn ob_05_a_line_of_json_is_json() {
    let line = written(Format::Json, |log, at| log.request(&failed(), at));
    let value: serde_json::Value = serde_json::from_str(&line).expect(&line);
    assert_eq!(value["details"], "the peer said \"go away\"");
    assert_eq!(value["status"], 503);
    insta::assert_snapshot!(line);
}

#[test]
fn ob_05_a_request_without_a_route_and_without_an_answer_has_a_line() {
    let (source, destination) = (([10, 0, 0, 1], 1).into(), ([10, 0, 0, 2], 80).into());
    let mut record = Record::new(Direction::Inbound, source, destination, Instant::now());
    record.fault = Some(Fault::DownstreamReset);
    let text = written(Format::Text, |log, at| log.request(&record, at));
    assert!(
        text.starts_with("2026-11-27T10:11:12.123Z inbound 499 DC GET - - HTTP/1.1 "),
        "{text}"
    );
    let json = written(Format::Json, |log, at| log.request(&record, at));
    let value: serde_json::Value = serde_json::from_str(&json).expect(&json);
    assert_eq!(value["authority"], serde_json::Value::Null);
}

#[test]
fn ob_05_an_opaque_connection_has_a_line() {
    let (source, destination) = (([10, 0, 0, 1], 1).into(), ([10, 0, 0, 2], 80).into());
    let peer = SpiffeId::parse("spiffe://td/ns/a/sa/b").ok();
    let now = Instant::now();
    let mut record = ConnectionRecord::new(Direction::Inbound, source, destination, peer, now);
    record.ended = now + Duration::from_secs(2);
    (record.bytes_in, record.bytes_out) = (7, 11);
    insta::assert_snapshot!(written(Format::Text, |log, at| log.connection(&record, at)));
}

#[test]
fn what_a_client_sends_cannot_forge_a_line_nor_flood_the_log() {
    let mut record = sample();
    record.path = "/a b\r\n2026 outbound 200\u{1b}[31m \u{2028}\" x=".into();
    record.authority = "é".repeat(10_000).into();
    record.details = "-".into();
    let text = written(Format::Text, |log, at| log.request(&record, at));
    assert_eq!(text.lines().count(), 1);
    assert!(
        text.contains(r#""/a b\u000d\u000a2026 outbound 200\u001b[31m \u2028\" x=""#),
        "{text}"
    );
    assert!(text.contains(r#"details="-""#), "{text}");
    assert!(text.len() < MAX_TEXT + 1024, "{}", text.len());
    let json = written(Format::Json, |log, at| log.request(&record, at));
    let value: serde_json::Value = serde_json::from_str(&json).expect(&json);
    assert_eq!(value["path"], *record.path);
}

#[test]
fn a_traced_request_names_its_trace() {
    let mut rng = StdRng::seed_from_u64(1);
    let mut record = sample();
    record.trace = TraceContext::extract(&http::HeaderMap::new(), Some(Fraction::ALL), &mut rng);
    let id = hex(&record.trace.expect("one").trace_id);
    let text = written(Format::Text, |log, at| log.request(&record, at));
    assert!(text.ends_with(&format!(" trace_id={id}\n")), "{text}");
}

#[test]
fn days_become_dates() {
    for (day, date) in [
        (0, (1970, 1, 1)),
        (59, (1970, 3, 1)),
        (11_016, (2000, 2, 29)),
        (19_782, (2024, 2, 29)),
        (19_783, (2024, 3, 1)),
        (47_540, (2100, 2, 28)),
        (47_541, (2100, 3, 1)),
    ] {
        assert_eq!(civil(day), date, "{day}");
    }
}

#[test]
fn the_configuration_says_what_has_a_line() {
    let quiet = || {
        let mut record = sample();
        record.logged = false;
        record
    };
    let text = written(Format::Text, |log, at| {
        log.request(&quiet(), at);
        let mut connection = ConnectionRecord::new(
            Direction::Inbound,
            "10.0.0.1:1".parse().expect("address"),
            "10.0.0.2:2".parse().expect("address"),
            None,
            Instant::now(),
        );
        log.connection(&connection, at);
        connection.logged = false;
        log.connection(&connection, at);
        let all = AccessLog {
            scope: Scope::All,
            ..log.clone()
        };
        all.request(&quiet(), at);
    });
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(
        lines[0].contains("TCP") && lines[1].contains("/items"),
        "{text}"
    );
}

//! Fields that belong to one connection.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::http::h1::{keep_alive_timeout, strip_hop_by_hop, upgrade_token};

fn map(lines: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in lines {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        map.append(name, HeaderValue::from_str(value).unwrap());
    }
    map
}

fn stripped(lines: &[(&str, &str)]) -> Vec<(String, String)> {
    let mut headers = map(lines);
    strip_hop_by_hop(&mut headers);
    let pair = |(name, value): (&HeaderName, &HeaderValue)| {
        (name.to_string(), value.to_str().unwrap().to_owned())
    };
    headers.iter().map(pair).collect()
}

#[test]
fn ht_23_nominated_fields_of_all_lines_go() {
    let left = stripped(&[
        ("Connection", "X-Secret, close"),
        ("X-Secret", "1"),
        ("X-Secret", "2"),
        ("Connection", "x-other ,, Keep-Alive"),
        ("X-Other", "3"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Connection", "keep-alive"),
        ("Transfer-Encoding", "chunked"),
        ("Upgrade", "h2c"),
        ("Stays", "4"),
    ]);
    assert_eq!(left, [("stays".to_owned(), "4".to_owned())]);
}

#[test]
fn ht_23_routing_and_framing_cannot_be_nominated_away() {
    let lines = [
        ("connection", "host, content-length, te, bad name, "),
        ("host", "a"),
        ("content-length", "3"),
        ("te", "trailers"),
    ];
    let names: Vec<String> = stripped(&lines).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), 3, "{names:?}");
}

#[test]
fn ht_23_te_keeps_trailers_only() {
    for (te, left) in [
        (vec!["trailers"], Some("trailers")),
        (vec!["gzip, Trailers"], Some("trailers")),
        (vec!["gzip", "trailers;q=0.5, trailers"], Some("trailers")),
        (vec!["gzip"], None),
        (vec!["trailersx"], None),
        (vec![""], None),
    ] {
        let lines: Vec<_> = te.iter().map(|value| ("te", *value)).collect();
        let found = stripped(&lines).into_iter().map(|(_, value)| value).next();
        assert_eq!(found.as_deref(), left, "{te:?}");
    }
}

#[test]
fn an_upgrade_counts_when_connection_announces_it() {
    let token = |lines: &[(&str, &str)]| {
        upgrade_token(&map(lines)).map(|value| value.to_str().unwrap().to_owned())
    };
    let websocket = ("upgrade", "websocket");
    assert_eq!(
        token(&[
            ("connection", "keep-alive"),
            ("connection", "x, Upgrade"),
            websocket
        ])
        .as_deref(),
        Some("websocket")
    );
    assert_eq!(token(&[("connection", "close"), websocket]), None);
    assert_eq!(token(&[websocket]), None);
    assert_eq!(token(&[("connection", "upgrade")]), None);
}

#[test]
fn rt_02_how_long_an_endpoint_keeps_a_connection() {
    for (value, seconds) in [
        ("timeout=5", Some(5)),
        ("max=100, Timeout=\"7\"", Some(7)),
        ("timeout = 3", Some(3)),
        ("timeout=9, timeout=2", Some(2)),
        ("max=3", None),
        ("timeout", None),
        ("timeout=-1", None),
        ("timeout=99999999999", None),
    ] {
        assert_eq!(
            keep_alive_timeout(&map(&[("keep-alive", value)])),
            seconds.map(Duration::from_secs),
            "{value}"
        );
    }
}

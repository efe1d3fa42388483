//! From a finished request to what can be read of it.

use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;

use super::*;
use crate::{
    config::{ClusterName, SpiffeId},
    fault::Fault,
};

pub(super) fn record(now: Instant) -> Record {
    let address = |port| ([10, 0, 0, 1], port).into();
    let mut record = Record::new(Direction::Outbound, address(40000), address(80), now);
    record.cluster = Some(ClusterName::from("outbound|80||cart.shop.svc"));
    record.route = Some("default".into());
    record.status = Some(StatusCode::OK);
    record.upstream_peer = Some(SpiffeId::parse("spiffe://td/ns/shop/sa/cart").expect("good"));
    record.ended = now + Duration::from_micros(1500);
    (record.bytes_in, record.bytes_out) = (10, 1024);
    record.attempts.push(Attempt {
        ended: record.ended,
        wait: Duration::from_micros(1250),
        connect: Duration::from_micros(300),
        tls: Duration::from_micros(900),
        status: record.status,
        ..Attempt::new(address(8080), now)
    });
    record
}

/// The lines of a scrape that are not the process's own.
fn lines(telemetry: &Telemetry) -> Vec<String> {
    let text = telemetry.scrape().openmetrics();
    let ours = |line: &&str| !line.starts_with('#') && !line.starts_with("process_");
    text.lines().filter(ours).map(str::to_owned).collect()
}

#[test]
fn a_request_is_counted_under_the_names_of_the_configuration() {
    let telemetry = Telemetry::default();
    let now = Instant::now();
    let mut bad = record(now);
    bad.fault = Some(Fault::UpstreamReset);
    bad.status = Some(StatusCode::SERVICE_UNAVAILABLE);
    bad.grpc_status = Some(14);
    telemetry.request(&record(now));
    telemetry.request(&record(now));
    telemetry.request(&bad);
    let text = lines(&telemetry);
    let of = concat!(
        "direction=\"outbound\",cluster=\"outbound|80||cart.shop.svc\",",
        "route=\"default\",peer=\"spiffe://td/ns/shop/sa/cart\""
    );
    for line in [
        format!("outrigger_requests_total{{{of},code=\"200\",grpc_status=\"\",flag=\"\"}} 2"),
        format!("outrigger_requests_total{{{of},code=\"503\",grpc_status=\"14\",flag=\"UR\"}} 1"),
        format!("outrigger_request_bytes_total{{{of}}} 30"),
        format!("outrigger_response_bytes_total{{{of}}} 3072"),
        format!("outrigger_request_duration_seconds_count{{{of}}} 3"),
        format!("outrigger_request_duration_seconds_bucket{{le=\"0.001\",{of}}} 0"),
        format!("outrigger_request_duration_seconds_bucket{{le=\"0.0025\",{of}}} 3"),
        format!("outrigger_request_duration_seconds_bucket{{le=\"+Inf\",{of}}} 3"),
    ] {
        assert!(
            text.contains(&line),
            "{line}\nis not in\n{}",
            text.join("\n")
        );
    }
}

#[test]
fn ob_04_nothing_that_a_request_carries_becomes_a_label() {
    let telemetry = Telemetry::default();
    let now = Instant::now();
    for n in 0..100_000_u32 {
        let mut record = record(now);
        record.authority = format!("host-{n}").into();
        record.path = format!("/{n}").into();
        record.details = format!("text {n}");
        record.status = u16::try_from(100 + n % 900)
            .ok()
            .and_then(|code| StatusCode::from_u16(code).ok());
        telemetry.request(&record);
    }
    let sheet = telemetry.scrape();
    assert!(sheet.series() < 100, "{}", sheet.series());
    assert!(sheet.openmetrics().len() < 64 * 1024);
}

#[test]
fn ob_05_a_client_that_went_away_is_a_499_and_not_a_code_0() {
    let telemetry = Telemetry::default();
    let mut record = record(Instant::now());
    (record.status, record.fault) = (None, Some(Fault::DownstreamReset));
    telemetry.request(&record);
    let text = lines(&telemetry).join("\n");
    assert!(
        text.contains("code=\"499\",grpc_status=\"\",flag=\"DC\"} 1"),
        "{text}"
    );
}

#[test]
fn ob_04_series_die_with_their_cluster() {
    let telemetry = Telemetry::default();
    telemetry.request(&record(Instant::now()));
    let own = |telemetry: &Telemetry| {
        let text = lines(telemetry);
        text.iter().filter(|line| line.contains("cart")).count()
    };
    assert!(own(&telemetry) > 0);
    telemetry.keep_series_with(Box::new(Names::default));
    assert_eq!(own(&telemetry), 0);
}

#[test]
fn connections_are_counted_while_they_are_open() {
    let telemetry = Telemetry::default();
    let one = telemetry.accepted(Direction::Inbound);
    drop(telemetry.accepted(Direction::Inbound));
    let text = lines(&telemetry).join("\n");
    assert!(text.contains("outrigger_connections_total{direction=\"inbound\"} 2"));
    assert!(text.contains("outrigger_connections_active{direction=\"inbound\"} 1"));
    drop(one);
    let text = lines(&telemetry).join("\n");
    assert!(text.contains("outrigger_connections_active{direction=\"inbound\"} 0"));
}

#[test]
fn the_list_of_metrics_is_known() {
    let list: Vec<_> = metrics::ALL
        .iter()
        .map(|m| {
            format!(
                "{:?} {:?} {}{{{}}}",
                m.stability,
                m.kind,
                m.name,
                m.labels.join(",")
            )
        })
        .collect();
    insta::assert_snapshot!(list.join("\n"));
}

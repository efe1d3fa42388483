//! The numbers, for Prometheus and for people.

use http::StatusCode;
use serde_json::{Map, Value as Json, json};

use super::{
    Admin,
    call::{Answer, Call},
};
use crate::telemetry::metrics::{Kind, Metric, Text, Value};

/// OpenMetrics 1.0 §4.1.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// For Prometheus.
pub(super) fn prometheus(admin: &Admin, _: &Call<'_>) -> Answer {
    let text = admin.shared.telemetry.scrape().openmetrics();
    Answer::new(StatusCode::OK, OPENMETRICS, text)
}

/// For people, with a choice.
pub(super) fn page(admin: &Admin, call: &Call<'_>) -> Answer {
    let filter = match call.regex("filter") {
        Ok(filter) => filter,
        Err(refusal) => return refusal,
    };
    let json = match call.get("format") {
        Some("prometheus") if filter.is_none() && !call.has("usedonly") => {
            return prometheus(admin, call);
        }
        Some("prometheus") => return Answer::refused("format=prometheus goes unfiltered"),
        None | Some("text") => false,
        Some("json") => true,
        Some(other) => {
            return Answer::refused(&format!(
                "format: {other:?} is not one of text, json, prometheus"
            ));
        }
    };
    let sheet = admin.shared.telemetry.scrape();
    let mut text = String::new();
    let mut list = Vec::new();
    for (metric, labels, value) in sheet.iter() {
        if call.has("usedonly") && is_zero(value) {
            continue;
        }
        let name = name(metric, labels);
        if filter
            .as_ref()
            .is_some_and(|wanted| !wanted.is_match(&name))
        {
            continue;
        }
        if json {
            list.push(object(metric, labels, value));
        } else {
            text.push_str(&format!("{name}: {}\n", shown(value)));
        }
    }
    if json {
        Answer::json(&json!({ "stats": list }))
    } else {
        Answer::text(text)
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Count(n) => *n == 0,
        Value::Number(n) => *n == 0.0,
        Value::Histogram { buckets, .. } => buckets.iter().all(|(_, n)| *n == 0),
    }
}

/// As Prometheus would call the sample.
fn sample(metric: &Metric) -> String {
    let suffix = match metric.kind {
        Kind::Counter => "_total",
        Kind::Info => "_info",
        Kind::Gauge | Kind::Histogram => "",
    };
    format!("{}{suffix}", metric.name)
}

fn name(metric: &Metric, labels: &[Text]) -> String {
    let pairs = metric.labels.iter().zip(labels);
    let pairs: Vec<_> = pairs
        .map(|(key, value)| format!("{key}={value:?}"))
        .collect();
    if pairs.is_empty() {
        return sample(metric);
    }
    format!("{}{{{}}}", sample(metric), pairs.join(","))
}

fn shown(value: &Value) -> String {
    match value {
        Value::Count(n) => n.to_string(),
        Value::Number(n) => n.to_string(),
        Value::Histogram { sum, buckets } => {
            let count: u64 = buckets.iter().map(|(_, n)| n).sum();
            let at = |share| quantile(buckets, share);
            format!(
                "count={count} sum={sum} p50<={} p95<={} p99<={}",
                at(0.5),
                at(0.95),
                at(0.99)
            )
        }
    }
}

/// The upper bound of the bucket that holds the value below which `share` of all lie.
#[expect(clippy::cast_precision_loss, reason = "a share needs no last digit")]
fn quantile(buckets: &[(f64, u64)], share: f64) -> f64 {
    let all: u64 = buckets.iter().map(|(_, n)| n).sum();
    let mut below = 0;
    for (bound, n) in buckets {
        below += n;
        if below as f64 >= all as f64 * share {
            return *bound;
        }
    }
    f64::INFINITY
}

fn object(metric: &Metric, labels: &[Text], value: &Value) -> Json {
    let pairs = metric.labels.iter().zip(labels);
    let labels: Map<_, _> = pairs
        .map(|(key, value)| ((*key).to_owned(), json!(value)))
        .collect();
    let value = match value {
        Value::Count(n) => json!(n),
        Value::Number(n) => json!(n),
        Value::Histogram { sum, buckets } => json!({
            "sum": sum,
            "count": buckets.iter().map(|(_, n)| n).sum::<u64>(),
            "buckets": buckets
                .iter()
                // JSON has no infinity.
                .map(|(bound, n)| json!([bound.is_finite().then_some(bound), n]))
                .collect::<Vec<_>>(),
        }),
    };
    json!({ "name": sample(metric), "labels": labels, "value": value })
}

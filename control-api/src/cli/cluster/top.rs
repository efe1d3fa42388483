//! Requests by pod, counted twice and subtracted.

use std::{collections::BTreeMap, io::Write};

use ::kube::{Api, api::ListParams};
use futures_util::{StreamExt as _, stream};
use http::Method;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::Cluster;
use crate::{
    cli::{
        args::{Output, Top},
        show,
    },
    kube::{MESH_LABEL, MESH_SIDECAR, Name},
};

/// Proxies that are asked at once.
const AT_ONCE: usize = 8;
/// gRPC codes that are a server's failure (OpenTelemetry, semantic conventions for gRPC).
const GRPC_FAILURES: [&str; 6] = ["2", "4", "12", "13", "14", "15"];

pub(super) async fn run(
    cluster: &Cluster,
    args: Top,
    out: &mut (impl Write + Send),
) -> anyhow::Result<()> {
    let pods = match &args.pod {
        Some(name) => vec![cluster.pod(&args.namespace, name).await?],
        None => in_mesh(cluster, &args.namespace).await?,
    };
    if pods.is_empty() {
        anyhow::bail!("no pod of namespace {} is in the mesh", args.namespace);
    }
    let before = Box::pin(scrapes(cluster, &pods)).await;
    sleep(args.window).await;
    let after = Box::pin(scrapes(cluster, &pods)).await;
    let (mut lines, mut failed) = (Vec::new(), Vec::new());
    for (pod, (first, second)) in pods.iter().zip(before.into_iter().zip(after)) {
        let name = Name::of(pod).name;
        match (first, second) {
            (Ok((began, first)), Ok((ended, second))) => {
                let seconds = (ended - began).as_secs_f64();
                let sides = ["inbound", "outbound"].map(|side| {
                    let of = |scrape: &str| Counts::of(scrape, side);
                    of(&second).since(&of(&first)).rates(seconds)
                });
                lines.push((name, sides));
            }
            (Err(why), _) | (_, Err(why)) => failed.push(format!("{why:#}")),
        }
    }
    shown(out, &lines, args.output)?;
    if !failed.is_empty() {
        anyhow::bail!("{}", failed.join("\n"));
    }
    Ok(())
}

async fn in_mesh(cluster: &Cluster, namespace: &str) -> anyhow::Result<Vec<Pod>> {
    let pods = Api::<Pod>::namespaced(cluster.client.clone(), namespace);
    let label = format!("{MESH_LABEL}={MESH_SIDECAR}");
    let all = pods.list(&ListParams::default().labels(&label)).await;
    let mut all = all.map_err(|error| cluster.failed(error))?.items;
    all.retain(super::runs);
    Ok(all)
}

type Scrape = anyhow::Result<(Instant, String)>;

/// The metrics of each pod, in order.
async fn scrapes(cluster: &Cluster, pods: &[Pod]) -> Vec<Scrape> {
    let each = pods.iter().map(|pod| async move {
        let page = cluster.ask(pod, Method::GET, "/stats/prometheus").await?;
        Ok((Instant::now(), page))
    });
    stream::iter(each.collect::<Vec<_>>())
        .buffered(AT_ONCE)
        .collect()
        .await
}

/// One direction of one pod.
#[derive(Debug, Default, Clone, PartialEq)]
struct Counts {
    requests: f64,
    failed: f64,
    /// Requests that took no longer than the bound, by the bound in microseconds.
    within: BTreeMap<u64, f64>,
}

/// The same, for people.
#[derive(Debug, PartialEq)]
struct Rates {
    per_second: f64,
    /// `None` if there was no request.
    ok: Option<f64>,
    /// Seconds.
    p50: Option<f64>,
    p99: Option<f64>,
}

impl Counts {
    fn of(scrape: &str, side: &str) -> Self {
        let mut counts = Self::default();
        for (name, labels, value) in scrape.lines().filter_map(sample) {
            let label = |name: &str| labels.get(name).map_or("", String::as_str);
            if label("direction") != side {
                continue;
            }
            match name {
                "outrigger_requests_total" => {
                    counts.requests += value;
                    let server_error = label("code").parse().is_ok_and(|code: u16| code >= 500);
                    if server_error || GRPC_FAILURES.contains(&label("grpc_status")) {
                        counts.failed += value;
                    }
                }
                "outrigger_request_duration_seconds_bucket" => {
                    let bound = match label("le") {
                        "+Inf" => u64::MAX,
                        le => micros(le.parse().unwrap_or(0.0)),
                    };
                    *counts.within.entry(bound).or_default() += value;
                }
                _ => {}
            }
        }
        counts
    }

    /// What came after `before`. A proxy that was started anew counts from nothing.
    fn since(&self, before: &Self) -> Self {
        if self.requests < before.requests {
            return self.clone();
        }
        let within = self.within.iter().map(|(bound, count)| {
            let old = before.within.get(bound).copied().unwrap_or(0.0);
            (*bound, count - old)
        });
        Self {
            requests: self.requests - before.requests,
            failed: self.failed - before.failed,
            within: within.collect(),
        }
    }

    fn rates(&self, seconds: f64) -> Rates {
        let some = self.requests > 0.0;
        Rates {
            per_second: self.requests / seconds,
            ok: some.then(|| 1.0 - self.failed / self.requests),
            p50: self.quantile(0.5),
            p99: self.quantile(0.99),
        }
    }

    /// As Prometheus' `histogram_quantile`: in a straight line between the bounds of a bucket.
    fn quantile(&self, share: f64) -> Option<f64> {
        let all = self
            .within
            .get(&u64::MAX)
            .copied()
            .filter(|all| *all > 0.0)?;
        let rank = all * share;
        let (mut low, mut below) = (0.0, 0.0);
        for (bound, count) in &self.within {
            // Beyond the last bound nothing is known but that.
            if *bound == u64::MAX {
                break;
            }
            let high = seconds(*bound);
            if *count >= rank && *count > below {
                return Some(low + (high - low) * (rank - below) / (count - below));
            }
            (low, below) = (high, *count);
        }
        Some(low)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "bounds are seconds of a request, far from either end"
)]
fn micros(seconds: f64) -> u64 {
    (seconds * 1e6).round().max(0.0) as u64
}

#[expect(
    clippy::cast_precision_loss,
    reason = "microseconds of a request are exact below 2^53"
)]
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

/// Name, labels and value.
type Sample<'l> = (&'l str, BTreeMap<String, String>, f64);

/// A line of Prometheus' text format: name, labels, value; `None` for what is none.
fn sample(line: &str) -> Option<Sample<'_>> {
    if line.starts_with('#') {
        return None;
    }
    let Some((name, rest)) = line.split_once('{') else {
        let (name, value) = line.split_once(' ')?;
        return Some((name, BTreeMap::new(), value.trim().parse().ok()?));
    };
    let (mut labels, mut rest) = (BTreeMap::new(), rest);
    while let Some((key, after)) = rest.split_once("=\"") {
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next()? {
                (at, '"') => break at + 1,
                (_, '\\') => value.push(match chars.next()?.1 {
                    'n' => '\n',
                    other => other,
                }),
                (_, other) => value.push(other),
            }
        };
        labels.insert(key.trim_start_matches(',').to_owned(), value);
        rest = after.get(end..)?;
        if rest.starts_with('}') {
            break;
        }
    }
    let value = rest.trim_start_matches('}').trim();
    let value = value.split(' ').next()?.parse().ok()?;
    Some((name, labels, value))
}

fn shown(
    out: &mut impl Write,
    lines: &[(String, [Rates; 2])],
    output: Output,
) -> anyhow::Result<()> {
    if matches!(output, Output::Json | Output::Yaml) {
        let side = |rates: &Rates| {
            json!({"perSecond": rates.per_second, "ok": rates.ok,
                "p50Seconds": rates.p50, "p99Seconds": rates.p99})
        };
        let all = lines.iter().map(|(pod, [inbound, outbound])| {
            json!({"pod": pod, "in": side(inbound), "out": side(outbound)})
        });
        let all: Vec<Value> = all.collect();
        return show::data(out, &[Value::Array(all)], output);
    }
    let time = |seconds: Option<f64>| match seconds {
        None => "-".to_owned(),
        Some(seconds) if seconds >= 1.0 => format!("{seconds:.1}s"),
        Some(seconds) => format!("{:.1}ms", seconds * 1e3),
    };
    let rows = lines.iter().map(|(pod, sides)| {
        let cells = sides.iter().flat_map(|rates| {
            let ok = rates
                .ok
                .map_or_else(|| "-".to_owned(), |ok| format!("{:.1}%", ok * 100.0));
            [
                format!("{:.1}", rates.per_second),
                ok,
                time(rates.p50),
                time(rates.p99),
            ]
        });
        [pod.clone()].into_iter().chain(cells).collect()
    });
    let header = [
        "POD", "IN RPS", "OK", "P50", "P99", "OUT RPS", "OK", "P50", "P99",
    ];
    show::table(out, &header, &rows.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = r#"
# HELP outrigger_requests HTTP requests
outrigger_requests_total{direction="inbound",cluster="c",code="200",grpc_status="",flag=""} 10
outrigger_requests_total{direction="outbound",cluster="c",code="200",grpc_status="",flag=""} 1000
outrigger_request_duration_seconds_bucket{direction="inbound",le="0.001"} 10
outrigger_request_duration_seconds_bucket{direction="inbound",le="0.01"} 10
outrigger_request_duration_seconds_bucket{direction="inbound",le="+Inf"} 10
"#;
    const SECOND: &str = r#"
outrigger_requests_total{direction="inbound",cluster="c",code="200",grpc_status="",flag=""} 90
outrigger_requests_total{direction="inbound",cluster="c",code="503",grpc_status="",flag="UF"} 10
outrigger_requests_total{direction="inbound",cluster="c",code="200",grpc_status="13",flag=""} 10
outrigger_request_duration_seconds_bucket{direction="inbound",le="0.001"} 10
outrigger_request_duration_seconds_bucket{direction="inbound",le="0.01"} 90
outrigger_request_duration_seconds_bucket{direction="inbound",le="+Inf"} 110
"#;

    #[test]
    fn two_scrapes_make_rates() {
        let (first, second) = (Counts::of(FIRST, "inbound"), Counts::of(SECOND, "inbound"));
        let rates = second.since(&first).rates(5.0);
        assert_eq!((rates.per_second, rates.ok), (20.0, Some(0.8)));
        // 100 requests, 80 of them between 1 and 10 ms: the 50th lies at 50/80 of the way.
        let p50 = rates.p50.expect("requests");
        assert!((p50 - 0.006_625).abs() < 1e-9, "{p50}");
        assert_eq!(rates.p99, Some(0.01), "the last bound that is known");
    }

    #[test]
    fn a_proxy_that_was_started_anew_counts_from_nothing() {
        let (first, second) = (Counts::of(SECOND, "inbound"), Counts::of(FIRST, "inbound"));
        assert_eq!(second.since(&first).requests, 10.0);
    }

    #[test]
    fn nothing_is_no_number() {
        let rates = Counts::default().rates(1.0);
        assert_eq!((rates.per_second, rates.ok, rates.p50), (0.0, None, None));
    }

    #[test]
    fn labels_may_hold_anything() {
        let (name, labels, value) = sample(r#"m{a="x\"y,}z\\",b="\n"} 4 17"#).expect("a sample");
        assert_eq!((name, value), ("m", 4.0));
        assert_eq!(
            (labels["a"].as_str(), labels["b"].as_str()),
            ("x\"y,}z\\", "\n")
        );
        assert_eq!(sample("plain 2.5").map(|s| s.2), Some(2.5));
        for none in ["", "# TYPE m counter", "m{a=\"b", "m{a=\"b\"} x"] {
            assert_eq!(sample(none), None, "{none}");
        }
    }
}

//! Every metric of the proxy, declared once: its name, its type, its labels, what it says.
//!
//! Labels are configuration or come from a closed list; never a path, a host, or anything else that
//! a request carries (OB-04). Values that live elsewhere are added to a [`Sheet`] when somebody
//! asks.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet},
    metrics::MetricType,
    registry::Registry,
};

/// What kind of number a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows. Its samples are called `<name>_total`.
    Counter,
    Gauge,
    Histogram,
    /// Always 1; what it says is in its labels. Its sample is called `<name>_info`.
    Info,
}

/// How much its name and labels may be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stability {
    /// Dashboards and alerts may rest on it; it changes only with a new major version.
    Core,
    /// May change with any version.
    Unstable,
}

/// One metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Without the suffix that its kind adds.
    pub name: &'static str,
    pub kind: Kind,
    pub stability: Stability,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

macro_rules! metrics {
    ($($id:ident = $kind:ident $stability:ident $name:literal
       [$($label:literal),*] $help:literal;)*)
    => {
        $(
            #[doc = $help]
            pub const $id: Metric = Metric {
                name: $name,
                kind: Kind::$kind,
                stability: Stability::$stability,
                labels: &[$($label),*],
                help: $help,
            };
        )*

        /// All of them, in the order of declaration.
        pub const ALL: &[Metric] = &[$($id),*];
    };
}

metrics! {
    REQUESTS = Counter Core "outrigger_requests"
        ["direction", "cluster", "route", "peer", "code", "grpc_status", "flag"]
        "HTTP requests that ended, by answer and by the proxy's own reason (response flag)";
    REQUEST_DURATION = Histogram Core "outrigger_request_duration_seconds"
        ["direction", "cluster", "route", "peer"]
        "From the head of a request to the end of its answer";
    REQUEST_BYTES = Counter Core "outrigger_request_bytes"
        ["direction", "cluster", "route", "peer"]
        "Bytes of request bodies";
    RESPONSE_BYTES = Counter Core "outrigger_response_bytes"
        ["direction", "cluster", "route", "peer"]
        "Bytes of response bodies";
    CONNECTIONS = Counter Core "outrigger_connections" ["direction"]
        "Connections accepted";
    CONNECTIONS_ACTIVE = Gauge Core "outrigger_connections_active" ["direction"]
        "Accepted connections that are open";
    TCP_CONNECTIONS = Counter Core "outrigger_tcp_connections"
        ["direction", "cluster", "peer", "flag"]
        "Opaque connections that ended";
    TCP_BYTES = Counter Core "outrigger_tcp_bytes" ["direction", "cluster", "peer", "way"]
        "Bytes relayed on opaque connections that ended: sent to the upstream, received from it";
    ATTEMPTS = Counter Core "outrigger_attempts" ["direction", "cluster", "outcome"]
        "Tries of requests: ok, server_error (an answer of 500 or above), or the name of a fault";
    CONNECT_DURATION = Histogram Core "outrigger_upstream_connect_duration_seconds"
        ["direction", "cluster"]
        "Time that a new upstream connection took, without TLS";
    TLS_DURATION = Histogram Core "outrigger_upstream_tls_duration_seconds"
        ["direction", "cluster"]
        "Time that the TLS handshake of a new upstream connection took";
    TLS_FAILURES = Counter Core "outrigger_tls_handshake_failures" ["direction", "reason"]
        "TLS handshakes that failed";
    CLUSTER_REQUESTS_ACTIVE = Gauge Core "outrigger_cluster_requests_active" ["cluster"]
        "Requests in flight";
    CLUSTER_CONNECTIONS_ACTIVE = Gauge Core "outrigger_cluster_connections_active" ["cluster"]
        "Upstream connections that are open";
    CLUSTER_PENDING = Gauge Core "outrigger_cluster_pending" ["cluster"]
        "Requests that wait for a connection";
    CLUSTER_OVERFLOW = Counter Core "outrigger_cluster_overflow" ["cluster", "limit"]
        "Times that a limit refused: requests, connections, pending, retries";
    CLUSTER_RETRIES = Counter Core "outrigger_cluster_retries" ["cluster"]
        "Retries made";
    CLUSTER_BREAKER_STATE = Gauge Core "outrigger_cluster_breaker_state" ["cluster", "state"]
        "1 for the state that the circuit breaker is in";
    CLUSTER_BREAKER_TRANSITIONS = Counter Unstable "outrigger_cluster_breaker_transitions"
        ["cluster"]
        "Times that the circuit breaker changed its state";
    CLUSTER_BREAKER_REJECTIONS = Counter Core "outrigger_cluster_breaker_rejections" ["cluster"]
        "Requests that the open circuit breaker refused";
    CLUSTER_EJECTIONS = Counter Core "outrigger_cluster_endpoint_ejections" ["cluster"]
        "Times that an endpoint was ejected";
    CLUSTER_ENDPOINTS = Gauge Core "outrigger_cluster_endpoints" ["cluster", "state"]
        "Endpoints, by whether they may be chosen: available, unavailable";
    IDENTITY_EXPIRY = Gauge Core "outrigger_identity_expiry_seconds" []
        "Until the certificate in use expires; below zero after it did";
    XDS_CONNECTED = Gauge Core "outrigger_xds_connected" []
        "1 while the control plane answers";
    XDS_UPDATES = Counter Core "outrigger_xds_updates" ["type", "result"]
        "Resources received, by what became of them";
    XDS_STREAMS = Counter Unstable "outrigger_xds_streams" []
        "Streams opened to the control plane";
    XDS_FAILURES = Counter Unstable "outrigger_xds_failures" []
        "Streams that could not be opened or were given up";
    XDS_IGNORED = Counter Unstable "outrigger_xds_ignored_fields" ["type", "field"]
        "Times that a field which the proxy does not honour was set";
    XDS_DESTINATIONS = Gauge Unstable "outrigger_xds_destinations" []
        "Destinations subscribed on demand";
    CONFIG_AGE = Gauge Core "outrigger_config_age_seconds" []
        "Since the last answer of the control plane";
    CONFIG_GENERATION = Gauge Unstable "outrigger_config_generation" []
        "Number of the configuration in force";
    LOG_DROPPED = Counter Core "outrigger_access_log_dropped" []
        "Access log lines dropped because the reader of the log was too slow";
    SPANS = Counter Core "outrigger_spans" ["outcome"]
        "Spans: exported, dropped (the queue was full), failed (the collector refused or was away)";
    SERIES_OVERFLOW = Counter Unstable "outrigger_metric_series_overflow" []
        "Requests counted under `other` because there are too many series";
    WORKLOAD = Info Core "outrigger_workload"
        ["workload", "namespace", "service_account", "trust_domain", "zone"]
        "The workload that this proxy belongs to";
    BUILD = Info Core "outrigger_build" ["version"]
        "Version of the proxy";
    PROCESS_MEMORY = Gauge Core "process_resident_memory_bytes" []
        "Resident memory";
    PROCESS_FDS = Gauge Core "process_open_fds" []
        "Open file descriptors";
    PROCESS_CPU = Counter Core "process_cpu_seconds" []
        "User and system CPU time";
    PROCESS_START = Gauge Core "process_start_time_seconds" []
        "Start of the process, in seconds of Unix time";
}

/// Upper bounds of histogram buckets in seconds: a sidecar's own share is well below a millisecond.
pub const BUCKETS: [f64; 18] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0, 30.0, 60.0,
];

/// A value of one series.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Count(u64),
    Number(f64),
    Histogram {
        sum: f64,
        /// Upper bound and count of each bucket, not cumulated.
        buckets: Vec<(f64, u64)>,
    },
}

/// A label's value.
pub type Text = Cow<'static, str>;

/// A metric's series: values of its labels, and the number.
type Series = Vec<(Vec<Text>, Value)>;

/// All series of one scrape. Samples of a metric stay together, as the format demands.
#[derive(Debug, Default)]
pub struct Sheet {
    families: BTreeMap<&'static str, (Metric, Series)>,
}

impl Sheet {
    /// Adds a series of `metric`, whose labels have `values` in their declared order.
    pub fn add<const N: usize>(&mut self, metric: &Metric, values: [Text; N], value: Value) {
        debug_assert_eq!(metric.labels.len(), N, "{}", metric.name);
        let family = self.families.entry(metric.name);
        let (_, series) = family.or_insert_with(|| (*metric, Vec::new()));
        series.push((values.into(), value));
    }

    /// Adds a counter's series.
    pub fn count<const N: usize>(&mut self, metric: &Metric, values: [Text; N], value: u64) {
        self.add(metric, values, Value::Count(value));
    }

    /// Adds a gauge's series.
    pub fn gauge<const N: usize>(
        &mut self,
        metric: &Metric,
        values: [Text; N],
        value: impl Into<f64>,
    ) {
        self.add(metric, values, Value::Number(value.into()));
    }

    /// How many series there are.
    #[must_use]
    pub fn series(&self) -> usize {
        self.families.values().map(|(_, series)| series.len()).sum()
    }

    /// Each series as `name`, labels and value, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&Metric, &[Text], &Value)> {
        self.families.values().flat_map(|(metric, series)| {
            let each = series.iter();
            each.map(move |(values, value)| (metric, values.as_slice(), value))
        })
    }

    /// The sheet in the OpenMetrics text format.
    #[must_use]
    pub fn openmetrics(self) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        if prometheus_client::encoding::text::encode(&mut text, &registry).is_err() {
            // Writing to a string cannot fail, so this is an encoder at odds with its own format.
            tracing::error!("the metrics could not be written whole");
        }
        text
    }
}

impl Collector for Sheet {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (metric, series) in self.families.values() {
            let kind = kind_of(metric);
            let mut family = encoder.encode_descriptor(metric.name, metric.help, None, kind)?;
            for (values, value) in series {
                let labels: Vec<(&str, &str)> = metric
                    .labels
                    .iter()
                    .zip(values)
                    .map(|(key, value)| (*key, value.as_ref()))
                    .collect();
                match (metric.kind, labels.is_empty()) {
                    (Kind::Info, _) => family.encode_info(&labels)?,
                    (_, true) => encode_value(metric.kind, value, &mut family)?,
                    (_, false) => {
                        let mut one = family.encode_family(&labels)?;
                        encode_value(metric.kind, value, &mut one)?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn kind_of(metric: &Metric) -> MetricType {
    match metric.kind {
        Kind::Counter => MetricType::Counter,
        Kind::Gauge => MetricType::Gauge,
        Kind::Histogram => MetricType::Histogram,
        Kind::Info => MetricType::Info,
    }
}

fn encode_value(kind: Kind, value: &Value, encoder: &mut MetricEncoder<'_>) -> fmt::Result {
    match (kind, value) {
        (Kind::Counter, Value::Count(n)) => encoder.encode_counter::<NoLabelSet, _, u64>(n, None),
        (Kind::Counter, Value::Number(n)) => encoder.encode_counter::<NoLabelSet, _, f64>(n, None),
        (_, Value::Count(n)) => encoder.encode_gauge(n),
        (_, Value::Number(n)) => encoder.encode_gauge(n),
        (_, Value::Histogram { sum, buckets }) => {
            let count = buckets.iter().map(|(_, n)| n).sum();
            encoder.encode_histogram::<NoLabelSet>(*sum, count, buckets, None)
        }
    }
}

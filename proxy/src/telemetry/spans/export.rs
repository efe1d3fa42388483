//! Sends spans in batches, again when that fails, and gives up in the end.

use std::{collections::HashMap, sync::Arc, sync::atomic::Ordering::Relaxed, time::Duration};

use opentelemetry::InstrumentationScope;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use rand::{RngExt, rngs::StdRng};
use tokio::{
    sync::mpsc::Receiver,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{Counts, Finished, Queue, build};
use crate::config::listener::Collector;

/// Requests whose spans go in one call: some 100 KiB, and under the 4 MiB that gRPC servers take
/// even with the longest texts.
const MAX_BATCH: usize = 256;
/// How long a batch is gathered, so that a few spans do not make as many calls.
const GATHER: Duration = Duration::from_secs(1);
/// One call. A collector that takes longer is as good as away.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Calls for one batch, before it is given up in favour of newer ones.
const MAX_CALLS: u32 = 3;
/// The wait after a failed call is drawn from zero to this, doubled with each failure in a row.
const BACKOFF: Duration = Duration::from_millis(500);
/// Longest wait: so long after a collector is back, it gets spans again.
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// Collectors that are known at a time. Configurations name one or two.
const MAX_COLLECTORS: usize = 4;

type To = Option<Arc<Collector>>;

/// Sends what is in a [`Queue`].
#[derive(Debug)]
pub struct Exporter<M, E> {
    receiver: Receiver<Finished>,
    counts: Arc<Counts>,
    /// Makes what talks to a collector.
    make: M,
    made: HashMap<To, E>,
    scope: InstrumentationScope,
    rng: StdRng,
    /// Failed calls in a row.
    failures: u32,
}

impl<M, E> Exporter<M, E>
where
    M: FnMut(Option<&Collector>) -> Option<E>,
    E: SpanExporter,
{
    /// An exporter that talks to a collector by what `make` makes for it; `None` there means that
    /// this collector cannot be talked to.
    #[must_use]
    pub fn new(queue: Queue, make: M, rng: StdRng) -> Self {
        let Queue { receiver, counts } = queue;
        Self {
            receiver,
            counts,
            make,
            made: HashMap::new(),
            scope: InstrumentationScope::builder("outrigger-proxy")
                .with_version(env!("CARGO_PKG_VERSION"))
                .build(),
            rng,
            failures: 0,
        }
    }

    /// Sends spans until `stop`, and then those that wait.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut batch = Vec::with_capacity(MAX_BATCH);
        loop {
            if stop.is_cancelled() {
                self.receiver.close();
            }
            let got = tokio::select! {
                got = self.receiver.recv_many(&mut batch, MAX_BATCH) => got,
                () = stop.cancelled(), if !stop.is_cancelled() => continue,
            };
            if got == 0 {
                return;
            }
            self.gather(&mut batch, &stop).await;
            while let Some(first) = batch.first() {
                let to = first.collector().cloned();
                let (same, others) = batch
                    .drain(..)
                    .partition(|one| one.collector() == to.as_ref());
                batch = others;
                self.send(&to, same, &stop).await;
            }
        }
    }

    /// Waits for more, but not for long, and not when the end has come.
    async fn gather(&mut self, batch: &mut Vec<Finished>, stop: &CancellationToken) {
        let until = Instant::now() + GATHER;
        while batch.len() < MAX_BATCH {
            let room = MAX_BATCH - batch.len();
            let more = timeout_at(until, self.receiver.recv_many(batch, room));
            tokio::select! {
                more = more => if !matches!(more, Ok(1..)) { return },
                () = stop.cancelled() => {
                    while batch.len() < MAX_BATCH && let Ok(one) = self.receiver.try_recv() {
                        batch.push(one);
                    }
                    return;
                }
            }
        }
    }

    async fn send(&mut self, to: &To, batch: Vec<Finished>, stop: &CancellationToken) {
        let scope = &self.scope;
        let spans: Vec<SpanData> = batch
            .iter()
            .flat_map(|finished| build::spans(finished, scope))
            .collect();
        drop(batch);
        let number = spans.len() as u64;
        for call in 1..=MAX_CALLS {
            let last = call == MAX_CALLS || stop.is_cancelled();
            match self.call(to, spans.clone()).await {
                Ok(()) => {
                    if self.failures > 0 {
                        tracing::info!(after = self.failures, "traces are taken again");
                    }
                    self.failures = 0;
                    self.counts.exported.fetch_add(number, Relaxed);
                    return;
                }
                Err(error) => {
                    if self.failures == 0 {
                        tracing::warn!(error, "traces cannot be exported");
                    }
                    self.failures = self.failures.saturating_add(1);
                }
            }
            if last {
                break;
            }
            let wait = self.backoff();
            tokio::select! {
                () = sleep(wait) => {}
                () = stop.cancelled() => {}
            }
        }
        self.counts.failed.fetch_add(number, Relaxed);
    }

    async fn call(&mut self, to: &To, spans: Vec<SpanData>) -> Result<(), String> {
        if !self.made.contains_key(to) {
            if self.made.len() >= MAX_COLLECTORS {
                self.made.clear();
            }
            let made = (self.make)(to.as_deref()).ok_or("there is no such collector")?;
            self.made.insert(to.clone(), made);
        }
        let Some(exporter) = self.made.get(to) else {
            return Err("there is no such collector".to_owned());
        };
        match timeout(CALL_TIMEOUT, exporter.export(spans)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {CALL_TIMEOUT:?}")),
        }
    }

    /// Full jitter, so that the proxies of a mesh do not come back all at once.
    fn backoff(&mut self) -> Duration {
        let doubled = BACKOFF.saturating_mul(1 << self.failures.min(8));
        doubled.min(MAX_BACKOFF).mul_f64(self.rng.random())
    }
}

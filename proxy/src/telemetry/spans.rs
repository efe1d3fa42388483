//! Spans: which requests have them, and their way to the collector.
//!
//! A worker hands over the record of a sampled request and is done: the queue is bounded and never
//! waited for. One task on the control thread turns records into spans (`build.rs`) and sends them
//! in batches (`export.rs`). A collector that is away or slow costs spans, which are counted, and
//! nothing else (OB-03).
//!
//! Why not the SDK's own pipeline: its queue does not tell what it dropped, and its spans are made
//! on the thread that serves the request.

mod build;
mod collector;
mod export;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::SystemTime,
};

use tokio::sync::mpsc::{self, Receiver, Sender};

pub use collector::{Dial, Endpoint, To, Workload, export};
pub use export::Exporter;

use super::{
    Record, WallClock,
    metrics::{self, Sheet},
};
use crate::config::{
    listener::{Collector, Tracing},
    units::Fraction,
};

/// Requests whose spans may wait: some seconds of a busy pod at a usual share, about 4 MiB when all
/// of them have the longest texts.
pub const MAX_QUEUED: usize = 2048;
/// Longest text of a client in a span.
const MAX_TEXT: usize = 1024;

/// What became of spans.
#[derive(Debug, Default)]
struct Counts {
    exported: AtomicU64,
    /// There was no room in the queue.
    dropped: AtomicU64,
    /// The collector refused them, or was away for too long.
    failed: AtomicU64,
}

/// A request whose spans are wanted.
#[derive(Debug)]
struct Finished {
    record: Record,
    /// When that was, by the time of day.
    ended: SystemTime,
}

/// The workers' end of the way.
#[derive(Debug)]
pub struct Spans {
    queue: Sender<Finished>,
    counts: Arc<Counts>,
    sampling: Fraction,
    everywhere: bool,
}

/// The other end, for an [`Exporter`].
#[derive(Debug)]
pub struct Queue {
    receiver: Receiver<Finished>,
    counts: Arc<Counts>,
}

impl Spans {
    /// A way for the spans of requests. `sampling` is the share of requests that are traced when
    /// neither their caller nor the configuration says. With `everywhere` there is a collector for
    /// all of them, else only where the configuration names one.
    #[must_use]
    pub fn new(sampling: Fraction, everywhere: bool) -> (Self, Queue) {
        let (queue, receiver) = mpsc::channel(MAX_QUEUED);
        let counts = Arc::<Counts>::default();
        let spans = Self {
            queue,
            counts: Arc::clone(&counts),
            sampling,
            everywhere,
        };
        (spans, Queue { receiver, counts })
    }

    /// The share of requests that are traced when their caller has not decided; `None` where there
    /// is no collector, so that no span is made.
    #[must_use]
    pub(super) fn sampling(&self, tracing: Option<&Tracing>) -> Option<Fraction> {
        let named = tracing.is_some_and(|tracing| tracing.collector.is_some());
        (self.everywhere || named)
            .then(|| tracing.map_or(self.sampling, |tracing| tracing.random_sampling))
    }

    /// Takes a request that has ended, if it is sampled.
    pub(super) fn push(&self, record: &Record, clock: &WallClock) {
        if !record.trace.as_ref().is_some_and(|trace| trace.sampled) {
            return;
        }
        // The place first: without one, copying would be for nothing.
        let Ok(place) = self.queue.try_reserve() else {
            self.counts
                .dropped
                .fetch_add(build::number(record), Relaxed);
            return;
        };
        let mut record = record.clone();
        // Copies, so that what waits to be sent does not keep whole heads.
        for text in [&mut record.path, &mut record.authority] {
            let mut own = text.to_string();
            cut(&mut own);
            *text = own.into();
        }
        cut(&mut record.details);
        for attempt in &mut record.attempts {
            cut(&mut attempt.detail);
        }
        let (now, since) = (clock(), record.ended.elapsed());
        let ended = now.checked_sub(since).unwrap_or(now);
        place.send(Finished { record, ended });
    }

    pub(super) fn collect(&self, sheet: &mut Sheet) {
        for (outcome, count) in [
            ("exported", &self.counts.exported),
            ("dropped", &self.counts.dropped),
            ("failed", &self.counts.failed),
        ] {
            sheet.count(&metrics::SPANS, [outcome.into()], count.load(Relaxed));
        }
    }
}

impl Finished {
    /// Who gets its spans; `None` for the one that the proxy was started with.
    const fn collector(&self) -> Option<&Arc<Collector>> {
        self.record.collector.as_ref()
    }
}

fn cut(text: &mut String) {
    if text.len() > MAX_TEXT {
        let end = text.floor_char_boundary(MAX_TEXT);
        text.truncate(end);
        text.shrink_to_fit();
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

//! Spans as tests look at them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use opentelemetry::trace::{SpanId, Status};
use opentelemetry_sdk::{
    error::{OTelSdkError, OTelSdkResult},
    trace::{SpanData, SpanExporter},
};
use rand::{SeedableRng, rngs::StdRng};
use tokio_util::sync::CancellationToken;

use super::{Exporter, Spans};
use crate::config::units::Fraction;

/// One span.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) trace_id: String,
    pub(crate) id: String,
    /// Empty for none.
    pub(crate) parent: String,
    pub(crate) name: String,
    /// `Server` or `Client`.
    pub(crate) kind: String,
    pub(crate) error: bool,
    pub(crate) description: String,
    pub(crate) attributes: BTreeMap<String, String>,
    pub(crate) events: Vec<String>,
    pub(crate) lasted: Duration,
}

impl Seen {
    fn of(span: SpanData) -> Self {
        let (error, description) = match span.status {
            Status::Error { description } => (true, description.into_owned()),
            Status::Unset | Status::Ok => (false, String::new()),
        };
        let parent = span.parent_span_id;
        let lasted = span.end_time.duration_since(span.start_time);
        let attributes = span.attributes.into_iter();
        Self {
            trace_id: span.span_context.trace_id().to_string(),
            id: span.span_context.span_id().to_string(),
            parent: if parent == SpanId::INVALID {
                String::new()
            } else {
                parent.to_string()
            },
            name: span.name.into_owned(),
            kind: format!("{:?}", span.span_kind),
            error,
            description,
            attributes: attributes
                .map(|pair| (pair.key.to_string(), pair.value.to_string()))
                .collect(),
            events: span.events.iter().map(|e| e.name.to_string()).collect(),
            lasted: lasted.expect("ends after it began"),
        }
    }

    /// An attribute, empty when it is not there.
    pub(crate) fn get(&self, key: &str) -> &str {
        self.attributes.get(key).map_or("", String::as_str)
    }
}

/// What a collector does with a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mood {
    #[default]
    Takes,
    Refuses,
    /// Never answers.
    Hangs,
}

/// A collector in memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stub(Arc<Mutex<Inside>>);

#[derive(Debug, Default)]
struct Inside {
    seen: Vec<Seen>,
    calls: usize,
    mood: Mood,
}

impl Stub {
    /// Starts a way for spans that ends in a new collector.
    pub(crate) fn start(stop: CancellationToken) -> (Self, Spans, tokio::task::JoinHandle<()>) {
        let stub = Self::default();
        let (spans, queue) = Spans::new(Fraction::ALL, true);
        let made = stub.clone();
        let rng = StdRng::seed_from_u64(1);
        let exporter = Exporter::new(queue, move |_| Some(made.clone()), rng);
        (stub, spans, tokio::spawn(exporter.run(stop)))
    }

    pub(crate) fn mood(&self, mood: Mood) {
        self.0.lock().expect("lock").mood = mood;
    }

    pub(crate) fn calls(&self) -> usize {
        self.0.lock().expect("lock").calls
    }

    /// All spans that came, in the order of their coming.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.0.lock().expect("lock").seen.clone()
    }
}

impl SpanExporter for Stub {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let mood = {
            let mut inside = self.0.lock().expect("lock");
            inside.calls += 1;
            inside.mood
        };
        match mood {
            Mood::Takes => {}
            Mood::Refuses => return Err(OTelSdkError::InternalFailure("no".into())),
            Mood::Hangs => std::future::pending().await,
        }
        let mut inside = self.0.lock().expect("lock");
        inside.seen.extend(batch.into_iter().map(Seen::of));
        Ok(())
    }
}

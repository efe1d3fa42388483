//! What the proxy says about what it did. A finished request comes here once, as a [`Record`], and
//! becomes numbers, a line of the access log and, if it is sampled, spans.

pub mod access_log;
mod count;
pub mod lines;
pub mod logging;
pub mod metrics;
mod process;
pub mod record;
mod series;
pub mod spans;
pub mod text;
pub mod trace;

use std::{
    collections::HashSet,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

pub use access_log::AccessLog;
pub use count::TlsFailure;
pub use lines::Lines;
pub use logging::Logging;
pub use record::{Attempt, ConnectionRecord, Record};
pub use series::{MAX_PEERS, MAX_SERIES, OTHER};
pub use spans::Spans;
pub use text::Text;
pub use trace::TraceContext;

use crate::config::{
    ClusterName,
    listener::{Direction, Tracing},
    units::Fraction,
};
use count::Counters;
use metrics::Sheet;

/// Adds what others count to a scrape.
pub type Collect = Box<dyn Fn(&mut Sheet) + Send + Sync>;
/// Reads which names are in the configuration.
pub type ReadNames = Box<dyn Fn() -> Names + Send + Sync>;

/// Names that series may have.
#[derive(Debug, Default)]
pub struct Names {
    pub clusters: HashSet<ClusterName>,
    pub routes: HashSet<Arc<str>>,
}

impl Names {
    /// An empty name is none, and that is always right.
    fn have(&self, cluster: &str, route: &str) -> bool {
        (cluster.is_empty() || self.clusters.contains(cluster))
            && (route.is_empty() || self.routes.contains(route))
    }
}

/// Reads the time of day.
pub type WallClock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// What a [`Telemetry`] is made of.
pub struct Setup {
    pub clock: WallClock,
    pub access_log: Option<AccessLog>,
    pub spans: Option<Spans>,
}

impl Default for Setup {
    /// Counts and nothing else.
    fn default() -> Self {
        Self {
            clock: Arc::new(|| SystemTime::UNIX_EPOCH),
            access_log: None,
            spans: None,
        }
    }
}

impl fmt::Debug for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Setup")
            .field("access_log", &self.access_log)
            .field("spans", &self.spans)
            .finish_non_exhaustive()
    }
}

/// Everything that watches.
#[derive(Default)]
pub struct Telemetry {
    setup: Setup,
    counters: Counters,
    sources: Mutex<Sources>,
}

#[derive(Default)]
struct Sources {
    collect: Vec<Collect>,
    names: Option<ReadNames>,
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry").finish_non_exhaustive()
    }
}

impl Telemetry {
    /// Starts watching.
    #[must_use]
    pub fn new(setup: Setup) -> Self {
        Self {
            setup,
            ..Self::default()
        }
    }

    /// Takes a finished request.
    pub fn request(&self, record: &Record) {
        self.counters.request(record);
        if let Some(log) = &self.setup.access_log {
            log.request(record, (self.setup.clock)());
        }
        if let Some(spans) = &self.setup.spans {
            spans.push(record, &self.setup.clock);
        }
    }

    /// The share of requests that are traced where `tracing` is configured and their caller has not
    /// decided; `None` where nobody would get their spans.
    #[must_use]
    pub fn sampling(&self, tracing: Option<&Tracing>) -> Option<Fraction> {
        self.setup.spans.as_ref()?.sampling(tracing)
    }

    /// Takes a finished opaque connection.
    pub fn connection(&self, record: &ConnectionRecord) {
        self.counters.connection(record);
        if let Some(log) = &self.setup.access_log {
            log.connection(record, (self.setup.clock)());
        }
    }

    /// Counts an accepted connection for as long as the guard lives.
    #[must_use]
    pub fn accepted(&self, direction: Direction) -> OpenConnection<'_> {
        self.counters.accepted(direction);
        OpenConnection(&self.counters, direction)
    }

    /// Counts a failed TLS handshake with a client.
    pub fn tls_failure(&self, direction: Direction, why: TlsFailure) {
        self.counters.tls_failure(direction, why);
    }

    /// Asks `collect` at each scrape for numbers that others own.
    pub fn collect_with(&self, collect: Collect) {
        self.sources().collect.push(collect);
    }

    /// Drops at each scrape the series whose names `names` does not have.
    pub fn keep_series_with(&self, names: ReadNames) {
        self.sources().names = Some(names);
    }

    /// All metrics as they are now. For the control thread.
    #[must_use]
    pub fn scrape(&self) -> Sheet {
        let sources = self.sources();
        if let Some(read) = &sources.names {
            let names = read();
            self.counters
                .store
                .retain(&|cluster, route| names.have(cluster, route));
        }
        let mut sheet = Sheet::default();
        self.counters.collect(&mut sheet);
        for collect in &sources.collect {
            collect(&mut sheet);
        }
        if let Some(log) = &self.setup.access_log {
            sheet.count(&metrics::LOG_DROPPED, [], log.lines.dropped());
        }
        if let Some(spans) = &self.setup.spans {
            spans.collect(&mut sheet);
        }
        process::collect(&mut sheet);
        let version = env!("CARGO_PKG_VERSION").into();
        sheet.add(&metrics::BUILD, [version], metrics::Value::Count(1));
        sheet
    }

    /// Waits for the last lines of the access log to be written, at most `limit`.
    pub fn flush(&self, limit: Duration) {
        if let Some(log) = &self.setup.access_log {
            log.lines.flush(limit);
        }
    }

    fn sources(&self) -> std::sync::MutexGuard<'_, Sources> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One accepted connection that is open.
#[derive(Debug)]
pub struct OpenConnection<'a>(&'a Counters, Direction);

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        self.0.closed(self.1);
    }
}

#[cfg(test)]
mod tests;

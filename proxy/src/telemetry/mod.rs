//! What the proxy says about what it did. A finished request comes here once, as a [`Record`], and
//! becomes numbers, a line of the access log and, if it is sampled, spans.

mod count;
pub mod metrics;
mod process;
pub mod record;
mod series;

use std::{
    fmt,
    sync::{Mutex, PoisonError},
};

pub use count::TlsFailure;
pub use record::{Attempt, ConnectionRecord, Record};
pub use series::{MAX_PEERS, MAX_SERIES, OTHER};

use crate::config::listener::Direction;
use count::Counters;
use metrics::Sheet;

/// Adds what others count to a scrape.
pub type Collect = Box<dyn Fn(&mut Sheet) + Send + Sync>;
/// Whether a cluster and its route are in the configuration; an empty name is none and always is.
pub type Lives = Box<dyn Fn(&str, &str) -> bool + Send + Sync>;

/// Everything that watches.
#[derive(Default)]
pub struct Telemetry {
    counters: Counters,
    sources: Mutex<Sources>,
}

#[derive(Default)]
struct Sources {
    collect: Vec<Collect>,
    lives: Option<Lives>,
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry").finish_non_exhaustive()
    }
}

impl Telemetry {
    /// Takes a finished request.
    pub fn request(&self, record: &Record) {
        self.counters.request(record);
        tracing::info!(
            target: "access",
            direction = record.direction.as_str(),
            method = %record.method,
            authority = record.authority,
            path = record.path,
            status = record.status.map(|s| s.as_u16()),
            grpc_status = record.grpc_status,
            flag = record.fault.map(|f| f.row().flag),
            details = record.details,
            bytes_in = record.bytes_in,
            bytes_out = record.bytes_out,
            duration_ms = (record.ended - record.started).as_secs_f64() * 1e3,
            attempts = record.attempts.len(),
            upstream = record.attempts.last().map(|a| a.endpoint.to_string()),
            cluster = record.cluster.as_ref().map(|c| c.as_str()),
            "request"
        );
    }

    /// Takes a finished opaque connection.
    pub fn connection(&self, record: &ConnectionRecord) {
        self.counters.connection(record);
        tracing::info!(
            target: "access",
            direction = record.direction.as_str(),
            source = %record.source,
            destination = %record.destination,
            cluster = record.cluster.as_ref().map(|c| c.as_str()),
            upstream = record.endpoint.map(|a| a.to_string()),
            flag = record.fault.map(|f| f.row().flag),
            details = record.details,
            bytes_in = record.bytes_in,
            bytes_out = record.bytes_out,
            duration_ms = (record.ended - record.started).as_secs_f64() * 1e3,
            "connection"
        );
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

    /// Asks `lives` at each scrape which series to keep.
    pub fn keep_series_with(&self, lives: Lives) {
        self.sources().lives = Some(lives);
    }

    /// All metrics as they are now. For the control thread.
    #[must_use]
    pub fn scrape(&self) -> Sheet {
        let sources = self.sources();
        if let Some(lives) = &sources.lives {
            self.counters.store.retain(lives);
        }
        let mut sheet = Sheet::default();
        self.counters.collect(&mut sheet);
        for collect in &sources.collect {
            collect(&mut sheet);
        }
        process::collect(&mut sheet);
        let version = env!("CARGO_PKG_VERSION").into();
        sheet.add(&metrics::BUILD, [version], metrics::Value::Count(1));
        sheet
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

//! What the proxy says about what it did. A finished request comes here once, as a [`Record`].

pub mod record;

pub use record::{Attempt, ConnectionRecord, Record};

/// Everything that watches.
#[derive(Debug, Default)]
pub struct Telemetry {}

impl Telemetry {
    /// Takes a finished request.
    pub fn request(&self, record: &Record) {
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
        tracing::info!(
            target: "access",
            direction = record.direction.as_str(),
            source = %record.source,
            destination = %record.destination,
            cluster = record.cluster.as_ref().map(|c| c.as_str()),
            upstream = record.endpoint.map(|a| a.to_string()),
            flag = record.fault.map(|f| f.row().flag),
            details = record.details,
            bytes_in = record.moved.up,
            bytes_out = record.moved.down,
            duration_ms = (record.ended - record.started).as_secs_f64() * 1e3,
            "connection"
        );
    }
}

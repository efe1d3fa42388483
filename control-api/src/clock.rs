//! The wall clock, passed in so that tests can set it.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls_pki_types::UnixTime;

/// Where wall time comes from.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> UnixTime + Send + Sync>);

impl Clock {
    /// The system's.
    #[must_use]
    pub fn system() -> Self {
        Self(Arc::new(UnixTime::now))
    }

    /// One that reads as `read` says.
    #[must_use]
    pub fn of(read: impl Fn() -> UnixTime + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }

    /// Seconds since 1970.
    #[must_use]
    pub fn unix(&self) -> u64 {
        (self.0)().as_secs()
    }

    /// As protobuf has it.
    #[must_use]
    pub fn timestamp(&self) -> prost_types::Timestamp {
        timestamp(self.unix())
    }
}

/// Seconds since 1970 as protobuf has them.
#[must_use]
pub fn timestamp(unix: u64) -> prost_types::Timestamp {
    SystemTime::UNIX_EPOCH
        .checked_add(Duration::from_secs(unix))
        .map(Into::into)
        .unwrap_or_default()
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

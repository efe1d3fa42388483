//! The way to the control plane: a connection over mutual TLS, and the certificate that it gives.

mod connector;
mod files;
mod identity;

use std::{fmt, sync::Arc};

use rustls::pki_types::UnixTime;

pub use connector::{Connector, ConnectorSettings};
pub use files::FileSource;
pub use identity::{Authority, CertificateSource, Proof, SourceError};

/// The wall clock, which certificates live by. Passed in, so that tests can step it (TL-03).
#[derive(Clone)]
pub struct WallClock(Arc<dyn Fn() -> UnixTime + Send + Sync>);

impl WallClock {
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

    /// The time now.
    #[must_use]
    pub fn now(&self) -> UnixTime {
        (self.0)()
    }
}

impl fmt::Debug for WallClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WallClock")
    }
}

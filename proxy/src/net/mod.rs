//! Sockets: the only place that names `socket2`. Everything above sees an [`Io`].

mod prefixed;
mod system;

use std::{fmt, io, time::Duration};

use tokio::io::{AsyncRead, AsyncWrite};

pub use prefixed::Prefixed;
pub use system::{
    Dialer, canonical, has_ipv6, listen, original_destination, own_addresses, tune_accepted,
};

/// A byte stream that the data path can work on: a socket, TLS over one, or a simulated one.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + fmt::Debug {
    /// Makes dropping this stream a reset (RST) rather than a clean end, so that the peer cannot
    /// take a cut message for a whole one. Best effort: a stream without that notion ignores it.
    fn reset_on_drop(&self) {}
}

/// A stream whose kind does not matter any more.
pub type BoxIo = Box<dyn Io>;

impl Io for BoxIo {
    fn reset_on_drop(&self) {
        (**self).reset_on_drop();
    }
}

impl Io for tokio::net::TcpStream {
    fn reset_on_drop(&self) {
        if let Err(error) = self.set_zero_linger() {
            tracing::debug!(%error, "could not arm a reset");
        }
    }
}

impl Io for tokio::io::DuplexStream {}

impl<I: Io> Io for tokio_rustls::client::TlsStream<I> {
    fn reset_on_drop(&self) {
        self.get_ref().0.reset_on_drop();
    }
}

impl<I: Io> Io for tokio_rustls::server::TlsStream<I> {
    fn reset_on_drop(&self) {
        self.get_ref().0.reset_on_drop();
    }
}

/// Kernel keepalive on every socket: below the 2 h of Linux and under what NAT and conntrack tables
/// keep, so that a vanished peer is noticed and an idle session survives (TC-05).
pub const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
/// Time between keepalive probes.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Unanswered probes before the connection is dead.
pub const KEEPALIVE_PROBES: u32 = 3;
/// Unacknowledged data kills a connection after this (gRFC A18): a dead node is noticed in 20 s
/// instead of the kernel's quarter of an hour (TC-07).
pub const USER_TIMEOUT: Duration = Duration::from_secs(20);

/// Whether an error means that the peer is gone rather than that something is wrong here.
#[must_use]
pub fn is_disconnect(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    [
        K::ConnectionReset,
        K::BrokenPipe,
        K::ConnectionAborted,
        K::NotConnected,
        K::UnexpectedEof,
    ]
    .contains(&error.kind())
}

/// The kind of the error by which a TLS stream says that the peer does not accept our certificate
/// (see `tls`). It goes through codecs that keep nothing else of an error.
pub const CERTIFICATE_REFUSED: io::ErrorKind = io::ErrorKind::PermissionDenied;

//! Making one connection: TCP, then TLS if the endpoint wants it.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Permit, Pool, Target, Wire};
use crate::{
    config::{
        SpiffeId,
        tls::{ALPN_MESH_HTTP1, ALPN_MESH_HTTP2, ALPN_MESH_TCP, ClientTls},
    },
    fault::Fault,
    net::BoxIo,
};

/// Why a connection could not be had. No byte of a request was sent.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}: {detail}", fault.row().text)]
pub struct ConnectError {
    pub fault: Fault,
    /// What the kernel or TLS said.
    pub detail: Arc<str>,
}

impl From<Fault> for ConnectError {
    fn from(fault: Fault) -> Self {
        Self {
            fault,
            detail: fault.row().text.into(),
        }
    }
}

/// How long the steps took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    pub connect: Duration,
    pub tls: Duration,
}

/// A fresh connection.
pub struct Dialed {
    pub io: BoxIo,
    pub peer: Option<SpiffeId>,
    pub timings: Timings,
    pub permit: Permit,
}

impl std::fmt::Debug for Dialed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dialed")
            .field("peer", &self.peer)
            .field("timings", &self.timings)
            .finish_non_exhaustive()
    }
}

impl Pool {
    pub(super) async fn dial(
        &self,
        target: &Target,
        wire: Wire,
        permit: Permit,
    ) -> Result<Dialed, ConnectError> {
        let began = Instant::now();
        let connected = self.dialer.connect(target.address, target.connect_timeout);
        let io = connected.await.map_err(|error| ConnectError {
            fault: if error.kind() == std::io::ErrorKind::TimedOut {
                Fault::ConnectTimeout
            } else {
                Fault::ConnectFailed
            },
            detail: format!("{}: {error}", target.address).into(),
        })?;
        let connect = began.elapsed();
        let Some(tls) = &target.tls else {
            return Ok(Dialed {
                io: Box::new(io),
                peer: None,
                timings: Timings {
                    connect,
                    tls: Duration::ZERO,
                },
                permit,
            });
        };
        let left = target.connect_timeout.saturating_sub(connect);
        let handshake = self.tls.connect(tls, alpn(tls, wire), io);
        let session = match tokio::time::timeout(left, handshake).await {
            Ok(Ok(session)) => session,
            Ok(Err(error)) => {
                return Err(ConnectError {
                    fault: error.fault(),
                    detail: format!("{}: {error}", target.address).into(),
                });
            }
            Err(_) => {
                return Err(ConnectError {
                    fault: Fault::ConnectTimeout,
                    detail: format!("{}: no TLS handshake in time", target.address).into(),
                });
            }
        };
        Ok(Dialed {
            io: session.io,
            peer: session.peer,
            timings: Timings {
                connect,
                tls: began.elapsed().saturating_sub(connect),
            },
            permit,
        })
    }
}

/// The one protocol to offer for this leg when the setting lists the mesh's; else everything it
/// lists (nothing is singled out).
fn alpn(tls: &ClientTls, wire: Wire) -> &'static [u8] {
    let mesh = match wire {
        Wire::Http1 => ALPN_MESH_HTTP1,
        Wire::Http2 => ALPN_MESH_HTTP2,
        Wire::Tcp => ALPN_MESH_TCP,
    };
    if tls.alpn.iter().any(|offer| &**offer == mesh) {
        return mesh;
    }
    let plain: &[u8] = match wire {
        Wire::Http1 => b"http/1.1",
        Wire::Http2 => b"h2",
        Wire::Tcp => b"",
    };
    if tls.alpn.iter().any(|offer| &**offer == plain) {
        plain
    } else {
        b""
    }
}

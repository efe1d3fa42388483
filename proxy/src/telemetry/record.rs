//! What happened to one request, filled in along its way and handed over once, at its end.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http::{Method, StatusCode, Version};
use smallvec::SmallVec;
use tokio::time::Instant;

use super::{
    text::Text,
    trace::{SpanId, TraceContext},
};
use crate::{
    config::{
        ClusterName, SpiffeId,
        listener::{Collector, Direction},
    },
    fault::Fault,
};

/// One try.
#[derive(Clone, Debug)]
pub struct Attempt {
    pub endpoint: SocketAddr,
    /// The span that the endpoint is told is its caller; all zero when there is none.
    pub span_id: SpanId,
    pub began: Instant,
    pub ended: Instant,
    /// Until there was a connection, a new one's making included.
    pub wait: Duration,
    pub connect: Duration,
    pub tls: Duration,
    pub reused: bool,
    /// Of the head that came last, if one came.
    pub status: Option<StatusCode>,
    /// What that head said; most calls say it later.
    pub grpc_status: Option<u32>,
    pub fault: Option<Fault>,
    pub detail: String,
}

impl Attempt {
    /// A try that has just begun.
    #[must_use]
    pub const fn new(endpoint: SocketAddr, now: Instant) -> Self {
        Self {
            endpoint,
            span_id: [0; 8],
            began: now,
            ended: now,
            wait: Duration::ZERO,
            connect: Duration::ZERO,
            tls: Duration::ZERO,
            reused: false,
            status: None,
            grpc_status: None,
            fault: None,
            detail: String::new(),
        }
    }

    /// How long it waited for its turn to have a connection.
    #[must_use]
    pub fn queued(&self) -> Duration {
        if self.reused {
            return self.wait;
        }
        self.wait.saturating_sub(self.connect + self.tls)
    }
}

/// One request.
#[derive(Clone, Debug)]
pub struct Record {
    pub direction: Direction,
    pub started: Instant,
    pub ended: Instant,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    /// Identity of the client, inbound.
    pub peer: Option<SpiffeId>,
    pub method: Method,
    pub version: Version,
    pub authority: Text,
    pub path: Text,
    pub grpc: bool,
    pub route: Option<Arc<str>>,
    pub cluster: Option<ClusterName>,
    pub status: Option<StatusCode>,
    pub grpc_status: Option<u32>,
    pub fault: Option<Fault>,
    pub details: String,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// To the first byte of the response, since `started`.
    pub first_byte: Option<Duration>,
    /// Most requests need one.
    pub attempts: SmallVec<[Attempt; 1]>,
    /// Identity of the endpoint that answered.
    pub upstream_peer: Option<SpiffeId>,
    pub trace: Option<TraceContext>,
    /// Who gets the spans, where the configuration says.
    pub collector: Option<Arc<Collector>>,
    /// Whether the configuration wants it in the access log; where there is none, it is.
    pub logged: bool,
}

impl Record {
    /// A request that has just begun.
    #[must_use]
    pub fn new(
        direction: Direction,
        source: SocketAddr,
        destination: SocketAddr,
        now: Instant,
    ) -> Self {
        Self {
            direction,
            started: now,
            ended: now,
            source,
            destination,
            peer: None,
            method: Method::GET,
            version: Version::HTTP_11,
            authority: Text::default(),
            path: Text::default(),
            grpc: false,
            route: None,
            cluster: None,
            status: None,
            grpc_status: None,
            fault: None,
            details: String::new(),
            bytes_in: 0,
            bytes_out: 0,
            first_byte: None,
            attempts: SmallVec::new(),
            upstream_peer: None,
            trace: None,
            collector: None,
            logged: true,
        }
    }

    /// The status that the client saw, or would have seen: 499 when it did not wait, and never 0
    /// (OB-05).
    #[must_use]
    pub fn code(&self) -> u16 {
        let of_fault = || self.fault.map_or(0, |fault| fault.row().http);
        self.status.map_or_else(of_fault, |status| status.as_u16())
    }

    /// Identity of whoever is at the other end of the mesh: the client inbound, the endpoint
    /// outbound.
    #[must_use]
    pub const fn remote(&self) -> Option<&SpiffeId> {
        match self.direction {
            Direction::Inbound => self.peer.as_ref(),
            Direction::Outbound => self.upstream_peer.as_ref(),
        }
    }
}

/// One opaque connection.
#[derive(Clone, Debug)]
pub struct ConnectionRecord {
    pub direction: Direction,
    pub started: Instant,
    pub ended: Instant,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    /// Identity of the client, inbound.
    pub peer: Option<SpiffeId>,
    pub cluster: Option<ClusterName>,
    pub endpoint: Option<SocketAddr>,
    /// Identity of the endpoint.
    pub upstream_peer: Option<SpiffeId>,
    /// From the client to the upstream.
    pub bytes_in: u64,
    /// From the upstream to the client.
    pub bytes_out: u64,
    pub fault: Option<Fault>,
    pub details: String,
    /// As [`Record::logged`].
    pub logged: bool,
}

impl ConnectionRecord {
    /// A connection that has just begun.
    #[must_use]
    pub const fn new(
        direction: Direction,
        source: SocketAddr,
        destination: SocketAddr,
        peer: Option<SpiffeId>,
        now: Instant,
    ) -> Self {
        Self {
            direction,
            started: now,
            ended: now,
            source,
            destination,
            peer,
            cluster: None,
            endpoint: None,
            upstream_peer: None,
            bytes_in: 0,
            bytes_out: 0,
            fault: None,
            details: String::new(),
            logged: true,
        }
    }

    /// As [`Record::remote`].
    #[must_use]
    pub const fn remote(&self) -> Option<&SpiffeId> {
        match self.direction {
            Direction::Inbound => self.peer.as_ref(),
            Direction::Outbound => self.upstream_peer.as_ref(),
        }
    }
}

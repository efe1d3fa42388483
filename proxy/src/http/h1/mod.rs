//! HTTP/1.1 (RFC 9112), both roles.
//!
//! Ours because a mesh has to keep what general libraries fold away: the spelling and order of
//! field names, interim responses, half-closes, and a final answer that comes before the request
//! has ended; and because it must be strict about framing where two parties could disagree.
//!
//! Everything is polled by one task: a response can be written while the request is still being
//! read, without locks or channels. An idle connection keeps no buffer.

mod body;
mod client;
mod encode;
mod error;
mod framing;
mod head;
mod hop;
mod names;
mod server;
mod target;
mod wire;

use bytes::Bytes;
use http::HeaderMap;

pub use client::{ClientConn, ResponseHead};
pub use error::Error;
pub use head::RequestHead;
pub use hop::{keep_alive_timeout, strip_hop_by_hop, upgrade_token};
pub use names::OriginalNames;
pub use server::ServerConn;

/// How the body of a message is delimited (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLen {
    /// There is none, and nothing in the head speaks of one.
    Empty,
    /// `content-length`.
    Known(u64),
    Chunked,
    /// Until the connection closes; responses only.
    UntilClose,
}

impl BodyLen {
    /// Whether no byte of a body follows.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        matches!(self, Self::Empty | Self::Known(0))
    }
}

/// A piece of a body.
#[derive(Clone, Debug)]
pub enum Frame {
    Data(Bytes),
    /// Ends the body.
    Trailers(HeaderMap),
}

/// Bounds of what a peer can make us hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Start line and fields together, and trailers by themselves.
    pub head_bytes: usize,
    pub header_count: usize,
    pub uri_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_bytes: super::MAX_HEAD_BYTES as usize,
            header_count: MAX_HEADERS,
            uri_bytes: MAX_URI,
        }
    }
}

/// What the `http` crate takes is 65534 bytes; below that the answer is ours in both versions.
const MAX_URI: usize = 60 * 1024;
/// Fields in one head. Envoy stops at 100; this leaves room for what the mesh adds.
const MAX_HEADERS: usize = 128;

#[cfg(test)]
mod tests;

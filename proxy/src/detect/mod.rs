//! Which protocol a connection speaks, told by its first bytes. Nothing is consumed: what was read
//! is handed on with the verdict and replayed.
//!
//! Promises: never more than [`MAX_PEEK`] bytes are held; a verdict falls at the first byte that
//! decides; a connection whose client waits for the server is not made to wait here (the caller
//! races [`Peek::read_more`] with the upstream's first byte).

mod client_hello;
mod http;

use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

pub use client_hello::ClientHello;

/// The most that is read before giving up on recognising anything: a `ClientHello` with
/// post-quantum key shares and long ALPN lists is under 4 KiB, a request line is bounded by this.
pub const MAX_PEEK: usize = 16 * 1024;
const FIRST_READ: usize = 2048;

/// What the first bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// A TLS `ClientHello` with what it asks for.
    Tls(ClientHello),
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
    /// The HTTP/2 connection preface (RFC 9113 §3.4).
    Http2,
    /// Anything else.
    Opaque,
}

impl Protocol {
    /// What an Envoy `application_protocols` match of the HTTP inspector would see.
    #[must_use]
    pub const fn http_inspector_name(&self) -> Option<&'static [u8]> {
        match self {
            Self::Http10 => Some(b"http/1.0"),
            Self::Http11 => Some(b"http/1.1"),
            Self::Http2 => Some(b"h2c"),
            Self::Tls(_) | Self::Opaque => None,
        }
    }
}

/// A connection's first bytes while they are being looked at.
#[derive(Debug, Default)]
pub struct Peek {
    buffer: BytesMut,
    ended: bool,
}

impl Peek {
    /// Reads what has arrived.
    ///
    /// # Errors
    /// The connection's own.
    pub async fn read_more<I: AsyncRead + Unpin>(&mut self, io: &mut I) -> io::Result<()> {
        if self.buffer.capacity() == self.buffer.len() {
            self.buffer.reserve(FIRST_READ);
        }
        if io.read_buf(&mut self.buffer).await? == 0 {
            self.ended = true;
        }
        Ok(())
    }

    /// Whether no byte has come yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Whether the client closed its side already.
    #[must_use]
    pub const fn ended(&self) -> bool {
        self.ended
    }

    /// The verdict, or `None` when more bytes are needed to tell.
    #[must_use]
    pub fn verdict(&self) -> Option<Protocol> {
        let verdict = if self.buffer.first() == Some(&client_hello::HANDSHAKE) {
            client_hello::parse(&self.buffer)
        } else {
            http::parse(&self.buffer)
        };
        match verdict {
            Verdict::Is(protocol) => Some(protocol),
            Verdict::More if self.ended || self.buffer.len() >= MAX_PEEK => Some(Protocol::Opaque),
            Verdict::More => None,
        }
    }

    /// The bytes read so far, to be replayed.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.buffer.freeze()
    }
}

/// Result of looking at a prefix.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Is(Protocol),
    More,
}

#[cfg(test)]
mod tests;

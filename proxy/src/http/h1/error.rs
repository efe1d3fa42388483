//! What can go wrong on an HTTP/1.1 connection.

use std::io;

use crate::{fault::Fault, net::CERTIFICATE_REFUSED};

/// An error of the connection or of what the peer sent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes are not HTTP.
    #[error("malformed message: {0}")]
    Syntax(&'static str),
    /// Where the body ends is not certain (RFC 9112 §6.3): the seed of request smuggling.
    #[error("ambiguous framing: {0}")]
    Framing(&'static str),
    #[error("transfer coding other than chunked")]
    UnsupportedCoding,
    #[error("HTTP version not supported")]
    UnsupportedVersion,
    #[error("head over the limit of {0} bytes")]
    HeadTooLarge(usize),
    #[error("more than {0} header fields")]
    TooManyHeaders(usize),
    #[error("request target over the limit of {0} bytes")]
    UriTooLong(usize),
    /// The connection ended inside a message.
    #[error("connection closed inside a message")]
    Cut,
    #[error("connection closed before a response")]
    Closed,
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl Error {
    /// The cause when a client's connection had this error.
    #[must_use]
    pub const fn downstream_fault(&self) -> Fault {
        match self {
            Self::Syntax(_)
            | Self::Framing(_)
            | Self::UnsupportedCoding
            | Self::UnsupportedVersion => Fault::DownstreamProtocol,
            Self::HeadTooLarge(_) | Self::TooManyHeaders(_) => Fault::HeadersTooLarge,
            Self::UriTooLong(_) => Fault::UriTooLong,
            Self::Cut | Self::Closed | Self::Io(_) => Fault::DownstreamReset,
        }
    }

    /// The cause when an endpoint's connection had this error.
    #[must_use]
    pub fn upstream_fault(&self) -> Fault {
        match self {
            Self::Syntax(_)
            | Self::Framing(_)
            | Self::UnsupportedCoding
            | Self::UnsupportedVersion
            | Self::UriTooLong(_) => Fault::UpstreamProtocol,
            Self::HeadTooLarge(_) | Self::TooManyHeaders(_) => Fault::ResponseHeadersTooLarge,
            Self::Closed => Fault::UpstreamClosed,
            Self::Cut => Fault::UpstreamReset,
            Self::Io(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                Fault::UpstreamReset
            }
            Self::Io(error) if error.kind() == CERTIFICATE_REFUSED => Fault::TlsFailed,
            Self::Io(_) => Fault::UpstreamClosed,
        }
    }

    /// The status for a request that had this error, when it is not 400.
    #[must_use]
    pub const fn status(&self) -> Option<http::StatusCode> {
        match self {
            Self::UnsupportedCoding => Some(http::StatusCode::NOT_IMPLEMENTED),
            Self::UnsupportedVersion => Some(http::StatusCode::HTTP_VERSION_NOT_SUPPORTED),
            _ => None,
        }
    }
}

//! The two halves of an HTTP/2 stream, with flow control, used in both roles, and what HTTP/2
//! wants changed in a message that comes from or goes to HTTP/1.1.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, header};

use super::Frame;
use crate::{fault::Fault, net::CERTIFICATE_REFUSED};

/// Credit given for one stream. Small beside [`CONNECTION_WINDOW`], so that streams whose reader
/// stands still do not starve the others on the connection (H2-05): it takes 256 of them.
pub const STREAM_WINDOW: u32 = 256 * 1024;
/// Credit given for a whole connection.
pub const CONNECTION_WINDOW: u32 = 64 * 1024 * 1024;
/// Streams a client may have open at once on one connection; Envoy's default is 1024.
pub const MAX_STREAMS: u32 = 1024;
/// What is asked for at a time when there is no credit to send.
const RESERVE: usize = 64 * 1024;

/// Sends a message body.
#[derive(Debug)]
pub struct Sender {
    stream: SendStream<Bytes>,
    ended: bool,
}

impl Sender {
    /// Wraps `stream`; `ended` when the head already ended it.
    #[must_use]
    pub const fn new(stream: SendStream<Bytes>, ended: bool) -> Self {
        Self { stream, ended }
    }

    /// Ready when there is credit for at least one byte.
    ///
    /// # Errors
    /// When the peer reset the stream or the connection is gone.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        if self.ended || self.stream.capacity() > 0 {
            return Poll::Ready(Ok(()));
        }
        self.stream.reserve_capacity(RESERVE);
        loop {
            return match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(0)) => continue,
                Some(Ok(_)) => Poll::Ready(Ok(())),
                Some(Err(error)) => Poll::Ready(Err(error)),
                None => Poll::Ready(Err(Reason::STREAM_CLOSED.into())),
            };
        }
    }

    /// Queues `data`; call only after [`Self::poll_ready`].
    ///
    /// # Errors
    /// When the stream is closed.
    pub fn data(&mut self, data: Bytes, end: bool) -> Result<(), h2::Error> {
        if self.ended {
            return Ok(());
        }
        self.ended = end;
        self.stream.send_data(data, end)
    }

    /// Ends the body with trailers.
    ///
    /// # Errors
    /// When the stream is closed.
    pub fn trailers(&mut self, trailers: HeaderMap) -> Result<(), h2::Error> {
        if self.ended {
            return Ok(());
        }
        self.ended = true;
        self.stream.send_trailers(trailers)
    }

    /// Ends the body, if it has not ended.
    ///
    /// # Errors
    /// When the stream is closed.
    pub fn finish(&mut self) -> Result<(), h2::Error> {
        self.data(Bytes::new(), true)
    }

    /// Whether the end has been queued.
    #[must_use]
    pub const fn ended(&self) -> bool {
        self.ended
    }

    /// Gives the stream up with `reason`.
    pub fn reset(&mut self, reason: Reason) {
        self.ended = true;
        self.stream.send_reset(reason);
    }

    /// Resolves when the peer resets the stream.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<Result<Reason, h2::Error>> {
        self.stream.poll_reset(cx)
    }
}

/// Receives a message body.
#[derive(Debug)]
pub struct Receiver {
    stream: RecvStream,
    data_ended: bool,
    ended: bool,
}

impl Receiver {
    /// Wraps `stream`.
    #[must_use]
    pub fn new(stream: RecvStream) -> Self {
        let ended = stream.is_end_stream();
        Self {
            stream,
            data_ended: ended,
            ended,
        }
    }

    /// The next piece of the body; `None` at its end. Credit goes back to the peer as the piece is
    /// taken, so take one only when it can be passed on.
    ///
    /// # Errors
    /// When the stream was reset: the body is cut, not complete (H2-08).
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, h2::Error>> {
        if self.ended {
            return Poll::Ready(Ok(None));
        }
        if !self.data_ended {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // Fails only for a stream that is gone, which the next poll reports.
                    drop(self.stream.flow_control().release_capacity(data.len()));
                    self.ended = self.stream.is_end_stream();
                    return Poll::Ready(Ok(Some(Frame::Data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Err(error)),
                None => self.data_ended = true,
            }
        }
        let trailers = ready!(self.stream.poll_trailers(cx))?;
        self.ended = true;
        Poll::Ready(Ok(trailers.map(Frame::Trailers)))
    }

    /// Whether everything has been received.
    #[must_use]
    pub const fn ended(&self) -> bool {
        self.ended
    }
}

/// What an error of an upstream stream means. Streams that the peer refused, or that are beyond
/// the last one its GOAWAY accepts, were not processed (RFC 9113 §6.8, §8.7).
#[must_use]
pub fn upstream_fault(error: &h2::Error) -> Fault {
    if error.is_remote() && (error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM)) {
        return Fault::UpstreamRefused;
    }
    if error.is_remote() && error.is_reset() {
        return Fault::UpstreamReset;
    }
    if let Some(io) = error.get_io() {
        return if io.kind() == CERTIFICATE_REFUSED {
            Fault::TlsFailed
        } else {
            Fault::UpstreamClosed
        };
    }
    if error.is_library() {
        return Fault::UpstreamProtocol;
    }
    Fault::UpstreamClosed
}

/// Joins `cookie` fields into one: HTTP/2 splits them for compression, HTTP/1.1 allows one only
/// (RFC 9113 §8.2.3; H2-10).
pub fn join_cookies(headers: &mut HeaderMap) {
    let mut values = headers.get_all(header::COOKIE).iter();
    if values.nth(1).is_none() {
        return;
    }
    let mut joined = Vec::new();
    for value in headers.get_all(header::COOKIE) {
        if !joined.is_empty() {
            joined.extend_from_slice(b"; ");
        }
        joined.extend_from_slice(value.as_bytes());
    }
    if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(joined)) {
        headers.insert(header::COOKIE, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h2_10_cookie_crumbs_are_joined_in_order() {
        let mut headers = HeaderMap::new();
        for crumb in ["a=1", "b=2", "c=3"] {
            headers.append(header::COOKIE, HeaderValue::from_static(crumb));
        }
        join_cookies(&mut headers);
        let all: Vec<_> = headers.get_all(header::COOKIE).iter().collect();
        assert_eq!(all, ["a=1; b=2; c=3"]);
    }

    #[test]
    fn h2_10_set_cookie_is_left_alone() {
        let mut headers = HeaderMap::new();
        headers.append(header::SET_COOKIE, HeaderValue::from_static("a=1"));
        headers.append(header::SET_COOKIE, HeaderValue::from_static("b=2"));
        join_cookies(&mut headers);
        assert_eq!(headers.get_all(header::SET_COOKIE).iter().count(), 2);
    }
}

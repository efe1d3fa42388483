//! The two halves of an HTTP/2 stream, with flow control, used in both roles, and what HTTP/2
//! wants changed in a message that comes from or goes to HTTP/1.1.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::{
    Frame,
    grpc::code,
    h1::{self, Limits},
};
use crate::{fault::Fault, net::CERTIFICATE_REFUSED};

/// Credit given for one stream: enough for a gigabit at a round trip of 2 ms.
pub const STREAM_WINDOW: u32 = 256 * 1024;
/// Streams a client may have open at once on one connection; Envoy's default is 1024.
pub const MAX_STREAMS: u32 = 1024;
/// Credit given for a whole connection: as much as all its streams can use, so that those whose
/// reader stands still take nothing from the others (H2-05).
pub const CONNECTION_WINDOW: u32 = MAX_STREAMS * STREAM_WINDOW;
/// Up to here `h2` decodes a head or trailers, so that it is this proxy that refuses what is over
/// [`MAX_HEAD_BYTES`](super::MAX_HEAD_BYTES), in words that the caller reads. By itself it leaves
/// what is over the limit out of trailers without a word, and refuses heads in a way that is not
/// gRPC's (GR-02). At four times this it gives the connection up.
pub const DECODED_HEAD_BYTES: u32 = 256 * 1024;
/// What `h2` may hold of one stream for the socket, beyond the piece that waits for credit here.
pub const MAX_SEND_BUFFER: usize = 128 * 1024;

/// Sends a message body.
///
/// At most one piece waits here for credit. Credit is asked for that piece alone: what is reserved
/// and not used is taken from every other stream of the connection, and a peer's whole connection
/// window may be no more than 64 KiB (H2-05).
#[derive(Debug)]
pub struct Sender {
    stream: SendStream<Bytes>,
    waiting: Bytes,
    /// What follows the piece that waits.
    then: Then,
}

/// What comes after the last piece of data that is known.
#[derive(Debug)]
enum Then {
    More,
    End,
    Trailers(HeaderMap),
    /// The end was sent.
    Nothing,
}

impl Sender {
    /// Wraps `stream`; `ended` when the head already ended it.
    #[must_use]
    pub const fn new(stream: SendStream<Bytes>, ended: bool) -> Self {
        Self {
            stream,
            waiting: Bytes::new(),
            then: if ended { Then::Nothing } else { Then::More },
        }
    }

    /// Ready when all that was given has been taken by the connection, which is when more may be.
    ///
    /// # Errors
    /// When the peer reset the stream or the connection is gone.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        while !self.waiting.is_empty() {
            self.stream.reserve_capacity(self.waiting.len());
            if self.stream.capacity() == 0 {
                match ready!(self.stream.poll_capacity(cx)) {
                    Some(credit) => drop(credit?),
                    None => return Poll::Ready(Err(Reason::STREAM_CLOSED.into())),
                }
            }
            self.push()?;
        }
        Poll::Ready(Ok(()))
    }

    /// Whether a piece waits for credit.
    #[must_use]
    pub const fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Sends `data` as far as there is credit, and keeps the rest; call only after
    /// [`Self::poll_ready`], and go on calling that.
    ///
    /// # Errors
    /// When the stream is closed.
    pub fn data(&mut self, data: Bytes, end: bool) -> Result<(), h2::Error> {
        if self.ended() {
            return Ok(());
        }
        if end {
            self.then = Then::End;
        }
        self.waiting = data;
        self.stream.reserve_capacity(self.waiting.len());
        self.push()
    }

    /// Ends the body with trailers.
    ///
    /// # Errors
    /// When the stream is closed.
    pub fn trailers(&mut self, trailers: HeaderMap) -> Result<(), h2::Error> {
        if self.ended() {
            return Ok(());
        }
        self.then = Then::Trailers(trailers);
        self.push()
    }

    /// Ends a body that is cut with trailers that say so. A piece that waits for credit is let go:
    /// nobody needs a further part of what failed.
    ///
    /// # Errors
    /// When the stream is closed.
    pub fn fail(&mut self, trailers: HeaderMap) -> Result<(), h2::Error> {
        self.waiting = Bytes::new();
        self.trailers(trailers)
    }

    /// Ends the body, if it has not ended.
    ///
    /// # Errors
    /// When the stream is closed.
    pub fn finish(&mut self) -> Result<(), h2::Error> {
        if self.ended() {
            return Ok(());
        }
        self.then = Then::End;
        self.push()
    }

    /// Gives the connection what there is credit for, and the end once nothing waits before it.
    fn push(&mut self) -> Result<(), h2::Error> {
        let credit = self.stream.capacity().min(self.waiting.len());
        let last = credit == self.waiting.len();
        if credit > 0 {
            let end = last && matches!(self.then, Then::End);
            self.stream.send_data(self.waiting.split_to(credit), end)?;
            if end {
                self.then = Then::Nothing;
            }
        }
        if !last {
            return Ok(());
        }
        match std::mem::replace(&mut self.then, Then::Nothing) {
            Then::More => self.then = Then::More,
            Then::End => self.stream.send_data(Bytes::new(), true)?,
            Then::Trailers(trailers) => self.stream.send_trailers(trailers)?,
            Then::Nothing => {}
        }
        Ok(())
    }

    /// Whether the end has been given.
    #[must_use]
    pub const fn ended(&self) -> bool {
        !matches!(self.then, Then::More)
    }

    /// Gives the stream up with `reason`.
    pub fn reset(&mut self, reason: Reason) {
        self.waiting = Bytes::new();
        self.then = Then::Nothing;
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

/// Checks a head's fields, or trailers, against the limits that hold for HTTP/1.1, measured in the
/// same way.
///
/// # Errors
/// The limit that is passed.
pub fn check_size(headers: &HeaderMap) -> Result<(), h1::Error> {
    let limits = Limits::default();
    if headers.len() > limits.header_count {
        return Err(h1::Error::TooManyHeaders(limits.header_count));
    }
    // A colon, a space and the line's end are what HTTP/1.1 puts around each.
    let line = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + 4;
    if headers.iter().map(line).sum::<usize>() > limits.head_bytes {
        return Err(h1::Error::HeadTooLarge(limits.head_bytes));
    }
    Ok(())
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

/// The gRPC code that a client reads from a reset (gRPC `PROTOCOL-HTTP2.md`, "Errors"); `None` for
/// an error that is no reset by the peer.
#[must_use]
pub fn grpc_code(error: &h2::Error) -> Option<u32> {
    if !(error.is_remote() && error.is_reset()) {
        return None;
    }
    Some(match error.reason()? {
        Reason::REFUSED_STREAM => code::UNAVAILABLE,
        Reason::CANCEL => code::CANCELLED,
        Reason::ENHANCE_YOUR_CALM => code::RESOURCE_EXHAUSTED,
        Reason::INADEQUATE_SECURITY => code::PERMISSION_DENIED,
        _ => code::INTERNAL,
    })
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

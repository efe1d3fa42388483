//! The server's role: requests in, responses out.

use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::{HeaderMap, Method, Request, Response, StatusCode, Version, header};

use super::{
    BodyLen, Error, Frame, Limits, OriginalNames, RequestHead,
    body::{Reader, Writer},
    encode::{self, Framing},
    head,
    hop::tokens,
    wire::{MAX_AHEAD, Wire},
};
use crate::net::Io;

/// What is known of the request being served.
#[derive(Debug)]
struct Current {
    method: Method,
    version: Version,
    /// It waits for a 100 before it sends its body.
    expects: bool,
    continued: bool,
    head_sent: bool,
}

/// Thrown away of an unread request before the connection is cut: enough for a large upload to be
/// sent to its end by a client that reads the answer only then (HT-18).
const MAX_DRAIN: u64 = 64 * 1024 * 1024;

/// A client's connection.
#[derive(Debug)]
pub struct ServerConn<I> {
    wire: Wire<I>,
    limits: Limits,
    reader: Reader,
    writer: Writer,
    current: Option<Current>,
    /// No further request will be read.
    close: bool,
    /// The response was cut: the connection has to end in a way that shows it.
    broken: bool,
    /// Our side has been closed.
    shut: bool,
    drained: u64,
}

impl<I: Io> ServerConn<I> {
    /// A connection of which `prefix` was read already.
    pub fn new(io: I, prefix: Bytes, limits: Limits) -> Self {
        Self {
            wire: Wire::new(io, prefix),
            limits,
            reader: Reader::Done,
            writer: Writer::Done,
            current: None,
            close: false,
            broken: false,
            shut: false,
            drained: 0,
        }
    }

    /// Whether the first byte of a request is here.
    #[must_use]
    pub fn request_begun(&self) -> bool {
        !self.wire.input.is_empty()
    }

    /// Waits for the first byte of a request: false when the client ended instead. Empty lines
    /// before it are skipped (RFC 9112 §2.2); old clients send one after a body.
    ///
    /// # Errors
    /// The connection's.
    pub fn poll_begun(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Error>> {
        loop {
            if self.wire.input.starts_with(b"\r\n") {
                self.wire.input.advance(2);
            } else if !matches!(&self.wire.input[..], b"" | b"\r") {
                return Poll::Ready(Ok(true));
            } else if ready!(self.wire.poll_fill(cx))? == 0 {
                return Poll::Ready(Ok(false));
            }
        }
    }

    /// The next request head; `None` when the client ended between requests.
    ///
    /// # Errors
    /// When what came is no request; the connection must then close after an answer.
    pub fn poll_request(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<RequestHead>, Error>> {
        let polled = self.poll_request_inner(cx);
        if matches!(polled, Poll::Ready(Err(_))) {
            self.close = true;
        }
        polled
    }

    fn poll_request_inner(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<RequestHead>, Error>> {
        if !ready!(self.poll_begun(cx))? {
            return Poll::Ready(Ok(None));
        }
        let head = match ready!(self.wire.poll_head(cx, self.limits.head_bytes)) {
            Ok(Some(head)) => head,
            Ok(None) => return Poll::Ready(Ok(None)),
            Err(Error::HeadTooLarge(limit)) => {
                let most = self.limits.uri_bytes;
                let line = self.wire.input.iter().take(most).position(|b| *b == b'\n');
                return Poll::Ready(Err(if line.is_none() {
                    Error::UriTooLong(most)
                } else {
                    Error::HeadTooLarge(limit)
                }));
            }
            Err(error) => return Poll::Ready(Err(error)),
        };
        let request = head::parse_request(&head, &self.limits)?;
        self.begin(&request.head, request.len);
        Poll::Ready(Ok(Some(request)))
    }

    fn begin(&mut self, head: &Request<()>, len: BodyLen) {
        let says = |word: &[u8]| {
            tokens(head.headers(), &header::CONNECTION).any(|t| t.eq_ignore_ascii_case(word))
        };
        if says(b"close") || (head.version() == Version::HTTP_10 && !says(b"keep-alive")) {
            self.close = true;
        }
        self.reader = Reader::new(len);
        self.current = Some(Current {
            method: head.method().clone(),
            version: head.version(),
            expects: tokens(head.headers(), &header::EXPECT)
                .any(|t| t.eq_ignore_ascii_case(b"100-continue")),
            continued: false,
            head_sent: false,
        });
    }

    /// The next piece of the request body; `None` at its end.
    ///
    /// # Errors
    /// When the body is cut or breaks its framing.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, Error>> {
        let polled = self.reader.poll_frame(cx, &mut self.wire, &self.limits);
        if matches!(polled, Poll::Ready(Err(_))) {
            self.close = true;
        }
        polled
    }

    /// Whether the whole request has been received.
    #[must_use]
    pub const fn request_body_done(&self) -> bool {
        self.reader.is_done()
    }

    /// Throws away what has already come of the request body, and says whether that was the rest
    /// of it. Called before an answer of the proxy's own, it saves the connection of a client whose
    /// small body nobody will read (HT-24).
    pub fn discard_received(&mut self) -> bool {
        self.reader.discard(&mut self.wire.input, &self.limits)
    }

    /// Sends an interim response; at most one 100, and none to HTTP/1.0 (RFC 9110 §15.2; HT-16).
    /// A client that does not read gets none: they may be left out, and must not pile up.
    pub fn send_informational(&mut self, response: &Response<()>) {
        let Some(current) = &mut self.current else {
            return;
        };
        if current.version == Version::HTTP_10 || current.head_sent || self.wire.is_congested() {
            return;
        }
        if response.status() == StatusCode::CONTINUE
            && std::mem::replace(&mut current.continued, true)
        {
            return;
        }
        let names = response.extensions().get::<OriginalNames>();
        encode::response(self.wire.out(), response, names, Framing::default());
    }

    /// Whether the client cannot be told to send a further request on this connection: the answer
    /// is a refusal of a body that is still to come, so the client may or may not send the rest
    /// (RFC 9110 §10.1.1; HT-18).
    fn leaves_body(&self, status: StatusCode) -> bool {
        let waits = self
            .current
            .as_ref()
            .is_some_and(|c| c.expects && !c.continued);
        !self.reader.is_done() && (waits || status.as_u16() >= 400)
    }

    /// Sends the final head and sets the framing of what follows.
    pub fn send_response(
        &mut self,
        response: &Response<()>,
        len: BodyLen,
        names: Option<&OriginalNames>,
    ) {
        let (head_request, connect, old) = match &mut self.current {
            Some(current) => {
                current.head_sent = true;
                (
                    current.method == Method::HEAD,
                    current.method == Method::CONNECT,
                    current.version == Version::HTTP_10,
                )
            }
            None => (false, false, false),
        };
        let status = response.status();
        let switched = status == StatusCode::SWITCHING_PROTOCOLS;
        let tunnel = switched || (connect && status.is_success());
        // Nobody can ask for more on a connection that is half closed or has become a tunnel.
        self.close |= tunnel || self.leaves_body(status) || self.wire.has_ended();
        let no_body = head_request
            || tunnel
            || status == StatusCode::NO_CONTENT
            || status == StatusCode::NOT_MODIFIED;
        let mut framing = Framing {
            keep_length: head_request || status == StatusCode::NOT_MODIFIED,
            keep_connection: switched,
            ..Framing::default()
        };
        self.writer = Writer::Done;
        if !no_body {
            match len {
                BodyLen::Empty => framing.length = Some(0),
                BodyLen::Known(n) => {
                    framing.length = Some(n);
                    self.writer = Writer::new(len);
                }
                BodyLen::Chunked | BodyLen::UntilClose if old => {
                    self.close = true;
                    self.writer = Writer::UntilClose;
                }
                BodyLen::Chunked | BodyLen::UntilClose => {
                    framing.chunked = true;
                    self.writer = Writer::Chunked;
                }
            }
        }
        if !tunnel {
            if self.close {
                framing.connection = Some("close");
            } else if old {
                framing.connection = Some("keep-alive");
            }
        }
        self.wire.make_room(framing.length.unwrap_or(0));
        encode::response(self.wire.out(), response, names, framing);
    }

    /// Sends a piece of the response body.
    pub fn send_data(&mut self, data: Bytes) {
        self.writer.data(&mut self.wire, data);
    }

    /// Ends the response with trailers, which only chunked framing can carry.
    pub fn send_trailers(&mut self, trailers: &HeaderMap) {
        if !self.writer.finish(&mut self.wire, Some(trailers)) {
            self.abort();
        }
    }

    /// Ends the response. One that is shorter than announced is aborted.
    pub fn finish(&mut self) {
        if !self.writer.finish(&mut self.wire, None) {
            self.abort();
        }
    }

    /// Ready when more of the response may be sent.
    ///
    /// # Errors
    /// When the client is gone.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.wire.poll_ready(cx).map_err(Error::Io)
    }

    /// Ready when all that was sent is with the kernel.
    ///
    /// # Errors
    /// When the client is gone.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.wire.poll_flush(cx).map_err(Error::Io)
    }

    /// Resolves when the client is gone, while its answer is awaited. An end of its sending side is
    /// no such sign (HT-19); a reset is, though one after such an end shows only when something is
    /// written. What comes early of the next request is kept, within bounds.
    pub fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.reader.is_done() && !self.wire.ended && self.wire.input.len() < MAX_AHEAD {
            match ready!(self.wire.poll_fill(cx)) {
                Ok(0) => break,
                Ok(_) => {}
                Err(_) => {
                    self.close = true;
                    return Poll::Ready(());
                }
            }
        }
        Poll::Pending
    }

    /// No further request is read after this one; say so before the response head is sent.
    pub const fn set_close(&mut self) {
        self.close = true;
    }

    /// Whether the connection can serve another request: this one was received and answered whole.
    #[must_use]
    pub fn is_reusable(&self) -> bool {
        let answered = self
            .current
            .as_ref()
            .is_none_or(|current| current.head_sent);
        let whole = self.reader.is_done() && self.writer.is_done();
        answered && whole && !self.close && !self.broken
    }

    /// Ends the request that was served.
    pub fn done(&mut self) {
        self.current = None;
        self.wire.relax();
    }

    /// Cuts the response: what was sent must not look complete.
    pub fn abort(&mut self) {
        self.broken = true;
        self.close = true;
        self.wire.io().reset_on_drop();
    }

    /// Whether the response was cut.
    #[must_use]
    pub const fn is_broken(&self) -> bool {
        self.broken
    }

    /// A lingering close (RFC 9112 §9.6; HT-18): our side is closed, then what still comes is
    /// thrown away until the client closes too, so that a reset does not destroy the answer on its
    /// way. The caller bounds the time; the bytes are bounded here.
    pub fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.shut {
            if ready!(self.wire.poll_shutdown(cx)).is_err() {
                return Poll::Ready(());
            }
            self.shut = true;
        }
        while self.drained < MAX_DRAIN {
            self.wire.input.clear();
            match ready!(self.wire.poll_fill(cx)) {
                Ok(0) | Err(_) => break,
                Ok(n) => self.drained += n as u64,
            }
        }
        Poll::Ready(())
    }

    /// The stream and what was read beyond the request, after a protocol switch.
    #[must_use]
    pub fn into_parts(self) -> (I, Bytes) {
        self.wire.into_parts()
    }
}

//! The server's role: requests in, responses out.

use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::{HeaderMap, Method, Request, Response, StatusCode, Version, header};

use super::{
    BodyLen, Error, Frame, Limits,
    body::{Reader, Writer},
    head::{self, Framing, OriginalNames, RequestHead},
    hop::tokens,
    wire::{MAX_AHEAD, Wire},
};
use crate::net::Io;

/// What is known of the request being served.
#[derive(Debug)]
struct Current {
    method: Method,
    version: Version,
    continued: bool,
    head_sent: bool,
}

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
        }
    }

    /// Whether the first byte of a request is here.
    #[must_use]
    pub fn request_begun(&self) -> bool {
        !self.wire.input.is_empty()
    }

    /// Waits for the first byte of a request: false when the client ended instead.
    ///
    /// # Errors
    /// The connection's.
    pub fn poll_begun(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Error>> {
        while self.wire.input.is_empty() {
            if ready!(self.wire.poll_fill(cx))? == 0 {
                return Poll::Ready(Ok(false));
            }
        }
        Poll::Ready(Ok(true))
    }

    /// The next request head; `None` when the client ended between requests.
    ///
    /// # Errors
    /// When what came is no request; the connection must then close after an answer.
    pub fn poll_request(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<RequestHead>, Error>> {
        // An empty line before a request is skipped (RFC 9112 §2.2).
        loop {
            if self.wire.input.starts_with(b"\r\n") {
                self.wire.input.advance(2);
            } else if matches!(&self.wire.input[..], b"" | b"\r") {
                if ready!(self.wire.poll_fill(cx))? == 0 {
                    return Poll::Ready(Ok(None));
                }
            } else {
                break;
            }
        }
        let head = match ready!(self.wire.poll_head(cx, self.limits.head_bytes)) {
            Ok(Some(head)) => head,
            Ok(None) => return Poll::Ready(Ok(None)),
            Err(error) => {
                self.close = true;
                return Poll::Ready(Err(error));
            }
        };
        match head::parse_request(&head, &self.limits) {
            Ok(request) => {
                self.begin(&request.head, request.len);
                Poll::Ready(Ok(Some(request)))
            }
            Err(error) => {
                self.close = true;
                Poll::Ready(Err(error))
            }
        }
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

    /// Sends an interim response; at most one 100, and none to HTTP/1.0 (RFC 9110 §15.2; HT-16).
    pub fn send_informational(&mut self, response: &Response<()>) {
        let Some(current) = &mut self.current else {
            return;
        };
        if current.version == Version::HTTP_10 || current.head_sent {
            return;
        }
        if response.status() == StatusCode::CONTINUE
            && std::mem::replace(&mut current.continued, true)
        {
            return;
        }
        let framing = Framing {
            length: None,
            chunked: false,
            keep_length: false,
            keep_connection: false,
            connection: None,
        };
        head::write_response(self.wire.out(), response, None, framing);
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
        let no_body = head_request
            || tunnel
            || status == StatusCode::NO_CONTENT
            || status == StatusCode::NOT_MODIFIED;
        let mut framing = Framing {
            length: None,
            chunked: false,
            keep_length: head_request || status == StatusCode::NOT_MODIFIED,
            keep_connection: switched,
            connection: None,
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
        head::write_response(self.wire.out(), response, names, framing);
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
    /// no such sign (HT-19); a reset is. What comes early of the next request is kept, within
    /// bounds.
    pub fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.reader.is_done() && !self.wire.ended && self.wire.input.len() < MAX_AHEAD {
            match ready!(self.wire.poll_fill(cx)) {
                Ok(0) => break,
                Ok(_) => {}
                Err(_) => return Poll::Ready(()),
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
        !self.close && !self.broken && self.reader.is_done() && self.writer.is_done()
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
    /// way. The caller bounds the time.
    pub fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if ready!(self.wire.poll_shutdown(cx)).is_err() {
            return Poll::Ready(());
        }
        loop {
            self.wire.input.clear();
            match ready!(self.wire.poll_fill(cx)) {
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(_) => {}
            }
        }
    }

    /// The stream and what was read beyond the request, after a protocol switch.
    #[must_use]
    pub fn into_parts(self) -> (I, Bytes) {
        self.wire.into_parts()
    }
}

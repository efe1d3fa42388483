//! The client's role: requests out, responses in.

use std::{
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version, header};

use super::{
    BodyLen, Error, Frame, Limits, OriginalNames,
    body::{Reader, Writer},
    encode::{self, Framing},
    framing, head,
    hop::{keep_alive_timeout, strip_hop_by_hop, tokens},
    wire::Wire,
};
use crate::net::Io;

/// How every response begins.
const START: &[u8] = b"HTTP/1.";

/// What comes back.
#[derive(Debug)]
pub enum ResponseHead {
    Interim(Response<()>),
    Final {
        head: Response<()>,
        len: BodyLen,
        names: Option<OriginalNames>,
    },
}

/// A connection to an endpoint.
#[derive(Debug)]
pub struct ClientConn<I> {
    wire: Wire<I>,
    limits: Limits,
    reader: Reader,
    writer: Writer,
    method: Method,
    /// The response head has come.
    answered: bool,
    any_response_byte: bool,
    reusable: bool,
    /// The request asked for a protocol switch.
    may_switch: bool,
    keep_alive: Option<Duration>,
}

impl<I: Io> ClientConn<I> {
    /// A fresh connection.
    pub fn new(io: I, limits: Limits) -> Self {
        Self {
            wire: Wire::new(io, Bytes::new()),
            limits,
            reader: Reader::Done,
            writer: Writer::Done,
            method: Method::GET,
            answered: true,
            any_response_byte: false,
            reusable: true,
            may_switch: false,
            keep_alive: None,
        }
    }

    /// Sends a request's head and sets the framing of its body.
    pub fn send_request(
        &mut self,
        request: &Request<()>,
        len: BodyLen,
        names: Option<&OriginalNames>,
    ) {
        let upgrade = request.headers().contains_key(header::UPGRADE);
        let framing = Framing {
            length: match len {
                BodyLen::Known(n) => Some(n),
                _ => None,
            },
            chunked: matches!(len, BodyLen::Chunked | BodyLen::UntilClose),
            keep_connection: upgrade,
            ..Framing::default()
        };
        self.may_switch = upgrade;
        self.writer = Writer::new(if len == BodyLen::UntilClose {
            BodyLen::Chunked
        } else {
            len
        });
        self.method = request.method().clone();
        self.answered = false;
        self.any_response_byte = false;
        self.wire.written = 0;
        self.wire.make_room(framing.length.unwrap_or(0));
        encode::request(self.wire.out(), request, names, framing);
    }

    /// Sends a piece of the request body.
    pub fn send_data(&mut self, data: Bytes) {
        self.writer.data(&mut self.wire, data);
    }

    /// Ends the request with trailers, which only chunked framing can carry.
    pub fn send_trailers(&mut self, trailers: &HeaderMap) {
        self.reusable &= self.writer.finish(&mut self.wire, Some(trailers));
    }

    /// Ends the request.
    pub fn finish(&mut self) {
        self.reusable &= self.writer.finish(&mut self.wire, None);
    }

    /// Ready when more of the request may be sent.
    ///
    /// # Errors
    /// When the endpoint is gone.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.wire.poll_ready(cx).map_err(Error::Io)
    }

    /// Ready when all that was sent is with the kernel.
    ///
    /// # Errors
    /// When the endpoint is gone.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.wire.poll_flush(cx).map_err(Error::Io)
    }

    /// The next response head.
    ///
    /// # Errors
    /// `Closed` when the endpoint ended the connection before any byte of one.
    pub fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, Error>> {
        let polled = self.poll_response_inner(cx);
        self.any_response_byte |= !self.wire.input.is_empty() || self.answered;
        if matches!(polled, Poll::Ready(Err(_))) {
            self.reusable = false;
        }
        polled
    }

    fn poll_response_inner(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, Error>> {
        let block = loop {
            // What is no response is not waited for to end: a server of another protocol may never
            // send a line.
            let begun = self.wire.input.len().min(START.len());
            if self.wire.input.get(..begun) != START.get(..begun) {
                return Poll::Ready(Err(Error::Syntax("not an HTTP/1 response")));
            }
            if begun == START.len() {
                break ready!(self.wire.poll_head(cx, self.limits.head_bytes))?;
            }
            if ready!(self.wire.poll_fill(cx))? == 0 {
                break None;
            }
        };
        let Some(block) = block else {
            let nothing = self.wire.input.is_empty();
            return Poll::Ready(Err(if nothing { Error::Closed } else { Error::Cut }));
        };
        self.any_response_byte = true;
        let (mut response, names) = head::parse_response(&block, &self.limits)?;
        let status = response.status();
        if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
            let headers = response.headers_mut();
            strip_hop_by_hop(headers);
            headers.remove(header::CONTENT_LENGTH);
            response.extensions_mut().insert(names);
            return Poll::Ready(Ok(ResponseHead::Interim(response)));
        }
        if status == StatusCode::SWITCHING_PROTOCOLS && !self.may_switch {
            // Taken for real, it would turn what follows into a tunnel (HT-08).
            return Poll::Ready(Err(Error::Syntax("protocol switch that nobody asked for")));
        }
        let (len, trusted) = framing::response_len(&mut response, &self.method)?;
        self.keep_alive = keep_alive_timeout(response.headers());
        let says = |word: &[u8]| {
            tokens(response.headers(), &header::CONNECTION).any(|t| t.eq_ignore_ascii_case(word))
        };
        let old = response.version() == Version::HTTP_10;
        let tunnel = status == StatusCode::SWITCHING_PROTOCOLS
            || (self.method == Method::CONNECT && status.is_success());
        if !trusted || tunnel || says(b"close") || (old && !says(b"keep-alive")) {
            self.reusable = false;
        }
        self.answered = true;
        self.reader = Reader::new(len);
        Poll::Ready(Ok(ResponseHead::Final {
            head: response,
            len,
            names: Some(names),
        }))
    }

    /// The next piece of the response body; `None` at its end.
    ///
    /// # Errors
    /// When the body is cut or breaks its framing.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, Error>> {
        let polled = self.reader.poll_frame(cx, &mut self.wire, &self.limits);
        if matches!(polled, Poll::Ready(Err(_))) {
            self.reusable = false;
        }
        polled
    }

    /// Whether the whole response has been received.
    #[must_use]
    pub const fn response_body_done(&self) -> bool {
        self.answered && self.reader.is_done()
    }

    /// Whether another request may be sent: both messages were whole, and nothing came unasked.
    #[must_use]
    pub fn is_reusable(&self) -> bool {
        self.reusable
            && self.answered
            && self.reader.is_done()
            && self.writer.is_done()
            && self.wire.nothing_to_write()
            && self.wire.input.is_empty()
            && !self.wire.ended
    }

    /// How long the endpoint says that it keeps the connection while nothing is sent.
    #[must_use]
    pub const fn keep_alive_timeout(&self) -> Option<Duration> {
        self.keep_alive
    }

    /// Lets go of buffers before the connection waits for its next request.
    pub fn rest(&mut self) {
        self.wire.relax();
    }

    /// Resolves when a waiting connection is of no more use: the endpoint closed it, or sent what
    /// nobody asked for.
    pub fn poll_idle_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.wire.input.is_empty() {
            let _more_or_end = ready!(self.wire.poll_fill(cx));
        }
        self.reusable = false;
        Poll::Ready(())
    }

    /// Bytes of the request that the kernel has taken.
    #[must_use]
    pub const fn request_bytes_written(&self) -> u64 {
        self.wire.written
    }

    /// Whether the endpoint has begun to answer.
    #[must_use]
    pub const fn any_response_byte(&self) -> bool {
        self.any_response_byte
    }

    /// The stream and what was read beyond the response, after a protocol switch.
    #[must_use]
    pub fn into_parts(self) -> (I, Bytes) {
        self.wire.into_parts()
    }
}

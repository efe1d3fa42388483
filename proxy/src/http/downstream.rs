//! The client's side of one exchange, in either HTTP version.

use std::task::{Context, Poll};

use bytes::Bytes;
use h2::{Reason, server::SendResponse};
use http::{HeaderMap, Response};

use super::{
    BodyLen, Frame,
    h1::{OriginalNames, ServerConn},
    h2::{Receiver, Sender},
};
use crate::{fault::Fault, net::BoxIo};

/// One request's way in and its response's way out.
#[derive(Debug)]
pub enum Downstream<'a> {
    Http1(&'a mut ServerConn<BoxIo>),
    Http2(Box<Http2Exchange>),
}

/// A stream that a client opened.
#[derive(Debug)]
pub struct Http2Exchange {
    receiver: Receiver,
    respond: SendResponse<Bytes>,
    sender: Option<Sender>,
}

impl Http2Exchange {
    /// Wraps what `h2` hands over for a request.
    #[must_use]
    pub fn new(body: h2::RecvStream, respond: SendResponse<Bytes>) -> Self {
        Self {
            receiver: Receiver::new(body),
            respond,
            sender: None,
        }
    }
}

impl Downstream<'_> {
    /// The next piece of the request body; `None` at its end.
    ///
    /// # Errors
    /// `DownstreamReset` when the client gave up, `DownstreamProtocol` when it broke the framing.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, Fault>> {
        match self {
            Self::Http1(conn) => conn.poll_recv(cx).map_err(|error| error.downstream_fault()),
            Self::Http2(stream) => stream.receiver.poll_frame(cx).map_err(|e| client_fault(&e)),
        }
    }

    /// Whether the whole request has been received.
    #[must_use]
    pub fn request_ended(&self) -> bool {
        match self {
            Self::Http1(conn) => conn.request_body_done(),
            Self::Http2(stream) => stream.receiver.ended(),
        }
    }

    /// Passes an interim response on (RFC 9110 §15.2). One that cannot be sent any more is dropped;
    /// the final response will tell.
    pub fn send_informational(&mut self, head: &Response<()>) {
        match self {
            Self::Http1(conn) => conn.send_informational(head),
            Self::Http2(stream) => {
                let mut copy = Response::new(());
                *copy.status_mut() = head.status();
                *copy.headers_mut() = head.headers().clone();
                if let Err(error) = stream.respond.send_informational(copy) {
                    tracing::debug!(%error, "interim response not passed on");
                }
            }
        }
    }

    /// Sends the final head.
    ///
    /// # Errors
    /// When the client is gone.
    pub fn send_head(
        &mut self,
        head: Response<()>,
        len: BodyLen,
        names: Option<&OriginalNames>,
    ) -> Result<(), Fault> {
        match self {
            Self::Http1(conn) => {
                conn.send_response(&head, len, names);
                Ok(())
            }
            Self::Http2(stream) => {
                let end = len.is_empty();
                let sender = stream
                    .respond
                    .send_response(head, end)
                    .map_err(|error| client_fault(&error))?;
                stream.sender = Some(Sender::new(sender, end));
                Ok(())
            }
        }
    }

    /// Ready when more of the response body may be sent.
    ///
    /// # Errors
    /// When the client is gone.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        match self {
            Self::Http1(conn) => conn
                .poll_ready(cx)
                .map_err(|error| error.downstream_fault()),
            Self::Http2(stream) => match &mut stream.sender {
                Some(sender) => sender.poll_ready(cx).map_err(|error| client_fault(&error)),
                None => Poll::Ready(Err(Fault::Internal)),
            },
        }
    }

    /// Sends a piece of the response body, which `end` says is the last.
    ///
    /// # Errors
    /// When the client is gone.
    pub fn send_data(&mut self, data: Bytes, end: bool) -> Result<(), Fault> {
        match self {
            Self::Http1(conn) => {
                conn.send_data(data);
                if end {
                    conn.finish();
                }
                Ok(())
            }
            Self::Http2(stream) => match &mut stream.sender {
                Some(sender) => sender.data(data, end).map_err(|error| client_fault(&error)),
                None => Err(Fault::Internal),
            },
        }
    }

    /// Ends the response with trailers.
    ///
    /// # Errors
    /// When the client is gone.
    pub fn send_trailers(&mut self, trailers: HeaderMap) -> Result<(), Fault> {
        match self {
            Self::Http1(conn) => {
                conn.send_trailers(&trailers);
                Ok(())
            }
            Self::Http2(stream) => match &mut stream.sender {
                Some(sender) => sender.trailers(trailers).map_err(|e| client_fault(&e)),
                None => Err(Fault::Internal),
            },
        }
    }

    /// Ends the response.
    ///
    /// # Errors
    /// When the client is gone.
    pub fn finish(&mut self) -> Result<(), Fault> {
        match self {
            Self::Http1(conn) => {
                conn.finish();
                Ok(())
            }
            Self::Http2(stream) => match &mut stream.sender {
                Some(sender) => sender.finish().map_err(|error| client_fault(&error)),
                None => Err(Fault::Internal),
            },
        }
    }

    /// Ready when everything queued so far is with the kernel (HTTP/1.1) or the connection's own
    /// task (HTTP/2).
    ///
    /// # Errors
    /// When the client is gone.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        match self {
            Self::Http1(conn) => conn
                .poll_flush(cx)
                .map_err(|error| error.downstream_fault()),
            Self::Http2(_) => Poll::Ready(Ok(())),
        }
    }

    /// Resolves when the client gave the exchange up. Its closing of one direction is no such sign
    /// (HT-19).
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Http1(conn) => conn.poll_closed(cx),
            Self::Http2(stream) => match &mut stream.sender {
                Some(sender) => sender.poll_reset(cx).map(|_| ()),
                None => stream.respond.poll_reset(cx).map(|_| ()),
            },
        }
    }

    /// Gives up a response that has begun, so that the client cannot take it for complete.
    pub fn abort(&mut self) {
        match self {
            Self::Http1(conn) => conn.abort(),
            Self::Http2(stream) => match &mut stream.sender {
                Some(sender) => sender.reset(Reason::INTERNAL_ERROR),
                None => stream.respond.send_reset(Reason::INTERNAL_ERROR),
            },
        }
    }

    /// The connection takes no request after this one; call it before the head is sent.
    pub fn close_after(&mut self) {
        if let Self::Http1(conn) = self {
            conn.set_close();
        }
    }

    /// Tells a client that still sends that nobody reads on: the answer is complete (RFC 9113
    /// §8.1). For HTTP/1.1 the connection's loop does this by its lingering close.
    pub fn stop_request(&mut self) {
        if let Self::Http2(stream) = self
            && !stream.receiver.ended()
            && let Some(sender) = &mut stream.sender
        {
            sender.reset(Reason::NO_ERROR);
        }
    }
}

fn client_fault(error: &h2::Error) -> Fault {
    if error.is_library() {
        Fault::DownstreamProtocol
    } else {
        Fault::DownstreamReset
    }
}

//! The client's side of one exchange, in either HTTP version.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, server::SendResponse};
use http::{HeaderMap, Response, StatusCode, header};

use super::{
    BodyLen, Frame, StreamIo,
    h1::{OriginalNames, ServerConn},
    h2::{Receiver, Sender, check_size},
};
use crate::{fault::Fault, net::BoxIo};

/// One request's way in and its response's way out.
#[derive(Debug)]
pub enum Downstream<'a> {
    Http1(&'a mut ServerConn<BoxIo>),
    Http2(Http2Exchange),
}

/// A stream that a client opened. When it is let go after its response and the client still sends,
/// `h2` tells it to stop with NO_ERROR, behind the response (RFC 9113 §8.1; HT-18); a reset by hand
/// would throw away what of the response is not yet written.
#[derive(Debug)]
pub struct Http2Exchange {
    receiver: Receiver,
    respond: SendResponse<Bytes>,
    sender: Option<Sender>,
    /// The client took it back.
    gone: bool,
    asks: Asks,
}

/// What a stream is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asks {
    /// An exchange of messages.
    Exchange,
    /// A tunnel (RFC 9113 §8.5).
    Tunnel,
    /// Another protocol on the stream (RFC 8441). Inside the proxy such a request has the form of
    /// HTTP/1.1, with `upgrade` and 101.
    Switch,
}

impl Http2Exchange {
    /// Wraps what `h2` hands over for a request.
    #[must_use]
    pub fn new(body: h2::RecvStream, respond: SendResponse<Bytes>, asks: Asks) -> Self {
        Self {
            receiver: Receiver::new(body),
            respond,
            sender: None,
            gone: false,
            asks,
        }
    }
}

impl Http2Exchange {
    fn send_head(&mut self, mut head: Response<()>, len: BodyLen) -> Result<(), Fault> {
        let status = head.status();
        let tunnel = match self.asks {
            Asks::Exchange => false,
            Asks::Tunnel => status.is_success(),
            Asks::Switch if status == StatusCode::SWITCHING_PROTOCOLS => {
                *head.status_mut() = StatusCode::OK;
                for name in [
                    header::CONNECTION,
                    header::UPGRADE,
                    header::SEC_WEBSOCKET_ACCEPT,
                ] {
                    head.headers_mut().remove(name);
                }
                true
            }
            // It would be read as the switch that did not happen.
            Asks::Switch if status.is_success() => return Err(Fault::UpstreamProtocol),
            Asks::Switch => false,
        };
        let end = len.is_empty() && !tunnel;
        let sent = self.respond.send_response(head, end);
        let sender = sent.map_err(|error| client_fault(&error))?;
        self.sender = Some(Sender::new(sender, end));
        Ok(())
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
            Self::Http2(stream) => {
                let frame = ready!(stream.receiver.poll_frame(cx)).map_err(|e| client_fault(&e))?;
                if let Some(Frame::Trailers(trailers)) = &frame {
                    check_size(trailers).map_err(|error| error.downstream_fault())?;
                }
                Poll::Ready(Ok(frame))
            }
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

    /// Throws away what has come of a request that nobody will read: true when that was the rest of
    /// it, so that an HTTP/1.1 connection serves its next one (HT-24).
    pub fn discard_received(&mut self) -> bool {
        match self {
            Self::Http1(conn) => conn.discard_received(),
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
            Self::Http2(stream) => stream.send_head(head, len),
        }
    }

    /// The raw stream of a tunnel that an HTTP/2 client asked for and was granted.
    #[must_use]
    pub fn into_tunnel(self) -> Option<BoxIo> {
        match self {
            Self::Http1(_) => None,
            Self::Http2(stream) => {
                let Http2Exchange {
                    receiver, sender, ..
                } = stream;
                Some(Box::new(StreamIo::new(receiver, sender?)))
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

    /// Ready when everything queued so far is with the kernel (HTTP/1.1) or, as far as the client
    /// gave credit for it, with the connection's own task (HTTP/2).
    ///
    /// # Errors
    /// When the client is gone.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        match self {
            Self::Http1(conn) => conn
                .poll_flush(cx)
                .map_err(|error| error.downstream_fault()),
            Self::Http2(stream) => match &mut stream.sender {
                Some(sender) => sender.poll_ready(cx).map_err(|error| client_fault(&error)),
                None => Poll::Ready(Ok(())),
            },
        }
    }

    /// Resolves when the client gave the exchange up. Its closing of one direction is no such sign
    /// (HT-19).
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Http1(conn) => conn.poll_closed(cx),
            Self::Http2(stream) => {
                let reset = match &mut stream.sender {
                    Some(sender) => sender.poll_reset(cx),
                    None => stream.respond.poll_reset(cx),
                };
                stream.gone |= reset.is_ready();
                reset.map(drop)
            }
        }
    }

    /// Whether the client was seen to give up a stream.
    #[must_use]
    pub const fn was_given_up(&self) -> bool {
        match self {
            Self::Http1(_) => false,
            Self::Http2(stream) => stream.gone,
        }
    }

    /// Ends a gRPC response that has begun and failed, in the words of `trailers`: false where that
    /// cannot be said, and [`Self::abort`] is what is left.
    pub fn fail(&mut self, trailers: HeaderMap) -> bool {
        match self {
            Self::Http1(_) => false,
            Self::Http2(stream) => {
                let sender = stream.sender.as_mut();
                sender.is_some_and(|sender| sender.fail(trailers).is_ok())
            }
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
}

fn client_fault(error: &h2::Error) -> Fault {
    if error.is_library() {
        Fault::DownstreamProtocol
    } else {
        Fault::DownstreamReset
    }
}

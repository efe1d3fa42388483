//! The endpoint's side of one try, in either HTTP version.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::client::ResponseFuture;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, Version, header};

use crate::{
    fault::Fault,
    http::{
        BodyLen, Frame,
        h1::{OriginalNames, ResponseHead},
        h2::{self as h2_stream, Receiver, Sender, join_cookies},
    },
    net::BoxIo,
    pool::{Http1Lease, Http2Lease, Permit},
};

/// How a try failed, with what is needed to decide whether the request may go again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) fault: Fault,
    /// What the codec or the kernel said.
    pub(crate) detail: String,
    /// The endpoint may have seen some of the request.
    pub(crate) sent: bool,
    /// The endpoint had begun to answer.
    pub(crate) answered: bool,
}

impl Failure {
    pub(crate) fn before_sending(fault: Fault, detail: impl Into<String>) -> Self {
        Self {
            fault,
            detail: detail.into(),
            sent: false,
            answered: false,
        }
    }
}

/// A response head.
#[derive(Debug)]
pub(crate) enum Head {
    Interim(Response<()>),
    Final(FinalHead),
}

/// The head of the answer itself.
#[derive(Debug)]
pub(crate) struct FinalHead {
    pub(crate) head: Response<()>,
    pub(crate) len: BodyLen,
    pub(crate) names: Option<OriginalNames>,
}

/// One request on its way to an endpoint.
#[derive(Debug)]
pub(crate) enum Upstream {
    Http1(Box<Http1Try>),
    Http2(Box<Http2Try>),
}

/// On a connection of its own.
#[derive(Debug)]
pub(crate) struct Http1Try {
    lease: Http1Lease,
    /// A write failed; the endpoint's answer, if there is one, still counts (HT-18).
    write_error: Option<String>,
}

/// On a stream of a shared connection.
#[derive(Debug)]
pub(crate) struct Http2Try {
    lease: Http2Lease,
    response: Option<ResponseFuture>,
    sender: Sender,
    receiver: Option<Receiver>,
    write_error: Option<String>,
}

impl Upstream {
    /// Sends the head on an HTTP/1.1 connection.
    pub(crate) fn http1(
        mut lease: Http1Lease,
        head: &Request<()>,
        len: BodyLen,
        names: Option<&OriginalNames>,
    ) -> Self {
        lease.conn.send_request(head, len, names);
        Self::Http1(Box::new(Http1Try {
            lease,
            write_error: None,
        }))
    }

    /// Sends the head on a stream.
    ///
    /// # Errors
    /// When the connection takes no more streams: nothing was sent.
    pub(crate) async fn http2(
        mut lease: Http2Lease,
        head: &Request<()>,
        len: BodyLen,
        tls: bool,
    ) -> Result<Self, Failure> {
        let refused =
            |error: &h2::Error| Failure::before_sending(Fault::UpstreamRefused, error.to_string());
        let mut send = match lease.send.clone().ready().await {
            Ok(send) => send,
            Err(error) => {
                lease.condemn();
                return Err(refused(&error));
            }
        };
        let end = len.is_empty();
        let request = http2_head(head, tls)
            .map_err(|error| Failure::before_sending(Fault::Internal, error.to_string()))?;
        let (response, sender) = match send.send_request(request, end) {
            Ok(sent) => sent,
            Err(error) => {
                lease.condemn();
                return Err(refused(&error));
            }
        };
        lease.send = send;
        Ok(Self::Http2(Box::new(Http2Try {
            lease,
            response: Some(response),
            sender: Sender::new(sender, end),
            receiver: None,
            write_error: None,
        })))
    }

    /// Ready when more of the request body may be sent, and for good once writing is pointless.
    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Http1(one) => {
                if one.write_error.is_none()
                    && let Err(error) = ready!(one.lease.conn.poll_ready(cx))
                {
                    one.write_error = Some(error.to_string());
                }
            }
            Self::Http2(two) => {
                if two.write_error.is_none()
                    && let Err(error) = ready!(two.sender.poll_ready(cx))
                {
                    two.write_error = Some(error.to_string());
                }
            }
        }
        Poll::Ready(())
    }

    /// Sends a piece of the request body.
    pub(crate) fn send(&mut self, frame: Frame, end: bool) {
        match self {
            Self::Http1(one) => {
                if one.write_error.is_some() {
                    return;
                }
                match frame {
                    Frame::Data(data) => {
                        one.lease.conn.send_data(data);
                        if end {
                            one.lease.conn.finish();
                        }
                    }
                    Frame::Trailers(trailers) => one.lease.conn.send_trailers(&trailers),
                }
            }
            Self::Http2(two) => {
                if two.write_error.is_some() {
                    return;
                }
                let sent = match frame {
                    Frame::Data(data) => two.sender.data(data, end),
                    Frame::Trailers(trailers) => two.sender.trailers(trailers),
                };
                if let Err(error) = sent {
                    two.write_error = Some(error.to_string());
                }
            }
        }
    }

    /// Ends the request body.
    pub(crate) fn finish(&mut self) {
        match self {
            Self::Http1(one) if one.write_error.is_none() => one.lease.conn.finish(),
            Self::Http1(_) => {}
            Self::Http2(two) => {
                if two.write_error.is_none()
                    && let Err(error) = two.sender.finish()
                {
                    two.write_error = Some(error.to_string());
                }
            }
        }
    }

    /// Pushes out what is queued, as far as the kernel takes it. A failure is kept for
    /// [`Self::poll_head`] to weigh against an answer that may have come before it.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Self::Http1(one) = self
            && one.write_error.is_none()
            && let Err(error) = ready!(one.lease.conn.poll_flush(cx))
        {
            one.write_error = Some(error.to_string());
        }
        Poll::Ready(())
    }

    /// The next response head.
    pub(crate) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Head, Failure>> {
        match self {
            Self::Http1(one) => one.poll_head(cx),
            Self::Http2(two) => two.poll_head(cx),
        }
    }

    /// The next piece of the response body; `None` at its end.
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Frame>, Failure>> {
        let failure = |fault, detail| Failure {
            fault,
            detail,
            sent: true,
            answered: true,
        };
        match self {
            Self::Http1(one) => {
                let polled = ready!(one.lease.conn.poll_recv(cx));
                Poll::Ready(polled.map_err(|e| failure(e.upstream_fault(), e.to_string())))
            }
            Self::Http2(two) => {
                let Some(receiver) = &mut two.receiver else {
                    return Poll::Ready(Err(failure(Fault::Internal, String::new())));
                };
                let polled = ready!(receiver.poll_frame(cx));
                Poll::Ready(
                    polled.map_err(|e| failure(h2_stream::upstream_fault(&e), e.to_string())),
                )
            }
        }
    }

    /// Whether the response body has ended with what was last received.
    pub(crate) fn response_ended(&self) -> bool {
        match self {
            Self::Http1(one) => one.lease.conn.response_body_done(),
            Self::Http2(two) => two.receiver.as_ref().is_some_and(Receiver::ended),
        }
    }

    /// Ends the try: a connection that is fit for another request goes back to the pool. A stream
    /// that has not ended is reset by dropping it.
    pub(crate) fn give_back(self) {
        if let Self::Http1(one) = self
            && one.write_error.is_none()
        {
            one.lease.give_back(tokio::time::Instant::now());
        }
    }

    /// The raw stream after a protocol switch.
    pub(crate) fn into_raw(self) -> Option<(BoxIo, Bytes, Permit)> {
        match self {
            Self::Http1(one) => Some(one.lease.into_raw()),
            Self::Http2(_) => None,
        }
    }
}

impl Http1Try {
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Head, Failure>> {
        let conn = &mut self.lease.conn;
        match ready!(conn.poll_response(cx)) {
            Ok(ResponseHead::Interim(head)) => Poll::Ready(Ok(Head::Interim(head))),
            Ok(ResponseHead::Final { head, len, names }) => {
                Poll::Ready(Ok(Head::Final(FinalHead { head, len, names })))
            }
            Err(error) => Poll::Ready(Err(Failure {
                fault: error.upstream_fault(),
                detail: self.write_error.take().unwrap_or_else(|| error.to_string()),
                sent: conn.request_bytes_written() > 0,
                answered: conn.any_response_byte(),
            })),
        }
    }
}

impl Http2Try {
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Head, Failure>> {
        let Some(response) = &mut self.response else {
            let failure = Failure::before_sending(Fault::Internal, "head asked for twice");
            return Poll::Ready(Err(failure));
        };
        let failure = |error: &h2::Error| Failure {
            fault: h2_stream::upstream_fault(error),
            detail: error.to_string(),
            sent: true,
            answered: false,
        };
        if let Poll::Ready(Some(interim)) = response.poll_informational(cx) {
            return Poll::Ready(interim.map(Head::Interim).map_err(|e| failure(&e)));
        }
        match ready!(Pin::new(response).poll(cx)) {
            Ok(head) => {
                let (parts, body) = head.into_parts();
                let receiver = Receiver::new(body);
                let len = h2_body_len(&parts.headers, receiver.ended());
                self.receiver = Some(receiver);
                self.response = None;
                Poll::Ready(Ok(Head::Final(FinalHead {
                    head: Response::from_parts(parts, ()),
                    len,
                    names: None,
                })))
            }
            Err(error) => {
                let failure = failure(&error);
                if failure.fault == Fault::UpstreamRefused && error.is_go_away() {
                    self.lease.condemn();
                }
                Poll::Ready(Err(failure))
            }
        }
    }
}

/// Framing of an HTTP/2 message.
pub(crate) fn h2_body_len(headers: &HeaderMap, ended: bool) -> BodyLen {
    if ended {
        return BodyLen::Empty;
    }
    headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .map_or(BodyLen::Chunked, BodyLen::Known)
}

/// The head as HTTP/2 wants it: authority in the target, no connection fields, cookies may stay
/// split (RFC 9113 §8.2.2, §8.3.1).
fn http2_head(head: &Request<()>, tls: bool) -> Result<Request<()>, http::Error> {
    let mut headers = head.headers().clone();
    let authority = headers.remove(header::HOST);
    for name in [
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ] {
        headers.remove(name);
    }
    if headers.get(header::TE).is_some_and(|te| te != "trailers") {
        headers.remove(header::TE);
    }
    let authority = authority
        .as_ref()
        .map(HeaderValue::as_bytes)
        .unwrap_or_default();
    let mut uri = Uri::builder().authority(authority);
    if head.method() != Method::CONNECT {
        // The scheme is what this leg really uses (H2-12).
        uri = uri
            .scheme(if tls { "https" } else { "http" })
            .path_and_query(head.uri().path_and_query().map_or("/", |p| p.as_str()));
    }
    let mut request = Request::builder()
        .method(head.method().clone())
        .uri(uri.build()?)
        .version(Version::HTTP_2)
        .body(())?;
    *request.headers_mut() = headers;
    Ok(request)
}

/// The head as HTTP/1.1 wants it: one cookie line (H2-10), and `te: trailers` only with the
/// connection option that announces it, which hop-by-hop hygiene removed.
pub(crate) fn for_http1(headers: &mut HeaderMap) {
    join_cookies(headers);
    headers.remove(header::TE);
}

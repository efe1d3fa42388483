//! The endpoint's side of one try, in either HTTP version.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::client::ResponseFuture;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, Uri, Version, header,
    uri::{self, Authority, PathAndQuery, Scheme},
};

use crate::{
    fault::Fault,
    http::{
        BodyLen, Frame, StreamIo,
        h1::{self, OriginalNames, ResponseHead},
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
    /// In place of the fault's own, where the endpoint said more.
    pub(crate) grpc_status: Option<u32>,
    /// The endpoint may have seen some of the request.
    pub(crate) sent: bool,
}

impl Failure {
    pub(crate) fn before_sending(fault: Fault, detail: impl Into<String>) -> Self {
        Self {
            fault,
            detail: detail.into(),
            grpc_status: None,
            sent: false,
        }
    }

    /// A failure on this side, once the request was sent.
    pub(crate) const fn while_answering(fault: Fault) -> Self {
        Self {
            fault,
            detail: String::new(),
            grpc_status: None,
            sent: true,
        }
    }

    fn of_codec(error: &h1::Error) -> Self {
        Self {
            detail: error.to_string(),
            ..Self::while_answering(error.upstream_fault())
        }
    }

    fn of_stream(error: &::h2::Error) -> Self {
        Self {
            fault: h2_stream::upstream_fault(error),
            detail: error.to_string(),
            grpc_status: h2_stream::grpc_code(error),
            sent: true,
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
    Http1(Http1Try),
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
    /// Received before it was asked for.
    ahead: Option<Frame>,
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
        lease.conn().send_request(head, len, names);
        Self::Http1(Http1Try {
            lease,
            write_error: None,
        })
    }

    /// Sends the head on a stream.
    ///
    /// # Errors
    /// When the connection takes no more streams: nothing was sent.
    pub(crate) fn http2(
        mut lease: Http2Lease,
        head: &Request<()>,
        len: BodyLen,
        tls: bool,
    ) -> Result<Self, Failure> {
        let end = len.is_empty() && head.method() != Method::CONNECT;
        let request = http2_head(head, tls)
            .map_err(|error| Failure::before_sending(Fault::Internal, error.to_string()))?;
        let (response, sender) = lease.send.send_request(request, end).map_err(|error| {
            lease.condemn();
            Failure::before_sending(Fault::UpstreamRefused, error.to_string())
        })?;
        Ok(Self::Http2(Box::new(Http2Try {
            lease,
            response: Some(response),
            sender: Sender::new(sender, end),
            receiver: None,
            ahead: None,
            write_error: None,
        })))
    }

    /// Ready when more of the request body may be sent, and for good once writing is pointless.
    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Http1(one) => {
                if one.write_error.is_none()
                    && let Err(error) = ready!(one.lease.conn().poll_ready(cx))
                {
                    one.write_error = Some(error.to_string());
                }
            }
            Self::Http2(two) => ready!(two.poll_ready(cx)),
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
                        one.lease.conn().send_data(data);
                        if end {
                            one.lease.conn().finish();
                        }
                    }
                    Frame::Trailers(trailers) => one.lease.conn().send_trailers(&trailers),
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
                } else if !two.sender.is_waiting() {
                    two.lease.credit_came();
                }
            }
        }
    }

    /// Ends the request body.
    pub(crate) fn finish(&mut self) {
        match self {
            Self::Http1(one) if one.write_error.is_none() => one.lease.conn().finish(),
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
        match self {
            Self::Http1(one) => {
                if one.write_error.is_none()
                    && let Err(error) = ready!(one.lease.conn().poll_flush(cx))
                {
                    one.write_error = Some(error.to_string());
                }
                Poll::Ready(())
            }
            Self::Http2(_) => self.poll_ready(cx),
        }
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
        match self {
            Self::Http1(one) => {
                let polled = ready!(one.lease.conn().poll_recv(cx));
                Poll::Ready(polled.map_err(|error| Failure::of_codec(&error)))
            }
            Self::Http2(two) => two.poll_frame(cx),
        }
    }

    /// Receives what comes behind the head before it is asked for: ready when something has, or
    /// nothing ever will.
    ///
    /// # Errors
    /// When the response broke off instead.
    pub(crate) fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        if let Self::Http2(two) = self
            && two.ahead.is_none()
        {
            two.ahead = ready!(two.poll_frame(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    /// The trailers, if they came right behind the head.
    pub(crate) const fn trailers_ahead(&self) -> Option<&HeaderMap> {
        match self {
            Self::Http2(two) => match &two.ahead {
                Some(Frame::Trailers(trailers)) => Some(trailers),
                _ => None,
            },
            Self::Http1(_) => None,
        }
    }

    /// Whether the response body has ended with what was last received.
    pub(crate) fn response_ended(&self) -> bool {
        match self {
            Self::Http1(one) => one.lease.response_body_done(),
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
            Self::Http2(two) => {
                let Http2Try {
                    lease,
                    sender,
                    receiver,
                    ..
                } = *two;
                let io = StreamIo::new(receiver?, sender);
                Some((Box::new(io), Bytes::new(), Box::new(lease)))
            }
        }
    }
}

impl Http1Try {
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Head, Failure>> {
        let conn = self.lease.conn();
        match ready!(conn.poll_response(cx)) {
            Ok(ResponseHead::Interim(head)) => Poll::Ready(Ok(Head::Interim(head))),
            Ok(ResponseHead::Final { head, len, names }) => {
                Poll::Ready(Ok(Head::Final(FinalHead { head, len, names })))
            }
            Err(error) => Poll::Ready(Err(Failure {
                fault: error.upstream_fault(),
                detail: self.write_error.take().unwrap_or_else(|| error.to_string()),
                grpc_status: None,
                sent: conn.request_bytes_written() > 0,
            })),
        }
    }
}

impl Http2Try {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.write_error.is_some() || !self.sender.is_waiting() {
            return Poll::Ready(());
        }
        let polled = self.sender.poll_ready(cx);
        if polled.is_pending() {
            self.lease.credit_awaited();
            return Poll::Pending;
        }
        self.lease.credit_came();
        if let Poll::Ready(Err(error)) = polled {
            self.write_error = Some(error.to_string());
        }
        Poll::Ready(())
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, Failure>> {
        if let Some(frame) = self.ahead.take() {
            return Poll::Ready(Ok(Some(frame)));
        }
        let Some(receiver) = &mut self.receiver else {
            return Poll::Ready(Err(Failure::while_answering(Fault::Internal)));
        };
        let polled = ready!(receiver.poll_frame(cx));
        let frame = polled.map_err(|error| Failure::of_stream(&error))?;
        if let Some(Frame::Trailers(trailers)) = &frame {
            check_size(trailers)?;
        }
        Poll::Ready(Ok(frame))
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Head, Failure>> {
        let Some(response) = &mut self.response else {
            let failure = Failure::before_sending(Fault::Internal, "head asked for twice");
            return Poll::Ready(Err(failure));
        };
        if let Poll::Ready(Some(interim)) = response.poll_informational(cx) {
            let interim = interim.map_err(|error| Failure::of_stream(&error));
            return Poll::Ready(interim.map(Head::Interim));
        }
        match ready!(Pin::new(response).poll(cx)) {
            Ok(head) => {
                let (parts, body) = head.into_parts();
                check_size(&parts.headers)?;
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
                let failure = Failure::of_stream(&error);
                if failure.fault == Fault::UpstreamRefused && error.is_go_away() {
                    self.lease.condemn();
                }
                Poll::Ready(Err(failure))
            }
        }
    }
}

fn check_size(headers: &HeaderMap) -> Result<(), Failure> {
    h2_stream::check_size(headers).map_err(|error| Failure::of_codec(&error))
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
    let host = headers.remove(header::HOST);
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
    let host = host.as_ref().map(HeaderValue::as_bytes).unwrap_or_default();
    let mut uri = uri::Parts::default();
    uri.authority = Some(match head.uri().authority() {
        Some(same) if same.as_str().as_bytes() == host => same.clone(),
        _ => Authority::try_from(host)?,
    });
    if *head.method() != Method::CONNECT {
        // The scheme is what this leg really uses (H2-12).
        uri.scheme = Some(if tls { Scheme::HTTPS } else { Scheme::HTTP });
        let target = head.uri().path_and_query().cloned();
        uri.path_and_query = Some(target.unwrap_or_else(|| PathAndQuery::from_static("/")));
    }
    let mut request = Request::new(());
    *request.method_mut() = head.method().clone();
    *request.uri_mut() = Uri::from_parts(uri)?;
    *request.version_mut() = Version::HTTP_2;
    *request.headers_mut() = headers;
    Ok(request)
}

/// The head as HTTP/1.1 wants it: one cookie line (H2-10), and `te: trailers` only with the
/// connection option that announces it, which hop-by-hop hygiene removed.
pub(crate) fn for_http1(headers: &mut HeaderMap) {
    join_cookies(headers);
    headers.remove(header::TE);
}

//! Passing the response on, and what it says about the endpoint that gave it.

use std::{future::poll_fn, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header};
use tokio::time::Instant;

use super::{
    deadline,
    exchange::Exchange,
    forward::{Answered, Tries, outcome_of},
    serve::{Job, Local, grpc_blames_server},
    upstream::{Failure, FinalHead},
};
use crate::{
    balance::{Outcome, Picked, RequestPermit},
    fault::Fault,
    http::{
        BodyLen, Downstream, grpc,
        h1::{strip_hop_by_hop, upgrade_token},
    },
    net::BoxIo,
    pool::Permit,
};

/// The endpoint's half of a request that became a tunnel.
pub struct Tunnel {
    pub io: BoxIo,
    /// Read beyond the response head.
    pub rest: Bytes,
    pub idle: Option<Duration>,
    #[expect(dead_code, reason = "held as long as the tunnel")]
    permits: (Permit, Picked, RequestPermit),
}

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tunnel").finish_non_exhaustive()
    }
}

impl Job<'_> {
    /// Passes the response on.
    pub(super) async fn respond(
        &mut self,
        tries: Tries<'_>,
        answered: Answered,
        permit: RequestPermit,
        exchange: &mut Exchange<'_, '_>,
    ) -> Result<Option<Tunnel>, Local> {
        let Answered {
            mut up,
            head,
            picked,
            latency,
        } = answered;
        let FinalHead { head, len, names } = head;
        let status = head.status();
        let switched = upgrade_token(head.headers());
        let streaming = deadline::is_streaming(status, head.headers());
        let grpc_in_head = grpc::status(head.headers());
        if status == StatusCode::SWITCHING_PROTOCOLS && self.upgrade.is_none() {
            picked.record(Outcome::ServerError, latency, Instant::now());
            return Err(Local::new(
                Fault::UpstreamProtocol,
                "101 that nobody asked for",
            ));
        }
        let head = self.response_head(head, &tries, switched.as_ref());
        self.record.status = Some(status);
        self.record.first_byte = Some(self.record.started.elapsed());
        let tunnel = status == StatusCode::SWITCHING_PROTOCOLS
            || (*self.head.method() == Method::CONNECT && status.is_success());
        if self.ends_connection(status, tunnel, exchange) {
            exchange.down.close_after();
        }
        let len = if tunnel { BodyLen::Empty } else { len };
        if let Err(fault) = exchange.down.send_head(head, len, names.as_ref()) {
            // Whatever it was, it was not the client's answer.
            self.record.status = None;
            return Err(Local::new(fault, ""));
        }
        let moved = if tunnel || (len.is_empty() && matches!(exchange.down, Downstream::Http2(_))) {
            poll_fn(|cx| exchange.down.poll_flush(cx))
                .await
                .map_err(Failure::while_answering)
        } else {
            let limit = tries.deadlines.end_by(streaming);
            exchange.body(&mut up, tries.deadlines.idle(), limit).await
        };
        let now = Instant::now();
        self.note_grpc(exchange, grpc_in_head);
        let outcome = match &moved {
            Ok(()) => response_outcome(status, self.record.grpc_status),
            Err(failure) => outcome_of(failure.fault),
        };
        if tunnel && moved.is_ok() {
            let idle = tries.deadlines.idle();
            return Ok(up.into_raw().map(|(io, rest, connection)| Tunnel {
                io,
                rest,
                idle,
                permits: (connection, picked, permit),
            }));
        }
        picked.record(outcome, latency, now);
        permit.finish(outcome, latency, now);
        match moved {
            Ok(()) => {
                up.give_back();
                Ok(None)
            }
            Err(failure) => Err(failure.into()),
        }
    }

    /// Whether the client is to be told that this is the connection's last answer: the proxy is
    /// stopping, or the answer came before an upload was done and does not want the rest (HT-18).
    fn ends_connection(
        &self,
        status: StatusCode,
        tunnel: bool,
        exchange: &Exchange<'_, '_>,
    ) -> bool {
        let stopping = self.worker.shared.drain.phase() >= crate::drain::Phase::Draining;
        let refused = !exchange.down.request_ended() && status.is_client_error();
        (stopping && !tunnel) || refused
    }

    /// The call's status: from the trailers, else from the head, else unknown (GR-07).
    fn note_grpc(&mut self, exchange: &Exchange<'_, '_>, in_head: Option<u32>) {
        if self.record.grpc {
            let trailers = exchange.trailers.as_ref().and_then(grpc::status);
            let found = trailers.or(in_head);
            self.record.grpc_status = Some(found.unwrap_or(grpc::code::UNKNOWN));
        }
    }

    fn response_head(
        &self,
        mut head: Response<()>,
        tries: &Tries<'_>,
        switched: Option<&HeaderValue>,
    ) -> Response<()> {
        strip_hop_by_hop(head.headers_mut());
        self.change_response(head.headers_mut());
        for cookie in &tries.cookies {
            head.headers_mut()
                .append(header::SET_COOKIE, cookie.clone());
        }
        if head.status() == StatusCode::SWITCHING_PROTOCOLS
            && let Some(token) = switched
        {
            let upgrade = HeaderValue::from_static("upgrade");
            head.headers_mut().insert(header::CONNECTION, upgrade);
            head.headers_mut().insert(header::UPGRADE, token.clone());
        }
        head
    }
}

impl Answered {
    /// Throws a response away in favour of another try.
    pub(super) fn discard(self) {
        let status = self.head.head.status();
        let trailers = self.up.trailers_ahead().and_then(grpc::status);
        let grpc = trailers.or_else(|| grpc::status(self.head.head.headers()));
        let outcome = response_outcome(status, grpc);
        self.picked.record(outcome, self.latency, Instant::now());
        if self.head.len.is_empty() {
            self.up.give_back();
        }
    }
}

/// What a response says about the endpoint.
fn response_outcome(status: StatusCode, grpc: Option<u32>) -> Outcome {
    match status {
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
            Outcome::GatewayError
        }
        status if status.is_server_error() => Outcome::ServerError,
        _ if grpc.is_some_and(grpc_blames_server) => Outcome::ServerError,
        _ => Outcome::Success,
    }
}

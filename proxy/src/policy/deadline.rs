//! How long a request may take. Five clocks, each with one meaning:
//!
//! - *overall* (`timeout` of the route): from the request received whole to the response complete,
//!   or to the head of a streaming response. `RequestTimeout`.
//! - *try* (`per_try_timeout`): from its connection ready and the request received whole to the
//!   response head. `PerTryTimeout`, which may be retried.
//! - *caller's* (`grpc-timeout`): from the request head to the response complete.
//!   `RequestTimeout`.
//! - *stream* (`max_stream_duration`): from the request head to the response complete.
//!   `StreamDuration`.
//! - *idle* (`idle_timeout`): from the last byte in either direction to the next. `StreamIdle` or
//!   `DownstreamIdle`, by who stalled.
//!
//! The overall and the try clock start together with the end of the request, so a slow upload eats
//! neither (RT-06), and a call that keeps sending is bound by its idle and stream clocks only. The
//! overall clock covers all tries and the waits between them. It lets go of a streaming response
//! once its head is there (GR-05); whoever wants streams cut sets `max_stream_duration`. When two
//! clocks run out together the one that ends the request wins, so the outcome does not depend on
//! the order of timers.
//!
//! `x-envoy-upstream-rq-timeout-ms` and its like are not read: no caller sets our policy.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode, header::CONTENT_TYPE};
use tokio::time::Instant;

use crate::{
    config::{
        listener::HttpManager,
        route::{Forward, RetryPolicy},
    },
    fault::Fault,
    http::grpc::{self, GRPC_TIMEOUT},
};

/// A moment, and what it means to reach it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    pub at: Instant,
    pub fault: Fault,
}

/// The clocks of one request.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    overall: Option<Duration>,
    /// Set when the request has been received whole.
    overall_at: Option<Instant>,
    per_try: Option<Duration>,
    /// What `grpc-timeout` asks for, whether or not the route enforces it.
    caller_at: Option<Instant>,
    caller_enforced: bool,
    stream_at: Option<Instant>,
    idle: Option<Duration>,
}

impl Deadlines {
    /// The clocks of a request whose head came at `now`. `asked` is its `grpc-timeout` if it is a
    /// gRPC call ([`grpc_timeout`]).
    #[must_use]
    pub fn new(
        forward: &Forward,
        retry: &RetryPolicy,
        manager: &HttpManager,
        asked: Option<Duration>,
        now: Instant,
    ) -> Self {
        let cap = forward.grpc_timeout_max.filter(|cap| !cap.is_zero());
        let asked = asked.map(|asked| cap.map_or(asked, |cap| asked.min(cap)));
        let caller_enforced = asked.is_some() && forward.grpc_timeout_max.is_some();
        // A caller's own deadline takes the place of the route's limit on streams (gRFC A31).
        let stream = forward.max_stream_duration.or(manager.max_stream_duration);
        let stream = stream.filter(|life| !life.is_zero() && !caller_enforced);
        let idle = forward.idle_timeout.or(manager.stream_idle_timeout);
        Self {
            overall: forward.timeout.filter(|timeout| !timeout.is_zero()),
            overall_at: None,
            per_try: retry.per_try_timeout.filter(|timeout| !timeout.is_zero()),
            caller_at: asked.and_then(|asked| now.checked_add(asked)),
            caller_enforced,
            stream_at: stream.and_then(|life| now.checked_add(life)),
            idle: idle.filter(|idle| !idle.is_zero()),
        }
    }

    /// The request has been received whole: starts the overall clock, once.
    pub fn request_ended(&mut self, now: Instant) {
        if self.overall_at.is_none() {
            self.overall_at = self.overall.and_then(|overall| now.checked_add(overall));
        }
    }

    /// How long no byte may move in either direction.
    #[must_use]
    pub const fn idle(&self) -> Option<Duration> {
        self.idle
    }

    /// By when the response head must be there, whichever try brings it. Bounds waits as well.
    #[must_use]
    pub fn head_by(&self) -> Option<Limit> {
        self.end_by(false)
    }

    /// By when this try must bring the response head. `ready` is when both its connection was ready
    /// and the request received whole; before that only [`Self::head_by`] holds.
    #[must_use]
    pub fn try_by(&self, ready: Instant) -> Option<Limit> {
        let own = self.per_try.and_then(|limit| ready.checked_add(limit));
        let own = own.map(|at| Limit {
            at,
            fault: Fault::PerTryTimeout,
        });
        earliest([self.head_by(), own])
    }

    /// By when a response whose head is there must be complete.
    #[must_use]
    pub fn end_by(&self, streaming: bool) -> Option<Limit> {
        let limit = |at: Option<Instant>, fault| at.map(|at| Limit { at, fault });
        let caller = self.caller_at.filter(|_| self.caller_enforced);
        let overall = self.overall_at.filter(|_| !streaming);
        earliest([
            limit(overall, Fault::RequestTimeout),
            limit(caller, Fault::RequestTimeout),
            limit(self.stream_at, Fault::StreamDuration),
        ])
    }

    /// What is left for further tries: nothing is tried that its caller no longer waits for, even
    /// where the caller's deadline is not enforced. `None` is no limit.
    #[must_use]
    pub fn remaining(&self, now: Instant) -> Option<Duration> {
        let all = [self.overall_at, self.caller_at, self.stream_at];
        let first = all.into_iter().flatten().min()?;
        Some(first.saturating_duration_since(now))
    }

    /// `grpc-timeout` for a try sent at `now`: what is left of what the caller asked for, and of
    /// the route's own limits. `None` when the caller asked for none; then none is added.
    #[must_use]
    pub fn grpc_timeout(&self, now: Instant) -> Option<HeaderValue> {
        self.caller_at?;
        self.remaining(now).map(format_timeout)
    }
}

/// The first limit; of equal ones the first in the list.
fn earliest<const N: usize>(limits: [Option<Limit>; N]) -> Option<Limit> {
    limits.into_iter().flatten().min_by_key(|limit| limit.at)
}

/// Whether a response is one that is sent bit by bit for as long as it likes, so that the overall
/// clock lets go of it: gRPC, event streams and the like, and switched protocols.
#[must_use]
pub fn is_streaming(status: StatusCode, headers: &HeaderMap) -> bool {
    const STREAMS: [&[u8]; 3] = [
        b"text/event-stream",
        b"multipart/x-mixed-replace",
        b"application/x-ndjson",
    ];
    let Some(value) = headers.get(CONTENT_TYPE) else {
        return status == StatusCode::SWITCHING_PROTOCOLS;
    };
    let kind = value.as_bytes().split(|&b| b == b';').next();
    let kind = kind.unwrap_or_default().trim_ascii();
    status == StatusCode::SWITCHING_PROTOCOLS
        || grpc::is_grpc_content_type(value.as_bytes())
        || STREAMS.iter().any(|name| kind.eq_ignore_ascii_case(name))
}

/// The `grpc-timeout` of a request: 1 to 8 digits and a unit. One that is anything else is as good
/// as none, as in gRPC servers that tolerate it.
#[must_use]
pub fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let (unit, digits) = headers.get(GRPC_TIMEOUT)?.as_bytes().split_last()?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let number = digits.iter().try_fold(0_u64, |number, digit| {
        let digit = char::from(*digit).to_digit(10)?;
        Some(number * 10 + u64::from(digit))
    })?;
    match unit {
        b'H' => Some(Duration::from_secs(number * 3600)),
        b'M' => Some(Duration::from_secs(number * 60)),
        b'S' => Some(Duration::from_secs(number)),
        b'm' => Some(Duration::from_millis(number)),
        b'u' => Some(Duration::from_micros(number)),
        b'n' => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// The largest number that `grpc-timeout` can say: 8 digits.
const MAX_NUMBER: u128 = 99_999_999;

/// `left` as `grpc-timeout`, in the finest unit that can say it, rounded down so that the server's
/// deadline is never behind the caller's; but never zero, which is no valid value.
fn format_timeout(left: Duration) -> HeaderValue {
    let nanos = left.as_nanos().max(1);
    let units = [
        (1, "n"),
        (1_000, "u"),
        (1_000_000, "m"),
        (1_000_000_000, "S"),
        (60_000_000_000, "M"),
        (3_600_000_000_000, "H"),
    ];
    let text = units
        .iter()
        .map(|(size, unit)| (nanos / size, unit))
        .find(|(number, _)| *number <= MAX_NUMBER)
        .map_or_else(
            || format!("{MAX_NUMBER}H"),
            |(number, unit)| format!("{number}{unit}"),
        );
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("1n"))
}

#[cfg(test)]
mod tests;

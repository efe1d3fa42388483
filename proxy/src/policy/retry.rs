//! Whether a try that failed is made again.
//!
//! Two questions, and both have to be answered with yes. *Is the outcome one to try again for?*
//! The route's [`RetryPolicy`] says so in Envoy's words. *May the request be sent again?* That
//! follows from what can have happened to it:
//!
//! - The peer cannot have processed it ([`Resend::Safe`]: connect or handshake failure, refused
//!   stream, GOAWAY; or nothing of it was written): any method, whatever the policy's words, as
//!   long as it allows retries at all.
//! - The peer may have acted on it (reset, closed, no answer in time): idempotent methods (RFC
//!   9110 §9.2.2), or any if the policy opts in with `allow_non_idempotent`. Words such as `5xx`
//!   that cover a reset in Envoy are not such an opt-in: a POST is never run twice by accident.
//! - The peer answered with a status that the policy names (`5xx`, `gateway-error`,
//!   `retriable-4xx`, status codes, gRPC codes): any method, since naming the answer is the
//!   operator's word that it is safe to ask again. The standard policy names none.
//!
//! What has begun to go to the client, and a body that is no longer at hand, cannot be tried
//! again. Budget and limits are asked afterwards, by whoever holds the cluster.

use std::time::Duration;

use http::{HeaderMap, Method, StatusCode, header::RETRY_AFTER};

use crate::{
    config::route::{RetryOn, RetryPolicy},
    fault::{Fault, Resend, Side},
    http::grpc::{self, GRPC_RETRY_PUSHBACK, code},
};

/// The longest wait that an upstream may ask for before the next try. A request that waits holds
/// memory and its caller; past this the answer goes to the caller, who can wait better.
pub const MAX_ASKED_WAIT: Duration = Duration::from_secs(5);

/// How long a gRPC response head without status is held back for trailers that might follow at once
/// (see [`awaits_trailers`]).
pub const TRAILERS_WAIT: Duration = Duration::from_millis(5);

/// How a try ended.
#[derive(Clone, Copy, Debug)]
pub enum Outcome<'a> {
    Fault(Fault),
    /// A response head, and its trailers if they are known already (a response without content).
    Response {
        status: StatusCode,
        headers: &'a HeaderMap,
        trailers: Option<&'a HeaderMap>,
    },
}

/// What is known of the request when a try has ended.
#[derive(Clone, Copy, Debug)]
pub struct Tried<'a> {
    pub method: &'a Method,
    pub grpc: bool,
    /// Tries made before this one.
    pub retries: u32,
    /// Any byte of the request was written to the upstream.
    pub sent: bool,
    /// Any part of a response went to the client.
    pub committed: bool,
    /// The whole body can be sent again.
    pub replayable: bool,
    /// There is another endpoint to try.
    pub elsewhere: bool,
    /// What is left of the request's time; `None` is no limit.
    pub remaining: Option<Duration>,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Try again after this wait.
    Retry { wait: Duration },
    /// The outcome stands.
    Stop(Why),
}

/// Why an outcome stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The policy does not name this outcome.
    NotAsked,
    /// A part of a response is with the client already.
    Committed,
    /// The upstream may have acted on a request that must not run twice.
    MayHaveRun,
    /// The body is longer than what is kept for another try.
    BodyGone,
    /// All tries are used up.
    Exhausted,
    /// The upstream asked not to be tried again, or not before long.
    NotWanted,
    /// The next try would begin after the request's time is over.
    NoTimeLeft,
}

impl Why {
    /// For logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotAsked => "not_asked",
            Self::Committed => "committed",
            Self::MayHaveRun => "may_have_run",
            Self::BodyGone => "body_gone",
            Self::Exhausted => "exhausted",
            Self::NotWanted => "not_wanted",
            Self::NoTimeLeft => "no_time_left",
        }
    }
}

/// Decides about the next try.
#[must_use]
pub fn decide(
    policy: &RetryPolicy,
    tried: &Tried<'_>,
    outcome: &Outcome<'_>,
    rng: &mut impl rand::Rng,
) -> Decision {
    match check(policy, tried, outcome) {
        Err(why) => Decision::Stop(why),
        Ok(asked) => {
            let wait = asked.unwrap_or_else(|| wait(policy, tried, outcome, rng));
            if tried.remaining.is_some_and(|left| wait >= left) {
                return Decision::Stop(Why::NoTimeLeft);
            }
            Decision::Retry { wait }
        }
    }
}

/// Whether a gRPC response that began with a head without status should be held back for up to
/// [`TRAILERS_WAIT`]: its status may come in trailers right behind, and while nothing went to the
/// client the call can still be retried (gRFC A6). Data or the end of the wait release it.
#[must_use]
pub const fn awaits_trailers(policy: &RetryPolicy, tried: &Tried<'_>) -> bool {
    let RetryOn {
        grpc_cancelled,
        grpc_deadline_exceeded,
        grpc_internal,
        grpc_resource_exhausted,
        grpc_unavailable,
        ..
    } = policy.on;
    let any = grpc_cancelled
        || grpc_deadline_exceeded
        || grpc_internal
        || grpc_resource_exhausted
        || grpc_unavailable;
    tried.grpc && any && !tried.committed && tried.replayable && tried.retries < policy.num_retries
}

/// `Ok` when the next try may be made, with the wait that the upstream asked for.
fn check(
    policy: &RetryPolicy,
    tried: &Tried<'_>,
    outcome: &Outcome<'_>,
) -> Result<Option<Duration>, Why> {
    let asked = match outcome {
        Outcome::Fault(fault) => {
            check_fault(policy, tried, *fault)?;
            None
        }
        Outcome::Response {
            status,
            headers,
            trailers,
        } => {
            if !names_response(policy, *status, headers, *trailers) {
                return Err(Why::NotAsked);
            }
            asked_wait(*status, headers, *trailers)?
        }
    };
    if tried.committed {
        return Err(Why::Committed);
    }
    if !tried.replayable {
        return Err(Why::BodyGone);
    }
    if tried.retries >= policy.num_retries {
        return Err(Why::Exhausted);
    }
    Ok(asked)
}

fn check_fault(policy: &RetryPolicy, tried: &Tried<'_>, fault: Fault) -> Result<(), Why> {
    let row = fault.row();
    // What this proxy lacks it lacks at the next try too; `Safe` is then a word to the caller.
    if row.side == Side::Proxy {
        return Err(Why::NotAsked);
    }
    match row.resend {
        Resend::Never => Err(Why::NotAsked),
        Resend::Safe => Ok(()),
        Resend::IfPolicy if !tried.sent && names_unsent(&policy.on) => Ok(()),
        Resend::IfPolicy if !names_fault(&policy.on, fault) => Err(Why::NotAsked),
        Resend::IfPolicy if tried.method.is_idempotent() || policy.allow_non_idempotent => Ok(()),
        Resend::IfPolicy => Err(Why::MayHaveRun),
    }
}

const fn names_unsent(on: &RetryOn) -> bool {
    on.reset_before_request || on.connect_failure || names_reset(on)
}

/// `5xx` and `gateway-error` include resets and time-outs in Envoy.
const fn names_reset(on: &RetryOn) -> bool {
    on.reset || on.server_error_5xx || on.gateway_error
}

fn names_fault(on: &RetryOn, fault: Fault) -> bool {
    names_reset(on) || (fault == Fault::PerTryTimeout && on.grpc_deadline_exceeded)
}

fn names_response(
    policy: &RetryPolicy,
    status: StatusCode,
    headers: &HeaderMap,
    trailers: Option<&HeaderMap>,
) -> bool {
    let on = &policy.on;
    let by_http = (on.server_error_5xx && status.is_server_error())
        || (on.gateway_error && matches!(status.as_u16(), 502..=504))
        || (on.retriable_4xx && status == StatusCode::CONFLICT)
        || (on.status_codes && policy.status_codes.contains(&status));
    if by_http {
        return true;
    }
    let grpc = trailers
        .and_then(grpc::status)
        .or_else(|| grpc::status(headers));
    match grpc {
        Some(code::CANCELLED) => on.grpc_cancelled,
        Some(code::DEADLINE_EXCEEDED) => on.grpc_deadline_exceeded,
        Some(code::RESOURCE_EXHAUSTED) => on.grpc_resource_exhausted,
        Some(code::INTERNAL) => on.grpc_internal,
        Some(code::UNAVAILABLE) => on.grpc_unavailable,
        _ => false,
    }
}

/// The wait that the upstream asks for: `grpc-retry-pushback-ms` (gRFC A6: a negative or unreadable
/// value means no more tries) or `retry-after` of a 429 or 503 in seconds. A date is a word of the
/// same kind, but without a wall clock all that is known is "later", so it stops.
fn asked_wait(
    status: StatusCode,
    headers: &HeaderMap,
    trailers: Option<&HeaderMap>,
) -> Result<Option<Duration>, Why> {
    let pushback = trailers
        .and_then(|block| block.get(GRPC_RETRY_PUSHBACK))
        .or_else(|| headers.get(GRPC_RETRY_PUSHBACK));
    let number = |value: &http::HeaderValue| value.to_str().ok()?.trim().parse::<u64>().ok();
    let wait = match (pushback, status.as_u16()) {
        (Some(value), _) => number(value).map(Duration::from_millis),
        (None, 429 | 503) => match headers.get(RETRY_AFTER) {
            Some(value) => number(value).map(Duration::from_secs),
            None => return Ok(None),
        },
        (None, _) => return Ok(None),
    };
    match wait {
        Some(wait) if wait <= MAX_ASKED_WAIT => Ok(Some(wait)),
        _ => Err(Why::NotWanted),
    }
}

/// The policy's back-off, except that another endpoint is tried at once the first time when this
/// one never saw the request.
fn wait(
    policy: &RetryPolicy,
    tried: &Tried<'_>,
    outcome: &Outcome<'_>,
    rng: &mut impl rand::Rng,
) -> Duration {
    let safe = matches!(outcome, Outcome::Fault(fault) if fault.row().resend == Resend::Safe);
    if safe && tried.elsewhere && tried.retries == 0 {
        return Duration::ZERO;
    }
    policy.backoff.wait(tried.retries, rng)
}

#[cfg(test)]
mod tests;

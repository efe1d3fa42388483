//! Moving one exchange: request body up, response down, both at once, in one task and without
//! channels. Nothing is read from one side that the other cannot take, so back-pressure reaches
//! the sender and memory stays bounded (GR-09).

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Response};
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use super::{
    deadline::{Deadlines, Limit},
    replay::Replay,
    upstream::{Failure, FinalHead, Head, Upstream},
};
use crate::{
    fault::Fault,
    http::{BodyLen, Downstream, Frame},
};

/// What moved, for metrics and logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bytes2 {
    pub(crate) request: u64,
    pub(crate) response: u64,
}

/// One request's way through, over all its tries.
#[derive(Debug)]
pub(crate) struct Exchange<'a, 'd> {
    pub(crate) down: &'a mut Downstream<'d>,
    pub(crate) replay: Replay,
    pub(crate) bytes: Bytes2,
    /// Trailers of the response, once they came.
    pub(crate) trailers: Option<HeaderMap>,
    /// Something moved since this was last looked at.
    active: bool,
}

impl<'a, 'd> Exchange<'a, 'd> {
    pub(crate) fn new(down: &'a mut Downstream<'d>, replay: Replay) -> Self {
        Self {
            down,
            replay,
            bytes: Bytes2::default(),
            trailers: None,
            active: false,
        }
    }

    /// Drives a try until its final response head is there. The overall and per-try clocks start
    /// when the request has been received whole, so a slow upload is not a slow upstream.
    pub(crate) async fn head(
        &mut self,
        up: &mut Upstream,
        deadlines: &mut Deadlines,
    ) -> Result<FinalHead, Failure> {
        self.replay.rewind();
        let mut whole = false;
        let sleep = pin!(None);
        let mut timer = Alarm::new(sleep);
        timer.set_limit(deadlines.head_by());
        poll_fn(|cx| {
            if let Poll::Ready(done) = self.poll_until_head(cx, up) {
                return Poll::Ready(done);
            }
            if !whole && self.replay.received_all() {
                whole = true;
                let now = Instant::now();
                deadlines.request_ended(now);
                timer.set_limit(deadlines.try_by(now));
            }
            let late = timer.poll(cx);
            late.map(|fault| Err(Failure::while_answering(fault)))
        })
        .await
    }

    fn poll_until_head(
        &mut self,
        cx: &mut Context<'_>,
        up: &mut Upstream,
    ) -> Poll<Result<FinalHead, Failure>> {
        loop {
            if let Err(fault) = self.pump_request(cx, up) {
                return Poll::Ready(Err(Failure::before_sending(fault, "")));
            }
            match up.poll_head(cx) {
                Poll::Ready(Ok(Head::Interim(head))) => {
                    self.down.send_informational(&head);
                }
                Poll::Ready(Ok(Head::Final(head))) => return Poll::Ready(Ok(head)),
                Poll::Ready(Err(failure)) => return Poll::Ready(Err(failure)),
                Poll::Pending => break,
            }
        }
        if let Poll::Ready(Err(fault)) = self.down.poll_flush(cx) {
            return Poll::Ready(Err(Failure::before_sending(fault, "")));
        }
        if self.down.poll_gone(cx).is_ready() {
            let gone = Failure::before_sending(Fault::DownstreamReset, "");
            return Poll::Ready(Err(gone));
        }
        Poll::Pending
    }

    /// Moves as much of the request body as both sides allow.
    fn pump_request(&mut self, cx: &mut Context<'_>, up: &mut Upstream) -> Result<(), Fault> {
        while !self.replay.sent_all() {
            if up.poll_ready(cx).is_pending() {
                break;
            }
            if let Some((frame, end)) = self.replay.next_again() {
                up.send(frame, end);
                continue;
            }
            if self.replay.received_all() {
                up.finish();
                self.replay.mark_sent();
                break;
            }
            match self.down.poll_frame(cx) {
                Poll::Ready(Ok(Some(frame))) => {
                    self.active = true;
                    if let Frame::Data(data) = &frame {
                        self.bytes.request += data.len() as u64;
                    }
                    let end = self.down.request_ended();
                    self.replay.record(&frame, end);
                    up.send(frame, end);
                }
                Poll::Ready(Ok(None)) => self.replay.record_end(),
                Poll::Ready(Err(fault)) => return Err(fault),
                Poll::Pending => break,
            }
        }
        // Not flushed yet is no reason to wait: the codec registered for it.
        let _pending = up.poll_flush(cx);
        Ok(())
    }

    /// Looks for what comes behind a response head, for no longer than `wait`, before the head is
    /// passed on (GR-03).
    pub(crate) async fn peek(&mut self, up: &mut Upstream, wait: Duration) -> Result<(), Failure> {
        let seen = poll_fn(|cx| {
            if let Err(fault) = self.pump_request(cx, up) {
                return Poll::Ready(Err(Failure::while_answering(fault)));
            }
            if self.down.poll_gone(cx).is_ready() {
                let gone = Failure::while_answering(Fault::DownstreamReset);
                return Poll::Ready(Err(gone));
            }
            up.poll_ahead(cx)
        });
        // What has not come by then is not waited for.
        timeout(wait, seen).await.unwrap_or(Ok(()))
    }

    /// Drives the rest after the response head was passed on: the response to its end, and the
    /// request as long as the response lasts.
    pub(crate) async fn body(
        &mut self,
        up: &mut Upstream,
        idle: Option<Duration>,
        limit: Option<Limit>,
    ) -> Result<(), Failure> {
        self.replay.stop();
        let sleep = pin!(None);
        let mut timer = Alarm::new(sleep);
        timer.set_limit(limit);
        let mut idle_timer = pin!(idle.map(|idle| sleep_until(Instant::now() + idle)));
        let mut last = Instant::now();
        let mut finished = false;
        poll_fn(|cx| {
            if let Poll::Ready(done) = self.poll_body(cx, up, &mut finished) {
                return Poll::Ready(done);
            }
            let cut = Failure::while_answering;
            if let Poll::Ready(fault) = timer.poll(cx) {
                return Poll::Ready(Err(cut(fault)));
            }
            if let (Some(idle), Some(timer)) = (idle, idle_timer.as_mut().as_pin_mut()) {
                if std::mem::take(&mut self.active) {
                    last = Instant::now();
                }
                if poll_idle(cx, timer, last + idle).is_ready() {
                    return Poll::Ready(Err(cut(Fault::StreamIdle)));
                }
            }
            Poll::Pending
        })
        .await
    }

    fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        up: &mut Upstream,
        finished: &mut bool,
    ) -> Poll<Result<(), Failure>> {
        let gone = Failure::while_answering;
        // The client breaking off its own upload does not take the answer from it.
        if self.pump_request(cx, up).is_err() {
            self.replay.mark_sent();
        }
        while !*finished {
            match self.down.poll_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(fault)) => return Poll::Ready(Err(gone(fault))),
                Poll::Pending => break,
            }
            let sent = match up.poll_frame(cx) {
                Poll::Ready(Ok(Some(Frame::Data(data)))) => {
                    self.active = true;
                    self.bytes.response += data.len() as u64;
                    *finished = up.response_ended();
                    self.down.send_data(data, *finished)
                }
                Poll::Ready(Ok(Some(Frame::Trailers(trailers)))) => {
                    *finished = true;
                    self.trailers = Some(trailers.clone());
                    self.down.send_trailers(trailers)
                }
                Poll::Ready(Ok(None)) => {
                    *finished = true;
                    self.down.finish()
                }
                Poll::Ready(Err(failure)) => return Poll::Ready(Err(failure)),
                Poll::Pending => break,
            };
            if let Err(fault) = sent {
                return Poll::Ready(Err(gone(fault)));
            }
        }
        match self.down.poll_flush(cx) {
            Poll::Ready(Ok(())) if *finished => return Poll::Ready(Ok(())),
            Poll::Ready(Err(fault)) => return Poll::Ready(Err(gone(fault))),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        if self.down.poll_gone(cx).is_ready() {
            return Poll::Ready(Err(gone(Fault::DownstreamReset)));
        }
        Poll::Pending
    }

    /// Lets what is queued for the client leave, as far as it can at once: what a response had said
    /// before it broke off is said, though it is no whole response (H2-08).
    pub(crate) async fn pass_on_queued(&mut self) {
        poll_fn(|cx| {
            let _as_far_as_it_goes = self.down.poll_flush(cx);
            Poll::Ready(())
        })
        .await;
        // An HTTP/2 connection is written by its own task, which is due by now.
        tokio::task::yield_now().await;
    }

    /// Sends an answer of the proxy's own.
    pub(crate) async fn reply(&mut self, response: Response<Bytes>) -> Result<(), Fault> {
        let (parts, body) = response.into_parts();
        let len = if body.is_empty() {
            BodyLen::Empty
        } else {
            BodyLen::Known(body.len() as u64)
        };
        self.bytes.response += body.len() as u64;
        self.down
            .send_head(Response::from_parts(parts, ()), len, None)?;
        if !body.is_empty() {
            poll_fn(|cx| self.down.poll_ready(cx)).await?;
            self.down.send_data(body, true)?;
        } else if matches!(self.down, Downstream::Http1(_)) {
            self.down.finish()?;
        }
        poll_fn(|cx| self.down.poll_flush(cx)).await
    }
}

/// A timer that is armed only when there is something to wait for.
struct Alarm<'s> {
    limit: Option<Limit>,
    sleep: Pin<&'s mut Option<Sleep>>,
}

impl<'s> Alarm<'s> {
    const fn new(sleep: Pin<&'s mut Option<Sleep>>) -> Self {
        Self { limit: None, sleep }
    }

    fn set_limit(&mut self, limit: Option<Limit>) {
        if self.limit != limit {
            self.limit = limit;
            self.sleep.set(None);
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Fault> {
        let Some(limit) = self.limit else {
            return Poll::Pending;
        };
        if self.sleep.is_none() {
            self.sleep.set(Some(sleep_until(limit.at)));
        }
        match self.sleep.as_mut().as_pin_mut() {
            Some(sleep) => sleep.poll(cx).map(|()| limit.fault),
            None => Poll::Pending,
        }
    }
}

/// Ready once nothing happened until `due`; moved on only when it fires.
fn poll_idle(cx: &mut Context<'_>, mut timer: Pin<&mut Sleep>, due: Instant) -> Poll<()> {
    while timer.as_mut().poll(cx).is_ready() {
        if due <= Instant::now() {
            return Poll::Ready(());
        }
        timer.as_mut().reset(due);
    }
    Poll::Pending
}

//! What was sent of a request body, kept so that another try can send it again (RT-03).

use std::{
    future::poll_fn,
    task::{Poll, ready},
};

use bytes::Bytes;

use super::upstream::{Head, Upstream};
use crate::http::Frame;

/// Kept for one request. A body that grows past it goes on without being kept and cannot be sent
/// again after that; linkerd and Istio users know the same figure.
pub(crate) const MAX_REPLAY: usize = 64 * 1024;

/// The body of one request, as far as it has been received.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    frames: Vec<Frame>,
    size: usize,
    /// Index of the next kept frame to send in this try.
    next: usize,
    /// There is no body: nothing is ever sent, not even an end.
    empty: bool,
    keeping: bool,
    received_all: bool,
    sent_all: bool,
    /// Frames were passed on that are not kept.
    lost: bool,
}

impl Replay {
    /// For a request without body nothing is ever to be sent.
    pub(crate) fn new(empty: bool) -> Self {
        Self {
            empty,
            keeping: true,
            received_all: empty,
            sent_all: empty,
            ..Self::default()
        }
    }

    /// Begins a try.
    pub(crate) fn rewind(&mut self) {
        self.next = 0;
        self.sent_all = self.empty;
    }

    /// Whether another try could send the same body.
    pub(crate) const fn replayable(&self) -> bool {
        self.keeping && !self.lost
    }

    /// No further try will come: what is kept is let go once it was sent.
    pub(crate) fn stop(&mut self) {
        self.keeping = false;
    }

    /// The next kept frame of this try, and whether it ends the body.
    pub(crate) fn next_again(&mut self) -> Option<(Frame, bool)> {
        let frame = self.frames.get(self.next)?;
        let copy = match frame {
            Frame::Data(data) => Frame::Data(Bytes::clone(data)),
            Frame::Trailers(trailers) => Frame::Trailers(trailers.clone()),
        };
        self.next += 1;
        let end = self.received_all && self.next == self.frames.len();
        if end {
            self.sent_all = true;
        }
        if !self.keeping && self.next == self.frames.len() {
            self.frames = Vec::new();
            self.next = 0;
        }
        Some((copy, end))
    }

    /// Takes note of a frame that was received and is being sent.
    pub(crate) fn record(&mut self, frame: &Frame, end: bool) {
        let trailers = matches!(frame, Frame::Trailers(_));
        if end || trailers {
            self.received_all = true;
            self.sent_all = true;
        }
        if !self.keeping {
            return;
        }
        let size = match frame {
            Frame::Data(data) => data.len(),
            Frame::Trailers(trailers) => trailers
                .iter()
                .map(|(n, v)| n.as_str().len() + v.len())
                .sum(),
        };
        if self.size + size > MAX_REPLAY {
            self.lost = true;
            self.keeping = false;
            self.frames = Vec::new();
            self.next = 0;
            return;
        }
        self.size += size;
        self.frames.push(match frame {
            Frame::Data(data) => Frame::Data(Bytes::clone(data)),
            Frame::Trailers(trailers) => Frame::Trailers(trailers.clone()),
        });
        self.next = self.frames.len();
    }

    /// The client ended the body without another frame.
    pub(crate) fn record_end(&mut self) {
        self.received_all = true;
    }

    /// Whether all of the body has been received.
    pub(crate) const fn received_all(&self) -> bool {
        self.received_all
    }

    /// All of the body, if it was received and is kept whole.
    pub(crate) fn whole(&self) -> Option<Vec<Frame>> {
        (self.received_all && !self.lost).then(|| self.frames.clone())
    }

    /// A body that is known from the start.
    pub(crate) fn of(frames: Vec<Frame>) -> Self {
        Self {
            empty: frames.is_empty(),
            sent_all: frames.is_empty(),
            frames,
            received_all: true,
            ..Self::default()
        }
    }

    /// Sends the body and reads the answer to its end, throwing it away: true when it was whole.
    pub(crate) async fn drive(mut self, up: &mut Upstream) -> bool {
        let mut head_seen = false;
        poll_fn(|cx| {
            while !self.sent_all && up.poll_ready(cx).is_ready() {
                match self.next_again() {
                    Some((frame, end)) => up.send(frame, end),
                    None => {
                        up.finish();
                        self.sent_all = true;
                    }
                }
            }
            let _registered = up.poll_flush(cx);
            loop {
                if head_seen {
                    match ready!(up.poll_frame(cx)) {
                        Ok(Some(_)) => {}
                        Ok(None) => return Poll::Ready(true),
                        Err(_) => return Poll::Ready(false),
                    }
                } else {
                    match ready!(up.poll_head(cx)) {
                        Ok(Head::Interim(_)) => {}
                        Ok(Head::Final(_)) => head_seen = true,
                        Err(_) => return Poll::Ready(false),
                    }
                }
            }
        })
        .await
    }

    /// Whether all of it has been sent in this try.
    pub(crate) const fn sent_all(&self) -> bool {
        self.sent_all
    }

    /// The end was sent, or nothing more will be.
    pub(crate) fn mark_sent(&mut self) {
        self.sent_all = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(n: usize) -> Frame {
        Frame::Data(vec![1; n].into())
    }

    #[test]
    fn rt_03_a_small_body_is_sent_again_from_its_start() {
        let mut replay = Replay::new(false);
        replay.rewind();
        assert!(replay.next_again().is_none() && !replay.sent_all());
        replay.record(&data(10), false);
        replay.record(&data(20), true);
        assert!(replay.sent_all() && replay.replayable());
        replay.rewind();
        assert!(!replay.sent_all());
        assert!(matches!(replay.next_again(), Some((Frame::Data(d), false)) if d.len() == 10));
        assert!(matches!(replay.next_again(), Some((Frame::Data(d), true)) if d.len() == 20));
        assert!(replay.next_again().is_none() && replay.sent_all());
    }

    #[test]
    fn rt_03_a_try_that_broke_off_early_is_completed_from_the_client() {
        let mut replay = Replay::new(false);
        replay.rewind();
        replay.record(&data(10), false);
        replay.rewind();
        assert!(matches!(replay.next_again(), Some((_, false))));
        assert!(replay.next_again().is_none());
        assert!(!replay.received_all() && !replay.sent_all());
        replay.record_end();
        assert!(replay.received_all() && !replay.sent_all());
        replay.mark_sent();
        replay.rewind();
        assert!(!replay.sent_all(), "the end has to be sent again as well");
        assert!(matches!(replay.next_again(), Some((_, true))));
    }

    #[test]
    fn rt_03_a_body_over_the_limit_is_let_go() {
        let mut replay = Replay::new(false);
        replay.rewind();
        replay.record(&data(MAX_REPLAY), false);
        assert!(replay.replayable());
        replay.record(&data(1), false);
        assert!(!replay.replayable() && replay.frames.is_empty());
        assert!(!replay.sent_all());
    }

    #[test]
    fn an_empty_body_has_nothing_to_send() {
        let mut replay = Replay::new(true);
        replay.rewind();
        assert!(replay.sent_all() && replay.replayable());
    }
}

//! Opaque streams: bytes both ways until both sides have ended.
//!
//! Promises (TC-01, TC-02): an end (FIN, `close_notify`) on one side is passed on after every byte
//! before it and leaves the other direction open; a reset is passed on as a reset; an idle
//! connection holds no buffer.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, sleep_until},
};

use crate::net::BoxIo;

/// Bytes moved by one read. Four TLS records, which is where the cost per byte flattens.
const CHUNK: usize = 64 * 1024;
/// Chunks moved in one direction before the other gets a turn.
const TURNS: usize = 8;
/// A connection of which one direction has ended and the other is silent is closed after this,
/// whatever its idle time-out: its peer may have vanished without a word (TC-05).
pub const HALF_OPEN_IDLE: Duration = Duration::from_secs(60 * 60);

thread_local! {
    /// What is read lands here first; only what cannot be written on at once gets memory of its
    /// own. So ten thousand idle connections share one buffer a worker.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; CHUNK]);
}

/// How a relayed connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Both sides ended cleanly.
    Complete,
    /// The client went away or broke the connection.
    DownstreamError,
    /// The upstream went away or broke the connection.
    UpstreamError,
    /// Silent for longer than allowed.
    Idle,
    /// Told to stop.
    Cancelled,
}

/// Bytes moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// From the client to the upstream.
    pub up: u64,
    /// From the upstream to the client.
    pub down: u64,
}

/// One direction.
#[derive(Debug, Default)]
struct Way {
    /// Read and not yet written.
    pending: Vec<u8>,
    written: usize,
    read_ended: bool,
    done: bool,
    moved: u64,
    unflushed: bool,
}

/// Which side broke.
#[derive(Clone, Copy)]
enum Broken {
    Reader,
    Writer,
}

impl Broken {
    /// The side, having put down what the kernel said.
    fn note(self, error: &io::Error) -> Self {
        tracing::debug!(%error, "a relayed connection broke");
        self
    }
}

impl Way {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut BoxIo,
        to: &mut BoxIo,
    ) -> Poll<Result<(), Broken>> {
        if self.done {
            return Poll::Ready(Ok(()));
        }
        for _ in 0..TURNS {
            ready!(self.poll_pending(cx, to)).map_err(|e| Broken::Writer.note(&e))?;
            if self.read_ended {
                ready!(Pin::new(&mut *to).poll_shutdown(cx))
                    .map_err(|e| Broken::Writer.note(&e))?;
                self.done = true;
                return Poll::Ready(Ok(()));
            }
            if self.poll_read(cx, from, to)?.is_pending() {
                if self.unflushed {
                    ready!(Pin::new(&mut *to).poll_flush(cx))
                        .map_err(|e| Broken::Writer.note(&e))?;
                    self.unflushed = false;
                }
                return Poll::Pending;
            }
        }
        // More may be there; the other direction goes first.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_pending(&mut self, cx: &mut Context<'_>, to: &mut BoxIo) -> Poll<io::Result<()>> {
        while let Some(rest) = self.pending.get(self.written..)
            && !rest.is_empty()
        {
            let n = ready!(Pin::new(&mut *to).poll_write(cx, rest))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += n;
            self.unflushed = true;
        }
        if self.written > 0 {
            self.pending = Vec::new();
            self.written = 0;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut BoxIo,
        to: &mut BoxIo,
    ) -> Result<Poll<()>, Broken> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buf = ReadBuf::new(scratch);
            match Pin::new(from).poll_read(cx, &mut buf) {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(Err(error)) => return Err(Broken::Reader.note(&error)),
                Poll::Ready(Ok(())) => {}
            }
            let read = buf.filled();
            if read.is_empty() {
                self.read_ended = true;
                return Ok(Poll::Ready(()));
            }
            self.moved += read.len() as u64;
            let sent = match Pin::new(to).poll_write(cx, read) {
                Poll::Pending => 0,
                Poll::Ready(Ok(n)) => n,
                Poll::Ready(Err(error)) => return Err(Broken::Writer.note(&error)),
            };
            self.unflushed = true;
            self.pending
                .extend_from_slice(read.get(sent..).unwrap_or_default());
            Ok(Poll::Ready(()))
        })
    }
}

/// Relays until both directions have ended, one breaks, nothing moves for `idle`, or `cancel`
/// resolves. A connection that does not end cleanly is reset on both sides.
pub async fn relay(
    mut down: BoxIo,
    mut up: BoxIo,
    idle: Option<Duration>,
    cancel: impl Future<Output = ()>,
) -> (End, Moved) {
    let mut upward = Way::default();
    let mut downward = Way::default();
    let mut cancel = pin!(cancel);
    let mut last = (0, Instant::now());
    let timer = sleep_until(last.1 + idle.unwrap_or(HALF_OPEN_IDLE));
    let mut timer = pin!(timer);

    let end = poll_fn(|cx| {
        let up_done = upward.poll(cx, &mut down, &mut up);
        match up_done {
            Poll::Ready(Err(Broken::Reader)) => return Poll::Ready(End::DownstreamError),
            Poll::Ready(Err(Broken::Writer)) => return Poll::Ready(End::UpstreamError),
            _ => {}
        }
        let down_done = downward.poll(cx, &mut up, &mut down);
        match down_done {
            Poll::Ready(Err(Broken::Reader)) => return Poll::Ready(End::UpstreamError),
            Poll::Ready(Err(Broken::Writer)) => return Poll::Ready(End::DownstreamError),
            _ => {}
        }
        if up_done.is_ready() && down_done.is_ready() {
            return Poll::Ready(End::Complete);
        }
        if cancel.as_mut().poll(cx).is_ready() {
            return Poll::Ready(End::Cancelled);
        }
        let moved = upward.moved + downward.moved;
        if moved != last.0 {
            last = (moved, Instant::now());
        }
        let half_open = upward.done || downward.done;
        let limit = match (idle, half_open) {
            (Some(idle), true) => Some(idle.min(HALF_OPEN_IDLE)),
            (None, true) => Some(HALF_OPEN_IDLE),
            (idle, false) => idle,
        };
        if let Some(limit) = limit {
            // The timer is only moved when it fires: busy connections pay one clock read a wake.
            while timer.as_mut().poll(cx).is_ready() {
                if last.1 + limit <= Instant::now() {
                    return Poll::Ready(End::Idle);
                }
                timer.as_mut().reset(last.1 + limit);
            }
        }
        Poll::Pending
    })
    .await;
    if end != End::Complete {
        down.reset_on_drop();
        up.reset_on_drop();
    }
    let moved = Moved {
        up: upward.moved,
        down: downward.moved,
    };
    (end, moved)
}

#[cfg(test)]
mod tests;

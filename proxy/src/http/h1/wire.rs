//! The bytes of one connection: what was read and not yet used, what is to be written.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Error, head};

/// Read first: more than most heads with a small body, and little enough to be held as long as the
/// head lives.
const FIRST_READ: usize = 8 * 1024;
/// Read at a time when more follows: one TLS record's worth.
const READ: usize = 16 * 1024;
/// Unwritten bytes above which no more is taken from the other side.
const HIGH_WATER: usize = 64 * 1024;
/// Pieces smaller than this are copied together; larger ones are written from where they lie.
const COPY_BELOW: usize = 4 * 1024;
/// A writing buffer no larger than this stays with an idle connection; it holds most heads.
const KEPT: usize = 512;
/// Pieces given to the kernel in one call.
const SLICES: usize = 16;
/// Bytes of a pipelined next request that may wait.
pub(super) const MAX_AHEAD: usize = 64 * 1024;

/// A connection with its buffers.
#[derive(Debug)]
pub(super) struct Wire<I> {
    io: I,
    pub(super) input: BytesMut,
    /// How far the head has been searched for its end.
    searched: usize,
    /// The peer has closed its side.
    pub(super) ended: bool,
    queue: VecDeque<Bytes>,
    tail: BytesMut,
    /// `tail` is a part of a larger buffer, so that its capacity does not tell what it holds on to.
    torn: bool,
    queued: usize,
    /// Written since the last reset of the counter.
    pub(super) written: u64,
    unflushed: bool,
}

impl<I: AsyncRead + AsyncWrite + Unpin> Wire<I> {
    pub(super) fn new(io: I, prefix: Bytes) -> Self {
        Self {
            io,
            input: prefix
                .try_into_mut()
                .unwrap_or_else(|b| BytesMut::from(&b[..])),
            searched: 0,
            ended: false,
            queue: VecDeque::new(),
            tail: BytesMut::new(),
            torn: false,
            queued: 0,
            written: 0,
            unflushed: false,
        }
    }

    /// Reads once. `Ok(0)` is the peer's end.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.ended {
            return Poll::Ready(Ok(0));
        }
        if self.input.capacity() == 0 {
            self.input.reserve(FIRST_READ);
        } else if self.input.capacity() - self.input.len() < READ / 4 {
            self.input.reserve(READ);
        }
        let polled = tokio_util::io::poll_read_buf(Pin::new(&mut self.io), cx, &mut self.input);
        if polled.is_pending() && self.input.is_empty() {
            // Nothing is kept while nothing comes.
            self.input = BytesMut::new();
        }
        let n = ready!(polled)?;
        self.ended = n == 0;
        Poll::Ready(Ok(n))
    }

    /// The next whole head, which is taken out of the input.
    pub(super) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        limit: usize,
    ) -> Poll<Result<Option<Bytes>, Error>> {
        loop {
            if let Some(end) = head::find_end(&self.input, self.searched)? {
                self.searched = 0;
                if end > limit {
                    return Poll::Ready(Err(Error::HeadTooLarge(limit)));
                }
                return Poll::Ready(Ok(Some(self.input.split_to(end).freeze())));
            }
            self.searched = self.input.len();
            if self.input.len() >= limit {
                return Poll::Ready(Err(Error::HeadTooLarge(limit)));
            }
            if ready!(self.poll_fill(cx))? == 0 {
                return Poll::Ready(if self.input.is_empty() {
                    Ok(None)
                } else {
                    Err(Error::Cut)
                });
            }
        }
    }

    /// Makes room for a head, and for a body behind it that is to be copied.
    pub(super) fn make_room(&mut self, body: u64) {
        let body = usize::try_from(body).ok().filter(|n| *n < COPY_BELOW);
        self.tail.reserve(KEPT + body.unwrap_or(0));
    }

    /// Where short pieces are put together.
    pub(super) fn out(&mut self) -> &mut BytesMut {
        &mut self.tail
    }

    /// Queues body bytes.
    pub(super) fn push(&mut self, data: Bytes) {
        if data.len() < COPY_BELOW {
            self.tail.extend_from_slice(&data);
            return;
        }
        self.seal();
        self.queued += data.len();
        self.queue.push_back(data);
    }

    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.queued += self.tail.len();
            self.queue.push_back(self.tail.split().freeze());
            self.torn = true;
        }
    }

    fn pending(&self) -> usize {
        self.queued + self.tail.len()
    }

    /// Whether more waits to be written than should.
    pub(super) fn is_congested(&self) -> bool {
        self.pending() >= HIGH_WATER
    }

    /// Whether nothing more can come, and all that came has been used.
    pub(super) fn has_ended(&self) -> bool {
        self.ended && self.input.is_empty()
    }

    pub(super) fn nothing_to_write(&self) -> bool {
        self.queue.is_empty() && self.tail.is_empty()
    }

    /// Ready while what waits to be written is little.
    pub(super) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_congested() {
            self.poll_flush(cx)
        } else {
            Poll::Ready(Ok(()))
        }
    }

    /// Writes all that is queued.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.nothing_to_write() {
            let n = if self.queue.is_empty() {
                ready!(Pin::new(&mut self.io).poll_write(cx, &self.tail))?
            } else {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let mut used = 0;
                let pieces = self.queue.iter().map(Bytes::chunk).chain([&self.tail[..]]);
                for (slot, piece) in slices.iter_mut().zip(pieces) {
                    *slot = IoSlice::new(piece);
                    used += 1;
                }
                let slices = slices.get(..used).unwrap_or_default();
                ready!(Pin::new(&mut self.io).poll_write_vectored(cx, slices))?
            };
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.wrote(n);
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn wrote(&mut self, mut n: usize) {
        self.written += n as u64;
        self.unflushed = true;
        while n > 0
            && let Some(front) = self.queue.front_mut()
        {
            let step = n.min(front.len());
            front.advance(step);
            n -= step;
            self.queued -= step;
            if front.is_empty() {
                self.queue.pop_front();
            }
        }
        if n >= self.tail.len() {
            self.tail.clear();
        } else if n > 0 {
            self.tail.advance(n);
            self.torn = true;
        }
    }

    /// Gives back what an idle connection does not need.
    pub(super) fn relax(&mut self) {
        if self.input.is_empty() {
            self.input = BytesMut::new();
        }
        if self.nothing_to_write() {
            if self.torn || self.tail.capacity() > KEPT {
                self.tail = BytesMut::new();
                self.torn = false;
            }
            self.queue = VecDeque::new();
        }
    }

    /// Closes our side after everything queued.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    pub(super) fn io(&self) -> &I {
        &self.io
    }

    pub(super) fn into_parts(self) -> (I, Bytes) {
        (self.io, self.input.freeze())
    }
}

//! An HTTP/2 stream as a stream of bytes: what it is after a CONNECT (RFC 9113 §8.5) or a switch of
//! protocols (RFC 8441 §5). The end of one direction is END_STREAM; a stream that the peer reset
//! reads as an error and never as an end (H2-08).

use std::{
    io,
    pin::Pin,
    sync::atomic::{AtomicBool, Ordering},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    Frame,
    h2::{Receiver, Sender},
};
use crate::net::Io;

/// A tunnel's end in an HTTP/2 stream.
#[derive(Debug)]
pub struct StreamIo {
    receiver: Receiver,
    sender: Sender,
    /// Received and not yet read.
    ahead: Bytes,
    /// Dropping it is to show that something broke.
    broken: AtomicBool,
}

impl StreamIo {
    /// The two halves of a stream whose heads have been exchanged.
    #[must_use]
    pub const fn new(receiver: Receiver, sender: Sender) -> Self {
        Self {
            receiver,
            sender,
            ahead: Bytes::new(),
            broken: AtomicBool::new(false),
        }
    }
}

fn broken(error: &h2::Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error.to_string())
}

impl AsyncRead for StreamIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.ahead.is_empty() {
            match ready!(this.receiver.poll_frame(cx)).map_err(|error| broken(&error))? {
                Some(Frame::Data(data)) => this.ahead = data,
                // A tunnel has no use for trailers.
                Some(Frame::Trailers(_)) => {}
                None => return Poll::Ready(Ok(())),
            }
        }
        let n = this.ahead.len().min(buf.remaining());
        buf.put_slice(&this.ahead.split_to(n));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for StreamIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.sender.poll_ready(cx)).map_err(|error| broken(&error))?;
        let data = Bytes::copy_from_slice(buf);
        this.sender
            .data(data, false)
            .map_err(|error| broken(&error))?;
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sender = &mut self.get_mut().sender;
        sender.poll_ready(cx).map_err(|error| broken(&error))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sender = &mut self.get_mut().sender;
        sender.finish().map_err(|error| broken(&error))?;
        sender.poll_ready(cx).map_err(|error| broken(&error))
    }
}

impl Io for StreamIo {
    fn reset_on_drop(&self) {
        self.broken.store(true, Ordering::Relaxed);
    }
}

impl Drop for StreamIo {
    fn drop(&mut self) {
        if self.broken.load(Ordering::Relaxed) {
            // What the TCP connection behind a CONNECT does when it is reset (RFC 9113 §8.5).
            self.sender.reset(Reason::CONNECT_ERROR);
        }
    }
}

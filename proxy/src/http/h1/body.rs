//! Bodies: taking them apart by their framing, and putting them into it.

use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::HeaderMap;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{BodyLen, Error, Frame, Limits, encode, head, wire::Wire};

/// A chunk-size line with its extensions; leading zeros count (HT-04).
const MAX_SIZE_LINE: usize = 4 * 1024;
/// Extensions over a whole body; nobody uses them, and each costs as much as data (HT-05).
const MAX_EXTENSIONS: usize = 64 * 1024;
/// Handed on at a time.
const MAX_FRAME: usize = 64 * 1024;

/// Where in an incoming body we are.
#[derive(Debug, Default)]
pub(super) enum Reader {
    #[default]
    Done,
    Length(u64),
    Chunked {
        state: Chunk,
        extensions: usize,
    },
    UntilClose,
    /// It was cut or broke its framing: it never becomes done.
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chunk {
    Size,
    Data(u64),
    DataEnd,
    /// The section has been searched so far for its end.
    Trailers(usize),
}

impl Reader {
    pub(super) const fn new(len: BodyLen) -> Self {
        match len {
            BodyLen::Empty | BodyLen::Known(0) => Self::Done,
            BodyLen::Known(n) => Self::Length(n),
            BodyLen::Chunked => Self::Chunked {
                state: Chunk::Size,
                extensions: 0,
            },
            BodyLen::UntilClose => Self::UntilClose,
        }
    }

    pub(super) const fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// The next piece; `None` at the end.
    pub(super) fn poll_frame<I: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        wire: &mut Wire<I>,
        limits: &Limits,
    ) -> Poll<Result<Option<Frame>, Error>> {
        let polled = self.poll_frame_inner(cx, wire, limits);
        if matches!(polled, Poll::Ready(Err(_))) {
            *self = Self::Failed;
        }
        polled
    }

    fn poll_frame_inner<I: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        wire: &mut Wire<I>,
        limits: &Limits,
    ) -> Poll<Result<Option<Frame>, Error>> {
        loop {
            if let Some(step) = self.step(&mut wire.input, limits)? {
                return Poll::Ready(Ok(step.into_frame()));
            }
            if ready!(wire.poll_fill(cx))? == 0 {
                if !matches!(self, Self::UntilClose) {
                    return Poll::Ready(Err(Error::Cut));
                }
                *self = Self::Done;
                return Poll::Ready(Ok(None));
            }
        }
    }

    /// Throws away what has been received of the body. True when that was the rest of it.
    pub(super) fn discard(&mut self, input: &mut BytesMut, limits: &Limits) -> bool {
        while !self.is_done() {
            match self.step(input, limits) {
                Ok(Some(_)) => {}
                Ok(None) => return false,
                Err(_) => {
                    *self = Self::Failed;
                    return false;
                }
            }
        }
        true
    }

    /// One step on what has been read; `None` when more is needed.
    fn step(&mut self, input: &mut BytesMut, limits: &Limits) -> Result<Option<Step>, Error> {
        match self {
            Self::Done => Ok(Some(Step::End)),
            Self::Failed => Err(Error::Cut),
            Self::Length(left) => {
                let Some(data) = take(input, *left) else {
                    return Ok(None);
                };
                *left -= data.len() as u64;
                if *left == 0 {
                    *self = Self::Done;
                }
                Ok(Some(Step::Data(data)))
            }
            Self::UntilClose => Ok(take(input, u64::MAX).map(Step::Data)),
            Self::Chunked { state, extensions } => {
                let step = state.step(input, extensions, limits)?;
                if matches!(step, Some(Step::End | Step::Trailers(_))) {
                    *self = Self::Done;
                }
                Ok(step)
            }
        }
    }
}

#[derive(Debug)]
enum Step {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
}

impl Step {
    fn into_frame(self) -> Option<Frame> {
        match self {
            Self::Data(data) => Some(Frame::Data(data)),
            Self::Trailers(trailers) => Some(Frame::Trailers(trailers)),
            Self::End => None,
        }
    }
}

fn take(input: &mut BytesMut, most: u64) -> Option<Bytes> {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let n = input.len().min(most).min(MAX_FRAME);
    (n > 0).then(|| input.split_to(n).freeze())
}

impl Chunk {
    /// RFC 9112 §7.1.
    fn step(
        &mut self,
        input: &mut BytesMut,
        extensions: &mut usize,
        limits: &Limits,
    ) -> Result<Option<Step>, Error> {
        loop {
            match self {
                Self::Size => {
                    let Some(line) = line(input, MAX_SIZE_LINE)? else {
                        return Ok(None);
                    };
                    let (size, extension) = chunk_size(&line)?;
                    *extensions += extension;
                    if *extensions > MAX_EXTENSIONS {
                        return Err(Error::Framing("too many chunk extensions"));
                    }
                    *self = if size == 0 {
                        Self::Trailers(0)
                    } else {
                        Self::Data(size)
                    };
                }
                Self::Data(left) => {
                    let Some(data) = take(input, *left) else {
                        return Ok(None);
                    };
                    *left -= data.len() as u64;
                    if *left == 0 {
                        *self = Self::DataEnd;
                    }
                    return Ok(Some(Step::Data(data)));
                }
                Self::DataEnd => match &input[..] {
                    [b'\r', b'\n', ..] => {
                        input.advance(2);
                        *self = Self::Size;
                    }
                    [] | [b'\r'] => return Ok(None),
                    _ => return Err(Error::Framing("no line end after a chunk")),
                },
                Self::Trailers(searched) => return trailers(input, searched, limits),
            }
        }
    }
}

/// The trailer section with the empty line that ends it.
fn trailers(
    input: &mut BytesMut,
    searched: &mut usize,
    limits: &Limits,
) -> Result<Option<Step>, Error> {
    if input.starts_with(b"\r\n") {
        input.advance(2);
        return Ok(Some(Step::End));
    }
    if input.len() < 2 && b"\r\n".starts_with(&input[..]) {
        return Ok(None);
    }
    let Some(end) = head::find_end(input, *searched)? else {
        *searched = input.len();
        return if input.len() >= limits.head_bytes {
            Err(Error::HeadTooLarge(limits.head_bytes))
        } else {
            Ok(None)
        };
    };
    if end > limits.head_bytes {
        return Err(Error::HeadTooLarge(limits.head_bytes));
    }
    let block = input.split_to(end).freeze();
    let trailers = head::parse_trailers(&block, limits)?;
    Ok(Some(if trailers.is_empty() {
        Step::End
    } else {
        Step::Trailers(trailers)
    }))
}

/// A line without its CRLF.
fn line(input: &mut BytesMut, most: usize) -> Result<Option<Bytes>, Error> {
    match input.iter().take(most + 2).position(|b| *b == b'\n') {
        Some(0) => Err(Error::Framing("bare LF in a chunk size line")),
        Some(at) => {
            let mut line = input.split_to(at + 1);
            if line.get(at - 1) != Some(&b'\r') {
                return Err(Error::Framing("bare LF in a chunk size line"));
            }
            line.truncate(at - 1);
            Ok(Some(line.freeze()))
        }
        None if input.len() > most => Err(Error::Framing("chunk size line too long")),
        None => Ok(None),
    }
}

/// `1*HEXDIG [ BWS ; ext ]`: the size, and how long the extensions were.
fn chunk_size(line: &[u8]) -> Result<(u64, usize), Error> {
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    let (hex, rest) = line.split_at(digits);
    let extension = rest.trim_ascii_start();
    let clean = extension.is_empty() || extension.starts_with(b";");
    if hex.is_empty() || !clean || rest.iter().any(|b| *b < b' ' && *b != b'\t') {
        return Err(Error::Framing("invalid chunk size"));
    }
    let significant = hex.iter().position(|b| *b != b'0').unwrap_or(hex.len());
    let hex = hex.get(significant..).unwrap_or_default();
    if hex.len() > 15 {
        return Err(Error::Framing("chunk size is too large"));
    }
    let size = hex.iter().fold(0, |n: u64, b| {
        let digit = char::from(*b).to_digit(16).unwrap_or(0);
        n << 4 | u64::from(digit)
    });
    Ok((size, rest.len()))
}

/// Where in an outgoing body we are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Writer {
    #[default]
    Done,
    Length(u64),
    Chunked,
    UntilClose,
}

impl Writer {
    pub(super) const fn new(len: BodyLen) -> Self {
        match len {
            BodyLen::Empty | BodyLen::Known(0) => Self::Done,
            BodyLen::Known(n) => Self::Length(n),
            BodyLen::Chunked => Self::Chunked,
            BodyLen::UntilClose => Self::UntilClose,
        }
    }

    pub(super) fn is_done(self) -> bool {
        self == Self::Done
    }

    /// Puts `data` into the framing. More than was announced is cut off: the peer would take it for
    /// the next message.
    pub(super) fn data<I: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        wire: &mut Wire<I>,
        mut data: Bytes,
    ) {
        if data.is_empty() {
            return;
        }
        match self {
            Self::Done => {}
            Self::Length(left) => {
                if data.len() as u64 > *left {
                    data.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                }
                *left -= data.len() as u64;
                if *left == 0 {
                    *self = Self::Done;
                }
                wire.push(data);
            }
            Self::UntilClose => wire.push(data),
            Self::Chunked => {
                put_hex(wire.out(), data.len());
                wire.push(data);
                wire.out().put_slice(b"\r\n");
            }
        }
    }

    /// Ends the body. False when it is shorter than was announced: the message is cut.
    pub(super) fn finish<I: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        wire: &mut Wire<I>,
        trailers: Option<&HeaderMap>,
    ) -> bool {
        let before = std::mem::take(self);
        match before {
            Self::Length(_) => return false,
            Self::Chunked => {
                wire.out().put_slice(b"0\r\n");
                match trailers {
                    Some(trailers) => encode::trailers(wire.out(), trailers),
                    None => wire.out().put_slice(b"\r\n"),
                }
            }
            Self::Done | Self::UntilClose => {}
        }
        true
    }
}

fn put_hex(out: &mut BytesMut, n: usize) {
    let digits = (usize::BITS - n.leading_zeros()).div_ceil(4).max(1);
    for at in (0..digits).rev() {
        let nibble = u32::try_from(n >> (at * 4) & 0xf).unwrap_or(0);
        let digit = char::from_digit(nibble, 16).unwrap_or('0');
        out.put_slice(digit.encode_utf8(&mut [0; 4]).as_bytes());
    }
    out.put_slice(b"\r\n");
}

//! A scripted stream, and drivers that read messages from it to their end.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::HeaderMap;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    http::h1::{BodyLen, ClientConn, Error, Frame, Limits, RequestHead, ServerConn},
    net::Io,
};

/// What a read meets.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Bytes(Bytes),
    /// Nothing for now, once.
    Gap,
    End,
    Reset,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) input: VecDeque<Step>,
    pub(super) output: Vec<u8>,
    /// Calls that wrote something.
    pub(super) writes: usize,
    /// Bytes the "kernel" still takes; `None` is any number.
    pub(super) room: Option<usize>,
    pub(super) shut: usize,
    pub(super) reset_on_drop: bool,
}

/// Both ends of a stream: the codec's, and the test's view of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Mock(Arc<Mutex<State>>);

impl Mock {
    pub(super) fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        let mock = Self::default();
        mock.state().input.extend(steps);
        mock
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub(super) fn feed(&self, bytes: &[u8]) {
        self.state()
            .input
            .push_back(Step::Bytes(Bytes::copy_from_slice(bytes)));
    }

    pub(super) fn push(&self, step: Step) {
        self.state().input.push_back(step);
    }

    /// What was written since the last look.
    pub(super) fn written(&self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.state().output)).into_owned()
    }
}

impl AsyncRead for Mock {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.state();
        while matches!(state.input.front(), Some(Step::Bytes(bytes)) if bytes.is_empty()) {
            state.input.pop_front();
        }
        match state.input.pop_front() {
            Some(Step::Bytes(mut bytes)) => {
                let now = bytes.split_to(bytes.len().min(buf.remaining()));
                buf.put_slice(&now);
                if !bytes.is_empty() {
                    state.input.push_front(Step::Bytes(bytes));
                }
                Poll::Ready(Ok(()))
            }
            Some(Step::Gap) | None => Poll::Pending,
            Some(Step::End) => {
                state.input.push_front(Step::End);
                Poll::Ready(Ok(()))
            }
            Some(Step::Reset) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
        }
    }
}

impl AsyncWrite for Mock {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.state();
        let n = state.room.unwrap_or(usize::MAX).min(buf.len());
        if n == 0 {
            return Poll::Pending;
        }
        state.room = state.room.map(|room| room - n);
        state.writes += 1;
        state.output.extend_from_slice(&buf[..n]);
        Poll::Ready(Ok(n))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all: Vec<u8> = slices.iter().flat_map(|s| s.iter().copied()).collect();
        self.poll_write(cx, &all)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.state().shut += 1;
        Poll::Ready(Ok(()))
    }
}

impl Io for Mock {
    fn reset_on_drop(&self) {
        self.state().reset_on_drop = true;
    }
}

/// Polls once.
pub(super) fn once<T>(f: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
    f(&mut Context::from_waker(Waker::noop()))
}

/// Polls until ready, through the gaps of a script.
pub(super) fn run<T>(mut f: impl FnMut(&mut Context<'_>) -> Poll<T>) -> T {
    for _ in 0..500_000 {
        if let Poll::Ready(done) = once(&mut f) {
            return done;
        }
    }
    panic!("never ready");
}

/// The ways in which bytes are cut on their way: whole, one by one, and in two at every place;
/// long ones at a few places only.
pub(super) fn cuts(bytes: &[u8]) -> Vec<Vec<Step>> {
    let piece = |part: &[u8]| Step::Bytes(Bytes::copy_from_slice(part));
    let mut all = vec![vec![piece(bytes)]];
    let short = bytes.len() <= 1024;
    if short {
        let single = bytes.iter().flat_map(|b| [piece(&[*b]), Step::Gap]);
        all.push(single.collect());
    }
    let step = if short { 1 } else { bytes.len() / 7 };
    for at in (1..bytes.len()).step_by(step) {
        all.push(vec![piece(&bytes[..at]), Step::Gap, piece(&bytes[at..])]);
    }
    all
}

/// A body to its end.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Body {
    pub(super) data: Vec<u8>,
    pub(super) trailers: Option<HeaderMap>,
}

pub(super) fn collect(
    mut next: impl FnMut(&mut Context<'_>) -> Poll<Result<Option<Frame>, Error>>,
) -> Result<Body, Error> {
    let mut body = Body::default();
    loop {
        match run(&mut next)? {
            None => return Ok(body),
            Some(Frame::Data(data)) => {
                assert!(!data.is_empty(), "an empty frame says nothing");
                body.data.extend_from_slice(&data);
            }
            Some(Frame::Trailers(trailers)) => {
                assert!(body.trailers.replace(trailers).is_none());
            }
        }
    }
}

pub(super) fn server(steps: impl IntoIterator<Item = Step>) -> (ServerConn<Mock>, Mock) {
    let mock = Mock::new(steps);
    (
        ServerConn::new(mock.clone(), Bytes::new(), Limits::default()),
        mock,
    )
}

/// A server that has received `request` and its body.
pub(super) fn served(request: &str) -> (ServerConn<Mock>, Mock, RequestHead) {
    let (mut conn, mock) = server([Step::Bytes(Bytes::copy_from_slice(request.as_bytes()))]);
    let head = run(|cx| conn.poll_request(cx))
        .expect("a request")
        .expect("not the end");
    (conn, mock, head)
}

/// A client that has sent a GET.
pub(super) fn client(steps: impl IntoIterator<Item = Step>) -> (ClientConn<Mock>, Mock) {
    let mock = Mock::new(steps);
    let mut conn = ClientConn::new(mock.clone(), Limits::default());
    let request = http::Request::get("/").header("host", "a").body(());
    conn.send_request(&request.expect("a request"), BodyLen::Empty, None);
    conn.finish();
    run(|cx| conn.poll_flush(cx)).expect("written");
    (conn, mock)
}

/// One request as text, for comparing.
pub(super) fn show(head: &RequestHead) -> String {
    use std::fmt::Write as _;
    let mut text = format!(
        "{} {} {:?} {:?}",
        head.head.method(),
        head.head.uri(),
        head.head.version(),
        head.len
    );
    for (name, value) in head.head.headers() {
        write!(
            text,
            "|{name}={}",
            String::from_utf8_lossy(value.as_bytes())
        )
        .expect("text");
    }
    text
}

/// Serves everything on a connection: each request as text with its body, and how it ended.
pub(super) fn serve_all(steps: Vec<Step>) -> (Vec<(String, Body)>, Option<Error>) {
    let (mut conn, _mock) = server(steps.into_iter().chain([Step::End]));
    let mut seen = Vec::new();
    for _ in 0..1000 {
        let head = match run(|cx| conn.poll_request(cx)) {
            Ok(Some(head)) => head,
            Ok(None) => return (seen, None),
            Err(error) => return (seen, Some(error)),
        };
        match collect(|cx| conn.poll_recv(cx)) {
            Ok(body) => seen.push((show(&head), body)),
            Err(error) => return (seen, Some(error)),
        }
        conn.send_response(&http::Response::new(()), BodyLen::Empty, None);
        conn.finish();
        if !conn.is_reusable() {
            return (seen, None);
        }
        conn.done();
    }
    panic!("never ends");
}

//! Lines on their way to a file or pipe, written by a thread of their own, so that a reader who is
//! slow or gone never holds up a request. What does not fit in the queue is dropped and counted.

use std::{
    fmt,
    io::{self, Write},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

/// Bytes that may wait: some thousand lines, a fraction of a second of a busy pod.
pub const MAX_QUEUED: usize = 1 << 20;
/// Lines are gathered for so long, so that a busy log costs a few writes a second and not one a
/// line.
const GATHER: Duration = Duration::from_millis(20);
/// From here on the queue is written at once.
const ENOUGH: usize = 64 << 10;

/// A bounded queue of lines with its writer.
#[derive(Clone)]
pub struct Lines(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    /// There is something to write, or enough of it, or the end has come.
    todo: Condvar,
    /// Everything is written.
    empty: Condvar,
    dropped: AtomicU64,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<u8>,
    writing: bool,
    flush: bool,
    /// The writer is gone; nothing is taken any more.
    closed: bool,
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines")
            .field("dropped", &self.dropped())
            .finish_non_exhaustive()
    }
}

impl Lines {
    /// Starts a thread that writes to `out`.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(name: &str, out: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            todo: Condvar::new(),
            empty: Condvar::new(),
            dropped: AtomicU64::new(0),
        });
        let writer = Arc::clone(&shared);
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || writer.write_all(out))?;
        Ok(Self(shared))
    }

    /// Takes `line`, which ends in a line feed; whole or not at all. Never blocks on the reader.
    pub fn push(&self, line: &[u8]) {
        let mut queue = self.0.lock();
        let before = queue.waiting.len();
        if queue.closed || before + line.len() > MAX_QUEUED {
            self.0.dropped.fetch_add(1, Relaxed);
            return;
        }
        queue.waiting.extend_from_slice(line);
        let after = queue.waiting.len();
        drop(queue);
        if before == 0 || (before < ENOUGH && after >= ENOUGH) {
            self.0.todo.notify_one();
        }
    }

    /// Lines that were dropped.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Relaxed)
    }

    /// Waits until everything is written, but no longer than `limit`: for the end of the process.
    pub fn flush(&self, limit: Duration) {
        let mut queue = self.0.lock();
        queue.flush = true;
        self.0.todo.notify_one();
        let busy =
            |queue: &mut Queue| !queue.closed && (queue.writing || !queue.waiting.is_empty());
        let waited = self.0.empty.wait_timeout_while(queue, limit, busy);
        // Later lines are gathered again.
        waited.unwrap_or_else(PoisonError::into_inner).0.flush = false;
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_all(&self, mut out: impl Write) {
        let mut lines = Vec::new();
        loop {
            lines.clear();
            // A burst does not keep its memory.
            lines.shrink_to(ENOUGH);
            self.next(&mut lines);
            let written = out.write_all(&lines).and_then(|()| out.flush());
            let mut queue = self.lock();
            queue.writing = false;
            queue.closed = written.is_err();
            let done = queue.closed || queue.waiting.is_empty();
            drop(queue);
            if done {
                self.empty.notify_all();
            }
            // Nobody will read this log again.
            if written.is_err() {
                return;
            }
        }
    }

    /// Waits for lines and swaps them into `lines`, which is empty.
    fn next(&self, lines: &mut Vec<u8>) {
        let nothing = |queue: &mut Queue| queue.waiting.is_empty();
        let few = |queue: &mut Queue| queue.waiting.len() < ENOUGH && !queue.flush;
        let queue = self.todo.wait_while(self.lock(), nothing);
        let queue = queue.unwrap_or_else(PoisonError::into_inner);
        let queue = self.todo.wait_timeout_while(queue, GATHER, few);
        let mut queue = queue.unwrap_or_else(PoisonError::into_inner).0;
        std::mem::swap(&mut queue.waiting, lines);
        queue.writing = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reader that can be stopped.
    #[derive(Clone, Default)]
    struct Pipe(Arc<(Mutex<State>, Condvar)>);

    /// Whether it is stopped, and what came.
    type State = (bool, Vec<u8>);

    impl Pipe {
        fn stop(&self, stopped: bool) {
            self.0.0.lock().expect("lock").0 = stopped;
            self.0.1.notify_all();
        }

        fn read(&self) -> String {
            let read = self.0.0.lock().expect("lock");
            String::from_utf8(read.1.clone()).expect("text")
        }
    }

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let inner = self.0.0.lock().expect("lock");
            let mut inner = self.0.1.wait_while(inner, |i| i.0).expect("lock");
            inner.1.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_come_whole_and_in_order() {
        let pipe = Pipe::default();
        let lines = Lines::start("test", pipe.clone()).expect("a thread");
        for n in 0..5000 {
            lines.push(format!("line {n}\n").as_bytes());
        }
        lines.flush(Duration::from_secs(10));
        let want: String = (0..5000).map(|n| format!("line {n}\n")).collect();
        assert_eq!(pipe.read(), want);
        assert_eq!(lines.dropped(), 0);
    }

    #[test]
    fn ob_03_a_reader_that_stopped_costs_lines_and_nothing_else() {
        let pipe = Pipe::default();
        pipe.stop(true);
        let lines = Lines::start("test", pipe.clone()).expect("a thread");
        let line = [b'x'; 1024];
        for _ in 0..4 * 1024 {
            lines.push(&line);
        }
        lines.flush(Duration::from_millis(1));
        assert!(lines.dropped() >= 2 * 1024);
        pipe.stop(false);
        lines.flush(Duration::from_secs(10));
        lines.push(b"after\n");
        lines.flush(Duration::from_secs(10));
        assert!(pipe.read().ends_with("after\n"), "it goes on");
    }

    #[test]
    fn a_reader_that_is_gone_ends_the_writer() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let lines = Lines::start("test", Gone).expect("a thread");
        lines.push(b"one\n");
        lines.flush(Duration::from_secs(10));
        lines.push(b"two\n");
        assert_eq!(lines.dropped(), 1);
    }
}

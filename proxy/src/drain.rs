//! Stopping without losing a request.
//!
//! SIGTERM moves the proxy from [`Phase::Serving`] to [`Phase::Lingering`], in which everything is
//! served as before while the control plane withdraws the pod's endpoints (KU-01). Then comes
//! [`Phase::Draining`]: HTTP connections are told to end (`connection: close`, GOAWAY) and end when
//! their requests do. [`Phase::Closing`] cuts what is left at the limit (TC-06).

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// Where in its life the proxy is. The order is the order of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Serving,
    Lingering,
    Draining,
    Closing,
}

/// Moves the phase; one per process.
#[derive(Clone, Debug)]
pub struct Drain {
    phase: watch::Sender<Phase>,
    open: Arc<Open>,
    cohorts: Arc<Cohorts>,
}

/// Connections are cut in so many lots.
const LOTS: usize = 16;

/// What is left at the limit is not all cut in the same moment: its clients would all come back
/// together, to the next pod (GR-06).
#[derive(Debug, Default)]
struct Cohorts {
    lots: [CancellationToken; LOTS],
    next: AtomicUsize,
}

#[derive(Debug, Default)]
struct Open {
    connections: AtomicUsize,
    none_left: Notify,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            phase: watch::Sender::new(Phase::Serving),
            open: Arc::default(),
            cohorts: Arc::default(),
        }
    }
}

impl Drain {
    /// Moves on to `phase`; never back.
    pub fn advance(&self, phase: Phase) {
        self.phase.send_if_modified(|now| {
            let later = phase > *now;
            if later {
                *now = phase;
            }
            later
        });
        if phase >= Phase::Closing {
            for lot in &self.cohorts.lots {
                lot.cancel();
            }
        }
    }

    /// Cancelled at [`Phase::Closing`] or shortly before ([`Self::cut_over`]). Each connection has
    /// its own, so that its requests wait on it without meeting those of other threads.
    #[must_use]
    pub fn cut(&self) -> CancellationToken {
        let nth = self.cohorts.next.fetch_add(1, Ordering::Relaxed);
        let lot = self.cohorts.lots.get(nth % LOTS);
        lot.map_or_else(CancellationToken::new, CancellationToken::child_token)
    }

    /// Cuts what is left, lot by lot, over `time`; over at once when nothing is.
    pub async fn cut_over(&self, time: Duration) {
        for lot in &self.cohorts.lots {
            lot.cancel();
            let pause = time / u32::try_from(LOTS).unwrap_or(1);
            if tokio::time::timeout(pause, self.idle()).await.is_ok() {
                return;
            }
        }
    }

    /// The phase at this moment.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Resolves when the phase is `phase` or later.
    pub async fn reached(&self, phase: Phase) {
        let mut watch = self.phase.subscribe();
        // Fails only when the sender is gone, and `self` is one.
        drop(watch.wait_for(|now| *now >= phase).await);
    }

    /// Counts a connection for as long as the guard lives.
    #[must_use]
    pub fn connection(&self) -> ConnectionGuard {
        self.open.connections.fetch_add(1, Ordering::Relaxed);
        ConnectionGuard(Arc::clone(&self.open))
    }

    /// Connections open at this moment.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.open.connections.load(Ordering::Relaxed)
    }

    /// Resolves when no connection is open.
    pub async fn idle(&self) {
        loop {
            let changed = self.open.none_left.notified();
            if self.connections() == 0 {
                return;
            }
            changed.await;
        }
    }
}

/// One open connection.
#[derive(Debug)]
pub struct ConnectionGuard(Arc<Open>);

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        if self.0.connections.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.none_left.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn gr_06_what_is_left_is_cut_in_lots() {
        let drain = Drain::default();
        let _open = drain.connection();
        let tokens: Vec<_> = (0..2 * LOTS).map(|_| drain.cut()).collect();
        let cutting = tokio::spawn({
            let drain = drain.clone();
            async move { drain.cut_over(Duration::from_secs(16)).await }
        });
        tokio::time::sleep(Duration::from_millis(7500)).await;
        let cut = tokens.iter().filter(|token| token.is_cancelled()).count();
        assert_eq!(cut, LOTS, "half of them after half the time");
        cutting.await.expect("no panic");
        assert!(tokens.iter().all(CancellationToken::is_cancelled));
    }

    #[tokio::test(start_paused = true)]
    async fn gr_06_nothing_is_waited_for_when_nothing_is_left() {
        let drain = Drain::default();
        let began = tokio::time::Instant::now();
        drain.cut_over(Duration::from_secs(16)).await;
        assert!(began.elapsed() < Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn the_phase_moves_forward_only_and_waiters_see_it() {
        let drain = Drain::default();
        let waiter = tokio::spawn({
            let drain = drain.clone();
            async move { drain.reached(Phase::Draining).await }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!waiter.is_finished());
        drain.advance(Phase::Closing);
        drain.advance(Phase::Serving);
        waiter.await.expect("reached");
        assert_eq!(drain.phase(), Phase::Closing);
    }

    #[tokio::test(start_paused = true)]
    async fn tc_06_idle_waits_for_the_last_connection() {
        let drain = Drain::default();
        let (one, two) = (drain.connection(), drain.connection());
        let idle = tokio::spawn({
            let drain = drain.clone();
            async move { drain.idle().await }
        });
        drop(one);
        tokio::task::yield_now().await;
        assert!(!idle.is_finished());
        drop(two);
        idle.await.expect("idle");
    }
}

//! Stopping without losing a request.
//!
//! SIGTERM moves the proxy from [`Phase::Serving`] to [`Phase::Lingering`], in which everything is
//! served as before while the control plane withdraws the pod's endpoints (KU-01). Then comes
//! [`Phase::Draining`]: HTTP connections are told to end (`connection: close`, GOAWAY) and end when
//! their requests do. [`Phase::Closing`] cuts what is left at the limit (TC-06).

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
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
    cut: CancellationToken,
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
            cut: CancellationToken::new(),
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
            self.cut.cancel();
        }
    }

    /// Cancelled at [`Phase::Closing`]. Each connection has its own, so that its requests wait on
    /// it without meeting those of other threads.
    #[must_use]
    pub fn cut(&self) -> CancellationToken {
        self.cut.child_token()
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
    use std::time::Duration;

    use super::*;

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

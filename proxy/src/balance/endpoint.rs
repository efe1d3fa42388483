//! One member of a cluster and what is learned about it while requests flow.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::Outcome;
use crate::config::{
    endpoint::{Endpoint, HealthStatus},
    tls::ClientTls,
};

/// A failed call counts as one of this length for latency-aware balancing, or of its own if that
/// was longer: an endpoint that fails fast must not look fast (LB-06).
const FAILURE_RTT: Duration = Duration::from_secs(5);

/// A member as configured, with its runtime state.
#[derive(Debug)]
pub struct EndpointState {
    /// Unique for this cluster and address for as long as the address stays a member.
    pub id: u64,
    pub config: Arc<Endpoint>,
    pub tls: Option<Arc<ClientTls>>,
    pub(super) run: Arc<Runtime>,
}

/// Survives changes of configuration as long as the address stays a member.
#[derive(Debug)]
pub(super) struct Runtime {
    pub(super) id: u64,
    base: Instant,
    pub(super) in_flight: AtomicU32,
    /// Nanoseconds, as f64 bits.
    ewma: AtomicU64,
    /// Nanoseconds since `base`.
    ewma_at: AtomicU64,
    pub(super) consecutive_5xx: AtomicU32,
    pub(super) consecutive_gateway: AtomicU32,
    pub(super) consecutive_local: AtomicU32,
    /// Milliseconds since `base`; 0 is not ejected.
    ejected_until: AtomicU64,
    /// How many ejection times the next one lasts, less one.
    pub(super) ejections: AtomicU32,
    /// By active checks.
    pub(super) check_failed: AtomicBool,
    pub(super) removed: AtomicBool,
    pub(super) successes: AtomicU64,
    pub(super) failures: AtomicU64,
}

/// What the admin page and the live view show of a member.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointView {
    pub address: SocketAddr,
    pub health: HealthStatus,
    pub check_failed: bool,
    /// How much longer it stays ejected.
    pub ejected_for: Option<Duration>,
    pub in_flight: u32,
    pub ewma: Duration,
    pub weight: u32,
    pub successes: u64,
    pub failures: u64,
}

impl Runtime {
    pub(super) fn new(id: u64, base: Instant, rtt: Duration) -> Arc<Self> {
        Arc::new(Self {
            id,
            base,
            in_flight: AtomicU32::new(0),
            ewma: AtomicU64::new(nanos(rtt).to_bits()),
            ewma_at: AtomicU64::new(0),
            consecutive_5xx: AtomicU32::new(0),
            consecutive_gateway: AtomicU32::new(0),
            consecutive_local: AtomicU32::new(0),
            ejected_until: AtomicU64::new(0),
            ejections: AtomicU32::new(0),
            check_failed: AtomicBool::new(false),
            removed: AtomicBool::new(false),
            successes: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        })
    }

    fn since_base(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.base)
    }

    pub(super) fn millis(&self, now: Instant) -> u64 {
        u64::try_from(self.since_base(now).as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn eject_until(&self, until: Instant) {
        self.ejected_until.store(self.millis(until).max(1), Relaxed);
    }

    /// When the ejection ends, if it lasts at `now`.
    pub(super) fn ejected_at(&self, now: Instant) -> Option<Instant> {
        let until = self.ejected_until.load(Relaxed);
        (until > self.millis(now)).then(|| self.base + Duration::from_millis(until))
    }

    /// Peak-sensitive moving average (Finagle, linkerd): up at once, down over `decay`.
    pub(super) fn observe(&self, rtt: Duration, decay: Duration, now: Instant) {
        let at = u64::try_from(self.since_base(now).as_nanos()).unwrap_or(u64::MAX);
        let before = self.ewma_at.swap(at, Relaxed);
        let old = f64::from_bits(self.ewma.load(Relaxed));
        let rtt = nanos(rtt);
        let new = if rtt > old {
            rtt
        } else {
            let w = weight_left(at.saturating_sub(before), decay);
            old * w + rtt * (1.0 - w)
        };
        self.ewma.store(new.to_bits(), Relaxed);
    }

    /// The average as it has faded until `now`, in nanoseconds.
    pub(super) fn latency(&self, decay: Duration, now: Instant) -> f64 {
        let at = u64::try_from(self.since_base(now).as_nanos()).unwrap_or(u64::MAX);
        let idle = at.saturating_sub(self.ewma_at.load(Relaxed));
        f64::from_bits(self.ewma.load(Relaxed)) * weight_left(idle, decay)
    }
}

fn nanos(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e9
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a ratio of times needs no last bit"
)]
fn weight_left(elapsed_nanos: u64, decay: Duration) -> f64 {
    (-(elapsed_nanos as f64) / nanos(decay).max(1.0)).exp()
}

impl EndpointState {
    /// Whether the address has left its cluster; nothing new is sent to it then.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.run.removed.load(Relaxed)
    }

    /// Whether it may be picked when health matters.
    pub(super) fn is_available(&self, now: Instant) -> bool {
        matches!(
            self.config.health,
            HealthStatus::Healthy | HealthStatus::Degraded
        ) && !self.run.check_failed.load(Relaxed)
            && self.run.ejected_at(now).is_none()
    }

    pub(super) fn view(&self, decay: Duration, now: Instant) -> EndpointView {
        let run = &self.run;
        EndpointView {
            address: self.config.address,
            health: self.config.health,
            check_failed: run.check_failed.load(Relaxed),
            ejected_for: run.ejected_at(now).map(|until| until - now),
            in_flight: run.in_flight.load(Relaxed),
            ewma: Duration::from_secs_f64((run.latency(decay, now) / 1e9).clamp(0.0, 1e6)),
            weight: self.config.weight,
            successes: run.successes.load(Relaxed),
            failures: run.failures.load(Relaxed),
        }
    }

    /// Takes note of how a try ended.
    pub(super) fn learn(&self, outcome: Outcome, latency: Duration, decay: Duration, now: Instant) {
        match outcome {
            Outcome::Neutral => {}
            Outcome::Success => {
                self.run.successes.fetch_add(1, Relaxed);
                self.run.observe(latency, decay, now);
            }
            _ => {
                self.run.failures.fetch_add(1, Relaxed);
                self.run.observe(latency.max(FAILURE_RTT), decay, now);
            }
        }
    }
}

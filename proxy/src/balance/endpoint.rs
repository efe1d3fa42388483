//! One member of a cluster and what is learned about it while requests flow.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::Outcome;
use crate::config::{
    cluster::SlowStart,
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
    /// Tries since the last sweep that say something about the endpoint.
    pub(super) answered: AtomicU32,
    /// Those of them that failed.
    pub(super) failed: AtomicU32,
    /// What active checks say, a [`Checked`].
    checked: AtomicU8,
    /// Nanoseconds since `base`: when it became a member, or passed checks again. Slow start counts
    /// from here.
    warm_since: AtomicU64,
    removed: AtomicBool,
    /// Counts how often connections were to end; each knows the number that it was made under.
    generation: Arc<AtomicU32>,
    pub(super) successes: AtomicU64,
    pub(super) failures: AtomicU64,
}

/// What active checks say of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Checked {
    /// Not checked, not checked yet (HC-06: usable meanwhile), or passing.
    Passing,
    Failing,
    /// It said that it is going away: like draining, it is no member for new requests and does not
    /// count as a failed one (HC-05).
    Leaving,
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
    /// A new member at `now`. Its expected latency fades from here on, not from `base`: else a
    /// member added late would look infinitely fast and draw a herd until its first answer.
    pub(super) fn new(id: u64, base: Instant, rtt: Duration, now: Instant) -> Arc<Self> {
        let at = nanos_between(base, now);
        Arc::new(Self {
            id,
            base,
            in_flight: AtomicU32::new(0),
            ewma: AtomicU64::new(nanos(rtt).to_bits()),
            ewma_at: AtomicU64::new(at),
            consecutive_5xx: AtomicU32::new(0),
            consecutive_gateway: AtomicU32::new(0),
            consecutive_local: AtomicU32::new(0),
            ejected_until: AtomicU64::new(0),
            ejections: AtomicU32::new(0),
            answered: AtomicU32::new(0),
            failed: AtomicU32::new(0),
            checked: AtomicU8::new(0),
            warm_since: AtomicU64::new(at),
            removed: AtomicBool::new(false),
            generation: Arc::default(),
            successes: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        })
    }

    /// The address is no member any more.
    pub(super) fn remove(&self) {
        self.removed.store(true, Relaxed);
        self.disconnect();
    }

    /// Connections to it serve no further request.
    pub(super) fn disconnect(&self) {
        self.generation.fetch_add(1, Relaxed);
    }

    fn millis(&self, now: Instant) -> u64 {
        nanos_between(self.base, now) / 1_000_000
    }

    pub(super) fn checked(&self) -> Checked {
        match self.checked.load(Relaxed) {
            0 => Checked::Passing,
            1 => Checked::Failing,
            _ => Checked::Leaving,
        }
    }

    /// Takes note of what the checks say now; answers whether that is a change. A member that
    /// passes again starts slowly again.
    pub(super) fn set_checked(&self, checked: Checked, now: Instant) -> bool {
        let code = match checked {
            Checked::Passing => 0,
            Checked::Failing => 1,
            Checked::Leaving => 2,
        };
        let changed = self.checked.swap(code, Relaxed) != code;
        if changed && checked == Checked::Passing {
            self.warm_since
                .store(nanos_between(self.base, now), Relaxed);
        }
        changed
    }

    /// The share of its weight that a member in slow start has (Envoy: the elapsed share of the
    /// window to the power of 1/aggression, at least the stated minimum). It depends on this
    /// member alone, whatever others come or go (RT-11).
    pub(super) fn warmth(&self, slow: &SlowStart, now: Instant) -> f64 {
        let since = self.warm_since.load(Relaxed);
        let elapsed = nanos_between(self.base, now).saturating_sub(since);
        let window = nanos(slow.window).max(1.0);
        if as_f64(elapsed) >= window {
            return 1.0;
        }
        let grown = (as_f64(elapsed) / window).powf(1.0 / slow.aggression.max(f64::MIN_POSITIVE));
        grown.clamp((slow.min_weight_percent / 100.0).clamp(0.0, 1.0), 1.0)
    }

    /// Starts the counters of consecutive failures anew.
    pub(super) fn reset_streaks(&self) {
        self.consecutive_5xx.store(0, Relaxed);
        self.consecutive_gateway.store(0, Relaxed);
        self.consecutive_local.store(0, Relaxed);
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
        let at = nanos_between(self.base, now);
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
        let at = nanos_between(self.base, now);
        let idle = at.saturating_sub(self.ewma_at.load(Relaxed));
        f64::from_bits(self.ewma.load(Relaxed)) * weight_left(idle, decay)
    }
}

fn nanos(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e9
}

/// 584 years fit.
fn nanos_between(base: Instant, now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(base).as_nanos()).unwrap_or(u64::MAX)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a ratio of times needs no last bit"
)]
const fn as_f64(nanos: u64) -> f64 {
    nanos as f64
}

fn weight_left(elapsed_nanos: u64, decay: Duration) -> f64 {
    (-as_f64(elapsed_nanos) / nanos(decay).max(1.0)).exp()
}

impl EndpointState {
    /// Whether the address has left its cluster; nothing new is sent to it then.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.run.removed.load(Relaxed)
    }

    /// Grows when connections to it are to end: it has left its cluster, or its checks failed and
    /// the cluster wants that (Envoy's `close_connections_on_host_health_failure`).
    #[must_use]
    pub fn generation(&self) -> Arc<AtomicU32> {
        Arc::clone(&self.run.generation)
    }

    /// Whether it counts as a member at all: one that drains or said that it is leaving is not
    /// used even in panic.
    pub(super) fn is_member(&self) -> bool {
        self.config.health != HealthStatus::Draining && self.run.checked() != Checked::Leaving
    }

    /// Whether it may be picked when health matters.
    pub(super) fn is_available(&self, now: Instant) -> bool {
        matches!(
            self.config.health,
            HealthStatus::Healthy | HealthStatus::Degraded
        ) && self.run.checked() == Checked::Passing
            && self.run.ejected_at(now).is_none()
    }

    pub(super) fn view(&self, decay: Duration, now: Instant) -> EndpointView {
        let run = &self.run;
        EndpointView {
            address: self.config.address,
            health: self.config.health,
            check_failed: run.checked() != Checked::Passing,
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

//! A cluster at work: its limits, its breaker, its members.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use rand::{Rng, RngExt};
use tokio::time::Instant;

use super::{
    Outcome,
    breaker::{Admitted, Breaker, BreakerState},
    endpoint::{EndpointState, EndpointView, Runtime},
    pick::{Eligible, PickCx},
};
use crate::{
    config::{
        Cluster,
        cluster::{Balancing, Discovery, Limits},
        endpoint::{Endpoint, Endpoints, HealthStatus},
    },
    fault::Fault,
};

/// Members made from original destinations that one cluster keeps; the least recently used go.
const MAX_ORIGINAL_DST: usize = 1024;

/// Members by address, with when they were last used.
type OriginalDst = HashMap<SocketAddr, (Arc<EndpointState>, Instant)>;

/// Counters that outlive changes of a cluster's configuration.
#[derive(Debug)]
pub(super) struct ClusterRun {
    base: Instant,
    active: [AtomicU32; 2],
    connections: [AtomicU32; 2],
    pending: [AtomicU32; 2],
    retries: AtomicU32,
    turn: AtomicUsize,
    breaker: Mutex<Option<Breaker>>,
    totals: Totals,
    original_dst: Mutex<OriginalDst>,
}

#[derive(Debug, Default)]
struct Totals {
    requests: AtomicU64,
    connections: AtomicU64,
    retries: AtomicU64,
    over_requests: AtomicU64,
    over_connections: AtomicU64,
    over_pending: AtomicU64,
    over_retries: AtomicU64,
    breaker_rejected: AtomicU64,
    ejections: AtomicU64,
}

/// A cluster in use. A change of configuration makes a new one that shares what was learned.
#[derive(Debug)]
pub struct ClusterHandle {
    pub config: Arc<Cluster>,
    pub(super) source: Arc<Endpoints>,
    pub(super) run: Arc<ClusterRun>,
    pub(super) members: Vec<Vec<Arc<EndpointState>>>,
    eligible: ArcSwap<Eligible>,
    ids: Arc<AtomicU64>,
}

/// Numbers for metrics and the admin page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterStats {
    pub active_requests: u32,
    pub active_connections: u32,
    pub pending: u32,
    pub retries_now: u32,
    pub requests: u64,
    pub connections: u64,
    pub retries: u64,
    pub over_requests: u64,
    pub over_connections: u64,
    pub over_pending: u64,
    pub over_retries: u64,
    pub breaker: Option<(BreakerState, u64)>,
    pub breaker_rejected: u64,
    pub ejections: u64,
    pub endpoints: usize,
    pub healthy: usize,
}

impl ClusterRun {
    pub(super) fn new(base: Instant) -> Arc<Self> {
        let pair = || [AtomicU32::new(0), AtomicU32::new(0)];
        Arc::new(Self {
            base,
            active: pair(),
            connections: pair(),
            pending: pair(),
            retries: AtomicU32::new(0),
            turn: AtomicUsize::new(0),
            breaker: Mutex::new(None),
            totals: Totals::default(),
            original_dst: Mutex::default(),
        })
    }
}

/// Counts down when dropped, and nothing else does.
#[derive(Debug)]
struct Counted<F: Fn(&ClusterRun) -> &AtomicU32>(Arc<ClusterRun>, F);

impl<F: Fn(&ClusterRun) -> &AtomicU32> Counted<F> {
    /// One more, if that stays within `max`.
    fn take(run: &Arc<ClusterRun>, max: u32, counter: F) -> Option<Self> {
        let update = |n: u32| (n < max).then_some(n + 1);
        counter(run).fetch_update(Relaxed, Relaxed, update).ok()?;
        Some(Self(Arc::clone(run), counter))
    }
}

impl<F: Fn(&ClusterRun) -> &AtomicU32> Drop for Counted<F> {
    fn drop(&mut self) {
        self.1(&self.0).fetch_sub(1, Relaxed);
    }
}

/// Right to have a request in flight, retries included.
#[derive(Debug)]
pub struct RequestPermit {
    run: Arc<ClusterRun>,
    high: bool,
    admitted: Option<Admitted>,
}

impl RequestPermit {
    /// Ends the request with what it says about the service.
    pub fn finish(mut self, outcome: Outcome, latency: Duration, now: Instant) {
        let Some(admitted) = self.admitted.take() else {
            return;
        };
        let mut breaker = self
            .run
            .breaker
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(breaker) = breaker.as_mut() {
            match outcome {
                Outcome::Neutral => breaker.forget(admitted),
                other => breaker.record(admitted, other != Outcome::Success, latency, now),
            }
        }
    }
}

impl Drop for RequestPermit {
    fn drop(&mut self) {
        let [default, high] = &self.run.active;
        let counter = if self.high { high } else { default };
        counter.fetch_sub(1, Relaxed);
        if let Some(admitted) = self.admitted {
            let mut breaker = self
                .run
                .breaker
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if let Some(breaker) = breaker.as_mut() {
                breaker.forget(admitted);
            }
        }
    }
}

/// Right to have a connection open.
#[derive(Debug)]
pub struct ConnectionPermit(#[expect(dead_code, reason = "held, not read")] Slot);
/// Right to wait for a connection.
#[derive(Debug)]
pub struct PendingPermit(#[expect(dead_code, reason = "held, not read")] Slot);
/// Right to a retry, from the decision to wait for it until it ends.
#[derive(Debug)]
pub struct RetryPermit(#[expect(dead_code, reason = "held, not read")] Slot);

type Slot = Counted<fn(&ClusterRun) -> &AtomicU32>;

/// An endpoint that was chosen; it counts as having the request in flight until this is dropped.
#[derive(Debug)]
pub struct Picked {
    pub endpoint: Arc<EndpointState>,
    cluster: Arc<ClusterHandle>,
}

impl Picked {
    /// Ends the try with what it says about the endpoint.
    pub fn record(self, outcome: Outcome, latency: Duration, now: Instant) {
        let decay = self.cluster.decay();
        self.endpoint.learn(outcome, latency, decay, now);
        self.cluster.judge(&self.endpoint, outcome, now);
    }
}

impl Drop for Picked {
    fn drop(&mut self) {
        self.endpoint.run.in_flight.fetch_sub(1, Relaxed);
    }
}

impl ClusterHandle {
    pub(super) fn new(
        config: Arc<Cluster>,
        source: Arc<Endpoints>,
        run: Arc<ClusterRun>,
        members: Vec<Vec<Arc<EndpointState>>>,
        ids: Arc<AtomicU64>,
        now: Instant,
    ) -> Arc<Self> {
        {
            let mut breaker = run.breaker.lock().unwrap_or_else(PoisonError::into_inner);
            let same = breaker.as_ref().map(Breaker::settings) == config.breaker.as_ref();
            if !same {
                *breaker = config.breaker.map(Breaker::new);
            }
        }
        let this = Arc::new(Self {
            config,
            source,
            run,
            members,
            eligible: ArcSwap::default(),
            ids,
        });
        this.refresh(now);
        this
    }

    pub(super) fn decay(&self) -> Duration {
        match self.config.balancing {
            Balancing::PeakEwma { decay, .. } => decay,
            _ => Duration::from_secs(10),
        }
    }

    fn limits(&self, high: bool) -> &Limits {
        if high {
            &self.config.high_priority_limits
        } else {
            &self.config.limits
        }
    }

    /// Makes the list of members to choose from anew.
    pub(super) fn refresh(&self, now: Instant) {
        self.eligible.store(Arc::new(Eligible::new(
            &self.members,
            self.config.balancing,
            self.source.overprovisioning,
            self.config.panic_threshold,
            now,
        )));
    }

    /// Admits a request past breaker and limit.
    ///
    /// # Errors
    /// `BreakerOpen` or `OverflowRequests`.
    pub fn admit(
        &self,
        high: bool,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Result<RequestPermit, Fault> {
        let totals = &self.run.totals;
        let mut admitted = None;
        if self.config.breaker.is_some() {
            let mut breaker = self
                .run
                .breaker
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if let Some(breaker) = breaker.as_mut() {
                admitted = breaker.admit(now, rng.random());
                if admitted.is_none() {
                    totals.breaker_rejected.fetch_add(1, Relaxed);
                    return Err(Fault::BreakerOpen);
                }
            }
        }
        let max = self.limits(high).max_requests;
        let [default, urgent] = &self.run.active;
        let counter = if high { urgent } else { default };
        let update = |n: u32| (n < max).then_some(n + 1);
        if counter.fetch_update(Relaxed, Relaxed, update).is_err() {
            totals.over_requests.fetch_add(1, Relaxed);
            if let Some(admitted) = admitted {
                let mut breaker = self
                    .run
                    .breaker
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                if let Some(breaker) = breaker.as_mut() {
                    breaker.forget(admitted);
                }
            }
            return Err(Fault::OverflowRequests);
        }
        totals.requests.fetch_add(1, Relaxed);
        Ok(RequestPermit {
            run: Arc::clone(&self.run),
            high,
            admitted,
        })
    }

    /// One more connection.
    ///
    /// # Errors
    /// `OverflowConnections`.
    pub fn connection(&self, high: bool) -> Result<ConnectionPermit, Fault> {
        let counter: fn(&ClusterRun) -> &AtomicU32 = if high {
            |run| &run.connections[1]
        } else {
            |run| &run.connections[0]
        };
        let totals = &self.run.totals;
        match Slot::take(&self.run, self.limits(high).max_connections, counter) {
            Some(slot) => {
                totals.connections.fetch_add(1, Relaxed);
                Ok(ConnectionPermit(slot))
            }
            None => {
                totals.over_connections.fetch_add(1, Relaxed);
                Err(Fault::OverflowConnections)
            }
        }
    }

    /// One more request that waits for a connection.
    ///
    /// # Errors
    /// `OverflowPending`.
    pub fn pending(&self, high: bool) -> Result<PendingPermit, Fault> {
        let counter: fn(&ClusterRun) -> &AtomicU32 = if high {
            |run| &run.pending[1]
        } else {
            |run| &run.pending[0]
        };
        Slot::take(&self.run, self.limits(high).max_pending, counter)
            .map(PendingPermit)
            .ok_or_else(|| {
                self.run.totals.over_pending.fetch_add(1, Relaxed);
                Fault::OverflowPending
            })
    }

    /// One more retry, if the budget has one: a share of the requests in flight, those that wait
    /// for their retry included (RT-04), and always a few.
    #[must_use]
    pub fn retry(&self) -> Option<RetryPermit> {
        let limits = &self.config.limits;
        let budget = limits.retry_budget;
        let active: u32 = self.run.active.iter().map(|n| n.load(Relaxed)).sum();
        let share = u64::from(active) * u64::from(budget.percent) / 100;
        let max = u32::try_from(share)
            .unwrap_or(u32::MAX)
            .max(budget.min_concurrency)
            .min(limits.max_retries);
        let slot = Slot::take(&self.run, max, |run| &run.retries);
        let totals = &self.run.totals;
        if slot.is_some() {
            totals.retries.fetch_add(1, Relaxed);
        } else {
            totals.over_retries.fetch_add(1, Relaxed);
        }
        slot.map(RetryPermit)
    }

    /// Chooses an endpoint.
    ///
    /// # Errors
    /// `NoEndpoints` or `NoHealthyEndpoint`.
    pub fn pick(self: &Arc<Self>, cx: &PickCx<'_>, rng: &mut impl Rng) -> Result<Picked, Fault> {
        let endpoint = if self.config.discovery == Discovery::OriginalDst {
            let address = cx.original_dst.ok_or(Fault::NoEndpoints)?;
            self.original_dst(address, cx.now)
        } else {
            let mut eligible = self.eligible.load();
            if eligible.until.is_some_and(|until| until <= cx.now) {
                self.refresh(cx.now);
                eligible = self.eligible.load();
            }
            eligible.pick(cx, self.config.balancing, &self.run.turn, rng)?
        };
        endpoint.run.in_flight.fetch_add(1, Relaxed);
        Ok(Picked {
            endpoint,
            cluster: Arc::clone(self),
        })
    }

    /// The member that an original destination is.
    fn original_dst(&self, address: SocketAddr, now: Instant) -> Arc<EndpointState> {
        let mut known = self
            .run
            .original_dst
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some((member, used)) = known.get_mut(&address) {
            *used = now;
            return Arc::clone(member);
        }
        if known.len() >= MAX_ORIGINAL_DST
            && let Some(oldest) = known.iter().min_by_key(|(_, (_, used))| *used)
        {
            let oldest = *oldest.0;
            if let Some((gone, _)) = known.remove(&oldest) {
                gone.run.removed.store(true, Relaxed);
            }
        }
        let config = Arc::new(Endpoint {
            address,
            health: HealthStatus::Healthy,
            weight: 1,
            hostname: None,
            health_check_address: None,
            transport_match: Vec::new(),
            hash_key: None,
            workload: None,
        });
        let id = self.ids.fetch_add(1, Relaxed);
        let member = Arc::new(EndpointState {
            id,
            tls: self.config.tls.of(&config).cloned(),
            config,
            run: Runtime::new(id, self.run.base, Duration::ZERO),
        });
        known.insert(address, (Arc::clone(&member), now));
        member
    }

    /// Passive ejection by consecutive failures (Envoy outlier detection). The limit on how many
    /// may be ejected is an upper bound, the single-endpoint case included (RT-09).
    fn judge(&self, endpoint: &EndpointState, outcome: Outcome, now: Instant) {
        let Some(outlier) = &self.config.outlier else {
            return;
        };
        let run = &endpoint.run;
        let reached = |counter: &AtomicU32, counts: bool, limit: Option<u32>| {
            if !counts {
                return false;
            }
            let n = counter.fetch_add(1, Relaxed) + 1;
            limit.is_some_and(|limit| n >= limit)
        };
        let (local, gateway, server) = match outcome {
            Outcome::Success => {
                run.consecutive_5xx.store(0, Relaxed);
                run.consecutive_gateway.store(0, Relaxed);
                run.consecutive_local.store(0, Relaxed);
                return;
            }
            Outcome::Neutral => return,
            Outcome::ServerError => (false, false, true),
            Outcome::GatewayError => (false, true, true),
            Outcome::ConnectFailed | Outcome::Timeout | Outcome::Reset => {
                (true, !outlier.split_local, !outlier.split_local)
            }
        };
        let local_limit = outlier
            .split_local
            .then_some(outlier.consecutive_local)
            .flatten();
        let out = [
            reached(&run.consecutive_local, local, local_limit),
            reached(
                &run.consecutive_gateway,
                gateway,
                outlier.consecutive_gateway,
            ),
            reached(&run.consecutive_5xx, server, outlier.consecutive_5xx),
        ];
        if out.contains(&true) && run.ejected_at(now).is_none() {
            self.eject(endpoint, now);
        }
    }

    fn eject(&self, endpoint: &EndpointState, now: Instant) {
        let Some(outlier) = &self.config.outlier else {
            return;
        };
        let all = self.members.iter().flatten();
        let ejected = all
            .clone()
            .filter(|m| m.run.ejected_at(now).is_some())
            .count();
        let allowed = all.count() * outlier.max_ejection_percent.min(100) as usize / 100;
        let allowed = if outlier.always_eject_one {
            allowed.max(1)
        } else {
            allowed
        };
        if ejected >= allowed {
            return;
        }
        let run = &endpoint.run;
        let times = run.ejections.fetch_add(1, Relaxed) + 1;
        let length = outlier
            .base_ejection
            .saturating_mul(times)
            .min(outlier.max_ejection.max(outlier.base_ejection));
        run.eject_until(now + length);
        run.consecutive_5xx.store(0, Relaxed);
        run.consecutive_gateway.store(0, Relaxed);
        run.consecutive_local.store(0, Relaxed);
        self.run.totals.ejections.fetch_add(1, Relaxed);
        tracing::info!(
            cluster = %self.config.name,
            endpoint = %endpoint.config.address,
            seconds = length.as_secs_f64(),
            "endpoint ejected"
        );
        self.refresh(now);
    }

    /// Lets ejection times shrink again for members that behave; call once an outlier interval.
    pub fn sweep(&self, now: Instant) {
        for member in self.members.iter().flatten() {
            if member.run.ejected_at(now).is_none() {
                let update = |n: u32| n.checked_sub(1);
                // None left to take off is fine.
                let _before = member.run.ejections.fetch_update(Relaxed, Relaxed, update);
            }
        }
    }

    /// Numbers as they are now.
    #[must_use]
    pub fn stats(&self, now: Instant) -> ClusterStats {
        let sum = |pair: &[AtomicU32; 2]| pair.iter().map(|n| n.load(Relaxed)).sum();
        let total = |n: &AtomicU64| n.load(Relaxed);
        let run = &self.run;
        let all = self.members.iter().flatten();
        let breaker = run.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        ClusterStats {
            active_requests: sum(&run.active),
            active_connections: sum(&run.connections),
            pending: sum(&run.pending),
            retries_now: run.retries.load(Relaxed),
            requests: total(&run.totals.requests),
            connections: total(&run.totals.connections),
            retries: total(&run.totals.retries),
            over_requests: total(&run.totals.over_requests),
            over_connections: total(&run.totals.over_connections),
            over_pending: total(&run.totals.over_pending),
            over_retries: total(&run.totals.over_retries),
            breaker: breaker.as_ref().map(|b| (b.state(), b.transitions())),
            breaker_rejected: total(&run.totals.breaker_rejected),
            ejections: total(&run.totals.ejections),
            endpoints: all.clone().count(),
            healthy: all.filter(|m| m.is_available(now)).count(),
        }
    }

    /// Each member as it is now.
    #[must_use]
    pub fn endpoints(&self, now: Instant) -> Vec<EndpointView> {
        let decay = self.decay();
        let members = self.members.iter().flatten();
        members.map(|m| m.view(decay, now)).collect()
    }
}

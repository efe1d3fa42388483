//! A cluster at work: its limits, its breaker, its members.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicU32, AtomicU64, AtomicUsize,
            Ordering::{Acquire, Relaxed},
        },
    },
    time::Duration,
};

use arc_swap::{ArcSwap, Guard};
use rand::{Rng, RngExt};
use tokio::time::Instant;

use super::{
    Outcome,
    breaker::{Admitted, Breaker, BreakerState},
    budget::Budget,
    endpoint::{EndpointState, EndpointView, Runtime},
    outlier::EjectionReason,
    pick::{Eligible, How, PickCx, Rules},
};
use crate::{
    config::{
        Cluster,
        cluster::{Balancing, Discovery, Limits},
        endpoint::{Endpoint, Endpoints, HealthStatus, Locality},
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
    budget: Budget,
    turn: AtomicUsize,
    breaker: Mutex<Option<Breaker>>,
    pub(super) totals: Totals,
    /// Grows whenever the health of a member changes, so that every list made before is known to
    /// be out of date, also by handles that are newer than the one that noticed.
    pub(super) version: AtomicU64,
    /// Those who are members now. Held while deciding about an ejection, so that two workers
    /// together do not eject more than is allowed.
    pub(super) roster: Mutex<Vec<Arc<Runtime>>>,
    original_dst: Mutex<OriginalDst>,
}

#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) requests: AtomicU64,
    pub(super) connections: AtomicU64,
    retries: AtomicU64,
    over_requests: AtomicU64,
    over_connections: AtomicU64,
    over_pending: AtomicU64,
    over_retries: AtomicU64,
    breaker_rejected: AtomicU64,
    dropped: AtomicU64,
    pub(super) ejections: [AtomicU64; EjectionReason::ALL.len()],
    pub(super) checks: AtomicU64,
    pub(super) checks_failed: AtomicU64,
}

/// A cluster in use. A change of configuration makes a new one that shares what was learned.
#[derive(Debug)]
pub struct ClusterHandle {
    pub config: Arc<Cluster>,
    pub(super) source: Arc<Endpoints>,
    pub(super) run: Arc<ClusterRun>,
    pub(super) members: Vec<Vec<Arc<EndpointState>>>,
    eligible: ArcSwap<Eligible>,
    /// Held by the one who makes `eligible` anew.
    renewing: Mutex<()>,
    /// Where this proxy runs, for zone-aware balancing.
    home: Arc<Locality>,
    /// Of an aggregate: the clusters it is made of, first choice first.
    pub(super) parts: Vec<Arc<Self>>,
    ids: Arc<AtomicU64>,
}

/// What a handle is made of.
#[derive(Debug)]
pub(super) struct Makings {
    pub(super) config: Arc<Cluster>,
    pub(super) source: Arc<Endpoints>,
    pub(super) run: Arc<ClusterRun>,
    pub(super) members: Vec<Vec<Arc<EndpointState>>>,
    pub(super) parts: Vec<Arc<ClusterHandle>>,
    pub(super) home: Arc<Locality>,
    pub(super) ids: Arc<AtomicU64>,
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
    /// Dropped on purpose because the control plane said so (`drop_overloads`).
    pub dropped: u64,
    pub ejections: u64,
    /// In the order of [`EjectionReason::ALL`].
    pub ejections_by_reason: [u64; EjectionReason::ALL.len()],
    pub checks: u64,
    pub checks_failed: u64,
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
            budget: Budget::new(base),
            turn: AtomicUsize::new(0),
            breaker: Mutex::new(None),
            totals: Totals::default(),
            version: AtomicU64::new(0),
            roster: Mutex::default(),
            original_dst: Mutex::default(),
        })
    }

    fn breaker(&self) -> MutexGuard<'_, Option<Breaker>> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
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
        let mut breaker = self.run.breaker();
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
            let mut breaker = self.run.breaker();
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
    /// One that counts as in flight already.
    #[cfg(test)]
    pub(super) const fn for_tests(
        endpoint: Arc<EndpointState>,
        cluster: Arc<ClusterHandle>,
    ) -> Self {
        Self { endpoint, cluster }
    }

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
    pub(super) fn new(makings: Makings, now: Instant) -> Arc<Self> {
        let Makings {
            config,
            source,
            run,
            members,
            parts,
            home,
            ids,
        } = makings;
        {
            let mut breaker = run.breaker();
            let same = breaker.as_ref().map(Breaker::settings) == config.breaker.as_ref();
            if !same {
                *breaker = config.breaker.map(Breaker::new);
            }
        }
        {
            let mut roster = run.roster.lock().unwrap_or_else(PoisonError::into_inner);
            *roster = members.iter().flatten().map(|m| m.run.clone()).collect();
        }
        let this = Self {
            config,
            source,
            run,
            members,
            eligible: ArcSwap::default(),
            renewing: Mutex::new(()),
            home,
            parts,
            ids,
        };
        this.eligible.store(this.make_eligible(now));
        Arc::new(this)
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

    fn make_eligible(&self, now: Instant) -> Arc<Eligible> {
        // Read first: a change that comes while the list is made makes it out of date at once.
        let version = self.run.version.load(Acquire);
        let rules = Rules {
            balancing: self.config.balancing,
            locality: self.config.locality,
            panic_threshold: self.config.panic_threshold,
            home: &self.home,
        };
        Arc::new(Eligible::new(
            &self.members,
            &self.source,
            &rules,
            version,
            now,
        ))
    }

    /// The list of members to choose from. When somebody's health changed or an ejection ended,
    /// one caller makes it anew; the others go on with the old one for those microseconds.
    fn eligible(&self, now: Instant) -> Guard<Arc<Eligible>> {
        let eligible = self.eligible.load();
        if eligible.is_current(self.run.version.load(Relaxed), now) {
            return eligible;
        }
        let Ok(_one) = self.renewing.try_lock() else {
            return eligible;
        };
        self.eligible.store(self.make_eligible(now));
        self.eligible.load()
    }

    /// The cluster that takes requests now: this one, or, of an aggregate, the first of its parts
    /// that has an endpoint to use (gRFC A37), or the first when none has. Limits, breaker and
    /// protocol are those of the part, as in Envoy.
    #[must_use]
    pub fn resolve(self: &Arc<Self>, now: Instant) -> Arc<Self> {
        let mut parts = self.parts.iter();
        match parts
            .find(|part| part.is_usable(now))
            .or_else(|| self.parts.first())
        {
            // Parts of a part were laid out flat when this was made.
            Some(part) => Arc::clone(part),
            None => Arc::clone(self),
        }
    }

    fn is_usable(&self, now: Instant) -> bool {
        self.config.discovery == Discovery::OriginalDst || self.eligible(now).is_usable()
    }

    /// Admits a request past load shedding, breaker and limit.
    ///
    /// # Errors
    /// `DropOverload`, `BreakerOpen` or `OverflowRequests`.
    pub fn admit(
        &self,
        high: bool,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Result<RequestPermit, Fault> {
        let totals = &self.run.totals;
        for (_category, share) in &self.source.drops {
            if share.hits(rng) {
                totals.dropped.fetch_add(1, Relaxed);
                return Err(Fault::DropOverload);
            }
        }
        let mut admitted = None;
        if self.config.breaker.is_some() {
            let mut breaker = self.run.breaker();
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
                let mut breaker = self.run.breaker();
                if let Some(breaker) = breaker.as_mut() {
                    breaker.forget(admitted);
                }
            }
            return Err(Fault::OverflowRequests);
        }
        totals.requests.fetch_add(1, Relaxed);
        self.run
            .budget
            .request(&self.config.limits.retry_budget, now);
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
        let slot = Slot::take(&self.run, self.limits(high).max_connections, counter);
        let slot = slot.ok_or(Fault::OverflowConnections)?;
        self.run.totals.connections.fetch_add(1, Relaxed);
        Ok(ConnectionPermit(slot))
    }

    /// Counts a request or a connection that found the limit of connections reached. Apart from
    /// [`Self::connection`], which whoever waits asks many times.
    pub fn connections_overflowed(&self) {
        self.run.totals.over_connections.fetch_add(1, Relaxed);
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
    /// for their retry included, and of those of the last interval (RT-04); and always a few.
    #[must_use]
    pub fn retry(&self, now: Instant) -> Option<RetryPermit> {
        let limits = &self.config.limits;
        let budget = limits.retry_budget;
        let active: u32 = self.run.active.iter().map(|n| n.load(Relaxed)).sum();
        let share = u64::from(active) * u64::from(budget.percent) / 100;
        let max = u32::try_from(share)
            .unwrap_or(u32::MAX)
            .max(budget.min_concurrency)
            .min(limits.max_retries);
        let take = || Slot::take(&self.run, max, |run| &run.retries);
        let slot = self.run.budget.retry(&budget, now, take);
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
        if !self.parts.is_empty() {
            return self.resolve(cx.now).pick(cx, rng);
        }
        let endpoint = if self.config.discovery == Discovery::OriginalDst {
            let address = cx.original_dst.ok_or(Fault::NoEndpoints)?;
            self.original_dst(address, cx.now)
        } else {
            let how = How {
                balancing: self.config.balancing,
                slow_start: self.config.slow_start.as_ref(),
                turn: &self.run.turn,
            };
            self.eligible(cx.now).pick(cx, &how, rng)?
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
                gone.run.remove();
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
            run: Runtime::new(id, self.run.base, Duration::ZERO, now),
        });
        known.insert(address, (Arc::clone(&member), now));
        member
    }

    /// How many endpoints there are, whether they may be chosen or not.
    #[must_use]
    pub fn endpoint_count(&self) -> usize {
        self.members.iter().map(Vec::len).sum()
    }

    /// Numbers as they are now.
    #[must_use]
    pub fn stats(&self, now: Instant) -> ClusterStats {
        let sum = |pair: &[AtomicU32; 2]| pair.iter().map(|n| n.load(Relaxed)).sum();
        let total = |n: &AtomicU64| n.load(Relaxed);
        let run = &self.run;
        let ejections = run.totals.ejections.each_ref().map(total);
        let all = self.members.iter().flatten();
        let breaker = run.breaker();
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
            dropped: total(&run.totals.dropped),
            ejections: ejections.iter().sum(),
            ejections_by_reason: ejections,
            checks: total(&run.totals.checks),
            checks_failed: total(&run.totals.checks_failed),
            endpoints: self.endpoint_count(),
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

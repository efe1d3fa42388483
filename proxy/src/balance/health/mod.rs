//! Active health checks: every member of a cluster that asks for them is looked at again and again,
//! on the control thread, whether requests flow or not.
//!
//! A member may be used until its first check says otherwise, and that first check comes at once,
//! so that a cold proxy with a waiting request neither waits for an interval nor answers "no
//! healthy endpoint" (HC-06). The first check decides by itself; after it the thresholds do. Every
//! check has a connection of its own: it proves that new ones are accepted, and what an old one has
//! seen cannot hide a failure (HC-01).

mod probe;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    future::Future,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{sync::Semaphore, task::AbortHandle, time::Instant};

use super::{
    Live,
    cluster::{ClusterHandle, ClusterRun},
    endpoint::{Checked, EndpointState},
};
use crate::{
    config::{Cluster, ClusterName, cluster::HealthCheck, tls::ClientTls},
    net::BoxIo,
};
use probe::Verdict;
pub(crate) use probe::{grpc_serving, http1_head};

/// Checks under way at once: more would only be handshakes that queue for the one control thread.
const MAX_AT_ONCE: usize = 64;

/// What a check is going to speak, which decides what its TLS handshake offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    Http1,
    Http2,
    Opaque,
}

/// Makes the connections that checks are made on.
pub trait Dial: Send + Sync + 'static {
    /// A connection to `address` with the TLS settings of `endpoint`. The caller limits its time.
    ///
    /// # Errors
    /// Whatever keeps it from being made, the handshake and a wrong identity included.
    fn dial(
        &self,
        endpoint: &EndpointState,
        address: SocketAddr,
        speaks: Speaks,
    ) -> impl Future<Output = io::Result<BoxIo>> + Send;
}

/// Runs the checks that the configuration in force asks for.
#[derive(Debug)]
pub struct Checkers<D> {
    dial: Arc<D>,
    rng: StdRng,
    gate: Arc<Semaphore>,
    /// By the endpoint's id, which no other endpoint of any cluster has.
    tasks: HashMap<u64, Running>,
}

/// The checks of one member. Dropping it ends them.
#[derive(Debug)]
struct Running {
    check: HealthCheck,
    tls: Option<Arc<ClientTls>>,
    address: SocketAddr,
    subject: Arc<Subject>,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Who is checked, and what is known so far.
#[derive(Debug)]
struct Subject {
    cluster: ClusterName,
    run: Arc<ClusterRun>,
    endpoint: Arc<EndpointState>,
    /// Connections end when it fails.
    close: bool,
    machine: Mutex<Machine>,
}

impl<D: Dial> Checkers<D> {
    /// Nobody is checked yet.
    #[must_use]
    pub fn new(dial: D, rng: StdRng) -> Self {
        Self {
            dial: Arc::new(dial),
            rng,
            gate: Arc::new(Semaphore::new(MAX_AT_ONCE)),
            tasks: HashMap::new(),
        }
    }

    /// Starts and ends checks as `live` asks for. Those that nothing changed for go on undisturbed.
    /// Has to be called within a runtime. A cluster has one check, as in Envoy; others are not run.
    pub fn update(&mut self, live: &Live) {
        let mut before = std::mem::take(&mut self.tasks);
        for cluster in live.clusters.values() {
            let Some(check) = cluster.config.health_checks.first() else {
                continue;
            };
            for member in cluster.members.iter().flatten() {
                let known = before.remove(&member.id);
                let running = match known {
                    Some(running) if running.is_for(member, check, &cluster.config) => running,
                    known => self.start(cluster, member, check, known.as_ref()),
                };
                self.tasks.insert(member.id, running);
            }
        }
        // What is left is no member any more, or is not checked any more: then nothing speaks
        // against it.
        for gone in before.into_values() {
            gone.subject.set(Checked::Passing, Instant::now());
        }
    }

    fn start(
        &mut self,
        cluster: &ClusterHandle,
        member: &Arc<EndpointState>,
        check: &HealthCheck,
        before: Option<&Running>,
    ) -> Running {
        // What was learned goes on to count when only the settings change.
        let known = before.map(|running| running.subject.machine());
        let subject = Arc::new(Subject {
            cluster: cluster.config.name.clone(),
            run: Arc::clone(&cluster.run),
            endpoint: Arc::clone(member),
            close: cluster.config.close_on_health_failure,
            machine: Mutex::new(known.unwrap_or_default()),
        });
        let watch = watch(
            Arc::clone(&subject),
            check.clone(),
            Arc::clone(&self.dial),
            Arc::clone(&self.gate),
            StdRng::seed_from_u64(self.rng.random()),
        );
        Running {
            check: check.clone(),
            tls: member.tls.clone(),
            address: address(member),
            subject,
            task: tokio::spawn(watch).abort_handle(),
        }
    }
}

impl Running {
    fn is_for(&self, member: &EndpointState, check: &HealthCheck, of: &Cluster) -> bool {
        let same_tls = match (&self.tls, &member.tls) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        same_tls
            && self.address == address(member)
            && self.check == *check
            && self.subject.close == of.close_on_health_failure
    }
}

fn address(member: &EndpointState) -> SocketAddr {
    let own = member.config.health_check_address;
    own.unwrap_or(member.config.address)
}

async fn watch<D: Dial>(
    subject: Arc<Subject>,
    check: HealthCheck,
    dial: Arc<D>,
    gate: Arc<Semaphore>,
    mut rng: StdRng,
) {
    loop {
        let traffic = subject.traffic();
        let verdict = {
            // The semaphore is never closed; without a permit the check is as good.
            let _permit = gate.acquire().await;
            probe::probe(&*dial, &subject, &check).await
        };
        subject.note(&verdict, &check, Instant::now());
        rest(&subject, &check, traffic, &mut rng).await;
    }
}

/// The pause between two checks. The longer one of a cluster without traffic ends within one
/// ordinary interval of the first request (HC-02).
async fn rest(subject: &Subject, check: &HealthCheck, traffic: u64, rng: &mut StdRng) {
    let jitter = check.jitter.mul_f64(rng.random::<f64>());
    let step = check.interval + jitter;
    tokio::time::sleep(step).await;
    let Some(longest) = check.no_traffic_interval else {
        return;
    };
    let mut rested = step;
    while rested < longest + jitter && subject.traffic() == traffic {
        let more = step.min((longest + jitter).saturating_sub(rested));
        tokio::time::sleep(more).await;
        rested += more.max(Duration::from_millis(1));
    }
}

impl Subject {
    fn machine(&self) -> Machine {
        *self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Grows with what is sent to the cluster.
    fn traffic(&self) -> u64 {
        let totals = &self.run.totals;
        let requests = totals.requests.load(Ordering::Relaxed);
        requests.wrapping_add(totals.connections.load(Ordering::Relaxed))
    }

    fn note(&self, verdict: &Verdict, check: &HealthCheck, now: Instant) {
        self.run.totals.checks.fetch_add(1, Ordering::Relaxed);
        if *verdict != Verdict::Passed {
            self.run
                .totals
                .checks_failed
                .fetch_add(1, Ordering::Relaxed);
        }
        let state = {
            let mut machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner);
            machine.observe(verdict, check);
            machine.state
        };
        if self.set(state, now) {
            tracing::info!(
                cluster = %self.cluster,
                endpoint = %self.endpoint.config.address,
                now = ?state,
                because = ?verdict,
                "health check changed its mind"
            );
        }
    }

    /// Makes it known to whoever picks; whether that is a change.
    fn set(&self, state: Checked, now: Instant) -> bool {
        let changed = self.endpoint.run.set_checked(state, now);
        if changed {
            if self.close && state == Checked::Failing {
                self.endpoint.run.disconnect();
            }
            self.run.version.fetch_add(1, Ordering::Release);
        }
        changed
    }
}

/// What follows from a series of checks (Envoy's rules).
#[derive(Clone, Copy, Debug)]
struct Machine {
    state: Checked,
    /// Whether there was a check at all.
    decided: bool,
    /// Checks in a row that speak against `state`.
    against: u32,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            state: Checked::Passing,
            decided: false,
            against: 0,
        }
    }
}

impl Machine {
    fn observe(&mut self, verdict: &Verdict, check: &HealthCheck) {
        let (to, needed) = match verdict {
            Verdict::Passed => (Checked::Passing, check.healthy_threshold),
            Verdict::Failed(_) => (Checked::Failing, check.unhealthy_threshold),
            // It answered and said no: that is no accident, so no threshold (Envoy).
            Verdict::Refused(_) => (Checked::Failing, 1),
            Verdict::Leaving => (Checked::Leaving, 1),
        };
        // One that is leaving and then does not answer has left; that is still no failure.
        let agrees = to == self.state || (self.state, to) == (Checked::Leaving, Checked::Failing);
        if agrees {
            self.against = 0;
        } else {
            self.against += 1;
            if !self.decided || self.against >= needed {
                self.state = to;
                self.against = 0;
            }
        }
        self.decided = true;
    }
}

//! Passive ejection: members that answer badly are left out for a while (Envoy outlier detection,
//! gRFC A50). Consecutive failures act at once; rates are judged by a sweep once an interval.

use std::sync::{
    Arc, PoisonError,
    atomic::{
        AtomicU32,
        Ordering::{Relaxed, Release},
    },
};

use tokio::time::Instant;

use super::{
    ClusterHandle, Outcome,
    endpoint::{EndpointState, Runtime},
};
use crate::config::cluster::{FailurePercentage, Outlier, SuccessRate};

/// Why a member was ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EjectionReason {
    Consecutive5xx,
    ConsecutiveGateway,
    /// Failures that this proxy saw itself: refused, reset, timed out.
    ConsecutiveLocal,
    /// Far below the mean of the others.
    SuccessRate,
    FailurePercentage,
}

impl EjectionReason {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Consecutive5xx,
        Self::ConsecutiveGateway,
        Self::ConsecutiveLocal,
        Self::SuccessRate,
        Self::FailurePercentage,
    ];

    /// As shown in metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Consecutive5xx => "consecutive_5xx",
            Self::ConsecutiveGateway => "consecutive_gateway_failure",
            Self::ConsecutiveLocal => "consecutive_local_origin_failure",
            Self::SuccessRate => "success_rate",
            Self::FailurePercentage => "failure_percentage",
        }
    }
}

/// What one member did since the last sweep.
struct Tally<'a> {
    member: &'a EndpointState,
    answered: u32,
    failed: u32,
}

impl Tally<'_> {
    /// In percent.
    fn success_rate(&self) -> f64 {
        100.0 - self.failure_rate()
    }

    fn failure_rate(&self) -> f64 {
        f64::from(self.failed) * 100.0 / f64::from(self.answered.max(1))
    }
}

impl ClusterHandle {
    /// Takes note of how a try ended and ejects the endpoint when that completes a streak.
    pub(super) fn judge(&self, endpoint: &EndpointState, outcome: Outcome, now: Instant) {
        let Some(outlier) = &self.config.outlier else {
            return;
        };
        let run = &endpoint.run;
        let local = matches!(
            outcome,
            Outcome::ConnectFailed | Outcome::Timeout | Outcome::Reset
        );
        if outcome == Outcome::Neutral {
            return;
        }
        if !(local && outlier.split_local) {
            run.answered.fetch_add(1, Relaxed);
            run.failed
                .fetch_add(u32::from(outcome != Outcome::Success), Relaxed);
        }
        if let Some(reason) = streak(run, outlier, outcome)
            && run.ejected_at(now).is_none()
        {
            self.eject(endpoint, reason, now);
        }
    }

    /// Ejects a member unless that would be more than allowed. `max_ejection_percent` is an upper
    /// bound, where Envoy lets the last ejection pass it (RT-09); only `always_eject_one` allows
    /// one ejection where the percentage allows none.
    fn eject(&self, endpoint: &EndpointState, reason: EjectionReason, now: Instant) {
        let Some(outlier) = &self.config.outlier else {
            return;
        };
        let run = &endpoint.run;
        // Held until the member counts as ejected: two workers must not both see room for one.
        let roster = self
            .run
            .roster
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let is_member = roster.iter().any(|member| Arc::ptr_eq(member, run));
        let ejected = roster.iter().filter(|m| m.ejected_at(now).is_some());
        let floor = usize::from(outlier.always_eject_one);
        let percent = outlier.max_ejection_percent.min(100) as usize;
        let allowed = (roster.len() * percent / 100).max(floor);
        if !is_member || run.ejected_at(now).is_some() || ejected.count() >= allowed {
            return;
        }
        let times = run.ejections.fetch_add(1, Relaxed) + 1;
        let length = outlier
            .base_ejection
            .saturating_mul(times)
            .min(outlier.max_ejection.max(outlier.base_ejection));
        run.eject_until(now + length);
        run.reset_streaks();
        self.run.version.fetch_add(1, Release);
        drop(roster);
        if let Some(total) = self.run.totals.ejections.get(reason as usize) {
            total.fetch_add(1, Relaxed);
        }
        tracing::info!(
            cluster = %self.config.name,
            endpoint = %endpoint.config.address,
            reason = reason.as_str(),
            seconds = length.as_secs_f64(),
            "endpoint ejected"
        );
    }

    /// Judges the rates of the interval that ends, and lets the ejection times of members that
    /// behave shrink again. Call once an outlier interval.
    pub fn sweep(&self, now: Instant) {
        let Some(outlier) = &self.config.outlier else {
            return;
        };
        let members = || self.members.iter().flatten();
        for member in members().filter(|m| m.run.ejected_at(now).is_none()) {
            // None left to take off is fine.
            let less = |n: u32| n.checked_sub(1);
            let _before = member.run.ejections.fetch_update(Relaxed, Relaxed, less);
        }
        let tallies: Vec<_> = members()
            .map(|member| Tally {
                answered: member.run.answered.swap(0, Relaxed),
                failed: member.run.failed.swap(0, Relaxed),
                member,
            })
            .filter(|tally| tally.member.run.ejected_at(now).is_none())
            .collect();
        if let Some(rule) = &outlier.success_rate {
            self.judge_success_rates(rule, &tallies, now);
        }
        if let Some(rule) = &outlier.failure_percentage {
            self.judge_failure_percentages(rule, &tallies, now);
        }
    }

    fn judge_success_rates(&self, rule: &SuccessRate, tallies: &[Tally<'_>], now: Instant) {
        let counted = || tallies.iter().filter(|t| t.answered >= rule.request_volume);
        let hosts = counted().count();
        if hosts == 0 || hosts < rule.minimum_hosts as usize {
            return;
        }
        let n = f64::from(u32::try_from(hosts).unwrap_or(u32::MAX));
        let mean = counted().map(Tally::success_rate).sum::<f64>() / n;
        let off = |tally: &Tally<'_>| (tally.success_rate() - mean).powi(2);
        let deviation = (counted().map(off).sum::<f64>() / n).sqrt();
        let least = deviation.mul_add(-rule.stdev_factor, mean);
        for tally in counted().filter(|t| t.success_rate() < least) {
            self.eject(tally.member, EjectionReason::SuccessRate, now);
        }
    }

    fn judge_failure_percentages(
        &self,
        rule: &FailurePercentage,
        tallies: &[Tally<'_>],
        now: Instant,
    ) {
        let counted = || tallies.iter().filter(|t| t.answered >= rule.request_volume);
        if counted().count() < rule.minimum_hosts as usize {
            return;
        }
        let most = f64::from(rule.threshold);
        for tally in counted().filter(|t| t.failure_rate() >= most) {
            self.eject(tally.member, EjectionReason::FailurePercentage, now);
        }
    }
}

/// Counts an outcome towards the streaks; the reason, if one of them is complete. An answer of any
/// kind ends a streak of local failures, and one that is no gateway failure ends one of those.
fn streak(run: &Runtime, outlier: &Outlier, outcome: Outcome) -> Option<EjectionReason> {
    let grown = |counter: &AtomicU32, limit: Option<u32>| {
        let n = counter.fetch_add(1, Relaxed).saturating_add(1);
        limit.is_some_and(|limit| n >= limit)
    };
    let gateway = || grown(&run.consecutive_gateway, outlier.consecutive_gateway);
    let server = || grown(&run.consecutive_5xx, outlier.consecutive_5xx);
    let gateway_or_server = || match (gateway(), server()) {
        (true, _) => Some(EjectionReason::ConsecutiveGateway),
        (false, true) => Some(EjectionReason::Consecutive5xx),
        (false, false) => None,
    };
    match outcome {
        Outcome::Neutral => None,
        Outcome::Success => {
            run.reset_streaks();
            None
        }
        Outcome::ServerError => {
            run.consecutive_local.store(0, Relaxed);
            run.consecutive_gateway.store(0, Relaxed);
            server().then_some(EjectionReason::Consecutive5xx)
        }
        Outcome::GatewayError => {
            run.consecutive_local.store(0, Relaxed);
            gateway_or_server()
        }
        // Without the split they count as the 503 or 504 that they become.
        Outcome::ConnectFailed | Outcome::Timeout | Outcome::Reset if !outlier.split_local => {
            gateway_or_server()
        }
        Outcome::ConnectFailed | Outcome::Timeout | Outcome::Reset => {
            grown(&run.consecutive_local, outlier.consecutive_local)
                .then_some(EjectionReason::ConsecutiveLocal)
        }
    }
}

//! The circuit breaker of Hystrix and resilience4j: closed, open, half-open, by the share of failed
//! and of slow calls in a sliding window. No proxy has one; Envoy's "circuit breakers" are limits.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use crate::config::cluster::Breaker as Settings;

/// The window slides in so many steps.
const BUCKETS: u32 = 10;
/// The share admitted at the start of the ramp.
const RAMP_START: f64 = 0.1;

/// Where the breaker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    Closed,
    Open,
    HalfOpen,
    /// Closed again, letting a growing share through.
    Ramping,
}

impl BreakerState {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Closed, Self::Open, Self::HalfOpen, Self::Ramping];

    /// As shown in metrics and on the admin page.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
            Self::Ramping => "ramping",
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum State {
    Closed,
    Open {
        until: Instant,
    },
    HalfOpen {
        issued: u32,
        finished: u32,
        bad: u32,
        slow: u32,
    },
    Ramping {
        since: Instant,
    },
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    begin: Instant,
    calls: u32,
    failed: u32,
    slow: u32,
}

/// A call that was let through; what it was let through as decides how its end counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admitted {
    Normal,
    /// One of the probes of half-open round `n`.
    Probe(u64),
}

/// A breaker. Pure: it is told the time.
#[derive(Debug)]
pub(super) struct Breaker {
    settings: Settings,
    state: State,
    buckets: VecDeque<Bucket>,
    /// Counts half-open rounds, so that a late probe of an earlier one changes nothing.
    round: u64,
    transitions: u64,
}

impl Breaker {
    /// A closed breaker.
    #[must_use]
    pub(super) const fn new(settings: Settings) -> Self {
        Self {
            settings,
            state: State::Closed,
            buckets: VecDeque::new(),
            round: 0,
            transitions: 0,
        }
    }

    /// What it goes by.
    #[must_use]
    pub(super) const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Where it is.
    #[must_use]
    pub(super) const fn state(&self) -> BreakerState {
        match self.state {
            State::Closed => BreakerState::Closed,
            State::Open { .. } => BreakerState::Open,
            State::HalfOpen { .. } => BreakerState::HalfOpen,
            State::Ramping { .. } => BreakerState::Ramping,
        }
    }

    /// Changes of state so far.
    #[must_use]
    pub(super) const fn transitions(&self) -> u64 {
        self.transitions
    }

    fn go(&mut self, state: State) {
        self.state = state;
        self.transitions += 1;
    }

    /// Lets a call through, or not. `draw` is uniform in 0..1.
    pub(super) fn admit(&mut self, now: Instant, draw: f64) -> Option<Admitted> {
        if let State::Open { until } = self.state
            && now >= until
        {
            self.round += 1;
            self.go(State::HalfOpen {
                issued: 0,
                finished: 0,
                bad: 0,
                slow: 0,
            });
        }
        match &mut self.state {
            State::Closed => Some(Admitted::Normal),
            State::Open { .. } => None,
            State::HalfOpen { issued, .. } => (*issued < self.settings.probes).then(|| {
                *issued += 1;
                Admitted::Probe(self.round)
            }),
            State::Ramping { since } => {
                let ramp = self.settings.ramp.as_secs_f64();
                let done = now.duration_since(*since).as_secs_f64() / ramp.max(f64::MIN_POSITIVE);
                if done >= 1.0 {
                    self.go(State::Closed);
                    return Some(Admitted::Normal);
                }
                (draw < RAMP_START + (1.0 - RAMP_START) * done).then_some(Admitted::Normal)
            }
        }
    }

    /// A call ended with an outcome.
    pub(super) fn record(
        &mut self,
        admitted: Admitted,
        failed: bool,
        took: Duration,
        now: Instant,
    ) {
        let slow = took >= self.settings.slow_call && self.settings.slow_call_rate < 100.0;
        match (admitted, self.state) {
            (Admitted::Probe(round), State::HalfOpen { .. }) if round == self.round => {
                self.probe_ended(failed, slow, now);
            }
            (_, State::Closed | State::Ramping { .. }) => self.count(failed, slow, now),
            _ => {}
        }
    }

    /// A call ended without saying anything about the service (its client went away): a probe's
    /// place is given back, so that half-open cannot be wedged.
    pub(super) fn forget(&mut self, admitted: Admitted) {
        if let (Admitted::Probe(round), State::HalfOpen { issued, .. }) =
            (admitted, &mut self.state)
            && round == self.round
        {
            *issued = issued.saturating_sub(1);
        }
    }

    fn probe_ended(&mut self, failed: bool, slow_call: bool, now: Instant) {
        let probes = self.settings.probes;
        let State::HalfOpen {
            finished,
            bad,
            slow,
            ..
        } = &mut self.state
        else {
            return;
        };
        *finished += 1;
        *bad += u32::from(failed);
        *slow += u32::from(slow_call);
        let (finished, bad, slow) = (*finished, *bad, *slow);
        let over = |n: u32, rate: f64| f64::from(n) * 100.0 >= rate * f64::from(probes) && n > 0;
        if over(bad, self.settings.failure_rate) || over(slow, self.settings.slow_call_rate) {
            self.open(now);
        } else if finished >= probes {
            self.buckets.clear();
            if self.settings.ramp.is_zero() {
                self.go(State::Closed);
            } else {
                self.go(State::Ramping { since: now });
            }
        }
    }

    fn open(&mut self, now: Instant) {
        self.buckets.clear();
        self.go(State::Open {
            until: now + self.settings.open_for,
        });
    }

    fn count(&mut self, failed: bool, slow: bool, now: Instant) {
        let step = self.settings.window / BUCKETS;
        while self
            .buckets
            .front()
            .is_some_and(|b| now.duration_since(b.begin) >= self.settings.window)
        {
            self.buckets.pop_front();
        }
        let fresh = |b: &Bucket| now.duration_since(b.begin) < step;
        if !self.buckets.back().is_some_and(fresh) {
            self.buckets.push_back(Bucket {
                begin: now,
                calls: 0,
                failed: 0,
                slow: 0,
            });
        }
        if let Some(bucket) = self.buckets.back_mut() {
            bucket.calls += 1;
            bucket.failed += u32::from(failed);
            bucket.slow += u32::from(slow);
        }
        let (mut calls, mut bad, mut late) = (0_u32, 0_u32, 0_u32);
        for bucket in &self.buckets {
            calls += bucket.calls;
            bad += bucket.failed;
            late += bucket.slow;
        }
        let over = |n: u32, rate: f64| n > 0 && f64::from(n) * 100.0 >= rate * f64::from(calls);
        if calls >= self.settings.minimum_calls
            && (over(bad, self.settings.failure_rate) || over(late, self.settings.slow_call_rate))
        {
            self.open(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Settings = Settings {
        failure_rate: 50.0,
        slow_call_rate: 80.0,
        slow_call: Duration::from_millis(500),
        window: Duration::from_secs(10),
        minimum_calls: 10,
        open_for: Duration::from_secs(5),
        probes: 3,
        ramp: Duration::from_secs(10),
    };
    const FAST: Duration = Duration::from_millis(1);

    fn call(breaker: &mut Breaker, failed: bool, took: Duration, now: Instant) -> bool {
        let Some(admitted) = breaker.admit(now, 0.0) else {
            return false;
        };
        breaker.record(admitted, failed, took, now);
        true
    }

    #[tokio::test(start_paused = true)]
    async fn it_opens_at_the_failure_rate_and_not_before_the_minimum() {
        let mut breaker = Breaker::new(SETTINGS);
        let now = Instant::now();
        for n in 0..9 {
            assert!(call(&mut breaker, n % 2 == 0, FAST, now));
            assert_eq!(breaker.state(), BreakerState::Closed);
        }
        call(&mut breaker, true, FAST, now);
        assert_eq!(breaker.state(), BreakerState::Open);
        assert!(!call(&mut breaker, false, FAST, now));
    }

    #[tokio::test(start_paused = true)]
    async fn slow_calls_open_it_as_well() {
        let mut breaker = Breaker::new(SETTINGS);
        for _ in 0..10 {
            call(&mut breaker, false, Duration::from_secs(1), Instant::now());
        }
        assert_eq!(breaker.state(), BreakerState::Open);
    }

    #[tokio::test(start_paused = true)]
    async fn old_failures_leave_the_window() {
        let mut breaker = Breaker::new(SETTINGS);
        let now = Instant::now();
        for _ in 0..9 {
            call(&mut breaker, true, FAST, now);
        }
        let later = now + Duration::from_secs(11);
        for _ in 0..20 {
            call(&mut breaker, false, FAST, later);
        }
        assert_eq!(breaker.state(), BreakerState::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn probes_are_counted_and_decide() {
        let mut breaker = Breaker::new(SETTINGS);
        let now = Instant::now();
        for _ in 0..10 {
            call(&mut breaker, true, FAST, now);
        }
        let later = now + Duration::from_secs(5);
        let probes: Vec<_> = (0..5).filter_map(|_| breaker.admit(later, 0.0)).collect();
        assert_eq!((probes.len(), breaker.state()), (3, BreakerState::HalfOpen));
        for probe in probes {
            breaker.record(probe, false, FAST, later);
        }
        assert_eq!(breaker.state(), BreakerState::Ramping);
        assert!(breaker.admit(later, 0.5).is_none(), "only a share at first");
        assert!(breaker.admit(later, 0.05).is_some());
        assert!(breaker.admit(later + Duration::from_secs(9), 0.5).is_some());
        breaker
            .admit(later + Duration::from_secs(10), 0.99)
            .expect("all again");
        assert_eq!(breaker.state(), BreakerState::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_says_nothing_gives_its_place_back() {
        let mut breaker = Breaker::new(SETTINGS);
        let now = Instant::now();
        for _ in 0..10 {
            call(&mut breaker, true, FAST, now);
        }
        let later = now + Duration::from_secs(5);
        for _ in 0..100 {
            let probe = breaker.admit(later, 0.0).expect("a place");
            breaker.forget(probe);
        }
        let probe = breaker.admit(later, 0.0).expect("a place");
        for _ in 0..2 {
            breaker.record(probe, true, FAST, later);
        }
        assert_eq!(breaker.state(), BreakerState::Open);
    }
}

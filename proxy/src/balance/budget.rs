//! What retries may add over a stretch of time (Envoy's `budget_interval`), beside what may be in
//! flight at once: many hops that each retry what comes back at once would multiply a failure into
//! a storm, and none of them would have more than a few retries in flight (RT-04).
//!
//! Two rules. Retries are a share of the requests of the last interval. And where half of all
//! tries or more fail, the share is nothing: what fails for everybody is not mended by asking
//! again, and each hop that holds to this adds nothing to the next one's load (after gRFC A6).
//! A few are allowed always, so that a quiet service can survive the loss of one instance.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;

use crate::config::cluster::RetryBudget;

/// An interval is counted in so many ticks, of which the oldest goes as a new one begins.
const TICKS: u32 = 10;

/// A count over the last interval. Each cell holds the number of its tick in the upper half and
/// the count in the lower, so that no lock is needed.
#[derive(Debug, Default)]
struct Recent([AtomicU64; TICKS as usize]);

impl Recent {
    fn add(&self, tick: u32) {
        let cell = self.0.get((tick % TICKS) as usize);
        let update = |old: u64| {
            let count = if old >> 32 == u64::from(tick) {
                old & u64::from(u32::MAX)
            } else {
                0
            };
            Some(u64::from(tick) << 32 | (count + 1).min(u32::MAX.into()))
        };
        if let Some(cell) = cell {
            let _before = cell.fetch_update(Relaxed, Relaxed, update);
        }
    }

    fn sum(&self, tick: u32) -> u64 {
        let cells = self.0.iter().map(|cell| cell.load(Relaxed));
        cells
            .filter(|cell| u64::from(tick).wrapping_sub(cell >> 32) < u64::from(TICKS))
            .map(|cell| cell & u64::from(u32::MAX))
            .sum()
    }
}

/// The requests and retries of a cluster's last interval.
#[derive(Debug)]
pub(super) struct Budget {
    base: Instant,
    requests: Recent,
    /// Tries that failed so that another one was wanted.
    failed: Recent,
    retries: Recent,
}

impl Budget {
    pub(super) fn new(base: Instant) -> Self {
        Self {
            base,
            requests: Recent::default(),
            failed: Recent::default(),
            retries: Recent::default(),
        }
    }

    fn tick(&self, rule: &RetryBudget, now: Instant) -> u32 {
        let tick = (rule.interval / TICKS).max(Duration::from_millis(1));
        let ticks = now.saturating_duration_since(self.base).as_nanos() / tick.as_nanos();
        u32::try_from(ticks).unwrap_or(u32::MAX)
    }

    /// A request was admitted.
    pub(super) fn request(&self, rule: &RetryBudget, now: Instant) {
        self.requests.add(self.tick(rule, now));
    }

    /// A try failed, and `take` takes what else a retry needs.
    pub(super) fn retry<T>(
        &self,
        rule: &RetryBudget,
        now: Instant,
        take: impl FnOnce() -> Option<T>,
    ) -> Option<T> {
        let tick = self.tick(rule, now);
        self.failed.add(tick);
        let (requests, made) = (self.requests.sum(tick), self.retries.sum(tick));
        let hopeless = self.failed.sum(tick) * 2 >= requests + made;
        let share = if hopeless {
            0
        } else {
            requests * u64::from(rule.percent) / 100
        };
        let seconds = rule.interval.as_secs().max(1);
        let always = u64::from(rule.min_concurrency) * seconds;
        let taken = (made < share + always).then(take).flatten()?;
        self.retries.add(tick);
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: RetryBudget = RetryBudget {
        percent: 20,
        min_concurrency: 1,
        interval: Duration::from_secs(10),
    };

    /// `seconds` of `rate` requests a second, of which every `nth` try fails and is tried again up
    /// to twice: requests and tries.
    fn load(budget: &Budget, from: Instant, seconds: u64, rate: u64, nth: u64) -> (u64, u64) {
        let (mut requests, mut tries) = (0, 0);
        for n in 0..seconds * rate {
            let now = from
                + Duration::from_secs(1) * u32::try_from(n).unwrap() / u32::try_from(rate).unwrap();
            budget.request(&RULE, now);
            requests += 1;
            for _ in 0..3 {
                tries += 1;
                if tries % nth != 0 || budget.retry(&RULE, now, || Some(())).is_none() {
                    break;
                }
            }
        }
        (requests, tries)
    }

    #[tokio::test(start_paused = true)]
    async fn rt_04_what_fails_for_all_is_hardly_tried_again() {
        let began = Instant::now();
        let budget = Budget::new(began);
        let (requests, tries) = load(&budget, began, 30, 500, 1);
        // One a second, and what an interval holds at the start.
        assert!(
            (requests + 20..=requests + 40).contains(&tries),
            "{requests} {tries}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenth_that_fails_is_all_tried_again() {
        let began = Instant::now();
        let budget = Budget::new(began);
        let (requests, tries) = load(&budget, began, 30, 500, 10);
        assert!(tries >= requests + requests / 10, "{requests} {tries}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_third_that_fails_is_tried_again_up_to_the_share() {
        let began = Instant::now();
        let budget = Budget::new(began);
        let (requests, tries) = load(&budget, began, 30, 500, 3);
        let added = tries - requests;
        assert!(
            (requests / 6..=requests / 5 + 40).contains(&added),
            "{requests} {tries}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_long_ago_does_not_count() {
        let began = Instant::now();
        let budget = Budget::new(began);
        load(&budget, began, 5, 1000, u64::MAX);
        let later = began + Duration::from_secs(15);
        let granted = (0..100)
            .filter(|_| budget.retry(&RULE, later, || Some(())).is_some())
            .count();
        assert_eq!(granted, 10, "only what is allowed always");
    }

    #[tokio::test(start_paused = true)]
    async fn what_could_not_be_taken_is_not_counted() {
        let began = Instant::now();
        let budget = Budget::new(began);
        for _ in 0..100 {
            assert!(budget.retry::<()>(&RULE, began, || None).is_none());
        }
        assert!(budget.retry(&RULE, began, || Some(())).is_some());
    }
}

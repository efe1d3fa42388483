//! When requests are due, and waiting for it exactly.

use std::{os::fd::OwnedFd, time::Duration};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::{io::unix::AsyncFd, time::Instant};

use crate::Result;

/// The same for every run, so that every proxy meets the same arrivals.
const SEED: u64 = 1;
/// No gap is longer: a rate of one per minute is no load.
const LONGEST_GAP: f64 = 1.0;

/// Moments of a Poisson process.
pub(crate) struct Arrivals {
    rng: StdRng,
    rate: f64,
    next: Instant,
}

impl Arrivals {
    pub(crate) fn new(rate: f64, from: Instant) -> Self {
        Self {
            rng: StdRng::seed_from_u64(SEED),
            rate,
            next: from,
        }
    }
}

impl Iterator for Arrivals {
    type Item = Instant;

    fn next(&mut self) -> Option<Instant> {
        let due = self.next;
        // In (0, 1], whose logarithm is finite.
        let share = 1.0 - self.rng.random::<f64>();
        let gap = (-share.ln() / self.rate).min(LONGEST_GAP);
        self.next += Duration::from_secs_f64(gap);
        Some(due)
    }
}

/// A timer of the kernel's own resolution. Tokio's has whole milliseconds, which at 2,000 requests
/// a second would be most of what is measured.
pub(crate) struct Timer(AsyncFd<OwnedFd>);

impl Timer {
    #[expect(
        deprecated,
        reason = "its successor is unsafe, for descriptors that are closed meanwhile; this one is owned"
    )]
    pub(crate) fn new() -> Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Self(AsyncFd::new(timer)?))
    }

    pub(crate) async fn wait_until(&self, when: Instant) -> Result<()> {
        let left = when.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec {
                tv_sec: i64::try_from(left.as_secs())?,
                tv_nsec: left.subsec_nanos().into(),
            },
        };
        timerfd_settime(self.0.get_ref(), TimerfdTimerFlags::empty(), &once)?;
        loop {
            let mut ready = self.0.readable().await?;
            let mut count = [0; 8];
            match rustix::io::read(self.0.get_ref(), &mut count) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_keep_their_rate_and_are_the_same_each_time() {
        let begin = Instant::now();
        let some = |rate| -> Vec<_> { Arrivals::new(rate, begin).take(20_001).collect() };
        let first = some(2000.0);
        assert_eq!(first, some(2000.0));
        let took = first.last().expect("moments").duration_since(begin);
        // The mean of 20,000 exponential gaps is within 3 % of theirs, four sigma.
        assert!((took.as_secs_f64() - 10.0).abs() < 0.3, "{took:?}");
        let short = first
            .windows(2)
            .filter(|two| two[1] - two[0] < Duration::from_micros(50));
        // 1 - e^-0.1 of them: a Poisson process has bursts, an even one would have none.
        assert!((1500..2400).contains(&short.count()));
    }

    #[tokio::test]
    async fn the_timer_waits_for_less_than_a_millisecond() {
        let timer = Timer::new().expect("a timer");
        let began = Instant::now();
        for _ in 0..10 {
            let due = Instant::now() + Duration::from_micros(200);
            timer.wait_until(due).await.expect("waited");
            assert!(Instant::now() >= due);
        }
        // On a busy machine it may take longer, though not by a whole tick each time.
        assert!(began.elapsed() >= Duration::from_millis(2));
        timer.wait_until(began).await.expect("the past is no wait");
    }
}

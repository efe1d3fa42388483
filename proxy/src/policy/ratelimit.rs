//! A token bucket shared by all workers (Envoy `LocalRateLimit`): one atomic word, no lock.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

use crate::config::listener::LocalRateLimit;

/// Holds up to `max_tokens`; every `fill_interval` it gets `tokens_per_fill` more. Starts full.
#[derive(Debug)]
pub struct TokenBucket {
    config: LocalRateLimit,
    start: Instant,
    /// Fills counted so far in the upper half, tokens in the lower.
    state: AtomicU64,
}

/// Workers may read the clock a little out of order; a count of fills this far behind the last one
/// is the past and not a wrap of the counter.
const PAST: u32 = 1 << 20;

impl TokenBucket {
    /// A full bucket.
    #[must_use]
    pub fn new(config: LocalRateLimit, now: Instant) -> Self {
        Self {
            config,
            start: now,
            state: AtomicU64::new(pack(0, config.max_tokens)),
        }
    }

    /// What it was made from, to see whether a new configuration needs a new bucket.
    #[must_use]
    pub const fn config(&self) -> &LocalRateLimit {
        &self.config
    }

    /// Takes a token.
    ///
    /// # Errors
    /// With the time until the next fill when there is none.
    pub fn take(&self, now: Instant) -> Result<(), Duration> {
        let interval = self.config.fill_interval.as_nanos().max(1);
        let elapsed = now.saturating_duration_since(self.start).as_nanos();
        let fills = wrapped(elapsed / interval);
        let taken = |state: u64| {
            let (seen, tokens) = unpack(state);
            let new = match fills.wrapping_sub(seen) {
                behind if behind > u32::MAX - PAST => 0,
                ahead => ahead,
            };
            let filled = new
                .saturating_mul(self.config.tokens_per_fill)
                .saturating_add(tokens)
                .min(self.config.max_tokens);
            Some(pack(seen.wrapping_add(new), filled.checked_sub(1)?))
        };
        let left = || {
            let nanos = interval - elapsed % interval;
            Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
        };
        self.state
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken)
            .map(drop)
            .map_err(|_| left())
    }
}

fn pack(fills: u32, tokens: u32) -> u64 {
    u64::from(fills) << 32 | u64::from(tokens)
}

fn unpack(state: u64) -> (u32, u32) {
    (wrapped(u128::from(state >> 32)), wrapped(u128::from(state)))
}

/// The low half of a number.
const fn wrapped(number: u128) -> u32 {
    (number & 0xffff_ffff) as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn config(max: u32, fill: u32, interval_ms: u64) -> LocalRateLimit {
        LocalRateLimit {
            max_tokens: max,
            tokens_per_fill: fill,
            fill_interval: Duration::from_millis(interval_ms),
            status: http::StatusCode::TOO_MANY_REQUESTS,
        }
    }

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_bucket_gives_what_it_holds_and_says_when_there_is_more() {
        let now = Instant::now();
        let bucket = TokenBucket::new(config(3, 2, 100), now);
        for _ in 0..3 {
            assert_eq!(bucket.take(now), Ok(()));
        }
        assert_eq!(bucket.take(now + ms(30)), Err(ms(70)));
        assert_eq!(bucket.take(now + ms(100)), Ok(()));
        assert_eq!(bucket.take(now + ms(100)), Ok(()));
        assert_eq!(bucket.take(now + ms(199)), Err(ms(1)));
        // After a long rest it is full and not fuller.
        for _ in 0..3 {
            assert_eq!(bucket.take(now + ms(86_400_000)), Ok(()));
        }
        assert!(bucket.take(now + ms(86_400_000)).is_err());
    }

    #[test]
    fn a_clock_read_out_of_order_gives_nothing_extra() {
        let now = Instant::now();
        let bucket = TokenBucket::new(config(1, 1, 100), now);
        assert_eq!(bucket.take(now + ms(250)), Ok(()));
        assert!(bucket.take(now + ms(150)).is_err());
        assert!(bucket.take(now + ms(250)).is_err());
        assert_eq!(bucket.take(now + ms(300)), Ok(()));
    }

    #[test]
    fn a_bucket_without_tokens_refuses_all() {
        let now = Instant::now();
        let bucket = TokenBucket::new(config(0, 5, 0), now);
        assert!(bucket.take(now + ms(10_000)).is_err());
    }

    #[test]
    fn workers_share_one_bucket() {
        let now = Instant::now();
        let bucket = TokenBucket::new(config(1_000, 1, 3_600_000), now);
        let taken: usize = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..500).filter(|_| bucket.take(now).is_ok()).count()))
                .collect();
            workers.into_iter().map(|w| w.join().expect("ends")).sum()
        });
        assert_eq!(taken, 1_000);
    }

    proptest! {
        #[test]
        fn never_more_than_full_plus_fills(
            (max, fill) in (1..20_u32, 1..5_u32),
            steps in prop::collection::vec(0..150_u64, 1..200),
        ) {
            let start = Instant::now();
            let bucket = TokenBucket::new(config(max, fill, 50), start);
            let mut at = 0;
            let mut given = 0_u64;
            let (mut tokens, mut filled) = (u64::from(max), 0);
            for step in steps {
                at += step;
                // The same bucket, one fill at a time.
                while filled < at / 50 {
                    filled += 1;
                    tokens = (tokens + u64::from(fill)).min(u64::from(max));
                }
                let got = bucket.take(start + ms(at)).is_ok();
                prop_assert_eq!(got, tokens > 0);
                tokens -= u64::from(got);
                given += u64::from(got);
            }
            prop_assert!(given <= u64::from(max) + (at / 50) * u64::from(fill));
        }
    }
}

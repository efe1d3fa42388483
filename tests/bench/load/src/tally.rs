//! What was measured, and its quantiles.

use std::time::Duration;

use serde_json::{Value, json};

/// Durations; all of them are kept, so that quantiles are exact.
#[derive(Default)]
pub(crate) struct Durations(Vec<u64>);

impl Durations {
    pub(crate) fn add(&mut self, took: Duration) {
        self.0
            .push(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// In microseconds: the smallest value that `per_mille` of all do not exceed.
    fn quantile(sorted: &[u64], per_mille: usize) -> f64 {
        let rank = (sorted.len() * per_mille).div_ceil(1000);
        let found = sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0);
        Duration::from_nanos(found).as_secs_f64() * 1e6
    }

    pub(crate) fn json(mut self) -> Value {
        self.0.sort_unstable();
        let at = |per_mille| Self::quantile(&self.0, per_mille);
        json!({
            "p50_us": at(500), "p90_us": at(900), "p99_us": at(990), "p999_us": at(999),
            "max_us": at(1000),
        })
    }
}

#[derive(Default)]
pub(crate) struct Tally {
    /// From the moment a request was due to the end of its answer.
    pub(crate) latency: Durations,
    /// From the moment a request was due to the moment it was handed over.
    pub(crate) lag: Durations,
    pub(crate) errors: u64,
    pub(crate) last_error: String,
}

impl Tally {
    pub(crate) fn failed(&mut self, why: String) {
        self.errors += 1;
        self.last_error = why;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_by_nearest_rank() {
        let mut all = Durations::default();
        for micros in (1..=1000).rev() {
            all.add(Duration::from_micros(micros));
        }
        let json = all.json();
        let near = |name: &str, wanted: f64| {
            let found = json[name].as_f64().expect("a number");
            assert!((found - wanted).abs() < 0.001, "{name}: {found}");
        };
        near("p50_us", 500.0);
        near("p99_us", 990.0);
        near("p999_us", 999.0);
        near("max_us", 1000.0);
        assert_eq!(Durations::default().json()["p99_us"], 0.0);
    }
}

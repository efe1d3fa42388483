//! Counters of the configuration stream, for `telemetry` to read.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use super::kind::Kind;

/// What became of an incoming resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum UpdateResult {
    /// Taken, and different from before.
    Accepted,
    /// Equal to what was held.
    Unchanged,
    /// Refused; the answer was NACKed.
    Rejected,
    /// Taken away.
    Removed,
}

impl UpdateResult {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Accepted,
        Self::Unchanged,
        Self::Rejected,
        Self::Removed,
    ];

    /// As written in metric labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Unchanged => "unchanged",
            Self::Rejected => "rejected",
            Self::Removed => "removed",
        }
    }
}

/// So many field paths are counted apart; the rest share one counter, called `other`.
const MAX_FIELDS: usize = 256;

/// Counters; all start at zero and only grow, unless their description says otherwise.
#[derive(Debug, Default)]
pub struct Stats {
    updates: [[AtomicU64; UpdateResult::ALL.len()]; Kind::ALL.len()],
    /// By type and path, without indices and keys.
    ignored: Mutex<BTreeMap<(Kind, String), u64>>,
    /// Whether a stream is open and its server has answered on it.
    pub connected: AtomicBool,
    /// Streams that were opened.
    pub streams: AtomicU64,
    /// Attempts to open a stream that failed, and streams that were given up as dead.
    pub failures: AtomicU64,
    /// Answers that were not wholly taken.
    pub nacks: AtomicU64,
    /// Configurations published.
    pub published: AtomicU64,
    /// Destinations subscribed on demand at this moment.
    pub destinations: AtomicU64,
    /// Unix seconds of the last answer; 0 before the first. What came from disk has the time at
    /// which it was received.
    last_update: AtomicU64,
    /// Whether what is in use was read from disk and no server has confirmed it yet.
    pub from_disk: AtomicBool,
    /// Why there is no stream.
    trouble: Mutex<Option<String>>,
}

impl Stats {
    /// How many resources of a type had this result.
    pub fn updates(&self, kind: Kind, result: UpdateResult) -> u64 {
        self.cell(kind, result)
            .map_or(0, |cell| cell.load(Ordering::Relaxed))
    }

    /// Times that a field was set and passed over, by type and path.
    pub fn ignored(&self) -> Vec<(Kind, String, u64)> {
        let all = self.ignored.lock().unwrap_or_else(PoisonError::into_inner);
        let each = all.iter();
        each.map(|((kind, path), count)| (*kind, path.clone(), *count))
            .collect()
    }

    /// When the last answer came.
    pub fn last_update(&self) -> Option<SystemTime> {
        let seconds = self.last_update.load(Ordering::Relaxed);
        (seconds > 0).then(|| UNIX_EPOCH + std::time::Duration::from_secs(seconds))
    }

    /// Why there is no stream to a server at the moment; `None` while there is one.
    pub fn trouble(&self) -> Option<String> {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.clone()
    }

    pub(crate) fn set_trouble(&self, why: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    pub(crate) fn count(&self, kind: Kind, result: UpdateResult) {
        if let Some(cell) = self.cell(kind, result) {
            cell.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn count_ignored(&self, kind: Kind, paths: &[String]) {
        let mut all = self.ignored.lock().unwrap_or_else(PoisonError::into_inner);
        for path in paths {
            let mut key = (kind, without_indices(path));
            if all.len() >= MAX_FIELDS && !all.contains_key(&key) {
                key.1 = "other".to_owned();
            }
            *all.entry(key).or_default() += 1;
        }
    }

    pub(crate) fn updated_at(&self, at: SystemTime) {
        let seconds = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.last_update.store(seconds, Ordering::Relaxed);
    }

    fn cell(&self, kind: Kind, result: UpdateResult) -> Option<&AtomicU64> {
        self.updates.get(kind.index())?.get(result as usize)
    }
}

/// A label must not hold what came with the data: `a[3].b[x]` is counted as `a.b`.
fn without_indices(path: &str) -> String {
    let mut depth = 0_u32;
    path.chars()
        .filter(|c| {
            match c {
                '[' => depth += 1,
                ']' => {
                    depth = depth.saturating_sub(1);
                    return false;
                }
                _ => {}
            }
            depth == 0
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_apart_by_type_and_result_and_fields_lose_their_indices() {
        let stats = Stats::default();
        stats.count(Kind::Route, UpdateResult::Rejected);
        assert_eq!(stats.updates(Kind::Route, UpdateResult::Rejected), 1);
        assert_eq!(stats.updates(Kind::Route, UpdateResult::Accepted), 0);
        assert_eq!(stats.updates(Kind::Cluster, UpdateResult::Rejected), 0);
        let paths = [
            "a[0].b".to_owned(),
            "a[1].b".to_owned(),
            "m[k[x]].c".to_owned(),
        ];
        stats.count_ignored(Kind::Listener, &paths);
        let all = stats.ignored();
        assert_eq!(all.first(), Some(&(Kind::Listener, "a.b".to_owned(), 2)));
        assert_eq!(all.get(1), Some(&(Kind::Listener, "m.c".to_owned(), 1)));
    }

    #[test]
    fn the_number_of_fields_counted_apart_is_bounded() {
        let stats = Stats::default();
        let paths: Vec<String> = (0..1000).map(|n| format!("f{n}")).collect();
        stats.count_ignored(Kind::Listener, &paths);
        assert_eq!(stats.ignored().len(), MAX_FIELDS + 1);
    }
}

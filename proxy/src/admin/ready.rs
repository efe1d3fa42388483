//! Whether the proxy may be relied on. It is ready when nobody says why it is not.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is still missing.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<Vec<&'static str>>>);

impl Readiness {
    /// Holds readiness back, for the reason `what`, for as long as the guard lives.
    #[must_use]
    pub fn block(&self, what: &'static str) -> BlockReady {
        self.lock().push(what);
        BlockReady {
            of: self.clone(),
            what,
        }
    }

    /// What readiness waits for; empty when ready.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<&'static str>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One reason not to be ready.
#[derive(Debug)]
pub struct BlockReady {
    of: Readiness,
    what: &'static str,
}

impl Drop for BlockReady {
    fn drop(&mut self) {
        let mut all = self.of.lock();
        if let Some(at) = all.iter().position(|what| *what == self.what) {
            all.remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ku_04_ready_when_the_last_reason_is_gone() {
        let ready = Readiness::default();
        let (one, two) = (ready.block("certificate"), ready.block("listeners"));
        let again = ready.block("certificate");
        drop(one);
        assert_eq!(ready.missing(), ["listeners", "certificate"]);
        drop((two, again));
        assert!(ready.missing().is_empty());
    }
}

//! Which proxies are connected, and how far each of them is.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use super::{NodeInfo, Rejected};
use crate::{identity::Identity, translate::ResourceType};

/// One connected proxy.
#[derive(Debug, Clone)]
pub struct ProxyEntry {
    /// Who it says it is.
    pub node: Arc<NodeInfo>,
    /// Who it is.
    pub identity: Identity,
    /// From where.
    pub address: SocketAddr,
    /// Seconds since 1970.
    pub since: u64,
    /// End of the newest certificate known of it, in seconds since 1970.
    pub certificate_until: Option<u64>,
    /// The revision that was last looked at for it.
    pub sent: u64,
    /// Every answer up to this revision was taken or refused.
    pub settled: u64,
    /// What it refused.
    pub rejected: Vec<(ResourceType, Rejected)>,
    /// What it has: type, name and version.
    pub held: Vec<(ResourceType, String, String)>,
}

impl ProxyEntry {
    /// Whether it refused something of this revision or an earlier one, and still does.
    #[must_use]
    pub const fn is_rejecting(&self) -> bool {
        !self.rejected.is_empty()
    }
}

/// All connected proxies.
#[derive(Debug)]
pub struct Proxies {
    entries: Mutex<(u64, BTreeMap<u64, ProxyEntry>)>,
    changed: watch::Sender<u64>,
}

impl Default for Proxies {
    fn default() -> Self {
        Self {
            entries: Mutex::default(),
            changed: watch::channel(0).0,
        }
    }
}

impl Proxies {
    fn lock(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, ProxyEntry>)> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of everything known, in the order in which they came.
    #[must_use]
    pub fn all(&self) -> Vec<ProxyEntry> {
        self.lock().1.values().cloned().collect()
    }

    /// Notes that a certificate was issued for `identity` to whoever is at `ip`.
    pub fn renewed(&self, identity: &Identity, ip: IpAddr, until: u64) {
        let mut entries = self.lock();
        for entry in entries.1.values_mut() {
            if entry.identity == *identity && entry.address.ip() == ip {
                entry.certificate_until = entry.certificate_until.max(Some(until));
            }
        }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lock().1.len()
    }

    /// Wakes up whenever something changes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Adds one; it is there until the guard is dropped.
    #[must_use]
    pub fn add(self: &Arc<Self>, entry: ProxyEntry) -> Connected {
        let mut entries = self.lock();
        entries.0 += 1;
        let id = entries.0;
        entries.1.insert(id, entry);
        drop(entries);
        self.changed.send_modify(|n| *n += 1);
        Connected {
            proxies: Arc::clone(self),
            id,
        }
    }
}

/// A connected proxy's place in the table.
#[derive(Debug)]
pub struct Connected {
    proxies: Arc<Proxies>,
    id: u64,
}

impl Connected {
    /// Changes the entry.
    pub fn update(&self, change: impl FnOnce(&mut ProxyEntry)) {
        if let Some(entry) = self.proxies.lock().1.get_mut(&self.id) {
            change(entry);
        }
        self.proxies.changed.send_modify(|n| *n += 1);
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.proxies.lock().1.remove(&self.id);
        self.proxies.changed.send_modify(|n| *n += 1);
    }
}

//! Destinations on demand: the data path asks for an address, the stream subscribes the Listener
//! that serves it, and everybody who asked hears when it can be used.
//!
//! A destination stays subscribed while connections use it and for an hour after; an address that
//! is no mesh destination is remembered as such, and, being still subscribed, hears of its change.
//! The table is bounded: the longest unused entry makes room.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::protocol::Name;

/// So many destinations are remembered: several times what one pod calls, and about 1 MiB.
pub const MAX_DESTINATIONS: usize = 4096;
/// So many callers wait at once, over all destinations; a caller above that is told "unavailable"
/// at once, since the control plane is plainly not answering.
const MAX_WAITERS: usize = 16_384;
/// Questions between the workers and the stream; each is answered in microseconds.
const MAX_ASKED: usize = 1024;
/// Prefix of the names of listeners that serve one destination.
const PREFIX: &str = "outbound/";

/// What is known of a destination.
#[derive(Debug)]
pub enum Demanded {
    /// A snapshot with its listener is published. The guard keeps it subscribed; hold it as long as
    /// the connection lives.
    Known(InUse),
    /// The control plane says that it is no mesh destination.
    Absent,
    /// Nobody knows: the control plane is not reachable, or sent something unusable.
    Unavailable,
}

/// When something was last used, and by how many it is used now.
#[derive(Debug, Default)]
struct UseStamp {
    /// Seconds since the table was made.
    last: AtomicU32,
    users: AtomicUsize,
}

/// Keeps a destination subscribed.
#[derive(Debug)]
pub struct InUse {
    stamp: Arc<UseStamp>,
    epoch: Instant,
}

impl InUse {
    fn new(stamp: &Arc<UseStamp>, epoch: Instant) -> Self {
        stamp.users.fetch_add(1, Ordering::Relaxed);
        stamp.last.store(seconds_since(epoch), Ordering::Relaxed);
        Self {
            stamp: Arc::clone(stamp),
            epoch,
        }
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let now = seconds_since(self.epoch);
        self.stamp.last.store(now, Ordering::Relaxed);
        self.stamp.users.fetch_sub(1, Ordering::Relaxed);
    }
}

fn seconds_since(epoch: Instant) -> u32 {
    u32::try_from(epoch.elapsed().as_secs()).unwrap_or(u32::MAX)
}

/// The data path's handle.
#[derive(Clone, Debug)]
pub struct Demand {
    shared: Option<Arc<Shared>>,
}

/// A copy of the settled part of the table, for the workers.
type Settled = HashMap<SocketAddr, (bool, Arc<UseStamp>)>;

#[derive(Debug)]
struct Shared {
    settled: ArcSwap<Settled>,
    ask: mpsc::Sender<Ask>,
    epoch: Instant,
}

/// A question of the data path.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) address: SocketAddr,
    pub(crate) answer: oneshot::Sender<Demanded>,
}

impl Demand {
    /// A handle where nothing comes on demand: what is not in the snapshot is absent.
    #[must_use]
    pub const fn none() -> Self {
        Self { shared: None }
    }

    /// What is known of a destination without asking anybody; touches no lock.
    #[must_use]
    pub fn peek(&self, address: SocketAddr) -> Option<Demanded> {
        let Some(shared) = &self.shared else {
            return Some(Demanded::Absent);
        };
        let settled = shared.settled.load();
        let (known, stamp) = settled.get(&plain(address))?;
        if *known {
            return Some(Demanded::Known(InUse::new(stamp, shared.epoch)));
        }
        stamp
            .last
            .store(seconds_since(shared.epoch), Ordering::Relaxed);
        Some(Demanded::Absent)
    }

    /// Asks the control plane for a destination and waits for the answer; the caller sets the
    /// limit. Callers that ask for the same address share one subscription.
    pub async fn destination(&self, address: SocketAddr) -> Demanded {
        if let Some(known) = self.peek(address) {
            return known;
        }
        let Some(shared) = &self.shared else {
            return Demanded::Absent;
        };
        let (answer, heard) = oneshot::channel();
        let ask = Ask {
            address: plain(address),
            answer,
        };
        if shared.ask.send(ask).await.is_err() {
            return Demanded::Unavailable;
        }
        heard.await.unwrap_or(Demanded::Unavailable)
    }
}

/// Without IPv6 scope and with IPv4 as IPv4, as names and snapshots have it.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The name of the listener that serves a destination.
pub(crate) fn listener_name(address: SocketAddr) -> Name {
    format!("{PREFIX}{address}").into()
}

/// The destination that a listener of this name serves.
pub(crate) fn address_of(name: &str) -> Option<SocketAddr> {
    let address: SocketAddr = name.strip_prefix(PREFIX)?.parse().ok()?;
    (*listener_name(address) == *name).then_some(address)
}

/// The stream's side of the table.
#[derive(Debug)]
pub(crate) struct Destinations {
    table: HashMap<SocketAddr, Destination>,
    shared: Arc<Shared>,
    waiting: usize,
    idle: Duration,
    /// Set when the workers' copy is behind.
    stale: bool,
}

#[derive(Debug)]
struct Destination {
    name: Name,
    stamp: Arc<UseStamp>,
    state: State,
    waiters: Vec<oneshot::Sender<Demanded>>,
    /// Unused for long: hidden from the workers, and dropped at the next sweep if nobody who still
    /// saw it has begun to use it.
    condemned: bool,
}

/// What is known of a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Asked,
    Known,
    Absent,
    /// What the server sent for it cannot be used.
    Unusable,
}

impl Destinations {
    /// A table, the data path's handle to it, and the questions that come through that handle.
    /// Unused destinations are dropped after `idle`.
    pub(crate) fn new(idle: Duration) -> (Self, Demand, mpsc::Receiver<Ask>) {
        let (ask, asked) = mpsc::channel(MAX_ASKED);
        let shared = Arc::new(Shared {
            settled: ArcSwap::default(),
            ask,
            epoch: Instant::now(),
        });
        let table = Self {
            table: HashMap::new(),
            shared: Arc::clone(&shared),
            waiting: 0,
            idle,
            stale: false,
        };
        let demand = Demand {
            shared: Some(shared),
        };
        (table, demand, asked)
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    /// Names of the listeners to subscribe.
    pub(crate) fn names(&self) -> BTreeSet<Name> {
        self.table
            .values()
            .map(|one| Arc::clone(&one.name))
            .collect()
    }

    /// Takes a question. Returns whether a subscription has to be made for it. With `reachable`
    /// false nobody is made to wait.
    pub(crate) fn ask(&mut self, ask: Ask, reachable: bool) -> bool {
        let new = !self.table.contains_key(&ask.address);
        if new && !self.make_room() {
            reply(ask.answer, Demanded::Unavailable);
            return false;
        }
        let epoch = self.shared.epoch;
        let one = self.entry(ask.address);
        one.stamp
            .last
            .store(seconds_since(epoch), Ordering::Relaxed);
        let hidden = std::mem::take(&mut one.condemned);
        match one.state {
            State::Known => {
                let guard = InUse::new(&one.stamp, epoch);
                reply(ask.answer, Demanded::Known(guard));
            }
            State::Absent => reply(ask.answer, Demanded::Absent),
            State::Unusable => reply(ask.answer, Demanded::Unavailable),
            State::Asked => {
                one.waiters.retain(|waiter| !waiter.is_closed());
                if reachable && self.waiting < MAX_WAITERS {
                    self.entry(ask.address).waiters.push(ask.answer);
                } else {
                    reply(ask.answer, Demanded::Unavailable);
                }
            }
        }
        self.stale |= hidden;
        self.publish();
        self.count();
        new
    }

    /// A destination that the server gave unasked, or that was read from disk.
    pub(crate) fn prefetched(&mut self, address: SocketAddr) -> bool {
        if self.table.contains_key(&address) || !self.make_room() {
            return false;
        }
        let now = seconds_since(self.shared.epoch);
        self.entry(address).stamp.last.store(now, Ordering::Relaxed);
        true
    }

    fn entry(&mut self, address: SocketAddr) -> &mut Destination {
        self.table.entry(address).or_insert_with(|| Destination {
            name: listener_name(address),
            stamp: Arc::default(),
            state: State::Asked,
            waiters: Vec::new(),
            condemned: false,
        })
    }

    /// Brings every destination to the state that its listener now has, and tells the workers
    /// first, the waiting callers then.
    pub(crate) fn resolve(&mut self, state_of: &dyn Fn(&str) -> State) {
        let epoch = self.shared.epoch;
        let mut answers = Vec::new();
        for one in self.table.values_mut() {
            let state = state_of(&one.name);
            self.stale |= state != one.state;
            one.state = state;
            if state == State::Asked {
                continue;
            }
            for waiter in one.waiters.drain(..) {
                let answer = match state {
                    State::Known => Demanded::Known(InUse::new(&one.stamp, epoch)),
                    State::Absent => Demanded::Absent,
                    State::Unusable | State::Asked => Demanded::Unavailable,
                };
                answers.push((waiter, answer));
            }
        }
        self.publish();
        for (waiter, answer) in answers {
            reply(waiter, answer);
        }
        self.count();
    }

    /// Nobody answers: whoever waits is told so. The subscriptions stay.
    pub(crate) fn unreachable(&mut self) {
        let waiters = self
            .table
            .values_mut()
            .flat_map(|one| one.waiters.drain(..));
        for waiter in waiters.collect::<Vec<_>>() {
            reply(waiter, Demanded::Unavailable);
        }
        self.count();
    }

    /// When to look for unused destinations next.
    pub(crate) fn next_sweep(&self, now: Instant) -> Option<Instant> {
        /// Precise enough for an hour, and next to no work.
        const SHARE: u32 = 16;
        (!self.table.is_empty()).then(|| now + (self.idle / SHARE).max(Duration::from_secs(1)))
    }

    /// Drops what was not used for long. Returns whether anything was dropped.
    pub(crate) fn sweep(&mut self) -> bool {
        let before = self.table.len();
        let now = seconds_since(self.shared.epoch);
        let idle = self.idle.as_secs();
        let mut hidden = false;
        self.table.retain(|_, one| {
            let age = now.saturating_sub(one.stamp.last.load(Ordering::Relaxed));
            let used = one.stamp.users.load(Ordering::Relaxed) > 0
                || !one.waiters.is_empty()
                || u64::from(age) < idle;
            let again = std::mem::replace(&mut one.condemned, !used);
            hidden |= again == used;
            used || !again
        });
        self.stale |= hidden;
        self.publish();
        self.table.len() < before
    }

    /// Makes room for one more, at the cost of the longest unused; absent ones go first.
    fn make_room(&mut self) -> bool {
        if self.table.len() < MAX_DESTINATIONS {
            return true;
        }
        let free = self.table.iter().filter(|(_, one)| {
            one.waiters.is_empty() && one.stamp.users.load(Ordering::Relaxed) == 0
        });
        let oldest = free.min_by_key(|(_, one)| {
            let used = one.stamp.last.load(Ordering::Relaxed);
            (one.state == State::Known, used)
        });
        let Some((&address, _)) = oldest else {
            return false;
        };
        self.table.remove(&address);
        self.stale = true;
        true
    }

    fn publish(&mut self) {
        if !std::mem::take(&mut self.stale) {
            return;
        }
        let settled = self.table.iter().filter_map(|(address, one)| {
            let known = match one.state {
                State::Known if !one.condemned => true,
                State::Absent if !one.condemned => false,
                State::Known | State::Absent | State::Asked | State::Unusable => return None,
            };
            Some((*address, (known, Arc::clone(&one.stamp))))
        });
        self.shared.settled.store(Arc::new(settled.collect()));
    }

    fn count(&mut self) {
        self.waiting = self.table.values().map(|one| one.waiters.len()).sum();
    }
}

fn reply(waiter: oneshot::Sender<Demanded>, answer: Demanded) {
    if waiter.send(answer).is_err() {
        tracing::trace!("a caller went away before its destination was known");
    }
}

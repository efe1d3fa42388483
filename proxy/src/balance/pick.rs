//! Choosing an endpoint. The list of those that may be chosen is made when something changes, not
//! when a request comes: a pick costs the same with ten endpoints and with a thousand.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use rand::{Rng, RngExt};
use tokio::time::Instant;

use super::{
    endpoint::EndpointState,
    tables,
    zones::{self, Place},
};
use crate::{
    config::{
        cluster::{Balancing, LocalityMode, SlowStart},
        endpoint::{Endpoints, Locality, LocalityEndpoints},
    },
    fault::Fault,
};

/// Draws before the members are looked at one by one for one that was not tried yet.
const DRAWS: usize = 4;
/// Draws that may miss because of slow start. When all members are new, each is as good as another,
/// so that the last draw counts whatever it is.
const WARM_DRAWS: usize = 8;
/// A member in slow start looks at most so much slower than it is.
const MIN_WARMTH: f64 = 0.01;

/// What a choice depends on besides the members.
#[derive(Clone, Copy, Debug)]
pub struct PickCx<'a> {
    /// For consistent hashing; drawn at random when absent.
    pub hash: Option<u64>,
    /// Endpoints that failed this request already: not chosen while another is there (RT-05).
    pub tried: &'a [SocketAddr],
    /// Where the connection was going, for clusters of type `ORIGINAL_DST`.
    pub original_dst: Option<SocketAddr>,
    pub now: Instant,
}

/// What a list of eligible members is made by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules<'a> {
    pub(super) balancing: Balancing,
    pub(super) locality: LocalityMode,
    pub(super) panic_threshold: u32,
    pub(super) home: &'a Locality,
}

/// What a choice from it is made by.
#[derive(Clone, Copy, Debug)]
pub(super) struct How<'a> {
    pub(super) balancing: Balancing,
    pub(super) slow_start: Option<&'a SlowStart>,
    /// Whose turn it is in round robin.
    pub(super) turn: &'a AtomicUsize,
}

/// Members that may be chosen, with what the balancer needs ready.
#[derive(Debug, Default)]
pub(super) struct Eligible {
    levels: Vec<Level>,
    /// Members there are at all, healthy or not.
    total: usize,
    /// When an ejection ends next, so that this list is out of date.
    until: Option<Instant>,
    /// Of the members' health, when this was made.
    version: u64,
}

/// One priority.
#[derive(Debug)]
struct Level {
    /// In percent; the levels' sum is at most 100.
    load: u32,
    groups: Vec<Group>,
}

/// Members that are balanced among each other: a locality, or all of a priority.
#[derive(Debug)]
struct Group {
    share: u32,
    members: Vec<Arc<EndpointState>>,
    /// Indices into `members`, each as often as its weight says, well mixed; empty when all weigh
    /// the same.
    schedule: Vec<u32>,
    /// Ring or Maglev table: points in order, or slots.
    table: Table,
}

#[derive(Debug)]
enum Table {
    None,
    Ring(Vec<(u64, u32)>),
    Maglev(Vec<u32>),
}

/// A priority's members by place, with its health.
struct Priority<'a> {
    places: Vec<Place<'a>>,
    /// Percent of the members that are healthy.
    share: u32,
    /// The same with overprovisioning, at most 100.
    health: u32,
}

impl<'a> Priority<'a> {
    fn new(
        members: &[Arc<EndpointState>],
        localities: &'a [LocalityEndpoints],
        overprovisioning: u32,
        now: Instant,
    ) -> Self {
        let mut rest = members;
        let places: Vec<_> = localities
            .iter()
            .map(|source| {
                let (here, others) = rest
                    .split_at_checked(source.endpoints.len())
                    .unwrap_or((rest, &[]));
                rest = others;
                let here = || here.iter().filter(|m| m.is_member());
                let usable: Vec<_> = here()
                    .filter(|m| m.is_available(now))
                    .map(Arc::clone)
                    .collect();
                Place {
                    source,
                    members: here().count(),
                    healthy: usable.len(),
                    usable,
                }
            })
            .collect();
        let all: usize = places.iter().map(|place| place.members).sum();
        let healthy: usize = places.iter().map(|place| place.healthy).sum();
        let share = u32::try_from(healthy * 100 / all.max(1)).unwrap_or(0);
        Self {
            places,
            share,
            health: (share * overprovisioning.max(100) / 100).min(100),
        }
    }

    /// Takes all members for usable, healthy or not.
    fn panic(&mut self, members: &[Arc<EndpointState>]) {
        let mut rest = members;
        for place in &mut self.places {
            let (here, others) = rest
                .split_at_checked(place.source.endpoints.len())
                .unwrap_or((rest, &[]));
            rest = others;
            place.usable = here
                .iter()
                .filter(|m| m.is_member())
                .map(Arc::clone)
                .collect();
        }
    }
}

impl Eligible {
    /// The list for `priorities` of members, which are those of `source` in its order, at `now`, by
    /// Envoy's health arithmetic: a priority counts as healthy as its share of healthy members
    /// times the overprovisioning factor says, load goes to the first ones that make up 100 %, and
    /// a priority whose share is under the panic threshold while there is not enough health
    /// anywhere ignores health.
    pub(super) fn new(
        priorities: &[Vec<Arc<EndpointState>>],
        source: &Endpoints,
        rules: &Rules<'_>,
        version: u64,
        now: Instant,
    ) -> Self {
        let facts: Vec<_> = priorities
            .iter()
            .zip(&source.priorities)
            .map(|(members, places)| Priority::new(members, places, source.overprovisioning, now))
            .collect();
        let total = facts.iter().flat_map(|f| &f.places).map(|p| p.members);
        let ends = priorities
            .iter()
            .flatten()
            .filter_map(|m| m.run.ejected_at(now));
        let mut this = Self {
            levels: Vec::new(),
            total: total.sum(),
            until: ends.min(),
            version,
        };
        let health_sum: u32 = facts.iter().map(|fact| fact.health).sum();
        let mut left = 100_u32;
        for (mut fact, members) in facts.into_iter().zip(priorities) {
            let load = if health_sum == 0 {
                // Nobody is healthy anywhere: the first priority takes all, if panic lets it.
                std::mem::take(&mut left)
            } else {
                let part = (fact.health * 100)
                    .checked_div(health_sum.min(100))
                    .unwrap_or(0);
                let part = part.min(left);
                left -= part;
                part
            };
            let panic = health_sum < 100 && fact.share < rules.panic_threshold;
            if panic {
                fact.panic(members);
            }
            let groups = groups(fact.places, source.overprovisioning, panic, rules);
            if load > 0 && !groups.is_empty() {
                this.levels.push(Level { load, groups });
            }
        }
        this
    }

    /// Whether nothing has changed since it was made.
    pub(super) fn is_current(&self, version: u64, now: Instant) -> bool {
        self.version == version && self.until.is_none_or(|until| now < until)
    }

    /// Whether there is anybody to choose.
    pub(super) const fn is_usable(&self) -> bool {
        !self.levels.is_empty()
    }

    /// A member for a request.
    pub(super) fn pick(
        &self,
        cx: &PickCx<'_>,
        how: &How<'_>,
        rng: &mut impl Rng,
    ) -> Result<Arc<EndpointState>, Fault> {
        if self.total == 0 {
            return Err(Fault::NoEndpoints);
        }
        let level = by_share(&self.levels, |level| level.load, rng);
        let level = level.ok_or(Fault::NoHealthyEndpoint)?;
        let group = by_share(&level.groups, |group| group.share, rng);
        let group = group.ok_or(Fault::NoHealthyEndpoint)?;
        for _ in 0..DRAWS {
            let Some(member) = group.choose(cx, how, rng) else {
                break;
            };
            if !cx.tried.contains(&member.config.address) {
                return Ok(Arc::clone(member));
            }
        }
        let untried = |m: &&Arc<EndpointState>| !cx.tried.contains(&m.config.address);
        let near = || group.members.iter();
        let groups = || self.levels.iter().flat_map(|level| &level.groups);
        let others = || groups().flat_map(|group| &group.members);
        let in_flight = |m: &&Arc<EndpointState>| m.run.in_flight.load(Relaxed);
        // Nearest first: the priority and place that the request was meant for.
        let least = near().filter(untried).min_by_key(in_flight);
        let least = least.or_else(|| others().filter(untried).min_by_key(in_flight));
        // Every member has failed this request: the one that failed first has had the longest rest.
        let mut tried = cx.tried.iter();
        let rested = || tried.find_map(|at| others().find(|m| m.config.address == *at));
        let member = least.or_else(rested);
        member.map(Arc::clone).ok_or(Fault::NoHealthyEndpoint)
    }
}

/// One of `all`, at random by its share.
fn by_share<'a, T>(all: &'a [T], share: impl Fn(&T) -> u32, rng: &mut impl Rng) -> Option<&'a T> {
    if let [only] = all {
        return Some(only);
    }
    let sum: u32 = all.iter().map(&share).sum();
    if sum == 0 {
        return None;
    }
    let mut draw = rng.random_range(0..sum);
    all.iter().find(|one| {
        let hit = draw < share(one);
        draw = draw.saturating_sub(share(one));
        hit
    })
}

/// The members of a priority as the sets that are balanced each by itself. Consistent hashing wants
/// one set, in which localities only change the weights.
fn groups(
    places: Vec<Place<'_>>,
    overprovisioning: u32,
    panic: bool,
    rules: &Rules<'_>,
) -> Vec<Group> {
    let hashed = matches!(
        rules.balancing,
        Balancing::RingHash { .. } | Balancing::Maglev { .. }
    );
    let mode = match rules.locality {
        // Hashing decides where a request goes, wherever that is (Envoy).
        LocalityMode::ZoneAware { .. } if hashed => LocalityMode::Ignore,
        mode => mode,
    };
    let shares = zones::shares(&places, mode, rules.home, overprovisioning, panic);
    let own = |m: &Arc<EndpointState>| u64::from(m.config.weight.max(1));
    let mut out = Vec::new();
    match shares {
        Some(shares) if !hashed => {
            for (place, share) in places.into_iter().zip(shares) {
                let weights: Vec<_> = place.usable.iter().map(own).collect();
                if share > 0 && !weights.is_empty() {
                    out.push(Group::new(share, place.usable, &weights, rules.balancing));
                }
            }
        }
        shares => {
            let (mut members, mut weights) = (Vec::new(), Vec::new());
            for (n, place) in places.into_iter().enumerate() {
                let sum: u64 = place.usable.iter().map(own).sum();
                let share = shares.as_ref().and_then(|s| s.get(n)).copied();
                for member in place.usable {
                    let weight = match share {
                        Some(0) => continue,
                        Some(share) => own(&member) * u64::from(share) / sum.max(1),
                        None => own(&member),
                    };
                    weights.push(weight.max(1));
                    members.push(member);
                }
            }
            if !members.is_empty() {
                out.push(Group::new(1, members, &weights, rules.balancing));
            }
        }
    }
    out
}

impl Group {
    fn new(
        share: u32,
        members: Vec<Arc<EndpointState>>,
        weights: &[u64],
        balancing: Balancing,
    ) -> Self {
        let table = match balancing {
            Balancing::RingHash { min_size, max_size } => {
                Table::Ring(tables::ring(&members, weights, (min_size, max_size)))
            }
            Balancing::Maglev { table_size } => {
                Table::Maglev(tables::maglev(&members, weights, table_size))
            }
            _ => Table::None,
        };
        Self {
            share,
            schedule: match balancing {
                Balancing::RoundRobin | Balancing::Random | Balancing::LeastRequest { .. } => {
                    tables::schedule(weights)
                }
                _ => Vec::new(),
            },
            table,
            members,
        }
    }

    fn choose(
        &self,
        cx: &PickCx<'_>,
        how: &How<'_>,
        rng: &mut impl Rng,
    ) -> Option<&Arc<EndpointState>> {
        match how.balancing {
            Balancing::RoundRobin => {
                self.warm(cx, how, rng, |_| self.slot(how.turn.fetch_add(1, Relaxed)))
            }
            Balancing::Random => self.warm(cx, how, rng, |rng| self.random(rng)),
            Balancing::LeastRequest { choices, .. } => self.warm(cx, how, rng, |rng| {
                let drawn = (0..choices.max(2)).filter_map(|_| self.random(rng));
                drawn.min_by_key(|m| m.run.in_flight.load(Relaxed))
            }),
            Balancing::PickFirst { .. } => {
                let untried = |m: &&Arc<EndpointState>| !cx.tried.contains(&m.config.address);
                self.members.iter().find(untried)
            }
            Balancing::PeakEwma { decay, .. } => {
                let (a, b) = self.two(rng)?;
                let cost = |m: &EndpointState| {
                    let warmth = how
                        .slow_start
                        .map_or(1.0, |slow| m.run.warmth(slow, cx.now));
                    ewma_cost(m, decay, cx.now) / warmth.max(MIN_WARMTH)
                };
                Some(if cost(b) < cost(a) { b } else { a })
            }
            Balancing::RingHash { .. } | Balancing::Maglev { .. } => {
                // What was tried moves the hash on, so that the next one in the ring is found.
                let hash = cx.hash.unwrap_or_else(|| rng.random());
                let step = (cx.tried.len() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let hash = hash.wrapping_add(step);
                self.hashed(hash)
            }
        }
    }

    /// A draw, repeated when it hits a member in slow start more often than its share allows. The
    /// requests that it does not get go to all others alike.
    fn warm<'a, R: Rng>(
        &'a self,
        cx: &PickCx<'_>,
        how: &How<'_>,
        rng: &mut R,
        mut draw: impl FnMut(&mut R) -> Option<&'a Arc<EndpointState>>,
    ) -> Option<&'a Arc<EndpointState>> {
        let Some(slow) = how.slow_start else {
            return draw(rng);
        };
        let mut drawn = None;
        for _ in 0..WARM_DRAWS {
            let member = draw(rng)?;
            let warmth = member.run.warmth(slow, cx.now);
            drawn = Some(member);
            if warmth >= 1.0 || rng.random::<f64>() < warmth {
                break;
            }
        }
        drawn
    }

    fn random(&self, rng: &mut impl Rng) -> Option<&Arc<EndpointState>> {
        self.slot(rng.random_range(0..self.slots().max(1)))
    }

    const fn slots(&self) -> usize {
        if self.schedule.is_empty() {
            self.members.len()
        } else {
            self.schedule.len()
        }
    }

    fn slot(&self, n: usize) -> Option<&Arc<EndpointState>> {
        let n = n.checked_rem(self.slots())?;
        match self.schedule.get(n) {
            Some(at) => self.members.get(*at as usize),
            None => self.members.get(n),
        }
    }

    /// Two different members where there are two.
    fn two(&self, rng: &mut impl Rng) -> Option<(&Arc<EndpointState>, &Arc<EndpointState>)> {
        let n = self.members.len();
        let a = rng.random_range(0..n);
        let b = if n > 1 {
            (a + rng.random_range(1..n)) % n
        } else {
            a
        };
        Some((self.members.get(a)?, self.members.get(b)?))
    }

    fn hashed(&self, hash: u64) -> Option<&Arc<EndpointState>> {
        let at = match &self.table {
            Table::Ring(points) => {
                let n = points.partition_point(|(point, _)| *point < hash);
                points.get(n).or_else(|| points.first())?.1
            }
            Table::Maglev(slots) => {
                let n = hash.checked_rem(slots.len() as u64)?;
                *slots.get(usize::try_from(n).ok()?)?
            }
            Table::None => return None,
        };
        self.members.get(at as usize)
    }
}

/// Latency times the requests that would be waiting, per weight.
fn ewma_cost(member: &EndpointState, decay: Duration, now: Instant) -> f64 {
    let waiting = f64::from(member.run.in_flight.load(Relaxed)) + 1.0;
    // A floor keeps an endpoint without traffic from looking infinitely fast.
    let latency = member.run.latency(decay, now).max(1e3);
    latency * waiting / f64::from(member.config.weight.max(1))
}

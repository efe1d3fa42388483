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

use super::endpoint::EndpointState;
use crate::{
    config::{cluster::Balancing, endpoint::HealthStatus},
    fault::Fault,
};

/// Slots of the weighted schedules; weights are scaled to fit.
const MAX_SLOTS: u64 = 4096;
/// Draws before the members are looked at one by one for one that was not tried yet.
const DRAWS: usize = 4;

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

/// Members that may be chosen, with what the balancer needs ready.
#[derive(Debug, Default)]
pub(super) struct Eligible {
    levels: Vec<Level>,
    /// Members there are at all, healthy or not.
    pub(super) total: usize,
    /// When an ejection ends next, so that this list is out of date.
    pub(super) until: Option<Instant>,
}

/// One priority.
#[derive(Debug)]
struct Level {
    /// In percent; the levels' sum is 100.
    load: u32,
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

impl Eligible {
    /// The list for `levels` of members at `now`, by Envoy's health arithmetic: a priority counts
    /// as healthy as its share of healthy members times the overprovisioning factor says, load
    /// goes to the first ones that make up 100 %, and a priority whose share is under the panic
    /// threshold while there is not enough health anywhere ignores health.
    pub(super) fn new(
        priorities: &[Vec<Arc<EndpointState>>],
        balancing: Balancing,
        overprovisioning: u32,
        panic_threshold: u32,
        now: Instant,
    ) -> Self {
        let mut levels = Vec::new();
        let mut total = 0;
        let mut until: Option<Instant> = None;
        let mut facts = Vec::new();
        for members in priorities {
            let usable: Vec<_> = members
                .iter()
                .filter(|m| m.config.health != HealthStatus::Draining)
                .collect();
            let healthy: Vec<_> = usable
                .iter()
                .filter(|m| m.is_available(now))
                .map(|m| Arc::clone(m))
                .collect();
            for member in &usable {
                until = match (until, member.run.ejected_at(now)) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (a, b) => a.or(b),
                };
            }
            total += usable.len();
            let share = healthy.len() * 100 / usable.len().max(1);
            let share = u32::try_from(share).unwrap_or(0);
            let health = (share * overprovisioning.max(100) / 100).min(100);
            facts.push((usable, healthy, share, health));
        }
        let health_sum: u32 = facts.iter().map(|(.., health)| health).sum();
        let mut left = 100_u32;
        for (usable, healthy, share, health) in facts {
            let load = if health_sum == 0 {
                // Nobody is healthy anywhere: the first priority takes all, if panic lets it.
                std::mem::take(&mut left)
            } else {
                let part = (health * 100).checked_div(health_sum.min(100)).unwrap_or(0);
                let part = part.min(left);
                left -= part;
                part
            };
            let panic = health_sum < 100 && share < panic_threshold;
            let members = if panic {
                usable.into_iter().map(Arc::clone).collect()
            } else {
                healthy
            };
            if load > 0 && !members.is_empty() {
                levels.push(Level::new(load, members, balancing));
            }
        }
        Self {
            levels,
            total,
            until,
        }
    }

    /// A member for a request.
    pub(super) fn pick(
        &self,
        cx: &PickCx<'_>,
        balancing: Balancing,
        turn: &AtomicUsize,
        rng: &mut impl Rng,
    ) -> Result<Arc<EndpointState>, Fault> {
        if self.total == 0 {
            return Err(Fault::NoEndpoints);
        }
        let sum: u32 = self.levels.iter().map(|l| l.load).sum();
        if sum == 0 {
            return Err(Fault::NoHealthyEndpoint);
        }
        let mut draw = rng.random_range(0..sum);
        let level = self.levels.iter().find(|level| {
            let hit = draw < level.load;
            draw = draw.saturating_sub(level.load);
            hit
        });
        let level = level.ok_or(Fault::NoHealthyEndpoint)?;
        for _ in 0..DRAWS {
            let Some(member) = level.choose(cx, balancing, turn, rng) else {
                break;
            };
            if !cx.tried.contains(&member.config.address) {
                return Ok(Arc::clone(member));
            }
        }
        let untried = |m: &&Arc<EndpointState>| !cx.tried.contains(&m.config.address);
        let others = self.levels.iter().flat_map(|level| &level.members);
        let mut least = others
            .clone()
            .filter(untried)
            .min_by_key(|m| m.run.in_flight.load(Relaxed));
        if least.is_none() {
            // Every member has failed this request: the one that failed first has had the longest
            // rest.
            least = cx
                .tried
                .iter()
                .find_map(|address| others.clone().find(|m| m.config.address == *address));
        }
        least.map(Arc::clone).ok_or(Fault::NoHealthyEndpoint)
    }
}

impl Level {
    fn new(load: u32, members: Vec<Arc<EndpointState>>, balancing: Balancing) -> Self {
        let table = match balancing {
            Balancing::RingHash { min_size, .. } => Table::Ring(ring(&members, min_size)),
            Balancing::Maglev { table_size } => Table::Maglev(maglev(&members, table_size)),
            _ => Table::None,
        };
        Self {
            load,
            schedule: schedule(&members),
            table,
            members,
        }
    }

    fn choose(
        &self,
        cx: &PickCx<'_>,
        balancing: Balancing,
        turn: &AtomicUsize,
        rng: &mut impl Rng,
    ) -> Option<&Arc<EndpointState>> {
        match balancing {
            Balancing::RoundRobin => self.slot(turn.fetch_add(1, Relaxed)),
            Balancing::Random => self.slot(rng.random_range(0..self.slots())),
            Balancing::PickFirst { .. } => {
                let untried = |m: &&Arc<EndpointState>| !cx.tried.contains(&m.config.address);
                self.members.iter().find(untried)
            }
            Balancing::PeakEwma { decay, .. } => {
                let (a, b) = self.two(rng)?;
                let cost = |m: &EndpointState| ewma_cost(m, decay, cx.now);
                Some(if cost(b) < cost(a) { b } else { a })
            }
            Balancing::LeastRequest { choices, .. } => {
                let drawn = (0..choices.max(2)).filter_map(|_| {
                    let slot = rng.random_range(0..self.slots());
                    self.slot(slot)
                });
                drawn.min_by_key(|m| m.run.in_flight.load(Relaxed))
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

/// Smooth weighted round robin (nginx), unrolled once.
fn schedule(members: &[Arc<EndpointState>]) -> Vec<u32> {
    let weight = |m: &Arc<EndpointState>| u64::from(m.config.weight.max(1));
    let first = members.first().map(weight);
    if members.iter().map(weight).all(|w| Some(w) == first) {
        return Vec::new();
    }
    let sum: u64 = members.iter().map(weight).sum();
    let scale = |w: u64| {
        if sum <= MAX_SLOTS {
            w
        } else {
            (w * MAX_SLOTS / sum).max(1)
        }
    };
    let weights: Vec<i64> = members
        .iter()
        .map(|m| i64::try_from(scale(weight(m))).unwrap_or(1))
        .collect();
    let total: i64 = weights.iter().sum();
    let mut current = vec![0_i64; weights.len()];
    (0..total)
        .filter_map(|_| {
            for (value, weight) in current.iter_mut().zip(&weights) {
                *value += weight;
            }
            let (at, value) = current
                .iter_mut()
                .enumerate()
                .max_by_key(|(at, v)| (**v, usize::MAX - at))?;
            *value -= total;
            u32::try_from(at).ok()
        })
        .collect()
}

fn hash_name(member: &EndpointState) -> String {
    match &member.config.hash_key {
        Some(key) => key.to_string(),
        None => member.config.address.to_string(),
    }
}

/// Points on the ring in proportion to weight (Envoy's ketama).
fn ring(members: &[Arc<EndpointState>], min_size: u32) -> Vec<(u64, u32)> {
    let lightest = members
        .iter()
        .map(|m| m.config.weight.max(1))
        .min()
        .unwrap_or(1);
    let sum: u64 = members
        .iter()
        .map(|m| u64::from(m.config.weight.max(1)))
        .sum();
    let per_lightest = (u64::from(min_size) * u64::from(lightest))
        .div_ceil(sum.max(1))
        .max(1);
    let mut points = Vec::new();
    for (at, member) in members.iter().enumerate() {
        let name = hash_name(member);
        let share = per_lightest * u64::from(member.config.weight.max(1)) / u64::from(lightest);
        for n in 0..share.min(MAX_SLOTS) {
            let point = crate::route::xxh64(format!("{name}_{n}").as_bytes(), 0);
            points.push((point, u32::try_from(at).unwrap_or(0)));
        }
    }
    points.sort_unstable();
    points
}

/// The Maglev table (Eisenbud et al., NSDI 2016): each member fills its next free slot in turn, as
/// often as its weight says.
fn maglev(members: &[Arc<EndpointState>], size: u32) -> Vec<u32> {
    const FREE: u32 = u32::MAX;
    let size = u64::from(size.max(2));
    let mut table = vec![FREE; usize::try_from(size).unwrap_or(0)];
    let heaviest = members
        .iter()
        .map(|m| m.config.weight.max(1))
        .max()
        .unwrap_or(1);
    let mut walkers: Vec<(u64, u64, u64, u32, f64)> = members
        .iter()
        .zip(0_u32..)
        .map(|(member, at)| {
            let name = hash_name(member);
            let offset = crate::route::xxh64(name.as_bytes(), 0) % size;
            let skip = crate::route::xxh64(name.as_bytes(), 1) % (size - 1) + 1;
            let weight = f64::from(member.config.weight.max(1)) / f64::from(heaviest);
            (offset, skip, 0, at, weight)
        })
        .collect();
    let mut filled = 0;
    let mut credit = vec![0.0_f64; walkers.len()];
    while filled < size && !walkers.is_empty() {
        for ((offset, skip, next, at, weight), credit) in walkers.iter_mut().zip(&mut credit) {
            *credit += *weight;
            if *credit < 1.0 {
                continue;
            }
            *credit -= 1.0;
            while *next < size {
                let slot = (*offset + *skip * *next) % size;
                *next += 1;
                if let Some(slot) = usize::try_from(slot).ok().and_then(|s| table.get_mut(s))
                    && *slot == FREE
                {
                    *slot = *at;
                    filled += 1;
                    break;
                }
            }
            if filled >= size {
                break;
            }
        }
        if walkers.iter().all(|(_, _, next, ..)| *next >= size) {
            break;
        }
    }
    table.retain(|slot| *slot != FREE);
    table
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::{
        balance::endpoint::Runtime,
        config::endpoint::{Endpoint, HealthStatus},
    };

    fn member(n: u8, now: Instant) -> Arc<EndpointState> {
        Arc::new(EndpointState {
            id: n.into(),
            config: Arc::new(Endpoint {
                address: SocketAddr::from(([10, 0, 0, n], 80)),
                health: HealthStatus::Healthy,
                weight: 1,
                hostname: None,
                health_check_address: None,
                transport_match: Vec::new(),
                hash_key: None,
                workload: None,
            }),
            tls: None,
            run: Runtime::new(n.into(), now, Duration::ZERO),
        })
    }

    #[tokio::test(start_paused = true)]
    async fn rt_05_hash_balancers_go_on_to_untried_members() {
        let now = Instant::now();
        let members: Vec<_> = (1..=4).map(|n| member(n, now)).collect();
        let hashed = [
            Balancing::RingHash {
                min_size: 64,
                max_size: 1024,
            },
            Balancing::Maglev { table_size: 251 },
        ];
        for balancing in hashed {
            let eligible = Eligible::new(&[members.clone()], balancing, 140, 50, now);
            let mut rng = StdRng::seed_from_u64(7);
            let mut tried = Vec::new();
            for _ in 0..members.len() {
                let cx = PickCx {
                    hash: Some(u64::MAX),
                    tried: &tried,
                    original_dst: None,
                    now,
                };
                let turn = AtomicUsize::new(0);
                let picked = eligible
                    .pick(&cx, balancing, &turn, &mut rng)
                    .expect("a member");
                assert!(!tried.contains(&picked.config.address), "{balancing:?}");
                tried.push(picked.config.address);
            }
        }
    }
}

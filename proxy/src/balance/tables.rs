//! What balancers look things up in: the weighted schedule, the ring, the Maglev table. Made when
//! members, weights or health change. `weights` has one entry for each of `members`.

use std::sync::Arc;

use super::endpoint::EndpointState;

/// Slots of the weighted schedule, and points of one member on a ring; weights are scaled to fit.
const MAX_SLOTS: u64 = 4096;

type Members = [Arc<EndpointState>];

/// Smooth weighted round robin (nginx), unrolled once: indices into the members, each as often as
/// its weight says, well mixed. Empty when all weigh the same.
pub(super) fn schedule(weights: &[u64]) -> Vec<u32> {
    let first = weights.first();
    if weights.iter().all(|weight| Some(weight) == first) {
        return Vec::new();
    }
    let sum = weights.iter().fold(0_u64, |sum, w| sum.saturating_add(*w));
    let scale = |weight: u64| {
        let scaled = u128::from(weight) * u128::from(MAX_SLOTS) / u128::from(sum.max(1));
        let scaled = i64::try_from(scaled).unwrap_or(1).max(1);
        if sum <= MAX_SLOTS {
            i64::try_from(weight).unwrap_or(scaled)
        } else {
            scaled
        }
    };
    let weights: Vec<i64> = weights.iter().map(|w| scale(*w)).collect();
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
                .max_by_key(|(at, value)| (**value, usize::MAX - at))?;
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

/// Points on the ring in proportion to weight (Envoy's ketama): at least `min_size` together, as
/// long as that is not more than `max_size`.
pub(super) fn ring(
    members: &Members,
    weights: &[u64],
    (min_size, max_size): (u32, u32),
) -> Vec<(u64, u32)> {
    let lightest = u128::from(weights.iter().copied().min().unwrap_or(1).max(1));
    let sum: u128 = weights.iter().map(|w| u128::from(*w)).sum();
    let size = u128::from(min_size.min(max_size));
    let per_lightest = (size * lightest).div_ceil(sum.max(1)).max(1);
    let mut points = Vec::new();
    for ((at, member), weight) in (0_u32..).zip(members).zip(weights) {
        let name = hash_name(member);
        let share = per_lightest * u128::from(*weight) / lightest;
        for n in 0..share.min(u128::from(MAX_SLOTS)) {
            let point = crate::route::xxh64(format!("{name}_{n}").as_bytes(), 0);
            points.push((point, at));
        }
    }
    points.sort_unstable();
    points
}

/// How one member walks over the slots of a Maglev table.
struct Walk {
    offset: u64,
    skip: u64,
    next: u64,
    at: u32,
    /// Slots it may take per round, at most 1.
    pace: f64,
    credit: f64,
}

impl Walk {
    /// Takes the next free slot of its order; whether there was one.
    fn take(&mut self, table: &mut [u32], size: u64) -> bool {
        while self.next < size {
            let slot = (self.offset + self.skip * self.next) % size;
            self.next += 1;
            if let Some(slot) = usize::try_from(slot).ok().and_then(|s| table.get_mut(s))
                && *slot == FREE
            {
                *slot = self.at;
                return true;
            }
        }
        false
    }
}

const FREE: u32 = u32::MAX;

/// The Maglev table (Eisenbud et al., NSDI 2016): each member fills its next free slot in turn, as
/// often as its weight says.
pub(super) fn maglev(members: &Members, weights: &[u64], size: u32) -> Vec<u32> {
    let size = u64::from(size.max(2));
    let mut table = vec![FREE; usize::try_from(size).unwrap_or(0)];
    let heaviest = weights.iter().copied().max().unwrap_or(1).max(1);
    let mut walks: Vec<Walk> = (0_u32..)
        .zip(members)
        .zip(weights)
        .map(|((at, member), weight)| {
            let name = hash_name(member);
            Walk {
                offset: crate::route::xxh64(name.as_bytes(), 0) % size,
                skip: crate::route::xxh64(name.as_bytes(), 1) % (size - 1) + 1,
                next: 0,
                at,
                pace: ratio(*weight, heaviest),
                credit: 0.0,
            }
        })
        .collect();
    let mut filled = 0;
    while filled < size && walks.iter().any(|walk| walk.next < size) {
        for walk in &mut walks {
            walk.credit += walk.pace;
            if walk.credit >= 1.0 && filled < size {
                walk.credit -= 1.0;
                filled += u64::from(walk.take(&mut table, size));
            }
        }
    }
    table.retain(|slot| *slot != FREE);
    table
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a ratio of weights needs no last bit"
)]
fn ratio(weight: u64, heaviest: u64) -> f64 {
    // A floor, so that the walk of the lightest ends.
    (weight as f64 / heaviest as f64).max(1e-4)
}
